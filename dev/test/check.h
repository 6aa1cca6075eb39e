/*
A small test harness. A test is a function without arguments that calls check(...) any number of
times. A program lists its tests in a table, and main runs the table:

    static const Test tests[] = {TEST(values), TEST(errors)}; // test_values, test_errors
    int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }

Without arguments every test runs. Arguments are beginnings of names and choose the tests that run:
`build/test_flags err`. Each test prints its name, its number of checks and its milliseconds. The
last line of the output is always "N passed, N failed".
*/
#ifndef CM_CHECK_H
#define CM_CHECK_H

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static int check_passed, check_failed;

/* Counts one check. A failed check prints its file, its line and the message. */
#define check(condition, ...) check_at(__FILE__, __LINE__, (condition) ? 1 : 0, __VA_ARGS__)

__attribute__((format(printf, 4, 5), unused)) static int check_at(const char *file, int line,
                                                                  int ok, const char *format, ...) {
    if (ok) {
        check_passed++;
        return 1;
    }
    check_failed++;
    va_list args;
    va_start(args, format);
    printf("FAIL %s:%d: ", file, line);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    return 0;
}

__attribute__((unused)) static void use_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

/* |a - b| / max(|b|, floor). INFINITY for NaN. */
__attribute__((unused)) static double relative_error(double a, double b, double floor) {
    double e = fabs(a - b) / fmax(fabs(b), floor);
    return e == e ? e : INFINITY;
}

/* ||a - b||_2 / max(||b||_2, floor), the measure of nearly all numeric tests. INFINITY for NaN. */
#define DEFINE_RELATIVE_L2(NAME, TYPE_A, TYPE_B)                                                   \
    __attribute__((unused)) static double NAME(const TYPE_A *a, const TYPE_B *b, size_t n,         \
                                               double floor) {                                     \
        double d = 0, s = 0;                                                                       \
        for (size_t i = 0; i < n; i++) {                                                           \
            double e = (double)a[i] - (double)b[i];                                                \
            d += e * e;                                                                            \
            s += (double)b[i] * (double)b[i];                                                      \
        }                                                                                          \
        double r = sqrt(d) / fmax(sqrt(s), floor);                                                 \
        return r == r ? r : INFINITY;                                                              \
    }
DEFINE_RELATIVE_L2(relative_l2_ff, float, float)
DEFINE_RELATIVE_L2(relative_l2_fd, float, double)
DEFINE_RELATIVE_L2(relative_l2_dd, double, double)

/* ---------------------------------------------------------------------------------------------- */
/* Named tests                                                                                    */

typedef struct {
    const char *name;
    void (*run)(void);
    int slow;
} Test;

/* The row of the function test_NAME. `make test T=NAME` finds a test by the text TEST(NAME).
   `make check` (QUICK=1 in the environment) leaves out a SLOW_TEST, one that takes a second. */
#define TEST(NAME)                                                                                 \
    { #NAME, test_##NAME, 0 }
#define SLOW_TEST(NAME)                                                                            \
    { #NAME, test_##NAME, 1 }
#define COUNT_OF(ARRAY) ((int)(sizeof(ARRAY) / sizeof(ARRAY)[0]))

/* If not NULL, called with the name of each test before it: draw.h starts its random numbers. */
__attribute__((unused)) static void (*check_begin)(const char *test);

static inline double check_milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* 1 if the test is chosen: its name begins with one of the names that are given, or none is given
   and it is not left out as slow. */
static inline int check_chosen(const Test *test, int argc, char **argv) {
    const char *quick = getenv("QUICK");
    int chosen = argc < 2 && !(test->slow && quick && *quick);
    for (int i = 1; i < argc; i++) chosen |= strncmp(test->name, argv[i], strlen(argv[i])) == 0;
    return chosen;
}

/* Ends the program if no test's name begins with one of the names on the command line. */
static inline void check_names(const Test *tests, int count, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        int found = 0;
        for (int j = 0; j < count; j++)
            found |= strncmp(tests[j].name, argv[i], strlen(argv[i])) == 0;
        if (found) continue;
        printf("%s has no test whose name begins with \"%s\". Its tests are:\n", argv[0], argv[i]);
        for (int j = 0; j < count; j++) printf("    %s\n", tests[j].name);
        exit(2);
    }
}

/* Runs the tests of the table that the command line chooses. */
static inline void check_run(const Test *tests, int count, int argc, char **argv) {
    check_names(tests, count, argc, argv);
    for (int i = 0; i < count; i++) {
        if (!check_chosen(&tests[i], argc, argv)) continue;
        int passed = check_passed, failed = check_failed;
        double start = check_milliseconds();
        if (check_begin) check_begin(tests[i].name);
        tests[i].run();
        printf("%-32s %6d checks %8.0f ms", tests[i].name,
               check_passed + check_failed - passed - failed, check_milliseconds() - start);
        if (check_failed > failed) printf("  %d FAILED", check_failed - failed);
        printf("\n");
        fflush(stdout);
    }
}

/* Prints the last line and returns the exit status of the program. */
static inline int check_done(void) {
    printf("%d passed, %d failed\n", check_passed, check_failed);
    return check_failed || !check_passed;
}

/* main of a program whose tests need no preparation. */
__attribute__((unused)) static int check_main(const Test *tests, int count, int argc, char **argv) {
    check_run(tests, count, argc, argv);
    return check_done();
}

#endif
