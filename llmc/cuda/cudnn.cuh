/*
cuDNN's fused attention, where there is a cuDNN: causal, bf16, grouped heads, forward and backward.

Only cuDNN's backend interface is used, as llmc/cuda/cudnn_api.h declares it. The library is found
when the program runs (llmc/cuda/library.h), so the program can be built and started without cuDNN.
Whatever goes wrong in cuDNN means "not available", with cuDNN's own message.
llmc/cuda/attention.cuh works everywhere, and llmc/cuda/attention_choice.cuh chooses.

cuDNN gets attention as a graph of operations on tensors (B,NH,T,HS) and on virtual tensors
(B,NH,T,T), which have no memory, and finds one kernel for the whole graph. The operation that cuDNN
itself calls attention has no causal mask before cuDNN 9.21, and no backward pass. The graph follows
cuDNN's documentation:

    forward    s = scale q k^T; s = row >= column ? s : -inf; m = max s; e = exp(s - m); z = sum e
               lse = m + log z; out = (e / z) v
    backward   D = sum dout out; s = row >= column ? scale q k^T - lse : -inf; p = exp(s)
               dv = p^T dout; ds = scale p (dout v^T - D); dk = ds^T q; dq = ds k

If dq is the product itself, cuDNN keeps ds, B NH T T numbers of bf16, in its workspace and
multiplies them in a kernel of its own, in a fixed order. With cudnn_fast the product is a float
tensor `dq_sum` (B,NH,T,HS), and dq is its copy in bf16. Then ds is never stored, blocks of keys add
their parts to dq_sum in any order, and equal runs may differ in the last bits. With fewer key heads
than query heads, dk and dv are sums over the heads of a group.

The graph promises that the addresses of all tensors are multiples of 16 bytes. No tensor is ragged.
*/
#ifndef CM_CUDA_CUDNN_CUH
#define CM_CUDA_CUDNN_CUH

#include <float.h>

#include "attention.cuh"
#include "cudnn_api.h"
#include "library.h"

#ifdef CM_FP32

static inline int cudnn_start(char *why, size_t size) {
    return refuse(why, size, "cuDNN's attention is for bf16");
}
static inline int cudnn_attention_plan(int, int, int, int, int, char *why, size_t size) {
    return cudnn_start(why, size);
}
static inline size_t cudnn_attention_workspace(int, int, int, int, int) { return 0; }
static inline int cudnn_attention_forward(floatX *, floatM *, const floatX *, int, int, int, int,
                                          int, double) {
    return -1;
}
static inline int cudnn_attention_backward(floatX *, const floatX *, const floatX *, const floatX *,
                                           const floatM *, int, int, int, int, int, double) {
    return -1;
}
static inline int cudnn_has_plan(int, int, int, int) { return 0; }
static inline const char *cudnn_failure(void) { return "cuDNN's attention is for bf16"; }
static inline void cudnn_engines(char *text, size_t) { text[0] = 0; }
static inline void cudnn_name(char *text, size_t size) { snprintf(text, size, "cuDNN"); }
static inline void cudnn_where(char *text, size_t) { text[0] = 0; }
static inline void cudnn_free_plans(void) {}

#else

/* ---------------------------------------------------------------------------------------------- */
/* the library */

#ifndef CM_EMU

/* Loads NVRTC, which compiles cuDNN's kernels of attention. cuDNN looks for it by name
   (libnvrtc.so.13 if cuDNN was built for CUDA 13) in cuDNN's folder, in the wheels beside it,
   and where the dynamic linker looks; it takes a library of that name that is loaded already. So
   NVRTC is loaded here, from more places. */
static inline void cudnn_load_nvrtc(void) {
    static const char *const wheels[] = {"cuda_nvrtc/lib", "cu13/lib", NULL};
    char name[32], why[256];
    const char *names[] = {name, NULL};
    snprintf(name, sizeof name, "libnvrtc.so.%d",
             (int)(cm_gpu.cudnn_api.GetCudartVersion() / 1000));
    LibrarySearch search = {names, NULL, wheels, cm_gpu.cudnn.path, 1, 1};
    library_open(&search, cm_gpu.cudnn.nvrtc, sizeof cm_gpu.cudnn.nvrtc, why, sizeof why);
}

