/*
The Tail-EMA readout (modded-nanogpt, pull request 325): from update --ema-from on an average E of
the weights W is kept, E <- E + (W - E) / horizon after every update, and validation and generation
read (1 - b) W + b E with a share b for each group of tensors. Training itself never sees E.
*/
#ifndef CM_READOUT_H
#define CM_READOUT_H

#include "linalg.h"
#include "params.h"

/* The layers of a tensor that SLOT_EMA holds, in the allocation of a slot. */
static inline Mat readout_view(const Tensor *t, SlotId slot, floatM *base) {
    const Slot *held = &t->slot[SLOT_EMA], *at = &t->slot[slot];
    Mat all = mat_dense(base + at->at, at->layers, t->rows, t->cols);
    return mat_outer(all, held->first - at->first, held->layers);
}

/* Updates the averages after `done` updates. */
static inline void readout_average(Params *p, const Config *c, int done) {
    if (!p->ema || done < c->ema_from) return;
    double share = done == c->ema_from || !p->ema_live ? 1 : 1.0 / c->ema_horizon;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &p->r.t[id];
        if (!t->slot[SLOT_EMA].layers) continue;
        Mat E = readout_view(t, SLOT_EMA, p->ema), W = readout_view(t, SLOT_PARAM, p->param);
        la_axpby(E, share, W, 1 - share);
    }
    p->ema_live = 1;
}

/* Replaces the weights by the readout, and keeps them in the memory of the gradient, which is free
   between two steps. Returns 0 if there is no average yet and nothing was done. */
static inline int readout_begin(Params *p, const Config *c) {
    if (!p->ema_live) return 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &p->r.t[id];
        if (!t->slot[SLOT_EMA].layers) continue;
        Mat E = readout_view(t, SLOT_EMA, p->ema), W = readout_view(t, SLOT_PARAM, p->param);
        double b = readout_blend(c, t->role);
        la_copy(readout_view(t, SLOT_GRAD, p->grad), W);
        la_axpby(W, b, E, 1 - b);
    }
    return 1;
}

/* Takes the weights back, to the bit. */
static inline void readout_end(Params *p) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &p->r.t[id];
        if (t->slot[SLOT_EMA].layers)
            la_copy(readout_view(t, SLOT_PARAM, p->param), readout_view(t, SLOT_GRAD, p->grad));
    }
}

#endif
