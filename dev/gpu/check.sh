#!/usr/bin/env bash
# All checks of a visit to a GPU: builds, tests, compares with the CPU, kills and resumes runs, measures, compares
# with llm.c and PyTorch, profiles, sanitizes, trains. Ends by itself and needs no network. dev/gpu/README.md
# tells how to prepare a visit and how to read the report.
#
#     bash dev/gpu/check.sh [--only STEP,STEP | --from STEP] [--prebuilt DIR_OR_TAR] [--llmc DIR]
#                           [--data 'TRAIN SHARDS'] [--val-data 'VALIDATION SHARDS'] [--out DIR]
#     bash dev/gpu/check.sh --dry         prints the steps and their limits, runs nothing
#     bash dev/gpu/check.sh --rehearse    runs the whole script on the emulator, at toy size, with every failure
#
#   --prebuilt  programs to take if they cannot be built on this machine in time: a folder, or a file of
#               dev/gpu/prepare.sh. Default: dev/gpu/carry/prebuilt.tar.gz, if it exists
#   --llmc      a folder that has llm.c's train_gpt2cu, built. Default: dev/gpu/carry/llmc, if it exists
#   --only, --from   for a second visit: only these steps, or this step and all later ones
#   --out       folder of report.md and report.json. Default: $OUT, else build/gpu-report
#
# A step passes, fails, is skipped (this machine lacks something that it needs), or is "not known" (it ran past
# its limit). Steps are "not run" if no time was left. The report is written anew after every step.
# Exit status: 1 if anything failed; else 2 if anything is not known or not run; else 0.
# Environment: CHECK_SECONDS (480), for all steps; CHECK_PYTHON (python3), a Python that has PyTorch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$here/check.sh
cd "$here/../.."

work=${CHECK_WORK:-build/gpu-check} # logs, runs and results
root=${CHECK_ROOT:-.}               # the folder into which make builds the programs
out=${CHECK_OUT:-${OUT:-build/gpu-report}}
python=${CHECK_PYTHON:-python3}
export CHECK_TOY=${CHECK_TOY:-}     # toy sizes, for the rehearsal

# name | limit in seconds | what it checks. The most valuable steps come first, because the visit may be cut off.
steps=(
    "environment|30|the GPU, its driver, compilers, libraries, tools"
    "build|150|the programs that the first steps need; the others are built during these steps"
    "kernels|90|every kernel against its CPU twin; the whole model against its reference"
    "parity|60|each preset in miniature, 20 steps: CUDA fp32 and bf16 against the CPU"
    "graph|45|--cuda-graph on and off: the same log and checkpoint to the bit"
    "resume|70|kill -9 and SIGTERM at a random moment, resume: the same log and checkpoint to the bit"
    "speed|170|tokens a second of GPT-2 124M at 524288 tokens a step, and what each choice is worth"
    "large|100|tokens a second of 350M and 774M"
    "adapters|60|adapters beside GPT-2 124M: train, resume, tokens a second against all weights"
    "peers|130|llm.c and PyTorch on this card, at the same shapes"
    "bench|80|matrix products, attention, kernels, optimizers, one by one"
    "programs|60|the programs as their users meet them (dev/test/cuda_test.sh)"
    "ncu|50|five kernels under the profiler"
    "sanitizer|110|compute-sanitizer on the kernel tests"
    "train|600|preset speedrun in the time that is left: Muon and CM, one seed"
)
# shellcheck source=dev/gpu/steps.sh
. "$here/steps.sh"
# shellcheck source=dev/gpu/report.sh
. "$here/report.sh"

# ---- running one step

# limit_of STEP LIMIT: prints LIMIT, or the SECONDS of CHECK_LIMIT=STEP=SECONDS.
limit_of() {
    if [ -n "${CHECK_LIMIT:-}" ] && [ "${CHECK_LIMIT%%=*}" = "$1" ]; then say "${CHECK_LIMIT#*=}"; else say "$2"; fi
}

