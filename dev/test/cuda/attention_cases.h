/*
Shared by the tests of attention: shapes, random numbers for them, and comparison with the CPU twin.
test_case runs attention_forward and attention_backward, by whichever kernels are chosen, and
compares them with the twin and two runs with each other. test_attention.cu explains the tolerances.
*/
#ifndef CM_TEST_ATTENTION_CASES_H
#define CM_TEST_ATTENTION_CASES_H

#include "../../../llmc/cuda/attention.cuh"
#include "device.h"
#include "twin.h"

#define ROUNDING (sizeof(floatX) == 2 ? 4e-3 : 0)

template <typename T> static int same_bits(const T *a, const T *b, size_t n) {
    T *x = (T *)malloc(2 * n * sizeof(T) + 1), *y = x + n;
    if (!x) die("test: out of memory");
    MUST(cudaMemcpyAsync(x, a, n * sizeof(T), cudaMemcpyDeviceToHost, cm_gpu.stream));
    MUST(cudaMemcpyAsync(y, b, n * sizeof(T), cudaMemcpyDeviceToHost, cm_gpu.stream));
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    int same = !memcmp(x, y, n * sizeof(T));
    free(x);
    return same;
}
template <typename T> static T *copy_of(const T *p, size_t n) {
    T *q = device_array<T>(n);
    MUST(cudaMemcpyAsync(q, p, n * sizeof(T), cudaMemcpyDeviceToDevice, cm_gpu.stream));
    return q;
}
template <typename T> static int untouched(const T *p, size_t n) {
    return same_bits(p, device_array<T>(n), n);
}

/* A copy of host numbers on the device, `shift` elements after an aligned address. */
template <typename T> static T *shifted(float *from, size_t n, int shift) {
    T *p = device_array<T>(n + (size_t)shift) + shift;
    put(p, from, n);
    return p;
}

/* ---------------------------------------------------------------------------------------------- */

typedef struct {
    int B, T, NH, NKV, HS;
    double scale, size; /* scale of q . k; size of the numbers of q and k */
    int shift;          /* elements from an aligned address to the arrays */
} Case;

static size_t width(const Case *c) { return (size_t)(c->NH + 2 * c->NKV) * (size_t)c->HS; }
static size_t rows(const Case *c) { return (size_t)c->B * (size_t)c->T; }

/* Queries and keys of size c->size, values of size 1. */
static float *make_qkv(const Case *c) {
    size_t W = width(c), values = W - (size_t)c->NKV * (size_t)c->HS;
    float *x = random_array(rows(c) * W, 1);
    for (size_t i = 0; i < rows(c) * W; i++)
        if (i % W < values) x[i] *= (float)c->size;
    return x;
}

static double tolerance(const Case *c) { /* the largest scores are about size^2 sqrt(HS) scale */
    return ROUNDING * (c->HS == 1 ? 3 : 1) + 5e-6 +
           2e-7 * c->size * c->size * sqrt(c->HS) * c->scale;
}

/* Compares columns [from, to) of n rows of W elements. The norm has a floor, because the
   gradients of one token are 0. */
static void like(const Case *c, const char *what, const float *ours, const float *theirs, size_t n,
                 size_t W, size_t from, size_t to, double allowed) {
    double error = 0, norm = 0, count = (double)n * (double)(to - from);
    for (size_t i = 0; i < n * W; i++) {
        if (i % W < from || i % W >= to) continue;
        double e = (double)ours[i] - (double)theirs[i];
        error += e * e;
        norm += (double)theirs[i] * (double)theirs[i];
    }
    double e = sqrt(error) / fmax(sqrt(norm), 0.05 * sqrt(count));
    check(e <= allowed,
          "B %d T %d heads %d/%d of %d, scale %g, size %g: error of %s %.2e, allowed %.0e", c->B,
          c->T, c->NH, c->NKV, c->HS, c->scale, c->size, what, e, allowed);
}

