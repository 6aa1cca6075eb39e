/* Tests of the run folder: names, refusal to overwrite, lines, truncation on resume, full disks;
   and of what a person sees of a run: times, the progress line, the loss curve. */
#include "folder.h"
#include "llmc/curve.h"
#include "llmc/log.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static char err[ERR_LEN];

static char *read_text(const char *path) {
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st)) return strdup("(no file)");
    char *text = (char *)calloc((size_t)st.st_size + 1, 1);
    size_t n = fread(text, 1, (size_t)st.st_size, f);
    text[n] = 0;
    fclose(f);
    return text;
}

static void write_text(const char *path, const char *mode, const char *text) {
    FILE *f = fopen(path, mode);
    if (!f || fputs(text, f) < 0 || fclose(f)) abort();
}

static int put_line(RunLog *log, int64_t step, double train, double val) {
    LogLine line = log_line_empty();
    line.step = step;
    line.tokens = 8192 * step;
    line.train_loss = train;
    line.val_loss = val;
    line.lr = 3e-4;
    line.grad_norm = 1.5;
    line.ms = 12.3456;
    line.tok_s = 663600.4;
    return log_line(log, &line, err);
}

static void test_names(void) {
    RunLog log;
    static const char *const bad[] = {"", ".", "..", ".hidden", "a/b", "/a", "a/", "a\nb"};
    for (int i = 0; i < 8; i++)
        check(log_open(&log, scratch_folder, bad[i], 0, err) == -1 && strstr(err, "--run"),
              "name \"%s\": %s", bad[i], err);
    check(log_open(&log, scratch_folder, "seed 1, lr=3e-4 caf\xc3\xa9", 0, err) == 0,
          "a plain name: %s", err);
    log_close(&log);
    char file[FILE_PATH_SIZE];
    file_path(file, "%s/file", scratch_folder);
    write_text(file, "w", "x");
    check(log_open(&log, file, "a", 0, err) == -1 && strstr(err, file), "runs dir is a file: %s",
          err);
    char deep[FILE_PATH_SIZE];
    file_path(deep, "%s/x/y/z", scratch_folder);
    check(log_open(&log, deep, "a", 0, err) == 0, "missing folders are made: %s", err);
    log_close(&log);
    char name[300];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    check(log_open(&log, scratch_folder, name, 0, err) == -1 && strstr(err, "too long"), "%s", err);
}

static void test_lines(void) {
    RunLog log;
    LogCurve curve = {0};
    check(log_open(&log, scratch_folder, "lines", 0, err) == 0, "%s", err);
    float loss = 3.14159274f;
    LogLine extra = log_line_empty();
    extra.step = 2;
    extra.tokens = 16384;
    extra.train_loss = (double)loss;
    extra.lr = 1e-5;
    extra.grad_norm = INFINITY;
    extra.tok_s = 1e6;
    extra.extra = "{\"gpu_w\": 640}";
    extra.mfu = 0.5625;
    extra.mfu_stated = 0.41;
    check(put_line(&log, 0, NAN, 10.825) == 0 && put_line(&log, 1, 9.5, NAN) == 0, "%s", err);
    check(log_line(&log, &extra, err) == 0, "%s", err);
    check(log_append_text(&log, "no end", err) == -1, "a line needs its end");
    check(log_sync(&log, err) == 0, "%s", err);
    char *text = read_text(log.path);
    const char *expected =
        "{\"step\": 0, \"tokens\": 0, \"train_loss\": null, \"val_loss\": 10.825, \"lr\": 0.0003, "
        "\"grad_norm\": 1.5, \"ms\": 12.346, \"tok_s\": 663600}\n"
        "{\"step\": 1, \"tokens\": 8192, \"train_loss\": 9.5, \"val_loss\": null, \"lr\": 0.0003, "
        "\"grad_norm\": 1.5, \"ms\": 12.346, \"tok_s\": 663600}\n"
        "{\"step\": 2, \"tokens\": 16384, \"train_loss\": 3.14159274, \"val_loss\": null, \"lr\": "
        "1e-05, \"grad_norm\": null, \"ms\": null, \"tok_s\": 1000000, \"mfu\": 0.5625, "
        "\"mfu_stated\": 0.4100, \"extra\": {\"gpu_w\": 640}}\n";
    check(!strcmp(text, expected), "log:\n%s", text);
    free(text);

    check(log_read(log.path, &curve, err) == 0 && curve.n == 3, "read: %s", err);
    check(curve.step[2] == 2 && (float)curve.train[2] == loss, "read back");
    check(isnan(curve.train[0]) && curve.val[0] == 10.825 && isnan(curve.val[1]), "null is NaN");
    log_curve_free(&curve);
    log_close(&log);
    check(log_read("/nonexistent/log.jsonl", &curve, err) == -1 && strstr(err, "/nonexistent"),
          "%s", err);

    /* Nine digits are enough for every float. */
    check(log_open(&log, scratch_folder, "floats", 0, err) == 0, "%s", err);
    uint32_t random = 1;
    float values[300];
    for (int i = 0; i < 300; i++) {
        random = random * 1664525u + 1013904223u;
        values[i] = (float)random * 1.7e-9f;
        put_line(&log, i, (double)values[i], NAN);
    }
    int equal = log_read(log.path, &curve, err) == 0 && curve.n == 300;
    for (int i = 0; i < 300 && equal; i++) equal &= (float)curve.train[i] == values[i];
    check(equal, "floats round-trip");
    log_curve_free(&curve);
    log_close(&log);
}

