/*
Compositional Muon (Keigwin, Yang, Pai, Zhang, DeWulf, "Towards Compositional Steepest Descent",
2026).

The loss sees W_Q and W_K only through W_Q W_K^T, and W_V and W_O only through W_O W_V. Steepest
descent of the composed map under a spectral-norm budget, which the two factors share evenly,
whitens each factor's momentum by the inverse root of its partner's Gram, before and after the sign:

    dA_h = C_B,h^-1 msign(C_B,h^-1 U_A,h),  C_B,h = (B_h B_h^T + lambda I)^1/2,  and A <-> B,

for each head h, where --whiten-power A replaces C^-1 by C^-A. A_h and B_h are (k, d) blocks: of
W_Q and W_K as stored, or of the transpose of W_O and of W_V. So one routine serves both circuits.
Both legs read the weights as they were before the step. The order is: momentum, reprojection of the
momentum, whitening, sign, whitening, renormalisation, connection, Circuit-Muon. Leg 0 is A, the
factor with the query heads; leg 1 is B, the shared factor.

The factors of a product W = W_pre + s A B^T are such a pair, with one head as wide as the rank. The
step of W is then s times that of A B^T, so the rate is divided by s. LoRA-Muon (lora_muon.h) is the
same step with other settings.
*/
#ifndef CM_COMPOSITIONAL_H
#define CM_COMPOSITIONAL_H

#include "circuit.h"
#include "connection.h"
#include "factors.h"
#include "invroot.h"
#include "momentum.h"
#include "msign.h"

/* Whether whitening comes before the sign. */
static inline int whitens_pre(const OptimOptions *o) {
    if (o->whiten_power == 0) return 0;
    switch ((Whitening)o->whitening) {
    case WHITEN_BOTH:
    case WHITEN_PRE: return 1;
    case WHITEN_POST:
    case WHITEN_NONE: return 0;
    }
    return 0;
}

/* Whether whitening follows the sign. */
static inline int whitens_post(const OptimOptions *o) {
    if (o->whiten_power == 0) return 0;
    switch ((Whitening)o->whitening) {
    case WHITEN_BOTH:
    case WHITEN_POST: return 1;
    case WHITEN_PRE:
    case WHITEN_NONE: return 0;
    }
    return 0;
}

/* C^-A of a leg's partner, for every `group` consecutive heads of the leg: matrices, or scalars in
   the isotropic form. */
typedef struct {
    Mat matrix;
    floatM *scalar;
    int group;
} Whitener;

/* With relative damping, a Gram whose diagonal has a smaller mean than this counts as one of this
   mean: what is missing is added to its diagonal. So a partner that is zero, as W_O is at the start
   of a run, has C = 0.1 I, which is what the released absolute damping of 0.01 gives it. From a
   width of a hundred on, rows of weights with standard deviation 0.02 are longer than 0.1, so the
   mean is above this floor. */
#define DAMPING_MEAN_FLOOR 0.01

/* s (n) = C^-A in the isotropic form: (x + lambda)^(-A/2), where x, the mean of the diagonal of the
   Gram, is ||W_h||_F^2 / k, summed over every `group` consecutive heads. */
static inline void whitener_scalars(floatM *s, Mat W, int group, const OptimOptions *o) {
    int n = mat_count(W) / group;
    double mean = 1.0 / W.rows;
    la_norms(s, W, group);
    switch ((DampingForm)o->damping_form) {
    case DAMPING_ABSOLUTE: la_vec_rroot(s, n, mean, o->damping, o->whiten_power); break;
    case DAMPING_RELATIVE:
        la_vec_damping(s, n, mean, 1 + o->damping, DAMPING_MEAN_FLOOR);
        la_vec_sqrt(s, n);
        la_vec_rroot(s, n, 1, 0, o->whiten_power);
        break;
    }
}

/* Adds relative damping to the diagonals of the dense Grams (n,k,k) of W. */
static inline void damp_relatively(Mat gram, Mat W, int group, double share, Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(gram), k = gram.rows;
    floatM *lambda = arena_take(arena, (size_t)n);
    la_norms(lambda, W, group);
    la_vec_damping(lambda, n, 1.0 / k, share, DAMPING_MEAN_FLOOR);
    add_to_diagonals(gram, lambda, arena);
    arena->used = mark;
}

