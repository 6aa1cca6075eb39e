# The steps of check.sh and their tools. check.sh sources this file. Each step runs in its own shell, under its
# limit. A step fails if it calls `bad` or exits with another status than 0, 75 (not known) and 77 (skipped).
# shellcheck shell=bash disable=SC2154 # work, root, out, step, python and the like are check.sh's

# ---- tools

say() { printf '%s\n' "$*"; }
note() { say "$*" >"$work/$step.note"; say "$*"; }           # the text of the step in the summary
skip() { note "$*"; exit 77; }
bad() { say "$*" >>"$work/$step.failed"; say "FAIL $*"; }    # the step fails
unknown() { say "$*" >>"$work/$step.unknown"; say "not known: $*"; }
now() { date -u '+%Y-%m-%dT%H:%M:%SZ'; }
left() { say $((CHECK_END - $(date +%s) - 10)); }            # seconds that are left of the visit

# check_row WHAT RESULT DETAIL SECONDS
check_row() {
    printf '%s\t%s\t%s\t%s\t%s\n' "$step" "$1" "$2" "$(say "$3" | tr '\t|' ' /')" "$4" >>"$work/checks.tsv"
    say "$1: $2; $3"
}

# limited SECONDS COMMAND...: returns the exit status of the command, or 124 if it ran past. The command runs in
# the background, so that a signal to this shell ends it too.
running=
limited() {
    local seconds=$1 status=0 start=$SECONDS
    shift
    timeout --kill-after=4 "$seconds" "$@" &
    running=$!
    wait $running || status=$?
    running=
    if [ $status = 137 ] && [ $((SECONDS - start)) -ge "$seconds" ]; then status=124; fi
    return $status
}
stop_running() {
    [ -z "$running" ] || { kill -TERM "$running" 2>/dev/null && wait "$running"; } || true
    exit 143
}

# field FILE NAME: prints the numbers of a member of a file of JSON lines, one a line, without null.
field() { [ ! -f "$1" ] || sed -n "s/.*\"$2\": \([-0-9][-0-9.e+]*\).*/\1/p" "$1"; }
text_field() { [ ! -f "$1" ] || sed -n "s/.*\"$2\": \"\([^\"]*\)\".*/\1/p" "$1"; }
median() { sort -g | awk '{ x[NR] = $1 } END { if (NR) printf "%.10g\n", (x[int((NR + 1) / 2)] + x[int(NR / 2) + 1]) / 2 }'; }
strip() { sed 's/, "ms".*//' "$1"; }  # a log without its times
newest() { find "$1/checkpoints" -name 'step_*.ckpt' 2>/dev/null | sort | tail -n 1; }
lines() { wc -l 2>/dev/null <"$1" || say 0; }

# text FILE: writes about 200 kB of sentences, unless the file exists.
# shellcheck source=dev/test/sentences.sh
. "$here/../test/sentences.sh"
text() { [ -s "$1" ] || sentences 6000 >"$1"; }

# deviations A B: prints "step difference" for every training and validation loss of two logs. The difference is
# relative. Fails if the logs have different steps, or if a loss is not a number.
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

# ---- the machine

find_gpu() {
    local name names all
    names="name driver_version compute_cap clocks.sm clocks.max.sm clocks.mem clocks.max.mem power.limit memory.total
        ecc.mode.current mig.mode.current persistence_mode temperature.gpu pcie.link.gen.current"
    names=$(say "$names" | tr -s ' \n' ' ')
    # One call, because each may take a second. A driver that does not know all fields is asked one by one.
    if all=$(nvidia-smi --query-gpu="${names// /,}" --format=csv,noheader 2>/dev/null); then
        say "$all" | head -n 1 | awk -v names="$names" '{
            split(names, n, " "); k = split($0, v, ", ")
            for (i = 1; i <= k; i++) print n[i] "=" v[i] }' >"$work/gpu"
        return
    fi
    for name in $names; do
        say "$name=$(nvidia-smi --query-gpu="$name" --format=csv,noheader 2>/dev/null | head -n 1 || true)"
    done >"$work/gpu"
}

first_of() { # FILE...: prints the first that exists
    local file
    for file in "$@"; do if [ -e "$file" ]; then say "$file"; return; fi; done
}

