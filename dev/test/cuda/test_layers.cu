/*
Tests of llmc/cuda/layers.cuh: each layer against its CPU twin, over shapes that take every path of
the kernels. The twin reads numbers rounded like the device's. Runs on a GPU and under the emulator.

Tolerances, relative to the norm of the result. SUMS: for numbers in floatM, where the order of
sums differs; the twin's sums, one number after the other, err most; __expf and rsqrtf err by a
few units in the last place. ROUNDED: for n numbers in floatX, each rounded once, in bf16 by at
most 2^-8 and by 1.5e-3 in the mean square. Few numbers may all be near the most; the norm of a
thousand or more is near the mean, and is allowed five thirds of it.
*/
#include "../../../llmc/cuda/layers.cuh"
#include "../values.h"
#include "device.h"
#include "twin.h"

#define SUMS 1e-5
#define VALUE_MOST 4e-3   /* 2^-8 */
#define VALUE_MEAN 2.5e-3 /* 5/3 of 1.5e-3 */
#define ROUNDED(N) (sizeof(floatX) == 4 ? SUMS : (N) < 1000 ? VALUE_MOST : VALUE_MEAN)

/* Names the case in messages. Each name has a stream of random numbers of its own. */
#define LABEL(...)                                                                                 \
    char what[160];                                                                                \
    snprintf(what, sizeof what, __VA_ARGS__);                                                      \
    draw_for(what)

/* Compares n device numbers with the twin's. `terms` is the norm of the terms that were added
   up; it counts where it is larger than the norm of the twin's numbers. */
template <typename T>
static void like(const char *what, const T *ours, const float *theirs, size_t n, double allowed,
                 double terms = 1e-3) {
    double e = relative_l2_ff(on_host(ours, n), theirs, n, terms);
    check(e <= allowed, "%s: error %.2e, allowed %.2e", what, e, allowed);
}
static void like(const char *what, const floatX *ours, const float *theirs, size_t n) {
    like(what, ours, theirs, n, ROUNDED(n));
}

template <typename T> static char *bytes_of(const T *p, size_t n) {
    char *bytes = (char *)malloc(n * sizeof(T) + 1);
    if (!bytes) die("test: out of memory");
    MUST(cudaMemcpyAsync(bytes, p, n * sizeof(T), cudaMemcpyDeviceToHost, cm_gpu.stream));
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    return bytes;
}
template <typename T> static int same_bits(const T *a, const T *b, size_t n) {
    char *x = bytes_of(a, n), *y = bytes_of(b, n);
    int same = !memcmp(x, y, n * sizeof(T));
    free(x);
    free(y);
    return same;
}
template <typename T> static T *copy_of(const T *p, size_t n) {
    T *q = device_array<T>(n);
    MUST(cudaMemcpyAsync(q, p, n * sizeof(T), cudaMemcpyDeviceToDevice, cm_gpu.stream));
    return q;
}
static float *host_copy(const float *p, size_t n) {
    return (float *)memcpy(host_array(n), p, n * sizeof *p);
}

/* Host numbers on the device, `shift` elements after an aligned address. */
template <typename T> static T *shifted(float *from, size_t n, int shift) {
    T *p = device_array<T>(n + (size_t)shift) + shift;
    put(p, from, n);
    return p;
}

