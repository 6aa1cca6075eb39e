/*
Small matrices, one block of threads for each. Of matrices with up to 128 rows: Grams of heads; and
in shared memory from the first product to the last, the iteration of the inverse root and the
sign's run on a Gram. Of any matrices: eigenvalues by Jacobi. Part of linalg.cuh.
*/
#ifndef CM_CUDA_SMALL_CUH
#define CM_CUDA_SMALL_CUH

#include "../linalg.h"
#include "runtime.cuh"

/* Pointer to item i of a batch. */
__device__ static inline floatM *la_at(const Mat &m, unsigned i) {
    unsigned n1 = (unsigned)m.n1;
    return m.p + (size_t)(i / n1) * m.s0 + (size_t)(i % n1) * m.s1;
}

/* The two factors of 1 / sqrt(sum), see la_units and cpu/linalg.h. */
__device__ static inline void la_unit(float *power, float *rest, double sum) {
    double norm = sqrt(sum);
    int e = 0;
    if (!(norm > 0) || isinf(norm)) {
        *power = *rest = norm == 0 ? 0 : NAN;
        return;
    }
    double mantissa = (double)(float)frexp(norm, &e);
    *power = (float)ldexp(1.0, -(e / 2));
    *rest = (float)ldexp(1 / mantissa, e / 2 - e);
}

/* One block computes a matrix of up to K rows. It has SIDE x SIDE threads with TILE x TILE elements
   each; the matrix is padded with zeros to K = SIDE x TILE. */
enum { LA_SMALL = 128 };
template <int K> struct LaBlock {
    /* In shared memory the TILE rows of a thread in tile (i, j) lie in TILE / RUN groups of RUN
       consecutive rows. PITCH allows 16-byte accesses and puts rows in different banks. */
    enum {
        SIDE = K <= 32 ? 8 : 16,
        TILE = K / SIDE,
        THREADS = SIDE * SIDE,
        RUN = TILE % 4 == 0 ? 4 : 2,
        PITCH = K + 4,
        SIZE = K * PITCH
    };
    __device__ static int row(int tile, int i) {
        return i / RUN * (SIDE * RUN) + tile * RUN + i % RUN;
    }
};

/* CALL(K) with the smallest K that ROWS fit in. */
#define LA_FOR_SIZE(ROWS, CALL)                                                                    \
    do {                                                                                           \
        if ((ROWS) <= 16) CALL(16);                                                                \
        else if ((ROWS) <= 32) CALL(32);                                                           \
        else if ((ROWS) <= 64) CALL(64);                                                           \
        else if ((ROWS) <= 96) CALL(96);                                                           \
        else CALL(128);                                                                            \
    } while (0)

/* ---------------------------------------------------------------------------------------------- */
/* Grams                                                                                          */

/* Gram matrices of heads, at any address: one block each, where cuBLASLt would need a call for
   every layer. (r,c) and (c,r) are equal sums in one order, so the result is symmetric. */
enum { LA_GRAM_COLS = 32, LA_GRAM_PITCH = 36 };
template <int K> struct LaGramShare {
    enum { N = K * LA_GRAM_COLS / LaBlock<K>::THREADS };
};

/* Row and column of element e of this thread in a chunk of 32 columns. Neighbouring threads read
   neighbouring memory: along rows, or with ACROSS along columns. */
template <int K, int ACROSS> __device__ static inline int la_gram_row(int e) {
    int t = (int)threadIdx.x;
    return ACROSS ? t % 16 + 16 * (e % (K / 16)) : t / 32 + LaBlock<K>::THREADS / 32 * e;
}
template <int K, int ACROSS> __device__ static inline int la_gram_col(int e) {
    int t = (int)threadIdx.x;
    return ACROSS ? t / 16 + LaBlock<K>::THREADS / 16 * (e / (K / 16)) : t % 32;
}

template <int K, int ACROSS>
__device__ static inline void la_gram_fetch(float (&x)[LaGramShare<K>::N], const float *a,
                                            const Mat &A, int first) {
    UNROLLED_FOR (int e = 0; e < LaGramShare<K>::N; e++) {
        int r = la_gram_row<K, ACROSS>(e), c = first + la_gram_col<K, ACROSS>(e);
        size_t at = ACROSS ? (size_t)c * A.cs + (size_t)r : (size_t)r * A.rs + (size_t)c;
        x[e] = r < A.rows && c < A.cols ? a[at] : 0;
    }
}

