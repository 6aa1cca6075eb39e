/*
The update plan: which rule updates a tensor or a part of one, at which learning rate and weight
decay. It is built once from the config and the registry. --dry-run prints it, and plan_step runs
it.
*/
#ifndef CM_PLAN_H
#define CM_PLAN_H

#include "../params.h"
#include "../schedule.h"
#include "rule.h"

/* Rows [first, first + rows) of every layer of a tensor. If heads > 0, the part consists of that
   many blocks of rows or, in W_O, of columns. */
typedef struct {
    TensorId id;
    int first, rows, heads, by_column;
} Part;

/* One or two parts that a rule updates together. */
typedef struct {
    const char *name[2]; /* of each part: "W_Q", or "W_Q" and "W_K" */
    RuleId rule;
    RuleId coupling; /* rescales the rule's directions; RULE_AUTO if there is none */
    Part part[2];
    int legs;  /* parts */
    int chunk; /* layers updated together */
    double lr, weight_decay;
    size_t state[2][RULE_STATES];       /* where a leg's states start in the plan's state */
    size_t older[2][MOMENTUM_AGES - 1]; /* where a leg's further averages start */
    size_t coupled;                     /* where the coupling's state starts */
    RateGroup group;                    /* whose schedule the rate follows */
    int is_block;                       /* 1: matrices of the blocks */
    double product_scale;               /* of two factors, see Step */
    int product_cold;
} PlanEntry;

/* One named state of a rule besides the first moment, as checkpoints store it: "wqkv.q.v" is state
   v of the query rows of wqkv. */
typedef struct {
    char name[64];
    size_t at, size; /* elements in the allocation of the plan's state */
    int64_t dims[3]; /* (layers, rows, cols); of a coupling (2, layers, heads) */
    Part part;       /* that the state belongs to */
    int with_moment; /* 1: where the state starts anew, so does the first moment */
    int average;     /* 1: of --momentum-ages */
    /* Updates done when the state began: 0, or where a resumed run changed rules. An average begins
       at --momentum-ages-from, which may be to come. */
    int since;
} StateTensor;

/* Room for every tensor, and for the parts of wqkv, of wfc and of their factors. */
enum { PLAN_MAX = 64 };

typedef struct {
    PlanEntry e[PLAN_MAX];
    int n;
    StateTensor state[4 * PLAN_MAX];
    int states;
    size_t state_size; /* elements of all states, without the first moments */
    size_t arena_size; /* elements of scratch of the largest chunk */
} Plan;

/* What one step needs besides the plan: the allocations of a Params, and numbers of this step. */
typedef struct {
    floatM *param, *grad, *moment; /* laid out by the registry */
    floatM *state;                 /* laid out by the plan */
    Arena *arena;
    double lr_scale[2]; /* the schedule's multipliers of learning rates, by RateGroup */
    double momentum;    /* coefficient of Muon and CM */
    double gscale;      /* multiplies gradients, but those of rules that take signs */
    int step;           /* 1 for the first update */
    /* The layers' copy, laid out as `param`; NULL where the layers read the parameters themselves.
       plan_stale names the parts of it that plan_step does not write. */
    floatX *weight;
} PlanState;

/* ---------------------------------------------------------------------------------------------- */
/* Views of the entries                                                                           */

/* The view of a part in the allocation `base` of a slot: (layers held, 1) x (rows, cols). */
static inline Mat part_slot(const Registry *r, Part part, SlotId slot, floatM *base) {
    const Tensor *t = &r->t[part.id];
    const Slot *held = &t->slot[slot];
    return mat_rows(mat_dense(mat_offset(base, held->at), held->layers, t->rows, t->cols),
                    part.first, part.rows);
}

/* The view of a part among the parameters: (L, 1) x (rows, cols). */
static inline Mat part_view(const Registry *r, Part part, floatM *base) {
    return part_slot(r, part, SLOT_PARAM, base);
}

/* Layers [layer, layer + layers) of a part in a slot that holds them. */
static inline Mat part_layers(const Registry *r, Part part, SlotId slot, floatM *base, int layer,
                              int layers) {
    return mat_outer(part_slot(r, part, slot, base), layer - r->t[part.id].slot[slot].first,
                     layers);
}

