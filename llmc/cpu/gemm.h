/*
The CPU matrix product: C (M,N) = alpha op(A) op(B) + beta C, all matrices row-major.

ta = 0: A is stored (M,K) with row stride lda. ta = 1: A is stored (K,M) and op(A) = A^T.
tb = 0: B is stored (K,N) with row stride ldb. tb = 1: B is stored (N,K) and op(B) = B^T.
With beta = 0, C is not read. K = 0 or alpha = 0 gives beta C.

gemm            all threads, in the precision of floatX; inside a parallel region it is gemm_serial
gemm_serial     the calling thread only; cheap enough for the blocks inside attention
gemm_symmetric  a product known to be symmetric (A A^T, or matrices that commute): computes one
                triangle and mirrors it, which is half the work; the built-in kernel in every build
gemm_model      what the model's layers call: gemm, or bf16 inputs with fp32 sums (--compute bf16)
gemm_builtin    our own kernel, which gemm uses without oneDNN and in the double build

The built-in product follows Goto and van de Geijn, "Anatomy of high-performance matrix
multiplication" (ACM TOMS 2008), with one change: A is read in place where its rows are contiguous.
A block of B, KC x NC, is packed into the L2 cache as panels of NR columns. A tile of C, MR x NR,
lives in registers while the kernel runs along K. Every element of C is summed in one order whatever
the tiling, so the bits do not depend on the number of threads. Without memory for scratch the
product packs one panel at a time on the stack, so it cannot fail.
*/
#ifndef CM_GEMM_H
#define CM_GEMM_H

#include "machine.h"

/* Vectors of the widest kind that the compiler may use. Loads and stores need no alignment. MR x
   2 accumulators, two vectors of B and one of A have to fit in the registers: 32 of them, or 16
   on x86 before AVX-512. */
#if defined(__AVX512F__)
#define GEMM_VEC_BYTES 64
#define GEMM_MR 8
#elif defined(__AVX__)
#define GEMM_VEC_BYTES 32
#define GEMM_MR 6
#elif defined(__aarch64__)
#define GEMM_VEC_BYTES 16
#define GEMM_MR 8
#else
#define GEMM_VEC_BYTES 16
#define GEMM_MR 6
#endif
typedef floatX gemm_vec
    __attribute__((vector_size(GEMM_VEC_BYTES), aligned(sizeof(floatX)), may_alias));
typedef floatX gemm_vec4
    __attribute__((vector_size(4 * sizeof(floatX)), aligned(sizeof(floatX)), may_alias));

#define GEMM_VL (GEMM_VEC_BYTES / (int)sizeof(floatX))
#define GEMM_NR (2 * GEMM_VL)
#define GEMM_KC 256
#define GEMM_NC ((1 << 19) / (GEMM_KC * (int)sizeof(floatX))) /* KC x NC is 512 KiB */

/* Below this many multiplications, M N K, a product is over before other threads are awake. */
#define GEMM_PARALLEL_WORK 1e5
/* Below this many the built-in product is quicker than oneDNN, whose calls cost some
   microseconds. */
#define GEMM_ONEDNN_WORK 1e6
/* Converting fewer numbers than this to bf16 is quicker on one thread. */
#define GEMM_PARALLEL_CONVERT 1e5

/* ---------------------------------------------------------------------------------------------- */
/* Scratch: one buffer for each thread and each use. It grows on demand and is freed when its
   thread ends. */

static void gemm_scratch_free(void *p) {
    GemmScratch *s = (GemmScratch *)p;
    for (int i = 0; i < GEMM_SCRATCHES; i++) free(s->data[i]);
    free(s);
}

static void gemm_scratch_init(void) { pthread_key_create(&cm_cpu.scratch_key, gemm_scratch_free); }

/* Returns `bytes` of memory aligned to 64 bytes, valid until the thread asks for `use` again;
   NULL if there is no memory. */
__attribute__((unused)) static void *gemm_scratch_try(int use, size_t bytes) {
    GemmScratch *s = cm_cpu_scratch;
    if (!s) {
        pthread_once(&cm_cpu.once, gemm_scratch_init);
        s = cm_cpu_scratch = (GemmScratch *)calloc(1, sizeof *s);
        if (s) pthread_setspecific(cm_cpu.scratch_key, s);
    }
    if (!s) return NULL;
    if (s->bytes[use] < bytes) {
        free(s->data[use]);
        s->bytes[use] = 0;
        s->data[use] = NULL;
        bytes += bytes / 4;
        void *p;
        if (posix_memalign(&p, 64, bytes) == 0) {
            s->data[use] = p;
            s->bytes[use] = bytes;
        }
    }
    return s->data[use];
}

