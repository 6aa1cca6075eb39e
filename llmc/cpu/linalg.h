/*
The operations of linalg.h on the CPU. Many small matrices are spread over the threads, one matrix
to a thread; a few large ones are worked on by all threads together.
*/
#ifndef CM_CPU_LINALG_H
#define CM_CPU_LINALG_H

#include "../linalg.h"
#include "gemm.h"

/* Elements of scratch that a rule may spread over layers: 32 MiB of float, about the last level
   of a CPU's cache. */
#define LA_SCRATCH_BUDGET ((size_t)8 << 20)

/* Fewer elements than this are done before the other threads are awake. */
#define LA_PARALLEL_SIZE 16384

/* A matrix of at most this many elements (1 MiB of float) stays in one core's cache during an
   iteration. */
#define LA_CORE_SIZE ((size_t)1 << 18)

/* Products of a batch that take fewer floating-point operations than this each, about a
   millisecond of one core, are given to the threads whole. All threads work on a larger product
   together. */
#define LA_SHARED_PRODUCT 3e7

/* Pointer to row r of item i. The elements of the row are m.cs apart. */
static inline floatM *la_row(Mat m, int i, int r) { return mat_item(m, i) + (size_t)r * m.rs; }

/* A view of m or m^T with contiguous rows, if there is one: walking memory in order matters more
   than the orientation. */
static inline Mat la_upright(Mat m) { return m.cs == 1 ? m : mat_t(m); }

/* Whether an operation on this many elements should wake the threads. Not inside a parallel
   region, where every thread has a matrix of its own. */
static inline int la_wide(size_t elements) {
    return elements > LA_PARALLEL_SIZE && !in_parallel() && thread_count() > 1;
}

/* Runs STATEMENT for every i below N, on all threads if WIDE. */
#define LA_ITEMS(WIDE, N, STATEMENT)                                                               \
    do {                                                                                           \
        const int items_ = (N);                                                                    \
        if (WIDE) {                                                                                \
            PARALLEL_FOR (int i = 0; i < items_; i++) STATEMENT;                                   \
        } else {                                                                                   \
            for (int i = 0; i < items_; i++) STATEMENT;                                            \
        }                                                                                          \
    } while (0)

/* Runs STATEMENT for every item i and row r of X, on all threads if X is large. */
#define LA_ROWS(X, STATEMENT)                                                                      \
    do {                                                                                           \
        const int items_ = mat_count(X), rows_ = (X).rows;                                         \
        if (la_wide(mat_size(X))) {                                                                \
            PARALLEL_FOR_2 (int i = 0; i < items_; i++)                                            \
                for (int r = 0; r < rows_; r++) STATEMENT;                                         \
        } else {                                                                                   \
            for (int i = 0; i < items_; i++)                                                       \
                for (int r = 0; r < rows_; r++) STATEMENT;                                         \
        }                                                                                          \
    } while (0)

/* How many of n items a rule takes through a long iteration together: one, which stays in its
   thread's cache from the first product to the last. */
static inline int la_chunk(int n) { return n < 1 ? n : 1; }

/* How many of `chunks` iterations run at once, a thread for each. 1: one iteration after the
   other, with all threads on each, because there are few or because their `elements` exceed a
   core's cache. */
static inline int la_workers(int chunks, size_t elements) {
    int threads = in_parallel() ? 1 : thread_count();
    int few = chunks < threads || (elements > LA_CORE_SIZE && chunks < 4 * threads);
    return few ? 1 : threads;
}

/* Products are computed in the precision of floatM, and no iteration is done in one piece. */
static inline int la_fast(int on) {
    (void)on;
    return 0;
}
static inline int la_root_iteration(Mat R, Mat G, double damping, const double (*ab)[2], int steps,
                                    int watch) {
    (void)R;
    (void)G;
    (void)damping;
    (void)ab;
    (void)steps;
    (void)watch;
    return 0;
}
static inline int la_sign_run(Mat Q, Mat A, const double (*abc)[3], int steps) {
    (void)Q;
    (void)A;
    (void)abc;
    (void)steps;
    return 0;
}

/* bf16 is emulated on a CPU and slower than fp32. It is there for those who ask for it. */
static inline int la_sign_in_bf16(int compute) { return compute == COMPUTE_BF16; }
static inline int la_sign_bf16(Mat X, const floatM *s, const double (*abc)[3], int steps,
                               Arena *arena) {
    (void)X;
    (void)s;
    (void)abc;
    (void)steps;
    (void)arena;
    return 0;
}

static inline void la_axpby_row(floatM *y, floatM a, const floatM *x, size_t cs, floatM b,
                                int cols) {
    if (cs == 1 && b == 0)
        for (int c = 0; c < cols; c++) y[c] = a * x[c];
    else if (cs == 1)
        for (int c = 0; c < cols; c++) y[c] = a * x[c] + b * y[c];
    else if (b == 0)
        for (int c = 0; c < cols; c++) y[c] = a * x[c * cs];
    else
        for (int c = 0; c < cols; c++) y[c] = a * x[c * cs] + b * y[c];
}

