/*
The update plan: which tensor, or which part of one, is updated by which rule, at which learning rate
and weight decay. Built once from the config and the registry; --dry-run prints it; plan_step runs it.
*/
#ifndef CM_PLAN_H
#define CM_PLAN_H

#include "../params.h"
#include "adamw.h"
#include "aurora.h"
#include "compositional.h"
#include "muon.h"
#include "muonh.h"
#include "normuon.h"
#include "partner.h"
#include "quack.h"

typedef enum {
    UPDATE_ADAMW,
    UPDATE_MUON,
    UPDATE_MUON_HEAD,
    UPDATE_CM,
    UPDATE_NORMUON,
    UPDATE_AURORA,
    UPDATE_MUONH,
    UPDATE_ADAMW_PARTNER
} UpdateRule;

/* What is done to the directions of both legs of a circuit before they are applied. */
typedef enum { COUPLE_NOT, COUPLE_CIRCUIT, COUPLE_QUACK } Coupling;

/* Rows [first, first + rows) of every layer of a tensor. heads > 0: they are that many row blocks, or,
   in W_O, column blocks. */
typedef struct {
    TensorId id;
    int first, rows, heads, by_column;
} Part;

typedef struct {
    char name[24]; /* of a circuit "W_Q, W_K" */
    UpdateRule rule;
    Coupling coupling; /* CM does its own */
    Part part,
        partner; /* partner: the shared factor where both are updated together, else no rows */
    double lr, weight_decay;
    size_t v, v_partner; /* state beyond first moments: where second moments of part and partner
                            start, or MuonH's radii */
    size_t norms;        /* and QuacK's initial norms */
} PlanEntry;

/* One named state of the rules beyond first moments, as checkpoints store it: "wqkv.q.v" is state v of
   the query rows of wqkv. dims: layers, then what the rule counts. */
typedef struct {
    char name[64];
    size_t at, size; /* elements in the allocation of the plan's state */
    int64_t dims[3];
    Part part;       /* that the state belongs to */
    int with_moment; /* 1: AdamW's, whose first moment starts anew with the second */
    int since; /* updates done when the state began: 0, or where a resumed run changed rules */
} StateTensor;

enum { PLAN_MAX = 40 };

typedef struct {
    PlanEntry e[PLAN_MAX];
    int n;
    StateTensor state[2 * PLAN_MAX];
    int states;
    size_t v_size;     /* that state of all entries; first moments have a slot of their own */
    size_t arena_size; /* scratch of the largest chunk */
} Plan;

/* What one step needs besides the plan. p, g, m, w are laid out by the registry, v by the plan. */
typedef struct {
    floatM *p, *g, *m, *v;
    Arena *arena;
    double lr_scale, beta, gscale; /* schedule's multiplier; momentum of Muon and CM; factor on g */
    int step;                      /* 1 for the first update */
    floatX *w; /* the layers' copy of p, of which plan_step leaves plan_stale to be
                                      written; NULL where they read p itself */
} PlanState;

static inline const char *update_name(UpdateRule rule) {
    static const char *const names[] = {"adamw",   "muon",   "muon-head", "cm",
                                        "normuon", "aurora", "muonh",     "adamw-partner"};
    return names[rule];
}

/* The view of a part in the allocation `base` of a slot: (layers held,1) x (rows, cols). */
static inline Mat part_slot(const Registry *r, Part part, SlotId slot, floatM *base) {
    const Tensor *t = &r->t[part.id];
    Mat m = {mat_offset(base, t->slot[slot].at),
             t->slot[slot].layers,
             1,
             (size_t)t->rows * t->cols,
             0,
             t->rows,
             t->cols,
             (size_t)t->cols,
             1};
    return mat_rows(m, part.first, part.rows);
}

/* Layers [layer, layer + layers) of a view of a slot. */
static inline Mat slot_outer(const Registry *r, Part part, SlotId slot, Mat m, int layer,
                             int layers) {
    return mat_outer(m, layer - r->t[part.id].slot[slot].first, layers);
}

/* The view of a part among the parameters: (L,1) x (rows, cols). */
static inline Mat part_view(const Registry *r, Part part, floatM *base) {
    return part_slot(r, part, SLOT_PARAM, base);
}

