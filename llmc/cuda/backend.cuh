/*
The CUDA backend: every function that train_gpt.c calls on a machine, for one NVIDIA GPU. Work is
queued on one stream and done in order. Only device_upload, device_download, device_wait and
la_sum_squares wait for it.
*/
#ifndef CM_CUDA_BACKEND_CUH
#define CM_CUDA_BACKEND_CUH

#include "../choices.h"
#include "../config.h"
#include "attention.cuh"
#include "attention_choice.cuh"
#include "gemm.cuh"
#include "layers.cuh"
#include "linalg.cuh"
#include "noise.cuh"
#include "nvml.cuh"

/* ---------------------------------------------------------------------------------------------- */
/* memory */

/* Returns zeroed memory of the device, aligned to 256 bytes; NULL if there is too little. */
static inline void *device_alloc(size_t bytes) {
    DeviceBlock *block = cm_gpu.blocks;
    while (block < cm_gpu.blocks + DEVICE_BLOCKS && block->p) block++;
    if (block == cm_gpu.blocks + DEVICE_BLOCKS) {
        device_fail("internal error: more than %d allocations of the device", DEVICE_BLOCKS);
        return NULL;
    }
    void *p = NULL;
    if (cuda_try_malloc(&p, bytes + !bytes)) return NULL;
    CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cm_gpu.stream));
    block->p = p;
    block->bytes = bytes;
    cm_gpu.used += bytes;
    if (cm_gpu.used > cm_gpu.used_most) cm_gpu.used_most = cm_gpu.used;
    return p;
}

static inline void device_free(void *p) {
    if (!p) return;
    for (int i = 0; i < DEVICE_BLOCKS; i++)
        if (cm_gpu.blocks[i].p == p) {
            cm_gpu.used -= cm_gpu.blocks[i].bytes;
            cm_gpu.blocks[i].p = NULL;
        }
    CUDA_CHECK(cudaFree(p));
}

/* Waits until all work that was queued is done. Returns 0, or -1 if something has failed. */
static inline int device_wait(void) { return CUDA_CHECK(cudaStreamSynchronize(cm_gpu.stream)); }

static inline void device_zero(void *p, size_t bytes) {
    CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cm_gpu.stream));
}
static inline void device_upload(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, cm_gpu.stream));
    device_wait();
}
/* Copies to the host, after all work that was queued. Returns 0. If this call or anything before
   it has failed, fills `to` with bytes 0xff, which are NaN, and returns -1: no caller continues
   with old numbers. */
static inline int device_download(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, cm_gpu.stream));
    if (!device_wait()) return 0;
    memset(to, 0xff, bytes);
    return -1;
}

/* Copies `rows` rows of n bytes within device memory. Rows begin to_pitch and from_pitch bytes
   apart. */
static inline void device_copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                                    size_t n, size_t rows) {
    CUDA_CHECK(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, n, rows, cudaMemcpyDeviceToDevice,
                                 cm_gpu.stream));
}

/* Makes a slot at least `bytes` large and waits until its last copy has ended. Returns 0, or -1
   if something has failed. */
static inline int send_slot_ready(SendSlot *s, size_t bytes) {
    if (!s->sent) CUDA_CHECK(cudaEventCreateWithFlags(&s->sent, cudaEventDisableTiming));
    if (s->p) CUDA_CHECK(cudaEventSynchronize(s->sent));
    if (s->bytes >= bytes) return device_failure() ? -1 : 0;
    if (s->p) CUDA_CHECK(cudaFreeHost(s->p));
    s->p = NULL;
    s->bytes = 0;
    if (CUDA_CHECK(cudaMallocHost(&s->p, bytes))) return -1;
    s->bytes = bytes;
    return 0;
}

/* Queues an upload. `from` may be overwritten as soon as the call returns. */
static inline void device_send(void *to, const void *from, size_t bytes) {
    SendSlot *s = &cm_gpu.send_slots[cm_gpu.send_next++ % SEND_SLOTS];
    if (send_slot_ready(s, bytes)) return;
    memcpy(s->p, from, bytes);
    CUDA_CHECK(cudaMemcpyAsync(to, s->p, bytes, cudaMemcpyHostToDevice, cm_gpu.stream));
    CUDA_CHECK(cudaEventRecord(s->sent, cm_gpu.stream));
}