static inline void la_axpby(Mat Y, double a, Mat X, double b) {
    if (!Y.p || !X.p) return;
    if (Y.cs != 1) {
        Y = mat_t(Y);
        X = mat_t(X);
    }
    LA_ROWS(Y, la_axpby_row(la_row(Y, i, r), (floatM)a, la_row(X, i, r), X.cs, (floatM)b, Y.cols));
}

static inline void la_copy(Mat Y, Mat X) { la_axpby(Y, 1, X, 0); }

static inline void la_momentum_row(floatM *u, size_t cs, floatM *m, const floatM *g, floatM b,
                                   floatM k, int nesterov, int cols) {
    floatM own = nesterov ? k : 0, kept = nesterov ? b : 1; /* u = own g + kept m */
    if (cs == 1)
        for (int c = 0; c < cols; c++) {
            floatM x = b * m[c] + k * g[c];
            u[c] = own * g[c] + kept * x;
            m[c] = x;
        }
    else
        for (int c = 0; c < cols; c++) {
            floatM x = b * m[c] + k * g[c];
            u[c * cs] = own * g[c] + kept * x;
            m[c] = x;
        }
}

static inline void la_momentum(Mat U, Mat M, Mat G, double beta, double gain, int nesterov) {
    if (!U.p || !M.p || !G.p) return;
    if (M.cs != 1) {
        U = mat_t(U);
        M = mat_t(M);
        G = mat_t(G);
    }
    LA_ROWS(M, la_momentum_row(la_row(U, i, r), U.cs, la_row(M, i, r), la_row(G, i, r),
                               (floatM)beta, (floatM)gain, nesterov, M.cols));
}

/* One product of a batch. With `symmetric` the result is known to be symmetric. */
static inline void la_gemm_item(Mat C, double a, Mat A, Mat B, double b, int i, int serial,
                                int symmetric) {
    int ta = A.cs != 1, tb = B.cs != 1;
    size_t lda = ta ? A.cs : A.rs, ldb = tb ? B.cs : B.rs;
    const floatM *x = mat_item(A, i), *y = mat_item(B, i);
    if (symmetric)
        gemm_symmetric(ta, tb, C.rows, A.cols, (floatM)a, x, lda, y, ldb, (floatM)b, mat_item(C, i),
                       C.rs);
    else if (serial)
        gemm_serial(ta, tb, C.rows, C.cols, A.cols, (floatM)a, x, lda, y, ldb, (floatM)b,
                    mat_item(C, i), C.rs);
    else
        gemm(ta, tb, C.rows, C.cols, A.cols, (floatM)a, x, lda, y, ldb, (floatM)b, mat_item(C, i),
             C.rs);
}

static inline void la_gemm_items(Mat C, double a, Mat A, Mat B, double b, int symmetric) {
    if (!C.p || !A.p || !B.p) return;
    int n = mat_count(C), serial = in_parallel(), threads = serial ? 1 : thread_count();
    int whole = threads > 1 && n >= threads &&
                /* each product whole, by one thread */
                2.0 * C.rows * C.cols * A.cols < LA_SHARED_PRODUCT;
    LA_ITEMS(whole, n, la_gemm_item(C, a, A, B, b, i, whole || serial, symmetric));
}

static inline void la_gemm(Mat C, double a, Mat A, Mat B, double b) {
    if (C.cs != 1) la_gemm_items(mat_t(C), a, mat_t(B), mat_t(A), b, 0);
    else la_gemm_items(C, a, A, B, b, 0);
}

static inline void la_gemm_symmetric(Mat C, double a, Mat A, Mat B, double b) {
    la_gemm_items(C.cs != 1 ? mat_t(C) : C, a, A, B, b, 1);
}

/* The product accumulates in place, so the addend is copied to D first. */
enum { LA_ADD_FREE = 0 };
static inline void la_gemm_add(Mat D, double a, Mat A, Mat B, double b, Mat C) {
    if (b != 0 && D.p != C.p) la_copy(D, C);
    la_gemm(D, a, A, B, b);
}

static inline void la_gemm_add_symmetric(Mat D, double a, Mat A, Mat B, double b, Mat C) {
    if (b != 0 && D.p != C.p) la_copy(D, C);
    la_gemm_symmetric(D, a, A, B, b);
}

/* With b != 0 the old G enters, which a caller need not keep symmetric. */
static inline void la_gram(Mat G, Mat A, double b) {
    if (b == 0) la_gemm_symmetric(G, 1, A, mat_t(A), 0);
    else la_gemm(G, 1, A, mat_t(A), b);
}