/* The heads of a part among the parameters, (L, heads) x (k, d): W_O is read as its transpose. */
static inline Mat part_heads(const Registry *r, Part part, floatM *base) {
    return leg_heads(part_view(r, part, base), part.heads, part.by_column);
}

static inline PlanEntry *plan_add(Plan *plan, const char *name, UpdateRule rule, Part part,
                                  double lr, double weight_decay) {
    PlanEntry *e = &plan->e[plan->n++];
    memset(e, 0, sizeof *e);
    snprintf(e->name, sizeof e->name, "%s", name);
    e->rule = rule;
    e->part = part;
    e->lr = lr;
    e->weight_decay = weight_decay;
    return e;
}

/* The two tensors of a circuit: together where a rule needs both, else one after the other. */
static inline void plan_add_circuit(Plan *plan, const char *const name[2], UpdateRule rule,
                                    Coupling coupling, Part part, Part partner, double lr,
                                    double wd) {
    char both[24];
    if (rule == UPDATE_CM || rule == UPDATE_ADAMW_PARTNER || coupling != COUPLE_NOT) {
        snprintf(both, sizeof both, "%s, %s", name[0], name[1]);
        PlanEntry *e = plan_add(plan, both, rule, part, lr, wd);
        e->partner = partner;
        e->coupling = coupling;
    } else {
        plan_add(plan, name[0], rule, part, lr, wd);
        plan_add(plan, name[1], rule, partner, lr, wd);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Views and scratch of the entries                                                               */

/* One leg of an entry in the layers of a chunk: weight, gradient and first moment as the rule sees
   them, whole matrices or heads as they are stored; and its further state. */
typedef struct {
    Mat W, G, M;
    floatM *v;
    int heads, by_column;
} PlanLeg;

static inline Mat plan_muon_view(const Registry *r, UpdateRule rule, Part part, SlotId slot,
                                 floatM *base) {
    Mat whole = part_slot(r, part, slot, base);
    if (rule != UPDATE_MUON_HEAD) return whole;
    Mat heads = leg_heads(whole, part.heads, part.by_column);
    return part.by_column ? mat_t(heads) : heads;
}

/* Numbers of state that a rule keeps beside the first moment of W, per layer. */
static inline size_t plan_state(UpdateRule rule, Mat W) {
    if (rule == UPDATE_ADAMW || rule == UPDATE_ADAMW_PARTNER) return (size_t)W.rows * W.cols;
    if (rule == UPDATE_NORMUON) return (size_t)W.rows;
    return rule == UPDATE_MUONH;
}

static inline PlanLeg plan_leg(const Registry *r, const PlanEntry *e, int partner,
                               const PlanState *s, int layer, int layers) {
    Part part = partner ? e->partner : e->part;
    PlanLeg l = {plan_muon_view(r, e->rule, part, SLOT_PARAM, s->p),
                 plan_muon_view(r, e->rule, part, SLOT_GRAD, s->g),
                 plan_muon_view(r, e->rule, part, SLOT_MOMENT, s->m),
                 NULL,
                 part.heads,
                 part.by_column};
    if (s->v)
        l.v = s->v + (partner ? e->v_partner : e->v) +
              (size_t)(layer - r->t[part.id].slot[SLOT_MOMENT].first) * plan_state(e->rule, l.W);
    l.W = slot_outer(r, part, SLOT_PARAM, l.W, layer, layers);
    l.G = slot_outer(r, part, SLOT_GRAD, l.G, layer, layers);
    l.M = slot_outer(r, part, SLOT_MOMENT, l.M, layer, layers);
    return l;
}

/* Blocks (k,d) of a view or of a direction of the leg, in whichever form the rule has it. */
static inline Mat plan_leg_heads(const PlanLeg *l, UpdateRule rule, Mat m) {
    if (rule == UPDATE_MUON_HEAD) return l->by_column ? mat_t(m) : m;
    return leg_heads(m, l->heads, l->by_column);
}

static inline Mat plan_factor_view(const Registry *r, Part part, SlotId slot, floatM *base,
                                   int layer, int layers) {
    Mat heads = leg_heads(part_slot(r, part, slot, base), part.heads, part.by_column);
    return slot_outer(r, part, slot, heads, layer, layers);
}

static inline Factor plan_factor(const Registry *r, Part part, const PlanState *s, int layer,
                                 int layers) {
    Factor f = {plan_factor_view(r, part, SLOT_PARAM, s->p, layer, layers),
                plan_factor_view(r, part, SLOT_GRAD, s->g, layer, layers),
                plan_factor_view(r, part, SLOT_MOMENT, s->m, layer, layers)};
    return f;
}

static inline Pair plan_pair(const Registry *r, const PlanEntry *e, const PlanState *s, int hybrid,
                             int layer, int layers) {
    Pair p = {plan_factor(r, e->part, s, layer, layers),
              plan_factor(r, e->partner, s, layer, layers), hybrid && e->part.by_column};
    return p;
}

static inline AdamLeg plan_adam_leg(const PlanLeg *l) {
    AdamLeg a = {l->W,     l->G,        l->M, mat_dense(l->v, l->W.n0, l->W.rows, l->W.cols),
                 l->heads, l->by_column};
    return a;
}

static inline size_t direction_scratch(UpdateRule rule, Mat W) {
    if (rule == UPDATE_NORMUON) return normuon_scratch(W);
    if (rule == UPDATE_AURORA) return aurora_scratch(W);
    if (rule == UPDATE_MUONH) return muonh_scratch(W);
    return rule == UPDATE_ADAMW ? mat_size(W) + 16 : muon_scratch(W);
}

/* Scratch an entry takes for `layers` layers at a time. */
static inline size_t plan_scratch(const Registry *r, const PlanEntry *e, const OptimOptions *o,
                                  int layers) {
    PlanState none;
    memset(&none, 0, sizeof none);
    PlanLeg a = plan_leg(r, e, 0, &none, 0, layers);
    if (e->rule == UPDATE_ADAMW && !e->partner.rows) return 0;
    if (!e->partner.rows) return direction_scratch(e->rule, a.W);
    PlanLeg b = plan_leg(r, e, 1, &none, 0, layers);
    if (e->rule == UPDATE_CM) {
        Pair p = plan_pair(r, e, &none, o->hybrid, 0, layers);
        return pair_scratch(&p, layers, o);
    }
    if (e->rule == UPDATE_ADAMW_PARTNER) {
        AdamLeg x = plan_adam_leg(&a), y = plan_adam_leg(&b);
        return partner_adamw_scratch(&x, &y);
    }
    return direction_scratch(e->rule, a.W) + direction_scratch(e->rule, b.W) +
           (e->coupling == COUPLE_CIRCUIT ? circuit_scratch(layers, b.heads, b.W.rows / b.heads)
                                          : quack_scratch(layers, b.heads));
}

/* Layers updated together: as many as fit the budget, which keeps a CPU's working set in its cache
   and a GPU's memory small, but at least one. */
static inline int plan_chunk(const Registry *r, const PlanEntry *e, const OptimOptions *o) {
    int layers = r->t[e->part.id].slot[SLOT_MOMENT].layers;
    while (layers > 1 && plan_scratch(r, e, o, layers) > LA_SCRATCH_BUDGET) layers--;
    return layers;
}

/* ---------------------------------------------------------------------------------------------- */
/* Building                                                                                       */

/* The part's name within its tensor: rows of wqkv and of a gated wfc have one, whole tensors none. */
static inline const char *part_name(const Registry *r, Part part) {
    const Tensor *t = &r->t[part.id];
    if (part.id == T_WFC && part.rows < t->rows) return part.first ? ".up" : ".gate";
    if (part.id != T_WQKV) return "";
    return part.first == 0 ? ".q" : part.first + part.rows == t->rows ? ".v" : ".k";
}

/* Gives a part a state of (layers, rows, cols) numbers. */
static inline size_t plan_take(Plan *plan, const Registry *r, Part part, const char *name, int rows,
                               int cols) {
    int layers = r->t[part.id].slot[SLOT_MOMENT].layers;
    size_t at = plan->v_size, n = (size_t)layers * rows * cols;
    if (n) {
        StateTensor t;
        memset(&t, 0, sizeof t);
        t.at = at;
        t.size = n;
        t.dims[0] = layers;
        t.dims[1] = rows;
        t.dims[2] = cols;
        t.part = part;
        snprintf(t.name, sizeof t.name, "%s%s.%s", r->t[part.id].name, part_name(r, part), name);
        plan->state[plan->states++] = t;
    }
    plan->v_size += arena_round(n);
    return at;
}

/* Removes the entries of which every leg is frozen. */
static inline void plan_drop_frozen(Plan *plan, const Registry *r) {
    int kept = 0;
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        int partner_frozen = !e->partner.rows || r->t[e->partner.id].frozen;
        if (r->t[e->part.id].frozen && partner_frozen) continue;
        plan->e[kept++] = *e;
    }
    plan->n = kept;
}

/* Refuses an entry that would update a frozen tensor: -1 and a sentence. */
static inline int plan_check_frozen(const Plan *plan, const Registry *r, char *err) {
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        const Tensor *a = &r->t[e->part.id],
                     *b = &r->t[e->partner.rows ? e->partner.id : e->part.id];
        if (!a->frozen && !b->frozen) continue;
        const Tensor *frozen = a->frozen ? a : b, *other = a->frozen ? b : a;
        return fail(err,
                    "--freeze %s: the rule of %s updates both together; freeze %s too, or choose a "
                    "rule that updates each alone",
                    frozen->name, e->name, other->name);
    }
    return 0;
}

