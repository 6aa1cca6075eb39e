/*
Checkpoints: one file each, whole or absent, checked when read.

A checkpoint is written under a temporary name in its folder, synced to the disk, and only then
renamed. A kill or a full disk at any moment leaves the older checkpoints as they were. Equal
contents give equal bytes; the file has no time stamp.

The file, little-endian, every part padded with zero bytes to a multiple of 8:

    "cm.c checkpoint 2\n"                                 magic and version (18 bytes, padded to 24)
    u64 length, text                                      header: lines "key=value\n"
    records, one per tensor:
        u64 name length (at least 1), name
        u64 dtype                                         0 f32, 1 f64, 2 bf16, 3 bytes
        u64 ndim (at most 8), u64 dims[ndim]
        data                                              row-major, size given by dtype and dims
    u64 0                                                 where a name length would be: the end
    u64 size of the whole file                            finds truncated and overlong files
    u64 checksum of all bytes before it                   checkpoint_hash below

Version 1 has the same layout; its records name the optimizer's state differently (run.h).

Writing, tensors fed in pieces of any size:

    CkptWriter w;
    ckpt_begin(&w, path, "step=120\nseed=1\n", err);
    ckpt_tensor(&w, "wte", CKPT_F32, 2, dims, err);
    ckpt_write(&w, data, bytes, err);                     once or more for each tensor
    ckpt_commit(&w, err);

A call that fails removes the temporary file, and every later call on that writer fails with the
message of the first failure. So it is enough to check the result of ckpt_commit.
*/
#ifndef CM_CHECKPOINT_H
#define CM_CHECKPOINT_H

#include "base.h"
#include "files.h"
#include "mapped.h"

#include <ctype.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "checkpoints are little-endian; this machine is not"
#endif

#define CKPT_VERSION 2 /* of files that are written; older versions are read */
#define CKPT_MAGIC "cm.c checkpoint "
#define CKPT_MAX_DIMS 8
#define CKPT_MAX_NAME 4096
#define CKPT_BUFFER ((size_t)1 << 20)
#define CKPT_TAIL 24 /* end mark, file size, checksum */

enum { CKPT_F32 = 0, CKPT_F64 = 1, CKPT_BF16 = 2, CKPT_BYTES = 3 };

