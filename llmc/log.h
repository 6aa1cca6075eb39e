/*
The folder of a run: RUNS_DIR/NAME/ holds run.json, log.jsonl and checkpoints/.

run.json     the run's settings: every flag, and pairs that the caller passes (version, fingerprints
             of the data). The file is replaced as a whole.
log.jsonl    the run's course: one JSON object a line, in rising order of step,

    {"step": 10, "tokens": 81920, "train_loss": 4.2, "val_loss": null, "lr": 0.0003,
     "grad_norm": 1.5, "ms": 12.345, "tok_s": 6636000, "extra": {...}}

             The keys are always in this order. "mfu" and "mfu_stated" come before "extra" where the
             machine's peak is known; "extra" is there only if it is not empty. null means not
             measured, NaN or infinity. The keys before "ms" do not depend on the machine's speed:
             two logs are compared by cutting each line at `, "ms"`. Losses, norms and rates have 9
             digits, which name a float exactly.
*/
#ifndef CM_LOG_H
#define CM_LOG_H

#include "base.h"
#include "files.h"
#include "flags.h"
#include "json.h"

#include <sys/file.h>
#include <sys/utsname.h>

typedef struct {
    int fd; /* of log.jsonl, open for appending; -1 when closed */
    char dir[FILE_PATH_SIZE], path[FILE_PATH_SIZE], checkpoints[FILE_PATH_SIZE];
} RunLog;

/* NaN means "not measured"; start from log_line_empty. */
typedef struct {
    int64_t step, tokens;
    double train_loss, val_loss, lr, grad_norm, ms, tok_s;
    double mfu, mfu_stated; /* of the measured peak and of the data sheet's; 0: not known */
    const char *extra;      /* a JSON value, or NULL */
} LogLine;

static inline LogLine log_line_empty(void) {
    LogLine line;
    memset(&line, 0, sizeof line);
    line.train_loss = line.val_loss = line.lr = line.grad_norm = line.ms = line.tok_s = NAN;
    return line;
}

/* An entry of run.json: a string, or any JSON value if is_json. */
typedef struct {
    const char *key, *value;
    int is_json;
} LogPair;

/* The losses of a log, for drawing. */
typedef struct {
    int n;
    int64_t *step;
    double *train, *val; /* NaN where the log has null */
} LogCurve;

/* ---------------------------------------------------------------------------------------------- */
/* Reading lines                                                                                  */

/* The number after a key in a line that log_line wrote; NaN for null and for a missing key. */
static inline double log_number(const char *line, const char *key) {
    char quoted[64], *end;
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(line, quoted);
    if (!at) return NAN;
    at += strlen(quoted);
    double value = strtod(at, &end);
    return end > at ? value : NAN;
}

/* The step of a line; -1 if it is not a whole line, line end included, that log_line wrote. */
static inline int64_t log_step_of(const char *line, size_t length) {
    const char *start = "{\"step\": ";
    char *end;
    if (length < 12 || strncmp(line, start, strlen(start))) return -1;
    if (line[length - 1] != '\n' || line[length - 2] != '}' || strlen(line) != length) return -1;
    errno = 0;
    long long step = strtoll(line + strlen(start), &end, 10);
    if (errno || end == line + strlen(start) || (*end != ',' && *end != '}')) return -1;
    return (int64_t)step;
}

/* Reads `path` up to the first line that log_line did not write or whose step is after `last_step`.
   Sets *bytes to the bytes before that line and *newest to the last step in them (-1
   if none), and fills `curve` unless it is NULL. Returns 0, or -1 with a message. */
static inline int log_scan(const char *path, int64_t last_step, int64_t *bytes, int64_t *newest,
                           LogCurve *curve, char *err) {
    char *line = NULL;
    size_t size = 0;
    ssize_t length;
    int capacity = 0, status = 0;
    *bytes = 0;
    *newest = -1;
    FILE *f = fopen(path, "rb");
    if (!f) return fail(err, "cannot open %s: %s", path, strerror(errno));
    while ((length = getline(&line, &size, f)) > 0) {
        int64_t step = log_step_of(line, (size_t)length);
        if (step < 0 || step > last_step) break;
        *bytes += length;
        *newest = step;
        if (!curve) continue;
        if (curve->n == capacity) {
            capacity = capacity ? 2 * capacity : 256;
            size_t n = (size_t)capacity;
            curve->step = (int64_t *)realloc(curve->step, n * sizeof(int64_t));
            curve->train = (double *)realloc(curve->train, n * sizeof(double));
            curve->val = (double *)realloc(curve->val, n * sizeof(double));
            if (!curve->step || !curve->train || !curve->val) {
                status = fail(err, "out of memory while reading %s", path);
                break;
            }
        }
        curve->step[curve->n] = step;
        curve->train[curve->n] = log_number(line, "train_loss");
        curve->val[curve->n] = log_number(line, "val_loss");
        curve->n++;
    }
    /* getline ends at the end of the file, at an error, and without memory. */
    if (!status && length < 0 && !feof(f))
        status = fail(err, "cannot read %s: %s", path, strerror(errno));
    free(line);
    fclose(f);
    return status;
}

