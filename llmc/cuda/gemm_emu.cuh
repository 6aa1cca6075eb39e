/*
The matrix product without a GPU, for the emulator, behind the functions of gemm_lt.cuh. It has two
algorithms, so that there is a choice to make, to store and to read.
*/
#ifndef CM_CUDA_GEMM_EMU_CUH
#define CM_CUDA_GEMM_EMU_CUH

#include "gelu.cuh"
#include "gemm_kind.cuh"

/* data[0] = 0: the sum over k in order. data[0] = 1: the sums over the two halves of k, then
   added. */
typedef struct {
    uint64_t data[8];
} GemmAlgo;
typedef struct {
    int unused;
} GemmDescriptors;

/* What a test can pretend. capturing: the stream is being captured. refuse: there is no
   algorithm for these epilogues (bit 1 << GEMM_GELU and so on), for any bias or for any batch.
   truncate: the tensor cores drop the lower bits of fp32 input instead of rounding it to TF32. */
enum { GEMM_EMU_BIAS = 1 << 8, GEMM_EMU_BATCH = 1 << 9 };
typedef struct {
    int capturing, refuse, truncate;
    long runs;           /* products computed so far, including those that were timed */
    const double *times; /* what the next measurements find, unless NULL; -1: it does not run */
} GemmEmu;
inline GemmEmu gemm_emu;

static inline void gemm_device(char *text, size_t size) { snprintf(text, size, "emulator"); }
static inline size_t gemm_version(void) { return 1; }
static inline void gemm_start(void) {}
static inline int gemm_capturing(void) { return gemm_emu.capturing || emu.recording; }
static inline void gemm_describe(GemmDescriptors *, const GemmCall *) {}
static inline void gemm_forget(GemmDescriptors *) {}

static inline int gemm_algo_runs(const GemmDescriptors *, const GemmCall *c, const GemmAlgo *algo) {
    for (int i = 1; i < 8; i++)
        if (algo->data[i]) return 0;
    int asked =
        1 << c->epilogue | (c->bias ? GEMM_EMU_BIAS : 0) | (c->batch > 1 ? GEMM_EMU_BATCH : 0);
    return algo->data[0] < 2 && !(gemm_emu.refuse & asked);
}

static inline int gemm_propose(const GemmDescriptors *d, const GemmCall *c, GemmAlgo *algo,
                               int most) {
    int n = 0;
    for (int i = 0; i < 2 && n < most; i++) {
        memset(&algo[n], 0, sizeof algo[n]);
        algo[n].data[0] = (uint64_t)i;
        n += gemm_algo_runs(d, c, &algo[n]);
    }
    return n;
}

static inline float gemm_read(const void *p, size_t i, int type) {
    return type == GEMM_BF16 ? (float)((const __nv_bfloat16 *)p)[i] : ((const float *)p)[i];
}
static inline void gemm_write(void *p, size_t i, int type, float x) {
    if (type == GEMM_BF16) ((__nv_bfloat16 *)p)[i] = x;
    else ((float *)p)[i] = x;
}

/* TF32 has ten bits of mantissa. Rounding to nearest (ties away from zero) errs by up to 2^-11
   of x, truncation by up to 2^-10. */
static inline float gemm_to_tf32(float x) {
    unsigned bits = (unsigned)__float_as_int(x), half = gemm_emu.truncate ? 0 : 0x1000u;
    return isfinite(x) ? __int_as_float((int)((bits + half) & ~0x1fffu)) : x;
}

/* out (rows,cols) = the stored matrix, or, if transposed, the transpose of the stored
   (cols,rows). fp32 is rounded to TF32 if the call asks for it. */
static inline void gemm_gather(float *out, const void *p, size_t at, size_t ld, int transposed,
                               size_t rows, size_t cols, const GemmCall *c) {
    int tf32 = c->tf32 && c->in == GEMM_FP32;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) {
            float x = gemm_read(p, at + (transposed ? j * ld + i : i * ld + j), c->in);
            out[i * cols + j] = tf32 ? gemm_to_tf32(x) : x;
        }
}

