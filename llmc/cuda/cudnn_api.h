/*
What this program uses of cuDNN 9: functions of its backend interface, and the numbers of its
descriptors, attributes, types and operations. So the program can be built without cuDNN's header
and started without cuDNN. The source is cuDNN's documentation, "Backend API": a number NAME here is
CUDNN_NAME there. Numbers and signatures belong to the library's binary interface, which is fixed
for all of cuDNN 9. dev/test/cuda/test_cudnn_api.cu compares them with cuDNN's header where there is
one.
*/
#ifndef CM_CUDA_CUDNN_API_H
#define CM_CUDA_CUDNN_API_H

#include <stddef.h>
#include <stdint.h>

typedef void *CudnnHandle; /* the library, on one stream of one device */
/* Anything that is described to the library: tensor, operation, graph, plan. */
typedef void *CudnnDescriptor;
typedef int CudnnStatus; /* 0, or an error that cudnnGetErrorString names */

/* The functions: return type, name without "cudnn", parameters. Streams are cudaStream_t, a
   pointer. */
#define CUDNN_FUNCTIONS(DO)                                                                        \
    DO(size_t, GetVersion, (void))       /* 91900 is 9.19.0 */                                     \
    DO(size_t, GetCudartVersion, (void)) /* 13010: built for CUDA 13.1 */                          \
    DO(const char *, GetErrorString, (CudnnStatus status))                                         \
    DO(void, GetLastErrorString, (char *text, size_t size))                                        \
    DO(CudnnStatus, Create, (CudnnHandle * handle))                                                \
    DO(CudnnStatus, Destroy, (CudnnHandle handle))                                                 \
    DO(CudnnStatus, SetStream, (CudnnHandle handle, void *stream))                                 \
    DO(CudnnStatus, BackendCreateDescriptor, (int kind, CudnnDescriptor *made))                    \
    DO(CudnnStatus, BackendDestroyDescriptor, (CudnnDescriptor d))                                 \
    DO(CudnnStatus, BackendSetAttribute,                                                           \
       (CudnnDescriptor d, int attribute, int type, int64_t count, const void *values))            \
    DO(CudnnStatus, BackendGetAttribute,                                                           \
       (const CudnnDescriptor d, int attribute, int type, int64_t most, int64_t *count,            \
        void *values))                                                                             \
    DO(CudnnStatus, BackendFinalize, (CudnnDescriptor d))                                          \
    DO(CudnnStatus, BackendExecute,                                                                \
       (CudnnHandle handle, CudnnDescriptor plan, CudnnDescriptor pack))

