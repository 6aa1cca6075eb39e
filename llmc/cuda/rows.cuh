/*
How the kernels of layers read and write rows, and sums over many rows.

W of a kernel template is the number of elements that a thread reads at once: XW (16 bytes of
floatX) where pointers and row lengths are multiples of 16 bytes, else 1. Sums over rows have two
stages: parts of the rows are summed, then the parts. The number of parts depends on the shape
alone, so no bit depends on the size of the GPU.
*/
#ifndef CM_CUDA_ROWS_CUH
#define CM_CUDA_ROWS_CUH

#include "runtime.cuh"

enum { XW = Wide<floatX>::N };

/* Whether rows of n elements can be read XW at a time from all of these pointers. NULL is always
   fine. */
template <typename... P> static inline int all_wide(int n, const P *...p) {
    return n % XW == 0 && (wide_rows(p, (size_t)n) && ...);
}

/* The raw bits of one access to p[i], or zeros if `there` is 0. Kernels make several accesses in
   one loop and unpack them in the next, so that the accesses overlap: a compiler does not move
   an access ahead of a branch or a store. */
template <int W> struct Raw { uint4 bits; };
template <> struct Raw<1> { floatX bits; };
template <int W> __device__ static inline Raw<W> fetch(const floatX *p, size_t i, int in_bounds) {
    Raw<W> raw = {};
    if constexpr (W == 1) {
        if (in_bounds) raw.bits = p[i];
    } else {
        if (in_bounds) raw.bits = *(const uint4 *)(const void *)(p + i);
    }
    return raw;
}
template <int W> __device__ static inline void unpack(float (&x)[W], const Raw<W> &raw) {
    const floatX *t = (const floatX *)(const void *)&raw;
    UNROLLED_FOR (int i = 0; i < W; i++) x[i] = to_float(t[i]);
}

