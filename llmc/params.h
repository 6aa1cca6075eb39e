/*
The tensor registry: one table, built from the config, with a row per parameter tensor. Same-named
tensors of all layers are stacked (L, rows, cols) in one allocation. Initialisation, the update plan,
weight decay, checkpoints, statistics, memory reports and test names all walk this table; a tensor
exists nowhere else.
*/
#ifndef CM_PARAMS_H
#define CM_PARAMS_H

#include "base.h"
#include "config.h"
#include "rng.h"

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
    TENSORS
} TensorId;

typedef enum { ROLE_EMBED, ROLE_HEAD, ROLE_SCALAR, ROLE_QKV, ROLE_O, ROLE_MLP } Role;

typedef struct {
    const char *name;
    Role role;
    int layers, rows,
        cols;            /* stacked (layers, rows, cols); layers 0: this model has no such tensor */
    size_t offset, size; /* elements from the start of the allocation; size = layers rows cols */
    double init_mean, init_std;
    int used_rows; /* rows of the vocabulary; those past it are padding and stay zero */
} Tensor;

typedef struct {
    Tensor t[TENSORS];
    size_t size;  /* elements of all tensors, each start aligned to 64 bytes */
    size_t count; /* parameters: size without alignment and vocabulary padding */
} Registry;

static inline void registry_add(Registry *r, TensorId id, const char *name, Role role, int layers,
                                int rows, int cols, double mean, double std) {
    Tensor *t = &r->t[id];
    t->name = name;
    t->role = role;
    t->layers = layers;
    t->rows = t->used_rows = rows;
    t->cols = cols;
    t->init_mean = mean;
    t->init_std = std;
    t->offset = r->size;
    t->size = (size_t)layers * rows * cols;
    r->size += (t->size + 63) / 64 * 64;
    r->count += t->size;
}

/* The rows (NH + 2 NKV) HS of W_QKV are all query heads, then key heads, then value heads. W_FC of
   swiglu holds F gate rows, then F up rows. Vectors are (L, 1, C). */
static inline Registry registry_build(const Config *c) {
    Registry r;
    memset(&r, 0, sizeof r);
    int L = c->layers, C = c->width, F = c->ff_width, V = c->vocab, Vp = round_up(V, 64);
    int QKV = (c->heads + 2 * c->kv_heads) * c->head_dim, A = c->heads * c->head_dim;
    int H = c->act == ACT_SWIGLU ? 2 * F : F, affine = c->norm == NORM_LAYERNORM;
    int speedrun = c->init == INIT_SPEEDRUN;
    double into_C = speedrun ? sqrt(0.33 / C) : c->init_std;    /* matrices that read the stream */
    double onto = speedrun ? 0.0 : c->init_std / sqrt(2.0 * L); /* those that write to it */
    registry_add(&r, T_WTE, "wte", ROLE_EMBED, 1, Vp, C, 0,
                 speedrun && !c->tied ? 1.0 : c->init_std);
    if (c->pos == POS_LEARNED)
        registry_add(&r, T_WPE, "wpe", ROLE_EMBED, 1, c->seq_len, C, 0, c->init_std);
    if (c->embed_norm) {
        registry_add(&r, T_NORM0_W, "norm0_w", ROLE_SCALAR, 1, 1, C, 1, 0);
        if (affine) registry_add(&r, T_NORM0_B, "norm0_b", ROLE_SCALAR, 1, 1, C, 0, 0);
    }
    registry_add(&r, T_NORM1_W, "norm1_w", ROLE_SCALAR, L, 1, C, 1, 0);
    if (affine) registry_add(&r, T_NORM1_B, "norm1_b", ROLE_SCALAR, L, 1, C, 0, 0);
    registry_add(&r, T_WQKV, "wqkv", ROLE_QKV, L, QKV, C, 0, into_C);
    if (c->biases) registry_add(&r, T_BQKV, "bqkv", ROLE_SCALAR, L, 1, QKV, 0, 0);
    registry_add(&r, T_WO, "wo", ROLE_O, L, C, A, 0, onto);
    if (c->biases) registry_add(&r, T_BO, "bo", ROLE_SCALAR, L, 1, C, 0, 0);
    registry_add(&r, T_NORM2_W, "norm2_w", ROLE_SCALAR, L, 1, C, 1, 0);
    if (affine) registry_add(&r, T_NORM2_B, "norm2_b", ROLE_SCALAR, L, 1, C, 0, 0);
    registry_add(&r, T_WFC, "wfc", ROLE_MLP, L, H, C, 0, into_C);
    if (c->biases) registry_add(&r, T_BFC, "bfc", ROLE_SCALAR, L, 1, H, 0, 0);
    registry_add(&r, T_WPROJ, "wproj", ROLE_MLP, L, C, F, 0, onto);
    if (c->biases) registry_add(&r, T_BPROJ, "bproj", ROLE_SCALAR, L, 1, C, 0, 0);
    registry_add(&r, T_NORMF_W, "normf_w", ROLE_SCALAR, 1, 1, C, 1, 0);
    if (affine) registry_add(&r, T_NORMF_B, "normf_b", ROLE_SCALAR, 1, 1, C, 0, 0);
    if (!c->tied)
        registry_add(&r, T_WHEAD, "whead", ROLE_HEAD, 1, Vp, C, 0, speedrun ? 0 : c->init_std);
    if (c->head_bias) registry_add(&r, T_BHEAD, "bhead", ROLE_SCALAR, 1, 1, Vp, 0, 0);
    r.t[T_WTE].used_rows = V;
    r.count -= (size_t)(Vp - V) * C;
    if (!c->tied) {
        r.t[T_WHEAD].used_rows = V;
        r.count -= (size_t)(Vp - V) * C;
    }
    if (c->head_bias) r.count -= (size_t)(Vp - V);
    return r;
}

/* Pointer to tensor `id` of layer l in an allocation laid out by the registry; NULL if the model
   has no such tensor, which layers read as "no bias", "no gain". */
static inline floatM *tensor_at(const Registry *r, floatM *base, TensorId id, int l) {
    const Tensor *t = &r->t[id];
    return t->layers ? base + t->offset + (size_t)l * t->rows * t->cols : NULL;
}

/* Fills host memory with the initial parameters of a seed. */
static inline void params_init(const Registry *r, floatM *p, uint64_t seed) {
    memset(p, 0, r->size * sizeof *p);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        uint64_t stream = rng_stream(t->name ? t->name : "");
        size_t used =
            (size_t)t->used_rows * t->cols * t->layers; /* padding is in layers = 1 only */
#pragma omp parallel for
        for (size_t i = 0; i < used; i++)
            p[t->offset + i] =
                (floatM)(t->init_std > 0 ? t->init_mean + t->init_std * rng_normal(seed, stream, i)
                                         : t->init_mean);
    }
}

#endif
