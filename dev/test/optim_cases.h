/*
Shared by the tests of the optimizers: memory and random numbers of a test, exact decompositions,
the options of a fixture's case, and pairs of weights (W_Q, W_K) or (W_O, W_V) with their steps,
directions and gauges. A test includes this file first.

Programs are built with float and with double. TOL(f, d) is f in the first and d in the second.
*/
#ifndef CM_OPTIM_CASES_H
#define CM_OPTIM_CASES_H

#include "backend.h"

/* The plan cuts layers into chunks whose scratch fits this budget. A variable replaces the constant
   here, so that a test can vary the budget. */
#undef LA_SCRATCH_BUDGET
static size_t scratch_budget = (size_t)8 << 20;
#define LA_SCRATCH_BUDGET scratch_budget

#include "../../llmc/optim/plan.h"
#include "check.h"
#include "draw.h"
#include "fixture.h"

#ifdef CM_DOUBLE
#define TOL(f, d) (d)
#else
#define TOL(f, d) (f)
#endif

/* ---------------------------------------------------------------------------------------------- */
/* Memory and random numbers                                                                      */

/* release() frees everything that a test has allocated. */
static void *pool[1 << 16];
static int pool_used;

static inline void *take_bytes(size_t bytes) {
    void *p = calloc(bytes + 1, 1);
    if (!p || pool_used == 1 << 16) die("out of memory");
    return pool[pool_used++] = p;
}

static inline void release(void) {
    while (pool_used) free(pool[--pool_used]);
}

static inline double *take(size_t n) { return (double *)take_bytes(n * sizeof(double)); }
static inline floatM *take_m(size_t n) { return (floatM *)take_bytes(n * sizeof(floatM)); }

static inline floatM *copy_of(const floatM *x, size_t n) {
    floatM *y = take_m(n);
    memcpy(y, x, n * sizeof *y);
    return y;
}

static inline double normal(void) { return rng_normal(draw_seed, draw_stream, draw_count++); }
static inline double uniform(void) { return 0.5 + 0.5 * draw(); } /* [0, 1) */
static inline int pick(int lo, int hi) { return lo + (int)(uniform() * (hi - lo + 1)); }

static inline double *normals(size_t n) {
    double *x = take(n);
    for (size_t i = 0; i < n; i++) x[i] = normal();
    return x;
}

static inline floatM *normals_m(size_t n, double scale) {
    floatM *x = take_m(n);
    for (size_t i = 0; i < n; i++) x[i] = (floatM)(scale * normal());
    return x;
}

/* An arena of exactly the size that a rule asks for. It is full of NaN, so that reading a number
   that was never written shows. */
static inline Arena arena_of(size_t size) {
    Arena a = {take_m(size), size, 0};
    for (size_t i = 0; i < size; i++) a.p[i] = (floatM)NAN;
    return a;
}

/* Reports a rule that asked for too little scratch or did not give it back. */
static inline void arena_end(const Arena *a, const char *what) {
    check(a->p != NULL && a->used == 0,
          "%s: %zu numbers of scratch were too few, or %zu are left in use", what, a->size,
          a->used);
}

static inline void run_msign(Mat X, int which, int bf16) {
    Arena none = {NULL, 0, 0};
    msign_by(mat_dense(NULL, mat_count(X), X.rows, X.cols), which, bf16, &none);
    Arena arena = arena_of(none.size);
    msign_by(X, which, bf16, &arena);
    arena_end(&arena, "msign");
}

static inline void run_invroot(Mat R, Mat G, double damping, double power, int which) {
    Arena none = {NULL, 0, 0};
    Mat shape = mat_dense(NULL, mat_count(G), G.rows, G.cols);
    invroot_power(shape, shape, damping, power, which, &none);
    Arena arena = arena_of(none.size);
    invroot_power(R, G, damping, power, which, &arena);
    arena_end(&arena, "invroot");
}

/* The exponents of tests of scale: 2^k times a matrix, down to the smallest normal floats.
   Multiples of 8, so that roots of roots are exact too. */
