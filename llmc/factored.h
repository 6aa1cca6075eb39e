/*
Linear layers with factors: W = W_pre + s A B^T, where A is (O,r) and B is (I,r). W_pre is frozen
(an adapter: LoRA, Hu et al., arXiv 2106.09685), or there is none (a low-rank matrix). The product
A B^T is never formed: u = x B is (N,r), and y += s u A^T.

The tensor *_up is A, and *_down is B^T, (r,I), so that each is stored as the weight of a linear
layer of its own. (Hu et al. call them B and A.) A layer may consist of parts with factors of their
own: the rows of W_Q, W_K and W_V, or of the MLP's gate and of what it gates. The parts' B^T are
stacked, (P r, I), so that one product makes u (N, P r) of all parts.
*/
#ifndef CM_FACTORED_H
#define CM_FACTORED_H

#include "config.h"
#include "rng.h"

enum { FACTOR_PARTS = 3 };

/* A linear layer from I to O numbers. */
typedef struct {
    int I, O;
    int rank; /* r; 0: the layer has no factors */
    int parts;
    int first[FACTOR_PARTS], rows[FACTOR_PARTS]; /* rows of W that part p has */
    int used_rows;                               /* rows of the vocabulary, in the head; else O */
} Linear;

/* Layer `id` of a resolved config. */
static inline Linear linear_of(const Config *c, LinearId id) {
    int A = c->heads * c->head_dim, KV = c->kv_heads * c->head_dim, C = c->width, F = c->ff_width;
    int gated = act_is_gated((ActKind)c->act);
    Linear f = {.I = C, .O = C, .parts = 1};
    switch (id) {
    case LINEAR_QKV:
        f.O = A + 2 * KV;
        if (!c->lora_split) break;
        f.parts = 3;
        f.rows[0] = A;
        f.rows[1] = f.rows[2] = KV;
        break;
    case LINEAR_O: f.I = A; break;
    case LINEAR_FC:
        f.O = gated ? 2 * F : F;
        if (!c->lora_split || !gated) break;
        f.parts = 2;
        f.rows[0] = f.rows[1] = F;
        break;
    case LINEAR_PROJ: f.I = F; break;
    case LINEAR_HEAD: f.O = round_up(c->vocab, 64); break;
    case LINEARS: break;
    }
    f.used_rows = id == LINEAR_HEAD ? c->vocab : f.O;
    if (f.parts == 1) f.rows[0] = f.used_rows;
    for (int p = 1; p < f.parts; p++) f.first[p] = f.first[p - 1] + f.rows[p - 1];
    f.rank = c->factored >> id & 1 ? config_rank(c) : 0;
    return f;
}

/* Numbers in a row of u: the ranks of all parts. */
static inline int linear_rank(const Linear *f) { return f->rank * f->parts; }

/* ---------------------------------------------------------------------------------------------- */
/* initial factors                                                                                */

/* The stream of random numbers of an item of a tensor. */
static inline uint64_t factor_stream(const char *name, int item) {
    char text[64];
    snprintf(text, sizeof text, "%.48s %d", name, item);
    return rng_stream(text);
}

/* n numbers of standard normal distribution. */
static inline void factor_normals(double *x, size_t n, uint64_t seed, const char *name, int item) {
    uint64_t stream = factor_stream(name, item);
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) x[i] = rng_normal(seed, stream, i);
}

/* Makes the rows of Q (r,n), r <= n, orthonormal, in order (Gram and Schmidt, twice). Normal rows
   become uniformly distributed ones. */
static inline void factor_orthonormal(double *Q, int r, int n) {
    for (int i = 0; i < r; i++) {
        double *q = Q + (size_t)i * n, square = 0;
        for (int twice = 0; twice < 2; twice++)
            for (int j = 0; j < i; j++) {
                const double *before = Q + (size_t)j * n;
                double dot = 0;
                for (int k = 0; k < n; k++) dot += q[k] * before[k];
                for (int k = 0; k < n; k++) q[k] -= dot * before[k];
            }
        for (int k = 0; k < n; k++) square += q[k] * q[k];
        for (int k = 0; k < n; k++) q[k] /= sqrt(square);
    }
}

/* How many eigenvalues of a symmetric tridiagonal matrix (diagonal a[n], squares b[n - 1] beside
   it) are above x: Sturm's count. */
static inline int factor_above(const double *a, const double *b, int n, double x) {
    int count = 0;
    double pivot = 1;
    for (int i = 0; i < n; i++) {
        pivot = a[i] - x - (i ? b[i - 1] / pivot : 0);
        if (pivot == 0) pivot = 1e-300;
        count += pivot > 0;
    }
    return count;
}

/* The r largest singular values of a random matrix with `rows` x `cols` standard normal elements,
   falling, in `value`. Reflections on both sides make it bidiagonal, with roots of chi-squared
   numbers that are independent of each other (Golub and Van Loan, Matrix Computations, 5.4.8;
   Silverstein 1985); so the matrix itself is not needed. Returns -1 without memory. */
