#!/bin/sh
# Writes the first files of the fuzz targets' corpora, dev/fuzz/corpus/TARGET/seed_*. The other files there are
# what the fuzzers found. Needs ./train_gpt. usage: sh dev/fuzz/seeds.sh (from anywhere)
set -u
cd "$(dirname "$0")/../.." || exit 1
corpus=dev/fuzz/corpus
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

# seed TARGET NAME: standard input becomes a seed.
seed() {
    mkdir -p "$corpus/$1"
    cat >"$corpus/$1/seed_$2"
}

# ---- json: any text

printf '%s' '{"a \"b\" \\ \/ \b\f\n\r\t \u00e9\uD83D": [1, "x"], "flag": {"lr": "0.02"}}' | seed json object
printf '"caf\303\251 \342\202\254 \360\237\230\200 \377\300\200 \355\240\200 \001"' | seed json utf8
printf '"\\u12' | seed json cut

# ---- choices: the file, %%, a header

printf '%s\n' 'cm.c choices 1' 'attention on NVIDIA H100, B 4 T 1024=flash' 'gelu on X=fused' '%%' 'step=1' \
    'choice.gelu on X=unfused' 'choice.products on X=120903 1 2 3' | seed choices file
printf 'cm.c choices 1\na=1\na=2\n=3\nb\nlast=cut' | seed choices odd
printf '%s\n' 'another file' '%%' 'choice.a=b=c' | seed choices other

# ---- tokenizer: encoder.json, %%, vocab.bpe, %%, text

{
    cat dev/test/fixtures/bpe/encoder.json
    printf '\n%%%%\n'
    cat dev/test/fixtures/bpe/vocab.bpe
    printf '%%%%\nThe quick brown fox'"'"'s 12 jumps,  over\n\n the  <|endoftext|> caf\303\251 \377'
} | seed tokenizer fixture
printf '%s' '+, "th": 256, "he": 257, "the": 258, "\u0120t": 259, "<|endoftext|>": 260}
%%
#version: 0.2
t h
h e
th e
Ġ t
%%
the then <|endoftext|> oh' | seed tokenizer small
printf '%s' '+, "aa": 257, "aaaa": 256}
%%
a a
aa aa
a aa
%%
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaa' | seed tokenizer repeats

# ---- log: 8 bytes of a step, log.jsonl

line() {
    printf '{"step": %s, "tokens": %s, "train_loss": %s, "val_loss": %s, "lr": 0.02, "grad_norm": 1.5, "ms": 12.345, "tok_s": 663600}\n' "$@"
}
{
    printf '\002\000\000\000\000\000\000\000'
    line 0 0 null 5.5452
    line 1 2048 5.25 null
    line 2 4096 4.75 4.875
    line 3 6144 4.5 null
} | seed log run
{
    printf '\377\000\000\000\000\000\000\000'
    line 1 2048 5.25 null
    printf 'a line of another program\n'
    line 9223372036854775807 1 nan 1e999
    printf '{"step": 3, "tokens"'
} | seed log odd

# ---- data: 24 bytes of settings, files

# settings BITS T-1 ROWS BATCH-1: then zeros.
settings() {
    printf "\\$(printf %03o "$1")\\$(printf %03o "$2")\\$(printf %03o "$3")\\$(printf %03o "$4")"
    head -c 20 /dev/zero
}
text='To be, or not to be, that is the question: whether nobler in the mind'
{ settings 2 3 2 0; printf '%s\n' "$text"; } | seed data text
{ settings 3 7 3 1; printf '%s\n%%%%\n%s' "$text" "$text $text"; } | seed data texts_shuffled
{ settings 8 3 2 0; printf '%s\n' "$text"; } | seed data shard
{ settings 9 3 5 2; printf '%s\n%%%%\nab\n%%%%\n%s' "$text" "$text"; } | seed data shards_shuffled
{ settings 137 3 2 0; printf '\001\000\000\000abcdefgh%s\n%%%%\n\001\000\000\000abcdefgh%s' "$text" "$text"; } | seed data tokenizer
{ settings 66 3 0 0; printf '%s\n%%%%\n%s' "$text" "$text"; } | seed data validation
{ settings 34 3 0 0; printf '%s' "$text$text$text"; } | seed data last_tenth
{ settings 0 3 1 0; printf '\210\330\064\001\001\000\000\000\006\000\000\000'; head -c 1012 /dev/zero; printf 'abcdefghijkl'; } |
    seed data whole_shard

