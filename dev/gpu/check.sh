#!/usr/bin/env bash
# Everything that has to be seen on a real GPU, in one command and under ten minutes: builds, tests, compares
# with the CPU, kills and resumes, sanitizes, trains and measures. Needs nvcc, gcc and make; no network.
#
#     bash dev/gpu/check.sh [--data 'TRAIN SHARDS'] [--val-data 'VALIDATION SHARDS'] [--out DIR] [--dry]
#
# Writes report.md and report.json with their sources into DIR ($OUT, or build/gpu-report). A step that fails
# does not stop the next; the exit status is 0 only if none failed. --dry prints the steps and runs nothing.
# CHECK_SECONDS (570) is the time for all of it; CHECK_FLAGS are flags for the large runs, to try the script.
set -euo pipefail
self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
cd "$(dirname "$self")/../.."

work=build/gpu-check                  # logs and runs
steps=(
    "environment|20|the GPU, its driver, the compiler"
    "build|240|make, for this GPU"
    "kernels|90|every kernel against the CPU's, on the device; the whole model against its reference"
    "programs|60|the programs as their users meet them (dev/test/cuda_test.sh)"
    "parity|90|each preset in miniature, 20 steps: CUDA fp32 and bf16 against the CPU"
    "resume|60|kill -9 at a random moment, resume: the same log and checkpoint to the bit"
    "train|90|300 steps of GPT-2 124M with Compositional Muon"
    "bench|120|matrix products, attention, kernels, optimizers"
    "sweep|150|tokens a second, MFU and memory of 124M at batch sizes 4 to 64"
    "sanitizer|125|compute-sanitizer on a model in miniature"
)

# ---- tools of the steps

say() { printf '%s\n' "$*"; }
note() { printf '%s\n' "$*" >"$work/$step.note"; say "$*"; } # what the summary says about a step
skip() { note "$*"; exit 77; }
need() { # PROGRAM...: fails where one was not built
    for program in "$@"; do
        [ -x "$program" ] || { note "there is no $program: the build failed"; exit 1; }
    done
}
json_string() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')"; }

# field FILE NAME: the numbers of a member of log.jsonl, a line each; null and absent are left out.
field() { sed -n "s/.*\"$2\": \([-0-9][-0-9.e+]*\).*/\1/p" "$1"; }
median() { sort -g | awk '{ x[NR] = $1 } END { if (NR) print x[int((NR + 1) / 2)] }'; }
strip() { sed 's/, "ms".*//' "$1"; }  # of a log what does not depend on time
newest() { find "$1/checkpoints" -name 'step_*.ckpt' | sort | tail -n 1; }

# Sentences, some 200 kB.
text() {
    awk 'BEGIN {
        n = split("the king of a far land|her brother|an old sailor|nobody|every child|the moon", who, "|")
        k = split("saw|forgot|sang to|would not sell|loved|feared|carried home|waited for", did, "|")
        m = split("a silver fish|the morning|two letters|what was lost|the quiet sea|bread", what, "|")
        x = 7
        for (i = 0; i < 6000; i++) {
            x = (x * 1103 + 12345) % 65536; a = int(x / 16) % n + 1
            x = (x * 1103 + 12345) % 65536; b = int(x / 16) % k + 1
            x = (x * 1103 + 12345) % 65536; c = int(x / 16) % m + 1
            printf "%s %s %s%s", who[a], did[b], what[c], i % 5 == 4 ? ".\n" : ", and "
        }
    }' >"$1"
}