template <int K, int ACROSS>
__global__ static void __launch_bounds__(LaBlock<K>::THREADS, K <= 64 ? 2 : 1)
    la_gram_kernel(Mat G, Mat A, float beta) {
    enum { SIDE = LaBlock<K>::SIDE, TILE = LaBlock<K>::TILE };
    BLOCK_SHARED(room, [K * LA_GRAM_PITCH / 4], float4);
    float *s = (float *)(void *)room;
    const int tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
    const float *a = la_at(A, blockIdx.x);
    float acc[TILE][TILE] = {}, next[LaGramShare<K>::N];
    la_gram_fetch<K, ACROSS>(next, a, A, 0);
    for (int first = 0; first < A.cols; first += LA_GRAM_COLS) {
        __syncthreads();
        UNROLLED_FOR (int e = 0; e < LaGramShare<K>::N; e++)
            s[la_gram_row<K, ACROSS>(e) * LA_GRAM_PITCH + la_gram_col<K, ACROSS>(e)] = next[e];
        __syncthreads();
        if (first + LA_GRAM_COLS < A.cols)
            la_gram_fetch<K, ACROSS>(next, a, A, first + LA_GRAM_COLS);
#pragma unroll 1 /* registers limit this kernel */
        for (int c = 0; c < LA_GRAM_COLS; c += 4) {
            float x[TILE][4];
            UNROLLED_FOR (int i = 0; i < TILE; i++)
                load<4>(x[i], s + (ty + SIDE * i) * LA_GRAM_PITCH + c);
            UNROLLED_FOR (int j = 0; j < TILE; j++) {
                float y[4];
                load<4>(y, s + (tx + SIDE * j) * LA_GRAM_PITCH + c);
                UNROLLED_FOR (int q = 0; q < 4; q++)
                    UNROLLED_FOR (int i = 0; i < TILE; i++) acc[i][j] += x[i][q] * y[q];
            }
        }
    }
    float *g = la_at(G, blockIdx.x);
    UNROLLED_FOR (int i = 0; i < TILE; i++)
        UNROLLED_FOR (int j = 0; j < TILE; j++) {
            int r = ty + SIDE * i, c = tx + SIDE * j;
            if (r >= A.rows || c >= A.rows) continue;
            float *out = g + (size_t)r * G.rs + (size_t)c * G.cs;
            *out = acc[i][j] + (beta == 0 ? 0 : beta * *out);
        }
}

/* G = A A^T + b G for small matrices with any strides. */
static inline void la_small_gram(Mat G, Mat A, double b) {
    const unsigned n = (unsigned)mat_count(G);
#define CALL(K)                                                                                    \
    if (A.cs == 1) LAUNCH((la_gram_kernel<K, 0>), n, LaBlock<K>::THREADS, 0, G, A, (float)b);      \
    else LAUNCH((la_gram_kernel<K, 1>), n, LaBlock<K>::THREADS, 0, G, A, (float)b)
    LA_FOR_SIZE(G.rows, CALL);
#undef CALL
}

/* ---------------------------------------------------------------------------------------------- */
/* Iterations on small matrices: a block keeps three matrices in shared memory from the first
   step to the last. */

template <int K> static inline size_t la_block_bytes(void) {
    return 32 * sizeof(double) + 3 * LaBlock<K>::SIZE * sizeof(float);
}

/* x = the elements of tile `tile` in one row. */
template <int K>
__device__ static inline void la_block_line(float (&x)[LaBlock<K>::TILE], const float *row,
                                            int tile) {
    enum { RUN = LaBlock<K>::RUN, TILE = LaBlock<K>::TILE };
    UNROLLED_FOR (int i = 0; i < TILE; i += RUN) {
        const float *p = row + LaBlock<K>::row(tile, i);
        if constexpr (RUN == 4) {
            float4 y = *(const float4 *)(const void *)p;
            x[i] = y.x;
            x[i + 1] = y.y;
            x[i + 2] = y.z;
            x[i + 3] = y.w;
        } else {
            float2 y = *(const float2 *)(const void *)p;
            x[i] = y.x;
            x[i + 1] = y.y;
        }
    }
}

/* sum = tile (up, left) of A B, for k x k matrices. SYMMETRIC: A is symmetric, so its columns
   are read as rows, which are contiguous. */
template <int K, int SYMMETRIC, int TILE>
__device__ static inline void la_block_product(float (&sum)[TILE][TILE], const float *A,
                                               const float *B, int up, int left, int k) {
    enum { PITCH = LaBlock<K>::PITCH };
    UNROLLED_FOR (int i = 0; i < TILE; i++)
        UNROLLED_FOR (int j = 0; j < TILE; j++) sum[i][j] = 0;
    for (int c = 0; c < k; c += 4) { /* the padding has room for the last three */
        float a[4][TILE];
        if (!SYMMETRIC) {
            UNROLLED_FOR (int i = 0; i < TILE; i++) {
                float4 y = *(const float4 *)(const void *)(A + LaBlock<K>::row(up, i) * PITCH + c);
                a[0][i] = y.x;
                a[1][i] = y.y;
                a[2][i] = y.z;
                a[3][i] = y.w;
            }
        }
        UNROLLED_FOR (int q = 0; q < 4; q++) {
            float b[TILE];
            if (SYMMETRIC) la_block_line<K>(a[q], A + (c + q) * PITCH, up);
            la_block_line<K>(b, B + (c + q) * PITCH, left);
            UNROLLED_FOR (int i = 0; i < TILE; i++)
                UNROLLED_FOR (int j = 0; j < TILE; j++) sum[i][j] += a[q][i] * b[j];
        }
    }
}

