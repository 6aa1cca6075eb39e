/*
(G + lambda I)^(-1/2) of small symmetric Gram matrices, the whitener of Compositional Muon.

cans25, cans12: the coupled iteration with Chebyshev-optimised coefficients (CANS, arXiv 2506.10935).
W = G + lambda I, s = 0.999 / ||W||_F, Y = s W, Z = I; then P = Z Y, Y <- a Y + b Y P, Z <- a Z + b P Z,
and the root is sqrt(s) Z. Nine steps are tuned; the rest are (1.5, -0.5), of which those are left out that
would change nothing, because P = I to rounding. eigh: by eigendecomposition.
*/
#ifndef CM_INVROOT_H
#define CM_INVROOT_H

#include "leg.h"

enum { INVROOT_TUNED = 9 }; /* steps with coefficients of their own */
static const double invroot_table[LA_ROOT_STEPS][2] = {
    {5.182503604966906, -5.178098480082684},
    {2.586120737395915, -0.6479542005271643},
    {2.567364126726186, -0.6454968804392178},
    {2.520560084348265, -0.6393528082067044},
    {2.410759275435182, -0.6248683598710716},
    {2.1883348130094173, -0.5952022073798908},
    {1.8595760874873613, -0.5504490972723968},
    {1.589020160467417, -0.5126569802066718},
    {1.5051653981684994, -0.5007377068751799},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
};

/* The coupled iteration on a few items together, of at most `steps` steps; Y (n,k,k) is overwritten. Of
   products that are known to be symmetric half is computed, which also keeps them symmetric. Not of P: its two
   triangles differ by the rounding errors that the next step corrects, and without that feedback the iteration
   diverges. */
static inline void invroot_items(Mat R, Mat Y, double damping, int steps, Arena *arena) {
    int n = mat_count(Y), k = Y.rows;
    Mat P = mat_dense(arena_take(arena, mat_size(Y)), n, k, k), Z = R;
    Mat Y2 = mat_dense(arena_take(arena, mat_size(Y)), n, k, k);
    Mat Z2 = mat_dense(arena_take(arena, mat_size(Y)), n, k, k);
    floatM *s = arena_take(arena, (size_t)n);
    la_polynomial(Y, damping, 1, Y, 0, Y);
    la_norms(s, Y, 1);
    la_vec_recip(s, n, 1e-8);
    la_vec_mul(s, n, 0.999);
    la_scale(Y, s, 1);
    double gap = INFINITY;
    for (int i = 0, last = 0; !last; i++) {
        double a = invroot_table[i][0], b = invroot_table[i][1];
        if (i == 0) { /* Z = I, P = Y */
            la_polynomial(Z, a, b, Y, 0, Y);
            la_axpby(Y2, a, Y, 0);
            la_gemm_symmetric(Y2, b, Y, Y, 1);
            mat_swap(&Y, &Y2);
            continue;
        }
        la_gemm(P, 1, Z, Y, 0);
        last = i == steps - 1;
        if (i >= INVROOT_TUNED && !last) {
            double before = gap;
            gap = la_identity_gap(P) / sqrt((double)k);
            last = LA_ROOT_DONE(gap, before);
        }
        la_axpby(Z2, a, Z, 0);
        la_gemm_symmetric(Z2, b, P, Z,
                          1); /* P Z, not Z P: the order keeps rounding errors bounded */
        mat_swap(&Z, &Z2);
        if (last) break;
        la_axpby(Y2, a, Y, 0);
        la_gemm_symmetric(Y2, b, Y, P, 1);
        mat_swap(&Y, &Y2);
    }
    la_vec_sqrt(s, n);
    la_scale(Z, s, 1);
    if (Z.p != R.p) la_copy(R, Z);
}

/* The iteration on all items, la_chunk at a time. The arena holds as many pieces as work at a time; while it
   measures, as many as there are chunks, so that the size does not depend on the number of threads. */
static inline void invroot_coupled(Mat R, Mat G, double damping, int steps, Arena *arena) {
    int n = mat_count(G), k = G.rows;
    size_t mark = arena->used;
    if (la_root_iteration(R, G, damping, invroot_table, steps, INVROOT_TUNED)) return;
    int chunk = la_chunk(n), chunks = n ? n / chunk : 0;
    int workers = arena->p ? la_workers(chunks, (size_t)k * k) : chunks;
    Arena measure = {NULL, 0, 0};
    Mat shape = mat_dense(NULL, chunk, k, k);
    invroot_items(shape, shape, damping, steps, &measure);
    size_t piece = measure.size;
    floatM *memory = arena_take(arena, (size_t)workers * piece);
    if (!memory) {
        arena->used = mark;
        return;
    }
    if (workers > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
        for (int i = 0; i < chunks; i++) {
            Arena own = arena_piece(memory, piece, thread_index());
            invroot_items(mat_part(R, i * chunk, chunk), mat_part(G, i * chunk, chunk), damping,
                          steps, &own);
        }
    } else { /* a parallel region of one thread would make those within it start threads anew each time */
        for (int i = 0; i < chunks; i++) {
            Arena own = arena_piece(memory, piece, 0);
            invroot_items(mat_part(R, i * chunk, chunk), mat_part(G, i * chunk, chunk), damping,
                          steps, &own);
        }
    }
    arena->used = mark;
}

/* R (n,k,k) = (G + damping I)^(-1/2) of G (n,k,k), by `which` (RootKind). G is overwritten. */
static inline void invroot(Mat R, Mat G, double damping, int which, Arena *arena) {
    size_t mark = arena->used, room = (size_t)mat_count(G) * la_eigh_scratch(G.rows);
    switch ((RootKind)which) {
    case ROOT_CANS25: invroot_coupled(R, G, damping, LA_ROOT_STEPS, arena); break;
    case ROOT_CANS12: invroot_coupled(R, G, damping, 12, arena); break;
    case ROOT_EIGH: la_eigh_rroot(R, G, damping, arena_take(arena, room)); break;
    }
    arena->used = mark;
}

#endif
