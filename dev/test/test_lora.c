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
/* The operations of linalg.h that only these rules use                                           */

/* X = R^-1 of a Gram A A^T: upper triangular, and X^T A has orthonormal rows, or rows of zeros
   where a row of A is a combination of those before it. */
static void test_chol_inverse(void) {
    static const int sizes[] = {1, 2, 3, 8, 33};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int kind = 0; kind < 4; kind++) { /* regular, a repeated row, a row of zeros, zero */
            int k = sizes[i], d = k + 5, dead = kind ? k - 1 - k / 3 : -1, upper = 1;
            floatM *a = normals_m((size_t)k * d, 1), *g = take_m((size_t)k * k), *x;
            for (int c = 0; c < d && kind; c++) a[dead * d + c] = kind == 1 && dead ? 2 * a[c] : 0;
            if (kind == 3) memset(a, 0, (size_t)k * d * sizeof *a);
            x = normals_m((size_t)k * k, 1);
            la_gram(mat_dense(g, 1, k, k), mat_dense(a, 1, k, d), 0);
            la_chol_inverse(mat_dense(x, 1, k, k), mat_dense(g, 1, k, k),
                            take_m(la_eigh_scratch(k)));
            for (int e = 0; e < k * k; e++) upper &= e / k <= e % k || x[e] == 0;
            double *Q = product(as_double(x, (size_t)k * k), 1, as_double(a, (size_t)k * d), 0, k,
                                d, k),
                   *I = product(Q, 0, Q, 1, k, k, d), worst = 0;
            for (int e = 0; e < k * k; e++) {
                int alive = kind != 3 && e / k != dead;
                worst = fmax(worst, fabs(I[e] - (e % (k + 1) == 0 && alive)));
            }
            check(upper && worst < TOL(2e-4, 1e-12),
                  "the inverse factor of %d x %d, kind %d, is %g from making a basis", k, k, kind,
                  worst);
            release();
        }
    /* Numbers that follow from the definitions. */
    floatM s[4] = {2, 0, 3, 1}, t[4] = {8, 5, 0, 4}, cold[4] = {0, 0.5, 2, 0},
           own[4] = {2, 2, 2, 0};
    la_vec_ratio_power(s, t, 4, 0.5);
    check(s[0] == (floatM)0.5 && s[1] == 1 && s[2] == 1 && s[3] == (floatM)0.5,
          "ratios %g %g %g %g", (double)s[0], (double)s[1], (double)s[2], (double)s[3]);
    la_vec_cold(cold, own, 4, 1, 2); /* x = 4: min(2 / 4, 4) - y */
    check(cold[0] == (floatM)0.5 && cold[1] == (floatM)0.25 && cold[2] == 0 && cold[3] == 0,
          "floors %g %g %g %g", (double)cold[0], (double)cold[1], (double)cold[2], (double)cold[3]);
    floatM rho[3] = {1, 1, 1}, v[6] = {3, 1, 1, 3, 2, 2}, w[6] = {2, 1, 2, 1.5, 3, 2};
    la_vec_escape(rho, v, w, 3, 2, 0.5); /* drops: 1 and 1; 1 and 0.5; none */
    check(rho[0] == 1 && rho[1] == (floatM)0.75 && rho[2] == (floatM)0.5, "escaped %g %g %g",
          (double)rho[0], (double)rho[1], (double)rho[2]);
}

/* pe7 against the root of W / ||W|| + 1e-5 I, which has a condition of up to 1e5: the published
   steps end at most 2.4e-4 below it. It has a root for singular Grams, the root of zero is zero,
   and NaN stays visible. */