/* The layers of a part that are updated here: those whose moments are held. */
static inline Slot part_held(const Registry *r, Part part) {
    return r->t[part.id].slot[SLOT_MOMENT];
}

/* The rank of a factor, whose part is one head: the width of that head. */
static inline int part_rank(const Registry *r, Part part) {
    return part.by_column ? r->t[part.id].cols : part.rows;
}

/* Numbers of a state for each layer of a part. */
static inline size_t state_count(StateUnit unit, const Registry *r, Part part) {
    switch (unit) {
    case PER_ELEMENT: return (size_t)part.rows * (size_t)r->t[part.id].cols;
    case PER_ROW: return (size_t)part.rows;
    case PER_LONGER: return (size_t)max_int(part.rows, r->t[part.id].cols);
    case PER_MATRIX: return 1;
    case PER_HEAD: return (size_t)part.heads;
    case PER_RANK: return (size_t)part_rank(r, part) * (size_t)part_rank(r, part);
    }
    return 0;
}

/* How many averages of the gradient a rule keeps beside the first moment. */
static inline int plan_older(const Rule *rule, const OptimOptions *o) {
    return rule->traits & TAKES_SIGN && o->ages.n ? o->ages.n - 1 : 0;
}

/* Layers [layer, layer + layers) of leg number `which` of an entry. */
static inline Leg plan_leg(const OptimOptions *o, const Registry *r, const PlanEntry *e, int which,
                           const PlanState *s, int layer, int layers) {
    Part part = e->part[which];
    Leg l;
    memset(&l, 0, sizeof l);
    l.W = part_layers(r, part, SLOT_PARAM, s->param, layer, layers);
    l.G = part_layers(r, part, SLOT_GRAD, s->grad, layer, layers);
    l.M = part_layers(r, part, SLOT_MOMENT, s->moment, layer, layers);
    l.heads = part.heads;
    l.by_column = part.by_column;
    if (s->weight) l.copy = s->weight + (l.W.p - s->param);
    size_t held = (size_t)(layer - part_held(r, part).first);
    for (int k = 0; k < plan_older(&rule_table[e->rule], o); k++)
        l.older[k] = mat_dense(
            mat_offset(s->state, e->older[which][k] + held * state_count(PER_ELEMENT, r, part)),
            layers, l.M.rows, l.M.cols);
    if (!s->state) return l;
    for (int k = 0; k < RULE_STATES && rule_table[e->rule].state[k].name; k++)
        l.state[k] = s->state + e->state[which][k] +
                     held * state_count(rule_table[e->rule].state[k].unit, r, part);
    if (rule_table[e->coupling].state[0].name) {
        size_t each = state_count(rule_table[e->coupling].state[0].unit, r, e->part[1]);
        size_t index = (size_t)which * (size_t)part_held(r, part).layers + held;
        l.coupled = s->state + e->coupled + index * each;
    }
    return l;
}

/* Updates since the state at element `at` began, this one included: 1 in the state's first. */
static inline int plan_age(const Plan *plan, size_t at, int step) {
    for (int i = 0; i < plan->states; i++)
        if (plan->state[i].at == at) return step - plan->state[i].since;
    return step;
}

/* Sets what the schedules and the options make of an entry's rates in this step. */
static inline void plan_rates(Step *step, const PlanEntry *e, const OptimOptions *o,
                              const PlanState *s) {
    double scale = s->lr_scale[e->group];
    step->lr = e->lr * scale;
    step->weight_decay = e->weight_decay;
    switch ((DecaySchedule)o->decay_schedule) {
    case DECAY_CONSTANT: break;
    case DECAY_LR: step->weight_decay *= scale; break;
    }
    step->momentum = s->momentum;
    step->gscale = step->rule->traits & TAKES_SIGN ? 1 : s->gscale;
    step->beta1 = e->is_block ? o->adam_beta1_blocks : o->adam_beta1;
    step->beta2 = e->is_block ? o->adam_beta2_blocks : o->adam_beta2;
}

