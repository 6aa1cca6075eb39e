/*
Softcap, softmax and cross entropy on CUDA. Logits become their own gradient in place.
*/
#ifndef CM_CUDA_LOSS_CUH
#define CM_CUDA_LOSS_CUH

#include "rows.cuh"

#include <float.h>

/* With u = 1 / sqrt(1 + (z/c)^2), the capped logit is z u and its derivative u^3. */
template <int CAP> __device__ static inline float cap_factor(float z, float inverse) {
    return CAP ? rsqrtf(1 + z * inverse * z * inverse) : 1;
}

__global__ static void __launch_bounds__(256)
    softcap_kernel(floatX *logits, int V, int Vp, float inverse) {
    int v = (int)(blockIdx.y * 256 + threadIdx.x);
    if (v >= V) return;
    floatX *z = logits + (size_t)blockIdx.x * Vp + v;
    *z = from_float<floatX>(to_float(*z) * cap_factor<1>(to_float(*z), inverse));
}

/* 1 / softcap, at most the largest float, since 0 times infinity would be no logit; 0 for no cap.
   */
static inline float softcap_inverse(double softcap) {
    return softcap > 0 ? (float)fmin(1 / softcap, (double)FLT_MAX) : 0;
}

/* Called for one row at a time, when text is generated: speed does not matter. */
static inline void softcap_forward(floatX *logits, int N, int V, int Vp, double softcap) {
    if (softcap <= 0) return;
    dim3 grid((unsigned)N, ceil_div((size_t)V, 256));
    LAUNCH(softcap_kernel, grid, 256, 0, logits, V, Vp, softcap_inverse(softcap));
}

/* Takes W logits w, some of which may be -infinity, into the running maximum and the sum of e^(w
   - max). */
template <int W>
__device__ static inline void online_softmax(float *max, float *sum, const float (&w)[W]) {
    float top = w[0];
    UNROLLED_FOR (int i = 1; i < W; i++) top = fmaxf(top, w[i]);
    if (top > *max) {
        *sum *= __expf(*max - top);
        *max = top;
    }
    float base = *max > -INFINITY ? *max : 0; /* -inf - -inf is NaN */
    UNROLLED_FOR (int i = 0; i < W; i++) *sum += __expf(w[i] - base);
}

/* A block has a row and reads it twice. The first `keep` accesses stay in shared memory for the
   second time; usually that is the whole row, because the rows in flight would not all fit in
   the L2 cache. __expf errs by 2 + 1.2 |x| units in the last place. Weighted by the probability
   e^x, that is at most 2e-7 of the sum. */
