/*
Everything of a run but its model: flags, data, the run folder, checkpoints, signals, choices by
measurement. The model and its training are in train_gpt.c; here the model is a Params and a Plan.

A checkpoint has all that a run needs to continue: the flags it was started with, the step, the
place in the data, and by name

    p.NAME    the parameters of a tensor
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
#include "log.h"
#include "optim/plan.h"
#include "params.h"
#include "report.h"

#ifndef CM_VERSION
#define CM_VERSION "unknown" /* the Makefile passes what the file VERSION says */
#endif

typedef struct {
    Config asked; /* flags as given, which is what checkpoints store */
    unsigned char given[CONFIG_FLAGS];
    Config config; /* the flags, resolved */
    Data train, val;
    RunLog log;
    char data_id[64];         /* fingerprint of the training data */
    int step;                 /* updates done */
    int64_t tokens;           /* that these updates read */
    int *x, *y;               /* a batch on the host, (B,T) each */
    double peak, stated_peak; /* FLOP/s of the machine, see device_peak */
    Choices choices, known;   /* measured for this run, and for all runs of --runs-dir */
} Run;

/* ---------------------------------------------------------------------------------------------- */
/* signals */

/* SIGINT and SIGTERM are blocked in all threads, and the loop asks for them between steps. They are
   blocked before other threads exist, OpenMP's or those of a GPU's driver, because threads inherit
   the mask. A handler could be called inside oneDNN's matrix product, whose kernels move the stack
   pointer into a small buffer on the heap; the handler's frame, 11 kB with AMX, would then
   overwrite the memory below that buffer. */
static inline void hold_signals(int hold) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

/* The signal that is pending, or 0. */
static inline int waiting_signal(void) {
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, SIGINT) ? SIGINT : sigismember(&set, SIGTERM) ? SIGTERM : 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* data */

/* Opens the data of run.config, and sets the vocabulary if the flags leave it open. */
static inline int open_data(Run *run, char *err) {
    Config *c = &run->config;
    int64_t micro_batch = (int64_t)c->batch_size * c->seq_len;
    int64_t rows = (c->total_batch_tokens ? c->total_batch_tokens : micro_batch) / c->seq_len;
    int separate = c->val_data[0] != 0;
    if (data_open(&run->train, c->data, separate ? DATA_ALL : DATA_TRAIN, c->data_order,
                  (uint64_t)c->seed, c->seq_len, (int)rows, err))
        return -1;
    if (!separate && !data_is_text(&run->train))
        return fail(err, "token shards have no validation part: name some with --val-data");
    if (data_open(&run->val, separate ? c->val_data : c->data, separate ? DATA_ALL : DATA_VAL,
                  DATA_SEQUENTIAL, 0, c->seq_len, 0, err))
        return -1;
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
    return 0;
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
    fprintf(f, "vocab=%d\ntokenizer=%s\n", run->config.vocab,
            tokenizer_id_text(run->train.tokenizer, tokenizer));
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        char value[FLAG_STRING_SIZE];
        /* A switch belongs to one start of the program, not to the run. */
        if (config_flags[i].kind == KIND_SWITCH) continue;
        flags_get_text(&config_flags[i], &run->asked, value);
        fprintf(f, "flag.%s=%s\n", config_flags[i].name, value);
    }
    for (int i = 0; i < run->choices.n; i++)
        fprintf(f, "choice.%s=%s\n", run->choices.c[i].key, run->choices.c[i].value);
    for (int i = 0; i < plan->states; i++)
        if (plan->state[i].since)
            fprintf(f, "since.%s=%d\n", plan->state[i].name, plan->state[i].since);
    fclose(f);
    return text;
}

enum { RECORD_DTYPE = sizeof(floatM) == 8 ? CKPT_F64 : CKPT_F32 };

/* Writes device memory as the record PREFIX.NAME of shape dims[3]; `host` has room for it. */
static inline int save_record(CkptWriter *w, char prefix, const char *name, const floatM *from,
                              const int64_t dims[3], floatM *host, char *err) {
    char full[96];
    int64_t bytes = dims[0] * dims[1] * dims[2] * (int64_t)sizeof(floatM);
    snprintf(full, sizeof full, "%c.%s", prefix, name);
    device_download(host, from, (size_t)bytes);
    if (ckpt_tensor(w, full, RECORD_DTYPE, 3, dims, err)) return -1;
    return ckpt_write(w, host, bytes, err);
}

