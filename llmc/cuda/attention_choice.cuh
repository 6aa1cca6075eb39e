/*
Which kernels compute attention: our portable ones (attention.cuh), ours for Hopper
(attention_sm90.cuh), or cuDNN's (cudnn.cuh). --attention and a trial at start decide. The trial
runs a candidate and the portable kernels on random numbers of the run's shape. It requires that the
candidate agrees with the portable kernels, that its repetitions give equal bits, and, with
--attention auto, that it is faster. Auto takes the fastest candidate.

After the trial the choice stays: a run that changed kernels in the middle would have other bits
than an uninterrupted run. So if cuDNN refuses a pass later, that is a recorded failure, which ends
the run.
*/
#ifndef CM_CUDA_ATTENTION_CHOICE_CUH
#define CM_CUDA_ATTENTION_CHOICE_CUH

#include "../shape.h"
#include "attention_sm90.cuh"
#include "cudnn.cuh"
#include "noise.cuh"

/* The kernels that a trial runs. */
typedef enum { TRIAL_FLASH, TRIAL_HOPPER, TRIAL_CUDNN } TrialKind;
static inline const char *trial_name(TrialKind who) {
    switch (who) {
    case TRIAL_FLASH: return "flash";
    case TRIAL_HOPPER: return "hopper";
    case TRIAL_CUDNN: return "cuDNN";
    }
    return "";
}

/* The attention of a run's largest batch: B sequences of T tokens, NH query heads and NKV key
   heads of HS columns. scale multiplies q . k. */
typedef struct {
    int B, T, NH, NKV, HS;
    double scale;
} AttentionShape;

/* Results of one forward and backward pass, in device memory. */
typedef struct {
    floatX *out, *dqkv;
    floatM *lse;
} AttentionResult;

/* One batch of random numbers and its results. */
typedef struct {
    int B, T, NH, NKV, HS;
    double scale;
    floatX *qkv, *dout;
    AttentionResult now, first; /* results of the latest run; of the candidate's first run */
    int *differs;
    char *memory;
    size_t results; /* bytes from now.out to the end of now.lse */
} AttentionTrial;

/* The first sequences of a trial, whose numbers are compared on the host. */
enum { TRIAL_SEQUENCES = 4 };

/* Elements of out, of dqkv and of lse for B sequences. */
static inline size_t trial_out(const AttentionTrial *t, int B) {
    return (size_t)B * (size_t)t->T * (size_t)(t->NH * t->HS);
}
static inline size_t trial_qkv(const AttentionTrial *t, int B) {
    return (size_t)B * (size_t)t->T * (size_t)((t->NH + 2 * t->NKV) * t->HS);
}
static inline size_t trial_rows(const AttentionTrial *t, int B) {
    return (size_t)B * (size_t)t->T * (size_t)t->NH;
}

/* Sets *differs to 1 if n words of a and b are not equal. Several threads may write the 1. */
__global__ static void attention_differs(const unsigned *a, const unsigned *b, size_t n,
                                         int *differs) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && a[i] != b[i]) *differs = 1;
}

/* Divides one allocation among the arrays of a trial of t->B sequences. Returns its size in
   bytes; with memory NULL that is all it does. */
