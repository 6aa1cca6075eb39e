/*
The matrix sign msign(X) = U V^T of the thin SVD X = U S V^T, by odd polynomials of degree five:
A = X X^T, X <- P X, P = a I + b A + c A^2, started from X / ||X||_F.

A wide X (k x d, d >= 2k: a head, an MLP matrix) is left alone for several steps. Its Gram can follow without
X: A <- P A P; and the polynomials of these steps gather in Q <- P Q, all of them k x k, until X <- Q X. In
exact arithmetic that is the plain iteration. In rounded arithmetic the Gram holds the squares of the singular
values, among which the small ones drown. So Q is applied, and the Gram formed anew, before the small ones have
to be told apart: with pe8 after 2, 1 and 5 steps. Where products round their input (la_fast) the Gram goes
astray sooner, and the five steps are taken as 2 and 3. dev/test/test_msign.c holds the result to the accuracy
of the plain iteration, dev/test/cuda/test_linalg.cu that of rounded products. Every k x k matrix is symmetric,
so half of each product is computed.

Where a product reads its addend from another place than it writes (LA_ADD_FREE), P is kept without a I: P' =
b A + c A^2 is one product and X <- P' X + a X another, and no pass over P is left.

bf16 (Jordan et al. 2024 and their followers; --msign-compute): X / ||X||_F, formed in fp32, is rounded to bf16.
Each step takes three products of bf16 matrices, summed in fp32 and then rounded to bf16 once:

    A = bf16(X X^T),  P' = bf16(c A A + b A),  X <- bf16(P' X + a X).

The last X goes back to fp32, without change. a, b, c stay fp32. There is no form on the Gram, whose products
would be rounded too: pe8 would then end between 0.98 and 1.02 with runs of 2, 1, 2 and 3 steps, and between
0.69 and 1.6 with 2, 1 and 5, against 0.995 and 1.005 here. dev/test/test_msign.c has the bounds.
*/
#ifndef CM_MSIGN_H
#define CM_MSIGN_H

#include "leg.h"

/* Coefficients a, b, c of each step, and how many steps of a wide matrix are taken on one Gram, which add up
   to all steps: first with exact products, then with rounded ones. */
typedef struct {
    int steps;
    int runs[2][5];
    double abc[LA_SIGN_STEPS][3];
} MsignTable;

/* Polar Express (Amsel et al., arXiv 2505.16932) for singular values above 1e-3 of the Frobenius norm, as
   released with Compositional Muon. */
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

static inline const MsignTable *msign_table(int which) {
    switch ((MsignKind)which) {
    case MSIGN_PE8: return &msign_pe8;
    case MSIGN_QUINTIC5: return &msign_quintic5;
    case MSIGN_QUINTIC5_NV: return &msign_quintic5_nv;
    case MSIGN_SIMPLE12: return &msign_simple12;
    }
    return NULL;
}

#define MSIGN_EPS 1e-7 /* floor of the norm that X is divided by: zero in, zero out */

/* Whether the iteration on the Gram pays: one side is at least twice as long as the other. */
static inline int msign_on_gram(int rows, int cols) {
    return max_int(rows, cols) >= 2 * min_int(rows, cols);
}

/* A head: wide, with at most so many rows. */
enum { MSIGN_HEAD_ROWS = 64 };

/* Whether this shape stays in fp32 where bf16 is asked for. A head does its steps on its Gram, in fp32 and, on
   a GPU, in shared memory: bf16 would save nothing there. */
static inline int msign_keeps_fp32(int rows, int cols) {
    return msign_on_gram(rows, cols) && min_int(rows, cols) <= MSIGN_HEAD_ROWS;
}

/* n dense m x m matrices of scratch. */
static inline Mat msign_square(Arena *arena, int n, int m) {
    return mat_dense(arena_take(arena, (size_t)n * m * m), n, m, m);
}

/* P = k1 A + k2 A^2, plus k0 I with `whole`. Without k0 I one product is all, and whoever applies P has to
   add k0 times what P is applied to. */
static inline void msign_polynomial(Mat P, const double *k, Mat A, int whole) {
    if (!whole) {
        la_gemm_add_symmetric(P, k[2], A, A, k[1], A);
        return;
    }
    la_gemm_symmetric(P, 1, A, A, 0);
    la_polynomial(P, k[0], k[1], A, k[2], P);
}

/* X <- msign X for X (k, d) with k <= d and ||X||_F <= 1. Y is scratch shaped as X; X and Y change places, and
   the result is in X. */
static inline void msign_plain(Mat *X, Mat *Y, const MsignTable *table, Arena *arena) {
    Mat A = msign_square(arena, mat_count(*X), X->rows),
        P = msign_square(arena, mat_count(*X), X->rows);
    for (int i = 0; i < table->steps; i++) {
        const double *k = table->abc[i];
        la_gram(A, *X, 0);
        msign_polynomial(P, k, A, !LA_ADD_FREE);
        if (LA_ADD_FREE) la_gemm_add(*Y, 1, P, *X, k[0], *X);
        else la_gemm(*Y, 1, P, *X, 0);
        mat_swap(X, Y);
    }
}

