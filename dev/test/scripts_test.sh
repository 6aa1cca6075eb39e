#!/bin/sh
# Tests of the Python scripts: runs dev/test/test_scripts_*.py and adds up their results. A test that lacks a
# Python package says so and counts nothing. usage: scripts_test.sh [TEST...]
set -u
passed=0
failed=0
if ! command -v python3 >/dev/null 2>&1; then
    echo "skipped: the scripts need python3"
    echo "0 passed, 0 failed"
    exit 0
fi
for program in dev/test/test_scripts_*.py; do
    echo "$program"
    out=$(python3 "$program" "$@" 2>&1)
    status=$?
    printf '%s\n' "$out"
    last=$(printf '%s\n' "$out" | tail -n 1)
    case $last in
    *[0-9]" passed, "*[0-9]" failed")
        passed=$((passed + ${last%% *}))
        rest=${last#*, }
        failed=$((failed + ${rest%% *}))
        ;;
    *) failed=$((failed + 1)) && echo "FAIL $program: ended with status $status before its summary" ;;
    esac
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
