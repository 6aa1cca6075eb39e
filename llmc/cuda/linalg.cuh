/*
The operations of linalg.h on a GPU, on device memory. Element-wise operations: one grid walks along
all views of an operation together. Products: cuBLASLt, batched. small.cuh has what is done to a
small matrix in one piece. Only la_sum_squares waits for the device. The shapes alone decide the
order of a sum.
*/
#ifndef CM_CUDA_LINALG_CUH
#define CM_CUDA_LINALG_CUH

#include "../linalg.h"
#include "gemm.cuh"
#include "small.cuh"

/* Elements of scratch that a rule may spread over layers: 512 MiB of float. */
#define LA_SCRATCH_BUDGET ((size_t)128 << 20)

static inline int la_chunk(int n) { return n; }
static inline int la_workers(int chunks, size_t elements) {
    (void)chunks;
    (void)elements;
    return 1;
}

static inline int la_fast(int on) {
    cm_gpu.la_fast = on && cm_gpu.allow_tf32;
    return cm_gpu.la_fast;
}

/* ---------------------------------------------------------------------------------------------- */
/* Walking views                                                                                  */

/* The elements of a tile that a thread gets: one; four side by side, by 16-byte accesses; or,
   where some views have contiguous rows and others contiguous columns, four of a 32 x 32 tile
   that goes through shared memory, so that every view is read and written along its contiguous
   direction. */
enum { LA_SINGLE = 1, LA_WIDE = 4, LA_TURNED = 0 };
template <int MODE> struct LaShare {
    enum { N = MODE == LA_TURNED ? 4 : MODE };
};

/* N views of the same elements; view 0 has cs = 1. An item is divided into across x down tiles.
   A row of a tile has `lanes` threads, each with LA_WIDE or LA_SINGLE columns; a tile has as
   many rows as fit in the block. */
template <int N> struct LaWalk {
    Mat m[N];
    unsigned turned; /* bit v: view v has rs = 1 */
    int mode, lanes, threads;
    unsigned across, down;
};

/* Which indices of an element an operation needs: none; the number of its item; or item, row and
   column. The fewer it needs, the more lines that follow each other in memory are merged into
   one. */
enum { LA_PLAIN, LA_BY_ITEM, LA_BY_ROW };

template <int N> static inline void la_merge(Mat (&m)[N], int need) {
    const size_t limit = (size_t)1 << 30;
    size_t cols = (size_t)m[0].cols, rows = (size_t)m[0].rows, n1 = (size_t)m[0].n1,
           n0 = (size_t)m[0].n0;
    int merge = need < LA_BY_ROW && rows * cols <= limit;
    for (int v = 0; v < N; v++) merge &= m[v].cs == 1 && (rows == 1 || m[v].rs == cols);
    if (!merge) return;
    cols *= rows;
    int inner = need == LA_PLAIN && n1 * cols <= limit, outer = inner && n0 * n1 * cols <= limit;
    for (int v = 0; v < N; v++) inner &= n1 == 1 || m[v].s1 == cols;
    for (int v = 0; v < N; v++) outer &= inner && (n0 == 1 || m[v].s0 == n1 * cols);
    for (int v = 0; v < N; v++) {
        m[v].rows = 1;
        m[v].cols = (int)cols;
        m[v].rs = cols;
        if (inner) {
            m[v].n1 = 1;
            m[v].cols *= (int)n1;
        }
        if (outer) {
            m[v].n0 = 1;
            m[v].cols *= (int)n0;
        }
    }
}

static inline int la_aligned(Mat m) {
    return (uintptr_t)m.p % 16 == 0 && m.cols % 4 == 0 && (m.rows == 1 || m.rs % 4 == 0) &&
           (m.n0 == 1 || m.s0 % 4 == 0) && (m.n1 == 1 || m.s1 % 4 == 0);
}

static inline int la_power_of_two(int n, int most) {
    int p = 1;
    while (p < n && p < most) p *= 2;
    return p;
}

template <int N> static inline LaWalk<N> la_walk(Mat (&m)[N], int need, int wide = 1) {
    LaWalk<N> w;
    w.turned = 0;
    if (m[0].cs != 1)
        for (int v = 0; v < N; v++) m[v] = mat_t(m[v]);
    la_merge(m, need);
    for (int v = 0; v < N; v++) {
        w.turned |= (unsigned)(m[v].cs != 1) << v;
        wide &= la_aligned(m[v]);
        w.m[v] = m[v];
    }
    w.mode = w.turned ? LA_TURNED : wide ? LA_WIDE : LA_SINGLE;
    int rows = m[0].rows, cols = m[0].cols, each = w.turned ? 1 : w.mode, deep = 32;
    w.lanes = w.turned ? 32 : la_power_of_two((cols + each - 1) / each, 256);
    if (!w.turned) deep = la_power_of_two(rows, 256 / w.lanes);
    w.threads = w.turned ? 256 : max_int(32, w.lanes * deep);
    if (!w.turned) deep = w.threads / w.lanes;
    w.across = ceil_div((size_t)cols, (size_t)w.lanes * each);
    w.down = ceil_div((size_t)rows, (size_t)deep);
    return w;
}

template <int N> static inline unsigned la_tiles(const LaWalk<N> &w) {
    return w.across * w.down * (unsigned)mat_count(w.m[0]);
}

/* A tile and the thread's first element in it. The other three of four are beside it, or, in
   LA_TURNED, 8 rows apart. */
typedef struct {
    unsigned item;
    int row, col; /* where the tile begins */
    int r, c;     /* where the element is */
} LaSpot;

template <int MODE, int N>
__device__ static inline LaSpot la_spot(const LaWalk<N> &w, unsigned tile) {
    unsigned each = w.across * w.down, t = threadIdx.x,
             lanes = MODE == LA_TURNED ? 32 : (unsigned)w.lanes;
    unsigned deep = MODE == LA_TURNED ? 32 : blockDim.x / lanes,
             wide = MODE == LA_TURNED ? 1 : MODE;
    LaSpot at;
    at.item = tile / each;
    at.row = (int)(tile % each / w.across * deep);
    at.col = (int)(tile % w.across * lanes * wide);
    at.r = at.row + (int)(t / lanes);
    at.c = at.col + (int)(t % lanes * wide);
    return at;
}

template <int MODE> __device__ static inline int la_row_of(const LaSpot &at, int e) {
    return at.r + (MODE == LA_TURNED ? 8 * e : 0);
}
template <int MODE> __device__ static inline int la_col_of(const LaSpot &at, int e) {
    return at.c + (MODE == LA_TURNED ? 0 : e);
}

