#!/bin/sh
# Runs test programs and scripts and adds up what they print as "N passed, N failed". Exit status 0
# only if all of them ran to their end and nothing failed. usage: run.sh PROGRAM_OR_SCRIPT...
set -u
passed=0
failed=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for program in "$@"; do
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
        failed=$((failed + 1))
        p=${p:-0}
        f=${f:-0}
    elif [ "$f" -ne 0 ]; then
        cat "$out"
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    printf '%-32s %6s passed %4s failed %4ss\n' "$(basename "$program")" "$p" "$f" $(($(date +%s) - start))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