static int any_nan(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (isnan(x[i])) return 1;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */

static int below(int n) { return (int)((draw() + 1) / 2 * n); }

enum { TOKENS_RANDOM, TOKENS_EQUAL, TOKENS_ONCE, TOKENS_RUNS, TOKENS_FEW, TOKENS_KINDS };

/* N tokens of a vocabulary of N + 3. */
static void make_tokens(int *tokens, int N, int kind) {
    for (int n = 0; n < N; n++) {
        if (kind == TOKENS_RANDOM) tokens[n] = below(N + 3);
        else if (kind == TOKENS_EQUAL) tokens[n] = N + 2;
        else if (kind == TOKENS_ONCE) tokens[n] = N - 1 - n;
        else if (kind == TOKENS_RUNS)
            tokens[n] = n / 32 % 3; /* sorted, the runs end with a chunk */
        else tokens[n] = below(10) ? 1 : below(3);
    }
}

/* Tokens in the device's form: tokens, then their sorted positions. */
static int *tokens_on_device(const int *tokens, int N, int vocab) {
    int *both = (int *)malloc(2 * (size_t)N * sizeof *both);
    if (!both) die("test: out of memory");
    memcpy(both, tokens, (size_t)N * sizeof *both);
    tokens_sort(both + N, tokens, N, vocab);
    int *p = ints_on_device(both, 2 * (size_t)N);
    free(both);
    return p;
}

/* Whether tokens_sort refuses tokens, and records why. */
static int sort_fails(const int *tokens, int N, int vocab) {
    int sorted[8], status = tokens_sort(sorted, tokens, N, vocab);
    int recorded = device_failure() && strstr(device_failure(), "the vocabulary has");
    cm_gpu.failure[0] = 0;
    return status == -1 && recorded;
}

static void test_sort(void) {
    enum { N = 500 };
    int tokens[N], sorted[N];
    const int bad[][3] = {{0, 5, 1}, {0, -1, 1}, {0, 1 << 30, 2}};
    for (int i = 0; i < 3; i++) check(sort_fails(bad[i], 3, 5), "bad tokens %d are sorted", i);
    check(sort_fails(bad[0], 3, 0), "tokens of no vocabulary are sorted");
    check(!sort_fails(bad[0], 3, 6), "good tokens are not sorted");
    for (int kind = 0; kind < TOKENS_KINDS; kind++) {
        int wrong = 0;
        make_tokens(tokens, N, kind);
        tokens_sort(sorted, tokens, N, N + 3);
        for (int i = 1; i < N; i++) {
            int a = sorted[i - 1], b = sorted[i];
            wrong += tokens[a] > tokens[b] || (tokens[a] == tokens[b] && a >= b);
        }
        check(!wrong && sorted[0] >= 0, "tokens of kind %d: %d out of order", kind, wrong);
    }
}

static void embed_case(int B, int T, int C, int with_wpe, int kind, int shift) {
    int N = B * T, vocab = N + 3, *tokens = (int *)malloc((size_t)N * sizeof *tokens);
    size_t nx = (size_t)N * C, ne = (size_t)vocab * C, np = (size_t)T * C;
    LABEL("embed B %d T %d C %d wpe %d kind %d shift %d", B, T, C, with_wpe, kind, shift);
    make_tokens(tokens, N, kind);
    int *sorted = tokens_on_device(tokens, N, vocab);
    float *wte = random_array(ne, 1), *wpe = random_array(np, 1), *x = host_array(nx);
    floatX *wte_d = shifted<floatX>(wte, ne, shift), *wpe_d = on_device<floatX>(wpe, np);
    floatX *x_d = device_array<floatX>(nx);
    cpu_embed_forward(x, tokens, wte, with_wpe ? wpe : NULL, B, T, C);
    embed_forward(x_d, sorted, wte_d, with_wpe ? wpe_d : NULL, B, T, C);
    like(what, x_d, x, nx);

    float *dx = random_array(nx, 1), *dwte = random_array(ne, 1), *dwpe = random_array(np, 1);
    floatX *dx_d = shifted<floatX>(dx, nx, shift);
    floatM *dwte_d = on_device<floatM>(dwte, ne), *dwpe_d = on_device<floatM>(dwpe, np);
    floatM *again = copy_of(dwte_d, ne);
    embed_backward(dwte_d, with_wpe ? dwpe_d : NULL, dx_d, sorted, B, T, C);
    embed_backward(again, NULL, dx_d, sorted, B, T, C);
    cpu_embed_backward(dwte, with_wpe ? dwpe : NULL, dx, tokens, B, T, C);
    like(what, dwte_d, dwte, ne, SUMS);
    like(what, dwpe_d, dwpe, np, SUMS);
    check(same_bits(dwte_d, again, ne), "%s: two runs differ", what);
    free(tokens);
    release();
}

static void test_embed(void) {
    static const int shapes[][3] = {{1, 1, 8},   {2, 3, 7},  {3, 11, 264},
                                    {2, 16, 16}, {4, 24, 8}, {19, 2, 40}};
    for (int i = 0; i < 6; i++)
        for (int kind = 0; kind < TOKENS_KINDS; kind++)
            embed_case(shapes[i][0], shapes[i][1], shapes[i][2], (i + kind) % 2, kind, 0);
    embed_case(2, 650, 8, 1, TOKENS_EQUAL, 0); /* 41 chunks of one token */
    embed_case(2, 650, 16, 0, TOKENS_FEW, 0);
    embed_case(1, 100, 3, 1, TOKENS_FEW, 0);
    embed_case(2, 20, 16, 1, TOKENS_RANDOM, 1);
}

/* ---------------------------------------------------------------------------------------------- */

static const int norm_shapes[][2] = {{1, 8},    {5, 7},    {9, 64},   {37, 768}, {11, 1000},
                                     {3, 1032}, {4, 2048}, {3, 2056}, {2, 4616}, {130, 33},
                                     {701, 64}, {1, 3},    {2, 16384}};
enum { NORM_SHAPES = sizeof norm_shapes / sizeof norm_shapes[0] };

static void norm_forward_case(int N, int C, int kind, int with_delta, int in_place, int shift) {
    size_t n = (size_t)N * C;
    LABEL("norm_forward N %d C %d kind %s delta %d in place %d shift %d", N, C, all_norms[kind],
          with_delta, in_place, shift);
    int bias = norm_is_centred((NormKind)kind);
    double eps = 1e-3;
    float *x = random_array(n, 2), *delta = random_array(n, 1), *gain = random_array((size_t)C, 1);
    float *b = random_array((size_t)C, 1), *y = host_array(n), *sum = host_array(n);
    float *mean = host_array((size_t)N), *rstd = host_array((size_t)N);
    for (size_t i = 0; i < n; i++) x[i] += 3; /* so that the mean matters */
    floatX *x_d = shifted<floatX>(x, n, shift), *delta_d = on_device<floatX>(delta, n);
    floatX *y_d = device_array<floatX>(n),
           *out_d = in_place ? x_d : device_array<floatX>(n + 1) + shift;
    floatX *before = copy_of(x_d, n), *again = device_array<floatX>(n);
    floatM *gain_d = on_device<floatM>(gain, (size_t)C), *b_d = on_device<floatM>(b, (size_t)C);
    floatM *mean_d = device_array<floatM>((size_t)N), *rstd_d = device_array<floatM>((size_t)N);
    norm_forward(y_d, mean_d, rstd_d, out_d, x_d, with_delta ? delta_d : NULL, gain_d,
                 bias ? b_d : NULL, N, C, kind, eps);
    if (with_delta) { /* then y must follow from the stored sum, to the bit */
        cpu_norm_forward(y, mean, rstd, sum, x, delta, gain, bias ? b : NULL, N, C, kind, eps);
        like(what, out_d, sum, n);
        floatM *m = device_array<floatM>((size_t)N), *r = device_array<floatM>((size_t)N);
        norm_forward(again, m, r, NULL, out_d, NULL, gain_d, bias ? b_d : NULL, N, C, kind, eps);
        check(same_bits(again, y_d, n) && same_bits(r, rstd_d, (size_t)N) &&
                  same_bits(m, mean_d, (size_t)N),
              "%s: not the norm of the stored sum", what);
        x = on_host(out_d, n);
    } else if (!in_place) {
        float *left = on_host(out_d, n);
        check(any_nan(left, 1) && any_nan(left + n - 1, 1), "%s: writes x_out", what);
    }
    if (!in_place) check(same_bits(before, x_d, n), "%s: the input changed", what);
    cpu_norm_forward(y, mean, rstd, NULL, x, NULL, gain, bias ? b : NULL, N, C, kind, eps);
    like(what, y_d, y, n);
    like(what, mean_d, mean, (size_t)N, SUMS,
         sqrt((double)N)); /* of numbers of size 1, whose mean may be near 0 by chance */
    like(what, rstd_d, rstd, (size_t)N, SUMS);
    release();
}

/* alias: 0 none; 1 dres is dx; 2 dy is dx; 3 both; 4 no dres; 5 no dres, and dy is dx. */
static void norm_backward_case(int N, int C, int kind, int alias, int shift) {
    size_t n = (size_t)N * C, c = (size_t)C;
    LABEL("norm_backward N %d C %d kind %s alias %d shift %d", N, C, all_norms[kind], alias, shift);
    int bias = norm_is_centred((NormKind)kind), both = alias == 3;
    float *x = random_array(n, 2), *gain = random_array(c, 1), *dy = random_array(n, 1);
    float *dres = both ? dy : random_array(n, 1), *dgain = random_array(c, 1),
          *dbias = random_array(c, 1);
    float *mean = host_array((size_t)N), *rstd = host_array((size_t)N), *y = host_array(n);
    float *dx = host_array(n);
    floatX *x_d = shifted<floatX>(x, n, shift), *dy_d = on_device<floatX>(dy, n);
    floatX *dres_d = both ? dy_d : on_device<floatX>(dres, n), *dx_d = device_array<floatX>(n);
    cpu_norm_forward(y, mean, rstd, NULL, x, NULL, gain, bias ? dbias : NULL, N, C, kind, 1e-3);
    floatM *mean_d = on_device<floatM>(mean, (size_t)N),
           *rstd_d = on_device<floatM>(rstd, (size_t)N);
    floatM *gain_d = on_device<floatM>(gain, c), *dgain_d = on_device<floatM>(dgain, c);
    floatM *dbias_d = on_device<floatM>(dbias, c);
    floatM *dgain_2 = copy_of(dgain_d, c), *dbias_2 = copy_of(dbias_d, c);
    float *dsum = random_array(c, 1);
    floatM *dsum_d = on_device<floatM>(dsum, c), *dsum_2 = copy_of(dsum_d, c);
    floatX *dx_2 = device_array<floatX>(n), *dy_2 = copy_of(dy_d, n), *x_2 = copy_of(x_d, n);
    const floatX *res_d = alias >= 4 ? NULL : dres_d;

    norm_backward(dx_2, dgain_2, bias ? dbias_2 : NULL, NULL, dy_d, res_d, x_d, gain_d, mean_d,
                  rstd_d, N, C, kind);
    check(same_bits(dy_d, dy_2, n) && same_bits(x_d, x_2, n), "%s: an input changed", what);
    if (alias == 1) dx_d = dres_d;
    if (alias == 2 || alias == 3 || alias == 5) dx_d = dy_d;
    norm_backward(dx_d, dgain_d, bias ? dbias_d : NULL, dsum_d, dy_d, res_d, x_d, gain_d, mean_d,
                  rstd_d, N, C, kind);
    check(same_bits(dx_d, dx_2, n) && same_bits(dgain_d, dgain_2, c) &&
              same_bits(dbias_d, dbias_2, c),
          "%s: two runs differ", what);

    cpu_norm_backward(dx, dgain, bias ? dbias : NULL, NULL, dy, res_d ? dres : NULL, x, gain, mean,
                      rstd, N, C, kind);
    double terms = 0;
    for (size_t i = 0; i < n; i++) terms += pow((double)rstd[i / c] * dy[i] * gain[i % c], 2);
    like(what, dx_2, dx, n, ROUNDED(n), sqrt(terms));
    float *rows = on_host(dx_d, n);
    for (size_t i = 0; i < n; i++) dsum[i % c] += rows[i];
    like(what, dsum_d, dsum, c, SUMS);
    check(!same_bits(dsum_2, dsum_d, c), "%s: no sum of dx", what);
    like(what, dgain_2, dgain, c, SUMS);
    like(what, dbias_2, dbias, c, SUMS); /* unchanged without a bias */
    release();
}

static void test_norm(void) {
    for (int i = 0; i < NORM_SHAPES; i++) {
        int N = norm_shapes[i][0], C = norm_shapes[i][1];
        for (int kind = 0; kind < COUNT_OF(all_norms); kind++) {
            norm_forward_case(N, C, kind, (i + kind) % 2 == 0, 0, 0);
            norm_backward_case(N, C, kind, (2 * i + 3 * kind) % 6, 0);
            if (C < 2000) norm_forward_case(N, C, kind, 1, 1, 0);
        }
    }
    for (int alias = 0; alias < 6; alias++)
        for (int kind = 0; kind < COUNT_OF(all_norms); kind++) {
            norm_backward_case(21, 264, kind, alias, 0); /* the fused kernel */
            norm_backward_case(21, 13, kind, alias, 0);
        }
    norm_forward_case(3, 64, NORM_LAYERNORM, 1, 0, 1); /* unaligned */
    norm_forward_case(3, 2056, NORM_LAYERNORM, 1, 1, 0);
    norm_backward_case(9, 64, NORM_LAYERNORM, 0, 1);
    norm_backward_case(2200, 8, NORM_LAYERNORM, 0, 0); /* 275 partial sums */
}

/* A NaN in a row makes that row NaN, and no other row. */
static void test_norm_nan(void) {
    enum { N = 4, C = 64 };
    float *x = random_array(N * C, 1), *ones = random_array(C, 1);
    x[2 * C + 5] = NAN;
    floatX *x_d = on_device<floatX>(x, N * C), *y_d = device_array<floatX>(N * C);
    floatM *m = device_array<floatM>(N), *r = device_array<floatM>(N),
           *gain = on_device<floatM>(ones, C);
    norm_forward(y_d, m, r, NULL, x_d, NULL, gain, gain, N, C, NORM_LAYERNORM, 1e-5);
    float *y = on_host(y_d, N * C);
    check(!any_nan(y, 2 * C) && isnan(y[2 * C]) && isnan(y[3 * C - 1]) && !any_nan(y + 3 * C, C),
          "a NaN does not stay in its row");
    release();
}

/* ---------------------------------------------------------------------------------------------- */

static void linear_case(int N, int I, int O, int bias, int shift) {
    size_t nx = (size_t)N * I, nw = (size_t)O * I, ny = (size_t)N * O, o = (size_t)O;
    LABEL("linear N %d I %d O %d bias %d shift %d", N, I, O, bias, shift);
    float *x = random_array(nx, 1), *w = random_array(nw, 1), *b = random_array(o, 1),
          *y = host_array(ny);
    floatX *x_d = on_device<floatX>(x, nx), *w_d = on_device<floatX>(w, nw),
           *b_d = on_device<floatX>(b, o);
    floatX *y_d = device_array<floatX>(ny);
    linear_forward(y_d, x_d, w_d, bias ? b_d : NULL, N, I, O);
    cpu_linear_forward(y, x, w, bias ? b : NULL, N, I, O);
    like(what, y_d, y, ny);

    float *dy = random_array(ny, 1), *dx = host_array(nx), *dw = random_array(nw, 1);
    float *db = random_array(o, 1);
    floatX *dy_d = shifted<floatX>(dy, ny, shift), *dx_d = device_array<floatX>(nx);
    floatM *dw_d = on_device<floatM>(dw, nw), *db_d = on_device<floatM>(db, o),
           *db_2 = copy_of(db_d, o);
    linear_backward(dx_d, dw_d, bias ? db_d : NULL, dy_d, x_d, w_d, N, I, O, 1);
    cpu_linear_backward(dx, dw, bias ? db : NULL, dy, x, w, N, I, O, 1);
    like(what, dx_d, dx, nx);
    like(what, dw_d, dw, nw, SUMS);
    like(what, db_d, db, o, SUMS);
    if (bias) {
        linear_backward(NULL, dw_d, db_2, dy_d, x_d, w_d, N, I, O, 1); /* without dx */
        check(same_bits(db_d, db_2, o), "%s: two runs differ", what);
        cpu_linear_backward(NULL, dw, db, dy, x, w, N, I, O, 1);
        like(what, dw_d, dw, nw, SUMS); /* added to twice */
    }
    MUST(
        /* NaN, which must not be read */
        cudaMemsetAsync(dw_d, 0xff, nw * sizeof *dw_d, cm_gpu.stream));
    linear_backward(NULL, dw_d, NULL, dy_d, x_d, w_d, N, I, O, 0);
    cpu_linear_backward(NULL, dw, NULL, dy, x, w, N, I, O, 0);
    like(what, dw_d, dw, nw, SUMS);
    release();
}

static void test_linear(void) {
    static const int shapes[][3] = {{1, 8, 8},    {5, 7, 3},    {37, 24, 40},  {17, 40, 264},
                                    {700, 8, 48}, {300, 3, 35}, {130, 8, 1032}};
    for (int i = 0; i < 7; i++) linear_case(shapes[i][0], shapes[i][1], shapes[i][2], 1, 0);
    linear_case(37, 24, 40, 0, 0);
    linear_case(70, 8, 16, 1, 1);
}

/* Every row of y is b, and nothing beyond y is written. */
static void bias_case(int N, int O, int shift) {
    size_t n = (size_t)N * (size_t)O, o = (size_t)O;
    LABEL("bias N %d O %d shift %d", N, O, shift);
    float *b = random_array(o, 1), *y = random_array(n + 1, 1);
    floatX *b_d = shifted<floatX>(b, o, shift), *y_d = shifted<floatX>(y, n + 1, shift);
    float last = y[n]; /* rounded as the device's */
    bias_forward(y_d, b_d, N, O);
    cpu_bias_forward(y, b, N, O);
    float *ours = on_host(y_d, n + 1);
    check(!memcmp(ours, y, n * sizeof *y), "%s: the rows are not b", what);
    check(ours[n] == last, "%s: a number beyond the rows changed", what);
    release();
}

static void test_bias(void) {
    bias_case(1, 1, 0);
    bias_case(5, 7, 1);
    bias_case(37, 264, 0);
    bias_case(1000, 33, 0);
}

/* C (M,N) = s op(A) op(B), or += with `add`, where the rows of A, B and C are `gap` numbers longer
   than what is used of them. The numbers of the gaps stay. */
template <typename OUT>
static void product_case(const char *type, int ta, int tb, int M, int N, int K, int gap, int shift,
                         int add) {
    int rows_a = ta ? K : M, lda = (ta ? M : K) + gap, rows_b = tb ? N : K,
        ldb = (tb ? K : N) + gap, ldc = N + gap;
    size_t na = (size_t)rows_a * lda, nb = (size_t)rows_b * ldb, nc = (size_t)M * ldc;
    LABEL("product in %s, ta %d tb %d M %d N %d K %d gap %d shift %d add %d", type, ta, tb, M, N, K,
          gap, shift, add);
    float *A = random_array(na, 1), *B = random_array(nb, 1), *C = random_array(nc, 1);
    floatX *A_d = shifted<floatX>(A, na, shift), *B_d = shifted<floatX>(B, nb, shift);
    OUT *C_d = shifted<OUT>(C, nc, shift), *again = shifted<OUT>(C, nc, shift);
    float *before = host_copy(C, nc);
    linear_product(ta, tb, M, N, K, -0.75, A_d, lda, B_d, ldb, add, C_d, ldc);
    linear_product(ta, tb, M, N, K, -0.75, A_d, lda, B_d, ldb, add, again, ldc);
    cpu_linear_product(ta, tb, M, N, K, -0.75, A, lda, B, ldb, add, C, ldc);
    check(!memcmp(bytes_of(C_d, nc), bytes_of(again, nc), nc * sizeof(OUT)), "%s: two runs differ",
          what);
    float *ours = on_host(C_d, nc), *used = host_array((size_t)M * N), *want;
    want = host_array((size_t)M * N);
    int kept = 1;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < ldc; j++) {
            size_t at = (size_t)i * ldc + j;
            if (j >= N) kept &= ours[at] == before[at];
            else used[(size_t)i * N + j] = ours[at], want[(size_t)i * N + j] = C[at];
        }
    check(kept, "%s: numbers between the rows changed", what);
    double e = relative_l2_ff(used, want, (size_t)M * N, 1e-3);
    double allowed = sizeof(OUT) == sizeof(floatM) ? SUMS : ROUNDED((size_t)M * N);
    check(e <= allowed, "%s: error %.2e, allowed %.2e", what, e, allowed);
    release();
}

