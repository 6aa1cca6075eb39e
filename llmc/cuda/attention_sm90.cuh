/*
Attention for compute capability 9.0 (Hopper), in bf16, for heads of 64 or 128 columns. Contract,
formulas and the order of dq's sums are those of attention.cuh; the products are those of wgmma.cuh.
All other shapes use the kernels of attention.cuh.

A block is two warpgroups. Each keeps 64 of the block's 128 rows as the left side of its products.

    forward   keeps queries, walks along keys:    s = q k^T                         out += p v
    backward  keeps keys, walks along queries:    s^T = k q^T,  dp^T = v dout^T     dv += p^T dout
                                                                                    dk += ds^T q
                                                                                    dq += ds k

Forward, after Shah et al., "FlashAttention-3" (2024): the scores of the next keys, and the product
with the values, are computed during the softmax of the current keys. At D = 64 queries are in
registers and a multiprocessor has two blocks; at D = 128 queries are in shared memory and it has
one. Keys arrive one step ahead of values.

Backward: p and ds go from registers into dv and dk. ds^T goes through shared memory into dq, of
which each warpgroup computes (64,64) from all keys of the block. The contributions to dq are added
up in scratch in the order of the tiles of keys, by tickets and counts as in attention.cuh; each
warpgroup has counts of its own. At D = 64 the scores of the next queries are computed while a
contribution is added; at D = 128 there are no registers left for that.

A trial at start decides on the use of these kernels (attention_choice.cuh).
*/
#ifndef CM_CUDA_ATTENTION_SM90_CUH
#define CM_CUDA_ATTENTION_SM90_CUH

#include "attention.cuh"
#include "wgmma.cuh"

/* Sets *answer to 1 if the device's code was compiled with wgmma. */
__global__ static void hopper_probe(int *answer) { *answer = wgmma_compiled; }

#ifndef CM_FP32

enum { HOPPER_ROWS = 128, HOPPER_THREADS = 2 * WARPGROUP };

/* Sizes for heads of D columns. NT and DT are the fragments side by side in scores and in a sum.
   BLOCKS run on a multiprocessor together. Shared memory is WGMMA_ALIGN bytes larger than its
   matrices, so that these can be aligned. */
template <int D> struct HopperForward {
    static constexpr int STEP = D == 64 ? 64 : 128, BLOCKS = D == 64 ? 2 : 1;
    static constexpr int NT = STEP / 8, DT = D / 8;
    /* Shared memory: the queries, twice STEP keys, twice STEP values. */
    static constexpr int STAY = HOPPER_ROWS * D, HALF = STEP * D;
    static constexpr size_t BYTES = (STAY + 4 * HALF) * sizeof(floatX) + WGMMA_ALIGN;
    static_assert(BLOCKS * (BYTES + 1024) <= 228 << 10,
                  "more shared memory than a multiprocessor has");
};

template <int D> struct HopperBackward {
    static constexpr int STEP = D == 64 ? 128 : 64;
    static constexpr int PART = 64; /* queries that a warpgroup computes scores of at a time */
    static constexpr int NT = PART / 8, DT = D / 8;
    static constexpr int AHEAD = D == 64; /* registers suffice for the next scores beside dq */
    /* Shared memory: keys and values; for two steps a pair of STEP queries and their dout, ds,
       and lse and D. */
    static constexpr int STAGES = 2, STAY = 2 * HOPPER_ROWS * D, PAIR = 2 * STEP * D,
                         DS = HOPPER_ROWS * STEP;
    static constexpr size_t BYTES = (STAY + STAGES * PAIR + 2 * DS) * sizeof(floatX) +
                                    STAGES * 2 * STEP * sizeof(float) + WGMMA_ALIGN;
    static_assert(BYTES <= 227 << 10, "more shared memory than a block can have");
    static_assert(HOPPER_ROWS % STEP == 0 && 2 * STEP <= HOPPER_THREADS &&
                      STEP * D == 64 * HOPPER_ROWS,
                  "sizes do not fit");
};

/* ---------------------------------------------------------------------------------------------- */
/* parts of the kernels */

