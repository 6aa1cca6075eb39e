/*
What train_gpt prints about a model and a run: sizes, memory, floating-point operations, times, the
loss curve. Needs a backend's device_state.
*/
#ifndef CM_REPORT_H
#define CM_REPORT_H

#include "curve.h"
#include "data.h"
#include "log.h"
#include "optim/composed.h"
#include "optim/plan.h"
#include "params.h"
#include "schedule.h"

/* ---------------------------------------------------------------------------------------------- */
/* the model */

/* Floating-point operations of forward and backward for one token: six for each parameter of a
   matrix product, and those of the causal half of attention's products. */
static inline double flops_per_token(const Config *c, const Registry *r) {
    double n = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        int counts =
            t->role == ROLE_QKV || t->role == ROLE_O || t->role == ROLE_MLP || t->role == ROLE_HEAD;
        if (counts || (id == T_WTE && c->tied)) n += (double)t->size;
    }
    return 6 * n + 6.0 * c->layers * c->heads * c->head_dim * c->seq_len;
}

static inline void print_model(FILE *out, const Config *c, const Registry *r) {
    fprintf(out, "model    %.2fM parameters: %d layers, width %d, %d heads of %d", r->count / 1e6,
            c->layers, c->width, c->heads, c->head_dim);
    if (c->kv_heads != c->heads) fprintf(out, " (%d for keys and values)", c->kv_heads);
    fprintf(out, ", %s, %s%s, %s MLP of %d, vocabulary %d\n", NAME_OF(NORMS, c->norm),
            NAME_OF(POSITIONS, c->pos), c->qk_norm ? ", QK-norm" : "", NAME_OF(ACTS, c->act),
            c->ff_width, c->vocab);
}

/* ---------------------------------------------------------------------------------------------- */
/* memory */

/* Bytes by purpose. */
typedef struct {
    size_t parameters, gradients, optimizer, activations, workspace, total;
} Memory;

static inline double mebibytes(double bytes) { return bytes / (1 << 20); }

static inline void print_memory(FILE *out, Memory m) {
    fprintf(
        out, "memory   %.1f MiB: parameters %.1f, gradients %.1f, optimizer %.1f, activations %.1f",
        mebibytes((double)m.total), mebibytes((double)m.parameters), mebibytes((double)m.gradients),
        mebibytes((double)m.optimizer), mebibytes((double)m.activations));
    if (m.workspace) fprintf(out, ", workspace %.1f", mebibytes((double)m.workspace));
    fputc('\n', out);
}

/* Refuses a run that does not fit `room` bytes. batch_size is the largest that fits, 0 if none
   does. Returns -1 with the message. */
static inline int refuse_memory(const Config *c, Memory need, double room, int batch_size,
                                char *err) {
    int can_recompute = c->recompute < RECOMPUTE_BLOCK;
    if (batch_size)
        return fail(err,
                    "the run needs %.1f MiB and the device has %.1f MiB free: the largest "
                    "--batch-size that fits is %d%s",
                    mebibytes((double)need.total), mebibytes(room), batch_size,
                    can_recompute ? "; --recompute block makes room for more" : "");
    return fail(
        err,
        "the run needs %.1f MiB and the device has %.1f MiB free, which is too little for one "
        "sequence: parameters, gradients and optimizer state take %.1f MiB%s",
        mebibytes((double)need.total), mebibytes(room),
        mebibytes((double)(need.parameters + need.gradients + need.optimizer)),
        can_recompute ? "; --recompute block makes room" : "");
}

/* Reports an allocation that failed. Returns -1 with the message. */
static inline int refuse_allocation(Memory need, char *err) {
    return fail(err,
                "out of memory: the run needs %.1f MiB (parameters %.1f, gradients %.1f, "
                "optimizer %.1f, activations %.1f); try a smaller --batch-size",
                mebibytes((double)need.total), mebibytes((double)need.parameters),
                mebibytes((double)need.gradients), mebibytes((double)need.optimizer),
                mebibytes((double)(need.activations + need.workspace)));
}

