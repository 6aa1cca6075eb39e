/*
Compositional Muon (Keigwin, Yang, Pai, Zhang, DeWulf, "Towards Compositional Steepest Descent", 2026).

The loss sees W_Q and W_K only through W_Q W_K^T and W_V and W_O only through W_O W_V. Steepest descent
of the composed map under a spectral-norm budget, split evenly between the two factors, whitens each
factor's momentum by the inverse root of its partner's Gram before and after the sign:

    dA_h = C_B,h^-1 msign(C_B,h^-1 U_A,h),  C_B,h = (B_h B_h^T + lambda I)^1/2,  and A <-> B,

per head h with A_h, B_h (k, d) blocks: W_Q and W_K as stored, or the transpose of W_O, and W_V. So one
routine serves both circuits. Weights read are those before the step, for both legs alike.
*/
#ifndef CM_COMPOSITIONAL_H
#define CM_COMPOSITIONAL_H

#include "invroot.h"
#include "momentum.h"
#include "msign.h"

/* One factor of a pair: views (L, heads) x (k, d) of weight, gradient and momentum. */
typedef struct {
    Mat W, G, M;
} Factor;

/* Heads of a projection, and with grouped queries the shared factor has fewer of them: query head h
   belongs to shared head h / group. A is the per-query factor (W_Q, W_O^T), B the shared (W_K, W_V). */
typedef struct {
    Factor A, B;
    int whole_sign_A; /* hybrid: one sign over all heads of A (W_O aggregates the heads) */
} Pair;

/* C^-1 of one factor as its partner needs it: matrices, or scalars in the isotropic form. */
typedef struct {
    Mat matrix;
    floatM *scalar;
} Whitener;

/* Scratch for a chunk of `layers` layers. */
static inline size_t pair_scratch(const Pair *p, int layers) {
    size_t k = (size_t)p->A.W.rows, d = (size_t)p->A.W.cols;
    int H = p->A.W.n1, S = p->B.W.n1, n = layers * H;
    size_t sign = msign_scratch(n, (int)k, (int)d);
    if (p->whole_sign_A) {
        size_t whole = msign_scratch(layers, (int)k * H, (int)d);
        if (whole > sign) sign = whole;
    }
    size_t root = 3 * (size_t)layers * S * (k * k + 32) + invroot_scratch(layers * S, (int)k);
    return root + 2 * (size_t)n * k * d + 4 * (size_t)n + sign + 512;
}

/* C^-1 of the sum over each group of `group` heads of W (n0, heads) x (k, d): one per group. */
static inline Whitener whitener_of(Mat W, int group, const OptimOptions *o, Arena *arena) {
    int n = W.n0 * (W.n1 / group), k = W.rows;
    Whitener w = {mat_dense(NULL, n, k, k), NULL};
    if (o->isotropic) {
        /* (sum over the group of ||W_h||_F^2 / k + lambda)^-1/2 */
        w.scalar = arena_take(arena, (size_t)n);
        la_norms(w.scalar, W, group);
        la_vec_rroot(w.scalar, n, 1.0 / k, o->damping);
        return w;
    }
    w.matrix.p = arena_take(arena, mat_size(w.matrix));
    size_t mark = arena->used;
    Mat gram = mat_dense(arena_take(arena, mat_size(w.matrix)), n, k, k);
    Mat by_layer = gram;
    by_layer.n0 = W.n0, by_layer.n1 = W.n1 / group;
    by_layer.s1 = gram.s0, by_layer.s0 = gram.s0 * (size_t)by_layer.n1;
    for (int g = 0; g < group; g++) la_gram(by_layer, mat_every(W, g, group), g > 0);
    invroot(w.matrix, gram, o->damping, o->inv_root, arena);
    arena->used = mark;
    return w;
}

/* Y = C^-1 X for dense (n, k, d) batches in which `group` consecutive items share a whitener. */
static inline void whiten(Mat Y, const Whitener *w, Mat X, int group) {
    if (w->scalar) {
        la_copy(Y, X);
        la_scale(Y, w->scalar, group);
    } else {
        la_gemm(mat_grouped(Y, group, 0), 1, mat_grouped(w->matrix, group, 1),
                mat_grouped(X, group, 0), 0);
    }
}

/* W <- (1 - lr wd) W - rate delta for one factor, delta from its momentum and its partner's C^-1. */
static inline void factor_update(Factor f, const Whitener *w, int group, int whole_sign,
                                 const OptimOptions *o, Momentum momentum, double gscale, double rate,
                                 double keep, Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(f.W), k = f.W.rows, d = f.W.cols;
    Mat X = mat_dense(arena_take(arena, mat_size(f.W)), n, k, d);
    Mat Y = mat_dense(arena_take(arena, mat_size(f.W)), n, k, d);
    Mat view = X;
    view.n0 = f.W.n0, view.n1 = f.W.n1;
    view.s1 = X.s0, view.s0 = X.s0 * (size_t)f.W.n1;
    momentum_step(view, f.M, f.G, momentum, gscale);
    int pre = o->whitening == WHITEN_BOTH || o->whitening == WHITEN_PRE;
    int post = o->whitening == WHITEN_BOTH || o->whitening == WHITEN_POST;
    if (pre) whiten(Y, w, X, group);
    else la_copy(Y, X);
    msign(whole_sign ? mat_dense(Y.p, f.W.n0, k * f.W.n1, d) : Y, o->msign, arena);
    if (post) whiten(X, w, Y, group);
    else la_copy(X, Y);
    if (o->per_mat_renorm) {
        /* One scalar a leg, all heads of a layer together: ||sign||_F / ||delta||_F. */
        Mat leg = mat_dense(X.p, f.W.n0, k * f.W.n1, d), sign = mat_dense(Y.p, f.W.n0, k * f.W.n1, d);
        floatM *s = arena_take(arena, (size_t)f.W.n0), *t = arena_take(arena, (size_t)f.W.n0);
        la_norms(s, sign, 1);
        la_norms(t, leg, 1);
        la_vec_div(s, t, f.W.n0, 1e-12);
        la_scale(leg, s, 1);
    }
    la_axpby(f.W, -rate, view, keep);
    arena->used = mark;
}

/* One step of all the layers of a pair. Half the budget goes to each leg; mp multiplies the learning
   rate; the shared leg of grouped queries is divided by 1 or by the group's size. */
static inline void pair_update(Pair p, const OptimOptions *o, double beta, double lr,
                               double weight_decay, double gscale, Arena *arena) {
    size_t mark = arena->used;
    int group = p.A.W.n1 / p.B.W.n1;
    Whitener for_A = whitener_of(p.B.W, 1, o, arena), for_B = whitener_of(p.A.W, group, o, arena);
    Momentum m = momentum_of(o, 1, beta);
    double rate = lr * 0.5 * o->mp, keep = 1 - lr * weight_decay;
    factor_update(p.A, &for_A, group, p.whole_sign_A, o, m, gscale, rate, keep, arena);
    double div = o->shared_div == DIV_GROUP ? group : 1;
    factor_update(p.B, &for_B, 1, 0, o, m, gscale, rate / div, keep, arena);
    arena->used = mark;
}

#endif
