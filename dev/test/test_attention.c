/*
Tests of llmc/cpu/attention.h against a naive attention in double, and of llmc/cpu/simd.h.
*/
#include "../../llmc/cpu/attention.h"
#include "check.h"
#include "draw.h"

static floatX *random_vector(size_t n) {
    floatX *p = (floatX *)malloc(n * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = (floatX)draw();
    return p;
}

typedef struct {
    int B, T, NH, NKV, HS;
} Shape;

/* Attention by its definition, one query at a time. If dout is NULL, only the forward pass. */
static void naive_attention(double *out, double *lse, double *dqkv, const floatX *qkv,
                            const floatX *dout, Shape x, double scale) {
    size_t C3 = (size_t)(x.NH + 2 * x.NKV) * x.HS, C = (size_t)x.NH * x.HS;
    double *p = (double *)malloc((size_t)x.T * sizeof *p);
    if (dout) memset(dqkv, 0, x.B * x.T * C3 * sizeof *dqkv);
    for (int b = 0; b < x.B; b++)
        for (int h = 0; h < x.NH; h++)
            for (int i = 0; i < x.T; i++) {
                size_t first = (size_t)b * x.T, group = (size_t)(h / (x.NH / x.NKV)) * x.HS;
                size_t qi = (first + i) * C3 + (size_t)h * x.HS;
                size_t k = first * C3 + (size_t)x.NH * x.HS + group, v = k + (size_t)x.NKV * x.HS;
                double *o = out + (first + i) * C + (size_t)h * x.HS, sum = 0, D = 0;
                for (int j = 0; j <= i; j++) {
                    double s = 0;
                    for (int c = 0; c < x.HS; c++) s += (double)qkv[qi + c] * qkv[k + j * C3 + c];
                    /* Inputs are in [-1, 1), so exp does not overflow. */
                    sum += p[j] = exp(scale * s);
                }
                lse[((size_t)b * x.NH + h) * x.T + i] = log(sum);
                for (int c = 0; c < x.HS; c++) {
                    o[c] = 0;
                    for (int j = 0; j <= i; j++) o[c] += p[j] / sum * qkv[v + j * C3 + c];
                }
                if (!dout) continue;
                const floatX *d = dout + (first + i) * C + (size_t)h * x.HS;
                for (int c = 0; c < x.HS; c++) D += d[c] * o[c];
                for (int j = 0; j <= i; j++) {
                    double dp = 0;
                    for (int c = 0; c < x.HS; c++) dp += (double)d[c] * qkv[v + j * C3 + c];
                    double ds = scale * p[j] / sum * (dp - D);
                    for (int c = 0; c < x.HS; c++) {
                        dqkv[qi + c] += ds * qkv[k + j * C3 + c];
                        dqkv[k + j * C3 + c] += ds * qkv[qi + c];
                        dqkv[v + j * C3 + c] += p[j] / sum * d[c];
                    }
                }
            }
    free(p);
}

DEFINE_RELATIVE_L2(relative_l2_xd, floatX, double)
static double error_of(const floatX *a, const double *b, size_t n) {
    return relative_l2_xd(a, b, n, 1e-30);
}

static double error_of_lse(const floatM *a, const double *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, relative_error(a[i], b[i], 1));
    return worst;
}

