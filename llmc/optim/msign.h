/*
The matrix sign msign(X) = U V^T of the thin SVD X = U S V^T, by odd polynomials of degree five: A =
X X^T, X <- P X, P = a I + b A + c A^2, started from X / ||X||_F. Zero stays zero. No norm is too
small or too large (la_units), so a power of two times X has the sign of X to the bit; the published
||X||_F + 1e-7 would make the sign of a small gradient small.

A wide X (k x d, d >= 2k: a head, an MLP matrix) stays as it is for several steps, because its Gram
can be updated without X: A <- P A P. The polynomials of these steps are collected in Q <- P Q, and
then X <- Q X. All of these matrices but X are k x k. In exact arithmetic the result is that of the
plain iteration. In rounded arithmetic the Gram holds the squares of the singular values, and the
small ones are lost among the large ones. So Q is applied, and the Gram formed anew, before small
singular values have to be resolved: with pe8 after 2, 1 and 5 steps. Where products round their
input (la_fast) the Gram loses them sooner, and the five steps are taken as 2 and 3.
dev/test/test_msign.c holds the result to the accuracy of the plain iteration, and
dev/test/cuda/test_linalg.cu holds that of rounded products. Every k x k matrix is symmetric, so
half of each product is computed.

Where a product can read its addend from another place than it writes to (LA_ADD_FREE), P is kept
without a I: P' = b A + c A^2 is one product, X <- P' X + a X is another, and no separate pass over
P is needed.

bf16 (Jordan et al. 2024 and later authors; --msign-compute): X / ||X||_F, formed in fp32, is
rounded to bf16. Each step takes three products of bf16 matrices, summed in fp32 and rounded to bf16
once:

    A = bf16(X X^T),  P' = bf16(c A A + b A),  X <- bf16(P' X + a X).

The last X is converted to fp32, which changes nothing. a, b, c stay fp32. The form on the Gram is
not used, because its products would be rounded too: the singular values of pe8 would end between
0.98 and 1.02 with runs of 2, 1, 2 and 3 steps, and between 0.69 and 1.6 with runs of 2, 1 and 5.
Here they end between 0.995 and 1.005. dev/test/test_msign.c has the bounds.
*/
#ifndef CM_MSIGN_H
#define CM_MSIGN_H

#include "chunks.h"
#include "options.h"

typedef struct {
    int steps;
    int runs[2][5]; /* steps that a wide matrix takes on one Gram: exact products, rounded ones */
    double abc[LA_SIGN_STEPS][3]; /* coefficients of each step */
} MsignTable;

/* Polar Express (Amsel et al., arXiv 2505.16932) for singular values above 1e-3 of the Frobenius
   norm, as released with Compositional Muon. */
static const MsignTable msign_pe8 = {8,
                                     {{2, 1, 5}, {2, 1, 2, 3}},
                                     {{8.2051, -22.9019, 16.4607},
                                      {4.0664, -2.8612, 0.5184},
                                      {3.9096, -2.8234, 0.5250},
                                      {3.2856, -2.4153, 0.4853},
                                      {2.2779, -1.6198, 0.3985},
                                      {1.8726, -1.2307, 0.3585},
                                      {1.8564, -1.2132, 0.3568},
                                      {1.8750, -1.2500, 0.3750}}};

/* Jordan et al., Muon 2024: singular values end in [0.68, 1.13], not at 1. */
static const MsignTable msign_quintic5 = {5,
                                          {{3, 2}, {3, 2}},
                                          {{3.4445, -4.7750, 2.0315},
                                           {3.4445, -4.7750, 2.0315},
                                           {3.4445, -4.7750, 2.0315},
                                           {3.4445, -4.7750, 2.0315},
                                           {3.4445, -4.7750, 2.0315}}};

/* The five varying steps of NVIDIA's Emerging-Optimizers: singular values end in [0.978, 1.032]. */
static const MsignTable msign_quintic5_nv = {5,
                                             {{2, 1, 2}, {2, 1, 2}},
                                             {{4.0848, -6.8946, 2.9270},
                                              {3.9505, -6.3029, 2.6377},
                                              {3.7418, -5.5913, 2.3037},
                                              {2.8769, -3.1427, 1.2046},
                                              {2.8366, -3.0525, 1.2012}}};

