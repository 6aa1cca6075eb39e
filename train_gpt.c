/*
GPT pretraining in plain C, forward and backward by hand. Read it top to bottom:

    model        activations, parameters, and where a layer finds its own
    forward      tokens -> logits
    loss         logits -> loss and the head's gradient
    backward     loss -> gradients
    update       gradients -> parameters, by the plan (CM, Muon, AdamW)
    validation, a step, the loop, main

Layers and operations are in the backends' headers (llmc/cpu, llmc/cuda); this file is written once
for all machines. On a GPU all work is queued and done in order; the program waits where it reads a
result. A model's memory is in llmc/memory.h; checkpoints, data and signals are in llmc/run.h, and
what a resumed run takes over is in llmc/resume.h.

Shapes: B sequences of T tokens each, N = B T, C width, L layers, NH query heads and NKV key/value
heads of width HS, A = NH HS, QKV = (NH + 2 NKV) HS, F MLP width, H outputs of the MLP's first
matrix (F, or 2 F with a gate), V vocabulary, Vp = V padded to a multiple of 64, R rows of logits
formed at a time.
*/
#ifndef BACKEND_READY
#include "llmc/cpu/backend.h"
#endif
#include "llmc/guard.h"
#include "llmc/linear.h"
#include "llmc/optim/first_step.h"
#include "llmc/readout.h"
#include "llmc/resume.h"
#include "llmc/schedule.h"

/* ---------------------------------------------------------------------------------------------- */
/* model */

/* How many copies of an activation the model has. */
typedef enum {
    KEEP_STREAM,       /* L + 1: the input of every block, and the output of the last */
    KEEP_UNLESS_BLOCK, /* one a layer; one for all layers with --recompute block */
    KEEP_UNLESS_NORM,  /* one a layer; one for all layers with --recompute norm or block */
    KEEP_UNLESS_ACT,   /* one a layer; one for all layers with --recompute act, norm or block */
    KEEP_ONE,          /* one */
    KEEP_EMBED_NORM,   /* one, if the embedding has a norm */
    KEEP_BACKWARD      /* one, in training: a gradient in the layer where the backward pass is */
} Keep;

/* Every activation: X(type, name, how many copies, elements of a copy). The struct, the memory
   layout and the view of a block are made from this list. */
/* clang-format off */
#define ACTIVATIONS(X)                                                                             \
    X(floatX, embed, KEEP_EMBED_NORM, N * C)      /* (N,C) before the embedding's norm */          \
    X(floatX, x, KEEP_STREAM, N * C)              /* (N,C) the residual stream before the block */ \
    X(floatX, x_mid, KEEP_UNLESS_BLOCK, N * C)    /* (N,C) the stream between attention and MLP */ \
    X(floatX, norm1, KEEP_UNLESS_NORM, N * C)     /* (N,C) */                                      \
    X(floatX, norm2, KEEP_UNLESS_NORM, N * C)     /* (N,C) */                                      \
    X(floatX, normf, KEEP_ONE, N * C)             /* (N,C) */                                      \
    X(floatX, qkv, KEEP_UNLESS_BLOCK, N * QKV)    /* (N,QKV) queries and keys normed, rotated */   \
    X(floatX, att, KEEP_UNLESS_BLOCK, N * A)      /* (N,A) */                                      \
    X(floatX, fc, KEEP_UNLESS_BLOCK, N * H)       /* (N,H) */                                      \
    X(floatX, act, KEEP_UNLESS_ACT, N * F)        /* (N,F) */                                      \
    X(floatM, mean0, KEEP_ONE, N) X(floatM, rstd0, KEEP_ONE, N)                                    \
    X(floatM, mean1, KEEP_UNLESS_BLOCK, N) X(floatM, rstd1, KEEP_UNLESS_BLOCK, N)                  \
    X(floatM, mean2, KEEP_UNLESS_BLOCK, N) X(floatM, rstd2, KEEP_UNLESS_BLOCK, N)                  \
    X(floatM, meanf, KEEP_ONE, N) X(floatM, rstdf, KEEP_ONE, N)                                    \
    X(floatM, qk_rstd, KEEP_UNLESS_BLOCK, N * (NH + NKV)) /* (N,NH+NKV) */                         \
    X(floatM, lse, KEEP_UNLESS_BLOCK, N * NH)     /* (B,NH,T) log-sum-exp of attention's rows */   \
    X(floatM, losses, KEEP_ONE, N)                /* (N) */                                        \
    X(double, loss_sum, KEEP_ONE, 1)              /* sum of the losses since take_loss */          \
    X(floatX, logits, KEEP_ONE, R * Vp)           /* (R,Vp) */                                     \
    X(floatX, block_out, KEEP_ONE, N * C)         /* (N,C) what a half block adds to the stream */ \
    X(floatX, u_qkv, KEEP_UNLESS_BLOCK, N * rank[LINEAR_QKV])   /* (N,P r) x B, where a layer */   \
    X(floatX, u_o, KEEP_UNLESS_BLOCK, N * rank[LINEAR_O])       /* has factors (factored.h) */     \
    X(floatX, u_fc, KEEP_UNLESS_BLOCK, N * rank[LINEAR_FC])                                        \
    X(floatX, u_proj, KEEP_UNLESS_BLOCK, N * rank[LINEAR_PROJ])                                    \
    X(floatX, u_head, KEEP_ONE, R * rank[LINEAR_HEAD])                                             \
    X(floatX, dx, KEEP_BACKWARD, N * C)           /* (N,C) */                                      \
    X(floatX, dnorm, KEEP_BACKWARD, N * C)        /* (N,C) */                                      \
    X(floatX, dqkv, KEEP_BACKWARD, N * QKV)       /* (N,QKV) */                                    \
    X(floatX, datt, KEEP_BACKWARD, N * A)         /* (N,A) */                                      \
    X(floatX, dfc, KEEP_BACKWARD, N * H)          /* (N,H) */                                      \
    X(floatX, dact, KEEP_BACKWARD, N * F)         /* (N,F) */                                      \
    X(floatX, du, KEEP_BACKWARD, N * most_rank)   /* (N,P r) */                                    \
    X(int, tokens, KEEP_ONE, DEVICE_TOKENS(N))    /* (B,T), in the backend's form */               \
    X(int, targets, KEEP_ONE, N)                  /* (B,T), -1 where there is no target */
