/*
What every CUDA file includes: the one macro that launches kernels, scratch, 16-byte loads and
stores, and reductions in a fixed order.

Kernels are launched only by LAUNCH and take dynamic shared memory only by SHARED, so that the
emulator (dev/emu, with CM_EMU) can run them on a CPU, block by block. They use no atomics on
floating-point numbers: equal runs give equal bits.
*/
#ifndef CM_CUDA_RUNTIME_CUH
#define CM_CUDA_RUNTIME_CUH

#include "machine.cuh"

/* Makes a call of the run-time library. Returns 0; or, if the call fails, records the failure
   and returns -1. Calls fail when the device is lost, when we have made a mistake, or when
   memory that could not be foreseen is missing. After a failure no further call is made. */
#define CUDA_CHECK(CALL)                                                                           \
    cuda_check(device_failure() ? cudaSuccess : (CALL), #CALL, __FILE__, __LINE__)
static inline int cuda_check(cudaError_t status, const char *call, const char *file, int line) {
    if (status == cudaSuccess) return device_failure() ? -1 : 0;
    return device_fail("%s:%d: %s: %s", file, line, call, cudaGetErrorString(status));
}

/* cudaMalloc for callers that can do without the memory: returns 0, or -1 and *p = NULL. Too
   little memory is not a failure of the device. */
static inline int cuda_try_malloc(void **p, size_t bytes) {
    *p = NULL;
    if (device_failure()) return -1;
    if (cudaMalloc(p, bytes) == cudaSuccess) return 0;
    cudaGetLastError(); /* clears the error, so that no later check finds it */
    *p = NULL;
    return -1;
}

/* LAUNCH(kernel, grid, block, bytes of dynamic shared memory, arguments...) queues a kernel,
   unless something has failed before. A kernel template with a comma in its arguments is put in
   parentheses. SHARED(type, name) declares that memory in the kernel, aligned to 16 bytes.
   BLOCK_SHARED(name, [dimensions], type) declares static shared memory, aligned to 16 bytes. A
   kernel must ask for more than 48 KiB of static and dynamic memory together; LAUNCH asks for
   any size. */
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
constexpr int emulated_time = 1; /* times are the emulator's: nothing should be chosen by them */
#else
#define LAUNCH(KERNEL, GRID, BLOCK, BYTES, ...)                                                    \
    do {                                                                                           \
        static size_t cuda_allowed_; /* dynamic shared memory that this unit's kernel may use */   \
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
#define WIDE_ACCESS(P) ((void)0) /* the GPU itself stops at an unaligned access */
#define UNROLLED_FOR _Pragma("unroll") for
constexpr int emulated_time = 0;
#endif

static inline unsigned ceil_div(size_t n, size_t d) { return (unsigned)((n + d - 1) / d); }

/* ---------------------------------------------------------------------------------------------- */
/* Scratch of the backend: one allocation, for the kernels of one call. The work of a stream is
   done in order, so the next call may use the scratch again. */

static inline void cuda_scratch_free(void) {
    CUDA_CHECK(cudaStreamSynchronize(cm_gpu.stream));
    if (cm_gpu.scratch) CUDA_CHECK(cudaFree(cm_gpu.scratch));
    cm_gpu.scratch = NULL;
    cm_gpu.scratch_bytes = 0;
}

/* Makes the scratch at least `bytes` large. Returns 0, or -1 if there is too little memory. A
   program reserves what its model needs once, before the first step. */
static inline int cuda_scratch_reserve(size_t bytes) {
    if (bytes <= cm_gpu.scratch_bytes) return 0;
    cuda_scratch_free();
    if (cuda_try_malloc(&cm_gpu.scratch, bytes)) return -1;
    cm_gpu.scratch_bytes = bytes;
    return 0;
}

/* Returns the scratch, at least `bytes` large. If there is too little memory, records the
   failure and returns NULL; then no kernel starts that would use the scratch. */
static inline void *cuda_scratch(size_t bytes) {
    if (cuda_scratch_reserve(bytes)) device_fail("out of GPU memory: %zu bytes of scratch", bytes);
    return cm_gpu.scratch;
}

/* ---------------------------------------------------------------------------------------------- */
/* Numbers: kernels compute in float, whatever type they store. */

__device__ static inline float to_float(float x) { return x; }
__device__ static inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T> __device__ static inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16(x);
}

/* Elements of T in one 16-byte access. */
template <typename T> struct Wide {
    enum { N = 16 / sizeof(T) };
};

/* Load and store of N consecutive elements as floats. N = Wide<T>::N makes one 16-byte access,
   for which p must be aligned; N = 1 makes a plain access. */
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

/* Whether rows of n elements from p on can be read 16 bytes at a time. */
template <typename T> static inline int wide_rows(const T *p, size_t n) {
    return (uintptr_t)p % 16 == 0 && n * sizeof(T) % 16 == 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Reductions: every thread gets the result. */

#define FULL_WARP 0xffffffffu

template <typename T> __device__ static inline T warp_sum(T x) {
    UNROLLED_FOR (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(FULL_WARP, x, i);
    return x;
}
__device__ static inline float warp_max(float x) {
    UNROLLED_FOR (int i = 16; i > 0; i >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, i));
    return x;
}

/* Reductions over a one-dimensional block of whole warps. `room` is shared memory for 32 T. It
   may be used again after the block's next barrier. */
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
