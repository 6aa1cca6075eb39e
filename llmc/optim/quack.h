/*
QuacK (Anson and Aitchison, arXiv 2511.21377): the learning rate of each head of W_Q and W_K is that of
the base rule times tau ||partner at the start|| / ||partner now||, which bounds the change of the
attention logits whatever the weights grow to.
*/
#ifndef CM_QUACK_H
#define CM_QUACK_H

#include "../linalg.h"

static inline size_t quack_scratch(int layers, int shared_heads) {
    return 2 * (size_t)layers * shared_heads + 64;
}

/* Multiplies the heads of finished directions (DA, DB) of (W_Q, W_K). `initial` holds a number a shared
   head for either leg, 2 L S in all, set from the weights if `first`. The norm over a group of query
   heads is that of all of them together. */
static inline void quack_scale(Mat A, Mat B, Mat DA, Mat DB, floatM *initial_a, floatM *initial_b,
                               int first, double tau, Arena *arena) {
    size_t mark = arena->used;
    int n = mat_count(B), G = A.n1 / B.n1;
    floatM *now = arena_take(arena, (size_t)n), *rate = arena_take(arena, (size_t)n);
    for (int leg = 0; leg < 2; leg++) {
        floatM *initial =
            leg ? initial_b : initial_a; /* of the partner: B's heads, groups of A's */
        la_norms(now, leg ? A : B, leg ? G : 1);
        if (first) la_norms(initial, leg ? A : B, leg ? G : 1);
        la_copy(mat_dense(rate, 1, 1, n), mat_dense(initial, 1, 1, n));
        la_vec_div(rate, now, n, 1e-12);
        la_vec_mul(rate, n, tau);
        la_scale(leg ? DB : DA, rate, leg ? 1 : G);
    }
    arena->used = mark;
}

#endif
