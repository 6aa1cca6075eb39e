/*
Who computes attention: our portable kernels (attention.cuh), those for Hopper (attention_sm90.cuh), or cuDNN's
(cudnn.cuh), by --attention and by a trial at start. The trial runs a candidate and the portable kernels on random
numbers of the run's own shape, and asks that the candidate agrees with them, that its repetitions give equal bits,
and, where the choice is ours, that it is faster. The fastest candidate is taken.

After the trial nothing is chosen again: a run that went over to other kernels in the middle would go on in other
bits than the same run uninterrupted. So a pass that cuDNN then refuses ends the program.
*/
#ifndef CM_CUDA_ATTENTION_CHOICE_CUH
#define CM_CUDA_ATTENTION_CHOICE_CUH

#include "../config.h"
#include "attention_sm90.cuh"
#include "cudnn.cuh"
#include "noise.cuh"

/* Whose attention. */
enum { TRIAL_FLASH, TRIAL_HOPPER, TRIAL_CUDNN };
static inline const char *trial_name(int who) { return who == TRIAL_HOPPER ? "hopper" : "cuDNN"; }

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
    AttentionResult now, first; /* of this run, and of the candidate's first */
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
static inline size_t trial_rows(const AttentionTrial *t, int B) {
    return (size_t)B * (size_t)t->T * (size_t)t->NH;
}

