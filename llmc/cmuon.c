/*
libcmuon: rows of the table of rules (optim/rule.h) behind the C ABI of cmuon.h. Everything else is
static.

The matrix product is the built-in one, not oneDNN's: the library then needs nothing but libc, gives
equal bits for any number of threads, and cannot fail in the middle of a step.
*/
#include "cmuon.h"

#ifdef CM_DOUBLE
#error "libcmuon is float32: build it without -DCM_DOUBLE"
#endif
#undef CM_USE_ONEDNN
#ifndef CM_STATE
#define CM_STATE static /* no state is shared with the program that links the library */
#endif

#include "optim/rule.h"

#include <locale.h>

/* ---------------------------------------------------------------------------------------------- */
/* Errors                                                                                         */

const char *cm_strerror(int code) {
    switch (code) {
    case CM_OK: return "no error";
    case CM_ENULL: return "a pointer that must not be NULL is NULL";
    case CM_ESIZE:
        return "a size is not positive, or too large (a width: 2^24; a Gram: 46340; the rank r of "
               "cm_lora: the smaller of m and n)";
    case CM_EHEADS: return "n_head must be a multiple of n_kv_head";
    case CM_ENUMBER: return "eta must be finite; damping must be finite and not negative";
    case CM_EKEY: return "there is no option of this name; docs/libcmuon.md lists them";
    case CM_EVALUE: return "the option does not take this value; docs/libcmuon.md lists the values";
    case CM_ECOMBINATION:
        return "options that have no meaning together: method=joint needs n_head = n_kv_head, "
               "per_mat_renorm=0, head_group=1 and in cm_ov hybrid=0; circuit=1 is for cm_ov and "
               "needs method=half_split and connection=none; head_group must divide n_head and "
               "n_kv_head; damping_form=relative with a connection or momentum_reproject needs "
               "gauge_damping=0; cm_lora with lora_rule=lora-muon makes the product of the factors "
               "decay and needs eta * weight_decay below 1, and its lora_rebalance needs "
               "lora_trust=0";
    case CM_EUNSUPPORTED:
        return "this build of libcmuon computes in fp32 only; set compute to fp32";
    case CM_ENOMEM: return "out of memory; nothing was changed";
    case CM_EOVERLAP: return "a weight or momentum buffer overlaps another buffer";
    case CM_ENONFINITE: return "NaN or infinity in a buffer; nothing was changed";
    case CM_EOVERFLOW:
        return "the result would hold NaN or infinity; nothing was changed (scale the input, or "
               "raise damping)";
    case CM_EINTERNAL:
        return "internal error of libcmuon (too little workspace); nothing was changed";
    case CM_EINDEFINITE:
        return "a Gram matrix, with its damping, is not positive definite and has no inverse root; "
               "nothing was changed (raise damping; cm_lora with lora_rule=lora-muon: leave out "
               "inv_root=eigh)";
    }
    return "not an error code of libcmuon";
}

/* ---------------------------------------------------------------------------------------------- */
/* Options                                                                                        */

struct cm_options {
    OptimOptions optim;
    double weight_decay;
    double lora_scale; /* s of cm_lora */
    int lora_rule;     /* index into lora_rules */
    int compute;       /* Compute */
    int threads;       /* 0: as many as OpenMP gives the caller */
};

/* The rules of cm_lora, in the order of the values of lora-rule. */
static const RuleId lora_rules[] = {RULE_LORA_MUON, RULE_CM};

#define FIELD(NAME) offsetof(cm_options, optim.NAME)
static const Flag option_table[] = {
#include "optim/options.def"
#undef FIELD
#define FIELD(NAME) offsetof(cm_options, NAME)
#define SECTION "libcmuon"
    FLAG_FLOAT("weight-decay", weight_decay, "0", 0, 1e3,
               "decoupled: w <- (1 - eta weight_decay) w"),
    FLAG_FLOAT("lora-scale", lora_scale, "1", 1e-6, 1e6,
               "s, which multiplies the product A B^T of cm_lora"),
    FLAG_CHOICE("lora-rule", lora_rule, "lora-muon", "lora-muon|cm", "rule of cm_lora"),
    FLAG_CHOICE("compute", compute, "fp32", "fp32|bf16", "precision of the products"),
    FLAG_INT("threads", threads, "0", 0, 4096,
             "threads of a call; 0: as many as OpenMP gives the caller"),
};
#undef SECTION
#undef FIELD

