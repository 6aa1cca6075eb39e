/*
The model's layers on CUDA, forward and backward: the twins of llmc/cpu/layers.h, with its names,
arguments and contracts. N = B T tokens. All but the matrix products are bound by memory. Embedding,
norms and loss have files of their own. rows.cuh explains how kernels read rows.
*/
#ifndef CM_CUDA_LAYERS_CUH
#define CM_CUDA_LAYERS_CUH

#include "../shape.h"
#include "../rope.h"
#include "embed.cuh"
#include "gelu.cuh"
#include "gemm.cuh"
#include "loss.cuh"
#include "norm.cuh"

/* ---------------------------------------------------------------------------------------------- */
/* linear */

static inline void linear_forward(floatX *y, const floatX *x, const floatX *w, const floatX *b,
                                  int N, int I, int O) {
    gemm(0, 1, N, O, I, 1, x, (size_t)I, w, (size_t)I, 0, y, (size_t)O, b);
}

/* dw (O,I) is set, or added to with `add`; db is added to. dx, dw and db are skipped if they are
   NULL. */
static inline void linear_backward(floatX *dx, floatM *dw, floatM *db, const floatX *dy,
                                   const floatX *x, const floatX *w, int N, int I, int O, int add) {
    if (dx) gemm(0, 0, N, I, O, 1, dy, (size_t)O, w, (size_t)I, 0, dx, (size_t)I);
    if (dw) gemm(1, 0, O, I, N, 1, dy, (size_t)O, x, (size_t)I, add ? 1 : 0, dw, (size_t)I);
    if (db) bias_backward(db, dy, N, O);
}

template <typename OUT>
static inline void linear_product(int ta, int tb, int M, int N, int K, double s, const floatX *A,
                                  int lda, const floatX *B, int ldb, int add, OUT *C, int ldc) {
    gemm(ta, tb, M, N, K, s, A, (size_t)lda, B, (size_t)ldb, add ? 1 : 0, C, (size_t)ldc);
}

__global__ static void __launch_bounds__(256)
    bias_forward_kernel(floatX *__restrict__ y, const floatX *__restrict__ b, size_t n, int O) {
    size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = b[i % (size_t)O];
}
static inline void bias_forward(floatX *y, const floatX *b, int N, int O) {
    size_t n = (size_t)N * (size_t)O;
    LAUNCH(bias_forward_kernel, ceil_div(n, 256), 256, 0, y, b, n, O);
}

/* ---------------------------------------------------------------------------------------------- */
/* queries and keys */

/* A block has a token and walks along its heads, with G lanes (a power of two) for a head.
   Elements j and j + HS/2, which rotate together, belong to one lane: a holds the first half, b
   the second. Lane l has the vectors l, l + G, ... of W elements, at most V of them. */
template <int W, int V>
__global__ static void __launch_bounds__(256)
    qk_forward_kernel(floatX *qkv, floatM *rstd, const floatM *__restrict__ cosine,
                      const floatM *__restrict__ sine, int T, int first, int heads, int stride,
                      int HS, int G, int qk_norm, float eps) {
    int n = (int)blockIdx.x, half = HS / 2, lane = (int)threadIdx.x % G;
    size_t angle = (size_t)(first + n % T) * half;
    float inverse = 1 / (float)HS;
    /* no lane leaves before the shuffles */
    for (int h0 = 0; h0 < heads; h0 += (int)blockDim.x / G) {
        int h = h0 + (int)threadIdx.x / G;
        floatX *x = qkv + (size_t)n * stride + (size_t)h * HS;
        Raw<W> a_raw[V], b_raw[V];
        float a[V][W], b[V][W], s = 0, r = 1;
        UNROLLED_FOR (int v = 0; v < V; v++) {
            int j = (v * G + lane) * W, in_bounds = h < heads && j < half;
            a_raw[v] = fetch<W>(x, j, in_bounds);
            b_raw[v] = fetch<W>(x, half + j, in_bounds);
        }
        UNROLLED_FOR (int v = 0; v < V; v++) {
            unpack(a[v], a_raw[v]);
            unpack(b[v], b_raw[v]);
            UNROLLED_FOR (int i = 0; i < W; i++) s += a[v][i] * a[v][i] + b[v][i] * b[v][i];
        }
        if (qk_norm) {
            for (int i = G / 2; i > 0; i /= 2) s += __shfl_xor_sync(FULL_WARP, s, i);
            r = norm_rstd(s * inverse, eps);
            if (h < heads && lane == 0) rstd[(size_t)n * heads + h] = r;
        }
        UNROLLED_FOR (int v = 0; v < V; v++) {
            int j = (v * G + lane) * W;
            if (h >= heads || j >= half) continue;
            float co[W], si[W], p[W], q[W];
            if (cosine) load_floats(co, cosine + angle + j);
            if (cosine) load_floats(si, sine + angle + j);
            UNROLLED_FOR (int i = 0; i < W; i++) {
                float x1 = a[v][i] * r, x2 = b[v][i] * r;
                p[i] = cosine ? x1 * co[i] - x2 * si[i] : x1;
                q[i] = cosine ? x2 * co[i] + x1 * si[i] : x2;
            }
            store(x + j, p);
            store(x + half + j, q);
        }
    }
}

