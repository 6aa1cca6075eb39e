/* Tests of what a person sees of a run: lines wrapped to a terminal, the progress line when the
   terminal is resized or lost, words for the shell, the end of a run, the report of a
   divergence. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* posix_openpt */
#endif
#include "config_of.h"
#include "folder.h"
#include "llmc/cpu/backend.h"
#include "llmc/guard.h"
#include "llmc/report.h"

#include <signal.h>
#include <sys/wait.h>

/* ---------------------------------------------------------------------------------------------- */
/* What was written                                                                               */

/* A stream in memory. */
typedef struct {
    FILE *f;
    char *text;
    size_t size;
} Capture;

static void capture_open(Capture *c) {
    memset(c, 0, sizeof *c);
    c->f = open_memstream(&c->text, &c->size);
    if (!c->f) die("out of memory");
}

/* The text since capture_open, for the caller to free. */
static char *captured(Capture *c) {
    fclose(c->f);
    return c->text;
}

/* A terminal of the system: what is written to `out`, 4096 bytes at most, is read back by
   screen_read. */
typedef struct {
    int fd;
    FILE *out;
    char text[1 << 16];
} Screen;

static void screen_resize(Screen *s, int width) {
    struct winsize size = {24, (unsigned short)width, 0, 0};
    if (ioctl(s->fd, TIOCSWINSZ, &size)) die("cannot resize a terminal: %s", strerror(errno));
}

static int screen_open(Screen *s, int width) {
    memset(s, 0, sizeof *s);
    s->fd = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (s->fd < 0 || grantpt(s->fd) || unlockpt(s->fd)) return -1;
    s->out = fopen(ptsname(s->fd), "r+");
    if (!s->out) return -1;
    screen_resize(s, width);
    return 0;
}

/* What was written since the last call. A terminal makes "\r\n" of a line end; here it is "\n". */
static const char *screen_read(Screen *s) {
    size_t used = 0;
    ssize_t n;
    fflush(s->out);
    while ((n = read(s->fd, s->text + used, sizeof s->text - 1 - used)) > 0) used += (size_t)n;
    s->text[used] = 0;
    char *to = s->text;
    for (char *c = s->text; *c; c++)
        if (!(c[0] == '\r' && c[1] == '\n')) *to++ = *c;
    *to = 0;
    return s->text;
}

static void screen_close(Screen *s) {
    fclose(s->out);
    close(s->fd);
}

static int begins(const char *text, const char *with) {
    return strncmp(text, with, strlen(with)) == 0;
}
static int ends(const char *text, const char *with) {
    size_t n = strlen(text), m = strlen(with);
    return n >= m && strcmp(text + n - m, with) == 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* Text                                                                                           */

static void test_columns(void) {
    static const struct {
        const char *text;
        int columns;
    } cases[] = {{"", 0},
                 {"plain", 5},
                 {"caf\xc3\xa9", 4},
                 {"cafe\xcc\x81", 4},             /* e and a combining accent */
                 {"\xe6\x97\xa5\xe6\x9c\xac", 4}, /* two wide characters */
                 {"\xf0\x9f\x98\x80!", 3},        /* a picture */
                 {"\xe2\x94\x81\xe2\x95\xb8", 2}, /* two cells of the bar */
                 {"\x1b[36mcolor\x1b[0m", 5},     /* escape sequences */
                 {"\xff\xfe", 2},                 /* not UTF-8 */
                 {"\xe6\x97", 2},                 /* cut off */
                 {"open \x1b[36", 5}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        int columns = text_columns(cases[i].text, strlen(cases[i].text));
        check(columns == cases[i].columns, "\"%s\" has %d columns, not %d", cases[i].text, columns,
              cases[i].columns);
    }
}

/* Text that print_wrapped wrote, without line ends and indents, is the text it was given. */
static void check_lines(const char *label, const char *text, int width) {
    char joined[1024] = "";
    int widest = 0, lines = 0, indent = width >= 36 ? 9 : 2, indented = 1;
    Capture c;
    capture_open(&c);
    print_wrapped(c.f, label, text, width);
    char *printed = captured(&c), *save = NULL, *copy = strdup(printed);
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        widest = max_int(widest, text_columns(line, strlen(line)));
        if (lines++) {
            indented &= (int)strspn(line, " ") == indent;
            line += strspn(line, " ");
            strcat(joined, " ");
        }
        strcat(joined, line);
    }
    char expected[1024];
    snprintf(expected, sizeof expected, "%-8s %s", label, text);
    check(!strcmp(joined, expected), "width %d changes the words:\n%s", width, printed);
    check(widest <= width, "%d columns in %d:\n%s", widest, width, printed);
    check(indented, "width %d: an indent is not %d:\n%s", width, indent, printed);
    check((lines == 1) == (text_columns(expected, strlen(expected)) <= width),
          "width %d: %d lines:\n%s", width, lines, printed);
    free(copy);
    free(printed);
}