/* *differs = 1 where n words of a and b are not all the same. Every thread that writes writes 1. */
__global__ static void attention_differs(const unsigned *a, const unsigned *b, size_t n,
                                         int *differs) {
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
static inline int trial_take(AttentionTrial *t, int who, char *why, size_t size) {
    char *memory = NULL;
    if (who == TRIAL_CUDNN &&
        cudnn_attention_plan(t->B, t->T, t->NH, t->NKV, t->HS, t->scale, why, size))
        return -1;
    size_t ours = attention_scratch(t->B, t->T, t->NH, t->NKV, t->HS);
    size_t theirs = who == TRIAL_CUDNN
                        ? cudnn_attention_workspace(t->B, t->T, t->NH, t->NKV, t->HS, t->scale)
                        : hopper_scratch(t->B, t->T, t->NH, t->HS);
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
static inline int trial_start(AttentionTrial *t, const Config *c, int who, char *why, size_t size) {
    memset(t, 0, sizeof *t);
    t->T = c->seq_len, t->NH = c->heads, t->NKV = c->kv_heads, t->HS = c->head_dim,
    t->scale = c->attn_scale;
    int status = 1;
    for (t->B = c->batch_size; t->B; t->B /= 2) {
        status = trial_take(t, who, why, size);
        if (status != 1) break;
    }
    if (status < 0) return -1;
    if (status) return cudnn_refuse(why, size, "no room to try %s", trial_name(who));
    size_t qkv = trial_qkv(t, t->B), out = trial_out(t, t->B);
    device_noise(t->qkv, qkv, sqrt(3), 1); /* of variance 1 */
    device_noise(t->dout, out, sqrt(3), 77777);
    return 0;
}

/* Forward and backward by one of them; -1: it refuses. */
static inline int trial_run(const AttentionTrial *t, int who) {
    const AttentionResult *r = &t->now;
    if (who == TRIAL_HOPPER) {
        if (hopper_forward(r->out, r->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS, t->scale))
            return -1;
        return hopper_backward(r->dqkv, t->dout, t->qkv, r->out, r->lse, t->B, t->T, t->NH, t->NKV,
                               t->HS, t->scale);
    }
    if (who == TRIAL_CUDNN) {
        if (cudnn_attention_forward(r->out, r->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS,
                                    t->scale))
            return -1;
        return cudnn_attention_backward(r->dqkv, t->dout, t->qkv, r->out, r->lse, t->B, t->T, t->NH,
                                        t->NKV, t->HS, t->scale);
    }
    flash_forward(r->out, r->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS, t->scale);
    flash_backward(r->dqkv, t->dout, t->qkv, r->out, r->lse, t->B, t->T, t->NH, t->NKV, t->HS,
                   t->scale);
    return 0;
}

/* The same into memory that holds NaN, so that what is not written is noticed. */
static inline int trial_run_anew(const AttentionTrial *t, int who) {
    CUDA_CHECK(cudaMemsetAsync(t->now.out, 0xff, t->results, cuda_stream));
    return trial_run(t, who);
}

/* Copies the results of the first TRIAL_SEQUENCES to the host; free r->out. -1: no memory. */
static inline int trial_download(const AttentionTrial *t, AttentionResult *r) {
    int B = min_int(t->B, TRIAL_SEQUENCES);
    size_t out = trial_out(t, B) * sizeof(floatX), qkv = trial_qkv(t, B) * sizeof(floatX);
    size_t lse = trial_rows(t, B) * sizeof(floatM);
    char *memory = (char *)malloc(out + qkv + lse + 16);
    if (!memory) return -1;
    *r = {(floatX *)(void *)memory, (floatX *)(void *)(memory + out),
          (floatM *)(void *)(memory + out + qkv)};
    CUDA_CHECK(cudaMemcpyAsync(r->out, t->now.out, out, cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaMemcpyAsync(r->dqkv, t->now.dqkv, qkv, cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaMemcpyAsync(r->lse, t->now.lse, lse, cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream));
    return 0;
}

/* ||a - b|| / ||b|| over columns first .. first + count of rows of `width` elements; infinity for NaN. */
template <typename T>
static inline double attention_distance(const T *a, const T *b, size_t rows, int width, int first,
                                        int count) {
    double d = 0, s = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t k = i * (size_t)width + (size_t)first, end = k + (size_t)count; k < end; k++) {
            double x = (double)(float)a[k], y = (double)(float)b[k];
            d += (x - y) * (x - y), s += y * y;
        }
    double r = sqrt(d / s);
    return r == r ? r : INFINITY;
}

/* Whether the candidate computes what the portable kernels do. Both round p and ds to bf16, so that results differ
   by some 2^-9 of their size, gradients by some more. dq, dk and dv are compared one by one: the largest would hide errors of
   the others. */
static inline int trial_agrees(const AttentionTrial *t, int who, const AttentionResult *own,
                               const AttentionResult *theirs, char *why, size_t size) {
    size_t rows = (size_t)min_int(t->B, TRIAL_SEQUENCES) * (size_t)t->T;
    int C = t->NH * t->HS, KV = t->NKV * t->HS, width = C + 2 * KV;
    double out = attention_distance(theirs->out, own->out, rows, C, 0, C);
    double lse = attention_distance(theirs->lse, own->lse, rows, t->NH, 0, t->NH);
    double dq = attention_distance(theirs->dqkv, own->dqkv, rows, width, 0, C);
    double dk = attention_distance(theirs->dqkv, own->dqkv, rows, width, C, KV);
    double dv = attention_distance(theirs->dqkv, own->dqkv, rows, width, C + KV, KV);
    if (out <= 2e-2 && lse <= 5e-3 && dq <= 4e-2 && dk <= 4e-2 && dv <= 4e-2) return 0;
    return cudnn_refuse(
        why, size,
        "%s's attention differs from ours: out by %.1e, lse by %.1e, dq by %.1e, dk by "
        "%.1e, dv by %.1e",
        trial_name(who), out, lse, dq, dk, dv);
}

/* Whether the last results have the bits of the candidate's first. */
static inline int trial_same_bits(const AttentionTrial *t) {
    const void *const now[3] = {t->now.out, t->now.dqkv, t->now.lse};
    const void *const first[3] = {t->first.out, t->first.dqkv, t->first.lse};
    const size_t bytes[3] = {trial_out(t, t->B) * sizeof(floatX),
                             trial_qkv(t, t->B) * sizeof(floatX),
                             trial_rows(t, t->B) * sizeof(floatM)};
    int differs = 1;
    CUDA_CHECK(cudaMemsetAsync(t->differs, 0, sizeof(int), cuda_stream));
    for (int i = 0; i < 3; i++)
        LAUNCH(attention_differs, ceil_div(bytes[i] / 4, 256), 256, 0, (const unsigned *)now[i],
               (const unsigned *)first[i], bytes[i] / 4, t->differs);
    CUDA_CHECK(
        cudaMemcpyAsync(&differs, t->differs, sizeof differs, cudaMemcpyDeviceToHost, cuda_stream));
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream));
    return !differs;
}

/* Why a candidate did not run. */
static inline const char *trial_failure(int who) {
    return who == TRIAL_CUDNN && cudnn_failure()[0] ? cudnn_failure() : "out of memory: a trial";
}

/* Whether the candidate agrees with the portable kernels, and, but for cudnn_fast, gives equal bits in three runs. */
static inline int attention_compare(const AttentionTrial *t, int who, char *why, size_t size) {
    AttentionResult own = {NULL, NULL, NULL}, theirs = {NULL, NULL, NULL};
    int status = 0;
    if (trial_run_anew(t, TRIAL_FLASH) || trial_download(t, &own) || trial_run_anew(t, who) ||
        trial_download(t, &theirs))
        status = cudnn_refuse(why, size, "%s", trial_failure(who));
    else status = trial_agrees(t, who, &own, &theirs, why, size);
    free(own.out), free(theirs.out);
    if (status || (who == TRIAL_CUDNN && cudnn_fast)) return status;
    CUDA_CHECK(cudaMemcpyAsync(t->first.out, t->now.out, t->results, cudaMemcpyDeviceToDevice,
                               cuda_stream));
    for (int again = 0; again < 2; again++) {
        if (trial_run_anew(t, who)) return cudnn_refuse(why, size, "%s", trial_failure(who));
        if (!trial_same_bits(t))
            return cudnn_refuse(why, size, "%s's attention gives other bits when repeated",
                                trial_name(who));
    }
    return 0;
}

/* Milliseconds of forward and backward, the median of five. */
static inline float attention_ms(const AttentionTrial *t, int who) {
    enum { ROUNDS = 5 };
    float ms[ROUNDS];
    cudaEvent_t start, end;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&end));
    for (int i = 0; i < ROUNDS; i++) {
        CUDA_CHECK(cudaEventRecord(start, cuda_stream));
        trial_run(t, who);
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
enum { ATTENTION_WORTH_IT = 512 };

/* Whether auto tries the kernels for Hopper. Not before a device has run their tests: an illegal access or a hang in
   the trial would end a run that did not ask for them. The help of --attention says so too. */
enum { HOPPER_BY_ITSELF = 0 };

/* Whether a trial of a candidate is to be had: its plan, its device, its memory. */
static inline int attention_can(const Config *c, int who, char *why, size_t size) {
    size_t room = 0, all = 0;
    int automatic = c->attention == ATTENTION_AUTO;
    if (who == TRIAL_HOPPER) {
        if (automatic && !HOPPER_BY_ITSELF) return cudnn_refuse(why, size, "only when it is named");
        return hopper_supports(c->head_dim, why, size);
    }
    if (cudnn_attention_plan(c->batch_size, c->seq_len, c->heads, c->kv_heads, c->head_dim,
                             c->attn_scale, why, size))
        return -1;
    size_t need = cudnn_attention_workspace(c->batch_size, c->seq_len, c->heads, c->kv_heads,
                                            c->head_dim, c->attn_scale);
    CUDA_CHECK(cudaMemGetInfo(&room, &all));
    if (automatic && need > room / 8)
        return cudnn_refuse(why, size, "cuDNN wants %.1f GB to work in", (double)need * 1e-9);
    return 0;
}

/* Whether a candidate can do this run's attention; *faster: the time of the portable kernels over its own, 0 where
   times mean nothing. Leaves the plans, and no memory of the device. */
static inline int attention_try(const Config *c, int who, double *faster, char *why, size_t size) {
    AttentionTrial t;
    size_t scratch = cuda_scratch_bytes;
    *faster = 0;
    if (attention_can(c, who, why, size)) return -1;
    int status = trial_start(&t, c, who, why, size);
    if (!status) status = attention_compare(&t, who, why, size);
    if (!status && !(who == TRIAL_HOPPER && emulated_time)) {
        float ours = attention_ms(&t, TRIAL_FLASH), theirs = attention_ms(&t, who);
        *faster = (double)ours / (double)theirs;
    }
    trial_free(&t);
    if (!scratch) cuda_scratch_free();
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* cuDNN's passes after the choice. What a CUDA graph has recorded of them stays as it is, and is not asked again. */

static inline void attention_ends(void) {
    die("%s. The run cannot change to other kernels of attention in the middle, which would give "
        "it other bits: go on "
        "from its last checkpoint with --resume --attention flash",
        cudnn_failure());
}
static inline int attention_cudnn_forward(floatX *out, floatM *lse, const floatX *qkv, int B, int T,
                                          int NH, int NKV, int HS, double scale) {
    if (cudnn_attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale)) attention_ends();
    return 0;
}
static inline int attention_cudnn_backward(floatX *dqkv, const floatX *dout, const floatX *qkv,
                                           const floatX *out, const floatM *lse, int B, int T,
                                           int NH, int NKV, int HS, double scale) {
    if (cudnn_attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale))
        attention_ends();
    return 0;
}

