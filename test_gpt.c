/*
Tests of the model: layers and whole models against finite differences (double build only) and against
PyTorch (dev/test/fixtures), and what initialisation, updates, memory, checkpoints and gradient
accumulation promise. Built twice: build/test_gpt in float, build/test_gpt_double with -DCM_DOUBLE.
Run it from the root of the repository.
*/
#include "dev/test/check.h"
#include "dev/test/fixture.h"

/* The trainer itself, with a count of the bytes it asks of the device. */
#include "llmc/cpu/backend.h"
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
#include "train_gpt.c"
#pragma GCC diagnostic pop

#ifdef CM_DOUBLE
#define BY_BUILD(DOUBLE, FLOAT) (DOUBLE)
#else
#define BY_BUILD(DOUBLE, FLOAT) (FLOAT)
#endif

DEFINE_RELATIVE_L2(relative_l2_m, floatM, floatM)
DEFINE_RELATIVE_L2(relative_l2_mf, floatM, float)

static char err[ERR_LEN];

/* ---------------------------------------------------------------------------------------------- */
/* help */

static uint64_t drawn;
static double draw(void) { return 2 * rng_uniform(7, 7, drawn++) - 1; } /* in [-1, 1) */
static size_t draw_index(size_t n) { return (size_t)(rng_bits(7, 8, drawn++) % n); }

/* Arrays of the running test; release() frees them all. */
static void *arrays[128];
static int num_arrays;

static floatX *array(size_t n) {
    floatX *p = (floatX *)malloc((n + !n) * sizeof *p);
    if (!p || num_arrays == 128) die("test_gpt: out of memory or of arrays");
    arrays[num_arrays++] = p;
    for (size_t i = 0; i < n; i++) p[i] = (floatX)NAN; /* what a layer sets, it sets wholly */
    return p;
}

static floatX *random_array(size_t n, double scale) {
    floatX *p = array(n);
    for (size_t i = 0; i < n; i++) p[i] = (floatX)(scale * draw());
    return p;
}

static void release(void) {
    while (num_arrays) free(arrays[--num_arrays]);
}

static void set_threads(int threads) {
#ifdef _OPENMP
    omp_set_num_threads(threads);
#else
    (void)threads;
#endif
}

/* Words of text as a command line, its presets and defaults filled in; then `changes`, pairs that win
   over it. The speedrun's 524288 tokens a step are set back to one batch. */
static Config config_of(const char *text, const char *changes) {
    static char copy[4096];
    unsigned char given[CONFIG_FLAGS];
    char *argv[256], *save = NULL, name[] = "test_gpt";
    int argc = 1;
    Config c;
    argv[0] = name;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *w = strtok_r(copy, " ", &save); w && argc < 255; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    if (config_parse(&c, given, argc, argv, err)) die("%s: %s", text, err);
    if (!given[flags_find(config_flags, CONFIG_FLAGS, "total-batch-tokens")]) c.total_batch_tokens = 0;
    if (config_apply(&c, NULL, changes, err)) die("%s: %s", changes, err);
    if (config_resolve(&c, err)) die("%s %s: %s", text, changes, err);
    return c;
}

static void create(Model *m, const Config *c) {
    if (model_create(m, c, 1, err)) die("%s", err);
}

/* Parameters for which nothing vanishes; the padded vocabulary is zero as after model_init. */
static void randomise(Model *m) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->r.t[id];
        int embed = t->role == ROLE_EMBED, vector = t->role == ROLE_SCALAR;
        size_t used = id == T_BHEAD ? (size_t)m->c.vocab
                                    : (size_t)t->layers * t->used_rows * t->cols;
        for (size_t i = 0; i < used; i++)
            m->p[t->offset + i] = (floatM)(t->init_mean + draw() * (vector  ? 0.3
                                                                    : embed ? 0.8
                                                                            : 1.5 / sqrt(t->cols)));
    }
}

/* Random tokens and targets (N), one of the targets ignored. */
static void draw_batch(const Config *c, int *x, int *y, int N) {
    for (int n = 0; n < N; n++) {
        x[n] = (int)draw_index((size_t)c->vocab);
        y[n] = (int)draw_index((size_t)c->vocab);
    }
    y[N / 3] = -1;
}

