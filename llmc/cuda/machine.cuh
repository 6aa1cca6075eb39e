/*
The state of the CUDA backend: one struct, one variable, however many translation units a program
has. Every unit that includes this file defines cm_gpu as a C++ `inline` variable, and the linker
keeps one definition. The CPU's twin is llmc/cpu/machine.h.

Kernels are queued long before they run, so a failure deep in a step has nobody to return to.
device_fail records it in cm_gpu, and it stays there: from then on LAUNCH and CUDA_CHECK do nothing,
and every download delivers NaN and returns -1. The program asks device_failure() where a step ends,
reports the message and stops.
*/
#ifndef CM_CUDA_MACHINE_CUH
#define CM_CUDA_MACHINE_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "../base.h"
#include "cudnn_api.h"

/* One allocation of the device. The host keeps its size, for device_free. */
typedef struct {
    void *p;
    size_t bytes;
} DeviceBlock;
enum { DEVICE_BLOCKS = 256 };

/* Pinned host memory that uploads leave from. Four slots hold two batches of tokens and targets,
   so that the next batch is read and copied while the device works on the current batch. */
typedef struct {
    void *p;
    size_t bytes;
    cudaEvent_t sent; /* recorded after the copy out of the slot */
} SendSlot;
enum { SEND_SLOTS = 4 };

/* Attention by kernels other than those of attention.cuh, with the arguments of
   attention_forward and attention_backward. They return 0, or -1 if they cannot do a call. */
typedef int (*AttentionForward)(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH,
                                int NKV, int HS, double scale);
typedef int (*AttentionBackward)(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                 const floatX *out, const floatM *lse, int B, int T, int NH,
                                 int NKV, int HS, double scale);

/* cuDNN, once it is loaded (cudnn.cuh). */
typedef struct {
    CudnnHandle handle;
    int started, version;         /* 91900 is 9.19.0 */
    char path[1024], nvrtc[1024]; /* paths of the libraries; "" if there is none */
    char why[320];                /* why the last pass failed */
} Cudnn;
struct CudnnPlan;
enum { CUDNN_PLANS = 16 };

/* What NVML answered last, and when (nvml.cuh). */
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

/* Whether a matrix had no inverse root as it was not positive definite, and as it was not finite,
   for one user of roots; and what device_failure says of it. The device writes `rootless`. */
struct RootUser {
    int rootless[2];
    char sentence[2][256];
};
enum { ROOT_USERS = 4 };

struct GemmPlan;
struct GemmChoice;
struct cublasLtContext;

struct CudaMachine {
    /* the device */
    cudaStream_t stream;       /* the one stream of all work */
    cudaDeviceProp properties; /* zero before device_setup */
    /* Largest dynamic shared memory of a block; device_setup asks the device. */
    size_t shared_limit = 227 << 10;
    char failure[ERR_LEN]; /* the first failure; "" while all is well */

    /* memory (backend.cuh, runtime.cuh) */
    DeviceBlock blocks[DEVICE_BLOCKS];
    size_t used, used_most; /* bytes that are allocated now, and the most that were */
    void *scratch;          /* see cuda_scratch */
    size_t scratch_bytes;
    SendSlot send_slots[SEND_SLOTS];
    int send_next;
    int *tokens;       /* a batch's tokens and their sorted positions, on the host */
    int *token_starts; /* where each token's positions begin, see tokens_sort */
    int tokens_room, token_starts_room; /* ints that these two have room for */
    int replay;                         /* whether graphs are recorded and replayed */

    /* matrix products (gemm_choice.cuh) */
    int allow_tf32 = 1; /* fp32 products may round their input to TF32's ten bits */
    int gemm_measure;   /* the first call of a kind measures the proposed algorithms */
    cublasLtContext *gemm_handle;
    void *gemm_workspace;
    cudaEvent_t gemm_events[2]; /* start and end of a measurement */
    GemmPlan *gemm_plans;       /* a hash table with open addressing, at most half full */
    size_t gemm_plan_count, gemm_plan_room;
    /* Choices, ascending by the bytes of the call, so that equal sets make equal text. */
    GemmChoice *gemm_choices;
    size_t gemm_choice_count, gemm_choice_room;

    /* layers and linear algebra */
    int gelu_fused;   /* GELU is computed in the product's epilogue wherever the library can */
    int la_fast;      /* products of linalg.cuh may round to TF32, see la_fast */
    double *la_parts; /* device memory for partial sums, see la_parts_memory */
    /* Who takes inverse roots now, see la_roots_of, and ROOT_USERS who have, see
       la_rootless_flags; or NULL. */
    char root_user[64] = "weights";
    RootUser *root_users;

    /* attention (attention.cuh, attention_choice.cuh, cudnn.cuh) */

    /* Bytes of the L2 cache for the rows that blocks walk along, see flash_shape. */
    size_t flash_cache = 16 << 20;
    /* set by attention_choose; NULL: the kernels of attention.cuh */
    AttentionForward attention_forward;
    AttentionBackward attention_backward;
    /* How many times faster the best candidate is than attention.cuh; 0: unknown. */
    double attention_faster;
    char attention_note[256]; /* what was chosen, and why, for device_describe */
    int cudnn_wanted;         /* cuDNN was looked for at start */
    int cudnn_fast; /* cuDNN may sum dq in any order; a plan is for one way or the other */
    Cudnn cudnn;
    CudnnFunctions cudnn_api;
    CudnnPlan *cudnn_plans[CUDNN_PLANS];
    int cudnn_plan_count;

    Nvml nvml;
};
inline CudaMachine cm_gpu;

/* The message of the first failure since the program started, or NULL. What the device records
   itself is seen from the next wait on. */
static inline const char *device_failure(void) {
    for (int i = 0; cm_gpu.root_users && i < ROOT_USERS; i++) {
        RootUser *user = &cm_gpu.root_users[i];
        volatile int *rootless = user->rootless;
        if (!rootless[0] && !rootless[1]) continue;
        if (!cm_gpu.failure[0])
            snprintf(cm_gpu.failure, sizeof cm_gpu.failure, "%s", user->sentence[!rootless[0]]);
        rootless[0] = 0;
        rootless[1] = 0;
    }
    return cm_gpu.failure[0] ? cm_gpu.failure : NULL;
}

/* 0, or -1 with the first failure since the program started in err. A program asks this where a
   step ends. */
static inline int device_check(char *err) {
    return device_failure() ? fail(err, "%s", device_failure()) : 0;
}

/* Puts the reason for a refusal into `why` and returns -1. */
__attribute__((format(printf, 3, 4))) static inline int refuse(char *why, size_t size,
                                                               const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (size) vsnprintf(why, size, format, args);
    va_end(args);
    return -1;
}

/* Records a failure that cannot be returned to a caller, and returns -1. Only the first failure is
   kept. */
__attribute__((format(printf, 1, 2))) static inline int device_fail(const char *format, ...) {
    if (cm_gpu.failure[0]) return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(cm_gpu.failure, sizeof cm_gpu.failure, format, args);
    va_end(args);
    return -1;
}

#endif