template <int MODE, int N> struct LaRoom {
    enum { LINES = MODE == LA_TURNED ? 32 : 1, PITCH = MODE == LA_TURNED ? 33 : 1 };
    float x[N][LINES][PITCH];
};

/* x[v] = the thread's elements of every view v in READS. Elements outside of the matrix are not
   touched. */
template <int MODE, unsigned READS, int N>
__device__ static inline void la_fetch(float (&x)[N][LaShare<MODE>::N], const LaWalk<N> &w,
                                       const LaSpot &at, LaRoom<MODE, N> &room) {
    const int rows = w.m[0].rows, cols = w.m[0].cols;
    const int lane = (int)threadIdx.x % 32, line = (int)threadIdx.x / 32;
    if constexpr (MODE == LA_TURNED) __syncthreads();
    UNROLLED_FOR (int v = 0; v < N; v++) {
        if (!(READS >> v & 1)) continue;
        const float *p = la_at(w.m[v], at.item);
        if constexpr (MODE != LA_TURNED) {
            if (at.r < rows && at.c < cols)
                load<MODE>(x[v], p + (size_t)at.r * w.m[v].rs + (size_t)at.c);
        } else {
            const int turned = w.turned >> v & 1;
            UNROLLED_FOR (int e = 0; e < 4; e++) {
                int r = turned ? at.row + lane : at.r + 8 * e,
                    c = turned ? at.col + line + 8 * e : at.c;
                if (r >= rows || c >= cols) continue;
                float y = p[(size_t)r * w.m[v].rs + (size_t)c * w.m[v].cs];
                if (turned) room.x[v][line + 8 * e][lane] = y;
                else x[v][e] = y;
            }
        }
    }
    if constexpr (MODE == LA_TURNED) {
        __syncthreads();
        UNROLLED_FOR (int v = 0; v < N; v++)
            for (int e = 0; e < 4; e++)
                if ((READS & w.turned) >> v & 1 && at.r + 8 * e < rows && at.c < cols)
                    x[v][e] = room.x[v][lane][line + 8 * e];
    }
}

/* Writes the thread's elements x[v] to every view v in WRITES. */
template <int MODE, unsigned WRITES, int N>
__device__ static inline void la_put(const float (&x)[N][LaShare<MODE>::N], const LaWalk<N> &w,
                                     const LaSpot &at, LaRoom<MODE, N> &room) {
    const int rows = w.m[0].rows, cols = w.m[0].cols;
    const int lane = (int)threadIdx.x % 32, line = (int)threadIdx.x / 32;
    if constexpr (MODE == LA_TURNED) {
        __syncthreads();
        UNROLLED_FOR (int v = 0; v < N; v++)
            for (int e = 0; e < 4; e++)
                if ((WRITES & w.turned) >> v & 1) room.x[v][lane][line + 8 * e] = x[v][e];
        __syncthreads();
    }
    UNROLLED_FOR (int v = 0; v < N; v++) {
        if (!(WRITES >> v & 1)) continue;
        float *p = la_at(w.m[v], at.item);
        if constexpr (MODE != LA_TURNED) {
            if (at.r < rows && at.c < cols)
                store<MODE>(p + (size_t)at.r * w.m[v].rs + (size_t)at.c, x[v]);
        } else {
            const int turned = w.turned >> v & 1;
            UNROLLED_FOR (int e = 0; e < 4; e++) {
                int r = turned ? at.row + lane : at.r + 8 * e,
                    c = turned ? at.col + line + 8 * e : at.c;
                if (r < rows && c < cols)
                    p[(size_t)r * w.m[v].rs + (size_t)c * w.m[v].cs] =
                        turned ? room.x[v][line + 8 * e][lane] : x[v][e];
            }
        }
    }
}

/* Store and load of N numbers as consecutive elements of T, in one access of N sizeof(T) bytes.
   p is aligned to that. */
template <int N, typename T> __device__ static inline void la_pack(T *p, const float (&x)[N]) {
    if constexpr (N == 4 && sizeof(T) == 2) {
        T t[N];
        uint2 raw;
        UNROLLED_FOR (int i = 0; i < N; i++) t[i] = from_float<T>(x[i]);
        memcpy(&raw, t, sizeof raw);
        *(uint2 *)(void *)p = raw;
    } else {
        store<N>(p, x);
    }
}
template <int N, typename T> __device__ static inline void la_unpack(float (&x)[N], const T *p) {
    if constexpr (N == 4 && sizeof(T) == 2) {
        T t[N];
        uint2 raw = *(const uint2 *)(const void *)p;
        memcpy(t, &raw, sizeof raw);
        UNROLLED_FOR (int i = 0; i < N; i++) x[i] = to_float(t[i]);
    } else {
        load<N>(x, p);
    }
}

/* Writes the thread's elements x of view 0 to `copy`, which is laid out like view 0 from its
   first element on. `copy` may be NULL. */