static inline size_t trial_layout(AttentionTrial *t, char *memory) {
    size_t out = trial_out(t, t->B) * sizeof(floatX), qkv = trial_qkv(t, t->B) * sizeof(floatX);
    size_t lse = trial_rows(t, t->B) * sizeof(floatM);
    const size_t sizes[9] = {qkv, out, out, qkv, lse, out, qkv, lse, sizeof(int)};
    size_t at[10] = {0};
    for (int i = 0; i < 9; i++) at[i + 1] = at[i] + (sizes[i] + 255) / 256 * 256;
    if (!memory) return at[9];
    t->memory = memory;
    t->results = at[4] + lse - at[2];
    t->qkv = (floatX *)(void *)memory;
    t->dout = (floatX *)(void *)(memory + at[1]);
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

/* Plans t->B sequences and allocates their memory, and scratch for both candidates. Returns 0; 1
   if there is too little memory; -1 and `why` if cuDNN has no plan. */
static inline int trial_take(AttentionTrial *t, TrialKind who, char *why, size_t size) {
    char *memory = NULL;
    if (who == TRIAL_CUDNN && cudnn_attention_plan(t->B, t->T, t->NH, t->NKV, t->HS, why, size))
        return -1;
    size_t ours = attention_scratch(t->B, t->T, t->NH, t->NKV, t->HS);
    size_t theirs = who == TRIAL_CUDNN ? cudnn_attention_workspace(t->B, t->T, t->NH, t->NKV, t->HS)
                                       : hopper_scratch(t->B, t->T, t->NH, t->HS);
    if (cuda_try_malloc((void **)&memory, trial_layout(t, NULL))) return 1;
    trial_layout(t, memory);
    if (!cuda_scratch_reserve(theirs > ours ? theirs : ours)) return 0;
    trial_free(t);
    return 1;
}

/* Makes a trial of the run's batch, or of the largest half, quarter... of it that fits in
   memory: a race between two sums is likelier to show in a full grid. Returns 0, or -1 and
   `why`. */
static inline int trial_start(AttentionTrial *t, const AttentionShape *s, TrialKind who, char *why,
                              size_t size) {
    memset(t, 0, sizeof *t);
    t->T = s->T;
    t->NH = s->NH;
    t->NKV = s->NKV;
    t->HS = s->HS;
    t->scale = s->scale;
    int status = 1;
    for (t->B = s->B; t->B; t->B /= 2) {
        status = trial_take(t, who, why, size);
        if (status != 1) break;
    }
    if (status < 0) return -1;
    if (status) return refuse(why, size, "too little GPU memory to try %s", trial_name(who));
    size_t qkv = trial_qkv(t, t->B), out = trial_out(t, t->B);
    device_noise(t->qkv, qkv, sqrt(3), 1); /* variance 1 */
    device_noise(t->dout, out, sqrt(3), 77777);
    return 0;
}

/* Forward and backward pass by `who`. Returns 0, or -1 if these kernels refuse. */
static inline int trial_run(const AttentionTrial *t, TrialKind who) {
    const AttentionResult *r = &t->now;
    AttentionForward forward = NULL;
    AttentionBackward backward = NULL;
    switch (who) {
    case TRIAL_FLASH:
        flash_forward(r->out, r->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS, t->scale);
        flash_backward(r->dqkv, t->dout, t->qkv, r->out, r->lse, t->B, t->T, t->NH, t->NKV, t->HS,
                       t->scale);
        return 0;
    case TRIAL_HOPPER:
        forward = hopper_forward;
        backward = hopper_backward;
        break;
    case TRIAL_CUDNN:
        forward = cudnn_attention_forward;
        backward = cudnn_attention_backward;
        break;
    }
    if (forward(r->out, r->lse, t->qkv, t->B, t->T, t->NH, t->NKV, t->HS, t->scale)) return -1;
    return backward(r->dqkv, t->dout, t->qkv, r->out, r->lse, t->B, t->T, t->NH, t->NKV, t->HS,
                    t->scale);
}

/* trial_run into memory full of NaN, so that a missing write is noticed. */
static inline int trial_run_anew(const AttentionTrial *t, TrialKind who) {
    CUDA_CHECK(cudaMemsetAsync(t->now.out, 0xff, t->results, cm_gpu.stream));
    return trial_run(t, who);
}

/* Copies the results of the first TRIAL_SEQUENCES to the host. The caller frees r->out. Returns
   0, or -1 if there is no memory. */
static inline int trial_download(const AttentionTrial *t, AttentionResult *r) {
    int B = min_int(t->B, TRIAL_SEQUENCES);
    size_t out = trial_out(t, B) * sizeof(floatX), qkv = trial_qkv(t, B) * sizeof(floatX);
    size_t lse = trial_rows(t, B) * sizeof(floatM);
    char *memory = (char *)malloc(out + qkv + lse + 16);
    if (!memory) return -1;
    *r = {(floatX *)(void *)memory, (floatX *)(void *)(memory + out),
          (floatM *)(void *)(memory + out + qkv)};
    CUDA_CHECK(cudaMemcpyAsync(r->out, t->now.out, out, cudaMemcpyDeviceToHost, cm_gpu.stream));
    CUDA_CHECK(cudaMemcpyAsync(r->dqkv, t->now.dqkv, qkv, cudaMemcpyDeviceToHost, cm_gpu.stream));
    CUDA_CHECK(cudaMemcpyAsync(r->lse, t->now.lse, lse, cudaMemcpyDeviceToHost, cm_gpu.stream));
    CUDA_CHECK(cudaStreamSynchronize(cm_gpu.stream));
    return 0;
}

/* ||a - b|| / ||b|| over columns [first, first + count) of rows of `width` elements; infinity
   for NaN. */
template <typename T>
static inline double attention_distance(const T *a, const T *b, size_t rows, int width, int first,
                                        int count) {
    double d = 0, s = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t k = i * (size_t)width + (size_t)first, end = k + (size_t)count; k < end; k++) {
            double x = (double)(float)a[k], y = (double)(float)b[k];
            d += (x - y) * (x - y);
            s += y * y;
        }
    double r = sqrt(d / s);
    return r == r ? r : INFINITY;
}

