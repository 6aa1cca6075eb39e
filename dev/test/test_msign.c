/*
Tests of the fast paths of the sign and of the inverse root: the iteration on the Gram, symmetric
products of which one half is computed, items spread over threads, final steps left out. A fast path
must be as accurate as the plain iteration, which runs here step by step in double, and must give
equal bits for every number of threads. The sign in bf16 has its own properties and bounds.
*/
#include "backend.h"

/* A step computes (a I + P) X or P X + a X, by the backend's constant. A variable replaces the
   constant, so that both forms are tested on both backends. */
static int add_free = LA_ADD_FREE;
#undef LA_ADD_FREE
#define LA_ADD_FREE add_free

#include "optim_cases.h"

/* ---------------------------------------------------------------------------------------------- */
/* The plain iterations in double                                                                 */

static double *plain_sign(const floatM *x, int rows, int cols, int which) {
    const MsignTable *table = msign_table(which);
    int m = min_int(rows, cols), n = max_int(rows, cols);
    double *X = take((size_t)m * n), *Y = take((size_t)m * n), *A = take((size_t)m * m);
    double *AA = take((size_t)m * m), sum = 0;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++)
            X[rows > cols ? c * n + r : r * n + c] = (double)x[r * cols + c];
    for (int i = 0; i < m * n; i++) sum += X[i] * X[i];
    for (int i = 0; i < m * n; i++) X[i] /= sqrt(sum);
    for (int step = 0; step < table->steps; step++) {
        const double *k = table->abc[step];
        multiply(A, X, 0, X, 1, m, m, n);
        multiply(AA, A, 0, A, 0, m, m, m);
        for (int i = 0; i < m * m; i++)
            AA[i] = (i % (m + 1) == 0 ? k[0] : 0) + k[1] * A[i] + k[2] * AA[i];
        multiply(Y, AA, 0, X, 0, m, n, m);
        double *swap = X;
        X = Y;
        Y = swap;
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) Y[r * cols + c] = X[rows > cols ? c * n + r : r * n + c];
    return Y;
}

/* The plain iteration in the precision of the build, which shows what rounding costs. */
static floatM *plain_rounded_sign(const floatM *x, int rows, int cols, int which) {
    Mat X = mat_dense(copy_of(x, (size_t)rows * cols), 1, rows, cols);
    Mat Y = mat_dense(take_m((size_t)rows * cols), 1, rows, cols);
    size_t m = (size_t)min_int(rows, cols);
    Arena arena = arena_of(2 * m * m + 64);
    floatM s[2];
    la_units(s, X);
    la_scale_units(X, s);
    if (rows > cols) {
        X = mat_t(X);
        Y = mat_t(Y);
    }
    msign_plain(&X, &Y, msign_table(which), &arena);
    return X.p;
}

static double root_gap(const double *P, int k) {
    double sum = 0;
    for (int i = 0; i < k * k; i++) {
        double e = P[i] - (i % (k + 1) == 0);
        sum += e * e;
    }
    return sqrt(sum);
}

/* ---------------------------------------------------------------------------------------------- */
/* Matrices                                                                                       */

enum { GAUSSIAN, GRADED_1E2, GRADED_1E3, HALF_1E3, ONE_BIG_1E3, DEFICIENT, KINDS };
static const char *const kind_names[KINDS] = {
    "Gaussian",     "graded to 1e-2",      "graded to 1e-3",
    "half at 1e-3", "all but one at 1e-3", "deficient"};

/* U S V^T of Frobenius norm near 1. Sets *sign to U V^T, the exact sign if S > 0, or to NULL for a
   Gaussian matrix. */
static floatM *matrix_of(int kind, int rows, int cols, double **sign) {
    int m = min_int(rows, cols);
    floatM *x = take_m((size_t)rows * cols);
    *sign = NULL;
    if (kind == GAUSSIAN) {
        for (int i = 0; i < rows * cols; i++) x[i] = (floatM)normal();
        return x;
    }
    double *U = orthogonal(m), *V = exact_sign(normals((size_t)rows * cols), rows, cols);
    double *S = take((size_t)m), *US = take((size_t)m * m), norm = 0;
    for (int i = 0; i < m; i++) {
        double t = m > 1 ? (double)i / (m - 1) : 0;
        if (kind == GRADED_1E2) S[i] = pow(10, -2 * t);
        if (kind == GRADED_1E3) S[i] = pow(10, -3 * t);
        if (kind == HALF_1E3) S[i] = i < (m + 1) / 2 ? 1 : 0;
        if (kind == ONE_BIG_1E3) S[i] = i == 0;
        if (kind == DEFICIENT) S[i] = i < (m + 1) / 2 ? 1 - 0.5 * t : 0;
        norm += S[i] * S[i];
    }
    for (int i = 0; i < m; i++) {
        S[i] /= sqrt(norm);
        if (kind == HALF_1E3 || kind == ONE_BIG_1E3) S[i] = fmax(S[i], 1e-3);
    }
    for (int i = 0; i < m * m; i++) US[i] = U[i] * S[i % m];
    double *W =
        rows <= cols ? product(US, 0, V, 0, rows, cols, m) : product(V, 0, US, 1, rows, cols, m);
    for (int i = 0; i < rows * cols; i++) x[i] = (floatM)W[i];
    *sign = rows <= cols ? product(U, 0, V, 0, rows, cols, m) : product(V, 0, U, 1, rows, cols, m);
    return x;
}

