/*
What the tests of the model share on both machines: the trainer with a count of the bytes that it
allocates, small models with random parameters and batches, and the comparison with PyTorch's
numbers (dev/test/fixtures). Only device_upload and device_download look into device memory, so
the file works on a GPU. A program of the GPU includes llmc/cuda/backend.cuh first.
*/
#ifndef CM_MODEL_CASES_H
#define CM_MODEL_CASES_H

#include "check.h"
#include "draw.h"
#include "fixture.h"

#ifdef CM_CUDA
enum { ON_CUDA = 1 };
#else
#include "../../llmc/cpu/backend.h"
enum { ON_CUDA = 0 };
#endif
#define BACKEND_READY
static size_t allocated;
static void *counted_alloc(size_t bytes) {
    allocated += bytes;
    return device_alloc(bytes);
}
#define device_alloc counted_alloc
#define CM_NO_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* what only main calls */
#include "../../train_gpt.c"
#pragma GCC diagnostic pop
#include "../../llmc/merge.h"
#include "config_of.h"
#include "values.h"

/* A bound for each build: the CPU in double and in float, CUDA in fp32 and in bf16. fp32 is held to
   a few times its rounding. In bf16 activations, weights and logits carry eight bits, an error of
   2^-9 each: through two layers they make about 1 % of a gradient, more where terms cancel. */
#define BY_BUILD(DOUBLE, FLOAT, FP32, BF16)                                                        \
    (sizeof(floatM) == 8 ? (DOUBLE) : !ON_CUDA ? (FLOAT) : sizeof(floatX) == 2 ? (BF16) : (FP32))

/* A bound of tests that run in double and in float only. */
#define BY_TYPE(DOUBLE, FLOAT) BY_BUILD(DOUBLE, FLOAT, FLOAT, FLOAT)

DEFINE_RELATIVE_L2(relative_l2_m, floatM, floatM)
DEFINE_RELATIVE_L2(relative_l2_mf, floatM, float)

static char err[ERR_LEN];

/* ---------------------------------------------------------------------------------------------- */
/* arrays of the host */

/* Arrays of the running test; release() frees them all. */
static void *arrays[128];
static int num_arrays;

static floatM *array(size_t n) {
    floatM *p = (floatM *)malloc((n + !n) * sizeof *p);
    if (!p || num_arrays == COUNT_OF(arrays)) die("test_gpt: out of memory or of arrays");
    arrays[num_arrays++] = p;
    for (size_t i = 0; i < n; i++) p[i] = (floatM)NAN; /* what a layer sets, it sets wholly */
    return p;
}

static inline floatM *random_array(size_t n, double scale) {
    floatM *p = array(n);
    for (size_t i = 0; i < n; i++) p[i] = (floatM)(scale * draw());
    return p;
}

static void release(void) {
    while (num_arrays) free(arrays[--num_arrays]);
}

/* n numbers of device memory. */
static floatM *fetch(const floatM *from, size_t n) {
    floatM *p = array(n);
    device_download(p, from, n * sizeof *p);
    return p;
}
static floatM *fetch_x(const floatX *from, size_t n) {
    floatM *p = array(n);
    floatX *raw = (floatX *)malloc((n + !n) * sizeof *raw);
    if (!raw) die("test_gpt: out of memory");
    device_download(raw, from, n * sizeof *raw);
    for (size_t i = 0; i < n; i++) p[i] = (floatM)raw[i];
    free(raw);
    return p;
}

