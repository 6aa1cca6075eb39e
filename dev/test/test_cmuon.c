/*
Tests of libcmuon through its C ABI: the fixtures of the oracle, the options, the mistakes that a
caller can make, and the promises of cmuon.h. A failing call changes nothing, a call without memory
returns an error code, and threads neither disturb each other nor change a bit.

This file includes the library as source, so that allocations can be made to fail. libcmuon_test.sh
tests how the library links and what it exports.
*/
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "../../llmc/base.h"
#include "check.h"
#include "fixture.h"

/* `allocations_left` more allocations succeed, and all later ones fail. -1: none fails. */
static int allocations_left = -1, allocations_failed;

static int allocation_fails(void) {
    if (__atomic_load_n(&allocations_left, __ATOMIC_RELAXED) < 0) return 0;
    if (__atomic_fetch_sub(&allocations_left, 1, __ATOMIC_RELAXED) > 0) return 0;
    __atomic_store_n(&allocations_left, 0, __ATOMIC_RELAXED);
    allocations_failed++;
    return 1;
}
static void *test_malloc(size_t n) { return allocation_fails() ? NULL : malloc(n); }
static void *test_calloc(size_t n, size_t size) {
    return allocation_fails() ? NULL : calloc(n, size);
}
static int test_memalign(void **p, size_t align, size_t n) {
    return allocation_fails() ? ENOMEM : posix_memalign(p, align, n);
}
#define malloc(n) test_malloc(n)
#define calloc(n, size) test_calloc(n, size)
#define posix_memalign(p, align, n) test_memalign(p, align, n)
#include "../../llmc/cmuon.c"
#undef malloc
#undef calloc
#undef posix_memalign
#include "../../llmc/rng.h"

/* ---------------------------------------------------------------------------------------------- */
/* One call with its buffers                                                                      */

enum { QK, OV, MUON, MSIGN, ROOT, CALLS };
static const char *const call_names[] = {"cm_qk", "cm_ov", "cm_muon", "cm_msign", "cm_inv_sqrt"};

/* Buffers are in the order of the arguments: w, g, m of cm_muon, or the six of a pair. */
typedef struct {
    int call, d, H, S, k; /* cm_muon, cm_msign: (H, d); cm_inv_sqrt: n = d */
    float eta;
    cm_options *o;
    int n;
    float *b[6];
    size_t size[6];
} Case;

static size_t case_size(const Case *c, int i) {
    if (c->call == QK || c->call == OV) {
        int per_query = (i % 2 == 0) == (c->call == QK);
        return (size_t)(per_query ? c->H : c->S) * c->k * c->d;
    }
    return (size_t)(c->call == ROOT ? c->d : c->H) * c->d;
}

static Case case_new(int call, int d, int H, int S, int k, uint64_t seed) {
    static const int buffers[] = {6, 6, 3, 1, 1};
    Case c = {call, d, H, S, k, 0.1f, cm_options_new(), buffers[call], {0}, {0}};
    for (int i = 0; i < c.n; i++) {
        c.size[i] = case_size(&c, i);
        c.b[i] = (float *)calloc(c.size[i] + 1, sizeof(float));
        for (size_t j = 0; j < c.size[i]; j++)
            c.b[i][j] =
                (float)(rng_normal(seed, (uint64_t)i, j) * (i < (c.n == 6 ? 2 : 1) ? 0.2 : 0.01));
    }
    if (call == ROOT) /* symmetric, positive definite */
        for (int r = 0; r < d; r++)
            for (int s = 0; s <= r; s++)
                c.b[0][s * d + r] = c.b[0][r * d + s] =
                    r == s ? 2 + c.b[0][r * d + s] : c.b[0][r * d + s] / (float)d;
    return c;
}

static Case case_copy(const Case *c) {
    Case e = *c;
    e.o = cm_options_new();
    *e.o = *c->o;
    for (int i = 0; i < c->n; i++) {
        e.b[i] = (float *)calloc(c->size[i] + 1, sizeof(float));
        memcpy(e.b[i], c->b[i], c->size[i] * sizeof(float));
    }
    return e;
}

static void case_free(Case *c) {
    for (int i = 0; i < c->n; i++) free(c->b[i]);
    cm_options_free(c->o);
}

static int case_run(Case *c) {
    float **b = c->b;
    switch (c->call) {
    case QK: return cm_qk(b[0], b[1], b[2], b[3], b[4], b[5], c->d, c->H, c->S, c->k, c->eta, c->o);
    case OV: return cm_ov(b[0], b[1], b[2], b[3], b[4], b[5], c->d, c->H, c->S, c->k, c->eta, c->o);
    case MUON: return cm_muon(b[0], b[1], b[2], c->H, c->d, c->eta, c->o);
    case MSIGN: return cm_msign(b[0], c->H, c->d, c->o);
    default: return cm_inv_sqrt(b[0], c->d, 0.01f, c->o);
    }
}

static int case_same(const Case *a, const Case *b) {
    for (int i = 0; i < a->n; i++)
        if (memcmp(a->b[i], b->b[i], a->size[i] * sizeof(float))) return 0;
    return 1;
}

static double case_distance(const Case *a, const Case *b) {
    double worst = 0;
    for (int i = 0; i < a->n; i++)
        worst = fmax(worst, relative_l2_ff(a->b[i], b->b[i], a->size[i], 1e-30));
    return worst;
}

/* Runs a copy of the case, which must fail with `code` and change nothing. */
static void check_refused(const Case *c, int code, const char *what) {
    Case e = case_copy(c);
    int status = case_run(&e);
    check(status == code && case_same(c, &e), "%s: %s: %d (%s), not %d; buffers %s",
          call_names[c->call], what, status, cm_strerror(status), code,
          case_same(c, &e) ? "kept" : "changed");
    case_free(&e);
}