/* clang-format on */

#define ACTIVATION_FIELD(TYPE, NAME, KEEP, ELEMENTS) TYPE *NAME;
typedef struct {
    ACTIVATIONS(ACTIVATION_FIELD)
} Acts;

typedef struct {
    const Config *c; /* resolved; outlives the model */
    Shape s;         /* of the largest batch */
    int R, training;
    Params p;
    Plan plan;
    Arena arena; /* scratch of the update */
    Acts a;      /* activations of block 0, and those of which there is one */
    void *acts_memory;
    size_t acts_bytes;
    floatM *cosine, *sine; /* (T,HS/2), NULL without rotary positions */
    floatX *keys, *values; /* (L,T,NKV HS) of the tokens read so far, in generation; else NULL */
    int position;          /* of the first token of a sequence; 0 in training */
    int fresh;             /* 1: gradients of matrices are set, not added to */
    DeviceGraph graph[2];  /* recorded work of a micro-batch, by `fresh`; see device_replays */
} Model;

#include "llmc/memory.h" /* where activations lie; model_create, model_init, model_free */

/* A tensor in layer l: the copy that layers read, the parameter itself, its gradient. NULL if the
   model has no such tensor, or if no gradient is wanted. */
static const floatX *weight(const Model *m, TensorId id, int l) {
    size_t at;
    return slot_find(&m->p.r.t[id], SLOT_WEIGHT, l, &at) ? m->p.weight + at : NULL;
}
static floatM *param(const Model *m, TensorId id, int l) {
    return slot_pointer(&m->p.r.t[id], SLOT_PARAM, l, m->p.param);
}
static floatM *grad(const Model *m, TensorId id, int l) {
    return slot_pointer(&m->p.r.t[id], SLOT_GRAD, l, m->p.grad);
}
static TensorId head_id(const Model *m) { return m->c->tied ? T_WTE : T_WHEAD; }

/* The tensor that a linear layer's whole matrix is. */
static TensorId whole_id(const Model *m, LinearId id) {
    return id == LINEAR_HEAD ? head_id(m) : linear_tensors[id].weight;
}

/* y (N,O) = x W^T + b of linear layer `id` in block l, with the factors that it may have; those
   keep u (N,P r). */
static void linear(const Model *m, LinearId id, int l, floatX *y, floatX *u, const floatX *x,
                   int N) {
    const LinearTensors *t = &linear_tensors[id];
    const Linear f = linear_of(m->c, id);
    const floatX *w = weight(m, whole_id(m, id), l), *b = weight(m, t->bias, l);
    if (w) linear_forward(y, x, w, b, N, f.I, f.O);
    else if (b) bias_forward(y, b, N, f.O);
    if (f.rank)
        factors_forward(y, u, x, weight(m, t->up, l), weight(m, t->down, l), &f, m->c->lora_scale,
                        N, w || b);
}

/* From dy (N,O) of linear layer `id`: dx (N,I), unless it is NULL, the gradients of its weight and
   of its factors, which are added to with `add`, and with `bias` that of its bias. */
static void linear_back(const Model *m, LinearId id, int l, floatX *dx, const floatX *dy,
                        const floatX *x, const floatX *u, int N, int bias, int add) {
    const LinearTensors *t = &linear_tensors[id];
    const Linear f = linear_of(m->c, id);
    const floatX *w = weight(m, whole_id(m, id), l);
    linear_backward(w ? dx : NULL, grad(m, whole_id(m, id), l), bias ? grad(m, t->bias, l) : NULL,
                    dy, x, w, N, f.I, f.O, add);
    if (f.rank)
        factors_backward(dx, grad(m, t->up, l), grad(m, t->down, l), m->a.du, dy, x, u,
                         weight(m, t->up, l), weight(m, t->down, l), &f, m->c->lora_scale, N, !w,
                         add);
}
static int has_factors(const Model *m, LinearId id) { return m->c->factored >> id & 1; }

/* The MLP's first layer of block l and the activation: b.fc (N,H), and b.act (N,F), of b.norm2. The
   product of a whole matrix may have the activation in it. */
static void mlp_forward(const Model *m, int l, Acts b, int N) {
    if (has_factors(m, LINEAR_FC)) {
        linear(m, LINEAR_FC, l, b.fc, b.u_fc, b.norm2, N);
        act_forward(b.act, b.fc, N, m->s.F, m->c->act);
        return;
    }
    linear_act_forward(b.act, b.fc, b.norm2, weight(m, T_WFC, l), weight(m, T_BFC, l), N, m->s.C,
                       m->s.F, m->c->act);
}

/* b.act once more, to the bit, from the b.fc that mlp_forward has left. */
static void mlp_again(const Model *m, int l, Acts b, int N) {
    if (has_factors(m, LINEAR_FC)) act_forward(b.act, b.fc, N, m->s.F, m->c->act);
    else
        linear_act_again(b.act, b.fc, b.norm2, weight(m, T_WFC, l), weight(m, T_BFC, l), N, m->s.C,
                         m->s.F, m->c->act);
}

/* From b.dx (N,C), the gradient of the MLP's output, to b.dfc (N,H), the gradients of W_proj and of
   the first bias. b.dact (N,F) is room. */
static void mlp_back(const Model *m, int l, Acts b, int N, int add) {
    if (has_factors(m, LINEAR_PROJ)) {
        linear_back(m, LINEAR_PROJ, l, b.dact, b.dx, b.act, b.u_proj, N, 0, add);
        act_backward_bias(b.dfc, grad(m, T_BFC, l), b.dact, b.fc, N, m->s.F, m->c->act);
        return;
    }
    linear_back(m, LINEAR_PROJ, l, NULL, b.dx, b.act, NULL, N, 0, add);
    linear_act_backward(b.dfc, b.dact, grad(m, T_BFC, l), b.dx, weight(m, T_WPROJ, l), b.fc, N,
                        m->s.F, m->s.C, m->c->act);
}

/* ---------------------------------------------------------------------------------------------- */
/* forward */

