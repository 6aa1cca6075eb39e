/*
GELU by its tanh approximation (Hendrycks and Gimpel, 2016) and its derivative, for the activation
kernels and for the emulated epilogues of the matrix product.
*/
#ifndef CM_CUDA_GELU_CUH
#define CM_CUDA_GELU_CUH

#include "runtime.cuh"

/* The logistic function at x and at -x. It never overflows and never subtracts from one. __expf
   errs by 2 + 1.2 |x| units in the last place: by 1e-6 at |x| = 12, where the smaller of the two
   is 6e-6. */
__device__ static inline void logistic(float x, float *s, float *rest) {
    float q = __expf(-fabsf(x)), large = __fdividef(1, 1 + q), small = q * large;
    *s = x < 0 ? small : large;
    *rest = x < 0 ? large : small;
}

/* GELU's 1/2 (1 + tanh u) is the logistic function of 2 u, with 2 u = GELU_2A (x + GELU_B x^3). */
#define GELU_2A 1.5957691216057308f
#define GELU_B 0.044715f

__device__ static inline float gelu(float x) {
    float s, rest;
    logistic(GELU_2A * (x + GELU_B * x * x * x), &s, &rest);
    return x * s;
}

/* The derivative of gelu at x. */
__device__ static inline float gelu_slope(float x) {
    float s, rest;
    logistic(GELU_2A * (x + GELU_B * x * x * x), &s, &rest);
    return s + x * s * rest * GELU_2A * (1 + 3 * GELU_B * x * x);
}

#endif