/* Writes a record of every tensor with the layers that a slot holds. */
static inline int save_slot(CkptWriter *w, char prefix, const Registry *r, SlotId slot,
                            const floatM *base, floatM *host, char *err) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        const int64_t dims[3] = {t->slot[slot].layers, t->rows, t->cols};
        if (!dims[0]) continue;
        if (save_record(w, prefix, t->name, base + t->slot[slot].at, dims, host, err)) return -1;
    }
    return 0;
}

static inline int save_tensors(CkptWriter *w, const Params *p, const Plan *plan, char *err) {
    size_t largest = 1;
    for (int id = 0; id < TENSORS; id++)
        if (p->r.t[id].size > largest) largest = p->r.t[id].size;
    for (int i = 0; i < plan->states; i++)
        if (plan->state[i].size > largest) largest = plan->state[i].size;
    floatM *host = (floatM *)malloc(largest * sizeof(floatM));
    if (!host) return fail(err, "out of memory while saving a checkpoint");
    int status = save_slot(w, 'p', &p->r, SLOT_PARAM, p->param, host, err);
    if (!status) status = save_slot(w, 'm', &p->r, SLOT_MOMENT, p->moment, host, err);
    for (int i = 0; i < plan->states && !status; i++) {
        const StateTensor *s = &plan->state[i];
        status = save_record(w, 's', s->name, p->state + s->at, s->dims, host, err);
    }
    free(host);
    return status;
}

/* Writes a checkpoint of the present state and deletes all but the --keep-checkpoints newest.
   Returns 0, or -1 with a message. */
static inline int save_checkpoint(const Run *run, const Params *p, const Plan *plan, char *err) {
    char path[FILE_PATH_SIZE], *header = checkpoint_header(run, plan);
    CkptWriter w;
    if (!header) return fail(err, "out of memory while saving a checkpoint");
    ckpt_path(path, run->log.checkpoints, run->step);
    int status = ckpt_begin(&w, path, header, err);
    free(header);
    if (status) return -1;
    if (save_tensors(&w, p, plan, err) || device_check(err)) {
        ckpt_abort(&w);
        return -1;
    }
    if (ckpt_commit(&w, err)) return -1;
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
/* reading checkpoints */

/* Sets every flag that is not marked in `given` (may be NULL) to its value in the checkpoint. */
static inline int load_flags(Config *c, const unsigned char *given, const Ckpt *ckpt, char *err) {
    char key[96], text[FLAG_STRING_SIZE];
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        const Flag *flag = &config_flags[i];
        snprintf(key, sizeof key, "flag.%s", flag->name);
        if ((given && given[i]) || flag->kind == KIND_SWITCH ||
            ckpt_value(ckpt, key, text, sizeof text))
            continue;
        if (flags_set(config_flags, CONFIG_FLAGS, c, NULL, flag->name, text, err)) return -1;
    }
    return 0;
}

typedef enum { RECORD_TAKEN, RECORD_ABSENT, RECORD_OTHER_SIZE } RecordStatus;

/* Copies the record PREFIX.NAME, or PREFIX where name is empty, to n elements of device memory. */
static inline RecordStatus load_record(const Ckpt *ckpt, char prefix, const char *name, floatM *to,
                                       size_t n) {
    char full[96];
    int dtype;
    int64_t bytes;
    snprintf(full, sizeof full, "%c%s%s", prefix, name[0] ? "." : "", name);
    const void *data = ckpt_find(ckpt, full, &dtype, NULL, NULL, &bytes);
    if (!data) return RECORD_ABSENT;
    if (dtype != RECORD_DTYPE || bytes != (int64_t)(n * sizeof(floatM))) return RECORD_OTHER_SIZE;
    device_upload(to, data, (size_t)bytes);
    return RECORD_TAKEN;
}

/* Reads the parameters of every tensor; the layers' copy is left as it is. Returns -1 with a
   message if the checkpoint is of another model. */
