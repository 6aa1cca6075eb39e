/*
AdamW (Loshchilov and Hutter, arXiv 1711.05101): bias-corrected, with decoupled weight decay.
*/
#ifndef CM_ADAMW_H
#define CM_ADAMW_H

#include "../linalg.h"

typedef struct {
    double lr, weight_decay, beta1, beta2, eps;
    double gscale; /* multiplies the gradient */
    int step;      /* 1 for the first update */
} AdamW;

/* P <- (1 - lr wd) P - lr (m / c1) / (sqrt(v / c2) + eps) for views of one geometry: parameter P,
   gradient G, first and second moment M, V. copy, if not NULL, is where the layers' copy of P begins: the
   new P is written there too, as floatX and laid out as P, which saves a pass over both. */
static inline void adamw_update_copied(Mat P, Mat G, Mat M, Mat V, const AdamW *o, floatX *copy) {
    double rate = o->lr / (1 - pow(o->beta1, o->step)), root = 1 / sqrt(1 - pow(o->beta2, o->step));
    la_adamw(P, G, M, V, o->gscale, o->beta1, o->beta2, rate, root, o->eps,
             1 - o->lr * o->weight_decay, copy);
}

static inline void adamw_update(Mat P, Mat G, Mat M, Mat V, const AdamW *o) {
    adamw_update_copied(P, G, M, V, o, NULL);
}

/* U = (m / c1) / (sqrt(v / c2) + eps), the direction of that step, without learning rate and decay. */
static inline void adamw_direction(Mat U, Mat G, Mat M, Mat V, const AdamW *o) {
    double rate = 1 / (1 - pow(o->beta1, o->step)), root = 1 / sqrt(1 - pow(o->beta2, o->step));
    la_adam(U, G, M, V, o->gscale, o->beta1, o->beta2, rate, root, o->eps);
}

#endif
