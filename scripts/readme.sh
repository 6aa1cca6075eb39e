#!/bin/sh
# Rewrites the list of flags in README.md from the flag table. usage: scripts/readme.sh
set -eu
cd "$(dirname "$0")/.."
./train_gpt --help-markdown >build/flags.md
awk '
    /^## Flags/ { print; print ""; while ((getline line < "build/flags.md") > 0) print line; skip = 1; next }
    /^## / { if (skip) print ""; skip = 0 }
    !skip' README.md >build/README.md
mv build/README.md README.md
