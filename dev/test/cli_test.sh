#!/bin/sh
# Tests of the programs as users run them: training, kill -9 and resume, full disks, damaged files, mistakes
# on the command line, sampling. TRAIN_GPT and GENERATE name other builds; QUICK=1 leaves out the slow tests.
# usage: cli_test.sh [TEST...]
set -u
here=$(pwd)
case ${TRAIN_GPT:=$here/train_gpt} in /*) ;; *) TRAIN_GPT=$here/$TRAIN_GPT ;; esac
case ${GENERATE:=$here/generate} in /*) ;; *) GENERATE=$here/$GENERATE ;; esac
for program in "$TRAIN_GPT" "$GENERATE"; do
    [ -x "$program" ] || { echo "FAIL there is no $program: run make first"; exit 1; }
done
. "$here/dev/test/program.sh"
. "$here/dev/test/examples.sh"
slow_tests="evaluation interrupted interrupted_evaluation interrupted_step kill odd_names other_averages other_embed resume_changes tokenizer"
train() { run "$TRAIN_GPT" "$@"; }
generate() { run "$GENERATE" "$@"; }

# Numbers from 0 to N-1 that differ from run to run; SEED repeats them.
SEED=${SEED:-$(($$ + $(date +%s) % 100000))}
draws=0
random() {
    draws=$((draws + 1))
    drawn=$(awk -v s="$SEED" -v i="$draws" -v n="$1" \
        'BEGIN { srand(s); while (i-- > 0) x = rand(); print int(x * n) }')
}

sentences >text.txt
model="--layers 1 --width 32 --heads 2 --seq-len 32 --batch-size 4 --threads 1"
minute="--data text.txt $model"

# A complete run.
test_end_to_end() {
    rm -rf runs/a
    check "10 steps" train $minute --run a --steps 10 --val-every 5
    check "the start does not show how large steps are" has out '^steps .* initial weights'
    check "the sizes of steps have no heading" has out '^ *lr *rms *AdamW lr$'
    for name in W_Q W_K W_O W_V W_fc W_proj wte 'gains, biases' whead; do
        check "the start does not show the step of $name" has out "^         $name  *[0-9.e-]*  *[0-9.e-]*  *[0-9.e-]*\$"
    done
    check "the end of the run does not show the validation loss" has out 'validation loss [0-9.]* nats per byte'
    check "the end of the run does not say how to sample" has out '^sample from it with: .*generate --run a$'
    check "the end of the run does not say how to draw it" has out '^draw it with: python3 .*scripts/plot.py runs/a$'
    check "the end of the run does not say how long it took" has out '^time .* since the start, .* in 10 steps of .* ms'
    check "a line lacks the number of steps or the time left" has out '^step  3/10  train [0-9.]*  norm .* tok/s  ETA '
    check "log.jsonl has $(lines runs/a/log.jsonl) lines, not 11" [ "$(lines runs/a/log.jsonl)" -eq 11 ]
    value='\([0-9.e+-]*\|null\)'
    line="^{\"step\": [0-9]*, \"tokens\": [0-9]*"
    for key in train_loss val_loss lr grad_norm ms tok_s; do line="$line, \"$key\": $value"; done
    line="$line\(, \"extra\": {\"val_bpb\": $value}\)\{0,1\}}"
    check "a line of log.jsonl is not as documented" [ "$(grep -c "$line\$" runs/a/log.jsonl)" -eq 11 ]
    check "no validation loss at step 5" has runs/a/log.jsonl '^{"step": 5, "tokens": 640, .*"val_loss": [0-9]'
    check "the loss does not fall" awk -F'[:,]' 'NR == 2 { first = $6 } { last = $6 }
        END { exit !(last < first && last > 0) }' runs/a/log.jsonl
    check "run.json: braces or quotes do not match" awk '{ text = text $0 }
        END { a = gsub(/{/, "", text); b = gsub(/}/, "", text); q = gsub(/"/, "", text)
              exit !(a == b && a == 4 && q % 2 == 0) }' runs/a/run.json
    check "run.json has no closing brace" [ "$(tail -n 1 runs/a/run.json)" = "}" ]
    for key in version parameters machine flags steps train_checksum; do
        check "run.json lacks $key" has runs/a/run.json "^ *\"$key\": "
    done
    if command -v python3 >/dev/null 2>&1; then
        check "run.json is not JSON" python3 -m json.tool runs/a/run.json out
    fi
    check "no checkpoint of step 10" [ -f runs/a/checkpoints/step_00000010.ckpt ]
    rm -rf a.saved
    cp -r runs/a a.saved
}

# The run of test_end_to_end after its ten steps, which other tests continue.
ten_steps() {
    rm -rf runs/a
    [ -d a.saved ] || { train $minute --run a --steps 10 --val-every 5 && mv runs/a a.saved; }
    cp -r a.saved runs/a
}

# What a run says about itself: its preset, and data that it reads too often.
test_saying() {
    train $minute --run say --preset gpt2 --steps 0 --keep-checkpoints 0
    check "the preset's flags are not shown" has out '^preset   gpt2: --batch-size 4 --norm layernorm .* --lr-final 0.1$'
    check "a note about few epochs" not has err 'note: every token'
    train --data text.txt --run often --steps 2500 --threads 1 --dry-run --layers 1 --width 16 --heads 1
    check "no note about many epochs" has err '^note: every token is read about [0-9]* times; .* more data or fewer --steps'
    check "the defaults have a line of a preset" not has out '^preset '
    train --help
    check "--help does not list the presets" has out '^  speedrun  --layers 12 --width 768'
}

# The commands that a run prints at its end can be pasted into a shell, and are printed where they are true.
test_commands() {
    ten_steps
    said() { sed -n "s/^.*$1 with: //p" out >said.sh; sh said.sh >out 2>err; }
    rm -rf "my runs" runs/bare
    train $minute --run "it's" --runs-dir "my runs" --steps 4
    said 'sample from it'
    check "the command to sample: exit status $?" [ $? -eq 0 ]
    check "the command to sample does not sample: $(cat said.sh)" has err "from  *my runs/it's/.*step_00000004.ckpt"
    "$TRAIN_GPT" $minute --run r --runs-dir "my runs" --steps 1000000 --val-every 0 --checkpoint-every 0 >out 2>err &
    child=$!
    await_lines "my runs/r/log.jsonl" 4
    kill -TERM $child
    finish
    check "a stop before the first validation" has out '^no validation yet after step 0 ([0-9.]* nats per byte, the initial weights)'
    step=$(sed -n 's/^stopped by signal 15 after step \([0-9]*\) .*/\1/p' out)
    sed -i "s/--resume/& --steps $((step + 1))/" out
    said continue
    check "the command to continue does not continue: $(cat said.sh)" has out "^resumed  from my runs/r/.*$step.ckpt"
    train $minute --run bare --steps 2 --keep-checkpoints 0
    check "a run without checkpoint says how to sample" not has out 'sample from it'
}

# A run whose output cannot be written says so once, goes on and ends well.
test_lost_output() {
    [ -w /dev/full ] || return 0
    rm -rf runs/lost
    "$TRAIN_GPT" $minute --run lost --steps 10 >/dev/full 2>err
    check "lost output: exit status $?" [ $? -eq 0 ]
    check "lost output: $(lines err) lines on stderr, not 1" [ "$(lines err)" -eq 1 ]
    check "lost output: no note" has err '^note: the output can no longer be written (No space.*its log is runs/lost/log.jsonl'
    check "lost output: the run is not complete" [ "$(lines runs/lost/log.jsonl)" -eq 11 ]
    check "lost output: no checkpoint" [ -f runs/lost/checkpoints/step_00000010.ckpt ]
    # No file of the run takes the number of an output that is closed.
    "$TRAIN_GPT" $minute --run closed --steps 10 >&- 2>&-
    check "closed output: exit status $?" [ $? -eq 0 ]
    check "closed output: what is printed goes into the log" not has runs/closed/log.jsonl '^[^{]'
    check "closed output: the run is not complete" same_log runs/closed runs/lost
}

# What the programs print without running.
test_asking() {
    if [ -w /dev/full ]; then
        for program in "$TRAIN_GPT --help" "$TRAIN_GPT --help-markdown" "$TRAIN_GPT $minute --dry-run" "$GENERATE --help"; do
            $program >/dev/full 2>err
            check "$program to a full disk: exit status $?" [ $? -eq 1 ]
            check "$program to a full disk: no message" has err '^error: the output cannot be written: No space'
        done
    fi
    train $minute --run dry --dry-run
    check "--dry-run: exit status $?" [ $? -eq 0 ]
    for word in 'parameters' 'memory .* MiB' 'W_Q, W_K *cm' 'W_fc *muon' 'wte *adamw' '^steps .* initial weights' 'rms *AdamW lr' 'flops .* per token' 'time .* ms a step'; do
        check "--dry-run does not print \"$word\"" has out "$word"
    done
    check "--dry-run made a run folder" [ ! -e runs/dry ]
    train $minute --run dry --dry-run --freeze wte,norm1_w
    check "--dry-run --freeze: exit status $?" [ $? -eq 0 ]
    check "--dry-run does not show wte as frozen" has out '^wte *frozen'
    check "--dry-run shows a rule of a frozen tensor" not has out '^wte *adamw'
    train --help
    check "--help: exit status $?" [ $? -eq 0 ]
    cp out help
    train --help-markdown
    flags=$(sed -n 's/^| `--\([a-z0-9-]*\)`.*/\1/p' out)
    check "--help-markdown lists only: $flags" [ "$(echo "$flags" | wc -l)" -gt 60 ]
    for flag in $flags; do grep -q "^  --$flag " help || grep -q "^  --$flag\$" help || echo "$flag"; done >missing
    check "--help does not list $(tr '\n' ' ' <missing)" [ ! -s missing ]
    sh "$here/scripts/flags_md.sh" "$TRAIN_GPT" >flags.md
    check "docs/flags.md is out of date: sh scripts/flags_md.sh >docs/flags.md" cmp flags.md "$here/docs/flags.md"
    generate --help
    check "generate --help: exit status $?" [ $? -eq 0 ]
    for flag in run runs-dir checkpoint base merge prompt prompt-file tokens temperature top-k top-p seed count threads \
        encoder bpe stop-at-eot; do
        check "generate --help does not list --$flag" has out "^  --$flag"
    done
}

# Shards: 256 little-endian numbers of 32 bits (20240520, 1, count), then tokens of 16 bits.
shard() { # MAGIC COUNT TOKENS [WORDS: the tokenizer, 16 bytes]
    printf "$1"'\001\000\000\000'"$2${4:-}"
    dd if=/dev/zero bs=$((${4:+-16} + 1012)) count=1 2>/dev/null
    printf "$3"
}
make_shards() {
    tokens=$(awk 'BEGIN { for (i = 0; i < 1000; i++) printf "\\%03o\\000", i * i % 61 }')
    shard '\210\330\064\001' '\350\003\000\000' "$tokens" >good.bin
    shard '\210\330\064\001' '\350\003\000\000' "${tokens%????????????????}" >cut.bin
    shard '\211\330\064\001' '\350\003\000\000' "$tokens" >magic.bin
    shard '\210\330\064\001' '\350\003\000\000' "${tokens%????????}\140\352" >large.bin # ends in 60000
}

