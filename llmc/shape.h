/*
The kinds of parts that a model can have, and its sizes, each under one letter.

A kind that a flag chooses (norm, positions, activation, ...) is one list here. The enum, the flag's
choices and the names in reports are made from that list, so none of them can lack a value. Code
that treats values differently uses a switch without a default: a forgotten value does not compile.
*/
#ifndef CM_SHAPE_H
#define CM_SHAPE_H

#include "base.h"

/* X(enumerator, flag's value, name in reports) */
#define NORMS(X) X(NORM_LAYERNORM, "layernorm", "LayerNorm") X(NORM_RMSNORM, "rmsnorm", "RMSNorm")

#define POSITIONS(X)                                                                               \
    X(POS_LEARNED, "learned", "learned positions")                                                 \
    X(POS_ROPE, "rope", "RoPE")                                                                    \
    X(POS_ROPE_HALF, "rope-half", "half-truncated RoPE")                                           \
    X(POS_NONE, "none", "no positions")

#define ACTS(X)                                                                                    \
    X(ACT_GELU, "gelu", "GELU")                                                                    \
    X(ACT_RELU2, "relu2", "ReLU^2")                                                                \
    X(ACT_SWIGLU, "swiglu", "SwiGLU")

/* In rising order: each value recomputes all that the values before it recompute, and more. */
#define RECOMPUTES(X)                                                                              \
    X(RECOMPUTE_NONE, "none", "nothing")                                                           \
    X(RECOMPUTE_ACT, "act", "activations")                                                         \
    X(RECOMPUTE_NORM, "norm", "activations and norms")                                             \
    X(RECOMPUTE_BLOCK, "block", "blocks")

#define GELU_WAYS(X)                                                                               \
    X(GELU_AUTO, "auto", "auto")                                                                   \
    X(GELU_FUSED, "fused", "fused") X(GELU_UNFUSED, "unfused", "unfused")

#define GEMM_WAYS(X)                                                                               \
    X(GEMM_MEASURED, "measured", "measured") X(GEMM_FIRST, "first", "first proposal")

#define ATTENTIONS(X)                                                                              \
    X(ATTENTION_AUTO, "auto", "auto")                                                              \
    X(ATTENTION_FLASH, "flash", "flash")                                                           \
    X(ATTENTION_CUDNN, "cudnn", "cuDNN")                                                           \
    X(ATTENTION_CUDNN_FAST, "cudnn-fast", "cuDNN, sums in any order")                              \
    X(ATTENTION_HOPPER, "hopper", "flash for Hopper")

/* The linear layers, in the order of a forward pass. */
#define LINEAR_LAYERS(X)                                                                           \
    X(LINEAR_QKV, "qkv", "W_QKV")                                                                  \
    X(LINEAR_O, "o", "W_O")                                                                        \
    X(LINEAR_FC, "fc", "W_fc") X(LINEAR_PROJ, "proj", "W_proj") X(LINEAR_HEAD, "head", "the head")

/* How the two factors of a product begin. */
#define FACTOR_INITS(X)                                                                            \
    X(FACTORS_AUTO, "auto", "auto")                                                                \
    X(FACTORS_ZERO, "zero", "zero")                                                                \
    X(FACTORS_BALANCED, "balanced", "balanced") X(FACTORS_SPECTRAL, "spectral", "spectral")

#define KIND_ENUMERATOR(E, FLAG, NAME) E,
#define KIND_FLAG(E, FLAG, NAME) "|" FLAG
#define KIND_WORD(E, FLAG, NAME) FLAG,
#define KIND_NAME(E, FLAG, NAME) NAME,

/* "a|b|c", the choices of a flag. */
#define CHOICES(LIST) (&(LIST(KIND_FLAG))[1])

typedef enum { NORMS(KIND_ENUMERATOR) } NormKind;
typedef enum { POSITIONS(KIND_ENUMERATOR) } PosKind;
typedef enum { ACTS(KIND_ENUMERATOR) } ActKind;
typedef enum { RECOMPUTES(KIND_ENUMERATOR) } Recompute;
typedef enum { GELU_WAYS(KIND_ENUMERATOR) } GeluWay;
typedef enum { GEMM_WAYS(KIND_ENUMERATOR) } GemmWay;
typedef enum { ATTENTIONS(KIND_ENUMERATOR) } AttentionKind;
typedef enum { LINEAR_LAYERS(KIND_ENUMERATOR) LINEARS } LinearId;
typedef enum { FACTOR_INITS(KIND_ENUMERATOR) } FactorInit;

/* The flag's word for a value: WORD_OF(LINEAR_LAYERS, id). */
#define WORD_OF(LIST, which) (((const char *const[]){LIST(KIND_WORD)})[which])

/* The name of a value in reports: NAME_OF(ACTS, c->act). */
#define NAME_OF(LIST, which) (((const char *const[]){LIST(KIND_NAME)})[which])

/* Whether the first matrix of the MLP has rows of a gate before the rows that are gated. */
CM_CONSTEXPR static inline int act_is_gated(ActKind act) {
    switch (act) {
    case ACT_SWIGLU: return 1;
    case ACT_GELU:
    case ACT_RELU2: return 0;
    }
    return 0;
}

/* Whether a norm subtracts the mean before it scales. */
static inline int norm_is_centred(NormKind norm) {
    switch (norm) {
    case NORM_LAYERNORM: return 1;
    case NORM_RMSNORM: return 0;
    }
    return 0;
}

/* Whether a norm has a bias beside its gain. */
static inline int norm_has_bias(NormKind norm) {
    switch (norm) {
    case NORM_LAYERNORM: return 1;
    case NORM_RMSNORM: return 0;
    }
    return 0;
}

/* Whether a table of positions is added to the embedding. */
static inline int pos_is_table(PosKind pos) {
    switch (pos) {
    case POS_LEARNED: return 1;
    case POS_ROPE:
    case POS_ROPE_HALF:
    case POS_NONE: return 0;
    }
    return 0;
}

/* Whether queries and keys are rotated by their positions. */
static inline int pos_is_rotary(PosKind pos) {
    switch (pos) {
    case POS_ROPE:
    case POS_ROPE_HALF: return 1;
    case POS_LEARNED:
    case POS_NONE: return 0;
    }
    return 0;
}

/* The sizes of a model and of its largest batch. */
typedef struct {
    int B, T, N;     /* sequences, tokens in each, tokens in all: N = B T */
    int C, L;        /* width of the residual stream, blocks */
    int NH, NKV, HS; /* query heads, heads of keys and of values, their width */
    int A, QKV;      /* A = NH HS; QKV = (NH + 2 NKV) HS, a row of queries, keys and values */
    int F, H;        /* width of the MLP; outputs of its first matrix: F, or 2 F with a gate */
    int V, Vp;       /* vocabulary, and V rounded up to a multiple of 64 */
} Shape;

/* The sizes of a model with a batch of B sequences of T tokens. */
static inline Shape shape_with(Shape s, int B, int T) {
    s.B = B;
    s.T = T;
    s.N = B * T;
    return s;
}

#endif