/* Returns what gemm_scratch_try returns, and records a failure if that is NULL. The caller then
   leaves its output as it is. */
__attribute__((unused)) static void *gemm_scratch(int use, size_t bytes) {
    void *p = gemm_scratch_try(use, bytes);
    if (!p) device_fail("out of memory (%zu bytes of matrix scratch)", bytes);
    return p;
}

/* ---------------------------------------------------------------------------------------------- */
/* The built-in product */

static inline gemm_vec gemm_load(const floatX *p) { return *(const gemm_vec *)p; }
static inline void gemm_store(floatX *p, gemm_vec v) { *(gemm_vec *)p = v; }

/* Transposes a 4 x 4 block: dst[c*ldd + r] = src[r*lds + c]. */
static inline void gemm_transpose4(floatX *dst, size_t ldd, const floatX *src, size_t lds) {
    gemm_vec4 a = *(const gemm_vec4 *)src, b = *(const gemm_vec4 *)(src + lds);
    gemm_vec4 c = *(const gemm_vec4 *)(src + 2 * lds), d = *(const gemm_vec4 *)(src + 3 * lds);
#if defined(__clang__) || __GNUC__ >= 12
    gemm_vec4 ac0 = __builtin_shufflevector(a, c, 0, 4, 1, 5);
    gemm_vec4 ac1 = __builtin_shufflevector(a, c, 2, 6, 3, 7);
    gemm_vec4 bd0 = __builtin_shufflevector(b, d, 0, 4, 1, 5);
    gemm_vec4 bd1 = __builtin_shufflevector(b, d, 2, 6, 3, 7);
    *(gemm_vec4 *)dst = __builtin_shufflevector(ac0, bd0, 0, 4, 1, 5);
    *(gemm_vec4 *)(dst + ldd) = __builtin_shufflevector(ac0, bd0, 2, 6, 3, 7);
    *(gemm_vec4 *)(dst + 2 * ldd) = __builtin_shufflevector(ac1, bd1, 0, 4, 1, 5);
    *(gemm_vec4 *)(dst + 3 * ldd) = __builtin_shufflevector(ac1, bd1, 2, 6, 3, 7);
#else
    for (int i = 0; i < 4; i++) {
        gemm_vec4 column = {a[i], b[i], c[i], d[i]};
        *(gemm_vec4 *)(dst + (size_t)i * ldd) = column;
    }
#endif
}

/* Packs n <= NR columns of op(B), rows 0..K-1, into a panel (K,NR). Columns n..NR-1 become 0. */
static inline void gemm_pack_panel(floatX *panel, int tb, int K, int n, const floatX *B,
                                   size_t ldb) {
    if (!tb) {
        if (n == GEMM_NR) {
            for (int k = 0; k < K; k++, panel += GEMM_NR, B += ldb) {
                gemm_store(panel, gemm_load(B));
                gemm_store(panel + GEMM_VL, gemm_load(B + GEMM_VL));
            }
        } else {
            for (int k = 0; k < K; k++, panel += GEMM_NR, B += ldb) {
                for (int j = 0; j < n; j++) panel[j] = B[j];
                for (int j = n; j < GEMM_NR; j++) panel[j] = 0;
            }
        }
        return;
    }
    int n4 = n & ~3, k4 = K & ~3;
    for (int j = 0; j < n4; j += 4)
        for (int k = 0; k < k4; k += 4)
            gemm_transpose4(panel + k * GEMM_NR + j, GEMM_NR, B + (size_t)j * ldb + k, ldb);
    for (int k = 0; k < K; k++) {
        for (int j = k < k4 ? n4 : 0; j < n; j++) panel[k * GEMM_NR + j] = B[(size_t)j * ldb + k];
        for (int j = n; j < GEMM_NR; j++) panel[k * GEMM_NR + j] = 0;
    }
}

/* Packs m <= MR rows of A^T, where A is stored (K,M), into (K,MR). Rows m..MR-1 become 0. */
static inline void gemm_pack_at(floatX *tile, int K, int m, const floatX *A, size_t lda) {
    if (m == GEMM_MR) {
        for (int k = 0; k < K; k++)
            for (int i = 0; i < GEMM_MR; i++) tile[k * GEMM_MR + i] = A[(size_t)k * lda + i];
    } else {
        for (int k = 0; k < K; k++)
            for (int i = 0; i < GEMM_MR; i++)
                tile[k * GEMM_MR + i] = i < m ? A[(size_t)k * lda + i] : 0;
    }
}

/* Computes one tile in registers: C (m,n) = alpha A B + beta C with m <= MR and n <= nv VL. A is
   a packed tile (K,MR) or, in place, rows of stride lda. B has row stride ldb and nv VL readable
   columns. The compiler knows `packed` and `nv` at every call. Rows past m repeat the last row. */
