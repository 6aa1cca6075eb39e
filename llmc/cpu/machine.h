/*
The state of the CPU backend: one struct, one variable, however many translation units a program has
(CM_STATE in base.h). The CUDA twin is llmc/cuda/machine.cuh.

A failure deep in a step has nobody to return to: a layer has no result but its output. It is
recorded here (device_fail) and stays. The layer leaves its output as it is, every download delivers
NaN and returns -1, and the program, which asks device_failure() where a step ends, reports the
message and stops. The only failure of a CPU is a lack of memory for scratch.
*/
#ifndef CM_CPU_MACHINE_H
#define CM_CPU_MACHINE_H

#include "../base.h"
#include <pthread.h>
#if defined(CM_USE_ONEDNN) && !defined(CM_DOUBLE)
#define GEMM_ONEDNN
#include <dnnl.h>
#endif

/* Scratch of one thread: a buffer for each use, see gemm_scratch. */
enum { GEMM_SCRATCH_PACK, GEMM_SCRATCH_A, GEMM_SCRATCH_B, GEMM_SCRATCH_CALLER, GEMM_SCRATCHES };
typedef struct {
    void *data[GEMM_SCRATCHES];
    size_t bytes[GEMM_SCRATCHES];
} GemmScratch;

#ifdef GEMM_ONEDNN
/* A product in bf16 as oneDNN compiles it: its arguments, and what is compiled for them. */
typedef struct {
    int ta, tb, M, N, K;
    float alpha, beta;
    size_t ldc;
} GemmKey;
typedef struct {
    GemmKey key;
    dnnl_primitive_t primitive;
    dnnl_memory_t A, B, C;
} GemmPrimitive;
/* oneDNN's state for products in bf16. */
enum { GEMM_PRIMITIVES = 256 };
struct GemmOnednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    GemmPrimitive primitives[GEMM_PRIMITIVES]; /* by the hash of the key */
};
#endif

typedef struct {
    char failure[ERR_LEN];     /* the first failure; "" while all is well */
    Compute compute;           /* of gemm_model: fp32 or bf16 */
    pthread_once_t once;       /* guards the making of scratch_key */
    pthread_key_t scratch_key; /* frees a thread's GemmScratch when the thread ends */
    floatM *sums;              /* partial sums of the layers' reductions, see sums_reserve */
    size_t sums_size;          /* numbers that fit in sums */
    char gemm_text[64];        /* what gemm_describe returns */
    /* From gemm_setup(COMPUTE_BF16) on. A pointer, so that units built with and without oneDNN
       agree on the layout of this struct. */
    struct GemmOnednn *onednn;
} CpuMachine;

CM_STATE CpuMachine cm_cpu = {.failure = "", .compute = COMPUTE_FP32, .once = PTHREAD_ONCE_INIT};
CM_STATE __thread GemmScratch *cm_cpu_scratch; /* this thread's, NULL before its first use */
CM_STATE __thread int cm_cpu_rootless;         /* what la_rootless returns to this thread */

/* The message of the first failure since the program started, or NULL. */
static inline const char *device_failure(void) { return cm_cpu.failure[0] ? cm_cpu.failure : NULL; }

/* 0, or -1 and in err the first failure since the program started: what a program asks where a
   step ends. */
static inline int device_check(char *err) {
    return device_failure() ? fail(err, "%s", device_failure()) : 0;
}

/* Records a failure that cannot be returned to a caller; the first one is kept. Any thread may call
   it. Returns -1. */
__attribute__((format(printf, 1, 2))) static inline int device_fail(const char *format, ...) {
    char text[ERR_LEN];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
#pragma omp critical(cm_device_fail)
    if (!cm_cpu.failure[0]) memcpy(cm_cpu.failure, text, sizeof text);
    return -1;
}

#endif