enum { OPTIONS = sizeof option_table / sizeof *option_table };

static void options_default(cm_options *o) {
    memset(o, 0, sizeof *o);
    for (int i = 0; i < OPTIONS; i++)
        flags_parse_value(&option_table[i], o, option_table[i].def, NULL);
}

cm_options *cm_options_new(void) {
    cm_options *o = (cm_options *)malloc(sizeof *o);
    if (o) options_default(o);
    return o;
}

void cm_options_free(cm_options *o) { free(o); }

/* Parses with a decimal point, whatever the locale of the program says. */
static int option_parse(const Flag *flag, cm_options *o, const char *value) {
    locale_t plain = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    locale_t before = plain ? uselocale(plain) : (locale_t)0;
    int bad = flags_parse_value(flag, o, value, NULL);
    if (plain) {
        uselocale(before);
        freelocale(plain);
    }
    return bad;
}

int cm_options_set(cm_options *o, const char *key, const char *value) {
    if (!o || !key || !value) return CM_ENULL;
    char name[64];
    size_t length = strlen(key);
    if (length >= sizeof name) return CM_EKEY;
    for (size_t i = 0; i <= length; i++) name[i] = key[i] == '_' ? '-' : key[i];
    int i = flags_find(option_table, OPTIONS, name);
    if (i < 0) return CM_EKEY;
    const Flag *flag = &option_table[i];
    cm_options next = *o;
    int bad = option_parse(flag, &next, value);
    /* A choice that has the values on and off takes 1 and 0 too. */
    if (bad && flag->kind == KIND_CHOICE && (!strcmp(value, "0") || !strcmp(value, "1")))
        bad = option_parse(flag, &next, *value == '1' ? "on" : "off");
    if (bad) return CM_EVALUE;
    if (next.compute != COMPUTE_FP32) return CM_EUNSUPPORTED;
    *o = next;
    return CM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* A call: checks the buffers, works on copies, writes back                                       */

/* Limits that keep every product of sizes in the rules inside its type. */
#define MAX_WIDTH (1 << 24)
#define MAX_GRAM 46340 /* the largest n with n^2 < 2^31 */

enum { BUFFERS = 6 };

/* The buffers of a call: the first `outputs` are weights and momenta, the rest gradients, which
   nothing writes. */
typedef struct {
    const cm_options *options;
    float *user[BUFFERS]; /* as the caller gave them */
    float *copy[BUFFERS]; /* copies of the outputs; a gradient is not copied */
    size_t size[BUFFERS];
    int n, outputs;
    cm_options defaults;
} Call;

/* What a call does. The views are of the copies, or of NULL before the copies exist. */
typedef struct {
    const cm_options *options;
    Step step;      /* cm_qk, cm_ov, cm_lora, cm_muon */
    Mat X;          /* cm_msign, cm_inv_sqrt */
    double damping; /* cm_inv_sqrt */
} Job;
typedef void Work(const Job *job, Arena *arena);

/* Sets the views of a job on the buffers of its call. */
typedef void Place(const Call *c, Job *job);

static void call_begin(Call *c, const cm_options *options) {
    memset(c, 0, sizeof *c);
    options_default(&c->defaults);
    c->options = options ? options : &c->defaults;
}

static void call_buffer(Call *c, const float *p, size_t size, int output) {
    c->user[c->n] = (float *)(uintptr_t)p;
    c->size[c->n++] = size;
    c->outputs += output;
}

/* Tests the bits of the exponent, because integer comparisons become vector instructions. */
static int all_finite(const float *x, size_t n) {
    unsigned bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

static int all_zero(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (x[i] != 0) return 0;
    return 1;
}

static int call_overlaps(const Call *c) {
    for (int i = 0; i < c->outputs; i++)
        for (int j = i + 1; j < c->n; j++) {
            uintptr_t a = (uintptr_t)c->user[i], b = (uintptr_t)c->user[j];
            if (a < b + c->size[j] * sizeof(float) && b < a + c->size[i] * sizeof(float)) return 1;
        }
    return 0;
}

/* Elements of scratch that a job takes: the work itself runs on an arena without memory. */
static size_t work_scratch(Work *work, const Job *job) {
    Arena none = {NULL, 0, 0};
    work(job, &none);
    return none.size;
}

/* Checks the buffers, and makes the copies and an arena of `scratch` elements in one block of
   memory, which the caller frees. Returns 0 or an error. */
static int call_prepare(Call *c, Arena *arena, size_t scratch, void **block) {
    for (int i = 0; i < c->n; i++)
        if (!c->user[i]) return CM_ENULL;
    if (call_overlaps(c)) return CM_EOVERLAP;
    for (int i = 0; i < c->n; i++)
        if (!all_finite(c->user[i], c->size[i])) return CM_ENONFINITE;
    size_t total = scratch + 16; /* malloc may return NULL for nothing */
    for (int i = 0; i < c->outputs; i++) total += arena_round(c->size[i]);
    if (total > SIZE_MAX / sizeof(float)) return CM_ENOMEM;
    if (posix_memalign(block, 64, total * sizeof(float))) return CM_ENOMEM;
    float *p = (float *)*block;
    for (int i = 0; i < c->n; i++) {
        c->copy[i] = c->user[i];
        if (i >= c->outputs) continue;
        c->copy[i] = p;
        memcpy(p, c->user[i], c->size[i] * sizeof(float));
        p += arena_round(c->size[i]);
    }
    arena->p = p;
    arena->size = scratch;
    arena->used = 0;
    return CM_OK;
}

/* Returns CM_EINTERNAL if the arena ran out, which a size from work_scratch rules out, and
   CM_EINDEFINITE or CM_EOVERFLOW if a matrix had no inverse root. The copies are then not done. */
static int run(Work *work, const Job *job, Arena *arena) {
    work(job, arena);
    int why = la_rootless();
    if (!arena->p) return CM_EINTERNAL;
    return why & LA_INDEFINITE ? CM_EINDEFINITE : why ? CM_EOVERFLOW : CM_OK;
}

/* Runs the work with `threads` threads, or with the caller's number if 0. OpenMP keeps that number
   for each thread, so the caller's number is restored afterwards. */
static int run_threads(Work *work, const Job *job, Arena *arena, int threads) {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    if (threads) omp_set_num_threads(threads);
    int status = run(work, job, arena);
    if (threads) omp_set_num_threads(before);
    return status;
#else
    (void)threads;
    return run(work, job, arena);
#endif
}

/* Writes the copies back if all of them are finite. */
static int call_commit(const Call *c) {
    for (int i = 0; i < c->outputs; i++)
        if (!all_finite(c->copy[i], c->size[i])) return CM_EOVERFLOW;
    for (int i = 0; i < c->outputs; i++) memcpy(c->user[i], c->copy[i], c->size[i] * sizeof(float));
    return CM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* The rules                                                                                      */

static int bad_width(int n) { return n <= 0 || n > MAX_WIDTH; }

static void work_step(const Job *j, Arena *arena) {
    Step step = j->step;
    step.arena = arena;
    step_run(&step);
}

static void work_msign(const Job *j, Arena *arena) { msign(j->X, &j->options->optim, arena); }

static void work_root(const Job *j, Arena *arena) {
    Mat root = mat_take(j->X, arena);
    la_symmetrize(j->X);
    invroot(root, j->X, j->damping, j->options->optim.inv_root, arena);
    la_copy(j->X, root);
}

/* Whether a step does nothing: no gradient, no momentum, no decay. The weights must then keep their
   bits, and -0 + 0 would not. */
static int call_idle(const Call *c, int weights) {
    if (c->options->weight_decay != 0) return 0;
    for (int i = weights; i < c->n; i++)
        if (!all_zero(c->user[i], c->size[i])) return 0;
    return 1;
}

/* Checks the buffers, works on copies and writes back. The first `weights` buffers are weights; if
   all buffers after them are zero, the work is left out. With weights 0 it never is. */
static int call_run(Call *c, Work *work, Place *place, Job *job, int weights) {
    Arena arena;
    void *block = NULL;
    job->options = c->options;
    place(c, job);
    int status = call_prepare(c, &arena, work_scratch(work, job), &block);
    if (status == CM_OK && !(weights && call_idle(c, weights))) {
        place(c, job);
        status = run_threads(work, job, &arena, c->options->threads);
        if (status == CM_OK) status = call_commit(c);
    }
    free(block);
    return status;
}

/* One step of a rule on `legs` legs, whose shapes are those of the views in job->step. */
static Job job_of(const Call *c, RuleId rule, int legs, float eta) {
    Job job;
    memset(&job, 0, sizeof job);
    job.step.rule = &rule_table[rule];
    job.step.options = &c->options->optim;
    job.step.legs = legs;
    job.step.lr = (double)eta;
    job.step.weight_decay = c->options->weight_decay;
    job.step.momentum = c->options->optim.momentum;
    job.step.gscale = 1;
    job.step.coupling_age = 1;
    return job;
}

/* The buffers are the weights of all legs, then their momenta, then their gradients. */
static void place_legs(const Call *c, Job *job) {
    int legs = job->step.legs;
    for (int i = 0; i < legs; i++) {
        Leg *l = &job->step.leg[i];
        l->W.p = c->copy[i];
        l->M.p = c->copy[legs + i];
        l->G.p = c->copy[2 * legs + i];
    }
}

static void place_matrix(const Call *c, Job *job) { job->X.p = c->copy[0]; }

static Leg leg_of(int rows, int cols, int heads, int by_column) {
    Leg l;
    memset(&l, 0, sizeof l);
    l.W = l.G = l.M = mat_dense(NULL, 1, rows, cols);
    l.heads = heads;
    l.by_column = by_column;
    return l;
}

/* One step of a pair: a is the factor with the query heads (W_Q, W_O), b the factor with the shared
   heads (W_K, W_V). */
static int pair_call(float *wa, float *wb, const float *ga, const float *gb, float *ma, float *mb,
                     int d_model, int n_head, int n_kv_head, int head_dim, float eta,
                     const cm_options *options, int is_ov) {
    Call c;
    call_begin(&c, options);
    if (bad_width(d_model) || bad_width(n_head) || bad_width(n_kv_head) || head_dim <= 0 ||
        head_dim > MAX_GRAM || (double)n_head * head_dim > MAX_WIDTH ||
        (double)n_kv_head * head_dim > MAX_WIDTH)
        return CM_ESIZE;
    if (n_head % n_kv_head) return CM_EHEADS;
    if (!isfinite((double)eta)) return CM_ENUMBER;
    if (optim_check(&c.options->optim, is_ov, n_head, n_kv_head, NULL)) return CM_ECOMBINATION;
    int rows = n_head * head_dim, shared = n_kv_head * head_dim;
    size_t size_a = (size_t)rows * d_model, size_b = (size_t)shared * d_model;
    call_buffer(&c, wa, size_a, 1);
    call_buffer(&c, wb, size_b, 1);
    call_buffer(&c, ma, size_a, 1);
    call_buffer(&c, mb, size_b, 1);
    call_buffer(&c, ga, size_a, 0);
    call_buffer(&c, gb, size_b, 0);
    Job job = job_of(&c, RULE_CM, 2, eta);
    job.step.leg[0] = is_ov ? leg_of(d_model, rows, n_head, 1) : leg_of(rows, d_model, n_head, 0);
    job.step.leg[1] = leg_of(shared, d_model, n_kv_head, 0);
    return call_run(&c, work_step, place_legs, &job, 2);
}

int cm_qk(float *wq, float *wk, const float *gq, const float *gk, float *mq, float *mk, int d_model,
          int n_head, int n_kv_head, int head_dim, float eta, const cm_options *options) {
    return pair_call(wq, wk, gq, gk, mq, mk, d_model, n_head, n_kv_head, head_dim, eta, options, 0);
}

int cm_ov(float *wv, float *wo, const float *gv, const float *go, float *mv, float *mo, int d_model,
          int n_head, int n_kv_head, int head_dim, float eta, const cm_options *options) {
    return pair_call(wo, wv, go, gv, mo, mv, d_model, n_head, n_kv_head, head_dim, eta, options, 1);
}

/* The factors of a product are a circuit of W_O and W_V with one head, as wide as the rank. */
int cm_lora(float *a, float *b, const float *ga, const float *gb, float *ma, float *mb, int m,
            int n, int r, float eta, const cm_options *options) {
    Call c;
    call_begin(&c, options);
    if (bad_width(m) || bad_width(n) || r <= 0 || r > MAX_GRAM || r > min_int(m, n))
        return CM_ESIZE;
    if (!isfinite((double)eta)) return CM_ENUMBER;
    RuleId rule = lora_rules[c.options->lora_rule];
    /* nobody says how the factors began */
    const RuleUse use = {
        .flag = "", .on = ON_FACTOR, .matrices = "", .zero = "", .options = &c.options->optim};
    if (rule_check(rule, &use, NULL) ||
        rule_check_decay(rule, "", (double)eta, "", c.options->weight_decay, NULL))
        return CM_ECOMBINATION;
    size_t size_a = (size_t)m * r, size_b = (size_t)r * n;
    call_buffer(&c, a, size_a, 1);
    call_buffer(&c, b, size_b, 1);
    call_buffer(&c, ma, size_a, 1);
    call_buffer(&c, mb, size_b, 1);
    call_buffer(&c, ga, size_a, 0);
    call_buffer(&c, gb, size_b, 0);
    Job job = job_of(&c, rule, 2, eta);
    job.step.leg[0] = leg_of(m, r, 1, 1);
    job.step.leg[1] = leg_of(r, n, 1, 0);
    job.step.product_scale = c.options->lora_scale;
    job.step.product_cold = 1;
    return call_run(&c, work_step, place_legs, &job, 2);
}

int cm_muon(float *w, const float *g, float *m, int rows, int cols, float eta,
            const cm_options *options) {
    Call c;
    call_begin(&c, options);
    if (bad_width(rows) || bad_width(cols)) return CM_ESIZE;
    if (!isfinite((double)eta)) return CM_ENUMBER;
    size_t size = (size_t)rows * cols;
    call_buffer(&c, w, size, 1);
    call_buffer(&c, m, size, 1);
    call_buffer(&c, g, size, 0);
    Job job = job_of(&c, RULE_MUON, 1, eta);
    job.step.leg[0] = leg_of(rows, cols, 0, 0);
    return call_run(&c, work_step, place_legs, &job, 1);
}

int cm_msign(float *x, int rows, int cols, const cm_options *options) {
    Call c;
    Job job;
    call_begin(&c, options);
    memset(&job, 0, sizeof job);
    if (bad_width(rows) || bad_width(cols)) return CM_ESIZE;
    call_buffer(&c, x, (size_t)rows * cols, 1);
    job.X = mat_dense(NULL, 1, rows, cols);
    return call_run(&c, work_msign, place_matrix, &job, 0);
}

int cm_inv_sqrt(float *gram, int n, float damping, const cm_options *options) {
    Call c;
    Job job;
    call_begin(&c, options);
    memset(&job, 0, sizeof job);
    job.damping = (double)damping;
    if (n <= 0 || n > MAX_GRAM) return CM_ESIZE;
    if (!(job.damping >= 0) || !isfinite(job.damping)) return CM_ENUMBER;
    call_buffer(&c, gram, (size_t)n * n, 1);
    job.X = mat_dense(NULL, 1, n, n);
    return call_run(&c, work_root, place_matrix, &job, 0);
}
