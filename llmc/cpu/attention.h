/*
Causal multi-head attention on the CPU, exact, with memory linear in T.

A row of qkv (B,T,(NH + 2 NKV) HS) has NH query heads, then NKV key heads, then NKV value heads,
already normalised and rotated. Query head h reads key and value head h / (NH / NKV). With
s_ij = scale q_i . k_j for j <= i:  lse_i = log sum_j exp s_ij,  p_ij = exp(s_ij - lse_i),
out_i = sum_j p_ij v_j.

The forward pass takes BQ queries at a time against the keys before them: scores, softmax and
product with V of one block of rows, never T x T. The backward pass recomputes p from lse, as in
Dao et al., "FlashAttention" (2022): with D_i = dout_i . out_i,
    dp_ij = dout_i . v_j        ds_ij = scale p_ij (dp_ij - D_i)
    dq_i = sum_j ds_ij k_j      dk_j = sum_i ds_ij q_i      dv_j = sum_i p_ij dout_i
for BK keys at a time. Products run on the kernels of gemm.h, with operands packed once for each key
head. Tiles wholly above the diagonal are skipped. No sum's order depends on the number of threads.

C3 = (NH + 2 NKV) HS and C = NH HS are the elements of a row of qkv and of out.
*/
#ifndef CM_ATTENTION_H
#define CM_ATTENTION_H

#include "../base.h"
#include "gemm.h"
#include "simd.h"

#define ATTENTION_BQ (4 * GEMM_MR)
#define ATTENTION_BK (256 / ATTENTION_BQ * ATTENTION_BQ)
#define ATTENTION_LD ((ATTENTION_BK + GEMM_NR - 1) / GEMM_NR * GEMM_NR) /* BK in whole panels */

/* Fewer multiplications than this for one new token are done faster by one thread. */
#define ATTENTION_DECODE_WORK 1e5

static inline size_t attention_pad(int n) { /* n rounded up to whole panels */
    return (size_t)((n + GEMM_NR - 1) / GEMM_NR * GEMM_NR);
}

/* Packs X^T (HS,n) in panels of NR columns, from X (n,HS) of row stride ld: the right side of q
   . k. */
static inline void attention_pack_t(floatX *dst, const floatX *X, size_t ld, int n, int HS) {
    for (int j = 0; j < n; j += GEMM_NR, dst += (size_t)HS * GEMM_NR)
        gemm_pack_panel(dst, 1, HS, min_int(GEMM_NR, n - j), X + (size_t)j * ld, ld);
}

/* Packs X (n,HS) in panels of NR columns, each `rows` >= n long: the right side of p v. */
static inline void attention_pack(floatX *dst, size_t rows, const floatX *X, size_t ld, int n,
                                  int HS) {
    for (int j = 0; j < HS; j += GEMM_NR, dst += rows * GEMM_NR)
        gemm_pack_panel(dst, 0, n, min_int(GEMM_NR, HS - j), X + j, ld);
}

/* Into how many pieces the T rows of a head are cut, so that `pairs` heads keep all threads
   busy. */
static inline int attention_pieces(int pairs, int T, int unit) {
    int threads = in_parallel() ? 1 : thread_count();
    if (threads == 1 || pairs >= 4 * threads) return 1;
    return max_int(1, min_int((4 * threads + pairs - 1) / pairs, (T + unit - 1) / unit));
}

/* Softmax of one row, in place. The scores s [0, n), unscaled, become exp(scale (s - max)); s
   [n, end) become 0. Returns the sum of the row, and the maximum in *max. */
static inline floatX attention_softmax_row(floatX *s, int n, int end, floatX scale, floatX *max) {
    floatX m = simd_max(s, n), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < n; j++) {
        floatX p = fast_exp(scale * (s[j] - m));
        s[j] = p;
        sum += p;
    }
    for (int j = n; j < end; j++) s[j] = 0;
    *max = m;
    return sum;
}

