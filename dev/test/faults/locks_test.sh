#!/bin/sh
# What surrounds a program: a second process on its run folder, folders that cannot be written, standard streams that
# are closed, full or gone, a wall clock that jumps. usage: [SEED=N] locks_test.sh [TEST...]
set -u
. "$(pwd)/dev/test/faults/faults.sh"

nothing() {
    rm -rf broken
    mkdir broken
}
# Two processes at once, in the folder `broken`; their exit statuses are in the files one and two.
both() {
    (in_folder broken "$@"; echo $? >one) &
    _one=$!
    (cd broken && "$@" >"$dir/out2" 2>"$dir/err2"; echo $? >"$dir/two")
    wait $_one
}

test_lock() {
    flags="$tiny --threads 1"
    unbroken
    nothing
    # A run that does not end by itself.
    endless=$(echo "$flags" | sed 's/--steps [0-9]*/--steps 1000000/')
    (cd broken && exec "$TRAIN_GPT" $endless >/dev/null 2>&1) 2>/dev/null &
    child=$!
    await_lines broken/runs/r/log.jsonl 8
    refused "a second run of the same name" 'another process' in_folder broken "$TRAIN_GPT" $flags
    refused "a second process resumes" 'another process' in_folder broken "$TRAIN_GPT" --run r --resume --steps $steps
    check "the second process stopped the first" kill -0 $child
    _lines=$(lines broken/runs/r/log.jsonl)
    await_lines broken/runs/r/log.jsonl $((_lines + 2))
    kill -9 $child 2>/dev/null
    wait $child 2>/dev/null
    child=
    in_folder broken "$TRAIN_GPT" --run r --resume --steps "$(($(last_step broken/runs/r) + 3))"
    check "the lock outlives its process: exit status $?" [ $? -eq 0 ]
    check "a line of the log is not whole, or not in order" awk -F'[:,]' '!/^{.*}$/ || $2 + 0 != NR - 1 { bad = 1 }
        END { exit bad || NR < 10 }' broken/runs/r/log.jsonl

    # Both begin at once: one makes the run, and the other is refused.
    for i in 1 2 3 4 5; do
        nothing
        both "$TRAIN_GPT" $flags
        check "two at once: exit statuses $(cat one) and $(cat two)" [ "$(cat one two | sort | tr -d '\n')" = 01 ]
        check "two at once: another result" same_end 0
        # Of two that resume, the later may find the run at its end.
        rm broken/runs/r/checkpoints/step_000000$steps.ckpt
        both "$TRAIN_GPT" --run r --resume
        check "two resume at once: exit statuses $(cat one) and $(cat two)" \
            [ "$(cat one two | sort | tr -d '\n')" = 01 -o "$(cat one two | tr -d '\n')" = 00 ]
        check "two resume at once: another result" same_log whole/runs/r broken/runs/r
        check "two resume at once: another checkpoint" same_saved
    done
}

# A process that resumes has the lock before it reads the run. Here it waits behind a pipe that is full, where it prints
# what the run will be; another one takes the run further, and is refused, or its steps stay.
test_lock_first() {
    flags="$tiny --threads 1"
    nothing
    in_folder broken "$TRAIN_GPT" $flags
    mkfifo pipe
    (exec >pipe; head -c 65536 /dev/zero; cd broken; exec "$TRAIN_GPT" --run r --resume --steps $((steps + 1)) 2>"$dir/err2") &
    child=$!
    { sleep 1; cat >/dev/null; } <pipe &
    _reader=$!
    sleep 0.5
    in_folder broken "$TRAIN_GPT" --run r --resume --steps $((steps + 4))
    _status=$?
    wait $child $_reader
    child=
    check "the second process ends with $_status" [ $_status -eq 0 -o $_status -eq 1 ]
    check "steps that were saved are gone" [ "$(last_step broken/runs/r)" -eq $((steps + (_status ? 1 : 4))) ]
    check "their checkpoint is gone" [ -f "broken/runs/r/checkpoints/step_$(printf %08d $((steps + (_status ? 1 : 4)))).ckpt" ]
    rm pipe
}

# ---- Permissions

