/*
Tests of the rules for the factors of a product W = W_pre + s A B^T: LoRA-Muon, LoRA-RITE with and
without memory, Spectron, and CM on factors. The steps are built on raw legs, A (m,r) and B^T (r,n)
as stored, without a plan.

The program is built with float and with double. TOL(f, d) is f in the first and d in the second.
*/
#include "optim_cases.h"

/* ---------------------------------------------------------------------------------------------- */
/* Pairs of factors with a loss                                                                   */

/* The loss is 1/2 ||s A B^T - T||^2 of each layer. */
typedef struct {
    int L, m, n, r;
    floatM *W[2], *G[2], *M[2], *state[2][RULE_STATES], *older[2];
    double *target; /* (L, m, n) */
    double scale;   /* s */
    int cold, age, ages;
    double decay;
} Factors;

static size_t leg_size(const Factors *f, int leg) {
    return (size_t)f->L * (size_t)(leg ? f->n : f->m) * (size_t)f->r;
}

/* Random factors whose Grams have different eigenvalues, and zero moments. */
static Factors factors_of(int L, int m, int n, int r, double scale) {
    Factors f;
    memset(&f, 0, sizeof f);
    f.L = L;
    f.m = m;
    f.n = n;
    f.r = r;
    f.scale = scale;
    for (int leg = 0; leg < 2; leg++) {
        size_t size = leg_size(&f, leg), most = size + (size_t)L * r * r;
        f.W[leg] = normals_m(size, 0.4);
        for (size_t i = 0; i < size; i++) { /* index of the rank */
            size_t k = leg ? i / (size_t)n % (size_t)r : i % (size_t)r;
            f.W[leg][i] *= (floatM)(1 + 0.3 * (double)k);
        }
        f.G[leg] = take_m(size);
        f.M[leg] = take_m(size);
        f.older[leg] = take_m(size);
        for (int k = 0; k < RULE_STATES; k++) f.state[leg][k] = take_m(most);
    }
    f.target = normals((size_t)L * m * n);
    return f;
}

static Factors factors_copy(const Factors *f) {
    Factors g = *f;
    for (int leg = 0; leg < 2; leg++) {
        size_t size = leg_size(f, leg), most = size + (size_t)f->L * f->r * f->r;
        g.W[leg] = copy_of(f->W[leg], size);
        g.G[leg] = copy_of(f->G[leg], size);
        g.M[leg] = copy_of(f->M[leg], size);
        g.older[leg] = copy_of(f->older[leg], size);
        for (int k = 0; k < RULE_STATES; k++) g.state[leg][k] = copy_of(f->state[leg][k], most);
    }
    return g;
}