static inline int load_parameters(const Params *p, const Ckpt *ckpt, char *err) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &p->r.t[id];
        if (!t->layers) continue;
        switch (load_record(ckpt, 'p', t->name, p->param + t->slot[SLOT_PARAM].at,
                            slot_size(t, SLOT_PARAM))) {
        case RECORD_TAKEN: break;
        case RECORD_ABSENT:
            return fail(err, "the checkpoint has no tensor p.%s: it is of another model", t->name);
        case RECORD_OTHER_SIZE:
            return fail(err,
                        "tensor p.%s has another size in the checkpoint: the model's flags differ "
                        "from those of the run",
                        t->name);
        }
    }
    return mapped_whole(ckpt->file, err);
}

/* Names of records, separated by commas, for a note. */
typedef struct {
    char text[1024];
} NameList;

/* Adds PREFIX.NAME, or PREFIX where name is empty. */
static inline void names_add(NameList *list, char prefix, const char *name) {
    size_t used = strlen(list->text);
    snprintf(list->text + used, sizeof list->text - used, "%s%c%s%s", used ? ", " : "", prefix,
             name[0] ? "." : "", name);
}

/* Reads first moments. A moment that the checkpoint lacks, because the tensor was frozen, becomes
   zero. */
static inline void load_moments(const Params *p, const Ckpt *ckpt, NameList *anew) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &p->r.t[id];
        size_t n = slot_size(t, SLOT_MOMENT);
        floatM *moment = p->moment + t->slot[SLOT_MOMENT].at;
        if (n && load_record(ckpt, 'm', t->name, moment, n) != RECORD_TAKEN) {
            device_zero(moment, n * sizeof(floatM));
            names_add(anew, 'm', t->name);
        }
    }
}

/* Starts a state after `step` updates: it becomes zero, and with it the first moments that belong
   to it. */
static inline void start_state_anew(const Params *p, StateTensor *s, int step) {
    const Tensor *t = &p->r.t[s->part.id];
    s->since = step;
    device_zero(p->state + s->at, s->size * sizeof(floatM));
    for (int l = 0; l < t->layers && s->with_moment; l++) {
        floatM *moment = slot_pointer(t, SLOT_MOMENT, l, p->moment);
        if (!moment) continue;
        device_zero(moment + (size_t)s->part.first * t->cols,
                    (size_t)s->part.rows * t->cols * sizeof(floatM));
    }
}

/* Whether the checkpoint has a state under its name and in its shape. */
static inline int state_is_saved(const Ckpt *ckpt, const StateTensor *s) {
    char full[96];
    snprintf(full, sizeof full, "s.%s", s->name);
    const CkptRecord *r = ckpt_record(ckpt, full);
    return r && r->ndim == 3 && !memcmp(r->dims, s->dims, sizeof s->dims);
}

/* The state of version 1, which lies in one record "v" in the order of the plan of the run that
   wrote it. Sets `plan` to that plan, which follows from the flags in the header. Returns the
   record's data, or NULL if the file has none, or one of another plan. */
static inline const floatM *version_1_state(const Ckpt *ckpt, Plan *plan) {
    char unused[ERR_LEN];
    uint64_t vocab = 0;
    int64_t bytes = 0;
    int dtype = 0;
    Config c;
    memset(&c, 0, sizeof c);
    memset(plan, 0, sizeof *plan);
    flags_defaults(config_flags, CONFIG_FLAGS, &c);
    const void *data = ckpt->version == 1 ? ckpt_find(ckpt, "v", &dtype, NULL, NULL, &bytes) : NULL;
    if (!data || load_flags(&c, NULL, ckpt, unused) ||
        ckpt_number_in(ckpt, "vocab", 1, CONFIG_MAX_VOCAB, &vocab, unused))
        return NULL;
    c.vocab = (int)vocab;
    if (config_resolve(&c, unused)) return NULL;
    Registry r = registry_build(&c);
    *plan = plan_build(&c, &r);
    int whole = dtype == RECORD_DTYPE && bytes == (int64_t)(plan->state_size * sizeof(floatM));
    return whole ? (const floatM *)data : NULL;
}

/* The state of a plan that has the name and shape of `s`, or NULL. */
static inline const StateTensor *find_state(const Plan *plan, const StateTensor *s) {
    for (int i = 0; i < plan->states; i++)
        if (!strcmp(plan->state[i].name, s->name) &&
            !memcmp(plan->state[i].dims, s->dims, sizeof s->dims))
            return &plan->state[i];
    return NULL;
}

