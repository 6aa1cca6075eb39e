/*
Reads test fixtures (*.fix), which dev/reference writes. A file is a sequence of records: a text
line `name dtype ndim d0 d1 ...\n` with dtype f4, f8, i4 or s1 (string), then the little-endian
data.

    Fixture *fx = fixture_load("dev/test/fixtures/optim_basic.fix");
    const FixtureRecord *r = fixture_get(fx, "case.muon.w", "f4");
    r->dims[0], r->count, r->f4[i] ...
    fixture_free(fx);

An unreadable file or a missing name ends the test program with a message. The machine has to be
little-endian, as for checkpoints and shards.
*/
#ifndef CM_FIXTURE_H
#define CM_FIXTURE_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIXTURE_MAX_DIMS 4

typedef struct {
    char name[96];
    char dtype[3];
    int ndim;
    size_t dims[FIXTURE_MAX_DIMS]; /* 1 beyond ndim */
    size_t count;                  /* product of dims; for a string its length */
    void *data;                    /* from malloc, so aligned; a string ends with a 0 */
    const float *f4;               /* the pointer of the record's own dtype; the others are NULL */
    const double *f8;
    const int32_t *i4;
    const char *s1;
} FixtureRecord;

typedef struct {
    char path[512];
    int count;
    FixtureRecord *records;
} Fixture;

__attribute__((format(printf, 1, 2), noreturn, unused)) static void fixture_die(const char *format,
                                                                                ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "fixture error: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

__attribute__((unused)) static void fixture_free(Fixture *fx) {
    if (!fx) return;
    for (int i = 0; i < fx->count; i++) free(fx->records[i].data);
    free(fx->records);
    free(fx);
}

/* Reads the whole file. Never returns NULL. */
__attribute__((unused)) static Fixture *fixture_load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fixture_die("cannot open %s; run the test from the root of the repository", path);
    Fixture *fx = (Fixture *)calloc(1, sizeof *fx);
    if (!fx) fixture_die("out of memory");
    snprintf(fx->path, sizeof fx->path, "%s", path);
    char line[256];
    while (fgets(line, sizeof line, file)) {
        fx->records =
            (FixtureRecord *)realloc(fx->records, (size_t)(fx->count + 1) * sizeof *fx->records);
        if (!fx->records) fixture_die("out of memory");
        FixtureRecord *r = &fx->records[fx->count++];
        memset(r, 0, sizeof *r);
        int used = 0;
        if (sscanf(line, "%95s %2s %d%n", r->name, r->dtype, &r->ndim, &used) != 3 || r->ndim < 0 ||
            r->ndim > FIXTURE_MAX_DIMS || !strchr(line, '\n'))
            fixture_die("%s: record %d has a malformed header", path, fx->count);
        const char *at = line + used;
        r->count = 1;
        for (int i = 0; i < FIXTURE_MAX_DIMS; i++) {
            unsigned long long d = 1;
            if (i < r->ndim) {
                if (sscanf(at, "%llu%n", &d, &used) != 1)
                    fixture_die("%s: record %s has a malformed header", path, r->name);
                at += used;
            }
            r->dims[i] = (size_t)d;
            r->count *= (size_t)d;
        }
        size_t item = !strcmp(r->dtype, "f8") ? 8 : !strcmp(r->dtype, "s1") ? 1 : 4;
        if (item == 4 && strcmp(r->dtype, "f4") && strcmp(r->dtype, "i4"))
            fixture_die("%s: record %s has the unknown type %s", path, r->name, r->dtype);
        r->data = calloc(r->count * item + 1, 1);
        if (!r->data) fixture_die("out of memory");
        if (fread(r->data, item, r->count, file) != r->count)
            fixture_die("%s: ends inside record %s; regenerate it with dev/reference", path,
                        r->name);
        if (!strcmp(r->dtype, "f4")) r->f4 = (const float *)r->data;
        if (!strcmp(r->dtype, "f8")) r->f8 = (const double *)r->data;
        if (!strcmp(r->dtype, "i4")) r->i4 = (const int32_t *)r->data;
        if (!strcmp(r->dtype, "s1")) r->s1 = (const char *)r->data;
    }
    fclose(file);
    if (!fx->count) fixture_die("%s has no records; regenerate it with dev/reference", path);
    return fx;
}

