/*
The tensor registry: one table, built from the config, with a row per parameter tensor. Tensors of
one name are stacked over the layers, (L, rows, cols). Initialisation, the update plan, weight
decay, checkpoints, statistics, memory reports and the names in tests come from this table; no code
knows a tensor by number.

A tensor has a slot in each of several allocations: its parameters, the layers' working copy of
them, its gradient and its first moment. A slot may be absent (a frozen tensor has no gradient and
no moment), and it may hold only some of the layers (a shard).
*/
#ifndef CM_PARAMS_H
#define CM_PARAMS_H

#include "base.h"
#include "factored.h"

typedef enum {
    T_WTE,
    T_WPE,
    T_NORM0_W,
    T_NORM0_B,
    T_NORM1_W,
    T_NORM1_B,
    T_WQKV,
    T_BQKV,
    T_WO,
    T_BO,
    T_NORM2_W,
    T_NORM2_B,
    T_WFC,
    T_BFC,
    T_WPROJ,
    T_BPROJ,
    T_NORMF_W,
    T_NORMF_B,
    T_WHEAD,
    T_BHEAD,
    T_WQKV_UP,
    T_WQKV_DOWN,
    T_WO_UP,
    T_WO_DOWN,
    T_WFC_UP,
    T_WFC_DOWN,
    T_WPROJ_UP,
    T_WPROJ_DOWN,
    T_WHEAD_UP,
    T_WHEAD_DOWN,
    TENSORS
} TensorId;

/* ROLE_FACTOR: A or B^T of a linear layer with factors (factored.h). */
typedef enum { ROLE_EMBED, ROLE_HEAD, ROLE_SCALAR, ROLE_QKV, ROLE_O, ROLE_MLP, ROLE_FACTOR } Role;

/* The tensors of a linear layer. A tied head reads wte in place of whead. */
typedef struct {
    TensorId weight, bias, up, down;
} LinearTensors;
static const LinearTensors linear_tensors[LINEARS] = {
    {T_WQKV, T_BQKV, T_WQKV_UP, T_WQKV_DOWN},     {T_WO, T_BO, T_WO_UP, T_WO_DOWN},
    {T_WFC, T_BFC, T_WFC_UP, T_WFC_DOWN},         {T_WPROJ, T_BPROJ, T_WPROJ_UP, T_WPROJ_DOWN},
    {T_WHEAD, T_BHEAD, T_WHEAD_UP, T_WHEAD_DOWN},
};

typedef enum {
    SLOT_PARAM,  /* floatM: the parameters themselves */
    SLOT_WEIGHT, /* floatX: what the layers read; laid out as SLOT_PARAM */
    SLOT_GRAD,   /* floatM */
    SLOT_MOMENT, /* floatM: first moments */
    SLOT_EMA,    /* floatM: averages of the weights, of those that the readout blends */
    SLOTS
} SlotId;

/* A tensor's place in one allocation: layers [first, first + layers), one after the other from
   element `at` on. layers 0: the allocation holds nothing of the tensor. */
typedef struct {
    size_t at;
    int first, layers;
} Slot;

typedef struct {
    const char *name;
    Role role;
    int layers; /* stacked (layers, rows, cols); layers 0: this model has no such tensor */
    int rows, cols;
    size_t size; /* layers rows cols */
    int frozen;  /* 1: training leaves the tensor as it is */
    int of_base; /* 1: of the weights that adapters are trained beside; no checkpoint has it */
    Slot slot[SLOTS];
    double init_mean, init_std;
    double init_bound; /* above 0: uniform from -bound to bound */
    int used_rows;     /* rows of the vocabulary; those past it are padding and stay zero */
} Tensor;

typedef struct {
    Tensor t[TENSORS];
    size_t size[SLOTS]; /* elements of each allocation; every tensor starts at a multiple of 64 */
    size_t count;       /* parameters: without alignment and without the vocabulary's padding */
    size_t adapters;    /* those of them that are adapters' */
} Registry;

