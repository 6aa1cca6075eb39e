/* Tests of llmc/flags.h: parsing, errors, --help, JSON, Markdown. */
#include "check.h"
#include "llmc/flags.h"

typedef struct {
    int batch_size;
    int64_t tokens;
    double lr;
    char run[FLAG_STRING_SIZE];
    int optimizer;
    int tied;
    int dry_run;
    int offset;
} Config;

enum { N = 8 };
#define FIELD(NAME) offsetof(Config, NAME)
static const Flag table[N] = {
#define SECTION "Training"
    FLAG_INT("batch-size", batch_size, "8", 1, 65536, "sequences per step"),
    FLAG_LONG(
        "tokens", tokens, "1.5M", 0, INFINITY,
        "tokens to train on: a help text so long that it cannot stand on one line of a hundred "
        "columns"),
    FLAG_FLOAT("lr", lr, "3e-4", 0, 1, "peak learning rate"),
#undef SECTION
#define SECTION "Output"
    FLAG_TEXT("run", run, "test", "name of the run folder"),
    FLAG_CHOICE("optimizer", optimizer, "cm", "adamw|muon|cm", "update rule, a|b"),
    FLAG_BOOL("tied", tied, "on", "share the two embeddings"),
    FLAG_SWITCH("dry-run", dry_run, "print the plan"),
    FLAG_INT("offset", offset, "-1", 0, 0, "any number"),
};
#undef SECTION
#undef FIELD

static char err[ERR_LEN];
static unsigned char given[N];

/* Parses words separated by single spaces. */
static int parse(Config *c, const char *words) {
    char text[2048], *argv[64], *save = NULL;
    int argc = 0;
    snprintf(text, sizeof text, "./program %s", words);
    for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    memset(c, 0, sizeof *c);
    memset(given, 0, sizeof given);
    err[0] = 0;
    flags_defaults(table, N, c);
    return flags_parse(table, N, c, given, argc, argv, err);
}

static void expect_error(const char *words, const char *part) {
    Config c;
    int status = parse(&c, words);
    check(status == -1 && strstr(err, part), "\"%s\" gave %d \"%s\", expected \"%s\"", words,
          status, err, part);
}

static void test_values(void) {
    Config c;
    check(parse(&c, "") == 0 && c.batch_size == 8 && c.tokens == 1500000 && c.lr == 3e-4 &&
              !strcmp(c.run, "test") && c.optimizer == 2 && c.tied == 1 && !c.dry_run &&
              c.offset == -1,
          "defaults: %s", err);
    int any = 0;
    for (int i = 0; i < N; i++) any |= given[i];
    check(!any, "nothing was given");

    check(parse(&c, "--batch-size 4 --tokens=2B --lr 1e-2 --run=a=b --optimizer muon --tied off "
                    "--dry-run --offset -5") == 0 &&
              c.batch_size == 4 && c.tokens == 2000000000 && c.lr == 1e-2 &&
              !strcmp(c.run, "a=b") && c.optimizer == 1 && c.tied == 0 && c.dry_run == 1 &&
              c.offset == -5,
          "all flags: %s", err);
    int every = 1;
    for (int i = 0; i < N; i++) every &= given[i];
    check(every, "all flags are marked as given");
    check(parse(&c, "--lr .5") == 0 && given[2] && !given[0] && !given[6], "only --lr is given");
    check(parse(&c, "--run=") == 0 && c.run[0] == 0, "an empty string is a value");
    check(parse(&c, "--run=--lr") == 0 && !strcmp(c.run, "--lr"), "--name=--x");

    static const struct {
        const char *text;
        int64_t value;
    } longs[] = {{"0", 0},
                 {"10k", 10000},
                 {"10K", 10000},
                 {"1.5M", 1500000},
                 {"1.50000000M", 1500000},
                 {"0.000000001G", 1},
                 {"3G", 3000000000},
                 {"9007199254740993", 9007199254740993},
                 {"9223372036854775807", INT64_MAX}};
    for (size_t i = 0; i < sizeof longs / sizeof *longs; i++) {
        char words[64];
        snprintf(words, sizeof words, "--tokens %s", longs[i].text);
        check(parse(&c, words) == 0 && c.tokens == longs[i].value, "%s gave %lld (%s)", words,
              (long long)c.tokens, err);
    }
    static const char *const words[] = {"on", "true", "1", "yes", "off", "false", "0", "no"};
    for (int i = 0; i < 8; i++) {
        char text[32];
        snprintf(text, sizeof text, "--tied %s", words[i]);
        check(parse(&c, text) == 0 && c.tied == (i < 4), "%s", text);
    }
}