# Writes env.sh, the paths of nvcc, headers and libraries. Python's wheels may have what the toolkit lacks: pip
# installs cuDNN, NVRTC and cuBLAS with PyTorch.
find_paths() {
    local toolkit wheels="" lib cpath="" library="" ld="" bin=""
    lib=$(command -v nvcc || first_of ${CUDA_HOME:+"$CUDA_HOME/bin/nvcc"} /usr/local/cuda/bin/nvcc /usr/local/cuda-*/bin/nvcc /opt/cuda/bin/nvcc)
    [ -z "$lib" ] || lib=$(readlink -f "$lib")
    toolkit=${lib%/bin/nvcc}
    [ -z "$toolkit" ] || bin=$toolkit/bin
    if command -v "$python" >/dev/null; then
        wheels=$(timeout 20 "$python" -c 'import nvidia; print("\n".join(nvidia.__path__))' 2>/dev/null | head -n 1 || true)
    fi
    local cublas_h cublas_so cudnn_h cudnn_so nvrtc_so
    cublas_h=$(first_of ${toolkit:+"$toolkit/include/cublasLt.h" "$toolkit"/targets/*/include/cublasLt.h} /usr/include/cublasLt.h \
        ${wheels:+"$wheels"/cu13/include/cublasLt.h "$wheels"/cublas/include/cublasLt.h})
    cublas_so=$(first_of ${toolkit:+"$toolkit/lib64/libcublasLt.so" "$toolkit"/targets/*/lib/libcublasLt.so} \
        /usr/lib/x86_64-linux-gnu/libcublasLt.so ${wheels:+"$wheels"/cu13/lib/libcublasLt.so* "$wheels"/cublas/lib/libcublasLt.so*})
    cudnn_h=$(first_of ${toolkit:+"$toolkit/include/cudnn_backend.h"} /usr/include/cudnn_backend.h \
        /usr/include/x86_64-linux-gnu/cudnn_backend.h ${wheels:+"$wheels/cudnn/include/cudnn_backend.h"})
    cudnn_so=$(first_of ${toolkit:+"$toolkit/lib64/libcudnn.so.9"} /usr/lib/x86_64-linux-gnu/libcudnn.so.9 \
        ${wheels:+"$wheels/cudnn/lib/libcudnn.so.9"})
    nvrtc_so=$(first_of ${toolkit:+"$toolkit"/lib64/libnvrtc.so.*} ${wheels:+"$wheels"/cu13/lib/libnvrtc.so.* "$wheels"/cuda_nvrtc/lib/libnvrtc.so.*})
    for lib in "$cublas_h" "$cudnn_h"; do
        case $lib in "" | /usr/include/* | "${toolkit:-none}"/*) ;; *) cpath=$cpath:${lib%/*} ;; esac
    done
    for lib in "$cublas_so" "$nvrtc_so" "$cudnn_so"; do
        case $lib in "" | /usr/lib/*) ;; *) ld=$ld:${lib%/*} ;; esac
    done
    # A wheel has only libcublasLt.so.13, and the linker looks for libcublasLt.so.
    case $cublas_so in
    *.so | "") ;;
    *) mkdir -p "$work/lib" && ln -sf "$cublas_so" "$work/lib/libcublasLt.so" && library=$(readlink -f "$work/lib") ;;
    esac
    {
        say "export PATH=\"${bin:+$bin:}\$PATH\""
        say "export CPATH=\"\${CPATH:-}${cpath}\" LIBRARY_PATH=\"\${LIBRARY_PATH:-}${library:+:$library}\""
        say "export CHECK_LD_BEFORE=\"\${CHECK_LD_BEFORE-\${LD_LIBRARY_PATH:-}}\""
        say "export LD_LIBRARY_PATH=\"\${LD_LIBRARY_PATH:-}$ld\""
        # An empty entry would mean the current folder.
        say "CPATH=\${CPATH#:} LIBRARY_PATH=\${LIBRARY_PATH#:} LD_LIBRARY_PATH=\${LD_LIBRARY_PATH#:}"
        say "[ -n \"\$CPATH\" ] || unset CPATH; [ -n \"\$LIBRARY_PATH\" ] || unset LIBRARY_PATH"
    } >"$work/env.sh"
    {
        say "| what | found |"
        say "|---|---|"
        say "| CUDA toolkit | ${toolkit:-none} |"
        say "| Python wheels of NVIDIA | ${wheels:-none} |"
        say "| cublasLt.h | ${cublas_h:-none} |"
        say "| libcublasLt | ${cublas_so:-none} |"
        say "| cudnn_backend.h | ${cudnn_h:-none} |"
        say "| libcudnn.so.9 | ${cudnn_so:-none} |"
        say "| libnvrtc | ${nvrtc_so:-none} |"
    } >"$work/paths.md"
}

# tool_path NAME: prints the path of a tool, from PATH or from the toolkit.
tool_path() {
    command -v "$1" || first_of "${CUDA_HOME:-/usr/local/cuda}/bin/$1" /usr/local/cuda-*/bin/"$1" \
        /opt/nvidia/nsight-compute/*/"$1" "${CUDA_HOME:-/usr/local/cuda}/compute-sanitizer/$1"
}

step_environment() {
    local name
    {
        cat "$work/paths.md"
        sed 's/^\([^=]*\)=\(.*\)/| \1 | \2 |/' "$work/gpu"
        say "| nvcc | $(nvcc --version 2>/dev/null | sed -n 's/.*release/release/p' || true) |"
        say "| cc | $(${CC:-cc} --version 2>/dev/null | head -n 1 || true) |"
        say "| make | $(make --version 2>/dev/null | head -n 1 || true) |"
        say "| CPU | $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1) |"
        say "| memory | $(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo) |"
        say "| kernel | $(uname -sr) |"
        for name in ncu nsys compute-sanitizer; do say "| $name | $(tool_path $name || true) |"; done
        say "| python | $("$python" --version 2>&1 || true) |"
        say "| torch | $(timeout 20 "$python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true) |"
        say "| prebuilt programs | ${prebuilt:-none} $(cat "$prebuilt/commit" 2>/dev/null || true) |"
        say "| llm.c | ${llmc:-none} |"
    } >"$work/environment.md"
    cat "$work/environment.md"
    nvidia-smi || true
    ldconfig -p 2>/dev/null | grep -E 'libcudnn\.so|libcublasLt|libnvidia-ml|libcuda\.so' || true
    note "$(gpu name), driver $(gpu driver_version), $(gpu clocks.max.sm) at most, $(gpu power.limit)"
    # PyTorch is large. The disk can read it while the compiler is busy.
    [ -n "$CHECK_TOY" ] || (timeout 90 "$python" -c 'import torch' >/dev/null 2>&1 &)
    [ -n "$(gpu name)" ] || unknown "nvidia-smi does not name the GPU"
}

# ---- programs: built here, else prebuilt

bf16_tests() { find dev/test/cuda -name 'test_*.cu' ! -name test_emu.cu | sed 's|.*/\(test_.*\)\.cu|build/cuda/\1|' | sort; }
fp32_tests() { bf16_tests | grep -v cudnn | sed 's/$/_fp32/'; }

# build_one TARGET: builds a program and writes ok or bad to $work/build. Warnings of another compiler must not
# fail the build.
build_one() {
    local target=$1 name=${1##*/} status=0 extra=()
    # Without the list of kernel tests and without test_gpt_cuda_fp32, test_gpt_cuda does not wait for them.
    case $name in
    test_gpt_cuda) extra=(CUDA_KERNEL_TESTS="" --assume-old=test_gpt_cuda_fp32) ;;
    test_gpt_cuda_fp32) extra=(CUDA_KERNEL_TESTS="") ;;
    esac
    # shellcheck disable=SC2086 # a list of flags
    "${CHECK_MAKE:-make}" WERROR= WARN=-Wall ${CHECK_MAKE_FLAGS:-} "${extra[@]}" "$target" >"$work/build/$name.log" 2>&1 || status=$?
    {
        say "== $name: make ends with $status"
        cut -c 1-400 "$work/build/$name.log" | tail -n 60
    } >>"$work/make.log"
    if [ $status = 0 ]; then say ok; else say bad; fi >"$work/build/$name"
}

# Builds all programs, each by its own make, so that the end of each is known. Those of the first steps come first.
build_all() {
    local order target cores
    cores=$(nproc)
    if ! command -v "${CHECK_MAKE:-make}" || ! command -v nvcc || ! command -v "${CC:-cc}"; then
        say "make, nvcc or a C compiler is missing"
        say missing >"$work/build/missing"
        return
    fi
    ${CC:-cc} -O2 dev/gpu/shard.c -o "$work/shard" -lm || rm -f "$work/shard"
    build_one build/twin.o # all kernel tests link it
    build_one build/twin_plan.o # test_gpt_cuda links it
    mapfile -t order < <(
        say train_gpt_cuda
        bf16_tests
        printf '%s\n' test_gpt_cuda train_gpt_cuda_fp32 train_gpt
        fp32_tests
        printf '%s\n' test_gpt_cuda_fp32 build/cuda/bench_cuda generate_cuda generate)
    for target in "${order[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$cores" ]; do wait -n || true; done
        build_one "$target" &
    done
    wait
    say "== all of it took $SECONDS s" >>"$work/make.log"
}

unpack_prebuilt() {
    [ -f "$prebuilt" ] || return 0
    mkdir -p "$work/prebuilt"
    if tar -xf "$prebuilt" -C "$work/prebuilt"; then
        prebuilt=$work/prebuilt
        export CHECK_PREBUILT=$prebuilt
    else
        say "cannot unpack $prebuilt"
    fi
}

# program TARGET: waits for the build and sets `path` to the program. Returns 1 if the build has failed, 75 if it
# has not ended in time.
program() {
    local target=$1 name=${1##*/} mark deadline
    path=
    deadline=$(cat "$work/build/deadline")
    while [ ! -s "$work/build/$name" ] && [ ! -f "$work/build/missing" ] && [ "$(date +%s)" -lt "$deadline" ]; do sleep 0.2; done
    mark=$(cat "$work/build/$name" 2>/dev/null || true)
    if [ "$mark" = ok ] && [ -x "$root/$target" ]; then
        path=$root/$target
        say "$name built here" >>"$work/used"
    elif [ -n "$prebuilt" ] && [ -x "$prebuilt/$name" ]; then
        path=$prebuilt/$name
        say "$name prebuilt$(sed 's/^/ from /' "$prebuilt/commit" 2>/dev/null)" >>"$work/used"
    elif [ "$mark" = bad ] || [ -f "$work/build/missing" ]; then
        say "there is no $name: it could not be built"
        return 1
    else
        say "there is no $name: the build has not ended"
        return 75
    fi
    case $path in /*) ;; *) path=$PWD/$path ;; esac
}

# need VARIABLE TARGET ...: sets variables to the paths of programs. Ends the step if one is missing.
need() {
    local status
    while [ $# -gt 0 ]; do
        status=0
        program "$2" || status=$?
        [ $status = 0 ] || { note "there is no ${2##*/}"; exit $status; }
        printf -v "$1" '%s' "$path"
        shift 2
    done
}