template <int MODE, typename T, int N>
__device__ static inline void la_put_copy(T *copy, const float (&x)[LaShare<MODE>::N],
                                          const LaWalk<N> &w, const LaSpot &at) {
    const Mat &m = w.m[0];
    if (!copy) return;
    T *p = copy + (la_at(m, at.item) - m.p);
    if constexpr (MODE != LA_TURNED) {
        if (at.r < m.rows && at.c < m.cols)
            la_pack<MODE>(p + (size_t)at.r * m.rs + (size_t)at.c, x);
    } else {
        UNROLLED_FOR (int e = 0; e < 4; e++)
            if (at.r + 8 * e < m.rows && at.c < m.cols)
                p[(size_t)(at.r + 8 * e) * m.rs + (size_t)at.c] = from_float<T>(x[e]);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Element-wise operations. F defines how many views there are, which ones it reads and writes,
   and what it does with one element x of each, which is (r, c) of an item. If F has a `copy`,
   view 0 is written there too. */

template <class F, int MODE> __global__ static void la_map_kernel(F f, LaWalk<F::N> w) {
    BLOCK_SHARED(room, , LaRoom<MODE, F::N>);
    enum { E = LaShare<MODE>::N };
    float x[F::N][E] = {};
    LaSpot at = la_spot<MODE>(w, blockIdx.x);
    la_fetch<MODE, F::READS>(x, w, at, room);
    UNROLLED_FOR (int e = 0; e < E; e++) {
        int r = la_row_of<MODE>(at, e), c = la_col_of<MODE>(at, e);
        float y[F::N];
        if (r >= w.m[0].rows || c >= w.m[0].cols) continue;
        UNROLLED_FOR (int v = 0; v < F::N; v++) y[v] = x[v][e];
        f(y, at.item, r, c);
        UNROLLED_FOR (int v = 0; v < F::N; v++) x[v][e] = y[v];
    }
    la_put<MODE, F::WRITES>(x, w, at, room);
    if constexpr (requires { f.copy; }) la_put_copy<MODE>(f.copy, x[0], w, at);
}

/* Applies F to the views m, in the order that F names them. m[0] decides the direction in which
   all are walked. */
template <class F> static inline void la_map(F f, Mat (&m)[F::N]) {
    for (int v = 0; v < F::N; v++)
        if (!m[v].p) return;
    if (!mat_size(m[0])) return;
    LaWalk<F::N> w = la_walk(m, F::NEED);
    if constexpr (requires { f.copy; }) /* four elements of the copy are one access */
        if (w.mode == LA_WIDE && (uintptr_t)f.copy % (4 * sizeof *f.copy))
            w = la_walk(m, F::NEED, 0);
    const unsigned blocks = la_tiles(w), threads = (unsigned)w.threads;
    if (w.mode == LA_WIDE) LAUNCH((la_map_kernel<F, LA_WIDE>), blocks, threads, 0, f, w);
    else if (w.mode == LA_SINGLE) LAUNCH((la_map_kernel<F, LA_SINGLE>), blocks, threads, 0, f, w);
    else LAUNCH((la_map_kernel<F, LA_TURNED>), blocks, threads, 0, f, w);
}

struct LaAssign { /* y = a x */
    enum { N = 2, READS = 2, WRITES = 1, NEED = LA_PLAIN };
    float a;
    __device__ void operator()(float *y, unsigned, int, int) const { y[0] = a * y[1]; }
};
struct LaAxpby {
    enum { N = 2, READS = 3, WRITES = 1, NEED = LA_PLAIN };
    float a, b;
    __device__ void operator()(float *y, unsigned, int, int) const { y[0] = a * y[1] + b * y[0]; }
};
struct LaMomentum { /* views m, g, u */
    enum { N = 3, READS = 3, WRITES = 5, NEED = LA_PLAIN };
    float beta, gain, own, kept; /* u = own g + kept m */
    __device__ void operator()(float *y, unsigned, int, int) const {
        y[0] = beta * y[0] + gain * y[1];
        y[2] = own * y[1] + kept * y[0];
    }
};
struct LaPolynomial {
    enum { N = 3, READS = 6, WRITES = 1, NEED = LA_BY_ROW };
    float a, b, c;
    __device__ void operator()(float *y, unsigned, int r, int k) const {
        y[0] = b * y[1] + c * y[2] + (r == k ? a : 0);
    }
};
struct LaScale {
    enum { N = 1, READS = 1, WRITES = 1, NEED = LA_BY_ITEM };
    const float *s;
    unsigned group;
    __device__ void operator()(float *y, unsigned item, int, int) const { y[0] *= s[item / group]; }
};
struct LaAddScaled {
    enum { N = 2, READS = 3, WRITES = 1, NEED = LA_BY_ITEM };
    float a;
    const float *s;
    unsigned group;
    __device__ void operator()(float *y, unsigned item, int, int) const {
        y[0] += a * s[item / group] * y[1];
    }
};
struct LaScaleUnits {
    enum { N = 1, READS = 1, WRITES = 1, NEED = LA_BY_ITEM };
    const float *s;
    unsigned items;
    __device__ void operator()(float *y, unsigned item, int, int) const {
        y[0] = y[0] * s[item] * s[items + item];
    }
};
struct LaScaleRows {
    enum { N = 2, READS = 2, WRITES = 1, NEED = LA_BY_ROW };
    const float *s;
    int rows, across; /* across: the walk is along columns, so c is the row */
    __device__ void operator()(float *y, unsigned item, int r, int c) const {
        y[0] = s[(size_t)item * (size_t)rows + (size_t)(across ? c : r)] * y[1];
    }
};

struct LaRoundBf16 {
    enum { N = 1, READS = 1, WRITES = 1, NEED = LA_PLAIN };
    __device__ void operator()(float *y, unsigned, int, int) const {
        y[0] = __bfloat162float(__float2bfloat16(y[0]));
    }
};

struct LaSignum { /* a NaN stays one */
    enum { N = 1, READS = 1, WRITES = 1, NEED = LA_PLAIN };
    __device__ void operator()(float *y, unsigned, int, int) const {
        y[0] = y[0] > 0 ? 1 : y[0] < 0 ? -1 : y[0];
    }
};

/* Adam's moments m and v of the gradient g. With APPLY a step of the parameter, else the
   direction. */
template <int APPLY> struct LaAdam {
    enum { N = 4, READS = APPLY ? 15 : 14, WRITES = 13, NEED = LA_PLAIN };
    float scale, b1, b2, rate, root, eps, keep;
    floatX *copy; /* or NULL */
    __device__ void operator()(float *y, unsigned, int, int) const {
        float g = scale * y[1], m = b1 * y[2] + (1 - b1) * g, v = b2 * y[3] + (1 - b2) * g * g;
        float d = sqrtf(v) * root + eps, step = d == 0 ? 0 : rate * m / d;
        y[2] = m;
        y[3] = v;
        y[0] = APPLY ? keep * y[0] - step : step;
    }
};

static inline void la_axpby(Mat Y, double a, Mat X, double b) {
    Mat m[2] = {Y, X};
    if (b == 0) la_map(LaAssign{(float)a}, m);
    else la_map(LaAxpby{(float)a, (float)b}, m);
}

static inline void la_copy(Mat Y, Mat X) { la_axpby(Y, 1, X, 0); }

static inline void la_momentum(Mat U, Mat M, Mat G, double beta, double gain, int nesterov) {
    Mat m[3] = {M, G, U};
    float b = (float)beta, k = (float)gain;
    la_map(LaMomentum{b, k, nesterov ? k : 0, nesterov ? b : 1}, m);
}

static inline void la_polynomial(Mat Y, double a, double b, Mat X, double c, Mat Z) {
    Mat m[3] = {Y, X, Z};
    la_map(LaPolynomial{(float)a, (float)b, (float)c}, m);
}

static inline void la_scale(Mat X, const floatM *s, int group) {
    if (!s) return;
    Mat m[1] = {X};
    la_map(LaScale{s, (unsigned)group}, m);
}

static inline void la_scale_units(Mat X, const floatM *s) {
    if (!s) return;
    Mat m[1] = {X};
    la_map(LaScaleUnits{s, (unsigned)mat_count(X)}, m);
}

static inline void la_add_scaled(Mat Y, double a, const floatM *s, Mat X, int group) {
    if (!s) return;
    Mat m[2] = {Y, X};
    la_map(LaAddScaled{(float)a, s, (unsigned)group}, m);
}

static inline void la_scale_rows(Mat Y, const floatM *s, Mat X) {
    if (!s) return;
    Mat m[2] = {Y, X};
    la_map(LaScaleRows{s, Y.rows, Y.cs != 1}, m);
}

static inline void la_round_bf16(Mat X) {
    Mat m[1] = {X};
    la_map(LaRoundBf16{}, m);
}

static inline void la_signum(Mat X) {
    Mat m[1] = {X};
    la_map(LaSignum{}, m);
}

static inline void la_adamw(Mat P, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2,
                            double rate, double root, double eps, double keep, floatX *copy) {
    Mat m[4] = {P, G, M, V};
    la_map(LaAdam<1>{(float)gscale, (float)beta1, (float)beta2, (float)rate, (float)root,
                     (float)eps, (float)keep, copy},
           m);
}

static inline void la_adam(Mat U, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2,
                           double rate, double root, double eps) {
    Mat m[4] = {U, G, M, V};
    la_map(LaAdam<0>{(float)gscale, (float)beta1, (float)beta2, (float)rate, (float)root,
                     (float)eps, 0, NULL},
           m);
}

/* ---------------------------------------------------------------------------------------------- */
/* Sums in double: a block sums every `pieces`-th tile of a group, then one block for each group
   sums the pieces. F says what a term is, and stores the result of each group. */

enum { LA_PARTS = 4096 }; /* doubles in cm_gpu.la_parts */

static inline double *la_parts_memory(void) {
    if (!cm_gpu.la_parts)
        CUDA_CHECK(cudaMalloc((void **)&cm_gpu.la_parts, LA_PARTS * sizeof *cm_gpu.la_parts));
    return cm_gpu.la_parts;
}

struct LaNorm {
    enum { N = 1, READS = 1 };
    __device__ static double term(const float *x) { return (double)x[0] * (double)x[0]; }
    __device__ static void end(float *s, unsigned group, unsigned, double sum) {
        s[group] = (float)sqrt(sum);
    }
};
struct LaUnits {
    enum { N = 1, READS = 1 };
    __device__ static double term(const float *x) { return (double)x[0] * (double)x[0]; }
    __device__ static void end(float *s, unsigned group, unsigned groups, double sum) {
        la_unit(&s[group], &s[groups + group], sum);
    }
};
struct LaInner {
    enum { N = 2, READS = 3 };
    __device__ static double term(const float *x) { return (double)x[0] * (double)x[1]; }
    __device__ static void end(float *s, unsigned group, unsigned, double sum) {
        s[group] = (float)sum;
    }
};

template <class F, int MODE>
__global__ static void la_fold_kernel(float *s, double *parts, LaWalk<F::N> w, unsigned pieces,
                                      unsigned tiles) {
    BLOCK_SHARED(room, , LaRoom<MODE, F::N>);
    BLOCK_SHARED(sums, [32], double);
    enum { E = LaShare<MODE>::N };
    unsigned group = blockIdx.x / pieces;
    double sum = 0;
    for (unsigned tile = blockIdx.x % pieces; tile < tiles; tile += pieces) {
        float x[F::N][E] = {}; /* elements outside of the matrix add nothing */
        la_fetch<MODE, F::READS>(x, w, la_spot<MODE>(w, group * tiles + tile), room);
        UNROLLED_FOR (int e = 0; e < E; e++) {
            float y[F::N];
            UNROLLED_FOR (int v = 0; v < F::N; v++) y[v] = x[v][e];
            sum += F::term(y);
        }
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x) return;
    if (pieces > 1) parts[blockIdx.x] = sum;
    else F::end(s, group, gridDim.x / pieces, sum);
}

template <class F>
__global__ static void la_fold_end_kernel(float *s, const double *parts, unsigned pieces) {
    BLOCK_SHARED(sums, [32], double);
    double sum = 0;
    for (unsigned i = threadIdx.x; i < pieces; i += blockDim.x)
        sum += parts[blockIdx.x * pieces + i];
    sum = block_sum(sum, sums);
    if (!threadIdx.x) F::end(s, blockIdx.x, gridDim.x, sum);
}

template <class F> static inline void la_fold(float *s, Mat (&m)[F::N], int group) {
    for (int v = 0; v < F::N; v++)
        if (!s || !m[v].p) return;
    unsigned groups = (unsigned)(mat_count(m[0]) / group);
    if (!groups) return;
    LaWalk<F::N> w = la_walk(m, LA_BY_ITEM);
    unsigned tiles = w.across * w.down * (unsigned)group, most = LA_PARTS / 2 / groups;
    unsigned pieces = ceil_div(tiles, 4), threads = (unsigned)w.threads;
    if (pieces > most) pieces = most;
    if (!pieces) pieces = 1;
    double *parts = la_parts_memory();
    const unsigned blocks = groups * pieces;
    if (w.mode == LA_WIDE)
        LAUNCH((la_fold_kernel<F, LA_WIDE>), blocks, threads, 0, s, parts, w, pieces, tiles);
    else if (w.mode == LA_SINGLE)
        LAUNCH((la_fold_kernel<F, LA_SINGLE>), blocks, threads, 0, s, parts, w, pieces, tiles);
    else LAUNCH((la_fold_kernel<F, LA_TURNED>), blocks, threads, 0, s, parts, w, pieces, tiles);
    if (pieces > 1) LAUNCH(la_fold_end_kernel<F>, groups, 128, 0, s, parts, pieces);
}

static inline void la_norms(floatM *s, Mat X, int group) {
    Mat m[1] = {X};
    la_fold<LaNorm>(s, m, group);
}

static inline void la_units(floatM *s, Mat X) {
    Mat m[1] = {X};
    la_fold<LaUnits>(s, m, 1);
}

static inline void la_inner(floatM *s, Mat X, Mat Y, int group) {
    Mat m[2] = {X, Y};
    la_fold<LaInner>(s, m, group);
}

template <int V> __global__ static void la_squares_kernel(double *parts, const float *x, size_t n) {
    BLOCK_SHARED(sums, [32], double);
    size_t step = (size_t)gridDim.x * blockDim.x, i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    for (; i < n / V; i += step) {
        float y[V];
        load<V>(y, x + V * i);
        UNROLLED_FOR (int k = 0; k < V; k++) sum += (double)y[k] * (double)y[k];
    }
    if (V > 1 && blockIdx.x == 0 && threadIdx.x == 0)
        for (size_t k = n / V * V; k < n; k++) sum += (double)x[k] * (double)x[k];
    sum = block_sum(sum, sums);
    if (!threadIdx.x) parts[blockIdx.x] = sum;
}

/* The only operation that waits for the device. NaN if something has failed. */
static inline double la_sum_squares(const floatM *x, size_t n) {
    const unsigned blocks = (unsigned)min_size(LA_PARTS / 2, (n + 1023) / 1024);
    double *parts = la_parts_memory(), sums[LA_PARTS / 2] = {0}, sum = 0;
    if (!n) return 0;
    if ((uintptr_t)x % 16 == 0) LAUNCH(la_squares_kernel<4>, blocks, 256, 0, parts, x, n);
    else LAUNCH(la_squares_kernel<1>, blocks, 256, 0, parts, x, n);
    CUDA_CHECK(
        cudaMemcpyAsync(sums, parts, blocks * sizeof *sums, cudaMemcpyDeviceToHost, cm_gpu.stream));
    CUDA_CHECK(cudaStreamSynchronize(cm_gpu.stream));
    for (unsigned i = 0; i < blocks; i++) sum += sums[i];
    return device_failure() ? NAN : sum;
}

static inline double la_identity_gap(Mat X) {
    (void)X; /* the gap is on the device; the host does not wait for it */
    return INFINITY;
}

/* Norms of rows. Contiguous rows: a warp for each, 8 rows a block. Else 32 rows side by side,
   and every thread has every eighth column. */
template <int ACROSS>
__global__ static void la_row_norms_kernel(float *norms, Mat X, unsigned tiles) {
    BLOCK_SHARED(part, [8][33], double);
    int lane = (int)threadIdx.x % 32, line = (int)threadIdx.x / 32;
    unsigned item = blockIdx.x / tiles;
    int r = (int)(blockIdx.x % tiles) * (ACROSS ? 32 : 8) + (ACROSS ? lane : line);
    const float *x = la_at(X, item) + (size_t)r * X.rs;
    double sum = 0;
    if (r < X.rows)
        for (int c = ACROSS ? line : lane; c < X.cols; c += ACROSS ? 8 : 32) {
            double y = (double)x[(size_t)c * X.cs];
            sum += y * y;
        }
    if (ACROSS) {
        part[line][lane] = sum;
        __syncthreads();
        sum = 0;
        for (int i = 0; i < 8; i++) sum += part[i][lane];
    } else {
        sum = warp_sum(sum);
    }
    if ((ACROSS ? line : lane) == 0 && r < X.rows)
        norms[(size_t)item * (size_t)X.rows + (size_t)r] = (float)sqrt(sum);
}

static inline void la_row_norms(floatM *norms, Mat X) {
    if (!norms || !X.p) return;
    const int across = X.cs != 1;
    const unsigned tiles = ceil_div((size_t)X.rows, across ? 32 : 8),
                   blocks = tiles * (unsigned)mat_count(X);
    if (!blocks) return;
    if (across) LAUNCH(la_row_norms_kernel<1>, blocks, 256, 0, norms, X, tiles);
    else LAUNCH(la_row_norms_kernel<0>, blocks, 256, 0, norms, X, tiles);
}

/* ---------------------------------------------------------------------------------------------- */
/* Vectors with one number for each item */

typedef enum {
    LA_RECIP,
    LA_RROOT,
    LA_DAMPING,
    LA_DIV,
    LA_MUL,
    LA_SQRT_OF,
    LA_UNIT_ROOTS,
    LA_MOMENT,
    LA_ROOT_RECIP,
    LA_BALANCE,
    LA_RATIO_POWER,
    LA_COLD
} LaVectorOp;

/* x / y; 0 where y is 0, and the largest floatM where the quotient is larger. */
__device__ static inline float la_quotient(double x, double y) {
    double q = y == 0 ? 0 : x / y;
    return (float)(q > LA_LARGEST ? LA_LARGEST : q);
}

__global__ static void la_vec_kernel(LaVectorOp op, float *s, const float *t, int n, double a,
                                     double b, double c) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    double x = (double)s[i], y = t ? (double)t[i] : 0,
           square = op == LA_BALANCE ? y * y : a * x * x + b;
    switch (op) {
    case LA_RECIP: s[i] = la_quotient(1, x); break;
    case LA_RROOT: s[i] = la_quotient(pow(1 / sqrt(square == 0 ? LA_ZERO : square), c), 1); break;
    case LA_DAMPING:
        square = a * x * x;
        s[i] = (float)(b * square + (square < c ? c - square : 0));
        break;
    case LA_DIV: s[i] = la_quotient(x, y); break;
    case LA_MUL: s[i] *= (float)a; break;
    case LA_SQRT_OF: s[i] = (float)sqrt(x); break;
    case LA_UNIT_ROOTS: s[i] = (float)sqrt(x * y); break;
    case LA_MOMENT: s[i] = (float)(a * x + (1 - a) * b * y * y); break;
    case LA_ROOT_RECIP: s[i] = (float)(1 / (sqrt(y) + a)); break;
    case LA_BALANCE:
        square = pow(a / (square < LA_BALANCE_FLOOR ? LA_BALANCE_FLOOR : square), b);
        s[i] = la_quotient(x * (double)la_quotient(square, 1), 1);
        break;
    case LA_RATIO_POWER: s[i] = x == 0 || y == 0 ? 1 : la_quotient(pow(x / y, a), 1); break;
    case LA_COLD:
        x = a * x * x;
        y = a * y * y;
        y = y == 0 ? 0 : b / y < y ? b / y : y;
        s[i] = (float)(y > x ? y - x : 0);
        break;
    }
}

static inline void la_vec(LaVectorOp op, floatM *s, const floatM *t, int n, double a, double b,
                          double c) {
    if (s && n > 0) LAUNCH(la_vec_kernel, ceil_div((size_t)n, 128), 128, 0, op, s, t, n, a, b, c);
}

static inline void la_vec_recip(floatM *s, int n) { la_vec(LA_RECIP, s, NULL, n, 0, 0, 0); }
static inline void la_vec_rroot(floatM *s, int n, double a, double b, double power) {
    la_vec(LA_RROOT, s, NULL, n, a, b, power);
}
static inline void la_vec_damping(floatM *s, int n, double a, double b, double floor) {
    la_vec(LA_DAMPING, s, NULL, n, a, b, floor);
}
static inline void la_vec_div(floatM *s, const floatM *t, int n) {
    if (!t) return;
    la_vec(LA_DIV, s, t, n, 0, 0, 0);
}
static inline void la_vec_mul(floatM *s, int n, double a) { la_vec(LA_MUL, s, NULL, n, a, 0, 0); }
static inline void la_vec_sqrt(floatM *s, int n) { la_vec(LA_SQRT_OF, s, NULL, n, 0, 0, 0); }
static inline void la_vec_unit_roots(floatM *s, int n) {
    la_vec(LA_UNIT_ROOTS, s, mat_offset(s, (size_t)n), n, 0, 0, 0);
}
static inline void la_vec_moment(floatM *v, const floatM *s, int n, double beta, double a) {
    if (!s) return;
    la_vec(LA_MOMENT, v, s, n, beta, a, 0);
}
static inline void la_vec_root_recip(floatM *s, const floatM *v, int n, double eps) {
    if (!v) return;
    la_vec(LA_ROOT_RECIP, s, v, n, eps, 0, 0);
}
static inline void la_vec_balance(floatM *s, const floatM *t, int n, double target, double power) {
    if (!t) return;
    la_vec(LA_BALANCE, s, t, n, target, power, 0);
}

static inline void la_vec_ratio_power(floatM *s, const floatM *t, int n, double power) {
    if (!t) return;
    la_vec(LA_RATIO_POWER, s, t, n, power, 0, 0);
}
static inline void la_vec_cold(floatM *s, const floatM *t, int n, double a, double c) {
    if (!t) return;
    la_vec(LA_COLD, s, t, n, a, c, 0);
}

/* A thread for each item, whose k numbers are few. */
__global__ static void la_vec_escape_kernel(float *s, const float *v, const float *w, int n, int k,
                                            double keep) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    v += (size_t)i * (size_t)k;
    w += (size_t)i * (size_t)k;
    double sum = 0, before = (double)v[0], after = (double)w[0];
    for (int j = 0; j < k; j++) {
        double x = (double)v[j], y = (double)w[j];
        sum += x - y;
        before = x > before ? x : before;
        after = y > after ? y : after;
    }
    double drop = before - after < sum ? before - after : sum;
    s[i] = (float)(keep * ((double)s[i] + (drop > 0 ? drop : 0)));
}