static double *as_double(const floatM *x, size_t n) {
    double *y = take(n);
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

/* A (m,r) or B^T (r,n) of a layer, of an allocation laid out like W. */
static double *part_of(const Factors *f, floatM *const X[2], int leg, int layer) {
    size_t each = leg_size(f, leg) / (size_t)f->L;
    return as_double(X[leg] + (size_t)layer * each, each);
}

static void set_part(const Factors *f, floatM *const X[2], int leg, int layer, const double *x) {
    size_t each = leg_size(f, leg) / (size_t)f->L;
    for (size_t i = 0; i < each; i++) X[leg][(size_t)layer * each + i] = (floatM)x[i];
}

/* A B^T (m,n) of a layer. */
static double *map_of(const Factors *f, int layer) {
    return product(part_of(f, f->W, 0, layer), 0, part_of(f, f->W, 1, layer), 0, f->m, f->n, f->r);
}

/* All layers' s A B^T. */
static double *maps_of(const Factors *f) {
    size_t each = (size_t)f->m * f->n;
    double *all = take((size_t)f->L * each);
    for (int l = 0; l < f->L; l++) {
        const double *one = map_of(f, l);
        for (size_t i = 0; i < each; i++) all[(size_t)l * each + i] = f->scale * one[i];
    }
    return all;
}

/* Sets the factors' gradients, and returns the loss: g_A = s D B, g_B = s D^T A. */
static double set_gradients(Factors *f, double factor) {
    size_t each = (size_t)f->m * f->n;
    double loss = 0;
    for (int l = 0; l < f->L; l++) {
        double *D = map_of(f, l);
        for (size_t i = 0; i < each; i++) {
            D[i] = f->scale * D[i] - f->target[(size_t)l * each + i];
            loss += 0.5 * D[i] * D[i];
            D[i] *= f->scale * factor;
        }
        set_part(f, f->G, 0, l, product(D, 0, part_of(f, f->W, 1, l), 1, f->m, f->r, f->n));
        set_part(f, f->G, 1, l, product(part_of(f, f->W, 0, l), 1, D, 0, f->r, f->n, f->m));
    }
    return loss;
}

/* A step with the gradients that are set. */
static void factors_step(Factors *f, RuleId rule, const OptimOptions *o, double lr, double wd) {
    Step s = step_of(rule, o, lr, wd);
    s.legs = 2;
    s.product_scale = f->scale;
    s.product_cold = f->cold;
    f->age++;
    if (f->ages) {
        s.ages = 2;
        s.decay[0] = o->momentum;
        s.decay[1] = f->decay;
        s.weight[0] = s.weight[1] = 0.5;
    }
    for (int leg = 0; leg < 2; leg++) {
        int rows = leg ? f->r : f->m, cols = leg ? f->n : f->r;
        s.leg[leg] =
            leg_of(mat_dense(f->W[leg], f->L, rows, cols), mat_dense(f->G[leg], f->L, rows, cols),
                   mat_dense(f->M[leg], f->L, rows, cols), 1, !leg);
        s.leg[leg].older[0] = mat_dense(f->older[leg], f->L, rows, cols);
        s.leg[leg].age = f->age;
        for (int k = 0; k < RULE_STATES; k++) s.leg[leg].state[k] = f->state[leg][k];
    }
    run_step_of(s);
}

/* `steps` steps down the loss. */
static void factors_run(Factors *f, RuleId rule, const OptimOptions *o, double lr, double wd,
                        int steps) {
    for (int i = 0; i < steps; i++) {
        set_gradients(f, 1);
        factors_step(f, rule, o, lr, wd);
    }
}

/* X <- A R and R^-1 B^T in all layers. */
static void change_gauge(const Factors *f, floatM *const X[2], const double *R) {
    const double *I = inverse(R, f->r);
    for (int l = 0; l < f->L; l++) {
        set_part(f, X, 0, l, product(part_of(f, X, 0, l), 0, R, 0, f->m, f->r, f->r));
        set_part(f, X, 1, l, product(I, 0, part_of(f, X, 1, l), 0, f->r, f->n, f->r));
    }
}

/* ||a - b|| / ||b - start|| */
static double path_error(const double *a, const double *b, const double *start, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += (a[i] - b[i]) * (a[i] - b[i]);
        s += (b[i] - start[i]) * (b[i] - start[i]);
    }
    double e = sqrt(d / s);
    return e == e ? e : INFINITY;
}

static OptimOptions factor_options(void) {
    OptimOptions o = default_options();
    o.adam_beta1 = 0.9;
    o.adam_beta2 = 0.95;
    o.momentum = 0.9;
    return o;
}

/* Signs and roots without a floor. */
static OptimOptions sharp_options(void) {
    OptimOptions o = factor_options();
    o.inv_root = ROOT_EIGH;
    o.msign = MSIGN_SIMPLE12;
    return o;
}

/* A gauge far from a rotation: condition about 30. */
static double *some_gauge(int r) {
    double *U = orthogonal(r), *V = orthogonal(r), *SV = take((size_t)r * r);
    for (int i = 0; i < r * r; i++) SV[i] = V[i] * 3 * pow(30, -(i / r) / (r > 1 ? r - 1.0 : 1));
    return product(U, 0, SV, 0, r, r, r);
}

static double *multiple_of_identity(int r, double c) {
    double *R = take((size_t)r * r);
    for (int i = 0; i < r; i++) R[i * r + i] = c;
    return R;
}