/* The number of this thread's warpgroup. The shuffle tells the compiler that all lanes have the
   same. */
__device__ static inline int hopper_group(void) {
    return __shfl_sync(FULL_WARP, (int)threadIdx.x / WARPGROUP, 0);
}

/* Loads `rows` rows of D elements, ld apart and aligned to 16 bytes, from p into a matrix of
   ROWS rows; the rest of the matrix becomes 0. */
template <int ROWS, int D>
__device__ static inline void hopper_load(Panels<ROWS, D> matrix, const floatX *p, int ld, int rows,
                                          int thread) {
    constexpr int PIECES = D / 8, AT_ONCE = HOPPER_THREADS / PIECES;
    static_assert(ROWS % AT_ONCE == 0 && AT_ONCE % 8 == 0,
                  "the threads share the rows evenly, by whole patterns");
    int r = thread / PIECES, c = thread % PIECES * 8;
    floatX *to = matrix.at(r, c);
    unsigned own = (unsigned)(r * ld + c);
    UNROLLED_FOR (int i = 0; i < ROWS; i += AT_ONCE) {
        if (r < rows - i) cp_async<16>(to + i * 64, p + (size_t)i * ld + own);
        else *(uint4 *)(void *)(to + i * 64) = make_uint4(0, 0, 0, 0);
    }
}

/* Writes o, the warp's rows of a matrix from `row` on, to at most `rows` rows of D elements at
   p, ld apart. The elements of a 16-byte piece come together in the matrix; no thread reads
   these rows of it any more. */
template <int ROWS, int D>
__device__ static inline void hopper_store(floatX *p, size_t ld, int rows, Panels<ROWS, D> matrix,
                                           int row, const FragC (&o)[1][D / 8]) {
    constexpr int PIECES = D / 8;
    __syncwarp();
    UNROLLED_FOR (int n = 0; n < D / 8; n++)
        UNROLLED_FOR (int e = 0; e < 4; e += 2)
            store_pair(matrix.at(row + frag_row(e), 8 * n + frag_col(e)), o[0][n].x[e],
                       o[0][n].x[e + 1]);
    __syncwarp();
    UNROLLED_FOR (int i = 0; i < 16 * PIECES; i += 32) {
        int r = row + (i + warp_lane()) / PIECES, c = (i + warp_lane()) % PIECES * 8;
        if (r < rows)
            *(uint4 *)(void *)(p + r * ld + c) = *(const uint4 *)(const void *)matrix.at(r, c);
    }
}

/* Makes rows that cp.async has copied visible to all threads and to the tensor cores. */
__device__ static inline void hopper_arrive(void) {
    cp_async_wait<0>();
    wgmma_publish();
    __syncthreads();
}

/* c (64, 8 NT) = X Y^T, of rows of X from `row` on and rows of Y from `from` on. */
template <int NT, int D, int ROWS, int STEP>
__device__ static inline void hopper_scores(FragC (&c)[NT], Panels<ROWS, D> X, int row,
                                            Panels<STEP, D> Y, int from) {
    UNROLLED_FOR (int k = 0; k < D; k += 16)
        wgmma<0, 0>(c, X.along(row, k), Y.along(from, k), k > 0);
}

/* c (64, D) += A Y, of rows of Y from `from` on. */
template <int K, int D, int STEP>
__device__ static inline void hopper_weigh(FragC (&c)[D / 8], const FragA<floatX> (&a)[K],
                                           Panels<STEP, D> Y, int from) {
    UNROLLED_FOR (int k = 0; k < K; k++) wgmma<1>(c, a[k], Y.down(from + 16 * k, 0), 1);
}

template <int NT>
__device__ static inline void hopper_make_a(FragA<floatX> (&a)[NT / 2], const FragC (&c)[NT]) {
    UNROLLED_FOR (int k = 0; k < NT / 2; k++) make_a(a[k], c[2 * k], c[2 * k + 1]);
}

/* ---------------------------------------------------------------------------------------------- */
/* forward */