static inline void la_vec_escape(floatM *s, const floatM *v, const floatM *w, int n, int k,
                                 double keep) {
    if (!s || !v || !w || n < 1) return;
    LAUNCH(la_vec_escape_kernel, ceil_div((size_t)n, 128), 128, 0, s, v, w, n, k, keep);
}

__global__ static void la_vec_gauge_kernel(float *x, const float *l, const float *r,
                                           const float *norm_a, const float *norm_b, int n,
                                           double damping, int form) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    double a = (double)norm_a[i] * (double)norm_a[i] + damping;
    double b = (double)norm_b[i] * (double)norm_b[i] + damping;
    double p = (double)l[i], q = (double)r[i], sum = a + b;
    if (form == LA_GAUGE_PLAIN) x[i] = (float)(sum == 0 ? 0 : (p - q) / sum);
    else x[i] = (float)(0.5 * ((a == 0 ? 0 : p / a) - (b == 0 ? 0 : q / b)));
}

static inline void la_vec_gauge(floatM *x, const floatM *l, const floatM *r, const floatM *norm_a,
                                const floatM *norm_b, int n, double damping, int form) {
    if (!x || !l || !r || !norm_a || !norm_b) return;
    const unsigned blocks = ceil_div((size_t)n, 128);
    if (n > 0)
        LAUNCH(la_vec_gauge_kernel, blocks, 128, 0, x, l, r, norm_a, norm_b, n, damping, form);
}

