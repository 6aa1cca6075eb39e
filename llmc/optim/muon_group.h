/*
Group Muon (arXiv 2605.08933): Muon with one sign over every `head_group` consecutive heads, from a sign for
each head (1, which is muon-head) to one for the whole matrix (all heads, which is muon).
*/
#ifndef CM_MUON_GROUP_H
#define CM_MUON_GROUP_H

#include "muon.h"

static inline Mat muon_group_direction(const Step *s, const Leg *l, double *scale) {
    Mat U = mat_take(l->W, s->arena);
    size_t mark = s->arena->used;
    Leg group = *l; /* whose heads are the groups */
    group.heads /= s->options->head_group;
    Mat sign = muon_head_direction(s, &group, scale);
    la_copy(leg_stored_heads(&group, U), sign);
    s->arena->used = mark;
    return U;
}

static inline int muon_group_refuse(const RuleUse *u, char *err) {
    int g = u->options->head_group;
    if (u->heads % g == 0 && u->kv_heads % g == 0) return 0;
    return fail(err,
                "%s muon-group takes --head-group %d heads together, which must divide %d and %d",
                u->flag, g, u->heads, u->kv_heads);
}

#endif