step_build() {
    local target missing=() count=0
    for target in train_gpt_cuda $(bf16_tests); do
        while [ ! -s "$work/build/${target##*/}" ] && [ ! -f "$work/build/missing" ]; do sleep 0.2; done
        [ "$(cat "$work/build/${target##*/}" 2>/dev/null || true)" = ok ] || missing+=("${target##*/}")
        count=$((count + 1))
    done
    cat "$work/make.log"
    if [ -f "$work/build/missing" ]; then
        [ -n "$prebuilt" ] || { note "make, nvcc or a C compiler is missing, and no --prebuilt was given"; exit 1; }
        skip "make, nvcc or a C compiler is missing; the programs are the prebuilt ones"
    fi
    note "$((count - ${#missing[@]})) of $count programs of the first steps"
    [ ${#missing[@]} = 0 ] || bad "not built: ${missing[*]}${prebuilt:+, the prebuilt ones are taken}"
}

# has FLAG [CHOICE]: whether the trainer has a flag, and a choice of it.
has() {
    [ -s "$work/help.txt" ] || "$train" --help >"$work/help.txt" 2>&1 || true
    [ -n "${2:-}" ] || { grep -q -e "^  --$1 " "$work/help.txt"; return; }
    described "$1" | grep -w -e "$2" >/dev/null
}
described() { awk -v f="--$1" '$1 == f { on = 1; print; next } /^  --/ || /^[A-Z]/ { on = 0 } on' "$work/help.txt" | tr '\n' ' ' | tr -s ' '; }
default_of() { described "$1" | sed -n 's/.*default \([^ )]*\)).*/\1/p'; }

# ---- correctness

# one_test NAME TARGET: runs a test program.
one_test() {
    local name=$1 status=0 start=$SECONDS last
    program "$2" || status=$?
    case $status in
    0) ;;
    75) unknown "$name is not built yet"; check_row "$name" "not known" "not built yet" 0; return 0 ;;
    *) bad "$name could not be built"; check_row "$name" FAILED "not built" 0; return 0 ;;
    esac
    limited "${test_limit:-40}" "$path" >"$work/$name.out" 2>&1 || status=$?
    last=$(tail -n 1 "$work/$name.out" | cut -c 1-160)
    if [ $status = 124 ]; then
        unknown "$name ran past ${test_limit:-40} s"
        check_row "$name" "not known" "ran past its limit" $((SECONDS - start))
    elif [ $status = 0 ] && [[ $last =~ ^[1-9][0-9]*\ passed,\ 0\ failed ]]; then
        check_row "$name" passed "$last" $((SECONDS - start))
        passed=$((passed + ${last%% *}))
    else
        tail -n 60 "$work/$name.out"
        bad "$name (status $status): $last"
        check_row "$name" FAILED "status $status: $last" $((SECONDS - start))
    fi
}

# test_cudnn reads the used memory of the whole device, so no other program may run at that time. Therefore all
# tests run one after the other.
step_kernels() {
    local target others32
    passed=0
    mapfile -t tests < <({ bf16_tests; [ -z "$prebuilt" ] || find "$prebuilt" -name 'test_*' ! -name '*_fp32' ! -name 'test_gpt*' |
        sed 's|.*/|build/cuda/|'; } | sort -u)
    for target in "${tests[@]}"; do one_test "${target##*/}" "$target"; done
    one_test test_gpt_cuda test_gpt_cuda
    mapfile -t others32 < <(printf '%s\n' "${tests[@]}" | grep -v cudnn | sed 's/$/_fp32/')
    for target in "${others32[@]}"; do one_test "${target##*/}" "$target"; done
    one_test test_gpt_cuda_fp32 test_gpt_cuda_fp32
    note "$passed tests passed"
}

# In fp32 the GPU differs from the CPU by the order of sums: at most 2e-4 of every loss. In bf16 weights and
# activations have 8 bits, and each is rounded by up to 2^-9. Most of that averages out in the mean loss of
# thousands of tokens. On the emulator the losses of these models differ by 2e-5 before the first update and by
# 3e-4 within twenty steps. Ten times that is allowed. CM on GPT-2 has a small rate, because at its own rate this
# little model passes a peak that multiplies every difference: signs in bf16 alone move its loss by 4 %.
step_parity() {
    local cpu train train32 dir flags name kind worst first status
    need cpu train_gpt train train_gpt_cuda train32 train_gpt_cuda_fp32
    dir=$work/parity
    mkdir -p "$dir"
    text "$dir/text.txt"
    local limits="2e-4 3e-3 2e-4"
    small="--data $dir/text.txt --runs-dir $dir --layers 3 --width 128 --heads 4 --seq-len 128 --batch-size 8
        --total-batch-tokens 1024 --vocab 256 --steps 20 --val-every 5 --val-tokens 2048 --keep-checkpoints 0
        --warmup 4"
    cases=("tiny --optimizer cm" "gpt2 --optimizer cm --lr 0.005" "gpt2 --optimizer adamw"
        "llama --optimizer muon --kv-heads 2" "speedrun --optimizer cm"
        "llama --low-rank 8 --lora-on all --lr-lora 0.05" "gpt2 --low-rank 16 --lora cm --lr-lora 0.02")
    if [ -n "$CHECK_TOY" ]; then # with fewer tokens, less averages out
        limits="2e-4 2e-2 2e-3" small="$small --layers 2 --width 32 --heads 2 --seq-len 16 --batch-size 4
            --total-batch-tokens 64 --steps 6 --val-tokens 64"
        cases=("tiny --optimizer cm" "speedrun --optimizer muon --kv-heads 1" "llama --low-rank 4")
        small=$(say "$small" | tr -s ' \n' ' ' | awk '{ for (i = 1; i < NF; i += 2) v[$i] = $(i + 1); for (k in v) printf "%s %s ", k, v[k] }')
    fi
    {
        say "| preset | fp32: largest difference | bf16: at step 0 | bf16: largest |"
        say "|---|---|---|---|"
    } >"$work/parity.md"
    for flags in "${cases[@]}"; do
        name=${flags// /_} name=${name//-/}
        worst=()
        for kind in cpu fp32 bf16; do
            program=$train more="--attention flash"
            [ $kind = bf16 ] || { program=$train32 more="--attention flash --tf32 off"; }
            [ $kind != cpu ] || { program=$cpu more=; }
            status=0
            # shellcheck disable=SC2086 # lists of flags
            CM_NO_PEAK=1 limited 30 "$program" --preset $flags $small $more --run "$name-$kind" >"$dir/$name-$kind.out" 2>&1 ||
                status=$?
            case $status in
            0) ;;
            124) unknown "$kind $flags ran past 30 s"; continue 2 ;;
            *) bad "$kind $flags: $(tail -n 1 "$dir/$name-$kind.out")"; continue 2 ;;
            esac
        done
        for kind in fp32 bf16; do
            if deviations "$dir/$name-cpu/log.jsonl" "$dir/$name-$kind/log.jsonl" >"$dir/$name-$kind.txt"; then
                worst+=("$(sort -g -k 2 "$dir/$name-$kind.txt" | tail -n 1 | cut -d ' ' -f 2)")
            else
                worst+=(1e9)
                bad "$flags: $kind has no losses to compare"
            fi
        done
        first=$(awk '$1 == 0 { print $2 }' "$dir/$name-bf16.txt" | head -n 1)
        say "| $flags | ${worst[0]} | ${first:-none} | ${worst[1]} |" | tee -a "$work/parity.md"
        status=passed
        awk -v a="${worst[0]}" -v b="${worst[1]}" -v c="${first:-1}" -v limits="$limits" \
            'BEGIN { split(limits, l, " "); exit a > l[1] || b > l[2] || c > l[3] }' ||
            { status=FAILED; bad "$flags: beyond the limits $limits (fp32, bf16, bf16 at step 0)"; }
        check_row "$flags" $status "fp32 ${worst[0]}, bf16 at step 0 ${first:-none}, bf16 ${worst[1]}" 0
    done
    note "${#cases[@]} models; limits: fp32, bf16, bf16 at step 0: $limits"
}

