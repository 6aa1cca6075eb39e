/*
MuonH, the Hyperball optimizer (arXiv 2606.16899): Muon on the sphere of the Frobenius norm that a
weight started with. The learning rate is the relative size of a step; there is no weight decay and
no shape factor.
*/
#ifndef CM_MUONH_H
#define CM_MUONH_H

#include "muon.h"

/* State 0, radius: the norm of each matrix before the first step. A weight must not be zero. */
static inline void muonh_step(const Step *s) {
    const Leg *l = &s->leg[0];
    size_t mark = s->arena->used;
    int n = mat_count(l->W);
    floatM *radius = l->state[0];
    Mat U = mat_take(l->W, s->arena);
    floatM *ratio = arena_take(s->arena, (size_t)n), *norm = arena_take(s->arena, (size_t)n);
    momentum_step(U, s, l, momentum_of(s->options, 0, s->momentum));
    msign(mat_flat(U), s->options, s->arena);
    if (l->age == 1) la_norms(radius, l->W, 1);
    la_copy(mat_vector(ratio, n), mat_vector(radius, n));
    la_norms(norm, U, 1);
    la_vec_div(ratio, norm, n);
    la_add_scaled(l->W, -s->lr, ratio, U, 1);
    la_copy(mat_vector(ratio, n), mat_vector(radius, n));
    la_norms(norm, l->W, 1);
    la_vec_div(ratio, norm, n);
    la_scale(l->W, ratio, 1);
    s->arena->used = mark;
}

static inline int muonh_refuse(const RuleUse *u, char *err) {
    if (u->weight_decay > 0)
        return fail(err,
                    "%s muonh keeps the norm of its weights, so %s %g has no meaning for it; set "
                    "%s 0",
                    u->flag, u->decay_flag, u->weight_decay, u->decay_flag);
    if (u->zero)
        return fail(err,
                    "%s muonh keeps the norm that its weights start with, and --init speedrun "
                    "starts %s at zero; use --init gpt2",
                    u->flag, u->zero);
    return 0;
}

#endif
