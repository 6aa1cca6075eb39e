# Shell functions for scripts/run_*.sh, which source this file from the root of the repository: the flags of a run,
# its program, its data, and a loop that goes on with a run that is killed. It does nothing by itself. POSIX sh.
#
# A script sets $flags (set_flags), and calls `pretrain NAME CORPUS [flags of train_gpt]`. The environment,
# where names of files are relative to the root of the repository:
#   SEED=N        the seed, unless --seed is given; 1 without either. The run is NAME-sN, and after that the flags of the
#                 command line that change what it computes (NAME-s1-lr-0.01), unless --run is given.
#   PROGRAM=FILE  the trainer; else ./train_gpt_cuda, if it was built and nvidia-smi finds a GPU; else ./train_gpt
#   DATA=FOLDER   where the shards are, data/CORPUS without it; --data and --val-data name other data altogether
#   PRINT=1       print the command and start nothing; the folder of data that it names is made, if the shards are there
#   TOY=1         three steps of a tiny model of the same form, on tokens that are made up
#   RESTART_WAIT=SECONDS  before a run goes on after a kill or a failure; 10 without it

say() { printf '%s\n' "$*" >&2; }

# stop STATUS SENTENCE
stop() {
    stop_status=$1
    shift
    say "error: $*"
    exit "$stop_status"
}

# Prints the comment at the head of the script that was called.
print_head() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/${0##*/}"
    exit 0
}

# ---- flags: $flags holds words "--name value" and "--switch"; no value in it has a space
flags=

# drop_flag --NAME: takes the flag and its value out of $flags.
drop_flag() {
    kept=
    dropping=
    for word in $flags; do
        case $word in
            "$1") dropping=1 ;;
            --*) dropping= ;;
        esac
        [ -n "$dropping" ] || kept="$kept $word"
    done
    flags=$kept
}

# set_flags [--NAME VALUE | --SWITCH]...: adds flags to $flags, in place of earlier ones of these names, since the
# trainer refuses a flag that is given twice.
set_flags() {
    while [ $# -gt 0 ]; do
        drop_flag "$1"
        flags="$flags $1"
        shift
        case ${1:---} in
            --*) ;;
            *)
                flags="$flags $1"
                shift
                ;;
        esac
    done
}

# given NAME FLAG...: whether --NAME is among the FLAGs; $value becomes its value.
given() {
    wanted=$1
    shift
    value=
    for word in "$@"; do
        if [ "$value" = "--$wanted" ]; then
            value=$word
            return 0
        fi
        case $word in
            "--$wanted") value=$word ;;
            "--$wanted="*)
                value=${word#*=}
                return 0
                ;;
        esac
    done
    [ "$value" = "--$wanted" ] # a switch at the end
}

# flag_value NAME FLAG...: prints the value of --NAME among the FLAGs, else in $flags.
flag_value() {
    if ! given "$@"; then
        # shellcheck disable=SC2086 # words
        given "$1" $flags || value=
    fi
    printf '%s\n' "$value"
}

# Flags that leave a run what it is: where it is, how long it is, what it reports, how it is computed.
free_flags="run runs-dir seed steps resume dry-run data val-data encoder bpe threads device cuda-graph recompute logit-rows
    batch-size val-every val-every-end val-tokens eval-data eval-every checkpoint-every keep-checkpoints print-every
    log-groups"

# own_flags FLAG...: prints the other flags as an end of a name, -NAME-VALUE for each, so that a run with a rate of its
# own is not taken for that of the script.
own_flags() {
    own=
    for word in "$@"; do
        case $word in
            --*)
                word=${word#--}
                # shellcheck disable=SC2086 # words
                case " $(echo $free_flags) " in
                    *" ${word%%=*} "*) takes= ;;
                    *) takes=1 ;;
                esac
                ;;
        esac
        [ -z "${takes:-}" ] || own="$own-$word"
    done
    printf '%s' "$own" | tr = - | tr -c 'A-Za-z0-9_.,+-' _
}

