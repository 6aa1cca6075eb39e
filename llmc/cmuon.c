/*
libcmuon: the rules of optim/ behind the C ABI of cmuon.h. Everything else in here is static.

The matrix product is the built-in one, not oneDNN's: the library then needs nothing but libc, gives
the same bits for any number of threads, and cannot fail in the middle of a step.
*/
#include "cmuon.h"

#ifdef CM_DOUBLE
#error "libcmuon is float32: build it without -DCM_DOUBLE"
#endif
#undef CM_USE_ONEDNN
#ifndef CM_STATE
#define CM_STATE static /* no state is shared with the program that links the library */
#endif

/* What the arena does where a program would abort. */
__attribute__((noreturn)) static void workspace_overrun(void);
#define ARENA_EXCEEDED(A, N) workspace_overrun()

#include "optim/compositional.h"
#include "optim/muon.h"

#include <locale.h>
#include <setjmp.h>

/* ---------------------------------------------------------------------------------------------- */
/* Errors                                                                                         */

const char *cm_strerror(int code) {
    switch (code) {
    case CM_OK: return "no error";
    case CM_ENULL: return "a pointer that must not be NULL is NULL";
    case CM_ESIZE: return "a size is not positive, or too large (a width: 2^24, a Gram: 46340)";
    case CM_EHEADS: return "n_head must be a multiple of n_kv_head";
    case CM_ENUMBER: return "eta must be finite; damping must be finite and not negative";
    case CM_EKEY: return "there is no option of this name; docs/libcmuon.md lists them";
    case CM_EVALUE: return "the option does not take this value; docs/libcmuon.md lists the values";
    case CM_ECOMBINATION:
        return "options that have no meaning together: method=joint needs n_head = n_kv_head, "
               "per_mat_renorm=0 and in cm_ov hybrid=0; circuit=1 is for cm_ov and needs "
               "method=half_split and connection=none";
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
    }
    return "not an error code of libcmuon";
}

/* ---------------------------------------------------------------------------------------------- */
/* Options                                                                                        */

struct cm_options {
    OptimOptions optim;
    double weight_decay;
    int compute; /* Compute */
    int threads; /* 0: as many as OpenMP gives the caller */
};

#define FIELD(NAME) offsetof(cm_options, optim.NAME)
static const Flag option_table[] = {
#include "optim/options.def"
#undef FIELD
#define FIELD(NAME) offsetof(cm_options, NAME)
#define SECTION "libcmuon"
    FLAG_FLOAT("weight-decay", weight_decay, "0", 0, 1e3,
               "decoupled: w <- (1 - eta weight_decay) w"),
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

/* Numbers have a point, whatever the locale of the program says. */
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
    /* A choice that has the values on and off takes 1 and 0 as well. */
    if (bad && flag->kind == KIND_CHOICE && (!strcmp(value, "0") || !strcmp(value, "1")))
        bad = option_parse(flag, &next, *value == '1' ? "on" : "off");
    if (bad) return CM_EVALUE;
    if (next.compute != COMPUTE_FP32) return CM_EUNSUPPORTED;
    *o = next;
    return CM_OK;
}

/* ---------------------------------------------------------------------------------------------- */
/* A call: check the buffers, work on copies, write back                                          */

/* Limits that keep every product of sizes in the rules inside its type. */
#define MAX_WIDTH (1 << 24)
#define MAX_GRAM 46340

enum { BUFFERS = 6 };

/* The buffers of a call: the first `outputs` are weights and momenta, the rest gradients. */
typedef struct {
    const cm_options *options;
    float *user[BUFFERS]; /* gradients too, which nothing writes */
    float *copy[BUFFERS]; /* of the outputs; a gradient is its own */
    size_t size[BUFFERS];
    int n, outputs;
    cm_options defaults;
} Call;

typedef struct {
    Arena arena;
    jmp_buf overrun;
    int level; /* of nested parallel regions */
} Workspace;

/* Of the call that this thread is in. */
static __thread Workspace *workspace;

static int parallel_level(void) {
#ifdef _OPENMP
    return omp_get_level();
#else
    return 0;
#endif
}

/* The arena is too small: a mistake in one of the ..._scratch functions, whose sizes depend on
   nothing but shapes and options. The caller's thread leaves the call; a worker inside a parallel
   loop has nowhere to go to and stops before it overwrites memory of others. */
static void workspace_overrun(void) {
    if (workspace && parallel_level() == workspace->level) longjmp(workspace->overrun, 1);
    __builtin_trap();
}

