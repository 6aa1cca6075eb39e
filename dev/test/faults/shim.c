/*
Faults for the programs, preloaded into one (Linux, glibc):

    FAULT=fsync:3:EIO LD_PRELOAD=faults.so train_gpt ...        the third fsync fails with EIO

FAULT=KIND:N:ACTION strikes at the N-th call of a kind. Only calls that the program's own code makes
are counted, by their return address, so that N means the same call in every run with one thread;
libraries and what happens before main are left alone.

    KIND     open     open, openat
             stream   fopen, opendir
             write    write, pwrite, and the writes of a file that fopen opened for writing
             print    writes to standard output
             fsync    fsync, fdatasync
             rename   rename
             mmap     mmap
             malloc   malloc, calloc, realloc, aligned_alloc, posix_memalign, strdup, getline,
                      open_memstream and the end of such a stream
             disk     every call that changes the watched folder: open with O_CREAT, write, fsync,
                      rename, unlink, mkdir, ftruncate
             exit     the end of the program
    ACTION   ENOSPC and other names of errors: the call fails. A + after it (ENOSPC+): so do all
             later calls of the kind, as on a disk that stays full
             short       a write takes half of its bytes, once
             KILL, TERM, HUP    the process sends itself the signal: before the call, after it or in
                         the middle of a write, by FAULT_SEED
             CUT, CUTLOOSE      a power cut: what the disk holds is written to FAULT_CUT, then
                         SIGKILL

    FAULT_WATCH    the folder that a power cut damages, for CUT
    FAULT_JOURNAL  a folder for what is known about the disk; several processes in turn may share it
    FAULT_SEED     random numbers
    FAULT_COUNTS   a file that gets "KIND N" for each kind at the end of the program
    FAULT_REPORT   a file that gets a line about the fault when it strikes
    FAULT_KEEP     a folder in which a checkpoint that the program deletes keeps a link
    FAULT_CLOCK    the wall clock jumps by up to this many seconds, back and forth, at every look
    FAULT_SECONDS  SIGALRM after that time, against programs that hang

The disk of a power cut: fsync of a file makes its present contents durable, fsync of a folder makes
the changes of its names durable (create, rename, unlink, mkdir). CUT leaves only that; a file whose
name is durable and whose data are not is empty. CUTLOOSE adds what a file system may have written
by itself: any part of the other changes of names, a prefix of the other data, zeros in place of
data.
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define KINDS(X)                                                                                   \
    X(OPEN, "open")                                                                                \
    X(STREAM, "stream")                                                                            \
    X(WRITE, "write")                                                                              \
    X(PRINT, "print")                                                                              \
    X(FSYNC, "fsync")                                                                              \
    X(RENAME, "rename")                                                                            \
    X(MMAP, "mmap")                                                                                \
    X(MALLOC, "malloc")                                                                            \
    X(DISK, "disk")                                                                                \
    X(EXIT, "exit")
#define KIND_ENUM(ID, NAME) ID,
#define KIND_NAME(ID, NAME) NAME,
typedef enum { KINDS(KIND_ENUM) KIND_COUNT } Kind;
static const char *const kind_names[] = {KINDS(KIND_NAME)};

typedef enum { ACT_NONE, ACT_ERROR, ACT_SHORT, ACT_SIGNAL, ACT_CUT } Act;

/* What FAULT asks for. */
static struct {
    Kind kind;
    long n;
    Act act;
    int error, signal, forever, loose;
} fault;
static long counts[KIND_COUNT];
static uintptr_t code_begin, code_end; /* of the program */
static uint64_t seed;

static uint64_t draw(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return seed >> 33;
}
static uint64_t draw_below(uint64_t n) { return n ? draw() % n : 0; }

