/*
Plans of matrix products, one for each kind of call, and the choice of their algorithms.

The algorithm is the one that was read from text; else, with cm_gpu.gemm_measure, the fastest of the
library's proposals; else the first proposal. Measured choices are kept and can be written as one
line of text: another algorithm gives other bits, so a program that continues a run has to read the
run's choices before the first product.
*/
#ifndef CM_CUDA_GEMM_CHOICE_CUH
#define CM_CUDA_GEMM_CHOICE_CUH

#include "gemm_kind.cuh"
#ifdef CM_EMU
#include "gemm_emu.cuh"
#else
#include "gemm_lt.cuh"
#endif

enum { GEMM_PROPOSALS = 16 };
/* After this many milliseconds on one kind of call, no further proposal is tried. */
#define GEMM_MEASURE_MS 50.0
/* The first proposal is kept unless another takes less than this part of its time: 2 % is within
   the noise. */
#define GEMM_GAIN 0.98

struct GemmPlan {
    GemmCall call;
    GemmAlgo algo;
    GemmDescriptors descriptors;
    int used;
    int possible; /* 0: the library has no algorithm */
};

struct GemmChoice {
    GemmCall call;
    GemmAlgo algo;
    int own; /* this run has measured it, used it, or read it as its own */
};

/* ---------------------------------------------------------------------------------------------- */
/* choices */

/* The index of the choice for a kind of call, or the index where it belongs. */
static inline size_t gemm_choice_place(const GemmCall *c) {
    size_t low = 0, high = cm_gpu.gemm_choice_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (memcmp(&cm_gpu.gemm_choices[middle].call, c, sizeof *c) < 0) low = middle + 1;
        else high = middle;
    }
    return low;
}

static inline GemmChoice *gemm_choice_find(const GemmCall *c) {
    size_t i = gemm_choice_place(c);
    if (i == cm_gpu.gemm_choice_count || memcmp(&cm_gpu.gemm_choices[i].call, c, sizeof *c))
        return NULL;
    return &cm_gpu.gemm_choices[i];
}

/* Makes room for one more choice. Returns 0, or -1 and a recorded failure if there is no memory. */
static inline int gemm_choices_grow(void) {
    if (cm_gpu.gemm_choice_count < cm_gpu.gemm_choice_room) return 0;
    size_t room = 2 * cm_gpu.gemm_choice_room + 32;
    GemmChoice *larger =
        (GemmChoice *)realloc(cm_gpu.gemm_choices, room * sizeof *cm_gpu.gemm_choices);
    if (!larger) return device_fail("out of memory: choices of algorithms of matrix products");
    cm_gpu.gemm_choices = larger;
    cm_gpu.gemm_choice_room = room;
    return 0;
}

/* Adds a choice or replaces the one for this kind of call. */
static inline void gemm_choice_keep(const GemmCall *c, const GemmAlgo *algo, int own) {
    size_t i = gemm_choice_place(c);
    if (!gemm_choice_find(c)) {
        if (gemm_choices_grow()) return;
        memmove(cm_gpu.gemm_choices + i + 1, cm_gpu.gemm_choices + i,
                (cm_gpu.gemm_choice_count++ - i) * sizeof *cm_gpu.gemm_choices);
        cm_gpu.gemm_choices[i].call = *c;
    }
    cm_gpu.gemm_choices[i].algo = *algo;
    cm_gpu.gemm_choices[i].own = own;
}

/* The index of the fastest of n > 1 proposals on these operands. D is overwritten; where the
   product adds to C, temporary memory takes the place of D. The answer is 0 if there is no such
   memory, or if the gain is within the noise. The winner has to win twice: the least of many
   noisy times is too small, and the first proposal may have been measured at a lower clock. */
