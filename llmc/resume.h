/*
What a run takes over: a resumed run from its folder, a new run from another's weights.

A run's folder has the newest whole checkpoint, run.json, or both. The checkpoint says what the
weights are; run.json says what the run was last told to do, and is all there is until the first
checkpoint. So the flags of a resumed run are the checkpoint's; then run.json's, but for those that
are fixed; then those of the command line, but for those that are fixed (FlagResume in flags.h). A
run without a checkpoint starts over, if its log can then be written again as it was.

Needs a backend's device_upload, device_zero and device_check.
*/
#ifndef CM_RESUME_H
#define CM_RESUME_H

#include "readout.h"
#include "run.h"

/* ---------------------------------------------------------------------------------------------- */
/* flags */

/* Sets every flag that is not marked in `given` (may be NULL) to the value of its line PREFIX.NAME.
   Those that belong to a start are left out, and so are fixed ones unless `fixed`. */
static inline int load_flags_of(Config *c, const unsigned char *given, int fixed,
                                const char *prefix, const char *lines, uint64_t size, char *err) {
    char key[96], text[FLAG_STRING_SIZE];
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        const Flag *flag = &config_flags[i];
        snprintf(key, sizeof key, "%s.%s", prefix, flag->name);
        if ((given && given[i]) || flag->on_resume == RESUME_START ||
            (flag->on_resume == RESUME_FIXED && !fixed) ||
            header_value(lines, size, key, text, sizeof text))
            continue;
        if (flags_set(config_flags, CONFIG_FLAGS, c, NULL, flag->name, text, err)) return -1;
    }
    return 0;
}

static inline int load_flags(Config *c, const unsigned char *given, const Ckpt *ckpt, char *err) {
    return load_flags_of(c, given, 1, "flag", ckpt->header, ckpt->header_length, err);
}

/* Which tokenizer a model was trained with. An old checkpoint does not say so: if it is of a .txt
   file or of at most 256 tokens, its tokens are bytes, else GPT-2's. */
static inline int load_tokenizer_id(TokenizerId *id, const Ckpt *ckpt, const Config *c, char *err) {
    char text[FLAG_STRING_SIZE];
    id->kind =
        data_ends_with(c->data, ".txt") || c->vocab <= 256 ? TOKENIZER_BYTES : TOKENIZER_GPT2;
    id->fingerprint = 0;
    if (ckpt_value(ckpt, "tokenizer", text, sizeof text) || !tokenizer_id_parse(text, id)) return 0;
    return fail(err,
                "its tokenizer is \"%.80s\", which this program does not know: use a newer cm.c",
                text);
}

/* ---------------------------------------------------------------------------------------------- */
/* tensors */

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

/* Whether a checkpoint has the parameters of a tensor. With `crop` a table of positions may be
   longer than the model's, of which the first positions are taken. */
static inline RecordStatus find_parameters(const Tensor *t, const Ckpt *ckpt, int crop) {
    char full[96];
    snprintf(full, sizeof full, "p.%s", t->name);
    const CkptRecord *r = ckpt_record(ckpt, full);
    int64_t bytes = (int64_t)(slot_size(t, SLOT_PARAM) * sizeof(floatM));
    if (!r || !r->data) return RECORD_ABSENT;
    int longer = crop && !strcmp(t->name, "wpe") && r->ndim == 3 && r->dims[2] == t->cols;
    int fits = longer ? r->bytes >= bytes : r->bytes == bytes;
    return r->dtype == RECORD_DTYPE && fits ? RECORD_TAKEN : RECORD_OTHER_SIZE;
}

/* Which tensors a checkpoint is to have: all that are trained, or those that adapters are trained
   beside. Without adapters the first are all, and there are none of the second. */
typedef enum { TENSORS_OWN, TENSORS_OF_BASE } Whose;

/* Returns -1 with a message if a checkpoint is of another model. */
static inline int check_parameters(const Registry *r, const Ckpt *ckpt, Whose whose, int crop,
                                   char *err) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->t[id];
        if (!t->layers || t->of_base != (whose == TENSORS_OF_BASE)) continue;
        switch (find_parameters(t, ckpt, crop)) {
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
    return 0;
}

/* Reads the parameters of these tensors; the layers' copy is left as it is. Returns 0, or -1 with a
   message. */
static inline int load_parameters(const Params *p, const Ckpt *ckpt, Whose whose, int crop,
                                  char *err) {
    char full[96];
    if (check_parameters(&p->r, ckpt, whose, crop, err)) return -1;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &p->r.t[id];
        snprintf(full, sizeof full, "p.%s", t->name);
        if (t->layers && t->of_base == (whose == TENSORS_OF_BASE))
            device_upload(p->param + t->slot[SLOT_PARAM].at, ckpt_record(ckpt, full)->data,
                          slot_size(t, SLOT_PARAM) * sizeof(floatM));
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

/* Whether the first moments of the factors in a checkpoint mean nothing to the rule of c. */
static inline int moments_are_foreign(const Config *c, const Ckpt *ckpt) {
    char rule[64];
    if (ckpt_value(ckpt, "flag.lora", rule, sizeof rule)) return 0;
    for (int i = 0; i < RULES_END; i++)
        if (!strcmp(rule_table[i].flag, rule) && rule_table[i].traits & MOMENT_OF_ITS_OWN)
            return i != c->lora;
    return 0;
}

/* Reads first moments. A moment that the checkpoint lacks, because the tensor was frozen, becomes
   zero, and so does one that is of no use to another rule. */
static inline void load_moments(const Params *p, const Config *c, const Ckpt *ckpt,
                                NameList *anew) {
    int foreign = moments_are_foreign(c, ckpt);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &p->r.t[id];
        size_t n = slot_size(t, SLOT_MOMENT);
        floatM *moment = p->moment + t->slot[SLOT_MOMENT].at;
        int useless = foreign && t->role == ROLE_FACTOR;
        if (n && (useless || load_record(ckpt, 'm', t->name, moment, n) != RECORD_TAKEN)) {
            device_zero(moment, n * sizeof(floatM));
            names_add(anew, 'm', t->name);
        }
    }
}

