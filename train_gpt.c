/*
GPT pretraining in plain C, forward and backward by hand. Read it top to bottom:

    model        parameters, activations and their memory
    forward      tokens -> loss
    backward     loss -> gradients
    update       gradients -> parameters, by the plan (CM, Muon, AdamW)
    validation, checkpoints, the loop, main

What a machine is good at stands in the backend's headers (llmc/cpu, llmc/cuda); this file is the same
for all. On a GPU all work is queued and done in order; the program waits where it reads a result.
Shapes: B sequences, T tokens each, N = B T, C width, L layers, NH query heads and NKV key/value heads
of width HS, A = NH HS, F MLP width, V vocabulary, Vp = V padded to a multiple of 64.
*/
#ifndef BACKEND_READY
#include "llmc/cpu/backend.h"
#endif
#include <signal.h>
#include <unistd.h>

#include "llmc/checkpoint.h"
#include "llmc/config.h"
#include "llmc/data.h"
#include "llmc/guard.h"
#include "llmc/log.h"
#include "llmc/optim/plan.h"
#include "llmc/params.h"
#include "llmc/progress.h"
#include "llmc/schedule.h"

#ifndef CM_VERSION
#define CM_VERSION "unknown" /* the Makefile passes what the file VERSION says */
#endif

/* ---------------------------------------------------------------------------------------------- */
/* model */

/* What the forward pass keeps for the backward pass, and what the backward pass works in. Tensors of
   all layers are stacked, but --recompute makes the layers share some, which block_at knows. One
   allocation; acts_layout is the only place that knows the sizes. */
typedef struct {
    floatX *embed;                 /* (N,C) before the embedding's norm, if it has one */
    floatX *x;                     /* (L+1,N,C) the residual stream before each block */
    floatX *mid;                   /* (L,N,C) the stream between attention and MLP */
    floatX *norm1, *norm2, *normf; /* (L,N,C), (L,N,C), (N,C) */
    floatX *qkv;                   /* (L,N,(NH+2NKV)HS), queries and keys normed and rotated */
    floatX *att;                   /* (L,N,A) */
    floatX *fc, *act;              /* (L,N,F or 2F), (L,N,F) */
    floatM *mean0, *rstd0, *mean1, *rstd1, *mean2, *rstd2, *meanf, *rstdf; /* (N) or (L,N) */
    floatM *qk_rstd, *lse; /* (L,N,NH+NKV), (L,B,NH,T) */
    floatM *losses;        /* (N) */
    double *loss_sum;      /* of the batches since take_loss */
    floatX *logits;        /* (R,Vp), R rows at a time */
    floatX *branch;        /* (N,C) what a block adds to the stream, and its gradient */
    floatX *dx, *dnorm, *dqkv, *datt, *dfc, *dact; /* gradients of one layer */
    int *tokens, *targets;                         /* (B,T); tokens in the backend's form */
} Acts;

typedef struct {
    Config c;
    Registry r;
    Plan plan;
    int B, T, R;           /* largest batch, sequence length, rows of logits at a time */
    int fresh;             /* 1: weight gradients of matrices are set, not added to */
    floatM *p, *g, *m, *v; /* parameters, gradients, first moments, the plan's further state */
    floatM *before;        /* with --log-groups the parameters before the update, else NULL */
    floatX *w;             /* parameters as the layers read them: p itself when floatX is floatM */
    void *acts_memory, *arena_memory;
    size_t acts_bytes;
    Acts a;
    Arena arena;
    floatM *cosine, *sine; /* (T,HS/2), NULL without rotary positions */
    DeviceGraph
        graph[2]; /* the work of a micro-batch, where the device can replay it: one that adds to
                                 weight gradients, and one that sets them */
} Model;

/* Lays the activations out from base and returns their bytes; with base NULL it only counts. */
static size_t acts_layout(Acts *a, const Config *c, int B, int R, char *base, int training) {
    size_t L = (size_t)c->layers, T = (size_t)c->seq_len, N = (size_t)B * T, C = (size_t)c->width;
    size_t NH = (size_t)c->heads, NKV = (size_t)c->kv_heads, HS = (size_t)c->head_dim, A = NH * HS;
    size_t QKV = (NH + 2 * NKV) * HS, F = (size_t)c->ff_width, H = c->act == ACT_SWIGLU ? 2 * F : F;
    size_t Vp = (size_t)round_up(c->vocab, 64), at = 0, bwd = training ? 1 : 0;
    size_t all = c->recompute < RECOMPUTE_BLOCK ? L : 1; /* layers that keep what they computed, */
    size_t norms = c->recompute < RECOMPUTE_NORM ? L : 1,
           acts = c->recompute < RECOMPUTE_ACT ? L : 1;
#define TAKE(FIELD, TYPE, COUNT)                                                                   \
    a->FIELD = base ? (TYPE *)(void *)(base + at) : NULL;                                          \
    at += ((COUNT) * sizeof(TYPE) + 255) / 256 * 256
    TAKE(embed, floatX, c->embed_norm ? N * C : 0);
    TAKE(x, floatX, (L + 1) * N * C);
    TAKE(mid, floatX, all * N * C);
    TAKE(norm1, floatX, norms * N * C);
    TAKE(norm2, floatX, norms * N * C);
    TAKE(normf, floatX, N * C);
    TAKE(qkv, floatX, all * N * QKV);
    TAKE(att, floatX, all * N * A);
    TAKE(fc, floatX, all * N * H);
    TAKE(act, floatX, acts * N * F);
    TAKE(mean0, floatM, N);
    TAKE(rstd0, floatM, N);
    TAKE(mean1, floatM, all * N);
    TAKE(rstd1, floatM, all * N);
    TAKE(mean2, floatM, all * N);
    TAKE(rstd2, floatM, all * N);
    TAKE(meanf, floatM, N);
    TAKE(rstdf, floatM, N);
    TAKE(qk_rstd, floatM, all * N * (NH + NKV));
    TAKE(lse, floatM, all * N * NH);
    TAKE(losses, floatM, N);
    TAKE(loss_sum, double, 1);
    TAKE(logits, floatX, (size_t)R * Vp);
    TAKE(branch, floatX, N * C);
    TAKE(dx, floatX, bwd * N * C);
    TAKE(dnorm, floatX, bwd * N * C);
    TAKE(dqkv, floatX, bwd * N * QKV);
    TAKE(datt, floatX, bwd * N * A);
    TAKE(dfc, floatX, bwd * N * H);
    TAKE(dact, floatX, bwd * N * F);
    TAKE(tokens, int, DEVICE_TOKENS(N));
    TAKE(targets, int, N);
#undef TAKE
    return at;
}

/* Bytes of the cosines, and of the sines; none without rotary positions. */
static size_t rotary_bytes(const Config *c) {
    if (c->pos != POS_ROPE && c->pos != POS_ROPE_HALF) return 0;
    return (size_t)c->seq_len * (size_t)(c->head_dim / 2) * sizeof(floatM);
}

/* Rows of logits at a time: --logit-rows, or as many as the device works well with. */
static int logit_rows(const Config *c) {
    int N = c->batch_size * c->seq_len;
    if (c->logit_rows) return min_int(c->logit_rows, N);
    return device_logit_rows(N, (size_t)round_up(c->vocab, 64) * sizeof(floatX));
}

typedef struct {
    size_t parameters, gradients, optimizer, activations, workspace, total;
} Memory;

/* Whether the layers read a copy of the parameters in a type of its own. */
static int has_copy(void) { return sizeof(floatX) != sizeof(floatM); }