# ---- eval: T - 1, the vocabulary and bit 7, then the file, or with bit 7 what follows its header

# words NUMBER...: little-endian numbers of 16 bits.
words() {
    for word in "$@"; do printf "\\$(printf %03o $((word % 256)))\\$(printf %03o $((word / 256)))"; done
}
two() {
    words 65535 26 0 1 2 2 7 8 1 9 2 8 7
    words 65535 36 1 0 4 3 1 2 3 1 4 2 5 6 1 7 1 8
}
{ printf '\007\217'; two; } | seed eval two
{ printf '\001\217'; two; } | seed eval cut
{ printf '\007\017'; words 55434 308 1 0 2 0 36 0; head -c 1008 /dev/zero; two; } | seed eval whole
{ printf '\007\217'; words 65535 24 0 1 2 1 200 2 1 2 1 3 65535; } | seed eval odd

# ---- checkpoint: the file; model: a text of it (built.h); resume: that text, %%, log.jsonl, %%, run.json

# The data of fuzz_resume.c.
i=0
while [ $i -lt 60 ]; do
    echo 0123456789
    i=$((i + 1))
done >"$dir/digits.txt"
root=$(pwd)

# Replaces what differs from start to start and from machine to machine.
same() {
    sed 's/"ms": [0-9.]*, "tok_s": [0-9]*/"ms": 1.500, "tok_s": 1000/; s/"cpu": "[^"]*", "cores": [0-9]*/"cpu": "CPU", "cores": 2/
         s/"memory_gib": [0-9.]*/"memory_gib": 16.0/' "$@"
}

# run NAME FLAGS: two steps of a tiny run; the seeds of its checkpoint.
run() {
    name=$1
    shift
    (cd "$dir" && "$root/train_gpt" --run r --data digits.txt --vocab 64 --width 8 --seq-len 4 --batch-size 2 --steps 2 \
        --val-tokens 8 --threads 1 "$@" >out 2>&1) || { cat "$dir/out" >&2; exit 1; }
    file=$dir/runs/r/checkpoints/step_00000002.ckpt
    length=$(tail -c +25 "$file" | head -c 4 | od -An -tu4)
    for version in 2 1; do
        { echo $version; tail -c +33 "$file" | head -c $((length)); printf '\n*\n'; } >"$dir/text.$version"
        { cat "$dir/text.$version"; echo '%%'; same "$dir/runs/r/log.jsonl"; echo '%%'; same "$dir/runs/r/run.json"; } >"$dir/folder.$version"
    done
    { same "$dir/runs/r/log.jsonl"; echo '%%'; same "$dir/runs/r/run.json"; } >"$dir/runs.2"
    cp "$file" "$dir/$name.ckpt"
    rm -r "$dir/runs"
}
run cm --layers 1 --heads 2
seed model cm <"$dir/text.2"
seed model cm_1 <"$dir/text.1"
seed resume cm <"$dir/folder.2"
seed resume cm_1 <"$dir/folder.1"
sed '1s/$/ init/; /^%%$/,$d' "$dir/folder.2" | seed resume init
{ echo '%%'; sed '1,/^%%$/d' "$dir/folder.2"; } | seed resume no_checkpoint
{ printf '\001\000\000\000\000\000\000\000'; cat "$dir/runs.2"; } | seed log folder
run frozen --layers 1 --heads 2 --freeze wte,whead --optimizer muon
seed checkpoint frozen <"$dir/frozen.ckpt"
sed 's/cm.c checkpoint 2/cm.c checkpoint 1/' "$dir/frozen.ckpt" | seed checkpoint frozen_1
run others --preset llama --layers 2 --heads 2 --kv-heads 1 --qk quack --mlp normuon --embed lion --ov adamw-partner
seed model others <"$dir/text.2"
seed resume others <"$dir/folder.2"
run gpt2 --preset gpt2 --layers 1 --heads 1 --qk adamw --ov muonh --weight-decay 0 --init gpt2
seed model gpt2 <"$dir/text.2"
printf '%s\n' 2 step=7 vocab=3 flag.layers=2 flag.width=8 flag.heads=2 flag.seq-len=2 '' \
    'p.wte 0 1 64 8' 'p.x 3 5' 'm.wte 1 2 3' '*' | seed model short