# Validation an eighth of the run apart, rounded up, unless --val-every says otherwise. A run that is resumed
# with another --steps takes an eighth of the new number.
validated() { sed -n 's/^{"step": \([0-9]*\),.*"val_loss": [0-9].*/\1/p' "$1/log.jsonl" | tr '\n' ' '; }
test_val_every() {
    rm -rf runs/v runs/w
    train $minute --run v --steps 10
    check "10 steps were validated at $(validated runs/v)" [ "$(validated runs/v)" = "0 2 4 6 8 10 " ]
    check "run.json does not have the steps between validations" has runs/v/run.json '"val-every": 2,'
    train --run v --resume --steps 20
    check "20 steps were validated at $(validated runs/v)" \
        [ "$(validated runs/v)" = "0 2 4 6 8 10 12 15 18 20 " ]
    check "run.json does not have the steps of the resumed run" has runs/v/run.json '"val-every": 3,'
    train $minute --run w --steps 10 --val-every 0
    check "--val-every 0 validated at $(validated runs/w)" [ "$(validated runs/w)" = "0 10 " ]
    rm -rf runs/w
    # As the optimization benchmark validates: more often in the last tenth.
    train $minute --run w --steps 40 --val-every 10 --val-every-end 2 --val-tokens 32 --keep-checkpoints 0
    check "--val-every-end 2 validated at $(validated runs/w)" \
        [ "$(validated runs/w)" = "0 10 20 30 36 38 40 " ]
}

# Evaluation on examples: when it is done, what is printed and logged, and that it changes nothing else.
test_evaluation() {
    rm -rf runs/ev runs/evno runs/evone
    examples 30 >thirty.bin
    bits="\"val_bpb\": $number"
    accuracy="\"eval_acc\": $number, \"eval_acc_norm\": $number"
    check "a run with --eval-data" train $minute --run ev --steps 10 --val-every 5 --eval-data thirty.bin --eval-every 4 \
        --checkpoint-every 3 --keep-checkpoints 9
    check "the start does not tell the examples" has out '^examples thirty.bin: 30 with 120 completions, 0.2500 .* by chance'
    check "a note about contexts that are cut" has err "^note: [1-9][0-9]* of the 120 completions of thirty.bin do not fit"
    check "the steps with more than losses are $(extras_of runs/ev | sed 's/ .*//' | tr '\n' ' ')" \
        [ "$(extras_of runs/ev | sed 's/ .*//' | tr '\n' ' ')" = "0 4 5 8 10 " ]
    check "step 0 has another extra" has_extra runs/ev 0 "$bits, $accuracy"
    check "step 4 has another extra" has_extra runs/ev 4 "$accuracy"
    check "step 5 has another extra" has_extra runs/ev 5 "$bits"
    check "step 10 has another extra" has_extra runs/ev 10 "$bits, $accuracy"
    check "step 4 was validated" has runs/ev/log.jsonl '^{"step": 4,.*"val_loss": null,.*"eval_acc"'
    check "bits per byte are not nats / ln 2" awk '
        /"val_bpb"/ { split($0, a, "\"val_loss\": "); split($0, b, "\"val_bpb\": "); n++
            r = (b[2] + 0) * log(2) / (a[2] + 0) - 1; if (r * r > 1e-12) bad = 1 } END { exit bad || n != 3 }' runs/ev/log.jsonl
    check "a line does not show bits per byte" has out "^step  5/10  train $number  validation $number ($number bits/byte)  "
    check "a line does not show the accuracy" has out "^step  4/10  train $number  accuracy 0.[0-9]* (norm 0.[0-9]*)  "
    check "the end does not tell bits per byte" has out "^validation loss $number nats per byte, $number bits per byte, after 10"
    check "the end does not tell the accuracy" has out "^accuracy $number, .* on 30 examples after 10 steps"
    check "run.json does not have the number of examples" has runs/ev/run.json '"eval_examples": 30,'
    check "a run without --eval-data" train $minute --run evno --steps 10 --val-every 5
    check "evaluation changes the losses" same_log runs/ev runs/evno
    check "evaluation changes the model" same_tensors "$(newest runs/ev)" "$(newest runs/evno)"
    check "a run without --eval-data has an accuracy" not has runs/evno/log.jsonl eval_acc
    check "run.json of a run without examples has some" has runs/evno/run.json '"eval_examples": null,'

    # A batch of one sequence, of which four have the completions of an example.
    check "--batch-size 1" train $(echo "$minute" | sed 's/-size 4/-size 1/') --run evone --steps 0 --eval-data thirty.bin
    first=$(extras_of runs/ev | sed -n '1s/.*\("eval_acc"\)/\1/p')
    check "--batch-size 1: another accuracy at the start" has_extra runs/evone 0 ".*$first"

    # A resumed run writes the log again as it was.
    cp -r runs/ev runs/evagain
    rm runs/evagain/checkpoints/step_0000000[4-9].ckpt runs/evagain/checkpoints/step_00000010.ckpt
    check "a resumed run" train --run evagain --resume
    check "a resumed run has another log" same_log runs/ev runs/evagain
    check "a resumed run has other accuracies" same_extras runs/ev runs/evagain
    examples 20 >twenty.bin
    check "other examples on resume" train --run evagain --resume --steps 12 --eval-data twenty.bin --eval-every 1
    check "other examples on resume: no note" has err '^note: --eval-data thirty.bin -> twenty.bin from step 11$'
    check "--eval-every on resume: a note" not has err 'note: --eval-every'
    check "other examples on resume: no accuracy" has_extra runs/evagain 11 "$accuracy"
    rm twenty.bin
    refused "examples that are gone" 'twenty.bin: No such.* with --eval-data PATH' train --run evagain --resume --steps 13
    check "no examples on resume" train --run evagain --resume --steps 13 --eval-data "" --eval-every -1

    rm -rf runs/ev runs/evno runs/evone runs/evagain
    train $minute --run ev --steps 10 --val-every 5 --eval-data thirty.bin
    check "without --eval-every an evaluation comes with each validation" \
        [ "$(extras_of runs/ev | grep eval_acc | sed 's/ .*//' | tr '\n' ' ')" = "0 5 10 " ]
    train $minute --run evno --steps 10 --val-every 5 --eval-data thirty.bin --eval-every 0
    check "--eval-every 0 evaluates elsewhere than at the end" \
        [ "$(extras_of runs/evno | grep eval_acc | sed 's/ .*//' | tr '\n' ' ')" = "10 " ]
    refused "--eval-every without examples" '--eval-every 4 .*--eval-data' train $minute --run evone --eval-every 4
    refused "no file of examples" 'nowhere.bin: No such file.*hellaswag.py' train $minute --run evone --eval-data nowhere.bin
    examples 30 | head -c 5000 >short.bin
    refused "examples that are cut off" 'short.bin: .* example [0-9]* of 30: it is truncated' train $minute --run evone \
        --eval-data short.bin
    refused "a text as examples" 'text.txt is no file of examples' train $minute --run evone --eval-data text.txt
    refused "a long completion" 'thirty.bin: completion 0 of example 0 has [0-9]* tokens, and --seq-len is 8' \
        train $(echo "$minute" | sed 's/-len 32/-len 8/') --run evone --eval-data thirty.bin
    check "a refused file of examples left a folder" [ ! -e runs/evone ]
}

# Bits per byte of tokens need their vocabulary; without it a note says so, and the run goes on.
test_bits_per_byte() {
    rm -rf runs/bits runs/bits2
    make_shards
    shard '\210\330\064\001' '\350\003\000\000' "$tokens" 'toks\002\000\000\000\175\035\141\157\276\133\130\073' >fixture.bin
    small="--layers 1 --width 16 --heads 2 --seq-len 16 --batch-size 2 --threads 1 --steps 2 --vocab 800"
    bpe=$here/dev/test/fixtures/bpe
    check "a run on the fixture's tokens" train $small --data good.bin --val-data good.bin --run bits --val-tokens 100
    check "shards of GPT-2's tokens: no note of the vocabulary" has err '^note: .*bits per byte: .*data/gpt2_bpe.sh fetches'
    check "bits per byte without a vocabulary" not has runs/bits/log.jsonl val_bpb
    rm -rf runs/bits
    check "a run with the vocabulary" train $small --data fixture.bin --val-data fixture.bin --run bits \
        --encoder "$bpe/encoder.json" --bpe "$bpe/vocab.bpe"
    check "a note where there is a vocabulary" not has err 'bits per byte'
    check "no bits per byte" has_extra runs/bits 2 "\"val_bpb\": $number"
    check "a run with another vocabulary" train $small --data good.bin --val-data good.bin --run bits2 \
        --encoder "$bpe/encoder.json" --bpe "$bpe/vocab.bpe"
    check "another vocabulary: no note" has err '^note: .*bits per byte: the tokens are those of gpt2, and .* are bpe [0-9a-f]*;'
    check "bits per byte by another vocabulary" not has runs/bits2/log.jsonl val_bpb
}

# Mistakes on the command line and in the data.
test_mistakes() {
    ten_steps
    refused "no name of data" '--data is empty' train $model --data ''
    refused "a step too large" '--total-batch-tokens 9223372036854775807' train $minute --total-batch-tokens 9223372036854775807
    refused "unknown flag" 'unknown flag --widht, did you mean --width' train $minute --widht 3
    refused "flag without value" '--steps needs a value' train $minute --steps
    refused "width and heads" '--width 33 .* --heads 2' train --data text.txt --width 33 --heads 2 --dry-run
    refused "run exists" 'runs/a already has steps.*--resume' train $minute --run a --steps 12
    refused "no such run" 'there is no run runs/none' train $minute --run none --resume
    sed 's/silver/golden/' text.txt >other.txt
    refused "other data" 'other.txt is not the data' train --run a --resume --steps 12 --data other.txt
    refused "other width" '\(tensor wte\|tensor p.wte\|--width\)' train --run a --resume --steps 12 --width 64
    check "a refused resume changed the log" cmp runs/a/log.jsonl a.saved/log.jsonl
    check "a refused resume changed a checkpoint" cmp "$(newest runs/a)" "$(newest a.saved)"
    refused "frozen tensor of an unknown name" 'no tensor "wtf"; it has wte' train $minute --run e --freeze wte,wtf
    refused "frozen leg of a pair" '--freeze wo: .* freeze wqkv too' train $minute --run e --freeze wo
    refused "a folder without a name" '--runs-dir and --run need names' train $minute --runs-dir ''
    refused "no data file" 'nowhere.txt' train --data nowhere.txt --run e
    printf 'too short' >short.txt
    refused "short text" 'short.txt' train --data short.txt --run e --seq-len 32 --batch-size 1
    check "a run that could not start left a folder" [ ! -e runs/e ]

    make_shards
    small="--vocab 100 --layers 1 --width 32 --heads 2 --seq-len 32 --batch-size 4 --threads 1 --steps 9"
    check "shards" train $small --data good.bin --val-data good.bin --run shards
    refused "shard cut off" 'cut.bin.* 1000 tokens' train $small --data cut.bin --val-data good.bin --run e
    refused "shard with a wrong magic number" 'magic.bin' train $small --data magic.bin --val-data good.bin --run e
    refused "token outside the vocabulary" 'large.bin.*60000.* 100' train $small --data good.bin \
        --val-data large.bin --run large --val-every 1
    refused "shards without validation data" '--val-data' train $small --data good.bin --run e
}

