/*
The loss curve in text: training loss as a line of braille dots, validation losses as markers.
*/
#ifndef CM_CURVE_H
#define CM_CURVE_H

#include "progress.h"

/* A braille character has 2 x 4 dots, one bit each, from U+2800 on. */
typedef struct {
    int columns, rows;      /* characters */
    unsigned char *dots;    /* rows x columns, training loss */
    unsigned char *markers; /* rows x columns, 1 for a validation loss */
    double lo, hi;          /* loss at the lower and the upper edge */
    double highest;         /* largest loss; above hi if the scale is cut */
    double first, last;     /* step at the left and the right edge */
} Curve;

/* Column and row of a point, in dots. */
static inline void curve_place(const Curve *c, double step, double value, int *x, int *y) {
    double u = c->last > c->first ? (step - c->first) / (c->last - c->first) : 0;
    double v = (c->hi - value) / (c->hi - c->lo);
    u = u < 0 ? 0 : u > 1 ? 1 : u; /* a log may name steps in any order */
    v = v < 0 ? 0 : v > 1 ? 1 : v;
    *x = (int)(u * (2 * c->columns - 1) + 0.5);
    *y = (int)(v * (4 * c->rows - 1) + 0.5);
}

static inline void curve_line(Curve *c, int x0, int y0, int x1, int y1) {
    static const unsigned char bits[2][4] = {{0x01, 0x02, 0x04, 0x40}, {0x08, 0x10, 0x20, 0x80}};
    int length = max_int(max_int(abs(x1 - x0), abs(y1 - y0)), 1);
    for (int i = 0; i <= length; i++) {
        int x = x0 + (int)lround((double)(x1 - x0) * i / length);
        int y = y0 + (int)lround((double)(y1 - y0) * i / length);
        c->dots[y / 4 * c->columns + x / 2] |= bits[x % 2][y % 4];
    }
}

static inline int curve_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sets the range of the scale from n values each of a and b; returns how many are finite. The first
   steps of a run are far above the rest, so the scale is cut where three quarters of it show the
   lower nine tenths of the values. */
static inline int curve_scale(Curve *c, const double *a, const double *b, int n) {
    double *sorted = (double *)malloc(((size_t)2 * (size_t)n + 1) * sizeof(double));
    int count = 0;
    if (!sorted) return 0;
    for (int i = 0; i < n; i++) {
        if (isfinite(a[i])) sorted[count++] = a[i];
        if (isfinite(b[i])) sorted[count++] = b[i];
    }
    if (count) {
        qsort(sorted, (size_t)count, sizeof(double), curve_compare);
        c->lo = sorted[0];
        c->hi = c->highest = sorted[count - 1];
        double low = sorted[(int)(0.9 * (count - 1))], room = c->lo + (low - c->lo) / 0.75;
        if (count >= 20 && low > c->lo && room < c->hi) c->hi = room;
        if (!(c->hi - c->lo > 1e-6 * fabs(c->lo) + 1e-12)) { /* constant: a line in the middle */
            double half = fmax(0.05 * fabs(c->lo), 1e-3);
            c->lo -= half;
            c->hi += half;
        }
    }
    free(sorted);
    return count;
}

/* Means of the finite values in a window around each value; NaN stays NaN. The window is symmetric,
   so that the curve does not lag behind the validation loss, except at the end, where the loss is
   flat. It grows with n, so that short and long runs look equally smooth. */
static inline void curve_smooth(const double *values, int n, double *smooth) {
    int half = n / 60, lo = 0, hi = 0, count = 0; /* the window is [lo, hi) */
    double sum = 0;
    for (int i = 0; i < n; i++) {
        int reach = min_int(i, half);
        for (; hi < min_int(i + reach + 1, n); hi++)
            if (isfinite(values[hi])) {
                sum += values[hi];
                count++;
            }
        for (; lo < i - reach; lo++)
            if (isfinite(values[lo])) {
                sum -= values[lo];
                count--;
            }
        smooth[i] = isfinite(values[i]) ? sum / count : NAN;
    }
}