/* The record of this name, or NULL if the fixture has none. */
__attribute__((unused)) static const FixtureRecord *fixture_find(const Fixture *fx,
                                                                 const char *name) {
    for (int i = 0; i < fx->count; i++)
        if (!strcmp(fx->records[i].name, name)) return &fx->records[i];
    return NULL;
}

/* The record of this name and type. Ends the program if there is none. */
__attribute__((unused)) static const FixtureRecord *fixture_get(const Fixture *fx, const char *name,
                                                                const char *dtype) {
    const FixtureRecord *r = fixture_find(fx, name);
    if (!r) fixture_die("%s has no record %s", fx->path, name);
    if (strcmp(r->dtype, dtype))
        fixture_die("%s: record %s is %s where the test wants %s", fx->path, name, r->dtype, dtype);
    return r;
}

/* fixture_get with a printf-style name: fixture_getf(fx, "f4", "case.%s.wq.%d", name, step). */
__attribute__((format(printf, 3, 4), unused)) static const FixtureRecord *
fixture_getf(const Fixture *fx, const char *dtype, const char *format, ...) {
    char name[96];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return fixture_get(fx, name, dtype);
}

/* A string record as text. */
__attribute__((unused)) static const char *fixture_text(const Fixture *fx, const char *name) {
    return fixture_get(fx, name, "s1")->s1;
}

/* Copies the value of a key of "key=value key=value ..." to out (n bytes), "" if there is none. */
__attribute__((unused)) static const char *fixture_option(const char *options, const char *key,
                                                          char *out, size_t n) {
    size_t length = strlen(key);
    out[0] = 0;
    for (const char *p = options; *p;) {
        size_t word = strcspn(p, " ");
        if (word > length && p[length] == '=' && !strncmp(p, key, length)) {
            size_t value = word - length - 1;
            if (value >= n) fixture_die("option %s is too long: %s", key, options);
            memcpy(out, p + length + 1, value);
            out[value] = 0;
            return out;
        }
        p += word;
        while (*p == ' ') p++;
    }
    return out;
}

/* Option `key` of a case, from its own flags or from the defaults of its rule; "" if neither
   states it. */
__attribute__((unused)) static const char *case_option(const Fixture *fx, const char *name,
                                                       const char *key, char *out, size_t n) {
    char rule[32], record[64];
    const char *flags = fixture_getf(fx, "s1", "case.%s.flags", name)->s1;
    if (fixture_option(flags, key, out, n)[0]) return out;
    fixture_option(flags, "rule", rule, sizeof rule);
    snprintf(record, sizeof record, "defaults.%s", rule);
    const FixtureRecord *defaults = fixture_find(fx, record);
    return defaults ? fixture_option(defaults->s1, key, out, n) : out;
}

__attribute__((unused)) static int case_is(const Fixture *fx, const char *name, const char *key,
                                           const char *value) {
    char text[64];
    return !strcmp(case_option(fx, name, key, text, sizeof text), value);
}

__attribute__((unused)) static double case_number(const Fixture *fx, const char *name,
                                                  const char *key) {
    char text[64];
    if (!case_option(fx, name, key, text, sizeof text)[0])
        fixture_die("%s: case %s does not state %s", fx->path, name, key);
    return atof(text);
}

/* Steps through a list of words:
       for (const char *p = fixture_text(fx, "cases"); fixture_word(&p, name, sizeof name);) */
__attribute__((unused)) static int fixture_word(const char **list, char *out, size_t n) {
    while (**list == ' ') (*list)++;
    size_t length = strcspn(*list, " ");
    if (!length) return 0;
    if (length >= n) fixture_die("word too long in: %.60s...", *list);
    memcpy(out, *list, length);
    out[length] = 0;
    *list += length;
    return 1;
}

#endif
