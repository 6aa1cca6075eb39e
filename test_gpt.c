/*
Tests of the model: layers and whole models against finite differences (double build only) and
against PyTorch (dev/test/fixtures), and what initialisation, updates, memory, checkpoints and
gradient accumulation promise. Loops over all values of a choice (dev/test/values.h) test what any
value must do. Built three times: build/test_gpt in float, build/test_gpt_double with -DCM_DOUBLE,
and as a part of test_gpt.cu for the emulator, where device memory is plain memory. Run it from
the root of the repository.
*/
#ifndef CM_TEST_GPT_C
#define CM_TEST_GPT_C

#include "dev/test/model_cases.h"

#if defined(__clang__) && defined(CM_DOUBLE) /* loops over the library's exp run one at a time */
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

/* ---------------------------------------------------------------------------------------------- */
/* help */

/* The summed loss of targets (B,T) after a forward pass, and how many there are; see head_loss. */
static double loss_of(Model *m, const int *y, int B, double scale, int64_t *count) {
    Shape s = shape_with(m->s, B, m->s.T);
    for (int n = 0; n < s.N; n++) *count += y[n] >= 0;
    device_send(m->a.targets, y, (size_t)s.N * sizeof(int));
    head_loss(m, s, scale);
    return take_loss(m);
}

static void backward(Model *m, int B) { model_backward(m, shape_with(m->s, B, m->s.T)); }

static int all_zero(const floatM *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i] != 0) return 0;
    return 1;
}

/* ---------------------------------------------------------------------------------------------- */
/* finite differences */

#ifdef CM_DOUBLE

typedef double (*Function)(void *);

/* A function that may have kinks (the second derivative of relu2 jumps at 0) sets this to a number
   that changes when one is crossed; differences across a kink mean nothing. */
static uint64_t side_of_kinks;

/* df/dx by central differences of fourth order. Across a kink it tries again with smaller steps;
   NaN if the kink is nearer still. */
static double derivative(Function f, void *of, floatX *x, double h, int again) {
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
    if (crossed) return again ? derivative(f, of, x, h / 10, 0) : NAN;
    return (value[0] - 8 * value[1] + 8 * value[3] - value[4]) / (12 * h);
}

/* Distance between g and the finite differences, relative to the norm of these: over all n
   elements, or over `most` random ones, of which every second has g != 0 so that sparse gradients
   are seen. */
static double gradient_error(Function f, void *of, floatX *x, const floatX *g, size_t n,
                             size_t most, double h) {
    double d = 0, s = 0;
    size_t tested = min_size(n, most), crossed = 0;
    int threads = thread_count();
    use_threads(1);
    for (size_t k = 0; k < tested; k++) {
        size_t i = n <= most ? k : draw_index(n);
        for (int tries = 0; n > most && k % 2 && g[i] == 0 && tries < 1000; tries++)
            i = draw_index(n);
        double value = derivative(f, of, &x[i], h, 1);
        if (value != value) {
            crossed++;
            continue;
        }
        d += (value - g[i]) * (value - g[i]);
        s += value * value;
    }
    use_threads(threads);
    if (2 * crossed > tested || s == 0) return INFINITY; /* nothing was tested */
    double e = sqrt(d / s);
    return e == e ? e : INFINITY;
}

/* With steps h, central differences of fourth order err by h^4 f5 / 30 (f5: a fifth derivative),
   here 3e-14 f5, and by the rounding of f, 2e-16 |f| / h = 2e-13 |f|. Relative to gradients of
   0.01 and more, with f of size 1 and f5 up to some hundreds (tanh), either is below 1e-9. */
#define LAYER_STEP 1e-3
#define LAYER_BOUND 1e-9

/* A layer's gradient g of its input or parameter x (n). */
#define check_layer(F, OF, X, G, COUNT, ...)                                                       \
    do {                                                                                           \
        char layer[160];                                                                           \
        snprintf(layer, sizeof layer, __VA_ARGS__);                                                \
        double error = gradient_error(F, OF, X, G, COUNT, 400, LAYER_STEP);                        \
        check(error < LAYER_BOUND, "%s: d%s is off by %.1e, bound %.1e", layer, #X, error,         \
              LAYER_BOUND);                                                                        \
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
        case_of("embed, positions %d", positions);
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
    norm_forward(o->y, o->mean, o->rstd, o->sum, o->x, o->delta, o->gain, o->bias, o->N, o->C,
                 o->kind, 1e-2);
    return dot(o->y, o->dy, n) + (o->dres ? dot(o->delta ? o->sum : o->x, o->dres, n) : 0);
}

/* dres is the gradient that reaches the stream x (+ delta) past the norm. */
static void test_norm(int kind, int with_delta, int with_dres, int with_bias) {
    const char *name = case_of("norm %s, delta %d, dres %d, bias %d", all_norms[kind], with_delta,
                               with_dres, with_bias);
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
    floatX *dsum = random_array(C, 1), *sum0 = copy_of(dsum, C);
    norm_value(&o);
    check(same_bits(o.x, before, n), "norm_forward changed its input");
    const floatX *stream = with_delta ? o.sum : o.x;
    norm_backward(dx, dgain, with_bias ? dbias : NULL, dsum, o.dy, o.dres, stream, o.gain, o.mean,
                  o.rstd, o.N, o.C, kind);
    floatX *alone = copy_of(dx, n), *columns = array(C);
    memset(columns, 0, C * sizeof *columns);
    for (size_t i = 0; i < n; i++) columns[i % C] += dx[i];
    subtract(dsum, sum0, C);
    subtract(dgain, gain0, C);
    subtract(dbias, bias0, C);
    check_layer(norm_value, &o, o.x, dx, n, "%s", name);
    check(relative_l2_dd(dsum, columns, C, 1) < 1e-12, "%s: the sum of dx over its rows", name);
    if (with_delta) check_layer(norm_value, &o, o.delta, dx, n, "%s", name);
    check_layer(norm_value, &o, o.gain, dgain, C, "%s", name);
    if (with_bias) check_layer(norm_value, &o, o.bias, dbias, C, "%s", name);

    /* The model's two ways to work in place: dx over dres, and dx over dy. */
    floatX *in_place = copy_of(with_dres ? o.dres : o.dy, n);
    norm_backward(in_place, dgain, NULL, NULL, with_dres ? o.dy : in_place,
                  with_dres ? in_place : NULL, stream, o.gain, o.mean, o.rstd, o.N, o.C, kind);
    check(same_bits(in_place, alone, n), "%s: in place gives another gradient", name);
    release();
}

typedef struct {
    int N, I, O;
    floatX *y, *x, *w, *b, *dy;
} LinearCase;

static double linear_value(void *of) {
    LinearCase *o = (LinearCase *)of;
    linear_forward(o->y, o->x, o->w, o->b, o->N, o->I, o->O);
    return dot(o->y, o->dy, (size_t)o->N * o->O);
}

static void test_linear(int with_bias) {
    case_of("linear, bias %d", with_bias);
    LinearCase o = {7, 10, 19, NULL, NULL, NULL, NULL, NULL};
    size_t nx = 70, nw = 190, ny = 133, nb = 19;
    o.y = array(ny), o.x = random_array(nx, 1), o.w = random_array(nw, 1);
    o.b = with_bias ? random_array(nb, 1) : NULL;
    o.dy = random_array(ny, 1);
    floatX *dx = array(nx), *dw = random_array(nw, 1), *db = random_array(nb, 1);
    floatX *w0 = copy_of(dw, nw), *b0 = copy_of(db, nb);
    linear_backward(dx, dw, with_bias ? db : NULL, o.dy, o.x, o.w, o.N, o.I, o.O, 1);
    subtract(dw, w0, nw);
    subtract(db, b0, nb);
    check_layer(linear_value, &o, o.x, dx, nx, "linear, bias %d", with_bias);
    check_layer(linear_value, &o, o.w, dw, nw, "linear, bias %d", with_bias);
    if (with_bias) check_layer(linear_value, &o, o.b, db, nb, "linear");
    else check(all_zero(db, nb), "linear touched db");
    floatX *dw2 = array(nw);
    for (size_t i = 0; i < nw; i++) dw2[i] = NAN; /* is set, not added to */
    linear_backward(NULL, dw2, NULL, o.dy, o.x, o.w, o.N, o.I, o.O, 0);
    check(relative_l2_dd(dw2, dw, nw, 1) < 1e-14,
          "linear without dx, which sets dw, gives another dw");
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
    const char *name = case_of("qk, norm %d, pos %s, NKV %d", qk_norm, all_positions[pos], NKV);
    QK o = {2, 3, 2, NKV, 8, qk_norm, NULL, NULL, NULL, NULL, NULL, NULL};
    size_t row = (size_t)(o.NH + 2 * NKV) * 8, n = 6 * row, angles = 3 * 4;
    if (pos_is_rotary((PosKind)pos)) {
        o.cosine = array(angles), o.sine = array(angles);
        rope_table(o.cosine, o.sine, 3, 8, pos, 50);
    }
    o.qkv = random_array(n, 1), o.out = array(n), o.d = random_array(n, 1);
    o.rstd = array(6 * (size_t)(o.NH + NKV));
    qk_value(&o);
    floatX *dqkv = copy_of(o.d, n);
    qk_backward(dqkv, o.out, o.rstd, o.cosine, o.sine, 6, 3, o.NH, NKV, 8, qk_norm);
    check_layer(qk_value, &o, o.qkv, dqkv, n, "%s", name);

    /* One position at a time, as generation does it. */
    floatX *one = copy_of(o.qkv + 2 * row, row), rstd[4];
    qk_forward(one, rstd, o.cosine, o.sine, 1, 1, 2, o.NH, NKV, 8, qk_norm, 1e-2);
    check(same_bits(one, o.out + 2 * row, row), "%s: qk_forward with `first` differs", name);
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
    const char *name = case_of("attention, T %d, NH %d, NKV %d", T, NH, NKV);
    Attention o = {2, T, NH, NKV, HS, 0.7, NULL, NULL, NULL, NULL};
    size_t N = 2 * (size_t)T, n = N * (size_t)(NH + 2 * NKV) * HS, no = N * (size_t)NH * HS;
    o.qkv = random_array(n, 1), o.out = array(no), o.lse = array(N * NH), o.d = random_array(no, 1);
    floatX *dqkv = array(n);
    attention_value(&o);
    attention_backward(dqkv, o.d, o.qkv, o.out, o.lse, 2, T, NH, NKV, HS, o.scale);
    check_layer(attention_value, &o, o.qkv, dqkv, n, "%s", name);
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
    const char *name = case_of("act %s", all_acts[act]);
    Act o = {5, 7, act, NULL, NULL, NULL};
    size_t n = 35, nh = n * (size_t)(1 + act_is_gated((ActKind)act));
    o.y = array(n), o.h = random_array(nh, 3), o.dy = random_array(n, 1);
    /* An activation may have a kink at 0, as relu2 has, and differences reach two steps to either
       side. */
    for (size_t i = 0; i < nh; i++)
        if (fabs(o.h[i]) < 3 * LAYER_STEP) o.h[i] = 3 * LAYER_STEP;
    floatX *dh = array(nh);
    act_backward(dh, o.dy, o.h, o.N, o.F, act);
    check_layer(act_value, &o, o.h, dh, nh, "%s", name);
    release();
}

typedef struct {
    int N, I, F, O, act;
    floatX *y, *h, *x, *w, *b, *w2, *z, *dz;
} LinearAct;

static double linear_act_value(void *of) {
    LinearAct *o = (LinearAct *)of;
    linear_act_forward(o->y, o->h, o->x, o->w, o->b, o->N, o->I, o->F, o->act);
    linear_forward(o->z, o->y, o->w2, NULL, o->N, o->F, o->O);
    return dot(o->z, o->dz, (size_t)o->N * o->O);
}

/* The MLP: z = act(x w^T + b) w2^T. */
static void test_linear_act(int act) {
    const char *name = case_of("linear and act %s", all_acts[act]);
    LinearAct o = {5, 4, 6, 3, act, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL};
    size_t H = act_is_gated((ActKind)act) ? 12 : 6, nh = 5 * H, ny = 30, nw = H * 4;
    o.y = array(ny), o.h = array(nh), o.x = random_array(20, 1), o.w = random_array(nw, 1);
    o.b = random_array(H, 1), o.w2 = random_array(18, 1), o.z = array(15),
    o.dz = random_array(15, 1);
    linear_act_value(&o);
    floatX *again = array(ny), *dh = array(nh), *dy = array(ny), *db = random_array(H, 1),
           *db0 = copy_of(db, H);
    floatX *dx = array(20), *dw = array(nw);
    linear_act_again(again, o.h, o.x, o.w, o.b, 5, 4, 6, act);
    check(same_bits(again, o.y, ny), "%s: computed again, the activations differ", name);
    linear_act_backward(dh, dy, db, o.dz, o.w2, o.h, 5, 6, 3, act);
    linear_backward(dx, dw, NULL, dh, o.x, o.w, 5, 4, (int)H, 0);
    subtract(db, db0, H);
    check_layer(linear_act_value, &o, o.b, db, H, "bias of %s", name);
    check_layer(linear_act_value, &o, o.x, dx, 20, "input of %s", name);
    check_layer(linear_act_value, &o, o.w, dw, nw, "weight of %s", name);
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
    case_of("classifier, softcap %g", softcap);
    Classifier o = {4, 9, 16, {3, -1, 0, 8}, softcap, 0.37, NULL, NULL, NULL};
    o.losses = array(4), o.z = random_array(64, 5), o.work = array(64);
    for (int i = 0; i < 64; i++)
        if (i % 16 >= 9) o.z[i] = NAN; /* padding is never read */
    floatX *dz = copy_of(o.z, 64);
    classifier(o.losses, dz, o.targets, 4, 9, 16, softcap, o.scale);
    for (int n = 0; n < 4; n++)
        if (n != 1)
            check_layer(classifier_value, &o, o.z + 16 * n, dz + 16 * n, 9,
                        "classifier, softcap %g", softcap);
    release();
}

static void test_layers(void) {
    use_threads(2); /* sums over rows are cut in two; the differences are taken by one thread */
    test_embed();
    for (int kind = 0; kind < COUNT_OF(all_norms); kind++)
        for (int i = 0; i < 8; i++) test_norm(kind, i & 1, i >> 1 & 1, i >> 2);
    test_linear(0);
    test_linear(1);
    for (int norm = 0; norm < 2; norm++)
        for (int pos = 0; pos < COUNT_OF(all_positions); pos++) {
            test_qk(norm, pos, 2);
            test_qk(norm, pos, 1);
        }
    test_attention(9, 2, 2, 3);
    test_attention(9, 4, 2, 4);
    test_attention(21, 3, 1, 5);
    for (int act = 0; act < COUNT_OF(all_acts); act++) test_act(act);
    for (int act = 0; act < COUNT_OF(all_acts); act++) test_linear_act(act);
    test_classifier_gradient(0);
    test_classifier_gradient(15);
    test_classifier_gradient(3);
    use_threads(1);
}