# The model of the steps `graph` and `resume`, in the array `shape`.
small_model() {
    mkdir -p "$dir"
    text "$dir/text.txt"
    shape=(--data ../../text.txt --layers 3 --width 128 --heads 2 --seq-len 128 --batch-size 4
        --total-batch-tokens 1024 --steps "$1" --checkpoint-every 17 --val-every 50 --val-tokens 1024)
    [ -z "$CHECK_TOY" ] || shape=(--data ../../text.txt --layers 1 --width 32 --heads 2 --seq-len 16 --batch-size 2
        --total-batch-tokens 64 --steps 24 --checkpoint-every 7 --val-every 10 --val-tokens 64)
    # A run may choose other algorithms by timing after a restart.
    if has gemm first; then shape+=(--gemm first); fi
    if has gelu unfused; then shape+=(--gelu unfused); fi
    export CM_NO_PEAK=1
}

# in_folder DIR SECONDS COMMAND...: runs the command in DIR, with its output in DIR/out. Returns 76 if the command
# reports that an attention is not available.
in_folder() {
    local folder=$1 seconds=$2 status=0 old=$PWD
    shift 2
    mkdir -p "$folder"
    cd "$folder" || exit
    limited "$seconds" "$@" >>out 2>&1 || status=$?
    if [ $status != 0 ] && grep -q -i -e '--attention cudnn' -e '--attention hopper' -e 'cudnn.*not' out; then
        status=76
    fi
    cd "$old" || exit
    return $status
}

# state_of FILE: prints a checkpoint without the header's line of --cuda-graph, the size and the checksum.
# Layout: docs/formats.md.
state_of() {
    local length
    length=$(od -An -tu8 -j24 -N8 "$1" | tr -d ' ')
    tail -c +33 "$1" | head -c "$length" | grep -a -v '^flag.cuda-graph='
    tail -c +$((33 + (length + 7) / 8 * 8)) "$1" | head -c -16
}

step_graph() {
    local train attention mode status start
    need train train_gpt_cuda
    has cuda-graph || skip "the trainer has no --cuda-graph"
    dir=$work/graph
    small_model 40
    for attention in flash hopper cudnn; do
        has attention $attention || continue
        start=$SECONDS status=0
        for mode in on off; do
            [ $status != 0 ] || in_folder "$dir/$attention/$mode" 20 "$train" --run r "${shape[@]}" --optimizer cm \
                --attention "$attention" --cuda-graph $mode || status=$?
        done
        case $status in
        0) ;;
        76) check_row "$attention" "not available" "$(tail -n 1 "$dir/$attention/on/out" | cut -c 1-160)" 0; continue ;;
        124) unknown "$attention ran past 20 s"; check_row "$attention" "not known" "ran past its limit" 20; continue ;;
        *) bad "$attention: status $status: $(tail -n 1 "$dir/$attention"/*/out | tail -n 1)"
            check_row "$attention" FAILED "status $status" $((SECONDS - start)); continue ;;
        esac
        if cmp <(strip "$dir/$attention/on/runs/r/log.jsonl") <(strip "$dir/$attention/off/runs/r/log.jsonl") &&
            cmp <(state_of "$(newest "$dir/$attention/on/runs/r")") <(state_of "$(newest "$dir/$attention/off/runs/r")"); then
            check_row "$attention" passed "log and checkpoint are equal to the byte" $((SECONDS - start))
        else
            bad "$attention: the graph changes the numbers"
            check_row "$attention" FAILED "log or checkpoint differ" $((SECONDS - start))
        fi
    done
    note "$(awk -F '\t' '$1 == "graph" { printf "%s%s %s", n++ ? ", " : "", $2, $3 }' "$work/checks.tsv")"
}

# broken SIGNAL FOLDER PROGRAM FLAGS...: starts a run in FOLDER, sends it the signal after some steps, and resumes
# it. Sets `detail`. Returns 1 for a failure, or 75 if the signal came too late.
broken() {
    local signal=$1 folder=$2 program=$3 old=$PWD tries=0 status=0 log after child sent
    shift 3
    log=$folder/runs/r/log.jsonl
    after=$((RANDOM % 100 + 20))
    [ -z "$CHECK_TOY" ] || after=$((RANDOM % 9 + 9)) # lines; the first checkpoint is of step 7
    mkdir -p "$folder"
    cd "$folder" || exit
    "$program" --run r "$@" >out 2>&1 &
    child=$! running=$!
    cd "$old" || exit
    while kill -0 $child 2>/dev/null && [ "$(lines "$log")" -lt $after ] && [ $tries -lt 3000 ]; do
        sleep 0.01
        tries=$((tries + 1))
    done
    kill "-$signal" $child 2>/dev/null || { detail="it ended before the signal"; wait $child || true; running=; return 75; }
    sent=$(date +%s)
    ( sleep 10; kill -9 $child 2>/dev/null ) &
    local watch=$!
    wait $child || status=$?
    running=
    kill $watch 2>/dev/null || true
    detail="SIG$signal at $(lines "$log") lines of log"
    if [ "$signal" = TERM ]; then
        detail="$detail, status $status after $(($(date +%s) - sent)) s"
        [ $status = 143 ] || { detail="$detail, not 143"; return 1; }
        [ -n "$(newest "$folder/runs/r")" ] || { detail="$detail, no checkpoint"; return 1; }
        # The checkpoint must be of the last step of the log, or a step was lost.
        [ "$(newest "$folder/runs/r" | sed 's/.*step_0*\([0-9]*\)\.ckpt/\1/')" = "$(field "$log" step | tail -n 1)" ] ||
            { detail="$detail, its checkpoint is not of its last step"; return 1; }
    fi
    status=0
    in_folder "$folder" 20 "$program" --run r --resume || status=$?
    [ $status = 0 ] || { detail="$detail; --resume ends with $status: $(tail -n 1 "$folder/out")"; return 1; }
}

# interrupted NAME SIGNALS PROGRAM FLAGS...: compares an unbroken run with a run that is resumed after each signal.
interrupted() {
    local name=$1 signals=$2 program=$3 status=0 start=$SECONDS signal log same
    shift 3
    in_folder "$dir/$name/unbroken" 30 "$program" --run r "$@" || status=$?
    case $status in
    0) ;;
    76) check_row "$name" "not available" "$(tail -n 1 "$dir/$name/unbroken/out" | cut -c 1-160)" 0; return 0 ;;
    124) unknown "$name: the unbroken run ran past 30 s"; return 0 ;;
    *) bad "$name: the unbroken run fails: $(tail -n 1 "$dir/$name/unbroken/out")"
        check_row "$name" FAILED "the unbroken run fails" $((SECONDS - start)); return 0 ;;
    esac
    for signal in $signals; do
        same=passed start=$SECONDS log=$dir/$name/$signal/runs/r/log.jsonl status=0
        broken "$signal" "$dir/$name/$signal" "$program" "$@" || status=$?
        if [ $status = 75 ]; then
            unknown "$name, $signal: $detail"
            same="not known"
        elif [ $status = 0 ]; then
            cmp <(strip "$dir/$name/unbroken/runs/r/log.jsonl") <(strip "$log") || same=FAILED
            cmp "$(newest "$dir/$name/unbroken/runs/r")" "$(newest "$dir/$name/$signal/runs/r")" || same=FAILED
            [ $same = passed ] || detail="$detail; the resumed run ends elsewhere"
        else
            same=FAILED
        fi
        [ "$same" != FAILED ] || bad "$name: $detail"
        check_row "$name, $signal" "$same" "$detail" $((SECONDS - start))
    done
}

