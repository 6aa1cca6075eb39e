/*
Measures on a model in training what Compositional Muon promises: a step moves the composed map A^T
B of each head (W_Q^T W_K, or W_O W_V) by at most the learning rate in the spectral norm, up to a
term of second order. The test trains two small models with the trainer's own steps, one by CM and
one by Muon, and compares the weights before and after every step. The norms are those that
--log-groups reports (llmc/optim/composed.h), and they are held to the (d,d) maps themselves.

--csv FILE writes the measurements, and dev/reference/plot_composed.py draws them.
*/
#include "dev/test/check.h"

#ifdef CM_CUDA /* the emulator, where device memory is plain memory */
#include "llmc/cuda/backend.cuh"
#define BACKEND_READY
enum { STEPS = 16 }; /* the emulator is slow */
#else
enum { STEPS = 40 };
#endif
#define CM_NO_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* functions that only main calls */
#include "train_gpt.c"
#pragma GCC diagnostic pop

enum { MAX_D = 64, WORDS = 12 };

static char err[ERR_LEN];
static char folder[] = "/tmp/cm_test_composed_XXXXXX";

/* ---------------------------------------------------------------------------------------------- */
/* Spectral norms */

/* An upper bound of the largest eigenvalue lambda of positive semidefinite K (n,n), n at most
   MAX_D, which is overwritten. With p = 2^14, lambda <= (tr K^p)^(1/p) <= n^(1/p) lambda. Power
   iteration would give a lower bound and converge slowly, because many singular values are close
   together after a sign. */
static double squared_trace(double *K, int n) {
    static double square[MAX_D * MAX_D];
    double log_scale = 0, power = 1; /* (the argument K)^power = exp(log_scale) K */
    for (int i = 0;; i++) {
        double trace = 0;
        for (int r = 0; r < n; r++) trace += K[r * n + r];
        if (!(trace > 0)) return trace;
        for (int j = 0; j < n * n; j++) K[j] /= trace;
        log_scale += log(trace);
        if (i == 14) return exp(log_scale / power);
        memset(square, 0, sizeof square);
        for (int r = 0; r < n; r++)
            for (int s = 0; s < n; s++)
                for (int c = 0; c < n; c++) square[r * n + c] += K[r * n + s] * K[s * n + c];
        memcpy(K, square, (size_t)n * n * sizeof(double));
        log_scale *= 2;
        power *= 2;
    }
}

/* What squared_trace adds to a norm, the root of an eigenvalue: n^(1/2^15) for n = MAX_D. */
#define TRACE_EXCESS 1.3e-4

/* ||X^T Y|| of X, Y (n,d), n at most 2 MAX_D, from the (d,d) product M and M M^T. */
static double dense_norm(const double *X, const double *Y, int n, int d) {
    static double M[MAX_D * MAX_D], K[MAX_D * MAX_D];
    memset(M, 0, sizeof M);
    memset(K, 0, sizeof K);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) M[i * d + j] += X[r * d + i] * Y[r * d + j];
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++)
            for (int c = 0; c < d; c++) K[i * d + j] += M[i * d + c] * M[j * d + c];
    return sqrt(squared_trace(K, d));
}

static double norm_of_product(const double *X, const double *Y, int n, int d) {
    double *scratch = (double *)malloc(composed_norm_scratch(n) * sizeof(double));
    if (!scratch) die("test_composed: out of memory");
    double norm = composed_norm(X, Y, n, d, scratch);
    free(scratch);
    return norm;
}

static double norm_of(const double *X, int n, int d) {
    double *G = (double *)malloc((size_t)n * n * sizeof(double)), scratch[4 * 2 * MAX_D];
    if (!G) die("test_composed: out of memory");
    composed_gram(G, X, n, d);
    double norm = sqrt(composed_largest(G, n, scratch));
    free(G);
    return norm;
}

/* composed_norm against the norm of the (d,d) product: stacks of fewer and of more rows than
   columns, of lower rank, of rows of very different size, and a product that vanishes. */
