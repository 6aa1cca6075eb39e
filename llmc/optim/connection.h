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

#include "leg.h"

/* S (L,S) x (k,k) of a matrix connection; blocks are (k,d), the transposes of the math layout. */
static inline Mat gauge_matrix(Mat A, Mat B, Mat DA, Mat DB, int form, double damping,
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
    la_gauge(L, L, R, a, b, damping, form);
    la_gemm(T, 1, QA, L, 0);
    la_gemm(R, 1, T, mat_t(QB), 0);
    return R;
}

/* Takes the part along A and B out of the step: S = x I. */
static inline void gauge_fix_scalar(Mat A, Mat B, Mat DA, Mat DB, int form, double damping,
                                    Arena *arena) {
    int n = mat_count(B), k = B.rows, G = A.n1 / B.n1;
    floatM *s[5];
    for (int i = 0; i < 5; i++) s[i] = arena_take(arena, (size_t)n);
    la_inner(s[1], A, DA, G);
    la_inner(s[2], B, DB, 1);
    la_norms(s[3], A, G);
    la_norms(s[4], B, 1);
    la_vec_gauge(s[0], s[1], s[2], s[3], s[4], n, k * damping, form);
    la_add_scaled(DA, -1, s[0], A, G);
    la_add_scaled(DB, 1, s[0], B, 1);
}

static inline void gauge_fix_matrix(Mat A, Mat B, Mat DA, Mat DB, int form, double damping,
                                    Arena *arena) {
    int G = A.n1 / B.n1;
    Mat S = gauge_matrix(A, B, DA, DB, form, damping, arena);
    for (int g = 0; g < G; g++) la_gemm(mat_every(DA, g, G), -1, mat_t(S), mat_every(A, g, G), 1);
    la_gemm(DB, 1, S, B, 1);
}

/* Takes from the step (DA, DB) of the weights (A, B) its motion along the gauge orbit. A, DA are views
   (L,H) x (k,d), B, DB (L,S) x (k,d), H a multiple of S. */
static inline void gauge_fix(Mat A, Mat B, Mat DA, Mat DB, int connection, double damping,
                             Arena *arena) {
    size_t mark = arena->used;
    switch ((Connection)connection) {
    case CONNECTION_NONE: break;
    case CONNECTION_FROBENIUS:
        gauge_fix_matrix(A, B, DA, DB, LA_GAUGE_PLAIN, damping, arena);
        break;
    case CONNECTION_SCALE_AWARE:
        gauge_fix_matrix(A, B, DA, DB, LA_GAUGE_PARTNER, damping, arena);
        break;
    case CONNECTION_SCALE_AWARE_SYLV:
        gauge_fix_matrix(A, B, DA, DB, LA_GAUGE_RELATIVE, damping, arena);
        break;
    case CONNECTION_FROBENIUS_SCALAR:
        gauge_fix_scalar(A, B, DA, DB, LA_GAUGE_PLAIN, damping, arena);
        break;
    case CONNECTION_SCALE_AWARE_SCALAR:
        gauge_fix_scalar(A, B, DA, DB, LA_GAUGE_PARTNER, damping, arena);
        break;
    }
    arena->used = mark;
}

#endif