step_resume() {
    local train train32
    need train train_gpt_cuda train32 train_gpt_cuda_fp32
    dir=$work/resume
    small_model 400
    interrupted "cm flash" "KILL TERM" "$train" "${shape[@]}" --optimizer cm --attention flash
    interrupted "gpt2 muon flash" "KILL" "$train" --preset gpt2 "${shape[@]}" --optimizer muon --attention flash
    if has attention hopper; then
        interrupted "cm hopper" "KILL" "$train" "${shape[@]}" --optimizer cm --attention hopper
    fi
    interrupted "cm cudnn" "KILL TERM" "$train" "${shape[@]}" --optimizer cm --attention cudnn
    interrupted "fp32 adamw" "KILL" "$train32" "${shape[@]}" --optimizer adamw
    note "$(grep -c "^resume.passed" <(cut -f 1,3 "$work/checks.tsv") || true) runs end where the unbroken ones do"
}

# ---- speed

# Sets the array `data` to the flags of the data of large runs, and `source` to their description.
large_data() {
    local shard=$work/shard
    if [ -n "$CHECK_TOY" ]; then
        text "$work/text.txt"
        data=(--data "$work/text.txt" --vocab 256) source="sentences made up by the script"
        return
    fi
    if [ -n "${CHECK_DATA:-}" ]; then
        data=(--data "$CHECK_DATA" --val-data "${CHECK_VAL_DATA:-$CHECK_DATA}")
        source="the shards given"
        [ -n "${CHECK_VAL_DATA:-}" ] || source="the shards given, which are also the validation data"
        return
    fi
    source="made-up tokens (dev/gpu/shard.c), because no shards were given"
    data=(--data "$work/train.bin" --val-data "$work/val.bin")
    [ -x "$shard" ] || shard=$prebuilt/shard
    if [ -x "$shard" ]; then
        [ -s "$work/train.bin" ] || "$shard" "$work/train.bin" 20000000 1
        [ -s "$work/val.bin" ] || "$shard" "$work/val.bin" 2000000 2
    else
        text "$work/text.txt"
        data=(--data "$work/text.txt" --vocab 50257) source="sentences, bytes as tokens, because no shards can be made"
    fi
}

# shape_of MODEL: prints the flags that follow --preset gpt2.
shape_of() {
    if [ -n "$CHECK_TOY" ]; then say "--layers 1 --width 32 --heads 2 --seq-len 32"; return; fi
    case $1 in
    124M) ;;
    one) say "--layers 1" ;; # one layer of 124M
    350M) say "--layers 24 --width 1024 --heads 16" ;;
    774M) say "--layers 36 --width 1280 --heads 20" ;;
    esac
}

# row WHO MODEL BATCH TOKENS OPTIMIZER FLAGS RESULT MS UPDATE TOKENS/S MFU STATED MIB HOW
row() {
    local flags
    flags=$(say "$6" | tr '\t|' ' /')
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$step" "$1" "$2" "$3" "$4" "$5" "$flags" \
        "$7" "$8" "$9" "${10}" "${11}" "${12}" "${13}" "$(now)" "${14}" >>"$work/rows.tsv"
    say "$1 $2, batch $3, $5 $flags: $7 ${8:+$8 ms, ${10} tokens/s}"
    report quick
}

# measure MODEL BATCH OPTIMIZER STEPS DROP FLAGS...: adds a row from a run of STEPS steps, of which the first DROP
# do not count. If the batch does not fit, adds another row with the largest power of two that fits.
total=524288
measure() {
    local model=$1 batch=$2 optimizer=$3 count=$4 drop=$5 status=0 run=$work/runs/speed log=$work/speed.out tokens=$total fits
    shift 5
    [ -z "$CHECK_TOY" ] || { batch=2 tokens=128; }
    fits=$(left)
    [ "$fits" -ge 8 ] || { row cm.c "$model" "$batch" "$tokens" "$optimizer" "$*" "not run" "" "" "" "" "" "" ""; return 0; }
    [ "$fits" -lt "${row_limit:-45}" ] || fits=${row_limit:-45}
    rm -rf "$run"
    # shellcheck disable=SC2046,SC2086 # lists of flags
    limited "$fits" "$train" --preset gpt2 $(shape_of "$model") --optimizer "$optimizer" --batch-size "$batch" \
        --total-batch-tokens "$tokens" --steps "$count" --val-every 0 --val-tokens 1024 --keep-checkpoints 0 "${data[@]}" \
        --runs-dir "$work/runs" --run speed "$@" >"$log" 2>&1 || status=$?
    local jsonl=$run/log.jsonl ms update mfu stated memory result=ok
    ms=$(field "$jsonl" ms | tail -n +$((drop + 1)) | median)
    update=$(field "$jsonl" update_ms | tail -n +$((drop + 1)) | median)
    mfu=$(field "$jsonl" mfu | tail -n +$((drop + 1)) | median)
    stated=$(field "$jsonl" mfu_stated | tail -n +$((drop + 1)) | median)
    memory=$(sed -n 's/.*on the GPU \([0-9.]*\) MiB.*/\1/p' "$log")
    if [ $status = 124 ]; then
        result="not known" ms=
        unknown "$model $optimizer $* ran past its limit"
    elif [ $status != 0 ]; then
        ms=
        fits=$(sed -n 's/.*largest --batch-size that fits is \([0-9]*\).*/\1/p' "$log")
        if [ -n "$fits" ] || grep -q -e 'out of memory' -e 'too little for one sequence' "$log"; then
            result="does not fit"
        elif grep -q -i -e '^error: --attention \(cudnn\|hopper\)' -e 'error:.*cudnn' "$log"; then
            result="not available"
            tail -n 1 "$log"
        else
            result=failed
            tail -n 5 "$log"
            bad "$model $optimizer $*: $(tail -n 1 "$log" | cut -c 1-200)"
        fi
    elif [ -z "$ms" ]; then
        result=failed
        bad "$model $optimizer $*: no times in its log"
    fi
    local rate=
    [ -z "$ms" ] || rate=$(awk -v t="$tokens" -v ms="$ms" 'BEGIN { printf "%.0f", 1000 * t / ms }')
    row cm.c "$model" "$batch" "$tokens" "$optimizer" "$*" "$result" "$ms" "$update" "$rate" "$mfu" "$stated" "$memory" \
        "median of steps $((drop + 1)) to $count"
    if [ "$result" = "does not fit" ] && [ -n "$fits" ] && [ "${strict:-0}" = 0 ]; then
        local power=1
        while [ $((power * 2)) -le "$fits" ]; do power=$((power * 2)); done
        strict=1 measure "$model" "$power" "$optimizer" "$count" "$drop" "$@"
    fi
}

# update_time OPTIMIZER: adds a row with the time of the update from --dry-run, for logs without that time.
update_time() {
    local status=0 batch=32 tokens=$total ms whole
    [ -z "$CHECK_TOY" ] || { batch=2 tokens=128; }
    [ "$(left)" -ge 8 ] || return 0
    # shellcheck disable=SC2046 # a list of flags
    CM_NO_PEAK=1 limited 20 "$train" --preset gpt2 $(shape_of 124M) --optimizer "$1" --batch-size $batch --total-batch-tokens \
        "$tokens" --steps 10 "${data[@]}" --runs-dir "$work/runs" --run dry --attention flash --dry-run >"$work/dry.out" 2>&1 || status=$?
    [ $status = 0 ] || { unknown "the update's time of $1"; return 0; }
    ms=$(sed -n 's/.* \([0-9.]*\) of them in the update.*/\1/p' "$work/dry.out")
    whole=$(sed -n 's/.*validation: \([0-9.]*\) ms a step.*/\1/p' "$work/dry.out")
    row cm.c 124M $batch "$tokens" "$1" "--attention flash --dry-run" "${ms:+estimate}" "$whole" "$ms" "" "" "" "" \
        "best of three micro-batches and updates, put together"
}

