/*
Files that survive a kill and a full disk: complete writes, atomic replacement, folders.

Functions return 0, or -1: with a sentence in err, or with errno set if they take no err.
*/
#ifndef CM_FILES_H
#define CM_FILES_H

#include "base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define FILE_PATH_SIZE 4096

/* Builds a path in a buffer of FILE_PATH_SIZE bytes. A path that does not fit becomes "", which
   names no file; a path cut short might name another file. */
__attribute__((format(printf, 2, 3))) static inline void file_path(char *path, const char *format,
                                                                   ...) {
    va_list args;
    va_start(args, format);
    if (vsnprintf(path, FILE_PATH_SIZE, format, args) >= FILE_PATH_SIZE) path[0] = 0;
    va_end(args);
}

/* Writes all bytes, since write() may take only some of them; -1 with errno set. */
static inline int file_write_all(int fd, const void *data, size_t bytes) {
    const char *p = (const char *)data;
    while (bytes) {
        ssize_t wrote = write(fd, p, bytes);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote == 0) errno = ENOSPC;
        if (wrote <= 0) return -1;
        p += wrote;
        bytes -= (size_t)wrote;
    }
    return 0;
}

/* Reads n bytes from byte `at` on, fewer only where the file ends. Returns how many, or -1 with
   errno. */