/* Bytes of every purpose, from the config alone. */
static Memory model_memory(const Config *c, const Registry *r, const Plan *plan, int training) {
    Acts none;
    Memory m;
    int R = logit_rows(c);
    m.parameters = r->size * (sizeof(floatM) + (has_copy() ? sizeof(floatX) : 0));
    m.gradients = training ? r->size * sizeof(floatM) : 0;
    m.optimizer = training ? (r->size + plan->v_size + plan->arena_size) * sizeof(floatM) : 0;
    if (training && c->log_groups) m.optimizer += r->size * sizeof(floatM);
    m.activations = acts_layout(&none, c, c->batch_size, R, NULL, training);
    m.activations += 2 * rotary_bytes(c);
    m.workspace = device_workspace(c, R, training);
    m.total = m.parameters + m.gradients + m.optimizer + m.activations + m.workspace;
    return m;
}

/* Refuses a run that the device has no memory for, naming the largest batch that it has. Takes fewer rows of
   logits at a time before. */
static int check_memory(Config *c, const Registry *r, const Plan *plan, char *err) {
    double room = (double)device_memory_free();
    Config smaller = *c;
    Memory need = model_memory(c, r, plan, 1);
    if (room == 0 || (double)need.total <= room) return 0; /* 0: the device does not say */
    while (!c->logit_rows && logit_rows(&smaller) >= 512) {
        smaller.logit_rows = logit_rows(&smaller) / 2 / 256 * 256;
        if ((double)model_memory(&smaller, r, plan, 1).total > room) continue;
        c->logit_rows = smaller.logit_rows;
        printf("memory   is short: logits are formed %d rows at a time\n", c->logit_rows);
        return 0;
    }
    while (smaller.batch_size > 0 && (double)model_memory(&smaller, r, plan, 1).total > room)
        smaller.batch_size--;
    if (smaller.batch_size)
        return fail(
            err,
            "the run needs %.1f MB and the device has %.1f MB free: the largest --batch-size that "
            "fits is %d%s",
            need.total / 1e6, room / 1e6, smaller.batch_size,
            c->recompute < RECOMPUTE_BLOCK ? "; --recompute block makes room for more" : "");
    return fail(
        err,
        "the run needs %.1f MB and the device has %.1f MB free, which is too little for one "
        "sequence: parameters, gradients and optimizer state take %.1f MB%s",
        need.total / 1e6, room / 1e6, (need.parameters + need.gradients + need.optimizer) / 1e6,
        c->recompute < RECOMPUTE_BLOCK ? "; --recompute block makes room" : "");
}

/* Allocates a model of a resolved config; parameters are left zero. training 0: forward only. */
static int model_create(Model *m, const Config *c, int training, char *err) {
    memset(m, 0, sizeof *m);
    m->c = *c;
    m->r = registry_build(c);
    m->plan = plan_build(c, &m->r);
    m->B = c->batch_size;
    m->T = c->seq_len;
    m->R = logit_rows(c);
    Memory need = model_memory(c, &m->r, &m->plan, training);
    size_t bytes = m->r.size * sizeof(floatM);
    m->p = (floatM *)device_alloc(bytes);
    m->w = has_copy() ? (floatX *)device_alloc(m->r.size * sizeof(floatX)) : (floatX *)(void *)m->p;
    if (training) {
        m->g = (floatM *)device_alloc(bytes);
        m->m = (floatM *)device_alloc(bytes);
        m->v = (floatM *)device_alloc(m->plan.v_size * sizeof(floatM));
        m->arena_memory = device_alloc(m->plan.arena_size * sizeof(floatM));
        if (c->log_groups) m->before = (floatM *)device_alloc(bytes);
    }
    m->acts_bytes = need.activations - 2 * rotary_bytes(c);
    m->acts_memory = device_alloc(m->acts_bytes);
    if (!m->p || !m->w || !m->acts_memory || device_reserve(need.workspace) ||
        (training &&
         (!m->g || !m->m || !m->v || !m->arena_memory || (c->log_groups && !m->before))))
        return fail(err,
                    "out of memory: the run needs %.1f MB (parameters %.1f, gradients %.1f, "
                    "optimizer %.1f, activations %.1f); try a smaller --batch-size",
                    need.total / 1e6, need.parameters / 1e6, need.gradients / 1e6,
                    need.optimizer / 1e6, (need.activations + need.workspace) / 1e6);
    acts_layout(&m->a, c, m->B, m->R, (char *)m->acts_memory, training);
    m->arena.p = (floatM *)m->arena_memory;
    m->arena.size = m->plan.arena_size;
    if (rotary_bytes(c)) {
        size_t n = rotary_bytes(c);
        floatM *table = (floatM *)malloc(2 * n);
        m->cosine = (floatM *)device_alloc(n);
        m->sine = (floatM *)device_alloc(n);
        if (!table || !m->cosine || !m->sine) return fail(err, "out of memory: rotary table");
        rope_table(table, table + n / sizeof(floatM), c->seq_len, c->head_dim, c->pos,
                   c->rope_base);
        device_upload(m->cosine, table, n);
        device_upload(m->sine, table + n / sizeof(floatM), n);
        free(table);
    }
    return 0;
}

static void model_free(Model *m) {
    if (has_copy()) device_free(m->w);
    device_free(m->p);
    device_free(m->g);
    device_free(m->m);
    device_free(m->v);
    device_free(m->before);
    device_free(m->arena_memory);
    device_free(m->acts_memory);
    for (int i = 0; i < 2; i++) device_graph_free(&m->graph[i]);
    device_free(m->cosine);
    device_free(m->sine);
    memset(m, 0, sizeof *m);
}

/* Brings the layers' copy of the parameters up to date. */
static void refresh_weights(Model *m) {
    if (has_copy()) cast_weights(m->w, m->p, m->r.size);
}

/* Initial parameters of the config's seed. */
static void model_init(Model *m) {
    floatM *host = (floatM *)malloc(m->r.size * sizeof(floatM));
    if (!host) die("out of memory: initial parameters");
    params_init(&m->r, host, (uint64_t)m->c.seed);
    device_upload(m->p, host, m->r.size * sizeof(floatM));
    free(host);
    refresh_weights(m);
}

/* Tensor `id` of layer l: as the layers read it, as master copy, its gradient. NULL if absent. */
static const floatX *weight(const Model *m, TensorId id, int l) {
    const Tensor *t = &m->r.t[id];
    return t->layers ? m->w + t->offset + (size_t)l * t->rows * t->cols : NULL;
}
static floatM *master(const Model *m, TensorId id, int l) { return tensor_at(&m->r, m->p, id, l); }
static floatM *grad(const Model *m, TensorId id, int l) { return tensor_at(&m->r, m->g, id, l); }
static const floatX *head_weight(const Model *m) {
    return weight(m, m->c.tied ? T_WTE : T_WHEAD, 0);
}

/* ---------------------------------------------------------------------------------------------- */
/* forward */

/* One layer's place in the stacks. */
typedef struct {
    floatX *x, *mid, *norm1, *norm2, *qkv, *att, *fc, *act;
    floatM *mean1, *rstd1, *mean2, *rstd2, *qk_rstd, *lse;
} Block;

static Block block_at(const Model *m, int l) {
    const Config *c = &m->c;
    const Acts *a = &m->a;
    size_t C = (size_t)c->width, NH = (size_t)c->heads, NKV = (size_t)c->kv_heads,
           HS = (size_t)c->head_dim;
    size_t F = (size_t)c->ff_width, H = c->act == ACT_SWIGLU ? 2 * F : F;
    /* The layer's first row in the stacks; 0 in those that are computed again. */
    size_t n = (size_t)l * m->B * m->T, all = c->recompute < RECOMPUTE_BLOCK ? n : 0;
    size_t norms = c->recompute < RECOMPUTE_NORM ? n : 0,
           acts = c->recompute < RECOMPUTE_ACT ? n : 0;
    Block b;
    b.x = a->x + n * C, b.mid = a->mid + all * C;
    b.norm1 = a->norm1 + norms * C, b.norm2 = a->norm2 + norms * C;
    b.qkv = a->qkv + all * (NH + 2 * NKV) * HS, b.att = a->att + all * NH * HS;
    b.fc = a->fc + all * H, b.act = a->act + acts * F;
    b.mean1 = a->mean1 + all, b.rstd1 = a->rstd1 + all;
    b.mean2 = a->mean2 + all, b.rstd2 = a->rstd2 + all;
    b.qk_rstd = a->qk_rstd + all * (NH + NKV), b.lse = a->lse + all * NH;
    return b;
}

