/*
Tests of llmc/cuda/library.h, which finds libraries in all common places. The test compiles a tiny
library and copies it into folders that are laid out like toolkits, wheels and environments, below a
temporary folder.
*/
#include "../../llmc/cuda/library.h"

#include <sys/stat.h>

#include "check.h"

#define NAME "libcm_test_library.so.9"

static char root[256], tools[4096]; /* PATH at start */
static const char *const names[] = {NAME, NULL}, *const variables[] = {"CM_TEST_LIBRARY_PATH",
                                                                       NULL};
static const char *const wheels[] = {"cm_test/lib", "cu13/lib", NULL};

__attribute__((format(printf, 1, 2))) static void shell(const char *format, ...) {
    char command[8192];
    int n = snprintf(command, sizeof command, "PATH='%s'; ", tools);
    va_list args;
    va_start(args, format);
    vsnprintf(command + n, sizeof command - (size_t)n, format, args);
    va_end(args);
    if (system(command)) {
        printf("FAIL: %s\n", command);
        exit(1);
    }
}

/* Copies the library to root/folder. */
static void put_library(const char *folder) {
    shell("mkdir -p '%s/%s' && cp '%s/built.so' '%s/%s/" NAME "'", root, folder, root, root,
          folder);
}

/* Clears the environment variables that the search reads, and sets PATH to folders without
   python3. */
static void clear(void) {
    static const char *const set[] = {"VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME",
                                      "CUDA_PATH",   "PYENV_ROOT",   "CM_TEST_LIBRARY_PATH"};
    for (size_t i = 0; i < sizeof set / sizeof set[0]; i++) unsetenv(set[i]);
    char text[300];
    snprintf(text, sizeof text, "%s/nothing", root);
    setenv("PATH", text, 1);
    setenv("HOME", text, 1);
}
static void set(const char *name, const char *below) {
    char text[512];
    snprintf(text, sizeof text, "%s/%s", root, below);
    setenv(name, text, 1);
}

/* Searches, compares the path with root/folder/NAME (NULL: nothing may be found), and unloads
   the library. */
static void expect_at(const char *folder, const char *beside, int first, const char *what) {
    char path[PATH_MAX] = "?", why[512] = "?", wanted[1024];
    LibrarySearch s = {names, variables, wheels, beside, first, 0};
    void *library = library_open(&s, path, sizeof path, why, sizeof why);
    if (!folder) {
        check(!library && !path[0] && strstr(why, NAME), "%s: found %s (%s)", what, path, why);
        if (library) dlclose(library);
        return;
    }
    snprintf(wanted, sizeof wanted, "%s/%s/" NAME, root, folder);
    char a[PATH_MAX] = "", b[PATH_MAX] = "";
    int expected = realpath(path, a) && realpath(wanted, b) && !strcmp(a, b);
    check(library && expected && !why[0], "%s: \"%s\" instead of %s (%s)", what, path, wanted, why);
    if (!library) return;
    int (*answer)(void) = NULL;
    void *symbol = dlsym(library, "cm_test_answer");
    memcpy(&answer, &symbol, sizeof answer);
    check(answer && answer() == 42, "%s: another library", what);
    library_path_of(symbol, a, sizeof a);
    check(!strcmp(a, path), "%s: the symbol is in %s, the library in %s", what, a, path);
    library_loaded("libcm_test_lib", a, sizeof a);
    check(!strcmp(a, path), "%s: loaded is %s", what, a);
    dlclose(library);
}

static void expect(const char *folder, const char *beside, const char *what) {
    expect_at(folder, beside, 0, what);
}

/* Adds the library to one place after the other, from the last in the search order to the first.
   The added library must win over all others. */
