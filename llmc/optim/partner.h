/*
Partner-rescaled AdamW: each head's AdamW step times its partner's isotropic whitener. It tells how much
of Compositional Muon's gain is the step size per head and not the sign. Published only as a sentence
("Towards Compositional Steepest Descent", 2026); the formula is a reconstruction.
*/
#ifndef CM_PARTNER_H
#define CM_PARTNER_H

#include "adamw.h"
#include "circuit.h"

/* A leg: views (L,1) x (rows, cols) of weight, gradient and moments as stored, and of the same memory
   as heads (L,heads) x (k,d). */
typedef struct {
    Mat W, G, M, V;
    int heads, by_column; /* by_column: heads are blocks of columns, as in W_O */
} AdamLeg;

static inline Mat leg_heads(Mat m, int heads, int by_column) {
    return mat_heads(by_column ? mat_t(m) : m, heads);
}

static inline size_t partner_adamw_scratch(const AdamLeg *a, const AdamLeg *b) {
    return mat_size(a->W) + mat_size(b->W) + 64 + partner_scratch(a->W.n0, b->heads);
}

/* keep_norm: each leg of a layer keeps the norm of its AdamW step, so that the learning rate does. */
static inline void partner_adamw_update(AdamLeg a, AdamLeg b, const AdamW *o, double damping,
                                        int keep_norm, Arena *arena) {
    size_t mark = arena->used;
    AdamLeg *leg[2] = {&a, &b};
    Mat U[2], W[2], D[2];
    for (int i = 0; i < 2; i++) {
        const AdamLeg *l = leg[i];
        U[i] = mat_dense(arena_take(arena, mat_size(l->W)), l->W.n0, l->W.rows, l->W.cols);
        adamw_direction(U[i], l->G, l->M, l->V, o);
        W[i] = leg_heads(l->W, l->heads, l->by_column);
        D[i] = leg_heads(U[i], l->heads, l->by_column);
    }
    partner_scale(W[0], W[1], D[0], D[1], damping, keep_norm, arena);
    for (int i = 0; i < 2; i++) la_axpby(leg[i]->W, -o->lr, U[i], 1 - o->lr * o->weight_decay);
    arena->used = mark;
}

#endif
