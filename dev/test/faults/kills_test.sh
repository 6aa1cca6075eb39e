#!/bin/sh
# Kills and power cuts at random moments of training and of data/tokenize. A run that was killed and resumed ends as
# the unbroken one, byte for byte; a tokenization leaves whole files under its names or none.
# KILLS is about how many kills there are; SEED repeats a run. usage: [KILLS=N] [SEED=N] kills_test.sh [TEST...]
set -u
. "$(pwd)/dev/test/faults/faults.sh"
KILLS=${KILLS:-12}

# struck KIND: counts a kill that met its program.
for _kind in kill_time kill_call term_time term_call hup_time hup_call cut_call loose_call; do eval "n_$_kind=0"; done
struck() { eval "n_$1=\$((n_$1 + 1))"; }
# count_of FILE KIND: how many calls of that kind a program made.
count_of() { sed -n "s/^$2 //p" "$1"; }

# at_random_time SIGNAL COMMAND...: starts a command in `broken` and sends a signal within $whole_ms milliseconds.
at_random_time() {
    _signal=$1
    shift
    random $((whole_ms + 4))
    _ms=$(printf '0.%03d' $drawn)
    moment="after $_ms s"
    (cd broken && exec "$@" >"$dir/out" 2>"$dir/err") &
    child=$!
    sleep "$_ms" 2>/dev/null || sleep 1
    kill "-$_signal" $child 2>/dev/null && hit=1
    wait $child 2>/dev/null
    status=$?
    child=
}
# at_random_call ACTION COMMAND...: starts a command in `broken` and strikes at one of the $whole_calls calls that change
# the disk.
at_random_call() {
    _action=$1
    shift
    random "$whole_calls"
    _n=$((drawn + 1))
    random 30000
    moment="at call $_n (FAULT=disk:$_n:$_action FAULT_SEED=$drawn)"
    rm -f report
    in_folder broken env LD_PRELOAD="$SHIM" FAULT="disk:$_n:$_action" FAULT_SEED=$drawn FAULT_REPORT="$dir/report" \
        FAULT_WATCH=. FAULT_JOURNAL="$dir/journal" FAULT_CUT="$dir/cut" "$@" 2>/dev/null
    status=$?
    [ ! -s report ] || hit=1
}

# strike KIND COMMAND...: kills a command in `broken`. Sets hit=1 if the program was still there. A power cut leaves the
# folder as the disk has it, and `before` as the program saw it.
strike() {
    kind=$1
    shift
    hit=0
    case $kind in
    kill_time) at_random_time KILL "$@" ;;
    term_time) at_random_time TERM "$@" ;;
    hup_time) at_random_time HUP "$@" ;;
    kill_call) at_random_call KILL "$@" ;;
    term_call) at_random_call TERM "$@" ;;
    hup_call) at_random_call HUP "$@" ;;
    cut_call) at_random_call CUT "$@" ;;
    loose_call) at_random_call CUTLOOSE "$@" ;;
    esac 2>/dev/null
    # What a process without the shim did is not in the journal: count it as durable.
    case $kind in *_time) rm -rf journal ;; esac
    [ $hit -eq 0 ] || struck "$kind"
    rm -rf before
    [ -d cut ] || return
    mv broken before
    mv cut broken
    rm -rf journal
}

# A random kind, of those that this machine has.
random_kind() {
    if [ -n "$preloads" ]; then set -- kill_time kill_call term_time term_call hup_time hup_call cut_call loose_call cut_call loose_call
    else set -- kill_time term_time hup_time; fi
    random $#
    shift $drawn
    kind=$1
}

# After a signal that asks for an end the program has saved its last step, or it ended before it began.
saved_or_untouched() {
    if grep -q "stopped by signal .* after step" out; then
        _step=$(last_step broken/runs/r)
        _saved=$(step_of_newest broken/runs/r)
        [ "${_saved:-0}" -eq 0 ] || ! is_pending "$(newest broken/runs/r)" || _step=$((_step + 1))
        [ "${_step:-0}" = "${_saved:-0}" ]
    else cmp -s log.before broken/runs/r/log.jsonl || [ ! -s broken/runs/r/log.jsonl ]; fi
}
# After a power cut the newest checkpoint that the program had finished is there: it logs a step only when the
# checkpoint before is saved.
saved_survives() {
    _last=$(last_step before/runs/r)
    _due=$(((${_last:-0} - 1) / every * every))
    [ "$_due" -le 0 ] || [ "$(step_of_newest broken/runs/r)" -ge "$_due" ] 2>/dev/null
}