static void test_overwrite(void) {
    RunLog log, second;
    char path[FILE_PATH_SIZE];
    check(log_open(&log, scratch_folder, "run", 0, err) == 0, "%s", err);
    check(log_open(&second, scratch_folder, "run", 1, err) == -1 && strstr(err, "another process"),
          "two writers: %s", err);
    check(put_line(&log, 0, NAN, 10) == 0, "%s", err);
    log_close(&log);
    check(log_open(&log, scratch_folder, "run", 0, err) == 0, "step 0 alone may be overwritten: %s",
          err);
    char *text = read_text(log.path);
    check(!*text, "step 0 is still there: %s", text);
    free(text);
    check(put_line(&log, 0, NAN, 10) == 0 && put_line(&log, 1, 9, NAN) == 0, "%s", err);
    log_close(&log);
    char *lines = read_text(log.path);
    check(log_open(&log, scratch_folder, "run", 0, err) == -1 && strstr(err, "--resume") &&
              strstr(err, "--run") && strstr(err, "/run"),
          "a run with steps: %s", err);
    text = read_text(log.path);
    check(!strcmp(text, lines), "the refused start changes the log");
    free(text);
    check(log_open(&log, scratch_folder, "run", 1, err) == 0, "resume: %s", err);
    text = read_text(log.path);
    check(!strcmp(text, lines), "resume drops lines");
    free(text);
    free(lines);
    log_close(&log);

    check(log_open(&log, scratch_folder, "saved", 0, err) == 0, "%s", err);
    log_close(&log);
    file_path(path, "%s/saved/checkpoints/step_00000010.ckpt", scratch_folder);
    write_text(path, "w", "x");
    check(log_open(&log, scratch_folder, "saved", 0, err) == -1 && strstr(err, "--resume"),
          "a run with checkpoints: %s", err);
}

static void test_truncate(void) {
    RunLog log;
    static const char *const tails[] = {"", "{\"step\": 9", "{\"step\": 9, \"tokens\": 1}", "garb"};
    for (int t = 0; t < 4; t++) {
        char name[32];
        snprintf(name, sizeof name, "cut%d", t);
        check(log_open(&log, scratch_folder, name, 0, err) == 0, "%s", err);
        for (int i = 0; i < 5; i++) put_line(&log, i, 5 - i, NAN);
        char *kept = read_text(log.path);
        for (int i = 5; i < 9; i++) put_line(&log, i, 5 - i, NAN);
        char *complete = read_text(log.path);
        log_close(&log);
        write_text(log.path, "a", tails[t]);

        check(log_open(&log, scratch_folder, name, 1, err) == 0, "%s", err);
        char *text = read_text(log.path);
        check(!strcmp(text, complete), "resume drops \"%s\":\n%s", tails[t], text);
        free(text);
        check(log_truncate_after(&log, 4, err) == 0, "%s", err);
        text = read_text(log.path);
        check(!strcmp(text, kept), "lines after step 4 are gone:\n%s", text);
        free(text);
        for (int i = 5; i < 9; i++) put_line(&log, i, 5 - i, NAN);
        text = read_text(log.path);
        check(!strcmp(text, complete), "the log goes on as if unbroken:\n%s", text);
        free(text);
        check(log_truncate_after(&log, -1, err) == 0, "%s", err);
        text = read_text(log.path);
        check(!*text, "nothing is left");
        free(text);
        free(kept);
        free(complete);
        log_close(&log);
    }
    /* A power cut may leave zero bytes. */
    check(log_open(&log, scratch_folder, "zeros", 0, err) == 0 && put_line(&log, 1, 1, NAN) == 0,
          "%s", err);
    char *lines = read_text(log.path);
    const char zeros[64] = {0};
    check(write(log.fd, "{\"step\": 2, ", 12) == 12 && write(log.fd, zeros, 63) == 63 &&
              write(log.fd, "}\n", 2) == 2,
          "zeros");
    log_close(&log);
    check(log_open(&log, scratch_folder, "zeros", 1, err) == 0, "%s", err);
    char *text = read_text(log.path);
    struct stat st;
    check(stat(log.path, &st) == 0 && (size_t)st.st_size == strlen(lines) && !strcmp(text, lines),
          "zeros are dropped");
    free(text);
    free(lines);
    log_close(&log);
}