/* The products of factors (llmc/linear.h): any rank, parts that begin anywhere in a row. */
static void test_product(void) {
    static const int shapes[][5] = {/* M N K gap shift */
                                    {37, 3, 24, 6, 3}, {40, 24, 5, 0, 0},   {16, 64, 8, 8, 8},
                                    {1, 9, 1, 2, 1},   {130, 17, 70, 1, 0}, {65, 1, 33, 3, 2}};
    for (int i = 0; i < COUNT_OF(shapes); i++)
        for (int bits = 0; bits < 8; bits++) {
            const int *s = shapes[i];
            product_case<floatX>("floatX", bits & 1, bits >> 1 & 1, s[0], s[1], s[2], s[3], s[4],
                                 bits >> 2);
            product_case<floatM>("floatM", bits & 1, bits >> 1 & 1, s[0], s[1], s[2], s[3], s[4],
                                 bits >> 2);
        }
}

/* ---------------------------------------------------------------------------------------------- */

static void qk_case(int B, int T, int NH, int NKV, int HS, int qk_norm, int rope, int first,
                    int shift) {
    int N = B * T, heads = NH + NKV, row = (heads + NKV) * HS;
    size_t n = (size_t)N * row, nr = (size_t)N * heads, nt = (size_t)(first + T) * (size_t)(HS / 2);
    double eps = 1e-3;
    LABEL("qk B %d T %d NH %d NKV %d HS %d norm %d rope %d first %d shift %d", B, T, NH, NKV, HS,
          qk_norm, rope, first, shift);
    float *qkv = random_array(n, 2), *rstd = host_array(nr), *cosine = host_array(nt),
          *sine = host_array(nt);
    if (nt) rope_table(cosine, sine, first + T, HS, POS_ROPE, 100);
    floatX *qkv_d = shifted<floatX>(qkv, n, shift), *again = shifted<floatX>(qkv, n, shift);
    floatM *rstd_d = device_array<floatM>(nr);
    floatM *cosine_d = rope ? on_device<floatM>(cosine, nt) : NULL;
    floatM *sine_d = rope ? on_device<floatM>(sine, nt) : NULL;
    qk_forward(qkv_d, rstd_d, cosine_d, sine_d, N, T, first, NH, NKV, HS, qk_norm, eps);
    qk_forward(again, rstd_d, cosine_d, sine_d, N, T, first, NH, NKV, HS, qk_norm, eps);
    check(same_bits(qkv_d, again, n), "%s: two runs differ", what);
    float *before = host_copy(qkv, n);
    cpu_qk_forward(qkv, rstd, rope ? cosine : NULL, sine, N, T, first, NH, NKV, HS, qk_norm, eps);
    like(what, qkv_d, qkv, n);
    if (qk_norm) like(what, rstd_d, rstd, nr, SUMS);
    float *after = on_host(qkv_d, n);
    int same = 1;
    for (size_t i = 0; i < n; i++)
        same &= i % (size_t)row < (size_t)heads * HS || after[i] == before[i];
    check(same, "%s: values changed", what);
    if (first) { /* the backward pass does not use it */
        release();
        return;
    }

    float *d = random_array(n, 1);
    put(qkv_d, qkv, n); /* the twin's result, rounded on both sides */
    floatX *d_d = shifted<floatX>(d, n, shift), *d_2 = copy_of(d_d, n), *kept = copy_of(qkv_d, n);
    if (qk_norm) put(rstd_d, rstd, nr);
    qk_backward(d_d, qkv_d, rstd_d, cosine_d, sine_d, N, T, NH, NKV, HS, qk_norm);
    qk_backward(d_2, qkv_d, rstd_d, cosine_d, sine_d, N, T, NH, NKV, HS, qk_norm);
    cpu_qk_backward(d, qkv, rstd, rope ? cosine : NULL, sine, N, T, NH, NKV, HS, qk_norm);
    like(what, d_d, d, n);
    if (!shift) check(same_bits(d_d, d_2, n), "%s: two runs differ", what);
    check(same_bits(qkv_d, kept, n), "%s: an input changed", what);
    release();
}