# The sizes of TOY=1; what a run does at some step it does at step 1.
toy_flags() {
    set_flags --layers 2 --width 32 --heads 2 --seq-len 32 --vocab 256 --batch-size 2 --total-batch-tokens 128 \
        --steps 3 --val-tokens 256
    for word in $flags; do
        case $word in
            --momentum-ages-from | --ema-from) set_flags "$word" 1 ;;
            --momentum-ages-until) set_flags "$word" 3 ;;
        esac
    done
}

# print_command WORD...: one line that can be pasted into a shell.
print_command() {
    line=
    for word in "$@"; do
        case $word in
            '' | *[!A-Za-z0-9_./:,=+-]*) word="'$(printf '%s\n' "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        line="$line $word"
    done
    printf '%s\n' "${line# }"
}

# ---- program and data

choose_program() {
    program=${PROGRAM:-./train_gpt}
    [ -n "${PROGRAM:-}" ] || [ ! -x ./train_gpt_cuda ] || ! nvidia-smi -L >/dev/null 2>&1 || program=./train_gpt_cuda
    if [ -x "$program" ]; then return; fi
    [ -z "${PROGRAM:-}" ] || stop 1 "PROGRAM=$program is no program that can be run"
    [ -n "${PRINT:-}" ] || stop 1 "there is no ./train_gpt: run make, and on a machine with a GPU make train_gpt_cuda"
}

# make_shard FILE DOUBLINGS SHIFT: a shard of 4096 x 2^DOUBLINGS made-up tokens below 61; SHIFT makes others.
make_shard() {
    rm -f "$1.part" "$1.twice"
    printf "$(awk -v shift="$3" 'BEGIN { for (i = 0; i < 4096; i++) printf "\\%03o\\000", (i * i + shift) % 61 }')" \
        >"$1.part"
    doubled=0
    while [ "$doubled" -lt "$2" ]; do
        cat "$1.part" "$1.part" >"$1.twice"
        mv "$1.twice" "$1.part"
        doubled=$((doubled + 1))
    done
    tokens=$((4096 << $2))
    { # 256 numbers of 32 bits: 20240520, version 1, the count
        printf '\210\330\064\001\001\000\000\000'
        printf "$(printf '\\%03o\\%03o\\%03o\\000' $((tokens & 255)) $((tokens >> 8 & 255)) $((tokens >> 16 & 255)))"
        dd if=/dev/zero bs=1012 count=1 2>/dev/null
        cat "$1.part"
    } >"$1.twice" && rm -f "$1.part" && mv "$1.twice" "$1"
}

# made_up_data FOLDER DOUBLINGS: shards with the names of FineWeb's, in a folder of their own; sets $data and $val.
made_up_data() {
    data=$1/fineweb_train_000001.bin
    val=$1/fineweb_val_000000.bin
    if [ -f "$data" ] && [ -f "$val" ]; then return; fi
    mkdir -p "$1" || stop 1 "cannot create $1"
    { make_shard "$data" "$2" 0 && make_shard "$val" "$2" 1; } || stop 1 "cannot write shards to $1"
}

# shards_needed CORPUS STEPS TOKENS: prints how many shards of 10^8 tokens STEPS steps of TOKENS tokens read in
# sequential order, which leaves out the end of a shard that is no whole step; at most all there are.
shards_needed() {
    case $2$3 in *[!0-9]*) set -- "$1" 1 1 ;; esac # the trainer refuses them
    [ "$3" -gt 0 ] || set -- "$1" "$2" 524288
    a_shard=$((99999998 / $3))
    [ "$a_shard" -gt 0 ] || a_shard=1
    shards=$((($2 + a_shard - 1) / a_shard))
    all=103
    [ "$1" != fineweb100B ] || all=1030
    [ "$shards" -gt 0 ] || shards=1
    [ "$shards" -le "$all" ] || shards=$all
    echo "$shards"
}