static int same_bits(const floatM *a, const floatM *b, size_t n) {
    return memcmp(a, b, n * sizeof *a) == 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* models */

/* Where a tensor begins among the parameters (and, as nothing is frozen, in the gradient and the
   moments), and how many elements these have. */
static size_t param_at(const Tensor *t) { return t->slot[SLOT_PARAM].at; }
static size_t elements(const Model *m) { return m->p.r.size[SLOT_PARAM]; }

/* A model of a resolved config, which must outlive it. */
static int make_model(Model *m, const Config *c, int training) {
    Registry r = registry_build(c);
    if (registry_freeze(&r, c->freeze, err)) return -1;
    Plan plan = plan_build(c, &r);
    if (plan_check_frozen(&plan, c, &r, err)) return -1;
    return model_create(m, c, &r, &plan, training, err);
}

static void create(Model *m, const Config *c) {
    if (make_model(m, c, 1)) die("%s", err);
}

/* The forward pass over tokens (B,T), at most the model's B sequences. */
static void forward(Model *m, const int *tokens, int B) {
    Shape s = shape_with(m->s, B, m->s.T);
    tokens_upload(m->a.tokens, tokens, s.N, s.Vp);
    model_forward(m, s);
}

/* Sets m->p.grad to the gradient of the mean loss, which is returned. */
static double loss_and_gradient(Model *m, const int *x, const int *y, int B) {
    Shape s = shape_with(m->s, B, m->s.T);
    int valid = 0;
    for (int n = 0; n < s.N; n++) valid += y[n] >= 0;
    device_zero(m->p.grad, m->p.r.size[SLOT_GRAD] * sizeof(floatM));
    send_batch(m, x, y, s);
    model_forward(m, s);
    head_loss(m, s, 1.0 / valid);
    model_backward(m, s);
    return take_loss(m) / (double)valid;
}

/* One step on a batch of the model's size; returns the loss before it. */
static double train(Model *m, const int *x, const int *y, int step) {
    double loss = loss_and_gradient(m, x, y, m->s.B);
    optimizer_step(m, step, 1);
    return loss;
}

/* Elements of a tensor without the vocabulary's padding, by the test's own count. */
static inline size_t used_size(const Config *c, const Registry *r, int id) {
    if (id == T_BHEAD) return (size_t)c->vocab;
    if (id == T_WTE || id == T_WHEAD) return (size_t)c->vocab * c->width;
    if (id == T_WHEAD_UP) return (size_t)c->vocab * (size_t)r->t[id].cols;
    return r->t[id].size;
}

/* Parameters for which nothing vanishes; the padded vocabulary is zero as after model_init. */
static inline void randomise(Model *m) {
    floatM *p = array(elements(m));
    memset(p, 0, elements(m) * sizeof *p);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->p.r.t[id];
        double size = 1.5 / sqrt(t->cols);
        if (t->role == ROLE_EMBED) size = 0.8;
        if (t->role == ROLE_SCALAR) size = 0.3;
        for (size_t i = 0; t->layers && i < used_size(m->c, &m->p.r, id); i++)
            p[param_at(t) + i] = (floatM)(t->init_mean + size * draw());
    }
    device_upload(m->p.param, p, elements(m) * sizeof *p);
    refresh_weights(m);
}

/* Random tokens and targets (N), one of the targets ignored. */
static inline void draw_batch(const Config *c, int *x, int *y, int N) {
    for (int n = 0; n < N; n++) {
        x[n] = (int)draw_index((size_t)c->vocab);
        y[n] = (int)draw_index((size_t)c->vocab);
    }
    y[N / 3] = -1;
}

/* ---------------------------------------------------------------------------------------------- */
/* parity with PyTorch */

static void load_fixture(Model *m, const Fixture *fx) {
    floatM *p = array(elements(m));
    memset(p, 0, elements(m) * sizeof *p);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->p.r.t[id];
        if (!t->layers) continue;
        const FixtureRecord *r = fixture_getf(fx, "f4", "param.%s", t->name);
        if (r->count != t->size) fixture_die("%s: %s has another size", fx->path, r->name);
        for (size_t i = 0; i < t->size; i++) p[param_at(t) + i] = (floatM)r->f4[i];
    }
    device_upload(m->p.param, p, elements(m) * sizeof *p);
    refresh_weights(m);
}

/* Logits (N,V) of a batch, formed in one piece. */
static void check_logits(Model *m, const Fixture *fx, const int *x) {
    const FixtureRecord *logits = fixture_get(fx, "logits", "f4");
    int N = m->s.N, V = m->s.V, Vp = round_up(V, 64);
    forward(m, x, m->s.B);
    check(m->R >= N, "the logits are not in one piece");
    head_forward(m, 0, N);
    softcap_forward(m->a.logits, N, V, Vp, m->c->softcap);
    floatM *padded = fetch_x(m->a.logits, (size_t)N * Vp), *dense = array((size_t)N * V);
    for (int n = 0; n < N; n++)
        memcpy(dense + (size_t)n * V, padded + (size_t)n * Vp, (size_t)V * sizeof *dense);
    check(logits->count == (size_t)N * V, "%s: %zu logits", fx->path, logits->count);
    double e = relative_l2_mf(dense, logits->f4, logits->count, 1e-30);
    check(e < BY_BUILD(1e-7, 1e-6, 2e-6, 2e-2), "%s: logits are off by %.1e", fx->path, e);
}

/* Logits, loss and gradients. The fixture keeps them in float32, which is all the double build's
   distance from it; the float build's is rounding, a few times what PyTorch has in float32. */
