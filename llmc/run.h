/*
Everything of a run but its model: flags, data, the run folder, checkpoints, signals, choices by
measurement. The model and its training are in train_gpt.c; here the model is a Params and a Plan.

A checkpoint has all that a run needs to continue: the flags it was started with, the step, the
place in the data, and by name

    p.NAME    the parameters of a tensor; of adapters alone, where the weights they are trained
              beside are those of another checkpoint, whose file and checksum the header has
    e.NAME    the average of its parameters that the readout blends (--ema-from), once it has begun
    m.NAME    its first moments, unless it is frozen
    s.NAME    a state of its rule beyond first moments, named by the plan: "s.wqkv.q.v"

Random numbers need no state, because they are functions of seed and step. Version 1 had all state
of the rules in one record "v", in the plan's order and without names.

Needs a backend's device_upload, device_download, device_zero, device_choices and device_check.
*/
#ifndef CM_RUN_H
#define CM_RUN_H

#include <signal.h>

#include "checkpoint.h"
#include "choices.h"
#include "config.h"
#include "data.h"
#include "eval.h"
#include "log.h"
#include "optim/plan.h"
#include "params.h"
#include "report.h"

#ifndef CM_VERSION
#define CM_VERSION "unknown" /* the Makefile passes what the file VERSION says */
#endif

/* A flag that changed when a run was resumed after `step` updates. */
typedef struct {
    int step;
    char name[64], from[FLAG_STRING_SIZE], to[FLAG_STRING_SIZE];
} RunChange;

/* What is measured of the model after a step, as bits. */
enum { MEASURE_VALIDATION = 1, MEASURE_EVALUATION = 2 };

typedef struct {
    Config asked; /* flags as given, which is what checkpoints store */
    unsigned char given[CONFIG_FLAGS];
    Config config; /* the flags, resolved */
    Data train, val;
    TokenBytes texts; /* of the validation data's tokens */
    Eval eval;        /* --eval-data; without it no file is open */
    RunLog log;
    char data_id[64];   /* fingerprint of the training data */
    int train_part;     /* DATA_ALL or DATA_TRAIN; -1: as --val-data says */
    char machine[512];  /* device_describe: in words */
    char identity[512]; /* device_identity: what the bits depend on */
    char *pending;      /* the log's line of the last step, which awaits measurements, or NULL */
    int due;            /* these measurements, as far as they are known to be due */
    int owed;           /* 1: they were due in the process that made the step */
    RunChange *changes; /* flags that a resumed run changed */
    int n_changes;
    char from_file[FILE_PATH_SIZE], from_sum[32]; /* of --init-from: the file and its checksum */
    TokenizerId from_tokenizer;                   /* of its weights */
    int step, begun;                              /* updates done; of them before this start */
    double seconds;                               /* that the updates of this start took */
    int64_t tokens;                               /* that these updates read */
    int *x, *y;                                   /* a batch on the host, (B,T) each */
    double peak, stated_peak;                     /* FLOP/s of the machine, see device_peak */
    Choices choices, known; /* measured for this run, and for all runs of --runs-dir */
} Run;

/* ---------------------------------------------------------------------------------------------- */
/* signals */

/* Signals that end a run after it has been saved: Ctrl-C, a request to end, a closed terminal, the
   warning of a scheduler (Slurm's --signal=USR1), a limit on processor time. */
static const int run_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGXCPU};
enum { RUN_SIGNALS = (int)(sizeof run_signals / sizeof run_signals[0]) };

/* They are blocked in all threads, and the loop asks for them between steps and micro-batches. They
   are blocked before other threads exist, OpenMP's or those of a GPU's driver, because threads
   inherit the mask. A handler could be called inside oneDNN's matrix product, whose kernels move
   the stack pointer into a small buffer on the heap; the handler's frame, 11 kB with AMX, would
   then overwrite the memory below that buffer. A signal that the process was started to ignore, as
   nohup does with SIGHUP, stays ignored. */
static inline void hold_signals(int hold) {
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < RUN_SIGNALS; i++) {
        struct sigaction now;
        if (sigaction(run_signals[i], NULL, &now) || now.sa_handler == SIG_IGN) continue;
        sigaddset(&set, run_signals[i]);
    }
    sigprocmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

