/*
Aurora (Tilde Research 2026, arXiv 2606.27715): a matrix sign whose rows have nearly equal norms. The
long side's rows are weighted before the sign, and the weights corrected from the norms that come out:

    d = 1 / ||row of X||;  repeat: U = msign(d X), d <- d (target / ||row of U||^2)^power,

target = cols / rows. Wide matrices are transposed; on square ones it is Muon.
*/
#ifndef CM_AURORA_H
#define CM_AURORA_H

#include "muon.h"

static inline size_t aurora_scratch(Mat W) {
    size_t rows = (size_t)mat_count(W) * (size_t)max_int(W.rows, W.cols);
    return muon_scratch(W) + mat_size(W) + 2 * rows + 128;
}

static inline void aurora_direction(Mat U, Mat G, Mat M, const OptimOptions *o, int iterations,
                                    double power, double beta, double gscale, Arena *arena) {
    if (U.rows == U.cols) {
        muon_direction(U, G, M, o, beta, gscale, arena);
        return;
    }
    size_t mark = arena->used;
    Mat X = muon_direction_take(U, arena), tall_X = X, tall_U = U;
    if (U.rows < U.cols) tall_X = mat_t(X), tall_U = mat_t(U);
    int rows = mat_count(U) * tall_U.rows;
    floatM *d = arena_take(arena, (size_t)rows), *norm = arena_take(arena, (size_t)rows);
    momentum_step(X, M, G, momentum_of(o, 0, beta), gscale);
    la_row_norms(d, tall_X);
    la_vec_recip(d, rows, 1e-7);
    for (int i = 0; i < iterations; i++) {
        if (i > 0) {
            la_row_norms(norm, tall_U);
            la_vec_balance(d, norm, rows, (double)tall_U.cols / tall_U.rows, power);
        }
        la_scale_rows(tall_U, d, tall_X);
        msign(mat_flat(U), o, arena);
    }
    arena->used = mark;
}

#endif