/* Uploads the n tokens of a batch and their positions sorted by token, which embed_backward
   walks: DEVICE_TOKENS(n) ints. */
#define DEVICE_TOKENS(N) (2 * (size_t)(N))
static inline void tokens_upload(int *to, const int *tokens, int n, int vocab) {
    size_t bytes = (size_t)n * sizeof(int);
    if (n > cm_gpu.tokens_room) {
        free(cm_gpu.tokens);
        cm_gpu.tokens_room = 0;
        cm_gpu.tokens = (int *)malloc(2 * bytes);
        if (!cm_gpu.tokens) {
            device_fail("out of memory: %d tokens", n);
            return;
        }
        cm_gpu.tokens_room = n;
    }
    memcpy(cm_gpu.tokens, tokens, bytes);
    if (tokens_sort(cm_gpu.tokens + n, tokens, n, vocab)) return;
    device_send(to, cm_gpu.tokens, 2 * bytes);
}

/* Work that a device can record and replay. device_replays returns 1 if it has replayed the
   work; if it returns 0, the caller queues the work and then calls device_recorded. The work is
   done plainly the first time, which lets the libraries allocate what they need, and recorded
   the second time. Nothing is recorded before device_replay(1). */
typedef struct {
    int times, recording;
    cudaGraphExec_t work;
} DeviceGraph;
/* Whether the device can replay. With by_itself, whether it should without being asked: not
   under the emulator, whose times mean nothing. */
static inline int device_can_replay(int by_itself) { return !(by_itself && emulated_time); }
static inline void device_replay(int on) { cm_gpu.replay = on; }

static inline int device_replays(DeviceGraph *g) {
    if (!cm_gpu.replay || g->times++ == 0) return 0;
    if (g->work) {
        CUDA_CHECK(cudaGraphLaunch(g->work, cm_gpu.stream));
        return 1;
    }
    CUDA_CHECK(cudaStreamBeginCapture(cm_gpu.stream, cudaStreamCaptureModeThreadLocal));
    g->recording = 1;
    return 0;
}

