/*
The update plan: which tensor, or which part of one, is updated by which rule, at which learning rate
and weight decay. Built once from the config and the registry; --dry-run prints it; plan_step runs it.
*/
#ifndef CM_PLAN_H
#define CM_PLAN_H

#include "../params.h"
#include "adamw.h"
#include "compositional.h"
#include "muon.h"

typedef enum { UPDATE_ADAMW, UPDATE_MUON, UPDATE_MUON_HEAD, UPDATE_CM } UpdateRule;

/* Rows [first, first + rows) of every layer of a tensor. heads > 0: they are that many row blocks, or,
   in W_O, column blocks. */
typedef struct {
    TensorId id;
    int first, rows, heads, by_column;
} Part;

typedef struct {
    char name[24];
    UpdateRule rule;
    Part part, partner; /* partner: the shared factor of a CM pair */
    double lr, weight_decay;
    size_t v; /* AdamW: where this entry's second moments start */
} PlanEntry;

enum { PLAN_MAX = 40 };

typedef struct {
    PlanEntry e[PLAN_MAX];
    int n;
    size_t v_size;     /* second moments of all AdamW entries; first moments exist for every tensor */
    size_t arena_size; /* scratch of the largest chunk */
} Plan;

/* What one step needs besides the plan. p, g, m are laid out by the registry, v by the plan. */
typedef struct {
    floatM *p, *g, *m, *v;
    Arena *arena;
    double lr_scale, beta, gscale; /* schedule's multiplier; momentum of Muon and CM; factor on g */
    int step;                      /* 1 for the first update */
} PlanState;

static inline const char *update_name(UpdateRule rule) {
    static const char *const names[] = {"adamw", "muon", "muon-head", "cm"};
    return names[rule];
}

/* The view of a part in an allocation laid out by the registry: (L,1) x (rows, cols). */
static inline Mat part_view(const Registry *r, Part part, floatM *base) {
    const Tensor *t = &r->t[part.id];
    Mat m = {mat_offset(base, t->offset), t->layers, 1, (size_t)t->rows * t->cols, 0, t->rows, t->cols,
             (size_t)t->cols, 1};
    return mat_rows(m, part.first, part.rows);
}

/* Its heads as wide (L, heads) x (k, d) blocks: W_O is read as its transpose. */
static inline Mat part_heads(const Registry *r, Part part, floatM *base) {
    Mat m = part_view(r, part, base);
    return mat_heads(part.by_column ? mat_t(m) : m, part.heads);
}

static inline PlanEntry *plan_add(Plan *plan, const char *name, UpdateRule rule, Part part, double lr,
                                  double weight_decay) {
    PlanEntry *e = &plan->e[plan->n++];
    memset(e, 0, sizeof *e);
    snprintf(e->name, sizeof e->name, "%s", name);
    e->rule = rule;
    e->part = part;
    e->lr = lr;
    e->weight_decay = weight_decay;
    return e;
}

static inline Factor plan_factor(const Registry *r, Part part, const PlanState *s) {
    Factor f = {part_heads(r, part, s->p), part_heads(r, part, s->g), part_heads(r, part, s->m)};
    return f;
}

static inline Pair plan_pair(const Registry *r, const PlanEntry *e, const PlanState *s, int hybrid) {
    Pair p = {plan_factor(r, e->part, s), plan_factor(r, e->partner, s), hybrid && e->part.by_column};
    return p;
}

/* W, G, M of a Muon entry: whole parts, or heads in the orientation in which they are stored. */
static inline Mat plan_muon_view(const Registry *r, const PlanEntry *e, floatM *base) {
    if (e->rule == UPDATE_MUON) return part_view(r, e->part, base);
    Mat heads = part_heads(r, e->part, base);
    return e->part.by_column ? mat_t(heads) : heads;
}

/* Scratch an entry takes for `layers` layers at a time. */
static inline size_t plan_scratch(const Registry *r, const PlanEntry *e, const OptimOptions *o,
                                  int layers) {
    PlanState none;
    memset(&none, 0, sizeof none);
    if (e->rule == UPDATE_ADAMW) return 0;
    if (e->rule == UPDATE_CM) {
        Pair p = plan_pair(r, e, &none, o->hybrid);
        return pair_scratch(&p, layers);
    }
    return muon_scratch(mat_outer(plan_muon_view(r, e, NULL), 0, layers));
}

/* Layers updated together: as many as fit the budget, which keeps a CPU's working set in its cache
   and a GPU's memory small, but at least one. */
