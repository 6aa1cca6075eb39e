/*
Training and validation data: memory-mapped token shards or plain text, and the order in which a
run reads them.

A shard (the format of llm.c and modded-nanogpt) begins with 256 little-endian int32: magic
20240520, version 1, number of tokens, zeros. Then follow that many little-endian uint16 tokens. In
plain text every byte is a token, the vocabulary is 256, and the last tenth of each file can serve
as validation data.

    name ends in .txt                       text
    name ends in .bin, or the magic fits    shard
    everything else                         text

A row needs T + 1 tokens: inputs [p, p + T) and targets [p + 1, p + T + 1). The last target of a row
is the first input of the next row.

Two orders:

    DATA_SEQUENTIAL  Every step takes the next rows_per_step * T tokens of the shard, one block. If
                     p + rows_per_step * T + 1 >= length, the tail of the shard is dropped and the
                     next shard starts at 0; after the last shard the next epoch starts. This is the
                     loader of modded-nanogpt's optimizer benchmark: all seeds see equal data.
    DATA_SHUFFLED    In every epoch the shards come in a random order. Each is cut into rows at a
                     random offset in [0, T), and its rows come in a random order, each once. A
                     permutation is a function of (seed, epoch, shard), not a table. So a billion
                     rows need no memory, and four numbers suffice to resume. A step may continue
                     past the end of a shard or of an epoch.

The rows of a step do not depend on its division into micro-batches or over machines. Only one
thread may use a Data. A file must not be truncated while it is open.
*/
#ifndef CM_DATA_H
#define CM_DATA_H

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base.h"
#include "files.h"
#include "rng.h"

#define DATA_MAGIC 20240520
#define DATA_VERSION 1
#define DATA_HEADER_BYTES 1024

/* Which part of a text file is used. Shards are not split: DATA_TRAIN takes a whole shard, DATA_VAL
   refuses it. */
enum { DATA_ALL, DATA_TRAIN, DATA_VAL };
enum { DATA_SEQUENTIAL, DATA_SHUFFLED };

/* A place in the data, from which a run can continue. shard counts in the epoch's order. position
   is a token of that shard (DATA_SEQUENTIAL), or the number of its rows that have been drawn
   (DATA_SHUFFLED). */
typedef struct {
    uint64_t seed, epoch, shard, position;
} DataState;

typedef struct {
    char *path;
    unsigned char *map; /* the whole file */
    size_t map_bytes;
    const unsigned char *tokens; /* of the part in use */
    size_t count;                /* tokens in the part in use */
} DataFile;

typedef struct Data {
    DataFile *files;
    size_t num_files;
    int is_text;
    int part, order;
    int T, rows_per_step;
    int vocab;       /* a token >= vocab is an error; a caller may lower vocab after data_open */
    size_t count;    /* tokens of all files */
    DataState begin; /* where the current step began */
    DataState next;  /* where its next row is */
    int row;         /* rows of the current step that have been drawn */
} Data;

/* ---------------------------------------------------------------------------------------------- */
/* files */

static inline uint32_t data_u32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline int data_ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && strcmp(s + n - m, suffix) == 0;
}

/* Says what a .bin file that does not start with DATA_MAGIC probably is. Returns -1 with the
   message. */
static inline int data_fail_magic(const char *path, const unsigned char *p, char *err) {
    uint32_t magic = data_u32(p);
    uint32_t swapped = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    if (magic == 20240801)
        return fail(err,
                    "%s: this is a shard of 32-bit tokens (magic 20240801, made for Llama 3); "
                    "only 16-bit shards (magic %d) are supported",
                    path, DATA_MAGIC);
    if (swapped == DATA_MAGIC)
        return fail(err,
                    "%s: this shard was written big-endian; swap its bytes, shards are "
                    "little-endian",
                    path);
    if (magic == 20240522)
        return fail(err,
                    "%s: this is an evaluation file of llm.c (magic 20240522), not a token "
                    "shard",
                    path);
    if (magic >= 20240326 && magic <= 20240328)
        return fail(err,
                    "%s: this is a model, state or tokenizer file of llm.c (magic %u), not a "
                    "token shard",
                    path, (unsigned)magic);
    if (p[0] == '<')
        return fail(err,
                    "%s: starts with '<', so it is probably an error page saved by a failed "
                    "download; delete it and fetch it again",
                    path);
    int printable = 1;
    for (int i = 0; i < 4; i++)
        if (!((p[i] >= ' ' && p[i] < 127) || p[i] == '\n' || p[i] == '\r' || p[i] == '\t'))
            printable = 0;
    if (printable)
        return fail(err,
                    "%s: looks like text; rename it to .txt to train on its bytes, or make "
                    "shards of it with data/tokenize",
                    path);
    return fail(err,
                "%s: not a token shard: its first number is %u, not %d (files without a "
                "header or in another byte order cannot be read)",
                path, (unsigned)magic, DATA_MAGIC);
}