# Prints the flags of the attention with the most tokens/s in the step `speed`, or flash if none was measured.
fastest_attention() {
    [ -s "$work/rows.tsv" ] || { say "--attention flash"; return; }
    awk -F '\t' 'BEGIN { flags = "--attention flash" }
        $1 == "speed" && $8 == "ok" && $7 ~ /^--attention [a-z-]*$/ && $11 > most { most = $11; flags = $7 }
        END { print flags }' "$work/rows.tsv"
}

step_speed() {
    local train flag value best
    need train train_gpt_cuda
    large_data
    say "data: $source"
    flash="--attention flash" # every row names its attention
    # shellcheck disable=SC2086 # lists of flags
    {
        measure 124M 32 adamw 6 2 $flash
        measure 124M 32 cm 6 2 $flash
        for value in hopper cudnn-fast cudnn; do
            if has attention $value; then measure 124M 32 adamw 6 2 --attention $value; else say "no --attention $value yet"; fi
        done
        fast=$(fastest_attention)
        measure 124M 64 adamw 6 2 $fast
        measure 124M 64 cm 6 2 $fast
        for flag in "logit-rows 667 4096 8192" "gelu fused unfused" "gemm first measured" "msign-compute bf16 fp32"; do
            set -- $flag
            flag=$1
            shift
            has "$flag" || { say "no --$flag yet"; left_out="${left_out:-}${left_out:+, }--$flag"; continue; }
            for value in "$@"; do
                # The first rows are those of the default.
                [ "$value" != "$(default_of "$flag")" ] || { say "--$flag $value is the default"; continue; }
                if [ "$flag" = msign-compute ]; then best=cm; else best=adamw; fi
                measure 124M 32 $best 6 2 $flash "--$flag" "$value"
            done
        done
        if has cuda-graph; then measure 124M 32 adamw 6 2 $flash --cuda-graph on; fi
        grep -q '"update_ms"' "$work/runs/speed/log.jsonl" 2>/dev/null || for value in adamw cm; do update_time $value; done
    }
    best=$(awk -F '\t' '$1 == "speed" && $8 == "ok" && $11 > most { most = $11; text = $11 " tokens/s: batch " $4 " " $6 " " $7 }
        END { print text }' "$work/rows.tsv")
    note "${best:-no row}${left_out:+; not in this trainer: $left_out}; data: $source"
    [ -n "$best" ] || return 75
}

step_large() {
    local train fast
    need train train_gpt_cuda
    large_data
    fast=$(fastest_attention)
    row_limit=60
    # shellcheck disable=SC2086 # lists of flags
    {
        measure 350M 16 adamw 4 1 $fast
        measure 350M 16 cm 4 1 $fast
        measure 774M 8 adamw 3 1 $fast
        measure 774M 8 cm 3 1 $fast
    }
    note "$(awk -F '\t' '$1 == "large" { printf "%s%s %s %s", n++ ? ", " : "", $3, $6, $8 == "ok" ? $11 " tokens/s" : $8 }' "$work/rows.tsv")"
}

# Python in the original environment: PyTorch has its own libraries, and must not load the toolkit's.
torch_python() { # SECONDS ARGUMENTS...
    local seconds=$1
    shift
    limited "$seconds" env -u CPATH -u LIBRARY_PATH LD_LIBRARY_PATH="${CHECK_LD_BEFORE:-}" "$python" "$@"
}

# torch_row MODEL BATCH MODE SECONDS: adds a row of PyTorch at our shape.
torch_row() {
    local model=$1 batch=$2 mode=$3 seconds=$4 status=0 file=$work/torch.json result flags=() size=$1 tokens=$total
    [ "$mode" = eager ] || [ -n "$CHECK_TOY" ] || flags+=(--compile) # compilation takes a minute on a CPU
    [ -z "$CHECK_TOY" ] || { size=tiny batch=2 tokens=128; }
    [ "$(left)" -ge 15 ] || { row PyTorch "$model" "$batch" "$tokens" AdamW "$mode" "not run" "" "" "" "" "" "" ""; return 0; }
    torch_python "$seconds" dev/bench/torch_gpt2.py --model "$size" --batch "$batch" --total "$tokens" --steps 3 \
        --budget $((seconds - 5)) "${flags[@]}" >"$file" 2>"$work/torch.err" || status=$?
    result=$(text_field "$file" result)
    [ $status != 124 ] || result="not known"
    [ -n "$result" ] || result=failed
    if [ "$result" != ok ]; then
        tail -n 3 "$work/torch.err"
        cat "$file"
        unknown "PyTorch $model $mode: $result $(text_field "$file" error)" # a failing peer is no failure of ours
    fi
    row "$(text_field "$file" peer | sed 's/^$/PyTorch/')" "$model" "$batch" "$tokens" AdamW "$mode, SDPA $(text_field "$file" sdpa)" "$result" \
        "$(field "$file" ms)" "$(field "$file" update_ms)" "$(field "$file" tok_s)" "" "" "$(field "$file" mb)" \
        "$(text_field "$file" how)"
}

# llmc_row MODEL DEPTH BATCH FLAGS...: adds a row of llm.c's trainer at our shape, with its own flags: no samples
# (-s 0), no HellaSwag (-h 0), one batch of validation before and after.
llmc_row() {
    local model=$1 depth=$2 batch=$3 status=0 file=$work/llmc.out ms rate result=ok tokens=$total
    shift 3
    [ "$(left)" -ge 12 ] || { row llm.c "$model" "$batch" "$tokens" AdamW "$*" "not run" "" "" "" "" "" "" ""; return 0; }
    # The trainer reads files relative to the current folder. It must not write into its own folder.
    limited 40 "$llmc/train_gpt2cu" -i "$llmc_train" -j "$llmc_val" -e "d$depth" -b "$batch" -t 1024 -d "$tokens" -x 6 \
        -v 1000000 -m 1 -s 0 -h 0 -l 0.0006 -c 0.1 -u 700 -q 0.0 "$@" >"$file" 2>&1 || status=$?
    ms=$(sed -n 's/^step .*| \([0-9.]*\) ms |.*/\1/p' "$file" | tail -n +3 | median)
    if [ $status = 124 ]; then result="not known" ms=
    elif grep -q -i 'out of memory' "$file"; then result="does not fit" ms=
    elif [ $status != 0 ] || [ -z "$ms" ]; then
        result=failed ms=
        tail -n 5 "$file"
        unknown "llm.c: $(tail -n 1 "$file" | cut -c 1-160)"
    fi
    [ -z "$ms" ] || rate=$(awk -v t="$tokens" -v ms="$ms" 'BEGIN { printf "%.0f", 1000 * t / ms }')
    row llm.c "$model" "$batch" "$tokens" AdamW "$*" "$result" "$ms" "" "${rate:-}" "" "" "" "median of steps 3 to 6"
}

# tuned NAME FLAGS...: runs train_gpt_cuda of this step; fails the step if it fails.
tuned() {
    local name=$1 status=0
    shift
    CM_NO_PEAK=1 limited 40 "$train" --runs-dir "$dir" --run "$name" "$@" >"$dir/$name.out" 2>&1 || status=$?
    case $status in
    0) return 0 ;;
    124) unknown "$name ran past 40 s" ;;
    *) bad "$name: $(tail -n 1 "$dir/$name.out")" ;;
    esac
    return 1
}