/* Forward pass of queries [from, to) of the heads that read key head g of one sequence. */
static void attention_forward_piece(floatX *out, floatM *lse, const floatX *qkv, int from, int to,
                                    int T, int NH, int NKV, int HS, int g, floatX scale) {
    size_t C3 = (size_t)(NH + 2 * NKV) * HS, C = (size_t)NH * HS;
    size_t keys = attention_pad(to), panel = (size_t)HS * GEMM_NR;
    floatX *kt = (floatX *)gemm_scratch(
        GEMM_SCRATCH_CALLER,
        (keys * HS + keys * attention_pad(HS) + ATTENTION_BQ * keys) * sizeof(floatX));
    if (!kt) return;
    floatX *v = kt + keys * HS, *s = v + keys * attention_pad(HS);
    attention_pack_t(kt, qkv + (size_t)(NH + g) * HS, C3, to, HS);
    attention_pack(v, keys, qkv + (size_t)(NH + NKV + g) * HS, C3, to, HS);
    int group = NH / NKV;
    for (int h = g * group; h < (g + 1) * group; h++) {
        for (int i0 = from; i0 < to; i0 += ATTENTION_BQ) {
            int bq = min_int(ATTENTION_BQ, to - i0);
            const floatX *q = qkv + (size_t)i0 * C3 + (size_t)h * HS;
            floatX *o = out + (size_t)i0 * C + (size_t)h * HS, sum[ATTENTION_BQ];
            for (int j0 = 0; j0 < i0 + bq; j0 += ATTENTION_LD)
                for (int r = 0; r < bq; r += GEMM_MR) {
                    int n = min_int(j0 + ATTENTION_LD,
                                    (int)attention_pad(min_int(i0 + r + GEMM_MR, to))) -
                            j0;
                    if (n > 0)
                        gemm_block(0, min_int(GEMM_MR, bq - r), n, HS, 1, q + (size_t)r * C3, C3,
                                   kt + j0 / GEMM_NR * panel, GEMM_NR, panel, 0, s + r * keys + j0,
                                   keys);
                }
            for (int r = 0; r < bq; r++) {
                int end = min_int(i0 + r / GEMM_MR * GEMM_MR + GEMM_MR, to);
                floatX max;
                sum[r] = attention_softmax_row(s + r * keys, i0 + r + 1, end, scale, &max);
                lse[(size_t)h * T + i0 + r] = (floatM)(scale * max) + (floatM)log(sum[r]);
            }
            for (int j0 = 0; j0 < i0 + bq; j0 += ATTENTION_LD)
                for (int r = 0; r < bq; r += GEMM_MR) {
                    int n = min_int(j0 + ATTENTION_LD, min_int(i0 + r + GEMM_MR, to)) - j0;
                    if (n > 0)
                        gemm_block(0, min_int(GEMM_MR, bq - r), HS, n, 1, s + r * keys + j0, keys,
                                   v + (size_t)j0 * GEMM_NR, GEMM_NR, keys * GEMM_NR, j0 > 0,
                                   o + r * C, C);
                }
            for (int r = 0; r < bq; r++) {
                floatX inverse = 1 / sum[r];
                for (int c = 0; c < HS; c++) o[r * C + c] *= inverse;
            }
        }
    }
}

/* out (B,T,NH*HS) and lse (B,NH,T) from qkv (B,T,(NH+2*NKV)*HS). scale multiplies q . k. */
__attribute__((unused)) static void attention_forward(floatX *out, floatM *lse, const floatX *qkv,
                                                      int B, int T, int NH, int NKV, int HS,
                                                      double scale) {
    int pieces = attention_pieces(B * NKV, T, 2 * ATTENTION_BQ);
    int rows = (T + pieces * ATTENTION_BQ - 1) / (pieces * ATTENTION_BQ) * ATTENTION_BQ;
    size_t C3 = (size_t)(NH + 2 * NKV) * HS;
#pragma omp parallel for schedule(dynamic, 1) if (!in_parallel())
    for (int task = 0; task < B * NKV * pieces; task++) {
        int piece = pieces - 1 - task / (B * NKV); /* the longest piece first */
        int b = task % (B * NKV) / NKV, g = task % NKV;
        int from = piece * rows, to = min_int(T, from + rows);
        if (from < to)
            attention_forward_piece(out + (size_t)b * T * NH * HS, lse + (size_t)b * NH * T,
                                    qkv + (size_t)b * T * C3, from, to, T, NH, NKV, HS, g,
                                    (floatX)scale);
    }
}

/* Turns scores into gradients, for bq queries from i0 and n keys from j0: s becomes p and dp
   becomes ds, both 0 above the diagonal. Rows are LD apart. n is a multiple of MR past the
   diagonal, or ends at the last key. */