/* Load and store of N floats, in 16-byte accesses if N is a multiple of 4. */
template <int N> __device__ static inline void load_floats(float (&x)[N], const float *p) {
    if constexpr (N % 4 == 0) {
        UNROLLED_FOR (int i = 0; i < N; i += 4) {
            float4 part = *(const float4 *)(const void *)(p + i);
            x[i] = part.x;
            x[i + 1] = part.y;
            x[i + 2] = part.z;
            x[i + 3] = part.w;
        }
    } else {
        load(x, p);
    }
}
template <int N> __device__ static inline void store_floats(float *p, const float (&x)[N]) {
    if constexpr (N % 4 == 0) {
        UNROLLED_FOR (int i = 0; i < N; i += 4)
            *(float4 *)(void *)(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    } else {
        store(p, x);
    }
}

/* p += x */
template <int N> __device__ static inline void add_floats(float *p, const float (&x)[N]) {
    float old[N];
    load_floats(old, p);
    UNROLLED_FOR (int i = 0; i < N; i++) old[i] += x[i];
    store_floats(p, old);
}

/* x = residual + delta, rounded to floatX. What is computed from the sum must not depend on
   whether the sum was formed here or read back. */
template <int W> __device__ static inline void add_rounded(float (&x)[W], const float (&delta)[W]) {
    UNROLLED_FOR (int i = 0; i < W; i++) x[i] = to_float(from_float<floatX>(x[i] + delta[i]));
}

/* Shares a row of n elements among `parts` blocks of up to 256 threads, W elements a thread. */
static inline void row_parts(unsigned *parts, unsigned *threads, int n, int W) {
    unsigned vectors = ceil_div((size_t)n, (size_t)W);
    *parts = ceil_div(vectors, 256);
    *threads = 32 * ceil_div(ceil_div(vectors, *parts), 32);
}

/* ---------------------------------------------------------------------------------------------- */
/* sums over rows */

enum { SUM_ROWS = 8, SUM_AHEAD = 4 }; /* warps of a block; rows that a warp reads at a time */

/* Into how many parts N rows of C columns are split: enough blocks to fill a large GPU, at least
   64 rows a part. */
static inline unsigned sum_parts(int N, int C) {
    unsigned most = ceil_div((size_t)N, 64), want = 1024 / ceil_div((size_t)C, 32 * XW);
    return want < 1 ? 1 : want > most ? most : want;
}

/* partials (P,C) = the sums of dy (N,C) over the rows of each part. With NORM, P more rows hold
   the sums of dy xhat, xhat = (x - mean) rstd. A warp has 32 W columns. Grid (columns, P), block
   (32, SUM_ROWS). */
template <int W, int NORM>
__global__ static void __launch_bounds__(32 * SUM_ROWS)
    column_sums_kernel(float *partials, const floatX *__restrict__ dy, const floatX *__restrict__ x,
                       const floatM *__restrict__ mean, const floatM *__restrict__ rstd, int N,
                       int C) {
    BLOCK_SHARED(room, [1 + NORM][SUM_ROWS][32 * W], float);
    int base = (int)blockIdx.x * 32 * W, c = base + (int)threadIdx.x * W;
    size_t P = gridDim.y, part = blockIdx.y, end = (size_t)N * (part + 1) / P;
    float sum[W] = {0}, products[W] = {0};
    for (size_t first = (size_t)N * part / P + threadIdx.y; first < end;
         first += SUM_AHEAD * SUM_ROWS) {
        Raw<W> loaded[SUM_AHEAD], x_raw[SUM_AHEAD];
        UNROLLED_FOR (int k = 0; k < SUM_AHEAD; k++) {
            size_t n = first + k * SUM_ROWS;
            loaded[k] = fetch<W>(dy, n * C + c, c < C && n < end);
            if constexpr (NORM) x_raw[k] = fetch<W>(x, n * C + c, c < C && n < end);
        }
        UNROLLED_FOR (int k = 0; k < SUM_AHEAD; k++) {
            size_t n = first + k * SUM_ROWS;
            float d[W], v[W], m = 0, r = 0;
            unpack(d, loaded[k]);
            if constexpr (NORM) {
                unpack(v, x_raw[k]);
                if (n < end) {
                    m = mean[n];
                    r = rstd[n];
                }
            }
            UNROLLED_FOR (int i = 0; i < W; i++) {
                sum[i] += d[i];
                if constexpr (NORM) products[i] += d[i] * ((v[i] - m) * r);
            }
        }
    }
    store_floats(&room[0][threadIdx.y][(int)threadIdx.x * W], sum);
    if constexpr (NORM) store_floats(&room[1][threadIdx.y][(int)threadIdx.x * W], products);
    __syncthreads();
    for (int i = (int)(threadIdx.y * 32 + threadIdx.x); i < 32 * W && base + i < C;
         i += 32 * SUM_ROWS)
        for (int k = 0; k <= NORM; k++) {
            float total = 0;
            UNROLLED_FOR (int j = 0; j < SUM_ROWS; j++) total += room[k][j][i];
            partials[(k * P + part) * C + base + i] = total;
        }
}

/* Up to three arrays that sums of columns are added to. NULL is skipped. */
typedef struct {
    floatM *p[3];
} SumTargets;

/* p[k] (C) += the sum of rows [k P, (k + 1) P) of partials, k = blockIdx.y. Warp w sums rows w,
   w + 32, ... of its columns; then the 32 sums are added in order. */
__global__ static void __launch_bounds__(1024)
    add_partials_kernel(SumTargets out, const float *__restrict__ partials, int P, int C) {
    BLOCK_SHARED(room, [32][32], float);
    floatM *to = out.p[blockIdx.y];
    int c = (int)(blockIdx.x * 32 + threadIdx.x);
    const float *part = partials + (size_t)blockIdx.y * P * C + c;
    float sum = 0;
    if (!to) return;
    for (int first = (int)threadIdx.y; first < P; first += 8 * 32) {
        float loaded[8];
        UNROLLED_FOR (int k = 0; k < 8; k++) {
            int p = first + 32 * k;
            loaded[k] = c < C && p < P ? part[(size_t)p * C] : 0;
        }
        UNROLLED_FOR (int k = 0; k < 8; k++) sum += loaded[k];
    }
    room[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= C) return;
    for (int i = 1; i < 32; i++) sum += room[i][threadIdx.x];
    to[c] += sum;
}

static inline void add_partials(SumTargets out, const float *partials, unsigned P, int C) {
    unsigned sums = out.p[2] ? 3 : out.p[1] ? 2 : 1;
    dim3 grid(ceil_div((size_t)C, 32), sums), block(32, 32);
    LAUNCH(add_partials_kernel, grid, block, 0, out, partials, (int)P, C);
}

static inline size_t bias_scratch(int N, int O) {
    return (size_t)sum_parts(N, O) * (size_t)O * sizeof(float);
}

/* db (O) += the sum of dy (N,O) over N. */
static inline void bias_backward(floatM *db, const floatX *dy, int N, int O) {
    int W = all_wide(O, dy) ? XW : 1;
    dim3 grid(ceil_div((size_t)O, 32 * (size_t)W), sum_parts(N, O)), block(32, SUM_ROWS);
    float *partials = (float *)cuda_scratch(bias_scratch(N, O));
    const floatX *none = NULL;
    const floatM *no = NULL;
    if (W > 1)
        LAUNCH((column_sums_kernel<XW, 0>), grid, block, 0, partials, dy, none, no, no, N, O);
    else LAUNCH((column_sums_kernel<1, 0>), grid, block, 0, partials, dy, none, no, no, N, O);
    add_partials({{db}}, partials, grid.y, O);
}

#endif