step_adapters() {
    local train whole fast ratio
    need train train_gpt_cuda
    dir=$work/adapters
    rm -rf "$dir"
    mkdir -p "$dir"
    large_data
    # shellcheck disable=SC2046 # a list of flags
    shape=("${data[@]}" --val-tokens 4096 --val-every 0 --steps 24 --schedule constant --keep-checkpoints 1)
    # shellcheck disable=SC2046
    tuned base --preset gpt2 $(shape_of 124M) "${shape[@]}" --batch-size "$(if [ -n "$CHECK_TOY" ]; then say 2; else say 16; fi)" || return 0
    tuned adapters --init-from base --lora-rank 16 "${shape[@]}" --batch-size "$(if [ -n "$CHECK_TOY" ]; then say 2; else say 16; fi)" || return 0
    tuned adapters --resume --steps 32 || return 0
    whole=$(field "$dir/base/log.jsonl" tok_s | tail -n +5 | median)
    fast=$(field "$dir/adapters/log.jsonl" tok_s | tail -n +5 | median)
    ratio=$(awk -v a="${fast:-0}" -v b="${whole:-1}" 'BEGIN { printf "%.2f", a / b }')
    if [ "$(field "$dir/adapters/log.jsonl" train_loss | wc -l)" -ge 32 ]; then
        check_row "124M by adapters of rank 16" passed "${fast:-0} tokens/s, $ratio times those of all weights" 0
    else
        bad "the log of the adapters has too few losses"
    fi
    note "adapters: ${fast:-0} tokens/s; all weights, CM: ${whole:-0}; $(grep -h '^memory' "$dir/adapters.out" | head -n 1)"
}

step_peers() {
    local any=0
    large_data
    llmc_train=$work/train.bin llmc_val=$work/val.bin
    [ -z "${CHECK_DATA:-}" ] || { llmc_train=$CHECK_DATA llmc_val=${CHECK_VAL_DATA:-$CHECK_DATA}; }
    if [ -n "$llmc" ] && [ -x "$llmc/train_gpt2cu" ]; then
        any=1
        llmc_row 124M 12 32 -r 0 -ge 0
        llmc_row 124M 12 32 -r 0 -ge 2
    elif [ -n "$llmc" ]; then
        unknown "there is no train_gpt2cu in $llmc"
    fi
    if torch_python 60 -c 'import torch' 2>"$work/torch.err"; then
        any=1
        torch_row 124M 32 compile 75
        torch_row 124M 32 eager 30
        torch_row 350M 16 compile 60
        [ -z "$llmc" ] || [ ! -x "$llmc/train_gpt2cu" ] || llmc_row 350M 24 16 -r 0 -ge 0
        torch_row 774M 8 compile 80
    else
        say "no PyTorch in $python: $(tail -n 1 "$work/torch.err" | cut -c 1-160)"
    fi
    [ $any = 1 ] || skip "neither llm.c (--llmc) nor PyTorch is here"
    note "$(awk -F '\t' '$1 == "peers" { printf "%s%s %s %s: %s", n++ ? "; " : "", $2, $3, $7, $8 == "ok" ? $11 " tokens/s" : $8 }' "$work/rows.tsv")"
}

step_bench() {
    local bench part status sections=0
    need bench build/cuda/bench_cuda
    : >"$work/bench.md"
    for part in gemm attention layers optimizer; do
        status=0
        # shellcheck disable=SC2086 # a list of flags
        limited 35 "$bench" --only $part --json "$work/bench.$part.json" ${CHECK_BENCH:-} >"$work/bench.out" 2>&1 || status=$?
        cat "$work/bench.out" >>"$work/bench.md"
        case $status in
        0) sections=$((sections + 1)) ;;
        124) unknown "$part ran past 35 s" ;;
        *) bad "$part: $(tail -n 1 "$work/bench.out" | cut -c 1-160)" ;;
        esac
        report quick
    done
    note "$sections tables, $(grep -c '^|' "$work/bench.md" || true) rows; $(sed -n 's/^\(A product.*\)/\1/p' "$work/bench.md" | head -n 1)"
}

step_programs() {
    local train train32 generate cpu generate_cpu status=0
    need train train_gpt_cuda train32 train_gpt_cuda_fp32 generate generate_cuda cpu train_gpt generate_cpu generate
    TRAIN_GPT=$cpu GENERATE=$generate_cpu TRAIN_CUDA=$train TRAIN_CUDA_FP32=$train32 GENERATE_CUDA=$generate CM_NO_PEAK=1 \
        limited 55 sh "${CHECK_CUDA_TEST:-dev/test/cuda_test.sh}" >"$work/programs.out" 2>&1 || status=$?
    cat "$work/programs.out"
    [ $status != 124 ] || { note "ran past its limit"; exit 75; }
    note "$(tail -n 1 "$work/programs.out")"
    return $status
}

# ---- profiler and sanitizer

# kernels_of FILE: prints the names of the kernels in a source file.
kernels_of() {
    awk '/__global__/ { seek = 1 }
        seek {
            line = $0
            gsub(/__launch_bounds__\([^)]*\)+/, "", line)
            if (match(line, /[a-z_0-9]+\(/)) { print substr(line, RSTART, RLENGTH - 1); seek = 0 }
        }' "$1"
}

# metric FILE NAME: prints a metric from ncu's text output.
metric() { sed -n "s/^ *$2  *[^ ]*  *\([0-9][0-9,.]*\) *$/\1/p" "$1" | tr -d , | head -n 1; }

step_ncu() {
    local train ncu kernel status file done=0 wanted seconds
    need train train_gpt_cuda
    ncu=$(tool_path ncu || true)
    [ -n "$ncu" ] || skip "there is no ncu on this machine"
    large_data
    wanted=$({ kernels_of llmc/cuda/attention.cuh; kernels_of llmc/cuda/loss.cuh; kernels_of llmc/cuda/norm.cuh; } |
        grep -E '^(flash_forward|flash_backward|classifier|norm_backward)' || true)
    [ -n "$wanted" ] || wanted="flash_forward_kernel classifier_kernel norm_backward_kernel"
    local batch=32 tokens=32768
    [ -z "$CHECK_TOY" ] || { batch=2 tokens=64; }
    for kernel in $wanted; do
        file=$work/ncu.$kernel.out status=0 seconds=15
        # One layer is enough, because a kernel has one size in all layers. --clock-control none keeps the clocks.
        # shellcheck disable=SC2046 # a list of flags
        CM_NO_PEAK=1 limited $seconds "$ncu" --clock-control none --set basic --kernel-name "regex:^$kernel" --launch-count 1 \
            --kill yes "$train" --preset gpt2 $(shape_of "${CHECK_TOY:-one}") --optimizer adamw --batch-size $batch \
            --total-batch-tokens $tokens --steps 1 --val-tokens 1024 --keep-checkpoints 0 "${data[@]}" --attention flash \
            --runs-dir "$work/runs" --run "ncu-$kernel" >"$file" 2>&1 || status=$?
        if grep -q -e ERR_NVGPUCTRPERM -e LibraryNotLoaded -e 'Failed to initialize the profiler' "$file"; then
            skip "ncu may not profile here: $(grep -e ERR_NVGPUCTRPERM -e 'Failed to init' -e LibraryNotLoaded "$file" | head -n 1 | cut -c 1-160)"
        fi
        if [ -z "$(metric "$file" Duration)" ]; then
            tail -n 4 "$file"
            if [ $status = 124 ]; then unknown "$kernel ran past $seconds s"
            else unknown "$kernel: $(tail -n 1 "$file" | cut -c 1-120)"; fi
            continue
        fi
        # ncu chooses the unit of a duration by its size.
        printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$kernel" "$(sed -n 's/^ *Duration  *\([a-z]*\)  *\([0-9.,]*\) *$/\1 \2/p' "$file" | tr -d , | head -n 1 |
            awk '{ f = $1 ~ /^n/ ? 1e-3 : $1 ~ /^m/ ? 1e3 : 1; printf "%.2f", $2 * f }')" "$(metric "$file" 'DRAM Throughput')" \
            "$(metric "$file" 'Compute (SM) Throughput')" "$(metric "$file" 'Achieved Occupancy')" \
            "$(metric "$file" 'Registers Per Thread')" >>"$work/ncu.tsv"
        done=$((done + 1))
        cat "$file"
    done
    note "$done kernels, one launch each"
}

