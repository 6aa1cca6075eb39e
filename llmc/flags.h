/*
Command line flags from one table.

A program's settings are a plain struct. A table of Flag has one row per setting: its name, its
offset in the struct, its default, range and help. Parser, --help, run.json, the flags in a
checkpoint and docs/flags.md are all made from that table, so they cannot disagree:

    typedef struct { int batch_size; double lr; char run[FLAG_STRING_SIZE]; } Config;
    #define FIELD(NAME) offsetof(Config, NAME)
    #define SECTION "Training"
    static const Flag table[] = {
        FLAG_INT("batch-size", batch_size, "8", 1, 65536, "sequences per step"),
        FLAG_FLOAT("lr", lr, "3e-4", 0, 1, "peak learning rate"),
        FLAG_TEXT("run", run, "test", "name of the run"),
    };
    #undef SECTION
    #undef FIELD

Values are given as `--name value` or `--name=value`. Mistakes are errors, never guesses: unknown
and repeated flags, missing and malformed values, numbers out of range, stray words.
*/
#ifndef CM_FLAGS_H
#define CM_FLAGS_H

#include "base.h"
#include "json.h"
#include "terminal.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>

#define FLAG_STRING_SIZE 512

typedef enum {
    KIND_INT,    /* int */
    KIND_LONG,   /* int64_t; 10k, 1.5M, 2G and 2B are understood when they are whole numbers */
    KIND_FLOAT,  /* double, finite */
    KIND_STRING, /* char[FLAG_STRING_SIZE] */
    KIND_CHOICE, /* int, index into choices "a|b|c", or a value that `choice` has a name for */
    KIND_BOOL,   /* int, on|off (true|false, yes|no, 1|0) */
    KIND_SWITCH  /* int, its presence sets 1; --name=off takes it back */
} FlagKind;

/* What a resumed run may do with a setting. */
typedef enum {
    RESUME_FREE,  /* change it: no number that the run computes depends on it */
    RESUME_NOTED, /* change it: the rest of the run differs, and run.json says from which step on */
    RESUME_FIXED, /* nothing: the weights, or the place in the data, would mean another thing */
    RESUME_START  /* it belongs to one start of the program and is not kept */
} FlagResume;

typedef struct {
    const char *name; /* without dashes: "batch-size" */
    FlagKind kind;
    size_t offset;       /* offsetof(Config, field) */
    const char *def;     /* as the user would type it; NULL: "" for a string, off for a switch */
    double lo, hi;       /* inclusive; lo == hi: any number; INFINITY leaves a side open */
    const char *choices; /* KIND_CHOICE only: "a|b|c" */
    const char *help;    /* one sentence, with the unit */
    const char *section; /* its heading in --help and in the manual; NULL: that of the row before */
    /* KIND_CHOICE in place of choices: the name of value i, "" where the flag does not take the
       value, NULL past the last value. */
    const char *(*choice)(int i);
    FlagResume on_resume;
} Flag;

/* Rows of a table, each with its name, its field, its default as the user would type it, its range
   or its choices, and its help. The table's file defines FIELD(NAME), the offset of a field,
   SECTION, the heading of the rows that follow, and, if its runs are resumed, ON_RESUME, a
   FlagResume for the rows that follow. */
enum { ON_RESUME = RESUME_FREE };
#define FLAG_ROW(NAME, KIND, AT, DEF, LO, HI, CHOICES, HELP)                                       \
    { NAME, KIND, FIELD(AT), DEF, LO, HI, CHOICES, HELP, SECTION, NULL, (FlagResume)ON_RESUME }
#define FLAG_INT(NAME, AT, DEF, LO, HI, HELP) FLAG_ROW(NAME, KIND_INT, AT, DEF, LO, HI, NULL, HELP)
#define FLAG_LONG(NAME, AT, DEF, LO, HI, HELP)                                                     \
    FLAG_ROW(NAME, KIND_LONG, AT, DEF, LO, HI, NULL, HELP)
#define FLAG_FLOAT(NAME, AT, DEF, LO, HI, HELP)                                                    \
    FLAG_ROW(NAME, KIND_FLOAT, AT, DEF, LO, HI, NULL, HELP)
