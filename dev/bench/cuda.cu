/*
Measures the parts of a training step on a GPU: matrix products, attention, the kernels of layers,
the optimizers. Prints a Markdown table for each. --json FILE writes the numbers.

    make build/cuda/bench_cuda
    build/cuda/bench_cuda [--only gemm|attention|layers|optimizer] [--json FILE]

Shapes are those of GPT-2 124M on 16 x 1024 tokens, and for optimizers also those of 340M and 1B.
Times come from CUDA events: the median of several after a warm-up. Kernels of layers start with an
empty L2 cache, the others with the contents that the previous call left. --smoke runs tiny shapes,
the only ones that the emulator can run.
*/
#include "../../llmc/cuda/backend.cuh"
#include "../../llmc/optim/plan.h"
#include "../../llmc/params.h"

/* Makes a call of the run-time library. The benchmark ends if it fails. */
#define MUST(CALL) must((CALL), #CALL, __LINE__)
static inline void must(cudaError_t status, const char *call, int line) {
    if (status != cudaSuccess) die("cuda.cu:%d: %s: %s", line, call, cudaGetErrorString(status));
    if (device_failure()) die("%s", device_failure());
}

enum { ONLY_ALL, ONLY_GEMM, ONLY_ATTENTION, ONLY_LAYERS, ONLY_OPTIMIZER };

typedef struct {
    int only, smoke, device;
    char json[FLAG_STRING_SIZE];
} BenchConfig;

#define FIELD(NAME) offsetof(BenchConfig, NAME)
static const Flag bench_flags[] = {
#define SECTION NULL
    FLAG_CHOICE("only", only, "all", "all|gemm|attention|layers|optimizer", "one of the tables"),
    FLAG_TEXT("json", json, "", "file for the numbers"),
    FLAG_INT("device", device, "0", 0, 1024, "GPU to use"),
    FLAG_SWITCH("smoke", smoke, "tiny shapes, one round"),
};
#undef SECTION
#undef FIELD
enum { BENCH_FLAGS = sizeof bench_flags / sizeof *bench_flags };

/* ---------------------------------------------------------------------------------------------- */
/* The report */

static FILE *json;
static int json_rows;
static const char *section;

/* Prints a section and the head of its table. */
static void table(const char *name, const char *title, const char *columns) {
    section = name;
    printf("\n### %s\n\n%s\n|", title, columns);
    for (const char *c = columns + 1; *c; c++)
        if (*c == '|') printf("---|");
    printf("\n");
    fflush(stdout);
}

/* Adds a row to the JSON file: {"section": "gemm", "name": "...", "ms": 1.5, "tflops": 600}. */
static void json_row(const char *name, double ms, const char *unit, double rate) {
    if (!json) return;
    fprintf(json, "%s\n  {\"section\": ", json_rows++ ? "," : "");
    json_string(json, section);
    fprintf(json, ", \"name\": ");
    json_string(json, name);
    fprintf(json, ", \"ms\": %.6g, \"%s\": %.6g}", ms, unit, rate);
}

/* ---------------------------------------------------------------------------------------------- */
/* Time and memory */

static int smoke;
static cudaEvent_t event_start, event_end;
static void *flush_memory; /* writing it empties the L2 cache */
enum { FLUSH = 256 << 20, ROUNDS = 9 };

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Milliseconds of `repeat` calls. */
template <typename F> static double event_ms(const F &work, int repeat, int cold) {
    float ms;
    if (cold) MUST(cudaMemsetAsync(flush_memory, json_rows, smoke ? 1 : FLUSH, cm_gpu.stream));
    MUST(cudaEventRecord(event_start, cm_gpu.stream));
    for (int i = 0; i < repeat; i++) work();
    MUST(cudaEventRecord(event_end, cm_gpu.stream));
    MUST(cudaEventSynchronize(event_end));
    MUST(cudaEventElapsedTime(&ms, event_start, event_end));
    return (double)ms / repeat;
}