# deviations A B: of every member of train_loss and val_loss of two logs the relative difference, a line each
# "step difference"; fails where the logs have other steps, or anything is not a number.
deviations() {
    paste -d '|' <(sed 's/|//g' "$1") <(sed 's/|//g' "$2") | awk -F '|' '
        function field(line, name,   p) {
            p = index(line, "\"" name "\": ")
            return p ? substr(line, p + length(name) + 4) : "null"
        }
        function check(name,   a, b, d) {
            a = field($1, name); b = field($2, name)
            if (a ~ /^null/ && b ~ /^null/) return
            if (a ~ /^null/ || b ~ /^null/) { bad = 1; return }
            d = (a + 0) - (b + 0); if (d < 0) d = -d
            if (a + 0 <= 0 || d != d) bad = 1
            else print field($1, "step") + 0, d / (a + 0)
        }
        field($1, "step") + 0 != field($2, "step") + 0 { bad = 1 }
        { check("train_loss"); check("val_loss"); n++ }
        END { exit bad || n < 2 }'
}

# ---- steps; each runs in a shell of its own

step_environment() {
    gpu_name=$(gpu name)
    note "$gpu_name, driver $(gpu driver_version), $(gpu clocks.max.sm) at most, $(gpu power.limit)"
    nvidia-smi || true
    command -v nvcc || ls -d /usr/local/cuda*/bin/nvcc || true
    nvcc --version || /usr/local/cuda/bin/nvcc --version || true
    cc --version | head -n 1
    say "$(nproc) CPU cores"
    free -g 2>/dev/null | head -n 2 || true
    ldconfig -p 2>/dev/null | grep -E 'libcudnn\.so|libcublasLt|libnvidia-ml|libcuda\.so' || true
}

step_build() {
    programs=(train_gpt generate train_gpt_cuda train_gpt_cuda_fp32 generate_cuda test_gpt_cuda test_gpt_cuda_fp32
        build/cuda/bench_cuda)
    ${CC:-cc} -O2 dev/gpu/shard.c -o "$work/shard" -lm
    if ! make -k "${programs[@]}"; then
        # What was built from older sources must not be taken for the new.
        for program in "${programs[@]}"; do make -q "$program" >/dev/null 2>&1 || rm -f "$program"; done
        note "$(grep -c 'error' "$work/build.log" || true) lines of errors"
        exit 1
    fi
    note "$(find build/cuda -name 'test_*' -type f | wc -l) kernel tests and the programs"
}

step_kernels() {
    need ./test_gpt_cuda ./test_gpt_cuda_fp32
    status=0
    JOBS=4 sh dev/test/run.sh build/cuda/test_* "$PWD/test_gpt_cuda" "$PWD/test_gpt_cuda_fp32" \
        >"$work/kernels.out" 2>&1 || status=$?
    cat "$work/kernels.out"
    note "$(tail -n 1 "$work/kernels.out")"
    return $status
}

step_programs() {
    need ./train_gpt ./generate ./train_gpt_cuda ./train_gpt_cuda_fp32 ./generate_cuda
    status=0
    TRAIN_CUDA=./train_gpt_cuda TRAIN_CUDA_FP32=./train_gpt_cuda_fp32 GENERATE_CUDA=./generate_cuda \
        sh dev/test/cuda_test.sh >"$work/programs.out" 2>&1 || status=$?
    cat "$work/programs.out"
    note "$(tail -n 1 "$work/programs.out")"
    return $status
}

