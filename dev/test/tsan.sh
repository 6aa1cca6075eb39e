#!/bin/sh
# Runs programs that were built with clang -fsanitize=thread and OpenMP. Archer, a tool of LLVM's OpenMP,
# tells ThreadSanitizer about OpenMP's barriers. Two small programs first show that a race is reported and a
# barrier is not. Test programs run whole; with TRAIN_GPT and GENERATE, which name such builds, a small model is
# trained on two threads, resumed, and sampled from. usage: [CC=clang] [TRAIN_GPT=... GENERATE=...] tsan.sh PROGRAM...
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

# watch NAME COMMAND...: runs a command and prints how many races were reported.
watch() {
    name=$1
    shift
    start=$(date +%s)
    "$@" >"$dir/out" 2>&1
    status=$?
    races=$(grep -a -c 'WARNING: ThreadSanitizer' "$dir/out")
    printf '%-32s %4d reports %6d s\n' "$name" "$races" $(($(date +%s) - start))
    [ "$status" -eq 0 ] && return
    failed=$((failed + 1))
    if [ "$races" -gt 0 ]; then grep -a -A 14 'WARNING: ThreadSanitizer' "$dir/out" | head -n 60
    else tail -n 20 "$dir/out"; fi
}

for program in "$@"; do watch "$(basename "$program")" "$program"; done
if [ -n "${TRAIN_GPT:-}" ]; then
    # Two layers, so that gradients pass between blocks; two micro-batches; then other rules, SwiGLU and recomputation.
    model="--data README.md --layers 2 --width 64 --heads 4 --kv-heads 2 --seq-len 64 --batch-size 4 --total-batch-tokens 512
           --val-tokens 1024 --checkpoint-every 10 --log-groups --threads 2 --runs-dir $dir/runs"
    watch "train_gpt: 20 steps" "$TRAIN_GPT" --run a $model --steps 20
    watch "train_gpt: resumed" "$TRAIN_GPT" --run a --runs-dir "$dir/runs" --resume --steps 25 --threads 2 --log-groups
    watch "train_gpt: other rules" "$TRAIN_GPT" --run b $model --steps 5 --preset llama --qk quack --ov adamw-partner \
        --mlp aurora --recompute block
    watch "generate" "$GENERATE" --runs-dir "$dir/runs" --run a --tokens 200 --threads 2
fi
echo "$failed programs failed under ThreadSanitizer"
[ "$failed" -eq 0 ]
