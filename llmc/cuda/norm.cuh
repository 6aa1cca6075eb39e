/*
LayerNorm and RMSNorm on CUDA: forward, which first adds a branch to the residual stream, and
backward.
*/
#ifndef CM_CUDA_NORM_CUH
#define CM_CUDA_NORM_CUH

#include "../shape.h"
#include "rows.cuh"

/* 1 / sqrt(mean square + eps); 0 for a row of zeros without eps, whose norm is zeros. */
__device__ static inline float norm_rstd(float mean_square, float eps) {
    float x = mean_square + eps;
    return x == 0 ? 0 : rsqrtf(x);
}

enum { NORM_ROWS = 8 }; /* rows of a block, one for each warp */

/* A warp has a row and keeps it in registers: at most V times 32 W elements. */
template <int W, int V>
__global__ static void __launch_bounds__(32 * NORM_ROWS)
    norm_forward_kernel(floatX *y, floatM *mean, floatM *rstd, floatX *x_out,
                        const floatX *residual, const floatX *__restrict__ delta,
                        const floatM *__restrict__ gain, const floatM *__restrict__ bias, int N,
                        int C, int centred, float eps) {
    int n = (int)(blockIdx.x * NORM_ROWS + threadIdx.y), lane = (int)threadIdx.x;
    if (n >= N) return;
    size_t row = (size_t)n * C;
    Raw<W> x_raw[V], d_raw[V];
    float x[V][W], d[W], m = 0, s = 0, inverse = 1 / (float)C;
    UNROLLED_FOR (int v = 0; v < V; v++) {
        int c = (v * 32 + lane) * W;
        x_raw[v] = fetch<W>(residual, row + c, c < C);
        d_raw[v] = fetch<W>(delta, row + c, delta && c < C);
    }
    UNROLLED_FOR (int v = 0; v < V; v++) {
        int c = (v * 32 + lane) * W;
        unpack(x[v], x_raw[v]);
        if (!delta) continue;
        unpack(d, d_raw[v]);
        add_rounded(x[v], d);
        if (c < C) store(x_out + row + c, x[v]);
    }
    if (centred) {
        UNROLLED_FOR (int v = 0; v < V; v++)
            UNROLLED_FOR (int i = 0; i < W; i++) m += x[v][i];
        m = warp_sum(m) * inverse;
    }
    UNROLLED_FOR (int v = 0; v < V; v++)
        UNROLLED_FOR (int i = 0; i < W; i++) {
            float offset = (v * 32 + lane) * W < C ? x[v][i] - m : 0;
            s += offset * offset;
        }
    float r = norm_rstd(warp_sum(s) * inverse, eps);
    UNROLLED_FOR (int v = 0; v < V; v++) {
        int c = (v * 32 + lane) * W;
        if (c >= C) continue;
        float g[W], b[W] = {0};
        load_floats(g, gain + c);
        if (bias) load_floats(b, bias + c);
        UNROLLED_FOR (int i = 0; i < W; i++) x[v][i] = g[i] * ((x[v][i] - m) * r) + b[i];
        store(y + row + c, x[v]);
    }
    if (lane == 0) {
        mean[n] = m;
        rstd[n] = r;
    }
}

