/*
Finds a shared library when the program runs, wherever people have it: the CUDA toolkit, a
distribution's package, or the `nvidia-*` wheels that PyTorch brings into a Python environment.
Needs no CUDA.

These places are searched in order, and the first file that loads is taken:

    1. folders that environment variables name (CUDNN_PATH), and lib64 and lib in them
    2. the dynamic linker's places: LD_LIBRARY_PATH, the program's rpath, /etc/ld.so.conf
    3. lib64 and lib in CUDA_HOME and CUDA_PATH
    4. the folder of another library that is loaded already, and the wheels beside it
    5. the usual folders of systems and toolkits
    6. Python environments: VIRTUAL_ENV, CONDA_PREFIX, python3 in PATH, the system's, the user's,
       pyenv's
*/
#ifndef CM_CUDA_LIBRARY_H
#define CM_CUDA_LIBRARY_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* for dladdr and dlinfo */
#endif
#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../files.h"

#ifndef PATH_MAX
#define PATH_MAX 4096
#endif

/* What to search for. Lists end with NULL; a list that is NULL is empty. */
typedef struct {
    const char *const *names; /* file names, the best first: "libcudnn.so.9" */
    /* Environment variables, each of which names a folder: "CUDNN_PATH". */
    const char *const *variables;
    const char *const *wheels; /* folders below site-packages/nvidia: "cudnn/lib" */
    const char *beside;        /* path of a library that is loaded already, or NULL */
    int beside_first;          /* whether `beside` is searched before all other places */
    int global;                /* whether libraries that are loaded later see this one's symbols */
} LibrarySearch;

/* The state of a search. */
typedef struct {
    const LibrarySearch *search;
    void *found; /* the handle; NULL until a file loads */
    char *why;   /* the dynamic linker's message for a file that exists but does not load */
    size_t why_size;
} LibraryFinder;

/* The path of a library that dlopen has returned. */
static inline void library_path(void *library, char *path, size_t size) {
    struct link_map *map = NULL;
    snprintf(path, size, "%s",
             library && !dlinfo(library, RTLD_DI_LINKMAP, &map) && map ? map->l_name : "");
}

/* The path of the loaded library that contains a function or variable; "" if none does. */
static inline void library_path_of(const void *symbol, char *path, size_t size) {
    Dl_info info;
    snprintf(path, size, "%s", dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : "");
}

typedef struct {
    const char *start;
    char *path;
    size_t size;
} LibraryLoaded;

static inline int library_loaded_at(struct dl_phdr_info *info, size_t size, void *argument) {
    LibraryLoaded *l = (LibraryLoaded *)argument;
    const char *slash = strrchr(info->dlpi_name, '/'), *name = slash ? slash + 1 : info->dlpi_name;
    (void)size;
    if (strncmp(name, l->start, strlen(l->start))) return 0;
    snprintf(l->path, l->size, "%s", info->dlpi_name);
    return 1;
}

/* The path of the first loaded library whose file name begins with `start` ("libcublasLt.so");
   "" if there is none. */
static inline void library_loaded(const char *start, char *path, size_t size) {
    LibraryLoaded l = {start, path, size};
    if (size) path[0] = 0;
    dl_iterate_phdr(library_loaded_at, &l);
}

/* Loads `file`: a path, or a name that the dynamic linker searches for. */
static inline void library_try_file(LibraryFinder *f, const char *file) {
    int path = strchr(file, '/') != NULL;
    if (f->found || (path && access(file, R_OK))) return;
    f->found = dlopen(file, RTLD_NOW | (f->search->global ? RTLD_GLOBAL : RTLD_LOCAL));
    const char *said = f->found ? NULL : dlerror();
    /* For a plain name, "No such file" is expected. For a path it means that another library is
       missing. */
    if (said && f->why && (path || !strstr(said, "cannot open shared object")))
        snprintf(f->why, f->why_size, "%s", said);
}

/* Tries all names in folder/below. `folder` and `below` may be patterns of glob. */
static inline void library_try_folder(LibraryFinder *f, const char *folder, const char *below) {
    char pattern[PATH_MAX];
    for (const char *const *name = f->search->names; *name && !f->found; name++) {
        glob_t found;
        int n = snprintf(pattern, sizeof pattern, "%s%s%s/%s", folder, below[0] ? "/" : "", below,
                         *name);
        if (n < 0 || n >= (int)sizeof pattern || file_glob(pattern, &found)) continue;
        for (size_t i = found.gl_pathc; i-- > 0 && !f->found;)
            library_try_file(f, found.gl_pathv[i]);
        globfree(&found);
    }
}

/* Tries the wheels in a folder of Python packages. */
static inline void library_try_packages(LibraryFinder *f, const char *packages) {
    char below[PATH_MAX];
    for (const char *const *wheel = f->search->wheels; wheel && *wheel && !f->found; wheel++) {
        snprintf(below, sizeof below, "nvidia/%s", *wheel);
        library_try_folder(f, packages, below);
    }
}

/* Tries a Python environment or an interpreter's prefix: its packages, then its own libraries
   (conda's). */
