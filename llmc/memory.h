/*
The memory of a model: where activations lie, how many bytes a model takes, allocation and initial
parameters. Included by train_gpt.c after the Model and the list of its activations.
*/
#ifndef CM_MEMORY_H
#define CM_MEMORY_H

#include "rope.h"

/* ---------------------------------------------------------------------------------------------- */
/* activations */

/* How many copies of an activation a model has. */
static size_t kept_copies(Keep keep, const Config *c, int training) {
    size_t L = (size_t)c->layers;
    switch (keep) {
    case KEEP_STREAM: return L + 1;
    case KEEP_UNLESS_BLOCK: return c->recompute < RECOMPUTE_BLOCK ? L : 1;
    case KEEP_UNLESS_NORM: return c->recompute < RECOMPUTE_NORM ? L : 1;
    case KEEP_UNLESS_ACT: return c->recompute < RECOMPUTE_ACT ? L : 1;
    case KEEP_ONE: return 1;
    case KEEP_EMBED_NORM: return c->embed_norm != 0;
    case KEEP_BACKWARD: return training != 0;
    }
    return 0;
}

/* Points `a` to layer l's activations in an allocation at `base`, each of which begins at a
   multiple of 256 bytes, as cudaMalloc aligns. Returns the bytes of the allocation; with base NULL
   it only counts them. */
static size_t acts_view(Acts *a, const Config *c, Shape s, int rows, int training, char *base,
                        int l) {
    const size_t N = (size_t)s.N, C = (size_t)s.C, QKV = (size_t)s.QKV, A = (size_t)s.A;
    const size_t F = (size_t)s.F, H = (size_t)s.H, NH = (size_t)s.NH, NKV = (size_t)s.NKV;
    const size_t Vp = (size_t)s.Vp, R = (size_t)rows;
    size_t at = 0, copies, offset, rank[LINEARS], most_rank = 0;
    for (int i = 0; i < LINEARS; i++) {
        const Linear f = linear_of(c, (LinearId)i);
        rank[i] = (size_t)linear_rank(&f);
        if (rank[i] > most_rank) most_rank = rank[i];
    }
#define ACTIVATION_VIEW(TYPE, NAME, KEEP, ELEMENTS)                                                \
    copies = kept_copies(KEEP, c, training);                                                       \
    offset = at + (copies > 1 ? (size_t)l * (ELEMENTS) * sizeof(TYPE) : 0);                        \
    a->NAME = base ? (TYPE *)(void *)(base + offset) : NULL;                                       \
    at += (copies * (ELEMENTS) * sizeof(TYPE) + 255) / 256 * 256;
    ACTIVATIONS(ACTIVATION_VIEW)
#undef ACTIVATION_VIEW
    return at;
}

/* The activations of layer l. Of layer L there is only x. */
static Acts block_at(const Model *m, int l) {
    Acts a;
    acts_view(&a, m->c, m->s, m->R, m->training, (char *)m->acts_memory, l);
    return a;
}

/* ---------------------------------------------------------------------------------------------- */
/* bytes */

/* check_memory lowers the rows of logits in these steps: a whole number of tiles of a matrix
   product, and large enough to keep a GPU busy. */
enum { LOGIT_ROWS_STEP = 256 };

/* Whether the layers read a copy of the parameters, which has another type. */
static int has_copy(void) { return sizeof(floatX) != sizeof(floatM); }

/* Bytes of the cosines, and of the sines; 0 without rotary positions. */
static size_t rotary_bytes(const Config *c) {
    if (!pos_is_rotary((PosKind)c->pos)) return 0;
    return (size_t)c->seq_len * (size_t)(c->head_dim / 2) * sizeof(floatM);
}

/* Rows of logits formed at a time: --logit-rows, or the device's choice. */
static int logit_rows(const Config *c) {
    Shape s = shape_of(c);
    if (c->logit_rows) return min_int(c->logit_rows, s.N);
    return device_logit_rows(s.N, (size_t)s.Vp * sizeof(floatX));
}

/* Bytes of a model by purpose. */
static Memory model_memory(const Config *c, const Registry *r, const Plan *plan, int training) {
    Acts unused;
    Memory m;
    int R = logit_rows(c);
    memset(&m, 0, sizeof m);
    m.parameters = r->size[SLOT_PARAM] * sizeof(floatM);
    if (has_copy()) m.parameters += r->size[SLOT_WEIGHT] * sizeof(floatX);
    if (training) {
        m.gradients = r->size[SLOT_GRAD] * sizeof(floatM);
        m.optimizer = (r->size[SLOT_MOMENT] + plan->state_size + plan->arena_size) * sizeof(floatM);
        m.optimizer += r->size[SLOT_EMA] * sizeof(floatM);
        if (c->log_groups) m.optimizer += r->size[SLOT_GRAD] * sizeof(floatM);
    }
    m.activations = acts_view(&unused, c, shape_of(c), R, training, NULL, 0) + 2 * rotary_bytes(c);
    m.workspace = device_workspace(c, R, training);
    m.total = m.parameters + m.gradients + m.optimizer + m.activations + m.workspace;
    return m;
}

/* Refuses a run that the device has too little memory for, and names the largest batch that fits.
   Before it refuses, it tries fewer rows of logits at a time, unless --logit-rows was given. */