/* The mean loss of a batch as a function of the parameters. */
typedef struct {
    Model *m;
    const int *x, *y;
    int B;
} Loss;

static double loss_value(void *of) {
    Loss *o = (Loss *)of;
    int64_t count = 0;
    forward(o->m, o->x, o->B);
    double sum = loss_of(o->m, o->y, o->B, 0, &count);
    side_of_kinks = 0;
    for (int l = 0; l < o->m->s.L; l++) {
        const floatX *fc = block_at(o->m, l).fc;
        for (size_t i = 0; i < (size_t)o->B * o->m->s.T * (size_t)o->m->s.H; i++)
            side_of_kinks = rng_mix(side_of_kinks + (fc[i] > 0));
    }
    return sum / (double)count;
}

/* The loss is about 4 and rounded at 1e-15 after some thousand operations, which with this step
   makes differences uncertain by 5e-12; the step's fourth power, 2e-15, times a fifth derivative
   is less. Gradients of single elements go down to 1e-3, so that their errors stay below 3e-9. */
#define MODEL_STEP 2e-4
#define MODEL_BOUND 3e-9

/* Every parameter tensor against finite differences, on a batch of B of the model's sequences,
   `rows` rows of logits at a time. The gradient is added to noise, as to that of an earlier
   micro-batch. */
static void test_model_gradient(const char *preset, const char *changes, int B, int rows,
                                size_t most) {
    Config c = config_of(preset, changes);
    static Model m;
    int x[64], y[64];
    int64_t count = 0;
    case_of("gradient of %s %s, B %d, rows %d", preset, changes, B, rows);
    c.logit_rows = rows;
    create(&m, &c);
    randomise(&m);
    draw_batch(&c, x, y, B * m.s.T);
    size_t gradients = m.p.r.size[SLOT_GRAD];
    floatM *before = random_array(gradients, 1);
    memcpy(m.p.grad, before, gradients * sizeof *before);
    use_threads(B == m.s.B ? 2 : 1); /* two threads wait long for each other on a busy machine */
    forward(&m, x, B);
    loss_of(&m, y, B, 1.0 / (B * m.s.T - 1), &count);
    backward(&m, B);
    use_threads(1);
    subtract(m.p.grad, before, gradients);
    Loss loss = {&m, x, y, B};
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        if (!t->layers || t->frozen) continue;
        size_t used = used_size(&c, &m.p.r, id), at = param_at(t);
        const floatM *g = m.p.grad + t->slot[SLOT_GRAD].at;
        double e = gradient_error(loss_value, &loss, m.p.param + at, g, used, most, MODEL_STEP);
        check(e < MODEL_BOUND, "%s %s: gradient of %s is off by %.1e, bound %.1e", preset, changes,
              t->name, e, MODEL_BOUND);
        check(all_zero(g + used, t->size - used), "%s %s: padding of %s has a gradient", preset,
              changes, t->name);
    }
    model_free(&m);
    release();
}

static void test_model_gradients(void) {
    const char *const gpt2 = "--preset gpt2 --layers 2 --width 16 --heads 2 --ff-width 24 "
                             "--seq-len 6 --vocab 50 --batch-size 3";
    const char *const llama = "--preset llama --layers 2 --width 16 --heads 4 --kv-heads 2 "
                              "--ff-width 24 --seq-len 6 --vocab 64 --batch-size 3";
    const char *const speedrun = "--preset speedrun --layers 2 --width 16 --heads 2 --ff-width 24 "
                                 "--seq-len 6 --vocab 50 --batch-size 3";
    static const char *const of_gpt2[] = {
        "--head-bias on",
        "--tied off",
        "--tied off --head-bias on",
        "--softcap 5",
        "--attn-scale 0.7",
        "--heads 4 --head-dim 4 --kv-heads 2",
        "--head-dim 12 --pos rope-half --qk-norm on",
        "--vocab 128",
        "--layers 1",
    };
    static const char *const of_llama[] = {"--kv-heads 1", "--kv-heads 4", "--tied on",
                                           "--head-dim 6"};
    static const char *const of_speedrun[] = {"--tied on", "--vocab 65", "--kv-heads 1",
                                              "--layers 3"};
    const char *const presets[] = {gpt2, llama, speedrun};
    for (int i = 0; i < 3; i++) test_model_gradient(presets[i], "", 3, 1000, 100);
    for (int i = 0; i < 3; i++) test_model_gradient(presets[i], "", 1, 1, 40);
#define SWEEP(PRESET, OF)                                                                          \
    for (size_t i = 0; i < sizeof OF / sizeof OF[0]; i++)                                          \
    test_model_gradient(PRESET, OF[i], 2, 5, 40)
    SWEEP(gpt2, of_gpt2);
    SWEEP(llama, of_llama);
    SWEEP(speedrun, of_speedrun);
    /* factors of every linear layer: products in place of matrices, and adapters beside them */
    static const char *const factors[] = {
        "--low-rank 3 --lora-on all --lora-scale 1.5",
        "--low-rank 2 --lora-on all --lora-split off --lora-init balanced",
        "--lora-rank 3 --lora-on all --lora-scale 0.7",
        "--lora-rank 2 --lora-on qkv,proj --lora-split off",
        "--lora-rank 2 --lora-on head",
    };
    SWEEP("--preset llama --layers 2 --width 16 --heads 4 --kv-heads 2 --ff-width 24 --seq-len 6 "
          "--vocab 50 --batch-size 3 --biases on --head-bias on",
          factors);
    SWEEP("--preset speedrun --layers 2 --width 16 --heads 2 --ff-width 24 --seq-len 6 --vocab 50 "
          "--batch-size 3",
          factors);
    static const char *const tied[] = {"--lora-rank 4 --lora-on o,head", "--low-rank 4"};
    SWEEP(gpt2, tied);
#undef SWEEP
}

/* Every combination of norm, positions and activation. Case i has the four switches that follow
   from the bits of i, so that each value meets each switch in both states. */
static void test_value_gradients(void) {
    char changes[256];
    int i = 0;
    for (int norm = 0; norm < COUNT_OF(all_norms); norm++)
        for (int pos = 0; pos < COUNT_OF(all_positions); pos++)
            for (int act = 0; act < COUNT_OF(all_acts); act++, i++) {
                int bits = i ^ i >> 2;
                snprintf(changes, sizeof changes,
                         "--norm %s --pos %s --act %s --biases %s --tied %s --qk-norm %s "
                         "--embed-norm %s",
                         all_norms[norm], all_positions[pos], all_acts[act],
                         bits & 1 ? "on" : "off", bits & 2 ? "on" : "off", bits & 4 ? "on" : "off",
                         bits & 8 ? "on" : "off");
                test_model_gradient("--preset tiny --layers 2 --width 16 --heads 2 --ff-width 12 "
                                    "--seq-len 5 --vocab 20 --batch-size 3",
                                    changes, 2, 1000, 8);
            }
}

#endif

/* ---------------------------------------------------------------------------------------------- */
/* the classifier's contract, in both builds */

/* A loss is the difference of two numbers as large as the logits, of which each has the rounding of
   a few float operations. */
#define LOGIT_SIZE 12
#define LOSS_BOUND BY_TYPE(1e-14, 4 * 0x1p-24 * LOGIT_SIZE)

static void test_classifier(double softcap) {
    case_of("classifier, softcap %g", softcap);
    enum { N = 4, V = 9, Vp = 16 };
    const int targets[N] = {3, -1, 0, 8};
    floatM losses[N], plain[N];
    floatX *z = random_array(N * Vp, LOGIT_SIZE), *grad_z = array(N * Vp), *capped = array(N * Vp);
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
        if (softcap == 0) check(fabs(sum) < BY_TYPE(1e-15, 1e-6), "row %d sums to %g", n, sum);
    }
    softcap_forward(capped, N, V, Vp, softcap);
    for (int n = 0; n < N; n++) {
        double sum = 0;
        if (targets[n] < 0) continue;
        for (int v = 0; v < V; v++) sum += exp((double)capped[n * Vp + v]);
        double want = log(sum) - (double)capped[n * Vp + targets[n]];
        check(relative_error(losses[n], want, 1) < LOSS_BOUND,
              "softcap %g: loss %.17g, by the definition %.17g", softcap, (double)losses[n], want);
    }
    release();
}

/* Logits far out of exp's range. In float their log-sum-exp is known to 3e-5 only. */
static void test_classifier_range(void) {
    const int target = 1;
    floatM loss;
    floatX z[4] = {(floatX)1000, (floatX)-1000, (floatX)999, 0};
    classifier(&loss, z, &target, 1, 3, 4, 0, 1);
    check(relative_error(loss, 2000 + log1p(exp(-1)), 1) < BY_TYPE(1e-15, 1e-6), "loss %g",
          (double)loss);
    check(relative_error(z[0], 1 / (1 + exp(-1)), 1) < BY_TYPE(1e-12, 1e-4) && z[1] == -1 &&
              z[3] == 0,
          "gradient of large logits: %g %g %g %g", (double)z[0], (double)z[1], (double)z[2],
          (double)z[3]);
}

/* ---------------------------------------------------------------------------------------------- */
/* rotary angles, as their authors state them */

