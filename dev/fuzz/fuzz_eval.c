/*
A file of examples of multiple choice. The input is two bytes of settings and the file. Whatever is
accepted has rows that hold to their promises, and a file that is written into afterwards gives an
error or rows that do.

    byte 0      T - 1
    byte 1      size of the vocabulary - 1, times 16; bit 7: the rest gets a right header
*/
#include "llmc/eval.h"

#include "fuzz.h"

enum { ROWS = 3 };

static char err[ERR_LEN];
static int x[ROWS * 256], y[ROWS * 256];
static floatM losses[ROWS * 256];

static void fuzz_begin(void) {}

/* Writes the file. A right header tells as many examples as there are words 65535, and a tokenizer
   if there are more than two. */
static void write_file(Input in, int fixed) {
    uint32_t header[8] = {EVAL_MAGIC, EVAL_VERSION, 0, 65534, EVAL_TOKENIZER_TAG, 2, 1, 0};
    if (!fixed) {
        write_bytes("file.bin", in.p, in.n);
        return;
    }
    unsigned char *image = (unsigned char *)calloc(EVAL_HEADER_BYTES + in.n, 1);
    if (!image) abort();
    for (size_t i = 0; i + 1 < in.n; i += 2) header[2] += in.p[i] == 255 && in.p[i + 1] == 255;
    memcpy(image, header, header[2] > 2 ? sizeof header : 16);
    if (in.n) memcpy(image + EVAL_HEADER_BYTES, in.p, in.n);
    write_bytes("file.bin", image, EVAL_HEADER_BYTES + in.n);
    free(image);
}

/* Inputs and targets are tokens of the vocabulary, and a target is the next input where there is
   one. Each row has as many targets as the completion has tokens. */
static void check_rows(const Eval *e, size_t first, int rows) {
    for (int r = 0; r < rows; r++) {
        const int *in = x + r * e->T, *target = y + r * e->T;
        int targets = 0;
        for (int t = 0; t < e->T; t++) {
            require(in[t] >= 0 && in[t] < e->vocab, "token %d", in[t]);
            require(target[t] >= -1 && target[t] < e->vocab, "target %d", target[t]);
            targets += target[t] >= 0;
            if (target[t] >= 0 && t + 1 < e->T && target[t + 1] >= 0)
                require(in[t + 1] == target[t], "row %zu, target %d", first + (size_t)r, t);
        }
        require(targets >= 1, "row %zu has no target", first + (size_t)r);
    }
}

static int read_rows(Eval *e) {
    for (size_t row = 0; row < e->rows; row += ROWS) {
        int rows = (int)min_size(ROWS, e->rows - row);
        if (eval_batch(e, row, rows, x, y, err)) return -1;
        check_rows(e, row, rows);
        for (int i = 0; i < rows * e->T; i++) losses[i] = (floatM)(i % 7);
        eval_take(e, row, rows, losses, y);
    }
    return 0;
}

static void fuzz_one(Input in) {
    Eval e;
    int T = 1 + (int)input_number(&in, 1), bits = (int)input_number(&in, 1);
    write_file(in, bits >> 7);
    if (eval_open(&e, in_folder("file.bin"), T, 16 * (1 + (bits & 127)), err)) {
        require(strstr(err, "file.bin"), "the message names no file: %s", err);
        return;
    }
    require(e.count > 0 && e.rows >= 2 * e.count && e.cut <= e.rows, "%zu rows", e.rows);
    require(read_rows(&e) == 0, "%s", err);
    for (size_t i = 0; i < e.count; i++)
        for (int mean = 0; mean < 2; mean++) {
            int choice = eval_choice(&e, i, mean);
            require(choice >= 0 && choice < e.item[i].completions, "choice %d", choice);
        }
    require(eval_accuracy(&e, 0) <= 1 && eval_chance(&e) <= 0.5, "chance %g", eval_chance(&e));
    /* Somebody writes into the file: one word of each example becomes another. */
    int fd = open("file.bin", O_WRONLY);
    for (size_t i = 0; i < e.count; i++) {
        uint16_t word = (uint16_t)(i * 40503 + e.item[i].words);
        size_t at = e.item[i].at + 2 * (i * 7 % e.item[i].words);
        require(pwrite(fd, &word, 2, (off_t)at) == 2, "pwrite");
    }
    close(fd);
    if (read_rows(&e)) require(strstr(err, "file.bin"), "the message names no file: %s", err);
    eval_close(&e);
}
