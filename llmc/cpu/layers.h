/*
The model's layers on the CPU, forward and backward. Outputs come first, shapes are in the comments.
A backward function adds to parameter gradients and sets input gradients. A parameter gradient that
is NULL is skipped: its tensor is frozen. N = B T tokens. Every reduction has an order that the
number of threads fixes, so equal runs give equal bits. Attention and the matrix products have files
of their own.
*/
#ifndef CM_CPU_LAYERS_H
#define CM_CPU_LAYERS_H

#include "../base.h"
#include "../rope.h"
#include "../shape.h"
#include "gemm.h"
#include "simd.h"

#include <float.h>

/* The calling thread's part [lo, hi) of n items, inside a parallel region. */
static inline void thread_part(size_t n, size_t *lo, size_t *hi) {
#ifdef _OPENMP
    size_t k = (size_t)omp_get_num_threads(), i = (size_t)omp_get_thread_num();
#else
    size_t k = 1, i = 0;
#endif
    *lo = n * i / k;
    *hi = n * (i + 1) / k;
}

/* Makes zeroed room for n sums of every thread; those of thread t begin at sums_of(n, t).
   Returns 0, or -1 and a recorded failure if there is no memory. */
static inline int sums_reserve(size_t n) {
    size_t need = n * (size_t)thread_count();
    if (need > cm_cpu.sums_size) {
        free(cm_cpu.sums);
        cm_cpu.sums_size = 0;
        cm_cpu.sums = (floatM *)malloc(need * sizeof(floatM));
        if (!cm_cpu.sums)
            return device_fail("out of memory: %zu bytes of reduction scratch",
                               need * sizeof(floatM));
        cm_cpu.sums_size = need;
    }
    memset(cm_cpu.sums, 0, need * sizeof(floatM));
    return 0;
}

static inline floatM *sums_of(size_t n, int thread) { return cm_cpu.sums + n * (size_t)thread; }

/* out[i] += sum number first + i of every thread, in the order of the threads; a thread has
   `stride` sums. */
static inline void sums_add(floatM *out, size_t stride, size_t first, size_t n) {
    for (int t = 0; t < thread_count(); t++)
        for (size_t i = 0; i < n; i++) out[i] += sums_of(stride, t)[first + i];
}

/* x (B,T,C) = wte[token], plus wpe[position] unless wpe is NULL. */
static inline void embed_forward(floatX *x, const int *tokens, const floatX *wte, const floatX *wpe,
                                 int B, int T, int C) {
#pragma omp parallel for
    for (int n = 0; n < B * T; n++) {
        const floatX *e = wte + (size_t)tokens[n] * C, *p = wpe ? wpe + (size_t)(n % T) * C : NULL;
        floatX *row = x + (size_t)n * C;
        for (int c = 0; c < C; c++) row[c] = p ? e[c] + p[c] : e[c];
    }
}

/* dwte, dwpe += dx (B,T,C), each unless it is NULL. A thread owns columns, so equal tokens never
   race. */
static inline void embed_backward(floatM *dwte, floatM *dwpe, const floatX *dx, const int *tokens,
                                  int B, int T, int C) {
#pragma omp parallel
    {
        size_t lo, hi;
        thread_part((size_t)C, &lo, &hi);
        for (int n = 0; n < B * T; n++) {
            floatM *e = dwte ? dwte + (size_t)tokens[n] * C : NULL;
            floatM *p = dwpe ? dwpe + (size_t)(n % T) * C : NULL;
            const floatX *row = dx + (size_t)n * C;
            if (e)
                for (size_t c = lo; c < hi; c++) e[c] += row[c];
            if (p)
                for (size_t c = lo; c < hi; c++) p[c] += row[c];
        }
    }
}

/* 1 / sqrt(mean square + eps); 0 for a row of zeros without eps, whose norm is zeros. */
static inline floatM norm_rstd(double mean_square, double eps) {
    double x = mean_square + eps;
    return (floatM)(x == 0 ? 0 : 1.0 / sqrt(x));
}

/* y (N,C) = gain (x - mean) rstd + bias with rstd = 1 / sqrt(mean((x - mean)^2) + eps). RMSNorm
   has mean = 0 and no bias. If delta is not NULL, x = residual + delta, which is written to
   x_out (may be residual). mean and rstd (N) are kept for the backward pass. */
