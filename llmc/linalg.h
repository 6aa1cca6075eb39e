/*
The linear-algebra contract of the optimizers: some forty operations on batches of matrices, which
are views (view.h), and the scratch memory of those who call them. A backend implements the
operations (cpu/linalg.h, cuda/linalg.cuh); the formulas that use them exist once.
*/
#ifndef CM_LINALG_H
#define CM_LINALG_H

#include "view.h"

#include <float.h>

/* Scratch memory. Rules take from it, and give back in stack order by setting `used` back to its
   earlier value.

   An arena without memory (p NULL) measures: a rule that runs on it gets NULL for every take, every
   la_ operation does nothing on NULL, and `size` grows to the most that was in use at once. So the
   size of a rule's scratch comes from the code that uses the scratch. An arena that runs out, which
   would be a mistake of this program, loses its memory: the rest of the rule does nothing, and the
   caller of the rule sees that p is NULL. */
typedef struct {
    floatM *p;
    size_t size, used; /* elements */
} Arena;

static inline size_t arena_round(size_t n) { return (n + 15) / 16 * 16; }

/* Memory for n elements; NULL where the arena has none. */
static inline floatM *arena_take(Arena *a, size_t n) {
    floatM *p = mat_offset(a->p, a->used);
    a->used += arena_round(n);
    if (a->used <= a->size) return p;
    a->p = NULL;
    a->size = a->used;
    return NULL;
}

/* Arena number w of several arenas in `memory`, each with n elements. */
static inline Arena arena_piece(floatM *memory, size_t n, int w) {
    Arena piece = {mat_offset(memory, n * (size_t)w), n, 0};
    return piece;
}

/* Dense memory for items shaped as those of m, in m's two-level batch. */
static inline Mat mat_take(Mat m, Arena *arena) {
    Mat dense = mat_dense(arena_take(arena, mat_size(m)), mat_count(m), m.rows, m.cols);
    return mat_batch(dense, m.n0, m.n1);
}

