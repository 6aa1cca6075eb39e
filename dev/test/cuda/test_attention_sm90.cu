/*
Tests of llmc/cuda/wgmma.cuh and attention_sm90.cuh: the products of a warpgroup element by element,
for every kind of operand and every place in the swizzle's pattern; then attention by these kernels
against the CPU twin and against the portable kernels, over shapes around the edges of tiles. Runs
on the emulator and on GPUs of compute capability 9.0. On other GPUs it prints that it is skipped.
Tolerances are those of test_attention.cu.
*/
#include "../../../llmc/cuda/attention_choice.cuh"
#include "attention_cases.h"

#ifndef CM_FP32

/* ---------------------------------------------------------------------------------------------- */
/* Products of a warpgroup */

enum { TEST_ROWS = 144, TEST_COLS = 128, TEST_SIZE = TEST_ROWS * TEST_COLS };
enum { IN_REGISTERS = 2 }; /* value of TRANS_A: the left side is in registers */

/* out (2,64,8 NT) = sums over two times 16 k of A B, for each of two warpgroups. A is at row ra
   and column ca of x, B at row rb and column cb of y (TEST_ROWS,TEST_COLS), untransposed or
   (TRANS) transposed. The A of the second warpgroup and the second 16 k follow the first. */
template <int TRANS_A, int TRANS_B, int NT>
__global__ static void group_products(float *out, const __nv_bfloat16 *x, const __nv_bfloat16 *y,
                                      int ra, int ca, int rb, int cb) {
    SHARED(__nv_bfloat16, memory);
    Panels<TEST_ROWS, TEST_COLS> X = {wgmma_aligned(memory)}, Y = {X.p + TEST_SIZE};
    int thread = (int)threadIdx.x, group = thread / WARPGROUP, warp = thread % WARPGROUP / 32;
    for (int i = thread; i < TEST_SIZE; i += 2 * WARPGROUP) {
        *X.at(i / TEST_COLS, i % TEST_COLS) = x[i];
        *Y.at(i / TEST_COLS, i % TEST_COLS) = y[i];
    }
    wgmma_publish();
    __syncthreads();
    if (TRANS_A == 1) ca += 64 * group;
    else ra += 64 * group;
    FragC c[NT];
    FragA<__nv_bfloat16> a[2];
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 4; i++) {
            int r = ra + 16 * warp + warp_lane() / 4 + i % 2 * 8,
                col = ca + 16 * k + warp_lane() % 4 * 2 + i / 2 * 8;
            const unsigned short *bits =
                (const unsigned short *)(const void *)x + r * TEST_COLS + col;
            a[k].x[i] = TRANS_A == IN_REGISTERS ? bits[0] | (unsigned)bits[1] << 16 : 0;
        }
    wgmma_hold(a);
    wgmma_fence();
    UNROLLED_FOR (int k = 0; k < 2; k++) {
        uint64_t right = TRANS_B ? Y.down(rb + 16 * k, cb) : Y.along(rb, cb + 16 * k);
        if constexpr (TRANS_A == IN_REGISTERS) wgmma<TRANS_B>(c, a[k], right, k > 0);
        else
            wgmma<TRANS_A, TRANS_B>(c, TRANS_A ? X.down(ra + 16 * k, ca) : X.along(ra, ca + 16 * k),
                                    right, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(c);
    for (int n = 0; n < NT; n++)
        for (int e = 0; e < 4; e++)
            out[(64 * group + 16 * warp + frag_row(e)) * 8 * NT + 8 * n + frag_col(e)] = c[n].x[e];
}

template <int TRANS_A, int TRANS_B, int NT>
static void test_product(const float *x, const float *y, const __nv_bfloat16 *dx,
                         const __nv_bfloat16 *dy, int ra, int ca, int rb, int cb) {
    enum { N = 8 * NT, TRANSPOSED = TRANS_A == 1 };
    int wrong = 0;
    float *out = device_array<float>(2 * 64 * N);
    LAUNCH((group_products<TRANS_A, TRANS_B, NT>), 1, 2 * WARPGROUP,
           2 * TEST_SIZE * sizeof *dx + WGMMA_ALIGN, out, dx, dy, ra, ca, rb, cb);
    float *z = on_host(out, 2 * 64 * N);
    for (int m = 0; m < 128; m++)
        for (int n = 0; n < N; n++) {
            float sum = 0;
            for (int k = 0; k < 32; k++) {
                float a = TRANSPOSED ? x[(ra + k) * TEST_COLS + ca + m]
                                     : x[(ra + m) * TEST_COLS + ca + k];
                sum += a * (TRANS_B ? y[(rb + k) * TEST_COLS + cb + n]
                                    : y[(rb + n) * TEST_COLS + cb + k]);
            }
            wrong += z[m * N + n] != sum;
        }
    check(!wrong,
          "left side %s at (%d,%d), right side %s at (%d,%d), %d columns: %d elements are wrong",
          TRANS_A == IN_REGISTERS ? "in registers"
          : TRANS_A               ? "MN-major"
                                  : "K-major",
          ra, ca, TRANS_B ? "MN-major" : "K-major", rb, cb, N, wrong);
}

/* One kind of operands, at every row that is a multiple of 8, every column that is a multiple of
   16, and every panel. Small integers: all sums are exact. */
template <int TRANS_A, int TRANS_B, int NT> static void test_kind(void) {
    for (int place = 0; place < 4; place++) {
        float *x = host_array(TEST_SIZE), *y = host_array(TEST_SIZE);
        for (int i = 0; i < TEST_SIZE; i++) {
            x[i] = (float)floor(4 * draw());
            y[i] = (float)floor(4 * draw());
        }
        __nv_bfloat16 *dx = on_device<__nv_bfloat16>(x, TEST_SIZE),
                      *dy = on_device<__nv_bfloat16>(y, TEST_SIZE);
        /* transposed: any multiple of 8 rows, the first column of a panel */
        int ra = TRANS_A == 1 ? 40 * place % 112 : 8 * (place % 3);
        int ca = TRANS_A == 1 ? 0 : place * 32 - place % 2 * 16;
        int rb = TRANS_B ? 24 * place : NT == 16 ? 8 * (place % 3) : 24 * place;
        int cb = TRANS_B ? (NT == 8 ? 64 * (place % 2) : 0) : 96 - place * 32 + place % 2 * 16;
        test_product<TRANS_A, TRANS_B, NT>(x, y, dx, dy, ra, ca, rb, cb);
        release();
    }
}

template <int NT> static void test_kinds(void) {
    test_kind<0, 0, NT>();
    test_kind<0, 1, NT>();
    test_kind<1, 0, NT>();
    test_kind<1, 1, NT>();
    test_kind<IN_REGISTERS, 0, NT>();
    test_kind<IN_REGISTERS, 1, NT>();
}

/* Each warpgroup has its own barrier. One warpgroup passes it three times, the other once. Each
   thread reads what another thread of its warpgroup has written. */
__global__ static void group_meetings(int *out) {
    SHARED(int, room);
    int thread = (int)threadIdx.x, group = thread / WARPGROUP, sum = thread,
        *own = room + group * WARPGROUP;
    for (int i = 0; i < (group ? 1 : 3); i++) {
        own[thread % WARPGROUP] = sum;
        warpgroup_barrier(group);
        sum += own[(thread + 33) % WARPGROUP];
        warpgroup_barrier(group); /* before the next write */
    }
    out[thread] = sum;
}
static void test_meetings(void) {
    int *out = device_array<int>(2 * WARPGROUP), wrong = 0, x[2 * WARPGROUP], y[2 * WARPGROUP];
    LAUNCH(group_meetings, 1, 2 * WARPGROUP, 2 * WARPGROUP * sizeof(int), out);
    float *got = on_host(out, 2 * WARPGROUP);
    for (int i = 0; i < 2 * WARPGROUP; i++) x[i] = i;
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < 2 * WARPGROUP; i++)
            y[i] =
                x[i] +
                (turn && i >= WARPGROUP ? 0 : x[i / WARPGROUP * WARPGROUP + (i + 33) % WARPGROUP]);
        memcpy(x, y, sizeof x);
    }
    for (int i = 0; i < 2 * WARPGROUP; i++) wrong += (int)got[i] != x[i];
    check(!wrong, "%d threads of warpgroups have not met", wrong);
    release();
}

