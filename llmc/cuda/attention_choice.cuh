/*
Who computes attention: our kernels (attention.cuh) or cuDNN's (cudnn.cuh), by --attention and by a trial at
start. The trial runs both on random numbers of the run's own shape, and asks that cuDNN agrees with ours, that
its repetitions give equal bits, and, where the choice is ours, that it is faster.

After the trial nothing is chosen again: a run that went over to other kernels in the middle would go on in other
bits than the same run uninterrupted. So a pass that cuDNN then refuses ends the program.
*/
#ifndef CM_CUDA_ATTENTION_CHOICE_CUH
#define CM_CUDA_ATTENTION_CHOICE_CUH

#include "../config.h"
#include "cudnn.cuh"
#include "noise.cuh"

/* Results of one forward and backward pass, on the device. */
typedef struct {
    floatX *out, *dqkv;
    floatM *lse;
} AttentionResult;

/* One batch of random numbers, and what is made of it. */
typedef struct {
    int B, T, NH, NKV, HS;
    double scale;
    floatX *qkv, *dout;
    AttentionResult now, first; /* of this run, and of cuDNN's first */
    int *differs;
    char *memory;
    size_t results; /* bytes from now.out to the end of now.lse */
} AttentionTrial;

/* Sequences of a trial whose numbers are compared on the host. */
enum { TRIAL_SEQUENCES = 4 };

/* Elements of out, of dqkv and of lse of B sequences. */
static inline size_t trial_out(const AttentionTrial *t, int B) {
    return (size_t)B * (size_t)t->T * (size_t)(t->NH * t->HS);
}
static inline size_t trial_qkv(const AttentionTrial *t, int B) {
    return (size_t)B * (size_t)t->T * (size_t)((t->NH + 2 * t->NKV) * t->HS);
}
static inline size_t trial_rows(const AttentionTrial *t, int B) { return (size_t)B * (size_t)t->T * (size_t)t->NH; }

/* *differs = 1 where n words of a and b are not all the same. Every thread that writes writes 1. */
__global__ static void attention_differs(const unsigned *a, const unsigned *b, size_t n, int *differs) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && a[i] != b[i]) *differs = 1;
}

/* Divides one allocation among the arrays of a trial of t->B sequences; NULL: returns its size in bytes. */
static inline size_t trial_layout(AttentionTrial *t, char *memory) {
    size_t out = trial_out(t, t->B) * sizeof(floatX), qkv = trial_qkv(t, t->B) * sizeof(floatX);
    size_t lse = trial_rows(t, t->B) * sizeof(floatM);
    const size_t sizes[9] = {qkv, out, out, qkv, lse, out, qkv, lse, sizeof(int)};
    size_t at[10] = {0};
    for (int i = 0; i < 9; i++) at[i + 1] = at[i] + (sizes[i] + 255) / 256 * 256;
    if (!memory) return at[9];
    t->memory = memory, t->results = at[4] + lse - at[2];
    t->qkv = (floatX *)(void *)memory, t->dout = (floatX *)(void *)(memory + at[1]);
    t->now = {(floatX *)(void *)(memory + at[2]), (floatX *)(void *)(memory + at[3]),
              (floatM *)(void *)(memory + at[4])};
    t->first = {(floatX *)(void *)(memory + at[5]), (floatX *)(void *)(memory + at[6]),
                (floatM *)(void *)(memory + at[7])};
    t->differs = (int *)(void *)(memory + at[8]);
    return at[9];
}

static inline void trial_free(AttentionTrial *t) {
    if (t->memory) CUDA_CHECK(cudaFree(t->memory));
    t->memory = NULL;
}

/* Plans t->B sequences and takes the memory for them, with the scratch of both kinds of attention. Returns 1 where
   there is too little, -1 where cuDNN has no plan. */
static inline int trial_take(AttentionTrial *t, char *why, size_t size) {
    char *memory = NULL;
    if (cudnn_attention_plan(t->B, t->T, t->NH, t->NKV, t->HS, t->scale, why, size)) return -1;
    size_t ours = attention_scratch(t->B, t->T, t->NH, t->NKV, t->HS);
    size_t theirs = cudnn_attention_workspace(t->B, t->T, t->NH, t->NKV, t->HS, t->scale);
    if (cudaMalloc((void **)&memory, trial_layout(t, NULL)) != cudaSuccess) {
        cudaGetLastError(); /* forget it */
        return 1;
    }
    trial_layout(t, memory);
    if (!cuda_scratch_reserve(theirs > ours ? theirs : ours)) return 0;
    trial_free(t);
    return 1;
}

