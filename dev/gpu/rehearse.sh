#!/usr/bin/env bash
# shellcheck disable=SC2016 # dollars in single quotes are for the stand-ins
# Rehearses dev/gpu/check.sh without a GPU: the whole script at toy size with the emulator's programs (`make test`
# builds them), then every way in which a visit can go wrong. The small programs below stand in for tools that
# need a device. They print what these tools print, so that the parsing of their output is tested too.
# Ends with "N passed, N failed". usage: bash dev/gpu/check.sh --rehearse
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
emu=$PWD/${BUILD:-build}/emu
dir=$PWD/${BUILD:-build}/rehearse
for program in "$emu/train_gpt" "$emu/train_gpt_fp32" "$emu/generate_fp32" "$emu/test_gpt_cuda" ./train_gpt ./generate; do
    [ -x "$program" ] || { echo "there is no $program: run make test first" >&2; exit 1; }
done
rm -rf "$dir"
mkdir -p "$dir/bin" "$dir/llmc" "$dir/prebuilt" "$dir/tmp"
export OMP_WAIT_POLICY=passive
real_python=$(command -v "${CHECK_PYTHON:-python3}" || true)

stand_in() { # NAME: writes the program NAME from stdin
    cat >"$dir/$1"
    chmod +x "$dir/$1"
}

# ---- stand-ins

stand_in bin/nvidia-smi <<'END'
#!/bin/sh
case $* in
-L) echo "GPU 0: Rehearsal 9000 (UUID: GPU-0)" ;;
*query-gpu=name,*)
    [ "${REHEARSE_SMI:-}" = old ] && { echo "Field \"mig.mode.current\" is not a valid field to query."; exit 2; }
    echo 'Rehearsal 9000, 580.00, 9.0, 345 MHz, 1980 MHz, 2619 MHz, 2619 MHz, 700.00 W, 81559 MiB, Enabled, Disabled, Enabled, 30, 5' ;;
*query-gpu=name*) echo "Rehearsal 9000, \"quoted\" \\ GPU" ;;
*query-gpu=driver_version*) echo 580.00 ;;
*query-gpu=compute_cap*) echo 9.0 ;;
*query-gpu=clocks.max.sm*) echo "1980 MHz" ;;
*query-gpu=power.limit*) echo "700.00 W" ;;
*query-gpu=mig*) echo "Field \"mig.mode.current\" is not a valid field to query."; exit 2 ;;
*query-gpu=*) echo "[N/A]" ;;
*) echo "| NVIDIA-SMI 580.00   Driver Version: 580.00   CUDA Version: 13.0 |" ;;
esac
END
stand_in bin/nvcc <<'END'
#!/bin/sh
echo "Cuda compilation tools, release 13.0, V13.0.88"
END
# "Builds" by linking the emulator's programs. REHEARSE is fail, slow, or the name of a program and a script that
# replaces the program.
stand_in bin/make <<'END'
#!/bin/bash
set -eu
[ "$*" != --version ] || { echo "GNU Make, rehearsed"; exit; }
[ "${REHEARSE:-}" != slow ] || sleep 60
for target in "$@"; do
    name=${target##*/}
    case $name in
    -* | *=* | twin.o | twin_plan.o) continue ;;
    train_gpt_cuda) from=$REHEARSE_EMU/train_gpt ;;
    train_gpt_cuda_fp32) from=$REHEARSE_EMU/train_gpt_fp32 ;;
    generate_cuda) from=$REHEARSE_EMU/generate_fp32 ;;
    train_gpt | generate) from=$PWD/$name ;;
    bench_cuda) from=$REHEARSE_DIR/bench_cuda ;;
    test_layers) from=$REHEARSE_EMU/$name ;;
    *) from=$REHEARSE_DIR/empty_test ;; # make test has run the others
    esac
    [ "${REHEARSE:-}" != fail ] || { echo "$name: error: rehearsed"; continue; }
    mkdir -p "$CHECK_ROOT/build/cuda"
    rm -f "$CHECK_ROOT/$target"
    wrong=${REHEARSE:-}
    if [ "$wrong" != "${wrong#"$name" }" ]; then
        printf '#!/bin/bash\nreal=%s\n%s\n' "$from" "${wrong#"$name" }" >"$CHECK_ROOT/$target"
        chmod +x "$CHECK_ROOT/$target"
    else
        ln -s "$from" "$CHECK_ROOT/$target"
    fi
