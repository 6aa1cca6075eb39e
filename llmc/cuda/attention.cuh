/*
Causal multi-head attention on a GPU, exact, with memory linear in T. The contract is that of
llmc/cpu/attention.h.

A row of qkv (B,T,(NH + 2 NKV) HS) has NH query heads, then NKV key heads, then NKV value heads.
Query head h reads key and value head h / (NH / NKV). With s_ij = scale q_i . k_j for j <= i:
lse_i = log sum_j exp s_ij, p_ij = exp(s_ij - lse_i), out_i = sum_j p_ij v_j, and backward

    D_i = dout_i . out_i      dp_ij = dout_i . v_j      ds_ij = p_ij (dp_ij - D_i)
    dq_i = scale sum_j ds_ij k_j      dk_j = scale sum_i ds_ij q_i      dv_j = sum_i p_ij dout_i

After Dao, "FlashAttention-2" (2023): scores exist in registers only. The two large kernels are
built alike. A block keeps ROWS rows of one matrix (queries, or keys) in shared memory, 16 MT of
them for each of its four warps, and walks along the rows of the other matrix, STEP rows at a time.
cp.async loads the next STEP rows while the block works on the current ones. A warp computes scores,
turns them into p or ds, rounds them to floatX, and multiplies them by the STEP rows into sums that
stay in its registers:

    forward   keeps queries, walks along keys:    s = q k^T                         out += p v
    backward  keeps keys, walks along queries:    s^T = k q^T,  dp^T = v dout^T     dv += p^T dout
                                                                                    dk += ds^T q
                                                                                    dq += ds k

ds of a step goes to shared memory. From there the four warps share the last product, which is
(STEP, D) of dq from all ROWS keys of the block. Every tile of keys contributes to dq of every query
after it. The contributions are added up in fp32 in scratch, in the order of the tiles: tile 0
writes, later tiles read, add and write, and the tile on the diagonal, the last one, scales the sum
and writes dq. All sums have one order: equal runs give equal bits.

Blocks walk along the queries from the end of the sequence, and along the query heads of a group at
each STEP, so that step n of all tiles of a head concerns about the same queries. A block counts its
steps in global memory, and starts step n after the tile before it has finished step n. All blocks
are equally fast, so a block waits at its first step, if at all. No wait lasts for ever: a block
takes its tile by the order in which it starts (a ticket), the tiles of a head in ascending order,
and it waits only for a lower tile of its head, whose block started earlier and waits only for still
lower tiles. Tile 0, the longest, goes first, which also keeps the end of the kernel short.

A warp of the forward pass keeps its queries in registers if there is room. Exponentials are to base
2, sums are fp32. What the mask removes is multiplied as zero. So a NaN in a value also reaches
outputs before it, and a NaN in a key or a value also reaches dq of queries before it, at a distance
below ROWS; a NaN in a query or in dout also reaches dk and dv of keys after it, at a distance below
STEP.

HS is at most 128. Heads are padded with zeros to 32, 64 or 128 columns in shared memory.
*/
#ifndef CM_CUDA_ATTENTION_CUH
#define CM_CUDA_ATTENTION_CUH

#include "mma.cuh"

enum { FLASH_THREADS = 128, FLASH_WARPS = FLASH_THREADS / 32 };

/* Sizes for heads of D columns: what fits into the registers with two blocks on a
   multiprocessor, and into 99 KiB of shared memory. NT and DT are the fragments side by side in
   scores and in a sum. */
template <int D> struct FlashForward {
    static constexpr int FP32 = sizeof(floatX) == 4;
    static constexpr int MT = FP32 ? 1 : 2, ROWS = 16 * FLASH_WARPS * MT;
    static constexpr int STEP = (D < 128 ? 64 : 32) / (FP32 ? 2 : 1);
    static constexpr int NT = STEP / 8, DT = D / 8;
    static constexpr int HELD = D < 128; /* a warp's queries stay in registers */
    /* Shared memory: the queries, and twice a pair of STEP keys and values. */
    static constexpr int STAY = ROWS * D, PAIR = 2 * STEP * D;
    static constexpr size_t BYTES = (STAY + 2 * PAIR) * sizeof(floatX);
    static_assert(BYTES <= 99 << 10, "more shared memory than every GPU has");
};

template <int D> struct FlashBackward {
    static constexpr int FP32 = sizeof(floatX) == 4;
    static constexpr int MT = FP32 || D == 128 ? 1 : 2, ROWS = 16 * FLASH_WARPS * MT;
    static constexpr int STEP = (D < 128 ? 64 : 32) / (FP32 ? 2 : 1);
    static constexpr int PART =
        STEP < 32 ? STEP : 32; /* queries that a warp computes scores of at a time */
    static constexpr int NT = PART / 8, DT = D / 8;
    /* Of the (STEP, D) of dq a warp computes (16 QM, 8 QN). ACROSS warps are side by side. */
    static constexpr int ACROSS = D < 128 ? 2 : 4, QM = STEP * ACROSS / FLASH_WARPS / 16,
                         QN = DT / ACROSS;
    /* Shared memory: keys and values; a pair of STEP queries and their dout, and lse and D of
       these queries, all twice if there is room; ds of a step. */
    static constexpr int STAGES = FP32 && D == 128 ? 1 : 2;
    static constexpr int STAY = 2 * ROWS * D, PAIR = 2 * STEP * D, DS = ROWS * STEP;
    static constexpr size_t BYTES =
        (STAY + STAGES * PAIR + DS) * sizeof(floatX) + STAGES * 2 * STEP * sizeof(float);
    static_assert(BYTES <= 99 << 10, "more shared memory than every GPU has");
    static_assert(QM > 0 && QN % 2 == 0 && ROWS % STEP == 0 && 2 * STEP <= FLASH_THREADS,
                  "sizes do not fit");
};