/* Lines that this program did not write are no reason to delete steps: they stay, and where steps
   before them are written again, they move to log.other. */
static void test_other_lines(void) {
    RunLog log;
    char path[FILE_PATH_SIZE];
    static const char *const other[] = {
        "# by hand\n",
        "{\"step\": x}\n",
        "\n",
        "{}\n",
        "{\"step\": 15, \"comment\": \"my evaluation\", \"accuracy\": 0.71}\n",
        "{\"step\": 3, \"tokens\": 24576, \"accuracy\": 0.71}\n",
        "{\"step\": 3, \"tokens\": 9, \"train_loss\": 1, \"mine\": 2}\n",
        "{\"step\": 3, \"tokens\": 9, \"train_loss\": x, \"val_loss\": 1, \"lr\": 1, "
        "\"grad_norm\": 1, "
        "\"ms\": 1, \"tok_s\": 1}\n",
        "{\"step\": 3, \"tokens\": 9, \"train_loss\": 1, \"val_loss\": 1, \"lr\": 1, "
        "\"grad_norm\": 1, "
        "\"ms\": 1, \"tok_s\": 1} of {mine}\n",
        "{\"tokens\": 9, \"step\": 3, \"train_loss\": 1, \"val_loss\": 1, \"lr\": 1, "
        "\"grad_norm\": 1, "
        "\"ms\": 1, \"tok_s\": 1}\n",
        "{\"step\": 3.5, \"tokens\": 9, \"train_loss\": 1, \"val_loss\": 1, \"lr\": 1, "
        "\"grad_norm\": 1, "
        "\"ms\": 1, \"tok_s\": 1}\n"};
    for (int t = 0; t < COUNT_OF(other); t++) {
        char name[32];
        snprintf(name, sizeof name, "other%d", t);
        check(log_open(&log, scratch_folder, name, 0, err) == 0, "%s", err);
        for (int i = 0; i < 9; i++) {
            put_line(&log, i, 5 - i, NAN);
            if (i == 2 || i == 4 || i == 6) write_text(log.path, "a", other[t]);
        }
        char *whole = read_text(log.path);
        log_close(&log);
        check(log_open(&log, scratch_folder, name, 1, err) == 0, "%s", err);
        char *text = read_text(log.path);
        check(!strcmp(text, whole), "resume changes the log:\n%s", text);
        free(text);
        write_text(log.path, "a", other[t]);
        check(log_last_step(log.path) == 8, "last step %lld", (long long)log_last_step(log.path));
        LogCurve curve = {0};
        check(!log_read(log.path, &curve, err) && curve.n == 9, "%d steps are read", curve.n);
        log_curve_free(&curve);
        check(log_truncate_after(&log, 4, err) == 0, "%s", err);
        for (int i = 5; i < 9; i++) put_line(&log, i, 5 - i, NAN);
        text = read_text(log.path);
        char *last = strstr(whole, "{\"step\": 7"), *cut = strdup(whole);
        cut[last - whole - (ptrdiff_t)strlen(other[t])] = 0;
        check(!strncmp(text, cut, strlen(cut)) && !strcmp(text + strlen(cut), last),
              "the lines before step 5 stay:\n%s", text);
        free(text);
        file_path(path, "%s/log.other", log.dir);
        text = read_text(path);
        size_t n = strlen(other[t]);
        check(strlen(text) == 2 * n && !strncmp(text, other[t], n) && !strcmp(text + n, other[t]),
              "the lines after it are kept in log.other: %s", text);
        free(text);
        free(cut);
        free(whole);
        log_close(&log);
    }
    /* Steps that are out of order are refused, by the number of the line. */
    check(log_open(&log, scratch_folder, "order", 0, err) == 0, "%s", err);
    for (int i = 0; i < 9; i++) put_line(&log, i % 6, 1, NAN);
    char *whole = read_text(log.path);
    check(log_truncate_after(&log, 3, err) == -1 && strstr(err, "line 7"), "%s", err);
    char *text = read_text(log.path);
    check(!strcmp(text, whole), "a refusal changes the log");
    free(text);
    free(whole);
    log_close(&log);
}

