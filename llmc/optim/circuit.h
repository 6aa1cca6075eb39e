/*
Each head of a finished direction is rescaled by the size of its partner; nothing is whitened.

Circuit-Muon (modded-nanoGPT record of 23 May 2026) rescales the directions of W_V and W_O by head,
lets each leg keep its norm, and removes the radial part of the gauge orbit. The directions may come
from any rule. From directions that are signs it makes the step of Compositional Muon in the
isotropic, post-whitening, renormalised form with the connection frobenius_scalar.
*/
#ifndef CM_CIRCUIT_H
#define CM_CIRCUIT_H

#include "connection.h"

/* Multiplies every head of DA (L, heads) x (k, d) and of DB (L, shared heads) x (k, d) by
   (||W||_F^2 / k + damping)^-1/2 of its partner's weights W; a group of query heads counts as one
   partner. keep_norm: each leg of a layer keeps its Frobenius norm. */
static inline void partner_scale(Mat A, Mat B, Mat DA, Mat DB, double damping, int keep_norm,
                                 Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(B), group = A.n1 / B.n1, layers = A.n0;
    floatM *of_A = arena_take(arena, (size_t)n), *of_B = arena_take(arena, (size_t)n);
    la_norms(of_A, A, group);
    la_norms(of_B, B, 1);
    la_vec_rroot(of_A, n, 1.0 / A.rows, damping, 1);
    la_vec_rroot(of_B, n, 1.0 / B.rows, damping, 1);
    const Mat leg[2] = {DA, DB};
    const floatM *const factor[2] = {of_B, of_A};
    const int heads_of_factor[2] = {group, 1};
    for (int i = 0; i < 2; i++) {
        floatM *norm = arena_take(arena, (size_t)layers);
        floatM *scaled_norm = arena_take(arena, (size_t)layers);
        if (keep_norm) la_norms(norm, leg[i], leg[i].n1);
        la_scale(leg[i], factor[i], heads_of_factor[i]);
        if (!keep_norm) continue;
        la_norms(scaled_norm, leg[i], leg[i].n1);
        la_vec_div(norm, scaled_norm, layers);
        la_scale(leg[i], norm, leg[i].n1);
    }
    arena->used = mark;
}

/* Circuit-Muon on the directions (DA, DB) of (W_O^T, W_V). */
static inline void circuit_fix(Mat A, Mat B, Mat DA, Mat DB, double damping, Arena *arena) {
    partner_scale(A, B, DA, DB, damping, 1, arena);
    gauge_fix(A, B, DA, DB, CONNECTION_FROBENIUS_SCALAR, damping, arena);
}

static inline void circuit_couple(const Step *s, const Mat U[2]) {
    const Leg *a = &s->leg[0], *b = &s->leg[1];
    circuit_fix(leg_heads(a, a->W), leg_heads(b, b->W), leg_heads(a, U[0]), leg_heads(b, U[1]),
                s->options->circuit_damping, s->arena);
}

#endif