/* Returns 0 if the candidate agrees with the portable kernels, else -1 and `why`. Both round p
   and ds to bf16, so results differ by some 2^-9 of their size, gradients by more. dq, dk and dv
   are compared separately, because the largest would hide the errors of the others. */
static inline int trial_agrees(const AttentionTrial *t, TrialKind who, const AttentionResult *own,
                               const AttentionResult *theirs, char *why, size_t size) {
    size_t rows = (size_t)min_int(t->B, TRIAL_SEQUENCES) * (size_t)t->T;
    int C = t->NH * t->HS, KV = t->NKV * t->HS, width = C + 2 * KV;
    double out = attention_distance(theirs->out, own->out, rows, C, 0, C);
    double lse = attention_distance(theirs->lse, own->lse, rows, t->NH, 0, t->NH);
    double dq = attention_distance(theirs->dqkv, own->dqkv, rows, width, 0, C);
    double dk = attention_distance(theirs->dqkv, own->dqkv, rows, width, C, KV);
    double dv = attention_distance(theirs->dqkv, own->dqkv, rows, width, C + KV, KV);
    if (out <= 2e-2 && lse <= 5e-3 && dq <= 4e-2 && dk <= 4e-2 && dv <= 4e-2) return 0;
    return refuse(why, size,
                  "%s's attention differs from ours: out by %.1e, lse by %.1e, dq by %.1e, dk by "
                  "%.1e, dv by %.1e",
                  trial_name(who), out, lse, dq, dk, dv);
}

/* Whether the latest results have the bits of the candidate's first run. */
static inline int trial_same_bits(const AttentionTrial *t) {
    const void *const now[3] = {t->now.out, t->now.dqkv, t->now.lse};
    const void *const first[3] = {t->first.out, t->first.dqkv, t->first.lse};
    const size_t bytes[3] = {trial_out(t, t->B) * sizeof(floatX),
                             trial_qkv(t, t->B) * sizeof(floatX),
                             trial_rows(t, t->B) * sizeof(floatM)};
    int differs = 1;
    CUDA_CHECK(cudaMemsetAsync(t->differs, 0, sizeof(int), cm_gpu.stream));
    for (int i = 0; i < 3; i++)
        LAUNCH(attention_differs, ceil_div(bytes[i] / 4, 256), 256, 0, (const unsigned *)now[i],
               (const unsigned *)first[i], bytes[i] / 4, t->differs);
    CUDA_CHECK(cudaMemcpyAsync(&differs, t->differs, sizeof differs, cudaMemcpyDeviceToHost,
                               cm_gpu.stream));
    CUDA_CHECK(cudaStreamSynchronize(cm_gpu.stream));
    return !differs;
}