static inline void la_polynomial_row(floatM *y, floatM a, floatM b, const floatM *x, floatM c,
                                     const floatM *z, int cols, int r) {
    for (int j = 0; j < cols; j++) y[j] = b * x[j] + c * z[j];
    y[r] += a;
}

static inline void la_polynomial(Mat Y, double a, double b, Mat X, double c, Mat Z) {
    if (!Y.p || !X.p || !Z.p) return;
    LA_ROWS(Y, la_polynomial_row(la_row(Y, i, r), (floatM)a, (floatM)b, la_row(X, i, r), (floatM)c,
                                 la_row(Z, i, r), Y.cols, r));
}

/* The largest ||X_i - I||_F of the batch; NaN if one of them is NaN. */
static inline double la_identity_gap(Mat X) {
    if (!X.p) return 0;
    double largest = 0;
    for (int i = 0; i < mat_count(X); i++) {
        double total = 0;
        for (int r = 0; r < X.rows; r++) {
            const floatM *x = la_row(X, i, r);
            double diagonal = (double)x[r] - 1, rest = 0;
#pragma omp simd reduction(+ : rest)
            for (int c = 0; c < X.cols; c++) rest += c == r ? 0 : (double)x[c] * (double)x[c];
            total += diagonal * diagonal + rest;
        }
        if (!(total <= largest)) largest = total;
    }
    return sqrt(largest);
}

static inline void la_symmetrize_item(Mat X, int i) {
    floatM *x = mat_item(X, i);
    for (int r = 0; r < X.rows; r++)
        for (int c = r + 1; c < X.cols; c++) {
            floatM m = (floatM)0.5 * (x[r * X.rs + c] + x[c * X.rs + r]);
            x[r * X.rs + c] = x[c * X.rs + r] = m;
        }
}

static inline void la_symmetrize(Mat X) {
    if (!X.p) return;
    LA_ITEMS(la_wide(mat_size(X)), mat_count(X), la_symmetrize_item(X, i));
}

/* Sum of squares of items [first, last) in double, row by row in order: the result does not
   depend on the threads. noinline, because a compiler contracts each inlined copy differently. */
__attribute__((noinline, unused)) static double la_squares(Mat X, int first, int last) {
    double total = 0;
    for (int j = first; j < last; j++)
        for (int r = 0; r < X.rows; r++) {
            const floatM *x = la_row(X, j, r);
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int c = 0; c < X.cols; c++) sum += (double)x[c] * (double)x[c];
            total += sum;
        }
    return total;
}

static inline void la_norms(floatM *s, Mat X, int group) {
    if (!s || !X.p) return;
    X = la_upright(X);
    int n = mat_count(X) / group;
    LA_ITEMS(la_wide(mat_size(X)), n,
             s[i] = (floatM)sqrt(la_squares(X, i * group, (i + 1) * group)));
}

/* The two factors of 1 / sqrt(sum), see la_units. The norm is rounded to floatM before the
   division, so the product has the bits of a quotient by a norm of la_norms. */
static inline void la_unit(floatM *power, floatM *rest, double sum) {
    double norm = sqrt(sum);
    int e = 0;
    if (!(norm > 0) || isinf(norm)) {
        *power = *rest = norm == 0 ? 0 : (floatM)NAN;
        return;
    }
    double mantissa = (double)(floatM)frexp(norm, &e);
    *power = (floatM)ldexp(1, -(e / 2));
    *rest = (floatM)ldexp(1 / mantissa, e / 2 - e);
}

static inline void la_units(floatM *s, Mat X) {
    if (!s || !X.p) return;
    X = la_upright(X);
    int n = mat_count(X);
    LA_ITEMS(la_wide(mat_size(X)), n, la_unit(&s[i], &s[n + i], la_squares(X, i, i + 1)));
}

/* Sum of squares of n numbers in double, in 256 fixed pieces, so that the result does not depend
   on the number of threads. */
static inline double la_sum_squares(const floatM *x, size_t n) {
    double part[256], total = 0;
#pragma omp parallel for
    for (int i = 0; i < 256; i++) {
        size_t lo = n / 256 * (size_t)i, hi = i < 255 ? lo + n / 256 : n;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t j = lo; j < hi; j++) sum += (double)x[j] * (double)x[j];
        part[i] = sum;
    }
    for (int i = 0; i < 256; i++) total += part[i];
    return total;
}

static inline void la_scale_row(floatM *x, floatM k, int cols) {
    for (int c = 0; c < cols; c++) x[c] *= k;
}

static inline void la_scale(Mat X, const floatM *s, int group) {
    if (!X.p || !s) return;
    X = la_upright(X);
    LA_ROWS(X, la_scale_row(la_row(X, i, r), s[i / group], X.cols));
}