/* flash_softmax without rescaling o: o has to be multiplied by factor[0] and factor[1] in the
   lane's two rows. */
template <int NT>
__device__ static inline void hopper_softmax(FragC (&s)[NT], float (&top)[2], float (&sum)[2],
                                             float (&factor)[2], float scale) {
    UNROLLED_FOR (int half = 0; half < 2; half++) {
        float max = -INFINITY, part = 0, &t = top[half];
        UNROLLED_FOR (int n = 0; n < NT; n++)
            max = fmaxf(max, fmaxf(s[n].x[2 * half], s[n].x[2 * half + 1]));
        max = scale * quad_max(max);
        factor[half] = 1;
        if (max > t + 8) {
            factor[half] = fast_exp2(t - max);
            t = max;
        }
        UNROLLED_FOR (int n = 0; n < NT; n++)
            UNROLLED_FOR (int e = 2 * half; e < 2 * half + 2; e++) {
                float p = fast_exp2(scale * s[n].x[e] - t);
                s[n].x[e] = p;
                part += p;
            }
        sum[half] = factor[half] * sum[half] + part;
    }
}

template <int DT>
__device__ static inline void hopper_rescale(FragC (&o)[DT], const float (&factor)[2]) {
    if (!__any_sync(FULL_WARP, factor[0] != 1 || factor[1] != 1)) return;
    UNROLLED_FOR (int n = 0; n < DT; n++)
        UNROLLED_FOR (int e = 0; e < 4; e++) o[n].x[e] *= factor[e / 2];
}

