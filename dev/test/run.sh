#!/bin/sh
# Runs test programs and scripts, JOBS at a time, and adds up their last lines, "N passed, N failed".
# With T=NAME, a program whose name begins with NAME runs all of its tests, and any other program runs the tests
# whose names begin with NAME. Exit status 0 only if every program ran to its end and nothing failed.
# usage: [T=NAME] run.sh PROGRAM_OR_SCRIPT...
set -u
# Threads that wait must not spin: other tests are running.
OMP_WAIT_POLICY=passive
T=${T:-}
export OMP_WAIT_POLICY T
[ $# -gt 0 ] || { echo "no test and no test program has a name that begins with \"$T\"" >&2; exit 1; }
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP

# one.sh PROGRAM DIR: runs one program. Its output goes to DIR/NAME.out; passed and failed checks and
# the program's name go to DIR/NAME.sum.
cat >"$dir/one.sh" <<'SCRIPT'
program=$1
out=$2/test$(printf %s "$program" | tr / _).out
name=$(basename "$program")
chosen=$T
case ${name#test_} in "$T"*) chosen= ;; esac
start=$(date +%s%N)
case $program in
*.sh) sh "$program" $chosen >"$out" 2>&1 ;;
*) "$program" $chosen >"$out" 2>&1 ;;
esac
status=$?
ms=$((($(date +%s%N) - start) / 1000000))
line=$(tail -n 1 "$out")
p=$(printf '%s\n' "$line" | sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p')
f=$(printf '%s\n' "$line" | sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p')
if [ -z "$p" ] || { [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; }; then
    cat "$out"
    echo "FAIL $program: ended with status $status before its summary"
    p=${p:-0}
    f=$((${f:-0} + 1))
elif [ "$f" -ne 0 ] || [ -n "$T" ]; then
    cat "$out"
fi
printf '%-32s %6s passed %4s failed %8s ms\n' "$name" "$p" "$f" "$ms"
echo "$p $f" >"$out.sum"
SCRIPT
printf '%s\n' "$@" | xargs -P "${JOBS:-$(nproc 2>/dev/null || echo 1)}" -I '{}' \
    sh -c 'text=$(sh "$1/one.sh" "$2" "$1"); printf "%s\n" "$text"' run "$dir" '{}'
# The tests that took longest, of all programs.
if [ -z "$T" ]; then
    echo "the longest tests:"
    for f in "$dir"/*.out; do
        sed -n "s|^\([a-z0-9_]* *[0-9]* checks *\([0-9]*\) ms\).*|\2 \1  $(basename "$f" .out | sed 's/^test[a-z]*_//')|p" "$f"
    done | sort -rn | head -n 5 | sed 's/^[0-9]* /    /'
fi
set -- "$#" $(cat "$dir"/*.sum | awk '{ p += $1; f += $2; n++ } END { print p + 0, f + 0, n + 0 }')
[ "$1" -eq "$4" ] || { echo "FAIL $(($1 - $4)) programs of $1 have left no result"; set -- "$1" "$2" $(($3 + 1)); }
echo "$2 passed, $3 failed"
[ "$3" -eq 0 ] && [ "$2" -gt 0 ]
