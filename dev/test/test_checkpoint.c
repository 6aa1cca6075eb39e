/* Tests of checkpoints: contents, damage of every kind, full disks, kills, the folder of
   checkpoints. */
#include "folder.h"
#include "llmc/checkpoint.h"

#include <sys/resource.h>
#include <sys/wait.h>

static char err[ERR_LEN];

static void path_in_folder(char *path, const char *name) {
    file_path(path, "%s/%s", scratch_folder, name);
}

/* Saves a checkpoint whose contents are a function of `step`. `scale` multiplies the size of a
   tensor. */
static int save(const char *path, int64_t step, int64_t scale) {
    CkptWriter w;
    char header[256];
    int64_t shape[3] = {2, 3, 5 * scale}, scalar[1] = {0}, bytes = 7, count = 30 * scale;
    float *data = (float *)malloc((size_t)count * 4);
    const double pi = 3.25;
    for (int64_t i = 0; i < count; i++) data[i] = (float)(step + i);
    snprintf(header, sizeof header, "step=%lld\nnote=a=b c\n", (long long)step);
    ckpt_begin(&w, path, header, err);
    ckpt_tensor(&w, "weights", CKPT_F32, 3, shape, err);
    for (int64_t at = 0; at < count; at += 11) /* the pieces do not divide the tensor evenly */
        ckpt_write(&w, data + at, 4 * (count - at < 11 ? count - at : 11), err);
    ckpt_tensor(&w, "pi", CKPT_F64, 0, scalar, err);
    ckpt_write(&w, &pi, 8, err);
    ckpt_tensor(&w, "rng", CKPT_BYTES, 1, &bytes, err);
    ckpt_write(&w, "seven b", 7, err);
    ckpt_tensor(&w, "nothing", CKPT_BF16, 1, scalar, err);
    free(data);
    return ckpt_commit(&w, err);
}

static unsigned char *read_all(const char *path, size_t *size) {
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st)) return NULL;
    unsigned char *data = (unsigned char *)malloc((size_t)st.st_size + 1);
    *size = fread(data, 1, (size_t)st.st_size, f);
    fclose(f);
    return data;
}

static void write_all(const char *path, const unsigned char *data, size_t size) {
    FILE *f = fopen(path, "wb");
    if (fwrite(data, 1, size, f) != size || fclose(f)) abort();
}

/* Sets path to the newest checkpoint. Returns the status of ckpt_open_newest. */
static int newest(const char *dir, char *path) {
    Ckpt c;
    int status = ckpt_open_newest(&c, dir, path, err);
    if (!status) ckpt_close(&c);
    return status;
}

/* 1 if dir has no temporary files. */
static int tidy(const char *dir) {
    struct dirent *entry;
    int clean = 1;
    DIR *stream = opendir(dir);
    while (stream && (entry = readdir(stream)) != NULL) clean &= !strstr(entry->d_name, ".tmp");
    if (stream) closedir(stream);
    return clean;
}

