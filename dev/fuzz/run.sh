#!/bin/sh
# Runs fuzz programs one after the other, SECONDS each, with the sanitizers that they were built with. The corpus grows
# in a folder beside the program and begins with the committed one. Prints executions, coverage (edges, features) and
# findings, which are kept beside the program too. Exit status 0 only if there is no finding.
# usage: sh dev/fuzz/run.sh SECONDS PROGRAM...
set -u
cd "$(dirname "$0")/../.." || exit 1
seconds=$1
shift
status=0
export ASAN_OPTIONS="detect_leaks=${LEAKS:-1}:allocator_may_return_null=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
for program in "$@"; do
    target=$(basename "$program")
    target=${target#fuzz_}
    committed=dev/fuzz/corpus/$target
    grown=$(dirname "$program")/corpus/$target
    findings=$(pwd)/$(dirname "$program")/findings/$target # a target may work in another folder
    log=$(dirname "$program")/$target.log
    mkdir -p "$grown" "$findings"
    set -- -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -max_len=65536 -print_final_stats=1 -close_fd_mask=2
    if [ -e "dev/fuzz/$target.dict" ]; then set -- "$@" "-dict=dev/fuzz/$target.dict"; fi
    before=$(find "$findings" -type f | wc -l)
    "$program" "$@" -artifact_prefix="$findings/" "$grown" "$committed" >"$log" 2>&1
    code=$?
    new=$(($(find "$findings" -type f | wc -l) - before))
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    last=$(grep -E '^#[0-9]+.* cov: ' "$log" | tail -n 1)
    printf '%-12s %9s executions %4s s  %s  %d findings\n' "$target" "${executions:-?}" "$seconds" \
        "$(printf '%s\n' "$last" | sed -n 's/.*\(cov: [0-9]* ft: [0-9]* corp: [^ ]*\).*/\1/p')" "$new"
    if [ "$code" -ne 0 ] || [ "$new" -gt 0 ]; then
        status=1
        grep -E -A 12 'FAIL |ERROR: |runtime error|SUMMARY' "$log" | head -n 40
        find "$findings" -type f -newer "$committed" | head -n 3
    fi
done
exit "$status"
