/*
JSON: writing strings and numbers that every reader accepts, and functions for reading strings.

run.json and the lines of log.jsonl are written with these functions. The reader reads run.json and
GPT-2's vocabulary. log.h scans the lines of log.jsonl, which this program wrote, for keys.
*/
#ifndef CM_JSON_H
#define CM_JSON_H

#include "base.h"

/* Room for any number json_double_text prints. */
#define JSON_NUMBER_SIZE 40

/* ---------------------------------------------------------------------------------------------- */
/* UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF) */

/* Bytes of a character that begins with this byte; 0 if none does. */
static inline size_t utf8_length(unsigned char first) {
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xF4) return 0;
    return first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

/* Length of the character at s, of which n > 0 bytes are in bounds, and its code point; 0 if it is
   not valid. */
static inline size_t utf8_decode(const unsigned char *s, size_t n, uint32_t *code) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = utf8_length(s[0]);
    if (length == 0 || n < length) return 0;
    if (length == 1) {
        *code = s[0];
        return 1;
    }
    uint32_t c = s[0] & (0xFFu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3Fu);
    }
    if (c < least[length] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 0;
    *code = c;
    return length;
}

/* 1 if the n > 0 bytes at s, which are not a whole character, may be the beginning of one. */
static inline int utf8_begins(const unsigned char *s, size_t n) {
    size_t length = utf8_length(s[0]);
    if (length < 2 || n >= length) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    return 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* writing */

/* s in double quotes. A byte b that is not UTF-8, which a file name may hold, becomes the lone
   surrogate U+DC00 + b if `lossless` (Python's os.fsencode gives the byte back), else U+FFFD, which
   every reader accepts. */
static inline void json_text(FILE *f, const char *s, int lossless) {
    fputc('"', f);
    while (*s) {
        unsigned char c = (unsigned char)*s;
        uint32_t code;
        size_t length = utf8_decode((const unsigned char *)s, strnlen(s, 4), &code);
        if (c == '"' || c == '\\') fprintf(f, "\\%c", c);
        else if (c == '\n') fputs("\\n", f);
        else if (c == '\r') fputs("\\r", f);
        else if (c == '\t') fputs("\\t", f);
        else if (c < 0x20 || c == 0x7F) fprintf(f, "\\u%04x", c);
        else if (length) fwrite(s, 1, length, f);
        else if (lossless) fprintf(f, "\\udc%02x", c);
        else fputs("\\ufffd", f);
        s += length ? length : 1;
    }
    fputc('"', f);
}

static inline void json_string(FILE *f, const char *s) { json_text(f, s, 0); }

/* The shortest of %.15g, %.16g and %.17g that strtod reads back as an equal double. */
static inline void json_double_text(char *text, double value) {
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, JSON_NUMBER_SIZE, "%.*g", digits, value);
        if (strtod(text, NULL) == value) return;
    }
}

/* A number, or null for NaN and the infinities, which JSON does not have. */
static inline void json_double(FILE *f, double value) {
    char text[JSON_NUMBER_SIZE];
    json_double_text(text, value);
    fputs(isfinite(value) ? text : "null", f);
}

/* A number that was computed in single precision, or null: 9 digits name every float. */
static inline void json_float(FILE *f, double value) {
    if (isfinite(value)) fprintf(f, "%.9g", value);
    else fputs("null", f);
}

/* ---------------------------------------------------------------------------------------------- */
/* reading */

/* Text being read. data[size] is a zero byte, so that one byte past the end may be looked at. */
typedef struct {
    unsigned char *data;
    size_t size, at;
} JsonReader;

static inline void json_skip_space(JsonReader *r) {
    while (r->at < r->size && strchr(" \t\r\n", r->data[r->at]) && r->data[r->at]) r->at++;
}

/* Passes over white space and the character c; returns 0 if another one is there. */
static inline int json_expect(JsonReader *r, char c) {
    json_skip_space(r);
    if (r->at >= r->size || r->data[r->at] != (unsigned char)c) return 0;
    r->at++;
    return 1;
}

