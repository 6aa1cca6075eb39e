/*
libcmuon: Compositional Muon, LoRA-Muon and Muon for programs that are not this trainer. A C ABI
without dependencies; docs/libcmuon.md has the options and an example.

Matrices are float32, row-major, in nn.Linear orientation [out, in], contiguous. All buffers are the
caller's: weights w and momenta m are updated in place, gradients g are only read. Momenta start at
zero. eta is the learning rate of this step.

Every call checks its arguments and its input, works on a copy and writes back only a finite result:
a call that does not return 0 leaves every buffer as it was, to the bit. The library never exits,
aborts or prints and keeps no state between calls, so calls from several threads on different
buffers need no lock; one cm_options may serve them all as long as nobody sets it meanwhile.
*/
#ifndef CMUON_H
#define CMUON_H

#if defined(__GNUC__)
#define CM_API __attribute__((visibility("default")))
#else
#define CM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Zero is success. The numbers are part of the ABI; cm_strerror has a sentence for each. */
enum {
    CM_OK = 0,
    CM_ENULL = 1,        /* a pointer is NULL */
    CM_ESIZE = 2,        /* a size is not positive or too large, or a rank above m or n */
    CM_EHEADS = 3,       /* n_head is not a multiple of n_kv_head */
    CM_ENUMBER = 4,      /* eta is not finite, or damping is negative or not finite */
    CM_EKEY = 5,         /* no option has this name */
    CM_EVALUE = 6,       /* the option does not take this value */
    CM_ECOMBINATION = 7, /* these options have no meaning together, or not for this call */
    CM_EUNSUPPORTED = 8, /* a value that this build cannot serve */
    CM_ENOMEM = 9,       /* out of memory */
    CM_EOVERLAP = 10,    /* a buffer that is written overlaps another one */
    CM_ENONFINITE = 11,  /* NaN or infinity in a buffer */
    CM_EOVERFLOW = 12,   /* finite input, but the result would not be */
    CM_EINTERNAL = 13,   /* a mistake in this library */
    CM_EINDEFINITE = 14  /* a matrix has no inverse root: it is not positive definite */
};

/* One sentence in English, for any number. The text is a constant. */
CM_API const char *cm_strerror(int code);

typedef struct cm_options cm_options;

/* Options with the defaults of docs/libcmuon.md; NULL without memory. A function that gets NULL for
   its options takes these defaults. */
CM_API cm_options *cm_options_new(void);

/* Sets one option; name and value are text: ("inv_root", "cans12"). The keys are the names
   of the trainer's flags, with _ or -; on, off, 1 and 0 are all understood. On an error
   nothing changes. */
CM_API int cm_options_set(cm_options *options, const char *key, const char *value);

CM_API void cm_options_free(cm_options *options); /* NULL is allowed */

/* One step of the QK circuit. wq, gq, mq: (n_head * head_dim, d_model); wk, gk, mk:
   (n_kv_head * head_dim, d_model). Query head h uses key head h / (n_head / n_kv_head). */
CM_API int cm_qk(float *wq, float *wk, const float *gq, const float *gk, float *mq, float *mk,
                 int d_model, int n_head, int n_kv_head, int head_dim, float eta,
                 const cm_options *options);

/* One step of the OV circuit. wv, gv, mv: (n_kv_head * head_dim, d_model); wo, go, mo:
   (d_model, n_head * head_dim), a head being a block of columns. */
CM_API int cm_ov(float *wv, float *wo, const float *gv, const float *go, float *mv, float *mo,
                 int d_model, int n_head, int n_kv_head, int head_dim, float eta,
                 const cm_options *options);

/* One step of the factors of W = W_pre + s A B^T (an adapter, or with W_pre = 0 a low-rank matrix)
   by LoRA-Muon (arXiv 2606.12921, algorithm 1). a, ga, ma: (m, r), A; b, gb, mb: (r, n), B^T; both
   lie as the weights of linear layers do. PEFT names them the other way round: a is lora_B.weight,
   b is lora_A.weight, and s, the option lora_scale, is its scaling, lora_alpha / r. The rank r is
   at most min(m, n), else CM_ESIZE. ga and gb are the gradients of the factors themselves, as
   backward passes give them.

   eta is the learning rate of W, whatever r and s are and however the size of W is shared between A
   and B: to first order the step of W has a spectral norm of at most eta. weight_decay multiplies
   A B^T by 1 - eta weight_decay, which must be above 0 (CM_ECOMBINATION). One factor may be zero,
   as adapters begin; lora_trust then bounds the first steps of the other. */
CM_API int cm_lora(float *a, float *b, const float *ga, const float *gb, float *ma, float *mb,
                   int m, int n, int r, float eta, const cm_options *options);

/* One step of Muon on a matrix (rows, cols). */
CM_API int cm_muon(float *w, const float *g, float *m, int rows, int cols, float eta,
                   const cm_options *options);

/* x (rows, cols) <- its matrix sign U V^T. */
CM_API int cm_msign(float *x, int rows, int cols, const cm_options *options);

/* gram (n, n) <- (gram + damping I)^(-1/2), which must be positive definite, or zero: that counts
   as 1e-12 I. With inv_root pe7 it may be singular, and the root of zero is zero. Of gram only the
   symmetric part is read. */
CM_API int cm_inv_sqrt(float *gram, int n, float damping, const cm_options *options);

#ifdef __cplusplus
}
#endif

#endif
