/*
The folder of a run: RUNS_DIR/NAME/ holds run.json, log.jsonl and checkpoints/.

run.json     the run's settings: pairs that the caller passes (version, fingerprints of the data),
             "flags", every flag resolved, and "asked", the flags that a resumed run takes over, as
             they were given. The file is replaced as a whole.
log.jsonl    the run's course: one JSON object a line, in rising order of step,

    {"step": 10, "tokens": 81920, "train_loss": 4.2, "val_loss": null, "lr": 0.0003,
     "grad_norm": 1.5, "ms": 12.345, "tok_s": 6636000, "extra": {...}}

             The keys are always in this order. "mfu" and "mfu_stated" come before "extra" where the
             machine's peak is known; "extra" is there only if it is not empty, and begins with what
             was measured beside the losses: "val_bpb", "eval_acc", "eval_acc_norm". null means not
             measured, NaN or infinity. The keys before "ms" do not depend on the machine's speed:
             two logs are compared by cutting each line at `, "ms"`. Losses, norms and rates have 9
             digits, which name a float exactly. A line that does not begin with the keys from
             "step" to "tok_s" is another writer's: it is passed over, and kept.
log.other    such lines that stood behind a place where a resumed run began to write
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
    double mfu, mfu_stated;         /* of the measured peak and of the data sheet's; 0: not known */
    double val_bpb;                 /* bits per byte of the validation */
    double eval_acc, eval_acc_norm; /* shares of right choices, see eval.h */
    const char *extra;              /* a JSON object, or NULL */
} LogLine;

static inline LogLine log_line_empty(void) {
    LogLine line;
    memset(&line, 0, sizeof line);
    line.train_loss = line.val_loss = line.lr = line.grad_norm = line.ms = line.tok_s = NAN;
    line.val_bpb = line.eval_acc = line.eval_acc_norm = NAN;
    return line;
}

/* An entry of run.json: a string, or any JSON value if is_json. */
typedef struct {
    const char *key, *value;
    int is_json;
} LogPair;