# find_data CORPUS FLAG...: sets $data and $val. A run gets a folder of links to the first N shards, those that it
# reads. So runs on machines with more shards read the same data and have the same fingerprint, and a run can be
# resumed after more shards were fetched. --dry-run does without data.
find_data() {
    corpus=$1
    shift
    folder=${DATA:-data/$corpus}
    steps=$(flag_value steps "$@")
    need=$(shards_needed "$corpus" "$steps" "$(flag_value total-batch-tokens "$@")")
    data="$folder/first_$need/fineweb_train_*.bin"
    val=$folder/fineweb_val_000000.bin
    missing=0
    first=
    i=0
    while [ "$i" -le "$need" ]; do
        file=$(printf 'fineweb_train_%06d.bin' "$i")
        [ "$i" -gt 0 ] || file=fineweb_val_000000.bin
        if [ ! -f "$folder/$file" ]; then
            missing=$((missing + 1))
            first=${first:-$file}
        fi
        i=$((i + 1))
    done
    if [ "$missing" -eq 0 ]; then
        link_shards
    elif [ -n "${PRINT:-}" ]; then
        say "note: $folder lacks $missing of the $((need + 1)) shards that the command reads"
    elif given dry-run "$@"; then
        say "note: $folder lacks $missing of $((need + 1)) shards, so --dry-run reads made-up tokens"
        made_up_data "${runs_dir:-runs}/made-up" 9
    else
        which=
        [ "$corpus" = fineweb10B ] || which=" ${corpus#fineweb}"
        stop 1 "$folder lacks $missing of the $((need + 1)) shards that $steps steps and the validation read," \
            "first of all $first; fetch them (200 MB each) with: data/fineweb.sh $need$which"
    fi
}

link_shards() {
    links=$folder/first_$need
    mkdir -p "$links" || stop 1 "cannot create $links, the folder of links to the shards that the run reads;" \
        "where $folder cannot be written to, name the shards by --data and --val-data"
    i=1
    while [ "$i" -le "$need" ]; do
        file=$(printf 'fineweb_train_%06d.bin' "$i")
        [ -e "$links/$file" ] || ln -s "../$file" "$links/$file" 2>/dev/null || [ -e "$links/$file" ] ||
            stop 1 "cannot create the link $links/$file"
        i=$((i + 1))
    done
}

# ---- the loop

# A signal ends the run, which saves what it has reached, and then the loop. The trainer runs in the background, where
# a shell has SIGINT and SIGQUIT ignored, so they arrive there as SIGTERM and SIGKILL.
caught= # the exit status that a signal asks for
passed= # the signal that is passed on
child=
pass_on() { # EXIT_STATUS SIGNAL
    caught=$1
    passed=$2
    [ -z "$child" ] || kill "-$2" "$child" 2>/dev/null || true
}
catch_signals() {
    trap 'pass_on 130 TERM' INT
    trap 'pass_on 131 KILL' QUIT
    trap 'pass_on 143 TERM' TERM
    trap 'pass_on 129 HUP' HUP
    trap 'pass_on 138 USR1' USR1
}

# Waits for $child; $status becomes its exit status. A signal that is caught ends `wait` before the child has ended. It
# is sent once more a second later, because a child that the shell has just forked may lose it.
await_child() {
    reminder=
    while :; do
        status=0
        wait "$child" || status=$?
        if [ "$status" -le 128 ] || ! kill -0 "$child" 2>/dev/null; then break; fi
        [ -z "$reminder" ] || continue
        (sleep 1 && kill "-$passed" "$child") >/dev/null 2>&1 &
        reminder=$!
    done
    [ -z "$reminder" ] || kill "$reminder" 2>/dev/null || true
    child=
}

