#!/bin/sh
# Tests of libcmuon as programs use it: its exports, the functions that it must never call, its soname; clients
# in C and C++ of the shared and the static library; make install and pkg-config; the Python wrapper, if Python
# has NumPy. usage: libcmuon_test.sh [TEST...]
set -u
here=$(pwd)
CC=${CC:-cc}
CXX=${CXX:-c++}
for file in libcmuon.so.1 libcmuon.so libcmuon.a cmuon.pc; do
    [ -e "$file" ] || { echo "FAIL there is no $file: run make $file first"; exit 1; }
done
. "$here/dev/test/program.sh"
cd "$here" || exit 1
# checked DESCRIPTION COMMAND...: check, which prints the output of a command that fails.
checked() {
    checked=$1
    shift
    check "$checked" run "$@"
}
same() { [ "$1" = "$2" ] || { echo "have: $1"; echo "want: $2"; false; }; }
none() { [ -z "$1" ] || { echo "$1"; false; }; }
have() { command -v "$1" >/dev/null 2>&1; }

# A client that is valid C and C++.
cat >"$dir/client.c" <<'END'
#include <cmuon.h>
#include <math.h>
#include <string.h>

int main(void) {
    float w[4] = {1, 0, 0, 1}, g[4] = {1, 2, 3, 5}, m[4] = {0, 0, 0, 0}, x[4] = {3, 0, 0, -2};
    float wk[4] = {1, 0, 0, 1}, gk[4] = {1, 2, 3, 5}, mk[4] = {0, 0, 0, 0};
    cm_options *o = cm_options_new();
    if (!o || cm_options_set(o, "inv_root", "eigh") || cm_options_set(o, "threads", "1")) return 1;
    if (cm_options_set(o, "inv_root", "qr") != CM_EVALUE) return 2;
    if (cm_muon(w, g, m, 2, 2, 0.1f, o)) return 3;
    if (cm_msign(x, 2, 2, o) || fabs(x[0] - 1.0) > 1e-3 || fabs(x[3] + 1.0) > 1e-3) return 4;
    if (cm_qk(w, wk, g, gk, m, mk, 2, 1, 1, 2, 0.1f, o)) return 5;
    if (cm_ov(w, wk, g, gk, m, mk, 2, 1, 1, 2, 0.1f, o)) return 6;
    if (cm_options_set(o, "lora_scale", "2")) return 10;
    if (cm_lora(w, wk, g, gk, m, mk, 2, 2, 1, 0.1f, o)) return 11; /* rank 1 of the first halves */
    if (cm_lora(w, wk, g, gk, m, mk, 2, 2, 3, 0.1f, o) != CM_ESIZE) return 12;
    x[0] = x[3] = 4, x[1] = x[2] = 0;
    if (cm_inv_sqrt(x, 2, 0, o) || fabs(x[0] - 0.5) > 1e-5) return 7;
    g[1] = (float)NAN;
    if (cm_muon(w, g, m, 2, 2, 0.1f, o) != CM_ENONFINITE) return 8;
    if (!strstr(cm_strerror(CM_ENONFINITE), "NaN")) return 9;
    cm_options_free(o);
    return 0;
}
END
cp "$dir/client.c" "$dir/client.cc"
strict="-Wall -Wextra -Werror -pedantic"
libs=$(sed -n 's/^Libs.private: //p' cmuon.pc)
mkdir -p "$dir/include"
cp llmc/cmuon.h "$dir/include"
LD_LIBRARY_PATH=$here${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH

# The library exports the functions that the header declares, and no other symbol.
test_exports() {
    declared=$(sed -n 's/.*[ *]\(cm_[a-z_]*\)(.*/\1/p' llmc/cmuon.h | sort | tr '\n' ' ')
    exported=$(nm -D --defined-only libcmuon.so | awk '{ print $NF }' | sort | tr '\n' ' ')
    checked "libcmuon.so exports what cmuon.h declares" same "$exported" "$declared"
    exported=$(nm -g --defined-only libcmuon.a | awk 'NF == 3 { print $3 }' | sort | tr '\n' ' ')
    checked "libcmuon.a exports what cmuon.h declares" same "$exported" "$declared"
    checked "libcmuon.so.1 has another soname" same \
        "$(readelf -d libcmuon.so.1 | sed -n 's/.*SONAME.*\[\(.*\)\].*/\1/p')" libcmuon.so.1
    checked "libcmuon.so is no link to libcmuon.so.1" same "$(readlink libcmuon.so)" libcmuon.so.1
    # The library calls no function that ends the process or prints.
    calls=$(nm -D --undefined-only libcmuon.so | awk '{ print $NF }' | sed 's/@.*//' |
        grep -E '^_*(abort|exit|_exit|_Exit|quick_exit|assert_fail|std(out|err)|v?f?printf(_chk)?|put(s|char)|f(puts|putc|write)|perror|raise|kill)$')
    checked "libcmuon.so calls nothing that exits or prints" none "$calls"
}

# Clients in C and C++ of the shared and of the static library.
test_clients() {
    checked "cmuon.h alone is C89" $CC -std=c89 $strict -fsyntax-only -x c llmc/cmuon.h
    checked "C client, shared: build" $CC -std=c99 $strict -I"$dir/include" "$dir/client.c" \
        -o "$dir/c_so" -L. -lcmuon -lm
    checked "C client, shared: run" "$dir/c_so"
    checked "C client, static: build" $CC -std=c99 $strict -I"$dir/include" "$dir/client.c" \
        -o "$dir/c_a" libcmuon.a $libs
    checked "C client, static: run" "$dir/c_a"
    if have "$CXX"; then
        checked "C++ client, shared: build" $CXX $strict -I"$dir/include" "$dir/client.cc" -o "$dir/cc_so" \
            -L. -lcmuon -lm
        checked "C++ client, shared: run" "$dir/cc_so"
        checked "C++ client, static: build" $CXX $strict -I"$dir/include" "$dir/client.cc" \
            -o "$dir/cc_a" libcmuon.a $libs
        checked "C++ client, static: run" "$dir/cc_a"
    else
        echo "note: no C++ compiler, so no C++ client"
    fi
}

# A program loads the library and unloads it while a thread that has used it still runs.
test_plugin() {
    cat >"$dir/plugin.c" <<'END'
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
typedef int (*msign)(float *, int, int, const void *);
static pthread_barrier_t used, unloaded;
static msign sign;
static void *worker(void *p) {
    static float x[100] = {1};
    *(int *)p = sign(x, 10, 10, NULL);
    pthread_barrier_wait(&used);
    pthread_barrier_wait(&unloaded);
    return NULL;
}
int main(void) {
    int status = 1;
    pthread_t thread;
    void *library = dlopen("libcmuon.so", RTLD_NOW);
    if (!library) return 2;
    *(void **)&sign = dlsym(library, "cm_msign");
    pthread_barrier_init(&used, NULL, 2);
    pthread_barrier_init(&unloaded, NULL, 2);
    if (!sign || pthread_create(&thread, NULL, worker, &status)) return 3;
    pthread_barrier_wait(&used);
    dlclose(library);
    pthread_barrier_wait(&unloaded);
    pthread_join(thread, NULL);
    return status;
}
END
    checked "plugin: build" $CC -std=gnu99 "$dir/plugin.c" -o "$dir/plugin" -ldl -lpthread
    checked "plugin: unloaded while a thread lives that used it" "$dir/plugin"
}

# make install with a prefix, and pkg-config.
test_install() {
    MAKEFLAGS= make --no-print-directory -s install PREFIX="$dir/prefix" CC="$CC" >"$dir/install" 2>&1
    status=$?
    cp "$dir/install" "$dir/out"
    checked "make install: $(cat "$dir/install")" [ "$status" -eq 0 ]
    for file in lib/libcmuon.so.1 lib/libcmuon.so lib/libcmuon.a lib/pkgconfig/cmuon.pc include/cmuon.h; do
        checked "make install puts $file" [ -s "$dir/prefix/$file" ]
    done
    if have pkg-config; then
        PKG_CONFIG_PATH=$dir/prefix/lib/pkgconfig
        export PKG_CONFIG_PATH
        checked "pkg-config: build" $CC $strict $(pkg-config --cflags cmuon) "$dir/client.c" \
            -o "$dir/pc" $(pkg-config --libs cmuon) -lm
        LD_LIBRARY_PATH=$dir/prefix/lib
        checked "pkg-config: run" "$dir/pc"
        LD_LIBRARY_PATH=$here
    fi
}

# make install to folders with spaces and quotes in their names.
test_install_names() {
    odd="$dir/a b's \"c\" |&"
    MAKEFLAGS= make --no-print-directory -s install PREFIX="/pre fix's |&" DESTDIR="$odd" CC="$CC" >"$dir/install" 2>&1
    status=$?
    cp "$dir/install" "$dir/out"
    checked "make install to odd names: $(cat "$dir/install")" [ "$status" -eq 0 ]
    to="$odd/pre fix's |&"
    for file in lib/libcmuon.so.1 lib/libcmuon.so lib/libcmuon.a lib/pkgconfig/cmuon.pc include/cmuon.h; do
        checked "make install to odd names puts $file" [ -s "$to/$file" ]
    done
    checked "cmuon.pc has another prefix" grep -qxF "prefix=/pre fix's |&" "$to/lib/pkgconfig/cmuon.pc"
    if have pkg-config; then
        MAKEFLAGS= make --no-print-directory -s install PREFIX="$dir/pre fix" CC="$CC" >"$dir/out" 2>&1
        PKG_CONFIG_PATH="$dir/pre fix/lib/pkgconfig"
        export PKG_CONFIG_PATH
        eval "set -- $(pkg-config --cflags --libs cmuon)"
        checked "pkg-config with a space in the prefix: build" $CC $strict "$dir/client.c" -o "$dir/pc2" "$@" -lm
    fi
}

# The Python wrapper.
test_python() {
    if have python3 && python3 -c 'import numpy' 2>/dev/null; then
        checked "Python wrapper" env CMUON_LIBRARY="$here/libcmuon.so" python3 dev/python/test_cmuon.py
    else
        echo "note: python3 has no NumPy, so the wrapper was not tried"
    fi
}

run_tests "$@"
