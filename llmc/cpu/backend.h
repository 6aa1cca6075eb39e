/*
The CPU backend: every function that train_gpt.c calls on a machine. Device memory is host memory
here.
*/
#ifndef CM_CPU_BACKEND_H
#define CM_CPU_BACKEND_H

#include "../choices.h"
#include "../config.h"
#include "attention.h"
#include "gemm.h"
#include "layers.h"
#include "linalg.h"

/* Returns zeroed memory of the device, aligned to 64 bytes; NULL if there is too little. */
static inline void *device_alloc(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (p) memset(p, 0, bytes);
    return p;
}

static inline void device_free(void *p) { free(p); }
static inline void device_zero(void *p, size_t bytes) { memset(p, 0, bytes); }
static inline void device_upload(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}

/* Copies to the host, after all work that was queued. Returns 0. If this call or anything before
   it has failed, fills `to` with bytes 0xff, which are NaN, and returns -1: no caller continues
   with old numbers. */
static inline int device_download(void *to, const void *from, size_t bytes) {
    if (device_failure()) memset(to, 0xff, bytes);
    else memcpy(to, from, bytes);
    return device_failure() ? -1 : 0;
}

/* Copies `rows` rows of n bytes within device memory. Rows begin to_pitch and from_pitch bytes
   apart. */
static inline void device_copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                                    size_t n, size_t rows) {
    for (size_t r = 0; r < rows; r++)
        memcpy((char *)to + r * to_pitch, (const char *)from + r * from_pitch, n);
}

/* Queues an upload. `from` may be overwritten as soon as the call returns. */
static inline void device_send(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}

/* Uploads the n tokens of a batch in the form that embed_backward reads: DEVICE_TOKENS(n) ints. */
#define DEVICE_TOKENS(N) (N)
static inline void tokens_upload(int *to, const int *tokens, int n, int vocab) {
    (void)vocab;
    device_send(to, tokens, (size_t)n * sizeof *to);
}

/* Waits until all work that was queued is done. Returns 0, or -1 where something has failed. */
static inline int device_wait(void) { return device_failure() ? -1 : 0; }

/* Bytes of device memory that are free; 0 if that is unknown or cannot be relied on. */
static inline size_t device_memory_free(void) { return 0; }

/* How many of N rows of logits, `bytes` each, are formed at a time: at most 64 MiB of them, so
   that memory does not grow with B T V, but not fewer than 64 rows, because every chunk reads
   the whole head. */
static inline int device_logit_rows(int N, size_t bytes) {
    size_t rows = ((size_t)64 << 20) / bytes;
    return (int)min_size((size_t)N, rows < 64 ? 64 : rows);
}

/* device_workspace returns the bytes that the backend needs beside the model's own, with R rows
   of logits at a time. device_reserve allocates them; it returns -1 if there is too little
   memory. */
static inline size_t device_workspace(const Config *c, int R, int training) {
    (void)c;
    (void)R;
    (void)training;
    return 0;
}
static inline int device_reserve(size_t bytes) {
    (void)bytes;
    return 0;
}

/* The most bytes that were allocated on the device; 0 if all memory is the process's own. */
static inline size_t device_memory_peak(void) { return 0; }

/* Floating-point operations a second of the matrix product: as measured, and as the maker
   states; 0 if unknown. */
static inline void device_peak(double *measured, double *stated) { *measured = *stated = 0; }

/* Work that a device can record and replay. device_replays returns 1 if it has replayed the
   work; if it returns 0, the caller queues the work and then calls device_recorded. Nothing is
   replayed before device_replay(1). */
typedef int DeviceGraph;
static inline int device_can_replay(int by_itself) {
    (void)by_itself;
    return 0;
}
static inline void device_replay(int on) { (void)on; }
static inline int device_replays(DeviceGraph *g) {
    (void)g;
    return 0;
}
static inline void device_recorded(DeviceGraph *g) { (void)g; }
static inline void device_graph_free(DeviceGraph *g) { (void)g; }

/* Facts about the device for a line of the log, as members of a JSON object; "" if there are
   none. */
static inline void device_state(char *text, size_t size) {
    if (size) text[0] = 0;
}

/* Puts what this run has chosen by measurement into `run`, and what every run on this device has
   chosen into run->from. A CPU measures nothing. */
static inline void device_choices(Choices *run) { (void)run; }

/* Measures whether GELU is faster in the epilogue of the matrix product or in a kernel of its
   own, and sets c->gelu. The tensors are a layer's (see linear_act_forward and
   linear_act_backward) and are overwritten. */
static inline void device_choose_gelu(Config *c, Choices *run, floatX *y, floatX *h, floatX *x,
                                      const floatX *w, const floatX *b, floatX *dh, floatX *dy,
                                      floatM *db, floatX *dz, const floatX *w2) {
    (void)c;
    (void)run;
    (void)y;
    (void)h;
    (void)x;
    (void)w;
    (void)b;
    (void)dh;
    (void)dy;
    (void)db;
    (void)dz;
    (void)w2;
}

/* Sets the number of threads and the precision. `run` holds earlier measurements and may be
   NULL. Returns 0, or -1 and err. */
static inline int device_setup(Config *c, Choices *run, char *err) {
    (void)run;
#ifdef _OPENMP
    if (c->threads) omp_set_num_threads(c->threads);
#else
    if (c->threads > 1)
        return fail(err, "--threads %d: this program was built without OpenMP", c->threads);
#endif
    return gemm_setup((Compute)c->compute, err);
}

/* Names the libraries that were loaded at start, and their paths; "" if there are none. */
static inline void device_libraries(char *text, size_t size) {
    if (size) text[0] = 0;
}

/* What the bits of a result depend on beside the flags, in one line. */
static inline void device_identity(char *text, size_t size) {
    snprintf(text, size, "CPU, %d thread%s, matrix products by %s", thread_count(),
             thread_count() == 1 ? "" : "s", gemm_describe());
}

/* Describes the machine in one line. */
static inline void device_describe(char *text, size_t size) { device_identity(text, size); }

#endif