# One wrong byte in a checkpoint.
damage() { printf 'X' | dd of="$1" bs=1 seek=3000 conv=notrunc 2>/dev/null; }

# A change of a rule on resume keeps the state that both rules have, and the program names the rest.
test_other_rules() {
    ten_steps
    train --run a --resume --steps 12 --mlp normuon
    check "other rules: exit status $?" [ $? -eq 0 ]
    check "other rules: the state that starts anew is not named" has err 'starting anew: s.wfc.v, s.wproj.v$'
    train --run a --resume --steps 13
    check "other rules: a further resume: exit status $?" [ $? -eq 0 ]
    check "other rules: a further resume starts something anew" not has err 'anew'
    train --run a --resume --steps 14 --mlp muon
    check "other rules, back: the state that is left out is not named" has err 'not taken over: s.wfc.v, s.wproj.v$'
}

# A run may begin a mixed momentum and the readout when it is resumed. Averages that are late begin then.
test_other_averages() {
    ten_steps
    train --run a --resume --steps 12 --momentum-ages bi-maxwell --ema-from 4 --checkpoint-every 1
    check "other averages: exit status $?" [ $? -eq 0 ]
    check "other averages: those that start anew are not named" has err 'starting anew: e.norm0_w, .*s.wqkv.q.m1, '
    check "other averages: their beginning is not printed" has out '^momentum 2 averages of the gradient from update 0'
    check "other averages: the readout is not printed" has out '^readout '
    train --run a --resume --steps 13
    check "other averages: a further resume: exit status $?" [ $? -eq 0 ]
    check "other averages: a further resume starts something anew" not has err 'anew'
    check "a sample from averages" generate --run a --tokens 4
    train --run a --resume --steps 14 --ema-from 0 --momentum-ages ''
    check "no averages any more: exit status $?" [ $? -eq 0 ]
    check "no averages any more: they are not named" has err 'not taken over: e.norm0_w, .*s.wqkv.q.m1'
    train --run a --resume --steps 20 --ema-from 18
    check "averages to come: exit status $?" [ $? -eq 0 ]
    check "averages to come start anew" not has err 'anew'
}

# A new rule of the embeddings has its own rate, and AdamW that of the run's preset.
test_other_embed() {
    rm -rf runs/a
    check "a run of --preset llama" train --preset llama $minute --run a --steps 2
    check "resume with --embed muon" train --run a --resume --steps 3 --embed muon
    check "Muon on the embeddings has AdamW's rate" has runs/a/run.json '"lr-embed": 0.02\>'
    check "resume with --embed adamw" train --run a --resume --steps 4 --embed adamw
    check "AdamW on the embeddings has Muon's rate" has runs/a/run.json '"lr-embed": 0.003\>'
    check "resume with a rate" train --run a --resume --steps 5 --embed muon --lr-embed 0.05
    check "resume without flags" train --run a --resume --steps 6
    check "a rate that was given is lost" has runs/a/run.json '"lr-embed": 0.05\>'
    rm -rf runs/a
    check "a run of --preset speedrun" train --preset speedrun $minute --total-batch-tokens 128 --run a --steps 2
    check "resume with --mlp adamw" train --run a --resume --steps 3 --mlp adamw
    check "AdamW on the MLPs has Muon's rate" has runs/a/run.json '"lr-mlp": 0.002\>'
}

# folder_of RUN: the names and sums of the files of a run, to see whether something changed.
folder_of() { (cd "runs/$1" && find . -type f | sort | xargs cksum); }

# A run that was killed before its first checkpoint is resumed from run.json: it is the run that it was.
test_resume_without_checkpoint() {
    rm -rf runs/u runs/v
    flags="$minute --act gelu --seed 5 --steps 12 --checkpoint-every 0 --log-groups"
    check "a run" train $flags --run u
    # What a run that was killed after eight steps leaves.
    cp -r runs/u runs/v
    rm runs/v/checkpoints/*
    head -n 9 runs/u/log.jsonl >runs/v/log.jsonl
    printf '{"step": 9, "tok' >>runs/v/log.jsonl
    before=$(folder_of v)
    refused "another rate for steps that are logged" 'no checkpoint .*--lr' train --run v --resume --lr 0.1
    refused "another model" '--act was "gelu"' train --run v --resume --act relu2
    cp text.txt text.kept
    sed 's/silver/golden/' text.kept >text.txt
    refused "other data" 'text.txt is not the data' train --run v --resume
    cp text.kept text.txt
    check "a refused resume changed the folder" [ "$(folder_of v)" = "$before" ]
    check "a resume with other flags that compute no number" train --run v --resume --checkpoint-every 5
    check "the resume does not say that it begins anew" has out 'resumed  from the beginning'
    check "the log is not that of the unbroken run" same_log runs/u runs/v
    check "the model is not that of the unbroken run" same_tensors "$(newest runs/u)" "$(newest runs/v)"
    rm runs/v/run.json
    check "a resume without run.json" train --run v --resume --steps 13
    rm runs/v/checkpoints/* runs/v/run.json
    refused "a resume of nothing" 'neither a checkpoint nor run.json' train --run v --resume
    printf '{"asked": {"steps": "12"' >runs/v/run.json
    refused "a resume from half a run.json" 'run.json is damaged' train --run v --resume
}

# A run with nothing left to do stays as it is.
test_resume_finished() {
    ten_steps
    before=$(folder_of a)
    for more in "" "--lr 0.5" "--steps 8 --mlp adamw" "--val-every 1"; do
        check "a finished run, $more" train --run a --resume $more
        check "a finished run, $more: no word of it" has out 'nothing left to do: .*all its'
    done
    check "a finished run changed" [ "$(folder_of a)" = "$before" ]
    train --run a --resume --steps 8
    check "a finished run and fewer steps: no word of the step that it is at" has out 'it is at step 10, and --steps 8 is less'
    if [ -w /dev/full ]; then
        "$TRAIN_GPT" --run a --resume >/dev/full 2>err
        check "a finished run to a full disk: exit status $?" [ $? -eq 1 ]
    fi
    mkdir -p runs/fifo
    mkfifo runs/fifo/log.jsonl
    refused "a log that is a pipe" 'log.jsonl is not a regular file' train $minute --run fifo
    rm -rf runs/k
    train $minute --run k --steps 6 --keep-checkpoints 0
    before=$(folder_of k)
    check "a finished run without checkpoints" train --run k --resume
    check "a finished run without checkpoints: no word of it" has out 'no checkpoint to continue from'
    refused "more steps without a checkpoint" 'no checkpoint .*--steps' train --run k --resume --steps 8
    check "a finished run without checkpoints changed" [ "$(folder_of k)" = "$before" ]
    # Fewer steps than the newest checkpoint, and a log that goes further: what follows the checkpoint stays.
    rm -rf runs/a
    train $minute --run a --steps 10 --checkpoint-every 4 --keep-checkpoints 3
    rm runs/a/checkpoints/step_00000010.ckpt
    before=$(folder_of a)
    check "fewer steps than the log has" train --run a --resume --steps 8
    check "the log of a finished run was cut" [ "$(folder_of a)" = "$before" ]
    # Without checkpoints from here on, the log says what was done.
    check "the last steps without a checkpoint" train --run a --resume --steps 11 --keep-checkpoints 0
    before=$(folder_of a)
    check "they are not made again" train --run a --resume
    check "no word of the checkpoint that is left" has out 'nothing left.* newest checkpoint is of step 8'
    check "a finished run with an old checkpoint changed" [ "$(folder_of a)" = "$before" ]
}

# A run that had checkpoints, or other flags, cannot begin anew: its log would not be what it was.
test_resume_lost_checkpoints() {
    rm -rf runs/a
    train $minute --run a --steps 10 --checkpoint-every 4
    rm runs/a/checkpoints/*
    before=$(folder_of a)
    refused "checkpoints that are gone" 'has 10 steps in its log, and its checkpoints are gone' train --run a --resume --steps 10
    refused "checkpoints that are gone, and more steps" 'another --steps' train --run a --resume --steps 12
    check "a run without its checkpoints changed" [ "$(folder_of a)" = "$before" ]
    ten_steps
    train --run a --resume --steps 12 --lr 0.001
    rm runs/a/checkpoints/*
    before=$(folder_of a)
    refused "a run that changed" 'flags that changed, and its checkpoints are gone' train --run a --resume
    check "a run that changed and lost its checkpoints changed" [ "$(folder_of a)" = "$before" ]
    # The steps behind the first checkpoint were not reached: the run begins anew.
    ten_steps
    rm runs/a/checkpoints/*
    head -n 8 runs/a/log.jsonl >short.log && cp short.log runs/a/log.jsonl
    check "a run without a checkpoint begins anew" train --run a --resume
    check "it does not end" [ "$(lines runs/a/log.jsonl)" -eq 11 ]
}

# The changes in run.json are all that there are: they lead from the first flags to those of the last start.
test_resume_changes() {
    rm -rf runs/a
    train $minute --run a --steps 2 --lr-mlp 0.03
    for more in "--mlp adamw" "--mlp auto" "--optimizer adamw" "--batch-size 2" "--optimizer cm --lr 0.01"; do
        check "resume with $more" train --run a --resume --steps $(($(lines runs/a/log.jsonl) + 1)) $more
    done
    for flag in lr lr-qk lr-ov lr-mlp lr-embed lr-head qk ov mlp total-batch-tokens batch-size steps; do
        is=$(sed -n '/"flags"/,/}/s/^ *"'$flag'": "\{0,1\}\([^",]*\).*/\1/p' runs/a/run.json)
        last=$(sed -n 's/^ *"changes": //p' runs/a/run.json | tr '{' '\n' | sed -n 's/.*"flag": "'$flag'",.* "is": "\([^"]*\)".*/\1/p' | tail -n 1)
        first=$(sed -n 's/^ *"changes": //p' runs/a/run.json | tr '{' '\n' | sed -n 's/.*"flag": "'$flag'", "was": "\([^"]*\)".*/\1/p' | head -n 1)
        check "--$flag is $is, and its last change says $last" [ "${last:-$is}" = "$is" ]
        case $flag in lr-mlp) check "--lr-mlp began with $first" [ "$first" = 0.03 ] ;; esac
        case $flag in lr-mlp | total-batch-tokens | mlp | lr-qk) check "no change of --$flag" [ -n "$last" ] ;; esac
    done
}

