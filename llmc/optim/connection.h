/*
Gauge fixing: which of the many steps of two factors that move their product alike is taken.

In math layout M = A B^T. The step (A S, -B S^T) leaves M unchanged to first order for every k x k
matrix S, so from any step one may take away its motion along these vertical directions:

    dA <- dA - A S,   dB <- dB + B S^T,   L = A^T dA,  R = dB^T B,  G_A = A^T A,  G_B = B^T B.

frobenius           G_A S + S G_B = L - R, the horizontal space of the Frobenius metric
scale_aware         S = 1/2 (G_A^-1 L - R G_B^-1), of the metric in which each leg is measured by what it
                    does to the product: equivariant under all of GL(k)
scale_aware_sylv    a G_A S + b S G_B = a L - b R, a = 1 / tr G_A, b = 1 / tr G_B
frobenius_scalar    S = x I, x = tr(L - R) / (tr G_A + tr G_B)
scale_aware_scalar  S = x I, x = 1/2 (tr L / tr G_A - tr R / tr G_B)

With grouped queries G_A and L are sums over the group. Damping is added to the diagonal of the Grams.
*/
#ifndef CM_CONNECTION_H
#define CM_CONNECTION_H

#include "../linalg.h"
#include "options.h"

/* Dense items as the two-level batch (n0, n1). */
static inline Mat mat_batch(Mat dense, int n0, int n1) {
    Mat m = dense;
    m.n0 = n0, m.n1 = n1;
    m.s1 = dense.s0, m.s0 = dense.s0 * (size_t)n1;
    return m;
}

/* Columns [first, first + cols) of every item. */
static inline Mat mat_columns(Mat m, int first, int cols) {
    return mat_t(mat_rows(mat_t(m), first, cols));
}

/* Scratch of gauge_fix for n shared heads of width k. */
static inline size_t gauge_scratch(int n, int k) {
    return (size_t)n * (5 * (size_t)k * k + 2 * (size_t)k + 5 + la_eigh_scratch(k)) + 16 * 12;
}

/* S (L,S) x (k,k) of a matrix connection; blocks are (k,d), the transposes of the math layout. */
static inline Mat gauge_matrix(Mat A, Mat B, Mat DA, Mat DB, int connection, double damping,
                               Arena *arena) {
    int n = mat_count(B), k = B.rows, G = A.n1 / B.n1;
    size_t kk = (size_t)n * k * k;
    Mat m[5];
    for (int i = 0; i < 5; i++)
        m[i] = mat_batch(mat_dense(arena_take(arena, kk), n, k, k), B.n0, B.n1);
    Mat L = m[0], R = m[1], QA = m[2], QB = m[3], T = m[4]; /* L and R are the Grams first */
    floatM *a = arena_take(arena, (size_t)n * k), *b = arena_take(arena, (size_t)n * k);
    for (int g = 0; g < G; g++) la_gram(L, mat_every(A, g, G), g > 0);
    la_gram(R, B, 0);
    size_t mark = arena->used;
    floatM *scratch = arena_take(arena, (size_t)n * la_eigh_scratch(k));
    la_eigh(QA, a, L, scratch);
    la_eigh(QB, b, R, scratch);
    arena->used = mark;
    for (int g = 0; g < G; g++)
        la_gemm(L, 1, mat_every(A, g, G), mat_t(mat_every(DA, g, G)), g > 0);
    la_gemm(R, 1, DB, mat_t(B), 0);
    Mat *side[2] = {&L, &R};
    for (int i = 0; i < 2; i++) {
        la_gemm(T, 1, mat_t(QA), *side[i], 0);
        la_gemm(*side[i], 1, T, QB, 0);
    }
    la_gauge(L, L, R, a, b, damping,
             connection == CONNECTION_FROBENIUS     ? LA_GAUGE_PLAIN
             : connection == CONNECTION_SCALE_AWARE ? LA_GAUGE_PARTNER
                                                    : LA_GAUGE_RELATIVE);
    la_gemm(T, 1, QA, L, 0);
    la_gemm(R, 1, T, mat_t(QB), 0);
    return R;
}

/* Takes from the step (DA, DB) of the weights (A, B) its motion along the gauge orbit. A, DA are views
   (L,H) x (k,d), B, DB (L,S) x (k,d), H a multiple of S. */
static inline void gauge_fix(Mat A, Mat B, Mat DA, Mat DB, int connection, double damping,
                             Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(B), k = B.rows, G = A.n1 / B.n1;
    if (connection == CONNECTION_NONE) return;
    if (connection == CONNECTION_FROBENIUS_SCALAR || connection == CONNECTION_SCALE_AWARE_SCALAR) {
        floatM *s[5];
        for (int i = 0; i < 5; i++) s[i] = arena_take(arena, (size_t)n);
        la_inner(s[1], A, DA, G);
        la_inner(s[2], B, DB, 1);
        la_norms(s[3], A, G);
        la_norms(s[4], B, 1);
        la_vec_gauge(s[0], s[1], s[2], s[3], s[4], n, k * damping,
                     connection == CONNECTION_FROBENIUS_SCALAR ? LA_GAUGE_PLAIN : LA_GAUGE_PARTNER);
        la_add_scaled(DA, -1, s[0], A, G);
        la_add_scaled(DB, 1, s[0], B, 1);
    } else {
        Mat S = gauge_matrix(A, B, DA, DB, connection, damping, arena);
        for (int g = 0; g < G; g++)
            la_gemm(mat_every(DA, g, G), -1, mat_t(S), mat_every(A, g, G), 1);
        la_gemm(DB, 1, S, B, 1);
    }
    arena->used = mark;
}

#endif
