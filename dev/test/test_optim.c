/*
Tests of the optimizers: the linear-algebra operations against plain loops; the rules against the
fixtures of the NumPy oracle and against their definitions by exact decompositions; the properties
that follow from the theory (bounds, equivariance, reductions); the routing of the plan; and the
schedules.

The program is built with float (and oneDNN where it is installed) and with double. Both run every
test. TOL(f, d) is the tolerance f in float and d in double.
*/
#include "optim_cases.h"

static void test_decompositions(void) {
    double *X = normals(7 * 4), *S = exact_sign(X, 7, 4), *T = exact_sign(X, 4, 7);
    double *E = product(S, 1, S, 0, 4, 4, 7), *F = product(T, 0, T, 1, 4, 4, 7), worst = 0;
    for (int i = 0; i < 16; i++)
        worst = fmax(worst, fabs(E[i] - (i % 5 == 0)) + fabs(F[i] - (i % 5 == 0)));
    double *P = product(S, 1, X, 0, 4, 4, 7); /* symmetric, trace = nuclear norm */
    for (int i = 0; i < 16; i++) worst = fmax(worst, fabs(P[i] - P[i % 4 * 4 + i / 4]));
    worst = fmax(worst, fabs(P[0] + P[5] + P[10] + P[15] - nuclear_norm(X, 7, 4)));
    double *G = product(X, 1, X, 0, 4, 4, 7), *R = exact_rroot(G, 4, 0.3),
           *I = product(G, 0, inverse(G, 4), 0, 4, 4, 4);
    for (int i = 0; i < 16; i++) G[i] += 0.3 * (i % 5 == 0);
    double *RGR = product(product(R, 0, G, 0, 4, 4, 4), 0, R, 0, 4, 4, 4);
    for (int i = 0; i < 16; i++)
        worst = fmax(worst, fabs(RGR[i] - (i % 5 == 0)) + fabs(I[i] - (i % 5 == 0)));
    check(worst < 1e-12, "the decompositions of this test are off by %g", worst);
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* The operations of linalg.h against loops, on views of every kind                               */

/* A random view, its memory, and a copy of the initial memory. */
typedef struct {
    Mat m;
    floatM *memory, *initial;
    size_t size;
} View;

enum { APART, ROW_BLOCKS, COLUMN_BLOCKS, REPEATED };

/* A view of n0 x n1 items (rows, cols): separate matrices, blocks of rows or of columns of larger
   matrices, or one matrix repeated; transposed or not. Between and around the items is memory that
   does not belong to them. */
static View view_of(int kind, int transposed, int n0, int n1, int rows, int cols) {
    int r = transposed ? cols : rows, c = transposed ? rows : cols, pad = pick(0, 3);
    size_t ld = (size_t)(kind == COLUMN_BLOCKS ? n1 * c : c) + (size_t)pad;
    size_t s1 = (size_t)r * ld + 5, s0 = (size_t)n1 * s1 + 2;
    if (kind == ROW_BLOCKS) s1 = (size_t)r * ld;
    if (kind == COLUMN_BLOCKS) {
        s1 = (size_t)c;
        s0 = (size_t)r * ld + 2;
    }
    if (kind == REPEATED) {
        s1 = 0;
        s0 = (size_t)r * ld + 2;
    }
    View v;
    v.size = (size_t)n0 * s0 + 16;
    v.memory = normals_m(v.size, 1);
    v.initial = copy_of(v.memory, v.size);
    Mat m = {v.memory + 3, n0, n1, s0, s1, r, c, ld, 1};
    v.m = transposed ? mat_t(m) : m;
    return v;
}

static View random_view(int writable, int n0, int n1, int rows, int cols) {
    return view_of(pick(0, writable ? 2 : 3), pick(0, 1), n0, n1, rows, cols);
}

/* A view with the geometry of v and other numbers. */
static View view_like(const View *v) {
    View w = *v;
    w.memory = normals_m(v->size, 1);
    w.initial = copy_of(w.memory, v->size);
    w.m.p = w.memory + (v->m.p - v->memory);
    return w;
}

static size_t element(const View *v, int i, int r, int c) {
    return (size_t)(v->m.p - v->memory) + (size_t)(i / v->m.n1) * v->m.s0 +
           (size_t)(i % v->m.n1) * v->m.s1 + (size_t)r * v->m.rs + (size_t)c * v->m.cs;
}

static double was(const View *v, int i, int r, int c) { return v->initial[element(v, i, r, c)]; }

/* The largest error of the view against expected (items, rows, cols), relative to the largest
   expected number. Infinity if memory outside the view was written. */
static double view_error(const View *v, const double *expected) {
    double worst = 0, largest = 1e-30;
    unsigned char *inside = (unsigned char *)take_bytes(v->size);
    size_t at = 0;
    for (int i = 0; i < mat_count(v->m); i++)
        for (int r = 0; r < v->m.rows; r++)
            for (int c = 0; c < v->m.cols; c++, at++) {
                double e = fabs((double)v->memory[element(v, i, r, c)] - expected[at]);
                worst = e <= worst ? worst : e == e ? e : INFINITY;
                largest = fmax(largest, fabs(expected[at]));
                inside[element(v, i, r, c)] = 1;
            }
    for (size_t j = 0; j < v->size; j++)
        if (!inside[j] && memcmp(&v->memory[j], &v->initial[j], sizeof(floatM))) return INFINITY;
    return worst / largest;
}

/* Fills expected[] with EXPRESSION, which refers to item i, row r and column c. */
#define EXPECT(V, EXPRESSION)                                                                      \
    do {                                                                                           \
        size_t at_ = 0;                                                                            \
        for (int i = 0; i < mat_count((V).m); i++)                                                 \
            for (int r = 0; r < (V).m.rows; r++)                                                   \
                for (int c = 0; c < (V).m.cols; c++) expected[at_++] = (EXPRESSION);               \
    } while (0)

static void fill_nan(View *v) {
    for (int i = 0; i < mat_count(v->m); i++)
        for (int r = 0; r < v->m.rows; r++)
            for (int c = 0; c < v->m.cols; c++) v->memory[element(v, i, r, c)] = (floatM)NAN;
}

static void test_elementwise(void) {
    enum { TRIALS = 300 };
    double bad[6] = {0};
    int copies = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        use_threads(trial % 10 ? 1 : 2);
        int n0 = pick(1, 3), n1 = pick(1, 4), rows = pick(1, 9), cols = pick(1, 9);
        double *expected = take((size_t)n0 * n1 * rows * cols);
        View X = random_view(0, n0, n1, rows, cols), Y = random_view(1, n0, n1, rows, cols);
        double a = normal(), b = trial % 3 ? normal() : 0;
        if (b == 0) fill_nan(&Y); /* Y must be overwritten, not multiplied by 0 */
        la_axpby(Y.m, a, X.m, b);
        EXPECT(Y, a * was(&X, i, r, c) + (b != 0 ? b * was(&Y, i, r, c) : 0));
        bad[0] = fmax(bad[0], view_error(&Y, expected));

        Y = random_view(1, n0, n1, rows, cols);
        la_copy(Y.m, X.m);
        EXPECT(Y, was(&X, i, r, c));
        bad[1] = fmax(bad[1], view_error(&Y, expected) > 0);

        /* G has the geometry of M. U may have another one. */
        int nesterov = trial & 1;
        View M = random_view(1, n0, n1, rows, cols), U = random_view(1, n0, n1, rows, cols);
        View G = view_like(&M);
        double beta = uniform(), gain = normal();
        la_momentum(U.m, M.m, G.m, beta, gain, nesterov);
        EXPECT(M, beta * was(&M, i, r, c) + gain * was(&G, i, r, c));
        bad[2] = fmax(bad[2], view_error(&M, expected));
        EXPECT(U, (nesterov ? beta : 1) * (beta * was(&M, i, r, c) + gain * was(&G, i, r, c)) +
                      (nesterov ? gain * was(&G, i, r, c) : 0));
        bad[2] = fmax(bad[2], view_error(&U, expected));

        int count = n0 * n1, group = count % 2 == 0 && trial & 2 ? 2 : 1;
        floatM *s = normals_m((size_t)count, 1);
        Y = random_view(1, n0, n1, rows, cols);
        la_scale(Y.m, s, group);
        EXPECT(Y, (double)s[i / group] * was(&Y, i, r, c));
        bad[3] = fmax(bad[3], view_error(&Y, expected));

        floatM *norms = take_m((size_t)count);
        la_norms(norms, X.m, group);
        for (int i = 0; i < count / group; i++) {
            double sum = 0;
            for (int j = i * group; j < (i + 1) * group; j++)
                for (int e = 0; e < rows * cols; e++) {
                    double x = was(&X, j, e / cols, e % cols);
                    sum += x * x;
                }
            bad[4] = fmax(bad[4], relative_error((double)norms[i], sqrt(sum), 1e-30));
        }

        View P = view_of(pick(0, 2), 0, n0, n1, rows, cols), D = view_like(&P), V = view_like(&P);
        M = view_like(&P);
        for (size_t i = 0; i < V.size; i++)
            V.memory[i] = V.initial[i] = (floatM)fabs((double)V.memory[i]);
        double scale = 0.5 + uniform(), b1 = uniform(), b2 = uniform(), rate = uniform();
        double root = 1 + uniform(), eps = 0.2 + 0.2 * uniform(), keep = 0.9;
        floatX *copy = (floatX *)take_bytes(P.size * sizeof *copy);
        la_adamw(P.m, D.m, M.m, V.m, scale, b1, b2, rate, root, eps, keep,
                 trial % 2 ? copy + (P.m.p - P.memory) : NULL);
        double *m1 = take((size_t)n0 * n1 * rows * cols), *v1 = take((size_t)n0 * n1 * rows * cols);
        size_t at = 0;
        for (int i = 0; i < count; i++)
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < cols; c++, at++) {
                    double g = scale * was(&D, i, r, c);
                    m1[at] = b1 * was(&M, i, r, c) + (1 - b1) * g;
                    v1[at] = b2 * was(&V, i, r, c) + (1 - b2) * g * g;
                    expected[at] =
                        keep * was(&P, i, r, c) - rate * m1[at] / (sqrt(v1[at]) * root + eps);
                }
        bad[5] = fmax(bad[5],
                      fmax(view_error(&P, expected), fmax(view_error(&M, m1), view_error(&V, v1))));
        size_t equal = 0, zeros = 0, inside = trial % 2 ? mat_size(P.m) : 0;
        for (int i = 0; i < count; i++)
            for (int e = 0; e < rows * cols; e++) {
                size_t x = element(&P, i, e / cols, e % cols);
                equal += (floatM)copy[x] == P.memory[x];
            }
        for (size_t i = 0; i < P.size; i++) zeros += (floatM)copy[i] == 0;
        copies += (!inside || equal == inside) && zeros == P.size - inside;
        release();
    }
    static const char *const names[] = {"axpby", "copy", "momentum", "scale", "norms", "adamw"};
    for (int i = 0; i < 6; i++)
        check(bad[i] <= TOL(1e-5, 1e-13), "la_%s is off by %g", names[i], bad[i]);
    check(copies == TRIALS, "la_adamw: %d copies of %d are right", copies, TRIALS);
}