/* matrix (n,k,k) = C^-A = (Gram + lambda I)^(-A/2) of W, whose Grams are summed over every `group`
   consecutive heads. `floor`, if not NULL, is added to the diagonals too. */
static inline void whitener_matrices(Mat matrix, Mat W, int group, const OptimOptions *o,
                                     const floatM *floor, Arena *arena) {
    size_t mark = arena->used;
    double damping = o->damping;
    Mat gram = mat_take(matrix, arena), by_layer = mat_batch(gram, W.n0, W.n1 / group);
    for (int g = 0; g < group; g++) la_gram(by_layer, mat_every(W, g, group), g > 0);
    switch ((DampingForm)o->damping_form) {
    case DAMPING_ABSOLUTE: break;
    case DAMPING_RELATIVE:
        damp_relatively(gram, W, group, damping, arena);
        damping = 0;
        break;
    }
    add_to_diagonals(gram, floor, arena);
    invroot_power(matrix, gram, damping, o->whiten_power, o->inv_root, arena);
    arena->used = mark;
}

/* The whitener by the partner W (L, heads) x (k, d), whose Grams are summed over every `group`
   consecutive heads. `sharing` heads of the leg share each C^-A. Where nothing is whitened there is
   none. */
static inline Whitener whitener_of(Mat W, int group, int sharing, const OptimOptions *o,
                                   const floatM *floor, Arena *arena) {
    int n = W.n0 * (W.n1 / group), k = W.rows;
    Whitener w = {mat_dense(NULL, n, k, k), NULL, sharing};
    if (!whitens_pre(o) && !whitens_post(o)) return w;
    if (o->isotropic) {
        w.scalar = arena_take(arena, (size_t)n);
        whitener_scalars(w.scalar, W, group, o);
        return w;
    }
    w.matrix.p = arena_take(arena, mat_size(w.matrix));
    whitener_matrices(w.matrix, W, group, o, floor, arena);
    return w;
}

/* Y = C^-A X for batches of n items (k, d). They are dense, unless each item has a whitener of its
   own. */
static inline void whiten(Mat Y, const Whitener *w, Mat X) {
    if (w->scalar) {
        la_copy(Y, X);
        la_scale(Y, w->scalar, w->group);
    } else if (w->group == 1) {
        la_gemm(Y, 1, w->matrix, X, 0);
    } else {
        la_gemm(mat_grouped(Y, w->group, 0), 1, mat_grouped(w->matrix, w->group, 1),
                mat_grouped(X, w->group, 0), 0);
    }
}

/* Gives each layer of U (L, heads) x (k, d), dense, the Frobenius norm of the same layer of
   `sign`. */
static inline void renorm(Mat U, Mat sign, Arena *arena) {
    int layers = U.n0, rows = U.rows * U.n1;
    floatM *norm = arena_take(arena, (size_t)layers), *ratio = arena_take(arena, (size_t)layers);
    Mat whole = mat_dense(U.p, layers, rows, U.cols);
    la_norms(ratio, mat_dense(sign.p, layers, rows, U.cols), 1);
    la_norms(norm, whole, 1);
    la_vec_div(ratio, norm, layers);
    la_scale(whole, ratio, 1);
}

/* Heads of a leg that share a sign. The hybrid form takes one sign over all heads of W_O, because
   W_O adds the heads. */
static inline int heads_of_sign(const Leg *leg, const OptimOptions *o) {
    return leg->by_column && o->hybrid ? leg->heads : heads_together(o, leg->heads);
}

/* Turns U (L, heads) x (k, d), dense, from the momentum of one leg into the direction. The leg has
   signs of its own, one over every `together` consecutive heads of a layer. */