/* 2x - 1.5x^3 + 0.5x^5, which has slope 0 at its fixed point 1 (modded-nanoGPT). */
static const MsignTable msign_simple12 = {12,
                                          {{4, 4, 4}, {4, 4, 4}},
                                          {{2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5},
                                           {2, -1.5, 0.5}}};

/* Polar Express as published with LoRA-Muon (arXiv 2606.12921, table 1): singular values above 1e-4
   of the norm end in [0.9990, 1.0004]. */
static const MsignTable msign_pe8_lora = {8,
                                          {{2, 1, 5}, {2, 1, 2, 3}},
                                          {{7.2086, -15.5131, 9.0178},
                                           {3.9623, -2.5813, 0.4542},
                                           {3.9466, -2.5765, 0.4544},
                                           {3.8991, -2.5671, 0.4566},
                                           {3.7186, -2.5308, 0.4653},
                                           {3.1390, -2.3073, 0.4733},
                                           {2.1715, -1.5246, 0.3885},
                                           {1.8648, -1.2224, 0.3577}}};

static inline const MsignTable *msign_table(int which) {
    switch ((MsignKind)which) {
    case MSIGN_PE8: return &msign_pe8;
    case MSIGN_QUINTIC5: return &msign_quintic5;
    case MSIGN_QUINTIC5_NV: return &msign_quintic5_nv;
    case MSIGN_SIMPLE12: return &msign_simple12;
    case MSIGN_PE8_LORA: return &msign_pe8_lora;
    }
    return NULL;
}

/* Whether the iteration on the Gram takes fewer operations: if one side is at least twice as long
   as the other. */
static inline int msign_on_gram(int rows, int cols) {
    return max_int(rows, cols) >= 2 * min_int(rows, cols);
}

/* The most rows of a wide matrix that is taken for a head. */
enum { MSIGN_HEAD_ROWS = 64 };

/* Whether this shape stays in fp32 where bf16 is asked for. The steps of a head are taken on its
   Gram, in fp32 and on a GPU in shared memory; bf16 would save nothing there. */
static inline int msign_keeps_fp32(int rows, int cols) {
    return msign_on_gram(rows, cols) && min_int(rows, cols) <= MSIGN_HEAD_ROWS;
}

/* n dense k x k matrices of scratch. */
static inline Mat msign_square(Arena *arena, int n, int k) {
    return mat_dense(arena_take(arena, (size_t)n * k * k), n, k, k);
}

/* P = b A + c A^2, plus a I with `whole`. Without a I this is one product, and a caller that
   applies P to X has to add a X. */
static inline void msign_polynomial(Mat P, const double abc[3], Mat A, int whole) {
    if (!whole) {
        la_gemm_add_symmetric(P, abc[2], A, A, abc[1], A);
        return;
    }
    la_gemm_symmetric(P, 1, A, A, 0);
    la_polynomial(P, abc[0], abc[1], A, abc[2], P);
}

/* X <- msign X for X (k, d) with k <= d and ||X||_F <= 1. Y is scratch shaped as X. X and Y change
   places, and X has the result. */
static inline void msign_plain(Mat *X, Mat *Y, const MsignTable *table, Arena *arena) {
    Mat A = msign_square(arena, mat_count(*X), X->rows);
    Mat P = msign_square(arena, mat_count(*X), X->rows);
    for (int i = 0; i < table->steps; i++) {
        const double *abc = table->abc[i];
        la_gram(A, *X, 0);
        msign_polynomial(P, abc, A, !LA_ADD_FREE);
        if (LA_ADD_FREE) la_gemm_add(*Y, 1, P, *X, abc[0], *X);
        else la_gemm(*Y, 1, P, *X, 0);
        mat_swap(X, Y);
    }
}

/* msign_plain with every product rounded to bf16. */
static inline void msign_bf16(Mat *X, Mat *Y, const MsignTable *table, Arena *arena) {
    Mat A = msign_square(arena, mat_count(*X), X->rows);
    Mat P = msign_square(arena, mat_count(*X), X->rows);
    la_round_bf16(*X);
    for (int i = 0; i < table->steps; i++) {
        const double *abc = table->abc[i];
        la_gram(A, *X, 0);
        la_round_bf16(A);
        msign_polynomial(P, abc, A, 0);
        la_round_bf16(P);
        la_gemm_add(*Y, 1, P, *X, abc[0], *X);
        la_round_bf16(*Y);
        mat_swap(X, Y);
    }
}

