/*
Tests of llmc/cuda/mma.cuh and attention.cuh: the products of a warp element by element, sums that
blocks pass on to other blocks, and attention against its CPU twin, over shapes that take every path
of the kernels. The twin reads numbers rounded like the device's. Runs on a GPU and on the emulator.

Tolerances, relative to the norm of the result. fp32: sums in another order, and p = exp(s - lse),
whose relative error is the absolute error of s, 2e-7 of its size; 5e-6 for the rest, such as ds =
p (dp - D) of a row whose dp and D are nearly equal. bf16: p and ds are rounded to 2^-9 before the
second products, where most roundings average out, and the result is rounded once more, by at most
2^-9 and half of that in the mean: 4e-3 for both. In heads of one element the terms of dq nearly
cancel, since the sum of ds is 0: three times as much.
*/
#include "attention_cases.h"

/* ---------------------------------------------------------------------------------------------- */
/* Products of a warp */

/* out (16,16) = A B with A (16,16) in the tile `left` at (row, col) and B^T in `right` at (row,
   col). next (16,16) = (A B) B with B in `plain`, untransposed. square (16,16) = B B with the
   left B read from its transpose. The tiles (48,D) have rows of D. */
template <typename T, int D>
__global__ static void products(float *out, float *next, float *square, const T *left,
                                const T *right, const T *plain, int row, int col) {
    SHARED(T, shared);
    Tile<T, D> X = {shared}, Y = {shared + 48 * D}, Z = {shared + 96 * D};
    for (int i = (int)threadIdx.x; i < 48 * D; i += 32) {
        *X.at(i / D, i % D) = left[i];
        *Y.at(i / D, i % D) = right[i];
        *Z.at(i / D, i % D) = plain[i];
    }
    __syncthreads();
    FragA<T> a;
    FragB<T> b[2];
    FragC c[2], d[2], s[2];
    for (int i = 0; i < 8; i++) c[i / 4].x[i % 4] = d[i / 4].x[i % 4] = s[i / 4].x[i % 4] = 0;
    load_a(a, X, row, col);
    load_b(b, Y, row, col);
    for (int n = 0; n < 2; n++) mma(c[n], a, b[n]);
    make_a(a, c[0], c[1]);
    load_b_plain(b, Z, row, col);
    for (int n = 0; n < 2; n++) mma(d[n], a, b[n]);
    load_a_transposed(a, Y, row, col);
    for (int n = 0; n < 2; n++) mma(s[n], a, b[n]);
    for (int n = 0; n < 2; n++)
        for (int e = 0; e < 4; e++) {
            out[16 * frag_row(e) + 8 * n + frag_col(e)] = c[n].x[e];
            next[16 * frag_row(e) + 8 * n + frag_col(e)] = d[n].x[e];
            square[16 * frag_row(e) + 8 * n + frag_col(e)] = s[n].x[e];
        }
}

/* Small integers: every sum is exact in any order. */
template <typename T, int D> static void test_products(const char *type) {
    for (int place = 0; place < 3; place++) {
        int row = 16 * place, col = D - 16 * (place + 1) < 0 ? 0 : D - 16 * (place + 1), wrong = 0;
        float *x[3], A[256], B[256], c[256];
        T *t[3];
        for (int i = 0; i < 3; i++) {
            x[i] = host_array(48 * D);
            for (int k = 0; k < 48 * D; k++) x[i][k] = (float)floor(i ? 3 * draw() : 2 * draw());
        }
        for (int i = 0; i < 256; i++) { /* the B in `plain` is the transpose of x[1] */
            A[i] = x[0][(row + i / 16) * D + col + i % 16];
            B[i] = x[1][(row + i % 16) * D + col + i / 16];
            x[2][(row + i / 16) * D + col + i % 16] = B[i];
        }
        for (int i = 0; i < 3; i++) t[i] = on_device<T>(x[i], 48 * D);
        float *out = device_array<float>(256), *next = device_array<float>(256);
        float *square = device_array<float>(256);
        LAUNCH((products<T, D>), 1, 32, 3 * 48 * D * sizeof(T), out, next, square, t[0], t[1], t[2],
               row, col);
        float *y = on_host(out, 256), *z = on_host(next, 256), *w = on_host(square, 256);
        for (int i = 0; i < 256; i++) {
            c[i] = 0;
            for (int k = 0; k < 16; k++) c[i] += A[i / 16 * 16 + k] * B[k * 16 + i % 16];
            wrong += y[i] != c[i];
        }
        check(!wrong, "%s, %d columns, at (%d,%d): %d elements of A B are wrong", type, D, row, col,
              wrong);
        wrong = 0;
        for (int i = 0; i < 256; i++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += c[i / 16 * 16 + k] * B[k * 16 + i % 16];
            wrong += z[i] != sum;
        }
        check(!wrong, "%s, %d columns, at (%d,%d): %d elements of (A B) B are wrong", type, D, row,
              col, wrong);
        wrong = 0;
        for (int i = 0; i < 256; i++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += B[i / 16 * 16 + k] * B[k * 16 + i % 16];
            wrong += w[i] != sum;
        }
        check(!wrong, "%s, %d columns, at (%d,%d): %d elements of B B are wrong", type, D, row, col,
              wrong);
        release();
    }
}