/* Finds the tokens of a mapped shard. */
static inline int data_read_header(DataFile *f, char *err) {
    if (f->map_bytes < DATA_HEADER_BYTES)
        return fail(err,
                    "%s: %zu bytes is too short for a token shard, whose header alone has %d; "
                    "fetch or write the file again",
                    f->path, f->map_bytes, DATA_HEADER_BYTES);
    if (data_u32(f->map) != DATA_MAGIC) return data_fail_magic(f->path, f->map, err);
    if (data_u32(f->map + 4) != DATA_VERSION)
        return fail(err, "%s: token shard of version %u; only version %d is supported", f->path,
                    (unsigned)data_u32(f->map + 4), DATA_VERSION);
    uint64_t count = data_u32(f->map + 8); /* unsigned: up to 4.29e9 tokens */
    uint64_t expect = DATA_HEADER_BYTES + 2 * count;
    if (expect != f->map_bytes)
        return fail(err,
                    "%s: the header promises %llu tokens, which is %llu bytes, but the file "
                    "has %zu: it is %s; fetch or write it again",
                    f->path, (unsigned long long)count, (unsigned long long)expect, f->map_bytes,
                    expect > f->map_bytes ? "truncated" : "damaged or two files in one");
    f->tokens = f->map + DATA_HEADER_BYTES;
    f->count = (size_t)count;
    return 0;
}

/* Maps the whole file and sets *is_text. Returns 0, or -1 with a message. */
static inline int data_map(DataFile *f, int *is_text, char *err) {
    struct stat st;
    int fd = file_open(f->path, O_RDONLY);
    if (fd < 0) return fail(err, "cannot open data file %s: %s", f->path, strerror(errno));
    int bad = fstat(fd, &st);
    if (bad || !S_ISREG(st.st_mode)) {
        close(fd);
        if (bad) return fail(err, "cannot read data file %s: %s", f->path, strerror(errno));
        return fail(err, "%s is not a file; name a file or a quoted pattern such as \"%s/*.bin\"",
                    f->path, f->path);
    }
    if (st.st_size == 0 || (uint64_t)st.st_size > (uint64_t)SIZE_MAX / 2) {
        close(fd);
        return fail(err,
                    st.st_size ? "data file %s is too large for this machine"
                               : "data file %s is empty",
                    f->path);
    }
    f->map_bytes = (size_t)st.st_size;
    void *map = mmap(NULL, f->map_bytes, PROT_READ, MAP_SHARED, fd, 0);
    int saved = errno;
    close(fd);
    if (map == MAP_FAILED)
        return fail(err, "cannot map data file %s: %s", f->path, strerror(saved));
    f->map = (unsigned char *)map;
    int magic = f->map_bytes >= 4 && data_u32(f->map) == DATA_MAGIC;
    *is_text = data_ends_with(f->path, ".txt") || (!data_ends_with(f->path, ".bin") && !magic);
    if (!*is_text) return data_read_header(f, err);
    f->tokens = f->map;
    f->count = f->map_bytes;
    return 0;
}

static inline int data_compare_paths(const void *a, const void *b) {
    return strcmp(((const DataFile *)a)->path, ((const DataFile *)b)->path);
}

