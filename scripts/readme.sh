#!/bin/sh
# Rewrites the lists of flags in README.md from the flag table: all of them, and those that a GPU's program has
# alone, for which the emulated one is asked (make build/emu/train_gpt). usage: scripts/readme.sh
set -eu
cd "$(dirname "$0")/.."
./train_gpt --help-markdown >build/flags.md
build/emu/train_gpt --help-markdown | grep '^| `--' | grep -v -x -F -f build/flags.md >build/gpu_flags.md
awk '
    function put(file,   line) { while ((getline line < file) > 0) print line }
    /^## Flags/ { print; print ""; put("build/flags.md"); skip = 1; next }
    /^## GPUs/ { gpus = 1 }
    /^## / { if (skip) print ""; skip = 0 }
    skip { next }
    gpus && /^\|---/ { print; put("build/gpu_flags.md"); next }
    gpus && /^\| `--/ { next }
    /^## / && !/^## GPUs/ { gpus = 0 }
    { print }' README.md >build/README.md
mv build/README.md README.md