/* What a call does, on the copies. */
typedef struct {
    const cm_options *options;
    Pair pair;   /* cm_qk, cm_ov */
    Mat W, G, M; /* the others */
    double eta, damping;
} Job;
typedef void Work(const Job *job, Arena *arena);

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

/* Tested by the bits of the exponent: integer comparisons become vector instructions. */
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

/* Makes the copies and the arena of `scratch` elements. 0 or an error; *block is for free(). */
static int call_prepare(Call *c, Workspace *ws, size_t scratch, void **block) {
    for (int i = 0; i < c->n; i++)
        if (!c->user[i]) return CM_ENULL;
    if (call_overlaps(c)) return CM_EOVERLAP;
    for (int i = 0; i < c->n; i++)
        if (!all_finite(c->user[i], c->size[i])) return CM_ENONFINITE;
    size_t total = scratch + 16;
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
    ws->arena.p = p;
    ws->arena.size = scratch + 16;
    ws->arena.used = 0;
    return CM_OK;
}

static int run_guarded(Work *work, const Job *job, Workspace *ws) {
    workspace = ws;
    ws->level = parallel_level();
    int overrun = setjmp(ws->overrun);
    if (!overrun) work(job, &ws->arena);
    workspace = NULL;
    return overrun ? CM_EINTERNAL : CM_OK;
}