static inline void norm_forward(floatX *y, floatM *mean, floatM *rstd, floatX *x_out,
                                const floatX *residual, const floatX *delta, const floatM *gain,
                                const floatM *bias, int N, int C, int kind, double eps) {
    int centred = norm_is_centred((NormKind)kind);
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const floatX *x = residual + (size_t)n * C;
        floatX *row = y + (size_t)n * C;
        if (delta) {
            const floatX *d = delta + (size_t)n * C;
            floatX *sum = x_out + (size_t)n * C;
#pragma omp simd
            for (int c = 0; c < C; c++) sum[c] = x[c] + d[c];
            x = sum;
        }
        floatM m = 0, s = 0;
        if (centred) {
#pragma omp simd reduction(+ : m)
            for (int c = 0; c < C; c++) m += x[c];
            m /= C;
        }
#pragma omp simd reduction(+ : s)
        for (int c = 0; c < C; c++) s += (x[c] - m) * (x[c] - m);
        floatM r = norm_rstd((double)s / C, eps);
        if (bias)
            for (int c = 0; c < C; c++) row[c] = gain[c] * ((x[c] - m) * r) + bias[c];
        else
            for (int c = 0; c < C; c++) row[c] = gain[c] * ((x[c] - m) * r);
        mean[n] = m;
        rstd[n] = r;
    }
}

/* dx (N,C) = dres + the gradient of dy through the norm. dres may be NULL, or dx. dgain, dbias
   and dsum (C) are added to, each unless it is NULL. dsum gets the sum of dx over N: the bias
   gradient of a linear layer whose output gradient is dx. */
static inline void norm_backward(floatX *dx, floatM *dgain, floatM *dbias, floatM *dsum,
                                 const floatX *dy, const floatX *dres, const floatX *x,
                                 const floatM *gain, const floatM *mean, const floatM *rstd, int N,
                                 int C, int kind) {
    int centred = norm_is_centred((NormKind)kind);
    if (sums_reserve(3 * (size_t)C)) return;
#pragma omp parallel
    {
        size_t lo, hi;
        thread_part((size_t)N, &lo, &hi);
        floatM *dg = sums_of(3 * (size_t)C, thread_index()), *db = dg + C, *ds = db + C;
        for (size_t n = lo; n < hi; n++) {
            const floatX *row = x + n * C, *g = dy + n * C;
            floatX *out = dx + n * C;
            floatM m = mean[n], r = rstd[n], a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
            for (int c = 0; c < C; c++) {
                floatM xhat = (row[c] - m) * r, dxhat = g[c] * gain[c];
                a += dxhat;
                b += dxhat * xhat;
                dg[c] += g[c] * xhat;
            }
            if (dbias)
                for (int c = 0; c < C; c++) db[c] += g[c];
            a = centred ? a / C : 0;
            b /= C;
            const floatX *d = dres ? dres + n * C : NULL;
            if (d) {
#pragma omp simd
                for (int c = 0; c < C; c++)
                    out[c] = d[c] + r * (g[c] * gain[c] - a - (row[c] - m) * r * b);
            } else {
#pragma omp simd
                for (int c = 0; c < C; c++)
                    out[c] = r * (g[c] * gain[c] - a - (row[c] - m) * r * b);
            }
            if (dsum)
                for (int c = 0; c < C; c++) ds[c] += out[c];
        }
    }
    if (dgain) sums_add(dgain, 3 * (size_t)C, 0, (size_t)C);
    if (dbias) sums_add(dbias, 3 * (size_t)C, (size_t)C, (size_t)C);
    if (dsum) sums_add(dsum, 3 * (size_t)C, 2 * (size_t)C, (size_t)C);
}

/* Every row of y (N,O) = b (O). */
static inline void bias_forward(floatX *y, const floatX *b, int N, int O) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) memcpy(y + (size_t)n * O, b, (size_t)O * sizeof(floatX));
}

/* y (N,O) = x (N,I) w^T + b, with w (O,I) and b (O) or NULL. */
static inline void linear_forward(floatX *y, const floatX *x, const floatX *w, const floatX *b,
                                  int N, int I, int O) {
    if (b) bias_forward(y, b, N, O);
    gemm_model(0, 1, N, O, I, 1, x, I, w, I, b ? 1 : 0, y, O);
}

