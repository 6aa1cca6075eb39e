/*
Tests of the matrix products of llmc/cpu/gemm.h against a naive product in double.
*/
#include "../../llmc/cpu/gemm.h"
#include "check.h"
#include "draw.h"

typedef void Product(int, int, int, int, int, floatX, const floatX *, size_t, const floatX *,
                     size_t, floatX, floatX *, size_t);

static floatX *random_matrix(size_t n) {
    floatX *p = (floatX *)malloc((n + 1) * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = (floatX)draw();
    return p;
}

/* The L2 error of the C that `product` computes, relative to the terms that are summed: the L2 norm
   of |alpha| |A| |B| + |beta| |C|. Infinity if the product writes outside of C or, with beta = 0,
   reads C, which is NaN at first. `rounded`: the product rounds its inputs to bf16. */
static double product_error(Product *product, int rounded, int ta, int tb, int M, int N, int K,
                            double alpha, double beta, int pad) {
    size_t lda = (size_t)((ta ? M : K) + pad), ldb = (size_t)((tb ? K : N) + 2 * pad);
    size_t ldc = (size_t)(N + 3 * pad), size = (size_t)(M ? M : 1) * ldc;
    floatX *A = random_matrix((size_t)(ta ? K : M) * lda), *C = random_matrix(size);
    floatX *B = random_matrix((size_t)(tb ? N : K) * ldb);
    double *expected = (double *)malloc((size + 1) * sizeof *expected);
    double d = 0, s = 0;
    (void)rounded;
    for (int i = 0; i < M; i++)
        for (size_t j = 0; j < ldc; j++) {
            double sum = 0, terms = 0;
            for (int k = 0; (int)j < N && k < K; k++) {
                floatX a = ta ? A[(size_t)k * lda + i] : A[(size_t)i * lda + k];
                floatX b = tb ? B[j * ldb + k] : B[(size_t)k * ldb + j];
#ifdef GEMM_ONEDNN
                for (int side = 0; rounded && side < 2; side++) {
                    uint32_t bits = (uint32_t)gemm_to_bf16(side ? a : b) << 16;
                    memcpy(side ? &a : &b, &bits, sizeof bits);
                }
#endif
                sum += (double)a * b;
                terms += fabs(alpha * a * b);
            }
            floatX *c = &C[(size_t)i * ldc + j];
            expected[(size_t)i * ldc + j] =
                (int)j >= N ? *c : alpha * sum + (beta != 0 ? beta * *c : 0);
            if ((int)j < N && beta != 0) terms += fabs(beta * *c);
            s += terms * terms;
            if ((int)j < N && beta == 0) *c = (floatX)NAN;
        }
    product(ta, tb, M, N, K, (floatX)alpha, A, lda, B, ldb, (floatX)beta, C, ldc);
    for (int i = 0; i < M; i++)
        for (size_t j = 0; j < ldc; j++) {
            double e = C[(size_t)i * ldc + j] - expected[(size_t)i * ldc + j];
            if ((int)j >= N && e != 0) d = INFINITY;
            d += e * e;
        }
    free(A);
    free(B);
    free(C);
    free(expected);
    double r = sqrt(d) / fmax(sqrt(s), 1e-30);
    return r == r ? r : INFINITY;
}

static void test_product(const char *name, Product *product, int rounded) {
    static const int shapes[][3] = {{1, 1, 1},     {1, 70, 33},   {2, 5, 300},    {3, 40, 64},
                                    {4, 32, 32},   {5, 7, 9},     {8, 16, 8},     {8, 32, 1},
                                    {9, 33, 257},  {13, 31, 15},  {16, 64, 16},   {17, 48, 100},
                                    {32, 128, 32}, {33, 600, 65}, {64, 64, 513},  {70, 1, 70},
                                    {130, 97, 70}, {131, 129, 3}, {150, 530, 40}, {300, 260, 31}};
    static const double factors[][2] = {{1, 0}, {1, 1}, {-0.5, 0}, {2, -0.25}};
    /* Terms of random signs: the errors of the roundings cancel for the most part. */
    double tolerance = sizeof(floatX) == 8 ? 1e-15 : 3e-7;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int t = 0; t < 4; t++)
            for (int f = 0; f < 4; f++)
                for (int pad = 0; pad < 4; pad += 3) {
                    int M = shapes[s][0], N = shapes[s][1], K = shapes[s][2];
                    double e = product_error(product, rounded, t & 1, t >> 1, M, N, K,
                                             factors[f][0], factors[f][1], pad);
                    check(e < tolerance, "%s: ta %d tb %d M %d N %d K %d alpha %g beta %g: %g",
                          name, t & 1, t >> 1, M, N, K, factors[f][0], factors[f][1], e);
                }
    for (int zero = 0; zero < 3; zero++)
        for (int t = 0; t < 4; t++)
            for (int beta = 0; beta < 3; beta++) {
                double e = product_error(product, rounded, t & 1, t >> 1, zero == 0 ? 0 : 5,
                                         zero == 1 ? 0 : 37, zero == 2 ? 0 : 6, 1, beta, 1);
                check(e < tolerance, "%s: dimension %d is 0, beta %d: %g", name, zero, beta, e);
            }
    check(product_error(product, rounded, 0, 1, 20, 40, 30, 0, 0.5, 1) < tolerance, "%s: alpha = 0",
          name);
}