/* Sets the averages of a step's momentum, if it is mixed, and those of each leg that begin. */
static inline void plan_ages(Step *step, const Plan *plan, const PlanEntry *e,
                             const OptimOptions *o, const PlanState *s) {
    int older = plan_older(step->rule, o), update = s->step - 1;
    if (!(step->rule->traits & TAKES_SIGN)) return;
    momentum_ages_at(step, &o->ages, update);
    for (int i = 0; i < e->legs; i++)
        for (int k = 0; k < older; k++) {
            int since = s->step - plan_age(plan, e->older[i][k], s->step);
            if (update == since) step->leg[i].begins |= 1u << k;
        }
}

/* The step of layers [layer, layer + layers) of an entry. */
static inline Step plan_entry(const Plan *plan, const Registry *r, const PlanEntry *e,
                              const OptimOptions *o, const PlanState *s, int layer, int layers) {
    Step step;
    memset(&step, 0, sizeof step);
    step.rule = &rule_table[e->rule];
    step.coupling = e->coupling == RULE_AUTO ? NULL : &rule_table[e->coupling];
    step.options = o;
    step.legs = e->legs;
    for (int i = 0; i < e->legs; i++) {
        step.leg[i] = plan_leg(o, r, e, i, s, layer, layers);
        step.leg[i].age =
            step.rule->state[0].name ? plan_age(plan, e->state[i][0], s->step) : s->step;
    }
    step.product_scale = e->product_scale;
    step.product_cold = e->product_cold;
    plan_rates(&step, e, o, s);
    plan_ages(&step, plan, e, o, s);
    step.coupling_age = s->step;
    if (step.coupling && step.coupling->state[0].name)
        step.coupling_age = plan_age(plan, e->coupled, s->step);
    step.arena = s->arena;
    return step;
}

/* Elements of scratch that an entry takes for `layers` layers at a time. */
static inline size_t plan_scratch(const Plan *plan, const Registry *r, const PlanEntry *e,
                                  const OptimOptions *o, int layers) {
    PlanState no_memory;
    memset(&no_memory, 0, sizeof no_memory);
    no_memory.step = 1;
    Step step = plan_entry(plan, r, e, o, &no_memory, part_held(r, e->part[0]).first, layers);
    return step_scratch(&step);
}

/* ---------------------------------------------------------------------------------------------- */
/* Building                                                                                       */

/* Adds an entry of one part; the caller may add a second part. */
static inline PlanEntry *plan_add(Plan *plan, const char *name, RuleId rule, Part part, double lr,
                                  double weight_decay) {
    PlanEntry *e = &plan->e[plan->n++];
    memset(e, 0, sizeof *e);
    e->name[0] = name;
    e->rule = rule;
    e->part[0] = part;
    e->legs = 1;
    e->lr = lr;
    e->weight_decay = weight_decay;
    return e;
}

/* Adds the two tensors of a circuit: in one entry if the rule or a coupling needs both, else in
   two. */
static inline void plan_add_circuit(Plan *plan, const char *const name[2], const Config *c,
                                    RuleId chosen, RuleId coupling, const Part part[2], double lr) {
    RuleId rule = rule_base(chosen, &c->optim);
    if (rule != chosen) coupling = chosen;
    if (coupling == RULE_AUTO && !(rule_table[rule].traits & NEEDS_PAIR)) {
        for (int i = 0; i < 2; i++) plan_add(plan, name[i], rule, part[i], lr, c->weight_decay);
        return;
    }
    PlanEntry *e = plan_add(plan, name[0], rule, part[0], lr, c->weight_decay);
    e->name[1] = name[1];
    e->part[1] = part[1];
    e->legs = 2;
    e->coupling = coupling;
}

/* The parts of both circuits: W_Q and W_K, W_O and W_V. */
static inline void circuit_parts(const Config *c, Part qk[2], Part ov[2]) {
    Shape s = shape_of(c);
    int KV = s.NKV * s.HS;
    const Part q = {T_WQKV, 0, s.A, s.NH, 0}, k = {T_WQKV, s.A, KV, s.NKV, 0};
    const Part o = {T_WO, 0, s.C, s.NH, 1}, v = {T_WQKV, s.A + KV, KV, s.NKV, 0};
    qk[0] = q;
    qk[1] = k;
    ov[0] = o;
    ov[1] = v;
}