# as_user COMMAND...: runs a command as a user whom permissions bind.
as_user() {
    if [ "$(id -u)" -ne 0 ]; then "$@"
    else setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; fi
}
own() { [ "$(id -u)" -ne 0 ] || chown -R 65534:65534 "$@"; }
user_folder() { # COMMAND...
    (cd broken && as_user "$@" >"$dir/out" 2>"$dir/err")
}
# kept DESCRIPTION: the refused command has changed nothing, and the run goes on when the permissions are right again.
kept() {
    chmod -R u+rwX broken text.txt
    check "$1: files have changed" diff -r half broken
    user_folder "$TRAIN_GPT" --run r --resume
    check "$1: the resumed run ends with $?" [ $? -eq 0 ]
    check "$1: the resumed run ends otherwise" same_end 1
}
half_a_run() {
    rm -rf broken
    cp -r half broken
    own broken
}
test_permissions() {
    flags="$tiny --threads 1"
    unbroken
    if [ "$(id -u)" -eq 0 ] && ! as_user "$TRAIN_GPT" --version >/dev/null 2>&1; then
        echo "note: no user whom permissions bind can run $TRAIN_GPT, so the tests of permissions are left out"
        return
    fi
    chmod 755 "$dir"
    own text.txt
    nothing
    own broken
    # A run that still has to do its last steps.
    user_folder "$TRAIN_GPT" $flags
    rm -f broken/runs/r/checkpoints/step_000000$steps.ckpt
    rm -rf half
    mv broken half

    half_a_run
    chmod a-w broken/runs/r/checkpoints
    refused "read-only folder of checkpoints" 'runs/r/checkpoints' user_folder "$TRAIN_GPT" --run r --resume
    chmod u+w broken/runs/r/checkpoints
    user_folder "$TRAIN_GPT" --run r --resume
    check "read-only folder of checkpoints: the resumed run ends otherwise" same_end 1

    half_a_run
    chmod a-w broken/runs/r broken/runs/r/log.jsonl
    refused "read-only log" 'runs/r/log.jsonl' user_folder "$TRAIN_GPT" --run r --resume
    kept "read-only log"

    half_a_run
    chmod a-r broken/runs/r/checkpoints/*.ckpt
    refused "checkpoints that cannot be read" 'step_.*ckpt' user_folder "$TRAIN_GPT" --run r --resume
    kept "checkpoints that cannot be read"

    half_a_run
    chmod a-r text.txt
    refused "data that cannot be read" 'text.txt' user_folder "$TRAIN_GPT" --run r --resume
    kept "data that cannot be read"

    nothing
    own broken
    chmod a-w broken
    refused "read-only folder" 'runs' user_folder "$TRAIN_GPT" $flags
    refused "read-only folder, data/tokenize" '\(t_val\|tmp\)' user_folder "$TOKENIZE" --input ../text.txt --output t $vocabulary
    check "files in a read-only folder" [ -z "$(ls broken)" ]
    chmod u+w broken
    chmod a-w text.txt
    user_folder "$TRAIN_GPT" $flags
    check "data that cannot be written: another result" same_end 0
    # Reading a run needs no right to write.
    chmod -R a-w broken/runs
    user_folder "$GENERATE" --run r --tokens 3 --threads 1
    check "generate from a read-only run: exit status $?" [ $? -eq 0 ]
    chmod -R u+w broken text.txt
}

# ---- Standard streams

whole_lines() {
    [ "$(grep -c '^{"step": .*}$' broken/runs/r/log.jsonl 2>/dev/null)" = "$(lines broken/runs/r/log.jsonl)" ]
}
# run_is_whole WHAT: the run has ended as the unbroken one, and every line of its log is whole.
run_is_whole() {
    check "$1: exit status $status" [ "$status" -eq 0 ]
    check "$1: another result" same_end 0
    check "$1: a line of the log is not whole" whole_lines
}
# closed CLOSED COMMAND...: runs a command in `broken` with standard streams closed, as CLOSED says: 0, 1, 2.
closed() {
    _closed=$1
    shift
    (
        cd broken || exit 1
        exec >"$dir/out" 2>"$dir/err"
        case $_closed in *0*) exec <&- ;; esac
        case $_closed in *1*) exec >&- ;; esac
        case $_closed in *2*) exec 2>&- ;; esac
        exec "$@"
    )
    status=$?
}
test_streams() {
    flags="$tiny --threads 1"
    unbroken
    for streams in 0 1 2 01 02 12 012; do
        nothing
        closed $streams "$TRAIN_GPT" $flags
        run_is_whole "closed streams $streams"
        rm -f broken/runs/r/checkpoints/step_000000$steps.ckpt
        closed $streams "$TRAIN_GPT" --run r --resume
        run_is_whole "closed streams $streams, resumed"
    done
    # A note on standard error, which is closed.
    closed 2 "$TRAIN_GPT" --run r --resume --mlp normuon --steps $((steps + 2))
    check "a note without standard error: exit status $status" [ "$status" -eq 0 ]
    check "a note without standard error: a line of the log is not whole" whole_lines
    nothing
    (cd broken && "$TRAIN_GPT" $flags >/dev/full 2>"$dir/err")
    status=$?
    run_is_whole "standard output on a full device"
    nothing
    (cd broken && "$TRAIN_GPT" $flags >/dev/full 2>&1)
    status=$?
    run_is_whole "both outputs on a full device"
    # A reader that goes away at once.
    nothing
    { (cd broken && "$TRAIN_GPT" $flags 2>"$dir/err"; echo $? >"$dir/status") | :; } 2>/dev/null
    status=$(cat status)
    run_is_whole "a pipe without a reader"
}

# What a program is asked to write to standard output must not be lost without a word. Files are whole in any case.
test_streams_of_others() {
    flags="$tiny --threads 1"
    unbroken
    nothing
    sample="$GENERATE --runs-dir ../whole/runs --run r --tokens 12 --threads 1"
    (cd broken && $sample >/dev/full 2>"$dir/err")
    check "generate to a full device: exit status $?" [ $? -eq 1 ]
    check "generate to a full device: no message" has err '^error: .*No space'
    for streams in 1 12 012; do
        closed $streams $sample
        check "generate with streams $streams closed: exit status $status" [ "$status" -eq 1 ]
    done
    # More text than a pipe holds.
    { (cd broken && "$GENERATE" --runs-dir ../whole/runs --run r --tokens 1000000 --threads 1 2>"$dir/err"
       echo $? >"$dir/status") | head -c 10 >/dev/null; } 2>/dev/null
    check "generate, whose reader goes away: exit status $(cat status)" [ "$(cat status)" -eq 1 ]
    check "generate, whose reader goes away: no message" has err '^error: .*Broken pipe'
    mkdir shards
    in_folder shards "$TOKENIZE" --input ../text.txt --output t --shard-tokens 2000 $vocabulary
    for streams in 0 1 2 01 02 12 012; do
        nothing
        closed $streams "$TOKENIZE" --input ../text.txt --output t --shard-tokens 2000 $vocabulary
        check "data/tokenize with streams $streams closed: exit status $status" [ "$status" -eq 0 ]
        check "data/tokenize with streams $streams closed: other shards" diff -r shards broken
        closed $streams "$TOKENIZE" --decode 'ls' --output t --shard-tokens 2000 $vocabulary
        check "data/tokenize --decode of nothing with streams $streams closed: exit status $status" [ "$status" -eq 1 ]
        closed $streams "$TOKENIZE" --decode '../shards/t_*.bin' --output back.txt $vocabulary
        check "data/tokenize --decode with streams $streams closed: exit status $status" [ "$status" -eq 0 ]
        [ -s back.txt ] || cp broken/back.txt back.txt
        check "data/tokenize --decode with streams $streams closed: another text" cmp -s broken/back.txt back.txt
    done
    # The text of --decode on standard output.
    decode="$TOKENIZE --decode ../shards/t_*.bin --output - $vocabulary"
    nothing
    set -f
    in_folder broken $decode
    check "data/tokenize --decode to standard output: exit status $?" [ $? -eq 0 ]
    check "data/tokenize --decode to standard output: another text" cmp -s out back.txt
    check "data/tokenize --decode to standard output: no report" has err ' documents, .* tokens'
    check "data/tokenize --decode to standard output: a file" [ -z "$(ls broken)" ]
    (cd broken && $decode >/dev/full 2>"$dir/err")
    check "data/tokenize --decode to a full device: exit status $?" [ $? -eq 1 ]
    check "data/tokenize --decode to a full device: no message" has err '^error: .*No space'
    closed 1 $decode
    check "data/tokenize --decode to a closed output: exit status $status" [ "$status" -eq 1 ]
    set +f
    for i in 1 2 3 4 5 6 7 8 9 10; do cat text.txt; done >long.txt
    in_folder broken "$TOKENIZE" --input ../long.txt --output long --val-tokens 0 $vocabulary
    { ("$TOKENIZE" --decode broken/long_train_000001.bin --output - $vocabulary 2>"$dir/err"
       echo $? >"$dir/status") | head -c 10 >/dev/null; } 2>/dev/null
    check "data/tokenize --decode, whose reader goes away: exit status $(cat status)" [ "$(cat status)" -eq 1 ]
    check "data/tokenize --decode, whose reader goes away: no message" has err '^error: .*Broken pipe'
    # A report without a reader is no reason to stop; each of these shards is a line of it.
    { (cd broken && "$TOKENIZE" --input ../text.txt --output many --shard-tokens 200 $vocabulary 2>"$dir/err"
       echo $? >"$dir/status") | head -c 10 >/dev/null; } 2>/dev/null
    check "data/tokenize, whose reader goes away: exit status $(cat status)" [ "$(cat status)" -eq 0 ]
    refused "shards on standard output" '--output -' in_folder broken "$TOKENIZE" --input ../text.txt --output - $vocabulary
    rm -rf shards long.txt
}

# ---- The clock

test_clock() {
    [ -n "$preloads" ] || return
    flags="$tiny --threads 1"
    unbroken
    for jump in 100000 2000000000; do
        nothing
        in_folder broken env LD_PRELOAD="$SHIM" FAULT_CLOCK=$jump FAULT_SEED="$SEED" "$TRAIN_GPT" $flags
        status=$?
        run_is_whole "a clock that jumps by up to $jump s"
        check "a clock that jumps: a time that is not positive" not grep -q '"\(ms\|tok_s\)": \(-\|0\.000,\)' broken/runs/r/log.jsonl
        check "a clock that jumps: a negative time is printed" not grep -q -e '-[0-9.]* \(s\|ms\)\>' out
    done
}

run_tests "$@"
