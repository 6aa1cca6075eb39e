/*
The report of a run whose numbers are no longer finite: which tensors, which layers, how many
elements.
*/
#ifndef CM_GUARD_H
#define CM_GUARD_H

#include "checkpoint.h"
#include "params.h"

typedef struct {
    TensorId id;
    int layer;
    size_t bad;     /* elements that are not finite */
    double largest; /* magnitude of the largest finite element */
} GuardRow;

/* For qsort: rows with more bad elements first, then those with larger elements. */
static inline int guard_compare(const void *a, const void *b) {
    const GuardRow *x = (const GuardRow *)a, *y = (const GuardRow *)b;
    if (x->bad != y->bad) return x->bad < y->bad ? 1 : -1;
    return x->largest < y->largest ? 1 : x->largest > y->largest ? -1 : 0;
}

/* Counts the elements that are not finite among the n elements of one layer of a tensor. */
static inline GuardRow guard_row(TensorId id, int layer, const floatM *x, size_t n) {
    GuardRow row = {id, layer, 0, 0};
    for (size_t i = 0; i < n; i++) {
        double a = fabs((double)x[i]);
        if (!isfinite(a)) row.bad++;
        else if (a > row.largest) row.largest = a;
    }
    return row;
}

/* Prints the `most` worst layers of tensors in host memory that is laid out as a slot's allocation.
   Returns how many layers of tensors have an element that is not finite. */
static inline int guard_report(FILE *out, const Registry *r, SlotId slot, const floatM *host,
                               const char *what, int most) {
    int n = 0, bad = 0;
    for (int id = 0; id < TENSORS; id++) n += r->t[id].slot[slot].layers;
    GuardRow *rows = (GuardRow *)calloc((size_t)n + 1, sizeof *rows);
    if (!rows) return 0;
    n = 0;
    for (int id = 0; id < TENSORS; id++)
        for (int l = 0; l < r->t[id].layers; l++) {
            size_t at;
            if (!slot_find(&r->t[id], slot, l, &at)) continue;
            rows[n] = guard_row((TensorId)id, l, host + at, layer_size(&r->t[id]));
            bad += rows[n].bad > 0;
            n++;
        }
    qsort(rows, (size_t)n, sizeof *rows, guard_compare);
    for (int i = 0; i < n && i < most; i++) {
        const Tensor *t = &r->t[rows[i].id];
        fprintf(out, "  %s of %s", what, t->name);
        if (t->layers > 1) fprintf(out, ", layer %d", rows[i].layer);
        fprintf(out, ": %zu of %zu not finite, largest finite %.3g\n", rows[i].bad, layer_size(t),
                rows[i].largest);
    }
    free(rows);
    return bad;
}

/* Writes what is left of a run that diverged: its newest checkpoint in the folder `checkpoints`, or
   that there is none. */
static inline void guard_left(char *text, size_t size, const char *checkpoints) {
    char path[FILE_PATH_SIZE];
    int64_t newest = ckpt_newest_step(checkpoints);
    ckpt_path(path, checkpoints, newest);
    if (newest >= 0) snprintf(text, size, "its newest checkpoint is %s", path);
    else
        snprintf(text, size,
                 "there is no checkpoint of it yet (--checkpoint-every N with a smaller N writes "
                 "them earlier)");
}

/* Names on stderr the worst tensors of a step whose loss or gradient norm is not finite. Returns -1
   with a message that names the newest checkpoint in the folder `checkpoints`. Needs a backend's
   device_download. */
static inline int guard_diverged(const Params *p, int step, double loss, double norm,
                                 const char *checkpoints, char *err) {
    char left[FILE_PATH_SIZE + 64];
    size_t params = p->r.size[SLOT_PARAM], grads = p->r.size[SLOT_GRAD];
    floatM *host = (floatM *)malloc((params + 1) * sizeof(floatM)); /* grads <= params */
    fprintf(stderr, "\nstep %d: loss %g, gradient norm %g\n", step, loss, norm);
    if (host) {
        device_download(host, p->param, params * sizeof(floatM));
        guard_report(stderr, &p->r, SLOT_PARAM, host, "parameters", 3);
        device_download(host, p->grad, grads * sizeof(floatM));
        guard_report(stderr, &p->r, SLOT_GRAD, host, "gradient", 5);
    }
    free(host);
    guard_left(left, sizeof left, checkpoints);
    return fail(err,
                "the run diverged at step %d and was stopped; %s. Try a smaller learning rate, a "
                "longer --warmup or --grad-clip 1",
                step, left);
}

#endif