static inline void attention_grad_rows(floatX *s, floatX *dp, const floatM *lse, const floatX *D,
                                       int bq, int i0, int j0, int n, floatX scale) {
    for (int r = 0; r < bq; r++, s += ATTENTION_LD, dp += ATTENTION_LD) {
        int valid = min_int(n, i0 + r + 1 - j0);
        floatX l = (floatX)lse[i0 + r], d = D[r];
#pragma omp simd
        for (int j = 0; j < valid; j++) {
            floatX p = fast_exp(scale * s[j] - l);
            s[j] = p;
            dp[j] = scale * p * (dp[j] - d);
        }
        for (int j = max_int(valid, 0); j < n; j++) s[j] = dp[j] = 0;
    }
}

/* A piece of the backward pass: the gradients that involve key head g of one sequence. The
   pointers are those of the sequence. With want_kv: gradients of keys and values [k0, k1). With
   want_q: gradients of queries [q0, q1). k0 is a multiple of BK, q0 of BQ. */
typedef struct {
    floatX *dqkv;                   /* (T, C3) */
    const floatX *dout, *qkv, *out; /* (T, C), (T, C3), (T, C) */
    const floatM *lse;              /* (NH, T) */
    int T, NH, NKV, HS, g;
    floatX scale;
    int k0, k1, want_kv;
    int q0, q1, want_q;
} AttentionPiece;

/* Scratch of a piece: a block of BK keys and values and a block of BQ queries, packed for
   products. */
typedef struct {
    floatX *kt, *vt;  /* K^T and V^T (HS, BK) in panels */
    floatX *k;        /* K (BK, HS) in panels */
    floatX *s, *dp;   /* scores, then p; dp, then ds; (BQ, LD) each */
    floatX *q, *dout; /* queries and dout (BQ, HS) in panels */
    floatX D[ATTENTION_BQ];
} AttentionBlocks;

/* Takes the scratch. Returns 0, or -1 and a recorded failure if there is no memory. */
static int attention_blocks_take(AttentionBlocks *b, int HS) {
    size_t W = attention_pad(HS), scores = (size_t)ATTENTION_BQ * ATTENTION_LD;
    size_t floats = (size_t)ATTENTION_LD * (2 * HS + W) + 2 * scores + 2 * ATTENTION_BQ * W;
    b->kt = (floatX *)gemm_scratch(GEMM_SCRATCH_CALLER, floats * sizeof(floatX));
    if (!b->kt) return -1;
    b->vt = b->kt + (size_t)ATTENTION_LD * HS;
    b->k = b->vt + (size_t)ATTENTION_LD * HS;
    b->s = b->k + ATTENTION_LD * W;
    b->dp = b->s + scores;
    b->q = b->dp + scores;
    b->dout = b->q + ATTENTION_BQ * W;
    return 0;
}

/* D_r = dout_r . out_r for bq rows of one head. Rows are C elements apart. */
static inline void attention_dots(floatX *D, const floatX *dout, const floatX *out, size_t C,
                                  int bq, int HS) {
    for (int r = 0; r < bq; r++) {
        floatX sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < HS; c++) sum += out[r * C + c] * dout[r * C + c];
        D[r] = sum;
    }
}

/* p and ds of head h, for bq queries from i0 and the n keys from j0 that they see. */
static inline void attention_backward_scores(const AttentionPiece *a, AttentionBlocks *b, int h,
                                             int i0, int bq, int j0, int n) {
    int HS = a->HS;
    size_t C3 = (size_t)(a->NH + 2 * a->NKV) * HS, C = (size_t)a->NH * HS;
    size_t panel = (size_t)HS * GEMM_NR;
    const floatX *q = a->qkv + (size_t)i0 * C3 + (size_t)h * HS;
    const floatX *out = a->out + (size_t)i0 * C + (size_t)h * HS;
    const floatX *dout = a->dout + (size_t)i0 * C + (size_t)h * HS;
    attention_dots(b->D, dout, out, C, bq, HS);
    for (int r = 0; r < bq; r += GEMM_MR) {
        int m = min_int(GEMM_MR, bq - r);
        int w = (int)attention_pad(min_int(n, i0 + r + GEMM_MR - j0));
        gemm_block(0, m, w, HS, 1, q + r * C3, C3, b->kt, GEMM_NR, panel, 0,
                   b->s + r * ATTENTION_LD, ATTENTION_LD);
        gemm_block(0, m, w, HS, 1, dout + r * C, C, b->vt, GEMM_NR, panel, 0,
                   b->dp + r * ATTENTION_LD, ATTENTION_LD);
    }
    attention_grad_rows(b->s, b->dp, a->lse + (size_t)h * a->T, b->D, bq, i0, j0, n, a->scale);
}

