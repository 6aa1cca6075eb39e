/*
What a terminal shows: its kind and width, the columns that text takes, lines that break between
words, and output that can no longer be written.
*/
#ifndef CM_TERMINAL_H
#define CM_TERMINAL_H

#include "base.h"
#include "json.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------- */
/* The terminal                                                                                   */

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

/* 1 if f is a file or a terminal that has a descriptor; a stream in memory has none. */
static inline int terminal_is(FILE *f) { return fileno(f) >= 0 && isatty(fileno(f)); }

/* 1 if f is a terminal that understands escape sequences. */
static inline int terminal_live(FILE *f) {
    const char *term = getenv("TERM");
    return terminal_is(f) && term && *term && strcmp(term, "dumb") != 0;
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

/* Columns in which to wrap lines; 0, do not wrap, if f is no terminal: a file has one line for each
   fact, so that grep finds it whole. The last column stays free, since some terminals wrap after a
   character there. */
static inline int terminal_room(FILE *f) { return terminal_is(f) ? terminal_width(f) - 1 : 0; }

/* ---------------------------------------------------------------------------------------------- */
/* Text                                                                                           */

/* Columns of a character: 0 for marks that combine with the one before, 2 for East Asian wide ones
   and pictures (Unicode Standard Annex 11), else 1. */
static inline int text_columns_of(uint32_t code) {
    static const uint32_t none[][2] = {{0x300, 0x36F},   {0x200B, 0x200F}, {0x20D0, 0x20FF},
                                       {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}, {0xE0100, 0xE01EF}};
    static const uint32_t two[][2] = {{0x1100, 0x115F},   {0x2E80, 0x303E},   {0x3041, 0xA4CF},
                                      {0xAC00, 0xD7A3},   {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},
                                      {0xFF00, 0xFF60},   {0xFFE0, 0xFFE6},   {0x17000, 0x1B2FF},
                                      {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1FAFF},
                                      {0x20000, 0x3FFFD}};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
        if (code >= none[i][0] && code <= none[i][1]) return 0;
    for (size_t i = 0; i < sizeof two / sizeof two[0]; i++)
        if (code >= two[i][0] && code <= two[i][1]) return 2;
    return 1;
}

/* Columns of n bytes of UTF-8. Escape sequences that set colors take none; a byte that is not UTF-8
   takes one. */
static inline int text_columns(const char *text, size_t n) {
    int columns = 0;
    for (size_t i = 0; i < n;) {
        uint32_t code;
        if (text[i] == '\x1b') {
            for (; i < n && text[i] != 'm';) i++;
            i += i < n;
            continue;
        }
        size_t length = utf8_decode((const unsigned char *)text + i, n - i, &code);
        columns += length ? text_columns_of(code) : 1;
        i += length ? length : 1;
    }
    return columns;
}

/* Bytes of the first piece of text, up to the next `gap`, " " or "  ", or the end of a line. A flag
   and its value are one piece. */
static inline int text_piece(const char *text, const char *gap) {
    const char *end = strstr(text, gap), *value = end ? end + strspn(end, " ") : NULL;
    if (end && strncmp(text, "--", 2) == 0 && *value && *value != '-') end = strstr(value, gap);
    int length = end ? (int)(end - text) : (int)strlen(text);
    return min_int(length, (int)strcspn(text, "\n"));
}

/* Prints text that begins in column `column`. Breaks at gaps, " " between words or "  " between
   fields, so that a line has at most `width` columns, and indents the lines that follow; width 0
   breaks nowhere. A piece that is wider than a line stays whole. */
static inline void text_wrap(FILE *f, const char *text, const char *gap, int indent, int column,
                             int width) {
    int first = 1; /* of the pieces of a line */
    for (const char *s = text; *s; first = 0) {
        if (*s == '\n') {
            fputc(*s++, f);
            column = 0;
        }
        int spaces = (int)strspn(s, " "), length = text_piece(s + spaces, gap);
        int columns = text_columns(s + spaces, (size_t)length);
        if (width > 0 && !first && column + spaces + columns > width) {
            fprintf(f, "\n%*s", indent, "");
            column = indent;
            s += spaces;
            spaces = 0;
        }
        fwrite(s, 1, (size_t)(spaces + length), f);
        column += spaces + columns;
        s += spaces + length;
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* Lines                                                                                          */

/* Columns of a label and the space after it, which is where the lines that follow begin. */
enum { LABEL_COLUMNS = 9 };

/* Prints a label and text, wrapped to at most `width` columns. Text without a label (NULL) may
   consist of fields, two spaces apart, which stay whole. Narrow lines have a smaller indent. */
static inline void print_wrapped(FILE *out, const char *label, const char *text, int width) {
    int indent = label && width >= 4 * LABEL_COLUMNS ? LABEL_COLUMNS : 2;
    int column = label ? fprintf(out, "%-*s ", LABEL_COLUMNS - 1, label) : 0;
    text_wrap(out, text, !label && strstr(text, "  ") ? "  " : " ", indent, column, width);
    fputc('\n', out);
}

/* Prints "label    text", or the text alone if label is NULL: in one line, and on a terminal in as
   many as its width needs. */
__attribute__((format(printf, 3, 0))) static inline void
vprint_line(FILE *out, const char *label, const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    int length = max_int(vsnprintf(NULL, 0, format, again), 0);
    va_end(again);
    char *text = (char *)calloc((size_t)length + 1, 1);
    if (!text) return;
    vsnprintf(text, (size_t)length + 1, format, args);
    print_wrapped(out, label, text, terminal_room(out));
    free(text);
}
__attribute__((format(printf, 3, 4))) static inline void print_line(FILE *out, const char *label,
                                                                    const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprint_line(out, label, format, args);
    va_end(args);
}

/* Prints "text command". A command is never broken, so that it can be copied: where both do not fit
   `width`, it begins a line. */
static inline void print_command_in(FILE *out, const char *text, const char *command, int width) {
    int columns = text_columns(text, strlen(text)) + 1 + text_columns(command, strlen(command));
    text_wrap(out, text, " ", 2, 0, width);
    fprintf(out, "%s%s\n", width > 0 && columns > width ? "\n  " : " ", command);
}
static inline void print_command(FILE *out, const char *text, const char *command) {
    print_command_in(out, text, command, terminal_room(out));
}

/* ---------------------------------------------------------------------------------------------- */
/* Output that is lost                                                                            */

/* Occupies the number of each standard stream that the caller of the program closed. A file of the
   run would otherwise get the number of stdout, and every printed line would be written into that
   file. The streams stay as unusable as closed ones: the first may not be read, nor the others
   written. Call it first in main. */
static inline void output_hold(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_RDONLY : O_WRONLY) < 0) return;
}

/* Flushes the stream. Returns 1 if it can no longer be written: the reader of a pipe is gone, a
   disk is full, a terminal is closed. One line on stderr then says so, and names `log` (NULL:
   none), where the numbers are; what is printed from then on goes to /dev/null, so the next call
   returns 0. The program must ignore SIGPIPE. */
static inline int output_lost(FILE *out, const char *log) {
    errno = 0;
    int failed = fflush(out) != 0 || ferror(out), code = errno;
    if (!failed) return 0;
    if (code == EAGAIN || code == EINTR) { /* a terminal that another program made non-blocking */
        clearerr(out);
        return 0;
    }
    print_line(stderr, NULL, "note: the output can no longer be written (%s); the run goes on%s%s",
               code ? strerror(code) : "an earlier write failed", log ? ", its log is " : "",
               log ? log : "");
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere >= 0) {
        dup2(nowhere, fileno(out));
        close(nowhere);
    }
    clearerr(out);
    return 1;
}

/* The exit status of a program that has printed what it was asked for: 0, or 1 with a message if
   that could not be written. */
static inline int output_status(FILE *out) {
    errno = 0;
    if (!fflush(out) && !ferror(out)) return 0;
    fprintf(stderr, "error: the output cannot be written: %s\n",
            errno ? strerror(errno) : "an earlier write failed");
    return 1;
}

#endif
