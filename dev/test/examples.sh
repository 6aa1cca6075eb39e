# Examples of multiple choice for runs of tests, and what logs say of them. Scripts source this file.

# examples N: a file of N examples with four completions each, whose tokens are bytes. The label is the index modulo 4.
examples() {
    awk -v n="$1" 'function word(x) { return sprintf("\\%03o\\%03o", x % 256, int(x / 256)) }
        function text(s,   i, t) {
            t = word(length(s))
            for (i = 1; i <= length(s); i++) t = t word(code[substr(s, i, 1)])
            return t
        }
        BEGIN {
            for (i = 32; i < 127; i++) code[sprintf("%c", i)] = i
            k = split("saw a silver fish|forgot the morning|sang to two letters|loved bread", end, "|")
            split("the king of a far land|her brother|an old sailor|nobody|every child|the moon", who, "|")
            for (i = 0; i < n; i++) {
                body = word(i % 4) word(k) text(who[i % 6 + 1])
                for (j = 1; j <= k; j++) body = body text(" " end[(i + j) % k + 1])
                bytes = length(body) / 4 + 6
                if (bytes > longest) longest = bytes
                line[i] = word(65535) word(bytes) word(i) body
            }
            print "\\212\\330\\064\\001\\001\\000\\000\\000" word(n) word(0) word(longest) word(0)
            zeros = sprintf("%1008s", "")
            gsub(/ /, "\\000", zeros)
            print zeros
            for (i = 0; i < n; i++) print line[i]
        }' | while read -r bytes; do printf "$bytes"; done
}
# What each line of a log has in "extra", by step.
extras_of() { sed -n 's/^{"step": \([0-9]*\),.*"extra": {\(.*\)}}$/\1 \2/p' "$1/log.jsonl"; }
has_extra() { extras_of "$1" | grep -q "^$2 $3\$"; }
number='[0-9.e+-]*'
same_extras() { [ -n "$(extras_of "$1")" ] && [ "$(extras_of "$1")" = "$(extras_of "$2")" ]; }