/* This thread's tile among those on and above the diagonal, counted row by row. About half of
   the threads have one; the others get *up = SIDE. */
template <int K> __device__ static inline void la_upper_tile(int *up, int *left) {
    enum { SIDE = LaBlock<K>::SIDE };
    int t = (int)threadIdx.x;
    *up = 0;
    while (*up < SIDE && t >= SIDE - *up) {
        t -= SIDE - *up;
        *up += 1;
    }
    *left = *up + t;
}

/* sum = a D + b sum on a tile. */
template <int K, int TILE>
__device__ static inline void la_block_mix(float (&sum)[TILE][TILE], float a, const float *D,
                                           float b, int up, int left) {
    enum { PITCH = LaBlock<K>::PITCH };
    UNROLLED_FOR (int i = 0; i < TILE; i++) {
        float d[TILE];
        la_block_line<K>(d, D + LaBlock<K>::row(up, i) * PITCH, left);
        UNROLLED_FOR (int j = 0; j < TILE; j++) sum[i][j] = a * d[j] + b * sum[i][j];
    }
}

/* X = x on a tile, and with `mirror` also on the mirror image of the tile. */
template <int K, int TILE>
__device__ static inline void la_block_write(float *X, const float (&x)[TILE][TILE], int up,
                                             int left, int mirror) {
    enum { PITCH = LaBlock<K>::PITCH };
    UNROLLED_FOR (int i = 0; i < TILE; i++)
        UNROLLED_FOR (int j = 0; j < TILE; j++) {
            int r = LaBlock<K>::row(up, i), c = LaBlock<K>::row(left, j);
            X[r * PITCH + c] = x[i][j];
            if (mirror) X[c * PITCH + r] = x[i][j];
        }
}

/* X = G + damping I, from the upper triangle of G. */
template <int K>
__device__ static inline void la_block_load(float *X, const Mat &G, float damping) {
    enum { PITCH = LaBlock<K>::PITCH };
    const float *g = la_at(G, blockIdx.x);
    const int k = G.rows;
    for (int i = (int)threadIdx.x; i < K * K; i += LaBlock<K>::THREADS) {
        int r = i / K, c = i % K;
        if (r > c) continue;
        float x = c < k ? g[(size_t)r * G.rs + (size_t)c * G.cs] + (r == c ? damping : 0) : 0;
        X[r * PITCH + c] = X[c * PITCH + r] = x;
    }
}

/* R = scale X */
template <int K>
__device__ static inline void la_block_store(const Mat &R, const float *X, float scale) {
    enum { PITCH = LaBlock<K>::PITCH };
    float *out = la_at(R, blockIdx.x);
    const int k = R.rows;
    for (int i = (int)threadIdx.x; i < K * K; i += LaBlock<K>::THREADS) {
        int r = i / K, c = i % K;
        if (r < k && c < k) out[(size_t)r * R.rs + (size_t)c * R.cs] = scale * X[r * PITCH + c];
    }
}

typedef struct {
    float ab[LA_ROOT_STEPS][2];
    int steps, watch;
} LaRootTable;

/* || this thread's tile of P - I ||^2 */
template <int K, int TILE>
__device__ static inline double la_gap_part(const float (&p)[TILE][TILE], int up, int left, int k) {
    double sum = 0;
    UNROLLED_FOR (int i = 0; i < TILE; i++)
        UNROLLED_FOR (int j = 0; j < TILE; j++) {
            int r = LaBlock<K>::row(up, i), c = LaBlock<K>::row(left, j);
            double x = (double)p[i][j] - (r == c);
            if (r < k && c < k) sum += x * x;
        }
    return sum;
}

/* Y = scale (G + damping I) with a norm below 1, then the first step from Z = I, P = Y. Returns
   the scale, which may lie outside of float. */
