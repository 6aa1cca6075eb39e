#!/bin/sh
# Static analysis of the programs and the library by gcc -fanalyzer, cppcheck and clang-tidy, as far as they
# are installed. dev/analyze/known lists the reports that are wrong or accepted. They are counted, and all others
# are printed. Exit status 0 if there are no others. Takes some minutes.
# usage: make analyze, or dev/analyze/run.sh [SOURCE...]
set -u
cd "$(dirname "$0")/../.."
CC=${CC:-gcc}
sources=${*:-train_gpt.c generate.c llmc/cmuon.c data/tokenize.c}
# Without -march=native the vectors of the matrix product are many small ones, and the analyzer takes minutes.
flags="-std=gnu11 -I. -fopenmp -march=native"
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
: >"$dir/reports"
sed '/^#/d; /^ *$/d' dev/analyze/known >"$dir/known"

# tool NAME COMMAND...: keeps the lines of a command's output that are reports, FILE:LINE: text.
tool() {
    name=$1
    shift
    command -v "$1" >/dev/null 2>&1 || { echo "note: there is no $1"; return; }
    "$@" 2>&1 | grep -E '^[^ ]*(\.[ch]|cc1):.*(warning|error|[a-zA-Z]+):' | grep -v ' note: ' |
        sed "s|^$(pwd)/||; s|^\\./||; s|^|$name: |" >"$dir/out"
    printf '%-12s %5d reports\n' "$name" "$(wc -l <"$dir/out")"
    cat "$dir/out" >>"$dir/reports"
}
for source in $sources; do
    case $CC in
    *clang*) ;;
    *) tool "fanalyzer" "$CC" -fanalyzer -O1 $flags -fdiagnostics-plain-output -c "$source" -o /dev/null ;;
    esac
done
tool cppcheck cppcheck --enable=warning,performance,portability --std=c11 -q -I. -D__GNUC__=12 -D_OPENMP=1 \
    --template='{file}:{line}: {id}: {message}' $sources
for source in $sources; do tool "clang-tidy" clang-tidy --quiet "$source" -- $flags; done

grep -v -E -f "$dir/known" "$dir/reports" | sort -u >"$dir/new"
cat "$dir/new"
echo "$(wc -l <"$dir/reports") reports, $(wc -l <"$dir/new") of them not in dev/analyze/known"
[ ! -s "$dir/new" ]