/* The function behind this library's function of the same name. */
static void *next_symbol(const char *name) {
    void *p = dlsym(RTLD_NEXT, name);
    if (!p) abort();
    return p;
}
#define NEXT(NAME)                                                                                 \
    static __typeof__(&NAME) next;                                                                 \
    if (!next) next = (__typeof__(&NAME))next_symbol(#NAME)

static void say(const char *path, int flags, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static ssize_t plain_write(int fd, const void *data, size_t n) {
    NEXT(write);
    return next(fd, data, n);
}
static int plain_open(const char *path, int flags) {
    static int (*next)(const char *, int, ...);
    if (!next) next = (int (*)(const char *, int, ...))next_symbol("open");
    return next(path, flags | O_CLOEXEC, 0666);
}

/* Writes a line to a file of the harness. */
static void say(const char *path, int flags, const char *format, ...) {
    char line[1024];
    va_list args;
    if (!path) return;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    int fd = plain_open(path, O_WRONLY | O_CREAT | flags);
    if (fd < 0 || n < 0 || n >= (int)sizeof line || plain_write(fd, line, (size_t)n) != n) abort();
    close(fd);
}

/* ---------------------------------------------------------------------------------------------- */
/* The disk: which names and which data are durable                                               */

enum { PATH_SIZE = 256, MOST = 4096 };

/* A file, for as long as it exists under whatever name. */
typedef struct {
    ino_t ino;
    long copy; /* number of the copy of its durable contents in the journal; 0: none */
} File;

/* A change of names; paths are relative to the watched folder. */
typedef struct {
    char what; /* c create, m mkdir, r rename, u unlink */
    char path[PATH_SIZE], to[PATH_SIZE];
    int file, durable;
} Op;

typedef struct {
    char path[PATH_SIZE];
    int file; /* -1: a folder */
} Name;
typedef struct {
    Name name[MOST];
    int n;
} Names;

static File files[MOST];
static Op ops[MOST];
static Names now; /* the folder as it is */
static int file_count, op_count;
static long copies;
static char watched[PATH_SIZE], journal[PATH_SIZE]; /* empty: no power cut is asked for */

/* The part of a path below the watched folder, or NULL. */
static const char *below(const char *path, char *buffer) {
    if (!watched[0]) return NULL;
    if (path[0] == '/') snprintf(buffer, 2 * PATH_SIZE, "%s", path);
    else {
        char here[PATH_SIZE];
        if (!getcwd(here, sizeof here)) abort();
        snprintf(buffer, 2 * PATH_SIZE, "%s/%s", here,
                 path[0] == '.' && path[1] == '/' ? path + 2 : path);
    }
    size_t n = strlen(watched);
    if (strstr(buffer, "/../") || strncmp(buffer, watched, n)) return NULL;
    if (!buffer[n] || !strcmp(buffer + n, "/.")) return "";
    return buffer[n] == '/' ? buffer + n + 1 : NULL;
}

static int find_name(const Names *names, const char *path) {
    for (int i = 0; i < names->n; i++)
        if (!strcmp(names->name[i].path, path)) return i;
    return -1;
}

static void remove_name(Names *names, const char *path) {
    int i = find_name(names, path);
    if (i >= 0) names->name[i] = names->name[--names->n];
}

static void add_name(Names *names, const char *path, int file) {
    remove_name(names, path);
    if (names->n == MOST) abort();
    snprintf(names->name[names->n].path, PATH_SIZE, "%s", path);
    names->name[names->n++].file = file;
}

static void apply(Names *names, const Op *op) {
    if (op->what == 'c') add_name(names, op->path, op->file);
    if (op->what == 'm') add_name(names, op->path, -1);
    if (op->what == 'u' || op->what == 'r') remove_name(names, op->path);
    if (op->what == 'r') add_name(names, op->to, op->file);
}

/* Whether a path lies directly in a folder; "" is the watched folder itself. */
static int lies_in(const char *path, const char *folder) {
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    return path[0] && strlen(folder) == n && !strncmp(path, folder, n);
}

/* Takes one event of the journal: a change of names, s (the data of inode `number` are durable, in
   copy a) or d (the names in folder a are durable). */
static void take(char what, unsigned long number, const char *a, const char *b) {
    if (what == 's') {
        for (int i = file_count - 1; i >= 0; i--) {
            if (files[i].ino != (ino_t)number) continue;
            files[i].copy = atol(a);
            break;
        }
        return;
    }
    if (what == 'd') {
        for (int i = 0; i < op_count; i++)
            if (lies_in(ops[i].path, a) || lies_in(ops[i].to, a)) ops[i].durable = 1;
        return;
    }
    if (op_count == MOST || file_count == MOST) abort();
    Op *op = &ops[op_count++];
    int at = find_name(&now, a);
    op->what = what;
    op->durable = 0;
    op->file = at >= 0 ? now.name[at].file : -1;
    snprintf(op->path, PATH_SIZE, "%s", a);
    snprintf(op->to, PATH_SIZE, "%s", b);
    if (what == 'c') {
        op->file = file_count;
        files[file_count].ino = (ino_t)number;
        files[file_count++].copy = 0;
    }
    apply(&now, op);
}

/* An event that happens now: it is taken and appended to the journal. "-" stands for "". */
static void happen(char what, unsigned long number, const char *a, const char *b) {
    char path[2 * PATH_SIZE];
    snprintf(path, sizeof path, "%s/log", journal);
    take(what, number, a, b);
    say(path, O_APPEND, "%c %lu %s %s\n", what, number, *a ? a : "-", *b ? b : "-");
}

/* Reads a file into new memory. Returns the number of bytes, or -1. */
static long read_file(const char *path, char **data) {
    struct stat st;
    int fd = plain_open(path, O_RDONLY);
    if (fd < 0) return -1;
    if (fstat(fd, &st)) abort();
    *data = (char *)malloc((size_t)st.st_size + 1);
    if (!*data || read(fd, *data, (size_t)st.st_size) != st.st_size) abort();
    close(fd);
    return (long)st.st_size;
}

static void write_file(const char *path, const char *data, long n) {
    int fd = plain_open(path, O_WRONLY | O_CREAT | O_TRUNC);
    if (fd < 0 || plain_write(fd, data, (size_t)n) != n) abort();
    close(fd);
}

/* The contents of the file `path` are durable from now on. */
static void sync_contents(const char *path, unsigned long ino) {
    char copy[2 * PATH_SIZE], number[32], *data = NULL;
    long n = read_file(path, &data);
    if (n < 0) return; /* it has no name any more */
    do snprintf(copy, sizeof copy, "%s/%ld", journal, ++copies);
    while (access(copy, F_OK) == 0);
    write_file(copy, data, n);
    free(data);
    snprintf(number, sizeof number, "%ld", copies);
    happen('s', ino, number, "");
}

/* All that is in a folder is durable, as it is at the start. */
static void sync_tree(const char *folder, const char *name) {
    char path[3 * PATH_SIZE], inner[PATH_SIZE];
    struct dirent *entry;
    struct stat st;
    DIR *d = opendir(folder);
    if (!d) abort();
    while ((entry = readdir(d)) != NULL) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (snprintf(inner, sizeof inner, "%s%s%s", name, *name ? "/" : "", entry->d_name) >=
                (int)sizeof inner ||
            stat(path, &st))
            abort();
        happen(S_ISDIR(st.st_mode) ? 'm' : 'c', (unsigned long)st.st_ino, inner, "");
        if (S_ISDIR(st.st_mode)) sync_tree(path, inner);
        else sync_contents(path, (unsigned long)st.st_ino);
    }
    closedir(d);
    happen('d', 0, name, "");
}

/* Reads the journal of the processes before this one, or begins one. */
static void journal_begin(void) {
    char path[2 * PATH_SIZE], a[PATH_SIZE], b[PATH_SIZE], what, *data = NULL;
    unsigned long number;
    int used;
    snprintf(path, sizeof path, "%s/log", journal);
    long n = read_file(path, &data);
    if (n < 0) {
        mkdir(journal, 0777);
        sync_tree(watched, "");
        return;
    }
    data[n] = 0;
    for (const char *p = data;
         sscanf(p, "%c %lu %255s %255s\n%n", &what, &number, a, b, &used) == 4; p += used)
        take(what, number, strcmp(a, "-") ? a : "", strcmp(b, "-") ? b : "");
    free(data);
}

/* Data that a file system may have when the file is being written: n bytes of which the durable
   ones are `old`. Where one is the beginning of the other, the bytes that both have are kept; data
   that are not durable survive up to a random place, with zeros behind it. */
static char *loose_contents(char *old, long old_n, char *data, long *n) {
    long both = old_n < *n ? old_n : *n;
    if (both && memcmp(old, data, (size_t)both)) { /* overwritten: one or the other */
        if (draw_below(2)) return data;
        *n = old_n;
        return old;
    }
    if (*n <= old_n) { /* cut short, or not */
        if (draw_below(2)) return data;
        *n = old_n;
        return old;
    }
    long whole = both + (long)draw_below((uint64_t)(*n - both) + 1);
    long end = draw_below(2) ? whole : whole + (long)draw_below((uint64_t)(*n - whole) + 1);
    memset(data + whole, 0, (size_t)(end - whole));
    *n = end;
    return data;
}

/* Writes the file that a name has after the cut. */
static void write_after_cut(const Name *name, const char *path) {
    char from[2 * PATH_SIZE], *old = NULL, *data = NULL;
    long copy = files[name->file].copy, old_n = 0, n = -1;
    if (copy) {
        snprintf(from, sizeof from, "%s/%ld", journal, copy);
        old_n = read_file(from, &old);
        if (old_n < 0) abort();
    }
    for (int i = 0; i < now.n && fault.loose; i++) {
        if (now.name[i].file != name->file) continue;
        snprintf(from, sizeof from, "%s/%s", watched, now.name[i].path);
        n = read_file(from, &data);
        break;
    }
    if (n < 0) write_file(path, old, old_n);
    else {
        char *contents = loose_contents(old, old_n, data, &n);
        write_file(path, contents, n);
    }
    free(old);
    free(data);
}

/* Writes the names in `folder` of what is left after the cut, and what is below them. */
static void write_names(const Names *left, const char *folder, const char *to) {
    char path[2 * PATH_SIZE];
    mkdir(to, 0777);
    for (int i = 0; i < left->n; i++) {
        const Name *name = &left->name[i];
        if (!lies_in(name->path, folder)) continue;
        const char *slash = strrchr(name->path, '/');
        snprintf(path, sizeof path, "%s/%s", to, slash ? slash + 1 : name->path);
        if (name->file < 0) write_names(left, name->path, path);
        else write_after_cut(name, path);
    }
}

static void power_cut(void) {
    static Names left;
    uint64_t chance = draw_below(5); /* in fourths: of a change of names that is not durable */
    for (int i = 0; i < op_count; i++)
        if (ops[i].durable || (fault.loose && draw_below(4) < chance)) apply(&left, &ops[i]);
    write_names(&left, "", getenv("FAULT_CUT"));
}

/* What the calls below tell the journal. */
static void note_create(const char *path) {
    char buffer[2 * PATH_SIZE];
    struct stat st;
    const char *name = below(path, buffer);
    if (name && !stat(path, &st) && find_name(&now, name) < 0)
        happen('c', (unsigned long)st.st_ino, name, "");
}
static void note_names(char what, const char *a, const char *b) {
    char first[2 * PATH_SIZE], second[2 * PATH_SIZE];
    const char *x = below(a, first), *y = below(b, second);
    if (x) happen(what, 0, x, y && what == 'r' ? y : "");
}
static void note_sync(int fd) {
    char link[64], path[2 * PATH_SIZE], buffer[2 * PATH_SIZE];
    struct stat st;
    if (!watched[0] || fstat(fd, &st)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return;
    path[n] = 0;
    const char *name = below(path, buffer);
    if (!name) return;
    if (S_ISDIR(st.st_mode)) happen('d', 0, name, "");
    else sync_contents(path, (unsigned long)st.st_ino);
}

/* ---------------------------------------------------------------------------------------------- */
/* The fault                                                                                      */

static void strike(void) {
    if (fault.act == ACT_CUT) {
        power_cut();
        kill(getpid(), SIGKILL);
    }
    kill(getpid(), fault.signal);
}

/* When a signal or a power cut comes: before the call, in it, or after it. */
typedef enum { BEFORE, WITHIN, AFTER } Moment;

static int mine(const void *caller) {
    return (uintptr_t)caller >= code_begin && (uintptr_t)caller < code_end;
}

/* Counts a call. Returns 1 if the fault strikes it. */
static int count(Kind kind, const char *what) {
    long n = __atomic_add_fetch(&counts[kind], 1, __ATOMIC_RELAXED);
    int hit = fault.act && fault.kind == kind && (n == fault.n || (fault.forever && n > fault.n));
    if (hit && n == fault.n)
        say(getenv("FAULT_REPORT"), O_APPEND, "%s %ld: %s\n", kind_names[kind], n, what);
    return hit;
}

static Moment moment(void) { return (Moment)(seed % 3); }

/* Before a call of the program: returns the error that it fails with, else 0. Sets *late to 1 if a
   signal or a power cut is to come in the call or after it. */
static int arrive(Kind kind, const void *caller, const char *what, int *late) {
    *late = 0;
    if (!mine(caller) || !count(kind, what)) return 0;
    if (fault.act == ACT_ERROR) return fault.error;
    if (fault.act == ACT_SIGNAL || fault.act == ACT_CUT) {
        if (moment() == BEFORE) strike();
        else *late = 1;
    }
    return 0;
}

static int parse_action(const char *text) {
    static const struct {
        const char *name;
        int code;
    } errors[] = {{"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EINTR", EINTR},  {"EMFILE", EMFILE},
                  {"ENOMEM", ENOMEM}, {"EACCES", EACCES}, {"EINVAL", EINVAL}},
      signals[] = {{"KILL", SIGKILL},
                   {"TERM", SIGTERM},
                   {"HUP", SIGHUP},
                   {"INT", SIGINT},
                   {"USR1", SIGUSR1}};
    size_t n = strlen(text);
    fault.forever = n && text[n - 1] == '+';
    n -= (size_t)fault.forever;
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (strlen(errors[i].name) == n && !strncmp(errors[i].name, text, n)) {
            fault.error = errors[i].code;
            return ACT_ERROR;
        }
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        if (!strcmp(signals[i].name, text)) {
            fault.signal = signals[i].code;
            return ACT_SIGNAL;
        }
    fault.loose = !strcmp(text, "CUTLOOSE");
    if (fault.loose || !strcmp(text, "CUT")) return ACT_CUT;
    return !strcmp(text, "short") ? ACT_SHORT : ACT_NONE;
}

static void parse_fault(const char *text) {
    char kind[16], action[16];
    if (sscanf(text, "%15[a-z]:%ld:%15s", kind, &fault.n, action) != 3) abort();
    for (int i = 0; i < KIND_COUNT; i++)
        if (!strcmp(kind_names[i], kind)) {
            fault.kind = (Kind)i;
            fault.act = (Act)parse_action(action);
        }
    if (!fault.act) abort();
}

/* Finds the program's code: the first object that the loader names. */
static int find_code(struct dl_phdr_info *info, size_t size, void *unused) {
    (void)size;
    (void)unused;
    code_begin = UINTPTR_MAX;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
        uintptr_t begin = info->dlpi_addr + p->p_vaddr;
        if (begin < code_begin) code_begin = begin;
        if (begin + p->p_memsz > code_end) code_end = begin + p->p_memsz;
    }
    return 1;
}

static ssize_t file_writes(void *fd, const char *data, size_t n);
static int file_closes(void *fd);

/* A stream that writes through this library, so that its writes can fail. */
static FILE *stream(int fd, const char *mode) {
    cookie_io_functions_t io = {
        .read = NULL, .write = file_writes, .seek = NULL, .close = file_closes};
    return fopencookie((void *)(intptr_t)fd, mode, io);
}

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("FAULT"), *seconds = getenv("FAULT_SECONDS");
    const char *watch = getenv("FAULT_WATCH"), *folder = getenv("FAULT_JOURNAL");
    seed = strtoull(getenv("FAULT_SEED") ? getenv("FAULT_SEED") : "0", NULL, 10);
    if (seconds) alarm((unsigned)atoi(seconds));
    if (watch && folder) {
        if (!realpath(watch, watched)) abort();
        snprintf(journal, sizeof journal, "%s", folder);
        journal_begin();
    }
    if (text) parse_fault(text);
    if (getenv("FAULT_COUNTS") || (fault.act && fault.kind == PRINT)) stdout = stream(1, "w");
    dl_iterate_phdr(find_code, NULL);
}