/* Attention of layer l. In generation the new keys and values are appended to the cache, and a
   token at a position > 0 attends to all keys in the cache. */
static void block_attention(Model *m, Acts b, int l, Shape s) {
    const Config *c = m->c;
    if (m->keys) {
        size_t KV = (size_t)s.NKV * s.HS, layer = (size_t)l * m->s.T * KV;
        size_t at = layer + (size_t)m->position * KV, row = (size_t)s.QKV * sizeof(floatX);
        size_t bytes = KV * sizeof(floatX), n = (size_t)s.N;
        device_copy_rows(m->keys + at, bytes, b.qkv + s.A, row, bytes, n);
        device_copy_rows(m->values + at, bytes, b.qkv + s.A + KV, row, bytes, n);
        if (m->position > 0) {
            attention_decode(b.att, b.qkv, m->keys + layer, m->values + layer, m->position, s.NH,
                             s.NKV, s.HS, c->attn_scale);
            return;
        }
    }
    attention_forward(b.att, b.lse, b.qkv, s.B, s.T, s.NH, s.NKV, s.HS, c->attn_scale);
}

/* Block l, pre-norm: from the residual stream x to block_out, which its MLP adds to the stream. The
   residual sum of the block before, x = x_mid + block_out, is formed by this block's first norm.
   recompute: x was kept, so there is no sum to form, and block_out is not needed. */
static void block_forward(Model *m, int l, Shape s, int recompute) {
    const Config *c = m->c;
    Acts b = block_at(m, l);
    int N = s.N, C = s.C, sum = l > 0 && !recompute;
    norm_forward(b.norm1, b.mean1, b.rstd1, b.x, sum ? block_at(m, l - 1).x_mid : b.x,
                 sum ? b.block_out : NULL, param(m, T_NORM1_W, l), param(m, T_NORM1_B, l), N, C,
                 c->norm, c->norm_eps);
    linear(m, LINEAR_QKV, l, b.qkv, b.u_qkv, b.norm1, N);
    qk_forward(b.qkv, b.qk_rstd, m->cosine, m->sine, N, s.T, m->position, s.NH, s.NKV, s.HS,
               c->qk_norm, c->norm_eps);
    block_attention(m, b, l, s);
    linear(m, LINEAR_O, l, b.block_out, b.u_o, b.att, N);

    norm_forward(b.norm2, b.mean2, b.rstd2, b.x_mid, b.x, b.block_out, param(m, T_NORM2_W, l),
                 param(m, T_NORM2_B, l), N, C, c->norm, c->norm_eps);
    mlp_forward(m, l, b, N);
    if (!recompute) {
        linear(m, LINEAR_PROJ, l, b.block_out, b.u_proj, b.act, N);
    } else if (has_factors(m, LINEAR_PROJ)) {
        const Linear proj = linear_of(c, LINEAR_PROJ);
        factors_inner(b.u_proj, b.act, weight(m, T_WPROJ_DOWN, l), &proj, N);
    }
}

/* Recomputes the activations of block l that --recompute did not keep, equal to the bit. */
static void block_recompute(Model *m, int l, Shape s) {
    const Config *c = m->c;
    Acts b = block_at(m, l);
    int N = s.N, C = s.C;
    if (c->recompute == RECOMPUTE_BLOCK) {
        block_forward(m, l, s, 1);
        return;
    }
    if (c->recompute >= RECOMPUTE_NORM) {
        norm_forward(b.norm1, b.mean1, b.rstd1, NULL, b.x, NULL, param(m, T_NORM1_W, l),
                     param(m, T_NORM1_B, l), N, C, c->norm, c->norm_eps);
        norm_forward(b.norm2, b.mean2, b.rstd2, NULL, b.x_mid, NULL, param(m, T_NORM2_W, l),
                     param(m, T_NORM2_B, l), N, C, c->norm, c->norm_eps);
    }
    if (c->recompute >= RECOMPUTE_ACT) mlp_again(m, l, b, N);
}

/* From a.tokens (B,T), whose positions are m.position + t, through the blocks to the normed
   stream a.normf (N,C). */
static void model_forward(Model *m, Shape s) {
    const Config *c = m->c;
    Acts *a = &m->a;
    int N = s.N, C = s.C;
    const floatX *wpe = weight(m, T_WPE, 0);
    if (wpe) wpe += (size_t)m->position * C;
    embed_forward(c->embed_norm ? a->embed : a->x, a->tokens, weight(m, T_WTE, 0), wpe, s.B, s.T,
                  C);
    if (c->embed_norm)
        norm_forward(a->x, a->mean0, a->rstd0, NULL, a->embed, NULL, param(m, T_NORM0_W, 0),
                     param(m, T_NORM0_B, 0), N, C, c->norm, c->norm_eps);
    for (int l = 0; l < s.L; l++) block_forward(m, l, s, 0);
    norm_forward(a->normf, a->meanf, a->rstdf, block_at(m, s.L).x, block_at(m, s.L - 1).x_mid,
                 a->block_out, param(m, T_NORMF_W, 0), param(m, T_NORMF_B, 0), N, C, c->norm,
                 c->norm_eps);
}

/* Logits (rows,Vp) of rows [first, first + rows) of a.normf, before the softcap. */
static void head_forward(Model *m, int first, int rows) {
    linear(m, LINEAR_HEAD, 0, m->a.logits, m->a.u_head, m->a.normf + (size_t)first * m->s.C, rows);
}

/* ---------------------------------------------------------------------------------------------- */
/* loss */

/* Sends tokens (B,T) and targets (B,T) to the device; a target of -1 counts no loss. */
static void send_batch(Model *m, const int *tokens, const int *targets, Shape s) {
    tokens_upload(m->a.tokens, tokens, s.N, s.Vp);
    device_send(m->a.targets, targets, (size_t)s.N * sizeof(int));
}

/* Cross entropy of a.targets after model_forward, added to the sum that take_loss returns.
   Logits are formed R rows at a time and are not kept. So if gradients are wanted (`scale`,
   the factor on the summed loss, is not 0), the head's backward pass happens here too. It
   sets a.dnorm (N,C), if it is needed, and adds to the gradients of the head's bias and weight; if
   m.fresh, it sets the weight's gradient. */