static inline void plan_add_circuits(Plan *plan, const Config *c) {
    static const char *const qk_names[2] = {"W_Q", "W_K"}, *const ov_names[2] = {"W_O", "W_V"};
    Part qk[2], ov[2];
    circuit_parts(c, qk, ov);
    /* Circuit-Muon rescales the directions of a rule. CM has none; it applies Circuit-Muon
       itself. */
    int circuit = c->optim.circuit && rule_table[c->ov].direction;
    plan_add_circuit(plan, qk_names, c, (RuleId)c->qk, RULE_AUTO, qk, c->lr_qk);
    plan_add_circuit(plan, ov_names, c, (RuleId)c->ov, circuit ? RULE_CIRCUIT : RULE_AUTO, ov,
                     c->lr_ov);
}

static inline void plan_add_mlp(Plan *plan, const Config *c) {
    RuleId rule = (RuleId)c->mlp;
    int F = c->ff_width, gated = act_is_gated((ActKind)c->act);
    Part gate = {T_WFC, 0, F, 0, 0}, up = {T_WFC, F, F, 0, 0}, proj = {T_WPROJ, 0, c->width, 0, 0};
    plan_add(plan, gated ? "W_gate" : "W_fc", rule, gate, c->lr_mlp, c->weight_decay);
    if (gated) plan_add(plan, "W_up", rule, up, c->lr_mlp, c->weight_decay);
    plan_add(plan, "W_proj", rule, proj, c->lr_mlp, c->weight_decay);
}

/* Adds the factors A and B of every linear layer that has some, part by part: in one entry if the
   rule needs both, else in two. */
static inline void plan_add_factors(Plan *plan, const Config *c, const Registry *r) {
    static const char *const names[LINEARS][FACTOR_PARTS][2] = {
        {{"A of W_Q", "B of W_Q"}, {"A of W_K", "B of W_K"}, {"A of W_V", "B of W_V"}},
        {{"A of W_O", "B of W_O"}},
        {{"A of W_gate", "B of W_gate"}, {"A of W_up", "B of W_up"}},
        {{"A of W_proj", "B of W_proj"}},
        {{"A of head", "B of head"}}};
    static const char *const whole[2][2] = {{"A of W_QKV", "B of W_QKV"},
                                            {"A of W_fc", "B of W_fc"}};
    const Rule *rule = &rule_table[c->lora];
    for (int id = 0; id < LINEARS; id++) {
        const Linear f = linear_of(c, (LinearId)id);
        const LinearTensors *t = &linear_tensors[id];
        for (int p = 0; p < f.parts && f.rank; p++) {
            const Part part[2] = {{t->up, f.first[p], f.rows[p], 1, 1},
                                  {t->down, p * f.rank, f.rank, 1, 0}};
            const char *const *name = names[id][p];
            if (f.parts == 1 && (id == LINEAR_QKV || id == LINEAR_FC))
                name = whole[id == LINEAR_FC];
            PlanEntry *e =
                plan_add(plan, name[0], (RuleId)c->lora, part[0], c->lr_lora, c->weight_decay);
            if (rule->traits & NEEDS_PAIR) {
                e->name[1] = name[1];
                e->part[1] = part[1];
                e->legs = 2;
                e->product_scale = c->lora_scale;
                e->product_cold = c->lora_init == FACTORS_ZERO || r->t[t->up].init_std == 0;
                continue;
            }
            e->lr *= c->lora_plus;
            plan_add(plan, name[1], (RuleId)c->lora, part[1], c->lr_lora, c->weight_decay);
        }
    }
}

/* Adds embeddings, head and vectors. The rows of the vocabulary's padding are zero and stay zero;
   only a rule that works element by element sees them. */
