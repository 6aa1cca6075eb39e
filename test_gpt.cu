/*
Tests of the model on the CUDA backend: against PyTorch (dev/test/fixtures), and that nothing
depends on how a batch is cut or on what is kept. Only device_upload and device_download look into
device memory, so it runs on a GPU (make test_gpt_cuda) and on the emulator. The kernels by
themselves are tested in dev/test/cuda. Run it from the root of the repository.
*/
#include "dev/test/check.h"
#include "dev/test/fixture.h"

#include "llmc/cuda/backend.cuh"
#define BACKEND_READY
#define CM_NO_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* what only main calls */
#include "train_gpt.c"
#pragma GCC diagnostic pop
#include "dev/test/config_of.h"

/* fp32 is held to a few times its rounding. In bf16 activations, weights and logits carry eight
   bits, an error of 2^-9 each: through two layers they make about 1 % of a gradient, more where
   terms cancel. */
#define BY_TYPE(BF16, FP32) (sizeof(floatX) == 2 ? (BF16) : (FP32))

static char err[ERR_LEN];

/* Where a tensor begins among the parameters and, as nothing is frozen, in the gradient; and how
   many elements these have. */
static size_t param_at(const Tensor *t) { return t->slot[SLOT_PARAM].at; }
static size_t elements(const Model *m) { return m->p.r.size[SLOT_PARAM]; }

/* A model of a resolved config, which must outlive it. */
static void create(Model *m, const Config *c) {
    Registry r = registry_build(c);
    if (registry_freeze(&r, c->freeze, err)) die("%s", err);
    Plan plan = plan_build(c, &r);
    if (model_create(m, c, &r, &plan, 1, err)) die("%s", err);
}

/* The forward pass over tokens (B,T), at most the model's B sequences. */
static void forward(Model *m, const int *tokens, int B) {
    Shape s = shape_with(m->s, B, m->s.T);
    tokens_upload(m->a.tokens, tokens, s.N, s.Vp);
    model_forward(m, s);
}

/* n numbers of device memory; to be freed. */
template <typename T> static float *fetch(const T *from, size_t n) {
    T *raw = (T *)malloc(n * sizeof *raw);
    float *out = (float *)malloc(n * sizeof *out);
    if (!raw || !out) die("test_gpt: out of memory");
    device_download(raw, from, n * sizeof *raw);
    for (size_t i = 0; i < n; i++) out[i] = (float)raw[i];
    free(raw);
    return out;
}

static void load_fixture(Model *m, const Fixture *fx) {
    float *p = (float *)calloc(elements(m), sizeof *p);
    if (!p) die("test_gpt: out of memory");
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->p.r.t[id];
        if (!t->layers) continue;
        const FixtureRecord *r = fixture_getf(fx, "f4", "param.%s", t->name);
        if (r->count != t->size) fixture_die("%s: %s has another size", fx->path, r->name);
        memcpy(p + param_at(t), r->f4, t->size * sizeof *p);
    }
    device_upload(m->p.param, p, elements(m) * sizeof *p);
    refresh_weights(m);
    free(p);
}

/* Sets m->p.grad to the gradient of the mean loss, which is returned. */
static double loss_and_gradient(Model *m, const int *x, const int *y, int B) {
    Shape s = shape_with(m->s, B, m->s.T);
    int valid = 0;
    for (int n = 0; n < s.N; n++) valid += y[n] >= 0;
    device_zero(m->p.grad, m->p.r.size[SLOT_GRAD] * sizeof(floatM));
    send_batch(m, x, y, s);
    model_forward(m, s);
    head_loss(m, s, 1.0 / valid);
    model_backward(m, s);
    return take_loss(m) / (double)valid;
}