static inline void la_scale_units_row(floatM *x, floatM power, floatM rest, int cols) {
    for (int c = 0; c < cols; c++) x[c] = x[c] * power * rest;
}

static inline void la_scale_units(Mat X, const floatM *s) {
    if (!X.p || !s) return;
    X = la_upright(X);
    const int n = mat_count(X);
    LA_ROWS(X, la_scale_units_row(la_row(X, i, r), s[i], s[n + i], X.cols));
}

/* Rounds to bf16, the upper half of a float: to nearest, ties to even. A NaN stays NaN. */
static inline void la_round_bf16_row(floatM *x, int cols) {
    for (int c = 0; c < cols; c++) {
        float y = (float)x[c];
        uint32_t bits, rounded;
        memcpy(&bits, &y, sizeof bits);
        rounded = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
        rounded = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : rounded;
        memcpy(&y, &rounded, sizeof y);
        x[c] = (floatM)y;
    }
}

static inline void la_round_bf16(Mat X) {
    if (!X.p) return;
    X = la_upright(X);
    LA_ROWS(X, la_round_bf16_row(la_row(X, i, r), X.cols));
}

static inline void la_signum_row(floatM *x, int cols) {
    for (int c = 0; c < cols; c++) x[c] = x[c] > 0 ? 1 : x[c] < 0 ? -1 : x[c]; /* a NaN stays one */
}

static inline void la_signum(Mat X) {
    if (!X.p) return;
    X = la_upright(X);
    LA_ROWS(X, la_signum_row(la_row(X, i, r), X.cols));
}

/* x / y; 0 where y is 0, and the largest floatM where the quotient is larger. */
static inline floatM la_quotient(double x, double y) {
    double q = y == 0 ? 0 : x / y;
    return (floatM)(q > LA_LARGEST ? LA_LARGEST : q);
}

static inline void la_vec_recip(floatM *s, int n) {
    if (!s) return;
    for (int i = 0; i < n; i++) s[i] = la_quotient(1, (double)s[i]);
}

static inline void la_vec_rroot(floatM *s, int n, double a, double b, double power) {
    if (!s) return;
    for (int i = 0; i < n; i++) {
        double x = a * (double)s[i] * (double)s[i] + b;
        s[i] = la_quotient(pow(1.0 / sqrt(x == 0 ? LA_ZERO : x), power), 1);
    }
}

static inline void la_vec_damping(floatM *s, int n, double a, double b, double floor) {
    if (!s) return;
    for (int i = 0; i < n; i++) {
        double x = a * (double)s[i] * (double)s[i];
        s[i] = (floatM)(b * x + (x < floor ? floor - x : 0));
    }
}

static inline void la_vec_div(floatM *s, const floatM *t, int n) {
    if (!s || !t) return;
    for (int i = 0; i < n; i++) s[i] = la_quotient((double)s[i], (double)t[i]);
}

static inline void la_vec_mul(floatM *s, int n, double a) {
    if (!s) return;
    for (int i = 0; i < n; i++) s[i] *= (floatM)a;
}

static inline void la_vec_sqrt(floatM *s, int n) {
    if (!s) return;
    for (int i = 0; i < n; i++) s[i] = (floatM)sqrt((double)s[i]);
}

static inline void la_vec_unit_roots(floatM *s, int n) {
    if (!s) return;
    for (int i = 0; i < n; i++) s[i] = (floatM)sqrt((double)s[i] * (double)s[n + i]);
}

/* One element-wise AdamW step of P. optim/adamw.h defines the constants. */
static inline void la_adamw(Mat P, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2,
                            double rate, double root, double eps, double keep, floatX *copy) {
    if (!P.p || !G.p || !M.p || !V.p) return;
    floatM k = (floatM)gscale, b1 = (floatM)beta1, b2 = (floatM)beta2, e = (floatM)eps;
    floatM step = (floatM)rate, correct = (floatM)root, shrink = (floatM)keep;
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(P); i++)
        for (int r = 0; r < P.rows; r++) {
            floatM *p = la_row(P, i, r), *m = la_row(M, i, r), *v = la_row(V, i, r);
            const floatM *gradient = la_row(G, i, r);
#pragma omp simd
            for (int c = 0; c < P.cols; c++) {
                floatM g = k * gradient[c];
                m[c] = b1 * m[c] + (1 - b1) * g;
                v[c] = b2 * v[c] + (1 - b2) * g * g;
                floatM d = CM_SQRT(v[c]) * correct + e;
                p[c] = shrink * p[c] - (d == 0 ? 0 : step * m[c] / d);
            }
            if (copy) memcpy(copy + (p - P.p), p, (size_t)P.cols * sizeof *p);
        }
}

/* Cyclic Jacobi on a symmetric matrix (n,n) in double: eigenvalues in w, eigenvectors in the
   columns of v. */