/* Bytes of one element, 0 for an unknown dtype. */
static inline int64_t ckpt_dtype_size(int64_t dtype) {
    switch (dtype) { /* a number of the file */
    case CKPT_F32: return 4;
    case CKPT_F64: return 8;
    case CKPT_BF16: return 2;
    case CKPT_BYTES: return 1;
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Checksum                                                                                       */

/* Four independent lanes take 8 bytes each in turn: lane = rotl(lane ^ word, 29) * odd constant. A
   step is a bijection of the lane for a given word, and of the word for a given lane. So is the
   mixing at the end, for each lane. Hence two files that differ within a single 8-byte word never
   have equal checksums, and other damage goes unseen with probability 2^-64. */
typedef struct {
    uint64_t lane[4], bytes;
} CkptHash;

static inline uint64_t ckpt_rotl(uint64_t x, int r) { return x << r | x >> (64 - r); }

static inline void ckpt_hash_init(CkptHash *h) {
    /* Digits of pi after the point, in hexadecimal. */
    h->lane[0] = 0x243F6A8885A308D3u;
    h->lane[1] = 0x13198A2E03707344u;
    h->lane[2] = 0xA4093822299F31D0u;
    h->lane[3] = 0x082EFA98EC4E6C89u;
    h->bytes = 0;
}

/* Every call but the last must pass a multiple of 32 bytes. */
static inline void ckpt_hash_update(CkptHash *h, const void *data, size_t bytes) {
    const uint64_t odd = 0x9E3779B97F4A7C15u; /* 2^64 / golden ratio */
    const unsigned char *p = (const unsigned char *)data;
    uint64_t a = h->lane[0], b = h->lane[1], c = h->lane[2], d = h->lane[3], w[4];
    h->bytes += bytes;
    for (; bytes >= 32; bytes -= 32, p += 32) {
        memcpy(w, p, 32);
        a = ckpt_rotl(a ^ w[0], 29) * odd;
        b = ckpt_rotl(b ^ w[1], 29) * odd;
        c = ckpt_rotl(c ^ w[2], 29) * odd;
        d = ckpt_rotl(d ^ w[3], 29) * odd;
    }
    if (bytes) {
        memset(w, 0, sizeof w);
        memcpy(w, p, bytes);
        a = ckpt_rotl(a ^ w[0], 29) * odd;
        b = ckpt_rotl(b ^ w[1], 29) * odd;
        c = ckpt_rotl(c ^ w[2], 29) * odd;
        d = ckpt_rotl(d ^ w[3], 29) * odd;
    }
    h->lane[0] = a;
    h->lane[1] = b;
    h->lane[2] = c;
    h->lane[3] = d;
}

static inline uint64_t ckpt_hash_final(const CkptHash *h) {
    uint64_t x = h->bytes;
    for (int i = 0; i < 4; i++) {
        x = (x ^ h->lane[i]) * 0x9E3779B97F4A7C15u;
        x ^= x >> 32;
    }
    x *= 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

static inline uint64_t checkpoint_hash(const void *data, size_t bytes) {
    CkptHash h;
    ckpt_hash_init(&h);
    ckpt_hash_update(&h, data, bytes);
    return ckpt_hash_final(&h);
}

/* ---------------------------------------------------------------------------------------------- */
/* Writing                                                                                        */

typedef struct {
    int fd; /* -1 once committed, aborted or failed */
    char path[FILE_PATH_SIZE], temporary[FILE_PATH_SIZE];
    unsigned char *buffer;
    size_t used;     /* bytes in the buffer */
    uint64_t size;   /* bytes of the file so far, with those in the buffer */
    uint64_t needed; /* size of the finished file as far as announced, for a full disk's message */
    uint64_t left;   /* bytes of the current tensor that are still to come */
    char tensor[128];
    CkptHash hash;
    char error[ERR_LEN]; /* of the first failure */
    const char *advice;  /* for a full disk; NULL: that of a run's checkpoint */
} CkptWriter;

/* Removes the temporary file. Does nothing after a commit, an abort or a failure. */
static inline void ckpt_abort(CkptWriter *w) {
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->temporary);
    }
    w->fd = -1;
    free(w->buffer);
    w->buffer = NULL;
    if (!w->error[0]) fail(w->error, "the checkpoint %s is already closed", w->path);
}

/* Records a failure, if it is the first, and removes the temporary file. Returns -1 with the
   message of the first failure. */
__attribute__((format(printf, 3, 4))) static inline int ckpt_fail(CkptWriter *w, char *err,
                                                                  const char *format, ...) {
    char text[ERR_LEN];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!w->error[0]) memcpy(w->error, text, ERR_LEN);
    ckpt_abort(w);
    return fail(err, "%s", w->error);
}

static inline int ckpt_list(const char *dir, int64_t **steps, char *err);

/* What remains of a run whose checkpoint could not be written for lack of room. */
static inline const char *ckpt_what_is_kept(const CkptWriter *w) {
    char folder[FILE_PATH_SIZE], unused[ERR_LEN];
    int64_t *steps;
    if (w->advice) return w->advice;
    file_folder(folder, w->path);
    int count = ckpt_list(folder, &steps, unused);
    free(steps);
    return count > 0 ? "Older checkpoints are kept; free some space and resume"
                     : "It is the first one, so that nothing of the run is saved but its log; free "
                       "some space and resume, which begins anew";
}

static inline int ckpt_fail_write(CkptWriter *w, int code, char *err) {
    int full = code == ENOSPC || code == EDQUOT || code == EFBIG;
    return ckpt_fail(w, err, "cannot write the checkpoint %s: %s; it needs %llu bytes%s%s", w->path,
                     strerror(code), (unsigned long long)w->needed, full ? ". " : "",
                     full ? ckpt_what_is_kept(w) : "");
}

static inline int ckpt_flush(CkptWriter *w, char *err) {
    ckpt_hash_update(&w->hash, w->buffer, w->used);
    if (file_write_all(w->fd, w->buffer, w->used)) return ckpt_fail_write(w, errno, err);
    w->used = 0;
    return 0;
}