__attribute__((destructor)) static void end(void) {
    int late;
    arrive(EXIT, (const void *)code_begin, "the end", &late);
    if (late) strike();
    const char *path = getenv("FAULT_COUNTS");
    for (int i = 0; path && i < KIND_COUNT; i++)
        say(path, O_APPEND, "%s %ld\n", kind_names[i], counts[i]);
}

/* ---------------------------------------------------------------------------------------------- */
/* Calls: files                                                                                   */

#define CALLER __builtin_return_address(0)
/* Fails a call that cannot damage the disk. */
#define MAY_FAIL(KIND, WHAT, RESULT)                                                               \
    do {                                                                                           \
        int late, code = arrive(KIND, CALLER, WHAT, &late);                                        \
        if (code) {                                                                                \
            errno = code;                                                                          \
            return RESULT;                                                                         \
        }                                                                                          \
        if (late) strike();                                                                        \
    } while (0)

/* A call that changes the disk is of its own kind and of the kind `disk`. */
static int arrive_disk(Kind kind, const void *caller, const char *what, int *late) {
    int first = 0, second = 0, error = 0;
    if (kind != DISK) error = arrive(kind, caller, what, &first);
    if (!error) error = arrive(DISK, caller, what, &second);
    *late = first | second;
    if (error) errno = error;
    return error;
}

