/*
Tests of libcmuon through its C ABI: the fixtures of the oracle, the options, the mistakes that a
caller can make, and the promises of cmuon.h. A failing call changes nothing, a call without memory
returns an error code, and threads neither disturb each other nor change a bit. cm_lora is held to a
plain formula in double and to the trainer's plan.

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
#include "../../llmc/optim/plan.h"
#include "config_of.h"

/* ---------------------------------------------------------------------------------------------- */
/* One call with its buffers                                                                      */

enum { QK, OV, LORA, MUON, MSIGN, ROOT, CALLS };
static const char *const call_names[] = {"cm_qk",   "cm_ov",    "cm_lora",
                                         "cm_muon", "cm_msign", "cm_inv_sqrt"};

/* Buffers are in the order of the arguments: w, g, m of cm_muon, or the six of a pair. */
typedef struct {
    /* cm_lora: m = H, n = d, r = k; cm_muon, cm_msign: (H, d); cm_inv_sqrt: n = d */
    int call, d, H, S, k;
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
    if (c->call == LORA) return (size_t)(i % 2 ? c->d : c->H) * c->k;
    return (size_t)(c->call == ROOT ? c->d : c->H) * c->d;
}

static Case case_new(int call, int d, int H, int S, int k, uint64_t seed) {
    static const int buffers[] = {6, 6, 6, 3, 1, 1};
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
    case LORA: return cm_lora(b[0], b[1], b[2], b[3], b[4], b[5], c->H, c->d, c->k, c->eta, c->o);
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

static Case small(int call) {
    return case_new(call, call == ROOT ? 9 : 24, call == LORA ? 20 : 4, 2, 8, 11);
}

/* Sets the options "key=value key=value". */
static void set_options(cm_options *o, const char *options) {
    char word[64];
    for (const char *p = options; fixture_word(&p, word, sizeof word);) {
        char *value = strchr(word, '=');
        *value++ = 0;
        check(cm_options_set(o, word, value) == 0, "%s=%s", word, value);
    }
}

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
                                          {"lora_trust", "0"},
                                          {"lora-trust", "0.3"},
                                          {"lora_rebalance", "1"},
                                          {"lora_scale", "16"},
                                          {"lora_rule", "lora-muon"},
                                          {"lora-rule", "cm"},
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
        {"lora_scale", "0", CM_EVALUE},
        {"lora_scale", "-1", CM_EVALUE},
        {"lora_scale", "inf", CM_EVALUE},
        {"lora_rule", "adamw", CM_EVALUE},
        {"lora_rule", "1", CM_EVALUE},
        {"lora_trust", "-0.1", CM_EVALUE},
        {"lora_rebalance", "1.5", CM_EVALUE},
        {"lora_rank", "8", CM_EKEY},
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
              o->lora_scale == 1 && o->optim.lora_trust == 0.1 && o->threads == 0 &&
              lora_rules[o->lora_rule] == RULE_LORA_MUON,
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
            static const int count[] = {4, 4, 3, 2, 2, 1};
            int *const fields[] = {&c.d, &c.H, &c.k, &c.S};
            for (int f = 0; f < count[call]; f++) {
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
        if (call == LORA) {
            c.eta = 0.1f;
            c.k = c.H + 1; /* the buffers have room for 20 x 24 */
            c.d = c.k;
            check_refused(&c, CM_ESIZE, "a rank above m");
            c.H = c.k;
            c.d = c.k - 1;
            check_refused(&c, CM_ESIZE, "a rank above n");
        }
        case_free(&c);
    }
    float x[4] = {1, 0, 0, 1};
    check(cm_inv_sqrt(x, 2, -1, NULL) == CM_ENUMBER && cm_inv_sqrt(x, 2, NAN, NULL) == CM_ENUMBER &&
              x[0] == 1,
          "damping of cm_inv_sqrt");
    /* Buffers that are written must not overlap others; gradients may share memory. */
    for (int call = QK; call <= MUON; call++) {
        Case c = case_new(call, 24, call == LORA ? 24 : 2, 2, 8, 3);
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
    } rows[] = {
        {QK, 0, 0, "method=joint"},
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
        {MUON, 0, 0, "circuit=1 method=joint connection=frobenius"},
        {LORA, 0, 0, "weight_decay=9.9"}, /* eta is 0.1 */
        {LORA, 0, CM_ECOMBINATION, "weight_decay=10"},
        {LORA, 0, CM_ECOMBINATION, "weight_decay=1000 lora_scale=1e6"},
        {LORA, 0, 0, "weight_decay=10 lora_rule=cm"},
        {LORA, 0, 0, "circuit=1 method=joint per_mat_renorm=1 head_group=3"},
        {LORA, 0, 0, "circuit=1 method=joint head_group=3 lora_rule=cm"},
        {LORA, 0, CM_ECOMBINATION, "method=joint per_mat_renorm=1 lora_rule=cm"},
        {LORA, 0, 0, "connection=frobenius momentum_reproject=copy lora_rule=cm"},
        {LORA, 0, CM_ECOMBINATION, "damping_form=relative connection=frobenius lora_rule=cm"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int wide = rows[i].call == LORA;
        Case c = case_new(rows[i].call, 24, wide ? 20 : 4, rows[i].groups ? 2 : 4, 8, 17), e;
        set_options(c.o, rows[i].options);
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
        for (int call = QK; call <= LORA; call++) {
            Case c = small(call);
            cm_options_set(c.o, "inv_root", roots[root]);
            cm_options_set(c.o, "damping", "0");
            cm_options_set(c.o, "lora_rule", "cm");
            /* Buffer 1 is W_K or B^T, or 0 is W_V: rows of heads. Its first two rows become
               equal. */
            float *w = c.b[call == OV ? 0 : 1];
            memcpy(w + c.d, w, (size_t)c.d * sizeof *w);
            check_refused(&c, CM_EINDEFINITE, "a singular partner");
            if (call == LORA) { /* LoRA-Muon has no damping: pe7 has a floor, eigh none */
                cm_options_set(c.o, "lora_rule", "lora-muon");
                cm_options_set(c.o, "lora_trust", "0");
                if (root == 2) check_refused(&c, CM_EINDEFINITE, "a singular partner");
                else {
                    Case e = case_copy(&c);
                    int status = case_run(&e);
                    check(status == CM_OK, "lora-muon with pe7, singular: %s", cm_strerror(status));
                    case_free(&e);
                }
                cm_options_set(c.o, "lora_rule", "cm");
            }
            cm_options_set(c.o, "damping", "0.01");
            int status = case_run(&c);
            check(status == CM_OK, "%s with damping: %s", call_names[call], cm_strerror(status));
            case_free(&c);
        }
    }
}

/* pe7 has a root of a singular Gram: along the null space that of its floor, 1e-5 of the norm, and
   of zero it is zero. */
static void test_floor(void) {
    cm_options *o = cm_options_new();
    cm_options_set(o, "inv_root", "pe7");
    float x[4] = {4, 0, 0, 0}, zero[4] = {0, 0, 0, 0};
    double floor = 1 / sqrt(4 * 1e-5);
    int status = cm_inv_sqrt(x, 2, 0, o);
    check(status == CM_OK && fabs((double)x[0] - 0.5) < 1e-4 && x[1] == 0 &&
              (double)x[3] > 0.5 * floor && (double)x[3] < 1.1 * floor,
          "pe7 of diag(4, 0): %s, (%g, %g)", cm_strerror(status), (double)x[0], (double)x[3]);
    status = cm_inv_sqrt(zero, 2, 0, o);
    check(status == CM_OK && all_zero(zero, 4), "pe7 of zero: %s", cm_strerror(status));
    cm_options_free(o);
}

/* A power of two times the gradient changes no bit of a step, and one times a matrix no bit of its
   sign. Of a Gram 4^k as large the root is 2^-k as large. */
static void test_scale(void) {
    for (int call = 0; call < CALLS; call++)
        for (int k = -48; k <= 48; k += 24) {
            Case c = small(call), e;
            int gradient = call == MUON ? 1 : 2, gradients = call == MUON   ? 1
                                                             : call <= LORA ? 2
                                                                            : 0;
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
            double keep = call == LORA ? sqrt(0.95) : 0.95; /* cm_lora: of the product */
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
                worst = fmax(worst, fabs((double)e.b[0][j] - keep * (double)c.b[0][j]));
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
    /* One head; one shared head; heads that together are wider than d. Rank 1; the full rank. */
    static const int shapes[][4] = {{1, 1, 1, 1}, {3, 1, 1, 5}, {5, 4, 1, 8},  {64, 6, 3, 4},
                                    {1, 1, 0, 1}, {9, 4, 0, 1}, {5, 70, 0, 5}, {64, 6, 0, 4}};
    for (int i = 0; i < 8; i++)
        for (int call = i < 4 ? QK : LORA; call <= (i < 4 ? OV : LORA); call++) {
            const int *s = shapes[i];
            Case c = case_new(call, s[0], s[1], s[2], s[3], (uint64_t)i);
            check(case_run(&c) == 0, "%s of d %d, heads %d over %d, %d wide", call_names[call],
                  s[0], s[1], s[2], s[3]);
            case_free(&c);
        }
}

/* ---------------------------------------------------------------------------------------------- */
/* The factors of a product                                                                       */

/* Factors in double, both as P (r, n): A^T and B^T. */
typedef struct {
    int r, n[2];
    double *P[2], *M[2], *G[2];
} Plain;

/* A factor of a case as P (r, n). A is stored as (n, r). */
static void plain_read(double *P, const Case *c, int buffer) {
    int r = c->k, n = buffer % 2 ? c->d : c->H;
    for (int i = 0; i < r; i++)
        for (int j = 0; j < n; j++)
            P[i * n + j] = (double)c->b[buffer][buffer % 2 ? i * n + j : j * r + i];
}

static Plain plain_of(const Case *c) {
    Plain p = {c->k, {c->H, c->d}, {0}, {0}, {0}};
    for (int leg = 0; leg < 2; leg++) {
        size_t size = (size_t)p.r * p.n[leg];
        p.P[leg] = (double *)calloc(size, sizeof(double));
        p.M[leg] = (double *)calloc(size, sizeof(double));
        p.G[leg] = (double *)calloc(size, sizeof(double));
        plain_read(p.P[leg], c, leg);
        plain_read(p.M[leg], c, 4 + leg);
    }
    return p;
}

static void plain_free(Plain *p) {
    for (int leg = 0; leg < 2; leg++) {
        free(p->P[leg]);
        free(p->M[leg]);
        free(p->G[leg]);
    }
}

/* G (r,r) <- G^(-1/2), by cyclic Jacobi rotations. */
static void plain_root(double *G, int r) {
    double V[16 * 16] = {0}, root[16 * 16] = {0};
    for (int i = 0; i < r; i++) V[i * r + i] = 1;
    for (int sweep = 0; sweep < 60; sweep++)
        for (int p = 0; p < r; p++)
            for (int q = p + 1; q < r; q++) {
                double x = G[p * r + q];
                if (x == 0) continue;
                double t = (G[q * r + q] - G[p * r + p]) / (2 * x);
                t = (t < 0 ? -1 : 1) / (fabs(t) + sqrt(t * t + 1));
                double c = 1 / sqrt(t * t + 1), sine = c * t;
                for (int k = 0; k < r; k++) { /* columns, of V too */
                    double a = G[k * r + p], b = G[k * r + q];
                    G[k * r + p] = c * a - sine * b;
                    G[k * r + q] = sine * a + c * b;
                    a = V[k * r + p], b = V[k * r + q];
                    V[k * r + p] = c * a - sine * b;
                    V[k * r + q] = sine * a + c * b;
                }
                for (int k = 0; k < r; k++) { /* rows */
                    double a = G[p * r + k], b = G[q * r + k];
                    G[p * r + k] = c * a - sine * b;
                    G[q * r + k] = sine * a + c * b;
                }
                G[p * r + q] = G[q * r + p] = 0;
            }
    for (int i = 0; i < r; i++)
        for (int j = 0; j < r; j++)
            for (int k = 0; k < r; k++)
                root[i * r + j] += V[i * r + k] * V[j * r + k] / sqrt(G[k * r + k]);
    memcpy(G, root, (size_t)r * r * sizeof *G);
}

/* G (r,r) = P P^T + d I. */
static void plain_gram(double *G, const double *P, int r, int n, double d) {
    for (int i = 0; i < r; i++)
        for (int j = 0; j < r; j++) {
            G[i * r + j] = i == j ? d : 0;
            for (int k = 0; k < n; k++) G[i * r + j] += P[i * n + k] * P[j * n + k];
        }
}

/* P (r,n) <- R P. */
static void plain_multiply(double *P, const double *R, int r, int n) {
    double column[16];
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < r; i++) column[i] = P[i * n + j];
        for (int i = 0; i < r; i++) {
            P[i * n + j] = 0;
            for (int k = 0; k < r; k++) P[i * n + j] += R[i * r + k] * column[k];
        }
    }
}

