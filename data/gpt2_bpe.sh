#!/bin/sh
# Fetches GPT-2's byte-pair encoding (1.5 MB) into data/gpt2-bpe/. data/tokenize needs it, and so does sampling
# from models that were trained on GPT-2 tokens.
#
#   data/gpt2_bpe.sh
#
# GPT2_BPE_URL is the URL of another folder that has the two files.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=data/fetch.sh
. "$here/fetch.sh"

url=${GPT2_BPE_URL:-https://openaipublic.blob.core.windows.net/gpt-2/encodings/main}
folder=$here/gpt2-bpe
mkdir -p "$folder"

get() {
    if has_sha256 "$folder/$1" "$2"; then
        say "data/gpt2-bpe/$1 exists"
        return
    fi
    say "fetching $url/$1"
    rm -f "$folder/$1.part"
    fetch "$url/$1" "$folder/$1.part" ||
        fail 1 "cannot fetch $url/$1; copy the file of GPT-2's release to data/gpt2-bpe/ by hand"
    has_sha256 "$folder/$1.part" "$2" || {
        rm -f "$folder/$1.part"
        fail 1 "$url/$1 is not the published file (its SHA-256 differs); try again later"
    }
    mv "$folder/$1.part" "$folder/$1"
}

get encoder.json 196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
get vocab.bpe 1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