/* Layer l, from the stream before it to a.branch, what its MLP adds to the stream. The sum of the last
   block's middle and branch is formed on the way into the first norm. With `again`, of a layer computed
   before, b.x is there already, and the last product is not needed. */
static void block_forward(Model *m, int l, int B, int again) {
    const Config *c = &m->c;
    Acts *a = &m->a;
    Block b = block_at(m, l);
    int T = m->T, N = B * T, C = c->width, NH = c->heads, NKV = c->kv_heads, HS = c->head_dim;
    int A = NH * HS, QKV = (NH + 2 * NKV) * HS, F = c->ff_width;
    int first = again || l == 0;
    norm_forward(b.norm1, b.mean1, b.rstd1, b.x, first ? b.x : block_at(m, l - 1).mid,
                 first ? NULL : a->branch, master(m, T_NORM1_W, l), master(m, T_NORM1_B, l), N, C,
                 c->norm, c->norm_eps);
    linear_forward(b.qkv, b.norm1, weight(m, T_WQKV, l), weight(m, T_BQKV, l), N, C, QKV);
    qk_forward(b.qkv, b.qk_rstd, m->cosine, m->sine, N, T, 0, NH, NKV, HS, c->qk_norm, c->norm_eps);
    attention_forward(b.att, b.lse, b.qkv, B, T, NH, NKV, HS, c->attn_scale);
    linear_forward(a->branch, b.att, weight(m, T_WO, l), weight(m, T_BO, l), N, A, C);

    norm_forward(b.norm2, b.mean2, b.rstd2, b.mid, b.x, a->branch, master(m, T_NORM2_W, l),
                 master(m, T_NORM2_B, l), N, C, c->norm, c->norm_eps);
    linear_act_forward(b.act, b.fc, b.norm2, weight(m, T_WFC, l), weight(m, T_BFC, l), N, C, F,
                       c->act);
    if (!again)
        linear_forward(a->branch, b.act, weight(m, T_WPROJ, l), weight(m, T_BPROJ, l), N, F, C);
}

/* Computes again what --recompute did not keep of layer l: the same numbers to the bit. */
static void block_recompute(Model *m, int l, int B) {
    const Config *c = &m->c;
    Block b = block_at(m, l);
    int N = B * m->T, C = c->width;
    if (c->recompute == RECOMPUTE_BLOCK) {
        block_forward(m, l, B, 1);
        return;
    }
    if (c->recompute >= RECOMPUTE_NORM) {
        norm_forward(b.norm1, b.mean1, b.rstd1, NULL, b.x, NULL, master(m, T_NORM1_W, l),
                     master(m, T_NORM1_B, l), N, C, c->norm, c->norm_eps);
        norm_forward(b.norm2, b.mean2, b.rstd2, NULL, b.mid, NULL, master(m, T_NORM2_W, l),
                     master(m, T_NORM2_B, l), N, C, c->norm, c->norm_eps);
    }
    if (c->recompute >= RECOMPUTE_ACT)
        linear_act_again(b.act, b.fc, b.norm2, weight(m, T_WFC, l), weight(m, T_BFC, l), N, C,
                         c->ff_width, c->act);
}

/* From a.tokens (B,T) through the blocks to the normed stream a.normf (N,C). */
static void forward_pass(Model *m, int B) {
    const Config *c = &m->c;
    Acts *a = &m->a;
    int T = m->T, N = B * T, C = c->width, L = c->layers;
    embed_forward(c->embed_norm ? a->embed : a->x, a->tokens, weight(m, T_WTE, 0),
                  weight(m, T_WPE, 0), B, T, C);
    if (c->embed_norm)
        norm_forward(a->x, a->mean0, a->rstd0, NULL, a->embed, NULL, master(m, T_NORM0_W, 0),
                     master(m, T_NORM0_B, 0), N, C, c->norm, c->norm_eps);
    for (int l = 0; l < L; l++) block_forward(m, l, B, 0);
    norm_forward(a->normf, a->meanf, a->rstdf, a->x + (size_t)L * m->B * T * C,
                 block_at(m, L - 1).mid, a->branch, master(m, T_NORMF_W, 0),
                 master(m, T_NORMF_B, 0), N, C, c->norm, c->norm_eps);
}

/* Logits (rows,Vp) of rows [first, first + rows) of a.normf, before the softcap. */
static void forward_logits(Model *m, int first, int rows) {
    int C = m->c.width, Vp = round_up(m->c.vocab, 64);
    linear_forward(m->a.logits, m->a.normf + (size_t)first * C, head_weight(m),
                   weight(m, T_BHEAD, 0), rows, C, Vp);
}

/* The same of tokens (B,T), at most the model's B of them. */
static void forward(Model *m, const int *tokens, int B) {
    tokens_upload(m->a.tokens, tokens, B * m->T, round_up(m->c.vocab, 64));
    forward_pass(m, B);
}

/* Sends targets (B,T), -1 for none, to the device, and counts them. */
static void send_targets(Model *m, const int *targets, int B, int64_t *count) {
    int N = B * m->T;
    device_send(m->a.targets, targets, (size_t)N * sizeof(int));
    for (int n = 0; n < N; n++) *count += targets[n] >= 0;
}

/* Cross entropy of a.targets, added up where take_loss finds it. Logits are formed some rows at a time and
   never kept. So where gradients are wanted (scale != 0, the factor on the summed loss) the head's backward
   pass happens here: its parameter gradients are added to, and a.dnorm (N,C) is set. */
static void loss_pass(Model *m, int B, double scale) {
    const Config *c = &m->c;
    Acts *a = &m->a;
    int N = B * m->T, C = c->width, V = c->vocab, Vp = round_up(V, 64);
    for (int n = 0; n < N; n += m->R) {
        int rows = min_int(m->R, N - n);
        forward_logits(m, n, rows);
        classifier(a->losses + n, a->logits, a->targets + n, rows, V, Vp, c->softcap, scale);
        if (scale != 0)
            linear_backward(a->dnorm + (size_t)n * C, grad(m, c->tied ? T_WTE : T_WHEAD, 0),
                            grad(m, T_BHEAD, 0), a->logits, a->normf + (size_t)n * C,
                            head_weight(m), rows, C, Vp, n || !m->fresh);
    }
    losses_add(a->loss_sum, a->losses, N);
}

/* The same after a forward pass, of targets (B,T). */
static void forward_loss(Model *m, const int *targets, int B, double scale, int64_t *count) {
    send_targets(m, targets, B, count);
    loss_pass(m, B, scale);
}

/* The sum of the losses since the last call. Waits for the device. */
static double take_loss(Model *m) {
    double sum;
    device_download(&sum, m->a.loss_sum, sizeof sum);
    device_zero(m->a.loss_sum, sizeof sum);
    return sum;
}

/* ---------------------------------------------------------------------------------------------- */
/* backward */

/* From a.dnorm, the gradient of the normed stream, through the blocks down to the embedding. Follows
   a forward pass of the same batch. Adds to every parameter gradient, but sets those of the blocks' matrices
   if m.fresh. The biases of W_O and W_proj have the gradient of the stream after them, summed over its rows,
   which the norm that makes this gradient adds up on the way. */
