/*
cuDNN's fused attention, where there is a cuDNN and it is faster than ours: causal, bf16, grouped heads,
forward and backward, deterministic.

Only the C interface is used (cudnn_backend.h), and the library is loaded when the program runs, so that
the program needs no cuDNN and does not link with it. Whatever goes wrong in cuDNN means "not available",
with its own words for it; llmc/cuda/attention.cuh works everywhere.

cuDNN is told what attention is as a graph of operations on tensors (B,NH,T,HS) and on virtual ones
(B,NH,T,T), which have no memory, and finds a kernel that does all of it. The one operation that it calls
attention has no causal mask before cuDNN 9.21, and none backward. The graph is, after its documentation,

    forward    s = scale q k^T; s = row >= column ? s : -inf; m = max s; e = exp(s - m); z = sum e
               lse = m + log z; out = (e / z) v
    backward   D = sum dout out; s as before; p = exp(s - lse); dv = p^T dout
               ds = scale p (dout v^T - D); dk = ds^T q; dq = ds k

With dq the product itself cuDNN keeps ds, B NH T T numbers of bf16, in its workspace and multiplies them
in a kernel of their own. Given a float sum of dq beside it, it would need none of that, but would add to
the sum in any order. With fewer key heads than query heads, dk and dv are sums over the heads of a group.
*/
#ifndef CM_CUDA_CUDNN_CUH
#define CM_CUDA_CUDNN_CUH

#include <float.h>

#include "../config.h"
#include "attention.cuh"

#if !defined(CM_EMU) && !defined(CM_FP32) && defined(__has_include)
#if __has_include(<cudnn_backend.h>) && __has_include(<cudnn_version.h>)
#include <cudnn_version.h>
#if CUDNN_MAJOR == 9
#include <cudnn_backend.h>
#include <dlfcn.h>
#define CM_CUDNN
#endif
#endif
#endif

/* Says why not, and returns -1. */
__attribute__((format(printf, 3, 4)))
static inline int cudnn_refuse(char *why, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (size) vsnprintf(why, size, format, args);
    va_end(args);
    return -1;
}

#ifndef CM_CUDNN

static inline int cudnn_start(char *why, size_t size) {
#if defined(CM_EMU)
    return cudnn_refuse(why, size, "no cuDNN under the emulator");
#elif defined(CM_FP32)
    return cudnn_refuse(why, size, "cuDNN's attention is for bf16");
#else
    return cudnn_refuse(why, size, "built without cudnn_backend.h of cuDNN 9");
#endif
}
static inline int cudnn_attention_plan(int, int, int, int, int, double, char *why, size_t size) {
    return cudnn_start(why, size);
}
static inline size_t cudnn_attention_workspace(int, int, int, int, int, double) { return 0; }
static inline int cudnn_attention_forward(floatX *, floatM *, const floatX *, int, int, int, int, int,
                                          double) {
    return -1;
}
static inline int cudnn_attention_backward(floatX *, const floatX *, const floatX *, const floatX *,
                                           const floatM *, int, int, int, int, int, double) {
    return -1;
}
static inline int cudnn_try(const Config *, double *, char *why, size_t size) {
    return cudnn_start(why, size);
}
static inline void cudnn_name(char *text, size_t size) { snprintf(text, size, "cuDNN"); }
static inline void cudnn_free_plans(void) {}

#else

/* ---------------------------------------------------------------------------------------------- */
/* the library */

#define CUDNN_FUNCTIONS(DO)                                                                        \
    DO(GetVersion) DO(GetErrorString) DO(GetLastErrorString) DO(Create) DO(Destroy) DO(SetStream)  \
    DO(BackendCreateDescriptor) DO(BackendDestroyDescriptor) DO(BackendSetAttribute)               \
    DO(BackendGetAttribute) DO(BackendFinalize) DO(BackendExecute)

typedef struct {
#define CUDNN_MEMBER(NAME) decltype(&cudnn##NAME) NAME;
    CUDNN_FUNCTIONS(CUDNN_MEMBER)
#undef CUDNN_MEMBER
    cudnnHandle_t handle;
    int started, version; /* 91900: 9.19.0 */
} Cudnn;
inline Cudnn cudnn;

/* Finds the library and its functions. */
static inline int cudnn_load(char *why, size_t size) {
    if (cudnn.BackendExecute) return 0;
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!library) library = dlopen("libcudnn.so", RTLD_NOW | RTLD_LOCAL);
    if (!library) return cudnn_refuse(why, size, "no cuDNN library");
    const char *missing = NULL;