/* Heads and lanes are shared out as in qk_forward_kernel. A rotation does not change the inner
   product of gradient and value. */
template <int W, int V>
__global__ static void __launch_bounds__(256)
    qk_backward_kernel(floatX *dqkv, const floatX *__restrict__ qkv,
                       const floatM *__restrict__ rstd, const floatM *__restrict__ cosine,
                       const floatM *__restrict__ sine, int T, int heads, int stride, int HS, int G,
                       int qk_norm) {
    int n = (int)blockIdx.x, half = HS / 2, lane = (int)threadIdx.x % G;
    size_t angle = (size_t)(n % T) * half;
    float inverse = 1 / (float)HS;
    for (int h0 = 0; h0 < heads; h0 += (int)blockDim.x / G) {
        int h = h0 + (int)threadIdx.x / G;
        size_t at = (size_t)n * stride + (size_t)h * HS;
        Raw<W> a_raw[V], b_raw[V], ya_raw[V], yb_raw[V];
        float a[V][W], b[V][W], ya[W], yb[W], dot = 0, r = 1;
        UNROLLED_FOR (int v = 0; v < V; v++) {
            int j = (v * G + lane) * W, in_bounds = h < heads && j < half;
            a_raw[v] = fetch<W>(dqkv, at + j, in_bounds);
            b_raw[v] = fetch<W>(dqkv, at + half + j, in_bounds);
            ya_raw[v] = fetch<W>(qkv, at + j, in_bounds && qk_norm);
            yb_raw[v] = fetch<W>(qkv, at + half + j, in_bounds && qk_norm);
        }
        if (qk_norm && h < heads) r = rstd[(size_t)n * heads + h];
        UNROLLED_FOR (int v = 0; v < V; v++) {
            unpack(a[v], a_raw[v]);
            unpack(b[v], b_raw[v]);
            unpack(ya, ya_raw[v]);
            unpack(yb, yb_raw[v]);
            UNROLLED_FOR (int i = 0; i < W; i++) dot += a[v][i] * ya[i] + b[v][i] * yb[i];
        }
        if (qk_norm)
            for (int i = G / 2; i > 0; i /= 2) dot += __shfl_xor_sync(FULL_WARP, dot, i);
        dot *= inverse;
        UNROLLED_FOR (int v = 0; v < V; v++) {
            int j = (v * G + lane) * W;
            if (h >= heads || j >= half) continue;
            float co[W], si[W], p[W], q[W];
            if (cosine) load_floats(co, cosine + angle + j);
            if (cosine) load_floats(si, sine + angle + j);
            unpack(ya, ya_raw[v]);
            unpack(yb, yb_raw[v]);
            UNROLLED_FOR (int i = 0; i < W; i++) {
                float d1 = r * (a[v][i] - ya[i] * dot), d2 = r * (b[v][i] - yb[i] * dot);
                p[i] = cosine ? d1 * co[i] + d2 * si[i] : d1;
                q[i] = cosine ? d2 * co[i] - d1 * si[i] : d2;
            }
            store(dqkv + at + j, p);
            store(dqkv + at + half + j, q);
        }
    }
}