/* A log without a step of this program is no reason to refuse a new run, and stays. */
static void test_only_others(void) {
    RunLog log;
    const char *line = "{\"step\": 25, \"comment\": \"planned\"}\n";
    check(log_open(&log, scratch_folder, "planned", 0, err) == 0, "%s", err);
    write_text(log.path, "a", line);
    log_close(&log);
    check(log_last_step(log.path) == -1, "a step of another writer");
    if (check(log_open(&log, scratch_folder, "planned", 0, err) == 0, "a new run: %s", err)) {
        char *text = read_text(log.path);
        check(!strcmp(text, line), "the line is gone: %s", text);
        free(text);
        log_close(&log);
    }
}

/* An editor has made "\r\n" of the line ends: the steps are read, and the run goes on behind
   them. */
static void test_line_ends(void) {
    RunLog log;
    LogCurve curve = {0};
    check(log_open(&log, scratch_folder, "crlf", 0, err) == 0, "%s", err);
    for (int i = 0; i < 9; i++) put_line(&log, i, 5 - i, NAN);
    char *lines = read_text(log.path), windows[4096];
    log_close(&log);
    size_t n = 0;
    for (const char *p = lines; *p && n + 3 < sizeof windows; p++) {
        if (*p == '\n') windows[n++] = '\r';
        windows[n++] = *p;
    }
    windows[n] = 0;
    write_text(log.path, "w", windows);
    check(log_last_step(log.path) == 8, "last step %lld", (long long)log_last_step(log.path));
    check(log_open(&log, scratch_folder, "crlf", 1, err) == 0, "%s", err);
    check(log_truncate_after(&log, 4, err) == 0, "%s", err);
    check(put_line(&log, 5, 0.5, NAN) == 0, "%s", err);
    check(!log_read(log.path, &curve, err) && curve.n == 6 && curve.train[4] == 1 &&
              curve.train[5] == 0.5,
          "%d steps", curve.n);
    log_curve_free(&curve);
    free(lines);
    log_close(&log);
}

/* A limit on the size of files simulates a full disk. No part of a line that does not fit is
   left. */
static void test_full_disk(void) {
    RunLog log;
    struct rlimit unlimited, limit;
    check(log_open(&log, scratch_folder, "full", 0, err) == 0 && put_line(&log, 1, 1, NAN) == 0,
          "%s", err);
    char *kept = read_text(log.path);
    thread_count(); /* OpenMP's runtime may write a file when it starts, which is without a limit */
    getrlimit(RLIMIT_FSIZE, &unlimited);
    void (*old)(int) = signal(SIGXFSZ, SIG_IGN);
    for (size_t room = 0; room <= 60; room += 30) {
        limit = unlimited;
        limit.rlim_cur = strlen(kept) + room;
        setrlimit(RLIMIT_FSIZE, &limit);
        int status = put_line(&log, 2, 2, NAN);
        setrlimit(RLIMIT_FSIZE, &unlimited);
        char *text = read_text(log.path);
        check(status == -1 && strstr(err, log.path) && strstr(err, "too large"), "room %zu: %s",
              room, err);
        check(!strcmp(text, kept), "room %zu leaves a part:\n%s", room, text);
        free(text);
    }
    limit = unlimited;
    limit.rlim_cur = 10;
    setrlimit(RLIMIT_FSIZE, &limit);
    int status = log_run_json(&log, NULL, 0, NULL, NULL, "none", NULL, 0, err);
    setrlimit(RLIMIT_FSIZE, &unlimited);
    signal(SIGXFSZ, old);
    char path[FILE_PATH_SIZE];
    file_path(path, "%s/run.json", log.dir);
    check(status == -1 && strstr(err, "run.json") && access(path, F_OK), "run.json: %s", err);
    check(put_line(&log, 2, 2, NAN) == 0, "the log goes on: %s", err);
    free(kept);
    log_close(&log);
}

/* A child process logs until it is killed. Every line but the last is whole, and resuming drops a
   last line that is not. */