/* Milliseconds of one call: the median of rounds of at least 2 ms; with `cold`, of single calls. */
template <typename F> static double time_ms(const F &work, int cold) {
    double ms[ROUNDS];
    int rounds = smoke ? 1 : ROUNDS, repeat = 1;
    work();
    if (!smoke) {
        double once = event_ms(work, 1, cold);
        if (!cold) repeat = max_int(1, min_int(50, (int)(2 / fmax(once, 1e-3))));
    }
    for (int i = 0; i < rounds; i++) ms[i] = event_ms(work, repeat, cold);
    qsort(ms, (size_t)rounds, sizeof *ms, ascending);
    return fmax(ms[rounds / 2], 1e-6);
}

/* Zeroed device memory for one table, and random numbers. NULL if there is too little memory. */
static void *taken[64];
static int taken_count;
static void *take(size_t bytes) {
    void *p = device_alloc(bytes);
    if (taken_count == 64) die("too many allocations");
    if (p) taken[taken_count++] = p;
    return p;
}
template <typename T> static T *noise(size_t n, double scale) {
    T *p = (T *)take(n * sizeof(T));
    if (p) device_noise(p, n, scale, 12345);
    return p;
}
static void *must(void *p) {
    if (!p) die("out of GPU memory");
    return p;
}
static floatX *reals(size_t n) { return (floatX *)must(noise<floatX>(n, 1)); }
static floatM *masters(size_t n) { return (floatM *)must(noise<floatM>(n, 1)); }
static void give_back(void) {
    device_wait();
    while (taken_count) device_free(taken[--taken_count]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Matrix products */

static double peak; /* FLOP/s that the data sheet states for floatX; 0: unknown */

static void gemm_row(const char *name, int M, int N, int K, double items, double most, double ms) {
    double rate = 2 * items * M * N * K / ms * 1e-9;
    char of_peak[16] = "";
    if (most > 0) snprintf(of_peak, sizeof of_peak, "%.0f %%", 100e12 * rate / most);
    printf("| %s | %d x %d x %d | %.3f | %.1f | %s |\n", name, M, N, K, ms, rate, of_peak);
    fflush(stdout);
    json_row(name, ms, "tflops", rate);
}

typedef struct {
    int B, T, L, C, NH, V, F, R; /* rows of logits at a time */
} BenchShape;

static void bench_linear(const char *name, int N, int I, int O) {
    floatX *x = reals((size_t)N * I), *y = reals((size_t)N * O);
    floatX *w = reals((size_t)O * I), *b = reals((size_t)O);
    floatM *dw = masters((size_t)O * I);
    char label[96];
    size_t i = (size_t)I, o = (size_t)O;
    snprintf(label, sizeof label, "%s, forward with bias", name);
    gemm_row(label, N, O, I, 1, peak, time_ms([&] { linear_forward(y, x, w, b, N, I, O); }, 0));
    snprintf(label, sizeof label, "%s, input gradient", name);
    gemm_row(label, N, I, O, 1, peak,
             time_ms([&] { gemm(0, 0, N, I, O, 1, y, o, w, i, 0, x, i); }, 0));
    snprintf(label, sizeof label, "%s, weight gradient", name);
    gemm_row(label, O, I, N, 1, peak,
             time_ms([&] { gemm(1, 0, O, I, N, 1, y, o, x, i, 1, dw, i); }, 0));
    give_back();
}

/* The products of a sign on all layers in one batch, in fp32 and with TF32. */
static void bench_fp32(const char *name, int count, int rows, int cols) {
    Mat X = mat_dense(masters((size_t)count * rows * cols), count, rows, cols);
    Mat G = mat_dense(masters((size_t)count * rows * rows), count, rows, rows);
    Mat Y = mat_dense(masters((size_t)count * rows * cols), count, rows, cols);
    Mat H = mat_dense(masters((size_t)count * rows * rows), count, rows, rows);
    int allowed = cm_gpu.allow_tf32;
    for (int tf32 = 0; tf32 < 2; tf32++) {
        char label[96];
        double most = tf32 ? (sizeof(floatX) == 2 ? peak / 2 : peak) : 0;
        cm_gpu.allow_tf32 = tf32;
        la_fast(tf32);
        snprintf(label, sizeof label, "%d x %s, X X^T, %s", count, name, tf32 ? "TF32" : "fp32");
        gemm_row(label, rows, rows, cols, count, most, time_ms([&] { la_gram(G, X, 0); }, 0));
        snprintf(label, sizeof label, "%d x %s, A A, %s", count, name, tf32 ? "TF32" : "fp32");
        gemm_row(label, rows, rows, rows, count, most,
                 time_ms([&] { la_gemm_symmetric(H, 1, G, G, 0); }, 0));
        snprintf(label, sizeof label, "%d x %s, P X, %s", count, name, tf32 ? "TF32" : "fp32");
        gemm_row(label, rows, cols, rows, count, most, time_ms([&] { la_gemm(Y, 1, G, X, 0); }, 0));
    }
    la_fast(0);
    cm_gpu.allow_tf32 = allowed;
    give_back();
}

/* The MLP with GELU in the epilogues and with GELU in kernels of its own: forward through the first
   matrix and the activation, and backward from the second matrix to the output of the first. */
static void bench_gelu(int N, int C, int F) {
    floatX *x = reals((size_t)N * C), *y = reals((size_t)N * F), *h = reals((size_t)N * F),
           *dh = reals((size_t)N * F);
    floatX *w = reals((size_t)F * C), *b = reals((size_t)F), *dy = reals((size_t)N * F);
    floatM *db = masters((size_t)F);
    int kept = cm_gpu.gelu_fused;
    for (int fused = 0; fused < 2; fused++) {
        char label[96];
        cm_gpu.gelu_fused = fused;
        snprintf(label, sizeof label, "W_fc and GELU, %s, forward",
                 fused ? "one kernel" : "two kernels");
        gemm_row(label, N, F, C, 1, peak,
                 time_ms([&] { linear_act_forward(y, h, x, w, b, N, C, F, ACT_GELU); }, 0));
        snprintf(label, sizeof label, "W_proj and GELU, %s, backward with bias",
                 fused ? "epilogue" : "kernel");
        gemm_row(label, N, F, C, 1, peak,
                 time_ms([&] { linear_act_backward(dh, dy, db, x, w, h, N, F, C, ACT_GELU); }, 0));
    }
    cm_gpu.gelu_fused = kept;
    give_back();
}

static void bench_gemm(const BenchShape *s) {
    int N = s->B * s->T, C = s->C, Vp = round_up(s->V, 64);
    table("gemm", "Matrix products", "| product | M x N x K | ms | TFLOP/s | of the stated peak |");
    bench_linear("W_QKV", N, C, 3 * C);
    bench_linear("W_O", N, C, C);
    bench_linear("W_fc", N, C, s->F);
    bench_linear("W_proj", N, s->F, C);
    bench_gelu(N, C, s->F);
    const int rows[] = {667, 4096, s->R}; /* rows of logits at a time */
    for (int i = smoke ? 2 : 0; i < 3; i++) bench_linear("head", rows[i], C, Vp);
    bench_fp32("W_Q", s->L, C, C);
    bench_fp32("W_fc^T", s->L, C, s->F);
    bench_fp32("a head of W_Q", s->L * s->NH, C / s->NH, C);
}

/* ---------------------------------------------------------------------------------------------- */
/* Attention */

typedef struct {
    int B, T, NH, NKV, HS;
} Heads;

static void attention_row(const char *who, const Heads *h, double forward, double backward,
                          const char *note) {
    char label[96];
    double flops = 2.0 * h->B * h->NH * h->HS * h->T * (h->T + 1) / 2; /* of a causal product */
    snprintf(label, sizeof label, "%s B %d T %d NH %d NKV %d HS %d", who, h->B, h->T, h->NH, h->NKV,
             h->HS);
    printf("| %s | %d | %d | %d / %d | %d | %.3f | %.0f | %.3f | %.0f | %s |\n", who, h->B, h->T,
           h->NH, h->NKV, h->HS, forward, 2e-9 * flops / forward, backward, 5e-9 * flops / backward,
           note);
    fflush(stdout);
    snprintf(label + strlen(label), sizeof label - strlen(label), " forward");
    json_row(label, forward, "tflops", 2e-9 * flops / forward);
    snprintf(strstr(label, " forward"), 10, " backward");
    json_row(label, backward, "tflops", 5e-9 * flops / backward);
}

static void bench_heads(const Heads *h) {
    int B = h->B, T = h->T, NH = h->NH, NKV = h->NKV, HS = h->HS;
    size_t N = (size_t)B * T, A = N * (size_t)(NH * HS), Q = N * (size_t)((NH + 2 * NKV) * HS);
    double scale = 1 / sqrt((double)HS), forward, backward;
    floatX *qkv = reals(Q), *dqkv = reals(Q), *out = reals(A), *dout = reals(A);
    floatM *lse = masters(N * (size_t)NH);
    char why[384] = "", note[448], name[64], engines[128];
    forward = time_ms([&] { flash_forward(out, lse, qkv, B, T, NH, NKV, HS, scale); }, 0);
    backward =
        time_ms([&] { flash_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale); }, 0);
    attention_row("flash", h, forward, backward, "");
    if (hopper_supports(HS, why, sizeof why) ||
        hopper_forward(out, lse, qkv, B, T, NH, NKV, HS, scale)) {
        printf("| hopper | %d | %d | %d / %d | %d | | | | | %s |\n", B, T, NH, NKV, HS, why);
    } else {
        forward = time_ms([&] { hopper_forward(out, lse, qkv, B, T, NH, NKV, HS, scale); }, 0);
        backward = time_ms(
            [&] { hopper_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale); }, 0);
        attention_row("hopper", h, forward, backward, "");
    }
    why[0] = 0;
    for (cm_gpu.cudnn_fast = 0; cm_gpu.cudnn_fast < 2; cm_gpu.cudnn_fast++) {
        int status = cudnn_attention_plan(B, T, NH, NKV, HS, why, sizeof why);
        cudnn_name(name, sizeof name);
        if (cm_gpu.cudnn_fast)
            snprintf(name + strlen(name), sizeof name - strlen(name), ", dq in any order");
        if (status || cudnn_attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale) ||
            cudnn_attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale)) {
            printf("| %s | %d | %d | %d / %d | %d | | | | | %s |\n", status ? "cuDNN" : name, B, T,
                   NH, NKV, HS, status ? why : cudnn_failure());
            continue;
        }
        cudnn_engines(engines, sizeof engines);
        snprintf(note, sizeof note, "%.0f MB to work in; %s",
                 (double)cudnn_attention_workspace(B, T, NH, NKV, HS) * 1e-6, engines);
        forward =
            time_ms([&] { cudnn_attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale); }, 0);
        backward = time_ms(
            [&] { cudnn_attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale); },
            0);
        attention_row(name, h, forward, backward, note);
    }
    cm_gpu.cudnn_fast = 0;
    cudnn_free_plans();
    give_back();
    cuda_scratch_free();
}

