/*
Partner-rescaled AdamW: each head's AdamW step times its partner's isotropic whitener. It tells how much
of Compositional Muon's gain is the step size per head and not the sign. Published only as a sentence
("Towards Compositional Steepest Descent", 2026); the formula is a reconstruction.
*/
#ifndef CM_PARTNER_H
#define CM_PARTNER_H

#include "adamw.h"
#include "circuit.h"

/* With --per-mat-renorm each leg of a layer keeps the norm of its AdamW step, so that AdamW's learning rate
   carries over. */
static inline void partner_adamw_step(const Step *s) {
    size_t mark = s->arena->used;
    double scale;
    Mat U[2], W[2], D[2];
    for (int i = 0; i < 2; i++) {
        const Leg *l = &s->leg[i];
        U[i] = adamw_direction(s, l, &scale);
        W[i] = leg_heads(l, l->W);
        D[i] = leg_heads(l, U[i]);
    }
    partner_scale(W[0], W[1], D[0], D[1], s->options->damping, s->options->per_mat_renorm,
                  s->arena);
    for (int i = 0; i < 2; i++) leg_apply(s, &s->leg[i], s->lr, U[i]);
    s->arena->used = mark;
}

#endif