static inline Plan plan_build(const Config *c, const Registry *r) {
    /* In the order of RULE_..., QuacK standing for its base; and of MLP_RULE_... */
    static const UpdateRule quack[] = {UPDATE_MUON, UPDATE_MUON_HEAD, UPDATE_ADAMW};
    static const UpdateRule rules[] = {UPDATE_CM,        UPDATE_CM,      UPDATE_MUON,
                                       UPDATE_MUON_HEAD, UPDATE_NORMUON, UPDATE_AURORA,
                                       UPDATE_MUONH,     UPDATE_ADAMW,   UPDATE_ADAMW_PARTNER};
    static const UpdateRule mlp_rules[] = {UPDATE_MUON,   UPDATE_MUON,  UPDATE_NORMUON,
                                           UPDATE_AURORA, UPDATE_MUONH, UPDATE_ADAMW};
    static const char *const qk_names[2] = {"W_Q", "W_K"}, *const ov_names[2] = {"W_O", "W_V"};
    Plan plan;
    memset(&plan, 0, sizeof plan);
    int A = c->heads * c->head_dim, K = c->kv_heads * c->head_dim, F = c->ff_width;
    double lr = c->lr, wd = c->weight_decay;
    Part q = {T_WQKV, 0, A, c->heads, 0}, k = {T_WQKV, A, K, c->kv_heads, 0};
    Part v = {T_WQKV, A + K, K, c->kv_heads, 0}, o = {T_WO, 0, c->width, c->heads, 1};
    int quacks = c->qk == RULE_QUACK;
    plan_add_circuit(&plan, qk_names, quacks ? quack[c->control.quack_base] : rules[c->qk],
                     quacks ? COUPLE_QUACK : COUPLE_NOT, q, k, lr, wd);
    plan_add_circuit(&plan, ov_names, rules[c->ov],
                     c->optim.circuit && c->ov != RULE_CM ? COUPLE_CIRCUIT : COUPLE_NOT, o, v, lr,
                     wd);
    UpdateRule mlp = mlp_rules[c->mlp];
    Part gate = {T_WFC, 0, F, 0, 0}, up = {T_WFC, F, F, 0, 0}, proj = {T_WPROJ, 0, c->width, 0, 0};
    plan_add(&plan, c->act == ACT_SWIGLU ? "W_gate" : "W_fc", mlp, gate, lr, wd);
    if (c->act == ACT_SWIGLU) plan_add(&plan, "W_up", mlp, up, lr, wd);
    plan_add(&plan, "W_proj", mlp, proj, lr, wd);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        Part all = {(TensorId)id, 0, t->rows, 0, 0};
        if (!t->layers) continue;
        if (t->role == ROLE_EMBED)
            plan_add(&plan, t->name, UPDATE_ADAMW, all, c->lr_embed, c->weight_decay_embed);
        if (t->role == ROLE_HEAD)
            plan_add(&plan, t->name, UPDATE_ADAMW, all, c->lr_head, c->weight_decay_head);
        if (t->role == ROLE_SCALAR)
            plan_add(&plan, t->name, UPDATE_ADAMW, all, c->lr_scalar, c->weight_decay_scalar);
    }
    plan_drop_frozen(&plan, r);
    for (int i = 0; i < plan.n; i++) {
        PlanEntry *e = &plan.e[i];
        for (int leg = 0; leg <= (e->partner.rows > 0); leg++) {
            Part part = leg ? e->partner : e->part;
            Mat W = part_view(r, part, NULL);
            int n = (int)(plan_state(e->rule, W) / (size_t)W.rows);
            size_t at = e->rule == UPDATE_MUONH ? plan_take(&plan, r, part, "radius", 1, 1)
                                                : plan_take(&plan, r, part, "v", W.rows, n);
            int adamw = e->rule == UPDATE_ADAMW || e->rule == UPDATE_ADAMW_PARTNER;
            if (adamw && plan.v_size > at) plan.state[plan.states - 1].with_moment = 1;
            if (leg) e->v_partner = at;
            else e->v = at;
        }
        if (e->coupling == COUPLE_QUACK) {
            /* The initial norms of W_K's heads, then those of W_Q's groups: one region, as ever. */
            e->norms = plan_take(&plan, r, e->partner, "initial", 2, e->partner.heads);
        }
        size_t need = plan_scratch(r, e, &c->optim, plan_chunk(r, e, &c->optim));
        if (need > plan.arena_size) plan.arena_size = need;
    }
    return plan;
}

