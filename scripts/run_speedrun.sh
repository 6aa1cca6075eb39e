#!/bin/sh
# The modded-nanoGPT optimization benchmark (KellerJordan/modded-nanogpt, records/track_3_optimization at f411b3d3):
# the fewest steps to a validation loss of 3.28 on FineWeb, with a model, data and batch that are fixed.
#   usage    scripts/run_speedrun.sh RECORD [flags of train_gpt, which win]
#            scripts/run_speedrun.sh --list         the records: flags, steps, what is claimed, sources
#   model    12 layers x 768, 6 heads of 128, 162,354,816 parameters (--preset speedrun)
#   tokens   524,288 a step, one pass over FineWeb from its beginning, 190 steps a shard of 10^8 tokens: 18 shards for
#            3250 steps (data/fineweb.sh 18, 3.8 GB with the validation shard), 30 for 5625. Every seed reads the same.
#   FLOPs    7.98e8 a token (6 a parameter of a product, and attention's causal half), 1.36e18 in 3250 steps
#   memory   24 GiB in bf16 at --batch-size 64, 26 GiB with k-maxwell's averages (counted by --dry-run)
#   hours    3250 steps: 49 minutes of training on one H200, from 577,282 tokens/s measured (docs/benchmarks.md, 100
#            steps of Muon), and 4 more of validation, counted; 5625 steps of AdamW: 85 minutes and 7, counted
#   cost     about 3 dollars for 3250 steps, at 3.50 dollars an hour of one H200 (a price that we assume)
# A record is decided by many seeds: with n runs whose mean is m, (3.28 - m) sqrt(n) must be 0.004 or more, so that one
# run needs 3.276 (scripts/significance.py). The loss is read at the claimed step of a schedule that is laid out for N
# steps: as the benchmark does, runs validate every 125 steps, and every 25 in the last tenth. bi-maxwell and k-maxwell
# have claims at other steps, and validate every 10 there. A validation reads 10.5 million tokens forward: 6 s, counted
# as a third of the time of training. docs/speedrun.md tells what is worth its time.
# Environment: SEED, PROGRAM, DATA, PRINT, TOY, see scripts/pretrain.sh. A run is runs/speedrun-RECORD-sSEED, and flags
# of the command line that change what it computes follow in its name; started again, it goes on, or is left as it is
# if it is complete.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/pretrain.sh
. scripts/pretrain.sh

# AdamW outside the blocks as in records 1, 2, 3, 6, 10 and 12; the preset has that of record 36.
aux="--lr-embed 0.3 --lr-head 0.003125 --lr-scalar 0.01"
aux="$aux --weight-decay-embed 0 --weight-decay-head 0 --weight-decay-scalar 0"
record12="--optimizer muon --lr 0.035 --weight-decay 0.025 $aux"
normuon="--qk normuon-long --ov normuon-long --mlp normuon-long"
adamw="--optimizer adamw --lr 0.0015 --weight-decay 0.1 --adam-beta1-blocks 0.9 --adam-beta2-blocks 0.95"
adamw="$adamw --warmup 250 $aux"
adamw_tuned="--optimizer adamw --lr 0.001 --weight-decay 1 --adam-beta1-blocks 0.9 --adam-beta2-blocks 0.9"
adamw_tuned="$adamw_tuned --weight-decay-embed 0.002 --weight-decay-head 0.002 --weight-decay-scalar 0.002"
adamw_tuned="$adamw_tuned --lr-phases 0:1e-7,100:1"
ages="--optimizer muon --momentum-ages-from 1000"
until="--momentum-ages-until 3250"
tail="--ema-from 2400 --ema-horizon 150 --ema-blend 0.6"
per_head="--qk muon-head --ov muon-head --lr-qk 0.0125 --lr-ov 0.0125"

# name | flags beside --preset speedrun | N | claimed loss and step, number of runs | source
# The arms at the end are this project's, without a claim. Rates of attention there: Muon's, times the ratio of the best
# rates of small models with QK-norm (docs/comparison.md); nobody has tuned them at this size.
records() {
    cat <<END
muon | --optimizer muon | 3250 | 3.2787 at 3250, n=10 | record 36, PR 323
muon-12 | $record12 | 3350 | 3.2790 at 3325, n=20 | record 12
normuon | $record12 $normuon | 3300 | 3.2789 at 3250, n=20 | record 10, PR 276
adamw | $adamw --init torch | 5625 | 3.2790 at 5625, n=1, which the rule does not accept | record 2
adamw-tuned | $adamw_tuned | 4950 | 3.2776 at 4950, n=10 | open PR 353
bi-maxwell | $ages --momentum-ages bi-maxwell --val-every-end 10 | 3250 | 3.27817 at 3210, n=8 | open PR 340
k-maxwell | $ages --momentum-ages k-maxwell $until --val-every-end 10 | 3250 | 3.27794 at 3160, n=8 | open PR 357
tail-ema | --optimizer muon $tail | 3250 | - | our combination: record 36, read out as record 45 is
muon-head | --optimizer muon $per_head | 3250 | - | our arm on record 36: Muon for each head
circuit | --optimizer muon --ov muon --circuit on | 3250 | - | our arm: the circuit rule of record 41 on record 36
cm | --optimizer cm --lr-qk 0.0177 --lr-ov 0.0177 | 3250 | - | our arm on record 36: CM on attention
cm-match | --optimizer cm --cm-match-muon | 3250 | - | our arm on record 36: CM with steps as long as Muon's
END
}

case ${1:-} in
    --help | -h) print_head ;;
    --list)
        records | awk -F ' [|] ' '{
            claim = $4 == "-" ? "no claim" : "claimed: " $4
            printf "%s: N = %s\n    --preset speedrun %s\n    %s (%s)\n", $1, $3, $2, claim, $5
        }'
        exit 0
        ;;
    '' | -*) stop 2 "name a record: $(records | awk '{ printf "%s%s", sep, $1; sep = ", " }') (--list says more)" ;;
esac
record=$1
shift
line=$(records | awk -F ' [|] ' -v name="$record" '$1 == name')
[ -n "$line" ] || stop 2 "there is no record \"$record\"; scripts/run_speedrun.sh --list has all"
set_flags --preset speedrun --batch-size 64 --total-batch-tokens 524288 --checkpoint-every 250
# shellcheck disable=SC2046 # words
set_flags $(printf '%s\n' "$line" | awk -F ' [|] ' '{ print $2, "--steps", $3 }')
claim=$(printf '%s\n' "$line" | awk -F ' [|] ' '{ print ($4 == "-" ? "no claim" : "claimed: " $4) " (" $5 ")" }')
[ -n "${PRINT:-}" ] || say "$record, $claim"
pretrain "speedrun-$record" fineweb10B "$@"