static inline int gemm_fastest(GemmPlan *p, const GemmAlgo *algo, int n, GemmOperands o) {
    void *room = NULL;
    int best = 0;
    double ms[GEMM_PROPOSALS], spent = 0;
    if (p->call.adds) {
        if (cuda_try_malloc(&room, gemm_output_bytes(&p->call))) return 0;
        o.D = room;
    }
    for (int i = 0; i < n && spent < GEMM_MEASURE_MS; i++) {
        ms[i] = gemm_time(&p->descriptors, &p->call, &algo[i], &o, &spent);
        if (ms[i] >= 0 && (ms[best] < 0 || ms[i] < ms[best])) best = i;
    }
    if (best && ms[0] >= 0 && ms[best] >= GEMM_GAIN * ms[0]) best = 0;
    if (best && ms[0] >= 0) {
        double first = gemm_time(&p->descriptors, &p->call, &algo[0], &o, &spent);
        double second = gemm_time(&p->descriptors, &p->call, &algo[best], &o, &spent);
        if (second < 0 || second >= GEMM_GAIN * first) best = 0;
    }
    if (room) CUDA_CHECK(cudaFree(room));
    return best;
}

/* Sets the plan's algorithm; `possible` stays 0 if there is none. Nothing is measured while the
   stream is captured. With measuring on, a choice that was made without it is kept too, so that
   the next run need not meet the kinds of calls in the same order. */
static inline void gemm_choose(GemmPlan *p, const GemmOperands *o) {
    GemmAlgo algo[GEMM_PROPOSALS];
    GemmChoice *stored = gemm_choice_find(&p->call);
    if (stored && gemm_algo_runs(&p->descriptors, &p->call, &stored->algo)) {
        p->algo = stored->algo;
        p->possible = stored->own = 1;
        return;
    }
    if (stored)
        fprintf(stderr, "note: the algorithm stored for %s does not run here\n",
                gemm_name(&p->call).text);
    int n = gemm_propose(&p->descriptors, &p->call, algo, GEMM_PROPOSALS);
    if (!n) return;
    p->algo =
        algo[cm_gpu.gemm_measure && n > 1 && !gemm_capturing() ? gemm_fastest(p, algo, n, *o) : 0];
    p->possible = 1;
    if (cm_gpu.gemm_measure || stored) gemm_choice_keep(&p->call, &p->algo, 1);
}

/* ---------------------------------------------------------------------------------------------- */
/* plans */

/* The place of a kind of call in a table of `room` plans: its plan, or the free place where it
   belongs. */
static inline GemmPlan *gemm_plan_place(GemmPlan *table, size_t room, const GemmCall *c) {
    size_t i = fnv1a(FNV_BASIS, c, sizeof *c) % room;
    while (table[i].used && memcmp(&table[i].call, c, sizeof *c)) i = (i + 1) % room;
    return &table[i];
}

/* Doubles the table. Returns 0, or -1 and a recorded failure if there is no memory. */
static inline int gemm_plans_grow(void) {
    size_t room = cm_gpu.gemm_plan_room ? 2 * cm_gpu.gemm_plan_room : 256;
    GemmPlan *table = (GemmPlan *)calloc(room, sizeof *table);
    if (!table)
        return device_fail("out of memory: plans of %zu kinds of matrix products",
                           cm_gpu.gemm_plan_count);
    for (size_t i = 0; i < cm_gpu.gemm_plan_room; i++)
        if (cm_gpu.gemm_plans[i].used)
            *gemm_plan_place(table, room, &cm_gpu.gemm_plans[i].call) = cm_gpu.gemm_plans[i];
    free(cm_gpu.gemm_plans);
    cm_gpu.gemm_plans = table;
    cm_gpu.gemm_plan_room = room;
    return 0;
}

/* The plan of a kind of call, made at its first call. NULL and a recorded failure if there is no
   memory. */
static inline GemmPlan *gemm_plan(const GemmCall *c, const GemmOperands *o) {
    if (2 * (cm_gpu.gemm_plan_count + 1) > cm_gpu.gemm_plan_room && gemm_plans_grow()) return NULL;
    GemmPlan *p = gemm_plan_place(cm_gpu.gemm_plans, cm_gpu.gemm_plan_room, c);
    if (!p->used) {
        cm_gpu.gemm_plan_count++;
        p->call = *c;
        p->used = 1;
        gemm_describe(&p->descriptors, c);
        gemm_choose(p, o);
    }
    return p;
}

