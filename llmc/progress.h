/*
The progress line of a run. On a terminal progress_update keeps one line at the bottom up to date,

    step 1200/5000 ━━━━━━━━━━╸───────────────────────────── 24%  loss 3.2140  52.1k tok/s  ETA 2m05s

and progress_print writes lines above it. In a pipe or a file the line is never drawn, and
progress_print prints plain lines.
*/
#ifndef CM_PROGRESS_H
#define CM_PROGRESS_H

#include "base.h"

#include <ctype.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* 1 if the environment asks for UTF-8, by the order in which setlocale reads it. */
static inline int terminal_utf8(void) {
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (int i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        if (!value || !*value) continue;
        for (const char *p = value; *p; p++) {
            if (tolower((unsigned char)p[0]) != 'u' || tolower((unsigned char)p[1]) != 't')
                continue;
            if (tolower((unsigned char)p[2]) == 'f' && p[3 + (p[3] == '-')] == '8') return 1;
        }
        return 0;
    }
    return 0;
}

/* 1 if f is a terminal that understands escape sequences. */
static inline int terminal_live(FILE *f) {
    const char *term = getenv("TERM");
    return isatty(fileno(f)) && term && *term && strcmp(term, "dumb") != 0;
}

/* 1 if colors are wanted: https://no-color.org */
static inline int terminal_color(FILE *f) {
    const char *no_color = getenv("NO_COLOR");
    return terminal_live(f) && !(no_color && *no_color);
}