/* The product of `steps` polynomials: the first is one of A, each further one of A <- P A P. A, P,
   Q and `product` are squares, which all commute and are symmetric; the result is in one of them.
   The first P becomes Q. A P between the first and the last is used three times, so it is cheaper
   to add a I to it once than to add a times a factor to each product. The last P is used once. */
static inline Mat msign_run(Mat A, Mat P, Mat Q, Mat product, const double (*abc)[3], int steps) {
    for (int i = 0; i < steps; i++) {
        int last = i + 1 == steps, whole = !LA_ADD_FREE || i == 0 || !last;
        msign_polynomial(P, abc[i], A, whole);
        if (!last) {
            la_gemm_symmetric(product, 1, P, A, 0);
            la_gemm_symmetric(A, 1, P, product, 0);
        }
        if (i == 0) {
            mat_swap(&Q, &P);
            continue;
        }
        if (whole) la_gemm_symmetric(product, 1, P, Q, 0);
        else la_gemm_add_symmetric(product, 1, P, Q, abc[i][0], Q);
        mat_swap(&Q, &product);
    }
    return Q;
}

/* X <- msign X as msign_plain, by runs of steps on one Gram. */
static inline void msign_gram(Mat *X, Mat *Y, const MsignTable *table, int rounded, Arena *arena) {
    int n = mat_count(*X), k = X->rows;
    Mat A = msign_square(arena, n, k), P = msign_square(arena, n, k);
    Mat Q = msign_square(arena, n, k), product = msign_square(arena, n, k);
    const double(*abc)[3] = table->abc;
    for (const int *run = table->runs[rounded]; *run; run++) {
        la_gram(A, *X, 0);
        int done = la_sign_run(Q, A, abc, *run);
        la_gemm(*Y, 1, done ? Q : msign_run(A, P, Q, product, abc, *run), *X, 0);
        mat_swap(X, Y);
        abc += *run;
    }
}

/* How a call takes the sign of all its items. */
typedef struct {
    const MsignTable *table;
    int rounded; /* products round their input, see la_fast */
    int bf16;
} MsignWay;

/* sign (n, rows, cols), dense, = the sign of each of a few items X, which lie in the same
   memory. */
static inline void msign_items(Mat sign, Mat X, const void *how, Arena *arena) {
    const MsignWay *way = (const MsignWay *)how;
    int n = mat_count(X), tall = X.rows > X.cols;
    floatM *s = arena_take(arena, 2 * (size_t)n);
    la_units(s, X);
    if (way->bf16 && la_sign_bf16(X, s, way->table->abc, way->table->steps, arena)) return;
    la_scale_units(X, s);
    Mat Y = mat_dense(arena_take(arena, mat_size(X)), n, X.rows, X.cols);
    if (tall) {
        X = mat_t(X);
        Y = mat_t(Y);
    }
    if (way->bf16) msign_bf16(&X, &Y, way->table, arena);
    else if (msign_on_gram(X.rows, X.cols)) msign_gram(&X, &Y, way->table, way->rounded, arena);
    else msign_plain(&X, &Y, way->table, arena);
    if (X.p != sign.p) la_copy(sign, tall ? mat_t(X) : X);
}

/* Replaces each item of the dense batch X (n, rows, cols) by its sign, by table `which`
   (MsignKind), in bf16 or not. The Grams are of the short side. A non-finite input gives a
   non-finite output. */
static inline void msign_by(Mat X, int which, int bf16, Arena *arena) {
    MsignWay way = {msign_table(which), 0, bf16 && !msign_keeps_fp32(X.rows, X.cols)};
    if (!way.bf16) way.rounded = la_fast(1);
    run_in_chunks(msign_items, X, X, &way, arena);
    la_fast(0);
}

/* msign_by as the options say. */
static inline void msign(Mat X, const OptimOptions *o, Arena *arena) {
    msign_by(X, o->msign, la_sign_in_bf16(o->msign_compute), arena);
}

#endif