static void test_products(void) {
    double bad[5] = {0};
    for (int trial = 0; trial < 240; trial++) {
        use_threads(trial % 10 ? 1 : 2);
        int n0 = pick(1, 3), n1 = pick(1, 4), m = pick(1, 12), n = pick(1, 12), k = pick(1, 40);
        if (trial % 80 == 0) { /* one item that is large enough for all threads */
            n0 = n1 = 1;
            m = 70;
            n = 90;
            k = 130;
        }
        double *expected = take((size_t)n0 * n1 * m * (size_t)max_int(m, n));
        View A = random_view(0, n0, n1, m, k), B = random_view(0, n0, n1, k, n);
        View C = random_view(1, n0, n1, m, n);
        double a = normal(), b = trial % 3 ? normal() : 0;
        if (b == 0) fill_nan(&C);
        la_gemm(C.m, a, A.m, B.m, b);
        size_t at = 0;
        for (int i = 0; i < n0 * n1; i++)
            for (int r = 0; r < m; r++)
                for (int c = 0; c < n; c++) {
                    double sum = 0;
                    for (int p = 0; p < k; p++) sum += was(&A, i, r, p) * was(&B, i, p, c);
                    expected[at++] = a * sum + (b != 0 ? b * was(&C, i, r, c) : 0);
                }
        bad[0] = fmax(bad[0], view_error(&C, expected));

        View G = random_view(1, n0, n1, m, m);
        la_gram(G.m, A.m, b);
        at = 0;
        for (int i = 0; i < n0 * n1; i++)
            for (int r = 0; r < m; r++)
                for (int c = 0; c < m; c++) {
                    double sum = 0;
                    for (int p = 0; p < k; p++) sum += was(&A, i, r, p) * was(&A, i, c, p);
                    expected[at++] = sum + (b != 0 ? b * was(&G, i, r, c) : 0);
                }
        bad[1] = fmax(bad[1], view_error(&G, expected));

        /* The remaining operations take square dense matrices. */
        View X = view_of(APART, 0, n0, n1, m, m), Z = view_of(APART, 0, n0, n1, m, m);
        View Y = view_of(APART, 0, n0, n1, m, m), *outs[3] = {&X, &Y, &Z}, *out = outs[trial % 3];
        double e = trial % 4 ? normal() : 0, f = normal(), h = normal();
        la_polynomial(out->m, e, f, X.m, h, Z.m);
        EXPECT(Y, (r == c) * e + f * was(&X, i, r, c) + h * was(&Z, i, r, c));
        bad[2] = fmax(bad[2], view_error(out, expected));

        X = view_of(APART, 0, n0, n1, m, m);
        la_symmetrize(X.m);
        EXPECT(X, 0.5 * (was(&X, i, r, c) + was(&X, i, c, r)));
        bad[3] = fmax(bad[3], view_error(&X, expected));

        /* A Gram plus damping. Every second matrix is not quite symmetric, and only its symmetric
           part may count. */
        int small = min_int(m, 9), twisted = trial & 1;
        double damping = 0.01 + uniform();
        View S = view_of(APART, 0, n0, n1, small, small),
             R = view_of(APART, 0, n0, n1, small, small);
        double *x = normals((size_t)small * 12), *sym = product(x, 0, x, 1, small, small, 12);
        for (int i = 0; i < n0 * n1; i++)
            for (int r = 0; r < small; r++)
                for (int c = 0; c < small; c++)
                    S.memory[element(&S, i, r, c)] =
                        (floatM)((i + 1) * sym[r * small + c] +
                                 (twisted ? 0.25 * (r > c) - 0.25 * (r < c) : 0));
        double power = trial % 2 ? 1 : 2 * uniform();
        la_eigh_rroot(R.m, S.m, damping, power, take_m((size_t)n0 * n1 * la_eigh_scratch(small)));
        for (int i = 0; i < n0 * n1; i++) {
            double *g = take((size_t)small * small);
            for (int j = 0; j < small * small; j++) g[j] = (i + 1) * sym[j];
            memcpy(expected + (size_t)i * small * small, exact_power(g, small, damping, -power / 2),
                   (size_t)small * small * sizeof *g);
        }
        bad[4] = fmax(bad[4], view_error(&R, expected));
        release();
    }
    static const char *const names[] = {"gemm", "gram", "polynomial", "symmetrize", "eigh_rroot"};
    for (int i = 0; i < 5; i++)
        check(bad[i] <= (i == 4 ? TOL(5e-5, 1e-12) : TOL(1e-5, 1e-13)), "la_%s is off by %g",
              names[i], bad[i]);

    /* LA_ZERO stands for zero, so a zero Gram has a finite root. */
    floatM zero[4] = {0}, root[4];
    la_eigh_rroot(mat_dense(root, 1, 2, 2), mat_dense(zero, 1, 2, 2), 0, 1,
                  take_m(la_eigh_scratch(2)));
    check(relative_error((double)root[0], 1e6, 1) < 1e-6 && root[1] == 0 && root[3] == root[0],
          "la_eigh_rroot of zero: %g %g", (double)root[0], (double)root[1]);
    /* Damping is added in double, so what it leaves of an eigenvalue is not lost to float. */
    zero[0] = zero[3] = -1;
    la_eigh_rroot(mat_dense(root, 1, 2, 2), mat_dense(zero, 1, 2, 2), 1 + 0x1p-30, 1,
                  take_m(la_eigh_scratch(2)));
    check(root[0] == 0x1p15 && root[1] == 0 && root[3] == root[0] && !*why_rootless(),
          "la_eigh_rroot of 2^-30 I: %g %g", (double)root[0], (double)root[1]);
}