/* Frees the plans, so that the next calls choose again. */
static inline void gemm_plans_clear(void) {
    for (size_t i = 0; i < cm_gpu.gemm_plan_room; i++)
        if (cm_gpu.gemm_plans[i].used) gemm_forget(&cm_gpu.gemm_plans[i].descriptors);
    free(cm_gpu.gemm_plans);
    cm_gpu.gemm_plans = NULL;
    cm_gpu.gemm_plan_count = cm_gpu.gemm_plan_room = 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* choices as text: "v1 VERSION DEVICE;KEY:ALGORITHM;...;SUM" */

enum { GEMM_KEY_DIGITS = 2 * sizeof(GemmCall), GEMM_ALGO_DIGITS = 2 * sizeof(GemmAlgo) };
enum { GEMM_ENTRY = GEMM_KEY_DIGITS + 1 + GEMM_ALGO_DIGITS + 1, GEMM_SUM_DIGITS = 16 };
enum { GEMM_HEADER = 320 }; /* bytes for the header */

/* Writes the header: the library's version, and the GPU in letters, digits, '_', '-' and '.'. */
static inline void gemm_header(char *text) {
    char device[GEMM_HEADER - 64];
    gemm_device(device, sizeof device);
    for (char *p = device; *p; p++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.", *p))
            *p = '_';
    snprintf(text, GEMM_HEADER, "v1 %zu %s;", gemm_version(), device);
}

static inline char *gemm_put_hex(char *to, const void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        *to++ = "0123456789abcdef"[((const unsigned char *)bytes)[i] >> 4];
        *to++ = "0123456789abcdef"[((const unsigned char *)bytes)[i] & 15];
    }
    return to;
}

/* Reads n bytes from 2 n lower-case hexadecimal digits. Returns 0 if the text is something else. */
static inline int gemm_get_hex(void *bytes, const char *from, size_t n) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < 2 * n; i++) {
        const char *digit = from[i] ? strchr(digits, from[i]) : NULL;
        if (!digit) return 0;
        unsigned char *byte = (unsigned char *)bytes + i / 2;
        *byte = (unsigned char)((i % 2 ? *byte << 4 : 0) | (digit - digits));
    }
    return 1;
}

/* The choices as one line of printable characters without '=' and quotes: those of this run, or
   with `shared` also those that were read and not used since. Equal choices make equal text. The
   caller frees it. NULL if there are no choices. */
static inline char *gemm_choices_text(int shared) {
    size_t n = 0;
    for (size_t i = 0; i < cm_gpu.gemm_choice_count; i++) n += shared || cm_gpu.gemm_choices[i].own;
    if (!n) return NULL;
    char *text = (char *)malloc(GEMM_HEADER + n * GEMM_ENTRY + GEMM_SUM_DIGITS + 1);
    if (!text) {
        device_fail("out of memory: choices of algorithms of matrix products");
        return NULL;
    }
    gemm_header(text);
    char *p = text + strlen(text);
    for (size_t i = 0; i < cm_gpu.gemm_choice_count; i++) {
        if (!shared && !cm_gpu.gemm_choices[i].own) continue;
        p = gemm_put_hex(p, &cm_gpu.gemm_choices[i].call, sizeof(GemmCall));
        *p++ = ':';
        p = gemm_put_hex(p, &cm_gpu.gemm_choices[i].algo, sizeof(GemmAlgo));
        *p++ = ';';
    }
    snprintf(p, GEMM_SUM_DIGITS + 1, "%016llx",
             (unsigned long long)fnv1a(FNV_BASIS, text, (size_t)(p - text)));
    return text;
}

/* Reads n choices from the entries of a text whose checksum is right. Returns 0 if they are
   damaged or out of order. */