__attribute__((always_inline)) static inline void
gemm_tile(const int packed, const int nv, int K, int m, int n, floatX alpha, const floatX *A,
          size_t lda, const floatX *B, size_t ldb, floatX beta, floatX *C, size_t ldc) {
    gemm_vec c[GEMM_MR][2];
    const floatX *row[GEMM_MR];
#pragma GCC unroll 16
    for (int i = 0; i < GEMM_MR; i++) {
        row[i] = A + (size_t)(i < m ? i : m - 1) * lda;
        c[i][0] = c[i][1] = (gemm_vec){0};
    }
    for (int k = 0; k < K; k++, B += ldb) {
        gemm_vec b0 = gemm_load(B), b1 = nv > 1 ? gemm_load(B + GEMM_VL) : b0;
#pragma GCC unroll 16
        for (int i = 0; i < GEMM_MR; i++) {
            floatX a = packed ? A[k * GEMM_MR + i] : row[i][k];
            c[i][0] += a * b0;
            if (nv > 1) c[i][1] += a * b1;
        }
    }
    /* A partial tile goes through `edge`, with the instructions of a whole tile. Which tiles are
       partial depends on how the threads share the work, and the rounding must not. */
    int whole = m == GEMM_MR && n == nv * GEMM_VL;
    floatX edge[GEMM_MR * GEMM_NR], *out = whole ? C : edge;
    size_t ldo = whole ? ldc : GEMM_NR;
    if (!whole && beta != 0) {
        memset(edge, 0, sizeof edge);
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) edge[i * GEMM_NR + j] = C[(size_t)i * ldc + j];
    }
#pragma GCC unroll 16
    for (int i = 0; i < GEMM_MR; i++, out += ldo)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            gemm_vec r = alpha * c[i][v];
            if (beta != 0) r += beta * gemm_load(out + v * GEMM_VL);
            gemm_store(out + v * GEMM_VL, r);
        }
    if (whole) return;
    for (int i = 0; i < m; i++, C += ldc)
        for (int j = 0; j < n; j++) C[j] = edge[i * GEMM_NR + j];
}

#define GEMM_DEFINE_TILE(NAME, PACKED, NV)                                                         \
    __attribute__((noinline, unused)) static void NAME(                                            \
        int K, int m, int n, floatX alpha, const floatX *A, size_t lda, const floatX *B,           \
        size_t ldb, floatX beta, floatX *C, size_t ldc) {                                          \
        gemm_tile(PACKED, NV, K, m, n, alpha, A, lda, B, ldb, beta, C, ldc);                       \
    }
GEMM_DEFINE_TILE(gemm_tile_rows_2, 0, 2)
GEMM_DEFINE_TILE(gemm_tile_rows_1, 0, 1)
GEMM_DEFINE_TILE(gemm_tile_packed_2, 1, 2)
GEMM_DEFINE_TILE(gemm_tile_packed_1, 1, 1)

/* Computes all row tiles of C (M,n), n <= NC, over one block of K <= KC. B is already in panels:
   panel p starts at B + p * panel_stride and has row stride ldb. Row i needs only its columns up
   to i + reach. `reach` is GEMM_ALL, or the column of row 0's diagonal element where only the
   lower triangle is wanted. */
#define GEMM_ALL (1 << 30)
static inline void gemm_block_reach(int ta, int M, int n, int K, floatX alpha, const floatX *A,
                                    size_t lda, const floatX *B, size_t ldb, size_t panel_stride,
                                    floatX beta, floatX *C, size_t ldc, int reach) {
    __attribute__((aligned(64))) floatX tile[GEMM_MR * GEMM_KC];
    for (int i = 0, columns = n; i < M; i += GEMM_MR) {
        int m = min_int(GEMM_MR, M - i);
        if (reach < n) {
            int last = i + m + reach; /* whole vectors up to the diagonal of the last row */
            columns = last <= 0 ? 0 : min_int(n, (last + GEMM_VL - 1) / GEMM_VL * GEMM_VL);
            if (!columns) continue;
        }
        const floatX *a = ta ? tile : A + (size_t)i * lda;
        if (ta) gemm_pack_at(tile, K, m, A + i, lda);
        const floatX *b = B;
        floatX *c = C + (size_t)i * ldc;
        for (int j = 0; j < columns; j += GEMM_NR, b += panel_stride, c += GEMM_NR) {
            int w = min_int(GEMM_NR, columns - j);
            if (ta && w > GEMM_VL) gemm_tile_packed_2(K, m, w, alpha, a, 0, b, ldb, beta, c, ldc);
            else if (ta) gemm_tile_packed_1(K, m, w, alpha, a, 0, b, ldb, beta, c, ldc);
            else if (w > GEMM_VL) gemm_tile_rows_2(K, m, w, alpha, a, lda, b, ldb, beta, c, ldc);
            else gemm_tile_rows_1(K, m, w, alpha, a, lda, b, ldb, beta, c, ldc);
        }
    }
}