/* Time of the portable kernels over that of the fastest candidate in the trial of this start; 0: there was none, or
   it was not timed. */
inline double attention_faster;

/* What a trial has said of a candidate. */
typedef struct {
    int status;    /* 0: it can */
    double faster; /* than the portable kernels, as a factor */
    char why[384]; /* it cannot, or its time */
} Candidate;

/* Adds as much of a text as there is room for. */
static inline void note_add(char *note, size_t size, const char *text) {
    size_t n = strlen(note);
    for (; *text && n + 1 < size; n++) note[n] = *text++;
    note[n] = 0;
}

/* Adds what was said of a candidate that was not taken: a reason, or its time. */
static inline void candidate_note(char *note, size_t size, const Candidate *a, const char *name) {
    char time[64];
    double times = a->faster < 1 ? 1 / a->faster : a->faster;
    snprintf(time, sizeof time, "%s: %.1fx %s", name, times, a->faster < 1 ? "slower" : "faster");
    note_add(note, size, a->status ? a->why : time);
}

/* Leaves attention to a candidate, and says so in the note. */
static inline void attention_take(int who, double faster, char *note, size_t size) {
    char name[32] = "hopper", engines[128] = "", than[64] = "";
    double times = faster < 1 ? 1 / faster : faster;
    if (faster > 0)
        snprintf(than, sizeof than, "%.1fx %s than flash", times, faster < 1 ? "slower" : "faster");
    attention_faster = faster;
    if (who == TRIAL_HOPPER) {
        attention_library_forward = hopper_forward, attention_library_backward = hopper_backward;
        snprintf(note, size, "hopper%s%s%s", than[0] ? " (" : "", than, than[0] ? ")" : "");
        return;
    }
    attention_library_forward = attention_cudnn_forward,
    attention_library_backward = attention_cudnn_backward;
    cudnn_name(name, sizeof name);
    cudnn_engines(engines, sizeof engines);
    snprintf(note, size, "%s (%s%s; %s)", name, than,
             cudnn_fast ? "; equal runs may differ in bits" : "", engines);
}

