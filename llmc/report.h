/*
What train_gpt prints about a model and a run: sizes, memory, floating-point operations, times, the
loss curve, and the commands that go on from there. Needs a backend's device_state.
*/
#ifndef CM_REPORT_H
#define CM_REPORT_H

#include "checkpoint.h"
#include "curve.h"
#include "data.h"
#include "log.h"
#include "optim/composed.h"
#include "optim/plan.h"
#include "params.h"
#include "schedule.h"

/* ---------------------------------------------------------------------------------------------- */
/* the model */

/* Floating-point operations of forward and backward for one token: for each parameter of a matrix
   product two of the forward pass, two of its gradient, unless it is frozen, and two of the
   gradient of its input, if the backward pass goes further; and those of the causal half of
   attention's products. */
static inline double flops_per_token(const Config *c, const Registry *r) {
    Reach reach = backward_reach(r);
    double n = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        int head = t->role == ROLE_HEAD || id == T_WHEAD_UP || id == T_WHEAD_DOWN ||
                   (id == T_WTE && c->tied);
        int passed = reach >= (head ? REACH_NORM : REACH_BLOCKS) || id == T_WHEAD_UP;
        if (head || role_is_block(t->role))
            n += (double)t->size * (2 + (t->frozen ? 0 : 2) + (passed ? 2 : 0));
    }
    double attention = (double)c->layers * c->heads * c->head_dim * c->seq_len;
    return n + attention * (reach >= REACH_BLOCKS ? 6 : 2);
}

static inline void print_model(FILE *out, const Config *c, const Registry *r) {
    char kv[64] = "";
    if (c->kv_heads != c->heads) snprintf(kv, sizeof kv, " (%d for keys and values)", c->kv_heads);
    print_line(out, "model",
               "%.2fM parameters: %d layers, width %d, %d heads of %d%s, %s, %s%s, %s MLP of %d, "
               "vocabulary %d",
               r->count / 1e6, c->layers, c->width, c->heads, c->head_dim, kv,
               NAME_OF(NORMS, c->norm), NAME_OF(POSITIONS, c->pos), c->qk_norm ? ", QK-norm" : "",
               NAME_OF(ACTS, c->act), c->ff_width, c->vocab);
    if (!config_rank(c)) return;
    char layers[64] = "";
    for (int i = 0; i < LINEARS; i++)
        if (c->factored >> i & 1)
            snprintf(layers + strlen(layers), sizeof layers - strlen(layers), "%s%s",
                     layers[0] ? ", " : "", WORD_OF(LINEAR_LAYERS, i));
    if (c->lora_rank)
        print_line(out, "adapters",
                   "%.3gM parameters of rank %d, scale %g, on %s; the rest is frozen",
                   r->adapters / 1e6, c->lora_rank, c->lora_scale, layers);
    else
        print_line(out, "low rank", "products of rank %d, scale %g, in place of %s", c->low_rank,
                   c->lora_scale, layers);
}

/* Prints the averages that a rule's momentum is mixed from, if it is, with the mean age of the mix:
   an average of decay d has the mean age d / (1 - d). */
static inline void print_momentum(FILE *out, const Config *c) {
    const MomentumAges *a = &c->optim.ages;
    char moves[96] = "";
    double first = 0, last = 0;
    int signs = 0;
    const int rules[] = {c->qk, c->ov, c->mlp, c->embed, c->head};
    const unsigned on[] = {ON_QK, ON_OV, ON_MLP, ON_EMBED, ON_HEAD};
    if (config_rank(c)) signs = rule_table[c->lora].traits & TAKES_SIGN;
    for (int i = 0; i < 5; i++)
        if (config_trains(c) & on[i])
            signs |= rule_table[rule_base((RuleId)rules[i], &c->optim)].traits & TAKES_SIGN;
    if (!a->n || !signs) return;
    for (int k = 0; k < a->n; k++) {
        double age = a->decay[k] / (1 - a->decay[k]);
        first += a->first[k] * age;
        last += a->last[k] * age;
    }
    if (memcmp(a->first, a->last, sizeof a->first))
        snprintf(moves, sizeof moves, ", which moves to %.1f by update %d", last, a->until);
    print_line(out, "momentum", "%d averages of the gradient from update %d on, of mean age %.1f%s",
               a->n, a->from, first, moves);
}

/* Prints the readout, if there is one. */
static inline void print_readout(FILE *out, const Config *c) {
    if (!c->ema_from) return;
    char head[48] = "";
    if (!c->tied) snprintf(head, sizeof head, ", %g in the head", c->ema_blend_head);
    print_line(out, "readout",
               "(1 - b) W + b E, where E averages the weights W over %d updates from update %d on; "
               "b is %g in the blocks' matrices, %g in embeddings%s, %g in gains and biases",
               c->ema_horizon, c->ema_from, c->ema_blend, c->ema_blend_embed, head,
               c->ema_blend_scalar);
}