/* How the two kernels share out the heads of a token. */
typedef struct {
    int W, vectors, G; /* vectors of W elements in half a head; lanes for a head */
    unsigned threads;
} QkShape;
static inline QkShape qk_shape(int wide, int heads, int HS) {
    QkShape s = {wide ? (int)XW : 1, 0, 1, 0};
    s.vectors = HS / 2 / s.W;
    while (s.G < s.vectors && s.G < 32) s.G *= 2;
    s.threads = 32 * ceil_div((size_t)heads * (size_t)s.G, 32);
    if (s.threads > 256) s.threads = 256;
    if (HS % 2 || HS > 1024)
        device_fail("heads of %d elements: the kernels take even head widths up to 1024", HS);
    return s;
}

static inline void qk_forward(floatX *qkv, floatM *rstd, const floatM *cosine, const floatM *sine,
                              int N, int T, int first, int NH, int NKV, int HS, int qk_norm,
                              double eps) {
    if (!qk_norm && !cosine) return;
    int wide = all_wide(HS / 2, qkv) && all_wide(HS / 2, cosine, sine), heads = NH + NKV;
    QkShape s = qk_shape(wide, heads, HS);
#define QK_FORWARD(W, V)                                                                           \
    LAUNCH((qk_forward_kernel<W, V>), (unsigned)N, s.threads, 0, qkv, rstd, cosine, sine, T,       \
           first, heads, (heads + NKV) * HS, HS, s.G, qk_norm, (float)eps)
    if (wide && s.vectors <= 32) QK_FORWARD(XW, 1);
    else if (wide) QK_FORWARD(XW, 4);
    else QK_FORWARD(1, 16);
#undef QK_FORWARD
}

static inline void qk_backward(floatX *dqkv, const floatX *qkv, const floatM *rstd,
                               const floatM *cosine, const floatM *sine, int N, int T, int NH,
                               int NKV, int HS, int qk_norm) {
    if (!qk_norm && !cosine) return;
    int wide = all_wide(HS / 2, dqkv, qkv) && all_wide(HS / 2, cosine, sine), heads = NH + NKV;
    QkShape s = qk_shape(wide, heads, HS);
#define QK_BACKWARD(W, V)                                                                          \
    LAUNCH((qk_backward_kernel<W, V>), (unsigned)N, s.threads, 0, dqkv, qkv, rstd, cosine, sine,   \
           T, heads, (heads + NKV) * HS, HS, s.G, qk_norm)
    if (wide && s.vectors <= 32) QK_BACKWARD(XW, 1);
    else if (wide) QK_BACKWARD(XW, 4);
    else QK_BACKWARD(1, 16);
#undef QK_BACKWARD
}

/* ---------------------------------------------------------------------------------------------- */
/* activations */

/* act_is_gated as a constant, because device code cannot call it. */
template <ActKind ACT> constexpr int act_gated = act_is_gated(ACT);

template <ActKind ACT> __device__ static inline float act_value(float x, float up) {
    float s, rest;
    switch (ACT) {
    case ACT_RELU2: return x > 0 ? x * x : 0;
    case ACT_GELU: return gelu(x);
    case ACT_SWIGLU: logistic(x, &s, &rest); return x * s * up;
    }
    return 0;
}

/* A block has a part of a row. */
template <int W, ActKind ACT>
__global__ static void __launch_bounds__(256)
    act_forward_kernel(floatX *__restrict__ y, const floatX *__restrict__ h, int F,
                       unsigned parts) {
    size_t n = blockIdx.x / parts;
    int i = (int)((blockIdx.x % parts) * blockDim.x + threadIdx.x) * W;
    if (i >= F) return;
    constexpr int gated = act_gated<ACT>;
    const floatX *in = h + n * F * (1 + gated) + i;
    float x[W], up[W] = {0};
    load(x, in);
    if constexpr (gated) load(up, in + F);
    UNROLLED_FOR (int j = 0; j < W; j++) x[j] = act_value<ACT>(x[j], up[j]);
    store(y + n * F + i, x);
}

