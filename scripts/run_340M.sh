#!/bin/sh
# The published comparison of CM and Muon at 340M parameters and 10 billion tokens, as far as it is public.
#   usage      scripts/run_340M.sh ARM [flags of train_gpt, which win]; --list prints the arms
#   model      24 layers x 1024, 16 heads of 64, SwiGLU of 2752, tied head, 355.1M parameters (303.6M of them in blocks)
#   tokens     19,073 steps of 524,288 = 1.00e10, one pass over 101 shards of FineWeb (data/fineweb.sh 101, 20 GB)
#   FLOPs      2.28e9 a token (6 a parameter, and attention's causal half; --dry-run), 2.28e19 in all
#   hardware   one GPU; 32 GiB of its memory in bf16 at --batch-size 32, 57 GiB at 64 (counted by --dry-run)
#   hours      13.2 on one H200: 210,054 tokens/s with CM, 213,342 with AdamW, measured on GPT-2's 350M shape at batch
#              16 (docs/benchmarks.md), which takes as many FLOPs a token; validation adds 0.4 (counted)
#   cost       about 48 dollars, at 3.50 dollars an hour of one H200 (a price that we assume)
#   published  Muon 2.5575, CM 2.5477 with QK-norm and RoPE (Tilde Research, June 2026,
#              tilde-research/comp-muon-release; we know the figures at second hand)
# Public are the size, the number of tokens, QK-norm and RoPE. Our choice are layers, width, heads, MLP, norm, tied
# head, tokenizer (GPT-2), data, length of sequences, batch, rates, decay and schedule. Validation losses on other data
# and another tokenizer do not compare: look at the difference between arms, which is published as -0.0098.
# AdamW has the rate of Brown et al. 2020 (table 2.1) for 350M, 0.0003. The arms with signs: rate 0.02, and a decay
# with which rate x decay adds up to about 2 over the run (2.6 in record 36 of the speedrun benchmark), and for the
# embedding and gains AdamW at 0.003 without decay; nobody has tuned them.
# Environment: SEED, PROGRAM, DATA, PRINT, TOY, see scripts/pretrain.sh. A run is runs/340M-ARM-sSEED, and flags of
# the command line that change what it computes follow in its name; started again, it goes on, or is left as it is if
# it is complete.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/pretrain.sh
. scripts/pretrain.sh

set_flags --preset llama --layers 24 --width 1024 --heads 16 --tied on --batch-size 32 \
    --total-batch-tokens 524288 --steps 19073 --warmup 700 --data-order sequential --val-every 250 \
    --val-tokens 10485760 --checkpoint-every 250
set_arm "${1:-}" 0.02 "--weight-decay 0.01" \
    "--lr 0.0003 --lr-embed 0.0003 --lr-scalar 0.0003 --weight-decay 0.1 --weight-decay-embed 0.1"
arm=$1
shift
pretrain "340M-$arm" fineweb10B "$@"