done
[ "${REHEARSE:-}" != fail ] || exit 2
END
stand_in empty_test <<'END'
#!/bin/sh
echo "1 passed, 0 failed"
END
stand_in programs_test <<'END'
#!/bin/sh
for program in "$TRAIN_GPT" "$GENERATE" "$TRAIN_CUDA" "$TRAIN_CUDA_FP32" "$GENERATE_CUDA"; do
    "$program" --help >/dev/null || exit 1
done
echo "5 passed, 0 failed"
END
stand_in bench_cuda <<'END'
#!/bin/sh
while [ $# -gt 1 ]; do case $1 in --only) only=$2 ;; --json) json=$2 ;; esac; shift; done
printf '\n### %s\n\n| what | ms |\n|---|---|\n| rehearsed | 1.5 |\nA product of 8192 x 8192 x 8192 reaches 700 TFLOP/s.\n' "$only"
printf '{"device": "rehearsal", "rows": [\n  {"section": "%s", "name": "x", "ms": 1.5, "tflops": 600}\n]}\n' "$only" >"$json"
END
stand_in bin/ncu <<'END'
#!/bin/bash
if [ "${REHEARSE_NCU:-}" = refused ]; then echo "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"; exit 1; fi
while [ $# -gt 0 ] && [[ $1 != /* ]]; do shift; done
"$@" >/dev/null || exit
cat <<'TEXT'
==PROF== Profiling "flash_forward_kernel" - 0: 0%....50%....100% - 9 passes
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    DRAM Frequency                  Ghz         2.62
    DRAM Throughput                   %        41.20
    Duration                         us     1,234.50
    Compute (SM) Throughput           %        63.10
    Registers Per Thread register/thread             255
    Achieved Occupancy                        %        12.40
TEXT
END
stand_in bin/compute-sanitizer <<'END'
#!/bin/bash
if [ "$1" = --help ]; then echo "  --kernel-name-exclude arg   key1=val1,key2=val2,..."; exit; fi
tool=$2
while [ $# -gt 0 ] && [[ $1 != /* ]]; do shift; done
echo "========= COMPUTE-SANITIZER"
# One run is enough here. The step `kernels` runs the tests.
if [ "$tool ${1##*/}" = "racecheck test_layers" ]; then "$@" || exit; fi
if [ "${REHEARSE_SANITIZER:-}" = "$tool" ]; then
    echo "========= Error: Race reported between Write access at flash_forward_kernel(float *)+0x2c0 and Read access at flash_forward_kernel(float *)+0x3a0 [8 hazards]"
    echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"
    exit 9
fi
if [ "${REHEARSE_SANITIZER:-} $tool" = "broken racecheck" ]; then
    echo "========= Internal Sanitizer Error: The Sanitizer failed to handle a hardware exception."
    echo "========= Target application returned an error"
    echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"
    exit 9
fi
if [ "$tool" = racecheck ]; then echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
else echo "========= ERROR SUMMARY: 0 errors"; fi
END
stand_in llmc/train_gpt2cu <<'END'
#!/bin/sh
echo "| device                | rehearsal |"
for i in 1 2 3 4 5 6; do
    echo "step    $i/6 | loss 10.990000 (+nanz)| norm 15.0000 (+nanz)| lr 8.57e-07 | 1100.5$i ms | 40.1% bf16 MFU | 476000 tok/s"
done
echo "total average iteration time: 1100.000000 ms"
END
# Without PyTorch, a python3 that prints what the benchmark would print.
if [ -z "$real_python" ] || ! "$real_python" -c 'import torch' 2>/dev/null; then
    stand_in bin/python-rehearsed <<END
#!/bin/sh
case "\$*" in
*torch_gpt2.py*) echo '{"peer": "pytorch 0", "mode": "compile", "sdpa": "flash", "result": "ok", "how": "median of 3 whole steps", "ms": 1130.25, "update_ms": 5.5, "tok_s": 463868, "mb": 40000.5}' ;;
*"import torch"*) ;;
*) exec ${real_python:-false} "\$@" ;;
esac
END
    if [ -n "$real_python" ]; then export CHECK_PYTHON=$dir/bin/python-rehearsed; fi
