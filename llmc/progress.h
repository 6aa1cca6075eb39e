/*
The progress line of a run. On a terminal progress_update keeps one line at the bottom up to date,

    step 1200/5000 ━━━━━━━━━━╸───────────────────────────── 24%  loss 3.2140  52.1k tok/s  ETA 2m05s

and progress_print writes lines above it. In a pipe or a file the line is never drawn, and
progress_print prints plain lines.
*/
#ifndef CM_PROGRESS_H
#define CM_PROGRESS_H

#include "terminal.h"

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
    const char *log;       /* named when the output is lost; NULL: none */
    int lost;              /* 1: the output can no longer be written */
    int live, utf8, color; /* live: out is a terminal */
    int shown;             /* 1: the line is on the screen */
    int width, columns;    /* of the terminal and of the line when the line was last drawn */
    int64_t step, total;
    int64_t begun;  /* steps done when this start began */
    int64_t timed;  /* steps in the average */
    int started;    /* 1 after the first step, which is slow: it warms caches and allocates */
    double average; /* exponential average of seconds per step, times `weight` */
    double weight;  /* sum of the average's weights */
    double last;    /* when the last step ended */
    double drawn;   /* when the line was last drawn */
    double printed; /* when a line was last printed */
    double busy;    /* when the present work between steps began; -1: there is none */
    double between; /* seconds of such work since the last step */
    double others;  /* seconds of such work between the steps before */
    double loss, tok_s;
} Progress;

/* Starts where `step` of `total` steps are done, as after a resume. */
static inline void progress_begin(Progress *p, FILE *out, int64_t step, int64_t total) {
    memset(p, 0, sizeof *p);
    p->out = out;
    p->live = terminal_live(out);
    p->utf8 = terminal_utf8();
    p->color = terminal_color(out);
    p->step = p->begun = step;
    p->total = total;
    p->last = p->printed = now_seconds();
    p->drawn = p->busy = -1;
    p->loss = NAN;
    p->tok_s = NAN;
}

/* Seconds to the end: those of the remaining steps, and of validations as often as before. NaN
   until the second step is done. */
static inline double progress_eta(const Progress *p) {
    if (!p->timed) return NAN;
    double others = p->others / (double)(p->step - p->begun);
    return (p->average / p->weight + others) * (double)(p->total - p->step);
}

/* Ends the work between steps that progress_busy began; `now` is in seconds. */
static inline void progress_rest(Progress *p, double now) {
    if (p->busy >= 0) p->between += now - p->busy;
    p->busy = -1;
}

/* Adds the time since the last call to the average, without that of the work between steps; `now`
   is in seconds. */