DEFINE_RELATIVE_L2(relative_l2_md, floatM, double)
static double error_of(const floatM *x, const double *expected, size_t n) {
    return relative_l2_md(x, expected, n, 1e-300);
}

static floatM *sign_in(const floatM *x, int n, int rows, int cols, int which, int bf16) {
    floatM *y = copy_of(x, (size_t)n * rows * cols);
    run_msign(mat_dense(y, n, rows, cols), which, bf16);
    return y;
}

static floatM *sign_of(const floatM *x, int n, int rows, int cols, int which) {
    return sign_in(x, n, rows, cols, which, 0);
}

/* ---------------------------------------------------------------------------------------------- */

static const int shapes[][2] = {{32, 128}, {64, 160}, {128, 32}, {16, 16}, {24, 40}, {7, 50},
                                {33, 67},  {5, 10},   {1, 40},   {40, 1},  {1, 1},   {2, 3}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* A fast path may be this many times as far from the plain iteration in double as the plain
   iteration in the precision of the build is. Neither error is a bound of the other, because
   roundings cancel by chance: the largest ratio of ten seeds was 8.6. */
#define FAST_OVER_PLAIN 20.0

/* pe8 takes singular values above 1e-3 of the norm to within 1e-4 of 1 in exact arithmetic. Float
   adds its rounding. */
#define PE8_REACH TOL(1.5e-4, 1e-4)

/* The fast paths against the plain iteration, and pe8 against the sign itself. */
static void test_accuracy(void) {
    for (int s = 0; s < SHAPES; s++)
        for (int kind = 0; kind < KINDS; kind++) {
            int rows = shapes[s][0], cols = shapes[s][1];
            size_t n = (size_t)rows * cols;
            double *exact;
            floatM *x = matrix_of(kind, rows, cols, &exact);
            for (int which = 0; which < 5; which++) {
                const double *plain = plain_sign(x, rows, cols, which);
                const floatM *fast = sign_of(x, 1, rows, cols, which);
                double e = error_of(fast, plain, n);
                double rounding = error_of(plain_rounded_sign(x, rows, cols, which), plain, n);
                /* The second term is for a plain iteration that is exact by chance. */
                double bound = fmax(FAST_OVER_PLAIN * rounding, TOL(2e-5, 1e-12));
                check(e <= bound, "%s of %d x %d, %s: %g from the plain iteration, rounding %g",
                      table_names[which], rows, cols, kind_names[kind], e, rounding);
                if (!exact || kind == DEFICIENT || which != MSIGN_PE8) continue;
                e = error_of(fast, exact, n);
                check(e < PE8_REACH, "pe8 of %d x %d, %s: %g from the sign", rows, cols,
                      kind_names[kind], e);
            }
            release();
        }
}

/* The size of a matrix does not matter. The sign of zero is zero. NaN and infinity stay visible. */
static void test_extremes(void) {
    static const double sizes[] = {1e-20, 1e-12, 1e20};
    for (int s = 0; s < SHAPES; s++) {
        int rows = shapes[s][0], cols = shapes[s][1];
        size_t n = (size_t)rows * cols;
        for (int which = 0; which < 5; which++) {
            for (int i = 0; i < 3; i++) {
                floatM *x = normals_m(n, sizes[i]);
                double e =
                    error_of(sign_of(x, 1, rows, cols, which), plain_sign(x, rows, cols, which), n);
                /* The largest of ten seeds: 3e-6 in float, 6e-15 in double. */
                check(e < TOL(3e-5, 1e-13),
                      "%s of %d x %d numbers of size %g: %g from the plain iteration",
                      table_names[which], rows, cols, sizes[i], e);
            }
            const floatM *zero = sign_of(take_m(n), 1, rows, cols, which);
            int all_zero = 1;
            for (size_t i = 0; i < n; i++) all_zero &= zero[i] == 0;
            check(all_zero, "%s of a zero matrix %d x %d is not zero", table_names[which], rows,
                  cols);
            for (int infinite = 0; infinite < 2; infinite++) {
                floatM *x = normals_m(n, 1);
                x[n / 2] = infinite ? (floatM)INFINITY : (floatM)NAN;
                const floatM *y = sign_of(x, 1, rows, cols, which);
                int finite = 1;
                for (size_t i = 0; i < n; i++) finite &= isfinite((double)y[i]) != 0;
                check(!finite, "%s of %d x %d hides %s", table_names[which], rows, cols,
                      infinite ? "infinity" : "NaN");
            }
            release();
        }
    }
}

/* The bits of an item depend neither on the number of threads nor on the other items. */
static void test_same_bits(void) {
    static const int batches[][3] = {
        {1, 32, 128}, {5, 32, 128}, {9, 24, 24}, {3, 130, 70}, {0, 4, 8}};
    for (int b = 0; b < 5; b++) {
        int n = batches[b][0], rows = batches[b][1], cols = batches[b][2];
        size_t size = (size_t)rows * cols;
        floatM *x = normals_m((size_t)n * size, 1), *first = NULL;
        if (n > 2) memset(x + size, 0, size * sizeof *x);
        for (int threads = 1; threads <= 4; threads++) {
            use_threads(threads);
            floatM *y = sign_of(x, n, rows, cols, MSIGN_PE8);
            if (!first) first = y;
            check(!memcmp(first, y, (size_t)n * size * sizeof *y),
                  "the sign of %d of %d x %d differs with %d threads", n, rows, cols, threads);
        }
        for (int i = 0; i < n; i++)
            check(!memcmp(first + (size_t)i * size,
                          sign_of(x + (size_t)i * size, 1, rows, cols, MSIGN_PE8),
                          size * sizeof *x),
                  "item %d of %d x %d depends on its neighbours", i, rows, cols);
        release();
    }
    use_threads(2);
}

/* ---------------------------------------------------------------------------------------------- */
/* bf16                                                                                           */

#define BF16 (1.0 / 256) /* u: rounding to bf16 moves a number by at most this part of it */

/* Matrices that are large or square enough not to be heads, which stay in fp32. In fp32 the first
   two go through their Grams. */
static const int bf16_shapes[][2] = {{66, 132}, {132, 66}, {40, 40}, {48, 40},
                                     {33, 50},  {7, 9},    {1, 1}};
enum { BF16_SHAPES = sizeof bf16_shapes / sizeof *bf16_shapes };

static double *to_double(const floatM *x, size_t n) {
    double *y = take(n);
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

static floatM *to_floatM(const double *x, size_t n) {
    floatM *y = take_m(n);
    for (size_t i = 0; i < n; i++) y[i] = (floatM)x[i];
    return y;
}

static floatM *transposed(const floatM *x, int rows, int cols) {
    floatM *y = take_m((size_t)rows * cols);
    for (int i = 0; i < rows * cols; i++) y[i % cols * rows + i / cols] = x[i];
    return y;
}

/* The largest relative change of the sign when X is rounded to bf16. Rounding adds an error of
   about 0.42 u ||X||_F. The sign changes by this error divided by the singular values s_i: by u
   kappa at most, where kappa is the root mean square of s_mean / s_i and s_mean = ||X||_F /
   sqrt(m). The rounding of the steps adds an error of order u. */
static double bf16_limit(const double *s, int m) {
    double square = 0, inverse = 0;
    for (int i = 0; i < m; i++) {
        square += s[i] * s[i] / m;
        inverse += 1 / (s[i] * s[i]) / m;
    }
    return 1.5 * BF16 * (1 + sqrt(square * inverse));
}

/* The sign in bf16 is as close to the sign in fp32 as the condition of X allows. pe8 and simple12
   take singular values above 2e-3 of the norm to within 2 u of 1: one u comes from rounding the
   result, one from rounding A and P near the identity. Smaller values need more steps in any
   precision, and rounding X moves them by half of their size. quintic5 and quintic5_nv keep within
   their own ranges. */
static void test_bf16_accuracy(void) {
    static const double least[] = {1 - 2 * BF16, 0.67, 0.965, 1 - 2 * BF16};
    static const double most[] = {1 + 2 * BF16, 1.22, 1.16, 1 + 2 * BF16};
    for (int shape = 0; shape < BF16_SHAPES; shape++)
        for (int kind = 0; kind < DEFICIENT; kind++) {
            int rows = bf16_shapes[shape][0], cols = bf16_shapes[shape][1], m = min_int(rows, cols);
            size_t n = (size_t)rows * cols;
            double *sign, norm;
            const floatM *x = matrix_of(kind, rows, cols, &sign);
            const double *in = singular_values(to_double(x, n), rows, cols);
            norm = frobenius(in, (size_t)m);
            for (int which = 0; which < 4; which++) {
                const floatM *y = sign_in(x, 1, rows, cols, which, 1);
                const double *fp32 = to_double(sign_of(x, 1, rows, cols, which), n);
                double e = error_of(y, fp32, n), limit = bf16_limit(in, m);
                /* The slope of these polynomials at 1 is not 0, so they amplify errors. */
                int steep = which == MSIGN_QUINTIC5 || which == MSIGN_QUINTIC5_NV;
                check(e <= limit * (steep ? 3 : 1),
                      "%s in bf16 of %d x %d, %s: %g from fp32, limit %g", table_names[which], rows,
                      cols, kind_names[kind], e, limit);
                const double *out = singular_values(to_double(y, n), rows, cols);
                check(out[0] <= most[which], "%s in bf16 of %d x %d, %s: a singular value of %g",
                      table_names[which], rows, cols, kind_names[kind], out[0]);
                check(in[m - 1] < (steep ? 1e-2 : 2e-3) * norm || out[m - 1] >= least[which],
                      "%s in bf16 of %d x %d, %s: a singular value of %g", table_names[which], rows,
                      cols, kind_names[kind], out[m - 1]);
            }
            release();
        }
}

/* x rounded to eight significant bits, ties to even: bf16 without its limits of the exponent. */
static double eight_bits(double x) {
    int e;
    double m = frexp((double)(float)x, &e);
    return ldexp(nearbyint(ldexp(m, 8)), e - 8);
}

/* One step with sums in double: A = X X^T, P = c A A + b A, Y = P X + a X. Each result is rounded
   once. */
static double *bf16_step(const double *X, int m, int n, const double *k) {
    double *A = product(X, 0, X, 1, m, m, n), *P = take((size_t)m * m), *Y = take((size_t)m * n);
    for (int i = 0; i < m * m; i++) A[i] = eight_bits(A[i]);
    multiply(P, A, 0, A, 0, m, m, m);
    for (int i = 0; i < m * m; i++) P[i] = eight_bits(k[2] * P[i] + k[1] * A[i]);
    multiply(Y, P, 0, X, 0, m, n, m);
    for (int i = 0; i < m * n; i++) Y[i] = eight_bits(Y[i] + k[0] * X[i]);
    return Y;
}

/* Every step against its definition. At most 2 % of the numbers may differ: those whose sums in
   another precision fall on the other side of a tie. */
static void test_bf16_step(void) {
    enum { M = 40, N = 48 };
    for (int i = 0; i < 8; i++) {
        MsignTable table = *msign_table(MSIGN_PE8);
        memcpy(table.abc[0], table.abc[i], sizeof table.abc[0]);
        table.steps = 1;
        double scale = i ? 0.1 : 0.02; /* keeps singular values below 1 */
        Mat X = mat_dense(normals_m(M * N, scale), 1, M, N), Y = mat_dense(take_m(M * N), 1, M, N);
        double *x = to_double(X.p, M * N);
        for (int e = 0; e < M * N; e++) x[e] = eight_bits(x[e]);
        const double *expected = bf16_step(x, M, N, table.abc[0]);
        Arena arena = arena_of(2 * arena_round(M * M));
        msign_bf16(&X, &Y, &table, &arena);
        int equal = 0;
        for (int e = 0; e < M * N; e++) equal += (double)X.p[e] == expected[e];
        check(equal >= M * N - M * N / 50, "step %d in bf16: %d numbers of %d are right", i, equal,
              M * N);
        release();
    }
}

/* sign(U X V) = U sign(X) V for rotations U and V, sign(X^T) = sign(X)^T, and sign(c X) = sign(X);
   for a power of two c, to the bit. */
static void test_bf16_equivariance(void) {
    for (int shape = 0; shape < BF16_SHAPES; shape++) {
        int rows = bf16_shapes[shape][0], cols = bf16_shapes[shape][1], m = min_int(rows, cols);
        size_t n = (size_t)rows * cols;
        const floatM *x = normals_m(n, 1), *y = sign_in(x, 1, rows, cols, MSIGN_PE8, 1);
        const double *d = to_double(x, n), *U = orthogonal(rows), *V = orthogonal(cols);
        double limit = 2 * bf16_limit(singular_values(d, rows, cols), m);
        double *turned = product(product(U, 0, d, 0, rows, cols, rows), 0, V, 0, rows, cols, cols);
        double *Uy = product(U, 0, to_double(y, n), 0, rows, cols, rows);
        double *expected = product(Uy, 0, V, 0, rows, cols, cols);
        double e =
            error_of(sign_in(to_floatM(turned, n), 1, rows, cols, MSIGN_PE8, 1), expected, n);
        check(e <= limit, "bf16 sign of %d x %d, turned: %g, limit %g", rows, cols, e, limit);
        const floatM *t = sign_in(transposed(x, rows, cols), 1, cols, rows, MSIGN_PE8, 1);
        e = error_of(transposed(t, cols, rows), to_double(y, n), n);
        check(e <= limit, "bf16 sign of %d x %d, transposed: %g, limit %g", rows, cols, e, limit);
        for (int power = 0; power < 2; power++) {
            floatM *scaled = copy_of(x, n), factor = power ? (floatM)(1.0 / 4096) : (floatM)3.3;
            for (size_t i = 0; i < n; i++) scaled[i] *= factor;
            const floatM *z = sign_in(scaled, 1, rows, cols, MSIGN_PE8, 1);
            e = error_of(z, to_double(y, n), n);
            check(power ? !memcmp(z, y, n * sizeof *y) : e <= limit,
                  "bf16 sign of %d x %d times %g: %g", rows, cols, (double)factor, e);
        }
        release();
    }
}

/* The sign in bf16 of zero is zero, and NaN stays visible. Heads stay in fp32, and every other
   result consists of bf16 numbers. Other items and the number of threads change no bit. */
static void test_bf16_extremes(void) {
    for (int shape = 0; shape < BF16_SHAPES; shape++) {
        int rows = bf16_shapes[shape][0], cols = bf16_shapes[shape][1], zeros = 1, narrow = 1,
            finite = 1;
        size_t n = (size_t)rows * cols;
        const floatM *zero = sign_in(take_m(n), 1, rows, cols, MSIGN_PE8, 1);
        for (size_t i = 0; i < n; i++) zeros &= zero[i] == 0;
        check(zeros, "the bf16 sign of zero, %d x %d, is not zero", rows, cols);
        floatM *x = normals_m(3 * n, 1), *y = NULL, *kept = copy_of(x, n);
        for (int threads = 1; threads <= 3; threads++) {
            use_threads(threads);
            const floatM *z = sign_in(x, 3, rows, cols, MSIGN_PE8, 1);
            if (!y) y = copy_of(z, 3 * n);
            check(!memcmp(y, z, 3 * n * sizeof *y), "bf16 sign of %d x %d with %d threads", rows,
                  cols, threads);
        }
        use_threads(2);
        check(!memcmp(y + n, sign_in(x + n, 1, rows, cols, MSIGN_PE8, 1), n * sizeof *y),
              "the bf16 sign of %d x %d depends on its neighbours", rows, cols);
        Mat rounded = mat_dense(copy_of(y, 3 * n), 3, rows, cols);
        la_round_bf16(rounded);
        narrow &= !memcmp(rounded.p, y, 3 * n * sizeof *y);
        check(narrow && !memcmp(x, kept, n * sizeof *x), "the bf16 sign of %d x %d is not bf16",
              rows, cols);
        x[n / 2] = (floatM)NAN;
        const floatM *bad = sign_in(x, 1, rows, cols, MSIGN_PE8, 1);
        for (size_t i = 0; i < n; i++) finite &= isfinite((double)bad[i]) != 0;
        check(!finite, "the bf16 sign of %d x %d hides NaN", rows, cols);
        release();
    }
    for (int wide = 0; wide < 2; wide++) {
        int rows = wide ? 16 : 64, cols = wide ? 64 : 16;
        floatM *x = normals_m((size_t)rows * cols, 1);
        check(!memcmp(sign_in(x, 1, rows, cols, MSIGN_PE8, 1), sign_of(x, 1, rows, cols, MSIGN_PE8),
                      (size_t)rows * cols * sizeof *x),
              "the sign of a head, %d x %d, is not in fp32", rows, cols);
    }
    release();
    check(la_sign_in_bf16(COMPUTE_BF16) == 1 && la_sign_in_bf16(COMPUTE_FP32) == 0 &&
              la_sign_in_bf16(COMPUTE_AUTO) == 0,
          "a backend with exact products signs in bf16 only if bf16 is asked for");
}

/* la_round_bf16 rounds to nearest, ties to even, for both signs, at both ends of the range, and
   through a view. */
static void test_bf16_rounding(void) {
    static const double pairs[][2] = {{1, 1},
                                      {-1.0078125, -1.0078125},
                                      {1.00390625, 1},
                                      {1.01171875, 1.015625},
                                      {1.0039065, 1.0078125},
                                      {-1.00390625, -1},
                                      {3.4e38, INFINITY},
                                      {3.38e38, 3.37623911e38},
                                      {1e-39, 11 * 9.18354962e-41},
                                      {0, 0},
                                      {INFINITY, INFINITY},
                                      {-INFINITY, -INFINITY}};
    enum { N = sizeof pairs / sizeof *pairs };
    floatM x[2 * N + 4];
    Mat column = {x, 1, 1, 0, 0, N + 1, 1, 2, 1};
    for (int i = 0; i < N; i++) {
        x[2 * i] = (floatM)pairs[i][0];
        x[2 * i + 1] = (floatM)0.1;
    }
    x[2 * N] = (floatM)NAN;
    la_round_bf16(column);
    for (int i = 0; i < N; i++)
        check((double)x[2 * i] == pairs[i][1] ||
                  relative_error((double)x[2 * i], pairs[i][1], 1e-300) < 1e-5,
              "%g in bf16 is %.9g, not %.9g", pairs[i][0], (double)x[2 * i], pairs[i][1]);
    check(isnan((double)x[2 * N]) && x[1] == (floatM)0.1, "NaN in bf16 is %g", (double)x[2 * N]);
}

/* gemm_symmetric against the definition, on views, with and without an old C. */
static void test_symmetric_product(void) {
    static const int sizes[] = {1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 33, 64, 100, 129, 260, 600};
    for (int s = 0; s < 16; s++)
        for (int form = 0; form < 4; form++) {
            int N = sizes[s], K = s % 3 == 0 ? 300 : 1 + s * 7, ta = form & 1, beta = form >> 1;
            if (N > 300) K = 20;
            size_t lda = (size_t)(ta ? N : K) + 3, ldc = (size_t)N + 5;
            floatM *A = normals_m(lda * (size_t)(ta ? K : N), 1), *C0 = normals_m(ldc * N, 1),
                   *first = NULL;
            for (int i = 0; i < N; i++)
                for (int j = 0; j < i; j++) C0[(size_t)j * ldc + i] = C0[(size_t)i * ldc + j];
            double *expected = take((size_t)N * N), norm = 0, off = 0;
            for (int i = 0; i < N; i++)
                for (int j = 0; j < N; j++) {
                    double sum = 0;
                    for (int k = 0; k < K; k++)
                        sum += (double)(ta ? A[k * lda + i] : A[i * lda + k]) *
                               (double)(ta ? A[k * lda + j] : A[j * lda + k]);
                    expected[i * N + j] =
                        0.5 * sum + (beta ? 2 * (double)C0[(size_t)i * ldc + j] : 0);
                }
            for (int threads = 1; threads <= 3; threads++) {
                use_threads(threads);
                floatM *C = copy_of(C0, ldc * N);
                gemm_symmetric(ta, !ta, N, K, (floatM)0.5, A, lda, A, lda, beta ? 2 : 0, C, ldc);
                if (!first) first = C;
                int equal = !memcmp(first, C, ldc * N * sizeof *C), mirrored = 1, outside = 1;
                for (int i = 0; i < N; i++) {
                    for (size_t j = (size_t)N; j < ldc; j++)
                        outside &= C[i * ldc + j] == C0[i * ldc + j];
                    for (int j = 0; j < N; j++) {
                        double e = (double)C[i * ldc + j] - expected[i * N + j];
                        mirrored &= C[i * ldc + j] == C[j * ldc + i];
                        off += e * e;
                        norm += expected[i * N + j] * expected[i * N + j];
                    }
                }
                check(equal && mirrored && outside,
                      "symmetric product %d x %d, K %d, form %d: equal bits with %d threads %d, "
                      "mirrored %d, padding kept %d",
                      N, N, K, form, threads, equal, mirrored, outside);
            }
            check(sqrt(off) <= TOL(2e-6, 1e-14) * sqrt(norm),
                  "symmetric product %d, K %d, form %d: %g", N, K, form, sqrt(off / norm));
            release();
        }
    use_threads(2);
}

/* The inverse root of Grams with eigenvalues from 1 down to 1/condition: against the exact root,
   within what rounding G may do; ||R W R - I|| for W = G + damping I; and equal bits for every
   number of threads. */
static void test_root(void) {
    static const double conditions[] = {1, 10, 1e3, 1e5, 1e7, 1e9};
    for (int c = 0; c < 6; c++)
        for (int k = 1; k <= 64; k = k < 4 ? k + 1 : 4 * k) {
            enum { ITEMS = 3 };
            size_t kk = (size_t)k * k;
            floatM *G = take_m(ITEMS * kk), *first = NULL;
            double *exact[ITEMS];
            for (int i = 0; i < ITEMS; i++) {
                double *U = orthogonal(k), *US = take(kk);
                for (size_t j = 0; j < kk; j++)
                    US[j] =
                        U[j] * pow(conditions[c], k > 1 ? -(double)(j % k) / (k - 1) : 0) * (i + 1);
                double *W = product(US, 0, U, 1, k, k, k);
                for (size_t j = 0; j < kk; j++)
                    G[i * kk + j] = (floatM)(0.5 * (W[j] + W[(j % k) * k + j / k]));
                double *stored = take(kk);
                for (size_t j = 0; j < kk; j++) stored[j] = (double)G[i * kk + j];
                exact[i] = exact_rroot(stored, k, 1e-5);
            }
            for (int threads = 1; threads <= 3; threads++) {
                use_threads(threads);
                floatM *g = copy_of(G, ITEMS * kk), *r = take_m(ITEMS * kk);
                run_invroot(mat_dense(r, ITEMS, k, k), mat_dense(g, ITEMS, k, k), 1e-5, 1,
                            ROOT_CANS25);
                if (!first) first = r;
                check(!memcmp(first, r, ITEMS * kk * sizeof *r), "root of %d x %d with %d threads",
                      k, k, threads);
            }
            double kappa = fmin(conditions[c], 1e5); /* the damping of 1e-5 limits the condition */
            for (int i = 0; i < ITEMS; i++) {
                double e = error_of(first + i * kk, exact[i], kk);
                check(e < invroot_bound(kappa), "root of %d x %d, condition %g: error %g", k, k,
                      conditions[c], e);
                double *R = take(kk), *RW = take(kk), *W = take(kk), gap;
                for (size_t j = 0; j < kk; j++) {
                    R[j] = (double)first[i * kk + j];
                    W[j] = (double)G[i * kk + j] + (j % (k + 1) == 0 ? 1e-5 : 0);
                }
                multiply(RW, R, 0, W, 0, k, k, k);
                gap = root_gap(product(RW, 0, R, 0, k, k, k), k);
                /* R W R has the error of R twice. */
                check(gap < TOL(4e-7, 4e-15) * sqrt(k) * (40 + kappa),
                      "root of %d x %d, condition %g: ||R W R - I|| = %g", k, k, conditions[c],
                      gap);
            }
            release();
        }
    use_threads(2);
}

/* A power of two times X has the sign of X to the bit, by every table, in fp32 and in bf16, from
   the smallest normal floats to norms that no float holds. */
static void test_sign_scale(void) {
    const int all = (int)SHAPES + (int)BF16_SHAPES;
    for (int s = 0; s < all; s++)
        for (int which = 0; which < 4; which++) {
            int bf16 = s >= SHAPES;
            int rows = bf16 ? bf16_shapes[s - SHAPES][0] : shapes[s][0];
            int cols = bf16 ? bf16_shapes[s - SHAPES][1] : shapes[s][1];
            size_t n = (size_t)rows * cols;
            const floatM *x = near_one(n), *sign = sign_in(x, 1, rows, cols, which, bf16);
            for (int i = -1; i <= SCALES; i += SPARSE) {
                int k = i < 0 ? -126 : i == SCALES ? 126 : scale_exponents[i];
                const floatM *y = sign_in(times_power(x, n, k), 1, rows, cols, which, bf16);
                check(!memcmp(y, sign, n * sizeof *y), "%s%s of %d x %d times 2^%d is off by %g",
                      table_names[which], bf16 ? " in bf16" : "", rows, cols, k,
                      relative_l2_md(y, to_double(sign, n), n, 1e-30));
            }
            release();
        }
}

static const double root_powers[] = {1, 0.5, 0.25, 0.75, 1.5, 2, 0.6};
static const char *const root_names[] = {"cans25", "cans12", "eigh", "pe7"};

/* The root of 2^k (G + damping I) is 2^(-k power/2) times that of G + damping I: to the bit where
   that factor is a power of two, by every method. */
static void test_root_scale(void) {
    static const int sizes[] = {1, 2, 7, 24, 40};
    for (int s = 0; s < 5; s++)
        for (int which = 0; which < 4; which++)
            for (int p = 0; p < COUNT_OF(root_powers); p++) {
                int k = sizes[s], damped = (s + p) % 2;
                size_t kk = (size_t)k * k;
                double power = root_powers[p];
                /* Multiples of 1/16, so that they stay exact; the diagonal dominates. */
                floatM *G = take_m(kk), *root = take_m(kk);
                for (int i = 0; i < k; i++)
                    for (int j = i; j < k; j++)
                        G[i * k + j] = G[j * k + i] =
                            (floatM)(i == j ? 2 * k + i : nearbyint(16 * normal()) / 16);
                run_invroot(mat_dense(root, 1, k, k), mat_dense(copy_of(G, kk), 1, k, k),
                            damped ? 0.25 : 0, power, which);
                check(!*why_rootless(), "%s of a definite matrix", root_names[which]);
                for (int i = 0; i < SCALES; i += SPARSE) {
                    int e = scale_exponents[i];
                    floatM *r = take_m(kk);
                    run_invroot(mat_dense(r, 1, k, k), mat_dense(times_power(G, kk, e), 1, k, k),
                                damped ? ldexp(0.25, e) : 0, power, which);
                    double off = 0, size = 0, back = pow(2, e * power / 2);
                    for (size_t j = 0; j < kk; j++) {
                        off = fmax(off, fabs((double)r[j] * back - (double)root[j]));
                        size = fmax(size, fabs((double)root[j]));
                    }
                    /* pow of a double is not exact for other powers. */
                    int exact = power == 1 || (which != ROOT_EIGH && power != 0.6);
                    check(off <= (exact ? 0 : TOL(1e-6, 1e-14)) * size && !*why_rootless(),
                          "%s, power %g, of %d x %d times 2^%d: off by %g", root_names[which],
                          power, k, k, e, off / size);
                }
                release();
            }
}

/* A matrix that is not positive definite has no inverse root by any method, however small it is;
   nor has one that is not finite. Zero has one, and so have the others with enough damping. */
static void test_rootless(void) {
    enum { K = 9, KK = K * K, NEGATIVE, ALL_NEGATIVE, SINGULAR, EMPTY_ROW, SPOILT, ZERO, END };
    for (int which = 0; which < 3; which++)
        for (int p = 0; p < COUNT_OF(root_powers); p++)
            for (int kind = NEGATIVE; kind < END; kind++)
                for (int damped = 0; damped < 2; damped++)
                    for (int e = -120; e <= 96; e += 72) {
                        floatM *G = take_m(KK), *root = take_m(KK);
                        for (int i = 0; i < KK; i++) {
                            int diagonal = i % (K + 1) == 0;
                            if (kind == SINGULAR) G[i] = 1; /* rank 1 */
                            else G[i] = (floatM)(diagonal && kind != ZERO);
                            if (kind == ALL_NEGATIVE) G[i] = -G[i];
                        }
                        if (kind == NEGATIVE) G[KK - 1] = (floatM)-0x1p-6;
                        if (kind == EMPTY_ROW) G[KK - 1] = 0;
                        if (kind == SPOILT) G[3] = G[3 * K] = (floatM)INFINITY;
                        run_invroot(mat_dense(root, 1, K, K),
                                    mat_dense(times_power(G, KK, e), 1, K, K),
                                    damped ? ldexp(2, e) : 0, root_powers[p], which);
                        const char *why = why_rootless();
                        const char *expected = kind == SPOILT           ? "not finite"
                                               : damped || kind == ZERO ? ""
                                                                        : "not positive definite";
                        check(*expected ? strstr(why, expected) != NULL : !*why,
                              "%s, power %g, matrix %d times 2^%d, damped %d: \"%s\", not \"%s\"",
                              root_names[which], root_powers[p], kind, e, damped, why, expected);
                        /* CUDA does nothing more after a failure. */
                        int nan = isnan((double)root[0]) != 0, failed = *expected != 0;
                        check(nan == failed || (failed && LA_QUEUED),
                              "%s, power %g, matrix %d: a root of %g", root_names[which],
                              root_powers[p], kind, (double)root[0]);
                        release();
                    }
}

static void test_accuracy_forms(void) {
    for (add_free = 0; add_free < 2; add_free++) test_accuracy();
    add_free = 0;
}

static void test_same_bits_forms(void) {
    for (add_free = 0; add_free < 2; add_free++) test_same_bits();
    add_free = 0;
}

static const Test tests[] = {
    TEST(accuracy_forms), TEST(same_bits_forms), TEST(extremes),      TEST(symmetric_product),
    TEST(root),           TEST(sign_scale),      TEST(root_scale),    TEST(rootless),
    TEST(bf16_rounding),  TEST(bf16_step),       TEST(bf16_accuracy), TEST(bf16_equivariance),
    TEST(bf16_extremes)};

int main(int argc, char **argv) {
    add_free = 0;
    use_threads(2);
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