/* d is the gradient of act(x), or of act(x) up with a gate. Returns the gradient of x, and sets
   *up to the gradient of up. */
template <ActKind ACT> __device__ static inline float act_slope(float d, float x, float *up) {
    float s, rest, gate;
    switch (ACT) {
    case ACT_RELU2: return x > 0 ? 2 * x * d : 0;
    case ACT_GELU: return d * gelu_slope(x);
    case ACT_SWIGLU:
        logistic(x, &s, &rest);
        gate = d * *up * (s + x * s * rest);
        *up = d * x * s;
        return gate;
    }
    return 0;
}

template <int W, ActKind ACT>
__global__ static void __launch_bounds__(256)
    act_backward_kernel(floatX *__restrict__ dh, const floatX *__restrict__ dy,
                        const floatX *__restrict__ h, int F, unsigned parts) {
    size_t n = blockIdx.x / parts;
    int i = (int)((blockIdx.x % parts) * blockDim.x + threadIdx.x) * W;
    if (i >= F) return;
    constexpr int gated = act_gated<ACT>;
    size_t at = n * F * (1 + gated) + i;
    float x[W], up[W] = {0}, d[W];
    load(d, dy + n * F + i);
    load(x, h + at);
    if constexpr (gated) load(up, h + at + F);
    UNROLLED_FOR (int j = 0; j < W; j++) d[j] = act_slope<ACT>(d[j], x[j], &up[j]);
    store(dh + at, d);
    if constexpr (gated) store(dh + at + F, up);
}

/* act_backward_kernel that also sums: partials (P,H) = the sums of dh over the rows of each
   part, as in column_sums_kernel. A warp has 32 W columns of F. Grid (columns, P), block (32,
   SUM_ROWS). */
constexpr int act_ahead = 2; /* rows that a warp reads at a time */
template <int W, ActKind ACT>
__global__ static void __launch_bounds__(32 * SUM_ROWS)
    act_backward_sums_kernel(floatX *__restrict__ dh, float *__restrict__ partials,
                             const floatX *__restrict__ dy, const floatX *__restrict__ h, int N,
                             int F) {
    constexpr int GATED = act_gated<ACT>;
    BLOCK_SHARED(room, [1 + GATED][SUM_ROWS][32 * W], float);
    const int H = (1 + GATED) * F, base = (int)blockIdx.x * 32 * W, c = base + (int)threadIdx.x * W;
    size_t P = gridDim.y, part = blockIdx.y, end = (size_t)N * (part + 1) / P;
    float sum[W] = {0}, up_sum[W] = {0};
    for (size_t first = (size_t)N * part / P + threadIdx.y; first < end;
         first += act_ahead * SUM_ROWS) {
        Raw<W> d_raw[act_ahead], x_raw[act_ahead], up_raw[act_ahead];
        UNROLLED_FOR (int k = 0; k < act_ahead; k++) {
            size_t n = first + k * SUM_ROWS;
            int in_bounds = c < F && n < end;
            d_raw[k] = fetch<W>(dy, n * F + c, in_bounds);
            x_raw[k] = fetch<W>(h, n * H + c, in_bounds);
            if constexpr (GATED) up_raw[k] = fetch<W>(h, n * H + F + c, in_bounds);
        }
        UNROLLED_FOR (int k = 0; k < act_ahead; k++) {
            size_t n = first + k * SUM_ROWS;
            if (c >= F || n >= end) continue;
            float d[W], x[W], up[W] = {0};
            unpack(d, d_raw[k]);
            unpack(x, x_raw[k]);
            if constexpr (GATED) unpack(up, up_raw[k]);
            UNROLLED_FOR (int i = 0; i < W; i++) {
                d[i] = act_slope<ACT>(d[i], x[i], &up[i]);
                sum[i] += to_float(from_float<floatX>(d[i]));
                up_sum[i] += to_float(from_float<floatX>(up[i]));
            }
            store(dh + n * H + c, d);
            if constexpr (GATED) store(dh + n * H + F + c, up);
        }
    }
    store_floats(&room[0][threadIdx.y][(int)threadIdx.x * W], sum);
    if constexpr (GATED) store_floats(&room[1][threadIdx.y][(int)threadIdx.x * W], up_sum);
    __syncthreads();
    for (int i = (int)(threadIdx.y * 32 + threadIdx.x); i < 32 * W && base + i < F;
         i += 32 * SUM_ROWS)
        for (int k = 0; k <= GATED; k++) {
            float total = 0;
            UNROLLED_FOR (int j = 0; j < SUM_ROWS; j++) total += room[k][j][i];
            partials[part * (size_t)H + (size_t)(k * F + base + i)] = total;
        }
}

