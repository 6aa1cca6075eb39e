/*
Tests of the model on the CUDA backend: against PyTorch (dev/test/fixtures), every rule against
the CPU, and that nothing depends on how a batch is cut or on what is kept. Only device_upload and
device_download look into device memory, so it runs on a GPU (make test_gpt_cuda) and on the
emulator. On the emulator in fp32 it also runs the tests of test_gpt.c. The kernels by themselves
are tested in dev/test/cuda. Run it from the root of the repository.
*/
#include "llmc/cuda/backend.cuh"

#include "dev/test/cuda/twin.h"
#include "dev/test/model_cases.h"
#if defined(CM_EMU) && defined(CM_FP32)
#include "test_gpt.c"
#endif

/* A bound for each precision; see BY_BUILD. */
#define BY_PRECISION(BF16, FP32) BY_BUILD(0, 0, FP32, BF16)

/* The gradient is the same to the bit whatever --recompute leaves out, and to rounding whether
   logits are formed at once or a few rows at a time, or the model was made for a larger batch. */
static void check_cuts(const Fixture *fx) {
    enum { LEVELS = COUNT_OF(all_recomputes), PIECES = LEVELS, LARGER };
    static Model m;
    floatM *whole = NULL;
    double loss = 0;
    const int *x = fixture_get(fx, "x", "i4")->i4, *y = fixture_get(fx, "y", "i4")->i4;
    for (int i = 0; i <= LARGER; i++) {
        char change[64] = "";
        if (i < LEVELS) snprintf(change, sizeof change, "--recompute %s", all_recomputes[i]);
        Config c = config_of(fixture_text(fx, "flags"), change);
        int B = c.batch_size;
        if (i == PIECES) c.logit_rows = 7;
        if (i == LARGER) c.batch_size++;
        create(&m, &c);
        load_fixture(&m, fx);

        double l = loss_and_gradient(&m, x, y, B);
        floatM *g = fetch(m.p.grad, elements(&m));
        if (!i) {
            whole = g;
            loss = l;
        } else if (i < LEVELS) {
            check(l == loss && same_bits(g, whole, elements(&m)), "%s: %s changes the gradient",
                  fx->path, change);
        } else {
            double e = relative_l2_m(g, whole, elements(&m), 1e-30);
            check(relative_error(l, loss, 1) < BY_PRECISION(1e-3, 1e-6) &&
                      e < BY_PRECISION(1e-2, 5e-6),
                  "%s: %s changes the loss to %.9g from %.9g, the gradient by %.1e", fx->path,
                  i == PIECES ? "logits in pieces" : "a larger model", l, loss, e);
        }
        model_free(&m);
    }
    release();
}