static void test_qk(void) {
    static const int sizes[] = {2, 6, 16, 32, 64, 96, 128, 256, 500, 512, 1000, 1024};
    for (int i = 0; i < 12; i++)
        for (int mode = 1; mode < 4; mode++)
            qk_case(1, 3, 2, 1, sizes[i], mode & 1, mode >> 1, 0, 0);
    qk_case(2, 3, 40, 4, 64, 1, 1, 0, 0); /* more heads than a block has lanes */
    qk_case(2, 3, 70, 70, 16, 1, 1, 0, 0);
    qk_case(2, 2, 30, 1, 24, 1, 1, 0, 0);
    qk_case(3, 5, 3, 3, 64, 0, 0, 0, 0); /* nothing to do */
    qk_case(2, 2, 3, 1, 64, 1, 1, 5, 0);
    qk_case(2, 2, 3, 1, 6, 1, 1, 5, 0);
    qk_case(2, 2, 3, 1, 64, 1, 1, 0, 1);
}

static void test_rope_table(void) {
    enum { T = 9, HS = 16, N = T * HS / 2 };
    float ours[2][N], theirs[2][N];
    for (int pos = 0; pos < COUNT_OF(all_positions); pos++) {
        rope_table(ours[0], ours[1], T, HS, pos, 50);
        cpu_rope_table(theirs[0], theirs[1], T, HS, pos, 50);
        check(!memcmp(ours, theirs, sizeof ours), "rope_table of %s differs", all_positions[pos]);
    }
}