template <int D>
__device__ static inline void hopper_forward_block(floatX *out, floatM *lse, const floatX *qkv,
                                                   const FlashShape &f) {
    using F = HopperForward<D>;
    constexpr int STEP = F::STEP;
    SHARED(floatX, memory);
    floatX *shared = wgmma_aligned(memory);
    Panels<HOPPER_ROWS, D> Q = {shared};
    int head, tile, T = f.T, thread = (int)threadIdx.x, group = hopper_group();
    flash_place(&head, &tile, (int)blockIdx.x, f);
    int b = head / f.NH, h = head % f.NH, g = h / f.group;
    int i0 = (f.tiles - 1 - tile) * HOPPER_ROWS, row = thread / 32 * 16, first = i0 + row;
    int steps = ((T < i0 + HOPPER_ROWS ? T : i0 + HOPPER_ROWS) + STEP - 1) / STEP;
    int seen = (i0 + 64 * group + 63) / STEP + 1;
    int own = seen < steps ? seen : steps; /* steps with keys that this warpgroup's queries see */
    const floatX *k = qkv + (size_t)b * T * f.C3 + (size_t)(f.NH + g) * f.HS,
                 *v = k + (size_t)f.NKV * f.HS;
    FragC o[1][F::DT], s[1][F::NT];
    FragA<floatX> q[D == 64 ? D / 16 : 1], p[F::NT / 2];
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, factor[2];

    auto keys = [&](int n) { return Panels<STEP, D>{shared + F::STAY + (n & 1) * F::HALF}; };
    auto values = [&](int n) {
        return Panels<STEP, D>{shared + F::STAY + (2 + (n & 1)) * F::HALF};
    };
    /* Begins step n: its values and the next keys have arrived, and the loads of the following
       ones start. */
    auto turn = [&](int n) {
        hopper_arrive();
        int j0 = (n + 2) * STEP;
        if (n + 2 < steps) hopper_load(keys(n), k + (size_t)j0 * f.C3, f.C3, T - j0, thread);
        j0 -= STEP;
        if (n + 1 < steps) hopper_load(values(n + 1), v + (size_t)j0 * f.C3, f.C3, T - j0, thread);
        cp_async_commit();
    };
    /* s of step n */
    auto score = [&](int n) {
        wgmma_hold(s[0]);
        wgmma_hold(q);
        wgmma_fence();
        if constexpr (D == 64)
            UNROLLED_FOR (int i = 0; i < D / 16; i++)
                wgmma<0>(s[0], q[i], keys(n).along(0, 16 * i), i > 0);
        else hopper_scores(s[0], Q, 64 * group, keys(n), 0);
        wgmma_commit();
    };
    /* o += p times the values of step n */
    auto weigh = [&](int n) {
        hopper_weigh(o[0], p, values(n), 0);
        wgmma_commit();
    };
    /* s of step n becomes p */
    auto soften = [&](int n) {
        wgmma_hold(s[0]);
        if ((n + 1) * STEP - 1 > first) flash_mask<0>(s, first, n * STEP);
        hopper_softmax(s[0], top, sum, factor, f.scale2);
    };

    hopper_load(Q, qkv + ((size_t)b * T + i0) * f.C3 + (size_t)h * f.HS, f.C3, T - i0, thread);
    hopper_load(keys(0), k, f.C3, T, thread);
    cp_async_commit();
    flash_zero(o);
    turn(-1);
    if constexpr (D == 64)
        UNROLLED_FOR (int i = 0; i < D / 16; i++) load_a(q[i], Tile<floatX, 64>{Q.p}, row, 16 * i);
    score(0);
    wgmma_wait<0>();
    soften(0);
    hopper_make_a(p, s[0]);
#pragma unroll 1
    for (int n = 0; n + 1 < own; n++) {
        turn(n);
        wgmma_hold(o[0]);
        wgmma_hold(p);
        score(n + 1);
        weigh(n);
        wgmma_wait<1>();
        soften(n + 1);
        wgmma_wait<0>();
        wgmma_hold(o[0]);
        wgmma_hold(p);
        hopper_rescale(o[0], factor);
        hopper_make_a(p, s[0]);
    }
    turn(own - 1);
    wgmma_hold(o[0]);
    wgmma_hold(p);
    wgmma_fence();
    weigh(own - 1);
    wgmma_wait<0>();
    wgmma_hold(o[0]);
#pragma unroll 1
    for (int n = own; n < steps; n++) turn(n);
    UNROLLED_FOR (int half = 0; half < 4; half += 2) {
        float total = quad_sum(sum[half / 2]), inverse = 1 / total;
        int i = first + frag_row(half);
        if (i < T && frag_col(0) == 0)
            lse[(size_t)head * T + i] = FLASH_LN2 * (top[half / 2] + log2f(total));
        UNROLLED_FOR (int n = 0; n < F::DT; n++) {
            o[0][n].x[half] *= inverse;
            o[0][n].x[half + 1] *= inverse;
        }
    }
    /* The last read of the queries was before the barrier of turn(own - 1). */
    hopper_store(out + ((size_t)b * T + i0) * f.C + (size_t)h * f.HS, f.C, T - i0, Q, row, o);
}

template <int D>
__global__ static void __launch_bounds__(HOPPER_THREADS, HopperForward<D>::BLOCKS)
    hopper_forward_kernel(floatX *out, floatM *lse, const floatX *qkv, FlashShape f) {
    if constexpr (wgmma_compiled) hopper_forward_block<D>(out, lse, qkv, f);
    else wgmma_publish(); /* which stops the kernel */
}

/* ---------------------------------------------------------------------------------------------- */
/* backward */

/* s becomes p = 2^(scale2 s - log2(e) lse). Rows are keys, columns are queries, whose lse is at
   l. */
template <int NT>
__device__ static inline void hopper_probabilities(FragC (&s)[NT], const float *l, float scale2) {
    UNROLLED_FOR (int n = 0; n < NT; n++) {
        float2 ln = *(const float2 *)(const void *)(l + 8 * n + frag_col(0));
        UNROLLED_FOR (int e = 0; e < 4; e++)
            s[n].x[e] = fast_exp2(scale2 * s[n].x[e] - FLASH_LOG2E * (e % 2 ? ln.y : ln.x));
    }
}

/* dp becomes ds = p (dp - D), with D of the queries at d. ds^T also goes to dS, from row `row`
   and column `col` on. */