/* Why a candidate's run failed. */
static inline const char *trial_failure(TrialKind who) {
    return who == TRIAL_CUDNN && cudnn_failure()[0] ? cudnn_failure() : "out of memory: a trial";
}

/* Returns 0 if the candidate agrees with the portable kernels and, unless cudnn_fast is on,
   gives equal bits in three runs; else -1 and `why`. */
static inline int attention_compare(const AttentionTrial *t, TrialKind who, char *why,
                                    size_t size) {
    AttentionResult own = {NULL, NULL, NULL}, theirs = {NULL, NULL, NULL};
    int status = 0;
    if (trial_run_anew(t, TRIAL_FLASH) || trial_download(t, &own) || trial_run_anew(t, who) ||
        trial_download(t, &theirs))
        status = refuse(why, size, "%s", trial_failure(who));
    else status = trial_agrees(t, who, &own, &theirs, why, size);
    free(own.out);
    free(theirs.out);
    if (device_failure()) return refuse(why, size, "%s", device_failure());
    if (status || (who == TRIAL_CUDNN && cm_gpu.cudnn_fast)) return status;
    CUDA_CHECK(cudaMemcpyAsync(t->first.out, t->now.out, t->results, cudaMemcpyDeviceToDevice,
                               cm_gpu.stream));
    for (int repeat = 0; repeat < 2; repeat++) {
        if (trial_run_anew(t, who)) return refuse(why, size, "%s", trial_failure(who));
        if (!trial_same_bits(t))
            return refuse(why, size, "%s's attention gives other bits when repeated",
                          trial_name(who));
    }
    return 0;
}

