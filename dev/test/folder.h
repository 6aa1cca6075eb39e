/*
A temporary folder for the files of a test program. main calls folder_make first and folder_remove
last.
*/
#ifndef CM_TEST_FOLDER_H
#define CM_TEST_FOLDER_H

#include <sys/wait.h>

#include "../../llmc/files.h"
#include "check.h"

static char scratch_folder[64];

/* Makes PARENT/NAME.XXXXXX, or ends the program. */
static inline void folder_make_in(const char *parent, const char *name) {
    snprintf(scratch_folder, sizeof scratch_folder, "%s/%s.XXXXXX", parent, name);
    if (mkdtemp(scratch_folder)) return;
    perror(scratch_folder);
    exit(1);
}

static inline void folder_make(const char *name) { folder_make_in("/tmp", name); }

/* The path of a file in the folder. Eight paths are valid at a time. */
__attribute__((unused)) static const char *in_folder(const char *name) {
    static char paths[8][FILE_PATH_SIZE];
    static int turn;
    char *path = paths[turn++ % 8];
    file_path(path, "%s/%s", scratch_folder, name);
    return path;
}

__attribute__((unused)) static void write_bytes(const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(in_folder(name), "wb");
    if (f && fwrite(bytes, 1, n, f) == n && !fclose(f)) return;
    perror(name);
    exit(1);
}

/* Calls work() in a child process, whose stderr goes to the file `output` of the folder. Returns
   the status of waitpid. */
__attribute__((unused)) static int status_of_child(void (*work)(void), const char *output) {
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen(in_folder(output), "w", stderr)) _exit(9);
        work();
        fflush(stderr);
        _exit(0);
    }
    waitpid(child, &status, 0);
    return status;
}

/* Whether a file of the folder has a text, which is at most 4000 bytes from its beginning. */
__attribute__((unused)) static int file_has(const char *name, const char *text) {
    char have[4096] = "";
    FILE *f = fopen(in_folder(name), "rb");
    size_t n = f ? fread(have, 1, sizeof have - 1, f) : 0;
    if (f) fclose(f);
    return n > 0 && strstr(have, text) != NULL;
}

static inline void remove_tree(const char *dir) {
    char path[FILE_PATH_SIZE];
    struct dirent *entry;
    DIR *stream = opendir(dir);
    while (stream && (entry = readdir(stream)) != NULL) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        file_path(path, "%s/%s", dir, entry->d_name);
        if (entry->d_type == DT_DIR) remove_tree(path);
        else unlink(path);
    }
    if (stream) closedir(stream);
    rmdir(dir);
}

static inline void folder_remove(void) { remove_tree(scratch_folder); }

#endif
