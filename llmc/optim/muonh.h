/*
MuonH, the Hyperball optimizer (arXiv 2606.16899): Muon on the sphere of the Frobenius norm that a
weight started with. The learning rate is the relative size of a step; there is no weight decay and
no shape factor.
*/
#ifndef CM_MUONH_H
#define CM_MUONH_H

#include "muon.h"

static inline size_t muonh_scratch(Mat W) {
    return muon_scratch(W) + 2 * (size_t)mat_count(W) + 64;
}

/* radius: one number an item, set from W if `first`. W must not be zero. */
static inline void muonh_update(Mat W, Mat G, Mat M, floatM *radius, int first,
                                const OptimOptions *o, double beta, double lr, double gscale,
                                Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(W);
    Mat U = muon_direction_take(W, arena);
    floatM *s = arena_take(arena, (size_t)n), *t = arena_take(arena, (size_t)n);
    muon_direction(U, G, M, o, beta, gscale, arena);
    if (first) la_norms(radius, W, 1);
    Mat from = mat_dense(radius, 1, 1, n), to = mat_dense(s, 1, 1, n);
    la_copy(to, from);
    la_norms(t, U, 1);
    la_vec_div(s, t, n, 1e-10);
    la_add_scaled(W, -lr, s, U, 1);
    la_copy(to, from);
    la_norms(t, W, 1);
    la_vec_div(s, t, n, 1e-30);
    la_scale(W, s, 1);
    arena->used = mark;
}

#endif