/* A trial of the run's batch, or of the largest half, quarter... of it that the memory has room for: two sums that
   race for one place are likelier to be seen in a full grid. */
static inline int trial_start(AttentionTrial *t, const Config *c, char *why, size_t size) {
    memset(t, 0, sizeof *t);
    t->T = c->seq_len, t->NH = c->heads, t->NKV = c->kv_heads, t->HS = c->head_dim, t->scale = c->attn_scale;
    int status = 1;
    for (t->B = c->batch_size; t->B; t->B /= 2) {
        status = trial_take(t, why, size);
        if (status != 1) break;
    }
    if (status < 0) return -1;
    if (status) return cudnn_refuse(why, size, "no room to try cuDNN");
    size_t qkv = trial_qkv(t, t->B), out = trial_out(t, t->B);
    device_noise(t->qkv, qkv, sqrt(3), 1); /* of variance 1 */
    device_noise(t->dout, out, sqrt(3), 77777);
    return 0;
}

/* Forward and backward by one of the two; -1: cuDNN refuses. */
static inline int trial_run(const AttentionTrial *t, int library) {
    const AttentionResult *r = &t->now;
    if (library) {
        if (cudnn_attention_forward(r->out, r->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS, t->scale)) return -1;
        return cudnn_attention_backward(r->dqkv, t->dout, t->qkv, r->out, r->lse, t->B, t->T, t->NH, t->NKV, t->HS,
                                        t->scale);
    }
    flash_forward(r->out, r->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS, t->scale);
    flash_backward(r->dqkv, t->dout, t->qkv, r->out, r->lse, t->B, t->T, t->NH, t->NKV, t->HS, t->scale);
    return 0;
}

/* The same into memory that holds NaN, so that what is not written is noticed. */
static inline int trial_run_anew(const AttentionTrial *t, int library) {
    CUDA_CHECK(cudaMemsetAsync(t->now.out, 0xff, t->results, cuda_stream));
    return trial_run(t, library);
}