/* A registry and the memory that its slots lie in. Pointers are to device memory; without training
   only param and weight are set. */
typedef struct {
    Registry r;
    floatM *param, *grad, *moment; /* the allocations of SLOT_PARAM, SLOT_GRAD, SLOT_MOMENT */
    floatX *weight;                /* of SLOT_WEIGHT: param itself where floatX is floatM */
    floatM *state;                 /* further state of the rules, laid out by the plan */
    floatM *ema;                   /* of SLOT_EMA; NULL without --ema-from */
    int ema_live;                  /* 1: the averages have begun */
    floatM *before; /* with --log-groups: what is trained, before the update, laid out as the
                       gradients; else NULL */
} Params;

/* Elements of one layer. */
static inline size_t layer_size(const Tensor *t) { return (size_t)t->rows * t->cols; }

/* Elements of a tensor that a slot holds. */
static inline size_t slot_size(const Tensor *t, SlotId slot) {
    return (size_t)t->slot[slot].layers * layer_size(t);
}

/* Sets *at to the element where layer l begins in the allocation of a slot and returns 1; returns 0
   if the slot does not hold that layer. */
static inline int slot_find(const Tensor *t, SlotId slot, int l, size_t *at) {
    const Slot *s = &t->slot[slot];
    if (l < s->first || l >= s->first + s->layers) return 0;
    *at = s->at + (size_t)(l - s->first) * layer_size(t);
    return 1;
}

/* Layer l of a tensor in the allocation `base` of a slot; NULL if the slot does not hold it, which
   a layer takes for "no bias" or "no gradient wanted". */
static inline floatM *slot_pointer(const Tensor *t, SlotId slot, int l, floatM *base) {
    size_t at;
    return base && slot_find(t, slot, l, &at) ? base + at : NULL;
}

/* Gives every slot its place, from the layers that each of them holds. */
static inline void registry_layout(Registry *r) {
    for (int slot = 0; slot < SLOTS; slot++) {
        r->size[slot] = 0;
        for (int id = 0; id < TENSORS; id++) {
            r->t[id].slot[slot].at = r->size[slot];
            r->size[slot] += (slot_size(&r->t[id], (SlotId)slot) + 63) / 64 * 64;
        }
    }
}

/* How far down the backward pass goes, because something is trained there: to the head; to the last
   norm; through all blocks to the queries, keys and values of the first; or to the embedding. */
typedef enum { REACH_HEAD, REACH_NORM, REACH_BLOCKS, REACH_EMBED } Reach;

/* Where a tensor's gradient is made. */
static inline Reach tensor_reach(TensorId id) {
    switch (id) {
    case T_WTE:
    case T_WPE:
    case T_NORM0_W:
    case T_NORM0_B:
    case T_NORM1_W: /* of the first block too */
    case T_NORM1_B: return REACH_EMBED;
    case T_WQKV:
    case T_BQKV:
    case T_WO:
    case T_BO:
    case T_NORM2_W:
    case T_NORM2_B:
    case T_WFC:
    case T_BFC:
    case T_WPROJ:
    case T_BPROJ:
    case T_WQKV_UP:
    case T_WQKV_DOWN:
    case T_WO_UP:
    case T_WO_DOWN:
    case T_WFC_UP:
    case T_WFC_DOWN:
    case T_WPROJ_UP:
    case T_WPROJ_DOWN: return REACH_BLOCKS;
    case T_NORMF_W:
    case T_NORMF_B: return REACH_NORM;
    case T_WHEAD:
    case T_BHEAD:
    case T_WHEAD_UP:
    case T_WHEAD_DOWN:
    case TENSORS: return REACH_HEAD;
    }
    return REACH_HEAD;
}

