#!/bin/sh
# Compares the CUDA programs with the CPU's: flags, losses, logs, checkpoints and text. The programs are those
# of the emulator, unless TRAIN_CUDA, TRAIN_CUDA_FP32 and GENERATE_CUDA name programs built with nvcc.
# usage: cuda_test.sh [TEST...]
set -u
here=$(pwd)
emu=${BUILD:-build}/emu
TRAIN_GPT=${TRAIN_GPT:-train_gpt} GENERATE=${GENERATE:-generate}
TRAIN_CUDA=${TRAIN_CUDA:-$emu/train_gpt} TRAIN_CUDA_FP32=${TRAIN_CUDA_FP32:-$emu/train_gpt_fp32}
GENERATE_CUDA=${GENERATE_CUDA:-$emu/generate_fp32}
for name in TRAIN_GPT GENERATE TRAIN_CUDA TRAIN_CUDA_FP32 GENERATE_CUDA; do
    eval "program=\$$name"
    case $program in /*) ;; *) program=$here/$program ;; esac
    eval "$name=\$program"
    [ -x "$program" ] || { echo "FAIL there is no $program"; exit 1; }
done
. "$here/dev/test/program.sh"
. "$here/dev/test/examples.sh"
# The emulator invents times. A GPU's times are real, so every new folder may choose other algorithms.
[ "$TRAIN_CUDA" = "$here/$emu/train_gpt" ] && emulated=yes chosen= || emulated=no chosen="--gemm first"

# near A B LIMIT: two logs have equally many lines, and the relative difference of losses is at most LIMIT.
near() {
    log_of "$1" >one.tmp-log
    log_of "$2" >two.tmp-log
    paste -d '\n' one.tmp-log two.tmp-log | awk -v limit="$3" '
        function field(name,   p) {
            p = index($0, "\"" name "\": ")
            return p ? substr($0, p + length(name) + 4) + 0 : 0
        }
        NR % 2 { a = field("train_loss"); v = field("val_loss"); next }
        {
            if (!a && !v) next
            n++
            d = field("train_loss") - a; e = field("val_loss") - v
            if (d < 0) d = -d
            if (e < 0) e = -e
            if (d > limit * (a + 1e-9) || e > limit * (v + 1e-9)) { bad++; print "    line", NR / 2, a, d, v, e }
        }
        END { exit bad || n < 5 }'
}

sentences >text.txt
rest="--layers 2 --heads 2 --kv-heads 1 --seq-len 24 --val-every 6 --val-tokens 96 --threads 1"
shape="$rest --width 32 --steps 12"
common="$shape --data text.txt --batch-size 2"

# Both programs know all flags, including those of a GPU.
test_help() {
    "$TRAIN_GPT" --help >cpu.help
    "$TRAIN_CUDA" --help >cuda.help
    check "--help of the CUDA program is not that of the CPU program" cmp cpu.help cuda.help
    for flag in attention cuda-graph device gelu gemm tf32; do
        check "--help lacks --$flag" has cpu.help "^  --$flag "
    done
}

# The CUDA programs have the losses of the CPU program.
test_losses() {
    for flags in "--optimizer cm" "--preset gpt2 --optimizer muon" "--preset llama --optimizer adamw --grad-clip 1"; do
        rm -rf runs
        # These flags make the presets small.
        run "$TRAIN_GPT" $flags $common --run cpu
        run "$TRAIN_CUDA_FP32" $flags $common --run fp32 --tf32 off
        check "$flags: fp32 on CUDA ends with $?" [ -n "$(newest runs/fp32)" ]
        run "$TRAIN_CUDA" $flags $common --run bf16
        check "$flags: bf16 on CUDA ends with $?" [ -n "$(newest runs/bf16)" ]
        # In fp32 the order of sums differs. bf16 has 8 bits, and twelve steps amplify its rounding.
        check "$flags: fp32 on CUDA has other losses than the CPU" near runs/cpu runs/fp32 2e-4
        check "$flags: bf16 on CUDA has other losses than the CPU" near runs/cpu runs/bf16 2e-2
        check "$flags: bf16 equals fp32 to all digits, so it is not bf16" \
            [ "$(log_of runs/fp32)" != "$(log_of runs/bf16)" ]
    done
}

# Adapters beside the weights of a run, and products in place of matrices: the losses of the CPU program. A run
# of adapters moves from one machine to the other, and merged on CUDA it writes the text that it writes unmerged.
test_factors() {
    rm -rf runs
    run "$TRAIN_GPT" $common --run base
    tune="--data text.txt --batch-size 2 --threads 1 --steps 12 --val-every 6 --val-tokens 96 --init-from base"
    for flags in "$tune --lora-rank 3 --lora-on all" "$tune --lora-rank 4 --lora-on o,fc --lora adamw --lora-plus 4" \
        "$common --low-rank 3 --lora-on all --lora lora-rite --recompute block" \
        "--preset llama $common --low-rank 4 --lora-split off --biases on --lora cm"; do
        rm -rf runs/cpu runs/fp32 runs/bf16
        run "$TRAIN_GPT" $flags --run cpu --checkpoint-every 4 --keep-checkpoints 9
        run "$TRAIN_CUDA_FP32" $flags --run fp32 --tf32 off
        check "$flags: fp32 on CUDA ends with $?" [ -n "$(newest runs/fp32)" ]
        run "$TRAIN_CUDA" $flags --run bf16
        check "$flags: bf16 on CUDA ends with $?" [ -n "$(newest runs/bf16)" ]
        check "$flags: fp32 on CUDA has other losses than the CPU" near runs/cpu runs/fp32 2e-4
        check "$flags: bf16 on CUDA has other losses than the CPU" near runs/cpu runs/bf16 2e-2
        case $flags in *adamw*) cp -r runs/cpu runs/moved ;; esac
        case $flags in *adamw*) cp -r runs/cpu runs/whole ;; esac
    done
    rm -f runs/moved/checkpoints/step_0000000[8-9]* runs/moved/checkpoints/step_0000001*
    run "$TRAIN_CUDA_FP32" --run moved --resume --tf32 off
    check "a CPU's adapters on CUDA: exit status $?" has out 'resumed.*step_00000004'
    check "a CPU's adapters that went on on CUDA have other losses" near runs/whole runs/moved 2e-4
    for name in moved merged; do
        [ -d runs/$name ] || run "$GENERATE_CUDA" --run moved --merge $name
        run "$GENERATE_CUDA" --run $name --prompt 'the king' --tokens 20 --temperature 0
        cp out $name.text
    done
    check "adapters that are merged on CUDA write another text" cmp moved.text merged.text
    check "adapters on CUDA write no text" [ "$(wc -c <merged.text)" -gt 20 ]
}

# The CUDA programs print the CPU's sizes of steps at the start, and log the composed steps that the CPU logs.
test_steps() {
    rm -rf runs
    run "$TRAIN_GPT" $common --run cpu --log-groups
    grep -A 10 '^steps ' out >cpu.steps
    check "the CPU program shows no sizes of steps" [ "$(lines cpu.steps)" -eq 11 ]
    for program in "$TRAIN_CUDA_FP32" "$TRAIN_CUDA"; do
        rm -rf runs/cuda
        run "$program" $common --run cuda --log-groups
        grep -A 10 '^steps ' out >cuda.steps
        # Three digits are printed; signs in TF32 or bf16 differ in the third.
        check "sizes of steps on CUDA are not the CPU's: $program" awk '
            NR == FNR { line[FNR] = $0; next }
            FNR > 2 { n = split(line[FNR], a); if (n != split($0, b)) bad = 1
                for (i = n - 2; i <= n; i++) if ((a[i] - b[i]) ^ 2 > (0.01 * a[i]) ^ 2) bad = 1 }
            END { exit bad || FNR != 11 }' cpu.steps cuda.steps
        for circuit in QK OV; do
            last="s/.*\"$circuit\": {\"composed_max\": \([0-9.e-]*\), \"composed_median\": \([0-9.e-]*\)}.*/\1 \2/p"
            { sed -n "$last" runs/cpu/log.jsonl | tail -n 1; sed -n "$last" runs/cuda/log.jsonl | tail -n 1; } >steps
            # Twelve steps amplify bf16's rounding.
            check "the composed step of $circuit on CUDA is not the CPU's: $(tr '\n' ' ' <steps)" awk '
                NR == 1 { x = $1; y = $2; next }
                END { exit !(NR == 2 && x > 0.1 && ($1 - x) ^ 2 < (0.05 * x) ^ 2 && ($2 - y) ^ 2 < (0.05 * y) ^ 2) }' steps
        done
    done
}