static inline int plan_chunk(const Registry *r, const PlanEntry *e, const OptimOptions *o) {
    int layers = r->t[e->part.id].layers;
    while (layers > 1 && plan_scratch(r, e, o, layers) > LA_SCRATCH_BUDGET) layers--;
    return layers;
}

static inline Plan plan_build(const Config *c, const Registry *r) {
    static const UpdateRule rules[] = {UPDATE_CM, UPDATE_CM, UPDATE_MUON, UPDATE_MUON_HEAD, UPDATE_ADAMW};
    Plan plan;
    memset(&plan, 0, sizeof plan);
    int A = c->heads * c->head_dim, K = c->kv_heads * c->head_dim, F = c->ff_width;
    double lr = c->lr, wd = c->weight_decay;
    Part q = {T_WQKV, 0, A, c->heads, 0}, k = {T_WQKV, A, K, c->kv_heads, 0};
    Part v = {T_WQKV, A + K, K, c->kv_heads, 0}, o = {T_WO, 0, c->width, c->heads, 1};
    if (rules[c->qk] == UPDATE_CM) {
        plan_add(&plan, "W_Q, W_K", UPDATE_CM, q, lr, wd)->partner = k;
    } else {
        plan_add(&plan, "W_Q", rules[c->qk], q, lr, wd);
        plan_add(&plan, "W_K", rules[c->qk], k, lr, wd);
    }
    if (rules[c->ov] == UPDATE_CM) {
        plan_add(&plan, "W_O, W_V", UPDATE_CM, o, lr, wd)->partner = v;
    } else {
        plan_add(&plan, "W_V", rules[c->ov], v, lr, wd);
        plan_add(&plan, "W_O", rules[c->ov], o, lr, wd);
    }
    UpdateRule mlp = c->mlp == MLP_RULE_ADAMW ? UPDATE_ADAMW : UPDATE_MUON;
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
    for (int i = 0; i < plan.n; i++) {
        PlanEntry *e = &plan.e[i];
        if (e->rule == UPDATE_ADAMW) {
            e->v = plan.v_size;
            plan.v_size += (mat_size(part_view(r, e->part, NULL)) + 15) / 16 * 16;
        }
        size_t need = plan_scratch(r, e, &c->optim, plan_chunk(r, e, &c->optim));
        if (need > plan.arena_size) plan.arena_size = need;
    }
    return plan;
}

/* Updates every tensor. */
static inline void plan_step(const Plan *plan, const Registry *r, const Config *c, const PlanState *s) {
    const OptimOptions *o = &c->optim;
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        double lr = e->lr * s->lr_scale;
        if (e->rule == UPDATE_ADAMW) {
            AdamW a = {lr, e->weight_decay, c->adam_beta1, c->adam_beta2, c->adam_eps, s->gscale, s->step};
            Mat P = part_view(r, e->part, s->p);
            adamw_update(P, part_view(r, e->part, s->g), part_view(r, e->part, s->m),
                         mat_dense(s->v + e->v, P.n0, P.rows, P.cols), &a);
            continue;
        }
        int layers = r->t[e->part.id].layers, chunk = plan_chunk(r, e, o);
        for (int l = 0; l < layers; l += chunk) {
            int n = min_int(chunk, layers - l);
            if (e->rule == UPDATE_CM) {
                Pair p = plan_pair(r, e, s, o->hybrid);
                Factor *f[2] = {&p.A, &p.B};
                for (int j = 0; j < 2; j++) {
                    f[j]->W = mat_outer(f[j]->W, l, n);
                    f[j]->G = mat_outer(f[j]->G, l, n);
                    f[j]->M = mat_outer(f[j]->M, l, n);
                }
                pair_update(p, o, s->beta, lr, e->weight_decay, s->gscale, s->arena);
            } else {
                muon_update(mat_outer(plan_muon_view(r, e, s->p), l, n),
                            mat_outer(plan_muon_view(r, e, s->g), l, n),
                            mat_outer(plan_muon_view(r, e, s->m), l, n), o, s->beta, lr,
                            e->weight_decay, s->gscale, s->arena);
            }
        }
    }
}

/* The plan as a table. */
static inline void plan_print(FILE *out, const Plan *plan, const Registry *r) {
    fprintf(out, "%-12s %-10s %18s %10s %10s\n", "tensor", "rule", "shape", "lr", "decay");
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        Mat m = part_view(r, e->part, NULL);
        char shape[64];
        snprintf(shape, sizeof shape, "%d x %d x %d", m.n0, m.rows, m.cols);
        fprintf(out, "%-12s %-10s %18s %10.4g %10.4g\n", e->name, update_name(e->rule), shape, e->lr,
                e->weight_decay);
    }
}

#endif