template <int W>
static inline void act_forward_by(floatX *y, const floatX *h, int N, int F, int act) {
    unsigned parts, threads;
    row_parts(&parts, &threads, F, W);
    unsigned blocks = (unsigned)N * parts;
#define ACT_FORWARD(ACT, FLAG, NAME)                                                               \
    case ACT: LAUNCH((act_forward_kernel<W, ACT>), blocks, threads, 0, y, h, F, parts); break;
    switch ((ActKind)act) { ACTS(ACT_FORWARD) }
#undef ACT_FORWARD
}

static inline void act_forward(floatX *y, const floatX *h, int N, int F, int act) {
    if (all_wide(F, y, h)) act_forward_by<XW>(y, h, N, F, act);
    else act_forward_by<1>(y, h, N, F, act);
}

template <int W>
static inline void act_backward_by(floatX *dh, const floatX *dy, const floatX *h, int N, int F,
                                   int act) {
    unsigned parts, threads;
    row_parts(&parts, &threads, F, W);
    unsigned blocks = (unsigned)N * parts;
#define ACT_BACKWARD(ACT, FLAG, NAME)                                                              \
    case ACT: LAUNCH((act_backward_kernel<W, ACT>), blocks, threads, 0, dh, dy, h, F, parts); break;
    switch ((ActKind)act) { ACTS(ACT_BACKWARD) }
#undef ACT_BACKWARD
}

static inline void act_backward(floatX *dh, const floatX *dy, const floatX *h, int N, int F,
                                int act) {
    if (all_wide(F, dh, dy, h)) act_backward_by<XW>(dh, dy, h, N, F, act);
    else act_backward_by<1>(dh, dy, h, N, F, act);
}

static inline size_t act_scratch(int N, int F, int H) {
    return (size_t)sum_parts(N, F) * (size_t)H * sizeof(float);
}

template <int W>
static inline void act_backward_sums_by(floatX *dh, floatM *db, const floatX *dy, const floatX *h,
                                        int N, int F, int act) {
    const int H = act_is_gated((ActKind)act) ? 2 * F : F;
    dim3 grid(ceil_div((size_t)F, 32 * (size_t)W), sum_parts(N, F)), block(32, SUM_ROWS);
    float *partials = (float *)cuda_scratch(act_scratch(N, F, H));
#define ACT_BACKWARD(ACT, FLAG, NAME)                                                              \
    case ACT:                                                                                      \
        LAUNCH((act_backward_sums_kernel<W, ACT>), grid, block, 0, dh, partials, dy, h, N, F);     \
        break;
    switch ((ActKind)act) { ACTS(ACT_BACKWARD) }
#undef ACT_BACKWARD
    add_partials({{db}}, partials, grid.y, H);
}

/* act_backward with db (H) += the sum of dh over N. */
static inline void act_backward_sums(floatX *dh, floatM *db, const floatX *dy, const floatX *h,
                                     int N, int F, int act) {
    if (all_wide(F, dh, dy, h)) act_backward_sums_by<XW>(dh, db, dy, h, N, F, act);
    else act_backward_sums_by<1>(dh, db, dy, h, N, F, act);
}