# sanitize TOOL TEST: reports about our kernels are failures. Reports about the libraries' kernels are not.
sanitize() {
    local tool=$1 name=$2 status=0 start=$SECONDS log=$work/sanitizer.$1.$2.log ours summary flags=() limit=${sanitizer_limit:-25}
    status=0
    program "build/cuda/$name" || { check_row "$tool $name" "not known" "there is no $name" 0; unknown "$name"; return 0; }
    # The libraries' kernels would take most of the time. initcheck must see what they write.
    [ "$tool" = initcheck ] || flags=("${exclude[@]}")
    limited "$limit" "$sanitizer" --tool "$tool" --print-limit 50 --error-exitcode 9 "${flags[@]}" "$path" >"$log" 2>&1 || status=$?
    ours=$(grep -E '^=.* (at|in|by) .*\+0x[0-9a-f]+' "$log" |
        grep -v -i -c -E 'host frame|cutlass|cublas|cudnn|xmma|gemm|splitk|nvjet' || true)
    summary=$(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//' || true)
    if [ $status = 124 ]; then
        check_row "$tool $name" "not known" "ran past $limit s" $((SECONDS - start))
        unknown "$tool $name"
    elif [ -z "$summary" ] || grep -q 'Internal Sanitizer Error' "$log"; then
        check_row "$tool $name" "not known" "$(grep -E '^=+ ..' "$log" | grep -v -E 'COMPUTE-SANITIZER|SUMMARY|returned an error' |
            tail -n 1 | cut -c 1-160)" $((SECONDS - start))
        unknown "$tool $name"
    elif [ $status = 0 ] || { [ $status = 9 ] && [ "$ours" = 0 ]; }; then
        check_row "$tool $name" passed "$summary, $ours lines about our kernels" $((SECONDS - start))
    elif [ "$ours" != 0 ]; then
        grep -E '^=' "$log" | head -n 40
        bad "$tool $name: $summary"
        check_row "$tool $name" FAILED "$summary, $ours lines about our kernels" $((SECONDS - start))
    else # the test itself fails, which the step `kernels` reports
        check_row "$tool $name" "not known" "the test ends with $status; $summary" $((SECONDS - start))
        unknown "$tool $name"
    fi
    report quick
}

step_sanitizer() {
    local tool name option key
    sanitizer=$(tool_path compute-sanitizer || true)
    [ -n "$sanitizer" ] || skip "there is no compute-sanitizer on this machine"
    # CUDA 13 has --kernel-name-exclude, older ones have --kernel-regex-exclude.
    option=--kernel-name-exclude
    "$sanitizer" --help 2>/dev/null | grep -e "$option" >/dev/null || option=--kernel-regex-exclude
    exclude=()
    for key in nvjet cutlass gemm xmma splitK; do exclude+=("$option" "kns=$key"); done
    export CM_NO_PEAK=1
    for tool in racecheck memcheck synccheck initcheck; do
        for name in test_attention test_layers test_linalg test_gemm; do
            [ ! -f "dev/test/cuda/$name.cu" ] || sanitize $tool $name
        done
    done
    note "$(awk -F '\t' '$1 == "sanitizer" { n[$3]++ } END { for (k in n) printf "%s%d %s", c++ ? ", " : "", n[k], k }' "$work/checks.tsv")"
}

# ---- training

# Muon and CM on preset speedrun, in the time that is left. The measured rate gives the number of steps.
step_train() {
    local train seconds rate tokens=524288 count name status batch=32 val=262144 model=()
    need train train_gpt_cuda
    large_data
    seconds=$((($(left) - 30) / 2))
    rate=$(awk -F '\t' '$2 == "cm.c" && $3 == "124M" && $6 == "cm" && $11 > most { most = $11 } END { print int(most * 0.75) }' "$work/rows.tsv" 2>/dev/null || true)
    [ "${rate:-0}" -gt 0 ] || rate=150000
    if [ -n "$CHECK_TOY" ]; then
        tokens=64 batch=2 val=128 rate=1000 seconds=2
        model=(--layers 1 --width 32 --heads 2 --seq-len 32)
    elif [ $((rate * seconds / tokens)) -lt 100 ]; then tokens=131072; fi
    count=$((rate * seconds / tokens))
    [ $count -ge 20 ] || { note "too little time was left for 20 steps"; exit 75; }
    for name in muon cm; do
        status=0
        limited $((seconds + 15)) "$train" --preset speedrun --optimizer $name --seed 1 --batch-size $batch \
            --total-batch-tokens $tokens --steps $count --val-every $((count / 5)) --val-tokens $val --checkpoint-every 0 \
            --keep-checkpoints 0 "${data[@]}" "${model[@]}" --runs-dir "$work/runs" --run "train-$name" \
            >"$work/train.$name.out" 2>&1 || status=$?
        tail -n 5 "$work/train.$name.out"
        case $status in
        0) ;;
        124) unknown "$name ran past $((seconds + 15)) s" ;;
        *) bad "$name: $(tail -n 1 "$work/train.$name.out" | cut -c 1-160)" ;;
        esac
    done
    # The validation losses of steps that both runs have.
    awk 'function f(name,   p, s) {
            p = index($0, "\"" name "\": ")
            s = p ? substr($0, p + length(name) + 4) : "null"
            sub(/[,}].*/, "", s)
            return s
        }
        f("val_loss") == "null" { next }
        FNR == NR { muon[f("step")] = f("val_loss"); next }
        f("step") in muon { printf "%s\t%s\t%s\n", f("step"), muon[f("step")], f("val_loss") }' \
        "$work/runs/train-muon/log.jsonl" "$work/runs/train-cm/log.jsonl" >"$work/train.tsv"
    {
        say "$count steps of $tokens tokens, batch $batch, seed 1; data: $source."
        say
        say "| step | validation loss, Muon | CM |"
        say "|---|---|---|"
        awk -F '\t' '{ printf "| %s | %s | %s |\n", $1, $2, $3 }' "$work/train.tsv"
        for name in muon cm; do
            say
            say "$name: $(field "$work/runs/train-$name/log.jsonl" tok_s | median) tokens/s, $(sed -n 's/^peak memory/peak memory/p' "$work/train.$name.out")"
        done
    } >"$work/train.md"
    note "$count steps of $tokens tokens; validation loss $(tail -n 1 "$work/train.tsv" | awk -F '\t' '{ print "Muon " $2 ", CM " $3 }'); $source"
    # On any data, a model that learns ends with a lower loss.
    awk -F '\t' -v need="$([ -n "$CHECK_TOY" ] && say 0 || say 0.5)" 'NR == 1 { a = $2; b = $3 } { c = $2; d = $3 }
        END { exit !(NR > 1 && c < a - need && d < b - need) }' "$work/train.tsv" || bad "it does not learn"
}