static inline void plan_add_rest(Plan *plan, const Config *c, const Registry *r) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        RuleId rule = RULE_ADAMW;
        double lr = c->lr_scalar, decay = c->weight_decay_scalar;
        if (!t->layers) continue;
        switch (t->role) {
        case ROLE_QKV:
        case ROLE_O:
        case ROLE_MLP:
        case ROLE_FACTOR: continue;
        case ROLE_EMBED:
            rule = (RuleId)c->embed;
            lr = c->lr_embed;
            decay = c->weight_decay_embed;
            break;
        case ROLE_HEAD:
            rule = (RuleId)c->head;
            lr = c->lr_head;
            decay = c->weight_decay_head;
            break;
        case ROLE_SCALAR: break;
        }
        int rows = rule_table[rule].traits & ELEMENT_BY_ELEMENT ? t->rows : t->used_rows;
        Part all = {(TensorId)id, 0, rows, 0, 0};
        plan_add(plan, t->name, rule, all, lr, decay);
    }
}

/* The name of a part within its tensor: rows of wqkv and of a gated wfc, and of their factors, have
   a name, whole tensors have none. */
static inline const char *part_name(const Registry *r, Part part) {
    const Tensor *t = &r->t[part.id];
    int of_fc = part.id == T_WFC || part.id == T_WFC_UP || part.id == T_WFC_DOWN;
    int of_qkv = part.id == T_WQKV || part.id == T_WQKV_UP || part.id == T_WQKV_DOWN;
    if (of_fc && part.rows < t->rows) return part.first ? ".up" : ".gate";
    if (!of_qkv || part.rows == t->rows) return "";
    return part.first == 0 ? ".q" : part.first + part.rows == t->rows ? ".v" : ".k";
}

/* Makes room for a state of a part: (layers, rows, cols) numbers, or (2, layers, heads) if both
   legs have the state. Returns the element where the state starts. */
static inline size_t plan_take(Plan *plan, const Registry *r, Part part, RuleState state,
                               int with_moment) {
    int layers = part_held(r, part).layers, of_both = state.unit == PER_HEAD;
    size_t at = plan->state_size;
    StateTensor t = {.at = at,
                     .size = (size_t)layers * state_count(state.unit, r, part),
                     .dims = {layers, 1, 1},
                     .part = part,
                     .with_moment = with_moment};
    snprintf(t.name, sizeof t.name, "%s%s.%s", r->t[part.id].name, part_name(r, part), state.name);
    if (state.unit == PER_ELEMENT || state.unit == PER_ROW) t.dims[1] = part.rows;
    if (state.unit == PER_LONGER) t.dims[1] = max_int(part.rows, r->t[part.id].cols);
    if (state.unit == PER_ELEMENT) t.dims[2] = r->t[part.id].cols;
    if (state.unit == PER_RANK) t.dims[1] = t.dims[2] = part_rank(r, part);
    if (of_both) {
        t.size *= 2;
        t.dims[0] = 2;
        t.dims[1] = layers;
        t.dims[2] = part.heads;
    }
    plan->state[plan->states++] = t;
    plan->state_size += arena_round(t.size);
    return at;
}

/* Makes room for an entry's states, and sets how many layers it updates together: at least one, and
   as many as fit the budget of scratch. The budget keeps a CPU's working set in its cache, and a
   GPU's scratch small. */
static inline void plan_finish(Plan *plan, PlanEntry *e, const Registry *r, const Config *c) {
    const Rule *rule = &rule_table[e->rule], *coupling = &rule_table[e->coupling];
    Role role = r->t[e->part[0].id].role;
    e->is_block = role_is_block(role);
    e->group = e->is_block ? RATE_BLOCKS : RATE_REST;
    for (int i = 0; i < e->legs; i++)
        for (int k = 0; k < plan_older(rule, &c->optim); k++) {
            char name[16];
            snprintf(name, sizeof name, "m%d", k + 1);
            RuleState average = {name, PER_ELEMENT};
            e->older[i][k] = plan_take(plan, r, e->part[i], average, 0);
            plan->state[plan->states - 1].average = 1;
            plan->state[plan->states - 1].since = c->optim.ages.from;
        }
    for (int i = 0; i < e->legs; i++)
        for (int k = 0; k < RULE_STATES && rule->state[k].name; k++)
            e->state[i][k] = plan_take(plan, r, e->part[i], rule->state[k],
                                       (rule->traits & MOMENT_WITH_STATE) != 0);
    if (coupling->state[0].name) e->coupled = plan_take(plan, r, e->part[1], coupling->state[0], 0);
    e->chunk = part_held(r, e->part[0]).layers;
    size_t need = plan_scratch(plan, r, e, &c->optim, e->chunk);
    while (e->chunk > 1 && need > LA_SCRATCH_BUDGET)
        need = plan_scratch(plan, r, e, &c->optim, --e->chunk);
    if (need > plan->arena_size) plan->arena_size = need;
}