/* ---------------------------------------------------------------------------------------------- */
/* Symmetric matrices                                                                             */

/* For a 32 x 32 tile above the diagonal and its mirror image: with MEAN both become their mean,
   else the lower one becomes the upper one. */
template <int MEAN> __global__ static void la_symmetric_kernel(Mat X, unsigned tiles) {
    BLOCK_SHARED(upper, [32][33], float);
    BLOCK_SHARED(lower, [32][33], float);
    unsigned rest = blockIdx.x % (tiles * tiles);
    int up = (int)(rest / tiles) * 32, left = (int)(rest % tiles) * 32, n = X.rows;
    int lane = (int)threadIdx.x % 32, line = (int)threadIdx.x / 32;
    if (up > left) return;
    float *x = la_at(X, blockIdx.x / (tiles * tiles));
    for (int e = line; e < 32; e += 8) {
        const float *above = x + (size_t)(up + e) * X.rs + (size_t)(left + lane);
        const float *below = x + (size_t)(left + e) * X.rs + (size_t)(up + lane);
        if (up + e < n && left + lane < n) upper[e][lane] = *above;
        if (MEAN && left + e < n && up + lane < n) lower[e][lane] = *below;
    }
    __syncthreads();
    for (int e = line; e < 32; e += 8) {
        int r = up + e,
            c = left + lane; /* element (e, lane) of the lower tile is (left + e, up + lane) */
        if (MEAN && r < n && c < n && r < c)
            x[(size_t)r * X.rs + (size_t)c] = 0.5f * (upper[e][lane] + lower[lane][e]);
        r = left + e;
        c = up + lane;
        if (r < n && c < n && r > c)
            x[(size_t)r * X.rs + (size_t)c] =
                MEAN ? 0.5f * (upper[lane][e] + lower[e][lane]) : upper[lane][e];
    }
}