/* norm_forward_kernel for rows of any length, which are read again for each sum. */
template <int W>
__global__ static void __launch_bounds__(32 * NORM_ROWS)
    norm_forward_long_kernel(floatX *y, floatM *mean, floatM *rstd, floatX *x_out,
                             const floatX *residual, const floatX *__restrict__ delta,
                             const floatM *__restrict__ gain, const floatM *__restrict__ bias,
                             int N, int C, int centred, float eps) {
    int n = (int)(blockIdx.x * NORM_ROWS + threadIdx.y), lane = (int)threadIdx.x;
    if (n >= N) return;
    size_t row = (size_t)n * C;
    const floatX *in = delta ? x_out + row : residual + row;
    float x[W], more[W], m = 0, s = 0, inverse = 1 / (float)C;
    for (int c = lane * W; c < C && delta; c += 32 * W) {
        load(x, residual + row + c);
        load(more, delta + row + c);
        add_rounded(x, more);
        store(x_out + row + c, x);
    }
    if (centred) {
#pragma unroll 4
        for (int c = lane * W; c < C; c += 32 * W) {
            load(x, in + c);
            UNROLLED_FOR (int i = 0; i < W; i++) m += x[i];
        }
        m = warp_sum(m) * inverse;
    }
#pragma unroll 4
    for (int c = lane * W; c < C; c += 32 * W) {
        load(x, in + c);
        UNROLLED_FOR (int i = 0; i < W; i++) s += (x[i] - m) * (x[i] - m);
    }
    float r = norm_rstd(warp_sum(s) * inverse, eps);
    for (int c = lane * W; c < C; c += 32 * W) {
        float g[W], b[W] = {0};
        load(x, in + c);
        load_floats(g, gain + c);
        if (bias) load_floats(b, bias + c);
        UNROLLED_FOR (int i = 0; i < W; i++) x[i] = g[i] * ((x[i] - m) * r) + b[i];
        store(y + row + c, x);
    }
    if (lane == 0) {
        mean[n] = m;
        rstd[n] = r;
    }
}

/* y may not overlap any input. */
static inline void norm_forward(floatX *y, floatM *mean, floatM *rstd, floatX *x_out,
                                const floatX *residual, const floatX *delta, const floatM *gain,
                                const floatM *bias, int N, int C, int kind, double eps) {
    dim3 grid(ceil_div((size_t)N, NORM_ROWS)), block(32, NORM_ROWS);
    int wide = all_wide(C, y, residual, delta) && (!delta || all_wide(C, x_out)) &&
               all_wide(C, gain, bias);
    float e = (float)eps;
    int centred = norm_is_centred((NormKind)kind);
#define NORM_FORWARD(KERNEL)                                                                       \
    LAUNCH((KERNEL), grid, block, 0, y, mean, rstd, x_out, residual, delta, gain, bias, N, C,      \
           centred, e)
    if (wide && C <= 4 * 32 * XW) NORM_FORWARD((norm_forward_kernel<XW, 4>));
    else if (wide && C <= 8 * 32 * XW) NORM_FORWARD((norm_forward_kernel<XW, 8>));
    else if (wide) NORM_FORWARD(norm_forward_long_kernel<XW>);
    else NORM_FORWARD(norm_forward_long_kernel<1>);
#undef NORM_FORWARD
}

/* With dxhat = dy gain:  dx = dres + rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)); RMSNorm
   has no first mean. A block walks along some rows, R at a time, so that several loads are in
   flight and one barrier serves 2 R sums. A thread has W columns. It keeps its parts of dgain,
   of dbias and of the sum of dx, and stores them in partials: (blocks,C) of dgain, then of dbias,
   then of the sum. The sums are formed whether they are wanted or not: without one of them the
   compiler would contract the products of dx in another way, and dx would have other bits. */
