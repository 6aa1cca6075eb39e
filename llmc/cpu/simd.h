/*
exp, tanh and maximum that a compiler can vectorise: no branches, no table, no -ffast-math. A loop
marked `#pragma omp simd` over fast_exp or fast_tanh runs at vector speed, where the C library's
functions would run one element at a time. In the double build they are the library's functions.

e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln(2) / 2, and e^r - 1 = r + r^2 P(r), where P is
a minimax polynomial of degree 4 (relative error 3e-9, so that rounding dominates).
*/
#ifndef CM_SIMD_H
#define CM_SIMD_H

#include "../base.h"

#ifdef CM_DOUBLE
static inline floatX fast_exp(floatX x) { return exp(x); }
static inline floatX fast_tanh(floatX x) { return tanh(x); }
#else

/* Adding 1.5 * 2^23 rounds a float to an integer, which the low bits of the sum then hold. */
#define SIMD_ROUND 12582912.0f

/* For -87 <= x <= 88.37: e^x = *scale (1 + the returned e^r - 1), with *scale = 2^n. */
static inline float simd_split_exp(float x, float *scale) {
    float shifted = x * 1.44269504f + SIMD_ROUND;
    float n = shifted - SIMD_ROUND;
    float r = x - n * 0.693359375f; /* ln 2 in two parts; products of n with the first are exact */
    r = r + n * 2.12194440e-4f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    memcpy(scale, &bits, sizeof bits);
    float p = 1.381446689e-3f;
    p = p * r + 8.368780415e-3f;
    p = p * r + 4.166839421e-2f;
    p = p * r + 1.666652011e-1f;
    p = p * r + 4.999999341e-1f;
    return r + r * r * p;
}

/* e^x with a relative error below 2e-7 on [-87, 88]; 0 below -87, infinity above 88.37, NaN for
   NaN. */
static inline float fast_exp(float x) {
    float scale, y = x > 88.37f ? 88.37f : x;
    y = y < -87.0f ? -87.0f : y;
    float e = simd_split_exp(y, &scale);
    e = scale + scale * e;
    e = x > 88.37f ? INFINITY : e;
    return x < -87.0f ? 0.0f : e;
}

/* tanh x with a relative error below 5e-7 everywhere. With y = e^(-2|x|) - 1, tanh |x| = -y / (2
   + y). y is formed from e^r - 1, without cancellation. */
static inline float fast_tanh(float x) {
    float scale, a = fabsf(x);
    a = a > 20.0f ? 20.0f : a;
    float y = simd_split_exp(-2.0f * a, &scale);
    y = scale * y + (scale - 1.0f);
    return copysignf(y / (2.0f + y), x);
}

#endif

/* The largest of x[0..n), n > 0. The lanes are written out because clang vectorises no maximum
   that must respect NaN. */
static inline floatX simd_max(const floatX *x, int n) {
    floatX lane[16], max = x[0];
    int i = 0;
    for (int l = 0; l < 16; l++) lane[l] = x[0];
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (int l = 0; l < 16; l++) max = lane[l] > max ? lane[l] : max;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

#endif
