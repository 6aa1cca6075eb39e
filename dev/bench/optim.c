/*
Milliseconds a step and GFLOP/s of every optimizer rule at the weights of three GPTs: what the update
costs, and what Compositional Muon costs beside Muon on the same weights.

    make build/bench_optim && build/bench_optim [--model tiny|124m|340m|1b|all] [--threads N]

Without --model: 124m and 340m. All weights are fp32, the sign is pe8, Gaussian weights and gradients.
GFLOP/s are nominal: those of the plain algorithm (8 products of X X^T, A A and P X a sign, 25 steps of
3 products an inverse root), so that an algorithm that needs fewer shows as speed. Of a large model one
layer is measured and multiplied by the layers. The rules take turns; best and median of the rounds.
*/
#include "../../llmc/flags.h"
#include "../../llmc/optim/adamw.h"
#include "../../llmc/optim/compositional.h"
#include "../../llmc/optim/muon.h"
#include "../../llmc/rng.h"

typedef struct {
    const char *name;
    int layers, width, heads;
    int measured; /* layers */
} Model;

static const Model models[] = {{"tiny", 4, 128, 4, 4},
                               {"124m", 12, 768, 12, 1},
                               {"340m", 24, 1024, 16, 1},
                               {"1b", 24, 2048, 16, 1}};
enum { MODELS = sizeof models / sizeof *models };

typedef enum { MUON, MUON_HEAD, CM_FULL, CM_ISOTROPIC, ADAMW, MLP_MUON, MLP_ADAMW, RULES } Rule;
static const char *const rule_names[RULES] = {
    "muon", "muon-head", "cm full, hybrid", "cm isotropic", "adamw", "muon", "adamw"};

typedef struct {
    int model, threads;
} BenchConfig;

#define FIELD(NAME) offsetof(BenchConfig, NAME)
static const Flag bench_flags[] = {
#define SECTION NULL
    FLAG_CHOICE("model", model, "quick", "tiny|124m|340m|1b|all|quick",
                "whose weights; quick: 124m and 340m"),
    FLAG_INT("threads", threads, "0", 0, 4096, "0: as many as OpenMP gives"),
};
#undef SECTION
#undef FIELD

/* p, g, m, v of one tensor (measured, rows, cols). */
typedef struct {
    floatM *p[4];
    int rows, cols;
} Weight;

static Weight weight_new(const Model *m, int rows, int cols) {
    Weight w;
    size_t n = (size_t)m->measured * rows * cols;
    w.rows = rows, w.cols = cols;
    for (int i = 0; i < 4; i++) {
        w.p[i] = (floatM *)malloc(n * sizeof(floatM));
        if (!w.p[i]) die("out of memory: %zu numbers", n);
        for (size_t j = 0; j < n; j++)
            w.p[i][j] = i == 3 ? 0 : (floatM)((rng_uniform(1, (uint64_t)i, j) - 0.5) * 0.07);
    }
    return w;
}

static void weight_free(Weight *w) {
    for (int i = 0; i < 4; i++) free(w->p[i]);
}

/* The i-th buffer's rows [first, first + rows). */
static Mat part(const Model *m, const Weight *w, int i, int first, int rows) {
    return mat_rows(mat_dense(w->p[i], m->measured, w->rows, w->cols), first, rows);
}

static Mat heads(const Model *m, const Weight *w, int i, int first, int by_column) {
    Mat all = part(m, w, i, first, m->width);
    return mat_heads(by_column ? mat_t(all) : all, m->heads);
}

static Factor factor(const Model *m, const Weight *w, int first, int by_column) {
    Factor f = {heads(m, w, 0, first, by_column), heads(m, w, 1, first, by_column),
                heads(m, w, 2, first, by_column)};
    return f;
}

typedef struct {
    const Model *m;
    Weight qkv, o, fc, proj;
    Arena arena;
    OptimOptions options;
    int step;
} Bench;

static void muon(Bench *b, const Weight *w, int first, int rows) {
    muon_update(part(b->m, w, 0, first, rows), part(b->m, w, 1, first, rows),
                part(b->m, w, 2, first, rows), &b->options, 0.95, 1e-4, 0, 1, &b->arena);
}

static void muon_heads(Bench *b, const Weight *w, int first, int by_column) {
    Factor f = factor(b->m, w, first, by_column);
    muon_update(f.W, f.G, f.M, &b->options, 0.95, 1e-4, 0, 1, &b->arena);
}

static void adamw(Bench *b, const Weight *w) {
    AdamW a = {1e-4, 0, 0.9, 0.95, 1e-8, 1, ++b->step};
    adamw_update(part(b->m, w, 0, 0, w->rows), part(b->m, w, 1, 0, w->rows),
                 part(b->m, w, 2, 0, w->rows), part(b->m, w, 3, 0, w->rows), &a);
}

static void compositional(Bench *b, int isotropic) {
    int C = b->m->width;
    OptimOptions o = b->options;
    o.isotropic = isotropic;
    Pair qk = {factor(b->m, &b->qkv, 0, 0), factor(b->m, &b->qkv, C, 0), 0};
    Pair ov = {factor(b->m, &b->o, 0, 1), factor(b->m, &b->qkv, 2 * C, 0), o.hybrid};
    pair_update(qk, &o, 0.95, 1e-4, 0, 1, &b->arena);
    pair_update(ov, &o, 0.95, 1e-4, 0, 1, &b->arena);
}