/* Fills files with the names that match, sorted by byte value in every locale. */
static inline int data_list(Data *d, const char *pattern, char *err) {
    glob_t g;
    memset(&g, 0, sizeof(g));
    struct stat st;
    int literal = stat(pattern, &st) == 0; /* an existing name may contain [ or * */
    int rc = literal ? 0 : glob(pattern, 0, NULL, &g);
    size_t n = literal ? 1 : rc == 0 ? g.gl_pathc : 0;
    if (n == 0) {
        int wild = strpbrk(pattern, "*?[") != NULL;
        globfree(&g);
        if (rc == GLOB_NOSPACE) return fail(err, "out of memory listing data files %s", pattern);
        if (rc == GLOB_ABORTED) return fail(err, "cannot read the folder of %s", pattern);
        return fail(err, "%s %s%s; see data/README.md for how to get data",
                    wild ? "no data file matches" : "data file", pattern,
                    wild ? "" : " does not exist");
    }
    d->files = (DataFile *)calloc(n, sizeof(DataFile));
    int bad = d->files == NULL;
    for (size_t i = 0; i < n && !bad; i++) {
        d->files[i].path = strdup(literal ? pattern : g.gl_pathv[i]);
        bad = d->files[i].path == NULL;
        if (!bad) d->num_files++;
    }
    globfree(&g);
    if (bad) return fail(err, "out of memory listing data files %s", pattern);
    qsort(d->files, n, sizeof(DataFile), data_compare_paths);
    return 0;
}

static inline void data_close(Data *d) {
    for (size_t i = 0; i < d->num_files; i++) {
        if (d->files[i].map) munmap(d->files[i].map, d->files[i].map_bytes);
        free(d->files[i].path);
    }
    free(d->files);
    memset(d, 0, sizeof(*d));
}

/* Takes the part in use of a mapped file. */
static inline int data_take_part(const Data *d, DataFile *f, char *err) {
    size_t tenth = f->count / 10;
    if (d->part == DATA_VAL && !d->is_text)
        return fail(err,
                    "%s is a token shard, which is never split into training and "
                    "validation data; name a validation shard",
                    f->path);
    if (d->part == DATA_TRAIN && d->is_text) f->count -= tenth;
    if (d->part == DATA_VAL) {
        f->tokens += f->count - tenth;
        f->count = tenth;
    }
    return 0;
}

/* Refuses data whose longest file has no room for what is drawn at a time: two tokens for
   validation, a row in shuffled order, a step in sequential order. */
static inline int data_check_length(const Data *d, const DataFile *longest, char *err) {
    const char *path = longest->path, *part = "", *unit = d->is_text ? "bytes" : "tokens";
    size_t count = longest->count, step = (size_t)d->rows_per_step * (size_t)d->T;
    if (d->part == DATA_VAL) part = " (its last tenth, the validation part)";
    if (d->part == DATA_TRAIN && d->is_text) part = " (without its last tenth)";
    if (d->rows_per_step == 0) {
        if (count >= 2) return 0;
        return fail(err, "%s has %zu %s%s; validation needs at least 2", path, count, unit, part);
    }
    if (d->order == DATA_SHUFFLED) {
        if (count >= (size_t)d->T + 1) return 0;
        return fail(err,
                    "%s has %zu %s%s, but one row needs %d + 1; use a shorter sequence length "
                    "or more data",
                    path, count, unit, part, d->T);
    }
    if (count > step + 1) return 0;
    return fail(err,
                "%s has %zu %s%s, but one step reads %d rows of %d, which needs %zu; use a "
                "smaller batch, shuffled order or more data",
                path, count, unit, part, d->rows_per_step, d->T, step + 2);
}

/* Maps the files, takes the part in use of each, and checks that a row or a step can be drawn. */
static inline int data_open_files(Data *d, const char *pattern, char *err) {
    if (data_list(d, pattern, err)) return -1;
    size_t longest = 0;
    for (size_t i = 0; i < d->num_files; i++) {
        DataFile *f = &d->files[i];
        int is_text;
        if (data_map(f, &is_text, err)) return -1;
        if (i == 0) d->is_text = is_text;
        if (is_text != d->is_text)
            return fail(err, "%s is %s but %s is %s; one data set has one kind of file", f->path,
                        is_text ? "text" : "a token shard", d->files[0].path,
                        d->is_text ? "text" : "a token shard");
        if (data_take_part(d, f, err)) return -1;
        d->count += f->count;
        if (f->count > d->files[longest].count) longest = i;
    }
    return data_check_length(d, &d->files[longest], err);
}

