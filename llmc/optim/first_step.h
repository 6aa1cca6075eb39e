/*
How large a step each rule takes: the rule itself runs once, at its full learning rate, on copies of
one layer's weights, with a random gradient and with moments and states that start at zero. So every
rule is measured on every machine, and no formula is written twice.

Needs a backend's device_alloc, device_free and device_upload.
*/
#ifndef CM_FIRST_STEP_H
#define CM_FIRST_STEP_H

#include "plan.h"

/* RMS of AdamW's step over its learning rate while it trains. Moonlight (arXiv 2502.16982) reports
   0.2 to 0.4 and matches Muon to 0.2; docs/optimizers.md has what it is here. */
#define ADAMW_RMS 0.2

/* A rule that works element by element is measured on at most this many elements, since all of them
   move alike: enough that their RMS is known to less than a percent, and few enough that a large
   vocabulary costs nothing. */
enum { FIRST_STEP_ELEMENTS = 1 << 16 };

/* An entry of a plan, cut down to one layer, with a registry and a plan of its own. */
typedef struct {
    Registry r;
    Plan plan;
    size_t from[2]; /* where each leg's tensor begins among the parameters of the model */
} FirstStep;

/* The tensors of an entry in one layer. Of one tensor that a rule updates element by element, only
   the part's first rows are taken. */
static inline void first_step_build(FirstStep *f, const Registry *r, const PlanEntry *entry,
                                    const Config *c) {
    memset(f, 0, sizeof *f);
    PlanEntry *e = &f->plan.e[0];
    *e = *entry;
    e->weight_decay = 0;
    f->plan.n = 1;
    int elements = (rule_table[e->rule].traits & ELEMENT_BY_ELEMENT) && e->legs == 1;
    for (int i = 0; i < e->legs; i++) {
        Part *part = &e->part[i];
        const Tensor *whole = &r->t[part->id];
        Tensor *t = &f->r.t[part->id];
        *t = *whole;
        f->from[i] = whole->slot[SLOT_PARAM].at +
                     (size_t)part_held(r, entry->part[i]).first * layer_size(whole);
        t->layers = 1;
        if (elements) {
            f->from[i] += (size_t)part->first * t->cols;
            part->first = 0;
            part->rows = min_int(part->rows, max_int(1, FIRST_STEP_ELEMENTS / t->cols));
            t->rows = part->rows;
        }
        t->size = layer_size(t);
        for (int slot = 0; slot < SLOTS; slot++) {
            t->slot[slot].first = 0;
            t->slot[slot].layers = 1;
        }
    }
    registry_layout(&f->r);
    plan_finish(&f->plan, e, &f->r, c);
}

/* Sets device memory to n standard normal numbers, which are always the same ones. Returns -1
   without memory. */
static inline int first_step_gradient(floatM *to, size_t n) {
    const uint64_t stream = rng_stream("first step");
    floatM *host = (floatM *)malloc(n * sizeof(floatM));
    if (!host) return -1;
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) host[i] = (floatM)rng_normal(0, stream, i);
    device_upload(to, host, n * sizeof(floatM));
    free(host);
    return 0;
}

/* Sets rms[leg] to ||dW||_F / sqrt(n) of an entry's first update from the weights `param`, at the
   full learning rate and without weight decay. `param`, on the device, is laid out by r. Returns -1
   if the memory is too little for the copies. */
static inline int first_step_rms(const Registry *r, const PlanEntry *entry, const Config *c,
                                 floatM *param, double rms[2]) {
    FirstStep f;
    first_step_build(&f, r, entry, c);
    const PlanEntry *e = &f.plan.e[0];
    size_t n = f.r.size[SLOT_PARAM], states = arena_round(f.plan.state_size);
    floatM *memory = (floatM *)device_alloc((4 * n + states + f.plan.arena_size) * sizeof(floatM));
    if (!memory) return -1;
    floatM *before = memory + 3 * n, *rest = before + n;
    Arena arena = {rest + states, f.plan.arena_size, 0};
    PlanState s = {.param = memory,
                   .grad = memory + n,
                   .moment = memory + 2 * n,
                   .state = rest,
                   .arena = &arena,
                   .lr_scale = {1, 1},
                   .momentum = c->optim.momentum,
                   .gscale = 1,
                   .step = 1,
                   .weight = NULL};
    for (int i = 0; i < e->legs; i++) {
        const Tensor *t = &f.r.t[e->part[i].id];
        Mat from = mat_dense(param + f.from[i], 1, t->rows, t->cols);
        la_copy(mat_dense(s.param + t->slot[SLOT_PARAM].at, 1, t->rows, t->cols), from);
    }
    int status = first_step_gradient(s.grad, n);
    for (int i = 0; i < e->legs; i++)
        la_copy(part_view(&f.r, e->part[i], before), part_view(&f.r, e->part[i], s.param));
    plan_entry_step(&f.plan, &f.r, e, c, &s, 0, 1);
    for (int i = 0; i < e->legs; i++) {
        Mat D = part_view(&f.r, e->part[i], before);
        la_axpby(D, 1, part_view(&f.r, e->part[i], s.param), -1);
        rms[i] = sqrt(la_sum_squares(D.p, mat_size(D)) / (double)mat_size(D));
    }
    device_free(memory);
    return status;
}

/* The learning rate at which AdamW takes steps of this RMS. AdamW's own first step moves every
   element by its learning rate, and so does the first step of each rule with its second moments;
   their later steps are smaller by ADAMW_RMS. The first step of the other rules is as large as
   their later ones. */
static inline double first_step_adamw_lr(const PlanEntry *e, double rms) {
    return rule_table[e->rule].traits & MOMENT_WITH_STATE ? rms : rms / ADAMW_RMS;
}

/* A table with a line for each leg of the plan; all gains and biases, whose rule and rate are one,
   share a line. `weights` says which ones they are: "initial". A step that memory is too short to
   measure has no line. */
static inline void first_steps_print(FILE *out, const Plan *plan, const Registry *r,
                                     const Config *c, floatM *param, const char *weights) {
    int vectors = 0;
    print_line(out, "steps", "the first update at the full rate, %s weights", weights);
    fprintf(out, "         %-13s %8s %8s %8s\n", "", "lr", "rms", "AdamW lr");
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        int vector = r->t[e->part[0].id].role == ROLE_SCALAR;
        double rms[2];
        if ((vector && vectors++) || first_step_rms(r, e, c, param, rms)) continue;
        for (int leg = 0; leg < e->legs; leg++)
            fprintf(out, "         %-13s %8.3g %8.3g %8.3g\n",
                    vector ? "gains, biases" : e->name[leg], e->lr, rms[leg],
                    first_step_adamw_lr(e, rms[leg]));
    }
}

#endif