static void test_contents(void) {
    char path[FILE_PATH_SIZE], value[64];
    int dtype = -1, ndim = -1;
    int64_t dims[CKPT_MAX_DIMS] = {0}, bytes = -1;
    Ckpt c;
    path_in_folder(path, "contents.ckpt");
    check(save(path, 120, 1) == 0, "save: %s", err);
    if (!check(ckpt_open(&c, path, err) == 0, "open: %s", err)) return;
    check(ckpt_value(&c, "step", value, sizeof value) == 0 && !strcmp(value, "120"), "step");
    check(ckpt_value(&c, "note", value, sizeof value) == 0 && !strcmp(value, "a=b c"), "note");
    check(ckpt_value(&c, "not", value, sizeof value) == -1, "a prefix is not the key");
    check(ckpt_value(&c, "note", value, 5) == -1, "a value that does not fit is an error");
    const float *w = (const float *)ckpt_find(&c, "weights", &dtype, &ndim, dims, &bytes);
    check(w && dtype == CKPT_F32 && ndim == 3 && dims[0] == 2 && dims[1] == 3 && dims[2] == 5 &&
              bytes == 120,
          "weights have their shape");
    int equal = w != NULL;
    for (int i = 0; i < 30 && w; i++) equal &= w[i] == (float)(120 + i);
    check(equal, "weights have their values");
    const double *pi = (const double *)ckpt_find(&c, "pi", &dtype, &ndim, NULL, &bytes);
    check(pi && *pi == 3.25 && ndim == 0 && bytes == 8 && (uintptr_t)pi % 8 == 0, "a scalar");
    const void *rng = ckpt_find(&c, "rng", NULL, NULL, NULL, &bytes);
    check(rng && bytes == 7 && !memcmp(rng, "seven b", 7), "bytes");
    check(c.version == CKPT_VERSION, "version %d", c.version);
    check(c.count == 4 && ckpt_record(&c, "nothing") && ckpt_record(&c, "nothing")->bytes == 0,
          "an empty tensor");
    check(!ckpt_find(&c, "weight", NULL, NULL, NULL, NULL), "an unknown tensor");
    ckpt_close(&c);

    char other[FILE_PATH_SIZE];
    size_t size, other_size;
    path_in_folder(other, "again.ckpt");
    check(save(other, 120, 1) == 0, "%s", err);
    unsigned char *a = read_all(path, &size), *b = read_all(other, &other_size);
    check(size == other_size && !memcmp(a, b, size), "equal contents give equal bytes");
    free(b);
    check(save(other, 121, 1) == 0, "%s", err);
    b = read_all(other, &other_size);
    check(size == other_size && memcmp(a, b, size), "other contents give other bytes");
    free(a);
    free(b);

    path_in_folder(path, "large.ckpt"); /* larger than several buffers */
    check(save(path, 1, 40000) == 0 && ckpt_open(&c, path, err) == 0, "large: %s", err);
    w = (const float *)ckpt_find(&c, "weights", NULL, NULL, NULL, &bytes);
    check(w && bytes == 4800000 && w[1199999] == 1200000.0f, "large values");
    ckpt_close(&c);
}