template <int NT, int STEP>
__device__ static inline void hopper_differences(FragC (&dp)[NT], const FragC (&p)[NT],
                                                 const float *d, Panels<HOPPER_ROWS, STEP> dS,
                                                 int row, int col) {
    UNROLLED_FOR (int n = 0; n < NT; n++) {
        float2 dn = *(const float2 *)(const void *)(d + 8 * n + frag_col(0));
        UNROLLED_FOR (int e = 0; e < 4; e++)
            dp[n].x[e] = p[n].x[e] * (dp[n].x[e] - (e % 2 ? dn.y : dn.x));
        UNROLLED_FOR (int e = 0; e < 4; e += 2)
            store_pair(dS.at(row + frag_row(e), col + 8 * n + frag_col(e)), dp[n].x[e],
                       dp[n].x[e + 1]);
    }
}

template <int D>
__device__ static inline void
hopper_backward_block(floatX *dqkv, const floatX *dout, const floatX *qkv, const floatM *lse,
                      const float *dots, float4 *sums, int *ticket, const FlashShape &f) {
    using F = HopperBackward<D>;
    constexpr int ROWS = HOPPER_ROWS, STEP = F::STEP, PART = F::PART, NT = F::NT;
    SHARED(floatX, memory);
    floatX *shared = wgmma_aligned(memory);
    Panels<ROWS, D> K = {shared}, V = {shared + ROWS * D};
    floatX *differences = shared + F::STAY + F::STAGES * F::PAIR;
    float *stats =
        (float *)(void *)(differences + 2 * F::DS); /* lse and D of the queries, for each stage */
    int head, tile, T = f.T, *counts = ticket + 1, *drawn = (int *)(void *)differences;
    int thread = (int)threadIdx.x, group = hopper_group(), row = thread / 32 * 16;
    if (thread == 0) *drawn = atomicAdd(ticket, 1);
    __syncthreads();
    flash_place(&head, &tile, *drawn, f);
    int b = head / f.NKV, g = head % f.NKV, j0 = tile * ROWS;
    int steps = f.group * (f.chunks - j0 / STEP);
    size_t k = ((size_t)b * T + j0) * f.C3 + (size_t)(f.NH + g) * f.HS,
           v = k + (size_t)f.NKV * f.HS;
    FragC dk[1][F::DT], dv[1][F::DT], s[1][NT], dp[1][NT], dq[1][8], previous[1][8];
    FragA<floatX> p[NT / 2], ds[NT / 2];
    flash_zero(dk);
    flash_zero(dv);

    auto query_head = [&](int n) { return g * f.group + n % f.group; };
    auto chunk_of = [&](int n) { return f.chunks - 1 - n / f.group; };
    auto queries = [&](int n) {
        return Panels<STEP, D>{shared + F::STAY + n % F::STAGES * F::PAIR};
    };
    auto douts = [&](int n) { return Panels<STEP, D>{queries(n).p + F::PAIR / 2}; };
    /* loads the rows of step n, if there is one, into its stage */
    auto bring = [&](int n) {
        int h = query_head(n), i0 = chunk_of(n) * STEP, own = fresh_thread();
        if (n >= steps) return;
        hopper_load(queries(n), qkv + ((size_t)b * T + i0) * f.C3 + (size_t)h * f.HS, f.C3, T - i0,
                    own);
        hopper_load(douts(n), dout + ((size_t)b * T + i0) * f.C + (size_t)h * f.HS, f.C, T - i0,
                    own);
        int r = own % STEP;
        if (own < 2 * STEP) {
            const float *from = (own < STEP ? lse : dots) + ((size_t)b * f.NH + h) * T + i0 + r;
            float *to = stats + n % F::STAGES * 2 * STEP + own;
            if (r < T - i0) cp_async<4>(to, from);
            else *to = 0;
        }
        cp_async_commit();
    };
    /* s of some queries of step n */
    auto score = [&](int n, int part) {
        wgmma_hold(s[0]);
        wgmma_fence();
        hopper_scores(s[0], K, 64 * group, queries(n), part);
        wgmma_commit();
    };
    /* dp of some queries of step n */
    auto project = [&](int n, int part) {
        wgmma_hold(dp[0]);
        wgmma_fence();
        hopper_scores(dp[0], V, 64 * group, douts(n), part);
        wgmma_commit();
    };
    /* Adds to dv and dk after score and project, by two groups of products that are still in
       flight at the end, and stores ds^T in shared memory. */
    auto differentiate = [&](int n, int part) {
        int i0 = chunk_of(n) * STEP + part;
        const float *stat = stats + n % F::STAGES * 2 * STEP + part;
        wgmma_wait<1>();
        wgmma_hold(s[0]);
        if (i0 < j0 + row + 15) flash_mask<1>(s, j0 + row, i0);
        hopper_probabilities(s[0], stat, f.scale2);
        hopper_make_a(p, s[0]);
        wgmma_hold(p);
        wgmma_fence();
        hopper_weigh(dv[0], p, douts(n), part);
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_hold(dp[0]);
        hopper_differences(dp[0], s[0], stat + STEP,
                           Panels<ROWS, STEP>{differences + n % 2 * F::DS}, row, part);
        hopper_make_a(ds, dp[0]);
        wgmma_hold(ds);
        wgmma_fence();
        hopper_weigh(dk[0], ds, queries(n), part);
        wgmma_commit();
    };
    /* dq (64,64) = ds K: of a warpgroup's 64 queries, or of its 64 columns */
    auto product_q = [&](int n) {
        Panels<ROWS, STEP> dS = {differences + n % 2 * F::DS};
        wgmma_hold(dq[0]);
        wgmma_fence();
        UNROLLED_FOR (int i = 0; i < ROWS; i += 16)
            wgmma<1, 1>(dq[0], dS.down(i, D == 64 ? 64 * group : 0),
                        K.down(i, D == 64 ? 0 : 64 * group), i > 0);
        wgmma_commit();
    };
    /* The place in scratch of the sum of dq that the warpgroup's part of step n belongs to, and
       its count. */
    auto place_of = [&](int n) {
        int chunk = chunk_of(n);
        return chunk < ROWS / STEP
                   ? 0
                   : ((size_t)b * f.NH + query_head(n)) * f.kept + chunk - ROWS / STEP;
    };
    auto sum_of = [&](int n) {
        return sums + place_of(n) * (STEP * D / 4) + fresh_thread() / 32 * 32 * 8;
    };
    auto count_of = [&](int n) { return counts + 2 * place_of(n) + group; };
    /* waits for the contributions of the tiles before this one; all threads see them after the
       next barrier */
    auto await_q = [&](int n) {
        if (tile > 0 && fresh_thread() % WARPGROUP == 0) await_count(count_of(n), tile);
    };
    /* reads the sum so far, which arrives during the product */
    auto take_q = [&](int n) {
        flash_zero(previous);
        if (tile > 0) flash_take(previous, sum_of(n), fresh_thread() % 32);
    };
    /* adds dq to the sum, for the next block; the last contribution completes dq and writes it */
    auto add_q = [&](int n) {
        int lane = fresh_thread() % 32, warp = fresh_thread() / 32, i0 = chunk_of(n) * STEP;
        wgmma_hold(dq[0]);
        UNROLLED_FOR (int i = 0; i < 8; i++)
            UNROLLED_FOR (int e = 0; e < 4; e++) dq[0][i].x[e] += previous[0][i].x[e];
        if (i0 < j0 + ROWS) {
            flash_scale(dq, f.scale);
            flash_write_q(dqkv + ((size_t)b * T + i0) * f.C3 + (size_t)query_head(n) * f.HS, f.C3,
                          T - i0, D == 64 ? 16 * warp : 16 * (warp % 4), D == 64 ? 0 : 64 * group,
                          dq, lane, f);
        } else {
            flash_leave(sum_of(n), dq, lane);
            warpgroup_barrier(group);
            if (fresh_thread() % WARPGROUP == WARPGROUP - 32) publish_count(count_of(n), tile + 1);
        }
    };

    hopper_load(K, qkv + k, f.C3, T - j0, thread);
    hopper_load(V, qkv + v, f.C3, T - j0, thread);
    bring(0);
    bring(1);
    hopper_arrive();
    score(0, 0);
    project(0, 0);
#pragma unroll 1
    for (int n = 0;; n++) {
        differentiate(n, 0);
        if constexpr (STEP > PART) {
            score(n, PART);
            project(n, PART);
            differentiate(n, PART);
        }
        await_q(n);
        cp_async_wait<0>();
        wgmma_publish();
        wgmma_wait<0>();
        /* After this barrier ds of this step, the rows of the next step and the sum of the tiles
           before are there. The rows of this step and ds of the step before have been read, so
           their places are free. */
        __syncthreads();
        bring(n + 2);
        take_q(n);
        if (n + 1 == steps) break;
        product_q(n);
        if constexpr (F::AHEAD) {
            score(n + 1, 0);
            wgmma_wait<1>();
            add_q(n);
        } else {
            wgmma_wait<0>();
            add_q(n);
            score(n + 1, 0);
        }
        project(n + 1, 0);
    }
    product_q(steps - 1);
    wgmma_wait<0>();
    add_q(steps - 1);
    wgmma_hold(dk[0]);
    wgmma_hold(dv[0]);
    __syncthreads(); /* the other warpgroup no longer reads K */
    flash_scale(dk, f.scale);
    row = fresh_thread() / 32 * 16;
    hopper_store(dqkv + k, f.C3, T - j0, K, row, dk);
    hopper_store(dqkv + v, f.C3, T - j0, V, row, dv);
}

