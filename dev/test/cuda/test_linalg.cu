/*
Tests of the CUDA linear algebra (llmc/cuda/linalg.cuh): every operation against its CPU twin on
views of every kind, the iterations on small matrices against eigendecompositions in double, and the
sign of a matrix in TF32. Each operation runs twice, must give equal bits, and must write only its
result.
*/
#include <initializer_list>

#include "device.h"
#include "twin.h"
#include "../../../llmc/cuda/layers.cuh"
#include "../../../llmc/optim/plan.h"
#include "../config_of.h"

/* Errors of element-wise operations and of sums. Both sides round float operations alike except
   for fused multiply-adds: a few 6e-8. Sums are of up to 1000 terms in float, or in double. */
static const double EACH = 1e-6, SUMS = 3e-6;

/* A product in TF32 reads a factor with ten bits of mantissa after the leading one. Hardware may
   round or truncate the rest, which moves the factor by at most this. */
static const double TF32 = 1.0 / 1024;
/* Rounding to bf16 moves a number by at most this part of it. */
static const double BF16 = 1.0 / 256;

/* Starts the random numbers of a case, which depend on its parameters. */
static void stream(std::initializer_list<int> parameters) {
    uint64_t hash = 14695981039346656037u;
    for (int x : parameters) hash = (hash ^ (uint64_t)(unsigned)x) * 1099511628211u;
    draw_count = hash;
}

static int pick(int lo, int hi) { return lo + (int)((draw() + 1) / 2 * (hi - lo + 1)); }

/* ---------------------------------------------------------------------------------------------- */
/* Views of one geometry on the host and on the device */

typedef struct {
    Mat host, dev;
    float *h, *before, *d;
    size_t size;
} View;

static View views[8]; /* the views of the current case */
static int view_count;

enum { DENSE, APART, ROW_BLOCKS, COLUMN_BLOCKS, REPEATED };

/* n0 x n1 items of (rows, cols): one after the other, with gaps, as blocks of rows or of columns
   of larger matrices, or one item repeated; stored transposed or not. even = 1: rows and items
   start at multiples of 16 bytes. 0: anywhere. 2: items do not. 3: the first item does not. */
static View *view_of(int kind, int turned, int even, int n0, int n1, int rows, int cols) {
    int r = turned ? cols : rows, c = turned ? rows : cols, gap = even ? 4 : pick(1, 3);
    size_t width = (size_t)(kind == COLUMN_BLOCKS ? n1 * c : c), ld = width, s1, s0;
    if (kind != DENSE) ld += (size_t)gap;
    if (even && kind != DENSE) ld = (ld + 3) / 4 * 4;
    s1 = (size_t)r * ld;
    s0 = (size_t)n1 * s1;
    if (even == 2) gap = 3;
    if (kind == APART) {
        s1 += (size_t)gap;
        s0 = (size_t)n1 * s1 + (size_t)gap;
    }
    if (kind == ROW_BLOCKS) s0 += 2 * (size_t)gap;
    if (kind == COLUMN_BLOCKS) {
        s1 = (size_t)c;
        s0 = (size_t)r * ld + (size_t)gap;
    }
    if (kind == REPEATED) {
        s1 = 0;
        s0 = (size_t)r * ld + (size_t)gap;
    }
    View *v = &views[view_count++];
    v->size = (size_t)n0 * s0 + (size_t)n1 * s1 + 16;
    v->h = random_array(v->size, 1);
    v->before = host_array(v->size);
    v->d = device_array<float>(v->size);
    Mat m = {v->h + (kind == DENSE || even == 1 || even == 2 ? 0 : 3), n0, n1, s0, s1, r, c, ld, 1};
    v->host = turned ? mat_t(m) : m;
    v->dev = v->host;
    v->dev.p = v->d + (v->host.p - v->h);
    return v;
}
static View *random_view(int writable, int n0, int n1, int rows, int cols) {
    int kind = pick(0, writable ? 3 : 4), turned = pick(0, 1), even = pick(0, 3);
    return view_of(kind, turned, even, n0, n1, rows, cols);
}
static View *dense(int n, int rows, int cols) { return view_of(DENSE, 0, 1, n, 1, rows, cols); }
static View *vector(size_t n) { return view_of(DENSE, 0, 1, 1, 1, 1, (int)n); }

/* Fills v with new numbers. */
static View *view_like(const View *v) {
    View *w = &views[view_count++];
    *w = *v;
    w->h = random_array(v->size, 1);
    w->before = host_array(v->size);
    w->d = device_array<float>(v->size);
    w->host.p = w->h + (v->host.p - v->h);
    w->dev.p = w->d + (v->host.p - v->h);
    return w;
}

static size_t element(const View *v, int i, int r, int c) {
    return (size_t)(mat_item(v->host, i) - v->h) + (size_t)r * v->host.rs + (size_t)c * v->host.cs;
}
template <class F> static void each(const View *v, F f) {
    for (int i = 0; i < mat_count(v->host); i++)
        for (int r = 0; r < v->host.rows; r++)
            for (int c = 0; c < v->host.cols; c++) f(element(v, i, r, c), i, r, c);
}
static void fill(View *v, float x) {
    each(v, [&](size_t at, int, int, int) { v->h[at] = x; });
}
static void forget(void) {
    view_count = 0;
    release();
}

static void upload(View *v) { put(v->d, v->h, v->size); }

/* The largest difference of the view from the host's, relative to the host's largest number.
   Infinity if the device has written outside of the view. NaN has to be NaN on both sides. */
static double view_error(const View *v, const float *got) {
    double worst = 0, largest = 1e-30;
    unsigned char *inside = (unsigned char *)calloc(v->size, 1);
    each(v, [&](size_t at, int, int, int) {
        double e = fabs((double)got[at] - (double)v->h[at]);
        inside[at] = 1;
        if (isnan(got[at]) && isnan(v->h[at])) return;
        if (!(e <= worst)) worst = e == e ? e : INFINITY;
        if (fabsf(v->h[at]) > largest) largest = fabs((double)v->h[at]);
    });
    for (size_t i = 0; i < v->size; i++)
        if (!inside[i] && memcmp(got + i, v->before + i, sizeof *got)) worst = INFINITY;
    free(inside);
    return worst / largest;
}

static char shape_text[160];
static const char *shape(const View *v) {
    Mat m = v->host;
    snprintf(shape_text, sizeof shape_text, "%d x %d of %d x %d, strides %zu %zu %zu %zu", m.n0,
             m.n1, m.rows, m.cols, m.s0, m.s1, m.rs, m.cs);
    return shape_text;
}

/* Runs an operation twice on the device and once on the host. `written` has a bit for each view
   that the operation writes. The views hold the host's results afterwards. */
template <class G, class H>
static void compare(const char *what, double tol, unsigned written, G gpu, H host) {
    float *first[8], *second[8];
    int n = view_count, same = 1;
    for (int i = 0; i < n; i++) memcpy(views[i].before, views[i].h, views[i].size * sizeof(float));
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < n; i++) upload(&views[i]);
        gpu();
        for (int i = 0; i < n; i++) (turn ? second : first)[i] = on_host(views[i].d, views[i].size);
    }
    for (int i = 0; i < n; i++) same &= !memcmp(first[i], second[i], views[i].size * sizeof(float));
    check(same, "la_%s of %s: two runs differ", what, shape(&views[0]));
    host();
    for (int i = 0; i < n; i++) {
        if (written >> i & 1) {
            double e = view_error(&views[i], first[i]);
            check(e <= tol, "la_%s of %s: view %d is off by %g", what, shape(&views[0]), i, e);
        } else {
            check(!memcmp(first[i], views[i].before, views[i].size * sizeof(float)),
                  "la_%s of %s writes view %d", what, shape(&views[0]), i);
        }
    }
}
/* CALL refers to views as at(V) and to vectors as p(V), on either side. */
namespace on_gpu {
static inline Mat at(const View *v) { return v->dev; }
static inline float *p(const View *v) { return v->dev.p; }
} // namespace on_gpu
namespace on_cpu {
static inline Mat at(const View *v) { return v->host; }
static inline float *p(const View *v) { return v->host.p; }
} // namespace on_cpu
#define COMPARE(WHAT, TOL, WRITTEN, CALL)                                                          \
    compare(                                                                                       \
        #WHAT, TOL, WRITTEN,                                                                       \
        [&] {                                                                                      \
            using namespace on_gpu;                                                                \
            la_##WHAT CALL;                                                                        \
        },                                                                                         \
        [&] {                                                                                      \
            using namespace on_cpu;                                                                \
            cpu_la_##WHAT CALL;                                                                    \
        })