static const int scale_exponents[] = {-120, -104, -64, -32, -8, 8, 32, 64, 96};
enum { SCALES = (int)(sizeof scale_exponents / sizeof scale_exponents[0]) };

/* n numbers of magnitudes from 1 to 2, so that every power of two times them is exact. */
static inline floatM *near_one(size_t n) {
    floatM *x = take_m(n);
    for (size_t i = 0; i < n; i++) x[i] = (floatM)((normal() < 0 ? -1 : 1) * (1 + uniform()));
    return x;
}

/* 2^k x */
static inline floatM *times_power(const floatM *x, size_t n, int k) {
    floatM *y = take_m(n);
    for (size_t i = 0; i < n; i++) y[i] = (floatM)ldexp((double)x[i], k);
    return y;
}

/* Why a matrix had no root since the last call, in words, and "" if all had one. On CUDA it is a
   failure of the machine, which is forgotten. */
static inline const char *why_rootless(void) {
#ifdef CM_CUDA
    static char why[ERR_LEN];
    snprintf(why, sizeof why, "%s", device_failure() ? device_failure() : "");
    cm_gpu.failure[0] = 0;
    return why;
#else
    int why = la_rootless();
    return why & LA_INDEFINITE ? "not positive definite" : why ? "not finite" : "";
#endif
}

/* Runs a step in scratch of the size that was measured. */
static inline void run_step_of(Step step) {
    Arena arena = arena_of(step_scratch(&step));
    step.arena = &arena;
    step_run(&step);
    arena_end(&arena, step.rule->flag);
}

static inline Leg leg_of(Mat W, Mat G, Mat M, int heads, int by_column) {
    Leg l;
    memset(&l, 0, sizeof l);
    l.W = W;
    l.G = G;
    l.M = M;
    l.heads = heads;
    l.by_column = by_column;
    l.age = 1;
    return l;
}

/* Step number 1 of a rule, with legs still to be set. */
static inline Step step_of(RuleId rule, const OptimOptions *o, double lr, double wd) {
    Step s;
    memset(&s, 0, sizeof s);
    s.rule = &rule_table[rule];
    s.options = o;
    s.legs = 1;
    s.lr = lr;
    s.weight_decay = wd;
    s.momentum = o->momentum;
    s.beta1 = o->adam_beta1;
    s.beta2 = o->adam_beta2;
    s.gscale = 1;
    s.coupling_age = 1;
    return s;
}

/* Muon on a matrix or, with heads, on blocks of its rows (by_column: of its columns). */
static inline void muon_update(Leg l, const OptimOptions *o, double beta, double lr, double wd,
                               double gscale) {
    Step s = step_of(l.heads ? RULE_MUON_HEAD : RULE_MUON, o, lr, wd);
    s.leg[0] = l;
    s.momentum = beta;
    s.gscale = gscale;
    run_step_of(s);
}

/* AdamW with second moments v, which are laid out as a dense W. The first step is number 1. */
static inline void adamw_update(Leg l, floatM *v, const OptimOptions *o, double lr, double wd,
                                double gscale, int step) {
    Step s = step_of(RULE_ADAMW, o, lr, wd);
    s.leg[0] = l;
    s.leg[0].state[0] = v;
    s.gscale = gscale;
    s.leg[0].age = step;
    run_step_of(s);
}

/* ---------------------------------------------------------------------------------------------- */
/* Exact decompositions of small dense row-major matrices in double                               */

/* C (m,n) = op(A) op(B) with inner dimension k; ta: A is stored (k,m), tb: B is stored (n,k). */
static inline void multiply(double *C, const double *A, int ta, const double *B, int tb, int m,
                            int n, int k) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int p = 0; p < k; p++)
                sum += (ta ? A[p * m + i] : A[i * k + p]) * (tb ? B[j * k + p] : B[p * n + j]);
            C[i * n + j] = sum;
        }
}