static inline void gemm_block(int ta, int M, int n, int K, floatX alpha, const floatX *A,
                              size_t lda, const floatX *B, size_t ldb, size_t panel_stride,
                              floatX beta, floatX *C, size_t ldc) {
    gemm_block_reach(ta, M, n, K, alpha, A, lda, B, ldb, panel_stride, beta, C, ldc, GEMM_ALL);
}

static inline void gemm_scale(int M, int N, floatX beta, floatX *C, size_t ldc) {
    for (int i = 0; i < M; i++, C += ldc)
        for (int j = 0; j < N; j++) C[j] = beta != 0 ? beta * C[j] : 0;
}

/* Few rows of A against B stored (N,K), as when a single token is generated. Packing B would
   cost more than the product, so each element is a dot product along a row of A and a row of B.
   Returns -1 if there is no memory for the rows of A^T. */
#define GEMM_DOT_ROWS 3
static inline int gemm_dots(int ta, int M, int N, int K, floatX alpha, const floatX *A, size_t lda,
                            const floatX *B, size_t ldb, floatX beta, floatX *C, size_t ldc) {
    floatX *rows = NULL;
    if (ta) {
        rows = (floatX *)gemm_scratch_try(GEMM_SCRATCH_PACK, (size_t)M * K * sizeof(floatX));
        if (!rows) return -1;
        for (int k = 0; k < K; k++)
            for (int i = 0; i < M; i++) rows[(size_t)i * K + k] = A[(size_t)k * lda + i];
        A = rows;
        lda = (size_t)K;
    }
    for (int j = 0; j < N; j++) {
        const floatX *b = B + (size_t)j * ldb;
        for (int i = 0; i < M; i++) {
            const floatX *a = A + (size_t)i * lda;
            gemm_vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
            int k = 0;
            for (; k + 4 * GEMM_VL <= K; k += 4 * GEMM_VL) {
                s0 += gemm_load(a + k) * gemm_load(b + k);
                s1 += gemm_load(a + k + GEMM_VL) * gemm_load(b + k + GEMM_VL);
                s2 += gemm_load(a + k + 2 * GEMM_VL) * gemm_load(b + k + 2 * GEMM_VL);
                s3 += gemm_load(a + k + 3 * GEMM_VL) * gemm_load(b + k + 3 * GEMM_VL);
            }
            for (; k + GEMM_VL <= K; k += GEMM_VL) s0 += gemm_load(a + k) * gemm_load(b + k);
            s0 = (s0 + s1) + (s2 + s3);
            floatX sum = 0;
            for (int v = 0; v < GEMM_VL; v++) sum += s0[v];
            for (; k < K; k++) sum += a[k] * b[k];
            floatX *c = C + (size_t)i * ldc + j;
            *c = beta != 0 ? alpha * sum + beta * *c : alpha * sum;
        }
    }
    return 0;
}

/* Computes M rows of C, the first of which is row `row` of the whole matrix; with `lower`, only
   the part of these rows in the lower triangle. */
static void gemm_rows(int ta, int tb, int M, int N, int K, floatX alpha, const floatX *A,
                      size_t lda, const floatX *B, size_t ldb, floatX beta, floatX *C, size_t ldc,
                      int lower, int row) {
    if (M <= 0 || N <= 0) return;
    if (K <= 0 || alpha == 0) {
        gemm_scale(M, N, beta, C, ldc);
        return;
    }
    if (tb && M <= GEMM_DOT_ROWS && !lower &&
        gemm_dots(ta, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc) == 0)
        return;
    __attribute__((aligned(64))) floatX one_panel[GEMM_KC * GEMM_NR];
    int widest = min_int(GEMM_NC, (N + GEMM_NR - 1) / GEMM_NR * GEMM_NR);
    floatX *packed = (floatX *)gemm_scratch_try(
        GEMM_SCRATCH_PACK, (size_t)widest * min_int(K, GEMM_KC) * sizeof(floatX));
    int pack_columns = packed ? GEMM_NC : GEMM_NR;
    if (!packed) packed = one_panel;
    for (int j = 0; j < N; j += GEMM_NC) {
        int n = min_int(GEMM_NC, N - j), reach = lower ? row - j : GEMM_ALL;
        for (int k = 0; k < K; k += GEMM_KC) {
            int kc = min_int(GEMM_KC, K - k);
            size_t panel = (size_t)kc * GEMM_NR;
            floatX b = k == 0 ? beta : 1;
            const floatX *a = ta ? A + (size_t)k * lda : A + k;
            floatX *c = C + j;
            int in_place = 0; /* B is read in place: there are too few rows to repay packing */
            if (!tb && M <= 2 * GEMM_MR) {
                in_place = n / GEMM_NR * GEMM_NR;
                gemm_block_reach(ta, M, in_place, kc, alpha, a, lda, B + (size_t)k * ldb + j, ldb,
                                 GEMM_NR, b, c, ldc, reach);
            }
            for (int from = in_place; from < n; from += pack_columns) {
                int to = min_int(n, from + pack_columns);
                floatX *p = packed;
                for (int jj = from; jj < to; jj += GEMM_NR, p += panel)
                    gemm_pack_panel(
                        p, tb, kc, min_int(GEMM_NR, n - jj),
                        tb ? B + (size_t)(j + jj) * ldb + k : B + (size_t)k * ldb + j + jj, ldb);
                gemm_block_reach(ta, M, to - from, kc, alpha, a, lda, packed, GEMM_NR, panel, b,
                                 c + from, ldc, lower ? reach - from : GEMM_ALL);
            }
        }
    }
}

