/*
Vocabulary files: encoder.json, a line "%%", vocab.bpe, a line "%%", and a text. An encoder.json
that begins with "+" stands for the 256 single bytes and, behind the "+", further members: most
mutations of a complete file only make it incomplete.
*/
#include "llmc/tokenizer.h"

#include "fuzz.h"

static char err[ERR_LEN], *single_bytes;
static size_t single_bytes_size;

/* Writes the character that stands for a byte in GPT-2's files, as UTF-8. */
static void put_byte(FILE *f, int byte) {
    for (uint32_t code = 0; code < 512; code++) {
        if (tokenizer_byte_of(code) != byte) continue;
        if (code == '"' || code == '\\') fprintf(f, "\\%c", (int)code);
        else if (code < 128) fputc((int)code, f);
        else fprintf(f, "%c%c", (int)(0xC0 | code >> 6), (int)(0x80 | (code & 63)));
    }
}

static void fuzz_begin(void) {
    FILE *f = open_memstream(&single_bytes, &single_bytes_size);
    if (!f) abort();
    for (int b = 0; b < 256; b++) {
        fputs(b ? ", \"" : "{\"", f);
        put_byte(f, b);
        fprintf(f, "\": %d", b);
    }
    fclose(f);
}

static void write_encoder(Input part) {
    if (!part.n || part.p[0] != '+') {
        write_bytes("encoder.json", part.p, part.n);
        return;
    }
    char *file = (char *)malloc(single_bytes_size + part.n);
    if (!file) abort();
    memcpy(file, single_bytes, single_bytes_size);
    memcpy(file + single_bytes_size, part.p + 1, part.n - 1);
    write_bytes("encoder.json", file, single_bytes_size + part.n - 1);
    free(file);
}

/* Tokens are those of the vocabulary, and decode to the text. Words that come from the cache, the
   second time, have equal tokens. */
static void check_text(Tokenizer *t, const char *text, size_t n, int special) {
    TokenList first = {NULL, 0, 0}, second = {NULL, 0, 0};
    require(tokenizer_encode(t, text, n, special, &first, err) == 0, "%s", err);
    require(tokenizer_encode(t, text, n, special, &second, err) == 0, "%s", err);
    require(first.count == second.count, "%zu, then %zu tokens", first.count, second.count);
    size_t at = 0;
    for (size_t i = 0; i < first.count; i++) {
        size_t length;
        const char *bytes = tokenizer_decode(t, first.ids[i], &length);
        require(first.ids[i] == second.ids[i], "token %zu differs the second time", i);
        require(bytes && length && length <= n - at, "token %zu: id %d", i, first.ids[i]);
        require(!memcmp(bytes, text + at, length), "token %zu decodes to other bytes", i);
        at += length;
    }
    require(at == n, "%zu of %zu bytes come back", at, n);
    free(first.ids);
    free(second.ids);
}

static void check_tokenizer(Tokenizer *t, Input in) {
    size_t length;
    char *text = input_copy(in);
    for (int special = 0; special < 2; special++) check_text(t, text, in.n, special);
    require(!tokenizer_decode(t, -1, &length) && !tokenizer_decode(t, t->vocab, &length),
            "an id outside the vocabulary");
    free(text);
    tokenizer_free(t);
}

static void fuzz_one(Input in) {
    Tokenizer t;
    Input encoder = input_part(&in), merges = input_part(&in);
    write_encoder(encoder);
    write_bytes("vocab.bpe", merges.p, merges.n);
    if (!tokenizer_load(&t, in_folder("encoder.json"), in_folder("vocab.bpe"), err))
        check_tokenizer(&t, in);
    else require(strstr(err, scratch_folder), "the message names no file: %s", err);
    require(tokenizer_bytes(&t, err) == 0, "%s", err);
    check_tokenizer(&t, in);
}
