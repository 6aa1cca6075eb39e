/* JSON and UTF-8: the readers on any bytes, and what the writer writes read back. */
#include "llmc/json.h"

#include "fuzz.h"

static void fuzz_begin(void) {}

/* Reads any bytes as a string's characters and single tokens. Every step must stay in bounds and,
   unless it reports malformed text, move on. */
static void read_anything(Input in) {
    char *copy = input_copy(in);
    JsonReader r = {(unsigned char *)copy, in.n, 0};
    while (r.at < r.size) {
        size_t before = r.at;
        int64_t c = json_char(&r);
        require(r.at <= r.size, "json_char left the text");
        require(c < 0 || (r.at > before && c <= 0x10FFFF), "json_char made no step");
        for (const char *token = "{}[]:,\""; *token; token++) json_expect(&r, *token);
        require(r.at <= r.size, "json_expect left the text");
        if (r.at == before) r.at++;
    }
    free(copy);
}

/* Reads any bytes as values. What is passed over ends where it is read, if it can be read. */
static void read_values(Input in) {
    char text[64], *copy = input_copy(in);
    JsonReader r = {(unsigned char *)copy, in.n, 0};
    while (r.at < r.size) {
        JsonReader skipped = r, read = r;
        int passed = json_skip_value(&skipped) == 0;
        require(skipped.at <= r.size, "json_skip_value left the text");
        int known = json_read_scalar(&read, text, sizeof text) == 0;
        require(read.at <= r.size, "json_read_scalar left the text");
        if (known) {
            require(passed && read.at == skipped.at, "\"%s\" is not passed over", text);
            require(strlen(text) < sizeof text, "the text has no end");
        }
        r.at = passed ? skipped.at : r.at + 1;
    }
    free(copy);
}

/* Every text is read back from what the lossless writer makes of it, if it fits. */
static void write_lossless(Input in) {
    char back[256], *copy = input_copy(in), *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) abort();
    json_text(f, copy, 1);
    fclose(f);
    JsonReader r = {(unsigned char *)text, size, 0};
    int status = json_read_string(&r, back, sizeof back);
    require((status == 0) == (strlen(copy) < sizeof back), "%zu bytes: %d", strlen(copy), status);
    if (!status) require(!strcmp(back, copy) && r.at == r.size, "another text");
    free(text);
    free(copy);
}

/* The character at s, or U+FFFD and one byte where there is none. */
static uint32_t next_character(const char *s, size_t *length) {
    uint32_t code = 0xFFFD;
    *length = utf8_decode((const unsigned char *)s, strlen(s), &code);
    if (!*length) *length = 1;
    return code;
}

/* A string that json_string wrote has the characters of the text, and nothing behind it. */
static void write_and_read(Input in) {
    char *copy = input_copy(in), *text = NULL;
    size_t size = 0, length = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) abort();
    json_string(f, copy);
    fclose(f);
    JsonReader r = {(unsigned char *)text, size, 0};
    require(json_expect(&r, '"'), "the string does not begin");
    for (const char *s = copy; *s; s += length) {
        uint32_t expected = next_character(s, &length);
        int64_t code = json_char(&r);
        require(code == (int64_t)expected, "U+%04X became %lld", expected, (long long)code);
    }
    require(json_expect(&r, '"') && r.at == r.size, "the string does not end");
    free(text);
    free(copy);
}

/* The text of a number reads back as an equal number. */
static void write_number(Input in) {
    char text[JSON_NUMBER_SIZE];
    uint64_t bits = input_number(&in, 8);
    double value;
    memcpy(&value, &bits, sizeof value);
    json_double_text(text, value);
    if (isfinite(value)) require(strtod(text, NULL) == value, "%s is not %a", text, value);
}

static void fuzz_one(Input in) {
    read_anything(in);
    read_values(in);
    write_lossless(in);
    write_and_read(in);
    write_number(in);
}