static void bench_attention(void) {
    static const Heads big[] = {{16, 1024, 12, 12, 64},
                                {16, 1024, 12, 4, 64},
                                {16, 1024, 6, 6, 128},
                                {4, 4096, 12, 12, 64},
                                {4, 4096, 6, 6, 128}};
    static const Heads tiny[] = {{1, 48, 2, 1, 32}};
    table("attention", "Attention; FLOPs of 2 triangular products forward and 5 backward",
          "| by | B | T | NH / NKV | HS | forward ms | TFLOP/s | backward ms | TFLOP/s | |");
    for (size_t i = 0; i < (smoke ? 1 : sizeof big / sizeof big[0]); i++)
        bench_heads(smoke ? &tiny[i] : &big[i]);
}

/* ---------------------------------------------------------------------------------------------- */
/* The kernels of layers */

static double copy_rate; /* GB/s of a copy, read plus written */

static void layer_row(const char *name, double bytes, double ms) {
    double rate = bytes / ms * 1e-6;
    printf("| %s | %.1f | %.4f | %.0f | %.0f %% |\n", name, bytes * 1e-6, ms, rate,
           100 * rate / copy_rate);
    fflush(stdout);
    json_row(name, ms, "gb_s", rate);
}

static void bench_norms(const BenchShape *s) {
    int N = s->B * s->T, C = s->C;
    size_t n = (size_t)N * C;
    double x = (double)n * sizeof(floatX);
    floatX *a = reals(n), *b = reals(n), *c = reals(n), *d = reals(n);
    floatM *mean = masters((size_t)N), *rstd = masters((size_t)N), *gain = masters((size_t)C);
    floatM *bias = masters((size_t)C), *dgain = masters((size_t)C), *dbias = masters((size_t)C);
    floatM *dsum = masters((size_t)C);
    layer_row("layernorm forward", 2 * x,
              time_ms(
                  [&] {
                      norm_forward(a, mean, rstd, NULL, b, NULL, gain, bias, N, C, NORM_LAYERNORM,
                                   1e-5);
                  },
                  1));
    layer_row(
        "layernorm forward of a sum", 4 * x,
        time_ms(
            [&] { norm_forward(a, mean, rstd, c, b, d, gain, bias, N, C, NORM_LAYERNORM, 1e-5); },
            1));
    layer_row(
        "rmsnorm forward of a sum", 4 * x,
        time_ms([&] { norm_forward(a, mean, rstd, c, b, d, gain, NULL, N, C, NORM_RMSNORM, 1e-6); },
                1));
    layer_row("layernorm backward with the sum of dx", 4 * x,
              time_ms(
                  [&] {
                      norm_backward(a, dgain, dbias, dsum, b, c, d, gain, mean, rstd, N, C,
                                    NORM_LAYERNORM);
                  },
                  1));
    layer_row("rmsnorm backward", 4 * x,
              time_ms(
                  [&] {
                      norm_backward(a, dgain, NULL, NULL, b, c, d, gain, mean, rstd, N, C,
                                    NORM_RMSNORM);
                  },
                  1));
    give_back();
}