/* Copies the results of the first TRIAL_SEQUENCES to the host; free r->out. -1: no memory. */
static inline int trial_download(const AttentionTrial *t, AttentionResult *r) {
    int B = min_int(t->B, TRIAL_SEQUENCES);
    size_t out = trial_out(t, B) * sizeof(floatX), qkv = trial_qkv(t, B) * sizeof(floatX);
    size_t lse = trial_rows(t, B) * sizeof(floatM);
    char *memory = (char *)malloc(out + qkv + lse + 16);
    if (!memory) return -1;
    *r = {(floatX *)(void *)memory, (floatX *)(void *)(memory + out), (floatM *)(void *)(memory + out + qkv)};
    CUDA_CHECK(cudaMemcpyAsync(r->out, t->now.out, out, cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaMemcpyAsync(r->dqkv, t->now.dqkv, qkv, cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaMemcpyAsync(r->lse, t->now.lse, lse, cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream));
    return 0;
}

/* ||a - b|| / ||b|| over columns first .. first + count of rows of `width` elements; infinity for NaN. */
template <typename T>
static inline double attention_distance(const T *a, const T *b, size_t rows, int width, int first, int count) {
    double d = 0, s = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t k = i * (size_t)width + (size_t)first, end = k + (size_t)count; k < end; k++) {
            double x = (double)(float)a[k], y = (double)(float)b[k];
            d += (x - y) * (x - y), s += y * y;
        }
    double r = sqrt(d / s);
    return r == r ? r : INFINITY;
}

/* Whether cuDNN computes what our attention does. Both round p and ds to bf16, so that results differ by some 2^-9
   of their size, gradients by some more. dq, dk and dv are compared one by one: the largest would hide errors of
   the others. */
static inline int trial_agrees(const AttentionTrial *t, const AttentionResult *own, const AttentionResult *theirs,
                               char *why, size_t size) {
    size_t rows = (size_t)min_int(t->B, TRIAL_SEQUENCES) * (size_t)t->T;
    int C = t->NH * t->HS, KV = t->NKV * t->HS, width = C + 2 * KV;
    double out = attention_distance(theirs->out, own->out, rows, C, 0, C);
    double lse = attention_distance(theirs->lse, own->lse, rows, t->NH, 0, t->NH);
    double dq = attention_distance(theirs->dqkv, own->dqkv, rows, width, 0, C);
    double dk = attention_distance(theirs->dqkv, own->dqkv, rows, width, C, KV);
    double dv = attention_distance(theirs->dqkv, own->dqkv, rows, width, C + KV, KV);
    if (out <= 2e-2 && lse <= 5e-3 && dq <= 4e-2 && dk <= 4e-2 && dv <= 4e-2) return 0;
    return cudnn_refuse(why, size, "cuDNN's attention differs from ours: out by %.1e, lse by %.1e, dq by %.1e, dk by "
                                   "%.1e, dv by %.1e", out, lse, dq, dk, dv);
}

/* Whether the last results have the bits of cuDNN's first. */
static inline int trial_same_bits(const AttentionTrial *t) {
    const void *const now[3] = {t->now.out, t->now.dqkv, t->now.lse};
    const void *const first[3] = {t->first.out, t->first.dqkv, t->first.lse};
    const size_t bytes[3] = {trial_out(t, t->B) * sizeof(floatX), trial_qkv(t, t->B) * sizeof(floatX),
                             trial_rows(t, t->B) * sizeof(floatM)};
    int differs = 1;
    CUDA_CHECK(cudaMemsetAsync(t->differs, 0, sizeof(int), cuda_stream));
    for (int i = 0; i < 3; i++)
        LAUNCH(attention_differs, ceil_div(bytes[i] / 4, 256), 256, 0, (const unsigned *)now[i],
               (const unsigned *)first[i], bytes[i] / 4, t->differs);
    CUDA_CHECK(cudaMemcpyAsync(&differs, t->differs, sizeof differs, cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream));
    return !differs;
}

/* Whether cuDNN agrees with our attention, and, but for cudnn_fast, gives equal bits in three runs. */
static inline int attention_compare(const AttentionTrial *t, char *why, size_t size) {
    AttentionResult own = {NULL, NULL, NULL}, theirs = {NULL, NULL, NULL};
    int status = 0;
    if (trial_run_anew(t, 0) || trial_download(t, &own) || trial_run_anew(t, 1) || trial_download(t, &theirs))
        status = cudnn_refuse(why, size, "%s", cudnn_failure()[0] ? cudnn_failure() : "out of memory: a trial");
    else
        status = trial_agrees(t, &own, &theirs, why, size);
    free(own.out), free(theirs.out);
    if (status || cudnn_fast) return status;
    CUDA_CHECK(cudaMemcpyAsync(t->first.out, t->now.out, t->results, cudaMemcpyDeviceToDevice, cuda_stream));
    for (int again = 0; again < 2; again++) {
        if (trial_run_anew(t, 1)) return cudnn_refuse(why, size, "%s", cudnn_failure());
        if (!trial_same_bits(t)) return cudnn_refuse(why, size, "cuDNN's attention gives other bits when repeated");
    }
    return 0;
}

/* Milliseconds of forward and backward, the median of five. */
static inline float attention_ms(const AttentionTrial *t, int library) {
    enum { ROUNDS = 5 };
    float ms[ROUNDS];
    cudaEvent_t start, end;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&end));
    for (int i = 0; i < ROUNDS; i++) {
        CUDA_CHECK(cudaEventRecord(start, cuda_stream));
        trial_run(t, library);
        CUDA_CHECK(cudaEventRecord(end, cuda_stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        CUDA_CHECK(cudaEventElapsedTime(&ms[i], start, end));
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(end));
    for (int i = 0; i < ROUNDS; i++)
        for (int j = i + 1; j < ROUNDS; j++)
            if (ms[j] < ms[i]) {
                float swap = ms[i];
                ms[i] = ms[j], ms[j] = swap;
            }
    return ms[ROUNDS / 2];
}

/* Plans take some seconds to compile, and the attention of short sequences takes next to no time. */
enum { CUDNN_WORTH_IT = 512 };

/* Whether cuDNN can do this run's attention; *faster: the time of ours over that of cuDNN. Leaves the plans, and no
   memory of the device. */
static inline int attention_try(const Config *c, double *faster, char *why, size_t size) {
    AttentionTrial t;
    size_t room = 0, all = 0, scratch = cuda_scratch_bytes;
    int automatic = c->attention == ATTENTION_AUTO;
    if (automatic && c->seq_len < CUDNN_WORTH_IT) return cudnn_refuse(why, size, "sequences are short");
    if (cudnn_attention_plan(c->batch_size, c->seq_len, c->heads, c->kv_heads, c->head_dim, c->attn_scale, why, size))
        return -1;
    size_t need = cudnn_attention_workspace(c->batch_size, c->seq_len, c->heads, c->kv_heads, c->head_dim,
                                            c->attn_scale);
    CUDA_CHECK(cudaMemGetInfo(&room, &all));
    if (automatic && need > room / 8)
        return cudnn_refuse(why, size, "cuDNN wants %.1f GB to work in", (double)need * 1e-9);
    int status = trial_start(&t, c, why, size);
    if (!status) status = attention_compare(&t, why, size);
    if (!status) {
        float ours = attention_ms(&t, 0), theirs = attention_ms(&t, 1);
        *faster = (double)ours / (double)theirs;
    }
    trial_free(&t);
    if (!scratch) cuda_scratch_free();
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* cuDNN's passes after the choice. What a CUDA graph has recorded of them stays as it is, and is not asked again. */

static inline void attention_ends(void) {
    die("%s. The run cannot change to other kernels of attention in the middle, which would give it other bits: go on "
        "from its last checkpoint with --resume --attention flash", cudnn_failure());
}
static inline int attention_cudnn_forward(floatX *out, floatM *lse, const floatX *qkv, int B, int T, int NH, int NKV,
                                          int HS, double scale) {
    if (cudnn_attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale)) attention_ends();
    return 0;
}
static inline int attention_cudnn_backward(floatX *dqkv, const floatX *dout, const floatX *qkv, const floatX *out,
                                           const floatM *lse, int B, int T, int NH, int NKV, int HS, double scale) {
    if (cudnn_attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale)) attention_ends();
    return 0;
}

