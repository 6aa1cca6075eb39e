/*
Momentum as Muon and Compositional Muon use it: an average or a sum of gradients, one number for
each weight, or a mix of several averages of different ages.
*/
#ifndef CM_MOMENTUM_H
#define CM_MOMENTUM_H

#include "leg.h"

typedef struct {
    double beta, gain; /* m = beta m + gain g */
    int nesterov;
} Momentum;

/* The rules as their authors released them, for the value `released` of the options. */
enum { LIKE_MUON, LIKE_CM, LIKE_LORA_MUON };

/* What the options ask for. Muon was released with an average (EMA) and Nesterov's momentum, and CM
   with a sum and without, by which CM loses what it gains on Muon (docs/comparison.md); LoRA-Muon
   with an average and without. Sum and average differ by a factor, which a matrix sign removes. */
static inline Momentum momentum_of(const OptimOptions *o, int like, double beta) {
    int average = like != LIKE_CM, nesterov = like == LIKE_MUON;
    switch ((MomentumForm)o->momentum_form) {
    case FORM_EMA: average = 1; break;
    case FORM_SUM: average = 0; break;
    case FORM_RELEASED: break;
    }
    switch ((NesterovKind)o->nesterov) {
    case NESTEROV_ON: nesterov = 1; break;
    case NESTEROV_OFF: nesterov = 0; break;
    case NESTEROV_RELEASED: break;
    }
    Momentum m = {beta, average ? 1 - beta : 1, nesterov};
    return m;
}

/* U = the update source from averages of K ages (bi-Maxwell, K-Maxwell: pull requests 340 and 357
   of modded-nanogpt), each of which is updated first:

       M_k <- d_k M_k + (1 - d_k) G,   U = (1 - beta) G + beta sum_k w_k M_k   with Nesterov's step,
                                       U = sum_k w_k M_k                       without.

   Averages that begin with this update begin as copies of M, which is average number 0. */
static inline void momentum_mix(Mat U, const Step *s, const Leg *l, Momentum m) {
    double share = m.nesterov ? m.beta : 1;
    for (int k = 1; k < s->ages; k++)
        if (l->begins >> (k - 1) & 1) la_copy(l->older[k - 1], l->M);
    for (int k = 0; k < s->ages; k++) {
        Mat M = k ? l->older[k - 1] : l->M;
        la_axpby(M, (1 - s->decay[k]) * s->gscale, l->G, s->decay[k]);
        la_axpby(U, share * s->weight[k], M, k > 0);
    }
    if (m.nesterov) la_axpby(U, (1 - m.beta) * s->gscale, l->G, 1);
}

/* M <- beta M + gain G, and U = the update source. */
static inline void momentum_step(Mat U, const Step *s, const Leg *l, Momentum m) {
    if (s->ages) momentum_mix(U, s, l, m);
    else la_momentum(U, l->M, l->G, m.beta, m.gain * s->gscale, m.nesterov);
}

/* Sets the decays and weights of a step at update `step`, which counts from 0. */
static inline void momentum_ages_at(Step *s, const MomentumAges *a, int step) {
    double span = a->until - a->from, way = span > 0 ? (step - a->from) / span : 1;
    way = way < 0 ? 0 : way > 1 ? 1 : way;
    s->ages = step >= a->from ? a->n : 0;
    for (int k = 0; k < s->ages; k++) {
        s->decay[k] = a->decay[k];
        s->weight[k] = (1 - way) * a->first[k] + way * a->last[k];
    }
}

#endif