/* db (O) += the sum of dy (N,O) over N. */
static inline void bias_backward(floatM *db, const floatX *dy, int N, int O) {
    if (sums_reserve((size_t)O)) return;
#pragma omp parallel
    {
        size_t lo, hi;
        thread_part((size_t)N, &lo, &hi);
        floatM *sum = sums_of((size_t)O, thread_index());
        for (size_t n = lo; n < hi; n++)
            for (int o = 0; o < O; o++) sum[o] += dy[n * O + o];
    }
    sums_add(db, (size_t)O, 0, (size_t)O);
}

/* dx (N,I) = dy w. dw (O,I) = dy^T x, or += with `add`. db (O) += the sum of dy over N. Each of
   the three is skipped if it is NULL. */
static inline void linear_backward(floatX *dx, floatM *dw, floatM *db, const floatX *dy,
                                   const floatX *x, const floatX *w, int N, int I, int O, int add) {
    if (dx) gemm_model(0, 0, N, I, O, 1, dy, O, w, I, 0, dx, I);
    if (dw) gemm_model(1, 0, O, I, N, 1, dy, O, x, I, add ? 1 : 0, dw, I);
    if (db) bias_backward(db, dy, N, O);
}

/* C (M,N) = s op(A) op(B), or += with `add`, where the rows of A, B and C are lda, ldb and ldc
   numbers apart; op transposes if ta or tb is 1. C is of either type. For the factors of linear
   layers (linear.h). */
static inline void linear_product(int ta, int tb, int M, int N, int K, double s, const floatX *A,
                                  int lda, const floatX *B, int ldb, int add, floatX *C, int ldc) {
    gemm_model(ta, tb, M, N, K, (floatX)s, A, (size_t)lda, B, (size_t)ldb, add ? 1 : 0, C,
               (size_t)ldc);
}

/* Queries and keys in qkv (N, (NH + 2 NKV) HS), in place, head by head: with qk_norm
   RMS-normalised without a gain (rstd (N, NH + NKV) is kept), then, unless cosine is NULL,
   rotated by the angles of position first + n % T. */
static inline void qk_forward(floatX *qkv, floatM *rstd, const floatM *cosine, const floatM *sine,
                              int N, int T, int first, int NH, int NKV, int HS, int qk_norm,
                              double eps) {
    int heads = NH + NKV, half = HS / 2;
    if (!qk_norm && !cosine) return;
#pragma omp parallel for
    for (int n = 0; n < N; n++)
        for (int h = 0; h < heads; h++) {
            floatX *x = qkv + ((size_t)n * (heads + NKV) + h) * HS;
            if (qk_norm) {
                floatM s = 0;
#pragma omp simd reduction(+ : s)
                for (int i = 0; i < HS; i++) s += x[i] * x[i];
                floatM r = norm_rstd((double)s / HS, eps);
                for (int i = 0; i < HS; i++) x[i] *= r;
                rstd[(size_t)n * heads + h] = r;
            }
            if (cosine) {
                const floatM *c = cosine + (size_t)(first + n % T) * half;
                const floatM *s = sine + (size_t)(first + n % T) * half;
#pragma omp simd
                for (int j = 0; j < half; j++) {
                    floatM x1 = x[j], x2 = x[j + half];
                    x[j] = x1 * c[j] - x2 * s[j];
                    x[j + half] = x2 * c[j] + x1 * s[j];
                }
            }
        }
}

/* dqkv in place: from the gradient of normalised, rotated heads to the gradient of the
   projections. qkv holds the output of qk_forward. Rotating it back gives the normalised vector. */
