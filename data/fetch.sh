# Shell functions for the scripts in this folder, which source this file. It does nothing by itself.
# POSIX sh. Needs curl or wget, and sha256sum or shasum.

say() { printf '%s\n' "$*" >&2; }

# fail STATUS SENTENCE
fail() {
    fail_status=$1
    shift
    say "$(basename "$0"): $*"
    exit "$fail_status"
}

# fetch URL FILE: downloads, and continues where an earlier attempt at FILE stopped. An error page is a failure.
fetch() {
    if command -v curl >/dev/null 2>&1; then
        curl --fail --silent --show-error --location --retry 2 --connect-timeout 10 \
            --speed-limit 1000 --speed-time 30 --continue-at - --output "$2" "$1"
    elif command -v wget >/dev/null 2>&1; then
        wget --quiet --tries=3 --timeout=15 --continue --output-document="$2" "$1"
    else
        say "neither curl nor wget is installed"
        return 1
    fi
}

# sha256 FILE: prints the checksum in hexadecimal, or nothing if the file cannot be read
sha256() {
    { sha256sum "$1" 2>/dev/null || shasum -a 256 "$1" 2>/dev/null; } | cut -c 1-64
}

# has_sha256 FILE CHECKSUM
has_sha256() { [ -f "$1" ] && [ "$(sha256 "$1")" = "$2" ]; }