# Runs a step under its limit and adds a line to results.tsv: name, result, seconds, text.
run_step() {
    local name=$1 limit=$2 start=$SECONDS status=0 result text=
    rm -f "$work/$name".{note,failed,unknown}
    under_way=$name
    timeout --kill-after=8 "$limit" bash "$self" --step "$name" >"$work/$name.log" 2>&1 </dev/null &
    child=$!
    wait $child || status=$?
    child=
    # Something else than this script has killed the step, because its limit was not reached.
    [ $status != 137 ] || [ $((SECONDS - start)) -ge "$limit" ] || status=1
    case $status in
    0) result=passed ;;
    77) result=skipped ;;
    75 | 124 | 137 | 143) result="not known" ;;
    *) result=FAILED ;;
    esac
    [ ! -s "$work/$name.unknown" ] || [ "$result" != passed ] || result="not known"
    [ ! -s "$work/$name.failed" ] || result=FAILED
    [ ! -s "$work/$name.note" ] || text=$(cat "$work/$name.note")
    [ ! -s "$work/$name.unknown" ] || text="$text${text:+; }not known: $(paste -s -d ';' "$work/$name.unknown")"
    [ ! -s "$work/$name.failed" ] || text="$text${text:+; }failed: $(paste -s -d ';' "$work/$name.failed")"
    [ -n "$text" ] || text=$(tail -n 1 "$work/$name.log" | cut -c 1-200)
    [ $status != 124 ] && [ $status != 137 ] || text="ran past $limit s; $text"
    under_way=
    result_line "$name" "$result" $((SECONDS - start)) "$text"
}
result_line() {
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(say "$4" | tr '\t|' ' /')" >>"$work/results.tsv"
    printf '%-12s %-9s %4s s  %s\n' "$1" "$2" "$3" "$4"
}

# chosen NAME: whether --only and --from choose the step.
chosen() {
    [ "$1" != "$from" ] || begun=1
    [ $begun = 1 ] || return 1
    [ -z "$only" ] || case ",$only," in *",$1,"*) ;; *) return 1 ;; esac
}

# Forgets former visits. A visit with --only or --from forgets only the steps that it runs, so that its report
# includes the other results of the former visit to this machine.
forget() {
    if [ -z "$only$from" ] || [ ! -s "$work/results.tsv" ]; then rm -rf "$work"; fi
    rm -rf "$work/build" "$work/runs" "$work/used"
    mkdir -p "$work"
    local file
    for file in results rows checks; do
        [ -f "$work/$file.tsv" ] || : >"$work/$file.tsv"
        awk -F '\t' -v asked="$asked" 'index(asked, " " $1 " ") == 0 && $2 != "not run"' "$work/$file.tsv" >"$work/kept"
        mv "$work/kept" "$work/$file.tsv"
    done
    for file in ncu:ncu.tsv train:train.tsv train:train.md parity:parity.md bench:bench.md bench:bench.gemm.json \
        bench:bench.attention.json bench:bench.layers.json bench:bench.optimizer.json; do
        [[ $asked != *" ${file%%:*} "* ]] || rm -f "$work/${file#*:}"
    done
}

stop() { # on a signal: ends the running programs and writes the report
    trap '' INT TERM HUP
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
    [ -z "$builder" ] || kill -TERM "$builder" 2>/dev/null || true
    [ -z "$under_way" ] || result_line "$under_way" "not known" 0 "stopped by a signal"
    finish
    exit 2
}

results_of_now() { awk -F '\t' -v asked="$asked" 'index(asked, " " $1 " ") { print $2 }' "$work/results.tsv"; }

# Writes the last report, with the steps that never began. Sets `failed` and `open`, the numbers of steps.
finish() {
    for entry in "${steps[@]}"; do
        name=${entry%%|*}
        begun_already=$(cut -f 1 "$work/results.tsv" | grep -c -x -e "$name" || true)
        if [ "$begun_already" = 0 ] && [[ " $asked " = *" $name "* ]]; then
            result_line "$name" "not run" 0 "no time was left"
        fi
    done
    report
    failed=$(results_of_now | grep -c -x FAILED || true)
    open=$(results_of_now | grep -c -x -E 'not known|not run' || true)
    say "$failed failed, $open not known or not run, of $(results_of_now | wc -l) steps; see $out/report.md"
}