template <int K>
__device__ static inline double la_root_start(float *Y, float *Z, double *sums, const Mat &G,
                                              float damping, float a, float b, int up, int left) {
    enum { TILE = LaBlock<K>::TILE, PITCH = LaBlock<K>::PITCH, SIZE = LaBlock<K>::SIZE };
    const int k = G.rows;
    double square = 0;
    float sum[TILE][TILE];
    la_block_load<K>(Y, G, damping);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < SIZE; i += LaBlock<K>::THREADS)
        if (i % PITCH < k && i / PITCH < k) square += (double)Y[i] * (double)Y[i];
    float power, rest;
    la_unit(&power, &rest, block_sum(square, sums));
    rest *= 0.999f;
    for (int i = (int)threadIdx.x; i < SIZE; i += LaBlock<K>::THREADS) {
        int r = i / PITCH, c = i % PITCH, inside = r < k && c < k;
        Y[i] = inside ? Y[i] * power * rest : 0;
        Z[i] = b * Y[i] + (inside && r == c ? a : 0);
    }
    __syncthreads();
    if (up < LaBlock<K>::SIDE) {
        la_block_product<K, 1>(sum, Y, Y, up, left, k);
        la_block_mix<K>(sum, a, Y, b, up, left);
    }
    __syncthreads();
    if (up < LaBlock<K>::SIDE) la_block_write<K>(Y, sum, up, left, 1);
    __syncthreads();
    return (double)power * (double)rest;
}

/* The iteration of optim/invroot.h. A product stays in registers until a barrier, so that it may
   overwrite one of its factors. */
template <int K>
__global__ static void __launch_bounds__(LaBlock<K>::THREADS, K <= 32   ? 4
                                                              : K == 64 ? 3
                                                                        : 1)
    la_root_kernel(Mat R, Mat G, float damping, LaRootTable table) {
    SHARED(double, sums);
    enum { TILE = LaBlock<K>::TILE, SIDE = LaBlock<K>::SIDE, SIZE = LaBlock<K>::SIZE };
    float *Y = (float *)(void *)(sums + 32), *Z = Y + SIZE, *P = Z + SIZE, sum[TILE][TILE];
    const int k = G.rows, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
    int up, left;
    la_upper_tile<K>(&up, &left);
    const int mine = up < SIDE;
    double scale =
        la_root_start<K>(Y, Z, sums, G, damping, table.ab[0][0], table.ab[0][1], up, left);
    double gap = INFINITY;
    for (int step = 1, last = 0; !last; step++) {
        const float a = table.ab[step][0], b = table.ab[step][1];
        la_block_product<K, 1>(sum, Z, Y, ty, tx, k);
        last = step == table.steps - 1;
        if (step >= table.watch && !last) {
            double previous = gap;
            gap = sqrt(block_sum(la_gap_part<K>(sum, ty, tx, k), sums)) / sqrt((double)k);
            last = LA_ROOT_DONE(gap, previous);
        }
        la_block_write<K>(P, sum, ty, tx, 0);
        __syncthreads();
        if (mine) {
            la_block_product<K, 0>(sum, P, Z, up, left, k);
            la_block_mix<K>(sum, a, Z, b, up, left);
        }
        __syncthreads();
        if (mine) la_block_write<K>(Z, sum, up, left, 1);
        if (mine && !last) {
            la_block_product<K, 1>(sum, Y, P, up, left, k);
            la_block_mix<K>(sum, a, Y, b, up, left);
        }
        __syncthreads();
        if (mine && !last) la_block_write<K>(Y, sum, up, left, 1);
        __syncthreads();
    }
    la_block_store<K>(R, Z, (float)sqrt(scale));
}

/* Whether a block has the shared memory for an iteration on matrices of so many rows. */
static inline int la_block_fits(int rows) {
    int fits = 0;
#define CALL(K) fits = la_block_bytes<K>() <= cm_gpu.shared_limit
    LA_FOR_SIZE(rows, CALL);
#undef CALL
    return fits;
}

static inline int la_root_iteration(Mat R, Mat G, double damping, const double (*ab)[2], int steps,
                                    int watch) {
    LaRootTable table;
    memset(&table, 0, sizeof table);
    table.steps = steps;
    table.watch = watch;
    if (steps < 2 || steps > LA_ROOT_STEPS || G.rows > LA_SMALL) return 0;
    for (int i = 0; i < steps; i++) {
        table.ab[i][0] = (float)ab[i][0];
        table.ab[i][1] = (float)ab[i][1];
    }
    if (!mat_size(G)) return 1;
    const unsigned n = (unsigned)mat_count(G);
    if (!la_block_fits(G.rows)) return 0;
    if (!R.p || !G.p) return 1;
#define CALL(K)                                                                                    \
    LAUNCH(la_root_kernel<K>, n, LaBlock<K>::THREADS, la_block_bytes<K>(), R, G, (float)damping,   \
           table)
    LA_FOR_SIZE(G.rows, CALL);
#undef CALL
    return 1;
}

typedef struct {
    float abc[LA_SIGN_STEPS][3];
    int steps;
} LaSignTable;

