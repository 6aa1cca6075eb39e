/*
Training and validation data: memory-mapped token shards or plain text, and the order in which a
run reads them.

A shard (the format of llm.c and modded-nanogpt) begins with 256 little-endian int32: magic
20240520, version 1, number of tokens, zeros. Then follow that many little-endian uint16 tokens. In
plain text every byte is a token, the vocabulary is 256, and the last tenth of each file can serve
as validation data.

Four of the zeros may tell the tokenizer: int32 number 3 is DATA_TOKENIZER_TAG, 4 the kind
(tokenizer_id.h), 5 and 6 the low and high half of the vocabulary's fingerprint. Other programs
ignore them. A shard without them is taken as one of GPT-2's tokens.

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
thread may use a Data. A file that becomes shorter while it is open is an error of the call that
reads it; a file that grows or is replaced under its name changes nothing.
*/
#ifndef CM_DATA_H
#define CM_DATA_H

#include <sys/resource.h>

#include "base.h"
#include "files.h"
#include "mapped.h"
#include "rng.h"
#include "tokenizer_id.h"

#define DATA_MAGIC 20240520
#define DATA_VERSION 1
#define DATA_HEADER_BYTES 1024
#define DATA_TOKENIZER_TAG 0x736b6f74 /* "toks" */

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
    uint64_t bytes; /* of the file */
    uint64_t first; /* byte where the tokens of the part in use begin */
    size_t count;   /* tokens in the part in use */
    dev_t device;   /* with the inode: which file was examined */
    ino_t inode;
    TokenizerId tokenizer;
    uint64_t fingerprint; /* of size, header and samples; see data_checksum */
    Mapped *map;          /* NULL while the file is not mapped */
    uint64_t used;        /* when it was last read, by Data.clock */
} DataFile;

/* How many files are mapped at a time, since a process can have 65,530 maps and often 1024 open
   files. FineWeb's 103 shards stay mapped. Of fewer open files a Data takes a quarter. */
#define DATA_MAX_MAPPED 128

