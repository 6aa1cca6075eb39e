/*
Compositional Muon (Keigwin, Yang, Pai, Zhang, DeWulf, "Towards Compositional Steepest Descent", 2026).

The loss sees W_Q and W_K only through W_Q W_K^T and W_V and W_O only through W_O W_V. Steepest descent
of the composed map under a spectral-norm budget, split evenly between the two factors, whitens each
factor's momentum by the inverse root of its partner's Gram before and after the sign:

    dA_h = C_B,h^-1 msign(C_B,h^-1 U_A,h),  C_B,h = (B_h B_h^T + lambda I)^1/2,  and A <-> B,

per head h with A_h, B_h (k, d) blocks: W_Q and W_K as stored, or the transpose of W_O, and W_V. So one
routine serves both circuits. Weights read are those before the step, for both legs alike. In order:
momentum, reprojection of it, whitening, sign, whitening, renormalisation, connection, Circuit-Muon.
*/
#ifndef CM_COMPOSITIONAL_H
#define CM_COMPOSITIONAL_H

#include "circuit.h"
#include "connection.h"
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

/* 1 if a leg's step depends on more of the other leg than its weights, so that both directions must
   exist at once. */
static inline int legs_coupled(const OptimOptions *o) {
    return o->method == METHOD_JOINT || o->connection != CONNECTION_NONE ||
           o->momentum_reproject != REPROJECT_OFF || o->circuit;
}

/* Scratch for a chunk of `layers` layers. */
static inline size_t pair_scratch(const Pair *p, int layers, const OptimOptions *o) {
    size_t k = (size_t)p->A.W.rows, d = (size_t)p->A.W.cols;
    int H = p->A.W.n1, S = p->B.W.n1, n = layers * H, joint = o->method == METHOD_JOINT;
    size_t sign = msign_scratch(n, (int)k, (int)d * (joint ? 2 : 1));
    if (p->whole_sign_A) {
        size_t whole = msign_scratch(layers, (int)k * H, (int)d);
        if (whole > sign) sign = whole;
    }
    size_t root = 3 * (size_t)layers * S * (k * k + 32) + invroot_scratch(layers * S, (int)k);
    size_t legs = (joint ? 4 : legs_coupled(o) ? 3 : 2) * (size_t)n * k * d;
    if (legs_coupled(o)) legs += gauge_scratch(layers * S, (int)k) + partner_scratch(layers, S);
    return root + legs + 4 * (size_t)n + sign + 512;
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
    Mat by_layer = mat_batch(gram, W.n0, W.n1 / group);
    for (int g = 0; g < group; g++) la_gram(by_layer, mat_every(W, g, group), g > 0);
    invroot(w.matrix, gram, o->damping, o->inv_root, arena);
    arena->used = mark;
    return w;
}

/* Y = C^-1 X for batches of n items (k,d) of which `group` consecutive ones share a whitener; dense,
   unless group is 1. */
static inline void whiten(Mat Y, const Whitener *w, Mat X, int group) {
    if (w->scalar) {
        la_copy(Y, X);
        la_scale(Y, w->scalar, group);
    } else if (group == 1) {
        la_gemm(Y, 1, w->matrix, X, 0);
    } else {
        la_gemm(mat_grouped(Y, group, 0), 1, mat_grouped(w->matrix, group, 1),
                mat_grouped(X, group, 0), 0);
    }
}

/* One leg of a step: a factor, its partner's C^-1, which `group` of its heads share, and its direction
   X as n items (k,d), the same as (L,heads) x (k,d) in `view`. */
typedef struct {
    Factor f;
    const Whitener *w;
    int group, whole_sign;
    Mat X, view;
} Leg;

/* X (n,k,d) in given memory; items may lie apart, as halves of a stack do. */
static inline void leg_place(Leg *l, Mat X) {
    l->X = X;
    l->view = mat_batch(X, l->f.W.n0, l->f.W.n1);
}

static inline Mat leg_memory(const Leg *l, Arena *arena) {
    return mat_dense(arena_take(arena, mat_size(l->f.W)), mat_count(l->f.W), l->f.W.rows,
                     l->f.W.cols);
}

static inline int whitens_pre(const OptimOptions *o) {
    return o->whitening == WHITEN_BOTH || o->whitening == WHITEN_PRE;
}
static inline int whitens_post(const OptimOptions *o) {
    return o->whitening == WHITEN_BOTH || o->whitening == WHITEN_POST;
}

/* X from the momentum to the direction, with a sign of its own. X is dense. */
static inline void leg_direction(Leg *l, const OptimOptions *o, Arena *arena) {
    size_t mark = arena->used;
    int L = l->f.W.n0, rows = l->f.W.rows * l->f.W.n1, d = l->f.W.cols;
    Mat X = l->X, Y = leg_memory(l, arena);
    if (whitens_pre(o)) whiten(Y, l->w, X, l->group);
    else la_copy(Y, X);
    msign(l->whole_sign ? mat_dense(Y.p, L, rows, d) : Y, o, arena);
    if (whitens_post(o)) whiten(X, l->w, Y, l->group);
    else la_copy(X, Y);
    if (o->per_mat_renorm) {
        /* One scalar a leg, all heads of a layer together: ||sign||_F / ||delta||_F. */
        Mat leg = mat_dense(X.p, L, rows, d), sign = mat_dense(Y.p, L, rows, d);
        floatM *s = arena_take(arena, (size_t)L), *t = arena_take(arena, (size_t)L);
        la_norms(s, sign, 1);
        la_norms(t, leg, 1);
        la_vec_div(s, t, L, 1e-12);
        la_scale(leg, s, 1);
    }
    arena->used = mark;
}