#define FLAG_TEXT(NAME, AT, DEF, HELP) FLAG_ROW(NAME, KIND_STRING, AT, DEF, 0, 0, NULL, HELP)
#define FLAG_CHOICE(NAME, AT, DEF, CHOICES, HELP)                                                  \
    FLAG_ROW(NAME, KIND_CHOICE, AT, DEF, 0, 0, CHOICES, HELP)
#define FLAG_CHOICE_OF(NAME, AT, DEF, CHOICE, HELP)                                                \
    { NAME, KIND_CHOICE, FIELD(AT), DEF, 0, 0, NULL, HELP, SECTION, CHOICE, (FlagResume)ON_RESUME }
#define FLAG_BOOL(NAME, AT, DEF, HELP) FLAG_ROW(NAME, KIND_BOOL, AT, DEF, 0, 0, NULL, HELP)
#define FLAG_SWITCH(NAME, AT, HELP) FLAG_ROW(NAME, KIND_SWITCH, AT, "off", 0, 0, NULL, HELP)

/* The heading that row i begins in --help and in the manual, or NULL. */
static inline const char *flags_heading(const Flag *flags, int i) {
    const char *section = flags[i].section, *before = i ? flags[i - 1].section : NULL;
    return section && (!before || strcmp(section, before)) ? section : NULL;
}

static inline void *flags_field(const Flag *flag, void *cfg) { return (char *)cfg + flag->offset; }
static inline const void *flags_value(const Flag *flag, const void *cfg) {
    return (const char *)cfg + flag->offset;
}

/* Index of the flag of that name (without dashes), or -1. */
static inline int flags_find(const Flag *flags, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (strcmp(flags[i].name, name) == 0) return i;
    return -1;
}

/* ---------------------------------------------------------------------------------------------- */
/* Values from text                                                                               */

/* Name of value `index` of a flag of KIND_CHOICE, as pointer and length, which is 0 where the flag
   does not take the value; NULL past the last. */
static inline const char *flags_choice(const Flag *flag, int index, int *length) {
    const char *choices = flag->choices;
    if (flag->choice) {
        const char *name = flag->choice(index);
        *length = name ? (int)strlen(name) : 0;
        return name;
    }
    while (choices) {
        const char *bar = strchr(choices, '|');
        *length = bar ? (int)(bar - choices) : (int)strlen(choices);
        if (index-- == 0) return choices;
        choices = bar ? bar + 1 : NULL;
    }
    return NULL;
}

/* Writes "a, b or c" for the choices "a|b|c", or those of flag->choice. */
static inline void flags_choices_text(const Flag *flag, char *text, size_t size) {
    size_t used = 0;
    int length, last = 0;
    const char *choice;
    text[0] = 0;
    for (int i = 0; flags_choice(flag, i, &length); i++)
        if (length) last = i;
    for (int i = 0; (choice = flags_choice(flag, i, &length)) != NULL && used < size; i++) {
        if (!length) continue;
        const char *separator = !used ? "" : i == last ? " or " : ", ";
        used += (size_t)snprintf(text + used, size - used, "%s%.*s", separator, length, choice);
    }
}

/* Reads decimal text with an optional fraction and suffix as an exact integer. Returns 0, or 1 if
   it is no whole number, or 2 if it does not fit 64 bits. A double would round 9007199254740993. */
static inline int flags_integer(const char *text, int suffixes, int64_t *out) {
    const char *s = text;
    int negative = *s == '-';
    if (*s == '-' || *s == '+') s++;
    uint64_t value = 0;
    int digits = 0, fraction = 0, point = 0, overflow = 0;
    for (; isdigit((unsigned char)*s) || (*s == '.' && !point); s++) {
        if (*s == '.') {
            point = 1;
            continue;
        }
        digits++;
        /* Zeros at the end of a fraction change nothing: 1.50000000M is 1500000. */
        if (point && !isdigit((unsigned char)s[strspn(s, "0")])) continue;
        fraction += point;
        overflow |= __builtin_mul_overflow(value, (uint64_t)10, &value);
        overflow |= __builtin_add_overflow(value, (uint64_t)(*s - '0'), &value);
    }
    int power = 0;
    if (suffixes && *s) {
        power = *s == 'k' || *s == 'K' ? 3 : *s == 'M' ? 6 : *s == 'G' || *s == 'B' ? 9 : 0;
        s += power > 0;
    }
    if (!digits || *s || (point && !suffixes) || fraction > power) return 1;
    for (int i = fraction; i < power; i++)
        overflow |= __builtin_mul_overflow(value, (uint64_t)10, &value);
    if (overflow || value > (uint64_t)INT64_MAX) return 2;
    *out = negative ? -(int64_t)value : (int64_t)value;
    return 0;
}