/* ---------------------------------------------------------------------------------------------- */
/* memory */

/* Bytes by purpose. */
typedef struct {
    size_t parameters, gradients, optimizer, activations, workspace, total;
} Memory;

static inline double mebibytes(double bytes) { return bytes / (1 << 20); }

static inline void print_memory(FILE *out, Memory m) {
    char workspace[64] = "";
    if (m.workspace)
        snprintf(workspace, sizeof workspace, ", workspace %.1f", mebibytes((double)m.workspace));
    print_line(out, "memory",
               "%.1f MiB: parameters %.1f, gradients %.1f, optimizer %.1f, activations %.1f%s",
               mebibytes((double)m.total), mebibytes((double)m.parameters),
               mebibytes((double)m.gradients), mebibytes((double)m.optimizer),
               mebibytes((double)m.activations), workspace);
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
    char gpu[64] = "";
    if (device_peak > 0) snprintf(gpu, sizeof gpu, ", on the GPU %.1f MiB", mebibytes(device_peak));
    print_line(stdout, "peak memory", "%.1f MiB%s; run folder %s", mebibytes(resident_peak()), gpu,
               run_dir);
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
    char maker[64] = "";
    if (measured <= 0) return;
    if (stated > 0) snprintf(maker, sizeof maker, ", %.0f stated", stated / 1e12);
    print_line(stdout, "peak", "%.0f TFLOP/s measured%s", measured / 1e12, maker);
}

/* Writes what was measured of the model: the validation loss and the accuracy; the gradient's norm
   where nothing was. Returns whether something was. */
static inline int measured_text(char *text, size_t size, const LogLine *line) {
    int validated = isfinite(line->val_loss), evaluated = isfinite(line->eval_acc);
    char bits[48] = "", accuracy[80] = "";
    if (isfinite(line->val_bpb)) snprintf(bits, sizeof bits, " (%.4f bits/byte)", line->val_bpb);
    if (evaluated)
        snprintf(accuracy, sizeof accuracy, "%saccuracy %.4f (norm %.4f)", validated ? "  " : "",
                 line->eval_acc, line->eval_acc_norm);
    if (validated) snprintf(text, size, "validation %.4f%s%s", line->val_loss, bits, accuracy);
    else if (evaluated) snprintf(text, size, "%s", accuracy);
    else snprintf(text, size, "norm %.3g", line->grad_norm);
    return validated || evaluated;
}

/* Prints a line for a step that was validated or evaluated, and for step 0, which has no more than
   that. Where no progress line is drawn, prints a line for every --print-every-th step too, and in
   each line the time to the end, which the progress line shows otherwise. */
static inline void print_step(Progress *progress, const Config *c, const LogLine *line) {
    char head[96], loss[192], mfu[32], eta[32], left[48] = "";
    int every = c->print_every ? c->print_every : max_int(1, c->steps / 40);
    int measured = measured_text(loss, sizeof loss, line);
    if (!measured && (progress->live || line->step % every)) return;
    progress_step_text(head, line->step, c->steps);
    if (isnan(line->ms)) {
        progress_print(progress, "%s  %s", head, loss);
        return;
    }
    time_text(eta, progress_eta(progress));
    if (!progress->live) snprintf(left, sizeof left, "  ETA %s", eta);
    progress_print(progress, "%s  train %.4f  %s  %.0f ms  %.0f tok/s%s%s", head, line->train_loss,
                   loss, line->ms, line->tok_s, mfu_text(mfu, line->mfu), left);
}

/* Prints the time that --dry-run expects, from the seconds of one micro-batch and of one update. */
static inline void print_expected_time(const Config *c, double flops, double micro_batch,
                                       double update) {
    char total[32];
    double tokens = (double)c->total_batch_tokens;
    double micro_batches = tokens / ((double)c->batch_size * c->seq_len);
    double step = micro_batches * micro_batch + update;
    time_text(total, step * c->steps);
    print_line(stdout, "time",
               "%s expected without validation: %.1f ms a step, %.2f of them in the update; "
               "%.0f tok/s, %.1f GFLOP/s",
               total, 1000 * step, 1000 * update, tokens / step, flops * tokens / step / 1e9);
}

/* ---------------------------------------------------------------------------------------------- */
/* presets */