/* How far down the backward pass of a model goes. */
static inline Reach backward_reach(const Registry *r) {
    Reach reach = REACH_HEAD;
    for (int id = 0; id < TENSORS; id++)
        if (r->t[id].slot[SLOT_GRAD].layers && tensor_reach((TensorId)id) > reach)
            reach = tensor_reach((TensorId)id);
    return reach;
}

static inline void registry_add(Registry *r, TensorId id, const char *name, Role role, int layers,
                                int rows, int cols, double mean, double std) {
    Tensor *t = &r->t[id];
    t->name = name;
    t->role = role;
    t->layers = layers;
    t->rows = t->used_rows = rows;
    t->cols = cols;
    t->size = (size_t)layers * rows * cols;
    t->init_mean = mean;
    t->init_std = std;
    for (int slot = 0; slot < SLOTS; slot++) t->slot[slot].layers = slot == SLOT_EMA ? 0 : layers;
    r->count += t->size;
}

/* The share of the average E of the weights W in what validation and generation read,
   (1 - share) W + share E. */
static inline double readout_blend(const Config *c, Role role) {
    switch (role) {
    case ROLE_EMBED: return c->ema_blend_embed;
    case ROLE_HEAD: return c->ema_blend_head;
    case ROLE_SCALAR: return c->ema_blend_scalar;
    case ROLE_QKV:
    case ROLE_O:
    case ROLE_MLP:
    case ROLE_FACTOR: return c->ema_blend;
    }
    return 0;
}

/* Whether a role is that of the blocks' matrices, or of their factors. */
static inline int role_is_block(Role role) {
    switch (role) {
    case ROLE_QKV:
    case ROLE_O:
    case ROLE_MLP:
    case ROLE_FACTOR: return 1;
    case ROLE_EMBED:
    case ROLE_HEAD:
    case ROLE_SCALAR: return 0;
    }
    return 0;
}

/* Takes from a tensor what only training needs. */
static inline void tensor_freeze(Tensor *t) {
    t->frozen = 1;
    t->slot[SLOT_GRAD].layers = t->slot[SLOT_MOMENT].layers = t->slot[SLOT_EMA].layers = 0;
}

/* Adds the factors of the linear layers that have some. In place of a whole matrix (--low-rank) the
   matrix goes; beside one (--lora-rank) all tensors but the adapters are frozen. */
static inline void registry_add_factors(Registry *r, const Config *c) {
    static const char *const names[LINEARS][2] = {{"wqkv_up", "wqkv_down"},
                                                  {"wo_up", "wo_down"},
                                                  {"wfc_up", "wfc_down"},
                                                  {"wproj_up", "wproj_down"},
                                                  {"whead_up", "whead_down"}};
    for (int id = 0; id < TENSORS && c->lora_rank; id++) {
        if (!r->t[id].layers) continue;
        tensor_freeze(&r->t[id]);
        r->t[id].of_base = 1;
    }
    size_t before = r->count;
    for (int i = 0; i < LINEARS; i++) {
        Linear f = linear_of(c, (LinearId)i);
        const LinearTensors *t = &linear_tensors[i];
        if (!f.rank) continue;
        TensorId whole = i == LINEAR_HEAD && c->tied ? T_WTE : t->weight;
        int layers = i == LINEAR_HEAD ? 1 : c->layers;
        double std = r->t[whole].init_std;
        registry_add(r, t->up, names[i][0], ROLE_FACTOR, layers, f.O, f.rank, 0, std);
        registry_add(r, t->down, names[i][1], ROLE_FACTOR, layers, linear_rank(&f), f.I, 0, std);
        r->t[t->up].used_rows = f.used_rows;
        r->count -= (size_t)(f.O - f.used_rows) * f.rank;
        if (!c->low_rank) continue;
        r->count -= (size_t)r->t[whole].layers * r->t[whole].used_rows * r->t[whole].cols;
        memset(&r->t[whole], 0, sizeof r->t[whole]);
    }
    if (c->lora_rank) r->adapters = r->count - before;
}