static inline void act_backward_bias(floatX *dh, floatM *db, const floatX *dy, const floatX *h,
                                     int N, int F, int act) {
    if (db) act_backward_sums(dh, db, dy, h, N, F, act);
    else act_backward(dh, dy, h, N, F, act);
}

/* ---------------------------------------------------------------------------------------------- */
/* a linear layer and the activation after it */

/* With cm_gpu.gelu_fused, GELU and its derivative are computed in the epilogue of the product,
   from sums that are not rounded yet, wherever the library can. This saves writing and reading
   one tensor (N,F) forward and two backward. */
static inline void linear_act_forward(floatX *y, floatX *h, const floatX *x, const floatX *w,
                                      const floatX *b, int N, int I, int F, int act) {
    size_t i = (size_t)I, f = (size_t)F;
    if (act == ACT_GELU && cm_gpu.gelu_fused &&
        !gemm_gelu(0, 1, N, F, I, x, i, w, i, y, f, h, f, b))
        return;
    linear_forward(h, x, w, b, N, I, act_is_gated((ActKind)act) ? 2 * F : F);
    act_forward(y, h, N, F, act);
}

/* y once more, to the bit. An epilogue has computed it from unrounded sums, which takes the
   product again. */
static inline void linear_act_again(floatX *y, floatX *h, const floatX *x, const floatX *w,
                                    const floatX *b, int N, int I, int F, int act) {
    if (act == ACT_GELU && cm_gpu.gelu_fused) linear_act_forward(y, h, x, w, b, N, I, F, act);
    else act_forward(y, h, N, F, act);
}

static inline void linear_act_backward(floatX *dh, floatX *dy, floatM *db, const floatX *dz,
                                       const floatX *w, const floatX *h, int N, int F, int O,
                                       int act) {
    size_t o = (size_t)O, f = (size_t)F;
    if (act == ACT_GELU && cm_gpu.gelu_fused &&
        !gemm_dgelu(0, 0, N, F, O, dz, o, w, f, dh, f, h, f)) {
        if (db) bias_backward(db, dh, N, F);
        return;
    }
    gemm(0, 0, N, F, O, 1, dz, o, w, f, 0, dy, f);
    act_backward_bias(dh, db, dy, h, N, F, act);
}

/* ---------------------------------------------------------------------------------------------- */
/* weights */

template <int W>
__global__ static void __launch_bounds__(256)
    cast_kernel(floatX *__restrict__ w, const floatM *__restrict__ p, size_t n) {
    size_t step = (size_t)gridDim.x * 256 * W;
    for (size_t i = ((size_t)blockIdx.x * 256 + threadIdx.x) * W; i < n; i += step) {
        float x[W];
        if (i + W <= n) {
            load_floats(x, p + i);
            store(w + i, x);
        } else {
            for (size_t j = i; j < n; j++) w[j] = from_float<floatX>(p[j]);
        }
    }
}

/* w (n) = the parameters p as the layers read them. */
static inline void cast_weights(floatX *w, const floatM *p, size_t n) {
    int W = wide_rows(w, 0) && wide_rows(p, 0) ? XW : 1;
    size_t blocks = (n + 256 * (size_t)W - 1) / (256 * (size_t)W);
    unsigned grid = (unsigned)min_size(blocks, 1024); /* about as many blocks as run at a time */
    if (W > 1) LAUNCH(cast_kernel<XW>, grid, 256, 0, w, p, n);
    else LAUNCH(cast_kernel<1>, grid, 256, 0, w, p, n);
}

/* ---------------------------------------------------------------------------------------------- */

/* Bytes of cuda_scratch that training takes in the layers, with R rows of logits at a time. */
static inline size_t layers_scratch(const Shape *s, int R) {
    const size_t needs[] = {embed_scratch(s->N, s->C),  norm_scratch(s->N, s->C),
                            bias_scratch(s->N, s->QKV), bias_scratch(s->N, s->C),
                            bias_scratch(s->N, s->H),   act_scratch(s->N, s->F, s->H),
                            bias_scratch(R, s->Vp)};
    size_t largest = 0;
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++)
        if (needs[i] > largest) largest = needs[i];
    return largest;
}

#endif