# Every flag of docs/flags.md does on resume what its column says. value_of NAME: another value than the default.
value_of() {
    case $1 in
    preset) echo gpt2 ;; act) echo gelu ;; norm) echo layernorm ;; pos) echo none ;; init) echo gpt2 ;;
    qk-norm | embed-norm) echo off ;; biases | head-bias | tied | isotropic | circuit | per-mat-renorm) echo on ;;
    data-order) echo sequential ;; kv-heads | seed) echo 1 ;; heads | softcap) echo 4 ;; head-dim) echo 32 ;;
    width | ff-width) echo 64 ;; seq-len) echo 16 ;; vocab) echo 300 ;; layers) echo 2 ;;
    norm-eps) echo 1e-5 ;; rope-base) echo 500 ;; attn-scale | init-std) echo 0.3 ;;
    lora-rank | low-rank) echo 4 ;; lora-on) echo qkv ;; lora-scale | lora-factor-scale) echo 2 ;;
    lora-split) echo off ;; lora-init) echo balanced ;;
    *) return 1 ;;
    esac
}
test_resume_flags() {
    ten_steps
    rm -rf runs/s
    train $minute --run s --steps 10 --seed 2
    "$TRAIN_GPT" --help-markdown >flags.table
    before=$(folder_of s)
    fixed=$(sed -n 's/^| `--\([a-z0-9-]*\)` | [^|]* | fixed |.*/\1/p' flags.table)
    check "the table of flags has no fixed ones" [ "$(echo "$fixed" | wc -w)" -gt 20 ]
    for name in $fixed; do
        value=$(value_of "$name") || value=
        check "no value for --$name" [ -n "$value" ]
        refused "--$name on resume" "--$name was .* and stays" train --run s --resume --steps 12 "--$name" "$value"
    done
    check "a refused flag changed the run" [ "$(folder_of s)" = "$before" ]
    for pair in 'lr 0.5' 'mlp normuon' 'weight-decay 0.1' 'warmup 3' 'batch-size 2' 'threads 2' 'val-tokens 64' \
        'freeze wte' 'grad-clip 1' 'damping 0.5'; do
        set -- $pair
        cp -r runs/s runs/t
        check "--$1 on resume" train --run t --resume --steps 12 "--$1" "$2"
        check "--$1 on resume: no note" has err "^note: --$1 .* -> $2 from step 11\$"
        check "--$1 on resume: run.json does not have the change" has runs/t/run.json \
            "{\"from_step\": 11, \"flag\": \"$1\", \"was\": \".*\", \"is\": \"$2\"}"
        check "--$1: a further resume" train --run t --resume --steps 13
        check "--$1: a further resume notes the change again" not has err "^note: --$1 "
        check "--$1: a further resume forgets the change" has runs/t/run.json "\"from_step\": 11, \"flag\": \"$1\""
        rm -rf runs/t
    done
    cp -r runs/s runs/t
    check "steps that are made again with other flags" train --run t --resume --steps 14
    rm runs/t/checkpoints/step_00000014.ckpt
    check "steps that are made again: exit status" train --run t --resume --lr 0.5
    check "steps that are made again: no note" has err '^note: steps 11 to 14 of the log are made again'
    head -n 5 runs/s/log.jsonl >runs/t/log.jsonl
    check "a log that is too short" train --run t --resume --steps 15
    check "a log that is too short: no warning" has err 'warning: the log ends at step 4 and the checkpoint is of step 14'
    rm -rf runs/t
    check "--val-every on resume" train --run s --resume --steps 12 --val-every 1
    check "--val-every on resume: a note" not has err 'note: --val-every'

    # run.json of another run is left aside, with a warning.
    rm -rf runs/t
    cp -r runs/s runs/t
    cp runs/a/run.json runs/t/run.json
    check "a resume with the run.json of another run" train --run t --resume --steps 14
    check "the run.json of another run: no warning" has err 'warning: run.json is not this run.s.*--seed 1, and the checkpoint 2'
    check "the run.json of another run is believed" has runs/t/run.json '"seed": 2,'

    # A change that was told to a start which was killed before its first checkpoint is not forgotten.
    rm -rf runs/t
    cp -r a.saved runs/t
    check "resume with a rate" train --run t --resume --steps 12 --lr 0.5
    rm runs/t/checkpoints/step_00000012.ckpt
    cp a.saved/checkpoints/* runs/t/checkpoints
    check "resume after a kill" train --run t --resume
    check "resume after a kill: the rate is forgotten" has err '^note: --lr 0.02 -> 0.5 from step 11$'
}

# Other validation data, and a folder that moved.
test_resume_elsewhere() {
    ten_steps
    head -c 3000 text.txt >valid.txt
    check "other validation data on resume" train --run a --resume --steps 12 --val-data valid.txt
    check "other validation data on resume: no note" has err '^note: --val-data "" -> valid.txt from step 11$'
    check "the training data changed" has runs/a/run.json '"train_part": "nine tenths"'
    check "and back" train --run a --resume --steps 14 --val-data ""
    mkdir -p moved/elsewhere
    mv runs/a moved/elsewhere/b
    mv text.txt moved/text.txt
    check "a folder and data that moved" train --runs-dir moved/elsewhere --run b --resume --steps 16 \
        --data moved/text.txt
    mv moved/text.txt text.txt
    check "the run went on somewhere else" [ -f moved/elsewhere/b/checkpoints/step_00000016.ckpt ] && [ ! -e runs/a ]
}

# A new run from the weights of another.
test_init_from() {
    ten_steps
    check "--init-from RUN" train --data text.txt --batch-size 4 --threads 1 --run n --steps 0 --init-from a
    check "--init-from: the weights are not named" has out 'weights  from runs/a/checkpoints/step_00000010.ckpt'
    check "--init-from: the model's flags are not taken over" has runs/n/run.json '"width": 32,'
    was=$(sed -n 's/^{"step": 10, .*"val_loss": \([0-9.]*\),.*/\1/p' runs/a/log.jsonl)
    check "--init-from: the loss is not that of the weights ($was)" has runs/n/log.jsonl "\"val_loss\": $was,"
    check "--init-from: run.json does not name the file" has runs/n/run.json \
        '"init_from_file": "runs/a/checkpoints/step_00000010.ckpt"'
    check "--init-from FILE" train --data text.txt --threads 1 --run o --steps 3 --seq-len 16 \
        --init-from runs/a/checkpoints/step_00000010.ckpt
    check "--init-from: another --seq-len is not noted" has err 'note: --seq-len 16, .* trained with 32'
    refused "--init-from: another width" '--init-from: runs/a.*tensor p' train --data text.txt --run p --width 64 \
        --init-from a
    refused "--init-from: no such run" '--init-from nobody: runs/nobody/checkpoints has no' train --data text.txt \
        --run p --init-from nobody
    check "--init-from FOLDER" train --data text.txt --threads 1 --run f --steps 0 --init-from ./runs/a
    check "--init-from FOLDER: another file" has out 'weights  from ./runs/a/checkpoints/step_00000010.ckpt'
    check "a refused --init-from left a folder" [ ! -e runs/p ]
    make_shards
    refused "--init-from: another tokenizer" 'weights know the tokens of bytes, and good.bin has those of gpt2' \
        train --data good.bin --val-data good.bin --threads 1 --run p --init-from a
    # Learned positions: the first ones are taken, and there are none beyond the last.
    train $minute --run l --steps 2 --pos learned
    check "--init-from with fewer positions" train --data text.txt --threads 1 --run q --steps 1 --seq-len 16 --init-from l
    refused "--init-from with more positions" 'tensor p.wpe' train --data text.txt --run p --seq-len 64 --init-from l
    # Started over without a checkpoint: from the file it began from, if that is as it was.
    rm -f runs/o/checkpoints/*
    head -n 2 runs/o/log.jsonl >o.log && cp o.log runs/o/log.jsonl
    cp runs/a/checkpoints/step_00000010.ckpt weights.ckpt
    rm runs/a/checkpoints/step_00000010.ckpt
    refused "--init-from: the file is gone" 'no checkpoint yet, and the file .*step_00000010.ckpt: No such file' \
        train --run o --resume
    cp "$(newest runs/n)" runs/a/checkpoints/step_00000010.ckpt 2>/dev/null || cp "$(newest runs/q)" \
        runs/a/checkpoints/step_00000010.ckpt
    refused "--init-from: the file is another" 'is not the file that the run began from' train --run o --resume
    cp weights.ckpt runs/a/checkpoints/step_00000010.ckpt
    check "--init-from: the run starts over" train --run o --resume --init-from nobody
    check "--init-from with --resume: no word of it" has err 'note: --init-from is for the beginning of a run'
    check "--init-from: the run ends" [ "$(lines runs/o/log.jsonl)" -eq 4 ]
    rm runs/o/run.json
    check "--init-from: a resume without run.json" train --run o --resume --steps 4
    check "run.json that is gone: no word of it" has err 'warning: runs/o has no run.json'
    check "the checkpoint does not know where the run began" has runs/o/run.json \
        '"init_from_file": "runs/a/checkpoints/step_00000010.ckpt"'
    refused "--init-from: an empty name" '--init-from: the name is empty' train --data text.txt --run p --init-from ""
}

# The last validation loss of a run.
last_loss() { sed -n 's/.*"val_loss": \([0-9.]*\),.*/\1/p' "$1/log.jsonl" | tail -n 1; }
# near A B [SHARE]: whether A is within a share of B.
near() { awk -v a="${1:-0}" -v b="${2:-1}" -v e="${3:-1e-5}" 'BEGIN { d = a - b; exit !(d * d < e * e * b * b) }'; }
other_words() { tr 'a-z' 'n-za-m' <text.txt >other.txt; }
tune="--batch-size 4 --threads 1"
# The most probable text of a model, in the file NAME.text; further arguments go to generate.
greedy() {
    name=$1
    shift
    generate --run "$name" --prompt "the king" --tokens 40 --temperature 0 "$@" && cp out "$name.text"
}

# Fine-tuning in three commands: a base, adapters beside its weights, and both merged into whole matrices.
test_adapters() {
    rm -rf runs/a runs/ad* ad3.saved runs/gone runs/whole runs/from runs/away runs/again
    ten_steps
    other_words
    base=runs/a/checkpoints/step_00000010.ckpt
    before=$(cksum <$base)
    check "adapters" train --data other.txt $tune --run ad --init-from a --lora-rank 4 --lr-lora 0.1 --steps 40
    check "the start does not tell the adapters" has out '^adapters [0-9.]*M parameters of rank 4, scale 1, on qkv, o, fc, proj; the rest is frozen'
    check "the start does not name the weights" has out "^weights  from $base\$"
    check "the start does not name the rule" has out '^update   LoRA-Muon on the adapters'
    check "the base has changed" [ "$(cksum <$base)" = "$before" ]
    check "the log has another rate than that of the adapters" has runs/ad/log.jsonl '^{"step": 1, .*"lr": 0.1,'
    first=$(sed -n 's/^{"step": 0, .*"val_loss": \([0-9.]*\),.*/\1/p' runs/ad/log.jsonl)
    check "the loss does not fall: $first, $(last_loss runs/ad)" awk -v a="$first" -v b="$(last_loss runs/ad)" 'BEGIN { exit !(b > 0 && b < a - 0.1) }'
    check "adapters take $(wc -c <"$(newest runs/ad)") bytes, the base $(wc -c <$base)" \
        [ $(($(wc -c <"$(newest runs/ad)") * 2)) -lt "$(wc -c <$base)" ]
    # The model begins as its base.
    check "no step" train --data other.txt $tune --run ad2 --init-from a --steps 0 --val-tokens 0
    check "the model does not begin as its base" [ "$(last_loss runs/ad2)" = "$first" ]

    check "a sample from adapters" greedy ad
    check "a sample from the base" greedy a
    check "adapters do not change the text" not cmp -s a.text ad.text
    check "--merge" generate --run ad --merge whole
    check "--merge does not say what it wrote" has err '^merged   runs/ad/.*step_00000040.ckpt into runs/whole/.*step_00000040.ckpt$'
    check "a sample from the merged model" greedy whole
    check "the merged model writes another text" cmp ad.text whole.text
    check "the merged model still names adapters" not has err 'adapters'
    check "a run from the merged model" train --data other.txt $tune --run from --init-from whole --steps 0
    check "merged: a loss of $(last_loss runs/from), not $(last_loss runs/ad)" near "$(last_loss runs/from)" "$(last_loss runs/ad)"
    # Its checkpoint has no line about factors, as those from before these flags have none.
    check "adapters of the merged model" train --data other.txt $tune --run again --init-from whole --lora-rank 2 --steps 1
    refused "--resume of merged weights" '--resume: .*merged weights.*--init-from' train --run whole --resume --steps 41
    # Options that factors may have, and whole matrices not.
    check "adapters by a joint sign" train --data other.txt $tune --run joint --init-from a --lora-rank 2 --lora cm --method joint \
        --steps 1
    check "--merge of adapters by a joint sign" generate --run joint --merge joint-whole
    check "text of adapters by a joint sign" generate --run joint-whole --tokens 2
    refused "another rank of adapters on resume" '--lora-rank was "2" and stays.*generate --run joint --merge NAME' \
        train --run joint --resume --lora-rank 4
    refused "a rank of a whole model on resume" '--low-rank was "0" and stays.*--init-from a --low-rank' train --run a --resume --low-rank 4
    check "flags of what is frozen" train --data other.txt $tune --run idle --init-from a --lora-rank 2 --steps 0 --mlp lion --lr-embed 3
    check "flags of what is frozen: no note" has err '^note: --mlp has no effect'
    check "flags of what is frozen: no note of a rate" has err '^note: --lr-embed has no effect'

    refused "--merge: a name that is taken" '--merge: there is a run runs/a already' generate --run ad --merge a
    refused "--merge into itself" '--merge: there is a run runs/ad already' generate --run ad --merge ad
    refused "--merge: no name" '--merge: .*empty' generate --run ad --merge ''
    refused "--merge: a text" '--merge writes a model and no text' generate --run ad --merge new --prompt the
    refused "--merge: a path" '--merge x/y: .*plain name' generate --run ad --merge x/y
    refused "--merge: nothing to merge" 'no adapters and no products of low rank' generate --run a --merge new
    refused "--base without adapters" 'it has no adapters, and --base' generate --run a --base $base --tokens 1
    check "a refused --merge left a folder" [ ! -e runs/new ]
    (ulimit -f 40 && generate --run ad --merge new)
    check "--merge, full disk: exit status $?" [ $? -eq 1 ]
    check "--merge, full disk: no message" has err '^error: .*step_00000040.ckpt: File too large'
    check "--merge, full disk: a folder is left" [ ! -e runs/new ]
    mkdir -p runs/new/checkpoints # what a killed --merge leaves
    : >runs/new/log.jsonl
    check "--merge once more" generate --run ad --merge new
    check "--merge once more: another model" same_tensors "$(newest runs/new)" runs/new/checkpoints/step_00000040.ckpt
    rm -rf runs/new

    # The base moves, is damaged, and is replaced.
    mv runs/a runs/away
    away=runs/away/checkpoints/step_00000010.ckpt
    refused "a sample: no base" 'not to be had: .*step_00000010.ckpt: No such file.* with --base' generate --run ad --tokens 1
    refused "--merge: no base" 'not to be had: .*step_00000010.ckpt: No such file.* with --base' generate --run ad --merge new
    check "--base" greedy ad --base $away
    check "--base: another text" cmp ad.text whole.text
    refused "--base: no such file" '--base, .* nowhere: No such file' generate --run ad --base nowhere --tokens 1
    refused "--base: other weights" 'adapters are of other weights' generate --run ad --base "$(newest runs/whole)" --tokens 1
    refused "--base: no name" '--base: the name is empty' generate --run ad --base "" --tokens 1
    refused "a resume: no base" 'trains adapters of the weights .*No such file.*--init-from' train --run ad --resume --steps 41
    refused "a resume: another base" 'is not the file that the run began from' train --run ad --resume --steps 41 --init-from whole
    refused "a resume: no such base" '--init-from nobody: ' train --run ad --resume --steps 41 --init-from nobody
    check "a finished run needs no base" train --run ad --resume
    check "a resume with a base that moved" train --run ad --resume --steps 41 --init-from away
    check "a resume forgets where the base is" train --run ad --resume --steps 42
    cp $away good.ckpt
    head -c 9000 good.ckpt >$away
    refused "a resume: a base cut off" 'truncated or damaged' train --run ad --resume --steps 43
    refused "a base cut off" 'is damaged' train --data other.txt $tune --run x --init-from away --lora-rank 2 --steps 1
    cp good.ckpt $away
    damage $away
    refused "a sample: a damaged base" 'is damaged: its checksum' generate --run ad --tokens 1
    cp "$(newest runs/whole)" $away
    refused "a resume: the base was replaced" 'is not the file that the run began from' train --run ad --resume --steps 43
    refused "a sample: the base was replaced" 'which is another file than that of then' generate --run ad --tokens 1
    cp good.ckpt $away
    check "the base is back" train --run ad --resume --steps 43

    # run.json of another run does not make the adapters those of other weights, and without any word of the
    # weights the run does not go on beside others.
    cp runs/again/run.json runs/ad/run.json
    check "the run.json of other adapters" train --run ad --resume --steps 44
    check "the run.json of other adapters: no warning" has err 'warning: run.json is not this run'
    rm runs/ad/run.json
    check "adapters without run.json" train --run ad --resume --steps 45
    train --data other.txt $tune --run ad3 --init-from away --lora-rank 4 --steps 3
    cp -r runs/ad3 ad3.saved
    rm -f runs/ad3/checkpoints/*
    head -n 2 ad3.saved/log.jsonl >runs/ad3/log.jsonl
    sed -i '/"init_from_/d' runs/ad3/run.json
    refused "adapters of nobody knows what" 'nothing in its folder says of which' train --run ad3 --resume
    cp ad3.saved/run.json runs/ad3
    mv runs/away runs/gone
    refused "adapters that begin again: no base" 'trains adapters of .*No such file' train --run ad3 --resume
    check "adapters that begin again" train --run ad3 --resume --init-from gone
    check "adapters that begin again: another log" same_log runs/ad3 ad3.saved
    check "adapters that begin again: other adapters" same_tensors "$(newest runs/ad3)" "$(newest ad3.saved)"
    check "a refused start left a folder" [ ! -e runs/x ]
}

# Products in place of matrices: trained, resumed, merged, and the beginning of new runs.
test_low_rank() {
    rm -rf runs/lr runs/lr2 runs/lrm runs/lrf runs/lra runs/lrb
    ranks="--low-rank 4 --lora-on all --lora-scale 2 --init gpt2"
    check "--low-rank" train $minute $ranks --run lr --steps 6 --log-groups --ema-from 3
    check "the start does not tell the products" has out '^low rank products of rank 4, scale 2, in place of qkv, o, fc, proj, head'
    check "the log does not tell the factors' steps" has runs/lr/log.jsonl '"A of W_Q": {"update_rms"'
    if train $minute $ranks --run lrb --steps 6 --compute bf16; then
        loss=$(last_loss runs/lrb)
        check "products in bf16: a loss of $loss, not $(last_loss runs/lr)" near "$loss" "$(last_loss runs/lr)" 2e-2
        check "products in bf16 have the loss of fp32" [ "$loss" != "$(last_loss runs/lr)" ]
    else
        check "products in bf16: no reason" has err '^error: --compute bf16 needs '
    fi
    check "a sample of products" greedy lr
    check "--merge of products" generate --run lr --merge lrm
    check "a sample of merged products" greedy lrm
    check "merged products write another text" cmp lr.text lrm.text
    check "a run from products" train --data text.txt $tune --run lr2 --init-from lr --steps 0
    check "a run from merged products" train --data text.txt $tune --run lrf --init-from lrm --steps 0
    check "a run from products has no products" has runs/lr2/run.json '"low-rank": 4,'
    check "a run from merged products has products" has runs/lrf/run.json '"low-rank": 0,'
    check "merged products: a loss of $(last_loss runs/lrf), not $(last_loss runs/lr)" near "$(last_loss runs/lrf)" "$(last_loss runs/lr)"
    check "training goes on from products" train --data text.txt $tune --run lra --init-from lr --steps 3
    lr=$(newest runs/lr)
    refused "adapters beside products" "has products of rank 4 .*--lora-rank 2 .*generate --checkpoint $lr --merge NAME" \
        train --data text.txt $tune --run x --init-from lr --lora-rank 2
    refused "products to whole matrices" "has products of rank 4 .*--low-rank 0 .*--merge NAME" \
        train --data text.txt $tune --run x --init-from lr --low-rank 0
    refused "whole matrices to products" 'has whole matrices, and --low-rank 2 .*--lora-rank' \
        train --data text.txt $tune --run x --init-from lrm --low-rank 2
    refused "another rank of products" '--low-rank 2: .*has products of rank 4: .*--merge NAME' train --data text.txt $tune --run x --init-from lr --low-rank 2
    check "a refused start left a folder" [ ! -e runs/x ]
}

# The sizes of steps that --log-groups writes are those of the weights that they are of, whatever is frozen before
# these: what is frozen has no copy.
test_frozen_groups() {
    rm -rf runs/g runs/gf
    check "--log-groups" train $minute --run g --steps 1 --log-groups
    check "--log-groups --freeze" train $minute --run gf --steps 1 --log-groups --freeze wte,norm0_w
    groups() { sed -n 's/.*\("W_O": {[^}]*}\).*\("W_proj": {[^}]*}\).*\("OV": {[^}]*}\).*/\1 \2 \3/p' "runs/$1/log.jsonl" | tail -n 1; }
    check "--log-groups: $(groups g)" [ -n "$(groups g)" ]
    check "--log-groups --freeze: $(groups gf), not $(groups g)" [ "$(groups gf)" = "$(groups g)" ]
}

# Mistakes in the flags of factors.
test_factor_mistakes() {
    ten_steps
    more="--data text.txt $tune --run x --steps 1 --init-from a"
    refused "adapters of nothing" '--lora-rank 4: .*--init-from.*--low-rank' train $minute --run x --lora-rank 4
    refused "both ranks" '--lora-rank .* and --low-rank .*one of them' train $more --lora-rank 4 --low-rank 4
    refused "a rank too large" '--lora-rank 33 is above .*W_Q, W_K or W_V, which is 32: ' train $more --lora-rank 33
    refused "a rank too large for one" '--low-rank 20 is above .*W_O, which is 16: .*leave o out of --lora-on' train $minute --run x \
        --low-rank 20 --head-dim 8 --lora-split off
    for bad in "" foo qkv, ,qkv qkv,,o "qkv, o" all,o QKV; do
        refused "--lora-on \"$bad\"" '--lora-on[: ]' train $more --lora-rank 4 --lora-on "$bad"
    done
    check "--lora-on with a name twice" train $more --lora-rank 4 --lora-on o,qkv,o
    rm -rf runs/x
    refused "spectral adapters" '--lora-init: adapters begin at zero' train $more --lora-rank 4 --lora-init spectral
    refused "--lora-plus of a pair" '--lora-plus .*--lora lora-muon' train $more --lora-rank 4 --lora-plus 4
    refused "--lora-rebalance of adapters" '--lora-rebalance .*--lora-trust' train $more --lora-rank 4 --lora-rebalance 1
    refused "--lora-rebalance of AdamW" '--lora-rebalance is for' train $more --lora-rank 4 --lora adamw --lora-rebalance 1
    refused "--lora-rebalance of a product that is zero" '--lora-rebalance .*--lora-trust' train $minute --run x --low-rank 4 \
        --init speedrun --lora-rebalance 1
    refused "--weight-decay of a product" 'must be below 1' train $minute --run x --low-rank 4 --lr-lora 0.5 --weight-decay 2
    refused "no factors to speak of" '--lora-on is about factors, .*--lora-rank or --low-rank' train $minute --run x --lora-on qkv
    refused "no factors beside weights" '--lora-scale is about factors' train $more --lora-scale 2
    for flag in "--lora adamw" "--lr-lora 0.1" "--lora-trust 0" "--rite-escape on"; do
        refused "no factors: $flag" "${flag% *} is about factors" train $more $flag
    done
    refused "--lora-trust of Spectron" '--lora-trust is for .* spectron has no limit' train $more --lora-rank 4 --lora spectron --lora-trust 0.02
    refused "--rite-escape of LoRA-Muon" '--rite-escape is for --lora lora-rite' train $more --lora-rank 4 --rite-escape on
    refused "--cm-match-muon without CM" '--cm-match-muon .*no matrix' train $more --lora-rank 4 --cm-match-muon
    # What matrices that are frozen, or that there are none of, would refuse.
    for cm in "--method joint" --cm-match-muon "--connection frobenius --method joint"; do
        check "CM on adapters, $cm" train $more --lora-rank 4 --lora cm $cm --dry-run
        check "CM on products, $cm" train $minute --run x --low-rank 4 --lora cm $cm --dry-run
    done
    refused "a joint sign of whole matrices" '--ov cm: .*hybrid' train $minute --run x --low-rank 4 --lora-on fc,proj --method joint
    refused "LoRA+ without a rate for A" '--lora-plus' train $more --lora-rank 4 --lora adamw --lora-plus 0
    refused "a tied head of products" '--low-rank: a tied head .*--lora-on' train $minute --run x --low-rank 4 --tied on --init gpt2 --lora-on head
    refused "one leg of a pair" '--lora-on qkv: the rule of W_O, W_V' train $minute --run x --low-rank 4 --lora-on qkv
    refused "nothing left" '--freeze wo_up,wo_down leaves nothing to train' train $more --lora-rank 4 --lora-on o --freeze wo_up,wo_down
    refused "one frozen factor" '--freeze wo_up: .*freeze wo_down too' train $more --lora-rank 4 --freeze wo_up
    refused "a frozen matrix that is none" '--freeze: this model has no tensor "wqkv"; it has .*wqkv_up' train $minute --run x \
        --low-rank 4 --freeze wqkv
    check "a dry run of adapters" train $more --lora-rank 4 --dry-run
    check "a dry run does not tell what is frozen" has out '^wqkv *frozen'
    check "a dry run does not tell the factors" has out '^A of W_O, B of W_O *lora-muon'
    check "a mistake left a folder" [ ! -e runs/x ]
    check "adapters" train $more --lora-rank 4
    mkdir -p "other runs"
    refused "adapters as a base, other runs" "generate --checkpoint .* --merge NAME --runs-dir other runs, and" \
        train --data text.txt $tune --runs-dir "other runs" --run y --init-from "$(newest runs/x)"
    check "--checkpoint --merge --runs-dir" generate --checkpoint "$(newest runs/x)" --merge w --runs-dir "other runs"
    check "--checkpoint --merge --runs-dir: no checkpoint" [ -f "other runs/w/checkpoints/step_00000001.ckpt" ]
    refused "--checkpoint and --runs-dir" '--checkpoint names a file and --run another' generate --checkpoint "$(newest runs/x)" \
        --runs-dir "other runs" --tokens 1
    refused "adapters as a base" "has adapters alone.*generate --checkpoint runs/x/.*step_00000001.ckpt --merge NAME" \
        train --data text.txt $tune --run y --init-from x
    refused "adapters of adapters" 'has adapters alone' train --data text.txt $tune --run y --init-from x --lora-rank 2
    refused "another rank on resume" '--lora-rank was "4" and stays' train --run x --resume --steps 2 --lora-rank 2
    check "another rule on resume" train --run x --resume --steps 2 --lora adamw
    check "another rule on resume: no note" has err '^note: --lora lora-muon -> adamw from step 2$'
    rm -rf runs/x
}

# interrupt SIGNAL: starts a run in `broken` and sends the signal while step 1 is validated, which takes some
# tenths of a second: its line of the log follows that of step 0.
interrupt() {
    rm -rf broken
    mkdir broken
    start $flags
    await_lines broken/runs/r/log.jsonl 1
    sleep 0.05
    kill "-$1" $child
    finish
    check "SIG$1 in a validation: exit status $status" [ $status -gt 128 ]
    check "SIG$1 in a validation: it went on" [ "$(lines broken/runs/r/log.jsonl)" -eq 1 ]
    check "SIG$1 in a validation: step 1 is not saved" [ -f broken/runs/r/checkpoints/step_00000001.ckpt ]
}

# Signals that end a run in the middle of a validation. Nothing is lost, and nothing is done twice.
test_interrupted() {
    awk '{ for (i = 0; i < 40; i++) print }' text.txt >long.txt
    flags="--layers 1 --width 32 --heads 2 --seq-len 32 --batch-size 1 --threads 1 --data ../text.txt --run r \
        --val-data ../long.txt --val-tokens 120000 --steps 2 --val-every 1 --log-groups"
    rm -rf whole
    mkdir whole
    (cd whole && train $flags)
    for signal in HUP TERM USR1 XCPU; do # a shell starts background processes with SIGINT ignored
        interrupt $signal
        case $signal in TERM | HUP)
            cp broken/runs/r/checkpoints/step_00000001.ckpt first.ckpt
            # That validation is the resumed run's, whatever is changed; its checkpoint is written again.
            cp -r broken other
            (cd other && run "$TRAIN_GPT" --run r --resume --val-data ../text.txt --val-every 0 --steps 1)
            check "SIG$signal: a change of the validation that is still to be done" has err \
                '^note: --val-data .* from step 1$'
            check "SIG$signal: that validation is left out" has other/runs/r/log.jsonl '^{"step": 1,.*"val_loss": [0-9]'
            (cd other && run "$TRAIN_GPT" --run r --resume)
            check "SIG$signal: a run at its end is not finished" has out '^nothing left to do'
            rm -rf other
            (cd broken && train --run r --resume)
            if [ $signal = HUP ]; then # killed after the line of step 1 was written, and resumed once more
                rm broken/runs/r/checkpoints/*
                cp first.ckpt broken/runs/r/checkpoints/step_00000001.ckpt
                (cd broken && train --run r --resume)
            fi
            check "SIG$signal: the resumed run ends with $?" [ -f broken/runs/r/checkpoints/step_00000002.ckpt ]
            check "SIG$signal: the log is not that of the unbroken run" same_log whole/runs/r broken/runs/r
            check "SIG$signal: the checkpoint is not that of the unbroken run" \
                cmp "$(newest whole/runs/r)" "$(newest broken/runs/r)"
            ;;
        esac
    done
    rm -rf broken
    mkdir broken
    flags=$(echo "$flags" | sed 's/--val-tokens [0-9]*/--val-tokens 400000/')
    start $flags
    await_lines broken/runs/r/run.json 3 # the run is in the validation of step 0
    sleep 0.1
    kill -TERM $child
    finish
    check "SIGTERM in the first validation: exit status $status" [ $status -eq 143 ]
    check "SIGTERM in the first validation left steps: $(ls broken/runs/r/checkpoints)" \
        [ -z "$(cat broken/runs/r/log.jsonl)$(ls broken/runs/r/checkpoints)" ]
    (trap '' HUP && cd broken && exec "$TRAIN_GPT" --run r --resume --val-tokens 100000 >out 2>err) &
    child=$!
    sleep 0.1
    check "SIGHUP that is ignored came too late" kill -HUP $child
    finish
    check "SIGHUP that is ignored: exit status $status" [ $status -eq 0 ]
    check "SIGHUP that is ignored ended the run" [ "$(lines broken/runs/r/log.jsonl)" -eq 3 ]
}

