/*
Milliseconds and GFLOP/s of attention, and GFLOP/s of a square product for comparison. Only the work
below the diagonal counts: two products forward, five backward, each 2 HS B NH T (T + 1) / 2.

    make build/bench_attention && build/bench_attention
*/
#include "../../llmc/cpu/attention.h"

static floatX *filled(size_t n, int period) {
    floatX *p = (floatX *)malloc(n * sizeof *p);
    if (!p) die("out of memory: %zu numbers", n);
    for (size_t i = 0; i < n; i++) p[i] = (floatX)(i % (size_t)period) * 2 / (floatX)period - 1;
    return p;
}

static double square_product_gflops(void) {
    enum { N = 512 };
    floatX *A = filled(N * N, 1009), *C = filled(N * N, 997);
    double best = 0;
    for (int round = 0; round < 10; round++) {
        double seconds = now_seconds();
        gemm_builtin(0, 1, N, N, N, 1, A, N, A, N, 0, C, N);
        best = fmax(best, 2e-9 * (double)(N * N * N) / (now_seconds() - seconds));
    }
    free(A);
    free(C);
    return best;
}

int main(void) {
    static const int shapes[][5] = {
        /* B, T, NH, NKV, HS */
        {16, 128, 4, 4, 32},   {16, 256, 4, 4, 64},  {16, 256, 6, 6, 64}, {4, 64, 12, 12, 64},
        {4, 1024, 12, 12, 64}, {4, 1024, 12, 4, 64}, {1, 1024, 1, 1, 128}};
    printf("%d threads; a product of 512 x 512: %.0f GFLOP/s\n\n", thread_count(),
           square_product_gflops());
    printf("%3s %5s %3s %3s %3s | forward ms  GFLOP/s | backward ms  GFLOP/s | decode us\n", "B",
           "T", "NH", "NKV", "HS");
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int B = shapes[s][0], T = shapes[s][1], NH = shapes[s][2], NKV = shapes[s][3];
        int HS = shapes[s][4];
        size_t rows = (size_t)B * T, C = (size_t)NH * HS, C3 = C + 2 * (size_t)NKV * HS;
        floatX *qkv = filled(rows * C3, 1009), *dqkv = filled(rows * C3, 1009);
        floatX *out = filled(rows * C, 997), *dout = filled(rows * C, 991);
        floatM *lse = (floatM *)filled(rows * NH, 7);
        double flops = 2.0 * B * NH * HS * T * (T + 1) / 2, scale = 1 / sqrt(HS);
        double best[3] = {1e30, 1e30, 1e30};
        int repeat = 1 + (int)(1e8 / flops);
        for (int round = 0; round < 8; round++)
            for (int what = 0; what < 3; what++) {
                double seconds = now_seconds();
                for (int i = 0; i < repeat; i++) {
                    if (what == 0) attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale);
                    if (what == 1)
                        attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
                    if (what == 2) /* any T rows can serve as caches */
                        attention_decode(out, qkv, dqkv, dqkv + (size_t)T * NKV * HS, T - 1, NH,
                                         NKV, HS, scale);
                }
                best[what] = fmin(best[what], (now_seconds() - seconds) / repeat);
            }
        printf("%3d %5d %3d %3d %3d | %10.2f %8.1f | %11.2f %8.1f | %9.1f\n", B, T, NH, NKV, HS,
               best[0] * 1e3, 2e-9 * flops / best[0], best[1] * 1e3, 5e-9 * flops / best[1],
               best[2] * 1e6);
        free(qkv);
        free(dqkv);
        free(out);
        free(dout);
        free(lse);
    }
    return 0;
}