static inline int ckpt_put(CkptWriter *w, const void *data, uint64_t bytes, char *err) {
    const unsigned char *p = (const unsigned char *)data;
    if (w->fd < 0) return fail(err, "%s", w->error);
    w->size += bytes;
    if (w->needed < w->size) w->needed = w->size;
    while (bytes) {
        size_t part = bytes < CKPT_BUFFER - w->used ? (size_t)bytes : CKPT_BUFFER - w->used;
        memcpy(w->buffer + w->used, p, part);
        w->used += part;
        p += part;
        bytes -= part;
        if (w->used == CKPT_BUFFER && ckpt_flush(w, err)) return -1;
    }
    return 0;
}

static inline int ckpt_put_u64(CkptWriter *w, uint64_t value, char *err) {
    return ckpt_put(w, &value, 8, err);
}

static inline int ckpt_pad(CkptWriter *w, char *err) {
    const char zeros[8] = {0};
    return ckpt_put(w, zeros, -w->size & 7, err);
}

/* Announces that `bytes` more will be written, so that a full disk is found before the writing
   starts. ckpt_tensor announces its data itself. */
static inline int ckpt_reserve(CkptWriter *w, uint64_t bytes, char *err) {
    if (w->fd < 0) return fail(err, "%s", w->error);
    uint64_t total = w->size + bytes + CKPT_TAIL, waiting = bytes + CKPT_TAIL + w->used;
    if (w->needed < total) w->needed = total;
    int64_t available = file_free_bytes(w->fd);
    if ((uint64_t)available >= waiting) return 0;
    return ckpt_fail(w, err,
                     "no room for the checkpoint %s: it needs %llu bytes, %llu of them still to "
                     "be written, and the disk has %lld free. %s",
                     w->path, (unsigned long long)w->needed, (unsigned long long)waiting,
                     (long long)available, ckpt_what_is_kept(w));
}

/* Opens the temporary file and writes the header, lines "key=value\n". The folder of `path` must
   exist. Returns 0, or -1 with a message. */
static inline int ckpt_begin(CkptWriter *w, const char *path, const char *header, char *err) {
    char magic[32];
    memset(w, 0, sizeof *w);
    w->fd = -1;
    file_path(w->path, "%s", path);
    if (!w->path[0]) return ckpt_fail(w, err, "the path %.80s... is too long", path);
    for (const char *line = header; *line; line = strchr(line, '\n') + 1) {
        const char *end = strchr(line, '\n'), *equal = strchr(line, '=');
        if (!end || !equal || equal == line || equal > end)
            return ckpt_fail(w, err, "checkpoint %s: the header line \"%.40s\" is not key=value",
                             path, line);
    }
    file_path(w->temporary, "%s.tmp-%ld", path, (long)getpid());
    w->buffer = (unsigned char *)malloc(CKPT_BUFFER);
    if (!w->buffer) return ckpt_fail(w, err, "out of memory while writing the checkpoint %s", path);
    w->fd = file_open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC);
    if (w->fd < 0)
        return ckpt_fail(w, err,
                         "cannot create %s: %s; check that the folder exists and is writable",
                         w->temporary, strerror(errno));
    ckpt_hash_init(&w->hash);
    int length = snprintf(magic, sizeof magic, CKPT_MAGIC "%d\n", CKPT_VERSION);
    if (ckpt_put(w, magic, (uint64_t)length, err) || ckpt_pad(w, err) ||
        ckpt_put_u64(w, strlen(header), err) || ckpt_put(w, header, strlen(header), err))
        return -1;
    return ckpt_pad(w, err);
}

/* Ends the tensor that is being written, which must be complete. */
static inline int ckpt_end_tensor(CkptWriter *w, char *err) {
    if (w->fd < 0) return fail(err, "%s", w->error);
    if (w->left)
        return ckpt_fail(w, err, "checkpoint %s: tensor %s lacks %llu bytes of its data", w->path,
                         w->tensor, (unsigned long long)w->left);
    return ckpt_pad(w, err);
}