typedef struct {
    int T, NH, NKV, HS;
    int group; /* query heads that read one key head */
    /* heads of all sequences; tiles of ROWS rows in one: a block for each tile of each head */
    int heads, tiles;
    int wave; /* heads that are worked on at a time */
    int wide; /* rows begin at multiples of 16 bytes */
    /* chunks of STEP queries in a sequence; chunks with sums of dq in scratch */
    int chunks, kept;
    float scale, scale2; /* factor of q . k; factor for exponentials to base 2 */
    int C, C3;           /* elements of a row of out; elements of a row of qkv */
} FlashShape;

#define FLASH_LOG2E 1.4426950408889634f
#define FLASH_LN2 0.6931471805599453f

/* ---------------------------------------------------------------------------------------------- */
/* parts of the kernels */

/* The head and the tile of block n. Long tiles go first, so that the last blocks to end are
   short ones; but only of f.wave heads at a time, so that the rows that their blocks walk
   along stay in the L2 cache. */
__device__ static inline void flash_place(int *head, int *tile, int n, const FlashShape &f) {
    int first = n / (f.wave * f.tiles) * f.wave;
    int heads = f.heads - first < f.wave ? f.heads - first : f.wave;
    n -= first * f.tiles;
    *tile = n / heads;
    *head = first + n % heads;
}

/* Loads `rows` rows of HS elements, ld apart, from p into a tile of ROWS rows; the rest of the
   tile becomes 0. The rows have arrived after a wait for the copies and a barrier. */
template <int ROWS, int D>
__device__ static inline void flash_load(Tile<floatX, D> tile, const floatX *p, int ld, int rows,
                                         const FlashShape &f, int thread = (int)threadIdx.x) {
    constexpr int PIECE = tile.PIECE, AT_ONCE = FLASH_THREADS / tile.PIECES;
    static_assert(ROWS % AT_ONCE == 0, "the threads share the rows evenly");
    if (f.wide) {
        int r = thread / tile.PIECES, c = thread % tile.PIECES * PIECE;
        unsigned own = (unsigned)(r * ld + c);
        UNROLLED_FOR (int i = 0; i < ROWS; i += AT_ONCE) {
            floatX *to = AT_ONCE % 8 ? tile.at(i + r, c) : tile.at(i, 0, r, c);
            if (r < rows - i && c < f.HS) cp_async<16>(to, p + (size_t)i * ld + own);
            else *(uint4 *)(void *)to = make_uint4(0, 0, 0, 0);
        }
        return;
    }
#pragma unroll 1
    for (int i = thread; i < ROWS * D; i += FLASH_THREADS) {
        int r = i / D, c = i % D;
        *tile.at(r, c) = r < rows && c < f.HS ? p[(size_t)r * ld + c] : from_float<floatX>(0);
    }
}

template <int M, int N> __device__ static inline void flash_zero(FragC (&c)[M][N]) {
    UNROLLED_FOR (int m = 0; m < M; m++)
        UNROLLED_FOR (int n = 0; n < N; n++)
            UNROLLED_FOR (int e = 0; e < 4; e++) c[m][n].x[e] = 0;
}

template <int M, int N> __device__ static inline void flash_scale(FragC (&c)[M][N], float scale) {
    UNROLLED_FOR (int m = 0; m < M; m++)
        UNROLLED_FOR (int n = 0; n < N; n++)
            UNROLLED_FOR (int e = 0; e < 4; e++) c[m][n].x[e] *= scale;
}

/* s (16 MT, 8 NT) += the part of X Y^T that comes from columns [k, k + 16). `a` holds these
   columns of X. */
template <int MT, int NT, int D>
__device__ static inline void flash_scores_of(FragC (&s)[MT][NT], const FragA<floatX> (&a)[MT],
                                              Tile<floatX, D> Y, int k, int lane) {
    UNROLLED_FOR (int n = 0; n < NT; n += 2) {
        FragB<floatX> b[2];
        load_b(b, Y, 8 * n, k, lane);
        UNROLLED_FOR (int m = 0; m < MT; m++) {
            mma(s[m][n], a[m], b[0]);
            mma(s[m][n + 1], a[m], b[1]);
        }
    }
}

template <int MT, int D>
__device__ static inline void flash_columns(FragA<floatX> (&a)[MT], Tile<floatX, D> X, int row,
                                            int k, int lane) {
    UNROLLED_FOR (int m = 0; m < MT; m++) load_a(a[m], X, row + 16 * m, k, lane);
}

/* s (16 MT, 8 NT) = X Y^T, of 16 MT rows of X from `row` on and 8 NT rows of Y. Tiles have D
   columns. */
template <int MT, int NT, int D>
__device__ static inline void flash_scores(FragC (&s)[MT][NT], Tile<floatX, D> X, int row,
                                           Tile<floatX, D> Y, int lane = warp_lane()) {
    flash_zero(s);
    UNROLLED_FOR (int k = 0; k < D; k += 16) {
        FragA<floatX> a[MT];
        flash_columns(a, X, row, k, lane);
        flash_scores_of(s, a, Y, k, lane);
    }
}

/* o (16 MT, D) += s Y, with s (16 MT, 8 NT) rounded to floatX and 8 NT rows of Y. */
template <int MT, int NT, int D>
__device__ static inline void flash_weigh(FragC (&o)[MT][D / 8], const FragC (&s)[MT][NT],
                                          Tile<floatX, D> Y, int lane = warp_lane()) {
    UNROLLED_FOR (int k = 0; k < NT; k += 2) {
        FragA<floatX> a[MT];
        UNROLLED_FOR (int m = 0; m < MT; m++) make_a(a[m], s[m][k], s[m][k + 1]);
        UNROLLED_FOR (int n = 0; n < D / 8; n += 2) {
            FragB<floatX> b[2];
            load_b_plain(b, Y, 8 * k, 8 * n, lane);
            UNROLLED_FOR (int m = 0; m < MT; m++) {
                mma(o[m][n], a[m], b[0]);
                mma(o[m][n + 1], a[m], b[1]);
            }
        }
    }
}