static inline double *product(const double *A, int ta, const double *B, int tb, int m, int n,
                              int k) {
    double *C = take((size_t)m * n);
    multiply(C, A, ta, B, tb, m, n, k);
    return C;
}

/* One-sided Jacobi SVD of a tall T (M,N): rotates the columns of T until they are orthogonal.
   T becomes U S, V (N,N) is the product of the rotations, s holds the norms of the columns,
   unsorted. */
static inline void jacobi_svd(double *T, double *V, double *s, int M, int N) {
    for (int i = 0; i < N * N; i++) V[i] = i % (N + 1) == 0;
    for (int sweep = 0, turned = 1; turned && sweep < 60; sweep++) {
        turned = 0;
        for (int p = 0; p < N; p++)
            for (int q = p + 1; q < N; q++) {
                double a = 0, b = 0, g = 0;
                for (int i = 0; i < M; i++) {
                    a += T[i * N + p] * T[i * N + p];
                    b += T[i * N + q] * T[i * N + q];
                    g += T[i * N + p] * T[i * N + q];
                }
                if (fabs(g) <= 1e-15 * sqrt(a * b) || g == 0) continue;
                turned = 1;
                double zeta = (b - a) / (2 * g);
                double t = (zeta >= 0 ? 1 : -1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
                double c = 1 / sqrt(1 + t * t), sn = c * t;
                for (int i = 0; i < M + N; i++) {
                    double *row = i < M ? T + i * N : V + (i - M) * N, x = row[p], y = row[q];
                    row[p] = c * x - sn * y;
                    row[q] = sn * x + c * y;
                }
            }
    }
    for (int j = 0; j < N; j++) {
        double sum = 0;
        for (int i = 0; i < M; i++) sum += T[i * N + j] * T[i * N + j];
        s[j] = sqrt(sum);
    }
}

static inline int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* The min(m,n) singular values of X (m,n), largest first. */
static inline double *singular_values(const double *X, int m, int n) {
    int M = max_int(m, n), N = min_int(m, n);
    double *T = take((size_t)M * N), *V = take((size_t)N * N), *s = take((size_t)N);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) T[i * N + j] = m >= n ? X[i * n + j] : X[j * n + i];
    jacobi_svd(T, V, s, M, N);
    qsort(s, (size_t)N, sizeof *s, descending);
    return s;
}

static inline double operator_norm(const double *X, int m, int n) {
    return singular_values(X, m, n)[0];
}

static inline double nuclear_norm(const double *X, int m, int n) {
    const double *s = singular_values(X, m, n);
    double sum = 0;
    for (int i = 0; i < min_int(m, n); i++) sum += s[i];
    return sum;
}

static inline double frobenius(const double *X, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += X[i] * X[i];
    return sqrt(sum);
}

/* U V^T of the thin SVD of X (m,n). Singular values of rounding size count as zero. */
static inline double *exact_sign(const double *X, int m, int n) {
    int M = max_int(m, n), N = min_int(m, n);
    double *T = take((size_t)M * N), *V = take((size_t)N * N), *s = take((size_t)N);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) T[i * N + j] = m >= n ? X[i * n + j] : X[j * n + i];
    double floor = 1e-13 * frobenius(X, (size_t)m * n);
    jacobi_svd(T, V, s, M, N);
    for (int i = 0; i < M * N; i++) T[i] = s[i % N] > floor ? T[i] / s[i % N] : 0;
    return m >= n ? product(T, 0, V, 1, M, N, N) : product(V, 0, T, 1, N, M, N);
}

/* (G + damping I)^power of a symmetric G (k,k), where G + damping I is positive definite. */
static inline double *exact_power(const double *G, int k, double damping, double power) {
    double *T = take((size_t)k * k), *V = take((size_t)k * k), *s = take((size_t)k);
    for (int i = 0; i < k * k; i++) T[i] = G[i] + (i % (k + 1) == 0 ? damping : 0);
    jacobi_svd(T, V, s, k, k);
    for (int i = 0; i < k * k; i++) T[i] = V[i] * pow(s[i % k], power);
    return product(T, 0, V, 1, k, k, k);
}