/* Logits, loss and gradients. */
static void test_parity(const Fixture *fx) {
    Config c = config_of(fixture_text(fx, "flags"), "");
    static Model m;
    create(&m, &c);
    load_fixture(&m, fx);
    const int *x = fixture_get(fx, "x", "i4")->i4, *y = fixture_get(fx, "y", "i4")->i4;
    const FixtureRecord *logits = fixture_get(fx, "logits", "f4");
    int N = m.s.B * m.s.T, V = c.vocab, Vp = round_up(V, 64);
    forward(&m, x, m.s.B);
    head_forward(&m, 0, N);
    softcap_forward(m.a.logits, N, V, Vp, c.softcap);
    float *padded = fetch(m.a.logits, (size_t)N * Vp),
          *dense = (float *)malloc(logits->count * sizeof *dense);
    for (int n = 0; n < N; n++)
        memcpy(dense + (size_t)n * V, padded + (size_t)n * Vp, (size_t)V * sizeof *dense);
    double e = relative_l2_ff(dense, logits->f4, logits->count, 1e-30);
    check(e < BY_TYPE(2e-2, 2e-6), "%s: logits are off by %.1e", fx->path, e);
    free(padded);
    free(dense);

    double want = fixture_get(fx, "loss", "f8")->f8[0], loss = loss_and_gradient(&m, x, y, m.s.B);
    check(relative_error(loss, want, 1) < BY_TYPE(5e-3, 1e-6), "%s: loss %.9g, want %.9g", fx->path,
          loss, want);
    float *g = fetch(m.p.grad, elements(&m));
    double off = 0, all = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        if (!t->layers) continue;
        const FixtureRecord *r = fixture_getf(fx, "f4", "grad.%s", t->name);
        e = relative_l2_ff(g + param_at(t), r->f4, t->size, 1e-30);
        check(e < BY_TYPE(0.1, 5e-6), "%s: gradient of %s is off by %.1e", fx->path, t->name, e);
        for (size_t i = 0; i < t->size; i++) {
            double d = (double)g[param_at(t) + i] - (double)r->f4[i];
            off += d * d;
            all += (double)r->f4[i] * (double)r->f4[i];
        }
    }
    check(sqrt(off / all) < BY_TYPE(3e-2, 5e-6), "%s: the gradient is off by %.1e", fx->path,
          sqrt(off / all));
    free(g);
    model_free(&m);
}

/* Ten steps by the rules of the record O.flags: the losses before each; and, with `again`, that a
   second run takes the same steps to the bit. */
static void test_updates(const Fixture *fx, const char *optimizer, int again) {
    Config c =
        config_of(fixture_text(fx, "flags"), fixture_getf(fx, "s1", "%s.flags", optimizer)->s1);
    static Model m;
    const int *x = fixture_get(fx, "x", "i4")->i4, *y = fixture_get(fx, "y", "i4")->i4;
    const FixtureRecord *losses = fixture_getf(fx, "f8", "%s.losses", optimizer);
    float *first = NULL;
    for (int run = 0; run <= again; run++) {
        double worst = 0;
        create(&m, &c);
        load_fixture(&m, fx);
        for (int step = 0; step < 10; step++) {
            worst = fmax(
                worst, relative_error(loss_and_gradient(&m, x, y, m.s.B), losses->f8[step], 1e-30));
            optimizer_step(&m, step, 1);
        }
        check(losses->count == 10 && worst < BY_TYPE(2e-2, 5e-6),
              "%s, %s: the losses are off by %.1e", fx->path, optimizer, worst);
        float *p = fetch(m.p.param, elements(&m));
        if (run)
            check(!memcmp(p, first, elements(&m) * sizeof *p), "%s, %s: two runs differ", fx->path,
                  optimizer);
        else first = p;
        if (run) free(p);
        model_free(&m);
    }
    free(first);
}

/* The gradient is the same to the bit whatever --recompute leaves out, and to rounding whether
   logits are formed at once or a few rows at a time, or the model was made for a larger batch. */
static void test_cuts(const Fixture *fx) {
    static const char *const changes[] = {"", "--recompute act", "--recompute norm",
                                          "--recompute block"};
    static Model m;
    float *whole = NULL;
    double loss = 0;
    const int *x = fixture_get(fx, "x", "i4")->i4, *y = fixture_get(fx, "y", "i4")->i4;
    for (int i = 0; i < 6; i++) {
        Config c = config_of(fixture_text(fx, "flags"), i < 4 ? changes[i] : "");
        int B = c.batch_size;
        if (i == 4) c.logit_rows = 7;
        if (i == 5) c.batch_size++;
        create(&m, &c);
        load_fixture(&m, fx);

        double l = loss_and_gradient(&m, x, y, B);
        float *g = fetch(m.p.grad, elements(&m));
        if (!i) {
            whole = g;
            loss = l;
        } else if (i < 4) {
            check(l == loss && !memcmp(g, whole, elements(&m) * sizeof *g),
                  "%s: %s changes the gradient", fx->path, changes[i]);
        } else {
            double e = relative_l2_ff(g, whole, elements(&m), 1e-30);
            check(relative_error(l, loss, 1) < BY_TYPE(1e-3, 1e-6) && e < BY_TYPE(1e-2, 5e-6),
                  "%s: %s changes the loss to %.9g from %.9g, the gradient by %.1e", fx->path,
                  i == 4 ? "logits in pieces" : "a larger model", l, loss, e);
        }
        if (i) free(g);
        model_free(&m);
    }
    free(whole);
}