#define CUDNN_SYMBOL(NAME)                                                                         \
    cudnn.NAME = (decltype(&cudnn##NAME))dlsym(library, "cudnn" #NAME);                            \
    if (!cudnn.NAME) missing = "cudnn" #NAME;
    CUDNN_FUNCTIONS(CUDNN_SYMBOL)
#undef CUDNN_SYMBOL
    if (missing) {
        memset(&cudnn, 0, sizeof cudnn);
        dlclose(library);
        return cudnn_refuse(why, size, "the cuDNN library has no %s", missing);
    }
    cudnn.version = (int)cudnn.GetVersion();
    return 0;
}

static inline void cudnn_name(char *text, size_t size) {
    snprintf(text, size, "cuDNN %d.%d", cudnn.version / 10000, cudnn.version / 100 % 100);
}

/* cuDNN's words for the last failure. */
static inline int cudnn_explain(cudnnStatus_t status, const char *what, char *why, size_t size) {
    char name[32], text[256] = "";
    cudnn_name(name, sizeof name);
    cudnn.GetLastErrorString(text, sizeof text);
    text[sizeof text - 1] = 0;
    for (char *c = text; *c; c++)
        if (*c == '\n' || *c == '"') *c = ' ';
    return cudnn_refuse(why, size, "%s: %s: %s%s%s", name, what, cudnn.GetErrorString(status),
                        text[0] ? ": " : "", text);
}

/* Loads the library and makes its handle on cuda_stream. */
static inline int cudnn_start(char *why, size_t size) {
    if (cudnn.started) return 0;
    if (cudnn_load(why, size)) return -1;
    char name[32];
    cudnn_name(name, sizeof name);
    if (cudnn.version / 10000 != 9) return cudnn_refuse(why, size, "%s is not cuDNN 9", name);
    if (cudnn.version == 91000 || cudnn.version == 91001)
        return cudnn_refuse(why, size, "%s.%d has known mistakes in attention", name, cudnn.version % 100);
    cudnnStatus_t status = cudnn.Create(&cudnn.handle);
    if (status != CUDNN_STATUS_SUCCESS) return cudnn_explain(status, "cudnnCreate", why, size);
    status = cudnn.SetStream(cudnn.handle, cuda_stream);
    if (status != CUDNN_STATUS_SUCCESS) {
        cudnn.Destroy(cudnn.handle);
        return cudnn_explain(status, "cudnnSetStream", why, size);
    }
    cudnn.started = 1;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* graphs */

/* Everything made for one graph. After the first failure nothing more is done, and `why` says what it
   was; so only the end of a sequence has to look. */
enum { CUDNN_DESCRIPTORS = 256, CUDNN_OPERATIONS = 32 };
typedef struct {
    cudnnBackendDescriptor_t made[CUDNN_DESCRIPTORS], operations[CUDNN_OPERATIONS];
    int count, operation_count, failed;
    int64_t B, T, NH, NKV, HS, virtual_id;
    char why[320];
} CudnnGraph;

typedef cudnnBackendDescriptor_t CudnnDescriptor;

static inline void cudnn_fail(CudnnGraph *g, cudnnStatus_t status, const char *what) {
    if (!g->failed) cudnn_explain(status, what, g->why, sizeof g->why);
    g->failed = 1;
}

static inline CudnnDescriptor cudnn_make(CudnnGraph *g, cudnnBackendDescriptorType_t type) {
    CudnnDescriptor d = NULL;
    if (g->failed) return NULL;
    if (g->count == CUDNN_DESCRIPTORS) {
        g->failed = 1;
        cudnn_refuse(g->why, sizeof g->why, "internal error: too many descriptors");
        return NULL;
    }
    cudnnStatus_t status = cudnn.BackendCreateDescriptor(type, &d);
    if (status != CUDNN_STATUS_SUCCESS) {
        cudnn_fail(g, status, "a descriptor");
        return NULL;
    }
    return g->made[g->count++] = d;
}

static inline void cudnn_set(CudnnGraph *g, CudnnDescriptor d, cudnnBackendAttributeName_t name,
                             cudnnBackendAttributeType_t type, int64_t n, const void *values) {
    if (g->failed) return;
    cudnnStatus_t status = cudnn.BackendSetAttribute(d, name, type, n, values);
    if (status == CUDNN_STATUS_SUCCESS) return;
    char what[40];
    snprintf(what, sizeof what, "attribute %d", (int)name);
    cudnn_fail(g, status, what);
}

static inline void cudnn_set_descriptor(CudnnGraph *g, CudnnDescriptor d, cudnnBackendAttributeName_t name,
                                        CudnnDescriptor value) {
    cudnn_set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static inline void cudnn_finalize(CudnnGraph *g, CudnnDescriptor d, const char *what) {
    if (g->failed) return;
    cudnnStatus_t status = cudnn.BackendFinalize(d);
    if (status != CUDNN_STATUS_SUCCESS) cudnn_fail(g, status, what);
}

static inline void cudnn_free_graph(CudnnGraph *g) {
    while (g->count) cudnn.BackendDestroyDescriptor(g->made[--g->count]);
    g->operation_count = 0;
}

/* Names of the tensors that are not virtual. SCALE and the others by value are read on the host. */
enum { CUDNN_Q = 1, CUDNN_K, CUDNN_V, CUDNN_OUT, CUDNN_LSE, CUDNN_DOUT, CUDNN_DQ, CUDNN_DK, CUDNN_DV, CUDNN_D,
       CUDNN_SCALE, CUDNN_MASKED, CUDNN_ONE, CUDNN_VIRTUAL };

/* id CUDNN_VIRTUAL: a tensor without memory. Sizes and strides are in elements. */
static inline CudnnDescriptor cudnn_tensor(CudnnGraph *g, int64_t id, cudnnDataType_t type, int n,
                                           const int64_t *sizes, const int64_t *strides) {
    CudnnDescriptor d = cudnn_make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    bool is_virtual = id == CUDNN_VIRTUAL, by_value = id >= CUDNN_SCALE && id < CUDNN_VIRTUAL;
    int64_t alignment = 16;
    if (is_virtual) id += g->virtual_id++;
    cudnn_set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    cudnn_set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, n, sizes);
    cudnn_set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, n, strides);
    cudnn_set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    cudnn_set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    cudnn_set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    cudnn_set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    cudnn_finalize(g, d, "a tensor");
    return d;
}

/* A dense tensor (B,NH,a,b). */
static inline CudnnDescriptor cudnn_dense(CudnnGraph *g, int64_t id, cudnnDataType_t type, int64_t a,
                                          int64_t b) {
    const int64_t sizes[4] = {g->B, g->NH, a, b}, strides[4] = {g->NH * a * b, a * b, b, 1};
    return cudnn_tensor(g, id, type, 4, sizes, strides);
}
/* Virtual: scores (B,NH,T,T), and one number a row (B,NH,T,1). */
static inline CudnnDescriptor cudnn_scores(CudnnGraph *g) {
    return cudnn_dense(g, CUDNN_VIRTUAL, CUDNN_DATA_FLOAT, g->T, g->T);
}
static inline CudnnDescriptor cudnn_rows(CudnnGraph *g, int64_t id) {
    return cudnn_dense(g, id, CUDNN_DATA_FLOAT, g->T, 1);
}
/* Virtual, scores read column by column: (B,NH,T,T) again, in bf16. */
static inline CudnnDescriptor cudnn_scores_t(CudnnGraph *g) {
    const int64_t sizes[4] = {g->B, g->NH, g->T, g->T};
    const int64_t strides[4] = {g->NH * g->T * g->T, g->T * g->T, 1, g->T};
    return cudnn_tensor(g, CUDNN_VIRTUAL, CUDNN_DATA_BFLOAT16, 4, sizes, strides);
}
/* `heads` heads in rows (B,T) of `width` elements: (B,heads,T,HS), or transposed (B,heads,HS,T). */
static inline CudnnDescriptor cudnn_heads(CudnnGraph *g, int64_t id, int64_t heads, int64_t width,
                                          int transposed) {
    const int64_t sizes[4] = {g->B, heads, transposed ? g->HS : g->T, transposed ? g->T : g->HS};
    const int64_t strides[4] = {g->T * width, g->HS, transposed ? 1 : width, transposed ? width : 1};
    return cudnn_tensor(g, id, CUDNN_DATA_BFLOAT16, 4, sizes, strides);
}
static inline CudnnDescriptor cudnn_number(CudnnGraph *g, int64_t id) {
    const int64_t one[4] = {1, 1, 1, 1};
    return cudnn_tensor(g, id, CUDNN_DATA_FLOAT, 4, one, one);
}

static inline void cudnn_operation(CudnnGraph *g, CudnnDescriptor op, const char *what) {
    cudnn_finalize(g, op, what);
    if (!g->failed) g->operations[g->operation_count++] = op; /* fewer than 32 by construction */
}

/* c = a b, of the last two dimensions. */
static inline CudnnDescriptor cudnn_matmul(CudnnGraph *g, CudnnDescriptor a, CudnnDescriptor b,
                                           CudnnDescriptor c) {
    cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    CudnnDescriptor kind = cudnn_make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    cudnn_set(g, kind, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    cudnn_finalize(g, kind, "a product");
    CudnnDescriptor op = cudnn_make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
    cudnn_operation(g, op, "a product");
    return c;
}

/* y = mode(x, b, t), element by element; b and t may be NULL. */
static inline CudnnDescriptor cudnn_pointwise(CudnnGraph *g, cudnnPointwiseMode_t mode,
                                              cudnnDataType_t precision, CudnnDescriptor x, CudnnDescriptor b,
                                              CudnnDescriptor t, CudnnDescriptor y, int64_t axis) {
    CudnnDescriptor kind = cudnn_make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    cudnn_set(g, kind, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    cudnn_set(g, kind, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    if (mode == CUDNN_POINTWISE_GEN_INDEX)
        cudnn_set(g, kind, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    cudnn_finalize(g, kind, "an operation");
    CudnnDescriptor op = cudnn_make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    if (t) cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    cudnn_operation(g, op, "an operation");
    return y;
}

/* The same in float. */
static inline CudnnDescriptor cudnn_map(CudnnGraph *g, cudnnPointwiseMode_t mode, CudnnDescriptor x,
                                        CudnnDescriptor b, CudnnDescriptor y) {
    return cudnn_pointwise(g, mode, CUDNN_DATA_FLOAT, x, b, NULL, y, 0);
}

/* y = x summed, or its maximum, over the dimensions that are 1, or smaller, in y. */
static inline CudnnDescriptor cudnn_reduce(CudnnGraph *g, cudnnReduceTensorOp_t mode, CudnnDescriptor x,
                                           CudnnDescriptor y) {
    cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    CudnnDescriptor kind = cudnn_make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    cudnn_set(g, kind, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    cudnn_set(g, kind, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    cudnn_finalize(g, kind, "a reduction");
    CudnnDescriptor op = cudnn_make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
    cudnn_operation(g, op, "a reduction");
    return y;
}

/* y = x with other sizes or strides: a transpose. */
static inline CudnnDescriptor cudnn_reshape(CudnnGraph *g, CudnnDescriptor x, CudnnDescriptor y) {
    CudnnDescriptor op = cudnn_make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    cudnn_set_descriptor(g, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    cudnn_operation(g, op, "a transpose");
    return y;
}

/* s where the key's column is at most the query's row, else the number `masked`. */
static inline CudnnDescriptor cudnn_causal(CudnnGraph *g, CudnnDescriptor s) {
    CudnnDescriptor row = cudnn_dense(g, CUDNN_VIRTUAL, CUDNN_DATA_INT32, g->T, g->T);
    CudnnDescriptor column = cudnn_dense(g, CUDNN_VIRTUAL, CUDNN_DATA_INT32, g->T, g->T);
    CudnnDescriptor keep = cudnn_dense(g, CUDNN_VIRTUAL, CUDNN_DATA_BOOLEAN, g->T, g->T);
    cudnn_pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, s, NULL, NULL, row, 2);
    cudnn_pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, s, NULL, NULL, column, 3);
    cudnn_pointwise(g, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, row, column, NULL, keep, 0);
    CudnnDescriptor masked = cudnn_number(g, CUDNN_MASKED);
    CudnnDescriptor y = cudnn_scores(g);
    return cudnn_pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, s, masked, keep, y, 0);
}

/* scale q k^T from q and the transposed k. */
static inline CudnnDescriptor cudnn_scaled_scores(CudnnGraph *g, CudnnDescriptor q, CudnnDescriptor kt,
                                                  CudnnDescriptor scale) {
    return cudnn_map(g, CUDNN_POINTWISE_MUL, cudnn_matmul(g, q, kt, cudnn_scores(g)), scale, cudnn_scores(g));
}

static inline void cudnn_forward_graph(CudnnGraph *g) {
    int64_t C = g->NH * g->HS, C3 = C + 2 * g->NKV * g->HS;
    CudnnDescriptor q = cudnn_heads(g, CUDNN_Q, g->NH, C3, 0), kt = cudnn_heads(g, CUDNN_K, g->NKV, C3, 1);
    CudnnDescriptor v = cudnn_heads(g, CUDNN_V, g->NKV, C3, 0), out = cudnn_heads(g, CUDNN_OUT, g->NH, C, 0);
    CudnnDescriptor lse = cudnn_rows(g, CUDNN_LSE);
    CudnnDescriptor s = cudnn_causal(g, cudnn_scaled_scores(g, q, kt, cudnn_number(g, CUDNN_SCALE)));
    CudnnDescriptor m = cudnn_reduce(g, CUDNN_REDUCE_TENSOR_MAX, s, cudnn_rows(g, CUDNN_VIRTUAL));
    CudnnDescriptor shifted = cudnn_map(g, CUDNN_POINTWISE_SUB, s, m, cudnn_scores(g));
    CudnnDescriptor e = cudnn_map(g, CUDNN_POINTWISE_EXP, shifted, NULL, cudnn_scores(g));
    CudnnDescriptor z = cudnn_reduce(g, CUDNN_REDUCE_TENSOR_ADD, e, cudnn_rows(g, CUDNN_VIRTUAL));
    CudnnDescriptor logarithm = cudnn_map(g, CUDNN_POINTWISE_LOG, z, NULL, cudnn_rows(g, CUDNN_VIRTUAL));
    cudnn_map(g, CUDNN_POINTWISE_ADD, m, logarithm, lse);
    CudnnDescriptor p = cudnn_dense(g, CUDNN_VIRTUAL, CUDNN_DATA_BFLOAT16, g->T, g->T);
    cudnn_matmul(g, cudnn_map(g, CUDNN_POINTWISE_DIV, e, z, p), v, out);
}

/* x^T y into `out`; with grouped heads by way of the sums of all query heads. */
static inline void cudnn_key_gradient(CudnnGraph *g, CudnnDescriptor x, CudnnDescriptor y,
                                      CudnnDescriptor out) {
    CudnnDescriptor xt = cudnn_reshape(g, x, cudnn_scores_t(g));
    if (g->NH == g->NKV) {
        cudnn_matmul(g, xt, y, out);
        return;
    }
    CudnnDescriptor all = cudnn_dense(g, CUDNN_VIRTUAL, CUDNN_DATA_BFLOAT16, g->T, g->HS);
    cudnn_reduce(g, CUDNN_REDUCE_TENSOR_ADD, cudnn_matmul(g, xt, y, all), out);
}

static inline void cudnn_backward_graph(CudnnGraph *g) {
    int64_t C = g->NH * g->HS, C3 = C + 2 * g->NKV * g->HS;
    CudnnDescriptor q = cudnn_heads(g, CUDNN_Q, g->NH, C3, 0), kt = cudnn_heads(g, CUDNN_K, g->NKV, C3, 1);
    CudnnDescriptor vt = cudnn_heads(g, CUDNN_V, g->NKV, C3, 1), out = cudnn_heads(g, CUDNN_OUT, g->NH, C, 0);
    CudnnDescriptor dout = cudnn_heads(g, CUDNN_DOUT, g->NH, C, 0), lse = cudnn_rows(g, CUDNN_LSE);
    CudnnDescriptor scale = cudnn_number(g, CUDNN_SCALE), D = cudnn_rows(g, CUDNN_D);

    CudnnDescriptor both = cudnn_dense(g, CUDNN_VIRTUAL, CUDNN_DATA_FLOAT, g->T, g->HS);
    cudnn_map(g, CUDNN_POINTWISE_MUL, dout, out, both);
    CudnnDescriptor sum = cudnn_reduce(g, CUDNN_REDUCE_TENSOR_ADD, both, cudnn_rows(g, CUDNN_VIRTUAL));
    cudnn_map(g, CUDNN_POINTWISE_MUL, sum, cudnn_number(g, CUDNN_ONE), D); /* cuDNN looks for a factor here */

    CudnnDescriptor s = cudnn_scaled_scores(g, q, kt, scale);
    s = cudnn_causal(g, cudnn_map(g, CUDNN_POINTWISE_SUB, s, lse, cudnn_scores(g)));
    CudnnDescriptor p = cudnn_map(g, CUDNN_POINTWISE_EXP, s, NULL, cudnn_scores(g));
    cudnn_key_gradient(g, p, dout, cudnn_heads(g, CUDNN_DV, g->NKV, C3, 0));

    CudnnDescriptor dp = cudnn_matmul(g, dout, vt, cudnn_scores(g));
    CudnnDescriptor less = cudnn_map(g, CUDNN_POINTWISE_SUB, dp, D, cudnn_scores(g));
    CudnnDescriptor product = cudnn_map(g, CUDNN_POINTWISE_MUL, less, p, cudnn_scores(g));
    CudnnDescriptor ds = cudnn_map(g, CUDNN_POINTWISE_MUL, product, scale, cudnn_scores(g));
    cudnn_key_gradient(g, ds, q, cudnn_heads(g, CUDNN_DK, g->NKV, C3, 0));
    CudnnDescriptor k = cudnn_reshape(g, kt, cudnn_heads(g, CUDNN_VIRTUAL, g->NKV, C3, 0));
    cudnn_matmul(g, ds, k, cudnn_heads(g, CUDNN_DQ, g->NH, C3, 0));
}

/* ---------------------------------------------------------------------------------------------- */
/* plans */

/* One direction of attention at one shape. The graph's descriptors live as long as the plan. */
typedef struct {
    CudnnGraph graph;
    CudnnDescriptor plan;
    int backward;
    size_t workspace; /* bytes */
} CudnnPlan;

enum { CUDNN_PLANS = 16 };
inline CudnnPlan *cudnn_plans[CUDNN_PLANS];
inline int cudnn_plan_count;

/* The operations as one graph, and cuDNN's proposals for it, the best first; returns how many. */
static inline int64_t cudnn_configurations(CudnnGraph *g, CudnnDescriptor *configs, int64_t most) {
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    int64_t n = 0;
    CudnnDescriptor whole = cudnn_make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    cudnn_set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->operation_count,
              g->operations);
    cudnn_set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &cudnn.handle);
    cudnn_finalize(g, whole, "its graph");
    CudnnDescriptor search = cudnn_make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    cudnn_set_descriptor(g, search, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
    cudnn_set(g, search, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    cudnn_finalize(g, search, "a kernel for it");
    for (int64_t i = 0; i < most; i++) configs[i] = cudnn_make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (g->failed) return 0;
    cudnnStatus_t status = cudnn.BackendGetAttribute(search, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, most, &n, configs);
    if (status != CUDNN_STATUS_SUCCESS) cudnn_fail(g, status, "its kernels");
    return g->failed ? 0 : n < most ? n : most;
}

/* Whether the engine of a configuration says that equal runs give equal bits. */
static inline int cudnn_deterministic(CudnnGraph *g, CudnnDescriptor config) {
    cudnnBackendNumericalNote_t notes[64];
    int64_t n = 0, most = (int64_t)(sizeof notes / sizeof notes[0]);
    CudnnDescriptor engine = cudnn_make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    if (g->failed) return 0;
    cudnnStatus_t status = cudnn.BackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE,
                                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine);
    if (status == CUDNN_STATUS_SUCCESS)
        status = cudnn.BackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                           CUDNN_TYPE_NUMERICAL_NOTE, most, &n, notes);
    if (status != CUDNN_STATUS_SUCCESS) return 0;
    for (int64_t i = 0; i < n && i < most; i++)
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return 0;
    return 1;
}

/* A plan of one configuration, which compiles its kernels; NULL where that fails. */
static inline CudnnDescriptor cudnn_plan_config(CudnnGraph *g, CudnnDescriptor config, size_t *workspace) {
    int64_t bytes = 0, count = 0;
    CudnnDescriptor plan = cudnn_make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    cudnn_set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    cudnn_set(g, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &cudnn.handle);
    cudnn_finalize(g, plan, "a plan");
    if (g->failed) return NULL;
    cudnnStatus_t status = cudnn.BackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                                     CUDNN_TYPE_INT64, 1, &count, &bytes);
    if (status != CUDNN_STATUS_SUCCESS || bytes < 0) cudnn_fail(g, status, "the workspace");
    *workspace = (size_t)bytes;
    return g->failed ? NULL : plan;
}

/* Makes the plan of the first proposal that can be carried out in equal bits. */
static inline void cudnn_plan_make(CudnnPlan *p) {
    enum { MOST = 8 };
    CudnnGraph *g = &p->graph;
    CudnnDescriptor configs[MOST];
    if (p->backward) cudnn_backward_graph(g);
    else cudnn_forward_graph(g);
    int64_t n = cudnn_configurations(g, configs, MOST);
    if (g->failed) return;
    int tried = 0;
    for (int64_t i = 0; i < n && !p->plan; i++) {
        g->failed = 0; /* the one before this */
        if (!cudnn_deterministic(g, configs[i])) continue;
        p->plan = cudnn_plan_config(g, configs[i], &p->workspace);
        tried++;
    }
    g->failed = !p->plan;
    if (tried) return;
    cudnn_refuse(g->why, sizeof g->why, "cuDNN has no %skernel for this", n ? "deterministic " : "");
}

/* What is known not to work, or not to be right. */
static inline int cudnn_check_shape(int T, int NH, int NKV, int HS, char *why, size_t size) {
    char name[32];
    cudnn_name(name, sizeof name);
    if (HS % 8 || HS > 128)
        return cudnn_refuse(why, size, "%s takes head widths of 8, 16 .. 128, not %d", name, HS);
    if (NH % NKV) return cudnn_refuse(why, size, "%s: %d heads do not share %d", name, NH, NKV);
    if (T < 2) return cudnn_refuse(why, size, "%s needs more than one position", name);
    if (T % 128 && cudnn.version <= 91500)
        return cudnn_refuse(why, size, "%s needs a multiple of 128 positions", name);
    return 0;
}

static inline int cudnn_same_heads(const CudnnPlan *p, int T, int NH, int NKV, int HS, int backward) {
    const CudnnGraph *g = &p->graph;
    return g->T == T && g->NH == NH && g->NKV == NKV && g->HS == HS && p->backward == backward;
}

/* The plan, made if need be; NULL where there is none. Refused ones are kept too, to be refused again. */
static inline CudnnPlan *cudnn_plan(int B, int T, int NH, int NKV, int HS, int backward, char *why,
                                    size_t size) {
    if (cudnn_check_shape(T, NH, NKV, HS, why, size)) return NULL;
    CudnnPlan *p = NULL;
    for (int i = 0; i < cudnn_plan_count && !p; i++)
        if (cudnn_same_heads(cudnn_plans[i], T, NH, NKV, HS, backward) && cudnn_plans[i]->graph.B == B)
            p = cudnn_plans[i];
    if (!p) {
        p = cudnn_plan_count < CUDNN_PLANS ? (CudnnPlan *)calloc(1, sizeof *p) : NULL;
        if (!p) {
            cudnn_refuse(why, size, "no room for a plan");
            return NULL;
        }
        cudnn_plans[cudnn_plan_count++] = p;
        p->backward = backward;
        p->graph.B = B, p->graph.T = T, p->graph.NH = NH, p->graph.NKV = NKV, p->graph.HS = HS;
        cudnn_plan_make(p);
        if (p->graph.failed) {
            cudnn_free_graph(&p->graph);
            p->plan = NULL;
        }
    }
    if (!p->plan) cudnn_refuse(why, size, "%s", p->graph.why);
    return p->plan ? p : NULL;
}

static inline void cudnn_free_plans(void) {
    while (cudnn_plan_count) {
        CudnnPlan *p = cudnn_plans[--cudnn_plan_count];
        cudnn_free_graph(&p->graph);
        free(p);
    }
}

/* Makes the plans of both directions; -1 and why not. */
static inline int cudnn_attention_plan(int B, int T, int NH, int NKV, int HS, double scale, char *why,
                                       size_t size) {
    (void)scale; /* is a number that the kernels read */
    if (cudnn_start(why, size)) return -1;
    for (int backward = 0; backward < 2; backward++)
        if (!cudnn_plan(B, T, NH, NKV, HS, backward, why, size)) return -1;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* attention */

/* Bytes of D (B,NH,T), which lie before the plan's own workspace in the scratch of a backward pass. */
static inline size_t cudnn_row_bytes(int B, int T, int NH) {
    return ((size_t)B * T * NH * sizeof(float) + 255) / 256 * 256;
}

/* Bytes of scratch that both directions need, 0 where nothing of this shape is planned. Of a batch that
   is not planned, in proportion to one that is. */
static inline size_t cudnn_attention_workspace(int B, int T, int NH, int NKV, int HS, double scale) {
    size_t most = 0;
    (void)scale;
    for (int i = 0; i < cudnn_plan_count; i++)
        for (int backward = 0; backward < 2; backward++) {
            const CudnnPlan *p = cudnn_plans[i];
            if (!p->plan || !cudnn_same_heads(p, T, NH, NKV, HS, backward)) continue;
            size_t planned = (size_t)p->graph.B, bytes = (p->workspace + planned - 1) / planned * (size_t)B;
            if (backward) bytes += cudnn_row_bytes(B, T, NH);
            if (bytes > most) most = bytes;
        }
    return most;
}

/* Carries out a plan on n tensors. A failure is told once, and the plan not tried again. */
static inline int cudnn_execute(CudnnPlan *p, int n, const int64_t *ids, void *const *pointers,
                                void *workspace) {
    CudnnGraph run; /* of one descriptor */
    memset(&run, 0, sizeof run);
    CudnnDescriptor pack = cudnn_make(&run, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    cudnn_set(&run, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, pointers);
    cudnn_set(&run, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, ids);
    cudnn_set(&run, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    cudnn_finalize(&run, pack, "its arguments");
    if (!run.failed) {
        cudnnStatus_t status = cudnn.BackendExecute(cudnn.handle, p->plan, pack);
        if (status != CUDNN_STATUS_SUCCESS) cudnn_fail(&run, status, "attention");
    }
    cudnn_free_graph(&run);
    if (!run.failed) return 0;
    fprintf(stderr, "note: %s; our own attention goes on\n", run.why);
    snprintf(p->graph.why, sizeof p->graph.why, "%s", run.why);
    p->plan = NULL;
    return -1;
}

/* The plan for a batch of a shape that cudnn_attention_plan has planned; of no other. */
static inline CudnnPlan *cudnn_planned(int B, int T, int NH, int NKV, int HS, int backward) {
    char why[320];
    for (int i = 0; i < cudnn_plan_count; i++)
        if (cudnn_same_heads(cudnn_plans[i], T, NH, NKV, HS, backward) && cudnn_plans[i]->plan)
            return cudnn_plan(B, T, NH, NKV, HS, backward, why, sizeof why);
    return NULL;
}

static inline int cudnn_aligned(const void *p) { return (uintptr_t)p % 16 == 0; }
static inline float cudnn_masked(void) { return cudnn.version < 91000 ? -FLT_MAX : -INFINITY; }

/* out (B,T,NH*HS), lse (B,NH,T) from qkv (B,T,(NH+2*NKV)*HS), as flash_forward; -1: not done. */
static inline int cudnn_attention_forward(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH,
                                          int NKV, int HS, double scale) {
    CudnnPlan *p = cudnn_planned(B, T, NH, NKV, HS, 0);
    if (!p || !cudnn_aligned(out) || !cudnn_aligned(lse) || !cudnn_aligned(qkv)) return -1;
    floatX *q = (floatX *)(uintptr_t)qkv, *k = q + (size_t)NH * HS, *v = k + (size_t)NKV * HS;
    float factor = (float)scale, masked = cudnn_masked();
    const int64_t ids[] = {CUDNN_Q, CUDNN_K, CUDNN_V, CUDNN_OUT, CUDNN_LSE, CUDNN_SCALE, CUDNN_MASKED};
    void *const pointers[] = {q, k, v, out, lse, &factor, &masked};
    return cudnn_execute(p, 7, ids, pointers, p->workspace ? cuda_scratch(p->workspace) : NULL);
}

/* Sets all of dqkv, as flash_backward; -1: not done. */
static inline int cudnn_attention_backward(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                           const floatX *out, const floatM *lse, int B, int T, int NH,
                                           int NKV, int HS, double scale) {
    CudnnPlan *p = cudnn_planned(B, T, NH, NKV, HS, 1);
    if (!p || !cudnn_aligned(dqkv) || !cudnn_aligned(dout) || !cudnn_aligned(qkv) || !cudnn_aligned(out) ||
        !cudnn_aligned(lse))
        return -1;
    floatX *q = (floatX *)(uintptr_t)qkv, *k = q + (size_t)NH * HS, *v = k + (size_t)NKV * HS;
    floatX *dk = dqkv + (size_t)NH * HS, *dv = dk + (size_t)NKV * HS;
    size_t rows = cudnn_row_bytes(B, T, NH);
    char *scratch = (char *)cuda_scratch(rows + p->workspace);
    float factor = (float)scale, masked = cudnn_masked(), one = 1;
    const int64_t ids[] = {CUDNN_Q,  CUDNN_K,  CUDNN_V, CUDNN_OUT,   CUDNN_LSE,    CUDNN_DOUT, CUDNN_DQ,
                           CUDNN_DK, CUDNN_DV, CUDNN_D, CUDNN_SCALE, CUDNN_MASKED, CUDNN_ONE};
    void *const pointers[] = {q,  k,  v,       (void *)(uintptr_t)out, (void *)(uintptr_t)lse,
                              (void *)(uintptr_t)dout, dqkv, dk, dv, scratch, &factor, &masked, &one};
    return cudnn_execute(p, 13, ids, pointers, p->workspace ? scratch + rows : NULL);
}

/* ---------------------------------------------------------------------------------------------- */
/* cuDNN's attention against ours */

/* Tensors of one batch of random numbers, and what both make of them. */
typedef struct {
    int B, T, NH, NKV, HS;
    double scale;
    floatX *qkv, *dout, *out, *dqkv;
    floatM *lse;
    char *memory;
} AttentionTrial;

/* n numbers of variance 1, evenly distributed, that depend on their place alone. */
__global__ static void attention_noise(floatX *x, size_t n, unsigned seed) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned h = ((unsigned)i + seed) * 0x9e3779b1u;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    x[i] = from_float<floatX>(1.7320508f * ((float)(h ^ h >> 16) * 4.6566129e-10f - 1));
}

static inline int attention_trial_start(AttentionTrial *t, const Config *c, char *why, size_t size) {
    t->B = min_int(c->batch_size, 4), t->T = c->seq_len, t->NH = c->heads, t->NKV = c->kv_heads;
    t->HS = c->head_dim, t->scale = c->attn_scale;
    size_t N = (size_t)t->B * (size_t)t->T, A = N * (size_t)(t->NH * t->HS);
    size_t Q = N * (size_t)((t->NH + 2 * t->NKV) * t->HS), rows = N * (size_t)t->NH;
    size_t sizes[5] = {Q * sizeof(floatX), A * sizeof(floatX), A * sizeof(floatX), Q * sizeof(floatX),
                       rows * sizeof(floatM)}, at[6] = {0};
    for (int i = 0; i < 5; i++) at[i + 1] = at[i] + (sizes[i] + 255) / 256 * 256;
    if (cudaMalloc((void **)&t->memory, at[5]) != cudaSuccess) {
        cudaGetLastError(); /* forget it */
        t->memory = NULL;
        return cudnn_refuse(why, size, "no room to try cuDNN");
    }
    t->qkv = (floatX *)(void *)t->memory, t->dout = (floatX *)(void *)(t->memory + at[1]);
    t->out = (floatX *)(void *)(t->memory + at[2]), t->dqkv = (floatX *)(void *)(t->memory + at[3]);
    t->lse = (floatM *)(void *)(t->memory + at[4]);
    LAUNCH(attention_noise, ceil_div(Q, 256), 256, 0, t->qkv, Q, 1);
    LAUNCH(attention_noise, ceil_div(A, 256), 256, 0, t->dout, A, 77777);
    return 0;
}

/* Forward and backward by one of the two. */
static inline int attention_trial_run(const AttentionTrial *t, int library) {
    if (library)
        return cudnn_attention_forward(t->out, t->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS, t->scale) ||
               cudnn_attention_backward(t->dqkv, t->dout, t->qkv, t->out, t->lse, t->B, t->T, t->NH, t->NKV,
                                        t->HS, t->scale);
    flash_forward(t->out, t->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS, t->scale);
    flash_backward(t->dqkv, t->dout, t->qkv, t->out, t->lse, t->B, t->T, t->NH, t->NKV, t->HS, t->scale);
    return 0;
}

/* Results on the host: out, dqkv, lse. */
typedef struct {
    floatX *out, *dqkv;
    floatM *lse;
} AttentionResult;

static inline int attention_trial_result(const AttentionTrial *t, int library, AttentionResult *r) {
    size_t N = (size_t)t->B * (size_t)t->T, A = N * (size_t)(t->NH * t->HS);
    size_t Q = N * (size_t)((t->NH + 2 * t->NKV) * t->HS), rows = N * (size_t)t->NH;
    size_t results = (size_t)((char *)t->lse - (char *)t->out) + rows * sizeof(floatM);
    CUDA_CHECK(cudaMemsetAsync(t->out, 0xff, results, cuda_stream)); /* NaN */
    if (attention_trial_run(t, library)) return -1;
    r->out = (floatX *)malloc(A * sizeof(floatX)), r->dqkv = (floatX *)malloc(Q * sizeof(floatX));
    r->lse = (floatM *)malloc(rows * sizeof(floatM));
    if (!r->out || !r->dqkv || !r->lse) return -1;
    CUDA_CHECK(cudaMemcpyAsync(r->out, t->out, A * sizeof(floatX), cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaMemcpyAsync(r->dqkv, t->dqkv, Q * sizeof(floatX), cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaMemcpyAsync(r->lse, t->lse, rows * sizeof(floatM), cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream));
    return 0;
}

static inline void attention_result_free(AttentionResult *r) {
    free(r->out), free(r->dqkv), free(r->lse);
    memset(r, 0, sizeof *r);
}

/* ||a - b|| / ||b||, and infinity for NaN. */
template <typename T> static inline double attention_distance(const T *a, const T *b, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        double x = (double)(float)a[i], y = (double)(float)b[i];
        d += (x - y) * (x - y), s += y * y;
    }
    double r = sqrt(d / s);
    return r == r ? r : INFINITY;
}

/* Whether cuDNN computes what our own attention does, and twice the same bits. Both round p and ds to
   bf16, so that results differ by some 2^-9 of their size, gradients by some more. */
static inline int attention_compare(const AttentionTrial *t, char *why, size_t size) {
    size_t N = (size_t)t->B * (size_t)t->T, A = N * (size_t)(t->NH * t->HS);
    size_t Q = N * (size_t)((t->NH + 2 * t->NKV) * t->HS), rows = N * (size_t)t->NH;
    AttentionResult own, first, second;
    memset(&own, 0, sizeof own), memset(&first, 0, sizeof first), memset(&second, 0, sizeof second);
    int status = 0;
    if (attention_trial_result(t, 0, &own) || attention_trial_result(t, 1, &first) ||
        attention_trial_result(t, 1, &second)) {
        status = cudnn_refuse(why, size, "cuDNN's attention fails");
    } else {
        double out = attention_distance(first.out, own.out, A);
        double dqkv = attention_distance(first.dqkv, own.dqkv, Q);
        double lse = attention_distance(first.lse, own.lse, rows);
        if (out > 2e-2 || dqkv > 4e-2 || lse > 5e-3)
            status = cudnn_refuse(why, size, "cuDNN's attention differs from ours: out by %.1e, lse by %.1e, "
                                             "the gradient by %.1e", out, lse, dqkv);
        else if (memcmp(first.out, second.out, A * sizeof(floatX)) ||
                 memcmp(first.dqkv, second.dqkv, Q * sizeof(floatX)) ||
                 memcmp(first.lse, second.lse, rows * sizeof(floatM)))
            status = cudnn_refuse(why, size, "cuDNN's attention gives other bits when repeated");
    }
    attention_result_free(&own), attention_result_free(&first), attention_result_free(&second);
    return status;
}

/* Milliseconds of forward and backward, the median of five. */
static inline float attention_ms(const AttentionTrial *t, int library) {
    enum { ROUNDS = 5 };
    float ms[ROUNDS];
    cudaEvent_t start, end;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&end));
    for (int i = 0; i < ROUNDS; i++) {
        CUDA_CHECK(cudaEventRecord(start, cuda_stream));
        attention_trial_run(t, library);
        CUDA_CHECK(cudaEventRecord(end, cuda_stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        CUDA_CHECK(cudaEventElapsedTime(&ms[i], start, end));
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(end));
    for (int i = 0; i < ROUNDS; i++)
        for (int j = i + 1; j < ROUNDS; j++)
            if (ms[j] < ms[i]) {
                float swap = ms[i];
                ms[i] = ms[j], ms[j] = swap;
            }
    return ms[ROUNDS / 2];
}

/* Plans take some seconds to compile, and the attention of short sequences takes next to no time. */
enum { CUDNN_WORTH_IT = 512 };

/* Whether cuDNN can do this run's attention; *faster: the time of ours over that of cuDNN. Leaves the
   plans, and no memory of the device. */
static inline int cudnn_try(const Config *c, double *faster, char *why, size_t size) {
    AttentionTrial t;
    size_t room = 0, all = 0, scratch = cuda_scratch_bytes;
    int B = c->batch_size, T = c->seq_len, NH = c->heads, NKV = c->kv_heads, HS = c->head_dim;
    memset(&t, 0, sizeof t);
    if (c->attention == ATTENTION_AUTO && T < CUDNN_WORTH_IT)
        return cudnn_refuse(why, size, "sequences are short");
    if (cudnn_attention_plan(B, T, NH, NKV, HS, c->attn_scale, why, size) ||
        cudnn_attention_plan(min_int(B, 4), T, NH, NKV, HS, c->attn_scale, why, size))
        return -1;
    size_t need = cudnn_attention_workspace(B, T, NH, NKV, HS, c->attn_scale);
    CUDA_CHECK(cudaMemGetInfo(&room, &all));
    if (c->attention == ATTENTION_AUTO && need > room / 8)
        return cudnn_refuse(why, size, "cuDNN wants %.1f GB to work in", (double)need * 1e-9);
    int status = attention_trial_start(&t, c, why, size);
    if (!status) status = attention_compare(&t, why, size);
    if (!status) *faster = (double)attention_ms(&t, 0) / (double)attention_ms(&t, 1);
    if (t.memory) CUDA_CHECK(cudaFree(t.memory));
    if (!scratch) cuda_scratch_free();
    return status;
}

#endif

/* ---------------------------------------------------------------------------------------------- */

/* Sets who does attention_forward and attention_backward by --attention, makes that flash or cudnn where it
   is auto, and says in a note why. */
static inline int attention_choose(Config *c, char *note, size_t size, char *err) {
    char why[384] = "", name[32] = "";
    double faster = 0;
    attention_library_forward = NULL, attention_library_backward = NULL;
    cudnn_free_plans();
    snprintf(note, size, "flash");
    if (c->attention == ATTENTION_FLASH) return 0;
    int status = cudnn_try(c, &faster, why, sizeof why), forced = c->attention == ATTENTION_CUDNN;
    cudnn_name(name, sizeof name);
    if (status && forced)
        return fail(err, "--attention cudnn: %s; --attention flash needs no cuDNN", why);
    c->attention = ATTENTION_FLASH;
    if (status) cudnn_refuse(note, size, "flash (%s)", why);
    else if (faster < 1.1 && !forced) /* by more than the noise */
        snprintf(note, size, "flash (%s: %.1fx %s)", name, faster < 1 ? 1 / faster : faster,
                 faster < 1 ? "slower" : "faster");
    else {
        c->attention = ATTENTION_CUDNN;
        attention_library_forward = cudnn_attention_forward;
        attention_library_backward = cudnn_attention_backward;
        snprintf(note, size, "%s (%.1fx %s than flash)", name, faster < 1 ? 1 / faster : faster,
                 faster < 1 ? "slower" : "faster");
        return 0;
    }
    cudnn_free_plans();
    return 0;
}

#endif
