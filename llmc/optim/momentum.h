/*
Momentum as Muon and Compositional Muon use it: on the raw gradient, one buffer a weight.
*/
#ifndef CM_MOMENTUM_H
#define CM_MOMENTUM_H

#include "../linalg.h"
#include "options.h"

typedef struct {
    double beta, gain; /* m = beta m + gain g */
    int nesterov;
} Momentum;

/* What `auto` stands for: EMA with Nesterov for Muon, SUM without for CM, as each was released. The
   two forms differ by a factor that a matrix sign removes. */
static inline Momentum momentum_of(const OptimOptions *o, int is_cm, double beta) {
    int ema = o->momentum_form == FORM_AUTO ? !is_cm : o->momentum_form == FORM_EMA;
    int nesterov = o->nesterov == AUTO_AUTO ? !is_cm : o->nesterov == AUTO_ON;
    Momentum m = {beta, ema ? 1 - beta : 1, nesterov};
    return m;
}

/* M <- beta M + gain G; U = the update source. `scale` multiplies G first (gradient clipping). */
static inline void momentum_step(Mat U, Mat M, Mat G, Momentum m, double scale) {
    la_momentum(U, M, G, m.beta, m.gain * scale, m.nesterov);
}

#endif