/* Reads the rules' state by name. A state that the checkpoint lacks, or has in another shape,
   starts anew. State of version 1 that has no use here is added to `unused`. Returns 0, or -1 with
   a message about a number of the header. */
static inline int load_state(const Params *p, Plan *plan, const Ckpt *ckpt, int step,
                             NameList *anew, NameList *unused, char *err) {
    Plan old;
    const floatM *v = version_1_state(ckpt, &old);
    for (int i = 0; i < plan->states; i++) {
        StateTensor *s = &plan->state[i];
        const StateTensor *from = v ? find_state(&old, s) : NULL;
        char key[96];
        uint64_t since = 0;
        if (from) {
            device_upload(p->state + s->at, v + from->at, s->size * sizeof(floatM));
            continue;
        }
        if (!state_is_saved(ckpt, s) ||
            load_record(ckpt, 's', s->name, p->state + s->at, s->size) != RECORD_TAKEN) {
            start_state_anew(p, s, step);
            names_add(anew, 's', s->name);
            continue;
        }
        snprintf(key, sizeof key, "since.%s", s->name);
        if (ckpt_has_value(ckpt, key) && ckpt_number_in(ckpt, key, 0, (uint64_t)step, &since, err))
            return -1;
        s->since = (int)since;
    }
    for (int i = 0; v && i < old.states; i++)
        if (!find_state(plan, &old.state[i])) names_add(unused, 's', old.state[i].name);
    if (!v && ckpt->version == 1 && ckpt_record(ckpt, "v")) names_add(unused, 'v', "");
    return 0;
}

/* Whether record m.NAME or s.NAME belongs to this model and its rules. */
static inline int record_is_used(const Params *p, const Plan *plan, char prefix, const char *name) {
    for (int id = 0; id < TENSORS && prefix == 'm'; id++) {
        const Tensor *t = &p->r.t[id];
        if (t->slot[SLOT_MOMENT].layers && !strcmp(t->name, name)) return 1;
    }
    for (int i = 0; i < plan->states && prefix == 's'; i++)
        if (!strcmp(plan->state[i].name, name)) return 1;
    return 0;
}

/* Adds to `unused` the records of optimizer state that this model and its rules do not use. */
static inline void list_unused(const Params *p, const Plan *plan, const Ckpt *ckpt,
                               NameList *unused) {
    for (int i = 0; i < ckpt->count; i++) {
        const CkptRecord *r = &ckpt->records[i];
        char name[96];
        if (r->name_length < 3 || r->name[1] != '.' || (r->name[0] != 'm' && r->name[0] != 's'))
            continue;
        snprintf(name, sizeof name, "%.*s", (int)r->name_length - 2, r->name + 2);
        if (!record_is_used(p, plan, r->name[0], name)) names_add(unused, r->name[0], name);
    }
}

/* Reads parameters, first moments and state of a checkpoint after `step` updates. State that the
   rules need and the checkpoint lacks starts anew. One line on stderr names what starts anew and
   what is not taken over. Returns 0, or -1 with a message if the parameters do not fit. */
static inline int load_training(const Params *p, Plan *plan, const Ckpt *ckpt, int step,
                                char *err) {
    NameList anew = {""}, unused = {""};
    if (load_parameters(p, ckpt, err)) return -1;
    load_moments(p, ckpt, &anew);
    list_unused(p, plan, ckpt, &unused);
    if (load_state(p, plan, ckpt, step, &anew, &unused, err)) return -1;
    if (anew.text[0] || unused.text[0])
        fprintf(stderr, "note: the rules are not those of the checkpoint:%s%s%s%s%s\n",
                anew.text[0] ? " starting anew: " : "", anew.text,
                anew.text[0] && unused.text[0] ? ";" : "",
                unused.text[0] ? " not taken over: " : "", unused.text);
    return 0;
}

/* Takes over the flags of the run that a checkpoint is of. Where this start changes a rule, the
   checkpoint's rate is that of the other rule: the new rule has the rate that it has in a new run
   of this preset. */