static inline void cm_direction(Mat U, const Whitener *w, int together, const OptimOptions *o,
                                Arena *arena) {
    size_t mark = arena->used;
    Mat X = mat_flat(U), Y = mat_flat(mat_take(U, arena));
    if (whitens_pre(o)) whiten(Y, w, X);
    else la_copy(Y, X);
    msign(mat_dense(Y.p, mat_count(U) / together, U.rows * together, U.cols), o, arena);
    if (whitens_post(o)) whiten(X, w, Y);
    else la_copy(X, Y);
    if (o->per_mat_renorm) renorm(U, Y, arena);
    arena->used = mark;
}

/* Turns both legs' U from the momenta into the directions, by one sign for each head, of the two
   legs side by side. */
static inline void joint_direction(const Mat U[2], const Whitener w[2], const OptimOptions *o,
                                   Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(U[0]), k = U[0].rows, d = U[0].cols, width = d + U[1].cols;
    Mat stack = mat_dense(arena_take(arena, (size_t)n * k * width), n, k, width);
    Mat half[2], X[2];
    for (int i = 0; i < 2; i++) {
        X[i] = mat_flat(U[i]);
        half[i] = mat_columns(stack, i * d, U[i].cols);
        if (whitens_pre(o)) whiten(half[i], &w[i], X[i]);
        else la_copy(half[i], X[i]);
    }
    msign(stack, o, arena);
    for (int i = 0; i < 2; i++) {
        if (whitens_post(o)) whiten(X[i], &w[i], half[i]);
        else la_copy(X[i], half[i]);
    }
    arena->used = mark;
}

/* Sets U to the update sources of both legs, projected as the connection says. A gradient at the
   current weights is horizontal by itself. Gradients at older weights, which the momentum holds,
   are not. */
static inline void pair_sources(const Step *s, const Leg leg[2], const Mat U[2], Momentum m) {
    const OptimOptions *o = s->options;
    int connection = o->connection == CONNECTION_NONE ? CONNECTION_FROBENIUS : o->connection;
    double damping = o->gauge_damping ? o->damping : 0;
    Momentum plain = m;
    if (o->momentum_reproject == REPROJECT_WRITE_BACK) plain.nesterov = 0;
    for (int i = 0; i < 2; i++) momentum_step(U[i], s, &leg[i], plain);
    switch ((Reproject)o->momentum_reproject) {
    case REPROJECT_OFF: break;
    case REPROJECT_COPY:
        gauge_fix(leg[0].W, leg[1].W, U[0], U[1], connection, damping, s->arena);
        break;
    case REPROJECT_WRITE_BACK:
        gauge_fix(leg[0].W, leg[1].W, leg[0].M, leg[1].M, connection, damping, s->arena);
        for (int i = 0; i < 2; i++) {
            la_copy(U[i], leg[i].M);
            if (m.nesterov) la_axpby(U[i], m.gain * s->gscale, leg[i].G, m.beta);
        }
        break;
    }
}

/* Whether Circuit-Muon follows: it is defined for W_O and W_V, and --circuit leaves W_Q and W_K
   alone. */
static inline int circuit_follows(const Step *s) {
    return s->options->circuit && s->leg[0].by_column;
}

/* Whether a leg's step depends on more of the other leg than its weights, so that both directions
   must exist at once. */
static inline int legs_coupled(const Step *s) {
    const OptimOptions *o = s->options;
    return o->method == METHOD_JOINT || o->connection != CONNECTION_NONE ||
           o->momentum_reproject != REPROJECT_OFF || circuit_follows(s);
}

/* Sets U to the directions of two coupled legs, from momentum to Circuit-Muon. */
static inline void coupled_directions(const Step *s, const Leg leg[2], const Mat U[2],
                                      const Whitener w[2], Momentum m) {
    const OptimOptions *o = s->options;
    pair_sources(s, leg, U, m);
    switch ((Method)o->method) {
    case METHOD_HALF_SPLIT:
        for (int i = 0; i < 2; i++)
            cm_direction(U[i], &w[i], heads_of_sign(&leg[i], o), o, s->arena);
        break;
    case METHOD_JOINT: joint_direction(U, w, o, s->arena); break;
    }
    gauge_fix(leg[0].W, leg[1].W, U[0], U[1], o->connection, o->gauge_damping ? o->damping : 0,
              s->arena);
    if (circuit_follows(s))
        circuit_fix(leg[0].W, leg[1].W, U[0], U[1], o->circuit_damping, s->arena);
}

