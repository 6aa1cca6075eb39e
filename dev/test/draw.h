/*
Random numbers of tests. draw_for(NAME) starts the stream of a case. A stream depends on its name
alone, so a case that is added, left out or moved changes no other. Each test begins with the stream
of its own name. CM_TEST_SEED tries other numbers.
*/
#ifndef CM_TEST_DRAW_H
#define CM_TEST_DRAW_H

#include <stdarg.h>

#include "../../llmc/rng.h"
#include "check.h"

static uint64_t draw_count, draw_stream, draw_seed = 7;

static inline void draw_for(const char *name) {
    const char *seed = getenv("CM_TEST_SEED");
    if (seed) draw_seed = strtoull(seed, NULL, 10);
    draw_stream = rng_stream(name);
    draw_count = 0;
}

__attribute__((constructor)) static void draw_for_each_test(void) { check_begin = draw_for; }

/* Starts the stream of a case and returns its name, for messages. */
__attribute__((format(printf, 1, 2), unused)) static const char *case_of(const char *format, ...) {
    static char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    draw_for(name);
    return name;
}

/* A number in [-1, 1). */
static inline double draw(void) {
    return 2 * rng_uniform(draw_seed, draw_stream, draw_count++) - 1;
}

/* An index in [0, n). */
static inline size_t draw_index(size_t n) {
    return (size_t)(rng_bits(draw_seed, draw_stream, draw_count++) % n);
}

#endif