/* What a step is made of is announced before it is allocated. */
static void test_memory(void) {
    Config c = config_of(
        "--preset gpt2 --layers 2 --width 64 --heads 2 --seq-len 32 --batch-size 2 --vocab 100",
        "");
    static Model m;
    size_t before = cm_gpu.used;
    create(&m, &c);
    Memory report = model_memory(&c, &m.p.r, &m.plan, 1);
    check(report.total - report.workspace == cm_gpu.used - before,
          "%zu bytes reported, %zu allocated", report.total - report.workspace,
          cm_gpu.used - before);
    check(cm_gpu.used_most >= cm_gpu.used, "the peak %zu is below %zu", cm_gpu.used_most,
          cm_gpu.used);
    size_t scratch = cm_gpu.scratch_bytes;
    check(scratch + GEMM_WORKSPACE >= report.workspace, "%zu bytes of workspace, %zu announced",
          scratch, report.workspace);
    if (model_init(&m, err)) die("%s", err);
    int x[64], y[64];
    for (int i = 0; i < 64; i++) x[i] = i, y[i] = (7 * i) % 100;
    loss_and_gradient(&m, x, y, 2);
    optimizer_step(&m, 0, 1);
    check(cm_gpu.scratch_bytes == scratch,
          "a step needs %zu bytes of scratch, and %zu were announced", cm_gpu.scratch_bytes,
          scratch);
    model_free(&m);
    check(cm_gpu.used == before, "%zu bytes are not freed", cm_gpu.used - before);
}

/* A failure before the model is made is what the program reports, not a lack of memory. */
static void test_failure(void) {
    Config c =
        config_of("--preset gpt2 --layers 1 --width 64 --heads 2 --seq-len 32 --vocab 90", "");
    static Model m;
    Registry r = registry_build(&c);
    Plan plan = plan_build(&c, &r);
    device_fail("the device is lost");
    check(model_create(&m, &c, &r, &plan, 1, err) == -1 && !strcmp(err, "the device is lost"),
          "a model on a lost device: %s", err);
    cm_gpu.failure[0] = 0;
    model_free(&m);
}

/* After an update the layers' copy of the weights is that of the parameters, whoever wrote it. */
static void test_copy(const char *rules) {
    Config c = config_of("--preset llama --init gpt2 --layers 2 --width 64 --heads 2 --kv-heads 1 "
                         "--seq-len 32 --batch-size 2 --vocab 100",
                         rules);
    static Model m;
    int x[64], y[64];
    create(&m, &c);
    if (model_init(&m, err)) die("%s", err);
    for (int i = 0; i < 64; i++) {
        x[i] = (5 * i) % 90;
        y[i] = (7 * i) % 100;
    }
    loss_and_gradient(&m, x, y, 2);
    optimizer_step(&m, 0, 1);
    float *copy = fetch(m.p.weight, elements(&m));
    refresh_weights(&m);
    float *fresh = fetch(m.p.weight, elements(&m));
    check(!memcmp(copy, fresh, elements(&m) * sizeof *copy), "%s: the copy is not refreshed",
          rules);
    free(copy);
    free(fresh);
    model_free(&m);
}

static void test_copies(void) {
    static const char *const rules[] = {"--optimizer adamw",
                                        "--optimizer cm",
                                        "--optimizer adamw --qk quack --quack-base adamw",
                                        "--optimizer adamw --ov adamw-partner",
                                        "--optimizer adamw --mlp lion",
                                        "--optimizer adamw --embed normuon --head muonh",
                                        "--optimizer muon --qk adamw --freeze wo"};
    for (int i = 0; i < COUNT_OF(rules); i++) test_copy(rules[i]);
}

/* Rows of logits at a time: all, or a multiple of 256 up to 8192 within a 64th of the memory,
   however much. */