static inline void la_symmetrize(Mat X) {
    if (!X.p) return;
    const unsigned tiles = ceil_div((size_t)X.rows, 32),
                   blocks = tiles * tiles * (unsigned)mat_count(X);
    if (blocks) LAUNCH(la_symmetric_kernel<1>, blocks, 256, 0, X, tiles);
}

/* Mirrors the upper triangle of a product to the lower one. Only rounding makes them differ. */
static inline void la_mirror(Mat X) {
    if (!X.p) return;
    const unsigned tiles = ceil_div((size_t)X.rows, 32),
                   blocks = tiles * tiles * (unsigned)mat_count(X);
    if (X.cs != 1) X = mat_t(X);
    if (blocks) LAUNCH(la_symmetric_kernel<0>, blocks, 256, 0, X, tiles);
}

/* ---------------------------------------------------------------------------------------------- */
/* Products                                                                                       */

/* Whether the items of a two-level batch are equally spaced, and their distance. */
static inline int la_level(Mat m) { return m.n0 == 1 || m.n1 == 1 || m.s0 == (size_t)m.n1 * m.s1; }
static inline int64_t la_stride(Mat m) { return (int64_t)(m.n1 == 1 ? m.s0 : m.s1); }

/* The row stride of a view as stored. A single row has no meaningful stride, but the library
   wants a possible one. */
static inline size_t la_lead(Mat m) {
    size_t ld = m.cs != 1 ? m.cs : m.rs, width = (size_t)(m.cs != 1 ? m.rows : m.cols);
    return ld > width ? ld : width;
}