static Case small(int call) { return case_new(call, call == ROOT ? 9 : 24, 4, 2, 8, 11); }

/* ---------------------------------------------------------------------------------------------- */
/* Fixtures                                                                                       */

/* A record of a case. It is stored with the case or in the data set that the case names. */
static const FixtureRecord *case_record(const Fixture *fx, const char *name, const char *key,
                                        int step) {
    char record[96], data[32];
    snprintf(record, sizeof record, "case.%s.%s.%d", name, key, step);
    const FixtureRecord *r = fixture_find(fx, record);
    if (r) return r;
    fixture_option(fixture_getf(fx, "s1", "case.%s.flags", name)->s1, "data", data, sizeof data);
    snprintf(record, sizeof record, "data.%s.%s.%d", data, key, step);
    return fixture_find(fx, record);
}

/* Sets every option of a case by name, except those that are arguments. Returns how many the
   library refuses. */
static int case_set(const Fixture *fx, const char *name, const char *rule, cm_options *o) {
    static const char *const arguments[] = {"rule", "circuit", "heads", "kv_heads",
                                            "lr",   "data",    "parts", "axis"};
    char record[96], word[96];
    int refused = 0;
    for (int i = 0; i < 2; i++) {
        if (i == 0) snprintf(record, sizeof record, "defaults.%s", rule);
        else snprintf(record, sizeof record, "case.%s.flags", name);
        const FixtureRecord *r = fixture_find(fx, record);
        for (const char *p = r ? r->s1 : ""; fixture_word(&p, word, sizeof word);) {
            char *value = strchr(word, '=');
            int skip = !value;
            for (int j = 0; j < 8 && value; j++)
                skip |= !strncmp(word, arguments[j], strlen(arguments[j])) &&
                        word[strlen(arguments[j])] == '=';
            if (skip) continue;
            *value++ = 0;
            refused += cm_options_set(o, word, value) != 0;
        }
    }
    return refused;
}

static float *floats_of(const FixtureRecord *r) {
    float *x = (float *)calloc(r->count + 1, sizeof *x);
    for (size_t i = 0; i < r->count; i++) x[i] = r->f4 ? r->f4[i] : (float)r->f8[i];
    return x;
}

/* Expected weights are rounded to float32: 6e-8 of a weight, which may be 50 times its
   displacement. The sign and the root in float add up to 1e-5, and the library keeps momenta in
   float. */
#define STATE_TOL 2e-4

/* Compares x with the record (key, step), relative to the distance from step 0. Returns 0 if there
   is no such record. */
static int check_state(const Fixture *fx, const char *name, const char *key, int step,
                       const float *x) {
    char record[96];
    snprintf(record, sizeof record, "case.%s.%s.%d", name, key, step);
    const FixtureRecord *r = fixture_find(fx, record), *start = NULL;
    if (!r) return 0;
    if (key[0] == 'w') start = case_record(fx, name, key, 0);
    double error = 0, moved = 0;
    for (size_t i = 0; i < r->count; i++) {
        double y = r->f8 ? r->f8[i] : (double)r->f4[i], from = start ? (double)start->f4[i] : 0;
        error += ((double)x[i] - y) * ((double)x[i] - y);
        moved += (y - from) * (y - from);
    }
    error = sqrt(error) / fmax(sqrt(moved), 1e-30);
    check(error < STATE_TOL, "%s: %s after step %d is off by %g", name, key, step, error);
    return 1;
}

static int cm_fixture(const Fixture *fx, const char *name) {
    int is_ov = case_is(fx, name, "circuit", "ov"), seen = 0;
    const char *legs = is_ov ? "vo" : "qk";
    Case c;
    memset(&c, 0, sizeof c);
    c.call = is_ov ? OV : QK;
    c.o = cm_options_new();
    c.H = (int)case_number(fx, name, "heads");
    c.S = (int)case_number(fx, name, "kv_heads");
    c.eta = (float)case_number(fx, name, "lr");
    if (case_set(fx, name, "cm", c.o)) {
        case_free(&c);
        return 0;
    }
    for (int leg = 0; leg < 2; leg++) {
        char key[3] = {'w', legs[leg], 0};
        const FixtureRecord *start = case_record(fx, name, key, 0);
        c.b[leg] = floats_of(start);
        c.b[4 + leg] = (float *)calloc(start->count, sizeof(float));
        if (legs[leg] == 'k' || legs[leg] == 'v') {
            c.d = (int)start->dims[1];
            c.k = (int)start->dims[0] / c.S;
        }
    }
    c.n = 6;
    for (int step = 1; step <= 3; step++) {
        for (int leg = 0; leg < 2; leg++) {
            char key[3] = {'g', legs[leg], 0};
            free(c.b[2 + leg]);
            c.b[2 + leg] = floats_of(case_record(fx, name, key, step));
        }
        int status = case_run(&c);
        check(status == 0, "%s: %s", name, cm_strerror(status));
        for (int leg = 0; leg < 2; leg++) {
            char w[3] = {'w', legs[leg], 0}, m[3] = {'m', legs[leg], 0};
            seen += check_state(fx, name, w, step, c.b[leg]);
            seen += check_state(fx, name, m, step, c.b[4 + leg]);
        }
    }
    check(seen >= 2, "%s: the fixture holds %d results", name, seen);
    case_free(&c);
    return 1;
}