# hit_run: starts or continues the run and kills it.
hit_run() {
    restart_flags
    random_kind
    : >log.before
    [ ! -f broken/runs/r/log.jsonl ] || cp broken/runs/r/log.jsonl log.before
    strike "$kind" "$TRAIN_GPT" $restart
    history="$history $kind $moment;"
    case $kind in
    term_* | hup_*)
        asked=1
        [ "$kind" = "${kind#hup}" ] && code=143 || code=129
        check "$kind: exit status $status, not 0 or $code ($history)" [ "$status" -eq 0 -o "$status" -eq $code ]
        [ "$status" -eq 0 ] || check "$kind: the last step is not saved ($history)" saved_or_untouched
        ;;
    kill_*) check "$kind: exit status $status, not 0 or 137 ($history)" [ "$status" -eq 0 -o "$status" -eq 137 ] ;;
    esac
    [ ! -d before ] || check "$kind: the newest checkpoint is lost ($history)" saved_survives
    check "$kind: a checkpoint is not that of the unbroken run ($history)" same_saved
}

# chain N: a run that is killed N times, then ends.
chain() {
    rm -rf broken journal cut before
    mkdir broken
    asked=0
    history="SEED=$SEED $flags:"
    more=$1
    while [ "$more" -gt 0 ]; do
        hit_run
        more=$((more - 1))
    done
    restart_flags
    in_folder broken "$TRAIN_GPT" $restart
    check "the run that was killed ends with $? ($history)" [ $? -eq 0 ]
    check "the run that was killed ends otherwise ($history)" same_end $asked
}

# kills FLAGS...: kills runs with these flags until a sixth of the kills is done.
kills() {
    flags="$tiny $*"
    unbroken
    whole_calls=1
    [ -z "$preloads" ] || {
        rm -rf broken counts
        mkdir broken
        FAULT_COUNTS=$dir/counts in_folder broken env LD_PRELOAD="$SHIM" "$TRAIN_GPT" $flags
        whole_calls=$(count_of counts disk)
    }
    rm -rf broken
    mkdir broken
    begun=$(date +%s%N)
    in_folder broken "$TRAIN_GPT" $flags
    whole_ms=$((($(date +%s%N) - begun) / 1000000))
    share=$(((KILLS * 4 / 5 + 5) / 6))
    while [ $share -gt 0 ]; do
        random 3
        n=$((drawn + 1))
        [ $n -le $share ] || n=$share
        chain $n
        share=$((share - n))
    done
}
report_kills() {
    echo "SEED=$SEED: $n_kill_time kills by time and $n_kill_call by call, SIGTERM $n_term_time and $n_term_call, SIGHUP" \
        "$n_hup_time and $n_hup_call, power cuts $n_cut_call strict and $n_loose_call loose"
    for _kind in kill_time kill_call term_time term_call hup_time hup_call cut_call loose_call; do eval "n_$_kind=0"; done
}

test_training() {
    kills --threads 1
    kills --threads 1 --log-groups --total-batch-tokens 64
    kills --threads 2 --total-batch-tokens 96
    kills --threads 2 --log-groups --recompute block
    make_base
    kills --threads 1 $adapters
    kills --threads 1 --low-rank 2 --ema-from 7
    report_kills
}

# A run is killed between the rename of a checkpoint and the sync of its folder. The run that is resumed from this
# checkpoint deletes the one before it, and then the power fails: one of both must be there.
test_kill_then_cut() {
    [ -n "$preloads" ] || return
    flags=$(echo "$tiny --threads 1" | sed 's/--keep-checkpoints 2/--keep-checkpoints 1/')
    unbroken
    more=$((KILLS / 4 + 2))
    while [ $more -gt 0 ]; do
        rm -rf broken journal cut
        mkdir broken
        random 10000
        # The fourth rename is of step 6's checkpoint; 2 modulo 3 is after the call.
        strike_at="LD_PRELOAD=$SHIM FAULT_WATCH=. FAULT_JOURNAL=$dir/journal FAULT_CUT=$dir/cut"
        in_folder broken env $strike_at FAULT=rename:4:KILL FAULT_SEED=2 "$TRAIN_GPT" $flags 2>/dev/null
        in_folder broken env $strike_at FAULT=write:4:CUTLOOSE FAULT_SEED=$drawn "$TRAIN_GPT" --run r --resume 2>/dev/null
        history="SEED=$SEED, FAULT_SEED=$drawn"
        check "kill, then power cut: there was no cut ($history)" [ -d cut ]
        rm -rf broken
        mv cut broken
        check "kill, then power cut: no checkpoint is left ($history)" [ -n "$(newest broken/runs/r)" ]
        restart_flags
        in_folder broken "$TRAIN_GPT" $restart
        check "kill, then power cut: the resumed run ends with $? ($history)" [ $? -eq 0 ]
        check "kill, then power cut: the resumed run ends otherwise ($history)" same_end 0
        more=$((more - 1))
    done
}

