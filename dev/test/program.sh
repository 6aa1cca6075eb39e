# What the tests of whole programs share; sourced from the root of the repository. Goes into an empty folder
# $dir, which is deleted at the end, as is the process $child. Programs leave what they print in out and err.
OMP_WAIT_POLICY=passive # threads that wait must not spin: the machine may be busy with other tests
export OMP_WAIT_POLICY
dir=$(mktemp -d) || exit 1
child=
trap '[ -z "$child" ] || kill -9 $child 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP
cd "$dir" || exit 1
passed=0
failed=0

# check DESCRIPTION COMMAND...: counts one test, which passes if the command does.
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

# What a log says that does not depend on time.
log_of() { sed 's/, "ms".*//' "$1/log.jsonl"; }
same_log() { [ -s "$1/log.jsonl" ] && [ "$(log_of "$1")" = "$(log_of "$2")" ]; }
newest() { ls "$1"/checkpoints/step_*.ckpt 2>/dev/null | tail -n 1; }
lines() { cat "$1" 2>/dev/null | wc -l; }

# await_lines LOG N: waits until it has so many lines, or the run of the process $child is over.
await_lines() {
    tries=0
    while [ "$(lines "$1")" -lt "$2" ] && kill -0 $child 2>/dev/null && [ $tries -lt 3000 ]; do
        sleep 0.01 2>/dev/null || sleep 1
        tries=$((tries + 1))
    done
}

# tensors_of CKPT: the checkpoint without its header, whose flags may differ, and without the checksum at its end.
tensors_of() {
    [ -s "$1" ] && header=$(od -An -t u8 -j 24 -N 8 "$1" | tr -d ' ') &&
        tail -c +"$((32 + (header + 7) / 8 * 8 + 1))" "$1" | head -c -24
}
same_tensors() {
    tensors_of "$1" >one.tensors && tensors_of "$2" >two.tensors && [ -s one.tensors ] && cmp one.tensors two.tensors
}