# Accuracies on examples are those of the CPU, but that rounding may change the choice of one of the twelve.
test_evaluation() {
    examples 12 >twelve.bin
    evaluated=$(echo "$shape" | sed 's/--seq-len 24/--seq-len 48/; s/--steps 12/--steps 2/; s/--val-every 6/--val-every 0/')
    for program in "$TRAIN_GPT" "$TRAIN_CUDA_FP32"; do
        rm -rf runs/e
        run "$program" $evaluated --run e --data text.txt --batch-size 3 --eval-data twelve.bin --eval-every 0
        extras_of runs/e | tail -n 1 >>last.extras
    done
    check "an evaluation on CUDA has other accuracies than on the CPU: $(tr '\n' ';' <last.extras)" awk '
        { acc[NR] = $5 + 0; norm[NR] = $7 + 0; n += $1 == 2 && $4 == "\"eval_acc\":" && $6 == "\"eval_acc_norm\":" }
        END { a = acc[1] - acc[2]; b = norm[1] - norm[2]
            exit n != 2 || a * a > 0.01 || b * b > 0.01 || !(acc[1] + norm[1] > 0) }' last.extras
}

# Recomputation changes no number; accumulation adds up to one batch.
test_recompute() {
    run "$TRAIN_CUDA" $common --optimizer cm --run whole
    run "$TRAIN_CUDA" $common --optimizer cm --run again --recompute block
    check "--recompute block on CUDA changes the numbers" same_log runs/whole runs/again
    run "$TRAIN_CUDA_FP32" $shape --data text.txt --optimizer cm --run one --batch-size 4
    run "$TRAIN_CUDA_FP32" $shape --data text.txt --optimizer cm --run four --batch-size 1 --total-batch-tokens 96
    check "four micro-batches on CUDA are not one batch" near runs/one runs/four 2e-4
}