static inline int factor_values(double *value, int r, int rows, int cols, uint64_t seed,
                                const char *name, int item) {
    int n = min_int(rows, cols), longer = max_int(rows, cols);
    double *normal = (double *)malloc(2 * (size_t)longer * sizeof(double));
    double *square = (double *)malloc(4 * (size_t)n * sizeof(double));
    char text[64];
    if (!normal || !square) {
        free(normal);
        free(square);
        return -1;
    }
    double *d = square, *e = d + n, *a = e + n, *b = a + n;
    for (int i = 0; i < n; i++) {
        snprintf(text, sizeof text, "%.32s %d values", name, item);
        factor_normals(normal, (size_t)(longer - i), seed, text, 2 * i);
        factor_normals(normal + longer, (size_t)(n - 1 - i), seed, text, 2 * i + 1);
        d[i] = e[i] = 0;
        for (int k = 0; k < longer - i; k++) d[i] += normal[k] * normal[k];
        for (int k = 0; k < n - 1 - i; k++) e[i] += normal[longer + k] * normal[longer + k];
    }
    double above = 0;
    for (int i = 0; i < n; i++) {
        a[i] = d[i] + (i ? e[i - 1] : 0);
        if (i + 1 < n) b[i] = d[i] * e[i];
        above += a[i];
    }
    for (int k = 0; k < r; k++) {
        double low = 0, high = above;
        for (int step = 0; step < 100; step++) {
            double middle = (low + high) / 2;
            if (factor_above(a, b, n, middle) > k) low = middle;
            else high = middle;
        }
        value[k] = sqrt((low + high) / 2);
    }
    free(normal);
    free(square);
    return 0;
}

/* A (rows,r) and B^T (r,cols) of one part: factors whose product has the r largest singular values
   and the singular vectors of a random matrix with elements of deviation `std`, which both factors
   have the roots of. Returns -1 without memory. */
static inline int factor_spectral(floatM *A, floatM *B, int rows, int cols, int r, double std,
                                  uint64_t seed, const char *name, int item) {
    size_t m = (size_t)rows * r, n = (size_t)cols * r;
    double *u = (double *)malloc((m + n + (size_t)r) * sizeof(double));
    double *v = u + m, *value = v + n;
    char side[64];
    if (!u || factor_values(value, r, rows, cols, seed, name, item)) {
        free(u);
        return -1;
    }
    snprintf(side, sizeof side, "%.48s up", name);
    factor_normals(u, m, seed, side, item);
    snprintf(side, sizeof side, "%.48s down", name);
    factor_normals(v, n, seed, side, item);
    factor_orthonormal(u, r, rows);
    factor_orthonormal(v, r, cols);
    for (int k = 0; k < r; k++) {
        double root = sqrt(std * value[k]);
        for (int i = 0; i < rows; i++)
            A[(size_t)i * r + k] = (floatM)(root * u[(size_t)k * rows + i]);
        for (int j = 0; j < cols; j++)
            B[(size_t)k * cols + j] = (floatM)(root * v[(size_t)k * cols + j]);
    }
    free(u);
    return 0;
}

/* n numbers of deviation `std`. */
static inline void factor_random(floatM *to, size_t n, double std, uint64_t seed, const char *name,
                                 int item) {
    uint64_t stream = factor_stream(name, item);
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) to[i] = (floatM)(std * rng_normal(seed, stream, i));
}

/* A (rows,r) and B^T (r,cols) of one part and layer, which `item` numbers, at the start. `std` is
   the deviation of a whole matrix's elements; where that is zero, A is zero. Returns -1 without
   memory. */
static inline int factors_begin(floatM *A, floatM *B, int rows, int cols, const Config *c,
                                double std, const char *name, int item) {
    int r = config_rank(c);
    size_t m = (size_t)rows * r, n = (size_t)cols * r;
    uint64_t seed = (uint64_t)c->seed;
    FactorInit how = std > 0 ? (FactorInit)c->lora_init : FACTORS_ZERO;
    char side[64];
    snprintf(side, sizeof side, "%.48s down", name);
    std /= c->lora_scale;
    double each = sqrt(std / sqrt((double)r)), aspect = pow((double)cols / rows, 0.25);
    switch (how) {
    case FACTORS_AUTO: /* config_resolve_factors has replaced it */
    case FACTORS_ZERO:
        memset(A, 0, m * sizeof *A);
        factor_random(B, n, 1 / sqrt((double)cols), seed, side, item);
        break;
    case FACTORS_BALANCED:
        factor_random(B, n, each / aspect, seed, side, item);
        snprintf(side, sizeof side, "%.48s up", name);
        factor_random(A, m, each * aspect, seed, side, item);
        break;
    case FACTORS_SPECTRAL:
        if (factor_spectral(A, B, rows, cols, r, std, seed, name, item)) return -1;
        break;
    }
    for (size_t i = 0; i < m; i++) A[i] *= (floatM)c->lora_factor_scale;
    for (size_t i = 0; i < n; i++) B[i] /= (floatM)c->lora_factor_scale;
    return 0;
}

#endif
