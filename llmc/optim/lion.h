/*
Lion (Chen et al. 2023, arXiv 2302.06675), element by element:

    W <- (1 - lr wd) W - lr sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g.

The first moment is Lion's only state.
*/
#ifndef CM_LION_H
#define CM_LION_H

#include "leg.h"

static inline Mat lion_direction(const Step *s, const Leg *l, double *scale) {
    const OptimOptions *o = s->options;
    Mat U = mat_take(l->W, s->arena);
    la_copy(U, l->M);
    la_axpby(U, (1 - o->lion_beta1) * s->gscale, l->G, o->lion_beta1);
    la_signum(U);
    la_axpby(l->M, (1 - o->lion_beta2) * s->gscale, l->G, o->lion_beta2);
    *scale = 1;
    return U;
}

#endif