/* Reads the averages of the readout. An average that the checkpoint lacks, though it should have
   begun, begins now. */
static inline void load_averages(Params *p, const Config *c, const Ckpt *ckpt, int step,
                                 NameList *anew) {
    p->ema_live = p->ema && step >= c->ema_from;
    for (int id = 0; id < TENSORS && p->ema_live; id++) {
        const Tensor *t = &p->r.t[id];
        size_t n = slot_size(t, SLOT_EMA);
        floatM *average = p->ema + t->slot[SLOT_EMA].at;
        if (!n || load_record(ckpt, 'e', t->name, average, n) == RECORD_TAKEN) continue;
        la_copy(readout_view(t, SLOT_EMA, p->ema), readout_view(t, SLOT_PARAM, p->param));
        names_add(anew, 'e', t->name);
    }
}

/* Replaces the weights of a checkpoint, which have been read, by its readout. For a model that is
   not trained. Returns 0, or -1 with a message. */
static inline int load_readout(const Params *p, const Config *c, const Ckpt *ckpt, char *err) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &p->r.t[id];
        size_t n = slot_size(t, SLOT_EMA);
        if (!n) continue;
        floatM *average = (floatM *)device_alloc(n * sizeof(floatM));
        if (!average) return fail(err, "out of memory: the average of %s", t->name);
        RecordStatus status = load_record(ckpt, 'e', t->name, average, n);
        double b = readout_blend(c, t->role);
        if (status == RECORD_TAKEN)
            la_axpby(readout_view(t, SLOT_PARAM, p->param), b,
                     mat_dense(average, t->slot[SLOT_EMA].layers, t->rows, t->cols), 1 - b);
        device_wait();
        device_free(average);
        if (status == RECORD_OTHER_SIZE)
            return fail(err, "the average e.%s has another size than its tensor", t->name);
    }
    return 0;
}

/* Starts a state after `step` updates: it becomes zero, and with it the first moments that belong
   to it. */
static inline void start_state_anew(const Params *p, StateTensor *s, int step) {
    const Tensor *t = &p->r.t[s->part.id];
    s->since = s->average ? max_int(s->since, step) : step;
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

/* Sets when a state began that a checkpoint after `step` updates has. An average that had not begun
   then, or that is to begin later now, begins at --momentum-ages-from (s->since), or at once if
   that is past. Returns 0, or -1 with a message about a number of the header. */
static inline int load_since(StateTensor *s, const Ckpt *ckpt, int step, char *err) {
    char key[96];
    uint64_t since = 0, most = s->average ? INT_MAX : (uint64_t)step;
    snprintf(key, sizeof key, "since.%s", s->name);
    if (ckpt_has_value(ckpt, key) && ckpt_number_in(ckpt, key, 0, most, &since, err)) return -1;
    int begins = s->average && (s->since > step || since > (uint64_t)step);
    s->since = begins ? max_int(s->since, step) : (int)since;
    return 0;
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
        if (load_since(s, ckpt, step, err)) return -1;
    }
    for (int i = 0; v && i < old.states; i++)
        if (!find_state(plan, &old.state[i])) names_add(unused, 's', old.state[i].name);
    if (!v && ckpt->version == 1 && ckpt_record(ckpt, "v")) names_add(unused, 'v', "");
    return 0;
}

/* Whether record m.NAME, e.NAME or s.NAME belongs to this model and its rules. */
static inline int record_is_used(const Params *p, const Plan *plan, char prefix, const char *name) {
    for (int id = 0; id < TENSORS && prefix == 'e'; id++) {
        const Tensor *t = &p->r.t[id];
        if (p->ema_live && t->slot[SLOT_EMA].layers && !strcmp(t->name, name)) return 1;
    }
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
        if (r->name_length < 3 || r->name[1] != '.' || !strchr("ems", r->name[0])) continue;
        snprintf(name, sizeof name, "%.*s", (int)r->name_length - 2, r->name + 2);
        if (!record_is_used(p, plan, r->name[0], name)) names_add(unused, r->name[0], name);
    }
}

/* Reads parameters, first moments and state of a checkpoint after `step` updates. State that the
   rules need and the checkpoint lacks starts anew. One line on stderr names what starts anew and
   what is not taken over. Returns 0, or -1 with a message if the parameters do not fit. */
