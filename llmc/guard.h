/*
What to say when numbers stop being numbers: which tensors, which layers, how bad.
*/
#ifndef CM_GUARD_H
#define CM_GUARD_H

#include "params.h"

typedef struct {
    TensorId id;
    int layer;
    size_t bad;     /* elements that are not finite */
    double largest; /* magnitude of the largest finite one */
} GuardRow;

static inline int guard_compare(const void *a, const void *b) {
    const GuardRow *x = (const GuardRow *)a, *y = (const GuardRow *)b;
    if (x->bad != y->bad) return x->bad < y->bad ? 1 : -1;
    return x->largest < y->largest ? 1 : x->largest > y->largest ? -1 : 0;
}

/* Prints the `most` worst (tensor, layer) slices of host memory laid out by the registry: those with
   most non-finite elements first, then those with the largest. Returns how many slices have any. */
static inline int guard_report(FILE *out, const Registry *r, const floatM *host, const char *what,
                               int most) {
    int n = 0, bad = 0;
    for (int id = 0; id < TENSORS; id++) n += r->t[id].layers;
    GuardRow *rows = (GuardRow *)calloc((size_t)n, sizeof *rows);
    if (!rows) return 0;
    n = 0;
    for (int id = 0; id < TENSORS; id++)
        for (int l = 0; l < r->t[id].layers; l++) {
            GuardRow *row = &rows[n++];
            row->id = (TensorId)id;
            row->layer = l;
            size_t size = (size_t)r->t[id].rows * r->t[id].cols;
            const floatM *x = host + r->t[id].offset + (size_t)l * size;
            for (size_t i = 0; i < size; i++) {
                double a = fabs((double)x[i]);
                if (!isfinite(a)) row->bad++;
                else if (a > row->largest) row->largest = a;
            }
            bad += row->bad > 0;
        }
    qsort(rows, (size_t)n, sizeof *rows, guard_compare);
    for (int i = 0; i < n && i < most; i++) {
        const Tensor *t = &r->t[rows[i].id];
        size_t size = (size_t)t->rows * t->cols;
        fprintf(out, "  %s of %s", what, t->name);
        if (t->layers > 1) fprintf(out, ", layer %d", rows[i].layer);
        fprintf(out, ": %zu of %zu not finite, largest finite %.3g\n", rows[i].bad, size,
                rows[i].largest);
    }
    free(rows);
    return bad;
}

#endif