/* Sets m->g to the gradient of the mean loss, which is returned. */
static double loss_and_gradient(Model *m, const int *x, const int *y, int B) {
    int valid = 0, count = 0;
    for (int n = 0; n < B * m->T; n++) valid += y[n] >= 0;
    device_zero(m->g, m->r.size * sizeof(floatM));
    forward(m, x, B);
    double sum = forward_loss(m, y, B, 1.0 / valid, &count);
    backward(m, B);
    check(count == valid, "%d targets counted of %d", count, valid);
    return sum / count;
}

static double train(Model *m, const int *x, const int *y, int step) {
    double loss = loss_and_gradient(m, x, y, m->B);
    update(m, step, 1);
    return loss;
}

static int all_zero(const floatM *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i] != 0) return 0;
    return 1;
}

static int same_bits(const floatM *a, const floatM *b, size_t n) {
    return memcmp(a, b, n * sizeof *a) == 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* finite differences */

#ifdef CM_DOUBLE

typedef double (*Function)(void *);

/* A function with a kink (the second derivative of relu2 jumps) sets this to a number that changes when
   a kink is crossed; differences across one mean nothing. */
static uint64_t side_of_kinks;

/* df/dx by central differences of fourth order; NaN across a kink. */
static double derivative(Function f, void *of, floatX *x, double h) {
    double value[5], x0 = *x;
    uint64_t side = 0;
    int crossed = 0;
    for (int k = 0; k < 5; k++) {
        if (k == 2) continue;
        *x = x0 + (k - 2) * h;
        value[k] = f(of);
        crossed |= k > 0 && side_of_kinks != side;
        side = side_of_kinks;
    }
    *x = x0;
    return crossed ? NAN : (value[0] - 8 * value[1] + 8 * value[3] - value[4]) / (12 * h);
}

/* Distance between g and the finite differences, relative to the latter's norm: over all n elements, or
   over `most` random ones, of which every second has g != 0 so that sparse gradients are seen. */
static double gradient_error(Function f, void *of, floatX *x, const floatX *g, size_t n, size_t most,
                             double h) {
    double d = 0, s = 0;
    size_t tested = min_size(n, most), crossed = 0;
    int threads = thread_count();
    set_threads(1);
    for (size_t k = 0; k < tested; k++) {
        size_t i = n <= most ? k : draw_index(n);
        for (int tries = 0; n > most && k % 2 && g[i] == 0 && tries < 1000; tries++) i = draw_index(n);
        double value = derivative(f, of, &x[i], h);
        if (value != value) {
            crossed++;
            continue;
        }
        d += (value - g[i]) * (value - g[i]);
        s += value * value;
    }
    set_threads(threads);
    if (2 * crossed > tested || s == 0) return INFINITY; /* nothing was tested */
    double e = sqrt(d / s);
    return e == e ? e : INFINITY;
}

/* A layer's gradient g of its input or parameter x (n). */
#define check_layer(F, OF, X, G, COUNT, ...)                                                       \
    do {                                                                                           \
        char what[160];                                                                            \
        snprintf(what, sizeof what, __VA_ARGS__);                                                  \
        double error = gradient_error(F, OF, X, G, COUNT, 400, 1e-3);                              \
        check(error < 1e-8, "%s: d%s is off by %.1e", what, #X, error);                            \
    } while (0)

static double dot(const floatX *a, const floatX *b, size_t n) {
    double s = 0;
    for (size_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

/* g -= before, for parameter gradients, which are added to what was there. */
static void subtract(floatX *g, const floatX *before, size_t n) {
    for (size_t i = 0; i < n; i++) g[i] -= before[i];
}

static floatX *copy_of(const floatX *a, size_t n) {
    floatX *p = array(n);
    memcpy(p, a, n * sizeof *p);
    return p;
}

typedef struct {
    int B, T, C, tokens[6];
    floatX *wte, *wpe, *x, *dx;
} Embed;

static double embed_value(void *of) {
    Embed *e = (Embed *)of;
    embed_forward(e->x, e->tokens, e->wte, e->wpe, e->B, e->T, e->C);
    return dot(e->x, e->dx, (size_t)e->B * e->T * e->C);
}

static void test_embed(void) {
    for (int positions = 0; positions < 2; positions++) {
        Embed e = {2, 3, 5, {4, 1, 4, 4, 0, 1}, NULL, NULL, NULL, NULL}; /* tokens repeat */
        size_t n = 30, nw = 35, np = 15;
        e.wte = random_array(nw, 1);
        e.wpe = positions ? random_array(np, 1) : NULL;
        e.x = array(n);
        e.dx = random_array(n, 1);
        floatX *dwte = random_array(nw, 1), *dwpe = random_array(np, 1);
        floatX *wte0 = copy_of(dwte, nw), *wpe0 = copy_of(dwpe, np);
        embed_backward(dwte, positions ? dwpe : NULL, e.dx, e.tokens, e.B, e.T, e.C);
        subtract(dwte, wte0, nw);
        subtract(dwpe, wpe0, np);
        check_layer(embed_value, &e, e.wte, dwte, nw, "embed, positions %d", positions);
        if (positions) check_layer(embed_value, &e, e.wpe, dwpe, np, "embed");
        check(positions || all_zero(dwpe, np), "embed touched dwpe");
        release();
    }
}

typedef struct {
    int N, C, kind;
    floatX *y, *mean, *rstd, *sum, *x, *delta, *gain, *bias, *dy, *dres;
} Norm;

static double norm_value(void *of) {
    Norm *o = (Norm *)of;
    size_t n = (size_t)o->N * o->C;
    norm_forward(o->y, o->mean, o->rstd, o->sum, o->x, o->delta, o->gain, o->bias, o->N, o->C, o->kind,
                 1e-2);
    return dot(o->y, o->dy, n) + (o->dres ? dot(o->delta ? o->sum : o->x, o->dres, n) : 0);
}

/* dres is the gradient that reaches the stream x (+ delta) past the norm. */
static void test_norm(int kind, int with_delta, int with_dres, int with_bias) {
    Norm o = {5, 6, kind, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL};
    size_t n = 30, C = 6;
    o.y = array(n), o.mean = array(5), o.rstd = array(5), o.sum = array(n);
    o.x = random_array(n, 1);
    o.delta = with_delta ? random_array(n, 1) : NULL;
    o.gain = random_array(C, 1);
    o.bias = with_bias ? random_array(C, 1) : NULL;
    o.dy = random_array(n, 1);
    o.dres = with_dres ? random_array(n, 1) : NULL;
    floatX *dx = array(n), *dgain = random_array(C, 1), *dbias = random_array(C, 1);
    floatX *gain0 = copy_of(dgain, C), *bias0 = copy_of(dbias, C), *before = copy_of(o.x, n);
    norm_value(&o);
    check(same_bits(o.x, before, n), "norm_forward changed its input");
    const floatX *stream = with_delta ? o.sum : o.x;
    norm_backward(dx, dgain, with_bias ? dbias : NULL, o.dy, o.dres, stream, o.gain, o.mean, o.rstd,
                  o.N, o.C, kind);
    floatX *alone = copy_of(dx, n);
    subtract(dgain, gain0, C);
    subtract(dbias, bias0, C);
    char name[100];
    snprintf(name, sizeof name, "norm %d, delta %d, dres %d, bias %d", kind, with_delta, with_dres,
             with_bias);
    check_layer(norm_value, &o, o.x, dx, n, "%s", name);
    if (with_delta) check_layer(norm_value, &o, o.delta, dx, n, "%s", name);
    check_layer(norm_value, &o, o.gain, dgain, C, "%s", name);
    if (with_bias) check_layer(norm_value, &o, o.bias, dbias, C, "%s", name);

    /* The model's two ways to work in place: dx over dres, and dx over dy. */
    floatX *in_place = copy_of(with_dres ? o.dres : o.dy, n);
    norm_backward(in_place, dgain, NULL, with_dres ? o.dy : in_place, with_dres ? in_place : NULL, stream,
                  o.gain, o.mean, o.rstd, o.N, o.C, kind);
    check(same_bits(in_place, alone, n), "%s: in place gives another gradient", name);
    release();
}

typedef struct {
    int N, I, O;
    floatX *y, *x, *w, *b, *dy;
} Linear;

static double linear_value(void *of) {
    Linear *o = (Linear *)of;
    linear_forward(o->y, o->x, o->w, o->b, o->N, o->I, o->O);
    return dot(o->y, o->dy, (size_t)o->N * o->O);
}

static void test_linear(int with_bias) {
    Linear o = {7, 10, 19, NULL, NULL, NULL, NULL, NULL};
    size_t nx = 70, nw = 190, ny = 133, nb = 19;
    o.y = array(ny), o.x = random_array(nx, 1), o.w = random_array(nw, 1);
    o.b = with_bias ? random_array(nb, 1) : NULL;
    o.dy = random_array(ny, 1);
    floatX *dx = array(nx), *dw = random_array(nw, 1), *db = random_array(nb, 1);
    floatX *w0 = copy_of(dw, nw), *b0 = copy_of(db, nb);
    linear_backward(dx, dw, with_bias ? db : NULL, o.dy, o.x, o.w, o.N, o.I, o.O);
    subtract(dw, w0, nw);
    subtract(db, b0, nb);
    check_layer(linear_value, &o, o.x, dx, nx, "linear, bias %d", with_bias);
    check_layer(linear_value, &o, o.w, dw, nw, "linear, bias %d", with_bias);
    if (with_bias) check_layer(linear_value, &o, o.b, db, nb, "linear");
    else check(all_zero(db, nb), "linear touched db");
    floatX *dw2 = random_array(nw, 0);
    linear_backward(NULL, dw2, NULL, o.dy, o.x, o.w, o.N, o.I, o.O);
    check(relative_l2_dd(dw2, dw, nw, 1) < 1e-14, "linear without dx gives another dw");
    release();
}

typedef struct {
    int B, T, NH, NKV, HS, qk_norm;
    floatX *cosine, *sine, *qkv, *out, *rstd, *d;
} QK;

static double qk_value(void *of) {
    QK *o = (QK *)of;
    size_t n = (size_t)o->B * o->T * (size_t)(o->NH + 2 * o->NKV) * o->HS;
    memcpy(o->out, o->qkv, n * sizeof *o->out);
    qk_forward(o->out, o->rstd, o->cosine, o->sine, o->B * o->T, o->T, 0, o->NH, o->NKV, o->HS,
               o->qk_norm, 1e-2);
    return dot(o->out, o->d, n);
}

static void test_qk(int qk_norm, int pos, int NKV) {
    QK o = {2, 3, 2, NKV, 8, qk_norm, NULL, NULL, NULL, NULL, NULL, NULL};
    size_t row = (size_t)(o.NH + 2 * NKV) * 8, n = 6 * row, angles = 3 * 4;
    if (pos != POS_NONE) {
        o.cosine = array(angles), o.sine = array(angles);
        rope_table(o.cosine, o.sine, 3, 8, pos, 50);
    }
    o.qkv = random_array(n, 1), o.out = array(n), o.d = random_array(n, 1);
    o.rstd = array(6 * (size_t)(o.NH + NKV));
    qk_value(&o);
    floatX *dqkv = copy_of(o.d, n);
    qk_backward(dqkv, o.out, o.rstd, o.cosine, o.sine, 6, 3, o.NH, NKV, 8, qk_norm);
    check_layer(qk_value, &o, o.qkv, dqkv, n, "qk, norm %d, pos %d, NKV %d", qk_norm, pos, NKV);

    /* One position at a time, as generation does it. */
    floatX *one = copy_of(o.qkv + 2 * row, row), rstd[4];
    qk_forward(one, rstd, o.cosine, o.sine, 1, 1, 2, o.NH, NKV, 8, qk_norm, 1e-2);
    check(same_bits(one, o.out + 2 * row, row), "qk_forward with `first` differs");
    release();
}

typedef struct {
    int B, T, NH, NKV, HS;
    double scale;
    floatX *qkv, *out, *lse, *d;
} Attention;

static double attention_value(void *of) {
    Attention *o = (Attention *)of;
    attention_forward(o->out, o->lse, o->qkv, o->B, o->T, o->NH, o->NKV, o->HS, o->scale);
    return dot(o->out, o->d, (size_t)o->B * o->T * o->NH * o->HS);
}

static void test_attention(int T, int NH, int NKV, int HS) {
    Attention o = {2, T, NH, NKV, HS, 0.7, NULL, NULL, NULL, NULL};
    size_t N = 2 * (size_t)T, n = N * (size_t)(NH + 2 * NKV) * HS, no = N * (size_t)NH * HS;
    o.qkv = random_array(n, 1), o.out = array(no), o.lse = array(N * NH), o.d = random_array(no, 1);
    floatX *dqkv = array(n);
    attention_value(&o);
    attention_backward(dqkv, o.d, o.qkv, o.out, o.lse, 2, T, NH, NKV, HS, o.scale);
    check_layer(attention_value, &o, o.qkv, dqkv, n, "attention, T %d, NH %d, NKV %d", T, NH, NKV);
    release();
}

typedef struct {
    int N, F, act;
    floatX *y, *h, *dy;
} Act;

static double act_value(void *of) {
    Act *o = (Act *)of;
    act_forward(o->y, o->h, o->N, o->F, o->act);
    return dot(o->y, o->dy, (size_t)o->N * o->F);
}

static void test_act(int act) {
    Act o = {5, 7, act, NULL, NULL, NULL};
    size_t n = 35, nh = act == ACT_SWIGLU ? 70 : 35;
    o.y = array(n), o.h = random_array(nh, 3), o.dy = random_array(n, 1);
    for (size_t i = 0; i < nh; i++) /* differences reach 2e-3 to either side */
        if (act == ACT_RELU2 && fabs(o.h[i]) < 3e-3) o.h[i] = 3e-3;
    floatX *dh = array(nh);
    act_backward(dh, o.dy, o.h, o.N, o.F, act);
    check_layer(act_value, &o, o.h, dh, nh, "act %d", act);
    release();
}

typedef struct {
    int N, V, Vp, targets[4];
    double softcap, scale;
    floatX *losses, *z, *work;
} Classifier;

static double classifier_value(void *of) {
    Classifier *o = (Classifier *)of;
    double sum = 0;
    memcpy(o->work, o->z, (size_t)o->N * o->Vp * sizeof *o->work);
    classifier(o->losses, o->work, o->targets, o->N, o->V, o->Vp, o->softcap, 0);
    for (int n = 0; n < o->N; n++) sum += o->losses[n];
    return sum * o->scale;
}

static void test_classifier_gradient(double softcap) {
    Classifier o = {4, 9, 16, {3, -1, 0, 8}, softcap, 0.37, NULL, NULL, NULL};
    o.losses = array(4), o.z = random_array(64, 12), o.work = array(64);
    for (int i = 0; i < 64; i++)
        if (i % 16 >= 9) o.z[i] = NAN; /* padding is never read */
    floatX *dz = copy_of(o.z, 64);
    classifier(o.losses, dz, o.targets, 4, 9, 16, softcap, o.scale);
    for (int n = 0; n < 4; n++)
        if (n != 1)
            check_layer(classifier_value, &o, o.z + 16 * n, dz + 16 * n, 9, "classifier, softcap %g",
                        softcap);
    release();
}

static void test_layers(void) {
    set_threads(2); /* sums over rows are cut in two */
    test_embed();
    for (int i = 0; i < 16; i++) test_norm(i & 1, i >> 1 & 1, i >> 2 & 1, i >> 3);
    test_linear(0);
    test_linear(1);
    for (int norm = 0; norm < 2; norm++)
        for (int pos = POS_ROPE; pos <= POS_NONE; pos++) {
            test_qk(norm, pos, 2);
            test_qk(norm, pos, 1);
        }
    test_attention(9, 2, 2, 3);
    test_attention(9, 4, 2, 4);
    test_attention(21, 3, 1, 5);
    for (int act = ACT_GELU; act <= ACT_SWIGLU; act++) test_act(act);
    test_classifier_gradient(0);
    test_classifier_gradient(15);
    test_classifier_gradient(3);
}

/* The mean loss of a batch as a function of the parameters. */
typedef struct {
    Model *m;
    const int *x, *y;
    int B;
} Loss;

static double loss_value(void *of) {
    Loss *o = (Loss *)of;
    const Config *c = &o->m->c;
    int count = 0;
    forward(o->m, o->x, o->B);
    double sum = forward_loss(o->m, o->y, o->B, 0, &count);
    side_of_kinks = 0;
    if (c->act == ACT_RELU2)
        for (int l = 0; l < c->layers; l++) {
            const floatX *fc = o->m->a.fc + (size_t)l * o->m->B * o->m->T * c->ff_width;
            for (size_t i = 0; i < (size_t)o->B * o->m->T * c->ff_width; i++)
                side_of_kinks = rng_mix(side_of_kinks + (fc[i] > 0));
        }
    return sum / count;
}

/* Every parameter tensor against finite differences, on a batch of B of the model's sequences, `rows`
   rows of logits at a time. The gradient is added to noise, as to that of an earlier micro-batch. */
static void test_model_gradient(const char *preset, const char *changes, int B, int rows) {
    Config c = config_of(preset, changes);
    static Model m;
    int x[64], y[64], count = 0;
    create(&m, &c);
    randomise(&m);
    m.R = min_int(m.R, rows);
    draw_batch(&c, x, y, B * m.T);
    floatM *before = random_array(m.r.size, 1);
    memcpy(m.g, before, m.r.size * sizeof *before);
    set_threads(2);
    forward(&m, x, B);
    forward_loss(&m, y, B, 1.0 / (B * m.T - 1), &count);
    backward(&m, B);
    subtract(m.g, before, m.r.size);
    Loss loss = {&m, x, y, B};
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.r.t[id];
        if (!t->layers) continue;
        size_t used = id == T_BHEAD ? (size_t)c.vocab : (size_t)t->layers * t->used_rows * t->cols;
        double e = gradient_error(loss_value, &loss, m.p + t->offset, m.g + t->offset, used, 32, 2e-4);
        check(e < 1e-7, "%s %s: gradient of %s is off by %.1e", preset, changes, t->name, e);
        check(all_zero(m.g + t->offset + used, t->size - used), "%s %s: padding of %s has a gradient",
              preset, changes, t->name);
    }
    model_free(&m);
    release();
}

static void test_model_gradients(void) {
    const char *const gpt2 = "--preset gpt2 --layers 2 --width 16 --heads 2 --ff-width 24 --seq-len 6 "
                             "--vocab 50 --batch-size 3";
    const char *const llama = "--preset llama --layers 2 --width 16 --heads 4 --kv-heads 2 "
                              "--ff-width 24 --seq-len 6 --vocab 64 --batch-size 3";
    const char *const speedrun = "--preset speedrun --layers 2 --width 16 --heads 2 --ff-width 24 "
                                 "--seq-len 6 --vocab 50 --batch-size 3";
    static const char *const of_gpt2[] = {
        "--norm rmsnorm", "--pos rope", "--pos rope-half", "--pos none", "--qk-norm on", "--act relu2",
        "--act swiglu", "--biases off", "--head-bias on", "--tied off", "--tied off --head-bias on",
        "--embed-norm on", "--softcap 5", "--heads 4 --head-dim 4 --kv-heads 2", "--attn-scale 0.7",
        "--head-dim 12 --pos rope-half --qk-norm on", "--vocab 128", "--layers 1",
    };
    static const char *const of_llama[] = {
        "--kv-heads 1", "--kv-heads 4", "--act gelu --biases on", "--norm layernorm --embed-norm on",
        "--tied on", "--pos learned --qk-norm off", "--head-dim 6",
    };
    static const char *const of_speedrun[] = {
        "--tied on", "--act swiglu", "--norm layernorm", "--vocab 65", "--kv-heads 1", "--layers 3",
    };
    const char *const presets[] = {gpt2, llama, speedrun};
    for (int i = 0; i < 3; i++) test_model_gradient(presets[i], "", 3, 1000);
    for (int i = 0; i < 3; i++) test_model_gradient(presets[i], "", 1, 1);
#define SWEEP(PRESET, OF)                                                                          \
    for (size_t i = 0; i < sizeof OF / sizeof OF[0]; i++) test_model_gradient(PRESET, OF[i], 2, 5)
    SWEEP(gpt2, of_gpt2);
    SWEEP(llama, of_llama);
    SWEEP(speedrun, of_speedrun);
#undef SWEEP
}

#endif

/* ---------------------------------------------------------------------------------------------- */
/* the classifier's contract, in both builds */

static void test_classifier(double softcap) {
    enum { N = 4, V = 9, Vp = 16 };
    const int targets[N] = {3, -1, 0, 8};
    floatM losses[N], plain[N];
    floatX *z = random_array(N * Vp, 12), *grad_z = array(N * Vp), *capped = array(N * Vp);
    for (int i = 0; i < N * Vp; i++)
        if (i % Vp >= V) z[i] = (floatX)NAN; /* padding is never read */
    memcpy(grad_z, z, N * Vp * sizeof *z);
    memcpy(capped, z, N * Vp * sizeof *z);

    classifier(plain, grad_z, targets, N, V, Vp, softcap, 0);
    check(same_bits(grad_z, z, N * Vp), "scale 0 changed the logits");
    classifier(losses, grad_z, targets, N, V, Vp, softcap, 0.5);
    check(same_bits(losses, plain, N), "the loss depends on the scale");
    check(losses[1] == 0 && all_zero(grad_z + Vp, Vp), "an ignored target counts");
    for (int n = 0; n < N; n++) {
        double sum = 0;
        check(all_zero(grad_z + n * Vp + V, Vp - V), "padding of row %d has a gradient", n);
        for (int v = 0; v < V; v++) sum += (double)grad_z[n * Vp + v];
        if (softcap == 0) check(fabs(sum) < BY_BUILD(1e-15, 1e-6), "row %d sums to %g", n, sum);
    }
    softcap_forward(capped, N, V, Vp, softcap);
    for (int n = 0; n < N; n++) {
        double sum = 0;
        if (targets[n] < 0) continue;
        for (int v = 0; v < V; v++) sum += exp((double)capped[n * Vp + v]);
        double want = log(sum) - (double)capped[n * Vp + targets[n]];
        check(relative_error(losses[n], want, 1) < BY_BUILD(1e-14, 1e-6),
              "softcap %g: loss %.17g, by the definition %.17g", softcap, (double)losses[n], want);
    }
    release();
}

/* Logits far out of exp's range. */
static void test_classifier_range(void) {
    const int target = 1;
    floatM loss;
    floatX z[4] = {(floatX)1000, (floatX)-1000, (floatX)999, 0};
    classifier(&loss, z, &target, 1, 3, 4, 0, 1);
    check(relative_error(loss, 2000 + log1p(exp(-1)), 1) < 1e-6, "loss %g", (double)loss);
    check(relative_error(z[0], 1 / (1 + exp(-1)), 1) < 1e-6 && z[1] == -1 && z[3] == 0,
          "gradient of large logits: %g %g %g %g", (double)z[0], (double)z[1], (double)z[2],
          (double)z[3]);
}

/* ---------------------------------------------------------------------------------------------- */
/* parity with PyTorch */

static void load_parameters(Model *m, const Fixture *fx) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->r.t[id];
        if (!t->layers) continue;
        const FixtureRecord *r = fixture_getf(fx, "f4", "param.%s", t->name);
        if (r->count != t->size) fixture_die("%s: %s has another size", fx->path, r->name);
        for (size_t i = 0; i < t->size; i++) m->p[t->offset + i] = (floatM)r->f4[i];
    }
}

/* Logits, loss and gradients. The fixture keeps them in float32, which is all the double build's
   distance from it; the float build's is rounding, a few times what PyTorch has in float32. */
static void test_parity(const Fixture *fx) {
    Config c = config_of(fixture_text(fx, "flags"), "");
    static Model m;
    create(&m, &c);
    load_parameters(&m, fx);
    const int *x = fixture_get(fx, "x", "i4")->i4, *y = fixture_get(fx, "y", "i4")->i4;
    const FixtureRecord *logits = fixture_get(fx, "logits", "f4");
    int N = m.B * m.T, V = c.vocab, Vp = round_up(V, 64);

    forward(&m, x, m.B);
    check(m.R >= N, "the logits are not in one piece");
    forward_logits(&m, 0, N);
    softcap_forward(m.a.logits, N, V, Vp, c.softcap);
    floatM *dense = array((size_t)N * V);
    for (int n = 0; n < N; n++)
        memcpy(dense + (size_t)n * V, m.a.logits + (size_t)n * Vp, (size_t)V * sizeof *dense);
    check(logits->count == (size_t)N * V, "%s: %zu logits", fx->path, logits->count);
    double e = relative_l2_mf(dense, logits->f4, logits->count, 1e-30);
    check(e < BY_BUILD(1e-7, 2e-6), "%s: logits are off by %.1e", fx->path, e);

    double want = fixture_get(fx, "loss", "f8")->f8[0], loss = loss_and_gradient(&m, x, y, m.B);
    check(relative_error(loss, want, 1) < BY_BUILD(1e-13, 1e-6), "%s: loss %.15g, want %.15g", fx->path,
          loss, want);
    int tensors = 0, records = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.r.t[id];
        if (!t->layers) continue;
        const FixtureRecord *r = fixture_getf(fx, "f4", "grad.%s", t->name);
        e = relative_l2_mf(m.g + t->offset, r->f4, t->size, 1e-30);
        check(e < BY_BUILD(1e-7, 5e-6), "%s: gradient of %s is off by %.1e", fx->path, t->name, e);
        tensors++;
    }
    for (int i = 0; i < fx->count; i++) records += !strncmp(fx->records[i].name, "param.", 6);
    check(tensors == records, "%s: %d tensors, but the model has %d", fx->path, records, tensors);
    model_free(&m);
    release();
}

