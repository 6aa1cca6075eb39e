# Shared by the tests of whole programs, which source this file from the root of the repository. A test is a
# function test_NAME. The script works in an empty folder $dir. At its end it deletes the folder and ends the
# process $child. `run` writes the output of a program to the files out and err.
OMP_WAIT_POLICY=passive # threads that wait must not spin: the machine may be busy with other tests
export OMP_WAIT_POLICY
all_tests=$(sed -n 's/^test_\([a-z0-9_]*\)() .*/\1/p' "$0")
dir=$(mktemp -d) || exit 1
child=
trap '[ -z "$child" ] || kill -9 $child 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP
cd "$dir" || exit 1
passed=0
failed=0

# check DESCRIPTION COMMAND...: counts one check, which passes if the command succeeds.
check() {
    description=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $description"
        for f in out err; do [ ! -s "$dir/$f" ] || sed "s/^/    $f: /" "$dir/$f" | tail -n 8; done
    fi
}
not() { ! "$@"; }
has() { grep -q -e "$2" "$1"; }
run() { "$@" >"$dir/out" 2>"$dir/err"; }

# refused DESCRIPTION PATTERN COMMAND...: exits with 1 and says why in one line on stderr.
refused() {
    what=$1
    pattern=$2
    shift 2
    "$@"
    status=$?
    check "$what: exit status $status, not 1" [ "$status" -eq 1 ]
    check "$what: the message lacks \"$pattern\"" has "$dir/err" "^error: .*$pattern"
}

. "$here/dev/test/sentences.sh"

# A log without its times.
log_of() { sed 's/, "ms".*//' "$1/log.jsonl"; }
same_log() { [ -s "$1/log.jsonl" ] && [ "$(log_of "$1")" = "$(log_of "$2")" ]; }
newest() { ls "$1"/checkpoints/step_*.ckpt 2>/dev/null | tail -n 1; }
lines() { cat "$1" 2>/dev/null | wc -l; }

# await_lines LOG N: waits until the log has N lines or the process $child has ended.
await_lines() {
    tries=0
    while [ "$(lines "$1")" -lt "$2" ] && kill -0 $child 2>/dev/null && [ $tries -lt 3000 ]; do
        sleep 0.01 2>/dev/null || sleep 1
        tries=$((tries + 1))
    done
}

# tensors_of CKPT: the tensors of a checkpoint, without the header, whose flags may differ, and the checksum.
tensors_of() {
    [ -s "$1" ] && header=$(od -An -t u8 -j 24 -N 8 "$1" | tr -d ' ') &&
        tail -c +"$((32 + (header + 7) / 8 * 8 + 1))" "$1" | head -c -24
}
same_tensors() {
    tensors_of "$1" >one.tensors && tensors_of "$2" >two.tensors && [ -s one.tensors ] && cmp one.tensors two.tensors
}

# run_tests [NAME...]: runs the tests whose names begin with a NAME, or all of them, prints the name, the
# number of checks and the milliseconds of each, and returns the exit status of the script. With QUICK=1 and no NAME it
# leaves out the tests that the script names in slow_tests.
run_tests() {
    for _name in "$@"; do
        echo "$all_tests" | grep -q "^$_name" || {
            echo "no test has a name that begins with \"$_name\". The tests are:" $all_tests
            exit 2
        }
    done
    for _test in $all_tests; do
        _wanted=$#
        case " ${slow_tests:-} " in *" $_test "*) [ $# -gt 0 ] || [ -z "${QUICK:-}" ] || continue ;; esac
        for _name in "$@"; do
            case $_test in "$_name"*) _wanted=0 ;; esac
        done
        [ "$_wanted" -eq 0 ] || continue
        _before=$((passed + failed))
        _start=$(date +%s%N)
        "test_$_test"
        printf '%-32s %6d checks %8d ms\n' "$_test" $((passed + failed - _before)) \
            $((($(date +%s%N) - _start) / 1000000))
    done
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}