static inline void qk_backward(floatX *dqkv, const floatX *qkv, const floatM *rstd,
                               const floatM *cosine, const floatM *sine, int N, int T, int NH,
                               int NKV, int HS, int qk_norm) {
    int heads = NH + NKV, half = HS / 2;
    if (!qk_norm && !cosine) return;
#pragma omp parallel for
    for (int n = 0; n < N; n++)
        for (int h = 0; h < heads; h++) {
            size_t at = ((size_t)n * (heads + NKV) + h) * HS;
            floatX *d = dqkv + at;
            const floatX *y = qkv + at;
            /* A rotation does not change the inner product of gradient and value. */
            floatM dot = 0;
            if (qk_norm) {
#pragma omp simd reduction(+ : dot)
                for (int i = 0; i < HS; i++) dot += d[i] * y[i];
            }
            floatM r = qk_norm ? rstd[(size_t)n * heads + h] : 1;
            dot /= HS;
            if (!cosine) {
                for (int i = 0; i < HS; i++) d[i] = r * (d[i] - y[i] * dot);
                continue;
            }
            const floatM *c = cosine + (size_t)(n % T) * half, *s = sine + (size_t)(n % T) * half;
#pragma omp simd
            for (int j = 0; j < half; j++) {
                floatM d1 = r * (d[j] - y[j] * dot), d2 = r * (d[j + half] - y[j + half] * dot);
                d[j] = d1 * c[j] + d2 * s[j];
                d[j + half] = d2 * c[j] - d1 * s[j];
            }
        }
}

#define GELU_A ((floatM)0.7978845608028654) /* sqrt(2 / pi) */
#define GELU_B ((floatM)0.044715)

/* y (N,F) = act(h). h is (N,F); with a gate it is (N,2F), the gate first, then the values that
   it multiplies. */
static inline void act_forward(floatX *y, const floatX *h, int N, int F, int act) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        floatX *out = y + (size_t)n * F;
        const floatX *in = h + (size_t)n * F * (1 + act_is_gated((ActKind)act));
        switch ((ActKind)act) {
        case ACT_GELU:
#pragma omp simd
            for (int i = 0; i < F; i++) {
                floatM x = in[i], u = GELU_A * (x + GELU_B * x * x * x);
                out[i] = (floatM)0.5 * x * (1 + fast_tanh(u));
            }
            break;
        case ACT_RELU2:
#pragma omp simd
            for (int i = 0; i < F; i++) {
                floatM x = in[i] > 0 ? in[i] : 0;
                out[i] = x * x;
            }
            break;
        case ACT_SWIGLU:
#pragma omp simd
            for (int i = 0; i < F; i++) out[i] = in[i] / (1 + fast_exp(-in[i])) * in[F + i];
            break;
        }
    }
}

/* dh = dy act'(h), with the shapes of act_forward. */
static inline void act_backward(floatX *dh, const floatX *dy, const floatX *h, int N, int F,
                                int act) {
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        const floatX *g = dy + (size_t)n * F;
        size_t at = (size_t)n * F * (1 + act_is_gated((ActKind)act));
        const floatX *in = h + at;
        floatX *out = dh + at;
        switch ((ActKind)act) {
        case ACT_GELU:
#pragma omp simd
            for (int i = 0; i < F; i++) {
                floatM x = in[i], t = fast_tanh(GELU_A * (x + GELU_B * x * x * x));
                floatM du = GELU_A * (1 + 3 * GELU_B * x * x);
                out[i] = g[i] * (floatM)0.5 * (1 + t + x * (1 - t * t) * du);
            }
            break;
        case ACT_RELU2:
#pragma omp simd
            for (int i = 0; i < F; i++) out[i] = in[i] > 0 ? 2 * in[i] * g[i] : 0;
            break;
        case ACT_SWIGLU:
#pragma omp simd
            for (int i = 0; i < F; i++) {
                floatM s = 1 / (1 + fast_exp(-in[i])), gate = in[i] * s;
                out[i] = g[i] * in[F + i] * (s + gate * (1 - s));
                out[F + i] = g[i] * gate;
            }
            break;
        }
    }
}

/* A linear layer and its activation: h (N,H) = x (N,I) w^T + b, y (N,F) = act(h). H is F, or 2F
   with a gate. b may be NULL. */
static inline void linear_act_forward(floatX *y, floatX *h, const floatX *x, const floatX *w,
                                      const floatX *b, int N, int I, int F, int act) {
    linear_forward(h, x, w, b, N, I, act_is_gated((ActKind)act) ? 2 * F : F);
    act_forward(y, h, N, F, act);
}

/* Recomputes y to the bit, from the arguments of linear_act_forward and the h that it has
   computed. */
static inline void linear_act_again(floatX *y, floatX *h, const floatX *x, const floatX *w,
                                    const floatX *b, int N, int I, int F, int act) {
    (void)x;
    (void)w;
    (void)b;
    (void)I;
    act_forward(y, h, N, F, act);
}

