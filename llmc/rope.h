/*
Rotary position embedding (Su et al. 2021, arXiv 2104.09864): the table of angles, which the host
computes for every backend.
*/
#ifndef CM_ROPE_H
#define CM_ROPE_H

#include "base.h"
#include "config.h"

/* Sets cosine and sine (T, HS/2) of the angle t omega_j, by which elements j and j + HS/2 of a head
   turn. POS_ROPE: omega_j = base^(-2j/HS). POS_ROPE_HALF (modded-nanoGPT): omega_j =
   -base^(-j/(HS/4 - 1)) for the first half of the planes, 0 for the others. */
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