/* Writes the offset of each element in a tile of 16 rows. */
template <typename T, int D> __global__ static void places(int *where) {
    Tile<T, D> tile = {(T *)(void *)(where + 16 * D)}; /* never read */
    for (int i = (int)threadIdx.x; i < 16 * D; i += 32)
        where[i] = (int)(tile.at(i / D, i % D) - tile.p);
}

/* No two elements have one offset, pieces of 16 bytes are contiguous, and equal pieces of 8 rows
   are in 8 different groups of banks. */
template <typename T, int D> static void test_places(void) {
    enum { N = 16 * D, PIECE = 16 / sizeof(T) };
    int *d = device_array<int>(2 * N), taken[N] = {0}, wrong = 0, crowded = 0;
    LAUNCH((places<T, D>), 1, 32, 0, d);
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    int where[N];
    MUST(cudaMemcpyAsync(where, d, sizeof where, cudaMemcpyDeviceToHost, cm_gpu.stream));
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    for (int i = 0; i < N; i++) {
        if (where[i] < 0 || where[i] >= N || taken[where[i]]++) wrong++;
        wrong +=
            where[i] % PIECE != i % PIECE || where[i] / PIECE != where[i / PIECE * PIECE] / PIECE;
    }
    check(!wrong, "%d columns of %zu bytes: %d elements are misplaced", D, sizeof(T), wrong);
    for (int row = 0; row < 16; row += 8)
        for (int c = 0; c < D; c += PIECE) {
            unsigned banks = 0;
            for (int r = row; r < row + 8; r++) banks |= 1u << where[r * D + c] / PIECE % 8;
            crowded += banks != 255;
        }
    check(!crowded, "%d columns of %zu bytes: %d of %d reads have bank conflicts", D, sizeof(T),
          crowded, 2 * D / PIECE);
    release();
}

/* Blocks that pass numbers on, as in attention's backward pass: block n, in the order of the
   tickets, adds n + thread to what the previous block has left in N rows. Each thread has one
   float4 of each row. */
enum { HAND_THREADS = 128 };
__global__ static void hand_over(float4 *rows, int *ticket, int N) {
    SHARED(int, drawn);
    int *counts = ticket + 1, thread = (int)threadIdx.x;
    if (thread == 0) *drawn = atomicAdd(ticket, 1);
    __syncthreads();
    int n = *drawn;
    for (int i = 0; i < N; i++) {
        float add = (float)(n + thread);
        float4 x = make_float4(0, 0, 0, 0),
               *p = rows + i * HAND_THREADS + (thread + 32 * n) % HAND_THREADS;
        if (n > 0 && thread == 0) await_count(counts + i, n);
        __syncthreads();
        if (n > 0) x = load_l2(p); /* reads what another warp of another block has written */
        store_l2(p, make_float4(x.x + add, x.y + 1, x.z + (float)i, x.w + add));
        __syncthreads();
        if (thread == HAND_THREADS - 32) publish_count(counts + i, n + 1);
    }
}

