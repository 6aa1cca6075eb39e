/*
Muon (Jordan et al. 2024): W <- (1 - eta wd) W - eta scale msign(U), where U is the momentum of the
gradient. The sign is taken of a whole matrix or, as muon-head, of each head's block of rows (of
columns in W_O).
*/
#ifndef CM_MUON_H
#define CM_MUON_H

#include "leg.h"
#include "momentum.h"
#include "msign.h"

/* The factor that makes one learning rate fit matrices of all shapes. spectral is that of Jordan et
   al. rms gives an update of RMS 0.2, which is about AdamW's (Moonlight, arXiv 2502.16982). */
static inline double muon_scale(const OptimOptions *o, int rows, int cols) {
    switch ((ScaleKind)o->scale) {
    case SCALE_SPECTRAL: return sqrt(rows > cols ? (double)rows / cols : 1.0);
    case SCALE_RMS: return 0.2 * sqrt((double)max_int(rows, cols));
    case SCALE_NONE: return 1.0;
    }
    return 1.0;
}

/* The sign of the momentum of every item of a leg, without the shape factor. */
static inline Mat muon_sign(const Step *s, const Leg *l) {
    Mat U = mat_take(l->M, s->arena);
    momentum_step(U, s, l, momentum_of(s->options, 0, s->momentum));
    msign(mat_flat(U), s->options, s->arena);
    return U;
}

static inline Mat muon_direction(const Step *s, const Leg *l, double *scale) {
    *scale = muon_scale(s->options, l->W.rows, l->W.cols);
    return muon_sign(s, l);
}

static inline Mat muon_head_direction(const Step *s, const Leg *l, double *scale) {
    Leg heads = leg_viewed(l, leg_stored_heads);
    Mat U = muon_sign(s, &heads);
    *scale = muon_scale(s->options, U.rows, U.cols);
    return U;
}

#endif
