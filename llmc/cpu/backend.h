/*
The CPU backend: everything train_gpt.c asks of a machine. Device memory is host memory here.
*/
#ifndef CM_CPU_BACKEND_H
#define CM_CPU_BACKEND_H

#include "../choices.h"
#include "../config.h"
#include "attention.h"
#include "gemm.h"
#include "layers.h"
#include "linalg.h"

/* Zeroed, 64-byte aligned memory of the device; NULL if there is not enough. */
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

/* Copies to the host, after all work that was queued. Returns 0; or -1 where this or anything before it has
   failed, and `to` is filled with bytes 0xff, which are NaN, so that no caller goes on with old numbers. */
static inline int device_download(void *to, const void *from, size_t bytes) {
    if (device_failure()) memset(to, 0xff, bytes);
    else memcpy(to, from, bytes);
    return device_failure() ? -1 : 0;
}

/* Rows of n bytes, the pitches apart, from one place of device memory to another. */
static inline void device_copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                                    size_t n, size_t rows) {
    for (size_t r = 0; r < rows; r++)
        memcpy((char *)to + r * to_pitch, (const char *)from + r * from_pitch, n);
}

/* An upload that need not be done when the call returns; `from` may be overwritten at once. */
static inline void device_send(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}

/* The n tokens of a batch, in the form that embed_backward wants: DEVICE_TOKENS(n) ints. */
#define DEVICE_TOKENS(N) (N)
static inline void tokens_upload(int *to, const int *tokens, int n, int vocab) {
    (void)vocab;
    device_send(to, tokens, (size_t)n * sizeof *to);
}

/* Waits until all work that was queued is done. Returns 0, or -1 where something has failed. */
static inline int device_wait(void) { return device_failure() ? -1 : 0; }

/* Bytes of device memory that are free; 0: not known, or not to be relied on. */
static inline size_t device_memory_free(void) { return 0; }

/* Rows of logits formed at a time of N, `bytes` each: at most 64 MiB of them, so that memory does not grow with
   B T V; every chunk reads the whole head, so they should not be small. */
static inline int device_logit_rows(int N, size_t bytes) {
    size_t rows = ((size_t)64 << 20) / bytes;
    return (int)min_size((size_t)N, rows < 64 ? 64 : rows);
}

/* Bytes that the backend works in beside the model's own, with R rows of logits at a time; and makes
   sure of them, or returns -1. */
static inline size_t device_workspace(const Config *c, int R, int training) {
    (void)c, (void)R, (void)training;
    return 0;
}
static inline int device_reserve(size_t bytes) {
    (void)bytes;
    return 0;
}

/* The most the device used, in bytes; 0: all is in the process's own memory. */
static inline size_t device_memory_peak(void) { return 0; }

/* Floating-point operations a second that the matrix product reaches, measured, and that the maker
   states; 0: not known. */
static inline void device_peak(double *measured, double *stated) { *measured = *stated = 0; }

/* Work that a device can record and replay: device_replays is 1 where it did it again, else the work is to
   be asked for, and device_recorded to follow. Nothing is replayed before device_replay(1). */
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

/* Facts about the device for a line of the log, as members of a JSON object; nothing if there are none. */
static inline void device_state(char *text, size_t size) {
    if (size) text[0] = 0;
}

/* What the device has chosen by measurement so far goes into `run`, and what every run on it has chosen into
   run.from. A CPU measures nothing. */
static inline void device_choices(Choices *run) { (void)run; }

/* Measures whether GELU is better computed in the matrix product before it or on its own, and sets c.gelu, from
   a layer's tensors (see linear_act_forward and _backward), which are overwritten. */
static inline void device_choose_gelu(Config *c, Choices *run, floatX *y, floatX *h, floatX *x,
                                      const floatX *w, const floatX *b, floatX *dh, floatX *dy,
                                      floatM *db, floatX *dz, const floatX *w2) {
    (void)c, (void)run, (void)y, (void)h, (void)x, (void)w, (void)b;
    (void)dh, (void)dy, (void)db, (void)dz, (void)w2;
}

/* Picks threads and precision. What was measured before is found in `run` (may be NULL). */
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

/* The libraries that were found when the program started, and where; nothing if there are none. */
static inline void device_libraries(char *text, size_t size) {
    if (size) text[0] = 0;
}

/* The machine in one line. */
static inline void device_describe(char *text, size_t size) {
    snprintf(text, size, "CPU, %d thread%s, matrix products by %s", thread_count(),
             thread_count() == 1 ? "" : "s", gemm_describe());
}

#endif