static void forward(floatX *out, floatM *lse, const floatX *qkv, const Case *c) {
    attention_forward(out, lse, qkv, c->B, c->T, c->NH, c->NKV, c->HS, c->scale);
}
static void backward(floatX *dqkv, const floatX *dout, const floatX *qkv, const floatX *out,
                     const floatM *lse, const Case *c) {
    attention_backward(dqkv, dout, qkv, out, lse, c->B, c->T, c->NH, c->NKV, c->HS, c->scale);
}

enum { SPARE = 40 }; /* elements behind an output, which must not change */

[[maybe_unused]] static void test_case(const Case *c) {
    size_t N = rows(c), W = width(c), C = (size_t)c->NH * (size_t)c->HS,
           KV = (size_t)c->NKV * (size_t)c->HS;
    size_t L = N * (size_t)c->NH, S = (size_t)c->shift;
    double allowed = tolerance(c);
    float *qkv = make_qkv(c), *dout = random_array(N * C, 1), *out = host_array(N * C),
          *lse = host_array(L);
    float *dqkv = host_array(N * W);
    floatX *d_qkv = shifted<floatX>(qkv, N * W, c->shift),
           *d_dout = shifted<floatX>(dout, N * C, c->shift);
    floatX *d_out = device_array<floatX>(N * C + S + SPARE) + S, *same = copy_of(d_qkv, N * W);
    floatM *d_lse = device_array<floatM>(L + SPARE);

    cpu_attention_forward(out, lse, qkv, c->B, c->T, c->NH, c->NKV, c->HS, c->scale);
    forward(d_out, d_lse, d_qkv, c);
    like(c, "out", on_host(d_out, N * C), out, N, C, 0, C, allowed);
    like(c, "lse", on_host(d_lse, L), lse, L, 1, 0, 1, 1e-6);
    check(untouched(d_out + N * C, SPARE) && untouched(d_lse + L, SPARE),
          "T %d: forward writes too much", c->T);
    floatX *near_out =
        shifted<floatX>(out, N * C, c->shift); /* both backward passes read the same numbers */
    floatM *first_lse = copy_of(d_lse, L);
    put(d_lse, lse, L);
    cpu_attention_backward(dqkv, dout, qkv, out, lse, c->B, c->T, c->NH, c->NKV, c->HS, c->scale);
    floatX *d_dqkv = device_array<floatX>(N * W + S + SPARE) + S;
    backward(d_dqkv, d_dout, d_qkv, near_out, d_lse, c);
    float *ours = on_host(d_dqkv, N * W);
    like(c, "dq", ours, dqkv, N, W, 0, C, allowed);
    like(c, "dk", ours, dqkv, N, W, C, C + KV, allowed);
    like(c, "dv", ours, dqkv, N, W, C + KV, W, allowed);
    check(untouched(d_dqkv + N * W, SPARE), "T %d: backward writes too much", c->T);
    floatX *dqkv_again = device_array<floatX>(N * W + S) + S;
    floatX *again = device_array<floatX>(N * C + S) + S;
    floatM *lse_again = device_array<floatM>(L);
    forward(again, lse_again, d_qkv,
            c); /* three more launches, because the emulator alternates the order of blocks */
    backward(dqkv_again, d_dout, d_qkv, near_out, d_lse, c);
    check(same_bits(dqkv_again, d_dqkv, N * W), "T %d: backward differs when repeated", c->T);
    check(same_bits(again, d_out, N * C) && same_bits(lse_again, first_lse, L),
          "T %d: forward differs when repeated", c->T);
    check(same_bits(same, d_qkv, N * W), "T %d: an input has changed", c->T);
    release();
}

[[maybe_unused]] static int count_nan(const floatX *p, size_t n) {
    float *x = on_host(p, n);
    int count = 0;
    for (size_t i = 0; i < n; i++) count += isnan(x[i]);
    return count;
}

#endif