static inline void device_recorded(DeviceGraph *g) {
    cudaGraph_t graph = NULL;
    if (!g->recording) return;
    CUDA_CHECK(cudaStreamEndCapture(cm_gpu.stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&g->work, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    CUDA_CHECK(cudaGraphLaunch(g->work, cm_gpu.stream));
    g->recording = 0;
}

static inline void device_graph_free(DeviceGraph *g) {
    if (g->work) CUDA_CHECK(cudaGraphExecDestroy(g->work));
    memset(g, 0, sizeof *g);
}

/* Bytes of device memory that are free. 768 MiB are left to the driver: the kernels of cuBLASLt
   and cuDNN, which are loaded when they are first used, take 300 to 600 MB. */
static inline size_t device_memory_free(void) {
    size_t room = 0, all = 0, spare = (size_t)768 << 20;
    CUDA_CHECK(cudaMemGetInfo(&room, &all));
    return room > spare ? room - spare : 1;
}

static inline size_t device_memory_peak(void) {
    return cm_gpu.used_most + cm_gpu.scratch_bytes + GEMM_WORKSPACE;
}

/* How many of N rows of logits, `bytes` each, are formed at a time. Every chunk reads and writes
   the weight gradient of the head, so chunks should be large, but more than 8192 rows gain
   nothing. The logits take at most a 64th of the memory. The result is N or a multiple of 256
   rows, the largest tile of the matrix product. */
static inline int device_logit_rows(int N, size_t bytes) {
    size_t rows = 8192, most = cm_gpu.properties.totalGlobalMem / 64 / bytes;
    if (cm_gpu.properties.totalGlobalMem && most < rows) rows = most;
    rows = rows < 256 ? 256 : rows / 256 * 256;
    return (int)min_size(rows, (size_t)N);
}

/* device_workspace returns the bytes that the backend needs beside the model's own, with R rows
   of logits at a time. device_reserve allocates them; it returns -1 if there is too little
   memory. */
static inline size_t device_workspace(const Config *c, int R, int training) {
    Shape shape = shape_of(c);
    size_t most = training ? layers_scratch(&shape, R) : 0;
    size_t attention =
        training ? attention_scratch(c->batch_size, c->seq_len, c->heads, c->kv_heads, c->head_dim)
                 : 0;
    size_t library =
        cudnn_attention_workspace(c->batch_size, c->seq_len, c->heads, c->kv_heads, c->head_dim);
    size_t hopper = training ? hopper_scratch(c->batch_size, c->seq_len, c->heads, c->head_dim) : 0;
    if (attention > most) most = attention;
    if (hopper > most) most = hopper;
    if (library > most) most = library;
    return most + GEMM_WORKSPACE;
}
static inline int device_reserve(size_t bytes) {
    return cuda_scratch_reserve(bytes - GEMM_WORKSPACE);
}

/* ---------------------------------------------------------------------------------------------- */
/* the device */

/* The key of a choice on this GPU, for choices.h: "WHAT on NAME, DETAILS". */
__attribute__((format(printf, 3, 4))) static inline void
device_choice_key(char key[256], const char *what, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = snprintf(key, 256, "%s on %.80s", what, cm_gpu.properties.name);
    vsnprintf(key + n, 256 - (size_t)n, format, args);
    va_end(args);
    for (char *c = key; *c; c++)
        if (*c == '=' || *c == '\n') *c = ' ';
}

/* Reads the algorithms of matrix products from `run` (may be NULL): with --gemm measured those
   of all runs on this GPU, then, over them, those of this run. Returns 0, or -1 and err if the
   run's own are damaged. */
static inline int device_take_products(Choices *run, char *err) {
    char key[256], why[ERR_LEN];
    if (!run) return 0;
    device_choice_key(key, "products", "%s", "");
    const char *shared = cm_gpu.gemm_measure ? choices_get(run->from, key) : NULL;
    const char *own = choices_get(run, key);
    if (shared && gemm_choices_take(shared, 0, why) < 0)
        fprintf(stderr, "note: %s; the products are measured again\n", why);
    int status = own ? gemm_choices_take(own, 1, why) : 0;
    if (status > 0)
        fprintf(stderr, "note: %s; from here on the last bits of the run differ\n", why);
    return status < 0 ? fail(err, "--resume: %s", why) : 0;
}

/* Puts what this run has chosen by measurement into `run`, and what every run on this GPU has
   chosen into run->from. */
static inline void device_choices(Choices *run) {
    char key[256];
    if (!cm_gpu.gemm_measure) return;
    device_choice_key(key, "products", "%s", "");
    for (int shared = 0; shared < 2; shared++) {
        char *text = gemm_choices_text(shared);
        if (text) choices_set(shared ? run->from : run, key, text);
        free(text);
    }
}

/* Milliseconds of the MLP's first layer forward and of the backward pass through its activation:
   the median of five. */
static inline double device_gelu_ms(int fused, const Config *c, floatX *y, floatX *h, floatX *x,
                                    const floatX *w, const floatX *b, floatX *dh, floatX *dy,
                                    floatM *db, floatX *dz, const floatX *w2) {
    enum { ROUNDS = 5 };
    int N = c->batch_size * c->seq_len, C = c->width, F = c->ff_width;
    double ms[ROUNDS];
    cudaEvent_t at[2] = {NULL, NULL};
    for (int i = 0; i < 2; i++) CUDA_CHECK(cudaEventCreate(&at[i]));
    cm_gpu.gelu_fused = fused;
    for (int i = -1; i < ROUNDS; i++) {
        float t = 0;
        CUDA_CHECK(cudaEventRecord(at[0], cm_gpu.stream));
        linear_act_forward(y, h, x, w, b, N, C, F, ACT_GELU);
        linear_act_backward(dh, dy, db, dz, w2, h, N, F, C, ACT_GELU);
        CUDA_CHECK(cudaEventRecord(at[1], cm_gpu.stream));
        CUDA_CHECK(cudaEventSynchronize(at[1]));
        CUDA_CHECK(cudaEventElapsedTime(&t, at[0], at[1]));
        for (int j = i; j >= 0; j--) { /* kept in ascending order */
            ms[j] = j && ms[j - 1] > (double)t ? ms[j - 1] : (double)t;
            if (!j || ms[j - 1] <= (double)t) break;
        }
    }
    for (int i = 0; i < 2; i++) CUDA_CHECK(cudaEventDestroy(at[i]));
    return ms[ROUNDS / 2];
}

/* Measures whether GELU is faster in the epilogue of the matrix product or in a kernel of its
   own, and sets c->gelu. The tensors are a layer's (see linear_act_forward and
   linear_act_backward) and are overwritten; db is added to. The emulator's times mean nothing:
   under it GELU has a kernel of its own. */
static inline void device_choose_gelu(Config *c, Choices *run, floatX *y, floatX *h, floatX *x,
                                      const floatX *w, const floatX *b, floatX *dh, floatX *dy,
                                      floatM *db, floatX *dz, const floatX *w2) {
    size_t N = (size_t)c->batch_size * (size_t)c->seq_len, C = (size_t)c->width;
    char key[256];
    int fused = 0;
    device_choice_key(key, "gelu", ", %zu tokens of %d, MLP %d, %zu bytes", N, c->width,
                      c->ff_width, sizeof(floatX));
    const char *known = choices_recall(run, key);
    switch ((GeluWay)c->gelu) {
    case GELU_FUSED: fused = 1; break;
    case GELU_UNFUSED: break;
    case GELU_AUTO:
        if (c->act != ACT_GELU) break;
        if (known) {
            fused = !strcmp(known, "fused");
        } else if (!emulated_time) {
            device_noise(x, N * C, 1, 1);
            device_noise(dz, N * C, 1, 2);
            double one = device_gelu_ms(1, c, y, h, x, w, b, dh, dy, db, dz, w2);
            double two = device_gelu_ms(0, c, y, h, x, w, b, dh, dy, db, dz, w2);
            fused = one < two;
            const char *name = fused ? "fused" : "unfused";
            choices_set(run, key, name);
            choices_set(run ? run->from : NULL, key, name);
            print_line(stdout, "gelu",
                       "%s: %.3f ms a layer in the product's epilogue, %.3f ms apart", name, one,
                       two);
        }
    }
    c->gelu = fused ? GELU_FUSED : GELU_UNFUSED;
    cm_gpu.gelu_fused = fused;
}

/* Names under which choices.h keeps a kind of attention. */
static inline const char *device_attention_name(AttentionKind kind) {
    switch (kind) {
    case ATTENTION_FLASH: return "flash";
    case ATTENTION_HOPPER: return "hopper";
    case ATTENTION_AUTO:
    case ATTENTION_CUDNN:
    case ATTENTION_CUDNN_FAST: return "cudnn";
    }
    return "";
}
static inline AttentionKind device_attention_known(const char *name) {
    if (!strcmp(name, "flash")) return ATTENTION_FLASH;
    return !strcmp(name, "hopper") ? ATTENTION_HOPPER : ATTENTION_CUDNN;
}

/* Chooses the kernels of attention: what an earlier run on this GPU found fastest for this
   shape, or what a trial finds now. Sets c->attention. Returns 0, or -1 and err if --attention
   names kernels that cannot do this shape. */
static inline int device_choose_attention(Config *c, Choices *run, char *err) {
    AttentionShape shape = {c->batch_size, c->seq_len,  c->heads,
                            c->kv_heads,   c->head_dim, c->attn_scale};
    AttentionKind kind = (AttentionKind)c->attention;
    char *note = cm_gpu.attention_note, key[256];
    const size_t size = sizeof cm_gpu.attention_note;
    int automatic = kind == ATTENTION_AUTO;
    device_choice_key(key, "attention", ", %d sequences of %d, %d heads, %d of keys, of %d",
                      c->batch_size, c->seq_len, c->heads, c->kv_heads, c->head_dim);
    const char *known = automatic ? choices_recall(run, key) : NULL;
    if (known) kind = device_attention_known(known);
    cm_gpu.cudnn_wanted = kind != ATTENTION_FLASH && kind != ATTENTION_HOPPER;
    int status = attention_choose(&kind, &shape, note, size, err);
    if (status && known) { /* kernels that were chosen before have to agree with ours again */
        fprintf(stderr, "note: %s\n", err);
        kind = ATTENTION_FLASH;
        status = attention_choose(&kind, &shape, note, size, err);
    }
    c->attention = kind;
    if (status) return -1;
    if (known && !strcmp(known, "flash")) snprintf(note, size, "flash (measured before)");
    if (!automatic || known || cm_gpu.attention_faster == 0) return 0;
    choices_set(run, key, device_attention_name(kind));
    choices_set(run ? run->from : NULL, key, device_attention_name(kind));
    return 0;
}

/* Selects the GPU of --device, checks that it can run this program, and chooses the kernels of
   attention. `run` holds earlier measurements and may be NULL. Returns 0, or -1 and err. */
static inline int device_setup(Config *c, Choices *run, char *err) {
    int count = 0, bf16 = sizeof(floatX) == 2;
    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID",
           0); /* count GPUs as nvidia-smi does, unless the user says otherwise */
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || !count)
        return fail(err, "no GPU that CUDA can use: %s. ./train_gpt trains on the CPU",
                    status == cudaSuccess ? "there is none" : cudaGetErrorString(status));
    if (c->device >= count)
        return fail(err, "--device %d: this machine has %d GPU%s, counted from 0", c->device, count,
                    count == 1 ? "" : "s");
    if (c->compute != COMPUTE_AUTO && (c->compute == COMPUTE_BF16) != bf16)
        return fail(err, "--compute %s: this program was built for %s; use %s",
                    bf16 ? "fp32" : "bf16", bf16 ? "bf16" : "fp32",
                    bf16 ? "train_gpt_cuda_fp32" : "train_gpt_cuda");
#ifdef _OPENMP
    if (c->threads) omp_set_num_threads(c->threads);
#endif
    CUDA_CHECK(cudaSetDevice(c->device));
    CUDA_CHECK(cudaGetDeviceProperties(&cm_gpu.properties, c->device));
    const cudaDeviceProp *p = &cm_gpu.properties;
    if (p->major < 8)
        return fail(
            err,
            "--device %d is a %.80s of compute capability %d.%d, and this program needs 8.0 "
            "(A100) or higher",
            c->device, p->name, p->major, p->minor);
    if (attention_supports(c->head_dim, err)) return -1;
    if (!cm_gpu.stream) CUDA_CHECK(cudaStreamCreate(&cm_gpu.stream));
    cm_gpu.shared_limit = p->sharedMemPerBlockOptin;
    cm_gpu.allow_tf32 = c->tf32;
    switch ((GemmWay)c->gemm) {
    case GEMM_MEASURED: cm_gpu.gemm_measure = 1; break;
    case GEMM_FIRST: cm_gpu.gemm_measure = 0; break;
    }
    switch ((GeluWay)c->gelu) {
    case GELU_FUSED: cm_gpu.gelu_fused = 1; break;
    case GELU_AUTO: /* until device_choose_gelu measures */
    case GELU_UNFUSED: cm_gpu.gelu_fused = 0; break;
    }
    if (device_take_products(run, err)) return -1;
    nvml_start(c->device);
    if (device_choose_attention(c, run, err)) return -1;
    return device_check(err);
}

