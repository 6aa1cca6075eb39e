/*
A temporary folder for the files of a test program. main calls folder_make first and folder_remove
last.
*/
#ifndef CM_TEST_FOLDER_H
#define CM_TEST_FOLDER_H

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
