/*
How far an update moves the composed maps of attention: W_Q^T W_K and W_O W_V of every query head.
Compositional Muon bounds this step by its learning rate (compositional.h). It is measured here on
the weights before and after the update, on the host and in double, for every rule alike.

A head's map is A^T B, with (k, d) blocks A, B of W_Q and W_K as stored, or of the transpose of W_O
and of W_V. With dA = A' - A and dB = B' - B it moves by

    A'^T B' - A^T B = dA^T B' + A^T dB = X^T Y,  X = [dA; A], Y = [B'; dB],

a product of two stacks of n = 2k rows, formed from the differences, so that nothing cancels. Its
squared singular values are the eigenvalues of X X^T Y Y^T, so no (d, d) matrix is needed.

Needs a backend's device_download.
*/
#ifndef CM_COMPOSED_H
#define CM_COMPOSED_H

#include <float.h>

#include "../json.h"
#include "plan.h"

/* ---------------------------------------------------------------------------------------------- */
/* The norm of a product                                                                          */

/* G (n,n) = X X^T of X (n,d). */
static inline void composed_gram(double *G, const double *X, int n, int d) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j <= i; j++) {
            const double *a = X + (size_t)i * d, *b = X + (size_t)j * d;
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int c = 0; c < d; c++) sum += a[c] * b[c];
            G[i * n + j] = G[j * n + i] = sum;
        }
}

/* Overwrites a positive semidefinite G (n,n) by the lower triangular L, G = L L^T. A pivot that
   rounding alone may have left is taken for zero, and its column is zero. NaN stays NaN. */
static inline void composed_cholesky(double *G, int n) {
    for (int j = 0; j < n; j++) {
        double *row = G + (size_t)j * n, pivot = row[j], rounding = n * DBL_EPSILON * row[j];
        for (int c = 0; c < j; c++) pivot -= row[c] * row[c];
        double root = pivot <= rounding ? 0 : sqrt(pivot);
        row[j] = root;
        for (int c = j + 1; c < n; c++) row[c] = 0;
        for (int i = j + 1; i < n; i++) {
            double *below = G + (size_t)i * n, sum = below[j];
            for (int c = 0; c < j; c++) sum -= below[c] * row[c];
            below[j] = root == 0 ? 0 : sum / root;
        }
    }
}

/* S (n,n) = L^T S L for symmetric S and lower triangular L; T (n,n) is scratch. */
static inline void composed_congruence(double *S, const double *L, int n, double *T) {
    memset(T, 0, (size_t)n * n * sizeof(double));
    for (int i = 0; i < n; i++)
        for (int r = 0; r < n; r++)
            for (int j = 0; j <= r; j++) T[i * n + j] += S[i * n + r] * L[r * n + j];
    memset(S, 0, (size_t)n * n * sizeof(double));
    for (int r = 0; r < n; r++)
        for (int i = 0; i <= r; i++)
            for (int j = 0; j < n; j++) S[i * n + j] += L[r * n + i] * T[r * n + j];
}

/* Reduces symmetric S (n,n), which is overwritten, to a tridiagonal matrix of equal eigenvalues by
   Householder's reflections (Golub and Van Loan, Matrix Computations, 8.3): diagonal a[n], squares
   of the elements beside it b[n - 1]. v and q (n each) are scratch. */
static inline void composed_tridiagonal(double *S, int n, double *a, double *b, double *v,
                                        double *q) {
    for (int j = 0; j < n; j++) {
        double square = 0, dot = 0;
        a[j] = S[j * n + j];
        if (j + 1 == n) break;
        for (int i = j + 1; i < n; i++) {
            v[i] = S[i * n + j];
            square += v[i] * v[i];
        }
        b[j] = square;
        if (square == 0) continue;
        /* I - v v^T / beta maps column j below the diagonal to a multiple of e_(j+1). */
        double length = sqrt(square), beta = square + fabs(v[j + 1]) * length;
        v[j + 1] += v[j + 1] < 0 ? -length : length;
        for (int i = j + 1; i < n; i++) {
            q[i] = 0;
            for (int c = j + 1; c < n; c++) q[i] += S[i * n + c] * v[c] / beta;
            dot += q[i] * v[i];
        }
        for (int i = j + 1; i < n; i++) q[i] -= 0.5 * dot / beta * v[i];
        for (int i = j + 1; i < n; i++)
            for (int c = j + 1; c < n; c++) S[i * n + c] -= v[i] * q[c] + q[i] * v[c];
    }
}