/* act_backward, and db (H) += the sum of dh over N, unless db is NULL. */
static inline void act_backward_bias(floatX *dh, floatM *db, const floatX *dy, const floatX *h,
                                     int N, int F, int act) {
    act_backward(dh, dy, h, N, F, act);
    if (db) bias_backward(db, dh, N, act_is_gated((ActKind)act) ? 2 * F : F);
}

/* From dz (N,O), the gradient of z = act(h) w^T with w (O,F), to dh (N,H) = (dz w) act'(h). dy
   (N,F) is room for dz w. db (H) += the sum of dh over N, unless db is NULL. */
static inline void linear_act_backward(floatX *dh, floatX *dy, floatM *db, const floatX *dz,
                                       const floatX *w, const floatX *h, int N, int F, int O,
                                       int act) {
    gemm_model(0, 0, N, F, O, 1, dz, O, w, F, 0, dy, F);
    act_backward_bias(dh, db, dy, h, N, F, act);
}

/* Caps logits (N,Vp) in place, columns [0, V): z becomes c z / sqrt(z^2 + c^2). c = 0 means no
   cap. */
static inline void softcap_forward(floatX *logits, int N, int V, int Vp, double softcap) {
    if (softcap <= 0) return;
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        floatX *z = logits + (size_t)n * Vp;
        for (int v = 0; v < V; v++)
            z[v] = (floatX)(softcap * ((double)z[v] / hypot((double)z[v], softcap)));
    }
}

/* Softmax cross entropy of each row against its target. Rows with target -1 have loss 0 and no
   gradient. Sets losses (N). Unless scale is 0, replaces logits (N,Vp), which are not capped
   yet, by their gradient times scale. Columns from V to Vp are padding: they are not read, and
   their gradient is 0. */
static inline void classifier(floatM *losses, floatX *logits, const int *targets, int N, int V,
                              int Vp, double softcap, double scale) {
    floatM inverse = softcap > 0 ? (floatM)fmin(1 / softcap, (double)FLT_MAX) : 0;
#pragma omp parallel for
    for (int n = 0; n < N; n++) {
        floatX *z = logits + (size_t)n * Vp;
        int target = targets[n];
        if (target < 0) {
            losses[n] = 0;
            if (scale != 0) memset(z, 0, (size_t)Vp * sizeof *z);
            continue;
        }
        /* With u = 1 / sqrt(1 + (z/c)^2), the capped logit is z u and its derivative u^3. */
        floatM max = simd_max(z, V); /* capping does not change which logit is the largest */
        if (inverse > 0) max /= CM_SQRT(1 + max * inverse * max * inverse);
        floatM sum = 0, zt = z[target], ut = 1;
        if (inverse > 0) {
            ut = 1 / CM_SQRT(1 + zt * inverse * zt * inverse);
#pragma omp simd reduction(+ : sum)
            for (int v = 0; v < V; v++) {
                floatM w = z[v] * inverse;
                sum += fast_exp(z[v] / CM_SQRT(1 + w * w) - max);
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (int v = 0; v < V; v++) sum += fast_exp(z[v] - max);
        }
        floatM lse = max + (floatM)log((double)sum), k = (floatM)scale;
        losses[n] = lse - zt * ut;
        if (scale == 0) continue;
        if (inverse > 0) {
#pragma omp simd
            for (int v = 0; v < V; v++) {
                floatM w = z[v] * inverse, u = 1 / CM_SQRT(1 + w * w);
                z[v] = k * fast_exp(z[v] * u - lse) * u * u * u;
            }
        } else {
#pragma omp simd
            for (int v = 0; v < V; v++) z[v] = k * fast_exp(z[v] - lse);
        }
        z[target] -= k * ut * ut * ut;
        for (int v = V; v < Vp; v++) z[v] = 0;
    }
}

/* *total += the N losses. */
static inline void losses_add(double *total, const floatM *losses, int N) {
    double sum = 0;
    for (int n = 0; n < N; n++) sum += (double)losses[n];
    *total += sum;
}

/* w (n) = the parameters p as the layers read them. Called only where floatX and floatM differ. */
static inline void cast_weights(floatX *w, const floatM *p, size_t n) {
    for (size_t i = 0; i < n; i++) w[i] = (floatX)p[i];
}

#endif