static void test_pe7(void) {
    static const int sizes[] = {1, 2, 5, 16, 64};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        for (int decades = 0; decades <= 8; decades += 2) {
            int k = sizes[i];
            size_t kk = (size_t)k * k;
            double *U = orthogonal(k), *SU = take(kk), *G, *unit = take(kk), norm;
            for (int e = 0; e < k * k; e++)
                SU[e] = U[e] * 7 * pow(10, k > 1 ? -decades * (e / k) / (k - 1.0) : 0);
            G = product(U, 1, SU, 0, k, k, k);
            for (int e = 0; e < k * k; e++) G[e] = 0.5 * (G[e] + G[e % k * k + e / k]);
            floatM *gram = take_m(kk), *root = take_m(kk);
            for (size_t e = 0; e < kk; e++) gram[e] = (floatM)G[e];
            for (int e = 0; e < k; e++) G[e * (k + 1)] += 0.5 * (decades == 0);
            norm = frobenius(G, kk);
            for (size_t e = 0; e < kk; e++) unit[e] = G[e] / norm;
            run_invroot(mat_dense(root, 1, k, k), mat_dense(gram, 1, k, k), 0.5 * (decades == 0), 1,
                        ROOT_PE7);
            double *exact = exact_rroot(unit, k, 1e-5), e;
            for (size_t j = 0; j < kk; j++) exact[j] /= sqrt(norm);
            e = relative_l2_dd(as_double(root, kk), exact, kk, 1e-30);
            /* Rounding of W, 6e-8 of its norm, moves eigenvalues near the floor by a part of 6e-3
               at most, and their roots by half of it. */
            check(e < (decades > 3 ? TOL(4e-3, 3e-4) : 3e-4),
                  "pe7 of %d x %d over %d decades is %g from the root", k, k, decades, e);
            release();
        }
    floatM gram[8] = {0, 0, 0, 0, 1, (floatM)NAN, (floatM)NAN, 1}, root[8];
    run_invroot(mat_dense(root, 2, 2, 2), mat_dense(gram, 2, 2, 2), 0, 1, ROOT_PE7);
    check(root[0] == 0 && root[1] == 0 && root[3] == 0 && isnan((double)root[4]),
          "pe7 of zero and of NaN: %g %g", (double)root[0], (double)root[4]);
}

/* CM on factors of different lengths: its definition by exact roots, both methods, and connections,
   which leave the first-order step of the product as it is. */
static void test_cm_on_factors(void) {
    for (int joint = 0; joint < 2; joint++)
        for (int flags = 0; flags < 2; flags++) {
            OptimOptions o = sharp_options();
            o.method = joint ? METHOD_JOINT : METHOD_HALF_SPLIT;
            o.damping = 0.01;
            if (flags) { /* of attention's circuits: no part of this */
                o.circuit = !joint;
                o.hybrid = 1;
                o.head_group = 3;
            }
            int m = 9, n = 6, r = 3;
            double eta = 0.2, *H[2];
            Factors p = factors_of(1, m, n, r, 2), q = factors_copy(&p);
            set_gradients(&q, 1);
            factors_step(&q, RULE_CM, &o, eta, 0);
            halves(&p, &q, 0, H);
            double *U[2], *C[2], *stack = take((size_t)r * (size_t)(m + n));
            for (int leg = 0; leg < 2; leg++) { /* blocks (r, d) */
                double *other = part_of(&p, p.W, 1 - leg, 0), *g = part_of(&q, q.G, leg, 0);
                int d = leg ? n : m, e = leg ? m : n;
                C[leg] = exact_rroot(product(other, leg, other, !leg, r, r, e), r, 0.01);
                U[leg] = product(C[leg], 0, g, !leg, r, d, r);
                for (int i = 0; i < r * d; i++)
                    stack[i / d * (m + n) + leg * m + i % d] = U[leg][i];
            }
            stack = exact_sign(stack, r, m + n);
            for (int leg = 0; leg < 2; leg++) {
                int d = leg ? n : m;
                double *sign = exact_sign(U[leg], r, d), *D;
                for (int i = 0; i < r * d && joint; i++)
                    sign[i] = stack[i / d * (m + n) + leg * m + i % d];
                D = product(C[leg], 0, sign, 0, r, d, r);
                double *other = part_of(&p, p.W, 1 - leg, 0);
                double *expected =
                    leg ? product(other, 0, D, 0, m, n, r) : product(D, 1, other, 0, m, n, r);
                for (int i = 0; i < m * n; i++) expected[i] *= joint ? -eta : -eta / 2;
                double e = relative_l2_dd(H[leg], expected, (size_t)m * n, 1e-30);
                check(e < TOL(1e-4, 1e-9),
                      "cm on factors, joint %d, leg %d: %g from its definition", joint, leg, e);
            }
            for (int connection = CONNECTION_FROBENIUS;
                 connection <= CONNECTION_SCALE_AWARE_SCALAR && !joint; connection++) {
                double *K[2], off = 0, size = 0;
                Factors fixed = factors_copy(&p);
                o.connection = connection;
                o.circuit = 0;
                set_gradients(&fixed, 1);
                factors_step(&fixed, RULE_CM, &o, eta, 0);
                halves(&p, &fixed, 0, K);
                for (int i = 0; i < m * n; i++) {
                    off = fmax(off, fabs(K[0][i] + K[1][i] - H[0][i] - H[1][i]));
                    size = fmax(size, fabs(H[0][i]));
                }
                check(off < TOL(1e-4, 1e-11) * size &&
                          distance(q.W[0], fixed.W[0], leg_size(&p, 0)) > 0,
                      "cm on factors, connection %d: the step of W moves by %g", connection,
                      off / size);
            }
            release();
        }
    /* Options of attention's circuits are no reason to refuse the rule. */
    OptimOptions o = sharp_options();
    o.circuit = 1;
    o.head_group = 3;
    o.hybrid = 1;
    RuleUse use;
    char err[ERR_LEN] = "";
    memset(&use, 0, sizeof use);
    use.flag = "--lora";
    use.on = ON_FACTOR;
    use.matrices = "the factors";
    use.decay_flag = "--weight-decay";
    use.options = &o;
    use.heads = 4;
    use.kv_heads = 2;
    check(!rule_check(RULE_CM, &use, err), "cm on factors is refused: %s", err);
    o.circuit = 0;
    o.method = METHOD_JOINT;
    check(!rule_check(RULE_CM, &use, err), "joint on factors is refused: %s", err);
    o.per_mat_renorm = 1;
    check(rule_check(RULE_CM, &use, err), "joint with renormalisation is taken");
    check(rule_check(RULE_NORMUON, &use, err), "normuon is taken on factors");
}

