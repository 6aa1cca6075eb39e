#!/bin/sh
# GPT-2 124M on 10 billion tokens of FineWeb, with the flags of llm.c's scripts/run_gpt2_124M.sh where AdamW is at work.
#   usage      scripts/run_124M.sh ARM [flags of train_gpt, which win]; --list prints the arms
#   model      12 layers x 768, 12 heads of 64, 124.44M parameters (--preset gpt2)
#   tokens     18,865 steps of 524,288 = 9.89e9, one pass over 100 shards (data/fineweb.sh 100, 20 GB)
#   FLOPs      7.98e8 a token (6 a parameter of a product, and attention's causal half; --dry-run), 7.89e18 in all
#   hardware   one GPU; 23 GiB of its memory in bf16 at --batch-size 64 (counted by --dry-run), so 40 GB are enough
#   hours      4.6 on one H200: 599,224 tokens/s with AdamW, 590,744 with CM (measured on this model and batch,
#              docs/benchmarks.md); validation adds 0.1 (counted, a third of the time of training a token)
#   cost       about 17 dollars, at 3.50 dollars an hour of one H200 (a price that we assume)
#   published  validation loss 3.28 for llm.c's run of this size and length, from which modded-nanogpt started (its
#              target is that loss, on the same 10,485,760 tokens as here); OpenAI's GPT-2 124M has 29.4 % on HellaSwag
#              (llm.c's dev/vislog.ipynb)
# Not llm.c's are the order of the data (theirs is shuffled; here shards are read from front to back, so that all arms
# and seeds read the same) and the random numbers. The arms with signs are ours: rate 0.02, and a decay with which rate
# x decay adds up to about 2 over the run (2.6 in record 36 of the speedrun benchmark); nobody has tuned them here.
# Environment: SEED, PROGRAM, DATA, PRINT, TOY, see scripts/pretrain.sh. A run is runs/124M-ARM-sSEED, and flags of
# the command line that change what it computes follow in its name; started again, it goes on, or is left as it is if
# it is complete.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/pretrain.sh
. scripts/pretrain.sh

set_flags --preset gpt2 --batch-size 64 --total-batch-tokens 524288 --steps 18865 --warmup 700 --lr-final 0 \
    --weight-decay-embed 0.1 --data-order sequential --val-every 250 --val-tokens 10485760 --checkpoint-every 250
set_arm "${1:-}" 0.02 "--weight-decay 0.01" "--lr 0.0006 --weight-decay 0.1"
arm=$1
shift
pretrain "124M-$arm" fineweb10B "$@"