static void test_kill(void) {
    RunLog log;
    LogCurve curve = {0};
    int whole = 1;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (log_open(&log, scratch_folder, "kill", 0, err)) _exit(1);
        for (int64_t step = 0;; step++)
            if (put_line(&log, step, 1.0 / (double)(step + 1), NAN)) _exit(1);
    }
    struct stat st;
    char path[FILE_PATH_SIZE];
    file_path(path, "%s/kill/log.jsonl", scratch_folder);
    for (int i = 0; i < 10000 && (stat(path, &st) || !st.st_size); i++) usleep(1000);
    usleep(20000);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    check(log_open(&log, scratch_folder, "kill", 1, err) == 0, "%s", err);
    check(log_read(log.path, &curve, err) == 0 && curve.n > 0, "%d lines", curve.n);
    for (int i = 0; i < curve.n; i++) whole &= curve.step[i] == i && curve.train[i] > 0;
    check(whole, "all lines are there");
    log_curve_free(&curve);
    log_close(&log);
}

typedef struct {
    int steps, dry_run;
    double lr;
    char data[FLAG_STRING_SIZE];
} Config;
#define FIELD(NAME) offsetof(Config, NAME)
static const Flag table[] = {
#define SECTION NULL
    FLAG_INT("steps", steps, "100", 0, 0, "optimizer steps"),
    FLAG_FLOAT("lr", lr, "3e-4", 0, 0, "learning rate"),
    FLAG_TEXT("data", data, "a \"b\"", "text"),
#define ON_RESUME RESUME_START
    FLAG_SWITCH("dry-run", dry_run, "of this start"),
#undef ON_RESUME
};
#undef SECTION
#undef FIELD

/* Writes DIR/json/run.json twice, DIR the scratch folder, and stores its path. */
static void write_run_json(char *path) {
    RunLog log;
    Config c;
    const LogPair pairs[] = {
        {"version", "1.0 \"x\"", 0}, {"parameters", "124439808", 1}, {"gpu", NULL, 0}};
    flags_defaults(table, 4, &c);
    Config asked = c;
    asked.steps = 0;
    strcpy(asked.data, "\xff/caf\xc3\xa9\t");
    check(log_open(&log, scratch_folder, "json", 0, err) == 0, "%s", err);
    check(log_run_json(&log, table, 4, &c, &asked, "built-in", pairs, 3, err) == 0, "%s", err);
    check(log_run_json(&log, table, 4, &c, &asked, "built-in", pairs, 3, err) == 0, "again: %s",
          err);
    file_path(path, "%s/run.json", log.dir);
    log_close(&log);
}

static void test_run_json(void) {
    char path[FILE_PATH_SIZE];
    write_run_json(path);
    char *text = read_text(path);
    check(
        strstr(
            text,
            "{\n  \"version\": \"1.0 \\\"x\\\"\",\n  \"parameters\": 124439808,\n  \"gpu\": null,\n"
            "  \"machine\": {\"cpu\": \"") == text &&
            strstr(text,
                   "\"gemm\": \"built-in\"},\n  \"flags\": {\n    \"steps\": 100,\n    \"lr\": "
                   "0.0003,\n    \"data\": \"a \\\"b\\\"\",\n    \"dry-run\": false\n  },\n  "
                   "\"asked\": "
                   "{\n    \"steps\": \"0\",\n    \"lr\": \"0.0003\",\n    \"data\": "
                   "\"\\udcff/caf\xc3\xa9\\t\"\n  }\n}\n"),
        "run.json:\n%s", text);
    int depth = 0, opened = 0;
    for (char *p = text; *p; p++) {
        opened += *p == '{';
        depth += (*p == '{') - (*p == '}');
    }
    check(depth == 0 && opened == 4, "braces match");
    free(text);
}