# In fp32 the GPU differs by the order of its sums: 2e-4 of every loss at most. In bf16 weights and activations
# keep 8 bits, each rounded by up to 2^-9; in the mean loss of thousands of tokens most of that averages out.
# Under the emulator the losses of these models differ by 2e-5 before the first update and by 3e-4 in twenty
# steps; ten times that is allowed.
step_parity() {
    need ./train_gpt ./train_gpt_cuda ./train_gpt_cuda_fp32
    dir=$work/parity
    mkdir -p "$dir"
    text "$dir/text.txt"
    small="--data $dir/text.txt --runs-dir $dir --layers 3 --width 128 --heads 4 --seq-len 128 --batch-size 8
        --total-batch-tokens 1024 --vocab 256 --steps 20 --val-every 5 --val-tokens 2048 --keep-checkpoints 0
        --warmup 4"
    cases=("tiny --optimizer cm" "gpt2 --optimizer cm" "gpt2 --optimizer adamw"
        "llama --optimizer muon --kv-heads 2" "speedrun --optimizer cm")
    bad=0
    {
        say "| preset | fp32: largest difference | bf16: at step 0 | bf16: largest |"
        say "|---|---|---|---|"
    } >"$work/parity.md"
    for flags in "${cases[@]}"; do
        name=${flags// /_} name=${name//-/}
        worst=()
        for kind in cpu fp32 bf16; do
            program=./train_gpt_cuda tf32="--attention flash"
            [ $kind = bf16 ] || { program=./train_gpt_cuda_fp32 tf32="--attention flash --tf32 off"; }
            [ $kind != cpu ] || { program=./train_gpt tf32=; }
            # shellcheck disable=SC2086 # lists of flags
            $program --preset $flags $small $tf32 --run "$name-$kind" >"$dir/$name-$kind.out" 2>&1 ||
                { bad=1; say "$program --preset $flags fails:"; tail -n 5 "$dir/$name-$kind.out"; }
        done
        for kind in fp32 bf16; do
            if deviations "$dir/$name-cpu/log.jsonl" "$dir/$name-$kind/log.jsonl" >"$dir/$name-$kind.txt"; then
                worst+=("$(sort -g -k 2 "$dir/$name-$kind.txt" | tail -n 1 | cut -d ' ' -f 2)")
            else
                worst+=(1e9)
                bad=1
            fi
        done
        first=$(awk '$1 == 0 { print $2 }' "$dir/$name-bf16.txt" | head -n 1)
        say "| $flags | ${worst[0]} | ${first:-none} | ${worst[1]} |" | tee -a "$work/parity.md"
        awk -v a="${worst[0]}" -v b="${worst[1]}" -v c="${first:-1}" \
            'BEGIN { exit a > 2e-4 || b > 3e-3 || c > 2e-4 }' || bad=1
    done
    note "${#cases[@]} models; limits: fp32 2e-4, bf16 3e-3, at step 0 2e-4"
    return $bad
}

# killed PROGRAM NAME FLAGS...: runs it once unbroken and once with kill -9 and --resume, and compares.
killed() {
    program=$PWD/$1 name=$2
    shift 2
    mkdir -p "$dir/$name/unbroken" "$dir/$name/broken"
    (cd "$dir/$name/unbroken" && "$program" --run r "$@" >out 2>&1) ||
        { say "$name: the unbroken run fails: $(tail -n 1 "$dir/$name/unbroken/out")"; return 1; }
    log=$dir/$name/broken/runs/r/log.jsonl
    after=$((RANDOM % 100 + 20))
    (cd "$dir/$name/broken" && exec "$program" --run r "$@" >out 2>&1) &
    child=$!
    while kill -0 $child 2>/dev/null && [ "$(wc -l 2>/dev/null <"$log" || echo 0)" -lt $after ]; do
        sleep 0.01
    done
    kill -9 $child 2>/dev/null || say "$name: it ended before it was killed"
    wait $child 2>/dev/null || true
    lines=$(wc -l <"$log")
    (cd "$dir/$name/broken" && "$program" --run r --resume >>out 2>&1) ||
        { say "$name: --resume fails: $(tail -n 1 "$dir/$name/broken/out")"; return 1; }
    same=0
    cmp <(strip "$dir/$name/unbroken/runs/r/log.jsonl") <(strip "$log") || same=1
    cmp "$(newest "$dir/$name/unbroken/runs/r")" "$(newest "$dir/$name/broken/runs/r")" || same=1
    say "$name: killed with $lines lines in its log; in the end $([ $same = 0 ] || echo NOT) the same"
    return $same
}

step_resume() {
    need ./train_gpt_cuda ./train_gpt_cuda_fp32
    dir=$work/resume
    rm -rf "$dir"
    mkdir -p "$dir"
    text "$dir/text.txt"
    bad=0
    shape=(--data ../../text.txt --layers 3 --width 128 --heads 2 --seq-len 128 --batch-size 4
        --total-batch-tokens 1024 --steps 150 --checkpoint-every 17 --val-every 50 --val-tokens 1024)
    killed ./train_gpt_cuda flash-cm "${shape[@]}" --optimizer cm --attention flash || bad=1
    killed ./train_gpt_cuda flash-gpt2 --preset gpt2 "${shape[@]}" --optimizer muon --attention flash || bad=1
    killed ./train_gpt_cuda_fp32 fp32-adamw "${shape[@]}" --optimizer adamw || bad=1
    cudnn=", cuDNN too"
    if ! killed ./train_gpt_cuda cudnn-cm "${shape[@]}" --optimizer cm --attention cudnn; then
        if grep -q -e '--attention cudnn:' "$dir/cudnn-cm/unbroken/out"; then cudnn=", without cuDNN"; else bad=1; fi
    fi
    note "bf16 and fp32$cudnn"
    return $bad
}

# The data of the large runs, in the array `data`.
large_data() {
    if [ -n "${CHECK_DATA:-}" ]; then
        data=(--data "$CHECK_DATA" --val-data "${CHECK_VAL_DATA:-$CHECK_DATA}")
        source="the shards given"
        [ -n "${CHECK_VAL_DATA:-}" ] || source="the shards given, which are also the validation data"
        return
    fi
    source="made-up tokens (dev/gpu/shard.c), because no shards were given"
    data=(--data "$work/train.bin" --val-data "$work/val.bin")
    [ -f "$work/train.bin" ] || "$work/shard" "$work/train.bin" 20000000 1
    [ -f "$work/val.bin" ] || "$work/shard" "$work/val.bin" 1000000 2
}

step_train() {
    need ./train_gpt_cuda
    large_data
    run=$work/runs/train
    rm -rf "$run"
    # shellcheck disable=SC2086 # a list of flags
    ./train_gpt_cuda --preset gpt2 --optimizer cm --batch-size 32 --steps 300 --warmup 50 --val-every 100 \
        --val-tokens 262144 --checkpoint-every 0 "${data[@]}" --runs-dir "$work/runs" --run train \
        ${CHECK_FLAGS:-} | tee "$work/train.out"
    log=$run/log.jsonl
    first=$(field "$log" val_loss | head -n 1) last=$(field "$log" val_loss | tail -n 1)
    rate=$(field "$log" tok_s | tail -n 200 | median) mfu=$(field "$log" mfu | median)
    {
        say "Data: $source."
        say
        say "| step | training loss | validation loss | gradient norm | ms | tokens / s |"
        say "|---|---|---|---|---|---|"
        awk 'function f(name,   p, s) {
                p = index($0, "\"" name "\": ")
                s = p ? substr($0, p + length(name) + 4) : ""
                sub(/[,}].*/, "", s)
                return s == "null" ? "" : s
            }
            f("step") % 50 == 0 {
                printf "| %s | %s | %s | %s | %s | %s |\n", f("step"), f("train_loss"), f("val_loss"), \
                    f("grad_norm"), f("ms"), f("tok_s")
            }' "$log"
        say
        sed -n 's/^machine *//p; s/^peak memory/Peak memory/p' "$work/train.out"
    } >"$work/train.md"
    printf '{"data": %s, "first_val_loss": %s, "last_val_loss": %s, "tok_s": %s, "mfu": %s}' \
        "$(json_string "$source")" "$first" "$last" "${rate:-null}" "${mfu:-null}" >"$work/train.json"
    note "validation loss $first to $last, ${rate:-?} tokens/s, MFU ${mfu:-?}, on $source"
    # Whatever the data, a model that learns is far below where it began.
    awk -v a="$first" -v b="$last" 'BEGIN { exit !(b < a - 0.5) }'
}