/* The mean of the diagonal of a factor's Gram. */
static double plain_mean(const Plain *p, int leg) {
    double sum = 0;
    for (int i = 0; i < p->r * p->n[leg]; i++) sum += p->P[leg][i] * p->P[leg][i];
    return sum / p->r;
}

/* What is added to the partner's Gram: CM's damping, or the floor of optim/factors.h. */
static double plain_floor(const Plain *p, int leg, double half, const cm_options *o) {
    double own = plain_mean(p, leg), other = plain_mean(p, 1 - leg);
    double tau = half / o->optim.lora_trust;
    if (lora_rules[o->lora_rule] == RULE_CM) return o->optim.damping;
    return o->optim.lora_trust ? fmax(0, fmin(tau * tau / own, own) - other) : 0;
}

/* A step by the formulas as they stand in the paper:

       P <- k P - eta / (2 s k) R msign(R U),  R = (Q Q^T + floor)^(-1/2),

   where msign(Y) = (Y Y^T)^(-1/2) Y, U is Nesterov's momentum, and Q the other factor before the
   step. With CM k is 1 - eta wd, and nothing is divided by it. */
static void plain_step(Plain *p, const cm_options *o, double eta) {
    double R[16 * 16], S[16 * 16], half = eta / (2 * o->lora_scale), beta = o->optim.momentum;
    double *U[2];
    int r = p->r, is_cm = lora_rules[o->lora_rule] == RULE_CM;
    double keep = is_cm ? 1 - eta * o->weight_decay : sqrt(1 - eta * o->weight_decay);
    for (int leg = 0; leg < 2; leg++) {
        int n = p->n[leg];
        U[leg] = (double *)calloc((size_t)r * n, sizeof(double));
        for (int i = 0; i < r * n; i++) {
            double g = p->G[leg][i];
            p->M[leg][i] = beta * p->M[leg][i] + (1 - beta) * g;
            U[leg][i] = beta * p->M[leg][i] + (1 - beta) * g;
        }
        plain_gram(R, p->P[1 - leg], r, p->n[1 - leg], plain_floor(p, leg, half, o));
        plain_root(R, r);
        plain_multiply(U[leg], R, r, n);
        plain_gram(S, U[leg], r, n, 0);
        plain_root(S, r);
        plain_multiply(U[leg], S, r, n);
        plain_multiply(U[leg], R, r, n);
    }
    for (int leg = 0; leg < 2; leg++) {
        for (int i = 0; i < r * p->n[leg]; i++)
            p->P[leg][i] = keep * p->P[leg][i] - half / (is_cm ? 1 : keep) * U[leg][i];
        free(U[leg]);
    }
}