static inline double *exact_rroot(const double *G, int k, double damping) {
    return exact_power(G, k, damping, -0.5);
}

/* A random orthogonal matrix. */
static inline double *orthogonal(int k) { return exact_sign(normals((size_t)k * k), k, k); }

static inline double *inverse(const double *A, int k) {
    double *L = take((size_t)k * k), *R = take((size_t)k * k);
    memcpy(L, A, (size_t)k * k * sizeof *L);
    for (int i = 0; i < k; i++) R[i * k + i] = 1;
    for (int c = 0; c < k; c++) {
        int best = c;
        for (int r = c; r < k; r++) best = fabs(L[r * k + c]) > fabs(L[best * k + c]) ? r : best;
        for (int j = 0; j < k; j++) {
            double l = L[c * k + j], x = R[c * k + j];
            L[c * k + j] = L[best * k + j];
            L[best * k + j] = l;
            R[c * k + j] = R[best * k + j];
            R[best * k + j] = x;
        }
        for (int r = 0; r < k; r++) {
            double f = r == c ? 0 : L[r * k + c] / L[c * k + c];
            for (int j = 0; j < k; j++) {
                L[r * k + j] -= f * L[c * k + j];
                R[r * k + j] -= f * R[c * k + j];
            }
        }
    }
    for (int i = 0; i < k * k; i++) R[i] /= L[i / k * (k + 1)];
    return R;
}

/* ---------------------------------------------------------------------------------------------- */
/* Fixtures                                                                                       */

#define FIELD(NAME) offsetof(OptimOptions, NAME)
static const Flag optim_flags[] = {
#include "../../llmc/optim/options.def"
};
#undef FIELD
enum { OPTIM_FLAG_COUNT = (int)(sizeof optim_flags / sizeof optim_flags[0]) };

static inline OptimOptions default_options(void) {
    OptimOptions o;
    memset(&o, 0, sizeof o);
    flags_defaults(optim_flags, OPTIM_FLAG_COUNT, &o);
    return o;
}

static const char *const table_names[] = {"pe8", "quintic5", "quintic5_nv", "simple12", "pe8-lora"};

/* Options of a case through the flag table, as a user would set them. */
static inline OptimOptions case_options(const Fixture *fx, const char *name) {
    char value[64], key[64], err[ERR_LEN] = "";
    OptimOptions o = default_options();
    for (int i = 0; i < OPTIM_FLAG_COUNT; i++) {
        snprintf(key, sizeof key, "%s", optim_flags[i].name);
        for (char *p = key; *p; p++) *p = *p == '-' ? '_' : *p;
        if (!strcmp(key, "circuit")) continue; /* in a fixture, qk or ov: the circuit of the case */
        if (!case_option(fx, name, key, value, sizeof value)[0]) continue;
        if (!strcmp(key, "nesterov")) strcpy(value, value[0] == '1' ? "on" : "off");
        check(!flags_set(optim_flags, OPTIM_FLAG_COUNT, &o, NULL, optim_flags[i].name, value, err),
              "%s: %s", name, err);
    }
    return o;
}

/* A record of a case. It is stored with the case or in the data set that the case names. */
static inline const FixtureRecord *case_record(const Fixture *fx, const char *name, const char *key,
                                               int step) {
    char data[32];
    if (case_option(fx, name, "data", data, sizeof data)[0])
        return fixture_getf(fx, "f4", "data.%s.%s.%d", data, key, step);
    return fixture_getf(fx, "f4", "case.%s.%s.%d", name, key, step);
}

static inline floatM *floats_of(const FixtureRecord *r) {
    floatM *x = take_m(r->count);
    for (size_t i = 0; i < r->count; i++) x[i] = (floatM)r->f4[i];
    return x;
}

/* ||x - r|| / ||r - start||: the error relative to the step of the rule. An error relative to the
   weight would hide errors of the step. NULL for start means zero. */