# in_background COMMAND...: runs it to its end, and passes signals on to it. After a signal it starts nothing.
in_background() {
    [ -z "$caught" ] || return 0
    "$@" &
    child=$!
    [ -z "$caught" ] || kill "-$passed" "$child" 2>/dev/null || true # a signal that came before $child was set
    await_child
}

last_step() { sed -n 's/^{"step": \([0-9]*\), .*}$/\1/p' "$1/log.jsonl" 2>/dev/null | tail -n 1; }
log_sum() { cksum "$1/log.jsonl" 2>/dev/null || true; }

# from_start ACTION FLAG...: calls ACTION with the words of the command that begins the run.
from_start() {
    action=$1
    shift
    given run "$@" || set -- --run "$run" "$@"
    given val-data "$@" || [ -z "$val" ] || set -- --val-data "$val" "$@"
    given data "$@" || set -- --data "$data" "$@"
    # shellcheck disable=SC2086 # words
    "$action" "$program" $flags "$@"
}

# one_start FLAG...: begins the run, or goes on with it if it exists, by its own flags. A run that has all its steps is
# left as it is.
one_start() {
    if [ -f "$run_folder/run.json" ]; then
        given run "$@" || set -- --run "$run" "$@"
        in_background "$program" --resume "$@"
    else
        from_start in_background "$@"
    fi
}

# train_to_end FLAG...: starts the run until it has ended, or was asked to end, or fails. A run that is killed goes on
# from its newest checkpoint. So does one that fails, but not if it fails twice at one step, or before it made a step,
# as with flags that are refused, or five times in all. Five kills in a row at one step end the loop too: then the
# machine has too little memory.
train_to_end() {
    ended_at=none
    in_a_row=0
    failures=0
    while :; do
        before=$(log_sum "$run_folder")
        one_start "$@"
        [ -z "$caught" ] || exit "$caught"
        case $status in
            0 | 129 | 130 | 131 | 138 | 143 | 152) exit "$status" ;; # done, or saved at a signal's request
            126 | 127) stop "$status" "$program cannot be run" ;;
        esac
        at=$(last_step "$run_folder")
        [ "$at" = "$ended_at" ] || in_a_row=0
        in_a_row=$((in_a_row + 1))
        ended_at=$at
        if [ "$status" -eq 137 ]; then
            [ "$in_a_row" -lt 5 ] || stop "$status" "the run $run_folder was killed five times at step ${at:-0}"
            why="was killed"
        else
            failures=$((failures + 1))
            [ "$before" != "$(log_sum "$run_folder")" ] || exit "$status" # the trainer has said why
            [ "$in_a_row" -lt 2 ] ||
                stop "$status" "the run $run_folder failed twice after step ${at:-0}, so it is not started again"
            [ "$failures" -lt 5 ] ||
                stop "$status" "the run $run_folder failed five times, so it is not started again"
            why="failed with status $status"
        fi
        say "note: the run $why after step ${at:-0}; it goes on in ${RESTART_WAIT:-10} s"
        in_background sleep "${RESTART_WAIT:-10}"
        [ -z "$caught" ] || exit "$caught"
    done
}

# Refuses to continue a run, which keeps its shards, to a step for which it has too few.
check_shards() {
    [ -f "$run_folder/run.json" ] && ! given data "$@" && [ -z "${TOY:-}" ] || return 0
    had=$(sed -n 's/^.*"data": ".*first_\([0-9]*\)\/fineweb_train_.*$/\1/p' "$run_folder/run.json" | head -n 1)
    [ "${had:-$need}" -ge "$need" ] ||
        stop 1 "the run $run_folder reads $had shards, and $steps steps need $need: begin a new run, by another --run"
}

replace_by() { exec "$@"; }