static inline int load_training(Params *p, Plan *plan, const Config *c, const Ckpt *ckpt, int step,
                                char *err) {
    NameList anew = {""}, unused = {""};
    if (load_parameters(p, ckpt, TENSORS_OWN, 0, err)) return -1;
    load_averages(p, c, ckpt, step, &anew);
    load_moments(p, c, ckpt, &anew);
    list_unused(p, plan, ckpt, &unused);
    if (load_state(p, plan, ckpt, step, &anew, &unused, err)) return -1;
    if (anew.text[0] || unused.text[0])
        fprintf(stderr, "note: the rules are not those of the checkpoint:%s%s%s%s%s\n",
                anew.text[0] ? " starting anew: " : "", anew.text,
                anew.text[0] && unused.text[0] ? ";" : "",
                unused.text[0] ? " not taken over: " : "", unused.text);
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* what is left of a run */

typedef struct {
    Ckpt ckpt; /* the newest whole checkpoint, if has_ckpt */
    int has_ckpt;
    char path[FILE_PATH_SIZE]; /* its file */
    char *settings;            /* lines of run.json (log_read_run_json), or NULL */
    size_t settings_size;
    Config before; /* the flags that the checkpoint was trained with; run.json's if there is none */
    Config told;   /* the flags that the run was last told, before this start */
    int step;      /* updates that the checkpoint has seen */
    int64_t logged; /* the log's last step, -1 if none */
    int changes;    /* of run->changes: those before this start */
} Resume;

static inline void resume_close(Resume *r) {
    if (r->has_ckpt) ckpt_close(&r->ckpt);
    free(r->settings);
    r->has_ckpt = 0;
    r->settings = NULL;
}

/* A value that the checkpoint's header or, without a checkpoint, run.json has under a key. */
static inline int resume_value(const Resume *r, const char *key, char *value, size_t size) {
    if (r->has_ckpt) return ckpt_value(&r->ckpt, key, value, size);
    return header_value(r->settings ? r->settings : "", r->settings_size, key, value, size);
}

/* Reads the step of the checkpoint, which must be that of the file's name: checkpoints of later
   steps than the one to go on from are deleted, and this one would be among them. */
static inline int resume_read_step(Resume *r, char *err) {
    uint64_t step;
    const char *slash = strrchr(r->path, '/');
    if (ckpt_number_in(&r->ckpt, "step", 0, INT_MAX, &step, err)) return -1;
    r->step = (int)step;
    if (ckpt_step_of(slash ? slash + 1 : r->path) == r->step) return 0;
    return fail(err,
                "--resume: %.900s is the checkpoint of step %d: give it the name step_%08d.ckpt",
                r->path, r->step, r->step);
}

/* Locks the run, before anything of it is read: a process that is about to end may still save.
   Returns -1 with a message if there is no run, or if another process has it. A dry run only reads,
   and takes no lock. */
static inline int resume_lock(Run *run, char *err) {
    char path[FILE_PATH_SIZE];
    RunLog *log = &run->log;
    if (log_paths(log, run->asked.runs_dir, run->asked.run, err)) return -1;
    if (access(log->dir, F_OK))
        return fail(err, "--resume: there is no run %s; check --run and --runs-dir", log->dir);
    file_path(path, "%s/run.json", log->dir);
    if (access(path, F_OK) && !log_has_checkpoints(log->checkpoints))
        return fail(err,
                    "--resume: %s has neither a checkpoint nor run.json, so that nothing of the "
                    "run is left to resume; start it without --resume",
                    log->dir);
    return run->asked.dry_run ? 0 : log_lock(log, err);
}

/* Finds the newest whole checkpoint and run.json. Returns -1 with a message if there is neither. */
static inline int resume_find(const RunLog *log, Resume *r, char *err) {
    char why[ERR_LEN];
    int status = ckpt_open_newest(&r->ckpt, log->checkpoints, r->path, err);
    if (status < 0) return -1;
    r->has_ckpt = status == 0;
    if (r->has_ckpt && !ckpt_value(&r->ckpt, "merged", why, sizeof why))
        return fail(err,
                    "--resume: %.900s holds merged weights, without the flags and moments of "
                    "training: begin a new run with --init-from",
                    r->path);
    status = log_read_run_json(log->dir, &r->settings, &r->settings_size, why);
    if (status > 0) snprintf(why, sizeof why, "%.900s has no run.json", log->dir);
    if (status && !r->has_ckpt) return fail(err, "--resume: %.900s", why);
    if (status) fprintf(stderr, "warning: %s; the flags are those of the checkpoint\n", why);
    if (r->has_ckpt && resume_read_step(r, err)) return -1;
    r->logged = log_last_step(log->path);
    return 0;
}

/* Whether run.json has another value of a fixed flag than the checkpoint: it is of another run, or
   was edited. A warning on stderr says so. */
static inline int resume_is_foreign(const Resume *r) {
    char err[ERR_LEN], ours[FLAG_STRING_SIZE], theirs[FLAG_STRING_SIZE];
    Config checkpoint = r->before, json = r->before;
    if (!r->has_ckpt || load_flags_of(&json, NULL, 1, "asked", r->settings, r->settings_size, err))
        return 0;
    if (!checkpoint.vocab) checkpoint.vocab = 256; /* any: a default and its value are equal */
    if (!json.vocab) json.vocab = checkpoint.vocab;
    if (config_resolve(&checkpoint, err) || config_resolve(&json, err)) return 0;
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        const Flag *flag = &config_flags[i];
        flags_get_text(flag, &checkpoint, ours);
        flags_get_text(flag, &json, theirs);
        int named_by_data = !strcmp(flag->name, "vocab");
        if (flag->on_resume != RESUME_FIXED || named_by_data || !strcmp(ours, theirs)) continue;
        print_line(stderr, NULL,
                   "warning: run.json is not this run's, or was edited: it has --%s %s, and the "
                   "checkpoint %s. The flags are those of the checkpoint",
                   flag->name, theirs, ours);
        return 1;
    }
    return 0;
}