/* The registry of a resolved config, with nothing frozen. The rows (NH + 2 NKV) HS of W_QKV are
   those of all query heads, then of the key heads, then of the value heads. A gated W_FC holds F
   rows of the gate, then F rows of what it gates. Vectors are (L, 1, C). */
static inline Registry registry_build(const Config *c) {
    Registry r;
    memset(&r, 0, sizeof r);
    Shape s = shape_of(c);
    int L = s.L, C = s.C, Vp = s.Vp, biased = norm_has_bias((NormKind)c->norm);
    int speedrun = init_zeroes_outputs((InitKind)c->init);
    double from_stream = speedrun ? sqrt(0.33 / C) : c->init_std;    /* matrices that read it */
    double to_stream = speedrun ? 0.0 : c->init_std / sqrt(2.0 * L); /* matrices that write to it */
    registry_add(&r, T_WTE, "wte", ROLE_EMBED, 1, Vp, C, 0,
                 speedrun && !c->tied ? 1.0 : c->init_std);
    if (pos_is_table((PosKind)c->pos))
        registry_add(&r, T_WPE, "wpe", ROLE_EMBED, 1, s.T, C, 0, c->init_std);
    if (c->embed_norm) {
        registry_add(&r, T_NORM0_W, "norm0_w", ROLE_SCALAR, 1, 1, C, 1, 0);
        if (biased) registry_add(&r, T_NORM0_B, "norm0_b", ROLE_SCALAR, 1, 1, C, 0, 0);
    }
    registry_add(&r, T_NORM1_W, "norm1_w", ROLE_SCALAR, L, 1, C, 1, 0);
    if (biased) registry_add(&r, T_NORM1_B, "norm1_b", ROLE_SCALAR, L, 1, C, 0, 0);
    registry_add(&r, T_WQKV, "wqkv", ROLE_QKV, L, s.QKV, C, 0, from_stream);
    if (c->biases) registry_add(&r, T_BQKV, "bqkv", ROLE_SCALAR, L, 1, s.QKV, 0, 0);
    registry_add(&r, T_WO, "wo", ROLE_O, L, C, s.A, 0, to_stream);
    if (c->biases) registry_add(&r, T_BO, "bo", ROLE_SCALAR, L, 1, C, 0, 0);
    registry_add(&r, T_NORM2_W, "norm2_w", ROLE_SCALAR, L, 1, C, 1, 0);
    if (biased) registry_add(&r, T_NORM2_B, "norm2_b", ROLE_SCALAR, L, 1, C, 0, 0);
    registry_add(&r, T_WFC, "wfc", ROLE_MLP, L, s.H, C, 0, from_stream);
    if (c->biases) registry_add(&r, T_BFC, "bfc", ROLE_SCALAR, L, 1, s.H, 0, 0);
    registry_add(&r, T_WPROJ, "wproj", ROLE_MLP, L, C, s.F, 0, to_stream);
    if (c->biases) registry_add(&r, T_BPROJ, "bproj", ROLE_SCALAR, L, 1, C, 0, 0);
    registry_add(&r, T_NORMF_W, "normf_w", ROLE_SCALAR, 1, 1, C, 1, 0);
    if (biased) registry_add(&r, T_NORMF_B, "normf_b", ROLE_SCALAR, 1, 1, C, 0, 0);
    if (!c->tied)
        registry_add(&r, T_WHEAD, "whead", ROLE_HEAD, 1, Vp, C, 0, speedrun ? 0 : c->init_std);
    if (c->head_bias) registry_add(&r, T_BHEAD, "bhead", ROLE_SCALAR, 1, 1, Vp, 0, 0);
    r.t[T_WTE].used_rows = s.V;
    r.count -= (size_t)(Vp - s.V) * C;
    if (!c->tied) {
        r.t[T_WHEAD].used_rows = s.V;
        r.count -= (size_t)(Vp - s.V) * C;
    }
    if (c->head_bias) r.count -= (size_t)(Vp - s.V);
    if (c->init == INIT_TORCH)
        for (int i = 0; i < 4; i++) {
            static const TensorId uniform[] = {T_WQKV, T_BQKV, T_WFC, T_BFC};
            r.t[uniform[i]].init_bound = 1 / sqrt((double)C);
        }
    registry_add_factors(&r, c);
    for (int id = 0; id < TENSORS; id++)
        if (c->ema_from && readout_blend(c, r.t[id].role) > 0 && !r.t[id].frozen)
            r.t[id].slot[SLOT_EMA].layers = r.t[id].layers;
    registry_layout(&r);
    return r;
}