static void test_rope_table(void) {
    enum { HS = 128, HALF = 64, T = 3 };
    floatM *cosine = array(T * HALF), *sine = array(T * HALF);
    for (int pos = POS_ROPE; pos <= POS_ROPE_HALF; pos++) { /* the two whose formula is below */
        rope_table(cosine, sine, T, HS, pos, 1024);
        for (int t = 0; t < T; t++)
            for (int j = 0; j < HALF; j++) {
                double angle = t * pow(1024, -j / 64.0); /* Su et al. 2021 */
                if (pos == POS_ROPE_HALF) angle = j < 32 ? -t * pow(1024, -j / 31.0) : 0;
                double c = (double)cosine[t * HALF + j], s = (double)sine[t * HALF + j];
                check(fabs(c - cos(angle)) < 1e-7 && fabs(s - sin(angle)) < 1e-7,
                      "pos %d: plane %d turns by (%g, %g) at position %d, not by %g", pos, j, c, s,
                      t, angle);
            }
    }
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* batches */

/* A batch in two halves, each with half the scale, gives the gradient of the whole. So do logits in
   pieces, a batch smaller than the model's, and three threads. */
static void test_accumulation(const char *preset) {
    Config c =
        config_of(preset, "--layers 2 --width 16 --heads 2 --ff-width 24 --seq-len 6 --vocab 50 "
                          "--batch-size 4");
    Config half_config = c;
    case_of("accumulation %s", preset);
    static Model m, half;
    int x[24], y[24];
    int64_t count = 0;
    double sum = 0;
    create(&m, &c);
    randomise(&m);
    draw_batch(&c, x, y, 24);
    size_t gradients = m.p.r.size[SLOT_GRAD];
    double loss = loss_and_gradient(&m, x, y, 4);
    half_config.batch_size = 2;
    create(&half, &half_config);
    memcpy(half.p.param, m.p.param, elements(&m) * sizeof *m.p.param);
    for (int i = 0; i < 2; i++) {
        forward(&half, x + 12 * i, 2);
        sum += loss_of(&half, y + 12 * i, 2, 1.0 / 23, &count);
        backward(&half, 2);
    }
    check(count == 23 && relative_error(sum / 23, loss, 1) < BY_TYPE(1e-14, 1e-6),
          "%s: mean loss %.15g over %d targets in two halves, %.15g in one", preset, sum / 23,
          (int)count, loss);
    double e = relative_l2_m(half.p.grad, m.p.grad, gradients, 1e-30);
    check(e < BY_TYPE(1e-13, 2e-6), "%s: two halves change the gradient by %.1e", preset, e);
    model_free(&half);

    /* Fewer sequences than the model was made for. */
    floatM *two = array(gradients);
    create(&half, &half_config);
    memcpy(half.p.param, m.p.param, elements(&m) * sizeof *m.p.param);
    y[2] = y[3] = -1;
    double small = loss_and_gradient(&half, x, y, 2), large = loss_and_gradient(&m, x, y, 2);
    memcpy(two, half.p.grad, gradients * sizeof *two);
    check(relative_error(small, large, 1) < BY_TYPE(1e-14, 1e-6),
          "%s: B 2 of 4 gives loss %.15g, not "
          "%.15g",
          preset, large, small);
    e = relative_l2_m(m.p.grad, two, gradients, 1e-30);
    check(e < BY_TYPE(1e-13, 2e-6), "%s: B 2 of 4 changes the gradient by %.1e", preset, e);

    /* Logits seven rows at a time. */
    loss = loss_and_gradient(&m, x, y, 4);
    floatM *whole = array(gradients);
    memcpy(whole, m.p.grad, gradients * sizeof *whole);
    Config pieces_config = c;
    pieces_config.logit_rows = 7;
    model_free(&half);
    create(&half, &pieces_config);
    memcpy(half.p.param, m.p.param, elements(&m) * sizeof *m.p.param);
    double pieces = loss_and_gradient(&half, x, y, 4);
    check(relative_error(pieces, loss, 1) < BY_TYPE(1e-14, 1e-6),
          "%s: loss %.15g in pieces, %.15g whole", preset, pieces, loss);
    e = relative_l2_m(half.p.grad, whole, gradients, 1e-30);
    check(e < BY_TYPE(1e-13, 2e-6), "%s: logits in pieces change the gradient by %.1e", preset, e);
    use_threads(3);
    double shared = loss_and_gradient(&m, x, y, 4);
    use_threads(1);
    check(relative_error(shared, loss, 1) < BY_TYPE(1e-14, 1e-6),
          "%s: loss %.15g with three threads, %.15g "
          "with one",
          preset, shared, loss);
    e = relative_l2_m(m.p.grad, whole, gradients, 1e-30);
    check(e < BY_TYPE(1e-13, 2e-6), "%s: three threads change the gradient by %.1e", preset, e);
    model_free(&half);
    model_free(&m);
    release();
}

/* What comes later never reaches what came before: not one bit. */
static void test_causality(const char *preset) {
    Config c =
        config_of(preset, "--layers 2 --width 16 --heads 2 --ff-width 24 --seq-len 9 --vocab 50 "
                          "--batch-size 2");
    static Model m;
    int x[18], y[18], C = 16, at = 5;
    case_of("causality %s", preset);
    create(&m, &c);
    randomise(&m);
    draw_batch(&c, x, y, 18);
    forward(&m, x, 2);
    floatX *before = array(18 * 16);
    memcpy(before, m.a.normf, 18 * 16 * sizeof *before);
    x[at] = (x[at] + 1) % 50;
    forward(&m, x, 2);
    check(same_bits(before, m.a.normf, (size_t)at * C), "%s: position %d sees the future", preset,
          at);
    for (int n = at; n < 9; n++)
        check(!same_bits(before + n * C, m.a.normf + n * C, (size_t)C),
              "%s: position %d does not see position %d", preset, n, at);
    check(same_bits(before + 9 * C, m.a.normf + 9 * C, 9 * 16), "%s: sequences see each other",
          preset);
    model_free(&m);
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* the trainer's steps, on a text file */

static char folder[] = "/tmp/test_gpt.XXXXXX";

typedef struct {
    Run run;
    Model model;
} Training;

static void start(Training *t, const char *changes) {
    Run *run = &t->run;
    char data[4200];
    memset(t, 0, sizeof *t);
    snprintf(data, sizeof data,
             "--preset tiny --layers 1 --width 16 --heads 2 --seq-len 8 --batch-size 4 "
             "--steps 100 --schedule constant --init gpt2 --lr-embed 0.01 --data %s/text.txt",
             folder);
    run->config = run->asked = config_of(data, "");
    if (config_apply(&run->config, NULL, changes, err)) die("%s", err);
    run->config.total_batch_tokens = 32;
    if (open_data(run, err) || config_resolve(&run->config, err)) die("%s", err);
    create(&t->model, &run->config);
    if (model_init(&t->model, err) || open_batch(run, err)) die("%s", err);
}

static void stop(Training *t) {
    t->run.log.fd = -1; /* no log was opened */
    close_run(&t->run);
    model_free(&t->model);
}

static void test_train_step(void) {
    static Training whole, pieces;
    char path[4200];
    double loss[2], norm[2];
    Validation val[2];
    snprintf(path, sizeof path, "%s/text.txt", folder);
    FILE *f = fopen(path, "wb");
    if (!f) die("cannot write %s", path);
    for (int i = 0; i < 3000; i++) fputc((int)draw_index(40) + 'A', f);
    fclose(f);
    start(&whole, "--batch-size 4");
    start(&pieces, "--batch-size 1");
    size_t bytes = elements(&whole.model) * sizeof(floatM);
    floatM *p0 = array(elements(&whole.model)), *p1 = array(elements(&whole.model));
    floatM *g = array(elements(&whole.model));
    memcpy(p0, whole.model.p.param, bytes);
    for (int step = 0; step < 3; step++) {
        memcpy(p1, whole.model.p.param, bytes);
        check(!train_step(&whole.run, &whole.model, &loss[0], &norm[0], err) &&
                  !train_step(&pieces.run, &pieces.model, &loss[1], &norm[1], err),
              "train_step: %s", err);
        check(relative_error(loss[1], loss[0], 1) < BY_TYPE(1e-12, 1e-5) &&
                  relative_error(norm[1], norm[0], 1e-9) < BY_TYPE(1e-10, 1e-4),
              "four micro-batches: loss %.15g, norm %.15g; one: %.15g, %.15g", loss[1], norm[1],
              loss[0], norm[0]);
    }
    /* The last step's gradient was that of its batch alone. */
    memcpy(g, whole.model.p.grad, bytes);
    for (size_t i = 0; i < elements(&whole.model); i++) {
        floatM now = whole.model.p.param[i];
        whole.model.p.param[i] = p1[i];
        p1[i] = now;
    }
    loss_and_gradient(&whole.model, whole.run.x, whole.run.y, 4);
    check(same_bits(whole.model.p.grad, g, elements(&whole.model)),
          "train_step used another gradient");
    memcpy(whole.model.p.param, p1, bytes);

    double moved = relative_l2_m(p0, whole.model.p.param, elements(&whole.model), 1e-30);
    double e =
        relative_l2_m(pieces.model.p.param, whole.model.p.param, elements(&whole.model), 1e-30);
    check(moved > 0.01 && e < BY_TYPE(1e-10, 1e-5), "moved %.1e, apart %.1e", moved, e);
    check(pieces.run.step == 3 && pieces.run.tokens == 96, "step %d, tokens %lld", pieces.run.step,
          (long long)pieces.run.tokens);

    /* Validation does not depend on how its 37 rows fall into batches. */
    memcpy(pieces.model.p.param, whole.model.p.param, bytes);
    Training *runs[2] = {&whole, &pieces};
    for (int i = 0; i < 2; i++)
        check(!validate(&runs[i]->model, &runs[i]->run.val, &runs[i]->run.texts, 0, runs[i]->run.x,
                        runs[i]->run.y, NULL, &val[i], err),
              "validate: %s", err);
    check(relative_error(val[1].loss, val[0].loss, 1) < BY_TYPE(1e-13, 1e-6) && val[0].loss > 1 &&
              val[0].loss < 10,
          "validation %.15g in batches of 4, %.15g of 1", val[0].loss, val[1].loss);
    check(relative_error(val[0].bits_per_byte, val[0].loss / log(2), 1) < 1e-14,
          "%.15g bits per byte", val[0].bits_per_byte);

    /* A run that diverges stops with a message before it has changed a parameter. */
    floatM *head = param(&whole.model, T_WHEAD, 0);
    int quiet = open("/dev/null", O_WRONLY), stderr_copy = dup(2);
    head[0] = (floatM)NAN;
    memcpy(p0, whole.model.p.param, bytes);
    fflush(stderr);
    dup2(quiet, 2);
    int status = train_step(&whole.run, &whole.model, &loss[0], &norm[0], err);
    fflush(stderr);
    dup2(stderr_copy, 2);
    close(quiet);
    close(stderr_copy);
    check(status == -1 && strstr(err, "step 4"), "a NaN gave status %d, \"%s\"", status, err);
    check(same_bits(p0, whole.model.p.param, elements(&whole.model)),
          "a NaN changed the parameters");
    stop(&whole);
    stop(&pieces);
    unlink(path);
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* initialisation */

static const char *const init_flags = "--layers 3 --width 48 --heads 6 --seq-len 32 --vocab 300 "
                                      "--batch-size 1";

/* What the presets promise, written down a second time. */
static void expected_init(const Config *c, const char *name, double *mean, double *std) {
    int speedrun = c->init != INIT_GPT2, output = !strcmp(name, "wo") || !strcmp(name, "wproj");
    *mean = *std = 0;
    if (!strncmp(name, "norm", 4)) *mean = strstr(name, "_w") ? 1 : 0;
    else if (name[0] == 'b') *std = 0;
    else if (!strcmp(name, "wte")) *std = speedrun && !c->tied ? 1 : 0.02;
    else if (!strcmp(name, "wpe")) *std = 0.02;
    else if (!strcmp(name, "whead")) *std = speedrun ? 0 : 0.02;
    else if (output) *std = speedrun ? 0 : 0.02 / sqrt(2.0 * 3);
    else *std = speedrun ? sqrt(0.33 / 48) : 0.02;
}

static void test_init(const char *preset, const char *changes) {
    Config c = config_of(preset, init_flags);
    if (config_apply(&c, NULL, changes, err)) die("%s", err);
    Registry r = registry_build(&c);
    floatM *p = array(r.size[SLOT_PARAM]), *q = array(r.size[SLOT_PARAM]);
    use_threads(1);
    c.seed = 42;
    int status = params_init(&r, &c, p);
    use_threads(3);
    status |= params_init(&r, &c, q);
    use_threads(1);
    check(same_bits(p, q, r.size[SLOT_PARAM]), "%s: initial values depend on the threads", preset);
    c.seed = 43;
    check(!(status | params_init(&r, &c, q)), "%s: no initial values", preset);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r.t[id];
        if (!t->layers) continue;
        double mean, std, m1 = 0, m2 = 0, m4 = 0, same = 0;
        expected_init(&c, t->name, &mean, &std);
        size_t used = used_size(&c, &r, id);
        const floatM *a = p + param_at(t);
        for (size_t i = 0; i < used; i++) m1 += (double)a[i] / (double)used;
        for (size_t i = 0; i < used; i++) {
            double d = ((double)a[i] - mean) * ((double)a[i] - mean);
            m2 += d / (double)used;
            m4 += d * d / (double)used;
            same += a[i] == q[param_at(t) + i];
        }
        /* Five standard errors of each statistic of `used` normal numbers. */
        double n = (double)used;
        check(fabs(m1 - mean) <= 5 * std / sqrt(n) + 1e-12 * n * fabs(mean),
              "%s: mean of %s is %g, not %g", preset, t->name, m1, mean);
        check(fabs(m2 - std * std) <= 5 * std * std * sqrt(2 / n), "%s: std of %s is %g, not %g",
              preset, t->name, sqrt(m2), std);
        check(fabs(m4 - 3 * pow(std, 4)) <= 5 * pow(std, 4) * sqrt(96 / n), "%s: %s is not normal",
              preset, t->name);
        check(std == 0 ? same == n : same < 3, "%s: %g of %zu in %s are equal for two seeds",
              preset, same, used, t->name);
        check(all_zero(a + used, t->size - used), "%s: padding of %s is not zero", preset, t->name);
        check(t->layers == 1 || std == 0 || a[0] != a[t->size / (size_t)t->layers],
              "%s: the layers of %s are equal", preset, t->name);
    }
    check(relative_error(p[param_at(&r.t[T_WQKV])] / r.t[T_WQKV].init_std,
                         p[param_at(&r.t[T_WFC])] / r.t[T_WFC].init_std, 1e-9) > 1e-3,
          "%s: W_QKV and W_FC begin alike", preset);
    release();
}

/* What the two factors of part p of a layer are at the start, by sums in double. */
typedef struct {
    double square[2];   /* ||A||^2, ||B||^2 */
    double product;     /* ||A B^T||^2 */
    double off[2];      /* largest element beside the diagonal of A^T A and B^T B */
    double diagonal[2]; /* largest on it */
} FactorSums;

static FactorSums factor_sums(const Linear *f, const floatM *A, const floatM *B, int p) {
    FactorSums s;
    memset(&s, 0, sizeof s);
    int r = f->rank, O = f->rows[p], I = f->I;
    A += (size_t)f->first[p] * r;
    B += (size_t)p * r * I;
    for (int i = 0; i < r; i++)
        for (int j = 0; j < r; j++) {
            double gram[2] = {0, 0};
            for (int o = 0; o < O; o++) gram[0] += (double)A[o * r + i] * (double)A[o * r + j];
            for (int c = 0; c < I; c++) gram[1] += (double)B[i * I + c] * (double)B[j * I + c];
            s.product += gram[0] * gram[1];
            for (int k = 0; k < 2; k++) {
                if (i == j) s.square[k] += gram[k];
                double *most = i == j ? &s.diagonal[k] : &s.off[k];
                *most = fmax(*most, fabs(gram[k]));
            }
        }
    return s;
}

/* Factors at the start: sizes and, where they are spectral, orthogonal columns and the largest
   singular value of a random matrix, std (sqrt(O) + sqrt(I)) but for a few percent. */
static void test_factor_init(const char *init, double scale) {
    char changes[256];
    snprintf(changes, sizeof changes,
             "--preset llama --layers 2 --width 48 --heads 6 --kv-heads 3 --seq-len 32 --vocab 300 "
             "--batch-size 1 --low-rank 8 --lora-on all --lora-scale %g --lora-init %s",
             scale, init);
    Config c = config_of(changes, "");
    Registry r = registry_build(&c);
    floatM *p = array(r.size[SLOT_PARAM]);
    check(!params_init(&r, &c, p), "%s: no initial factors", init);
    for (int id = 0; id < LINEARS; id++) {
        const Linear f = linear_of(&c, (LinearId)id);
        const Tensor *up = &r.t[linear_tensors[id].up], *down = &r.t[linear_tensors[id].down];
        double whole = id == LINEAR_O || id == LINEAR_PROJ ? 0.02 / 2 : 0.02;
        for (int i = 0; i < up->layers * f.parts; i++) {
            int l = i / f.parts, k = i % f.parts, O = f.rows[k], I = f.I;
            FactorSums s = factor_sums(&f, p + param_at(up) + l * layer_size(up),
                                       p + param_at(down) + l * layer_size(down), k);
            double want = whole * whole * O * I;
            double got = s.product * scale * scale;
            switch ((FactorInit)c.lora_init) {
            case FACTORS_AUTO: check(0, "auto is left"); break;
            case FACTORS_ZERO:
                check(s.square[0] == 0 && fabs(s.square[1] / f.rank - 1) < 0.5,
                      "zero, %s: squares %g, %g", up->name, s.square[0], s.square[1]);
                break;
            case FACTORS_BALANCED:
                check(fabs(got / want - 1) < 0.4 && fabs(s.square[0] / s.square[1] - 1) < 0.4,
                      "balanced, %s: product %g of %g, squares %g, %g", up->name, got, want,
                      s.square[0], s.square[1]);
                break;
            case FACTORS_SPECTRAL: {
                double largest = scale * s.diagonal[0] / whole / (sqrt(O) + sqrt(I));
                check(fabs(largest - 1) < 0.15, "spectral, %s: largest value %g", up->name,
                      largest);
                check(got < want && got > 0.2 * want && s.off[0] < 1e-5 * s.diagonal[0] &&
                          s.off[1] < 1e-5 * s.diagonal[1] &&
                          fabs(s.square[0] / s.square[1] - 1) < 1e-5,
                      "spectral, %s: product %g of %g, off the diagonals %g, %g", up->name, got,
                      want, s.off[0], s.off[1]);
                break;
            }
            }
        }
        size_t used = used_size(&c, &r, linear_tensors[id].up);
        check(all_zero(p + param_at(up) + used, up->size - used), "%s: padding", up->name);
    }
    release();
}

/* With the head zero, so are all logits; what then moves, and when. A zero matrix passes no
   gradient down, so the parts wake one after the other. */
static void test_zero_init(const char *optimizer) {
    static const TensorId second[] = {T_WO, T_BO, T_WPROJ, T_BPROJ, T_WTE, T_NORM0_W, T_NORMF_W};
    Config c = config_of("--preset speedrun --layers 2 --width 16 --heads 2 --seq-len 8 --vocab 64 "
                         "--batch-size 2 --schedule constant",
                         optimizer);
    static Model m;
    int x[16], y[16];
    int64_t count = 0;
    case_of("zero init %s", optimizer);
    create(&m, &c);
    if (model_init(&m, err)) die("%s", err);
    draw_batch(&c, x, y, 16);
    forward(&m, x, 2);
    double loss = loss_of(&m, y, 2, 0, &count) / (double)count;
    check(fabs(loss - log(64)) < BY_TYPE(1e-14, 1e-6), "untrained loss %.15g, not ln 64 = %.15g",
          loss, log(64));
    for (int step = 0; step < 3; step++) {
        loss_and_gradient(&m, x, y, 2);
        for (int id = 0; id < TENSORS; id++) {
            const Tensor *t = &m.p.r.t[id];
            int expected = step == 2 || id == T_WHEAD || id == T_BHEAD;
            for (int i = 0; i < 7; i++) expected |= step == 1 && id == (int)second[i];
            for (int l = 0; l < t->layers; l++) {
                const floatM *g = grad(&m, (TensorId)id, l);
                check(all_zero(g, (size_t)t->rows * t->cols) != expected,
                      "%s, step %d: layer %d of %s has %s gradient", optimizer, step, l, t->name,
                      expected ? "no" : "a");
            }
        }
        optimizer_step(&m, step, 1);
    }
    model_free(&m);
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* updates */

static const char *const rules[] = {
    "--optimizer adamw",
    "--optimizer muon",
    "--optimizer cm",
    "--optimizer cm --qk muon-head --ov muon-head --mlp adamw",
    "--optimizer cm --head-dim 8 --heads 4 --kv-heads 2 --inv-root eigh --per-mat-renorm on",
};
enum { RULES = (int)(sizeof rules / sizeof rules[0]) };

/* Equal runs give equal bits, the padded vocabulary stays zero, every parameter that can moves,
   clipping is a factor on the gradient. */
static void test_update(const char *preset, const char *rule, int threads) {
    char flags[256];
    snprintf(flags, sizeof flags,
             "%s --layers 2 --width 16 --heads 2 --ff-width 24 --seq-len 8 --vocab "
             "50 --batch-size 2 --schedule constant --head-bias on",
             preset);
    Config c = config_of(flags, rule);
    static Model m[3];
    int x[16], y[16];
    case_of("update %s %s", preset, rule);
    for (int i = 0; i < 3; i++) create(&m[i], &c);
    size_t bytes = elements(&m[0]) * sizeof(floatM);
    randomise(&m[0]);
    for (int i = 1; i < 3; i++) memcpy(m[i].p.param, m[0].p.param, bytes);
    floatM *start = array(elements(&m[0]));
    memcpy(start, m[0].p.param, bytes);
    draw_batch(&c, x, y, 16);
    use_threads(threads);
    for (int step = 0; step < 3; step++) {
        check(train(&m[0], x, y, step) == train(&m[1], x, y, step), "%s %s: two losses", preset,
              rule);
        loss_and_gradient(&m[2], x, y, 2);
        for (size_t i = 0; i < elements(&m[2]); i++) m[2].p.grad[i] *= 4;
        optimizer_step(&m[2], step, 0.25);
    }
    use_threads(1);
    check(same_bits(m[0].p.param, m[1].p.param, elements(&m[0])) &&
              same_bits(m[0].p.moment, m[1].p.moment, elements(&m[0])) &&
              same_bits(m[0].p.state, m[1].p.state, m[0].plan.state_size),
          "%s %s: equal runs differ", preset, rule);
    check(same_bits(m[0].p.param, m[2].p.param, elements(&m[0])),
          "%s %s: clip is not a factor on the gradient", preset, rule);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m[0].p.r.t[id];
        if (!t->layers) continue;
        size_t used = used_size(&c, &m[0].p.r, id), still = 0;
        for (size_t i = 0; i < used; i++)
            still += m[0].p.param[param_at(t) + i] == start[param_at(t) + i];
        check(all_zero(m[0].p.param + param_at(t) + used, t->size - used),
              "%s %s: padding of %s moved", preset, rule, t->name);
        /* Embeddings of tokens that were not seen stay (without weight decay). */
        check(10 * still <= used || id == T_WTE, "%s %s: %zu of %zu in %s never moved", preset,
              rule, still, used, t->name);
    }
    for (int i = 0; i < 3; i++) model_free(&m[i]);
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* registry and memory */

static void test_registry(const char *flags, const char *changes, size_t count) {
    Config c = config_of(flags, changes);
    Registry r = registry_build(&c);
    size_t end = 0, names = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r.t[id];
        if (!t->layers) continue;
        check(param_at(t) >= end, "%s: %s overlaps another tensor", flags, t->name);
        check(param_at(t) * sizeof(float) % 64 == 0, "%s: %s is not aligned", flags, t->name);
        check(t->size == (size_t)t->layers * t->rows * t->cols, "%s: size of %s", flags, t->name);
        end = param_at(t) + t->size;
        for (int other = 0; other < TENSORS; other++)
            names += r.t[other].layers && !strcmp(r.t[other].name, t->name) && other != id;
    }
    check(r.size[SLOT_PARAM] >= end && r.size[SLOT_PARAM] < end + 64 && !names,
          "%s: size %zu, last tensor ends at %zu", flags, r.size[SLOT_PARAM], end);
    check(r.count == count, "%s %s has %zu parameters, not %zu", flags, changes, r.count, count);
}

static void test_registries(void) {
    /* Radford et al.: tied, 50257 x 768 and 1024 x 768 embeddings, 12 blocks, a final norm. */
    test_registry("--preset gpt2", "--vocab 50257", 124439808);
    /* The count of the benchmark's own model. */
    test_registry("--preset speedrun", "", 162354816);
    /* By hand: 2 V C + L (2 C + C (C + 2 K) + C C + 3 C F) + C, K = 2 heads of 8. */
    test_registry(
        "--preset llama --layers 3 --width 32 --heads 4 --kv-heads 2 --ff-width 40 --seq-len 8 "
        "--batch-size 1",
        "--vocab 61", 2 * 61 * 32 + 3 * (64 + 32 * (32 + 32) + 32 * 32 + 3 * 32 * 40) + 32);
    /* Sizes that are no multiple of anything: embeddings, then the block tensor by tensor. */
    test_registry("--preset gpt2 --layers 1 --width 30 --heads 3 --ff-width 50 --seq-len 7",
                  "--vocab 61",
                  61 * 30 + 7 * 30 + 60 + 2700 + 90 + 900 + 30 + 60 + 1500 + 50 + 1500 + 30 + 60);
    /* Products of rank 3 in place of these matrices: r (rows + columns) of each part. The parts of
       W_QKV have 32, 16 and 16 rows, and those of W_fc 40 and 40. */
    const char *const small = "--preset llama --layers 3 --width 32 --heads 4 --kv-heads 2 "
                              "--ff-width 40 --seq-len 8 --batch-size 1 --vocab 61";
    const size_t split = 3 * ((64 + 3 * 32) + (32 + 32) + (80 + 2 * 32) + (32 + 40));
    const size_t one = 3 * ((64 + 32) + (32 + 32) + (80 + 32) + (32 + 40)), head = 3 * (61 + 32);
    const size_t block = 32 * (32 + 32) + 32 * 32 + 3 * 32 * 40;
    test_registry(small, "--low-rank 3", 2 * 61 * 32 + 3 * (64 + split) + 32);
    test_registry(small, "--low-rank 3 --lora-on all", 61 * 32 + 3 * (64 + split) + 32 + head);
    test_registry(small, "--low-rank 3 --lora-split off", 2 * 61 * 32 + 3 * (64 + one) + 32);
    test_registry(small, "--lora-rank 3 --lora-on all",
                  2 * 61 * 32 + 3 * (64 + block + split) + 32 + head);
    test_registry(small, "--lora-rank 3 --tied on --lora-on all --lora-split off",
                  61 * 32 + 3 * (64 + block + one) + 32 + head);
    Config adapters = config_of(small, "--lora-rank 3 --lora-on all");
    Registry with = registry_build(&adapters);
    check(with.adapters == 3 * split + head, "%zu adapters", with.adapters);
    /* Four FLOPs of a frozen matrix, whose gradient is not formed. The head has rows of padding. */
    double flops_of_both = 4.0 * (double)(3 * block + 64 * 32) +
                           6.0 * (double)(3 * split + 3 * (64 + 32)) + 6.0 * 3 * 32 * 8;
    check(flops_per_token(&adapters, &with) == flops_of_both, "flops of adapters: %g, not %g",
          flops_per_token(&adapters, &with), flops_of_both);
    /* Six FLOPs a parameter of the matrix products, and attention's causal half. */
    Config c = config_of("--preset speedrun", "");
    Registry r = registry_build(&c);
    double flops = 6 * (84934656.0 + 50304 * 768) + 6.0 * 12 * 768 * 1024;
    check(flops_per_token(&c, &r) == flops, "flops %g, not %g", flops_per_token(&c, &r), flops);
}

/* The report is what is allocated, and no purpose grows with the square of the sequence length. */
static void test_memory(const char *preset) {
    static Model m;
    for (int training = 0; training < 2; training++) {
        Config c = config_of(preset, init_flags);
        Registry r = registry_build(&c);
        Plan plan = plan_build(&c, &r);
        size_t before = allocated;
        Memory report = model_memory(&c, &r, &plan, training);
        if (make_model(&m, &c, training)) die("%s", err);
        check(report.total - report.workspace == allocated - before,
              "%s: %zu bytes reported, %zu allocated", preset, report.total - report.workspace,
              allocated - before);
        check(report.total == report.parameters + report.gradients + report.optimizer +
                                  report.activations + report.workspace,
              "%s: the memory report does not add up", preset);
        model_free(&m);
    }
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        Config c = config_of(preset, i ? "--seq-len 65536 --batch-size 1"
                                       : "--seq-len 32768 --batch-size 1");
        if (!c.vocab) c.vocab = 50257;
        Registry r = registry_build(&c);
        Plan plan = plan_build(&c, &r);
        bytes[i] = model_memory(&c, &r, &plan, 1).activations;
    }
    check((double)bytes[1] <= 2.01 * (double)bytes[0],
          "%s: activations take %zu bytes, %zu for twice the "
          "length",
          preset, bytes[0], bytes[1]);
}

/* What --recompute leaves out is computed again to the bit, and takes less memory the more there
   is. */
static void test_recompute(const char *preset, const char *changes) {
    static Model m;
    floatM *first = NULL;
    double first_loss = 0;
    size_t bytes = 0;
    for (int i = 0; i < COUNT_OF(all_recomputes); i++) {
        char flags[256];
        int x[12], y[12];
        snprintf(flags, sizeof flags,
                 "%s --layers 2 --width 16 --heads 2 --ff-width 24 --seq-len 6 --vocab 50 "
                 "--batch-size 2 --recompute %s",
                 changes, all_recomputes[i]);
        Config c = config_of(preset, flags);
        create(&m, &c);
        case_of("recompute %s %s", preset, changes);
        randomise(&m);
        draw_batch(&c, x, y, 12);
        double loss = loss_and_gradient(&m, x, y, 2);
        check(!i || m.acts_bytes < bytes, "%s %s: --recompute %s takes %zu bytes, %s %zu", preset,
              changes, all_recomputes[i], m.acts_bytes, all_recomputes[i - !!i], bytes);
        bytes = m.acts_bytes;
        if (!i) {
            first = fetch(m.p.grad, m.p.r.size[SLOT_GRAD]);
            first_loss = loss;
        }
        check(loss == first_loss && same_bits(first, m.p.grad, m.p.r.size[SLOT_GRAD]),
              "%s %s: --recompute %s changes the gradient", preset, changes, all_recomputes[i]);
        model_free(&m);
    }
    release();
}

/* ---------------------------------------------------------------------------------------------- */
/* checkpoints */

static unsigned char *read_all(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    unsigned char *data = (unsigned char *)malloc(1 << 22);
    if (!data) die("out of memory");
    *size = f ? fread(data, 1, 1 << 22, f) : 0;
    if (f) fclose(f);
    return data;
}

/* A run of a resolved config that saves into `folder`/NAME, without data. */
static void open_test_run(Run *run, const Config *c, const char *name) {
    memset(run, 0, sizeof *run);
    run->asked = run->config = *c;
    run->step = 2;
    run->tokens = 32;
    snprintf(run->data_id, sizeof run->data_id, "0123");
    snprintf(run->log.checkpoints, sizeof run->log.checkpoints, "%s/%s", folder, name);
    mkdir(run->log.checkpoints, 0777);
}

/* Removes the checkpoint of run->step and its folder. */
static void close_test_run(Run *run) {
    char path[FILE_PATH_SIZE];
    ckpt_path(path, run->log.checkpoints, run->step);
    unlink(path);
    rmdir(run->log.checkpoints);
    choices_free(&run->choices);
}

/* Saves the model in run's folder and opens the checkpoint. */
static int save_and_open(Run *run, const Model *m, Ckpt *ckpt) {
    char path[FILE_PATH_SIZE];
    ckpt_path(path, run->log.checkpoints, run->step);
    return check(!save_checkpoint(run, &m->p, &m->plan, err), "save: %s", err) &&
           check(!ckpt_open(ckpt, path, err), "open: %s", err);
}

/* Calls load_training; what it prints to stderr is left in `note`. */
static int load_quietly(Model *m, const Ckpt *ckpt, int step, char *note, size_t size) {
    char path[FILE_PATH_SIZE];
    file_path(path, "%s/note", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), saved = dup(2);
    fflush(stderr);
    dup2(fd, 2);
    int status = load_training(&m->p, &m->plan, m->c, ckpt, step, err);
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    ssize_t n = pread(fd, note, size - 1, 0);
    note[n > 0 ? n : 0] = 0;
    close(fd);
    unlink(path);
    refresh_weights(m);
    return status;
}

static const char *const saved_flags =
    " --layers 2 --width 16 --heads 2 --ff-width 24 --seq-len 8 --batch-size 2 --head-bias on "
    "--vocab 50 --seed 9 --steps 77";

static int same_training(const Model *a, const Model *b) {
    return same_bits(a->p.param, b->p.param, a->p.r.size[SLOT_PARAM]) &&
           same_bits(a->p.moment, b->p.moment, a->p.r.size[SLOT_MOMENT]) &&
           same_bits(a->p.state, b->p.state, a->plan.state_size) &&
           a->p.ema_live == b->p.ema_live &&
           (!a->p.ema_live || same_bits(a->p.ema, b->p.ema, a->p.r.size[SLOT_EMA]));
}

/* Saved, loaded into another model and saved again: equal bytes; and both models go on alike. */
static void test_checkpoint(const char *preset, const char *rule) {
    char flags[512], paths[2][FILE_PATH_SIZE], note[2048];
    snprintf(flags, sizeof flags, "%s%s", preset, saved_flags);
    Config c = config_of(flags, rule), again = config_of("", "");
    static Model m, n;
    static Run runs[2];
    int x[16], y[16];
    unsigned char *bytes[2];
    size_t size[2];
    Ckpt ckpt;
    case_of("checkpoint %s %s", preset, rule);
    create(&m, &c);
    create(&n, &c);
    for (int i = 0; i < 2; i++) open_test_run(&runs[i], &c, i ? "1" : "0");
    choices_set(&runs[0].choices, "products of a GPU", "v1 x;y:z;");
    randomise(&m);
    draw_batch(&c, x, y, 16);
    for (int step = 0; step < 2; step++) train(&m, x, y, step);
    for (int i = 0; i < 2; i++) {
        Choices *back = &runs[1].choices;
        ckpt_path(paths[i], runs[i].log.checkpoints, 2);
        if (!save_and_open(&runs[i], i ? &n : &m, &ckpt)) return;
        check(!load_quietly(&n, &ckpt, 2, note, sizeof note) && !note[0], "load: %s %s", err, note);
        check(!load_flags(&again, NULL, &ckpt, err), "flags: %s", err);
        choices_parse(back, ckpt.header, ckpt.header_length, "choice.");
        check(back->n == 1 && !strcmp(choices_get(back, "products of a GPU"), "v1 x;y:z;"),
              "choices");
        ckpt_close(&ckpt);
        bytes[i] = read_all(paths[i], &size[i]);
    }
    check(size[0] > m.p.r.count * sizeof(floatM) && size[0] == size[1] &&
              !memcmp(bytes[0], bytes[1], size[0]),
          "%s: saved again, the checkpoint differs", rule);
    check(same_training(&m, &n), "%s: the checkpoint does not give back the model", rule);
    check(again.preset == c.preset && again.seed == 9 && again.steps == 77 && again.vocab == 50 &&
              again.optimizer == c.optimizer && again.optim.adam_eps == c.optim.adam_eps &&
              again.head_bias == 1,
          "%s: the checkpoint does not give back the flags", rule);
    for (int step = 2; step < 4; step++) {
        train(&m, x, y, step);
        train(&n, x, y, step);
    }
    check(same_training(&m, &n), "%s: the resumed model goes another way", rule);
    model_free(&n);

    /* Other models refuse it with the reason. */
    static const char *const others[] = {"--width 32", "--layers 3",
                                         "--biases on --norm layernorm"};
    if (ckpt_open(&ckpt, paths[0], err)) die("%s", err);
    for (int i = 0; i < 3; i++) {
        Config other = config_of(flags, others[i]);
        if (other.biases == c.biases && i == 2) continue;
        create(&n, &other);
        err[0] = 0;
        check(load_training(&n.p, &n.plan, &other, &ckpt, 2, err) == -1 &&
                  strstr(err, i == 2 ? "has no tensor" : "another size"),
              "%s loaded into %s: \"%s\"", flags, others[i], err);
        model_free(&n);
    }
    /* Without training, parameters are all that is read. */
    if (make_model(&n, &c, 0)) die("%s", err);
    check(!load_parameters(&n.p, &ckpt, TENSORS_OWN, 0, err) && !all_zero(n.p.param, elements(&n)),
          "load for inference: %s", err);
    ckpt_close(&ckpt);
    model_free(&n);
    model_free(&m);
    for (int i = 0; i < 2; i++) {
        free(bytes[i]);
        close_test_run(&runs[i]);
    }
}

/* How far the state of a name differs between two plans: 0 if their bits are equal, -1 if one lacks
   it. */
static int state_differs(const Model *a, const Model *b, const char *name) {
    const StateTensor *found[2] = {NULL, NULL};
    const Model *m[2] = {a, b};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < m[k]->plan.states; i++)
            if (!strcmp(m[k]->plan.state[i].name, name)) found[k] = &m[k]->plan.state[i];
    if (!found[0] || !found[1]) return -1;
    return !same_bits(a->p.state + found[0]->at, b->p.state + found[1]->at, found[0]->size);
}

