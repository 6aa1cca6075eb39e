/*
The matrix product by cuBLASLt: descriptors, proposals, timing, and the call. cuBLAS is
column-major, and reads our matrices as their transposes: D^T = op(B)^T op(A)^T, so B comes first.
*/
#ifndef CM_CUDA_GEMM_LT_CUH
#define CM_CUDA_GEMM_LT_CUH

#include "gemm_kind.cuh"
#include <cublasLt.h>

typedef cublasLtMatmulAlgo_t GemmAlgo;
typedef struct {
    cublasLtMatmulDesc_t matmul;
    cublasLtMatrixLayout_t a, b, c;
} GemmDescriptors;

/* Makes a call of cuBLASLt. Returns 0; or, if the call fails, records the failure and returns
   -1. After a failure no further call is made. */
#define GEMM_CHECK(CALL)                                                                           \
    gemm_check(device_failure() ? CUBLAS_STATUS_SUCCESS : (CALL), #CALL, __LINE__)
static inline int gemm_check(cublasStatus_t status, const char *call, int line) {
    if (status == CUBLAS_STATUS_SUCCESS) return device_failure() ? -1 : 0;
    return device_fail("gemm_lt.cuh:%d: %s: %s", line, call, cublasLtGetStatusString(status));
}

/* Describes the GPU: its name and its number of multiprocessors. */
static inline void gemm_device(char *text, size_t size) {
    int device = 0;
    cudaDeviceProp p;
    memset(&p, 0, sizeof p);
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaGetDeviceProperties(&p, device));
    snprintf(text, size, "%.200s %d", p.name, p.multiProcessorCount);
}
static inline size_t gemm_version(void) { return cublasLtGetVersion(); }

/* Creates the handle and the workspace. */
static inline void gemm_start(void) {
    if (cm_gpu.gemm_handle) return;
    GEMM_CHECK(cublasLtCreate(&cm_gpu.gemm_handle));
    CUDA_CHECK(cudaMalloc(&cm_gpu.gemm_workspace, GEMM_WORKSPACE));
}

/* Whether the stream is being captured. Then nothing may be allocated or waited for. */
static inline int gemm_capturing(void) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    CUDA_CHECK(cudaStreamIsCapturing(cm_gpu.stream, &status));
    return status != cudaStreamCaptureStatusNone;
}

/* ---------------------------------------------------------------------------------------------- */
/* descriptors */

template <typename T>
static inline void gemm_set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t name, T value) {
    GEMM_CHECK(cublasLtMatmulDescSetAttribute(d, name, &value, sizeof value));
}

static inline cublasLtMatrixLayout_t gemm_layout(int type, int rows, int cols, int64_t ld,
                                                 int batch, int64_t stride) {
    cublasLtMatrixLayout_t layout = NULL;
    cudaDataType_t cuda_type = type == GEMM_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    GEMM_CHECK(cublasLtMatrixLayoutCreate(&layout, cuda_type, (uint64_t)rows, (uint64_t)cols, ld));
    GEMM_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                                sizeof batch));
    GEMM_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                &stride, sizeof stride));
    return layout;
}

static inline cublasLtEpilogue_t gemm_epilogue(const GemmCall *c) {
    if (c->epilogue == GEMM_GELU)
        return c->bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    if (c->epilogue == GEMM_DGELU) return CUBLASLT_EPILOGUE_DGELU;
    return c->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

/* Makes the descriptors of a kind of call. When the library is asked for algorithms, it reads
   the alignment of bias and aux from the values of their pointers, and does not follow the
   pointers. So they first point into the workspace (aligned to 256 bytes), at places with
   exactly the alignment of the key, whatever the addresses of this call are. The types of bias
   and aux are D's by default. */
static inline void gemm_describe(GemmDescriptors *d, const GemmCall *c) {
    int tf32 = c->tf32 && c->in == GEMM_FP32;
    GEMM_CHECK(cublasLtMatmulDescCreate(
        &d->matmul, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(c->tb ? CUBLAS_OP_T : CUBLAS_OP_N));
    gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(c->ta ? CUBLAS_OP_T : CUBLAS_OP_N));
    gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)gemm_epilogue(c));
    if (c->bias)
        gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                 (const void *)((char *)cm_gpu.gemm_workspace + c->align[3]));
    if (c->epilogue != GEMM_PLAIN) {
        gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
                 (void *)((char *)cm_gpu.gemm_workspace + 16));
        gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, c->ldaux);
        gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, c->saux);
    }
    d->a = gemm_layout(c->in, c->tb ? c->K : c->N, c->tb ? c->N : c->K, c->ldb, c->batch, c->sb);
    d->b = gemm_layout(c->in, c->ta ? c->M : c->K, c->ta ? c->K : c->M, c->lda, c->batch, c->sa);
    d->c = gemm_layout(c->out, c->N, c->M, c->ldc, c->batch, c->sc);
}

