/*
(G + lambda I)^(-1/2) of small symmetric Gram matrices, the whitener of Compositional Muon.
*/
#ifndef CM_INVROOT_H
#define CM_INVROOT_H

#include "../linalg.h"
#include "options.h"

static inline size_t invroot_scratch(int n, int k) { return (size_t)n * (4 * (size_t)k * k + 1) + 96; }

/* R (n,k,k) = (G + damping I)^(-1/2). G is overwritten.
   cans25, cans12: the coupled iteration with Chebyshev-optimised coefficients (CANS, arXiv 2506.10935),
   W = G + lambda I, s = 0.999 / ||W||_F, Y = s W, Z = I; P = Z Y, Y <- a Y + b Y P, Z <- a Z + b P Z,
   both made symmetric at every step; the root is sqrt(s) Z. Nine tuned steps, then (1.5, -0.5). */
static inline void invroot(Mat R, Mat G, double damping, int which, Arena *arena) {
    static const double tuned[9][2] = {
        {5.182503604966906, -5.178098480082684},   {2.586120737395915, -0.6479542005271643},
        {2.567364126726186, -0.6454968804392178},  {2.520560084348265, -0.6393528082067044},
        {2.410759275435182, -0.6248683598710716},  {2.1883348130094173, -0.5952022073798908},
        {1.8595760874873613, -0.5504490972723968}, {1.589020160467417, -0.5126569802066718},
        {1.5051653981684994, -0.5007377068751799},
    };
    int n = mat_count(G), k = G.rows;
    if (which == ROOT_EIGH) {
        la_eigh_rroot(R, G, damping);
        return;
    }
    size_t mark = arena->used, kk = (size_t)n * k * k;
    Mat Y = G, Z = R;
    Mat P = mat_dense(arena_take(arena, kk), n, k, k);
    Mat Y2 = mat_dense(arena_take(arena, kk), n, k, k);
    Mat Z2 = mat_dense(arena_take(arena, kk), n, k, k);
    floatM *s = arena_take(arena, (size_t)n);
    la_polynomial(Y, damping, 1, G, 0, G);
    la_norms(s, Y, 1);
    la_vec_recip(s, n, 1e-8);
    la_vec_mul(s, n, 0.999);
    la_scale(Y, s, 1);
    la_polynomial(Z, 1, 0, Y, 0, Y);
    int steps = which == ROOT_CANS12 ? 12 : 25;
    for (int i = 0; i < steps; i++) {
        double a = i < 9 ? tuned[i][0] : 1.5, b = i < 9 ? tuned[i][1] : -0.5;
        la_gemm(P, 1, Z, Y, 0);
        la_gemm(Y2, 1, Y, P, 0);
        la_gemm(Z2, 1, P, Z, 0); /* P Z, not Z P: the order keeps rounding errors bounded */
        la_polynomial(Y, 0, a, Y, b, Y2);
        la_polynomial(Z, 0, a, Z, b, Z2);
        la_symmetrize(Y);
        la_symmetrize(Z);
    }
    la_vec_sqrt(s, n);
    la_scale(Z, s, 1);
    arena->used = mark;
}

#endif