static void test_hand_over(void) {
    enum { BLOCKS = 40, N = 20, ALL = 4 * N * HAND_THREADS };
    for (int launch = 0; launch < 2; launch++) { /* the emulator alternates the order of blocks */
        float *rows = device_array<float>(ALL);
        int *counts = device_array<int>(1 + N), wrong = 0;
        MUST(cudaMemsetAsync(counts, 0, (1 + N) * sizeof *counts, cm_gpu.stream));
        LAUNCH(hand_over, BLOCKS, HAND_THREADS, sizeof(int), (float4 *)(void *)rows, counts, N);
        float *x = on_host(rows, ALL), *count = on_host(counts, 1 + N);
        for (int i = 0; i < ALL; i++) {
            int row = i / 4 / HAND_THREADS, slot = i / 4 % HAND_THREADS, sum = 0;
            for (int n = 0; n < BLOCKS; n++)
                sum += n + (slot + 32 * BLOCKS - 32 * n) % HAND_THREADS;
            wrong += (int)x[i] != (i % 4 == 1 ? BLOCKS : i % 4 == 2 ? BLOCKS * row : sum);
        }
        for (int i = 0; i <= N; i++) wrong += (int)count[i] != BLOCKS;
        check(!wrong, "%d numbers are not handed on", wrong);
    }
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* Attention */

static void test_cases(void) {
    static const Case cases[] = {
        {1, 1, 1, 1, 16, 0.25, 1, 0},    {2, 7, 4, 2, 24, 0.2, 2, 0},
        {1, 64, 2, 2, 64, 0.125, 2, 0},  {1, 65, 4, 1, 16, 0.25, 2, 0},
        {1, 130, 4, 2, 64, 0.12, 2, 0},  {1, 200, 2, 1, 128, 0.0883, 2, 0},
        {2, 65, 2, 2, 80, 0.12, 1, 0},   {3, 7, 8, 2, 1, 1, 3, 0},
        {1, 40, 3, 3, 5, 0.4, 2, 0},     {1, 70, 2, 1, 100, 0.1, 2, 0},
        {1, 33, 2, 2, 20, 0.2, 2, 0},    {1, 100, 1, 1, 64, 0.125, 2, 1},
        {1, 129, 1, 1, 32, 0.18, 2, 0},  {1, 65, 2, 1, 32, 0.18, 30, 0},
        {1, 130, 1, 1, 64, 1, 8, 0},     {2, 200, 4, 1, 64, 0.125, 2, 0},
        {1, 130, 4, 1, 128, 0.12, 1, 0}, {1, 1, 2, 2, 128, 0.12, 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) test_case(&cases[i]);
}

/* Lengths around the sizes of tiles and steps, heads of all widths, groups of all sizes. */
static void test_lengths(void) {
    static const int lengths[] = {1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 257};
    static const int widths[][8] = {{8, 31, 16, 1, 32, 24, 13, 5},
                                    {64, 40, 33, 48, 56, 63, 61, 36},
                                    {128, 80, 127, 100, 65, 96, 72, 111}};
    int n = 0;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        for (int k = 0; k < 3; k++, n++) {
            int T = lengths[i], group = 1 + (T < 100 || k == 0 ? n % 4 : n % 2),
                keys = T < 64 ? 2 : 1;
            int batch = T < 100 && n % 3 ? 2 : 1, HS = widths[k][(n + n / 24) % 8];
            const Case c = {batch, T, group * keys, keys, HS, 1 / sqrt(HS), 1.5, n % 7 == 3};
            test_case(&c);
        }
}

/* Scores that rise and fall along the keys by less and by more than the threshold of the softmax,
   and scores far below 0, the score of the padding of the tiles. */
static void test_ramps(void) {
    static const float steps[] = {0.5f, 3, -3, 40, -40, 0}, starts[] = {0, 0, -40, 0, 0, -500};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        const Case c = {1, 130, 1, 1, 16, 1, 10, 0};
        size_t N = rows(&c), W = width(&c), C = 16;
        float *qkv = make_qkv(&c), *dout = random_array(N * C, 1), *out = host_array(N * C);
        float *lse = host_array(N), *dqkv = host_array(N * W);
        for (size_t t = 0; t < N; t++)
            for (size_t k = 0; k < C; k++) {
                qkv[t * W + k] = k == 0;
                qkv[t * W + C + k] = k == 0 ? starts[i] + steps[i] * (float)(t / 5) : 0;
            }
        floatX *d_qkv = on_device<floatX>(qkv, N * W), *d_dout = on_device<floatX>(dout, N * C);
        floatX *d_out = device_array<floatX>(N * C), *d_dqkv = device_array<floatX>(N * W);
        floatM *d_lse = device_array<floatM>(N);
        cpu_attention_forward(out, lse, qkv, c.B, c.T, c.NH, c.NKV, c.HS, c.scale);
        forward(d_out, d_lse, d_qkv, &c);
        like(&c, "out of a ramp", on_host(d_out, N * C), out, N, C, 0, C, tolerance(&c));
        like(&c, "lse of a ramp", on_host(d_lse, N), lse, N, 1, 0, 1, 1e-6);
        put(d_out, out, N * C);
        cpu_attention_backward(dqkv, dout, qkv, out, lse, c.B, c.T, c.NH, c.NKV, c.HS, c.scale);
        backward(d_dqkv, d_dout, d_qkv, d_out, d_lse, &c);
        float *ours = on_host(d_dqkv, N * W);
        like(&c, "dk of a ramp", ours, dqkv, N, W, C, 2 * C, 2 * tolerance(&c));
        like(&c, "dv of a ramp", ours, dqkv, N, W, 2 * C, W, tolerance(&c));
        release();
    }
}

/* The offset in out of row t of sequence b. */
static size_t out_at(const Case *c, int b, int t) {
    return ((size_t)b * (size_t)c->T + (size_t)t) * (size_t)c->NH * (size_t)c->HS;
}
/* Later tokens, other sequences and other heads change no bit of an output. NaN appears from its
   token on. If it is in a value, it may appear from the beginning of the token's tile on. */
static void test_causality(void) {
    const Case c = {2, 150, 2, 2, 32, 0.2, 2, 0};
    const int t = 140, tile = FlashForward<32>::ROWS, before = t / tile * tile;
    size_t N = rows(&c), W = width(&c), C = (size_t)c.NH * (size_t)c.HS, HS = (size_t)c.HS;
    float *qkv = make_qkv(&c), *changed = host_array(N * W);
    floatX *d_qkv = on_device<floatX>(qkv, N * W);
    floatX *out = device_array<floatX>(N * C), *out2 = device_array<floatX>(N * C);
    floatM *lse = device_array<floatM>(N * 2), *lse2 = device_array<floatM>(N * 2);
    forward(out, lse, d_qkv, &c);

    memcpy(changed, qkv, N * W * sizeof *qkv); /* sequence 0 changes from t on */
    for (size_t i = (size_t)t * W; i < (size_t)c.T * W; i++) changed[i] = (float)(20 * draw());
    put(d_qkv, changed, N * W);
    forward(out2, lse2, d_qkv, &c);
    check(same_bits(out2, out, out_at(&c, 0, t)), "out before token %d changes with it", t);
    check(!same_bits(out2 + out_at(&c, 0, t), out + out_at(&c, 0, t), C),
          "out of token %d does not change", t);
    size_t second = out_at(&c, 1, 0);
    check(same_bits(out2 + second, out + second, N / 2 * C), "another sequence changes");
    check(same_bits(lse2, lse, (size_t)t) && same_bits(lse2 + N, lse + N, N),
          "lse before token %d changes", t);

    for (int part = 0; part < 3;
         part++) { /* one element of head 1 of query, key or value t of sequence 0 */
        size_t in = (size_t)t * W + (size_t)part * C + HS + 3;
        memcpy(changed, qkv, N * W * sizeof *qkv);
        changed[in] = NAN;
        put(d_qkv, changed, N * W);
        forward(out2, lse2, d_qkv, &c);
        size_t clean = out_at(&c, 0, part == 2 ? before : t);
        check(same_bits(out2, out, clean), "part %d: NaN at token %d changes out before it", part,
              t);
        check(same_bits(out2 + second, out + second, N / 2 * C), "part %d: NaN, other sequence",
              part);
        for (int i = t; i < c.T; i++) {
            int bad = count_nan(out2 + out_at(&c, 0, i) + HS, HS);
            int want = part == 2 ? 1 : part == 1 || i == t ? c.HS : 0;
            check(bad == want, "part %d: %d of row %d are NaN, not %d", part, bad, i, want);
            check(!count_nan(out2 + out_at(&c, 0, i), HS), "part %d: NaN in the other head, row %d",
                  part, i);
        }
    }
    release();
}

/* A NaN in dout reaches the gradients of its query and of the keys and values up to it. */
static void test_backward_causality(void) {
    const Case c = {1, 150, 2, 2, 32, 0.2, 2, 0};
    const int t = 20;
    size_t N = rows(&c), W = width(&c), C = (size_t)c.NH * (size_t)c.HS, HS = (size_t)c.HS;
    float *qkv = make_qkv(&c), *dout = random_array(N * C, 1);
    floatX *d_qkv = on_device<floatX>(qkv, N * W), *d_dout = on_device<floatX>(dout, N * C);
    floatX *out = device_array<floatX>(N * C);
    floatX *one = device_array<floatX>(N * W), *two = device_array<floatX>(N * W);
    floatM *lse = device_array<floatM>(N * 2);
    forward(out, lse, d_qkv, &c);
    backward(one, d_dout, d_qkv, out, lse, &c);
    dout[(size_t)t * C + HS + 3] = NAN; /* in head 1 */
    put(d_dout, dout, N * C);
    backward(two, d_dout, d_qkv, out, lse, &c);
    float *x = on_host(one, N * W), *y = on_host(two, N * W);
    const int step = FlashBackward<32>::STEP, end = (t / step + 1) * step;
    int missing = 0, spread = 0;
    for (int i = 0; i < c.T; i++)
        for (size_t k = 0; k < W; k++) {
            size_t at = (size_t)i * W + k, head = k % C / HS, part = k / C;
            int reached = head == 1 && (part == 0   ? i == t
                                        : part == 1 ? i <= t
                                                    : i <= t && k % HS == 3);
            int maybe = head == 1 && (part == 0 ? i == t : i < end); /* zero times NaN */
            missing += reached && !isnan(y[at]);
            spread += !maybe && memcmp(&x[at], &y[at], sizeof *x);
        }
    check(!missing, "%d gradients have lost a NaN of dout", missing);
    check(!spread, "%d gradients that do not depend on a NaN of dout change with it", spread);
    release();
}

/* A NaN in one element of a query, a key or a value after the forward pass. Other sequences, other
   groups of heads and tokens before the NaN's tile keep every bit of their gradients. */
static void test_backward_poison(void) {
    const Case c = {2, 150, 4, 2, 32, 0.2, 2, 0};
    enum { B_AT = 1, T_AT = 140, HEAD = 3, GROUP = 1, TILE = FlashBackward<32>::ROWS };
    size_t N = rows(&c), W = width(&c), HS = (size_t)c.HS, C = 4 * HS, KV = 2 * HS;
    float *qkv = make_qkv(&c);
    floatX *d_qkv = on_device<floatX>(qkv, N * W),
           *d_dout = on_device<floatX>(random_array(N * C, 1), N * C);
    floatX *out = device_array<floatX>(N * C), *clean = device_array<floatX>(N * W);
    floatX *hurt = device_array<floatX>(N * W);
    floatM *lse = device_array<floatM>(N * 4);
    forward(out, lse, d_qkv, &c);
    backward(clean, d_dout, d_qkv, out, lse, &c);
    float *x = on_host(clean, N * W);
    for (int part = 0; part < 3; part++) {
        size_t row = (size_t)(B_AT * c.T + T_AT) * W, begin = part == 0   ? 0
                                                              : part == 1 ? C
                                                                          : C + KV;
        size_t at = row + begin + (part == 0 ? HEAD : GROUP) * HS + 3;
        float kept = qkv[at];
        qkv[at] = NAN;
        put(d_qkv, qkv, N * W);
        qkv[at] = kept;
        backward(hurt, d_dout, d_qkv, out, lse, &c);
        float *y = on_host(hurt, N * W);
        int spread = 0, nans = 0;
        for (size_t i = 0; i < N * W; i++) {
            size_t t = i / W % (size_t)c.T, col = i % W;
            int ours = i / W / (size_t)c.T == B_AT, query = col < C;
            int head =
                (int)((query ? col : (col - C) % KV) / HS); /* in the query, or in key and value */
            int reached = ours && (query ? head / 2 : head) == GROUP;
            if (part == 0) reached = reached && (!query || (t == T_AT && head == HEAD));
            else reached = reached && t >= T_AT / TILE * TILE;
            spread += !reached && memcmp(&x[i], &y[i], sizeof *x);
            nans += isnan(y[i]);
        }
        check(!spread, "part %d: %d gradients that do not depend on a NaN change with it", part,
              spread);
        check(nans >= c.HS, "part %d: gradients have lost a NaN", part);
        check(!count_nan(clean, N * W), "NaN from nowhere");
    }
    release();
}

/* Results do not depend on the order of the blocks. */
static void test_order_of(const Case c) {
    size_t N = rows(&c), W = width(&c), C = (size_t)c.NH * (size_t)c.HS, cache = cm_gpu.flash_cache;
    size_t head = 2 * (size_t)c.T * (size_t)c.HS * sizeof(floatX) * (size_t)(c.NH / c.NKV);
    float *qkv = make_qkv(&c), *dout = random_array(N * C, 1);
    floatX *d_qkv = on_device<floatX>(qkv, N * W), *d_dout = on_device<floatX>(dout, N * C);
    floatX *out[3], *dqkv[3];
    for (int i = 0; i < 3; i++) { /* one head at a time, two heads, all heads */
        floatM *lse = device_array<floatM>(N * (size_t)c.NH);
        out[i] = device_array<floatX>(N * C);
        dqkv[i] = device_array<floatX>(N * W);
        cm_gpu.flash_cache = i == 2 ? cache : (size_t)(i + 1) * head;
        forward(out[i], lse, d_qkv, &c);
        backward(dqkv[i], d_dout, d_qkv, out[i], lse, &c);
    }
    cm_gpu.flash_cache = cache;
    for (int i = 0; i < 2; i++) {
        check(same_bits(out[i], out[2], N * C), "out depends on the order of heads");
        check(same_bits(dqkv[i], dqkv[2], N * W), "dqkv depends on the order of heads");
    }
    check(!count_nan(out[0], N * C) && !count_nan(dqkv[0], N * W), "some heads are left out");
    release();
}

static void test_order(void) {
    test_order_of({1, 270, 5, 5, 16, 0.25, 2, 0});
    test_order_of({2, 200, 6, 2, 16, 0.25, 2, 0});
}

/* attention_scratch returns exactly the scratch that is used. Its initial contents do not
   matter. */
static void test_scratch_of(const Case c) {
    size_t N = rows(&c), W = width(&c), C = (size_t)c.NH * (size_t)c.HS;
    size_t used = attention_scratch(c.B, c.T, c.NH, c.NKV, c.HS);
    floatX *d_qkv = on_device<floatX>(make_qkv(&c), N * W);
    floatX *out = device_array<floatX>(N * C), *dqkv = device_array<floatX>(N * W);
    floatX *first = device_array<floatX>(N * W);
    floatM *lse = device_array<floatM>(N * (size_t)c.NH);
    check(!cuda_scratch_reserve(cm_gpu.scratch_bytes + used + SPARE), "no scratch");
    size_t bytes = cm_gpu.scratch_bytes;
    unsigned char *scratch = (unsigned char *)cm_gpu.scratch;
    forward(out, lse, d_qkv, &c);
    for (int fill = 0; fill < 3; fill++) { /* NaN; zeros; the contents after the last call */
        if (fill < 2) MUST(cudaMemsetAsync(scratch, fill ? 0 : 0xff, bytes, cm_gpu.stream));
        backward(fill ? dqkv : first, out, d_qkv, out, lse, &c);
        check(cm_gpu.scratch_bytes == bytes, "T %d: scratch has grown", c.T);
        check(!fill || same_bits(dqkv, first, N * W),
              "T %d: gradients depend on what scratch holds", c.T);
        if (fill) continue;
        check(untouched(scratch + used, bytes - used), "T %d: more scratch is used", c.T);
        check(!untouched(scratch + used - 16, 16), "T %d: less scratch is used", c.T);
    }
    check(!count_nan(first, N * W), "T %d: NaN from scratch", c.T);
    release();
}

static void test_scratch(void) {
    test_scratch_of({2, 37, 3, 1, 16, 0.25, 2, 0});
    test_scratch_of({1, 1, 1, 1, 128, 0.1, 2, 0});
    test_scratch_of({2, 140, 4, 2, 16, 0.25, 2, 0});
    test_scratch_of({1, 257, 2, 2, 33, 0.2, 2, 0});
    test_scratch_of({1, 193, 3, 1, 100, 0.1, 2, 0});
    const size_t short_one = attention_scratch(3, FlashBackward<64>::ROWS, 5, 5, 64);
    check(short_one == 3 * 5 * FlashBackward<64>::ROWS * sizeof(float) + 16,
          "sums where there is one tile");
    size_t huge = attention_scratch(64, 1 << 20, 128, 128, 128); /* beyond 32 bits */
    check(huge > (size_t)64 * 128 * 128 * 4 * ((1 << 20) - 128), "%zu bytes of scratch", huge);
}

/* The ticket and all counts are 0 before blocks pass sums on. With counts of an earlier launch a
   block would start too early. The emulator does not show that, because it runs one block after
   another. */
template <int D> static void test_counts(int B, int T, int NH, int NKV) {
    size_t n = flash_scratch<D>(B, T, NH, NKV).n_counts, rows = (size_t)B * (size_t)T * (size_t)NH;
    floatX *x = on_device<floatX>(random_array(rows, 1), rows);
    int *counts = device_array<int>(n + SPARE);
    float *dots = device_array<float>(rows);
    LAUNCH(flash_dots_kernel<1>, ceil_div(rows, 32), 256, 0, dots, counts, n, x, x, rows, T, NH, 1);
    float *count = on_host(counts, n), *dot = on_host(dots, rows);
    int wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += count[i] != 0;
    for (size_t i = 0; i < rows; i++) wrong += !(dot[i] >= 0);
    check(!wrong, "D %d, T %d: %d counts or dot products are not set", D, T, wrong);
    check(untouched(counts + n, SPARE), "D %d, T %d: more than the counts is set", D, T);
    release();
}

/* Decoding one position, against the twin and against the last row of the forward pass. */
static void test_decode(void) {
    static const Case cases[] = {
        {1, 1, 2, 1, 64, 0.125, 2, 0},     {1, 32, 4, 2, 16, 0.25, 2, 0},
        {1, 130, 2, 1, 128, 0.0883, 2, 0}, {1, 33, 2, 2, 20, 0.2, 2, 0},
        {1, 70, 2, 1, 100, 0.12, 2, 0},    {1, 65, 1, 1, 64, 0.125, 2, 1},
        {1, 90, 8, 2, 1, 1, 3, 0},         {1, 65, 2, 1, 32, 0.18, 30, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const Case *c = &cases[i];
        size_t N = rows(c), W = width(c), HS = (size_t)c->HS, C = (size_t)c->NH * HS;
        size_t KV = (size_t)c->NKV * HS;
        float *qkv = make_qkv(c), *k = host_array(N * KV), *v = host_array(N * KV),
              *theirs = host_array(C);
        floatX *d_qkv = on_device<floatX>(qkv, N * W), *out = device_array<floatX>(N * C);
        floatM *lse = device_array<floatM>(N * (size_t)c->NH);
        for (size_t t = 0; t < N; t++) {
            memcpy(k + t * KV, qkv + t * W + C, KV * sizeof *k);
            memcpy(v + t * KV, qkv + t * W + C + KV, KV * sizeof *v);
        }
        float *q = (float *)memcpy(host_array(C), qkv + (N - 1) * W, C * sizeof *q);
        floatX *d_q = shifted<floatX>(q, C, c->shift), *d_k = shifted<floatX>(k, N * KV, c->shift);
        floatX *d_v = shifted<floatX>(v, N * KV, c->shift), *ours = device_array<floatX>(C + SPARE);
        attention_decode(ours, d_q, d_k, d_v, c->T - 1, c->NH, c->NKV, c->HS, c->scale);
        cpu_attention_decode(theirs, q, k, v, c->T - 1, c->NH, c->NKV, c->HS, c->scale);
        like(c, "decode", on_host(ours, C), theirs, 1, C, 0, C, tolerance(c));
        forward(out, lse, d_qkv, c);
        float *last = on_host(out + (N - 1) * C, C);
        like(c, "decode beside forward", on_host(ours, C), last, 1, C, 0, C, 2 * tolerance(c));
        check(untouched(ours + C, SPARE), "decode writes too much");
        floatX *again = device_array<floatX>(C);
        attention_decode(again, d_q, d_k, d_v, c->T - 1, c->NH, c->NKV, c->HS, c->scale);
        check(same_bits(again, ours, C), "decode differs when repeated");
        release();
    }
}

/* Chosen kernels of a library are called first and may decline. */
static int library_answer, library_calls;
static int library_forward(floatX *, floatM *, const floatX *, int, int, int, int, int, double) {
    library_calls++;
    return library_answer;
}
static int library_backward(floatX *, const floatX *, const floatX *, const floatX *,
                            const floatM *, int, int, int, int, int, double) {
    library_calls++;
    return library_answer;
}

static void test_library(void) {
    const Case c = {1, 9, 1, 1, 8, 0.35, 1, 0};
    size_t N = rows(&c), W = width(&c), C = 8;
    floatX *d_qkv = on_device<floatX>(make_qkv(&c), N * W), *out = device_array<floatX>(N * C);
    floatX *dqkv = device_array<floatX>(N * W);
    floatM *lse = device_array<floatM>(N);
    cm_gpu.attention_forward = library_forward;
    cm_gpu.attention_backward = library_backward;
    forward(out, lse, d_qkv, &c);
    backward(dqkv, out, d_qkv, out, lse, &c);
    check(library_calls == 2 && untouched(out, N * C) && untouched(dqkv, N * W),
          "the library is not asked");
    library_answer = -1;
    forward(out, lse, d_qkv, &c);
    backward(dqkv, out, d_qkv, out, lse, &c);
    check(library_calls == 4 && !count_nan(out, N * C) && !count_nan(dqkv, N * W),
          "nobody does it");
    cm_gpu.attention_forward = NULL;
    cm_gpu.attention_backward = NULL;
    release();
}

static void test_supports(void) {
    char err[ERR_LEN] = "";
    check(!attention_supports(128, err) && !attention_supports(1, err) && !err[0],
          "128 is refused");
    check(attention_supports(129, err) == -1 && strstr(err, "--head-dim 129"), "heads of 129: %s",
          err);
}

static void test_tile_products(void) {
    test_products<__nv_bfloat16, 32>("bf16");
    test_products<__nv_bfloat16, 64>("bf16");
    test_products<__nv_bfloat16, 128>("bf16");
    test_products<float, 32>("fp32");
    test_products<float, 128>("fp32");
}

static void test_tile_places(void) {
    test_places<__nv_bfloat16, 32>();
    test_places<__nv_bfloat16, 64>();
    test_places<__nv_bfloat16, 128>();
    test_places<float, 32>();
    test_places<float, 128>();
}

static void test_order_counts(void) {
    test_counts<32>(1, 1, 1, 1);
    test_counts<128>(1, 33, 1, 1);
    test_counts<128>(2, 700, 6, 3);
    test_counts<64>(3, 129, 2, 2);
}

static const Test tests[] = {
    TEST(tile_products),   TEST(tile_places), TEST(hand_over), TEST(cases),
    TEST(lengths),         TEST(ramps),       TEST(causality), TEST(backward_causality),
    TEST(backward_poison), TEST(order),       TEST(scratch),   TEST(order_counts),
    TEST(decode),          TEST(library),     TEST(supports)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
