/*
The log and run.json as a resumed run reads them, and the curve that is drawn of the log. The input
is a step (8 bytes), log.jsonl, a line "%%", and run.json.
*/
#include "llmc/checkpoint.h" /* header_value, which reads what log_read_run_json makes */
#include "llmc/curve.h"
#include "llmc/log.h"

#include "fuzz.h"

static char err[ERR_LEN], path[FILE_PATH_SIZE];

static void fuzz_begin(void) {
    RunLog log;
    require(log_open(&log, scratch_folder, "run", 0, err) == 0, "%s", err);
    file_path(path, "%s", log.path);
    log_close(&log);
}

static int64_t log_size(void) {
    struct stat st;
    require(stat(path, &st) == 0, "there is no %s", path);
    return (int64_t)st.st_size;
}

/* Lines of a file of the run's folder that are of one kind; 0 without the file. */
static int64_t count_lines(const char *name, LogKind kind) {
    LogReader r;
    int64_t n = 0;
    if (log_begin(&r, in_folder(name), err)) return 0;
    while (log_next(&r)) n += r.kind == kind;
    require(log_end(&r, path, err) == 0, "%s", err);
    return n;
}

/* The lines of steps in the log, none of them after `last`. */
static int count_steps(int64_t last) {
    LogCurve curve;
    require(log_read(path, &curve, err) == 0, "%s", err);
    int n = curve.n;
    for (int i = 0; i < n; i++)
        require(curve.step[i] <= last, "step %lld", (long long)curve.step[i]);
    log_curve_free(&curve);
    return n;
}

/* No whole line of another writer is lost: it is in the log or in log.other. */
static void check_others(int64_t others) {
    int64_t kept = count_lines("run/log.jsonl", LOG_OTHER);
    int64_t moved = count_lines("run/log.other", LOG_OTHER);
    require(kept + moved == others, "%lld lines of others, then %lld and %lld", (long long)others,
            (long long)kept, (long long)moved);
}

/* Opens the log for a resumed run, which drops damaged lines at its end and no others; a second
   time drops nothing. */
static void open_twice(RunLog *log) {
    int steps = count_steps(INT64_MAX);
    require(log_open(log, ".", "run", 1, err) == 0, "%s", err);
    int64_t size = log_size();
    require(count_steps(INT64_MAX) == steps, "a start drops steps");
    log_close(log);
    require(log_open(log, ".", "run", 1, err) == 0, "%s", err);
    require(log_size() == size, "a second start drops lines");
}

/* Cuts the log after a step, and writes a line. */
static void cut_and_write(RunLog *log, int64_t step) {
    if (log_truncate_after(log, step, err)) {
        require(strstr(err, "out of order"), "%s", err);
        return;
    }
    int steps = count_steps(step);
    LogLine line = log_line_empty();
    line.step = step;
    line.val_loss = 2;
    line.extra = "{\"gpu_w\": 1}";
    require(log_line(log, &line, err) == 0, "%s", err);
    require(count_steps(step) == steps + 1, "a new line is not read");
}

/* Draws the losses of any log. */
static void draw_curve(void) {
    LogCurve curve;
    require(log_read(path, &curve, err) == 0, "%s", err);
    for (int width = 0; width <= 100; width += 50)
        curve_print(stdout, curve.step, curve.train, curve.val, curve.n, width, 16);
    log_curve_free(&curve);
}

static void read_run_json(void) {
    char *lines = NULL, value[FLAG_STRING_SIZE], dir[FILE_PATH_SIZE];
    size_t size = 0;
    file_path(dir, "%s", in_folder("run"));
    if (log_read_run_json(dir, &lines, &size, err)) {
        require(strstr(err, dir), "the message names no file: %s", err);
        return;
    }
    header_value(lines, size, "asked.steps", value, sizeof value);
    free(lines);
}

static void fuzz_one(Input in) {
    RunLog log;
    int64_t step = (int64_t)(input_number(&in, 8) & INT64_MAX);
    Input lines = input_part(&in);
    unlink(in_folder("run/log.other"));
    write_bytes("run/log.jsonl", lines.p, lines.n);
    write_bytes("run/run.json", in.p, in.n);
    read_run_json();
    draw_curve();
    int64_t others = count_lines("run/log.jsonl", LOG_OTHER);
    open_twice(&log);
    require(log_size() <= (int64_t)lines.n, "the log has grown");
    check_others(others);
    cut_and_write(&log, step);
    check_others(others);
    log_close(&log);
    /* A new run is refused, or begins with a log without steps. */
    if (!log_open(&log, ".", "run", 0, err)) {
        require(count_steps(INT64_MAX) == 0, "the log of a new run has steps");
        log_close(&log);
    } else require(strstr(err, "--resume"), "%s", err);
}
