/*
What the tests of the optimizers call of the matrix product, on both backends. The tests of the CUDA
backend run on the emulator, where device memory is plain memory. They are compiled as C++:

    g++ -std=c++20 -Idev/emu -DCM_CUDA -DCM_EMU -DCM_FP32 ... -x c++ dev/test/test_optim.c
*/
#ifndef CM_TEST_BACKEND_H
#define CM_TEST_BACKEND_H

#include "../../llmc/linalg.h"

/* MOMENTUM_TOL is the tolerance of momenta after three steps: about twenty roundings of fp32. CUDA
   needs twice what gcc's sums need, since a sum has one accumulator there; clang's sums need
   1.01e-6 where the momentum is carried over by an inverse. */
#define MOMENTUM_TOL 2e-6

/* The longest enumerations run one case in SPARSE. */
#ifdef CM_CUDA
enum { SPARSE = 5 };
#else
enum { SPARSE = 1 };
#endif

#ifdef CM_CUDA

/* Selects exact fp32, which the tolerances assume. It runs before main, because some tests do not
   call it. */
static inline int gemm_setup(Compute compute, char *err) {
    (void)compute;
    (void)err;
    cm_gpu.allow_tf32 = 0;
    return 0;
}
__attribute__((unused)) static const int backend_exact = gemm_setup(COMPUTE_FP32, NULL);

static inline void gemm_symmetric(int ta, int tb, int N, int K, floatM alpha, floatM *A, size_t lda,
                                  floatM *B, size_t ldb, floatM beta, floatM *C, size_t ldc) {
    size_t one = 1;
    Mat a = {A, 1, 1, 0, 0, N, K, ta ? one : lda, ta ? lda : one};
    Mat b = {B, 1, 1, 0, 0, K, N, tb ? one : ldb, tb ? ldb : one};
    Mat c = {C, 1, 1, 0, 0, N, N, ldc, 1};
    la_gemm_symmetric(c, (double)alpha, a, b, (double)beta);
}

#endif
#endif