/* The number of threads is a setting of the calling thread, which gets its own back. */
static int run_threads(Work *work, const Job *job, Workspace *ws, int threads) {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    if (threads) omp_set_num_threads(threads);
    int status = run_guarded(work, job, ws);
    if (threads) omp_set_num_threads(before);
    return status;
#else
    (void)threads;
    return run_guarded(work, job, ws);
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

static void work_pair(const Job *j, Arena *arena) {
    const cm_options *o = j->options;
    pair_update(j->pair, &o->optim, o->optim.momentum, j->eta, o->weight_decay, 1, arena);
}

static void work_muon(const Job *j, Arena *arena) {
    const cm_options *o = j->options;
    muon_update(j->W, j->G, j->M, &o->optim, o->optim.momentum, j->eta, o->weight_decay, 1, arena);
}

static void work_msign(const Job *j, Arena *arena) { msign(j->W, &j->options->optim, arena); }

static void work_root(const Job *j, Arena *arena) {
    Mat R = mat_dense(arena_take(arena, mat_size(j->W)), 1, j->W.rows, j->W.cols);
    la_symmetrize(j->W);
    invroot(R, j->W, j->damping, j->options->optim.inv_root, arena);
    la_copy(j->W, R);
}

/* Whether a step does nothing: no gradient, no momentum, no decay. The weights then stay the same
   to the bit, which -0 + 0 is not. */
static int call_idle(const Call *c, int weights) {
    if (c->options->weight_decay != 0) return 0;
    for (int i = weights; i < c->n; i++)
        if (!all_zero(c->user[i], c->size[i])) return 0;
    return 1;
}

/* A (n_head), B (n_kv_head) are rows of heads; W_O's transpose is. by_column: A is W_O. */
static Factor factor_of(const Call *c, int i, int d_model, int heads, int head_dim, int by_column) {
    Factor f;
    Mat *views[3] = {&f.W, &f.M, &f.G};
    int rows = heads * head_dim;
    for (int j = 0; j < 3; j++) {
        float *p = c->copy[i + 2 * j];
        *views[j] = mat_heads(by_column ? mat_t(mat_dense(p, 1, d_model, rows))
                                        : mat_dense(p, 1, rows, d_model),
                              heads);
    }
    return f;
}

/* One step of a pair: A the per-query factor (W_Q, W_O), B the shared one (W_K, W_V). */
static int pair_call(float *wa, float *wb, const float *ga, const float *gb, float *ma, float *mb,
                     int d_model, int n_head, int n_kv_head, int head_dim, double eta,
                     const cm_options *options, int is_ov) {
    Call c;
    Workspace ws;
    void *block = NULL;
    call_begin(&c, options);
    if (bad_width(d_model) || bad_width(n_head) || bad_width(n_kv_head) || head_dim <= 0 ||
        head_dim > MAX_GRAM || (double)n_head * head_dim > MAX_WIDTH ||
        (double)n_kv_head * head_dim > MAX_WIDTH)
        return CM_ESIZE;
    if (n_head % n_kv_head) return CM_EHEADS;
    if (!isfinite(eta)) return CM_ENUMBER;
    if (optim_check(&c.options->optim, is_ov, n_head, n_kv_head, NULL)) return CM_ECOMBINATION;
    size_t a = (size_t)n_head * head_dim * d_model, b = (size_t)n_kv_head * head_dim * d_model;
    call_buffer(&c, wa, a, 1), call_buffer(&c, wb, b, 1);
    call_buffer(&c, ma, a, 1), call_buffer(&c, mb, b, 1);
    call_buffer(&c, ga, a, 0), call_buffer(&c, gb, b, 0);
    Job job;
    memset(&job, 0, sizeof job);
    job.options = c.options;
    job.eta = eta;
    job.pair.A = factor_of(&c, 0, d_model, n_head, head_dim, is_ov);
    job.pair.B = factor_of(&c, 1, d_model, n_kv_head, head_dim, 0);
    job.pair.whole_sign_A = is_ov && c.options->optim.hybrid;
    int status = call_prepare(&c, &ws, pair_scratch(&job.pair, 1, &c.options->optim), &block);
    if (status == CM_OK && !call_idle(&c, 2)) {
        job.pair.A = factor_of(&c, 0, d_model, n_head, head_dim, is_ov);
        job.pair.B = factor_of(&c, 1, d_model, n_kv_head, head_dim, 0);
        status = run_threads(work_pair, &job, &ws, c.options->threads);
        if (status == CM_OK) status = call_commit(&c);
    }
    free(block);
    return status;
}

int cm_qk(float *wq, float *wk, const float *gq, const float *gk, float *mq, float *mk, int d_model,
          int n_head, int n_kv_head, int head_dim, float eta, const cm_options *options) {
    return pair_call(wq, wk, gq, gk, mq, mk, d_model, n_head, n_kv_head, head_dim, (double)eta,
                     options, 0);
}

int cm_ov(float *wv, float *wo, const float *gv, const float *go, float *mv, float *mo, int d_model,
          int n_head, int n_kv_head, int head_dim, float eta, const cm_options *options) {
    return pair_call(wo, wv, go, gv, mo, mv, d_model, n_head, n_kv_head, head_dim, (double)eta,
                     options, 1);
}

/* The calls with one matrix: prepares, works on it, commits. The momentum, if any, is buffer 1 and
   the gradient buffer 2. */
static int matrix_call(Call *c, Work *work, Job *job, int rows, int cols, size_t scratch) {
    Workspace ws;
    void *block = NULL;
    job->options = c->options;
    int status = call_prepare(c, &ws, scratch, &block);
    if (status == CM_OK && !(c->n == 3 && call_idle(c, 1))) {
        job->W = mat_dense(c->copy[0], 1, rows, cols);
        job->M = mat_dense(c->copy[1], 1, rows, cols);
        job->G = mat_dense(c->copy[2], 1, rows, cols);
        status = run_threads(work, job, &ws, c->options->threads);
        if (status == CM_OK) status = call_commit(c);
    }
    free(block);
    return status;
}

int cm_muon(float *w, const float *g, float *m, int rows, int cols, float eta,
            const cm_options *options) {
    Call c;
    Job job;
    call_begin(&c, options);
    memset(&job, 0, sizeof job);
    job.eta = (double)eta;
    if (bad_width(rows) || bad_width(cols)) return CM_ESIZE;
    if (!isfinite(job.eta)) return CM_ENUMBER;
    size_t size = (size_t)rows * cols;
    call_buffer(&c, w, size, 1), call_buffer(&c, m, size, 1), call_buffer(&c, g, size, 0);
    return matrix_call(&c, work_muon, &job, rows, cols,
                       muon_scratch(mat_dense(NULL, 1, rows, cols)));
}

int cm_msign(float *x, int rows, int cols, const cm_options *options) {
    Call c;
    Job job;
    call_begin(&c, options);
    memset(&job, 0, sizeof job);
    if (bad_width(rows) || bad_width(cols)) return CM_ESIZE;
    call_buffer(&c, x, (size_t)rows * cols, 1);
    return matrix_call(&c, work_msign, &job, rows, cols, msign_scratch(1, rows, cols));
}

int cm_inv_sqrt(float *gram, int n, float damping, const cm_options *options) {
    Call c;
    Job job;
    call_begin(&c, options);
    memset(&job, 0, sizeof job);
    job.damping = (double)damping;
    if (n <= 0 || n > MAX_GRAM) return CM_ESIZE;
    if (!(job.damping >= 0) || !isfinite(job.damping)) return CM_ENUMBER;
    size_t size = (size_t)n * n;
    call_buffer(&c, gram, size, 1);
    return matrix_call(&c, work_root, &job, n, n, arena_round(size) + invroot_scratch(1, n));
}