/* Whether a tensor is not updated: it is frozen, or its factors have taken its place. */
static inline int plan_leaves(const Tensor *t) { return t->frozen || !t->layers; }

/* Removes the entries none of whose legs are updated. */
static inline void plan_drop_frozen(Plan *plan, const Registry *r) {
    int kept = 0;
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        int frozen = 0;
        for (int leg = 0; leg < e->legs; leg++) frozen += plan_leaves(&r->t[e->part[leg].id]);
        if (frozen < e->legs) plan->e[kept++] = *e;
    }
    plan->n = kept;
}

/* Refuses an entry that would update a frozen tensor along with another: returns -1 and a
   sentence. */
static inline int plan_check_frozen(const Plan *plan, const Config *c, const Registry *r,
                                    char *err) {
    if (!plan->n)
        return fail(err, "--freeze %s leaves nothing to train: leave out a tensor", c->freeze);
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        const Tensor *a = &r->t[e->part[0].id], *b = &r->t[e->part[e->legs - 1].id];
        if (!plan_leaves(a) && !plan_leaves(b)) continue;
        const Tensor *frozen = plan_leaves(a) ? a : b, *other = plan_leaves(a) ? b : a;
        if (!frozen->layers)
            return fail(err,
                        "--lora-on %s: the rule of %s, %s updates both together, and one of them "
                        "has become a product; name qkv and o both, or choose rules that update "
                        "each alone, such as muon",
                        c->lora_on, e->name[0], e->name[1]);
        return fail(
            err,
            "--freeze %s: the rule of %s, %s updates both together; freeze %s too, or choose "
            "a rule that updates each alone",
            frozen->name, e->name[0], e->name[1], other->name);
    }
    return 0;
}

static inline Plan plan_build(const Config *c, const Registry *r) {
    Plan plan;
    memset(&plan, 0, sizeof plan);
    plan_add_circuits(&plan, c);
    plan_add_mlp(&plan, c);
    plan_add_factors(&plan, c, r);
    plan_add_rest(&plan, c, r);
    plan_drop_frozen(&plan, r);
    for (int i = 0; i < plan.n; i++) plan_finish(&plan, &plan.e[i], r, c);
    return plan;
}

/* ---------------------------------------------------------------------------------------------- */
/* A step                                                                                         */

/* Updates layers [layer, layer + layers) of an entry. A Gram that has no inverse root is a recorded
   failure (device_check). */
static inline void plan_entry_step(const Plan *plan, const Registry *r, const PlanEntry *e,
                                   const Config *c, const PlanState *s, int layer, int layers) {
    Step step = plan_entry(plan, r, e, &c->optim, s, layer, layers);
    char names[64], sentence[ERR_LEN];
    snprintf(names, sizeof names, "%s%s%s", e->name[0], e->legs > 1 ? " and " : "",
             e->legs > 1 ? e->name[1] : "");
    la_roots_of(names);
    step_run(&step);
    int why = la_rootless();
    if (!why) return;
    la_rootless_sentence(sentence, sizeof sentence, names, why);
    device_fail("%s", sentence);
}

/* Updates the layers of every tensor whose moments are held. Too little scratch is a recorded
   failure (device_check). */