static int muon_fixture(const Fixture *fx, const char *name) {
    Case c;
    memset(&c, 0, sizeof c);
    c.call = MUON;
    c.n = 3;
    c.o = cm_options_new();
    int parts = (int)case_number(fx, name, "parts");
    /* Blocks of columns are not contiguous: the library has no stride for them. */
    if (case_is(fx, name, "axis", "1") || case_set(fx, name, "muon", c.o)) {
        case_free(&c);
        return 0;
    }
    const FixtureRecord *start = case_record(fx, name, "w", 0);
    float *w = floats_of(start), *m = (float *)calloc(start->count, sizeof(float));
    c.H = (int)start->dims[0] / parts;
    c.d = (int)start->dims[1];
    c.eta = (float)case_number(fx, name, "lr");
    for (int step = 1; step <= 3; step++) {
        float *g = floats_of(case_record(fx, name, "g", step));
        for (int part = 0; part < parts; part++) {
            size_t at = (size_t)part * c.H * c.d;
            int status = cm_muon(w + at, g + at, m + at, c.H, c.d, c.eta, c.o);
            check(status == 0, "%s: %s", name, cm_strerror(status));
        }
        free(g);
        check_state(fx, name, "w", step, w);
        check_state(fx, name, "m", step, m);
    }
    free(w);
    free(m);
    case_free(&c);
    return 1;
}

/* The sign in emulated bf16 consists of bf16 numbers and is within a few roundings of the sign in
   fp32, except for heads, which are signed in fp32 anyway. auto means fp32. */
static void test_msign_compute(void) {
    for (int head = 0; head < 2; head++) {
        Case c = case_new(MSIGN, head ? 80 : 48, 40, 1, 1, 5), fp32 = case_copy(&c),
             bf16 = case_copy(&c);
        int narrow = 1;
        check(!cm_options_set(c.o, "msign_compute", "auto") && !case_run(&c), "cm_msign, auto");
        check(!cm_options_set(fp32.o, "msign_compute", "fp32") && !case_run(&fp32),
              "cm_msign, fp32");
        check(!cm_options_set(bf16.o, "msign_compute", "bf16") && !case_run(&bf16),
              "cm_msign, bf16");
        for (size_t i = 0; i < bf16.size[0]; i++) {
            uint32_t bits;
            memcpy(&bits, &bf16.b[0][i], sizeof bits);
            narrow &= (bits & 0xffff) == 0;
        }
        double e = case_distance(&bf16, &fp32);
        check(case_same(&c, &fp32), "msign_compute=auto is not fp32");
        check(head ? e == 0 : e > 1e-4 && e < 0.02 && narrow,
              "cm_msign in bf16, head %d: %g from fp32, bf16 %d", head, e, narrow);
        case_free(&c);
        case_free(&fp32);
        case_free(&bf16);
    }
}

static void msign_fixture(const Fixture *fx, const char *name) {
    static const char *const tables[] = {"pe8", "quintic5", "quintic5_nv", "simple12"};
    const FixtureRecord *x = fixture_getf(fx, "f4", "case.%s.x", name);
    for (int i = 0; i < 4; i++) {
        const FixtureRecord *y = fixture_getf(fx, "f8", "case.%s.%s", name, tables[i]);
        float *z = floats_of(x);
        cm_options *o = cm_options_new();
        cm_options_set(o, "msign", tables[i]);
        int status = cm_msign(z, (int)x->dims[0], (int)x->dims[1], o);
        double e = relative_l2_fd(z, y->f8, x->count, 1);
        check(!status && e < 2e-4, "%s %s: status %d, off by %g", name, tables[i], status, e);
        cm_options_free(o);
        free(z);
    }
}

static void root_fixture(const Fixture *fx, const char *name) {
    static const char *const kinds[] = {"cans25", "cans12", "eigh"};
    const FixtureRecord *x = fixture_getf(fx, "f4", "case.%s.gram", name);
    for (int i = 0; i < 3; i++) {
        const FixtureRecord *y = fixture_getf(fx, "f8", "case.%s.%s", name, kinds[i]);
        float *z = floats_of(x);
        cm_options *o = cm_options_new();
        cm_options_set(o, "inv_root", kinds[i]);
        int status = cm_inv_sqrt(z, (int)x->dims[0], (float)case_number(fx, name, "damping"), o);
        double e = relative_l2_fd(z, y->f8, x->count, 1e-30);
        check(!status && e < 1e-4, "%s %s: status %d, off by %g", name, kinds[i], status, e);
        cm_options_free(o);
        free(z);
    }
}

/* Runs the cases that the library can express. *refused counts cases whose options it refuses, and
   *foreign cases of rules that it does not have. */
static int run_fixture(const char *path, int *refused, int *foreign) {
    Fixture *fx = fixture_load(path);
    char name[64], rule[32];
    int ran = 0, ok;
    *refused = *foreign = 0;
    for (const char *p = fixture_text(fx, "cases"); fixture_word(&p, name, sizeof name);) {
        fixture_option(fixture_getf(fx, "s1", "case.%s.flags", name)->s1, "rule", rule,
                       sizeof rule);
        ok = 1;
        if (!strcmp(rule, "cm")) *refused += !(ok = cm_fixture(fx, name));
        else if (!strcmp(rule, "muon")) *foreign += !(ok = muon_fixture(fx, name));
        else if (!strcmp(rule, "msign")) msign_fixture(fx, name);
        else if (!strcmp(rule, "invroot")) root_fixture(fx, name);
        else *foreign += !(ok = 0);
        ran += ok;
    }
    fixture_free(fx);
    return ran;
}

static void test_fixtures(void) {
    int refused, foreign;
    int ran = run_fixture("dev/test/fixtures/optim_basic.fix", &refused, &foreign);
    check(!refused && ran == 36 && foreign == 3,
          "optim_basic.fix: %d cases ran, %d refused, %d of other rules", ran, refused, foreign);
    ran = run_fixture("dev/test/fixtures/optim_variants.fix", &refused, &foreign);
    check(!refused && ran == 254 && foreign == 27,
          "optim_variants.fix: %d cases ran, %d refused, %d of other rules", ran, refused, foreign);
}