/* A strict strtod: all of the text must be one finite decimal number; hexadecimal, nan and
   inf are refused. Returns 0, or 1 if it is no number, or 2 if it is too large or too small
   for a double. */
static inline int flags_double(const char *text, double *out) {
    char *end;
    if (!*text || text[strspn(text, "+-.0123456789eE")]) return 1;
    errno = 0;
    *out = strtod(text, &end);
    if (end == text || *end) return 1;
    return errno == ERANGE && (*out == 0 || !isfinite(*out)) ? 2 : 0;
}

/* Returns 1 for on, true, 1, yes; 0 for off, false, 0, no; -1 for any other text. */
static inline int flags_bool(const char *text) {
    static const char *const words[] = {"off", "on", "false", "true", "0", "1", "no", "yes"};
    for (int i = 0; i < 8; i++)
        if (strcmp(text, words[i]) == 0) return i & 1;
    return -1;
}

/* Writes "at least 1", "at most 1", "from 0 to 1", or "" where every number is allowed. */
static inline void flags_range_text(const Flag *flag, char *text, size_t size) {
    char lo[JSON_NUMBER_SIZE], hi[JSON_NUMBER_SIZE];
    json_double_text(lo, flag->lo);
    json_double_text(hi, flag->hi);
    text[0] = 0;
    if (flag->kind != KIND_INT && flag->kind != KIND_LONG && flag->kind != KIND_FLOAT) return;
    if (flag->lo == flag->hi) return;
    if (isfinite(flag->lo) && isfinite(flag->hi)) snprintf(text, size, "from %s to %s", lo, hi);
    else if (isfinite(flag->lo)) snprintf(text, size, "at least %s", lo);
    else if (isfinite(flag->hi)) snprintf(text, size, "at most %s", hi);
}

/* Whether a number is in the range of a flag; lo == hi stands for every number. */
static inline int flags_in_range(const Flag *flag, double number) {
    return flag->lo == flag->hi || (number >= flag->lo && number <= flag->hi);
}

static inline int flags_fail_range(const Flag *flag, const char *value, char *err) {
    char range[128];
    flags_range_text(flag, range, sizeof range);
    return fail(err, "--%s is out of range: %.80s given, must be %s (%s)", flag->name, value, range,
                flag->help);
}

/* Sets a field of KIND_INT or KIND_LONG. */
static inline int flags_set_integer(const Flag *flag, void *field, const char *value, char *err) {
    int64_t number = 0;
    int is_long = flag->kind == KIND_LONG;
    int wrong = flags_integer(value, is_long, &number);
    if (wrong == 2 || (!wrong && !is_long && (number < INT_MIN || number > INT_MAX)))
        return fail(err, "--%s: %.80s does not fit %d bits (%s)", flag->name, value,
                    is_long ? 64 : 32, flag->help);
    if (wrong)
        return fail(err, "--%s takes a whole number%s, not \"%.80s\" (%s)", flag->name,
                    is_long ? " such as 500, 10k, 1.5M or 2B" : "", value, flag->help);
    if (!flags_in_range(flag, (double)number)) return flags_fail_range(flag, value, err);
    if (is_long) *(int64_t *)field = number;
    else *(int *)field = (int)number;
    return 0;
}

static inline int flags_set_float(const Flag *flag, double *field, const char *value, char *err) {
    double number = 0;
    int wrong = flags_double(value, &number);
    if (wrong == 1)
        return fail(err, "--%s takes a finite number, not \"%.80s\" (%s)", flag->name, value,
                    flag->help);
    if (wrong == 2)
        return fail(err, "--%s: %.80s does not fit a double (%s)", flag->name, value, flag->help);
    if (!flags_in_range(flag, number)) return flags_fail_range(flag, value, err);
    *field = number;
    return 0;
}