static void backward(Model *m, int B) {
    const Config *c = &m->c;
    Acts *a = &m->a;
    int T = m->T, N = B * T, C = c->width, L = c->layers, NH = c->heads, NKV = c->kv_heads;
    int HS = c->head_dim, A = NH * HS, QKV = (NH + 2 * NKV) * HS, F = c->ff_width;
    int H = c->act == ACT_SWIGLU ? 2 * F : F, add = !m->fresh;

    norm_backward(a->dx, grad(m, T_NORMF_W, 0), grad(m, T_NORMF_B, 0), grad(m, T_BPROJ, L - 1),
                  a->dnorm, NULL, a->x + (size_t)L * m->B * T * C, master(m, T_NORMF_W, 0),
                  a->meanf, a->rstdf, N, C, c->norm);
    for (int l = L - 1; l >= 0; l--) {
        Block b = block_at(m, l);
        block_recompute(m, l, B);
        /* dx is the gradient of the stream after the block, and so of the MLP's branch. */
        linear_backward(NULL, grad(m, T_WPROJ, l), NULL, a->dx, b.act, weight(m, T_WPROJ, l), N, F,
                        C, add);
        linear_act_backward(a->dfc, a->dact, grad(m, T_BFC, l), a->dx, weight(m, T_WPROJ, l), b.fc,
                            N, F, C, c->act);
        linear_backward(a->dnorm, grad(m, T_WFC, l), NULL, a->dfc, b.norm2, weight(m, T_WFC, l), N,
                        C, H, add);
        norm_backward(a->dx, grad(m, T_NORM2_W, l), grad(m, T_NORM2_B, l), grad(m, T_BO, l),
                      a->dnorm, a->dx, b.mid, master(m, T_NORM2_W, l), b.mean2, b.rstd2, N, C,
                      c->norm);

        linear_backward(a->datt, grad(m, T_WO, l), NULL, a->dx, b.att, weight(m, T_WO, l), N, A, C,
                        add);
        attention_backward(a->dqkv, a->datt, b.qkv, b.att, b.lse, B, T, NH, NKV, HS, c->attn_scale);
        qk_backward(a->dqkv, b.qkv, b.qk_rstd, m->cosine, m->sine, N, T, NH, NKV, HS, c->qk_norm);
        linear_backward(a->dnorm, grad(m, T_WQKV, l), grad(m, T_BQKV, l), a->dqkv, b.norm1,
                        weight(m, T_WQKV, l), N, C, QKV, add);
        norm_backward(a->dx, grad(m, T_NORM1_W, l), grad(m, T_NORM1_B, l),
                      l ? grad(m, T_BPROJ, l - 1) : NULL, a->dnorm, a->dx, b.x,
                      master(m, T_NORM1_W, l), b.mean1, b.rstd1, N, C, c->norm);
    }
    if (c->embed_norm)
        norm_backward(a->dx, grad(m, T_NORM0_W, 0), grad(m, T_NORM0_B, 0), NULL, a->dx, NULL,
                      a->embed, master(m, T_NORM0_W, 0), a->mean0, a->rstd0, N, C, c->norm);
    embed_backward(grad(m, T_WTE, 0), grad(m, T_WPE, 0), a->dx, a->tokens, B, T, C);
}

/* Before the first micro-batch of a step: gradients become zero, but not those of the blocks' matrices and of
   the head, which that micro-batch sets (m.fresh): they are most of the memory. */
static void clear_gradients(Model *m) {
    size_t from = 0; /* where the next stretch to be cleared begins: tensors follow each other */
    for (int id = 0; id <= TENSORS; id++) {
        const Tensor *t = id < TENSORS ? &m->r.t[id] : NULL;
        int head = id == (m->c.tied ? T_WTE : T_WHEAD);
        int set = t && (head || t->role == ROLE_QKV || t->role == ROLE_O || t->role == ROLE_MLP);
        if (t && (!set || !t->layers)) continue;
        size_t to = t ? t->offset : m->r.size;
        if (to > from) device_zero(m->g + from, (to - from) * sizeof(floatM));
        if (t) from = t->offset + t->size;
    }
}

/* Forward, loss and backward of one micro-batch (B,T) of the model's B: adds to the gradient and to the loss,
   and with m.fresh sets the gradients that clear_gradients leaves.
   All addresses and sizes are those of the last one, so a device may replay what it did then. */
static void micro_batch(Model *m, const int *tokens, const int *targets, double scale,
                        int64_t *count) {
    tokens_upload(m->a.tokens, tokens, m->B * m->T, round_up(m->c.vocab, 64));
    send_targets(m, targets, m->B, count);
    if (device_replays(&m->graph[m->fresh])) return;
    forward_pass(m, m->B);
    loss_pass(m, m->B, scale);
    backward(m, m->B);
    device_recorded(&m->graph[m->fresh]);
}

/* ---------------------------------------------------------------------------------------------- */
/* update */

/* One optimizer step on the accumulated gradient. `step` counts from 0; clip is the factor that
   gradient clipping asks for. */
static void update(Model *m, int step, double clip) {
    const Config *c = &m->c;
    PlanState s = {m->p,
                   m->g,
                   m->m,
                   m->v,
                   &m->arena,
                   schedule_lr(&c->schedule, step),
                   schedule_momentum(&c->schedule, step, c->optim.momentum),
                   clip,
                   step + 1,
                   has_copy() ? m->w : NULL};
    size_t first, n;
    if (m->before) plan_groups_keep(&m->plan, &m->r, m->p, m->before);
    plan_step(&m->plan, &m->r, c, &s);
    for (int i = 0; has_copy() && plan_stale(&m->plan, &m->r, i, &first, &n); i++)
        cast_weights(m->w + first, m->p + first, n);
}

/* ---------------------------------------------------------------------------------------------- */
/* validation */

/* Mean loss over the first `limit` targets (0: all) of the validation data, in nats per token. */
static int validate(Model *m, Data *val, size_t limit, int *x, int *y, double *loss, char *err) {
    size_t rows = data_val_rows(val, limit);
    int64_t count = 0;
    for (size_t row = 0; row < rows; row += (size_t)m->B) {
        int B = (int)min_size((size_t)m->B, rows - row);
        if (data_val_batch(val, row, B, limit, x, y, err)) return -1;
        forward(m, x, B);
        forward_loss(m, y, B, 0, &count);
    }
    *loss = take_loss(m) / (double)count;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* checkpoints */

/* Everything a run needs to go on: the flags it was started with, the step, the place in the data, the
   parameters, the optimizer's moments, and what the device has chosen by measurement. Random numbers need no
   state: they are counted by (seed, step). Parameters and first moments are stored by tensor, other moments by entry of the plan. */
static int save_checkpoint(Model *m, const Config *asked, const Choices *choices, const RunLog *log,
                           int step, int64_t tokens, const Data *train, const char *data_id,
                           char *err) {
    static const char *const parts[] = {"p.", "m."};
    char path[FILE_PATH_SIZE], name[64], *header = NULL;
    size_t size = 0;
    DataState d = data_state(train);
    FILE *f = open_memstream(&header, &size);
    if (!f) return fail(err, "out of memory while saving a checkpoint");
    fprintf(f, "version=%s\nstep=%d\ntokens=%lld\ndata=%s\n", CM_VERSION, step, (long long)tokens,
            data_id);
    fprintf(f, "data_seed=%llu\ndata_epoch=%llu\ndata_shard=%llu\ndata_position=%llu\n",
            (unsigned long long)d.seed, (unsigned long long)d.epoch, (unsigned long long)d.shard,
            (unsigned long long)d.position);
    fprintf(f, "vocab=%d\n", m->c.vocab);
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        char text[FLAG_STRING_SIZE];
        if (config_flags[i].kind == KIND_SWITCH) continue; /* of one start, not of the run */
        flags_get_text(&config_flags[i], asked, text);
        fprintf(f, "flag.%s=%s\n", config_flags[i].name, text);
    }
    for (int i = 0; i < choices->n; i++)
        fprintf(f, "choice.%s=%s\n", choices->c[i].key, choices->c[i].value);
    fclose(f);

    size_t largest = m->plan.v_size;
    for (int id = 0; id < TENSORS; id++)
        if (m->r.t[id].size > largest) largest = m->r.t[id].size;
    floatM *host = (floatM *)malloc(largest * sizeof(floatM) + 1);
    int dtype = sizeof(floatM) == 8 ? CKPT_F64 : CKPT_F32;
    CkptWriter w;
    ckpt_path(path, log->checkpoints, step);
    int status = host ? ckpt_begin(&w, path, header, err) : fail(err, "out of memory while saving");
    free(header);
    for (int part = 0; part < 2 && !status; part++)
        for (int id = 0; id < TENSORS && !status; id++) {
            const Tensor *t = &m->r.t[id];
            int64_t dims[3] = {t->layers, t->rows, t->cols};
            if (!t->layers) continue;
            snprintf(name, sizeof name, "%s%s", parts[part], t->name);
            device_download(host, (part ? m->m : m->p) + t->offset, t->size * sizeof(floatM));
            status = ckpt_tensor(&w, name, dtype, 3, dims, err);
            if (!status) status = ckpt_write(&w, host, (int64_t)(t->size * sizeof(floatM)), err);
        }
    if (!status && m->plan.v_size) {
        int64_t dim = (int64_t)m->plan.v_size;
        device_download(host, m->v, m->plan.v_size * sizeof(floatM));
        status = ckpt_tensor(&w, "v", dtype, 1, &dim, err);
        if (!status) status = ckpt_write(&w, host, dim * (int64_t)sizeof(floatM), err);
    }
    free(host);
    if (!status) status = ckpt_commit(&w, err);
    if (!status) status = ckpt_prune(log->checkpoints, asked->keep_checkpoints, err);
    return status;
}