/* Rates of the two legs: mp times half of the budget each, or with a joint sign times all of it.
   With grouped queries the rate of the shared leg is divided by 1 or by the size of a group. */
static inline void cm_rates(const Step *s, int group, double rate[2]) {
    const OptimOptions *o = s->options;
    double budget = 0.5, divisor = 1;
    switch ((Method)o->method) {
    case METHOD_HALF_SPLIT: break;
    case METHOD_JOINT: budget = 1; break;
    }
    switch ((SharedDiv)o->shared_div) {
    case DIV_ONE: break;
    case DIV_GROUP: divisor = group; break;
    }
    rate[0] = product_rate(s) * o->mp * budget;
    rate[1] = rate[0] / divisor;
}

/* What CM and LoRA-Muon do differently, beside the options. */
typedef struct {
    Momentum momentum;
    double keep, rate[2];   /* W <- keep W - rate U */
    const floatM *floor[2]; /* added to the diagonal of the partner's Gram of each leg, or NULL */
} PairWay;

/* One step of a pair by the options of s: both legs read the weights as they were before it. */
static inline void pair_step(const Step *s, const PairWay *way) {
    const OptimOptions *o = s->options;
    size_t mark = s->arena->used;
    const Leg leg[2] = {leg_viewed(&s->leg[0], leg_heads), leg_viewed(&s->leg[1], leg_heads)};
    int group = leg[0].W.n1 / leg[1].W.n1;
    Whitener w[2];
    w[0] = whitener_of(leg[1].W, 1, group, o, way->floor[0], s->arena);
    w[1] = whitener_of(leg[0].W, group, 1, o, way->floor[1], s->arena);
    if (legs_coupled(s)) {
        Mat U[2];
        for (int i = 0; i < 2; i++) U[i] = mat_take(leg[i].W, s->arena);
        coupled_directions(s, leg, U, w, way->momentum);
        for (int i = 0; i < 2; i++) la_axpby(leg[i].W, -way->rate[i], U[i], way->keep);
    } else {
        for (int i = 0; i < 2; i++) {
            size_t at = s->arena->used;
            Mat U = mat_take(leg[i].W, s->arena);
            momentum_step(U, s, &leg[i], way->momentum);
            cm_direction(U, &w[i], heads_of_sign(&leg[i], o), o, s->arena);
            la_axpby(leg[i].W, -way->rate[i], U, way->keep);
            s->arena->used = at;
        }
    }
    s->arena->used = mark;
}

/* Takes the options that have no meaning for the factors of a product, which are one head and no
   circuit of attention, out of o. */
static inline void cm_options_of_factors(OptimOptions *o) {
    o->circuit = o->hybrid = 0;
    o->head_group = 1;
}

static inline void cm_step(const Step *s) {
    OptimOptions o = *s->options;
    size_t mark = s->arena->used;
    Step own = s->product_scale != 0 ? rebalanced(s) : *s;
    if (s->product_scale != 0) cm_options_of_factors(&o);
    own.options = &o;
    PairWay way = {.momentum = momentum_of(&o, LIKE_CM, s->momentum),
                   .keep = 1 - s->lr * s->weight_decay};
    cm_rates(&own, s->leg[0].heads / s->leg[1].heads, way.rate);
    pair_step(&own, &way);
    s->arena->used = mark;
}

static inline int cm_refuse(const RuleUse *u, char *err) {
    char why[ERR_LEN] = "";
    OptimOptions o = *u->options;
    if (u->on != ON_OV) o.circuit = 0; /* a flag of W_O and W_V alone */
    if (u->on == ON_FACTOR) cm_options_of_factors(&o);
    int heads = u->on == ON_FACTOR ? 1 : u->heads, kv_heads = u->on == ON_FACTOR ? 1 : u->kv_heads;
    if (!optim_check(&o, u->on == ON_OV, heads, kv_heads, why)) return 0;
    return fail(err, "%s cm: %s", u->flag, why);
}

#endif