static void test_measure(void) {
    static const struct {
        int n, d;
    } shapes[] = {{1, 1}, {1, 9}, {2, 3}, {12, 20}, {24, 20}, {32, 64}, {40, 6}};
    static double X[2 * MAX_D * MAX_D], Y[2 * MAX_D * MAX_D];
    for (int i = 0; i < COUNT_OF(shapes); i++)
        for (int kind = 0; kind < 4; kind++) {
            int n = shapes[i].n, d = shapes[i].d;
            for (int j = 0; j < n * d; j++) {
                double row = j / d < n / 2 && kind == 1 ? 1e-6 : 1;
                X[j] = row * rng_normal(5, (uint64_t)(2 * i), (uint64_t)j);
                Y[j] = rng_normal(5, (uint64_t)(2 * i + 1), (uint64_t)j) / row;
                if (kind == 2 && j / d) X[j] = (j / d) * X[j % d]; /* rank 1 */
                if (kind == 3 && j / d >= n / 2) X[j] = 0;         /* W_O at the start */
            }
            double measured = norm_of_product(X, Y, n, d), dense = dense_norm(X, Y, n, d);
            check(measured <= dense * (1 + 1e-9) && measured >= dense * (1 - TRACE_EXCESS),
                  "%d x %d, kind %d: norm %.9g, not %.9g", n, d, kind, measured, dense);
        }
    double diagonal[] = {3, 0, 0, 5}, one[] = {1, 0, 0, 1}, zero[4] = {0}, bad[] = {1, NAN, 0, 1};
    check(fabs(norm_of_product(diagonal, one, 2, 2) - 5) < 1e-12, "the norm of diag(3, 5) is %.15g",
          norm_of_product(diagonal, one, 2, 2));
    check(norm_of_product(zero, one, 2, 2) == 0, "the norm of 0 is not 0");
    check(isnan(norm_of_product(bad, one, 2, 2)) && isnan(norm_of_product(one, bad, 2, 2)),
          "NaN is hidden");
}

/* ---------------------------------------------------------------------------------------------- */
/* Training under measurement */

/* Sentences of a small grammar, from which a model learns in a few steps. */
static void write_text(const char *path) {
    static const char *const who[WORDS] = {"the king", "a fool",    "my lord",   "the sea",
                                           "a ghost",  "our queen", "the night", "a friar",
                                           "the duke", "a rose",    "his sword", "no man"};
    static const char *const does[WORDS] = {"fears", "loves", "sees",   "leaves",
                                            "finds", "calls", "mocks",  "keeps",
                                            "hears", "seeks", "serves", "forgets"};
    FILE *f = fopen(path, "w");
    if (!f) die("cannot write %s", path);
    for (uint64_t i = 0; i < 2000; i++)
        fprintf(f, "%s %s %s.\n", who[rng_bits(3, 0, i) % WORDS], does[rng_bits(3, 1, i) % WORDS],
                who[rng_bits(3, 2, i) % WORDS]);
    if (fclose(f)) die("cannot write %s", path);
}

typedef struct {
    double
        largest[2]; /* largest ratio of a step of the composed map to the learning rate: QK, OV */
    double excess;  /* largest ratio - (1 + second-order term) */
    double second;  /* largest second-order term */
    char where[64]; /* step and head of the largest excess */
    double first_loss, last_loss;
} Result;

/* The factors of layer l's heads in parameters after and before a step. W_O is read as its
   transpose. */
static ComposedHeads layer_heads(const Registry *r, const Part part[2], int l, floatM *now,
                                 floatM *was) {
    ComposedHeads h;
    for (int i = 0; i < 2; i++) {
        Mat after = mat_outer(part_view(r, part[i], now), l, 1);
        Mat before = mat_outer(part_view(r, part[i], was), l, 1);
        h.now[i] = mat_blocks(after, part[i].heads, part[i].by_column);
        h.was[i] = mat_blocks(before, part[i].heads, part[i].by_column);
    }
    return h;
}

/* What a step did to a head, over the learning rate: the norm of dA^T B + A^T dB + dA^T dB, the
   norm without the last term, and a bound of the last term. */
typedef struct {
    double whole, first_order, second;
} HeadStep;