# A signal in the middle of an evaluation. The resumed run owes that evaluation, and no validation.
test_interrupted_evaluation() {
    rm -rf whole broken
    mkdir whole broken
    examples 300 >many.bin
    flags="--layers 1 --width 32 --heads 2 --seq-len 64 --batch-size 1 --threads 1 --data ../text.txt --run r \
        --val-tokens 64 --val-every 2 --steps 2 --eval-data ../many.bin --eval-every 1"
    (cd whole && train $flags)
    start $flags
    await_lines broken/runs/r/log.jsonl 1
    sleep 0.05
    kill -TERM $child
    finish
    check "SIGTERM in an evaluation: exit status $status" [ $status -eq 143 ]
    check "SIGTERM in an evaluation: it went on" [ "$(lines broken/runs/r/log.jsonl)" -eq 1 ]
    check "SIGTERM in an evaluation: step 1 is not saved" [ -f broken/runs/r/checkpoints/step_00000001.ckpt ]
    check "the checkpoint does not say what is owed" has broken/runs/r/checkpoints/step_00000001.ckpt '^pending_for=evaluation$'
    cp -r broken other
    examples 20 >few.bin
    (cd other && run "$TRAIN_GPT" --run r --resume --eval-every 0 --eval-data ../few.bin)
    check "the evaluation that is owed is left out" has_extra other/runs/r 1 "\"eval_acc\".*"
    check "other examples for the evaluation that is owed: no note" has err '^note: --eval-data .* -> ../few.bin from step 1$'
    rm -rf other
    (cd broken && train --run r --resume)
    check "SIGTERM in an evaluation: the resumed run does not end" [ -f broken/runs/r/checkpoints/step_00000002.ckpt ]
    check "SIGTERM in an evaluation: the log is not that of the unbroken run" same_log whole/runs/r broken/runs/r
    check "SIGTERM in an evaluation: the accuracies are not those of the unbroken run" same_extras whole/runs/r broken/runs/r
    check "SIGTERM in an evaluation: the checkpoint is not that of the unbroken run" \
        cmp "$(newest whole/runs/r)" "$(newest broken/runs/r)"
}