/* The built-in product gives equal bits for every number of threads. Other products give equal bits
   for one number of threads. */
static void test_determinism(void) {
    int M = 300, N = 200, K = 700;
    floatX *A = random_matrix((size_t)M * K), *B = random_matrix((size_t)N * K);
    floatX *C = random_matrix((size_t)M * N), *D = random_matrix((size_t)M * N);
    gemm_serial(0, 1, M, N, K, 1, A, (size_t)K, B, (size_t)K, 0, C, (size_t)N);
    int most = thread_count();
    for (int threads = 1; threads < 6; threads++) {
        use_threads(threads);
        gemm_builtin(0, 1, M, N, K, 1, A, (size_t)K, B, (size_t)K, 0, D, (size_t)N);
        check(memcmp(C, D, (size_t)M * N * sizeof *C) == 0, "%d threads, other bits", threads);
    }
    use_threads(most);
    gemm(0, 1, M, N, K, 1, A, (size_t)K, B, (size_t)K, 0, C, (size_t)N);
    for (int i = 0; i < 5; i++) {
        gemm(0, 1, M, N, K, 1, A, (size_t)K, B, (size_t)K, 0, D, (size_t)N);
        check(memcmp(C, D, (size_t)M * N * sizeof *C) == 0, "gemm repeated, other bits");
    }
    free(A);
    free(B);
    free(C);
    free(D);
}

/* A symmetric product with fewer rows than there are threads, as on a machine of many cores. */
static void test_symmetric(void) {
    enum { N = 30, K = 400 };
    floatX *A = random_matrix(N * K), *C = random_matrix(N * N), *D = random_matrix(N * N);
    gemm_serial(0, 1, N, N, K, 1, A, K, A, K, 0, C, N);
    int most = thread_count();
    for (int threads = 1; threads < 50; threads += 7) {
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        gemm_symmetric(0, 1, N, K, 1, A, K, A, K, 0, D, N);
        check(memcmp(C, D, N * N * sizeof *C) == 0, "symmetric, %d threads: other bits", threads);
    }
#ifdef _OPENMP
    omp_set_num_threads(most);
#endif
    (void)most;
    free(A);
    free(C);
    free(D);
}

static void test_inside_parallel(void) {
    enum { COUNT = 8, M = 40, N = 50, K = 60 };
    floatX *A = random_matrix(COUNT * M * K), *B = random_matrix(K * N);
    floatX *C = random_matrix(COUNT * M * N), *D = random_matrix(COUNT * M * N);
#pragma omp parallel for
    for (int i = 0; i < COUNT; i++)
        gemm(0, 0, M, N, K, 1, A + i * M * K, K, B, N, 0, C + i * M * N, N);
    for (int i = 0; i < COUNT; i++)
        gemm_serial(0, 0, M, N, K, 1, A + i * M * K, K, B, N, 0, D + i * M * N, N);
    check(memcmp(C, D, COUNT * M * N * sizeof *C) == 0, "gemm inside a parallel region");
    free(A);
    free(B);
    free(C);
    free(D);
}

static void test_bf16(void) {
    char err[ERR_LEN] = "";
    if (gemm_setup(COMPUTE_BF16, err) != 0) {
        printf("bf16 products not tested: %s\n", err);
        check(strstr(err, "--compute fp32") != NULL, "no way out in: %s", err);
        return;
    }
    check(strstr(gemm_describe(), "bf16") != NULL, "described as %s", gemm_describe());
    double rounding = product_error(gemm_model, 0, 0, 1, 64, 64, 256, 1, 0, 0);
    check(rounding > 1e-4 && rounding < 1e-2, "bf16 against exact inputs: %g", rounding);
    test_product("gemm_model, bf16", gemm_model, 1);
    double inside = 0; /* the rounding has its own path inside a parallel region */
#pragma omp parallel num_threads(2)
#pragma omp critical
    inside = fmax(inside, product_error(gemm_model, 1, 1, 0, 40, 50, 300, 1, 1, 3));
    check(inside < 1.5e-6, "gemm_model, bf16, inside a parallel region: %g", inside);
#ifdef GEMM_ONEDNN
    static const uint32_t in[] = {0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001,
                                  0x7f7fffff, 0xff800000, 0x7f800001, 0x00000001};
    static const uint16_t out[] = {0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0xff80, 0x7fc0, 0x0000};
    for (int i = 0; i < 8; i++) {
        float x;
        memcpy(&x, &in[i], sizeof x);
        check(gemm_to_bf16(x) == out[i], "%08x rounds to %04x", in[i], gemm_to_bf16(x));
    }
#endif
    check(gemm_setup(COMPUTE_FP32, err) == 0, "back to fp32: %s", err);
}

static void test_products(void) {
    test_product("gemm", gemm, 0);
    test_product("gemm_serial", gemm_serial, 0);
    test_product("gemm_builtin", gemm_builtin, 0);
    test_product("gemm_model", gemm_model, 0);
}

static const Test tests[] = {TEST(products), TEST(determinism), TEST(symmetric),
                             TEST(inside_parallel), TEST(bf16)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