/* The signal that is pending, or 0. */
static inline int waiting_signal(void) {
    sigset_t set;
    sigpending(&set);
    for (int i = 0; i < RUN_SIGNALS; i++)
        if (sigismember(&set, run_signals[i])) return run_signals[i];
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* data */

/* Adds to a message whose name that is, where data of a resumed run are missing and the command
   line did not name them. Returns -1. */
static inline int data_fail_resumed(const Run *run, const char *flag, const char *pattern,
                                    char *err) {
    char why[ERR_LEN];
    if (!run->asked.resume || config_is_given(run->given, flag) || !data_is_missing(pattern))
        return -1;
    snprintf(why, sizeof why, "%s", err);
    return fail(
        err,
        "%.850s; the run has this name from before: if its data are elsewhere now, say where "
        "with --%s PATH",
        why, flag);
}

/* Reads the bytes of the data's tokens. Where it cannot, a note says so, and the validation has no
   bits per byte. */
static inline void open_texts(Run *run) {
    char why[ERR_LEN];
    const Config *c = &run->config;
    TokenizerId id = run->val.tokenizer;
    if (!id.fingerprint) id = run->train.tokenizer; /* which agrees, and may know more */
    if (token_bytes_load(&run->texts, id, c->encoder, c->bpe, why))
        fprintf(stderr, "note: the validation loss is not given in bits per byte: %s\n", why);
}

/* Opens --eval-data, if it was given. */
static inline int open_eval(Run *run, char *err) {
    const Config *c = &run->config;
    Eval *e = &run->eval;
    char data_id[TOKENIZER_ID_SIZE], eval_id[TOKENIZER_ID_SIZE];
    if (!c->eval_data[0]) return 0;
    if (eval_open(e, c->eval_data, c->seq_len, c->vocab, err))
        return data_fail_resumed(run, "eval-data", c->eval_data, err);
    if (e->tagged && !tokenizer_id_agree(e->tokenizer, run->train.tokenizer))
        return fail(err,
                    "--eval-data %s has tokens of the tokenizer %s and --data %s those of %s: make "
                    "both with one vocabulary",
                    c->eval_data, tokenizer_id_text(e->tokenizer, eval_id), c->data,
                    tokenizer_id_text(run->train.tokenizer, data_id));
    if (e->cut)
        fprintf(stderr,
                "note: %zu of the %zu completions of %s do not fit --seq-len %d with their "
                "context, which loses its first tokens there\n",
                e->cut, e->rows, c->eval_data, c->seq_len);
    return 0;
}

/* Opens the data of run.config, and sets the vocabulary if the flags leave it open. */
static inline int open_data(Run *run, char *err) {
    Config *c = &run->config;
    int64_t micro_batch = (int64_t)c->batch_size * c->seq_len;
    int64_t rows = (c->total_batch_tokens ? c->total_batch_tokens : micro_batch) / c->seq_len;
    if (rows > INT_MAX)
        return fail(err, "--total-batch-tokens %lld is too large: at most %d sequences in a step",
                    (long long)c->total_batch_tokens, INT_MAX);
    int separate = c->val_data[0] != 0;
    /* A run that is resumed with other validation data trains on what it has trained on. */
    if (run->train_part < 0) run->train_part = separate ? DATA_ALL : DATA_TRAIN;
    if (data_open(&run->train, c->data, run->train_part, c->data_order, (uint64_t)c->seed,
                  c->seq_len, (int)rows, err))
        return data_fail_resumed(run, "data", c->data, err);
    if (!separate && !data_is_text(&run->train))
        return fail(err, "token shards have no validation part: name some with --val-data");
    if (data_open(&run->val, separate ? c->val_data : c->data, separate ? DATA_ALL : DATA_VAL,
                  DATA_SEQUENTIAL, 0, c->seq_len, 0, err))
        return data_fail_resumed(run, separate ? "val-data" : "data",
                                 separate ? c->val_data : c->data, err);
    if (data_is_text(&run->train) != data_is_text(&run->val))
        return fail(err, "%s and %s are not of one kind: one is text, the other token shards",
                    c->data, c->val_data);
    const DataFile *shared = data_shared(&run->train, &run->val);
    if (shared)
        fprintf(stderr,
                "note: %s is training data and validation data too, so the validation loss is not "
                "that of unseen text\n",
                shared->path);
    char train_id[TOKENIZER_ID_SIZE], val_id[TOKENIZER_ID_SIZE];
    if (!tokenizer_id_agree(run->train.tokenizer, run->val.tokenizer))
        return fail(err,
                    "--data %s has tokens of the tokenizer %s and --val-data %s those of %s: make "
                    "both with one vocabulary",
                    c->data, tokenizer_id_text(run->train.tokenizer, train_id), c->val_data,
                    tokenizer_id_text(run->val.tokenizer, val_id));
    if (!c->vocab) c->vocab = data_is_text(&run->train) ? 256 : 50257;
    run->train.vocab = run->val.vocab = c->vocab;
    snprintf(run->data_id, sizeof run->data_id, "%016llx",
             (unsigned long long)data_checksum(&run->train));
    open_texts(run);
    return open_eval(run, err);
}

/* Room for one micro-batch on the host. */
static inline int open_batch(Run *run, char *err) {
    size_t tokens = (size_t)run->config.batch_size * run->config.seq_len;
    run->x = (int *)calloc(tokens, sizeof(int));
    run->y = (int *)calloc(tokens, sizeof(int));
    return run->x && run->y ? 0 : fail(err, "out of memory: a batch");
}

/* ---------------------------------------------------------------------------------------------- */
/* choices by measurement: see choices.h */

/* Reads the choices of all runs of --runs-dir. If the file cannot be read, the run measures for
   itself. */
static inline void read_choices(Run *run) {
    char path[FILE_PATH_SIZE], err[ERR_LEN];
    file_path(path, "%s/choices.txt", run->asked.runs_dir);
    run->choices.from = &run->known;
    if (choices_read(&run->known, path, err)) fprintf(stderr, "note: %s\n", err);
}

/* Collects what the device has measured since the last call, and writes it for later runs. */
static inline void keep_choices(Run *run) {
    char path[FILE_PATH_SIZE], err[ERR_LEN];
    device_choices(&run->choices);
    file_path(path, "%s/choices.txt", run->asked.runs_dir);
    if (run->known.changed && choices_write(&run->known, path, err))
        fprintf(stderr, "note: %s\n", err);
    run->known.changed = 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* writing checkpoints */

static inline const char *train_part_name(int part) {
    return part == DATA_TRAIN ? "nine tenths" : "all";
}

/* The measurements that a line of the log awaits, by their names in a checkpoint's header. */
enum { MEASURES = 4 };
static const char *const measure_names[MEASURES] = {"", "validation", "evaluation",
                                                    "validation and evaluation"};

/* The header of a checkpoint of the present state, lines "key=value", for the caller to free; NULL
   without memory. */
static inline char *checkpoint_header(const Run *run, const Plan *plan) {
    char *text = NULL;
    size_t size = 0;
    DataState d = data_state(&run->train);
    FILE *f = open_memstream(&text, &size);
    if (!f) return NULL;
    fprintf(f, "version=%s\nstep=%d\ntokens=%lld\ndata=%s\n", CM_VERSION, run->step,
            (long long)run->tokens, run->data_id);
    fprintf(f, "data_seed=%llu\ndata_epoch=%llu\ndata_shard=%llu\ndata_position=%llu\n",
            (unsigned long long)d.seed, (unsigned long long)d.epoch, (unsigned long long)d.shard,
            (unsigned long long)d.position);
    char tokenizer[TOKENIZER_ID_SIZE];
    fprintf(f, "vocab=%d\ntokenizer=%s\ntrain_part=%s\nmachine=%s\n", run->config.vocab,
            tokenizer_id_text(run->train.tokenizer, tokenizer), train_part_name(run->train_part),
            run->identity);
    if (run->from_file[0])
        fprintf(f, "init_from_file=%s\ninit_from_checksum=%s\n", run->from_file, run->from_sum);
    if (run->pending)
        fprintf(f, "pending=%.*s\npending_for=%s\n", (int)strcspn(run->pending, "\n"), run->pending,
                measure_names[run->due]);
    for (int i = 0; i < run->n_changes; i++) {
        const RunChange *change = &run->changes[i];
        fprintf(f, "change.%d=%d %s\nchange.%d.was=%s\nchange.%d.is=%s\n", i, change->step,
                change->name, i, change->from, i, change->to);
    }
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        char value[FLAG_STRING_SIZE];
        if (config_flags[i].on_resume == RESUME_START) continue;
        flags_get_text(&config_flags[i], &run->asked, value);
        fprintf(f, "flag.%s=%s\n", config_flags[i].name, value);
    }
    for (int i = 0; i < run->choices.n; i++)
        fprintf(f, "choice.%s=%s\n", run->choices.c[i].key, run->choices.c[i].value);
    for (int i = 0; i < plan->states; i++)
        if (plan->state[i].since)
            fprintf(f, "since.%s=%d\n", plan->state[i].name, plan->state[i].since);
    if (fclose(f)) { /* without memory the text is cut short */
        free(text);
        return NULL;
    }
    return text;
}

enum { RECORD_DTYPE = sizeof(floatM) == 8 ? CKPT_F64 : CKPT_F32 };

/* Where the records of a checkpoint go. Without a writer their bytes are counted, so that a full
   disk is found before the first byte is written. */
typedef struct {
    CkptWriter *w;
    uint64_t bytes;
    floatM *host; /* room for the largest record */
} Saver;

/* Writes device memory as the record PREFIX.NAME of shape dims[3]. */
static inline int save_record(Saver *s, char prefix, const char *name, const floatM *from,
                              const int64_t dims[3], char *err) {
    char full[96];
    int64_t bytes = dims[0] * dims[1] * dims[2] * (int64_t)sizeof(floatM);
    snprintf(full, sizeof full, "%c.%s", prefix, name);
    s->bytes += ckpt_record_bytes(full, RECORD_DTYPE, 3, dims);
    if (!s->w) return 0;
    device_download(s->host, from, (size_t)bytes);
    if (ckpt_tensor(s->w, full, RECORD_DTYPE, 3, dims, err)) return -1;
    return ckpt_write(s->w, s->host, bytes, err);
}

/* Writes a record of every tensor with the layers that a slot holds. */
static inline int save_slot(Saver *s, char prefix, const Registry *r, SlotId slot,
                            const floatM *base, char *err) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        const int64_t dims[3] = {t->of_base ? 0 : t->slot[slot].layers, t->rows, t->cols};
        if (dims[0] && save_record(s, prefix, t->name, base + t->slot[slot].at, dims, err))
            return -1;
    }
    return 0;
}