enum { CLASSIFIER_THREADS = 512 /* most threads of a block */, CLASSIFIER_AHEAD = 4 };
template <int W, int CAP>
__global__ static void __launch_bounds__(CLASSIFIER_THREADS)
    classifier_kernel(floatM *losses, floatX *logits, const int *__restrict__ targets, int V,
                      int Vp, float inverse, float scale, int keep) {
    SHARED(Raw<W>, kept);
    BLOCK_SHARED(room, [2][32], float);
    const int step = (int)blockDim.x * W, begin = (int)threadIdx.x * W, full = V - V % W;
    /* the last rows were written last and may still be in the cache */
    size_t n = gridDim.x - 1 - blockIdx.x;
    floatX *z = logits + n * (size_t)Vp;
    /* a column after the last whole access */
    int target = targets[n], own = full + (int)threadIdx.x;
    float w[W], max = -INFINITY, sum = 0;
    if (target < 0) {
        if (threadIdx.x == 0) losses[n] = 0;
        for (int v = (int)threadIdx.x; v < Vp && scale != 0; v += (int)blockDim.x)
            z[v] = from_float<floatX>(0);
        return;
    }
    float zt = to_float(z[target]), ut = cap_factor<CAP>(zt, inverse);
    for (int first = begin; first < full; first += CLASSIFIER_AHEAD * step) {
        Raw<W> loaded[CLASSIFIER_AHEAD];
        UNROLLED_FOR (int k = 0; k < CLASSIFIER_AHEAD; k++)
            loaded[k] = fetch<W>(z, first + k * step, first + k * step < full);
        UNROLLED_FOR (int k = 0; k < CLASSIFIER_AHEAD; k++) {
            int v = first + k * step;
            if (v >= full) continue;
            if (v / W < keep) kept[v / W] = loaded[k];
            unpack(w, loaded[k]);
            UNROLLED_FOR (int i = 0; i < W; i++) w[i] *= cap_factor<CAP>(w[i], inverse);
            online_softmax(&max, &sum, w);
        }
    }
    if (own < V) {
        const float last[1] = {to_float(z[own]) * cap_factor<CAP>(to_float(z[own]), inverse)};
        online_softmax(&max, &sum, last);
    }
    float all = block_max(max, room[0]);
    sum = block_sum(sum * __expf(max - (all > -INFINITY ? all : 0)), room[1]);
    float lse = all + logf(sum);
    if (threadIdx.x == 0) losses[n] = lse - zt * ut;
    if (scale == 0) return;
    for (int v = begin; v < full; v += step) {
        unpack(w, v / W < keep ? kept[v / W] : fetch<W>(z, v, 1)); /* stored by this thread */
        UNROLLED_FOR (int i = 0; i < W; i++) {
            float u = cap_factor<CAP>(w[i], inverse);
            w[i] = scale * __expf(w[i] * u - lse) * (u * u * u);
        }
        store(z + v, w);
    }
    for (int v = own; v < Vp; v += (int)blockDim.x) {
        float x = v < V ? to_float(z[v]) : 0, u = cap_factor<CAP>(x, inverse);
        z[v] = from_float<floatX>(v < V ? scale * __expf(x * u - lse) * (u * u * u) : 0);
    }
    __syncthreads(); /* another thread has written the target's column */
    float less = __expf(zt * ut - lse) - 1;
    if (threadIdx.x == 0) z[target] = from_float<floatX>(scale * less * (ut * ut * ut));
}

static inline void classifier(floatM *losses, floatX *logits, const int *targets, int N, int V,
                              int Vp, double softcap, double scale) {
    float inverse = softcap_inverse(softcap);
    int wide = all_wide(Vp, logits), cap = softcap > 0;
    size_t half = cm_gpu.shared_limit / 2 - 2048,
           row = (size_t)Vp * sizeof(floatX); /* for two blocks on a multiprocessor */
    size_t kept = scale == 0 ? 0 : row < half ? row : half;
    /* A vocabulary of bytes is enough for one warp. */
    int warps = (int)ceil_div((size_t)V, 32 * CLASSIFIER_AHEAD * (wide ? (size_t)XW : 1));
    unsigned threads = (unsigned)min_int(32 * warps, CLASSIFIER_THREADS);
#define CLASSIFIER(W, CAP)                                                                         \
    LAUNCH((classifier_kernel<W, CAP>), (unsigned)N, threads, kept, losses, logits, targets, V,    \
           Vp, inverse, (float)scale, (int)(kept / sizeof(Raw<W>)))
    if (wide && cap) CLASSIFIER(XW, 1);
    else if (wide) CLASSIFIER(XW, 0);
    else if (cap) CLASSIFIER(1, 1);
    else CLASSIFIER(1, 0);
#undef CLASSIFIER
}

__global__ static void __launch_bounds__(1024)
    losses_add_kernel(double *total, const floatM *__restrict__ losses, int N) {
    BLOCK_SHARED(room, [32], double);
    double sum = 0;
#pragma unroll 8
    for (int n = (int)threadIdx.x; n < N; n += 1024) sum += (double)losses[n];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *total += sum;
}

static inline void losses_add(double *total, const floatM *losses, int N) {
    LAUNCH(losses_add_kernel, 1, 1024, 0, total, losses, N);
}

#endif