# After the last word of a program, a power cut takes nothing of what it wrote.
cut_at_end() { # COMMAND...
    rm -rf broken journal cut
    mkdir broken
    in_folder broken env LD_PRELOAD="$SHIM" FAULT=exit:1:CUT FAULT_WATCH=. FAULT_JOURNAL="$dir/journal" \
        FAULT_CUT="$dir/cut" "$@" 2>/dev/null
    rm -rf broken
    mv cut broken
}
test_cut_at_end() {
    [ -n "$preloads" ] || return
    flags="$tiny --threads 1"
    unbroken
    cut_at_end "$TRAIN_GPT" $flags
    check "a power cut after the end of a run loses lines of the log" same_log whole/runs/r broken/runs/r
    check "a power cut after the end of a run damages a checkpoint" same_saved
    names_of broken >names.broken
    names_of whole >names.whole
    # The deletion of an old checkpoint need not be on the disk yet.
    check "a power cut after the end of a run loses $(comm -13 names.broken names.whole)" \
        [ -z "$(comm -13 names.broken names.whole)" ]
    check "a power cut after the end of a run loses run.json" cmp -s broken/runs/r/run.json whole/runs/r/run.json
    whole_shards
    tokenize encode cut_at_end
    check "a power cut after a tokenization loses shards" same_files 'bin$'
    tokenize decode cut_at_end
    check "a power cut after --decode loses the text" same_files 'txt$'
}

# tokenize WORK COMMAND...: gives a command the program data/tokenize and its flags: to encode a text, or to decode the
# shards of it.
tokenize() {
    _work=$1
    shift
    case $_work in
    encode) "$@" "$TOKENIZE" --input ../long.txt --output t --shard-tokens 2000 $vocabulary ;;
    decode) "$@" "$TOKENIZE" --decode '../whole/t_*.bin' --output back.txt $vocabulary ;;
    esac
}
whole_shards() {
    rm -rf whole
    mkdir whole
    [ -s long.txt ] || for i in 1 2 3 4 5 6 7 8; do cat text.txt; done >long.txt
    tokenize encode in_folder whole
    check "data/tokenize: $(ls whole | wc -l) files" [ "$(ls whole/t_*.bin | wc -l)" -gt 10 ]
    tokenize decode in_folder whole
    check "data/tokenize --decode: no text" [ -s whole/back.txt ]
}
# Every file that the unbroken work has and `broken` has is whole.
whole_or_absent() {
    for _file in broken/*.bin broken/back.txt; do
        [ ! -e "$_file" ] || cmp -s "$_file" "whole/${_file##*/}" || { echo "    $_file differs"; return 1; }
    done
}
# same_files PATTERN: `broken` has these files of the unbroken work, and no others.
same_files() {
    whole_or_absent && [ "$(ls broken)" = "$(ls whole | grep "$1")" ]
}

# hit_tokenize WORK PATTERN: kills data/tokenize, then does its work again in the same folder.
hit_tokenize() {
    rm -rf broken journal cut
    mkdir broken
    random_kind
    tokenize "$1" strike "$kind"
    history="SEED=$SEED data/tokenize, $1: $kind $moment"
    check "a file is not whole ($history)" whole_or_absent
    rm -f broken/*.bin broken/back.txt
    tokenize "$1" in_folder broken
    check "again: exit status $? ($history)" [ $? -eq 0 ]
    check "again: other files: $(ls broken | tr '\n' ' ') ($history)" same_files "$2"
}
# hits WORK PATTERN: a tenth of the kills.
hits() {
    rm -rf broken counts
    mkdir broken
    whole_calls=1
    begun=$(date +%s%N)
    tokenize "$1" in_folder broken env ${preloads:+"LD_PRELOAD=$SHIM" "FAULT_COUNTS=$dir/counts"}
    whole_ms=$((($(date +%s%N) - begun) / 1000000))
    [ -z "$preloads" ] || whole_calls=$(count_of counts disk)
    left=$(((KILLS + 9) / 10))
    while [ $left -gt 0 ]; do
        hit_tokenize "$1" "$2"
        left=$((left - 1))
    done
}
test_tokenize() {
    whole_shards
    hits encode 'bin$'
    hits decode 'txt$'
    report_kills
}

run_tests "$@"