/* Writes the model as format version 1 did: the rules' state in one record without names. */
static void write_version_1(const char *path, const Model *m) {
    CkptWriter w;
    int64_t dim = (int64_t)m->plan.state_size;
    size_t size;
    floatM *host = array((size_t)dim);
    device_download(host, m->p.state, (size_t)dim * sizeof(floatM));
    static Run run;
    run.asked = run.config = *m->c;
    char *header = checkpoint_header(&run, &m->plan);
    if (!header) die("out of memory");
    ckpt_begin(&w, path, header, err);
    free(header);
    Saver saver = {&w, 0, array(m->p.r.size[SLOT_PARAM])};
    save_slot(&saver, 'p', &m->p.r, SLOT_PARAM, m->p.param, err);
    save_slot(&saver, 'm', &m->p.r, SLOT_MOMENT, m->p.moment, err);
    ckpt_tensor(&w, "v", RECORD_DTYPE, 1, &dim, err);
    ckpt_write(&w, host, dim * (int64_t)sizeof(floatM), err);
    if (ckpt_commit(&w, err)) die("%s", err);
    unsigned char *bytes = read_all(path, &size);
    bytes[strlen(CKPT_MAGIC)] = '1';
    uint64_t sum = checkpoint_hash(bytes, size - 8);
    memcpy(bytes + size - 8, &sum, 8);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, size, f) != size || fclose(f)) die("cannot write %s", path);
    free(bytes);
    release();
}

