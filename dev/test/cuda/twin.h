/*
The CPU backend beside the CUDA backend, for tests: each function of llmc/cpu as cpu_NAME, in float,
compiled as C in twin.c and twin_plan.c. Views (Mat) hold pointers to host memory.
*/
#ifndef CM_TWIN_H
#define CM_TWIN_H

#include "../../../llmc/linalg.h"

#ifdef __cplusplus
extern "C" {
#endif

void cpu_embed_forward(float *x, const int *tokens, const float *wte, const float *wpe, int B,
                       int T, int C);
void cpu_embed_backward(float *dwte, float *dwpe, const float *dx, const int *tokens, int B, int T,
                        int C);
void cpu_norm_forward(float *y, float *mean, float *rstd, float *x_out, const float *residual,
                      const float *delta, const float *gain, const float *bias, int N, int C,
                      int kind, double eps);
void cpu_norm_backward(float *dx, float *dgain, float *dbias, float *dsum, const float *dy,
                       const float *dres, const float *x, const float *gain, const float *mean,
                       const float *rstd, int N, int C, int kind);
void cpu_linear_forward(float *y, const float *x, const float *w, const float *b, int N, int I,
                        int O);
void cpu_linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x,
                         const float *w, int N, int I, int O, int add);
void cpu_bias_forward(float *y, const float *b, int N, int O);
void cpu_linear_product(int ta, int tb, int M, int N, int K, double s, const float *A, int lda,
                        const float *B, int ldb, int add, float *C, int ldc);
void cpu_qk_forward(float *qkv, float *rstd, const float *cosine, const float *sine, int N, int T,
                    int first, int NH, int NKV, int HS, int qk_norm, double eps);
void cpu_qk_backward(float *dqkv, const float *qkv, const float *rstd, const float *cosine,
                     const float *sine, int N, int T, int NH, int NKV, int HS, int qk_norm);
void cpu_act_forward(float *y, const float *h, int N, int F, int act);
void cpu_act_backward(float *dh, const float *dy, const float *h, int N, int F, int act);
void cpu_act_backward_bias(float *dh, float *db, const float *dy, const float *h, int N, int F,
                           int act);
void cpu_linear_act_forward(float *y, float *h, const float *x, const float *w, const float *b,
                            int N, int I, int F, int act);
void cpu_linear_act_backward(float *dh, float *dy, float *db, const float *dz, const float *w,
                             const float *h, int N, int F, int O, int act);
void cpu_softcap_forward(float *logits, int N, int V, int Vp, double softcap);
void cpu_classifier(float *losses, float *logits, const int *targets, int N, int V, int Vp,
                    double softcap, double scale);
void cpu_rope_table(float *cosine, float *sine, int T, int HS, int pos, double base);
void cpu_attention_forward(float *out, float *lse, const float *qkv, int B, int T, int NH, int NKV,
                           int HS, double scale);
void cpu_attention_backward(float *dqkv, const float *dout, const float *qkv, const float *out,
                            const float *lse, int B, int T, int NH, int NKV, int HS, double scale);
void cpu_attention_decode(float *out, const float *q, const float *k_cache, const float *v_cache,
                          int t, int NH, int NKV, int HS, double scale);
void cpu_la_copy(Mat Y, Mat X);
void cpu_la_axpby(Mat Y, double a, Mat X, double b);
void cpu_la_momentum(Mat U, Mat M, Mat G, double beta, double gain, int nesterov);
void cpu_la_gemm(Mat C, double a, Mat A, Mat B, double b);
void cpu_la_gemm_symmetric(Mat C, double a, Mat A, Mat B, double b);
void cpu_la_gemm_add(Mat D, double a, Mat A, Mat B, double b, Mat C);
void cpu_la_gemm_add_symmetric(Mat D, double a, Mat A, Mat B, double b, Mat C);
void cpu_la_round_bf16(Mat X);
void cpu_la_gram(Mat G, Mat A, double b);
void cpu_la_polynomial(Mat Y, double a, double b, Mat X, double c, Mat Z);
double cpu_la_identity_gap(Mat X);
void cpu_la_symmetrize(Mat X);
void cpu_la_norms(float *s, Mat X, int group);
void cpu_la_units(float *s, Mat X);
void cpu_la_scale_units(Mat X, const float *s);
void cpu_la_vec_unit_roots(float *s, int n);
void cpu_la_definite(Mat G, double damping, float *scratch);
int cpu_la_rootless(void);
double cpu_la_sum_squares(const float *x, size_t n);
void cpu_la_scale(Mat X, const float *s, int group);
void cpu_la_vec_recip(float *s, int n);
void cpu_la_vec_rroot(float *s, int n, double a, double b, double power);
void cpu_la_vec_damping(float *s, int n, double a, double b, double floor);
void cpu_la_vec_div(float *s, const float *t, int n);
void cpu_la_vec_mul(float *s, int n, double a);
void cpu_la_vec_sqrt(float *s, int n);
void cpu_la_adamw(Mat P, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2,
                  double rate, double root, double eps, double keep, float *copy);
size_t cpu_la_eigh_scratch(int n);
void cpu_la_eigh_rroot(Mat R, Mat G, double damping, double power, float *scratch);
void cpu_la_inner(float *s, Mat X, Mat Y, int group);
void cpu_la_add_scaled(Mat Y, double a, const float *s, Mat X, int group);
void cpu_la_row_norms(float *norms, Mat X);
void cpu_la_scale_rows(Mat Y, const float *s, Mat X);
void cpu_la_adam(Mat U, Mat G, Mat M, Mat V, double gscale, double beta1, double beta2, double rate,
                 double root, double eps);
void cpu_la_eigh(Mat Q, float *values, Mat G, float *scratch);
void cpu_la_gauge(Mat S, Mat L, Mat R, const float *values_a, const float *values_b, double damping,
                  int form);
void cpu_la_vec_gauge(float *x, const float *l, const float *r, const float *norm_a,
                      const float *norm_b, int n, double damping, int form);
void cpu_la_vec_moment(float *v, const float *s, int n, double beta, double a);
void cpu_la_vec_root_recip(float *s, const float *v, int n, double eps);
void cpu_la_vec_balance(float *s, const float *t, int n, double target, double power);
void cpu_la_vec_ratio_power(float *s, const float *t, int n, double power);
void cpu_la_vec_cold(float *s, const float *t, int n, double a, double c);
void cpu_la_vec_escape(float *s, const float *v, const float *w, int n, int k, double keep);
void cpu_la_chol_inverse(Mat X, Mat G, float *scratch);

/* Update number `step` (from 1) of a model of these flags: parameters p, gradients g, first
   moments m and states v lie as the registry and the plan of the flags lay them out. */
void cpu_plan_step(const char *flags, float *p, float *g, float *m, float *v, int step);

#ifdef __cplusplus
}
#endif

#endif