/* Time of ours over that of cuDNN in the trial of this start; 0: there was none, or it was not timed. */
inline double attention_faster;

/* Sets who does attention_forward and attention_backward by --attention, makes that flash or cudnn where it is auto
   (never cudnn-fast), and says in a note why. -1 and err: cuDNN was named, and cannot. */
static inline int attention_choose(Config *c, char *note, size_t size, char *err) {
    char why[384] = "", name[32], engines[128];
    double &faster = attention_faster;
    faster = 0;
    attention_library_forward = NULL, attention_library_backward = NULL;
    cudnn_free_plans();
    cudnn_fast = c->attention == ATTENTION_CUDNN_FAST;
    snprintf(note, size, "flash");
    if (c->attention == ATTENTION_FLASH) return 0;
    int status = attention_try(c, &faster, why, sizeof why), named = c->attention != ATTENTION_AUTO;
    cudnn_name(name, sizeof name);
    cudnn_engines(engines, sizeof engines);
    if (status && named) {
        cudnn_free_plans();
        return fail(err, "--attention %s: %s; --attention flash needs no cuDNN", cudnn_fast ? "cudnn-fast" : "cudnn",
                    why);
    }
    double times = faster < 1 ? 1 / faster : faster;
    const char *than = faster < 1 ? "slower" : "faster";
    if (status || (faster < 1.1 && !named)) { /* by more than the noise */
        if (status) snprintf(note, size, "flash (%s)", why);
        else snprintf(note, size, "flash (%s: %.1fx %s)", name, times, than);
        c->attention = ATTENTION_FLASH;
        cudnn_free_plans();
        return 0;
    }
    if (!named) c->attention = ATTENTION_CUDNN;
    attention_library_forward = attention_cudnn_forward;
    attention_library_backward = attention_cudnn_backward;
    snprintf(note, size, "%s (%.1fx %s than flash%s; %s)", name, times, than,
             cudnn_fast ? "; equal runs may differ in bits" : "", engines);
    return 0;
}

#endif