__attribute__((unused)) static void gemm_serial(int ta, int tb, int M, int N, int K, floatX alpha,
                                                const floatX *A, size_t lda, const floatX *B,
                                                size_t ldb, floatX beta, floatX *C, size_t ldc) {
    gemm_rows(ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc, 0, 0);
}

/* Mirrors the lower triangle of rows [first, last) to the columns above the diagonal. */
static inline void gemm_mirror(floatX *C, size_t ldc, int first, int last) {
    enum { BLOCK = 32 };
    for (int j = 0; j < last; j += BLOCK)
        for (int i = max_int(first, j); i < last; i++) {
            int end = min_int(i, j + BLOCK), c = j;
            if (!((i - first) & 3) && i + 4 <= last) {
                for (; c + 4 <= end; c += 4)
                    gemm_transpose4(C + (size_t)c * ldc + i, ldc, C + (size_t)i * ldc + c, ldc);
                for (int r = i; r < i + 4; r++)
                    for (int cc = c; cc < min_int(r, j + BLOCK); cc++)
                        C[(size_t)cc * ldc + r] = C[(size_t)r * ldc + cc];
                i += 3;
            } else {
                for (; c < end; c++) C[(size_t)c * ldc + i] = C[(size_t)i * ldc + c];
            }
        }
}

/* C (N,N) = alpha op(A) op(B) + beta C, which the caller knows to be symmetric. The threads
   share bands of rows, the longest first. The bits do not depend on the bands. */
__attribute__((unused)) static void gemm_symmetric(int ta, int tb, int N, int K, floatX alpha,
                                                   const floatX *A, size_t lda, const floatX *B,
                                                   size_t ldb, floatX beta, floatX *C, size_t ldc) {
    int threads = in_parallel() || (double)N * N * K < GEMM_PARALLEL_WORK ? 1 : thread_count();
    if (threads == 1) {
        gemm_rows(ta, tb, N, N, K, alpha, A, lda, B, ldb, beta, C, ldc, 1, 0);
        gemm_mirror(C, ldc, 0, N);
        return;
    }
    int band = max_int(max_int(min_int(128, N / threads), N / (8 * threads)), 1);
    band = (band + GEMM_MR - 1) / GEMM_MR * GEMM_MR;
    int bands = (N + band - 1) / band;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int t = bands - 1; t >= 0; t--) {
        int row = t * band, last = min_int(N, row + band);
        gemm_rows(ta, tb, last - row, last, K, alpha, ta ? A + row : A + (size_t)row * lda, lda, B,
                  ldb, beta, C + (size_t)row * ldc, ldc, 1, row);
        gemm_mirror(C, ldc, row, last);
    }
}

