#!/bin/sh
# What adapters cost: the time of a step and of its update, and the memory, by rank, beside the frozen model's forward
# and backward pass, and beside training all weights by AdamW and by Muon. All take turns; the least time of each counts.
#   speed   (time of the frozen model + the adapters' operations at that model's rate) / time with adapters
# usage: dev/bench/lora.sh [ROUNDS [THREADS]]
set -eu
cd "$(dirname "$0")/../.."
rounds=${1:-3} threads=${2:-$(nproc)}
make -s train_gpt
dir=build/bench_lora
rm -rf $dir
mkdir -p $dir
. dev/test/sentences.sh
sentences 6000 >$dir/text.txt

# step MODEL ARM FLAGS...: adds "ARM ms update flops MiB" to the times of a model.
step() {
    model=$1 arm=$2
    shift 2
    ./train_gpt --runs-dir $dir --run new --data $dir/text.txt --threads "$threads" --dry-run "$@" >$dir/out 2>/dev/null
    awk -v arm="$arm" '
        /^memory/ { for (i = 1; i < NF; i++) if ($(i + 1) == "MiB:") mib = $i }
        /^flops/ { flops = $2 }
        /^time/ { for (i = 1; i < NF; i++) if ($(i + 1) == "ms") ms = $i; match($0, /step, [0-9.]+/); up = substr($0, RSTART + 6, RLENGTH - 6) }
        END { print arm, ms, up, flops, mib }' $dir/out >>$dir/$model.times
}

measure() { # MODEL TENSORS_BUT_ONE FLAGS...
    model=$1 all=$2
    shift 2
    ./train_gpt --runs-dir $dir --run "$model" --data $dir/text.txt --steps 1 --val-tokens 1024 --threads "$threads" "$@" >/dev/null 2>&1
    i=0
    while [ $i -lt "$rounds" ]; do
        step "$model" frozen --init-from "$model" --freeze "$all"
        for rank in 4 8 16 32; do
            step "$model" "$rank" --init-from "$model" --lora-rank $rank --lora lora-muon
            step "$model" "$rank-adamw" --init-from "$model" --lora-rank $rank --lora adamw
        done
        step "$model" all-adamw --init-from "$model" --optimizer adamw
        step "$model" all-muon --init-from "$model" --optimizer muon
        i=$((i + 1))
    done
    echo "$model: $*, $threads threads, least of $rounds"
    awk '
        !($1 in ms) { order[++n] = $1 }
        !($1 in ms) || $2 < ms[$1] { ms[$1] = $2 }
        !($1 in up) || $3 < up[$1] { up[$1] = $3 }
        { flops[$1] = $4; mib[$1] = $5 }
        END {
            printf "%-12s %9s %9s %9s %7s\n", "arm", "step ms", "update ms", "MiB", "speed"
            for (i = 1; i <= n; i++) {
                a = order[i]; speed = ""
                # the update is no part of the bar
                if (a ~ /^[0-9]/) speed = sprintf("%.2f", ms["frozen"] * flops[a] / flops["frozen"] / (ms[a] - up[a]))
                printf "%-12s %9.4g %9.3g %9.4g %7s\n", a, ms[a], up[a], mib[a], speed
            }
        }' "$dir/$model.times"
}
measure tiny wte,norm1_w,wqkv,wo,norm2_w,wfc,wproj,normf_w,whead
measure gpt2 wte,norm1_w,norm1_b,wqkv,bqkv,wo,bo,norm2_w,norm2_b,wfc,bfc,wproj,bproj,normf_w,normf_b \
    --preset gpt2 --seq-len 64 --batch-size 4 --vocab 50257
rm -rf $dir