static inline double moved_error(const floatM *x, const FixtureRecord *r,
                                 const FixtureRecord *start) {
    double d = 0, s = 0;
    for (size_t i = 0; i < r->count; i++) {
        double e = (double)x[i] - (double)r->f4[i],
               t = (double)r->f4[i] - (start ? (double)start->f4[i] : 0);
        d += e * e;
        s += t * t;
    }
    double e = s > 0 ? sqrt(d / s) : d > 0 ? INFINITY : 0;
    return e == e ? e : INFINITY;
}

/* Expected weights are rounded to float32, which costs up to 6e-8 of a weight and so 3e-6 of its
   displacement, where that is 1/50 of the weight. In float, the sign and the root add up to 1e-5
   (dev/reference/README.md). */
#define WEIGHT_TOL TOL(1e-4, 1e-5)

/* Compares a tensor after a step with the record of the case, if there is one. Returns 1 if so. */
static inline int check_state(const Fixture *fx, const char *name, const char *kind,
                              const char *leg, int step, const floatM *x) {
    char record[96], key[8];
    snprintf(key, sizeof key, "%s%s", kind, leg);
    snprintf(record, sizeof record, "case.%s.%s.%d", name, key, step);
    const FixtureRecord *r = fixture_find(fx, record);
    if (!r) return 0;
    int weight = kind[0] == 'w';
    double e = moved_error(x, r, weight ? case_record(fx, name, key, 0) : NULL);
    check(e < (weight ? WEIGHT_TOL : MOMENTUM_TOL), "%s: %s after step %d is off by %g", name, key,
          step, e);
    return 1;
}

static inline void muon_case(const Fixture *fx, const char *name, const OptimOptions *o) {
    const FixtureRecord *start = case_record(fx, name, "w", 0);
    int rows = (int)start->dims[0], cols = (int)start->dims[1], seen = 0;
    int parts = (int)case_number(fx, name, "parts"), axis = (int)case_number(fx, name, "axis");
    floatM *w = floats_of(start), *m = take_m(start->count);
    for (int step = 1; step <= 3; step++) {
        floatM *g = floats_of(case_record(fx, name, "g", step));
        Leg l = leg_of(mat_dense(w, 1, rows, cols), mat_dense(g, 1, rows, cols),
                       mat_dense(m, 1, rows, cols), parts, axis);
        muon_update(l, o, o->momentum, case_number(fx, name, "lr"),
                    case_number(fx, name, "weight_decay"), 1);
        seen += check_state(fx, name, "w", "", step, w) + check_state(fx, name, "m", "", step, m);
    }
    check(seen >= 1, "%s: the fixture holds no results", name);
}

/* ---------------------------------------------------------------------------------------------- */
/* Pairs of factors                                                                               */

/* Leg 0 is the per-query factor A, W_Q (H k, d) or W_O (d, H k). Leg 1 is the shared factor B, W_K
   or W_V (S k, d). */
typedef struct {
    int layers, H, S, k, d, output; /* output: A is W_O, whose heads are blocks of columns */
} LegShape;

typedef struct {
    LegShape s;
    size_t n[2];
    floatM *W[2], *G[2], *M[2];
} Legs;

static inline int heads_of(LegShape s, int leg) { return leg ? s.S : s.H; }

/* Row r, column c of head h as a (k, d) block, in storage order. */
static inline size_t leg_index(LegShape s, int leg, int layer, int h, int r, int c) {
    size_t width = (size_t)heads_of(s, leg) * s.k, base = (size_t)layer * width * s.d;
    size_t row = (size_t)h * s.k + (size_t)r;
    return base + (s.output && !leg ? (size_t)c * width + row : row * (size_t)s.d + (size_t)c);
}

static inline double *block_of(LegShape s, const floatM *x, int leg, int layer, int h) {
    double *b = take((size_t)s.k * s.d);
    for (int i = 0; i < s.k * s.d; i++)
        b[i] = (double)x[leg_index(s, leg, layer, h, i / s.d, i % s.d)];
    return b;
}