static HeadStep measure(const ComposedHeads *h, int head, double lr) {
    static double X[2 * MAX_D * MAX_D], Y[2 * MAX_D * MAX_D];
    int k = h->now[0].rows, d = h->now[0].cols, kd = k * d;
    composed_stacks(h, head, X, Y);
    HeadStep s = {.whole = norm_of_product(X, Y, 2 * k, d) / lr};
    s.second = norm_of(X, k, d) * norm_of(Y + kd, k, d) / lr;
    for (int i = 0; i < kd; i++) Y[i] -= Y[kd + i]; /* B' becomes B */
    s.first_order = norm_of_product(X, Y, 2 * k, d) / lr;
    return s;
}

static Run run;
static Model model;
static Registry registry;
static Plan plan;
static char text[FILE_PATH_SIZE];

/* Opens a small run in `run` and makes its model. Flags that are not given have their defaults:
   --mp 1, no weight decay. */
static void open_small(const char *flags) {
    char command[FILE_PATH_SIZE + 512], name[] = "test_composed", *argv[40], *save = NULL;
    int argc = 1;
    memset(&run, 0, sizeof run);
    argv[0] = name;
    snprintf(command, sizeof command,
             "--width 64 --seq-len 32 --batch-size 8 --steps %d --data %s %s", STEPS, text, flags);
    for (char *w = strtok_r(command, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    if (config_parse(&run.asked, run.given, argc, argv, err)) die("%s", err);
    run.config = run.asked;
    if (open_data(&run, err) || config_resolve(&run.config, err) || open_batch(&run, err))
        die("%s", err);
    registry = registry_build(&run.config);
    if (registry_freeze(&registry, run.config.freeze, err)) die("%s", err);
    plan = plan_build(&run.config, &registry);
    if (model_create(&model, &run.config, &registry, &plan, 1, err) || model_init(&model, err))
        die("%s", err);
}

static void close_small(void) {
    run.log.fd = -1; /* no log was opened */
    close_run(&run);
    model_free(&model);
}

/* Trains a small model for STEPS steps. */
static Result train_measured(const char *optimizer, FILE *csv) {
    static const char *const circuit[] = {"qk", "ov"};
    char flags[64];
    Result result;
    memset(&result, 0, sizeof result);
    result.excess = -INFINITY;
    snprintf(flags, sizeof flags, "--layers 2 --heads 4 --optimizer %s", optimizer);
    open_small(flags);
    const Config *c = &run.config;
    size_t bytes = registry.size[SLOT_PARAM] * sizeof(floatM);
    floatM *initial = (floatM *)malloc(bytes);
    if (!initial) die("test_composed: out of memory");
    Part parts[2][2];
    circuit_parts(c, parts[0], parts[1]);
    for (int step = 0; step < STEPS; step++) {
        double loss, norm, lr = c->lr * schedule_lr(&c->schedule, step);
        memcpy(initial, model.p.param, bytes);
        if (train_step(&run, &model, &loss, &norm, err)) die("%s", err);
        *(step ? &result.last_loss : &result.first_loss) = loss;
        for (int at = 0; at < 2 * c->layers * c->heads; at++) {
            int ov = at / (c->layers * c->heads), l = at / c->heads % c->layers;
            ComposedHeads h = layer_heads(&registry, parts[ov], l, model.p.param, initial);
            HeadStep s = measure(&h, at % c->heads, lr);
            double excess = s.whole - 1 - s.second;
            if (s.whole > result.largest[ov]) result.largest[ov] = s.whole;
            if (s.second > result.second) result.second = s.second;
            if (!(excess <= result.excess)) { /* true for NaN too */
                result.excess = excess;
                snprintf(result.where, sizeof result.where, "step %d, %s, layer %d, head %d",
                         step + 1, circuit[ov], l, at % c->heads);
            }
            if (csv)
                fprintf(csv, "%d,%s,%s,%d,%d,%.6g\n", step + 1, optimizer, circuit[ov], l,
                        at % c->heads, s.whole);
        }
    }
    free(initial);
    close_small();
    return result;
}

static const char *csv_path; /* FILE of --csv, or NULL */

static void test_budget(void) {
    FILE *csv = NULL;
    if (csv_path && !(csv = fopen(csv_path, "w"))) die("--csv: cannot write %s", csv_path);
    if (csv) fprintf(csv, "step,optimizer,circuit,layer,head,ratio\n");
    Result cm = train_measured("cm", csv), muon = train_measured("muon", csv);
    printf("largest step of a composed map over the learning rate: CM %.4f (QK) %.4f (OV), Muon "
           "%.4f %.4f\n",
           cm.largest[0], cm.largest[1], muon.largest[0], muon.largest[1]);
    printf(
        "CM: second order at most %.4f, bound exceeded by at most %.2g (%s); loss %.3f to %.3f\n",
        cm.second, cm.excess, cm.where, cm.first_loss, cm.last_loss);
    /* pe8 leaves singular values up to 1e-4 above 1, and the weights and roots are rounded. */
    check(cm.excess <= 1e-3,
          "CM moves a composed map by 1 + second order + %.4g learning rates at %s", cm.excess,
          cm.where);
    for (int ov = 0; ov < 2; ov++)
        check(cm.largest[ov] > 0.5, "CM uses only %.4f of the budget of %s", cm.largest[ov],
              ov ? "OV" : "QK");
    /* Muon does not keep CM's bound. If it seemed to, the measure would be blind. */
    check(fmax(muon.largest[0], muon.largest[1]) > 1, "Muon stays within CM's budget: %.4f, %.4f",
          muon.largest[0], muon.largest[1]);
    check(cm.last_loss < 0.7 * cm.first_loss && muon.last_loss < 0.7 * muon.first_loss,
          "training: the loss went from %.3f to %.3f with CM and from %.3f to %.3f with Muon",
          cm.first_loss, cm.last_loss, muon.first_loss, muon.last_loss);
    if (csv && (ferror(csv) || fclose(csv))) die("--csv: writing %s failed", csv_path);
}

/* The number after "KEY": in a JSON object after "NAME": {. NaN if it is absent or null. */
static double logged(const char *json, const char *name, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": {", name);
    const char *at = strstr(json, quoted);
    return at ? log_number(at, key) : NAN;
}

/* Largest and median of the composed steps of a circuit by the (d,d) maps themselves. */
static void dense_steps(const Part part[2], floatM *was, double lr, double *largest,
                        double *median) {
    static double X[2 * MAX_D * MAX_D], Y[2 * MAX_D * MAX_D];
    int heads = part[0].heads, n = registry.t[T_WQKV].layers * heads;
    double norm[64], next;
    for (int at = 0; at < n; at++) {
        ComposedHeads h = layer_heads(&registry, part, at / heads, model.p.param, was);
        int k = h.now[0].rows, d = h.now[0].cols, shared = at % heads / (heads / part[1].heads);
        for (int r = 0; r < k; r++) /* A'^T B' - A^T B, as a product of stacks [A'; A] [B'; -B] */
            for (int c = 0; c < d; c++) {
                X[r * d + c] = composed_element(h.now[0], at % heads, r, c);
                X[(k + r) * d + c] = composed_element(h.was[0], at % heads, r, c);
                Y[r * d + c] = composed_element(h.now[1], shared, r, c);
                Y[(k + r) * d + c] = -composed_element(h.was[1], shared, r, c);
            }
        norm[at] = dense_norm(X, Y, 2 * k, d) / lr;
        for (int i = at; i > 0 && norm[i] < norm[i - 1]; i--) {
            next = norm[i];
            norm[i] = norm[i - 1];
            norm[i - 1] = next;
        }
    }
    *largest = norm[n - 1];
    *median = 0.5 * (norm[(n - 1) / 2] + norm[n / 2]);
}

/* The composed steps that --log-groups reports are those of the (d,d) maps: for both circuits, with
   rates of their own, under a schedule, with grouped queries and with a frozen factor. */
static void test_logged(void) {
    static const char *const cases[] = {
        "--layers 2 --heads 4 --log-groups --kv-heads 2 --lr-qk 0.03 --warmup 4",
        "--layers 1 --heads 2 --log-groups --optimizer muon --init gpt2 --lr-ov 0.01 "
        "--weight-decay 0.1",
        "--layers 3 --heads 4 --log-groups --optimizer muon --init gpt2 --freeze wqkv --kv-heads "
        "1"};
    static const char *const name[] = {"QK", "OV"};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        open_small(cases[i]);
        const Config *c = &run.config;
        size_t bytes = registry.size[SLOT_PARAM] * sizeof(floatM);
        floatM *was = (floatM *)malloc(bytes);
        if (!was) die("test_composed: out of memory");
        Part part[2][2];
        circuit_parts(c, part[0], part[1]);
        for (int step = 0; step < 3; step++) {
            double loss, norm, scale = schedule_lr(&c->schedule, step);
            memcpy(was, model.p.param, bytes);
            if (train_step(&run, &model, &loss, &norm, err)) die("%s", err);
            char *json;
            if (log_extra(&json, c, &model.p, &model.plan, run.step, err)) die("%s", err);
            for (int ov = 0; ov < 2; ov++) {
                double largest, median, lr = scale * (ov ? c->lr_ov : c->lr_qk);
                dense_steps(part[ov], was, lr, &largest, &median);
                double max = logged(json, name[ov], "composed_max");
                double mid = logged(json, name[ov], "composed_median");
                /* Beside the excess of the trace, A'^T B' - A^T B cancels up to 1e-16 of the map,
                   and squared singular values below that are lost in M M^T. */
                check(relative_error(max, largest, 1e-6) < 2 * TRACE_EXCESS &&
                          relative_error(mid, median, 1e-6) < 2 * TRACE_EXCESS,
                      "%s: step %d, %s: %.9g and %.9g are logged, not %.9g and %.9g", cases[i],
                      step + 1, name[ov], max, mid, largest, median);
                check(step < 2 || i == 2 || max > 0.1, "%s: step %d, %s: nothing moves", cases[i],
                      step + 1, name[ov]);
            }
            free(json);
        }
        free(was);
        close_small();
    }
}