/* What run.json says is read back to the byte; of a damaged file nothing is taken. */
static void test_read_run_json(void) {
    char path[FILE_PATH_SIZE], folder[FILE_PATH_SIZE], *lines = NULL;
    size_t size = 0;
    write_run_json(path);
    file_path(folder, "%s/json", scratch_folder);
    check(log_read_run_json(folder, &lines, &size, err) == 0, "%s", err);
    const char *expected =
        "version=1.0 \"x\"\nparameters=124439808\ngpu=null\nflags.steps=100\nflags.lr=0.0003\n"
        "flags.data=a \"b\"\nflags.dry-run=false\nasked.steps=0\nasked.lr=0.0003\n"
        "asked.data=\xff/caf\xc3\xa9\t\n";
    check(lines && size == strlen(expected) && !strcmp(lines, expected), "lines:\n%s", lines);
    free(lines);
    char *text = read_text(path);
    for (size_t n = 0; n + 2 < strlen(text); n++) { /* every cut but that of the last line end */
        char *cut = strdup(text);
        cut[n] = 0;
        write_text(path, "w", cut);
        int status = log_read_run_json(folder, &lines, &size, err);
        if (status != -1 || lines || size || !strstr(err, "run.json"))
            check(0, "cut to %zu bytes: %d %s", n, status, err);
        free(lines);
        free(cut);
    }
    static const char *const good[][2] = {
        {"{\"a\": {\"b\": [1, \"]}\\\"\", {}]}, \"c\": \"\\ud83d\\ude00\"}",
         "c=\xf0\x9f\x98\x80\n"},
        {"{\"asked\": {}, \"x\": -1.5e-3, \"a=b\": 1, \"n\": \"two\\nlines\"}", "x=-1.5e-3\n"},
    };
    for (int i = 0; i < 2; i++) {
        write_text(path, "w", good[i][0]);
        check(!log_read_run_json(folder, &lines, &size, err) && !strcmp(lines, good[i][1]),
              "%s gives %s", good[i][0], lines ? lines : err);
        free(lines);
    }
    static const char *const bad[] = {"",           "[]",
                                      "{",          "{\"a\"}",
                                      "{\"a\": }",  "{\"asked\": {\"a\": \"\\ud800\"}}",
                                      "{\"a\": 1",  "{\"asked\": {\"a\": [1]}}",
                                      "{\"a\": \"b"};
    for (int i = 0; i < 9; i++) {
        write_text(path, "w", bad[i]);
        check(log_read_run_json(folder, &lines, &size, err) == -1 && !lines && !size &&
                  strstr(err, "damaged"),
              "%s: %s", bad[i], err);
    }
    unlink(path);
    check(log_read_run_json(folder, &lines, &size, err) == 1 && !lines, "no file");
    free(text);
}

/* No reader of JSON goes past the end of a text, wherever that is cut. */
static void test_json_ends(void) {
    const char text[] = "{\"a\\u00e9\": [1, \"\\\\\", {\"b\": tru\\";
    for (size_t n = 0; n <= strlen(text); n++) {
        for (size_t from = 0; from < n; from++) {
            unsigned char *cut = (unsigned char *)calloc(n + 1, 1);
            char value[64];
            memcpy(cut, text, n);
            JsonReader skips = {cut, n, from}, reads = {cut, n, from};
            json_skip_value(&skips);
            json_read_scalar(&reads, value, sizeof value);
            if (skips.at > n || reads.at > n)
                check(0, "bytes %zu to %zu: read to %zu and %zu", from, n, skips.at, reads.at);
            free(cut);
        }
    }
    JsonReader backslash = {(unsigned char *)strdup("\"\\"), 2, 0};
    int status = json_skip_string(&backslash);
    check(status == -1 && backslash.at == 2, "%d, ends at %zu", status, backslash.at);
    free(backslash.data);
}

/* A line that waits for what is measured: it becomes the line that log_line_text writes of all
   numbers at once, with an extra of its own and without. */
static void test_measured(void) {
    static const char *const extras[] = {NULL, "{\"note\": \"\\\"val_loss\\\": null\"}", "{}"};
    static const double numbers[][4] = {
        {NAN, NAN, NAN, NAN}, {3.25, NAN, NAN, NAN}, {3.25, 1.125, 0.5, 0.25}, {NAN, NAN, 0, 0.25}};
    RunLog log;
    check(log_open(&log, scratch_folder, "measured", 0, err) == 0, "%s", err);
    for (int i = 0; i < 12; i++) {
        const double *n = numbers[i / 3];
        LogLine line = log_line_empty();
        line.step = 7;
        line.train_loss = 2.5;
        line.extra = extras[i % 3];
        char *text = log_line_text(&line);
        line.val_loss = n[0];
        line.val_bpb = n[1];
        line.eval_acc = n[2];
        line.eval_acc_norm = n[3];
        if (ftruncate(log.fd, 0)) perror(log.path);
        check(text && log_append_measured(&log, text, &line, err) == 0, "%s", err);
        char *whole = log_line_text(&line), *lines = read_text(log.path);
        check(!strcmp(lines, whole), "case %d: log:\n%s", i, lines);
        check(log_step_of(whole, strlen(whole)) == 7, "case %d is not a line: %s", i, whole);
        LogLine back = log_line_of(whole);
        check(back.step == 7 && back.train_loss == 2.5 && isnan(back.lr) &&
                  (isnan(n[0]) ? isnan(back.val_loss) : back.val_loss == n[0]),
              "case %d: read back", i);
        free(text);
        free(whole);
        free(lines);
    }
    log_close(&log);
}

