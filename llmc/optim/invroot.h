/*
C^-A = (G + lambda I)^(-A/2) of small symmetric Gram matrices, the whitener of Compositional Muon;
A = 1 unless --whiten-power says otherwise.

cans25, cans12: the coupled iteration with Chebyshev-optimised coefficients (CANS, arXiv
2506.10935). W = G + lambda I, s = 0.999 / ||W||_F, Y = s W, Z = I; then P = Z Y, Y <- a Y + b Y P,
Z <- a Z + b P Z, and the root is sqrt(s) Z. Nine steps have tuned (a, b), the others (1.5, -0.5).
The iteration ends early once P = I to rounding, since further steps would change nothing. eigh: by
eigendecomposition.

pe7: the coupled iteration of LoRA-Muon (arXiv 2606.12921, algorithm 4 and table 2), which has a
floor of its own, so that a singular W has a root too. t = ||W||_F, P = W / t + 1e-5 I, X = I; then
seven times S = a I + b P + c P^2, X <- X S, P <- sym(P S^2), and the root is X / sqrt(t). The
published coefficients are divided by 1.001, 1.001^3 and 1.001^5. The root of zero is zero: a
partner that is zero whitens everything to nothing.

Multiples of a quarter are products of C^-1, C^-1/2 and C^-1/4, for F^1/2 = F F^-1/2 and the
iteration gives F^-1/2. With F = C^-1 this product loses less to rounding than that of C with its
root, because the largest errors of F^-1/2 meet the smallest eigenvalues of F. Other powers take an
eigendecomposition.

For the others G + lambda I must be positive definite. Where it is not, or is not finite, the root
is NaN, and la_rootless tells, from which the plan makes a failure and libcmuon an error. Only a
zero matrix, which weights that start at zero make, stands for LA_ZERO I. Both tests are free of
scale.
*/
#ifndef CM_INVROOT_H
#define CM_INVROOT_H

#include "chunks.h"
#include "options.h"

enum { INVROOT_TUNED = 9 }; /* steps with coefficients of their own */
static const double invroot_table[LA_ROOT_STEPS][2] = {
    {5.182503604966906, -5.178098480082684},
    {2.586120737395915, -0.6479542005271643},
    {2.567364126726186, -0.6454968804392178},
    {2.520560084348265, -0.6393528082067044},
    {2.410759275435182, -0.6248683598710716},
    {2.1883348130094173, -0.5952022073798908},
    {1.8595760874873613, -0.5504490972723968},
    {1.589020160467417, -0.5126569802066718},
    {1.5051653981684994, -0.5007377068751799},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
    {1.5, -0.5},
};

/* Settings of the coupled iteration. */
typedef struct {
    double damping;
    int steps;
} InvrootWay;

/* The coupled iteration on a few items together; Y (n,k,k) is overwritten. Half of each product
   that is known to be symmetric is computed, which also keeps it symmetric. P is computed whole:
   its two triangles differ by the rounding errors that the next step corrects, and without that
   feedback the iteration diverges. */
static inline void invroot_items(Mat root, Mat Y, const void *how, Arena *arena) {
    const InvrootWay *way = (const InvrootWay *)how;
    int n = mat_count(Y), k = Y.rows;
    Mat P = mat_dense(arena_take(arena, mat_size(Y)), n, k, k), Z = root;
    Mat next_Y = mat_dense(arena_take(arena, mat_size(Y)), n, k, k);
    Mat next_Z = mat_dense(arena_take(arena, mat_size(Y)), n, k, k);
    floatM *s = arena_take(arena, 2 * (size_t)n);
    la_polynomial(Y, way->damping, 1, Y, 0, Y);
    la_units(s, Y);
    la_vec_mul(mat_offset(s, (size_t)n), n, 0.999);
    la_scale_units(Y, s);
    double gap = INFINITY;
    for (int i = 0, last = 0; !last; i++) {
        double a = invroot_table[i][0], b = invroot_table[i][1];
        if (i == 0) { /* Z = I, P = Y */
            la_polynomial(Z, a, b, Y, 0, Y);
            la_axpby(next_Y, a, Y, 0);
            la_gemm_symmetric(next_Y, b, Y, Y, 1);
            mat_swap(&Y, &next_Y);
            continue;
        }
        la_gemm(P, 1, Z, Y, 0);
        last = i == way->steps - 1;
        if (i >= INVROOT_TUNED && !last) {
            double before = gap;
            gap = la_identity_gap(P) / sqrt((double)k);
            last = LA_ROOT_DONE(gap, before);
        }
        /* P Z, not Z P: the order keeps rounding errors bounded. */
        la_axpby(next_Z, a, Z, 0);
        la_gemm_symmetric(next_Z, b, P, Z, 1);
        mat_swap(&Z, &next_Z);
        if (last) break;
        la_axpby(next_Y, a, Y, 0);
        la_gemm_symmetric(next_Y, b, Y, P, 1);
        mat_swap(&Y, &next_Y);
    }
    la_vec_unit_roots(s, n);
    la_scale(Z, s, 1);
    if (Z.p != root.p) la_copy(root, Z);
}

/* The iteration cannot tell small eigenvalues from none and diverges on negative ones, so pivots
   tell before it begins whether there is a root. */
static inline void invroot_coupled(Mat root, Mat gram, double damping, int steps, Arena *arena) {
    const InvrootWay way = {damping, steps};
    size_t mark = arena->used, room = (size_t)mat_count(gram) * la_eigh_scratch(gram.rows);
    la_definite(gram, damping, arena_take(arena, room));
    arena->used = mark;
    if (la_root_iteration(root, gram, damping, invroot_table, steps, INVROOT_TUNED)) return;
    run_in_chunks(invroot_items, root, gram, &way, arena);
}