/* ---------------------------------------------------------------------------------------------- */
/* Element by element, and sums                                                                   */

static void test_elements(int n0, int n1, int rows, int cols, int trial) {
    int n = n0 * n1, group = n % 2 == 0 && trial & 2 ? 2 : 1, square = min_int(rows, cols);
    stream({1, n0, n1, rows, cols, trial});
    double a = draw(), b = trial % 3 ? draw() : 0;

    View *Y = random_view(1, n0, n1, rows, cols), *X = random_view(0, n0, n1, rows, cols);
    if (b == 0) fill(Y, NAN); /* Y must be overwritten, not multiplied by 0 */
    COMPARE(axpby, EACH, 1, (at(Y), a, at(X), b));
    COMPARE(copy, 0, 1, (at(Y), at(X)));
    View *s = vector((size_t)n);
    COMPARE(add_scaled, EACH, 1, (at(Y), a, p(s), at(X), group));
    COMPARE(scale, EACH, 1, (at(Y), p(s), group));
    COMPARE(axpby, EACH, 1, (at(Y), a, at(Y), 0)); /* in place */
    COMPARE(round_bf16, 0, 1, (at(Y)));
    s = vector((size_t)(n / group));
    COMPARE(norms, EACH, 8, (p(s), at(X), group));
    COMPARE(inner, 3e-5, 8, (p(s), at(X), at(Y), group)); /* terms may cancel */
    s = vector((size_t)n * rows);
    COMPARE(row_norms, EACH, 16, (p(s), at(X)));
    COMPARE(scale_rows, EACH, 1, (at(Y), p(s), at(X)));
    COMPARE(scale_rows, EACH, 1, (at(Y), p(s), at(Y)));
    forget();

    stream({2, n0, n1, rows, cols, trial});
    View *U = random_view(1, n0, n1, rows, cols), *M = random_view(1, n0, n1, rows, cols),
         *G = view_like(M);
    COMPARE(momentum, EACH, 3, (at(U), at(M), at(G), 0.9, a, trial & 1));
    forget();

    stream({3, n0, n1, rows, cols, trial});
    View *P = view_of(pick(0, 3), 0, trial & 1, n0, n1, rows, cols), *V;
    G = view_like(P);
    M = view_like(P);
    V = view_of(pick(0, 3), 0, trial & 1, n0, n1, rows, cols);
    for (size_t i = 0; i < V->size; i++) V->h[i] = fabsf(V->h[i]);
    COMPARE(adamw, EACH, 13,
            (at(P), at(G), at(M), at(V), 0.7, 0.9, 0.95, 0.1, 1.3, 0.3, 0.99, NULL));
    for (size_t i = 0; i < V->size; i++) V->h[i] = fabsf(V->h[i]);
    COMPARE(adam, EACH, 13, (at(P), at(G), at(M), at(V), 0.7, 0.9, 0.95, 0.1, 1.3, 0.3));
    forget();

    stream({4, n0, n1, rows, cols, trial});
    View *Q = view_of(APART, 0, trial & 1, n0, n1, square, square);
    View *Z = view_of(DENSE, 0, 1, n0, n1, square, square);
    Y = view_of(ROW_BLOCKS, 0, trial & 1, n0, n1, square, square);
    COMPARE(polynomial, EACH, 1, (at(Q), 0.5, a, at(Z), 0.25, at(Y)));
    COMPARE(polynomial, EACH, 1, (at(Q), 0.5, a, at(Q), b, at(Z)));
    COMPARE(polynomial, EACH, 2, (at(Z), 0.5, a, at(Q), b, at(Z)));
    COMPARE(symmetrize, EACH, 1, (at(Q)));
    COMPARE(symmetrize, EACH, 2, (at(Z)));
    forget();
}

static void test_all_elements(void) {
    static const int sizes[] = {1, 2, 3, 4, 5, 8, 15, 16, 31, 32, 33, 48, 64, 70};
    for (int trial = 0; trial < 30; trial++) {
        stream({0, trial});
        int n0 = pick(1, 3), n1 = pick(1, 3), rows = sizes[pick(0, 13)], cols = sizes[pick(0, 13)];
        test_elements(n0, n1, rows, cols, trial);
    }
    static const int more[][4] = {{1, 1, 130, 261}, {1, 1, 1, 4099}, {1, 1, 1031, 1},
                                  {2, 1, 96, 64},   {20, 25, 2, 4},  {2, 6, 32, 96},
                                  {1, 1, 300, 128}};
    for (int i = 0; i < 7; i++)
        for (int trial = i & 1; trial < 3; trial += 2)
            test_elements(more[i][0], more[i][1], more[i][2], more[i][3], trial);
    /* More items than the second dimension of a grid may have. */
    stream({5});
    View *Y = view_of(APART, 0, 1, 66000, 1, 1, 1), *s = vector(66000);
    COMPARE(scale, EACH, 1, (at(Y), p(s), 1));
    forget();
    /* No items: no kernel starts. */
    Mat none = mat_dense(NULL, 0, 3, 4);
    la_copy(none, none);
    la_scale(none, NULL, 1);
    la_norms(NULL, none, 1);
    la_gram(none, none, 0);
    la_gemm(none, 1, none, none, 0);
    la_symmetrize(none);
    la_row_norms(NULL, none);
    la_vec_mul(NULL, 0, 1);
}

static void test_vectors(void) {
    static const int sizes[] = {1, 127, 128, 129, 1000};
    for (int i = 0; i < 5; i++) {
        int n = sizes[i];
        stream({6, n});
        View *s = vector((size_t)n), *t = vector((size_t)n);
        COMPARE(vec_recip, EACH, 1, (p(s), n));
        COMPARE(vec_rroot, EACH, 1, (p(s), n, 3, 1e-3, 1));
        COMPARE(vec_rroot, EACH, 1, (p(s), n, 3, 1e-3, 0.7));
        COMPARE(vec_damping, EACH, 1, (p(s), n, 0.5, 0.1, 0.4));
        COMPARE(vec_div, EACH, 1, (p(s), p(t), n));
        COMPARE(vec_mul, EACH, 1, (p(s), n, -3));
        COMPARE(vec_moment, EACH, 2, (p(t), p(s), n, 0.9, 0.5));
        for (int j = 0; j < n; j++) t->h[j] = fabsf(t->h[j]);
        COMPARE(vec_root_recip, EACH, 1, (p(s), p(t), n, 1e-3));
        COMPARE(vec_sqrt, EACH, 1, (p(s), n));
        t->h[0] = 0;
        COMPARE(vec_balance, EACH, 1, (p(s), p(t), n, 0.3, 0.5));
        COMPARE(vec_cold, EACH, 1, (p(s), p(t), n, 0.5, 0.01));
        for (int j = 0; j < n; j++) s->h[j] = j % 5 ? fabsf(s->h[j]) : 0;
        COMPARE(vec_ratio_power, EACH, 1, (p(s), p(t), n, 0.3));
        View *x = vector((size_t)n), *a = vector((size_t)n), *b = vector((size_t)n);
        View *more = vector(7 * (size_t)n), *fewer = vector(7 * (size_t)n);
        for (int k = 1; k <= 7; k += 6)
            COMPARE(vec_escape, EACH, 1, (p(s), p(more), p(fewer), n, k, 0.9));
        for (int form = 0; form < 3; form++)
            for (int zero = 0; zero < 2; zero++) {
                if (zero) a->h[0] = b->h[n - 1] = 0;
                COMPARE(vec_gauge, EACH, 4,
                        (p(x), p(s), p(t), p(a), p(b), n, zero ? 0.0 : 0.1, form));
            }
        forget();
    }
}