/* Copies the record `name` into n elements of device memory; its size must be just that. */
static int load_record(const Ckpt *ckpt, const char *name, floatM *to, size_t n, char *err) {
    int dtype;
    int64_t bytes;
    const void *data = ckpt_find(ckpt, name, &dtype, NULL, NULL, &bytes);
    int want = sizeof(floatM) == 8 ? CKPT_F64 : CKPT_F32;
    if (!data) return fail(err, "the checkpoint has no tensor %s: it is of another model", name);
    if (dtype != want || bytes != (int64_t)(n * sizeof(floatM)))
        return fail(err,
                    "tensor %s has another size in the checkpoint: the model's flags differ from "
                    "those of the run",
                    name);
    device_upload(to, data, (size_t)bytes);
    return 0;
}

/* Parameters, and with `training` the moments. */
static int load_tensors(Model *m, const Ckpt *ckpt, int training, char *err) {
    char name[64];
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->r.t[id];
        if (!t->layers) continue;
        snprintf(name, sizeof name, "p.%s", t->name);
        if (load_record(ckpt, name, m->p + t->offset, t->size, err)) return -1;
        snprintf(name, sizeof name, "m.%s", t->name);
        if (training && load_record(ckpt, name, m->m + t->offset, t->size, err)) return -1;
    }
    refresh_weights(m);
    if (training && m->plan.v_size) return load_record(ckpt, "v", m->v, m->plan.v_size, err);
    return 0;
}

/* A whole number of the header. */
static int ckpt_number(const Ckpt *ckpt, const char *key, uint64_t *value, char *err) {
    char text[64];
    if (ckpt_value(ckpt, key, text, sizeof text))
        return fail(err, "the checkpoint's header lacks %s", key);
    *value = strtoull(text, NULL, 10);
    return 0;
}

/* Sets every flag not marked in `given` to what the checkpoint's run was started with. */
static int load_flags(Config *c, const unsigned char *given, const Ckpt *ckpt, char *err) {
    char key[96], text[FLAG_STRING_SIZE];
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        const Flag *flag = &config_flags[i];
        snprintf(key, sizeof key, "flag.%s", flag->name);
        if ((given && given[i]) || flag->kind == KIND_SWITCH ||
            ckpt_value(ckpt, key, text, sizeof text))
            continue;
        if (flags_set(config_flags, CONFIG_FLAGS, c, NULL, flag->name, text, err)) return -1;
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* reports */

/* Floating-point operations of forward and backward for one token: six a parameter of every matrix
   product, and the causal half of attention's. */
static double flops_per_token(const Config *c, const Registry *r) {
    double n = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        int counts =
            t->role == ROLE_QKV || t->role == ROLE_O || t->role == ROLE_MLP || t->role == ROLE_HEAD;
        if (counts || (id == T_WTE && c->tied)) n += (double)t->layers * t->rows * t->cols;
    }
    return 6 * n + 6.0 * c->layers * c->heads * c->head_dim * c->seq_len;
}

static void print_model(FILE *out, const Config *c, const Registry *r) {
    static const char *const norm[] = {"LayerNorm", "RMSNorm"};
    static const char *const pos[] = {"learned positions", "RoPE", "half-truncated RoPE",
                                      "no positions"};
    static const char *const act[] = {"GELU", "ReLU^2", "SwiGLU"};
    fprintf(out, "model    %.2fM parameters: %d layers, width %d, %d heads of %d", r->count / 1e6,
            c->layers, c->width, c->heads, c->head_dim);
    if (c->kv_heads != c->heads) fprintf(out, " (%d for keys and values)", c->kv_heads);
    fprintf(out, ", %s, %s%s, %s MLP of %d, vocabulary %d\n", norm[c->norm], pos[c->pos],
            c->qk_norm ? ", QK-norm" : "", act[c->act], c->ff_width, c->vocab);
}

static void print_memory(FILE *out, Memory m) {
    fprintf(out,
            "memory   %.1f MB: parameters %.1f, gradients %.1f, optimizer %.1f, activations %.1f",
            m.total / 1e6, m.parameters / 1e6, m.gradients / 1e6, m.optimizer / 1e6,
            m.activations / 1e6);
    if (m.workspace) fprintf(out, ", workspace %.1f", m.workspace / 1e6);
    fputc('\n', out);
}

static void print_rules(FILE *out, const Config *c) {
    static const char *const rule[] = {
        "",       "CM",    "Muon",  "Muon per head",          "NorMuon",
        "Aurora", "MuonH", "AdamW", "partner-rescaled AdamW", "QuacK"};
    static const char *const mlp[] = {"", "Muon", "NorMuon", "Aurora", "MuonH", "AdamW"};
    fprintf(out, "update   %s on W_Q W_K, %s%s on W_O W_V, %s on the MLPs, AdamW on the rest\n",
            rule[c->qk], rule[c->ov], c->optim.circuit ? " and Circuit-Muon" : "", mlp[c->mlp]);
}

/* Peak resident memory of this process in bytes; 0 where the system does not say. */
static double resident_peak(void) {
    char line[256];
    double kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lf", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

/* ---------------------------------------------------------------------------------------------- */
/* the loop */

typedef struct {
    Config asked; /* flags as given, which is what a checkpoint stores */
    unsigned char given[CONFIG_FLAGS];
    Model model;
    Data train, val;
    RunLog log;
    char data_id[64];         /* fingerprint of the training data */
    int step;                 /* updates done */
    int64_t tokens;           /* and tokens they read */
    int *x, *y;               /* a batch on the host, (B,T) each */
    double peak, stated_peak; /* FLOP/s of the machine, see device_peak */
    Choices choices,
        known; /* what was chosen by measurement: in this run, and in all of --runs-dir */
} Run;

/* SIGINT and SIGTERM are held back in all threads and looked for between steps: before there are other threads,
   which inherit this, be they OpenMP's or those of a GPU's driver. A handler would be called in the midst of
   oneDNN's matrix product, whose kernels move the stack pointer into a small buffer on the heap; the frame of a
   handler, 11 kB with AMX, then overwrites what lies below. */
static int stop_signal;
static void hold_signals(int hold) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}
static int waiting_signal(void) {
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, SIGINT) ? SIGINT : sigismember(&set, SIGTERM) ? SIGTERM : 0;
}