/* The flags of the run up to now: r->before and r->told. */
static inline int resume_flags_before(Resume *r, const Config *start, char *err) {
    const char *lines = r->settings ? r->settings : "";
    size_t length;
    int asked = header_find(lines, r->settings_size, "asked.steps", &length) != NULL;
    r->before = *start;
    r->before.lora_rank = r->before.low_rank = 0; /* a run from before these flags has no factors */
    if (r->has_ckpt) {
        if (load_flags(&r->before, NULL, &r->ckpt, err)) return -1;
    } else if (load_flags_of(&r->before, NULL, 1, asked ? "asked" : "flags", lines,
                             r->settings_size, err)) {
        return -1;
    }
    r->told = r->before;
    char why[ERR_LEN];
    if (!asked || resume_is_foreign(r)) return 0;
    if (!load_flags_of(&r->told, NULL, 0, "asked", lines, r->settings_size, why)) return 0;
    return fail(err, "--resume: run.json: %.900s", why);
}

/* Sets the flags of this start: those that the run was told, but for those that are given. Where
   this start changes a rule, the rate is that of the other rule: the new rule has the rate that it
   has in a new run of this preset. */
static inline int resume_flags(Run *run, Resume *r, char *err) {
    Config *c = &run->asked, fresh, now, then;
    char text[FLAG_STRING_SIZE];
    if (resume_flags_before(r, c, err)) return -1;
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        if (run->given[i] || config_flags[i].on_resume == RESUME_START) continue;
        flags_get_text(&config_flags[i], &r->told, text);
        if (flags_set(config_flags, CONFIG_FLAGS, c, NULL, config_flags[i].name, text, err))
            return -1;
    }
    flags_defaults(config_flags, CONFIG_FLAGS, &fresh);
    if (config_apply(&fresh, NULL, config_presets[c->preset], err)) return -1;
    fresh.optimizer = c->optimizer;
    for (int i = 0; i < CONFIG_ROLES; i++) *config_rule(&fresh, i) = *config_rule(c, i);
    config_rates(&fresh, run->given);
    now = *c;
    then = r->told;
    config_resolve_rules(&then);
    config_resolve_rules(&now);
    for (int i = 0; i < CONFIG_ROLES; i++)
        if (*config_rule(&now, i) != *config_rule(&then, i) &&
            !config_is_given(run->given, config_roles[i].flag))
            *config_rate(c, i) = *config_rate(&fresh, i);
    return 0;
}

/* Adds a change to run->changes. */
static inline int add_change(Run *run, int step, const char *name, const char *from, const char *to,
                             char *err) {
    size_t n = (size_t)run->n_changes + 1;
    RunChange *grown = (RunChange *)realloc(run->changes, n * sizeof *grown);
    if (!grown) return fail(err, "out of memory: changes of flags");
    run->changes = grown;
    RunChange *change = &grown[run->n_changes++];
    change->step = step;
    snprintf(change->name, sizeof change->name, "%s", name);
    snprintf(change->from, sizeof change->from, "%s", from);
    snprintf(change->to, sizeof change->to, "%s", to);
    return 0;
}

/* Reads the changes that a checkpoint's header has. */
static inline int load_changes(Run *run, const Ckpt *ckpt, char *err) {
    char key[32], what[96], was[FLAG_STRING_SIZE], is[FLAG_STRING_SIZE];
    for (int i = 0; i < INT_MAX; i++) {
        snprintf(key, sizeof key, "change.%d", i);
        if (ckpt_value(ckpt, key, what, sizeof what)) return 0;
        snprintf(key, sizeof key, "change.%d.was", i);
        int bad = ckpt_value(ckpt, key, was, sizeof was);
        snprintf(key, sizeof key, "change.%d.is", i);
        bad |= ckpt_value(ckpt, key, is, sizeof is);
        uint64_t step;
        char *name = strchr(what, ' ');
        if (name) *name++ = 0;
        if (bad || !name || parse_whole(what, INT_MAX, &step))
            return fail(err, "the checkpoint's header has damaged lines change.%d", i);
        if (add_change(run, (int)step, name, was, is, err)) return -1;
    }
    return 0;
}

static inline int fail_fixed(const Run *run, const Config *before, const Flag *flag,
                             const char *was, const char *is, char *err) {
    char other[ERR_LEN];
    snprintf(other, sizeof other,
             "A new run may begin from these weights: --run OTHER --init-from %.200s --%s ...",
             run->asked.run, flag->name);
    if (before->lora_rank)
        snprintf(other, sizeof other,
                 "A new run may train other adapters of the base, or begin from the merged weights "
                 "(./generate --run %.200s --merge NAME)",
                 run->asked.run);
    return fail(err,
                "--resume: --%s was \"%.80s\" and stays: with \"%.80s\" the weights, or the place "
                "in the data, would mean another thing. %.800s",
                flag->name, was, is, other);
}

/* Whether measurements of the checkpoint's step are still to be done. */
static inline int resume_is_pending(const Resume *r) {
    size_t length;
    return r->has_ckpt && header_find(r->ckpt.header, r->ckpt.header_length, "pending", &length);
}

/* Refuses a change of a fixed flag, and collects the changes that are noted. The configs are
   resolved, so that a default and its value in words are equal, and a value that follows from
   another flag is noted with it; `was` and `is` become them. */
