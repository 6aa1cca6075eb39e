/*
The operations of linalg.h on the CPU. Many small matrices are spread over threads, one each; few
large ones are worked on by all threads together.
*/
#ifndef CM_CPU_LINALG_H
#define CM_CPU_LINALG_H

#include "../linalg.h"
#include "gemm.h"

#ifdef CM_DOUBLE
#define LA_SQRT sqrt
#else
#define LA_SQRT sqrtf
#endif

/* Elements of scratch that a rule may spread over layers: 32 MB. */
#define LA_SCRATCH_BUDGET ((size_t)8 << 20)

/* Row r of item i as pointer; elements are cs apart. */
static inline floatM *la_row(Mat m, int i, int r) { return mat_item(m, i) + (size_t)r * m.rs; }

/* A view whose rows are contiguous, if m has one: walking memory in order matters more than which
   way round the matrix is named. */
static inline Mat la_upright(Mat m) { return m.cs == 1 ? m : mat_t(m); }

static inline void la_axpby(Mat Y, double a, Mat X, double b) {
    if (Y.cs != 1) Y = mat_t(Y), X = mat_t(X);
    floatM fa = (floatM)a, fb = (floatM)b;
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(Y); i++)
        for (int r = 0; r < Y.rows; r++) {
            floatM *y = la_row(Y, i, r);
            const floatM *x = la_row(X, i, r);
            const size_t cs = X.cs;
            if (b == 0)
                for (int c = 0; c < Y.cols; c++) y[c] = fa * x[c * cs];
            else
                for (int c = 0; c < Y.cols; c++) y[c] = fa * x[c * cs] + fb * y[c];
        }
}

static inline void la_copy(Mat Y, Mat X) { la_axpby(Y, 1, X, 0); }

static inline void la_momentum(Mat U, Mat M, Mat G, double beta, double gain, int nesterov) {
    if (M.cs != 1) U = mat_t(U), M = mat_t(M), G = mat_t(G);
    floatM b = (floatM)beta, k = (floatM)gain;
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(M); i++)
        for (int r = 0; r < M.rows; r++) {
            floatM *u = la_row(U, i, r), *m = la_row(M, i, r);
            const floatM *g = la_row(G, i, r);
            const size_t cs = U.cs;
            for (int c = 0; c < M.cols; c++) {
                floatM kg = k * g[c];
                m[c] = b * m[c] + kg;
                u[c * cs] = nesterov ? kg + b * m[c] : m[c];
            }
        }
}

static inline void la_gemm_item(Mat C, double a, Mat A, Mat B, double b, int i, int serial) {
    int ta = A.cs != 1, tb = B.cs != 1;
    (serial ? gemm_serial : gemm)(ta, tb, C.rows, C.cols, A.cols, (floatM)a, mat_item(A, i),
                                  ta ? A.cs : A.rs, mat_item(B, i), tb ? B.cs : B.rs, (floatM)b,
                                  mat_item(C, i), C.rs);
}

static inline void la_gemm(Mat C, double a, Mat A, Mat B, double b) {
    if (C.cs != 1) {
        la_gemm(mat_t(C), a, mat_t(B), mat_t(A), b);
        return;
    }
    int n = mat_count(C), threads = thread_count();
    double flops = 2.0 * C.rows * C.cols * A.cols;
    if (n >= threads && flops < 3e7) {
#pragma omp parallel for schedule(static)
        for (int i = 0; i < n; i++) la_gemm_item(C, a, A, B, b, i, 1);
    } else {
        for (int i = 0; i < n; i++) la_gemm_item(C, a, A, B, b, i, 0);
    }
}

static inline void la_gram(Mat G, Mat A, double b) { la_gemm(G, 1, A, mat_t(A), b); }

static inline void la_polynomial(Mat Y, double a, double b, Mat X, double c, Mat Z) {
    floatM fb = (floatM)b, fc = (floatM)c;
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(Y); i++)
        for (int r = 0; r < Y.rows; r++) {
            floatM *y = la_row(Y, i, r);
            const floatM *x = la_row(X, i, r), *z = la_row(Z, i, r);
            for (int j = 0; j < Y.cols; j++) y[j] = fb * x[j] + fc * z[j];
            y[r] += (floatM)a;
        }
}

static inline void la_symmetrize(Mat X) {
#pragma omp parallel for
    for (int i = 0; i < mat_count(X); i++) {
        floatM *x = mat_item(X, i);
        for (int r = 0; r < X.rows; r++)
            for (int c = r + 1; c < X.cols; c++) {
                floatM m = (floatM)0.5 * (x[r * X.rs + c] + x[c * X.rs + r]);
                x[r * X.rs + c] = x[c * X.rs + r] = m;
            }
    }
}