/* A file of version 1 whose rules change on resume: W_O and W_V hand nothing on to W_Q and W_K,
   whose state is as large. What both rules have is kept to the bit, and so are the moments of W_V,
   whose rows follow those that start anew. */
static void test_version_1_change(void) {
    char path[FILE_PATH_SIZE], note[2048], flags[512];
    static Model m, n;
    int x[16], y[16];
    Ckpt ckpt;
    snprintf(flags, sizeof flags, "--preset gpt2%s --lr 0.002", saved_flags);
    Config c = config_of(flags, "--qk muon --ov adamw --mlp normuon"),
           other = config_of(flags, "--qk adamw --ov muon --mlp normuon");
    file_path(path, "%s/version1", folder);
    create(&m, &c);
    create(&n, &other);
    randomise(&m);
    draw_batch(&c, x, y, 16);
    for (int step = 0; step < 2; step++) train(&m, x, y, step);
    write_version_1(path, &m);
    if (!check(!ckpt_open(&ckpt, path, err), "version 1: %s", err)) return;
    check(m.plan.state_size == n.plan.state_size, "the two states have different sizes");
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note) &&
              strstr(note, "anew: s.wqkv.q.v, s.wqkv.k.v; not taken over: s.wo.v, s.wqkv.v.v\n"),
          "version 1, state of W_O and W_V for W_Q and W_K: %s", note);
    check(state_differs(&m, &n, "wfc.v") == 0 && state_differs(&m, &n, "wte.v") == 0,
          "version 1: what both rules have is not kept");
    for (int i = 0; i < n.plan.states; i++)
        check(n.plan.state[i].since == (strstr(n.plan.state[i].name, "wqkv.") ? 2 : 0),
              "version 1: %s since %d", n.plan.state[i].name, n.plan.state[i].since);
    size_t C = (size_t)m.s.C, anew = (size_t)(m.s.QKV - m.s.NKV * m.s.HS) * C;
    for (int l = 0; l < m.s.L; l++) {
        const Tensor *t = &m.p.r.t[T_WQKV];
        const floatM *old = slot_pointer(t, SLOT_MOMENT, l, m.p.moment);
        const floatM *now = slot_pointer(t, SLOT_MOMENT, l, n.p.moment);
        check(all_zero(now, anew) && same_bits(old + anew, now + anew, layer_size(t) - anew),
              "version 1: moments of W_QKV, layer %d", l);
    }
    model_free(&n);
    model_free(&m);
    ckpt_close(&ckpt);
    unlink(path);
}

/* A file of version 1 gives back the whole training where the rules are equal. With other rules
   the state of the changed ones starts anew. */
static void test_version_1(void) {
    char path[FILE_PATH_SIZE], note[2048], flags[512];
    static Model m, n;
    int x[16], y[16];
    Ckpt ckpt;
    snprintf(flags, sizeof flags, "--preset gpt2%s", saved_flags);
    Config c = config_of(flags, "--mlp normuon"),
           other = config_of(flags, "--mlp muonh --weight-decay 0");
    file_path(path, "%s/version1", folder);
    create(&m, &c);
    create(&n, &c);
    randomise(&m);
    draw_batch(&c, x, y, 16);
    for (int step = 0; step < 2; step++) train(&m, x, y, step);
    write_version_1(path, &m);
    if (!check(!ckpt_open(&ckpt, path, err) && ckpt.version == 1, "version 1: %s", err)) return;
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note) && !note[0], "version 1: %s %s", err,
          note);
    check(same_training(&m, &n), "version 1 does not give back the model");
    for (int step = 2; step < 4; step++) {
        train(&m, x, y, step);
        train(&n, x, y, step);
    }
    check(same_training(&m, &n), "resumed from version 1, the model goes another way");
    model_free(&n);
    create(&n, &other);
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note) && strstr(note, "starting anew: ") &&
              strstr(note, "s.wfc.radius") && strstr(note, "not taken over: s.wfc.v, s.wproj.v\n"),
          "version 1, other rules: %s", note);
    model_free(&n);
    model_free(&m);
    ckpt_close(&ckpt);
    unlink(path);
}

/* A rule changed on resume keeps parameters, first moments and what both rules have of one name
   and size; the rest starts anew and is named. Training goes on, and a further resume gives equal
   bits. */
static void test_rule_change(const char *from, const char *to, const char *anew, const char *lost,
                             int keeps_moments) {
    char note[2048], flags[512];
    static Model m, n, again;
    static Run run, second;
    int x[16], y[16];
    Ckpt ckpt;
    snprintf(flags, sizeof flags, "--preset llama%s --init gpt2 --schedule constant", saved_flags);
    case_of("%s to %s", from, to);
    Config c = config_of(flags, from), changed = config_of(flags, to);
    create(&m, &c);
    create(&n, &changed);
    create(&again, &changed);
    open_test_run(&run, &c, "rule");
    open_test_run(&second, &changed, "rule2");
    if (model_init(&m, err)) die("%s", err);
    draw_batch(&c, x, y, 16);
    double first = 0, last = 0;
    for (int step = 0; step < 2; step++) train(&m, x, y, step);
    if (!save_and_open(&run, &m, &ckpt)) return;
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note), "%s to %s: %s", from, to, err);
    ckpt_close(&ckpt);
    check(strstr(note, anew) && (!lost[0] || strstr(note, lost)), "%s to %s: note \"%s\"", from, to,
          note);
    check(same_bits(m.p.param, n.p.param, elements(&m)), "%s to %s: parameters", from, to);
    check(same_bits(m.p.moment, n.p.moment, elements(&m)) == keeps_moments, "%s to %s: moments",
          from, to);
    check(state_differs(&m, &n, "wte.v") == 0 && state_differs(&m, &n, "normf_w.v") == 0,
          "%s to %s: the embedding's state is not kept", from, to);
    const Tensor *wfc = &n.p.r.t[T_WFC];
    floatM *before = array(wfc->size);
    memcpy(before, param(&n, T_WFC, 0), wfc->size * sizeof *before);
    for (int step = 2; step < 12; step++) {
        last = train(&n, x, y, step);
        if (step == 2) first = last;
        if (step == 2 && !keeps_moments) { /* AdamW's first step is lr times the gradient's sign */
            double most = 0, lr = changed.lr_mlp * schedule_lr(&changed.schedule, step);
            for (size_t i = 0; i < wfc->size; i++)
                most = fmax(most, fabs((double)param(&n, T_WFC, 0)[i] - (double)before[i]));
            check(most > 0.99 * lr && most < 1.01 * lr, "%s to %s: the first step is %g, not %g",
                  from, to, most, lr);
        }
        if (step == 6) { /* a second resume, in the middle of the new rules */
            second.step = 7;
            if (!save_and_open(&second, &n, &ckpt)) return;
            check(!load_quietly(&again, &ckpt, 7, note, sizeof note) && !note[0], "%s: %s", to,
                  note);
            ckpt_close(&ckpt);
        }
        if (step > 6) train(&again, x, y, step);
    }
    check(last < first - 0.03, "%s to %s: the loss goes from %g to %g", from, to, first, last);
    check(same_training(&n, &again), "%s to %s: a second resume goes another way", from, to);
    close_test_run(&run);
    close_test_run(&second);
    model_free(&m);
    model_free(&n);
    model_free(&again);
    release();
}

/* A state that the checkpoint has in another shape of equal size is not taken over. */
static void test_state_shape(void) {
    char note[2048], flags[512];
    static Model m, n;
    static Run run;
    Ckpt ckpt;
    snprintf(flags, sizeof flags, "--preset gpt2%s", saved_flags);
    Config c = config_of(flags, "--mlp adamw");
    create(&m, &c);
    create(&n, &c);
    open_test_run(&run, &c, "shape");
    if (!save_and_open(&run, &m, &ckpt)) return;
    for (int i = 0; i < n.plan.states; i++) {
        StateTensor *s = &n.plan.state[i];
        if (strcmp(s->name, "wfc.v")) continue;
        int64_t rows = s->dims[1];
        s->dims[1] = s->dims[2];
        s->dims[2] = rows;
    }
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note) && strstr(note, "anew: s.wfc.v\n"),
          "a state of another shape: %s%s", err, note);
    ckpt_close(&ckpt);
    close_test_run(&run);
    model_free(&n);
    model_free(&m);
}

/* Scratch that does not suffice, which would be a mistake of the plan, is a recorded failure. */
static void test_scratch(void) {
    static Model m;
    int x[16], y[16];
    char flags[512];
    snprintf(flags, sizeof flags, "--preset llama%s --optimizer cm", saved_flags);
    Config c = config_of(flags, "");
    create(&m, &c);
    randomise(&m);
    draw_batch(&c, x, y, 16);
    loss_and_gradient(&m, x, y, 2);
    floatM *arena = m.arena.p; /* which an arena that runs out loses */
    m.arena.size = 16;
    check(!device_failure(), "a failure before: %s", device_failure());
    optimizer_step(&m, 0, 1);
    check(device_check(err) == -1 && strstr(err, "internal error: the update needs"),
          "an arena that is too small: %s", err);
#ifdef CM_CUDA
    cm_gpu.failure[0] = 0;
#else
    cm_cpu.failure[0] = 0;
#endif
    check(!m.arena.p, "the arena still has its memory");
    m.arena.p = arena;
    model_free(&m);
}

