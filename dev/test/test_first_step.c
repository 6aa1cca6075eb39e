/*
The sizes of steps that the start of a run prints (llmc/optim/first_step.h): against formulas where
a rule has one, against the update of a whole model by every rule, and against what --log-groups
reports after the first step of training. Measuring them leaves the model as it was.
*/
#include "dev/test/check.h"

#ifdef CM_CUDA /* the emulator, where device memory is plain memory */
#include "llmc/cuda/backend.cuh"
#define BACKEND_READY
#endif
#define CM_NO_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* functions that only main calls */
#include "train_gpt.c"
#pragma GCC diagnostic pop

static char err[ERR_LEN], folder[] = "/tmp/cm_test_first_step_XXXXXX", text[FILE_PATH_SIZE];

static Run run;
static Model model;
static Registry registry;
static Plan plan;

/* Opens a small run in `run` and makes its model. Returns -1 if the rules refuse the flags. */
static int open_small(const char *flags) {
    char command[FILE_PATH_SIZE + 512], name[] = "test_first_step", *argv[60], *save = NULL;
    int argc = 1;
    memset(&run, 0, sizeof run);
    run.log.fd = -1;
    argv[0] = name;
    snprintf(command, sizeof command, "--seq-len 32 --batch-size 16 --steps 4 --data %s %s", text,
             flags);
    for (char *w = strtok_r(command, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    if (config_parse(&run.asked, run.given, argc, argv, err)) die("%s: %s", flags, err);
    run.config = run.asked;
    if (open_data(&run, err)) die("%s", err);
    if (config_resolve(&run.config, err)) {
        close_run(&run);
        return -1;
    }
    registry = registry_build(&run.config);
    if (registry_freeze(&registry, run.config.freeze, err)) die("%s: %s", flags, err);
    plan = plan_build(&run.config, &registry);
    if (open_batch(&run, err) || model_create(&model, &run.config, &registry, &plan, 1, err) ||
        model_init(&model, err))
        die("%s: %s", flags, err);
    return 0;
}

static void close_small(void) {
    close_run(&run);
    model_free(&model);
}

/* The measured step of a leg, by its name. */
static double measured(const char *name) {
    double rms[2];
    for (int i = 0; i < plan.n; i++)
        for (int leg = 0; leg < plan.e[i].legs; leg++) {
            if (strcmp(plan.e[i].name[leg], name)) continue;
            if (first_step_rms(&registry, &plan.e[i], &run.config, model.p.param, rms))
                die("test_first_step: out of memory");
            return rms[leg];
        }
    return NAN;
}

/* A sign of rank min(rows, cols) has the RMS 1/sqrt(max(rows, cols)). A rule of elements has that
   of its rate. Compositional Muon on a partner that is zero has half of a sign's over sqrt(lambda).
   pe8 leaves singular values within 1e-4 of 1 where they were above 1e-3 of the norm
   (docs/optimizers.md). The smallest one of a square Gaussian matrix may be less; so the bound is a
   few times wider, and the gradient is always the same one. */
static void test_formulas(void) {
    static const struct {
        const char *flags, *name;
        double rms;
    } cases[] = {
        {"--optimizer muon --lr 0.03 --scale none", "W_fc", 0.03 / 16},
        {"--optimizer muon --lr 0.03", "W_fc", 0.03 * 2 / 16},
        {"--optimizer muon --lr 0.03", "W_proj", 0.03 / 16},
        {"--optimizer muon --lr 0.03 --scale rms", "W_fc", 0.03 * 0.2},
        {"--optimizer muon --lr 0.03 --scale rms", "W_proj", 0.03 * 0.2},
        {"--optimizer muon --lr 0.03 --weight-decay 9", "W_Q", 0.03 / 8},
        {"--qk muon-head --lr 0.03 --scale none", "W_Q", 0.03 / 8},
        {"--ov muon-head --lr 0.03 --scale none", "W_O", 0.03 / 8},
        {"--mlp normuon --lr 0.03 --scale none", "W_proj", 0.03 / 16},
        {"--mlp lion --lr 0.001", "W_fc", 0.001},
        {"--embed lion --lr-embed 0.002", "wte", 0.002},
        {"--optimizer adamw --lr 0.004 --weight-decay 9", "W_K", 0.004},
        {"--preset gpt2 --layers 2 --width 64 --heads 4 --lr-embed 0.003", "wpe", 0.003},
        {"--lr-head 0.005", "whead", 0.005},
        {"--lr-scalar 0.007", "norm1_w", 0.007},
        {"--lr 0.03 --mp 2", "W_V", 0.03 / 8 * 10},
        {"--lr 0.03 --damping 0.04", "W_V", 0.5 * 0.03 / 8 * 5},
        {"--lr 0.03 --cm-match-muon", "W_V", 0.03 / 8},
        {"--lr 0.03 --cm-match-muon --init gpt2", "W_Q", 0.03 / 8},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char flags[256];
        int shaped = strstr(cases[i].flags, "--layers") != NULL;
        snprintf(flags, sizeof flags, "%s %s", shaped ? "" : "--layers 2 --width 64 --heads 4",
                 cases[i].flags);
        if (open_small(flags)) die("%s: %s", flags, err);
        double rms = measured(cases[i].name);
        check(relative_error(rms, cases[i].rms, 0) < 2e-3, "%s: the RMS of %s is %.6g, not %.6g",
              flags, cases[i].name, rms, cases[i].rms);
        close_small();
    }
}

/* AdamW's rate for AdamW's own step is its own, whatever its moments; a sign's is its RMS over
   ADAMW_RMS. */
static void test_adamw_rate(void) {
    if (open_small("--layers 1 --width 64 --heads 4 --optimizer muon --scale rms --lr 0.02"))
        die("%s", err);
    for (int i = 0; i < plan.n; i++) {
        const PlanEntry *e = &plan.e[i];
        double rms[2], rate;
        if (first_step_rms(&registry, e, &run.config, model.p.param, rms)) die("out of memory");
        rate = first_step_adamw_lr(e, rms[0]);
        check(relative_error(rate, e->lr, 0) < 2e-3, "%s: AdamW's rate %g, not %g", e->name[0],
              rate, e->lr);
    }
    close_small();
}

/* Every rule in every role: the step of one layer and of some rows is that of the whole model's
   update, from a random gradient of its own. */
static void test_every_rule(void) {
    static const char *const role[] = {"qk",    "ov",   "mlp",
                                       "embed", "head", "low-rank 3 --lora-on fc,proj --lora"};
    static const unsigned where[] = {ON_QK, ON_OV, ON_MLP, ON_EMBED, ON_HEAD, ON_FACTOR};
    static const char *const more[] = {"", "--kv-heads 2 --act swiglu", "--weight-decay 0.1",
                                       "--circuit on"};
    int ran = 0;
    for (int at = 0; at < RULES_END * COUNT_OF(role) * COUNT_OF(more); at++) {
        int rule = at / COUNT_OF(more) / COUNT_OF(role), to = at / COUNT_OF(more) % COUNT_OF(role);
        char flags[256];
        if (!(rule_table[rule].where & where[to]) || rule == RULE_AUTO) continue;
        snprintf(flags, sizeof flags,
                 "--layers 2 --width 32 --heads 4 --init gpt2 --log-groups --schedule constant "
                 "--%s %s %s",
                 role[to], rule_table[rule].flag, more[at % COUNT_OF(more)]);
        if (open_small(flags)) continue; /* a combination that the rule refuses */
        ran++;
        double predicted[2 * PLAN_MAX];
        int legs = 0;
        for (int i = 0; i < plan.n; i++, legs += plan.e[i - 1].legs)
            first_step_rms(&registry, &plan.e[i], &run.config, model.p.param, predicted + legs);
        for (size_t i = 0; i < registry.size[SLOT_GRAD]; i++)
            model.p.grad[i] = (floatM)rng_normal(7, 7, i);
        for (int i = 0; i < plan.n; i++) model.plan.e[i].weight_decay = 0;
        optimizer_step(&model, 0, 1);
        char *json;
        if (log_extra(&json, &run.config, &model.p, &model.plan, 1, err)) die("%s", err);
        for (int i = 0; i < legs; i++) {
            const char *name = "";
            Part part;
            char key[64];
            check(plan_group(&plan, i, &name, &part) == 1, "%s: group %d", flags, i);
            snprintf(key, sizeof key, "\"%s\": {", name);
            double rms = log_number(strstr(json, key), "update_rms");
            /* The sign of one Gaussian matrix and of another agree in norm; the partner's whitening
               weighs their directions, and one layer's weights differ from the next one's: some
               percent at this size. */
            check(relative_error(predicted[i], rms, 0) < 0.05, "%s: %s moves by %.6g, not %.6g",
                  flags, name, rms, predicted[i]);
        }
        free(json);
        close_small();
    }
    check(ran > 40, "only %d combinations were run", ran);
}

/* In training the gradient is not Gaussian; the sign of a full-rank matrix, and the sign of each
   element, have the predicted size all the same. --log-groups reports them after step 1. */
static void test_training(void) {
    static const char *const cases[] = {"--optimizer muon --init gpt2 --log-groups",
                                        "--optimizer muon --scale rms --init gpt2 --log-groups",
                                        "--mlp lion --ov normuon --init gpt2 --log-groups"};
    static const char *const names[] = {"W_O", "W_V", "W_fc", "W_proj"};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char flags[256];
        snprintf(flags, sizeof flags, "--layers 2 --width 32 --heads 4 %s", cases[i]);
        if (open_small(flags)) die("%s: %s", flags, err);
        double predicted[COUNT_OF(names)], loss, norm;
        for (int j = 0; j < COUNT_OF(names); j++) predicted[j] = measured(names[j]);
        if (train_step(&run, &model, &loss, &norm, err)) die("%s", err);
        char *json;
        if (log_extra(&json, &run.config, &model.p, &model.plan, run.step, err)) die("%s", err);
        for (int j = 0; j < COUNT_OF(names); j++) {
            char key[64];
            snprintf(key, sizeof key, "\"%s\": {", names[j]);
            double rms = log_number(strstr(json, key), "update_rms");
            /* A few singular values of a gradient of 512 tokens lie where pe8 does not lift them to
               1. */
            check(relative_error(predicted[j], rms, 0) < 0.05,
                  "%s: the first step of %s has the RMS %.6g, not %.6g", flags, names[j], rms,
                  predicted[j]);
        }
        free(json);
        close_small();
    }
}

/* Nothing of the model changes, and the numbers are equal when they are measured again. */
static void test_leaves_alone(void) {
    if (open_small("--layers 2 --width 32 --heads 4 --init gpt2 --qk quack --mlp muonh "
                   "--freeze norm1_w"))
        die("%s", err);
    Params *p = &model.p;
    const struct {
        const void *memory;
        size_t bytes;
    } parts[] = {{p->param, registry.size[SLOT_PARAM] * sizeof(floatM)},
                 {p->grad, registry.size[SLOT_GRAD] * sizeof(floatM)},
                 {p->moment, registry.size[SLOT_MOMENT] * sizeof(floatM)},
                 {p->weight, registry.size[SLOT_WEIGHT] * sizeof(floatX)},
                 {p->state, plan.state_size * sizeof(floatM)},
                 {&model.plan, sizeof model.plan}};
    uint64_t before[COUNT_OF(parts)];
    char *printed[2];
    for (int i = 0; i < COUNT_OF(parts); i++)
        before[i] = fnv1a(FNV_BASIS, parts[i].memory, parts[i].bytes);
    for (int i = 0; i < 2; i++) {
        size_t size;
        FILE *f = open_memstream(&printed[i], &size);
        if (!f) die("out of memory");
        first_steps_print(f, &plan, &registry, &run.config, p->param, "initial");
        fclose(f);
    }
    for (int i = 0; i < COUNT_OF(parts); i++)
        check(before[i] == fnv1a(FNV_BASIS, parts[i].memory, parts[i].bytes),
              "part %d of the model changes", i);
    check(!strcmp(printed[0], printed[1]), "the numbers differ:\n%s%s", printed[0], printed[1]);
    int lines = 0, widest = 0;
    for (const char *c = printed[0], *end; (end = strchr(c, '\n')) != NULL; c = end + 1, lines++)
        if (lines) widest = max_int(widest, (int)(end - c)); /* the first line may be wrapped */
    check(lines == 11 && widest < 50,
          "%d lines, up to %d wide, not two headings, six matrices, wte, whead and one for "
          "vectors:\n%s",
          lines, widest, printed[0]);
    for (int i = 0; i < 2; i++) free(printed[i]);
    close_small();
}

static const Test tests[] = {TEST(formulas), TEST(adamw_rate), TEST(every_rule), TEST(training),
                             TEST(leaves_alone)};

int main(int argc, char **argv) {
    static Config machine;
    machine.threads = 1;
    if (device_setup(&machine, NULL, err)) die("%s", err);
    if (!mkdtemp(folder)) die("cannot make a folder below /tmp");
    file_path(text, "%s/text", folder);
    FILE *f = fopen(text, "w");
    for (uint64_t i = 0; f && i < 40000; i++) fputc((int)(' ' + rng_bits(3, 0, i) % 64), f);
    if (!f || fclose(f)) die("cannot write %s", text);
    check_run(tests, COUNT_OF(tests), argc, argv);
    remove(text);
    remove(folder);
    return check_done();
}