fi
for pair in train_gpt_cuda=$emu/train_gpt train_gpt_cuda_fp32=$emu/train_gpt_fp32 test_layers=$emu/test_layers; do
    cp "${pair#*=}" "$dir/prebuilt/${pair%%=*}"
done
tar -czf "$dir/prebuilt.tar.gz" -C "$dir/prebuilt" .

# ---- tools

passed=0 failed=0 told=""
expect() { # DESCRIPTION COMMAND...
    local description=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $description"
        [ -z "$told" ] && [ -s "$dir/said" ] && sed 's/^/    /' "$dir/said" | cut -c 1-240 | tail -n 20
        told=1
    fi
}
# visit ENVIRONMENT... -- ARGUMENTS: runs check.sh. Sets `status` and writes $dir/said and $dir/out.
visit() {
    local settings=()
    while [ "$1" != -- ]; do settings+=("$1"); shift; done
    shift
    rm -rf "$dir/out" "$dir/tree"
    [ "${keep:-0}" = 1 ] || rm -rf "$dir/work"
    status=0 told=""
    env PATH="$dir/bin:$PATH" REHEARSE_EMU="$emu" REHEARSE_DIR="$dir" CHECK_TOY=1 CHECK_ROOT="$dir/tree" CHECK_WORK="$dir/work" \
        CHECK_SECONDS=300 CHECK_OUT="$dir/out" OUT="$dir/out" CHECK_MAKE="$dir/bin/make" CUDA_HOME=/nonexistent \
        CHECK_CUDA_TEST="$dir/programs_test" CHECK_PREBUILT="" CHECK_LLMC="" "${settings[@]}" \
        bash dev/gpu/check.sh "$@" >"$dir/said" 2>&1 || status=$?
}
result() { # STEP RESULT: whether the report has this result of the step
    grep -q "^| $1 | $2 |" "$dir/out/report.md"
}
says() { grep -q -e "$1" "$dir/out/report.md"; }
ended() { [ "$status" = "$1" ]; }
valid() { [ -z "$real_python" ] || "$real_python" -m json.tool <"$dir/out/report.json" >/dev/null; }
started=$SECONDS

# ---- a visit without faults

visit -- --llmc "$dir/llmc"
cp "$dir/out/report.md" "$dir/report.md"
cp "$dir/out/report.json" "$dir/report.json"
expect "a good visit ends with $status" ended 0
for step in environment build kernels parity graph resume speed large adapters peers bench programs ncu sanitizer train; do
    expect "a good visit: $step" result $step passed
done
expect "report.json is valid" valid
expect "no report of invalid JSON" test -z "$(grep 'not valid JSON' "$dir/out/report.md" || true)"
expect "at most eight files come back" test "$(find "$dir/out" -type f | wc -l)" -le 8
expect "the row of AdamW" says '^| 124M | 2 | 128 | adamw | --attention flash | ok | [0-9.]* | '
expect "the row of CM" says '^| 124M | 2 | 128 | cm | --attention flash | ok | [0-9.]* | '
expect "the update's time" says -- '--dry-run | estimate\|"update_ms"'
expect "llm.c's row, its median and our ratio" says '^| 124M | llm.c | 32 .* | ok | 1100.545 | 476389 |.*batch 2'
expect "PyTorch's row" says '^| 124M | pytorch [0-9].* compile, SDPA flash | ok | [0-9.]* | [0-9]'
expect "ncu's row" says '^| flash_forward_kernel | 1234.50 | 41.20 | 63.10 | 12.40 | 255 |'
expect "SIGTERM" says '^| cm flash, TERM | passed | SIGTERM at [0-9]* lines of log, status 143 '
expect "kill -9" says '^| fp32 adamw, KILL | passed |'
expect "CUDA graph" says '^| flash | passed | log and checkpoint are equal'
expect "racecheck" says '^| racecheck test_attention | passed | RACECHECK SUMMARY: 0 hazards'
expect "Muon against CM" says '^| [0-9]* | [0-9.]* | [0-9.]* |$'
expect "which programs were taken" says 'Programs: .*train_gpt_cuda built here'
expect "facts about the GPU" says '^| clocks.max.sm | 1980 MHz |'