static inline int resume_compare(Run *run, Resume *r, Config *was, Config *is, char *err) {
    char text[64], from[FLAG_STRING_SIZE], to[FLAG_STRING_SIZE];
    uint64_t vocab;
    if (!was->vocab && !resume_value(r, r->has_ckpt ? "vocab" : "flags.vocab", text, sizeof text) &&
        !parse_whole(text, CONFIG_MAX_VOCAB, &vocab))
        was->vocab = (int)vocab;
    if (!is->vocab) is->vocab = was->vocab;
    if (config_resolve(was, err) || config_resolve(is, err)) return -1;
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        const Flag *flag = &config_flags[i];
        flags_get_text(flag, &r->before, from);
        flags_get_text(flag, &run->asked, to);
        int other_text = strcmp(from, to);
        flags_get_text(flag, was, from);
        flags_get_text(flag, is, to);
        if (!strcmp(from, to)) continue;
        if (flag->on_resume == RESUME_FIXED && other_text)
            return fail_fixed(run, was, flag, from, to, err);
        /* A measurement that is still to be done is of the step before. */
        int measures = !strncmp(flag->name, "val-", 4) || !strncmp(flag->name, "eval-", 5);
        int before = measures && resume_is_pending(r);
        if (flag->on_resume == RESUME_NOTED &&
            add_change(run, r->step - before, flag->name, from, to, err))
            return -1;
    }
    return 0;
}

/* 1 if the run has all its steps, and the checkpoint of the last one if it is to have one. */
static inline int resume_is_finished(const Run *run, const Resume *r) {
    if (!run->asked.keep_checkpoints && r->logged >= run->asked.steps) return 1;
    return r->has_ckpt && r->step >= run->asked.steps && !resume_is_pending(r);
}

/* Refuses to begin anew where the log could not be written again as it was: the run has changed its
   flags, with this start or before, or has had checkpoints, which somebody has deleted. */
static inline int resume_check_anew(const Run *run, const Resume *r, char *err) {
    size_t length = 0;
    const char *lines = r->settings ? r->settings : "";
    const char *changes = header_find(lines, r->settings_size, "changes", &length);
    const Config *c = &r->told;
    if (r->has_ckpt || r->logged <= 0 || resume_is_finished(run, r)) return 0;
    if (run->n_changes)
        return fail(err,
                    "--resume: the run %s has %lld steps in its log and no checkpoint to go on "
                    "from; with another --%s it would be another run: use another --run name",
                    c->run, (long long)r->logged, run->changes[0].name);
    int changed = changes && strncmp(changes, "[]", length) != 0;
    int saved = c->keep_checkpoints && c->checkpoint_every && r->logged > c->checkpoint_every;
    if (!changed && !saved) return 0;
    return fail(err,
                "--resume: the run %s has %lld steps in its log%s, and its checkpoints are gone: "
                "put them back in %.600s; to begin anew, use another --run name",
                c->run, (long long)r->logged, changed ? ", made with flags that changed" : "",
                run->log.checkpoints);
}

/* From which weights the run began: run.json says so, and a checkpoint does. run.json is newer: it
   knows where a file has moved. But if it tells of another file, it is not this run's. */
static inline void resume_origin(Run *run, const Resume *r) {
    const char *text[2] = {r->settings, r->has_ckpt ? r->ckpt.header : NULL};
    uint64_t size[2] = {r->settings_size, r->has_ckpt ? r->ckpt.header_length : 0};
    char file[FILE_PATH_SIZE], sum[sizeof run->from_sum];
    run->from_file[0] = run->from_sum[0] = 0;
    for (int i = 0; i < 2; i++) {
        if (!text[i] || header_value(text[i], size[i], "init_from_file", file, sizeof file) ||
            header_value(text[i], size[i], "init_from_checksum", sum, sizeof sum) ||
            !strcmp(file, "null") || !strcmp(sum, run->from_sum))
            continue;
        file_path(run->from_file, "%s", file);
        snprintf(run->from_sum, sizeof run->from_sum, "%s", sum);
    }
    if (config_is_given(run->given, "init-from") && !run->asked.lora_rank)
        print_line(stderr, NULL,
                   "note: --init-from is for the beginning of a run; this run goes on from its own "
                   "weights");
}

/* Opens what is left of --run and sets the flags of this start. Returns 0, or -1 with a message: if
   nothing is left, if a flag is given that cannot change, or if the run has to start over and its
   log could not be written again as it was. */
static inline int resume_open(Run *run, Resume *r, char *err) {
    char text[64];
    memset(r, 0, sizeof *r);
    r->logged = -1;
    if (resume_lock(run, err) || resume_find(&run->log, r, err) || resume_flags(run, r, err))
        return -1;
    if (r->has_ckpt && load_changes(run, &r->ckpt, err)) return -1;
    r->changes = run->n_changes;
    Config was = r->before, is = run->asked;
    if (resume_compare(run, r, &was, &is, err)) return -1;
    if (resume_check_anew(run, r, err)) return -1;
    if (resume_value(r, "train_part", text, sizeof text))
        run->train_part = r->before.val_data[0] ? DATA_ALL : DATA_TRAIN;
    else run->train_part = strcmp(text, train_part_name(DATA_TRAIN)) ? DATA_ALL : DATA_TRAIN;
    resume_origin(run, r);
    return 0;
}

/* Refuses data that are not those the run was started with. */
static inline int resume_check_data(const Run *run, const Resume *r, char *err) {
    char id[64];
    const char *key = r->has_ckpt ? "data" : "train_checksum";
    if (resume_value(r, key, id, sizeof id) == 0 && !strcmp(id, run->data_id)) return 0;
    return fail(err, "--resume: %s is not the data the run was started with", run->asked.data);
}