static inline int gemm_choices_parse(GemmChoice *to, const char *from, size_t n) {
    for (size_t i = 0; i < n; i++, from += GEMM_ENTRY)
        if (!gemm_get_hex(&to[i].call, from, sizeof(GemmCall)) || from[GEMM_KEY_DIGITS] != ':' ||
            !gemm_get_hex(&to[i].algo, from + GEMM_KEY_DIGITS + 1, sizeof(GemmAlgo)) ||
            from[GEMM_ENTRY - 1] != ';' ||
            (i && memcmp(&to[i - 1].call, &to[i].call, sizeof(GemmCall)) >= 0))
            return 0;
    return 1;
}

/* Splits a text into header, entries and checksum, and verifies the checksum. *entries is the
   first entry, *length the number of characters in all. Returns 0, or -1 and err. */
static inline int gemm_choices_split(const char *text, const char **entries, size_t *length,
                                     char *err) {
    uint64_t sum = 0;
    size_t size = text ? strlen(text) : 0;
    const char *header_end = size ? strchr(text, ';') : NULL;
    if (!header_end || size < GEMM_SUM_DIGITS || header_end + 1 > text + size - GEMM_SUM_DIGITS)
        return fail(err, "the choices of matrix products are damaged: the text is cut off");
    const char *end = text + size - GEMM_SUM_DIGITS;
    for (int i = 0; i < GEMM_SUM_DIGITS; i++) {
        unsigned char digit = 0;
        const char pair[2] = {'0', end[i]};
        if (!gemm_get_hex(&digit, pair, 1))
            return fail(
                err,
                "the choices of matrix products are damaged: the text does not end in a checksum");
        sum = sum << 4 | digit;
    }
    if (sum != fnv1a(FNV_BASIS, text, (size_t)(end - text)))
        return fail(
            err,
            "the choices of matrix products are damaged: the checksum does not match the text");
    *entries = header_end + 1;
    *length = (size_t)(end - *entries);
    return 0;
}

/* Reads the choices of a text of gemm_choices_text and frees the plans. The choices replace
   those of equal kinds and win over measurement. `own`: they are this run's. Returns 0. Returns
   1 and err if the text is of another version of the library or of this program, or of another
   GPU; -1 and err if it is damaged. In both cases nothing changes. Call it before the first
   product, and never while the stream is captured. */
static inline int gemm_choices_take(const char *text, int own, char *err) {
    char header[GEMM_HEADER];
    const char *entries = NULL;
    size_t length = 0;
    if (gemm_choices_split(text, &entries, &length, err)) return -1;
    gemm_header(header);
    if (strncmp(text, header, strlen(header))) {
        fail(err, "the choices of matrix products are of \"%.*s\", and here is \"%.*s\"",
             (int)min_size((size_t)(entries - 1 - text), 300), text, (int)strlen(header) - 1,
             header);
        return 1;
    }
    size_t n = length / GEMM_ENTRY;
    if (length % GEMM_ENTRY)
        return fail(err,
                    "the choices of matrix products are damaged: %zu characters are not a whole "
                    "number of entries",
                    length);
    GemmChoice *taken = (GemmChoice *)malloc((n + 1) * sizeof *taken);
    if (!taken) return fail(err, "out of memory: %zu choices of matrix products", n);
    if (!gemm_choices_parse(taken, entries, n)) {
        free(taken);
        return fail(
            err,
            "the choices of matrix products are damaged: an entry is not a key with an algorithm");
    }
    gemm_plans_clear();
    for (size_t i = 0; i < n; i++) gemm_choice_keep(&taken[i].call, &taken[i].algo, own);
    free(taken);
    return 0;
}

/* Frees plans and choices. */
static inline void gemm_choices_clear(void) {
    gemm_plans_clear();
    free(cm_gpu.gemm_choices);
    cm_gpu.gemm_choices = NULL;
    cm_gpu.gemm_choice_count = cm_gpu.gemm_choice_room = 0;
}

#endif