/* Every truncation and every flipped bit is an error whose message names the file. */
static void test_damage(void) {
    char path[FILE_PATH_SIZE], bad[FILE_PATH_SIZE];
    size_t size, missed = 0, unnamed = 0;
    Ckpt c;
    path_in_folder(path, "good.ckpt");
    path_in_folder(bad, "bad.ckpt");
    check(save(path, 120, 1) == 0, "%s", err);
    unsigned char *data = read_all(path, &size);
    unsigned char *copy = (unsigned char *)malloc(size + 64);
    for (size_t cut = 0; cut < size; cut++) {
        write_all(bad, data, cut);
        int status = ckpt_open(&c, bad, err);
        missed += status != -1;
        unnamed += !strstr(err, bad);
        if (!status) ckpt_close(&c);
    }
    check(!missed && !unnamed, "%zu truncations unseen, %zu unnamed", missed, unnamed);

    memcpy(copy, data, size);
    missed = unnamed = 0;
    for (size_t bit = 0; bit < 8 * size; bit++) {
        copy[bit / 8] ^= (unsigned char)(1 << bit % 8);
        write_all(bad, copy, size);
        int status = ckpt_open(&c, bad, err);
        missed += status != -1;
        unnamed += !strstr(err, bad);
        if (!status) ckpt_close(&c);
        copy[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    check(!missed && !unnamed, "%zu flipped bits unseen, %zu unnamed", missed, unnamed);

    memset(copy + size, 0, 64);
    write_all(bad, copy, size + 8);
    check(ckpt_open(&c, bad, err) == -1 && strstr(err, "length"), "bytes appended: %s", err);

    /* Swapped words keep the length, so only the checksum can show them. */
    memcpy(copy, data, size);
    memcpy(copy + 40, data + 48, 8);
    memcpy(copy + 48, data + 40, 8);
    write_all(bad, copy, size);
    check(ckpt_open(&c, bad, err) == -1 && strstr(err, "checksum"), "swapped words: %s", err);

    /* A faulty writer may leave absurd lengths under a right checksum. */
    missed = 0;
    for (size_t at = 24; at + 8 <= size - 16; at += 8) {
        const uint64_t absurd[] = {UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 62, size, size + 8};
        for (int i = 0; i < 5; i++) {
            memcpy(copy, data, size);
            memcpy(copy + at, &absurd[i], 8);
            uint64_t sum = checkpoint_hash(copy, size - 8);
            memcpy(copy + size - 8, &sum, 8);
            write_all(bad, copy, size);
            if (ckpt_open(&c, bad, err) == 0) {
                /* Some words are data and may change. All records must stay inside the file. */
                for (int r = 0; r < c.count; r++) {
                    const unsigned char *p = (const unsigned char *)c.records[r].data;
                    missed += p && (p < c.map || p + c.records[r].bytes > c.map + c.size);
                }
                ckpt_close(&c);
            }
        }
    }
    check(!missed, "%zu records outside the file", missed);

    write_all(bad, (const unsigned char *)"step,loss\n1,2\n", 14);
    check(ckpt_open(&c, bad, err) == -1 && strstr(err, "not a cm.c checkpoint"), "foreign: %s",
          err);
    memcpy(copy, data, size);
    copy[strlen(CKPT_MAGIC)] = '3';
    write_all(bad, copy, size);
    check(ckpt_open(&c, bad, err) == -1 && strstr(err, "newer"), "newer version: %s", err);

    /* Version 1 has the layout of version 2. */
    copy[strlen(CKPT_MAGIC)] = '1';
    uint64_t checksum = checkpoint_hash(copy, size - 8);
    memcpy(copy + size - 8, &checksum, 8);
    write_all(bad, copy, size);
    check(ckpt_open(&c, bad, err) == 0 && c.version == 1 && c.count == 4, "version 1: %s", err);
    ckpt_close(&c);
    check(ckpt_open(&c, scratch_folder, err) == -1 && strstr(err, "regular file"), "a folder: %s",
          err);
    path_in_folder(bad, "missing.ckpt");
    check(ckpt_open(&c, bad, err) == -1 && strstr(err, "No such file"), "missing: %s", err);
    free(copy);
    free(data);
}

static void test_misuse(void) {
    CkptWriter w;
    char path[FILE_PATH_SIZE];
    int64_t dims[1] = {4}, huge[2] = {(int64_t)1 << 62, 1};
    path_in_folder(path, "misuse.ckpt");
    check(ckpt_begin(&w, path, "no equal sign\n", err) == -1, "a header line without =");
    check(ckpt_begin(&w, path, "a=b", err) == -1, "a header without its line end");
    check(ckpt_begin(&w, path, "a=x\ny\n", err) == -1, "a line break in a value");

    ckpt_begin(&w, path, "", err);
    ckpt_tensor(&w, "x", CKPT_F32, 1, dims, err);
    ckpt_write(&w, "12345678", 8, err);
    check(ckpt_commit(&w, err) == -1 && strstr(err, "lacks 8 bytes"), "too little: %s", err);
    ckpt_begin(&w, path, "", err);
    ckpt_tensor(&w, "x", CKPT_F32, 1, dims, err);
    check(ckpt_write(&w, "12345678901234567", 17, err) == -1, "too much");
    check(ckpt_commit(&w, err) == -1 && strstr(err, "too many"), "the first error stays: %s", err);
    ckpt_begin(&w, path, "", err);
    check(ckpt_tensor(&w, "x", CKPT_F32, 2, huge, err) == -1, "a shape that overflows");
    ckpt_begin(&w, path, "", err);
    check(ckpt_tensor(&w, "x", 9, 1, dims, err) == -1, "an unknown dtype");
    ckpt_begin(&w, path, "", err);
    ckpt_abort(&w);
    ckpt_abort(&w);
    check(ckpt_commit(&w, err) == -1, "a commit after an abort");
    check(access(path, F_OK) == -1 && tidy(scratch_folder), "no file is left");
}

/* A limit on the size of files simulates a full disk. With it, write() can fail in the middle. */
static void test_full_disk(void) {
    char dir[FILE_PATH_SIZE], path[FILE_PATH_SIZE], found[FILE_PATH_SIZE];
    struct rlimit unlimited, limit;
    path_in_folder(dir, "full");
    check(file_make_folders(dir, err) == 0, "%s", err);
    ckpt_path(path, dir, 1);
    check(save(path, 1, 1) == 0, "%s", err);
    getrlimit(RLIMIT_FSIZE, &unlimited);
    void (*old)(int) = signal(SIGXFSZ, SIG_IGN);
    static const rlim_t limits[] = {0, 100, 1 << 20, 4700000, 4800000};
    for (int i = 0; i < 5; i++) {
        limit = unlimited;
        limit.rlim_cur = limits[i];
        setrlimit(RLIMIT_FSIZE, &limit);
        ckpt_path(path, dir, 2);
        int status = save(path, 2, 40000);
        setrlimit(RLIMIT_FSIZE, &unlimited);
        check(status == -1 && strstr(err, path) && strstr(err, "it needs ") &&
                  strstr(err, "Older checkpoints are kept"),
              "limit %ld: %s", (long)limits[i], err);
        check(access(path, F_OK) == -1 && tidy(dir), "limit %ld leaves no file", (long)limits[i]);
        ckpt_path(path, dir, 1);
        check(newest(dir, found) == 0 && !strcmp(found, path), "the older one stays");
    }
    signal(SIGXFSZ, old);

    /* A checkpoint that is larger than any disk is refused before a byte is written. */
    CkptWriter w;
    ckpt_path(path, dir, 3);
    ckpt_begin(&w, path, "", err);
    check(ckpt_reserve(&w, (uint64_t)1 << 60, err) == -1 && strstr(err, "no room") &&
              strstr(err, path) && strstr(err, "free"),
          "no room: %s", err);
    check(tidy(dir), "no file is left");

    check(ckpt_begin(&w, "/dev/full/x.ckpt", "", err) == -1, "not a folder");
    file_path(path, "%s/nowhere/step_00000001.ckpt", scratch_folder);
    check(save(path, 1, 1) == -1 && strstr(err, path) && strstr(err, "No such file"), "%s", err);

    /* The child process becomes an ordinary user, because the root user may write anywhere. */
    path_in_folder(dir, "locked");
    mkdir(dir, 0755);
    ckpt_path(path, dir, 1);
    check(save(path, 1, 1) == 0 && chmod(scratch_folder, 0755) == 0 && chmod(path, 0) == 0, "%s",
          err);
    chmod(dir, 0555);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (getuid() == 0 && (setgid(65534) || setuid(65534))) _exit(0);
        char denied[FILE_PATH_SIZE];
        int bad = 0;
        bad |= newest(dir, denied) != -1 || !strstr(err, "Permission denied");
        ckpt_path(denied, dir, 2);
        bad |= (save(denied, 2, 1) != -1 || !strstr(err, "Permission denied")) << 1;
        bad |= (ckpt_prune(dir, 1, err) != 0) << 2; /* nothing to delete */
        _exit(bad);
    }
    int status = 0;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "permission denied: %d", status);
    chmod(dir, 0755);
}