/* Says on stderr what changes with this start, and what of the log is not as a kill leaves it. */
static inline void resume_print_notes(const Run *run, const Resume *r) {
    char machine[512];
    char last[48] = "has no step";
    if (r->logged >= 0) snprintf(last, sizeof last, "ends at step %lld", (long long)r->logged);
    if (r->has_ckpt && r->logged < r->step - (run->pending != NULL))
        print_line(stderr, NULL,
                   "warning: the log %s and the checkpoint is of step %d: the log of this run has "
                   "a gap",
                   last, r->step);
    if (r->changes < run->n_changes && r->logged > r->step)
        print_line(stderr, NULL,
                   "note: steps %d to %lld of the log are made again, with the flags that change",
                   r->step + 1, (long long)r->logged);
    for (int i = r->changes; i < run->n_changes; i++)
        fprintf(stderr, "note: --%s %s -> %s from step %d\n", run->changes[i].name,
                run->changes[i].from[0] ? run->changes[i].from : "\"\"",
                run->changes[i].to[0] ? run->changes[i].to : "\"\"", run->changes[i].step + 1);
    if (r->has_ckpt && !resume_value(r, "machine", machine, sizeof machine) &&
        strcmp(machine, run->identity))
        print_line(stderr, NULL,
                   "note: the steps before were made on %s: those from here on may differ in the "
                   "last bits from an unbroken run's",
                   machine);
}

/* ---------------------------------------------------------------------------------------------- */
/* going on */

/* Deletes what a start that was killed has left behind the step to go on from. */
static inline int resume_tidy(Run *run, const Resume *r, char *err) {
    /* A run at step 0 writes line 0 again. */
    int64_t logged = r->step ? r->step - (run->pending != NULL) : -1;
    if (log_truncate_after(&run->log, logged, err) ||
        ckpt_discard_after(run->log.checkpoints, r->step, err))
        return -1;
    /* A run that is killed between writing a checkpoint and deleting an old one leaves one too
       many. */
    return ckpt_prune(run->log.checkpoints, run->asked.keep_checkpoints, err);
}

/* Keeps the log's line of a step that was made, and whose measurements were not. An older file does
   not say which: it is the validation. */
static inline int load_pending(Run *run, const Ckpt *ckpt, char *err) {
    char text[64];
    size_t length;
    const char *line = header_find(ckpt->header, ckpt->header_length, "pending", &length);
    if (!line) return 0;
    run->pending = (char *)malloc(length + 2);
    if (!run->pending) return fail(err, "out of memory: a line of the log");
    memcpy(run->pending, line, length);
    memcpy(run->pending + length, "\n", 2);
    run->owed = 1;
    run->due = MEASURE_VALIDATION;
    for (int i = 1; i < MEASURES; i++)
        if (!ckpt_value(ckpt, "pending_for", text, sizeof text) && !strcmp(text, measure_names[i]))
            run->due = i;
    if (log_step_of(run->pending, length + 1) == run->step) return 0;
    return fail(err, "the checkpoint's header has a damaged line pending");
}

/* Restores the run as it was when the checkpoint was written: parameters, moments, state, place in
   the data, log. The layers' copy of the parameters is left as it is. */
static inline int restore_run(Run *run, Params *p, Plan *plan, Resume *r, char *err) {
    const Ckpt *ckpt = &r->ckpt;
    uint64_t tokens;
    DataState d;
    if (ckpt_number_in(ckpt, "tokens", 0, INT64_MAX, &tokens, err) ||
        ckpt_number(ckpt, "data_seed", &d.seed, err) ||
        ckpt_number(ckpt, "data_epoch", &d.epoch, err) ||
        ckpt_number(ckpt, "data_shard", &d.shard, err) ||
        ckpt_number(ckpt, "data_position", &d.position, err))
        return -1;
    if (load_training(p, plan, &run->config, ckpt, r->step, err) || data_seek(&run->train, d, err))
        return -1;
    run->step = r->step;
    run->tokens = (int64_t)tokens;
    if (load_pending(run, ckpt, err)) return -1;
    return resume_tidy(run, r, err);
}

/* A run that has all its steps stays as it is, but for a checkpoint more than it keeps, which a
   kill has left. Returns the program's exit status, or -1 with a message. */
static inline int resume_finished(Run *run, const Resume *r, char *err) {
    const Config *c = &run->asked;
    char more[128] = "";
    int saved = r->has_ckpt && r->step >= c->steps;
    long long done = saved ? r->step : (long long)r->logged;
    if (saved && ckpt_prune(run->log.checkpoints, r->told.keep_checkpoints, err)) return -1;
    if (saved && done == c->steps) snprintf(more, sizeof more, "; a larger --steps continues it");
    else if (!saved && r->has_ckpt)
        snprintf(more, sizeof more, ", and its newest checkpoint is of step %d", r->step);
    else if (!saved) snprintf(more, sizeof more, ", and no checkpoint to continue from");
    print_line(stdout, NULL, "nothing left to do: the run %s/%s has all its %d steps%s%s",
               c->runs_dir, c->run, c->steps, more, saved ? "" : " (--keep-checkpoints 0)");
    if (done > c->steps)
        print_line(stdout, NULL, "it is at step %lld, and --steps %d is less", done, c->steps);
    return output_status(stdout);
}

/* ---------------------------------------------------------------------------------------------- */
/* a new run from the weights of another */