/* Opens the data and lets it decide what the flags leave open: vocabulary and validation part. */
static int open_data(Run *run, Config *c, char *err) {
    int64_t rows =
        (c->total_batch_tokens ? c->total_batch_tokens : (int64_t)c->batch_size * c->seq_len) /
        c->seq_len;
    int separate = c->val_data[0] != 0;
    if (data_open(&run->train, c->data, separate ? DATA_ALL : DATA_TRAIN, c->data_order,
                  (uint64_t)c->seed, c->seq_len, (int)rows, err))
        return -1;
    if (!separate && !data_is_text(&run->train))
        return fail(err, "token shards have no validation part: name some with --val-data");
    if (data_open(&run->val, separate ? c->val_data : c->data, separate ? DATA_ALL : DATA_VAL,
                  DATA_SEQUENTIAL, 0, c->seq_len, 0, err))
        return -1;
    if (data_is_text(&run->train) != data_is_text(&run->val))
        return fail(err, "%s and %s are not of one kind: one is text, the other token shards",
                    c->data, c->val_data);
    if (!c->vocab) c->vocab = data_is_text(&run->train) ? 256 : 50257;
    run->train.vocab = run->val.vocab = c->vocab;
    snprintf(run->data_id, sizeof run->data_id, "%016llx",
             (unsigned long long)data_checksum(&run->train));
    return 0;
}

/* Opens the newest checkpoint of --run and takes over its flags. Returns 1 where a run was killed before
   its first checkpoint: it starts over with the flags given. */
static int open_checkpoint(Run *run, Ckpt *ckpt, char *path, char *err) {
    char folder[FILE_PATH_SIZE];
    file_path(folder, "%s/%s/checkpoints", run->asked.runs_dir, run->asked.run);
    if (access(folder, F_OK))
        return fail(err, "--resume: there is no run %s/%s; check --run and --runs-dir",
                    run->asked.runs_dir, run->asked.run);
    int status = ckpt_open_newest(ckpt, folder, path, err);
    return status ? status : load_flags(&run->asked, run->given, ckpt, err);
}

/* Goes back to where the checkpoint was written: parameters, moments, place in the data, log. */
static int restore(Run *run, const Ckpt *ckpt, char *err) {
    uint64_t step, tokens;
    DataState d;
    char id[64];
    if (ckpt_number(ckpt, "step", &step, err) || ckpt_number(ckpt, "tokens", &tokens, err) ||
        ckpt_number(ckpt, "data_seed", &d.seed, err) ||
        ckpt_number(ckpt, "data_epoch", &d.epoch, err) ||
        ckpt_number(ckpt, "data_shard", &d.shard, err) ||
        ckpt_number(ckpt, "data_position", &d.position, err))
        return -1;
    if (ckpt_value(ckpt, "data", id, sizeof id) || strcmp(id, run->data_id))
        return fail(err, "--resume: %s is not the data the run was started with", run->asked.data);
    if (load_tensors(&run->model, ckpt, 1, err) || data_seek(&run->train, d, err)) return -1;
    run->step = (int)step;
    run->tokens = (int64_t)tokens;
    if (log_truncate_after(&run->log, (int64_t)step, err) ||
        ckpt_discard_after(run->log.checkpoints, (int64_t)step, err))
        return -1;
    /* A run killed between writing a checkpoint and deleting an old one has one too many. */
    return ckpt_prune(run->log.checkpoints, run->asked.keep_checkpoints, err);
}

static int write_run_json(Run *run, const Config *c, const char *machine, char *err) {
    char parameters[32], train_tokens[32], val_tokens[32], val_id[64], flops[32];
    snprintf(parameters, sizeof parameters, "%zu", run->model.r.count);
    snprintf(train_tokens, sizeof train_tokens, "%zu", data_tokens(&run->train));
    snprintf(val_tokens, sizeof val_tokens, "%zu", data_tokens(&run->val));
    snprintf(val_id, sizeof val_id, "%016llx", (unsigned long long)data_checksum(&run->val));
    snprintf(flops, sizeof flops, "%.6g", flops_per_token(c, &run->model.r));
    LogPair pairs[] = {
        {"program", "cm.c", 0},
        {"version", CM_VERSION, 0},
        {"parameters", parameters, 1},
        {"flops_per_token", flops, 1},
        {"train_tokens", train_tokens, 1},
        {"val_tokens", val_tokens, 1},
        {"train_checksum", run->data_id, 0},
        {"val_checksum", val_id, 0},
    };
    return log_run_json(&run->log, config_flags, CONFIG_FLAGS, c, machine, pairs,
                        (int)(sizeof pairs / sizeof pairs[0]), err);
}

/* One optimizer step: the batch in micro-batches, the guard, the update. Returns 0, or -1 with a
   message when the data fails, or when the loss or the gradient is not finite; the parameters are
   untouched then. */
static int train_step(Run *run, double *loss, double *norm, char *err) {
    Model *m = &run->model;
    const Config *c = &m->c;
    int micro = (int)(c->total_batch_tokens / ((int64_t)m->B * m->T));
    int64_t count = 0;
    clear_gradients(m);
    for (int i = 0; i < micro; i++) {
        if (data_next(&run->train, m->B, run->x, run->y, err)) return -1;
        m->fresh = i == 0;
        micro_batch(m, run->x, run->y, 1.0 / (double)c->total_batch_tokens, &count);
    }
    *norm =
        sqrt(la_sum_squares(m->g, m->r.size)); /* the one place where a step waits for the device */
    *loss = take_loss(m) / (double)count;
    if (!isfinite(*loss) || !isfinite(*norm)) {
        floatM *host = (floatM *)malloc(m->r.size * sizeof(floatM));
        fprintf(stderr, "\nstep %d: loss %g, gradient norm %g\n", run->step + 1, *loss, *norm);
        if (host) {
            device_download(host, m->p, m->r.size * sizeof(floatM));
            guard_report(stderr, &m->r, host, "parameters", 3);
            device_download(host, m->g, m->r.size * sizeof(floatM));
            guard_report(stderr, &m->r, host, "gradient", 5);
        }
        free(host);
        return fail(err,
                    "the run diverged at step %d and was stopped; the last good checkpoint is kept "
                    "in %s. Try a smaller learning rate, a longer --warmup or --grad-clip 1",
                    run->step + 1, run->log.checkpoints);
    }
    double clip = c->grad_clip > 0 && *norm > c->grad_clip ? c->grad_clip / *norm : 1;
    update(m, run->step, clip);
    run->step++;
    run->tokens += c->total_batch_tokens;
    return 0;
}

/* What else a line of the log holds, as a JSON object: the sizes of the last update when asked for, and
   the device's state where it tells. NULL if there is nothing; to be freed. */
static char *log_extra(Model *m) {
    char *text = NULL, state[256];
    size_t size = 0;
    device_state(state, sizeof state);
    FILE *f = m->before || state[0] ? open_memstream(&text, &size) : NULL;
    if (!f) return NULL;
    fprintf(f, "{%s", state);
    if (m->before) {
        fprintf(f, "%s\"groups\": ", state[0] ? ", " : "");
        plan_groups_json(f, &m->plan, &m->r, m->p, m->before);
    }
    fputs("}", f);
    fclose(f);
    return text;
}

/* "  mfu 41.3 %", or nothing where the machine's peak is not known. */
static const char *mfu_text(char text[32], double mfu) {
    text[0] = 0;
    if (mfu > 0) snprintf(text, 32, "  mfu %.1f %%", 100 * mfu);
    return text;
}