static void bench_embedding(const BenchShape *s) {
    int N = s->B * s->T, C = s->C, Vp = round_up(s->V, 64),
        *host = (int *)malloc((size_t)N * sizeof(int));
    double x = (double)N * C * sizeof(floatX), m = (double)sizeof(floatM);
    floatX *dx = reals((size_t)N * C), *wte = reals((size_t)Vp * C), *wpe = reals((size_t)s->T * C);
    floatM *dwte = masters((size_t)Vp * C), *dwpe = masters((size_t)s->T * C);
    int *tokens = (int *)must(take(DEVICE_TOKENS(N) * sizeof(int))), used = 0;
    char *seen = (char *)calloc((size_t)Vp, 1);
    if (!host || !seen) die("out of memory");
    for (int i = 0; i < N; i++) { /* roughly as in text, token k has the frequency 1 / (k + 1) */
        double u = (double)((unsigned)i * 2654435761u >> 8) / 16777216.0;
        host[i] = min_int(s->V - 1, (int)(exp(u * log((double)s->V)) - 1));
        used += !seen[host[i]];
        seen[host[i]] = 1;
    }
    tokens_upload(tokens, host, N, Vp);
    layer_row("embedding forward", 2 * x + (double)s->T * C * sizeof(floatX),
              time_ms([&] { embed_forward(dx, tokens, wte, wpe, s->B, s->T, C); }, 1));
    layer_row("embedding backward", 2 * x + 2 * m * C * (used + s->T),
              time_ms([&] { embed_backward(dwte, dwpe, dx, tokens, s->B, s->T, C); }, 1));
    free(host);
    free(seen);
    give_back();
}