/* dq of head h, for bq queries from i0: ds k, added to dq except for the first block of keys. */
static inline void attention_backward_q(const AttentionPiece *a, const AttentionBlocks *b, int h,
                                        int i0, int bq, int j0, int n) {
    size_t C3 = (size_t)(a->NH + 2 * a->NKV) * a->HS;
    for (int r = 0; r < bq; r += GEMM_MR)
        gemm_block(0, min_int(GEMM_MR, bq - r), a->HS, min_int(n, i0 + r + GEMM_MR - j0), 1,
                   b->dp + r * ATTENTION_LD, ATTENTION_LD, b->k, GEMM_NR, ATTENTION_LD * GEMM_NR,
                   j0 > 0, a->dqkv + (size_t)(i0 + r) * C3 + (size_t)h * a->HS, C3);
}

/* dk and dv of the n keys from j0: ds^T q and p^T dout of bq queries from i0 of head h. Queries
   before a key contribute nothing to it. The first block to reach a key is that of the group's
   first head on the diagonal: it sets the gradient, and later blocks add. */
static inline void attention_backward_kv(const AttentionPiece *a, AttentionBlocks *b, int h, int i0,
                                         int bq, int j0, int n) {
    int HS = a->HS, group = a->NH / a->NKV;
    size_t C3 = (size_t)(a->NH + 2 * a->NKV) * HS, C = (size_t)a->NH * HS;
    floatX *dk = a->dqkv + (size_t)(a->NH + a->g) * HS, *dv = dk + (size_t)a->NKV * HS;
    attention_pack(b->q, ATTENTION_BQ, a->qkv + (size_t)i0 * C3 + (size_t)h * HS, C3, bq, HS);
    attention_pack(b->dout, ATTENTION_BQ, a->dout + (size_t)i0 * C + (size_t)h * HS, C, bq, HS);
    for (int j = 0; j < n; j += GEMM_MR) {
        int r = max_int(0, j0 + j - i0), m = min_int(GEMM_MR, n - j);
        floatX beta = h == a->g * group && j0 + j >= i0 ? 0 : 1;
        size_t at = (size_t)(j0 + j) * C3;
        gemm_block(1, m, HS, bq - r, 1, b->dp + r * ATTENTION_LD + j, ATTENTION_LD,
                   b->q + r * GEMM_NR, GEMM_NR, ATTENTION_BQ * GEMM_NR, beta, dk + at, C3);
        gemm_block(1, m, HS, bq - r, 1, b->s + r * ATTENTION_LD + j, ATTENTION_LD,
                   b->dout + r * GEMM_NR, GEMM_NR, ATTENTION_BQ * GEMM_NR, beta, dv + at, C3);
    }
}

/* Computes a piece from all blocks that touch it: BK keys at a time, BQ queries at a time. */
static void attention_backward_piece(const AttentionPiece *a) {
    int HS = a->HS, group = a->NH / a->NKV;
    size_t C3 = (size_t)(a->NH + 2 * a->NKV) * HS;
    const floatX *k = a->qkv + (size_t)(a->NH + a->g) * HS, *v = k + (size_t)a->NKV * HS;
    AttentionBlocks b;
    if (attention_blocks_take(&b, HS)) return;
    for (int j0 = a->k0; j0 < a->k1; j0 += ATTENTION_BK) {
        int bk = min_int(ATTENTION_BK, a->k1 - j0);
        attention_pack_t(b.kt, k + (size_t)j0 * C3, C3, bk, HS);
        attention_pack_t(b.vt, v + (size_t)j0 * C3, C3, bk, HS);
        if (a->want_q) attention_pack(b.k, ATTENTION_LD, k + (size_t)j0 * C3, C3, bk, HS);
        for (int h = a->g * group; h < (a->g + 1) * group; h++)
            for (int i0 = max_int(a->q0, j0); i0 < a->q1; i0 += ATTENTION_BQ) {
                int bq = min_int(ATTENTION_BQ, a->q1 - i0);
                int n = min_int(bk, i0 + bq - j0); /* keys that this block of queries sees */
                attention_backward_scores(a, &b, h, i0, bq, j0, n);
                if (a->want_q) attention_backward_q(a, &b, h, i0, bq, j0, n);
                if (a->want_kv) attention_backward_kv(a, &b, h, i0, bq, j0, n);
            }
    }
}

