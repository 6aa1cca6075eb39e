/*
The records of the modded-nanoGPT optimization benchmark against an independent writing of it in
PyTorch (dev/reference/speedrun.py): 20 steps of a small model by the trainer's own functions, with
each record's flags. The loss of every step, and gradient and parameters of every piece of every
tensor after every step, are compared. The initialisations and the preset are compared with the
benchmark's definition. Built in float, in double (build/test_speedrun_double), and for the emulated
device (build/emu/test_speedrun_fp32).

CM_TEST_ERRORS=1 prints the worst relative error of each record. dev/reference/README.md has them.
*/
#ifdef CM_CUDA
#include "../../llmc/cuda/backend.cuh"
enum { STEPS_MOST = 10 }; /* the emulator is slow; by then all that begins in a run has begun */
#else
enum { STEPS_MOST = 1000 };
#endif
#include "model_cases.h"

enum { SKETCHES = 8, SKETCH_SEED = 20, PIECE_MAX = 1024, PARTS_MAX = 3 };

/* ---------------------------------------------------------------------------------------------- */
/* sketches: a few random sums that stand for all numbers of a piece */

/* The first n numbers of row k of the matrix that the fixture was made with. */
static const double *sketch_row(int k) {
    static double rows[SKETCHES][PIECE_MAX];
    if (rows[0][0] == 0)
        for (int i = 0; i < SKETCHES; i++)
            for (int j = 0; j < PIECE_MAX; j++)
                rows[i][j] = 2 * rng_uniform(SKETCH_SEED, (uint64_t)i, (uint64_t)j) - 1;
    return rows[k];
}

static void sketch(double out[SKETCHES], const double *x, size_t n) {
    if (n > PIECE_MAX) fixture_die("a piece has %zu numbers; PIECE_MAX is %d", n, PIECE_MAX);
    for (int k = 0; k < SKETCHES; k++) {
        const double *row = sketch_row(k);
        out[k] = 0;
        for (size_t i = 0; i < n; i++) out[k] += row[i] * x[i];
    }
}

static double norm_of(const double *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

/* Pieces of a layer of a tensor: query, key and value of wqkv and bqkv. */
static int parts_of(int id) { return id == T_WQKV || id == T_BQKV ? PARTS_MAX : 1; }

/* ---------------------------------------------------------------------------------------------- */
/* a run of a record */

/* The worst relative errors of a record, and where the last two are. */
typedef struct {
    double loss, grad, move, readout;
    char grad_at[64], move_at[64];
} Worst;

typedef struct {
    const Fixture *fx;
    const char *name; /* of the record */
    Config config;
    Model model;
    const int *x; /* (steps, rows, T + 1) */
    int rows, steps;
    floatM *start; /* the initial parameters */
    Worst worst;
} Record;

static void load_init(Record *r) {
    Model *m = &r->model;
    const char *kind = fixture_getf(r->fx, "s1", "%s.init", r->name)->s1;
    floatM *p = array(elements(m));
    memset(p, 0, elements(m) * sizeof *p);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->p.r.t[id];
        if (!t->layers) continue;
        const FixtureRecord *init = fixture_getf(r->fx, "f4", "init.%s.%s", kind, t->name);
        if (init->count != t->size) fixture_die("%s has another size", init->name);
        for (size_t i = 0; i < t->size; i++) p[param_at(t) + i] = (floatM)init->f4[i];
    }
    device_upload(m->p.param, p, elements(m) * sizeof *p);
    refresh_weights(m);
    r->start = p;
}

/* Inputs and targets of micro-batch i of a step. */
static void micro_batch(const Record *r, int step, int i, int *x, int *y) {
    int B = r->model.s.B, T = r->model.s.T;
    const int *row = r->x + ((size_t)step * (size_t)r->rows + (size_t)i * (size_t)B) * (T + 1);
    for (int b = 0; b < B; b++, row += T + 1)
        for (int t = 0; t < T; t++) {
            x[b * T + t] = row[t];
            y[b * T + t] = row[t + 1];
        }
}