/* The checksum at the end of a checkpoint's file, as text: which weights adapters belong to. */
enum { FINGERPRINT_SIZE = 32 };
static inline void ckpt_fingerprint(const Ckpt *ckpt, char *text) {
    snprintf(text, FINGERPRINT_SIZE, "%016llx",
             (unsigned long long)ckpt_u64(ckpt->map + ckpt->size - 8));
}

/* Opens --init-from: a checkpoint file, or the newest checkpoint of a run, given by its name in
   --runs-dir or by its folder. */
static inline int weights_open(Run *run, Ckpt *ckpt, char *err) {
    const char *from = run->asked.init_from;
    char folder[FILE_PATH_SIZE], why[ERR_LEN];
    struct stat st;
    if (!*from)
        return fail(err, "--init-from: the name is empty; name a run, its folder, or a checkpoint");
    int exists = stat(from, &st) == 0, is_folder = exists && S_ISDIR(st.st_mode), status;
    if (!is_folder && (exists || strchr(from, '/'))) {
        file_path(run->from_file, "%s", from);
        status = ckpt_open(ckpt, from, why);
    } else {
        int named = !strchr(from, '/'); /* a run of --runs-dir; else the folder of a run */
        file_path(folder, "%s%s%s/checkpoints", named ? run->asked.runs_dir : "", named ? "/" : "",
                  from);
        status = ckpt_open_newest(ckpt, folder, run->from_file, why);
    }
    if (status < 0) return fail(err, "--init-from: %.900s", why);
    if (status > 0)
        return fail(
            err,
            "--init-from %s: %s has no checkpoint; name a run of --runs-dir, the folder of a "
            "run, or a checkpoint file",
            from, folder);
    ckpt_fingerprint(ckpt, run->from_sum);
    return 0;
}

/* Opens the file from which a run began that starts over or that trains adapters; the file must be
   as it was then. One that has moved is named by --init-from. Returns 1, 0 if the run began from
   initial weights, or -1 with a message. */
static inline int weights_reopen(Run *run, Ckpt *ckpt, char *err) {
    char sum[FINGERPRINT_SIZE], why[ERR_LEN];
    if (!run->from_file[0] && run->asked.lora_rank)
        return fail(err,
                    "--resume: the run trains adapters, and nothing in its folder says of which "
                    "weights: put its run.json or a checkpoint back, or start it anew");
    if (!run->from_file[0]) return 0;
    snprintf(sum, sizeof sum, "%s", run->from_sum);
    if (run->asked.lora_rank && config_is_given(run->given, "init-from")) {
        if (weights_open(run, ckpt, err)) return -1;
    } else if (ckpt_open(ckpt, run->from_file, why)) {
        if (run->asked.lora_rank)
            return fail(err,
                        "--resume: the run trains adapters of the weights in the file of "
                        "--init-from, and that file is not to be had: %.600s; put it back, or "
                        "name a copy with --init-from",
                        why);
        return fail(err,
                    "--resume: the run has no checkpoint yet, and the file of --init-from that it "
                    "begins from is not to be had: %.700s",
                    why);
    }
    char found[FINGERPRINT_SIZE];
    ckpt_fingerprint(ckpt, found);
    if (!strcmp(sum, found)) return 1;
    ckpt_close(ckpt);
    return fail(err,
                "--resume: %.800s is not the file that the run began from: it is another one, or "
                "has changed since; put that file back, or name a copy with --init-from",
                run->from_file);
}

/* Refuses weights that are no numbers: nothing can begin from them. */
static inline int weights_check_finite(const Ckpt *ckpt, const char *path, char *err) {
    for (int i = 0; i < ckpt->count; i++) {
        const CkptRecord *r = &ckpt->records[i];
        const float *x = (const float *)r->data;
        const double *y = (const double *)r->data;
        int wide = r->dtype == CKPT_F64;
        int64_t n = r->dtype == CKPT_F32 || wide ? r->bytes / (wide ? 8 : 4) : 0, bad = 0;
        if (r->name_length < 2 || r->name[0] != 'p' || r->name[1] != '.') continue;
#pragma omp parallel for reduction(+ : bad)
        for (int64_t k = 0; k < n; k++) bad += !isfinite(wide ? y[k] : (double)x[k]);
        if (bad)
            return fail(err, "%.700s: NaN or infinity in %.*s (%lld of %lld weights)", path,
                        (int)r->name_length - 2, r->name + 2, (long long)bad, (long long)n);
    }
    return 0;
}

/* Whether a new run takes a flag over from the checkpoint that its weights come from: what makes
   the model, and with weights that are products, what makes these. */
static inline int weights_has_flag(const Flag *flag, const Config *theirs) {
    if (flag->on_resume != RESUME_FIXED) return 0;
    return !strcmp(flag->section, "Model") ||
           (theirs->low_rank && !strcmp(flag->section, FLAGS_OF_FACTORS));
}

/* The commands that make whole matrices of the weights of --init-from and begin from these, for a
   message. */
static inline void weights_merge_words(const Run *run, char *words) {
    const char *dir = run->asked.runs_dir;
    int usual = !strcmp(dir, "runs");
    snprintf(words, ERR_LEN,
             "./generate --checkpoint %.250s --merge NAME%s%.100s, and begin with "
             "--init-from NAME",
             run->from_file, usual ? "" : " --runs-dir ", usual ? "" : dir);
}

/* Refuses weights of another kind than the new run is to have: adapters alone, or products in place
   of whole matrices, or the other way round. */