# Adapters, whose base is that of built_base (built.h), and products.
base_sum=$(sed -n 's/^#define BUILT_BASE_SUM "\(.*\)"/\1/p' dev/fuzz/built.h)
of_base() {
    sed "s/^init_from_file=.*/init_from_file=base.ckpt/; s/^init_from_checksum=.*/init_from_checksum=$base_sum/
         s/\"init_from_file\": .*/\"init_from_file\": \"base.ckpt\",/; s/\"init_from_checksum\": .*/\"init_from_checksum\": \"$base_sum\",/" "$@"
}
run adapters --layers 1 --heads 2 --init-from cm.ckpt --lora-rank 2 --lora-on all --lora lora-rite --ema-from 1
of_base "$dir/text.2" | seed model adapters
of_base "$dir/folder.2" | seed resume adapters
{ echo '%%'; of_base "$dir/folder.2" | sed '1,/^%%$/d'; } | seed resume adapters_no_checkpoint
run products --preset llama --layers 2 --heads 2 --kv-heads 1 --low-rank 2 --lora-split off --lora spectron
seed model products <"$dir/text.2"
seed resume products <"$dir/folder.2"

# ---- flags: the program, then an argument a line

printf '%s\n' train --preset speedrun --lr=0.1 --total-batch-tokens 1M --seed 10k --qk adamw --freeze wte --cm-match-muon |
    seed flags train
printf '%s\n' train --layers 65536 --width 16777216 --heads 1 --ff-width 16777216 --vocab 16777216 | seed flags large
printf '%s\n' train --preset=llama --heads 6 --kv-heads 2 --head-dim 64 --act swiglu --msign exact --circuit on |
    seed flags llama
printf '%s\n' train --lr 1e-300 --adam-eps=-0 --width 1e3 --batchsize 3 -h | seed flags wrong
printf '%s\n' train --low-rank 8 --lora-on qkv,o,head --lora-split off --lora-init balanced --lora spectron --lr-lora 1e-3 |
    seed flags products
printf '%s\n' train --init-from a --lora-rank 4 --lora-on all,,o --lora adamw --lora-plus 16 --lora-scale 0.5 |
    seed flags adapters
printf '%s\n' generate --base a.ckpt --merge whole --run r | seed flags merge
printf '%s\n' generate --prompt 'a b' --tokens 5 --temperature 0 --top-p 0.5 --stop-at-eot | seed flags generate
printf '%s\n' tokenize --input - --output x --shard-tokens 1.5M --val-tokens -1 --separator '<|endoftext|>' |
    seed flags tokenize

# ---- dictionaries: names and values of the flags, keys of a checkpoint's header, of the log and of run.json

./train_gpt --help-markdown >"$dir/flags"
sed -n 's/^| `--\([a-z0-9-]*\)`.*/\1/p' "$dir/flags" >"$dir/names"
{
    sed 's/.*/"--&\\x0a"/' "$dir/names"
    grep -o '([a-z0-9-]*\(, [a-z0-9-]*\)* or [a-z0-9-]*)' "$dir/flags" | tr -d '(),' | tr ' ' '\n' | grep -vx or | sort -u |
        sed 's/.*/"&\\x0a"/'
} >dev/fuzz/flags.dict
{
    sed 's/.*/"flag.&="/' "$dir/names"
    sed -n '/^[a-z_]*=/s/\([a-z_]*=\).*/"\1"/p' "$dir/text.2"
    printf '"%s"\n' pending= change.0= since.wte.v= choice. p.wte m.wte s.wte.v '%%\x0a'
} >dev/fuzz/model.dict
for key in step tokens train_loss val_loss lr grad_norm ms tok_s extra flags asked train_checksum train_part; do
    printf '"\\"%s\\": "\n' $key
done >dev/fuzz/log.dict
cat dev/fuzz/model.dict dev/fuzz/log.dict >dev/fuzz/resume.dict

echo "$(du -sb "$corpus" | cut -f 1) bytes in $corpus"
