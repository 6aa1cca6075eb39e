/*
Command lines. The input is an argument a line; the first line names the program: train, generate or
tokenize. A value that was accepted becomes a text that gives an equal value, and train's flags
either are refused or make a model whose sizes are the products of its shape.
*/
#include "programs.h"

#include "fuzz.h"

enum { MOST_ARGUMENTS = 64 };

static char err[ERR_LEN];
static FILE *out;

static void fuzz_begin(void) {
    out = fopen("/dev/null", "w");
    if (!out) abort();
}

/* Whether two structs have equal values of a flag. */
static int equal_values(const Flag *flag, const void *a, const void *b) {
    const void *x = flags_value(flag, a), *y = flags_value(flag, b);
    switch (flag->kind) {
    case KIND_INT:
    case KIND_CHOICE:
    case KIND_BOOL:
    case KIND_SWITCH: return *(const int *)x == *(const int *)y;
    case KIND_LONG: return *(const int64_t *)x == *(const int64_t *)y;
    case KIND_FLOAT: return *(const double *)x == *(const double *)y;
    case KIND_STRING: return !strcmp((const char *)x, (const char *)y);
    }
    return 0;
}

/* Every value becomes a text, which gives the value again. `other` has room for the struct. */
static void check_texts(const Flag *flags, int n, const void *values, void *other) {
    char text[FLAG_STRING_SIZE];
    flags_defaults(flags, n, other);
    for (int i = 0; i < n; i++) {
        flags_get_text(&flags[i], values, text);
        require(flags_set(flags, n, other, NULL, flags[i].name, text, err) == 0, "%s", err);
        require(equal_values(&flags[i], values, other), "--%s \"%s\"", flags[i].name, text);
        flags_json_value(out, &flags[i], values);
    }
}

/* A message is one sentence of text. */
static void check_message(void) {
    require(err[0] && strlen(err) < ERR_LEN, "an error without a message");
}

static void check_sizes(const Config *c) {
    Registry r = registry_build(c);
    double count = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r.t[id];
        double size = (double)t->layers * t->rows * t->cols;
        require(t->layers >= 0 && t->rows >= 0 && t->cols >= 0, "%s has a negative side", t->name);
        require(fabs(size - (double)t->size) <= 1e-9 * size, "%s: %g elements, not %zu", t->name,
                size, t->size);
        count += size;
    }
    require((double)r.size[SLOT_PARAM] >= count * (1 - 1e-9), "%g parameters", count);
    if (registry_freeze(&r, c->freeze, err)) {
        check_message();
        return;
    }
    Plan plan = plan_build(c, &r);
    if (plan_check_frozen(&plan, c, &r, err)) check_message();
    Memory m = model_memory(c, &r, &plan, 1);
    require((double)m.total >= 4 * count * (1 - 1e-9), "%zu bytes for %g parameters", m.total,
            count);
    print_memory(out, m);
    print_model(out, c, &r);
    char title[4096];
    plan_title(title, sizeof title, c);
    plan_print(out, &plan, &r);
}

static void check_train(int argc, char **argv) {
    static Config c, other;
    unsigned char given[CONFIG_FLAGS];
    int status = config_parse(&c, given, argc, argv, err);
    if (status) {
        if (status < 0) check_message();
        return;
    }
    check_texts(config_flags, CONFIG_FLAGS, &c, &other);
    if (!c.vocab) c.vocab = 256;
    if (config_resolve(&c, err)) {
        check_message();
        return;
    }
    for (int step = 0; step < 3; step++) {
        double rate = schedule_lr(&c.schedule, step);
        require(rate >= 0 && rate <= 1, "the schedule is %g at step %d", rate, step);
    }
    check_sizes(&c);
}

static void check_table(const Flag *flags, int n, void *values, void *other, int argc,
                        char **argv) {
    flags_defaults(flags, n, values);
    int status = flags_parse(flags, n, values, NULL, argc, argv, err);
    if (status < 0) check_message();
    if (status == 0) check_texts(flags, n, values, other);
}

static void fuzz_one(Input in) {
    static Options generate, generate_other;
    static TokenizeOptions tokenize, tokenize_other;
    char *argv[MOST_ARGUMENTS + 1];
    int argc = 0;
    while (argc < MOST_ARGUMENTS && (argv[argc] = input_line(&in)) != NULL) argc++;
    argv[argc] = NULL;
    const char *program = argc ? argv[0] : "";
    if (!strcmp(program, "generate"))
        check_table(option_flags, OPTION_FLAGS, &generate, &generate_other, argc, argv);
    else if (!strcmp(program, "tokenize"))
        check_table(option_table, OPTIONS, &tokenize, &tokenize_other, argc, argv);
    else check_train(argc, argv);
    for (int i = 0; i < argc; i++) free(argv[i]);
}