# A step of many micro-batches ends between two of them, and counts as not made.
test_interrupted_step() {
    flags="--data ../text.txt --layers 1 --width 32 --heads 2 --seq-len 32 --batch-size 1 --threads 1 --run r --steps 2 \
        --total-batch-tokens 160000 --val-tokens 64 --val-every 1"
    rm -rf whole broken
    mkdir whole broken
    (cd whole && train $flags)
    start $flags
    await_lines broken/runs/r/log.jsonl 2
    sleep 0.1
    kill -TERM $child
    finish
    check "SIGTERM in a step: exit status $status" [ $status -eq 143 ]
    check "SIGTERM in a step: it was made" [ "$(lines broken/runs/r/log.jsonl)" -eq 2 ]
    check "SIGTERM in a step: step 1 is not saved" [ -f broken/runs/r/checkpoints/step_00000001.ckpt ]
    (cd broken && train --run r --resume)
    check "SIGTERM in a step: the log is not that of the unbroken run" same_log whole/runs/r broken/runs/r
    check "SIGTERM in a step: the checkpoint is not that of the unbroken run" \
        cmp "$(newest whole/runs/r)" "$(newest broken/runs/r)"
}

# Standard streams that are closed, full, or read by nobody: nothing of them reaches the run's files.
test_streams() {
    ten_steps
    flags="$minute --steps 10 --val-every 5"
    streams() { # NAME SHELL
        rm -rf runs/s
        TRAIN="$TRAIN_GPT $flags --run s" sh -c "$2" >out 2>err
        check "$1: the log is not that of a plain run" same_log runs/a runs/s
        check "$1: the tensors are not those of a plain run" same_tensors "$(newest runs/a)" "$(newest runs/s)"
    }
    streams "no output" '$TRAIN >&-'
    streams "no error output" '$TRAIN 2>&-'
    streams "no streams" '$TRAIN <&- >&- 2>&-'
    streams "no input and error output" '$TRAIN <&- 2>&-'
    streams "a reader that goes away" '$TRAIN | head -n 1'
    streams "both outputs to a reader that goes away" '$TRAIN 2>&1 | true'
    [ ! -c /dev/full ] || streams "a full device" '$TRAIN >/dev/full'
}

