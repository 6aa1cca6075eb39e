/*
msign(X) = U V^T for the thin SVD X = U S V^T, by odd polynomials of degree five:
A = X X^T, X <- a X + (b A + c A^2) X, started from X / ||X||_F.
*/
#ifndef CM_MSIGN_H
#define CM_MSIGN_H

#include "../linalg.h"
#include "options.h"

typedef struct {
    int steps;
    double abc[12][3];
} MsignTable;

/* pe8: Polar Express (Amsel et al., arXiv 2505.16932) for singular values above 1e-3 of the Frobenius
   norm, as released with Compositional Muon. quintic5: Jordan et al., Muon 2024; it stops in
   [0.68, 1.13], not at 1. quintic5_nv: the five varying steps of NVIDIA's Emerging-Optimizers, which
   stop in [0.978, 1.032]. simple12: 2x - 1.5x^3 + 0.5x^5, which has slope 0 at its fixed point 1. */
static inline const MsignTable *msign_table(int which) {
    static const MsignTable tables[] = {
        {8, {{8.2051, -22.9019, 16.4607}, {4.0664, -2.8612, 0.5184}, {3.9096, -2.8234, 0.5250},
             {3.2856, -2.4153, 0.4853}, {2.2779, -1.6198, 0.3985}, {1.8726, -1.2307, 0.3585},
             {1.8564, -1.2132, 0.3568}, {1.8750, -1.2500, 0.3750}}},
        {5, {{3.4445, -4.7750, 2.0315}, {3.4445, -4.7750, 2.0315}, {3.4445, -4.7750, 2.0315},
             {3.4445, -4.7750, 2.0315}, {3.4445, -4.7750, 2.0315}}},
        {5, {{4.0848, -6.8946, 2.9270}, {3.9505, -6.3029, 2.6377}, {3.7418, -5.5913, 2.3037},
             {2.8769, -3.1427, 1.2046}, {2.8366, -3.0525, 1.2012}}},
        {12, {{2, -1.5, 0.5}, {2, -1.5, 0.5}, {2, -1.5, 0.5}, {2, -1.5, 0.5}, {2, -1.5, 0.5},
              {2, -1.5, 0.5}, {2, -1.5, 0.5}, {2, -1.5, 0.5}, {2, -1.5, 0.5}, {2, -1.5, 0.5},
              {2, -1.5, 0.5}, {2, -1.5, 0.5}}},
    };
    return &tables[which];
}

#define MSIGN_EPS 1e-7 /* floor of the norm that X is divided by: zero in, zero out */

/* Elements of scratch that msign of n matrices (rows, cols) takes. */
static inline size_t msign_scratch(int n, int rows, int cols) {
    size_t m = (size_t)min_int(rows, cols);
    return (size_t)n * (2 * m * m + (size_t)rows * cols) + (size_t)n + 64;
}

/* Replaces each item of the dense batch X by its sign. The products run on the short side whichever
   it is. A non-finite input gives a non-finite output. */
static inline void msign(Mat X, int which, Arena *arena) {
    const MsignTable *table = msign_table(which);
    int n = mat_count(X), m = min_int(X.rows, X.cols);
    size_t mark = arena->used;
    Mat A = mat_dense(arena_take(arena, (size_t)n * m * m), n, m, m);
    Mat P = mat_dense(arena_take(arena, (size_t)n * m * m), n, m, m);
    Mat Y = mat_dense(arena_take(arena, mat_size(X)), n, X.rows, X.cols);
    floatM *s = arena_take(arena, (size_t)n);
    la_norms(s, X, 1);
    la_vec_recip(s, n, MSIGN_EPS);
    la_scale(X, s, 1);
    if (X.rows > X.cols) X = mat_t(X), Y = mat_t(Y);
    Mat out = X;
    for (int i = 0; i < table->steps; i++) {
        const double *k = table->abc[i];
        la_gram(A, X, 0);
        la_gemm(P, 1, A, A, 0);
        la_polynomial(P, k[0], k[1], A, k[2], P);
        la_gemm(Y, 1, P, X, 0);
        Mat swap = X;
        X = Y;
        Y = swap;
    }
    if (X.p != out.p) la_copy(out, X);
    arena->used = mark;
}

#endif
