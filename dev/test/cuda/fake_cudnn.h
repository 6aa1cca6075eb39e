/*
A cuDNN that runs on the CPU, for the emulator. It takes the descriptors that cudnn.cuh makes and
executes the graph operation by operation in float, with virtual tensors rounded to their types.
This tests the meaning of the graph, its strides, ids and numbers. It does not test which graphs the
real cuDNN supports.

It refuses what the real cuDNN refuses: wrong sizes of values, descriptors that are used before they
are finalized, tensors without memory, unaligned addresses. fake_said holds the reason.
*/
#ifndef CM_FAKE_CUDNN_H
#define CM_FAKE_CUDNN_H

#include "../../../llmc/cuda/cudnn.cuh"

#include <map>
#include <vector>

typedef struct {
    int engine, noted_unordered, fails;
} FakeEngine;

static struct {
    int version;
    std::vector<FakeEngine> engines; /* in the order that heuristics propose */
    int64_t workspace;               /* bytes of workspace of every plan */
    /* whether executions fail; whether they differ in a bit of dq; whether dk is wrong */
    int refuse, racing, wrong;
    int live, executions; /* descriptors that exist; executions so far */
} fake;
static char fake_said[256];

struct FakeDescriptor {
    int kind, finalized, engine;
    const FakeDescriptor *graph; /* the graph of a configuration or of a plan */
    std::map<int, std::vector<char>> values;
    std::map<int, int64_t> counts;
};

static int fake_fail(const char *why) {
    snprintf(fake_said, sizeof fake_said, "%s", why);
    return 2000;
}

template <typename T> static T fake_get(const FakeDescriptor *d, int attribute, size_t i = 0) {
    auto found = d->values.find(attribute);
    if (found == d->values.end() || found->second.size() < (i + 1) * sizeof(T))
        die("fake cuDNN: attribute %d of descriptor kind %d is missing", attribute, d->kind);
    T x;
    memcpy(&x, found->second.data() + i * sizeof(T), sizeof x);
    return x;
}
static int fake_has(const FakeDescriptor *d, int attribute) {
    return d->values.count(attribute) > 0;
}
static FakeDescriptor *fake_tensor(const FakeDescriptor *d, int attribute) {
    FakeDescriptor *t = (FakeDescriptor *)fake_get<void *>(d, attribute);
    if (!t->finalized)
        die("fake cuDNN: descriptor of kind %d is used before it is finalized", t->kind);
    return t;
}

static size_t fake_version(void) { return (size_t)fake.version; }
static size_t fake_cudart(void) { return 13000; }
static const char *fake_error(CudnnStatus) { return "FAKE_ERROR"; }
static void fake_last_error(char *text, size_t size) { snprintf(text, size, "%s", fake_said); }
static CudnnStatus fake_create(CudnnHandle *handle) {
    *handle = &fake;
    return 0;
}
static CudnnStatus fake_destroy(CudnnHandle) { return 0; }
static CudnnStatus fake_set_stream(CudnnHandle, void *) { return 0; }
static CudnnStatus fake_make(int kind, CudnnDescriptor *made) {
    *made = new FakeDescriptor{kind, 0, 0, NULL, {}, {}};
    fake.live++;
    return 0;
}
static CudnnStatus fake_unmake(CudnnDescriptor d) {
    delete (FakeDescriptor *)d;
    fake.live--;
    return 0;
}

static CudnnStatus fake_set(CudnnDescriptor descriptor, int attribute, int type, int64_t count,
                            const void *values) {
    FakeDescriptor *d = (FakeDescriptor *)descriptor;
    size_t bytes = type == DNN_TYPE_BOOLEAN ? 1
                   : type == DNN_TYPE_INT64 || type == DNN_TYPE_VOID_PTR ||
                           type == DNN_TYPE_HANDLE || type == DNN_TYPE_BACKEND_DESCRIPTOR
                       ? 8
                       : 4;
    if (d->finalized) return fake_fail("an attribute is set after the end");
    d->values[attribute].assign((const char *)values, (const char *)values + bytes * (size_t)count);
    d->counts[attribute] = count;
    return 0;
}

