/*
Muon (Jordan et al. 2024): W <- (1 - eta wd) W - eta scale msign(U), U the momentum of the gradient.
*/
#ifndef CM_MUON_H
#define CM_MUON_H

#include "momentum.h"
#include "msign.h"

/* The factor that makes one learning rate fit matrices of all shapes. spectral: Jordan et al.; rms:
   update RMS 0.2 as AdamW's (Moonlight, arXiv 2502.16982). */
static inline double muon_scale(int which, int rows, int cols) {
    if (which == SCALE_SPECTRAL) return sqrt(rows > cols ? (double)rows / cols : 1.0);
    return which == SCALE_RMS ? 0.2 * sqrt((double)max_int(rows, cols)) : 1.0;
}

/* Memory for a direction of W: W's items one after the other, as W's two-level batch. */
static inline Mat muon_direction_take(Mat W, Arena *arena) {
    Mat U = mat_dense(arena_take(arena, mat_size(W)), mat_count(W), W.rows, W.cols);
    U.n0 = W.n0, U.n1 = W.n1;
    U.s1 = U.s0, U.s0 = U.s0 * (size_t)W.n1;
    return U;
}

/* The same memory as one level of items. */
static inline Mat mat_flat(Mat U) { return mat_dense(U.p, mat_count(U), U.rows, U.cols); }

static inline size_t muon_scratch(Mat W) {
    int n = mat_count(W);
    return msign_scratch(n, W.rows, W.cols) + mat_size(W) + 64;
}

/* U = msign of the momentum, one sign an item, without the shape factor. U is of muon_direction_take. */
static inline void muon_direction(Mat U, Mat G, Mat M, const OptimOptions *o, double beta,
                                  double gscale, Arena *arena) {
    momentum_step(U, M, G, momentum_of(o, 0, beta), gscale);
    msign(mat_flat(U), o, arena);
}

/* One step of every item of W, with its gradient G and momentum M of the same geometry. Items may be
   whole matrices or heads. gscale multiplies the gradient. */
static inline void muon_update(Mat W, Mat G, Mat M, const OptimOptions *o, double beta, double lr,
                               double weight_decay, double gscale, Arena *arena) {
    size_t mark = arena->used;
    Mat U = muon_direction_take(W, arena);
    muon_direction(U, G, M, o, beta, gscale, arena);
    la_axpby(W, -lr * muon_scale(o->scale, W.rows, W.cols), U, 1 - lr * weight_decay);
    arena->used = mark;
}

#endif