/* Sets all of dqkv (B,T,(NH+2*NKV)*HS). With fewer heads than threads, keys and queries are cut
   into pieces and their gradients are computed separately. This repeats two of the five
   products, but leaves every sum to one thread. */
__attribute__((unused)) static void attention_backward(floatX *dqkv, const floatX *dout,
                                                       const floatX *qkv, const floatX *out,
                                                       const floatM *lse, int B, int T, int NH,
                                                       int NKV, int HS, double scale) {
    int pairs = B * NKV, threads = in_parallel() ? 1 : thread_count();
    int pieces = pairs >= threads ? 1 : attention_pieces(pairs, T, ATTENTION_BK);
    int rows = (T + pieces * ATTENTION_BK - 1) / (pieces * ATTENTION_BK) * ATTENTION_BK;
    size_t C3 = (size_t)(NH + 2 * NKV) * HS, C = (size_t)NH * HS;
#pragma omp parallel for schedule(dynamic, 1) if (!in_parallel())
    for (int task = 0; task < pairs * pieces * (pieces > 1 ? 2 : 1); task++) {
        int b = task % pairs / NKV, g = task % NKV, piece = task / pairs % pieces;
        int part = task / (pairs * pieces); /* 0: keys and values; 1: queries */
        int from = piece * rows, to = min_int(T, from + rows);
        if (from >= to) continue;
        AttentionPiece a = {.dqkv = dqkv + (size_t)b * T * C3,
                            .dout = dout + (size_t)b * T * C,
                            .qkv = qkv + (size_t)b * T * C3,
                            .out = out + (size_t)b * T * C,
                            .lse = lse + (size_t)b * NH * T,
                            .T = T,
                            .NH = NH,
                            .NKV = NKV,
                            .HS = HS,
                            .g = g,
                            .scale = (floatX)scale,
                            .k1 = to,
                            .q1 = T};
        a.want_kv = pieces == 1 || part == 0;
        a.want_q = pieces == 1 || part == 1;
        if (a.want_kv) a.k0 = from;
        if (a.want_q) {
            a.q0 = from;
            a.q1 = to;
        }
        attention_backward_piece(&a);
    }
}

/* One head of attention_decode. p is scratch for t + 1 numbers. */
static void attention_decode_head(floatX *out, floatX *p, const floatX *q, const floatX *k,
                                  const floatX *v, size_t ld, int t, int HS, floatX scale) {
    for (int j = 0; j <= t; j++) {
        const floatX *kj = k + (size_t)j * ld;
        floatX sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < HS; c++) sum += q[c] * kj[c];
        p[j] = sum;
    }
    floatX max, inverse = 1 / attention_softmax_row(p, t + 1, t + 1, scale, &max);
    for (int c = 0; c < HS; c++) out[c] = 0;
    for (int j = 0; j <= t; j++) {
        const floatX *vj = v + (size_t)j * ld;
        floatX pj = p[j] * inverse;
#pragma omp simd
        for (int c = 0; c < HS; c++) out[c] += pj * vj[c];
    }
}

/* Attention of one new position t, for generation: out (NH*HS) from q (NH*HS) and the caches
   (max_T,NKV*HS), which hold the keys and values of positions 0..t. */
__attribute__((unused)) static void attention_decode(floatX *out, const floatX *q,
                                                     const floatX *k_cache, const floatX *v_cache,
                                                     int t, int NH, int NKV, int HS, double scale) {
#pragma omp parallel for schedule(static) if (!in_parallel() &&                                    \
                                              (double)t * NH * HS > ATTENTION_DECODE_WORK)
    for (int h = 0; h < NH; h++) {
        size_t g = (size_t)(h / (NH / NKV)) * HS;
        floatX *p = (floatX *)gemm_scratch(GEMM_SCRATCH_CALLER, (size_t)(t + 1) * sizeof(floatX));
        if (!p) continue;
        attention_decode_head(out + (size_t)h * HS, p, q + (size_t)h * HS, k_cache + g, v_cache + g,
                              (size_t)NKV * HS, t, HS, (floatX)scale);
    }
}

#endif