static inline void set_block(LegShape s, floatM *x, int leg, int layer, int h, const double *b) {
    for (int i = 0; i < s.k * s.d; i++)
        x[leg_index(s, leg, layer, h, i / s.d, i % s.d)] = (floatM)b[i];
}

/* The matrices of a leg, one a layer, as they are stored. */
static inline Mat leg_whole(LegShape s, floatM *x, int leg) {
    int rows = heads_of(s, leg) * s.k;
    return s.output && !leg ? mat_dense(x, s.layers, s.d, rows) : mat_dense(x, s.layers, rows, s.d);
}

/* The heads of a leg as (k, d) blocks. */
static inline Mat leg_view(LegShape s, floatM *x, int leg) {
    return mat_blocks(leg_whole(s, x, leg), heads_of(s, leg), s.output && !leg);
}

/* Weights whose rows and heads differ in size, so that a Gram is no multiple of I; Gaussian
   gradients; zero momentum. */
static inline Legs legs_of(LegShape s) {
    Legs p;
    p.s = s;
    for (int leg = 0; leg < 2; leg++) {
        p.n[leg] = (size_t)s.layers * heads_of(s, leg) * s.k * s.d;
        p.W[leg] = take_m(p.n[leg]);
        p.M[leg] = take_m(p.n[leg]);
        p.G[leg] = normals_m(p.n[leg], leg ? 3e-3 : 1e-2);
        for (int i = 0; i < s.layers * heads_of(s, leg); i++) {
            double *b = normals((size_t)s.k * s.d), size = 0.15 + 0.25 * uniform();
            for (int r = 0; r < s.k; r++) {
                double stretch = size * exp(0.4 * normal());
                for (int c = 0; c < s.d; c++) b[r * s.d + c] *= stretch;
            }
            set_block(s, p.W[leg], leg, i / heads_of(s, leg), i % heads_of(s, leg), b);
        }
    }
    return p;
}

static inline Legs legs_copy(const Legs *p) {
    Legs q = *p;
    for (int leg = 0; leg < 2; leg++) {
        q.W[leg] = copy_of(p->W[leg], p->n[leg]);
        q.G[leg] = copy_of(p->G[leg], p->n[leg]);
        q.M[leg] = copy_of(p->M[leg], p->n[leg]);
    }
    return q;
}

static inline Leg legs_leg(const Legs *p, int leg) {
    return leg_of(leg_whole(p->s, p->W[leg], leg), leg_whole(p->s, p->G[leg], leg),
                  leg_whole(p->s, p->M[leg], leg), heads_of(p->s, leg), p->s.output && !leg);
}

static inline void legs_step_scaled(Legs *p, const OptimOptions *o, double lr, double wd,
                                    double gscale) {
    Step s = step_of(RULE_CM, o, lr, wd);
    s.legs = 2;
    for (int leg = 0; leg < 2; leg++) s.leg[leg] = legs_leg(p, leg);
    s.gscale = gscale;
    run_step_of(s);
}

static inline void legs_step(Legs *p, const OptimOptions *o, double lr, double wd) {
    legs_step_scaled(p, o, lr, wd, 1);
}

/* What a step subtracts from the weights at learning rate 1, half of the direction, in storage
   order. */
static inline void half_directions(const Legs *p, const OptimOptions *o, floatM *D[2]) {
    Legs q = legs_copy(p);
    legs_step(&q, o, 1, 0);
    for (int leg = 0; leg < 2; leg++) {
        D[leg] = take_m(p->n[leg]);
        for (size_t i = 0; i < p->n[leg]; i++) D[leg][i] = p->W[leg][i] - q.W[leg][i];
    }
}

/* ||a - b|| / ||b||. If a and b are deltas that were computed as W - (W - delta), rounding costs up
   to 1e-7 |W| / |delta|. */