static void check_parity(const Fixture *fx) {
    Config c = config_of(fixture_text(fx, "flags"), "");
    static Model m;
    create(&m, &c);
    load_fixture(&m, fx);
    const int *x = fixture_get(fx, "x", "i4")->i4, *y = fixture_get(fx, "y", "i4")->i4;
    check_logits(&m, fx, x);
    double want = fixture_get(fx, "loss", "f8")->f8[0], loss = loss_and_gradient(&m, x, y, m.s.B);
    check(relative_error(loss, want, 1) < BY_BUILD(1e-13, 1e-6, 1e-6, 5e-3),
          "%s: loss %.15g, want %.15g", fx->path, loss, want);
    int tensors = 0, records = 0;
    double off = 0, all = 0;
    floatM *g = fetch(m.p.grad, elements(&m));
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        if (!t->layers) continue;
        const FixtureRecord *r = fixture_getf(fx, "f4", "grad.%s", t->name);
        double e = relative_l2_mf(g + param_at(t), r->f4, t->size, 1e-30);
        check(e < BY_BUILD(1e-7, 3e-6, 5e-6, 0.1), "%s: gradient of %s is off by %.1e", fx->path,
              t->name, e);
        for (size_t i = 0; i < t->size; i++) {
            double d = (double)g[param_at(t) + i] - (double)r->f4[i];
            off += d * d;
            all += (double)r->f4[i] * (double)r->f4[i];
        }
        tensors++;
    }
    check(sqrt(off / all) < BY_BUILD(1e-7, 3e-6, 5e-6, 3e-2), "%s: the gradient is off by %.1e",
          fx->path, sqrt(off / all));
    for (int i = 0; i < fx->count; i++) records += !strncmp(fx->records[i].name, "param.", 6);
    check(tensors == records, "%s: %d tensors, but the model has %d", fx->path, records, tensors);
    model_free(&m);
    release();
}

/* Where the parameters have gone from `start`, relative to how far they went, where the fixture
   states it. Gains move by 1% of their size, so float32 storage alone costs 2e-6 of a movement, and
   float32 arithmetic about 1e-5. One tensor is worse in float: without rotary positions the key
   bias has no gradient, and AdamW steps on its noise. */
static void check_movement(const Model *m, const Fixture *fx, const char *optimizer,
                           const floatM *start, const floatM *p) {
    char name[96];
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->p.r.t[id];
        snprintf(name, sizeof name, "%s.param.%s", optimizer, t->name);
        const FixtureRecord *r = t->layers ? fixture_find(fx, name) : NULL;
        if (!r) continue;
        double d = 0, s = 0;
        for (size_t i = 0; i < t->size; i++) {
            double got = (double)p[param_at(t) + i] - (double)start[param_at(t) + i];
            double want = (double)r->f4[i] - (double)start[param_at(t) + i];
            d += (got - want) * (got - want);
            s += want * want;
        }
        double in_float = id == T_BQKV && m->c->pos == POS_LEARNED ? 5e-4 : 1e-4;
        double limit = BY_BUILD(5e-6, in_float, in_float, INFINITY);
        check(sqrt(d / s) < limit, "%s, %s: the movement of %s is off by %.1e", fx->path, optimizer,
              t->name, sqrt(d / s));
    }
}

/* Ten steps by the rules of the record O.flags: the losses before each, and (of adamw and cm) the
   movement; and, with `again`, that a second run takes the same steps to the bit. */
static void check_updates(const Fixture *fx, const char *optimizer, int again) {
    Config c =
        config_of(fixture_text(fx, "flags"), fixture_getf(fx, "s1", "%s.flags", optimizer)->s1);
    static Model m;
    const int *x = fixture_get(fx, "x", "i4")->i4, *y = fixture_get(fx, "y", "i4")->i4;
    const FixtureRecord *losses = fixture_getf(fx, "f8", "%s.losses", optimizer);
    floatM *first = NULL;
    for (int run = 0; run <= again; run++) {
        double worst = 0;
        create(&m, &c);
        load_fixture(&m, fx);
        floatM *start = fetch(m.p.param, elements(&m));
        for (int step = 0; step < (int)losses->count; step++)
            worst = fmax(worst, relative_error(train(&m, x, y, step), losses->f8[step], 1e-30));
        check(losses->count == 10 && worst < BY_BUILD(1e-13, 1e-6, 5e-6, 2e-2),
              "%s, %s: the losses are off by %.1e", fx->path, optimizer, worst);
        floatM *p = fetch(m.p.param, elements(&m));
        if (run)
            check(same_bits(p, first, elements(&m)), "%s, %s: two runs differ", fx->path,
                  optimizer);
        else check_movement(&m, fx, optimizer, start, p);
        first = p;
        model_free(&m);
    }
    release();
}

/* What the fixture of a name holds; `more` are further tests of it. In bf16 two optimizers are
   enough: their rules compute in fp32 in either build. */
static inline void check_fixture(const char *name, void (*more)(const Fixture *fx)) {
    static const char *const optimizers[] = {"adamw", "cm", "muon", "cm_iso"};
    char path[128];
    snprintf(path, sizeof path, "dev/test/fixtures/%s.fix", name);
    Fixture *fx = fixture_load(path);
    check_parity(fx);
    if (more) more(fx);
    for (int i = 0; i < BY_BUILD(4, 4, 4, 2); i++) check_updates(fx, optimizers[i], i == 1);
    fixture_free(fx);
}

#endif
