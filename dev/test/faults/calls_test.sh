#!/bin/sh
# Calls that fail: every open, write, fsync, rename, mmap and malloc that a small run, a sample or a tokenization makes
# fails once, with each error that the call knows. The program succeeds as if nothing had happened, or ends with a
# message and exit status 1; what was saved stays, and the run that is then resumed ends as the unbroken one.
# CALLS=N takes one in N of these faults by chance, CALLS=1 every one; KINDS="write malloc" takes these kinds of calls.
# usage: [CALLS=N] [SEED=N] [KINDS=...] calls_test.sh [TEST...]
set -u
. "$(pwd)/dev/test/faults/faults.sh"
CALLS=${CALLS:-60}
# A program hangs after this many seconds.
limit=60
faults=0
refusals=0
interrupts=1 # whether calls are interrupted

# The errors of a kind of call. + stands for a fault that stays.
actions_of() {
    case $1 in
    open) echo EMFILE EIO EINTR EMFILE+ ;;
    stream) echo EMFILE EIO ENOMEM EMFILE+ ;;
    write) echo ENOSPC EIO EINTR short ENOSPC+ ;;
    print) echo EIO ENOSPC+ ;;
    fsync) echo EIO ENOSPC EINTR ;;
    rename) echo EIO ENOSPC ;;
    mmap) echo ENOMEM ;;
    malloc) echo ENOMEM ENOMEM+ ;;
    disk) echo EIO ;; # also unlink, mkdir, ftruncate
    esac
}

# refuses_or_succeeds ACTION SAME...: after a fault, the program has ended with a message, or its result is the
# unbroken one. An interrupted or short call is no reason to end.
refuses_or_succeeds() {
    _action=$1
    shift
    case $status in
    0) "$@" ;;
    1)
        refusals=$((refusals + 1))
        has err '^error: ..' && [ "$_action" != short ] && [ "$_action" != EINTR ]
        ;;
    *) false ;;
    esac
}

# each_fault KINDS PREPARE COMMAND SAME AFTER: PREPARE makes the folder `broken`, COMMAND runs the program there, given
# what to run it with; SAME says whether the result is the unbroken one; AFTER checks what is left and goes on from
# there.
each_fault() {
    _kinds=${KINDS:-$1} _prepare=$2 _command=$3 _same=$4 _after=$5
    rm -f counts
    $_prepare
    $_command in_folder broken env LD_PRELOAD="$SHIM" FAULT_COUNTS="$dir/counts"
    status=$?
    check "$_command: exit status $status" [ $status -eq 0 ]
    cp counts counts.whole
    for _kind in $_kinds; do
        _n=1
        _calls=$(sed -n "s/^$_kind //p" counts.whole)
        while [ $_n -le "${_calls:-0}" ]; do
            for _action in $(actions_of $_kind); do
                [ "$_action$interrupts" != EINTR ] || continue
                random "$CALLS"
                [ "$drawn" -eq 0 ] || continue
                faults=$((faults + 1))
                fault="SEED=$SEED $_command FAULT=$_kind:$_n:$_action"
                $_prepare
                rm -f report
                $_command in_folder broken env LD_PRELOAD="$SHIM" FAULT=$_kind:$_n:$_action \
                    FAULT_REPORT="$dir/report" FAULT_SECONDS=$limit 2>/dev/null
                status=$?
                fault="$fault: $(cat report 2>/dev/null)"
                check "$fault: exit status $status" refuses_or_succeeds "$_action" $_same
                $_after
            done
            _n=$((_n + 1))
        done
    done
}
report_faults() {
    echo "SEED=$SEED: $faults calls failed, and $refusals programs ended for that"
    faults=0 refusals=0
}

# ---- Training

nothing() {
    rm -rf broken
    mkdir broken
}
# A run with two checkpoints, and lines of the log behind the newest.
half_a_run() {
    rm -rf broken
    cp -r half broken
}
train_start() { "$@" "$TRAIN_GPT" $flags; }
train_resume() { "$@" "$TRAIN_GPT" --run r --resume; }
same_run() { same_end 0; }
# Every line also has what comes after its times. A resumed run has no groups, unless it is asked for them again.
same_groups() { same_end 0 && [ "$(grep -c '"groups": {.*}}}$' broken/runs/r/log.jsonl)" -eq $steps ]; }
# Lines of the log up to the newest checkpoint are there.
log_is_kept() {
    _lines=$(step_of_newest broken/runs/r)
    [ -z "$_lines" ] || [ "$(log_of broken/runs/r | head -n $((_lines + 1)))" = \
        "$(log_of whole/runs/r | head -n $((_lines + 1)))" ]
}
then_resume() {
    _newest=$(step_of_newest broken/runs/r)
    check "$fault: a whole checkpoint is taken for a damaged one" not has err 'is damaged'
    check "$fault: a checkpoint has changed" same_saved
    check "$fault: lines of the log are lost" log_is_kept
    check "$fault: the newest checkpoint is lost" [ "${_newest:-0}" -ge "$least" ]
    restart_flags
    in_folder broken "$TRAIN_GPT" $restart
    check "$fault: the resumed run ends with $?" [ $? -eq 0 ]
    check "$fault: the resumed run ends otherwise" same_end 0
}
train_kinds="open stream write print fsync rename mmap malloc disk"
test_training() {
    [ -n "$preloads" ] || return
    flags="$tiny --threads 1 --log-groups"
    unbroken
    least=0
    each_fault "$train_kinds" nothing train_start same_groups then_resume
    # The run is killed before the rename of its third checkpoint; the first two renames are of run.json.
    rm -rf broken
    mkdir broken
    in_folder broken env LD_PRELOAD="$SHIM" FAULT=rename:5:KILL "$TRAIN_GPT" $flags 2>/dev/null
    rm -rf half
    mv broken half
    least=6
    check "half a run has no two checkpoints" [ -f half/runs/r/checkpoints/step_00000006.ckpt ]
    each_fault "$train_kinds" half_a_run train_resume same_run then_resume
    report_faults
}

