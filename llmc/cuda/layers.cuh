/*
The model's layers on CUDA, forward and backward: the twins of llmc/cpu/layers.h, with the same names,
arguments and contracts. N = B T tokens. All are bound by memory, save the matrix products.

A kernel template's W is the number of elements a thread reads at once: XW (16 bytes of floatX) where
pointers and row lengths are multiples of that, else 1. Sums over rows are made in two stages, parts of
the rows first, whose number depends on the shape alone; so no bit depends on the GPU's size.
*/
#ifndef CM_CUDA_LAYERS_CUH
#define CM_CUDA_LAYERS_CUH

#include "../base.h"
#include "../config.h"
#include "../rope.h"
#include "gemm.cuh"
#include "runtime.cuh"

enum { XW = Wide<floatX>::N };

/* Whether rows of n elements can be read XW at a time from all of these pointers; NULL is no obstacle. */
template <typename... P> static inline int all_wide(int n, const P *...p) {
    return n % XW == 0 && (wide_rows(p, (size_t)n) && ...);
}

/* What one access to p[i] brings, before it becomes floats; zeros if nothing is there. One loop makes the
   accesses and the next unpacks them, so that they are under way together: a compiler makes no access
   before a branch or a store that it comes after. */
template <int W> struct Raw { uint4 bits; };
template <> struct Raw<1> { floatX bits; };
template <int W> __device__ static inline Raw<W> fetch(const floatX *p, size_t i, int there) {
    Raw<W> raw = {};
    if constexpr (W == 1) {
        if (there) raw.bits = p[i];
    } else {
        if (there) raw.bits = *(const uint4 *)(const void *)(p + i);
    }
    return raw;
}
template <int W> __device__ static inline void unpack(float (&x)[W], const Raw<W> &raw) {
    const floatX *t = (const floatX *)(const void *)&raw;
UNROLL
    for (int i = 0; i < W; i++) x[i] = to_float(t[i]);
}

