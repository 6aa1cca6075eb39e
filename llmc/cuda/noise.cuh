/*
Random numbers on the device, for measurements: uniform in [-scale, scale), each a function of its
index and the seed alone. Constant operands would toggle few bits and let a GPU run at clocks that
real work does not reach.
*/
#ifndef CM_CUDA_NOISE_CUH
#define CM_CUDA_NOISE_CUH

#include "runtime.cuh"

template <typename T>
__global__ static void noise_kernel(T *x, size_t n, float scale, unsigned seed) {
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        unsigned h = ((unsigned)i + seed) * 0x9e3779b1u;
        h = (h ^ h >> 16) * 0x85ebca6bu;
        h = (h ^ h >> 13) * 0xc2b2ae35u;
        x[i] = from_float<T>(scale * ((float)((h ^ h >> 16) >> 8) * 1.1920929e-7f - 1));
    }
}

/* Sets x (n). */
template <typename T> static inline void device_noise(T *x, size_t n, double scale, unsigned seed) {
    unsigned blocks = (unsigned)min_size((n + 255) / 256, 4096);
    if (n) LAUNCH(noise_kernel<T>, blocks, 256, 0, x, n, (float)scale, seed);
}

#endif
