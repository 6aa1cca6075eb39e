#!/bin/sh
# Runs programs that were built with clang -fsanitize=thread and OpenMP. Archer, a tool of LLVM's OpenMP,
# tells ThreadSanitizer about OpenMP's barriers. Two small programs first show that a race is reported and a
# barrier is not. usage: [CC=clang] tsan.sh PROGRAM...
set -u
CC=${CC:-clang}
clang=$(readlink -f "$(command -v "$CC")") || exit 1
archer=${clang%/bin/*}/lib/libarcher.so
[ -e "$archer" ] || { echo "error: no $archer: install clang, libomp-dev and LLVM's Archer" >&2; exit 1; }
export OMP_TOOL_LIBRARIES="$archer" OMP_NUM_THREADS="${OMP_NUM_THREADS:-3}"
# libomp itself is not instrumented.
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66 ${TSAN_OPTIONS:-}"
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

# loops INDEX: two loops over x, the first of which writes x[INDEX].
loops() {
    cat <<END
#include <stdio.h>
static double x[1000];
int main(void) {
    double sum = 0;
#pragma omp parallel for
    for (int i = 0; i < 1000; i++) x[$1] += i;
#pragma omp parallel for reduction(+ : sum)
    for (int i = 0; i < 1000; i++) sum += x[999 - i];
    return printf("%g\n", sum) < 0;
}
END
}
for index in 'i' 'i / 7'; do
    loops "$index" >"$dir/loops.c"
    $CC -O1 -g -fopenmp -fsanitize=thread "$dir/loops.c" -o "$dir/loops" || exit 1
    "$dir/loops" >"$dir/out" 2>&1
    status=$?
    case $index:$status in
    i:0 | "i / 7:66") ;;
    *) echo "error: ThreadSanitizer judges x[$index] wrongly: exit status $status" >&2; tail "$dir/out" >&2; exit 1 ;;
    esac
done
failed=0
for program in "$@"; do
    start=$(date +%s)
    "$program" >"$dir/out" 2>&1
    status=$?
    races=$(grep -c 'WARNING: ThreadSanitizer' "$dir/out")
    printf '%-32s %4d reports %6d s\n' "$(basename "$program")" "$races" $(($(date +%s) - start))
    [ "$status" -eq 0 ] && continue
    failed=$((failed + 1))
    if [ "$races" -gt 0 ]; then grep -A 14 'WARNING: ThreadSanitizer' "$dir/out" | head -n 60
    else tail -n 20 "$dir/out"; fi
done
echo "$failed programs failed under ThreadSanitizer"
[ "$failed" -eq 0 ]
