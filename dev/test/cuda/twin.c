/*
Defines the functions of twin.h.
*/
#include "../../../llmc/cpu/backend.h"
#include "twin.h"

void cpu_embed_forward(float *x, const int *tokens, const float *wte, const float *wpe, int B,
                       int T, int C) {
    embed_forward(x, tokens, wte, wpe, B, T, C);
}

void cpu_embed_backward(float *dwte, float *dwpe, const float *dx, const int *tokens, int B, int T,
                        int C) {
    embed_backward(dwte, dwpe, dx, tokens, B, T, C);
}

void cpu_norm_forward(float *y, float *mean, float *rstd, float *x_out, const float *residual,
                      const float *delta, const float *gain, const float *bias, int N, int C,
                      int kind, double eps) {
    norm_forward(y, mean, rstd, x_out, residual, delta, gain, bias, N, C, kind, eps);
}

void cpu_norm_backward(float *dx, float *dgain, float *dbias, float *dsum, const float *dy,
                       const float *dres, const float *x, const float *gain, const float *mean,
                       const float *rstd, int N, int C, int kind) {
    norm_backward(dx, dgain, dbias, dsum, dy, dres, x, gain, mean, rstd, N, C, kind);
}

void cpu_linear_forward(float *y, const float *x, const float *w, const float *b, int N, int I,
                        int O) {
    linear_forward(y, x, w, b, N, I, O);
}

void cpu_linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x,
                         const float *w, int N, int I, int O, int add) {
    linear_backward(dx, dw, db, dy, x, w, N, I, O, add);
}

void cpu_bias_forward(float *y, const float *b, int N, int O) { bias_forward(y, b, N, O); }

void cpu_linear_product(int ta, int tb, int M, int N, int K, double s, const float *A, int lda,
                        const float *B, int ldb, int add, float *C, int ldc) {
    linear_product(ta, tb, M, N, K, s, A, lda, B, ldb, add, C, ldc);
}

void cpu_qk_forward(float *qkv, float *rstd, const float *cosine, const float *sine, int N, int T,
                    int first, int NH, int NKV, int HS, int qk_norm, double eps) {
    qk_forward(qkv, rstd, cosine, sine, N, T, first, NH, NKV, HS, qk_norm, eps);
}

void cpu_qk_backward(float *dqkv, const float *qkv, const float *rstd, const float *cosine,
                     const float *sine, int N, int T, int NH, int NKV, int HS, int qk_norm) {
    qk_backward(dqkv, qkv, rstd, cosine, sine, N, T, NH, NKV, HS, qk_norm);
}

void cpu_act_forward(float *y, const float *h, int N, int F, int act) {
    act_forward(y, h, N, F, act);
}

void cpu_act_backward(float *dh, const float *dy, const float *h, int N, int F, int act) {
    act_backward(dh, dy, h, N, F, act);
}

void cpu_act_backward_bias(float *dh, float *db, const float *dy, const float *h, int N, int F,
                           int act) {
    act_backward_bias(dh, db, dy, h, N, F, act);
}

void cpu_linear_act_forward(float *y, float *h, const float *x, const float *w, const float *b,
                            int N, int I, int F, int act) {
    linear_act_forward(y, h, x, w, b, N, I, F, act);
}

void cpu_linear_act_backward(float *dh, float *dy, float *db, const float *dz, const float *w,
                             const float *h, int N, int F, int O, int act) {
    linear_act_backward(dh, dy, db, dz, w, h, N, F, O, act);
}

void cpu_softcap_forward(float *logits, int N, int V, int Vp, double softcap) {
    softcap_forward(logits, N, V, Vp, softcap);
}

void cpu_classifier(float *losses, float *logits, const int *targets, int N, int V, int Vp,
                    double softcap, double scale) {
    classifier(losses, logits, targets, N, V, Vp, softcap, scale);
}

void cpu_rope_table(float *cosine, float *sine, int T, int HS, int pos, double base) {
    rope_table(cosine, sine, T, HS, pos, base);
}

void cpu_attention_forward(float *out, float *lse, const float *qkv, int B, int T, int NH, int NKV,
                           int HS, double scale) {
    attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale);
}

void cpu_attention_backward(float *dqkv, const float *dout, const float *qkv, const float *out,
                            const float *lse, int B, int T, int NH, int NKV, int HS, double scale) {
    attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
}

void cpu_attention_decode(float *out, const float *q, const float *k_cache, const float *v_cache,
                          int t, int NH, int NKV, int HS, double scale) {
    attention_decode(out, q, k_cache, v_cache, t, NH, NKV, HS, scale);
}

void cpu_la_copy(Mat Y, Mat X) { la_copy(Y, X); }

void cpu_la_axpby(Mat Y, double a, Mat X, double b) { la_axpby(Y, a, X, b); }

void cpu_la_momentum(Mat U, Mat M, Mat G, double beta, double gain, int nesterov) {
    la_momentum(U, M, G, beta, gain, nesterov);
}

void cpu_la_gemm(Mat C, double a, Mat A, Mat B, double b) { la_gemm(C, a, A, B, b); }