/* Without damping, Compositional Muon's bound of the first-order step is exact: at most 1 learning
   rate, for every query head of a group too. */
static void test_first_order(void) {
    static const char *const cases[] = {
        "--layers 2 --heads 4 --damping 0 --init gpt2",
        "--layers 2 --heads 4 --damping 0 --init gpt2 --kv-heads 2"};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        open_small(cases[i]);
        const Config *c = &run.config;
        size_t bytes = registry.size[SLOT_PARAM] * sizeof(floatM);
        floatM *was = (floatM *)malloc(bytes);
        if (!was) die("test_composed: out of memory");
        Part part[2][2];
        double largest = 0;
        circuit_parts(c, part[0], part[1]);
        for (int step = 0; step < 8; step++) {
            double loss, norm, lr = c->lr * schedule_lr(&c->schedule, step);
            memcpy(was, model.p.param, bytes);
            if (train_step(&run, &model, &loss, &norm, err)) die("%s", err);
            for (int at = 0; at < 2 * c->layers * c->heads; at++) {
                int ov = at / (c->layers * c->heads), l = at / c->heads % c->layers;
                ComposedHeads h = layer_heads(&registry, part[ov], l, model.p.param, was);
                double first = measure(&h, at % c->heads, lr).first_order;
                if (!(first <= largest)) largest = first; /* true for NaN too */
            }
        }
        check(largest <= 1 + 1e-3, "%s: first order %.6g learning rates", cases[i], largest);
        check(largest > 0.5, "%s: only %.6g of the budget is used", cases[i], largest);
        free(was);
        close_small();
    }
}

static const Test tests[] = {TEST(measure), TEST(budget), TEST(logged), TEST(first_order)};

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--csv")) {
        if (argc != 3) die("usage: test_composed [--csv FILE | TEST...]");
        csv_path = argv[2];
        argc = 1;
    }
    static Config machine;
    machine.threads = 1;
    if (device_setup(&machine, NULL, err)) die("%s", err);
    if (!mkdtemp(folder)) die("cannot make a folder below /tmp");
    file_path(text, "%s/text", folder);
    write_text(text);
    check_run(tests, COUNT_OF(tests), argc, argv);
    remove(text);
    remove(folder);
    return check_done();
}