static void test_folder(void) {
    char dir[FILE_PATH_SIZE], path[FILE_PATH_SIZE], found[FILE_PATH_SIZE];
    int64_t *steps;
    path_in_folder(dir, "folder");
    check(newest(dir, found) == 1, "no folder: no checkpoint");
    mkdir(dir, 0755);
    check(newest(dir, found) == 1, "empty folder: no checkpoint");
    static const int64_t saved[] = {3, 100, 20, 123456789012, 7};
    for (int i = 0; i < 5; i++) {
        ckpt_path(path, dir, saved[i]);
        check(save(path, saved[i], 1) == 0, "%s", err);
    }
    file_path(path, "%s/step_00000120.ckpt", dir);
    ckpt_path(found, dir, 120);
    check(!strcmp(path, found), "the name of step 120 is %s", found);
    static const char *const others[] = {"step_5.ckpt", "step_00000200.ckpt.old", "notes.txt",
                                         "step_x.ckpt", "step_000000300.ckpt"};
    for (int i = 0; i < 5; i++) {
        file_path(path, "%s/%s", dir, others[i]);
        write_all(path, (const unsigned char *)"x", 1);
    }
    int n = ckpt_list(dir, &steps, err);
    check(n == 5 && steps[0] == 3 && steps[1] == 7 && steps[3] == 100 && steps[4] == 123456789012,
          "the list of %d is sorted and ours", n);
    free(steps);

    /* Pruning deletes temporary files of this process and of a process that has ended, and keeps
       those of a running process. */
    char dead[FILE_PATH_SIZE], own[FILE_PATH_SIZE], alive[FILE_PATH_SIZE];
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) _exit(0);
    waitpid(child, NULL, 0);
    file_path(dead, "%s/step_00000300.ckpt.tmp-%ld", dir, (long)child);
    file_path(own, "%s/step_00000300.ckpt.tmp-%ld", dir, (long)getpid());
    file_path(alive, "%s/step_00000300.ckpt.tmp-%ld", dir, (long)getppid());
    write_all(dead, (const unsigned char *)"x", 1);
    write_all(own, (const unsigned char *)"x", 1);
    write_all(alive, (const unsigned char *)"x", 1);
    check(ckpt_prune(dir, 3, err) == 0, "prune: %s", err);
    check(access(dead, F_OK) && access(own, F_OK), "leftovers are gone");
    if (getppid() > 0) check(!access(alive, F_OK), "a living process keeps its file");
    unlink(alive);
    n = ckpt_list(dir, &steps, err);
    check(n == 3 && steps[0] == 20 && steps[1] == 100, "the newest three remain");
    free(steps);
    steps = NULL;
    file_path(path, "%s/notes.txt", dir);
    check(!access(path, F_OK), "files of others remain");
    check(ckpt_prune(dir, 0, err) == 0 && (n = ckpt_list(dir, &steps, err)) == 3,
          "keep 0 keeps all");
    free(steps);
    check(ckpt_discard_after(dir, 100, err) == 0 && newest(dir, found) == 0, "%s", err);
    ckpt_path(path, dir, 100);
    check(!strcmp(found, path), "step 100 is the newest now");

    /* A damaged newest checkpoint is named on stderr, and the one before it is used. */
    if (truncate(path, 100)) abort();
    char warning[FILE_PATH_SIZE];
    path_in_folder(warning, "warning.txt");
    fflush(stderr);
    int saved_stderr = dup(2), fd = open(warning, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(fd, 2);
    int status = newest(dir, found);
    fflush(stderr);
    dup2(saved_stderr, 2);
    close(fd);
    char older[FILE_PATH_SIZE];
    ckpt_path(older, dir, 20);
    size_t size = 0;
    unsigned char *text = read_all(warning, &size);
    text[size] = 0;
    check(status == 0 && !strcmp(found, older), "step 20 is used instead: %s", err);
    check(strstr((char *)text, path) && strstr((char *)text, "truncated"), "warning: %s", text);
    free(text);
    if (truncate(older, 0)) abort();
    fd = open("/dev/null", O_WRONLY);
    dup2(fd, 2);
    status = newest(dir, found);
    dup2(saved_stderr, 2);
    close(fd);
    close(saved_stderr);
    check(status == -1 && strstr(err, "every checkpoint"), "all damaged: %s", err);
}