static inline void la_gemm_batch(Mat D, double a, Mat A, Mat B, double b, const floatM *C) {
    GemmCall c = gemm_kind<float, float>(A.cs != 1, B.cs != 1, D.rows, D.cols, A.cols, la_lead(A),
                                         la_lead(B), la_lead(D));
    c.tf32 = cm_gpu.la_fast;
    c.batch = mat_count(D);
    if (c.batch > 1) {
        c.sa = la_stride(A);
        c.sb = la_stride(B);
        c.sc = la_stride(D);
    }
    gemm_call(c, a, A.p, B.p, b, C, D.p, NULL);
}

/* Items [first, first + n) of the inner batch. */
static inline Mat la_inner_items(Mat m, int first, int n) {
    m.p += (size_t)first * m.s1;
    m.n1 = n;
    return m;
}

/* m with its items in the levels of another batch with equally many items. m must be equally
   spaced. */
static inline Mat la_regroup(Mat m, const Mat &like) {
    if (m.n1 == like.n1) return m;
    if (!la_level(m)) device_fail("internal error: a product of batches in different levels");
    m.s1 = (size_t)la_stride(m);
    m.s0 = m.s1 * (size_t)like.n1;
    m.n0 = like.n0;
    m.n1 = like.n1;
    return m;
}

/* Whether X is laid out like Y, perhaps at another address. */
static inline int la_alike(Mat X, Mat Y) {
    int items =
        X.n0 == Y.n0 && X.n1 == Y.n1 && (X.n0 == 1 || X.s0 == Y.s0) && (X.n1 == 1 || X.s1 == Y.s1);
    return items && X.rows == Y.rows && X.cols == Y.cols && X.rs == Y.rs && X.cs == Y.cs;
}

/* One call for all items if they are equally spaced, else one call for each item of the shorter
   level. An addend that is laid out differently from D is copied to D first. */
enum { LA_ADD_FREE = 1 };
static inline void la_gemm_add(Mat D, double a, Mat A, Mat B, double b, Mat C) {
    if (!D.p || !A.p || !B.p) return;
    if (!mat_size(D)) return;
    if (b == 0) C = D;
    if (D.cs != 1) {
        Mat swap = mat_t(A);
        A = mat_t(B);
        B = swap;
        D = mat_t(D);
        C = mat_t(C);
    }
    const Mat levels = !la_level(A) ? A : !la_level(B) ? B : !la_level(C) ? C : D;
    A = la_regroup(A, levels);
    B = la_regroup(B, levels);
    C = la_regroup(C, levels);
    D = la_regroup(D, levels);
    if (!la_alike(C, D)) {
        la_copy(D, C);
        C = D;
    }
    if (la_level(levels)) {
        la_gemm_batch(D, a, A, B, b, C.p);
    } else if (D.n0 < D.n1) {
        for (int i = 0; i < D.n0; i++)
            la_gemm_batch(mat_outer(D, i, 1), a, mat_outer(A, i, 1), mat_outer(B, i, 1), b,
                          mat_outer(C, i, 1).p);
    } else {
        for (int i = 0; i < D.n1; i++)
            la_gemm_batch(la_inner_items(D, i, 1), a, la_inner_items(A, i, 1),
                          la_inner_items(B, i, 1), b, la_inner_items(C, i, 1).p);
    }
}

static inline void la_gemm(Mat C, double a, Mat A, Mat B, double b) {
    la_gemm_add(C, a, A, B, b, C);
}

/* With la_fast the triangles are not made equal: their difference is nothing beside rounding to
   ten bits, and mirroring takes a tenth of the product's time. */
static inline void la_gemm_add_symmetric(Mat D, double a, Mat A, Mat B, double b, Mat C) {
    la_gemm_add(D, a, A, B, b, C);
    if (!cm_gpu.la_fast) la_mirror(D);
}
static inline void la_gemm_symmetric(Mat C, double a, Mat A, Mat B, double b) {
    la_gemm_add_symmetric(C, a, A, B, b, C);
}

/* G = A A^T + b G. With b != 0 the old G enters, which a caller need not keep symmetric. */
static inline void la_gram(Mat G, Mat A, double b) {
    if (!G.p || !A.p) return;
    if (!mat_size(G)) return;
    if (G.rows <= LA_SMALL && !(cm_gpu.la_fast && la_level(A))) la_small_gram(G, A, b);
    else if (b == 0) la_gemm_symmetric(G, 1, A, mat_t(A), 0);
    else la_gemm(G, 1, A, mat_t(A), b);
}

/* ---------------------------------------------------------------------------------------------- */
/* The sign in bf16                                                                               */

/* Whether the sign is computed in bf16. --msign-compute auto means bf16 where the layers compute
   in bf16, unless --tf32 off asks for exact fp32 products. */
static inline int la_sign_in_bf16(int compute) {
    if (compute == COMPUTE_AUTO) return sizeof(floatX) == 2 && cm_gpu.allow_tf32;
    return compute == COMPUTE_BF16;
}

/* Elements from row to row: a multiple of 16 bytes, so that every shape has the fast algorithms. */
static inline size_t la_bf16_pitch(int cols) { return ((size_t)cols + 7) / 8 * 8; }

/* Elements of floatM that n matrices in bf16 take. */
static inline size_t la_bf16_room(int n, int rows, int cols) {
    return arena_round((size_t)n * (size_t)rows * la_bf16_pitch(cols) / 2);
}
static inline __nv_bfloat16 *la_bf16_take(Arena *arena, int n, int rows, int cols) {
    return (__nv_bfloat16 *)(void *)arena_take(arena, la_bf16_room(n, rows, cols));
}

/* With NARROW x = X / ||X||_F of dense X, rounded, with `items` pairs of factors s from la_units;
   else X = x. A thread has W elements of a row. */
template <int W, int NARROW>
__global__ static void __launch_bounds__(256)
    la_bf16_kernel(__nv_bfloat16 *x, Mat X, const float *s, unsigned items, unsigned pitch,
                   unsigned vectors, unsigned total) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= total) return;
    unsigned line = i / vectors, c = i % vectors * W; /* line: row number, counted over all items */
    float *wide = X.p + (size_t)line * (size_t)X.cols + c;
    __nv_bfloat16 *narrow = x + (size_t)line * pitch + c;
    float y[W];
    if (NARROW) {
        unsigned item = line / (unsigned)X.rows;
        float power = s[item], rest = s[items + item];
        load<W>(y, wide);
        UNROLLED_FOR (int e = 0; e < W; e++) y[e] = y[e] * power * rest;
        la_pack<W>(narrow, y);
    } else {
        la_unpack<W>(y, narrow);
        store<W>(wide, y);
    }
}