/* Names the libraries that were loaded and their paths: cuBLASLt, and cuDNN if it was looked
   for. */
static inline void device_libraries(char *text, size_t size) {
    char path[1024] = "";
    gemm_library(text, size);
    size_t n = strlen(text);
    library_loaded("libcublasLt.so", path, sizeof path);
    if (path[0]) n += (size_t)snprintf(text + n, n < size ? size - n : 0, " (%s)", path);
    if (!cm_gpu.cudnn_wanted || n + 8 >= size) return;
    cudnn_where(text + n + 2, size - n - 2);
    if (text[n + 2]) memcpy(text + n, ", ", 2);
}

/* What the bits of a result depend on beside the flags, in one line. */
static inline void device_identity(char *text, size_t size) {
    const cudaDeviceProp *p = &cm_gpu.properties;
    char library[64];
    int version = 0;
    gemm_library(library, sizeof library);
    CUDA_CHECK(cudaRuntimeGetVersion(&version));
    snprintf(text, size, "%.80s (sm_%d%d, %d SMs, %.1f GiB), CUDA %d.%d, %s, %s%s", p->name,
             p->major, p->minor, p->multiProcessorCount, p->totalGlobalMem / 1073741824.0,
             version / 1000, version % 1000 / 10, library, sizeof(floatX) == 2 ? "bf16" : "fp32",
             cm_gpu.allow_tf32 ? ", tf32" : "");
}

