/*
The CUDA matrix product, by cuBLASLt: C (M,N) = alpha op(A) op(B) + beta C, everything row-major, for a
batch of equally spaced items.

ta = 0: A is stored (M,K) with row stride lda; ta = 1: A is stored (K,M), op(A) = A^T. Likewise B is
stored (K,N), or (N,K) when tb = 1. beta = 0 never reads C. Sums are fp32.

Descriptors, layouts and the algorithm are made once for each kind of call and kept. The algorithm is the
first that cuBLASLt's heuristic names: choosing by timing would give a resumed run other bits.
Under the emulator the product is computed here, with TF32's rounding where TF32 is asked for.
*/
#ifndef CM_CUDA_GEMM_CUH
#define CM_CUDA_GEMM_CUH

#include "runtime.cuh"
#ifndef CM_EMU
#include <cublasLt.h>
#endif

enum { GEMM_FP32, GEMM_BF16 };
enum { GEMM_WORKSPACE = 32 << 20 }; /* bytes that cuBLASLt may work in */

template <typename T> struct GemmType;
template <> struct GemmType<float> { enum { ID = GEMM_FP32 }; };
template <> struct GemmType<__nv_bfloat16> { enum { ID = GEMM_BF16 }; };

/* A kind of call, compared byte by byte: no padding, no pointers. Strides are in elements. */
typedef struct {
    int ta, tb, M, N, K, batch;
    int in, out;              /* types of A and B, and of C */
    int tf32, bias;           /* fp32 input rounded to TF32; bias (N) of C's type is added to every row */
    int align[4];             /* of A, B, C and bias, in bytes: filled in by gemm_call */
    int64_t lda, ldb, ldc;
    int64_t sa, sb, sc;       /* between items; 0 repeats one */
} GemmCall;

/* Whether fp32 products may use the tensor cores by rounding their input to TF32's ten bits. */
inline int gemm_allow_tf32 = 1;

template <typename IN, typename OUT>
static inline GemmCall gemm_kind(int ta, int tb, int M, int N, int K, size_t lda, size_t ldb, size_t ldc) {
    GemmCall c;
    memset(&c, 0, sizeof c);
    c.ta = ta, c.tb = tb, c.M = M, c.N = N, c.K = K, c.batch = 1;
    c.in = GemmType<IN>::ID, c.out = GemmType<OUT>::ID;
    c.lda = (int64_t)lda, c.ldb = (int64_t)ldb, c.ldc = (int64_t)ldc;
    return c;
}

static inline size_t gemm_bytes(int type) { return type == GEMM_BF16 ? 2 : 4; }

#ifdef CM_EMU

static inline float gemm_read(const void *p, size_t i, int type) {
    return type == GEMM_BF16 ? (float)((const __nv_bfloat16 *)p)[i] : ((const float *)p)[i];
}

/* Ten bits of mantissa, rounded to nearest, ties away from zero. */
static inline float gemm_round_tf32(float x) {
    int bits = __float_as_int(x);
    return isfinite(x) ? __int_as_float((int)(((unsigned)bits + 0x1000u) & ~0x1fffu)) : x;
}

static inline void gemm_emulated(GemmCall c, double alpha, const void *A, const void *B, double beta,
                                 const void *C, void *D, const void *bias) {
    size_t M = (size_t)c.M, N = (size_t)c.N, K = (size_t)c.K;
    float *a = (float *)malloc((K + 1) * sizeof *a), *b = (float *)malloc((K * N + 1) * sizeof *b);
    float *sum = (float *)malloc(N * sizeof *sum);
    if (!a || !b || !sum) die("out of memory: an emulated matrix product");
    int round = c.tf32 && c.in == GEMM_FP32;
    for (int item = 0; item < c.batch; item++) {
        size_t at = (size_t)(c.sa * item), bt = (size_t)(c.sb * item), ct = (size_t)(c.sc * item);
        for (size_t k = 0; k < K; k++)
            for (size_t n = 0; n < N; n++) {
                size_t i = c.tb ? n * (size_t)c.ldb + k : k * (size_t)c.ldb + n;
                float x = gemm_read(B, bt + i, c.in);
                b[k * N + n] = round ? gemm_round_tf32(x) : x;
            }
        for (size_t m = 0; m < M; m++) {
            for (size_t k = 0; k < K; k++) {
                size_t i = c.ta ? k * (size_t)c.lda + m : m * (size_t)c.lda + k;
                float x = gemm_read(A, at + i, c.in);
                a[k] = round ? gemm_round_tf32(x) : x;
            }
            for (size_t n = 0; n < N; n++) sum[n] = 0;
            for (size_t k = 0; k < K; k++)
                for (size_t n = 0; n < N; n++) sum[n] += a[k] * b[k * N + n];
            for (size_t n = 0; n < N; n++) {
                size_t i = ct + m * (size_t)c.ldc + n;
                float y = (float)alpha * sum[n];
                if (beta != 0) y += (float)beta * gemm_read(C, i, c.out);
                if (c.bias) y += gemm_read(bias, n, c.out);
                if (c.out == GEMM_BF16) ((__nv_bfloat16 *)D)[i] = y;
                else ((float *)D)[i] = y;
            }
        }
    }
    free(a);
    free(b);
    free(sum);
}