/*
The operations. `s` and other small letters that stand for arrays have one number per item, in the
memory of the backend. An operation does nothing if one of its views or arrays is NULL; the long
iterations then return what they would return with memory. optim/chunks.h runs long iterations on
la_chunk(n) items at a time, la_workers() of them at once, each with scratch of its own.

la_copy(Y, X)                     Y = X
la_axpby(Y, a, X, b)              Y = a X + b Y
la_momentum(U, M, G, b, g, n)     M = b M + g G; U = g G + b M if n (Nesterov), else U = M
la_gemm(C, a, A, B, b)            C = a A B + b C
la_gemm_symmetric(C, a, A, B, b)  C = a A B + b C, where C is known to be symmetric: half the work
la_gemm_add(D, a, A, B, b, C)     D = a A B + b C; D may be C, but neither A nor B
la_gemm_add_symmetric(D, a, A, B, b, C)
                                  D = a A B + b C, where D and C are known to be symmetric
la_gram(G, A, b)                  G = A A^T + b G, both triangles stored
la_polynomial(Y, a, b, X, c, Z)   Y = a I + b X + c Z (square, dense; Y may be X or Z)
la_identity_gap(X)                largest ||X_i - I||_F, returned to the host; a backend that would
                                  have to wait for it may return infinity
la_symmetrize(X)                  X = (X + X^T) / 2 (square, dense)
la_round_bf16(X)                  X = X rounded to bf16: to nearest, ties to even
la_signum(X)                      X = the sign of every element: 1, -1, or 0 for 0
la_norms(s, X, g)                 s = Frobenius norm over every g consecutive items
la_units(s, X)                    s[i] s[n + i] = 1 / ||X_i||_F of n items, as two factors, because
                                  the quotient may lie outside of floatM: a power of two, then the
                                  rest. 0 and 0 for zero, NaN for an item that is not finite
la_scale_units(X, s)              X_i = X_i s[i] s[n + i]
la_vec_unit_roots(s, n)           s[i] = sqrt(s[i] s[n + i]), for i < n
la_sum_squares(x, n)              sum of squares of n numbers, returned to the host
la_scale(X, s, g)                 X = s X, one number for every g consecutive items
la_vec_recip(s, n)                s = 1 / s; 0 for 0
la_vec_rroot(s, n, a, b, p)       s = x^(-p/2), x = a s^2 + b; where x is 0, LA_ZERO stands for it
la_vec_damping(s, n, a, b, floor) s = b x + max(0, floor - x), x = a s^2
la_vec_div(s, t, n)               s = s / t; 0 where t is 0
la_vec_mul(s, n, a)               s = a s
la_vec_sqrt(s, n)                 s = sqrt(s)
la_adamw(P, G, M, V, ..., w)      element-wise, see optim/adamw.h; w, if not NULL, receives P as
                                  floatX, the copy of element P.p[i] in w[i]
la_eigh_rroot(R, G, a, p, S)      R = (G + a I)^(-p/2) by eigendecomposition; LA_ZERO I stands for a
                                  G + a I of zero. Where G + a I is not positive definite, R is
                                  NaN, and la_rootless tells. S is scratch, la_eigh_scratch(rows)
                                  elements for each matrix
la_definite(G, a, S)              prepares symmetric G for a root of G + a I: where that is zero,
                                  G = LA_ZERO I; where that is not positive definite, G = NaN, and
                                  la_rootless tells. S is scratch as above
la_rootless()                     why matrices of la_definite and la_eigh_rroot had no root since
                                  this thread asked last: 0, LA_INDEFINITE, LA_NOT_FINITE or both; a
                                  backend whose work is queued returns 0 and records a failure
                                  (device_check) itself, with la_rootless_sentence
la_roots_of(names)                the matrices whose update takes the roots that follow, for that
                                  sentence
la_fast(on)                       on: until la_fast(0) products may round their input to ten bits
                                  (TF32) if the backend gains by that, and symmetric products need
                                  be symmetric only up to rounding. Returns whether products round.
                                  Off except in msign
la_sign_in_bf16(compute)          the meaning of --msign-compute on this machine: 1 bf16, 0 fp32
LA_ADD_FREE                       1 if a product can read its addend C from another place than D at
                                  no cost; 0 if la_gemm_add copies C first

Three long iterations, which a backend may do in one piece; it returns 0 if it does not:

la_root_iteration(R, G, a, ab, n, w)
                                  R = (G + a I)^-1/2 by n steps of optim/invroot.h with coefficients
                                  ab[n][2]; from step w on a matrix may stop early by LA_ROOT_DONE
la_sign_run(Q, A, abc, n)         n steps of optim/msign.h on Grams A: Q = P_n ... P_1 with
                                  coefficients abc[n][3]; A may be overwritten
la_sign_bf16(X, s, abc, n, arena) X_i = the n steps of optim/msign.h from X_i / ||X_i||_F, stored in
                                  bf16 as msign_bf16 rounds; s from la_units; X dense; scratch is
                                  taken from the arena

For the gauge connections and the controls:

la_inner(s, X, Y, g)              s = <X, Y> over every g consecutive items
la_add_scaled(Y, a, s, X, g)      Y = Y + a s X, one number of s for every g consecutive items
la_row_norms(s, X)                s = norm of every row of every item
la_scale_rows(Y, s, X)            Y = every row of X times its number; Y may be X
la_adam(U, G, M, V, ...)          Adam's moments and direction, element-wise, see optim/adamw.h
la_eigh(Q, w, G, S)               G = Q diag(w) Q^T, unsorted, of dense symmetric G; S is scratch,
                                  la_eigh_scratch(rows) elements for each matrix
la_gauge(S, L, R, a, b, l, f)     the S of a connection in the eigenbases of two Grams with
                                  eigenvalues a, b (+ l), f = LA_GAUGE_...; quotients by zero are
                                  zero
la_vec_gauge(x, p, q, a, b, n, l, f)
                                  scalar form of la_gauge: p = tr L, q = tr R, norms a and b of the
                                  factors
la_vec_moment(v, s, n, b, a)      v = b v + (1 - b) a s^2
la_vec_root_recip(s, v, n, e)     s = 1 / (sqrt(v) + e)
la_vec_balance(s, t, n, a, p)     s = s (a / max(t^2, LA_BALANCE_FLOOR))^p

For the factors of a product:

la_vec_ratio_power(s, t, n, p)    s = (s / t)^p; 1 where s or t is 0
la_vec_cold(s, t, n, a, c)        s = max(0, min(c / x, x) - y), x = a t^2, y = a s^2; 0 for x = 0
la_vec_escape(s, v, w, n, k, b)   s = b (s + max(0, min(drop of the largest, drop of the sum))) from
                                  k numbers v to k numbers w of each item
la_chol_inverse(X, G, S)          X = R^-1 of G = R^T R with R upper triangular, in double; rows
                                  are contiguous. Where a pivot is what rounding of G leaves of
                                  zero, the row and the column of X are zero. X is NaN where G is
                                  not finite. S is scratch, la_eigh_scratch(rows) elements for each
                                  matrix

No quotient of these is infinite: past the largest floatM it is the largest floatM.
*/
/* Element (i, j) of S. Plain: (L - R)_ij / (a_i + b_j). Partner: 1/2 (L_ij / a_i - R_ij / b_j).
   Relative: plain, after L and a are divided by sum a, and R and b by sum b; its scalar form is
   that of partner. */