static const RuleId invariant_rules[] = {RULE_LORA_MUON, RULE_LORA_RITE, RULE_LORA_RITE_CORE};

/* Rates at which a rule's steps are a twentieth of the product. */
static double rate_of(RuleId rule) { return rule == RULE_LORA_RITE ? 0.02 : 0.1; }

/* ---------------------------------------------------------------------------------------------- */
/* Gauges                                                                                         */

/* How far five steps from (A R, B R^-T) end from five steps from (A, B), as products. */
static double gauge_error(RuleId rule, const OptimOptions *o, const double *R, double wd) {
    Factors p = factors_of(2, 13, 9, 4, 1.7), q = factors_copy(&p);
    size_t n = (size_t)p.L * p.m * p.n;
    double *start = maps_of(&p);
    change_gauge(&q, q.W, R);
    factors_run(&p, rule, o, rate_of(rule), wd, 5);
    factors_run(&q, rule, o, rate_of(rule), wd, 5);
    return path_error(maps_of(&q), maps_of(&p), start, n);
}

static void test_gauge(void) {
    OptimOptions o = sharp_options();
    for (int i = 0; i < 3; i++) {
        RuleId rule = invariant_rules[i];
        const char *flag = rule_table[rule].flag;
        for (int escape = 0; escape <= (rule == RULE_LORA_RITE); escape++) {
            o.rite_escape = escape;
            double e = gauge_error(rule, &o, some_gauge(4), 0.3);
            /* The Gram of a gauge of condition 30 has a condition of 1000. */
            check(e < TOL(3e-4, 1e-11), "%s: GL(r) moves the product's path by %g", flag, e);
            e = gauge_error(rule, &o, multiple_of_identity(4, 9), 0.3);
            check(e < TOL(1e-4, 1e-11), "%s: a scalar gauge moves the path by %g", flag, e);
        }
        release();
    }
    /* The floor of pe7 is relative, so a scalar gauge leaves it alone. */
    o.inv_root = ROOT_CANS25;
    double e = gauge_error(RULE_LORA_MUON, &o, multiple_of_identity(4, 9), 0.3);
    check(e < TOL(1e-4, 1e-11), "lora-muon by pe7: a scalar gauge moves the path by %g", e);
    e = gauge_error(RULE_LORA_MUON, &o, orthogonal(4), 0.3);
    check(e < TOL(1e-4, 1e-11), "lora-muon by pe7: a rotation moves the path by %g", e);
    /* Spectron knows rotations only. */
    e = gauge_error(RULE_SPECTRON, &o, orthogonal(4), 0.3);
    check(e < TOL(1e-4, 1e-11), "spectron: a rotation moves the path by %g", e);
    e = gauge_error(RULE_SPECTRON, &o, multiple_of_identity(4, 9), 0);
    check(e > 0.3, "spectron: a scalar gauge moves the path by %g only", e);
    release();
}