/* Freezes the tensor whose name is the first `length` characters of `name`. */
static inline int registry_freeze_one(Registry *r, const char *name, int length, char *err) {
    char known[TENSORS * 16] = "";
    for (int id = 0; id < TENSORS; id++) {
        Tensor *t = &r->t[id];
        if (!t->layers) continue;
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", t->name);
        if ((int)strlen(t->name) != length || strncmp(t->name, name, (size_t)length)) continue;
        tensor_freeze(t);
        return 0;
    }
    return fail(err, "--freeze: this model has no tensor \"%.*s\"; it has %s", min_int(length, 80),
                name, known);
}

/* Freezes the tensors of a comma-separated list: they lose their gradients and moments. Returns 0,
   or -1 with a message if the model has no tensor of a name. */
static inline int registry_freeze(Registry *r, const char *names, char *err) {
    while (*names) {
        int length = (int)strcspn(names, ",");
        if (registry_freeze_one(r, names, length, err)) return -1;
        names += length + (names[length] == ',');
    }
    registry_layout(r);
    return 0;
}

/* Fills `to` with the initial factors of linear layer `id`. Returns -1 without memory. */
static inline int params_init_factors(const Registry *r, const Config *c, LinearId id,
                                      floatM *param) {
    Linear f = linear_of(c, id);
    const Tensor *up = &r->t[linear_tensors[id].up], *down = &r->t[linear_tensors[id].down];
    floatM *A = param + up->slot[SLOT_PARAM].at, *B = param + down->slot[SLOT_PARAM].at;
    for (int l = 0; l < up->layers; l++)
        for (int p = 0; p < f.parts; p++) {
            floatM *a = A + (size_t)l * layer_size(up) + (size_t)f.first[p] * f.rank;
            floatM *b = B + (size_t)l * layer_size(down) + (size_t)p * f.rank * f.I;
            if (factors_begin(a, b, f.rows[p], f.I, c, up->init_std, WORD_OF(LINEAR_LAYERS, id),
                              l * f.parts + p))
                return -1;
        }
    return 0;
}

/* Fills host memory, r.size[SLOT_PARAM] elements, with the initial parameters of a config. Returns
   -1 without memory. */
static inline int params_init(const Registry *r, const Config *c, floatM *param) {
    uint64_t seed = (uint64_t)c->seed;
    memset(param, 0, r->size[SLOT_PARAM] * sizeof *param);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        floatM *to = param + t->slot[SLOT_PARAM].at;
        uint64_t stream = rng_stream(t->name ? t->name : "");
        if (t->role == ROLE_FACTOR || t->of_base) continue; /* the base has its own */
        /* Only tensors of one layer have padding, so that it lies at the end. */
        size_t used = (size_t)t->used_rows * t->cols * t->layers;
#pragma omp parallel for
        for (size_t i = 0; i < used; i++) {
            double value = t->init_mean;
            if (t->init_bound > 0) value = t->init_bound * (2 * rng_uniform(seed, stream, i) - 1);
            else if (t->init_std > 0) value += t->init_std * rng_normal(seed, stream, i);
            to[i] = (floatM)value;
        }
    }
    for (int id = 0; id < LINEARS; id++)
        if (c->factored >> id & 1 && params_init_factors(r, c, (LinearId)id, param)) return -1;
    return 0;
}

#endif
