/*
Choices by measurement: the faster of two attentions, the algorithm of a matrix product. They are
kept in a text file beside the runs and in every checkpoint. A second measurement might choose the
other of two ways of about equal speed, which would change the last bits of a run. So each choice is
made once, and later runs follow it.

The file has a first line that names the format, then lines "key=value". Keys name the device and
the shape.
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
    int changed;          /* 1: something was set since choices_read or choices_write */
    struct Choices *from; /* choices of other runs, from which choices_recall copies; may be NULL */
} Choices;

static inline void choices_free(Choices *s) {
    for (int i = 0; i < s->n; i++) {
        free(s->c[i].key);
        free(s->c[i].value);
    }
    free(s->c);
    memset(s, 0, sizeof *s);
}

/* The value of a key, valid until the key is set again; NULL if the key has none. s may be NULL. */
static inline const char *choices_get(const Choices *s, const char *key) {
    for (int i = 0; s && i < s->n; i++)
        if (!strcmp(s->c[i].key, key)) return s->c[i].value;
    return NULL;
}

/* A copy of n characters; NULL without memory. */
static inline char *choices_copy(const char *text, size_t n) {
    char *copy = (char *)malloc(n + 1);
    if (!copy) return NULL;
    memcpy(copy, text, n);
    copy[n] = 0;
    return copy;
}

/* Adds a new key without a value; NULL without memory. */
static inline Choice *choices_add(Choices *s, const char *key) {
    if (s->n == s->room) {
        int room = 2 * s->room + 8;
        Choice *grown = (Choice *)realloc(s->c, (size_t)room * sizeof *grown);
        if (!grown) return NULL;
        s->c = grown;
        s->room = room;
    }
    Choice *choice = &s->c[s->n];
    choice->key = choices_copy(key, strlen(key));
    choice->value = NULL;
    if (!choice->key) return NULL;
    s->n++;
    return choice;
}

/* Sets a key. Neither key nor value may contain a newline, and the key no "=". If s is
   NULL, nothing is kept. Returns 0, or -1 without memory; the key then keeps its earlier
   value, if any. */
static inline int choices_set(Choices *s, const char *key, const char *value) {
    const char *old = choices_get(s, key);
    if (!s || (old && !strcmp(old, value))) return 0;
    char *copy = choices_copy(value, strlen(value));
    Choice *choice = NULL;
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->c[i].key, key)) choice = &s->c[i];
    if (copy && !choice) choice = choices_add(s, key);
    if (!copy || !choice) {
        free(copy);
        return -1;
    }
    free(choice->value);
    choice->value = copy;
    s->changed = 1;
    return 0;
}

/* The value of a key in s, or else its value in s.from, which s then takes over; NULL if neither
   has one. s may be NULL. */
static inline const char *choices_recall(Choices *s, const char *key) {
    const char *value = choices_get(s, key);
    if (value || !s) return value;
    value = choices_get(s->from, key);
    if (value) choices_set(s, key, value);
    return value;
}

/* Sets the keys of a text's lines "PREFIXkey=value"; skips other lines. */
static inline void choices_parse(Choices *s, const char *text, size_t size, const char *prefix) {
    size_t skip = strlen(prefix);
    for (const char *line = text, *end = text + size, *next; line < end; line = next + 1) {
        next = (const char *)memchr(line, '\n', (size_t)(end - line));
        if (!next) return; /* a last line without a newline may have been cut short */
        const char *equals = (const char *)memchr(line, '=', (size_t)(next - line));
        if (!equals || (size_t)(equals - line) <= skip || memcmp(line, prefix, skip)) continue;
        char *key = choices_copy(line + skip, (size_t)(equals - line) - skip);
        char *value = choices_copy(equals + 1, (size_t)(next - equals) - 1);
        if (key && value) choices_set(s, key, value);
        free(key);
        free(value);
    }
}

/* Sets the keys of a file. Returns 0 if the file was read or does not exist, -1 with a message if
   it cannot be used. */
static inline int choices_read(Choices *s, const char *path, char *err) {
    const size_t most = (size_t)64 << 20; /* 64 MiB; a file of choices has some kilobytes */
    char text[1 << 16];
    size_t n, size = 0, format = sizeof CHOICES_FORMAT - 1;
    char *contents = NULL;
    FILE *f = fopen(path, "rb");
    if (!f && errno == ENOENT) return 0;
    if (!f) return fail(err, "cannot read %s: %s", path, strerror(errno));
    while ((n = fread(text, 1, sizeof text, f)) > 0 && size < most) {
        char *grown = (char *)realloc(contents, size + n);
        if (!grown) break;
        contents = grown;
        memcpy(contents + size, text, n);
        size += n;
    }
    int bad = ferror(f) || !feof(f) || size < format || memcmp(contents, CHOICES_FORMAT, format);
    if (!bad) choices_parse(s, contents + format, size - format, "");
    free(contents);
    fclose(f);
    s->changed = 0;
    if (!bad) return 0;
    return fail(err, "%s is not a file of choices by cm.c: delete it, and they are made anew",
                path);
}

/* Adds the choices to those that other runs have put into the file. Returns 0, or -1 with a
   message. */
static inline int choices_write(Choices *s, const char *path, char *err) {
    Choices merged;
    char *text = NULL, ignored[ERR_LEN];
    size_t size = 0;
    memset(&merged, 0, sizeof merged);
    if (choices_read(&merged, path, ignored)) choices_free(&merged);
    for (int i = 0; i < s->n; i++) choices_set(&merged, s->c[i].key, s->c[i].value);
    FILE *f = open_memstream(&text, &size);
    if (!f) {
        choices_free(&merged);
        return fail(err, "out of memory: %s", path);
    }
    fputs(CHOICES_FORMAT, f);
    for (int i = 0; i < merged.n; i++) fprintf(f, "%s=%s\n", merged.c[i].key, merged.c[i].value);
    int status =
        fclose(f) ? fail(err, "out of memory: %s", path) : file_replace(path, text, size, err);
    free(text);
    choices_free(&merged);
    if (!status) s->changed = 0;
    return status;
}

#endif