static inline void gemm_call(GemmCall c, double alpha, const void *A, const void *B, double beta,
                             const void *C, void *D, const void *bias) {
    emu_do([=] { gemm_emulated(c, alpha, A, B, beta, C, D, bias); });
}

static inline void gemm_library(char *text, size_t size) { snprintf(text, size, "emulated"); }

#else

typedef struct {
    GemmCall call;
    cublasLtMatmulDesc_t matmul;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algo;
    int used;
} GemmPlan;

enum { GEMM_PLANS = 4096 };
inline GemmPlan *gemm_plans; /* a hash table, open addressing */
inline int gemm_plan_count;
inline cublasLtHandle_t gemm_handle;
inline void *gemm_workspace;

#define GEMM_CHECK(CALL) gemm_check((CALL), #CALL, __LINE__)
static inline void gemm_check(cublasStatus_t status, const char *call, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) die("gemm.cuh:%d: %s: %s", line, call, cublasLtGetStatusString(status));
}

static inline int gemm_alignment(const void *p) {
    uintptr_t a = (uintptr_t)p;
    int align = 256;
    while (align > 1 && a % (uintptr_t)align) align /= 2;
    return align;
}

static inline cudaDataType_t gemm_cuda_type(int type) { return type == GEMM_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

static inline cublasLtMatrixLayout_t gemm_layout(int type, int rows, int cols, int64_t ld, int batch,
                                                 int64_t stride) {
    cublasLtMatrixLayout_t layout;
    GEMM_CHECK(cublasLtMatrixLayoutCreate(&layout, gemm_cuda_type(type), (uint64_t)rows, (uint64_t)cols, ld));
    GEMM_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                                sizeof batch));
    GEMM_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                sizeof stride));
    return layout;
}

/* cuBLAS is column-major, in which our matrices are their transposes: C^T = op(B)^T op(A)^T, so B comes
   first. The heuristic has to know how the pointers are aligned: it supposes 256 bytes. */
static inline void gemm_plan_make(GemmPlan *p, const GemmCall *c) {
    memset(p, 0, sizeof *p);
    p->call = *c;
    p->used = 1;
    int tf32 = c->tf32 && c->in == GEMM_FP32;
    GEMM_CHECK(cublasLtMatmulDescCreate(&p->matmul, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                                        CUDA_R_32F));
    cublasOperation_t first = c->tb ? CUBLAS_OP_T : CUBLAS_OP_N, second = c->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    GEMM_CHECK(cublasLtMatmulDescSetAttribute(p->matmul, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    GEMM_CHECK(cublasLtMatmulDescSetAttribute(p->matmul, CUBLASLT_MATMUL_DESC_TRANSB, &second,
                                              sizeof second));
    if (c->bias) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        GEMM_CHECK(cublasLtMatmulDescSetAttribute(p->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                  sizeof epilogue));
    }
    p->a = gemm_layout(c->in, c->tb ? c->K : c->N, c->tb ? c->N : c->K, c->ldb, c->batch, c->sb);
    p->b = gemm_layout(c->in, c->ta ? c->M : c->K, c->ta ? c->K : c->M, c->lda, c->batch, c->sa);
    p->c = gemm_layout(c->out, c->N, c->M, c->ldc, c->batch, c->sc);

    static const cublasLtMatmulPreferenceAttributes_t aligned[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const int of[4] = {c->align[1], c->align[0], c->align[2], c->align[2]};
    cublasLtMatmulPreference_t preference;
    size_t workspace = GEMM_WORKSPACE;
    GEMM_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    GEMM_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                    &workspace, sizeof workspace));
    for (int i = 0; i < 4; i++) {
        uint32_t bytes = (uint32_t)of[i];
        GEMM_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, aligned[i], &bytes, sizeof bytes));
    }
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(gemm_handle, p->matmul, p->a, p->b, p->c, p->c,
                                                           preference, 1, &result, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || !found)
        die("cuBLASLt has no algorithm for a product of %d x %d x %d (transposed %d %d, strides %lld %lld "
            "%lld, %d items): %s", c->M, c->N, c->K, c->ta, c->tb, (long long)c->lda, (long long)c->ldb,
            (long long)c->ldc, c->batch, cublasLtGetStatusString(status));
    p->algo = result.algo;
}

