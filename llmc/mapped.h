/*
Files read by memory map, and what happens when such a file becomes shorter.

    struct stat st;
    int fd = mapped_open_file(path, &st);         refuses everything but a regular file
    Mapped *m = mapped_make(fd, path, size, err);
    mapped_read(work, argument, err)              calls work(argument), which reads m->bytes
    mapped_whole(m, err)                          0 if the file still has all its bytes
    mapped_close(m);

A map keeps the file that was opened. So no harm is done by a file that grows, or that is deleted or
replaced under its name. But a file that is cut takes its pages with it, and a program that then
reads them gets SIGBUS. A handler looks up the address. Inside mapped_read it leaves `work`, and
mapped_read returns an error. Elsewhere it names the file on stderr and ends the program. A SIGBUS
at any other address does what it did before the first file was mapped.

The last page that a cut file keeps is filled up with zeros, which can be read without a signal.
mapped_whole finds that; it costs a system call, so a reader calls it where it has read zeros.

Only one thread opens and closes; any thread may read. The handler runs on the stack of the thread
that reads.
*/
#ifndef CM_MAPPED_H
#define CM_MAPPED_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>
#include <unistd.h>

#include "base.h"
#include "files.h"

typedef struct Mapped {
    char *path;
    const unsigned char *bytes;
    size_t size;
    int fd;
    struct Mapped *next;
} Mapped;

/* A call of mapped_read, to which the handler returns. */
typedef struct {
    sigjmp_buf jump;
    const Mapped *volatile failed;
} MappedGuard;

CM_STATE Mapped *cm_mapped_first;               /* all maps, for the handler */
CM_STATE struct sigaction cm_mapped_before;     /* what SIGBUS did before the first map */
CM_STATE int cm_mapped_handled;                 /* whether the handler is installed */
CM_STATE __thread MappedGuard *cm_mapped_guard; /* this thread's, NULL outside of mapped_read */

/* ---------------------------------------------------------------------------------------------- */
/* the signal */

/* The map that has the address, or NULL. */
static inline const Mapped *mapped_find(const void *address) {
    const unsigned char *p = (const unsigned char *)address;
    for (const Mapped *m = cm_mapped_first; m; m = m->next)
        if (p >= m->bytes && (size_t)(p - m->bytes) < m->size) return m;
    return NULL;
}

/* Writes text to stderr; a signal handler may not use stdio. */
static inline void mapped_say(const char *text) {
    ssize_t unused = write(STDERR_FILENO, text, strlen(text));
    (void)unused;
}

static inline void mapped_signal(int number, siginfo_t *info, void *context) {
    const Mapped *m = info->si_code == BUS_ADRERR ? mapped_find(info->si_addr) : NULL;
    if (!m) { /* the access that failed is repeated, and ends as if there were no handler */
        sigaction(SIGBUS, &cm_mapped_before, NULL);
        if (info->si_code <= 0) raise(number); /* sent by a process, so nothing is repeated */
        return;
    }
    if (cm_mapped_guard) { /* what the signal blocked is unblocked, since the handler is left */
        pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
        cm_mapped_guard->failed = m;
        siglongjmp(cm_mapped_guard->jump, 1);
    }
    mapped_say("error: ");
    mapped_say(m->path);
    mapped_say(" became shorter while it was being read, or its disk cannot be read\n");
    _exit(1);
}

/* Installs the handler. */
static inline void mapped_handle(void) {
    struct sigaction action;
    if (cm_mapped_handled) return;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = mapped_signal;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    cm_mapped_handled = sigaction(SIGBUS, &action, &cm_mapped_before) == 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* reading */

/* Returns -1 with a message that the file cannot be read to its end. */
static inline int mapped_fail(const Mapped *m, char *err) {
    struct stat st;
    if (!fstat(m->fd, &st) && (uint64_t)st.st_size >= m->size)
        return fail(err, "%s: the file cannot be read: its disk or its server fails", m->path);
    return fail(err,
                "%s: the file became shorter while it was being read (it had %zu bytes); restore "
                "it, and replace a file in use by renaming, not by writing into it",
                m->path, m->size);
}

/* Returns 0 if the file has all the bytes that it had when it was mapped, or -1 with a message. */
static inline int mapped_whole(const Mapped *m, char *err) {
    struct stat st;
    if (!fstat(m->fd, &st) && (uint64_t)st.st_size >= m->size) return 0;
    return mapped_fail(m, err);
}

/* Calls work(argument), which reads maps. Returns 0, or -1 with a message if a file became shorter;
   then `work` was left in the middle, so it may not hold what somebody has to release. Calls do not
   nest. */
static inline int mapped_read(void (*work)(void *), void *argument, char *err) {
    MappedGuard guard;
    guard.failed = NULL;
    if (sigsetjmp(guard.jump, 0)) {
        cm_mapped_guard = NULL;
        return mapped_fail(guard.failed, err);
    }
    cm_mapped_guard = &guard;
    work(argument);
    cm_mapped_guard = NULL;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* opening */

/* Opens a regular file for reading. Returns its descriptor; -1 with errno; -2 for a pipe, a folder
   or a device, which is not opened, since that could wait for another process. Fills `st`. */
static inline int mapped_open_file(const char *path, struct stat *st) {
    if (stat(path, st)) return -1;
    if (!S_ISREG(st->st_mode)) return -2;
    int fd = file_open(path, O_RDONLY);
    if (fd < 0) return -1;
    if (!fstat(fd, st) && S_ISREG(st->st_mode)) return fd;
    close(fd);
    return -2;
}

/* Maps the first `size` > 0 bytes of an open file, and takes over its descriptor. Returns NULL with
   a message after a failure. */
static inline Mapped *mapped_make(int fd, const char *path, size_t size, char *err) {
    Mapped *m = (Mapped *)calloc(1, sizeof *m);
    char *copy = strdup(path);
    void *bytes = MAP_FAILED;
    errno = ENOMEM;
    if (m && copy) bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) {
        fail(err, "cannot map %s: %s", path, strerror(errno));
        free(m);
        free(copy);
        close(fd);
        return NULL;
    }
    m->path = copy;
    m->bytes = (const unsigned char *)bytes;
    m->size = size;
    m->fd = fd;
    m->next = cm_mapped_first;
    cm_mapped_first = m;
    mapped_handle();
    return m;
}

/* Unmaps; m may be NULL. */
static inline void mapped_close(Mapped *m) {
    Mapped **link = &cm_mapped_first;
    if (!m) return;
    while (*link != m) link = &(*link)->next;
    *link = m->next;
    munmap((void *)(uintptr_t)m->bytes, m->size);
    close(m->fd);
    free(m->path);
    free(m);
}

#endif