static inline int save_tensors(Saver *s, const Params *p, const Plan *plan, char *err) {
    int status = save_slot(s, 'p', &p->r, SLOT_PARAM, p->param, err);
    if (!status && p->ema_live) status = save_slot(s, 'e', &p->r, SLOT_EMA, p->ema, err);
    if (!status) status = save_slot(s, 'm', &p->r, SLOT_MOMENT, p->moment, err);
    for (int i = 0; i < plan->states && !status; i++) {
        const StateTensor *state = &plan->state[i];
        status = save_record(s, 's', state->name, p->state + state->at, state->dims, err);
    }
    return status;
}

/* Elements of the largest record. */
static inline size_t largest_record(const Params *p, const Plan *plan) {
    size_t largest = 1;
    for (int id = 0; id < TENSORS; id++)
        if (!p->r.t[id].of_base && p->r.t[id].size > largest) largest = p->r.t[id].size;
    for (int i = 0; i < plan->states; i++)
        if (plan->state[i].size > largest) largest = plan->state[i].size;
    return largest;
}

/* Writes a checkpoint of the present state and deletes all but the --keep-checkpoints newest.
   Returns 0, or -1 with a message. */
static inline int save_checkpoint(const Run *run, const Params *p, const Plan *plan, char *err) {
    char path[FILE_PATH_SIZE], *header = checkpoint_header(run, plan);
    CkptWriter w;
    Saver saver = {NULL, 0, NULL};
    ckpt_path(path, run->log.checkpoints, run->step);
    save_tensors(&saver, p, plan, err);
    uint64_t bytes = saver.bytes;
    saver.w = &w;
    saver.host = (floatM *)malloc(largest_record(p, plan) * sizeof(floatM));
    int status = saver.host && header ? ckpt_begin(&w, path, header, err)
                                      : fail(err, "out of memory while saving a checkpoint");
    if (!status) {
        status =
            ckpt_reserve(&w, bytes, err) || save_tensors(&saver, p, plan, err) || device_check(err);
        if (status) ckpt_abort(&w);
        else status = ckpt_commit(&w, err);
    }
    free(header);
    free(saver.host);
    if (status) return -1;
    return ckpt_prune(run->log.checkpoints, run->asked.keep_checkpoints, err);
}