static inline int weights_check_factors(const Run *run, const Config *theirs, char *err) {
    const Config *c = &run->asked;
    const char *file = run->from_file;
    int to_whole = config_is_given(run->given, "low-rank") && !c->low_rank;
    char merge[ERR_LEN];
    weights_merge_words(run, merge);
    if (theirs->lora_rank)
        return fail(err,
                    "--init-from: %.250s has adapters alone, not a whole model: make one with %s",
                    file, merge);
    if (theirs->low_rank && (c->lora_rank || to_whole))
        return fail(err,
                    "--init-from: %.250s has products of rank %d in place of matrices: for --%s "
                    "%d make these whole with %s",
                    file, theirs->low_rank, c->lora_rank ? "lora-rank" : "low-rank", c->lora_rank,
                    merge);
    if (c->low_rank && theirs->low_rank && c->low_rank != theirs->low_rank)
        return fail(err,
                    "--low-rank %d: %.250s has products of rank %d: leave the flag out, or make "
                    "these whole with %s",
                    c->low_rank, file, theirs->low_rank, merge);
    if (c->low_rank && !c->lora_rank && !theirs->low_rank)
        return fail(err,
                    "--init-from: %.700s has whole matrices, and --low-rank %d trains products "
                    "from scratch: leave out one of the two flags, or train adapters beside these "
                    "matrices with --lora-rank",
                    file, c->low_rank);
    return 0;
}

/* Whether a flag has a meaning only where there are factors, which the two ranks make. */
static inline int is_about_factors(const Flag *flag) {
    const char *name = flag->name;
    if (!strcmp(name, "lora-rank") || !strcmp(name, "low-rank")) return 0;
    return !strcmp(flag->section, FLAGS_OF_FACTORS) || strstr(name, "lora") != NULL ||
           !strcmp(name, "rite-escape");
}

/* Refuses a flag of factors for a new run that has none: a rank was forgotten. */
static inline int check_factor_flags(const Run *run, char *err) {
    for (int i = 0; i < CONFIG_FLAGS && !config_rank(&run->asked); i++)
        if (run->given[i] && is_about_factors(&config_flags[i]))
            return fail(err,
                        "--%s is about factors, and this run has none: give their rank with "
                        "--lora-rank or --low-rank, or leave the flag out",
                        config_flags[i].name);
    return 0;
}

/* Notes the flags of roles in which a new run trains no whole matrix. The config is resolved. */
static inline void note_idle_flags(const Run *run) {
    static const struct {
        const char *flag;
        unsigned on;
    } of[] = {{"qk", ON_QK},       {"lr-qk", ON_QK},       {"ov", ON_OV},
              {"lr-ov", ON_OV},    {"mlp", ON_MLP},        {"lr-mlp", ON_MLP},
              {"embed", ON_EMBED}, {"lr-embed", ON_EMBED}, {"weight-decay-embed", ON_EMBED},
              {"head", ON_HEAD},   {"lr-head", ON_HEAD},   {"weight-decay-head", ON_HEAD}};
    unsigned trains = config_trains(&run->config);
    for (size_t i = 0; i < sizeof of / sizeof of[0]; i++)
        if (config_is_given(run->given, of[i].flag) && !(trains & of[i].on))
            fprintf(stderr,
                    "note: --%s has no effect: this run trains no whole matrix that it is about\n",
                    of[i].flag);
}

/* Takes over the flags of the model that are not given; a note names those that are given and
   differ. */
static inline int weights_flags(Run *run, const Ckpt *ckpt, char *err) {
    Config *c = &run->asked, theirs = *c, was, is;
    char from[FLAG_STRING_SIZE], to[FLAG_STRING_SIZE];
    uint64_t vocab;
    theirs.lora_rank = theirs.low_rank = 0; /* a file without these flags has whole matrices */
    if (load_flags(&theirs, NULL, ckpt, err)) return -1;
    if (ckpt_number_in(ckpt, "vocab", 1, CONFIG_MAX_VOCAB, &vocab, err)) return -1;
    theirs.vocab = (int)vocab;
    if (weights_check_factors(run, &theirs, err)) return -1;
    if (load_tokenizer_id(&run->from_tokenizer, ckpt, &theirs, err)) return -1;
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        const Flag *flag = &config_flags[i];
        if (!weights_has_flag(flag, &theirs) || run->given[i]) continue;
        flags_get_text(flag, &theirs, to);
        if (flags_set(config_flags, CONFIG_FLAGS, c, NULL, flag->name, to, err)) return -1;
    }
    was = theirs;
    is = *c;
    if (config_resolve(&was, err) || config_resolve(&is, err)) return -1;
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        const Flag *flag = &config_flags[i];
        if (!weights_has_flag(flag, &theirs)) continue;
        flags_get_text(flag, &was, from);
        flags_get_text(flag, &is, to);
        if (strcmp(from, to))
            fprintf(stderr, "note: --%s %s, and the weights were trained with %s\n", flag->name, to,
                    from);
    }
    return 0;
}

/* Refuses data of another tokenizer than that of the weights. */
static inline int weights_check_data(const Run *run, char *err) {
    char theirs[TOKENIZER_ID_SIZE], ours[TOKENIZER_ID_SIZE];
    if (tokenizer_id_agree(run->from_tokenizer, run->train.tokenizer)) return 0;
    return fail(err, "--init-from: the weights know the tokens of %s, and %s has those of %s",
                tokenizer_id_text(run->from_tokenizer, theirs), run->asked.data,
                tokenizer_id_text(run->train.tokenizer, ours));
}

#endif
