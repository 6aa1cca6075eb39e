/*
The CUDA matrix product, by cuBLASLt (gemm_lt.cuh), or under the emulator by a loop (gemm_emu.cuh):
D (M,N) = f(alpha op(A) op(B) + beta C + bias), all matrices row-major, for a batch of equally
spaced items.

ta = 0: A is stored (M,K) with row stride lda. ta = 1: A is stored (K,M) and op(A) = A^T.
tb = 0: B is stored (K,N) with row stride ldb. tb = 1: B is stored (N,K) and op(B) = B^T.
With beta = 0, C is not read. Sums are fp32. f is the identity; or GELU, whose argument is kept in
aux (M,N); or the product with GELU's derivative at aux.

Descriptors, layouts and the algorithm are made once for each kind of call and kept. gemm_choice.cuh
decides on the algorithm. All algorithms in use add in a fixed order: equal runs give equal bits.
*/
#ifndef CM_CUDA_GEMM_CUH
#define CM_CUDA_GEMM_CUH

#include "gemm_choice.cuh"

/* Returns 0; or records a failure and returns -1 if the call is not a product, or is one that
   cuBLASLt's manual forbids. */
static inline int gemm_validate(const GemmCall *c, const GemmOperands *o) {
    const char *wrong = NULL;
    if (c->K < 1) wrong = "sums over nothing";
    if (c->lda < (c->ta ? c->M : c->K) || c->ldb < (c->tb ? c->K : c->N) || c->ldc < c->N)
        wrong = "rows overlap";
    if (c->epilogue != GEMM_PLAIN && (!o->aux || c->ldaux < c->N || c->ldaux % 8 || c->saux % 8))
        wrong = "rows of aux overlap or do not start at multiples of 8";
    if (c->epilogue != GEMM_PLAIN && o->aux == o->D) wrong = "aux is D";
    if (c->epilogue == GEMM_DGELU && c->bias) wrong = "the gradient has no bias";
    if (c->bias && !o->bias) wrong = "there is no bias";
    return wrong ? device_fail("internal error: %s: %s", gemm_name(c).text, wrong) : 0;
}

/* Queues a product. Returns -1 if the library has no algorithm for it; then nothing was written,
   and the caller may try another way. Any other failure is recorded. */
static inline int gemm_try(GemmCall c, GemmOperands o) {
    if (c.M < 1 || c.N < 1 || c.batch < 1 || device_failure()) return 0;
    gemm_start();
    if (o.beta == 0) o.C = o.D;
    c.adds = o.beta == 0 ? GEMM_SETS : o.C == o.D ? GEMM_ADDS : GEMM_ADDS_APART;
    gemm_align(&c, &o);
    if (gemm_validate(&c, &o)) return 0;
    GemmPlan *p = gemm_plan(&c, &o);
    if (!p) return 0;
    if (!p->possible) return -1;
    const char *refused = gemm_run(&p->descriptors, &p->call, &p->algo, &o);
    if (refused) device_fail("the matrix library refuses %s: %s", gemm_name(&c).text, refused);
    return 0;
}

/* D (batch of M,N) += bias (N) in every row. */
template <typename OUT>
__global__ static void __launch_bounds__(256)
    gemm_bias_kernel(OUT *D, const OUT *__restrict__ bias, int M, int N, int batch, size_t ldc,
                     size_t sc) {
    size_t size = (size_t)M * N, all = size * batch, step = (size_t)gridDim.x * 256;
    for (size_t i = (size_t)blockIdx.x * 256 + threadIdx.x; i < all; i += step) {
        size_t n = i % N, at = i / size * sc + i % size / N * ldc + n;
        D[at] = from_float<OUT>(to_float(D[at]) + to_float(bias[n]));
    }
}

/* The product without its bias, then the bias by a kernel of ours. For products whose bias the
   library cannot add, perhaps because their rows have odd lengths. */
static inline int gemm_bias_apart(GemmCall c, const GemmOperands &o) {
    c.bias = 0;
    if (gemm_try(c, o)) return -1;
    unsigned grid =
        (unsigned)min_size(ceil_div((size_t)c.M * (size_t)c.N * (size_t)c.batch, 256), 1024);
    if (c.out == GEMM_BF16)
        LAUNCH(gemm_bias_kernel<__nv_bfloat16>, grid, 256, 0, (__nv_bfloat16 *)o.D,
               (const __nv_bfloat16 *)o.bias, c.M, c.N, c.batch, (size_t)c.ldc, (size_t)c.sc);
    else
        LAUNCH(gemm_bias_kernel<float>, grid, 256, 0, (float *)o.D, (const float *)o.bias, c.M, c.N,
               c.batch, (size_t)c.ldc, (size_t)c.sc);
    return 0;
}

/* One product or one batch, whose bias is added separately if need be. Returns -1 if the library
   has no algorithm. */
