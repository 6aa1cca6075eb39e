/*
Numeric types, errors, memory and time: what every other header includes.

floatX  the type of activations and of the weights that matrix products read
floatM  the master type: parameters, gradients, optimizer state, statistics

On a CPU both are float. A build with -DCM_DOUBLE makes both double, for the finite difference
tests. With -DCM_CUDA floatX is bf16, or float with -DCM_FP32; floatM is float. The code is C11 that
is also C++20, because nvcc compiles it: results of malloc are cast.
*/
#ifndef CM_BASE_H
#define CM_BASE_H

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(CM_DOUBLE)
typedef double floatX;
typedef double floatM;
#elif defined(CM_CUDA) && !defined(CM_FP32)
#include <cuda_bf16.h>
typedef __nv_bfloat16 floatX;
typedef float floatM;
#else
typedef float floatX;
typedef float floatM;
#endif

/* A switch over a kind (ActKind, NormKind, ...) has no default. Then the compiler names a value
   that the switch forgets, and it does so as an error even where other warnings are not errors. */
#if !defined(__CUDACC__) && (defined(__GNUC__) || defined(__clang__))
#pragma GCC diagnostic error "-Wswitch"
#endif

/* CM_STATE declares a variable of which a program has one, in however many translation units. Every
   unit that includes the header defines the variable, and the linker keeps one definition:

       CM_STATE CpuMachine cm_cpu = {...};      C: a weak definition      C++: an inline variable

   A library that is linked into other programs defines CM_STATE as `static` before it includes
   anything. Its state is then its own. */
#ifndef CM_STATE
#ifdef __cplusplus
#define CM_STATE inline
#else
#define CM_STATE __attribute__((weak))
#endif
#endif

/* Marks a function that C++ may evaluate while it compiles, for example as an argument of a
   template. */
#ifdef __cplusplus
#define CM_CONSTEXPR constexpr
#else
#define CM_CONSTEXPR
#endif

/* Square root in the precision of floatM. */
#ifdef CM_DOUBLE
#define CM_SQRT sqrt
#else
#define CM_SQRT sqrtf
#endif

/* Precision of the model's matrix products. Auto means fp32 on a CPU, and floatX's precision on
   CUDA. */
typedef enum { COMPUTE_FP32, COMPUTE_BF16, COMPUTE_AUTO } Compute;

/* Length of every buffer for an error message. A function that can fail for the user's reasons
   takes a `char *err` of this size. It returns 0 on success; on failure it fills err with one
   sentence (what failed, on which file or flag, what to do) and returns -1. It never ends the
   program. */
#define ERR_LEN 1024

/* Writes a message into err, which may be NULL, and returns -1, so that a function can `return
   fail(...)`. Control characters, which the name of a file may have, become question marks: a
   message is one line and does not steer a terminal. */
__attribute__((format(printf, 2, 3))) static inline int fail(char *err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (err) vsnprintf(err, ERR_LEN, format, args);
    va_end(args);
    for (unsigned char *p = (unsigned char *)err; p && *p; p++)
        if (*p < 0x20 || *p == 0x7F) *p = '?';
    return -1;
}

/* Ends a program: "error: message" on stderr, exit status 1. Only programs call this; everything in
   llmc/cpu and llmc/cuda returns an error or records it. */
__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "error: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

/* Parallel loops for macros, which cannot contain a #pragma. PARALLEL_FOR_2 shares out two
   nested loops. */
#define PARALLEL_FOR _Pragma("omp parallel for") for
#define PARALLEL_FOR_2 _Pragma("omp parallel for collapse(2)") for

/* FNV-1a (Fowler, Noll and Vo), a 64-bit hash of n bytes. `hash` is FNV_BASIS, or the hash of
   the bytes that come before these. */
#define FNV_BASIS 14695981039346656037u
static inline uint64_t fnv1a(uint64_t hash, const void *bytes, size_t n) {
    const unsigned char *p = (const unsigned char *)bytes;
    for (size_t i = 0; i < n; i++) hash = (hash ^ p[i]) * 1099511628211u;
    return hash;
}

/* Reads a whole number: digits and nothing else. Returns -1 for another text, and for a number
   above `most`. */
static inline int parse_whole(const char *text, uint64_t most, uint64_t *value) {
    uint64_t n = 0;
    if (!*text) return -1;
    for (; *text; text++) {
        uint64_t digit = (uint64_t)((unsigned char)*text - '0');
        if (digit > 9 || digit > most || n > (most - digit) / 10) return -1;
        n = 10 * n + digit;
    }
    *value = n;
    return 0;
}

/* Monotonic seconds. */
static inline double now_seconds(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static inline int thread_count(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static inline int thread_index(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static inline int in_parallel(void) {
#ifdef _OPENMP
    return omp_in_parallel();
#else
    return 0;
#endif
}

static inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }
static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

#endif