enum { NORM_WARPS = 18 }; /* most warps of a block */
template <int W, int R>
__global__ static void __launch_bounds__(32 * NORM_WARPS)
    norm_backward_kernel(floatX *dx, float *__restrict__ partials, const floatX *dy,
                         const floatX *dres, const floatX *__restrict__ x,
                         const floatM *__restrict__ gain, const floatM *__restrict__ mean,
                         const floatM *__restrict__ rstd, int N, int C, int centred) {
    BLOCK_SHARED(room, [2][NORM_WARPS][2 * R], float);
    int c = (int)threadIdx.x * W, warps = (int)blockDim.x / 32, turn = 0;
    size_t blocks = gridDim.x, block = blockIdx.x, end = (size_t)N * (block + 1) / blocks;
    float g[W] = {0}, dgain[W] = {0}, dbias[W] = {0}, dsum[W] = {0}, inverse = 1 / (float)C;
    if (c < C) load_floats(g, gain + c);
    for (size_t n = (size_t)N * block / blocks; n < end; n += R, turn ^= 1) {
        Raw<W> x_raw[R], d_raw[R], res_raw[R];
        float xhat[R][W], d[R][W], r[R], sums[2 * R] = {0}, part[4];
        UNROLLED_FOR (int k = 0; k < R; k++) {
            size_t at = (n + k) * C + c;
            int in_bounds = c < C && n + k < end;
            x_raw[k] = fetch<W>(x, at, in_bounds);
            d_raw[k] = fetch<W>(dy, at, in_bounds);
            res_raw[k] = fetch<W>(dres, at, in_bounds && dres);
        }
        UNROLLED_FOR (int k = 0; k < R; k++) {
            float m = n + k < end ? mean[n + k] : 0;
            r[k] = n + k < end ? rstd[n + k] : 0; /* rows that do not exist add nothing */
            unpack(xhat[k], x_raw[k]);
            unpack(d[k], d_raw[k]);
            UNROLLED_FOR (int i = 0; i < W; i++) {
                xhat[k][i] = (xhat[k][i] - m) * r[k];
                dgain[i] += d[k][i] * xhat[k][i];
                dbias[i] += d[k][i];
                d[k][i] *= g[i];
                sums[2 * k] += d[k][i];
                sums[2 * k + 1] += d[k][i] * xhat[k][i];
            }
        }
        UNROLLED_FOR (int k = 0; k < 2 * R; k++) {
            float sum = warp_sum(sums[k]);
            if (threadIdx.x % 32 == 0) room[turn][threadIdx.x / 32][k] = sum;
            sums[k] = 0;
        }
        /* this half of room is used again after two turns, so one barrier is enough */
        __syncthreads();
        for (int w = 0; w < warps; w++)
            UNROLLED_FOR (int k = 0; k < 2 * R; k += 4) {
                load_floats(part, &room[turn][w][k]);
                UNROLLED_FOR (int j = 0; j < 4; j++) sums[k + j] += part[j];
            }
        UNROLLED_FOR (int k = 0; k < R; k++) {
            float a = centred ? sums[2 * k] * inverse : 0, b = sums[2 * k + 1] * inverse;
            float out[W];
            unpack(out, res_raw[k]);
            UNROLLED_FOR (int i = 0; i < W; i++) {
                out[i] += r[k] * (d[k][i] - a - xhat[k][i] * b);
                dsum[i] += n + k < end ? to_float(from_float<floatX>(out[i])) : 0;
            }
            if (c < C && n + k < end) store(dx + (n + k) * C + c, out);
        }
    }
    if (c >= C) return;
    store_floats(partials + block * C + c, dgain);
    store_floats(partials + (blocks + block) * C + c, dbias);
    store_floats(partials + (2 * blocks + block) * C + c, dsum);
}

/* dx alone, a row to a warp, for rows that norm_backward_kernel cannot do. */
template <int W>
__global__ static void __launch_bounds__(32 * NORM_ROWS)
    norm_dx_kernel(floatX *dx, const floatX *dy, const floatX *dres, const floatX *__restrict__ x,
                   const floatM *__restrict__ gain, const floatM *__restrict__ mean,
                   const floatM *__restrict__ rstd, int N, int C, int centred) {
    int n = (int)(blockIdx.x * NORM_ROWS + threadIdx.y), lane = (int)threadIdx.x;
    if (n >= N) return;
    size_t row = (size_t)n * C;
    float m = mean[n], r = rstd[n], a = 0, b = 0, v[W], d[W], g[W];
#pragma unroll 4
    for (int c = lane * W; c < C; c += 32 * W) {
        load(v, x + row + c);
        load(d, dy + row + c);
        load_floats(g, gain + c);
        UNROLLED_FOR (int i = 0; i < W; i++) {
            a += d[i] * g[i];
            b += d[i] * g[i] * ((v[i] - m) * r);
        }
    }
    a = centred ? warp_sum(a) / (float)C : 0;
    b = warp_sum(b) / (float)C;
    for (int c = lane * W; c < C; c += 32 * W) {
        float out[W] = {0};
        if (dres) load(out, dres + row + c);
        load(v, x + row + c);
        load(d, dy + row + c);
        load_floats(g, gain + c);
        UNROLLED_FOR (int i = 0; i < W; i++) out[i] += r * (d[i] * g[i] - a - (v[i] - m) * r * b);
        store(dx + row + c, out);
    }
}

