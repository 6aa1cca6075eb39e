/*
What the rules for the factors of a product W = W_pre + s A B^T share: the step of W is s times that
of A B^T, so that every rate is divided by s; spectral norms by power iteration; the rebalancing of
the two factors; and a floor for a partner that is still near zero.

Rebalancing (LoRA-Muon, arXiv 2606.12921, algorithm 2): c = (||B|| / ||A||)^(alpha/2),

    A <- c A,  B <- B / c,  m_A <- m_A / c,  m_B <- c m_B,

and the gradients change as the momenta do. A B^T stays as it is. A rule whose step of W does not
depend on the gauge, as that of LoRA-Muon, moves W as without it, up to rounding. Where one of the
norms is zero nothing is done.

The floor. Adapters begin with one factor at zero, and the inverse root of its Gram has no bound:
the second step would move the other factor by its own size. With x_A, x_B, the means of the
diagonals of the Grams, and tau = h / kappa, where h bounds the spectral norm of a half of the step
of A B^T and kappa is --lora-trust,

    delta_B = max(0, min(tau^2 / x_A, x_A) - x_B)

is added to the diagonal of the Gram of B that whitens the step of A; the same for A. Where B is
zero, the step of A then has at most kappa times the size of A, as its norm is at most
h / sqrt(delta_B) = kappa sqrt(x_A), or h / x_A times its size where tau is larger than x_A;
as x_B comes up to the floor, the spread of the singular values of B around their mean takes
over. delta is 0, and the rule exact, once sqrt(x_A x_B) is tau, or
where x_B is at least x_A; so the factor that begins at zero, whose partner is large, moves by the
exact rule from the first step on. delta is continuous and needs no state.
*/
#ifndef CM_FACTORS_H
#define CM_FACTORS_H

#include "leg.h"

/* The learning rate of the step of A B^T. */
static inline double product_rate(const Step *s) {
    return s->product_scale != 0 ? s->lr / s->product_scale : s->lr;
}

/* Adds the numbers d (n) to the diagonals of the dense squares G (n,k,k). NULL: nothing. */
static inline void add_to_diagonals(Mat G, const floatM *d, Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(G), k = G.rows;
    Mat identity = mat_dense(arena_take(arena, (size_t)k * k), 1, k, k);
    Mat first = mat_outer(G, 0, 1);
    la_polynomial(identity, 1, 0, first, 0, first);
    la_add_scaled(G, 1, d, mat_grouped(identity, n, 1), 1);
    arena->used = mark;
}

/* s (n) = estimates from below of the spectral norms of the items of W (n,1) x (rows, cols), by
   `steps` of the power iteration v = X^T u / |.|, u = X v, s = |u|, u / s, where X is W, or W^T if
   that has more rows. u (n, longer side) is where it starts, and becomes the last u. Where it is
   zero it starts from the norms of the rows of X, which do not change when the columns of X are
   rotated. */
static inline void spectral_norms(floatM *s, floatM *u, Mat W, int steps, Arena *arena) {
    size_t mark = arena->used;
    Mat X = W.rows >= W.cols ? W : mat_t(W);
    int n = mat_count(X);
    Mat U = mat_dense(u, n, X.rows, 1), V = mat_dense(NULL, n, X.cols, 1);
    V.p = arena_take(arena, mat_size(V));
    Mat start = mat_dense(arena_take(arena, mat_size(U)), n, X.rows, 1);
    floatM *missing = arena_take(arena, (size_t)n);
    la_norms(missing, U, 1); /* 1, or 0 where nothing is stored */
    la_vec_damping(missing, n, 1, 0, 1);
    la_row_norms(start.p, X);
    la_add_scaled(U, 1, missing, start, 1);
    for (int i = 0; i < steps; i++) {
        la_gemm(V, 1, mat_t(X), U, 0);
        la_norms(s, V, 1);
        la_vec_recip(s, n);
        la_scale(V, s, 1);
        la_gemm(U, 1, X, V, 0);
        la_norms(s, U, 1);
        la_vec_recip(s, n);
        la_scale(U, s, 1);
        la_vec_recip(s, n);
    }
    arena->used = mark;
}

enum { REBALANCE_STEPS = 2 };

/* The norms of a leg, by an iteration that keeps nothing. */
static inline void rebalance_norms(floatM *s, Mat W, Arena *arena) {
    size_t mark = arena->used;
    floatM *u = arena_take(arena, (size_t)mat_count(W) * (size_t)max_int(W.rows, W.cols));
    la_row_norms(u, W.rows >= W.cols ? W : mat_t(W));
    spectral_norms(s, u, W, REBALANCE_STEPS, arena);
    arena->used = mark;
}

/* Rebalances the factors and their momenta, as --lora-rebalance says, and returns the step with
   gradients, scaled copies, that belong to them. The caller gives back the scratch. */
static inline Step rebalanced(const Step *s) {
    Step own = *s;
    double alpha = s->options->lora_rebalance;
    int n = mat_count(s->leg[0].W);
    if (alpha == 0) return own;
    floatM *c[2], *norm[2];
    for (int i = 0; i < 2; i++) {
        c[i] = arena_take(s->arena, (size_t)n);
        norm[i] = arena_take(s->arena, (size_t)n);
        rebalance_norms(norm[i], s->leg[i].W, s->arena);
    }
    for (int i = 0; i < 2; i++) {
        la_copy(mat_vector(c[i], n), mat_vector(norm[1 - i], n));
        la_vec_ratio_power(c[i], norm[i], n, alpha / 2);
    }
    for (int i = 0; i < 2; i++) {
        Leg *l = &own.leg[i];
        Mat G = mat_take(l->G, s->arena);
        la_copy(G, l->G);
        l->G = G;
        la_scale(l->W, c[i], 1);
        la_scale(l->G, c[1 - i], 1);
        la_scale(l->M, c[1 - i], 1);
        for (int k = 1; k < s->ages; k++) la_scale(l->older[k - 1], c[1 - i], 1);
    }
    return own;
}

/* The floor of the Gram that whitens leg i, for each layer: `reach` is h, the largest spectral norm
   of its half of the step of A B^T. NULL: there is none. */
static inline floatM *cold_floor(const Step *s, int i, double reach) {
    double trust = s->options->lora_trust, tau = reach / trust;
    Mat own = s->leg[i].W, partner = s->leg[1 - i].W;
    int n = mat_count(own), rank = i ? own.rows : own.cols;
    if (!s->product_cold || trust == 0) return NULL;
    floatM *floor = arena_take(s->arena, (size_t)n);
    size_t mark = s->arena->used;
    floatM *norm = arena_take(s->arena, (size_t)n);
    la_norms(norm, own, 1);
    la_norms(floor, partner, 1);
    la_vec_cold(floor, norm, n, 1.0 / rank, tau * tau);
    s->arena->used = mark;
    return floor;
}

#endif