enum { INVROOT_PE7 = 7 };
static const double invroot_pe7_table[INVROOT_PE7][3] = {
    {7.424865680309214, -18.39581635618996, 12.896720413604342},
    {3.4877256051546017, -2.3300436563986993, 0.4404692168431095},
    {2.7766085124882527, -2.070643152532662, 0.46302261050004967},
    {1.9913142104341506, -1.373936700681269, 0.3875934979568538},
    {1.8754637749479246, -1.2505152090010534, 0.37505152463617264},
    {1.874999066623701, -1.2499981332141676, 0.37499906659046633},
    {1.875, -1.25, 0.375},
};
#define INVROOT_PE7_FLOOR 1e-5
#define INVROOT_PE7_SAFETY 1.001

/* pe7 on a few items together; P (n,k,k) is overwritten. P is computed whole and then made
   symmetric, for the reason that invroot_items has. */
static inline void invroot_pe7_items(Mat root, Mat P, const void *how, Arena *arena) {
    const InvrootWay *way = (const InvrootWay *)how;
    const double g = INVROOT_PE7_SAFETY;
    int n = mat_count(P), k = P.rows;
    Mat S = mat_dense(arena_take(arena, mat_size(P)), n, k, k), X = root;
    Mat T = mat_dense(arena_take(arena, mat_size(P)), n, k, k);
    floatM *s = arena_take(arena, 2 * (size_t)n);
    la_polynomial(P, way->damping, 1, P, 0, P);
    la_units(s, P);
    la_scale_units(P, s);
    la_polynomial(P, INVROOT_PE7_FLOOR, 1, P, 0, P);
    for (int i = 0; i < INVROOT_PE7; i++) {
        const double *abc = invroot_pe7_table[i];
        la_gemm_symmetric(T, 1, P, P, 0);
        la_polynomial(S, abc[0] / g, abc[1] / (g * g * g), P, abc[2] / (g * g * g * g * g), T);
        if (i == 0) {
            la_copy(X, S);
        } else {
            la_gemm_symmetric(T, 1, X, S, 0);
            mat_swap(&X, &T);
        }
        if (i == INVROOT_PE7 - 1) break;
        la_gemm(T, 1, P, S, 0);
        la_gemm(P, 1, T, S, 0);
        la_symmetrize(P);
    }
    la_vec_unit_roots(s, n);
    la_scale(X, s, 1);
    if (X.p != root.p) la_copy(root, X);
}

static inline void invroot_pe7(Mat root, Mat gram, double damping, Arena *arena) {
    const InvrootWay way = {damping, INVROOT_PE7};
    run_in_chunks(invroot_pe7_items, root, gram, &way, arena);
}

/* root (n,k,k) = (gram + damping I)^(-1/2) of gram (n,k,k), by `which` (RootKind). gram is
   overwritten. */
static inline void invroot(Mat root, Mat gram, double damping, int which, Arena *arena) {
    size_t mark = arena->used, room = (size_t)mat_count(gram) * la_eigh_scratch(gram.rows);
    switch ((RootKind)which) {
    case ROOT_CANS25: invroot_coupled(root, gram, damping, LA_ROOT_STEPS, arena); break;
    case ROOT_CANS12: invroot_coupled(root, gram, damping, 12, arena); break;
    case ROOT_EIGH: la_eigh_rroot(root, gram, damping, 1, arena_take(arena, room)); break;
    case ROOT_PE7: invroot_pe7(root, gram, damping, arena); break;
    }
    arena->used = mark;
}

/* root = (gram + damping I)^(-power/2) for a power that is a multiple of 1/4, by inverse roots.
   gram is overwritten. */
static inline void invroot_quarters(Mat root, Mat gram, double damping, double power, int which,
                                    Arena *arena) {
    size_t mark = arena->used;
    Mat factor = mat_take(root, arena), factor_root = mat_take(root, arena);
    int products = 0;
    invroot(factor, gram, damping, which, arena); /* C^-1, and C^-bit from here on */
    for (double bit = 1, rest = power; rest > 0; bit /= 2) {
        if (bit < 1) {
            la_copy(gram, factor);
            invroot(factor_root, gram, 0, which, arena);
            la_gemm_symmetric(gram, 1, factor, factor_root, 0);
            la_copy(factor, gram);
        }
        for (; rest >= bit; rest -= bit) {
            if (products > 0) la_gemm_symmetric(gram, 1, root, factor, 0);
            la_copy(root, products > 0 ? gram : factor);
            products++;
        }
    }
    arena->used = mark;
}

/* root (n,k,k) = (gram + damping I)^(-power/2) of gram (n,k,k), by `which` (RootKind) where the
   power is a multiple of 1/4, else by eigendecomposition. gram is overwritten. */
static inline void invroot_power(Mat root, Mat gram, double damping, double power, int which,
                                 Arena *arena) {
    size_t mark = arena->used, room = (size_t)mat_count(gram) * la_eigh_scratch(gram.rows);
    if (power == 1) invroot(root, gram, damping, which, arena);
    else if (which != ROOT_EIGH && 4 * power == floor(4 * power))
        invroot_quarters(root, gram, damping, power, which, arena);
    else la_eigh_rroot(root, gram, damping, power, arena_take(arena, room));
    arena->used = mark;
}

#endif