/* Whether every eigenvalue of a tridiagonal matrix is at most x: no pivot of the matrix minus x I
   is positive (Sylvester). */
static inline int composed_is_above(double x, const double *a, const double *b, int n) {
    double pivot = a[0] - x;
    for (int i = 1; i < n && pivot < 0; i++) pivot = a[i] - x - b[i - 1] / pivot;
    return pivot < 0;
}

/* Numbers of scratch that composed_largest takes. */
static inline size_t composed_largest_scratch(int n) { return 4 * (size_t)n; }

/* The largest eigenvalue of a positive semidefinite S (n,n), which is overwritten: by bisection, to
   the last bits of the trace. */
static inline double composed_largest(double *S, int n, double *scratch) {
    enum { HALVINGS = 60 }; /* more than the 53 bits of a double */
    double *a = scratch, *b = a + n, low = 0, high = 0;
    for (int i = 0; i < n; i++) high += S[(size_t)i * n + i];
    if (!(high > 0) || !isfinite(high)) return high; /* zero, or not a number */
    composed_tridiagonal(S, n, a, b, b + n, b + 2 * n);
    high *= 1 + n * DBL_EPSILON;
    for (int i = 0; i < HALVINGS; i++) {
        double middle = 0.5 * (low + high);
        if (composed_is_above(middle, a, b, n)) high = middle;
        else low = middle;
    }
    return high;
}

/* Numbers of scratch that composed_norm takes. */
static inline size_t composed_norm_scratch(int n) {
    return 3 * (size_t)n * n + composed_largest_scratch(n);
}

/* ||X^T Y|| of X, Y (n,d). */
static inline double composed_norm(const double *X, const double *Y, int n, int d,
                                   double *scratch) {
    size_t square = (size_t)n * n;
    double *L = scratch, *S = L + square, *T = S + square;
    composed_gram(L, X, n, d);
    composed_gram(S, Y, n, d);
    composed_cholesky(L, n);
    composed_congruence(S, L, n, T);
    return sqrt(composed_largest(S, n, T + square));
}

/* ---------------------------------------------------------------------------------------------- */
/* A head                                                                                         */

/* The factors of all heads of one layer before and after an update, in host memory: (1, heads) x
   (k, d) views of A, which has the query heads, and of B, which has the shared heads. */
typedef struct {
    Mat was[2], now[2];
} ComposedHeads;

static inline double composed_element(Mat m, int item, int r, int c) {
    return (double)mat_item(m, item)[(size_t)r * m.rs + (size_t)c * m.cs];
}

/* The stacks X = [dA; A] and Y = [B'; dB] (2k,d) of query head `head`. */
static inline void composed_stacks(const ComposedHeads *h, int head, double *X, double *Y) {
    int k = h->now[0].rows, d = h->now[0].cols, shared = head / (h->now[0].n1 / h->now[1].n1);
    size_t kd = (size_t)k * d;
    for (int r = 0; r < k; r++)
        for (int c = 0; c < d; c++) {
            size_t at = (size_t)r * d + c;
            double was = composed_element(h->was[1], shared, r, c);
            X[kd + at] = composed_element(h->was[0], head, r, c);
            X[at] = composed_element(h->now[0], head, r, c) - X[kd + at];
            Y[at] = composed_element(h->now[1], shared, r, c);
            Y[kd + at] = Y[at] - was;
        }
}

/* Numbers of scratch that composed_head takes, for heads (k,d). */
static inline size_t composed_head_scratch(int k, int d) {
    return 4 * (size_t)k * d + composed_norm_scratch(2 * k);
}

/* The spectral norm of the change of a head's composed map. */
static inline double composed_head(const ComposedHeads *h, int head, double *scratch) {
    int k = h->now[0].rows, d = h->now[0].cols;
    double *X = scratch, *Y = X + 2 * (size_t)k * d, *rest = Y + 2 * (size_t)k * d;
    composed_stacks(h, head, X, Y);
    return composed_norm(X, Y, 2 * k, d, rest);
}