static int do_open(const char *path, int flags, mode_t mode, const void *caller) {
    static int (*next)(const char *, int, ...);
    int late = 0, error, creates = (flags & O_CREAT) != 0;
    if (!next) next = (int (*)(const char *, int, ...))next_symbol("open");
    if (creates) error = arrive_disk(OPEN, caller, path, &late);
    else {
        error = arrive(OPEN, caller, path, &late);
        if (error) errno = error;
    }
    if (error) return -1;
    int fd = next(path, flags, mode);
    int saved = errno;
    if (fd >= 0 && creates && mine(caller)) note_create(path);
    if (late) strike();
    errno = saved;
    return fd;
}

int open(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return do_open(path, flags, mode, CALLER);
}
int open64(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return do_open(path, flags, mode, CALLER);
}
int openat(int folder, const char *path, int flags, ...) {
    static int (*next)(int, const char *, int, ...);
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    if (folder == AT_FDCWD) return do_open(path, flags, mode, CALLER);
    if (!next) next = (int (*)(int, const char *, int, ...))next_symbol("openat");
    MAY_FAIL(OPEN, path, -1);
    return next(folder, path, flags, mode);
}

/* A write; the descriptor of standard output is of the kind `print`. */
static ssize_t do_write(int fd, const void *data, size_t n, const void *caller, Kind kind) {
    char what[64];
    int late;
    snprintf(what, sizeof what, "fd %d, %zu bytes", fd, n);
    if (!mine(caller)) return plain_write(fd, data, n);
    if (fault.act == ACT_SHORT && fault.kind == kind) {
        if (count(kind, what)) return plain_write(fd, data, (n + 1) / 2);
        return plain_write(fd, data, n);
    }
    if (kind == PRINT) {
        int error = arrive(kind, caller, what, &late);
        if (error) {
            errno = error;
            return -1;
        }
    } else if (arrive_disk(kind, caller, what, &late)) return -1;
    if (late && moment() == WITHIN) {
        plain_write(fd, data, n / 2);
        strike();
        return plain_write(fd, (const char *)data + n / 2, n - n / 2) < 0 ? -1 : (ssize_t)n;
    }
    ssize_t wrote = plain_write(fd, data, n);
    if (late) strike();
    return wrote;
}
ssize_t write(int fd, const void *data, size_t n) { return do_write(fd, data, n, CALLER, WRITE); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    NEXT(pwrite);
    MAY_FAIL(WRITE, "pwrite", -1);
    return next(fd, data, n, at);
}