# ---- Sampling

sample() { "$@" "$GENERATE" --runs-dir ../whole/runs --run r --prompt 'the king' --tokens 12 --threads 1; }
same_sample() { cmp -s out sample && not has err 'is damaged'; }
no_more() { :; }
test_sampling() {
    [ -n "$preloads" ] || return
    flags="$tiny --threads 1"
    unbroken
    nothing
    sample in_folder broken
    check "generate: exit status $?" [ $? -eq 0 ]
    cp out sample
    each_fault "open stream print mmap malloc" nothing sample same_sample no_more
    report_faults
}

# ---- Adapters: training, sampling and merging read the file of their base too

another_whole() {
    rm -rf broken
    cp -r whole broken
}
merge() { "$@" "$GENERATE" --run r --merge m --threads 1; }
merged=broken/runs/m/checkpoints/step_000000$steps.ckpt
same_merged() { cmp -s $merged merged.ckpt; }
# The merged checkpoint is whole or absent; then its name is free.
then_merge() {
    if [ -e $merged ]; then
        check "$fault: the merged checkpoint is not whole" same_merged
        return
    fi
    merge in_folder broken
    check "$fault: merged again: exit status $?" [ $? -eq 0 ]
    check "$fault: merged again: another checkpoint" same_merged
}
test_adapters() {
    [ -n "$preloads" ] || return
    make_base
    flags="$tiny --threads 1 $adapters --lora lora-rite"
    unbroken
    least=0
    each_fault "$train_kinds" nothing train_start same_run then_resume
    rm -rf broken
    mkdir broken
    in_folder broken env LD_PRELOAD="$SHIM" FAULT=rename:5:KILL "$TRAIN_GPT" $flags 2>/dev/null
    rm -rf half
    mv broken half
    least=6
    each_fault "$train_kinds" half_a_run train_resume same_run then_resume
    nothing
    sample in_folder broken
    check "generate: exit status $?" [ $? -eq 0 ]
    cp out sample
    each_fault "open stream print mmap malloc" nothing sample same_sample no_more
    another_whole
    merge in_folder broken
    cp $merged merged.ckpt
    each_fault "open stream write print fsync rename mmap malloc disk" another_whole merge same_merged then_merge
    report_faults
}

# ---- Tokens

encode() { "$@" "$TOKENIZE" --input ../text.txt --output t --shard-tokens 900 $vocabulary; }
decode() { "$@" "$TOKENIZE" --decode '../whole/t_*.bin' --output back.txt $vocabulary; }
whole_or_absent() {
    for _file in broken/*.bin broken/back.txt; do
        [ ! -e "$_file" ] || cmp -s "$_file" "whole/${_file##*/}" || { echo "    $_file differs"; return 1; }
    done
}
same_files() { whole_or_absent && [ "$(ls broken)" = "$(ls whole | grep "$pattern")" ]; }
then_again() {
    check "$fault: a file is not whole" whole_or_absent
    rm -f broken/*.bin broken/back.txt
    $_command in_folder broken
    check "$fault: again: exit status $?" [ $? -eq 0 ]
    check "$fault: again: other files: $(ls broken | tr '\n' ' ')" same_files
}
test_tokens() {
    [ -n "$preloads" ] || return
    rm -rf whole
    mkdir whole
    encode in_folder whole
    decode in_folder whole
    check "data/tokenize: no text" [ -s whole/back.txt ]
    pattern='bin$'
    each_fault "open stream write print fsync rename mmap malloc disk" nothing encode same_files then_again
    pattern='txt$'
    # --decode writes through stdio, which takes an interrupted write for an error.
    interrupts=
    each_fault "open stream write print fsync rename mmap malloc disk" nothing decode same_files then_again
    report_faults
}

run_tests "$@"
