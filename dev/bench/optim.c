/*
Milliseconds a step and GFLOP/s of every optimizer rule on the weights of three GPTs. The table
shows what the update costs, and what Compositional Muon costs relative to Muon on equal weights.

    make build/bench_optim && build/bench_optim [--model tiny|124m|340m|1b|all] [--threads N]

Without --model: 124m and 340m. Weights and gradients are Gaussian and fp32, and the sign is pe8.
GFLOP/s are nominal. They count the operations of the plain algorithm: for a sign 8 steps with the
products X X^T, A A and P X, for an inverse root 25 steps with 3 products. So an algorithm with
fewer operations shows as faster. For a large model one layer is measured, and the time is
multiplied by the number of layers. The rules take turns. Times are the best and the median of the
rounds.
*/
#include "../../llmc/flags.h"
#include "../../llmc/optim/rule.h"
#include "../../llmc/rng.h"

typedef struct {
    const char *name;
    int layers, width, heads;
    int measured; /* number of layers that are measured */
} Model;

static const Model models[] = {{"tiny", 4, 128, 4, 4},
                               {"124m", 12, 768, 12, 1},
                               {"340m", 24, 1024, 16, 1},
                               {"1b", 24, 2048, 16, 1}};
enum { MODELS = sizeof models / sizeof *models };