static inline int gemm_one(const GemmCall &c, const GemmOperands &o) {
    if (!gemm_try(c, o)) return 0;
    return c.bias && c.epilogue == GEMM_PLAIN ? gemm_bias_apart(c, o) : -1;
}

/* The items of a batch one by one, where the library has no algorithm for the batch, perhaps
   because a stride is 0. Returns -1 if it has none for an item. */
static inline int gemm_items_apart(GemmCall c, GemmOperands o) {
    size_t in = gemm_bytes(c.in), out = gemm_bytes(c.out);
    int n = c.batch;
    c.batch = 1;
    for (int i = 0; i < n; i++) {
        if (gemm_one(c, o)) return -1;
        o.A = (const char *)o.A + (size_t)c.sa * in;
        o.B = (const char *)o.B + (size_t)c.sb * in;
        o.C = (const char *)o.C + (size_t)c.sc * out;
        o.D = (char *)o.D + (size_t)c.sc * out;
        if (o.aux) o.aux = (char *)o.aux + (size_t)c.saux * out;
    }
    return 0;
}

/* One product, or a batch of them. D is laid out like C, and either is C or does not overlap it.
   All items of a batch have one bias. If the library has no algorithm, that is a recorded
   failure. */
static inline void gemm_call(GemmCall c, double alpha, const void *A, const void *B, double beta,
                             const void *C, void *D, const void *bias, void *aux = NULL) {
    const GemmOperands o = {A, B, beta == 0 ? D : C, bias, D, aux, (float)alpha, (float)beta};
    if (!gemm_one(c, o) || (c.batch > 1 && !gemm_items_apart(c, o))) return;
    gemm_align(&c, &o);
    device_fail("the matrix library has no algorithm for %s", gemm_name(&c).text);
}

/* C (M,N) = alpha op(A) op(B) + beta C + bias, with A and B of type IN and C and bias (N, or
   NULL) of type OUT. */
template <typename IN, typename OUT>
static inline void gemm(int ta, int tb, int M, int N, int K, double alpha, const IN *A, size_t lda,
                        const IN *B, size_t ldb, double beta, OUT *C, size_t ldc,
                        const OUT *bias = NULL) {
    GemmCall c = gemm_kind<IN, OUT>(ta, tb, M, N, K, lda, ldb, ldc);
    c.tf32 = cm_gpu.allow_tf32;
    c.bias = bias != NULL;
    gemm_call(c, alpha, A, B, beta, C, C, bias);
}

/* Whether rows `ld` elements apart can be aux. The library wants ld to be a multiple of 8, and
   addresses that are aligned to 16 bytes. aux may be bf16 or fp32. */
static inline int gemm_gelu_possible(size_t ld, const void *aux) {
    return ld % 8 == 0 && (uintptr_t)aux % 16 == 0;
}

/* H (M,N) = op(A) op(B) + bias, rounded to OUT, and Y (M,N) = gelu of H before rounding. Y and H
   may not overlap. The last bits of Y are not those of gelu(H). Returns 0, or -1 if the library
   cannot do this, or not at these addresses; then nothing was written, and the caller uses gemm
   and act_forward. */
template <typename IN, typename OUT>
static inline int gemm_gelu(int ta, int tb, int M, int N, int K, const IN *A, size_t lda,
                            const IN *B, size_t ldb, OUT *Y, size_t ldy, OUT *H, size_t ldh,
                            const OUT *bias = NULL) {
    if (!gemm_gelu_possible(ldh, H)) return -1;
    GemmCall c = gemm_kind<IN, OUT>(ta, tb, M, N, K, lda, ldb, ldy);
    c.tf32 = cm_gpu.allow_tf32;
    c.bias = bias != NULL;
    c.epilogue = GEMM_GELU;
    c.ldaux = (int64_t)ldh;
    return gemm_try(c, {A, B, Y, bias, Y, H, 1, 0});
}

/* D (M,N) = (op(A) op(B)) * gelu'(H), element by element, with H (M,N) from gemm_gelu. D and H
   may not overlap. Returns 0, or -1 if the library cannot do this; then nothing was written, and
   the caller uses gemm and act_backward. */
template <typename IN, typename OUT>
static inline int gemm_dgelu(int ta, int tb, int M, int N, int K, const IN *A, size_t lda,
                             const IN *B, size_t ldb, OUT *D, size_t ldd, const OUT *H,
                             size_t ldh) {
    if (!gemm_gelu_possible(ldh, H)) return -1;
    GemmCall c = gemm_kind<IN, OUT>(ta, tb, M, N, K, lda, ldb, ldd);
    c.tf32 = cm_gpu.allow_tf32;
    c.epilogue = GEMM_DGELU;
    c.ldaux = (int64_t)ldh;
    return gemm_try(c, {A, B, D, NULL, D, const_cast<OUT *>(H), 1, 0});
}

#endif
