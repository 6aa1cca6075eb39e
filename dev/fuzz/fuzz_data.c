/*
Token shards and texts. The input is 24 bytes of settings and the contents of up to three files with
lines "%%" between them. Rows are drawn in both orders from a fuzzed place, then validation data.

    byte 0      bit 0: shuffled; bits 1, 2: names end in .bin, .txt or neither; bit 3: each file
                gets a right header; bits 4, 5: the part in use; bit 6: validation only; bit 7: a
                right header's next three numbers, which name a tokenizer, are the file's first
    byte 1      T - 1;  byte 2: rows of a step;  byte 3: rows of a micro-batch
    4 to 7      size of the vocabulary, 0: as the kind of file has it
    8 to 23     shard (1 byte), position (4), seed (4), epoch (4), limit of validation (3)
*/
#include "llmc/data.h"

#include "fuzz.h"

enum { FILES = 3, TOKENS = 256 * 64 };

static char err[ERR_LEN], pattern[FILE_PATH_SIZE];
static int x[TOKENS], y[TOKENS], x_again[TOKENS], y_again[TOKENS];

static void fuzz_begin(void) {
    require(file_make_folders(in_folder("data"), err) == 0, "%s", err);
    file_path(pattern, "%s/data/*", scratch_folder);
}

/* Writes file i and returns 1, or returns 0 where the input has none. A fixed header tells the
   number of tokens that the file has, and with `tagged` a tokenizer. */
static int write_file(Input *in, int i, const char *suffix, int fixed, int tagged) {
    char name[64];
    if (!in->n) return 0;
    Input part = input_part(in);
    uint32_t header[7] = {DATA_MAGIC, DATA_VERSION, 0, DATA_TOKENIZER_TAG, 0, 0, 0};
    for (int k = 4; k < 7 && fixed && tagged; k++) header[k] = (uint32_t)input_number(&part, 4);
    size_t n = part.n / 2, size = tagged ? sizeof header : 12;
    header[2] = (uint32_t)n;
    snprintf(name, sizeof name, "data/%d%s", i, suffix);
    if (!fixed) {
        write_bytes(name, part.p, part.n);
        return 1;
    }
    unsigned char *image = (unsigned char *)calloc(DATA_HEADER_BYTES + 2 * n, 1);
    if (!image) abort();
    memcpy(image, header, size);
    memcpy(image + DATA_HEADER_BYTES, part.p, 2 * n);
    write_bytes(name, image, DATA_HEADER_BYTES + 2 * n);
    free(image);
    return 1;
}

/* Draws a step into x and y in micro-batches; returns 0 if the data has a token outside the
   vocabulary. The target of each token is the next token of the row. */
static int draw_step(Data *d, int micro_batch, int *tokens, int *targets) {
    int T = d->T;
    for (int row = 0; row < d->rows_per_step;) {
        int rows = min_int(micro_batch, d->rows_per_step - row);
        size_t at = (size_t)row * (size_t)T;
        if (data_next(d, rows, tokens + at, targets + at, err)) {
            require(strstr(err, "vocabulary"), "%s", err);
            return 0;
        }
        row += rows;
    }
    for (int i = 0; i < d->rows_per_step * T; i++) {
        require(tokens[i] >= 0 && tokens[i] < d->vocab, "token %d", tokens[i]);
        if (i % T < T - 1) require(targets[i] == tokens[i + 1], "target %d", i);
    }
    return 1;
}

/* Draws three steps, goes back to where they began, and draws them again in one batch each. */
static void check_training(Data *d, DataState place, int micro_batch) {
    require(data_next(d, d->rows_per_step + 1, x, y, err) == -1, "more rows than a step has");
    if (data_seek(d, place, err)) return;
    for (int step = 0; step < 3; step++) {
        DataState begin = data_state(d), end;
        if (!draw_step(d, micro_batch, x, y)) return;
        end = data_state(d);
        require(data_seek(d, begin, err) == 0, "%s", err);
        require(draw_step(d, d->rows_per_step, x_again, y_again), "%s", err);
        size_t bytes = (size_t)d->rows_per_step * (size_t)d->T * sizeof(int);
        require(!memcmp(x, x_again, bytes) && !memcmp(y, y_again, bytes), "step %d", step);
        DataState again = data_state(d);
        require(!memcmp(&end, &again, sizeof end), "step %d ends elsewhere", step);
    }
}

/* Every target of the limit is in one row of the validation data. */
static void check_validation(Data *d, size_t limit) {
    size_t rows = data_val_rows(d, limit), count = 0, all = 0;
    for (size_t i = 0; i < d->num_files; i++) all += d->files[i].count ? d->files[i].count - 1 : 0;
    for (size_t row = 0; row <= rows; row += 3) {
        if (data_val_batch(d, row, 3, limit, x, y, err)) {
            require(strstr(err, "vocabulary"), "%s", err);
            return;
        }
        for (int i = 0; i < 3 * d->T; i++) count += y[i] >= 0;
    }
    require(count == (limit ? min_size(limit, all) : all), "%zu of %zu targets", count, all);
}

static void fuzz_one(Input in) {
    static const char *const suffixes[] = {".bin", ".txt", "", ".bin"};
    Data d;
    int bits = (int)input_number(&in, 1), T = 1 + (int)input_number(&in, 1);
    int rows = (int)input_number(&in, 1) % 64, micro_batch = 1 + (int)input_number(&in, 1);
    int vocab = (int)(input_number(&in, 4) & INT32_MAX);
    DataState place;
    place.shard = input_number(&in, 1);
    place.position = input_number(&in, 4);
    place.seed = input_number(&in, 4);
    place.epoch = input_number(&in, 4);
    size_t limit = (size_t)input_number(&in, 3);
    if (place.position >> 31) place.position |= (uint64_t)-1 << 31;
    if (bits & 64) rows = 0;
    remove_tree(in_folder("data"));
    require(file_make_folders("data", err) == 0, "%s", err);
    for (int i = 0; i < FILES; i++)
        if (!write_file(&in, i, suffixes[bits >> 1 & 3], bits >> 3 & 1, bits >> 7 & 1)) break;
    if (data_open(&d, pattern, (bits >> 4 & 3) % 3, bits & 1, place.seed, T, rows, err)) {
        require(strstr(err, scratch_folder), "the message names no file: %s", err);
        return;
    }
    if (vocab) d.vocab = min_int(d.vocab, vocab);
    require(data_checksum(&d) == data_checksum(&d), "the fingerprint");
    if (rows) check_training(&d, place, micro_batch);
    else check_validation(&d, limit);
    data_close(&d);
}