/* Q = P_s ... P_1 with P = a I + b A + c A^2, and A <- P A P between the steps. All matrices are
   symmetric and commute. */
template <int K>
__global__ static void __launch_bounds__(LaBlock<K>::THREADS, K <= 32   ? 4
                                                              : K == 64 ? 3
                                                                        : 1)
    la_sign_kernel(Mat Out, Mat Gram, LaSignTable table) {
    SHARED(double, sums);
    enum { TILE = LaBlock<K>::TILE, SIDE = LaBlock<K>::SIDE, SIZE = LaBlock<K>::SIZE };
    float *A = (float *)(void *)(sums + 32), *P = A + SIZE, *Q = P + SIZE, sum[TILE][TILE];
    const int k = Gram.rows;
    int up, left;
    la_upper_tile<K>(&up, &left);
    const int mine = up < SIDE;
    la_block_load<K>(A, Gram, 0);
    __syncthreads();
    for (int step = 0; step < table.steps; step++) {
        if (mine) {
            la_block_product<K, 1>(sum, A, A, up, left, k);
            la_block_mix<K>(sum, table.abc[step][1], A, table.abc[step][2], up, left);
            UNROLLED_FOR (int i = 0; i < TILE; i++)
                if (up == left && LaBlock<K>::row(up, i) < k) sum[i][i] += table.abc[step][0];
            la_block_write<K>(P, sum, up, left, 1);
            if (step == 0) la_block_write<K>(Q, sum, up, left, 1);
        }
        __syncthreads();
        for (int twice = 0; twice < 2 && step + 1 < table.steps; twice++) {
            if (mine) la_block_product<K, 1>(sum, P, A, up, left, k);
            __syncthreads();
            if (mine) la_block_write<K>(A, sum, up, left, 1);
            __syncthreads();
        }
        if (step > 0) {
            if (mine) la_block_product<K, 1>(sum, P, Q, up, left, k);
            __syncthreads();
            if (mine) la_block_write<K>(Q, sum, up, left, 1);
            __syncthreads();
        }
    }
    la_block_store<K>(Out, Q, 1);
}

