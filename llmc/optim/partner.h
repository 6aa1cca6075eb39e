/*
Partner-rescaled AdamW: AdamW's step of each head times the isotropic whitener of its partner. As a
control it shows how much of Compositional Muon's gain comes from the step size per head, and not
from the sign. The paper ("Towards Compositional Steepest Descent", 2026) has one sentence about it;
the formula is a reconstruction.
*/
#ifndef CM_PARTNER_H
#define CM_PARTNER_H

#include "adamw.h"
#include "circuit.h"

/* With --per-mat-renorm each leg of a layer keeps the norm of its AdamW step. AdamW's learning rate
   then carries over. */
static inline void partner_adamw_step(const Step *s) {
    size_t mark = s->arena->used;
    double scale; /* 1 */
    Mat U[2], W_heads[2], U_heads[2];
    for (int i = 0; i < 2; i++) {
        const Leg *l = &s->leg[i];
        U[i] = adamw_direction(s, l, &scale);
        W_heads[i] = leg_heads(l, l->W);
        U_heads[i] = leg_heads(l, U[i]);
    }
    partner_scale(W_heads[0], W_heads[1], U_heads[0], U_heads[1], s->options->damping,
                  s->options->per_mat_renorm, s->arena);
    for (int i = 0; i < 2; i++) leg_apply(s, &s->leg[i], s->lr, U[i]);
    s->arena->used = mark;
}

#endif