enum { LA_GAUGE_PLAIN, LA_GAUGE_PARTNER, LA_GAUGE_RELATIVE };

/* An inverse root needs a number for zero, since weights may start at zero: it is the root of this
   one. No number but zero is replaced, however small. */
#define LA_ZERO 1e-12

/* Why a matrix has no inverse root, bits: it is not positive definite, or not finite. */
enum { LA_INDEFINITE = 1, LA_NOT_FINITE = 2 };

/* Writes the sentence of that failure: the update of which matrices needed the root, and why there
   is none. */
static inline void la_rootless_sentence(char *text, size_t size, const char *names, int why) {
    const char *is_not = "finite: the weights are too large; try a smaller learning rate";
    if (why & LA_INDEFINITE)
        is_not = "positive definite; raise --damping (LoRA-Muon: leave out --inv-root eigh; "
                 "LoRA-RITE: lower --lr-lora)";
    snprintf(text, size, "the update of %s needs an inverse root of a Gram matrix, which is not %s",
             names, is_not);
}

/* The largest floatM. */
#define LA_LARGEST (sizeof(floatM) == 8 ? DBL_MAX : (double)FLT_MAX)

/* A pivot or an eigenvalue counts as positive above this part of the matrix's diagonal or of its
   largest eigenvalue: what rounding leaves of zero in a sum of n doubles. */
#define LA_ROUNDING(N) ((N)*DBL_EPSILON)

/* The same for a Gram that was rounded to floatM. */
#define LA_GRAM_ROUNDING(N) ((N) * (sizeof(floatM) == 8 ? DBL_EPSILON : (double)FLT_EPSILON))

/* la_vec_balance divides by at least this squared norm of a row (Aurora, arXiv 2606.27715). The row
   is one of a matrix sign, whose scale is 1. */
#define LA_BALANCE_FLOOR 1e-14

/* Cyclic Jacobi ends when the squares off the diagonal are this fraction of the squares on it: the
   rounding of a double, squared. Convergence is quadratic and takes about ten sweeps; the limit
   only ends a loop over numbers that are not finite. */
#define LA_JACOBI_DONE 1e-30
enum { LA_JACOBI_SWEEPS = 60 };

/* The most steps of an inverse root and of a matrix sign. */
enum { LA_ROOT_STEPS = 25, LA_SIGN_STEPS = 12 };

/* Whether the coupled iteration has converged, from the gap ||P - I||_F / sqrt(k) of this step and
   of the step before. Each step squares the gap until rounding stops it. So the iteration is done
   at a gap that one step more would bring below rounding, or where a small gap no longer halves.
   NaN is never done. */
#define LA_ROOT_DONE(GAP, BEFORE)                                                                  \
    ((GAP) < (sizeof(floatM) == 8 ? 1e-9 : 1e-5) || ((GAP) < 0.01 && 2 * (GAP) > (BEFORE)))

#ifdef CM_CUDA
#include "cuda/linalg.cuh"
#else
#include "cpu/linalg.h"
#endif

#endif