/* The losses of a log, for drawing, and the last of what was measured beside them. */
typedef struct {
    int n;
    int64_t *step;
    double *train, *val; /* NaN where the log has null */
    int has_bpb, has_eval;
    int64_t bpb_step, eval_step;
    double bpb, eval_acc, eval_acc_norm;
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

/* The step of a line that log_line_text wrote; -1 for another line, and for one that is not whole.
   A line is the program's own if it begins with the keys that every line has, in their order. Its
   end may be "\r\n", which an editor has made of the line end. */
static inline int64_t log_step_of(const char *line, size_t length) {
    static const char *const keys[] = {
        "{\"step\": ", ", \"tokens\": ",    ", \"train_loss\": ", ", \"val_loss\": ",
        ", \"lr\": ",  ", \"grad_norm\": ", ", \"ms\": ",         ", \"tok_s\": "};
    const char *at = line;
    for (int i = 0; i < (int)(sizeof keys / sizeof keys[0]); i++) {
        if (strncmp(at, keys[i], strlen(keys[i]))) return -1;
        at += strlen(keys[i]);
        int count = i < 2; /* digits; the others are numbers or null */
        size_t value = strspn(at, count ? "0123456789" : "0123456789+-.e");
        if (!value && !count && !strncmp(at, "null", 4)) value = 4;
        if (!value) return -1;
        at += value;
    }
    const char *end = line + length - 1; /* `at` is behind many characters, so length > 2 */
    if (strlen(line) != length || *end != '\n') return -1;
    if (end[-1] == '\r') end--;
    if (*--end != '}' || (at != end && strncmp(at, ", \"", 3))) return -1;
    errno = 0;
    long long step = strtoll(line + strlen(keys[0]), NULL, 10);
    return errno ? -1 : (int64_t)step;
}

typedef enum {
    LOG_STEP,   /* a line that log_line_text wrote */
    LOG_OTHER,  /* a whole line of somebody else */
    LOG_DAMAGED /* the beginning of a line, or one with the zero bytes that a power cut leaves */
} LogKind;

/* A log that is read line by line. */
typedef struct {
    FILE *file;
    char *line;
    size_t size;
    int64_t length; /* of the line */
    int64_t begin;  /* where it begins in the file */
    int64_t number; /* counted from 1 */
    LogKind kind;
    int64_t step; /* of a LOG_STEP */
} LogReader;

static inline int log_begin(LogReader *r, const char *path, char *err) {
    memset(r, 0, sizeof *r);
    if (file_check_regular(path, err)) return -1;
    r->file = fopen(path, "rbe");
    return r->file ? 0 : fail(err, "cannot open %s: %s", path, strerror(errno));
}

/* Reads the next line; returns 0 at the end of the file. */
static inline int log_next(LogReader *r) {
    r->begin += r->length;
    r->length = (int64_t)getline(&r->line, &r->size, r->file);
    if (r->length <= 0) return 0;
    size_t length = (size_t)r->length;
    r->number++;
    r->step = log_step_of(r->line, length);
    int whole = r->line[length - 1] == '\n' && strlen(r->line) == length;
    r->kind = r->step >= 0 ? LOG_STEP : whole ? LOG_OTHER : LOG_DAMAGED;
    return 1;
}

/* Ends the reading. Returns 0, or -1 with a message if the file could not be read to its end. */
static inline int log_end(LogReader *r, const char *path, char *err) {
    /* getline ends at the end of the file, at an error, and without memory. */
    int status = r->length < 0 && !feof(r->file)
                     ? fail(err, "cannot read %s: %s", path, strerror(errno))
                     : 0;
    fclose(r->file);
    free(r->line);
    return status;
}

/* The last step in a log; -1 if it has none or cannot be read. */
static inline int64_t log_last_step(const char *path) {
    LogReader r;
    int64_t last = -1;
    char unused[ERR_LEN];
    if (log_begin(&r, path, unused)) return -1;
    while (log_next(&r))
        if (r.kind == LOG_STEP) last = r.step;
    log_end(&r, path, unused);
    return last;
}

static inline void log_curve_free(LogCurve *curve) {
    free(curve->step);
    free(curve->train);
    free(curve->val);
    memset(curve, 0, sizeof *curve);
}

/* Keeps what a line has beside its losses. */
static inline void log_curve_measures(LogCurve *curve, int64_t step, const char *line) {
    double bpb = log_number(line, "val_bpb"), acc = log_number(line, "eval_acc");
    if (isfinite(bpb)) {
        curve->has_bpb = 1;
        curve->bpb_step = step;
        curve->bpb = bpb;
    }
    if (isfinite(acc)) {
        curve->has_eval = 1;
        curve->eval_step = step;
        curve->eval_acc = acc;
        curve->eval_acc_norm = log_number(line, "eval_acc_norm");
    }
}

/* Adds the losses of a line. Returns -1 without memory. */
static inline int log_curve_add(LogCurve *curve, int *capacity, int64_t step, const char *line) {
    if (curve->n == *capacity) {
        *capacity = *capacity ? 2 * *capacity : 256;
        size_t n = (size_t)*capacity;
        int64_t *steps = (int64_t *)realloc(curve->step, n * sizeof(int64_t));
        if (steps) curve->step = steps;
        double *train = (double *)realloc(curve->train, n * sizeof(double));
        if (train) curve->train = train;
        double *val = (double *)realloc(curve->val, n * sizeof(double));
        if (val) curve->val = val;
        if (!steps || !train || !val) return -1;
    }
    curve->step[curve->n] = step;
    curve->train[curve->n] = log_number(line, "train_loss");
    curve->val[curve->n] = log_number(line, "val_loss");
    curve->n++;
    log_curve_measures(curve, step, line);
    return 0;
}

/* Reads the losses of a log. Lines that log_line did not write are passed over. */
static inline int log_read(const char *path, LogCurve *curve, char *err) {
    LogReader r;
    int capacity = 0, status = 0;
    memset(curve, 0, sizeof *curve);
    if (log_begin(&r, path, err)) return -1;
    while (!status && log_next(&r))
        if (r.kind == LOG_STEP && log_curve_add(curve, &capacity, r.step, r.line))
            status = fail(err, "out of memory while reading %s", path);
    if (log_end(&r, path, err)) status = -1;
    if (status) log_curve_free(curve);
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* Opening                                                                                        */

/* The most characters of a run's name: file systems allow 255 bytes. */
enum { LOG_NAME_LENGTH = 200 };

/* Refuses a name that is not a plain name of a folder: returns -1 with a message. */
static inline int log_check_name(const char *flag, const char *name, char *err) {
    if (!*name) return fail(err, "--%s: the name of the run is empty", flag);
    if (*name == '.' || strchr(name, '/'))
        return fail(err,
                    "--%s %.80s: give a plain name without a slash or a leading dot, it names "
                    "a folder",
                    flag, name);
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            return fail(err, "--%s: the name of the run holds a control character", flag);
    if (strlen(name) > LOG_NAME_LENGTH)
        return fail(err, "--%s %.80s...: the name is too long", flag, name);
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

/* Where a log is cut for a run that goes on after `step`. */
typedef struct {
    int64_t bytes; /* that stay */
    int64_t lines; /* of other writers behind them */
} LogCut;

/* Everything up to the last line of a step up to `step` stays, and so do the lines of other writers
   that follow it. Refuses a log whose steps are out of order about that step. */
static inline int log_find_cut(const char *path, int64_t step, LogCut *cut, char *err) {
    LogReader r;
    int64_t first_after = 0;  /* number of the first line of a later step */
    int status = 0, open = 1; /* open: lines of others stay */
    memset(cut, 0, sizeof *cut);
    if (log_begin(&r, path, err)) return -1;
    while (!status && log_next(&r)) {
        int stays = r.kind == LOG_STEP && r.step <= step;
        if (stays && first_after)
            status = fail(err,
                          "%s: line %lld is of step %lld and stands behind line %lld, of a step "
                          "after %lld: the steps are out of order; repair the log, or move it away",
                          path, (long long)r.number, (long long)r.step, (long long)first_after,
                          (long long)step);
        if (r.kind == LOG_STEP && !stays && !first_after) first_after = r.number;
        if (stays) cut->lines = 0;
        if (stays || (open && r.kind == LOG_OTHER)) {
            cut->bytes = r.begin + r.length;
            open = 1;
        } else {
            open = 0;
            cut->lines += r.kind == LOG_OTHER;
        }
    }
    return log_end(&r, path, err) ? -1 : status;
}

/* Appends to log.other the lines of other writers that stand behind the first `bytes` bytes. */
static inline int log_save_others(const RunLog *log, int64_t bytes, char *err) {
    char path[FILE_PATH_SIZE];
    LogReader r;
    file_path(path, "%s/log.other", log->dir);
    int fd = file_open(path, O_WRONLY | O_CREAT | O_APPEND), status = 0;
    if (fd < 0) return fail(err, "cannot open %s: %s", path, strerror(errno));
    if (log_begin(&r, log->path, err)) status = -1;
    else {
        while (!status && log_next(&r))
            if (r.begin >= bytes && r.kind == LOG_OTHER)
                status = file_write_all(fd, r.line, (size_t)r.length);
        if (!status) status = file_sync(fd);
        if (status) fail(err, "cannot write %s: %s", path, strerror(errno));
        if (log_end(&r, log->path, status ? NULL : err)) status = -1;
    }
    close(fd);
    return status ? -1 : 0;
}

/* Cuts log.jsonl after the lines of steps up to `step`. Call it on resume with the step of the
   checkpoint: the resumed run writes the later lines again. It cannot write lines of others again;
   they move to log.other, and a note says so. */
static inline int log_truncate_after(RunLog *log, int64_t step, char *err) {
    LogCut cut;
    if (log_find_cut(log->path, step, &cut, err)) return -1;
    if (cut.lines && log_save_others(log, cut.bytes, err)) return -1;
    if (ftruncate(log->fd, (off_t)cut.bytes))
        return fail(err, "cannot shorten %s: %s", log->path, strerror(errno));
    if (cut.lines)
        fprintf(stderr,
                "note: %lld line%s of %s that this program did not write now stand%s in "
                "%s/log.other\n",
                (long long)cut.lines, cut.lines > 1 ? "s" : "", log->path, cut.lines > 1 ? "" : "s",
                log->dir);
    return 0;
}

/* Sets the paths of the run NAME of RUNS_DIR. Returns 0, or -1 with a message about the name. */
static inline int log_paths(RunLog *log, const char *runs_dir, const char *name, char *err) {
    log->fd = -1;
    if (log_check_name("run", name, err)) return -1;
    file_path(log->dir, "%s/%s", runs_dir, name);
    file_path(log->path, "%s/log.jsonl", log->dir);
    file_path(log->checkpoints, "%s/checkpoints", log->dir);
    if (!log->path[0] || !log->checkpoints[0])
        return fail(err, "the path of the run %.80s... is too long", runs_dir);
    return 0;
}

/* Opens log.jsonl, creates it if need be, and locks the run for this process until log_close.
   Nothing of the run is to be read before: the process that held the lock may have changed it.
   Returns 0, or -1 with a message, if another process has the lock too. */
static inline int log_lock(RunLog *log, char *err) {
    if (file_check_regular(log->path, err)) return -1;
    log->fd = file_open(log->path, O_RDWR | O_CREAT | O_APPEND);
    if (log->fd < 0) return fail(err, "cannot open %s: %s", log->path, strerror(errno));
    if (!flock(log->fd, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK) return 0;
    log_close(log);
    return fail(err, "another process is writing to %s: wait for it, or use another --run name",
                log->dir);
}

/* Makes the log of a locked run ready for more lines: what is left of a line that was cut goes.
   Returns 0, or -1 with a message. */
static inline int log_go_on(RunLog *log, char *err) {
    if (file_make_folders(log->checkpoints, err)) return -1;
    return log_truncate_after(log, INT64_MAX, err);
}

/* Creates RUNS_DIR/NAME, locks the run and opens its log. Without `resume` a run that has steps is
   refused, and a run that has none starts over. Returns 0, or -1 with a message. */
static inline int log_open(RunLog *log, const char *runs_dir, const char *name, int resume,
                           char *err) {
    if (log_paths(log, runs_dir, name, err) || file_make_folders(log->checkpoints, err) ||
        log_lock(log, err))
        return -1;
    int status = 0;
    if (!resume && (log_last_step(log->path) > 0 || log_has_checkpoints(log->checkpoints)))
        status = fail(err,
                      "the run %s already has steps: continue it with --resume, or use another "
                      "--run name",
                      log->dir);
    if (!status) status = resume ? log_go_on(log, err) : log_truncate_after(log, -1, err);
    if (status) log_close(log);
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* Writing                                                                                        */

/* Appends whole lines, with one write if the system takes them whole, so that neither a kill nor
   another process's lines come between. If the disk is full, the part that was written is cut off
   again. */
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

/* Writes the member extra: what the line has measured beside its losses, then `rest`, which is what
   an object has behind its first brace ("}" for an empty one). Without both (rest NULL) writes
   nothing. */
static inline void log_write_extra(FILE *f, const LogLine *line, const char *rest) {
    static const char *const keys[] = {"val_bpb", "eval_acc", "eval_acc_norm"};
    const double values[] = {line->val_bpb, line->eval_acc, line->eval_acc_norm};
    int written = 0;
    for (int i = 0; i < 3; i++) {
        if (!isfinite(values[i])) continue;
        fprintf(f, "%s\"%s\": ", written++ ? ", " : ", \"extra\": {", keys[i]);
        json_float(f, values[i]);
    }
    if (!rest && written) fputc('}', f);
    if (!rest) return;
    fprintf(f, "%s%s", !written ? ", \"extra\": {" : *rest == '}' ? "" : ", ", rest);
}

/* The text of a line with its end, for the caller to free; NULL without memory. */
static inline char *log_line_text(const LogLine *line) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return NULL;
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
    log_write_extra(f, line, line->extra ? line->extra + 1 : NULL);
    fputs("}\n", f);
    if (!fclose(f)) return text;
    free(text);
    return NULL;
}

static inline int log_line(RunLog *log, const LogLine *line, char *err) {
    char *text = log_line_text(line);
    if (!text) return fail(err, "out of memory while writing %s", log->path);
    int status = log_append_text(log, text, err);
    free(text);
    return status;
}

/* The numbers of a line that log_line_text wrote, without mfu_stated and those of extra. */
static inline LogLine log_line_of(const char *text) {
    LogLine line = log_line_empty();
    line.step = (int64_t)log_number(text, "step");
    line.tokens = (int64_t)log_number(text, "tokens");
    line.train_loss = log_number(text, "train_loss");
    line.val_loss = log_number(text, "val_loss");
    line.lr = log_number(text, "lr");
    line.grad_norm = log_number(text, "grad_norm");
    line.ms = log_number(text, "ms");
    line.tok_s = log_number(text, "tok_s");
    line.mfu = fmax(log_number(text, "mfu"), 0); /* 0 for NaN */
    return line;
}

/* Appends a line that log_line_text wrote before the model was measured, with what was measured
   then: the validation loss of `line`, and its numbers of extra (NaN: none). */
static inline int log_append_measured(RunLog *log, const char *text, const LogLine *line,
                                      char *err) {
    static const char key[] = "\"val_loss\": null", extra[] = ", \"extra\": {";
    const char *at = strstr(text, key), *rest, *object;
    char *whole = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&whole, &size);
    if (!f) return fail(err, "out of memory while writing %s", log->path);
    rest = at && isfinite(line->val_loss) ? at + sizeof key - 1 : text;
    if (rest > text) {
        fprintf(f, "%.*s\"val_loss\": ", (int)(at - text), text);
        json_float(f, line->val_loss);
    }
    object = strstr(rest, extra);
    size_t length = strlen(rest),
           before = object ? (size_t)(object - rest) : length - 2; /* "}\n" */
    fwrite(rest, 1, before, f);
    log_write_extra(f, line, object ? object + sizeof extra - 1 : NULL);
    if (!object) fputs(rest + before, f);
    int status = fclose(f) ? fail(err, "out of memory while writing %s", log->path) : 0;
    if (!status) status = log_append_text(log, whole, err);
    free(whole);
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

/* Writes run.json: the pairs in their order, the machine, then the flags of cfg, one a line, and
   those of `asked` that are kept. Returns 0, or -1 with a message. */
static inline int log_run_json(RunLog *log, const Flag *flags, int n, const void *cfg,
                               const void *asked, const char *gemm, const LogPair *pairs,
                               int n_pairs, char *err) {
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
        else json_text(f, pairs[i].value, 1);
        fputs(",\n", f);
    }
    fputs("  \"machine\": ", f);
    log_machine_json(f, gemm);
    fputs(",\n  \"flags\": {", f);
    for (int i = 0; i < n; i++) {
        fprintf(f, "%s\n    \"%s\": ", i ? "," : "", flags[i].name);
        flags_json_value(f, &flags[i], cfg);
    }
    fputs("\n  },\n  \"asked\": {", f);
    for (int i = 0, k = 0; i < n; i++) {
        char value[FLAG_STRING_SIZE];
        if (flags[i].on_resume == RESUME_START) continue;
        flags_get_text(&flags[i], asked, value);
        fprintf(f, "%s\n    \"%s\": ", k++ ? "," : "", flags[i].name);
        json_text(f, value, 1);
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

/* ---------------------------------------------------------------------------------------------- */
/* Reading run.json                                                                               */

/* Reads an object of scalars and writes each as a line PREFIX.NAME=VALUE. Returns -1 if it is
   malformed. */
static inline int log_read_object(JsonReader *r, const char *prefix, FILE *out) {
    char name[128], value[FLAG_STRING_SIZE];
    if (!json_expect(r, '{')) return -1;
    if (json_expect(r, '}')) return 0;
    do {
        if (json_read_string(r, name, sizeof name) || !json_expect(r, ':') ||
            json_read_scalar(r, value, sizeof value))
            return -1;
        if (!strpbrk(name, "=\n") && !strchr(value, '\n'))
            fprintf(out, "%s.%s=%s\n", prefix, name, value);
    } while (json_expect(r, ','));
    return json_expect(r, '}') ? 0 : -1;
}

/* Reads the whole of run.json: its strings and numbers, its lists as they stand, and the objects
   "flags" and "asked", of which the lines begin with "flags." and "asked.". */
static inline int log_read_members(JsonReader *r, FILE *out) {
    char name[128], value[FILE_PATH_SIZE];
    if (!json_expect(r, '{')) return -1;
    do {
        if (json_read_string(r, name, sizeof name) || !json_expect(r, ':')) return -1;
        if (!strcmp(name, "flags") || !strcmp(name, "asked")) {
            if (log_read_object(r, name, out)) return -1;
            continue;
        }
        json_skip_space(r);
        size_t begin = r->at;
        if (!json_read_scalar(r, value, sizeof value)) {
            if (!strpbrk(name, "=\n") && !strchr(value, '\n')) fprintf(out, "%s=%s\n", name, value);
            continue;
        }
        r->at = begin;
        if (json_skip_value(r)) return -1;
        if (r->data[begin] == '[' && !strpbrk(name, "=\n") &&
            !memchr(r->data + begin, '\n', r->at - begin))
            fprintf(out, "%s=%.*s\n", name, (int)(r->at - begin), (char *)r->data + begin);
    } while (json_expect(r, ','));
    return json_expect(r, '}') ? 0 : -1;
}

/* Reads `dir`/run.json as lines KEY=VALUE, flags.NAME=VALUE and asked.NAME=VALUE, for the caller to
   free. Returns 0, 1 if there is no such file, or -1 with a message; *text is then NULL and *size
   0. */
static inline int log_read_run_json(const char *dir, char **text, size_t *size, char *err) {
    char path[FILE_PATH_SIZE], *contents = NULL;
    size_t length = 0;
    *text = NULL;
    *size = 0;
    file_path(path, "%s/run.json", dir);
    int status = file_read(path, (size_t)1 << 24, &contents, &length, err);
    if (status) return status;
    FILE *out = open_memstream(text, size);
    JsonReader r = {(unsigned char *)contents, length, 0};
    if (!out) status = fail(err, "out of memory while reading %s", path);
    else if (log_read_members(&r, out))
        status =
            fail(err, "%s is damaged at byte %zu: it is not the file that cm.c wrote", path, r.at);
    if (out && fclose(out) && !status) status = fail(err, "out of memory while reading %s", path);
    free(contents);
    if (!status) return 0;
    free(*text);
    *text = NULL;
    *size = 0;
    return -1;
}

#endif