/* ---------------------------------------------------------------------------------------------- */
/* every rule in every role */

/* A model in which one role has a rule, and all else stands still: its entries have no learning
   rate. No matrix is square, because aurora and muon agree on these. The rates are small: the five
   steps below must not pass the minimum of the loss along their direction. */
static Config config_of_role(const RuleRole *role, const Rule *rule, int circuit) {
    char flags[512];
    snprintf(flags, sizeof flags,
             "--layers 2 --width 20 --heads 4 --kv-heads 2 --head-dim 6 --ff-width 28 --seq-len 6 "
             "--batch-size 2 --vocab 22 --pos learned --tied off --head-bias on --init gpt2 "
             "--schedule constant --lr 0.002 --lr-embed 0.002 --lr-head 0.002 --act gelu %s %s%s",
             role->flag, rule->flag, circuit ? " --circuit on" : "");
    return config_of(flags, "");
}

static void create_role(Model *m, const Config *c, const RuleRole *role) {
    int moving = 0;
    create(m, c);
    for (int i = 0; i < m->plan.n; i++) {
        PlanEntry *e = &m->plan.e[i];
        if (strstr(role->entries, e->name[0])) moving++;
        else e->lr = 0;
    }
    check(moving > 0, "%s: no entry of the plan is %s", role->flag, role->entries);
}

/* The number of a tensor's parameters that differ between two models. */
static size_t moved(const Model *a, const floatM *start, TensorId id) {
    const Tensor *t = &a->p.r.t[id];
    size_t n = 0;
    for (size_t i = 0; t->layers && i < t->size; i++)
        n += param(a, id, 0)[i] != start[param_at(t) + i];
    return n;
}

/* Five steps of the role alone lower the loss. A run that is saved after two of them and resumed
   has the bits of the run that went on. The emulator, which is slow, takes three steps, and only
   by rules whose state moves through the device's memory; test_gpt.cu holds all rules to the CPU's
   updates. */
static void test_rule_in_role(const RuleRole *role, const Rule *rule, int circuit) {
    static Model m, n;
    static Run run;
    char note[2048];
    int x[12], y[12];
    Ckpt ckpt;
    if (ON_CUDA && !rule->state[0].name) return;
    int steps = ON_CUDA ? 3 : 5;
    const char *name = case_of("%s %s%s", role->flag, rule->flag, circuit ? " --circuit on" : "");
    Config c = config_of_role(role, rule, circuit);
    create_role(&m, &c, role);
    create_role(&n, &c, role);
    open_test_run(&run, &c, "role");
    randomise(&m);
    draw_batch(&c, x, y, 12);
    floatM *start = fetch(m.p.param, elements(&m));
    double first = train(&m, x, y, 0);
    train(&m, x, y, 1);
    if (!save_and_open(&run, &m, &ckpt)) return;
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note) && !note[0], "%s: load: %s %s", name, err,
          note);
    ckpt_close(&ckpt);
    for (int step = 2; step < steps; step++) {
        train(&m, x, y, step);
        train(&n, x, y, step);
    }
    double last = loss_and_gradient(&m, x, y, m.s.B);
    check(same_training(&m, &n), "%s: the resumed run goes another way", name);
    check(last < first, "%s: %d steps take the loss from %.9g to %.9g", name, steps, first, last);
    check(moved(&m, start, T_NORM1_W) == 0, "%s: what has no learning rate moves", name);
    close_test_run(&run);
    model_free(&m);
    model_free(&n);
    release();
}

static void test_rules_in_roles(void) { each_rule(test_rule_in_role); }

/* ---------------------------------------------------------------------------------------------- */
/* factors */

/* A checkpoint of a model without adapters and with random parameters, for adapters of `c`. */
static int save_base(Run *run, const Config *c, Ckpt *base) {
    static Config whole;
    static Model m;
    whole = *c;
    whole.lora_rank = 0;
    whole.factored = 0;
    whole.freeze[0] = 0;
    create(&m, &whole);
    randomise(&m);
    open_test_run(run, &whole, "base");
    int status = save_and_open(run, &m, base);
    model_free(&m);
    return status;
}

/* Random factors and, for adapters, the weights of `base`. */
static void randomise_beside(Model *m, const Ckpt *base) {
    randomise(m);
    if (m->c->lora_rank && load_parameters(&m->p, base, TENSORS_OF_BASE, 0, err)) die("%s", err);
    refresh_weights(m);
}

/* A tensor of the base: it has no gradient, no moment and no average, and no record in a checkpoint
   of the adapters. */
static void check_of_base(const Model *m, const Tensor *t, const Ckpt *ckpt) {
    char name[96];
    check(t->frozen && !t->slot[SLOT_GRAD].layers && !t->slot[SLOT_MOMENT].layers &&
              !t->slot[SLOT_EMA].layers,
          "%s of the base has a gradient, a moment or an average", t->name);
    for (const char *prefix = "pem"; *prefix; prefix++) {
        snprintf(name, sizeof name, "%c.%s", *prefix, t->name);
        check(!ckpt_record(ckpt, name), "a checkpoint of adapters has %s", name);
    }
    for (int i = 0; i < m->plan.n; i++)
        for (int leg = 0; leg < m->plan.e[i].legs; leg++)
            check(&m->p.r.t[m->plan.e[i].part[leg].id] != t, "%s of the base has a rule", t->name);
    for (int i = 0; i < m->plan.states; i++)
        check(m->p.r.t[m->plan.state[i].part.id].role == ROLE_FACTOR, "%s is a state of the base",
              m->plan.state[i].name);
}

/* Adapters, or products, are saved after two steps and loaded into another model beside the same
   base: the two go on alike, to the bit, and what is frozen has not moved. */
static void test_factor_checkpoint(const char *preset, const char *rule) {
    static Model m, n;
    static Run run, of_base;
    char flags[512], note[2048], path[FILE_PATH_SIZE];
    int x[16], y[16];
    Ckpt base, ckpt;
    snprintf(flags, sizeof flags, "%s%s --schedule constant", preset, saved_flags);
    case_of("factors %s %s", preset, rule);
    Config c = config_of(flags, rule);
    if (c.lora_rank && !save_base(&of_base, &c, &base)) return;
    create(&m, &c);
    create(&n, &c);
    open_test_run(&run, &c, "factors");
    randomise_beside(&m, &base);
    randomise_beside(&n, &base);
    floatM *start = fetch(m.p.param, elements(&m));
    draw_batch(&c, x, y, 16);
    for (int step = 0; step < 2; step++) train(&m, x, y, step);
    if (!save_and_open(&run, &m, &ckpt)) return;
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note) && !note[0], "%s: load: %s %s", rule, err,
          note);
    check(same_training(&m, &n), "%s: the checkpoint does not give back the model", rule);
    for (int step = 2; step < 4; step++) {
        train(&m, x, y, step);
        train(&n, x, y, step);
    }
    check(same_training(&m, &n), "%s %s: the resumed model goes another way", preset, rule);
    size_t bytes = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        if (!t->layers) continue;
        size_t still = m.p.r.t[id].size - moved(&m, start, (TensorId)id);
        if (t->of_base) check_of_base(&m, t, &ckpt);
        else bytes += t->size * sizeof(floatM);
        if (t->of_base) check(still == t->size, "%s: %s of the base moved", rule, t->name);
        else if (t->role == ROLE_FACTOR)
            check(10 * still <= t->size || t->used_rows < t->rows,
                  "%s: %zu of %zu in %s stand still", rule, still, t->size, t->name);
        size_t used = used_size(&c, &m.p.r, id);
        check(all_zero(m.p.param + param_at(t) + used, t->size - used), "%s: padding of %s moved",
              rule, t->name);
    }
    ckpt_path(path, run.log.checkpoints, run.step);
    size_t size;
    free(read_all(path, &size));
    check(!c.lora_rank || size < 3 * bytes + m.plan.state_size * sizeof(floatM) + 16384,
          "%s: %zu bytes of a checkpoint for %zu of adapters", rule, size, bytes);
    ckpt_close(&ckpt);
    close_test_run(&run);
    if (c.lora_rank) ckpt_close(&base);
    if (c.lora_rank) close_test_run(&of_base);
    model_free(&m);
    model_free(&n);
    release();
}

/* The merged model has the logits of the model with factors, but for rounding, and its checkpoint
   the flags of a model without. */
static void test_merge(const char *preset, const char *changes) {
    static Model m, n;
    static Run run;
    char flags[512], path[FILE_PATH_SIZE], text[64];
    int x[16], y[16];
    Ckpt ckpt, merged;
    snprintf(flags, sizeof flags, "%s%s", preset, saved_flags);
    case_of("merge %s %s", preset, changes);
    Config c = config_of(flags, changes), whole = config_of("", "");
    create(&m, &c);
    randomise(&m);
    snprintf(c.freeze, sizeof c.freeze, "wqkv_up"); /* which the merged model does not have */
    open_test_run(&run, &c, "merge");
    if (!save_and_open(&run, &m, &ckpt)) return;
    draw_batch(&c, x, y, 16);
    forward(&m, x, 2);
    head_forward(&m, 0, 16);
    size_t logits = (size_t)16 * m.s.Vp;
    floatM *want = fetch_x(m.a.logits, logits);
    file_path(path, "%s/merged.ckpt", folder);
    check(!merge_write(&m.p, &c, &ckpt, path, err), "merge: %s", err);
    if (!check(!ckpt_open(&merged, path, err), "merged: %s", err)) return;
    check(!load_flags(&whole, NULL, &merged, err) && !config_resolve(&whole, err), "flags: %s",
          err);
    check(!config_rank(&whole) && !whole.freeze[0] && whole.seed == 9 && whole.width == 16 &&
              whole.tied == (c.tied && !(c.factored >> LINEAR_HEAD & 1)),
          "%s %s: flags of the merged model", preset, changes);
    check(ckpt_value(&merged, "init_from_file", text, sizeof text) &&
              !ckpt_value(&merged, "step", text, sizeof text) && !strcmp(text, "2"),
          "the header of the merged model");
    if (make_model(&n, &whole, 0)) die("%s", err);
    check(!load_parameters(&n.p, &merged, TENSORS_OWN, 0, err), "%s", err);
    refresh_weights(&n);
    forward(&n, x, 2);
    head_forward(&n, 0, 16);
    double e = relative_l2_m(fetch_x(n.a.logits, logits), want, logits, 1e-30);
    check(e < BY_BUILD(1e-13, 1e-5, 1e-5, 5e-2), "%s %s: merged, the logits are off by %.1e",
          preset, changes, e);
    for (int i = 0; i < n.p.r.t[T_WTE].rows; i++)
        if (i >= c.vocab)
            check(all_zero(n.p.param + param_at(&n.p.r.t[whole.tied ? T_WTE : T_WHEAD]) +
                               (size_t)i * 16,
                           16),
                  "%s %s: merged, the head's padding", preset, changes);
    ckpt_close(&merged);
    unlink(path);
    ckpt_close(&ckpt);
    close_test_run(&run);
    model_free(&m);
    model_free(&n);
    release();
}

/* --lora-plus multiplies the step of A, and leaves that of B. */
static void test_lora_plus(void) {
    static Model m, n;
    int x[16], y[16];
    double wrong = 0;
    char flags[512];
    snprintf(flags, sizeof flags,
             "--preset llama%s --init gpt2 --warmup 0 --lr-lora 0.01 --lora adamw", saved_flags);
    case_of("--lora-plus");
    Config c = config_of(flags, "--low-rank 3 --lora-init balanced");
    Config plus = config_of(flags, "--low-rank 3 --lora-init balanced --lora-plus 4");
    create(&m, &c);
    create(&n, &plus);
    if (model_init(&m, err) || model_init(&n, err)) die("%s", err);
    floatM *before = array(elements(&m));
    memcpy(before, m.p.param, elements(&m) * sizeof(floatM));
    draw_batch(&c, x, y, 16);
    train(&m, x, y, 0);
    train(&n, x, y, 0);
    for (int id = T_WQKV_UP; id < T_WHEAD_UP; id++) {
        const Tensor *t = &m.p.r.t[id];
        size_t at = t->slot[SLOT_PARAM].at;
        double times = (id - T_WQKV_UP) % 2 ? 1 : 4, moved = 0;
        for (size_t i = at; i < at + t->size; i++) {
            double one = (double)m.p.param[i] - (double)before[i];
            double other = (double)n.p.param[i] - (double)before[i];
            moved = fmax(moved, fabs(one));
            wrong = fmax(wrong, fabs(other - times * one));
        }
        check(moved > 1e-3, "%s moves by %g", t->name, moved);
    }
    check(wrong < 1e-6, "--lora-plus 4: a step is off by %g", wrong);
    model_free(&m);
    model_free(&n);
    release();
}

static void test_factors(void) {
    char changes[128];
    test_lora_plus();
    for (int id = RULE_AUTO + 1; id < RULES_END; id++) {
        snprintf(changes, sizeof changes, "--lora %s --lora-scale 0.5", rule_table[id].flag);
        if (!(rule_table[id].where & ON_FACTOR) || (ON_CUDA && !rule_table[id].state[0].name))
            continue;
        test_factor_checkpoint("--preset llama --lora-rank 3 --lora-on all", changes);
        test_factor_checkpoint("--preset speedrun --low-rank 3 --optimizer muon", changes);
    }
    test_factor_checkpoint("--preset gpt2 --lora-rank 2 --lora-on o,head --lora-split off",
                           "--ema-from 1 --ema-horizon 3 --log-groups on --weight-decay 0.1");
    test_factor_checkpoint("--preset llama --low-rank 2 --lora-on fc,head",
                           "--ema-from 1 --momentum-ages k-maxwell --momentum-ages-from 1");
}

/* Weights that are no numbers are refused where a run would begin from them. */
static void test_finite(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static Model m;
    static Run run;
    char flags[512];
    Ckpt ckpt;
    snprintf(flags, sizeof flags, "--preset llama%s", saved_flags);
    Config c = config_of(flags, "");
    for (int i = 0; i < 4; i++) {
        create(&m, &c);
        open_test_run(&run, &c, "finite");
        randomise(&m);
        size_t at = m.p.r.t[T_WO].slot[SLOT_PARAM].at + 5;
        m.p.param[at] = i < 3 ? (floatM)bad[i] : (floatM)FLT_MAX;
        if (!save_and_open(&run, &m, &ckpt)) return;
        int status = weights_check_finite(&ckpt, "x", err);
        check(i == 3 ? !status : status == -1 && strstr(err, "x: NaN or infinity in wo (1 of "),
              "weight %g: %d, %s", (double)m.p.param[at], status, err);
        ckpt_close(&ckpt);
        close_test_run(&run);
        model_free(&m);
    }
    release();
}

