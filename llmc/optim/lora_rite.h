/*
LoRA-RITE (Yen et al., ICLR 2025, arXiv 2410.20625), for the factors of a product
W = W_pre + s A B^T: Adam with a matrix for its second moment, in coordinates that no change of
gauge (A R, B R^-T) moves. For A, with B = U_B R_B, U_B with orthonormal columns; B is symmetric to
it:

    g~ = g_A R_B^-1                              the unmagnified gradient
    P  = U_B,t^T U_B,t-1                         from the last basis to this one
    V <- b2 P V P^T + (1 - b2) g~^T g~ / rows
    M <- b1 M P^T + (1 - b1) g~ (V + rho I)^-1/2
    A <- (1 - eta wd) A - (eta / s) M R_B^-T

with Adam's correction of the bias in the decays, b_t = b (1 - b^(t-1)) / (1 - b^t). With
--rite-escape on, rho <- b2 (rho + d(V, P V P^T)) before V changes, where d, what the change of the
basis loses of V, is the lesser of the drops of the largest eigenvalue and of the trace, or 0; off,
as their code has it, rho is 0. Their code also clips the norm of all g~ together, skips steps of a
large RMS and caps them; these are no part of the rule and not here.

R_B^-1 is that of a Cholesky factor of B^T B, a pseudo-inverse, so where B is zero A does not move;
the floor delta of factors.h is added to B^T B first where a factor began at zero. R_B is then that
of B with sqrt(delta) I below it, and P the product of the two bases of such taller matrices.

V + rho I gets RITE_FLOOR times ||V||_F on its diagonal, since V is singular where g~ has dependent
columns, and is rounded to floatM. Small eigenvalues of V, of about FLT_EPSILON of the largest, are
all rounding; the floor is ten times that. It is relative, so that the step has no scale, and no
more than the norm of V, so that it has no gauge. Their code adds 1e-6 to the roots instead.

The bases are not kept: P = R_B,t^-T (B_t^T U_B,t-1), and the r x r matrix in brackets is formed at
the end of step t - 1, when B_t is known (and delta up to the change of the learning rate).

lora-rite-core is the limit without memory, V = g~^T g~ and M = g~ V^-1/2 (LoRA-Muon, arXiv
2606.12921, proposition 6), with the momentum before it, as in LoRA-Muon:

    dA = -(eta / 2 s) msign(m_A R_B^-1) R_B^-T

and the decay of LoRA-Muon. It is LoRA-Muon by a triangular root in place of the symmetric one.
*/
#ifndef CM_LORA_RITE_H
#define CM_LORA_RITE_H

#include "lora_muon.h"

#define RITE_FLOOR 1e-6

/* R^-1 (L,1) x (r,r) of a factor B (r, d), with its floor. */
static inline Mat rite_triangle(Mat B, const floatM *floor, Arena *arena) {
    int n = mat_count(B), r = B.rows;
    Mat X = mat_dense(arena_take(arena, (size_t)n * r * r), n, r, r);
    size_t mark = arena->used;
    Mat gram = mat_take(X, arena);
    la_gram(gram, B, 0);
    add_to_diagonals(gram, floor, arena);
    la_chol_inverse(X, gram, arena_take(arena, (size_t)n * la_eigh_scratch(r)));
    arena->used = mark;
    return X;
}

static inline void lora_rite_core_step(const Step *s) {
    size_t mark = s->arena->used;
    const Leg leg[2] = {leg_viewed(&s->leg[0], leg_heads), leg_viewed(&s->leg[1], leg_heads)};
    double half = product_rate(s) / 2, keep = split_decay(s);
    Mat X[2];
    for (int i = 0; i < 2; i++)
        X[i] = rite_triangle(leg[1 - i].W, cold_floor(s, i, half), s->arena);
    for (int i = 0; i < 2; i++) {
        size_t at = s->arena->used;
        Mat U = mat_take(leg[i].W, s->arena), Y = mat_take(leg[i].W, s->arena);
        momentum_step(U, s, &leg[i], momentum_of(s->options, LIKE_LORA_MUON, s->momentum));
        la_gemm(Y, 1, mat_t(X[i]), U, 0);
        msign(mat_flat(Y), s->options, s->arena);
        la_gemm(U, 1, X[i], Y, 0);
        la_axpby(leg[i].W, -half / keep, U, keep);
        s->arena->used = at;
    }
    s->arena->used = mark;
}

/* Adam's decay with the correction of the bias in it: 0 in the first update. */
static inline double rite_decay(double beta, int age) {
    return beta * (1 - pow(beta, age - 1)) / (1 - pow(beta, age));
}

/* State k of a leg as squares of its rank. */
static inline Mat rite_square(const Leg *l, int k) {
    return mat_dense(l->state[k], mat_count(l->W), l->W.rows, l->W.rows);
}

