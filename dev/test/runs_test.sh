#!/bin/sh
# Tests of scripts/run_*.sh: every record and every arm at toy size, the flags of full size, data, kills, Ctrl-C and
# failures. TRAIN_GPT names another build. usage: runs_test.sh [TEST...]
set -u
here=$(pwd)
case ${TRAIN_GPT:=$here/train_gpt} in /*) ;; *) TRAIN_GPT=$here/$TRAIN_GPT ;; esac
[ -x "$TRAIN_GPT" ] || { echo "FAIL there is no $TRAIN_GPT: run make first"; exit 1; }
. "$here/dev/test/program.sh"
unset SEED DATA PRINT TOY
export RESTART_WAIT=0

# The trainer as the scripts start it here: counts the starts, and leaves its number for those who kill it.
cat >program <<'END'
#!/bin/sh
echo start >>starts
echo $$ >pid
exec "$TRAIN_GPT" "$@"
END
chmod +x program
export TRAIN_GPT PROGRAM="$dir/program"
sed -i "s|>>starts|>>'$dir/starts'|; s|>pid|>'$dir/pid'|" program

script() { # NAME ARGUMENT...: scripts/run_NAME.sh
    name=$1
    shift
    run sh "$here/scripts/run_$name.sh" "$@"
}
toy() { # NAME ARM FLAG...
    name=$1
    arm=$2
    shift 2
    TOY=1 script "$name" "$arm" --runs-dir "$dir/runs" --threads 1 "$@"
}
printed() { # NAME ARGUMENT...: prints the command of a run
    name=$1
    shift
    PRINT=1 sh "$here/scripts/run_$name.sh" "$@" 2>err
}
starts() { lines "$dir/starts"; }
flag_is() { grep -q -e "^    \"$2\": \"\{0,1\}$3\"\{0,1\},\{0,1\}\$" "$1/run.json"; }
complete() { # RUN STEPS: whether its log has all steps, and only finite losses
    [ "$(lines "$1/log.jsonl")" -eq $(($2 + 1)) ] &&
        [ "$(grep -c '"train_loss": [0-9]' "$1/log.jsonl")" -eq "$2" ] &&
        tail -n 1 "$1/log.jsonl" | grep -q "^{\"step\": $2, .*\"val_loss\": [0-9]"
}

# toy_run NAME ARM "FLAG=VALUE ...": three steps, and the flags that run.json must have.
toy_run() {
    folder=runs/$1-$2-toy-s1
    toy "$1" "$2" --keep-checkpoints 0
    check "$1 $2: exit status $?" [ $? -eq 0 ]
    check "$1 $2: not three steps with finite losses" complete "$folder" 3
    for pair in $3; do
        check "$1 $2: run.json does not have $pair" flag_is "$folder" "${pair%%=*}" "${pair#*=}"
    done
}

# The records of the benchmark, written down a second time.
aux36="lr-embed=0.7 lr-head=0.004 lr-scalar=0.015"
aux12="lr-embed=0.3 lr-head=0.003125 lr-scalar=0.01 weight-decay-embed=0 weight-decay-head=0 weight-decay-scalar=0"
decay36="weight-decay=0.05 weight-decay-embed=0.001 weight-decay-head=0.001 weight-decay-scalar=0.001"
signs="msign=simple12 momentum=0.95 momentum-form=ema nesterov=on schedule=trapezoid cooldown=0.7 scale=spectral"
muon="qk=muon ov=muon mlp=muon"
plain="momentum-ages= ema-from=0 init=speedrun warmup=0 circuit=false lr-phases="
record36="$muon lr=0.025 $aux36 $decay36 $signs"
single="momentum-ages= ema-from=0"
blocks="qk=adamw ov=adamw mlp=adamw adam-beta1=0.8 adam-beta2=0.95 adam-beta1-blocks=0.9"
test_records() {
    rm -rf runs
    toy_run speedrun muon "$record36 $plain preset=speedrun data-order=sequential biases=true pos=rope-half"
    toy_run speedrun muon-12 "$muon lr=0.035 weight-decay=0.025 $aux12 $signs $plain"
    toy_run speedrun normuon "qk=normuon-long ov=normuon-long mlp=normuon-long lr=0.035 weight-decay=0.025 $aux12 $plain"
    toy_run speedrun adamw "$blocks adam-beta2-blocks=0.95 lr=0.0015 weight-decay=0.1 $aux12 warmup=250 init=torch"
    toy_run speedrun adamw-tuned "$blocks adam-beta2-blocks=0.9 lr=0.001 weight-decay=1 $aux36 init=speedrun warmup=0 \
        weight-decay-embed=0.002 weight-decay-head=0.002 weight-decay-scalar=0.002 lr-phases=0:1e-7,100:1"
    toy_run speedrun bi-maxwell "$record36 momentum-ages=bi-maxwell ema-from=0"
    toy_run speedrun k-maxwell "$record36 momentum-ages=k-maxwell ema-from=0"
    toy_run speedrun tail-ema "$record36 momentum-ages= ema-horizon=150 ema-blend=0.6 ema-blend-embed=0"
    toy_run speedrun muon-head "qk=muon-head ov=muon-head mlp=muon lr=0.025 lr-qk=0.0125 lr-ov=0.0125 $decay36 $single"
    toy_run speedrun circuit "$record36 circuit=true $single"
    toy_run speedrun cm "qk=cm ov=cm mlp=muon lr-mlp=0.025 lr-qk=0.0177 lr-ov=0.0177 mp=1 per-mat-renorm=false $aux36 $decay36"
    toy_run speedrun cm-match "qk=cm ov=cm mlp=muon lr-qk=0.025 lr-ov=0.025 mp=2 per-mat-renorm=true $aux36 $decay36"
    script speedrun --list
    check "records that are not tested: $(grep -c ': N = ' out)" [ "$(grep -c ': N = ' out)" -eq "$(ls runs | grep -c speedrun-)" ]
    # Steps, claimed steps, and distances of validations in the last tenth, in which a claimed step is one.
    for word in muon:3250:3250:25 muon-12:3350:3325:25 normuon:3300:3250:25 adamw:5625:5625:25 adamw-tuned:4950:4950:25 \
        bi-maxwell:3250:3210:10 k-maxwell:3250:3160:10 tail-ema:3250:3250:25 cm:3250:3250:25; do
        IFS=: read -r record steps claim every <<END
$word
END
        printed speedrun "$record" >command
        check "$record: not $steps steps" has command " --steps $steps "
        check "$record: run.json does not have val-every-end=$every" flag_is "runs/speedrun-$record-toy-s1" val-every-end $every
        check "$record: no validation at the claimed step $claim" [ $((claim % every)) -eq 0 ]
        check "$record: the claimed step is not in the last tenth" [ $((claim * 10)) -ge $((steps * 9)) ]
        script speedrun --list
        check "$record: --list does not say N" has out "^$record: N = $steps\$"
    done
    printed speedrun bi-maxwell >command
    check "bi-maxwell does not begin at step 1000" has command '--momentum-ages-from 1000 '
    printed speedrun k-maxwell >command
    check "k-maxwell: not from 1000 until 3250" has command '--momentum-ages-from 1000 .*--momentum-ages-until 3250 '
    printed speedrun tail-ema >command
    check "tail-ema does not begin at step 2400" has command '--ema-from 2400 '
}

# The arms of the three sizes.
test_arms() {
    rm -rf runs
    for size in 124M 340M 1B; do
        case $size in
            124M) of_size="preset=gpt2 qk-norm=false pos=learned weight-decay-embed=0.1 warmup=700" rate=0.0006 ;;
            340M) of_size="preset=llama qk-norm=true pos=rope tied=true act=swiglu warmup=700" rate=0.0003 ;;
            1B) of_size="preset=llama qk-norm=true pos=rope tied=true act=swiglu warmup=2000" rate=0.0002 ;;
        esac
        toy_run $size adamw "lr-embed=$rate lr-scalar=$rate weight-decay-embed=0.1 qk=adamw ov=adamw mlp=adamw lr=$rate lr-qk=$rate weight-decay=0.1 adam-beta1=0.9 $of_size"
        decay=0.01
        [ $size != 1B ] || decay=0.003
        of_size="$of_size lr-mlp=0.02 weight-decay=$decay"
        toy_run $size muon "$muon lr-qk=0.02 lr-ov=0.02 $of_size"
        toy_run $size muon-head "qk=muon-head ov=muon-head mlp=muon lr-qk=0.01 lr-ov=0.01 $of_size"
        toy_run $size normuon "qk=normuon ov=normuon mlp=normuon lr-qk=0.02 lr-ov=0.02 $of_size"
        toy_run $size circuit "$muon circuit=true lr-qk=0.02 lr-ov=0.02 $of_size"
        toy_run $size cm "qk=cm ov=cm mlp=muon lr-qk=0.0141 lr-ov=0.0141 mp=1 head-group=1 $of_size"
        toy_run $size cm-match "qk=cm ov=cm mlp=muon lr-qk=0.02 lr-ov=0.02 mp=2 per-mat-renorm=true head-group=1 $of_size"
        toy_run $size cm-whole-match "qk=cm ov=cm lr-qk=0.02 lr-ov=0.02 mp=2 per-mat-renorm=true head-group=0 $of_size"
        script $size --list
        check "$size: arms that are not tested" [ "$(lines out)" -eq "$(ls runs | grep -c "^$size-")" ]
    done
}

# The commands of full size, and that flags of the command line win.
test_full_size() {
    printed 124M muon >command
    for words in 'preset gpt2' 'batch-size 64' 'total-batch-tokens 524288' 'steps 18865' 'val-tokens 10485760' \
        'data-order sequential' 'seed 1' 'run 124M-muon-s1' "data 'data/fineweb10B/first_100/fineweb_train_\*.bin'" \
        'val-data data/fineweb10B/fineweb_val_000000.bin'; do
        check "124M: no --$words" has command " --$words\( \|\$\)"
    done
    printed 340M muon >command
    for words in 'layers 24' 'width 1024' 'heads 16' 'total-batch-tokens 524288' 'steps 19073' 'run 340M-muon-s1'; do
        check "340M: no --$words" has command " --$words\( \|\$\)"
    done
    printed 1B muon >command
    for words in 'layers 18' 'width 2048' 'heads 16' 'total-batch-tokens 1048576' 'steps 66757' 'run 1B-muon-s1' \
        "data 'data/fineweb100B/first_703/fineweb_train_\*.bin'"; do
        check "1B: no --$words" has command " --$words\( \|\$\)"
    done
    printed speedrun muon >command
    check "speedrun: not 18 shards" has command first_18/
    printed speedrun adamw >command
    check "speedrun: not 30 shards" has command first_30/
    SEED=7 printed speedrun muon >command
    check "SEED=7 is no seed" has command ' --seed 7 .*--run speedrun-muon-s7$'
    SEED=7 printed speedrun muon --seed=8 --lr 0.5 --steps 380 >command
    check "--seed does not win over SEED" has command '--run speedrun-muon-s8-lr-0.5 --seed=8 --lr 0.5 --steps 380$'
    check "a flag stands twice" not has command '--steps .*--steps\|--seed .*--seed'
    check "fewer steps need fewer shards" has command first_2/
    printed speedrun muon --run "it's" --data "my data.bin" --val-data b.bin >command
    check "names with spaces and quotes: $(cat command)" has command "--run 'it'\\\\''s' --data 'my data.bin' --val-data b.bin\$"
    printed 340M cm --lr 0.01 >command
    check "no note on attention's rate" has err "^note: --lr leaves attention at the arm's rate, 0.0141;"
    printed 340M cm --lr 0.01 --lr-qk 0.02 --lr-ov=0.02 >command
    check "a note where the rates of attention are given" not has err '^note: --lr '
    printed 340M muon --lr 0.01 >command
    check "a note where attention has the rate --lr" not has err '^note: --lr '
    # A flag that changes what a run computes is in its name.
    printed speedrun cm --lr-qk 0.01 --lr-ov=0.01 --threads 2 --cm-match-muon --momentum-ages 1:0.5,2:0.5 >command
    check "flags in the name of a run: $(cat command)" \
        has command '--run speedrun-cm-s1-lr-qk-0.01-lr-ov-0.01-cm-match-muon-momentum-ages-1_0.5,2_0.5 --lr-qk'
    printed speedrun cm --eval-data "$(printf '%0200d' 0)" --threads 2 >command
    check "other flags in the name of a run" has command '--run speedrun-cm-s1 --eval-data'
    printed speedrun cm --init-from "$(printf '%0200d' 0)" >command
    check "the name of a run is too long" has err '^error: so many flags .* --run$'
    for flag in $(sed -n '/^free_flags=/,/"$/p' "$here/scripts/pretrain.sh" | tr -d '"' | sed 's/free_flags=//'); do
        case $flag in seed | steps | threads | logit-rows | val-data | val-tokens | eval-data | batch-size) continue ;; esac
        check "--$flag changes what a run computes" has "$here/docs/flags.md" "^| \`--$flag\` | .* | \(free\|\) |"
    done
    # What is printed can be pasted: it is the run, and resumes it where it has begun.
    rm -rf runs
    TOY=1 printed 1B cm --runs-dir "$dir/runs" --threads 1 >command
    check "--print starts a run" [ ! -e runs/1B-cm-toy-s1 ]
    check "the printed command: exit status" run sh command
    toy 1B cm --run first
    check "the printed command is not the run" same_log runs/first runs/1B-cm-toy-s1
    toy 1B cm --dry-run --run dry
    check "--dry-run: exit status $?" [ $? -eq 0 ]
    check "--dry-run prints no FLOPs" has out '^flops '
    check "--dry-run made a run folder" [ ! -e runs/dry ]
}

# What the scripts say about themselves.
test_help() {
    for name in speedrun 124M 340M 1B; do
        script $name --help
        check "run_$name.sh --help: exit status $?" [ $? -eq 0 ]
        for word in usage tokens FLOPs hours cost; do
            check "run_$name.sh --help has no line $word" has out "^  $word  *[0-9a-z]"
        done
        check "run_$name.sh --help prints more than the head" not has out 'set_flags'
    done
    script speedrun --list
    check "--list: exit status $?" [ $? -eq 0 ]
    check "--list does not say what is claimed" has out 'claimed: 3.27794 at 3160, n=8 (open PR 357)'
    check "--list claims something for our arms" [ "$(grep -c '^    no claim (our ' out)" -eq 5 ]
}

# Shards that are missing or more than needed. A run reads a folder of links to those that it needs.
test_data() {
    small="--layers 1 --width 32 --heads 2 --seq-len 32 --batch-size 2 --total-batch-tokens 128 --vocab 256 --threads 1"
    rm -rf runs "my data" starts
    DATA="my data" script speedrun muon --runs-dir "$dir/runs"
    check "no shards: exit status $?, not 1" [ $? -eq 1 ]
    check "no shards: no command that fetches them" has err '^error: my data lacks 19 of .*3250 steps.*: data/fineweb.sh 18$'
    DATA="my data" script 1B muon --runs-dir "$dir/runs"
    check "no shards of 100B: no command" has err '^error: my data lacks 704 of .*: data/fineweb.sh 703 100B$'
    check "missing shards leave something" [ ! -e runs ]
    DATA="my data" script 124M muon $small --runs-dir "$dir/runs" --dry-run --total-batch-tokens 128
    check "a flag that is given twice is not refused" has err 'given twice'
    DATA="my data" script 124M muon $small --runs-dir "$dir/runs" --dry-run
    check "--dry-run needs shards" [ $? -eq 0 ]
    check "--dry-run does not say that its tokens are made up" has err '^note: my data lacks 2 of 2 shards, .* made-up'
    rm -rf runs
    toy speedrun muon
    mkdir "my data"
    cp runs/toy/*.bin "my data"
    DATA="$dir/my data" script speedrun muon $small --runs-dir "$dir/runs" --run small --steps 4
    check "a run of one shard: exit status $?" [ $? -eq 0 ]
    check "a run of one shard is not complete" complete runs/small 4
    check "no folder of links" [ -L "my data/first_1/fineweb_train_000001.bin" ]
    DATA="$dir/my data" script speedrun muon $small --runs-dir "$dir/runs" --run few --steps 6
    # A resumed run reads what it has read, though there are more shards now.
    cp runs/toy/fineweb_val_000000.bin "my data/fineweb_train_000002.bin"
    DATA="$dir/my data" script speedrun muon --runs-dir "$dir/runs" --run small --steps 6
    check "resumed beside more shards: exit status $?" [ $? -eq 0 ]
    check "resumed beside more shards: not complete" complete runs/small 6
    DATA="$dir/my data" script speedrun muon $small --runs-dir "$dir/runs" --run more --steps 6
    check "more shards are another run" same_log runs/few runs/more
    # What is printed names the folder of links, and makes it.
    rm -r "my data/first_1"
    (DATA="$dir/my data" printed speedrun muon $small --runs-dir "$dir/runs" --run printed --steps 2) >command
    check "the printed command on shards: exit status" run sh command
    check "the printed command on shards: not complete" complete runs/printed 2
    # A run keeps its shards, so it cannot go on to a step that needs more of them.
    DATA="$dir/my data" script speedrun muon --runs-dir "$dir/runs" --run small --steps 1000 --total-batch-tokens 65536000
    check "a run with too few shards goes on: exit status $?" [ $? -eq 1 ]
    check "a run with too few shards: no sentence" has err '^error: .* lacks .*shards'
    for i in 3 4; do cp runs/toy/fineweb_val_000000.bin "my data/fineweb_train_00000$i.bin"; done
    DATA="$dir/my data" script speedrun muon --runs-dir "$dir/runs" --run small --steps 4 --total-batch-tokens 99999998
    check "a run with too few shards goes on: exit status $?, $(cat err)" [ $? -eq 1 ]
    check "a run with too few shards: no sentence" has err "^error: the run .* reads 1 shards, and 4 steps need 4"
}

# kill_at LOG N: kills the trainer when the log has N lines.
kill_at() {
    await_lines "$1" "$2"
    kill -9 "$(cat pid)"
}
# A shell starts background processes with SIGINT and SIGQUIT ignored, unlike a terminal.
terminal="setsid env --default-signal=INT,QUIT"
$terminal true 2>/dev/null || terminal=
background() { # ARGUMENT...: starts the script as a terminal does, in a process group of its own and with SIGINT
    TOY=1 $terminal sh "$here/scripts/run_speedrun.sh" "$@" --runs-dir "$dir/runs" --threads 1 \
        >out 2>err &
    child=$!
}
finish() { # waits 30 seconds for the script to end; then ends it and its trainer, so that no test hangs
    tries=0
    while kill -0 $child 2>/dev/null && [ $tries -lt 300 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -9 -$child 2>/dev/null
    wait $child
    status=$?
    child=
}

# A run that is killed goes on, and ends as the unbroken run.
test_kill() {
    rm -rf runs starts
    long="--steps 400 --checkpoint-every 50 --val-every 100"
    toy speedrun cm $long --run whole
    rm -f starts
    background cm $long --run killed
    kill_at runs/killed/log.jsonl 30
    await_lines starts 2
    kill_at runs/killed/log.jsonl 150
    finish
    check "killed twice: exit status $status" [ "$status" -eq 0 ]
    check "killed twice: $(starts) starts" [ "$(starts)" -eq 3 ]
    check "killed twice: the loop does not say so" [ "$(grep -c '^note: the run was killed after step [0-9]*; it goes on' err)" -eq 2 ]
    check "killed twice: not the log of the unbroken run" same_log runs/whole runs/killed
    rm -f starts
    toy speedrun cm $long --run whole
    check "a complete run: exit status $?" [ $? -eq 0 ]
    check "a complete run is not left as it is" has out '^nothing left to do: .* all its 400 steps'
    check "a complete run: $(starts) starts" [ "$(starts)" -eq 1 ]
    # Killed again and again, as where memory is short.
    printf '#!/bin/sh\necho start >>"%s"\nkill -9 $$\n' "$dir/starts" >killer
    chmod +x killer
    rm -f starts
    PROGRAM=$dir/killer toy speedrun muon --run never
    check "always killed: exit status $?, not 137" [ $? -eq 137 ]
    check "always killed: $(starts) starts" [ "$(starts)" -eq 5 ]
    check "always killed: no reason" has err '^error: .*was killed five times at step 0'
}

# Ctrl-C, and a signal to the script alone, save the run and end the loop.
test_stop() {
    if [ -z "$terminal" ]; then
        echo "skipped: this test needs setsid and env --default-signal"
        return
    fi
    rm -rf runs
    long="--steps 100000 --val-every 0 --checkpoint-every 0"
    for signal in INT TERM HUP USR1; do
        case $signal in INT) want=130 ;; TERM) want=143 ;; HUP) want=129 ;; USR1) want=138 ;; esac
        for whom in group script trainer; do
            [ $whom$signal != trainerINT ] || continue # SIGINT is ignored there
            rm -f starts
            background muon $long --run "r-$signal-$whom"
            await_lines "runs/r-$signal-$whom/log.jsonl" 5
            case $whom in
                group) kill -$signal -$child ;;
                script) kill -$signal $child ;;
                trainer) kill -$signal "$(cat pid)" ;;
            esac
            finish
            check "SIG$signal to the $whom: exit status $status, not $want" [ "$status" -eq $want ]
            check "SIG$signal to the $whom: $(starts) starts" [ "$(starts)" -eq 1 ]
            check "SIG$signal to the $whom: the run is not saved" [ -n "$(newest "runs/r-$signal-$whom")" ]
        done
    done
    at=$(lines runs/r-INT-group/log.jsonl)
    TOY=1 script speedrun muon --runs-dir "$dir/runs" --run r-INT-group --steps $((at + 5))
    check "after Ctrl-C the run does not go on" complete runs/r-INT-group $((at + 5))
    # A signal while the loop waits before it goes on.
    rm -f starts
    printf '#!/bin/sh\necho start >>"%s"\nkill -9 $$\n' "$dir/starts" >killer
    chmod +x killer
    PROGRAM=$dir/killer RESTART_WAIT=100 background muon --run waits
    await_lines starts 1
    await_lines err 2
    kill -INT -$child
    finish
    check "Ctrl-C before the run goes on: exit status $status, not 130" [ "$status" -eq 130 ]
    check "Ctrl-C before the run goes on: $(starts) starts" [ "$(starts)" -eq 1 ]
    # A signal that the trainer's process loses, as a shell that has just forked may, is sent once more.
    printf '#!/bin/sh\ntrap "" TERM\necho start >>"%s"\nsleep 0.5\ntrap - TERM\nexec sleep 60\n' "$dir/starts" >deaf
    chmod +x deaf
    rm -f starts
    PROGRAM=$dir/deaf background muon --run deaf
    await_lines starts 1
    kill -INT -$child
    finish
    check "Ctrl-C that is lost: exit status $status, not 130" [ "$status" -eq 130 ]
    # Ctrl-\ ends it at once.
    rm -f starts
    background muon $long --run quit
    await_lines runs/quit/log.jsonl 5
    kill -QUIT -$child
    finish
    check "Ctrl-\\: exit status $status, not 131" [ "$status" -eq 131 ]
    check "Ctrl-\\: $(starts) starts" [ "$(starts)" -eq 1 ]
    check "Ctrl-\\: the trainer still runs" not kill -0 "$(cat pid)" 2>/dev/null
}

# A run that fails by itself is started once more, and not again where it fails at the same step.
test_failures() {
    rm -rf runs starts
    toy speedrun muon --run diverges --steps 40 --lr-embed 1e38
    check "a run that diverges: exit status $?, not 1" [ $? -eq 1 ]
    check "a run that diverges: $(starts) starts, not 2" [ "$(starts)" -eq 2 ]
    check "a run that diverges: the trainer's reason is lost" has err '^error: the run diverged at step '
    check "a run that diverges: no end is announced" has err '^error: the run .*diverges failed twice after step [0-9]*, so'
    for flag in "--lr -1" "--layers x" "--width 33" "--no-such-flag 1"; do
        rm -f starts
        # shellcheck disable=SC2086 # two words
        toy speedrun muon --run refused $flag
        check "$flag: exit status $?, not 1" [ $? -eq 1 ]
        check "$flag: $(starts) starts" [ "$(starts)" -eq 1 ]
        check "$flag: $(lines err) lines of stderr: not one error" [ "$(grep -c '^error: ' err)" -eq 1 ]
    done
    toy speedrun muon --run fixed
    rm -f starts
    toy speedrun muon --run fixed --seed 5 --steps 6
    check "a flag that cannot change: exit status $?, not 1" [ $? -eq 1 ]
    check "a flag that cannot change: $(starts) starts" [ "$(starts)" -eq 1 ]
    # A run that fails further on each time is not started for ever.
    cat >fails <<END
#!/bin/sh
echo start >>"$dir/starts"
mkdir -p "$dir/runs/fails"
touch "$dir/runs/fails/run.json"
echo "{\"step\": \$(wc -l <"$dir/starts"), \"tokens\": 1}" >>"$dir/runs/fails/log.jsonl"
exit 1
END
    chmod +x fails
    rm -f starts
    PROGRAM=$dir/fails toy speedrun muon --run fails
    check "failures at several steps: exit status $?, not 1" [ $? -eq 1 ]
    check "failures at several steps: $(starts) starts, not 5" [ "$(starts)" -eq 5 ]
    for words in "speedrun" "speedrun nobody" "speedrun --lr" "124M" "124M nobody" "340M nobody" "1B nobody" \
        "speedrun muon --resume"; do
        # shellcheck disable=SC2086 # words
        script $words
        check "run_$words: exit status $?, not 2" [ $? -eq 2 ]
        check "run_$words: no error" has err '^error: '
    done
    PROGRAM=$dir/nowhere toy speedrun muon
    check "no program: exit status $?, not 1" [ $? -eq 1 ]
    check "no program: no reason" has err '^error: PROGRAM=.*nowhere'
}

run_tests "$@"