/* Ten steps by the rules of the record O.flags: the losses before each, and where the parameters have
   gone, relative to how far they went. */
static void test_updates(const Fixture *fx, const char *optimizer, double loss_tolerance,
                         double move_tolerance) {
    Config c = config_of(fixture_text(fx, "flags"), fixture_getf(fx, "s1", "%s.flags", optimizer)->s1);
    static Model m;
    char name[96];
    create(&m, &c);
    load_parameters(&m, fx);
    const int *x = fixture_get(fx, "x", "i4")->i4, *y = fixture_get(fx, "y", "i4")->i4;
    const FixtureRecord *losses = fixture_getf(fx, "f8", "%s.losses", optimizer);
    floatM *start = array(m.r.size);
    memcpy(start, m.p, m.r.size * sizeof *start);
    double worst = 0;
    for (int step = 0; step < (int)losses->count; step++)
        worst = fmax(worst, relative_error(train(&m, x, y, step), losses->f8[step], 1e-30));
    check(losses->count == 10 && worst < loss_tolerance, "%s, %s: the losses are off by %.1e", fx->path,
          optimizer, worst);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.r.t[id];
        snprintf(name, sizeof name, "%s.param.%s", optimizer, t->name);
        const FixtureRecord *r = t->layers ? fixture_find(fx, name) : NULL;
        if (!r) continue;
        double d = 0, s = 0;
        for (size_t i = 0; i < t->size; i++) {
            double got = (double)m.p[t->offset + i] - (double)start[t->offset + i];
            double want = (double)r->f4[i] - (double)start[t->offset + i];
            d += (got - want) * (got - want);
            s += want * want;
        }
        check(sqrt(d / s) < move_tolerance, "%s, %s: the movement of %s is off by %.1e", fx->path,
              optimizer, t->name, sqrt(d / s));
    }
    model_free(&m);
    release();
}

