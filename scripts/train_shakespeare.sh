#!/bin/sh
# Trains a GPT on TinyShakespeare with Compositional Muon and samples from it: `make train`.
#   model     4 layers, see the defaults of ./train_gpt --help
#   tokens    two to three passes over one million bytes
#   hardware  any laptop; about three minutes on two cores, no GPU, no cost
# usage: scripts/train_shakespeare.sh RUN [train_gpt flags]
set -eu
cd "$(dirname "$0")/.."
run=${1:-shakespeare}
[ $# -gt 0 ] && shift

# The text, or another edition of Shakespeare, or, without any network, the text of this repository,
# so that the program can be tried anywhere.
if ! data=$(sh data/tinyshakespeare.sh); then
    data=data/repository.txt
    cat README.md docs/*.md train_gpt.c generate.c llmc/*.h llmc/*/*.h dev/test/*.c >"$data"
    echo "note: training on the text of this repository instead, $data; its losses compare with nothing else." >&2
fi

# The other edition ends in a play of which training sees nothing: it takes a longer run, with decay.
[ "${data##*/}" != shakespeare.txt ] || [ $# -gt 0 ] ||
    set -- --steps 1600 --weight-decay 0.1

# A run that was interrupted goes on; one that is finished is not overwritten.
if [ -d "runs/$run/checkpoints" ] && [ -n "$(ls -A "runs/$run/checkpoints")" ]; then
    ./train_gpt --data "$data" --run "$run" --resume "$@"
else
    ./train_gpt --data "$data" --run "$run" "$@"
fi
echo
echo "--- a sample ---"
./generate --run "$run" --prompt "ROMEO:" --tokens 400