/* Columns of a terminal; 80 if f is none. */
static inline int terminal_width(FILE *f) {
    struct winsize size;
    if (ioctl(fileno(f), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

/* Writes seconds as 3s, 2m05s, 1h02m or 2d03h, and "--" for NaN; text has 32 bytes. */
static inline void time_text(char *text, double seconds) {
    if (!(seconds >= 0 && seconds < 1e9)) {
        strcpy(text, "--");
        return;
    }
    long long s = (long long)(seconds + 0.5);
    if (s < 60) snprintf(text, 32, "%llds", s);
    else if (s < 3600) snprintf(text, 32, "%lldm%02llds", s / 60, s % 60);
    else if (s < 86400) snprintf(text, 32, "%lldh%02lldm", s / 3600, s / 60 % 60);
    else snprintf(text, 32, "%lldd%02lldh", s / 86400, s / 3600 % 24);
}

/* Writes a number with three digits and a unit: 834, 52.1k, 1.25M, 3.10G; text has 32 bytes. */
static inline void count_text(char *text, double value) {
    static const char *const units[] = {"", "k", "M", "G", "T"};
    int unit = 0;
    if (!isfinite(value)) {
        strcpy(text, "--");
        return;
    }
    /* 999.5 would print as 1000. */
    for (; fabs(value) >= 999.5 && unit < 4; unit++) value /= 1000;
    int decimals = !unit ? 0 : fabs(value) < 9.995 ? 2 : fabs(value) < 99.95 ? 1 : 0;
    snprintf(text, 32, "%.*f%s", decimals, value, units[unit]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Progress line                                                                                  */

typedef struct {
    FILE *out;
    int live, utf8, color; /* live: out is a terminal */
    int shown;             /* 1: the line is on the screen */
    int64_t step, total;
    int64_t timed;  /* steps in the average */
    int started;    /* 1 after the first step, which is slow: it warms caches and allocates */
    double average; /* exponential average of seconds per step, times `weight` */
    double weight;  /* sum of the average's weights */
    double last;    /* when the last step ended */
    double drawn;   /* when the line was last drawn */
    double loss, tok_s;
} Progress;

/* Starts where `step` of `total` steps are done, as after a resume. */
static inline void progress_begin(Progress *p, FILE *out, int64_t step, int64_t total) {
    memset(p, 0, sizeof *p);
    p->out = out;
    p->live = terminal_live(out);
    p->utf8 = terminal_utf8();
    p->color = terminal_color(out);
    p->step = step;
    p->total = total;
    p->last = now_seconds();
    p->drawn = -1;
    p->loss = NAN;
    p->tok_s = NAN;
}

/* Seconds to the end; NaN until the second step is done. */
static inline double progress_eta(const Progress *p) {
    if (!p->timed) return NAN;
    return p->average / p->weight * (double)(p->total - p->step);
}

/* Adds the time since the last call to the average; `now` is in seconds. */
static inline void progress_time(Progress *p, int64_t step, double now) {
    int64_t steps = step - p->step;
    if (steps > 0 && p->started) {
        double keep = pow(0.95, (double)steps); /* an average of about the last 20 steps */
        p->average = keep * p->average + (1 - keep) * (now - p->last) / (double)steps;
        p->weight = keep * p->weight + (1 - keep);
        p->timed += steps;
    }
    if (steps > 0) p->started = 1;
    p->step = step;
    p->last = now;
}

/* Writes the bar, `cells` columns wide, in steps of half a column. Returns its bytes. */
static inline size_t progress_bar_text(char *text, size_t size, double fraction, int cells,
                                       int utf8, int color) {
    int halves = (int)(fraction * 2 * cells + 1e-9);
    size_t used = 0;
    const char *begin = utf8 ? "" : "[", *end = utf8 ? "" : "]";
    used += (size_t)snprintf(text, size, "%s", color ? "\x1b[36m" : begin);
    for (int i = 0; i < cells; i++) {
        int filled = halves >= 2 * i + 2, half = halves == 2 * i + 1;
        const char *cell = utf8 ? (color ? "━" : "─") : ".";
        if (filled) cell = utf8 ? "━" : "=";
        if (half) cell = utf8 ? "╸" : ">";
        int fades = color && !filled && !half && halves >= 2 * i - 1;
        if (used < size)
            used +=
                (size_t)snprintf(text + used, size - used, "%s%s", fades ? "\x1b[90m" : "", cell);
    }
    if (used < size)
        used += (size_t)snprintf(text + used, size - used, "%s", color ? "\x1b[0m" : end);
    return min_size(used, size - 1);
}

/* Writes the line in at most `width` columns. If it does not fit, the bar shrinks; if that is not
   enough, speed, bar and loss are left out in this order. */
static inline void progress_text(const Progress *p, char *text, size_t size, int width) {
    char eta[32], speed[32], head[96], loss[48] = "", tail[160];
    double fraction = p->total > 0 ? (double)p->step / (double)p->total : 0;
    fraction = fraction < 0 ? 0 : fraction > 1 ? 1 : fraction;
    time_text(eta, progress_eta(p));
    count_text(speed, p->tok_s);
    int digits = snprintf(NULL, 0, "%lld", (long long)p->total);
    int head_width = snprintf(head, sizeof head, "step %*lld/%lld", digits, (long long)p->step,
                              (long long)p->total);
    if (isfinite(p->loss)) snprintf(loss, sizeof loss, "  loss %.4f", p->loss);
    else if (p->tok_s == p->tok_s) snprintf(loss, sizeof loss, "  loss nan");
    int tail_width = snprintf(tail, sizeof tail, " %3d%%%s  %s tok/s  ETA %s",
                              (int)(100 * fraction), loss, speed, eta);
    if (head_width + tail_width > width)
        tail_width =
            snprintf(tail, sizeof tail, " %3d%%%s  ETA %s", (int)(100 * fraction), loss, eta);
    int frame = (p->utf8 || p->color) ? 1 : 3; /* the space before it, and brackets */
    int cells = min_int(width - head_width - tail_width - frame, 48);
    if (head_width + tail_width > width) {
        if ((int)strlen(loss) + head_width <= width) snprintf(tail, sizeof tail, "%s", loss);
        else tail[0] = 0;
    }
    if (cells < 5) {
        snprintf(text, size, "%s%s", head, tail);
        if ((int)strlen(text) > width) text[max_int(width, 0)] = 0;
        return;
    }
    size_t used = (size_t)snprintf(text, size, "%s ", head);
    used += progress_bar_text(text + used, size - used, fraction, cells, p->utf8, p->color);
    snprintf(text + used, size - used, "%s", tail);
}

/* Clears the line from the screen; progress_update draws it again. */
static inline void progress_clear(Progress *p) {
    if (!p->shown) return;
    fputs("\r\x1b[K", p->out);
    fflush(p->out);
    p->shown = 0;
}

static inline void progress_draw(Progress *p) {
    char line[2048], frame[2100];
    if (!p->live) return;
    /* The last column stays free, since some terminals wrap after a character there. The new text
       is written over the old one and only the rest is cleared, which does not flicker. */
    progress_text(p, line, sizeof line, terminal_width(p->out) - 1);
    int length = snprintf(frame, sizeof frame, "\r%s\x1b[K", line);
    fwrite(frame, 1, min_size((size_t)length, sizeof frame - 1), p->out);
    fflush(p->out);
    p->shown = 1;
}

/* Call it after every step. Draws at most ten times a second. */
static inline void progress_update(Progress *p, int64_t step, double loss, double tok_s) {
    double now = now_seconds();
    progress_time(p, step, now);
    p->loss = loss;
    p->tok_s = tok_s;
    if (!p->live || (now - p->drawn < 0.1 && step < p->total)) return;
    p->drawn = now;
    progress_draw(p);
}

static inline void progress_busy(Progress *p, const char *what, double fraction) {
    (void)p;
    (void)what;
    (void)fraction;
}

/* Prints a line, given without its line end, above the progress line. */
__attribute__((format(printf, 2, 3))) static inline void progress_print(Progress *p,
                                                                        const char *format, ...) {
    va_list args;
    int shown = p->shown;
    progress_clear(p);
    va_start(args, format);
    vfprintf(p->out, format, args);
    va_end(args);
    fputc('\n', p->out);
    fflush(p->out);
    if (shown) progress_draw(p);
}

#endif