/* ---------------------------------------------------------------------------------------------- */
/* A model                                                                                        */

/* Over all layers and query heads: the change of the composed map in the spectral norm. NaN: not
   measured. */
typedef struct {
    double largest, median;
} ComposedStep;

/* Copies layer l of a part in the allocation `from` of a slot to `host`, and returns the view of
   its heads there. */
static inline Mat composed_download(const Registry *r, Part part, SlotId slot, int l,
                                    const floatM *from, floatM *host) {
    const Tensor *t = &r->t[part.id];
    size_t first = (size_t)part.first * t->cols, n = (size_t)part.rows * t->cols;
    device_download(host, from + t->slot[slot].at + (size_t)l * layer_size(t) + first,
                    n * sizeof(floatM));
    return mat_blocks(mat_dense(host, 1, part.rows, t->cols), part.heads, part.by_column);
}

static inline int composed_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Largest and median of n numbers, which are sorted; NaN if one of them is NaN. */
static inline ComposedStep composed_summary(double *norm, int n) {
    ComposedStep none = {NAN, NAN};
    for (int i = 0; i < n; i++)
        if (isnan(norm[i])) return none;
    qsort(norm, (size_t)n, sizeof(double), composed_compare);
    ComposedStep s = {norm[n - 1], 0.5 * (norm[(n - 1) / 2] + norm[n / 2])};
    return s;
}

/* Memory of composed_measure on the host. */
typedef struct {
    floatM *part[4];
    double *norm, *scratch;
    size_t scratch_size; /* numbers of `scratch` for each thread */
} ComposedMemory;

static inline int composed_reserve(ComposedMemory *m, const Registry *r, const Part part[2]) {
    const Tensor *b = &r->t[part[1].id];
    m->scratch_size = composed_head_scratch(part[1].rows / part[1].heads, b->cols);
    m->scratch = (double *)malloc(m->scratch_size * (size_t)thread_count() * sizeof(double));
    m->norm = (double *)malloc((size_t)b->layers * (size_t)part[0].heads * sizeof(double));
    int complete = m->scratch && m->norm;
    for (int i = 0; i < 4; i++) {
        size_t n = (size_t)part[i % 2].rows * (size_t)r->t[part[i % 2].id].cols;
        m->part[i] = (floatM *)malloc(n * sizeof(floatM));
        complete = complete && m->part[i];
    }
    return complete ? 0 : -1;
}

/* The last update's step of the circuit of two parts. p: the parameters after the update, and
   `before`: those that are trained before it (plan_groups_keep), on the device. NaN without
   memory. */
static inline ComposedStep composed_measure(const Registry *r, const Part part[2], const floatM *p,
                                            const floatM *before) {
    ComposedStep step = {NAN, NAN};
    ComposedMemory m;
    int layers = r->t[part[1].id].layers, heads = part[0].heads;
    int complete = !composed_reserve(&m, r, part);
    for (int l = 0; l < layers && complete; l++) {
        ComposedHeads h;
        for (int i = 0; i < 2; i++) {
            int frozen = r->t[part[i].id].frozen; /* it has not moved */
            h.now[i] = composed_download(r, part[i], SLOT_PARAM, l, p, m.part[i]);
            h.was[i] = composed_download(r, part[i], frozen ? SLOT_PARAM : SLOT_GRAD, l,
                                         frozen ? p : before, m.part[2 + i]);
        }
#pragma omp parallel for
        for (int head = 0; head < heads; head++)
            m.norm[l * heads + head] =
                composed_head(&h, head, m.scratch + m.scratch_size * (size_t)thread_index());
    }
    if (complete) step = composed_summary(m.norm, layers * heads);
    for (int i = 0; i < 4; i++) free(m.part[i]);
    free(m.norm);
    free(m.scratch);
    return step;
}

/* Writes ", "QK": {"composed_max": x, "composed_median": y}", in learning rates. */
static inline void composed_member(FILE *out, const char *name, ComposedStep step, double lr) {
    fprintf(out, ", \"%s\": {\"composed_max\": ", name);
    json_float(out, step.largest / lr);
    fputs(", \"composed_median\": ", out);
    json_float(out, step.median / lr);
    fputc('}', out);
}

#endif