static char victim[FILE_PATH_SIZE];

/* Reads a checkpoint that became shorter after it was opened. */
static void read_cut(void) {
    Ckpt c;
    if (ckpt_open(&c, victim, err)) _exit(8);
    const float *w = (const float *)ckpt_find(&c, "weights", NULL, NULL, NULL, NULL);
    if (truncate(victim, 4096)) _exit(7);
    fprintf(stderr, "%g", (double)*(volatile const float *)&w[1000000]);
}

/* A checkpoint that becomes shorter while it is checked is damaged; later the program names it. */
static void test_cut(void) {
    Ckpt c, other;
    CkptProblem problem = CKPT_UNREADABLE;
    char path[FILE_PATH_SIZE];
    path_in_folder(victim, "victim.ckpt");
    path_in_folder(path, "other.ckpt");
    check(!save(victim, 1, 40000) && !save(path, 2, 1), "%s", err);
    check(!ckpt_map(&c, victim, &problem, err) && !truncate(victim, 4096 * 3), "%s", err);
    check(ckpt_verify(&c, victim, &problem, err) == -1 && problem == CKPT_DAMAGED &&
              strstr(err, "victim.ckpt") && strstr(err, "became shorter") && !c.map,
          "cut while it is checked: %s", err);
    check(!ckpt_open(&other, path, err), "another checkpoint: %s", err);
    ckpt_close(&other);
    check(!save(victim, 1, 40000), "%s", err);
    int status = status_of_child(read_cut, "err.txt");
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1 &&
              file_has("err.txt", "victim.ckpt became shorter"),
          "cut after it was checked: status %x", status);
    check(!save(victim, 1, 40000) && !ckpt_open(&c, victim, err) && !mapped_whole(c.file, err) &&
              !truncate(victim, 4095) && mapped_whole(c.file, err) == -1,
          "%s", err);
    ckpt_close(&c);
}