template <int NARROW> static inline void la_bf16_convert(__nv_bfloat16 *x, Mat X, const float *s) {
    if (!x || !X.p) return;
    const int wide = X.cols % 4 == 0 && (uintptr_t)X.p % 16 == 0;
    const unsigned pitch = (unsigned)la_bf16_pitch(X.cols),
                   vectors = (unsigned)(X.cols / (wide ? 4 : 1));
    const size_t count = (size_t)mat_count(X) * (size_t)X.rows * vectors;
    if (count > UINT32_MAX - 256)
        device_fail("a matrix sign of %zu elements at once is too much", mat_size(X));
    const unsigned total = (unsigned)count, blocks = ceil_div(count, 256),
                   n = (unsigned)mat_count(X);
    if (wide)
        LAUNCH((la_bf16_kernel<4, NARROW>), blocks, 256, 0, x, X, s, n, pitch, vectors, total);
    else LAUNCH((la_bf16_kernel<1, NARROW>), blocks, 256, 0, x, X, s, n, pitch, vectors, total);
}

/* D (M,N) = a op(A) op(B) + b C in bf16, for n items whose matrices are contiguous with row
   strides lda, ldb, ldc. */
static inline void la_bf16_gemm(int n, int ta, int tb, int M, int N, int K, double a,
                                const __nv_bfloat16 *A, size_t lda, const __nv_bfloat16 *B,
                                size_t ldb, double b, const __nv_bfloat16 *C, __nv_bfloat16 *D,
                                size_t ldc) {
    if (!D || !A || !B) return;
    GemmCall c = gemm_kind<__nv_bfloat16, __nv_bfloat16>(ta, tb, M, N, K, lda, ldb, ldc);
    c.batch = n;
    if (n > 1) {
        c.sa = (int64_t)lda * (ta ? K : M);
        c.sb = (int64_t)ldb * (tb ? N : K);
        c.sc = (int64_t)ldc * M;
    }
    gemm_call(c, a, A, B, b, C, D, NULL);
}

/* Tall items are multiplied from the right, so that nothing is transposed: A = X^T X, X <- X P'
   + a X. */
static inline int la_sign_bf16(Mat X, const floatM *s, const double (*abc)[3], int steps,
                               Arena *arena) {
    const int n = mat_count(X), rows = X.rows, cols = X.cols, tall = rows > cols,
              m = tall ? cols : rows;
    const size_t ld = la_bf16_pitch(cols), lm = la_bf16_pitch(m), mark = arena->used;
    if (!mat_size(X)) return 1;
    __nv_bfloat16 *x = la_bf16_take(arena, n, rows, cols), *y = la_bf16_take(arena, n, rows, cols);
    __nv_bfloat16 *A = la_bf16_take(arena, n, m, m), *P = la_bf16_take(arena, n, m, m);
    la_bf16_convert<1>(x, X, s);
    for (int i = 0; i < steps; i++) {
        const double *k = abc[i];
        la_bf16_gemm(n, tall, !tall, m, m, tall ? rows : cols, 1, x, ld, x, ld, 0, A, A, lm);
        la_bf16_gemm(n, 0, 0, m, m, m, k[2], A, lm, A, lm, k[1], A, P, lm);
        if (tall) la_bf16_gemm(n, 0, 0, rows, m, m, 1, x, ld, P, lm, k[0], x, y, ld);
        else la_bf16_gemm(n, 0, 0, m, cols, m, 1, P, lm, x, ld, k[0], x, y, ld);
        __nv_bfloat16 *swap = x;
        x = y;
        y = swap;
    }
    la_bf16_convert<0>(x, X, NULL);
    arena->used = mark;
    return 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Gauges                                                                                         */

/* Eigenvalue of G + damping I, from an eigenvalue of the Gram G that rounding may have left
   below zero. */
__device__ static inline double la_damped(float value, double damping) {
    return (value < 0 ? 0 : (double)value) + damping;
}

/* Sum of n damped eigenvalues. *zero is the size up to which one counts as zero, as in
   cpu/linalg.h. */
__device__ static inline double la_damped_trace(const float *values, int n, double damping,
                                                double *zero, double *sums, float *largest) {
    double sum = 0;
    float most = 0;
    for (int k = (int)threadIdx.x; k < n; k += (int)blockDim.x) {
        sum += la_damped(values[k], damping);
        most = fmaxf(most, values[k]);
    }
    sum = block_sum(sum, sums);
    most = block_max(most, largest);
    *zero = damping > 0 ? 0 : n * 1.2e-7 * (double)most;
    return sum;
}

__global__ static void la_gauge_kernel(Mat S, Mat L, Mat R, const float *values_a,
                                       const float *values_b, double damping, int form) {
    BLOCK_SHARED(sums, [32], double);
    BLOCK_SHARED(largest, [32], float);
    const int n = S.rows;
    const size_t first = (size_t)blockIdx.x * (size_t)n;
    const float *a = values_a + first, *b = values_b + first;
    float *s = la_at(S, blockIdx.x);
    const float *left = la_at(L, blockIdx.x), *right = la_at(R, blockIdx.x);
    double zero_a, zero_b, alpha = 1, beta = 1;
    double trace_a = la_damped_trace(a, n, damping, &zero_a, sums, largest);
    double trace_b = la_damped_trace(b, n, damping, &zero_b, sums, largest);
    if (form == LA_GAUGE_RELATIVE) {
        alpha = trace_a == 0 ? 0 : 1 / trace_a;
        beta = trace_b == 0 ? 0 : 1 / trace_b;
    }
    for (int i = (int)threadIdx.x; i < n * n; i += (int)blockDim.x) {
        int r = i / n, c = i % n;
        double l = (double)left[(size_t)r * L.rs + (size_t)c], x;
        double m = (double)right[(size_t)r * R.rs + (size_t)c];
        double ar = la_damped(a[r], damping), bc = la_damped(b[c], damping),
               sum = alpha * ar + beta * bc;
        if (form == LA_GAUGE_PARTNER)
            x = 0.5 * ((ar <= zero_a ? 0 : l / ar) - (bc <= zero_b ? 0 : m / bc));
        else x = sum <= alpha * zero_a + beta * zero_b ? 0 : (alpha * l - beta * m) / sum;
        s[(size_t)r * S.rs + (size_t)c] = (float)x;
    }
}

static inline void la_gauge(Mat S, Mat L, Mat R, const floatM *values_a, const floatM *values_b,
                            double damping, int form) {
    if (!S.p || !L.p || !R.p || !values_a || !values_b) return;
    const unsigned n = (unsigned)mat_count(S), threads = S.rows <= 8 ? 64 : 256;
    if (mat_size(S))
        LAUNCH(la_gauge_kernel, n, threads, 0, S, L, R, values_a, values_b, damping, form);
}

#endif