/* ---------------------------------------------------------------------------------------------- */
/* A step                                                                                         */

/* The direction of one leg, shaped as its W, of every rule that has one; *scale is Muon's shape factor,
   which is still to be multiplied. */
static inline Mat plan_direction(const PlanEntry *e, const PlanLeg *l, const Config *c,
                                 const PlanState *s, const AdamW *adam, double *scale) {
    const OptimOptions *o = &c->optim;
    const ControlOptions *x = &c->control;
    Mat U = muon_direction_take(l->W, s->arena);
    *scale = muon_scale(o->scale, l->W.rows, l->W.cols);
    if (e->rule == UPDATE_NORMUON) {
        normuon_direction(U, l->G, l->M, l->v, o, x->normuon_beta2, s->beta, s->gscale, s->arena);
    } else if (e->rule == UPDATE_AURORA) {
        aurora_direction(U, l->G, l->M, o, x->aurora_iterations, x->aurora_power, s->beta,
                         s->gscale, s->arena);
    } else if (e->rule == UPDATE_ADAMW) {
        adamw_direction(U, l->G, l->M, mat_dense(l->v, U.n0, U.rows, U.cols), adam);
        *scale = 1;
    } else {
        muon_direction(U, l->G, l->M, o, s->beta, s->gscale, s->arena);
    }
    return U;
}