/* The threads share tiles of C. How C is split never changes the order of a sum. */
__attribute__((unused)) static void gemm_builtin(int ta, int tb, int M, int N, int K, floatX alpha,
                                                 const floatX *A, size_t lda, const floatX *B,
                                                 size_t ldb, floatX beta, floatX *C, size_t ldc) {
    int threads = in_parallel() ? 1 : thread_count();
    if (threads == 1 || (double)M * N * K < GEMM_PARALLEL_WORK) {
        gemm_serial(ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc);
        return;
    }
    int dots = tb && M <= GEMM_DOT_ROWS;
    int unit_m = dots ? M : GEMM_MR, unit_n = dots ? 1 : GEMM_NR;
    int most_m = (M + unit_m - 1) / unit_m, most_n = (N + unit_n - 1) / unit_n;
    /* Rows are split first, into tiles of at least 256 so that packing B pays; then columns and
       rows, so that tiles stay square. */
    int tm = max_int(1, min_int(M / 256, 4 * threads)), tn = 1;
    if (tm > threads) tm = (tm + threads - 1) / threads * threads;
    while (tm * tn < threads && (tm < most_m || tn < most_n)) {
        if (tn >= most_n || (tm < most_m && M / tm >= N / tn)) tm++;
        else tn++;
    }
    int rows = (most_m + tm - 1) / tm * unit_m, cols = (most_n + tn - 1) / tn * unit_n;
    tm = (M + rows - 1) / rows;
    tn = (N + cols - 1) / cols;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int t = 0; t < tm * tn; t++) {
        int i = t / tn * rows, j = t % tn * cols;
        gemm_serial(ta, tb, min_int(rows, M - i), min_int(cols, N - j), K, alpha,
                    ta ? A + i : A + (size_t)i * lda, lda, tb ? B + (size_t)j * ldb : B + j, ldb,
                    beta, C + (size_t)i * ldc + j, ldc);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* oneDNN: sgemm for fp32, the matmul primitive for bf16 inputs with fp32 sums */

#ifdef GEMM_ONEDNN

/* fp32 to bf16, rounded to nearest, ties to even. A NaN becomes a quiet NaN. */
static inline uint16_t gemm_to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

/* dst (rows,cols), dense, is src (rows,cols) of row stride ld in bf16. */
static void gemm_convert_bf16(uint16_t *dst, const float *src, int rows, int cols, size_t ld) {
#pragma omp parallel for schedule(static) if ((double)rows * cols > GEMM_PARALLEL_CONVERT)
    for (int i = 0; i < rows; i++) {
        uint16_t *d = dst + (size_t)i * cols;
        const float *s = src + (size_t)i * ld;
#pragma omp simd
        for (int j = 0; j < cols; j++) d[j] = gemm_to_bf16(s[j]);
    }
}

/* Returns src (rows,cols) of row stride ld as a dense fp32 matrix of bf16 values, in scratch
   `use`; NULL and a recorded failure if there is no memory. */
static const float *gemm_round_bf16(int use, const float *src, int rows, int cols, size_t ld) {
    float *dst = (float *)gemm_scratch(use, (size_t)rows * cols * sizeof *dst);
    if (!dst) return NULL;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            uint32_t u = (uint32_t)gemm_to_bf16(src[(size_t)i * ld + j]) << 16;
            memcpy(&dst[(size_t)i * cols + j], &u, sizeof u);
        }
    return dst;
}

/* Building a primitive compiles code, so each shape is built once and kept. gemm_model in bf16
   may run in one thread of the program at a time. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t GemmLayout;
#define GEMM_LAYOUT(layout) (layout)
#else
typedef dnnl_memory_desc_t GemmLayout;
#define GEMM_LAYOUT(layout) (&(layout))
#endif

static int gemm_layout(GemmLayout *layout, dnnl_data_type_t type, int rows, int cols,
                       size_t row_stride, size_t col_stride) {
    dnnl_dims_t dims, strides;
    dims[0] = rows;
    dims[1] = cols;
    strides[0] = (dnnl_dim_t)row_stride;
    strides[1] = (dnnl_dim_t)col_stride;
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_strides(layout, 2, dims, type, strides) != dnnl_success;
#else
    return dnnl_memory_desc_init_by_strides(layout, 2, dims, type, strides) != dnnl_success;
#endif
}

/* Builds the primitive for a key; returns nonzero if oneDNN cannot. alpha and beta become
   operations after the sum: C_new = alpha sum, then + beta C_old. */
static int gemm_build(GemmPrimitive *p, const GemmKey *key) {
    GemmLayout A, B, C;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_desc_t desc = NULL;
    size_t M = (size_t)key->M, N = (size_t)key->N, K = (size_t)key->K;
    int bad = gemm_layout(&A, dnnl_bf16, key->M, key->K, key->ta ? 1 : K, key->ta ? M : 1);
    bad |= gemm_layout(&B, dnnl_bf16, key->K, key->N, key->tb ? 1 : N, key->tb ? K : 1);
    bad |= gemm_layout(&C, dnnl_f32, key->M, key->N, key->ldc, 1);
    bad = bad || dnnl_primitive_attr_create(&attr) || dnnl_post_ops_create(&ops);
#if DNNL_VERSION_MAJOR >= 3
    if (!bad && key->alpha != 1)
        bad = dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_linear, key->alpha, 0);
    if (!bad && key->beta != 0)
        bad = dnnl_post_ops_append_sum(ops, key->beta, 0, dnnl_data_type_undef);
    bad = bad || dnnl_primitive_attr_set_post_ops(attr, ops) ||
          dnnl_matmul_primitive_desc_create(&desc, cm_cpu.onednn->engine, A, B, NULL, C, attr);
