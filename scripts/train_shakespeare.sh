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

# Without a network the program trains on the text of this repository, so that it can be tried anywhere.
if ! data=$(sh data/tinyshakespeare.sh); then
    data=data/repository.txt
    cat README.md docs/*.md train_gpt.c generate.c llmc/*.h llmc/*/*.h dev/test/*.c >"$data"
    echo "note: training on the text of this repository instead, $data; its losses do not compare with others." >&2
fi

# In the other edition the validation part is a play that training does not see. It needs a longer run, with
# weight decay.
[ "${data##*/}" != shakespeare.txt ] || [ $# -gt 0 ] ||
    set -- --steps 1600 --weight-decay 0.1

# An interrupted run is resumed, on its own data. A finished run is not overwritten.
if [ -f "runs/$run/run.json" ]; then
    ./train_gpt --run "$run" --resume "$@"
else
    ./train_gpt --data "$data" --run "$run" "$@"
fi
echo
echo "--- a sample ---"
./generate --run "$run" --prompt "ROMEO:" --tokens 400
