/*
AdamW (Loshchilov and Hutter, arXiv 1711.05101): bias-corrected, with decoupled weight decay.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2
    W <- (1 - lr wd) W - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Where sqrt(v) + eps is 0, which eps 0 allows, the element does not move: its gradients were zero, or
all so small that their squares are none of floatM.
*/
#ifndef CM_ADAMW_H
#define CM_ADAMW_H

#include "leg.h"

/* State 0, v, as a view. */
static inline Mat adamw_second_moment(const Leg *l) {
    return mat_dense(l->state[0], l->W.n0, l->W.rows, l->W.cols);
}

/* Writes the layers' copy of W along with W, where there is a copy. That saves a pass over both. */
static inline void adamw_step(const Step *s) {
    const OptimOptions *o = s->options;
    const Leg *l = &s->leg[0];
    double rate = s->lr / (1 - pow(s->beta1, l->age));
    double root = 1 / sqrt(1 - pow(s->beta2, l->age));
    la_adamw(l->W, l->G, l->M, adamw_second_moment(l), s->gscale, s->beta1, s->beta2, rate, root,
             o->adam_eps, 1 - s->lr * s->weight_decay, l->copy);
}

/* The direction of adamw_step, without learning rate and decay. */
static inline Mat adamw_direction(const Step *s, const Leg *l, double *scale) {
    const OptimOptions *o = s->options;
    Mat U = mat_take(l->W, s->arena);
    double rate = 1 / (1 - pow(s->beta1, l->age));
    double root = 1 / sqrt(1 - pow(s->beta2, l->age));
    la_adam(U, l->G, l->M, adamw_second_moment(l), s->gscale, s->beta1, s->beta2, rate, root,
            o->adam_eps);
    *scale = 1;
    return U;
}

#endif