#else
    dnnl_matmul_desc_t matmul;
    if (!bad && key->alpha != 1)
        bad = dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_linear, key->alpha, 0);
    if (!bad && key->beta != 0) bad = dnnl_post_ops_append_sum(ops, key->beta);
    bad = bad || dnnl_primitive_attr_set_post_ops(attr, ops) ||
          dnnl_matmul_desc_init(&matmul, &A, &B, NULL, &C) ||
          dnnl_primitive_desc_create(&desc, &matmul, attr, cm_cpu.onednn->engine, NULL);
#endif
    bad = bad || dnnl_primitive_create(&p->primitive, desc) ||
          dnnl_memory_create(&p->A, GEMM_LAYOUT(A), cm_cpu.onednn->engine, DNNL_MEMORY_NONE) ||
          dnnl_memory_create(&p->B, GEMM_LAYOUT(B), cm_cpu.onednn->engine, DNNL_MEMORY_NONE) ||
          dnnl_memory_create(&p->C, GEMM_LAYOUT(C), cm_cpu.onednn->engine, DNNL_MEMORY_NONE);
    if (desc) dnnl_primitive_desc_destroy(desc);
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_destroy(A);
    dnnl_memory_desc_destroy(B);
    dnnl_memory_desc_destroy(C);
#endif
    if (!bad) p->key = *key;
    return bad;
}

/* Returns the primitive for a shape, from the table or built into its slot; NULL if oneDNN
   cannot build it. */
static GemmPrimitive *gemm_find(const GemmKey *key) {
    int sizes[5] = {key->ta, key->tb, key->M, key->N, key->K};
    uint64_t hash = fnv1a(FNV_BASIS, sizes, sizeof sizes);
    hash = fnv1a(hash, &key->ldc, sizeof key->ldc);
    hash = fnv1a(hash, &key->alpha, sizeof key->alpha);
    hash = fnv1a(hash, &key->beta, sizeof key->beta);
    GemmPrimitive *p = &cm_cpu.onednn->primitives[(hash >> 32) % GEMM_PRIMITIVES];
    const GemmKey *q = &p->key;
    if (p->primitive && q->ta == key->ta && q->tb == key->tb && q->M == key->M && q->N == key->N &&
        q->K == key->K && q->ldc == key->ldc && q->alpha == key->alpha && q->beta == key->beta)
        return p;
    if (p->A) dnnl_memory_destroy(p->A);
    if (p->B) dnnl_memory_destroy(p->B);
    if (p->C) dnnl_memory_destroy(p->C);
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    memset(p, 0, sizeof *p);
    return gemm_build(p, key) ? NULL : p;
}

/* Returns 0, or -1 if oneDNN cannot do this product. */
static int gemm_bf16(int ta, int tb, int M, int N, int K, float alpha, const float *A, size_t lda,
                     const float *B, size_t ldb, float beta, float *C, size_t ldc) {
    GemmKey key = {ta, tb, M, N, K, alpha, beta, ldc};
    GemmPrimitive *p = gemm_find(&key);
    if (!p) return -1;
    uint16_t *a = (uint16_t *)gemm_scratch(GEMM_SCRATCH_A, (size_t)M * K * sizeof *a);
    uint16_t *b = (uint16_t *)gemm_scratch(GEMM_SCRATCH_B, (size_t)N * K * sizeof *b);
    if (!a || !b) return -1;
    gemm_convert_bf16(a, A, ta ? K : M, ta ? M : K, lda);
    gemm_convert_bf16(b, B, tb ? N : K, tb ? K : N, ldb);
    if (dnnl_memory_set_data_handle(p->A, a) || dnnl_memory_set_data_handle(p->B, b) ||
        dnnl_memory_set_data_handle(p->C, C))
        return -1;
    dnnl_exec_arg_t args[3];
    args[0].arg = DNNL_ARG_SRC;
    args[0].memory = p->A;
    args[1].arg = DNNL_ARG_WEIGHTS;
    args[1].memory = p->B;
    args[2].arg = DNNL_ARG_DST;
    args[2].memory = p->C;
    return dnnl_primitive_execute(p->primitive, cm_cpu.onednn->stream, 3, args) ||
                   dnnl_stream_wait(cm_cpu.onednn->stream)
               ? -1
               : 0;
}

#endif

/* ---------------------------------------------------------------------------------------------- */
/* The products that others call */

