/*
Tests of the matrix product against sums in double precision: every epilogue, transposes, odd
shapes, strides and alignments, separate C and D, batches. Tests of the plans, the choice of
algorithms and the text of choices. Runs on a GPU and on the emulator, whose two algorithms and
invented times make choices predictable.
*/
#include "../../../llmc/cuda/gemm.cuh"
#include "device.h"

#ifdef CM_EMU
static const int emulated = 1;
#else
static const int emulated = 0;
#endif

/* ---------------------------------------------------------------------------------------------- */
/* Limits                                                                                         */

/* Relative errors of one operation. An fp32 addition errs by 2^-24. The adders of tensor cores
   truncate and drop bits where they align their terms; two bits are allowed for that. */
static double unit(void) { return emulated ? 0x1p-24 : 0x1p-22; }

/* Each factor rounded to TF32's ten bits errs by up to 2^-11, truncated by up to 2^-10; the
   product of two errs by twice that and a square. The kernels of a GPU decide whether it rounds
   or truncates. */
static double tf32_unit(void) {
#ifdef CM_EMU
    if (!gemm_emu.truncate) return 0x1p-10 + 0x1p-22;
#endif
    return 0x1p-9 + 0x1p-20;
}

/* Half of the last place. bf16 has seven bits after the point, fp32 has 23. */
template <typename T> static double storage(void) { return sizeof(T) == 2 ? 0x1p-8 : 0x1p-24; }