static inline void la_norms(floatM *s, Mat X, int group) {
    X = la_upright(X);
    int n = mat_count(X) / group;
    /* Summed in double, row by row in order, so the result does not depend on the threads. */
#pragma omp parallel for if (mat_size(X) > 4096)
    for (int i = 0; i < n; i++) {
        double total = 0;
        for (int j = i * group; j < (i + 1) * group; j++)
            for (int r = 0; r < X.rows; r++) {
                const floatM *x = la_row(X, j, r);
                double sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int c = 0; c < X.cols; c++) sum += (double)x[c] * (double)x[c];
                total += sum;
            }
        s[i] = (floatM)sqrt(total);
    }
}

/* Sum of squares of n numbers in double, in 256 fixed pieces: the same for any number of threads. */
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

static inline void la_scale(Mat X, const floatM *s, int group) {
    X = la_upright(X);
#pragma omp parallel for collapse(2)
    for (int i = 0; i < mat_count(X); i++)
        for (int r = 0; r < X.rows; r++) {
            floatM *x = la_row(X, i, r), k = s[i / group];
            for (int c = 0; c < X.cols; c++) x[c] *= k;
        }
}

static inline void la_vec_recip(floatM *s, int n, double floor) {
    for (int i = 0; i < n; i++) s[i] = (floatM)(1.0 / ((double)s[i] > floor ? (double)s[i] : floor));
}

static inline void la_vec_rroot(floatM *s, int n, double a, double b) {
    for (int i = 0; i < n; i++) {
        double x = a * (double)s[i] * (double)s[i] + b;
        s[i] = (floatM)(1.0 / sqrt(x > 1e-12 ? x : 1e-12));
    }
}

static inline void la_vec_div(floatM *s, const floatM *t, int n, double floor) {
    for (int i = 0; i < n; i++)
        s[i] = (floatM)((double)s[i] / ((double)t[i] > floor ? (double)t[i] : floor));
}

static inline void la_vec_mul(floatM *s, int n, double a) {
    for (int i = 0; i < n; i++) s[i] *= (floatM)a;
}

static inline void la_vec_sqrt(floatM *s, int n) {
    for (int i = 0; i < n; i++) s[i] = (floatM)sqrt((double)s[i]);
}

/* One element-wise AdamW step of P, see optim/adamw.h for the constants. */
static inline void la_adamw(Mat P, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2,
                            double rate, double root, double eps, double keep) {
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
                p[c] = shrink * p[c] - step * m[c] / (LA_SQRT(v[c]) * correct + e);
            }
        }
}

/* Cyclic Jacobi on a symmetric matrix in double: eigenvalues in w, eigenvectors in the columns of v. */
static inline void la_jacobi(double *a, double *v, double *w, int n) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) v[i * n + j] = i == j;
    for (int sweep = 0; sweep < 60; sweep++) {
        double off = 0, diagonal = 0;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) *(i == j ? &diagonal : &off) += a[i * n + j] * a[i * n + j];
        if (off <= 1e-30 * diagonal || off == 0) break;
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
                    x = v[k * n + p], y = v[k * n + q];
                    v[k * n + p] = c * x - s * y;
                    v[k * n + q] = s * x + c * y;
                }
            }
    }
    for (int i = 0; i < n; i++) w[i] = a[i * n + i];
}

static inline void la_eigh_rroot(Mat R, Mat G, double damping) {
    int n = G.rows;
#pragma omp parallel for
    for (int i = 0; i < mat_count(G); i++) {
        double *a = (double *)malloc((2 * (size_t)n * n + n) * sizeof(double));
        double *v = a + (size_t)n * n, *w = v + (size_t)n * n;
        for (int r = 0; r < n; r++)
            for (int c = 0; c < n; c++)
                a[r * n + c] = 0.5 * ((double)la_row(G, i, r)[c] + (double)la_row(G, i, c)[r]) +
                               (r == c ? damping : 0);
        la_jacobi(a, v, w, n);
        for (int k = 0; k < n; k++) w[k] = 1 / sqrt(w[k] > 1e-12 ? w[k] : 1e-12);
        for (int r = 0; r < n; r++)
            for (int c = 0; c < n; c++) {
                double sum = 0;
                for (int k = 0; k < n; k++) sum += v[r * n + k] * w[k] * v[c * n + k];
                la_row(R, i, r)[c] = (floatM)sum;
            }
        free(a);
    }
}

#endif