static void bench_heads_in_place(const BenchShape *s) {
    int N = s->B * s->T, HS = s->C / s->NH;
    size_t n = (size_t)N * 3 * s->C, angles = (size_t)s->T * (HS / 2);
    double x = (double)N * s->C * sizeof(floatX); /* bytes of the queries */
    floatX *qkv = reals(n), *dqkv = reals(n);
    floatM *rstd = masters((size_t)N * 2 * s->NH), *cosine = masters(angles),
           *sine = masters(angles);
    layer_row(
        "QK-norm and rotation forward", 4 * x,
        time_ms([&] { qk_forward(qkv, rstd, cosine, sine, N, s->T, 0, s->NH, s->NH, HS, 1, 1e-6); },
                1));
    layer_row(
        "QK-norm and rotation backward", 6 * x,
        time_ms([&] { qk_backward(dqkv, qkv, rstd, cosine, sine, N, s->T, s->NH, s->NH, HS, 1); },
                1));
    give_back();
}

static void bench_activations(const BenchShape *s) {
    static const char *const names[] = {"GELU", "ReLU^2", "SwiGLU"};
    int N = s->B * s->T, F = s->F;
    size_t n = (size_t)N * F;
    double x = (double)n * sizeof(floatX);
    floatX *y = reals(n), *h = reals(2 * n), *dh = reals(2 * n);
    for (int act = ACT_GELU; act <= ACT_SWIGLU; act++) {
        int in = act == ACT_SWIGLU ? 2 : 1; /* tensors that are read */
        char label[64];
        snprintf(label, sizeof label, "%s forward", names[act]);
        layer_row(label, (1 + in) * x, time_ms([&] { act_forward(y, h, N, F, act); }, 1));
        snprintf(label, sizeof label, "%s backward", names[act]);
        layer_row(label, (1 + 2 * in) * x, time_ms([&] { act_backward(dh, y, h, N, F, act); }, 1));
    }
    floatM *db = masters((size_t)F);
    layer_row("GELU backward with the bias gradient", 3 * x,
              time_ms([&] { act_backward_sums(dh, db, y, h, N, F, ACT_GELU); }, 1));
    layer_row("bias gradient", x, time_ms([&] { bias_backward(db, y, N, F); }, 1));
    give_back();
}