/* ---------------------------------------------------------------------------------------------- */

static void act_case(int N, int F, int act, int shift) {
    size_t n = (size_t)N * F, nh = n * (size_t)(1 + act_is_gated((ActKind)act));
    static const float hard[] = {0,    -0.0f, 30,    -30,    200,   -200,
                                 1e4f, -1e4f, 1e-6f, -1e-6f, 10.7f, -10.7f};
    LABEL("act %s N %d F %d shift %d", all_acts[act], N, F, shift);
    float *h = random_array(nh, 5), *y = host_array(n), *dy = random_array(n, 1),
          *dh = host_array(nh);
    floatX *h_d = shifted<floatX>(h, nh, shift), *y_d = device_array<floatX>(n);
    floatX *dy_d = on_device<floatX>(dy, n);
    floatX *dh_d = device_array<floatX>(nh), *kept = copy_of(h_d, nh),
           *dh_2 = device_array<floatX>(nh);
    act_forward(y_d, h_d, N, F, act);
    act_backward(dh_d, dy_d, h_d, N, F, act);
    act_backward(dh_2, dy_d, h_d, N, F, act);
    cpu_act_forward(y, h, N, F, act);
    cpu_act_backward(dh, dy, h, N, F, act);
    like(what, y_d, y, n);
    like(what, dh_d, dh, nh);
    check(same_bits(h_d, kept, nh), "%s: an input changed", what);
    check(same_bits(dh_d, dh_2, nh), "%s: two runs differ", what);

    size_t H = nh / (size_t)N;
    float *db = random_array(H, 1), *rows = on_host(dh_d, nh);
    floatM *db_d = on_device<floatM>(db, H), *db_2 = copy_of(db_d, H);
    floatX *dh_3 = device_array<floatX>(nh);
    act_backward_sums(dh_3, db_d, dy_d, h_d, N, F, act);
    act_backward_sums(dh_3, db_2, dy_d, h_d, N, F, act);
    check(same_bits(dh_d, dh_3, nh), "%s: with the bias gradient the gradient differs", what);
    check(same_bits(db_d, db_2, H), "%s: two bias gradients differ", what);
    for (size_t i = 0; i < nh; i++) db[i % H] += rows[i];
    like(what, db_d, db, H, SUMS);

    for (size_t i = 0; i < n; i++) {
        h[i] = hard[i % 12];
        dy[i] = 1;
    } /* number by number */
    put(h_d, h, nh);
    put(dy_d, dy, n);
    act_forward(y_d, h_d, N, F, act);
    act_backward(dh_d, dy_d, h_d, N, F, act);
    cpu_act_forward(y, h, N, F, act);
    cpu_act_backward(dh, dy, h, N, F, act);
    float *y_h = on_host(y_d, n), *dh_h = on_host(dh_d, nh);
    double worst = 0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, relative_error(y_h[i], y[i], 1));
    for (size_t i = 0; i < nh; i++) worst = fmax(worst, relative_error(dh_h[i], dh[i], 1));
    check(worst <= ROUNDED(1), "%s: error %.2e of a single number", what, worst);

    h[0] = NAN;
    put(h_d, h, nh);
    act_forward(y_d, h_d, N, F, act);
    act_backward(dh_d, dy_d, h_d, N, F, act);
    if (act != ACT_RELU2) /* max(x, 0) is 0 for NaN */
        check(isnan(on_host(y_d, 1)[0]) && isnan(on_host(dh_d, 1)[0]), "%s: NaN vanishes", what);
    release();
}

/* By how much an error of h that is a part of each element grows in y = act(h): ||h act'(h)|| /
   ||y||, with the absolute values of gate and gated added. */