/* Not inlined: a table without strings may fill a struct smaller than one string. A compiler that
   sees that struct and this function together warns of a write past its end, which no row asks
   for. */
__attribute__((noinline, unused)) static int flags_set_string(const Flag *flag, char *field,
                                                              const char *value, char *err) {
    if (strlen(value) >= FLAG_STRING_SIZE)
        return fail(err, "--%s: the text is too long, %zu bytes where %d fit (it begins \"%.40s\")",
                    flag->name, strlen(value), FLAG_STRING_SIZE - 1, value);
    memset(field, 0, FLAG_STRING_SIZE);
    strcpy(field, value);
    return 0;
}

static inline int flags_set_choice(const Flag *flag, int *field, const char *value, char *err) {
    char list[512];
    const char *choice;
    for (int i = 0, length; (choice = flags_choice(flag, i, &length)) != NULL; i++) {
        if (!length || strlen(value) != (size_t)length || strncmp(value, choice, (size_t)length))
            continue;
        *field = i;
        return 0;
    }
    flags_choices_text(flag, list, sizeof list);
    return fail(err, "--%s takes one of %s, not \"%.80s\" (%s)", flag->name, list, value,
                flag->help);
}

static inline int flags_set_bool(const Flag *flag, int *field, const char *value, char *err) {
    int on = flags_bool(value);
    if (on < 0)
        return fail(err, "--%s takes on or off, not \"%.80s\" (%s)", flag->name, value, flag->help);
    *field = on;
    return 0;
}

/* Parses a value into the field of one flag; NULL stands for no value. A switch also takes "on" and
   "off", the texts that flags_get_text writes for it. On an error the field keeps its value. */
static inline int flags_parse_value(const Flag *flag, void *cfg, const char *value, char *err) {
    void *field = flags_field(flag, cfg);
    if (!value) {
        if (flag->kind != KIND_SWITCH)
            return fail(err, "--%s needs a value (%s)", flag->name, flag->help);
        *(int *)field = 1;
        return 0;
    }
    switch (flag->kind) {
    case KIND_INT:
    case KIND_LONG: return flags_set_integer(flag, field, value, err);
    case KIND_FLOAT: return flags_set_float(flag, (double *)field, value, err);
    case KIND_STRING: return flags_set_string(flag, (char *)field, value, err);
    case KIND_CHOICE: return flags_set_choice(flag, (int *)field, value, err);
    case KIND_BOOL:
    case KIND_SWITCH: return flags_set_bool(flag, (int *)field, value, err);
    }
    return fail(err, "--%s: the flag table names no kind", flag->name);
}

