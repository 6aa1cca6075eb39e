/*
What the fuzz targets share. A target is one file, fuzz_NAME.c, that includes this header last and
defines

    static void fuzz_begin(void)            called once, after the scratch folder was made
    static void fuzz_one(Input in)          one input; a violated property ends the process

Built with -DFUZZ_ENGINE and clang's -fsanitize=fuzzer, libFuzzer makes the inputs (`make fuzz`).
Without that the program has a main that runs every file of its corpus once (`make fuzz-check`):

    build/asan/test_fuzz_NAME [FILE OR FOLDER...]

Both run without OpenMP, so that a run is one thread and takes microseconds. The corpora are in
dev/fuzz/corpus; dev/fuzz/seeds.sh makes their first files.
*/
#ifndef CM_FUZZ_H
#define CM_FUZZ_H

#include "../test/folder.h"

/* ---------------------------------------------------------------------------------------------- */
/* properties */

/* What the process says about itself goes here. stdout is that of the program under test and leads
   to /dev/null; libFuzzer may close stderr. */
static FILE *fuzz_report;

/* Ends the process with a message if a property does not hold. */
#define require(condition, ...)                                                                    \
    do {                                                                                           \
        if (!(condition)) fuzz_violated(__FILE__, __LINE__, __VA_ARGS__);                          \
    } while (0)
__attribute__((format(printf, 3, 4), noreturn, unused)) static void
fuzz_violated(const char *file, int line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(fuzz_report, "FAIL %s:%d: ", file, line);
    vfprintf(fuzz_report, format, args);
    fprintf(fuzz_report, "\n");
    va_end(args);
    fflush(fuzz_report);
    abort();
}

/* ---------------------------------------------------------------------------------------------- */
/* inputs */

/* The bytes of an input that were not taken yet. */
typedef struct {
    const unsigned char *p;
    size_t n;
} Input;

/* Takes a little-endian number of 1 to 8 bytes; bytes past the end are zero. */
__attribute__((unused)) static uint64_t input_number(Input *in, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && in->n; i++, in->p++, in->n--)
        value |= (uint64_t)in->p[0] << (8 * i);
    return value;
}

/* Takes the bytes before the next line "%%", and that line; without one, all bytes. An input of
   several files has such lines between them. */
__attribute__((unused)) static Input input_part(Input *in) {
    Input part = *in;
    for (size_t i = 0; i + 3 <= in->n; i++) {
        if (memcmp(in->p + i, "%%\n", 3) || (i && in->p[i - 1] != '\n')) continue;
        part.n = i;
        in->p += i + 3;
        in->n -= i + 3;
        return part;
    }
    in->p += in->n;
    in->n = 0;
    return part;
}

/* A copy with a zero byte behind it, for the caller to free. Its size is exact, so that the
   address sanitizer sees a read past its end. */
__attribute__((unused)) static char *input_copy(Input part) {
    char *copy = (char *)malloc(part.n + 1);
    if (!copy) abort();
    if (part.n) memcpy(copy, part.p, part.n);
    copy[part.n] = 0;
    return copy;
}

/* Takes a line without its end, as text for the caller to free; NULL at the end. */
__attribute__((unused)) static char *input_line(Input *in) {
    if (!in->n) return NULL;
    const void *end = memchr(in->p, '\n', in->n);
    Input line = {in->p, end ? (size_t)((const unsigned char *)end - in->p) : in->n};
    size_t taken = line.n + (end != NULL);
    in->p += taken;
    in->n -= taken;
    return input_copy(line);
}

/* ---------------------------------------------------------------------------------------------- */
/* the process */

static void fuzz_begin(void);
static void fuzz_one(Input in);

static int fuzz_home, fuzz_scratch; /* folders */

/* One input, in the scratch folder: there a target names its folders by relative paths, because a
   new folder is synced into each of those above it, and only the scratch folder is in memory. */
static void fuzz_in_scratch(Input in) {
    require(fchdir(fuzz_scratch) == 0, "fchdir");
    fuzz_one(in);
    require(fchdir(fuzz_home) == 0, "fchdir");
}

/* Makes the scratch folder, in memory if possible, and begins the target. */
static void fuzz_start(void) {
    fuzz_report = fdopen(dup(STDERR_FILENO), "w");
    if (!fuzz_report || !freopen("/dev/null", "w", stdout)) abort();
    folder_make_in(access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", "cm_fuzz");
    atexit(folder_remove);
    fuzz_home = open(".", O_RDONLY | O_DIRECTORY);
    fuzz_scratch = open(scratch_folder, O_RDONLY | O_DIRECTORY);
    require(fuzz_home >= 0 && fuzz_scratch >= 0, "no folder");
    fuzz_begin();
}

#ifdef FUZZ_ENGINE

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    fuzz_start();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    Input in = {bytes, n};
    fuzz_in_scratch(in);
    return 0;
}

#else

/* Runs the target on a file; its name is printed first, for the case that the process ends. */
static void fuzz_replay_file(const char *path) {
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st)) fuzz_violated(path, 0, "cannot be read");
    Input in = {NULL, (size_t)st.st_size};
    unsigned char *bytes = (unsigned char *)malloc(in.n + 1);
    if (!bytes || fread(bytes, 1, in.n, f) != in.n) fuzz_violated(path, 0, "cannot be read");
    fclose(f);
    fprintf(fuzz_report, "%s\n", path);
    fflush(fuzz_report);
    in.p = bytes;
    fuzz_in_scratch(in);
    free(bytes);
    check_passed++;
}

/* Runs the target on a file, or on every file of a folder. */
static void fuzz_replay(const char *path) {
    char file[FILE_PATH_SIZE];
    struct dirent *entry;
    DIR *folder = opendir(path);
    if (!folder) {
        fuzz_replay_file(path);
        return;
    }
    while ((entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        file_path(file, "%s/%s", path, entry->d_name);
        fuzz_replay_file(file);
    }
    closedir(folder);
}

int main(int argc, char **argv) {
    FILE *summary = fdopen(dup(STDOUT_FILENO), "w");
    fuzz_start();
    if (argc < 2) fuzz_replay("dev/fuzz/corpus/" FUZZ_TARGET);
    for (int i = 1; i < argc; i++) fuzz_replay(argv[i]);
    fprintf(summary, "%d passed, 0 failed\n", check_passed);
    fclose(summary);
    return !check_passed;
}

#endif

#endif