/* Describes the machine in one line. */
static inline void device_describe(char *text, size_t size) {
    device_identity(text, size);
    size_t used = strlen(text);
    snprintf(text + used, size - used, ", attention %s", cm_gpu.attention_note);
}

/* Facts about the device for a line of the log, as members of a JSON object; "" if there are
   none. */
static inline void device_state(char *text, size_t size) { nvml_state(text, size); }

/* Dense bf16 FLOP/s with fp32 sums, from the makers' data sheets; 0 if the GPU is not in the
   table. The first name that occurs in the device's name wins. TF32 reaches half of it on all of
   these GPUs. */
static inline double device_stated_peak(const char *name) {
    static const struct {
        const char *name;
        double tflops;
    } table[] = {
        {"B200", 2250},     {"GH200", 989},        {"H200", 989},       {"H100 PCIe", 756},
        {"H100 NVL", 835},  {"H100", 989},         {"H800", 989},       {"H20", 148},
        {"A100", 312},      {"A800", 312},         {"A30", 165},        {"A40", 149.7},
        {"A10", 125},       {"A6000", 154.8},      {"L40S", 362},       {"L40", 181},
        {"L4", 121},        {"RTX 6000 Ada", 364}, {"RTX 5090", 209.5}, {"RTX 4090", 165.2},
        {"RTX 4080", 97.5}, {"RTX 3090", 71},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strstr(name, table[i].name)) return table[i].tflops * 1e12;
    return 0;
}

