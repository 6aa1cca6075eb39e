/*
Writes the files that llm.c's CPU trainer reads: a GPT-2 124M of random weights (gpt2_124M.bin) and
a shard of random tokens for training and validation. They replace downloads, because the time of a
step does not depend on the values. usage: llmc_files FOLDER
*/
#include "llmc/base.h"
#include "llmc/files.h"
#include "llmc/rng.h"

static void put(FILE *f, const void *data, size_t size, size_t n) {
    if (fwrite(data, size, n, f) != n) die("cannot write: %s", strerror(errno));
}

static FILE *create(const char *folder, const char *name, const int *header) {
    char path[FILE_PATH_SIZE];
    int32_t words[256];
    for (int i = 0; i < 256; i++) words[i] = i < 8 ? header[i] : 0;
    file_path(path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f) die("cannot create %s: %s", path, strerror(errno));
    put(f, words, sizeof words[0], 256);
    return f;
}

int main(int argc, char **argv) {
    enum { T = 1024, V = 50257, Vp = 50304, L = 12, NH = 12, C = 768, TOKENS = 40000 };
    if (argc != 2) die("usage: llmc_files FOLDER");
    const int model[8] = {20240326, 3, T, V, L, NH, C, Vp};
    const int shard[8] = {20240520, 1, TOKENS, 0, 0, 0, 0, 0};
    const int vectors = 2 * C + 3 * C + C + 2 * C + 4 * C + C;
    const size_t matrices = (size_t)Vp * C + (size_t)T * C + (size_t)L * 12 * C * C;
    const size_t count = matrices + (size_t)L * vectors + 2 * C;
    float *row = (float *)malloc(C * sizeof(float));
    FILE *f = create(argv[1], "gpt2_124M.bin", model);
    for (size_t i = 0; i < count; i += C) {
        for (int j = 0; j < C; j++) row[j] = (float)(0.02 * rng_normal(1, 0, i + (size_t)j));
        put(f, row, sizeof(float), C);
    }
    if (fclose(f)) die("cannot write gpt2_124M.bin: %s", strerror(errno));
    free(row);
    const char *const names[2] = {"train.bin", "val.bin"};
    for (int k = 0; k < 2; k++) {
        f = create(argv[1], names[k], shard);
        for (int i = 0; i < TOKENS; i++) {
            uint16_t token = (uint16_t)(rng_bits(1, (uint64_t)k, (uint64_t)i) % V);
            put(f, &token, sizeof token, 1);
        }
        if (fclose(f)) die("cannot write %s: %s", names[k], strerror(errno));
    }
    return 0;
}