step_bench() {
    need build/cuda/bench_cuda
    # shellcheck disable=SC2086 # a list of flags
    build/cuda/bench_cuda --json "$work/bench.json" ${CHECK_BENCH:-} | tee "$work/bench.md"
    note "$(grep -c '^|' "$work/bench.md") rows; $(sed -n 's/^\(A product.*\)/\1/p' "$work/bench.md")"
}

# measure LABEL BATCH OPTIMIZER FLAGS...: a row of the sweep from a short run.
measure() {
    label=$1 batch=$2 optimizer=$3
    shift 3
    rm -rf "$work/runs/sweep"
    # shellcheck disable=SC2086 # a list of flags
    if ./train_gpt_cuda --preset gpt2 --optimizer "$optimizer" --batch-size "$batch" --steps "${count:-14}" \
        --val-every 0 --val-tokens 1024 --keep-checkpoints 0 "${data[@]}" --runs-dir "$work/runs" --run sweep \
        "$@" ${CHECK_FLAGS:-} >"$work/sweep.out" 2>&1; then
        log=$work/runs/sweep/log.jsonl
        ms=$(field "$log" ms | tail -n 10 | median) rate=$(field "$log" tok_s | tail -n 10 | median)
        mfu=$(field "$log" mfu | tail -n 10 | median) stated=$(field "$log" mfu_stated | tail -n 10 | median)
        memory=$(sed -n 's/.*on the GPU \([0-9.]*\) MB.*/\1/p' "$work/sweep.out")
        say "| $batch | $label | $ms | $rate | ${mfu:-} | ${stated:-} | ${memory:-} |" | tee -a "$work/sweep.md"
        printf '%s{"batch_size": %s, "what": %s, "ms": %s, "tok_s": %s, "mfu": %s, "mfu_stated": %s, "mb": %s}' \
            "$comma" "$batch" "$(json_string "$label")" "${ms:-null}" "${rate:-null}" "${mfu:-null}" "${stated:-null}" \
            "${memory:-null}" >>"$work/sweep.json"
        comma=", "
        rows=$((rows + 1))
    elif grep -q 'the run needs' "$work/sweep.out"; then
        say "| $batch | $label | does not fit | | | | |" | tee -a "$work/sweep.md"
    else
        tail -n 3 "$work/sweep.out"
        say "| $batch | $label | fails | | | | |" >>"$work/sweep.md"
        bad=1
    fi
}