static double act_condition(const float *y, const float *h, int N, int F, int act) {
    size_t ny = (size_t)N * F, parts = (size_t)(1 + act_is_gated((ActKind)act));
    float *ones = host_array(ny), *slope = host_array(ny * parts);
    double grown = 0, size = 0;
    for (size_t i = 0; i < ny; i++) ones[i] = 1;
    cpu_act_backward(slope, ones, h, N, F, act);
    for (size_t i = 0; i < ny; i++) {
        double sum = 0;
        for (size_t k = 0; k < parts; k++) {
            size_t at = (i / F * parts + k) * F + i % F;
            sum += fabs((double)slope[at] * h[at]);
        }
        grown += sum * sum;
        size += (double)y[i] * y[i];
    }
    return sqrt(grown / size);
}

static void linear_act_case(int N, int I, int F, int O, int act, int bias) {
    size_t H = (size_t)F * (size_t)(1 + act_is_gated((ActKind)act)), ny = (size_t)N * F,
           nh = (size_t)N * H;
    size_t nx = (size_t)N * I, nw = H * I, nz = (size_t)N * O, n2 = (size_t)O * F;
    LABEL("linear and act N %d I %d F %d O %d act %s bias %d", N, I, F, O, all_acts[act], bias);
    float *x = random_array(nx, 1), *w = random_array(nw, 1), *b = random_array(H, 1),
          *w2 = random_array(n2, 1);
    float *dz = random_array(nz, 1), *db = random_array(H, 1), *y = host_array(ny),
          *h = host_array(nh);
    float *dy = host_array(ny), *dh = host_array(nh), *sum = host_copy(db, H);
    floatX *x_d = on_device<floatX>(x, nx), *w_d = on_device<floatX>(w, nw),
           *b_d = on_device<floatX>(b, H);
    floatX *w2_d = on_device<floatX>(w2, n2), *dz_d = on_device<floatX>(dz, nz),
           *y_d = device_array<floatX>(ny);
    floatX *h_d = device_array<floatX>(nh), *again = device_array<floatX>(ny),
           *dh_d = device_array<floatX>(nh);
    floatX *dy_d = device_array<floatX>(ny), *none = NULL;
    floatM *db_d = on_device<floatM>(db, H), *no = NULL;
    linear_act_forward(y_d, h_d, x_d, w_d, bias ? b_d : none, N, I, F, act);
    linear_act_again(again, h_d, x_d, w_d, bias ? b_d : none, N, I, F, act);
    check(same_bits(again, y_d, ny), "%s: computed again, the activations differ", what);
    cpu_linear_act_forward(y, h, x, w, bias ? b : NULL, N, I, F, act);
    like(what, h_d, h, nh);
    like(what, y_d, y, ny, ROUNDED(ny) * (1 + act_condition(y, h, N, F, act)));
    put(h_d, h, nh);
    linear_act_backward(dh_d, dy_d, bias ? db_d : no, dz_d, w2_d, h_d, N, F, O, act);
    cpu_linear_act_backward(dh, dy, bias ? db : NULL, dz, w2, h, N, F, O, act);
    like(what, dh_d, dh, nh, 2 * ROUNDED(nh));
    float *rows = on_host(dh_d, nh);
    for (size_t i = 0; bias && i < nh; i++) sum[i % H] += rows[i];
    like(what, db_d, sum, H, SUMS);
    release();
}

/* act_backward with the sums of its rows added to db, and without. */
static void act_bias_case(int N, int F, int act, int shift) {
    size_t H = (size_t)F * (size_t)(1 + act_is_gated((ActKind)act)), ny = (size_t)N * F,
           nh = (size_t)N * H;
    LABEL("act and bias N %d F %d act %s shift %d", N, F, all_acts[act], shift);
    float *h = random_array(nh, 1), *dy = random_array(ny, 1), *db = random_array(H, 1);
    float *dh = host_array(nh), *sum = host_copy(db, H);
    floatX *h_d = shifted<floatX>(h, nh, shift), *dy_d = shifted<floatX>(dy, ny, shift);
    floatX *dh_d = device_array<floatX>(nh + (size_t)shift) + shift, *alone = copy_of(dh_d, nh);
    floatM *db_d = on_device<floatM>(db, H);
    act_backward_bias(dh_d, db_d, dy_d, h_d, N, F, act);
    act_backward_bias(alone, NULL, dy_d, h_d, N, F, act);
    cpu_act_backward_bias(dh, db, dy, h, N, F, act);
    like(what, dh_d, dh, nh, 2 * ROUNDED(nh));
    check(same_bits(dh_d, alone, nh), "%s: without db dh differs", what);
    float *rows = on_host(dh_d, nh);
    for (size_t i = 0; i < nh; i++) sum[i % H] += rows[i];
    like(what, db_d, sum, H, SUMS);
    like(what, db_d, db, H, 2 * ROUNDED(nh)); /* the twin's rows are not rounded */
    release();
}

static void test_act_bias(void) {
    for (int act = 0; act < COUNT_OF(all_acts); act++) {
        act_bias_case(1, 1, act, 0);
        act_bias_case(37, 24, act, 0);
        act_bias_case(130, 33, act, 1);
        act_bias_case(300, 64, act, 1);
    }
}

static void test_act(void) {
    static const int shapes[][2] = {{1, 8},    {3, 5},   {7, 64},  {3, 2056},
                                    {2, 4104}, {2, 515}, {5, 3072}};
    for (int act = 0; act < COUNT_OF(all_acts); act++) {
        for (int i = 0; i < 7; i++) act_case(shapes[i][0], shapes[i][1], act, 0);
        act_case(3, 32, act, 1);
        act_case(300, 16, act, 0); /* several parts of rows */
        act_case(300, 7, act, 0);
        linear_act_case(5, 8, 16, 24, act, 1);
        linear_act_case(70, 16, 264, 8, act, 1);
        linear_act_case(9, 24, 40, 16, act, 0);
        linear_act_case(7, 3, 5, 9, act, 1);
    }
}

/* ---------------------------------------------------------------------------------------------- */

