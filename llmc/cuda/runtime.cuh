/*
What every CUDA file stands on: the CUDA headers or the emulator's (dev/emu/emu.h, with CM_EMU), the one
macro that launches kernels, the stream they run on, 16-byte loads, and reductions in a fixed order.

Kernels are launched by LAUNCH alone and take dynamic shared memory by SHARED alone, so that they also
run, block by block, on a CPU. They use no atomics on floating-point numbers: equal runs, equal bits.
*/
#ifndef CM_CUDA_RUNTIME_CUH
#define CM_CUDA_RUNTIME_CUH

#include "machine.cuh"

/* Makes a call of the run-time library: 0, or -1 where it fails, which device_failure() then says. What
   fails here is a lost device, a mistake of ours, or memory that could not be foreseen. After a failure
   no call is made any more. */
#define CUDA_CHECK(CALL) (device_failure() ? -1 : cuda_check((CALL), #CALL, __FILE__, __LINE__))
static inline int cuda_check(cudaError_t status, const char *call, const char *file, int line) {
    if (status == cudaSuccess) return 0;
    return device_fail("%s:%d: %s: %s", file, line, call, cudaGetErrorString(status));
}

/* cudaMalloc where there may be too little memory, which is no failure: 0, or -1 and *p = NULL. */
static inline int cuda_try_malloc(void **p, size_t bytes) {
    *p = NULL;
    if (device_failure()) return -1;
    if (cudaMalloc(p, bytes) == cudaSuccess) return 0;
    cudaGetLastError(); /* the error is answered, so that no later check finds it */
    *p = NULL;
    return -1;
}

/* LAUNCH(kernel, grid, block, bytes of dynamic shared memory, arguments...). A kernel template with a
   comma in its arguments is put in parentheses. SHARED(type, name) is that memory in the kernel,
   aligned to 16 bytes. BLOCK_SHARED(name, [dimensions], type) is static shared memory, likewise. Static and
   dynamic memory of more than 48 KB together have to be asked for, so every size is. */