step_sweep() {
    need ./train_gpt_cuda
    large_data
    bad=0 rows=0 comma=""
    # The attention that the long run has chosen; cuDNN compiles its plans for some seconds a run.
    attention=$(sed -n 's/.*"attention": "\([a-z]*\)".*/\1/p' "$work/runs/train/run.json" 2>/dev/null | head -n 1)
    [ "$attention" = cudnn ] || attention=flash
    {
        say "| batch | optimizer | ms a step | tokens / s | MFU (measured peak) | MFU (stated) | MB on the GPU |"
        say "|---|---|---|---|---|---|---|"
    } >"$work/sweep.md"
    printf '[' >"$work/sweep.json"
    for batch in 16 64 4 32 8; do # the ends first, should the time run out
        for optimizer in cm muon adamw; do measure "$optimizer" "$batch" "$optimizer" --attention "$attention"; done
        [ "$batch" != 16 ] || measure "cm, CUDA graph" 16 cm --attention "$attention" --cuda-graph on
        [ "$batch" != 64 ] || count=5 measure "cm, 524288 tokens a step" 64 cm --attention "$attention" \
            --total-batch-tokens 524288
        note "$rows runs with attention $attention"
    done
    return $bad
}

# tool NAME LOG COMMAND...: errors in kernels of ours fail; the libraries' have their own habits.
tool() {
    name=$1 log=$2
    shift 2
    status=0
    timeout 30 "$sanitizer" --tool "$name" --print-limit 50 --error-exitcode 9 "$@" >"$log" 2>&1 || status=$?
    ours=$(grep -E '^=.* (at|in) .*\+0x[0-9a-f]+' "$log" |
        grep -v -i -c -E 'host frame|cutlass|cublas|cudnn|xmma|gemm|splitk|nvjet' || true)
    summary=$(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')
    say "$name: status $status, $ours lines about kernels of ours; ${summary:-no summary}"
    result="$result${result:+; }$name: ${summary:-none} (status $status)"
    if [ "$status" = 124 ]; then return 0; fi # too slow is not wrong; the summary says so
    if [ "$status" = 9 ] && [ "$ours" = 0 ]; then return 0; fi
    if [ "$status" != 0 ]; then grep -E '^=' "$log" | head -n 30; fi
    return $status
}

step_sanitizer() {
    need ./train_gpt_cuda ./train_gpt_cuda_fp32
    sanitizer=
    for at in "$(command -v compute-sanitizer || true)" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
        "${CUDA_HOME:-/usr/local/cuda}/compute-sanitizer/compute-sanitizer"; do
        if [ -z "$sanitizer" ] && [ -n "$at" ] && [ -x "$at" ]; then sanitizer=$at; fi
    done
    [ -n "$sanitizer" ] || skip "there is no compute-sanitizer on this machine"
    dir=$work/sanitizer
    mkdir -p "$dir"
    text "$dir/text.txt"
    small=(--data "$dir/text.txt" --runs-dir "$dir" --layers 1 --width 64 --heads 2 --seq-len 80 --batch-size 2
        --steps 2 --val-tokens 160 --keep-checkpoints 0 --optimizer cm --attention flash)
    bad=0 result=""
    tool memcheck "$dir/memcheck.log" ./train_gpt_cuda "${small[@]}" --run a || bad=1
    tool racecheck "$dir/racecheck.log" ./train_gpt_cuda "${small[@]}" --run b || bad=1
    tool initcheck "$dir/initcheck.log" ./train_gpt_cuda "${small[@]}" --run c || bad=1
    tool memcheck "$dir/memcheck_fp32.log" ./train_gpt_cuda_fp32 --preset llama "${small[@]}" --run d || bad=1
    note "$result"
    return $bad
}

# ---- the report

gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1 || true; }