/* rho (n) <- b (rho + d(V, moved)). */
static inline void rite_escape(floatM *rho, Mat V, Mat moved, double decay, Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(V), r = V.rows;
    Mat Q = mat_take(V, arena);
    floatM *before = arena_take(arena, (size_t)n * r), *after = arena_take(arena, (size_t)n * r);
    floatM *scratch = arena_take(arena, (size_t)n * la_eigh_scratch(r));
    la_eigh(Q, before, V, scratch);
    la_eigh(Q, after, moved, scratch);
    la_vec_escape(rho, before, after, n, r, decay);
    arena->used = mark;
}

/* V and M of a leg, whose views are factors (r, d), take in the gradient. X is the partner's
   R^-1. */
static inline void rite_moments(const Step *s, const Leg *l, Mat X) {
    Arena *arena = s->arena;
    size_t mark = arena->used;
    int n = mat_count(l->W), r = l->W.rows;
    double b1 = rite_decay(s->beta1, l->age), b2 = rite_decay(s->beta2, l->age);
    Mat V = rite_square(l, 0), P = mat_take(V, arena), T = mat_take(V, arena);
    Mat root = mat_take(V, arena), g = mat_take(l->W, arena), S = mat_take(l->W, arena);
    la_gemm(g, s->gscale, mat_t(X), l->G, 0);
    la_gemm(P, 1, mat_t(X), rite_square(l, 1), 0);
    la_gemm(T, 1, P, V, 0);
    la_gemm(root, 1, T, mat_t(P), 0);
    la_symmetrize(root);
    if (s->options->rite_escape) rite_escape(l->state[2], V, root, b2, arena);
    la_gram(V, g, 0);
    la_axpby(V, b2, root, (1 - b2) / l->W.cols);
    la_copy(T, V);
    floatM *floor = arena_take(arena, (size_t)n);
    la_norms(floor, V, 1);
    la_vec_mul(floor, n, RITE_FLOOR);
    if (s->options->rite_escape) la_axpby(mat_vector(floor, n), 1, mat_vector(l->state[2], n), 1);
    add_to_diagonals(T, floor, arena);
    la_eigh_rroot(root, T, 0, 1, arena_take(arena, (size_t)n * la_eigh_scratch(r)));
    la_gemm(S, 1, root, g, 0);
    la_gemm(g, 1, P, l->M, 0);
    la_axpby(S, b1, g, 1 - b1);
    la_copy(l->M, S);
    arena->used = mark;
}

/* Prepares the next P of leg i: B^T U with the new B and the basis U before, of which Q is the
   transpose; both with their floors. `floor` is overwritten. */
static inline void rite_turn(const Step *s, const Leg leg[2], int i, Mat X, Mat Q, floatM *floor,
                             double reach) {
    size_t mark = s->arena->used;
    int n = mat_count(X);
    Mat turn = rite_square(&leg[i], 1);
    floatM *next = cold_floor(s, i, reach);
    la_gemm(turn, 1, leg[1 - i].W, mat_t(Q), 0);
    la_vec_sqrt(floor, n);
    la_vec_sqrt(next, n);
    la_scale(mat_dense(next, n, 1, 1), floor, 1);
    la_add_scaled(turn, 1, next, X, 1);
    s->arena->used = mark;
}

static inline void lora_rite_step(const Step *s) {
    size_t mark = s->arena->used;
    const Leg leg[2] = {leg_viewed(&s->leg[0], leg_heads), leg_viewed(&s->leg[1], leg_heads)};
    double keep = 1 - s->lr * s->weight_decay;
    double reach[2];
    floatM *floor[2];
    Mat X[2], Q[2];
    for (int i = 0; i < 2; i++) {
        /* The root makes g~ a matrix whose singular values are about the root of its rows. */
        reach[i] = product_rate(s) * sqrt((double)leg[i].W.cols);
        floor[i] = cold_floor(s, i, reach[i]);
        X[i] = rite_triangle(leg[1 - i].W, floor[i], s->arena);
        Q[i] = mat_take(leg[1 - i].W, s->arena); /* the partner's basis */
        la_gemm(Q[i], 1, mat_t(X[i]), leg[1 - i].W, 0);
    }
    for (int i = 0; i < 2; i++) rite_moments(s, &leg[i], X[i]);
    for (int i = 0; i < 2; i++) {
        la_axpby(leg[i].W, 0, leg[i].M, keep);
        la_gemm(leg[i].W, -product_rate(s), X[i], leg[i].M, 1);
    }
    for (int i = 0; i < 2; i++) rite_turn(s, leg, i, X[i], Q[i], floor[i], reach[i]);
    s->arena->used = mark;
}

#endif