static void head_loss(Model *m, Shape s, double scale) {
    Acts *a = &m->a;
    Reach reach = backward_reach(&m->p.r);
    for (int n = 0; n < s.N; n += m->R) {
        int rows = min_int(m->R, s.N - n), add = n > 0 || !m->fresh;
        head_forward(m, n, rows);
        classifier(a->losses + n, a->logits, a->targets + n, rows, s.V, s.Vp, m->c->softcap, scale);
        if (scale == 0) continue;
        linear_back(m, LINEAR_HEAD, 0, reach > REACH_HEAD ? a->dnorm + (size_t)n * s.C : NULL,
                    a->logits, a->normf + (size_t)n * s.C, a->u_head, rows, 1, add);
    }
    losses_add(a->loss_sum, a->losses, s.N);
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

/* From a.dx, the gradient of the stream after block l, to the gradient of the stream before block
   l. The gradient of the bias of W_O or W_proj is that of the stream after the bias, summed over
   rows; the norm that forms the gradient of the stream sums its rows. */
static void block_backward(Model *m, int l, Shape s) {
    const Config *c = m->c;
    Acts b = block_at(m, l);
    int N = s.N, C = s.C, add = !m->fresh;
    mlp_back(m, l, b, N, add);
    linear_back(m, LINEAR_FC, l, b.dnorm, b.dfc, b.norm2, b.u_fc, N, 0, add);
    norm_backward(b.dx, grad(m, T_NORM2_W, l), grad(m, T_NORM2_B, l), grad(m, T_BO, l), b.dnorm,
                  b.dx, b.x_mid, param(m, T_NORM2_W, l), b.mean2, b.rstd2, N, C, c->norm);

    linear_back(m, LINEAR_O, l, b.datt, b.dx, b.att, b.u_o, N, 0, add);
    attention_backward(b.dqkv, b.datt, b.qkv, b.att, b.lse, s.B, s.T, s.NH, s.NKV, s.HS,
                       c->attn_scale);
    qk_backward(b.dqkv, b.qkv, b.qk_rstd, m->cosine, m->sine, N, s.T, s.NH, s.NKV, s.HS,
                c->qk_norm);
    int below = l > 0 || backward_reach(&m->p.r) == REACH_EMBED;
    linear_back(m, LINEAR_QKV, l, below ? b.dnorm : NULL, b.dqkv, b.norm1, b.u_qkv, N, 1, add);
    if (below)
        norm_backward(b.dx, grad(m, T_NORM1_W, l), grad(m, T_NORM1_B, l), grad(m, T_BPROJ, l - 1),
                      b.dnorm, b.dx, b.x, param(m, T_NORM1_W, l), b.mean1, b.rstd1, N, C, c->norm);
}

/* From a.dnorm, the gradient of the normed stream, through the blocks down to the embedding. Call
   it after model_forward and head_loss of the batch. Adds to every parameter gradient, but if
   m.fresh, sets those of the blocks' matrices. */
static void model_backward(Model *m, Shape s) {
    const Config *c = m->c;
    Acts *a = &m->a;
    int N = s.N, C = s.C, L = s.L;
    Reach reach = backward_reach(&m->p.r);
    if (reach == REACH_HEAD) return;
    norm_backward(a->dx, grad(m, T_NORMF_W, 0), grad(m, T_NORMF_B, 0), grad(m, T_BPROJ, L - 1),
                  a->dnorm, NULL, block_at(m, L).x, param(m, T_NORMF_W, 0), a->meanf, a->rstdf, N,
                  C, c->norm);
    if (reach == REACH_NORM) return;
    for (int l = L - 1; l >= 0; l--) {
        block_recompute(m, l, s);
        block_backward(m, l, s);
    }
    if (reach == REACH_BLOCKS) return;
    if (c->embed_norm)
        norm_backward(a->dx, grad(m, T_NORM0_W, 0), grad(m, T_NORM0_B, 0), NULL, a->dx, NULL,
                      a->embed, param(m, T_NORM0_W, 0), a->mean0, a->rstd0, N, C, c->norm);
    embed_backward(grad(m, T_WTE, 0), grad(m, T_WPE, 0), a->dx, a->tokens, s.B, s.T, C);
}

/* Zeroes the gradients before the first micro-batch of a step, except those that a fresh
   micro-batch sets: the blocks' matrices and the head, which are most of the memory. Gradients lie
   in the order of the registry, so all gradients between two exceptions are zeroed at once. */
static void clear_gradients(Model *m) {
    size_t from = 0, end = m->p.r.size[SLOT_GRAD];
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->p.r.t[id];
        const Slot *slot = &t->slot[SLOT_GRAD];
        if (!slot->layers || !(role_is_block(t->role) || id == (int)head_id(m))) continue;
        if (slot->at > from) device_zero(m->p.grad + from, (slot->at - from) * sizeof(floatM));
        from = slot->at + slot_size(t, SLOT_GRAD);
    }
    if (end > from) device_zero(m->p.grad + from, (end - from) * sizeof(floatM));
}

/* Forward, loss and backward of one micro-batch of shape m.s: adds to the gradient and to the loss,
   and if m.fresh, sets the gradients that clear_gradients leaves. `scale` is the factor on the
   summed loss. All micro-batches use equal addresses and sizes, so a device may replay the work of
   an earlier one. */
static void accumulate_gradient(Model *m, const int *tokens, const int *targets, double scale) {
    send_batch(m, tokens, targets, m->s);
    if (device_replays(&m->graph[m->fresh])) return;
    model_forward(m, m->s);
    head_loss(m, m->s, scale);
    model_backward(m, m->s);
    device_recorded(&m->graph[m->fresh]);
}

/* ---------------------------------------------------------------------------------------------- */
/* update */

