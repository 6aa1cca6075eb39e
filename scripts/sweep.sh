#!/bin/sh
# Every combination of learning rates, seeds and rules, several runs at once: a table of mean and deviation,
# a picture of loss against rate, the best rate.
# usage: scripts/sweep.sh --lr 0.005,0.01,0.02 --seed 1,2,3 [--optimizer cm,muon] [flags of train_gpt]
set -eu
exec python3 "$(dirname "$0")/compare.py" --sweep "$@"