/* All gradients, with the arguments of flash_backward_kernel. */
template <int D>
__global__ static void __launch_bounds__(HOPPER_THREADS, 1)
    hopper_backward_kernel(floatX *dqkv, const floatX *dout, const floatX *qkv, const floatM *lse,
                           const float *dots, float4 *sums, int *ticket, FlashShape f) {
    if constexpr (wgmma_compiled)
        hopper_backward_block<D>(dqkv, dout, qkv, lse, dots, sums, ticket, f);
    else wgmma_publish(); /* which stops the kernel */
}

/* ---------------------------------------------------------------------------------------------- */
/* on the host */

template <int D>
static void hopper_forward_width(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH,
                                 int NKV, double scale) {
    using F = HopperForward<D>;
    FlashShape f = flash_shape(HOPPER_ROWS, F::STEP, NH, NKV, B, T, NH, NKV, D, scale, 1);
    unsigned blocks = (unsigned)f.heads * (unsigned)f.tiles;
    LAUNCH(hopper_forward_kernel<D>, blocks, HOPPER_THREADS, F::BYTES, out, lse, qkv, f);
}

template <int D> static FlashScratch hopper_scratch_width(int B, int T, int NH) {
    using F = HopperBackward<D>;
    size_t heads = (size_t)B * (size_t)NH, chunks = ceil_div((size_t)T, F::STEP),
           own = HOPPER_ROWS / F::STEP;
    size_t kept = heads * (chunks > own ? chunks - own : 0);
    FlashScratch s;
    s.n_counts = 1 + 2 * kept; /* each warpgroup has its own counts */
    s.sums = (heads * (size_t)T * sizeof(float) + 15) / 16 * 16;
    s.counts = s.sums + kept * F::STEP * D * sizeof(float);
    s.bytes = s.counts + (s.n_counts * sizeof(int) + 15) / 16 * 16;
    return s;
}

