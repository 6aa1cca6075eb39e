/*
Rotary position embedding (Su et al., 2021, arXiv:2104.09864): the table of angles, made on the host for
every backend.
*/
#ifndef CM_ROPE_H
#define CM_ROPE_H

#include "base.h"
#include "config.h"

/* Rotary angles: cosine and sine (T, HS/2) of t omega_j for the pair (j, j + HS/2).
   rope: omega_j = base^(-2j/HS). rope-half: omega_j = base^(-j/(HS/4 - 1)) in the first half of the
   planes, 0 in the others, turning the other way round (modded-nanoGPT). */
static inline void rope_table(floatM *cosine, floatM *sine, int T, int HS, int pos, double base) {
    int half = HS / 2;
    for (int t = 0; t < T; t++)
        for (int j = 0; j < half; j++) {
            double omega = 0;
            if (pos == POS_ROPE) omega = pow(base, -2.0 * j / HS);
            if (pos == POS_ROPE_HALF && j < HS / 4) omega = -pow(base, -j / (HS / 4 - 1.0));
            cosine[(size_t)t * half + j] = (floatM)cos(t * omega);
            sine[(size_t)t * half + j] = (floatM)sin(t * omega);
        }
}

#endif