/* Writes the flags of the preset that hold in c; those of another value were overridden. */
static inline void preset_text(const Config *c, FILE *f) {
    char err[ERR_LEN], now[FLAG_STRING_SIZE], set[FLAG_STRING_SIZE], *save = NULL;
    char *pairs = strdup(config_presets[c->preset]);
    Config preset = *c;
    const char *separator = "";
    for (char *name = strtok_r(pairs, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
        char *value = strtok_r(NULL, " ", &save);
        const Flag *flag = &config_flags[flags_find(config_flags, CONFIG_FLAGS, name + 2)];
        if (flags_parse_value(flag, &preset, value, err)) continue;
        flags_get_text(flag, c, now);
        flags_get_text(flag, &preset, set);
        if (strcmp(now, set)) continue;
        fprintf(f, "%s%s %s", separator, name, value);
        separator = " ";
    }
    free(pairs);
}

/* Prints what the preset of c has set. */
static inline void print_preset(FILE *out, const Config *c) {
    char *text = NULL, name[FLAG_STRING_SIZE];
    size_t size = 0;
    if (!*config_presets[c->preset]) return;
    FILE *f = open_memstream(&text, &size);
    if (!f) return;
    preset_text(c, f);
    fclose(f);
    flags_get_text(&config_flags[flags_find(config_flags, CONFIG_FLAGS, "preset")], c, name);
    print_line(out, "preset", "%s: %s", name, text);
    free(text);
}

enum { CONFIG_PRESETS = (int)(sizeof config_presets / sizeof config_presets[0]) };

/* The presets as notes for --help and the manual. */
static inline void preset_notes(FlagNote notes[CONFIG_PRESETS]) {
    const Flag *flag = &config_flags[flags_find(config_flags, CONFIG_FLAGS, "preset")];
    for (int i = 0, length = 0; i < CONFIG_PRESETS; i++) {
        const char *name = flags_choice(flag, i, &length);
        snprintf(notes[i].title, sizeof notes[i].title, "%.*s", length, name);
        notes[i].text = *config_presets[i] ? config_presets[i] : "the defaults of all flags";
    }
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
    /* The maps of matrices with factors are none of the tensors'. */
    int circuits = c->factored & (1u << LINEAR_QKV | 1u << LINEAR_O) ? 0 : 2;
    circuit_parts(c, part[0], part[1]);
    for (int i = 0; i < circuits; i++)
        composed[i] = composed_measure(&p->r, part[i], p->param, p->before);
    fputc('{', f);
    plan_groups_members(f, plan, &p->r, p->param, p->before);
    for (int i = 0; i < circuits; i++) composed_member(f, name[i], composed[i], lr[i]);
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

/* Prints the last validation loss of a log, in nats per `unit`, and the lowest one. That of step 0
   is the initial weights'. */
static inline void print_validation(FILE *out, const LogCurve *curve, const char *unit) {
    char best[64] = "", bits[64] = "";
    int last = -1, lowest = -1;
    for (int i = 0; i < curve->n; i++) {
        if (!isfinite(curve->val[i])) continue;
        last = i;
        if (curve->step[i] > 0 && (lowest < 0 || curve->val[i] < curve->val[lowest])) lowest = i;
    }
    if (last < 0) {
        print_line(out, NULL, "no validation yet");
    } else if (lowest < 0) {
        print_line(out, NULL,
                   "no validation yet after step 0 (%.4f nats per %s, the initial weights)",
                   curve->val[last], unit);
    } else {
        if (lowest != last)
            snprintf(best, sizeof best, "; lowest %.4f after %lld", curve->val[lowest],
                     (long long)curve->step[lowest]);
        if (curve->has_bpb && curve->bpb_step == curve->step[last])
            snprintf(bits, sizeof bits, ", %.4f bits per byte,", curve->bpb);
        print_line(out, NULL, "validation loss %.4f nats per %s%s after %lld steps%s",
                   curve->val[last], unit, bits, (long long)curve->step[last], best);
    }
}

/* Prints the last accuracy of a log, if it has one, on this many examples. */
static inline void print_accuracy(FILE *out, const LogCurve *curve, size_t examples) {
    if (!curve->has_eval || !examples) return;
    print_line(out, NULL,
               "accuracy %.4f, by the mean loss per token %.4f, on %zu examples after %lld steps",
               curve->eval_acc, curve->eval_acc_norm, examples, (long long)curve->eval_step);
}

/* Draws the losses of a log and prints the last validation loss, in nats per `unit`, and the last
   accuracy on `examples`, if there are any. */
static inline void print_curve(const char *log_path, const char *unit, size_t examples) {
    char err[ERR_LEN];
    LogCurve curve;
    printf("\n");
    if (log_read(log_path, &curve, err)) {
        print_line(stdout, NULL, "no curve: %s", err);
        return;
    }
    curve_print(stdout, curve.step, curve.train, curve.val, curve.n,
                min_int(terminal_width(stdout), 100), 16);
    printf("\n");
    print_validation(stdout, &curve, unit);
    print_accuracy(stdout, &curve, examples);
    log_curve_free(&curve);
}

/* Prints the seconds of this start, and how many of them its steps took. `tokens` are those of the
   whole run. */
static inline void print_times(FILE *out, double seconds, double in_steps, int steps,
                               int64_t tokens) {
    char total[32], part[32], each[64] = "", count[32];
    time_text(total, seconds);
    time_text(part, in_steps);
    count_text(count, (double)tokens);
    if (steps > 0) snprintf(each, sizeof each, " of %.3g ms", 1000 * in_steps / steps);
    print_line(out, "time", "%s since the start, %s of them in %d steps%s; %s tokens read so far",
               total, part, steps, each, count);
}

/* ---------------------------------------------------------------------------------------------- */
/* commands that go on */

/* Writes " --NAME VALUE" for the shell. */
static inline void command_flag(FILE *f, const char *name, const char *value) {
    char word[4 * FLAG_STRING_SIZE + 3];
    shell_text(word, sizeof word, value);
    fprintf(f, " --%s%c%s", name, strncmp(value, "--", 2) == 0 ? '=' : ' ', word);
}

/* Writes " --run NAME", `also`, and where it is not the default " --runs-dir DIR". */
static inline void command_run(FILE *f, const Config *c, const char *also) {
    int i = flags_find(config_flags, CONFIG_FLAGS, "runs-dir");
    command_flag(f, "run", c->run);
    fputs(also, f);
    if (strcmp(c->runs_dir, config_flags[i].def)) command_flag(f, "runs-dir", c->runs_dir);
}

/* Writes for the shell the file `name` in the folder of the running program. If the program was
   found on the PATH, or if there is no such file, writes that file of the present folder; `dot` is
   how it begins there. */
static inline void command_beside(FILE *f, const char *program, const char *name, const char *dot) {
    char folder[FILE_PATH_SIZE], path[FILE_PATH_SIZE], word[FILE_PATH_SIZE + 64];
    file_folder(folder, program);
    file_path(path, "%s/%s", folder, name);
    if (!strcmp(folder, ".") || access(path, R_OK)) file_path(path, "%s%s", dot, name);
    fputs(shell_text(word, sizeof word, path), f);
}

typedef enum { COMMAND_RESUME, COMMAND_DRAW, COMMAND_SAMPLE } CommandKind;

/* A command that goes on from the run of c, for the caller to free; NULL without memory. `program`
   is the name by which this program was called. */
static inline char *command_text(CommandKind kind, const Config *c, const char *program) {
    char *text = NULL, word[FILE_PATH_SIZE], path[2 * FLAG_STRING_SIZE + 4];
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return NULL;
    switch (kind) {
    case COMMAND_RESUME:
        fputs(shell_text(word, sizeof word, program), f);
        command_run(f, c, " --resume");
        break;
    case COMMAND_DRAW:
        snprintf(path, sizeof path, "%s%s/%s", c->runs_dir[0] == '-' ? "./" : "", c->runs_dir,
                 c->run);
        fputs("python3 ", f);
        command_beside(f, program, "scripts/plot.py", "");
        fprintf(f, " %s", shell_text(word, sizeof word, path));
        break;
    case COMMAND_SAMPLE:
        command_beside(f, program, strstr(program, "_cuda") ? "generate_cuda" : "generate", "./");
        command_run(f, c, "");
        break;
    }
    fclose(f);
    return text;
}

static inline void print_command_for(FILE *out, const char *says, CommandKind kind, const Config *c,
                                     const char *program) {
    char *command = command_text(kind, c, program);
    if (command) print_command(out, says, command);
    free(command);
}

/* Prints the commands that go on from a run that ended after `step` steps, by signal `stopped`
   unless that is 0. Resuming and sampling need a checkpoint in the folder `checkpoints`. */
static inline void print_commands(FILE *out, const Config *c, const char *program,
                                  const char *checkpoints, int step, int stopped) {
    char says[256];
    int64_t saved = ckpt_newest_step(checkpoints);
    print_command_for(out, "draw it with:", COMMAND_DRAW, c, program);
    if (saved >= 0) print_command_for(out, "sample from it with:", COMMAND_SAMPLE, c, program);
    if (!stopped) return;
    int used = snprintf(says, sizeof says, "stopped by signal %d after step %d of %d; ", stopped,
                        step, c->steps);
    if (saved < 0 && step > 0)
        print_line(out, NULL,
                   "%sno checkpoint was kept, so its steps are lost and --resume begins anew",
                   says);
    else {
        if (saved < 0 || saved == step) strcpy(says + used, "continue with:");
        else
            snprintf(says + used, sizeof says - (size_t)used,
                     "continue from step %lld with:", (long long)saved);
        print_command_for(out, says, COMMAND_RESUME, c, program);
    }
}

#endif