/* The newest checkpoint can be opened while a run writes new ones and deletes old ones: the file
   that is listed as the newest may be gone when it is opened. */
static void test_pruned(void) {
    char dir[FILE_PATH_SIZE], path[FILE_PATH_SIZE], whole[FILE_PATH_SIZE], before[FILE_PATH_SIZE];
    path_in_folder(dir, "pruned");
    path_in_folder(whole, "whole.ckpt");
    mkdir(dir, 0755);
    ckpt_path(path, dir, 1);
    check(!save(whole, 1, 1) && !link(whole, path), "%s", err);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        for (int64_t step = 2;; step++) {
            ckpt_path(before, dir, step - 1);
            ckpt_path(path, dir, step);
            if (link(whole, path) || unlink(before)) _exit(1);
            usleep(100);
        }
    }
    int failed = 0;
    for (int i = 0; i < 5000 && !failed; i++) failed = newest(dir, path) != 0;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    check(!failed, "%s", err);
    /* A link to nothing stays, so the search ends. */
    ckpt_path(path, dir, 900000000);
    check(!symlink("nowhere", path) && newest(dir, path) == -1 && strstr(err, "No such file"),
          "a dangling link: %s", err);
}

/* Numbers of a header: digits only, and within their range. */
static void test_numbers(void) {
    static const struct {
        const char *text;
        uint64_t least, most;
        int good;
    } cases[] = {
        {"0", 0, UINT64_MAX, 1},
        {"18446744073709551615", 0, UINT64_MAX, 1},
        {"18446744073709551616", 0, UINT64_MAX, 0},
        {"99999999999999999999", 0, UINT64_MAX, 0},
        {"2147483647", 0, INT32_MAX, 1},
        {"2147483648", 0, INT32_MAX, 0},
        {"-1", 0, UINT64_MAX, 0},
        {"+1", 0, UINT64_MAX, 0},
        {" 1", 0, UINT64_MAX, 0},
        {"1 ", 0, UINT64_MAX, 0},
        {"0x10", 0, UINT64_MAX, 0},
        {"1e3", 0, UINT64_MAX, 0},
        {"", 0, UINT64_MAX, 0},
        {"0", 1, 10, 0},
        {"1", 1, 10, 1},
        {"10", 1, 10, 1},
        {"11", 1, 10, 0},
        {"5", 0, 3, 0},
        {"0000000000000000000000000000000000000007", 1, 10, 1},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char path[FILE_PATH_SIZE], header[128];
        CkptWriter w;
        Ckpt c;
        uint64_t value = 12345;
        path_in_folder(path, "number.ckpt");
        snprintf(header, sizeof header, "n=%s\n", cases[i].text);
        if (ckpt_begin(&w, path, header, err) || ckpt_commit(&w, err) || ckpt_open(&c, path, err)) {
            check(0, "%s", err);
            continue;
        }
        int status = ckpt_number_in(&c, "n", cases[i].least, cases[i].most, &value, err);
        check((status == 0) == cases[i].good, "\"%s\": status %d, %llu", cases[i].text, status,
              (unsigned long long)value);
        check(status || value == strtoull(cases[i].text, NULL, 10), "\"%s\" became %llu",
              cases[i].text, (unsigned long long)value);
        check(!status || strstr(err, "n="), "the message does not name the key: %s", err);
        check(ckpt_number_in(&c, "m", 0, 9, &value, err) == -1 && strstr(err, "lacks m"), "%s",
              err);
        ckpt_close(&c);
    }
}