# ---- builds

visit REHEARSE=fail -- --only environment,build,graph --prebuilt "$dir/prebuilt.tar.gz"
expect "a failed build ends with $status" ended 1
expect "a failed build fails" result build FAILED
expect "a failed build: the prebuilt programs are taken" result graph passed
expect "a failed build: the report says so" says 'Programs: train_gpt_cuda prebuilt'
visit REHEARSE=fail -- --only build,graph
expect "a failed build without prebuilt programs" result graph FAILED
visit CHECK_MAKE=/nonexistent/make -- --only build,graph --prebuilt "$dir/prebuilt"
expect "no make: ends with $status" ended 0
expect "no make: skipped" result build skipped
expect "no make: prebuilt programs" result graph passed
visit REHEARSE=slow CHECK_LIMIT=build=2 -- --only build,graph --prebuilt "$dir/prebuilt"
expect "a slow build ends with $status" ended 2
expect "a slow build is not known" result build 'not known'
expect "a slow build: prebuilt programs" result graph passed
visit REHEARSE=slow CHECK_LIMIT=build=2 -- --only build,graph
expect "a slow build and nothing prebuilt" result graph 'not known'

# ---- failures and unknown results

visit REHEARSE='test_layers echo 7 passed, 1 failed; exit 1' -- --only kernels
expect "a failing test ends with $status" ended 1
expect "a failing test" result kernels FAILED
expect "a failing test is named" says '^| test_layers | FAILED | status 1: 7 passed, 1 failed'
visit REHEARSE='test_layers echo 0 passed, 0 failed' -- --only kernels
expect "a test that tests nothing fails" result kernels FAILED
visit REHEARSE='test_layers sleep 60' CHECK_LIMIT=kernels=12 test_limit=2 -- --only kernels
expect "a hanging test ends with $status" ended 2
expect "a hanging test is not known" result kernels 'not known'
expect "the tests after it were run" says '^| test_gpt_cuda | passed'
visit REHEARSE='test_attention echo $$ >"$REHEARSE_DIR/pid"; exec sleep 60' CHECK_LIMIT=kernels=3 -- --only kernels,graph
expect "a step past its limit" result kernels 'not known'
expect "the next step runs" result graph passed
expect "what ran past its limit is ended" test ! -d "/proc/$(cat "$dir/pid")"
visit REHEARSE='train_gpt_cuda case "$*" in *"cuda-graph on"*) exec $real "$@" --seed 2 ;; *) exec $real "$@" ;; esac' -- --only graph
expect "a graph with other numbers fails" result graph FAILED
visit REHEARSE='train_gpt_cuda trap "kill -9 \$!; exit 1" TERM; $real "$@" & wait $!' -- --only resume
expect "a run that a signal just ends fails" result resume FAILED
expect "why it fails" says 'TERM | FAILED | .*not 143'
visit REHEARSE='train_gpt_cuda case "$*" in *resume*) exec $real "$@" --lr 0.5 ;; *) exec $real "$@" ;; esac' -- --only resume
expect "a resumed run that ends elsewhere fails" result resume FAILED
visit REHEARSE='train_gpt_cuda if [ -e "runs/r/log.jsonl" ] || [[ $PWD != */unbroken ]]; then exit; fi; exec $real "$@"' -- --only resume
expect "a signal that comes too late tells nothing" result resume 'not known'
visit REHEARSE='train_gpt_cuda exec $real "$@" --lr 0.5' -- --only parity
expect "other losses than the CPU's fail" result parity FAILED
visit REHEARSE='train_gpt_cuda case "$*" in *" cm "*) echo error: CUDA is unwell; exit 1 ;; *) exec $real "$@" ;; esac' -- --only speed
expect "a row that fails" result speed FAILED
expect "a row that fails is named" says '| cm | --attention flash | failed |'
expect "the other rows stand" says '| adamw | --attention flash | ok |'
visit REHEARSE='train_gpt_cuda case "$*" in *"batch-size 2 "*"steps 6"*) echo "error: the run needs 9 MiB and the device has 4 MiB free: the largest --batch-size that fits is 3; x"; exit 1 ;; *) exec $real "$@" ;; esac' -- --only speed
expect "a batch that does not fit" says '| does not fit |'
# Flags that the trainer may not have yet: this trainer lists them in --help and ignores them.
visit REHEARSE='train_gpt_cuda if [ "$1" = --help ]; then $real --help
    printf "%s\n" "  --logit-rows N  rows (default 0)" "  --gelu NAME  where" "       (fused or unfused; default fused)" \
        "  --gemm NAME  how (first or measured; default first)" "  --msign-compute NAME  in (bf16 or fp32; default bf16)"
    exit