/* Sets every field to its default. A default that does not parse is a mistake of the program. */
static inline void flags_defaults(const Flag *flags, int n, void *cfg) {
    char err[ERR_LEN];
    for (int i = 0; i < n; i++) {
        const char *def = flags[i].def;
        if (!def) def = flags[i].kind == KIND_SWITCH ? "off" : "";
        if (flags_parse_value(&flags[i], cfg, def, err)) {
            fprintf(stderr, "flag table: the default of --%s is wrong: %s\n", flags[i].name, err);
            abort();
        }
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* The command line                                                                               */

/* Edits (insert, delete, replace, swap of neighbours) from a to b, both at most 63 characters. */
static inline int flags_distance(const char *a, const char *b) {
    int rows[3][64];
    int m = min_int((int)strlen(a), 63), n = min_int((int)strlen(b), 63);
    for (int j = 0; j <= n; j++) rows[0][j] = j;
    for (int i = 1; i <= m; i++) {
        int *row = rows[i % 3], *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            row[j] =
                min_int(min_int(last[j], row[j - 1]) + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = min_int(row[j], before[j - 2] + 1);
        }
    }
    return rows[m % 3][n];
}

/* Returns the flag that a mistyped name most likely means; NULL for an empty table. Case,
   underscores and dashes do not matter. A name cut short (--batch for --batch-size) is as near as a
   typo. */
static inline const char *flags_nearest(const Flag *flags, int n, const char *name) {
    char typed[64], known[64];
    const char *best = n ? flags[0].name : NULL;
    int best_distance = INT_MAX;
    size_t length = 0;
    for (; length < sizeof typed - 1 && name[length]; length++)
        typed[length] = name[length] == '_' ? '-' : (char)tolower((unsigned char)name[length]);
    typed[length] = 0;
    for (int i = 0; i < n; i++) {
        snprintf(known, sizeof known, "%s", flags[i].name);
        /* Edits count twice, so that a name cut short ranks after one edit and before two. */
        int distance = 2 * flags_distance(typed, known);
        if (length >= 2 && strncmp(known, typed, length) == 0) distance = min_int(distance, 3);
        else if (length >= 3 && strstr(known, typed)) distance = min_int(distance, 5);
        if (distance < best_distance) {
            best_distance = distance;
            best = flags[i].name;
        }
    }
    return best;
}

static inline int flags_fail_unknown(const Flag *flags, int n, const char *typed, const char *name,
                                     char *err) {
    const char *nearest = flags_nearest(flags, n, name);
    if (!nearest) return fail(err, "unknown flag %.80s (--help lists all flags)", typed);
    return fail(err, "unknown flag %.80s, did you mean --%s? (--help lists all flags)", typed,
                nearest);
}

/* Sets one flag by name (without dashes), as read from a checkpoint or a preset. `given` may be
   NULL. */
static inline int flags_set(const Flag *flags, int n, void *cfg, unsigned char *given,
                            const char *name, const char *value, char *err) {
    int i = flags_find(flags, n, name);
    if (i < 0) {
        char typed[96];
        snprintf(typed, sizeof typed, "--%s", name);
        return flags_fail_unknown(flags, n, typed, name, err);
    }
    if (flags_parse_value(&flags[i], cfg, value, err)) return -1;
    if (given) given[i] = 1;
    return 0;
}

static inline int flags_is_help(const char *arg) {
    return strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0;
}

/* Parses the argument argv[*at] and moves *at to the last argument that belongs to it. */
static inline int flags_parse_one(const Flag *flags, int n, void *cfg, unsigned char *seen,
                                  int argc, char **argv, int *at, char *err) {
    const char *arg = argv[*at];
    const char *name = arg + (arg[0] == '-') + (arg[0] == '-' && arg[1] == '-');
    size_t length = strcspn(name, "=");
    char plain[64], typed[96];
    snprintf(plain, sizeof plain, "%.*s", (int)min_size(length, sizeof plain - 1), name);
    int i = flags_find(flags, n, plain);
    if (length >= sizeof plain) i = -1;

    if (arg[0] != '-' || !length) {
        if (i >= 0)
            return fail(err, "unexpected argument \"%.80s\", did you mean --%s?", arg, plain);
        const char *before = *at > 1 ? argv[*at - 1] : "";
        int j = strncmp(before, "--", 2) == 0 ? flags_find(flags, n, before + 2) : -1;
        if (j >= 0 && flags[j].kind == KIND_SWITCH)
            return fail(err, "unexpected argument \"%.80s\": %s takes no value", arg, before);
        return fail(err,
                    "unexpected argument \"%.80s\": every setting is a flag, --name value "
                    "(--help lists all flags)",
                    arg);
    }
    if (i < 0 || arg[1] != '-') {
        snprintf(typed, sizeof typed, "%.*s", (int)min_size(strcspn(arg, "="), sizeof typed - 1),
                 arg);
        return flags_fail_unknown(flags, n, typed, plain, err);
    }
    if (seen[i]) return fail(err, "--%s is given twice: keep one of them", plain);

    const char *value = name[length] == '=' ? name + length + 1 : NULL;
    if (flags[i].kind == KIND_SWITCH) {
        if (value && flags_bool(value) < 0)
            return fail(err, "--%s takes no value: write it alone, or --%s=off", plain, plain);
    } else if (!value) {
        /* A value may begin with one dash (-1). --x is the next flag; the value --x is written
           --name=--x. */
        if (*at + 1 >= argc || strncmp(argv[*at + 1], "--", 2) == 0)
            return fail(err, "--%s needs a value (%s)", plain, flags[i].help);
        value = argv[++*at];
    }
    seen[i] = 1;
    return flags_parse_value(&flags[i], cfg, value, err);
}

/* Parses argv[1..argc-1] into cfg; flags that are not given keep their values. Returns 0, 1 if
   --help or -h is among the arguments, -1 on an error. given (n bytes, may be NULL) becomes 1 for
   each flag given. */
static inline int flags_parse(const Flag *flags, int n, void *cfg, unsigned char *given, int argc,
                              char **argv, char *err) {
    for (int at = 1; at < argc; at++)
        if (flags_is_help(argv[at])) return 1;
    unsigned char *seen = (unsigned char *)calloc((size_t)n + 1, 1);
    if (!seen) return fail(err, "out of memory while reading the flags");
    int status = 0;
    for (int at = 1; at < argc && !status; at++)
        status = flags_parse_one(flags, n, cfg, seen, argc, argv, &at, err);
    for (int i = 0; i < n && given && !status; i++) given[i] |= seen[i];
    free(seen);
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* Values to text                                                                                 */

/* Writes the value as text that parses to an equal value; text has FLAG_STRING_SIZE bytes. */
static inline void flags_get_text(const Flag *flag, const void *cfg, char *text) {
    const void *field = flags_value(flag, cfg);
    int length;
    const char *choice;
    switch (flag->kind) {
    case KIND_INT: snprintf(text, FLAG_STRING_SIZE, "%d", *(const int *)field); break;
    case KIND_LONG:
        snprintf(text, FLAG_STRING_SIZE, "%lld", (long long)*(const int64_t *)field);
        break;
    case KIND_FLOAT: json_double_text(text, *(const double *)field); break;
    case KIND_STRING: snprintf(text, FLAG_STRING_SIZE, "%s", (const char *)field); break;
    case KIND_CHOICE:
        choice = flags_choice(flag, *(const int *)field, &length);
        snprintf(text, FLAG_STRING_SIZE, "%.*s", choice ? length : 0, choice ? choice : "");
        break;
    case KIND_BOOL:
    case KIND_SWITCH: strcpy(text, *(const int *)field ? "on" : "off"); break;
    }
}

/* Prints the value as JSON: a number, a string, true or false. */
static inline void flags_json_value(FILE *f, const Flag *flag, const void *cfg) {
    char text[FLAG_STRING_SIZE];
    flags_get_text(flag, cfg, text);
    if (flag->kind == KIND_STRING || flag->kind == KIND_CHOICE) json_string(f, text);
    else if (flag->kind == KIND_BOOL || flag->kind == KIND_SWITCH)
        fputs(strcmp(text, "on") == 0 ? "true" : "false", f);
    else if (flag->kind == KIND_FLOAT) json_double(f, *(const double *)flags_value(flag, cfg));
    else fputs(text, f);
}

/* ---------------------------------------------------------------------------------------------- */
/* Documentation                                                                                  */

/* Writes the limits that follow the help: "a, b or c" of a choice, "from 1 to 65536" of a
   number. */
static inline void flags_limits_text(const Flag *flag, char *text, size_t size) {
    text[0] = 0;
    if (flag->kind == KIND_CHOICE) flags_choices_text(flag, text, size);
    else flags_range_text(flag, text, size);
}

/* A titled text that follows the flags in --help and in the manual. */
typedef struct {
    char title[32];
    const char *text;
} FlagNote;

/* Columns of the lines of --help: 100, or those of a narrower terminal. */
static inline int flags_width(FILE *f) {
    int room = terminal_room(f);
    return room > 0 ? min_int(room, 100) : 100;
}

/* Writes "--batch-size N" and returns its length. */
static inline int flags_signature(const Flag *flag, char *text, size_t size) {
    const char *value = "";
    switch (flag->kind) {
    case KIND_INT:
    case KIND_LONG: value = " N"; break;
    case KIND_FLOAT: value = " X"; break;
    case KIND_STRING: value = " TEXT"; break;
    case KIND_CHOICE: value = " NAME"; break;
    case KIND_BOOL: value = " on|off"; break;
    case KIND_SWITCH: break;
    }
    return snprintf(text, size, "--%s%s", flag->name, value);
}

static inline void flags_help(FILE *f, const char *usage, const Flag *flags, int n) {
    char signature[128], limits[512], text[2048];
    const int line = flags_width(f);
    const int most = min_int(36, line / 2); /* a longer name has a line of its own above its help */
    int indent = 0;
    for (int i = 0; i < n; i++) {
        int width = flags_signature(&flags[i], signature, sizeof signature) + 4;
        if (width <= most) indent = max_int(indent, width);
    }
    text_wrap(f, usage, " ", 7, 0, terminal_room(f));
    fputc('\n', f);
    for (int i = 0; i < n; i++) {
        const Flag *flag = &flags[i];
        if (flags_heading(flags, i)) fprintf(f, "\n%s\n", flag->section);
        int width = 2 + flags_signature(flag, signature, sizeof signature);
        fprintf(f, "  %s", signature);
        if (width + 2 > indent) fprintf(f, "\n%*s", indent, "");
        else fprintf(f, "%*s", indent - width, "");
        int shown = flag->def && *flag->def && flag->kind != KIND_SWITCH;
        flags_limits_text(flag, limits, sizeof limits);
        int notes = shown || limits[0];
        snprintf(text, sizeof text, "%s%s%s%s%s%s%s", flag->help, notes ? " (" : "", limits,
                 shown && limits[0] ? "; " : "", shown ? "default " : "", shown ? flag->def : "",
                 notes ? ")" : "");
        text_wrap(f, text, " ", indent, indent, line);
        fputc('\n', f);
    }
    fprintf(f, "\n  -h, --help%*s", indent > 14 ? indent - 12 : 2, "");
    fprintf(f, "print this text\n");
}

/* Prints notes below the flags of --help. */
static inline void flags_help_notes(FILE *f, const char *heading, const FlagNote *notes, int n) {
    enum { INDENT = 12 };
    fprintf(f, "\n%s\n", heading);
    for (int i = 0; i < n; i++) {
        int column = fprintf(f, "  %-*s", INDENT - 2, notes[i].title);
        text_wrap(f, notes[i].text, " ", INDENT, column, flags_width(f));
        fputc('\n', f);
    }
}

/* Prints text for a cell of a Markdown table. */
static inline void flags_markdown_text(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '|' || *text == '<') fputc('\\', f);
        fputc(*text, f);
    }
}

/* What a resumed run may do with a flag, in a word; "" if the flag is not kept. */
static inline const char *flags_resume_text(const Flag *flag) {
    switch (flag->on_resume) {
    case RESUME_FREE: return "free";
    case RESUME_NOTED: return "noted";
    case RESUME_FIXED: return "fixed";
    case RESUME_START: return "";
    }
    return "";
}

/* Prints one Markdown table a section: flag | default | meaning, and what a resumed run may do
   with the flag if the table says so. */
static inline void flags_markdown(FILE *f, const Flag *flags, int n) {
    char limits[512];
    int resumes = 0;
    for (int i = 0; i < n; i++) resumes |= flags[i].on_resume != RESUME_FREE;
    for (int i = 0; i < n; i++) {
        const Flag *flag = &flags[i];
        int shown = flag->def && *flag->def;
        const char *heading = flags_heading(flags, i);
        if (heading) fprintf(f, "%s### %s\n\n", i ? "\n" : "", heading);
        if (heading || !i)
            fprintf(f, "| flag | default |%s meaning |\n|---|---|%s---|\n",
                    resumes ? " on resume |" : "", resumes ? "---|" : "");
        fprintf(f, "| `--%s` | ", flag->name);
        if (flag->kind == KIND_SWITCH) fputs("off", f);
        else if (shown) fprintf(f, "`%s`", flag->def);
        fputs(" | ", f);
        if (resumes) fprintf(f, "%s | ", flags_resume_text(flag));
        flags_markdown_text(f, flag->help);
        flags_limits_text(flag, limits, sizeof limits);
        if (limits[0]) {
            fputs(" (", f);
            flags_markdown_text(f, limits);
            fputc(')', f);
        }
        fputs(" |\n", f);
    }
}

/* Prints notes as a Markdown table: name | text. Flags are set as code. */
static inline void flags_markdown_notes(FILE *f, const char *heading, const FlagNote *notes,
                                        int n) {
    fprintf(f, "\n### %s\n\n| name | flags |\n|---|---|\n", heading);
    for (int i = 0; i < n; i++) {
        const char *code = strncmp(notes[i].text, "--", 2) == 0 ? "`" : "";
        fprintf(f, "| `%s` | %s", notes[i].title, code);
        flags_markdown_text(f, notes[i].text);
        fprintf(f, "%s |\n", code);
    }
}

#endif