# ---- the command line

dry=0 only="" from="" step="" build=""
carry=dev/gpu/carry # files that travel with the sources; git ignores them
prebuilt=${CHECK_PREBUILT-$(first_of $carry/prebuilt.tar.gz)} llmc=${CHECK_LLMC-$(first_of $carry/llmc)}
while [ $# -gt 0 ]; do
    case $1 in
    --data | --val-data | --out | --only | --from | --prebuilt | --llmc | --step)
        [ $# -ge 2 ] || { say "$1 needs a value" >&2; exit 1; }
        case $1 in
        --data) export CHECK_DATA=$2 ;;
        --val-data) export CHECK_VAL_DATA=$2 ;;
        --out) out=$2 ;;
        --only) only=$2 ;;
        --from) from=$2 ;;
        --prebuilt) prebuilt=$2 ;;
        --llmc) llmc=$2 ;;
        --step) step=$2 ;;
        esac
        shift 2
        ;;
    --build) build=1; shift ;;
    --dry) dry=1; shift ;;
    --rehearse) shift; exec bash "$here/rehearse.sh" "$@" ;;
    -h | --help) sed -n '2,/^set/p' "$self" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
    *) say "unknown argument $1; see --help" >&2; exit 1 ;;
    esac
done
export CHECK_OUT=$out CHECK_PREBUILT=$prebuilt CHECK_LLMC=$llmc
# shellcheck source=/dev/null
[ ! -f "$work/env.sh" ] || [ -z "$step$build" ] || . "$work/env.sh"
if [ -n "$step" ]; then
    trap stop_running INT TERM
    "step_$step"
    exit
fi
if [ -n "$build" ]; then build_all; exit; fi
known=" "
for entry in "${steps[@]}"; do known+="${entry%%|*} "; done
for name in ${only//,/ } $from; do
    [[ $known = *" $name "* ]] || { say "there is no step $name; the steps are:$known" >&2; exit 1; }
done
if [ $dry = 1 ]; then
    for entry in "${steps[@]}"; do
        IFS='|' read -r name limit text <<<"$entry"
        printf '%-12s at most %3s s   %s\n' "$name" "$limit" "$text"
    done
    say "all steps at most ${CHECK_SECONDS:-480} s (CHECK_SECONDS)"
    exit 0
fi
if ! nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null && [ ! -e /dev/nvidia0 ]; then
    say "This machine has no NVIDIA GPU (nvidia-smi names none): nothing was checked." >&2
    exit 1
fi

# ---- the visit

CHECK_END=$(($(date +%s) + ${CHECK_SECONDS:-480}))
export CHECK_END
child="" builder="" under_way="" begun=1 asked=""
[ -z "$from" ] || begun=0
for entry in "${steps[@]}"; do
    if chosen "${entry%%|*}"; then asked+=" ${entry%%|*}"; fi
done
asked+=" "
forget
mkdir -p "$work/runs" "$work/build" "$out"
trap stop INT TERM HUP
unpack_prebuilt
find_paths
# shellcheck source=/dev/null
. "$work/env.sh"
say $(($(date +%s) + $(limit_of build 150))) >"$work/build/deadline"
timeout --kill-after=5 300 bash "$self" --build >"$work/make.log" 2>&1 </dev/null &
builder=$!
find_gpu
for entry in "${steps[@]}"; do
    IFS='|' read -r name limit text <<<"$entry"
    [[ $asked = *" $name "* ]] || continue
    left=$((CHECK_END - $(date +%s) - 8)) # 8 s is the grace of timeout --kill-after
    [ $left -ge 5 ] || break
    limit=$(limit_of "$name" "$limit")
    [ "$left" -ge "$limit" ] || limit=$left
    run_step "$name" "$limit"
    report
done
kill -TERM "$builder" 2>/dev/null || true
finish
[ "$failed" = 0 ] || exit 1
[ "$open" = 0 ] || exit 2