/* The power iteration against the largest singular value, from nothing and from the vector of
   before, for tall and for wide matrices. */
static void test_spectral_norms(void) {
    static const int shapes[][2] = {{9, 4}, {4, 9}, {5, 5}, {7, 1}, {1, 7}};
    for (int i = 0; i < COUNT_OF(shapes); i++) {
        enum { L = 3 };
        int m = shapes[i][0], n = shapes[i][1];
        size_t each = (size_t)m * n;
        floatM *x = normals_m(L * each, 1), *u = take_m((size_t)L * max_int(m, n)), s[L], once[L];
        memset(x + each, 0, each * sizeof *x);
        for (int turn = 0; turn < 300; turn++) {
            Arena arena = arena_of(1024);
            spectral_norms(s, u, mat_dense(x, L, m, n), 1, &arena);
            if (!turn) memcpy(once, s, sizeof s);
        }
        for (int l = 0; l < L; l++) {
            double exact = operator_norm(as_double(x + (size_t)l * each, each), m, n);
            check(relative_error((double)s[l], exact, 1e-30) < TOL(1e-5, 1e-9) || (l == 1 && !s[l]),
                  "the norm of %d x %d is %g, not %g", m, n, (double)s[l], exact);
            check((double)once[l] <= exact * 1.00001 && (l == 1 || (double)once[l] > 0.5 * exact),
                  "the first estimate of %d x %d is %g of %g", m, n, (double)once[l], exact);
        }
        release();
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The cases of the oracle                                                                        */

static void fixture_case(const Fixture *fx, const char *name) {
    static const char *const legs[] = {"a", "b"};
    char flag[32];
    OptimOptions o = case_options(fx, name);
    Factors f;
    int rule = 0, seen = 0;
    case_option(fx, name, "rule", flag, sizeof flag);
    while (rule < RULES_END && strcmp(rule_table[rule].flag, flag) != 0) rule++;
    if (!check(rule < RULES_END, "%s: no rule %s", name, flag)) return;
    o.adam_beta1 = case_number(fx, name, "beta1");
    o.adam_beta2 = case_number(fx, name, "beta2");
    memset(&f, 0, sizeof f);
    const FixtureRecord *start = case_record(fx, name, "wa", 0);
    f.L = 1;
    f.m = (int)start->dims[0];
    f.r = (int)start->dims[1];
    f.n = (int)case_record(fx, name, "wb", 0)->dims[1];
    f.scale = case_number(fx, name, "s");
    f.cold = (int)case_number(fx, name, "cold");
    for (int leg = 0; leg < 2; leg++) {
        f.W[leg] = floats_of(case_record(fx, name, leg ? "wb" : "wa", 0));
        f.M[leg] = take_m(leg_size(&f, leg));
        f.older[leg] = take_m(leg_size(&f, leg));
        for (int k = 0; k < RULE_STATES; k++)
            f.state[leg][k] = take_m(leg_size(&f, leg) + (size_t)f.r * f.r);
    }
    for (int step = 1; step <= 3; step++) {
        for (int leg = 0; leg < 2; leg++)
            f.G[leg] = floats_of(case_record(fx, name, leg ? "gb" : "ga", step));
        factors_step(&f, (RuleId)rule, &o, case_number(fx, name, "lr"),
                     case_number(fx, name, "weight_decay"));
        for (int leg = 0; leg < 2; leg++) {
            seen += check_state(fx, name, "w", legs[leg], step, f.W[leg]);
            seen += check_state(fx, name, "m", legs[leg], step, f.M[leg]);
        }
    }
    check(seen == (rule == RULE_LORA_RITE ? 4 : 6), "%s: the fixture holds %d results", name, seen);
}

static void test_fixture(void) {
    Fixture *fx = fixture_load("dev/test/fixtures/optim_lora.fix");
    char name[64];
    int ran = 0;
    for (const char *p = fixture_text(fx, "cases"); fixture_word(&p, name, sizeof name); ran++) {
        fixture_case(fx, name);
        release();
    }
    check(ran == 43, "optim_lora.fix: %d cases ran", ran);
    fixture_free(fx);
}

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

/* `ramp`: steps in which the learning rate rises to lr. */
static Warming warm_up(RuleId rule, const OptimOptions *o, double lr, int zero, int ramp) {
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
        factors_step(&p, rule, o, step < ramp ? lr * step / ramp : lr, 0);
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
                Warming w = warm_up(rules[i], &o, lr, zero, 0);
                check(w.second < 1.1 * o.lora_trust && w.moved < spread * o.lora_trust &&
                          w.jump < 1.9 && w.loss < 0.97,
                      "%s from zero: a step of %g of the factor, ratios up to %g, loss %g",
                      rule_table[rules[i]].flag, w.moved, w.jump, w.loss);
                w = warm_up(rules[i], &o, lr, zero, 20);
                check(w.second < 1.1 * o.lora_trust && w.moved < spread * o.lora_trust &&
                          w.jump < 1.9 && w.loss < 0.97,
                      "%s from zero, a rising rate: a step of %g of the factor, ratios up to %g, "
                      "loss %g",
                      rule_table[rules[i]].flag, w.moved, w.jump, w.loss);
                o.lora_trust = 0.02;
                w = warm_up(rules[i], &o, lr, zero, 0);
                check(w.second < 1.1 * o.lora_trust && w.moved < spread * o.lora_trust &&
                          w.jump < 1.9,
                      "%s from zero, trust 0.02: a step of %g of the factor, ratios up to %g",
                      rule_table[rules[i]].flag, w.moved, w.jump);
                o.lora_trust = 0;
                w = warm_up(rules[i], &o, lr, zero, 0);
                check(w.second > 0.3, "%s from zero, no trust: the second step is %g of the factor",
                      rule_table[rules[i]].flag, w.second);
            }
}

/* The floor is a continuous function of the partner, zero from tau = h / kappa on and where the
   partner is as large as the factor, and at most the factor's own mean. */
static void test_floor(void) {
    enum { N = 4000, R = 3 };
    OptimOptions o = factor_options();
    const double each = 0.03 / 2000;
    double h = 0.01, tau = h / o.lora_trust, before = 0, steepest = 0;
    for (int i = 0; i <= N; i++) {
        floatM a[R], b[R];
        double xa = i % 2 ? 0.5 : 0.004, xb = (i / 2) * each;
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
        if (i % 2 && i > 1) steepest = fmax(steepest, fabs(delta - before) / each);
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

static const Test tests[] = {TEST(fixture),        TEST(chol_inverse),
                             TEST(spectral_norms), TEST(pe7),
                             TEST(cm_on_factors),  TEST(gauge),
                             TEST(equivariance),   TEST(projectors),
                             TEST(spectron_bound), TEST(core_is_lora_muon),
                             TEST(decay),          TEST(gradient_scale),
                             TEST(product_scale),  TEST(cold),
                             TEST(floor),          TEST(rebalance)};

int main(int argc, char **argv) {
    use_threads(2);
    return check_main(tests, COUNT_OF(tests), argc, argv);
}