/* Masks the scores of keys after their query. s begins at row `row` and column `col`. Rows are
   queries and columns are keys; with TRANSPOSED the other way round. */
template <int TRANSPOSED, int MT, int NT>
__device__ static inline void flash_mask(FragC (&s)[MT][NT], int row, int col) {
    /* column minus row, for element 0 of the first fragment */
    int offset = col + frag_col(0) - row - frag_row(0);
    UNROLLED_FOR (int m = 0; m < MT; m++)
        UNROLLED_FOR (int n = 0; n < NT; n++)
            UNROLLED_FOR (int e = 0; e < 4; e++) {
                int limit = 16 * m + 8 * (e / 2) - 8 * n - e % 2;
                if (TRANSPOSED ? offset < limit : offset > limit) s[m][n].x[e] = -INFINITY;
            }
}

/* Sum and maximum over the four lanes that share a row of a fragment. */
__device__ static inline float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}
__device__ static inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}

/* One step of a softmax whose rows come in pieces (Milakov and Gimelshein, 2018): s becomes
   2^(scale s - top), and the earlier sums, o and this lane's part of sum, are rescaled to the
   new top. top need not be the maximum: it is kept as long as the maximum is below 2^8 times it. */
template <int MT, int NT, int DT>
__device__ static inline void flash_softmax(FragC (&s)[MT][NT], FragC (&o)[MT][DT],
                                            float (&top)[MT][2], float (&sum)[MT][2], float scale) {
    UNROLLED_FOR (int m = 0; m < MT; m++)
        UNROLLED_FOR (int half = 0; half < 4;
                      half += 2) { /* the lane's two rows: elements 0, 1 and 2, 3 */
            float max = -INFINITY, factor = 1, part = 0, &t = top[m][half / 2];
            UNROLLED_FOR (int n = 0; n < NT; n++)
                max = fmaxf(max, fmaxf(s[m][n].x[half], s[m][n].x[half + 1]));
            max = scale * quad_max(max);
            if (max > t + 8) {
                factor = fast_exp2(t - max);
                t = max;
            }
            UNROLLED_FOR (int n = 0; n < NT; n++)
                UNROLLED_FOR (int e = half; e < half + 2; e++) {
                    float p = fast_exp2(scale * s[m][n].x[e] - t);
                    s[m][n].x[e] = p;
                    part += p;
                }
            sum[m][half / 2] = factor * sum[m][half / 2] + part;
            if (!__any_sync(FULL_WARP, factor != 1)) continue;
            UNROLLED_FOR (int n = 0; n < DT; n++) {
                o[m][n].x[half] *= factor;
                o[m][n].x[half + 1] *= factor;
            }
        }
}

/* Stores c (16 M, 8 N), rounded to floatX, in the tile from row `row` and column `col` on. */
template <int M, int N, int D>
__device__ static inline void flash_put(Tile<floatX, D> tile, int row, int col,
                                        const FragC (&c)[M][N], int lane = warp_lane()) {
    UNROLLED_FOR (int m = 0; m < M; m++)
        UNROLLED_FOR (int n = 0; n < N; n++)
            UNROLLED_FOR (int e = 0; e < 4; e += 2)
                store_pair(tile.at(row + 16 * m, col + 8 * n, frag_row(e, lane), frag_col(0, lane)),
                           c[m][n].x[e], c[m][n].x[e + 1]);
}

/* Writes o, the warp's rows of a tile from `row` on, to at most `rows` rows of HS elements at p,
   ld apart. The elements of a 16-byte piece come together in the tile; no other warp uses these
   rows of it. */
