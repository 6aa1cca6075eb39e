/*
Compares llmc/cuda/cudnn_api.h with cuDNN's own header, where the compiler finds one. The compiler
compares numbers, and signatures by the size and kind of each parameter: enumerations are int.
*/
#include "../../../llmc/cuda/cudnn_api.h"
#include "../check.h"

#include <type_traits>

#if __has_include(<cudnn_backend.h>) && __has_include(<cuda_runtime_api.h>)
#include <cudnn_backend.h>
#define HAVE_CUDNN_HEADER
#endif

/* Whether values of A and of B are passed alike. */
template <typename A, typename B> constexpr bool passed_alike() {
    if (std::is_void<A>::value || std::is_void<B>::value) return std::is_same<A, B>::value;
    if (std::is_pointer<A>::value) return std::is_pointer<B>::value;
    constexpr bool a = std::is_integral<A>::value || std::is_enum<A>::value;
    constexpr bool b = std::is_integral<B>::value || std::is_enum<B>::value;
    if constexpr (a && b) return sizeof(A) == sizeof(B);
    return false;
}

template <typename A, typename B> struct Alike : std::false_type {};
template <typename R, typename S, typename... A, typename... B>
struct Alike<R (*)(A...), S (*)(B...)> {
    static constexpr bool compare() {
        if constexpr (sizeof...(A) == sizeof...(B))
            return passed_alike<R, S>() && (passed_alike<A, B>() && ...);
        return false;
    }
    static constexpr bool value = compare();
};

static_assert(Alike<int (*)(void *, long), int (*)(char *, unsigned long)>::value,
              "alike are told apart");
static_assert(!Alike<int (*)(void *), int (*)(long)>::value,
              "a pointer for a number is not noticed");
static_assert(!Alike<int (*)(int), int (*)(long)>::value, "another size is not noticed");
static_assert(!Alike<int (*)(int), int (*)(int, int)>::value, "another parameter is not noticed");

static void test_numbers(void) {
#ifdef HAVE_CUDNN_HEADER
#define COMPARE_NUMBER(NAME, NUMBER)                                                               \
    static_assert((long long)DNN_##NAME == (long long)CUDNN_##NAME, #NAME);                        \
    check((long long)NUMBER == (long long)CUDNN_##NAME, #NAME);
    CUDNN_NUMBERS(COMPARE_NUMBER)
#define COMPARE_FUNCTION(RETURNS, NAME, PARAMETERS)                                                \
    static_assert(Alike<decltype(CudnnFunctions::NAME), decltype(&cudnn##NAME)>::value, #NAME);    \
    check((Alike<decltype(CudnnFunctions::NAME), decltype(&cudnn##NAME)>::value), #NAME);
    CUDNN_FUNCTIONS(COMPARE_FUNCTION)
    static_assert(sizeof(CudnnHandle) == sizeof(cudnnHandle_t), "a handle has another size");
    static_assert(sizeof(CudnnDescriptor) == sizeof(cudnnBackendDescriptor_t),
                  "a descriptor has another size");
#else
    printf("no cudnn_backend.h to compare with\n");
#endif
    /* Numbers of one kind differ from each other. This needs no header of cuDNN. */
    const int kinds[] = {
        DNN_BACKEND_TENSOR_DESCRIPTOR,         DNN_BACKEND_MATMUL_DESCRIPTOR,
        DNN_BACKEND_POINTWISE_DESCRIPTOR,      DNN_BACKEND_REDUCTION_DESCRIPTOR,
        DNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, DNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < i; j++)
            check(kinds[i] != kinds[j], "two kinds of descriptors are %d", kinds[i]);
}

static const Test tests[] = {TEST(numbers)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