/* Writes of a stream. As in glibc's own streams, what a short write has left is written again, and
   an interrupted write is an error. */
static ssize_t file_writes(void *cookie, const char *data, size_t n) {
    int fd = (int)(intptr_t)cookie;
    size_t done = 0;
    while (done < n) {
        ssize_t wrote =
            do_write(fd, data + done, n - done, (const void *)code_begin, fd == 1 ? PRINT : WRITE);
        if (wrote < 0) break;
        done += (size_t)wrote;
    }
    return (ssize_t)done; /* fopencookie: fewer than n is the error */
}
static int file_closes(void *cookie) { return close((int)(intptr_t)cookie); }

/* Streams that this library made, for fileno. */
static struct {
    FILE *file;
    int fd;
} streams[64];

static FILE *do_fopen(const char *path, const char *mode, const void *caller) {
    static FILE *(*next)(const char *, const char *);
    if (!next) next = (FILE * (*)(const char *, const char *)) next_symbol("fopen");
    if (!mine(caller)) return next(path, mode);
    if (mode[0] == 'r') {
        int late, error = arrive(STREAM, caller, path, &late);
        if (error) {
            errno = error;
            return NULL;
        }
        if (late) strike();
        return next(path, mode);
    }
    int fd =
        do_open(path, O_WRONLY | O_CREAT | (mode[0] == 'w' ? O_TRUNC : O_APPEND), 0666, caller);
    if (fd < 0) return NULL;
    FILE *f = stream(fd, "w");
    for (int i = 0; f && i < 64; i++)
        if (!streams[i].file) {
            streams[i].file = f;
            streams[i].fd = fd;
            break;
        }
    return f;
}
FILE *fopen(const char *path, const char *mode) { return do_fopen(path, mode, CALLER); }
FILE *fopen64(const char *path, const char *mode) { return do_fopen(path, mode, CALLER); }