/* The step of W = U A (V B)^T is U times the step of A B^T times V^T. */
static void test_equivariance(void) {
    static const RuleId rules[] = {RULE_LORA_MUON, RULE_LORA_RITE, RULE_LORA_RITE_CORE,
                                   RULE_SPECTRON, RULE_CM};
    for (int i = 0; i < COUNT_OF(rules); i++) {
        OptimOptions o = sharp_options();
        Factors p = factors_of(1, 11, 7, 3, 0.8), q = factors_copy(&p);
        double *U = orthogonal(p.m), *V = orthogonal(p.n), *start = maps_of(&p);
        size_t n = (size_t)p.m * p.n;
        set_part(&q, q.W, 0, 0, product(U, 0, part_of(&p, p.W, 0, 0), 0, p.m, p.r, p.m));
        set_part(&q, q.W, 1, 0, product(part_of(&p, p.W, 1, 0), 0, V, 1, p.r, p.n, p.n));
#define TURNED(X) product(product(U, 0, X, 0, p.m, p.n, p.m), 0, V, 1, p.m, p.n, p.n)
        q.target = TURNED(p.target);
        /* Spectron's norms start from the rows, which a rotation changes, so that it is exact only
           once they are. */
        int late = rules[i] == RULE_SPECTRON;
        if (late)
            for (int leg = 0; leg < 2; leg++) {
                Factors *f[2] = {&p, &q};
                for (int k = 0; k < 2; k++)
                    for (int step = 0; step < 400; step++) {
                        floatM s;
                        Arena arena = arena_of(1024);
                        Mat W = mat_dense(f[k]->W[leg], 1, leg ? p.r : p.m, leg ? p.n : p.r);
                        spectral_norms(&s, f[k]->state[leg][0], W, 1, &arena);
                    }
            }
        factors_run(&p, rules[i], &o, rate_of(rules[i]), 0.2, late ? 1 : 4);
        factors_run(&q, rules[i], &o, rate_of(rules[i]), 0.2, late ? 1 : 4);
        double e = path_error(maps_of(&q), TURNED(maps_of(&p)), TURNED(start), n);
        check(e < TOL(1e-4, 1e-11), "%s: rotations of W move its path by %g",
              rule_table[rules[i]].flag, e);
#undef TURNED
        release();
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* What a step is                                                                                 */

/* The halves s dA B^T and s A dB^T (m,n) of the first step of a layer; factors before and after. */
static void halves(const Factors *p, const Factors *q, int layer, double *H[2]) {
    for (int leg = 0; leg < 2; leg++) {
        double *D = part_of(q, q->W, leg, layer), *W = part_of(p, p->W, leg, layer);
        size_t each = leg_size(p, leg) / (size_t)p->L;
        for (size_t i = 0; i < each; i++) D[i] = p->scale * (D[i] - W[i]);
        double *other = part_of(p, p->W, 1 - leg, layer);
        H[leg] = leg ? product(other, 0, D, 0, p->m, p->n, p->r)
                     : product(D, 0, other, 0, p->m, p->n, p->r);
    }
}

/* Each half has the spectral norm eta / 2 whatever s is, and is -(eta / 2) msign(D Q_B) Q_B^T, or
   -(eta / 2) Q_A msign(Q_A^T D), with any orthonormal bases Q of the columns of A and B; the whole
   is at most eta. Two definitions without a root. */
static void test_projectors(void) {
    static const double scales[] = {1, 0.25, 4};
    static const RuleId rules[] = {RULE_LORA_MUON, RULE_LORA_RITE_CORE};
    for (int t = 0; t < 12; t++) {
        RuleId rule = rules[t % 2];
        OptimOptions o = sharp_options();
        int m = pick(5, 14), n = pick(5, 14), r = pick(1, 5);
        double eta = 0.3, *H[2];
        Factors p = factors_of(2, m, n, r, scales[t % 3]), q = factors_copy(&p);
        set_gradients(&q, 1);
        factors_step(&q, rule, &o, eta, 0);
        for (int l = 0; l < 2; l++) {
            halves(&p, &q, l, H);
            double *D = map_of(&p, l), *sum = take((size_t)m * n);
            for (int i = 0; i < m * n; i++) {
                D[i] = p.scale * D[i] - p.target[l * m * n + i];
                sum[i] = H[0][i] + H[1][i];
            }
            double *Q_A = exact_sign(part_of(&p, p.W, 0, l), m, r),
                   *Q_B = exact_sign(part_of(&p, p.W, 1, l), r, n); /* (r,n): the transpose */
            double *left =
                product(exact_sign(product(D, 0, Q_B, 1, m, r, n), m, r), 0, Q_B, 0, m, n, r);
            double *right =
                product(Q_A, 0, exact_sign(product(Q_A, 1, D, 0, r, n, m), r, n), 0, m, n, r);
            for (int i = 0; i < m * n; i++) {
                left[i] *= -eta / 2;
                right[i] *= -eta / 2;
            }
            double e = fmax(relative_l2_dd(H[0], left, (size_t)m * n, 1e-30),
                            relative_l2_dd(H[1], right, (size_t)m * n, 1e-30));
            check(e < TOL(1e-4, 1e-9), "%s, s %g, r %d: a half is %g from its projector form",
                  rule_table[rule].flag, p.scale, r, e);
            for (int leg = 0; leg < 2; leg++) {
                double norm = operator_norm(H[leg], m, n);
                check(fabs(norm / (eta / 2) - 1) < TOL(1e-5, 1e-9),
                      "%s, s %g: a half has norm %.9g, not %g", rule_table[rule].flag, p.scale,
                      norm, eta / 2);
            }
            check(operator_norm(sum, m, n) <= eta * (1 + TOL(1e-5, 1e-9)),
                  "%s: the step of W has norm %g", rule_table[rule].flag, operator_norm(sum, m, n));
        }
        release();
    }
}

/* ||s (A B^T after - before)|| <= eta of Spectron, once its norms are exact. */
static void test_spectron_bound(void) {
    OptimOptions o = sharp_options();
    Factors p = factors_of(1, 12, 8, 3, 2.5);
    double worst = 0;
    for (int step = 0; step < 30; step++) {
        double *before = maps_of(&p), *after;
        factors_run(&p, RULE_SPECTRON, &o, 0.2, 0, 1);
        after = maps_of(&p);
        for (int i = 0; i < p.m * p.n; i++) after[i] -= before[i];
        if (step >= 10) worst = fmax(worst, operator_norm(after, p.m, p.n));
    }
    check(worst <= 0.2 * 1.01 && worst > 0.02, "spectron moves W by %g at a rate of 0.2", worst);
    release();
}

/* One rule by a symmetric root, the other by a triangular one, step by step, with decay. */
static void test_core_is_lora_muon(void) {
    for (int ages = 0; ages < 2; ages++)
        for (int cold = 0; cold < 2; cold++) {
            OptimOptions o = sharp_options();
            Factors p = factors_of(2, 10, 12, 5, 0.5), q;
            p.ages = ages;
            p.decay = 0.5;
            p.cold = cold;
            if (cold) memset(p.W[1], 0, leg_size(&p, 1) * sizeof *p.W[1]);
            q = factors_copy(&p);
            double worst = 0;
            for (int step = 0; step < 6; step++) {
                double *start = maps_of(&p);
                factors_run(&p, RULE_LORA_MUON, &o, 0.1, 0.5, 1);
                factors_run(&q, RULE_LORA_RITE_CORE, &o, 0.1, 0.5, 1);
                worst = fmax(worst,
                             path_error(maps_of(&q), maps_of(&p), start, (size_t)p.L * p.m * p.n));
            }
            check(worst < TOL(1e-4, 1e-11), "lora-rite-core is %g from lora-muon, cold %d", worst,
                  cold);
            release();
        }
}

/* Without gradients the product decays by 1 - eta wd, and not by its square. */
static void test_decay(void) {
    static const RuleId rules[] = {RULE_LORA_MUON, RULE_LORA_RITE_CORE, RULE_CM, RULE_SPECTRON,
                                   RULE_LORA_RITE};
    for (int i = 0; i < COUNT_OF(rules); i++) {
        OptimOptions o = factor_options();
        Factors p = factors_of(2, 6, 9, 3, 3);
        double *before = maps_of(&p), worst = 0, keep = i < 2 ? 1 - 0.1 * 0.7 : pow(1 - 0.07, 2);
        factors_step(&p, rules[i], &o, 0.1, 0.7);
        const double *after = maps_of(&p);
        for (int e = 0; e < p.L * p.m * p.n; e++)
            worst = fmax(worst, fabs(after[e] - keep * before[e]));
        check(worst < TOL(2e-6, 1e-14), "%s: the product decays by another factor than %g, off %g",
              rule_table[rules[i]].flag, keep, worst);
        release();
    }
    char err[ERR_LEN] = "";
    check(!rule_check_decay(RULE_LORA_MUON, "--lr", 0.19, "--weight-decay", 5, err),
          "a decay of 0.95 is refused: %s", err);
    check(!rule_check_decay(RULE_CM, "--lr", 0.2, "--weight-decay", 5, err), "CM: %s", err);
    check(rule_check_decay(RULE_LORA_MUON, "--lr", 0.2, "--weight-decay", 5, err) &&
              strstr(err, "--weight-decay 5"),
          "a decay of 1 is taken: %s", err);
    check(rule_check_decay(RULE_LORA_RITE_CORE, "--lr", 0.2, "--weight-decay", 5, err),
          "lora-rite-core takes a decay of 1");
}

/* Positive multiples of all gradients change nothing. */
static void test_gradient_scale(void) {
    static const RuleId rules[] = {RULE_LORA_MUON, RULE_LORA_RITE, RULE_LORA_RITE_CORE,
                                   RULE_SPECTRON, RULE_CM};
    for (int i = 0; i < COUNT_OF(rules); i++) {
        OptimOptions o = factor_options();
        Factors p = factors_of(2, 8, 6, 3, 1), q = factors_copy(&p);
        double *start = maps_of(&p);
        for (int step = 0; step < 4; step++) {
            set_gradients(&p, 1);
            set_gradients(&q, 0x1p-20);
            factors_step(&p, rules[i], &o, 0.05, 0);
            factors_step(&q, rules[i], &o, 0.05, 0);
        }
        double e = path_error(maps_of(&q), maps_of(&p), start, (size_t)p.L * p.m * p.n);
        check(e < TOL(1e-4, 1e-11), "%s: 2^-20 times the gradient moves the path by %g",
              rule_table[rules[i]].flag, e);
        release();
    }
}

/* Rules that do not depend on the gauge move W = s A B^T alike, whether a factor of 8 is in s or in
   B. */
static void test_product_scale(void) {
    for (int i = 0; i < 3; i++) {
        RuleId rule = invariant_rules[i];
        OptimOptions o = sharp_options();
        Factors p = factors_of(2, 9, 8, 3, 1), q = factors_copy(&p);
        double *start = maps_of(&p);
        q.scale = 8;
        for (size_t e = 0; e < leg_size(&q, 1); e++) q.W[1][e] /= 8;
        factors_run(&p, rule, &o, rate_of(rule), 0.3, 4);
        factors_run(&q, rule, &o, rate_of(rule), 0.3, 4);
        double e = path_error(maps_of(&q), maps_of(&p), start, (size_t)p.L * p.m * p.n);
        check(e < TOL(1e-4, 1e-11), "%s: s = 8 moves the path of W by %g", rule_table[rule].flag,
              e);
        release();
    }
    /* CM, Spectron: the rate is divided by s. */
    for (int i = 0; i < 2; i++) {
        RuleId rule = i ? RULE_SPECTRON : RULE_CM;
        OptimOptions o = factor_options();
        Factors p = factors_of(1, 7, 6, 2, 1), q;
        set_gradients(&p, 1);
        q = factors_copy(&p);
        q.scale = 4;
        factors_step(&p, rule, &o, 0.1, 0);
        factors_step(&q, rule, &o, 0.4, 0);
        size_t sizes[2] = {leg_size(&p, 0), leg_size(&p, 1)};
        check(legs_distance(p.W, q.W, sizes) < TOL(1e-6, 1e-14), "%s: the rate is not divided by s",
              rule_table[rule].flag);
        release();
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* A factor that begins at zero                                                                   */

/* What sixty steps from B = 0 do: largest ||dA|| / ||A|| (spectral over root mean square singular
   value), largest ratio of consecutive ||dA||, once A moves, and the loss at the end over that at
   the start. */
typedef struct {
    double moved, jump, second, loss;
} Warming;

static Warming warm_up(RuleId rule, const OptimOptions *o, double lr, int zero) {
    Factors p = factors_of(1, 24, 16, 4, 2);
    Warming out = {0, 0, 0, 0};
    double first = 0, last = 0;
    p.cold = 1;
    for (size_t i = 0; i < leg_size(&p, zero); i++) p.W[zero][i] = 0;
    size_t each = leg_size(&p, 1 - zero);
    int rows = zero ? p.m : p.r, cols = zero ? p.r : p.n;
    for (int step = 1; step <= 60; step++) {
        double *before = part_of(&p, p.W, 1 - zero, 0), *after;
        double loss = set_gradients(&p, 1);
        factors_step(&p, rule, o, lr, 0);
        after = part_of(&p, p.W, 1 - zero, 0);
        for (size_t i = 0; i < each; i++) after[i] -= before[i];
        double moved = operator_norm(after, rows, cols),
               size = frobenius(before, each) / sqrt((double)p.r);
        if (step == 1) first = loss;
        if (step == 2) out.second = moved / size;
        out.loss = loss / first;
        out.moved = fmax(out.moved, moved / size);
        if (step > 2) out.jump = fmax(out.jump, fmax(moved / last, last / moved));
        last = moved;
    }
    release();
    return out;
}

/* A bounded step while the partner is small, that does not jump where the floor ends, by every rule
   that has the floor, whichever factor is zero: within the trust in the second step, where the
   partner is smallest, and later within the spread of the partner's singular values around their
   mean. Without the floor the second step is as large as the factor. */
static void test_cold(void) {
    static const RuleId rules[] = {RULE_LORA_MUON, RULE_LORA_RITE_CORE, RULE_LORA_RITE};
    for (int i = 0; i < 3; i++)
        for (int zero = 0; zero < 2; zero++)
            for (int sharp = 0; sharp < 2; sharp++) {
                OptimOptions o = sharp ? sharp_options() : factor_options();
                double lr = rules[i] == RULE_LORA_RITE ? 4e-3 : 0.02;
                /* A gradient that grows, as that of A does while B does, is larger than the root of
                   its second moment. */
                double spread = rules[i] == RULE_LORA_RITE ? 4 : 2.5;
                Warming w = warm_up(rules[i], &o, lr, zero);
                check(w.second < 1.1 * o.lora_trust && w.moved < spread * o.lora_trust &&
                          w.jump < 1.9 && w.loss < 0.97,
                      "%s from zero: a step of %g of the factor, ratios up to %g, loss %g",
                      rule_table[rules[i]].flag, w.moved, w.jump, w.loss);
                o.lora_trust = 0.02;
                w = warm_up(rules[i], &o, lr, zero);
                check(w.second < 1.1 * o.lora_trust && w.moved < spread * o.lora_trust &&
                          w.jump < 1.9,
                      "%s from zero, trust 0.02: a step of %g of the factor, ratios up to %g",
                      rule_table[rules[i]].flag, w.moved, w.jump);
                o.lora_trust = 0;
                w = warm_up(rules[i], &o, lr, zero);
                check(w.second > 0.3, "%s from zero, no trust: the second step is %g of the factor",
                      rule_table[rules[i]].flag, w.second);
            }
}

/* The floor is a continuous function of the partner, zero from tau = h / kappa on and where the
   partner is as large as the factor, and at most the factor's own mean. */
static void test_floor(void) {
    enum { N = 4000, R = 3 };
    OptimOptions o = factor_options();
    double h = 0.01, tau = h / o.lora_trust, before = 0, steepest = 0;
    for (int i = 0; i <= N; i++) {
        floatM a[R], b[R];
        double xa = i % 2 ? 0.5 : 0.004, xb = 0.03 * (i / 2) / (N / 2.0);
        for (int k = 0; k < R; k++) { /* mean squares of the rank's rows, one column each */
            a[k] = (floatM)sqrt(xa);
            b[k] = (floatM)sqrt(xb);
        }
        Step s = step_of(RULE_LORA_MUON, &o, 0, 0);
        s.legs = 2;
        s.product_cold = 1;
        Mat A = mat_dense(a, 1, 1, R), B = mat_dense(b, 1, R, 1);
        s.leg[0] = leg_of(A, A, A, 1, 1);
        s.leg[1] = leg_of(B, B, B, 1, 0);
        Arena arena = arena_of(64);
        s.arena = &arena;
        double delta = (double)*cold_floor(&s, 0, h);
        double expected = fmax(0, fmin(tau * tau / xa, xa) - xb);
        check(fabs(delta - expected) <= TOL(1e-6, 1e-15) && (sqrt(xa * xb) < tau || delta < 1e-8) &&
                  delta <= xa * 1.000001,
              "the floor for %g and %g is %g, not %g", xa, xb, delta, expected);
        if (i % 2 && i > 1) steepest = fmax(steepest, fabs(delta - before) / (0.03 / (N / 2.0)));
        if (i % 2) before = delta;
        s.product_cold = 0;
        check(cold_floor(&s, 0, h) == NULL, "a floor although nothing began at zero");
        release();
    }
    check(steepest < 1.01, "the floor jumps by %g times the partner's change", steepest);
}

/* ---------------------------------------------------------------------------------------------- */
/* Rebalancing                                                                                    */

/* The path of W with rebalancing against that without. */
static double rebalanced_path(RuleId rule, const OptimOptions *given, double alpha, int ages,
                              double *ratio) {
    OptimOptions o = *given;
    Factors p = factors_of(2, 13, 9, 4, 1.5), q;
    change_gauge(&p, p.W, multiple_of_identity(p.r, 6));
    p.ages = ages;
    p.decay = 0.5;
    q = factors_copy(&p);
    double *start = maps_of(&p);
    factors_run(&p, rule, &o, 0.1, 0.2, 5);
    o.lora_rebalance = alpha;
    factors_run(&q, rule, &o, 0.1, 0.2, 5);
    *ratio = operator_norm(part_of(&q, q.W, 0, 1), q.m, q.r) /
             operator_norm(part_of(&q, q.W, 1, 1), q.r, q.n);
    return path_error(maps_of(&q), maps_of(&p), start, (size_t)p.L * p.m * p.n);
}

/* It leaves the path of LoRA-Muon as it is, with all its averages, and changes that of Spectron.
   The norms of the factors become equal, as far as two steps of the power iteration tell. */
static void test_rebalance(void) {
    for (int ages = 0; ages < 2; ages++)
        for (int sharp = 0; sharp < 2; sharp++)
            for (double alpha = 0.25; alpha <= 1; alpha *= 2) {
                OptimOptions o = sharp ? sharp_options() : factor_options();
                double ratio, e = rebalanced_path(RULE_LORA_MUON, &o, alpha, ages, &ratio);
                check(e < TOL(1e-4, 1e-10), "rebalancing by %g moves lora-muon's path by %g", alpha,
                      e);
                check(alpha < 1 || (ratio > 0.5 && ratio < 2),
                      "after rebalancing the norms have a ratio of %g", ratio);
                e = rebalanced_path(RULE_SPECTRON, &o, alpha, ages, &ratio);
                check(e > 0.01, "rebalancing by %g moves spectron's path by %g only", alpha, e);
                release();
            }
    /* Nothing is done where a factor is zero. */
    OptimOptions o = factor_options();
    o.lora_rebalance = 1;
    Factors p = factors_of(1, 5, 4, 2, 1);
    memset(p.W[1], 0, leg_size(&p, 1) * sizeof *p.W[1]);
    p.cold = 1;
    const floatM *A = copy_of(p.W[0], leg_size(&p, 0));
    set_gradients(&p, 1);
    factors_step(&p, RULE_LORA_MUON, &o, 0.1, 0);
    check(!memcmp(A, p.W[0], leg_size(&p, 0) * sizeof *A), "A moves although B was zero");
    release();
}

static const Test tests[] = {TEST(gauge),          TEST(equivariance),      TEST(projectors),
                             TEST(spectron_bound), TEST(core_is_lora_muon), TEST(decay),
                             TEST(gradient_scale), TEST(product_scale),     TEST(cold),
                             TEST(floor),          TEST(rebalance)};

int main(int argc, char **argv) {
    use_threads(2);
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