template <int D>
static void hopper_backward_width(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                  const floatX *out, const floatM *lse, int B, int T, int NH,
                                  int NKV, double scale) {
    using F = HopperBackward<D>;
    FlashScratch at = hopper_scratch_width<D>(B, T, NH);
    char *scratch = (char *)cuda_scratch(at.bytes);
    float *dots = (float *)(void *)scratch;
    float4 *sums = (float4 *)(void *)(scratch + at.sums);
    int *counts = (int *)(void *)(scratch + at.counts);
    size_t rows = (size_t)B * (size_t)T * (size_t)NH;
    LAUNCH(flash_dots_kernel<Wide<floatX>::N>, ceil_div(rows, 32), 256, 0, dots, counts,
           at.n_counts, dout, out, rows, T, NH, D);
    FlashShape f = flash_shape(HOPPER_ROWS, F::STEP, NKV, NH, B, T, NH, NKV, D, scale, 1);
    unsigned blocks = (unsigned)f.heads * (unsigned)f.tiles;
    LAUNCH(hopper_backward_kernel<D>, blocks, HOPPER_THREADS, F::BYTES, dqkv, dout, qkv, lse, dots,
           sums, counts, f);
}

#endif

/* Bytes of scratch of the backward pass. */
static inline size_t hopper_scratch(int B, int T, int NH, int HS) {
#ifndef CM_FP32
    if (HS == 64) return hopper_scratch_width<64>(B, T, NH).bytes;
    if (HS == 128) return hopper_scratch_width<128>(B, T, NH).bytes;
#endif
    (void)B, (void)T, (void)NH, (void)HS;
    return 0;
}