template <int MT, int D>
__device__ static inline void flash_store(floatX *p, size_t ld, int rows, Tile<floatX, D> tile,
                                          int row, const FragC (&o)[MT][D / 8],
                                          const FlashShape &f) {
    constexpr int PIECE = tile.PIECE, PIECES = tile.PIECES;
    __syncwarp();
    flash_put(tile, row, 0, o);
    __syncwarp();
    for (int i = warp_lane(); i < 16 * MT * PIECES; i += 32) {
        int r = row + i / PIECES, c = i % PIECES * PIECE;
        if (r >= rows || c >= f.HS) continue;
        const floatX *from = tile.at(r, c);
        floatX *to = p + r * ld + c;
        if (f.wide) *(uint4 *)(void *)to = *(const uint4 *)(const void *)from;
        else
            for (int e = 0; e < PIECE && c + e < f.HS; e++) to[e] = from[e];
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* forward */

template <int D>
__global__ static void __launch_bounds__(FLASH_THREADS)
    flash_forward_kernel(floatX *out, floatM *lse, const floatX *qkv, FlashShape f) {
    using F = FlashForward<D>;
    constexpr int MT = F::MT, ROWS = F::ROWS, STEP = F::STEP;
    SHARED(floatX, shared);
    Tile<floatX, D> Q = {shared};
    int head, tile, T = f.T;
    flash_place(&head, &tile, (int)blockIdx.x, f);
    int b = head / f.NH, h = head % f.NH, g = h / f.group;
    int i0 = (f.tiles - 1 - tile) * ROWS, row = (int)threadIdx.x / 32 * 16 * MT, first = i0 + row;
    int steps = ((T < i0 + ROWS ? T : i0 + ROWS) + STEP - 1) / STEP;
    const floatX *k = qkv + (size_t)b * T * f.C3 + (size_t)(f.NH + g) * f.HS,
                 *v = k + (size_t)f.NKV * f.HS;
    FragC o[MT][F::DT];
    float top[MT][2], sum[MT][2];
    flash_zero(o);
    UNROLLED_FOR (int m = 0; m < MT; m++) {
        top[m][0] = top[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0;
    }

    /* loads the rows of step n */
    auto bring = [&](int n) {
        int j0 = n * STEP;
        Tile<floatX, D> K = {shared + F::STAY + (n & 1) * F::PAIR}, V = {K.p + F::PAIR / 2};
        flash_load<STEP>(K, k + (size_t)j0 * f.C3, f.C3, T - j0, f);
        flash_load<STEP>(V, v + (size_t)j0 * f.C3, f.C3, T - j0, f);
        cp_async_commit();
    };
    flash_load<ROWS>(Q, qkv + ((size_t)b * T + i0) * f.C3 + (size_t)h * f.HS, f.C3, T - i0, f);
    cp_async_commit();
    bring(0);
    FragA<floatX> q[F::HELD ? D / 16 : 1][MT];
    if (F::HELD) {
        cp_async_wait<1>();
        __syncthreads(); /* the queries have arrived */
        UNROLLED_FOR (int c = 0; c < (F::HELD ? D / 16 : 1); c++)
            flash_columns(q[c], Q, row, 16 * c, warp_lane());
    }
    for (int n = 0; n < steps; n++) {
        cp_async_wait<0>();
        /* the rows of this step have arrived, and those of the last step are free */
        __syncthreads();
        if (n + 1 < steps) bring(n + 1);
        int j0 = n * STEP;
        if (j0 > first + 16 * MT - 1) continue;
        Tile<floatX, D> K = {shared + F::STAY + (n & 1) * F::PAIR}, V = {K.p + F::PAIR / 2};
        FragC s[MT][F::NT];
        if constexpr (F::HELD) {
            flash_zero(s);
            UNROLLED_FOR (int c = 0; c < D / 16; c++)
                flash_scores_of(s, q[c], K, 16 * c, warp_lane());
        } else flash_scores(s, Q, row, K);
        if (j0 + STEP - 1 > first) flash_mask<0>(s, first, j0);
        flash_softmax(s, o, top, sum, f.scale2);
        flash_weigh(o, s, V);
    }
    UNROLLED_FOR (int m = 0; m < MT; m++)
        UNROLLED_FOR (int half = 0; half < 4; half += 2) {
            float total = quad_sum(sum[m][half / 2]), inverse = 1 / total;
            int i = first + 16 * m + frag_row(half);
            if (i < T && frag_col(0) == 0)
                lse[(size_t)head * T + i] = FLASH_LN2 * (top[m][half / 2] + log2f(total));
            UNROLLED_FOR (int n = 0; n < F::DT; n++) {
                o[m][n].x[half] *= inverse;
                o[m][n].x[half + 1] *= inverse;
            }
        }
    flash_store(out + ((size_t)b * T + i0) * f.C + (size_t)h * f.HS, f.C, T - i0, Q, row, o, f);
}

/* ---------------------------------------------------------------------------------------------- */
/* backward */

/* dots (B,NH,T) = D, the dot products of the rows of dout and out (B,T,NH,HS), eight lanes to a
   row. Also clears the n_counts numbers at counts for the next kernel; there are fewer of them
   than threads. */
template <int N>
__global__ static void flash_dots_kernel(float *dots, int *counts, size_t n_counts,
                                         const floatX *dout, const floatX *out, size_t rows, int T,
                                         int NH, int HS) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, n = i / 8;
    if (i < n_counts) counts[i] = 0;
    float sum = 0;
    for (int c = (int)threadIdx.x % 8 * N; n < rows && c < HS; c += 8 * N) {
        float x[N], y[N];
        load<N>(x, dout + n * HS + c);
        load<N>(y, out + n * HS + c);
        UNROLLED_FOR (int e = 0; e < N; e++) sum += x[e] * y[e];
    }
    UNROLLED_FOR (int lanes = 4; lanes > 0; lanes /= 2)
        sum += __shfl_xor_sync(FULL_WARP, sum, lanes);
    if (n < rows && threadIdx.x % 8 == 0) dots[(n / NH / T * NH + n % NH) * T + n / NH % T] = sum;
}

/* Adds to dk and dv of the warp's rows of K and V, keys from j0 on, what 8 NT queries from i0 on
   contribute: Q, with their dout in dO, lse in l and D in d. Stores their ds^T in the warp's
   rows of dS from column `col` on. The lane is read again twice (fresh_thread), because
   addresses would take the registers that the fragments need. */
template <int MT, int NT, int D, int STEP>
__device__ static inline void
flash_backward_part(FragC (&dk)[MT][D / 8], FragC (&dv)[MT][D / 8], Tile<floatX, STEP> dS, int col,
                    Tile<floatX, D> K, Tile<floatX, D> V, Tile<floatX, D> Q, Tile<floatX, D> dO,
                    const float *l, const float *d, int j0, int i0, float scale2) {
    FragC s[MT][NT], dp[MT][NT];
    int thread = fresh_thread(), lane = thread % 32, row = thread / 32 * 16 * MT, first = j0 + row;
    if (i0 + 8 * NT - 1 < first) { /* none of these queries sees any of these keys */
        flash_zero(dp);
        flash_put(dS, row, col, dp, lane);
        return;
    }
    flash_scores(s, K, row, Q, lane);
    if (i0 < first + 16 * MT - 1) flash_mask<1>(s, first, i0);
    lane = fresh_thread() % 32;
    flash_scores(dp, V, row, dO, lane);
    UNROLLED_FOR (int n = 0; n < NT; n++) {
        float2 ln = *(const float2 *)(const void *)(l + 8 * n + frag_col(0, lane));
        float2 dn = *(const float2 *)(const void *)(d + 8 * n + frag_col(0, lane));
        UNROLLED_FOR (int m = 0; m < MT; m++)
            UNROLLED_FOR (int e = 0; e < 4; e++) {
                float p = fast_exp2(scale2 * s[m][n].x[e] - FLASH_LOG2E * (e % 2 ? ln.y : ln.x));
                s[m][n].x[e] = p;
                dp[m][n].x[e] = p * (dp[m][n].x[e] - (e % 2 ? dn.y : dn.x));
            }
    }
    flash_put(dS, row, col, dp, lane);
    flash_weigh(dv, s, dO, lane);
    flash_weigh(dk, dp, Q, lane);
}

/* dq (16 QM, 8 QN) = the rows from `row` on and the columns from `col` on of ds K. dS holds
   ds^T. The product runs over the first `keys` rows of dS and K, a multiple of STEP. */
template <int QM, int QN, int STEP, int D>
__device__ static inline void flash_product_q(FragC (&dq)[QM][QN], Tile<floatX, STEP> dS, int row,
                                              Tile<floatX, D> K, int col, int keys, int lane) {
    /* columns to unroll; fewer where registers get short */
    constexpr int DEEP = D < 128 ? STEP : 16;
    flash_zero(dq);
#pragma unroll 1
    for (int start = 0; start < keys; start += DEEP)
        UNROLLED_FOR (int k = start; k < start + DEEP; k += 16) {
            FragA<floatX> a[QM];
            UNROLLED_FOR (int m = 0; m < QM; m++)
                load_a_transposed(a[m], dS, k, row + 16 * m, lane);
            UNROLLED_FOR (int n = 0; n < QN; n += 2) {
                FragB<floatX> b[2];
                load_b_plain(b, K, k, col + 8 * n, lane);
                UNROLLED_FOR (int m = 0; m < QM; m++) {
                    mma(dq[m][n], a[m], b[0]);
                    mma(dq[m][n + 1], a[m], b[1]);
                }
            }
        }
}

/* Fragments in scratch. The four elements of a fragment are one float4, and a warp's float4 are
   side by side. */
template <int M, int N>
__device__ static inline void flash_take(FragC (&c)[M][N], const float4 *p, int lane) {
    UNROLLED_FOR (int m = 0; m < M; m++)
        UNROLLED_FOR (int n = 0; n < N; n++) {
            float4 x = load_l2(p + 32 * (N * m + n) + lane);
            c[m][n].x[0] = x.x;
            c[m][n].x[1] = x.y;
            c[m][n].x[2] = x.z;
            c[m][n].x[3] = x.w;
        }
}
template <int M, int N>
__device__ static inline void flash_leave(float4 *p, const FragC (&c)[M][N], int lane) {
    UNROLLED_FOR (int m = 0; m < M; m++)
        UNROLLED_FOR (int n = 0; n < N; n++) {
            const float *x = c[m][n].x;
            store_l2(p + 32 * (N * m + n) + lane, make_float4(x[0], x[1], x[2], x[3]));
        }
}

/* Writes dq from row `row` and column `col` on to at most `rows` rows of HS elements at p, ld
   apart. */
template <int M, int N>
__device__ static inline void flash_write_q(floatX *p, size_t ld, int rows, int row, int col,
                                            const FragC (&dq)[M][N], int lane,
                                            const FlashShape &f) {
    UNROLLED_FOR (int m = 0; m < M; m++)
        UNROLLED_FOR (int half = 0; half < 4; half += 2) {
            int r = row + 16 * m + frag_row(half, lane);
            if (r >= rows) continue;
            UNROLLED_FOR (int n = 0; n < N; n++) {
                int c = col + 8 * n + frag_col(0, lane);
                floatX *to = p + r * ld + c;
                const float *x = dq[m][n].x + half;
                if (f.wide && c < f.HS) store_pair(to, x[0], x[1]);
                if (!f.wide && c < f.HS) to[0] = from_float<floatX>(x[0]);
                if (!f.wide && c + 1 < f.HS) to[1] = from_float<floatX>(x[1]);
            }
        }
}

/* The warp's share of what the keys of a block add to dq of STEP queries, whose ds^T is in dS.
   The first block stores its share in `sum`, later blocks add theirs, the last block writes
   `rows` rows at p. No query sees the block's keys from `keys` on. */
template <int D, int STEP>
__device__ static inline void flash_backward_q(floatX *p, int rows, float4 *sum,
                                               Tile<floatX, STEP> dS, Tile<floatX, D> K, int keys,
                                               int first, int last, const FlashShape &f) {
    using F = FlashBackward<D>;
    int thread = fresh_thread(), lane = thread % 32, warp = thread / 32;
    int row = warp / F::ACROSS * 16 * F::QM, col = warp % F::ACROSS * 8 * F::QN;
    FragC dq[F::QM][F::QN], previous[F::QM][F::QN];
    sum += warp * 32 * F::QM * F::QN;
    flash_zero(previous);
    if (!first) flash_take(previous, sum, lane); /* arrives during the product */
    flash_product_q(dq, dS, row, K, col, keys < F::ROWS ? keys : F::ROWS, lane);
    UNROLLED_FOR (int m = 0; m < F::QM; m++)
        UNROLLED_FOR (int n = 0; n < F::QN; n++)
            UNROLLED_FOR (int e = 0; e < 4; e++) dq[m][n].x[e] += previous[m][n].x[e];
    if (!last) {
        flash_leave(sum, dq, lane);
        return;
    }
    flash_scale(dq, f.scale);
    flash_write_q(p, f.C3, rows, row, col, dq, lane, f);
}

/* All gradients. `sums` has f.kept chunks of (STEP, D) of dq for each query head of each
   sequence. `ticket` is what the next block draws; behind it are counts: the steps that each
   tile of each key head, except the last, has done. */
template <int D>
__global__ static void __launch_bounds__(FLASH_THREADS)
    flash_backward_kernel(floatX *dqkv, const floatX *dout, const floatX *qkv, const floatM *lse,
                          const float *dots, float4 *sums, int *ticket, FlashShape f) {
    using F = FlashBackward<D>;
    constexpr int MT = F::MT, ROWS = F::ROWS, STEP = F::STEP, PART = F::PART;
    SHARED(floatX, shared);
    Tile<floatX, D> K = {shared}, V = {shared + ROWS * D};
    Tile<floatX, STEP> dS = {shared + F::STAY + F::STAGES * F::PAIR};
    float *stats =
        (float *)(void *)(dS.p + F::DS); /* lse and D of a step's queries, for each stage */
    int head, tile, T = f.T, *drawn = (int *)(void *)dS.p;
    if (threadIdx.x == 0) *drawn = atomicAdd(ticket, 1);
    __syncthreads();
    flash_place(&head, &tile, *drawn, f);
    int b = head / f.NKV, g = head % f.NKV;
    int j0 = tile * ROWS, *done = ticket + 1 + head * (f.tiles - 1) + tile;
    int steps =
        f.group * (f.chunks - j0 / STEP); /* in the last ROWS / STEP chunks this tile is the last */
    size_t k = ((size_t)b * T + j0) * f.C3 + (size_t)(f.NH + g) * f.HS,
           v = k + (size_t)f.NKV * f.HS;
    FragC dk[MT][F::DT], dv[MT][F::DT];
    flash_zero(dk);
    flash_zero(dv);

    /* loads the rows of step n into its stage */
    auto bring = [&](int n) {
        int h = g * f.group + n % f.group, i0 = (f.chunks - 1 - n / f.group) * STEP,
            stage = n % F::STAGES;
        int thread = fresh_thread();
        Tile<floatX, D> Q = {shared + F::STAY + stage * F::PAIR}, dO = {Q.p + F::PAIR / 2};
        flash_load<STEP>(Q, qkv + ((size_t)b * T + i0) * f.C3 + (size_t)h * f.HS, f.C3, T - i0, f,
                         thread);
        flash_load<STEP>(dO, dout + ((size_t)b * T + i0) * f.C + (size_t)h * f.HS, f.C, T - i0, f,
                         thread);
        int r = thread % STEP;
        if (thread < 2 * STEP) {
            const float *from = (thread < STEP ? lse : dots) + ((size_t)b * f.NH + h) * T + i0 + r;
            float *to = stats + stage * 2 * STEP + thread;
            if (r < T - i0) cp_async<4>(to, from);
            else *to = 0;
        }
        cp_async_commit();
    };
    flash_load<ROWS>(K, qkv + k, f.C3, T - j0, f);
    flash_load<ROWS>(V, qkv + v, f.C3, T - j0, f);
    bring(0);
    int seen = 0; /* steps of the tile before this one that thread 0 knows to be done */
    for (int n = 0; n < steps; n++) {
        cp_async_wait<0>();
        /* The rows of this step have arrived, those of the last step are free, its dq is
           written. */
        __syncthreads();
        if (n > 0 && n <= steps - f.group * (ROWS / STEP) && fresh_thread() == FLASH_THREADS - 32)
            publish_count(done, n);
        if (F::STAGES > 1 && n + 1 < steps) bring(n + 1);
        int chunk = f.chunks - 1 - n / f.group, i0 = chunk * STEP;
        Tile<floatX, D> Q = {shared + F::STAY + n % F::STAGES * F::PAIR}, dO = {Q.p + F::PAIR / 2};
        const float *stat = stats + n % F::STAGES * 2 * STEP;
#pragma unroll 1
        for (int part = 0; part < STEP; part += PART) {
            Tile<floatX, D> Qp = {Q.p + part * D}, dOp = {dO.p + part * D};
            flash_backward_part<MT, F::NT>(dk, dv, dS, part, K, V, Qp, dOp, stat + part,
                                           stat + STEP + part, j0, i0 + part, f.scale2);
        }
        int h = g * f.group + n % f.group;
        size_t place =
            chunk < ROWS / STEP ? 0 : ((size_t)b * f.NH + h) * f.kept + chunk - ROWS / STEP;
        if (tile > 0 && seen <= n && fresh_thread() == 0) seen = await_count(done - 1, n + 1);
        /* ds of this step and the sum of the tiles before are there. Q and dO are free. */
        __syncthreads();
        if (F::STAGES == 1 && n + 1 < steps) bring(n + 1);
        flash_backward_q<D>(dqkv + ((size_t)b * T + i0) * f.C3 + (size_t)h * f.HS, T - i0,
                            sums + place * (STEP * D / 4), dS, K, i0 + STEP - j0, tile == 0,
                            i0 < j0 + ROWS, f);
    }
    __syncthreads(); /* no warp reads K any more */
    int row = fresh_thread() / 32 * 16 * MT;
    flash_scale(dk, f.scale);
    flash_store(dqkv + k, f.C3, T - j0, K, row, dk, f);
    flash_store(dqkv + v, f.C3, T - j0, V, row, dv, f);
}

/* ---------------------------------------------------------------------------------------------- */
/* on the host */

/* The shape for a kernel whose blocks keep `rows` rows of one of `heads` heads of a sequence,
   and walk along two matrices of `walked` heads, `step` rows at a time. cm_gpu.flash_cache
   bounds the rows that the blocks of f.wave heads walk along: a third of an H100's L2 cache.
   Beside them the backward pass has sums of dq: as many bytes, or with float half as many. */
static inline FlashShape flash_shape(int rows, int step, int heads, int walked, int B, int T,
                                     int NH, int NKV, int HS, double scale, int wide) {
    size_t bytes = 2 * (size_t)T * (size_t)HS * (size_t)walked * sizeof(floatX) / (size_t)heads + 1;
    size_t fit = cm_gpu.flash_cache / bytes + 1, all = (size_t)B * (size_t)heads;
    int chunks = (int)ceil_div((size_t)T, (size_t)step), own = rows / step;
    return {.T = T,
            .NH = NH,
            .NKV = NKV,
            .HS = HS,
            .group = NH / NKV,
            .heads = (int)all,
            .tiles = (int)ceil_div((size_t)T, (size_t)rows),
            .wave = (int)min_size(fit, all),
            .wide = wide,
            .chunks = chunks,
            .kept = max_int(chunks - own, 0),
            .scale = (float)scale,
            .scale2 = FLASH_LOG2E * (float)scale,
            .C = NH * HS,
            .C3 = (NH + 2 * NKV) * HS};
}

template <int D>
static void flash_forward_width(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH,
                                int NKV, int HS, double scale) {
    using F = FlashForward<D>;
    int wide = wide_rows(qkv, (size_t)HS) && wide_rows(out, (size_t)HS);
    FlashShape f = flash_shape(F::ROWS, F::STEP, NH, NKV, B, T, NH, NKV, HS, scale, wide);
    unsigned blocks = (unsigned)f.heads * (unsigned)f.tiles;
    LAUNCH(flash_forward_kernel<D>, blocks, FLASH_THREADS, F::BYTES, out, lse, qkv, f);
}

static inline void flash_forward(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH,
                                 int NKV, int HS, double scale) {
    if (HS <= 32) flash_forward_width<32>(out, lse, qkv, B, T, NH, NKV, HS, scale);
    else if (HS <= 64) flash_forward_width<64>(out, lse, qkv, B, T, NH, NKV, HS, scale);
    else flash_forward_width<128>(out, lse, qkv, B, T, NH, NKV, HS, scale);
}

/* Offsets and sizes in the scratch of the backward pass; dots are at 0. The first ROWS queries
   have no sums, because only tile 0 contributes to them. */
typedef struct {
    size_t n_counts; /* a ticket, and the steps of each tile of each key head but the last */
    size_t sums, counts, bytes;
} FlashScratch;

template <int D> static FlashScratch flash_scratch(int B, int T, int NH, int NKV) {
    using F = FlashBackward<D>;
    size_t heads = (size_t)B * (size_t)NH, chunks = ceil_div((size_t)T, F::STEP),
           own = F::ROWS / F::STEP;
    size_t kept = heads * (chunks > own ? chunks - own : 0);
    FlashScratch s;
    s.n_counts = 1 + (size_t)B * (size_t)NKV * (ceil_div((size_t)T, F::ROWS) - 1);
    s.sums = (heads * (size_t)T * sizeof(float) + 15) / 16 * 16;
    s.counts = s.sums + kept * F::STEP * D * sizeof(float);
    s.bytes = s.counts + (s.n_counts * sizeof(int) + 15) / 16 * 16;
    return s;
}

/* Bytes of scratch of the backward pass. */
static inline size_t attention_scratch(int B, int T, int NH, int NKV, int HS) {
    if (HS <= 32) return flash_scratch<32>(B, T, NH, NKV).bytes;
    if (HS <= 64) return flash_scratch<64>(B, T, NH, NKV).bytes;
    return flash_scratch<128>(B, T, NH, NKV).bytes;
}

template <int D>
static void flash_backward_width(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                 const floatX *out, const floatM *lse, int B, int T, int NH,
                                 int NKV, int HS, double scale) {
    using F = FlashBackward<D>;
    constexpr int WIDE = Wide<floatX>::N;
    int wide = wide_rows(qkv, (size_t)HS) && wide_rows(dqkv, (size_t)HS) &&
               wide_rows(dout, (size_t)HS) && wide_rows(out, (size_t)HS);
    FlashScratch at = flash_scratch<D>(B, T, NH, NKV);
    char *scratch = (char *)cuda_scratch(at.bytes);
    float *dots = (float *)(void *)scratch;
    float4 *sums = (float4 *)(void *)(scratch + at.sums);
    int *counts = (int *)(void *)(scratch + at.counts);
    size_t rows = (size_t)B * (size_t)T * (size_t)NH;
    auto dots_kernel = wide ? flash_dots_kernel<WIDE> : flash_dots_kernel<1>;
    LAUNCH(dots_kernel, ceil_div(rows, 32), 256, 0, dots, counts, at.n_counts, dout, out, rows, T,
           NH, HS);
    FlashShape f = flash_shape(F::ROWS, F::STEP, NKV, NH, B, T, NH, NKV, HS, scale, wide);
    unsigned blocks = (unsigned)f.heads * (unsigned)f.tiles;
    LAUNCH(flash_backward_kernel<D>, blocks, FLASH_THREADS, F::BYTES, dqkv, dout, qkv, lse, dots,
           sums, counts, f);
}

static inline void flash_backward(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                  const floatX *out, const floatM *lse, int B, int T, int NH,
                                  int NKV, int HS, double scale) {
    if (HS <= 32) flash_backward_width<32>(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
    else if (HS <= 64)
        flash_backward_width<64>(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
    else flash_backward_width<128>(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
}

/* ---------------------------------------------------------------------------------------------- */
/* one position at a time */

enum { DECODE_THREADS = 512, DECODE_TEAMS = DECODE_THREADS / 8 };

/* A block for each head. Eight lanes are a team. A team takes every DECODE_TEAMS-th key, with a
   softmax and a sum of its own; lane c of it has columns c N..., (8 + c) N... of these. At the
   end the sums of the teams are added in order. */
template <int N>
__global__ static void __launch_bounds__(DECODE_THREADS)
    flash_decode_kernel(floatX *out, const floatX *q, const floatX *k_cache, const floatX *v_cache,
                        int t, int NH, int NKV, int HS, float scale) {
    constexpr int LOADS = 16 / N; /* loads of a lane that cover 128 columns */
    BLOCK_SHARED(tops, [DECODE_TEAMS], float);
    BLOCK_SHARED(sums, [DECODE_TEAMS], float);
    BLOCK_SHARED(parts, [DECODE_TEAMS][128], float);
    int h = (int)blockIdx.x, team = (int)threadIdx.x / 8, lane = (int)threadIdx.x % 8;
    size_t ld = (size_t)NKV * HS, at = (size_t)(h / (NH / NKV)) * HS;
    float x[LOADS][N], o[LOADS][N], top = -INFINITY, sum = 0;
    UNROLLED_FOR (int i = 0; i < LOADS; i++) {
        int c = (8 * i + lane) * N;
        UNROLLED_FOR (int e = 0; e < N; e++) x[i][e] = o[i][e] = 0;
        if (c < HS) load<N>(x[i], q + (size_t)h * HS + c);
    }
    for (int first = team / 4 * 4; first <= t;
         first += DECODE_TEAMS) { /* the four teams of a warp step together */
        int j = first + team % 4, valid = j <= t;
        float s = 0, v[LOADS][N];
        UNROLLED_FOR (int i = 0; i < LOADS; i++) {
            int c = (8 * i + lane) * N;
            float k[N];
            if (!valid || c >= HS) continue;
            load<N>(k, k_cache + j * ld + at + c);
            load<N>(v[i], v_cache + j * ld + at + c);
            UNROLLED_FOR (int e = 0; e < N; e++) s += x[i][e] * k[e];
        }
        UNROLLED_FOR (int i = 4; i > 0; i /= 2) s += __shfl_xor_sync(FULL_WARP, s, i);
        if (!valid) continue;
        float max = fmaxf(top, scale * s), factor = fast_exp2(top - max),
              p = fast_exp2(scale * s - max);
        top = max;
        sum = factor * sum + p;
        UNROLLED_FOR (int i = 0; i < LOADS; i++)
            UNROLLED_FOR (int e = 0; e < N; e++)
                if ((8 * i + lane) * N < HS) o[i][e] = factor * o[i][e] + p * v[i][e];
    }
    if (lane == 0) {
        tops[team] = top;
        sums[team] = sum;
    }
    UNROLLED_FOR (int i = 0; i < LOADS; i++)
        UNROLLED_FOR (int e = 0; e < N; e++) parts[team][(8 * i + lane) * N + e] = o[i][e];
    __syncthreads();
    if ((int)threadIdx.x >= HS) return;
    float total = 0, result = 0;
    top = -INFINITY;
    for (int i = 0; i < DECODE_TEAMS; i++) top = fmaxf(top, tops[i]);
    for (int i = 0; i < DECODE_TEAMS; i++) {
        float factor = fast_exp2(tops[i] - top);
        total += factor * sums[i];
        result += factor * parts[i][threadIdx.x];
    }
    out[(size_t)h * HS + threadIdx.x] = from_float<floatX>(result / total);
}

static inline void flash_decode(floatX *out, const floatX *q, const floatX *k_cache,
                                const floatX *v_cache, int t, int NH, int NKV, int HS,
                                double scale) {
    constexpr int WIDE = Wide<floatX>::N;
    float s = FLASH_LOG2E * (float)scale;
    int wide = wide_rows(q, (size_t)HS) && wide_rows(k_cache, (size_t)HS) &&
               wide_rows(v_cache, (size_t)HS);
    unsigned blocks = (unsigned)NH;
    if (wide)
        LAUNCH(flash_decode_kernel<WIDE>, blocks, DECODE_THREADS, 0, out, q, k_cache, v_cache, t,
               NH, NKV, HS, s);
    else
        LAUNCH(flash_decode_kernel<1>, blocks, DECODE_THREADS, 0, out, q, k_cache, v_cache, t, NH,
               NKV, HS, s);
}

/* ---------------------------------------------------------------------------------------------- */

/* Returns 0 if attention can have heads of this width, else -1 and err. */
static inline int attention_supports(int HS, char *err) {
    if (HS > 128)
        return fail(err, "--head-dim %d: attention on a GPU takes head widths up to 128", HS);
    return 0;
}

/* out (B,T,NH*HS) and lse (B,NH,T) from qkv (B,T,(NH+2*NKV)*HS). scale > 0 multiplies q . k. */
static inline void attention_forward(floatX *out, floatM *lse, const floatX *qkv, int B, int T,
                                     int NH, int NKV, int HS, double scale) {
    if (cm_gpu.attention_forward &&
        cm_gpu.attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale) == 0)
        return;
    flash_forward(out, lse, qkv, B, T, NH, NKV, HS, scale);
}

/* Sets all of dqkv (B,T,(NH+2*NKV)*HS). */
static inline void attention_backward(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                      const floatX *out, const floatM *lse, int B, int T, int NH,
                                      int NKV, int HS, double scale) {
    if (cm_gpu.attention_backward &&
        cm_gpu.attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale) == 0)
        return;
    flash_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
}

/* Attention of one new position t, for generation: out (NH*HS) from q (NH*HS) and the caches
   (max_T,NKV*HS), which hold the keys and values of positions 0..t. */
static inline void attention_decode(floatX *out, const floatX *q, const floatX *k_cache,
                                    const floatX *v_cache, int t, int NH, int NKV, int HS,
                                    double scale) {
    flash_decode(out, q, k_cache, v_cache, t, NH, NKV, HS, scale);
}

#endif