/* Bytes of a tensor; -1 if dtype, number of dimensions or a dimension is not valid. */
static inline int64_t ckpt_tensor_bytes(int64_t dtype, int64_t ndim, const int64_t *dims) {
    int64_t bytes = ckpt_dtype_size(dtype);
    if (!bytes || ndim < 0 || ndim > CKPT_MAX_DIMS) return -1;
    for (int i = 0; i < ndim; i++)
        if (dims[i] < 0 || __builtin_mul_overflow(bytes, dims[i], &bytes)) return -1;
    return bytes;
}

/* Bytes that a tensor's record takes in a file, its data included. */
static inline uint64_t ckpt_record_bytes(const char *name, int dtype, int ndim,
                                         const int64_t *dims) {
    uint64_t data = (uint64_t)ckpt_tensor_bytes(dtype, ndim, dims), text = strlen(name);
    return 8 + ((text + 7) & ~(uint64_t)7) + 16 + 8 * (uint64_t)ndim + ((data + 7) & ~(uint64_t)7);
}

static inline int ckpt_tensor(CkptWriter *w, const char *name, int dtype, int ndim,
                              const int64_t *dims, char *err) {
    if (ckpt_end_tensor(w, err)) return -1;
    int64_t bytes = ckpt_tensor_bytes(dtype, ndim, dims);
    if (!*name || strlen(name) > CKPT_MAX_NAME || bytes < 0)
        return ckpt_fail(w, err,
                         "checkpoint %s: tensor \"%.80s\" has no valid name, dtype or shape",
                         w->path, name);
    if (ckpt_put_u64(w, strlen(name), err) || ckpt_put(w, name, strlen(name), err) ||
        ckpt_pad(w, err) || ckpt_put_u64(w, (uint64_t)dtype, err) ||
        ckpt_put_u64(w, (uint64_t)ndim, err))
        return -1;
    for (int i = 0; i < ndim; i++)
        if (ckpt_put_u64(w, (uint64_t)dims[i], err)) return -1;
    snprintf(w->tensor, sizeof w->tensor, "%s", name);
    w->left = (uint64_t)bytes;
    return ckpt_reserve(w, (uint64_t)bytes, err);
}

static inline int ckpt_write(CkptWriter *w, const void *data, int64_t bytes, char *err) {
    if (w->fd < 0) return fail(err, "%s", w->error);
    if (bytes < 0 || (uint64_t)bytes > w->left)
        return ckpt_fail(w, err,
                         "checkpoint %s: %lld bytes are too many for tensor %s, which lacks %llu",
                         w->path, (long long)bytes, w->tensor, (unsigned long long)w->left);
    w->left -= (uint64_t)bytes;
    return ckpt_put(w, data, (uint64_t)bytes, err);
}