void cpu_la_gemm_symmetric(Mat C, double a, Mat A, Mat B, double b) {
    la_gemm_symmetric(C, a, A, B, b);
}

void cpu_la_gemm_add(Mat D, double a, Mat A, Mat B, double b, Mat C) {
    la_gemm_add(D, a, A, B, b, C);
}

void cpu_la_gemm_add_symmetric(Mat D, double a, Mat A, Mat B, double b, Mat C) {
    la_gemm_add_symmetric(D, a, A, B, b, C);
}

void cpu_la_round_bf16(Mat X) { la_round_bf16(X); }

void cpu_la_gram(Mat G, Mat A, double b) { la_gram(G, A, b); }

void cpu_la_polynomial(Mat Y, double a, double b, Mat X, double c, Mat Z) {
    la_polynomial(Y, a, b, X, c, Z);
}

double cpu_la_identity_gap(Mat X) { return la_identity_gap(X); }

void cpu_la_symmetrize(Mat X) { la_symmetrize(X); }

void cpu_la_norms(float *s, Mat X, int group) { la_norms(s, X, group); }

void cpu_la_units(float *s, Mat X) { la_units(s, X); }

void cpu_la_scale_units(Mat X, const float *s) { la_scale_units(X, s); }

void cpu_la_vec_unit_roots(float *s, int n) { la_vec_unit_roots(s, n); }

void cpu_la_definite(Mat G, double damping, float *scratch) { la_definite(G, damping, scratch); }

int cpu_la_rootless(void) { return la_rootless(); }

double cpu_la_sum_squares(const float *x, size_t n) { return la_sum_squares(x, n); }

void cpu_la_scale(Mat X, const float *s, int group) { la_scale(X, s, group); }

void cpu_la_vec_recip(float *s, int n) { la_vec_recip(s, n); }

void cpu_la_vec_rroot(float *s, int n, double a, double b, double power) {
    la_vec_rroot(s, n, a, b, power);
}

void cpu_la_vec_damping(float *s, int n, double a, double b, double floor) {
    la_vec_damping(s, n, a, b, floor);
}
void cpu_la_vec_div(float *s, const float *t, int n) { la_vec_div(s, t, n); }

void cpu_la_vec_mul(float *s, int n, double a) { la_vec_mul(s, n, a); }

void cpu_la_vec_sqrt(float *s, int n) { la_vec_sqrt(s, n); }

void cpu_la_adamw(Mat P, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2,
                  double rate, double root, double eps, double keep, float *copy) {
    la_adamw(P, G, M, V, gscale, beta1, beta2, rate, root, eps, keep, copy);
}

size_t cpu_la_eigh_scratch(int n) { return la_eigh_scratch(n); }

void cpu_la_eigh_rroot(Mat R, Mat G, double damping, double power, float *scratch) {
    la_eigh_rroot(R, G, damping, power, scratch);
}

void cpu_la_inner(float *s, Mat X, Mat Y, int group) { la_inner(s, X, Y, group); }

void cpu_la_add_scaled(Mat Y, double a, const float *s, Mat X, int group) {
    la_add_scaled(Y, a, s, X, group);
}

void cpu_la_row_norms(float *norms, Mat X) { la_row_norms(norms, X); }

void cpu_la_scale_rows(Mat Y, const float *s, Mat X) { la_scale_rows(Y, s, X); }

void cpu_la_adam(Mat U, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2, double rate,
                 double root, double eps) {
    la_adam(U, G, M, V, gscale, beta1, beta2, rate, root, eps);
}

void cpu_la_eigh(Mat Q, float *values, Mat G, float *scratch) { la_eigh(Q, values, G, scratch); }

void cpu_la_gauge(Mat S, Mat L, Mat R, const float *values_a, const float *values_b, double damping,
                  int form) {
    la_gauge(S, L, R, values_a, values_b, damping, form);
}

void cpu_la_vec_gauge(float *x, const float *l, const float *r, const float *norm_a,
                      const float *norm_b, int n, double damping, int form) {
    la_vec_gauge(x, l, r, norm_a, norm_b, n, damping, form);
}

void cpu_la_vec_moment(float *v, const float *s, int n, double beta, double a) {
    la_vec_moment(v, s, n, beta, a);
}

void cpu_la_vec_root_recip(float *s, const float *v, int n, double eps) {
    la_vec_root_recip(s, v, n, eps);
}

void cpu_la_vec_balance(float *s, const float *t, int n, double target, double power) {
    la_vec_balance(s, t, n, target, power);
}

void cpu_la_vec_ratio_power(float *s, const float *t, int n, double power) {
    la_vec_ratio_power(s, t, n, power);
}

void cpu_la_vec_cold(float *s, const float *t, int n, double a, double c) {
    la_vec_cold(s, t, n, a, c);
}

void cpu_la_vec_escape(float *s, const float *v, const float *w, int n, int k, double keep) {
    la_vec_escape(s, v, w, n, k, keep);
}

void cpu_la_chol_inverse(Mat X, Mat G, float *scratch) { la_chol_inverse(X, G, scratch); }
