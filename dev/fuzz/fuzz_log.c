/* log.jsonl as a resumed run reads it. The input is a step (8 bytes) and the file. */
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

/* The number of lines that the log has, none of them after `last`. */
static int count_lines(int64_t last) {
    LogCurve curve;
    require(log_read(path, &curve, err) == 0, "%s", err);
    int n = curve.n;
    for (int i = 0; i < n; i++)
        require(curve.step[i] <= last, "step %lld", (long long)curve.step[i]);
    log_curve_free(&curve);
    return n;
}

/* Opens the log for a resumed run, which drops what is no line; a second time drops nothing. */
static void open_twice(RunLog *log) {
    require(log_open(log, scratch_folder, "run", 1, err) == 0, "%s", err);
    int64_t size = log_size();
    int lines = count_lines(INT64_MAX);
    log_close(log);
    require(log_open(log, scratch_folder, "run", 1, err) == 0, "%s", err);
    require(log_size() == size && count_lines(INT64_MAX) == lines, "a second start drops lines");
}

static void fuzz_one(Input in) {
    RunLog log;
    int64_t step = (int64_t)(input_number(&in, 8) & INT64_MAX), before = (int64_t)in.n;
    char *copy = input_copy(in);
    write_bytes("run/log.jsonl", copy, in.n);
    free(copy);
    open_twice(&log);
    require(log_size() <= before, "the log has grown");
    require(log_truncate_after(&log, step, err) == 0, "%s", err);
    int lines = count_lines(step);
    LogLine line = log_line_empty();
    line.step = step;
    line.val_loss = 2;
    line.extra = "{\"gpu_w\": 1}";
    require(log_line(&log, &line, err) == 0, "%s", err);
    require(count_lines(step) == lines + 1, "a new line is not read");
    log_close(&log);
    /* A new run is refused, or begins with an empty log. */
    if (!log_open(&log, scratch_folder, "run", 0, err)) {
        require(log_size() == 0, "the log of a new run is not empty");
        log_close(&log);
    } else require(strstr(err, "--resume"), "%s", err);
}
