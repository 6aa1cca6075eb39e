/*
The CPU backend: everything train_gpt.c asks of a machine. Device memory is host memory here.
*/
#ifndef CM_CPU_BACKEND_H
#define CM_CPU_BACKEND_H

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
static inline void device_upload(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static inline void device_download(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}

/* Picks threads and precision; describes the machine in one line. */
static inline int device_setup(int threads, int compute, char *err) {
#ifdef _OPENMP
    if (threads) omp_set_num_threads(threads);
#else
    if (threads > 1) return fail(err, "--threads %d: this program was built without OpenMP", threads);
#endif
    return gemm_setup((Compute)compute, err);
}

static inline void device_describe(char *text, size_t size) {
    snprintf(text, size, "CPU, %d thread%s, matrix products by %s", thread_count(),
             thread_count() == 1 ? "" : "s", gemm_describe());
}

#endif