static double gelu_exact(double x) {
    return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
}
static double gelu_u(double x) {
    return 0.79788456080286536 * (1 + 3 * 0.044715 * x * x);
} /* u'(x) */
static double gelu_slope_exact(double x) {
    double t = tanh(0.79788456080286536 * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * gelu_u(x);
}

/* Errors of GELU and of its slope at x. Ours come from rounding u by a few units of |u|, which
   moves t = tanh u by as much. The library's way to tanh is not documented. tanh.approx.f32 errs
   by t 2^-11 (PTX ISA): 1/2 x (1 + t) moves by 1/2 |x| of that, and 1/2 (1 + t) +
   1/2 x (1 - t^2) u' by 1/2 + |x| u' of it. The library's slope is allowed twice that, and its
   product may be rounded to the type of the result before the slope multiplies it: in bf16 an
   H200 (cuBLASLt 13.1) errs by up to 1.6 times the bound that lacks both. */
static double gelu_error(double x) {
    return emulated ? fabs(x) * (4 + x * x) * 0x1p-22 : fabs(x) * 0x1p-12;
}
static double gelu_slope_error(double x) {
    double least = 0.5 + fabs(x) * gelu_u(x);
    return emulated ? fmin(1, least * (4 + x * x) * 0x1p-22) : least * 0x1p-10;
}

/* ---------------------------------------------------------------------------------------------- */
/* One product */

typedef struct {
    int ta, tb, M, N, K, batch;
    /* padding elements of a row; elements before the first row */
    int pad, shift;
    int bias, tf32, apart, epilogue, shared; /* shared: all items have the first item's B */
    double alpha, beta;
} Case;

static const char *describe(const Case &t) {
    static char text[200];
    snprintf(text, sizeof text,
             "%d x %d x %d, t %d%d, batch %d, pad %d, shift %d, bias %d, tf32 %d, apart %d, "
             "epilogue %d, alpha "
             "%g, beta %g",
             t.M, t.N, t.K, t.ta, t.tb, t.batch, t.pad, t.shift, t.bias, t.tf32, t.apart,
             t.epilogue, t.alpha, t.beta);
    return text;
}

/* A batch of matrices with NaN around the elements: as floats on the host, as T on the device. */
template <typename T> struct Matrix {
    size_t rows, cols, ld, step, size, shift;
    float *h;
    T *d;
    size_t at(size_t item, size_t i, size_t j) const { return shift + item * step + i * ld + j; }
};
template <typename T>
static Matrix<T> matrix(int batch, int rows, int cols, int pad, int shift, int multiple,
                        double scale) {
    Matrix<T> m;
    size_t unit_ = (size_t)multiple;
    m.rows = (size_t)rows;
    m.cols = (size_t)cols;
    m.shift = (size_t)shift;
    m.ld = (m.cols + (size_t)pad + unit_ - 1) / unit_ * unit_;
    m.step = m.rows * m.ld + (size_t)pad * unit_;
    m.size = m.shift + (size_t)batch * m.step;
    m.h = host_array(m.size);
    for (size_t item = 0; item < (size_t)batch; item++)
        for (size_t i = 0; i < m.rows; i++)
            for (size_t j = 0; j < m.cols; j++) m.h[m.at(item, i, j)] = (float)(scale * draw());
    m.d = on_device<T>(m.h, m.size);
    return m;
}

template <typename IN, typename OUT> struct Operands {
    Matrix<IN> A, B;
    Matrix<OUT> C, D, aux;
    float *bias;
    OUT *dbias;
};
template <typename IN, typename OUT> static Operands<IN, OUT> operands(const Case &t) {
    Operands<IN, OUT> o;
    o.A = matrix<IN>(t.batch, t.ta ? t.K : t.M, t.ta ? t.M : t.K, t.pad, t.shift, 1, 1);
    o.B = matrix<IN>(t.batch, t.tb ? t.N : t.K, t.tb ? t.K : t.N, t.pad, t.shift, 1, 1);
    o.C = matrix<OUT>(t.batch, t.M, t.N, t.pad, t.shift, 1, t.beta == 0 ? NAN : 1);
    o.D = o.C;
    if (t.apart) o.D.d = device_array<OUT>(o.D.size);
    o.aux = matrix<OUT>(t.batch, t.M, t.N, t.pad, 0, 8, t.epilogue == GEMM_GELU ? NAN : 4);
    o.bias = random_array((size_t)t.N + (size_t)t.shift, 1);
    if (t.N > 2) {
        o.bias[t.shift] = 30;
        o.bias[t.shift + 1] = -30;
    } /* where GELU is flat */
    o.dbias = on_device<OUT>(o.bias, (size_t)t.N + (size_t)t.shift);
    return o;
}

/* Runs the case. Returns -1 if the library has no algorithm, which is allowed for epilogues
   only. */
template <typename IN, typename OUT> static int product(const Case &t, const Operands<IN, OUT> &o) {
    GemmCall c = gemm_kind<IN, OUT>(t.ta, t.tb, t.M, t.N, t.K, o.A.ld, o.B.ld, o.C.ld);
    c.tf32 = t.tf32;
    c.bias = t.bias;
    c.epilogue = t.epilogue;
    c.batch = t.batch;
    if (t.epilogue) c.ldaux = (int64_t)o.aux.ld;
    if (t.batch > 1) {
        c.sa = (int64_t)o.A.step;
        c.sb = t.shared ? 0 : (int64_t)o.B.step;
        c.sc = (int64_t)o.C.step;
        if (t.epilogue) c.saux = (int64_t)o.aux.step;
    }
    GemmOperands p = {o.A.d + t.shift, o.B.d + t.shift, o.C.d + t.shift, o.dbias + t.shift,
                      o.D.d + t.shift, o.aux.d,         (float)t.alpha,  (float)t.beta};
#ifdef CM_EMU
    int apart = gemm_emu.refuse & GEMM_EMU_BATCH; /* item by item, as gemm_call does */
#else
    int apart = 0;
#endif
    if (t.epilogue && !apart) return gemm_try(c, p);
    gemm_call(c, t.alpha, p.A, p.B, t.beta, p.C, p.D, t.bias ? p.bias : NULL,
              t.epilogue ? p.aux : NULL);
    return 0;
}

typedef struct {
    double value, room;
} Bounded; /* a number and its possible error, before it is stored */

template <typename IN, typename OUT>
static Bounded reference(const Case &t, const Operands<IN, OUT> &o, size_t item, size_t i,
                         size_t j) {
    double sum = 0, terms = 0, rest = 0, size = 0;
    for (size_t k = 0; k < (size_t)t.K; k++) {
        double a = (double)o.A.h[t.ta ? o.A.at(item, k, i) : o.A.at(item, i, k)];
        size_t from = t.shared ? 0 : item;
        double b = (double)o.B.h[t.tb ? o.B.at(from, j, k) : o.B.at(from, k, j)];
        sum += a * b;
        terms += fabs(a * b);
    }
    double alpha = (double)(float)t.alpha, beta = (double)(float)t.beta;
    sum *= alpha;
    terms *= fabs(alpha);
    if (t.beta != 0) {
        rest += beta * (double)o.C.h[o.C.at(item, i, j)];
        size += fabs(rest);
    }
    if (t.bias) {
        rest += (double)o.bias[(size_t)t.shift + j];
        size += fabs((double)o.bias[(size_t)t.shift + j]);
    }
    double room = (2 * t.K + 6) * unit() * (terms + size);
    if (t.tf32 && sizeof(IN) == 4) room += tf32_unit() * terms;
    /* A bias is added to the stored sum where the library cannot add it. And some kernels of
       cuBLASLt 13.1 round the product to bf16 before they add a bias or C: computing so fails
       all 40 checks that fail on an H200 without this; the 16 numbers printed there agree to six
       digits. */
    if ((t.bias || t.beta != 0) && !emulated) room += storage<OUT>() * (fabs(sum) + size);
    return {sum + rest, room};
}

/* The expected D, from the value of the product and, for GELU's gradient, from aux. A GPU may
   take GELU of its stored argument. */
template <typename OUT> static Bounded expected(const Case &t, Bounded h, double aux) {
    if (t.epilogue == GEMM_GELU) {
        double moved = h.room + (emulated ? 0 : storage<OUT>() * fabs(h.value));
        return {gelu_exact(h.value),
                1.13 * moved + gelu_error(h.value)}; /* GELU's slope is at most 1.129 */
    }
    if (t.epilogue == GEMM_DGELU) {
        double slope = gelu_slope_exact(aux), error = gelu_slope_error(aux);
        double twice = emulated ? 0 : storage<OUT>() * fabs(h.value * slope);
        return {h.value * slope,
                h.room * (fabs(slope) + error) + fabs(h.value) * (error + 2 * unit()) + twice};
    }
    return h;
}

static int within(float got, Bounded want, double rounding, double *excess) {
    double off = fabs((double)got - want.value);
    double room = want.room + rounding * (fabs(want.value) + want.room) + 1e-37;
    *excess = off / room;
    return off <= room;
}

/* Compares the outputs, and checks that nothing else was written. */
template <typename IN, typename OUT>
static void compare(const Case &t, const Operands<IN, OUT> &o) {
    const float *D = on_host(o.D.d, o.D.size), *aux = on_host(o.aux.d, o.aux.size);
    double worst = 0, excess, nothing;
    int right = 1, kept = 1, clean = 1;
    for (size_t item = 0; item < (size_t)t.batch; item++)
        for (size_t i = 0; i < (size_t)t.M; i++)
            for (size_t j = 0; j < (size_t)t.N; j++) {
                Bounded h = reference(t, o, item, i, j);
                float a = aux[o.aux.at(item, i, j)];
                right &= within(D[o.D.at(item, i, j)], expected<OUT>(t, h, (double)a),
                                storage<OUT>(), &excess);
                if (!(excess <= worst)) worst = excess;
                if (t.epilogue == GEMM_GELU) kept &= within(a, h, storage<OUT>(), &nothing);
            }
    for (size_t n = 0; n < o.D.size; n++) {
        size_t in = n < o.D.shift ? o.D.ld : (n - o.D.shift) % o.D.step;
        if (n < o.D.shift || in / o.D.ld >= o.D.rows || in % o.D.ld >= o.D.cols)
            clean &= D[n] != D[n];
    }
    check(right, "%s: %g times as far off as it may be", describe(t), worst);
    check(kept, "%s: GELU's argument is wrong", describe(t));
    check(clean, "%s: something outside of D was written", describe(t));
}

template <typename IN, typename OUT> static int run_case(const Case &t) {
    Operands<IN, OUT> o = operands<IN, OUT>(t);
    int none = product(t, o);
    if (!none) compare(t, o);
    if (!none && t.beta == 0) { /* a second run gives equal bits */
        const float *once = on_host(o.D.d, o.D.size);
        product(t, o);
        check(!memcmp(once, on_host(o.D.d, o.D.size), o.D.size * sizeof *once),
              "%s: other bits the second time", describe(t));
    }
    release();
    return !none;
}

/* ---------------------------------------------------------------------------------------------- */
/* Products                                                                                       */

static const int shapes[][3] = {{1, 1, 1},    {1, 7, 3},    {5, 1, 2},   {3, 2, 1},
                                {17, 33, 5},  {16, 16, 16}, {31, 8, 70}, {64, 40, 48},
                                {8, 64, 129}, {65, 67, 33}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* Shapes, transposes, alignments, scalars and places of C, combined so that every pair of them
   occurs. */
template <typename IN, typename OUT> static void test_plain(int tf32) {
    static const double alphas[] = {1, -0.75, 2}, betas[] = {0, 1, -0.5};
    int turn = 0;
    for (int s = 0; s < SHAPES; s++)
        for (int t = 0; t < 4; t++)
            for (int bias = 0; bias < 2; bias++)
                for (int b = 0; b < 3; b++, turn++) {
                    Case c = {};
                    c.ta = t & 1;
                    c.tb = t >> 1;
                    c.M = shapes[s][0];
                    c.N = shapes[s][1];
                    c.K = shapes[s][2];
                    c.batch = 1;
                    c.bias = bias;
                    c.tf32 = tf32;
                    c.pad = turn % 5 == 0 ? 8 : turn % 5 == 1 ? 3 : 0;
                    c.shift = turn % 7 == 0 ? 8 : turn % 7 == 1;
                    c.alpha = alphas[turn / 3 % 3];
                    c.beta = betas[b];
                    c.apart = turn / 2 % 2;
                    run_case<IN, OUT>(c);
                }
}

template <typename IN, typename OUT> static void test_batches(void) {
    for (int t = 0; t < 4; t++)
        for (int turn = 0; turn < 12; turn++) {
            Case c = {};
            c.ta = t & 1;
            c.tb = t >> 1;
            c.M = 7;
            c.N = turn % 2 ? 24 : 9;
            c.K = 13;
            c.batch = 2 + turn % 3;
            c.pad = turn % 4;
            c.shift = turn / 2 % 3;
            c.apart = turn / 3 % 2;
            c.shared = turn % 5 == 0;
            c.bias = turn / 4 % 2;
            c.alpha = 1.5;
            c.beta = turn % 3 == 0 ? 0.5 : 0;
            run_case<IN, OUT>(c);
        }
}

/* GELU and its gradient. In bf16 the library must have the epilogues that the layers use, for x w^T
   and dy w with even rows. In other types the layers can do without. The emulated library has
   all. */
template <typename IN, typename OUT> static void test_epilogues(int tf32) {
    const int all_bf16 = sizeof(IN) == 2 && sizeof(OUT) == 2;
    int done = 0, tried = 0, missing = 0;
    for (int epilogue = GEMM_GELU; epilogue <= GEMM_DGELU; epilogue++)
        for (int s = 0; s < SHAPES; s++)
            for (int t = 0; t < 8; t++, tried += 2) {
                Case c = {};
                c.ta = t & 1;
                c.tb = t >> 1 & 1;
                c.bias = epilogue == GEMM_GELU && t & 4;
                c.batch = t == 3 ? 3 : 1;
                c.epilogue = epilogue;
                c.tf32 = tf32;
                c.M = shapes[s][0];
                c.N = shapes[s][1];
                c.K = shapes[s][2];
                c.pad = s % 3 == 2 ? 8 : s % 3;
                c.shift = s % 4 == 3;
                c.alpha = t == 5 ? 0.5 : 1;
                done += run_case<IN, OUT>(c);
                c.M = 64;
                c.N = 8 * (1 + s);
                c.K = 8 * (2 + t);
                c.pad = 8 * (s % 2);
                c.shift = 0;
                c.batch = 1;
                int there = run_case<IN, OUT>(c),
                    needed = all_bf16 && !c.ta && c.tb == (epilogue == GEMM_GELU);
                done += there;
                missing += needed && !there;
            }
    check(!missing, "the library has no GELU for %d ordinary products", missing);
    if (emulated) check(done == tried, "GELU in %d of %d products", done, tried);
    else printf("GELU in %d of %d products, odd ones included\n", done, tried);
}

/* gemm, gemm_gelu and gemm_dgelu as the layers call them. */
template <typename T> static void test_calls(void) {
    enum { N = 48, I = 40, F = 96 };
    float *x = random_array(N * I, 1), *w = random_array(F * I, 1), *b = random_array(F, 1),
          *dy = random_array(N * I, 1);
    float *v = random_array(I * F, 1);
    T *dx = on_device<T>(x, N * I), *dw = on_device<T>(w, F * I), *db = on_device<T>(b, F);
    T *ddy = on_device<T>(dy, N * I), *dv = on_device<T>(v, I * F);
    T *plain = device_array<T>(N * F), *h = device_array<T>(N * F + 8), *y = device_array<T>(N * F);
    T *dh = device_array<T>(N * F);
    Case t = {0, 1, N, F, I, 1, 0, 0, 1, 0, 0, GEMM_GELU, 0, 1, 0};
    Operands<T, T> o = {};
    o.A = {N, I, I, 0, 0, 0, x, dx};
    o.B = {F, I, I, 0, 0, 0, w, dw};
    o.bias = b;
    cm_gpu.allow_tf32 = 0;
    gemm(0, 1, N, F, I, 1, dx, I, dw, I, 0, plain, F, db);
    int there = !gemm_gelu(0, 1, N, F, I, dx, I, dw, I, y, F, h, F, db);
    there = there && !gemm_dgelu(0, 0, N, F, I, ddy, I, dv, F, dh, F, h, F);
    check(there || (!emulated && sizeof(T) == 4), "gemm_gelu or gemm_dgelu is not possible");
    const float *got[] = {on_host(plain, N * F), on_host(h, N * F), on_host(y, N * F),
                          on_host(dh, N * F)};
    int right[4] = {1, 1, 1, 1};
    double excess;
    for (int n = 0; n < N; n++)
        for (int f = 0; f < F; f++) {
            Bounded a = reference(t, o, 0, (size_t)n, (size_t)f), g = {0, 0};
            for (int i = 0; i < I; i++) {
                g.value += (double)dy[n * I + i] * (double)v[i * F + f];
                g.room += (2 * I + 6) * unit() * fabs((double)dy[n * I + i] * (double)v[i * F + f]);
            }
            Case back = t;
            back.epilogue = GEMM_DGELU;
            right[0] &= within(got[0][n * F + f], a, (emulated ? 1 : 3) * storage<T>(), &excess);
            right[1] &= within(got[1][n * F + f], a, storage<T>(), &excess);
            right[2] &= within(got[2][n * F + f], expected<T>(t, a, 0), storage<T>(), &excess);
            right[3] &= within(got[3][n * F + f], expected<T>(back, g, (double)got[1][n * F + f]),
                               storage<T>(), &excess);
        }
    check(right[0], "gemm with a bias is wrong");
    check(!there || (right[1] && right[2]), "gemm_gelu is wrong: H %d, Y %d", right[1], right[2]);
    check(!there || right[3], "gemm_dgelu is wrong");
    /* The library refuses a call before it writes anything. */
    T *untouched = device_array<T>(N * F);
    check(gemm_gelu(0, 1, N, F, I, dx, I, dw, I, untouched, F, h, F + 4, db) == -1,
          "rows of aux at multiples of 4");
    check(gemm_gelu(0, 1, N, F, I, dx, I, dw, I, untouched, F, h + 1, F, db) == -1,
          "aux at an odd address");
    check(gemm_dgelu(0, 0, N, F, I, ddy, I, dv, F, untouched, F, h + 1, F) == -1,
          "aux at an odd address");
    const float *still = on_host(untouched, N * F);
    for (int i = 0; i < N * F; i++)
        if (still[i] == still[i]) {
            check(0, "a refused product has written");
            break;
        }
    check(gemm_gelu_possible(8, (void *)16) && !gemm_gelu_possible(12, (void *)16) &&
              !gemm_gelu_possible(8, (void *)8),
          "gemm_gelu_possible");
    /* Empty products. */
    gemm(0, 1, 0, F, I, 1, dx, I, dw, I, 0, untouched, F);
    check(gemm_gelu(0, 1, 0, F, I, dx, I, dw, I, untouched, F, h, F) == 0,
          "a product without rows");
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* Plans                                                                                          */

static void test_alignment(void) {
    static const int bytes[] = {256, 128, 64, 16, 8, 4, 2};
    enum { M = 16, N = 24, K = 32, ROOM = 4096 };
    for (int i = 0; i < 7; i++)
        check(gemm_alignment((uintptr_t)4096 + (uintptr_t)bytes[i]) == min_int(bytes[i], 16),
              "alignment of %d", bytes[i]);
    check(gemm_align_items((void *)256, 12, GEMM_BF16, 1) == 16 &&
              gemm_align_items((void *)256, 12, GEMM_BF16, 2) == 8,
          "the distance of items does not count in their alignment");
    /* Each operand in turn is moved. Addresses aligned to 16 or more share a plan and its bits.
       8, 4 and 2 do not share it. */
    static const int sizes[4] = {M * K, N * K, M * N, N};
    float *x[4];
    __nv_bfloat16 *d[4];
    for (int p = 0; p < 4; p++) {
        x[p] = random_array(ROOM, 1);
        d[p] = on_device<__nv_bfloat16>(x[p], ROOM);
    }
    gemm_plans_clear();
    gemm(0, 1, M, N, K, 1, d[0], K, d[1], K, 0, d[2], N, d[3]);
    const float *first = on_host(d[2], M * N);
    for (int moved = 0; moved < 4; moved++) {
        for (int i = 0; i < 7; i++) {
            __nv_bfloat16 *p[4] = {d[0], d[1], d[2], d[3]};
            size_t before = cm_gpu.gemm_plan_count;
            p[moved] += bytes[i] / 2;
            if (moved != 2) put(p[moved], x[moved], (size_t)sizes[moved]);
            gemm(0, 1, M, N, K, 1, p[0], K, p[1], K, 0, p[2], N, p[3]);
            check(i < 4 ? cm_gpu.gemm_plan_count == before : cm_gpu.gemm_plan_count > before,
                  "operand %d at %d bytes: %zu plans after %zu", moved, bytes[i],
                  cm_gpu.gemm_plan_count, before);
            if (i < 4)
                check(!memcmp(on_host(p[2], M * N), first, M * N * sizeof *first),
                      "operand %d at %d bytes has other bits", moved, bytes[i]);
        }
        put(d[moved], x[moved], (size_t)sizes[moved]);
    }
    /* With beta = 0 the address of C does not matter. */
    GemmCall c = gemm_kind<__nv_bfloat16, __nv_bfloat16>(0, 1, M, N, K, K, K, N);
    gemm_plans_clear();
    gemm_call(c, 1, d[0], d[1], 0, d[2], d[2], NULL);
    gemm_call(c, 1, d[0], d[1], 0, d[2] + 1, d[2], NULL);
    gemm_call(c, 1, d[0], d[1], 0, NULL, d[2], NULL);
    check(cm_gpu.gemm_plan_count == 1, "a C that is not read has a plan of its own");
    release();
}

/* More kinds of calls than the table has room for at first. Each gets its own result. */
static void test_many_plans(void) {
    enum { KINDS = 300 };
    float *x = random_array(KINDS + 1, 1), *y = random_array(KINDS + 1, 1);
    float *dx = on_device<float>(x, KINDS + 1), *dy = on_device<float>(y, KINDS + 1),
          *dz = device_array<float>(KINDS);
    int right = 1;
    cm_gpu.allow_tf32 = 0;
    gemm_plans_clear();
    for (int round = 0; round < 2; round++) {
        for (int k = 1; k <= KINDS; k++)
            gemm(0, 0, 1, 1, k, 1, dx, (size_t)k, dy, 1, 0, dz + k - 1, 1);
        check(cm_gpu.gemm_plan_count == KINDS, "%zu plans of %d kinds", cm_gpu.gemm_plan_count,
              KINDS);
        const float *z = on_host(dz, KINDS);
        double sum = 0, terms = 0;
        for (int k = 0; k < KINDS; k++) {
            sum += (double)x[k] * (double)y[k];
            terms += fabs((double)x[k] * (double)y[k]);
            right &= fabs((double)z[k] - sum) <= (2 * k + 6) * unit() * terms;
        }
    }
    check(right, "many kinds of products: a wrong one");
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* Choices                                                                                        */

typedef struct {
    float *C, *x, *y;
    float *dx, *dy, *dz;
} Small;
enum { SM = 24, SN = 40, SK = 200 };

static Small small_operands(void) {
    Small s;
    s.C = random_array(SM * SN, 1);
    s.x = random_array(SM * SK, 1);
    s.y = random_array(SK * SN, 1);
    s.dx = on_device<float>(s.x, SM * SK);
    s.dy = on_device<float>(s.y, SK * SN);
    s.dz = on_device<float>(s.C, SM * SN);
    return s;
}

/* C + 0.5 x y, from the initial C. */
static const float *small_product(const Small &s) {
    put(s.dz, s.C, SM * SN);
    gemm(0, 0, SM, SN, SK, 0.5, s.dx, SK, s.dy, SN, 1, s.dz, SN);
    return on_host(s.dz, SM * SN);
}
static void small_check(const Small &s, const float *z, const char *when) {
    int right = 1;
    for (int i = 0; i < SM * SN; i++) {
        double sum = (double)s.C[i], terms = fabs(sum);
        for (int k = 0; k < SK; k++) {
            double p = 0.5 * (double)s.x[i / SN * SK + k] * (double)s.y[k * SN + i % SN];
            sum += p;
            terms += fabs(p);
        }
        right &= fabs((double)z[i] - sum) <= (2 * SK + 6) * unit() * terms;
    }
    check(right, "a product that adds is wrong %s", when);
}
static int equal_bits(const float *a, const float *b) { return !memcmp(a, b, SM * SN * sizeof *a); }

/* Resets all state, as in a new process. */

/* Which algorithm the emulated library pretends to be the fastest. */
static void set_fastest(const char *index) { setenv("CM_EMU_FASTEST", index, 1); }

/* A measured product is right although its D was written many times. Its choice goes through
   text, and the run that reads the text has equal bits although it would measure otherwise. */
static void test_choice(void) {
    Small s = small_operands();
    char err[ERR_LEN] = "";
    cm_gpu.allow_tf32 = 0;
    gemm_choices_clear();
    check(gemm_choices_text(1) == NULL, "a text without choices");
    const float *unmeasured = small_product(s);
    small_check(s, unmeasured, "without measuring");
    check(cm_gpu.gemm_choice_count == 0, "a choice that was not measured");

    cm_gpu.gemm_measure = 1;
    set_fastest("1");
    gemm_choices_clear();
    const float *measured = small_product(s);
    small_check(s, measured, "when measured");
    check(equal_bits(measured, small_product(s)), "other bits after measuring");
    check(cm_gpu.gemm_choice_count == 1, "%zu choices of one product", cm_gpu.gemm_choice_count);
    if (emulated)
        check(!equal_bits(measured, unmeasured),
              "the emulator's two algorithms have the same bits");
    gemm(0, 0, SM, SN, SK, 1, s.dx, SK, s.dy, SN, 0, s.dz, SN); /* another kind of call */
    check(cm_gpu.gemm_choice_count == 2, "beta = 0 is no kind of its own");
    char *text = gemm_choices_text(1);

    set_fastest("0");
    gemm_choices_clear();
    check(gemm_choices_take(text, 1, err) == 0, "the text is not taken: %s", err);
    check(equal_bits(measured, small_product(s)), "a stored choice does not win over measuring");
    char *again = gemm_choices_text(1);
    check(again && !strcmp(text, again), "the text changes on the way");
    free(again);

    set_fastest("0"); /* reading choices drops earlier plans */
    gemm_choices_clear();
    small_product(s);
    check(gemm_choices_take(text, 1, err) == 0 && equal_bits(measured, small_product(s)),
          "an old plan is kept");

    cm_gpu.gemm_measure = 0; /* a run that reads choices need not measure */
    gemm_choices_clear();
    check(gemm_choices_take(text, 1, err) == 0, "the text is not taken: %s", err);
    check(equal_bits(measured, small_product(s)),
          "a stored choice counts only where measuring is on");
    again = gemm_choices_text(1);
    check(again && !strcmp(text, again), "the text changes where nothing is measured");
    free(again);

    cm_gpu.gemm_measure = 1; /* another order of first use gives the same text */
    set_fastest("1");
    gemm_choices_clear();
    gemm(0, 0, SM, SN, SK, 1, s.dx, SK, s.dy, SN, 0, s.dz, SN);
    small_product(s);
    again = gemm_choices_text(1);
    if (emulated)
        check(again && !strcmp(text, again), "the text depends on the order of the calls");
    free(again);
    check(strspn(text, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._ :;") ==
              strlen(text),
          "a character in the text that may be in the way: %.100s", text);
    free(text);
    cm_gpu.gemm_measure = 0;
    unsetenv("CM_EMU_FASTEST");
    gemm_choices_clear();
    release();
}

/* Measuring writes only D: neither a C apart from D nor the gradient's aux. It works with every
   epilogue. */
static void test_measured_cases(void) {
    cm_gpu.gemm_measure = 1;
    gemm_choices_clear();
    for (int fastest = 0; fastest < 2; fastest++) {
        set_fastest(fastest ? "1" : "0");
        gemm_choices_clear();
        for (int t = 0; t < 8; t++) {
            Case c = {};
            c.ta = t & 1;
            c.tb = t >> 1 & 1;
            c.M = 24;
            c.N = 32;
            c.K = 40;
            c.batch = 1 + t % 3;
            c.alpha = 1;
            c.apart = t >> 2;
            c.bias = t & 1;
            c.beta = t == 2 ? 0 : -1.5;
            run_case<floatX, floatX>(c);
            run_case<floatX, float>(c);
            c.beta = 0;
            c.epilogue = GEMM_GELU;
            run_case<floatX, floatX>(c);
            c.bias = 0;
            c.epilogue = GEMM_DGELU;
            run_case<floatX, floatX>(c);
        }
    }
    cm_gpu.gemm_measure = 0;
    unsetenv("CM_EMU_FASTEST");
    gemm_choices_clear();
}

/* Damage to a text of two choices. */
static void test_damage(void) {
    Small s = small_operands();
    char err[ERR_LEN];
    cm_gpu.gemm_measure = 1;
    gemm_choices_clear();
    small_product(s);
    gemm(0, 0, SM, SN, SK, 1, s.dx, SK, s.dy, SN, 0, s.dz, SN);
    cm_gpu.gemm_measure = 0;
    char *text = gemm_choices_text(1);
    size_t n = strlen(text);
    int bad = 0, silent = 0;
    for (size_t i = 0; i < n; i++) { /* cut off anywhere; one character changed */
        char *cut = strdup(text), *other = strdup(text);
        cut[i] = 0;
        other[i] = other[i] == '1' ? '2' : '1';
        err[0] = 0;
        bad += gemm_choices_take(cut, 1, err) == -1;
        silent += !err[0];
        bad += gemm_choices_take(other, 1, err) == -1;
        free(cut);
        free(other);
    }
    check((size_t)bad == 2 * n && !silent, "of %zu damages %d are seen, %d without a message",
          2 * n, bad, silent);
    static const char *const texts[] = {NULL,
                                        "",
                                        ";",
                                        "v1",
                                        "v1 1 x;",
                                        "v1 1 emulator;zz",
                                        "0123456789abcdef",
                                        ";0123456789abcdef",
                                        "v1 130000 NVIDIA_H100;0123456789ABCDEF",
                                        "\n\n\n"};
    for (int i = 0; i < 10; i++)
        check(gemm_choices_take(texts[i], 1, err) == -1, "damaged text %d is taken", i);
    char *huge = (char *)malloc((8 << 20) + 1);
    memset(huge, '7', 8 << 20);
    huge[8 << 20] = 0;
    huge[5] = ';';
    check(gemm_choices_take(huge, 1, err) == -1, "8 MB of sevens are taken");
    free(huge);
    check(cm_gpu.gemm_choice_count == 2, "a damaged text changes the choices");

    /* Texts with a right checksum: entries that are not entries, entries twice, another library,
       another GPU. */
    char header[GEMM_HEADER], *made = (char *)malloc(2 * n + GEMM_HEADER);
    gemm_header(header);
    size_t start = strlen(header);
#define TAKE(EXPECT, ...)                                                                          \
    do {                                                                                           \
        int m_ = snprintf(made, 2 * n + GEMM_HEADER - 20, __VA_ARGS__);                            \
        snprintf(made + m_, 20, "%016llx",                                                         \
                 (unsigned long long)fnv1a(FNV_BASIS, made, (size_t)m_));                          \
        err[0] = 0;                                                                                \
        int got_ = gemm_choices_take(made, 1, err);                                                \
        check(got_ == (EXPECT) && (err[0] != 0) == ((EXPECT) != 0), "take of %.60s... is %d: %s",  \
              made, got_, err);                                                                    \
    } while (0)
    const char *one = text + start, *two = one + GEMM_ENTRY;
    TAKE(-1, "%s%.*sx", header, (int)GEMM_ENTRY, one);
    TAKE(-1, "%s%.*s", header, (int)GEMM_ENTRY - 1, one);
    TAKE(-1, "%s%.*s%.*s", header, (int)GEMM_ENTRY, one, (int)GEMM_ENTRY, one);
    TAKE(-1, "%s%.*s%.*s", header, (int)GEMM_ENTRY, two, (int)GEMM_ENTRY, one);
    TAKE(-1, "%sG%.*s", header, (int)GEMM_ENTRY - 1, one + 1);
    TAKE(-1, "%s%.*s,", header, (int)GEMM_ENTRY - 1, one);
    TAKE(1, "v1 999999 %s%.*s", strchr(header + 3, ' ') + 1, (int)GEMM_ENTRY, one);
    TAKE(1, "%.*s_2;%.*s", (int)start - 1, header, (int)GEMM_ENTRY, one);
    TAKE(1, "v2%s%.*s", header + 2, (int)GEMM_ENTRY, one);
    check(cm_gpu.gemm_choice_count == 2, "a refused text changes the choices");
    gemm_choices_clear();
    TAKE(0, "%s%.*s", header, (int)GEMM_ENTRY, one);
    check(cm_gpu.gemm_choice_count == 1, "a text of one choice gives %zu",
          cm_gpu.gemm_choice_count);
    TAKE(0, "%s", header);
    check(cm_gpu.gemm_choice_count == 1, "a text without choices leaves %zu of 1",
          cm_gpu.gemm_choice_count);
    TAKE(0, "%s%.*s%.*s", header, (int)GEMM_ENTRY, one, (int)GEMM_ENTRY, two);
    check(cm_gpu.gemm_choice_count == 2, "a text of two choices leaves %zu",
          cm_gpu.gemm_choice_count);

    /* A choice of another run becomes a choice of this run when this run uses the product. */
    gemm_choices_clear();
    check(!gemm_choices_take(text, 0, err) && !gemm_choices_text(0),
          "choices of others are the run's own");
    small_product(s);
    char *own = gemm_choices_text(0), *all = gemm_choices_text(1);
    check(own && strlen(own) == strlen(all) - GEMM_ENTRY && !strcmp(all, text),
          "what the run met of others' choices");
    free(own);
    free(all);
    gemm_choices_clear();
    check(gemm_choices_take(text, 1, NULL) == 0 && gemm_choices_take("", 1, NULL) == -1,
          "without room for a message");

    free(made);
    free(text);
    gemm_choices_clear();
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* Tests that only the emulator allows */

#ifdef CM_EMU
static void test_pretended(void) {
    Small s = small_operands();
    cm_gpu.allow_tf32 = 0;
    gemm_choices_clear();
    const float *first = small_product(s);

    /* While the stream is captured, only the product itself is run, and its choice is kept. */
    cm_gpu.gemm_measure = 1;
    gemm_emu.capturing = 1;
    set_fastest("1");
    gemm_choices_clear();
    long runs = gemm_emu.runs;
    check(equal_bits(first, small_product(s)) && gemm_emu.runs == runs + 1,
          "measured while capturing");
    gemm_emu.capturing = 0;
    check(equal_bits(first, small_product(s)) && cm_gpu.gemm_choice_count == 1,
          "another choice after capturing");
    char *text = gemm_choices_text(1), err[ERR_LEN];

    /* A choice takes four runs, once: one of each algorithm, and both again. */
    gemm_choices_clear();
    runs = gemm_emu.runs;
    const float *second = small_product(s);
    check(gemm_emu.runs == runs + 5, "%ld runs for a choice of two", gemm_emu.runs - runs);
    small_product(s);
    check(gemm_emu.runs == runs + 6 && !equal_bits(first, second), "measured twice");
    set_fastest("0");
    gemm_choices_clear();
    check(equal_bits(first, small_product(s)), "the fastest is not taken");

    /* A stored choice also wins during a capture. */
    set_fastest("1");
    gemm_emu.capturing = 1;
    check(gemm_choices_take(text, 1, err) == 0 && equal_bits(first, small_product(s)),
          "the stored choice");
    gemm_emu.capturing = 0;

    /* A stored algorithm that does not exist is not run. The library's own is run, and a note on
       stderr says so. */
    cm_gpu.gemm_measure = 0;
    cm_gpu.gemm_choices[0].algo.data[7] = 1;
    gemm_plans_clear();
    check(equal_bits(first, small_product(s)), "an algorithm that there is not");
    char *repaired = gemm_choices_text(1);
    check(!strcmp(repaired, text), "the algorithm that there is not stays in the text");
    free(repaired);
    free(text);
    unsetenv("CM_EMU_FASTEST");
    gemm_choices_clear();
    release();
}

/* A measured gain decides if it is more than 2 %, twice. An algorithm that does not run is left
   out, and after too long a time nothing more is tried. Times are in the order of the
   measurements: proposals 0 and 1, then both again. */
static void test_times(void) {
    static const struct {
        double ms[5];
        int best, measured;
    } cases[] = {
        {{1, 0.97, 1, 0.97}, 1, 4},
        {{1, 0.985}, 0, 2},
        {{1, 0.97, 1, 0.985}, 0, 4},
        {{1, 1}, 0, 2},
        {{1, 2}, 0, 2},
        {{1, -1}, 0, 2},
        {{-1, 5}, 1, 2},
        {{-1, -1}, 0, 2},
        {{60, 1}, 0, 1},
        {{1, 0.5, 1, -1}, 0, 4},
        {{3, 2, 2, 1}, 1, 4},
    };
    Small s = small_operands();
    cm_gpu.gemm_measure = 1;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gemm_choices_clear();
        gemm_emu.times = cases[i].ms;
        small_product(s);
        int got = (int)cm_gpu.gemm_choices[0].algo.data[0],
            measured = (int)(gemm_emu.times - cases[i].ms);
        check(got == cases[i].best && measured == cases[i].measured,
              "times %zu: algorithm %d by %d measurements", i, got, measured);
    }
    gemm_emu.times = NULL;
    cm_gpu.gemm_measure = 0;
    gemm_choices_clear();
    release();
}

/* A library without some algorithms: GELU is refused, a bias is added separately, a batch is
   computed item by item. */
static void test_without(void) {
    float *x = random_array(64, 1), *d = on_device<float>(x, 64), *y = device_array<float>(64);
    float *h = device_array<float>(64);
    gemm_emu.refuse = 1 << GEMM_GELU | 1 << GEMM_DGELU | GEMM_EMU_BIAS;
    gemm_plans_clear();
    check(gemm_gelu(0, 0, 8, 8, 8, d, 8, d, 8, y, 8, h, 8) == -1 &&
              gemm_dgelu(0, 0, 8, 8, 8, d, 8, d, 8, y, 8, d, 8) == -1,
          "an epilogue that there is not");
    const float *still = on_host(y, 64);
    check(still[0] != still[0] && still[63] != still[63],
          "a product that there is not has written");
    release();
    for (int turn = 0; turn < 12; turn++) {
        Case c = {};
        gemm_emu.refuse = GEMM_EMU_BIAS | (turn < 6 ? 0 : GEMM_EMU_BATCH);
        gemm_plans_clear();
        c.M = 5;
        c.N = 9;
        c.K = 7;
        c.batch = 1 + turn % 3;
        c.pad = turn % 2;
        c.shift = 1;
        c.bias = 1;
        c.alpha = 1;
        c.beta = turn % 2;
        Operands<floatX, floatX> o = operands<floatX, floatX>(c);
        product(c, o);
        const float *apart = on_host(o.D.d, o.D.size);
        int right = 1;
        double excess;
        for (size_t item = 0; item < (size_t)c.batch; item++)
            for (size_t i = 0; i < 5; i++)
                for (size_t j = 0; j < 9; j++) {
                    Bounded b = reference(c, o, item, i, j);
                    b.room +=
                        storage<floatX>() * (fabs(b.value) + fabs((double)o.bias[1 + j]) + b.room);
                    right &= within(apart[o.D.at(item, i, j)], b, storage<floatX>(), &excess);
                }
        check(right, "what the library cannot do at once is wrong: %s", describe(c));
        release();
    }
    gemm_emu.refuse = GEMM_EMU_BATCH;
    for (int epilogue = GEMM_GELU; epilogue <= GEMM_DGELU; epilogue++) {
        Case c = {};
        c.M = 5;
        c.N = 9;
        c.K = 7;
        c.batch = 3;
        c.pad = 1;
        c.alpha = 1;
        c.epilogue = epilogue;
        c.bias = epilogue == GEMM_GELU;
        run_case<floatX, floatX>(c);
    }
    gemm_emu.refuse = 0;
    gemm_plans_clear();
}

/* 1 + 2^-11 is in the middle between two numbers of ten bits, 1 + 3 2^-12 above the middle. */
static void test_tf32(void) {
    const float x[] = {1 + 0x1p-11f, 1 + 0x1p-12f, -1 - 0x1.8p-11f, 3, 0x1p-149f, 0};
    const float rounded[] = {1 + 0x1p-10f, 1, -1 - 0x1p-10f, 3, 0, 0}, cut[] = {1, 1, -1, 3, 0, 0};
    for (int truncate = 0; truncate < 2; truncate++) {
        gemm_emu.truncate = truncate;
        for (int i = 0; i < 6; i++)
            check(gemm_to_tf32(x[i]) == (truncate ? cut : rounded)[i],
                  "TF32 of %a, truncate %d: %a", (double)x[i], truncate,
                  (double)gemm_to_tf32(x[i]));
        check(isinf(gemm_to_tf32(INFINITY)) && isnan(gemm_to_tf32(NAN)),
              "TF32 of numbers that are none");
        test_plain<float, float>(1);
        test_epilogues<float, float>(1);
    }
    gemm_emu.truncate = 0;
}
#endif

static void test_products(void) {
    test_plain<floatX, floatX>(0);
    test_plain<float, float>(1);
    test_batches<floatX, floatX>();
    test_epilogues<floatX, floatX>(0);
    if (sizeof(floatX) == 2) {
        test_plain<floatX, float>(0);
        test_plain<float, float>(0);
        test_batches<floatX, float>();
        test_epilogues<floatX, float>(0);
    } else {
        test_epilogues<float, float>(1);
    }
}

static void test_model_calls(void) { test_calls<floatX>(); }

static const Test tests[] = {
    TEST(products),  TEST(model_calls),    TEST(alignment), TEST(many_plans),
    TEST(choice),    TEST(measured_cases), TEST(damage),
#ifdef CM_EMU
    TEST(pretended), TEST(times),          TEST(without),   TEST(tf32),
#endif
};

int main(int argc, char **argv) {
    MUST(cudaStreamCreate(&cm_gpu.stream));
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
