# Shared by the tests of injected faults, which source this file from the root of the repository: the programs, the
# shim (shim.c) that makes their calls fail, a tiny run, and how it is started again.
here=$(pwd)
case ${TRAIN_GPT:=$here/train_gpt} in /*) ;; *) TRAIN_GPT=$here/$TRAIN_GPT ;; esac
case ${GENERATE:=$here/generate} in /*) ;; *) GENERATE=$here/$GENERATE ;; esac
case ${TOKENIZE:=$here/data/tokenize} in /*) ;; *) TOKENIZE=$here/$TOKENIZE ;; esac
case ${SHIM:=$here/build/faults.so} in /*) ;; *) SHIM=$here/$SHIM ;; esac
for program in "$TRAIN_GPT" "$GENERATE" "$TOKENIZE"; do
    [ -x "$program" ] || { echo "FAIL there is no $program: run make first"; exit 1; }
done
. "$here/dev/test/program.sh"

check "train_gpt --version" run "$TRAIN_GPT" --version
# A static program, a sanitizer and other C libraries do not take the shim.
FAULT_COUNTS=$dir/counts LD_PRELOAD=$SHIM "$TRAIN_GPT" --version >out 2>err
preloads=
if [ -s counts ] && [ ! -s err ]; then preloads=1
else echo "note: $SHIM cannot be preloaded into $TRAIN_GPT, so the tests that need it are left out"; fi

# Random numbers; SEED repeats them.
SEED=${SEED:-$((($$ + $(date +%s)) % 100000))}
state=$SEED
# random N: sets `drawn` to a number from 0 to N-1.
random() {
    state=$(((state * 1103515245 + 12345) % 2147483648))
    drawn=$((state / 1024 % $1))
}

sentences >text.txt

# A run of a twentieth of a second that saves a checkpoint every third step and keeps two.
every=3
steps=18
tiny="--data ../text.txt --run r --layers 1 --width 32 --heads 2 --seq-len 16 --batch-size 2 --steps $steps \
    --val-every 5 --val-tokens 128 --checkpoint-every $every --keep-checkpoints 2"
vocabulary="--encoder $here/dev/test/fixtures/bpe/encoder.json --bpe $here/dev/test/fixtures/bpe/vocab.bpe"

# make_base: a run whose last checkpoint is base.ckpt. $adapters are the flags of a run that trains beside it.
adapters="--init-from ../base.ckpt --lora-rank 2"
make_base() {
    [ ! -f base.ckpt ] || return
    rm -rf base
    mkdir base
    in_folder base "$TRAIN_GPT" $tiny --threads 1
    cp "$(newest base/runs/r)" base.ckpt
    check "there are no weights for adapters" [ -s base.ckpt ]
}

# in_folder FOLDER COMMAND...: runs a command there. Its output goes to the files out and err.
in_folder() {
    _folder=$1
    shift
    (cd "$_folder" && exec "$@" >"$dir/out" 2>"$dir/err")
}

# How a run is started (again): by its name if it has said what it is, else with all of its flags.
restart_flags() {
    if [ -f broken/runs/r/run.json ]; then restart="--run r --resume"; else restart=$flags; fi
}

# unbroken: makes the run of $flags in the folder whole; saved/ has every checkpoint of it.
unbroken() {
    rm -rf whole saved
    mkdir whole saved
    FAULT_KEEP=$dir/saved in_folder whole env ${preloads:+"LD_PRELOAD=$SHIM"} "$TRAIN_GPT" $flags
    check "the unbroken run with $flags: exit status $?" [ "$(newest whole/runs/r)" = \
        "$(printf 'whole/runs/r/checkpoints/step_%08d.ckpt' $steps)" ]
    for _file in whole/runs/r/checkpoints/*.ckpt; do ln "$_file" saved/; done
}

# Whether a checkpoint was written on a signal that came while its step was validated: it has the log's line.
is_pending() { head -c 65536 "$1" | grep -aq '^pending='; }

# Every checkpoint that the unbroken run has too is equal to it. One whose validation is still to be done has the same
# tensors; the resumed run writes it again.
same_saved() {
    for _file in broken/runs/r/checkpoints/step_*.ckpt; do
        _whole=saved/${_file##*/}
        [ -e "$_file" ] && [ -e "$_whole" ] || continue
        cmp -s "$_file" "$_whole" || { is_pending "$_file" && same_tensors "$_file" "$_whole"; } ||
            { echo "    $_file differs"; return 1; }
    done
}

# The file names of a run folder, without checkpoints that the unbroken run does not have. A signal writes such ones.
names_of() { (cd "$1" && find . -type f | sort | while read -r _file; do
    case $_file in
    *.ckpt) [ ! -e "$dir/saved/${_file##*/}" ] || echo "$_file" ;;
    *) echo "$_file" ;;
    esac
done); }

# same_end MAY_LACK: the run in `broken` has ended as the unbroken one. With MAY_LACK=1 an older checkpoint may be
# absent, since a checkpoint that was written on a signal may have taken its place.
same_end() {
    same_log whole/runs/r broken/runs/r || { echo "    the logs differ"; return 1; }
    [ -f "broken/runs/r/checkpoints/$(basename "$(newest whole/runs/r)")" ] || { echo "    no last checkpoint"; return 1; }
    same_saved || return 1
    names_of broken >names.broken
    names_of whole >names.whole
    if [ "$1" -eq 1 ]; then comm -23 names.broken names.whole | grep -v '\.ckpt$' >names.diff
    else diff names.broken names.whole >names.diff; fi
    [ ! -s names.diff ] || { sed 's/^/    files: /' names.diff; return 1; }
}

last_step() { sed -n '$s/^{"step": \([0-9]*\),.*/\1/p' "$1/log.jsonl" 2>/dev/null; }
step_of_newest() { newest "$1" | sed 's/.*step_0*\([0-9][0-9]*\)\.ckpt/\1/'; }
