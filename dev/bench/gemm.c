/*
GFLOP/s of the matrix products at the shapes of training: the built-in product and, in a build with
oneDNN, oneDNN's fp32 and bf16 products. Each is the best of several rounds. % is relative to the
rate of multiply-adds in registers.

    make build/bench_gemm && build/bench_gemm
*/
#include "../../llmc/cpu/gemm.h"

/* GFLOP/s of multiply-adds in all threads with every operand in a register, the upper bound for the
   vectors of this compiler. */
static double gemm_flops_peak(void) {
    const int CHAINS = 12, ROUNDS = 400000;
    double best = 0;
    for (int round = 0; round < 30; round++) {
        double seconds = now_seconds(), total = 0;
        int threads = 1;
#pragma omp parallel reduction(+ : total)
        {
#ifdef _OPENMP
#pragma omp single
            threads = omp_get_num_threads();
#endif
            gemm_vec c[12], x = (gemm_vec){0} + (floatX)0.999;
            for (int i = 0; i < CHAINS; i++) c[i] = x * (floatX)i;
            for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 12
                for (int i = 0; i < CHAINS; i++) c[i] = c[i] * x + x;
            }
            for (int i = 0; i < CHAINS; i++) total += (double)c[i][0];
        }
        seconds = now_seconds() - seconds;
        double flops = 2.0 * CHAINS * ROUNDS * GEMM_VL * threads / seconds;
        if (total == total && flops > best) best = flops;
    }
    return best * 1e-9;
}

typedef void Product(int, int, int, int, int, floatX, const floatX *, size_t, const floatX *,
                     size_t, floatX, floatX *, size_t);

static double gflops(Product *product, int ta, int tb, int M, int N, int K, const floatX *A,
                     const floatX *B, floatX *C) {
    size_t lda = (size_t)(ta ? M : K), ldb = (size_t)(tb ? K : N);
    double flops = 2.0 * M * N * K, best = 0;
    int repeat = 1 + (int)(2e8 / flops);
    for (int round = 0; round < 8; round++) {
        double seconds = now_seconds();
        for (int i = 0; i < repeat; i++)
            product(ta, tb, M, N, K, 1, A, lda, B, ldb, 0, C, (size_t)N);
        seconds = (now_seconds() - seconds) / repeat;
        if (flops / seconds > best) best = flops / seconds;
    }
    return best * 1e-9;
}

int main(void) {
    static const struct {
        const char *what;
        int ta, tb, M, N, K;
    } shapes[] = {
        {"square", 0, 0, 1024, 1024, 1024},
        {"square A^T", 1, 0, 1024, 1024, 1024},
        {"square B^T", 0, 1, 1024, 1024, 1024},
        {"forward, C = 64", 0, 1, 2048, 256, 64},
        {"forward, C = 256", 0, 1, 4096, 256, 256},
        {"MLP up, C = 256", 0, 1, 4096, 1024, 256},
        {"input gradient", 0, 0, 4096, 256, 1024},
        {"weight gradient", 1, 0, 1024, 256, 4096},
        {"weight, C = 64", 1, 0, 64, 64, 2048},
        {"logits, V = 8192", 0, 1, 2048, 8192, 256},
        {"gram", 0, 1, 256, 256, 1024},
        {"one token", 0, 1, 1, 1024, 1024},
        {"attention block", 0, 1, 32, 128, 32},
    };
    size_t most = (size_t)8192 * 2048;
    floatX *A = (floatX *)malloc(most * sizeof *A), *B = (floatX *)malloc(most * sizeof *B);
    floatX *C = (floatX *)malloc(most * sizeof *C);
    if (!A || !B || !C) die("out of memory: this needs %zu MB", 3 * most * sizeof *A >> 20);
    for (size_t i = 0; i < most; i++) {
        A[i] = (floatX)(i % 1009) / 1009 - (floatX)0.5;
        B[i] = (floatX)(i % 997) / 997 - (floatX)0.5;
    }
    double peak = gemm_flops_peak();
    char err[ERR_LEN] = "";
    int bf16 = gemm_setup(COMPUTE_BF16, err) == 0;
    gemm_setup(COMPUTE_FP32, err);
    printf("%d threads, %.0f GFLOP/s in registers (%d bytes a vector)\ngemm is %s\n",
           thread_count(), peak, GEMM_VEC_BYTES, gemm_describe());
    if (!bf16) printf("no bf16: %s\n", err);
    printf("\n%-18s %5s %5s %5s  built-in     %%     gemm     %%     bf16\n", "", "M", "N", "K");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int ta = shapes[i].ta, tb = shapes[i].tb, M = shapes[i].M, N = shapes[i].N, K = shapes[i].K;
        double own = gflops(gemm_builtin, ta, tb, M, N, K, A, B, C);
        double any = gflops(gemm, ta, tb, M, N, K, A, B, C), low = 0;
        if (bf16) {
            gemm_setup(COMPUTE_BF16, err);
            low = gflops(gemm_model, ta, tb, M, N, K, A, B, C);
            gemm_setup(COMPUTE_FP32, err);
        }
        printf("%-18s %5d %5d %5d  %8.1f  %4.0f %8.1f  %4.0f %8.1f\n", shapes[i].what, M, N, K, own,
               100 * own / peak, any, 100 * any / peak, low);
    }
    free(A);
    free(B);
    free(C);
    return 0;
}