int fileno(FILE *f) {
    NEXT(fileno);
    if (f == stdout) return 1;
    for (int i = 0; i < 64; i++)
        if (streams[i].file == f) return streams[i].fd;
    return next(f);
}

DIR *opendir(const char *path) {
    NEXT(opendir);
    MAY_FAIL(STREAM, path, NULL);
    return next(path);
}

static int do_fsync(int fd, const void *caller, int (*next)(int)) {
    char what[32];
    int late;
    snprintf(what, sizeof what, "fd %d", fd);
    if (arrive_disk(FSYNC, caller, what, &late)) return -1;
    int status = next(fd), saved = errno;
    if (!status && mine(caller)) note_sync(fd);
    if (late) strike();
    errno = saved;
    return status;
}
int fsync(int fd) {
    NEXT(fsync);
    return do_fsync(fd, CALLER, next);
}
int fdatasync(int fd) {
    NEXT(fdatasync);
    return do_fsync(fd, CALLER, next);
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    int late;
    if (arrive_disk(RENAME, CALLER, to, &late)) return -1;
    int status = next(from, to), saved = errno;
    if (!status && mine(CALLER)) note_names('r', from, to);
    if (late) strike();
    errno = saved;
    return status;
}

/* Keeps a link to a checkpoint that is deleted. */
static void keep(const char *path) {
    char copy[2 * PATH_SIZE];
    const char *folder = getenv("FAULT_KEEP"), *slash = strrchr(path, '/');
    size_t n = strlen(path);
    if (!folder || n < 5 || strcmp(path + n - 5, ".ckpt")) return;
    snprintf(copy, sizeof copy, "%s/%s", folder, slash ? slash + 1 : path);
    if (link(path, copy) && errno != EEXIST) abort();
}