/* Directions of both legs, scaled by the partners' sizes, then applied. */
static inline void plan_coupled_step(const PlanEntry *e, const PlanLeg *a, const PlanLeg *b,
                                     const Config *c, const PlanState *s, const AdamW *adam,
                                     floatM *norms, size_t norms_apart, int first) {
    const PlanLeg *leg[2] = {a, b};
    Mat U[2], W[2], D[2];
    double scale;
    for (int i = 0; i < 2; i++) {
        U[i] = plan_direction(e, leg[i], c, s, adam, &scale);
        if (scale != 1) la_axpby(U[i], scale, U[i], 0);
        W[i] = plan_leg_heads(leg[i], e->rule, leg[i]->W);
        D[i] = plan_leg_heads(leg[i], e->rule, U[i]);
    }
    if (e->coupling == COUPLE_CIRCUIT)
        circuit_fix(W[0], W[1], D[0], D[1], c->optim.circuit_damping, s->arena);
    else
        quack_scale(W[0], W[1], D[0], D[1], norms, norms + norms_apart, first, c->control.quack_tau,
                    s->arena);
    for (int i = 0; i < 2; i++)
        la_axpby(leg[i]->W, -adam->lr, U[i], 1 - adam->lr * adam->weight_decay);
}

/* Updates since the state at element `at` began, with the one that is being made. */
static inline int plan_age(const Plan *plan, size_t at, int step) {
    for (int i = 0; i < plan->states; i++)
        if (plan->state[i].at == at) return step - plan->state[i].since;
    return step;
}