#ifdef CM_EMU
/* The emulator delivers the result of a product only after the wait. */
__global__ static void early_reader(float *early, float *late) {
    SHARED(__nv_bfloat16, memory);
    Panels<64, 64> X = {wgmma_aligned(memory)};
    for (int i = (int)threadIdx.x; i < 64 * 64; i += WARPGROUP)
        *X.at(i / 64, i % 64) = from_float<__nv_bfloat16>(1);
    wgmma_publish();
    __syncthreads();
    FragC c[8];
    wgmma_fence();
    wgmma<0, 0>(c, X.along(0, 0), X.along(0, 0), 0);
    wgmma_commit();
    early[threadIdx.x] = c[0].x[0];
    wgmma_wait<0>();
    late[threadIdx.x] = c[0].x[0];
}
static void test_early(void) {
    float *early = device_array<float>(WARPGROUP), *late = device_array<float>(WARPGROUP);
    LAUNCH(early_reader, 1, WARPGROUP, 64 * 64 * 2 + WGMMA_ALIGN, early, late);
    float *x = on_host(early, WARPGROUP), *y = on_host(late, WARPGROUP);
    int wrong = 0;
    for (int i = 0; i < WARPGROUP; i++) wrong += !isnan(x[i]) || y[i] != 16;
    check(!wrong, "%d products are there before they are waited for, or not after", wrong);
    release();
}
#endif

