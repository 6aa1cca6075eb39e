#!/bin/sh
# Tokens per second of GPT-2 124M at B=4, T=64, fp32, AdamW: this trainer and llm.c's CPU trainer take turns in
# one run, with equal numbers of threads. Needs a checkout of llm.c (default peers/llm.c).
# usage: dev/bench/vs_llmc.sh [LLMC_FOLDER] [ROUNDS]
set -eu
cd "$(dirname "$0")/../.."
peer=${1:-peers/llm.c}
rounds=${2:-3}
threads=${OMP_NUM_THREADS:-$(nproc)}
[ -f "$peer/train_gpt2.c" ] || { echo "there is no llm.c in $peer: clone it there first" >&2; exit 1; }
make -s train_gpt build/bench_llmc_files
make -s -C "$peer" train_gpt2 >/dev/null
data=build/llmc
tokens=$peer/dev/data/tinyshakespeare
mkdir -p "$data" "$tokens"
[ -f "$peer/gpt2_124M.bin" ] || { build/bench_llmc_files "$data"; mv "$data/gpt2_124M.bin" "$peer/"; }
[ -f "$data/train.bin" ] || build/bench_llmc_files "$data"
cp "$data/train.bin" "$tokens/tiny_shakespeare_train.bin"
cp "$data/val.bin" "$tokens/tiny_shakespeare_val.bin"

echo "GPT-2 124M, B=4 T=64 (256 tokens a step), fp32, AdamW, $threads threads"
round=1
while [ "$round" -le "$rounds" ]; do
    # Steps 1 and 2 of llm.c count, because step 0 allocates. Then it is stopped.
    (cd "$peer" && exec env OMP_NUM_THREADS="$threads" stdbuf -oL ./train_gpt2) >"$data/llmc.out" 2>&1 &
    peer_pid=$!
    until grep -q '^step 2:' "$data/llmc.out"; do kill -0 $peer_pid 2>/dev/null || break; sleep 0.2; done
    kill $peer_pid 2>/dev/null || true
    wait $peer_pid 2>/dev/null || true
    sed -n 's/^step [12]: .*took \([0-9.]*\) ms.*/\1/p' "$data/llmc.out" >"$data/theirs.$round"
    rm -rf "$data/runs"
    ./train_gpt --preset gpt2 --seq-len 64 --batch-size 4 --optimizer adamw --lr 1e-4 --steps 6 \
        --threads "$threads" --data "$data/train.bin" --val-data "$data/val.bin" --val-tokens 1280 \
        --runs-dir "$data/runs" --run bench --keep-checkpoints 0 >/dev/null
    sed -n 's/.*"step": [2-6],.*"ms": \([0-9.]*\),.*/\1/p' "$data/runs/bench/log.jsonl" >"$data/ours.$round"
    rm -rf "$data/runs"
    awk -v round="$round" '
        FNR == NR { theirs += $1; n++; next }
        { ours += $1; m++ }
        END { a = 256000 * n / theirs; b = 256000 * m / ours
              printf "round %d: llm.c %.1f tok/s, cm.c %.1f tok/s, ratio %.1f\n", round, a, b, b / a }' \
        "$data/theirs.$round" "$data/ours.$round"
    round=$((round + 1))
done
