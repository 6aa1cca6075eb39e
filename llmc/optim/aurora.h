/*
Aurora (Tilde Research 2026, arXiv 2606.27715): a matrix sign whose rows have nearly equal norms.
The rows along the long side are weighted before the sign, and the weights are corrected by the
norms that result:

    d = 1 / ||row of X||;  repeat: U = msign(d X), d <- d (target / ||row of U||^2)^power,

target = cols / rows. Wide matrices are transposed. On square matrices Aurora is Muon. A row of
zeros keeps d = 0; the paper's d = 1 / max(||row||, 1e-7) would depend on the scale of the gradient.
*/
#ifndef CM_AURORA_H
#define CM_AURORA_H

#include "muon.h"

static inline Mat aurora_direction(const Step *s, const Leg *l, double *scale) {
    const OptimOptions *o = s->options;
    if (l->W.rows == l->W.cols) return muon_direction(s, l, scale);
    *scale = muon_scale(o, l->W.rows, l->W.cols);
    Mat U = mat_take(l->W, s->arena);
    size_t mark = s->arena->used;
    Mat X = mat_take(l->W, s->arena);
    Mat tall_X = U.rows < U.cols ? mat_t(X) : X, tall_U = U.rows < U.cols ? mat_t(U) : U;
    int rows = mat_count(U) * tall_U.rows;
    floatM *d = arena_take(s->arena, (size_t)rows), *norm = arena_take(s->arena, (size_t)rows);
    momentum_step(X, s, l, momentum_of(o, 0, s->momentum));
    la_row_norms(d, tall_X);
    la_vec_recip(d, rows);
    for (int i = 0; i < o->aurora_iterations; i++) {
        if (i > 0) {
            la_row_norms(norm, tall_U);
            la_vec_balance(d, norm, rows, (double)tall_U.cols / tall_U.rows, o->aurora_power);
        }
        la_scale_rows(tall_U, d, tall_X);
        msign(mat_flat(U), o, s->arena);
    }
    s->arena->used = mark;
    return U;
}

static inline int aurora_refuse(const RuleUse *u, char *err) {
    if (u->rows[0] != u->cols[0] || u->rows[1] != u->cols[1]) return 0;
    return fail(err, "%s aurora is muon on square matrices, and %s are %d x %d; use %s muon",
                u->flag, u->matrices, u->rows[0], u->cols[0], u->flag);
}

#endif