static inline double distance(const floatM *a, const floatM *b, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        double e = (double)a[i] - (double)b[i];
        d += e * e;
        s += (double)b[i] * (double)b[i];
    }
    double e = s > 0 ? sqrt(d / s) : d > 0 ? INFINITY : 0;
    return e == e ? e : INFINITY;
}

static inline double legs_distance(floatM *const a[2], floatM *const b[2], const size_t n[2]) {
    return fmax(distance(a[0], b[0], n[0]), distance(a[1], b[1], n[1]));
}

static inline void cm_case(const Fixture *fx, const char *name, const OptimOptions *o) {
    int output = case_is(fx, name, "circuit", "ov"), seen = 0;
    const char *leg_name[2] = {output ? "o" : "q", output ? "v" : "k"};
    Legs p;
    p.s.layers = 1;
    p.s.output = output;
    p.s.H = (int)case_number(fx, name, "heads");
    p.s.S = (int)case_number(fx, name, "kv_heads");
    for (int leg = 0; leg < 2; leg++) {
        char key[4] = {'w', leg_name[leg][0], 0};
        const FixtureRecord *start = case_record(fx, name, key, 0);
        p.W[leg] = floats_of(start);
        p.M[leg] = take_m(start->count);
        p.n[leg] = start->count;
        if (leg) {
            p.s.d = (int)start->dims[1];
            p.s.k = (int)start->dims[0] / p.s.S;
        }
    }
    for (int step = 1; step <= 3; step++) {
        for (int leg = 0; leg < 2; leg++) {
            char key[4] = {'g', leg_name[leg][0], 0};
            p.G[leg] = floats_of(case_record(fx, name, key, step));
        }
        legs_step(&p, o, case_number(fx, name, "lr"), case_number(fx, name, "weight_decay"));
        for (int leg = 0; leg < 2; leg++) {
            seen += check_state(fx, name, "w", leg_name[leg], step, p.W[leg]);
            seen += check_state(fx, name, "m", leg_name[leg], step, p.M[leg]);
        }
    }
    check(seen >= 2, "%s: the fixture holds %d results", name, seen);
}

/* ---------------------------------------------------------------------------------------------- */
/* Definitions and expected directions                                                            */

/* Two directions that must be equal differ by rounding only, and two that must not be equal differ
   by more than rounding can explain. Over ten seeds rounding came to 2.2e-6 in float and 8e-15 in
   double at most, and directions that are different were 2e-4 apart at least. */
#define EQUAL_DIRECTIONS TOL(3e-5, 1e-12)
#define OTHER_DIRECTIONS 1e-4

/* The largest relative error of an inverse root of G + damping I. A relative error u of that matrix
   changes its root by up to kappa u / 2, where kappa is its condition, and the steps of an
   iteration add some tens of u. u is five times the rounding error of a number. */
static inline double invroot_bound(double kappa) { return TOL(3e-7, 3e-15) * (40 + kappa / 2); }

static inline const char *describe(const OptimOptions *o, LegShape s) {
    static char text[8][200];
    static int next;
    static const char *const whitening[] = {"both", "pre", "post", "none"};
    char *t = text[next++ % 8];
    snprintf(t, sizeof text[0],
             "%s H=%d S=%d k=%d d=%d whitening=%s isotropic=%d hybrid=%d damping=%g renorm=%d "
             "power=%g relative=%d head_group=%d",
             s.output ? "OV" : "QK", s.H, s.S, s.k, s.d, whitening[o->whitening], o->isotropic,
             o->hybrid, o->damping, o->per_mat_renorm, o->whiten_power, o->damping_form,
             o->head_group);
    return t;
}

/* The whitener C^-A (k,k) of head h of a leg: the inverse root of the partner's Gram, to the power
   A. For the shared leg it is the sum of the Grams of its query heads. */