static inline void gemm_forget(GemmDescriptors *d) {
    GEMM_CHECK(cublasLtMatmulDescDestroy(d->matmul));
    GEMM_CHECK(cublasLtMatrixLayoutDestroy(d->a));
    GEMM_CHECK(cublasLtMatrixLayoutDestroy(d->b));
    GEMM_CHECK(cublasLtMatrixLayoutDestroy(d->c));
}

/* ---------------------------------------------------------------------------------------------- */
/* algorithms */

/* Which ways of adding up the parts of a sum over k (split-K) are allowed, besides not
   splitting: parts in fp32 in the workspace that a separate step adds, and, where the output is
   fp32, parts in the output type. Not allowed are adding in place, where blocks take turns in
   any order, and parts rounded to bf16. */
static inline uint32_t gemm_reductions(const GemmCall *c) {
    uint32_t mask = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    return c->out == GEMM_FP32 ? mask | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE : mask;
}

/* Whether an algorithm keeps our rules on workspace, on split sums, and on a C that is not D. */
static inline int gemm_allowed(const GemmCall *c, const GemmAlgo *algo, size_t workspace) {
    uint32_t scheme = 0;
    int32_t apart = 0;
    size_t written;
    if (workspace > GEMM_WORKSPACE) return 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                             sizeof scheme, &written) != CUBLAS_STATUS_SUCCESS)
        scheme = 0; /* an algorithm without the attribute does not split */
    if (scheme & ~gemm_reductions(c)) return 0;
    if (c->adds != GEMM_ADDS_APART) return 1;
    return cublasLtMatmulAlgoCapGetAttribute(algo, CUBLASLT_ALGO_CAP_OUT_OF_PLACE_RESULT_SUPPORT,
                                             &apart, sizeof apart,
                                             &written) != CUBLAS_STATUS_SUCCESS ||
           apart;
}

/* Whether an algorithm, which may come from a file, can compute this product here. */
static inline int gemm_algo_runs(const GemmDescriptors *d, const GemmCall *c,
                                 const GemmAlgo *algo) {
    if (device_failure()) return 0;
    cublasLtMatmulHeuristicResult_t result;
    memset(&result, 0, sizeof result);
    cublasStatus_t status = cublasLtMatmulAlgoCheck(cm_gpu.gemm_handle, d->matmul, d->a, d->b, d->c,
                                                    d->c, algo, &result);
    return status == CUBLAS_STATUS_SUCCESS && gemm_allowed(c, algo, result.workspaceSize);
}

static inline cublasLtMatmulPreference_t gemm_preference(const GemmCall *c, uint32_t reductions) {
    static const cublasLtMatmulPreferenceAttributes_t aligned[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint32_t of[4] = {(uint32_t)c->align[1], (uint32_t)c->align[0], (uint32_t)c->align[2],
                            (uint32_t)c->align[2]};
    cublasLtMatmulPreference_t p = NULL;
    uint64_t workspace = GEMM_WORKSPACE;
    GEMM_CHECK(cublasLtMatmulPreferenceCreate(&p));
    GEMM_CHECK(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                    &workspace, sizeof workspace));
    GEMM_CHECK(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                    &reductions, sizeof reductions));
    for (int i = 0; i < 4; i++)
        GEMM_CHECK(cublasLtMatmulPreferenceSetAttribute(p, aligned[i], &of[i], sizeof of[i]));
    return p;
}

/* Fills in up to `most` (at most 16) algorithms, the library's best guess first, and returns how
   many. If the library finds none within the allowed split sums, it is asked for all, and those
   that are not allowed are dropped. */