/* What a step is made of is announced before it is allocated. */
static void test_device_memory(void) {
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
static void test_copy(const char *choice) {
    Config c = config_of("--preset llama --init gpt2 --layers 2 --width 64 --heads 2 --kv-heads 1 "
                         "--seq-len 32 --batch-size 2 --vocab 100",
                         choice);
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
    floatM *copy = fetch_x(m.p.weight, elements(&m));
    refresh_weights(&m);
    floatM *fresh = fetch_x(m.p.weight, elements(&m));
    check(!memcmp(copy, fresh, elements(&m) * sizeof *copy), "%s: the copy is not refreshed",
          choice);
    model_free(&m);
    release();
}

static void test_copies(void) {
    static const char *const choice[] = {"--optimizer adamw",
                                         "--optimizer cm",
                                         "--optimizer adamw --qk quack --quack-base adamw",
                                         "--optimizer adamw --ov adamw-partner",
                                         "--optimizer adamw --mlp lion",
                                         "--optimizer adamw --embed normuon --head muonh",
                                         "--optimizer muon --qk adamw --freeze wo"};
    for (int i = 0; i < COUNT_OF(choice); i++) test_copy(choice[i]);
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
    floatM *want = fetch(m.p.grad, elements(&m));
    CUDA_CHECK(
        cudaMemsetAsync(m.p.grad, 0xff, elements(&m) * sizeof(floatM), cm_gpu.stream)); /* NaN */
    clear_gradients(&m);
    m.fresh = 1;
    accumulate_gradient(&m, x, y, 1.0 / 64);
    m.fresh = 0;
    floatM *g = fetch(m.p.grad, elements(&m));
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        double e =
            t->layers ? relative_l2_m(g + param_at(t), want + param_at(t), t->size, 1e-30) : 0;
        check(e <= (emulated_time ? 0 : BY_PRECISION(1e-3, 1e-5)),
              "%s: %s of a fresh micro-batch differs by %.1e", flags, t->name, e);
    }
    take_loss(&m);
    model_free(&m);
    release();
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

/* ---------------------------------------------------------------------------------------------- */
/* every rule against the CPU */

/* How far two fp32 updates of a matrix may be from those of the CPU, relative to the movement. The
   sums' rounding, 3e-7, grows tenfold in signs and inverse roots, in the directions of small
   singular values; 4e-6 is the most that three seeds have shown, and five times as much is
   allowed. */
#define UPDATE_BOUND 2e-5

/* Two updates by one rule in every role of `on` where it applies, and by AdamW elsewhere: the
   device's plan_step and the CPU's, from equal parameters and gradients. Then the layers' copy of
   the weights is the rounded parameters. */
static void check_rule(const Rule *rule, unsigned on, int circuit) {
    static Model m;
    char flags[1024];
    const char *name = case_of("rule %s%s%s", rule->flag, on == ON_FACTOR ? " on factors" : "",
                               circuit ? " --circuit on" : "");
    int used = snprintf(flags, sizeof flags,
                        "--layers 2 --width 20 --heads 4 --kv-heads 2 --head-dim 6 --ff-width 28 "
                        "--seq-len 6 --batch-size 2 --vocab 22 --pos learned --tied off "
                        "--head-bias on --init gpt2 --schedule constant --optimizer adamw "
                        "--lr 0.01%s",
                        circuit ? " --circuit on" : "");
    for (int i = 0; i < COUNT_OF(rule_roles); i++)
        if (rule->where & rule_roles[i].on & on)
            used += snprintf(flags + used, sizeof flags - (size_t)used, " %s %s",
                             rule_roles[i].flag, rule->flag);
    Config c = config_of(flags, "");
    create(&m, &c);
    randomise(&m);
    size_t n = elements(&m), states = m.plan.state_size;
    floatM *start = fetch(m.p.param, n), *p = fetch(m.p.param, n), *moment = array(n);
    floatM *state = array(states);
    memset(moment, 0, n * sizeof *moment);
    memset(state, 0, states * sizeof *state);
    for (int step = 0; step < 2; step++) {
        floatM *g = random_array(n, 0.01);
        device_upload(m.p.grad, g, n * sizeof *g);
        optimizer_step(&m, step, 1);
        cpu_plan_step(flags, p, g, moment, state, step + 1);
    }
    floatM *ours = fetch(m.p.param, n);
    floatM *copy = has_copy() ? fetch_x(m.p.weight, n) : NULL;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        if (!t->layers) continue;
        double off = 0, all = 0;
        size_t wrong = 0;
        for (size_t i = param_at(t); i < param_at(t) + t->size; i++) {
            off += pow((double)ours[i] - (double)p[i], 2);
            all += pow((double)p[i] - (double)start[i], 2);
            wrong += copy && copy[i] != (floatM)(floatX)ours[i];
        }
        check(all > 0 && sqrt(off / all) < UPDATE_BOUND,
              "%s: two updates of %s are off by %.1e of the CPU's, bound %.1e", name, t->name,
              sqrt(off / all), UPDATE_BOUND);
        check(!wrong, "%s: %zu weights of %s are not the rounded parameters", name, wrong, t->name);
    }
    model_free(&m);
    release();
}

static void test_rules_as_cpu(void) {
    for (int id = RULE_AUTO + 1; id < RULES_END; id++) {
        const Rule *rule = &rule_table[id];
        if (rule->where & ON_FACTOR) check_rule(rule, ON_FACTOR, 0);
        if (!(rule->where & ON_MATRIX)) continue;
        check_rule(rule, ON_MATRIX, 0);
        if (rule->where & ON_OV && rule->traits & TAKES_CIRCUIT) check_rule(rule, ON_MATRIX, 1);
    }
}

/* ---------------------------------------------------------------------------------------------- */

static void test_gpt2(void) { check_fixture("gpt2", check_cuts); }
static void test_llama(void) { check_fixture("llama", check_cuts); }
static void test_speedrun(void) { check_fixture("speedrun", check_cuts); }

static const Test tests[] = {TEST(device_memory), TEST(failure),         TEST(copies),
                             TEST(logit_rows),    TEST(fresh_gradients), TEST(rules_as_cpu),
                             TEST(gpt2),          TEST(llama),           TEST(speedrun),
#ifdef CM_TEST_GPT_C
                             MEMORY_TESTS
#endif
};

int main(int argc, char **argv) {
    Config c = config_of("--preset tiny --vocab 256 --tf32 off --threads 1", "");
    char machine[512];
    if (device_setup(&c, NULL, err)) die("%s", err);
    device_describe(machine, sizeof machine);
    printf("%s\n", machine);
#ifdef CM_TEST_GPT_C
    run_in_folder(tests, COUNT_OF(tests), argc, argv);
#else
    check_run(tests, COUNT_OF(tests), argc, argv);
#endif
    return check_done();
}
