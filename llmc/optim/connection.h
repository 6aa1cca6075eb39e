/*
Gauge fixing: many steps of two factors move their product alike; a connection chooses one of them.

In math layout M = A B^T. The step (A S, -B S^T) leaves M unchanged to first order for every k x k
matrix S. So the motion along these vertical directions may be taken out of any step:

    dA <- dA - A S,   dB <- dB + B S^T,   L = A^T dA,  R = dB^T B,  G_A = A^T A,  G_B = B^T B.

frobenius           G_A S + S G_B = L - R, the horizontal space of the Frobenius metric
scale_aware         S = 1/2 (G_A^-1 L - R G_B^-1), of the metric in which each leg is measured
                    by what it does to the product: equivariant under all of GL(k)
scale_aware_sylv    a G_A S + b S G_B = a L - b R, a = 1 / tr G_A, b = 1 / tr G_B
frobenius_scalar    S = x I, x = tr(L - R) / (tr G_A + tr G_B)
scale_aware_scalar  S = x I, x = 1/2 (tr L / tr G_A - tr R / tr G_B)

With grouped queries G_A and L are sums over the group. Damping is added to the diagonal of the
Grams.
*/
#ifndef CM_CONNECTION_H
#define CM_CONNECTION_H

#include "leg.h"

/* S (L, shared heads) x (k, k) of a matrix connection; blocks are (k, d), the transposes of the
   math layout. */
static inline Mat gauge_matrix(Mat A, Mat B, Mat DA, Mat DB, int form, double damping,
                               Arena *arena) {
    int n = mat_count(B), k = B.rows, group = A.n1 / B.n1;
    Mat square[5];
    for (int i = 0; i < 5; i++)
        square[i] = mat_batch(mat_dense(arena_take(arena, (size_t)n * k * k), n, k, k), B.n0, B.n1);
    Mat L = square[0], R = square[1]; /* the Grams of A and B first */
    Mat basis_A = square[2], basis_B = square[3], product = square[4];
    floatM *values_A = arena_take(arena, (size_t)n * k),
           *values_B = arena_take(arena, (size_t)n * k);
    for (int g = 0; g < group; g++) la_gram(L, mat_every(A, g, group), g > 0);
    la_gram(R, B, 0);
    size_t mark = arena->used;
    floatM *scratch = arena_take(arena, (size_t)n * la_eigh_scratch(k));
    la_eigh(basis_A, values_A, L, scratch);
    la_eigh(basis_B, values_B, R, scratch);
    arena->used = mark;
    for (int g = 0; g < group; g++)
        la_gemm(L, 1, mat_every(A, g, group), mat_t(mat_every(DA, g, group)), g > 0);
    la_gemm(R, 1, DB, mat_t(B), 0);
    Mat *side[2] = {&L, &R};
    for (int i = 0; i < 2; i++) {
        la_gemm(product, 1, mat_t(basis_A), *side[i], 0);
        la_gemm(*side[i], 1, product, basis_B, 0);
    }
    la_gauge(L, L, R, values_A, values_B, damping, form);
    la_gemm(product, 1, basis_A, L, 0);
    la_gemm(R, 1, product, mat_t(basis_B), 0);
    return R;
}

/* Takes the motion S = x I out of the step. */
static inline void gauge_fix_scalar(Mat A, Mat B, Mat DA, Mat DB, int form, double damping,
                                    Arena *arena) {
    int n = mat_count(B), k = B.rows, group = A.n1 / B.n1;
    floatM *x = arena_take(arena, (size_t)n);
    floatM *trace_L = arena_take(arena, (size_t)n), *trace_R = arena_take(arena, (size_t)n);
    floatM *norm_A = arena_take(arena, (size_t)n), *norm_B = arena_take(arena, (size_t)n);
    la_inner(trace_L, A, DA, group);
    la_inner(trace_R, B, DB, 1);
    la_norms(norm_A, A, group);
    la_norms(norm_B, B, 1);
    la_vec_gauge(x, trace_L, trace_R, norm_A, norm_B, n, k * damping, form);
    la_add_scaled(DA, -1, x, A, group);
    la_add_scaled(DB, 1, x, B, 1);
}

/* Takes the motion along the matrix S of a connection out of the step. */
static inline void gauge_fix_matrix(Mat A, Mat B, Mat DA, Mat DB, int form, double damping,
                                    Arena *arena) {
    int group = A.n1 / B.n1;
    Mat S = gauge_matrix(A, B, DA, DB, form, damping, arena);
    for (int g = 0; g < group; g++)
        la_gemm(mat_every(DA, g, group), -1, mat_t(S), mat_every(A, g, group), 1);
    la_gemm(DB, 1, S, B, 1);
}

/* Takes from the step (DA, DB) of the weights (A, B) its motion along the gauge orbit. A and DA are
   views (L, heads) x (k, d), B and DB (L, shared heads) x (k, d); the first number of heads is a
   multiple of the second. */
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