fi
args=()
while [ $# -gt 0 ]; do case $1 in --logit-rows | --gelu | --gemm | --msign-compute) shift ;; *) args+=("$1") ;; esac; shift; done
exec $real "${args[@]}"' -- --only speed
expect "new flags: $status" ended 0
for row in "logit-rows 667" "logit-rows 8192" "gelu unfused" "gemm measured" "msign-compute fp32"; do
    expect "--$row has its row" says "--attention flash --$row | ok |"
done
expect "the default has no row of its own" test -z "$(grep -e '--gelu fused' "$dir/out/report.md" || true)"
visit REHEARSE_SANITIZER=racecheck -- --only sanitizer
expect "a race fails" result sanitizer FAILED
visit REHEARSE_SANITIZER=broken -- --only sanitizer
expect "a sanitizer that fails itself passes nothing" result sanitizer "not known"
expect "its message is in the report" says "racecheck test_layers | not known | ========= Internal Sanitizer Error"
visit REHEARSE_NCU=refused -- --only ncu
expect "ncu that may not profile: ends with $status" ended 0
expect "ncu that may not profile is skipped" result ncu skipped
visit CHECK_PYTHON=/nonexistent/python3 -- --only peers
expect "no peers at all" result peers skipped

# ---- time and signals

visit CHECK_SECONDS=22 REHEARSE='test_attention sleep 60' -- --only kernels,graph,speed
expect "no time ends with $status" ended 2
expect "no time: what was not reached" result speed 'not run'
expect "no time: the end comes in time" grep -q 'not known or not run, of 3 steps' "$dir/said"
rm -rf "$dir/out" "$dir/work" "$dir/pid"
env PATH="$dir/bin:$PATH" REHEARSE_EMU="$emu" REHEARSE_DIR="$dir" CHECK_TOY=1 CHECK_ROOT="$dir/tree" CHECK_WORK="$dir/work" \
    CHECK_OUT="$dir/out" CHECK_MAKE="$dir/bin/make" CHECK_PREBUILT="" REHEARSE='test_attention echo $$ >"$REHEARSE_DIR/pid"; exec sleep 60' \
    bash dev/gpu/check.sh >"$dir/said" 2>&1 &
visitor=$!
tries=0
until [ -s "$dir/pid" ] || [ $tries -gt 300 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -TERM $visitor
status=0
wait $visitor || status=$?
expect "a stopped visit ends with $status" ended 2
expect "a stopped visit has its report" result kernels 'not known'
expect "a stopped visit says what was not run" result train 'not run'
expect "a stopped visit: report.json is valid" valid
visit REHEARSE_SMI=old -- --from ncu
expect "quotes in names survive" grep -q '"name": "Rehearsal 9000, \\"quoted\\" \\\\ GPU"' "$dir/out/report.json"
expect "an older nvidia-smi is asked one by one" grep -q '"power.limit": "700.00 W"' "$dir/out/report.json"
expect "--from leaves the first steps out" test "$(grep -c '^| \(kernels\|bench\) |' "$dir/out/report.md" || true)" = 0
expect "--from runs the rest" result sanitizer passed
keep=1 visit -- --only bench
expect "a second visit keeps what the first has found" result sanitizer passed
expect "a second visit adds what it finds" result bench passed
expect "a second visit keeps the rows" says '^| flash_forward_kernel | 1234.50'
expect "a second visit counts its own steps" grep -q ' of 1 steps' "$dir/said"
visit -- --only nothing
expect "an unknown step is refused" ended 1
visit -- --dry
expect "--dry lists the steps" grep -q '^sanitizer  *at most' "$dir/said"

echo "rehearsed in $((SECONDS - started)) s"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