static void test_errors(void) {
    expect_error("--batch-siz 3", "did you mean --batch-size?");
    expect_error("--batch_size 3", "did you mean --batch-size?");
    expect_error("-batch-size 3", "unknown flag -batch-size, did you mean --batch-size?");
    expect_error("--batch 3", "did you mean --batch-size?");
    expect_error("--Dry-Run", "did you mean --dry-run?");
    expect_error("--rl 1", "did you mean --lr?");
    expect_error("--optimiser cm", "did you mean --optimizer?");
    expect_error("--unheard-of=1", "unknown flag --unheard-of,");
    expect_error("batch-size 3", "did you mean --batch-size?");
    expect_error("foo", "unexpected argument \"foo\"");
    expect_error("--", "unexpected argument");
    expect_error("-", "unexpected argument");
    expect_error("--=3", "unexpected argument");
    expect_error("--dry-run on", "--dry-run takes no value");
    expect_error("--dry-run=maybe", "--dry-run takes no value");
    expect_error("--lr", "--lr needs a value (peak learning rate)");
    expect_error("--lr --dry-run", "--lr needs a value");
    expect_error("--lr 0.1 --lr 0.1", "--lr is given twice");
    expect_error("--dry-run --dry-run", "--dry-run is given twice");
    expect_error("--batch-size 0", "from 1 to 65536 (sequences per step)");
    expect_error("--batch-size 65537", "from 1 to 65536");
    expect_error("--batch-size 8x", "whole number");
    expect_error("--batch-size 8.0", "whole number");
    expect_error("--batch-size 1k", "whole number");
    expect_error("--batch-size=", "whole number");
    expect_error("--batch-size 4294967304", "32 bits");
    expect_error("--offset 99999999999999999999", "32 bits");
    expect_error("--tokens -1", "at least 0");
    expect_error("--tokens 1.0001k", "whole number");
    expect_error("--tokens 1.5", "whole number");
    expect_error("--tokens 10kk", "whole number");
    expect_error("--tokens k", "whole number");
    expect_error("--tokens 10000000000B", "64 bits");
    expect_error("--tokens 9223372036854775808", "64 bits");
    static const char *const bad[] = {"nan",   "inf",  "-inf", "0x1p-3", "1e",
                                      "1.2.3", "0.1f", "x",    ","};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char words[64];
        snprintf(words, sizeof words, "--lr %s", bad[i]);
        expect_error(words, "takes a finite number");
    }
    expect_error("--lr 1e999", "does not fit a double");
    expect_error("--lr 1.5", "from 0 to 1 (peak learning rate)");
    expect_error("--lr -1", "from 0 to 1");
    expect_error("--optimizer cmm", "one of adamw, muon or cm");
    expect_error("--optimizer c", "one of adamw, muon or cm");
    expect_error("--tied maybe", "takes on or off");

    char words[1200] = "--run ";
    memset(words + 6, 'x', FLAG_STRING_SIZE);
    expect_error(words, "too long");
    words[6 + FLAG_STRING_SIZE - 1] = 0;
    Config c;
    check(parse(&c, words) == 0 && strlen(c.run) == FLAG_STRING_SIZE - 1, "511 bytes fit");
    memset(words, 'y', sizeof words - 1);
    memcpy(words, "--", 2);
    expect_error(words, "unknown flag");

    check(parse(&c, "--help") == 1 && parse(&c, "--lr 7 -h") == 1, "--help wins over errors");
    check(parse(&c, "--lr 0.5 --batch-size x") == -1 && !given[2], "no marks after an error");
}