/* Opens a file or the files of a shell pattern. T is the length of a row, rows_per_step the rows of
   all micro-batches of an optimizer step; 0 opens the data for validation only. Files too short for
   a row (DATA_SEQUENTIAL: for a step) are skipped if at least one is long enough. Returns 0, or -1
   with a message. */
static inline int data_open(Data *d, const char *pattern, int part, int order, uint64_t seed, int T,
                            int rows_per_step, char *err) {
    memset(d, 0, sizeof(*d));
    if (T < 1 || rows_per_step < 0)
        return fail(err, "data: a row of %d tokens and %d rows in a step make no sense", T,
                    rows_per_step);
    d->part = part;
    d->order = order;
    d->T = T;
    d->rows_per_step = rows_per_step;
    d->begin.seed = d->next.seed = seed;
    if (data_open_files(d, pattern, err)) {
        data_close(d);
        return -1;
    }
    d->vocab = d->is_text ? 256 : 65536;
    return 0;
}

static inline size_t data_tokens(const Data *d) { return d->count; }
static inline int data_is_text(const Data *d) { return d->is_text; }

/* The token at a position of a file, which must be in bounds. */
static inline int data_token(const Data *d, const DataFile *f, size_t i) {
    if (d->is_text) return f->tokens[i];
    return f->tokens[2 * i] | f->tokens[2 * i + 1] << 8;
}

/* A fingerprint of the data in use: sizes, headers, the part, and 64 samples of 64 bytes of every
   file, but no names. It distinguishes data sets; it does not prove that no bit has changed. */
static inline uint64_t data_checksum(const Data *d) {
    uint64_t h = rng_mix(d->num_files * 2 + (uint64_t)d->is_text);
    int split = d->is_text ? d->part : DATA_ALL;
    h = rng_mix(h ^ (uint64_t)split);
    for (size_t k = 0; k < d->num_files; k++) {
        const DataFile *f = &d->files[k];
        h = rng_mix(h ^ f->map_bytes);
        for (size_t i = 0; i < min_size(f->map_bytes, DATA_HEADER_BYTES); i++)
            h = rng_mix(h ^ f->map[i]);
        size_t room = f->map_bytes > 64 ? f->map_bytes - 64 : 0;
        for (size_t s = 0; s < 64; s++) {
            size_t at = room / 63 * s + room % 63 * s / 63; /* room * s / 63 without overflow */
            for (size_t i = at; i < min_size(at + 64, f->map_bytes); i++)
                h = rng_mix(h ^ f->map[i]);
        }
    }
    return h;
}

/* ---------------------------------------------------------------------------------------------- */
/* order */

/* Element i of a random permutation of [0, n): a Feistel network on the next even power of two,
   applied until the result is below n (Black and Rogaway 2002, "Ciphers with arbitrary finite
   domains"). The power is below 4 n, so the network is applied fewer than 4 times on average. */