/* ---------------------------------------------------------------------------------------------- */
/* Attention */

/* How often the portable kernels were called instead. */
static int declined;
static int forward_here(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH, int NKV,
                        int HS, double scale) {
    int status = hopper_forward(out, lse, qkv, B, T, NH, NKV, HS, scale);
    declined += status != 0;
    return status;
}
static int backward_here(floatX *dqkv, const floatX *dout, const floatX *qkv, const floatX *out,
                         const floatM *lse, int B, int T, int NH, int NKV, int HS, double scale) {
    int status = hopper_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
    declined += status != 0;
    return status;
}
static void use_hopper(int yes) {
    cm_gpu.attention_forward = yes ? forward_here : NULL;
    cm_gpu.attention_backward = yes ? backward_here : NULL;
}

static void test_hopper_case(const Case *c, int may_decline) {
    declined = 0;
    test_case(c);
    check((declined > 0) == may_decline, "T %d, heads of %d: %d calls are declined", c->T, c->HS,
          declined);
}

static void test_cases(void) {
    static const Case cases[] = {
        {1, 1, 1, 1, 64, 0.125, 1, 0},     {1, 1, 2, 2, 128, 0.0883, 1, 0},
        {2, 7, 4, 2, 64, 0.125, 2, 0},     {1, 130, 4, 2, 64, 0.12, 2, 0},
        {1, 200, 2, 1, 128, 0.0883, 2, 0}, {1, 129, 1, 1, 64, 0.125, 30, 0},
        {1, 130, 1, 1, 64, 1, 8, 0},       {2, 150, 3, 1, 64, 0.125, 2, 0},
        {1, 300, 2, 2, 128, 0.0883, 2, 0}, {1, 390, 2, 1, 64, 0.125, 1.5, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) test_hopper_case(&cases[i], 0);
}

/* Lengths around the sizes of tiles and steps, groups of all sizes. */
static void test_lengths(void) {
    static const int lengths[] = {15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 193, 255, 256, 257};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        for (int HS = 64; HS <= 128; HS += 64) {
            int T = lengths[i], group = 1 + (int)i % 3, keys = T < 100 ? 2 : 1;
            int heads = T < 200 ? group * keys : 1;
            const Case c = {T < 100 ? 2 : 1, T,   heads, T < 200 ? keys : 1, HS,
                            1 / sqrt(HS),    1.5, 0};
            test_hopper_case(&c, 0);
        }
}

/* Shapes that these kernels refuse. */
static void test_declined(void) {
    static const Case cases[] = {{1, 33, 1, 1, 64, 0.125, 2, 1},
                                 {1, 33, 2, 1, 32, 0.18, 2, 0},
                                 {1, 33, 1, 1, 120, 0.1, 2, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) test_hopper_case(&cases[i], 1);
}

/* Against the portable kernels. Each backward pass reads its own lse and out. */
static void test_beside_portable(const Case c) {
    size_t N = rows(&c), W = width(&c), C = (size_t)c.NH * (size_t)c.HS,
           KV = (size_t)c.NKV * (size_t)c.HS;
    floatX *qkv = on_device<floatX>(make_qkv(&c), N * W),
           *dout = on_device<floatX>(random_array(N * C, 1), N * C);
    float *out[2], *lse[2], *dqkv[2];
    for (int hopper = 0; hopper < 2; hopper++) {
        floatX *o = device_array<floatX>(N * C), *d = device_array<floatX>(N * W);
        floatM *l = device_array<floatM>(N * (size_t)c.NH);
        use_hopper(hopper);
        forward(o, l, qkv, &c);
        backward(d, dout, qkv, o, l, &c);
        out[hopper] = on_host(o, N * C);
        lse[hopper] = on_host(l, N * (size_t)c.NH);
        dqkv[hopper] = on_host(d, N * W);
    }
    double allowed = 2 * tolerance(&c);
    like(&c, "out beside the portable one", out[1], out[0], N, C, 0, C, allowed);
    like(&c, "lse beside the portable one", lse[1], lse[0], N * (size_t)c.NH, 1, 0, 1, 1e-6);
    like(&c, "dq beside the portable one", dqkv[1], dqkv[0], N, W, 0, C, allowed);
    like(&c, "dk beside the portable one", dqkv[1], dqkv[0], N, W, C, C + KV, allowed);
    like(&c, "dv beside the portable one", dqkv[1], dqkv[0], N, W, C + KV, W, allowed);
    release();
}

/* Results do not depend on the order of the blocks. */
static void test_order(const Case c) {
    size_t N = rows(&c), W = width(&c), C = (size_t)c.NH * (size_t)c.HS, cache = cm_gpu.flash_cache;
    floatX *qkv = on_device<floatX>(make_qkv(&c), N * W),
           *dout = on_device<floatX>(random_array(N * C, 1), N * C);
    floatX *out[2], *dqkv[2];
    for (int i = 0; i < 2; i++) { /* one head at a time, all heads */
        floatM *lse = device_array<floatM>(N * (size_t)c.NH);
        out[i] = device_array<floatX>(N * C);
        dqkv[i] = device_array<floatX>(N * W);
        cm_gpu.flash_cache = i ? cache : 1;
        forward(out[i], lse, qkv, &c);
        backward(dqkv[i], dout, qkv, out[i], lse, &c);
    }
    cm_gpu.flash_cache = cache;
    check(same_bits(out[0], out[1], N * C), "out depends on the order of heads");
    check(same_bits(dqkv[0], dqkv[1], N * W), "dqkv depends on the order of heads");
    check(!count_nan(out[0], N * C) && !count_nan(dqkv[0], N * W), "some heads are left out");
    release();
}

/* Later tokens change no bit of earlier outputs. */
static void test_causality(const Case c, int t) {
    size_t N = rows(&c), W = width(&c), C = (size_t)c.NH * (size_t)c.HS, before = (size_t)t * C;
    float *x = make_qkv(&c);
    floatX *qkv = on_device<floatX>(x, N * W);
    floatX *out = device_array<floatX>(N * C), *out2 = device_array<floatX>(N * C);
    floatM *lse = device_array<floatM>(N * (size_t)c.NH);
    forward(out, lse, qkv, &c);
    for (size_t i = (size_t)t * W; i < N * W; i++) x[i] = (float)(20 * draw());
    put(qkv, x, N * W);
    forward(out2, lse, qkv, &c);
    check(same_bits(out2, out, before), "heads of %d: out before token %d changes with it", c.HS,
          t);
    check(!same_bits(out2 + before, out + before, C),
          "heads of %d: out of token %d does not change", c.HS, t);
    release();
}

/* hopper_scratch returns exactly the scratch that is used. Its initial contents do not matter. */
static void test_scratch(const Case c) {
    size_t N = rows(&c), W = width(&c), C = (size_t)c.NH * (size_t)c.HS;
    size_t used = hopper_scratch(c.B, c.T, c.NH, c.HS);
    floatX *qkv = on_device<floatX>(make_qkv(&c), N * W);
    floatX *out = device_array<floatX>(N * C), *dqkv = device_array<floatX>(N * W),
           *first = device_array<floatX>(N * W);
    floatM *lse = device_array<floatM>(N * (size_t)c.NH);
    check(!cuda_scratch_reserve(cm_gpu.scratch_bytes + used + SPARE), "no scratch");
    size_t bytes = cm_gpu.scratch_bytes;
    unsigned char *scratch = (unsigned char *)cm_gpu.scratch;
    forward(out, lse, qkv, &c);
    for (int fill = 0; fill < 2; fill++) { /* NaN; the contents after the last call */
        if (!fill) MUST(cudaMemsetAsync(scratch, 0xff, bytes, cm_gpu.stream));
        backward(fill ? dqkv : first, out, qkv, out, lse, &c);
        check(cm_gpu.scratch_bytes == bytes, "T %d: scratch has grown", c.T);
        if (!fill)
            check(untouched(scratch + used, bytes - used), "T %d: more scratch is used", c.T);
        if (!fill) check(!untouched(scratch + used - 16, 16), "T %d: less scratch is used", c.T);
        else
            check(same_bits(dqkv, first, N * W), "T %d: gradients depend on what scratch holds",
                  c.T);
    }
    check(!count_nan(first, N * W), "T %d: NaN from scratch", c.T);
    release();
}

/* After a backward pass the counts of both warpgroups' parts of dq are the numbers of tiles that
   contributed. */
template <int D> static void test_counts(const Case c) {
    using F = HopperBackward<D>;
    test_scratch(c);
    FlashScratch at = hopper_scratch_width<D>(c.B, c.T, c.NH);
    float *count =
        on_host((const int *)(const void *)((const char *)cm_gpu.scratch + at.counts), at.n_counts);
    size_t heads = (size_t)(c.B * c.NH), own = HOPPER_ROWS / F::STEP,
           kept = (at.n_counts - 1) / 2 / heads, wrong = 0;
    check(kept == ceil_div((size_t)c.T, F::STEP) - own, "%zu sums of a head", kept);
    wrong += (size_t)count[0] !=
             (size_t)(c.B * c.NKV) * ceil_div((size_t)c.T, HOPPER_ROWS); /* tickets drawn */
    for (size_t i = 0; i < 2 * kept * heads; i++)
        wrong += (size_t)count[1 + i] != (i / 2 % kept + own) * F::STEP / HOPPER_ROWS;
    check(!wrong, "heads of %d: %zu counts are wrong", D, wrong);
    release();
}

/* --attention hopper is tried against the portable kernels and taken, or refused with a reason.
   A difference in one gradient is noticed. Under the emulator nothing is chosen by time. */
static void test_choice(void) {
    AttentionShape s = {2, 130, 4, 2, 64, 0.125};
    AttentionKind kind = ATTENTION_HOPPER;
    char note[256] = "", err[ERR_LEN] = "";
    check(!attention_choose(&kind, &s, note, sizeof note, err), "hopper is refused: %s", err);
    check(cm_gpu.attention_forward == hopper_forward &&
              cm_gpu.attention_backward == hopper_backward,
          "not taken");
    check(!strncmp(note, "hopper", 6) && kind == ATTENTION_HOPPER, "the note is: %s", note);
    s.HS = 32;
    check(attention_choose(&kind, &s, note, sizeof note, err) == -1 &&
              strstr(err, "--attention hopper: ") && strstr(err, "not 32") &&
              strstr(err, "--attention flash"),
          "heads of 32: %s", err);
    check(!cm_gpu.attention_forward && !cm_gpu.attention_backward, "taken all the same");
#ifdef CM_EMU
    s.HS = 64;
    s.T = 1024;
    kind = ATTENTION_AUTO;
    check(!attention_choose(&kind, &s, note, sizeof note, err) && kind == ATTENTION_FLASH,
          "auto: %s", note);
#endif
    AttentionTrial t;
    memset(&t, 0, sizeof t);
    t.B = 1;
    t.T = 2;
    t.NH = t.NKV = 1;
    t.HS = 2;
    /* What differs: nothing, or one of out, lse, dq, dk, dv of token 1. */
    for (int part = 0; part < 6; part++) {
        floatX out[2][4], dqkv[2][12];
        floatM lse[2][2];
        AttentionResult r[2] = {{out[0], dqkv[0], lse[0]}, {out[1], dqkv[1], lse[1]}};
        for (int i = 0; i < 2; i++) {
            for (int k = 0; k < 12; k++) dqkv[i][k] = floatX(1.0f);
            for (int k = 0; k < 4; k++) {
                out[i][k] = floatX(1.0f);
                lse[i][k % 2] = 1;
            }
        }
        if (part == 1) out[1][3] = floatX(1.5f);
        if (part == 2) lse[1][1] = 1.5f;
        if (part > 2) dqkv[1][6 + 2 * (part - 3)] = floatX((float)NAN);
        err[0] = 0;
        int status = trial_agrees(&t, TRIAL_HOPPER, &r[0], &r[1], err, sizeof err);
        check(part ? status == -1 && strstr(err, "hopper's attention differs from ours") : !status,
              "part %d that differs: %s", part, err);
    }
    cuda_scratch_free();
}

static void test_support(void) {
    char why[128] = "";
    check(hopper_supports(72, why, sizeof why) == -1 && strstr(why, "72"), "heads of 72: %s", why);
}

static void test_product_kinds(void) {
    test_kinds<8>();
    test_kinds<16>();
}

static void test_shapes(void) {
    use_hopper(1);
    test_cases();
    test_lengths();
    test_declined();
    use_hopper(0);
}

static void test_orders(void) {
    use_hopper(1);
    test_order({1, 200, 3, 3, 64, 0.125, 2, 0});
    test_order({2, 140, 4, 2, 128, 0.0883, 2, 0});
    use_hopper(0);
}

static void test_causalities(void) {
    use_hopper(1);
    test_causality({1, 200, 1, 1, 64, 0.125, 2, 0}, 140);
    test_causality({1, 200, 2, 1, 128, 0.0883, 2, 0}, 70);
    use_hopper(0);
}

static void test_order_counts(void) {
    use_hopper(1);
    test_counts<64>({2, 257, 3, 1, 64, 0.125, 2, 0});
    test_counts<128>({1, 193, 2, 1, 128, 0.0883, 2, 0});
    use_hopper(0);
}

static void test_portable_and_hopper(void) {
    use_hopper(1);
    test_beside_portable({2, 130, 4, 2, 64, 0.125, 2, 0});
    test_beside_portable({1, 200, 2, 2, 128, 0.0883, 2, 0});
    use_hopper(0);
}

static const Test tests[] = {TEST(support),
                             TEST(product_kinds),
                             TEST(meetings),
#ifdef CM_EMU
                             TEST(early),
#endif
                             TEST(shapes),
                             TEST(orders),
                             TEST(causalities),
                             TEST(order_counts),
                             TEST(portable_and_hopper),
                             TEST(choice)};

int main(int argc, char **argv) {
    /* Without warpgroup products only the first test runs, which tests the refusal. */
    char why[128] = "";
    int hopper = !hopper_supports(64, why, sizeof why) && !hopper_supports(128, why, sizeof why);
    if (!hopper) printf("test_attention_sm90: left out: %s\n", why);
    return check_main(tests, hopper ? COUNT_OF(tests) : 1, argc, argv);
}

#else

static void test_support(void) {
    char why[128];
    check(hopper_supports(64, why, sizeof why) == -1 && strstr(why, "bf16"), "fp32: %s", why);
}

static const Test tests[] = {TEST(support)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }

#endif