static void bench_classifier(const BenchShape *s) {
    int R = s->R, Vp = round_up(s->V, 64);
    double x = (double)R * Vp * sizeof(floatX);
    floatX *logits = reals((size_t)R * Vp);
    floatM *losses = masters((size_t)R);
    int *targets = (int *)must(take((size_t)R * sizeof(int))); /* all 0 */
    layer_row("cross entropy", x,
              time_ms([&] { classifier(losses, logits, targets, R, s->V, Vp, 0, 0); }, 1));
    layer_row("cross entropy and gradient", 2 * x,
              time_ms([&] { classifier(losses, logits, targets, R, s->V, Vp, 0, 1e-4); }, 1));
    layer_row("cross entropy and gradient, softcap", 2 * x,
              time_ms([&] { classifier(losses, logits, targets, R, s->V, Vp, 15, 1e-4); }, 1));
    layer_row("softcap", 2 * x, time_ms([&] { softcap_forward(logits, R, s->V, Vp, 15); }, 1));
    give_back();
}

static void bench_parameters(const BenchShape *s) {
    size_t n = 12 * (size_t)s->L * s->C * s->C + (size_t)s->V * s->C;
    double m = (double)n * sizeof(floatM);
    floatM *p = masters(n), *g = masters(n), *first = masters(n), *second = masters(n);
    floatX *w = reals(n);
    Mat P = mat_dense(p, 1, 1, (int)n), G = mat_dense(g, 1, 1, (int)n);
    Mat M = mat_dense(first, 1, 1, (int)n);
    device_zero(second, n * sizeof(floatM));
    OptimOptions options;
    memset(&options, 0, sizeof options);
    options.adam_beta1 = 0.9;
    options.adam_beta2 = 0.95;
    options.adam_eps = 1e-8;
    Step adam;
    memset(&adam, 0, sizeof adam);
    adam.rule = &rule_table[RULE_ADAMW];
    adam.options = &options;
    adam.legs = 1;
    adam.leg[0].W = P;
    adam.leg[0].G = G;
    adam.leg[0].M = M;
    adam.leg[0].state[0] = second;
    adam.lr = 1e-4;
    adam.weight_decay = 0.1;
    adam.gscale = 1;
    adam.leg[0].age = 10;
    layer_row("weights to floatX", m + (double)n * sizeof(floatX),
              time_ms([&] { cast_weights(w, p, n); }, 1));
    layer_row("sum of squares, to the host", m, time_ms([&] { la_sum_squares(g, n); }, 1));
    layer_row("gradients to zero", m, time_ms([&] { device_zero(g, n * sizeof(floatM)); }, 1));
    layer_row("AdamW", 7 * m, time_ms([&] { step_run(&adam); }, 1));
    give_back();
}

static void bench_layers(const BenchShape *s) {
    size_t bytes = smoke ? 4096 : (size_t)512 << 20;
    flush_memory = must(device_alloc(smoke ? 1 : FLUSH));
    char *from = (char *)must(take(bytes)), *to = (char *)must(take(bytes));
    double ms = time_ms(
        [&] { MUST(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cm_gpu.stream)); },
        1);
    copy_rate = 2 * (double)bytes / ms * 1e-6;
    give_back();
    table("layers", "Kernels bound by memory", "| kernel | MB | ms | GB/s | of a copy |");
    layer_row("copy", 2 * (double)bytes, ms);
    bench_embedding(s);
    bench_norms(s);
    bench_heads_in_place(s);
    bench_activations(s);
    bench_classifier(s);
    bench_parameters(s);
    device_free(flush_memory);
    flush_memory = NULL;
    cuda_scratch_free();
}