# Makes the run cpu2 on the CPU.
cpu_run() {
    rm -rf runs/cpu2
    run "$TRAIN_GPT" $common --optimizer cm --checkpoint-every 4 --keep-checkpoints 9 --run cpu2
}

# A run moves from one machine to the other and back.
test_move() {
    cpu_run
    mkdir -p runs/moved/checkpoints runs/back/checkpoints
    cp runs/cpu2/checkpoints/step_00000004.ckpt runs/moved/checkpoints
    head -n 5 runs/cpu2/log.jsonl >runs/moved/log.jsonl
    run "$TRAIN_CUDA_FP32" --run moved --resume --tf32 off
    check "a CPU's checkpoint on CUDA: exit status $?" has out 'resumed.*step_00000004'
    check "a CPU's run that went on on CUDA has other losses" near runs/cpu2 runs/moved 2e-4
    cp runs/moved/checkpoints/step_00000008.ckpt runs/back/checkpoints
    head -n 9 runs/moved/log.jsonl >runs/back/log.jsonl
    run "$TRAIN_GPT" --run back --resume
    check "a CUDA checkpoint on the CPU: exit status $?" has out 'resumed.*step_00000008'
    check "a run that came back to the CPU has other losses" near runs/cpu2 runs/back 2e-4
    cp -r runs/moved runs/tobf16
    rm -f runs/tobf16/checkpoints/step_0000001*
    run "$TRAIN_CUDA" --run tobf16 --resume
    check "an fp32 checkpoint in bf16: exit status $?" near runs/cpu2 runs/tobf16 2e-2
}

# Makes the run without signals, in the folder `unbroken`.
unbroken() {
    flags="$shape --batch-size 2 --data ../text.txt --optimizer cm --checkpoint-every 3 --run r --total-batch-tokens 96 $chosen"
    [ ! -d unbroken ] || return
    mkdir unbroken
    (cd unbroken && run "$TRAIN_CUDA" $flags)
    check "an unbroken run on CUDA" [ -f unbroken/runs/r/checkpoints/step_00000012.ckpt ]
}

# A run that is killed and resumed ends as the unbroken run, to the bit.
test_kill() {
    unbroken
    mkdir broken
    (cd broken && exec "$TRAIN_CUDA" $flags >"$dir/out" 2>"$dir/err") &
    child=$!
    await_lines broken/runs/r/log.jsonl 6
    kill -9 $child 2>/dev/null
    wait $child 2>/dev/null
    child=
    (cd broken && run "$TRAIN_CUDA" --run r --resume)
    check "a killed and resumed run on CUDA has another log" same_log unbroken/runs/r broken/runs/r
    check "a killed and resumed run on CUDA ends elsewhere" cmp "$(newest unbroken/runs/r)" "$(newest broken/runs/r)"
}