static void test_wrap(void) {
    static const char *const texts[] = {
        "CPU, 1 thread, matrix products by oneDNN 2.6.3, fp32",
        "0.80M parameters: 4 layers, width 128, 4 heads of 32, RMSNorm, RoPE, QK-norm, ReLU^2 MLP "
        "of 512, vocabulary 256",
        "caf\xc3\xa9s/\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e.txt: 1003854 training and 111540 "
        "validation tokens \xe2\x80\x94 \xf0\x9f\x98\x80 \xf0\x9f\x98\x80 \xf0\x9f\x98\x80",
        "short"};
    static const int widths[] = {30, 50, 80, 200};
    for (int i = 0; i < COUNT_OF(texts); i++) {
        for (int w = 0; w < 4; w++) check_lines("machine", texts[i], widths[w]);
        for (int width = 36; width < 120; width++) check_lines("data", texts[i], width);
    }
    static const struct {
        const char *label, *text;
        int width;
        const char *printed;
    } cases[] = {
        {"data", "a b", 0, "data     a b\n"},
        /* A flag keeps its value; a word that does not fit stays whole. */
        {NULL, "--lr 0.1 --adam-eps 1e-8 --qk-norm off", 21,
         "--lr 0.1\n  --adam-eps 1e-8\n  --qk-norm off\n"},
        {NULL, "--resume --run a", 9, "--resume\n  --run a\n"},
        {NULL, "in /a/very/long/path here", 10, "in\n  /a/very/long/path\n  here\n"},
        /* Fields stay whole too. */
        {NULL, "step 1/9  train 4.1  1 ms", 19, "step 1/9  train 4.1\n  1 ms\n"},
        {NULL, "step 1/9  train 4.1  1 ms", 18, "step 1/9\n  train 4.1  1 ms\n"},
        {NULL, "one two\nthree four five", 10, "one two\nthree four\n  five\n"},
        {NULL, "--lr\n0.1 --x", 0, "--lr\n0.1 --x\n"},
        {"peak memory", "1 MiB", 80, "peak memory 1 MiB\n"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Capture c;
        capture_open(&c);
        print_wrapped(c.f, cases[i].label, cases[i].text, cases[i].width);
        char *printed = captured(&c);
        check(!strcmp(printed, cases[i].printed), "width %d: \"%s\"", cases[i].width, printed);
        free(printed);
    }
}

/* A terminal gets wrapped lines and whole commands; a file gets one line each. */
static void test_terminal_lines(void) {
    static Screen s;
    if (screen_open(&s, 20)) {
        printf("skipped: this machine has no pseudo-terminals\n");
        return;
    }
    print_line(s.out, NULL, "one two three %s five", "four");
    const char *text = screen_read(&s);
    check(!strcmp(text, "one two three four\n  five\n"), "20 columns: \"%s\"", text);
    print_command(s.out, "go on with:", "./train_gpt --run a --resume");
    text = screen_read(&s);
    check(!strcmp(text, "go on with:\n  ./train_gpt --run a --resume\n"), "20 columns: \"%s\"",
          text);
    screen_resize(&s, 80);
    print_command(s.out, "go on with:", "./train_gpt --run a --resume");
    text = screen_read(&s);
    check(!strcmp(text, "go on with: ./train_gpt --run a --resume\n"), "80 columns: \"%s\"", text);
    screen_resize(&s, 60);
    flags_help(s.out, "usage: train_gpt [flags]    With none: GPT on TinyShakespeare.",
               config_flags, 12); /* more would fill the terminal before it is read */
    char *save = NULL, *copy = strdup(screen_read(&s));
    int widest = 0;
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        widest = max_int(widest, (int)strlen(line));
    check(widest > 50 && widest < 60, "--help has lines of %d columns in 60", widest);
    free(copy);
    screen_close(&s);

    Capture c;
    capture_open(&c);
    print_line(c.f, "library", "%0200d %0200d", 0, 0);
    print_command(c.f, "go on with:", "./train_gpt --run a --resume");
    char *printed = captured(&c);
    int lines = 0;
    for (const char *p = printed; *p; p++) lines += *p == '\n';
    check(lines == 2, "%d lines, not 2:\n%s", lines, printed);
    free(printed);
}

/* The shell reads each word back as it was. */
static void test_shell_text(void) {
    static const struct {
        const char *word, *text;
    } cases[] = {{"plain-1_2.3/x:y@z%+=,", "plain-1_2.3/x:y@z%+=,"},
                 {"", "''"},
                 {"a b", "'a b'"},
                 {"don't", "'don'\\''t'"},
                 {"$HOME", "'$HOME'"},
                 {"~", "'~'"},
                 {"a;b&c|d", NULL},
                 {"\"\\`*?[x]{1,2}!#<>()", NULL},
                 {"caf\xc3\xa9", NULL},
                 {"two\nlines", NULL},
                 {"''", NULL}};
    char text[256], command[300], back[256];
    for (int i = 0; i < COUNT_OF(cases); i++) {
        shell_text(text, sizeof text, cases[i].word);
        check(!cases[i].text || !strcmp(text, cases[i].text), "%s: %s", cases[i].word, text);
        snprintf(command, sizeof command, "printf %%s %s", text);
        FILE *f = popen(command, "r");
        size_t n = f ? fread(back, 1, sizeof back - 1, f) : 0;
        back[n] = 0;
        check(f && pclose(f) == 0 && !strcmp(back, cases[i].word), "%s is read as %s",
              cases[i].word, back);
    }
    check(!*shell_text(text, 5, "a b c"), "a word that does not fit is left out: %s", text);
    check(!strcmp(shell_text(text, 6, "a b"), "'a b'"), "one that fits is not: %s", text);
}

/* ---------------------------------------------------------------------------------------------- */
/* The progress line                                                                              */

static Progress progress_at(FILE *out, int64_t step, int64_t total) {
    Progress p;
    progress_begin(&p, out, step, total);
    p.loss = 3.25;
    p.tok_s = 52100;
    p.utf8 = 1;
    p.color = 0;
    return p;
}

/* Before a line is drawn or cleared at a new width, the rows that the old one takes are cleared. */
static void test_resize(void) {
    static Screen s;
    setenv("TERM", "xterm", 1);
    if (screen_open(&s, 80)) {
        printf("skipped: this machine has no pseudo-terminals\n");
        return;
    }
    Progress p = progress_at(s.out, 120, 1200);
    check(p.live, "a terminal is live");
    progress_draw(&p);
    const char *text = screen_read(&s);
    check(begins(text, "\rstep  120/1200 ") && ends(text, "\x1b[K") && !strstr(text, "\x1b[J"),
          "the first line: %s", text + 1);
    int columns = p.columns;
    check(columns == text_columns(text + 1, strlen(text) - 4) && columns > 70 && columns < 80,
          "%d columns of 80", columns);
    progress_draw(&p);
    text = screen_read(&s);
    check(begins(text, "\rstep") && !strstr(text, "\x1b[J"), "an equal width clears nothing: %s",
          text + 1);

    /* The bar's line of more than 70 columns takes 1 + (columns - 1) / width rows. */
    static const int widths[] = {40, 25, 100, 39, 79};
    for (int i = 0; i < COUNT_OF(widths); i++) {
        char expected[32];
        int rows = 1 + (p.columns - 1) / widths[i];
        if (rows > 1) snprintf(expected, sizeof expected, "\r\x1b[%dA\x1b[Jstep ", rows - 1);
        else strcpy(expected, "\r\x1b[Jstep ");
        screen_resize(&s, widths[i]);
        progress_draw(&p);
        text = screen_read(&s);
        check(begins(text, expected), "width %d, %d rows: %s", widths[i], rows, text + 1);
        check(p.columns < widths[i], "%d columns in %d", p.columns, widths[i]);
    }
    screen_resize(&s, 40);
    progress_print(&p, "step  120/1200  train 3.25  validation 3.5  70 ms");
    text = screen_read(&s);
    check(begins(text, "\r\x1b[1A\x1b[J\x1b[Kstep  120/1200  train 3.25\n  validation 3.5  70 ms\n"
                       "\rstep  120/1200"),
          "a line of text at a new width: %s", text + 1);
    progress_clear(&p);
    text = screen_read(&s);
    check(!strcmp(text, "\r\x1b[K"), "clear: %s", text + 1);
    progress_clear(&p);
    check(!*screen_read(&s), "nothing is cleared twice");
    screen_close(&s);
}

/* Work between steps: shown on the progress line, told after half a minute of silence in a file,
   and left out of the time of a step. */
static void test_busy(void) {
    static Screen s;
    setenv("TERM", "xterm", 1);
    if (!screen_open(&s, 20)) {
        Progress p = progress_at(s.out, 1, 10);
        progress_busy(&p, "validation", 0.347);
        const char *text = screen_read(&s);
        check(!strcmp(text, "\rvalidation  34%\x1b[K"), "a narrow terminal: %s", text + 1);
        p.drawn = now_seconds() + 1000; /* however slow this machine is */
        progress_busy(&p, "validation", 0.36);
        check(!*screen_read(&s), "it is drawn at most ten times a second");
        p.drawn = -1;
        screen_resize(&s, 40);
        progress_busy(&p, "validation", 0.5);
        text = screen_read(&s);
        check(begins(text, "\r\x1b[Jvalidation \xe2\x94\x81") && ends(text, "  50%\x1b[K"),
              "with a bar: %s", text + 1);
        progress_print(&p, "done");
        text = screen_read(&s);
        check(begins(text, "\r\x1b[Kdone\n\rstep  1/10"), "a line of text replaces it: %s",
              text + 1);
        screen_close(&s);
    }
    Capture c;
    capture_open(&c);
    Progress p = progress_at(c.f, 1, 10);
    progress_busy(&p, "validation", 0);
    fflush(c.f);
    check(c.size == 0, "a file hears nothing at first: %s", c.text);
    p.busy -= 31;
    progress_busy(&p, "validation", 0.1);
    fflush(c.f);
    check(c.size == 0, "31 seconds of work, but a line before: %s", c.text);
    p.busy = p.last = p.printed = now_seconds() - 31;
    progress_busy(&p, "validation", 0.347);
    progress_busy(&p, "validation", 0.36);
    char *printed = captured(&c);
    check(!strcmp(printed, "validation  34 %\n"), "one line after 31 seconds: %s", printed);
    free(printed);

    /* Steps of 1 s with 5 s of validation after every tenth. */
    progress_begin(&p, stdout, 0, 100);
    p.last = 0;
    progress_time(&p, 1, 90); /* the first step */
    double now = 90;
    for (int step = 2; step <= 50; step++) {
        progress_time(&p, step, ++now);
        if (step % 10) continue;
        p.busy = now;
        progress_rest(&p, now += 5);
    }
    check(fabs(p.average / p.weight - 1) < 1e-9, "a step takes %g s", p.average / p.weight);
    /* What is left: 50 steps of 1 s, and 4 validations for 50 steps, of which the last is not yet
       counted. */
    check(fabs(progress_eta(&p) - 70) < 1e-9, "%g s are left", progress_eta(&p));
}

/* Runs `write` with stderr in a file, and returns what it wrote there, for the caller to free. */
static char *errors_of(void (*write_to)(FILE *), FILE *out) {
    fflush(stderr);
    int saved = dup(2), file = open(in_folder("stderr"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(file, 2);
    write_to(out);
    fflush(stderr);
    dup2(saved, 2);
    char *text = (char *)calloc(1, 4096);
    ssize_t n = pread(file, text, 4095, 0);
    (void)n;
    close(file);
    close(saved);
    return text;
}

static int lost_updates;
static void print_ten(FILE *out) {
    Progress p = progress_at(out, 0, 10);
    p.log = "runs/a/log.jsonl";
    for (int i = 1; i <= 10; i++) {
        progress_print(&p, "step %d", i);
        progress_busy(&p, "validation", 0.5);
        progress_update(&p, i, 3, 1);
        lost_updates += p.lost;
    }
    progress_clear(&p);
    print_line(out, NULL, "the end");
    output_lost(out, p.log);
}

static void test_lost(void) {
    int ends_of_pipe[2];
    signal(SIGPIPE, SIG_IGN);
    if (pipe(ends_of_pipe)) die("no pipe");
    close(ends_of_pipe[0]);
    FILE *out = fdopen(ends_of_pipe[1], "w");
    lost_updates = 0;
    char *text = errors_of(print_ten, out);
    check(!strcmp(text, "note: the output can no longer be written (Broken pipe); the run goes on, "
                        "its log is runs/a/log.jsonl\n"),
          "one note: %s", text);
    check(lost_updates == 10, "the output was lost in %d of 10 updates", lost_updates);
    fclose(out);
    free(text);
    out = fopen("/dev/full", "w");
    if (out) {
        text = errors_of(print_ten, out);
        check(strstr(text, "(No space left on device)") &&
                  strstr(text, "log.jsonl\n") + 10 == text + strlen(text),
              "a full disk: %s", text);
        free(text);
        fclose(out);
    }
    out = tmpfile();
    text = errors_of(print_ten, out);
    check(!*text && ftell(out) > 0, "a file is not lost: %s", text);
    free(text);
    fclose(out);

    /* A terminal that is closed while its line is shown. */
    static Screen s;
    setenv("TERM", "xterm", 1);
    if (screen_open(&s, 80)) return;
    close(s.fd);
    text = errors_of(print_ten, s.out);
    check(strstr(text, "note: the output") == text, "a closed terminal: %s", text);
    free(text);
    fclose(s.out);
}

/* ---------------------------------------------------------------------------------------------- */
/* The run                                                                                        */

static void test_steps(void) {
    static Screen s;
    Config config = config_of("--steps 1200 --print-every 40", "");
    LogLine start = log_line_empty(), line = log_line_empty();
    start.val_loss = 5.5452;
    line.step = 120;
    line.train_loss = 4.1234;
    line.grad_norm = 0.53;
    line.ms = 76;
    line.tok_s = 27000;
    Capture c;
    capture_open(&c);
    Progress p = progress_at(c.f, 119, 1200);
    p.timed = 1;
    p.average = p.weight = 0.076;
    p.step = 120;
    print_step(&p, &config, &start);
    print_step(&p, &config, &line);
    line.step = 121;
    print_step(&p, &config, &line); /* not one of every 40 */
    line.val_loss = 4.2;
    line.mfu = 0.4125;
    print_step(&p, &config, &line);
    line.val_bpb = 1.25;
    line.eval_acc = 0.25;
    line.eval_acc_norm = 0.5;
    print_step(&p, &config, &line);
    line.val_loss = line.val_bpb = NAN; /* evaluated, not validated */
    line.mfu = 0;
    print_step(&p, &config, &line);
    line.val_loss = 4.2;
    line.eval_acc = line.eval_acc_norm = NAN;
    line.mfu = 0.4125;
    char *printed = captured(&c);
    check(
        !strcmp(printed,
                "step    0/1200  validation 5.5452\n"
                "step  120/1200  train 4.1234  norm 0.53  76 ms  27000 tok/s  ETA 18m00s\n"
                "step  121/1200  train 4.1234  validation 4.2000  76 ms  27000 tok/s  mfu 41.2 "
                "%  ETA 18m00s\n"
                "step  121/1200  train 4.1234  validation 4.2000 (1.2500 bits/byte)  accuracy "
                "0.2500 (norm 0.5000)  76 ms  27000 tok/s  mfu 41.2 %  ETA 18m00s\n"
                "step  121/1200  train 4.1234  accuracy 0.2500 (norm 0.5000)  76 ms  27000 tok/s  "
                "ETA 18m00s\n"),
        "a file:\n%s", printed);
    free(printed);
    setenv("TERM", "xterm", 1);
    if (screen_open(&s, 70)) return;
    p = progress_at(s.out, 121, 1200);
    print_step(&p, &config, &line);
    line.val_loss = NAN;
    line.step = 160;
    print_step(&p, &config, &line);
    const char *text = screen_read(&s);
    check(!strcmp(text, "step  121/1200  train 4.1234  validation 4.2000  76 ms  27000 tok/s\n"
                        "  mfu 41.2 %\n"),
          "a terminal gets steps with a validation only, without ETA:\n%s", text);
    screen_close(&s);
}

/* Bits per byte of the last validation, and the last accuracy, at the end of a run. */
static void test_measures(void) {
    int64_t step[2] = {0, 10};
    double train[2] = {NAN, 5}, val[2] = {5.5452, 4.5};
    LogCurve curve = {.n = 2, .step = step, .train = train, .val = val};
    Capture c;
    capture_open(&c);
    curve.has_bpb = 1;
    curve.bpb = 1.25;
    print_validation(c.f, &curve, "token"); /* of another validation, at step 0 */
    curve.bpb_step = 10;
    print_validation(c.f, &curve, "token");
    print_accuracy(c.f, &curve, 12);
    curve.has_eval = 1;
    curve.eval_acc_norm = 0.5;
    curve.eval_step = 8;
    print_accuracy(c.f, &curve, 0);
    print_accuracy(c.f, &curve, 12);
    char *printed = captured(&c);
    check(!strcmp(printed,
                  "validation loss 4.5000 nats per token after 10 steps\n"
                  "validation loss 4.5000 nats per token, 1.2500 bits per byte, after 10 steps\n"
                  "accuracy 0.0000, by the mean loss per token 0.5000, on 12 examples after 8 "
                  "steps\n"),
          "%s", printed);
    free(printed);
}

static void check_validation(int n, const double *val, const char *expected) {
    int64_t step[4] = {0, 10, 20, 30};
    double train[4] = {NAN, 5, 4, 3}, copy[4];
    LogCurve curve = {.n = n, .step = step, .train = train, .val = copy};
    memcpy(copy, val, sizeof copy);
    Capture c;
    capture_open(&c);
    print_validation(c.f, &curve, "byte");
    char *printed = captured(&c);
    check(!strcmp(printed, expected), "%s", printed);
    free(printed);
}

static void test_validation(void) {
    static const double falls[4] = {5.5452, 4.5, 4.25, 4}, rises[4] = {5.5452, 4.5, 4.75, 5};
    static const double early[4] = {5.5452, NAN, NAN, NAN}, none[4] = {NAN, NAN, NAN, NAN};
    static const double worse[4] = {1, 4.5, NAN, NAN};
    check_validation(4, falls, "validation loss 4.0000 nats per byte after 30 steps\n");
    check_validation(4, rises,
                     "validation loss 5.0000 nats per byte after 30 steps; lowest 4.5000 after "
                     "10\n");
    check_validation(
        3, early, "no validation yet after step 0 (5.5452 nats per byte, the initial weights)\n");
    check_validation(4, none, "no validation yet\n");
    check_validation(0, none, "no validation yet\n");
    check_validation(3, worse, "validation loss 4.5000 nats per byte after 10 steps\n");
    Capture c;
    capture_open(&c);
    print_times(c.f, 125, 60, 800, 1638400);
    print_times(c.f, 3, 0, 0, 0);
    char *printed = captured(&c);
    check(!strcmp(printed, "time     2m05s since the start, 1m00s of them in 800 steps of 75 ms; "
                           "1.64M tokens read so far\n"
                           "time     3s since the start, 0s of them in 0 steps; 0 tokens read so "
                           "far\n"),
          "%s", printed);
    free(printed);
}

static void check_commands(const Config *c, const char *program, const char *checkpoints,
                           int stopped, const char *expected) {
    Capture out;
    capture_open(&out);
    print_commands(out.f, c, program, checkpoints, 14, stopped);
    char *printed = captured(&out);
    check(!strcmp(printed, expected), "not\n%sbut\n%s", expected, printed);
    free(printed);
}

/* Hints name --runs-dir only where it matters, are quoted, and are true: what needs a checkpoint is
   printed where there is one. */
static void test_commands(void) {
    char folder[FILE_PATH_SIZE], none[FILE_PATH_SIZE], program[FILE_PATH_SIZE];
    char expected[4 * FILE_PATH_SIZE];
    char err[ERR_LEN];
    Config c = config_of("--steps 20 --run a", "");
    file_path(folder, "%s/some", scratch_folder);
    file_path(none, "%s/none", scratch_folder);
    if (file_make_folders(folder, err)) die("%s", err);
    write_bytes("some/step_00000010.ckpt", "x", 1);
    check_commands(&c, "./train_gpt", none, 0, "draw it with: python3 scripts/plot.py runs/a\n");
    check_commands(&c, "./train_gpt", none, SIGTERM,
                   "draw it with: python3 scripts/plot.py runs/a\n"
                   "stopped by signal 15 after step 14 of 20; no checkpoint was kept, so its steps "
                   "are lost and --resume begins anew\n");
    check_commands(&c, "./train_gpt", folder, SIGINT,
                   "draw it with: python3 scripts/plot.py runs/a\n"
                   "sample from it with: ./generate --run a\n"
                   "stopped by signal 2 after step 14 of 20; continue from step 10 with: "
                   "./train_gpt --run a --resume\n");
    write_bytes("some/step_00000014.ckpt", "x", 1);
    write_bytes("generate", "x", 1);
    file_path(program, "%s/train_gpt", scratch_folder);
    strcpy(c.run, "it's");
    strcpy(c.runs_dir, "my runs");
    c.log_groups = 1;
    snprintf(expected, sizeof expected,
             "draw it with: python3 scripts/plot.py 'my runs/it'\\''s'\n"
             "sample from it with: %s/generate --run 'it'\\''s' --runs-dir 'my runs'\n"
             "stopped by signal 2 after step 14 of 20; continue with: %s --run 'it'\\''s' "
             "--resume --runs-dir 'my runs'\n",
             scratch_folder, program);
    check_commands(&c, program, folder, SIGINT, expected);
    strcpy(c.run, "--x");
    strcpy(c.runs_dir, "-y");
    check_commands(&c, "train_gpt_cuda", folder, 0,
                   "draw it with: python3 scripts/plot.py ./-y/--x\n"
                   "sample from it with: ./generate_cuda --run=--x --runs-dir -y\n");
}

static void test_diverged(void) {
    char text[FILE_PATH_SIZE + 64], folder[FILE_PATH_SIZE], err[ERR_LEN];
    file_path(folder, "%s/wild", scratch_folder);
    guard_left(text, sizeof text, folder);
    check(strstr(text, "no checkpoint of it yet (--checkpoint-every N"), "no folder: %s", text);
    if (file_make_folders(folder, err)) die("%s", err);
    guard_left(text, sizeof text, folder);
    check(strstr(text, "no checkpoint of it yet (--checkpoint-every N"), "empty folder: %s", text);
    write_bytes("wild/step_00000300.ckpt", "x", 1);
    write_bytes("wild/step_00000600.ckpt", "x", 1);
    write_bytes("wild/step_00000900.ckpt.tmp-1", "x", 1);
    guard_left(text, sizeof text, folder);
    check(ends(text, "/wild/step_00000600.ckpt") && strstr(text, "newest checkpoint is /tmp/"),
          "two: %s", text);
}

/* Of a preset, what the command line did not override; nothing of the defaults. */
static void test_presets(void) {
    FlagNote notes[CONFIG_PRESETS];
    Config c = config_of("--preset gpt2 --layers 3 --lr-final 0.1 --act relu2", "");
    Capture out;
    capture_open(&out);
    print_preset(out.f, &c);
    char *printed = captured(&out);
    check(begins(printed, "preset   gpt2: --width 768 --heads 12 ") &&
              ends(printed, " --warmup 100 --lr-final 0.1\n") && !strstr(printed, "--layers") &&
              !strstr(printed, "--act "),
          "%s", printed);
    free(printed);
    c = config_of("--layers 3", "");
    capture_open(&out);
    print_preset(out.f, &c);
    printed = captured(&out);
    check(!*printed, "the defaults: %s", printed);
    free(printed);
    preset_notes(notes);
    check(!strcmp(notes[0].title, "tiny") && !strcmp(notes[1].title, "gpt2") &&
              !strcmp(notes[3].title, "speedrun") && begins(notes[3].text, "--layers 12 "),
          "notes: %s, %s", notes[1].title, notes[3].text);
}

static const Test tests[] = {
    TEST(columns),  TEST(wrap),     TEST(terminal_lines), TEST(shell_text), TEST(resize),
    TEST(busy),     TEST(lost),     TEST(steps),          TEST(measures),   TEST(validation),
    TEST(commands), TEST(diverged), TEST(presets)};

int main(int argc, char **argv) {
    folder_make("cm_test_terminal");
    check_run(tests, COUNT_OF(tests), argc, argv);
    folder_remove();
    return check_done();
}