static void test_fixtures(void) {
    static const char *const names[] = {"gpt2", "llama", "speedrun"};
    for (int i = 0; i < 3; i++) {
        char path[128];
        snprintf(path, sizeof path, "dev/test/fixtures/%s.fix", names[i]);
        Fixture *fx = fixture_load(path);
        test_parity(fx);
        test_updates(fx, "adamw", BY_BUILD(1e-12, 1e-6), BY_BUILD(1e-5, 1e-4));
        test_updates(fx, "cm", BY_BUILD(1e-10, 1e-5), BY_BUILD(1e-5, 1e-4));
        test_updates(fx, "muon", BY_BUILD(1e-10, 1e-5), 0);
        test_updates(fx, "cm_iso", BY_BUILD(1e-10, 1e-5), 0);
        fixture_free(fx);
    }
}

int main(void) {
    if (device_setup(2, COMPUTE_FP32, err)) die("%s", err);
#ifdef CM_DOUBLE
    double t0 = now_seconds();
    test_layers();
    fprintf(stderr, "layers %.2f\n", now_seconds() - t0);
    test_model_gradients();
    fprintf(stderr, "models %.2f\n", now_seconds() - t0);
#endif
    test_classifier(0);
    test_classifier(15);
    test_classifier_range();
    test_fixtures();
    return check_done();
}