/* The mean loss of a step's batch; with `train` its gradient too, as train_step forms both. */
static double pass(Record *r, int step, int train) {
    Model *m = &r->model;
    int micro_batches = (int)(r->config.total_batch_tokens / m->s.N), x[512], y[512];
    double tokens = (double)r->config.total_batch_tokens;
    if (m->s.N > COUNT_OF(x)) fixture_die("a micro-batch has %d tokens", m->s.N);
    if (train) clear_gradients(m);
    for (int i = 0; i < micro_batches; i++) {
        micro_batch(r, step, i, x, y);
        m->fresh = i == 0;
        if (train) {
            accumulate_gradient(m, x, y, 1 / tokens);
            continue;
        }
        send_batch(m, x, y, m->s);
        model_forward(m, m->s);
        head_loss(m, m->s, 0);
    }
    return take_loss(m) / tokens;
}

/* ---------------------------------------------------------------------------------------------- */
/* comparisons */

/* Float storage alone moves a weight by 6e-8 of its size, however small the step is. So in float an
   error is relative to how far a piece moved and this much of its size; a bound of 1e-4 then allows
   1e-7 of the size. */
#define MOVE_FLOOR BY_TYPE(0, 1e-3)

/* The relative error of the sketch of got (n numbers). A piece that must be zero must be exactly
   zero. `size` is added to the norm. */
static double piece_error(const double *got, size_t n, const double *want, double size) {
    double is[SKETCHES], zero = norm_of(want, SKETCHES);
    sketch(is, got, n);
    for (int k = 0; k < SKETCHES; k++) is[k] -= want[k];
    if (zero == 0 && size == 0) return norm_of(is, SKETCHES) > 0 ? INFINITY : 0;
    double e = norm_of(is, SKETCHES) / (zero + size);
    return e == e ? e : INFINITY;
}

/* The worst piece of `what` ("grad" or "move") of a step: values (all elements, laid out as the
   parameters), of which `start` is subtracted if it is not NULL. */
static double compare(Record *r, const char *what, int step, const floatM *values,
                      const floatM *start, char at[64]) {
    const Registry *g = &r->model.p.r;
    double most = 0, x[PIECE_MAX], whole[PIECE_MAX], size[SKETCHES];
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &g->t[id];
        if (!t->layers) continue;
        const FixtureRecord *want = fixture_getf(r->fx, "f8", "%s.%s.%s", r->name, what, t->name);
        int pieces = t->layers * parts_of(id);
        size_t n = t->size / (size_t)pieces;
        if (want->count % (size_t)(pieces * SKETCHES)) fixture_die("%s: its shape", want->name);
        for (int i = 0; i < pieces; i++) {
            size_t from = param_at(t) + (size_t)i * n;
            for (size_t j = 0; j < n && n <= PIECE_MAX; j++) {
                whole[j] = (double)values[from + j];
                x[j] = whole[j] - (start ? (double)start[from + j] : 0);
            }
            sketch(size, whole, n);
            double floor = start ? MOVE_FLOOR * norm_of(size, SKETCHES) : 0;
            const double *w = want->f8 + (size_t)(step * pieces + i) * SKETCHES;
            double e = piece_error(x, n, w, floor);
            if (e <= most) continue;
            most = e;
            snprintf(at, 64, "%s, layer %d, part %d, update %d", t->name, i / parts_of(id),
                     i % parts_of(id), step);
        }
    }
    return most;
}

/* Whole tensors, at the steps where the fixture has them. They are stored in float32. */
static void compare_whole(Record *r, const char *what, int step, const floatM *values,
                          const floatM *start, double limit) {
    const FixtureRecord *full = fixture_getf(r->fx, "i4", "%s.full", r->name);
    size_t k = 0;
    while (k < full->count && full->i4[k] != step + 1) k++;
    for (int id = 0; id < TENSORS && k < full->count; id++) {
        const Tensor *t = &r->model.p.r.t[id];
        if (!t->layers) continue;
        const FixtureRecord *want = fixture_getf(r->fx, "f4", "%s.%s.%s", r->name, what, t->name);
        double off = 0, all = 0;
        for (size_t i = 0; i < t->size; i++) {
            double w = (double)want->f4[k * t->size + i];
            double v = (double)values[param_at(t) + i];
            double d = v - (start ? (double)start[param_at(t) + i] : 0) - w;
            off += d * d;
            all += w * w + (start ? MOVE_FLOOR * MOVE_FLOOR * v * v : 0);
        }
        check(sqrt(off) <= limit * sqrt(all), "%s: %s of %s after update %d is off by %.1e",
              r->name, what, t->name, step, sqrt(off / all));
    }
}

/* Whether a tensor's gradient is other than exactly zero, which follows from a zero head and zero
   residual projections: at the first update only the head has one; at the second what lies behind
   these projections has none yet. */
