#!/bin/sh
# Checks the format of every tracked file: clang-format and at most 100 columns in C and CUDA, at most 120
# columns in Markdown, where tables, links and code may be longer. Reports that a program wrote are left out.
# usage: scripts/format_check.sh
set -u
cd "$(dirname "$0")/.."
bad=0
command -v clang-format >/dev/null || { echo "error: clang-format is not installed (Debian: apt-get install clang-format)" >&2; exit 1; }

git ls-files >/dev/null || { echo "error: git tells which files to check, and this is not a repository of git" >&2; exit 1; }

# A script generates the tables of unicode_classes.h.
code=$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' | grep -v unicode_classes.h)
clang-format --dry-run -Werror $code || bad=1

# Columns are characters, so continuation bytes of UTF-8 do not count.
too_long='{ line = $0; gsub(/[\200-\277]/, "", line) } length(line) > limit { print FILENAME ":" FNR ": " length(line) " columns"; bad = 1 } END { exit bad }'
LC_ALL=C awk -v limit=100 "$too_long" $code || bad=1
LC_ALL=C awk -v limit=120 "FNR == 1 { fence = 0 } /^\`\`\`/ { fence = !fence } fence || /^\\|/ || /^    / || /\\]\\(/ || /https?:/ { next } $too_long" \
    $(git ls-files '*.md' ':!dev/gpu/reports') || bad=1
[ "$bad" -eq 0 ] || echo "make format formats C and CUDA; comments and Markdown are wrapped by hand" >&2
exit "$bad"