static void test_logit_rows(void) {
    static const struct {
        int N;
        size_t bytes, memory;
        int rows;
    } cases[] = {{32768, 100608, (size_t)80 << 30, 8192},
                 {32768, 100608, (size_t)24 << 30, 3840},
                 {32768, 100608, (size_t)1 << 30, 256},
                 {1000, 100608, (size_t)80 << 30, 1000},
                 {8193, 512, (size_t)80 << 30, 8192},
                 {300, 1 << 20, (size_t)1 << 30, 256},
                 {32768, 201216, 0, 8192}};
    size_t kept = cm_gpu.properties.totalGlobalMem;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cm_gpu.properties.totalGlobalMem = cases[i].memory;
        int rows = device_logit_rows(cases[i].N, cases[i].bytes);
        check(rows == cases[i].rows, "%d rows of %zu bytes in %zu: %d at a time, not %d",
              cases[i].N, cases[i].bytes, cases[i].memory, rows, cases[i].rows);
    }
    cm_gpu.properties.totalGlobalMem = kept;
}

/* The gradients that clear_gradients leaves are those that a fresh micro-batch sets: whatever was
   there before, the gradient is that of cleared memory; on a GPU up to the order of sums, as a
   product that adds may have another algorithm than one that sets. */
static void test_fresh(const char *flags) {
    Config c = config_of(flags, "");
    static Model m;
    int x[64], y[64];
    create(&m, &c);
    if (model_init(&m, err)) die("%s", err);
    for (int i = 0; i < 64; i++) x[i] = (5 * i) % 90, y[i] = (7 * i) % 100;
    loss_and_gradient(&m, x, y, 2);
    float *want = fetch(m.p.grad, elements(&m));
    CUDA_CHECK(
        cudaMemsetAsync(m.p.grad, 0xff, elements(&m) * sizeof(floatM), cm_gpu.stream)); /* NaN */
    clear_gradients(&m);
    m.fresh = 1;
    accumulate_gradient(&m, x, y, 1.0 / 64);
    m.fresh = 0;
    float *g = fetch(m.p.grad, elements(&m));
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        double e =
            t->layers ? relative_l2_ff(g + param_at(t), want + param_at(t), t->size, 1e-30) : 0;
        check(e <= (emulated_time ? 0 : BY_TYPE(1e-3, 1e-5)),
              "%s: %s of a fresh micro-batch differs by %.1e", flags, t->name, e);
    }
    free(want);
    free(g);
    take_loss(&m);
    model_free(&m);
}

static void test_fresh_gradients(void) {
    const char *const shape =
        "--layers 2 --width 64 --heads 2 --seq-len 32 --batch-size 2 --vocab 100";
    static const char *const models[] = {"--preset gpt2",
                                         "--preset llama --kv-heads 1",
                                         "--preset speedrun",
                                         "--preset gpt2 --logit-rows 24",
                                         "--preset speedrun --tied on --logit-rows 24",
                                         "--preset gpt2 --biases off --head-bias on --tied off"};
    for (int i = 0; i < COUNT_OF(models); i++) {
        char flags[256];
        snprintf(flags, sizeof flags, "%s %s", models[i], shape);
        test_fresh(flags);
    }
}

static void test_fixture(const char *name) {
    static const char *const optimizers[] = {"adamw", "cm", "muon", "cm_iso"};
    char path[128];
    snprintf(path, sizeof path, "dev/test/fixtures/%s.fix", name);
    Fixture *fx = fixture_load(path);
    test_parity(fx);
    test_cuts(fx);
    /* In bf16 two optimizers are enough: their rules compute in fp32 in either build. */
    for (int j = 0; j < BY_TYPE(2, COUNT_OF(optimizers)); j++)
        test_updates(fx, optimizers[j], j == 1);
    fixture_free(fx);
}

static void test_gpt2(void) { test_fixture("gpt2"); }
static void test_llama(void) { test_fixture("llama"); }
static void test_speedrun(void) { test_fixture("speedrun"); }

static const Test tests[] = {TEST(memory),          TEST(failure), TEST(copies), TEST(logit_rows),
                             TEST(fresh_gradients), TEST(gpt2),    TEST(llama),  TEST(speedrun)};

int main(int argc, char **argv) {
    Config c = config_of("--preset tiny --vocab 256 --tf32 off", "");
    char machine[512];
    if (device_setup(&c, NULL, err)) die("%s", err);
    device_describe(machine, sizeof machine);
    printf("%s\n", machine);
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