# Names with odd characters work, or are refused before the first step.
test_odd_names() {
    line=$(printf 'two\nlines')
    cp text.txt "$line.txt"
    refused "a line break in --data" '--data: .* line break' train $model --data="$line.txt" --run e
    rm -rf runs/e
    for name in 'a b' "it's" 'quo"te' 'back\slash' 'pat*tern[1]?' '%s %d' '-dash' "$(printf 'byte\377')" "$(printf 'tab\there')"; do
        rm -rf odd
        mkdir -p "odd/$name"
        cp text.txt "odd/$name/text.txt"
        (cd "odd/$name" && run "$TRAIN_GPT" $model --data="$dir/odd/$name/text.txt" --runs-dir="$dir/odd/$name/runs" \
            --run x --steps 3)
        check "a run in $name" [ -f "odd/$name/runs/x/checkpoints/step_00000003.ckpt" ]
        rm -f "odd/$name/runs/x/checkpoints/step_00000003.ckpt"
        train --runs-dir="odd/$name/runs" --run x --resume
        check "its run.json names the data" [ -f "odd/$name/runs/x/checkpoints/step_00000003.ckpt" ]
        check "a sample from it" generate --runs-dir="odd/$name/runs" --run x --tokens 3
    done
}

# Damaged checkpoints.
test_damage() {
    ten_steps
    train --run a --resume --steps 12 --keep-checkpoints 5
    check "resume with more steps" [ -f runs/a/checkpoints/step_00000012.ckpt ]
    damage runs/a/checkpoints/step_00000012.ckpt
    train --run a --resume --steps 14
    check "resume past a damaged checkpoint: exit status $?" [ $? -eq 0 ]
    check "no warning names the damaged checkpoint" has err 'warning: .*step_00000012.ckpt is damaged'
    check "the checkpoint that is taken instead is not named" has out 'resumed.*step_00000010.ckpt'
    check "log.jsonl has $(lines runs/a/log.jsonl) lines, not 15" [ "$(lines runs/a/log.jsonl)" -eq 15 ]
    for f in runs/a/checkpoints/*.ckpt; do damage "$f"; done
    refused "all checkpoints damaged" 'every checkpoint in runs/a/checkpoints is damaged' \
        train --run a --resume --steps 16
    refused "all checkpoints damaged, generate" 'every checkpoint in runs/a/checkpoints is damaged' \
        generate --run a
}

# A checkpoint under the name of a later step is not taken for one of that step, nor deleted.
test_renamed_checkpoint() {
    ten_steps
    mv runs/a/checkpoints/step_00000010.ckpt runs/a/checkpoints/step_00000020.ckpt
    before=$(folder_of a)
    refused "a renamed checkpoint" 'step_00000020.ckpt is the checkpoint of step 10: .* step_00000010.ckpt' \
        train --run a --resume --steps 12
    check "a refused resume changed the folder" [ "$(folder_of a)" = "$before" ]
    mv runs/a/checkpoints/step_00000020.ckpt runs/a/checkpoints/step_00000010.ckpt
    check "resume under the right name" train --run a --resume --steps 12
}

# Divergence: a weight decay that multiplies the weights by 1 - lr decay = -1e9 in each step.
test_divergence() {
    refused "divergence" 'diverged at step' train $minute --run wild --steps 40 --checkpoint-every 1 --val-every 0 \
        --optimizer adamw --lr 1e6 --weight-decay 1e3
    check "divergence: the newest checkpoint is not named" has err 'newest checkpoint is runs/wild/checkpoints/step_0*[0-9].ckpt. Try'
    check "divergence: no tensor is named" has err 'wqkv\|wfc\|wproj\|wo'
    check "divergence: no checkpoint is kept" [ -n "$(newest runs/wild)" ]
    check "divergence: the last checkpoint cannot be read" generate --run wild --tokens 0
    refused "divergence without checkpoint" 'no checkpoint of it yet (--checkpoint-every N' train $minute --run wilder \
        --steps 40 --checkpoint-every 0 --val-every 0 --optimizer adamw --lr 1e6 --weight-decay 1e3
    check "divergence: the log has a line that is not JSON" not has runs/wild/log.jsonl '[^a-z]\(nan\|inf\)'
}

limited() { (ulimit -f 40 && train "$@"); }

# A limit of 20 kB on the size of files simulates a full disk.
test_full_disk() {
    ten_steps
    cp runs/a/checkpoints/step_00000010.ckpt saved.ckpt
    refused "full disk" 'step_00000014.ckpt: File too large.*Older checkpoints are kept' \
        limited --run a --resume --steps 14
    needed=$(sed -n 's/.*it needs \([0-9]*\) bytes.*/\1/p' err)
    check "full disk: the older checkpoint has changed" cmp runs/a/checkpoints/step_00000010.ckpt saved.ckpt
    check "full disk: files are left: $(ls runs/a/checkpoints)" [ "$(ls runs/a/checkpoints)" = step_00000010.ckpt ]
    check "resume after a full disk" train --run a --resume --steps 14
    check "no checkpoint after a full disk" [ -f runs/a/checkpoints/step_00000014.ckpt ]
    check "full disk: $needed bytes announced" [ "$needed" = "$(wc -c <runs/a/checkpoints/step_00000014.ckpt)" ]
    rm -rf runs/b
    refused "full disk, first checkpoint" 'File too large.*nothing of the run is saved but its log' \
        limited $minute --run b --steps 10 --val-every 5
    check "resume after a full disk and no checkpoint" train --run b --resume
    check "its log is not that of the unbroken run" same_log a.saved runs/b
}

# start FLAGS...: starts a run in the background, in the folder `broken`.
start() {
    (cd broken && exec "$TRAIN_GPT" "$@" >>out 2>>err) &
    child=$!
}
finish() {
    wait $child
    status=$?
    child=
}
# Starts the run, or resumes it from its newest checkpoint, or starts it anew if it has no checkpoint yet.
go_on() {
    if [ -n "$(newest broken/runs/r)" ]; then start --run r --resume
    elif [ -d broken/runs/r/checkpoints ]; then start $flags --resume
    else start $flags; fi
}
# Continues the run and kills it at a random moment.
kill_once() {
    random 30
    at=$drawn
    go_on
    await_lines broken/runs/r/log.jsonl "$at"
    random 4
    sleep "0.00$drawn" 2>/dev/null
    kill -9 $child 2>/dev/null
    finish 2>/dev/null
    history="$history killed at line $at;"
}
compare() { # NAME
    check "$1: the resumed run ends with $status ($history)" [ "$status" -eq 0 ]
    check "$1: logs differ ($history)" same_log whole/runs/r broken/runs/r
    check "$1: checkpoints differ ($history)" cmp "$(newest whole/runs/r)" "$(newest broken/runs/r)"
    check "$1: files are left: $(ls broken/runs/r/checkpoints)" \
        [ "$(ls broken/runs/r/checkpoints)" = "$(ls whole/runs/r/checkpoints)" ]
}
begin() { # makes the unbroken run
    rm -rf whole broken
    mkdir whole broken
    (cd whole && train $flags)
    check "unbroken run with $flags" [ -f whole/runs/r/checkpoints/step_00000030.ckpt ]
    history="SEED=$SEED $flags:"
}
two_layers="--data ../text.txt --run r --layers 2 --width 48 --heads 2 --seq-len 32 --batch-size 2 --steps 30 \
    --val-every 7 --val-tokens 512 --checkpoint-every 3"

# A run that is killed and resumed ends as the unbroken run, byte for byte.
test_kill() {
    flags="$two_layers --threads 1 --total-batch-tokens 256 --optimizer muon"
    begin
    # The first kill comes before the first checkpoint, which is of step 3.
    start $flags
    await_lines broken/runs/r/log.jsonl 2
    kill -9 $child 2>/dev/null
    finish 2>/dev/null
    kill_once
    kill_once
    kill_once
    go_on
    finish
    compare "kill -9, gradient accumulation"

    # Adapters beside the weights of another run, and products, with averages of the factors.
    rm -rf runs/kb
    train $(echo "$two_layers" | sed 's/--run r/--run kb/; s/\.\.\/text/text/') --threads 1
    for factors in "--init-from ../runs/kb --lora-rank 4 --lora lora-rite" \
        "--low-rank 4 --lora-on all --lora cm --ema-from 11 --ema-horizon 5"; do
        flags="$two_layers --threads 1 $factors"
        begin
        start $flags
        await_lines broken/runs/r/log.jsonl 2
        kill -9 $child 2>/dev/null
        finish 2>/dev/null
        kill_once
        kill_once
        go_on
        finish
        compare "kill -9, $factors"
    done
    flags="$two_layers --threads 1 --total-batch-tokens 256 --optimizer muon"
    begin
    cp -r whole/runs broken/runs

    # A kill after the last checkpoint was written and before an older one was deleted.
    cp whole/runs/r/checkpoints/step_00000030.ckpt broken/runs/r/checkpoints/step_00000021.ckpt
    (cd broken && train --run r --resume)
    check "a checkpoint too many: files are left: $(ls broken/runs/r/checkpoints)" \
        [ "$(ls broken/runs/r/checkpoints)" = "$(ls whole/runs/r/checkpoints)" ]

    threads=2
    train --data text.txt --threads 2 --dry-run --layers 1 --width 32 --heads 2 || threads=1
    # Several averages of the gradient begin in the middle, and so does one of the weights.
    flags="$two_layers --threads $threads --keep-checkpoints 3 --momentum-ages k-maxwell --momentum-ages-from 8 \
        --ema-from 11 --ema-horizon 5 --decay-schedule lr --weight-decay 0.1 --lr-phases 0:0.5,9:1"
    begin
    start $flags
    random 20
    await_lines broken/runs/r/log.jsonl $((drawn + 2))
    kill -TERM $child
    finish
    history="$history SIGTERM at line $((drawn + 2));"
    check "SIGTERM: exit status $status, not 143 ($history)" [ "$status" -eq 143 ]
    check "SIGTERM: the output does not say how to resume" has broken/out 'stopped by signal 15.*--run r --resume'
    kill_once
    start --run r --resume
    finish
    # The unbroken run does not have the checkpoint that was written on the signal.
    rm -f broken/runs/r/checkpoints/step_0000002[0-69].ckpt whole/runs/r/checkpoints/step_0000002[0-69].ckpt
    compare "SIGTERM and kill -9, $threads threads"
}

