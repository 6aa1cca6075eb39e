/*
The state of the CUDA backend: one struct, one variable, however many translation units a program has.

`inline` variables are C++17's way to say so: every unit that includes this file defines cm_gpu, and
the linker keeps one definition. The CPU's twin is llmc/cpu/machine.h.

Kernels are queued long before they run, so a failure deep in a step has nobody to return to. It is
recorded here (device_fail) and stays: from then on LAUNCH and CUDA_CHECK do nothing, every download
delivers NaN and returns -1, and the program, which asks device_failure() where a step ends, reports
the message and stops.
*/
#ifndef CM_CUDA_MACHINE_CUH
#define CM_CUDA_MACHINE_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "../base.h"
#include "cudnn_api.h"

/* One allocation of the device. Its size is kept on the host, for device_free. */
typedef struct {
    void *p;
    size_t bytes;
} DeviceBlock;
enum { DEVICE_BLOCKS = 256 };

/* Pinned host memory that uploads leave from. Four slots hold two batches of tokens and targets, so
   that the next batch is read and copied while the device works on the last one. */
typedef struct {
    void *p;
    size_t bytes;
    cudaEvent_t sent; /* the copy out of the slot has ended */
} SendSlot;
enum { SEND_SLOTS = 4 };

/* Attention forward and backward by other kernels than attention.cuh's; -1: they cannot do this call. */
typedef int (*AttentionForward)(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH,
                                int NKV, int HS, double scale);
typedef int (*AttentionBackward)(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                 const floatX *out, const floatM *lse, int B, int T, int NH,
                                 int NKV, int HS, double scale);

/* cuDNN, once it is loaded (cudnn.cuh). */
typedef struct {
    CudnnHandle handle;
    int started, version;         /* 91900: 9.19.0 */
    char path[1024], nvrtc[1024]; /* of the libraries; "" where there is none */
    char why[320];                /* the last failure of a pass */
} Cudnn;
struct CudnnPlan;
enum { CUDNN_PLANS = 16 };

/* What NVML said last, and when (nvml.cuh). */
enum { NVML_TEXT = 96 };
typedef struct {
    char text[NVML_TEXT];
    double time; /* monotonic seconds of the last query */
    int asked;
} NvmlCache;

/* NVML, once it is loaded: the device, the three queries, and the cache. */
typedef struct {
    void *device;
    int (*power)(void *device, unsigned *milliwatts);
    int (*temperature)(void *device, int sensor, unsigned *celsius); /* sensor 0: the die */
    int (*clock)(void *device, int domain, unsigned *mhz); /* domain 1: the multiprocessors */
    NvmlCache cache;
} Nvml;

struct GemmPlan;
struct GemmChoice;
struct cublasLtContext;

struct CudaMachine {
    /* the device */
    cudaStream_t stream;       /* the one stream of all work */
    cudaDeviceProp properties; /* zero before device_setup */
    size_t shared_limit =
        227 << 10;         /* largest dynamic shared memory of a block; 9.0's until setup */
    char failure[ERR_LEN]; /* of the first call that failed; "" while all is well */

    /* memory (backend.cuh, runtime.cuh) */
    DeviceBlock blocks[DEVICE_BLOCKS];
    size_t used, used_most; /* bytes allocated now, and at most */
    void *scratch;          /* of the kernels of one call */
    size_t scratch_bytes;
    SendSlot send_slots[SEND_SLOTS];
    int send_next;
    int *tokens;       /* a batch's tokens and their sorted positions, on the host */
    int *token_starts; /* tokens_sort: of each token's positions */
    int tokens_room, token_starts_room; /* ints that these two have room for */
    int replay;                         /* whether graphs are recorded and replayed */

    /* matrix products (gemm_choice.cuh) */
    int allow_tf32 = 1; /* fp32 products may round their input to TF32's ten bits */
    int gemm_measure;   /* the first call of a kind measures the proposed algorithms */
    cublasLtContext *gemm_handle;
    void *gemm_workspace;
    cudaEvent_t gemm_events[2]; /* start and end of a measurement */
    GemmPlan *gemm_plans;       /* a hash table, open addressing, at most half full */
    size_t gemm_plan_count, gemm_plan_room;
    GemmChoice
        *gemm_choices; /* ascending by the call's bytes, so that equal sets make equal text */
    size_t gemm_choice_count, gemm_choice_room;

    /* layers and linear algebra */
    int gelu_fused;   /* GELU in the product's epilogue, wherever the library can */
    int la_fast;      /* products of linalg.cuh may use TF32, see la_fast() */
    double *la_parts; /* device memory for sums of pieces, allocated once */

    /* attention (attention.cuh, attention_choice.cuh, cudnn.cuh) */
    size_t flash_cache =
        16 << 20; /* bytes of L2 cache that one group of heads may fill, see flash_shape */
    AttentionForward attention_forward; /* chosen by attention_choose; NULL: attention.cuh's own */
    AttentionBackward attention_backward;
    double
        attention_faster; /* time of attention.cuh's kernels over the fastest candidate's; 0: unknown */
    char attention_note[256]; /* what was chosen, and why, for device_describe */
    int cudnn_wanted;         /* cuDNN was looked for */
    int cudnn_fast; /* cuDNN may sum dq in any order; a plan is made for one or the other */
    Cudnn cudnn;
    CudnnFunctions cudnn_api;
    CudnnPlan *cudnn_plans[CUDNN_PLANS];
    int cudnn_plan_count;

    Nvml nvml;
};
inline CudaMachine cm_gpu;

/* The message of the first failure since the program started, or NULL. */
static inline const char *device_failure(void) { return cm_gpu.failure[0] ? cm_gpu.failure : NULL; }

/* 0, or -1 and in err the first failure since the program started: what a program asks where a step ends. */
static inline int device_check(char *err) {
    return device_failure() ? fail(err, "%s", device_failure()) : 0;
}

/* Records a failure that no caller can be told of; the first one stays. Returns -1. */
__attribute__((format(printf, 1, 2))) static inline int device_fail(const char *format, ...) {
    if (cm_gpu.failure[0]) return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(cm_gpu.failure, sizeof cm_gpu.failure, format, args);
    va_end(args);
    return -1;
}

#endif