static inline double *whitener_by_definition(const Legs *p, int leg, int layer, int h,
                                             const OptimOptions *o) {
    LegShape s = p->s;
    int G = s.H / s.S, first = leg ? h * G : h / G;
    int count = leg ? G : 1;
    double *gram = take((size_t)s.k * s.k), *root = take((size_t)s.k * s.k), trace = 0;
    for (int i = 0; i < count; i++) {
        double *w = block_of(s, p->W[1 - leg], 1 - leg, layer, first + i),
               *g = product(w, 0, w, 1, s.k, s.k, s.d);
        for (int e = 0; e < s.k * s.k; e++) gram[e] += g[e];
    }
    for (int i = 0; i < s.k; i++) trace += gram[i * s.k + i] / s.k;
    double damping = o->damping;
    if (o->damping_form == DAMPING_RELATIVE) damping = damping * trace + fmax(0, 0.01 - trace);
    if (!o->isotropic) return exact_power(gram, s.k, damping, -o->whiten_power / 2);
    for (int i = 0; i < s.k; i++) root[i * s.k + i] = pow(trace + damping, -o->whiten_power / 2);
    return root;
}

/* Exact roots, no damping, and the sign table that converges for the widest range. */
static inline OptimOptions exact_options(void) {
    OptimOptions o = default_options();
    o.damping = 0;
    o.inv_root = ROOT_EIGH;
    o.msign = MSIGN_SIMPLE12;
    return o;
}

/* The change of the composed map A^T B (d,d) of one query head that is due to leg 0, to leg 1, or
   to both (leg = 2). */
static inline double *composed(const Legs *p, floatM *const D[2], int leg, int layer, int h) {
    LegShape s = p->s;
    int g = h / (s.H / s.S);
    double *M = take((size_t)s.d * s.d);
    if (leg != 1)
        multiply(M, block_of(s, D[0], 0, layer, h), 1, block_of(s, p->W[1], 1, layer, g), 0, s.d,
                 s.d, s.k);
    if (leg == 0) return M;
    double *N = product(block_of(s, p->W[0], 0, layer, h), 1, block_of(s, D[1], 1, layer, g), 0,
                        s.d, s.d, s.k);
    for (int e = 0; e < s.d * s.d; e++) N[e] += M[e];
    return N;
}

/* Changes the gauge of group g: A becomes R A and B becomes R^-T B. Gradients of the same loss
   become R^-T G_A and R G_B. Directions D of an equivariant rule change like the weights. */
static inline void gauge(Legs *p, int layer, int g, const double *R, floatM *D[2]) {
    LegShape s = p->s;
    int G = s.H / s.S;
    double *I = inverse(R, s.k);
    for (int j = 0; j <= G; j++) {
        int leg = j == G, h = leg ? g : g * G + j;
        for (int what = 0; what < 3; what++) {
            floatM *x = what == 0 ? p->W[leg] : what == 1 ? p->G[leg] : D[leg];
            int contra = leg != (what == 1);
            set_block(
                s, x, leg, layer, h,
                product(contra ? I : R, contra, block_of(s, x, leg, layer, h), 0, s.k, s.d, s.k));
        }
    }
}

enum { ROTATIONS, SIMILARITIES, ALL }; /* O(k), multiples of O(k), GL(k) */

/* Directions of plain Muon on every head (with hybrid, on W_O as a whole), times a factor. */
static inline void muon_directions(const Legs *p, const OptimOptions *options, double factor,
                                   floatM *D[2]) {
    OptimOptions o = *options;
    o.scale = SCALE_NONE;
    o.momentum_form = FORM_SUM;
    o.nesterov = NESTEROV_OFF;
    for (int leg = 0; leg < 2; leg++) {
        Leg l = legs_leg(p, leg);
        if (!leg && p->s.output && o.hybrid) l.heads = 0;
        l.W.p = take_m(p->n[leg]);
        l.M.p = take_m(p->n[leg]);
        muon_update(l, &o, o.momentum, factor, 0, 1);
        D[leg] = take_m(p->n[leg]);
        for (size_t i = 0; i < p->n[leg]; i++) D[leg][i] = -l.W.p[i];
    }
}

#endif