static inline void plan_step(const Plan *plan, const Registry *r, const Config *c,
                             const PlanState *s) {
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        Slot held = part_held(r, e->part[0]);
        int end = held.first + held.layers;
        for (int l = held.first; l < end; l += e->chunk)
            plan_entry_step(plan, r, e, c, s, l, min_int(e->chunk, end - l));
    }
    if (plan->arena_size && !s->arena->p)
        device_fail("internal error: the update needs %zu numbers of scratch and has %zu",
                    s->arena->size, plan->arena_size);
}

/* Whether plan_step writes the layers' copy of a tensor, all of its rows, along with the tensor. */
static inline int plan_writes_copy(const Plan *plan, TensorId id) {
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        int writes = (rule_table[e->rule].traits & WRITES_COPY) && e->legs == 1;
        for (int leg = 0; leg < e->legs; leg++)
            if (e->part[leg].id == id && !writes) return 0;
    }
    return 1;
}

/* The most elements between two stale tensors that plan_stale puts into one range with them:
   writing 256 KiB takes about as long as starting another kernel. */
enum { STALE_GAP = 1 << 16 };

/* The elements of the layers' copy that plan_step does not write. Range number `index` is elements
   [*first, *first + *n) of the allocation; tensors that follow each other are one range. Returns 0
   past the last range. */