/* What all runs of --runs-dir have chosen by measurement; without it a run measures for itself. */
static void read_choices(Run *run) {
    char path[FILE_PATH_SIZE], err[ERR_LEN];
    file_path(path, "%s/choices.txt", run->asked.runs_dir);
    run->choices.from = &run->known;
    if (choices_read(&run->known, path, err)) fprintf(stderr, "note: %s\n", err);
}

/* Collects what has been measured since, and lets later runs know. */
static void keep_choices(Run *run) {
    char path[FILE_PATH_SIZE], err[ERR_LEN];
    device_choices(&run->choices);
    file_path(path, "%s/choices.txt", run->asked.runs_dir);
    if (run->known.changed && choices_write(&run->known, path, err))
        fprintf(stderr, "note: %s\n", err);
    run->known.changed = 0;
}

/* A checkpoint of now, once the log that leads to it is on the disk. */
static int save_run(Run *run, char *err) {
    keep_choices(run);
    if (!run->asked.keep_checkpoints) return 0;
    if (log_sync(&run->log, err)) return -1;
    return save_checkpoint(&run->model, &run->asked, &run->choices, &run->log, run->step,
                           run->tokens, &run->train, run->data_id, err);
}

/* --gelu: measured on layer 0, in tensors that the first micro-batch overwrites. */
static void choose_gelu(Run *run) {
    Model *m = &run->model;
    Acts *a = &m->a;
    Block b = block_at(m, 0);
    device_choose_gelu(&m->c, &run->choices, b.act, b.fc, b.norm2, weight(m, T_WFC, 0),
                       weight(m, T_BFC, 0), a->dfc, a->dact, grad(m, T_BFC, 0), a->dx,
                       weight(m, T_WPROJ, 0));
    run->asked.gelu = m->c.gelu; /* as chosen: a resumed run has to take the same */
}

/* Gradient of two micro-batches of the same data, the first of a step and a later one, and their loss. */
static double probe_gradient(Run *run, floatM *host) {
    Model *m = &run->model;
    int64_t count = 0;
    clear_gradients(m);
    for (m->fresh = 1; m->fresh >= 0; m->fresh--)
        micro_batch(m, run->x, run->y, 1.0 / (double)m->c.total_batch_tokens, &count);
    m->fresh = 0;
    if (host) device_download(host, m->g, m->r.size * sizeof(floatM));
    return take_loss(m);
}

/* Whether a replayed micro-batch has the gradient and the loss of a plain one, to the bit; then the device goes
   on replaying. -1: no memory to compare. */
static int replay_agrees(Run *run) {
    Model *m = &run->model;
    size_t bytes = m->r.size * sizeof(floatM);
    floatM *plain = (floatM *)malloc(bytes), *replayed = (floatM *)malloc(bytes);
    int same = -1;
    if (plain && replayed) {
        double loss = probe_gradient(run, plain), again = 0;
        device_replay(1);
        for (int i = 0; i < 3; i++)
            again = probe_gradient(run, replayed); /* plain, recorded, replayed */
        same = !memcmp(&again, &loss, sizeof loss) && !memcmp(plain, replayed, bytes);
        device_replay(same);
    }
    free(plain);
    free(replayed);
    return same;
}

/* --cuda-graph: whether micro-batches are recorded and replayed. With auto if one takes less than 10 ms, for
   the launches of a long one are hidden behind its work, and if the bits stay the same; `on` is refused where they
   do not. Attention that adds in any order has no bits to compare: auto does without. Leaves data and parameters
   as they were. */
static int choose_replay(Run *run, char *err) {
    Model *m = &run->model;
    const Config *c = &m->c;
    int on = c->cuda_graph == AUTO_ON, any_order = c->attention == ATTENTION_CUDNN_FAST;
    DataState place = data_state(&run->train);
    if (!device_can_replay(!on) || c->cuda_graph == AUTO_OFF || (any_order && !on)) return 0;
    if (any_order) return device_replay(1), 0;
    if (data_next(&run->train, m->B, run->x, run->y, err) || data_seek(&run->train, place, err))
        return -1;
    probe_gradient(run, NULL); /* everything is loaded, measured and allocated afterwards */
    double start = now_seconds();
    probe_gradient(run, NULL);
    if (!on && now_seconds() - start > 2 * 0.010) return 0;
    int agrees = replay_agrees(run);
    if (agrees < 0 && on)
        return fail(err, "--cuda-graph on: out of memory to compare two gradients");
    if (!agrees && on)
        return fail(
            err,
            "--cuda-graph on: a replayed micro-batch has another gradient than a plain one; use "
            "--cuda-graph off");
    if (agrees == 0)
        fprintf(
            stderr,
            "note: a replayed micro-batch has another gradient than a plain one: no CUDA graph\n");
    return 0;
}