/* The error of a factor of the case, relative to its way from `start`; in *moment that of its
   momentum. */
static double plain_error(const Plain *p, const Case *c, const Case *start, int leg,
                          double *moment) {
    size_t size = (size_t)p->r * p->n[leg];
    double *now = (double *)calloc(size, sizeof(double));
    double *from = (double *)calloc(size, sizeof(double)), off = 0, moved = 0;
    plain_read(now, c, leg);
    plain_read(from, start, leg);
    for (size_t i = 0; i < size; i++) {
        off += (now[i] - p->P[leg][i]) * (now[i] - p->P[leg][i]);
        moved += (from[i] - p->P[leg][i]) * (from[i] - p->P[leg][i]);
    }
    plain_read(now, c, 4 + leg);
    *moment = relative_l2_dd(now, p->M[leg], size, 1e-30);
    free(now);
    free(from);
    return sqrt(off / moved);
}

/* Once with an exact root and a sign that converges, which leaves rounding; and once with the
   defaults: the floor of pe7 is 1e-5 of a Gram's norm, a thousandth of the smallest eigenvalues
   here. */
static void test_lora(void) {
    static const struct {
        int m, n, r, cold; /* cold: the buffer that begins at zero; -1: none */
        const char *options;
    } rows[] = {{13, 9, 3, -1, ""},
                {5, 40, 1, -1, "lora_scale=0.25"},
                {30, 12, 8, -1, ""},
                {20, 40, 14, -1, "lora_scale=4"},
                {24, 17, 4, -1, ""},
                {24, 17, 4, 0, ""},
                {24, 17, 4, 1, ""},
                {40, 30, 8, 0, "lora_trust=0.02 lora_scale=2"},
                {12, 50, 6, -1, "lora_rule=cm"},
                {12, 50, 6, 0, "lora_rule=cm lora_scale=2"}};
    for (int i = 0; i < (int)(sizeof rows / sizeof *rows); i++)
        for (int way = 0; way < 2; way++) {
            Case c = case_new(LORA, rows[i].n, rows[i].m, 0, rows[i].r, (uint64_t)(50 + i)), start;
            set_options(c.o, "weight_decay=0.7");
            set_options(c.o, rows[i].options);
            if (way == 0) set_options(c.o, "inv_root=eigh msign=simple12");
            if (rows[i].cold >= 0)
                memset(c.b[rows[i].cold], 0, c.size[rows[i].cold] * sizeof(float));
            start = case_copy(&c);
            Plain p = plain_of(&c);
            double worst = 0, worst_moment = 0;
            for (int step = 0; step < 4; step++) {
                for (int leg = 0; leg < 2; leg++) {
                    for (size_t j = 0; j < c.size[2 + leg]; j++)
                        c.b[2 + leg][j] =
                            (float)(0.01 * rng_normal((uint64_t)i, (uint64_t)(2 * step + leg), j));
                    plain_read(p.G[leg], &c, 2 + leg);
                }
                int status = case_run(&c);
                check(status == 0, "cm_lora: %s", cm_strerror(status));
                plain_step(&p, c.o, (double)c.eta);
                for (int leg = 0; leg < 2; leg++) {
                    double moment, e = plain_error(&p, &c, &start, leg, &moment);
                    worst = fmax(worst, e);
                    worst_moment = fmax(worst_moment, moment);
                }
            }
            check(worst < (way ? 2e-3 : 1e-5) && worst_moment < 1e-5,
                  "cm_lora (%d,%d) of rank %d, cold %d, %s: %g from the formula, momenta %g",
                  rows[i].m, rows[i].n, rows[i].r, rows[i].cold, rows[i].options, worst,
                  worst_moment);
            plain_free(&p);
            case_free(&c);
            case_free(&start);
        }
}

