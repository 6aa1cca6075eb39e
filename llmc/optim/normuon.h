/*
NorMuon (Li et al., arXiv 2510.05491): Muon, each row of whose sign (one output neuron) is divided
by a running RMS. The Frobenius norm of the whole sign stays unchanged. In modded-nanoGPT's records
the columns of wide matrices take the place of rows: normuon-long.
*/
#ifndef CM_NORMUON_H
#define CM_NORMUON_H

#include "muon.h"

#define NORMUON_EPS 1e-10 /* added to the RMS of a row of a sign, whose scale is 1 (the paper's) */

/* Divides the rows of a view of signs, in place. State 0, v: v = beta2 v + (1 - beta2) (mean square
   of the sign's row). */
static inline void normuon_rows(const Step *s, const Leg *l, Mat U) {
    floatM *v = l->state[0];
    size_t mark = s->arena->used;
    int n = mat_count(U), rows = n * U.rows;
    floatM *r = arena_take(s->arena, (size_t)rows);
    floatM *before = arena_take(s->arena, (size_t)n), *after = arena_take(s->arena, (size_t)n);
    la_norms(before, U, 1);
    la_row_norms(r, U);
    la_vec_moment(v, r, rows, s->options->normuon_beta2, 1.0 / U.cols);
    la_vec_root_recip(r, v, rows, NORMUON_EPS);
    la_scale_rows(U, r, U);
    la_norms(after, U, 1);
    la_vec_div(before, after, n);
    la_scale(U, before, 1);
    s->arena->used = mark;
}

static inline Mat normuon_direction(const Step *s, const Leg *l, double *scale) {
    Mat U = muon_direction(s, l, scale);
    normuon_rows(s, l, U);
    return U;
}

static inline Mat normuon_long_direction(const Step *s, const Leg *l, double *scale) {
    Mat U = muon_direction(s, l, scale);
    normuon_rows(s, l, U.rows < U.cols ? mat_t(U) : U);
    return U;
}

#endif
