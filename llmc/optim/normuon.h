/*
NorMuon (Li et al., arXiv 2510.05491): Muon whose rows, one an output neuron, are divided by a running
RMS, at an unchanged Frobenius norm.
*/
#ifndef CM_NORMUON_H
#define CM_NORMUON_H

#include "muon.h"

#define NORMUON_EPS 1e-10 /* added to the RMS of a row */

static inline size_t normuon_scratch(Mat W) {
    return muon_scratch(W) + (size_t)mat_count(W) * W.rows + 2 * (size_t)mat_count(W) + 64;
}

/* v holds one number a row of every item and starts at zero: v = beta2 v + (1 - beta2) mean of o^2. */
static inline void normuon_direction(Mat U, Mat G, Mat M, floatM *v, const OptimOptions *o,
                                     double beta2, double beta, double gscale, Arena *arena) {
    muon_direction(U, G, M, o, beta, gscale, arena);
    size_t mark = arena->used;
    int n = mat_count(U), rows = n * U.rows;
    floatM *r = arena_take(arena, (size_t)rows);
    floatM *s = arena_take(arena, (size_t)n), *t = arena_take(arena, (size_t)n);
    la_norms(s, U, 1);
    la_row_norms(r, U);
    la_vec_moment(v, r, rows, beta2, 1.0 / U.cols);
    la_vec_root_recip(r, v, rows, NORMUON_EPS);
    la_scale_rows(U, r, U);
    la_norms(t, U, 1);
    la_vec_div(s, t, n, 1e-12);
    la_scale(U, s, 1);
    arena->used = mark;
}

#endif