static void test_set(void) {
    Config c;
    parse(&c, "");
    check(flags_set(table, N, &c, given, "lr", "0.25", err) == 0 && c.lr == 0.25 && given[2],
          "set");
    check(flags_set(table, N, &c, NULL, "dry-run", "on", err) == 0 && c.dry_run == 1, "switch on");
    check(flags_set(table, N, &c, NULL, "dry-run", "off", err) == 0 && c.dry_run == 0,
          "switch off");
    check(flags_set(table, N, &c, NULL, "dry-run", NULL, err) == 0 && c.dry_run == 1,
          "switch alone");
    check(flags_set(table, N, &c, NULL, "ls", "1", err) == -1 && strstr(err, "--lr"), "%s", err);
    check(flags_set(table, N, &c, NULL, "lr", "2", err) == -1 && c.lr == 0.25,
          "an error sets nothing");
}

/* Whether two settings print the same value of a flag. */
static int same_value(const Flag *flag, const Config *a, const Config *b) {
    char text_a[FLAG_STRING_SIZE], text_b[FLAG_STRING_SIZE];
    flags_get_text(flag, a, text_a);
    flags_get_text(flag, b, text_b);
    return strcmp(text_a, text_b) == 0;
}

/* The printed text of every value parses to that value. */
static void test_round_trip(void) {
    Config a, b;
    char text[FLAG_STRING_SIZE];
    uint64_t random = 1;
    parse(&a, "");
    parse(&b, "");
    int equal = 1;
    for (int i = 0; i < 20000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        a.lr = (double)(random >> 11) / 9007199254740992.0; /* [0, 1) */
        flags_get_text(&table[2], &a, text);
        equal &= flags_set(table, N, &b, NULL, "lr", text, err) == 0 && a.lr == b.lr;
    }
    check(equal, "doubles round-trip");
    a.lr = 0.1;
    flags_get_text(&table[2], &a, text);
    check(!strcmp(text, "0.1"), "shortest text of 0.1 is %s", text);
    a.lr = 0.1 + 0.2;
    flags_get_text(&table[2], &a, text);
    check(!strcmp(text, "0.30000000000000004"), "shortest text of 0.1 + 0.2 is %s", text);

    parse(&a,
          "--batch-size 3 --tokens 9007199254740993 --lr .125 --run x --optimizer adamw --tied no "
          "--dry-run --offset 7");
    for (int i = 0; i < N; i++) {
        check(!same_value(&table[i], &a, &b), "--%s differs", table[i].name);
        flags_get_text(&table[i], &a, text);
        check(flags_set(table, N, &b, NULL, table[i].name, text, err) == 0, "--%s %s: %s",
              table[i].name, text, err);
        check(same_value(&table[i], &a, &b), "--%s is the same", table[i].name);
    }
}

static char *written(void (*print)(FILE *, const Config *), const Config *c) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    print(f, c);
    fclose(f);
    return text;
}

/* All values, as run.json has them: {"batch-size": 8, "lr": 0.0003, ...}. */
static void print_json(FILE *f, const Config *c) {
    for (int i = 0; i < N; i++) {
        fprintf(f, "%s\"%s\": ", i ? ", " : "{", table[i].name);
        flags_json_value(f, &table[i], c);
    }
    fputc('}', f);
}
static void print_markdown(FILE *f, const Config *c) {
    (void)c;
    flags_markdown(f, table, N);
}
static void print_help(FILE *f, const Config *c) {
    (void)c;
    flags_help(f, "usage: ./program [flags]", table, N);
}
static void print_string(FILE *f, const Config *c) { json_string(f, c->run); }