static void test_vectors(void) {
    floatM x[4] = {4, 0, (floatM)0.25, 2}, s[4], t[4] = {2, 0, 8, (floatM)0.5};
#define ON_COPY(CALL, E0, E1, E2, E3)                                                              \
    do {                                                                                           \
        memcpy(s, x, sizeof s);                                                                    \
        CALL;                                                                                      \
        double e_[4] = {E0, E1, E2, E3};                                                           \
        for (int i = 0; i < 4; i++)                                                                \
            check(relative_error((double)s[i], e_[i], 1e-30) < 1e-6 || (!e_[i] && !s[i]),          \
                  #CALL ": item %d is %g, not %g", i, (double)s[i], e_[i]);                        \
    } while (0)
    ON_COPY(la_vec_recip(s, 4), 0.25, 0, 4, 0.5);
    ON_COPY(la_vec_rroot(s, 4, 3, 1, 1), 1 / 7.0, 1, 1 / sqrt(1.1875), 1 / sqrt(13.0));
    ON_COPY(la_vec_rroot(s, 4, 1, 0, 1), 0.25, 1e6, 4, 0.5);
    ON_COPY(la_vec_rroot(s, 4, 1, 0, 0.5), 0.5, 1e3, 2, sqrt(0.5));
    ON_COPY(la_vec_damping(s, 4, 0.5, 3, 1), 24, 1, 3 / 32.0 + 1 - 1 / 32.0, 6);
    ON_COPY(la_vec_div(s, t, 4), 2, 0, 0.25 / 8, 4);
    ON_COPY(la_vec_mul(s, 4, -3), -12, 0, -0.75, -6);
    ON_COPY(la_vec_sqrt(s, 4), 2, 0, 0.5, sqrt(2.0));
#undef ON_COPY
}

/* Sums that depended on the number of threads would make runs irreproducible. */
static void test_sums(void) {
    int threads = thread_count();
    static const size_t sizes[] = {0, 1, 255, 256, 257, 10007, 70000};
    floatM *x = normals_m(70000, 1);
    for (int i = 0; i < 7; i++) {
        double expected = 0, got[3];
        for (size_t j = 0; j < sizes[i]; j++) expected += (double)x[j] * (double)x[j];
        for (int n = 1; n <= 3; n++) {
            use_threads(n);
            got[n - 1] = la_sum_squares(x, sizes[i]);
        }
        check(relative_error(got[0], expected, 1e-30) < 1e-13 || got[0] == expected,
              "la_sum_squares of %zu: %g, not %g", sizes[i], got[0], expected);
        check(got[0] == got[1] && got[1] == got[2], "la_sum_squares of %zu depends on threads",
              sizes[i]);
    }
    floatM s[3][8];
    for (int n = 1; n <= 3; n++) {
        use_threads(n);
        la_norms(s[n - 1], mat_dense(x, 8, 80, 100), 1);
    }
    check(!memcmp(s[0], s[1], sizeof s[0]) && !memcmp(s[0], s[2], sizeof s[0]),
          "la_norms depends on threads");
    use_threads(threads);
    release();
}

static void msign_case(const Fixture *fx, const char *name) {
    const FixtureRecord *r = fixture_getf(fx, "f4", "case.%s.x", name);
    int rows = (int)r->dims[0], cols = (int)r->dims[1];
    for (int table = 0; table < 4; table++) {
        floatM *x = floats_of(r);
        run_msign(mat_dense(x, 1, rows, cols), table, 0);
        double *y = take(r->count);
        for (size_t i = 0; i < r->count; i++) y[i] = (double)x[i];
        const double *expected = fixture_getf(fx, "f8", "case.%s.%s", name, table_names[table])->f8;
        double e = relative_l2_dd(y, expected, r->count, 1);
        check(e < TOL(2e-4, 1e-10), "%s: %s is off by %g", name, table_names[table], e);
        if (!case_is(fx, name, "svd", "1")) continue;
        static const double reach[] = {TOL(1e-5, 1e-6), 0.35, 0.03, TOL(1e-5, 1e-9)};
        const double *exact = fixture_getf(fx, "f8", "case.%s.svd", name)->f8;
        e = relative_l2_dd(y, exact, r->count, 1);
        check(e < reach[table], "%s: %s is %g from the sign", name, table_names[table], e);
        if (table) continue;
        double *own = take(r->count), *sign;
        for (size_t i = 0; i < r->count; i++) own[i] = (double)r->f4[i];
        sign = exact_sign(own, rows, cols);
        check(relative_l2_dd(sign, exact, r->count, 1) < 1e-11, "%s: exact_sign is off", name);
    }
}

static void invroot_case(const Fixture *fx, const char *name) {
    static const char *const roots[] = {"cans25", "cans12", "eigh"};
    const FixtureRecord *r = fixture_getf(fx, "f4", "case.%s.gram", name);
    int k = (int)r->dims[0];
    double damping = case_number(fx, name, "damping");
    for (int which = 0; which < 3; which++) {
        floatM *gram = floats_of(r), *root = take_m(r->count);
        run_invroot(mat_dense(root, 1, k, k), mat_dense(gram, 1, k, k), damping, 1, which);
        double *y = take(r->count);
        for (size_t i = 0; i < r->count; i++) y[i] = (double)root[i];
        double e = relative_l2_dd(y, fixture_getf(fx, "f8", "case.%s.%s", name, roots[which])->f8,
                                  r->count, 1e-30);
        check(e < TOL(1e-4, 1e-9), "%s: %s is off by %g", name, roots[which], e);
    }
}

static void adamw_case(const Fixture *fx, const char *name) {
    const FixtureRecord *start = case_record(fx, name, "w", 0);
    int rows = (int)start->dims[0], cols = (int)start->dims[1], seen = 0;
    int steps = (int)case_number(fx, name, "steps");
    floatM *w = floats_of(start), *m = take_m(start->count), *v = take_m(start->count);
    OptimOptions o = default_options();
    o.adam_beta1 = case_number(fx, name, "beta1");
    o.adam_beta2 = case_number(fx, name, "beta2");
    o.adam_eps = case_number(fx, name, "eps");
    for (int step = 1; step <= steps; step++) {
        floatM *g = floats_of(case_record(fx, name, "g", step));
        Leg l = leg_of(mat_dense(w, 1, rows, cols), mat_dense(g, 1, rows, cols),
                       mat_dense(m, 1, rows, cols), 0, 0);
        adamw_update(l, v, &o, case_number(fx, name, "lr"), case_number(fx, name, "weight_decay"),
                     1, step);
        seen += check_state(fx, name, "w", "", step, w);
        seen += check_state(fx, name, "m", "", step, m) + check_state(fx, name, "v", "", step, v);
    }
    check(seen == steps + 2, "%s: the fixture holds %d results", name, seen);
}

static void test_fixtures(void) {
    Fixture *fx = fixture_load("dev/test/fixtures/optim_basic.fix");
    char name[64];
    int ran = 0;
    for (const char *p = fixture_text(fx, "cases"); fixture_word(&p, name, sizeof name); ran++) {
        OptimOptions o = case_options(fx, name);
        if (case_is(fx, name, "rule", "msign")) msign_case(fx, name);
        else if (case_is(fx, name, "rule", "invroot")) invroot_case(fx, name);
        else if (case_is(fx, name, "rule", "muon")) muon_case(fx, name, &o);
        else if (case_is(fx, name, "rule", "adamw")) adamw_case(fx, name);
        else if (case_is(fx, name, "rule", "cm")) cm_case(fx, name, &o);
        else check(0, "%s: unknown rule", name);
        release();
    }
    check(ran == 39, "optim_basic.fix: %d cases ran", ran);
    fixture_free(fx);
}

/* ---------------------------------------------------------------------------------------------- */
/* The sign and the root beyond the fixtures                                                      */

static void test_msign(void) {
    static const int shapes[][2] = {{1, 1},   {3, 3}, {5, 40}, {40, 5}, {16, 96},
                                    {64, 17}, {1, 9}, {9, 1},  {30, 60}};
    for (int i = 0; i < 9; i++)
        for (int table = 0; table < 5; table++) {
            /* The items of a batch differ in size by 1e6, and msign must divide by their own
               norms. */
            int m = shapes[i][0], n = shapes[i][1], items = 4;
            floatM *x = normals_m((size_t)items * m * n, 1), *y;
            for (int j = 0; j < items * m * n; j++) x[j] *= (floatM)pow(100, j / (m * n) - 2);
            if (m == 3) /* Square Gaussian matrices may be nearly singular. */
                for (int j = 0; j < items * 9; j++)
                    x[j] = (floatM)(0.2 * (double)x[j] + (j % 9 % 4 == 0) * pow(100, j / 9 - 2));
            y = copy_of(x, (size_t)items * m * n);
            run_msign(mat_dense(y, items, m, n), table, 0);
            double worst = 0, lowest = 9, highest = 0;
            for (int j = 0; j < items; j++) {
                double *X = take((size_t)m * n), *Y = take((size_t)m * n), *s;
                for (int e = 0; e < m * n; e++) {
                    X[e] = (double)x[j * m * n + e];
                    Y[e] = (double)y[j * m * n + e];
                }
                worst = fmax(worst, relative_l2_dd(Y, exact_sign(X, m, n), (size_t)m * n, 1));
                s = singular_values(Y, m, n);
                highest = fmax(highest, s[0]);
                lowest = fmin(lowest, s[min_int(m, n) - 1]);
            }
            static const double reach[] = {TOL(1e-4, 1e-6), 0.35, 0.05, TOL(1e-4, 1e-7), 1e-3};
            static const double low[] = {0.9999, 0.67, 0.97, 0.9999, 0.999},
                                high[] = {1.0001, 1.21, 1.04, 1.0001, 1.0004};
            check(worst < reach[table], "msign %s of %d x %d is %g from the sign",
                  table_names[table], m, n, worst);
            check(lowest > low[table] && highest < high[table],
                  "msign %s of %d x %d: singular values %g to %g", table_names[table], m, n, lowest,
                  highest);
            release();
        }
    /* The sign of a zero matrix is zero, also beside a matrix that is not zero. NaN and infinity
       stay visible. */
    for (int table = 0; table < 5; table++) {
        floatM *x = normals_m(4 * 6 * 4, 1);
        memset(x, 0, 24 * sizeof *x);
        x[2 * 24 + 5] = (floatM)NAN;
        x[3 * 24 + 7] = (floatM)INFINITY;
        run_msign(mat_dense(x, 4, 6, 4), table, 0);
        int zero = 1, finite = 1, nan = 1, inf = 1;
        for (int i = 0; i < 24; i++) {
            zero &= x[i] == 0;
            finite &= isfinite((double)x[24 + i]);
            nan &= isnan((double)x[48 + i]);
            inf &= !isfinite((double)x[72 + i]);
        }
        check(zero && finite && nan && inf, "msign %s: zero %d, beside it %d, NaN %d, infinity %d",
              table_names[table], zero, finite, nan, inf);
        release();
    }
}

/* Compares the three inverse roots of `items` Grams (k,k), to a power, with the exact ones. */
static void check_invroot(const double *grams, int items, int k, double damping, double power,
                          const char *what) {
    static const char *const names[] = {"cans25", "cans12", "eigh"};
    size_t kk = (size_t)k * k, n = items * kk;
    for (int which = 0; which < 3; which++) {
        floatM *gram = take_m(n), *root = take_m(n);
        for (size_t e = 0; e < n; e++) gram[e] = (floatM)grams[e];
        run_invroot(mat_dense(root, items, k, k), mat_dense(gram, items, k, k), damping, power,
                    which);
        for (int j = 0; j < items; j++) {
            double *G = take(kk), *R = take(kk);
            for (size_t e = 0; e < kk; e++) {
                G[e] = (double)(floatM)grams[j * kk + e];
                R[e] = (double)root[j * kk + e];
            }
            double e = relative_l2_dd(R, exact_power(G, k, damping, -power / 2), kk, 1e-30);
            const double *s = singular_values(G, k, k);
            double kappa = (s[0] + damping) / (s[k - 1] + damping);
            int iterated = which != ROOT_EIGH && 4 * power == floor(4 * power);
            for (int r = 0; iterated && r < k * k; r++)
                if (R[r] != R[r % k * k + r / k]) e = INFINITY; /* symmetric to the bit */
            /* Other powers are products, which have the errors of their factors. */
            check(e < (power == 1 ? 1 : 2) * invroot_bound(kappa),
                  "%s of %s, %d x %d, damping %g, power %g, item %d is off by %g", names[which],
                  what, k, k, damping, power, j, e);
        }
    }
}

/* C^-1/2 C^-1/2 = C^-1, by every method. */
static void check_half_power(const double *G, int k) {
    size_t kk = (size_t)k * k;
    for (int which = 0; which < 3; which++) {
        double *root[2];
        for (int half = 0; half < 2; half++) {
            floatM *gram = take_m(kk), *r = take_m(kk);
            for (size_t e = 0; e < kk; e++) gram[e] = (floatM)G[e];
            run_invroot(mat_dense(r, 1, k, k), mat_dense(gram, 1, k, k), 0.01, half ? 0.5 : 1,
                        which);
            root[half] = take(kk);
            for (size_t e = 0; e < kk; e++) root[half][e] = (double)r[e];
        }
        double *square = product(root[1], 0, root[1], 0, k, k, k);
        double e = relative_l2_dd(square, root[0], kk, 1e-30);
        /* Three roots of a matrix whose condition is near 1. */
        check(e < 3 * invroot_bound(1), "root %d of %d x %d: C^-1/2 squared is %g from C^-1", which,
              k, k, e);
    }
}

static void test_invroot(void) {
    static const int sizes[] = {1, 2, 5, 8, 16, 64};
    for (int i = 0; i < 6; i++) {
        int k = sizes[i], items = 3, d = 4 * k;
        double *grams = take((size_t)items * k * k);
        /* Grams of weights with standard deviations 0.02, 0.2 and 2. */
        for (int e = 0, j = 0; j < items; j++) {
            double *x = normals((size_t)k * d), *g = product(x, 0, x, 1, k, k, d);
            for (int f = 0; f < k * k; f++) grams[e++] = g[f] * 4e-4 * pow(100, j);
        }
        /* Quarters are products of roots; 0.6 is an eigendecomposition. */
        static const double powers[] = {1, 0.25, 0.5, 0.75, 1.5, 2, 0.6};
        for (int j = 0; j < 7; j++) check_invroot(grams, items, k, 0.01, powers[j], "random Grams");
        check_half_power(grams, k);
        release();
    }
    /* The iterations have not converged for such small eigenvalues, so their results show the
       coefficients. Expected values are the oracle's. */
    static const double steps12[] = {0.9999999999999931, 6786.417901637372, 3948.6579238688178};
    static const double steps25[] = {0.9999999999999931, 32768, 4096};
    for (int which = ROOT_CANS25; which <= ROOT_CANS12; which++) {
        floatM gram[9] = {1, 0, 0, 0, (floatM)0x1p-30, 0, 0, 0, (floatM)0x1p-24}, root[9];
        run_invroot(mat_dense(root, 1, 3, 3), mat_dense(gram, 1, 3, 3), 0, 1, which);
        for (int i = 0; i < 3; i++) {
            double expected = (which == ROOT_CANS12 ? steps12 : steps25)[i];
            check(relative_error((double)root[4 * i], expected, 1) < TOL(1e-5, 1e-10),
                  "cans%d of eigenvalue %d is %.12g, not %.12g", which == ROOT_CANS12 ? 12 : 25, i,
                  (double)root[4 * i], expected);
        }
        release();
    }
    /* Eigenvalues over many decades. In float the coupled iteration diverges unless it multiplies
       its two sequences in an order that does not amplify rounding errors. */
    for (int decades = 2; decades <= 5; decades++)
        for (int k = 8; k <= 32; k *= 2)
            for (int little = 0; little < 2; little++) {
                double *U = orthogonal(k), *SU = take((size_t)k * k);
                for (int e = 0; e < k * k; e++)
                    SU[e] = U[e] * 10 * pow(10, -decades * (e / k) / (k - 1.0));
                for (double power = 1; power >= 0.25; power /= 2)
                    check_invroot(product(U, 1, SU, 0, k, k, k), 1, k, little ? 1e-3 : 1e-2, power,
                                  "a stretched Gram");
                release();
            }
}

/* ---------------------------------------------------------------------------------------------- */
/* Compositional Muon against its definition, by exact roots and signs                            */

/* Half of each leg's direction. The momentum is zero, so U is the gradient. */
static void by_definition(const Legs *p, const OptimOptions *o, floatM *D[2]) {
    LegShape s = p->s;
    int pre = o->whitening == WHITEN_BOTH || o->whitening == WHITEN_PRE;
    int post = o->whitening == WHITEN_BOTH || o->whitening == WHITEN_POST;
    size_t kd = (size_t)s.k * s.d;
    for (int leg = 0; leg < 2; leg++) {
        int H = heads_of(s, leg), all = (!leg && s.output && o->hybrid) || !o->head_group;
        int together = all ? H : o->head_group;
        double div = leg && o->shared_div == DIV_GROUP ? s.H / s.S : 1;
        D[leg] = take_m(p->n[leg]);
        for (int l = 0; l < s.layers; l++) {
            double *X = take(H * kd), *S = take(H * kd), *delta = take(H * kd),
                   factor = 0.5 * o->mp / div;
            for (int h = 0; h < H; h++) {
                double *u = block_of(s, p->G[leg], leg, l, h),
                       *C = whitener_by_definition(p, leg, l, h, o);
                memcpy(X + h * kd, pre ? product(C, 0, u, 0, s.k, s.d, s.k) : u, kd * sizeof *X);
            }
            for (int h = 0; h < H; h += together)
                memcpy(S + h * kd, exact_sign(X + h * kd, together * s.k, s.d),
                       together * kd * sizeof *S);
            for (int h = 0; h < H; h++) {
                double *C = whitener_by_definition(p, leg, l, h, o);
                memcpy(delta + h * kd,
                       post ? product(C, 0, S + h * kd, 0, s.k, s.d, s.k) : S + h * kd,
                       kd * sizeof *delta);
            }
            if (o->per_mat_renorm) factor *= frobenius(S, H * kd) / frobenius(delta, H * kd);
            for (size_t e = 0; e < H * kd; e++) delta[e] *= factor;
            for (int h = 0; h < H; h++) set_block(s, D[leg], leg, l, h, delta + h * kd);
        }
    }
}

/* No matrix of these shapes that goes through a sign is nearly square. The sign of a nearly square
   Gaussian matrix is too ill-conditioned to compare. */
static const LegShape shapes[] = {
    {1, 3, 3, 4, 24, 0},  {1, 3, 3, 4, 30, 1}, {2, 4, 2, 3, 30, 0}, {2, 4, 2, 3, 26, 1},
    {1, 1, 1, 5, 17, 0},  {3, 1, 1, 5, 17, 1}, {1, 4, 1, 2, 11, 0}, {1, 6, 1, 2, 30, 1},
    {1, 2, 2, 9, 4, 0},   {1, 2, 2, 9, 4, 1},  {1, 1, 1, 1, 7, 0},  {2, 6, 3, 4, 10, 1},
    {1, 2, 2, 16, 64, 0}, {1, 5, 5, 3, 7, 0},
};
enum { SHAPES = (int)(sizeof shapes / sizeof shapes[0]) };

static void test_definition(void) {
    for (int i = 0; i < SHAPES; i++)
        for (int variant = 0; variant < 48; variant++) {
            OptimOptions o = default_options();
            o.whitening = variant % 4;
            o.isotropic = variant / 4 % 2;
            o.hybrid = variant / 8 % 2;
            o.per_mat_renorm = variant / 16 == 1;
            o.shared_div = variant / 16 == 2 ? DIV_GROUP : DIV_ONE;
            o.mp = variant / 16 == 2 ? 3 : 1;
            o.inv_root = variant % 3;
            o.damping = variant & 1 ? 0.1 : 0.02;
            if (!shapes[i].output && !o.hybrid) continue; /* hybrid concerns W_O only */
            Legs p = legs_of(shapes[i]);
            floatM *D[2], *E[2];
            half_directions(&p, &o, D);
            by_definition(&p, &o, E);
            double e = legs_distance(D, E, p.n);
            /* The largest of ten seeds: 3e-5 in float, 3e-14 in double. */
            check(e < TOL(3e-4, 1e-9), "%s is %g from the definition", describe(&o, p.s), e);
            release();
        }
}

/* 0, which means all heads, if one sign over all of a leg is well-conditioned (see `shapes`) for
   both legs, else 1. */
static int largest_group(LegShape s) {
    double query = (double)s.H * s.k / s.d, shared = (double)s.S * s.k / s.d;
    int good = (query < 0.7 || query > 1.5) && (shared < 0.7 || shared > 1.5);
    return good ? 0 : 1;
}

/* Whiteners to a power, damping by a share of the Gram, and signs over groups of heads, against the
   definition. */
static void test_dial(void) {
    static const double powers[] = {0, 0.25, 0.5, 0.6, 0.75, 1.5, 2, 1};
    for (int i = 0; i < SHAPES; i++)
        for (int variant = 0; variant < 32; variant++) {
            OptimOptions o = default_options();
            o.whiten_power = powers[variant % 8];
            o.isotropic = variant / 8 % 2;
            o.damping_form = variant / 16;
            o.inv_root = i % 3;
            o.head_group = variant % 3 ? 1 : largest_group(shapes[i]);
            o.per_mat_renorm = variant % 5 == 0;
            Legs p = legs_of(shapes[i]);
            floatM *D[2], *E[2];
            half_directions(&p, &o, D);
            by_definition(&p, &o, E);
            double e = legs_distance(D, E, p.n);
            /* As in test_definition. Whitening by C^-2 squares the condition of what is signed. */
            check(e < TOL(3e-4, 1e-9) * (o.whiten_power > 1 ? 4 : 1),
                  "%s is %g from the definition", describe(&o, p.s), e);
            release();
        }
}

/* With relative damping the whitening has no scale of its own. If the partner of a leg is s times
   as large, C^-A before the sign is s^-A times as large, which a sign does not see, and C^-A after
   the sign makes the step s^-A times as large. Absolute damping has a scale. */
static void test_covariance(void) {
    static const double powers[] = {0.25, 0.5, 1, 1.3}, scale[2] = {2, 3};
    for (int i = 0; i < SHAPES; i++)
        for (int variant = 0; variant < 16; variant++) {
            OptimOptions o = default_options();
            o.whiten_power = powers[variant % 4];
            o.isotropic = variant / 4 % 2;
            o.damping_form = variant / 8 ? DAMPING_ABSOLUTE : DAMPING_RELATIVE;
            o.damping = 0.1;
            Legs p = legs_of(shapes[i]);
            floatM *D[2], *E[2];
            for (int leg = 0; leg < 2; leg++) /* so that no mean diagonal is below its floor */
                for (size_t e = 0; e < p.n[leg]; e++) p.W[leg][e] *= 2;
            half_directions(&p, &o, D);
            for (int leg = 0; leg < 2; leg++)
                for (size_t e = 0; e < p.n[leg]; e++) {
                    p.W[leg][e] *= (floatM)scale[leg];
                    D[leg][e] *= (floatM)pow(scale[1 - leg], -o.whiten_power);
                }
            half_directions(&p, &o, E);
            double e = legs_distance(E, D, p.n);
            int relative = o.damping_form == DAMPING_RELATIVE;
            /* The largest of ten seeds: 2.8e-5 in float, 5e-14 in double. */
            check(relative ? e < TOL(2e-4, 1e-12) : e > OTHER_DIRECTIONS,
                  "%s: %g from the direction at another scale", describe(&o, p.s), e);
            release();
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Properties                                                                                     */

/* The largest singular value of the composed maps M_h of `count` heads, side by side for the A leg,
   [M_1 .. M_H] (d, H d), and below each other for the B leg, [M_1; ..] (G d, d). */
static double stacked_norm(const Legs *p, floatM *const D[2], int leg, int first, int count,
                           double *smallest) {
    int d = p->s.d, rank = min_int(p->s.k * (leg ? 1 : count), d);
    double *X = take((size_t)count * d * d);
    for (int h = 0; h < count; h++) {
        double *M = composed(p, D, leg, 0, first + h);
        for (int r = 0; r < d; r++)
            for (int c = 0; c < d; c++)
                X[leg ? (h * d + r) * d + c : r * count * d + h * d + c] = M[r * d + c];
    }
    double *s = leg ? singular_values(X, count * d, d) : singular_values(X, d, count * d);
    if (smallest) *smallest = s[rank - 1];
    return s[0];
}

enum { UNDAMPED, DAMPED, MUCH_DAMPED, POST_ONLY, ISOTROPIC, DEGENERATE, BOUND_KINDS };

static OptimOptions bound_options(int kind) {
    OptimOptions o = exact_options();
    if (kind == DAMPED || kind == DEGENERATE) {
        o.damping = 0.01;
        o.inv_root = ROOT_CANS25;
    }
    if (kind == DAMPED) o.msign = MSIGN_PE8;
    if (kind == MUCH_DAMPED) o.damping = 1;
    if (kind == POST_ONLY) o.whitening = WHITEN_POST;
    if (kind == ISOTROPIC) o.isotropic = 1;
    return o;
}

/* Gives the first head weights and gradient of rank one, and the second head zero weights. */
static void degrade(Legs *p) {
    LegShape s = p->s;
    for (int leg = 0; leg < 2; leg++) {
        double *b = block_of(s, p->W[leg], leg, 0, 0), *g = block_of(s, p->G[leg], leg, 0, 0);
        for (int e = s.d; e < s.k * s.d; e++) {
            b[e] = b[e % s.d];
            g[e] = -g[e % s.d];
        }
        set_block(s, p->W[leg], leg, 0, 0, b);
        set_block(s, p->G[leg], leg, 0, 0, g);
        if (heads_of(s, leg) > 1) set_block(s, p->W[leg], leg, 0, 1, take((size_t)s.k * s.d));
    }
}

/* In units of the learning rate, each leg moves the composed map of a head by at most 1/2, and both
   together by at most 1. The bounds of the isotropic rule are sqrt(k) times that. */
static void check_head_bounds(const Legs *p, floatM *const D[2], int kind, int h) {
    LegShape s = p->s;
    OptimOptions o = bound_options(kind);
    double slack = TOL(1e-4, 1e-7), limit = kind == ISOTROPIC ? 0.5 * sqrt(s.k) : 0.5, norm[3];
    for (int leg = 0; leg < 3; leg++)
        norm[leg] = operator_norm(composed(p, D, leg, 0, h), s.d, s.d);
    check(norm[0] < limit + slack && norm[1] < limit + slack && norm[2] < 2 * limit + slack,
          "%s: legs move the map by %g and %g, together %g", describe(&o, s), norm[0], norm[1],
          norm[2]);
    if (kind == MUCH_DAMPED)
        check(norm[0] < 0.4999 && norm[1] < 0.4999, "%s: damping must shrink", describe(&o, s));
    if (kind == ISOTROPIC) {
        double *b = block_of(s, p->W[1], 1, 0, h / (s.H / s.S));
        double tight =
            0.5 * operator_norm(b, s.k, s.d) * sqrt(s.k) / frobenius(b, (size_t)s.k * s.d);
        check(norm[0] < tight + slack, "%s: A leg %g, bound %g", describe(&o, s), norm[0], tight);
    }
}

/* Without damping every nonzero singular value attains the bound: those of each leg that has a sign
   of its own, of hybrid W_O over all heads together, of a shared factor over its group. */
static void check_attained(const Legs *p, floatM *const D[2]) {
    LegShape s = p->s;
    OptimOptions o = bound_options(UNDAMPED);
    int G = s.H / s.S;
    double slack = TOL(1e-4, 1e-7), low, high;
    for (int leg = 0; leg < 2; leg++)
        for (int h = 0; h < s.H; h++) {
            if (leg ? G > 1 : s.output) continue;
            double *sv = singular_values(composed(p, D, leg, 0, h), s.d, s.d);
            check(fabs(sv[0] - 0.5) < slack && fabs(sv[s.k - 1] - 0.5) < slack &&
                      (s.k == s.d || sv[s.k] < slack),
                  "%s: leg %d moves the map by singular values %g to %g, not 1/2", describe(&o, s),
                  leg, sv[0], sv[s.k - 1]);
        }
    if (s.output) {
        high = stacked_norm(p, D, 0, 0, s.H, &low);
        check(fabs(high - 0.5) < slack && (s.H * s.k > s.d || fabs(low - 0.5) < slack),
              "%s: W_O aggregated over heads: singular values %g to %g", describe(&o, s), low,
              high);
    }
    for (int g = 0; g < s.S; g++) {
        high = stacked_norm(p, D, 1, g * G, G, &low);
        check(fabs(high - 0.5) < slack && fabs(low - 0.5) < slack,
              "%s: B over its group: singular values %g to %g", describe(&o, s), low, high);
    }
}

static void test_bounds(void) {
    floatM *D[2];
    for (int i = 0; i < SHAPES; i++)
        for (int kind = 0; kind < BOUND_KINDS; kind++) {
            LegShape s = shapes[i];
            OptimOptions o = bound_options(kind);
            if (s.k > s.d && (kind == UNDAMPED || kind == POST_ONLY)) continue; /* singular Gram */
            Legs p = legs_of(s);
            if (kind == DEGENERATE) degrade(&p);
            half_directions(&p, &o, D);
            for (int h = 0; h < s.H; h++) check_head_bounds(&p, D, kind, h);
            if (kind == UNDAMPED) check_attained(&p, D);
            release();
        }
    /* Two rules must exceed the bound: one without whitening after the sign, and the per-head rule
       for W_O, whose steps add up to sqrt(4) times the bound when four heads agree. */
    for (int whitening = WHITEN_PRE; whitening <= WHITEN_NONE; whitening += 2) {
        OptimOptions o = exact_options();
        Legs p = legs_of(shapes[0]);
        o.whitening = whitening;
        for (size_t i = 0; i < p.n[1]; i++) p.W[1][i] *= 8;
        half_directions(&p, &o, D);
        double norm = operator_norm(composed(&p, D, 0, 0, 0), 24, 24);
        check(norm > 1, "%s stays within the bound, %g", describe(&o, p.s), norm);
        release();
    }
    for (int hybrid = 0; hybrid < 2; hybrid++) {
        LegShape s = {1, 4, 4, 3, 16, 1};
        OptimOptions o = exact_options();
        Legs p = legs_of(s);
        o.hybrid = hybrid;
        for (int h = 1; h < 4; h++) {
            set_block(s, p.W[1], 1, 0, h, block_of(s, p.W[1], 1, 0, 0));
            set_block(s, p.G[0], 0, 0, h, block_of(s, p.G[0], 0, 0, 0));
        }
        half_directions(&p, &o, D);
        double norm = stacked_norm(&p, D, 0, 0, 4, NULL);
        check(fabs(norm - (hybrid ? 0.5 : 1)) < TOL(1e-4, 1e-7),
              "hybrid=%d: agreeing heads sum to %g", hybrid, norm);
        release();
    }
}

static void test_equivariance(void) {
    static const LegShape gauged[] = {
        {2, 3, 3, 4, 24, 0}, {1, 4, 2, 3, 30, 0}, {2, 3, 3, 4, 30, 1}, {1, 4, 2, 3, 30, 1}};
    static const struct {
        int whitening, isotropic, renorm;
        double damping;
        int group, per_head_only;
    } rules[] = {
        {WHITEN_BOTH, 0, 0, 0, ALL, 0},          {WHITEN_BOTH, 0, 0, 0.1, ROTATIONS, 0},
        {WHITEN_POST, 0, 0, 0, SIMILARITIES, 1}, {WHITEN_PRE, 0, 0, 0, ROTATIONS, 0},
        {WHITEN_NONE, 0, 0, 0, ROTATIONS, 0},    {WHITEN_BOTH, 1, 0, 0, SIMILARITIES, 0},
        {WHITEN_POST, 1, 0, 0, SIMILARITIES, 1}, {WHITEN_PRE, 1, 0, 0, ROTATIONS, 0},
        {WHITEN_BOTH, 1, 0, 0.1, ROTATIONS, 0},  {WHITEN_BOTH, 0, 1, 0, ROTATIONS, 0},
    };
    for (int i = 0; i < 4; i++)
        for (int rule = 0; rule < 10; rule++)
            for (int hybrid = 0; hybrid < 2; hybrid++)
                for (int group = ROTATIONS; group <= ALL; group++) {
                    OptimOptions o = exact_options();
                    LegShape s = gauged[i];
                    o.whitening = rules[rule].whitening;
                    o.isotropic = rules[rule].isotropic;
                    o.per_mat_renorm = rules[rule].renorm;
                    o.damping = rules[rule].damping;
                    o.hybrid = hybrid;
                    if (hybrid && (!s.output || rules[rule].per_head_only)) continue;
                    Legs p = legs_of(s), q;
                    floatM *D[2], *E[2];
                    half_directions(&p, &o, D);
                    q = legs_copy(&p);
                    for (int j = 0; j < s.layers * s.S; j++) {
                        double *R = orthogonal(s.k), size = 0.5 + uniform(),
                               *N = normals((size_t)s.k * s.k);
                        for (int e = 0; e < s.k * s.k; e++) {
                            if (group >= SIMILARITIES) R[e] *= size;
                            if (group == ALL) R[e] += 0.25 * N[e] / sqrt(s.k);
                        }
                        gauge(&q, j / s.S, j % s.S, R, D);
                    }
                    half_directions(&q, &o, E);
                    double e = legs_distance(E, D, p.n);
                    int expected = group <= rules[rule].group;
                    check(expected ? e < EQUAL_DIRECTIONS : e > OTHER_DIRECTIONS,
                          "%s: %s %s, distance %g", describe(&o, s),
                          expected ? "must be equivariant under"
                                   : "should not be equivariant under",
                          group == ALL ? "GL(k)"
                          : group      ? "scaled rotations"
                                       : "rotations",
                          e);
                    if (!expected) {
                        release();
                        continue;
                    }
                    /* The change of the composed map does not depend on the gauge. */
                    double worst = 0;
                    half_directions(&p, &o, D);
                    for (int h = 0; h < s.H; h++)
                        worst = fmax(worst, relative_l2_dd(composed(&q, E, 2, 0, h),
                                                           composed(&p, D, 2, 0, h),
                                                           (size_t)s.d * s.d, 1e-30));
                    check(worst < EQUAL_DIRECTIONS, "%s: the composed step changes by %g",
                          describe(&o, s), worst);
                    release();
                }
}

/* CM without whitening, or by the power 0, is Muon, and so is CM whose damping dwarfs the Gram. */
static void check_muon_limit(LegShape s, int hybrid) {
    OptimOptions o = default_options();
    Legs p = legs_of(s);
    floatM *D[2], *E[2];
    o.hybrid = hybrid;
    for (int power = 0; power < 2; power++) {
        o.whitening = power ? WHITEN_NONE : WHITEN_BOTH;
        o.whiten_power = power;
        half_directions(&p, &o, D);
        muon_directions(&p, &o, 0.5, E);
        check(legs_distance(D, E, p.n) < TOL(1e-5, 1e-13), "%s is not Muon", describe(&o, s));
    }
    o.whitening = WHITEN_BOTH;
    o.damping = 1e6;
    half_directions(&p, &o, D);
    for (int leg = 0; leg < 2; leg++)
        for (size_t e = 0; e < p.n[leg]; e++) D[leg][e] *= (floatM)1e3;
    /* sqrt(damping) (G + damping I)^-1/2 is I - G / (2 damping), and the eigenvalues of G are below
       20 in these shapes: 1e-5, twice, and more after the sign of an ill-conditioned matrix; the
       largest of ten seeds was 1.6e-5. In float the subtraction of a delta of size 5e-4 from
       weights rounds: 1.7e-4. */
    double e = legs_distance(D, E, p.n);
    check(e < TOL(2e-3, 1e-4), "%s: sqrt(damping) delta is %g from Muon", describe(&o, s), e);
    release();
}

/* A sign removes a scalar factor of its argument. So isotropic whitening before the sign has no
   effect if each head has a sign of its own: `pre` is `none`, and `both` is `post`. The one sign
   over all heads of W_O does see their relative sizes. */
static void check_isotropic_pre(LegShape s, int hybrid) {
    static const int pairs[2][2] = {{WHITEN_PRE, WHITEN_NONE}, {WHITEN_BOTH, WHITEN_POST}};
    Legs p = legs_of(s);
    for (int i = 0; i < 2; i++) {
        OptimOptions o = default_options(), without_pre;
        floatM *D[2], *E[2];
        o.isotropic = 1;
        o.hybrid = hybrid;
        o.whitening = pairs[i][0];
        without_pre = o;
        without_pre.whitening = pairs[i][1];
        half_directions(&p, &o, D);
        half_directions(&p, &without_pre, E);
        double e = legs_distance(D, E, p.n);
        int lost = !hybrid || s.H == 1 || s.S == 1;
        check(lost ? e < TOL(1e-5, 1e-13) : e > OTHER_DIRECTIONS,
              "%s: %g from the rule without whitening before the sign", describe(&o, s), e);
    }
    release();
}

/* If the partners have W W^T = c^2 I, the full rule and the isotropic rule are both
   msign(U) / sqrt(c^2 + damping). */
static void check_orthonormal_partner(LegShape s) {
    OptimOptions o = default_options(), isotropic;
    Legs p = legs_of(s);
    floatM *D[2], *E[2];
    double c = 0.7;
    o.hybrid = 0;
    isotropic = o;
    isotropic.isotropic = 1;
    for (int leg = 0; leg < 2; leg++)
        for (int j = 0; j < s.layers * s.H; j++) {
            double *b = exact_sign(block_of(s, p.W[leg], leg, j / s.H, j % s.H), s.k, s.d);
            for (int e = 0; e < s.k * s.d; e++) b[e] *= c;
            set_block(s, p.W[leg], leg, j / s.H, j % s.H, b);
        }
    half_directions(&p, &o, D);
    half_directions(&p, &isotropic, E);
    check(legs_distance(D, E, p.n) < TOL(2e-5, 1e-9), "%s: full is not isotropic", describe(&o, s));
    muon_directions(&p, &o, 0.5 / sqrt(c * c + o.damping), E);
    double e = legs_distance(D, E, p.n);
    check(e < TOL(2e-5, 1e-9), "%s: %g from msign(U) / sqrt(c^2 + damping)", describe(&o, s), e);
    release();
}

/* With one head the hybrid rule is the per-head rule. With W_O = 0, as at the start of a run,
   C_O^-1 = damping^-1/2. */
static void check_output(LegShape s) {
    OptimOptions o = default_options(), per_head = o;
    Legs p = legs_of(s);
    floatM *D[2], *E[2];
    per_head.hybrid = 0;
    half_directions(&p, &o, D);
    half_directions(&p, &per_head, E);
    double e = distance(D[0], E[0], p.n[0]);
    check(s.H == 1 ? e < TOL(1e-5, 1e-13) : e > OTHER_DIRECTIONS,
          "%s: O leg %g from the per-head rule", describe(&o, s), e);
    check(!memcmp(D[1], E[1], p.n[1] * sizeof(floatM)), "%s: hybrid changes V", describe(&o, s));
    memset(p.W[0], 0, p.n[0] * sizeof(floatM));
    half_directions(&p, &o, D);
    muon_directions(&p, &o, 0.5 / sqrt(o.damping), E);
    e = distance(D[1], E[1], p.n[1]);
    check(e < TOL(1e-5, 1e-13), "%s: V leg at W_O = 0 is off by %g", describe(&o, s), e);
    o.damping_form = DAMPING_RELATIVE; /* a mean diagonal of zero counts as 0.01 */
    o.damping = 0.3;
    o.whiten_power = 1.5;
    for (int isotropic = 0; isotropic < 2; isotropic++) {
        o.isotropic = isotropic;
        half_directions(&p, &o, D);
        muon_directions(&p, &o, 0.5 * pow(0.01, -0.75), E);
        e = distance(D[1], E[1], p.n[1]);
        check(e < EQUAL_DIRECTIONS, "%s: V leg at W_O = 0 is off by %g", describe(&o, s), e);
    }
    release();
}

/* Grouped queries. The per-query leg equals that of a model that stores a copy of the shared factor
   for every query head. The shared leg sees the sum of the group's Grams, so G equal query heads
   are one head that is sqrt(G) times as large. */
static void check_grouped(LegShape s) {
    int G = s.H / s.S;
    OptimOptions o = default_options(), divided = o;
    LegShape written_out = s, single = s;
    written_out.S = s.H;
    single.H = s.S;
    divided.shared_div = DIV_GROUP;
    Legs p = legs_of(s), q = legs_of(written_out), r = legs_of(single);
    floatM *D[2], *E[2];
    memcpy(q.W[0], p.W[0], p.n[0] * sizeof(floatM));
    memcpy(q.G[0], p.G[0], p.n[0] * sizeof(floatM));
    memcpy(r.G[1], p.G[1], p.n[1] * sizeof(floatM));
    for (int j = 0; j < s.layers * s.H; j++)
        set_block(written_out, q.W[1], 1, j / s.H, j % s.H,
                  block_of(s, p.W[1], 1, j / s.H, j % s.H / G));
    half_directions(&p, &o, D);
    half_directions(&q, &o, E);
    double e = distance(D[0], E[0], p.n[0]);
    check(e < TOL(1e-5, 1e-12), "%s: the per-query leg is %g from that of MHA", describe(&o, s), e);
    half_directions(&p, &divided, E);
    for (size_t j = 0; j < p.n[1]; j++) E[1][j] *= (floatM)G;
    check(distance(D[1], E[1], p.n[1]) < TOL(1e-5, 1e-13) && distance(D[0], E[0], p.n[0]) == 0,
          "%s: shared-div group does not divide the shared leg alone by %d", describe(&o, s), G);
    for (int j = 0; j < s.layers * s.H; j++) {
        double *b = block_of(single, r.W[0], 0, j / s.H, j % s.H / G);
        for (int x = 0; x < s.k * s.d; x++) b[x] /= sqrt(G);
        set_block(s, p.W[0], 0, j / s.H, j % s.H, b);
    }
    half_directions(&p, &o, D);
    half_directions(&r, &o, E);
    e = distance(D[1], E[1], p.n[1]);
    check(e < TOL(1e-4, 1e-10), "%s: the shared leg is %g from that of one head", describe(&o, s),
          e);
    release();
}

static void test_reductions(void) {
    for (int i = 0; i < SHAPES; i++) {
        LegShape s = shapes[i];
        for (int hybrid = 0; hybrid <= s.output; hybrid++) {
            check_muon_limit(s, hybrid);
            check_isotropic_pre(s, hybrid);
        }
        if (s.k <= s.d && s.H == s.S) check_orthonormal_partner(s);
        if (s.output) check_output(s);
        if (s.H > s.S) check_grouped(s);
    }
}

/* The size of a leg's gradient does not matter. A leg depends on its partner's weights and not on
   its own. */
static void check_independence(const Legs *p, const OptimOptions *o) {
    floatM *D[2], *E[2];
    Legs q = legs_copy(p);
    half_directions(p, o, D);
    for (size_t j = 0; j < p->n[0]; j++) q.G[0][j] *= (floatM)700;
    for (size_t j = 0; j < p->n[1]; j++) q.G[1][j] *= (floatM)0.03;
    half_directions(&q, o, E);
    double e = legs_distance(E, D, p->n);
    check(e < TOL(1e-5, 1e-10), "%s: larger gradients change the step by %g", describe(o, p->s), e);
    for (int leg = 0; leg < 2; leg++) {
        q = legs_copy(p);
        for (size_t j = 0; j < p->n[leg]; j++) q.W[leg][j] *= -2;
        half_directions(&q, o, E);
        double own = distance(E[leg], D[leg], p->n[leg]);
        double partner = distance(E[!leg], D[!leg], p->n[!leg]);
        check(own < TOL(1e-5, 1e-13) && partner > OTHER_DIRECTIONS,
              "%s: leg %d changes by %g with its own weights, its partner by %g", describe(o, p->s),
              leg, own, partner);
    }
}

/* Reversing the order of the groups and of their query heads reverses the order of the step. */
static void check_permutation(const Legs *p, const OptimOptions *o) {
    LegShape s = p->s;
    int G = s.H / s.S;
    Legs q = legs_copy(p);
    floatM *D[2], *E[2], *reversed[2] = {take_m(p->n[0]), take_m(p->n[1])};
    half_directions(p, o, D);
    for (int leg = 0; leg < 2; leg++)
        for (int l = 0; l < s.layers; l++)
            for (int h = 0; h < heads_of(s, leg); h++) {
                int to = leg ? s.S - 1 - h : (s.S - 1 - h / G) * G + h % G;
                set_block(s, q.W[leg], leg, l, to, block_of(s, p->W[leg], leg, l, h));
                set_block(s, q.G[leg], leg, l, to, block_of(s, p->G[leg], leg, l, h));
                set_block(s, reversed[leg], leg, l, to, block_of(s, D[leg], leg, l, h));
            }
    half_directions(&q, o, E);
    double e = legs_distance(E, reversed, p->n);
    check(e < EQUAL_DIRECTIONS, "%s: permuting the heads changes the step by %g", describe(o, s),
          e);
}

/* The step of the first head depends on the gradient of the last head only with hybrid. Layers do
   not depend on each other. */
static void check_locality(const Legs *p, const OptimOptions *o) {
    LegShape s = p->s;
    size_t kd = (size_t)s.k * s.d;
    floatM *D[2], *E[2];
    half_directions(p, o, D);
    if (s.S > 1) {
        Legs q = legs_copy(p);
        double change[2];
        for (int leg = 0; leg < 2; leg++)
            set_block(s, q.G[leg], leg, 0, heads_of(s, leg) - 1, normals(kd));
        half_directions(&q, o, E);
        for (int leg = 0; leg < 2; leg++)
            change[leg] = relative_l2_dd(block_of(s, E[leg], leg, 0, 0),
                                         block_of(s, D[leg], leg, 0, 0), kd, 1e-30);
        check(change[1] == 0, "%s: another head's gradient changes the B leg", describe(o, s));
        check(o->hybrid && s.output ? change[0] > OTHER_DIRECTIONS : change[0] == 0,
              "%s: another head's gradient changes the A leg by %g", describe(o, s), change[0]);
    }
    if (s.layers > 1) {
        Legs second = *p;
        second.s.layers = 1;
        for (int leg = 0; leg < 2; leg++) {
            size_t skip = second.n[leg] = p->n[leg] / (size_t)s.layers;
            second.W[leg] += skip;
            second.G[leg] += skip;
            second.M[leg] += skip;
            D[leg] += skip;
        }
        half_directions(&second, o, E);
        double e = legs_distance(E, D, second.n);
        check(e < TOL(1e-5, 1e-12), "%s: the second layer alone differs by %g", describe(o, s), e);
    }
}

static void test_invariances(void) {
    for (int i = 0; i < SHAPES; i++)
        for (int hybrid = 0; hybrid <= shapes[i].output; hybrid++) {
            OptimOptions o = default_options();
            Legs p = legs_of(shapes[i]);
            o.hybrid = hybrid;
            check_independence(&p, &o);
            check_permutation(&p, &o);
            check_locality(&p, &o);
            release();
        }
}

/* Steepest descent: <G, delta> is the nuclear norm of the whitened gradient, and no other step
   within the bound descends more. */
static void test_optimality(void) {
    static const LegShape legs[] = {{1, 2, 2, 4, 24, 0}, {1, 4, 2, 3, 30, 0}, {1, 3, 3, 5, 30, 1}};
    for (int i = 0; i < 3; i++) {
        LegShape s = legs[i];
        OptimOptions o = exact_options();
        o.hybrid = 0;
        Legs p = legs_of(s);
        floatM *D[2];
        size_t kd = (size_t)s.k * s.d;
        half_directions(&p, &o, D);
        for (int leg = 0; leg < 2; leg++)
            for (int h = 0; h < heads_of(s, leg); h++) {
                double *g = block_of(s, p.G[leg], leg, 0, h), *d = block_of(s, D[leg], leg, 0, h),
                       descent = 0;
                double *C = whitener_by_definition(&p, leg, 0, h, &o), best = 0;
                for (size_t e = 0; e < kd; e++) descent += 2 * g[e] * d[e];
                double dual = nuclear_norm(product(C, 0, g, 0, s.k, s.d, s.k), s.k, s.d);
                check(relative_error(descent, dual, 1e-30) < TOL(1e-5, 1e-10),
                      "leg %d descends by %g of %g", leg, descent, dual);
                for (int trial = 0; trial < 10; trial++) {
                    double *z = normals(kd), rival = 0;
                    for (size_t e = 0; e < kd; e++) z[e] += 0.1 * trial * g[e] / frobenius(g, kd);
                    z = product(C, 0, exact_sign(z, s.k, s.d), 0, s.k, s.d, s.k);
                    for (size_t e = 0; e < kd; e++) rival += g[e] * z[e];
                    best = fmax(best, rival);
                }
                check(best < descent, "another step within the bound descends more: %g > %g", best,
                      descent);
            }
        release();
    }
}

/* The momenta m = b m + g and m = b m + (1 - b) g differ by a factor, which the sign removes. The
   buffer holds gradients times gscale. */
static void test_momentum(void) {
    for (int nesterov = 0; nesterov < 2; nesterov++) {
        OptimOptions sum = default_options(), ema;
        sum.momentum = 0.9;
        sum.momentum_form = FORM_SUM;
        sum.nesterov = nesterov ? NESTEROV_ON : NESTEROV_OFF;
        ema = sum;
        ema.momentum_form = FORM_EMA;
        Legs p = legs_of(shapes[3]), q = legs_copy(&p);
        floatM *start[2] = {copy_of(p.W[0], p.n[0]), copy_of(p.W[1], p.n[1])};
        for (int step = 0; step < 4; step++) {
            legs_step(&p, &sum, 0.1, 0.1);
            legs_step_scaled(&q, &ema, 0.1, 0.1, 3);
            for (int leg = 0; leg < 2; leg++) {
                p.G[leg] = normals_m(p.n[leg], 0.01);
                q.G[leg] = copy_of(p.G[leg], p.n[leg]);
            }
        }
        for (int leg = 0; leg < 2; leg++) {
            for (size_t i = 0; i < p.n[leg]; i++) {
                q.M[leg][i] /= (floatM)(3 * (1 - 0.9));
                p.W[leg][i] -= start[leg][i];
                q.W[leg][i] -= start[leg][i];
            }
            double m = distance(q.M[leg], p.M[leg], p.n[leg]),
                   w = distance(q.W[leg], p.W[leg], p.n[leg]);
            check(m < TOL(1e-5, 1e-12), "EMA momentum is %g from (1 - b) SUM, nesterov %d", m,
                  nesterov);
            check(w < TOL(1e-4, 1e-9), "EMA and SUM move the weights differently by %g", w);
        }
        release();
    }
    OptimOptions o = default_options();
    /* By default the momentum of all rules is equal. Released forms differ from rule to rule, and
       the buffer shows them. */
    Momentum equal[2] = {momentum_of(&o, 0, 0.75), momentum_of(&o, 1, 0.75)};
    for (int is_cm = 0; is_cm < 2; is_cm++)
        check(equal[is_cm].beta == 0.75 && equal[is_cm].gain == 0.25 && equal[is_cm].nesterov,
              "the default momentum of %s is not EMA with Nesterov", is_cm ? "CM" : "Muon");
    o.momentum_form = FORM_RELEASED;
    o.nesterov = NESTEROV_RELEASED;
    Legs p = legs_of(shapes[0]);
    muon_update(legs_leg(&p, 0), &o, 0.75, 0.1, 0, 1);
    check(relative_error((double)p.M[0][5], 0.25 * (double)p.G[0][5], 0) < 1e-6,
          "Muon's buffer is not EMA");
    memset(p.M[0], 0, p.n[0] * sizeof(floatM));
    legs_step(&p, &o, 0.1, 0);
    check(p.M[0][5] == p.G[0][5], "CM's buffer is not a sum");
    release();
    Momentum muon = momentum_of(&o, 0, 0.75), cm = momentum_of(&o, 1, 0.75);
    check(muon.beta == 0.75 && muon.gain == 0.25 && muon.nesterov,
          "Muon's momentum is not EMA with Nesterov");
    check(cm.beta == 0.75 && cm.gain == 1 && !cm.nesterov, "CM's momentum is not a plain sum");
    o.momentum_form = FORM_SUM;
    o.nesterov = NESTEROV_OFF;
    muon = momentum_of(&o, 0, 0.75);
    o.momentum_form = FORM_EMA;
    o.nesterov = NESTEROV_ON;
    cm = momentum_of(&o, 1, 0.75);
    check(muon.gain == 1 && !muon.nesterov && cm.gain == 0.25 && cm.nesterov,
          "momentum options are ignored");
}

/* A momentum mixed from averages of several ages against its definition: the weight of every
   gradient that it has seen, summed in double. The averages begin at update FROM as copies of the
   single one, and their weights move from update FROM to update UNTIL. */
static void test_ages(void) {
    enum { FROM = 3, UNTIL = 7, STEPS = 10, K = 3, N = 35 };
    const double mu = 0.9, ages[K] = {2, 9, 40}, gscale = 0.5;
    MomentumAges a = {.n = K, .from = FROM, .until = UNTIL};
    const double first[K] = {0.2, 0.3, 0.5}, last[K] = {0.7, 0.25, 0.05};
    for (int k = 0; k < K; k++) {
        a.decay[k] = ages[k] / (ages[k] + 1);
        a.first[k] = first[k];
        a.last[k] = last[k];
    }
    for (int nesterov = 0; nesterov < 2; nesterov++) {
        OptimOptions o = default_options();
        o.momentum = mu;
        o.nesterov = nesterov ? NESTEROV_ON : NESTEROV_OFF;
        floatM *m[K], *u = take_m(N), *g[STEPS];
        for (int k = 0; k < K; k++) m[k] = normals_m(N, k ? 9 : 0); /* older ones are not read */
        for (int t = 0; t < STEPS; t++) {
            g[t] = normals_m(N, 1);
            Step s = step_of(RULE_MUON, &o, 1, 0);
            Leg l = leg_of(mat_dense(NULL, 1, 5, 7), mat_dense(g[t], 1, 5, 7),
                           mat_dense(m[0], 1, 5, 7), 0, 0);
            for (int k = 1; k < K; k++) l.older[k - 1] = mat_dense(m[k], 1, 5, 7);
            l.begins = t == FROM ? 3 : 0;
            s.gscale = gscale;
            momentum_ages_at(&s, &a, t);
            momentum_step(mat_dense(u, 1, 5, 7), &s, &l, momentum_of(&o, 0, mu));
            double way = fmin(1, (double)(t - FROM) / (UNTIL - FROM)), worst = 0;
            for (int i = 0; i < N; i++) {
                double mix = 0, own = gscale * (double)g[t][i];
                for (int k = 0; k < K; k++) {
                    double w = t < FROM ? k == 0 : (1 - way) * first[k] + way * last[k];
                    for (int j = 0; j <= t; j++) {
                        double d = t < FROM ? mu : ages[k] / (ages[k] + 1);
                        double kept = j < FROM && t >= FROM
                                          ? pow(mu, FROM - 1 - j) * (1 - mu) * pow(d, t - FROM + 1)
                                          : (1 - d) * pow(d, t - j);
                        mix += w * kept * gscale * (double)g[j][i];
                    }
                }
                double expected = nesterov ? mu * mix + (1 - mu) * own : mix;
                worst = fmax(worst, fabs(expected - (double)u[i]));
            }
            check(worst < TOL(1e-6, 1e-14), "update %d, nesterov %d: the mix is off by %g", t,
                  nesterov, worst);
        }
        release();
    }
    /* The published lists: decays and mean ages. */
    static const struct {
        const char *name;
        int n;
        double decay[2], age[2];
    } lists[] = {{"bi-maxwell", 2, {0.85, 0.98}, {30, 30}},
                 {"k-maxwell", 8, {0.75, 64.0 / 65}, {58, 26}}};
    for (int i = 0; i < 2; i++) {
        char err[ERR_LEN] = "";
        Config c;
        flags_defaults(config_flags, CONFIG_FLAGS, &c);
        snprintf(c.momentum_ages, sizeof c.momentum_ages, "%s", lists[i].name);
        c.momentum_ages_from = 1000;
        c.steps = 3250;
        check(!config_resolve_ages(&c, err), "%s: %s", lists[i].name, err);
        const MomentumAges *p = &c.optim.ages;
        double mean[2] = {0, 0};
        for (int k = 0; k < p->n; k++) {
            double age = p->decay[k] / (1 - p->decay[k]);
            mean[0] += p->first[k] * age;
            mean[1] += p->last[k] * age;
            if (k > 1)
                check(relative_error((1 / (1 - p->decay[k]) - 1) / (1 / (1 - p->decay[k - 1]) - 1),
                                     pow(64.0 / 3, 1.0 / 7), 0) < 1e-12,
                      "ages %d and %d of %s", k - 1, k, lists[i].name);
        }
        check(p->n == lists[i].n && fabs(p->decay[0] - lists[i].decay[0]) < 1e-15 &&
                  fabs(p->decay[p->n - 1] - lists[i].decay[1]) < 1e-15 &&
                  fabs(mean[0] - lists[i].age[0]) < 0.05 &&
                  fabs(mean[1] - lists[i].age[1]) < 0.05 && p->from == 1000 && p->until == 3250,
              "%s: %d averages of mean age %g, then %g", lists[i].name, p->n, mean[0], mean[1]);
        Step s = step_of(RULE_MUON, &c.optim, 1, 0);
        momentum_ages_at(&s, p, 999);
        check(s.ages == 0, "%s before its first update", lists[i].name);
        momentum_ages_at(&s, p, 2125); /* half of the way */
        check(s.ages == p->n && fabs(s.weight[1] - (p->first[1] + p->last[1]) / 2) < 1e-12,
              "%s half of the way", lists[i].name);
    }
}

/* A step with gscale, the factor of gradient clipping, equals a step with the gradient times
   gscale. */
static void test_gscale(void) {
    OptimOptions o = default_options();
    floatM *W[2], *G[2], *M[2], *V[2];
    for (int rule = 0; rule < 2; rule++) {
        for (int i = 0; i < 2; i++) {
            W[i] = i ? copy_of(W[0], 35) : normals_m(35, 1);
            G[i] = i ? copy_of(G[0], 35) : normals_m(35, 1);
            M[i] = i ? copy_of(M[0], 35) : normals_m(35, 1);
            V[i] = take_m(35);
        }
        for (int e = 0; e < 35; e++) G[1][e] *= 4;
        for (int i = 0; i < 2; i++) {
            Leg l = leg_of(mat_dense(W[i], 1, 5, 7), mat_dense(G[i], 1, 5, 7),
                           mat_dense(M[i], 1, 5, 7), 0, 0);
            o.adam_beta1 = 0.9;
            o.adam_beta2 = 0.95;
            o.adam_eps = 1e-3;
            if (rule) adamw_update(l, V[i], &o, 0.1, 0.1, i ? 1 : 4, 3);
            else muon_update(l, &o, 0.9, 0.1, 0.1, i ? 1 : 4);
        }
        double e = fmax(distance(W[0], W[1], 35), distance(M[0], M[1], 35));
        if (rule) e = fmax(e, distance(V[0], V[1], 35));
        check(e < TOL(1e-6, 1e-14), "%s: gscale is off by %g", rule ? "AdamW" : "Muon", e);
        release();
    }
}

/* per_mat_renorm gives each leg of a layer the norm of its sign, sqrt(rank), and keeps its
   direction. So the size of the partner does not matter. */
static void test_renorm(void) {
    for (int i = 0; i < SHAPES; i++) {
        LegShape s = shapes[i];
        OptimOptions o = default_options(), plain;
        o.per_mat_renorm = 1;
        o.hybrid = 0;
        if (s.k <= s.d) {
            o.damping = 0;
            o.inv_root = ROOT_EIGH;
        }
        plain = o;
        plain.per_mat_renorm = 0;
        Legs p = legs_of(s);
        floatM *D[2], *E[2];
        half_directions(&p, &o, D);
        half_directions(&p, &plain, E);
        for (int leg = 0; leg < 2; leg++)
            for (int l = 0; l < s.layers; l++) {
                size_t n = p.n[leg] / (size_t)s.layers;
                floatM *x = D[leg] + l * n, *y = E[leg] + l * n;
                double norm = sqrt(la_sum_squares(x, n)),
                       expected = 0.5 * sqrt(heads_of(s, leg) * min_int(s.k, s.d));
                double ratio = norm / sqrt(la_sum_squares(y, n));
                check(relative_error(norm, expected, 1) < TOL(1e-4, 1e-6),
                      "%s: leg %d has norm %g, not %g", describe(&o, s), leg, norm, expected);
                for (size_t e = 0; e < n; e++) y[e] *= (floatM)ratio;
                check(distance(x, y, n) < TOL(1e-5, 1e-12), "%s: leg %d turned", describe(&o, s),
                      leg);
            }
        if (s.k <= s.d) {
            Legs q = legs_copy(&p);
            for (int leg = 0; leg < 2; leg++)
                for (size_t e = 0; e < p.n[leg]; e++) q.W[leg][e] *= (floatM)5;
            half_directions(&q, &o, E);
            double e = legs_distance(E, D, p.n);
            check(e < TOL(1e-4, 1e-10), "%s: larger weights change the step by %g", describe(&o, s),
                  e);
        }
        release();
    }
}

/* A step with zero gradient and momentum changes no bit of the weights. With weight decay it
   multiplies them by 1 - lr wd. */
static void test_nothing(void) {
    for (int i = 0; i < SHAPES; i++)
        for (int variant = 0; variant < 8; variant++) {
            OptimOptions o = default_options();
            o.isotropic = variant & 1;
            o.hybrid = variant >> 1 & 1;
            o.per_mat_renorm = variant >> 2;
            Legs p = legs_of(shapes[i]), q;
            for (int leg = 0; leg < 2; leg++) memset(p.G[leg], 0, p.n[leg] * sizeof(floatM));
            q = legs_copy(&p);
            legs_step(&q, &o, 0.1, 0);
            int kept = 1;
            for (int leg = 0; leg < 2; leg++) {
                kept &= !memcmp(p.W[leg], q.W[leg], p.n[leg] * sizeof(floatM));
                kept &= !memcmp(p.M[leg], q.M[leg], p.n[leg] * sizeof(floatM));
            }
            check(kept, "%s: a zero gradient changes weights or momenta", describe(&o, p.s));
            legs_step(&q, &o, 0.1, 0.5);
            for (int leg = 0; leg < 2; leg++)
                for (size_t e = 0; e < p.n[leg]; e++) p.W[leg][e] *= (floatM)0.95;
            check(legs_distance(q.W, p.W, p.n) < TOL(2e-7, 1e-15),
                  "%s: weight decay is not 1 - lr wd", describe(&o, p.s));
            release();
        }
    OptimOptions o = default_options();
    floatM *w = normals_m(40, 1), *start = copy_of(w, 40), *g = take_m(40), *m = take_m(40),
           *v = take_m(40);
    Leg l = leg_of(mat_dense(w, 1, 5, 8), mat_dense(g, 1, 5, 8), mat_dense(m, 1, 5, 8), 0, 0);
    o.adam_beta1 = 0.9;
    o.adam_beta2 = 0.95;
    o.adam_eps = 1e-8;
    muon_update(l, &o, 0.95, 0.1, 0, 1);
    adamw_update(l, v, &o, 0.1, 0, 1, 1);
    check(!memcmp(w, start, 40 * sizeof *w), "a zero gradient moves Muon's or AdamW's weights");
    release();
}

/* Every norm, ratio and root of a norm that rules take is exact for a power of two times its input,
   the norm of the whole gradient and the factor of clipping too. */
static void test_scale(void) {
    enum { ITEMS = 6, ROWS = 5, COLS = 9, N = ITEMS * ROWS * COLS };
    const floatM *x = near_one(N), *y = near_one(N);
    floatM one[9][ITEMS * ROWS], s[9][ITEMS * ROWS];
    for (int i = -1; i < SCALES; i++) {
        int k = i < 0 ? 0 : scale_exponents[i];
        Mat X = mat_dense(times_power(x, N, k), ITEMS, ROWS, COLS);
        Mat Y = mat_dense(copy_of(y, N), ITEMS, ROWS, COLS);
        memset(s, 0, sizeof s);
        la_norms(s[0], X, 1);
        la_norms(s[1], mat_t(X), 2);
        la_row_norms(s[2], X);
        la_inner(s[3], X, Y, 1);
        la_norms(s[4], X, 1);
        la_vec_recip(s[4], ITEMS);
        la_norms(s[5], X, 1);
        la_vec_rroot(s[5], ITEMS, 0.25, 0, 1);
        la_norms(s[6], Y, 1);
        la_vec_div(s[6], s[0], ITEMS);
        /* The scalar connections: <W, U> over ||W||^2. */
        la_vec_gauge(s[7], s[3], s[2], s[0], s[0], ITEMS, 0, LA_GAUGE_PARTNER);
        la_vec_gauge(s[8], s[3], s[2], s[0], s[0], ITEMS, 0, LA_GAUGE_PLAIN);
        double norm = sqrt(la_sum_squares(X.p, N));
        static double first;
        static const int power[] = {1, 1, 1, 1, -1, -1, -1};
        if (i < 0) first = norm;
        if (i < 0) memcpy(one, s, sizeof s);
        check(norm == ldexp(first, k) && 1 / norm == ldexp(1 / first, -k),
              "the norm of a gradient times 2^%d", k);
        for (int op = 0; op < 7; op++)
            for (int j = 0; j < (op == 2 ? ITEMS * ROWS : ITEMS); j++)
                check((double)s[op][j] == ldexp((double)one[op][j], power[op] * k),
                      "operation %d, item %d, times 2^%d: %g from %g", op, j, k, (double)s[op][j],
                      (double)one[op][j]);
        /* p / a, with p 2^k and a 2^2k times as large, less q / b with an equal a. */
        for (int j = 0; j < ITEMS; j++) {
            double a = (double)s[0][j] * (double)s[0][j];
            double p = (double)s[3][j], q = (double)s[2][j];
            check(relative_error((double)s[7][j], (p / a - q / a) / 2, 1e-300) < TOL(1e-6, 1e-14) &&
                      relative_error((double)s[8][j], (p - q) / (2 * a), 1e-300) < TOL(1e-6, 1e-14),
                  "a scalar connection times 2^%d: %g, %g", k, (double)s[7][j], (double)s[8][j]);
        }
    }
    /* Zero stays zero, in every quotient by it. */
    floatM zero[2] = {0, 0}, ratio[2] = {0, 3};
    la_vec_recip(zero, 2);
    la_vec_div(ratio, zero, 2);
    check(zero[0] == 0 && ratio[0] == 0 && ratio[1] == 0, "1/0 is %g, 0/0 %g, 3/0 %g",
          (double)zero[0], (double)ratio[0], (double)ratio[1]);
    /* A quotient that no float holds is the largest float, never infinity. */
    floatM tiny[2] = {(floatM)(1 / LA_LARGEST / 16), (floatM)(1 / LA_LARGEST)};
    la_vec_recip(tiny, 1);
    check(isfinite((double)tiny[0]) && tiny[0] > 0, "1 over the smallest floats is %g",
          (double)tiny[0]);
    release();
}

/* AdamW without eps: an element whose gradients were all zero stays, and the others move as with
   any small eps. */
static void test_adam_without_eps(void) {
    OptimOptions o = default_options();
    o.adam_beta1 = 0.9;
    o.adam_beta2 = 0.95;
    floatM *w[2], *m[2], *v[2], *start = normals_m(40, 1), *g = normals_m(40, 1e-3);
    for (int e = 0; e < 40; e += 3) g[e] = 0;
    g[1] = (floatM)(sizeof(floatM) == 8 ? 1e-200 : 1e-30); /* its square is no floatM */
    for (int i = 0; i < 2; i++) {
        w[i] = copy_of(start, 40);
        m[i] = take_m(40);
        v[i] = take_m(40);
        o.adam_eps = i ? 0 : 1e-30;
        for (int step = 1; step <= 3; step++)
            adamw_update(leg_of(mat_dense(w[i], 1, 5, 8), mat_dense(g, 1, 5, 8),
                                mat_dense(m[i], 1, 5, 8), 0, 0),
                         v[i], &o, 0.1, 0, 1, step);
    }
    for (int e = 0; e < 40; e++)
        check(e % 3 == 0 || e == 1 ? w[1][e] == start[e]
                                   : w[1][e] == w[0][e] && w[1][e] != start[e],
              "AdamW without eps, element %d: %g from %g", e, (double)w[1][e], (double)start[e]);
    release();
}

/* Muon's shape factors against numbers worked out by hand, and the size of an update. */
static void test_muon_scale(void) {
    OptimOptions options = default_options();
    options.scale = SCALE_SPECTRAL;
    check(muon_scale(&options, 32, 8) == 2 && muon_scale(&options, 8, 32) == 1, "spectral scale");
    options.scale = SCALE_RMS;
    check(fabs(muon_scale(&options, 25, 9) - 1) < 1e-15 &&
              fabs(muon_scale(&options, 9, 25) - 1) < 1e-15,
          "rms scale");
    options.scale = SCALE_NONE;
    check(muon_scale(&options, 32, 8) == 1, "scale none");
    static const int sizes[][2] = {{24, 8}, {8, 24}, {6, 60}};
    for (int i = 0; i < 3; i++) {
        OptimOptions o = default_options();
        o.scale = SCALE_RMS;
        int rows = sizes[i][0], cols = sizes[i][1];
        size_t n = (size_t)rows * cols;
        floatM *w = take_m(n), *m = take_m(n);
        Leg l = leg_of(mat_dense(w, 1, rows, cols), mat_dense(normals_m(n, 1), 1, rows, cols),
                       mat_dense(m, 1, rows, cols), 0, 0);
        muon_update(l, &o, 0.95, 0.5, 0, 1);
        double rms = sqrt(la_sum_squares(w, n) / (double)n);
        check(fabs(rms - 0.1) < 1e-5,
              "scale rms: an update of %d x %d has RMS %g at rate 1/2, not 0.1", rows, cols, rms);
        release();
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The plan                                                                                       */

/* Copies rows [first, first + rows) of a tensor out of an allocation, as (layer, row, column). */
static floatM *cut(const Registry *r, TensorId id, int first, int rows, const floatM *x) {
    const Tensor *t = &r->t[id];
    size_t n = (size_t)rows * t->cols;
    floatM *y = take_m((size_t)t->layers * n);
    for (int l = 0; l < t->layers; l++)
        memcpy(y + l * n, x + t->slot[SLOT_PARAM].at + (size_t)(l * t->rows + first) * t->cols,
               n * sizeof *y);
    return y;
}

/* Copies the rows y back into the allocation x. */
static void paste(const Registry *r, TensorId id, int first, int rows, floatM *x, const floatM *y) {
    const Tensor *t = &r->t[id];
    size_t n = (size_t)rows * t->cols;
    for (int l = 0; l < t->layers; l++)
        memcpy(x + t->slot[SLOT_PARAM].at + (size_t)(l * t->rows + first) * t->cols, y + l * n,
               n * sizeof *y);
}

/* What plan_step should do, computed tensor by tensor and layer by layer on copies. */
typedef struct {
    const Config *c;
    const Registry *r;
    floatM *p, *g, *m, *v; /* v has the registry's layout, unlike the plan's state */
    double scale, beta, gscale;
    int step;
} Expected;

static void expect_adamw(Expected *e, TensorId id, int first, int rows, double lr, double wd) {
    int cols = e->r->t[id].cols, layers = e->r->t[id].layers;
    floatM *p = cut(e->r, id, first, rows, e->p), *g = cut(e->r, id, first, rows, e->g);
    floatM *m = cut(e->r, id, first, rows, e->m), *v = cut(e->r, id, first, rows, e->v);
    Leg l = leg_of(mat_dense(p, layers, rows, cols), mat_dense(g, layers, rows, cols),
                   mat_dense(m, layers, rows, cols), 0, 0);
    adamw_update(l, v, &e->c->optim, lr * e->scale, wd, e->gscale, e->step);
    paste(e->r, id, first, rows, e->p, p);
    paste(e->r, id, first, rows, e->m, m);
    paste(e->r, id, first, rows, e->v, v);
}

/* Clipping, the factor gscale, leaves Muon and CM alone.
   Muon on `parts` blocks of rows (axis 1: of columns), or on the whole matrix if parts is 0. */
static void expect_muon(Expected *e, TensorId id, int first, int rows, int parts, int axis) {
    int cols = e->r->t[id].cols, layers = e->r->t[id].layers;
    floatM *p = cut(e->r, id, first, rows, e->p), *g = cut(e->r, id, first, rows, e->g);
    floatM *m = cut(e->r, id, first, rows, e->m);
    for (int l = 0; l < layers; l++) {
        size_t at = (size_t)l * rows * cols;
        Leg leg = leg_of(mat_dense(p + at, 1, rows, cols), mat_dense(g + at, 1, rows, cols),
                         mat_dense(m + at, 1, rows, cols), parts, axis);
        muon_update(leg, &e->c->optim, e->beta, e->c->lr * e->scale, e->c->weight_decay, 1);
    }
    paste(e->r, id, first, rows, e->p, p);
    paste(e->r, id, first, rows, e->m, m);
}

static void expect_cm(Expected *e, TensorId id, int rows, int output, int shared_first,
                      int shared_rows) {
    const Config *c = e->c;
    int shape_rows[2] = {rows, shared_rows}, first[2] = {0, shared_first};
    TensorId ids[2] = {id, T_WQKV};
    floatM *p[2], *g[2], *m[2];
    for (int leg = 0; leg < 2; leg++) {
        p[leg] = cut(e->r, ids[leg], first[leg], shape_rows[leg], e->p);
        g[leg] = cut(e->r, ids[leg], first[leg], shape_rows[leg], e->g);
        m[leg] = cut(e->r, ids[leg], first[leg], shape_rows[leg], e->m);
    }
    for (int l = 0; l < c->layers; l++) {
        Legs legs;
        LegShape s = {1, c->heads, c->kv_heads, c->head_dim, c->width, output};
        legs.s = s;
        for (int leg = 0; leg < 2; leg++) {
            legs.n[leg] = (size_t)heads_of(s, leg) * s.k * s.d;
            legs.W[leg] = p[leg] + l * legs.n[leg];
            legs.G[leg] = g[leg] + l * legs.n[leg];
            legs.M[leg] = m[leg] + l * legs.n[leg];
        }
        OptimOptions o = c->optim;
        o.momentum = e->beta;
        legs_step_scaled(&legs, &o, c->lr * e->scale, c->weight_decay, 1);
    }
    for (int leg = 0; leg < 2; leg++) {
        paste(e->r, ids[leg], first[leg], shape_rows[leg], e->p, p[leg]);
        paste(e->r, ids[leg], first[leg], shape_rows[leg], e->m, m[leg]);
    }
}

static void expect_step(Expected *e) {
    const Config *c = e->c;
    int A = c->heads * c->head_dim, K = c->kv_heads * c->head_dim, F = c->ff_width;
    int swiglu = c->act == ACT_SWIGLU;
    if (c->qk == RULE_CM) expect_cm(e, T_WQKV, A, 0, A, K);
    if (c->ov == RULE_CM) expect_cm(e, T_WO, c->width, 1, A + K, K);
    struct {
        TensorId id;
        int rule, first, rows, parts, axis;
    } blocks[] = {
        {T_WQKV, c->qk, 0, A, c->heads, 0},
        {T_WQKV, c->qk, A, K, c->kv_heads, 0},
        {T_WQKV, c->ov, A + K, K, c->kv_heads, 0},
        {T_WO, c->ov, 0, c->width, c->heads, 1},
        {T_WFC, c->mlp, 0, F, 1, 0},
        {T_WFC, c->mlp, F, swiglu ? F : 0, 1, 0},
        {T_WPROJ, c->mlp, 0, c->width, 1, 0},
    };
    for (int i = 0; i < 7; i++) {
        if (!blocks[i].rows) continue;
        if (blocks[i].rule == RULE_ADAMW)
            expect_adamw(e, blocks[i].id, blocks[i].first, blocks[i].rows, c->lr, c->weight_decay);
        if (blocks[i].rule == RULE_MUON)
            expect_muon(e, blocks[i].id, blocks[i].first, blocks[i].rows, 1, 0);
        if (blocks[i].rule == RULE_MUON_HEAD)
            expect_muon(e, blocks[i].id, blocks[i].first, blocks[i].rows, blocks[i].parts,
                        blocks[i].axis);
    }
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &e->r->t[id];
        if (!t->layers || id == T_WQKV || id == T_WO || id == T_WFC || id == T_WPROJ) continue;
        int embed = id == T_WTE || id == T_WPE, head = id == T_WHEAD;
        expect_adamw(e, (TensorId)id, 0, t->rows,
                     embed  ? c->lr_embed
                     : head ? c->lr_head
                            : c->lr_scalar,
                     embed  ? c->weight_decay_embed
                     : head ? c->weight_decay_head
                            : c->weight_decay_scalar);
    }
}

/* Runs two steps of a plan and what they should be. Returns the largest error of a tensor relative
   to its displacement, and the name of the tensor. Infinity if padding changed. */
static double plan_error(const char *flags, char *worst_name, size_t size, floatM **result) {
    static char text[1024];
    char *argv[64], err[ERR_LEN] = "", *save = NULL;
    int argc = 0;
    snprintf(text, sizeof text,
             "test --lr 0.03 --lr-embed 0.011 --lr-head 0.007 --lr-scalar 0.005 "
             "--weight-decay 0.3 --weight-decay-embed 0.2 --weight-decay-head 0.1 "
             "--weight-decay-scalar 0.4 "
             "--layers 3 --width 24 --seq-len 7 --adam-eps 1e-6 --damping 0.05 %s",
             flags);
    for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    Config *c = (Config *)take_bytes(sizeof *c);
    unsigned char given[CONFIG_FLAGS];
    if (config_parse(c, given, argc, argv, err)) die("%s", err);
    c->vocab = 40;
    if (config_resolve(c, err)) die("%s", err);
    Registry r = registry_build(c);
    Plan plan = plan_build(c, &r);
    Arena arena = arena_of(plan.arena_size);
    floatM *start = normals_m(r.size[SLOT_PARAM], 0.3), *p = copy_of(start, r.size[SLOT_PARAM]),
           *m = take_m(r.size[SLOT_PARAM]), *v = take_m(plan.state_size);
    Expected e = {c,
                  &r,
                  copy_of(start, r.size[SLOT_PARAM]),
                  NULL,
                  take_m(r.size[SLOT_PARAM]),
                  take_m(r.size[SLOT_PARAM]),
                  0.5,
                  0.8,
                  1.5,
                  0};
    double worst = 0;
    for (int step = 1; step <= 2; step++) {
        floatM *g = normals_m(r.size[SLOT_PARAM], 0.01);
        PlanState s = {p, g, m, v, &arena, {0.5, 0.5}, 0.8, 1.5, step, NULL};
        plan_step(&plan, &r, c, &s);
        e.g = copy_of(g, r.size[SLOT_PARAM]);
        e.step = step;
        expect_step(&e);
        check(arena.used == 0 && !memcmp(g, e.g, r.size[SLOT_PARAM] * sizeof *g),
              "plan_step leaves the arena used or changes gradients");
    }
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r.t[id];
        floatM *a = take_m(t->size), *b = take_m(t->size);
        for (size_t i = 0; i < t->size; i++) {
            a[i] = p[t->slot[SLOT_PARAM].at + i] - start[t->slot[SLOT_PARAM].at + i];
            b[i] = e.p[t->slot[SLOT_PARAM].at + i] - start[t->slot[SLOT_PARAM].at + i];
        }
        double x = fmax(distance(a, b, t->size), distance(m + t->slot[SLOT_PARAM].at,
                                                          e.m + t->slot[SLOT_PARAM].at, t->size));
        if (x > worst) {
            worst = x;
            snprintf(worst_name, size, "%s", t->name);
        }
        /* What remains is padding. */
        memset(e.p + t->slot[SLOT_PARAM].at, 0, t->size * sizeof *p);
        for (size_t i = 0; i < t->size; i++) start[t->slot[SLOT_PARAM].at + i] = 0;
    }
    if (result) *result = copy_of(p, r.size[SLOT_PARAM]);
    for (int id = 0; id < TENSORS; id++)
        memset(p + r.t[id].slot[SLOT_PARAM].at, 0, r.t[id].size * sizeof *p);
    if (memcmp(p, start, r.size[SLOT_PARAM] * sizeof *p)) {
        worst = INFINITY;
        snprintf(worst_name, size, "padding");
    }
    return worst;
}

static void test_plan(void) {
    static const char *const rules[] = {"cm", "muon", "muon-head", "adamw"};
    static const char *const models[] = {
        "--heads 3 --act relu2",
        "--heads 4 --kv-heads 2 --act swiglu --biases on --norm layernorm --pos learned",
        "--heads 6 --kv-heads 1 --head-dim 8 --tied on --biases on --hybrid off --shared-div group",
    };
    char flags[512], where[64];
    for (int model = 0; model < 3; model++)
        for (int i = 0; i < 16; i++) {
            /* Every pair of rules of --qk and --ov. --mlp alternates. */
            snprintf(flags, sizeof flags, "%s --qk %s --ov %s --mlp %s", models[model],
                     rules[i % 4], rules[i / 4], i % 3 ? "muon" : "adamw");
            double e = plan_error(flags, where, sizeof where, NULL);
            check(e < TOL(2e-4, 1e-9), "%s: %s is off by %g", flags, where, e);
            release();
        }
    /* --optimizer sets --qk, --ov and --mlp. */
    static const char *const optimizers[][2] = {{"cm", "--qk cm --ov cm --mlp muon"},
                                                {"muon", "--qk muon --ov muon --mlp muon"},
                                                {"adamw", "--qk adamw --ov adamw --mlp adamw"}};
    for (int i = 0; i < 3; i++) {
        floatM *by_optimizer, *by_role;
        uint64_t at = draw_count;
        snprintf(flags, sizeof flags, "%s --optimizer %s", models[1], optimizers[i][0]);
        double e = plan_error(flags, where, sizeof where, &by_optimizer);
        draw_count = at;
        snprintf(flags, sizeof flags, "%s %s", models[1], optimizers[i][1]);
        plan_error(flags, where, sizeof where, &by_role);
        check(e < TOL(2e-4, 1e-9) && by_optimizer[100] == by_role[100],
              "--optimizer %s: %s is off by %g", optimizers[i][0], where, e);
        release();
    }
    /* With too little scratch for all three layers the plan works in chunks of one or two layers.
       The step does not change. */
    for (int i = 0; i < 4; i++) {
        snprintf(flags, sizeof flags, "%s --qk %s --ov %s", models[1], rules[i % 3], rules[i % 3]);
        scratch_budget = i < 3 ? 1 : 12000;
        double e = plan_error(flags, where, sizeof where, NULL);
        scratch_budget = (size_t)8 << 20;
        check(e < TOL(2e-4, 1e-9), "in chunks, %s: %s is off by %g", flags, where, e);
        release();
    }
}

/* The plan covers every parameter exactly once, and AdamW's second moments do not overlap. */
static void test_plan_cover(void) {
    static const char *const presets[] = {"tiny", "gpt2", "llama", "speedrun"};
    for (int i = 0; i < 4; i++) {
        char text[256], err[ERR_LEN] = "", *argv[16], *save = NULL;
        int argc = 0;
        snprintf(text, sizeof text,
                 "test --preset %s --layers 2 --width 48 --seq-len 16 --total-batch-tokens 0",
                 presets[i]);
        for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
            argv[argc++] = word;
        Config *c = (Config *)take_bytes(sizeof *c);
        unsigned char given[CONFIG_FLAGS];
        if (config_parse(c, given, argc, argv, err)) die("%s", err);
        c->vocab = 50;
        if (config_resolve(c, err)) die("%s", err);
        Registry r = registry_build(c);
        Plan plan = plan_build(c, &r);
        floatM *count = take_m(r.size[SLOT_PARAM]), *moments = take_m(plan.state_size);
        for (int j = 0; j < plan.n; j++) {
            const PlanEntry *e = &plan.e[j];
            for (int leg = 0; leg < e->legs; leg++) {
                Mat m = part_view(&r, e->part[leg], count);
                for (int l = 0; l < m.n0; l++)
                    for (int x = 0; x < m.rows * m.cols; x++) m.p[(size_t)l * m.s0 + x] += 1;
                for (size_t x = 0; e->rule == RULE_ADAMW && x < mat_size(m); x++)
                    moments[e->state[leg][0] + x] += 1;
            }
        }
        int covered = 1, apart = 1;
        for (int id = 0; id < TENSORS; id++)
            for (size_t x = 0; x < r.t[id].size; x++)
                covered &= count[r.t[id].slot[SLOT_PARAM].at + x]-- == 1;
        for (size_t x = 0; x < r.size[SLOT_PARAM]; x++) covered &= count[x] == 0;
        for (size_t x = 0; x < plan.state_size; x++) apart &= moments[x] <= 1;
        check(covered && apart,
              "--preset %s: the plan covers the parameters once %d, moments are apart %d",
              presets[i], covered, apart);
        release();
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Schedules                                                                                      */

static void test_schedules(void) {
    Schedule s;
    memset(&s, 0, sizeof s);
#define AT(STEP, VALUE)                                                                            \
    check(fabs(schedule_lr(&s, STEP) - (VALUE)) < 1e-12,                                           \
          "schedule %d, warmup %d: %g at step %d, not %g", s.kind, s.warmup,                       \
          schedule_lr(&s, STEP), STEP, (double)(VALUE))
    s.steps = 100;
    s.kind = SCHEDULE_CONSTANT;
    AT(0, 1);
    AT(50, 1);
    AT(99, 1);
    s.warmup = 4;
    AT(0, 0.25);
    AT(1, 0.5);
    AT(3, 1);
    AT(4, 1);
    AT(99, 1);
    s.warmup = 0;
    s.kind = SCHEDULE_LINEAR;
    AT(0, 1);
    AT(25, 0.75);
    AT(99, 0.01);
    AT(100, 0);
    AT(120, 0);
    s.final = 0.1;
    AT(0, 1);
    AT(50, 0.55);
    AT(99, 0.1 + 0.9 * 0.01);
    AT(100, 0.1);
    s.warmup = 20; /* the decay spans the steps after the warm-up */
    AT(19, 1);
    AT(20, 1);
    AT(60, 0.55);
    AT(100, 0.1);
    s.warmup = 0;
    s.kind = SCHEDULE_COSINE;
    AT(0, 1);
    AT(25, 0.1 + 0.9 * (0.5 + 0.5 * sqrt(0.5)));
    AT(50, 0.55);
    AT(75, 0.1 + 0.9 * (0.5 - 0.5 * sqrt(0.5)));
    AT(100, 0.1);
    s.warmup = 20;
    s.final = 0;
    AT(9, 0.5);
    AT(20, 1);
    AT(40, 0.5 + 0.5 * sqrt(0.5));
    AT(60, 0.5);
    AT(100, 0);
    s.warmup = 0;
    s.kind = SCHEDULE_TRAPEZOID;
    s.cooldown = 0.5;
    AT(0, 1);
    AT(50, 1);
    AT(51, 0.98);
    AT(75, 0.5);
    AT(99, 0.02);
    AT(100, 0);
    s.final = 0.2;
    AT(75, 0.6);
    AT(100, 0.2);
    s.final = 0;
    s.warmup = 10;
    AT(0, 0.1);
    AT(9, 1);
    AT(10, 1);
    AT(50, 1);
    AT(75, 0.5);
    s.warmup = 0;
    s.cooldown = 1;
    AT(0, 1);
    AT(1, 0.99);
    AT(50, 0.5);
    s.cooldown = 0.7;
    static const int runs[] = {10, 3250, 3600};
    /* The speedrun's schedule is 1 up to s/N = 0.3, then (1 - s/N) / 0.7. */
    for (int i = 0; i < 3; i++) {
        int N = s.steps = runs[i];
        for (int step = 0; step < N; step++)
            AT(step, step < 0.3 * N ? 1 : (1 - (double)step / N) / 0.7);
        AT(N - 1, 1 / (0.7 * N));
    }
#undef AT
    s.momentum_warmup = 0;
    s.momentum_start = 0.85;
    /* Phases multiply, a rate's group has its own, and a jump is two items at one step. */
    char err[ERR_LEN] = "";
    s.kind = SCHEDULE_CONSTANT;
    check(!phases_parse(&s.phases[RATE_BLOCKS], "lr-phases", "0:0.5,10:1,20:1,20:0.25,40:0", err) &&
              !phases_parse(&s.phases[RATE_REST], "lr-phases-rest", "5:2", err),
          "phases: %s", err);
    static const double blocks[][2] = {{0, 0.5},   {5, 0.75},   {10, 1}, {15, 1}, {19, 1},
                                       {20, 0.25}, {30, 0.125}, {40, 0}, {99, 0}};
    for (int i = 0; i < (int)(sizeof blocks / sizeof *blocks); i++)
        check(fabs(schedule_lr(&s, (int)blocks[i][0]) - blocks[i][1]) < 1e-12 &&
                  schedule_lr_of(&s, RATE_REST, (int)blocks[i][0]) == 2,
              "phases at %g: %g, not %g", blocks[i][0], schedule_lr(&s, (int)blocks[i][0]),
              blocks[i][1]);
    s.kind = SCHEDULE_TRAPEZOID;
    s.steps = 100;
    s.cooldown = 1;
    check(fabs(schedule_lr(&s, 5) - 0.95 * 0.75) < 1e-12, "phases of a trapezoid");
    memset(s.phases, 0, sizeof s.phases);
    check(schedule_momentum(&s, 0, 0.95) == 0.95, "momentum without warm-up");
    s.momentum_warmup = 300;
    check(fabs(schedule_momentum(&s, 0, 0.95) - 0.85) < 1e-15 &&
              fabs(schedule_momentum(&s, 150, 0.95) - 0.9) < 1e-15 &&
              fabs(schedule_momentum(&s, 75, 0.95) - 0.875) < 1e-15 &&
              schedule_momentum(&s, 300, 0.95) == 0.95,
          "momentum warm-up");
}

static int processors; /* threads at the start of the program */

/* Operations on large arrays run in all threads. The matrices of the other tests are so small that
   a second thread would slow them down. */
static void test_operations(void) {
    use_threads(processors);
    test_decompositions();
    test_elementwise();
    test_products();
    test_vectors();
    test_sums();
    use_threads(1);
}

static const Test tests[] = {
    TEST(operations),   TEST(fixtures),   TEST(msign),       SLOW_TEST(invroot),
    TEST(definition),   TEST(dial),       TEST(covariance),  TEST(bounds),
    TEST(equivariance), TEST(reductions), TEST(invariances), TEST(optimality),
    TEST(momentum),     TEST(ages),       TEST(gscale),      TEST(renorm),
    TEST(nothing),      TEST(muon_scale), TEST(scale),       TEST(adam_without_eps),
    TEST(plan),         TEST(plan_cover), TEST(schedules)};

int main(int argc, char **argv) {
    char err[ERR_LEN] = "";
    if (gemm_setup(COMPUTE_FP32, err)) die("%s", err);
    processors = thread_count();
    use_threads(1);
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