/* Milliseconds of forward and backward pass: the median of five runs. */
static inline float attention_ms(const AttentionTrial *t, TrialKind who) {
    enum { ROUNDS = 5 };
    float ms[ROUNDS] = {0};
    cudaEvent_t start = NULL, end = NULL;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&end));
    for (int i = 0; i < ROUNDS; i++) {
        CUDA_CHECK(cudaEventRecord(start, cm_gpu.stream));
        trial_run(t, who);
        CUDA_CHECK(cudaEventRecord(end, cm_gpu.stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        CUDA_CHECK(cudaEventElapsedTime(&ms[i], start, end));
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(end));
    for (int i = 0; i < ROUNDS; i++)
        for (int j = i + 1; j < ROUNDS; j++)
            if (ms[j] < ms[i]) {
                float swap = ms[i];
                ms[i] = ms[j];
                ms[j] = swap;
            }
    return ms[ROUNDS / 2];
}

/* auto tries no candidate for sequences shorter than this: cuDNN's plans take seconds to
   compile, and short attention takes hardly any time. */
enum { ATTENTION_WORTH_IT = 512 };

/* auto takes a candidate only if it is more than this many times faster. A tenth is more than
   the noise of five timings, and less would not justify other kernels. */
#define ATTENTION_GAIN 1.1

/* auto refuses cuDNN if its workspace takes more than this part of the free memory. ds of all
   heads, (B,NH,T,T) in bf16, would crowd out the activations. */
enum { CUDNN_WORKSPACE_PART = 8 };

/* Returns 0 if a candidate can be tried: it has a plan, a device and memory. Else -1 and `why`. */
static inline int attention_can(const AttentionShape *s, int automatic, TrialKind who, char *why,
                                size_t size) {
    size_t room = 0, all = 0;
    if (who == TRIAL_HOPPER) return hopper_supports(s->HS, why, size);
    if (cudnn_attention_plan(s->B, s->T, s->NH, s->NKV, s->HS, why, size)) return -1;
    size_t need = cudnn_attention_workspace(s->B, s->T, s->NH, s->NKV, s->HS);
    CUDA_CHECK(cudaMemGetInfo(&room, &all));
    if (automatic && need > room / CUDNN_WORKSPACE_PART)
        return refuse(why, size, "cuDNN wants %.1f GiB to work in", (double)need / (1 << 30));
    return 0;
}

/* Tries a candidate. Returns 0 if it can do the run's attention, else -1 and `why`. *faster is
   the time of the portable kernels over its time; 0 if times mean nothing. Keeps cuDNN's plans
   and frees all device memory. */
static inline int attention_try(const AttentionShape *s, int automatic, TrialKind who,
                                double *faster, char *why, size_t size) {
    AttentionTrial t;
    size_t scratch = cm_gpu.scratch_bytes;
    *faster = 0;
    if (attention_can(s, automatic, who, why, size)) return -1;
    int status = trial_start(&t, s, who, why, size);
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
/* cuDNN's passes after the choice. A CUDA graph replays the passes that it has recorded and does
   not ask again. */

static inline void attention_ends(void) {
    device_fail("%s. The run cannot change to other kernels of attention in the middle, which "
                "would give it other bits: go on from its last checkpoint with --resume "
                "--attention flash",
                cudnn_failure());
}
static inline int attention_cudnn_forward(floatX *out, floatM *lse, const floatX *qkv, int B, int T,
                                          int NH, int NKV, int HS, double scale) {
    /* Sequences of another length than the run's, which evaluations have, are always left to the
       portable kernels. */
    if (!cudnn_has_plan(T, NH, NKV, HS)) return -1;
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

/* The result of a candidate's trial. */
typedef struct {
    int status;    /* 0: the candidate can do the run's attention */
    double faster; /* how many times faster than the portable kernels */
    char why[384]; /* why it cannot */
} Candidate;

/* Appends as much of a text as there is room for. */
static inline void note_add(char *note, size_t size, const char *text) {
    size_t n = strlen(note);
    for (; *text && n + 1 < size; n++) note[n] = *text++;
    note[n] = 0;
}

/* Appends why a candidate was not taken: its reason, or its time. */
static inline void candidate_note(char *note, size_t size, const Candidate *a, const char *name) {
    char time[64];
    double times = a->faster < 1 ? 1 / a->faster : a->faster;
    snprintf(time, sizeof time, "%s: %.1fx %s", name, times, a->faster < 1 ? "slower" : "faster");
    note_add(note, size, a->status ? a->why : time);
}

/* Makes a candidate the run's attention, and describes it in `note`. */
static inline void attention_take(TrialKind who, double faster, char *note, size_t size) {
    char name[32] = "hopper", engines[128] = "", than[64] = "";
    double times = faster < 1 ? 1 / faster : faster;
    if (faster > 0)
        snprintf(than, sizeof than, "%.1fx %s than flash", times, faster < 1 ? "slower" : "faster");
    cm_gpu.attention_faster = faster;
    if (who == TRIAL_HOPPER) {
        cm_gpu.attention_forward = hopper_forward;
        cm_gpu.attention_backward = hopper_backward;
        snprintf(note, size, "hopper%s%s%s", than[0] ? " (" : "", than, than[0] ? ")" : "");
        return;
    }
    cm_gpu.attention_forward = attention_cudnn_forward;
    cm_gpu.attention_backward = attention_cudnn_backward;
    cudnn_name(name, sizeof name);
    cudnn_engines(engines, sizeof engines);
    snprintf(note, size, "%s (%s%s; %s)", name, than,
             cm_gpu.cudnn_fast ? "; equal runs may differ in bits" : "", engines);
}

/* Makes the candidate that --attention names the run's attention. Returns 0, or -1 and err if it
   cannot do the shape. */
static inline int attention_named(TrialKind who, const AttentionShape *s, char *note, size_t size,
                                  char *err) {
    const char *flag = who == TRIAL_HOPPER ? "hopper" : cm_gpu.cudnn_fast ? "cudnn-fast" : "cudnn";
    const char *need = who == TRIAL_HOPPER ? "runs on every GPU" : "needs no cuDNN";
    Candidate a;
    a.why[0] = 0;
    if (attention_try(s, 0, who, &a.faster, a.why, sizeof a.why)) {
        cudnn_free_plans();
        return fail(err, "--attention %s: %s; --attention flash %s", flag, a.why, need);
    }
    attention_take(who, a.faster, note, size);
    return 0;
}

/* The note of a run that keeps the portable kernels: why each candidate was not taken. */
static inline void attention_note_flash(const Candidate *hopper, const Candidate *dnn, char *note,
                                        size_t size) {
    char name[32];
    cudnn_name(name, sizeof name);
    snprintf(note, size, "flash (");
    if (hopper_device()) {
        if (hopper->status) note_add(note, size, "hopper: ");
        candidate_note(note, size, hopper, "hopper");
        note_add(note, size, "; ");
    }
    candidate_note(note, size, dnn, name);
    note_add(note, size, ")");
}

/* Tries the candidates, and takes the fastest if it is ATTENTION_GAIN times faster than the
   portable kernels. Returns the choice. */
static inline AttentionKind attention_fastest(const AttentionShape *s, char *note, size_t size) {
    static const TrialKind tried[] = {TRIAL_HOPPER, TRIAL_CUDNN};
    Candidate a[TRIAL_CUDNN + 1];
    TrialKind best = TRIAL_FLASH;
    memset(a, 0, sizeof a);
    a[TRIAL_FLASH].faster = ATTENTION_GAIN;
    for (TrialKind who : tried) {
        Candidate *now = &a[who];
        now->status = attention_try(s, 1, who, &now->faster, now->why, sizeof now->why);
        if (now->status) continue;
        if (now->faster > a[best].faster) best = who;
        if (now->faster > cm_gpu.attention_faster) cm_gpu.attention_faster = now->faster;
    }
    if (best != TRIAL_CUDNN) cudnn_free_plans();
    switch (best) {
    case TRIAL_FLASH: break;
    case TRIAL_HOPPER: attention_take(best, a[best].faster, note, size); return ATTENTION_HOPPER;
    case TRIAL_CUDNN: attention_take(best, a[best].faster, note, size); return ATTENTION_CUDNN;
    }
    attention_note_flash(&a[TRIAL_HOPPER], &a[TRIAL_CUDNN], note, size);
    return ATTENTION_FLASH;
}

/* Sets the kernels behind attention_forward and attention_backward by *kind. ATTENTION_AUTO
   becomes flash, hopper or cudnn, never cudnn-fast. `note` says what was chosen and why. Returns
   0, or -1 and err if the kernels that were named cannot do this shape. */
static inline int attention_choose(AttentionKind *kind, const AttentionShape *s, char *note,
                                   size_t size, char *err) {
    cm_gpu.attention_faster = 0;
    cm_gpu.attention_forward = NULL;
    cm_gpu.attention_backward = NULL;
    cudnn_free_plans();
    cm_gpu.cudnn_fast = *kind == ATTENTION_CUDNN_FAST;
    snprintf(note, size, "flash");
    switch (*kind) {
    case ATTENTION_FLASH: return 0;
    case ATTENTION_HOPPER: return attention_named(TRIAL_HOPPER, s, note, size, err);
    case ATTENTION_CUDNN:
    case ATTENTION_CUDNN_FAST: return attention_named(TRIAL_CUDNN, s, note, size, err);
    case ATTENTION_AUTO: break;
    }
    if (s->T >= ATTENTION_WORTH_IT) {
        *kind = attention_fastest(s, note, size);
    } else {
        *kind = ATTENTION_FLASH;
        snprintf(note, size, "flash (sequences are short)");
    }
    return 0;
}

#endif
