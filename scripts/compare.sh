#!/bin/sh
# Does CM beat Muon? A reduced grid at matched learning rates, with error bars: `make compare`.
#   model     4 layers, width 128 (0.85M parameters)
#   tokens    300 steps of 2048 bytes a run, some 36 runs, as many at once as there are processors
#   hardware  any laptop; 11 minutes on two cores of an AMD EPYC (Zen 4), at most half an hour; no GPU, no cost
# Kill it at any time: it goes on where it stopped. Results: runs/compare/GRID.csv, GRID.html.
# usage: scripts/compare.sh [GRID.toml [flags of compare.py]]
set -eu
cd "$(dirname "$0")/.."
grid=${1:-dev/compare/laptop.toml}
[ $# -eq 0 ] || shift
name=$(basename "$grid" .toml)
out=runs/compare

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: comparing needs Python 3.11 or later (python3); Debian 12 has it: apt-get install python3" >&2
    exit 1
fi
mkdir -p "$out"
if [ "$name" = laptop ]; then
    # Without a network: the text of this repository, so that the comparison can be tried anywhere.
    if ! data=$(sh data/tinyshakespeare.sh); then
        data=data/repository.txt
        [ -s $data ] || cat README.md docs/*.md train_gpt.c generate.c llmc/*.h llmc/*/*.h dev/test/*.c >$data
        echo "note: comparing on the text of this repository instead, $data; its losses do not compare with others." >&2
    fi
    # Programs without oneDNN compute in fp32.
    compute=fp32
    ! ./train_gpt --data "$data" --compute bf16 --dry-run >/dev/null 2>&1 || compute=bf16
    set -- --set "data=$data" --set "compute=$compute" --seconds 1440 "$@"
fi
status=0
python3 scripts/compare.py "$grid" --results "$out/$name.csv" --runs-dir "$out/running" "$@" || status=$?
[ $status = 0 ] || [ $status = 3 ] || exit $status # 3: the time was over, and the report is of what is there
if [ ! -s "$out/$name.csv" ]; then
    echo "note: no run has ended yet, so there is no report"
    exit 0
fi
# The report reads the grid as the comparison did: of the arguments, those that narrow it stay.
previous= words=$#
while [ $words -gt 0 ]; do
    word=$1
    shift
    case $previous in --set | --setting | --arms) set -- "$@" "$previous" "$word" ;; esac
    case $word in --set=* | --setting=* | --arms=*) set -- "$@" "$word" ;; esac
    previous=$word
    words=$((words - 1))
done
python3 scripts/report.py "$grid" "$@" --results "$out/$name.csv" -o "$out/$name.html"
picture() {
    python3 scripts/plot.py --from-csv "$out/$name.csv" "$@" || true
}
if python3 -c 'import matplotlib' 2>/dev/null; then
    # Curves: a picture for each setting that has runs on fresh seeds.
    awk -F, '$5 == "final" && !seen[$2]++ { print $2 }' "$out/$name.csv" | while read -r setting; do
        picture --setting "$setting" -o "$out/$name-$setting.png"
    done
    picture --rates -o "$out/$name-rates.png"
else
    echo "note: pictures beside the report need matplotlib: python3 -m pip install matplotlib"
fi