static inline void la_jacobi(double *a, double *v, double *w, int n) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) v[i * n + j] = i == j;
    for (int sweep = 0; sweep < LA_JACOBI_SWEEPS; sweep++) {
        double off = 0, diagonal = 0;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                double square = a[i * n + j] * a[i * n + j];
                if (i == j) diagonal += square;
                else off += square;
            }
        if (off <= LA_JACOBI_DONE * diagonal || off == 0) break;
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++) {
                double apq = a[p * n + q];
                if (apq == 0) continue;
                double theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
                double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int k = 0; k < n; k++) {
                    double x = a[k * n + p], y = a[k * n + q];
                    a[k * n + p] = c * x - s * y;
                    a[k * n + q] = s * x + c * y;
                }
                for (int k = 0; k < n; k++) {
                    double x = a[p * n + k], y = a[q * n + k];
                    a[p * n + k] = c * x - s * y;
                    a[q * n + k] = s * x + c * y;
                    x = v[k * n + p];
                    y = v[k * n + q];
                    v[k * n + p] = c * x - s * y;
                    v[k * n + q] = s * x + c * y;
                }
            }
    }
    for (int i = 0; i < n; i++) w[i] = a[i * n + i];
}

/* Elements of scratch that la_eigen takes for a matrix: two matrices and a vector in double. */
static inline size_t la_eigh_scratch(int n) {
    return arena_round((2 * (size_t)n * n + n) * (sizeof(double) / sizeof(floatM)));
}

/* Eigenvalues *values (n) and, in the columns of *vectors (n,n), eigenvectors of item i of G +
   damping I. Both lie in scratch, la_eigh_scratch(n) elements. */
static inline void la_eigen(double **vectors, double **values, Mat G, int i, double damping,
                            floatM *scratch) {
    int n = G.rows;
    double *a = (double *)(void *)scratch;
    *vectors = a + (size_t)n * n;
    *values = *vectors + (size_t)n * n;
    for (int r = 0; r < n; r++)
        for (int c = 0; c < n; c++) {
            double mean = 0.5 * ((double)la_row(G, i, r)[c] + (double)la_row(G, i, c)[r]);
            a[r * n + c] = mean + (r == c ? damping : 0);
        }
    la_jacobi(a, *vectors, *values, n);
}

/* w (n) = w^(-power/2) of a matrix's eigenvalues; LA_ZERO stands for all of them if all are 0. If
   one of them is not positive, all become NaN. Returns 0 or why there is no root. */
static inline int la_rroot_values(double *w, int n, double power) {
    double least = w[0], most = w[0];
    int why = 0;
    for (int k = 0; k < n; k++) {
        if (!isfinite(w[k])) why = LA_NOT_FINITE;
        least = w[k] < least ? w[k] : least;
        most = w[k] > most ? w[k] : most;
    }
    int zero = least == 0 && most == 0;
    if (!why && !zero && !(least > LA_ROUNDING(n) * most)) why = LA_INDEFINITE;
    for (int k = 0; k < n; k++) w[k] = why ? NAN : pow(1 / sqrt(zero ? LA_ZERO : w[k]), power);
    return why;
}

static inline void la_roots_of(const char *names) { (void)names; }

static inline int la_rootless(void) {
    int why = cm_cpu_rootless;
    cm_cpu_rootless = 0;
    return why;
}

/* Whether G + damping I of item i, of which the upper triangle is read, has an inverse root: 0, or
   why not; *zero is set if it is zero. a is scratch for rows^2 doubles. The pivots of Gauss's
   elimination are positive if and only if the matrix is positive definite. */
static inline int la_pivots(Mat G, int i, double damping, double *a, int *zero) {
    int n = G.rows, finite = 1;
    *zero = 1;
    for (int r = 0; r < n; r++)
        for (int c = r; c < n; c++) {
            double x = a[r * n + c] = (double)la_row(G, i, r)[c] + (r == c ? damping : 0);
            *zero &= x == 0;
            finite &= isfinite(x) != 0;
        }
    if (!finite) return LA_NOT_FINITE;
    if (*zero) return 0;
    for (int j = 0; j < n; j++) {
        const double *row = a + (size_t)j * n;
        double own = (double)la_row(G, i, j)[j] + damping;
        if (!(row[j] > LA_ROUNDING(n) * own)) return LA_INDEFINITE;
        for (int r = j + 1; r < n; r++) {
            double factor = row[r] / row[j], *below = a + (size_t)r * n;
#pragma omp simd
            for (int c = r; c < n; c++) below[c] -= factor * row[c];
        }
    }
    return 0;
}