/* ---------------------------------------------------------------------------------------------- */
/* Optimizers */

typedef struct {
    const char *name;
    int layers, width, heads;
} Model;

/* The timed parts of the update of a model by a plan. */
enum { PART_ATTENTION, PART_MLP, PART_REST, PART_ALL, PARTS };
typedef struct {
    Config c;
    Registry r;
    Plan plan;
    PlanState s;
    Arena arena;
} Update;

static void update_part(const Update *u, int part) {
    for (int i = 0; i < u->plan.n; i++) {
        const PlanEntry *e = &u->plan.e[i];
        int id = e->part[0].id, layers = u->r.t[id].layers, chunk = e->chunk;
        int is = id == T_WQKV || id == T_WO     ? PART_ATTENTION
                 : id == T_WFC || id == T_WPROJ ? PART_MLP
                                                : PART_REST;
        for (int l = 0; l < layers && (part == PART_ALL || part == is); l += chunk)
            plan_entry_step(&u->plan, &u->r, e, &u->c, &u->s, l, min_int(chunk, layers - l));
    }
}

static void update_build(Update *u, const Model *m, const char *rule) {
    char err[ERR_LEN], size[96];
    memset(u, 0, sizeof *u);
    flags_defaults(config_flags, CONFIG_FLAGS, &u->c);
    snprintf(size, sizeof size, "--layers %d --width %d --heads %d", m->layers, m->width, m->heads);
    if (config_apply(&u->c, NULL, config_presets[PRESET_GPT2], err) ||
        config_apply(&u->c, NULL, size, err) || config_apply(&u->c, NULL, rule, err))
        die("%s", err);
    u->c.vocab = smoke ? 100 : 50257;
    if (smoke) u->c.seq_len = 16;
    if (config_resolve(&u->c, err)) die("%s", err);
    u->r = registry_build(&u->c);
    u->plan = plan_build(&u->c, &u->r);
}

static const struct {
    const char *name, *flags;
} updates[] = {{"muon", "--optimizer muon"}, /* the others are compared with it */
               {"muon, signs in fp32", "--optimizer muon --msign-compute fp32"},
               {"muon per head", "--optimizer muon --qk muon-head --ov muon-head"},
               {"cm full, hybrid", "--optimizer cm"},
               {"cm full, hybrid, signs in fp32", "--optimizer cm --msign-compute fp32"},
               {"cm isotropic", "--optimizer cm --isotropic on"},
               {"adamw", "--optimizer adamw"}};
enum { UPDATES = sizeof updates / sizeof *updates };

static void bench_model(const Model *m) {
    static const char *const parts[PARTS] = {"attention", "MLP", "rest", "all"};
    static Update u[UPDATES];
    double muon[PARTS] = {0};
    size_t v = 1, arena = 1;
    for (int i = 0; i < UPDATES; i++) {
        update_build(&u[i], m, updates[i].flags);
        v = u[i].plan.state_size > v ? u[i].plan.state_size : v;
        arena = u[i].plan.arena_size > arena ? u[i].plan.arena_size : arena;
    }
    size_t n = u[0].r.size[SLOT_PARAM];
    floatM *p = noise<floatM>(n, 0.03), *g = noise<floatM>(n, 1e-3);
    floatM *first = (floatM *)take(n * sizeof(floatM)),
           *second = (floatM *)take(v * sizeof(floatM));
    floatM *room = (floatM *)take(arena * sizeof(floatM));
    if (!p || !g || !first || !second || !room) {
        printf("| %s | needs %.1f GB | | | | | | |\n", m->name, (double)(3 * n + v + arena) * 4e-9);
        give_back();
        return;
    }
    for (int i = 0; i < UPDATES; i++) {
        double ms[PARTS];
        char label[96];
        u[i].arena.p = room;
        u[i].arena.size = arena;
        PlanState s = {p, g, first, second, &u[i].arena, {1e-3, 1e-3}, 0.95, 1, 10, NULL};
        u[i].s = s;
        for (int part = 0; part < PARTS; part++) {
            ms[part] = time_ms([&] { update_part(&u[i], part); }, 0);
            if (i == 0) muon[part] = ms[part];
            snprintf(label, sizeof label, "%s %s %s", m->name, updates[i].name, parts[part]);
            json_row(label, ms[part], "of_muon", ms[part] / muon[part]);
        }
        printf("| %s | %s | %.3f | %.2f | %.3f | %.3f | %.3f | %.2f |\n", m->name, updates[i].name,
               ms[PART_ATTENTION], ms[PART_ATTENTION] / muon[PART_ATTENTION], ms[PART_MLP],
               ms[PART_REST], ms[PART_ALL], ms[PART_ALL] / muon[PART_ALL]);
        fflush(stdout);
    }
    give_back();
}