# A run uses the memory that it announces.
test_memory() {
    train --data text.txt --run m --layers 3 --width 512 --heads 8 --seq-len 64 --batch-size 4 --steps 1 \
        --optimizer adamw --val-tokens 64 --keep-checkpoints 0 --threads 1
    planned=$(sed -n 's/^memory *\([0-9]*\).*/\1/p' out)
    peak=$(sed -n 's/^peak memory \([0-9]*\).*/\1/p' out)
    check "memory: no report" [ "${planned:-0}" -gt 150 ]
    # The program and its libraries take up to 30 MiB more.
    check "memory: $planned MiB announced, $peak MiB used" \
        awk -v a="$planned" -v b="$peak" 'BEGIN { exit !(b - 30 < 1.25 * a && b > 0.75 * a) }'
}

# Sampling from a checkpoint.
test_sampling() {
    ten_steps
    make_shards
    train --run a --resume --steps 14
    check "generate" generate --run a --prompt 'the king' --tokens 40 --seed 3
    cp out first
    check "generate: $(wc -c <first) bytes, not the prompt, 40 tokens and a line end" [ "$(wc -c <first)" -eq 49 ]
    check "generate: the prompt does not come first" has first '^the king'
    check "generate: no checkpoint and step on stderr" has err 'step_00000014.ckpt, step 14, validation loss [0-9]'
    check "generate: no speed on stderr" has err '40 tokens in .* tokens/s'
    generate --run a --prompt 'the king' --tokens 40 --seed 3
    check "generate: equal seeds, different text" cmp -s out first
    generate --run a --prompt 'the king' --tokens 40 --seed 4
    check "generate: other seed, same text" not cmp -s out first
    generate --run a --prompt 'the king' --tokens 300 --temperature 0 --seed 1
    cp out first
    generate --run a --prompt 'the king' --tokens 300 --top-k 1 --seed 2
    check "generate: --temperature 0 and --top-k 1 differ" cmp -s out first
    printf 'the king' >prompt.txt
    generate --run a --prompt-file prompt.txt --tokens 300 --temperature 0
    check "generate: --prompt-file differs from --prompt" cmp -s out first
    "$GENERATE" --checkpoint runs/a/checkpoints/step_00000014.ckpt --prompt-file - --tokens 300 --temperature 0 \
        <prompt.txt >out 2>err
    check "generate: --prompt-file - and --checkpoint differ" cmp -s out first
    generate --run a --tokens 5 --count 3
    check "generate --count 3" [ "$(grep -c '^--- [123] of 3$' out)" -eq 3 ]
    refused "generate: no run" 'no run runs/none' generate --run none
    mkdir -p runs/empty/checkpoints
    refused "generate: no checkpoint" 'runs/empty has no checkpoint' generate --run empty
    refused "generate: unknown flag" 'unknown flag --tokns, did you mean --tokens' generate --tokns 3
    refused "generate: long prompt" 'prompt has 33 tokens.*context is 32' generate --run a --prompt \
        '123456789012345678901234567890123'
    refused "generate: temperature" '--temperature' generate --run a --temperature -1
    refused "generate: no prompt file" 'nowhere.txt' generate --run a --prompt-file nowhere.txt
    head -c 17000000 /dev/zero >long.txt
    for file in long.txt /dev/zero; do
        refused "generate: $file" "--prompt-file: $file has more than 16 MiB" generate --run a --prompt-file $file
    done
    "$GENERATE" --run a --prompt-file - </dev/zero >out 2>err
    check "generate: zeros without end: exit status" [ $? -eq 1 ]
    check "generate: zeros without end: no message" has err 'standard input has more than 16 MiB'
    head -c 16777216 long.txt >16.txt
    refused "generate: 16 MiB" 'prompt has 16777216 tokens.*context is 32' generate --run a --prompt-file 16.txt
    rm long.txt 16.txt
    refused "generate: not a checkpoint" 'text.txt is not a cm.c checkpoint' generate --checkpoint text.txt
    cp runs/a/checkpoints/step_00000014.ckpt bad.ckpt
    damage bad.ckpt
    refused "generate: damaged checkpoint" 'bad.ckpt is damaged' generate --checkpoint bad.ckpt
    check "a model of GPT-2's vocabulary" train --data good.bin --val-data good.bin --run gpt2 --layers 1 --width 16 \
        --heads 2 --seq-len 16 --batch-size 1 --steps 1 --threads 1
    refused "generate: no tokenizer files" 'encoder.json.*gpt2_bpe.sh' generate --run gpt2
}

# Data that are not what they seem, and names that mean something to a shell, to patterns or to printf.
test_inputs() {
    small="--layers 1 --width 16 --heads 2 --seq-len 16 --batch-size 1 --val-tokens 64 --threads 1"
    make_shards
    cp good.bin copy.bin
    tr a-m n-z <text.txt >copy.txt
    check "shared data" train $small --data good.bin --val-data copy.bin --run shared --steps 1
    check "no note about shared data" has err '^note: good.bin is training data and validation data too'
    check "text" train $small --data text.txt --run unshared --steps 1
    check "a note about the parts of a text" not has err 'note:'
    train $small --data text.txt --val-data copy.txt --run all --steps 1
    check "a note about other validation data" not has err 'note: .*validation data too'
    check "the last tenth after a start with other data" train --run all --resume --steps 2 --val-data=
    check "no note that the last tenth is trained on" has err '^note: text.txt is training data and validation data too'
    train $small --data text.txt --val-data copy.txt --run moved --steps 1
    mv text.txt other.txt
    refused "data that are gone" 'text.txt does not exist.* say where with --data PATH' train --run moved --resume --steps 2
    refused "data that this command names" 'no.txt does not exist.*how to get data$' train --run moved --resume --data no.txt
    check "data at another place" train --run moved --resume --steps 2 --data other.txt
    mv copy.txt kopie.txt
    refused "validation data that are gone" 'copy.txt does not exist.* with --val-data PATH' train --run moved --resume --steps 3
    refused "data that a new run lacks" 'text.txt does not exist.*how to get data$' train $small --data text.txt --run e --steps 1
    mv other.txt text.txt
    mkfifo pipe
    refused "a pipe" 'pipe is not a file but a pipe.*data/tokenize' train $small --data pipe --run e --steps 1
    refused "a pipe as a checkpoint" 'pipe is not a regular file' generate --checkpoint pipe
    cp text.txt shakespeare.txt
    refused "another edition" '--data \./shakespeare.txt' train $small --data ./tinyshakespeare.txt --run e --steps 1
    refused "a line break" '--data: the text has a line break' train $small --run e --steps 1 --data 'text.txt
'
    check "a run that could not start left a folder" [ ! -e runs/e ]
    odd="$(printf 'a b\047c"[1]*?%%s%%n\\\377')"
    mkdir "$odd"
    cp text.txt "$odd/$odd"
    check "odd names: train" train $small --data "$odd/$odd" --runs-dir "$odd/runs" --run "$odd" --steps 2
    check "odd names: resume" train --runs-dir "$odd/runs" --run "$odd" --resume --steps 3
    check "odd names: no checkpoint" [ -f "$odd/runs/$odd/checkpoints/step_00000003.ckpt" ]
    check "odd names: generate" generate --runs-dir "$odd/runs" --run "$odd" --tokens 5
    rm -rf "$odd"
}

# A data file that becomes shorter while a run reads it. The run's checkpoints stay as they were.
test_cut_data() {
    rm -rf broken
    mkdir broken
    cp text.txt broken/mine.txt
    start --data mine.txt --run r --layers 1 --width 16 --heads 2 --seq-len 16 --batch-size 4 --steps 1000000 \
        --val-every 0 --val-tokens 64 --checkpoint-every 10 --threads 1
    await_lines broken/runs/r/log.jsonl 15
    : >broken/mine.txt
    finish
    cp broken/err err
    check "data that were cut: exit status $status" [ "$status" -eq 1 ]
    check "data that were cut: the file is not named" has err 'mine.txt: the file became shorter'
    check "data that were cut: no checkpoint" [ -n "$(newest broken/runs/r)" ]
    check "data that were cut: the checkpoint cannot be read" generate --runs-dir broken/runs --run r --tokens 5
}

# What the tokens are: a model of bytes is sampled as bytes whatever its vocabulary is.
test_tokenizer() {
    check "speedrun preset on a text" train --preset speedrun --data text.txt --run wide --layers 1 --width 16 --heads 2 \
        --head-dim 8 --seq-len 16 --batch-size 2 --total-batch-tokens 32 --steps 2 --val-tokens 64 --threads 1
    check "the vocabulary is not that of the preset" has runs/wide/run.json '"vocab": 50[0-9]*'
    check "run.json does not name the tokenizer" has runs/wide/run.json '"tokenizer": "bytes"'
    check "generate: a wide model of bytes" generate --run wide --prompt 'the king' --tokens 40
    check "generate: $(wc -c <out) bytes, not prompt, 40 bytes and a line end" [ "$(wc -c <out)" -eq 49 ]
    make_shards
    train --data good.bin --val-data good.bin --run numbered --layers 1 --width 16 --heads 2 --seq-len 16 \
        --batch-size 1 --steps 1 --threads 1
    check "shards without a note are not taken as GPT-2's" has runs/numbered/run.json '"tokenizer": "gpt2"'
    shard '\210\330\064\001' '\350\003\000\000' "$tokens" 'toks\002\000\000\000\001\002\003\004\005\006\007\010' >bpe.bin
    refused "two tokenizers" 'good.bin.* gpt2 .*bpe.bin.* bpe 0807060504030201' train --data good.bin --val-data bpe.bin \
        --run e --vocab 100 --layers 1 --width 16 --heads 2 --seq-len 16 --batch-size 1 --steps 1
    check "a run with two tokenizers left a folder" [ ! -e runs/e ]
}

run_tests "$@"