static int has_gradient(int id, int update) {
    if (update >= 2 || id == T_WHEAD || id == T_BHEAD) return 1;
    if (update == 0) return 0;
    return id == T_WTE || id == T_NORM0_W || id == T_NORMF_W || id == T_WO || id == T_BO ||
           id == T_WPROJ || id == T_BPROJ;
}

static void check_zero_init(Record *r, int update, const floatM *g) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r->model.p.r.t[id];
        int pieces = t->layers * parts_of(id);
        for (int i = 0; i < pieces; i++) {
            size_t n = t->size / (size_t)pieces, from = param_at(t) + (size_t)i * n;
            int some = 0;
            for (size_t j = 0; j < n; j++) some |= g[from + j] != 0;
            check(some == has_gradient(id, update), "%s: the gradient of %s, piece %d, is %s",
                  r->name, t->name, i, some ? "not zero" : "zero");
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* records */

/* Bounds, some ten times what is measured. In double both sides differ by rounding that 20 steps
   amplify. In float the loss is a mean of float numbers, and a matrix sign amplifies small singular
   values up to 2^12 times. */
#define LOSS_LIMIT BY_TYPE(1e-13, 1e-6)
#define GRAD_LIMIT BY_TYPE(1e-12, 1e-4)
#define MOVE_LIMIT BY_TYPE(2e-12, 5e-4)
/* What is stored in float32 is off by 3e-8. */
#define WHOLE_LIMIT BY_TYPE(1e-7, 5e-4)

/* The trainer's NorMuon adds 1e-10 to the root of a line's mean square, about 0.05; the benchmark
   takes the root of at least 1e-10 of it. So the two differ by about 2e-9, in double too. */
static double normuon_or(const Record *r, double limit) {
    return strcmp(r->name, "normuon") ? limit : fmax(limit, 1e-8);
}

static void note(double *worst, char *at, double e, const char *where) {
    if (e <= *worst) return;
    *worst = e;
    snprintf(at, 64, "%s", where);
}

/* The loss of the averaged weights on the first batch, and at the end these weights. */
static void check_readout(Record *r, int step) {
    Model *m = &r->model;
    const FixtureRecord *losses = fixture_getf(r->fx, "f8", "%s.readout.losses", r->name);
    int averaged = readout_begin(&m->p, m->c);
    check(averaged == (step + 1 >= m->c->ema_from), "%s: readout after %d updates: %d", r->name,
          step + 1, averaged);
    refresh_weights(m);
    double e = relative_error(pass(r, 0, 0), losses->f8[step], 1);
    check(e < normuon_or(r, LOSS_LIMIT), "%s: the readout's loss after update %d is off by %.1e",
          r->name, step, e);
    r->worst.readout = fmax(r->worst.readout, e);
    if (step + 1 == r->steps) {
        char at[64] = "";
        floatM *p = fetch(m->p.param, elements(m));
        e = compare(r, "readout.sketch", 0, p, r->start, at);
        check(e < normuon_or(r, MOVE_LIMIT), "%s: the readout's %s is off by %.1e", r->name, at, e);
        r->worst.readout = fmax(r->worst.readout, e);
    }
    if (averaged) readout_end(&m->p);
    refresh_weights(m);
}

static void check_step(Record *r, int step) {
    Model *m = &r->model;
    char at[64] = "";
    double want = fixture_getf(r->fx, "f8", "%s.losses", r->name)->f8[step];
    double loss = pass(r, step, 1), e = relative_error(loss, want, 1);
    check(e < normuon_or(r, LOSS_LIMIT), "%s: loss %.15g of update %d, want %.15g", r->name, loss,
          step, want);
    r->worst.loss = fmax(r->worst.loss, e);
    if (step == 0)
        check(relative_error(loss, log((double)m->s.V), 1) < BY_TYPE(1e-14, 1e-6),
              "%s: an untrained model has the loss %.15g, not ln %d", r->name, loss, m->s.V);

    floatM *g = fetch(m->p.grad, elements(m));
    if (step < 3) check_zero_init(r, step, g);
    e = compare(r, "grad.sketch", step, g, NULL, at);
    check(e < normuon_or(r, GRAD_LIMIT), "%s: the gradient of %s is off by %.1e", r->name, at, e);
    note(&r->worst.grad, r->worst.grad_at, e, at);
    compare_whole(r, "grad", step, g, NULL, WHOLE_LIMIT);

    optimizer_step(m, step, 1);
    floatM *p = fetch(m->p.param, elements(m));
    e = compare(r, "move.sketch", step, p, r->start, at);
    check(e < normuon_or(r, MOVE_LIMIT), "%s: the movement of %s is off by %.1e", r->name, at, e);
    note(&r->worst.move, r->worst.move_at, e, at);
    compare_whole(r, "move", step, p, r->start, WHOLE_LIMIT);
    if (m->c->ema_from) check_readout(r, step);
    free(arrays[--num_arrays]); /* p and g */
    free(arrays[--num_arrays]);
}

static void check_record(const Fixture *fx, const char *name) {
    static Record r;
    memset(&r, 0, sizeof r);
    char flags[2048];
    snprintf(flags, sizeof flags, "%s %s", fixture_text(fx, "base"),
             fixture_getf(fx, "s1", "%s.flags", name)->s1);
    r.fx = fx;
    r.name = name;
    r.config = config_of(flags, "");
    const FixtureRecord *tokens = fixture_get(fx, "tokens", "i4");
    r.x = tokens->i4;
    r.steps = (int)tokens->dims[0];
    r.rows = (int)tokens->dims[1];
    check(r.config.steps == r.steps && r.config.seq_len + 1 == (int)tokens->dims[2] &&
              r.config.total_batch_tokens == (int64_t)r.rows * r.config.seq_len,
          "%s: flags and tokens disagree", name);
    create(&r.model, &r.config);
    load_init(&r);
    for (int step = 0; step < min_int(r.steps, STEPS_MOST); step++) check_step(&r, step);
    if (getenv("CM_TEST_ERRORS"))
        printf("%-12s loss %.1e  gradient %.1e (%s)  movement %.1e (%s)  readout %.1e\n", name,
               r.worst.loss, r.worst.grad, r.worst.grad_at, r.worst.move, r.worst.move_at,
               r.worst.readout);
    model_free(&r.model);
    release();
}

/* On the emulator, which is slow, a record is left out if it differs from another only in numbers
   that are computed on the host. */
static int differs_in_numbers(const char *name) {
    static const char *const names[] = {"muon",       "muon-12",  "adamw-tuned",
                                        "bi-maxwell", "decay-lr", "phases"};
    for (int i = 0; ON_CUDA && i < COUNT_OF(names); i++)
        if (!strcmp(name, names[i])) return 1;
    return 0;
}

static void test_records(void) {
    Fixture *fx = fixture_load("dev/test/fixtures/speedrun_records.fix");
    char name[32];
    int records = 0;
    for (const char *p = fixture_text(fx, "records"); fixture_word(&p, name, sizeof name);) {
        if (!differs_in_numbers(name)) check_record(fx, name);
        records++;
    }
    check(records == 11, "%d records", records);
    fixture_free(fx);
}

/* ---------------------------------------------------------------------------------------------- */
/* the two initialisations */

typedef enum { ALL_ZERO, ALL_ONE, NORMAL, UNIFORM } Distribution;

/* n numbers from a distribution of mean 0: `size` is the standard deviation of NORMAL and the bound
   of UNIFORM. Statistics may be off by five of their own standard deviations. */
static void check_distribution(const char *name, const floatM *x, size_t n, Distribution kind,
                               double size) {
    double sum = 0, squares = 0, most = 0, std = kind == NORMAL ? size : size / sqrt(3);
    size_t far = 0;
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i];
        sum += v;
        squares += v * v;
        most = fmax(most, fabs(v));
        far += fabs(v) > std;
    }
    if (kind == ALL_ZERO || kind == ALL_ONE) {
        double each = kind == ALL_ONE;
        for (size_t i = 0; i < n; i++)
            if ((double)x[i] != each) {
                check(0, "%s[%zu] is %g, not %g", name, i, (double)x[i], each);
                return;
            }
        check(n > 0, "%s is empty", name);
        return;
    }
    double root = sqrt((double)n), mean = sum / (double)n, is = sqrt(squares / (double)n);
    check(fabs(mean) < 5 * std / root, "%s: mean %g of %zu numbers", name, mean, n);
    check(fabs(is / std - 1) < 5 / sqrt(2.0 * (double)n), "%s: standard deviation %g, want %g",
          name, is, std);
    /* The share beyond one standard deviation: 1 - erf(1/sqrt 2), or 1 - 1/sqrt 3. */
    double share = kind == NORMAL ? 0.3173 : 0.4226;
    check(fabs((double)far / (double)n - share) < 2.5 / root, "%s: a share of %g, not %g, is large",
          name, (double)far / (double)n, share);
    if (kind == UNIFORM)
        check(most <= size && most > size * (1 - 10 / (double)n), "%s: the largest is %g of %g",
              name, most, size);
    else check(most > 2.5 * std, "%s: the largest of %zu is %g", name, n, most);
}