/* Floating-point operations a second of the matrix product: as measured on 8192 x 8192 x 8192
   random numbers, the median of a few runs at the clocks of a short load; and as the data sheet
   states. 0 if unknown. With CM_NO_PEAK in the environment nothing is measured: under a
   sanitizer that would take long. */
static inline void device_peak(double *measured, double *stated) {
    *stated = device_stated_peak(cm_gpu.properties.name);
    if (sizeof(floatX) == 4) *stated = cm_gpu.allow_tf32 ? *stated / 2 : 0;
    *measured = 0;
    enum { ROUNDS = 9, WARM = 3 };
    const int n = 8192;
    size_t size = (size_t)n * n;
    double rate[ROUNDS];
    floatX *memory;
    cudaEvent_t at[ROUNDS + 1] = {NULL};
    if (emulated_time || getenv("CM_NO_PEAK")) return;
    if (cuda_try_malloc((void **)&memory, 3 * size * sizeof *memory)) return;
    device_noise(memory, 2 * size, 1, 1);
    for (int i = 0; i <= ROUNDS; i++) CUDA_CHECK(cudaEventCreate(&at[i]));
    for (int i = -WARM; i < ROUNDS; i++) {
        if (i == 0) CUDA_CHECK(cudaEventRecord(at[0], cm_gpu.stream));
        gemm(0, 1, n, n, n, 1, memory, n, memory + size, n, 0, memory + 2 * size, n);
        if (i >= 0) CUDA_CHECK(cudaEventRecord(at[i + 1], cm_gpu.stream));
    }
    CUDA_CHECK(cudaEventSynchronize(at[ROUNDS]));
    for (int i = 0; i < ROUNDS; i++) {
        float ms = 0;
        CUDA_CHECK(cudaEventElapsedTime(&ms, at[i], at[i + 1]));
        rate[i] = 2.0 * n * n * n / (1e-3 * (double)ms);
        for (int j = i; j > 0 && rate[j - 1] > rate[j]; j--) {
            double swap = rate[j];
            rate[j] = rate[j - 1];
            rate[j - 1] = swap;
        }
    }
    if (!device_failure()) *measured = rate[ROUNDS / 2];
    for (int i = 0; i <= ROUNDS; i++) CUDA_CHECK(cudaEventDestroy(at[i]));
    CUDA_CHECK(cudaFree(memory));
}

#endif
