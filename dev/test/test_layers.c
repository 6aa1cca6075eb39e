/*
Tests of llmc/cpu/layers.h that need no reference: a gradient that is NULL is skipped, and a
failure is recorded once and makes downloads NaN. That the layers compute what they should is
tested by finite differences and by PyTorch's numbers in test_gpt.c.
*/
#include "../../llmc/cpu/backend.h"
#include "check.h"
#include "draw.h"
#include "values.h"

enum { B = 2, T = 19, N = B * T, C = 24, O = 40, V = 11 };

static void fill(floatM *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = (floatM)draw();
}

static int same(const floatM *a, const floatM *b, size_t n) { return !memcmp(a, b, n * sizeof *a); }

/* The gradients of a norm are those of a norm without the one that is frozen. */
static void check_norm(int kind) {
    static floatX x[N * C], dy[N * C], dx[2][N * C];
    static floatM gain[C], mean[N], rstd[N], dgain[C], dbias[2][C], dsum[2][C];
    const char *name = case_of("norm %s", all_norms[kind]);
    fill(x, N * C);
    fill(dy, N * C);
    fill(gain, C);
    fill(mean, N);
    fill(rstd, N);
    norm_backward(dx[0], dgain, dbias[0], dsum[0], dy, NULL, x, gain, mean, rstd, N, C, kind);
    norm_backward(dx[1], NULL, dbias[1], dsum[1], dy, NULL, x, gain, mean, rstd, N, C, kind);
    check(same(dx[0], dx[1], N * C) && same(dbias[0], dbias[1], C) && same(dsum[0], dsum[1], C),
          "%s: without dgain the other gradients differ", name);
    norm_backward(dx[1], NULL, NULL, NULL, dy, NULL, x, gain, mean, rstd, N, C, kind);
    check(same(dx[0], dx[1], N * C), "%s: without any gradient dx differs", name);
}

static void test_norm(void) {
    for (int kind = 0; kind < COUNT_OF(all_norms); kind++) check_norm(kind);
}

static void test_linear(void) {
    static floatX x[N * C], dy[N * O], w[O * C], dx[2][N * C];
    static floatM dw[O * C], db[2][O];
    fill(x, N * C);
    fill(dy, N * O);
    fill(w, O * C);
    linear_backward(dx[0], dw, db[0], dy, x, w, N, C, O, 0);
    linear_backward(dx[1], NULL, db[1], dy, x, w, N, C, O, 0);
    check(same(dx[0], dx[1], N * C) && same(db[0], db[1], O),
          "without dw the other gradients differ");
    double size = 0;
    for (int i = 0; i < O * C; i++) size += (double)(dw[i] * dw[i]);
    check(size > 0, "dw is not computed");
}

static void test_embed(void) {
    static floatX dx[N * C];
    static floatM dwte[V * C], dwpe[2][T * C];
    int tokens[N];
    for (int n = 0; n < N; n++) tokens[n] = n * n % V;
    fill(dx, N * C);
    embed_backward(dwte, dwpe[0], dx, tokens, B, T, C);
    embed_backward(NULL, dwpe[1], dx, tokens, B, T, C);
    check(same(dwpe[0], dwpe[1], T * C), "without dwte dwpe differs");
    embed_backward(NULL, NULL, dx, tokens, B, T, C);
}

/* The first failure stays, a program is told of it, and no download delivers numbers any more. */
static void test_failure(void) {
    char err[ERR_LEN] = "";
    double from = 1, to = 0;
    check(!device_failure() && !device_check(err) && !device_download(&to, &from, sizeof to) &&
              to == 1 && !device_wait(),
          "a failure before");
    device_fail("no memory for %d", 7);
    device_fail("another");
    check(device_failure() && !strcmp(device_failure(), "no memory for 7"), "recorded: %s",
          device_failure());
    check(device_check(err) == -1 && !strcmp(err, "no memory for 7"), "the program is told: %s",
          err);
    check(device_download(&to, &from, sizeof to) == -1 && isnan(to), "a download delivers %g", to);
    check(device_wait() == -1, "device_wait succeeds");
    cm_cpu.failure[0] = 0;
}

static const Test tests[] = {TEST(norm), TEST(linear), TEST(embed), TEST(failure)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