/* Threads of a block of norm_backward_kernel, and the number of blocks: as many as the 108
   multiprocessors of an A100 run at a time with 21 warps each, which also saturates the memory
   of an H100; but at least 8 rows a block. */
static inline unsigned norm_threads(int C) { return 32 * ceil_div((size_t)C, 32 * XW); }
static inline unsigned norm_blocks(int N, int C) {
    unsigned most = ceil_div((size_t)N, 8), each = 21 * 32 / norm_threads(C),
             want = 108 * (each + !each);
    return want > most ? most : want;
}

static inline size_t norm_scratch(int N, int C) {
    size_t parts = norm_blocks(N, C) > sum_parts(N, C) ? norm_blocks(N, C) : sum_parts(N, C);
    return 3 * parts * (size_t)C * sizeof(float);
}

template <int W>
static inline void norm_backward_any(floatX *dx, floatM *dgain, floatM *dbias, floatM *dsum,
                                     const floatX *dy, const floatX *dres, const floatX *x,
                                     const floatM *gain, const floatM *mean, const floatM *rstd,
                                     int N, int C, int centred) {
    unsigned parts = sum_parts(N, C);
    float *partials = (float *)cuda_scratch(norm_scratch(N, C));
    dim3 grid(ceil_div((size_t)C, 32 * W), parts), block(32, SUM_ROWS);
    LAUNCH((column_sums_kernel<W, 1>), grid, block, 0, partials, dy, x, mean, rstd, N, C);
    add_partials({{dbias, dgain}}, partials, parts, C);
    grid = dim3(ceil_div((size_t)N, NORM_ROWS));
    block = dim3(32, NORM_ROWS); /* last, because dx may be dy */
    LAUNCH(norm_dx_kernel<W>, grid, block, 0, dx, dy, dres, x, gain, mean, rstd, N, C, centred);
    if (dsum) bias_backward(dsum, dx, N, C);
}

/* dx may be dy, dres or both. dgain, dbias and dsum (C) are added to, each unless it is NULL. */
static inline void norm_backward(floatX *dx, floatM *dgain, floatM *dbias, floatM *dsum,
                                 const floatX *dy, const floatX *dres, const floatX *x,
                                 const floatM *gain, const floatM *mean, const floatM *rstd, int N,
                                 int C, int kind) {
    int wide = all_wide(C, dx, dy, dres) && all_wide(C, x) && all_wide(C, gain);
    int centred = norm_is_centred((NormKind)kind);
    if (wide && norm_threads(C) <= 32 * NORM_WARPS) {
        unsigned blocks = norm_blocks(N, C), threads = norm_threads(C);
        float *partials = (float *)cuda_scratch(norm_scratch(N, C));
        LAUNCH((norm_backward_kernel<XW, 2>), blocks, threads, 0, dx, partials, dy, dres, x, gain,
               mean, rstd, N, C, centred);
        add_partials({{dgain, dbias, dsum}}, partials, blocks, C);
    } else if (wide) {
        norm_backward_any<XW>(dx, dgain, dbias, dsum, dy, dres, x, gain, mean, rstd, N, C, centred);
    } else {
        norm_backward_any<1>(dx, dgain, dbias, dsum, dy, dres, x, gain, mean, rstd, N, C, centred);
    }
}

#endif