/* Where what was measured stands in a line, and what of it a curve keeps: the last of each. */
static void test_measures(void) {
    RunLog log;
    LogCurve curve = {0};
    LogLine line = log_line_empty();
    check(log_open(&log, scratch_folder, "measures", 0, err) == 0, "%s", err);
    line.step = 1;
    line.val_loss = 2;
    line.val_bpb = 1.5;
    line.eval_acc = 0.25;
    line.eval_acc_norm = 0.75;
    line.extra = "{\"gpu_w\": 1}";
    char *text = log_line_text(&line);
    check(strstr(text, "\"tok_s\": null, \"extra\": {\"val_bpb\": 1.5, \"eval_acc\": 0.25, "
                       "\"eval_acc_norm\": 0.75, \"gpu_w\": 1}}\n"),
          "%s", text);
    free(text);
    log_line(&log, &line, err);
    line.extra = "{}";
    text = log_line_text(&line);
    check(strstr(text, "\"eval_acc_norm\": 0.75}}\n"), "an empty extra: %s", text);
    free(text);
    line.step = 2;
    line.val_bpb = 1.25;
    line.eval_acc = line.eval_acc_norm = NAN;
    log_line(&log, &line, err);
    put_line(&log, 3, 1, NAN);
    check(!log_read(log.path, &curve, err), "%s", err);
    check(curve.has_bpb && curve.bpb_step == 2 && curve.bpb == 1.25, "bits per byte %g of step %d",
          curve.bpb, (int)curve.bpb_step);
    check(curve.has_eval && curve.eval_step == 1 && curve.eval_acc == 0.25 &&
              curve.eval_acc_norm == 0.75,
          "accuracies %g, %g", curve.eval_acc, curve.eval_acc_norm);
    log_curve_free(&curve);
    log_close(&log);
}

static void test_numbers_text(void) {
    static const double seconds[] = {0, 0.4, 3, 59.6, 125, 3720, 183600, -1, NAN, INFINITY};
    static const char *const times[] = {"0s",    "0s",    "3s", "1m00s", "2m05s",
                                        "1h02m", "2d03h", "--", "--",    "--"};
    static const double values[] = {0, 834, 999.6, 9996, 52100, 1250000, 3.1e9, NAN};
    static const char *const counts[] = {"0",     "834",   "1.00k", "10.0k",
                                         "52.1k", "1.25M", "3.10G", "--"};
    char text[32];
    for (int i = 0; i < 10; i++) {
        time_text(text, seconds[i]);
        check(!strcmp(text, times[i]), "%g seconds: %s", seconds[i], text);
    }
    for (int i = 0; i < 8; i++) {
        count_text(text, values[i]);
        check(!strcmp(text, counts[i]), "%g: %s", values[i], text);
    }
}

static void test_progress(void) {
    Progress p;
    char text[2048];
    FILE *f = tmpfile();
    progress_begin(&p, f, 100, 1100);
    check(!p.live && isnan(progress_eta(&p)), "a file is no terminal, and nothing is known yet");
    p.last = 0;
    progress_time(&p, 101, 50); /* the slow first step must not count */
    check(isnan(progress_eta(&p)), "no estimate from the first step");
    for (int i = 2; i <= 100; i++) progress_time(&p, 100 + i, 49 + i);
    check(fabs(progress_eta(&p) - 900) < 1e-6, "900 steps of 1 s take %g s", progress_eta(&p));
    p.loss = 3.25;
    p.tok_s = 52100;
    p.utf8 = 0;
    for (int width = 0; width < 160; width++) {
        progress_text(&p, text, sizeof text, width);
        check((int)strlen(text) <= width, "%zu columns in %d: %s", strlen(text), width, text);
    }
    check(strstr(text, "step  200/1100 [") &&
              strstr(text, "18%  loss 3.2500  52.1k tok/s  ETA 15m00s"),
          "line: %s", text);
    p.utf8 = 1;
    progress_text(&p, text, sizeof text, 100);
    int columns = 0;
    for (char *c = text; *c; c++) columns += (*c & 0xC0) != 0x80;
    check(columns <= 100 && strstr(text, "\u2501"), "%d columns: %s", columns, text);
    progress_update(&p, 201, 3, 1);
    progress_print(&p, "step %d", 201);
    progress_clear(&p);
    rewind(f);
    check(fgets(text, sizeof text, f) && !strcmp(text, "step 201\n") &&
              !fgets(text, sizeof text, f),
          "a file gets plain lines only: %s", text);
    fclose(f);
}

