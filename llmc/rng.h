/*
Counter-based random numbers: number i of stream s under a seed is a pure function of (seed, s, i).
There is no state to carry, to save or to race on. A tensor's initial values do not depend on which
other tensors exist, on the number of threads or on the order in which elements are filled.
*/
#ifndef CM_RNG_H
#define CM_RNG_H

#include "base.h"

/* The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection that mixes all 64 bits. */
static inline uint64_t rng_mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* 64 random bits. */
static inline uint64_t rng_bits(uint64_t seed, uint64_t stream, uint64_t i) {
    return rng_mix(i + rng_mix(stream + rng_mix(seed)));
}

/* Uniform in [0, 1), 53 bits. */
static inline double rng_uniform(uint64_t seed, uint64_t stream, uint64_t i) {
    return (double)(rng_bits(seed, stream, i) >> 11) * 0x1p-53;
}

/* Standard normal by Box and Muller; u1 is kept away from zero. */
static inline double rng_normal(uint64_t seed, uint64_t stream, uint64_t i) {
    double u1 = ((double)(rng_bits(seed, stream, 2 * i) >> 11) + 0.5) * 0x1p-53;
    double u2 = rng_uniform(seed, stream, 2 * i + 1);
    return sqrt(-2.0 * log(u1)) * cos(6.283185307179586477 * u2);
}

/* A stream number from a name, so that streams need no registry of their own. */
static inline uint64_t rng_stream(const char *name) { return fnv1a(FNV_BASIS, name, strlen(name)); }

#endif
