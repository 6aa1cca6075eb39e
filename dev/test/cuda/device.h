/*
Shared by the kernel tests: random numbers, and arrays that exist on the host in float and on the
device in any type. Numbers are rounded to the device's type on the host too, so that the CPU twin
reads what the kernel reads. Works on a GPU and on the emulator. release() frees every array.
*/
#ifndef CM_TEST_DEVICE_H
#define CM_TEST_DEVICE_H

#include "../../../llmc/cuda/runtime.cuh"
#include "../check.h"
#include "../draw.h"

/* Makes a call of the run-time library. The test ends if it fails. */
#define MUST(CALL) must((CALL), #CALL, __FILE__, __LINE__)
static inline void must(cudaError_t status, const char *call, const char *file, int line) {
    if (status != cudaSuccess) die("%s:%d: %s: %s", file, line, call, cudaGetErrorString(status));
}

static void *device_arrays[512], *host_arrays[512];
static int device_array_count, host_array_count;

/* Frees the arrays of a case, and reports a failure that the case has recorded. */
static inline void release(void) {
    if (device_failure()) check(0, "a failure: %s", device_failure());
    cm_gpu.failure[0] = 0;
    while (device_array_count) MUST(cudaFree(device_arrays[--device_array_count]));
    while (host_array_count) free(host_arrays[--host_array_count]);
}

/* n numbers on the host, all NaN. */
static inline float *host_array(size_t n) {
    float *p = (float *)malloc((n + !n) * sizeof *p);
    if (!p || host_array_count == 512) die("test: out of memory or of arrays");
    host_arrays[host_array_count++] = p;
    for (size_t i = 0; i < n; i++) p[i] = NAN;
    return p;
}

static inline float *random_array(size_t n, double scale) {
    float *p = host_array(n);
    for (size_t i = 0; i < n; i++) p[i] = (float)(scale * draw());
    return p;
}

/* n elements on the device with all bytes 0xff, which is NaN. */
template <typename T> static inline T *device_array(size_t n) {
    void *p;
    if (device_array_count == 512) die("test: out of arrays");
    MUST(cudaMalloc(&p, (n + !n) * sizeof(T)));
    MUST(cudaMemsetAsync(p, 0xff, (n + !n) * sizeof(T), cm_gpu.stream));
    device_arrays[device_array_count++] = p;
    return (T *)p;
}

template <typename T> static inline float rounded(float x) { return x; }
template <> inline float rounded<__nv_bfloat16>(float x) {
    return __bfloat162float(__float2bfloat16(x));
}

/* Rounds host numbers to T in place, and copies them to the device. */
template <typename T> static inline void put(T *to, float *from, size_t n) {
    T *t = (T *)malloc((n + !n) * sizeof(T));
    if (!t) die("test: out of memory");
    for (size_t i = 0; i < n; i++) {
        from[i] = rounded<T>(from[i]);
        t[i] = T(from[i]);
    }
    MUST(cudaMemcpyAsync(to, t, n * sizeof(T), cudaMemcpyHostToDevice, cm_gpu.stream));
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    free(t);
}

/* A copy of n host numbers on the device. */
template <typename T> static inline T *on_device(float *from, size_t n) {
    T *p = device_array<T>(n);
    put(p, from, n);
    return p;
}
static inline int *ints_on_device(const int *from, size_t n) {
    int *p = device_array<int>(n);
    MUST(cudaMemcpyAsync(p, from, n * sizeof *p, cudaMemcpyHostToDevice, cm_gpu.stream));
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    return p;
}

/* A copy of n device numbers on the host, made after all queued kernels have run. */
template <typename T> static inline float *on_host(const T *from, size_t n) {
    float *p = host_array(n);
    T *t = (T *)malloc((n + !n) * sizeof(T));
    if (!t) die("test: out of memory");
    MUST(cudaMemcpyAsync(t, from, n * sizeof(T), cudaMemcpyDeviceToHost, cm_gpu.stream));
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    for (size_t i = 0; i < n; i++) p[i] = (float)t[i];
    free(t);
    return p;
}

/* How much results in T may differ, relative to their norm. In bf16 the rounding of results counts:
   at most 2^-8 of a number, half of the last place, and twice that over two roundings. In float the
   order of sums counts. */
template <typename T> static inline double tolerance(void) { return sizeof(T) == 2 ? 4e-3 : 2e-6; }

#endif