static void test_shape(Shape x) {
    /* Scores up to 12 move a probability by 12 times the precision. dqkv is three products
       further. */
    double tolerance = sizeof(floatX) == 8 ? 1e-13 : 2e-6, scale = 1 / sqrt(x.HS) + 0.01;
    int threads = thread_count();
    size_t C3 = (size_t)(x.NH + 2 * x.NKV) * x.HS, C = (size_t)x.NH * x.HS;
    size_t rows = (size_t)x.B * x.T, n3 = rows * C3, n = rows * C, nl = rows * x.NH;
    floatX *qkv = random_vector(n3), *dout = random_vector(n), *out = random_vector(n);
    floatX *dqkv = random_vector(n3), *out2 = random_vector(n), *dqkv2 = random_vector(n3);
    floatM *lse = (floatM *)random_vector(nl);
    double *out_ref = (double *)malloc(n * 8), *lse_ref = (double *)malloc(nl * 8);
    double *dqkv_ref = (double *)malloc(n3 * 8);
    char text[100];
    snprintf(text, sizeof text, "B %d T %d NH %d NKV %d HS %d", x.B, x.T, x.NH, x.NKV, x.HS);
    /* NaN shows an output that is not set, or that is added to. */
    for (size_t i = 0; i < n; i++) out[i] = (floatX)NAN;
    for (size_t i = 0; i < n3; i++) dqkv[i] = (floatX)NAN;
    naive_attention(out_ref, lse_ref, dqkv_ref, qkv, dout, x, scale);

    attention_forward(out, lse, qkv, x.B, x.T, x.NH, x.NKV, x.HS, scale);
    double e = error_of(out, out_ref, n), l = error_of_lse(lse, lse_ref, nl);
    check(e < tolerance, "%s: out is off by %g", text, e);
    check(l < tolerance, "%s: lse is off by %g", text, l);

    attention_backward(dqkv, dout, qkv, out, lse, x.B, x.T, x.NH, x.NKV, x.HS, scale);
    e = error_of(dqkv, dqkv_ref, n3);
    check(e < 3 * tolerance, "%s: dqkv is off by %g", text, e);

    /* With 5 threads a few heads are cut into pieces. The bits do not change. */
    for (int t = 1; t < 6; t += 4) {
        use_threads(t);
        attention_forward(out2, lse, qkv, x.B, x.T, x.NH, x.NKV, x.HS, scale);
        attention_backward(dqkv2, dout, qkv, out2, lse, x.B, x.T, x.NH, x.NKV, x.HS, scale);
        check(memcmp(out, out2, n * sizeof *out) == 0, "%s: out with %d threads", text, t);
        check(memcmp(dqkv, dqkv2, n3 * sizeof *dqkv) == 0, "%s: dqkv with %d threads", text, t);
    }
    use_threads(threads);

    /* Decoding one position from caches equals the last row of each sequence. */
    size_t CKV = (size_t)x.NKV * x.HS;
    floatX *kc = random_vector((size_t)x.T * CKV), *vc = random_vector((size_t)x.T * CKV);
    for (int b = 0; b < x.B; b++) {
        const floatX *row = qkv + (size_t)b * x.T * C3;
        for (int t = 0; t < x.T; t++, row += C3) {
            memcpy(kc + (size_t)t * CKV, row + C, CKV * sizeof *kc);
            memcpy(vc + (size_t)t * CKV, row + C + CKV, CKV * sizeof *vc);
        }
        attention_decode(out2, row - C3, kc, vc, x.T - 1, x.NH, x.NKV, x.HS, scale);
        e = error_of(out2, out_ref + ((size_t)(b + 1) * x.T - 1) * C, C);
        check(e < tolerance, "%s: decode is off by %g", text, e);
    }
    free(qkv);
    free(dout);
    free(out);
    free(dqkv);
    free(out2);
    free(dqkv2);
    free(lse);
    free(out_ref);
    free(lse_ref);
    free(dqkv_ref);
    free(kc);
    free(vc);
}

/* d sum(dout . out) / d qkv by central differences, in the double build only. */
#ifdef CM_DOUBLE
static void test_finite_differences(void) {
    enum { B = 1, T = 9, NH = 4, NKV = 2, HS = 3, N3 = B * T * (NH + 2 * NKV) * HS };
    enum { N = B * T * NH * HS };
    floatX *qkv = random_vector(N3), *dout = random_vector(N), out[N], dqkv[N3];
    floatM lse[B * NH * T];
    double scale = 0.7, h = 1e-5;
    attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale);
    attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
    for (int i = 0; i < N3; i++) {
        double loss[2] = {0, 0}, kept = qkv[i];
        for (int side = 0; side < 2; side++) {
            qkv[i] = kept + (side ? h : -h);
            attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale);
            for (int j = 0; j < N; j++) loss[side] += dout[j] * out[j];
        }
        qkv[i] = kept;
        double slope = (loss[1] - loss[0]) / (2 * h);
        check(relative_error(dqkv[i], slope, 0.01) < 1e-7, "element %d: %g, differences give %g", i,
              dqkv[i], slope);
    }
    free(qkv);
    free(dout);
}
#endif

