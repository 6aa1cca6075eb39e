#!/bin/sh
# Fetches FineWeb in GPT-2 tokens: the validation shard and the first N training shards of 10^8 tokens, 200 MB each,
# into data/fineweb10B/, or with 100B into data/fineweb100B/. There are 103, or 1030; a run of S steps of 524,288
# tokens reads S / 190 of them, rounded up.
#
#   data/fineweb.sh [N [10B|100B]]        N = 1 unless given
#
# The larger set is another sample of FineWeb. Its files have names like those of the smaller one
# (kjj0/fineweb100B-gpt2); fetching them has not been tried.
# The script can be interrupted and started again. It checks the files that exist and continues where it stopped.
# FINEWEB_URL is the URL of another folder that has the files.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=data/fetch.sh
. "$here/fetch.sh"

shards=${1:-1}
set=${2:-10B}
case $set in
    10B) most=103 ;;
    100B) most=1030 ;;
    *) fail 2 "\"$set\" is no set of shards; there are 10B and 100B" ;;
esac
case $shards in
    '' | *[!0-9]* | ?????*) fail 2 "\"$shards\" is not a number of shards; give 1 to $most" ;;
esac
[ "$shards" -le "$most" ] || fail 2 "there are $most training shards of $set tokens, not $shards"
url=${FINEWEB_URL:-https://huggingface.co/datasets/kjj0/fineweb$set-gpt2/resolve/main}
folder=$here/fineweb$set
mkdir -p "$folder"

# state FILE: prints "complete", "partial" (fewer tokens than the header states) or "bad" (anything else)
state() {
    [ -f "$1" ] || { echo bad; return; }
    size=$(wc -c <"$1")
    # shellcheck disable=SC2046 # twelve words, one for each byte: magic 20240520, version 1, token count
    set -- $(od -An -v -tu1 -N12 "$1")
    if [ $# -ne 12 ] || [ "$1 $2 $3 $4 $5 $6 $7 $8" != "136 216 52 1 1 0 0 0" ]; then
        echo bad
        return
    fi
    shift 8
    expected=$((1024 + 2 * ($1 + $2 * 256 + $3 * 65536 + $4 * 16777216)))
    if [ "$size" -eq "$expected" ] && [ "$expected" -gt 1024 ]; then
        echo complete
    elif [ "$size" -lt "$expected" ]; then
        echo partial
    else
        echo bad
    fi
}

get() {
    if [ "$(state "$folder/$1")" = complete ]; then
        say "data/fineweb$set/$1 exists"
        return
    fi
    part=$folder/$1.part
    if [ "$(state "$part")" != complete ]; then
        [ "$(state "$part")" = partial ] || rm -f "$part"
        say "fetching $url/$1"
        fetch "$url/$1" "$part" ||
            fail 1 "cannot fetch $url/$1; run data/fineweb.sh $shards $set again to continue"
    fi
    [ "$(state "$part")" = complete ] || {
        rm -f "$part"
        fail 1 "$url/$1 is not a complete token shard; the download was removed, try again later"
    }
    mv "$part" "$folder/$1"
}

get fineweb_val_000000.bin
i=1
while [ "$i" -le "$shards" ]; do
    get "$(printf 'fineweb_train_%06d.bin' "$i")"
    i=$((i + 1))
done
say "train with --data \"data/fineweb$set/fineweb_train_*.bin\" \\"
say "           --val-data data/fineweb$set/fineweb_val_000000.bin"