# SIGTERM leaves a checkpoint, and the resumed run ends as the unbroken run, to the bit. No thread of the
# driver may receive the signal.
test_sigterm() {
    unbroken
    mkdir stopped
    (cd stopped && exec "$TRAIN_CUDA" $flags >"$dir/out" 2>"$dir/err") &
    child=$!
    await_lines stopped/runs/r/log.jsonl 4
    kill -TERM $child 2>/dev/null
    wait $child 2>/dev/null
    check "SIGTERM on CUDA: exit status $?, not 143" [ $? -eq 143 ]
    child=
    check "SIGTERM on CUDA leaves no word of how to go on" has out 'stopped by signal 15.*--resume'
    (cd stopped && run "$TRAIN_CUDA" --run r --resume)
    check "a stopped and resumed run on CUDA has another log" same_log unbroken/runs/r stopped/runs/r
    check "a stopped and resumed run on CUDA ends elsewhere" cmp "$(newest unbroken/runs/r)" "$(newest stopped/runs/r)"
}

# Micro-batches that replay a graph give the numbers of those that do not.
test_graph() {
    graph="$shape --batch-size 2 --data text.txt --total-batch-tokens 144"
    for flags in "--optimizer cm" "--preset gpt2 --optimizer adamw --recompute act"; do
        run "$TRAIN_CUDA" $flags $graph --run plain --cuda-graph off
        run "$TRAIN_CUDA" $flags $graph --run replayed --cuda-graph on
        check "$flags: --cuda-graph on has another log" same_log runs/plain runs/replayed
        check "$flags: --cuda-graph on ends elsewhere" same_tensors "$(newest runs/plain)" "$(newest runs/replayed)"
        rm -rf runs/plain runs/replayed
    done
}

# GELU in the epilogue of a product changes the last bits. --recompute changes none.
test_gelu() {
    gelu="--preset gpt2 --optimizer muon $common"
    run "$TRAIN_CUDA" $gelu --run apart --gelu unfused
    run "$TRAIN_CUDA" $gelu --run fused --gelu fused
    check "--gelu fused on CUDA has other losses" near runs/apart runs/fused 2e-2
    [ $emulated = no ] || check "--gelu fused changes nothing" not same_log runs/apart runs/fused
    for recompute in act norm block; do
        run "$TRAIN_CUDA" $gelu --run again-$recompute --gelu fused --recompute $recompute
        check "--gelu fused --recompute $recompute changes the numbers" same_log runs/fused runs/again-$recompute
    done
}

# On a Hopper GPU, --attention hopper has the losses of the portable attention, and equal runs have equal bits.
test_hopper() {
    hopper="--layers 2 --heads 2 --kv-heads 1 --head-dim 64 --width 32 --seq-len 136 --batch-size 1 --steps 8 --val-every 4"
    hopper="$hopper --val-tokens 272 --threads 1 --optimizer cm --data text.txt"
    run "$TRAIN_CUDA" $hopper --run hopper --attention hopper
    if ! grep -q -e '--attention hopper: this GPU' err; then
        check "--attention hopper is not taken" has out 'attention hopper'
        run "$TRAIN_CUDA" $hopper --run hopper2 --attention hopper
        run "$TRAIN_CUDA" $hopper --run portable --attention flash
        check "--attention hopper has other losses than flash" near runs/portable runs/hopper 2e-2
        check "--attention hopper: two runs differ" same_log runs/hopper runs/hopper2
        check "--attention hopper: two runs end elsewhere" same_tensors "$(newest runs/hopper)" "$(newest runs/hopper2)"
        refused "heads of 32 for hopper" '--attention hopper: it takes head widths of 64 and 128, not 32.*--attention flash' \
            run "$TRAIN_CUDA" $common --run no --head-dim 32 --attention hopper
    fi
}

# A run keeps the algorithms that it has chosen for its products, even if others are faster later.
test_choices() {
    if [ $emulated = yes ]; then
        mkdir slow fast both
        products="$shape --batch-size 2 --data ../text.txt --optimizer cm --checkpoint-every 5 --keep-checkpoints 9 --run r"
        (cd slow && CM_EMU_FASTEST=0 run "$TRAIN_CUDA" $products)
        (cd fast && CM_EMU_FASTEST=1 run "$TRAIN_CUDA" $products)
        check "the fastest algorithm makes no difference" not same_log slow/runs/r fast/runs/r
        rm -f fast/runs/r/checkpoints/step_0000001*
        (cd fast && CM_EMU_FASTEST=0 run "$TRAIN_CUDA" --run r --resume)
        check "a run whose algorithms are stored does not resume" has out "resumed.*step_00000005"
        (cd both && CM_EMU_FASTEST=1 run "$TRAIN_CUDA" $products)
        check "a resumed run takes other algorithms" same_log both/runs/r fast/runs/r
        check "a resumed run with its algorithms ends elsewhere" cmp "$(newest both/runs/r)" "$(newest fast/runs/r)"
        (cd both && rm -rf runs/r && CM_EMU_FASTEST=0 run "$TRAIN_CUDA" $products)
        check "a second run in a folder takes other algorithms than the first" same_log both/runs/r fast/runs/r
        echo damaged >both/runs/choices.txt
        (cd both && rm -rf runs/r && CM_EMU_FASTEST=0 run "$TRAIN_CUDA" $products)
        check "a damaged file of choices is passed over without a word" has err 'note: .*choices'
        check "a damaged file of choices changes the measurement" same_log both/runs/r slow/runs/r
        (cd both && rm -rf runs && CM_EMU_FASTEST=1 run "$TRAIN_CUDA" $products)
        (cd both && rm -rf runs/r && CM_EMU_FASTEST=1 run "$TRAIN_CUDA" $products --gemm first)
        check "--gemm first takes what other runs have measured" same_log both/runs/r slow/runs/r
        (cd both && rm -rf runs && CM_EMU_FASTEST=1 run "$TRAIN_CUDA" $products --gemm first)
        check "--gemm first measures" same_log both/runs/r slow/runs/r
    fi
}