/* The curve as text, which the caller frees. */
static char *curve_text(const double *train, const double *val, int n, int width, int height) {
    char *text = NULL;
    size_t size = 0;
    int64_t *steps = (int64_t *)calloc((size_t)n + 1, sizeof *steps);
    for (int i = 0; i < n; i++) steps[i] = 10 * i;
    FILE *f = tmpfile();
    curve_print(f, steps, train, val, n, width, height);
    size = (size_t)ftell(f);
    text = (char *)calloc(size + 1, 1);
    rewind(f);
    if (fread(text, 1, size, f) != size) text[0] = 0;
    fclose(f);
    free(steps);
    return text;
}

static void test_curve(void) {
    enum { N = 200 };
    double train[N], val[N], none[N];
    setenv("LC_ALL", "C", 1);
    check(!terminal_utf8(), "C is not UTF-8");
    for (int i = 0; i < N; i++) {
        train[i] = 3 + 7 * exp(-i / 10.0);
        val[i] = i % 20 ? NAN : train[i];
        none[i] = NAN;
    }
    char *text = curve_text(train, val, N, 60, 12);
    int lines = 0, wide = 0, ascii = 1;
    char *first = NULL, *stars = NULL;
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, lines++) {
        wide = max_int(wide, (int)(end - line));
        if (!lines) first = line;
    }
    for (char *c = text; *c; c++) ascii &= (unsigned char)*c < 0x80;
    stars = strchr(first, '*');
    check(lines == 13 && wide <= 60 && ascii && strstr(text, "step 1990"),
          "%d lines, of which the last two are the legend, up to %d wide:\n%s", lines, wide, text);
    /* The losses fall, so the star of the first row is left of the middle. */
    check(stars && stars - first < 30 && stars < strchr(first, '\n'), "it falls:\n%s", text);
    check(strstr(text, "above the scale: up to 10.00") && strstr(text, "train 3.0000"),
          "legend:\n%s", text);
    free(text);

    /* Steps that do not rise, as in a log made of two. */
    const int64_t wrong[3] = {7, 1000000000, 8};
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    curve_print(f, wrong, train, val, 3, 60, 12);
    fclose(f);
    check(strstr(text, "step 8") != NULL, "steps in a wrong order:\n%s", text);
    free(text);

    static const int sizes[][2] = {{0, 0}, {1, 1}, {9, 3}, {20, 5}, {500, 40}, {5000, 400}};
    for (int s = 0; s < 6; s++)
        for (int n = 0; n < 5; n++) { /* every size gives some output */
            text = curve_text(train, val, n, sizes[s][0], sizes[s][1]);
            check(*text != 0, "size %d, %d points", s, n);
            free(text);
        }
    text = curve_text(none, none, N, 60, 12);
    check(strstr(text, "no loss"), "nothing but NaN:\n%s", text);
    free(text);
    for (int i = 0; i < N; i++) train[i] = 2.5;
    text = curve_text(train, none, N, 60, 13);
    check(strstr(text, "|*****************") && strstr(text, "2.54 +"),
          "a constant is a straight line:\n%s", text);
    free(text);
    setenv("LC_ALL", "C.UTF-8", 1);
    check(terminal_utf8(), "C.UTF-8 is UTF-8");
    text = curve_text(train, none, N, 60, 12);
    check(strstr(text, "\u2514\u2500") != NULL, "Unicode:\n%s", text);
    free(text);
}

static const Test tests[] = {
    TEST(names),         TEST(lines),     TEST(overwrite), TEST(truncate), TEST(other_lines),
    TEST(only_others),   TEST(line_ends), TEST(full_disk), TEST(kill),     TEST(run_json),
    TEST(read_run_json), TEST(json_ends), TEST(measured),  TEST(measures), TEST(numbers_text),
    TEST(progress),      TEST(curve)};

int main(int argc, char **argv) {
    folder_make("cm_test_log");
    check_run(tests, COUNT_OF(tests), argc, argv);
    folder_remove();
    return check_done();
}