/* ---------------------------------------------------------------------------------------------- */
/* Options                                                                                        */

static void test_options(void) {
    static const char *const good[][2] = {{"isotropic", "0"},
                                          {"isotropic", "1"},
                                          {"isotropic", "on"},
                                          {"hybrid", "off"},
                                          {"hybrid", "1"},
                                          {"whiten_power", "0"},
                                          {"whiten-power", "1.3"},
                                          {"damping_form", "relative"},
                                          {"head_group", "4"},
                                          {"head_group", "0"},
                                          {"whitening", "both"},
                                          {"whitening", "pre"},
                                          {"whitening", "post"},
                                          {"whitening", "none"},
                                          {"per_mat_renorm", "1"},
                                          {"per-mat-renorm", "0"},
                                          {"momentum", "0.9"},
                                          {"momentum_form", "sum"},
                                          {"momentum_form", "ema"},
                                          {"momentum-form", "released"},
                                          {"nesterov", "0"},
                                          {"nesterov", "1"},
                                          {"nesterov", "on"},
                                          {"nesterov", "released"},
                                          {"weight_decay", "0.1"},
                                          {"damping", "1e-3"},
                                          {"mp", "2"},
                                          {"msign", "pe8"},
                                          {"msign", "quintic5"},
                                          {"msign", "quintic5_nv"},
                                          {"msign", "simple12"},
                                          {"msign", "pe8-lora"},
                                          {"msign_compute", "auto"},
                                          {"msign_compute", "fp32"},
                                          {"msign-compute", "bf16"},
                                          {"inv_root", "cans25"},
                                          {"inv_root", "cans12"},
                                          {"inv-root", "eigh"},
                                          {"inv-root", "pe7"},
                                          {"shared_div", "1"},
                                          {"shared_div", "group"},
                                          {"scale", "spectral"},
                                          {"scale", "rms"},
                                          {"scale", "none"},
                                          {"compute", "fp32"},
                                          {"threads", "0"},
                                          {"threads", "3"},
                                          {"method", "half_split"},
                                          {"method", "joint"},
                                          {"connection", "none"},
                                          {"connection", "frobenius"},
                                          {"connection", "scale_aware"},
                                          {"connection", "scale_aware_sylv"},
                                          {"connection", "frobenius_scalar"},
                                          {"connection", "scale_aware_scalar"},
                                          {"gauge_damping", "0"},
                                          {"gauge_damping", "1"},
                                          {"momentum_reproject", "0"},
                                          {"momentum_reproject", "copy"},
                                          {"momentum_reproject", "write_back"},
                                          {"circuit", "0"},
                                          {"circuit", "1"}};
    static const struct {
        const char *key, *value;
        int code;
    } bad[] = {
        {"isotropic", "2", CM_EVALUE},
        {"isotropic", "", CM_EVALUE},
        {"whitening", "1", CM_EVALUE},
        {"whiten_power", "2.1", CM_EVALUE},
        {"whiten_power", "-1", CM_EVALUE},
        {"head_group", "-1", CM_EVALUE},
        {"whitening", "Both", CM_EVALUE},
        {"nesterov", "2", CM_EVALUE},
        {"nesterov", "auto", CM_EVALUE},
        {"momentum", "nan", CM_EVALUE},
        {"momentum", "1", CM_EVALUE},
        {"momentum", "-0.1", CM_EVALUE},
        {"momentum", "0.9x", CM_EVALUE},
        {"damping", "-1", CM_EVALUE},
        {"damping", "inf", CM_EVALUE},
        {"threads", "-1", CM_EVALUE},
        {"threads", "1.5", CM_EVALUE},
        {"shared_div", "2", CM_EVALUE},
        {"connection", "0", CM_EVALUE},
        {"momentum_reproject", "1", CM_EVALUE},
        {"method", "half", CM_EVALUE},
        {"normuon_beta2", "0.9", CM_EKEY},
        {"msign", "pe9", CM_EVALUE},
        {"msign_compute", "tf32", CM_EVALUE},
        {"compute", "bf16", CM_EUNSUPPORTED},
        {"compute", "fp16", CM_EVALUE},
        {"learning_rate", "1", CM_EKEY},
        {"", "1", CM_EKEY},
        {"Momentum", "0.9", CM_EKEY},
        {"momentum ", "0.9", CM_EKEY},
        {NULL, "1", CM_ENULL},
        {"momentum", NULL, CM_ENULL},
        {"a_key_that_is_longer_than_any_name_of_an_option_could_ever_possibly_be", "1", CM_EKEY}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cm_options *o = cm_options_new();
        int status = cm_options_set(o, good[i][0], good[i][1]);
        check(status == 0, "%s=%s: %s", good[i][0], good[i][1], cm_strerror(status));
        cm_options_free(o);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cm_options *o = cm_options_new(), kept;
        cm_options_set(o, "momentum", "0.7");
        kept = *o;
        int status = cm_options_set(o, bad[i].key, bad[i].value);
        check(status == bad[i].code && !memcmp(o, &kept, sizeof kept), "%s=%s: %s",
              bad[i].key ? bad[i].key : "NULL", bad[i].value ? bad[i].value : "NULL",
              cm_strerror(status));
        cm_options_free(o);
    }
    check(cm_options_set(NULL, "momentum", "0.9") == CM_ENULL, "options NULL");
    cm_options_free(NULL);
    /* cm_options_set stores the values. */
    cm_options *o = cm_options_new();
    check(o->optim.momentum == 0.95 && o->optim.damping == 0.01 && o->optim.mp == 1 &&
              o->optim.hybrid == 1 && o->optim.isotropic == 0 && o->weight_decay == 0 &&
              o->threads == 0,
          "the defaults");
    cm_options_set(o, "nesterov", "0");
    check(o->optim.nesterov == NESTEROV_OFF, "nesterov=0");
    cm_options_set(o, "nesterov", "1");
    check(o->optim.nesterov == NESTEROV_ON, "nesterov=1");
    cm_options_set(o, "weight_decay", "0.25");
    cm_options_set(o, "isotropic", "1");
    check(o->weight_decay == 0.25 && o->optim.isotropic == 1, "weight_decay, isotropic");
    cm_options_free(o);
    /* NULL for the options means the defaults. */
    for (int call = 0; call < CALLS; call++) {
        Case a = small(call), b = case_copy(&a);
        cm_options_free(b.o);
        b.o = NULL;
        check(case_run(&a) == 0 && case_run(&b) == 0 && case_same(&a, &b), "%s without options",
              call_names[call]);
        case_free(&a);
        case_free(&b);
    }
}