/* The iteration adds the damping in floatM, so the pivots do too. */
static inline void la_definite(Mat G, double damping, floatM *scratch) {
    if (!G.p || !scratch) return;
    int n = G.rows, all = 0;
    damping = (double)(floatM)damping;
#pragma omp parallel for reduction(| : all)
    for (int i = 0; i < mat_count(G); i++) {
        size_t at = (size_t)i * la_eigh_scratch(n);
        int zero, why = la_pivots(G, i, damping, (double *)(void *)(scratch + at), &zero);
        all |= why;
        for (int r = 0; r < n && (why || zero); r++)
            for (int c = 0; c < n; c++)
                la_row(G, i, r)[c] = why ? (floatM)NAN : (floatM)(r == c ? LA_ZERO : 0);
    }
    cm_cpu_rootless |= all;
}

static inline void la_eigh_rroot(Mat R, Mat G, double damping, double power, floatM *scratch) {
    if (!R.p || !G.p || !scratch) return;
    int n = G.rows, all = 0;
#pragma omp parallel for reduction(| : all)
    for (int i = 0; i < mat_count(G); i++) {
        double *v, *w;
        la_eigen(&v, &w, G, i, damping, scratch + (size_t)i * la_eigh_scratch(n));
        all |= la_rroot_values(w, n, power);
        for (int r = 0; r < n; r++)
            for (int c = 0; c < n; c++) {
                double sum = 0;
                for (int k = 0; k < n; k++) sum += v[r * n + k] * w[k] * v[c * n + k];
                la_row(R, i, r)[c] = (floatM)sum;
            }
    }
    cm_cpu_rootless |= all;
}

/* ---------------------------------------------------------------------------------------------- */
/* Operations of the gauge connections and of the controls                                        */

/* Sum of x_c y_c over one row in double. The columns of y are cs apart. */
static inline double la_dot(const floatM *x, const floatM *y, size_t cs, int cols) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < cols; c++) sum += (double)x[c] * (double)y[(size_t)c * cs];
    return sum;
}

static inline void la_inner(floatM *s, Mat X, Mat Y, int group) {
    if (!s || !X.p || !Y.p) return;
    if (X.cs != 1) {
        X = mat_t(X);
        Y = mat_t(Y);
    }
    int n = mat_count(X) / group;
#pragma omp parallel for
    for (int i = 0; i < n; i++) {
        double total = 0;
        for (int j = i * group; j < (i + 1) * group; j++)
            for (int r = 0; r < X.rows; r++)
                total += la_dot(la_row(X, j, r), la_row(Y, j, r), Y.cs, X.cols);
        s[i] = (floatM)total;
    }
}

static inline void la_add_scaled(Mat Y, double a, const floatM *s, Mat X, int group) {
    if (!Y.p || !X.p || !s) return;
    if (Y.cs != 1) {
        Y = mat_t(Y);
        X = mat_t(X);
    }
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(Y); i++)
        for (int r = 0; r < Y.rows; r++) {
            floatM *y = la_row(Y, i, r), k = (floatM)a * s[i / group];
            const floatM *x = la_row(X, i, r);
            const size_t cs = X.cs;
            for (int c = 0; c < Y.cols; c++) y[c] += k * x[(size_t)c * cs];
        }
}

static inline void la_row_norms(floatM *norms, Mat X) {
    if (!norms || !X.p) return;
    enum { BLOCK = 64 }; /* rows that are side by side in memory are summed together */
    int blocks = (X.rows + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(X); i++)
        for (int b = 0; b < blocks; b++) {
            int first = b * BLOCK, n = min_int(BLOCK, X.rows - first);
            double sum[BLOCK];
            for (int r = 0; r < n; r++) {
                const floatM *x = la_row(X, i, first + r);
                sum[r] = X.cs == 1 ? la_dot(x, x, 1, X.cols) : 0;
            }
            for (int c = 0; X.cs != 1 && c < X.cols; c++) {
                const floatM *x = la_row(X, i, first) + (size_t)c * X.cs;
                for (int r = 0; r < n; r++) sum[r] += (double)x[r] * (double)x[r];
            }
            for (int r = 0; r < n; r++)
                norms[(size_t)i * X.rows + first + r] = (floatM)sqrt(sum[r]);
        }
}

static inline void la_scale_rows(Mat Y, const floatM *s, Mat X) {
    if (!Y.p || !X.p || !s) return;
    int across = Y.cs != 1; /* walk along the columns */
    Mat A = across ? mat_t(Y) : Y, B = across ? mat_t(X) : X;
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(A); i++)
        for (int r = 0; r < A.rows; r++) {
            floatM *y = la_row(A, i, r);
            const floatM *x = la_row(B, i, r), *k = s + (size_t)i * Y.rows;
            const size_t cs = B.cs;
            for (int c = 0; c < A.cols; c++) y[c] = k[across ? c : r] * x[(size_t)c * cs];
        }
}