static int check_memory(Config *c, const Registry *r, const Plan *plan, char *err) {
    double room = (double)device_memory_free();
    Config smaller = *c;
    Memory need = model_memory(c, r, plan, 1);
    if (room == 0 || (double)need.total <= room) return 0; /* 0: the device does not report it */
    while (!c->logit_rows && logit_rows(&smaller) >= 2 * LOGIT_ROWS_STEP) {
        smaller.logit_rows = logit_rows(&smaller) / 2 / LOGIT_ROWS_STEP * LOGIT_ROWS_STEP;
        if ((double)model_memory(&smaller, r, plan, 1).total > room) continue;
        c->logit_rows = smaller.logit_rows;
        print_line(stdout, "memory", "is short: logits are formed %d rows at a time",
                   c->logit_rows);
        return 0;
    }
    while (smaller.batch_size > 0 && (double)model_memory(&smaller, r, plan, 1).total > room)
        smaller.batch_size--;
    return refuse_memory(c, need, room, smaller.batch_size, err);
}

/* ---------------------------------------------------------------------------------------------- */
/* allocation */

/* Allocates the slots of m.p.r, the plan's state and scratch. Returns -1 without memory. */
static int params_create(Model *m) {
    Params *p = &m->p;
    const size_t *size = p->r.size;
    p->param = (floatM *)device_alloc(size[SLOT_PARAM] * sizeof(floatM));
    p->weight = (floatX *)(void *)p->param;
    if (has_copy()) p->weight = (floatX *)device_alloc(size[SLOT_WEIGHT] * sizeof(floatX));
    if (!p->param || !p->weight) return -1;
    if (!m->training) return 0;
    p->grad = (floatM *)device_alloc(size[SLOT_GRAD] * sizeof(floatM));
    p->moment = (floatM *)device_alloc(size[SLOT_MOMENT] * sizeof(floatM));
    p->state = (floatM *)device_alloc(m->plan.state_size * sizeof(floatM));
    m->arena.p = (floatM *)device_alloc(m->plan.arena_size * sizeof(floatM));
    m->arena.size = m->plan.arena_size;
    if (!p->grad || !p->moment || !p->state || !m->arena.p) return -1;
    if (size[SLOT_EMA]) {
        p->ema = (floatM *)device_alloc(size[SLOT_EMA] * sizeof(floatM));
        if (!p->ema) return -1;
    }
    if (!m->c->log_groups) return 0;
    p->before = (floatM *)device_alloc(size[SLOT_GRAD] * sizeof(floatM));
    return p->before ? 0 : -1;
}

/* Allocates and fills the rotary angles. Returns -1 without memory. */
static int rotary_create(Model *m) {
    const Config *c = m->c;
    size_t n = rotary_bytes(c);
    if (!n) return 0;
    floatM *cosine = (floatM *)malloc(n), *sine = (floatM *)malloc(n);
    m->cosine = (floatM *)device_alloc(n);
    m->sine = (floatM *)device_alloc(n);
    int complete = cosine && sine && m->cosine && m->sine;
    if (complete) {
        rope_table(cosine, sine, c->seq_len, c->head_dim, c->pos, c->rope_base);
        device_upload(m->cosine, cosine, n);
        device_upload(m->sine, sine, n);
    }
    free(cosine);
    free(sine);
    return complete ? 0 : -1;
}

/* Allocates a model from a resolved config, which must outlive the model, and from the config's
   registry and plan. Parameters are zero. training 0: forward only. Returns 0, or -1 with a
   message. */
static int model_create(Model *m, const Config *c, const Registry *r, const Plan *plan,
                        int training, char *err) {
    memset(m, 0, sizeof *m);
    m->c = c;
    m->s = shape_of(c);
    m->R = logit_rows(c);
    m->training = training;
    m->p.r = *r;
    m->plan = *plan;
    Memory need = model_memory(c, r, plan, training);
    m->acts_bytes = need.activations - 2 * rotary_bytes(c);
    m->acts_memory = device_alloc(m->acts_bytes);
    if (!m->acts_memory || params_create(m) || device_reserve(need.workspace) || rotary_create(m))
        return device_check(err) ? -1 : refuse_allocation(need, err);
    m->a = block_at(m, 0);
    return 0;
}

/* Frees what model_create and generate's cache_create allocated. */
static void model_free(Model *m) {
    void *const memory[] = {m->p.param, m->p.grad,   m->p.moment,    m->p.state,
                            m->p.ema,   m->p.before, m->arena.p,     m->cosine,
                            m->sine,    m->keys,     m->acts_memory, m->values};
    if (has_copy()) device_free(m->p.weight);
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) device_free(memory[i]);
    for (int i = 0; i < 2; i++) device_graph_free(&m->graph[i]);
    memset(m, 0, sizeof *m);
}

/* Sets the layers' copy to the parameters. */
static void refresh_weights(Model *m) {
    if (has_copy()) cast_weights(m->p.weight, m->p.param, m->p.r.size[SLOT_PARAM]);
}

/* Sets the initial parameters of the config's seed. Without memory returns -1 with a message. */
static int model_init(Model *m, char *err) {
    size_t bytes = m->p.r.size[SLOT_PARAM] * sizeof(floatM);
    floatM *host = (floatM *)malloc(bytes);
    if (!host) return fail(err, "out of memory: initial parameters");
    int status = params_init(&m->p.r, m->c, host);
    if (!status) device_upload(m->p.param, host, bytes);
    free(host);
    if (status) return fail(err, "out of memory: initial parameters");
    refresh_weights(m);
    return 0;
}

#endif
