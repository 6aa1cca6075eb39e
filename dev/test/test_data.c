/* Tests of llmc/data.h: formats, orders, resuming, validation, and messages about bad files. */
#include "llmc/data.h"

#include <signal.h>
#include <sys/resource.h>

#include "dev/test/folder.h"

static char err[ERR_LEN];

/* Writes a shard of the n tokens first, first + 1, ... */
static void write_counting(const char *name, int first, size_t n) {
    uint16_t *tokens = (uint16_t *)malloc((n + 1) * sizeof(uint16_t));
    for (size_t i = 0; i < n; i++) tokens[i] = (uint16_t)(first + (int)i);
    if (data_write_shard(in_folder(name), tokens, n, err)) {
        puts(err);
        exit(1);
    }
    free(tokens);
}

static void open_or_exit(Data *d, const char *name, int part, int order, uint64_t seed, int T,
                         int rows) {
    if (data_open(d, in_folder(name), part, order, seed, T, rows, err)) {
        puts(err);
        exit(1);
    }
}

/* Opening must fail with a message that names the file or pattern and contains `word`. */
static void check_refused(const char *name, int part, int order, int T, int rows,
                          const char *word) {
    Data d;
    err[0] = 0;
    int status = data_open(&d, in_folder(name), part, order, 0, T, rows, err);
    check(status == -1 && strstr(err, name) && strstr(err, word) && d.files == NULL,
          "opening %s should fail with \"%s\", got %d: %s", name, word, status, err);
}

