#!/bin/sh
# Prints docs/flags.md, the list of all flags, from the flag table of the trainer.
# usage: scripts/flags_md.sh [PROGRAM] >docs/flags.md; without PROGRAM: ./train_gpt
set -eu
cat <<'END'
# Flags of the trainer

`make train_gpt && sh scripts/flags_md.sh >docs/flags.md` writes this file. `./train_gpt --help` prints the same
list; `./generate --help` lists the flags of the sampler. A value is given as `--name value` or `--name=value`.
Every program knows every flag; the flags of the section On a GPU have an effect in `train_gpt_cuda` and
`train_gpt_cuda_fp32` only.

END
"${1:-./train_gpt}" --help-markdown | sed 's/^### /## /'