/* One optimizer step on the accumulated gradient times `clip`. `step` counts from 0. */
static void optimizer_step(Model *m, int step, double clip) {
    const Config *c = m->c;
    Params *p = &m->p;
    PlanState s = {.param = p->param,
                   .grad = p->grad,
                   .moment = p->moment,
                   .state = p->state,
                   .arena = &m->arena,
                   .lr_scale = {schedule_lr(&c->schedule, step),
                                schedule_lr_of(&c->schedule, RATE_REST, step)},
                   .momentum = schedule_momentum(&c->schedule, step, c->optim.momentum),
                   .gscale = clip,
                   .step = step + 1,
                   .weight = has_copy() ? p->weight : NULL};
    size_t first, n;
    if (p->before) plan_groups_keep(&m->plan, &p->r, p->param, p->before);
    plan_step(&m->plan, &p->r, c, &s);
    for (int i = 0; has_copy() && plan_stale(&m->plan, &p->r, i, &first, &n); i++)
        cast_weights(p->weight + first, p->param + first, n);
    readout_average(p, c, step + 1);
}

/* ---------------------------------------------------------------------------------------------- */
/* validation */

/* How a piece of work ended, where a signal may end it early. */
typedef enum { WORK_DONE = 0, WORK_STOPPED = 1, WORK_FAILED = -1, WORK_NO_DATA = -2 } Work;

/* What a validation finds: the mean loss in nats per token, and the loss in bits per byte, which is
   NaN where the bytes of the tokens are not known. */
typedef struct {
    double loss, bits_per_byte;
} Validation;

/* Validates on the first `limit` targets (0: all) of the validation data, whose tokens have these
   bytes. x and y have room for a batch (B,T) each. `progress` may be NULL. Fills *found, or a
   message. */
static Work validate(Model *m, Data *val, const TokenBytes *texts, size_t limit, int *x, int *y,
                     Progress *progress, Validation *found, char *err) {
    size_t rows = data_val_rows(val, limit), count = 0;
    int64_t bytes = 0;
    for (size_t row = 0; row < rows; row += (size_t)m->s.B) {
        Shape s = shape_with(m->s, (int)min_size((size_t)m->s.B, rows - row), m->s.T);
        if (waiting_signal()) {
            take_loss(m);
            return WORK_STOPPED;
        }
        if (data_val_batch(val, row, s.B, limit, x, y, err)) return WORK_NO_DATA;
        for (int n = 0; n < s.N; n++) count += y[n] >= 0;
        bytes += token_bytes_of(texts, y, (size_t)s.N);
        send_batch(m, x, y, s);
        model_forward(m, s);
        head_loss(m, s, 0);
        if (progress) progress_busy(progress, "validation", (double)row / (double)rows);
    }
    double nats = take_loss(m);
    found->loss = nats / (double)count;
    found->bits_per_byte = texts->known && bytes ? nats / log(2) / (double)bytes : NAN;
    return device_check(err) ? WORK_FAILED : WORK_DONE;
}

/* Fills e->loss and e->length for the rows of all examples, by forward passes over as many rows,
   which may be of several examples, as have the tokens of a batch. x and y have room for a batch
   (B,T) each, `losses` for the losses of its tokens. `progress` may be NULL. */
static Work evaluate(Model *m, Eval *e, int *x, int *y, floatM *losses, Progress *progress,
                     char *err) {
    size_t rows = (size_t)(m->s.N / e->T);
    for (size_t row = 0; row < e->rows; row += rows) {
        Shape s = shape_with(m->s, (int)min_size(rows, e->rows - row), e->T);
        if (waiting_signal()) {
            take_loss(m);
            return WORK_STOPPED;
        }
        if (eval_batch(e, row, s.B, x, y, err)) return WORK_NO_DATA;
        send_batch(m, x, y, s);
        model_forward(m, s);
        head_loss(m, s, 0);
        if (device_download(losses, m->a.losses, (size_t)s.N * sizeof *losses)) break;
        eval_take(e, row, s.B, losses, y);
        if (progress) progress_busy(progress, "evaluation", (double)row / (double)e->rows);
    }
    take_loss(m); /* the sum has no use here */
    return device_check(err) ? WORK_FAILED : WORK_DONE;
}

/* ---------------------------------------------------------------------------------------------- */
/* a step */

/* One step of training: the batch in micro-batches, the guard, the update. Sets the mean loss and
   the gradient's norm. If the data fails, if a signal comes between micro-batches, or if the loss
   or the gradient is not finite, the parameters stay as they were. */
static Work train_step(Run *run, Model *m, double *loss, double *norm, char *err) {
    const Config *c = m->c;
    int micro_batches = (int)(c->total_batch_tokens / m->s.N);
    double tokens = (double)c->total_batch_tokens;
    clear_gradients(m);
    for (int i = 0; i < micro_batches; i++) {
        if (waiting_signal()) return WORK_STOPPED;
        if (data_next(&run->train, m->s.B, run->x, run->y, err)) return WORK_NO_DATA;
        m->fresh = i == 0;
        accumulate_gradient(m, run->x, run->y, 1 / tokens);
    }
    /* A step waits for the device here and nowhere else. */
    *norm = sqrt(la_sum_squares(m->p.grad, m->p.r.size[SLOT_GRAD]));
    *loss = take_loss(m) / tokens;
    if (device_check(err)) return WORK_FAILED;
    if (!isfinite(*loss) || !isfinite(*norm)) {
        guard_diverged(&m->p, run->step + 1, *loss, *norm, run->log.checkpoints, err);
        return WORK_FAILED;
    }
    optimizer_step(m, run->step,
                   c->grad_clip > 0 && *norm > c->grad_clip ? c->grad_clip / *norm : 1);
    if (device_check(err)) return WORK_FAILED; /* of an update, as far as the device has got */
    run->step++;
    run->tokens += c->total_batch_tokens;
    return WORK_DONE;
}

#include "llmc/trial.h" /* trials on a model before the run begins */

/* ---------------------------------------------------------------------------------------------- */
/* the loop */

static Work run_validation(Run *run, Model *m, Progress *progress, LogLine *line, char *err) {
    Validation found;
    Work work = validate(m, &run->val, &run->texts, (size_t)m->c->val_tokens, run->x, run->y,
                         progress, &found, err);
    if (work != WORK_DONE) return work;
    line->val_loss = found.loss;
    line->val_bpb = found.bits_per_byte;
    return WORK_DONE;
}