#ifdef CM_EMU
#define LAUNCH(KERNEL, GRID, BLOCK, BYTES, ...)                                                    \
    (device_failure()                                                                              \
         ? (void)0                                                                                 \
         : emu_launch(#KERNEL, GRID, BLOCK, BYTES, KERNEL __VA_OPT__(, ) __VA_ARGS__))
#define SHARED(TYPE, NAME) TYPE *NAME = (TYPE *)(void *)emu.shared
#define BLOCK_SHARED(NAME, DIMENSIONS, ...)                                                        \
    alignas(16) static __VA_ARGS__ NAME DIMENSIONS;                                                \
    static long NAME##_counted_;                                                                   \
    emu_static_shared(&NAME##_counted_, sizeof NAME)
#define WIDE_ACCESS(P) emu_wide_access(P)
#define UNROLLED_FOR for
constexpr int emulated_time = 1; /* times are the emulator's, by which nothing should be chosen */
#else
#define LAUNCH(KERNEL, GRID, BLOCK, BYTES, ...)                                                    \
    do {                                                                                           \
        static size_t cuda_allowed_; /* of dynamic shared memory, for the kernels of this unit */  \
        size_t cuda_bytes_ = (BYTES);                                                              \
        if (device_failure()) break;                                                               \
        if (cuda_bytes_ > cuda_allowed_) {                                                         \
            CUDA_CHECK(cudaFuncSetAttribute((const void *)(KERNEL),                                \
                                            cudaFuncAttributeMaxDynamicSharedMemorySize,           \
                                            (int)cuda_bytes_));                                    \
            cuda_allowed_ = cuda_bytes_;                                                           \
        }                                                                                          \
        (KERNEL)<<<(GRID), (BLOCK), cuda_bytes_, cm_gpu.stream>>>(__VA_ARGS__);                    \
        CUDA_CHECK(cudaGetLastError());                                                            \
    } while (0)
#define SHARED(TYPE, NAME)                                                                         \
    extern __shared__ __align__(16) unsigned char cuda_shared_[];                                  \
    TYPE *NAME = (TYPE *)(void *)cuda_shared_
#define BLOCK_SHARED(NAME, DIMENSIONS, ...) __align__(16) __shared__ __VA_ARGS__ NAME DIMENSIONS
#define WIDE_ACCESS(P) ((void)0) /* the GPU itself stops at one that is not aligned */
#define UNROLLED_FOR _Pragma("unroll") for
constexpr int emulated_time = 0;
#endif

static inline unsigned ceil_div(size_t n, size_t d) { return (unsigned)((n + d - 1) / d); }

/* ---------------------------------------------------------------------------------------------- */
/* Scratch of the backend: one allocation that kernels of one call may use between them. Work on a
   stream is done in order, so the next call may use it again. */

static inline void cuda_scratch_free(void) {
    CUDA_CHECK(cudaStreamSynchronize(cm_gpu.stream));
    if (cm_gpu.scratch) CUDA_CHECK(cudaFree(cm_gpu.scratch));
    cm_gpu.scratch = NULL;
    cm_gpu.scratch_bytes = 0;
}

/* Makes the scratch at least `bytes` large; -1 where there is too little memory. A program reserves what
   its model needs once, before the first step. */
static inline int cuda_scratch_reserve(size_t bytes) {
    if (bytes <= cm_gpu.scratch_bytes) return 0;
    cuda_scratch_free();
    if (cuda_try_malloc(&cm_gpu.scratch, bytes)) return -1;
    cm_gpu.scratch_bytes = bytes;
    return 0;
}

/* The scratch, at least `bytes` large; NULL where there is too little memory, which is recorded, so that
   no kernel starts that would use it. */
static inline void *cuda_scratch(size_t bytes) {
    if (cuda_scratch_reserve(bytes)) device_fail("out of GPU memory: %zu bytes of scratch", bytes);
    return cm_gpu.scratch;
}

/* ---------------------------------------------------------------------------------------------- */
/* Numbers. Kernels compute in float whatever they store. */

__device__ static inline float to_float(float x) { return x; }
__device__ static inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T> __device__ static inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16(x);
}

/* Elements of T that one 16-byte load brings. */
template <typename T> struct Wide {
    enum { N = 16 / sizeof(T) };
};

/* N consecutive elements as floats; N = Wide<T>::N makes one 16-byte access of it, for which p must be
   aligned, and N = 1 a plain one. */
template <int N, typename T> __device__ static inline void load(float (&x)[N], const T *p) {
    if constexpr (N * sizeof(T) == 16) {
        WIDE_ACCESS(p);
        uint4 raw = *(const uint4 *)(const void *)p;
        T t[N];
        memcpy(t, &raw, sizeof raw);
        UNROLLED_FOR (int i = 0; i < N; i++) x[i] = to_float(t[i]);
    } else {
        UNROLLED_FOR (int i = 0; i < N; i++) x[i] = to_float(p[i]);
    }
}
template <int N, typename T> __device__ static inline void store(T *p, const float (&x)[N]) {
    if constexpr (N * sizeof(T) == 16) {
        WIDE_ACCESS(p);
        uint4 raw;
        T t[N];
        UNROLLED_FOR (int i = 0; i < N; i++) t[i] = from_float<T>(x[i]);
        memcpy(&raw, t, sizeof raw);
        *(uint4 *)(void *)p = raw;
    } else {
        UNROLLED_FOR (int i = 0; i < N; i++) p[i] = from_float<T>(x[i]);
    }
}

/* Whether rows of n elements of T from p can be read 16 bytes at a time. */
template <typename T> static inline int wide_rows(const T *p, size_t n) {
    return (uintptr_t)p % 16 == 0 && n * sizeof(T) % 16 == 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Reductions; every lane, every thread gets the result. */

#define FULL_WARP 0xffffffffu

template <typename T> __device__ static inline T warp_sum(T x) {
    UNROLLED_FOR (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(FULL_WARP, x, i);
    return x;
}
__device__ static inline float warp_max(float x) {
    UNROLLED_FOR (int i = 16; i > 0; i >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, i));
    return x;
}

/* Of a one-dimensional block of whole warps; room is shared memory for 32 T, free again after the next
   barrier of the block. */
template <typename T> __device__ static inline T block_sum(T x, T *room) {
    int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < warps ? room[lane] : (T)0);
}
__device__ static inline float block_max(float x, float *room) {
    int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32;
    x = warp_max(x);
    if (lane == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_max(lane < warps ? room[lane] : -INFINITY);
}

#endif
