#!/bin/sh
# Low-rank training and fine-tuning at matched learning rates, with error bars: docs/lora.md.
#   from scratch   2 layers of width 128 on TinyShakespeare, products of ranks 1 to 32, widths 64 and 128, depths 1, 2
#                  and 4, factors scaled by 1, 3, 9 and 27: LoRA-Muon, Spectron and dense Muon (dev/compare/lora.toml)
#   fine-tuning    a model of one text goes on to another, by adapters of rank 8 (dev/compare/lora_tune.toml)
#   tokens         1.05M a run from scratch, 0.41M in fine-tuning; some 400 runs of one thread
#   hardware       any CPU, as many runs at once as it has processors; no GPU. docs/lora.md has how long it took
# Kill it at any time: it goes on where it stopped. Results: runs/lora/GRID.csv; --committed writes dev/compare/GRID.csv.
# usage: scripts/lora_study.sh [scratch|tune|all] [--committed] [flags of compare.py]
# It needs data/tinyshakespeare.txt (make train fetches it) and for fine-tuning data/bytes_train.txt and
# data/bytes_val.txt, the other text (docs/comparison.md, "Running it"; any text will do).
set -eu
cd "$(dirname "$0")/.."
part=${1:-all}
[ $# -eq 0 ] || shift
results=runs/lora
if [ "${1:-}" = --committed ]; then
    results=dev/compare
    shift
fi
case $part in
scratch | tune | all) ;;
*)
    echo "error: \"$part\" is none of scratch, tune and all" >&2
    exit 1
    ;;
esac
make -s train_gpt
mkdir -p runs/lora

# Runs a grid of dev/compare.
grid() {
    name=$1
    shift
    python3 scripts/compare.py "dev/compare/$name.toml" --results "$results/$name.csv" \
        --runs-dir "runs/lora/running_$name" "$@"
}

sh data/tinyshakespeare.sh >/dev/null
[ "$part" = tune ] || grid lora "$@"
[ "$part" != scratch ] || exit 0
for file in data/bytes_train.txt data/bytes_val.txt; do
    [ -s $file ] && continue
    echo "error: there is no $file, the text that the model knows before it is tuned; docs/comparison.md tells how" \
        "to make it, under \"Running it\"" >&2
    exit 1
done
# The model that all arms begin from. It is in fp32 on one thread, so that every machine makes it alike but for the
# last bits.
base=runs/lora/base
if [ ! -s $base/checkpoints/step_00001500.ckpt ]; then
    resume=
    [ ! -e $base/run.json ] || resume=--resume
    ./train_gpt --run base --runs-dir runs/lora $resume --data data/bytes_train.txt --val-data data/bytes_val.txt \
        --steps 1500 --threads 1 --compute fp32 --val-every 500 --checkpoint-every 0 --keep-checkpoints 1
fi
grid lora_tune "$@"