/* Draws the line from one training loss to the next, cut at the upper edge of the scale. */
static inline void curve_segment(Curve *c, double step0, double loss0, double step1, double loss1) {
    int x0, y0, x1, y1;
    if (loss0 > c->hi && loss1 > c->hi) return;
    double at =
        loss0 != loss1 ? step0 + (step1 - step0) * (loss0 - c->hi) / (loss0 - loss1) : step0;
    curve_place(c, loss0 > c->hi ? at : step0, fmin(loss0, c->hi), &x0, &y0);
    curve_place(c, loss1 > c->hi ? at : step1, fmin(loss1, c->hi), &x1, &y1);
    curve_line(c, x0, y0, x1, y1);
}

static inline void curve_draw(Curve *c, const int64_t *steps, const double *train,
                              const double *val, int n) {
    int x, y, last = -1;
    for (int i = 0; i < n; i++) {
        if (!isfinite(train[i])) continue;
        if (last < 0) last = i;
        curve_segment(c, (double)steps[last], train[last], (double)steps[i], train[i]);
        last = i;
    }
    for (int i = 0; i < n; i++) {
        if (!isfinite(val[i]) || val[i] > c->hi) continue;
        curve_place(c, (double)steps[i], val[i], &x, &y);
        c->markers[y / 4 * c->columns + x / 2] = 1;
    }
}

static inline void curve_print_cell(FILE *f, const Curve *c, int i, int utf8, int color) {
    int dots = c->dots[i];
    if (c->markers[i]) {
        fprintf(f, "%s%s%s", color ? "\x1b[33m" : "", utf8 ? "●" : "o", color ? "\x1b[0m" : "");
    } else if (dots && utf8) {
        int code = 0x2800 + dots;
        char text[4] = {(char)(0xE0 | code >> 12), (char)(0x80 | (code >> 6 & 0x3F)),
                        (char)(0x80 | (code & 0x3F)), 0};
        fprintf(f, "%s%s%s", color ? "\x1b[36m" : "", text, color ? "\x1b[0m" : "");
    } else {
        fputc(dots ? '*' : ' ', f);
    }
}

/* Prints the rows of the graph, every third with its loss, then the axis of steps. */
static inline void curve_print_graph(FILE *f, const Curve *c, int label, int utf8, int color) {
    char text[64];
    int decimals = c->hi - c->lo < 0.02 ? 4 : c->hi - c->lo < 0.2 ? 3 : 2;
    for (int r = 0; r < c->rows; r++) {
        /* The loss at the middle of the row. */
        double value = c->hi - (c->hi - c->lo) * (4 * r + 1.5) / (4 * c->rows - 1);
        int labeled = (c->rows - 1 - r) % 3 == 0;
        if (labeled) snprintf(text, sizeof text, "%.*f", decimals, value);
        else text[0] = 0;
        fprintf(f, "%*s %s", label, text, utf8 ? (labeled ? "┤" : "│") : (labeled ? "+" : "|"));
        int end = c->columns;
        while (end && !c->dots[r * c->columns + end - 1] && !c->markers[r * c->columns + end - 1])
            end--;
        for (int i = 0; i < end; i++) curve_print_cell(f, c, r * c->columns + i, utf8, color);
        fputc('\n', f);
    }
    fprintf(f, "%*s %s", label, "", utf8 ? "└" : "+");
    int half = c->columns / 2;
    for (int i = 0; i < c->columns; i++) {
        int tick = i == c->columns - 1 || (i == half && c->columns >= 40);
        fputs(utf8 ? (tick ? "┬" : "─") : (tick ? "+" : "-"), f);
    }
    fputc('\n', f);
}