# attach FILE TITLE: a part of the report, if there is one.
attach() {
    [ ! -s "$1" ] || { say; say "## $2"; say; cat "$1"; }
}

report() {
    mkdir -p "$out"
    {
        say "# $(gpu name), driver $(gpu driver_version)"
        say
        say "$(date -u '+%Y-%m-%d %H:%M') UTC; clocks now $(gpu clocks.sm), at most $(gpu clocks.max.sm);" \
            "power limit $(gpu power.limit); $(gpu memory.total) of memory;" \
            "$(sed -n 's/.*release \([0-9.]*\).*/CUDA \1/p' "$work/environment.log" 2>/dev/null | head -n 1)."
        say
        say "| step | | s | |"
        say "|---|---|---|---|"
        for row in "${rows[@]}"; do
            IFS='|' read -r name result seconds text <<<"$row"
            say "| $name | $result | $seconds | $text |"
        done
        attach "$work/parity.md" "CUDA against the CPU"
        attach "$work/train.md" "300 steps of GPT-2 124M, Compositional Muon"
        attach "$work/sweep.md" "GPT-2 124M at 1024 tokens a sequence"
        attach "$work/bench.md" "Benchmark"
    } >"$out/report.md"
    {
        printf '{"device": %s, "driver": %s, "clock": %s, "date": %s, "failed": %s, "steps": [' \
            "$(json_string "$(gpu name)")" "$(json_string "$(gpu driver_version)")" "$(json_string "$(gpu clocks.max.sm)")" \
            "$(json_string "$(date -u '+%Y-%m-%dT%H:%M:%SZ')")" "$failed"
        comma=
        for row in "${rows[@]}"; do
            IFS='|' read -r name result seconds text <<<"$row"
            printf '%s{"name": "%s", "result": "%s", "seconds": %s, "note": %s}' "$comma" "$name" "$result" \
                "$seconds" "$(json_string "$text")"
            comma=", "
        done
        printf '],\n"train": '
        if [ -s "$work/train.json" ]; then cat "$work/train.json"; else printf null; fi
        printf ',\n"sweep": '
        if [ -s "$work/sweep.json" ]; then cat "$work/sweep.json"; printf ']'; else printf '[]'; fi
        printf ',\n"bench": '
        # A benchmark that was cut short has left half a file.
        if [ -s "$work/bench.json" ] && [ "$(tail -c 3 "$work/bench.json")" = "]}" ]; then cat "$work/bench.json"
        else printf null; fi
        printf '}\n'
    } >"$out/report.json"
    for name in bench.md bench.json; do [ ! -s "$work/$name" ] || cp "$work/$name" "$out/"; done
    [ ! -s "$work/runs/train/log.jsonl" ] || cp "$work/runs/train/log.jsonl" "$out/train_log.jsonl"
    for entry in "${steps[@]}"; do
        name=${entry%%|*}
        [ -s "$work/$name.log" ] || continue
        say "==== $name"
        tail -n 400 "$work/$name.log"
    done >"$out/logs.txt"
}