/* A child process saves in a loop and is killed at a random moment. All checkpoints must be
   whole. */
static void test_kill(void) {
    char dir[FILE_PATH_SIZE], path[FILE_PATH_SIZE];
    int64_t last = 0;
    int valid = 1, clean = 1;
    uint64_t random = 12345;
    path_in_folder(dir, "kill");
    mkdir(dir, 0755);
    ckpt_path(path, dir, 0);
    check(save(path, 0, 3000) == 0, "%s", err);
    fflush(stdout);
    for (int round = 0; round < 25 && valid; round++) {
        pid_t child = fork();
        if (child == 0) {
            for (int64_t step = last + 1;; step++) {
                ckpt_path(path, dir, step);
                if (save(path, step, 3000) || ckpt_prune(dir, 2, err)) _exit(1);
            }
        }
        random = random * 6364136223846793005u + 1442695040888963407u;
        usleep((useconds_t)(random >> 32) % 20000);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        Ckpt c;
        char value[32];
        valid &= ckpt_open_newest(&c, dir, path, err) == 0;
        valid &= ckpt_value(&c, "step", value, sizeof value) == 0 && atoll(value) >= last;
        last = atoll(value);
        const float *w = (const float *)ckpt_find(&c, "weights", NULL, NULL, NULL, NULL);
        valid &= w && w[89999] == (float)(last + 89999);
        int64_t *steps;
        int n = ckpt_list(dir, &steps, err);
        for (int i = 0; i < n; i++) { /* all of them, not only the newest */
            Ckpt each;
            ckpt_path(path, dir, steps[i]);
            int status = ckpt_open(&each, path, err);
            valid &= status == 0;
            if (!status) ckpt_close(&each);
        }
        free(steps);
        ckpt_close(&c);
        ckpt_prune(dir, 2, err);
        clean &= tidy(dir);
    }
    check(valid, "after kill -9: %s", err);
    check(clean, "leftovers are pruned");
    check(last > 0, "the child saved something");
}

/* The checksum does not depend on how the bytes are divided. The test prints its speed. */
static void test_hash(void) {
    unsigned char data[1000];
    for (int i = 0; i < 1000; i++) data[i] = (unsigned char)(i * 7);
    int equal = 1, distinct = 1;
    for (size_t cut = 0; cut <= 992; cut += 32) {
        CkptHash h;
        ckpt_hash_init(&h);
        ckpt_hash_update(&h, data, cut);
        ckpt_hash_update(&h, data + cut, 1000 - cut);
        equal &= ckpt_hash_final(&h) == checkpoint_hash(data, 1000);
    }
    check(equal, "pieces give the checksum of the whole");
    memset(data, 0, sizeof data);
    for (size_t n = 1; n <= 1000; n++)
        distinct &= checkpoint_hash(data, n) != checkpoint_hash(data, n - 1);
    check(distinct, "zeros of other lengths have other checksums");
    size_t size = (size_t)32 << 20;
    void *large = calloc(size, 1);
    memset(large, 1, size);
    double best = 1e9;
    uint64_t sum = 0;
    for (int i = 0; i < 5; i++) {
        double start = now_seconds();
        sum ^= checkpoint_hash(large, size) + (uint64_t)i;
        best = fmin(best, now_seconds() - start);
    }
    printf("checksum: %.1f GB/s (%llx)\n", (double)size / best * 1e-9, (unsigned long long)sum);
    free(large);
}

static const Test tests[] = {TEST(contents), SLOW_TEST(damage), TEST(misuse), TEST(full_disk),
                             TEST(folder),   TEST(kill),        TEST(hash),   TEST(cut),
                             TEST(pruned),   TEST(numbers)};

int main(int argc, char **argv) {
    folder_make("cm_test_checkpoint");
    check_run(tests, COUNT_OF(tests), argc, argv);
    folder_remove();
    return check_done();
}