/* flash_forward and flash_backward by the kernels for Hopper. Return 0; or -1 if rows do not
   begin at multiples of 16 bytes, or for other head widths: then the caller uses the portable
   kernels. */
static inline int hopper_forward(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH,
                                 int NKV, int HS, double scale) {
#ifndef CM_FP32
    int wide = wide_rows(qkv, (size_t)HS) && wide_rows(out, (size_t)HS);
    if (wide && HS == 64) {
        hopper_forward_width<64>(out, lse, qkv, B, T, NH, NKV, scale);
        return 0;
    }
    if (wide && HS == 128) {
        hopper_forward_width<128>(out, lse, qkv, B, T, NH, NKV, scale);
        return 0;
    }
#endif
    (void)out, (void)lse, (void)qkv, (void)B, (void)T, (void)NH, (void)NKV, (void)HS, (void)scale;
    return -1;
}

static inline int hopper_backward(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                  const floatX *out, const floatM *lse, int B, int T, int NH,
                                  int NKV, int HS, double scale) {
#ifndef CM_FP32
    int wide = wide_rows(qkv, (size_t)HS) && wide_rows(dqkv, (size_t)HS) &&
               wide_rows(dout, (size_t)HS) && wide_rows(out, (size_t)HS);
    if (wide && HS == 64) {
        hopper_backward_width<64>(dqkv, dout, qkv, out, lse, B, T, NH, NKV, scale);
        return 0;
    }
    if (wide && HS == 128) {
        hopper_backward_width<128>(dqkv, dout, qkv, out, lse, B, T, NH, NKV, scale);
        return 0;
    }
#endif
    (void)dqkv, (void)dout, (void)qkv, (void)out, (void)lse, (void)B, (void)T, (void)NH, (void)NKV,
        (void)HS;
    (void)scale;
    return -1;
}

/* Whether the device runs code for sm_90a. */
static inline int hopper_device(void) {
    int device = 0, major = 0, minor = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    return major == 9 && minor == 0;
}

/* Returns 0 if device, build and head width allow hopper_forward and hopper_backward, else -1
   and `why`. */
static inline int hopper_supports(int HS, char *why, size_t size) {
    int answer = 0, *probe = NULL;
    if (sizeof(floatX) != 2) return refuse(why, size, "it is for bf16");
    if (HS != 64 && HS != 128)
        return refuse(why, size, "it takes head widths of 64 and 128, not %d", HS);
    if (!hopper_device()) return refuse(why, size, "this GPU is not of compute capability 9.0");
    if (cuda_try_malloc((void **)&probe, sizeof *probe))
        return refuse(why, size, "there is no GPU memory to try it");
    LAUNCH(hopper_probe, 1, 1, 0, probe);
    CUDA_CHECK(
        cudaMemcpyAsync(&answer, probe, sizeof answer, cudaMemcpyDeviceToHost, cm_gpu.stream));
    CUDA_CHECK(cudaStreamSynchronize(cm_gpu.stream));
    CUDA_CHECK(cudaFree(probe));
    if (!answer) return refuse(why, size, "this program was not compiled for sm_90a");
    return 0;
}

#endif