# ---- the command line

dry=0 out=${OUT:-build/gpu-report} step=
while [ $# -gt 0 ]; do
    case $1 in
    --data | --val-data | --out | --step)
        [ $# -ge 2 ] || { say "$1 needs a value" >&2; exit 2; }
        case $1 in
        --data) export CHECK_DATA=$2 ;;
        --val-data) export CHECK_VAL_DATA=$2 ;;
        --out) out=$2 ;;
        --step) step=$2 ;;
        esac
        shift 2
        ;;
    --dry) dry=1; shift ;;
    -h | --help) sed -n '2,/^set/p' "$self" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
    *) say "unknown argument $1; see --help" >&2; exit 2 ;;
    esac
done
if [ -n "$step" ]; then
    "step_$step"
    exit
fi
if [ $dry = 1 ]; then
    for entry in "${steps[@]}"; do
        IFS='|' read -r name limit text <<<"$entry"
        printf '%-12s at most %3s s   %s\n' "$name" "$limit" "$text"
    done
    exit 0
fi
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU' && [ ! -e /dev/nvidia0 ]; then
    say "There is no NVIDIA GPU here (nvidia-smi names none): nothing was checked." >&2
    exit 1
fi
rm -rf "$work"
mkdir -p "$work/runs"
rows=() failed=0
for entry in "${steps[@]}"; do
    IFS='|' read -r name limit text <<<"$entry"
    left=$((${CHECK_SECONDS:-570} - SECONDS)) start=$SECONDS status=0
    if [ $left -lt 10 ]; then
        rows+=("$name|FAIL|0|no time was left")
        failed=$((failed + 1))
        continue
    fi
    [ "$left" -ge "$limit" ] || limit=$left
    printf '%-12s ' "$name"
    timeout --kill-after=5 "$limit" bash "$self" --step "$name" >"$work/$name.log" 2>&1 </dev/null || status=$?
    case $status in
    0) result=PASS ;;
    77) result=SKIP ;;
    *) result=FAIL failed=$((failed + 1)) ;;
    esac
    text=
    [ ! -f "$work/$name.note" ] || text=$(tr '|' '/' <"$work/$name.note")
    [ -n "$text" ] || text=$(tail -n 1 "$work/$name.log" | tr '|' '/' | cut -c 1-200)
    [ $status != 124 ] && [ $status != 137 ] || text="ran past $limit s; $text"
    rows+=("$name|$result|$((SECONDS - start))|$text")
    printf '%s %4s s  %s\n' "$result" $((SECONDS - start)) "$text"
    report
done
report
say "$((${#rows[@]} - failed)) of ${#rows[@]} steps without failure; see $out/report.md"
[ $failed = 0 ]