/* The numbers: NAME, value. DNN_NAME in this program. */
/* clang-format off */
#define CUDNN_NUMBERS(DO)                                          \
    /* kinds of descriptors */                                     \
    DO(BACKEND_TENSOR_DESCRIPTOR, 17)                              \
    DO(BACKEND_MATMUL_DESCRIPTOR, 18)                              \
    DO(BACKEND_OPERATION_MATMUL_DESCRIPTOR, 19)                    \
    DO(BACKEND_POINTWISE_DESCRIPTOR, 0)                            \
    DO(BACKEND_OPERATION_POINTWISE_DESCRIPTOR, 13)                 \
    DO(BACKEND_REDUCTION_DESCRIPTOR, 21)                           \
    DO(BACKEND_OPERATION_REDUCTION_DESCRIPTOR, 22)                 \
    DO(BACKEND_OPERATION_RESHAPE_DESCRIPTOR, 31)                   \
    DO(BACKEND_OPERATIONGRAPH_DESCRIPTOR, 15)                      \
    DO(BACKEND_ENGINEHEUR_DESCRIPTOR, 4)                           \
    DO(BACKEND_ENGINECFG_DESCRIPTOR, 3)                            \
    DO(BACKEND_ENGINE_DESCRIPTOR, 2)                               \
    DO(BACKEND_EXECUTION_PLAN_DESCRIPTOR, 5)                       \
    DO(BACKEND_VARIANT_PACK_DESCRIPTOR, 16)                        \
    /* attributes of a tensor */                                   \
    DO(ATTR_TENSOR_UNIQUE_ID, 906)                                 \
    DO(ATTR_TENSOR_DATA_TYPE, 901)                                 \
    DO(ATTR_TENSOR_DIMENSIONS, 902)                                \
    DO(ATTR_TENSOR_STRIDES, 903)                                   \
    DO(ATTR_TENSOR_BYTE_ALIGNMENT, 900)                            \
    DO(ATTR_TENSOR_IS_VIRTUAL, 907)                                \
    DO(ATTR_TENSOR_IS_BY_VALUE, 908)                               \
    /* attributes of operations */                                 \
    DO(ATTR_MATMUL_COMP_TYPE, 1500)                                \
    DO(ATTR_OPERATION_MATMUL_ADESC, 1520)                          \
    DO(ATTR_OPERATION_MATMUL_BDESC, 1521)                          \
    DO(ATTR_OPERATION_MATMUL_CDESC, 1522)                          \
    DO(ATTR_OPERATION_MATMUL_DESC, 1523)                           \
    DO(ATTR_POINTWISE_MODE, 0)                                     \
    DO(ATTR_POINTWISE_MATH_PREC, 1)                                \
    DO(ATTR_POINTWISE_AXIS, 9)                                     \
    DO(ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, 750)                \
    DO(ATTR_OPERATION_POINTWISE_XDESC, 751)                        \
    DO(ATTR_OPERATION_POINTWISE_BDESC, 752)                        \
    DO(ATTR_OPERATION_POINTWISE_YDESC, 753)                        \
    DO(ATTR_OPERATION_POINTWISE_TDESC, 758)                        \
    DO(ATTR_REDUCTION_OPERATOR, 1600)                              \
    DO(ATTR_REDUCTION_COMP_TYPE, 1601)                             \
    DO(ATTR_OPERATION_REDUCTION_XDESC, 1610)                       \
    DO(ATTR_OPERATION_REDUCTION_YDESC, 1611)                       \
    DO(ATTR_OPERATION_REDUCTION_DESC, 1612)                        \
    DO(ATTR_OPERATION_RESHAPE_XDESC, 2200)                         \
    DO(ATTR_OPERATION_RESHAPE_YDESC, 2201)                         \
    /* attributes of a graph, its engines and plans */             \
    DO(ATTR_OPERATIONGRAPH_HANDLE, 800)                            \
    DO(ATTR_OPERATIONGRAPH_OPS, 801)                               \
    DO(ATTR_ENGINEHEUR_MODE, 200)                                  \
    DO(ATTR_ENGINEHEUR_OPERATION_GRAPH, 201)                       \
    DO(ATTR_ENGINEHEUR_RESULTS, 202)                               \
    DO(ATTR_ENGINECFG_ENGINE, 300)                                 \
    DO(ATTR_ENGINE_GLOBAL_INDEX, 1301)                             \
    DO(ATTR_ENGINE_NUMERICAL_NOTE, 1303)                           \
    DO(ATTR_EXECUTION_PLAN_HANDLE, 400)                            \
    DO(ATTR_EXECUTION_PLAN_ENGINE_CONFIG, 401)                     \
    DO(ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, 402)                    \
    DO(ATTR_VARIANT_PACK_UNIQUE_IDS, 1000)                         \
    DO(ATTR_VARIANT_PACK_DATA_POINTERS, 1001)                      \
    DO(ATTR_VARIANT_PACK_WORKSPACE, 1003)                          \
    /* types of attributes */                                      \
    DO(TYPE_HANDLE, 0)                                             \
    DO(TYPE_DATA_TYPE, 1)                                          \
    DO(TYPE_BOOLEAN, 2)                                            \
    DO(TYPE_INT64, 3)                                              \
    DO(TYPE_VOID_PTR, 6)                                           \
    DO(TYPE_HEUR_MODE, 8)                                          \
    DO(TYPE_NUMERICAL_NOTE, 11)                                    \
    DO(TYPE_POINTWISE_MODE, 14)                                    \
    DO(TYPE_BACKEND_DESCRIPTOR, 15)                                \
    DO(TYPE_REDUCTION_OPERATOR_TYPE, 18)                           \
    /* types of tensor elements */                                 \
    DO(DATA_FLOAT, 0)                                              \
    DO(DATA_INT32, 4)                                              \
    DO(DATA_BFLOAT16, 9)                                           \
    DO(DATA_BOOLEAN, 11)                                           \
    /* operations */                                               \
    DO(POINTWISE_ADD, 0)                                           \
    DO(POINTWISE_MUL, 1)                                           \
    DO(POINTWISE_DIV, 6)                                           \
    DO(POINTWISE_SUB, 9)                                           \
    DO(POINTWISE_EXP, 13)                                          \
    DO(POINTWISE_LOG, 15)                                          \
    DO(POINTWISE_IDENTITY, 21)                                     \
    DO(POINTWISE_CMP_GE, 303)                                      \
    DO(POINTWISE_GEN_INDEX, 501)                                   \
    DO(POINTWISE_BINARY_SELECT, 601)                               \
    DO(REDUCE_TENSOR_ADD, 0)                                       \
    DO(REDUCE_TENSOR_MAX, 3)                                       \
    /* others */                                                   \
    DO(HEUR_MODE_A, 3)                                             \
    DO(NUMERICAL_NOTE_NONDETERMINISTIC, 4)                         \
    DO(NUMERICAL_NOTE_TYPE_COUNT, 10)                              \
    DO(STATUS_SUCCESS, 0)
/* clang-format on */

enum {
#define CUDNN_NUMBER(NAME, NUMBER) DNN_##NAME = NUMBER,
    CUDNN_NUMBERS(CUDNN_NUMBER)
#undef CUDNN_NUMBER
};

/* The functions, once they have been found: cudnn_api.Create is cudnnCreate. */
typedef struct {
#define CUDNN_MEMBER(RETURNS, NAME, PARAMETERS) RETURNS(*NAME) PARAMETERS;
    CUDNN_FUNCTIONS(CUDNN_MEMBER)
#undef CUDNN_MEMBER
} CudnnFunctions;

#endif