# pretrain NAME CORPUS FLAG...: what a script does with $flags and the flags of its command line, which win.
pretrain() {
    name=$1
    corpus=$2
    shift 2
    ! given resume "$@" || stop 2 "leave --resume out: a run that exists is continued"
    [ -z "${TOY:-}" ] || toy_flags
    given seed "$@" || set_flags --seed "${SEED:-1}"
    for word in "$@"; do
        case $word in --*) drop_flag "${word%%=*}" ;; esac
    done
    # shellcheck disable=SC2086 # words
    if given lr "$@" && { given lr-qk $flags || given lr-ov $flags; }; then
        say "note: --lr leaves attention at the arm's rate, $value; --lr-qk and --lr-ov change it"
    fi
    runs_dir=$(flag_value runs-dir "$@")
    runs_dir=${runs_dir:-runs}
    run=$(flag_value run "$@")
    if [ -z "$run" ]; then
        run=$name${TOY:+-toy}-s$(flag_value seed "$@")$(own_flags "$@")
        [ "${#run}" -le 200 ] || stop 2 "so many flags make no name of a run: give it one by --run"
    fi
    run_folder=$runs_dir/$run
    choose_program
    data=
    val=
    if given data "$@"; then
        :
    elif [ -n "${TOY:-}" ]; then
        made_up_data "$runs_dir/toy" 0
    else
        find_data "$corpus" "$@"
    fi
    if [ -n "${PRINT:-}" ]; then
        from_start print_command "$@"
        exit 0
    fi
    ! given dry-run "$@" || from_start replace_by "$@"
    [ "${program##*/}" != train_gpt ] || [ -n "${TOY:-}" ] ||
        say "note: $program runs on the CPU, where this takes very long; --dry-run says how long"
    check_shards "$@"
    catch_signals
    train_to_end "$@"
}

# ---- arms of comparisons: what updates the blocks' matrices; AdamW updates the rest in all of them

# name | flags | rate of attention as a multiple of Muon's | what it is. The multiples are ratios of the best rates of
# small models with QK-norm (docs/comparison.md); nobody has tuned them at the sizes of these scripts.
arms() {
    cat <<END
adamw | --optimizer adamw | - | AdamW everywhere
muon | --optimizer muon | 1 | Muon on attention and MLPs
muon-head | --optimizer muon --qk muon-head --ov muon-head | 0.5 | Muon for each head of attention
normuon | --optimizer muon --qk normuon --ov normuon --mlp normuon | 1 | NorMuon on attention and MLPs
circuit | --optimizer muon --circuit on | 1 | Muon, and the circuit rule on W_V and W_O
cm | --optimizer cm | 0.707 | CM on attention, Muon on MLPs
cm-match | --optimizer cm --cm-match-muon | 1 | CM with steps as long as Muon's
cm-whole-match | --optimizer cm --cm-match-muon --head-group 0 | 1 | the same, with one sign over all heads
END
}

# set_arm ARM MUON_RATE "FLAGS OF ARMS WITH SIGNS" "FLAGS OF ADAMW": adds the flags of an arm.
set_arm() {
    case $1 in --help | -h) print_head ;; esac
    [ "$1" != --list ] || { arms | awk -F ' [|] ' '{ printf "%-15s %s: %s\n", $1, $4, $2 }' && exit 0; }
    arm_line=$(arms | awk -F ' [|] ' -v name="$1" '$1 == name')
    [ -n "$arm_line" ] ||
        stop 2 "${1:+there is no arm \"$1\"; }name one: $(arms | awk '{ printf "%s%s", sep, $1; sep = ", " }')"
    # shellcheck disable=SC2046 # words
    set_flags $(printf '%s\n' "$arm_line" | awk -F ' [|] ' '{ print $2 }')
    if [ "$1" = adamw ]; then
        set_flags $4
    else
        set_flags --lr "$2" $3
        # shellcheck disable=SC2046 # words
        set_flags $(printf '%s\n' "$arm_line" | awk -F ' [|] ' -v rate="$2" \
            '$3 != 1 { printf "--lr-qk %.3g --lr-ov %.3g", $3 * rate, $3 * rate }')
    fi
}