/* The same for both legs with one sign a head, of the (k,2d) stack of the two. */
static inline void joint_direction(Leg *a, Leg *b, const OptimOptions *o, Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(a->f.W), k = a->f.W.rows, d = a->f.W.cols;
    Mat stack = mat_dense(arena_take(arena, 2 * mat_size(a->f.W)), n, k, 2 * d);
    Leg *leg[2] = {a, b};
    Mat half[2];
    for (int i = 0; i < 2; i++) {
        half[i] = mat_columns(stack, i * d, d);
        if (whitens_pre(o)) whiten(half[i], leg[i]->w, leg[i]->X, 1);
        else la_copy(half[i], leg[i]->X);
    }
    msign(stack, o, arena);
    for (int i = 0; i < 2; i++) {
        if (whitens_post(o)) whiten(leg[i]->X, leg[i]->w, half[i], 1);
        else la_copy(leg[i]->X, half[i]);
    }
    arena->used = mark;
}

/* The update sources of both legs, in X, projected as the connection says. A raw gradient at the current
   weights is horizontal by itself; gradients of older weights in the momentum are not. */
static inline void pair_sources(Leg *a, Leg *b, const OptimOptions *o, Momentum m, double gscale,
                                Arena *arena) {
    Leg *leg[2] = {a, b};
    int connection = o->connection == CONNECTION_NONE ? CONNECTION_FROBENIUS : o->connection;
    int write_back = o->momentum_reproject == REPROJECT_WRITE_BACK;
    double damping = o->gauge_damping ? o->damping : 0;
    for (int i = 0; i < 2; i++) {
        Momentum plain = m;
        if (write_back) plain.nesterov = 0;
        momentum_step(leg[i]->view, leg[i]->f.M, leg[i]->f.G, plain, gscale);
    }
    if (o->momentum_reproject == REPROJECT_COPY)
        gauge_fix(a->f.W, b->f.W, a->view, b->view, connection, damping, arena);
    if (!write_back) return;
    gauge_fix(a->f.W, b->f.W, a->f.M, b->f.M, connection, damping, arena);
    for (int i = 0; i < 2; i++) {
        la_copy(leg[i]->view, leg[i]->f.M);
        if (m.nesterov) la_axpby(leg[i]->view, m.gain * gscale, leg[i]->f.G, m.beta);
    }
}

static inline void leg_apply(const Leg *l, double rate, double keep) {
    la_axpby(l->f.W, -rate, l->view, keep);
}

/* One step of all the layers of a pair. Half the budget goes to each leg, or all of it to a joint sign;
   mp multiplies the learning rate; the shared leg of grouped queries is divided by 1 or by the
   group's size. */
static inline void pair_update(Pair p, const OptimOptions *o, double beta, double lr,
                               double weight_decay, double gscale, Arena *arena) {
    size_t mark = arena->used;
    int group = p.A.W.n1 / p.B.W.n1, joint = o->method == METHOD_JOINT;
    Whitener for_A = whitener_of(p.B.W, 1, o, arena), for_B = whitener_of(p.A.W, group, o, arena);
    Momentum m = momentum_of(o, 1, beta);
    double rate = lr * o->mp * (joint ? 1 : 0.5), keep = 1 - lr * weight_decay;
    double rate_B = rate / (o->shared_div == DIV_GROUP ? group : 1);
    Mat none = mat_dense(NULL, 0, 0, 0);
    Leg a = {p.A, &for_A, group, p.whole_sign_A, none, none}, b = {p.B, &for_B, 1, 0, none, none};
    if (!legs_coupled(o)) {
        Leg *leg[2] = {&a, &b};
        for (int i = 0; i < 2; i++) {
            size_t at = arena->used;
            leg_place(leg[i], leg_memory(leg[i], arena));
            momentum_step(leg[i]->view, leg[i]->f.M, leg[i]->f.G, m, gscale);
            leg_direction(leg[i], o, arena);
            leg_apply(leg[i], i ? rate_B : rate, keep);
            arena->used = at;
        }
    } else {
        leg_place(&a, leg_memory(&a, arena));
        leg_place(&b, leg_memory(&b, arena));
        pair_sources(&a, &b, o, m, gscale, arena);
        if (joint) {
            joint_direction(&a, &b, o, arena);
        } else {
            leg_direction(&a, o, arena);
            leg_direction(&b, o, arena);
        }
        gauge_fix(p.A.W, p.B.W, a.view, b.view, o->connection, o->gauge_damping ? o->damping : 0,
                  arena);
        if (o->circuit) circuit_fix(p.A.W, p.B.W, a.view, b.view, o->circuit_damping, arena);
        leg_apply(&a, rate, keep);
        leg_apply(&b, rate_B, keep);
    }
    arena->used = mark;
}

#endif