__attribute__((unused)) static void gemm(int ta, int tb, int M, int N, int K, floatX alpha,
                                         const floatX *A, size_t lda, const floatX *B, size_t ldb,
                                         floatX beta, floatX *C, size_t ldc) {
    if (M <= 0 || N <= 0) return;
#ifdef GEMM_ONEDNN
    /* Inside a parallel region only the built-in product uses one thread. */
    if (!in_parallel() && K > 0 && (double)M * N * K > GEMM_ONEDNN_WORK &&
        dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', M, N, K, alpha, A, (dnnl_dim_t)lda, B,
                   (dnnl_dim_t)ldb, beta, C, (dnnl_dim_t)ldc) == dnnl_success)
        return;
#endif
    gemm_builtin(ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc);
}

/* gemm, and after gemm_setup(COMPUTE_BF16) a product of A and B rounded to bf16, with sums and C
   in fp32. Where oneDNN cannot do it (inside a parallel region) gemm multiplies the rounded
   inputs. */
__attribute__((unused)) static void gemm_model(int ta, int tb, int M, int N, int K, floatX alpha,
                                               const floatX *A, size_t lda, const floatX *B,
                                               size_t ldb, floatX beta, floatX *C, size_t ldc) {
#ifdef GEMM_ONEDNN
    if (cm_cpu.compute == COMPUTE_BF16 && M > 0 && N > 0 && K > 0) {
        if (!in_parallel() && gemm_bf16(ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc) == 0)
            return;
        A = gemm_round_bf16(GEMM_SCRATCH_A, A, ta ? K : M, ta ? M : K, lda);
        B = gemm_round_bf16(GEMM_SCRATCH_B, B, tb ? N : K, tb ? K : N, ldb);
        if (!A || !B) return;
        lda = (size_t)(ta ? M : K);
        ldb = (size_t)(tb ? K : N);
    }
#endif
    gemm(ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc);
}

/* Chooses the precision of gemm_model. Returns 0, or -1 and err if this build or this CPU lacks
   it. */
__attribute__((unused)) static int gemm_setup(Compute compute, char *err) {
    if (compute == COMPUTE_BF16) {
#ifdef GEMM_ONEDNN
        dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
        if ((isa & dnnl_cpu_isa_avx512_core_bf16) != dnnl_cpu_isa_avx512_core_bf16)
            return fail(err, "--compute bf16 needs a CPU with AVX512_BF16 or AMX, and this one has "
                             "neither (or DNNL_MAX_CPU_ISA hides it); use --compute fp32");
        if (!cm_cpu.onednn) cm_cpu.onednn = (struct GemmOnednn *)calloc(1, sizeof *cm_cpu.onednn);
        if (!cm_cpu.onednn) return fail(err, "out of memory: oneDNN's products in bf16");
        if (!cm_cpu.onednn->engine &&
            dnnl_engine_create(&cm_cpu.onednn->engine, dnnl_cpu, 0) != dnnl_success)
            return fail(err, "--compute bf16: oneDNN cannot create a CPU engine; "
                             "use --compute fp32");
        if (!cm_cpu.onednn->stream &&
            dnnl_stream_create(&cm_cpu.onednn->stream, cm_cpu.onednn->engine,
                               dnnl_stream_default_flags) != dnnl_success)
            return fail(err, "--compute bf16: oneDNN cannot create a stream; use --compute fp32");
#elif defined(CM_DOUBLE)
        return fail(err, "--compute bf16 is not in the double build; use --compute fp32");
#else
        return fail(err, "--compute bf16 needs oneDNN: apt-get install libdnnl-dev, then make "
                         "clean && make; or use --compute fp32");
#endif
    }
    switch (compute) {
    case COMPUTE_BF16: cm_cpu.compute = COMPUTE_BF16; break;
    case COMPUTE_FP32:
    case COMPUTE_AUTO: cm_cpu.compute = COMPUTE_FP32; break;
    }
    return 0;
}

/* Names the library and the precision of gemm_model, in one line for the log. */
__attribute__((unused)) static const char *gemm_describe(void) {
#ifdef GEMM_ONEDNN
    const dnnl_version_t *v = dnnl_version();
    snprintf(cm_cpu.gemm_text, sizeof cm_cpu.gemm_text, "oneDNN %d.%d.%d, %s", v->major, v->minor,
             v->patch, cm_cpu.compute == COMPUTE_BF16 ? "bf16" : "fp32");
    return cm_cpu.gemm_text;
#elif defined(CM_DOUBLE)
    return "built-in, fp64";
#else
    return "built-in, fp32 (oneDNN adds --compute bf16: apt-get install libdnnl-dev, then make "
           "clean && make)";
#endif
}

#endif
