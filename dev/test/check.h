/*
A test harness of one page. A test program calls check(...) any number of times and ends with
`return check_done();`, which prints "N passed, N failed" and gives the exit status.
*/
#ifndef CM_CHECK_H
#define CM_CHECK_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_passed, check_failed;

/* Counts one test. A failure prints where it stands and the message. */
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

/* |a - b| / max(|b|, floor) with NaN counted as infinitely wrong. */
__attribute__((unused)) static double relative_error(double a, double b, double floor) {
    double e = fabs(a - b) / fmax(fabs(b), floor);
    return e == e ? e : INFINITY;
}

/* ||a - b||_2 / max(||b||_2, floor), the measure of nearly all numeric tests. */
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

__attribute__((unused)) static int check_done(void) {
    printf("%d passed, %d failed\n", check_passed, check_failed);
    return check_failed || !check_passed;
}

#endif