static inline int plan_stale(const Plan *plan, const Registry *r, int index, size_t *first,
                             size_t *n) {
    *first = 0;
    size_t end = 0;
    int ranges = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        if (!t->layers || plan_writes_copy(plan, (TensorId)id)) continue;
        size_t begin = t->slot[SLOT_PARAM].at;
        if (!ranges || begin > end + STALE_GAP) {
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

/* A row of the plan's table. */
typedef struct {
    char name[64], rule[64], shape[64];
    int has_rate;
    double lr, weight_decay;
} PlanRow;

static inline PlanRow plan_row(const Plan *plan, const Registry *r, int i) {
    const PlanEntry *e = &plan->e[i];
    Mat m = part_view(r, e->part[0], NULL);
    PlanRow row = {.has_rate = 1, .lr = e->lr, .weight_decay = e->weight_decay};
    snprintf(row.name, sizeof row.name, "%s%s%s", e->name[0], e->legs > 1 ? ", " : "",
             e->legs > 1 ? e->name[1] : "");
    snprintf(row.shape, sizeof row.shape, "%d x %d x %d", m.n0, m.rows, m.cols);
    snprintf(row.rule, sizeof row.rule, "%s%s%s", rule_table[e->rule].flag, e->coupling ? "+" : "",
             e->coupling ? rule_table[e->coupling].flag : "");
    return row;
}

/* The plan as a table, whose columns are as wide as their texts. */
static inline void plan_print(FILE *out, const Plan *plan, const Registry *r) {
    PlanRow rows[1 + PLAN_MAX + TENSORS] = {{"tensor", "rule", "shape", 0, 0, 0}};
    int n = 1, name = 0, rule = 0, shape = 0;
    for (int i = 0; i < plan->n; i++) rows[n++] = plan_row(plan, r, i);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        if (!t->frozen) continue;
        PlanRow *row = &rows[n++];
        snprintf(row->name, sizeof row->name, "%s", t->name);
        snprintf(row->rule, sizeof row->rule, "frozen");
        snprintf(row->shape, sizeof row->shape, "%d x %d x %d", t->layers, t->rows, t->cols);
    }
    for (int i = 0; i < n; i++) {
        name = max_int(name, (int)strlen(rows[i].name));
        rule = max_int(rule, (int)strlen(rows[i].rule));
        shape = max_int(shape, (int)strlen(rows[i].shape));
    }
    for (int i = 0; i < n; i++) {
        fprintf(out, "%-*s  %-*s  %*s", name, rows[i].name, rule, rows[i].rule, shape,
                rows[i].shape);
        if (!i) fprintf(out, " %8s %6s", "lr", "decay");
        if (rows[i].has_rate) fprintf(out, " %8.4g %6.4g", rows[i].lr, rows[i].weight_decay);
        fputc('\n', out);
    }
}

/* Adds "RULE on MATRICES" to a list of rules. */
static inline void plan_title_add(char *text, size_t size, const char *rule, const char *also,
                                  const char *matrices) {
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s%s on %s", used ? ", " : "", rule, also, matrices);
}

/* Writes the rules of a run. */
static inline void plan_title(char *text, size_t size, const Config *c) {
    unsigned products = c->low_rank ? c->factored : 0;
    unsigned qkv = 1u << LINEAR_QKV, o = 1u << LINEAR_O, mlp = 1u << LINEAR_FC | 1u << LINEAR_PROJ;
    text[0] = 0;
    if (c->lora_rank) {
        plan_title_add(text, size, rule_table[c->lora].title, "", "the adapters");
        return;
    }
    if (products) plan_title_add(text, size, rule_table[c->lora].title, "", "the products");
    if (!(products & qkv)) plan_title_add(text, size, rule_table[c->qk].title, "", "W_Q W_K");
    if ((products & (qkv | o)) != (qkv | o))
        plan_title_add(text, size, rule_table[c->ov].title,
                       c->optim.circuit ? " and Circuit-Muon" : "",
                       products & qkv ? "W_O"
                       : products & o ? "W_V"
                                      : "W_O W_V");
    if ((products & mlp) != mlp)
        plan_title_add(text, size, rule_table[c->mlp].title, "", "the MLPs");
    if (c->embed != RULE_ADAMW)
        plan_title_add(text, size, rule_table[c->embed].title, "", "the embeddings");
    if (!c->tied && c->head != RULE_ADAMW && !(products >> LINEAR_HEAD & 1))
        plan_title_add(text, size, rule_table[c->head].title, "", "the head");
    plan_title_add(text, size, rule_table[RULE_ADAMW].title, "", "the rest");
}

/* Name and part of leg number `index`, counted over all entries. Returns 0 past the last. */
static inline int plan_group(const Plan *plan, int index, const char **name, Part *part) {
    for (int i = 0; i < plan->n; i++) {
        const PlanEntry *e = &plan->e[i];
        if (index < e->legs) {
            *name = e->name[index];
            *part = e->part[index];
            return 1;
        }
        index -= e->legs;
    }
    return 0;
}

/* Copies what is updated of the parameters p to `before`, which is laid out as SLOT_GRAD, where
   plan_groups_members reads it. */
static inline void plan_groups_keep(const Plan *plan, const Registry *r, floatM *p,
                                    floatM *before) {
    const char *name;
    Part part;
    for (int i = 0; plan_group(plan, i, &name, &part); i++)
        la_copy(part_slot(r, part, SLOT_GRAD, before), part_view(r, part, p));
}

/* Writes what an update did as members of a JSON object, one for each tensor:

       "W_Q": {"update_rms": 0.0011, "effective_lr": 0.021}, ...

   update_rms is ||dW||_F / sqrt(n), where dW = p - before in all layers is the whole change,
   learning rate and weight decay included. effective_lr, for matrices of the blocks, is the
   learning rate at which plain Muon (a matrix sign without shape factor, whose RMS is
   1 / sqrt(max(rows, cols))) takes a step of equal RMS. `before`, of plan_groups_keep, is
   overwritten by dW. */
static inline void plan_groups_members(FILE *out, const Plan *plan, const Registry *r, floatM *p,
                                       floatM *before) {
    const char *name;
    Part part;
    for (int i = 0; plan_group(plan, i, &name, &part); i++) {
        Role role = r->t[part.id].role;
        Mat W = part_view(r, part, p), D = part_slot(r, part, SLOT_GRAD, before);
        double sum = 0;
        la_axpby(D, 1, W, -1);
        for (int l = 0; l < D.n0; l++)
            sum += la_sum_squares(mat_item(D, l), (size_t)D.rows * (size_t)D.cols);
        double rms = sqrt(sum / (double)mat_size(D));
        fprintf(out, "%s\"%s\": {\"update_rms\": %.6g", i ? ", " : "", name, rms);
        if (role_is_block(role))
            fprintf(out, ", \"effective_lr\": %.6g", rms * sqrt((double)max_int(W.rows, W.cols)));
        fputc('}', out);
    }
}

#endif