/* Finishes the file. Once it has returned 0, the checkpoint is on the disk under its name. */
static inline int ckpt_commit(CkptWriter *w, char *err) {
    char folder[FILE_PATH_SIZE];
    if (ckpt_end_tensor(w, err) || ckpt_put_u64(w, 0, err) || ckpt_put_u64(w, w->size + 16, err))
        return -1;
    if (ckpt_flush(w, err)) return -1;
    uint64_t sum = ckpt_hash_final(&w->hash);
    if (file_write_all(w->fd, &sum, 8) || file_sync(w->fd)) return ckpt_fail_write(w, errno, err);
    int status = close(w->fd), code = errno;
    w->fd = -1;
    if (!status && rename(w->temporary, w->path)) {
        status = -1;
        code = errno;
    }
    if (status) {
        unlink(w->temporary);
        return ckpt_fail_write(w, code, err);
    }
    file_folder(folder, w->path);
    if (file_sync_folder(folder))
        return ckpt_fail(w, err, "cannot sync the folder %s: %s", folder, strerror(errno));
    ckpt_abort(w);
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Reading                                                                                        */

typedef struct {
    const char *name; /* in the file, not zero-terminated */
    int64_t name_length;
    int dtype, ndim;
    int64_t dims[CKPT_MAX_DIMS];
    const void *data; /* aligned to 8 bytes, NULL when empty */
    int64_t bytes;
} CkptRecord;

typedef struct {
    Mapped *file;
    const unsigned char *map; /* the whole file */
    uint64_t size;
    const char *header;
    uint64_t header_length;
    CkptRecord *records;
    int count;
    int version;
} Ckpt;

static inline void ckpt_close(Ckpt *c) {
    mapped_close(c->file);
    free(c->records);
    memset(c, 0, sizeof *c);
}

static inline uint64_t ckpt_u64(const unsigned char *p) {
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

/* Moves *at past `bytes` and their padding and returns where they begin; NULL if they would run
   into the tail. */
static inline const unsigned char *ckpt_take(const Ckpt *c, uint64_t *at, uint64_t bytes) {
    uint64_t end = c->size - 16, start = *at;
    if (bytes > end - start || ((bytes + 7) & ~(uint64_t)7) > end - start) return NULL;
    *at = start + ((bytes + 7) & ~(uint64_t)7);
    return c->map + start;
}

/* Reads the record at *at. Returns 0, 1 at the end mark, -1 if the bytes are no record. */
static inline int ckpt_read_record(const Ckpt *c, uint64_t *at, CkptRecord *r) {
    const unsigned char *p = ckpt_take(c, at, 8);
    uint64_t name_length = p ? ckpt_u64(p) : CKPT_MAX_NAME + 1;
    if (name_length == 0) return *at == c->size - 16 ? 1 : -1;
    if (name_length > CKPT_MAX_NAME) return -1;
    r->name = (const char *)ckpt_take(c, at, name_length);
    r->name_length = (int64_t)name_length;
    if (!r->name || !(p = ckpt_take(c, at, 16))) return -1;
    uint64_t dtype = ckpt_u64(p), ndim = ckpt_u64(p + 8);
    if (dtype > CKPT_BYTES || ndim > CKPT_MAX_DIMS || !(p = ckpt_take(c, at, 8 * ndim))) return -1;
    r->dtype = (int)dtype;
    r->ndim = (int)ndim;
    memcpy(r->dims, p, 8 * ndim);
    r->bytes = ckpt_tensor_bytes(r->dtype, r->ndim, r->dims);
    if (r->bytes < 0) return -1;
    r->data = ckpt_take(c, at, (uint64_t)r->bytes);
    if (!r->data) return -1;
    if (!r->bytes) r->data = NULL;
    return 0;
}

/* Finds the header and the records of a mapped file whose checksum is right. Bounds are checked
   nevertheless: a checksum proves that nothing changed, not that the writer was sound. Returns 0;
   -1 if the records are not sound; -2 without memory. */
static inline int ckpt_index(Ckpt *c) {
    uint64_t at = 24;
    const unsigned char *p = ckpt_take(c, &at, 8);
    c->header_length = p ? ckpt_u64(p) : 0;
    c->header = p ? (const char *)ckpt_take(c, &at, c->header_length) : NULL;
    if (!c->header) return -1;
    for (int capacity = 0;; c->count++) {
        if (c->count == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            void *grown = realloc(c->records, (size_t)capacity * sizeof *c->records);
            if (!grown) return -2;
            c->records = (CkptRecord *)grown;
        }
        memset(&c->records[c->count], 0, sizeof *c->records);
        int status = ckpt_read_record(c, &at, &c->records[c->count]);
        if (status) return status < 0 ? -1 : 0;
    }
}

/* Says what is wrong with a mapped file; NULL if nothing is. *damaged is 0 if the file is whole but
   of another version, or if there is no memory to read it. */
static inline const char *ckpt_examine(Ckpt *c, int *damaged) {
    const size_t magic = strlen(CKPT_MAGIC);
    *damaged = 1;
    if (c->size < magic && memcmp(c->map, CKPT_MAGIC, (size_t)c->size) == 0)
        return "is truncated: not even its first line is complete";
    if (c->size < magic || memcmp(c->map, CKPT_MAGIC, magic))
        return "is not a cm.c checkpoint, or its first bytes are damaged";
    if (c->size < magic + 2) return "is truncated: not even its first line is complete";
    c->version = c->map[magic] - '0';
    if (c->version < 1 || c->version > CKPT_VERSION || c->map[magic + 1] != '\n') {
        *damaged = 0;
        return "has a format version this program does not know: use a newer cm.c";
    }
    if (c->size < 24 + 8 + CKPT_TAIL) return "is truncated: it ends inside its header";
    if (c->size % 8 || ckpt_u64(c->map + c->size - 16) != c->size)
        return "is truncated or damaged: its length is not the one it was written with";
    if (checkpoint_hash(c->map, (size_t)c->size - 8) != ckpt_u64(c->map + c->size - 8))
        return "is damaged: its checksum does not match its contents";
    int status = ckpt_index(c);
    if (status == -1) return "is damaged: its records run past its end";
    *damaged = 0;
    return status ? "cannot be read: out of memory" : NULL;
}

/* Why a checkpoint cannot be opened: it cannot be read or is of another version; its contents are
   broken; there is no such file. */
typedef enum { CKPT_UNREADABLE, CKPT_DAMAGED, CKPT_MISSING } CkptProblem;

typedef struct {
    Ckpt *c;
    int damaged;
    const char *problem;
} CkptExamination;

static inline void ckpt_examine_mapped(void *argument) {
    CkptExamination *e = (CkptExamination *)argument;
    e->problem = ckpt_examine(e->c, &e->damaged);
}

/* Maps a file. Returns 0, or -1 with a message. */
static inline int ckpt_map(Ckpt *c, const char *path, CkptProblem *problem, char *err) {
    struct stat st;
    *problem = CKPT_UNREADABLE;
    memset(c, 0, sizeof *c);
    int fd = mapped_open_file(path, &st);
    if (fd == -2) return fail(err, "the checkpoint %s is not a regular file", path);
    if (fd < 0) {
        if (errno == ENOENT) *problem = CKPT_MISSING;
        return fail(err, "cannot open the checkpoint %s: %s", path, strerror(errno));
    }
    c->size = (uint64_t)st.st_size;
    if (!c->size) {
        close(fd);
        *problem = CKPT_DAMAGED;
        return fail(err, "the checkpoint %s is empty", path);
    }
    c->file = mapped_make(fd, path, (size_t)c->size, err);
    if (!c->file) return -1;
    c->map = c->file->bytes;
    return 0;
}

/* Verifies a mapped file. Returns 0, or -1 with a message and *problem; the file is then closed. */
static inline int ckpt_verify(Ckpt *c, const char *path, CkptProblem *problem, char *err) {
    CkptExamination e = {c, 1, NULL};
    int status = mapped_read(ckpt_examine_mapped, &e, err);
    if (!status && e.problem) status = fail(err, "the checkpoint %s %s", path, e.problem);
    if (!status) status = mapped_whole(c->file, err);
    if (!status) return 0;
    *problem = e.damaged || !e.problem ? CKPT_DAMAGED : CKPT_UNREADABLE;
    ckpt_close(c);
    return -1;
}

/* Opens, maps and verifies a file. Returns 0, or -1 with a message and *problem. */
static inline int ckpt_open_checked(Ckpt *c, const char *path, CkptProblem *problem, char *err) {
    if (ckpt_map(c, path, problem, err)) return -1;
    return ckpt_verify(c, path, problem, err);
}

static inline int ckpt_open(Ckpt *c, const char *path, char *err) {
    CkptProblem unused;
    return ckpt_open_checked(c, path, &unused, err);
}

/* The value of a key in lines "key=value\n", of *length bytes; NULL if there is no such key. */
static inline const char *header_find(const char *text, uint64_t size, const char *key,
                                      size_t *length) {
    const char *line = text, *end = text + size;
    size_t key_length = strlen(key);
    while (line < end) {
        const char *newline = (const char *)memchr(line, '\n', (size_t)(end - line));
        if (!newline) return NULL;
        *length = (size_t)(newline - line);
        if (*length > key_length && line[key_length] == '=' && !memcmp(line, key, key_length)) {
            *length -= key_length + 1;
            return line + key_length + 1;
        }
        line = newline + 1;
    }
    return NULL;
}

/* Copies the value of a key. Returns -1 if there is no such key, or if the value does not fit. */
static inline int header_value(const char *text, uint64_t text_size, const char *key, char *value,
                               size_t size) {
    size_t length;
    const char *found = header_find(text, text_size, key, &length);
    if (!found || length >= size) return -1;
    memcpy(value, found, length);
    value[length] = 0;
    return 0;
}

static inline int ckpt_value(const Ckpt *c, const char *key, char *value, size_t size) {
    return header_value(c->header, c->header_length, key, value, size);
}

static inline int ckpt_has_value(const Ckpt *c, const char *key) {
    char value[CKPT_MAX_NAME];
    return !ckpt_value(c, key, value, sizeof value);
}

/* A number of the header from `least` to `most`. Returns 0, or -1 with a message if there is no
   such key or if its value is not such a number. */
static inline int ckpt_number_in(const Ckpt *c, const char *key, uint64_t least, uint64_t most,
                                 uint64_t *value, char *err) {
    char text[64];
    if (ckpt_value(c, key, text, sizeof text))
        return fail(err, "the checkpoint's header lacks %s", key);
    if (parse_whole(text, most, value) || *value < least)
        return fail(err, "the checkpoint's header has %s=%s, which is no number from %llu to %llu",
                    key, text, (unsigned long long)least, (unsigned long long)most);
    return 0;
}

/* A whole number of the header. Returns 0, or -1 with a message. */
static inline int ckpt_number(const Ckpt *c, const char *key, uint64_t *value, char *err) {
    return ckpt_number_in(c, key, 0, UINT64_MAX, value, err);
}

/* The record of that name, or NULL. */
static inline const CkptRecord *ckpt_record(const Ckpt *c, const char *name) {
    int64_t length = (int64_t)strlen(name);
    for (int i = 0; i < c->count; i++)
        if (c->records[i].name_length == length &&
            !memcmp(c->records[i].name, name, (size_t)length))
            return &c->records[i];
    return NULL;
}

/* The data of a tensor, valid until ckpt_close; NULL if there is no such tensor or if it is empty.
   Each output may be NULL; dims has room for CKPT_MAX_DIMS. */
static inline const void *ckpt_find(const Ckpt *c, const char *name, int *dtype, int *ndim,
                                    int64_t *dims, int64_t *bytes) {
    const CkptRecord *r = ckpt_record(c, name);
    if (!r) return NULL;
    if (dtype) *dtype = r->dtype;
    if (ndim) *ndim = r->ndim;
    if (dims) memcpy(dims, r->dims, sizeof r->dims);
    if (bytes) *bytes = r->bytes;
    return r->data;
}

/* ---------------------------------------------------------------------------------------------- */
/* The folder of checkpoints                                                                      */

/* DIR/step_00000120.ckpt; path has FILE_PATH_SIZE bytes. */
static inline void ckpt_path(char *path, const char *dir, int64_t step) {
    file_path(path, "%s/step_%08lld.ckpt", dir, (long long)step);
}

/* The step in the name of a file, or -1 for a name that ckpt_path would not make. */
static inline int64_t ckpt_step_of(const char *name) {
    char expected[64];
    long long step;
    if (sscanf(name, "step_%18lld.ckpt", &step) != 1 || step < 0) return -1;
    snprintf(expected, sizeof expected, "step_%08lld.ckpt", step);
    return strcmp(name, expected) == 0 ? (int64_t)step : -1;
}

static inline int ckpt_compare_steps(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The steps of all checkpoints in dir in rising order, for the caller to free. Returns how many
   there are (0 if there is no such folder), or -1 with a message. */
static inline int ckpt_list(const char *dir, int64_t **steps, char *err) {
    int count = 0, capacity = 0;
    struct dirent *entry;
    *steps = NULL;
    DIR *folder = opendir(dir);
    if (!folder && errno == ENOENT) return 0;
    if (!folder) return fail(err, "cannot list the folder %s: %s", dir, strerror(errno));
    while ((entry = readdir(folder)) != NULL) {
        int64_t step = ckpt_step_of(entry->d_name);
        if (step < 0) continue;
        if (count == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            void *grown = realloc(*steps, (size_t)capacity * sizeof **steps);
            if (!grown) {
                free(*steps);
                closedir(folder);
                *steps = NULL;
                return fail(err, "out of memory while listing %s", dir);
            }
            *steps = (int64_t *)grown;
        }
        (*steps)[count++] = step;
    }
    closedir(folder);
    if (count) qsort(*steps, (size_t)count, sizeof **steps, ckpt_compare_steps);
    return count;
}

/* The step of the newest checkpoint in dir, whole or not; -1 if there is none, or if the folder
   cannot be listed. */
static inline int64_t ckpt_newest_step(const char *dir) {
    char err[ERR_LEN];
    int64_t *steps;
    int count = ckpt_list(dir, &steps, err);
    int64_t newest = count > 0 ? steps[count - 1] : -1;
    free(steps);
    return newest;
}

/* Lists the folder once and opens the newest checkpoint that is whole; see ckpt_open_newest.
   *vanished becomes 1 if a file of the list was gone when its turn came. */
static inline int ckpt_open_listed(Ckpt *c, const char *dir, char *path, int *vanished, char *err) {
    int64_t *steps;
    int count = ckpt_list(dir, &steps, err), status = count < 0 ? -1 : 1;
    memset(c, 0, sizeof *c);
    *vanished = 0;
    for (int i = count - 1; i >= 0; i--) {
        CkptProblem problem;
        ckpt_path(path, dir, steps[i]);
        status = ckpt_open_checked(c, path, &problem, err);
        *vanished = status && problem == CKPT_MISSING;
        if (!status || problem != CKPT_DAMAGED) break;
        fprintf(stderr, "warning: %s; trying the one before it\n", err);
        if (i == 0)
            status = fail(err, "every checkpoint in %s is damaged: start the run anew", dir);
    }
    free(steps);
    return status;
}

/* Opens the newest checkpoint that is whole, and names each damaged one on stderr. Returns 0, with
   the path in `path` (FILE_PATH_SIZE bytes); 1 if there are no checkpoints; -1 with a message. A
   checkpoint that cannot be read is an error, because opening an older one would silently lose
   steps. A run that is training deletes old checkpoints when it has written a new one, so where a
   file is gone the folder is listed again. */
static inline int ckpt_open_newest(Ckpt *c, const char *dir, char *path, char *err) {
    enum {
        TRIES = 20
    }; /* a file that is listed and cannot be found, such as a dangling link, stays */
    int status = 1, vanished = 1;
    for (int i = 0; i < TRIES && vanished; i++)
        status = ckpt_open_listed(c, dir, path, &vanished, err);
    return status;
}

/* Deletes all checkpoints but the newest `keep` (none if keep < 1), and temporary files. */
static inline int ckpt_prune(const char *dir, int keep, char *err) {
    char path[FILE_PATH_SIZE];
    int64_t *steps;
    int status = 0, count = ckpt_list(dir, &steps, err);
    if (count < 0) return -1;
    for (int i = 0; keep >= 1 && i < count - keep && !status; i++) {
        ckpt_path(path, dir, steps[i]);
        if (unlink(path) && errno != ENOENT)
            status = fail(err, "cannot delete the old checkpoint %s: %s", path, strerror(errno));
    }
    free(steps);
    file_remove_leftovers(dir, "step_");
    return status;
}

/* Deletes the checkpoints of steps after `step`. Call it on resume: ckpt_prune would otherwise keep
   later checkpoints of the earlier run, damaged ones too, as the newest. The folder is synced
   first: the checkpoint of `step` may be of a process that was killed right after its rename, and a
   power cut must not undo that rename when older checkpoints are deleted. */
static inline int ckpt_discard_after(const char *dir, int64_t step, char *err) {
    char path[FILE_PATH_SIZE];
    int64_t *steps;
    if (file_sync_folder(dir))
        return fail(err, "cannot sync the folder %s: %s", dir, strerror(errno));
    int status = 0, count = ckpt_list(dir, &steps, err);
    if (count < 0) return -1;
    for (int i = 0; i < count && !status; i++) {
        if (steps[i] <= step) continue;
        ckpt_path(path, dir, steps[i]);
        if (unlink(path) && errno != ENOENT)
            status = fail(err, "cannot delete the checkpoint %s: %s", path, strerror(errno));
    }
    free(steps);
    return status;
}

#endif