/* An adapter whose A is zero, fitted to a target by the loss 1/2 ||s A B^T - T||^2. The first step
   leaves B alone, and lora_trust bounds the second. */
static void test_lora_start(void) {
    enum { M = 20, N = 24, R = 4 };
    for (int trust = 0; trust < 2; trust++) {
        Case c = case_new(LORA, N, M, 0, R, 9);
        static double D[M * N];
        double loss[41], s = 2, moved[2] = {0, 0}, size = 0;
        set_options(c.o, trust ? "lora_scale=2" : "lora_scale=2 lora_trust=0");
        c.eta = 0.05f;
        for (int i = 0; i < c.n; i++)
            if (i != 1) memset(c.b[i], 0, c.size[i] * sizeof(float));
        Case before = case_copy(&c);
        for (int step = 0; step <= 40; step++) {
            loss[step] = 0;
            for (int i = 0; i < M * N; i++) {
                D[i] = -0.1 * rng_normal(77, 0, (uint64_t)i);
                for (int k = 0; k < R; k++)
                    D[i] += s * (double)c.b[0][i / N * R + k] * (double)c.b[1][k * N + i % N];
                loss[step] += D[i] * D[i] / 2;
            }
            memset(c.b[2], 0, c.size[2] * sizeof(float));
            memset(c.b[3], 0, c.size[3] * sizeof(float));
            for (int i = 0; i < M * N; i++)
                for (int k = 0; k < R; k++) {
                    c.b[2][i / N * R + k] += (float)(s * D[i]) * c.b[1][k * N + i % N];
                    c.b[3][k * N + i % N] += (float)(s * D[i]) * c.b[0][i / N * R + k];
                }
            int status = case_run(&c);
            check(status == 0, "step %d: %s", step, cm_strerror(status));
            for (size_t i = 0; i < c.size[1] && step < 2; i++) {
                double change = (double)c.b[1][i] - (double)before.b[1][i];
                moved[step] += change * change;
                if (step) size += (double)before.b[1][i] * (double)before.b[1][i];
            }
        }
        check(moved[0] == 0, "a zero partner moves B by %g", sqrt(moved[0]));
        moved[1] = sqrt(moved[1] / size);
        check(trust ? moved[1] < 0.11 : moved[1] > 0.5,
              "lora_trust %d: the second step moves B by %g of its size", trust, moved[1]);
        check(!trust || loss[40] < 0.85 * loss[0], "the loss goes from %g to %g", loss[0],
              loss[40]);
        case_free(&before);
        case_free(&c);
    }
}