static void test_strerror(void) {
    for (int i = 0; i <= CM_EINDEFINITE; i++) {
        int unlike = strlen(cm_strerror(i)) > 5;
        for (int j = i + 1; j <= CM_EINDEFINITE + 1; j++)
            unlike &= strcmp(cm_strerror(i), cm_strerror(j)) != 0;
        check(unlike, "the sentence of error %d: %s", i, cm_strerror(i));
    }
    check(cm_strerror(-1) && cm_strerror(99999), "unknown codes have a sentence");
}

/* ---------------------------------------------------------------------------------------------- */
/* Mistakes                                                                                       */

static void test_arguments(void) {
    for (int call = 0; call < CALLS; call++) {
        Case c = small(call);
        for (int i = 0; i < c.n; i++) {
            Case e = c;
            e.b[i] = NULL;
            check(case_run(&e) == CM_ENULL, "%s: buffer %d NULL", call_names[call], i);
        }
        static const int sizes[] = {0, -1, -2147483647 - 1, 2147483647, (1 << 24) + 1};
        for (int i = 0; i < 5; i++) {
            int *const fields[] = {&c.d, &c.H, &c.S, &c.k}, pair = call == QK || call == OV;
            for (int f = 0; f < (pair ? 4 : call == ROOT ? 1 : 2); f++) {
                int valid = *fields[f];
                *fields[f] = sizes[i];
                check_refused(&c, CM_ESIZE, "size");
                *fields[f] = valid;
            }
        }
        if (call <= MUON) {
            static const float etas[] = {NAN, INFINITY, -INFINITY};
            for (int i = 0; i < 3; i++) {
                c.eta = etas[i];
                check_refused(&c, CM_ENUMBER, "eta");
            }
        }
        if (call == QK || call == OV) {
            c.eta = 0.1f;
            c.S = 3;
            check_refused(&c, CM_EHEADS, "4 heads over 3");
            c.S = 8;
            check_refused(&c, CM_EHEADS, "4 heads over 8");
        }
        case_free(&c);
    }
    float x[4] = {1, 0, 0, 1};
    check(cm_inv_sqrt(x, 2, -1, NULL) == CM_ENUMBER && cm_inv_sqrt(x, 2, NAN, NULL) == CM_ENUMBER &&
              x[0] == 1,
          "damping of cm_inv_sqrt");
    /* Buffers that are written must not overlap others; gradients may share memory. */
    for (int call = QK; call <= MUON; call++) {
        Case c = case_new(call, 24, 2, 2, 8, 3);
        if (call == MUON) c.H = c.d;
        int written = 0;
        for (int i = 0; i < c.n; i++)
            for (int j = 0; j < i; j++) {
                Case e = c;
                int gradients = call == MUON ? 0 : i == 3 && j == 2;
                if (call == MUON) e = case_new(call, 24, 24, 1, 1, 3);
                float *old = e.b[i];
                e.b[i] = e.b[j];
                Case start = case_copy(&e);
                int status = case_run(&e);
                written +=
                    gradients ? status != 0 : status != CM_EOVERLAP || !case_same(&e, &start);
                case_free(&start);
                if (call == MUON) {
                    e.b[i] = old;
                    case_free(&e);
                }
            }
        check(!written, "%s: %d overlaps", call_names[call], written);
        case_free(&c);
    }
    float *both = (float *)calloc(200, sizeof(float)), g[100] = {1};
    check(cm_muon(both, g, both + 99, 10, 10, 0.1f, NULL) == CM_EOVERLAP &&
              cm_muon(both, g, both + 100, 10, 10, 0.1f, NULL) == 0,
          "overlap by one element");
    free(both);
}

