/*
The kinds of matrix products: the key of a plan, and the operands of one call.
*/
#ifndef CM_CUDA_GEMM_KIND_CUH
#define CM_CUDA_GEMM_KIND_CUH

#include "runtime.cuh"

enum { GEMM_FP32, GEMM_BF16 };
enum { GEMM_WORKSPACE = 32 << 20 }; /* bytes that cuBLASLt may work in: 32 MiB */

/* f of gemm.cuh: what happens to alpha op(A) op(B) + beta C + bias before it is stored as D. */
enum { GEMM_PLAIN, GEMM_GELU, GEMM_DGELU };

/* Where C is read: nowhere (beta = 0), where D is written, or elsewhere. */
enum { GEMM_SETS, GEMM_ADDS, GEMM_ADDS_APART };

template <typename T> struct GemmType;
template <> struct GemmType<float> {
    enum { ID = GEMM_FP32 };
};
template <> struct GemmType<__nv_bfloat16> {
    enum { ID = GEMM_BF16 };
};

/* A kind of call. Kinds are compared and stored byte by byte, so there is no padding and no
   pointer. Strides are in elements. */
typedef struct {
    int ta, tb, M, N, K, batch;
    int in, out;    /* type of A and B; type of C, D, bias and aux */
    int tf32, bias; /* fp32 input is rounded to TF32; bias (N) is added to every row */
    int epilogue;
    int adds;     /* set by gemm_try, as is align */
    int align[4]; /* bytes that the addresses of A, B, of C and D, and of bias are multiples of */
    int64_t lda, ldb, ldc, ldaux; /* D's row stride is ldc */
    int64_t sa, sb, sc, saux;     /* from item to item; 0 repeats one item */
} GemmCall;
static_assert(sizeof(GemmCall) == 16 * sizeof(int) + 8 * sizeof(int64_t), "GemmCall has padding");

typedef struct {
    const void *A, *B, *C, *bias;
    void *D, *aux;
    float alpha, beta;
} GemmOperands;

template <typename IN, typename OUT>
static inline GemmCall gemm_kind(int ta, int tb, int M, int N, int K, size_t lda, size_t ldb,
                                 size_t ldc) {
    GemmCall c;
    memset(&c, 0, sizeof c);
    c.ta = ta;
    c.tb = tb;
    c.M = M;
    c.N = N;
    c.K = K;
    c.batch = 1;
    c.in = GemmType<IN>::ID;
    c.out = GemmType<OUT>::ID;
    c.lda = (int64_t)lda;
    c.ldb = (int64_t)ldb;
    c.ldc = (int64_t)ldc;
    return c;
}

static inline size_t gemm_bytes(int type) { return type == GEMM_BF16 ? 2 : 4; }

/* Bytes from the first element of D to the end of the last. */
static inline size_t gemm_output_bytes(const GemmCall *c) {
    return ((size_t)(c->batch - 1) * (size_t)c->sc + (size_t)(c->M - 1) * (size_t)c->ldc +
            (size_t)c->N) *
           gemm_bytes(c->out);
}

/* The largest power of two up to 16 that divides an address or a distance in bytes. No kernel
   needs more than 16, because cp.async and TMA load that much at a time. With the cap, a product
   at other addresses still gets its algorithm, and so its bits. */
static inline int gemm_alignment(uintptr_t a) {
    int align = 16;
    while (a % (uintptr_t)align) align /= 2;
    return align;
}

/* Alignment of the first item's address and, in a batch, of the distance to the next item. */
static inline int gemm_align_items(const void *p, int64_t stride, int type, int batch) {
    uintptr_t step = batch > 1 ? (uintptr_t)stride * (uintptr_t)gemm_bytes(type) : 0;
    return gemm_alignment((uintptr_t)p | step);
}

static inline void gemm_align(GemmCall *c, const GemmOperands *o) {
    c->align[0] = gemm_align_items(o->A, c->sa, c->in, c->batch);
    c->align[1] = gemm_align_items(o->B, c->sb, c->in, c->batch);
    c->align[2] = min_int(gemm_align_items(o->C, c->sc, c->out, c->batch),
                          gemm_align_items(o->D, c->sc, c->out, c->batch));
    c->align[3] = c->bias ? gemm_alignment((uintptr_t)o->bias) : 0;
}

/* "a matrix product of ...", for messages: gemm_name(&call).text. */
typedef struct {
    char text[320];
} GemmName;
static inline GemmName gemm_name(const GemmCall *c) {
    GemmName name;
    static const char *const epilogues[] = {"", ", GELU", ", GELU's gradient"};
    const char *in = c->in == GEMM_BF16 ? "bf16" : c->tf32 ? "tf32" : "fp32";
    snprintf(name.text, sizeof name.text,
             "a matrix product of %d x %d x %d (%s to %s%s%s%s, transposed %d %d, rows of A, B, C "
             "%lld, %lld, "
             "%lld apart, %d items %lld, %lld, %lld apart, aligned to %d, %d, %d, %d bytes)",
             c->M, c->N, c->K, in, c->out == GEMM_BF16 ? "bf16" : "fp32", c->bias ? ", bias" : "",
             epilogues[c->epilogue], c->adds ? ", added to C" : "", c->ta, c->tb, (long long)c->lda,
             (long long)c->ldb, (long long)c->ldc, c->batch, (long long)c->sa, (long long)c->sb,
             (long long)c->sc, c->align[0], c->align[1], c->align[2], c->align[3]);
    return name;
}

#endif