static Work run_evaluation(Run *run, Model *m, Progress *progress, LogLine *line, char *err) {
    floatM *losses = (floatM *)malloc((size_t)m->s.N * sizeof *losses);
    if (!losses) {
        fail(err, "out of memory: the losses of a batch");
        return WORK_FAILED;
    }
    Work work = evaluate(m, &run->eval, run->x, run->y, losses, progress, err);
    free(losses);
    if (work != WORK_DONE) return work;
    line->eval_acc = eval_accuracy(&run->eval, 0);
    line->eval_acc_norm = eval_accuracy(&run->eval, 1);
    return WORK_DONE;
}

/* Measures of the model what `due` has, for a line of the log: of the readout if there is one, else
   of the weights. */
static Work run_measures(Run *run, Model *m, int due, Progress *progress, LogLine *line,
                         char *err) {
    Work work = WORK_DONE;
    int readout = due && readout_begin(&m->p, m->c);
    if (readout) refresh_weights(m);
    if (due & MEASURE_VALIDATION) work = run_validation(run, m, progress, line, err);
    if (work == WORK_DONE && (due & MEASURE_EVALUATION) && run->eval.count)
        work = run_evaluation(run, m, progress, line, err);
    if (readout) readout_end(&m->p);
    if (readout) refresh_weights(m);
    return work;
}

/* Takes the next step. run->pending becomes its line of the log, which lacks the validation
   loss. */
static Work timed_step(Run *run, Model *m, char *err) {
    const Config *c = m->c;
    LogLine line = log_line_empty();
    double start = now_seconds();
    line.lr = (c->lora_rank ? c->lr_lora : c->lr) * schedule_lr(&c->schedule, run->step);
    Work work = train_step(run, m, &line.train_loss, &line.grad_norm, err);
    if (work != WORK_DONE) return work;
    double seconds = now_seconds() - start;
    run->seconds += seconds;
    line.step = run->step;
    line.tokens = run->tokens;
    line.ms = 1000 * seconds;
    line.tok_s = (double)c->total_batch_tokens / seconds;
    double flops = flops_per_token(c, &m->p.r) * line.tok_s;
    if (run->peak > 0) line.mfu = flops / run->peak;
    if (run->stated_peak > 0) line.mfu_stated = flops / run->stated_peak;
    char *extra;
    if (log_extra(&extra, c, &m->p, &m->plan, run->step, err)) return WORK_FAILED;
    line.extra = extra;
    run->pending = log_line_text(&line);
    free(extra);
    if (run->pending) return WORK_DONE;
    fail(err, "out of memory: a line of the log");
    return WORK_FAILED;
}

/* Whether something that is due every `every` steps (0: at the end only) is due now. */
static int is_due(const Run *run, int every) {
    return run->step == run->config.steps || (every && run->step % every == 0);
}

/* What is to be measured after this step. The model is validated before the first step too. */
static int measures_due(const Run *run) {
    const Config *c = &run->config;
    int validation = run->step == 0 || is_due(run, config_val_every(c, run->step)), evaluation = 0;
    if (c->eval_every == EVAL_WITH_VALIDATION) evaluation = validation;
    else evaluation = is_due(run, c->eval_every);
    return (validation ? MEASURE_VALIDATION : 0) |
           (evaluation && run->eval.count ? MEASURE_EVALUATION : 0);
}

/* Measures what is due, and writes the log's line of the step that was made. A line whose
   measurements are not done stays in run->pending, which a checkpoint keeps; a resumed run owes
   them, and then replaces that checkpoint. */
static Work finish_step(Run *run, Model *m, Progress *progress, char *err) {
    const Config *c = m->c;
    int owed = run->owed;
    LogLine line = log_line_of(run->pending);
    run->due |= measures_due(run);
    Work work = run_measures(run, m, run->due, progress, &line, err);
    if (work != WORK_DONE) return work;
    print_step(progress, c, &line);
    if (log_append_measured(&run->log, run->pending, &line, err)) return WORK_FAILED;
    free(run->pending);
    run->pending = NULL;
    run->owed = run->due = 0;
    int saves = owed || is_due(run, c->checkpoint_every);
    return saves && save_run(run, &m->p, &m->plan, err) ? WORK_FAILED : WORK_DONE;
}

/* Logs what is measured before the first step. */
static Work log_start(Run *run, Model *m, Progress *progress, char *err) {
    LogLine line = log_line_empty();
    Work work = run_measures(run, m, measures_due(run), progress, &line, err);
    if (work != WORK_DONE) return work;
    if (log_line(&run->log, &line, err)) return WORK_FAILED;
    print_step(progress, m->c, &line);
    return WORK_DONE;
}

/* Trains from run->step to the last step, or until a signal comes. */
static Work train_steps(Run *run, Model *m, Progress *progress, char *err) {
    Work work = run->step == 0 ? log_start(run, m, progress, err) : WORK_DONE;
    while (work == WORK_DONE && (run->pending || run->step < run->config.steps)) {
        if (waiting_signal()) return WORK_STOPPED;
        if (!run->pending) {
            work = timed_step(run, m, err);
            if (work != WORK_DONE) break;
            LogLine line = log_line_of(run->pending);
            progress_update(progress, run->step, line.train_loss, line.tok_s);
        }
        work = finish_step(run, m, progress, err);
    }
    return work;
}

/* Trains, and saves what was reached if a signal or the data ended the run. *stopped becomes the
   signal's number, else 0. Returns 0, or -1 with a message. */
