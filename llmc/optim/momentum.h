/*
Momentum as Muon and Compositional Muon use it: an average or a sum of gradients, one number for
each weight.
*/
#ifndef CM_MOMENTUM_H
#define CM_MOMENTUM_H

#include "leg.h"

typedef struct {
    double beta, gain; /* m = beta m + gain g */
    int nesterov;
} Momentum;

/* What the options ask for. Muon was released with an average (EMA) and Nesterov's momentum, and CM
   with a sum and without, by which CM loses what it gains on Muon (docs/comparison.md). Sum and
   average differ by a factor, which a matrix sign removes. */
static inline Momentum momentum_of(const OptimOptions *o, int is_cm, double beta) {
    int average = !is_cm, nesterov = !is_cm;
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

/* M <- beta M + gain scale G, and U = the update source. `scale` multiplies G (gradient
   clipping). */
static inline void momentum_step(Mat U, Mat M, Mat G, Momentum m, double scale) {
    la_momentum(U, M, G, m.beta, m.gain * scale, m.nesterov);
}

#endif