static void test_merges(void) {
    test_finite();
    static const char *const ranks[] = {"--lora-rank 3", "--low-rank 3"};
    static const char *const all[] = {"--lora-on all --lora-scale 0.7",
                                      "--lora-on all --lora-split off --lora-scale 2",
                                      "--lora-on qkv,proj --optimizer muon", "--lora-on head"};
    char changes[128];
    for (int i = 0; i < COUNT_OF(ranks); i++)
        for (int j = 0; j < COUNT_OF(all); j++) {
            snprintf(changes, sizeof changes, "%s %s", ranks[i], all[j]);
            test_merge("--preset llama --kv-heads 1", changes);
            test_merge("--preset speedrun", changes);
            if (!i) test_merge("--preset gpt2", changes);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* frozen tensors and shards */

/* Freezing leaves every other gradient as it is, to the bit, saves the memory of a gradient, a
   moment and AdamW's second moment, and keeps the tensor through updates. */
static void test_freeze(const char *preset, const char *rule, TensorId id) {
    char flags[512], freeze[64];
    static Model m, n;
    int x[16], y[16];
    snprintf(flags, sizeof flags, "%s%s", preset, saved_flags);
    Config c = config_of(flags, rule), frozen_config = c;
    create(&m, &c);
    const Tensor *t = &m.p.r.t[id];
    case_of("freeze %s %s %s", preset, rule, t->name);
    snprintf(freeze, sizeof freeze, "%s", t->name);
    snprintf(frozen_config.freeze, sizeof frozen_config.freeze, "%s", freeze);
    create(&n, &frozen_config);
    randomise(&m);
    memcpy(n.p.param, m.p.param, elements(&m) * sizeof(floatM));
    draw_batch(&c, x, y, 16);
    double loss = loss_and_gradient(&m, x, y, 2), frozen_loss = loss_and_gradient(&n, x, y, 2);
    check(loss == frozen_loss, "%s frozen: loss %.17g, not %.17g", freeze, frozen_loss, loss);
    check(!grad(&n, id, 0) && grad(&m, id, 0), "%s frozen: it has a gradient", freeze);
    for (int other = 0; other < TENSORS; other++) {
        const Tensor *o = &m.p.r.t[other];
        if (!o->layers || other == (int)id) continue;
        check(same_bits(grad(&m, (TensorId)other, 0), grad(&n, (TensorId)other, 0), o->size),
              "%s frozen: the gradient of %s differs", freeze, o->name);
    }
    size_t padded = (t->size + 63) / 64 * 64, state = m.plan.state_size - n.plan.state_size;
    Memory all = model_memory(&c, &m.p.r, &m.plan, 1);
    Memory less = model_memory(&frozen_config, &n.p.r, &n.plan, 1);
    size_t arena = m.plan.arena_size - n.plan.arena_size;
    check(all.total - less.total == (2 * padded + state + arena) * sizeof(floatM),
          "%s frozen saves %zu bytes, not %zu", freeze, all.total - less.total,
          (2 * padded + state + arena) * sizeof(floatM));
    check(m.p.r.size[SLOT_GRAD] - n.p.r.size[SLOT_GRAD] == padded &&
              m.p.r.size[SLOT_MOMENT] - n.p.r.size[SLOT_MOMENT] == padded,
          "%s frozen: slots", freeze);
    for (int step = 0; step < 2; step++) train(&n, x, y, step);
    check(same_bits(param(&m, id, 0), param(&n, id, 0), t->size), "%s frozen: it moved", freeze);
    TensorId moving = id == T_WTE ? T_WFC : T_WTE;
    check(!same_bits(param(&m, moving, 0), param(&n, moving, 0), m.p.r.t[moving].size),
          "%s frozen: %s did not move", freeze, m.p.r.t[moving].name);
    model_free(&m);
    model_free(&n);
    release();
}

/* Where all below the first block's matrices is frozen, or all below the head, the backward pass
   ends there. The gradients are those of a model in which the embedding is trained. */
static void test_frozen_below(const char *preset, const char *freeze, Reach reach) {
    static Model m, n;
    char flags[512];
    int x[16], y[16];
    snprintf(flags, sizeof flags, "%s%s", preset, saved_flags);
    Config c = config_of(flags, "--optimizer muon");
    case_of("frozen below %s %s", preset, freeze);
    Registry all = registry_build(&c), less = all;
    Tensor *wte = &all.t[T_WTE];
    wte->frozen = 0;
    for (int slot = SLOT_GRAD; slot <= SLOT_MOMENT; slot++) wte->slot[slot].layers = 1;
    registry_layout(&all);
    if (registry_freeze(&less, freeze, err)) die("%s", err);
    Plan plan = plan_build(&c, &all);
    if (model_create(&m, &c, &all, &plan, 1, err) || model_create(&n, &c, &less, &plan, 1, err))
        die("%s", err);
    randomise(&m);
    memcpy(n.p.param, m.p.param, elements(&m) * sizeof(floatM));
    draw_batch(&c, x, y, 16);
    double loss = loss_and_gradient(&m, x, y, 2);
    check(loss_and_gradient(&n, x, y, 2) == loss && !grad(&n, T_WTE, 0), "%s: the loss", preset);
    check(backward_reach(&all) == REACH_EMBED && backward_reach(&less) == reach,
          "%s, frozen %s: the backward pass goes to %d", preset, freeze, backward_reach(&less));
    for (int id = 0; id < TENSORS; id++)
        for (int l = 0; l < n.p.r.t[id].slot[SLOT_GRAD].layers; l++)
            check(same_bits(grad(&m, (TensorId)id, l), grad(&n, (TensorId)id, l),
                            layer_size(&n.p.r.t[id])),
                  "%s, frozen %s: the gradient of %s, layer %d", preset, freeze, n.p.r.t[id].name,
                  l);
    model_free(&m);
    model_free(&n);
    release();
}

/* A coupled rule with one frozen leg is refused; otherwise the other leg is updated. */
static void test_freeze_errors(void) {
    static Model m;
    char flags[512];
    snprintf(flags, sizeof flags, "--preset llama%s", saved_flags);
    Config cm = config_of(flags, "--optimizer cm"), muon = config_of(flags, "--optimizer muon");
    snprintf(cm.freeze, sizeof cm.freeze, "wo");
    snprintf(muon.freeze, sizeof muon.freeze, "wo,wte");
    check(make_model(&m, &cm, 1) == -1 && strstr(err, "--freeze wo") && strstr(err, "wqkv"),
          "a coupled rule with a frozen leg: %s", err);
    check(!make_model(&m, &muon, 1), "a rule that couples nothing: %s", err);
    for (int i = 0; i < m.plan.n; i++)
        check(m.plan.e[i].part[0].id != T_WO && m.plan.e[i].part[0].id != T_WTE, "a frozen entry");
    model_free(&m);
    snprintf(muon.freeze, sizeof muon.freeze, "wo,wf"); /* no prefix stands for a name */
    check(make_model(&m, &muon, 1) == -1 && strstr(err, "\"wf\""), "a prefix: %s", err);
    snprintf(muon.freeze, sizeof muon.freeze, "wo,wxyz");
    check(make_model(&m, &muon, 1) == -1 && strstr(err, "wxyz") && strstr(err, "wproj"),
          "an unknown name: %s", err);
}

/* A tensor frozen on resume leaves its moments behind; one that is no longer frozen starts them
   anew. */
static void test_freeze_resume(void) {
    static Model m, n;
    static Run run;
    int x[16], y[16];
    char flags[512], note[2048];
    Ckpt ckpt;
    snprintf(flags, sizeof flags, "--preset llama%s --optimizer muon", saved_flags);
    Config c = config_of(flags, ""), frozen = c;
    snprintf(frozen.freeze, sizeof frozen.freeze, "wo,wte");
    create(&m, &c);
    create(&n, &frozen);
    open_test_run(&run, &c, "freeze");
    randomise(&m);
    draw_batch(&c, x, y, 16);
    train(&m, x, y, 0);
    if (!save_and_open(&run, &m, &ckpt)) return;
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note) && !strstr(note, "anew") &&
              strstr(note, "not taken over: m.wte, m.wo, s.wte.v\n"),
          "frozen on resume: %s%s", err, note);
    ckpt_close(&ckpt);
    check(same_bits(m.p.param, n.p.param, elements(&m)), "frozen on resume: parameters");
    if (!save_and_open(&run, &n, &ckpt)) return;
    check(!load_quietly(&m, &ckpt, 2, note, sizeof note) && !strstr(note, "taken over") &&
              strstr(note, "starting anew: m.wte, m.wo, s.wte.v\n"),
          "no longer frozen: %s%s", err, note);
    ckpt_close(&ckpt);
    size_t size = m.p.r.t[T_WO].size;
    check(all_zero(m.p.moment + m.p.r.t[T_WO].slot[SLOT_MOMENT].at, size), "moments of wo");
    close_test_run(&run);
    model_free(&m);
    model_free(&n);
    release();
}

/* A moment slot that holds layers [1,3): plan_step updates these, with the bits of the whole step,
   and no others. */
static void test_shard(const char *rule) {
    static Model m, n;
    int x[16], y[16];
    Config c = config_of("--preset llama --layers 4 --width 16 --heads 2 --ff-width 24 --seq-len 8 "
                         "--batch-size 2 --vocab 50 --init gpt2",
                         rule);
    Registry r = registry_build(&c);
    case_of("shard %s", rule);
    for (int id = 0; id < TENSORS; id++)
        if (r.t[id].layers == 4) {
            r.t[id].slot[SLOT_MOMENT].first = 1;
            r.t[id].slot[SLOT_MOMENT].layers = 2;
        }
    registry_layout(&r);
    Plan plan = plan_build(&c, &r);
    create(&m, &c);
    if (model_create(&n, &c, &r, &plan, 1, err)) die("%s", err);
    if (model_init(&m, err) || model_init(&n, err)) die("%s", err);
    draw_batch(&c, x, y, 16);
    floatM *start = array(elements(&m));
    for (int step = 0; step < 2; step++) {
        memcpy(start, m.p.param, elements(&m) * sizeof(floatM));
        memcpy(n.p.param, m.p.param, elements(&m) * sizeof(floatM));
        refresh_weights(&n);
        train(&m, x, y, step);
        train(&n, x, y, step);
        for (int id = 0; id < TENSORS; id++) {
            const Tensor *t = &m.p.r.t[id];
            for (int l = 0; l < t->layers; l++) {
                int held = t->layers != 4 || l == 1 || l == 2;
                const floatM *want =
                    held ? param(&m, (TensorId)id, l) : slot_pointer(t, SLOT_PARAM, l, start);
                check(same_bits(param(&n, (TensorId)id, l), want, layer_size(t)),
                      "%s, step %d: layer %d of %s of a shard", rule, step, l, t->name);
            }
        }
    }
    check(n.p.r.size[SLOT_MOMENT] < m.p.r.size[SLOT_MOMENT] &&
              n.plan.state_size < m.plan.state_size,
          "%s: a shard takes the memory of the whole", rule);
    model_free(&m);
    model_free(&n);
    release();
}

static const char *const presets[CONFIG_PRESETS] = {"--preset tiny", "--preset gpt2",
                                                    "--preset llama", "--preset speedrun"};

static void test_classifiers(void) {
    test_classifier(0);
    test_classifier(15);
    test_classifier_range();
}

/* A resumed run whose averages of the gradient had not begun, and that lets them begin earlier,
   begins them at once, as a run does that had none; and not before. */
static void test_earlier_averages(void) {
    static const char *const before[] = {"--momentum-ages 5:0.25,49:0.75 --momentum-ages-from 5",
                                         ""};
    static const char *const after[] = {"--momentum-ages 5:0.25,49:0.75 --momentum-ages-from 1",
                                        "--momentum-ages 5:0.25,49:0.75 --momentum-ages-from 3"};
    static Model m, n;
    static Run run;
    char flags[512], note[2048];
    int x[16], y[16];
    Ckpt ckpt;
    floatM *p[2][2], *single = NULL;
    snprintf(flags, sizeof flags, "--preset speedrun --optimizer muon%s", saved_flags);
    for (int i = 0; i < 2; i++) {
        Config c = config_of(flags, before[i]);
        create(&m, &c);
        draw_for("earlier averages");
        randomise(&m);
        draw_batch(&c, x, y, 16);
        for (int step = 0; step < 2; step++) train(&m, x, y, step);
        open_test_run(&run, &c, "earlier");
        if (!save_and_open(&run, &m, &ckpt)) return;
        train(&m, x, y, 2);
        single = fetch(m.p.param, elements(&m)); /* after one update more with one average */
        for (int j = 0; j < 2; j++) {
            Config resumed = config_of(flags, after[j]);
            create(&n, &resumed);
            check(!load_quietly(&n, &ckpt, 2, note, sizeof note), "%s", err);
            train(&n, x, y, 2);
            check(same_bits(fetch(n.p.param, elements(&n)), single, elements(&n)) == (j == 1),
                  "\"%s\" resumed with %s: the update after the resume", before[i], after[j]);
            for (int step = 3; step < 5; step++) train(&n, x, y, step);
            p[i][j] = fetch(n.p.param, elements(&n));
            model_free(&n);
        }
        ckpt_close(&ckpt);
        close_test_run(&run);
        if (i == 0) model_free(&m);
    }
    for (int j = 0; j < 2; j++)
        check(same_bits(p[0][j], p[1][j], elements(&m)),
              "resumed with %s: the weights are %g from those of a run without averages", after[j],
              relative_l2_m(p[0][j], p[1][j], elements(&m), 0));
    model_free(&m);
    release();
}

/* The averages of the readout against their definition, on weights that were kept after every
   update; the readout's loss against that of a model with these weights; and the weights come back
   to the bit. A checkpoint gives a model that is not trained the same readout. */