# --logit-rows changes no loss beyond rounding.
test_logit_rows() {
    run "$TRAIN_CUDA" $common --run all-rows
    run "$TRAIN_CUDA" $common --run few-rows --logit-rows 7
    check "--logit-rows 7 on CUDA has other losses" near runs/all-rows runs/few-rows 2e-2
}

# Sampling.
test_sampling() {
    cpu_run
    if [ $emulated = yes ]; then # the emulator has the precision of the CPU
        run "$GENERATE" --run cpu2 --prompt 'the king' --tokens 60 --temperature 0
        cp out cpu.text
        run "$GENERATE_CUDA" --run cpu2 --prompt 'the king' --tokens 60 --temperature 0
        check "generate on CUDA writes another text than on the CPU" cmp -s out cpu.text
    fi
    run "$GENERATE_CUDA" --run cpu2 --prompt 'the king' --tokens 60 --seed 3
    cp out first
    check "generate on CUDA: $(wc -c <first) bytes" [ "$(wc -c <first)" -eq 69 ]
    run "$GENERATE_CUDA" --run cpu2 --prompt 'the king' --tokens 60 --seed 3
    check "generate on CUDA: equal seeds, different text" cmp -s out first
}

# Error messages name the flag and the reason.
test_refusals() {
    refused "no such GPU" '--device 1000: this machine has' run "$TRAIN_CUDA" $common --run no --device 1000
    refused "fp32 in the bf16 program" '--compute fp32.*train_gpt_cuda_fp32' run "$TRAIN_CUDA" $common --run no --compute fp32
    refused "a wide head" '--head-dim 256' run "$TRAIN_CUDA" $common --run no --head-dim 256
    if [ $emulated = yes ]; then
        CM_EMU_MEMORY=855638016 # 816 MiB, of which 768 are reserved and 32 are for cuBLAS
        export CM_EMU_MEMORY
        refused "a small GPU" 'the largest --batch-size that fits is [1-9][0-9]*; --recompute' \
            run "$TRAIN_CUDA" $rest --data text.txt --run no --width 128 --batch-size 64
        fits=$(sed -n 's/.*that fits is \([0-9]*\).*/\1/p' err)
        check "the largest batch $fits does not fit" run "$TRAIN_CUDA" $rest --data text.txt --run fits --width 128 --batch-size \
            "$fits" --steps 0
        refused "a tiny GPU" 'too little for one sequence' run "$TRAIN_CUDA" $rest --data text.txt --run no --width 1024 --head-dim 64
        unset CM_EMU_MEMORY
    fi
}

# A Gram without an inverse root ends the CUDA programs with the CPU's sentence, which names the matrices, and
# leaves no checkpoint. A head that is wider than the model has such a Gram.
test_rootless() {
    for flags in "--ov muon" "--qk muon" "--qk muon --inv-root eigh"; do
        for program in "$TRAIN_GPT" "$TRAIN_CUDA_FP32" "$TRAIN_CUDA"; do
            rm -rf runs
            refused "$flags" 'the update of W_. and W_. needs.* is not positive definite; raise --damping' \
                run "$program" $common --run no --init gpt2 --head-dim 48 --damping 0 $flags
            grep '^error: ' err >sentence # a sanitizer may have more to say
            [ "$program" = "$TRAIN_GPT" ] && cp sentence cpu.sentence
            check "$flags: $program has another sentence than the CPU" cmp -s cpu.sentence sentence
            check "$flags: $program keeps a checkpoint" [ -z "$(newest runs/no)" ]
        done
    done
}

run_tests "$@"