static inline int resume_flags(Run *run, const Ckpt *ckpt, char *err) {
    Config *c = &run->asked, before = *c, fresh;
    if (load_flags(&before, NULL, ckpt, err) || load_flags(c, run->given, ckpt, err)) return -1;
    flags_defaults(config_flags, CONFIG_FLAGS, &fresh);
    if (config_apply(&fresh, NULL, config_presets[c->preset], err)) return -1;
    fresh.optimizer = c->optimizer;
    for (int i = 0; i < CONFIG_ROLES; i++) *config_rule(&fresh, i) = *config_rule(c, i);
    config_rates(&fresh, run->given);
    Config now = *c;
    config_resolve_rules(&before);
    config_resolve_rules(&now);
    for (int i = 0; i < CONFIG_ROLES; i++)
        if (*config_rule(&now, i) != *config_rule(&before, i) &&
            !config_is_given(run->given, config_roles[i].flag))
            *config_rate(c, i) = *config_rate(&fresh, i);
    return 0;
}

/* Opens the newest checkpoint of --run, takes over its flags and sets `path` to its name. Returns 1
   if the run was killed before its first checkpoint: it then starts over with the flags given. */
static inline int open_checkpoint(Run *run, Ckpt *ckpt, char *path, char *err) {
    char folder[FILE_PATH_SIZE];
    file_path(folder, "%s/%s/checkpoints", run->asked.runs_dir, run->asked.run);
    if (access(folder, F_OK))
        return fail(err, "--resume: there is no run %s/%s; check --run and --runs-dir",
                    run->asked.runs_dir, run->asked.run);
    int status = ckpt_open_newest(ckpt, folder, path, err);
    return status ? status : resume_flags(run, ckpt, err);
}

/* Restores the run as it was when the checkpoint was written: parameters, moments, state, place in
   the data, log. The layers' copy of the parameters is left as it is. */
static inline int restore_run(Run *run, const Params *p, Plan *plan, const Ckpt *ckpt, char *err) {
    uint64_t step, tokens;
    DataState d;
    char id[64];
    if (ckpt_number_in(ckpt, "step", 0, INT32_MAX, &step, err) ||
        ckpt_number_in(ckpt, "tokens", 0, INT64_MAX, &tokens, err) ||
        ckpt_number(ckpt, "data_seed", &d.seed, err) ||
        ckpt_number(ckpt, "data_epoch", &d.epoch, err) ||
        ckpt_number(ckpt, "data_shard", &d.shard, err) ||
        ckpt_number(ckpt, "data_position", &d.position, err))
        return -1;
    if (ckpt_value(ckpt, "data", id, sizeof id) || strcmp(id, run->data_id))
        return fail(err, "--resume: %s is not the data the run was started with", run->asked.data);
    if (load_training(p, plan, ckpt, (int)step, err) || data_seek(&run->train, d, err)) return -1;
    run->step = (int)step;
    run->tokens = (int64_t)tokens;
    if (log_truncate_after(&run->log, (int64_t)step, err) ||
        ckpt_discard_after(run->log.checkpoints, (int64_t)step, err))
        return -1;
    /* A run that is killed between writing a checkpoint and deleting an old one leaves one too
       many. */
    return ckpt_prune(run->log.checkpoints, run->asked.keep_checkpoints, err);
}

/* ---------------------------------------------------------------------------------------------- */
/* run.json */

static inline int write_run_json(Run *run, const Registry *r, const char *machine, char *err) {
    char parameters[32], train_tokens[32], val_tokens[32], val_id[64], flops[32];
    char tokenizer[TOKENIZER_ID_SIZE];
    snprintf(parameters, sizeof parameters, "%zu", r->count);
    snprintf(train_tokens, sizeof train_tokens, "%zu", data_tokens(&run->train));
    snprintf(val_tokens, sizeof val_tokens, "%zu", data_tokens(&run->val));
    snprintf(val_id, sizeof val_id, "%016llx", (unsigned long long)data_checksum(&run->val));
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
    };
    return log_run_json(&run->log, config_flags, CONFIG_FLAGS, &run->config, machine, pairs,
                        (int)(sizeof pairs / sizeof pairs[0]), err);
}

static inline void close_run(Run *run) {
    log_close(&run->log);
    data_close(&run->train);
    data_close(&run->val);
    choices_free(&run->choices);
    choices_free(&run->known);
    free(run->x);
    free(run->y);
}

#endif