/* msign_plain with every product rounded to bf16. */
static inline void msign_bf16(Mat *X, Mat *Y, const MsignTable *table, Arena *arena) {
    Mat A = msign_square(arena, mat_count(*X), X->rows),
        P = msign_square(arena, mat_count(*X), X->rows);
    la_round_bf16(*X);
    for (int i = 0; i < table->steps; i++) {
        const double *k = table->abc[i];
        la_gram(A, *X, 0);
        la_round_bf16(A);
        msign_polynomial(P, k, A, 0);
        la_round_bf16(P);
        la_gemm_add(*Y, 1, P, *X, k[0], *X);
        la_round_bf16(*Y);
        mat_swap(X, Y);
    }
}

/* The product of `steps` polynomials, the first of A, each next one of A <- P A P, in one of the four squares,
   which all commute and are symmetric. The first P becomes Q, and those between first and last are used three
   times, so that it is cheaper to add k0 I to them than to add k0 times a factor to each product. The last P is
   used once. */
static inline Mat msign_run(Mat A, Mat P, Mat Q, Mat T, const double (*k)[3], int steps) {
    for (int i = 0; i < steps; i++) {
        int last = i + 1 == steps, whole = !LA_ADD_FREE || i == 0 || !last;
        msign_polynomial(P, k[i], A, whole);
        if (!last) {
            la_gemm_symmetric(T, 1, P, A, 0);
            la_gemm_symmetric(A, 1, P, T, 0);
        }
        if (i > 0 && whole) la_gemm_symmetric(T, 1, P, Q, 0);
        if (i > 0 && !whole) la_gemm_add_symmetric(T, 1, P, Q, k[i][0], Q);
        mat_swap(&Q, i > 0 ? &T : &P);
    }
    return Q;
}

/* X <- msign X as msign_plain, by runs of steps on one Gram. */
static inline void msign_gram(Mat *X, Mat *Y, const MsignTable *table, int rounded, Arena *arena) {
    int n = mat_count(*X), m = X->rows;
    Mat A = msign_square(arena, n, m), P = msign_square(arena, n, m);
    Mat Q = msign_square(arena, n, m), T = msign_square(arena, n, m);
    const double(*k)[3] = table->abc;
    for (const int *run = table->runs[rounded]; *run; k += *run++) {
        la_gram(A, *X, 0);
        int done = la_sign_run(Q, A, k, *run);
        la_gemm(*Y, 1, done ? Q : msign_run(A, P, Q, T, k, *run), *X, 0);
        mat_swap(X, Y);
    }
}

/* How a call takes the sign of all its items. */
typedef struct {
    const MsignTable *table;
    int rounded; /* products round their input, see la_fast */
    int bf16;
} MsignWay;

/* Replaces each of a few items by its sign. */
static inline void msign_items(Mat X, const MsignWay *way, Arena *arena) {
    int n = mat_count(X), tall = X.rows > X.cols;
    Mat out = X;
    floatM *s = arena_take(arena, (size_t)n);
    la_norms(s, X, 1);
    la_vec_recip(s, n, MSIGN_EPS);
    if (way->bf16 && la_sign_bf16(X, s, way->table->abc, way->table->steps, arena)) return;
    la_scale(X, s, 1);
    Mat Y = mat_dense(arena_take(arena, mat_size(X)), n, X.rows, X.cols);
    if (tall) X = mat_t(X), Y = mat_t(Y);
    if (way->bf16) msign_bf16(&X, &Y, way->table, arena);
    else if (msign_on_gram(X.rows, X.cols)) msign_gram(&X, &Y, way->table, way->rounded, arena);
    else msign_plain(&X, &Y, way->table, arena);
    if (X.p != out.p) la_copy(out, tall ? mat_t(X) : X);
}

/* Replaces each item of the dense batch X (n, rows, cols) by its sign, by table `which` (MsignKind), in bf16 or
   not. The Grams are of the short side. A non-finite input gives a non-finite output.

   The arena holds as many pieces as work at a time. While it measures, that is as many as there are chunks,
   so that the size does not depend on the number of threads. */
static inline void msign_by(Mat X, int which, int bf16, Arena *arena) {
    int n = mat_count(X), chunk = la_chunk(n), chunks = n ? n / chunk : 0;
    int workers = arena->p ? la_workers(chunks, (size_t)X.rows * X.cols) : chunks;
    size_t mark = arena->used;
    MsignWay way = {msign_table(which), 0, bf16 && !msign_keeps_fp32(X.rows, X.cols)};
    Arena measure = {NULL, 0, 0};
    msign_items(mat_dense(NULL, chunk, X.rows, X.cols), &way, &measure);
    size_t piece = measure.size;
    floatM *memory = arena_take(arena, (size_t)workers * piece);
    if (!memory) {
        arena->used = mark;
        return;
    }
    if (!way.bf16) way.rounded = la_fast(1);
    if (workers > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
        for (int i = 0; i < chunks; i++) {
            Arena own = arena_piece(memory, piece, thread_index());
            msign_items(mat_part(X, i * chunk, chunk), &way, &own);
        }
    } else { /* a parallel region of one thread would make those within it start threads anew each time */
        for (int i = 0; i < chunks; i++) {
            Arena own = arena_piece(memory, piece, 0);
            msign_items(mat_part(X, i * chunk, chunk), &way, &own);
        }
    }
    la_fast(0);
    arena->used = mark;
}

/* msign_by as the options say. */
static inline void msign(Mat X, const OptimOptions *o, Arena *arena) {
    msign_by(X, o->msign, la_sign_in_bf16(o->msign_compute), arena);
}

#endif