static inline void la_adam(Mat U, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2,
                           double rate, double root, double eps) {
    if (!U.p || !G.p || !M.p || !V.p) return;
    floatM k = (floatM)gscale, b1 = (floatM)beta1, b2 = (floatM)beta2, e = (floatM)eps;
    floatM size = (floatM)rate, correct = (floatM)root;
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(U); i++)
        for (int r = 0; r < U.rows; r++) {
            floatM *u = la_row(U, i, r), *m = la_row(M, i, r), *v = la_row(V, i, r);
            const floatM *gradient = la_row(G, i, r);
#pragma omp simd
            for (int c = 0; c < U.cols; c++) {
                floatM g = k * gradient[c];
                m[c] = b1 * m[c] + (1 - b1) * g;
                v[c] = b2 * v[c] + (1 - b2) * g * g;
                floatM d = CM_SQRT(v[c]) * correct + e;
                u[c] = d == 0 ? 0 : size * m[c] / d;
            }
        }
}

static inline void la_eigh(Mat Q, floatM *values, Mat G, floatM *scratch) {
    if (!Q.p || !G.p || !values || !scratch) return;
    int n = G.rows;
#pragma omp parallel for
    for (int i = 0; i < mat_count(G); i++) {
        double *v, *w;
        la_eigen(&v, &w, G, i, 0, scratch + (size_t)i * la_eigh_scratch(n));
        for (int r = 0; r < n; r++)
            for (int c = 0; c < n; c++) la_row(Q, i, r)[c] = (floatM)v[r * n + c];
        for (int k = 0; k < n; k++) values[(size_t)i * n + k] = (floatM)w[k];
    }
}

/* Eigenvalue of G + damping I, from an eigenvalue of the Gram G that rounding may have left
   below zero. */
static inline double la_damped(floatM value, double damping) {
    return ((double)value < 0 ? 0 : (double)value) + damping;
}

/* Sum of n damped eigenvalues. *zero is the size up to which an eigenvalue counts as zero: what
   rounding leaves of a singular Gram. With damping no eigenvalue is that small, and *zero is 0. */
static inline double la_damped_trace(const floatM *values, int n, double damping, double *zero) {
    double largest = 0, sum = 0;
    for (int k = 0; k < n; k++) {
        double w = la_damped(values[k], damping);
        largest = w > largest ? w : largest;
        sum += w;
    }
    *zero = damping > 0 ? 0 : n * (sizeof(floatM) == 8 ? 2.3e-16 : 1.2e-7) * largest;
    return sum;
}

static inline void la_gauge(Mat S, Mat L, Mat R, const floatM *values_a, const floatM *values_b,
                            double damping, int form) {
    if (!S.p || !L.p || !R.p || !values_a || !values_b) return;
    int n = S.rows;
#pragma omp parallel for
    for (int i = 0; i < mat_count(S); i++) {
        const floatM *a = values_a + (size_t)i * n, *b = values_b + (size_t)i * n;
        double zero_a, zero_b, alpha = 1, beta = 1;
        double trace_a = la_damped_trace(a, n, damping, &zero_a);
        double trace_b = la_damped_trace(b, n, damping, &zero_b);
        if (form == LA_GAUGE_RELATIVE) {
            alpha = trace_a == 0 ? 0 : 1 / trace_a;
            beta = trace_b == 0 ? 0 : 1 / trace_b;
        }
        for (int r = 0; r < n; r++)
            for (int c = 0; c < n; c++) {
                double l = (double)la_row(L, i, r)[c], m = (double)la_row(R, i, r)[c], x;
                double ar = la_damped(a[r], damping), bc = la_damped(b[c], damping);
                double sum = alpha * ar + beta * bc;
                if (form == LA_GAUGE_PARTNER)
                    x = 0.5 * ((ar <= zero_a ? 0 : l / ar) - (bc <= zero_b ? 0 : m / bc));
                else x = sum <= alpha * zero_a + beta * zero_b ? 0 : (alpha * l - beta * m) / sum;
                la_row(S, i, r)[c] = (floatM)x;
            }
    }
}

static inline void la_vec_gauge(floatM *x, const floatM *l, const floatM *r, const floatM *norm_a,
                                const floatM *norm_b, int n, double damping, int form) {
    if (!x || !l || !r || !norm_a || !norm_b) return;
    for (int i = 0; i < n; i++) {
        double a = (double)norm_a[i] * (double)norm_a[i] + damping;
        double b = (double)norm_b[i] * (double)norm_b[i] + damping;
        double p = (double)l[i], q = (double)r[i], sum = a + b;
        if (form == LA_GAUGE_PLAIN) x[i] = (floatM)(sum == 0 ? 0 : (p - q) / sum);
        else x[i] = (floatM)(0.5 * ((a == 0 ? 0 : p / a) - (b == 0 ? 0 : q / b)));
    }
}

