/*
LoRA-Muon (Cesista, Crowson, Simal, Biderman, arXiv 2606.12921, algorithm 1), for the factors of a
product W = W_pre + s A B^T:

    dA = -(eta / 2 s) msign(m_A R_B) R_B,  R_B = (B^T B)^-1/2,
    dB = -(eta / 2 s) msign(m_B R_A) R_A,  R_A = (A^T A)^-1/2,
    A <- k A + dA / k,  B <- k B + dB / k,  k = sqrt(1 - eta wd),

from the momenta m of the factors' gradients. Each half of the step of W, s dA B^T and s A dB^T, has
spectral norm eta / 2, whatever the gauge (A R, B R^-T) of the factors. k makes the decay of A B^T,
not of each factor, 1 - eta wd.

It is Compositional Muon's half split, without damping: the same whitening of a momentum by the
partner's Gram before and after its sign. So it is one step of compositional.h by other settings:
the inverse root has the floor of its iteration (pe7 of invroot.h), or, with --inv-root eigh, none,
and a Gram must then be positive definite. --whiten-power, --whitening, --method and the other
options of CM have no part in it; --msign, --momentum and --nesterov do.
*/
#ifndef CM_LORA_MUON_H
#define CM_LORA_MUON_H

#include "compositional.h"

/* The options with those of CM set to what makes CM LoRA-Muon. */
static inline OptimOptions lora_muon_options(const OptimOptions *given) {
    OptimOptions o = *given;
    o.damping_form = DAMPING_ABSOLUTE;
    o.damping = 0;
    o.whiten_power = 1;
    o.whitening = WHITEN_BOTH;
    o.isotropic = o.per_mat_renorm = 0;
    o.inv_root = given->inv_root == ROOT_EIGH ? ROOT_EIGH : ROOT_PE7;
    o.method = METHOD_HALF_SPLIT;
    o.connection = CONNECTION_NONE;
    o.momentum_reproject = REPROJECT_OFF;
    cm_options_of_factors(&o);
    return o;
}

/* The factor by which decay multiplies each of two factors. Where eta wd is 1 or more there is
   none (rule_check_decay tells before a run), and the factors would become NaN. */
static inline double split_decay(const Step *s) { return sqrt(1 - s->lr * s->weight_decay); }

/* Nothing in balanced factors shows which of them began at zero, so the floor would be lost. */
static inline int lora_muon_refuse(const RuleUse *u, char *err) {
    const OptimOptions *o = u->options;
    if (!u->zero || o->lora_rebalance == 0 || o->lora_trust == 0) return 0;
    return fail(err,
                "%s lora-muon: --lora-rebalance makes both factors equally large, so that "
                "--lora-trust cannot tell which one began at zero (%s); leave rebalancing out, or "
                "set --lora-trust 0",
                u->flag, u->zero);
}

static inline void lora_muon_step(const Step *s) {
    size_t mark = s->arena->used;
    OptimOptions o = lora_muon_options(s->options);
    Step own = rebalanced(s);
    own.options = &o;
    double half = product_rate(s) / 2, keep = split_decay(s);
    PairWay way = {.momentum = momentum_of(&o, LIKE_LORA_MUON, s->momentum),
                   .keep = keep,
                   .rate = {half / keep, half / keep}};
    for (int i = 0; i < 2; i++) way.floor[i] = cold_floor(&own, i, half);
    pair_step(&own, &way);
    s->arena->used = mark;
}

#endif
