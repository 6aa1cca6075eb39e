#!/bin/sh
# Runs test programs and scripts, JOBS at a time, and adds up what they print as "N passed, N failed". Exit
# status 0 only if all of them ran to their end and nothing failed. usage: run.sh PROGRAM_OR_SCRIPT...
set -u
# Threads that wait must not spin: other tests are running.
OMP_WAIT_POLICY=passive
export OMP_WAIT_POLICY
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP

# run_one PROGRAM DIR: leaves what it prints in DIR/NAME.out, and in DIR/NAME.sum its line and two numbers.
cat >"$dir/one.sh" <<'SCRIPT'
program=$1
out=$2/test$(printf %s "$program" | tr / _).out
start=$(date +%s)
case $program in
*.sh) sh "$program" >"$out" 2>&1 ;;
*) "$program" >"$out" 2>&1 ;;
esac
status=$?
line=$(tail -n 1 "$out")
p=$(printf '%s\n' "$line" | sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p')
f=$(printf '%s\n' "$line" | sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p')
if [ -z "$p" ] || { [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; }; then
    cat "$out"
    echo "FAIL $program: ended with status $status before its summary"
    p=${p:-0}
    f=$((${f:-0} + 1))
elif [ "$f" -ne 0 ]; then
    cat "$out"
fi
printf '%-32s %6s passed %4s failed %4ss\n' "$(basename "$program")" "$p" "$f" $(($(date +%s) - start))
echo "$p $f" >"$out.sum"
SCRIPT
printf '%s\n' "$@" | xargs -P "${JOBS:-$(nproc 2>/dev/null || echo 1)}" -I '{}' \
    sh -c 'text=$(sh "$1/one.sh" "$2" "$1"); printf "%s\n" "$text"' run "$dir" '{}'
set -- "$#" $(cat "$dir"/*.sum | awk '{ p += $1; f += $2; n++ } END { print p + 0, f + 0, n + 0 }')
[ "$1" -eq "$4" ] || { echo "FAIL $(($1 - $4)) programs of $1 have left no result"; set -- "$1" "$2" $(($3 + 1)); }
echo "$2 passed, $3 failed"
[ "$3" -eq 0 ] && [ "$2" -gt 0 ]