static inline void progress_time(Progress *p, int64_t step, double now) {
    int64_t steps = step - p->step;
    if (steps > 0 && p->started) {
        double seconds = now - p->last - p->between;
        double keep = pow(0.95, (double)steps); /* an average of about the last 20 steps */
        p->average = keep * p->average + (1 - keep) * seconds / (double)steps;
        p->weight = keep * p->weight + (1 - keep);
        p->timed += steps;
        p->others += p->between;
    }
    p->between = 0;
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

/* Writes "head bar tail" in at most `width` columns: without the bar if it would be too short, and
   cut off if even that does not fit. */
static inline void progress_join(const Progress *p, char *text, size_t size, int width,
                                 const char *head, double fraction, const char *tail) {
    int frame = (p->utf8 || p->color) ? 1 : 3; /* the space before it, and brackets */
    int cells = min_int(width - (int)strlen(head) - (int)strlen(tail) - frame, 48);
    if (cells < 5) {
        snprintf(text, size, "%s%s", head, tail);
        if ((int)strlen(text) > width) text[max_int(width, 0)] = 0;
        return;
    }
    size_t used = (size_t)snprintf(text, size, "%s ", head);
    used += progress_bar_text(text + used, size - used, fraction, cells, p->utf8, p->color);
    snprintf(text + used, size - used, "%s", tail);
}

/* Writes "step  120/1200", equally wide at every step; text has 96 bytes. Returns its length. */
static inline int progress_step_text(char *text, int64_t step, int64_t total) {
    int digits = snprintf(NULL, 0, "%lld", (long long)total);
    return snprintf(text, 96, "step %*lld/%lld", digits, (long long)step, (long long)total);
}

/* Writes the line in at most `width` columns. If it does not fit, the bar shrinks; if that is not
   enough, speed, bar and loss are left out in this order. */
static inline void progress_text(const Progress *p, char *text, size_t size, int width) {
    char eta[32], speed[32], head[96], loss[48] = "", tail[160];
    double fraction = p->total > 0 ? (double)p->step / (double)p->total : 0;
    fraction = fraction < 0 ? 0 : fraction > 1 ? 1 : fraction;
    time_text(eta, progress_eta(p));
    count_text(speed, p->tok_s);
    int head_width = progress_step_text(head, p->step, p->total);
    if (isfinite(p->loss)) snprintf(loss, sizeof loss, "  loss %.4f", p->loss);
    else if (p->tok_s == p->tok_s) snprintf(loss, sizeof loss, "  loss nan");
    int tail_width = snprintf(tail, sizeof tail, " %3d%%%s  %s tok/s  ETA %s",
                              (int)(100 * fraction), loss, speed, eta);
    if (head_width + tail_width > width)
        tail_width =
            snprintf(tail, sizeof tail, " %3d%%%s  ETA %s", (int)(100 * fraction), loss, eta);
    if (head_width + tail_width > width) {
        if ((int)strlen(loss) + head_width <= width) snprintf(tail, sizeof tail, "%s", loss);
        else tail[0] = 0;
    }
    progress_join(p, text, size, width, head, fraction, tail);
}

/* ---------------------------------------------------------------------------------------------- */
/* Writing                                                                                        */

/* Flushes, and notes an output that is lost. */
static inline void progress_flush(Progress *p) {
    if (!p->lost && output_lost(p->out, p->log)) {
        p->lost = 1;
        p->live = p->shown = 0;
    }
}

/* Moves to the start of the line that is on the screen. If the terminal was resized, which has
   wrapped the line into several rows, moves to the first of them and clears them all. */
static inline void progress_home(Progress *p, int width) {
    fputc('\r', p->out);
    if (!p->shown || width == p->width) return;
    int rows = (p->columns + width - 1) / width;
    if (rows > 1) fprintf(p->out, "\x1b[%dA", rows - 1);
    fputs("\x1b[J", p->out);
}

/* Clears the line from the screen; progress_update draws it again. */
static inline void progress_clear(Progress *p) {
    if (!p->shown) return;
    progress_home(p, terminal_width(p->out));
    fputs("\x1b[K", p->out);
    p->shown = 0;
    progress_flush(p);
}

/* Draws a line on a terminal of `width` columns over the one that is shown. Only the rest of the
   old text is cleared, which does not flicker. */
static inline void progress_show(Progress *p, const char *line, int width) {
    progress_home(p, width);
    fprintf(p->out, "%s\x1b[K", line);
    p->shown = 1;
    p->width = width;
    p->columns = text_columns(line, strlen(line));
    p->drawn = now_seconds();
    progress_flush(p);
}

static inline void progress_draw(Progress *p) {
    char line[2048];
    if (!p->live) return;
    int width = terminal_width(p->out);
    /* The last column stays free, since some terminals wrap after a character there. */
    progress_text(p, line, sizeof line, width - 1);
    progress_show(p, line, width);
}

/* Call it after every step. Draws at most ten times a second. */
static inline void progress_update(Progress *p, int64_t step, double loss, double tok_s) {
    double now = now_seconds();
    progress_rest(p, now);
    progress_time(p, step, now);
    p->loss = loss;
    p->tok_s = tok_s;
    if (!p->live || (now - p->drawn < 0.1 && step < p->total)) return;
    progress_draw(p);
}

/* Prints a line, given without its line end, above the progress line. On a terminal it is wrapped
   between words. */
__attribute__((format(printf, 2, 3))) static inline void progress_print(Progress *p,
                                                                        const char *format, ...) {
    va_list args;
    int shown = p->shown;
    progress_rest(p, now_seconds());
    if (p->lost) return;
    progress_clear(p);
    va_start(args, format);
    vprint_line(p->out, NULL, format, args);
    va_end(args);
    p->printed = now_seconds();
    progress_flush(p);
    if (shown) progress_draw(p);
}

/* How far long work between two steps is, such as "validation", from 0 to 1. Call it often. On a
   terminal the progress line shows it, at most ten times a second, until the next step or line of
   text; else a line tells it after 30 seconds without one. */
static inline void progress_busy(Progress *p, const char *what, double fraction) {
    const double quiet = 30;
    char line[2048], tail[32];
    double now = now_seconds();
    if (p->busy < 0) p->busy = now;
    int percent = (int)(100 * (fraction < 0 ? 0 : fraction > 1 ? 1 : fraction));
    if (p->lost) return;
    if (!p->live && now - fmax(p->busy, p->printed) >= quiet) {
        progress_print(p, "%s %3d %%", what, percent);
        p->busy = now; /* progress_print ends the work */
    }
    if (!p->live || now - p->drawn < 0.1) return;
    int width = terminal_width(p->out);
    snprintf(tail, sizeof tail, " %3d%%", percent);
    progress_join(p, line, sizeof line, width - 1, what, percent / 100.0, tail);
    progress_show(p, line, width);
}

#endif