static inline ssize_t file_read_at(int fd, void *to, size_t n, uint64_t at) {
    size_t done = 0;
    while (done < n) {
        ssize_t got = pread(fd, (char *)to + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        if (got == 0) break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

/* Writes a word as sh reads it back: as it is, or in single quotes if it holds a character that
   means something to the shell. Returns text, which is "" if its `size` > 0 bytes are too few. */
static inline char *shell_text(char *text, size_t size, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_@%+=:,./-";
    const char *quote = *word && !word[strspn(word, plain)] ? "" : "'";
    size_t used = (size_t)snprintf(text, size, "%s", quote);
    for (; *word && used < size; word++) {
        const char one[2] = {*word, 0};
        used += (size_t)snprintf(text + used, size - used, "%s", *word == '\'' ? "'\\''" : one);
    }
    if (used < size) used += (size_t)snprintf(text + used, size - used, "%s", quote);
    if (used >= size) text[0] = 0;
    return text;
}

/* open and fsync again where a signal has interrupted them. A new file may be read and written by
   all that the process's mask allows. */
static inline int file_open(const char *path, int flags) {
    int fd;
    do fd = open(path, flags | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    return fd;
}
static inline int file_sync(int fd) {
    int status;
    do status = fsync(fd);
    while (status && errno == EINTR);
    return status;
}

/* The folder of a path: "a/b" gives "a", "b" gives ".", "/b" gives "/". */
static inline void file_folder(char *folder, const char *path) {
    file_path(folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash) strcpy(folder, ".");
    else slash[slash == folder] = 0;
}

/* Syncs a folder to the disk; without that a power cut may undo a rename. Some file systems cannot
   sync a folder and return EINVAL, which is no error here. */
static inline int file_sync_folder(const char *folder) {
    int fd = file_open(folder, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return errno == EACCES ? 0 : -1;
    int status = file_sync(fd);
    if (status && (errno == EINVAL || errno == ENOTSUP)) status = 0;
    int saved = errno;
    close(fd);
    errno = saved;
    return status;
}

/* Creates a folder and those above it, as mkdir -p. A folder is on the disk when the one that holds
   it is synced. One that was there before may be the work of a process that was killed before its
   sync; where such a folder cannot be synced, as on some read-only file systems, that is no error.
   */
static inline int file_make_folders(const char *path, char *err) {
    char part[FILE_PATH_SIZE], above[FILE_PATH_SIZE];
    struct stat st;
    if (strlen(path) >= sizeof part) return fail(err, "the path %.80s... is too long", path);
    strcpy(part, path);
    for (size_t i = 1; part[i - 1]; i++) {
        if (part[i] && part[i] != '/') continue;
        char slash = part[i];
        part[i] = 0;
        int status = mkdir(part, 0777);
        if (status && errno != EEXIST)
            return fail(err, "cannot create the folder %s: %s", part, strerror(errno));
        file_folder(above, part);
        if (file_sync_folder(above) && !status)
            return fail(err, "cannot sync the folder %s: %s", above, strerror(errno));
        part[i] = slash;
        if (!slash) break;
    }
    if (stat(path, &st)) return fail(err, "cannot open the folder %s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return fail(err, "%s exists but is not a folder: move it away", path);
    return 0;
}

/* glob(), which takes brackets and backslashes literally if nothing matches otherwise: shards that
   were written to "mine[1]" match "mine[1]_train_*.bin". */
static inline int file_glob(const char *pattern, glob_t *g) {
    char plain[FILE_PATH_SIZE];
    size_t n = 0;
    int rc = glob(pattern, 0, NULL, g);
    if (rc != GLOB_NOMATCH || !strpbrk(pattern, "[\\")) return rc;
    for (const char *p = pattern; *p; p++) {
        if (n + 3 > sizeof plain) return rc;
        if (*p == '[' || *p == '\\') plain[n++] = '\\';
        plain[n++] = *p;
    }
    plain[n] = 0;
    globfree(g);
    return glob(plain, 0, NULL, g);
}

/* Refuses a pipe, a device or a folder, whose opening or reading may wait for ever. A file that
   does not exist is none of these. */
static inline int file_check_regular(const char *path, char *err) {
    struct stat st;
    if (stat(path, &st) || S_ISREG(st.st_mode)) return 0;
    return fail(err, "%s is not a regular file: move it away", path);
}

/* Reads a whole file of up to `most` bytes, for the caller to free, with a zero byte behind it.
   Returns 0, 1 if there is no such file, or -1 with a message. */
static inline int file_read(const char *path, size_t most, char **text, size_t *size, char *err) {
    size_t capacity = 4096, used = 0, n = 1;
    char *buffer = NULL;
    if (file_check_regular(path, err)) return -1;
    FILE *f = fopen(path, "rbe");
    if (!f && errno == ENOENT) return 1;
    if (!f) return fail(err, "cannot open %s: %s", path, strerror(errno));
    while (n && used <= most) {
        char *grown = (char *)realloc(buffer, capacity + 1);
        if (!grown) break;
        buffer = grown;
        n = fread(buffer + used, 1, capacity - used, f);
        used += n;
        if (used == capacity) capacity *= 2;
    }
    int status = 0;
    if (ferror(f)) status = fail(err, "cannot read %s: %s", path, strerror(errno));
    else if (used > most) status = fail(err, "%s is too large: more than %zu bytes", path, most);
    else if (!feof(f)) status = fail(err, "out of memory while reading %s", path);
    fclose(f);
    if (status) {
        free(buffer);
        return -1;
    }
    buffer[used] = 0;
    *text = buffer;
    *size = used;
    return 0;
}

/* Free bytes for an ordinary user on the file system of an open file; INT64_MAX if the file system
   does not report them. */
static inline int64_t file_free_bytes(int fd) {
    struct statvfs vfs;
    if (fstatvfs(fd, &vfs) || !vfs.f_blocks) return INT64_MAX;
    uint64_t unit = vfs.f_frsize ? vfs.f_frsize : vfs.f_bsize;
    if (vfs.f_bavail > (uint64_t)INT64_MAX / (unit ? unit : 1)) return INT64_MAX;
    return (int64_t)(vfs.f_bavail * unit);
}

/* Deletes the files PREFIX*.tmp-PID in a folder that killed processes have left. A process that is
   alive may still be writing its file. */
static inline void file_remove_leftovers(const char *folder, const char *prefix) {
    char path[FILE_PATH_SIZE];
    struct dirent *entry;
    DIR *d = opendir(folder);
    if (!d) return;
    while ((entry = readdir(d)) != NULL) {
        const char *mark = strstr(entry->d_name, ".tmp-");
        uint64_t pid;
        if (strncmp(entry->d_name, prefix, strlen(prefix)) || !mark ||
            parse_whole(mark + strlen(".tmp-"), INT32_MAX, &pid) || !pid)
            continue;
        if ((pid_t)pid != getpid() && (kill((pid_t)pid, 0) == 0 || errno != ESRCH)) continue;
        file_path(path, "%s/%s", folder, entry->d_name);
        unlink(path);
    }
    closedir(d);
}

/* The temporary name under which this process writes a file. Deletes what killed processes have
   left of the same file. */
static inline void file_temporary(char *temporary, const char *path) {
    char folder[FILE_PATH_SIZE], prefix[FILE_PATH_SIZE];
    const char *slash = strrchr(path, '/');
    file_folder(folder, path);
    file_path(prefix, "%s.tmp-", slash ? slash + 1 : path);
    file_remove_leftovers(folder, prefix);
    file_path(temporary, "%s.tmp-%ld", path, (long)getpid());
}

/* Replaces a file: a reader sees the old contents or the new ones, never a part of them. */
static inline int file_replace(const char *path, const void *data, size_t bytes, char *err) {
    char temporary[FILE_PATH_SIZE], folder[FILE_PATH_SIZE];
    file_temporary(temporary, path);
    int fd = file_open(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    if (fd < 0) return fail(err, "cannot create %s: %s", temporary, strerror(errno));
    int status = file_write_all(fd, data, bytes);
    if (!status) status = file_sync(fd);
    int saved = errno;
    if (close(fd) && !status) {
        status = -1;
        saved = errno;
    }
    if (!status && rename(temporary, path)) {
        status = -1;
        saved = errno;
    }
    if (status) {
        unlink(temporary);
        return fail(err, "cannot write %s (%zu bytes): %s", path, bytes, strerror(saved));
    }
    file_folder(folder, path);
    if (file_sync_folder(folder))
        return fail(err, "cannot sync the folder %s: %s", folder, strerror(errno));
    return 0;
}

#endif