/* Options that exclude each other are refused, and only those. */
static void test_combinations(void) {
    static const struct {
        int call, groups, code;
        const char *options;
    } rows[] = {{QK, 0, 0, "method=joint"},
                {QK, 1, CM_ECOMBINATION, "method=joint"},
                {QK, 0, CM_ECOMBINATION, "method=joint per_mat_renorm=1"},
                {QK, 0, 0, "method=joint connection=frobenius isotropic=1"},
                {OV, 0, CM_ECOMBINATION, "method=joint"},
                {OV, 0, 0, "method=joint hybrid=0"},
                {QK, 0, CM_ECOMBINATION, "circuit=1"},
                {OV, 0, 0, "circuit=1"},
                {OV, 1, 0, "circuit=1 per_mat_renorm=1"},
                {OV, 0, CM_ECOMBINATION, "circuit=1 method=joint hybrid=0"},
                {OV, 0, CM_ECOMBINATION, "circuit=1 connection=frobenius"},
                {QK, 0, 0, "head_group=2 whiten_power=0.5 damping_form=relative"},
                {OV, 1, 0, "head_group=2 whiten_power=1.3"},
                {OV, 1, CM_ECOMBINATION, "head_group=4"},
                {OV, 1, 0, "head_group=0"},
                {QK, 0, CM_ECOMBINATION, "head_group=2 method=joint"},
                {QK, 0, CM_ECOMBINATION, "head_group=0 method=joint"},
                {QK, 0, CM_ECOMBINATION, "damping_form=relative connection=frobenius"},
                {QK, 0, 0, "damping_form=relative connection=frobenius gauge_damping=0"},
                {MUON, 0, 0, "circuit=1 method=joint connection=frobenius"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Case c = case_new(rows[i].call, 24, 4, rows[i].groups ? 2 : 4, 8, 17), e;
        char word[64];
        for (const char *p = rows[i].options; fixture_word(&p, word, sizeof word);) {
            char *value = strchr(word, '=');
            *value++ = 0;
            check(cm_options_set(c.o, word, value) == 0, "%s=%s", word, value);
        }
        if (rows[i].code) {
            check_refused(&c, rows[i].code, rows[i].options);
        } else {
            e = case_copy(&c);
            int status = case_run(&e);
            check(status == 0 && !case_same(&c, &e), "%s %s: %s", call_names[rows[i].call],
                  rows[i].options, cm_strerror(status));
            case_free(&e);
        }
        case_free(&c);
    }
}

static void test_nonfinite(void) {
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (int call = 0; call < CALLS; call++) {
        Case c = small(call);
        for (int i = 0; i < c.n; i++)
            for (int v = 0; v < 3; v++) {
                size_t at = v == 0 ? 0 : v == 1 ? c.size[i] - 1 : c.size[i] / 2;
                float kept = c.b[i][at];
                c.b[i][at] = values[v];
                check_refused(&c, CM_ENONFINITE, "a value that is not finite");
                c.b[i][at] = kept;
            }
        case_free(&c);
    }
    /* Finite arguments whose results are not finite. */
    for (int call = QK; call <= MUON; call++) {
        Case c = small(call);
        int gradient = call == MUON ? 1 : 3, momentum = call == MUON ? 2 : 5;
        c.b[gradient][7] = c.b[momentum][7] = 3.4e38f;
        cm_options_set(c.o, "momentum_form", "sum");
        check_refused(&c, CM_EOVERFLOW, "an overflow of the momentum");
        c.b[gradient][7] = c.b[momentum][7] = 0.01f;
        c.eta = 3e38f;
        cm_options_set(c.o, "mp", "1000");
        for (size_t j = 0; j < c.size[0]; j++) c.b[0][j] = -3.4e38f;
        check_refused(&c, CM_EOVERFLOW, "an overflow of the weights");
        case_free(&c);
    }
}

/* A matrix without an inverse root is refused by every method, in cm_inv_sqrt and as the Gram of a
   head's weights (two equal rows), however small it is. Damping makes it a matrix with a root. */
static void test_indefinite(void) {
    static const char *const roots[] = {"cans25", "cans12", "eigh"};
    static const float grams[][4] = {{1, 0, 0, -1}, {-1, 0, 0, -1}, {1, 1, 1, 1},
                                     {1, 2, 2, 1},  {1, 0, 0, 0},   {0, 1, 1, 0}};
    for (int root = 0; root < 3; root++) {
        for (int i = 0; i < (int)(sizeof grams / sizeof *grams); i++)
            for (int k = -120; k <= 100; k += 20) {
                cm_options *o = cm_options_new();
                float x[4], kept[4];
                cm_options_set(o, "inv_root", roots[root]);
                for (int j = 0; j < 4; j++) kept[j] = x[j] = ldexpf(grams[i][j], k);
                int status = cm_inv_sqrt(x, 2, 0, o);
                check(status == CM_EINDEFINITE && !memcmp(x, kept, sizeof x),
                      "%s of matrix %d times 2^%d: %s", roots[root], i, k, cm_strerror(status));
                status = cm_inv_sqrt(x, 2, ldexpf(3, k), o);
                check(status == CM_OK, "%s of matrix %d times 2^%d, damped: %s", roots[root], i, k,
                      cm_strerror(status));
                cm_options_free(o);
            }
        for (int call = QK; call <= OV; call++) {
            Case c = small(call);
            cm_options_set(c.o, "inv_root", roots[root]);
            cm_options_set(c.o, "damping", "0");
            /* Buffer 1 is W_K, or 0 is W_V: rows of heads. Its first two rows become equal. */
            float *w = c.b[call == QK ? 1 : 0];
            memcpy(w + c.d, w, (size_t)c.d * sizeof *w);
            check_refused(&c, CM_EINDEFINITE, "a singular partner");
            cm_options_set(c.o, "damping", "0.01");
            int status = case_run(&c);
            check(status == CM_OK, "%s with damping: %s", call_names[call], cm_strerror(status));
            case_free(&c);
        }
    }
}

/* A power of two times the gradient changes no bit of a step, and one times a matrix no bit of its
   sign. Of a Gram 4^k as large the root is 2^-k as large. */
static void test_scale(void) {
    for (int call = 0; call < CALLS; call++)
        for (int k = -48; k <= 48; k += 24) {
            Case c = small(call), e;
            int gradient = call == MUON ? 1 : 2, gradients = call == MUON ? 1 : call <= OV ? 2 : 0;
            int momentum = call == MUON ? 2 : 4;
            for (int i = 0; i < gradients; i++) {
                memset(c.b[momentum + i], 0, c.size[momentum + i] * sizeof(float));
                for (size_t j = 0; j < c.size[gradient + i]; j++) /* exact in every power of two */
                    c.b[gradient + i][j] =
                        copysignf(0.01f, c.b[gradient + i][j]) * (float)(1 + j % 3);
            }
            e = case_copy(&c);
            for (int i = 0; i < (gradients ? gradients : 1); i++)
                for (size_t j = 0; j < c.size[gradients ? gradient + i : 0]; j++)
                    e.b[gradients ? gradient + i : 0][j] *= ldexpf(1, call == ROOT ? 2 * k : k);
            cm_options_set(c.o, "damping", "0.01");
            int status = call == ROOT ? cm_inv_sqrt(c.b[0], c.d, 0.5f, c.o) : case_run(&c);
            int scaled =
                call == ROOT ? cm_inv_sqrt(e.b[0], e.d, ldexpf(0.5f, 2 * k), e.o) : case_run(&e);
            size_t differ = 0;
            for (size_t j = 0; j < c.size[0]; j++)
                differ += c.b[0][j] != e.b[0][j] * ldexpf(1, call == ROOT ? k : 0);
            check(!status && !scaled && !differ, "%s at 2^%d: %s, %zu elements differ",
                  call_names[call], k, cm_strerror(scaled), differ);
            case_free(&c);
            case_free(&e);
        }
}

/* A step without gradient, momentum and decay changes no bit, not even the sign of a zero. */
static void test_idle(void) {
    for (int call = QK; call <= MUON; call++)
        for (int sign = 0; sign < 2; sign++) {
            Case c = small(call);
            int weights = c.n / 3;
            for (int i = weights; i < c.n; i++)
                for (size_t j = 0; j < c.size[i]; j++) c.b[i][j] = sign ? -0.0f : 0;
            c.b[0][3] = -0.0f;
            c.b[0][4] = 0;
            Case e = case_copy(&c);
            int status = case_run(&e);
            check(status == 0 && case_same(&c, &e), "%s: a step without gradient",
                  call_names[call]);
            cm_options_set(e.o, "weight_decay", "0.5");
            status = case_run(&e);
            double worst = 0;
            for (size_t j = 0; j < c.size[0]; j++)
                worst = fmax(worst, fabs((double)e.b[0][j] - 0.95 * (double)c.b[0][j]));
            check(status == 0 && worst < 1e-6, "%s: decay alone, off by %g", call_names[call],
                  worst);
            case_free(&c);
            case_free(&e);
        }
}

/* A call writes all of its outputs, no inputs, and nothing behind a buffer. */
static void test_bounds(void) {
    for (int call = 0; call < CALLS; call++) {
        Case c = small(call), e;
        for (int i = 0; i < c.n; i++) c.b[i][c.size[i]] = 77;
        e = case_copy(&c);
        for (int i = 0; i < c.n; i++) e.b[i][e.size[i]] = 77;
        int status = case_run(&e), kept = 1;
        for (int i = 0; i < c.n; i++) {
            int gradient = c.n == 6 ? i == 2 || i == 3 : c.n == 3 && i == 1;
            int unchanged = !memcmp(c.b[i], e.b[i], c.size[i] * sizeof(float));
            kept &= unchanged == gradient && e.b[i][e.size[i]] == 77;
        }
        check(status == 0 && kept, "%s writes all of its outputs and nothing else",
              call_names[call]);
        case_free(&c);
        case_free(&e);
    }
    /* One head; one shared head; heads that together are wider than d. */
    static const int shapes[][4] = {{1, 1, 1, 1}, {3, 1, 1, 5}, {5, 4, 1, 8}, {64, 6, 3, 4}};
    for (int i = 0; i < 4; i++)
        for (int call = QK; call <= OV; call++) {
            const int *s = shapes[i];
            Case c = case_new(call, s[0], s[1], s[2], s[3], (uint64_t)i);
            check(case_run(&c) == 0, "%s of d %d, heads %d over %d, %d wide", call_names[call],
                  s[0], s[1], s[2], s[3]);
            case_free(&c);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* Memory                                                                                         */

static void *run_in_thread(void *c) { return (void *)(intptr_t)case_run((Case *)c); }

/* Runs every call in a new thread, which has no scratch yet, while the n-th allocation and all
   later ones fail. The call must return an error and change nothing, or give the right result. */
static void test_memory(void) {
    for (int call = 0; call < CALLS; call++)
        for (int root = 0; root < 2; root++) {
            Case c = small(call), expected;
            cm_options_set(c.o, "threads", "1");
            if (root) cm_options_set(c.o, "inv_root", "eigh");
            expected = case_copy(&c);
            check(case_run(&expected) == 0, "%s with memory", call_names[call]);
            int survived = 0;
            for (int n = 0; n < 12; n++) {
                Case e = case_copy(&c);
                pthread_t thread;
                void *status = NULL;
                allocations_failed = 0;
                __atomic_store_n(&allocations_left, n, __ATOMIC_RELAXED);
                int started = !pthread_create(&thread, NULL, run_in_thread, &e);
                if (started) pthread_join(thread, &status);
                __atomic_store_n(&allocations_left, -1, __ATOMIC_RELAXED);
                int code = (int)(intptr_t)status;
                survived += code == 0 && allocations_failed;
                if (code == 0)
                    check(case_distance(&e, &expected) < 1e-5,
                          "%s: wrong by %g after %d allocations", call_names[call],
                          case_distance(&e, &expected), n);
                else
                    check(started && code == CM_ENOMEM && case_same(&c, &e),
                          "%s: %s after %d allocations", call_names[call], cm_strerror(code), n);
                case_free(&e);
                if (!allocations_failed) break;
                check(n < 11, "%s never has enough memory", call_names[call]);
            }
            check(survived > 0 || (root && call == ROOT), "%s never ran without scratch",
                  call_names[call]);
            case_free(&c);
            case_free(&expected);
        }
    allocations_left = 0;
    cm_options *o = cm_options_new();
    allocations_left = -1;
    check(!o, "cm_options_new without memory");
}

static void take_too_much(const Job *job, Arena *arena) {
    (void)job;
    float *p = arena_take(arena, 1000), *q = arena_take(arena, 1);
    check(!p && !q, "an arena that ran out gives memory");
}

/* A workspace that is too small, which must never happen. The call must return an error and write
   nothing beyond the workspace. */
static void test_overrun(void) {
    enum { ROOM = 64 };
    float memory[2 * ROOM];
    Arena arena = {memory, ROOM, 0};
    check(run_threads(take_too_much, NULL, &arena, 1) == CM_EINTERNAL, "too small a workspace");
    float x[3][12 * 8];
    for (int i = 0; i < 3 * 12 * 8; i++) x[i / 96][i % 96] = (float)((i * 37) % 11 - 5);
    cm_options o;
    options_default(&o);
    Call c;
    call_begin(&c, &o);
    Job job = job_of(&c, RULE_MUON, 1, 0.1f);
    job.step.leg[0] = leg_of(12, 8, 0, 0);
    size_t need = work_scratch(work_step, &job);
    job.step.leg[0].W.p = x[0];
    job.step.leg[0].M.p = x[1];
    job.step.leg[0].G.p = x[2];
    for (size_t size = 0; size < need; size += 16) {
        float *room = (float *)malloc((need + 16) * sizeof *room);
        for (size_t i = 0; i < need + 16; i++) room[i] = 7;
        arena.p = room;
        arena.size = size;
        arena.used = 0;
        int status = run_threads(work_step, &job, &arena, 1), kept = 1;
        for (size_t i = size; i < need + 16; i++) kept &= room[i] == 7;
        check(status == CM_EINTERNAL && kept, "%zu numbers of scratch where %zu are needed: %s",
              size, need, cm_strerror(status));
        free(room);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Threads                                                                                        */

/* Matrices that are large enough for products to run in several threads. */
static Case large(int call, uint64_t seed) {
    return case_new(call, call == ROOT ? 48 : 160, call >= MUON ? 96 : 4, 2, 24, seed);
}

static void test_thread_option(void) {
#ifdef _OPENMP
    int caller_threads = omp_get_max_threads();
    for (int call = 0; call < CALLS; call++) {
        Case c = large(call, 5), one = case_copy(&c);
        cm_options_set(one.o, "threads", "1");
        check(case_run(&one) == 0, "%s with one thread", call_names[call]);
        for (int threads = 2; threads <= 3; threads++) {
            Case e = case_copy(&c);
            cm_options_set(e.o, "threads", threads == 2 ? "2" : "3");
            check(case_run(&e) == 0 && case_same(&one, &e), "%s with %d threads differs",
                  call_names[call], threads);
            check(omp_get_max_threads() == caller_threads, "%s leaves the number of threads at %d",
                  call_names[call], omp_get_max_threads());
            case_free(&e);
        }
        case_free(&c);
        case_free(&one);
    }
    /* Calls from inside a parallel region, as in a program that updates its layers in parallel. */
    Case c = large(QK, 6), e[4];
    for (int i = 0; i < 4; i++) e[i] = case_copy(&c);
    int bad = 0;
    check(case_run(&c) == 0, "serial");
#pragma omp parallel for num_threads(2) reduction(+ : bad)
    for (int i = 0; i < 4; i++) bad += case_run(&e[i]) != 0;
    for (int i = 0; i < 4; i++) {
        bad += !case_same(&c, &e[i]);
        case_free(&e[i]);
    }
    check(!bad, "inside a parallel region %d of 4 calls differ", bad);
    case_free(&c);
#endif
}

enum { THREADS = 8, ROUNDS = 6 };

/* What one thread does: every call, on its own buffers, with options that all threads share. */
static void life(Case *c, int thread) {
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < CALLS; i++) {
            int call = (i + thread) % CALLS;
            if (call < MSIGN || round == 0) c[call].n = case_run(&c[call]) ? 0 : c[call].n;
        }
}

typedef struct {
    Case c[CALLS];
    int index;
} Life;

static void *live(void *p) {
    life(((Life *)p)->c, ((Life *)p)->index);
    return NULL;
}

static void test_concurrency(void) {
    static Life serial[THREADS], parallel[THREADS];
    pthread_t threads[THREADS];
    cm_options *shared = cm_options_new();
    cm_options_set(shared, "threads", "1");
    cm_options_set(shared, "weight_decay", "0.1");
    for (int t = 0; t < THREADS; t++) {
        serial[t].index = parallel[t].index = t;
        for (int call = 0; call < CALLS; call++) {
            serial[t].c[call] = large(call, (uint64_t)(100 + t));
            cm_options_free(serial[t].c[call].o);
            serial[t].c[call].o = shared;
            parallel[t].c[call] = case_copy(&serial[t].c[call]);
            cm_options_free(parallel[t].c[call].o);
            parallel[t].c[call].o = shared;
        }
    }
    for (int t = 0; t < THREADS; t++) live(&serial[t]);
    int bad = 0;
    for (int t = 0; t < THREADS; t++)
        bad += pthread_create(&threads[t], NULL, live, &parallel[t]) != 0;
    for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
    for (int t = 0; t < THREADS; t++)
        for (int call = 0; call < CALLS; call++) {
            Case *a = &serial[t].c[call], *b = &parallel[t].c[call];
            check(a->n > 0 && a->n == b->n && case_same(a, b), "thread %d: %s differs from serial",
                  t, call_names[call]);
            a->o = b->o = NULL;
            case_free(a);
            case_free(b);
        }
    check(!bad, "%d threads did not start", bad);
    cm_options_free(shared);
}

static const Test tests[] = {
    TEST(strerror),   TEST(options), TEST(msign_compute), TEST(fixtures),      TEST(arguments),
    TEST(indefinite), TEST(scale),   TEST(combinations),  TEST(nonfinite),     TEST(idle),
    TEST(bounds),     TEST(memory),  TEST(overrun),       TEST(thread_option), TEST(concurrency)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
