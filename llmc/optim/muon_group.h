/*
Group Muon (arXiv 2605.08933): Muon with one sign over every `head_group` consecutive heads. With 1
each head has a sign (muon-head); with all heads, or 0, the whole matrix has one (muon).
*/
#ifndef CM_MUON_GROUP_H
#define CM_MUON_GROUP_H

#include "muon.h"

static inline Mat muon_group_direction(const Step *s, const Leg *l, double *scale) {
    Mat U = mat_take(l->W, s->arena);
    size_t mark = s->arena->used;
    Leg group = *l; /* a head of this leg is a group */
    group.heads /= heads_together(s->options, l->heads);
    Mat sign = muon_head_direction(s, &group, scale);
    la_copy(leg_stored_heads(&group, U), sign);
    s->arena->used = mark;
    return U;
}

static inline int muon_group_refuse(const RuleUse *u, char *err) {
    const OptimOptions *o = u->options;
    if (u->heads % heads_together(o, u->heads) == 0 &&
        u->kv_heads % heads_together(o, u->kv_heads) == 0)
        return 0;
    return fail(err,
                "%s muon-group takes --head-group %d heads together, which must divide %d and %d",
                u->flag, o->head_group, u->heads, u->kv_heads);
}

#endif
