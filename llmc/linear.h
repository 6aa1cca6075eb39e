/*
The factors of a linear layer, forward and backward, on the matrix products of a backend. See
factored.h for the shapes: u (N,R), R = P r, is x B of all parts at once, and up is A, down is B^T.
*/
#ifndef CM_LINEAR_H
#define CM_LINEAR_H

#include "factored.h"

/* u (N,R) = x B of x (N,I). */
static inline void factors_inner(floatX *u, const floatX *x, const floatX *down, const Linear *f,
                                 int N) {
    linear_product(0, 1, N, linear_rank(f), f->I, 1, x, f->I, down, f->I, 0, u, linear_rank(f));
}

/* u (N,R) = x B, and y (N,O) = s u A^T, or += with `add`. Columns of y that no part has (the
   vocabulary's padding) are left as they are. */
static inline void factors_forward(floatX *y, floatX *u, const floatX *x, const floatX *up,
                                   const floatX *down, const Linear *f, double s, int N, int add) {
    int r = f->rank, R = linear_rank(f);
    factors_inner(u, x, down, f, N);
    for (int p = 0; p < f->parts; p++)
        linear_product(0, 1, N, f->rows[p], r, s, u + p * r, R, up + (size_t)f->first[p] * r, r,
                       add, y + f->first[p], f->O);
}

/* From dy (N,O): du (N,R) = s dy A, then dup = s dy^T u and ddown = du^T x, which are set, or added
   to with `add`; each is left out where it is NULL. dx (N,I) += du B^T, or = with `set`, unless it
   is NULL. */
static inline void factors_backward(floatX *dx, floatM *dup, floatM *ddown, floatX *du,
                                    const floatX *dy, const floatX *x, const floatX *u,
                                    const floatX *up, const floatX *down, const Linear *f, double s,
                                    int N, int set, int add) {
    int r = f->rank, R = linear_rank(f), I = f->I, O = f->O;
    for (int p = 0; p < f->parts; p++) {
        const floatX *dyp = dy + f->first[p];
        size_t at = (size_t)f->first[p] * r;
        linear_product(0, 0, N, r, f->rows[p], s, dyp, O, up + at, r, 0, du + p * r, R);
        if (dup) linear_product(1, 0, f->rows[p], r, N, s, dyp, O, u + p * r, R, add, dup + at, r);
    }
    if (ddown) linear_product(1, 0, R, I, N, 1, du, R, x, I, add, ddown, I);
    if (dx) linear_product(0, 0, N, I, R, 1, du, R, down, I, !set, dx, I);
}

#endif