static int train_loop(Run *run, Model *m, int *stopped, char *err) {
    char why[ERR_LEN], saving[ERR_LEN];
    Progress progress;
    progress_begin(&progress, stdout, run->step, m->c->steps);
    progress.log = run->log.path;
    run->begun = run->step;
    Work work = train_steps(run, m, &progress, why);
    *stopped = work == WORK_STOPPED ? waiting_signal() : 0;
    progress_clear(&progress);
    int saves = (work == WORK_STOPPED || work == WORK_NO_DATA) && run->step > 0 &&
                m->c->keep_checkpoints > 0;
    int saved = saves && !save_run(run, &m->p, &m->plan, saving);
    keep_choices(run); /* validation may have measured more */
    if (saves && !saved && *stopped) return fail(err, "%s", saving);
    if (work == WORK_NO_DATA && saved)
        return fail(err, "%.800s. Step %d is saved: --resume goes on from there", why, run->step);
    return work < 0 ? fail(err, "%s", why) : 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* main */

#ifndef CM_NO_MAIN

/* Everything that main works with. */
typedef struct {
    Run run;
    Model model;
    Registry registry;
    Plan plan;
    Resume from;  /* with --resume */
    Ckpt weights; /* of --init-from, if has_weights: to begin with, or to train adapters beside */
    int has_weights;
    double began; /* when this start began, as now_seconds counts */
} Program;

/* Reads the command line and serves --help, --version and --help-markdown. Returns 0 to continue, 1
   if the program is done, -1 with a message. */
static int parse(Program *p, int argc, char **argv, char *err) {
    Config *c = &p->run.asked;
    FlagNote presets[CONFIG_PRESETS];
    preset_notes(presets);
    int status = config_parse(c, p->run.given, argc, argv, err);
    if (status > 0) {
        flags_help(stdout, "usage: train_gpt [flags]    With none: GPT on TinyShakespeare.",
                   config_flags, CONFIG_FLAGS);
        flags_help_notes(stdout, "Flags of each --preset", presets, CONFIG_PRESETS);
    }
    if (status) return status;
    if (c->version) printf("cm.c %s\n", CM_VERSION);
    if (c->help_markdown && !c->version) {
        flags_markdown(stdout, config_flags, CONFIG_FLAGS);
        flags_markdown_notes(stdout, "Presets", presets, CONFIG_PRESETS);
    }
    return c->version || c->help_markdown;
}

/* Opens what --resume or --init-from name, and takes over its flags. */
static int open_past(Program *p, char *err) {
    Run *run = &p->run;
    run->train_part = -1;
    run->log.fd = -1;
    if (run->asked.resume) {
        if (resume_open(run, &p->from, err)) return -1;
        if (p->from.has_ckpt && !run->asked.lora_rank) return 0;
        if (resume_is_finished(run, &p->from) && !run->asked.dry_run) return 0;
        p->has_weights = weights_reopen(run, &p->weights, err);
        return min_int(p->has_weights, 0);
    }
    if (!config_is_given(run->given, "init-from")) {
        if (!run->asked.lora_rank) return check_factor_flags(run, err);
        return fail(err,
                    "--lora-rank %d: adapters are trained beside the weights of a model; name "
                    "its run or checkpoint with --init-from, or train products from scratch "
                    "with --low-rank",
                    run->asked.lora_rank);
    }
    if (weights_open(run, &p->weights, err)) return -1;
    p->has_weights = 1;
    if (weights_flags(run, &p->weights, err)) return -1;
    return check_factor_flags(run, err);
}

/* Returns -1 with a message if the weights of --init-from are of another model. */
static int check_weights(const Program *p, char *err) {
    char why[ERR_LEN];
    Whose whose = p->run.config.lora_rank ? TENSORS_OF_BASE : TENSORS_OWN;
    if (check_parameters(&p->registry, &p->weights, whose, 1, why))
        return fail(err, "--init-from: %.300s: %.600s", p->run.from_file, why);
    if (weights_check_finite(&p->weights, p->run.from_file, why))
        return fail(err, "--init-from: %.900s", why);
    return 0;
}

/* Opens the run's past, the data and the device, and resolves the flags. What was chosen for the
   run, such as the attention that was fastest, is kept as a flag, so that a resumed run has it
   too. */
static int open_run(Program *p, char *err) {
    Run *run = &p->run;
    if (open_past(p, err)) return -1;
    run->config = run->asked;
    read_choices(run);
    if (p->from.has_ckpt)
        choices_parse(&run->choices, p->from.ckpt.header, p->from.ckpt.header_length, "choice.");
    if (open_data(run, err) || (run->asked.resume && resume_check_data(run, &p->from, err)) ||
        (p->has_weights && !run->asked.resume && weights_check_data(run, err)) ||
        config_resolve(&run->config, err) || device_setup(&run->config, &run->choices, err))
        return -1;
    run->asked.attention = run->config.attention;
    run->asked.val_tokens = run->config.val_tokens;
    device_describe(run->machine, sizeof run->machine);
    device_identity(run->identity, sizeof run->identity);
    p->registry = registry_build(&run->config);
    if (registry_freeze(&p->registry, run->config.freeze, err)) return -1;
    p->plan = plan_build(&run->config, &p->registry);
    if (p->has_weights && check_weights(p, err)) return -1;
    if (!run->asked.resume) note_idle_flags(run);
    return plan_check_frozen(&p->plan, &run->config, &p->registry, err);
}

/* Prints how long the run is. If it reads its data very often, says so: its training loss then no
   longer tells how well the model does on other text. */
static void print_length(const Run *run) {
    const double often = 20;
    const Config *c = &run->config;
    double epochs = (double)c->steps * (double)c->total_batch_tokens;
    epochs /= (double)data_tokens(&run->train);
    print_line(stdout, "run", "%d steps of %lld tokens (%.2f epochs), seed %lld", c->steps,
               (long long)c->total_batch_tokens, epochs, (long long)c->seed);
    fflush(stdout);
    if (epochs > often)
        print_line(stderr, NULL,
                   "note: every token is read about %.0f times; the model will learn this text by "
                   "heart: use more data or fewer --steps",
                   epochs);
}

/* Prints what the run will be. Refuses a run for which the memory is too small. */
static int describe(Program *p, char *err) {
    Run *run = &p->run;
    Config *c = &run->config;
    char text[4096];
    print_line(stdout, "machine", "%s", run->machine);
    device_libraries(text, sizeof text);
    if (text[0]) print_line(stdout, "library", "%s", text);
    print_preset(stdout, &run->asked);
    size_t val = data_tokens(&run->val);
    char limit[64] = "";
    if (c->val_tokens && (size_t)c->val_tokens < val)
        snprintf(limit, sizeof limit, ", of which %lld are evaluated", (long long)c->val_tokens);
    print_line(stdout, "data", "%s: %zu training and %zu validation tokens%s", c->data,
               data_tokens(&run->train), val, limit);
    if (run->eval.count)
        print_line(stdout, "examples", "%s: %zu with %zu completions, %.4f are right by chance",
                   c->eval_data, run->eval.count, run->eval.rows, eval_chance(&run->eval));
    print_model(stdout, c, &p->registry);
    plan_title(text, sizeof text, c);
    print_line(stdout, "update", "%s", text);
    print_momentum(stdout, c);
    print_readout(stdout, c);
    if (c->freeze[0]) print_line(stdout, "frozen", "%s", c->freeze);
    print_memory(stdout, model_memory(c, &p->registry, &p->plan, 1));
    print_length(run);
    if (check_memory(c, &p->registry, &p->plan, err)) return -1;
    run->asked.logit_rows = c->logit_rows; /* a resumed run forms equally many */
    return 0;
}

static int create(Program *p, char *err) {
    if (model_create(&p->model, &p->run.config, &p->registry, &p->plan, 1, err)) return -1;
    return open_batch(&p->run, err);
}

/* Sets the parameters that the file of --init-from has, if there is one: of a run that begins all
   of them, or those beside its adapters. */
static int take_weights(Program *p, char *err) {
    Whose whose = p->run.config.lora_rank ? TENSORS_OF_BASE : TENSORS_OWN;
    if (!p->has_weights) return 0;
    if (load_parameters(&p->model.p, &p->weights, whose, 1, err)) return -1;
    ckpt_close(&p->weights);
    p->has_weights = 0;
    refresh_weights(&p->model);
    print_line(stdout, "weights", "from %s", p->run.from_file);
    return 0;
}

/* Sets the parameters of a run that begins: those of --init-from, or initial ones. */
static int set_weights(Program *p, char *err) {
    if ((!p->has_weights || p->run.config.lora_rank) && model_init(&p->model, err)) return -1;
    return take_weights(p, err);
}

/* Prints the plan, and the time of real micro-batches and updates on a model of this shape. */
static int dry_run(Program *p, char *err) {
    Run *run = &p->run;
    const Config *c = &run->config;
    double flops = flops_per_token(c, &p->registry), micro_batch, update;
    double tokens = (double)c->steps * (double)c->total_batch_tokens;
    hold_signals(0); /* nothing would be lost */
    printf("\n");
    plan_print(stdout, &p->plan, &p->registry);
    if (create(p, err) || set_weights(p, err)) return -1;
    printf("\n");
    first_steps_print(stdout, &p->plan, &p->registry, c, p->model.p.param, "initial");
    printf("\n");
    print_line(stdout, "flops", "%.4g per token forward and backward, %.4g in all", flops,
               flops * tokens);
    choose_gelu(run, &p->model);
    if (time_step(run, &p->model, &micro_batch, &update, err)) return -1;
    print_expected_time(c, flops, micro_batch, update);
    return output_status(stdout);
}

/* Makes the folder and the model, and sets its parameters. run.json is there before the first step,
   so that a run that is killed can be resumed; a resumed run rewrites it once nothing can be
   refused any more. */
static int begin(Program *p, char *err) {
    Run *run = &p->run;
    Model *m = &p->model;
    const Config *c = &run->config;
    if (c->resume ? log_go_on(&run->log, err) : log_open(&run->log, c->runs_dir, c->run, 0, err))
        return -1;
    if (!c->resume && write_run_json(run, &p->registry, err)) return -1;
    device_peak(&run->peak, &run->stated_peak);
    print_peak(run->peak, run->stated_peak);
    if (create(p, err)) return -1;
    if (p->from.has_ckpt) {
        if (take_weights(p, err) || restore_run(run, &m->p, &m->plan, &p->from, err)) return -1;
        refresh_weights(m);
        print_line(stdout, "resumed", "from %s", p->from.path);
    } else {
        if (set_weights(p, err)) return -1;
        if (c->resume)
            print_line(stdout, "resumed", "from the beginning: there is no checkpoint yet");
        if (log_truncate_after(&run->log, -1, err)) return -1;
    }
    if (c->resume) resume_print_notes(run, &p->from);
    if (!p->from.has_ckpt) run->n_changes = 0; /* all of the run is as it is told now */
    first_steps_print(stdout, &m->plan, &m->p.r, c, m->p.param,
                      p->from.has_ckpt ? "resumed" : "initial");
    resume_close(&p->from);
    choose_gelu(run, m);
    if (choose_replay(run, m, err)) return -1;
    keep_choices(run);
    return write_run_json(run, &p->registry, err);
}

/* Prints the end of the run; returns its exit status. */
static int finish(Program *p, const char *name, int stopped) {
    Run *run = &p->run;
    const Config *c = &run->config;
    print_curve(run->log.path, data_is_text(&run->val) ? "byte" : "token", run->eval.count);
    print_times(stdout, now_seconds() - p->began, run->seconds, run->step - run->begun,
                run->tokens);
    print_peak_memory((double)device_memory_peak(), run->log.dir);
    print_commands(stdout, c, name, run->log.checkpoints, run->step, stopped);
    output_lost(stdout, run->log.path); /* notes it, if no earlier line has */
    close_run(run);
    model_free(&p->model);
    return stopped ? 128 + stopped : 0;
}

/* The program after its command line. Returns its exit status, or -1 with a message. */
static int run_program(Program *p, const char *name, char *err) {
    p->began = now_seconds();
    hold_signals(1);
    signal(SIGPIPE, SIG_IGN); /* a reader of the output that goes away does not end the run */
    if (open_run(p, err)) return -1;
    if (p->run.asked.resume && !p->run.asked.dry_run && resume_is_finished(&p->run, &p->from))
        return resume_finished(&p->run, &p->from, err);
    if (describe(p, err)) return -1;
    if (p->run.config.dry_run) return dry_run(p, err);
    int stopped = waiting_signal();
    if (stopped) {
        fprintf(stderr, "stopped by signal %d before the run began\n", stopped);
        return 128 + stopped;
    }
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is reported as a failed write */
    if (begin(p, err) || train_loop(&p->run, &p->model, &stopped, err) || device_check(err))
        return -1;
    return finish(p, name, stopped);
}

int main(int argc, char **argv) {
    output_hold();
    static Program p;
    char err[ERR_LEN];
    int status = parse(&p, argc, argv, err);
    if (status > 0) return output_status(stdout);
    if (status == 0) status = run_program(&p, argv[0], err);
    if (status < 0) die("%s", err);
    return status;
}

#endif
