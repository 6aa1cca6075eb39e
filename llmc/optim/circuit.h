/*
Rescaling each head of a finished direction by the size of its partner, without whitening.

Circuit-Muon (modded-nanoGPT record of 23 May 2026): directions of W_V and W_O from any rule are
rescaled by head, each leg keeps its norm, and the radial part of the gauge orbit is removed. On given
directions, Circuit-Muon is the isotropic, post-whitening, renormalised form of Compositional Muon with the
connection frobenius_scalar.
*/
#ifndef CM_CIRCUIT_H
#define CM_CIRCUIT_H

#include "connection.h"

/* Multiplies every head of DA (L,H) x (k,d) and DB (L,S) x (k,d) by (||W||_F^2 / k + damping)^-1/2 of its
   partner's weights, a group of query heads counting as one partner. keep_norm: each leg of a layer keeps its
   Frobenius norm. */
static inline void partner_scale(Mat A, Mat B, Mat DA, Mat DB, double damping, int keep_norm,
                                 Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(B), G = A.n1 / B.n1, layers = A.n0;
    floatM *of_A = arena_take(arena, (size_t)n), *of_B = arena_take(arena, (size_t)n);
    la_norms(of_A, A, G);
    la_norms(of_B, B, 1);
    la_vec_rroot(of_A, n, 1.0 / A.rows, damping);
    la_vec_rroot(of_B, n, 1.0 / B.rows, damping);
    Mat leg[2] = {DA, DB};
    for (int i = 0; i < 2; i++) {
        floatM *before = arena_take(arena, (size_t)layers),
               *after = arena_take(arena, (size_t)layers);
        if (keep_norm) la_norms(before, leg[i], leg[i].n1);
        la_scale(leg[i], i ? of_A : of_B, i ? 1 : G);
        if (!keep_norm) continue;
        la_norms(after, leg[i], leg[i].n1);
        la_vec_div(before, after, layers, 1e-12);
        la_scale(leg[i], before, leg[i].n1);
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