/* Finds the library and its functions. Returns 0, or -1 and `why`. */
static inline int cudnn_load(char *why, size_t size) {
    static const char *const names[] = {"libcudnn.so.9", NULL}, *const wheels[] = {
                                                                    "cudnn/lib", "cu13/lib", NULL};
    static const char *const variables[] = {"CUDNN_PATH", "CUDNN_HOME", NULL};
    char beside[1024];
    if (cm_gpu.cudnn_api.BackendExecute) return 0;
    library_loaded("libcublasLt.so", beside, sizeof beside);
    LibrarySearch search = {names, variables, wheels, beside, 0, 0};
    void *library = library_open(&search, cm_gpu.cudnn.path, sizeof cm_gpu.cudnn.path, why, size);
    if (!library) return -1;
    CudnnFunctions found;
    const char *missing = NULL;
#define CUDNN_SYMBOL(RETURNS, NAME, PARAMETERS)                                                    \
    found.NAME = (decltype(found.NAME))dlsym(library, "cudnn" #NAME);                              \
    if (!found.NAME) missing = "cudnn" #NAME;
    CUDNN_FUNCTIONS(CUDNN_SYMBOL)
#undef CUDNN_SYMBOL
    if (missing) {
        refuse(why, size, "%s has no %s", cm_gpu.cudnn.path, missing);
        cm_gpu.cudnn.path[0] = 0;
        dlclose(library);
        return -1;
    }
    cm_gpu.cudnn_api = found;
    cm_gpu.cudnn.version = (int)cm_gpu.cudnn_api.GetVersion();
    cudnn_load_nvrtc();
    return 0;
}

#else

/* The emulator has no library. A test puts functions into cm_gpu.cudnn_api. */
static inline int cudnn_load(char *why, size_t size) {
    if (!cm_gpu.cudnn_api.BackendExecute) return refuse(why, size, "the emulator has no cuDNN");
    cm_gpu.cudnn.version = (int)cm_gpu.cudnn_api.GetVersion();
    return 0;
}

#endif

static inline void cudnn_name(char *text, size_t size) {
    snprintf(text, size, "cuDNN %d.%d", cm_gpu.cudnn.version / 10000,
             cm_gpu.cudnn.version / 100 % 100);
}

/* "cuDNN 9.19.0 (/usr/lib/libcudnn.so.9), NVRTC /usr/lib/libnvrtc.so.13"; "" if none is loaded. */
static inline void cudnn_where(char *text, size_t size) {
    text[0] = 0;
    if (!cm_gpu.cudnn.version) return;
    snprintf(text, size, "cuDNN %d.%d.%d (%s), %s%s", cm_gpu.cudnn.version / 10000,
             cm_gpu.cudnn.version / 100 % 100, cm_gpu.cudnn.version % 100, cm_gpu.cudnn.path,
             cm_gpu.cudnn.nvrtc[0] ? "NVRTC " : "no NVRTC", cm_gpu.cudnn.nvrtc);
}

/* Why the last pass failed. */
static inline const char *cudnn_failure(void) { return cm_gpu.cudnn.why; }

/* Puts cuDNN's own message for a failure into `why` and returns -1. */
static inline int cudnn_explain(CudnnStatus status, const char *what, char *why, size_t size) {
    char name[32], text[256] = "";
    cudnn_name(name, sizeof name);
    cm_gpu.cudnn_api.GetLastErrorString(text, sizeof text);
    text[sizeof text - 1] = 0;
    for (char *c = text; *c; c++)
        if (*c == '\n' || *c == '"') *c = ' ';
    return refuse(why, size, "%s: %s: %s%s%s", name, what, cm_gpu.cudnn_api.GetErrorString(status),
                  text[0] ? ": " : "", text);
}

/* Loads the library and makes its handle on the backend's stream. Returns 0, or -1 and `why`. */
static inline int cudnn_start(char *why, size_t size) {
    if (cm_gpu.cudnn.started) return 0;
    if (cudnn_load(why, size)) return -1;
    char name[32];
    cudnn_name(name, sizeof name);
    if (cm_gpu.cudnn.version / 10000 != 9) return refuse(why, size, "%s is not cuDNN 9", name);
    if (cm_gpu.cudnn.version == 91000 || cm_gpu.cudnn.version == 91001)
        return refuse(why, size, "%s.%d has known mistakes in attention", name,
                      cm_gpu.cudnn.version % 100);
    CudnnStatus status = cm_gpu.cudnn_api.Create(&cm_gpu.cudnn.handle);
    if (status != DNN_STATUS_SUCCESS) return cudnn_explain(status, "cudnnCreate", why, size);
    status = cm_gpu.cudnn_api.SetStream(cm_gpu.cudnn.handle, cm_gpu.stream);
    if (status != DNN_STATUS_SUCCESS) {
        cudnn_explain(status, "cudnnSetStream", why, size);
        cm_gpu.cudnn_api.Destroy(cm_gpu.cudnn.handle);
        return -1;
    }
    cm_gpu.cudnn.started = 1;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* graphs */

/* All descriptors of one graph. After the first failure the functions below do nothing, and
   `why` keeps its reason, so only the end of a sequence has to check. */
enum { CUDNN_DESCRIPTORS = 256, CUDNN_OPERATIONS = 32 };
typedef struct {
    CudnnDescriptor made[CUDNN_DESCRIPTORS], operations[CUDNN_OPERATIONS];
    int count, operation_count, failed;
    int64_t B, T, NH, NKV, HS, virtual_id;
    char why[320];
} CudnnGraph;

static inline void cudnn_fail(CudnnGraph *g, CudnnStatus status, const char *what) {
    if (!g->failed) cudnn_explain(status, what, g->why, sizeof g->why);
    g->failed = 1;
}

static inline CudnnDescriptor cudnn_make(CudnnGraph *g, int type) {
    CudnnDescriptor d = NULL;
    if (g->failed) return NULL;
    if (g->count == CUDNN_DESCRIPTORS) {
        g->failed = 1;
        refuse(g->why, sizeof g->why, "internal error: too many descriptors");
        return NULL;
    }
    CudnnStatus status = cm_gpu.cudnn_api.BackendCreateDescriptor(type, &d);
    if (status != DNN_STATUS_SUCCESS) {
        cudnn_fail(g, status, "a descriptor");
        return NULL;
    }
    return g->made[g->count++] = d;
}

static inline void cudnn_set(CudnnGraph *g, CudnnDescriptor d, int name, int type, int64_t n,
                             const void *values) {
    if (g->failed) return;
    CudnnStatus status = cm_gpu.cudnn_api.BackendSetAttribute(d, name, type, n, values);
    if (status == DNN_STATUS_SUCCESS) return;
    char what[40];
    snprintf(what, sizeof what, "attribute %d", (int)name);
    cudnn_fail(g, status, what);
}

static inline void cudnn_set_descriptor(CudnnGraph *g, CudnnDescriptor d, int name,
                                        CudnnDescriptor value) {
    cudnn_set(g, d, name, DNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static inline void cudnn_finalize(CudnnGraph *g, CudnnDescriptor d, const char *what) {
    if (g->failed) return;
    CudnnStatus status = cm_gpu.cudnn_api.BackendFinalize(d);
    if (status != DNN_STATUS_SUCCESS) cudnn_fail(g, status, what);
}

static inline void cudnn_free_graph(CudnnGraph *g) {
    while (g->count) cm_gpu.cudnn_api.BackendDestroyDescriptor(g->made[--g->count]);
    g->operation_count = 0;
}

/* Ids of the tensors that are not virtual. Those from SCALE on are numbers given by value, which
   are read on the host. */
enum {
    CUDNN_Q = 1,
    CUDNN_K,
    CUDNN_V,
    CUDNN_OUT,
    CUDNN_LSE,
    CUDNN_DOUT,
    CUDNN_DQ,
    CUDNN_DK,
    CUDNN_DV,
    CUDNN_D,
    CUDNN_DQ_SUM,
    CUDNN_SCALE,
    CUDNN_MASKED,
    CUDNN_ONE,
    CUDNN_VIRTUAL
};

/* A tensor of n dimensions. Sizes and strides are in elements. With id CUDNN_VIRTUAL it has no
   memory. */
static inline CudnnDescriptor cudnn_tensor(CudnnGraph *g, int64_t id, int type, int n,
                                           const int64_t *sizes, const int64_t *strides) {
    CudnnDescriptor d = cudnn_make(g, DNN_BACKEND_TENSOR_DESCRIPTOR);
    bool is_virtual = id == CUDNN_VIRTUAL, by_value = id >= CUDNN_SCALE && id < CUDNN_VIRTUAL;
    int64_t alignment = 16;
    if (is_virtual) id += g->virtual_id++;
    cudnn_set(g, d, DNN_ATTR_TENSOR_DATA_TYPE, DNN_TYPE_DATA_TYPE, 1, &type);
    cudnn_set(g, d, DNN_ATTR_TENSOR_DIMENSIONS, DNN_TYPE_INT64, n, sizes);
    cudnn_set(g, d, DNN_ATTR_TENSOR_STRIDES, DNN_TYPE_INT64, n, strides);
    cudnn_set(g, d, DNN_ATTR_TENSOR_UNIQUE_ID, DNN_TYPE_INT64, 1, &id);
    cudnn_set(g, d, DNN_ATTR_TENSOR_BYTE_ALIGNMENT, DNN_TYPE_INT64, 1, &alignment);
    cudnn_set(g, d, DNN_ATTR_TENSOR_IS_VIRTUAL, DNN_TYPE_BOOLEAN, 1, &is_virtual);
    cudnn_set(g, d, DNN_ATTR_TENSOR_IS_BY_VALUE, DNN_TYPE_BOOLEAN, 1, &by_value);
    cudnn_finalize(g, d, "a tensor");
    return d;
}

/* A dense tensor (B,NH,a,b). */
static inline CudnnDescriptor cudnn_dense(CudnnGraph *g, int64_t id, int type, int64_t a,
                                          int64_t b) {
    const int64_t sizes[4] = {g->B, g->NH, a, b}, strides[4] = {g->NH * a * b, a * b, b, 1};
    return cudnn_tensor(g, id, type, 4, sizes, strides);
}
/* A virtual tensor of scores (B,NH,T,T), and a tensor with one number for each row (B,NH,T,1). */
static inline CudnnDescriptor cudnn_scores(CudnnGraph *g) {
    return cudnn_dense(g, CUDNN_VIRTUAL, DNN_DATA_FLOAT, g->T, g->T);
}
static inline CudnnDescriptor cudnn_rows(CudnnGraph *g, int64_t id) {
    return cudnn_dense(g, id, DNN_DATA_FLOAT, g->T, 1);
}
/* A virtual tensor of scores (B,NH,T,T) in bf16, read column by column. */
static inline CudnnDescriptor cudnn_scores_t(CudnnGraph *g) {
    const int64_t sizes[4] = {g->B, g->NH, g->T, g->T};
    const int64_t strides[4] = {g->NH * g->T * g->T, g->T * g->T, 1, g->T};
    return cudnn_tensor(g, CUDNN_VIRTUAL, DNN_DATA_BFLOAT16, 4, sizes, strides);
}
/* `heads` heads in rows (B,T) of `width` elements: (B,heads,T,HS), or transposed (B,heads,HS,T). */
static inline CudnnDescriptor cudnn_heads(CudnnGraph *g, int64_t id, int64_t heads, int64_t width,
                                          int transposed) {
    const int64_t sizes[4] = {g->B, heads, transposed ? g->HS : g->T, transposed ? g->T : g->HS};
    const int64_t strides[4] = {g->T * width, g->HS, transposed ? 1 : width,
                                transposed ? width : 1};
    return cudnn_tensor(g, id, DNN_DATA_BFLOAT16, 4, sizes, strides);
}
static inline CudnnDescriptor cudnn_number(CudnnGraph *g, int64_t id) {
    const int64_t one[4] = {1, 1, 1, 1};
    return cudnn_tensor(g, id, DNN_DATA_FLOAT, 4, one, one);
}

static inline void cudnn_operation(CudnnGraph *g, CudnnDescriptor op, const char *what) {
    cudnn_finalize(g, op, what);
    /* there are fewer than 32 operations */
    if (!g->failed) g->operations[g->operation_count++] = op;
}

/* c = a b, a matrix product over the last two dimensions. Returns c. */
static inline CudnnDescriptor cudnn_matmul(CudnnGraph *g, CudnnDescriptor a, CudnnDescriptor b,
                                           CudnnDescriptor c) {
    int precision = DNN_DATA_FLOAT;
    CudnnDescriptor kind = cudnn_make(g, DNN_BACKEND_MATMUL_DESCRIPTOR);
    cudnn_set(g, kind, DNN_ATTR_MATMUL_COMP_TYPE, DNN_TYPE_DATA_TYPE, 1, &precision);
    cudnn_finalize(g, kind, "a product");
    CudnnDescriptor op = cudnn_make(g, DNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_MATMUL_ADESC, a);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_MATMUL_BDESC, b);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_MATMUL_CDESC, c);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_MATMUL_DESC, kind);
    cudnn_operation(g, op, "a product");
    return c;
}

/* y = mode(x, b, t), element by element. b and t may be NULL. Returns y. */
static inline CudnnDescriptor cudnn_pointwise(CudnnGraph *g, int mode, int precision,
                                              CudnnDescriptor x, CudnnDescriptor b,
                                              CudnnDescriptor t, CudnnDescriptor y, int64_t axis) {
    CudnnDescriptor kind = cudnn_make(g, DNN_BACKEND_POINTWISE_DESCRIPTOR);
    cudnn_set(g, kind, DNN_ATTR_POINTWISE_MODE, DNN_TYPE_POINTWISE_MODE, 1, &mode);
    cudnn_set(g, kind, DNN_ATTR_POINTWISE_MATH_PREC, DNN_TYPE_DATA_TYPE, 1, &precision);
    if (mode == DNN_POINTWISE_GEN_INDEX)
        cudnn_set(g, kind, DNN_ATTR_POINTWISE_AXIS, DNN_TYPE_INT64, 1, &axis);
    cudnn_finalize(g, kind, "an operation");
    CudnnDescriptor op = cudnn_make(g, DNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    if (t) cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    cudnn_operation(g, op, "an operation");
    return y;
}

/* y = mode(x, b) in float. b may be NULL. Returns y. */
static inline CudnnDescriptor cudnn_map(CudnnGraph *g, int mode, CudnnDescriptor x,
                                        CudnnDescriptor b, CudnnDescriptor y) {
    return cudnn_pointwise(g, mode, DNN_DATA_FLOAT, x, b, NULL, y, 0);
}

/* y = the sum or the maximum of x over the dimensions that are smaller in y. Returns y. */
static inline CudnnDescriptor cudnn_reduce(CudnnGraph *g, int mode, CudnnDescriptor x,
                                           CudnnDescriptor y) {
    int precision = DNN_DATA_FLOAT;
    CudnnDescriptor kind = cudnn_make(g, DNN_BACKEND_REDUCTION_DESCRIPTOR);
    cudnn_set(g, kind, DNN_ATTR_REDUCTION_COMP_TYPE, DNN_TYPE_DATA_TYPE, 1, &precision);
    cudnn_set(g, kind, DNN_ATTR_REDUCTION_OPERATOR, DNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    cudnn_finalize(g, kind, "a reduction");
    CudnnDescriptor op = cudnn_make(g, DNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_REDUCTION_DESC, kind);
    cudnn_operation(g, op, "a reduction");
    return y;
}

/* y = x with other sizes or strides, for a transpose. Returns y. */
static inline CudnnDescriptor cudnn_reshape(CudnnGraph *g, CudnnDescriptor x, CudnnDescriptor y) {
    CudnnDescriptor op = cudnn_make(g, DNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    cudnn_set_descriptor(g, op, DNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    cudnn_operation(g, op, "a transpose");
    return y;
}

/* The causal mask: s where the key's column is at most the query's row, else the number
   CUDNN_MASKED. */
static inline CudnnDescriptor cudnn_causal(CudnnGraph *g, CudnnDescriptor s) {
    CudnnDescriptor row = cudnn_dense(g, CUDNN_VIRTUAL, DNN_DATA_INT32, g->T, g->T);
    CudnnDescriptor column = cudnn_dense(g, CUDNN_VIRTUAL, DNN_DATA_INT32, g->T, g->T);
    CudnnDescriptor keep = cudnn_dense(g, CUDNN_VIRTUAL, DNN_DATA_BOOLEAN, g->T, g->T);
    cudnn_pointwise(g, DNN_POINTWISE_GEN_INDEX, DNN_DATA_FLOAT, s, NULL, NULL, row, 2);
    cudnn_pointwise(g, DNN_POINTWISE_GEN_INDEX, DNN_DATA_FLOAT, s, NULL, NULL, column, 3);
    cudnn_pointwise(g, DNN_POINTWISE_CMP_GE, DNN_DATA_BOOLEAN, row, column, NULL, keep, 0);
    CudnnDescriptor masked = cudnn_number(g, CUDNN_MASKED);
    CudnnDescriptor y = cudnn_scores(g);
    return cudnn_pointwise(g, DNN_POINTWISE_BINARY_SELECT, DNN_DATA_FLOAT, s, masked, keep, y, 0);
}

/* scale q k^T, from q and the transposed k. */
static inline CudnnDescriptor cudnn_scaled_scores(CudnnGraph *g, CudnnDescriptor q,
                                                  CudnnDescriptor kt, CudnnDescriptor scale) {
    return cudnn_map(g, DNN_POINTWISE_MUL, cudnn_matmul(g, q, kt, cudnn_scores(g)), scale,
                     cudnn_scores(g));
}

static inline void cudnn_forward_graph(CudnnGraph *g) {
    int64_t C = g->NH * g->HS, C3 = C + 2 * g->NKV * g->HS;
    CudnnDescriptor q = cudnn_heads(g, CUDNN_Q, g->NH, C3, 0),
                    kt = cudnn_heads(g, CUDNN_K, g->NKV, C3, 1);
    CudnnDescriptor v = cudnn_heads(g, CUDNN_V, g->NKV, C3, 0),
                    out = cudnn_heads(g, CUDNN_OUT, g->NH, C, 0);
    CudnnDescriptor lse = cudnn_rows(g, CUDNN_LSE);
    CudnnDescriptor s =
        cudnn_causal(g, cudnn_scaled_scores(g, q, kt, cudnn_number(g, CUDNN_SCALE)));
    CudnnDescriptor m = cudnn_reduce(g, DNN_REDUCE_TENSOR_MAX, s, cudnn_rows(g, CUDNN_VIRTUAL));
    CudnnDescriptor shifted = cudnn_map(g, DNN_POINTWISE_SUB, s, m, cudnn_scores(g));
    CudnnDescriptor e = cudnn_map(g, DNN_POINTWISE_EXP, shifted, NULL, cudnn_scores(g));
    CudnnDescriptor z = cudnn_reduce(g, DNN_REDUCE_TENSOR_ADD, e, cudnn_rows(g, CUDNN_VIRTUAL));
    CudnnDescriptor logarithm =
        cudnn_map(g, DNN_POINTWISE_LOG, z, NULL, cudnn_rows(g, CUDNN_VIRTUAL));
    cudnn_map(g, DNN_POINTWISE_ADD, m, logarithm, lse);
    CudnnDescriptor p = cudnn_dense(g, CUDNN_VIRTUAL, DNN_DATA_BFLOAT16, g->T, g->T);
    cudnn_matmul(g, cudnn_map(g, DNN_POINTWISE_DIV, e, z, p), v, out);
}

/* out = x^T y. With grouped heads, the products of all query heads are summed over each group. */
static inline void cudnn_key_gradient(CudnnGraph *g, CudnnDescriptor x, CudnnDescriptor y,
                                      CudnnDescriptor out) {
    CudnnDescriptor xt = cudnn_reshape(g, x, cudnn_scores_t(g));
    if (g->NH == g->NKV) {
        cudnn_matmul(g, xt, y, out);
        return;
    }
    CudnnDescriptor all = cudnn_dense(g, CUDNN_VIRTUAL, DNN_DATA_BFLOAT16, g->T, g->HS);
    cudnn_reduce(g, DNN_REDUCE_TENSOR_ADD, cudnn_matmul(g, xt, y, all), out);
}

static inline void cudnn_backward_graph(CudnnGraph *g, int fast) {
    int64_t C = g->NH * g->HS, C3 = C + 2 * g->NKV * g->HS;
    CudnnDescriptor q = cudnn_heads(g, CUDNN_Q, g->NH, C3, 0),
                    kt = cudnn_heads(g, CUDNN_K, g->NKV, C3, 1);
    CudnnDescriptor vt = cudnn_heads(g, CUDNN_V, g->NKV, C3, 1),
                    out = cudnn_heads(g, CUDNN_OUT, g->NH, C, 0);
    CudnnDescriptor dout = cudnn_heads(g, CUDNN_DOUT, g->NH, C, 0), lse = cudnn_rows(g, CUDNN_LSE);
    CudnnDescriptor scale = cudnn_number(g, CUDNN_SCALE), D = cudnn_rows(g, CUDNN_D);

    CudnnDescriptor both = cudnn_dense(g, CUDNN_VIRTUAL, DNN_DATA_FLOAT, g->T, g->HS);
    cudnn_map(g, DNN_POINTWISE_MUL, dout, out, both);
    CudnnDescriptor sum =
        cudnn_reduce(g, DNN_REDUCE_TENSOR_ADD, both, cudnn_rows(g, CUDNN_VIRTUAL));
    cudnn_map(g, DNN_POINTWISE_MUL, sum, cudnn_number(g, CUDNN_ONE),
              D); /* cuDNN expects a factor here */

    CudnnDescriptor s = cudnn_scaled_scores(g, q, kt, scale);
    s = cudnn_causal(g, cudnn_map(g, DNN_POINTWISE_SUB, s, lse, cudnn_scores(g)));
    CudnnDescriptor p = cudnn_map(g, DNN_POINTWISE_EXP, s, NULL, cudnn_scores(g));
    cudnn_key_gradient(g, p, dout, cudnn_heads(g, CUDNN_DV, g->NKV, C3, 0));

    CudnnDescriptor dp = cudnn_matmul(g, dout, vt, cudnn_scores(g));
    CudnnDescriptor less = cudnn_map(g, DNN_POINTWISE_SUB, dp, D, cudnn_scores(g));
    CudnnDescriptor product = cudnn_map(g, DNN_POINTWISE_MUL, less, p, cudnn_scores(g));
    CudnnDescriptor ds = cudnn_map(g, DNN_POINTWISE_MUL, product, scale, cudnn_scores(g));
    cudnn_key_gradient(g, ds, q, cudnn_heads(g, CUDNN_DK, g->NKV, C3, 0));
    CudnnDescriptor k = cudnn_reshape(g, kt, cudnn_heads(g, CUDNN_VIRTUAL, g->NKV, C3, 0));
    CudnnDescriptor dq = cudnn_heads(g, CUDNN_DQ, g->NH, C3, 0);
    if (!fast) {
        cudnn_matmul(g, ds, k, dq);
        return;
    }
    CudnnDescriptor dq_sum = cudnn_dense(g, CUDNN_DQ_SUM, DNN_DATA_FLOAT, g->T, g->HS);
    cudnn_map(g, DNN_POINTWISE_IDENTITY, cudnn_matmul(g, ds, k, dq_sum), NULL, dq);
}

/* ---------------------------------------------------------------------------------------------- */
/* plans */

/* The passes that are planned. FAST is the backward pass with cudnn_fast. */
enum { CUDNN_FORWARD, CUDNN_BACKWARD, CUDNN_BACKWARD_FAST };
static inline int cudnn_pass(int backward) {
    return !backward ? CUDNN_FORWARD : cm_gpu.cudnn_fast ? CUDNN_BACKWARD_FAST : CUDNN_BACKWARD;
}

/* A plan of one pass of attention at one shape. The descriptors of the graph live as long as the
   plan. */
struct CudnnPlan {
    CudnnGraph graph;
    CudnnDescriptor plan;
    int pass;
    size_t workspace; /* bytes */
    int64_t engine;   /* cuDNN's number of the engine that makes the kernel */
    unsigned notes;   /* bit n: cuDNN notes n about the engine's arithmetic */
};

/* A way to execute a graph. */
typedef struct {
    CudnnDescriptor config;
    int64_t engine;
    unsigned notes;
} CudnnProposal;

/* Makes one graph of the operations and asks cuDNN for configurations of it, the best first.
   Returns how many there are; 0 if something has failed. */
static inline int64_t cudnn_configurations(CudnnGraph *g, CudnnDescriptor *configs, int64_t most) {
    int mode = DNN_HEUR_MODE_A;
    int64_t n = 0;
    CudnnDescriptor whole = cudnn_make(g, DNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    cudnn_set(g, whole, DNN_ATTR_OPERATIONGRAPH_OPS, DNN_TYPE_BACKEND_DESCRIPTOR,
              g->operation_count, g->operations);
    cudnn_set(g, whole, DNN_ATTR_OPERATIONGRAPH_HANDLE, DNN_TYPE_HANDLE, 1, &cm_gpu.cudnn.handle);
    cudnn_finalize(g, whole, "its graph");
    CudnnDescriptor search = cudnn_make(g, DNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    cudnn_set_descriptor(g, search, DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
    cudnn_set(g, search, DNN_ATTR_ENGINEHEUR_MODE, DNN_TYPE_HEUR_MODE, 1, &mode);
    cudnn_finalize(g, search, "a kernel for it");
    for (int64_t i = 0; i < most; i++) configs[i] = cudnn_make(g, DNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (g->failed) return 0;
    CudnnStatus status = cm_gpu.cudnn_api.BackendGetAttribute(
        search, DNN_ATTR_ENGINEHEUR_RESULTS, DNN_TYPE_BACKEND_DESCRIPTOR, most, &n, configs);
    if (status != DNN_STATUS_SUCCESS) cudnn_fail(g, status, "its kernels");
    return g->failed ? 0 : n < most ? n : most;
}

/* Reads the number and the notes of a configuration's engine. Both stay 0 if cuDNN does not
   tell. */
static inline void cudnn_inspect(CudnnGraph *g, CudnnProposal *p) {
    int notes[64];
    int64_t n = 0, most = (int64_t)(sizeof notes / sizeof notes[0]);
    CudnnDescriptor engine = cudnn_make(g, DNN_BACKEND_ENGINE_DESCRIPTOR);
    if (g->failed ||
        cm_gpu.cudnn_api.BackendGetAttribute(p->config, DNN_ATTR_ENGINECFG_ENGINE,
                                             DNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine))
        return;
    if (cm_gpu.cudnn_api.BackendGetAttribute(engine, DNN_ATTR_ENGINE_GLOBAL_INDEX, DNN_TYPE_INT64,
                                             1, &n, &p->engine))
        p->engine = 0;
    if (cm_gpu.cudnn_api.BackendGetAttribute(engine, DNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                             DNN_TYPE_NUMERICAL_NOTE, most, &n, notes))
        return;
    for (int64_t i = 0; i < n && i < most; i++)
        if (notes[i] >= 0 && notes[i] < 32) p->notes |= 1u << notes[i];
}

static inline int cudnn_noted_unordered(unsigned notes) {
    return notes >> DNN_NUMERICAL_NOTE_NONDETERMINISTIC & 1;
}

/* The plan of one configuration, whose kernels are compiled here; NULL if that fails. */
static inline CudnnDescriptor cudnn_plan_config(CudnnGraph *g, CudnnDescriptor config,
                                                size_t *workspace) {
    int64_t bytes = 0, count = 0;
    CudnnDescriptor plan = cudnn_make(g, DNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    cudnn_set_descriptor(g, plan, DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    cudnn_set(g, plan, DNN_ATTR_EXECUTION_PLAN_HANDLE, DNN_TYPE_HANDLE, 1, &cm_gpu.cudnn.handle);
    cudnn_finalize(g, plan, "a plan");
    if (g->failed) return NULL;
    CudnnStatus status = cm_gpu.cudnn_api.BackendGetAttribute(
        plan, DNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, DNN_TYPE_INT64, 1, &count, &bytes);
    if (status != DNN_STATUS_SUCCESS || bytes < 0) cudnn_fail(g, status, "the workspace");
    *workspace = (size_t)bytes;
    return g->failed ? NULL : plan;
}

/* Makes the plan of the first proposal that works. Where equal runs have to give equal bits,
   engines with the note "nondeterministic" come last. But no engine is refused for its notes,
   and none is trusted for them: cuDNN 9.19 and 9.28 give both backward passes that note.
   attention_compare compares bits. */
static inline void cudnn_plan_make(CudnnPlan *p) {
    enum { MOST = 8 };
    CudnnGraph *g = &p->graph;
    CudnnDescriptor configs[MOST];
    if (p->pass == CUDNN_FORWARD) cudnn_forward_graph(g);
    else cudnn_backward_graph(g, p->pass == CUDNN_BACKWARD_FAST);
    int64_t n = cudnn_configurations(g, configs, MOST);
    if (g->failed) return;
    CudnnProposal proposals[MOST];
    for (int64_t i = 0; i < n; i++) {
        proposals[i] = {configs[i], 0, 0};
        cudnn_inspect(g, &proposals[i]);
    }
    for (int last = 0; last < 2; last++)
        for (int64_t i = 0; i < n && !p->plan; i++) {
            int unordered =
                p->pass != CUDNN_BACKWARD_FAST && cudnn_noted_unordered(proposals[i].notes);
            if (unordered != last) continue;
            g->failed = 0; /* forget the failure of the previous proposal */
            p->plan = cudnn_plan_config(g, configs[i], &p->workspace);
            p->engine = proposals[i].engine;
            p->notes = proposals[i].notes;
        }
    g->failed = !p->plan;
    if (!n) refuse(g->why, sizeof g->why, "cuDNN has no kernel for this");
}

/* Returns 0; or -1 and `why` for shapes that are known to fail or to be wrong. */
static inline int cudnn_check_shape(int T, int NH, int NKV, int HS, char *why, size_t size) {
    char name[32];
    cudnn_name(name, sizeof name);
    if (HS % 8 || HS > 128)
        return refuse(why, size, "%s takes head widths of 8, 16 .. 128, not %d", name, HS);
    if (NH % NKV)
        return refuse(why, size, "%s: %d query heads cannot share %d key heads", name, NH, NKV);
    if (T < 2) return refuse(why, size, "%s needs more than one position", name);
    if (T % 128 && cm_gpu.cudnn.version <= 91500)
        return refuse(why, size, "%s needs a multiple of 128 positions", name);
    return 0;
}

static inline int cudnn_same_heads(const CudnnPlan *p, int T, int NH, int NKV, int HS, int pass) {
    const CudnnGraph *g = &p->graph;
    return g->T == T && g->NH == NH && g->NKV == NKV && g->HS == HS && p->pass == pass;
}

/* The plan of a pass at a shape, made on demand; NULL and `why` if there is none. Refused plans
   are kept too, to be refused again. */
static inline CudnnPlan *cudnn_plan(int B, int T, int NH, int NKV, int HS, int pass, char *why,
                                    size_t size) {
    if (cudnn_check_shape(T, NH, NKV, HS, why, size)) return NULL;
    CudnnPlan *p = NULL;
    for (int i = 0; i < cm_gpu.cudnn_plan_count && !p; i++)
        if (cudnn_same_heads(cm_gpu.cudnn_plans[i], T, NH, NKV, HS, pass) &&
            cm_gpu.cudnn_plans[i]->graph.B == B)
            p = cm_gpu.cudnn_plans[i];
    if (!p) {
        p = cm_gpu.cudnn_plan_count < CUDNN_PLANS ? (CudnnPlan *)calloc(1, sizeof *p) : NULL;
        if (!p) {
            refuse(why, size, "no room for a plan");
            return NULL;
        }
        cm_gpu.cudnn_plans[cm_gpu.cudnn_plan_count++] = p;
        p->pass = pass;
        p->graph.B = B;
        p->graph.T = T;
        p->graph.NH = NH;
        p->graph.NKV = NKV;
        p->graph.HS = HS;
        cudnn_plan_make(p);
        if (p->graph.failed) {
            cudnn_free_graph(&p->graph);
            p->plan = NULL;
        }
    }
    if (!p->plan) refuse(why, size, "%s", p->graph.why);
    return p->plan ? p : NULL;
}

static inline void cudnn_free_plans(void) {
    while (cm_gpu.cudnn_plan_count) {
        CudnnPlan *p = cm_gpu.cudnn_plans[--cm_gpu.cudnn_plan_count];
        cudnn_free_graph(&p->graph);
        free(p);
    }
}

/* Makes the plans of both passes. Returns 0, or -1 and `why`. */
static inline int cudnn_attention_plan(int B, int T, int NH, int NKV, int HS, char *why,
                                       size_t size) {
    if (cudnn_start(why, size)) return -1;
    for (int backward = 0; backward < 2; backward++)
        if (!cudnn_plan(B, T, NH, NKV, HS, cudnn_pass(backward), why, size)) return -1;
    return 0;
}

/* "engine 8 forward, 12 backward (nondeterministic)", of the latest plans; "" if there are none.
   The parentheses hold cuDNN's notes, except that on the use of tensor cores. */
static inline void cudnn_engines(char *text, size_t size) {
    static const char *const names[] = {NULL, "converts inputs down", "reduced-precision sums",
                                        "FFT", "nondeterministic"};
    const CudnnPlan *last[2] = {NULL, NULL};
    for (int i = 0; i < cm_gpu.cudnn_plan_count; i++)
        if (cm_gpu.cudnn_plans[i]->plan)
            last[cm_gpu.cudnn_plans[i]->pass != CUDNN_FORWARD] = cm_gpu.cudnn_plans[i];
    size_t at = 0;
    text[0] = 0;
    for (int k = 0; k < 2 && last[0] && last[1]; k++) {
        at += (size_t)snprintf(text + at, size - at, "%s%lld %s", k ? ", " : "engine ",
                               (long long)last[k]->engine, k ? "backward" : "forward");
        for (unsigned note = 1, some = 0; note < 32 && at < size; note++) {
            if (!(last[k]->notes >> note & 1)) continue;
            const char *name = note < sizeof names / sizeof names[0] ? names[note] : "another note";
            at += (size_t)snprintf(text + at, size - at, "%s%s", some++ ? ", " : " (", name);
            if (at < size && !(last[k]->notes >> note >> 1))
                at += (size_t)snprintf(text + at, size - at, ")");
        }
        if (at >= size) return;
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* attention */

/* Bytes of D (B,NH,T) and of dq_sum (B,NH,T,HS). In the scratch of a backward pass they come
   first, in this order, and then the plan's workspace. */
static inline size_t cudnn_row_bytes(int B, int T, int NH) {
    return ((size_t)B * T * NH * sizeof(float) + 255) / 256 * 256;
}
static inline size_t cudnn_sum_bytes(int B, int T, int NH, int HS) {
    return cm_gpu.cudnn_fast ? ((size_t)B * T * NH * HS * sizeof(float) + 255) / 256 * 256 : 0;
}

/* Bytes of scratch for both passes; 0 if this shape has no plan. For another batch size they are
   in proportion to the planned one. */
static inline size_t cudnn_attention_workspace(int B, int T, int NH, int NKV, int HS) {
    size_t most = 0;
    for (int i = 0; i < cm_gpu.cudnn_plan_count; i++)
        for (int backward = 0; backward < 2; backward++) {
            const CudnnPlan *p = cm_gpu.cudnn_plans[i];
            if (!p->plan || !cudnn_same_heads(p, T, NH, NKV, HS, cudnn_pass(backward))) continue;
            size_t planned = (size_t)p->graph.B,
                   bytes = (p->workspace + planned - 1) / planned * (size_t)B;
            if (backward) bytes += cudnn_row_bytes(B, T, NH) + cudnn_sum_bytes(B, T, NH, HS);
            if (bytes > most) most = bytes;
        }
    return most;
}

/* Executes a plan on n tensors. Returns 0; or -1 if cuDNN refuses, and cudnn_failure says why. A
   CUDA graph that records the call keeps the plan, the addresses and the numbers given by value. */
static inline int cudnn_execute(CudnnPlan *p, int n, const int64_t *ids, void *const *pointers,
                                void *workspace) {
    CudnnGraph run; /* holds one descriptor */
    memset(&run, 0, sizeof run);
    CudnnDescriptor pack = cudnn_make(&run, DNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    cudnn_set(&run, pack, DNN_ATTR_VARIANT_PACK_DATA_POINTERS, DNN_TYPE_VOID_PTR, n, pointers);
    cudnn_set(&run, pack, DNN_ATTR_VARIANT_PACK_UNIQUE_IDS, DNN_TYPE_INT64, n, ids);
    cudnn_set(&run, pack, DNN_ATTR_VARIANT_PACK_WORKSPACE, DNN_TYPE_VOID_PTR, 1, &workspace);
    cudnn_finalize(&run, pack, "its arguments");
    if (!run.failed) {
        CudnnStatus status = cm_gpu.cudnn_api.BackendExecute(cm_gpu.cudnn.handle, p->plan, pack);
        if (status != DNN_STATUS_SUCCESS) cudnn_fail(&run, status, "attention");
    }
    cudnn_free_graph(&run);
    return run.failed ? refuse(cm_gpu.cudnn.why, sizeof cm_gpu.cudnn.why, "%s", run.why) : 0;
}

/* Whether cudnn_attention_plan has planned the forward pass of such sequences. */
static inline int cudnn_has_plan(int T, int NH, int NKV, int HS) {
    for (int i = 0; i < cm_gpu.cudnn_plan_count; i++)
        if (cm_gpu.cudnn_plans[i]->plan &&
            cudnn_same_heads(cm_gpu.cudnn_plans[i], T, NH, NKV, HS, CUDNN_FORWARD))
            return 1;
    return 0;
}

/* The plan for a batch of a shape that cudnn_attention_plan has planned, with any batch size;
   NULL for other shapes. */
static inline CudnnPlan *cudnn_planned(int B, int T, int NH, int NKV, int HS, int backward) {
    for (int i = 0; i < cm_gpu.cudnn_plan_count; i++)
        if (cm_gpu.cudnn_plans[i]->plan &&
            cudnn_same_heads(cm_gpu.cudnn_plans[i], T, NH, NKV, HS, cudnn_pass(backward)))
            return cudnn_plan(B, T, NH, NKV, HS, cudnn_pass(backward), cm_gpu.cudnn.why,
                              sizeof cm_gpu.cudnn.why);
    refuse(cm_gpu.cudnn.why, sizeof cm_gpu.cudnn.why, "no plan for sequences of %d", T);
    return NULL;
}

/* Returns 0 if every address of a NULL-terminated list is a multiple of 16, else -1. */
static inline int cudnn_check_alignment(const void *const *addresses) {
    for (; *addresses; addresses++)
        if ((uintptr_t)*addresses % 16)
            return refuse(cm_gpu.cudnn.why, sizeof cm_gpu.cudnn.why,
                          "an address is not a multiple of 16 bytes");
    return 0;
}
/* The score of a masked pair. cuDNN before 9.10 wants the lowest float instead of -infinity. */
static inline float cudnn_masked(void) {
    return cm_gpu.cudnn.version < 91000 ? -FLT_MAX : -INFINITY;
}

/* out (B,T,NH*HS) and lse (B,NH,T) from qkv (B,T,(NH+2*NKV)*HS), as flash_forward. Returns 0, or
   -1 if cuDNN cannot. */
static inline int cudnn_attention_forward(floatX *out, floatM *lse, const floatX *qkv, int B, int T,
                                          int NH, int NKV, int HS, double scale) {
    CudnnPlan *p = cudnn_planned(B, T, NH, NKV, HS, 0);
    const void *const given[] = {out, lse, qkv, NULL};
    if (!p || cudnn_check_alignment(given)) return -1;
    floatX *q = (floatX *)(uintptr_t)qkv, *k = q + (size_t)NH * HS, *v = k + (size_t)NKV * HS;
    float factor = (float)scale, masked = cudnn_masked();
    const int64_t ids[] = {CUDNN_Q,   CUDNN_K,     CUDNN_V,     CUDNN_OUT,
                           CUDNN_LSE, CUDNN_SCALE, CUDNN_MASKED};
    void *const pointers[] = {q, k, v, out, lse, &factor, &masked};
    void *workspace = p->workspace ? cuda_scratch(p->workspace) : NULL;
    if (p->workspace && !workspace)
        return refuse(cm_gpu.cudnn.why, sizeof cm_gpu.cudnn.why, "out of GPU memory");
    return cudnn_execute(p, 7, ids, pointers, workspace);
}

/* Sets all of dqkv (B,T,(NH+2*NKV)*HS), as flash_backward. Returns 0, or -1 if cuDNN cannot. */
static inline int cudnn_attention_backward(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                           const floatX *out, const floatM *lse, int B, int T,
                                           int NH, int NKV, int HS, double scale) {
    CudnnPlan *p = cudnn_planned(B, T, NH, NKV, HS, 1);
    const void *const given[] = {dqkv, dout, qkv, out, lse, NULL};
    if (!p || cudnn_check_alignment(given)) return -1;
    floatX *q = (floatX *)(uintptr_t)qkv, *k = q + (size_t)NH * HS, *v = k + (size_t)NKV * HS;
    floatX *dk = dqkv + (size_t)NH * HS, *dv = dk + (size_t)NKV * HS;
    size_t rows = cudnn_row_bytes(B, T, NH), sums = cudnn_sum_bytes(B, T, NH, HS);
    char *scratch = (char *)cuda_scratch(rows + sums + p->workspace);
    if (!scratch) return refuse(cm_gpu.cudnn.why, sizeof cm_gpu.cudnn.why, "out of GPU memory");
    if (sums && cm_gpu.cudnn.version < 90600)
        CUDA_CHECK(cudaMemsetAsync(scratch + rows, 0, sums, cm_gpu.stream));
    float factor = (float)scale, masked = cudnn_masked(), one = 1;
    const int64_t ids[] = {CUDNN_Q,     CUDNN_K,      CUDNN_V,   CUDNN_OUT,   CUDNN_LSE,
                           CUDNN_DOUT,  CUDNN_DQ,     CUDNN_DK,  CUDNN_DV,    CUDNN_D,
                           CUDNN_SCALE, CUDNN_MASKED, CUDNN_ONE, CUDNN_DQ_SUM};
    void *const pointers[] = {q,
                              k,
                              v,
                              (void *)(uintptr_t)out,
                              (void *)(uintptr_t)lse,
                              (void *)(uintptr_t)dout,
                              dqkv,
                              dk,
                              dv,
                              scratch,
                              &factor,
                              &masked,
                              &one,
                              scratch + rows};
    return cudnn_execute(p, sums ? 14 : 13, ids, pointers,
                         p->workspace ? scratch + rows + sums : NULL);
}

#endif

#endif