/* Scores of some hundreds overflow exp, unless the maximum is subtracted first. */
static void test_large_scores(void) {
    enum { T = 40, HS = 16, C3 = 3 * HS };
    floatX *qkv = random_vector(T * C3), *out = random_vector(T * HS);
    floatX *dqkv = random_vector(T * C3), *dout = random_vector(T * HS);
    floatM lse[T];
    for (int i = 0; i < T * C3; i++) qkv[i] *= 30;
    attention_forward(out, lse, qkv, 1, T, 1, 1, HS, 0.25);
    attention_backward(dqkv, dout, qkv, out, lse, 1, T, 1, 1, HS, 0.25);
    int finite = 1, bounded = 1;
    for (int i = 0; i < T * C3; i++) finite &= isfinite(dqkv[i]) ? 1 : 0;
    for (int i = 0; i < T * HS; i++) bounded &= fabs((double)out[i]) <= 30.001;
    check(finite, "a gradient is not finite");
    check(bounded, "an output is no average of values");
    free(qkv);
    free(out);
    free(dqkv);
    free(dout);
}

static void test_simd(void) {
    double exp_tolerance = sizeof(floatX) == 8 ? 1e-15 : 2e-7;
    double tanh_tolerance = sizeof(floatX) == 8 ? 1e-15 : 5e-7, e = 0, t = 0;
    enum { N = 200001 };
    floatX *x = random_vector(N), *y = random_vector(N), *z = random_vector(N);
    for (int i = 0; i < N; i++) {
        x[i] = (floatX)(-87 + 175.0 * i / (N - 1));
        z[i] = (floatX)((i & 1 ? -1 : 1) * pow(10, -37 + 38.5 * i / (N - 1)));
    }
#pragma omp simd
    for (int i = 0; i < N; i++) y[i] = fast_exp(x[i]);
    for (int i = 0; i < N; i++) e = fmax(e, relative_error(y[i], exp((double)x[i]), 0));
    check(e < exp_tolerance, "fast_exp is off by %g", e);
#pragma omp simd
    for (int i = 0; i < N; i++) y[i] = fast_tanh(z[i]);
    for (int i = 0; i < N; i++) t = fmax(t, relative_error(y[i], tanh((double)z[i]), 0));
    check(t < tanh_tolerance, "fast_tanh is off by %g", t);
    floatX inf = (floatX)INFINITY, nan = (floatX)NAN;
    check(fast_exp(-inf) == 0 && fast_exp(inf) == inf && fast_exp(0) == 1, "fast_exp at its ends");
    check(fast_tanh(-inf) == -1 && fast_tanh(inf) == 1 && fast_tanh(0) == 0, "fast_tanh's ends");
    check(fast_exp(nan) != fast_exp(nan) && fast_tanh(nan) != fast_tanh(nan), "NaN was lost");
    free(x);
    free(y);
    free(z);
}

static void test_shapes(void) {
    static const int lengths[] = {1, 7, 33, 130}, sizes[] = {8, 16, 64, 128};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            Shape equal = {2, lengths[i], 2, 2, sizes[j]};
            Shape grouped = {1, lengths[i], 6, 2, sizes[j]};
            test_shape(equal);
            test_shape(grouped);
        }
    Shape more[] = {{1, 600, 2, 1, 32}, {1, 257, 1, 1, 20}, {1, 64, 1, 1, 256}, {3, 31, 3, 3, 7}};
    for (int i = 0; i < 4; i++) test_shape(more[i]);
}

static const Test tests[] = {TEST(shapes), TEST(large_scores), TEST(simd),
#ifdef CM_DOUBLE
                             TEST(finite_differences)
#endif
};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