/* Every layer's factors by the trainer's plan, which updates all layers of a part together, and by
   cm_lora one by one: the same bits, as the rate is a float in both. */
static void lora_plan(const char *rule, const char *begin, const char *common) {
    char flags[512], options[256], word[64];
    snprintf(flags, sizeof flags,
             "--low-rank 3 --lora-on all --layers 3 --width 24 --heads 2 --seq-len 4 --tied off "
             "--act swiglu --lr 0.0625 --lora %s --lora-init %s",
             rule, begin);
    snprintf(options, sizeof options, "lora-rule=%s %s%s", rule, common,
             strcmp(begin, "zero") ? " lora-trust=0" : "");
    for (const char *p = common; fixture_word(&p, word, sizeof word);) {
        size_t used = strlen(flags);
        *strchr(word, '=') = ' ';
        snprintf(flags + used, sizeof flags - used, " --%s", word);
    }
    Config c = config_of(flags, "");
    Registry r = registry_build(&c);
    Plan plan = plan_build(&c, &r);
    size_t size = r.size[SLOT_PARAM];
    float *memory =
        (float *)calloc(4 * size + plan.state_size + plan.arena_size + 64, sizeof(float));
    Arena arena = {memory + 4 * size + plan.state_size, plan.arena_size, 0};
    float *p = memory, *g = memory + size, *m = g + size, *before = m + size;
    for (size_t i = 0; i < size; i++) p[i] = (float)(0.3 * rng_normal(3, 0, i));
    for (int i = 0; i < plan.n && !strcmp(begin, "zero"); i++) /* adapters begin with A = 0 */
        if (plan.e[i].product_scale != 0) {
            Mat A = part_view(&r, plan.e[i].part[0], p);
            la_axpby(A, 0, A, 0);
        }
    Case e = {LORA, 0, 0, 0, 0, (float)c.lr_lora, cm_options_new(), 6, {0}, {0}};
    set_options(e.o, options);
    int pairs = 0, differ = 0;
    for (int step = 1; step <= 3; step++) {
        for (size_t i = 0; i < size; i++) g[i] = (float)(0.01 * rng_normal(3, (uint64_t)step, i));
        /* Both steps begin here: the plan's on the copies. */
        memcpy(before, p, size * sizeof(float));
        float *moment = (float *)calloc(size, sizeof(float));
        memcpy(moment, m, size * sizeof(float));
        PlanState s = {.param = p,
                       .grad = g,
                       .moment = m,
                       .state = m + 2 * size,
                       .arena = &arena,
                       .lr_scale = {1, 1},
                       .momentum = c.optim.momentum,
                       .gscale = 1,
                       .step = step};
        plan_step(&plan, &r, &c, &s);
        for (int i = 0; i < plan.n; i++) {
            const PlanEntry *entry = &plan.e[i];
            for (int l = 0; entry->product_scale != 0 && l < part_held(&r, entry->part[0]).layers;
                 l++, pairs++) {
                float *result[4];
                for (int leg = 0; leg < 2; leg++) {
                    Mat W = part_layers(&r, entry->part[leg], SLOT_PARAM, before, l, 1);
                    size_t at = (size_t)(W.p - before);
                    if (leg) e.d = W.cols, e.k = W.rows;
                    else e.H = W.rows;
                    e.size[leg] = e.size[2 + leg] = e.size[4 + leg] = mat_size(W);
                    e.b[leg] = before + at;
                    e.b[2 + leg] = g + at;
                    e.b[4 + leg] = moment + at;
                    result[leg] = p + at;
                    result[2 + leg] = m + at;
                }
                int status = case_run(&e);
                check(status == 0, "%s: cm_lora of %s: %s", flags, entry->name[0],
                      cm_strerror(status));
                int unlike = 0;
                for (int k = 0; k < 4; k++)
                    unlike |= memcmp(result[k], e.b[k < 2 ? k : 2 + k], e.size[k] * sizeof(float));
                differ += unlike != 0;
            }
        }
        free(moment);
    }
    check(pairs == 3 * (3 * 7 + 1) && !differ, "%s: %d of %d pairs differ from cm_lora", flags,
          differ, pairs);
    cm_options_free(e.o);
    free(memory);
}

