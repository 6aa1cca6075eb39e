/*
QuacK (Anson and Aitchison, arXiv 2511.21377): the learning rate of each head of W_Q and W_K is that
of the base rule times tau ||partner at the start|| / ||partner now||. This bounds the change of the
attention logits, however large the weights become.
*/
#ifndef CM_QUACK_H
#define CM_QUACK_H

#include "leg.h"

/* The state `initial` has, for each leg and shared head, the norm of the partner before the first
   step. A group of query heads counts as one partner and has one norm over all its heads. */
static inline void quack_couple(const Step *s, const Mat U[2]) {
    Mat W[2] = {leg_heads(&s->leg[0], s->leg[0].W), leg_heads(&s->leg[1], s->leg[1].W)};
    size_t mark = s->arena->used;
    int n = mat_count(W[1]), group = W[0].n1 / W[1].n1, heads_of_norm[2] = {group, 1};
    floatM *now = arena_take(s->arena, (size_t)n), *rate = arena_take(s->arena, (size_t)n);
    for (int i = 0; i < 2; i++) {
        const Leg *l = &s->leg[i];
        la_norms(now, W[1 - i], heads_of_norm[1 - i]);
        if (s->coupling_age == 1) la_norms(l->coupled, W[1 - i], heads_of_norm[1 - i]);
        la_copy(mat_vector(rate, n), mat_vector(l->coupled, n));
        la_vec_div(rate, now, n);
        la_vec_mul(rate, n, s->options->quack_tau);
        la_scale(leg_heads(l, U[i]), rate, heads_of_norm[i]);
    }
    s->arena->used = mark;
}

#endif