static void bench_optimizers(void) {
    static const Model models[] = {
        {"124M", 12, 768, 12}, {"340M", 24, 1024, 16}, {"1B", 24, 2048, 16}};
    static const Model tiny = {"tiny", 2, 32, 2};
    table("optimizer",
          "Updates: attention is W_Q W_K W_V W_O, rest the embeddings and vectors, by AdamW",
          "| model | rule | attention ms | / Muon | MLP ms | rest ms | all ms | / Muon |");
    for (size_t i = 0; i < (smoke ? 1 : sizeof models / sizeof models[0]); i++)
        bench_model(smoke ? &tiny : &models[i]);
}

/* ---------------------------------------------------------------------------------------------- */

static void setup(const BenchConfig *b) {
    Config c;
    char err[ERR_LEN], text[512];
    double measured;
    flags_defaults(config_flags, CONFIG_FLAGS, &c);
    if (config_apply(&c, NULL, config_presets[PRESET_GPT2], err)) die("%s", err);
    c.vocab = 50257;
    c.device = b->device;
    c.attention = ATTENTION_FLASH; /* bench_attention times the others too */
    if (config_resolve(&c, err) || device_setup(&c, NULL, err)) die("%s", err);
    device_describe(text, sizeof text);
    if (b->json[0] && !(json = fopen(b->json, "w")))
        die("cannot write %s: %s", b->json, strerror(errno));
    MUST(cudaEventCreate(&event_start));
    MUST(cudaEventCreate(&event_end));
    device_peak(&measured, &peak);
    printf("## %s\n", text);
    if (measured > 0)
        printf("\nA product of 8192 x 8192 x 8192 reaches %.0f TFLOP/s", measured * 1e-12);
    if (measured > 0 && peak > 0)
        printf(", %.0f %% of the stated %.0f", 100 * measured / peak, peak * 1e-12);
    if (measured > 0) printf(".\n");
    if (!json) return;
    fprintf(json, "{\"device\": ");
    json_string(json, text);
    fprintf(json, ", \"measured_tflops\": %.6g, \"stated_tflops\": %.6g, \"rows\": [",
            measured * 1e-12, peak * 1e-12);
}

int main(int argc, char **argv) {
    BenchConfig c;
    char err[ERR_LEN];
    flags_defaults(bench_flags, BENCH_FLAGS, &c);
    int told = flags_parse(bench_flags, BENCH_FLAGS, &c, NULL, argc, argv, err);
    if (told < 0) die("%s", err);
    if (told > 0) {
        flags_help(stdout, "usage: bench_cuda [flags]", bench_flags, BENCH_FLAGS);
        return 0;
    }
    smoke = c.smoke;
    setup(&c);
    const int rows = device_logit_rows(16 * 1024, 50304 * sizeof(floatX));
    const BenchShape big = {16, 1024, 12, 768, 12, 50257, 3072, rows},
                     tiny = {2, 24, 2, 32, 2, 100, 64, 40};
    const BenchShape *s = smoke ? &tiny : &big;
    if (c.only == ONLY_ALL || c.only == ONLY_GEMM) bench_gemm(s);
    if (c.only == ONLY_ALL || c.only == ONLY_ATTENTION) bench_attention();
    if (c.only == ONLY_ALL || c.only == ONLY_LAYERS) bench_layers(s);
    if (c.only == ONLY_ALL || c.only == ONLY_OPTIMIZER) bench_optimizers();
    if (json && (fprintf(json, "\n]}\n") < 0 || fclose(json)))
        die("cannot write %s: %s", c.json, strerror(errno));
    return 0;
}