/* One character inside a string; -1 if it is malformed. */
static inline int64_t json_char(JsonReader *r) {
    uint32_t code = 0;
    if (r->data[r->at] != '\\') {
        size_t k = utf8_decode(r->data + r->at, r->size - r->at, &code);
        r->at += k;
        return k ? (int64_t)code : -1;
    }
    char c = (char)r->data[r->at + 1]; /* at the end of the text, the zero byte */
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *known = c ? strchr(from, c) : NULL;
    if (known) {
        r->at += 2;
        return to[known - from];
    }
    if (c != 'u') return -1;
    for (size_t i = 0; i < 4; i++) {
        unsigned char h = r->data[r->at + 2 + i];
        unsigned char low = h | 32;
        if (h >= '0' && h <= '9') code = code * 16 + h - '0';
        else if (low >= 'a' && low <= 'f') code = code * 16 + low - 'a' + 10;
        else return -1; /* for the zero byte at the end of the text too */
    }
    r->at += 6;
    return code;
}

/* Writes a code point as UTF-8, or the byte of a lone surrogate that json_text wrote for it.
   Returns the number of bytes, at most 4; 0 for any other surrogate. */
static inline size_t json_encode(uint32_t code, char *to) {
    if (code >= 0xDC80 && code <= 0xDCFF) {
        to[0] = (char)(code - 0xDC00);
        return 1;
    }
    if (code < 0x80) {
        to[0] = (char)code;
        return 1;
    }
    if (code >= 0xD800 && code < 0xE000) return 0;
    size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char first[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = length - 1; i > 0; i--, code >>= 6) to[i] = (char)(0x80 | (code & 0x3F));
    to[0] = (char)(first[length] | code);
    return length;
}

/* Reads a string to `text`, zero-terminated. Returns -1 if there is none, if it is malformed or has
   a zero byte, or if it does not fit. */
static inline int json_read_string(JsonReader *r, char *text, size_t size) {
    size_t used = 0;
    if (!json_expect(r, '"')) return -1;
    while (r->at < r->size && r->data[r->at] != '"') {
        int64_t code = json_char(r);
        if (code >= 0xD800 && code < 0xDC00 && r->at < r->size) { /* a pair of surrogates */
            int64_t low = json_char(r);
            if (low < 0xDC00 || low >= 0xE000) return -1;
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        char bytes[4];
        size_t n = code > 0 ? json_encode((uint32_t)code, bytes) : 0;
        if (!n || used + n >= size) return -1;
        memcpy(text + used, bytes, n);
        used += n;
    }
    text[used] = 0;
    return json_expect(r, '"') ? 0 : -1;
}

/* Passes over a string without reading it. */
static inline int json_skip_string(JsonReader *r) {
    if (!json_expect(r, '"')) return -1;
    for (; r->at < r->size; r->at++) {
        if (r->data[r->at] == '"') {
            r->at++;
            return 0;
        }
        if (r->data[r->at] == '\\' && r->at + 1 < r->size) r->at++;
    }
    return -1;
}

/* Bytes of the number or of the word true, false or null at r->at. */
static inline size_t json_word_length(const JsonReader *r) {
    size_t n = 0;
    for (; r->at + n < r->size; n++) {
        unsigned char c = r->data[r->at + n], low = c | 32;
        if (!(c >= '0' && c <= '9') && !(low >= 'a' && low <= 'z') && c != '+' && c != '-' &&
            c != '.')
            break;
    }
    return n;
}

/* Reads a string, a number, true, false or null as text. Returns -1 if something else is there, or
   if it does not fit. */
static inline int json_read_scalar(JsonReader *r, char *text, size_t size) {
    json_skip_space(r);
    if (r->at < r->size && r->data[r->at] == '"') return json_read_string(r, text, size);
    size_t n = json_word_length(r);
    if (!n || n >= size) return -1;
    memcpy(text, r->data + r->at, n);
    text[n] = 0;
    r->at += n;
    return 0;
}

/* Passes over any value. Returns -1 if the text ends within it or if it is malformed; of nested
   values only strings and the number of brackets are checked. */
static inline int json_skip_value(JsonReader *r) {
    int depth = 0;
    do {
        json_skip_space(r);
        if (r->at >= r->size) return -1;
        unsigned char c = r->data[r->at];
        if (c == '"') {
            if (json_skip_string(r)) return -1;
        } else if (c == '{' || c == '[') {
            depth++;
            r->at++;
        } else if (depth && strchr("}],:", c) && c) {
            depth -= c == '}' || c == ']';
            r->at++;
        } else {
            size_t n = json_word_length(r);
            if (!n) return -1;
            r->at += n;
        }
    } while (depth > 0);
    return 0;
}

#endif
