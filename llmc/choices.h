/*
What a machine has chosen by measurement (the faster of two attentions, the algorithm of a matrix product), kept
in a text file beside the runs and in every checkpoint. Measured twice, two ways of about equal speed may change
places, and with them the last bits of a run; so what was measured once is taken from then on.

The file is lines "key=value" after a first line that names the format. Keys name the device and the shape.
*/
#ifndef CM_CHOICES_H
#define CM_CHOICES_H

#include "files.h"

#define CHOICES_FORMAT "cm.c choices 1\n"

typedef struct {
    char *key, *value;
} Choice;

typedef struct Choices {
    Choice *c;
    int n, room;
    int changed;          /* since choices_read or choices_write */
    struct Choices *from; /* where choices_recall looks too; NULL if nowhere */
} Choices;

static inline void choices_free(Choices *s) {
    for (int i = 0; i < s->n; i++) free(s->c[i].key), free(s->c[i].value);
    free(s->c);
    memset(s, 0, sizeof *s);
}

/* The value of a key, valid until it is set again; NULL if there is none. s may be NULL. */
static inline const char *choices_get(const Choices *s, const char *key) {
    for (int i = 0; s && i < s->n; i++)
        if (!strcmp(s->c[i].key, key)) return s->c[i].value;
    return NULL;
}

/* A copy of n characters. */
static inline char *choices_copy(const char *text, size_t n) {
    char *copy = (char *)malloc(n + 1);
    if (!copy) die("out of memory: what was measured");
    memcpy(copy, text, n);
    copy[n] = 0;
    return copy;
}

/* Neither may hold a newline, nor the key "=". s may be NULL, which keeps nothing. */
static inline void choices_set(Choices *s, const char *key, const char *value) {
    const char *old = choices_get(s, key);
    if (!s || (old && !strcmp(old, value))) return;
    s->changed = 1;
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->c[i].key, key)) {
            free(s->c[i].value);
            s->c[i].value = choices_copy(value, strlen(value));
            return;
        }
    if (s->n == s->room) {
        s->room = 2 * s->room + 8;
        s->c = (Choice *)realloc(s->c, (size_t)s->room * sizeof *s->c);
        if (!s->c) die("out of memory: what was measured");
    }
    s->c[s->n].key = choices_copy(key, strlen(key));
    s->c[s->n++].value = choices_copy(value, strlen(value));
}

/* The value of a key here, or else of s.from, from which it is taken over; NULL if there is none. s may be
   NULL. */
static inline const char *choices_recall(Choices *s, const char *key) {
    const char *value = choices_get(s, key);
    if (value || !s || !(value = choices_get(s->from, key))) return value;
    choices_set(s, key, value);
    return choices_get(s, key);
}

/* Takes the lines "PREFIXkey=value" of a text over those that are there; other lines are passed over. */
static inline void choices_parse(Choices *s, const char *text, size_t size, const char *prefix) {
    size_t skip = strlen(prefix);
    for (const char *line = text, *end = text + size, *next; line < end; line = next + 1) {
        next = (const char *)memchr(line, '\n', (size_t)(end - line));
        if (!next) return; /* a line without an end is not whole */
        const char *equals = (const char *)memchr(line, '=', (size_t)(next - line));
        if (!equals || (size_t)(equals - line) <= skip || memcmp(line, prefix, skip)) continue;
        char *key = choices_copy(line + skip, (size_t)(equals - line) - skip);
        char *value = choices_copy(equals + 1, (size_t)(next - equals) - 1);
        choices_set(s, key, value);
        free(key);
        free(value);
    }
}

/* Reads a file over what is there. 0: read, or there is none; -1: it is of no use, and err says why. */
static inline int choices_read(Choices *s, const char *path, char *err) {
    char text[1 << 16];
    size_t n, size = 0, format = sizeof CHOICES_FORMAT - 1;
    char *all = NULL;
    FILE *f = fopen(path, "rb");
    if (!f && errno == ENOENT) return 0;
    if (!f) return fail(err, "cannot read %s: %s", path, strerror(errno));
    while ((n = fread(text, 1, sizeof text, f)) > 0 && size < (size_t)64 << 20) {
        char *more = (char *)realloc(all, size + n);
        if (!more) break;
        memcpy((all = more) + size, text, n);
        size += n;
    }
    int bad = ferror(f) || !feof(f) || size < format || memcmp(all, CHOICES_FORMAT, format);
    if (!bad) choices_parse(s, all + format, size - format, "");
    free(all);
    fclose(f);
    s->changed = 0;
    return bad ? fail(err, "%s is not a file of choices by cm.c: delete it, and they are made anew",
                      path)
               : 0;
}

/* Replaces the file, which keeps what other runs have put there since. 0, or -1 with a message. */
static inline int choices_write(Choices *s, const char *path, char *err) {
    Choices all;
    char *text = NULL, ignored[ERR_LEN];
    size_t size = 0;
    memset(&all, 0, sizeof all);
    if (choices_read(&all, path, ignored)) choices_free(&all);
    for (int i = 0; i < s->n; i++) choices_set(&all, s->c[i].key, s->c[i].value);
    FILE *f = open_memstream(&text, &size);
    if (!f) return choices_free(&all), fail(err, "out of memory: %s", path);
    fputs(CHOICES_FORMAT, f);
    for (int i = 0; i < all.n; i++) fprintf(f, "%s=%s\n", all.c[i].key, all.c[i].value);
    fclose(f);
    int status = file_replace(path, text, size, err);
    free(text);
    choices_free(&all);
    if (!status) s->changed = 0;
    return status;
}

#endif