/* Prints the steps below the axis: left, middle if there is room, right. */
static inline void curve_print_steps(FILE *f, const Curve *c, int label) {
    char line[512], text[64];
    int size = min_int(label + 2 + c->columns, (int)sizeof line - 1), half = c->columns / 2;
    memset(line, ' ', (size_t)size);
    line[size] = 0;
    const char *unit = c->last > c->first ? "" : "step ";
    int left = snprintf(text, sizeof text, "%s%.0f", unit, c->first);
    if (label + 2 + left <= size) memcpy(line + label + 2, text, (size_t)left);
    int right = snprintf(text, sizeof text, "step %.0f", c->last);
    if (c->last > c->first && label + 4 + left + right <= size)
        memcpy(line + size - right, text, (size_t)right);
    double at = c->first + (c->last - c->first) * half / fmax(c->columns - 1, 1);
    int middle = snprintf(text, sizeof text, "%.0f", at);
    int start = label + 2 + half - middle / 2;
    if (c->last > c->first && c->columns >= 40 && start > label + 4 + left &&
        start + middle + 2 < size - right)
        memcpy(line + start, text, (size_t)middle);
    for (; size && line[size - 1] == ' '; size--) line[size - 1] = 0;
    fprintf(f, "%s\n", line);
}

/* Prints an entry of the legend, a mark and its text. `column` is where the line is, 0 at its
   start. An entry that does not fit `width` begins a line, indented by `indent`. Returns the new
   column. */
static inline int curve_print_entry(FILE *f, const char *mark, const char *text, const char *color,
                                    int column, int indent, int width) {
    int columns = text_columns(mark, strlen(mark)) + (int)strlen(text), gap = column ? 3 : indent;
    if (column && column + gap + columns > width) {
        fputc('\n', f);
        column = 0;
        gap = indent;
    }
    if (column + gap + columns > width) gap = 0;
    fprintf(f, "%*s%s%s%s%s", gap, "", color, mark, *color ? "\x1b[0m" : "", text);
    return column + gap + columns;
}

/* Prints what the line and the markers are, with the last value of each. */
static inline void curve_print_legend(FILE *f, const Curve *c, const double *train,
                                      const double *val, int n, int indent, int width) {
    char text[64];
    int utf8 = terminal_utf8(), color = terminal_color(f), column = 0;
    double last_train = NAN, last_val = NAN;
    for (int i = 0; i < n; i++) {
        if (isfinite(train[i])) last_train = train[i];
        if (isfinite(val[i])) last_val = val[i];
    }
    snprintf(text, sizeof text, " train %.4f (smoothed)", last_train);
    if (isfinite(last_train))
        column = curve_print_entry(f, utf8 ? "⠒⠒" : "**", text, color ? "\x1b[36m" : "", column,
                                   indent, width);
    snprintf(text, sizeof text, " val %.4f", last_val);
    if (isfinite(last_val))
        column = curve_print_entry(f, utf8 ? "●" : "o", text, color ? "\x1b[33m" : "", column,
                                   indent, width);
    snprintf(text, sizeof text, "above the scale: up to %.2f", c->highest);
    if (c->highest > c->hi) curve_print_entry(f, "", text, "", column, indent, width);
    fputc('\n', f);
}

/* Draws n training and validation losses by their rising steps; NaN means none. The training loss
   is smoothed. width and height are in characters and include the labels. */
static inline void curve_print(FILE *f, const int64_t *steps, const double *train,
                               const double *val, int n, int width, int height) {
    Curve c;
    char text[64];
    int utf8 = terminal_utf8(), color = terminal_color(f);
    memset(&c, 0, sizeof c);
    double *smooth = (double *)malloc(((size_t)max_int(n, 0) + 1) * sizeof(double));
    if (!smooth) return;
    curve_smooth(train, n, smooth);
    if (n < 1 || !curve_scale(&c, smooth, val, n)) {
        fprintf(f, "(no loss to draw yet)\n");
        free(smooth);
        return;
    }
    int label = max_int(snprintf(text, sizeof text, "%.2f", c.hi), 6);
    c.rows = min_int(max_int(height - 3, 3), 200);
    c.columns = min_int(max_int(width - label - 2, 4), 480);
    c.first = (double)steps[0];
    c.last = (double)steps[n - 1];
    c.dots = (unsigned char *)calloc((size_t)(c.rows * c.columns), 2);
    if (c.dots) {
        c.markers = c.dots + c.rows * c.columns;
        curve_draw(&c, steps, smooth, val, n);
        curve_print_graph(f, &c, label, utf8, color);
        curve_print_steps(f, &c, label);
        curve_print_legend(f, &c, smooth, val, n, label + 2, width);
    }
    free(c.dots);
    free(smooth);
}

#endif