static void test_refusals(void) {
    unsigned char h[DATA_HEADER_BYTES + 20];
    write_counting("good.bin", 0, 10);
    FILE *f = fopen(in_folder("good.bin"), "rb");
    check(f && fread(h, 1, sizeof h, f) == sizeof h && fgetc(f) == EOF, "a shard of 10 tokens");
    if (f) fclose(f);
    check(h[0] == 0x88 && h[1] == 0xd8 && h[2] == 0x34 && h[3] == 1 && h[4] == 1 && h[8] == 10 &&
              h[1024 + 4] == 2 && h[1024 + 5] == 0,
          "header and tokens are little-endian");

    check_refused("missing.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "does not exist");
    check_refused("missing_*.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "no data file matches");
    check_refused("", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "not a file");
    write_bytes("empty.bin", h, 0);
    check_refused("empty.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "empty");
    write_bytes("short.bin", h, 1000);
    check_refused("short.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "too short");
    write_bytes("cut.bin", h, sizeof h - 1);
    check_refused("cut.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "truncated");
    h[8] = 9;
    write_bytes("long.bin", h, sizeof h);
    check_refused("long.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "damaged");
    h[8] = 10;
    h[11] = 0x80; /* the header promises more than 2^31 tokens */
    write_bytes("huge.bin", h, sizeof h);
    check_refused("huge.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "truncated");
    h[11] = 0;
    h[4] = 7;
    write_bytes("version.bin", h, sizeof h);
    check_refused("version.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "version 7");

    static const struct {
        unsigned char magic[4];
        const char *word;
    } others[] = {
        {{0x01, 0x34, 0xd8, 0x88}, "big-endian"},
        {{0xa1, 0xd9, 0x34, 0x01}, "20240801"},
        {{0x8a, 0xd8, 0x34, 0x01}, "evaluation"},
        {{0xc6, 0xd7, 0x34, 0x01}, "model"},
        {{'<', '!', 'D', 'O'}, "error page"},
        {{'O', 'n', 'c', 'e'}, "looks like text"},
        {{0x50, 0xc4, 0x00, 0x00}, "not a token shard"},
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        memcpy(h, others[i].magic, 4);
        write_bytes("other.bin", h, sizeof h);
        check_refused("other.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, others[i].word);
    }
    /* A step of 2 rows of 4 tokens needs 2 * 4 + 1 < 10 tokens, by the benchmark's rule. */
    Data d;
    open_or_exit(&d, "good.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 2);
    data_close(&d);
    check_refused("good.bin", DATA_ALL, DATA_SEQUENTIAL, 3, 3, "needs 11");
    check_refused("good.bin", DATA_ALL, DATA_SHUFFLED, 10, 1, "one row needs 10 + 1");
    check_refused("good.bin", DATA_VAL, DATA_SEQUENTIAL, 4, 0, "never split");
    open_or_exit(&d, "good.bin", DATA_ALL, DATA_SHUFFLED, 0, 9, 5);
    data_close(&d);
    write_bytes("tiny.txt", "0123456789", 10);
    check_refused("tiny.txt", DATA_VAL, DATA_SEQUENTIAL, 4, 0, "at least 2");
    write_counting("mixed_a.bin", 0, 100);
    write_bytes("mixed_b.txt", "hello world", 11);
    check(data_open(&d, in_folder("mixed_?.*"), DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1, err) == -1 &&
              strstr(err, "mixed_b.txt is text"),
          "shards and text together: %s", err);
    check(data_open(&d, in_folder("good.bin"), DATA_ALL, DATA_SEQUENTIAL, 0, 0, 1, err) == -1,
          "rows of no tokens");
}

static void test_kinds(void) {
    Data d;
    char text[1000];
    memset(text, 'x', sizeof text);
    write_bytes("plain.md", text, sizeof text);
    open_or_exit(&d, "plain.md", DATA_ALL, DATA_SEQUENTIAL, 0, 10, 1);
    check(data_is_text(&d) && d.vocab == 256 && data_tokens(&d) == 1000,
          "any file without the magic is text");
    data_close(&d);
    write_counting("shard", 7, 100);
    open_or_exit(&d, "shard", DATA_TRAIN, DATA_SEQUENTIAL, 0, 10, 1);
    check(!data_is_text(&d) && data_tokens(&d) == 100,
          "a file with the magic is a shard under any name, and DATA_TRAIN takes it whole");
    data_close(&d);
    write_counting("magic.txt", 0, 100);
    open_or_exit(&d, "magic.txt", DATA_ALL, DATA_SEQUENTIAL, 0, 10, 1);
    check(data_is_text(&d) && data_tokens(&d) == 1224, "but .txt is text, whatever it holds");
    data_close(&d);
    write_counting("odd[1]*.bin", 0, 100); /* a name that is also a pattern */
    open_or_exit(&d, "odd[1]*.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 10, 1);
    data_close(&d);
}

/* DATA_SEQUENTIAL with micro-batches of several sizes against the rule of the benchmark's
   loader. */
static void test_sequential(void) {
    enum { T = 4, ROWS = 6, B = T * ROWS, STEPS = 60 };
    static const size_t lengths[] = {100, B + 1, 3 * B + 1, 3 * B + 2, 9};
    static const int firsts[] = {0, 1000, 2000, 3000, 4000};
    static const char *names[] = {"s_1.bin", "s_2.bin", "s_3.bin", "s_4.bin", "s_5.bin"};
    for (int i = 0; i < 5; i++) write_counting(names[i], firsts[i], lengths[i]);
    static const int micro[] = {6, 3, 2, 1};
    for (int m = 0; m < 4; m++) {
        Data d;
        open_or_exit(&d, "s_?.bin", DATA_ALL, DATA_SEQUENTIAL, (uint64_t)m, T, ROWS);
        size_t shard = 0, p = 0, epoch = 0;
        int bad = 0, x[B], y[B];
        for (int step = 0; step < STEPS; step++) {
            for (int r = 0; r < ROWS; r += micro[m])
                bad += data_next(&d, micro[m], x + r * T, y + r * T, err) != 0;
            while (p + B + 1 >= lengths[shard]) {
                p = 0;
                epoch += shard == 4;
                shard = (shard + 1) % 5;
            }
            for (int i = 0; i < B; i++) {
                int token = firsts[shard] + (int)p + i;
                bad += x[i] != token || y[i] != token + 1;
            }
            p += B;
            DataState s = data_state(&d);
            bad += s.epoch != epoch || s.shard != shard || s.position != p;
        }
        check(!bad && epoch > 3, "sequential in micro-batches of %d: %d wrong", micro[m], bad);
        data_close(&d);
    }
    Data d;
    int x[B], y[B];
    open_or_exit(&d, "s_?.bin", DATA_ALL, DATA_SEQUENTIAL, 0, T, ROWS);
    check(data_next(&d, 4, x, y, err) == 0 && data_next(&d, 4, x, y, err) == -1 &&
              strstr(err, "does not fit"),
          "a micro-batch across two steps: %s", err);
    data_close(&d);
}

static void test_permutation(void) {
    int bad = 0, moved = 0;
    for (uint64_t n = 1; n <= 300; n++) {
        unsigned char seen[300] = {0};
        for (uint64_t i = 0; i < n; i++) {
            uint64_t j = data_permute(12345 + n, n, i);
            bad += j >= n || seen[j]++;
            moved += j != i;
        }
    }
    check(!bad && moved > 300 * 301 / 2 * 9 / 10, "not a permutation: %d, moved %d", bad, moved);
    /* The image of 0 under 60,000 keys is uniform. Chi-square with 5 degrees of freedom exceeds
       20.5 with a probability of 0.1 %. */
    int count[6] = {0};
    for (uint64_t key = 0; key < 60000; key++) count[data_permute(rng_mix(key), 6, 0)]++;
    double chi2 = 0;
    for (int i = 0; i < 6; i++) chi2 += (count[i] - 1e4) * (count[i] - 1e4) / 1e4;
    check(chi2 < 20.5, "image of 0 among 6 is not uniform: chi2 = %g", chi2);
}

/* The shards r_1.bin to r_4.bin of the tests of DATA_SHUFFLED, for rows of 8 tokens. The tokens of
   shard i count from 2000 i, so a token tells its shard and its position. */
enum { LENGTHS = 4 };
static const size_t lengths[LENGTHS] = {1000, 8 + 1, 333, 8};
static void write_rows(void) {
    static const char *names[LENGTHS] = {"r_1.bin", "r_2.bin", "r_3.bin", "r_4.bin"};
    for (int i = 0; i < LENGTHS; i++) write_counting(names[i], 2000 * i, lengths[i]);
}

/* Draws the rows of six epochs. Each row must have its place in the epoch's pattern, once. */
static void test_shuffled(void) {
    enum { T = 8, ROWS = 5 };
    write_rows();
    Data d;
    int x[ROWS * T], y[ROWS * T], bad = 0, used = ROWS;
    unsigned char seen[2000 * LENGTHS];
    int first_of_epoch[6] = {0}, offset_of_epoch[6] = {0};
    open_or_exit(&d, "r_?.bin", DATA_ALL, DATA_SHUFFLED, 3, T, ROWS);
    for (uint64_t epoch = 0; epoch < 6; epoch++) {
        memset(seen, 0, sizeof seen);
        size_t rows = 0, file_rows[LENGTHS] = {0};
        DataState s = {3, epoch, 0, 0};
        for (size_t k = 0; k < LENGTHS; k++) rows += file_rows[k] = data_rows(&d, s, k);
        check(file_rows[0] >= 123 && file_rows[1] == 1 && file_rows[2] >= 40 && file_rows[3] == 0,
              "rows of the files: %zu %zu %zu %zu", file_rows[0], file_rows[1], file_rows[2],
              file_rows[3]);
        for (size_t i = 0; i < rows; i++) {
            if (used == ROWS) { /* steps continue over the ends of shards and epochs */
                if (data_next(&d, ROWS, x, y, err)) bad++;
                used = 0;
            }
            const int *row = x + used * T, *target = y + used++ * T;
            size_t file = (size_t)row[0] / 2000;
            int at = row[0] % 2000, offset = (int)data_offset(&d, s, file);
            for (int t = 0; t < T; t++) bad += row[t] != row[0] + t || target[t] != row[t] + 1;
            bad += (at - offset) % T != 0 || seen[row[0]]++ || (size_t)(at + T) >= lengths[file];
            if (i == 0) first_of_epoch[epoch] = row[0];
        }
        offset_of_epoch[epoch] = (int)data_offset(&d, s, 0);
    }
    check(!bad, "shuffled: %d rows or tokens wrong", bad);
    int same_first = 0, same_offset = 0;
    for (int e = 1; e < 6; e++) {
        same_first += first_of_epoch[e] == first_of_epoch[0];
        same_offset += offset_of_epoch[e] == offset_of_epoch[0];
    }
    check(same_first < 3 && same_offset < 5, "epochs repeat each other");
    data_close(&d);
}

/* A seed gives the same rows for every size of micro-batches, and another seed gives other rows. */
static void test_determinism(void) {
    enum { T = 8, ROWS = 6, STEPS = 50, N = STEPS * ROWS * T };
    static int x[4][N], y[4][N];
    write_rows();
    for (int run = 0; run < 4; run++) {
        Data d;
        open_or_exit(&d, "r_?.bin", DATA_ALL, DATA_SHUFFLED, run == 3 ? 8 : 7, T, ROWS);
        int rows = run == 1 ? 2 : run == 2 ? 1 : ROWS;
        for (int r = 0; r < STEPS * ROWS; r += rows)
            if (data_next(&d, rows, x[run] + r * T, y[run] + r * T, err)) puts(err);
        data_close(&d);
    }
    check(!memcmp(x[0], x[1], sizeof x[0]) && !memcmp(x[0], x[2], sizeof x[0]) &&
              !memcmp(y[0], y[1], sizeof y[0]),
          "micro-batches change the data");
    int shared = 0;
    for (int r = 0; r < STEPS * ROWS; r++) shared += x[0][r * T] == x[3][r * T];
    check(shared < STEPS * ROWS / 10, "seeds 7 and 8 share %d rows", shared);
}

static void test_resume(void) {
    enum { T = 8, ROWS = 4, STEPS = 120, B = ROWS * T };
    write_rows();
    for (int order = DATA_SEQUENTIAL; order <= DATA_SHUFFLED; order++) {
        static int x[STEPS][B], y[STEPS][B];
        DataState states[STEPS];
        Data d, e;
        int bad = 0, xx[B], yy[B];
        open_or_exit(&d, "r_?.bin", DATA_ALL, order, 11, T, ROWS);
        for (int i = 0; i < STEPS; i++) {
            states[i] = data_state(&d);
            bad += data_next(&d, ROWS, x[i], y[i], err);
        }
        open_or_exit(&e, "r_?.bin", DATA_ALL, order, 99, T, ROWS); /* the state has the seed */
        for (int i = 0; i < STEPS; i += 7) {
            bad += data_seek(&e, states[i], err);
            for (int k = i; k < STEPS && k < i + 45; k++) {
                bad += data_next(&e, ROWS, xx, yy, err);
                bad += memcmp(xx, x[k], sizeof xx) != 0 || memcmp(yy, y[k], sizeof yy) != 0;
            }
        }
        check(!bad, "order %d: %d steps differ after resuming", order, bad);
        /* Within a step the state is that of the beginning of the step. */
        bad = data_seek(&e, states[5], err) || data_next(&e, 1, xx, yy, err);
        DataState s = data_state(&e);
        check(!bad && memcmp(&s, &states[5], sizeof s) == 0, "state within a step");
        s.shard = 4;
        check(data_seek(&e, s, err) == -1 && strstr(err, "only 4 files"), "fewer files: %s", err);
        s.shard = 0;
        s.position = 5000;
        check(data_seek(&e, s, err) == -1 && strstr(err, "5000"), "shorter file: %s", err);
        data_close(&d);
        data_close(&e);
    }
}

/* The training part of the text has bytes below 200, the validation part has bytes from 200 on. */
static void test_text_split(void) {
    enum { N = 1239, T = 16, TRAIN = N - N / 10 };
    unsigned char text[N];
    for (int i = 0; i < N; i++) text[i] = (unsigned char)(i < TRAIN ? i % 200 : 200 + i % 50);
    write_bytes("split.txt", text, N);
    Data train, val;
    open_or_exit(&train, "split.txt", DATA_TRAIN, DATA_SHUFFLED, 1, T, 4);
    open_or_exit(&val, "split.txt", DATA_VAL, DATA_SEQUENTIAL, 1, T, 0);
    check(data_tokens(&train) == TRAIN && data_tokens(&val) == N / 10, "parts %zu and %zu",
          data_tokens(&train), data_tokens(&val));
    int x[4 * T], y[4 * T], leaked = 0, bad = 0;
    for (int i = 0; i < 150; i++) {
        bad += data_next(&train, 4, x, y, err);
        for (int k = 0; k < 4 * T; k++) leaked += x[k] >= 200 || y[k] >= 200;
    }
    check(!bad && !leaked, "%d validation bytes seen in training", leaked);
    check(data_val_rows(&val, 0) == 8, "rows %zu", data_val_rows(&val, 0)); /* 122 targets */
    bad = data_val_batch(&val, 0, 4, 0, x, y, err);
    check(!bad && x[0] == text[TRAIN] && y[0] == text[TRAIN + 1],
          "the validation part begins behind the training part");
    check(data_next(&val, 1, x, y, err) == -1 && strstr(err, "validation only"),
          "drawing from validation data: %s", err);
    check(data_checksum(&train) != data_checksum(&val), "the parts have different fingerprints");
    data_close(&train);
    data_close(&val);
}

static void test_validation(void) {
    enum { T = 8 };
    write_counting("v_1.bin", 0, 2 * T + 4);   /* 19 targets: 8 + 8 + 3 */
    write_counting("v_2.bin", 100, 3 * T + 1); /* 24: 8 + 8 + 8 */
    write_counting("v_3.bin", 200, 1);         /* none */
    Data d;
    open_or_exit(&d, "v_?.bin", DATA_ALL, DATA_SEQUENTIAL, 0, T, 0);
    static const size_t limits[] = {0, 1, 8, 9, 19, 20, 30, 43, 44};
    static const size_t rows[] = {6, 1, 1, 2, 3, 4, 5, 6, 6};
    for (int l = 0; l < 9; l++) {
        check(data_val_rows(&d, limits[l]) == rows[l], "limit %zu: %zu rows", limits[l],
              data_val_rows(&d, limits[l]));
        size_t targets = 0, expect = limits[l] && limits[l] < 43 ? limits[l] : 43;
        int bad = 0, x[3 * T], y[3 * T], token = 1;
        for (size_t row = 0; row < 9; row += 3) { /* the last batch goes past the last row */
            bad += data_val_batch(&d, row, 3, limits[l], x, y, err);
            for (int i = 0; i < 3 * T; i++) {
                if (y[i] < 0) {
                    bad += x[i] != 0 || y[i] != -1;
                    continue;
                }
                if (token == 20) token = 101;
                bad += y[i] != token++ || x[i] != y[i] - 1;
                targets++;
            }
        }
        check(!bad && targets == expect, "limit %zu: %zu targets, %d wrong", limits[l], targets,
              bad);
    }
    data_close(&d);
}

static void test_vocabulary(void) {
    Data d;
    int x[16], y[16];
    write_counting("big.bin", 50300, 40);
    open_or_exit(&d, "big.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 8, 2);
    d.vocab = 50340;
    check(data_next(&d, 2, x, y, err) == 0 && data_next(&d, 2, x, y, err) == 0, "%s", err);
    DataState s = {0, 0, 0, 0};
    check(data_seek(&d, s, err) == 0, "%s", err);
    d.vocab = 50310;
    check(data_next(&d, 1, x, y, err) == 0, "%s", err);
    check(data_next(&d, 1, x, y, err) == -1 &&
              strstr(err, "big.bin: token 50310 at position 10 ") &&
              strstr(err, "vocabulary of 50310"),
          "token out of range: %s", err);
    d.vocab = 50340;
    check(data_next(&d, 1, x, y, err) == 0 && x[0] == 50308, "an error moves nothing");
    d.vocab = 50305;
    check(data_val_batch(&d, 0, 1, 0, x, y, err) == -1 && strstr(err, "50305"), "%s", err);
    data_close(&d);
}

static uint64_t checksum_of(const char *pattern) {
    Data d;
    open_or_exit(&d, pattern, DATA_ALL, DATA_SEQUENTIAL, 0, 8, 1);
    uint64_t h = data_checksum(&d);
    data_close(&d);
    return h;
}

static void test_checksum(void) {
    write_counting("c_1.bin", 0, 20000);
    uint64_t h = checksum_of("c_1.bin");
    write_counting("other_name.bin", 0, 20000);
    check(checksum_of("other_name.bin") == h, "the name does not count");
    write_counting("c_1.bin", 0, 20001);
    check(checksum_of("c_1.bin") != h, "the length counts");
    write_counting("c_1.bin", 1, 20000);
    check(checksum_of("c_1.bin") != h, "the content counts");
    write_counting("c_1.bin", 0, 20000);
    write_counting("c_2.bin", 0, 20000);
    check(checksum_of("c_1.bin") == h && checksum_of("c_?.bin") != h, "the number of files counts");
}

/* A sparse shard of more than 4 GiB: offsets and counts have 64 bits. */
static void test_large(void) {
    uint32_t count = 2200000000u, header[3] = {DATA_MAGIC, DATA_VERSION, count};
    unsigned char h[DATA_HEADER_BYTES] = {0};
    for (int i = 0; i < 12; i++) h[i] = (unsigned char)(header[i / 4] >> (8 * (i % 4)));
    write_bytes("large.bin", h, sizeof h);
    int fd = open(in_folder("large.bin"), O_WRONLY);
    unsigned char last[2] = {0x50, 0xc4}; /* 50256 */
    off_t at = DATA_HEADER_BYTES + 2 * ((off_t)count - 1);
    int made = fd >= 0 && pwrite(fd, last, 2, at) == 2;
    if (fd >= 0) close(fd);
    check(made, "cannot make a sparse file of 4.4 GB in %s", scratch_folder);
    if (!made) return;
    Data d;
    int x[8], y[8];
    open_or_exit(&d, "large.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 8, 1);
    check(data_tokens(&d) == count && data_checksum(&d) != 0, "count %zu", data_tokens(&d));
    DataState s = {0, 0, 0, count - 10};
    check(!data_seek(&d, s, err) && !data_next(&d, 1, x, y, err) && y[7] == 0, "%s", err);
    check(!data_val_batch(&d, (count - 2) / 8, 1, 0, x, y, err) && y[6] == 50256 && y[7] == -1,
          "last validation row: %d %d %s", y[6], y[7], err);
    data_close(&d);
    open_or_exit(&d, "large.bin", DATA_ALL, DATA_SHUFFLED, 0, 8, 1);
    uint64_t far = 0;
    for (int i = 0; i < 1000;
         i++) { /* locates rows without reading them, which would fill the page cache */
        size_t file, start;
        data_locate(&d, &d.next, 0, &file, &start);
        far += start > (uint64_t)1 << 31;
    }
    check(far > 8 && far < 48, "%d of 1000 rows above 2^31, 24 expected", (int)far);
    data_close(&d);
    unlink(in_folder("large.bin"));
}

/* The benchmark has 10^8 tokens a shard and 524,288 tokens a step, so 190 steps a shard. */
static void test_benchmark_steps(void) {
    enum { T = 1024, ROWS = 512, B = T * ROWS };
    unsigned char h[DATA_HEADER_BYTES] = {0x88, 0xd8, 0x34, 1, 1, 0, 0, 0, 0x00, 0xe1, 0xf5, 0x05};
    static const char *names[] = {"f_1.bin", "f_2.bin"};
    for (int i = 0; i < 2; i++) {
        write_bytes(names[i], h, sizeof h);
        if (truncate(in_folder(names[i]), DATA_HEADER_BYTES + 200000000)) perror("truncate");
    }
    Data d;
    int *x = (int *)malloc(B * sizeof(int)), *y = (int *)malloc(B * sizeof(int));
    open_or_exit(&d, "f_?.bin", DATA_ALL, DATA_SEQUENTIAL, 0, T, ROWS);
    DataState s = {0, 0, 0, 189 * (uint64_t)B};
    int bad = data_seek(&d, s, err) || data_next(&d, ROWS, x, y, err);
    s = data_state(&d);
    check(!bad && s.shard == 0 && s.position == 190 * (uint64_t)B,
          "step 190 is the last of shard 1");
    bad = data_next(&d, ROWS, x, y, err);
    s = data_state(&d);
    check(!bad && s.shard == 1 && s.position == B, "step 191 begins shard 2");
    data_close(&d);
    free(x);
    free(y);
}

static int count_files(void) {
    glob_t g;
    memset(&g, 0, sizeof g);
    int n = glob(in_folder("*"), 0, NULL, &g) == 0 ? (int)g.gl_pathc : 0;
    globfree(&g);
    return n;
}

static void test_writing(void) {
    uint16_t tokens[5000] = {1, 2, 3};
    check(data_write_shard(in_folder("no/such/folder.bin"), tokens, 3, err) == -1 &&
              strstr(err, "no/such/folder.bin"),
          "%s", err);
    /* A limit on the size of files simulates a full disk. The old file stays, and no temporary file
       is left. */
    write_counting("kept.bin", 5, 100);
    int files = count_files();
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 4096;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    int status = data_write_shard(in_folder("kept.bin"), tokens, 5000, err);
    setrlimit(RLIMIT_FSIZE, &old);
    check(status == -1 && strstr(err, "kept.bin"), "full disk: %s", err);
    check(count_files() == files, "a temporary file was left behind");
    Data d;
    open_or_exit(&d, "kept.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 8, 1);
    check(data_tokens(&d) == 100, "the old shard is gone");
    data_close(&d);
}

/* Rows 0 and 9 of a file of 10 rows of 4096 bytes of text, each byte the number of its row + 1. */
static int read_ends(Data *d, int *first, int *last) {
    enum { T = 4096 };
    static int x[T], y[T];
    *first = *last = -1;
    if (data_val_batch(d, 0, 1, 0, x, y, err)) return -1;
    *first = x[T - 1];
    if (data_val_batch(d, 9, 1, 0, x, y, err)) return -1;
    *last = x[T - 2];
    return 0;
}

static void write_pages(const char *name, int pages, int add) {
    static unsigned char text[20 * 4096];
    for (int i = 0; i < pages * 4096; i++) text[i] = (unsigned char)(i / 4096 + 1 + add);
    write_bytes(name, text, (size_t)pages * 4096);
}

static Data open_pages(const char *name) {
    Data d;
    write_pages(name, 10, 0);
    open_or_exit(&d, name, DATA_ALL, DATA_SEQUENTIAL, 0, 4096, 1);
    return d;
}

/* A file that becomes shorter is an error that names it, and other files can be read on. */
static void test_cut(void) {
    Data d = open_pages("cut.txt"), other = open_pages("kept.txt");
    int first = 0, last = 0, x[4096], y[4096];
    check(!read_ends(&d, &first, &last) && first == 1 && last == 10, "%d %d: %s", first, last, err);
    if (truncate(in_folder("cut.txt"), 2 * 4096)) perror("truncate");
    check(read_ends(&d, &first, &last) == -1 && first == 1 && strstr(err, "cut.txt") &&
              strstr(err, "became shorter"),
          "reading past the end, %d: %s", first, err);
    DataState before = data_state(&d), after;
    int status = 0;
    for (int i = 0; i < 9 && !status; i++) {
        before = data_state(&d);
        status = data_next(&d, 1, x, y, err);
    }
    after = data_state(&d);
    check(status == -1 && strstr(err, "cut.txt: the file became shorter") &&
              before.position == 2 * 4096 - 4096 && !memcmp(&before, &after, sizeof before),
          "training, position %llu: %s", (unsigned long long)before.position, err);
    check(!read_ends(&other, &first, &last) && last == 10, "another file: %s", err);
    check(read_ends(&d, &first, &last) == -1, "the second time");
    data_close(&d);

    /* What a page has past the end reads as zeros, without a signal. */
    d = open_pages("cut.txt");
    if (truncate(in_folder("cut.txt"), 9 * 4096 + 1)) perror("truncate");
    check(read_ends(&d, &first, &last) == -1 && strstr(err, "became shorter"), "a page: %s", err);
    data_close(&d);
    data_close(&other);
}

/* A file that grows, is deleted or is replaced under its name changes nothing. */
static void test_replaced(void) {
    Data d = open_pages("r.txt");
    int first = 0, last = 0;
    write_pages("new.txt", 3, 50);
    check(!rename(in_folder("new.txt"), in_folder("r.txt")) && !read_ends(&d, &first, &last) &&
              first == 1 && last == 10,
          "replaced: %d %d %s", first, last, err);
    check(!unlink(in_folder("r.txt")) && !read_ends(&d, &first, &last) && last == 10, "deleted: %s",
          err);
    data_close(&d);
    d = open_pages("r.txt");
    check(!truncate(in_folder("r.txt"), 30 * 4096) && !read_ends(&d, &first, &last) && last == 10,
          "grown: %s", err);
    data_close(&d);
}

/* A map of the test's own, of which the handler knows nothing. */
static volatile const unsigned char *foreign_map(void) {
    write_pages("foreign.txt", 2, 0);
    int fd = open(in_folder("foreign.txt"), O_RDONLY);
    void *map = mmap(NULL, 2 * 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    if (truncate(in_folder("foreign.txt"), 0)) perror("truncate");
    memset(&cm_mapped_before, 0, sizeof cm_mapped_before); /* the default, not a sanitizer's */
    return (volatile const unsigned char *)map;
}

static void read_unguarded(void) {
    Data d = open_pages("u.txt");
    volatile const unsigned char *bytes = d.files[0].map->bytes;
    if (truncate(in_folder("u.txt"), 4096)) perror("truncate");
    fprintf(stderr, "%d", bytes[5 * 4096]);
}

static void read_foreign(void) {
    Data d = open_pages("u.txt");
    fprintf(stderr, "%d %zu", foreign_map()[4096], d.num_files);
}

static void send_signal(void) {
    Data d = open_pages("u.txt");
    foreign_map();
    raise(SIGBUS);
    fprintf(stderr, "%zu", d.num_files);
}

/* Outside of a guarded read the program names the file and ends. Another SIGBUS does what it
   did. */
static void test_signal(void) {
    int status = status_of_child(read_unguarded, "err.txt");
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1 && file_has("err.txt", "error: ") &&
              file_has("err.txt", "u.txt became shorter"),
          "unguarded: status %x", status);
    status = status_of_child(read_foreign, "err.txt");
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS, "another map: status %x", status);
    status = status_of_child(send_signal, "err.txt");
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS, "raise(SIGBUS): status %x", status);
}

/* More files than may be mapped at a time: the same order and the same tokens. */
static void test_many_files(void) {
    enum { FILES = 40, T = 4, ROWS = 7, STEPS = 60 };
    char name[32];
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "many_%02d.bin", i);
        write_counting(name, 1000 * i, (size_t)(10 + 3 * (i % 7)));
    }
    for (int order = DATA_SEQUENTIAL; order <= DATA_SHUFFLED; order++) {
        Data all, few;
        int bad = 0, x[2][T * ROWS], y[2][T * ROWS], rows = order == DATA_SHUFFLED ? ROWS : 1;
        open_or_exit(&all, "many_*.bin", DATA_ALL, order, 3, T, rows);
        open_or_exit(&few, "many_*.bin", DATA_ALL, order, 3, T, rows);
        while (few.num_mapped > 3) data_unmap_oldest(&few);
        few.max_mapped = 3;
        for (int i = 0; i < STEPS; i++) {
            bad += data_next(&all, rows, x[0], y[0], err) || data_next(&few, rows, x[1], y[1], err);
            bad += memcmp(x[0], x[1], sizeof(int) * (size_t)(T * rows)) != 0;
            bad += memcmp(y[0], y[1], sizeof(int) * (size_t)(T * rows)) != 0;
        }
        check(!bad, "order %d: %d steps differ: %s", order, bad, err);
        for (size_t row = 0; row < data_val_rows(&all, 0); row++) {
            bad += data_val_batch(&all, row, 1, 0, x[0], y[0], err) ||
                   data_val_batch(&few, row, 1, 0, x[1], y[1], err);
            bad += memcmp(x[0], x[1], sizeof(int) * T) || memcmp(y[0], y[1], sizeof(int) * T);
        }
        check(!bad && all.num_mapped == FILES && few.num_mapped == 3,
              "order %d, validation: %d rows differ, %d files mapped: %s", order, bad,
              few.num_mapped, err);
        data_close(&all);
        data_close(&few);
    }
    /* A file that is mapped anew must be the one that was examined. */
    Data d;
    int x[2 * T], y[2 * T];
    open_or_exit(&d, "many_*.bin", DATA_ALL, DATA_SEQUENTIAL, 0, T, 0);
    while (d.num_mapped) data_unmap_oldest(&d);
    write_counting("many_00.bin", 5, 10);
    check(data_val_batch(&d, 0, 1, 0, x, y, err) == -1 && strstr(err, "many_00.bin") &&
              strstr(err, "replaced"),
          "replaced while it was not mapped: %s", err);
    unlink(in_folder("many_00.bin"));
    check(data_val_batch(&d, 0, 1, 0, x, y, err) == -1 && strstr(err, "many_00.bin"),
          "deleted while it was not mapped: %s", err);
    data_close(&d);
}

/* More files than DATA_MAX_MAPPED are opened, and no more than that are mapped. */
static void test_most_mapped(void) {
    Data d;
    char name[32];
    for (int i = 0; i < DATA_MAX_MAPPED + 5; i++) {
        snprintf(name, sizeof name, "most_%03d.txt", i);
        write_bytes(name, "some text", 9);
    }
    open_or_exit(&d, "most_*.txt", DATA_ALL, DATA_SHUFFLED, 0, 4, 2);
    int x[8], y[8], bad = 0;
    for (int i = 0; i < 200; i++) bad += data_next(&d, 2, x, y, err);
    check(!bad && d.num_files == DATA_MAX_MAPPED + 5 && d.num_mapped == DATA_MAX_MAPPED,
          "%d of %zu files are mapped: %s", d.num_mapped, d.num_files, err);
    data_close(&d);
    struct rlimit old, few;
    getrlimit(RLIMIT_NOFILE, &old);
    few = old;
    few.rlim_cur = 40;
    setrlimit(RLIMIT_NOFILE, &few);
    open_or_exit(&d, "most_*.txt", DATA_ALL, DATA_SHUFFLED, 0, 4, 2);
    for (int i = 0; i < 200; i++) bad += data_next(&d, 2, x, y, err);
    check(!bad && d.num_mapped == 10, "few open files: %d are mapped: %s", d.num_mapped, err);
    data_close(&d);
    setrlimit(RLIMIT_NOFILE, &old);
}

/* Opens data with stderr in the file "notes". Returns the status of data_open. */
static int open_with_notes(Data *d, const char *pattern, int part) {
    fflush(stderr);
    int saved = dup(2), fd = open(in_folder("notes"), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(fd, 2);
    int status = data_open(d, in_folder(pattern), part, DATA_SEQUENTIAL, 0, 4, 0, err);
    dup2(saved, 2);
    close(saved);
    close(fd);
    return status;
}

/* Empty files among others are left out with one note; if all are empty, that is an error. */
static void test_empty(void) {
    Data d;
    int x[4], y[4];
    write_bytes("n_1.txt", "", 0);
    write_bytes("n_2.txt", "some text", 9);
    write_bytes("n_3.txt", "", 0);
    write_bytes("n_4.txt", "more text", 9);
    check(!open_with_notes(&d, "n_?.txt", DATA_ALL) && d.num_files == 2 && d.count == 18 &&
              file_has("notes", "note: 2 of 4 files are empty") && file_has("notes", "n_1.txt"),
          "empty files: %s", err);
    check(!data_val_batch(&d, 2, 1, 0, x, y, err) && x[0] == 'm' && y[0] == 'o', "%s", err);
    uint64_t sum = data_checksum(&d);
    data_close(&d);
    unlink(in_folder("n_1.txt"));
    unlink(in_folder("n_3.txt"));
    check(!open_with_notes(&d, "n_?.txt", DATA_ALL) && data_checksum(&d) == sum &&
              !file_has("notes", "note"),
          "without empty files: %s", err);
    data_close(&d);
    write_bytes("n_2.txt", "", 0);
    write_bytes("n_4.txt", "", 0);
    check(open_with_notes(&d, "n_?.txt", DATA_ALL) == -1 && strstr(err, "n_2.txt is empty"),
          "all are empty: %s", err);
}

/* A shard whose name ends in .txt is text, with one warning; other texts are taken without one. */
static void test_shard_as_text(void) {
    Data d;
    write_counting("shard.bin", 0, 40);
    check(!open_with_notes(&d, "shard.bin", DATA_ALL) && !file_has("notes", "warning"), "%s", err);
    data_close(&d);
    check(!rename(in_folder("shard.bin"), in_folder("shard.txt")), "rename");
    for (int part = DATA_ALL; part <= DATA_TRAIN; part++) {
        check(!open_with_notes(&d, "shard.txt", part) && d.is_text, "%s", err);
        check(file_has("notes", "warning: ") && file_has("notes", "shard.txt") &&
                  file_has("notes", "rename it to .bin"),
              "part %d: no warning", part);
        data_close(&d);
    }
    check(!open_with_notes(&d, "shard.txt", DATA_VAL) && !file_has("notes", "warning"),
          "a second warning of the validation part");
    data_close(&d);
    write_bytes("plain.txt", "a text that is no shard at all", 30);
    check(!open_with_notes(&d, "plain.txt", DATA_ALL) && !file_has("notes", "warning"), "a text");
    data_close(&d);
}

/* A pipe has no writer and a device no end: neither is opened. */
static void test_no_file(void) {
    Data d;
    check(!mkfifo(in_folder("fifo"), 0600), "mkfifo");
    alarm(20); /* opening a pipe without a writer waits for ever */
    check_refused("fifo", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "data/tokenize --input -");
    check(data_open(&d, "/dev/zero", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1, err) == -1 &&
              strstr(err, "/dev/zero is not a file"),
          "a device: %s", err);
    alarm(0);
}

/* The message about a missing file names what is there. */
static void test_missing(void) {
    Data d;
    mkdir(in_folder("beside"), 0755);
    check_refused("beside/a.txt", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "a.txt does not exist; see");
    static const char *const names[] = {"c.bin", "b.txt", "notes.md", "d.txt", "e.txt"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        char name[64];
        snprintf(name, sizeof name, "beside/%s", names[i]);
        write_bytes(name, "x", 1);
    }
    check_refused("beside/a.txt", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "beside/b.txt, ");
    check(strstr(err, "beside/c.bin, ") && strstr(err, "beside/d.txt; ") && !strstr(err, "e.txt") &&
              !strstr(err, "notes"),
          "%s", err);
    check_refused("beside/*.tokens", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "beside/b.txt");
    /* A message is one line, and no name in it can steer a terminal. */
    check(data_open(&d, in_folder("beside/a\n(\x1b)\x7f\xc3\xa9.txt"), DATA_ALL, DATA_SEQUENTIAL, 0,
                    4, 1, err) == -1 &&
              strstr(err, "beside/a?(?)?\xc3\xa9.txt does not exist"),
          "%s", err);
    write_bytes("beside/shakespeare.txt", "x", 1);
    check(data_open(&d, in_folder("beside/tinyshakespeare.txt"), DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1,
                    err) == -1 &&
              strstr(err, "--data /") && strstr(err, "beside/shakespeare.txt"),
          "%s", err);
}

/* Brackets in a name, beside a star that is a pattern. */
static void test_patterns(void) {
    Data d;
    mkdir(in_folder("dir[1] a"), 0755);
    write_counting("dir[1] a/s[2]_1.bin", 0, 20);
    write_counting("dir[1] a/s[2]_2.bin", 0, 20);
    write_counting("dir[1] a/s2_1.bin", 0, 20);
    open_or_exit(&d, "dir[1] a/s[2]_*.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.num_files == 2, "%zu files", d.num_files);
    data_close(&d);
    open_or_exit(&d, "dir[1] a/s*.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.num_files == 3, "%zu files", d.num_files);
    data_close(&d);
    write_counting("s1_1.bin", 0, 20);
    open_or_exit(&d, "s[1]_[1].bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.num_files == 1, "a pattern stays a pattern");
    data_close(&d);
}

/* Files that are in both data sets are found under any name. */
static void test_shared(void) {
    Data train, val;
    write_counting("h_1.bin", 0, 500);
    write_counting("h_2.bin", 7, 500);
    write_counting("h_3.bin", 9, 500);
    write_counting("hv_1.bin", 8, 500);
    write_counting("hv_2.bin", 7, 500); /* a copy of h_2.bin */
    open_or_exit(&train, "h_?.bin", DATA_ALL, DATA_SHUFFLED, 0, 4, 1);
    open_or_exit(&val, "hv_1.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 0);
    check(!data_shared(&train, &val), "nothing is shared");
    data_close(&val);
    open_or_exit(&val, "hv_?.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 0);
    const DataFile *shared = data_shared(&train, &val);
    check(shared && strstr(shared->path, "h_2.bin"), "a copy is not found");
    data_close(&val);
    data_close(&train);
    char text[100];
    memset(text, 'x', sizeof text);
    write_bytes("h.txt", text, sizeof text);
    open_or_exit(&train, "h.txt", DATA_TRAIN, DATA_SHUFFLED, 0, 4, 1);
    open_or_exit(&val, "h.txt", DATA_VAL, DATA_SEQUENTIAL, 0, 4, 0);
    check(!data_shared(&train, &val), "the parts of a text are not shared");
    data_close(&train);
    /* A run that began with other validation data trains on all of the text. */
    open_or_exit(&train, "h.txt", DATA_ALL, DATA_SHUFFLED, 0, 4, 1);
    shared = data_shared(&train, &val);
    check(shared && strstr(shared->path, "h.txt"), "the last tenth is in all of the text");
    data_close(&val);
    data_close(&train);
}

static void write_of(const char *name, TokenizerKind kind, uint64_t fingerprint) {
    static const uint16_t tokens[20] = {1, 2, 3};
    TokenizerId id = {kind, fingerprint};
    if (data_write_shard_of(id, in_folder(name), tokens, 20, err)) puts(err);
}

/* What shards and texts say about their tokenizer. All files of a data set must agree. */
static void test_tokenizer(void) {
    const uint64_t print = 0xfedcba9876543210u;
    Data d;
    write_of("t_1.bin", TOKENIZER_BPE, print);
    open_or_exit(&d, "t_1.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.tokenizer.kind == TOKENIZER_BPE && d.tokenizer.fingerprint == print, "bpe");
    data_close(&d);
    unsigned char h[DATA_HEADER_BYTES + 40];
    FILE *f = fopen(in_folder("t_1.bin"), "rb");
    check(f && fread(h, 1, sizeof h, f) == sizeof h, "a shard of 20 tokens");
    if (f) fclose(f);
    check(!memcmp(h + 12, "toks\2\0\0\0\x10\x32\x54\x76\x98\xba\xdc\xfe\0", 17),
          "words 3 to 6 of the header");
    write_bytes("t_2.bin", h, sizeof h);
    open_or_exit(&d, "t_?.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.num_files == 2, "two shards of one vocabulary");
    data_close(&d);
    h[20]++;
    write_bytes("t_2.bin", h, sizeof h);
    check(data_open(&d, in_folder("t_?.bin"), DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1, err) == -1 &&
              strstr(err, "t_2.bin") && strstr(err, "bpe fedcba9876543210"),
          "two vocabularies: %s", err);
    write_of("t_2.bin", TOKENIZER_GPT2, 0);
    check(data_open(&d, in_folder("t_?.bin"), DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1, err) == -1 &&
              strstr(err, "gpt2"),
          "a vocabulary and GPT-2's: %s", err);
    h[16] = 3;
    write_bytes("t_3.bin", h, sizeof h);
    check_refused("t_3.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "tokenizer 3");
    h[16] = 2;
    memset(h + 20, 0, 8);
    write_bytes("t_3.bin", h, sizeof h);
    check_refused("t_3.bin", DATA_ALL, DATA_SEQUENTIAL, 4, 1, "tokenizer 2");

    /* A shard of other programs is taken as GPT-2's, beside one that says so. */
    memset(h + 12, 0, 16);
    write_bytes("g_1.bin", h, sizeof h);
    write_of("g_2.bin", TOKENIZER_GPT2, print);
    open_or_exit(&d, "g_1.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.tokenizer.kind == TOKENIZER_GPT2 && !d.tokenizer.fingerprint, "zeros are GPT-2's");
    data_close(&d);
    open_or_exit(&d, "g_?.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.tokenizer.kind == TOKENIZER_GPT2 && d.tokenizer.fingerprint == print, "both of GPT-2");
    data_close(&d);
    memcpy(h + 12, "gpu!", 4); /* what another program writes there */
    write_bytes("g_1.bin", h, sizeof h);
    open_or_exit(&d, "g_1.bin", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.tokenizer.kind == TOKENIZER_GPT2 && !d.tokenizer.fingerprint, "another tag");
    data_close(&d);
    write_bytes("b.txt", "some text of bytes", 18);
    open_or_exit(&d, "b.txt", DATA_ALL, DATA_SEQUENTIAL, 0, 4, 1);
    check(d.tokenizer.kind == TOKENIZER_BYTES && !d.tokenizer.fingerprint, "text is bytes");
    data_close(&d);
}

static const Test tests[] = {
    TEST(refusals),        TEST(kinds),         TEST(sequential),  TEST(permutation),
    TEST(shuffled),        TEST(determinism),   TEST(resume),      TEST(text_split),
    TEST(validation),      TEST(vocabulary),    TEST(checksum),    TEST(large),
    TEST(benchmark_steps), TEST(writing),       TEST(cut),         TEST(replaced),
    TEST(signal),          TEST(many_files),    TEST(most_mapped), TEST(tokenizer),
    TEST(empty),           TEST(shard_as_text), TEST(no_file),     TEST(missing),
    TEST(patterns),        TEST(shared)};

int main(int argc, char **argv) {
    folder_make("cm_test_data");
    check_run(tests, COUNT_OF(tests), argc, argv);
    folder_remove();
    return check_done();
}
