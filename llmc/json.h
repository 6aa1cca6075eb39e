/*
Writing JSON: strings and numbers that any reader accepts.

Used for the echo of the flags, run.json and the lines of log.jsonl. There is no reader here; the
one program that reads JSON back (log.h) reads only lines it wrote itself.
*/
#ifndef CM_JSON_H
#define CM_JSON_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for any number json_double_text prints. */
#define JSON_NUMBER_SIZE 40

/* Length of the valid UTF-8 sequence at s (RFC 3629: no overlong forms, no surrogates, nothing
   above U+10FFFF), or 0. Reads no further than the terminating zero. */
static inline int json_utf8_length(const char *s) {
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) return u[0] != 0;
    if (u[0] < 0xC2 || u[0] > 0xF4) return 0;
    int length = u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    unsigned lo = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80;
    unsigned hi = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
    if (u[1] < lo || u[1] > hi) return 0;
    for (int i = 2; i < length; i++)
        if ((u[i] & 0xC0) != 0x80) return 0;
    return length;
}

/* s in double quotes. Bytes that are not UTF-8 (a file name may hold any) become U+FFFD, because a
   reader would otherwise refuse the whole file. */
static inline void json_string(FILE *f, const char *s) {
    fputc('"', f);
    while (*s) {
        unsigned char c = (unsigned char)*s;
        int length = json_utf8_length(s);
        if (c == '"' || c == '\\') fprintf(f, "\\%c", c);
        else if (c == '\n') fputs("\\n", f);
        else if (c == '\r') fputs("\\r", f);
        else if (c == '\t') fputs("\\t", f);
        else if (c < 0x20 || c == 0x7F) fprintf(f, "\\u%04x", c);
        else if (length) fwrite(s, 1, (size_t)length, f);
        else fputs("\\ufffd", f);
        s += length ? length : 1;
    }
    fputc('"', f);
}

/* The shortest of %.15g, %.16g and %.17g that strtod reads back as the same double. */
static inline void json_double_text(char *text, double value) {
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, JSON_NUMBER_SIZE, "%.*g", digits, value);
        if (strtod(text, NULL) == value) return;
    }
}

/* A number, or null for NaN and the infinities, which JSON cannot say. */
static inline void json_double(FILE *f, double value) {
    char text[JSON_NUMBER_SIZE];
    json_double_text(text, value);
    fputs(isfinite(value) ? text : "null", f);
}

/* The same for values computed in single precision: 9 digits name every float. */
static inline void json_float(FILE *f, double value) {
    if (isfinite(value)) fprintf(f, "%.9g", value);
    else fputs("null", f);
}

#endif