static void classifier_case(int N, int V, int Vp, double softcap, double spread, int shift) {
    size_t n = (size_t)N * Vp;
    LABEL("classifier N %d V %d Vp %d softcap %g spread %g shift %d", N, V, Vp, softcap, spread,
          shift);
    float *z = random_array(n, spread), *losses = host_array((size_t)N);
    int *targets = (int *)malloc((size_t)N * sizeof *targets);
    for (int i = 0; i < N; i++) {
        targets[i] = i == 1 ? -1 : i == 2 ? V - 1 : i == 3 ? 0 : below(V);
        for (int v = V; v < Vp; v++) z[(size_t)i * Vp + v] = NAN; /* never read */
    }
    int *targets_d = ints_on_device(targets, (size_t)N);
    floatX *z_d = shifted<floatX>(z, n, shift), *again = shifted<floatX>(z, n, shift);
    floatX *before = copy_of(z_d, n);
    floatM *losses_d = device_array<floatM>((size_t)N), *losses_2 = device_array<floatM>((size_t)N);
    classifier(losses_2, z_d, targets_d, N, V, Vp, softcap, 0);
    check(same_bits(before, z_d, n), "%s: without a gradient logits change", what);
    classifier(losses_d, z_d, targets_d, N, V, Vp, softcap, 0.25);
    check(same_bits(losses_d, losses_2, (size_t)N), "%s: the loss depends on the gradient", what);
    classifier(losses_d, again, targets_d, N, V, Vp, softcap, 0.25);
    check(same_bits(z_d, again, n), "%s: two runs differ", what);
    float *z_cpu = host_copy(z, n), *gradient = on_host(z_d, n);
    cpu_classifier(losses, z_cpu, targets, N, V, Vp, softcap, 0.25);
    /* A logit z, and so its exponent, is known to a few times 2^-24 z; a probability is known to
       as much of itself. What is left of the target's, p - 1, and a small loss have the errors
       of p and of the logits, however small they are. A gradient is rounded once. Where the
       compiler does not vectorise, under sanitizers, the CPU adds the V terms of a row in one
       running sum, whose error is a few roundings times the square root of V. */
    double size = softcap > 0 ? fmin(spread, softcap) : spread,
           exponent = SUMS + 8 * 0x1p-24 * size + 4 * 0x1p-24 * sqrt((double)V);
    double rounding = sizeof(floatX) == 2 ? 0x1p-8 : 0, most = 0;
    like(what, losses_d, losses, (size_t)N, SUMS, size * sqrt((double)N));
    for (size_t i = 0; i < n; i++) {
        size_t row = i / (size_t)Vp, v = i % (size_t)Vp;
        if (targets[row] < 0 || v >= (size_t)V) continue;
        double g = z_cpu[i], p = fabs(g) + ((int)v == targets[row] ? 0.25 : 0);
        most = fmax(most, fabs(gradient[i] - g) / (rounding * fabs(g) + exponent * p + 1e-30));
    }
    check(most <= 1, "%s: a gradient is off by %.2f times what is allowed", what, most);
    int wrong = 0;
    for (int i = 0; i < N; i++)
        for (int v = targets[i] < 0 ? 0 : V; v < Vp; v++)
            wrong += gradient[(size_t)i * Vp + v] != 0;
    check(!wrong, "%s: %d gradients of padding or of no target are not zero", what, wrong);

    floatX *capped = shifted<floatX>(z, n, shift);
    softcap_forward(capped, N, V, Vp, softcap);
    cpu_softcap_forward(z, N, V, Vp, softcap);
    float *ours = on_host(capped, n);
    for (int i = 0; i < N; i++)
        check(relative_l2_ff(ours + (size_t)i * Vp, z + (size_t)i * Vp, (size_t)V, 1e-20) <=
                  ROUNDED(V),
              "%s: softcap_forward", what);
    free(targets);
    release();
}

/* Logits of -infinity have probability zero. A NaN makes the loss NaN. */
static void test_classifier_odd(void) {
    enum { V = 24 };
    float z[V], *losses = host_array(3);
    float *all = host_array(3 * V);
    for (int row = 0; row < 3; row++) {
        for (int v = 0; v < V; v++) z[v] = v < 9 && row == 0 ? -INFINITY : (float)v / 8;
        if (row == 1) z[20] = NAN;
        memcpy(all + row * V, z, sizeof z);
    }
    const int targets[] = {10, 3, 3};
    int *targets_d = ints_on_device(targets, 3);
    floatX *z_d = on_device<floatX>(all, 3 * V);
    floatM *losses_d = device_array<floatM>(3);
    classifier(losses_d, z_d, targets_d, 3, V, V, 0, 1);
    cpu_classifier(losses, all, targets, 3, V, V, 0, 1);
    float *ours = on_host(losses_d, 3), *gradient = on_host(z_d, 3 * V);
    check(relative_error(ours[0], losses[0], 1e-9) < SUMS &&
              relative_error(ours[2], losses[2], 1e-9) < SUMS,
          "losses %g %g, not %g %g", ours[0], ours[2], losses[0], losses[2]);
    check(gradient[0] == 0 && gradient[8] == 0 && !any_nan(gradient, V), "gradients of -infinity");
    check(isnan(ours[1]) && isnan(gradient[V]) && !isnan(ours[2]),
          "a NaN does not show in its row's loss");
    release();
}

static void test_classifier(void) {
    static const int shapes[][3] = {{1, 2, 64},    {4, 8, 8},     {5, 13, 64},    {6, 5, 7},
                                    {4, 256, 256}, {4, 509, 515}, {5, 4099, 4160}};
    for (int i = 0; i < 7; i++)
        for (int cap = 0; cap < 2; cap++)
            classifier_case(shapes[i][0], shapes[i][1], shapes[i][2], cap ? 15 : 0, i % 2 ? 4 : 60,
                            0);
    classifier_case(3, 50257, 50304, 0, 5, 0);
    classifier_case(1, 60001, 60032, 30, 5, 0); /* more than shared memory keeps */
    classifier_case(4, 61, 64, 30, 5, 1);
    test_classifier_odd();
}

static void test_losses_add(void) {
    static const int sizes[] = {1, 100, 1024, 5000};
    for (int i = 0; i < 4; i++) {
        size_t n = (size_t)sizes[i];
        float *losses = random_array(n, 1);
        floatM *losses_d = on_device<floatM>(losses, n);
        double *total_d = device_array<double>(1), total, want = 0;
        MUST(cudaMemsetAsync(total_d, 0, sizeof total, cm_gpu.stream));
        for (int round = 1; round < 3; round++) {
            for (size_t k = 0; k < n; k++) want += (double)losses[k];
            losses_add(total_d, losses_d, sizes[i]);
            MUST(cudaMemcpyAsync(&total, total_d, sizeof total, cudaMemcpyDeviceToHost,
                                 cm_gpu.stream));
            MUST(cudaStreamSynchronize(cm_gpu.stream));
            check(relative_error(total, want, 1) < 1e-12, "%d losses, %d times: %g, not %g",
                  sizes[i], round, total, want);
        }
        release();
    }
}