/* Creates the handle and the workspace. */
static inline void gemm_start(void) {
    if (gemm_handle) return;
    gemm_plans = (GemmPlan *)calloc(GEMM_PLANS, sizeof *gemm_plans);
    if (!gemm_plans) die("out of memory: plans of matrix products");
    GEMM_CHECK(cublasLtCreate(&gemm_handle));
    CUDA_CHECK(cudaMalloc(&gemm_workspace, GEMM_WORKSPACE));
}

static inline GemmPlan *gemm_plan(const GemmCall *c) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *c; i++) hash = (hash ^ ((const unsigned char *)c)[i]) * 1099511628211u;
    GemmPlan *p = &gemm_plans[hash % GEMM_PLANS];
    while (p->used && memcmp(&p->call, c, sizeof *c))
        p = p + 1 < gemm_plans + GEMM_PLANS ? p + 1 : gemm_plans;
    if (!p->used) {
        if (++gemm_plan_count == GEMM_PLANS) die("too many kinds of matrix products");
        gemm_plan_make(p, c);
    }
    return p;
}

/* One product, or a batch of them: D = alpha op(A) op(B) + beta C. D is laid out like C and may be C.
   Scalars are on the host. */
static inline void gemm_call(GemmCall c, double alpha, const void *A, const void *B, double beta,
                             const void *C, void *D, const void *bias) {
    gemm_start();
    c.align[0] = gemm_alignment(A), c.align[1] = gemm_alignment(B);
    c.align[2] = min_int(gemm_alignment(C), gemm_alignment(D));
    c.align[3] = c.bias ? gemm_alignment(bias) : 0;
    if (c.batch > 1) { /* the other items are aligned by their strides */
        int64_t in = (int64_t)gemm_bytes(c.in), out = (int64_t)gemm_bytes(c.out);
        c.align[0] = min_int(c.align[0], gemm_alignment((void *)(uintptr_t)(c.sa * in)));
        c.align[1] = min_int(c.align[1], gemm_alignment((void *)(uintptr_t)(c.sb * in)));
        c.align[2] = min_int(c.align[2], gemm_alignment((void *)(uintptr_t)(c.sc * out)));
    }
    GemmPlan *p = gemm_plan(&c);
    float a = (float)alpha, b = (float)beta;
    if (c.bias)
        GEMM_CHECK(cublasLtMatmulDescSetAttribute(p->matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                                  sizeof bias));
    GEMM_CHECK(cublasLtMatmul(gemm_handle, p->matmul, &a, B, p->a, A, p->b, &b, C, p->c, D, p->c, &p->algo,
                              gemm_workspace, GEMM_WORKSPACE, cuda_stream));
}

static inline void gemm_library(char *text, size_t size) {
    size_t v = cublasLtGetVersion();
    snprintf(text, size, "cuBLASLt %zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
}

#endif

/* A (M,K), B (K,N) of IN, C (M,N) of OUT; see above. */
template <typename IN, typename OUT>
static inline void gemm(int ta, int tb, int M, int N, int K, double alpha, const IN *A, size_t lda,
                        const IN *B, size_t ldb, double beta, OUT *C, size_t ldc, const OUT *bias = NULL) {
    GemmCall c = gemm_kind<IN, OUT>(ta, tb, M, N, K, lda, ldb, ldc);
    c.tf32 = gemm_allow_tf32;
    c.bias = bias != NULL;
    gemm_call(c, alpha, A, B, beta, C, C, bias);
}

#endif