static inline void library_try_python(LibraryFinder *f, const char *prefix) {
    static const char *const packages[] = {
        "lib/python3*/site-packages", "lib64/python3*/site-packages", "lib/python3*/dist-packages",
        "lib/python3/dist-packages"};
    char folder[PATH_MAX];
    if (!prefix || !prefix[0]) return;
    for (size_t i = 0; i < sizeof packages / sizeof packages[0]; i++) {
        int n = snprintf(folder, sizeof folder, "%s/%s", prefix, packages[i]);
        if (n > 0 && n < (int)sizeof folder) library_try_packages(f, folder);
    }
    library_try_folder(f, prefix, "lib");
}

/* The folder `levels` levels above a file; "" if there is none. */
static inline void library_above(const char *file, int levels, char *folder, size_t size) {
    snprintf(folder, size, "%s", file);
    for (; levels; levels--) {
        char *slash = strrchr(folder, '/');
        if (!slash || slash == folder) {
            folder[0] = 0;
            return;
        }
        *slash = 0;
    }
}

/* Tries the packages of the first python3 in PATH. In a virtual environment python3 is a link,
   and both ends may have packages. */
static inline void library_try_path(LibraryFinder *f) {
    char file[PATH_MAX], real[PATH_MAX], prefix[PATH_MAX];
    for (const char *at = getenv("PATH"); at && *at && !f->found;) {
        size_t n = strcspn(at, ":");
        snprintf(file, sizeof file, "%.*s/python3", (int)n, at);
        at += n + (at[n] == ':');
        if (file[0] != '/' || access(file, X_OK)) continue;
        library_above(file, 2, prefix, sizeof prefix);
        library_try_python(f, prefix);
        if (!realpath(file, real)) return;
        library_above(real, 2, prefix, sizeof prefix);
        library_try_python(f, prefix);
        return;
    }
}

/* Tries the folder of a library that is loaded already. If that is a wheel's,
   PACKAGES/nvidia/WHEEL/lib/FILE, also tries the other wheels of PACKAGES. */
static inline void library_try_beside(LibraryFinder *f) {
    char folder[PATH_MAX];
    if (!f->search->beside || !f->search->beside[0]) return;
    library_above(f->search->beside, 1, folder, sizeof folder);
    if (folder[0]) library_try_folder(f, folder, "");
    library_above(f->search->beside, 4, folder, sizeof folder);
    if (folder[0]) library_try_packages(f, folder);
}

static inline void library_try_variables(LibraryFinder *f, const char *const *variables) {
    static const char *const below[] = {"", "lib64", "lib"};
    for (; variables && *variables; variables++) {
        const char *folder = getenv(*variables);
        for (int i = 0; folder && folder[0] && i < 3; i++) library_try_folder(f, folder, below[i]);
    }
}

static inline void library_try_systems(LibraryFinder *f) {
    static const char *const folders[] = {"/usr/local/cuda/lib64",
                                          "/usr/local/cuda-*/lib64",
                                          "/usr/local/cuda/lib",
                                          "/opt/cuda/lib64",
                                          "/usr/local/lib",
                                          "/usr/lib/*-linux-gnu",
                                          "/usr/lib64",
                                          "/usr/lib",
                                          "/usr/lib/wsl/lib",
                                          "/usr/lib/*-linux-gnu/nvidia/current"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++)
        library_try_folder(f, folders[i], "");
}

static inline void library_try_pythons(LibraryFinder *f) {
    static const struct {
        const char *variable, *below;
    } roots[] = {{"HOME", ".local"}, {"PYENV_ROOT", "versions/*"}, {"HOME", ".pyenv/versions/*"}};
    char folder[PATH_MAX];
    library_try_python(f, getenv("VIRTUAL_ENV"));
    library_try_python(f, getenv("CONDA_PREFIX"));
    library_try_path(f);
    library_try_python(f, "/usr");
    library_try_python(f, "/usr/local");
    library_try_python(f, "/opt/conda");
    for (int i = 0; i < 3; i++) {
        const char *root = getenv(roots[i].variable);
        int n = snprintf(folder, sizeof folder, "%s/%s", root ? root : "", roots[i].below);
        if (root && root[0] && n > 0 && n < (int)sizeof folder) library_try_python(f, folder);
    }
}

/* Loads a library. Returns its handle, and its path in `path`. If none loads, returns NULL;
   `why` then has the message for the last file that exists, or says that there is none. */
static inline void *library_open(const LibrarySearch *search, char *path, size_t size, char *why,
                                 size_t why_size) {
    static const char *const toolkits[] = {"CUDA_HOME", "CUDA_PATH", NULL};
    LibraryFinder f = {search, NULL, why, why_size};
    if (why_size) why[0] = 0;
    if (search->beside_first) library_try_beside(&f);
    library_try_variables(&f, search->variables);
    for (const char *const *name = search->names; *name; name++) library_try_file(&f, *name);
    library_try_variables(&f, toolkits);
    library_try_beside(&f);
    library_try_systems(&f);
    if (search->wheels) library_try_pythons(&f);
    library_path(f.found, path, size);
    if (!f.found && why_size && !why[0])
        snprintf(why, why_size, "there is no %s", search->names[0]);
    if (f.found && why_size) why[0] = 0;
    return f.found;
}

#endif
