/*
Spectron (Janson, Oyallon, Belilovsky, arXiv 2602.12429), for the factors of a product
W = W_pre + s A B^T:

    rho = (eta / s) / (sigma_A + sigma_B + 1),  A <- (1 - eta wd) A - rho msign(m_A),  and B alike,

where sigma is one step of the power iteration for the spectral norm, whose vector is kept from step
to step. ||dW|| <= s rho (||A|| + ||B|| + rho) <= eta, as far as the sign and the norms are exact.
Published with the quintic of Muon (--msign quintic5) and Muon's momentum, without a shape factor;
here --msign, --momentum and --nesterov are those of Muon, whatever they are. The step of W depends
on the gauge of the factors: it is the same for (A R, B R^-T) only if R is orthogonal.
*/
#ifndef CM_SPECTRON_H
#define CM_SPECTRON_H

#include "factors.h"
#include "muon.h"

static inline void spectron_step(const Step *s) {
    size_t mark = s->arena->used;
    Step own = rebalanced(s);
    int n = mat_count(s->leg[0].W);
    floatM *sigma[2], *rho = arena_take(s->arena, (size_t)n);
    for (int i = 0; i < 2; i++) {
        sigma[i] = arena_take(s->arena, (size_t)n);
        spectral_norms(sigma[i], own.leg[i].state[0], own.leg[i].W, 1, s->arena);
    }
    la_axpby(mat_vector(sigma[0], n), 1, mat_vector(sigma[1], n), 1);
    la_copy(mat_vector(rho, n), mat_vector(sigma[0], n));
    la_vec_moment(rho, sigma[0], n, 0, 1); /* the square, of which the root is taken next */
    la_vec_root_recip(rho, rho, n, 1);
    for (int i = 0; i < 2; i++) {
        size_t at = s->arena->used;
        Mat U = muon_sign(&own, &own.leg[i]);
        la_scale(U, rho, 1);
        la_axpby(own.leg[i].W, -product_rate(s), U, 1 - s->lr * s->weight_decay);
        s->arena->used = at;
    }
    s->arena->used = mark;
}

#endif