static CudnnStatus fake_read(const CudnnDescriptor descriptor, int attribute, int, int64_t most,
                             int64_t *count, void *values) {
    const FakeDescriptor *d = (const FakeDescriptor *)descriptor;
    size_t place = (size_t)d->engine;
    *count = 1;
    if (attribute == DNN_ATTR_ENGINEHEUR_RESULTS) {
        *count = min_int((int)most, (int)fake.engines.size());
        for (int i = 0; i < (int)*count; i++) {
            FakeDescriptor *config = ((FakeDescriptor **)values)[i];
            if (config->kind != DNN_BACKEND_ENGINECFG_DESCRIPTOR)
                return fake_fail("not a configuration");
            config->engine = i;
            config->finalized = 1;
            config->graph = fake_tensor(d, DNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
        }
    } else if (attribute == DNN_ATTR_ENGINECFG_ENGINE) {
        (*(FakeDescriptor **)values)->engine = d->engine;
    } else if (attribute == DNN_ATTR_ENGINE_GLOBAL_INDEX) {
        *(int64_t *)values = fake.engines[place].engine;
    } else if (attribute == DNN_ATTR_ENGINE_NUMERICAL_NOTE) {
        ((int *)values)[0] = 0;
        ((int *)values)[1] = DNN_NUMERICAL_NOTE_NONDETERMINISTIC;
        *count = 1 + fake.engines[place].noted_unordered;
    } else if (attribute == DNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) {
        *(int64_t *)values = fake.workspace;
    } else {
        return fake_fail("an attribute that nobody reads");
    }
    return 0;
}

static CudnnStatus fake_finalize(CudnnDescriptor descriptor) {
    FakeDescriptor *d = (FakeDescriptor *)descriptor;
    if (d->finalized) return fake_fail("finalized twice");
    if (d->kind == DNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
        const FakeDescriptor *config = fake_tensor(d, DNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
        d->engine = config->engine;
        d->graph = config->graph;
        if (fake.engines[(size_t)d->engine].fails) return fake_fail("this engine does not compile");
    }
    d->finalized = 1;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Execution */

/* A tensor of one execution: its description and its elements, which are in memory or, for a
   virtual tensor, in an array in the order of offsets. */
struct FakeTensor {
    int64_t size[4], stride[4];
    int type;
    char *memory;
    std::vector<float> *elements;
};

struct FakeRun {
    std::map<int64_t, char *> pointers;
    std::map<int64_t, std::vector<float>> elements;
};

static FakeTensor fake_open(FakeRun *run, const FakeDescriptor *d) {
    FakeTensor t;
    int64_t id = fake_get<int64_t>(d, DNN_ATTR_TENSOR_UNIQUE_ID), last = 1;
    for (size_t i = 0; i < 4; i++) {
        t.size[i] = fake_get<int64_t>(d, DNN_ATTR_TENSOR_DIMENSIONS, i);
        t.stride[i] = fake_get<int64_t>(d, DNN_ATTR_TENSOR_STRIDES, i);
        last += (t.size[i] - 1) * t.stride[i];
    }
    t.type = fake_get<int>(d, DNN_ATTR_TENSOR_DATA_TYPE);
    t.memory = NULL;
    t.elements = NULL;
    if (fake_get<char>(d, DNN_ATTR_TENSOR_IS_VIRTUAL)) {
        t.elements = &run->elements[id];
        t.elements->resize((size_t)last, NAN);
        return t;
    }
    if (!run->pointers.count(id)) die("fake cuDNN: tensor %lld has no memory", (long long)id);
    t.memory = run->pointers[id];
    int64_t alignment = fake_get<int64_t>(d, DNN_ATTR_TENSOR_BYTE_ALIGNMENT);
    if (!fake_get<char>(d, DNN_ATTR_TENSOR_IS_BY_VALUE) && (uintptr_t)t.memory % (size_t)alignment)
        die("fake cuDNN: tensor %lld is not aligned", (long long)id);
    return t;
}

static float fake_at(const FakeTensor *t, int64_t offset) {
    if (t->elements) return (*t->elements)[(size_t)offset];
    return t->type == DNN_DATA_BFLOAT16 ? (float)((floatX *)(void *)t->memory)[offset]
                                        : ((float *)(void *)t->memory)[offset];
}
/* Element (b, h, i, j). A dimension of 1 is repeated, and a key head is repeated for the query
   heads that share it. */
static float fake_element(const FakeTensor *t, const FakeTensor *like, const int64_t at[4]) {
    int64_t offset = 0;
    for (int k = 0; k < 4; k++) {
        int64_t x = t->size[k] == 1 ? 0 : k == 1 ? at[k] / (like->size[k] / t->size[k]) : at[k];
        if (x >= t->size[k]) die("fake cuDNN: dimension %d of an operand is too small", k);
        offset += x * t->stride[k];
    }
    return fake_at(t, offset);
}
static void fake_put(const FakeTensor *t, const int64_t at[4], float x) {
    int64_t offset = 0;
    for (int k = 0; k < 4; k++) offset += at[k] * t->stride[k];
    if (t->memory && t->type == DNN_DATA_BFLOAT16) ((floatX *)(void *)t->memory)[offset] = x;
    else if (t->memory) ((float *)(void *)t->memory)[offset] = x;
    else
        (*t->elements)[(size_t)offset] =
            t->type == DNN_DATA_BFLOAT16 ? (float)__float2bfloat16(x) : x;
}

#define FAKE_EACH(T, AT)                                                                           \
    for (AT[0] = 0; AT[0] < (T).size[0]; AT[0]++)                                                  \
        for (AT[1] = 0; AT[1] < (T).size[1]; AT[1]++)                                              \
            for (AT[2] = 0; AT[2] < (T).size[2]; AT[2]++)                                          \
                for (AT[3] = 0; AT[3] < (T).size[3]; AT[3]++)

static void fake_matmul(FakeTensor a, FakeTensor b, FakeTensor c) {
    int64_t at[4], n = a.size[3];
    if (b.size[2] != n || a.size[2] != c.size[2] || b.size[3] != c.size[3])
        die("fake cuDNN: sizes of a product do not match");
    FAKE_EACH(c, at) {
        double sum = 0;
        for (int64_t k = 0; k < n; k++) {
            const int64_t left[4] = {at[0], at[1], at[2], k}, right[4] = {at[0], at[1], k, at[3]};
            sum += (double)fake_element(&a, &c, left) * (double)fake_element(&b, &c, right);
        }
        /* cuDNN before 9.6 adds to a float sum in memory; later versions start it at 0 */
        if (c.memory && c.type == DNN_DATA_FLOAT && fake.version < 90600)
            sum += (double)fake_element(&c, &c, at);
        fake_put(&c, at, (float)sum);
    }
}

static void fake_pointwise(int mode, int64_t axis, FakeTensor x, const FakeTensor *b,
                           const FakeTensor *t, FakeTensor y) {
    int64_t at[4];
    FAKE_EACH(y, at) {
        float u = fake_element(&x, &y, at), v = b ? fake_element(b, &y, at) : 0,
              w = t ? fake_element(t, &y, at) : 0;
        fake_put(&y, at,
                 mode == DNN_POINTWISE_ADD             ? u + v
                 : mode == DNN_POINTWISE_MUL           ? u * v
                 : mode == DNN_POINTWISE_DIV           ? u / v
                 : mode == DNN_POINTWISE_SUB           ? u - v
                 : mode == DNN_POINTWISE_EXP           ? expf(u)
                 : mode == DNN_POINTWISE_LOG           ? logf(u)
                 : mode == DNN_POINTWISE_IDENTITY      ? u
                 : mode == DNN_POINTWISE_GEN_INDEX     ? (float)at[axis]
                 : mode == DNN_POINTWISE_CMP_GE        ? (float)(u >= v)
                 : mode == DNN_POINTWISE_BINARY_SELECT ? (w != 0 ? u : v)
                                                       : NAN);
    }
}

/* Sums x into y, which is smaller in the summed dimensions; heads are summed over groups of
   neighbours. */
static void fake_reduce(int mode, FakeTensor x, FakeTensor y) {
    int64_t at[4], from[4], part[4];
    for (int k = 0; k < 4; k++) part[k] = x.size[k] / y.size[k];
    FAKE_EACH(y, at) {
        float sum = mode == DNN_REDUCE_TENSOR_MAX ? -INFINITY : 0;
        for (int64_t i = 0; i < part[0] * part[1] * part[2] * part[3]; i++) {
            int64_t rest = i;
            for (int k = 3; k >= 0; rest /= part[k--]) from[k] = at[k] * part[k] + rest % part[k];
            float u = fake_element(&x, &x, from);
            sum = mode == DNN_REDUCE_TENSOR_MAX ? fmaxf(sum, u) : sum + u;
        }
        fake_put(&y, at, sum);
    }
}

/* y is the memory of x with other sizes and strides. */
static void fake_reshape(FakeTensor x, FakeTensor y) {
    int64_t at[4];
    FAKE_EACH(y, at) {
        int64_t offset = 0;
        for (int k = 0; k < 4; k++) offset += at[k] * y.stride[k];
        fake_put(&y, at, fake_at(&x, offset));
    }
}

static void fake_operation(FakeRun *run, const FakeDescriptor *op) {
    auto open = [&](int attribute) { return fake_open(run, fake_tensor(op, attribute)); };
    if (op->kind == DNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
        fake_matmul(open(DNN_ATTR_OPERATION_MATMUL_ADESC), open(DNN_ATTR_OPERATION_MATMUL_BDESC),
                    open(DNN_ATTR_OPERATION_MATMUL_CDESC));
    } else if (op->kind == DNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) {
        const FakeDescriptor *kind = fake_tensor(op, DNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
        int b = fake_has(op, DNN_ATTR_OPERATION_POINTWISE_BDESC),
            t = fake_has(op, DNN_ATTR_OPERATION_POINTWISE_TDESC);
        FakeTensor B, T;
        if (b) B = open(DNN_ATTR_OPERATION_POINTWISE_BDESC);
        if (t) T = open(DNN_ATTR_OPERATION_POINTWISE_TDESC);
        int64_t axis = fake_has(kind, DNN_ATTR_POINTWISE_AXIS)
                           ? fake_get<int64_t>(kind, DNN_ATTR_POINTWISE_AXIS)
                           : 0;
        fake_pointwise(fake_get<int>(kind, DNN_ATTR_POINTWISE_MODE), axis,
                       open(DNN_ATTR_OPERATION_POINTWISE_XDESC), b ? &B : NULL, t ? &T : NULL,
                       open(DNN_ATTR_OPERATION_POINTWISE_YDESC));
    } else if (op->kind == DNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR) {
        const FakeDescriptor *kind = fake_tensor(op, DNN_ATTR_OPERATION_REDUCTION_DESC);
        fake_reduce(fake_get<int>(kind, DNN_ATTR_REDUCTION_OPERATOR),
                    open(DNN_ATTR_OPERATION_REDUCTION_XDESC),
                    open(DNN_ATTR_OPERATION_REDUCTION_YDESC));
    } else if (op->kind == DNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR) {
        fake_reshape(open(DNN_ATTR_OPERATION_RESHAPE_XDESC),
                     open(DNN_ATTR_OPERATION_RESHAPE_YDESC));
    } else {
        die("fake cuDNN: an operation of kind %d", op->kind);
    }
}

static CudnnStatus fake_execute(CudnnHandle, CudnnDescriptor plan_, CudnnDescriptor pack_) {
    const FakeDescriptor *plan = (FakeDescriptor *)plan_, *pack = (FakeDescriptor *)pack_;
    if (!plan->finalized || !pack->finalized) return fake_fail("executed before it is finalized");
    if (fake.refuse) return fake_fail("the device is tired");
    FakeRun run;
    int64_t n = pack->counts.at(DNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    for (size_t i = 0; i < (size_t)n; i++)
        run.pointers[fake_get<int64_t>(pack, DNN_ATTR_VARIANT_PACK_UNIQUE_IDS, i)] =
            fake_get<char *>(pack, DNN_ATTR_VARIANT_PACK_DATA_POINTERS, i);
    char *workspace = fake_get<char *>(pack, DNN_ATTR_VARIANT_PACK_WORKSPACE);
    if (fake.workspace && (!workspace || (uintptr_t)workspace % 16))
        return fake_fail("no workspace");
    if (fake.workspace) memset(workspace, 0xff, (size_t)fake.workspace);
    for (int64_t i = 0; i < plan->graph->counts.at(DNN_ATTR_OPERATIONGRAPH_OPS); i++) {
        const FakeDescriptor *op =
            (FakeDescriptor *)fake_get<void *>(plan->graph, DNN_ATTR_OPERATIONGRAPH_OPS, (size_t)i);
        if (!op->finalized) return fake_fail("an operation is not finalized");
        fake_operation(&run, op);
    }
    if (fake.workspace) memset(workspace, 0xff, (size_t)fake.workspace);
    fake.executions++;
    if (run.pointers.count(CUDNN_DQ) && fake.racing)
        ((unsigned short *)(void *)run.pointers[CUDNN_DQ])[5] ^=
            (unsigned short)(fake.executions % 3 == 0);
    if (run.pointers.count(CUDNN_DK) && fake.wrong)
        for (int i = 0; i < 16; i++) ((floatX *)(void *)run.pointers[CUDNN_DK])[i] = 50.0f;
    return 0;
}

/* Installs the fake as cuDNN of this version. */
static void fake_install(int version) {
    fake.version = version;
    fake.engines = {{8, 0, 0}};
    fake.workspace = 4096;
    fake.refuse = fake.racing = fake.wrong = 0;
    cm_gpu.cudnn_api = {fake_version, fake_cudart,     fake_error,  fake_last_error, fake_create,
                        fake_destroy, fake_set_stream, fake_make,   fake_unmake,     fake_set,
                        fake_read,    fake_finalize,   fake_execute};
    memset(&cm_gpu.cudnn, 0, sizeof cm_gpu.cudnn);
}

#endif