static void run(Bench *b, Rule rule) {
    int C = b->m->width;
    switch (rule) {
    case MUON:
        for (int i = 0; i < 3; i++) muon(b, &b->qkv, i * C, C);
        muon(b, &b->o, 0, C);
        break;
    case MUON_HEAD:
        for (int i = 0; i < 3; i++) muon_heads(b, &b->qkv, i * C, 0);
        muon_heads(b, &b->o, 0, 1);
        break;
    case CM_FULL: compositional(b, 0); break;
    case CM_ISOTROPIC: compositional(b, 1); break;
    case ADAMW: adamw(b, &b->qkv), adamw(b, &b->o); break;
    case MLP_MUON: muon(b, &b->fc, 0, 4 * C), muon(b, &b->proj, 0, C); break;
    default: adamw(b, &b->fc), adamw(b, &b->proj);
    }
}

/* Operations of a plain sign of (rows, cols) in 8 steps. */
static double sign_flops(double rows, double cols) {
    double m = fmin(rows, cols), n = fmax(rows, cols);
    return 8 * (4 * m * m * n + 2 * m * m * m);
}

/* Nominal operations of one layer; 0 where they do not matter. */
static double rule_flops(const Model *m, Rule rule) {
    double C = m->width, H = m->heads, k = C / H, head = H * sign_flops(k, C);
    double root = H * (25 * 6 * k * k * k + 2 * k * k * C), whitening = H * 4 * k * k * C;
    switch (rule) {
    case MUON: return 4 * sign_flops(C, C);
    case MUON_HEAD: return 4 * head;
    case CM_FULL: return 3 * head + sign_flops(C, C) + 4 * (root + whitening);
    case CM_ISOTROPIC: return 3 * head + sign_flops(C, C);
    case MLP_MUON: return 2 * sign_flops(4 * C, C);
    default: return 0;
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench(const Model *m) {
    enum { MOST = 41 };
    static double seconds[RULES][MOST];
    Bench b;
    memset(&b, 0, sizeof b);
    int C = m->width, L = m->measured;
    b.m = m;
    b.qkv = weight_new(m, 3 * C, C), b.o = weight_new(m, C, C);
    b.fc = weight_new(m, 4 * C, C), b.proj = weight_new(m, C, 4 * C);
#define FIELD(NAME) offsetof(OptimOptions, NAME)
    const Flag options[] = {
#include "../../llmc/optim/options.def"
    };
#undef FIELD
    flags_defaults(options, (int)(sizeof options / sizeof *options), &b.options);
    Pair pair = {factor(m, &b.o, 0, 1), factor(m, &b.qkv, 0, 0), 1};
    Mat big = mat_dense(NULL, L, 4 * C, C), small = mat_dense(NULL, L * m->heads, C / m->heads, C);
    size_t need[3] = {muon_scratch(big), muon_scratch(small), pair_scratch(&pair, L, &b.options)};
    for (int i = 0; i < 3; i++) b.arena.size = need[i] > b.arena.size ? need[i] : b.arena.size;
    b.arena.p = (floatM *)malloc(b.arena.size * sizeof(floatM));
    if (!b.arena.p) die("out of memory: %zu numbers", b.arena.size);
    double first = now_seconds();
    for (int rule = 0; rule < RULES; rule++) run(&b, (Rule)rule); /* warm-up */
    first = now_seconds() - first;
    int rounds = max_int(3, min_int(MOST, (int)(15 / first))) | 1;
    for (int round = 0; round < rounds; round++)
        for (int rule = 0; rule < RULES; rule++) {
            double start = now_seconds();
            run(&b, (Rule)rule);
            seconds[rule][round] = now_seconds() - start;
        }
    printf("\n%s: %d layers, width %d, %d heads of %d; %s, %d rounds\n", m->name, m->layers, C,
           m->heads, C / m->heads,
           L < m->layers ? "one layer measured, times the layers" : "all layers measured", rounds);
    printf("%-10s %-16s %10s %10s %9s %7s\n", "weights", "rule", "best ms", "median ms", "GFLOP/s",
           "/ muon");
    for (int rule = 0; rule < RULES; rule++) {
        double *s = seconds[rule], flops = rule_flops(m, (Rule)rule) * m->layers;
        qsort(s, (size_t)rounds, sizeof *s, ascending);
        double scale = (double)m->layers / L,
               muon_best = seconds[rule < MLP_MUON ? MUON : MLP_MUON][0];
        char rate[16] = "-";
        if (flops > 0) snprintf(rate, sizeof rate, "%.0f", flops * 1e-9 / (s[0] * scale));
        printf("%-10s %-16s %10.2f %10.2f %9s %7.2f\n", rule < MLP_MUON ? "attention" : "MLP",
               rule_names[rule], s[0] * scale * 1e3, s[rounds / 2] * scale * 1e3, rate,
               s[0] / muon_best);
    }
    fflush(stdout);
    weight_free(&b.qkv), weight_free(&b.o), weight_free(&b.fc), weight_free(&b.proj);
    free(b.arena.p);
}

int main(int argc, char **argv) {
    BenchConfig c;
    char err[ERR_LEN];
    int n = (int)(sizeof bench_flags / sizeof *bench_flags);
    flags_defaults(bench_flags, n, &c);
    int told = flags_parse(bench_flags, n, &c, NULL, argc, argv, err);
    if (told < 0) die("%s", err);
    if (told > 0) {
        flags_help(stdout, "build/bench_optim [--model NAME] [--threads N]", bench_flags, n);
        return 0;
    }
#ifdef _OPENMP
    if (c.threads) omp_set_num_threads(c.threads);
#endif
    printf("%d thread%s, fp32, matrix products by %s\n", thread_count(),
           thread_count() == 1 ? "" : "s", gemm_describe());
    for (int i = 0; i < MODELS; i++)
        if (c.model == i || c.model == MODELS || (c.model == MODELS + 1 && (i == 1 || i == 2)))
            bench(&models[i]);
    return 0;
}