static inline int gemm_propose(const GemmDescriptors *d, const GemmCall *c, GemmAlgo *algo,
                               int most) {
    cublasLtMatmulHeuristicResult_t results[16];
    int n = 0;
    if (device_failure()) return 0;
    for (int any_sums = 0; any_sums < 2 && !n; any_sums++) {
        int found = 0;
        cublasLtMatmulPreference_t preference = gemm_preference(
            c, any_sums ? (uint32_t)CUBLASLT_REDUCTION_SCHEME_MASK : gemm_reductions(c));
        cublasStatus_t status =
            cublasLtMatmulAlgoGetHeuristic(cm_gpu.gemm_handle, d->matmul, d->a, d->b, d->c, d->c,
                                           preference, min_int(most, 16), results, &found);
        GEMM_CHECK(cublasLtMatmulPreferenceDestroy(preference));
        if (status != CUBLAS_STATUS_SUCCESS) continue; /* the library has none */
        for (int i = 0; i < found; i++)
            if (results[i].state == CUBLAS_STATUS_SUCCESS &&
                gemm_allowed(c, &results[i].algo, results[i].workspaceSize))
                algo[n++] = results[i].algo;
    }
    return n;
}

/* ---------------------------------------------------------------------------------------------- */
/* calls */

/* Queues a product. Returns NULL, or the library's message if it refuses. Scalars are on the
   host. */
static inline const char *gemm_run(GemmDescriptors *d, const GemmCall *c, const GemmAlgo *algo,
                                   const GemmOperands *o) {
    if (device_failure()) return "the device has failed before";
    if (c->bias) gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER, o->bias);
    if (c->epilogue != GEMM_PLAIN)
        gemm_set(d->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, o->aux);
    cublasStatus_t status = cublasLtMatmul(cm_gpu.gemm_handle, d->matmul, &o->alpha, o->B, d->a,
                                           o->A, d->b, &o->beta, o->C, d->c, o->D, d->c, algo,
                                           cm_gpu.gemm_workspace, GEMM_WORKSPACE, cm_gpu.stream);
    return status == CUBLAS_STATUS_SUCCESS ? NULL : cublasLtGetStatusString(status);
}

/* Milliseconds of one of n consecutive runs, or -1 if the algorithm does not run. `event`: two
   events. */
static inline double gemm_time_runs(GemmDescriptors *d, const GemmCall *c, const GemmAlgo *algo,
                                    const GemmOperands *o, int n, cudaEvent_t *event) {
    float ms = 0;
    CUDA_CHECK(cudaEventRecord(event[0], cm_gpu.stream));
    for (int i = 0; i < n; i++)
        if (gemm_run(d, c, algo, o)) return -1;
    CUDA_CHECK(cudaEventRecord(event[1], cm_gpu.stream));
    CUDA_CHECK(cudaEventSynchronize(event[1]));
    CUDA_CHECK(cudaEventElapsedTime(&ms, event[0], event[1]));
    return device_failure() ? -1 : (double)ms / n;
}

/* Milliseconds of one run, or -1 if the algorithm does not run. A first run loads the kernel.
   Then the median of three measurements counts, of several runs each where one run is short; or
   one measurement of a run that takes more than 3 ms. Adds the time of all runs to *spent. */
static inline double gemm_time(GemmDescriptors *d, const GemmCall *c, const GemmAlgo *algo,
                               const GemmOperands *o, double *spent) {
    cudaEvent_t *event = cm_gpu.gemm_events;
    for (int i = 0; i < 2; i++)
        if (!event[i]) CUDA_CHECK(cudaEventCreate(&event[i]));
    if (gemm_run(d, c, algo, o)) {
        cudaGetLastError(); /* clears the error */
        return -1;
    }
    double ms[3];
    ms[0] = gemm_time_runs(d, c, algo, o, 1, event);
    if (ms[0] < 0) return -1;
    *spent += 2 * ms[0];
    if (ms[0] > 3) return ms[0];
    int n = ms[0] > 0.1 ? 1 : ms[0] > 0.01 ? (int)(0.1 / ms[0]) : 10;
    for (int i = 0; i < 3; i++) {
        ms[i] = gemm_time_runs(d, c, algo, o, n, event);
        if (ms[i] < 0) return -1;
        *spent += n * ms[i];
    }
    double low = fmin(ms[0], ms[1]), high = fmax(ms[0], ms[1]);
    return fmax(low, fmin(high, ms[2]));
}

static inline void gemm_library(char *text, size_t size) {
    size_t v = cublasLtGetVersion();
    snprintf(text, size, "cuBLASLt %zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
}

#endif