static inline uint64_t data_permute(uint64_t key, uint64_t n, uint64_t i) {
    int half = 1;
    while (half < 32 && (uint64_t)1 << (2 * half) < n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < 8; round++) {
            uint64_t t = (left ^ rng_bits(key, round, right)) & mask;
            left = right;
            right = t;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

/* A separate key for every purpose, shard and epoch. */
enum { DATA_KEY_SHARDS = 1, DATA_KEY_OFFSET, DATA_KEY_ROWS };
static inline uint64_t data_key(uint64_t seed, uint64_t epoch, uint64_t purpose, uint64_t shard) {
    return rng_bits(rng_bits(seed, purpose, epoch), purpose, shard);
}

/* The file that is shard number s.shard of epoch s.epoch. */
static inline size_t data_shard_file(const Data *d, DataState s) {
    if (d->order == DATA_SEQUENTIAL) return (size_t)s.shard;
    uint64_t key = data_key(s.seed, s.epoch, DATA_KEY_SHARDS, 0);
    return (size_t)data_permute(key, d->num_files, s.shard);
}

/* Where the first row of a file starts in epoch s.epoch: in [0, T), and early enough for one
   row. */
static inline size_t data_offset(const Data *d, DataState s, size_t file) {
    size_t n = d->files[file].count, T = (size_t)d->T;
    if (n < T + 1) return 0;
    return (size_t)(data_key(s.seed, s.epoch, DATA_KEY_OFFSET, file) % min_size(T, n - T));
}

/* Rows of a file in epoch s.epoch. */
static inline size_t data_rows(const Data *d, DataState s, size_t file) {
    size_t n = d->files[file].count, T = (size_t)d->T;
    return n < T + 1 ? 0 : (n - 1 - data_offset(d, s, file)) / T;
}

/* Whether the shard still has what is drawn next: a row, or with DATA_SEQUENTIAL a whole step. */
static inline int data_fits(const Data *d, DataState s) {
    size_t file = data_shard_file(d, s);
    if (d->order == DATA_SHUFFLED) return s.position < data_rows(d, s, file);
    uint64_t block = (uint64_t)d->rows_per_step * (uint64_t)d->T;
    return s.position + block + 1 < d->files[file].count;
}

/* Finds the next row, its file and its first token, and moves the state past it. */
static inline void data_locate(const Data *d, DataState *s, int row, size_t *file, size_t *start) {
    int aligned = d->order == DATA_SHUFFLED || row == 0;
    while (aligned && !data_fits(d, *s)) { /* ends, since data_open found a file long enough */
        s->position = 0;
        if (++s->shard == d->num_files) {
            s->shard = 0;
            s->epoch++;
        }
    }
    size_t T = (size_t)d->T;
    *file = data_shard_file(d, *s);
    if (d->order == DATA_SEQUENTIAL) {
        *start = (size_t)s->position;
        s->position += T;
        return;
    }
    uint64_t key = data_key(s->seed, s->epoch, DATA_KEY_ROWS, *file);
    uint64_t i = data_permute(key, data_rows(d, *s, *file), s->position++);
    *start = data_offset(d, *s, *file) + (size_t)i * T;
}

/* Copies n inputs and n targets from token `start` of a file. Returns -1 with a message if a token
   is outside the vocabulary. */
static inline int data_copy(const Data *d, const DataFile *f, size_t start, int n, int *x, int *y,
                            char *err) {
    for (int t = 0; t <= n; t++) {
        int id = data_token(d, f, start + (size_t)t);
        if (id >= d->vocab)
            return fail(err,
                        "%s: token %d at position %zu is outside the vocabulary of %d; the "
                        "data was made for another tokenizer, or the vocabulary size is wrong",
                        f->path, id, start + (size_t)t, d->vocab);
        if (t < n) x[t] = id;
        if (t > 0) y[t - 1] = id;
    }
    return 0;
}

/* Draws the next `rows` rows of the current step: inputs x (rows, T), targets y (rows, T). The
   calls of a step must add up to rows_per_step. Returns 0, or -1 with a message and the place
   unchanged. */
static inline int data_next(Data *d, int rows, int *x, int *y, char *err) {
    if (d->rows_per_step == 0)
        return fail(err, "data was opened for validation only; training cannot draw from it");
    if (rows < 1 || rows > d->rows_per_step - d->row)
        return fail(err,
                    "data: a micro-batch of %d rows does not fit into a step of %d rows, %d "
                    "of which are drawn",
                    rows, d->rows_per_step, d->row);
    DataState s = d->next;
    for (int r = 0; r < rows; r++) {
        size_t file, start, at = (size_t)r * (size_t)d->T;
        data_locate(d, &s, d->row + r, &file, &start);
        if (data_copy(d, &d->files[file], start, d->T, x + at, y + at, err)) return -1;
    }
    d->next = s;
    d->row += rows;
    if (d->row == d->rows_per_step) {
        d->begin = s;
        d->row = 0;
    }
    return 0;
}

/* The place where the next step begins or, in the middle of a step, where that step began. */
static inline DataState data_state(const Data *d) { return d->begin; }

/* Continues from a state that data_state returned for equal files, T and order, and takes over its
   seed. Returns 0, or -1 with a message. */
static inline int data_seek(Data *d, DataState s, char *err) {
    if (s.shard >= d->num_files)
        return fail(
            err,
            "cannot resume at shard %llu: the data, %s and so on, has only %zu files; resume "
            "on the data the run was started with",
            (unsigned long long)s.shard, d->files[0].path, d->num_files);
    size_t file = data_shard_file(d, s);
    size_t end = d->order == DATA_SHUFFLED ? data_rows(d, s, file) : d->files[file].count;
    if (s.position > end)
        return fail(err,
                    "cannot resume at %s %llu of %s, which has %zu; resume on the data and "
                    "with the sequence length and data order the run was started with",
                    d->order == DATA_SHUFFLED ? "row" : "token", (unsigned long long)s.position,
                    d->files[file].path, end);
    d->begin = d->next = s;
    d->row = 0;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* validation: the first `limit` targets (0: all), file by file, in rows of T tokens from token 0
   on */

static inline size_t data_targets(const DataFile *f, size_t left) {
    return min_size(f->count ? f->count - 1 : 0, left);
}

/* Rows that hold the first `limit` targets; the last row of a file may be partly filled. */
static inline size_t data_val_rows(const Data *d, size_t limit) {
    size_t rows = 0, left = limit ? limit : SIZE_MAX, T = (size_t)d->T;
    for (size_t k = 0; k < d->num_files; k++) {
        size_t n = data_targets(&d->files[k], left);
        rows += n / T + (n % T != 0);
        left -= n;
    }
    return rows;
}

/* Copies rows [first_row, first_row + rows). Past the end of a file, the limit and the last row x
   is 0 and y is -1, which counts no loss. Returns 0, or -1 with a message. */
static inline int data_val_batch(const Data *d, size_t first_row, int rows, size_t limit, int *x,
                                 int *y, char *err) {
    size_t T = (size_t)d->T;
    for (size_t i = 0; i < (size_t)rows * T; i++) {
        x[i] = 0;
        y[i] = -1;
    }
    for (int r = 0; r < rows; r++) {
        size_t row = first_row + (size_t)r, left = limit ? limit : SIZE_MAX;
        for (size_t k = 0; k < d->num_files; k++) {
            size_t n = data_targets(&d->files[k], left), here = n / T + (n % T != 0);
            if (row >= here) {
                row -= here;
                left -= n;
                continue;
            }
            int filled = (int)min_size(T, n - row * T);
            size_t at = (size_t)r * T;
            if (data_copy(d, &d->files[k], row * T, filled, x + at, y + at, err)) return -1;
            break;
        }
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* writing */

/* Writes a shard of n tokens by file_replace. Returns 0, or -1 with a message. */
static inline int data_write_shard(const char *path, const uint16_t *tokens, size_t n, char *err) {
    if (n > UINT32_MAX) return fail(err, "%s: %zu tokens are too many for one shard", path, n);
    size_t bytes = DATA_HEADER_BYTES + 2 * n;
    unsigned char *image = (unsigned char *)calloc(bytes, 1);
    if (!image) return fail(err, "out of memory writing %s", path);
    uint32_t header[3] = {DATA_MAGIC, DATA_VERSION, (uint32_t)n};
    for (int i = 0; i < 12; i++) image[i] = (unsigned char)(header[i / 4] >> (8 * (i % 4)));
    for (size_t i = 0; i < n; i++) {
        image[DATA_HEADER_BYTES + 2 * i] = (unsigned char)(tokens[i] & 255);
        image[DATA_HEADER_BYTES + 2 * i + 1] = (unsigned char)(tokens[i] >> 8);
    }
    int status = file_replace(path, image, bytes, err);
    free(image);
    return status;
}

#endif
