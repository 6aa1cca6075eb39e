/*
Rotary position embedding (Su et al., 2021, arXiv:2104.09864): the table of angles, which every
backend gets from the host.
*/
#ifndef CM_ROPE_H
#define CM_ROPE_H

#include "base.h"
#include "config.h"

/* The angle omega_j by which plane j, elements j and j + HS/2 of a head, turns from one position to
   the next. POS_ROPE: omega_j = base^(-2j/HS). POS_ROPE_HALF (modded-nanoGPT): omega_j =
   -base^(-j/(HS/4 - 1)) for the first half of the planes, 0 for the others. */
static inline double rope_frequency(PosKind pos, int j, int HS, double base) {
    switch (pos) {
    case POS_ROPE: return pow(base, -2.0 * j / HS);
    case POS_ROPE_HALF: return j < HS / 4 ? -pow(base, -j / (HS / 4 - 1.0)) : 0;
    case POS_LEARNED:
    case POS_NONE: return 0;
    }
    return 0;
}

/* Sets cosine and sine (T, HS/2) of the angle t omega_j. */
static inline void rope_table(floatM *cosine, floatM *sine, int T, int HS, int pos, double base) {
    int half = HS / 2;
    for (int t = 0; t < T; t++)
        for (int j = 0; j < half; j++) {
            double omega = rope_frequency((PosKind)pos, j, HS, base);
            cosine[(size_t)t * half + j] = (floatM)cos(t * omega);
            sine[(size_t)t * half + j] = (floatM)sin(t * omega);
        }
}

#endif