/* Distribution and size of a tensor, as the benchmark defines them. */
static Distribution definition_of_init(int id, int torch, int C, double *size) {
    *size = 0;
    switch (id) {
    case T_WTE: *size = 1; return NORMAL;
    case T_NORM0_W:
    case T_NORM1_W:
    case T_NORM2_W:
    case T_NORMF_W: return ALL_ONE;
    case T_WQKV:
    case T_WFC: *size = torch ? 1 / sqrt(C) : sqrt(0.33 / C); return torch ? UNIFORM : NORMAL;
    case T_BQKV:
    case T_BFC: *size = 1 / sqrt(C); return torch ? UNIFORM : ALL_ZERO;
    default: return ALL_ZERO; /* projections to the stream, the head, and their biases */
    }
}

static void test_init(void) {
    static Model m;
    for (int torch = 0; torch < 2; torch++) {
        Config c = config_of("--preset speedrun --layers 3 --width 128 --heads 4 --seq-len 8 "
                             "--vocab 1024 --batch-size 1",
                             torch ? "--init torch" : "--init speedrun");
        create(&m, &c);
        check(!model_init(&m, err), "%s", err);
        floatM *p = fetch(m.p.param, elements(&m));
        int tensors = 0;
        for (int id = 0; id < TENSORS; id++) {
            const Tensor *t = &m.p.r.t[id];
            if (!t->layers) continue;
            double size;
            Distribution kind = definition_of_init(id, torch, c.width, &size);
            int pieces = t->layers * parts_of(id);
            for (int i = 0; i < pieces; i++) {
                char name[64];
                snprintf(name, sizeof name, "init %s, %s, piece %d", torch ? "torch" : "speedrun",
                         t->name, i);
                size_t n = t->size / (size_t)pieces;
                check_distribution(name, p + param_at(t) + (size_t)i * n, n, kind, size);
            }
            tensors++;
        }
        check(tensors == 15, "%d tensors", tensors);
        model_free(&m);
        release();
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* the preset at its full size */

/* Numbers that follow from the benchmark's definition. */
static void test_preset(void) {
    static char text[] = "--preset speedrun --optimizer muon";
    Config c = config_of(text, "--total-batch-tokens 524288");
    Registry r = registry_build(&c);
    size_t matrices = 0, vectors = 0;
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r.t[id];
        if (t->role == ROLE_QKV || t->role == ROLE_O || t->role == ROLE_MLP) matrices += t->size;
        if (t->layers && t->role == ROLE_SCALAR) vectors += t->size;
    }
    check(r.count == 162354816, "%zu parameters", r.count);
    check(matrices == 84934656 && vectors == 153216, "%zu in matrices, %zu in vectors", matrices,
          vectors);
    check(shape_of(&c).Vp == 50304, "the vocabulary is padded");
    check(relative_error(c.optim.adam_eps * 524288, 1e-10, 1e-30) < 1e-7, "AdamW's epsilon is %g",
          c.optim.adam_eps);
    check(relative_error(c.norm_eps, 0x1p-23, 1e-30) < 1e-7, "the norm's epsilon is %g",
          c.norm_eps);
    check(c.steps == 3250 && c.val_tokens == 20 * 524288 && c.data_order == DATA_SEQUENTIAL &&
              c.grad_clip == 0,
          "steps, validation, data or clipping");
    check(relative_error(schedule_lr(&c.schedule, 3249), 1 / (0.7 * 3250), 1e-30) < 1e-9 &&
              schedule_lr(&c.schedule, 0) == 1 && schedule_lr(&c.schedule, 974) == 1,
          "the last update has the rate %g", schedule_lr(&c.schedule, 3249));
}

static const Test tests[] = {SLOW_TEST(records), TEST(init), TEST(preset)};

int main(int argc, char **argv) {
    static Config machine;
    machine.threads = 1;
    if (device_setup(&machine, NULL, err)) die("%s", err);
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