static inline void la_vec_moment(floatM *v, const floatM *s, int n, double beta, double a) {
    if (!v || !s) return;
    for (int i = 0; i < n; i++)
        v[i] = (floatM)(beta * (double)v[i] + (1 - beta) * a * (double)s[i] * (double)s[i]);
}

static inline void la_vec_root_recip(floatM *s, const floatM *v, int n, double eps) {
    if (!s || !v) return;
    for (int i = 0; i < n; i++) s[i] = (floatM)(1 / (sqrt((double)v[i]) + eps));
}

static inline void la_vec_balance(floatM *s, const floatM *t, int n, double target, double power) {
    if (!s || !t) return;
    for (int i = 0; i < n; i++) {
        double square = (double)t[i] * (double)t[i];
        double ratio = target / (square < LA_BALANCE_FLOOR ? LA_BALANCE_FLOOR : square);
        s[i] = la_quotient((double)s[i] * (double)la_quotient(pow(ratio, power), 1), 1);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Operations for the factors of a product                                                        */

static inline void la_vec_ratio_power(floatM *s, const floatM *t, int n, double power) {
    if (!s || !t) return;
    for (int i = 0; i < n; i++) {
        double x = (double)s[i], y = (double)t[i];
        s[i] = x == 0 || y == 0 ? 1 : la_quotient(pow(x / y, power), 1);
    }
}

static inline void la_vec_cold(floatM *s, const floatM *t, int n, double a, double c) {
    if (!s || !t) return;
    for (int i = 0; i < n; i++) {
        double x = a * (double)t[i] * (double)t[i], y = a * (double)s[i] * (double)s[i];
        double floor = x == 0 ? 0 : c / x < x ? c / x : x;
        s[i] = (floatM)(floor > y ? floor - y : 0);
    }
}

static inline void la_vec_escape(floatM *s, const floatM *v, const floatM *w, int n, int k,
                                 double keep) {
    if (!s || !v || !w) return;
    for (int i = 0; i < n; i++) {
        double sum = 0, before = (double)v[(size_t)i * k], after = (double)w[(size_t)i * k];
        for (int j = 0; j < k; j++) {
            double x = (double)v[(size_t)i * k + j], y = (double)w[(size_t)i * k + j];
            sum += x - y;
            before = x > before ? x : before;
            after = y > after ? y : after;
        }
        double drop = before - after < sum ? before - after : sum;
        s[i] = (floatM)(keep * ((double)s[i] + (drop > 0 ? drop : 0)));
    }
}

/* R of item i of G, in the upper triangle of a (n,n); a row of zeros where the pivot is none.
   Returns 0 if G is not finite. */
static inline int la_cholesky(double *a, Mat G, int i) {
    int n = G.rows, finite = 1;
    for (int r = 0; r < n; r++)
        for (int c = r; c < n; c++) {
            a[r * n + c] = (double)la_row(G, i, r)[c];
            finite &= isfinite(a[r * n + c]) != 0;
        }
    for (int j = 0; j < n && finite; j++) {
        double *row = a + (size_t)j * n, pivot = row[j];
        int none = !(pivot > LA_GRAM_ROUNDING(n) * (double)la_row(G, i, j)[j]);
        double scale = none ? 0 : 1 / sqrt(pivot);
        for (int c = j; c < n; c++) row[c] *= scale;
        for (int r = j + 1; r < n; r++)
            for (int c = r; c < n; c++) a[(size_t)r * n + c] -= row[r] * row[c];
    }
    return finite;
}

/* X of item i from R. Element (r, c) of X below the diagonal of R, at (c, r). */
static inline void la_triangle_inverse(Mat X, double *a, int i) {
    int n = X.rows;
    for (int c = 0; c < n; c++) {
        double own = a[c * n + c] > 0 ? 1 / a[c * n + c] : 0, *column = a + (size_t)c * n;
        for (int r = c - 1; r >= 0; r--) {
            double pivot = a[r * n + r], sum = a[r * n + c] * own;
            for (int k = r + 1; k < c; k++) sum += a[r * n + k] * column[k];
            column[r] = pivot > 0 ? -sum / pivot : 0;
            la_row(X, i, r)[c] = (floatM)column[r];
            la_row(X, i, c)[r] = 0;
        }
        la_row(X, i, c)[c] = (floatM)own;
    }
}

static inline void la_chol_inverse(Mat X, Mat G, floatM *scratch) {
    if (!X.p || !G.p || !scratch) return;
    int n = G.rows;
#pragma omp parallel for
    for (int i = 0; i < mat_count(G); i++) {
        double *a = (double *)(void *)(scratch + (size_t)i * la_eigh_scratch(n));
        if (la_cholesky(a, G, i)) la_triangle_inverse(X, a, i);
        else
            for (int e = 0; e < n * n; e++) la_row(X, i, e / n)[e % n] = (floatM)NAN;
    }
}

#endif