/* load and store of N floats, in as many 16-byte accesses as they take. */
template <int N> __device__ static inline void load_floats(float (&x)[N], const float *p) {
    if constexpr (N % 4 == 0) {
UNROLL
        for (int i = 0; i < N; i += 4) {
            float4 part = *(const float4 *)(const void *)(p + i);
            x[i] = part.x, x[i + 1] = part.y, x[i + 2] = part.z, x[i + 3] = part.w;
        }
    } else {
        load(x, p);
    }
}
template <int N> __device__ static inline void store_floats(float *p, const float (&x)[N]) {
    if constexpr (N % 4 == 0) {
UNROLL
        for (int i = 0; i < N; i += 4)
            *(float4 *)(void *)(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    } else {
        store(p, x);
    }
}

/* p += x */
template <int N> __device__ static inline void add_floats(float *p, const float (&x)[N]) {
    float old[N];
    load_floats(old, p);
UNROLL
    for (int i = 0; i < N; i++) old[i] += x[i];
    store_floats(p, old);
}

/* x = residual + delta as floatX holds it: what is computed from the sum must not depend on whether it was
   formed here or read back later. */
template <int W> __device__ static inline void add_rounded(float (&x)[W], const float (&delta)[W]) {
UNROLL
    for (int i = 0; i < W; i++) x[i] = to_float(from_float<floatX>(x[i] + delta[i]));
}

/* A row shared out to blocks of up to 256 threads of W elements each: blocks a row, and their threads. */
static inline void row_parts(unsigned *parts, unsigned *threads, int n, int W) {
    unsigned vectors = ceil_div((size_t)n, (size_t)W);
    *parts = ceil_div(vectors, 256);
    *threads = 32 * ceil_div(ceil_div(vectors, *parts), 32);
}

/* ---------------------------------------------------------------------------------------------- */
/* sums over rows */

enum { SUM_ROWS = 8, SUM_AHEAD = 4 }; /* warps of a block, rows a warp reads at a time */

/* Into how many parts N rows of C columns are split: enough blocks to fill a large GPU, of at least 64
   rows. */
static inline unsigned sum_parts(int N, int C) {
    unsigned most = ceil_div((size_t)N, 64), want = 1024 / ceil_div((size_t)C, 32 * XW);
    return want < 1 ? 1 : want > most ? most : want;
}

/* partials (P,C) = the sum over each part's rows of dy (N,C), and with NORM P more rows with the sums of
   dy xhat, xhat = (x - mean) rstd. A warp has 32 W columns; grid (columns, P), block (32, SUM_ROWS). */
template <int W, int NORM> __global__ static void __launch_bounds__(32 * SUM_ROWS)
column_sums_kernel(float *partials, const floatX *__restrict__ dy, const floatX *__restrict__ x,
                   const floatM *__restrict__ mean, const floatM *__restrict__ rstd, int N, int C) {
    __align__(16) __shared__ float room[1 + NORM][SUM_ROWS][32 * W];
    int base = (int)blockIdx.x * 32 * W, c = base + (int)threadIdx.x * W;
    size_t P = gridDim.y, part = blockIdx.y, end = (size_t)N * (part + 1) / P;
    float sum[W] = {0}, products[W] = {0};
    for (size_t first = (size_t)N * part / P + threadIdx.y; first < end; first += SUM_AHEAD * SUM_ROWS) {
        Raw<W> ahead[SUM_AHEAD], x_ahead[SUM_AHEAD];
UNROLL
        for (int k = 0; k < SUM_AHEAD; k++) {
            size_t n = first + k * SUM_ROWS;
            ahead[k] = fetch<W>(dy, n * C + c, c < C && n < end);
            if constexpr (NORM) x_ahead[k] = fetch<W>(x, n * C + c, c < C && n < end);
        }
UNROLL
        for (int k = 0; k < SUM_AHEAD; k++) {
            size_t n = first + k * SUM_ROWS;
            float d[W], v[W], m = 0, r = 0;
            unpack(d, ahead[k]);
            if constexpr (NORM) {
                unpack(v, x_ahead[k]);
                if (n < end) m = mean[n], r = rstd[n];
            }
UNROLL
            for (int i = 0; i < W; i++) {
                sum[i] += d[i];
                if constexpr (NORM) products[i] += d[i] * ((v[i] - m) * r);
            }
        }
    }
    store_floats(&room[0][threadIdx.y][(int)threadIdx.x * W], sum);
    if constexpr (NORM) store_floats(&room[1][threadIdx.y][(int)threadIdx.x * W], products);
    __syncthreads();
    for (int i = (int)(threadIdx.y * 32 + threadIdx.x); i < 32 * W && base + i < C; i += 32 * SUM_ROWS)
        for (int k = 0; k <= NORM; k++) {
            float total = 0;
UNROLL
            for (int j = 0; j < SUM_ROWS; j++) total += room[k][j][i];
            partials[(k * P + part) * C + base + i] = total;
        }
}

/* out0 (C) += the sum of P rows of partials; out1, if there is one, of the next P. Of a column, warp w sums
   rows w, w + 32, ..., and these sums are added up in turn. */
__global__ static void __launch_bounds__(1024)
add_partials_kernel(floatM *out0, floatM *out1, const float *__restrict__ partials, int P, int C) {
    __shared__ float room[32][32];
    int c = (int)(blockIdx.x * 32 + threadIdx.x);
    const float *part = partials + (size_t)blockIdx.y * P * C + c;
    float sum = 0;
    for (int first = (int)threadIdx.y; first < P; first += 8 * 32) {
        float ahead[8];
UNROLL
        for (int k = 0; k < 8; k++) {
            int p = first + 32 * k;
            ahead[k] = c < C && p < P ? part[(size_t)p * C] : 0;
        }
UNROLL
        for (int k = 0; k < 8; k++) sum += ahead[k];
    }
    room[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= C) return;
    for (int i = 1; i < 32; i++) sum += room[i][threadIdx.x];
    (blockIdx.y ? out1 : out0)[c] += sum;
}

static inline void add_partials(floatM *out0, floatM *out1, const float *partials, unsigned P, int C) {
    dim3 grid(ceil_div((size_t)C, 32), out1 ? 2 : 1), block(32, 32);
    LAUNCH(add_partials_kernel, grid, block, 0, out0, out1, partials, (int)P, C);
}

/* ---------------------------------------------------------------------------------------------- */
/* embedding */

enum { EMBED_WARPS = 4, EMBED_CHUNK = 32, EMBED_AHEAD = 8 };

template <int W> __global__ static void
embed_forward_kernel(floatX *__restrict__ x, const int *__restrict__ tokens, const floatX *__restrict__ wte,
                     const floatX *__restrict__ wpe, int T, int C, unsigned parts) {
    size_t n = blockIdx.x / parts;
    int c = (int)((blockIdx.x % parts) * blockDim.x + threadIdx.x) * W;
    if (c >= C) return;
    float sum[W], position[W];
    Raw<W> p = fetch<W>(wpe, n % (size_t)T * C + c, wpe != NULL);
    load(sum, wte + (size_t)tokens[n] * C + c);
    unpack(position, p);
UNROLL
    for (int i = 0; i < W; i++) sum[i] += position[i];
    store(x + n * C + c, sum);
}

template <int W> static inline void embed_forward_by(floatX *x, const int *tokens, const floatX *wte,
                                                     const floatX *wpe, int N, int T, int C) {
    unsigned parts, threads;
    row_parts(&parts, &threads, C, W);
    LAUNCH(embed_forward_kernel<W>, (unsigned)N * parts, threads, 0, x, tokens, wte, wpe, T, C, parts);
}

static inline void embed_forward(floatX *x, const int *tokens, const floatX *wte, const floatX *wpe, int B,
                                 int T, int C) {
    if (all_wide(C, x, wte, wpe)) embed_forward_by<XW>(x, tokens, wte, wpe, B * T, T, C);
    else embed_forward_by<1>(x, tokens, wte, wpe, B * T, T, C);
}

/* sorted (N) = the positions 0..N-1 in the order of their tokens, equal tokens in order of position. */
static inline void tokens_sort(int *sorted, const int *tokens, int N, int vocab) {
    static int *start, room; /* of a token's positions in sorted */
    if (vocab <= 0) die("tokens_sort: a vocabulary of %d", vocab);
    if (vocab >= room) {
        free(start);
        room = vocab + 1;
        start = (int *)malloc((size_t)room * sizeof *start);
        if (!start) die("out of memory: counts of %d tokens", vocab);
    }
    memset(start, 0, ((size_t)vocab + 1) * sizeof *start);
    for (int n = 0; n < N; n++) {
        if (tokens[n] < 0 || tokens[n] >= vocab)
            die("token %d at position %d of a batch: the vocabulary has %d", tokens[n], n, vocab);
        start[tokens[n] + 1]++;
    }
    for (int v = 1; v < vocab; v++) start[v] += start[v - 1];
    for (int n = 0; n < N; n++) sorted[start[tokens[n]]++] = n;
}

/* The gradient of wte is a sum over runs of equal tokens, some of one row, some of thousands. Every warp
   takes EMBED_CHUNK rows in sorted order, however the runs fall, and 32 W columns. It adds a run within its
   chunk to dwte. Of a run that crosses into another chunk it leaves its part: in the chunk's first row of
   partials (chunks,2,C) if the run has begun before, in the second if it begins here. */
template <int W> __global__ static void __launch_bounds__(32 * EMBED_WARPS)
embed_chunks_kernel(floatM *dwte, float *partials, const floatX *__restrict__ dx,
                    const int *__restrict__ tokens, int N, int C) {
    const int *sorted = tokens + N;
    int chunk = (int)(blockIdx.x * EMBED_WARPS + threadIdx.y), first = chunk * EMBED_CHUNK;
    int lane = (int)threadIdx.x, c = ((int)blockIdx.y * 32 + lane) * W;
    if (first >= N) return;
    int count = N - first < EMBED_CHUNK ? N - first : EMBED_CHUNK;
    int position = sorted[first + (lane < count ? lane : count - 1)], token = tokens[position];
    int before = first ? tokens[sorted[first - 1]] : -1;
    int after = first + count < N ? tokens[sorted[first + count]] : -1;
    int begun = __shfl_sync(FULL_WARP, token, 0) != before; /* whether the run under way began here */
    float sum[W] = {0};
    for (int first_ahead = 0; first_ahead < count; first_ahead += EMBED_AHEAD) {
        Raw<W> ahead[EMBED_AHEAD];
UNROLL
        for (int k = 0; k < EMBED_AHEAD; k++) {
            size_t n = (size_t)__shfl_sync(FULL_WARP, position, first_ahead + k);
            ahead[k] = fetch<W>(dx, n * C + c, c < C && first_ahead + k < count);
        }
UNROLL
        for (int k = 0; k < EMBED_AHEAD; k++) {
            int i = first_ahead + k, last = i + 1 == count;
            int t = __shfl_sync(FULL_WARP, token, i), next = __shfl_sync(FULL_WARP, token, (i + 1) % 32);
            float row[W];
            if (last) next = after;
            unpack(row, ahead[k]);
UNROLL
            for (int j = 0; j < W; j++) sum[j] += row[j]; /* zero past the end */
            if (i >= count || (t == next && !last)) continue;
            if (c < C) {
                if (begun && t != next) add_floats(dwte + (size_t)t * C + c, sum);
                else store_floats(partials + (2 * (size_t)chunk + begun) * C + c, sum);
            }
            begun = 1;
UNROLL
            for (int j = 0; j < W; j++) sum[j] = 0;
        }
    }
}

/* Adds the runs that cross chunks: the warp of the chunk in which one begins gathers the parts. */
template <int W> __global__ static void __launch_bounds__(32 * EMBED_WARPS)
embed_runs_kernel(floatM *dwte, const float *__restrict__ partials, const int *__restrict__ tokens, int N,
                  int C) {
    const int *sorted = tokens + N;
    int chunk = (int)(blockIdx.x * EMBED_WARPS + threadIdx.y), first = chunk * EMBED_CHUNK;
    int lane = (int)threadIdx.x, c = ((int)blockIdx.y * 32 + lane) * W;
    if (N - first <= EMBED_CHUNK) return; /* there is no chunk after this one */
    int t = tokens[sorted[first + EMBED_CHUNK - 1]];
    if (tokens[sorted[first + EMBED_CHUNK]] != t) return;
    if (first && tokens[sorted[first - 1]] == t) return; /* began before */
    float sum[W] = {0};
    if (c < C) load_floats(sum, partials + (2 * (size_t)chunk + 1) * C + c);
    for (int k = chunk + 1, more = 32; more == 32; k += 32) {
        size_t begin = ((size_t)k + (size_t)lane) * EMBED_CHUNK;
        unsigned ends = ~__ballot_sync(FULL_WARP, begin < (size_t)N && tokens[sorted[begin]] == t);
        more = ends ? __ffs((int)ends) - 1 : 32;
        for (int i = 0; i < more && c < C; i += 4) {
            float ahead[4][W] = {};
UNROLL
            for (int j = 0; j < 4; j++)
                if (i + j < more) load_floats(ahead[j], partials + 2 * (size_t)(k + i + j) * C + c);
UNROLL
            for (int j = 0; j < 4; j++)
UNROLL
                for (int e = 0; e < W; e++) sum[e] += ahead[j][e];
        }
    }
    if (c < C) add_floats(dwte + (size_t)t * C + c, sum);
}

template <int W> __global__ static void __launch_bounds__(32 * EMBED_WARPS)
embed_positions_kernel(floatM *dwpe, const floatX *__restrict__ dx, int B, int T, int C) {
    int t = (int)(blockIdx.x * EMBED_WARPS + threadIdx.y), c = (int)(blockIdx.y * 32 + threadIdx.x) * W;
    if (t >= T || c >= C) return;
    float sum[W] = {0};
    for (int first = 0; first < B; first += EMBED_AHEAD) {
        Raw<W> ahead[EMBED_AHEAD];
UNROLL
        for (int k = 0; k < EMBED_AHEAD; k++)
            ahead[k] = fetch<W>(dx, ((size_t)(first + k) * T + t) * C + c, first + k < B);
UNROLL
        for (int k = 0; k < EMBED_AHEAD; k++) {
            float d[W];
            unpack(d, ahead[k]);
UNROLL
            for (int i = 0; i < W; i++) sum[i] += d[i];
        }
    }
    add_floats(dwpe + (size_t)t * C + c, sum);
}

static inline size_t embed_scratch(int N, int C) {
    return 2 * (size_t)ceil_div((size_t)N, EMBED_CHUNK) * (size_t)C * sizeof(float);
}

template <int W> static inline void embed_backward_by(floatM *dwte, floatM *dwpe, const floatX *dx,
                                                      const int *tokens, int B, int T, int C) {
    int N = B * T;
    unsigned chunks = ceil_div((size_t)N, EMBED_CHUNK), columns = ceil_div((size_t)C, 32 * W);
    float *partials = (float *)cuda_scratch(embed_scratch(N, C));
    dim3 grid(ceil_div(chunks, EMBED_WARPS), columns), block(32, EMBED_WARPS);
    LAUNCH(embed_chunks_kernel<W>, grid, block, 0, dwte, partials, dx, tokens, N, C);
    LAUNCH(embed_runs_kernel<W>, grid, block, 0, dwte, partials, tokens, N, C);
    grid.x = ceil_div((size_t)T, EMBED_WARPS);
    if (dwpe) LAUNCH(embed_positions_kernel<W>, grid, block, 0, dwpe, dx, B, T, C);
}

/* tokens holds N tokens and then their positions as tokens_sort leaves them. */
static inline void embed_backward(floatM *dwte, floatM *dwpe, const floatX *dx, const int *tokens, int B,
                                  int T, int C) {
    if (all_wide(C, dwte, dwpe) && all_wide(C, dx)) embed_backward_by<XW>(dwte, dwpe, dx, tokens, B, T, C);
    else embed_backward_by<1>(dwte, dwpe, dx, tokens, B, T, C);
}

/* ---------------------------------------------------------------------------------------------- */
/* norms */

enum { NORM_ROWS = 8 }; /* of a block, one a warp */

/* A warp has a row, which it keeps in registers: V times 32 W elements of it or fewer. */
template <int W, int V> __global__ static void __launch_bounds__(32 * NORM_ROWS)
norm_forward_kernel(floatX *y, floatM *mean, floatM *rstd, floatX *x_out, const floatX *residual,
                    const floatX *__restrict__ delta, const floatM *__restrict__ gain,
                    const floatM *__restrict__ bias, int N, int C, int kind, float eps) {
    int n = (int)(blockIdx.x * NORM_ROWS + threadIdx.y), lane = (int)threadIdx.x;
    if (n >= N) return;
    size_t row = (size_t)n * C;
    Raw<W> x_ahead[V], d_ahead[V];
    float x[V][W], d[W], m = 0, s = 0, inverse = 1 / (float)C;
UNROLL
    for (int v = 0; v < V; v++) {
        int c = (v * 32 + lane) * W;
        x_ahead[v] = fetch<W>(residual, row + c, c < C);
        d_ahead[v] = fetch<W>(delta, row + c, delta && c < C);
    }
UNROLL
    for (int v = 0; v < V; v++) {
        int c = (v * 32 + lane) * W;
        unpack(x[v], x_ahead[v]);
        if (!delta) continue;
        unpack(d, d_ahead[v]);
        add_rounded(x[v], d);
        if (c < C) store(x_out + row + c, x[v]);
    }
    if (kind == NORM_LAYERNORM) {
UNROLL
        for (int v = 0; v < V; v++)
UNROLL
            for (int i = 0; i < W; i++) m += x[v][i];
        m = warp_sum(m) * inverse;
    }
UNROLL
    for (int v = 0; v < V; v++)
UNROLL
        for (int i = 0; i < W; i++) {
            float centred = (v * 32 + lane) * W < C ? x[v][i] - m : 0;
            s += centred * centred;
        }
    float r = rsqrtf(warp_sum(s) * inverse + eps);
UNROLL
    for (int v = 0; v < V; v++) {
        int c = (v * 32 + lane) * W;
        if (c >= C) continue;
        float g[W], b[W] = {0};
        load_floats(g, gain + c);
        if (bias) load_floats(b, bias + c);
UNROLL
        for (int i = 0; i < W; i++) x[v][i] = g[i] * ((x[v][i] - m) * r) + b[i];
        store(y + row + c, x[v]);
    }
    if (lane == 0) mean[n] = m, rstd[n] = r;
}

/* The same for rows of any length, read again for each sum. */
template <int W> __global__ static void __launch_bounds__(32 * NORM_ROWS)
norm_forward_long_kernel(floatX *y, floatM *mean, floatM *rstd, floatX *x_out, const floatX *residual,
                         const floatX *__restrict__ delta, const floatM *__restrict__ gain,
                         const floatM *__restrict__ bias, int N, int C, int kind, float eps) {
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
    if (kind == NORM_LAYERNORM) {
#pragma unroll 4
        for (int c = lane * W; c < C; c += 32 * W) {
            load(x, in + c);
UNROLL
            for (int i = 0; i < W; i++) m += x[i];
        }
        m = warp_sum(m) * inverse;
    }
#pragma unroll 4
    for (int c = lane * W; c < C; c += 32 * W) {
        load(x, in + c);
UNROLL
        for (int i = 0; i < W; i++) s += (x[i] - m) * (x[i] - m);
    }
    float r = rsqrtf(warp_sum(s) * inverse + eps);
    for (int c = lane * W; c < C; c += 32 * W) {
        float g[W], b[W] = {0};
        load(x, in + c);
        load_floats(g, gain + c);
        if (bias) load_floats(b, bias + c);
UNROLL
        for (int i = 0; i < W; i++) x[i] = g[i] * ((x[i] - m) * r) + b[i];
        store(y + row + c, x);
    }
    if (lane == 0) mean[n] = m, rstd[n] = r;
}

/* y must be none of the others. */
static inline void norm_forward(floatX *y, floatM *mean, floatM *rstd, floatX *x_out, const floatX *residual,
                                const floatX *delta, const floatM *gain, const floatM *bias, int N, int C,
                                int kind, double eps) {
    dim3 grid(ceil_div((size_t)N, NORM_ROWS)), block(32, NORM_ROWS);
    int wide = all_wide(C, y, residual, delta) && (!delta || all_wide(C, x_out)) && all_wide(C, gain, bias);
    float e = (float)eps;
#define NORM_FORWARD(KERNEL)                                                                       \
    LAUNCH((KERNEL), grid, block, 0, y, mean, rstd, x_out, residual, delta, gain, bias, N, C, kind, e)
    if (wide && C <= 4 * 32 * XW) NORM_FORWARD((norm_forward_kernel<XW, 4>));
    else if (wide && C <= 8 * 32 * XW) NORM_FORWARD((norm_forward_kernel<XW, 8>));
    else if (wide) NORM_FORWARD(norm_forward_long_kernel<XW>);
    else NORM_FORWARD(norm_forward_long_kernel<1>);
#undef NORM_FORWARD
}

/* With dxhat = dy gain, dx = dres + rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), the first mean for
   LayerNorm only. A block walks some rows, R at a time so that several loads are under way and one barrier
   serves 2 R sums; a thread has W columns, whose parts of dgain and dbias it keeps and leaves in partials:
   (blocks,C) of dgain, then of dbias. */
enum { NORM_WARPS = 18 }; /* at most */
template <int W, int R> __global__ static void __launch_bounds__(32 * NORM_WARPS)
norm_backward_kernel(floatX *dx, float *__restrict__ partials, const floatX *dy, const floatX *dres,
                     const floatX *__restrict__ x, const floatM *__restrict__ gain,
                     const floatM *__restrict__ mean, const floatM *__restrict__ rstd, int N, int C,
                     int kind) {
    __align__(16) __shared__ float room[2][NORM_WARPS][2 * R];
    int c = (int)threadIdx.x * W, warps = (int)blockDim.x / 32, turn = 0;
    size_t blocks = gridDim.x, block = blockIdx.x, end = (size_t)N * (block + 1) / blocks;
    float g[W] = {0}, dgain[W] = {0}, dbias[W] = {0}, inverse = 1 / (float)C;
    if (c < C) load_floats(g, gain + c);
    for (size_t n = (size_t)N * block / blocks; n < end; n += R, turn ^= 1) {
        Raw<W> x_ahead[R], d_ahead[R], res_ahead[R];
        float xhat[R][W], d[R][W], r[R], sums[2 * R] = {0}, part[4];
UNROLL
        for (int k = 0; k < R; k++) {
            size_t at = (n + k) * C + c;
            int there = c < C && n + k < end;
            x_ahead[k] = fetch<W>(x, at, there);
            d_ahead[k] = fetch<W>(dy, at, there);
            res_ahead[k] = fetch<W>(dres, at, there && dres);
        }
UNROLL
        for (int k = 0; k < R; k++) {
            float m = n + k < end ? mean[n + k] : 0;
            r[k] = n + k < end ? rstd[n + k] : 0; /* so that what is not there adds nothing */
            unpack(xhat[k], x_ahead[k]);
            unpack(d[k], d_ahead[k]);
UNROLL
            for (int i = 0; i < W; i++) {
                xhat[k][i] = (xhat[k][i] - m) * r[k];
                dgain[i] += d[k][i] * xhat[k][i];
                dbias[i] += d[k][i];
                d[k][i] *= g[i];
                sums[2 * k] += d[k][i];
                sums[2 * k + 1] += d[k][i] * xhat[k][i];
            }
        }
UNROLL
        for (int k = 0; k < 2 * R; k++) {
            float sum = warp_sum(sums[k]);
            if (threadIdx.x % 32 == 0) room[turn][threadIdx.x / 32][k] = sum;
            sums[k] = 0;
        }
        __syncthreads(); /* which this half of room, used again in two turns, needs no second time */
        for (int w = 0; w < warps; w++)
UNROLL
            for (int k = 0; k < 2 * R; k += 4) {
                load_floats(part, &room[turn][w][k]);
UNROLL
                for (int j = 0; j < 4; j++) sums[k + j] += part[j];
            }
UNROLL
        for (int k = 0; k < R; k++) {
            float a = kind == NORM_LAYERNORM ? sums[2 * k] * inverse : 0, b = sums[2 * k + 1] * inverse;
            float out[W];
            unpack(out, res_ahead[k]);
UNROLL
            for (int i = 0; i < W; i++) out[i] += r[k] * (d[k][i] - a - xhat[k][i] * b);
            if (c < C && n + k < end) store(dx + (n + k) * C + c, out);
        }
    }
    if (c >= C) return;
    store_floats(partials + block * C + c, dgain);
    store_floats(partials + (blocks + block) * C + c, dbias);
}

/* dx alone, a row to a warp, for what the kernel above cannot do. */
template <int W> __global__ static void __launch_bounds__(32 * NORM_ROWS)
norm_dx_kernel(floatX *dx, const floatX *dy, const floatX *dres, const floatX *__restrict__ x,
               const floatM *__restrict__ gain, const floatM *__restrict__ mean,
               const floatM *__restrict__ rstd, int N, int C, int kind) {
    int n = (int)(blockIdx.x * NORM_ROWS + threadIdx.y), lane = (int)threadIdx.x;
    if (n >= N) return;
    size_t row = (size_t)n * C;
    float m = mean[n], r = rstd[n], a = 0, b = 0, v[W], d[W], g[W];
#pragma unroll 4
    for (int c = lane * W; c < C; c += 32 * W) {
        load(v, x + row + c);
        load(d, dy + row + c);
        load_floats(g, gain + c);
UNROLL
        for (int i = 0; i < W; i++) {
            a += d[i] * g[i];
            b += d[i] * g[i] * ((v[i] - m) * r);
        }
    }
    a = kind == NORM_LAYERNORM ? warp_sum(a) / (float)C : 0;
    b = warp_sum(b) / (float)C;
    for (int c = lane * W; c < C; c += 32 * W) {
        float out[W] = {0};
        if (dres) load(out, dres + row + c);
        load(v, x + row + c);
        load(d, dy + row + c);
        load_floats(g, gain + c);
UNROLL
        for (int i = 0; i < W; i++) out[i] += r * (d[i] * g[i] - a - (v[i] - m) * r * b);
        store(dx + row + c, out);
    }
}

/* Threads of a block of norm_backward_kernel, and how many blocks: as many as the 108 SMs of an A100 run at a
   time, 21 warps each, which is also enough for an H100's memory; but at least 8 rows each. */
static inline unsigned norm_threads(int C) { return 32 * ceil_div((size_t)C, 32 * XW); }
static inline unsigned norm_blocks(int N, int C) {
    unsigned most = ceil_div((size_t)N, 8), each = 21 * 32 / norm_threads(C), want = 108 * (each + !each);
    return want > most ? most : want;
}

static inline size_t norm_scratch(int N, int C) {
    size_t parts = norm_blocks(N, C) > sum_parts(N, C) ? norm_blocks(N, C) : sum_parts(N, C);
    return 2 * parts * (size_t)C * sizeof(float);
}

template <int W> static inline void norm_backward_any(floatX *dx, floatM *dgain, floatM *dbias,
                                                      const floatX *dy, const floatX *dres, const floatX *x,
                                                      const floatM *gain, const floatM *mean,
                                                      const floatM *rstd, int N, int C, int kind) {
    unsigned parts = sum_parts(N, C);
    float *partials = (float *)cuda_scratch(norm_scratch(N, C));
    dim3 grid(ceil_div((size_t)C, 32 * W), parts), block(32, SUM_ROWS);
    LAUNCH((column_sums_kernel<W, 1>), grid, block, 0, partials, dy, x, mean, rstd, N, C);
    if (dbias) add_partials(dbias, dgain, partials, parts, C);
    else add_partials(dgain, NULL, partials + (size_t)parts * (size_t)C, parts, C);
    grid = dim3(ceil_div((size_t)N, NORM_ROWS)), block = dim3(32, NORM_ROWS); /* last, as dx may be dy */
    LAUNCH(norm_dx_kernel<W>, grid, block, 0, dx, dy, dres, x, gain, mean, rstd, N, C, kind);
}

/* dx may be dy, dres or both. */
static inline void norm_backward(floatX *dx, floatM *dgain, floatM *dbias, const floatX *dy,
                                 const floatX *dres, const floatX *x, const floatM *gain, const floatM *mean,
                                 const floatM *rstd, int N, int C, int kind) {
    int wide = all_wide(C, dx, dy, dres) && all_wide(C, x) && all_wide(C, gain);
    if (wide && norm_threads(C) <= 32 * NORM_WARPS) {
        unsigned blocks = norm_blocks(N, C);
        float *partials = (float *)cuda_scratch(norm_scratch(N, C));
        LAUNCH((norm_backward_kernel<XW, 2>), blocks, norm_threads(C), 0, dx, partials, dy, dres, x, gain,
               mean, rstd, N, C, kind);
        add_partials(dgain, dbias, partials, blocks, C);
    } else if (wide) {
        norm_backward_any<XW>(dx, dgain, dbias, dy, dres, x, gain, mean, rstd, N, C, kind);
    } else {
        norm_backward_any<1>(dx, dgain, dbias, dy, dres, x, gain, mean, rstd, N, C, kind);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* linear */

static inline void linear_forward(floatX *y, const floatX *x, const floatX *w, const floatX *b, int N, int I,
                                  int O) {
    gemm(0, 1, N, O, I, 1, x, (size_t)I, w, (size_t)I, 0, y, (size_t)O, b);
}

static inline size_t bias_scratch(int N, int O) {
    return (size_t)sum_parts(N, O) * (size_t)O * sizeof(float);
}

static inline void linear_backward(floatX *dx, floatM *dw, floatM *db, const floatX *dy, const floatX *x,
                                   const floatX *w, int N, int I, int O) {
    if (dx) gemm(0, 0, N, I, O, 1, dy, (size_t)O, w, (size_t)I, 0, dx, (size_t)I);
    gemm(1, 0, O, I, N, 1, dy, (size_t)O, x, (size_t)I, 1, dw, (size_t)I);
    if (!db) return;
    int W = all_wide(O, dy) ? XW : 1;
    dim3 grid(ceil_div((size_t)O, 32 * (size_t)W), sum_parts(N, O)), block(32, SUM_ROWS);
    float *partials = (float *)cuda_scratch(bias_scratch(N, O));
    const floatX *none = NULL;
    const floatM *no = NULL;
    if (W > 1) LAUNCH((column_sums_kernel<XW, 0>), grid, block, 0, partials, dy, none, no, no, N, O);
    else LAUNCH((column_sums_kernel<1, 0>), grid, block, 0, partials, dy, none, no, no, N, O);
    add_partials(db, NULL, partials, grid.y, O);
}

/* ---------------------------------------------------------------------------------------------- */
/* queries and keys */

/* A block has a token and goes through its heads, G lanes a head, G a power of two. Elements j and
   j + HS/2, which turn together, are one lane's: a is of the first half, b of the second, and lane l has
   the vectors l, l + G, ... of W elements, V at most. */
template <int W, int V> __global__ static void __launch_bounds__(256)
qk_forward_kernel(floatX *qkv, floatM *rstd, const floatM *__restrict__ cosine,
                  const floatM *__restrict__ sine, int T, int first, int heads, int stride, int HS, int G,
                  int qk_norm, float eps) {
    int n = (int)blockIdx.x, half = HS / 2, lane = (int)threadIdx.x % G;
    size_t angle = (size_t)(first + n % T) * half;
    float inverse = 1 / (float)HS;
    for (int h0 = 0; h0 < heads; h0 += (int)blockDim.x / G) { /* all lanes stay for the shuffles */
        int h = h0 + (int)threadIdx.x / G;
        floatX *x = qkv + (size_t)n * stride + (size_t)h * HS;
        Raw<W> a_ahead[V], b_ahead[V];
        float a[V][W], b[V][W], s = 0, r = 1;
UNROLL
        for (int v = 0; v < V; v++) {
            int j = (v * G + lane) * W, there = h < heads && j < half;
            a_ahead[v] = fetch<W>(x, j, there);
            b_ahead[v] = fetch<W>(x, half + j, there);
        }
UNROLL
        for (int v = 0; v < V; v++) {
            unpack(a[v], a_ahead[v]);
            unpack(b[v], b_ahead[v]);
UNROLL
            for (int i = 0; i < W; i++) s += a[v][i] * a[v][i] + b[v][i] * b[v][i];
        }
        if (qk_norm) {
            for (int i = G / 2; i > 0; i /= 2) s += __shfl_xor_sync(FULL_WARP, s, i);
            r = rsqrtf(s * inverse + eps);
            if (h < heads && lane == 0) rstd[(size_t)n * heads + h] = r;
        }
UNROLL
        for (int v = 0; v < V; v++) {
            int j = (v * G + lane) * W;
            if (h >= heads || j >= half) continue;
            float co[W], si[W], p[W], q[W];
            if (cosine) load_floats(co, cosine + angle + j);
            if (cosine) load_floats(si, sine + angle + j);
UNROLL
            for (int i = 0; i < W; i++) {
                float x1 = a[v][i] * r, x2 = b[v][i] * r;
                p[i] = cosine ? x1 * co[i] - x2 * si[i] : x1;
                q[i] = cosine ? x2 * co[i] + x1 * si[i] : x2;
            }
            store(x + j, p);
            store(x + half + j, q);
        }
    }
}

/* Laid out as above. The inner product of gradient and value is the same before and after a rotation. */
template <int W, int V> __global__ static void __launch_bounds__(256)
qk_backward_kernel(floatX *dqkv, const floatX *__restrict__ qkv, const floatM *__restrict__ rstd,
                   const floatM *__restrict__ cosine, const floatM *__restrict__ sine, int T, int heads,
                   int stride, int HS, int G, int qk_norm) {
    int n = (int)blockIdx.x, half = HS / 2, lane = (int)threadIdx.x % G;
    size_t angle = (size_t)(n % T) * half;
    float inverse = 1 / (float)HS;
    for (int h0 = 0; h0 < heads; h0 += (int)blockDim.x / G) {
        int h = h0 + (int)threadIdx.x / G;
        size_t at = (size_t)n * stride + (size_t)h * HS;
        Raw<W> a_ahead[V], b_ahead[V], ya_ahead[V], yb_ahead[V];
        float a[V][W], b[V][W], ya[W], yb[W], dot = 0, r = 1;
UNROLL
        for (int v = 0; v < V; v++) {
            int j = (v * G + lane) * W, there = h < heads && j < half;
            a_ahead[v] = fetch<W>(dqkv, at + j, there);
            b_ahead[v] = fetch<W>(dqkv, at + half + j, there);
            ya_ahead[v] = fetch<W>(qkv, at + j, there && qk_norm);
            yb_ahead[v] = fetch<W>(qkv, at + half + j, there && qk_norm);
        }
        if (qk_norm && h < heads) r = rstd[(size_t)n * heads + h];
UNROLL
        for (int v = 0; v < V; v++) {
            unpack(a[v], a_ahead[v]);
            unpack(b[v], b_ahead[v]);
            unpack(ya, ya_ahead[v]);
            unpack(yb, yb_ahead[v]);
UNROLL
            for (int i = 0; i < W; i++) dot += a[v][i] * ya[i] + b[v][i] * yb[i];
        }
        if (qk_norm)
            for (int i = G / 2; i > 0; i /= 2) dot += __shfl_xor_sync(FULL_WARP, dot, i);
        dot *= inverse;
UNROLL
        for (int v = 0; v < V; v++) {
            int j = (v * G + lane) * W;
            if (h >= heads || j >= half) continue;
            float co[W], si[W], p[W], q[W];
            if (cosine) load_floats(co, cosine + angle + j);
            if (cosine) load_floats(si, sine + angle + j);
            unpack(ya, ya_ahead[v]);
            unpack(yb, yb_ahead[v]);
UNROLL
            for (int i = 0; i < W; i++) {
                float d1 = r * (a[v][i] - ya[i] * dot), d2 = r * (b[v][i] - yb[i] * dot);
                p[i] = cosine ? d1 * co[i] + d2 * si[i] : d1;
                q[i] = cosine ? d2 * co[i] - d1 * si[i] : d2;
            }
            store(dqkv + at + j, p);
            store(dqkv + at + half + j, q);
        }
    }
}

/* How the kernels above share a token's heads out. */
typedef struct {
    int W, vectors, G; /* vectors of W elements in half a head, lanes a head */
    unsigned threads;
} QkShape;
static inline QkShape qk_shape(int wide, int heads, int HS) {
    QkShape s = {wide ? (int)XW : 1, 0, 1, 0};
    s.vectors = HS / 2 / s.W;
    while (s.G < s.vectors && s.G < 32) s.G *= 2;
    s.threads = 32 * ceil_div((size_t)heads * (size_t)s.G, 32);
    if (s.threads > 256) s.threads = 256;
    if (HS % 2 || HS > 1024) die("heads of %d elements: an even number up to 1024 is what can be done", HS);
    return s;
}

static inline void qk_forward(floatX *qkv, floatM *rstd, const floatM *cosine, const floatM *sine, int N,
                              int T, int first, int NH, int NKV, int HS, int qk_norm, double eps) {
    if (!qk_norm && !cosine) return;
    int wide = all_wide(HS / 2, qkv) && all_wide(HS / 2, cosine, sine), heads = NH + NKV;
    QkShape s = qk_shape(wide, heads, HS);
#define QK_FORWARD(W, V)                                                                           \
    LAUNCH((qk_forward_kernel<W, V>), (unsigned)N, s.threads, 0, qkv, rstd, cosine, sine, T, first, heads, \
           (heads + NKV) * HS, HS, s.G, qk_norm, (float)eps)
    if (wide && s.vectors <= 32) QK_FORWARD(XW, 1);
    else if (wide) QK_FORWARD(XW, 4);
    else QK_FORWARD(1, 16);
#undef QK_FORWARD
}

static inline void qk_backward(floatX *dqkv, const floatX *qkv, const floatM *rstd, const floatM *cosine,
                               const floatM *sine, int N, int T, int NH, int NKV, int HS, int qk_norm) {
    if (!qk_norm && !cosine) return;
    int wide = all_wide(HS / 2, dqkv, qkv) && all_wide(HS / 2, cosine, sine), heads = NH + NKV;
    QkShape s = qk_shape(wide, heads, HS);
#define QK_BACKWARD(W, V)                                                                          \
    LAUNCH((qk_backward_kernel<W, V>), (unsigned)N, s.threads, 0, dqkv, qkv, rstd, cosine, sine, T, heads, \
           (heads + NKV) * HS, HS, s.G, qk_norm)
    if (wide && s.vectors <= 32) QK_BACKWARD(XW, 1);
    else if (wide) QK_BACKWARD(XW, 4);
    else QK_BACKWARD(1, 16);
#undef QK_BACKWARD
}

/* ---------------------------------------------------------------------------------------------- */
/* activations */

/* The logistic function of x and of -x. Never overflows and never subtracts from one. __expf errs by
   2 + 1.2 |x| units in the last place, so by 1e-6 at |x| = 12, where the smaller of the two is 6e-6. */
__device__ static inline void logistic(float x, float *s, float *rest) {
    float q = __expf(-fabsf(x)), large = __fdividef(1, 1 + q), small = q * large;
    *s = x < 0 ? small : large;
    *rest = x < 0 ? large : small;
}

/* GELU's 1/2 (1 + tanh u) is the logistic function of 2 u, 2 u = GELU_2A (x + GELU_B x^3). */
#define GELU_2A 1.5957691216057308f
#define GELU_B 0.044715f

template <int ACT> __device__ static inline float act_value(float x, float up) {
    float s, rest;
    if constexpr (ACT == ACT_RELU2) return x > 0 ? x * x : 0;
    logistic(ACT == ACT_GELU ? GELU_2A * (x + GELU_B * x * x * x) : x, &s, &rest);
    return ACT == ACT_GELU ? x * s : x * s * up;
}

/* A block has a part of a row. */
template <int W, int ACT> __global__ static void __launch_bounds__(256)
act_forward_kernel(floatX *__restrict__ y, const floatX *__restrict__ h, int F, unsigned parts) {
    size_t n = blockIdx.x / parts;
    int i = (int)((blockIdx.x % parts) * blockDim.x + threadIdx.x) * W;
    if (i >= F) return;
    const floatX *in = h + n * F * (ACT == ACT_SWIGLU ? 2 : 1) + i;
    float x[W], up[W] = {0};
    load(x, in);
    if constexpr (ACT == ACT_SWIGLU) load(up, in + F);
UNROLL
    for (int j = 0; j < W; j++) x[j] = act_value<ACT>(x[j], up[j]);
    store(y + n * F + i, x);
}

template <int W, int ACT> __global__ static void __launch_bounds__(256)
act_backward_kernel(floatX *__restrict__ dh, const floatX *__restrict__ dy, const floatX *__restrict__ h,
                    int F, unsigned parts) {
    size_t n = blockIdx.x / parts;
    int i = (int)((blockIdx.x % parts) * blockDim.x + threadIdx.x) * W;
    if (i >= F) return;
    size_t at = n * F * (ACT == ACT_SWIGLU ? 2 : 1) + i;
    float x[W], up[W] = {0}, d[W], s, rest;
    load(d, dy + n * F + i);
    load(x, h + at);
    if constexpr (ACT == ACT_SWIGLU) load(up, h + at + F);
UNROLL
    for (int j = 0; j < W; j++) {
        if constexpr (ACT == ACT_RELU2) {
            d[j] = x[j] > 0 ? 2 * x[j] * d[j] : 0;
        } else if constexpr (ACT == ACT_GELU) {
            float v = x[j];
            logistic(GELU_2A * (v + GELU_B * v * v * v), &s, &rest);
            d[j] *= s + v * s * rest * GELU_2A * (1 + 3 * GELU_B * v * v);
        } else {
            logistic(x[j], &s, &rest);
            float dgate = d[j] * up[j] * (s + x[j] * s * rest);
            up[j] = d[j] * x[j] * s;
            d[j] = dgate;
        }
    }
    store(dh + at, d);
    if constexpr (ACT == ACT_SWIGLU) store(dh + at + F, up);
}

template <int W> static inline void act_forward_by(floatX *y, const floatX *h, int N, int F, int act) {
    unsigned parts, threads;
    row_parts(&parts, &threads, F, W);
    unsigned blocks = (unsigned)N * parts;
#define ACT_FORWARD(ACT) LAUNCH((act_forward_kernel<W, ACT>), blocks, threads, 0, y, h, F, parts)
    if (act == ACT_GELU) ACT_FORWARD(ACT_GELU);
    else if (act == ACT_RELU2) ACT_FORWARD(ACT_RELU2);
    else ACT_FORWARD(ACT_SWIGLU);
#undef ACT_FORWARD
}

static inline void act_forward(floatX *y, const floatX *h, int N, int F, int act) {
    if (all_wide(F, y, h)) act_forward_by<XW>(y, h, N, F, act);
    else act_forward_by<1>(y, h, N, F, act);
}

template <int W> static inline void act_backward_by(floatX *dh, const floatX *dy, const floatX *h, int N,
                                                    int F, int act) {
    unsigned parts, threads;
    row_parts(&parts, &threads, F, W);
    unsigned blocks = (unsigned)N * parts;
#define ACT_BACKWARD(ACT) LAUNCH((act_backward_kernel<W, ACT>), blocks, threads, 0, dh, dy, h, F, parts)
    if (act == ACT_GELU) ACT_BACKWARD(ACT_GELU);
    else if (act == ACT_RELU2) ACT_BACKWARD(ACT_RELU2);
    else ACT_BACKWARD(ACT_SWIGLU);
#undef ACT_BACKWARD
}

static inline void act_backward(floatX *dh, const floatX *dy, const floatX *h, int N, int F, int act) {
    if (all_wide(F, dh, dy, h)) act_backward_by<XW>(dh, dy, h, N, F, act);
    else act_backward_by<1>(dh, dy, h, N, F, act);
}

/* ---------------------------------------------------------------------------------------------- */
/* softcap and loss */

/* With u = 1 / sqrt(1 + (z/c)^2), the capped logit is z u and its derivative u^3. */
template <int CAP> __device__ static inline float cap_factor(float z, float inverse) {
    return CAP ? rsqrtf(1 + z * inverse * z * inverse) : 1;
}

__global__ static void __launch_bounds__(256) softcap_kernel(floatX *logits, int V, int Vp, float inverse) {
    int v = (int)(blockIdx.y * 256 + threadIdx.x);
    if (v >= V) return;
    floatX *z = logits + (size_t)blockIdx.x * Vp + v;
    *z = from_float<floatX>(to_float(*z) * cap_factor<1>(to_float(*z), inverse));
}

/* One row at a time, where text is generated: speed does not matter here. */
static inline void softcap_forward(floatX *logits, int N, int V, int Vp, double softcap) {
    if (softcap <= 0) return;
    dim3 grid((unsigned)N, ceil_div((size_t)V, 256));
    LAUNCH(softcap_kernel, grid, 256, 0, logits, V, Vp, (float)(1 / softcap));
}

/* Takes W logits w, -infinity among them or not, into the maximum and the sum of e^(w - max). */
template <int W> __device__ static inline void online_softmax(float *max, float *sum, const float (&w)[W]) {
    float top = w[0];
UNROLL
    for (int i = 1; i < W; i++) top = fmaxf(top, w[i]);
    if (top > *max) {
        *sum *= __expf(*max - top);
        *max = top;
    }
    float base = *max > -INFINITY ? *max : 0; /* -inf - -inf is NaN */
UNROLL
    for (int i = 0; i < W; i++) *sum += __expf(w[i] - base);
}

/* A block has a row, which it goes through twice. The first `keep` accesses of it stay in shared memory
   for the second time: all of them usually, as the rows under way together would not fit in the L2 cache.
   __expf errs by 2 + 1.2 |x| units in the last place, which weighed by the probability e^x is at most
   2e-7 of the sum. */
enum { CLASSIFIER_THREADS = 512 /* at most */, CLASSIFIER_AHEAD = 4 };
template <int W, int CAP> __global__ static void __launch_bounds__(CLASSIFIER_THREADS)
classifier_kernel(floatM *losses, floatX *logits, const int *__restrict__ targets, int V, int Vp,
                  float inverse, float scale, int keep) {
    SHARED(Raw<W>, kept);
    __shared__ float room[2][32];
    const int step = (int)blockDim.x * W, begin = (int)threadIdx.x * W, full = V - V % W;
    size_t n = gridDim.x - 1 - blockIdx.x; /* the last rows were written last, and may still be cached */
    floatX *z = logits + n * (size_t)Vp;
    int target = targets[n], own = full + (int)threadIdx.x; /* a column of the last, odd ones */
    float w[W], max = -INFINITY, sum = 0;
    if (target < 0) {
        if (threadIdx.x == 0) losses[n] = 0;
        for (int v = (int)threadIdx.x; v < Vp && scale != 0; v += (int)blockDim.x)
            z[v] = from_float<floatX>(0);
        return;
    }
    float zt = to_float(z[target]), ut = cap_factor<CAP>(zt, inverse);
    for (int first = begin; first < full; first += CLASSIFIER_AHEAD * step) {
        Raw<W> ahead[CLASSIFIER_AHEAD];
UNROLL
        for (int k = 0; k < CLASSIFIER_AHEAD; k++)
            ahead[k] = fetch<W>(z, first + k * step, first + k * step < full);
UNROLL
        for (int k = 0; k < CLASSIFIER_AHEAD; k++) {
            int v = first + k * step;
            if (v >= full) continue;
            if (v / W < keep) kept[v / W] = ahead[k];
            unpack(w, ahead[k]);
UNROLL
            for (int i = 0; i < W; i++) w[i] *= cap_factor<CAP>(w[i], inverse);
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
        unpack(w, v / W < keep ? kept[v / W] : fetch<W>(z, v, 1)); /* what this thread has put there */
UNROLL
        for (int i = 0; i < W; i++) {
            float u = cap_factor<CAP>(w[i], inverse);
            w[i] = scale * __expf(w[i] * u - lse) * (u * u * u);
        }
        store(z + v, w);
    }
    for (int v = own; v < Vp; v += (int)blockDim.x) {
        float x = v < V ? to_float(z[v]) : 0, u = cap_factor<CAP>(x, inverse);
        z[v] = from_float<floatX>(v < V ? scale * __expf(x * u - lse) * (u * u * u) : 0);
    }
    __syncthreads(); /* the target's column was written by another thread */
    float less = __expf(zt * ut - lse) - 1;
    if (threadIdx.x == 0) z[target] = from_float<floatX>(scale * less * (ut * ut * ut));
}

static inline void classifier(floatM *losses, floatX *logits, const int *targets, int N, int V, int Vp,
                              double softcap, double scale) {
    float inverse = softcap > 0 ? (float)(1 / softcap) : 0;
    int wide = all_wide(Vp, logits), cap = softcap > 0;
    size_t half = cuda_shared_limit / 2 - 2048, row = (size_t)Vp * sizeof(floatX); /* two blocks an SM */
    size_t kept = scale == 0 ? 0 : row < half ? row : half;
    /* A vocabulary of bytes is enough for one warp. */
    int warps = (int)ceil_div((size_t)V, 32 * CLASSIFIER_AHEAD * (wide ? (size_t)XW : 1));
    unsigned threads = (unsigned)min_int(32 * warps, CLASSIFIER_THREADS);
#define CLASSIFIER(W, CAP)                                                                         \
    LAUNCH((classifier_kernel<W, CAP>), (unsigned)N, threads, kept, losses, logits, targets, V, \
           Vp, inverse, (float)scale, (int)(kept / sizeof(Raw<W>)))
    if (wide && cap) CLASSIFIER(XW, 1);
    else if (wide) CLASSIFIER(XW, 0);
    else if (cap) CLASSIFIER(1, 1);
    else CLASSIFIER(1, 0);
#undef CLASSIFIER
}

__global__ static void __launch_bounds__(1024)
losses_add_kernel(double *total, const floatM *__restrict__ losses, int N) {
    __shared__ double room[32];
    double sum = 0;
#pragma unroll 8
    for (int n = (int)threadIdx.x; n < N; n += 1024) sum += (double)losses[n];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *total += sum;
}

static inline void losses_add(double *total, const floatM *losses, int N) {
    LAUNCH(losses_add_kernel, 1, 1024, 0, total, losses, N);
}

/* ---------------------------------------------------------------------------------------------- */
/* weights */

template <int W> __global__ static void __launch_bounds__(256)
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

/* The parameters as the layers read them. */
static inline void cast_weights(floatX *w, const floatM *p, size_t n) {
    int W = wide_rows(w, 0) && wide_rows(p, 0) ? XW : 1;
    size_t blocks = (n + 256 * (size_t)W - 1) / (256 * (size_t)W);
    unsigned grid = (unsigned)min_size(blocks, 1024); /* about what runs at a time */
    if (W > 1) LAUNCH(cast_kernel<XW>, grid, 256, 0, w, p, n);
    else LAUNCH(cast_kernel<1>, grid, 256, 0, w, p, n);
}

/* ---------------------------------------------------------------------------------------------- */

/* Bytes of cuda_scratch that training a model takes here, with R rows of logits at a time. */
static inline size_t layers_scratch(const Config *c, int R) {
    int N = c->batch_size * c->seq_len, QKV = (c->heads + 2 * c->kv_heads) * c->head_dim;
    int H = c->act == ACT_SWIGLU ? 2 * c->ff_width : c->ff_width, Vp = (c->vocab + 63) / 64 * 64;
    const size_t needs[] = {embed_scratch(N, c->width), norm_scratch(N, c->width), bias_scratch(N, QKV),
                            bias_scratch(N, c->width), bias_scratch(N, H), bias_scratch(R, Vp)};
    size_t most = 0;
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++)
        if (needs[i] > most) most = needs[i];
    return most;
}

#endif