static void test_places(void) {
    char beside[512];
    clear();
    expect(NULL, NULL, "nowhere");

    set("HOME", "home");
    put_library("home/.pyenv/versions/3.11.4/lib/python3.11/site-packages/nvidia/cu13/lib");
    expect("home/.pyenv/versions/3.11.4/lib/python3.11/site-packages/nvidia/cu13/lib", NULL,
           "pyenv");
    set("PYENV_ROOT", "pyenv");
    put_library("pyenv/versions/3.12.1/lib/python3.12/site-packages/nvidia/cu13/lib");
    expect("pyenv/versions/3.12.1/lib/python3.12/site-packages/nvidia/cu13/lib", NULL,
           "PYENV_ROOT");
    put_library("home/.local/lib/python3.12/site-packages/nvidia/cm_test/lib");
    expect("home/.local/lib/python3.12/site-packages/nvidia/cm_test/lib", NULL, "the user's own");

    /* real/bin/python3 has packages. venv/bin/python3 is a link to it, and gets packages later. */
    put_library("real/lib/python3.12/dist-packages/nvidia/cm_test/lib");
    shell("mkdir -p '%s/real/bin' '%s/venv/bin' && printf '#!/bin/sh\\n' >'%s/real/bin/python3' && "
          "chmod +x '%s/real/bin/python3' && ln -s '%s/real/bin/python3' '%s/venv/bin/python3'",
          root, root, root, root, root, root);
    char path[1024];
    snprintf(path, sizeof path, "relative:%s/nothing:%s/venv/bin:/usr/bin:/bin", root, root);
    setenv("PATH", path, 1);
    expect("real/lib/python3.12/dist-packages/nvidia/cm_test/lib", NULL,
           "what python3 of PATH links to");
    put_library("venv/lib/python3.12/site-packages/nvidia/cu13/lib");
    expect("venv/lib/python3.12/site-packages/nvidia/cu13/lib", NULL,
           "the environment of python3 of PATH");

    set("CONDA_PREFIX", "conda");
    put_library("conda/lib");
    expect("conda/lib", NULL, "conda's own library");
    put_library("conda/lib/python3.10/site-packages/nvidia/cm_test/lib");
    expect("conda/lib/python3.10/site-packages/nvidia/cm_test/lib", NULL, "conda's wheels");
    set("VIRTUAL_ENV", "env");
    put_library("env/lib/python3.9/site-packages/nvidia/cu13/lib");
    expect("env/lib/python3.9/site-packages/nvidia/cu13/lib", NULL, "VIRTUAL_ENV");
    put_library("env/lib/python3.9/site-packages/nvidia/cm_test/lib");
    expect("env/lib/python3.9/site-packages/nvidia/cm_test/lib", NULL, "the wheel named first");

    /* A bracket in a name is no pattern. */
    set("VIRTUAL_ENV", "env[1]");
    put_library("env[1]/lib/python3.9/site-packages/nvidia/cm_test/lib");
    expect("env[1]/lib/python3.9/site-packages/nvidia/cm_test/lib", NULL, "brackets");

    put_library("other/site-packages/nvidia/cm_test/lib");
    snprintf(beside, sizeof beside, "%s/other/site-packages/nvidia/cublas/lib/libcublasLt.so.13",
             root);
    expect("other/site-packages/nvidia/cm_test/lib", beside, "a wheel beside a loaded one");
    put_library("other/site-packages/nvidia/cublas/lib");
    expect("other/site-packages/nvidia/cublas/lib", beside, "the folder of a loaded one");

    set("CUDA_PATH", "toolkit-path");
    put_library("toolkit-path/lib");
    expect("toolkit-path/lib", beside, "CUDA_PATH");
    set("CUDA_HOME", "toolkit");
    put_library("toolkit/lib64");
    expect("toolkit/lib64", beside, "CUDA_HOME");
    set("CM_TEST_LIBRARY_PATH", "named");
    put_library("named/lib");
    expect("named/lib", beside, "a variable, lib");
    put_library("named/lib64");
    expect("named/lib64", beside, "a variable, lib64");
    put_library("named");
    expect("named", beside, "a variable, the folder itself");
    expect_at("other/site-packages/nvidia/cublas/lib", beside, 1, "beside a loaded one before all");
}

/* A file that does not load is skipped. The message names it if no other library is found. */
static void test_broken(void) {
    clear();
    set("CM_TEST_LIBRARY_PATH", "broken");
    shell("mkdir -p '%s/broken/lib64' '%s/broken/lib' && echo text >'%s/broken/lib64/" NAME "'",
          root, root, root);
    expect(NULL, NULL, "a file that is no library");
    char path[PATH_MAX], why[512];
    LibrarySearch s = {names, variables, NULL, NULL, 0, 0};
    void *library = library_open(&s, path, sizeof path, why, sizeof why);
    check(!library && strstr(why, "broken/lib64/" NAME), "the reason is \"%s\"", why);
    put_library("broken/lib");
    expect("broken/lib", NULL, "a good file after a broken one");
    library_path_of((const void *)root, path, sizeof path);
    check(path[0] != 0, "this program has no path");
    library_path_of(NULL, path, sizeof path);
    check(path[0] == 0, "NULL lies in %s", path);
}

static const Test tests[] = {TEST(places), TEST(broken)};

int main(int argc, char **argv) {
    const char *cc = getenv("CC");
    snprintf(tools, sizeof tools, "%s", getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
    snprintf(root, sizeof root, "/tmp/cm_test_library.%ld", (long)getpid());
    shell("mkdir -p '%s' && printf 'int cm_test_answer(void);\\nint cm_test_answer(void) { return "
          "42; }\\n' "
          ">'%s/a.c' && %s -shared -fPIC '%s/a.c' -o '%s/built.so'",
          root, root, cc && cc[0] ? cc : "cc", root, root);
    check_run(tests, COUNT_OF(tests), argc, argv);
    shell("rm -rf '%s'", root);
    return check_done();
}