static inline void log_curve_free(LogCurve *curve) {
    free(curve->step);
    free(curve->train);
    free(curve->val);
    memset(curve, 0, sizeof *curve);
}

/* Reads the losses of a log, up to the first damaged or incomplete line. */
static inline int log_read(const char *path, LogCurve *curve, char *err) {
    int64_t bytes, newest;
    memset(curve, 0, sizeof *curve);
    if (!log_scan(path, INT64_MAX, &bytes, &newest, curve, err)) return 0;
    log_curve_free(curve);
    return -1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Opening                                                                                        */

/* The most characters of a run's name: file systems allow 255 bytes. */
enum { LOG_NAME_LENGTH = 200 };

/* Refuses a name that is not a plain name of a folder: returns -1 with a message. */
static inline int log_check_name(const char *name, char *err) {
    if (!*name) return fail(err, "--run: the name of the run is empty");
    if (*name == '.' || strchr(name, '/'))
        return fail(err,
                    "--run %.80s: give a plain name without a slash or a leading dot, it names "
                    "a folder",
                    name);
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            return fail(err, "--run: the name of the run holds a control character");
    if (strlen(name) > LOG_NAME_LENGTH)
        return fail(err, "--run %.80s...: the name is too long", name);
    return 0;
}

/* 1 if the folder has a checkpoint: a new run must not mix with the files of another run. */
static inline int log_has_checkpoints(const char *dir) {
    struct dirent *entry;
    int found = 0;
    DIR *folder = opendir(dir);
    while (folder && (entry = readdir(folder)) != NULL) {
        size_t length = strlen(entry->d_name);
        found |= length > 5 && strcmp(entry->d_name + length - 5, ".ckpt") == 0;
    }
    if (folder) closedir(folder);
    return found;
}

static inline void log_close(RunLog *log) {
    if (log->fd >= 0) close(log->fd);
    log->fd = -1;
}

/* Cuts log.jsonl after the lines of steps up to `step`. Call it on resume with the step of the
   checkpoint: the resumed run writes the later lines again. */
static inline int log_truncate_after(RunLog *log, int64_t step, char *err) {
    int64_t bytes, newest;
    if (log_scan(log->path, step, &bytes, &newest, NULL, err)) return -1;
    if (ftruncate(log->fd, (off_t)bytes))
        return fail(err, "cannot shorten %s: %s", log->path, strerror(errno));
    return 0;
}

/* Creates RUNS_DIR/NAME and opens its log. Without `resume` a run that has steps is refused, and a
   run that has none starts over. Returns 0, or -1 with a message. */
static inline int log_open(RunLog *log, const char *runs_dir, const char *name, int resume,
                           char *err) {
    int64_t bytes, newest;
    log->fd = -1;
    if (log_check_name(name, err)) return -1;
    file_path(log->dir, "%s/%s", runs_dir, name);
    file_path(log->path, "%s/log.jsonl", log->dir);
    file_path(log->checkpoints, "%s/checkpoints", log->dir);
    if (!log->path[0] || !log->checkpoints[0])
        return fail(err, "the path of the run %.80s... is too long", runs_dir);
    if (file_make_folders(log->checkpoints, err)) return -1;
    log->fd = file_open(log->path, O_RDWR | O_CREAT | O_APPEND);
    if (log->fd < 0) return fail(err, "cannot open %s: %s", log->path, strerror(errno));
    int status = 0;
    if (flock(log->fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        status =
            fail(err, "another process is writing to %s: wait for it, or use another --run name",
                 log->dir);
    if (!status) status = log_scan(log->path, INT64_MAX, &bytes, &newest, NULL, err);
    if (!status && !resume && (newest > 0 || log_has_checkpoints(log->checkpoints)))
        status = fail(err,
                      "the run %s already has steps: continue it with --resume, or use another "
                      "--run name",
                      log->dir);
    if (!status) status = log_truncate_after(log, resume ? INT64_MAX : -1, err);
    if (status) log_close(log);
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* Writing                                                                                        */

/* Appends whole lines, with one write unless the system takes only a part, so that neither a kill
   nor another process's lines come between. If the disk is full, the part that was written is cut
   off again. */
static inline int log_append_text(RunLog *log, const char *text, char *err) {
    size_t length = strlen(text);
    struct stat st;
    if (!length) return 0;
    if (text[length - 1] != '\n') return fail(err, "%s: a line without its end", log->path);
    if (fstat(log->fd, &st)) return fail(err, "cannot write %s: %s", log->path, strerror(errno));
    if (file_write_all(log->fd, text, length) == 0) return 0;
    int code = errno;
    if (ftruncate(log->fd, st.st_size))
        return fail(err, "cannot write %s: %s; its last line may be incomplete", log->path,
                    strerror(code));
    return fail(err, "cannot write %s: %s; free some space and continue with --resume", log->path,
                strerror(code));
}

static inline int log_line(RunLog *log, const LogLine *line, char *err) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return fail(err, "out of memory while writing %s", log->path);
    fprintf(f, "{\"step\": %lld, \"tokens\": %lld", (long long)line->step, (long long)line->tokens);
    fputs(", \"train_loss\": ", f);
    json_float(f, line->train_loss);
    fputs(", \"val_loss\": ", f);
    json_float(f, line->val_loss);
    fputs(", \"lr\": ", f);
    json_float(f, line->lr);
    fputs(", \"grad_norm\": ", f);
    json_float(f, line->grad_norm);
    if (isfinite(line->ms)) fprintf(f, ", \"ms\": %.3f", line->ms);
    else fputs(", \"ms\": null", f);
    if (isfinite(line->tok_s)) fprintf(f, ", \"tok_s\": %.0f", line->tok_s);
    else fputs(", \"tok_s\": null", f);
    if (line->mfu > 0) fprintf(f, ", \"mfu\": %.4f", line->mfu);
    if (line->mfu_stated > 0) fprintf(f, ", \"mfu_stated\": %.4f", line->mfu_stated);
    if (line->extra) fprintf(f, ", \"extra\": %s", line->extra);
    fputs("}\n", f);
    int status = fclose(f) ? fail(err, "out of memory while writing %s", log->path) : 0;
    if (!status) status = log_append_text(log, text, err);
    free(text);
    return status;
}

/* Syncs the log to the disk. Call it before a checkpoint is written: a power cut must not leave a
   checkpoint whose steps are missing in the log. */
static inline int log_sync(RunLog *log, char *err) {
    if (file_sync(log->fd) == 0 || errno == EINVAL) return 0;
    return fail(err, "cannot write %s: %s", log->path, strerror(errno));
}

/* The processor's name, as /proc/cpuinfo has it, or its architecture. */
static inline void log_cpu_name(char *name, size_t size) {
    char line[512];
    struct utsname host;
    snprintf(name, size, "%s", uname(&host) == 0 ? host.machine : "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = 0;
        snprintf(name, size, "%s", colon);
        break;
    }
    if (f) fclose(f);
}

/* {"cpu": ..., "cores": ..., ...} on one line. `gemm` names the library of the matrix products. */
static inline void log_machine_json(FILE *f, const char *gemm) {
    char cpu[512];
    log_cpu_name(cpu, sizeof cpu);
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    fputs("{\"cpu\": ", f);
    json_string(f, cpu);
    fprintf(f, ", \"cores\": %ld, \"threads\": %d, \"memory_gib\": %.1f, \"compiler\": ",
            sysconf(_SC_NPROCESSORS_ONLN), thread_count(), memory / (1 << 30));
#if defined(__clang__)
    json_string(f, __VERSION__);
#else
    json_string(f, "gcc " __VERSION__);
#endif
    fputs(", \"gemm\": ", f);
    json_string(f, gemm);
    fputc('}', f);
}

/* Writes run.json: the pairs in their order, the machine, then the flags, one a line. Returns 0, or
   -1 with a message. */
static inline int log_run_json(RunLog *log, const Flag *flags, int n, const void *cfg,
                               const char *gemm, const LogPair *pairs, int n_pairs, char *err) {
    char path[FILE_PATH_SIZE], *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return fail(err, "out of memory while writing run.json");
    fputs("{\n", f);
    for (int i = 0; i < n_pairs; i++) {
        fputs("  ", f);
        json_string(f, pairs[i].key);
        fputs(": ", f);
        if (!pairs[i].value) fputs("null", f);
        else if (pairs[i].is_json) fputs(pairs[i].value, f);
        else json_string(f, pairs[i].value);
        fputs(",\n", f);
    }
    fputs("  \"machine\": ", f);
    log_machine_json(f, gemm);
    fputs(",\n  \"flags\": {", f);
    for (int i = 0; i < n; i++) {
        fprintf(f, "%s\n    \"%s\": ", i ? "," : "", flags[i].name);
        flags_json_value(f, &flags[i], cfg);
    }
    fputs("\n  }\n}\n", f);
    if (fclose(f)) {
        free(text);
        return fail(err, "out of memory while writing run.json");
    }
    file_path(path, "%s/run.json", log->dir);
    int status = file_replace(path, text, size, err);
    free(text);
    return status;
}

#endif