static inline int la_sign_run(Mat Q, Mat A, const double (*abc)[3], int steps) {
    LaSignTable table;
    memset(&table, 0, sizeof table);
    table.steps = steps;
    if (steps < 1 || steps > LA_SIGN_STEPS || A.rows > LA_SMALL) return 0;
    for (int i = 0; i < steps; i++)
        for (int j = 0; j < 3; j++) table.abc[i][j] = (float)abc[i][j];
    if (!mat_size(A)) return 1;
    const unsigned n = (unsigned)mat_count(A);
    if (!la_block_fits(A.rows)) return 0;
    if (!Q.p || !A.p) return 1;
#define CALL(K) LAUNCH(la_sign_kernel<K>, n, LaBlock<K>::THREADS, la_block_bytes<K>(), Q, A, table)
    LA_FOR_SIZE(A.rows, CALL);
#undef CALL
    return 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Eigenvalues: Jacobi in double, one block for each matrix */

static inline int la_even(int n) { return n + n % 2; }

/* Elements of scratch for a matrix: two matrices of even size in double. */
static inline size_t la_eigh_scratch(int n) {
    return arena_round(4 * (size_t)la_even(n) * (size_t)la_even(n));
}

/* Pair i of round `round` in a tournament of n players, n even. Everyone meets everyone else
   once in n - 1 rounds. */
__device__ static inline void la_pair(int n, int round, int i, int *p, int *q) {
    int a = i ? (round + i) % (n - 1) : n - 1, b = (round + n - 1 - i) % (n - 1);
    *p = a < b ? a : b;
    *q = a < b ? b : a;
}

/* Tangent, cosine and sine of the rotation of rows and columns p, q that zeroes x = a_pq. */
__device__ static inline void la_rotation(double *out, double app, double aqq, double x) {
    double theta = (aqq - app) / (2 * x),
           t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
    if (x == 0) t = 0;
    out[0] = t;
    out[1] = 1 / sqrt(t * t + 1);
    out[2] = t * out[1];
}

/* a <- J^T a J for all rotations of a round. A thread has the 2 x 2 block of two pairs. */
__device__ static inline void la_rotate_block(double *a, int m, int round, int i, int j,
                                              const double *turns) {
    int p, q, r, s;
    la_pair(m, round, i, &p, &q);
    la_pair(m, round, j, &r, &s);
    if (i == j) {
        double x = turns[3 * i] * a[p * m + q];
        a[p * m + p] -= x;
        a[q * m + q] += x;
        a[p * m + q] = a[q * m + p] = 0;
        return;
    }
    double c = turns[3 * i + 1], d = turns[3 * i + 2], e = turns[3 * j + 1], f = turns[3 * j + 2];
    double pr = a[p * m + r], ps = a[p * m + s], qr = a[q * m + r], qs = a[q * m + s];
    double x = c * pr - d * qr, y = c * ps - d * qs, z = d * pr + c * qr, w = d * ps + c * qs;
    a[p * m + r] = a[r * m + p] = e * x - f * y;
    a[p * m + s] = a[s * m + p] = f * x + e * y;
    a[q * m + r] = a[r * m + q] = e * z - f * w;
    a[q * m + s] = a[s * m + q] = f * z + e * w;
}

/* Diagonalises a (m,m), m even, whose rows and columns from n on are zero. Eigenvectors go to
   the rows of v. `turns` is shared memory for 3 m / 2 doubles. */
__device__ static inline void la_jacobi_block(double *a, double *v, double *turns, double *sums,
                                              int m) {
    const int half = m / 2, t = (int)threadIdx.x, threads = (int)blockDim.x;
    for (int sweep = 0; sweep < LA_JACOBI_SWEEPS; sweep++) {
        double off = 0, diagonal = 0;
        for (int i = t; i < m * m; i += threads) {
            double x = a[i] * a[i];
            if (i % (m + 1)) off += x;
            else diagonal += x;
        }
        off = block_sum(off, sums);
        __syncthreads();
        diagonal = block_sum(diagonal, sums);
        if (off <= LA_JACOBI_DONE * diagonal || off == 0 || (isnan(off) && sweep > 0))
            break; /* a NaN makes all elements NaN */
        for (int round = 0; round < m - 1; round++) {
            __syncthreads();
            for (int i = t; i < half; i += threads) {
                int p, q;
                la_pair(m, round, i, &p, &q);
                la_rotation(turns + 3 * i, a[p * m + p], a[q * m + q], a[p * m + q]);
            }
            __syncthreads();
            for (int i = t; i < half * half; i += threads)
                if (i / half <= i % half) la_rotate_block(a, m, round, i / half, i % half, turns);
            for (int i = t; i < half * m; i += threads) {
                int p, q, k = i % m;
                la_pair(m, round, i / m, &p, &q);
                double c = turns[3 * (i / m) + 1], d = turns[3 * (i / m) + 2];
                double x = v[p * m + k], y = v[q * m + k];
                v[p * m + k] = c * x - d * y;
                v[q * m + k] = d * x + c * y;
            }
        }
        __syncthreads();
    }
    __syncthreads();
}

static inline void la_roots_of(const char *names) {
    snprintf(cm_gpu.root_user, sizeof cm_gpu.root_user, "%s", names);
}

/* What the roots of this user write to where a matrix has none: two flags in memory of the host
   that the device sees. device_failure reads them. Users past ROOT_USERS share the last place. NULL
   if there is no memory, which is a failure itself. */
static inline int *la_rootless_flags(void) {
    RootUser *users = cm_gpu.root_users, user = {{0, 0}, {"", ""}};
    if (!users) {
        if (CUDA_CHECK(cudaMallocHost((void **)&users, ROOT_USERS * sizeof *users))) return NULL;
        for (int i = 0; i < ROOT_USERS; i++) users[i] = user; /* before device_failure sees them */
        cm_gpu.root_users = users;
    }
    for (int i = 0; i < 2; i++)
        la_rootless_sentence(user.sentence[i], sizeof user.sentence[i], cm_gpu.root_user,
                             i ? LA_NOT_FINITE : LA_INDEFINITE);
    int i = 0;
    while (i < ROOT_USERS - 1 && users[i].sentence[0][0] &&
           strcmp(users[i].sentence[0], user.sentence[0]) != 0)
        i++;
    memcpy(users[i].sentence, user.sentence, sizeof user.sentence);
    return users[i].rootless;
}

/* Failures are recorded by the device itself. */
static inline int la_rootless(void) { return 0; }

/* Prepares item blockIdx.x for its root, by the pivots of cpu/linalg.h. `a`: rows^2 doubles of each
   item, in shared memory or, from `scratch` on, `each` apart. All threads update the rows below a
   pivot together. */
__global__ static void la_definite_kernel(Mat G, double damping, double *scratch, size_t each,
                                          int a_shared, int *flags) {
    SHARED(double, sums);
    const int n = G.rows, t = (int)threadIdx.x, threads = (int)blockDim.x;
    double *a = a_shared ? sums + 32 : scratch + (size_t)blockIdx.x * each, count[2] = {0, 0};
    float *g = la_at(G, blockIdx.x);
    for (int i = t; i < n * n; i += threads) {
        int r = i / n, c = i % n;
        if (r > c) continue;
        a[i] = (double)g[(size_t)r * G.rs + (size_t)c * G.cs] + (r == c ? damping : 0);
        count[0] += a[i] != 0;
        count[1] += !isfinite(a[i]);
    }
    const int zero = block_sum(count[0], sums) == 0;
    __syncthreads();
    int why = block_sum(count[1], sums) > 0 ? LA_NOT_FINITE : 0;
    for (int j = 0; j < n && !zero && !why; j++) {
        const double own = (double)g[(size_t)j * (G.rs + G.cs)] + damping, pivot = a[j * n + j];
        if (!(pivot > LA_ROUNDING(n) * own)) why = LA_INDEFINITE;
        if (why) break; /* all threads see the same pivot */
        const int rest = n - 1 - j;
        for (int i = t; i < rest * rest; i += threads) {
            int r = j + 1 + i / rest, c = j + 1 + i % rest;
            if (r <= c) a[r * n + c] -= a[j * n + r] / pivot * a[j * n + c];
        }
        __syncthreads();
    }
    __syncthreads();
    if (why && t == 0) flags[why == LA_NOT_FINITE] = 1;
    for (int i = t; i < n * n && (why || zero); i += threads) {
        int r = i / n, c = i % n;
        g[(size_t)r * G.rs + (size_t)c * G.cs] = why ? NAN : r == c ? (float)LA_ZERO : 0;
    }
}

static inline void la_definite(Mat G, double damping, floatM *scratch) {
    if (!G.p || !scratch || !mat_size(G)) return;
    const size_t n = (size_t)G.rows, small = 32 * sizeof(double),
                 each = la_eigh_scratch(G.rows) / 2;
    const size_t whole = small + n * n * sizeof(double);
    const int a_shared = whole <= cm_gpu.shared_limit, threads = n <= 16 ? 32 : 256;
    int *flags = la_rootless_flags();
    damping = (double)(float)damping; /* the iteration adds it in float */
    LAUNCH(la_definite_kernel, (unsigned)mat_count(G), (unsigned)threads, a_shared ? whole : small,
           G, damping, (double *)(void *)scratch, each, a_shared, flags);
}

/* w (n) = w^(-power/2) of a matrix's eigenvalues, as in cpu/linalg.h. Every thread calls it. */
__device__ static inline void la_rroot_values(double *w, int n, double power, int *flags) {
    double least = w[0], most = w[0];
    int why = 0;
    for (int k = 0; k < n; k++) {
        if (!isfinite(w[k])) why = LA_NOT_FINITE;
        least = w[k] < least ? w[k] : least;
        most = w[k] > most ? w[k] : most;
    }
    const int zero = least == 0 && most == 0;
    if (!why && !zero && !(least > LA_ROUNDING(n) * most)) why = LA_INDEFINITE;
    __syncthreads();
    for (int k = (int)threadIdx.x; k < n; k += (int)blockDim.x)
        w[k] = why ? NAN : pow(1 / sqrt(zero ? LA_ZERO : w[k]), power);
    if (why && threadIdx.x == 0) flags[why == LA_NOT_FINITE] = 1;
}

/* values NULL: R = (G + damping I)^(-power/2). Else R has the eigenvectors in its columns, and
   `values` their eigenvalues. */
__global__ static void la_eigh_kernel(Mat R, float *values, Mat G, double damping, double power,
                                      double *scratch, size_t each, int a_shared, int *flags) {
    SHARED(double, sums);
    const int n = G.rows, m = n + n % 2, t = (int)threadIdx.x, threads = (int)blockDim.x;
    double *turns = sums + 32, *w = turns + 3 * m / 2, *v = scratch + (size_t)blockIdx.x * each;
    double *a = a_shared ? w + m : v + (size_t)m * m;
    const float *g = la_at(G, blockIdx.x);
    float *out = la_at(R, blockIdx.x);
    for (int i = t; i < m * m; i += threads) {
        int r = i / m, c = i % m;
        size_t x = (size_t)r * G.rs + (size_t)c * G.cs, y = (size_t)c * G.rs + (size_t)r * G.cs;
        a[i] = r < n && c < n ? 0.5 * ((double)g[x] + (double)g[y]) + (r == c ? damping : 0) : 0;
        v[i] = r == c;
    }
    __syncthreads();
    la_jacobi_block(a, v, turns, sums, m);
    for (int i = t; i < n; i += threads) {
        w[i] = a[i * m + i];
        if (values) values[(size_t)blockIdx.x * (size_t)n + (size_t)i] = (float)w[i];
    }
    __syncthreads();
    if (!values) la_rroot_values(w, n, power, flags);
    __syncthreads();
    for (int i = t; i < n * n; i += threads) {
        int r = i / n, c = i % n;
        double sum = 0;
        if (values) sum = v[c * m + r];
        else
            for (int k = 0; k < n; k++) sum += w[k] * (v[k * m + r] * v[k * m + c]);
        out[(size_t)r * R.rs + (size_t)c * R.cs] = (float)sum;
    }
}

static inline void la_eigh_any(Mat R, floatM *values, Mat G, double damping, double power,
                               floatM *scratch) {
    if (!R.p || !G.p || !scratch) return;
    if (!mat_size(G)) return;
    const size_t m = (size_t)la_even(G.rows), small = (32 + 3 * m / 2 + m) * sizeof(double);
    const size_t whole = small + m * m * sizeof(double), each = la_eigh_scratch(G.rows) / 2;
    const int a_shared = whole <= cm_gpu.shared_limit, threads = m <= 16 ? 32 : m <= 32 ? 128 : 256;
    LAUNCH(la_eigh_kernel, (unsigned)mat_count(G), (unsigned)threads, a_shared ? whole : small, R,
           values, G, damping, power, (double *)(void *)scratch, each, a_shared,
           values ? NULL : la_rootless_flags());
}

static inline void la_eigh_rroot(Mat R, Mat G, double damping, double power, floatM *scratch) {
    la_eigh_any(R, NULL, G, damping, power, scratch);
}

static inline void la_eigh(Mat Q, floatM *values, Mat G, floatM *scratch) {
    la_eigh_any(Q, values, G, 0, 1, scratch);
}

/* ---------------------------------------------------------------------------------------------- */
/* The inverse of a Cholesky factor in double, one block for each matrix */

/* The upper triangle of `a` becomes R, see cpu/linalg.h, and X goes below the diagonal, element
   (r, c) of it to (c, r). All threads update the rows below a pivot together; then each thread has
   columns of X of its own. */
__global__ static void la_chol_inverse_kernel(Mat X, Mat G, double *scratch, size_t each,
                                              int a_shared) {
    SHARED(double, sums);
    const int n = G.rows, t = (int)threadIdx.x, threads = (int)blockDim.x;
    double *a = a_shared ? sums + 32 : scratch + (size_t)blockIdx.x * each, spoilt = 0;
    const float *g = la_at(G, blockIdx.x);
    float *x = la_at(X, blockIdx.x);
    for (int i = t; i < n * n; i += threads) {
        int r = i / n, c = i % n;
        if (r > c) continue;
        a[i] = (double)g[(size_t)r * G.rs + (size_t)c * G.cs];
        spoilt += !isfinite(a[i]);
    }
    const int finite = block_sum(spoilt, sums) == 0;
    __syncthreads();
    for (int j = 0; j < n && finite; j++) {
        const double own = (double)g[(size_t)j * (G.rs + G.cs)], pivot = a[j * n + j];
        const double scale = pivot > LA_GRAM_ROUNDING(n) * own ? 1 / sqrt(pivot) : 0;
        __syncthreads(); /* all threads have read the pivot */
        for (int c = j + t; c < n; c += threads) a[j * n + c] *= scale;
        __syncthreads();
        const int rest = n - 1 - j;
        for (int i = t; i < rest * rest; i += threads) {
            int r = j + 1 + i / rest, c = j + 1 + i % rest;
            if (r <= c) a[r * n + c] -= a[j * n + r] * a[j * n + c];
        }
        __syncthreads();
    }
    for (int c = t; c < n && finite; c += threads) {
        const double own = a[c * n + c] > 0 ? 1 / a[c * n + c] : 0;
        for (int r = c - 1; r >= 0; r--) {
            double pivot = a[r * n + r], sum = a[r * n + c] * own;
            for (int k = r + 1; k < c; k++) sum += a[r * n + k] * a[c * n + k];
            a[c * n + r] = pivot > 0 ? -sum / pivot : 0;
        }
    }
    __syncthreads();
    for (int i = t; i < n * n; i += threads) {
        int r = i / n, c = i % n;
        double y = r > c ? 0 : r < c ? a[c * n + r] : a[i] > 0 ? 1 / a[i] : 0;
        x[(size_t)r * X.rs + (size_t)c * X.cs] = finite ? (float)y : NAN;
    }
}

static inline void la_chol_inverse(Mat X, Mat G, floatM *scratch) {
    if (!X.p || !G.p || !scratch || !mat_size(G)) return;
    const size_t n = (size_t)G.rows, small = 32 * sizeof(double),
                 each = la_eigh_scratch(G.rows) / 2;
    const size_t whole = small + n * n * sizeof(double);
    const int a_shared = whole <= cm_gpu.shared_limit, threads = n <= 16 ? 32 : 256;
    LAUNCH(la_chol_inverse_kernel, (unsigned)mat_count(G), (unsigned)threads,
           a_shared ? whole : small, X, G, (double *)(void *)scratch, each, a_shared);
}

#endif