/* Layers [layer, layer + layers) of an entry. */
static inline void plan_entry_step(const Plan *plan, const Registry *r, const PlanEntry *e,
                                   const Config *c, const PlanState *s, int layer, int layers) {
    const OptimOptions *o = &c->optim;
    double lr = e->lr * s->lr_scale;
    size_t mark = s->arena->used;
    AdamW adam = {lr,
                  e->weight_decay,
                  c->adam_beta1,
                  c->adam_beta2,
                  c->adam_eps,
                  s->gscale,
                  plan_age(plan, e->v, s->step)};
    PlanLeg a = plan_leg(r, e, 0, s, layer, layers);
    if (e->rule == UPDATE_CM) {
        pair_update(plan_pair(r, e, s, o->hybrid, layer, layers), o, s->beta, lr, e->weight_decay,
                    s->gscale, s->arena);
    } else if (e->partner.rows) {
        PlanLeg b = plan_leg(r, e, 1, s, layer, layers);
        size_t heads = (size_t)b.heads;
        if (e->rule == UPDATE_ADAMW_PARTNER)
            partner_adamw_update(plan_adam_leg(&a), plan_adam_leg(&b), &adam, o->damping,
                                 o->per_mat_renorm, s->arena);
        else
            plan_coupled_step(e, &a, &b, c, s, &adam,
                              s->v + e->norms +
                                  (size_t)(layer - r->t[e->part.id].slot[SLOT_MOMENT].first) *
                                      heads,
                              (size_t)r->t[e->part.id].slot[SLOT_MOMENT].layers * heads,
                              plan_age(plan, e->norms, s->step) == 1);
    } else if (e->rule == UPDATE_ADAMW) {
        adamw_update_copied(a.W, a.G, a.M, mat_dense(a.v, layers, a.W.rows, a.W.cols), &adam,
                            s->w ? s->w + (a.W.p - s->p) : NULL);
    } else if (e->rule == UPDATE_MUONH) {
        muonh_update(a.W, a.G, a.M, a.v, plan_age(plan, e->v, s->step) == 1, o, s->beta, lr,
                     s->gscale, s->arena);
    } else {
        double scale;
        Mat U = plan_direction(e, &a, c, s, &adam, &scale);
        la_axpby(a.W, -lr * scale, U, 1 - lr * e->weight_decay);
    }
    s->arena->used = mark;
}

/* Updates the layers of every tensor whose moments are held. */
static inline void plan_step(const Plan *plan, const Registry *r, const Config *c,
                             const PlanState *s) {
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        const Slot *held = &r->t[e->part.id].slot[SLOT_MOMENT];
        int end = held->first + held->layers, chunk = plan_chunk(r, e, &c->optim);
        for (int l = held->first; l < end; l += chunk)
            plan_entry_step(plan, r, e, c, s, l, min_int(chunk, end - l));
    }
}

/* Whether plan_step writes the layers' copy of a tensor along with it: plain AdamW does, of all its rows. */
static inline int plan_writes_copy(const Plan *plan, TensorId id) {
    int writes = 1;
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        int one = e->part.id == id, other = e->partner.rows && e->partner.id == id;
        if (one || other) writes &= e->rule == UPDATE_ADAMW && !e->partner.rows;
    }
    return writes;
}

/* What plan_step leaves of the layers' copy to be written: range number `index` is elements [*first, *first +
   *n) of the allocation. Returns 0 past the last. Tensors that follow each other are one range, over what lies
   between if writing it again takes less than starting anew: a quarter of a megabyte. */