/* Peak resident memory of this process in bytes; 0 if the system does not report it. */
static inline double resident_peak(void) {
    char line[256];
    double kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lf", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

/* device_peak: the most bytes that the device had in use; 0 if the model lies in the process's
   memory. */
static inline void print_peak_memory(double device_peak, const char *run_dir) {
    printf("peak memory %.1f MiB", mebibytes(resident_peak()));
    if (device_peak > 0) printf(", on the GPU %.1f MiB", mebibytes(device_peak));
    printf("; run folder %s\n", run_dir);
}

/* ---------------------------------------------------------------------------------------------- */
/* speed */

/* "  mfu 41.3 %", or "" if the machine's peak is not known. */
static inline const char *mfu_text(char text[32], double mfu) {
    text[0] = 0;
    if (mfu > 0) snprintf(text, 32, "  mfu %.1f %%", 100 * mfu);
    return text;
}

/* Prints the FLOP/s of the machine, if they were measured. */
static inline void print_peak(double measured, double stated) {
    if (measured <= 0) return;
    printf("peak     %.0f TFLOP/s measured", measured / 1e12);
    if (stated > 0) printf(", %.0f stated", stated / 1e12);
    printf("\n");
}

/* Prints a line for a step that was validated. Where no progress line is drawn, prints a line for
   every --print-every-th step too. */
static inline void print_step(Progress *progress, const Config *c, const LogLine *line) {
    char mfu[32];
    int every = c->print_every ? c->print_every : max_int(1, c->steps / 40);
    mfu_text(mfu, line->mfu);
    if (isfinite(line->val_loss))
        progress_print(progress, "step %5d  train %.4f  validation %.4f  %.0f ms  %.0f tok/s%s",
                       (int)line->step, line->train_loss, line->val_loss, line->ms, line->tok_s,
                       mfu);
    else if (!progress->live && line->step % every == 0)
        progress_print(progress, "step %5d  train %.4f  norm %.3g  %.0f ms  %.0f tok/s%s",
                       (int)line->step, line->train_loss, line->grad_norm, line->ms, line->tok_s,
                       mfu);
}

/* Prints the time that --dry-run expects, from the seconds of one micro-batch and of one update. */
static inline void print_expected_time(const Config *c, double flops, double micro_batch,
                                       double update) {
    char total[32];
    double tokens = (double)c->total_batch_tokens;
    double micro_batches = tokens / ((double)c->batch_size * c->seq_len);
    double step = micro_batches * micro_batch + update;
    time_text(total, step * c->steps);
    printf("time     %s expected without validation: %.0f ms a step, %.0f of them in the update; "
           "%.0f tok/s, %.1f GFLOP/s\n",
           total, 1000 * step, 1000 * update, tokens / step, flops * tokens / step / 1e9);
}

/* ---------------------------------------------------------------------------------------------- */
/* the log */

/* Writes what update number `step`, counted from 0, did: a JSON object with a member for each
   tensor and for each circuit. p.before is overwritten. */
static inline void log_groups(FILE *f, const Config *c, const Params *p, const Plan *plan,
                              int step) {
    static const char *const name[2] = {"QK", "OV"};
    double scale = schedule_lr(&c->schedule, step), lr[2] = {c->lr_qk * scale, c->lr_ov * scale};
    Part part[2][2];
    ComposedStep composed[2];
    circuit_parts(c, part[0], part[1]);
    for (int i = 0; i < 2; i++) composed[i] = composed_measure(&p->r, part[i], p->param, p->before);
    fputc('{', f);
    plan_groups_members(f, plan, &p->r, p->param, p->before);
    for (int i = 0; i < 2; i++) composed_member(f, name[i], composed[i], lr[i]);
    fputc('}', f);
}

/* The `extra` of the line of the log after `step` updates, a JSON object for the caller to free:
   the device's state if it reports one, and with --log-groups the sizes of the last update. *text
   is NULL if there is neither. Returns -1 with a message without memory. */
static inline int log_extra(char **text, const Config *c, const Params *p, const Plan *plan,
                            int step, char *err) {
    char state[256];
    size_t size = 0;
    *text = NULL;
    device_state(state, sizeof state);
    if (!p->before && !state[0]) return 0;
    FILE *f = open_memstream(text, &size);
    if (!f) return fail(err, "out of memory: a line of the log");
    fprintf(f, "{%s", state);
    if (p->before) {
        fprintf(f, "%s\"groups\": ", state[0] ? ", " : "");
        log_groups(f, c, p, plan, step - 1);
    }
    fputs("}", f);
    if (!fclose(f)) return 0;
    free(*text);
    return fail(err, "out of memory: a line of the log");
}

/* ---------------------------------------------------------------------------------------------- */
/* the end of a run */

/* Draws the losses of a log and prints its last validation loss, in nats per `unit`. */
static inline void print_curve(const char *log_path, const char *unit) {
    char err[ERR_LEN];
    LogCurve curve;
    if (log_read(log_path, &curve, err)) return;
    printf("\n");
    curve_print(stdout, curve.step, curve.train, curve.val, curve.n,
                min_int(terminal_width(stdout), 100), 16);
    for (int i = curve.n - 1; i >= 0; i--)
        if (isfinite(curve.val[i])) {
            printf("\nvalidation loss %.4f nats per %s after %lld steps\n", curve.val[i], unit,
                   (long long)curve.step[i]);
            break;
        }
    log_curve_free(&curve);
}

#endif