int unlink(const char *path) {
    NEXT(unlink);
    int late;
    if (mine(CALLER)) keep(path);
    if (arrive_disk(DISK, CALLER, path, &late)) return -1;
    int status = next(path), saved = errno;
    if (!status && mine(CALLER)) note_names('u', path, "");
    if (late) strike();
    errno = saved;
    return status;
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    int late;
    if (arrive_disk(DISK, CALLER, path, &late)) return -1;
    int status = next(path, mode), saved = errno;
    if (!status && mine(CALLER)) note_names('m', path, "");
    if (late) strike();
    errno = saved;
    return status;
}

int ftruncate(int fd, off_t size) {
    NEXT(ftruncate);
    int late;
    if (arrive_disk(DISK, CALLER, "ftruncate", &late)) return -1;
    int status = next(fd, size), saved = errno;
    if (late) strike();
    errno = saved;
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* Calls: memory                                                                                  */

/* glibc's own names: what dlsym needs memory for must not come back here. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

void *malloc(size_t n) {
    MAY_FAIL(MALLOC, "malloc", NULL);
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size) {
    MAY_FAIL(MALLOC, "calloc", NULL);
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n) {
    MAY_FAIL(MALLOC, "realloc", NULL);
    return __libc_realloc(p, n);
}
void *aligned_alloc(size_t align, size_t n) {
    MAY_FAIL(MALLOC, "aligned_alloc", NULL);
    return __libc_memalign(align, n);
}
int posix_memalign(void **p, size_t align, size_t n) {
    MAY_FAIL(MALLOC, "posix_memalign", ENOMEM);
    *p = __libc_memalign(align, n);
    return *p ? 0 : ENOMEM;
}
char *strdup(const char *text) {
    MAY_FAIL(MALLOC, "strdup", NULL);
    size_t n = strlen(text) + 1;
    char *copy = (char *)__libc_malloc(n);
    return copy ? (char *)memcpy(copy, text, n) : NULL;
}
/* glob asks for memory itself. */
int glob(const char *pattern, int flags, int (*error)(const char *, int), glob_t *g) {
    NEXT(glob);
    MAY_FAIL(MALLOC, "glob", GLOB_NOSPACE);
    return next(pattern, flags, error, g);
}
ssize_t getline(char **line, size_t *size, FILE *f) {
    NEXT(getline);
    MAY_FAIL(MALLOC, "getline", -1);
    return next(line, size, f);
}

/* A stream in memory fails where it is made, or later, when it must grow: then its end reports the
   error, and the text is cut short. */
static struct {
    FILE *file;
    char **text;
    size_t *size;
} memories[64];

FILE *open_memstream(char **text, size_t *size) {
    NEXT(open_memstream);
    MAY_FAIL(MALLOC, "open_memstream", NULL);
    FILE *f = next(text, size);
    for (int i = 0; f && mine(CALLER) && i < 64; i++)
        if (!memories[i].file) {
            memories[i].file = f;
            memories[i].text = text;
            memories[i].size = size;
            break;
        }
    return f;
}

int fclose(FILE *f) {
    NEXT(fclose);
    for (int i = 0; i < 64; i++)
        if (streams[i].file == f) streams[i].file = NULL;
    for (int i = 0; i < 64; i++) {
        if (memories[i].file != f) continue;
        memories[i].file = NULL;
        int late, error = arrive(MALLOC, CALLER, "the end of a stream in memory", &late);
        int status = next(f);
        if (!error) return status;
        (*memories[i].text)[*memories[i].size /= 2] = 0;
        errno = error;
        return EOF;
    }
    return next(f);
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    NEXT(mmap);
    MAY_FAIL(MMAP, "mmap", MAP_FAILED);
    return next(at, n, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    NEXT(mmap64);
    MAY_FAIL(MMAP, "mmap", MAP_FAILED);
    return next(at, n, protection, flags, fd, offset);
}

/* ---------------------------------------------------------------------------------------------- */
/* Calls: the wall clock                                                                          */

/* Seconds to add to the wall clock at this look. */
static long jump(void) {
    const char *most = getenv("FAULT_CLOCK");
    if (!most) return 0;
    long n = atol(most);
    return (long)draw_below((uint64_t)(2 * n + 1)) - n;
}
int clock_gettime(clockid_t clock, struct timespec *t) {
    NEXT(clock_gettime);
    int status = next(clock, t);
    if (!status && clock == CLOCK_REALTIME && mine(CALLER)) t->tv_sec += jump();
    return status;
}
time_t time(time_t *at) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (mine(CALLER)) t.tv_sec += jump();
    if (at) *at = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *t, void *zone) {
    static int (*next)(struct timeval *, void *);
    if (!next) next = (int (*)(struct timeval *, void *))next_symbol("gettimeofday");
    int status = next(t, zone);
    if (!status && mine(CALLER)) t->tv_sec += jump();
    return status;
}