typedef enum { MUON, MUON_HEAD, CM_FULL, CM_ISOTROPIC, ADAMW, MLP_MUON, MLP_ADAMW, CASES } Case;
static const char *const case_names[CASES] = {
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
    w.rows = rows;
    w.cols = cols;
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

/* Rows [first, first + rows) of a tensor as a leg; with by_column its heads are blocks of
   columns. */
static Leg leg(const Model *m, const Weight *w, int first, int rows, int by_column) {
    Leg l;
    Mat view[3];
    memset(&l, 0, sizeof l);
    for (int i = 0; i < 3; i++)
        view[i] = mat_rows(mat_dense(w->p[i], m->measured, w->rows, w->cols), first, rows);
    l.W = view[0];
    l.G = view[1];
    l.M = view[2];
    l.state[0] = w->p[3];
    l.heads = m->heads;
    l.by_column = by_column;
    return l;
}

typedef struct {
    const Model *m;
    Weight qkv, o, fc, proj;
    Arena arena;
    OptimOptions options;
    int step;
} Bench;

/* A step of one leg or, if b is given, of two. If the arena has no memory, the step only measures
   its scratch. */
static void step(Bench *bench, RuleId rule, const OptimOptions *o, Leg a, const Leg *b) {
    Step s;
    memset(&s, 0, sizeof s);
    s.rule = &rule_table[rule];
    s.options = o;
    s.leg[0] = a;
    if (b) s.leg[1] = *b;
    s.legs = b ? 2 : 1;
    s.lr = 1e-4;
    s.momentum = 0.95;
    s.gscale = 1;
    s.coupling_age = ++bench->step;
    s.leg[0].age = s.leg[1].age = bench->step;
    s.arena = &bench->arena;
    size_t need = step_scratch(&s);
    if (!bench->arena.p && need > bench->arena.size) bench->arena.size = need;
    if (bench->arena.p) step_run(&s);
}

static void single(Bench *b, RuleId rule, const Weight *w, int first, int rows, int by_column) {
    step(b, rule, &b->options, leg(b->m, w, first, rows, by_column), NULL);
}

static void compositional(Bench *b, int isotropic) {
    int C = b->m->width;
    OptimOptions o = b->options;
    o.isotropic = isotropic;
    Leg k = leg(b->m, &b->qkv, C, C, 0), v = leg(b->m, &b->qkv, 2 * C, C, 0);
    step(b, RULE_CM, &o, leg(b->m, &b->qkv, 0, C, 0), &k);
    step(b, RULE_CM, &o, leg(b->m, &b->o, 0, C, 1), &v);
}

static void run(Bench *b, Case rule) {
    int C = b->m->width;
    switch (rule) {
    case MUON:
        for (int i = 0; i < 3; i++) single(b, RULE_MUON, &b->qkv, i * C, C, 0);
        single(b, RULE_MUON, &b->o, 0, C, 1);
        break;
    case MUON_HEAD:
        for (int i = 0; i < 3; i++) single(b, RULE_MUON_HEAD, &b->qkv, i * C, C, 0);
        single(b, RULE_MUON_HEAD, &b->o, 0, C, 1);
        break;
    case CM_FULL: compositional(b, 0); break;
    case CM_ISOTROPIC: compositional(b, 1); break;
    case ADAMW:
        single(b, RULE_ADAMW, &b->qkv, 0, 3 * C, 0);
        single(b, RULE_ADAMW, &b->o, 0, C, 1);
        break;
    case MLP_MUON:
        single(b, RULE_MUON, &b->fc, 0, 4 * C, 0);
        single(b, RULE_MUON, &b->proj, 0, C, 0);
        break;
    case MLP_ADAMW:
        single(b, RULE_ADAMW, &b->fc, 0, 4 * C, 0);
        single(b, RULE_ADAMW, &b->proj, 0, C, 0);
        break;
    case CASES: break;
    }
}

/* Operations of a plain sign of (rows, cols) in 8 steps. */
static double sign_flops(double rows, double cols) {
    double m = fmin(rows, cols), n = fmax(rows, cols);
    return 8 * (4 * m * m * n + 2 * m * m * m);
}

/* Nominal operations of one layer. 0 for rules without products. */
static double rule_flops(const Model *m, Case rule) {
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
    static double seconds[CASES][MOST];
    Bench b;
    memset(&b, 0, sizeof b);
    int C = m->width, L = m->measured;
    b.m = m;
    b.qkv = weight_new(m, 3 * C, C);
    b.o = weight_new(m, C, C);
    b.fc = weight_new(m, 4 * C, C);
    b.proj = weight_new(m, C, 4 * C);
#define FIELD(NAME) offsetof(OptimOptions, NAME)
    const Flag options[] = {
#include "../../llmc/optim/options.def"
    };
#undef FIELD
    flags_defaults(options, (int)(sizeof options / sizeof *options), &b.options);
    b.options.adam_beta1 = 0.9;
    b.options.adam_beta2 = 0.95;
    b.options.adam_eps = 1e-8;
    for (int rule = 0; rule < CASES; rule++) run(&b, (Case)rule); /* measures the scratch */
    b.arena.p = (floatM *)malloc(b.arena.size * sizeof(floatM));
    if (!b.arena.p) die("out of memory: %zu numbers", b.arena.size);
    double first = now_seconds();
    for (int rule = 0; rule < CASES; rule++) run(&b, (Case)rule); /* warm-up */
    first = now_seconds() - first;
    int rounds = max_int(3, min_int(MOST, (int)(15 / first))) | 1;
    for (int round = 0; round < rounds; round++)
        for (int rule = 0; rule < CASES; rule++) {
            double start = now_seconds();
            run(&b, (Case)rule);
            seconds[rule][round] = now_seconds() - start;
        }
    printf("\n%s: %d layers, width %d, %d heads of %d; %s, %d rounds\n", m->name, m->layers, C,
           m->heads, C / m->heads,
           L < m->layers ? "one layer measured, times the layers" : "all layers measured", rounds);
    printf("%-10s %-16s %10s %10s %9s %7s\n", "weights", "rule", "best ms", "median ms", "GFLOP/s",
           "/ muon");
    for (int rule = 0; rule < CASES; rule++) {
        double *s = seconds[rule], flops = rule_flops(m, (Case)rule) * m->layers;
        qsort(s, (size_t)rounds, sizeof *s, ascending);
        double scale = (double)m->layers / L,
               muon_best = seconds[rule < MLP_MUON ? MUON : MLP_MUON][0];
        char rate[16] = "-";
        if (flops > 0) snprintf(rate, sizeof rate, "%.0f", flops * 1e-9 / (s[0] * scale));
        printf("%-10s %-16s %10.2f %10.2f %9s %7.2f\n", rule < MLP_MUON ? "attention" : "MLP",
               case_names[rule], s[0] * scale * 1e3, s[rounds / 2] * scale * 1e3, rate,
               s[0] / muon_best);
    }
    fflush(stdout);
    weight_free(&b.qkv);
    weight_free(&b.o);
    weight_free(&b.fc);
    weight_free(&b.proj);
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