static void test_lora_plan(void) {
    static const char *const common[] = {
        "lora-scale=1", "lora-scale=2 weight-decay=0.4 lora-rebalance=0.5 lora-trust=0",
        "lora-scale=0.5 inv-root=eigh msign=pe8-lora momentum=0.8 nesterov=off"};
    for (int i = 0; i < 3; i++) {
        lora_plan("lora-muon", "zero", common[i]);
        lora_plan("lora-muon", "balanced", common[i]);
        lora_plan("cm", "zero", common[i]);
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

/* The step of a job on less scratch than it needs. */
static void overrun(Job *job, size_t need) {
    for (size_t size = 0; size < need; size += 16) {
        float *room = (float *)malloc((need + 16) * sizeof *room);
        for (size_t i = 0; i < need + 16; i++) room[i] = 7;
        Arena arena = {room, size, 0};
        int status = run_threads(work_step, job, &arena, 1), kept = 1;
        for (size_t i = size; i < need + 16; i++) kept &= room[i] == 7;
        check(status == CM_EINTERNAL && kept, "%s: %zu numbers of scratch where %zu are needed: %s",
              job->step.rule->flag, size, need, cm_strerror(status));
        free(room);
    }
}

/* A workspace that is too small, which must never happen. The call must return an error and write
   nothing beyond the workspace. */
static void test_overrun(void) {
    enum { ROOM = 64 };
    float memory[2 * ROOM];
    Arena arena = {memory, ROOM, 0};
    check(run_threads(take_too_much, NULL, &arena, 1) == CM_EINTERNAL, "too small a workspace");
    float x[6][12 * 8];
    for (int i = 0; i < 6 * 12 * 8; i++) x[i / 96][i % 96] = (float)((i * 37) % 11 - 5);
    cm_options o;
    options_default(&o);
    o.optim.lora_rebalance = 1; /* takes scratch of its own */
    Call c;
    call_begin(&c, &o);
    for (int legs = 1; legs <= 2; legs++) {
        Job job = job_of(&c, legs == 1 ? RULE_MUON : RULE_LORA_MUON, legs, 0.1f);
        job.step.leg[0] = leg_of(12, 8, legs - 1, legs - 1);
        job.step.leg[1] = leg_of(8, 12, 1, 0);
        job.step.product_scale = job.step.product_cold = legs - 1;
        size_t need = work_scratch(work_step, &job);
        for (int leg = 0; leg < legs; leg++) {
            job.step.leg[leg].W.p = x[leg];
            job.step.leg[leg].M.p = x[2 + leg];
            job.step.leg[leg].G.p = x[4 + leg];
        }
        overrun(&job, need);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Threads                                                                                        */

/* Matrices that are large enough for products to run in several threads. */
static Case large(int call, uint64_t seed) {
    return case_new(call, call == ROOT ? 48 : 160, call >= LORA ? 96 : 4, 2, 24, seed);
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
    TEST(strerror),   TEST(options), TEST(msign_compute), TEST(fixtures),     TEST(arguments),
    TEST(indefinite), TEST(floor),   TEST(scale),         TEST(combinations), TEST(nonfinite),
    TEST(idle),       TEST(bounds),  TEST(lora),          TEST(lora_start),   TEST(lora_plan),
    TEST(memory),     TEST(overrun), TEST(thread_option), TEST(concurrency)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