static void test_sum_squares(void) {
    static const size_t sizes[] = {0, 1, 3, 4, 255, 1023, 1025, 300001};
    stream({7});
    float *h = random_array(300004, 3), *d = on_device<float>(h, 300004);
    for (int i = 0; i < 8; i++)
        for (int shift = 0; shift < 2; shift++) {
            double expected = 0, got = la_sum_squares(d + shift, sizes[i]);
            double again = la_sum_squares(d + shift, sizes[i]);
            for (size_t j = 0; j < sizes[i]; j++)
                expected += (double)h[shift + j] * (double)h[shift + j];
            check(relative_error(got, expected, 1e-30) < 1e-12 && got == again,
                  "la_sum_squares of %zu from %d: %.17g, then %.17g, not %.17g", sizes[i], shift,
                  got, again, expected);
        }
    check(isinf(la_identity_gap(mat_dense(d, 1, 3, 3))), "la_identity_gap waits");
    check(la_chunk(7) == 7 && la_workers(3, 100) == 1, "items are to be taken together");
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* Products                                                                                       */

/* Whether each item of a view equals its transpose, to the bit. */
static int is_symmetric(const View *v) {
    const float *x = on_host(v->d, v->size);
    int same = 1;
    each(v, [&](size_t at, int i, int r, int c) {
        same &= !memcmp(x + at, x + element(v, i, c, r), sizeof(float));
    });
    return same;
}

/* The largest sum over k of |a_ik b_kj|, relative to the largest |sum of a_ik b_kj|: the factor
   from a relative change of the matrices to that of the largest element of their product. */
static double cancellation(const View *A, const View *B) {
    double largest = 0, sizes = 0;
    for (int i = 0; i < mat_count(A->host); i++)
        for (int r = 0; r < A->host.rows; r++)
            for (int c = 0; c < B->host.cols; c++) {
                double sum = 0, size = 0;
                for (int k = 0; k < A->host.cols; k++) {
                    double x =
                        (double)A->h[element(A, i, r, k)] * (double)B->h[element(B, i, k, c)];
                    sum += x;
                    size += fabs(x);
                }
                largest = fmax(largest, fabs(sum));
                sizes = fmax(sizes, size);
            }
    return sizes / largest;
}

static void test_products(void) {
    static const int sizes[] = {1, 2, 3, 7, 16, 17, 33, 40};
    for (int trial = 0; trial < 60; trial++) {
        stream({8, trial});
        int n0 = pick(1, 3), n1 = pick(1, 4);
        int m = sizes[pick(0, 7)], n = sizes[pick(0, 7)], k = sizes[pick(0, 7)];
        double a = draw(), b = trial % 3 ? draw() : 0;
        View *C = random_view(1, n0, n1, m, n), *A = random_view(0, n0, n1, m, k);
        View *B = random_view(0, n0, n1, k, n);
        if (b == 0) fill(C, NAN);
        COMPARE(gemm, SUMS, 1, (at(C), a, at(A), at(B), b));
        if (trial % 6 == 0) { /* two factors */
            double limit = (2 * TF32 + TF32 * TF32) * cancellation(A, B) + SUMS;
            cm_gpu.allow_tf32 = 1;
            check(la_fast(1) == 1, "la_fast(1) changes nothing");
            COMPARE(gemm, limit, 1, (at(C), 1, at(A), at(B), 0));
            check(la_fast(0) == 0, "la_fast(0) changes nothing");
            cm_gpu.allow_tf32 = 0;
            check(la_fast(1) == 0, "la_fast(1) although TF32 is off");
            la_fast(0);
        }
        /* An addend that is laid out like D, differently from D, or that is D. */
        View *D = trial % 2 ? view_like(C) : random_view(1, n0, n1, m, n);
        fill(D, NAN);
        COMPARE(gemm_add, SUMS, 1u << 3, (at(D), a, at(A), at(B), b, at(C)));
        COMPARE(gemm_add, SUMS, 1u << 3, (at(D), a, at(A), at(B), 0.5, at(D)));
        forget();
    }
    /* Batches in different levels: twelve items as 12 x 1, 3 x 4 and 2 x 6. */
    for (int kind = 0; kind < 3; kind++) {
        stream({9, kind});
        View *C = view_of(kind == 2 ? ROW_BLOCKS : DENSE, 0, 1, 3, 4, 5, 6);
        View *A = view_of(kind == 1 ? COLUMN_BLOCKS : DENSE, 1, 0, 2, 6, 5, 7);
        View *B = view_of(DENSE, 0, 1, 12, 1, 7, 6);
        COMPARE(gemm, SUMS, 1, (at(C), 1, at(A), at(B), 0.5));
        COMPARE(copy, 0, 1, (at(C), mat_rows(mat_t(mat_rows(mat_t(at(B)), 0, 6)), 0, 5)));
        View *D = view_of(DENSE, 0, 1, 4, 3, 5, 6);
        COMPARE(gemm_add, SUMS, 1u << 3, (at(D), 1, at(A), at(B), 0.5, at(C)));
        forget();
    }
    /* The two triangles of symmetric results have equal bits. */
    static const int squares[] = {1, 5, 16, 17, 32, 40, 64, 80, 96, 97, 128, 130, 160};
    for (int i = 0; i < 13; i++)
        for (int turned = 0; turned < 2; turned++) {
            int k = squares[i], d = i % 3 == 0 ? 100 : i % 3 == 1 ? 32 : 7, n1 = 1 + i % 3;
            int kind = i % 2 ? ROW_BLOCKS : COLUMN_BLOCKS;
            stream({10, k, turned});
            View *G = view_of(DENSE, 0, 1, 2, n1, k, k),
                 *A = view_of(kind, turned, i & 1, 2, n1, k, d);
            fill(G, NAN);
            COMPARE(gram, SUMS, 1, (at(G), at(A), 0));
            check(is_symmetric(G), "la_gram of %s is not symmetric", shape(A));
            COMPARE(gemm_symmetric, SUMS, 1, (at(G), 0.5, at(A), mat_t(at(A)), 2));
            check(is_symmetric(G), "la_gemm_symmetric of %s is not symmetric", shape(A));
            COMPARE(gram, SUMS, 1, (at(G), at(A), 0.5));
            View *turn = view_of(APART, 1, i & 1, 2, n1, k, k);
            COMPARE(gemm_symmetric, SUMS, 1u << 2, (at(turn), 0.5, at(A), mat_t(at(A)), 0));
            check(is_symmetric(turn), "la_gemm_symmetric into a transpose is not symmetric");
            forget();
            /* P and Z commute, but the two triangles of their product are rounded in different
               orders. */
            View *C = dense(2, k, k), *P = dense(2, k, k), *Z = dense(2, k, k);
            each(Z, [&](size_t at, int item, int r, int c) {
                Z->h[at] = Z->h[element(Z, item, c, r)];
            });
            cpu_la_gemm_symmetric(P->host, 1, Z->host, Z->host, 0);
            COMPARE(gemm_symmetric, SUMS, 1, (at(C), 1, at(P), at(Z), 0));
            check(is_symmetric(C), "la_gemm_symmetric of %d x %d is not symmetric", k, k);
            View *D = dense(2, k, k);
            COMPARE(gemm_add_symmetric, SUMS, 1u << 3, (at(D), 0.5, at(P), at(Z), -2, at(Z)));
            check(is_symmetric(D), "la_gemm_add_symmetric of %d x %d is not symmetric", k, k);
            forget();
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Small matrices                                                                                 */

/* Sets every item of a dense view to U diag(s) U^T, U a product of reflections. Item i is scaled
   by i + 1. */
static void symmetric_from(View *v, const double *s) {
    int k = v->host.rows;
    double *A = (double *)malloc((size_t)k * k * sizeof *A),
           *u = (double *)malloc((size_t)k * sizeof *u);
    for (int i = 0; i < mat_count(v->host); i++) {
        for (int e = 0; e < k * k; e++) A[e] = e % (k + 1) ? 0 : s[e / k] * (i + 1);
        for (int reflection = 0; reflection < 3; reflection++) {
            double norm = 0;
            for (int r = 0; r < k; r++) {
                u[r] = draw();
                norm += u[r] * u[r];
            }
            for (int side = 0; side < 2; side++)
                for (int r = 0; r < k; r++) {
                    double dot = 0;
                    for (int c = 0; c < k; c++) dot += u[c] * A[side ? r * k + c : c * k + r];
                    for (int c = 0; c < k; c++)
                        A[side ? r * k + c : c * k + r] -= 2 * dot / norm * u[c];
                }
        }
        for (int e = 0; e < k * k; e++)
            v->h[element(v, i, e / k, e % k)] = (float)(0.5 * (A[e] + A[e % k * k + e / k]));
    }
    free(A);
    free(u);
}

/* Eigenvalues from 1 down to 1 / condition. */
static void graded(View *v, double condition) {
    int k = v->host.rows;
    double s[256];
    for (int i = 0; i < k; i++) s[i] = pow(condition, k > 1 ? -(double)i / (k - 1) : 0);
    symmetric_from(v, s);
}

static const int root_sizes[] = {1, 3, 16, 24, 33, 64, 96, 128};
/* Three matrices of 128 x 128 do not fit into the shared memory of every GPU. */
static int root_size_count(void) { return la_block_bytes<128>() <= cm_gpu.shared_limit ? 8 : 7; }

static int run_root(View *R, View *G, double damping, int steps, int watch) {
    return la_root_iteration(R->dev, G->dev, damping, invroot_table, steps, watch);
}

/* The root against the CPU's eigendecomposition in double. Rounding the Gram alone changes the
   root by half of kappa eps, kappa being the condition after damping. The rounding of the
   iteration adds some eps. Twelve steps have not quite converged. */
static void test_roots(void) {
    static const double conditions[] = {10, 1e4, 1e6}, dampings[] = {1e-2, 1e-2, 1e-5};
    for (int i = 0; i < root_size_count(); i++)
        for (int c = i < 6 ? 0 : 2; c < 3; c++) {
            int k = root_sizes[i], n = k > 33 ? 1 : 3, steps = c ? 25 : 12;
            double damping = dampings[c], kappa = fmin(conditions[c], 1 / damping);
            stream({11, k, c});
            View *R = view_of(k == 33 ? APART : DENSE, 0, 1, n, 1, k, k), *G = dense(n, k, k);
            View *scratch = vector(cpu_la_eigh_scratch(k) * (size_t)n);
            graded(G, conditions[c]);
            compare(
                "root_iteration", steps == 12 ? 5e-5 : 3e-7 * (40 + kappa / 2), 1,
                [&] { check(run_root(R, G, damping, steps, INVROOT_TUNED), "%d is declined", k); },
                [&] { cpu_la_eigh_rroot(R->host, G->host, damping, 1, scratch->h); });
            check(is_symmetric(R), "the root of %d x %d is not symmetric", k, k);
            forget();
        }
}

/* C = A B for k x k matrices in double. */
static void multiply(double *C, const double *A, const double *B, int k) {
    for (int i = 0; i < k; i++)
        for (int j = 0; j < k; j++) C[i * k + j] = 0;
    for (int i = 0; i < k; i++)
        for (int l = 0; l < k; l++)
            for (int j = 0; j < k; j++) C[i * k + j] += A[i * k + l] * B[l * k + j];
}

/* The iteration of optim/invroot.h: P = Z Y, Y <- a Y + b Y P, Z <- a Z + b P Z. */
static void root_steps(float *R, const float *G, int k, double damping, int steps) {
    enum { MOST = 32 * 32 };
    double Y[MOST], Z[MOST], P[MOST], T[MOST], norm = 0;
    for (int i = 0; i < k * k; i++) {
        Y[i] = (double)G[i] + (i % (k + 1) ? 0 : damping);
        norm += Y[i] * Y[i];
        Z[i] = i % (k + 1) == 0;
    }
    for (int i = 0; i < k * k; i++) Y[i] *= 0.999 / sqrt(norm);
    for (int s = 0; s < steps; s++) {
        double a = invroot_table[s][0], b = invroot_table[s][1];
        multiply(P, Z, Y, k);
        multiply(T, P, Z, k);
        for (int i = 0; i < k * k; i++) Z[i] = a * Z[i] + b * T[i];
        multiply(T, Y, P, k);
        for (int i = 0; i < k * k; i++) Y[i] = a * Y[i] + b * T[i];
    }
    for (int i = 0; i < k * k; i++) R[i] = (float)(sqrt(0.999 / sqrt(norm)) * Z[i]);
}

/* The iterates after some of the steps, which are more sensitive to rounding than the root. */
static void test_root_steps(void) {
    for (int steps = 2; steps < 12; steps += 3) {
        stream({12, steps});
        View *R = dense(1, 20, 20), *G = dense(1, 20, 20);
        graded(G, 1e3);
        compare(
            "root_iteration", 5e-5, 1, [&] { run_root(R, G, 0.125, steps, 25); },
            [&] { root_steps(R->h, G->h, 20, 0.125, steps); });
        forget();
    }
}

/* Steps that are skipped would change nothing. A NaN stays in its item. A matrix that is too
   large is declined, and the operations do the iteration one by one. */
static void test_root_stops(void) {
    enum { K = 40, N = 3 };
    stream({13});
    View *R = dense(N, K, K), *G = dense(N, K, K);
    graded(G, 1e3);
    upload(G);
    run_root(R, G, 1e-3, 25, INVROOT_TUNED);
    const float *stopped = on_host(R->d, R->size);
    run_root(R, G, 1e-3, 25, 25);
    const float *whole = on_host(R->d, R->size);
    double e = relative_l2_ff(stopped, whole, N * K * K, 1);
    check(e < 3e-5 && e > 0, "the root changes by %g in the steps left out", e);

    size_t limit = cm_gpu.shared_limit;
    cm_gpu.shared_limit = 1000;
    Arena none = {NULL, 0, 0};
    const Mat shape = mat_dense(NULL, N, K, K);
    invroot(shape, shape, 1e-3, ROOT_CANS25, &none);
    Arena arena = {device_array<float>(none.size), none.size, 0};
    check(!run_root(R, G, 1e-3, 25, 9), "a root without memory is not declined");
    check(!la_sign_run(R->dev, G->dev, msign_table(0)->abc, 2),
          "a run without memory is not declined");
    invroot(R->dev, G->dev, 1e-3, ROOT_CANS25, &arena);
    cm_gpu.shared_limit = limit;
    e = relative_l2_ff(on_host(R->d, R->size), stopped, N * K * K, 1);
    check(e < 1e-4, "the root by single operations is off by %g", e);

    G->h[(K + 1) * K / 2] = NAN; /* in item 0 */
    upload(G);
    run_root(R, G, 1e-3, 25, INVROOT_TUNED);
    const float *spoilt = on_host(R->d, R->size);
    check(isnan(spoilt[5]) && isnan(spoilt[K * K - 1]), "the root hides NaN");
    check(!memcmp(spoilt + K * K, stopped + K * K, (N - 1) * K * K * sizeof(float)), "NaN spreads");
    forget();
    View *large = dense(1, 129, 129), *out = dense(1, 129, 129);
    check(!run_root(out, large, 1, 25, 9) &&
              !la_sign_run(out->dev, large->dev, msign_table(0)->abc, 1),
          "129 x 129 is not declined");
    forget();
}

/* Q = P_s ... P_1 in double, with A <- P A P. A is overwritten. */
static void sign_run(double *Q, double *A, const double (*abc)[3], int steps, int k) {
    size_t size = (size_t)k * k * sizeof *A;
    double *P = (double *)malloc(size), *T = (double *)malloc(size);
    for (int i = 0; i < k * k; i++) Q[i] = i % (k + 1) == 0;
    for (int s = 0; s < steps; s++) {
        multiply(P, A, A, k);
        for (int i = 0; i < k * k; i++)
            P[i] = abc[s][0] * (i % (k + 1) == 0) + abc[s][1] * A[i] + abc[s][2] * P[i];
        multiply(T, P, A, k);
        multiply(A, T, P, k);
        multiply(T, P, Q, k);
        memcpy(Q, T, size);
    }
    free(P);
    free(T);
}

static void sign_runs(View *Q, const View *A, const double (*abc)[3], int steps) {
    int k = A->host.rows;
    double *a = (double *)malloc(2 * (size_t)k * k * sizeof *a), *q = a + (size_t)k * k;
    for (int item = 0; item < mat_count(A->host); item++) {
        for (int e = 0; e < k * k; e++) a[e] = (double)A->h[element(A, item, e / k, e % k)];
        sign_run(q, a, abc, steps, k);
        for (int e = 0; e < k * k; e++) Q->h[element(Q, item, e / k, e % k)] = (float)q[e];
    }
    free(a);
}

/* A run of pe8 on Grams: its first three steps on Grams of trace 1, as of matrices of norm 1;
   its last five on Grams with eigenvalues from 0.3 to 0.9, where the first three leave them.
   Every step multiplies the error of an eigenvalue by the slope of the polynomial, at most a
   few. */
static void test_sign_runs(void) {
    for (int i = 0; i < root_size_count(); i++)
        for (int run = 0; run < 2; run++) {
            int k = root_sizes[i], n = k > 33 ? 1 : 3, steps = run ? 5 : 3;
            const double(*abc)[3] = msign_table(MSIGN_PE8)->abc + (run ? 3 : 0);
            double s[128];
            stream({14, k, run});
            View *Q = view_of(k == 24 ? APART : DENSE, 0, 1, n, 1, k, k), *A = dense(n, k, k);
            for (int j = 0; j < k; j++)
                s[j] = (run ? 0.3 + 0.6 * j / k : 2.0 * (j + 1) / k / (k + 1)) / n;
            symmetric_from(A, s);
            compare(
                "sign_run", 1e-5, 1,
                [&] {
                    check(la_sign_run(Q->dev, A->dev, abc, steps), "%d x %d is declined", k, k);
                },
                [&] { sign_runs(Q, A, abc, steps); });
            check(is_symmetric(Q), "the run on %d x %d is not symmetric", k, k);
            if (k == 3) {
                A->h[0] = NAN;
                upload(A);
                la_sign_run(Q->dev, A->dev, abc, steps);
                const float *q = on_host(Q->d, Q->size);
                check(isnan(q[8]) && !isnan(q[9]), "NaN is lost or spreads");
            }
            forget();
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Eigenvalues and gauges                                                                         */

/* ||Q diag(w) Q^T - G|| / ||G||, with G the symmetric part of an item; or ||Q Q^T - I|| /
   sqrt(k), if that is larger. */
static double eigen_error(const View *G, int item, const float *q, const float *w) {
    int k = G->host.rows;
    double product = 0, unit = 0, norm = 0;
    for (int r = 0; r < k; r++)
        for (int c = 0; c < k; c++) {
            double sum = 0, dot = 0, g = (double)G->h[element(G, item, r, c)];
            for (int j = 0; j < k; j++) {
                double x = (double)q[r * k + j] * (double)q[c * k + j];
                sum += x * (double)w[j];
                dot += x;
            }
            g = 0.5 * (g + (double)G->h[element(G, item, c, r)]);
            product += (sum - g) * (sum - g);
            norm += g * g;
            unit += (dot - (r == c)) * (dot - (r == c));
        }
    double e = norm > 0 ? sqrt(product / norm) : sqrt(product);
    return fmax(e == e ? e : INFINITY, sqrt(unit / k));
}

/* A matrix without an inverse root is recorded as a failure, which is then forgotten. */
static void expect_failure(const char *words, const char *what, int k) {
    const char *failure = device_failure();
    check(failure && strstr(failure, words), "%s, %d x %d: \"%s\"", what, k, k,
          failure ? failure : "no failure");
    cm_gpu.failure[0] = 0;
}

/* Graded, indefinite and zero matrices, with the matrix in shared memory and without. */
static void test_eigenvalues(void) {
    static const int sizes[] = {1, 2, 3, 5, 16, 17, 33, 64};
    for (int i = 0; i < 8; i++)
        for (int kind = 0; kind < 3; kind++) {
            int k = sizes[i], n = k > 20 ? 1 : 3;
            size_t kk = (size_t)k * k, limit = cm_gpu.shared_limit;
            stream({15, k, kind});
            double power = kind == 1 ? 0.7 : 1;
            View *Q = dense(n, k, k), *G = view_of(i % 2 ? APART : DENSE, 0, 1, n, 1, k, k);
            View *R = dense(n, k, k), *w = dense(n, 1, k);
            View *scratch = vector(cpu_la_eigh_scratch(k) * (size_t)n);
            floatM *room = device_array<float>(la_eigh_scratch(k) * (size_t)n);
            if (kind == 0) graded(G, 1e5);
            if (kind == 2) fill(G, 0);
            compare(
                "eigh_rroot", 1e-5, 1u << 2,
                [&] { la_eigh_rroot(R->dev, G->dev, 10, power, room); },
                [&] { cpu_la_eigh_rroot(R->host, G->host, 10, power, scratch->h); });
            check(is_symmetric(R), "la_eigh_rroot of %d x %d is not symmetric", k, k);
            cm_gpu.shared_limit = kind == 1 ? 0 : limit;
            la_eigh(Q->dev, w->dev.p, G->dev, room);
            cm_gpu.shared_limit = limit;
            const float *q = on_host(Q->d, Q->size), *values = on_host(w->d, w->size);
            for (int item = 0; item < n; item++) {
                double e = eigen_error(G, item, q + (size_t)item * kk, values + item * k);
                check(e < 1e-6, "la_eigh of %d x %d, kind %d, item %d: %g", k, k, kind, item, e);
            }
            G->h[element(G, 0, k - 1, 0)] = NAN;
            upload(G);
            la_eigh_rroot(R->dev, G->dev, 10, 1, room);
            const float *r = on_host(R->d, R->size);
            check(isnan(r[0]) && isnan(r[kk - 1]), "la_eigh_rroot of %d hides NaN", k);
            check(n == 1 || !isnan(r[kk]), "la_eigh_rroot of %d spreads NaN", k);
            expect_failure("not finite", "la_eigh_rroot of NaN", k);
            la_eigh(Q->dev, w->dev.p, G->dev, room);
            check(isnan(on_host(w->d, w->size)[0]), "la_eigh of %d hides NaN", k);
            forget();
        }
}

/* The inverse of a Cholesky factor: of Grams, of some that are singular in their last or in a
   middle row, of zero and of NaN, in shared memory and without. */
static void test_chol_inverse(void) {
    static const int sizes[] = {1, 2, 3, 7, 16, 17, 33, 64, 130};
    for (int i = 0; i < 9; i++)
        for (int kind = 0; kind < 4; kind++) {
            int k = sizes[i], n = k > 20 ? 2 : 3;
            stream({18, k, kind});
            View *X = view_of(APART, 0, 1, n, 1, k, k), *G = dense(n, k, k);
            View *A = dense(n, k, k + 3), *scratch = vector(cpu_la_eigh_scratch(k) * (size_t)n);
            int empty = kind == 1 ? k - 1 : kind == 2 ? k / 2 : -1;
            each(A, [&](size_t at, int, int r, int) { A->h[at] *= r == empty ? 0 : 1; });
            cpu_la_gemm_symmetric(G->host, 1, A->host, mat_t(A->host), 0);
            if (kind == 3) fill(G, 0);
            size_t limit = cm_gpu.shared_limit;
            floatM *room = device_array<float>(la_eigh_scratch(k) * (size_t)n);
            cm_gpu.shared_limit = i % 2 ? 0 : limit;
            /* Both sides take equal sums in double. */
            compare(
                "chol_inverse", EACH, 1, [&] { la_chol_inverse(X->dev, G->dev, room); },
                [&] { cpu_la_chol_inverse(X->host, G->host, scratch->h); });
            G->h[element(G, 0, 0, k - 1)] = NAN;
            upload(G);
            la_chol_inverse(X->dev, G->dev, room);
            cm_gpu.shared_limit = limit;
            const float *x = on_host(X->d, X->size);
            check(isnan(x[element(X, 0, 0, 0)]) && isnan(x[element(X, 0, k - 1, 0)]),
                  "la_chol_inverse of %d hides NaN", k);
            check(!isnan(x[element(X, 1, 0, 0)]), "la_chol_inverse of %d spreads NaN", k);
            forget();
        }
}

static void test_gauges(void) {
    static const int sizes[] = {1, 7, 32, 50};
    for (int i = 0; i < 4; i++)
        for (int form = 0; form < 3; form++)
            for (int zero = 0; zero < 2; zero++) {
                int k = sizes[i];
                stream({16, k, form, zero});
                View *S = dense(2, k, k), *L = dense(2, k, k),
                     *R = view_of(APART, 0, 1, 2, 1, k, k);
                View *a = dense(2, 1, k), *b = dense(2, 1, k);
                for (int j = 0; j < 2 * k; j++) {
                    a->h[j] = j % 3 ? fabsf(a->h[j]) : zero ? 1e-9f : j ? -0.05f : 1e6f;
                    b->h[j] = j % 4 ? fabsf(b->h[j]) : 0;
                }
                COMPARE(gauge, EACH, 1, (at(S), at(L), at(R), p(a), p(b), zero ? 0 : 0.01, form));
                COMPARE(gauge, EACH, 2, (at(L), at(L), at(R), p(a), p(b), zero ? 0 : 0.01, form));
                forget();
            }
}

/* ---------------------------------------------------------------------------------------------- */
/* The sign                                                                                       */

/* The plain iteration in double on the wide x (m,n): X <- P X, with P a polynomial in X X^T. */
static double *plain_sign(const float *x, int m, int n, const MsignTable *table) {
    double *X = (double *)malloc((size_t)m * n * sizeof *X),
           *Y = (double *)malloc((size_t)m * n * sizeof *Y);
    double *A = (double *)malloc((size_t)m * m * sizeof *A),
           *Q = (double *)malloc((size_t)m * m * sizeof *Q);
    double norm = 0;
    for (int i = 0; i < m * n; i++) norm += (double)x[i] * (double)x[i];
    for (int i = 0; i < m * n; i++) X[i] = (double)x[i] / sqrt(norm);
    for (int step = 0; step < table->steps; step++) {
        for (int i = 0; i < m; i++)
            for (int j = 0; j <= i; j++) {
                double sum = 0;
                for (int c = 0; c < n; c++) sum += X[i * n + c] * X[j * n + c];
                A[i * m + j] = A[j * m + i] = sum;
            }
        sign_run(Q, A, table->abc + step, 1, m);
        for (int i = 0; i < m; i++) {
            for (int c = 0; c < n; c++) Y[i * n + c] = 0;
            for (int l = 0; l < m; l++)
                for (int c = 0; c < n; c++) Y[i * n + c] += Q[i * m + l] * X[l * n + c];
        }
        memcpy(X, Y, (size_t)m * n * sizeof *X);
    }
    free(Y);
    free(A);
    free(Q);
    return X;
}

/* x (rows,cols), transposed if it is tall. */
static float *widened(const float *x, int rows, int cols) {
    float *wide = host_array((size_t)rows * cols);
    for (int i = 0; i < rows * cols; i++) wide[rows > cols ? i % cols * rows + i / cols : i] = x[i];
    return wide;
}

/* The sign of X on the device, which must leave no state behind. X->d is overwritten. */
static const float *sign_on_device(View *X, int which, int bf16) {
    Arena none = {NULL, 0, 0};
    msign_by(mat_dense(NULL, mat_count(X->dev), X->dev.rows, X->dev.cols), which, bf16, &none);
    Arena arena = {device_array<float>(none.size), none.size, 0};
    upload(X);
    msign_by(X->dev, which, bf16, &arena);
    check(!cm_gpu.la_fast && !arena.used && arena.p, "msign leaves something behind");
    return on_host(X->d, X->size);
}

/* Every singular value of n items (rows,cols) has to be in [lo, hi]. */
static void check_singular_values(const float *y, int n, int rows, int cols, double lo, double hi,
                                  const char *what) {
    int m = min_int(rows, cols), d = max_int(rows, cols);
    size_t size = (size_t)rows * cols, room = cpu_la_eigh_scratch(m);
    Mat G = mat_dense(host_array((size_t)m * m), 1, m, m),
        Q = mat_dense(host_array((size_t)m * m), 1, m, m);
    float *w = host_array((size_t)m), *scratch = host_array(room);
    for (int item = 0; item < n; item++) {
        cpu_la_gram(G, mat_dense(widened(y + (size_t)item * size, rows, cols), 1, m, d), 0);
        cpu_la_eigh(Q, w, G, scratch);
        double least = INFINITY, most = 0;
        for (int i = 0; i < m; i++) {
            least = fmin(least, (double)w[i]);
            most = fmax(most, (double)w[i]);
        }
        least = sqrt(fmax(least, 0));
        most = sqrt(most);
        check(least >= lo && most <= hi, "%s of %d x %d: singular values from %g to %g", what, rows,
              cols, least, most);
    }
}

/* msign of Gaussian matrices: heads on the Gram, tall matrices, matrices beyond the fused sizes,
   near-square ones by the plain iteration; exact and with TF32. Hardware that truncates to TF32
   makes every factor smaller by a part d, between 0 and 2^-10, half of that on average. Near the
   sign a step is X <- a X + P' X with P' = b A + c A^2, whose slope is 0 as a + b + c = 1. A is
   too small by 2 d, which makes the step 1 + d. P' X is too small by 2 d, and with b + c = 1 - a
   = -0.875 that adds 1.75 d. c A A with c = 0.375 takes 0.75 d away. Together 2 d, which later
   steps do not inherit, because each starts anew. On a Gram, a run of three steps has no such
   correction: its products P A, P T, P Q and Q X of two factors each add up to about three times
   that, the errors of A being halved by the root. So singular values are within 8 x 2^-10 of 1.
   In the norm it is half of that, as d is half of its limit on average, plus what is random:
   2^-11 / sqrt(6) = 2e-4 for each factor, divided by the singular values in the sign. Hardware
   that rounds has only the random part. */
static void test_sign(void) {
    static const int shapes[][3] = {{2, 64, 160}, {1, 130, 40}, {1, 136, 280}, {1, 72, 80}};
    for (int s = 0; s < 4; s++)
        for (int tf32 = 0; tf32 < 2; tf32++) {
            int n = shapes[s][0], rows = shapes[s][1], cols = shapes[s][2], m = min_int(rows, cols);
            size_t size = (size_t)rows * cols;
            double error = tf32 ? 5 * TF32 : 1e-5, spread = tf32 ? 8 * TF32 : 1e-4;
            View *X = dense(n, rows, cols);
            each(X, [&](size_t at, int, int, int) { X->h[at] = (float)rng_normal(3, 1, at); });
            cm_gpu.allow_tf32 = tf32;
            const float *y = sign_on_device(X, MSIGN_PE8, 0);
            cm_gpu.allow_tf32 = 0;
            for (int item = 0; item < n; item++) {
                double *exact = plain_sign(widened(X->h + (size_t)item * size, rows, cols), m,
                                           max_int(rows, cols), msign_table(MSIGN_PE8));
                double e =
                    relative_l2_fd(widened(y + (size_t)item * size, rows, cols), exact, size, 1);
                check(e < error, "msign of %d x %d, tf32 %d: off by %g", rows, cols, tf32, e);
                free(exact);
            }
            check_singular_values(y, n, rows, cols, 1 - spread, 1 + spread,
                                  tf32 ? "tf32 sign" : "sign");
            forget();
        }
}

/* msign_bf16 by the operations of this backend, in fp32 with rounded results. */
static const float *sign_by_rounding(View *X, const MsignTable *table) {
    int n = mat_count(X->dev), rows = X->dev.rows, cols = X->dev.cols, tall = rows > cols;
    size_t m = (size_t)min_int(rows, cols), memory = 2 * arena_round((size_t)n * m * m) + 64;
    Arena arena = {device_array<float>(memory), memory, 0};
    Mat Y = mat_dense(device_array<float>(X->size), n, rows, cols), x = X->dev;
    float *s = device_array<float>(2 * (size_t)n);
    upload(X);
    la_units(s, x);
    la_scale_units(x, s);
    if (tall) {
        x = mat_t(x);
        Y = mat_t(Y);
    }
    msign_bf16(&x, &Y, table, &arena);
    return on_host(x.p, mat_size(x));
}

/* The sign in bf16: wide, tall and square items, with rows of 8 n numbers or not, several at
   once. Two orders of a sum may round to different bf16, and from there results differ as much
   as by rounding the input. So both are held to that distance from the sign in fp32: u (1 +
   kappa), where kappa, the root mean square of one singular value over another, is about 2 for
   these shapes. Singular values end within two roundings of 1. */
static void test_sign_bf16(void) {
    static const int shapes[][3] = {{1, 96, 192}, {3, 66, 150}, {2, 150, 66}, {1, 72, 100},
                                    {2, 33, 50},  {1, 50, 33},  {1, 1, 1},    {3, 5, 7}};
    for (int s = 0; s < 8; s++) {
        int n = shapes[s][0], rows = shapes[s][1], cols = shapes[s][2];
        size_t size = (size_t)n * rows * cols;
        View *X = dense(n, rows, cols);
        each(X, [&](size_t at, int, int, int) { X->h[at] = (float)rng_normal(3, 2, at); });
        const float *exact = sign_on_device(X, MSIGN_PE8, 0), *y = sign_on_device(X, MSIGN_PE8, 1);
        int same = !memcmp(y, sign_on_device(X, MSIGN_PE8, 1), size * sizeof *y);
        check(same, "two bf16 signs of %d x %d differ", rows, cols);
        double e = relative_l2_ff(y, exact, size, 1), limit = 3 * BF16;
        check(e < limit, "bf16 sign of %d x %d: %g from that in fp32", rows, cols, e);
        e = relative_l2_ff(y, sign_by_rounding(X, msign_table(MSIGN_PE8)), size, 1);
        check(e < limit, "bf16 sign of %d x %d: %g from its definition", rows, cols, e);
        check_singular_values(y, n, rows, cols, 1 - 2 * BF16, 1 + 2 * BF16, "bf16 sign");
        int narrow = 1;
        for (size_t i = 0; i < size; i++) narrow &= rounded<__nv_bfloat16>(y[i]) == y[i];
        check(narrow, "the bf16 sign of %d x %d is not bf16", rows, cols);

        X->h[0] = NAN; /* in the first item */
        y = sign_on_device(X, MSIGN_PE8, 1);
        int lost = 1, spread = 0;
        for (size_t i = 0; i < size; i++)
            if (i < size / (size_t)n) lost &= !isnan(y[i]);
            else spread |= isnan(y[i]);
        check(!lost && !spread, "the bf16 sign of %d x %d: NaN lost %d, spread %d", rows, cols,
              lost, spread);
        fill(X, 0);
        y = sign_on_device(X, MSIGN_PE8, 1);
        int zero = 1;
        for (size_t i = 0; i < size; i++) zero &= y[i] == 0;
        check(zero, "the bf16 sign of zero, %d x %d, is not zero", rows, cols);
        forget();
    }
    /* Heads stay in fp32, so their bits are equal. auto means the precision of the layers if TF32
       is allowed, else fp32. */
    View *X = dense(2, 16, 40);
    each(X, [&](size_t at, int, int, int) { X->h[at] = (float)rng_normal(3, 4, at); });
    const float *fp32 = sign_on_device(X, MSIGN_PE8, 0), *bf16 = sign_on_device(X, MSIGN_PE8, 1);
    check(!memcmp(fp32, bf16, 2 * 16 * 40 * sizeof *fp32), "the sign of a head is not in fp32");
    check(la_sign_in_bf16(COMPUTE_BF16) && !la_sign_in_bf16(COMPUTE_FP32) &&
              !la_sign_in_bf16(COMPUTE_AUTO),
          "without TF32, auto is not fp32");
    cm_gpu.allow_tf32 = 1;
    check(la_sign_in_bf16(COMPUTE_AUTO) == (sizeof(floatX) == 2),
          "auto is not the precision of the layers");
    cm_gpu.allow_tf32 = 0;
    forget();
}

/* ---------------------------------------------------------------------------------------------- */
/* The layers' copy of the parameters                                                             */

/* How many of n elements of the copy are the rounded p to the bit. *untouched is how many were
   never written. */
static size_t copied(const floatX *w, const float *p, size_t n, size_t *untouched) {
    size_t right = 0;
    *untouched = 0;
    for (size_t i = 0; i < n; i++) {
        floatX want = floatX(p[i]), none;
        memset((void *)&none, 0xff, sizeof none);
        right += !memcmp(&w[i], &want, sizeof want);
        *untouched += !memcmp(&w[i], &none, sizeof none);
    }
    return right;
}

/* A copy of device memory on the host, in the device's type. */
template <typename T> static T *download(const T *from, size_t n) {
    T *to = (T *)(void *)host_array((n * sizeof(T) + 3) / sizeof(float));
    MUST(cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyDeviceToHost, cm_gpu.stream));
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    return to;
}

/* The kernels do not see a power of two: units and norms as the CPU's, and signs, in fp32 and bf16,
   and roots to the bit. */
static void test_scale(void) {
    static const int exponents[] = {-126, -120, -64, 64, 96, 126};
    enum { N = 2, K = 24, COLS = 70, SIZE = N * K * COLS };
    stream({31});
    View *X = dense(N, K, COLS), *G = dense(N, K, K), *R = dense(N, K, K);
    float *x = host_array(SIZE), *units = device_array<float>(2 * N), *twin = host_array(2 * N);
    for (int i = 0; i < SIZE; i++) x[i] = (float)(draw() < 0 ? -1 - i % 7 / 8.0 : 1 + i % 5 / 8.0);
    const float *signs[2] = {NULL, NULL}, *root = NULL;
    for (int i = -1; i < 6; i++) {
        int k = i < 0 ? 0 : exponents[i];
        for (int bf16 = 0; bf16 < 2; bf16++) {
            for (int j = 0; j < SIZE; j++) X->h[j] = ldexpf(x[j], k);
            upload(X);
            la_units(units, X->dev);
            cpu_la_units(twin, X->host);
            const float *got = on_host(units, 2 * N);
            for (int j = 0; j < N; j++)
                check(relative_error((double)got[j] * (double)got[N + j],
                                     (double)twin[j] * (double)twin[N + j], 1e-300) < EACH,
                      "la_units times 2^%d: %g %g", k, (double)got[j], (double)got[N + j]);
            const float *y = sign_on_device(X, MSIGN_PE8, bf16);
            if (i < 0) signs[bf16] = y;
            check(!memcmp(y, signs[bf16], SIZE * sizeof *y), "a sign times 2^%d, bf16 %d", k, bf16);
        }
        k = min_int(k, 120); /* 20 x 2^126 is no float */
        for (int j = 0; j < N * K * K; j++)
            G->h[j] = ldexpf(j % (K * K) % (K + 1) ? (float)((j % K + j / K % K) % 5) / 8 : 20, k);
        upload(G);
        run_root(R, G, ldexp(0.5, k), 25, INVROOT_TUNED);
        const float *r = on_host(R->d, R->size);
        if (i < 0) root = r;
        int same = 1;
        for (int j = 0; j < N * K * K; j++) same &= ldexpf(r[j], k / 2) == root[j];
        check(same, "a root times 2^%d: %g %g", k, (double)r[0], (double)root[0]);
    }
    forget();
}

/* Pivots tell a matrix that has no root, in shared memory and without, and the CPU agrees; items
   beside it are left alone. */
static void test_definite(void) {
    static const int sizes[] = {1, 2, 17, 33, 130};
    static const char *const words[] = {"", "not positive definite", "not positive definite",
                                        "not finite", ""};
    for (int i = 0; i < 5; i++)
        for (int kind = 0; kind < 5; kind++)
            for (int shared = 0; shared < 2; shared++) {
                int k = sizes[i], n = 2;
                size_t kk = (size_t)k * k, limit = cm_gpu.shared_limit;
                stream({32, k, kind});
                View *G = dense(n, k, k), *scratch = vector(cpu_la_eigh_scratch(k) * (size_t)n);
                graded(G, 10);
                for (size_t j = 0; j < kk; j++) { /* item 1 */
                    float diagonal = j % (size_t)(k + 1) == 0;
                    if (kind == 1) G->h[kk + j] = -diagonal;
                    if (kind == 2) G->h[kk + j] = k > 1 ? ldexpf(1, -100) : -1;
                    if (kind == 3) G->h[kk + j] = INFINITY;
                    if (kind == 4) G->h[kk + j] = 0;
                }
                upload(G);
                cm_gpu.shared_limit = shared ? limit : 0;
                la_definite(G->dev, 0, device_array<float>(la_eigh_scratch(k) * (size_t)n));
                cm_gpu.shared_limit = limit;
                if (*words[kind]) expect_failure(words[kind], "la_definite", k);
                check(!device_failure(), "la_definite of kind %d: %s", kind, device_failure());
                cpu_la_definite(G->host, 0, scratch->h);
                check(cpu_la_rootless() == (kind == 3      ? LA_NOT_FINITE
                                            : *words[kind] ? LA_INDEFINITE
                                                           : 0),
                      "the CPU on kind %d of %d x %d", kind, k, k);
                const float *got = on_host(G->d, G->size);
                int same = 1;
                for (size_t j = 0; j < 2 * kk; j++)
                    same &= got[j] == G->h[j] || (isnan(got[j]) && isnan(G->h[j]));
                check(same, "la_definite of kind %d, %d x %d: not as the CPU's", kind, k, k);
                forget();
            }
}

/* AdamW writes the copy of a view of any kind and nothing beside it, by wide stores and by
   single ones. */
static void test_adamw_copy(void) {
    for (int kind = DENSE; kind <= COLUMN_BLOCKS; kind++)
        for (int form = 0; form < 8; form++) {
            int turned = form & 1, even = form >> 1 & 1, shift = form >> 2, rows = 24,
                cols = even ? 40 : 37;
            stream({17, kind, form});
            View *P = view_of(kind, turned, even, 2, 3, rows, cols), *G = view_like(P),
                 *M = view_like(P);
            View *V = turned ? view_of(DENSE, 0, 1, 2, 3, rows, cols) : view_like(P);
            for (size_t i = 0; i < V->size; i++) V->h[i] = fabsf(V->h[i]);
            for (int i = 0; i < view_count; i++) upload(&views[i]);
            floatX *w =
                device_array<floatX>(P->size + 1) + shift; /* shift: wide stores are not aligned */
            la_adamw(P->dev, G->dev, M->dev, V->dev, 0.7, 0.9, 0.95, 0.1, 1.3, 0.3, 0.99,
                     w + (P->dev.p - P->d));
            const float *p = on_host(P->d, P->size);
            const floatX *copy = download(w, P->size);
            size_t right = 0, none, all, untouched, inside = mat_size(P->host);
            each(P,
                 [&](size_t at, int, int, int) { right += copied(copy + at, p + at, 1, &none); });
            copied(copy, p, P->size, &untouched);
            all = P->size;
            check(right == inside && untouched == all - inside,
                  "copy of %s: %zu of %zu right, %zu of %zu others untouched", shape(P), right,
                  inside, untouched, all - inside);
            forget();
        }
}

/* One step of every rule, as in the trainer. After plan_step AdamW's tensors have their copy; of
   the other tensors only rows of AdamW's may have it. After casting what plan_stale names, all
   copies are the rounded parameters. */
static void check_plan_copy(const char *flags) {
    Config c = config_of(flags, "");
    Registry r = registry_build(&c);
    Plan plan = plan_build(&c, &r);
    float *h[4];
    for (int i = 0; i < 3; i++) {
        h[i] = host_array(r.size[SLOT_PARAM]);
        for (size_t j = 0; j < r.size[SLOT_PARAM]; j++)
            h[i][j] = i == 2 ? 0 : (float)(0.1 * draw());
    }
    h[3] = host_array(plan.state_size);
    memset(h[3], 0, plan.state_size * sizeof(float));
    floatX *w = device_array<floatX>(r.size[SLOT_PARAM]);
    Arena arena = {device_array<float>(plan.arena_size), plan.arena_size, 0};
    PlanState s = {on_device<float>(h[0], r.size[SLOT_PARAM]),
                   on_device<float>(h[1], r.size[SLOT_PARAM]),
                   on_device<float>(h[2], r.size[SLOT_PARAM]),
                   on_device<float>(h[3], plan.state_size),
                   &arena,
                   {1, 1},
                   0.9,
                   1,
                   1,
                   w};
    plan_step(&plan, &r, &c, &s);
    const float *p = on_host(s.param, r.size[SLOT_PARAM]);
    const floatX *before = download(w, r.size[SLOT_PARAM]);
    size_t first, n, untouched, cast = 0, right = 0;
    int ranges = 0, adamw = 0, stale = 0;
    for (; plan_stale(&plan, &r, ranges, &first, &n); ranges++) {
        check(n > 0 && first + n <= r.size[SLOT_PARAM] && first >= cast,
              "%s: range %d overlaps the one before", flags, ranges);
        cast = first + n;
        cast_weights(w + first, s.param + first, n);
    }
    const floatX *after = download(w, r.size[SLOT_PARAM]);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r.t[id];
        if (!t->layers) continue;
        int writes = plan_writes_copy(&plan, (TensorId)id);
        *(writes ? &adamw : &stale) += 1;
        right = copied(before + t->slot[SLOT_PARAM].at, p + t->slot[SLOT_PARAM].at, t->size,
                       &untouched);
        check(writes ? right == t->size : untouched > 0 && right + untouched == t->size,
              "%s: %s after the step: %zu of %zu written, %zu not", flags, t->name, right, t->size,
              untouched);
        right =
            copied(after + t->slot[SLOT_PARAM].at, p + t->slot[SLOT_PARAM].at, t->size, &untouched);
        check(right == t->size, "%s: %s after the cast: %zu of %zu right", flags, t->name, right,
              t->size);
    }
    check(adamw > 0 && (stale > 0) == (ranges > 0) && ranges <= stale,
          "%s: %d tensors of AdamW, %d others, %d ranges", flags, adamw, stale, ranges);
    release();
}

static void test_plan_copies(void) {
    static const char *const rules[] = {
        "--optimizer cm",
        "--optimizer muon",
        "--optimizer adamw",
        "--qk adamw --ov muon --mlp adamw",
        "--qk muon-head --ov adamw-partner --mlp normuon",
        "--qk quack --quack-base adamw --ov normuon --mlp aurora",
        "--qk muonh --ov muonh --mlp muonh --init gpt2 --weight-decay 0",
        "--qk quack --quack-base adamw --ov adamw --mlp adamw",
        "--qk muon --ov muon --circuit on --mlp muon"};
    static const char *const models[] = {"--layers 2 --heads 3 --width 48 --seq-len 16 --vocab 61",
                                         "--layers 3 --heads 4 --kv-heads 2 --width 32 --act "
                                         "swiglu --biases on --norm layernorm --pos learned "
                                         "--seq-len 16 --tied on --vocab 70"};
    char flags[512];
    for (int m = 0; m < 2; m++)
        for (int i = 0; i < 9; i++) {
            stream({18, m, i});
            snprintf(flags, sizeof flags, "%s %s", models[m], rules[i]);
            check_plan_copy(flags);
        }
}

static const Test tests[] = {
    TEST(all_elements), TEST(vectors),    TEST(sum_squares), TEST(products),    TEST(roots),
    TEST(root_steps),   TEST(root_stops), TEST(sign_runs),   TEST(eigenvalues), TEST(chol_inverse),
    TEST(gauges),       TEST(sign),       TEST(sign_bf16),   TEST(adamw_copy),  TEST(scale),
    TEST(definite),     TEST(plan_copies)};

int main(int argc, char **argv) {
    cudaDeviceProp device;
    MUST(cudaGetDeviceProperties(&device, 0));
    cm_gpu.shared_limit = device.sharedMemPerBlockOptin;
    cm_gpu.allow_tf32 = 0;
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