static inline int plan_stale(const Plan *plan, const Registry *r, int index, size_t *first,
                             size_t *n) {
    const size_t gap = (size_t)1 << 16;
    *first = 0;
    size_t end = 0;
    int ranges = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        if (!t->layers || plan_writes_copy(plan, (TensorId)id)) continue;
        size_t begin = t->slot[SLOT_PARAM].at;
        if (!ranges || begin > end + gap) {
            if (ranges == index + 1) break;
            ranges++;
            *first = begin;
        }
        end = begin + t->size;
    }
    *n = ranges == index + 1 ? end - *first : 0;
    return ranges == index + 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Reports                                                                                        */

/* The plan as a table. */
static inline void plan_print(FILE *out, const Plan *plan, const Registry *r) {
    static const char *const suffix[] = {"", "+circuit", "+quack"};
    fprintf(out, "%-12s %-18s %18s %10s %10s\n", "tensor", "rule", "shape", "lr", "decay");
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        Mat m = part_view(r, e->part, NULL);
        char shape[64], rule[32];
        snprintf(shape, sizeof shape, "%d x %d x %d", m.n0, m.rows, m.cols);
        snprintf(rule, sizeof rule, "%s%s", update_name(e->rule), suffix[e->coupling]);
        fprintf(out, "%-12s %-18s %18s %10.4g %10.4g\n", e->name, rule, shape, e->lr,
                e->weight_decay);
    }
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        char shape[64];
        snprintf(shape, sizeof shape, "%d x %d x %d", t->layers, t->rows, t->cols);
        if (t->frozen) fprintf(out, "%-12s %-18s %18s\n", t->name, "frozen", shape);
    }
}

/* One tensor of the plan, of which an entry has one or two: its name and its part. Returns 0 past the
   last. */
static inline int plan_group(const Plan *plan, int index, char name[24], Part *part) {
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        const char *comma = strstr(e->name, ", ");
        int legs = 1 + (e->partner.rows > 0);
        if (index >= legs) {
            index -= legs;
            continue;
        }
        *part = index ? e->partner : e->part;
        if (index) snprintf(name, 24, "%s", comma + 2);
        else snprintf(name, 24, "%.*s", comma ? (int)(comma - e->name) : 24, e->name);
        return 1;
    }
    return 0;
}

/* Copies the parameters to where plan_groups_json will look for them. */
static inline void plan_groups_keep(const Plan *plan, const Registry *r, floatM *p,
                                    floatM *before) {
    char name[24];
    Part part;
    for (int i = 0; plan_group(plan, i, name, &part); i++)
        la_copy(part_view(r, part, before), part_view(r, part, p));
}

/* What an update did, as a JSON object with a member a tensor:

       {"W_Q": {"update_rms": 0.0011, "effective_lr": 0.021}, ...}

   update_rms is ||dW||_F / sqrt(n), dW = p - before of all layers, with learning rate, weight decay and
   everything. effective_lr, for matrices of the blocks, is the learning rate at which plain Muon
   (a matrix sign without shape factor, whose RMS is 1 / sqrt(max(rows, cols))) takes a step of that
   RMS. `before`, laid out by the registry, is overwritten by dW. */
static inline void plan_groups_json(FILE *out, const Plan *plan, const Registry *r, floatM *p,
                                    floatM *before) {
    char name[24];
    Part part;
    fputc('{', out);
    for (int i = 0; plan_group(plan, i, name, &part); i++) {
        Role role = r->t[part.id].role;
        Mat W = part_view(r, part, p), D = part_view(r, part, before);
        double sum = 0;
        la_axpby(D, 1, W, -1);
        for (int l = 0; l < D.n0; l++)
            sum += la_sum_squares(mat_item(D, l), (size_t)D.rows * (size_t)D.cols);
        double rms = sqrt(sum / (double)mat_size(D));
        fprintf(out, "%s\"%s\": {\"update_rms\": %.6g", i ? ", " : "", name, rms);
        if (role == ROLE_QKV || role == ROLE_O || role == ROLE_MLP)
            fprintf(out, ", \"effective_lr\": %.6g", rms * sqrt((double)max_int(W.rows, W.cols)));
        fputc('}', out);
    }
    fputc('}', out);
}

#endif