/* From run->step to the last step, or to a signal. Returns 0 or -1 with a message. */
static int train_loop(Run *run, char *err) {
    Model *m = &run->model;
    const Config *c = &m->c;
    Progress progress;
    size_t val_limit = (size_t)c->val_tokens;
    char mfu[32];
    int every = c->print_every ? c->print_every : max_int(1, c->steps / 40);
    progress_begin(&progress, stdout, run->step, c->steps);
    if (run->step == 0) {
        LogLine line = {0, 0, NAN, NAN, NAN, NAN, NAN, NAN, NULL, 0, 0};
        if (validate(m, &run->val, val_limit, run->x, run->y, &line.val_loss, err) ||
            log_line(&run->log, &line, err))
            return -1;
        progress_print(&progress, "step %5d  validation %.4f", 0, line.val_loss);
    }
    while (run->step < c->steps && !(stop_signal = waiting_signal())) {
        LogLine line = {0, 0, NAN, NAN, NAN, NAN, NAN, NAN, NULL, 0, 0};
        double start = now_seconds();
        line.lr = c->lr * schedule_lr(&c->schedule, run->step);
        if (train_step(run, &line.train_loss, &line.grad_norm, err)) return -1;
        double seconds = now_seconds() - start;
        line.step = run->step;
        line.tokens = run->tokens;
        line.ms = 1000 * seconds;
        line.tok_s = (double)c->total_batch_tokens / seconds;
        if (run->peak > 0) line.mfu = flops_per_token(c, &m->r) * line.tok_s / run->peak;
        if (run->stated_peak > 0)
            line.mfu_stated = flops_per_token(c, &m->r) * line.tok_s / run->stated_peak;
        int last = run->step == c->steps;
        progress_update(&progress, run->step, line.train_loss, line.tok_s);
        if (last || (c->val_every && run->step % c->val_every == 0)) {
            if (validate(m, &run->val, val_limit, run->x, run->y, &line.val_loss, err)) return -1;
            progress_print(&progress,
                           "step %5d  train %.4f  validation %.4f  %.0f ms  %.0f tok/s%s",
                           run->step, line.train_loss, line.val_loss, line.ms, line.tok_s,
                           mfu_text(mfu, line.mfu));
        } else if (!progress.live && run->step % every == 0) {
            progress_print(&progress, "step %5d  train %.4f  norm %.3g  %.0f ms  %.0f tok/s%s",
                           run->step, line.train_loss, line.grad_norm, line.ms, line.tok_s,
                           mfu_text(mfu, line.mfu));
        }
        char *extra = log_extra(m);
        line.extra = extra;
        int status = log_line(&run->log, &line, err);
        free(extra);
        if (status) return -1;
        int due = c->checkpoint_every && run->step % c->checkpoint_every == 0;
        if ((last || due) && save_run(run, err)) return -1;
    }
    if (stop_signal && run->step < c->steps && save_run(run, err)) return -1;
    keep_choices(run); /* as those of validation */
    progress_clear(&progress);
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* main */

#ifndef CM_NO_MAIN

/* What the run would be, without running it. */
static int dry_run(Run *run, char *err) {
    Config copy = run->model.c;
    const Config *c = &copy;
    double per_token = flops_per_token(c, &run->model.r);
    double tokens = (double)c->steps * (double)c->total_batch_tokens;
    printf("\n");
    plan_print(stdout, &run->model.plan, &run->model.r);
    printf("\nflops    %.4g per token forward and backward, %.4g in all\n", per_token,
           per_token * tokens);
    /* The time is that of real micro-batches and updates on a scratch model of this shape. */
    if (model_create(&run->model, c, 1, err)) return -1;
    model_init(&run->model);
    choose_gelu(run);
    run->x = (int *)calloc((size_t)c->batch_size * c->seq_len * 2, sizeof(int));
    if (!run->x) return fail(err, "out of memory: a batch");
    run->y = run->x + (size_t)c->batch_size * c->seq_len;
    double best = 1e30, update_seconds = 1e30;
    run->model.fresh =
        c->total_batch_tokens == (int64_t)c->batch_size * c->seq_len; /* as most of a step's are */
    for (int i = 0; i < 3; i++) {
        int64_t count = 0;
        device_wait();
        double start = now_seconds();
        if (data_next(&run->train, c->batch_size, run->x, run->y, err)) return -1;
        clear_gradients(&run->model);
        micro_batch(&run->model, run->x, run->y, 1.0 / (double)c->total_batch_tokens, &count);
        take_loss(&run->model);
        double middle = now_seconds();
        update(&run->model, 0, 1);
        device_wait();
        double end = now_seconds();
        if (middle - start < best) best = middle - start;
        if (end - middle < update_seconds) update_seconds = end - middle;
        if (end - start > 20) break;
    }
    double micro = (double)c->total_batch_tokens / ((double)c->batch_size * c->seq_len);
    double step = micro * best + update_seconds;
    char total[32];
    time_text(total, step * c->steps);
    printf("time     %s expected without validation: %.0f ms a step, %.0f of them in the update; "
           "%.0f tok/s, %.1f GFLOP/s\n",
           total, 1000 * step, 1000 * update_seconds, (double)c->total_batch_tokens / step,
           per_token * (double)c->total_batch_tokens / step / 1e9);
    return 0;
}

static void print_curve(const Run *run) {
    char err[ERR_LEN];
    LogCurve curve;
    if (log_read(run->log.path, &curve, err)) return;
    printf("\n");
    curve_print(stdout, curve.step, curve.train, curve.val, curve.n,
                min_int(terminal_width(stdout), 100), 16);
    for (int i = curve.n - 1; i >= 0; i--)
        if (isfinite(curve.val[i])) {
            printf("\nvalidation loss %.4f nats per %s after %lld steps\n", curve.val[i],
                   data_is_text(&run->val) ? "byte" : "token", (long long)curve.step[i]);
            break;
        }
    log_curve_free(&curve);
}

int main(int argc, char **argv) {
    static Run run;
    char err[ERR_LEN], machine[512], libraries[4096], path[FILE_PATH_SIZE];
    Ckpt ckpt;
    memset(&ckpt, 0, sizeof ckpt);
    int status = config_parse(&run.asked, run.given, argc, argv, err);
    if (status < 0) die("%s", err);
    if (status > 0) {
        flags_help(stdout, "usage: train_gpt [flags]    With none: GPT on TinyShakespeare.",
                   config_flags, CONFIG_FLAGS);
        return 0;
    }
    if (run.asked.version) return puts("cm.c " CM_VERSION) < 0;
    if (run.asked.help_markdown) {
        flags_markdown(stdout, config_flags, CONFIG_FLAGS);
        return 0;
    }
    hold_signals(1);
    int started = run.asked.resume ? open_checkpoint(&run, &ckpt, path, err) : 1;
    if (started < 0) die("%s", err);
    Config c = run.asked;
    read_choices(&run);
    if (started == 0) choices_parse(&run.choices, ckpt.header, ckpt.header_length, "choice.");
    if (open_data(&run, &c, err) || config_resolve(&c, err)) die("%s", err);
    if (device_setup(&c, &run.choices, err)) die("%s", err);
    run.asked.attention = c.attention; /* as chosen: a resumed run has to take the same */
    device_describe(machine, sizeof machine);

    run.model.c = c;
    run.model.r = registry_build(&c);
    run.model.plan = plan_build(&c, &run.model.r);
    printf("machine  %s\n", machine);
    device_libraries(libraries, sizeof libraries);
    if (libraries[0]) printf("library  %s\n", libraries);
    printf("data     %s: %zu training and %zu validation tokens\n", c.data, data_tokens(&run.train),
           data_tokens(&run.val));
    print_model(stdout, &c, &run.model.r);
    print_rules(stdout, &c);
    print_memory(stdout, model_memory(&c, &run.model.r, &run.model.plan, 1));
    printf("run      %d steps of %lld tokens (%.2f epochs), seed %lld\n", c.steps,
           (long long)c.total_batch_tokens,
           (double)c.steps * (double)c.total_batch_tokens / (double)data_tokens(&run.train),
           (long long)c.seed);
    fflush(stdout);
    if (check_memory(&c, &run.model.r, &run.model.plan, err)) die("%s", err);
    run.asked.logit_rows = c.logit_rows; /* fewer where memory is short: the same after a resume */
    if (c.dry_run) {
        hold_signals(0); /* nothing would be lost */
        if (dry_run(&run, err)) die("%s", err);
        return 0;
    }
    if (waiting_signal()) {
        fprintf(stderr, "stopped by signal %d before the run began\n", waiting_signal());
        return 128 + waiting_signal();
    }
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is reported as a failed write */
    if (log_open(&run.log, c.runs_dir, c.run, c.resume, err)) die("%s", err);
    device_peak(&run.peak, &run.stated_peak);
    if (run.peak > 0) printf("peak     %.0f TFLOP/s measured", run.peak / 1e12);
    if (run.peak > 0 && run.stated_peak > 0) printf(", %.0f stated", run.stated_peak / 1e12);
    if (run.peak > 0) printf("\n");
    if (model_create(&run.model, &c, 1, err)) die("%s", err);
    run.x = (int *)malloc((size_t)c.batch_size * c.seq_len * sizeof(int));
    run.y = (int *)malloc((size_t)c.batch_size * c.seq_len * sizeof(int));
    if (!run.x || !run.y) die("out of memory: a batch");
    if (started == 0) {
        if (restore(&run, &ckpt, err)) die("%s", err);
        ckpt_close(&ckpt);
        printf("resumed  from %s\n", path);
    } else {
        if (c.resume) printf("resumed  from the beginning: there was no checkpoint yet\n");
        if (log_truncate_after(&run.log, -1, err)) die("%s", err);
        model_init(&run.model);
    }
    choose_gelu(&run);
    if (choose_replay(&run, err)) die("%s", err);
    keep_choices(&run);
    if (write_run_json(&run, &c, machine, err)) die("%s", err);

    if (train_loop(&run, err)) die("%s", err);
    print_curve(&run);
    printf("peak memory %.1f MB", resident_peak() / 1e6);
    if (device_memory_peak()) printf(", on the GPU %.1f MB", device_memory_peak() / 1e6);
    printf("; run folder %s\n", run.log.dir);
    if (stop_signal && run.step < c.steps) {
        printf("stopped by signal %d after step %d of %d; continue with: %s --run %s --resume\n",
               stop_signal, run.step, c.steps, argv[0], c.run);
        return 128 + stop_signal;
    }
    printf("sample from it with: ./generate --run %s\n", c.run);
    log_close(&run.log);
    data_close(&run.train);
    data_close(&run.val);
    model_free(&run.model);
    free(run.x);
    free(run.y);
    return 0;
}

#endif