static void test_output(void) {
    Config c;
    parse(&c, "--dry-run");
    strcpy(c.run, "a\"b\\c\n\t\x01 caf\xc3\xa9 \xff");
    char *json = written(print_json, &c);
    const char *expected =
        "{\"batch-size\": 8, \"tokens\": 1500000, \"lr\": 0.0003, \"run\": "
        "\"a\\\"b\\\\c\\n\\t\\u0001 caf\xc3\xa9 \\ufffd\", \"optimizer\": \"cm\", \"tied\": true, "
        "\"dry-run\": true, \"offset\": -1}";
    check(!strcmp(json, expected), "JSON: %s", json);
    free(json);

    /* Overlong forms, surrogates, cut sequences and values above U+10FFFF are not UTF-8. */
    static const char *const broken[] = {"\xc0\xaf", "\xed\xa0\x80", "\xe2\x82",
                                         "\xf4\x90\x80\x80"};
    for (int i = 0; i < 4; i++) {
        strcpy(c.run, broken[i]);
        char *text = written(print_string, &c);
        int ascii = 1;
        for (char *p = text; *p; p++) ascii &= (unsigned char)*p < 0x80;
        check(ascii && strstr(text, "\\ufffd"), "broken UTF-8 %d: %s", i, text);
        free(text);
    }
    strcpy(c.run, "\xe2\x82\xac \xf0\x9f\x98\x80");
    char *text = written(print_string, &c);
    check(!strcmp(text, "\"\xe2\x82\xac \xf0\x9f\x98\x80\""), "valid UTF-8 stays: %s", text);
    free(text);

    char *markdown = written(print_markdown, &c);
    check(strstr(markdown, "### Training\n\n| flag | default | meaning |\n|---|---|---|\n"
                           "| `--batch-size` | `8` | sequences per step (from 1 to 65536) |\n"),
          "Markdown: %s", markdown);
    check(strstr(markdown, "| `--optimizer` | `cm` | update rule, a\\|b (adamw, muon or cm) |\n"),
          "Markdown: %s", markdown);
    free(markdown);

    char *help = written(print_help, &c);
    check(strstr(help, "\nTraining\n") && strstr(help, "\nOutput\n"), "help has headings:\n%s",
          help);
    for (int i = 0; i < N; i++) {
        char name[64];
        snprintf(name, sizeof name, "  --%s", table[i].name);
        check(strstr(help, name) != NULL, "help names --%s", table[i].name);
    }
    check(strstr(help, "(adamw, muon or cm; default cm)"), "help shows choices:\n%s", help);
    size_t longest = 0;
    for (char *line = strtok(help, "\n"); line; line = strtok(NULL, "\n"))
        longest = strlen(line) > longest ? strlen(line) : longest;
    check(longest <= 100 && longest > 80, "help is wrapped to 100 columns, not %zu", longest);
    free(help);
}

/* Choices of a flag that come from a function. The flag does not have value 1. */
static const char *color(int i) {
    static const char *const names[] = {"red", "", "blue", "green"};
    return i >= 0 && i < 4 ? names[i] : NULL;
}

static void test_choice_function(void) {
#define FIELD(NAME) 0
#define SECTION NULL
    static const Flag flags[] = {FLAG_CHOICE_OF("color", color, "blue", color, "a color")};
#undef SECTION
#undef FIELD
    char text[FLAG_STRING_SIZE];
    int value = -1;
    flags_defaults(flags, 1, &value);
    check(value == 2, "the default is value %d", value);
    check(!flags_set(flags, 1, &value, NULL, "color", "green", err) && value == 3,
          "green is %d: %s", value, err);
    flags_get_text(&flags[0], &value, text);
    check(!strcmp(text, "green"), "value 3 is \"%s\"", text);
    check(flags_set(flags, 1, &value, NULL, "color", "", err) == -1 && value == 3 &&
              strstr(err, "one of red, blue or green,"),
          "an empty name: %d, %s", value, err);
}

static const Test tests[] = {TEST(values),     TEST(errors), TEST(set),
                             TEST(round_trip), TEST(output), TEST(choice_function)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