typedef struct Data {
    DataFile *files;
    size_t num_files;
    int is_text;
    int part, order;
    int T, rows_per_step;
    int vocab;         /* a token >= vocab is an error; a caller may lower vocab after data_open */
    size_t count;      /* tokens of all files */
    uint64_t checksum; /* see data_checksum */
    TokenizerId tokenizer;
    DataState begin;                /* where the current step began */
    DataState next;                 /* where its next row is */
    int row;                        /* rows of the current step that have been drawn */
    size_t mapped[DATA_MAX_MAPPED]; /* the files that are mapped */
    int num_mapped, max_mapped;
    uint64_t clock; /* how often a file was asked for */
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
                    "shard; --eval-data takes it",
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

/* Reads from a shard's header what its tokens are. */
static inline int data_read_tokenizer(DataFile *f, const unsigned char *p, char *err) {
    TokenizerId gpt2 = {TOKENIZER_GPT2, 0};
    f->tokenizer = gpt2;
    if (data_u32(p + 12) != DATA_TOKENIZER_TAG) return 0;
    uint32_t kind = data_u32(p + 16);
    f->tokenizer.kind = (TokenizerKind)kind;
    f->tokenizer.fingerprint = data_u32(p + 20) | (uint64_t)data_u32(p + 24) << 32;
    if ((kind == TOKENIZER_GPT2 || kind == TOKENIZER_BPE) && tokenizer_id_valid(f->tokenizer))
        return 0;
    return fail(err,
                "%s: a shard of tokenizer %u, which this program does not know: use a newer cm.c",
                f->path, (unsigned)kind);
}

/* Reads the number of tokens from a shard's header, of which n bytes are at p, and what they
   are. */
static inline int data_read_header(DataFile *f, const unsigned char *p, size_t n, char *err) {
    if (n < DATA_HEADER_BYTES)
        return fail(err,
                    "%s: %llu bytes is too short for a token shard, whose header alone has %d; "
                    "fetch or write the file again",
                    f->path, (unsigned long long)f->bytes, DATA_HEADER_BYTES);
    if (data_u32(p) != DATA_MAGIC) return data_fail_magic(f->path, p, err);
    if (data_u32(p + 4) != DATA_VERSION)
        return fail(err, "%s: token shard of version %u; only version %d is supported", f->path,
                    (unsigned)data_u32(p + 4), DATA_VERSION);
    uint64_t count = data_u32(p + 8); /* unsigned: up to 4.29e9 tokens */
    uint64_t expect = DATA_HEADER_BYTES + 2 * count;
    if (expect != f->bytes)
        return fail(err,
                    "%s: the header promises %llu tokens, which is %llu bytes, but the file "
                    "has %llu: it is %s; fetch or write it again",
                    f->path, (unsigned long long)count, (unsigned long long)expect,
                    (unsigned long long)f->bytes,
                    expect > f->bytes ? "truncated" : "damaged or two files in one");
    f->first = DATA_HEADER_BYTES;
    f->count = (size_t)count;
    return data_read_tokenizer(f, p, err);
}

/* Opens a data file for reading. Returns its descriptor, or -1 with a message. */
static inline int data_open_file(const char *path, struct stat *st, char *err) {
    int fd = mapped_open_file(path, st);
    if (fd >= 0) return fd;
    if (fd == -1) return fail(err, "cannot open data file %s: %s", path, strerror(errno));
    if (S_ISDIR(st->st_mode) || !path[0])
        return fail(err, "%s is not a file; name a file or a quoted pattern such as \"%s/*.bin\"",
                    path, path);
    return fail(err,
                "%s is not a file but %s, and data are read in any order; save it to a file, or "
                "make shards of it: data/tokenize --input - reads standard input",
                path, S_ISFIFO(st->st_mode) ? "a pipe" : "a device or a socket");
}

/* Warns on stderr about a file that begins as a shard and is taken as text for its name. */
static inline void data_warn_shard(const char *path) {
    fprintf(
        stderr,
        "warning: %s begins as a token shard does, but its name ends in .txt, so it is taken as "
        "text; if it is a shard, rename it to .bin\n",
        path);
}

/* Finds out what an open file is: sets its size, its tokens and *is_text. */
static inline int data_examine(const Data *d, DataFile *f, int fd, const struct stat *st,
                               int *is_text, char *err) {
    unsigned char head[DATA_HEADER_BYTES];
    if ((uint64_t)st->st_size > (uint64_t)SIZE_MAX / 2)
        return fail(err, "data file %s is too large for this machine", f->path);
    f->bytes = (uint64_t)st->st_size;
    f->device = st->st_dev;
    f->inode = st->st_ino;
    ssize_t n = file_read_at(fd, head, sizeof head, 0);
    if (n < 0) return fail(err, "cannot read data file %s: %s", f->path, strerror(errno));
    int magic = n >= 4 && data_u32(head) == DATA_MAGIC;
    *is_text = data_ends_with(f->path, ".txt") || (!data_ends_with(f->path, ".bin") && !magic);
    if (*is_text && magic && d->part != DATA_VAL)
        data_warn_shard(f->path); /* once for both parts */
    f->first = 0;
    f->count = (size_t)f->bytes;
    return *is_text ? 0 : data_read_header(f, head, (size_t)n, err);
}

/* Unmaps the file that was not read for longest. */
static inline void data_unmap_oldest(Data *d) {
    int oldest = 0;
    for (int i = 1; i < d->num_mapped; i++)
        if (d->files[d->mapped[i]].used < d->files[d->mapped[oldest]].used) oldest = i;
    DataFile *f = &d->files[d->mapped[oldest]];
    mapped_close(f->map);
    f->map = NULL;
    d->mapped[oldest] = d->mapped[--d->num_mapped];
}

/* Maps an open file, and takes over its descriptor. */
static inline int data_map_open(Data *d, size_t file, int fd, char *err) {
    DataFile *f = &d->files[file];
    if (d->num_mapped == d->max_mapped) data_unmap_oldest(d);
    f->map = mapped_make(fd, f->path, (size_t)f->bytes, err);
    if (!f->map) return -1;
    d->mapped[d->num_mapped++] = file;
    f->used = d->clock;
    return 0;
}

/* Maps a file unless it is mapped. Returns 0, or -1 with a message, also if another file has taken
   its name since data_open. */
static inline int data_map(Data *d, size_t file, char *err) {
    DataFile *f = &d->files[file];
    struct stat st;
    f->used = ++d->clock;
    if (f->map) return 0;
    int fd = data_open_file(f->path, &st, err);
    if (fd < 0) return -1;
    if (st.st_dev == f->device && st.st_ino == f->inode && (uint64_t)st.st_size >= f->bytes)
        return data_map_open(d, file, fd, err);
    close(fd);
    return fail(err, "%s: the file was replaced or cut while the run was reading it; restore it",
                f->path);
}

static inline int data_compare_paths(const void *a, const void *b) {
    return strcmp(((const DataFile *)a)->path, ((const DataFile *)b)->path);
}

/* Adds the data files of a folder to a message, the first `most` by name. Returns how many. */
static inline int data_name_some(char *text, size_t size, const char *folder, int most) {
    struct dirent **entries;
    char path[FILE_PATH_SIZE];
    int named = 0, n = scandir(folder, &entries, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        const char *name = entries[i]->d_name;
        if (strcmp(folder, ".")) file_path(path, "%s/%s", folder, name);
        else file_path(path, "%s", name);
        int data = data_ends_with(name, ".txt") || data_ends_with(name, ".bin");
        if (data && name[0] != '.' && named < most &&
            strlen(text) + strlen(path) + strlen(", ") < size) {
            if (named++) strcat(text, ", ");
            strcat(text, path);
        }
        free(entries[i]);
    }
    if (n >= 0) free(entries);
    return named;
}

/* Says that there is no such data file, and what there is beside it. Returns -1. */
static inline int data_fail_missing(const char *pattern, char *err) {
    char folder[FILE_PATH_SIZE], other[FILE_PATH_SIZE], some[512] = "";
    int wild = strpbrk(pattern, "*?[") != NULL;
    file_folder(folder, pattern);
    file_path(other, "%s/shakespeare.txt", folder);
    if (data_ends_with(pattern, "/tinyshakespeare.txt") && !access(other, F_OK))
        return fail(err,
                    "data file %s does not exist, but %s does, another edition: train on it with "
                    "--data %s",
                    pattern, other, other);
    int named = data_name_some(some, sizeof some, folder, 3);
    return fail(err, "%s %.300s%s%s%s; see data/README.md for how to get data",
                wild ? "no data file matches" : "data file", pattern, wild ? "" : " does not exist",
                named ? "; its folder has " : "", some);
}

/* Whether no file has this name or matches this pattern. */
static inline int data_is_missing(const char *pattern) {
    glob_t g;
    struct stat st;
    memset(&g, 0, sizeof(g));
    int missing = stat(pattern, &st) != 0 && file_glob(pattern, &g) == GLOB_NOMATCH;
    globfree(&g);
    return missing;
}

/* Fills files with the names that match, sorted by byte value in every locale. */
static inline int data_list(Data *d, const char *pattern, char *err) {
    glob_t g;
    memset(&g, 0, sizeof(g));
    struct stat st;
    int literal = stat(pattern, &st) == 0; /* an existing name may contain [ or * */
    int rc = literal ? 0 : file_glob(pattern, &g);
    size_t n = literal ? 1 : rc == 0 ? g.gl_pathc : 0;
    if (n == 0) {
        globfree(&g);
        if (rc == GLOB_NOSPACE) return fail(err, "out of memory listing data files %s", pattern);
        if (rc == GLOB_ABORTED) return fail(err, "cannot read the folder of %s", pattern);
        return data_fail_missing(pattern, err);
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
        mapped_close(d->files[i].map);
        free(d->files[i].path);
    }
    free(d->files);
    memset(d, 0, sizeof(*d));
}

/* Takes the part in use of a file. */
static inline int data_take_part(const Data *d, DataFile *f, char *err) {
    size_t tenth = f->count / 10;
    if (d->part == DATA_VAL && !d->is_text)
        return fail(err,
                    "%s is a token shard, which is never split into training and "
                    "validation data; name a validation shard",
                    f->path);
    if (d->part == DATA_TRAIN && d->is_text) f->count -= tenth;
    if (d->part == DATA_VAL) {
        f->first += f->count - tenth;
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

/* Mixes a file's size, header and samples into *hash and into the file's own fingerprint. */
static inline int data_sample(DataFile *f, int fd, uint64_t *hash, char *err) {
    unsigned char b[DATA_HEADER_BYTES];
    uint64_t room = f->bytes > 64 ? f->bytes - 64 : 0, h = rng_mix(*hash ^ f->bytes);
    uint64_t own = rng_mix(f->bytes);
    for (uint64_t s = 0; s <= 64; s++) { /* the header, then the samples */
        uint64_t i = s ? s - 1 : 0, most = s ? 64 : DATA_HEADER_BYTES;
        uint64_t at = room / 63 * i + room % 63 * i / 63; /* room * i / 63 without overflow */
        size_t n = (size_t)(f->bytes - at < most ? f->bytes - at : most);
        ssize_t got = file_read_at(fd, b, n, at);
        if (got < 0) return fail(err, "cannot read data file %s: %s", f->path, strerror(errno));
        if ((size_t)got < n)
            return fail(err, "%s: the file became shorter while it was being read", f->path);
        for (size_t k = 0; k < n; k++) {
            h = rng_mix(h ^ b[k]);
            own = rng_mix(own ^ b[k]);
        }
    }
    f->fingerprint = own;
    *hash = h;
    return 0;
}

/* Sets d->checksum. */
static inline int data_sample_all(Data *d, char *err) {
    struct stat st;
    uint64_t h = rng_mix(d->num_files * 2 + (uint64_t)d->is_text);
    h = rng_mix(h ^ (uint64_t)(d->is_text ? d->part : DATA_ALL));
    for (size_t k = 0; k < d->num_files; k++) {
        DataFile *f = &d->files[k];
        int fd = f->map ? f->map->fd : data_open_file(f->path, &st, err);
        if (fd < 0) return -1;
        int status = data_sample(f, fd, &h, err);
        if (!f->map) close(fd);
        if (status) return -1;
    }
    d->checksum = h;
    return 0;
}

/* Refuses a file whose tokens are not of the tokenizer of the files before it. */
static inline int data_take_tokenizer(Data *d, size_t file, char *err) {
    const DataFile *f = &d->files[file];
    char here[TOKENIZER_ID_SIZE], before[TOKENIZER_ID_SIZE];
    if (file == 0) d->tokenizer = f->tokenizer;
    if (tokenizer_id_agree(d->tokenizer, f->tokenizer)) {
        if (f->tokenizer.fingerprint) d->tokenizer = f->tokenizer;
        return 0;
    }
    return fail(err,
                "%s has tokens of the tokenizer %s, but %s has those of %s; one data set has one "
                "tokenizer",
                f->path, tokenizer_id_text(f->tokenizer, here), d->files[0].path,
                tokenizer_id_text(d->tokenizer, before));
}

/* Examines a file, takes its part in use, and maps it if not too many are mapped already. Returns
   0, 1 if the file is empty, or -1 with a message. */
static inline int data_add_file(Data *d, size_t file, char *err) {
    DataFile *f = &d->files[file];
    struct stat st;
    int is_text, fd = data_open_file(f->path, &st, err);
    if (fd < 0) return -1;
    if (!st.st_size) {
        close(fd);
        return 1;
    }
    int status = data_examine(d, f, fd, &st, &is_text, err);
    if (!status && file == 0) d->is_text = is_text;
    if (!status && is_text != d->is_text)
        status = fail(err, "%s is %s but %s is %s; one data set has one kind of file", f->path,
                      is_text ? "text" : "a token shard", d->files[0].path,
                      d->is_text ? "text" : "a token shard");
    if (!status) status = data_take_part(d, f, err);
    if (!status) status = data_take_tokenizer(d, file, err);
    if (!status && d->num_mapped < d->max_mapped) return data_map_open(d, file, fd, err);
    close(fd);
    return status;
}

/* Says on stderr that files without contents were left out. */
static inline void data_note_empty(size_t empty, size_t files, const char *first) {
    fprintf(stderr, "note: %zu of %zu files are empty and left out, the first is %s\n", empty,
            files, first);
}

/* Examines the files of the list and leaves out those that are empty, with a note on stderr. */
static inline int data_add_files(Data *d, char *err) {
    size_t kept = 0, empty = 0;
    char first_empty[FILE_PATH_SIZE] = "";
    for (size_t i = 0; i < d->num_files; i++) {
        DataFile file = d->files[i];
        memset(&d->files[i], 0, sizeof file);
        d->files[kept] = file;
        int status = data_add_file(d, kept, err);
        if (status < 0) return -1;
        if (status == 0) {
            kept++;
            continue;
        }
        if (!empty++) file_path(first_empty, "%s", file.path);
        free(file.path);
        d->files[kept].path = NULL;
    }
    d->num_files = kept;
    if (!kept) return fail(err, "data file %s is empty", first_empty);
    /* The validation part is of the files whose training part was opened with a note. */
    if (empty && d->part != DATA_VAL) data_note_empty(empty, kept + empty, first_empty);
    return 0;
}

/* Opens the files and checks that a row or a step can be drawn. */
static inline int data_open_files(Data *d, const char *pattern, char *err) {
    if (data_list(d, pattern, err) || data_add_files(d, err) || data_sample_all(d, err)) return -1;
    size_t longest = 0;
    for (size_t i = 0; i < d->num_files; i++) {
        d->count += d->files[i].count;
        if (d->files[i].count > d->files[longest].count) longest = i;
    }
    return data_check_length(d, &d->files[longest], err);
}

/* How many files this process may map for one Data. */
static inline int data_most_mapped(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur / 4 >= DATA_MAX_MAPPED)
        return DATA_MAX_MAPPED;
    return max_int(1, (int)(files.rlim_cur / 4));
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
    d->max_mapped = data_most_mapped();
    if (data_open_files(d, pattern, err)) {
        data_close(d);
        return -1;
    }
    d->vocab = d->is_text ? 256 : 65536;
    return 0;
}

static inline size_t data_tokens(const Data *d) { return d->count; }
static inline int data_is_text(const Data *d) { return d->is_text; }

/* A fingerprint of the data in use: sizes, headers, the part, and 64 samples of 64 bytes of every
   file, but no names. It distinguishes data sets; it does not prove that no bit has changed. */
static inline uint64_t data_checksum(const Data *d) { return d->checksum; }

static inline int data_compare_numbers(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The first file of `train` that is also one of `val`, by its fingerprint; NULL if there is none,
   and for two parts of a text that share nothing. */
static inline const DataFile *data_shared(const Data *train, const Data *val) {
    const DataFile *shared = NULL;
    if (train->part == DATA_TRAIN && val->part == DATA_VAL) return NULL;
    uint64_t *known = (uint64_t *)malloc(val->num_files * sizeof *known);
    if (!known) return NULL;
    for (size_t k = 0; k < val->num_files; k++) known[k] = val->files[k].fingerprint;
    qsort(known, val->num_files, sizeof *known, data_compare_numbers);
    for (size_t k = 0; k < train->num_files && !shared; k++)
        if (bsearch(&train->files[k].fingerprint, known, val->num_files, sizeof *known,
                    data_compare_numbers))
            shared = &train->files[k];
    free(known);
    return shared;
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

/* Tokens to copy from a mapped file. */
typedef struct {
    const unsigned char *from;
    int is_text;
    int most; /* the largest token that was copied */
    size_t n;
    int *to;
} DataCopy;

static inline void data_copy_tokens(void *argument) {
    DataCopy *c = (DataCopy *)argument;
    const unsigned char *from = c->from;
    int *to = c->to, most = 0;
    size_t n = c->n;
    for (size_t i = 0; i < n && c->is_text; i++) to[i] = from[i];
    for (size_t i = 0; i < n && !c->is_text; i++) to[i] = from[2 * i] | from[2 * i + 1] << 8;
    for (size_t i = 0; i < n; i++) most = max_int(most, to[i]);
    c->most = most;
}

/* Copies n > 0 tokens from token `start` of a file, which must have them. Returns 0, or -1 with a
   message if a token is outside the vocabulary or the file became shorter. */
static inline int data_read(Data *d, size_t file, size_t start, size_t n, int *to, char *err) {
    DataFile *f = &d->files[file];
    size_t width = d->is_text ? 1 : 2;
    if (data_map(d, file, err)) return -1;
    DataCopy c = {f->map->bytes + f->first + width * start, d->is_text, 0, n, to};
    if (mapped_read(data_copy_tokens, &c, err)) return -1;
    for (size_t i = 0; c.most >= d->vocab; i++)
        if (to[i] >= d->vocab)
            return fail(err,
                        "%s: token %d at position %zu is outside the vocabulary of %d; the data "
                        "was made for another tokenizer, or the vocabulary size is wrong",
                        f->path, to[i], start + i, d->vocab);
    /* Bytes that were cut off read as zero up to the end of their page. */
    return to[n - 1] < 256 && (!d->is_text || !to[n - 1]) ? mapped_whole(f->map, err) : 0;
}

/* Copies n inputs and n targets from token `start` of a file. Returns 0, or -1 with a message. */
static inline int data_copy(Data *d, size_t file, size_t start, int n, int *x, int *y, char *err) {
    if (data_read(d, file, start, 1, x, err) || data_read(d, file, start + 1, (size_t)n, y, err))
        return -1;
    memcpy(x + 1, y, (size_t)(n - 1) * sizeof(int));
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
        if (data_copy(d, file, start, d->T, x + at, y + at, err)) return -1;
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
static inline int data_val_batch(Data *d, size_t first_row, int rows, size_t limit, int *x, int *y,
                                 char *err) {
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
            if (data_copy(d, k, row * T, filled, x + at, y + at, err)) return -1;
            break;
        }
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* writing */

/* Writes a shard of n tokens by file_replace. Returns 0, or -1 with a message. */
static inline int data_write_shard_of(TokenizerId id, const char *path, const uint16_t *tokens,
                                      size_t n, char *err) {
    if (n > UINT32_MAX) return fail(err, "%s: %zu tokens are too many for one shard", path, n);
    size_t bytes = DATA_HEADER_BYTES + 2 * n;
    unsigned char *image = (unsigned char *)calloc(bytes, 1);
    if (!image) return fail(err, "out of memory writing %s", path);
    uint32_t header[7] = {DATA_MAGIC,
                          DATA_VERSION,
                          (uint32_t)n,
                          DATA_TOKENIZER_TAG,
                          (uint32_t)id.kind,
                          (uint32_t)id.fingerprint,
                          (uint32_t)(id.fingerprint >> 32)};
    int words = id.fingerprint ? 7 : 3;
    for (int i = 0; i < 4 * words; i++) image[i] = (unsigned char)(header[i / 4] >> (8 * (i % 4)));
    for (size_t i = 0; i < n; i++) {
        image[DATA_HEADER_BYTES + 2 * i] = (unsigned char)(tokens[i] & 255);
        image[DATA_HEADER_BYTES + 2 * i + 1] = (unsigned char)(tokens[i] >> 8);
    }
    int status = file_replace(path, image, bytes, err);
    free(image);
    return status;
}

/* Writes a shard that does not say what its tokens are. */
static inline int data_write_shard(const char *path, const uint16_t *tokens, size_t n, char *err) {
    TokenizerId unknown = {TOKENIZER_GPT2, 0};
    return data_write_shard_of(unknown, path, tokens, n, err);
}

#endif