/* sum (N) = the sum of a[k] b[k,:] over k in [from, to). */
static inline void gemm_row_sum(float *sum, const float *a, const float *b, size_t from, size_t to,
                                size_t N) {
    for (size_t n = 0; n < N; n++) sum[n] = 0;
    for (size_t k = from; k < to; k++)
        for (size_t n = 0; n < N; n++) sum[n] += a[k] * b[k * N + n];
}

/* Stores row m of an item from its sums. GELU's argument is stored rounded, but GELU is taken of
   the number before rounding. cuBLASLt's manual defines both outputs by the number in the
   compute type (section "Tensorwide Scaling", Aux_temp and D_temp = Epilogue(Aux_temp)); that is
   taken to hold for bf16 too. */
static inline void gemm_store_row(const GemmCall *c, const GemmOperands *o, size_t item, size_t m,
                                  const float *sum) {
    size_t row = item * (size_t)c->sc + m * (size_t)c->ldc;
    size_t aux = item * (size_t)c->saux + m * (size_t)c->ldaux;
    for (size_t n = 0; n < (size_t)c->N; n++) {
        float y = o->alpha * sum[n];
        if (o->beta != 0) y += o->beta * gemm_read(o->C, row + n, c->out);
        if (c->bias) y += gemm_read(o->bias, n, c->out);
        if (c->epilogue == GEMM_GELU) {
            gemm_write(o->aux, aux + n, c->out, y);
            y = gelu(y);
        } else if (c->epilogue == GEMM_DGELU) {
            y *= gelu_slope(gemm_read(o->aux, aux + n, c->out));
        }
        gemm_write(o->D, row + n, c->out, y);
    }
}

static inline void gemm_compute(const GemmCall *c, const GemmAlgo *algo, const GemmOperands *o) {
    size_t M = (size_t)c->M, N = (size_t)c->N, K = (size_t)c->K, half = algo->data[0] ? K / 2 : K;
    float *a = (float *)malloc(M * K * sizeof *a), *b = (float *)malloc(K * N * sizeof *b);
    float *sum = (float *)malloc(N * sizeof *sum), *rest = (float *)malloc(N * sizeof *rest);
    int room = a && b && sum && rest;
    if (!room) device_fail("out of memory: an emulated matrix product");
    gemm_emu.runs++;
    for (size_t item = 0; room && item < (size_t)c->batch; item++) {
        gemm_gather(a, o->A, item * (size_t)c->sa, (size_t)c->lda, c->ta, M, K, c);
        gemm_gather(b, o->B, item * (size_t)c->sb, (size_t)c->ldb, c->tb, K, N, c);
        for (size_t m = 0; m < M; m++) {
            gemm_row_sum(sum, a + m * K, b, 0, half, N);
            if (half < K) {
                gemm_row_sum(rest, a + m * K, b, half, K, N);
                for (size_t n = 0; n < N; n++) sum[n] += rest[n];
            }
            gemm_store_row(c, o, item, m, sum);
        }
    }
    free(a);
    free(b);
    free(sum);
    free(rest);
}

/* Queues a product, with copies of the arguments. */
static inline const char *gemm_run(GemmDescriptors *, const GemmCall *call, const GemmAlgo *chosen,
                                   const GemmOperands *operands) {
    emu_do([c = *call, algo = *chosen, o = *operands] { gemm_compute(&c, &algo, &o); });
    return NULL;
}

/* Milliseconds of one run, which are pretended: the algorithm that CM_EMU_FASTEST names in the
   environment is the fastest. */
static inline double gemm_time(GemmDescriptors *d, const GemmCall *c, const GemmAlgo *algo,
                               const GemmOperands *o, double *spent) {
    const char *fastest = getenv("CM_EMU_FASTEST");
    double ms = algo->data[0] == (fastest ? strtoull(fastest, NULL, 10) : 0) ? 1 : 2;
    if (gemm_emu.times) ms = *gemm_emu.times++;
    if (ms < 0 || gemm_run(d, c, algo, o)) return -1;
    *spent += ms;
    return ms;
}

static inline void gemm_library(char *text, size_t size) { snprintf(text, size, "emulated"); }

#endif