/* Writes a checkpoint, after the log up to this step is on the disk. */
static inline int save_run(Run *run, const Params *p, const Plan *plan, char *err) {
    keep_choices(run);
    if (!run->asked.keep_checkpoints) return 0;
    if (log_sync(&run->log, err)) return -1;
    return save_checkpoint(run, p, plan, err);
}

/* ---------------------------------------------------------------------------------------------- */
/* run.json */

/* The changes of flags as a JSON list, for the caller to free; NULL without memory. */
static inline char *changes_json(const Run *run) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return NULL;
    fputc('[', f);
    for (int i = 0; i < run->n_changes; i++) {
        const RunChange *change = &run->changes[i];
        fprintf(f, "%s{\"from_step\": %d, \"flag\": ", i ? ", " : "", change->step + 1);
        json_string(f, change->name);
        fputs(", \"was\": ", f);
        json_string(f, change->from);
        fputs(", \"is\": ", f);
        json_string(f, change->to);
        fputc('}', f);
    }
    fputc(']', f);
    if (!fclose(f)) return text;
    free(text);
    return NULL;
}

/* Writes run.json: what the run is, from which a run without a checkpoint is started over. */
static inline int write_run_json(Run *run, const Registry *r, char *err) {
    char parameters[32], train_tokens[32], val_tokens[32], val_id[64], flops[32];
    char examples[32], eval_id[64];
    int evaluates = run->eval.count > 0;
    char *changes = changes_json(run);
    const char *from = run->from_file;
    char tokenizer[TOKENIZER_ID_SIZE];
    snprintf(parameters, sizeof parameters, "%zu", r->count);
    snprintf(train_tokens, sizeof train_tokens, "%zu", data_tokens(&run->train));
    snprintf(val_tokens, sizeof val_tokens, "%zu", data_tokens(&run->val));
    snprintf(val_id, sizeof val_id, "%016llx", (unsigned long long)data_checksum(&run->val));
    snprintf(examples, sizeof examples, "%zu", run->eval.count);
    snprintf(eval_id, sizeof eval_id, "%016llx", (unsigned long long)run->eval.checksum);
    snprintf(flops, sizeof flops, "%.6g", flops_per_token(&run->config, r));
    LogPair pairs[] = {
        {.key = "program", .value = "cm.c", .is_json = 0},
        {.key = "version", .value = CM_VERSION, .is_json = 0},
        {.key = "parameters", .value = parameters, .is_json = 1},
        {.key = "flops_per_token", .value = flops, .is_json = 1},
        {.key = "train_tokens", .value = train_tokens, .is_json = 1},
        {.key = "val_tokens", .value = val_tokens, .is_json = 1},
        {.key = "tokenizer",
         .value = tokenizer_id_text(run->train.tokenizer, tokenizer),
         .is_json = 0},
        {.key = "train_checksum", .value = run->data_id, .is_json = 0},
        {.key = "val_checksum", .value = val_id, .is_json = 0},
        {.key = "eval_examples", .value = evaluates ? examples : NULL, .is_json = 1},
        {.key = "eval_checksum", .value = evaluates ? eval_id : NULL, .is_json = 0},
        {.key = "train_part", .value = train_part_name(run->train_part), .is_json = 0},
        {.key = "init_from_checksum", .value = from[0] ? run->from_sum : NULL, .is_json = 0},
        {.key = "init_from_file", .value = from[0] ? from : NULL, .is_json = 0},
        {.key = "changes", .value = changes, .is_json = 1},
    };
    int status = log_run_json(&run->log, config_flags, CONFIG_FLAGS, &run->config, &run->asked,
                              run->machine, pairs, (int)(sizeof pairs / sizeof pairs[0]), err);
    free(changes);
    return status;
}

static inline void close_run(Run *run) {
    log_close(&run->log);
    data_close(&run->train);
    data_close(&run->val);
    token_bytes_free(&run->texts);
    eval_close(&run->eval);
    choices_free(&run->choices);
    choices_free(&run->known);
    free(run->changes);
    free(run->pending);
    free(run->x);
    free(run->y);
}

#endif