/* The one that was named; -1 and err: it cannot. */
static inline int attention_named(Config *c, char *note, size_t size, char *err) {
    static const char *const needs[] = {"", "runs on every GPU", "needs no cuDNN"};
    int who = c->attention == ATTENTION_HOPPER ? TRIAL_HOPPER : TRIAL_CUDNN;
    Candidate a;
    a.why[0] = 0;
    if (!attention_try(c, who, &a.faster, a.why, sizeof a.why))
        return attention_take(who, a.faster, note, size), 0;
    cudnn_free_plans();
    return fail(err, "--attention %s: %s; --attention flash %s",
                who == TRIAL_HOPPER ? "hopper"
                : cudnn_fast        ? "cudnn-fast"
                                    : "cudnn",
                a.why, needs[who]);
}

/* The fastest one, if it is faster than the portable kernels by more than the noise. */
static inline void attention_fastest(Config *c, char *note, size_t size) {
    Candidate a[TRIAL_CUDNN + 1];
    char name[32];
    int best = TRIAL_FLASH;
    memset(a, 0, sizeof a);
    a[TRIAL_FLASH].faster = 1.1;
    for (int who = TRIAL_HOPPER; who <= TRIAL_CUDNN; who++) {
        a[who].status = attention_try(c, who, &a[who].faster, a[who].why, sizeof a[who].why);
        if (!a[who].status && a[who].faster > a[best].faster) best = who;
        if (!a[who].status && a[who].faster > attention_faster) attention_faster = a[who].faster;
    }
    if (best != TRIAL_CUDNN) cudnn_free_plans();
    c->attention = best == TRIAL_HOPPER  ? ATTENTION_HOPPER
                   : best == TRIAL_CUDNN ? ATTENTION_CUDNN
                                         : ATTENTION_FLASH;
    if (best != TRIAL_FLASH) {
        attention_take(best, a[best].faster, note, size);
        return;
    }
    cudnn_name(name, sizeof name);
    snprintf(note, size, "flash (");
    if (hopper_device()) {
        if (a[TRIAL_HOPPER].status) note_add(note, size, "hopper: ");
        candidate_note(note, size, &a[TRIAL_HOPPER], "hopper");
        note_add(note, size, "; ");
    }
    candidate_note(note, size, &a[TRIAL_CUDNN], name);
    note_add(note, size, ")");
}

/* Sets who does attention_forward and attention_backward by --attention, makes that flash, hopper or cudnn where it
   is auto (never cudnn-fast), and says in a note why. -1 and err: one was named that cannot. */
static inline int attention_choose(Config *c, char *note, size_t size, char *err) {
    attention_faster = 0;
    attention_library_forward = NULL, attention_library_backward = NULL;
    cudnn_free_plans();
    cudnn_fast = c->attention == ATTENTION_CUDNN_FAST;
    snprintf(note, size, "flash");
    if (c->attention == ATTENTION_FLASH) return 0;
    if (c->attention != ATTENTION_AUTO) return attention_named(c, note, size, err);
    if (c->seq_len >= ATTENTION_WORTH_IT) {
        attention_fastest(c, note, size);
        return 0;
    }
    c->attention = ATTENTION_FLASH;
    snprintf(note, size, "flash (sequences are short)");
    return 0;
}

#endif