static void test_cast(void) {
    static const size_t sizes[] = {1, 7, 8, 1001, 1024 * 256 * XW + 3005};
    for (int i = 0; i < 5; i++)
        for (int shift = 0; shift < 2; shift++) {
            size_t n = sizes[i];
            if (shift && i == 4) continue;
            float *p = random_array(n, 1), *want = host_array(n);
            floatM *p_d = shifted<floatM>(p, n, shift);
            floatX *w_d = device_array<floatX>(n + 1);
            cast_weights(w_d, p_d, n);
            for (size_t k = 0; k < n; k++) want[k] = rounded<floatX>(p[k]);
            float *w = on_host(w_d, n + 1);
            check(!memcmp(w, want, n * sizeof *w) && isnan(w[n]), "cast_weights of %zu differs", n);
            release();
        }
}

/* A gradient that is NULL, as of a frozen tensor, is skipped. The other results have the bits
   that they have with it. C selects the fused kernel of norms, or the others. */
static void test_frozen(int C) {
    enum { B = 2, T = 37, N = B * T, V = 11 };
    size_t n = (size_t)N * (size_t)C, c = (size_t)C, w = c * c;
    draw_for("frozen");
    float *x = random_array(n, 1), *dy = random_array(n, 1), *gain = random_array(c, 1);
    float *weight = random_array(w, 1), *mean = random_array(N, 0.1), *rstd = random_array(N, 1);
    int tokens[N];
    for (int i = 0; i < N; i++) tokens[i] = i * i % V;
    int *sorted = tokens_on_device(tokens, N, V);
    floatX *x_d = on_device<floatX>(x, n), *dy_d = on_device<floatX>(dy, n);
    floatX *w_d = on_device<floatX>(weight, w), *dx[2];
    floatM *gain_d = on_device<floatM>(gain, c), *mean_d = on_device<floatM>(mean, N);
    floatM *rstd_d = on_device<floatM>(rstd, N), *sum[2], *bias[2];
    for (int frozen = 0; frozen < 2; frozen++) {
        floatM *some = frozen ? NULL : on_device<floatM>(gain, c);
        dx[frozen] = device_array<floatX>(n);
        bias[frozen] = on_device<floatM>(gain, c);
        sum[frozen] = on_device<floatM>(gain, c);
        norm_backward(dx[frozen], some, bias[frozen], sum[frozen], dy_d, NULL, x_d, gain_d, mean_d,
                      rstd_d, N, C, NORM_LAYERNORM);
    }
    check(same_bits(dx[0], dx[1], n) && same_bits(bias[0], bias[1], c) &&
              same_bits(sum[0], sum[1], c),
          "C %d: without dgain the other gradients differ", C);
    norm_backward(dx[1], NULL, NULL, NULL, dy_d, NULL, x_d, gain_d, mean_d, rstd_d, N, C,
                  NORM_LAYERNORM);
    check(same_bits(dx[0], dx[1], n), "C %d: without dgain and dbias dx differs", C);

    for (int frozen = 0; frozen < 2; frozen++) {
        dx[frozen] = device_array<floatX>(n);
        bias[frozen] = on_device<floatM>(gain, c);
        linear_backward(dx[frozen], frozen ? NULL : device_array<floatM>(w), bias[frozen], dy_d,
                        x_d, w_d, N, C, C, 0);
    }
    check(same_bits(dx[0], dx[1], n) && same_bits(bias[0], bias[1], c),
          "C %d: without dw the other gradients of linear differ", C);

    size_t positions = (size_t)T * c;
    float *wpe = random_array(positions, 1);
    for (int frozen = 0; frozen < 2; frozen++) {
        sum[frozen] = on_device<floatM>(wpe, positions);
        floatM *wte = frozen ? NULL : device_array<floatM>(V * c);
        embed_backward(wte, sum[frozen], dy_d, sorted, B, T, C);
    }
    check(same_bits(sum[0], sum[1], positions), "C %d: without dwte dwpe differs", C);
    embed_backward(NULL, NULL, dy_d, sorted, B, T, C);
    check(!device_failure(), "%s", device_failure());
    release();
}

/* layers_scratch is enough for every layer of a model: the scratch need not grow. Runs before
   the other tests. */
static void test_scratch(void) {
    /* B T C V R */
    static const int models[][5] = {
        {2, 40, 64, 500, 64}, {3, 300, 16, 100, 900}, {1, 5, 8, 60, 60}};
    for (int i = 0; i < 3; i++) {
        Shape s;
        memset(&s, 0, sizeof s);
        int B = models[i][0], T = models[i][1], C = models[i][2], N = B * T, R = models[i][4];
        s.N = N;
        s.C = C;
        s.QKV = 8 * (i == 2 ? 2 * C : C / 4); /* in the last model another layer is the largest */
        s.F = i == 2 ? 8 : 3 * C;
        s.H = 2 * s.F;
        s.Vp = round_up(models[i][3], 64);
        int outputs[] = {s.QKV, C, s.H, s.Vp}, rows[] = {N, N, N, R};
        size_t most = (size_t)(N > R ? N : R) * 640, bytes = layers_scratch(&s, R);
        floatX *x = device_array<floatX>(most), *w = device_array<floatX>(most);
        floatM *g = device_array<floatM>(most), *h = device_array<floatM>(most);
        int *tokens = (int *)calloc((size_t)N, sizeof *tokens),
            *tokens_d = tokens_on_device(tokens, N, 1);
        cuda_scratch_free();
        check(!cuda_scratch_reserve(bytes), "no scratch");
        embed_backward(g, h, x, tokens_d, B, T, C);
        norm_backward(x, g, g + C, h, x, NULL, w, h, h, h, N, C, NORM_LAYERNORM);
        norm_backward(x + 1, g, g + C, h, x + 1, NULL, w, h, h, h, N, C, NORM_LAYERNORM);
        for (int k = 0; k < 4; k++) linear_backward(NULL, g, g, x, w, w, rows[k], 1, outputs[k], 1);
        act_backward_sums(w, g, x, x, N, s.F, ACT_SWIGLU);
        MUST(cudaStreamSynchronize(cm_gpu.stream));
        check(cm_gpu.scratch_bytes == bytes,
              "model %d: %zu bytes of scratch were asked for, %zu said", i, cm_gpu.scratch_bytes,
              bytes);
        free(tokens);
        release();
    }
}

static void test_frozen_layers(void) {
    test_frozen(64);
    test_frozen(13);
    test_frozen(2056);
}

/* sort comes first: it forks, which a process that has used the device must not do. */
static const Test tests[] = {
    TEST(sort),       TEST(scratch),    TEST(embed), SLOW_TEST(norm),
    TEST(norm_nan),   TEST(linear),     TEST(bias),  TEST(product),
    TEST(qk),         TEST(rope_table), TEST(act),   TEST(act_bias),
    TEST(classifier), TEST(losses_add), TEST(cast),  SLOW_TEST(frozen_layers)};

int main(int argc, char **argv) {
    cm_gpu.allow_tf32 = 0; /* SUMS is the bound of fp32 */
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