static void test_readout_of(const char *factors, TensorId frozen) {
    enum { FROM = 2, STEPS = 6 };
    const double horizon = 3, blocks = 0.65, scalars = 0.25;
    char flags[512];
    snprintf(flags, sizeof flags,
             "--preset speedrun --layers 2 --width 16 --heads 2 --seq-len 8 --vocab 50 "
             "--batch-size 2 --head-bias on %s",
             factors);
    case_of("readout %s", factors);
    Config c = config_of(flags, "--optimizer muon --ema-from 2 --ema-horizon 3 --ema-blend 0.65 "
                                "--ema-blend-scalar 0.25");
    snprintf(c.freeze, sizeof c.freeze, "%s", registry_build(&c).t[frozen].name);
    static Model m, n;
    static Run run;
    int x[16], y[16];
    Ckpt ckpt;
    create(&m, &c);
    randomise(&m);
    draw_batch(&c, x, y, 16);
    size_t size = elements(&m);
    double *average = (double *)calloc(size, sizeof *average);
    if (!average) die("out of memory");
    for (int step = 0; step < STEPS; step++) {
        check(m.p.ema_live == (step >= FROM), "the average lives after %d updates", step);
        check(m.p.ema_live || !readout_begin(&m.p, &c), "a readout after %d updates", step);
        train(&m, x, y, step);
        const floatM *w = fetch(m.p.param, size);
        for (size_t i = 0; i < size && step + 1 >= FROM; i++)
            average[i] += ((double)w[i] - average[i]) / (step + 1 == FROM ? 1 : horizon);
    }
    floatM *w = fetch(m.p.param, size), *expected = fetch(m.p.param, size);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        int blended = t->layers && t->role != ROLE_EMBED && id != (int)frozen && !t->of_base;
        double b = t->role == ROLE_SCALAR ? scalars : blocks;
        check((t->slot[SLOT_EMA].layers > 0) == blended, "%s has an average: %d",
              t->layers ? t->name : "none", !blended);
        for (size_t i = param_at(t); blended && i < param_at(t) + t->size; i++)
            expected[i] = (floatM)((1 - b) * (double)w[i] + b * average[i]);
    }
    free(average);
    check(readout_begin(&m.p, &c), "there is no readout");
    refresh_weights(&m);
    floatM *readout = fetch(m.p.param, size);
    check(relative_l2_m(readout, expected, size, 0) < BY_BUILD(1e-14, 1e-6, 1e-6, 1e-6),
          "the readout is %g from its definition", relative_l2_m(readout, expected, size, 0));
    forward(&m, x, 2);
    head_forward(&m, 0, 16);
    size_t logits = (size_t)16 * m.s.Vp;
    floatM *seen = fetch_x(m.a.logits, logits);
    readout_end(&m.p);
    refresh_weights(&m);
    check(same_bits(fetch(m.p.param, size), w, size), "the weights do not come back");
    check(relative_l2_m(readout, w, size, 0) > 1e-4, "the readout is the weights");

    open_test_run(&run, &c, "readout");
    if (!save_and_open(&run, &m, &ckpt)) return;
    if (make_model(&n, &c, 0)) die("%s", err);
    for (int id = 0; id < TENSORS; id++) /* what is frozen beside adapters is of another file */
        if (n.p.r.t[id].of_base)
            device_upload(n.p.param + param_at(&n.p.r.t[id]), w + param_at(&n.p.r.t[id]),
                          n.p.r.t[id].size * sizeof *w);
    check(!load_parameters(&n.p, &ckpt, TENSORS_OWN, 0, err) && !load_readout(&n.p, &c, &ckpt, err),
          "%s", err);
    refresh_weights(&n);
    check(same_bits(fetch(n.p.param, size), readout, size), "the checkpoint has another readout");
    forward(&n, x, 2);
    head_forward(&n, 0, 16);
    check(same_bits(fetch_x(n.a.logits, logits), seen, logits), "it gives other logits");
    ckpt_close(&ckpt);
    close_test_run(&run);
    model_free(&m);
    model_free(&n);
    release();
}

/* Models with factors. */
static const char *const factored[] = {
    "--preset llama --low-rank 3 --lora-on all --lora-scale 1.5",
    "--preset speedrun --low-rank 2 --lora-on qkv,o,proj --lora-split off",
    "--preset gpt2 --lora-rank 3 --lora-on all --lora-scale 0.5",
    "--preset llama --lora-rank 2 --lora-on fc,head --lora-split off",
};

static void test_readout(void) {
    test_readout_of("", T_WPROJ);
    test_readout_of("--low-rank 3 --lora-on all", T_WFC_UP);
    test_readout_of("--lora-rank 3 --lora-on all", T_WQKV_DOWN);
}

static void test_accumulation_presets(void) {
    for (int i = 0; i < CONFIG_PRESETS; i++) test_accumulation(presets[i]);
    for (int i = 0; i < COUNT_OF(factored); i++) test_accumulation(factored[i]);
}

static void test_causality_presets(void) {
    for (int i = 0; i < CONFIG_PRESETS; i++) test_causality(presets[i]);
    for (int i = 0; i < COUNT_OF(factored); i++) test_causality(factored[i]);
}

static void test_init_presets(void) {
    static const char *const factors[] = {"zero", "balanced", "spectral"};
    for (int i = 0; i < 3; i++) test_factor_init(factors[i], i == 1 ? 1 : 0.5);
    for (int i = 0; i < CONFIG_PRESETS; i++) test_init(presets[i], "");
    test_init("--preset tiny", "--tied on");
    for (int i = 0; i < 3; i++) test_zero_init(rules[i]);
}

static void test_memory_presets(void) {
    for (int i = 0; i < CONFIG_PRESETS; i++) test_memory(presets[i]);
    for (int i = 0; i < COUNT_OF(factored); i++) test_memory(factored[i]);
    test_memory("--preset llama --lora-rank 4 --lora lora-rite --log-groups --ema-from 1");
}

static void test_recompute_values(void) {
    char changes[64];
    for (int i = 0; i < CONFIG_PRESETS; i++) test_recompute(presets[i], "");
    for (int i = 0; i < COUNT_OF(factored); i++) test_recompute(factored[i], "");
    for (int norm = 0; norm < COUNT_OF(all_norms); norm++)
        for (int act = 0; act < COUNT_OF(all_acts); act++) {
            snprintf(changes, sizeof changes, "--norm %s --act %s", all_norms[norm], all_acts[act]);
            test_recompute("--preset tiny", changes);
        }
}

static void test_update_rules(void) {
    for (int i = 0; i < CONFIG_PRESETS; i++)
        for (int j = 0; j < RULES; j++) test_update(presets[i], rules[j], j == 2 ? 3 : 1);
    for (int id = RULE_AUTO + 1; id < RULES_END; id++) {
        char rule[96];
        snprintf(rule, sizeof rule, "--low-rank 3 --optimizer muon --lora %s", rule_table[id].flag);
        if (rule_table[id].where & ON_FACTOR) test_update(presets[id % CONFIG_PRESETS], rule, 1);
    }
}

static void test_checkpoints(void) {
    test_checkpoint("--preset gpt2", "--optimizer adamw");
    test_checkpoint("--preset speedrun", "--optimizer muon");
    test_checkpoint("--preset llama", "--optimizer cm");
    test_checkpoint("--preset llama --init gpt2", "--mlp muonh --qk quack");
    test_checkpoint("--preset speedrun", "--momentum-ages k-maxwell --momentum-ages-from 1 "
                                         "--ema-from 1 --ema-horizon 3");
    test_checkpoint("--preset gpt2", "--optimizer muon --momentum-ages bi-maxwell "
                                     "--momentum-ages-from 3 --ema-from 3 --ema-blend-embed -1");
}

/* A run of factors that is resumed with another rule for them: their first moments are kept, but
   for those of LoRA-RITE, which are in coordinates of its own. */
static void test_factor_rule_change(const char *from, const char *to, int keeps) {
    char note[2048], flags[512], both[2][64];
    static Model m, n;
    static Run run;
    int x[16], y[16];
    Ckpt ckpt;
    /* Of W_K and W_V a factor has as many rows as columns, so that states of rules may be of equal
       shapes. */
    snprintf(flags, sizeof flags, "--preset llama%s --init gpt2 --kv-heads 1 --low-rank 8",
             saved_flags);
    snprintf(both[0], sizeof both[0], "--lora %s --lr-lora 0.01", from);
    snprintf(both[1], sizeof both[1], "--lora %s --lr-lora 0.01", to);
    case_of("%s to %s", from, to);
    Config c = config_of(flags, both[0]), changed = config_of(flags, both[1]);
    create(&m, &c);
    create(&n, &changed);
    open_test_run(&run, &c, "factor_rule");
    if (model_init(&m, err)) die("%s", err);
    draw_batch(&c, x, y, 16);
    for (int step = 0; step < 2; step++) train(&m, x, y, step);
    if (!save_and_open(&run, &m, &ckpt)) return;
    check(!load_quietly(&n, &ckpt, 2, note, sizeof note), "%s to %s: %s", from, to, err);
    ckpt_close(&ckpt);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m.p.r.t[id];
        if (!t->layers) continue;
        size_t at = t->slot[SLOT_MOMENT].at;
        int kept = keeps || t->role != ROLE_FACTOR;
        check(kept ? same_bits(m.p.moment + at, n.p.moment + at, t->size)
                   : all_zero(n.p.moment + at, t->size),
              "%s to %s: moments of %s", from, to, t->name);
        check(kept || strstr(note, t->name), "%s to %s: note \"%s\"", from, to, note);
    }
    double first = train(&n, x, y, 2), last = 0;
    for (int step = 3; step < 12; step++) last = train(&n, x, y, step);
    check(last < first, "%s to %s: the loss goes from %g to %g", from, to, first, last);
    close_test_run(&run);
    model_free(&m);
    model_free(&n);
    release();
}

static void test_rule_changes(void) {
    test_factor_rule_change("lora-muon", "spectron", 1);
    test_factor_rule_change("lora-rite", "lora-rite", 1);
    test_factor_rule_change("lora-rite", "lora-muon", 0);
    test_factor_rule_change("lora-rite", "muon", 0);
    test_factor_rule_change("lora-muon", "lora-rite", 0);
    test_factor_rule_change("lora-rite", "adamw", 0);
    test_factor_rule_change("adamw", "lora-rite", 0);
    test_rule_change("--optimizer muon", "--optimizer muon --mlp normuon",
                     "starting anew: s.wfc.gate.v, s.wfc.up.v, s.wproj.v", "", 1);
    test_rule_change("--optimizer muon --mlp normuon", "--optimizer muon --mlp muonh",
                     "starting anew: s.wfc.gate.radius", "not taken over: s.wfc.gate.v", 1);
    test_rule_change("--optimizer muon", "--optimizer cm --qk quack",
                     "starting anew: s.wqkv.k.initial", "", 1);
    test_rule_change("--optimizer muon", "--optimizer muon --momentum-ages 2:0.5,30:0.5",
                     "starting anew: s.wqkv.q.m1, s.wqkv.k.m1", "", 1);
    test_rule_change("--optimizer muon --momentum-ages bi-maxwell", "--optimizer muon",
                     "not taken over: s.wqkv.q.m1", "", 1);
    test_rule_change("--optimizer muon", "--optimizer muon --mlp adamw --lr 0.002",
                     "starting anew: s.wfc.gate.v", "", 0);
}

static void test_frozen(void) {
    static const TensorId frozen[] = {T_NORM0_W, T_NORM1_W, T_WQKV,  T_BQKV, T_WO,
                                      T_BO,      T_NORM2_W, T_WFC,   T_BFC,  T_WPROJ,
                                      T_BPROJ,   T_NORMF_W, T_WHEAD, T_BHEAD};
    test_freeze("--preset gpt2", "--optimizer muon", T_WTE);
    test_freeze("--preset gpt2", "--optimizer adamw", T_WPE);
    test_freeze("--preset speedrun", "--optimizer muon", T_WTE);
    for (int i = 0; i < COUNT_OF(frozen); i++)
        test_freeze("--preset speedrun", "--optimizer muon", frozen[i]);
    static const TensorId factors[] = {T_WQKV_UP, T_WQKV_DOWN, T_WO_UP, T_WFC_DOWN, T_WHEAD_UP};
    for (int i = 0; i < COUNT_OF(factors); i++)
        test_freeze("--preset llama --low-rank 3 --lora-on all", "--optimizer muon", factors[i]);
    test_frozen_below("--preset llama", "wte,norm1_w", REACH_BLOCKS);
    test_frozen_below("--preset speedrun --low-rank 3", "wte,norm0_w,norm1_w", REACH_BLOCKS);
    test_frozen_below("--preset gpt2 --lora-rank 3 --lora-on qkv", "wte", REACH_BLOCKS);
    test_frozen_below("--preset llama", "wte,norm1_w,wqkv,wo,norm2_w,wfc,wproj", REACH_NORM);
    test_frozen_below("--preset llama", "wte,norm1_w,wqkv,wo,norm2_w,wfc,wproj,normf_w",
                      REACH_HEAD);
    test_frozen_below("--preset gpt2 --lora-rank 3 --lora-on head", "wte", REACH_HEAD);
}

static void test_shards(void) {
    test_shard("--optimizer cm");
    test_shard("--qk quack --ov muon-head --mlp normuon");
    test_shard("--qk adamw-partner --ov muon --circuit on --mlp muonh");
}

#ifdef CM_DOUBLE
#define GRADIENT_TESTS TEST(layers), TEST(model_gradients), TEST(value_gradients),
#else
#define GRADIENT_TESTS
#endif
/* The tests that look into the model's memory; test_gpt.cu runs them on the emulator. */
#define MEMORY_TESTS                                                                               \
    GRADIENT_TESTS TEST(classifiers), TEST(rope_table), TEST(registries),                          \
        TEST(accumulation_presets), TEST(causality_presets), TEST(init_presets),                   \
        TEST(memory_presets), TEST(recompute_values), TEST(update_rules), TEST(train_step),        \
        TEST(scratch), TEST(checkpoints), TEST(version_1), TEST(version_1_change),                 \
        TEST(rule_changes), TEST(state_shape), TEST(rules_in_roles), TEST(frozen), TEST(factors),  \
        TEST(merges), TEST(freeze_errors), TEST(freeze_resume), TEST(shards), TEST(readout),       \
        TEST(earlier_averages)

/* Runs the tests of a table, which save into a folder of their own. */
static void run_in_folder(const Test *tests, int count, int argc, char **argv) {
    if (!mkdtemp(folder)) die("cannot make %s", folder);
    check_run(tests, count, argc, argv);
    if (rmdir(folder)) check(0, "something is left in %s", folder);
}

#ifndef CM_CUDA
static void test_fixtures(void) {
    static const char *const names[] = {"gpt2", "llama", "speedrun"};
    for (int i = 0; i < COUNT_OF(names); i++) check_fixture(names[i], NULL);
}

static const Test tests[] = {TEST(fixtures), MEMORY_TESTS};

int main(int argc, char **argv) {
    /* One thread is the quickest for models of this size; some tests set more. */
    static Config machine;
    machine.threads = 1;
    if (device_setup(&machine, NULL, err)) die("%s", err);
    run_in_folder(tests, COUNT_OF(tests), argc, argv);
    return check_done();
}
#endif

#endif
