# Writes the report of check.sh: report.md for people, report.json with the raw numbers. check.sh sources this
# file. Steps write their results to tab-separated files in $work:
#   results.tsv  step, result, seconds, text
#   checks.tsv   step, what, result, detail, seconds
#   rows.tsv     step, who, model, batch, tokens, optimizer, flags, result, ms, update ms, tokens/s, MFU of the
#                measured peak, MFU of the stated peak, MiB, date, how
#   ncu.tsv      kernel, us, DRAM %, SM %, occupancy %, registers
#   train.tsv    step, validation loss of Muon, of CM
# shellcheck shell=bash disable=SC2154 # work, out, python and steps are check.sh's

# gpu NAME: prints a fact about the GPU that find_gpu has found.
gpu() { sed -n "s/^$1=//p" "$work/gpu" 2>/dev/null | head -n 1; }

# attach FILE TITLE: prints a part of the report, if the file is not empty.
attach() { [ ! -s "$1" ] || { say; say "## $2"; say; cat "$1"; }; }

# checks_table STEP TITLE: the checks of a step.
checks_table() {
    [ -s "$work/checks.tsv" ] || return 0
    awk -F '\t' -v step="$1" -v title="$2" '
        $1 != step { next }
        !n++ { printf "\n## %s\n\n| | result | | s |\n|---|---|---|---|\n", title }
        { printf "| %s | %s | %s | %s |\n", $2, $3, $4, $5 }' "$work/checks.tsv"
}

# rows_table STEP TITLE: the measured rows of a step.
rows_table() {
    [ -s "$work/rows.tsv" ] || return 0
    awk -F '\t' -v step="$1" -v title="$2" -v gpu="$(gpu name)" '
        function percent(x) { return x == "" ? "" : sprintf("%.1f %%", 100 * x) }
        $1 != step { next }
        !n++ {
            printf "\n## %s\n\n%s. MFU: model FLOP/s over the matrix product measured at start, and over the data sheet.\n\n", \
                title, gpu
            print "| model | batch | tokens a step | optimizer | flags | result | ms a step | of these update | tokens/s | MFU | MFU (stated) | GPU MiB | UTC |"
            print "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
        }
        { printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", $3, $4, $5, $6, $7, $8, $9, \
            $10, $11, percent($12), percent($13), $14, substr($15, 1, 16) }' "$work/rows.tsv"
}

# The rows of peers, each with our best rows of its model with AdamW and with CM.
peers_table() {
    [ -s "$work/rows.tsv" ] || return 0
    awk -F '\t' -v gpu="$(gpu name)" '
        function ratio(a, b) { return a > 0 && b > 0 ? sprintf("%.3f (%s)", a / b, ours[a]) : "" }
        $2 == "cm.c" && $8 == "ok" && $5 >= large[$3] {
            large[$3] = $5
            if ($11 + 0 > best[$3, $6]) { best[$3, $6] = $11 + 0; ours[$11 + 0] = "batch " $4 " " $7 }
            if ($13 > 0) flops[$3] = $13 / $11
        }
        $1 == "peers" { line[++n] = $0 }
        END {
            if (!n) exit
            printf "\n## Peers\n\n%s. The ratio is our tokens/s over the peer'\''s: above 1 we are faster. MFU over the data sheet'\''s peak, FLOPs as we count them.\n\n", gpu
            print "| model | who | batch | tokens a step | flags | result | ms a step | tokens/s | MFU (stated) | GPU MiB | ours AdamW / theirs | ours CM / theirs | how | UTC |"
            print "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
            for (i = 1; i <= n; i++) {
                split(line[i], f, "\t")
                mfu = flops[f[3]] > 0 && f[11] > 0 ? sprintf("%.1f %%", 100 * flops[f[3]] * f[11]) : ""
                printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", f[3], f[2], f[4], f[5], \
                    f[7], f[8], f[9], f[11], mfu, f[14], ratio(best[f[3], "adamw"], f[11]), ratio(best[f[3], "cm"], f[11]), \
                    f[16], substr(f[15], 1, 16)
            }
        }' "$work/rows.tsv"
}

write_markdown() {
    say "# $(gpu name), $(date -u '+%Y-%m-%d')"
    say
    say "$(date -u '+%Y-%m-%d %H:%M') UTC; driver $(gpu driver_version); clocks at the start $(gpu clocks.sm), at most" \
        "$(gpu clocks.max.sm); power limit $(gpu power.limit); $(gpu memory.total) of memory; ECC $(gpu ecc.mode.current)."
    say
    say "| step | result | s | |"
    say "|---|---|---|---|"
    awk -F '\t' '{ printf "| %s | %s | %s | %s |\n", $1, $2, $3, $4 }' "$work/results.tsv"
    [ ! -s "$work/used" ] || { say; say "Programs: $(sort -u "$work/used" | paste -s -d ';' | sed 's/;/; /g')."; }
    rows_table speed "GPT-2 124M"
    rows_table large "Larger models"
    peers_table
    checks_table kernels "Kernel tests"
    attach "$work/parity.md" "CUDA against the CPU"
    checks_table graph "CUDA graph on = off"
    checks_table resume "Killed and resumed"
    attach "$work/train.md" "Muon and Compositional Muon, preset speedrun"
    if [ -s "$work/ncu.tsv" ]; then
        say; say "## Kernels under ncu"; say
        say "| kernel | us | DRAM % of peak | SM % of peak | occupancy % | registers |"
        say "|---|---|---|---|---|---|"
        awk -F '\t' '{ printf "| %s | %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5, $6 }' "$work/ncu.tsv"
    fi
    checks_table sanitizer "compute-sanitizer"
    attach "$work/bench.md" "Benchmark"
    attach "$work/environment.md" "Machine"
}

# Shared by the awk programs of write_json: strings and numbers of JSON.
json_awk='
    function text(s) { gsub(/[\\"]/, "\\\\&", s); gsub(/[\001-\037]/, " ", s); return "\"" s "\"" }
    function number(s) { return s ~ /^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$/ ? s : "null" }
    BEGIN { FS = "\t" }
    NR > 1 { printf ",\n  " }'

# list FILE AWK: prints a JSON array with a member for each line.
list() {
    printf '['
    [ ! -s "$1" ] || awk -v gpu="$(gpu name)" "$json_awk $2" "$1"
    printf ']'
}

write_json() {
    # shellcheck disable=SC2016 # awk's dollars
    {
        printf '{"date": "%s",\n"gpu": ' "$(date -u '+%Y-%m-%dT%H:%M:%SZ')"
        awk 'function text(s) { gsub(/[\\"]/, "\\\\&", s); return "\"" s "\"" }
            BEGIN { printf "{" }
            { at = index($0, "="); printf "%s%s: %s", (NR > 1 ? ", " : ""), text(substr($0, 1, at - 1)), text(substr($0, at + 1)) }
            END { printf "}" }' "$work/gpu"
        printf ',\n"steps": '
        list "$work/results.tsv" '{ printf "{\"name\": %s, \"result\": %s, \"seconds\": %s, \"note\": %s}",
            text($1), text($2), number($3), text($4) }'
        printf ',\n"rows": '
        list "$work/rows.tsv" '{
            printf "{\"step\": %s, \"peer\": %s, \"gpu\": %s, \"model\": %s, \"batch\": %s, \"tokens\": %s, ", text($1), text($2),
                text(gpu), text($3), number($4), number($5)
            printf "\"optimizer\": %s, \"flags\": %s, \"result\": %s, \"ms\": %s, \"update_ms\": %s, \"tok_s\": %s, ", text($6),
                text($7), text($8), number($9), number($10), number($11)
            printf "\"mfu\": %s, \"mfu_stated\": %s, \"memory_mb\": %s, \"date\": %s, \"how\": %s}", number($12), number($13),
                number($14), text($15), text($16) }'
        printf ',\n"checks": '
        list "$work/checks.tsv" '{ printf "{\"step\": %s, \"what\": %s, \"result\": %s, \"detail\": %s, \"seconds\": %s}",
            text($1), text($2), text($3), text($4), number($5) }'
        printf ',\n"ncu": '
        list "$work/ncu.tsv" '{ printf "{\"kernel\": %s, \"us\": %s, \"dram\": %s, \"sm\": %s, \"occupancy\": %s, \"registers\": %s}",
            text($1), number($2), number($3), number($4), number($5), number($6) }'
        printf ',\n"train": '
        list "$work/train.tsv" '{ printf "{\"step\": %s, \"muon\": %s, \"cm\": %s}", number($1), number($2), number($3) }'
        printf ',\n"bench": ['
        local comma="" file
        for file in "$work"/bench.*.json; do # a file that was cut short does not end in ]}
            [ -s "$file" ] || continue
            [ "$(tail -c 3 "$file")" = "]}" ] || continue
            printf '%s' "$comma"
            cat "$file"
            comma=,
        done
        printf ']}\n'
    }
}

# Writes all results so far, in at most eight files, because some machines return no more. Within a step
# (report quick) the JSON is not validated.
report() {
    mkdir -p "$out"
    write_markdown >"$out/report.md.new"
    write_json >"$out/report.json.new"
    if [ "${1:-}" != quick ] && command -v "$python" >/dev/null && ! "$python" -m json.tool <"$out/report.json.new" >/dev/null 2>"$work/json.err"; then
        say >>"$out/report.md.new"
        say "report.json is not valid JSON: $(tail -n 1 "$work/json.err")" >>"$out/report.md.new"
    fi
    mv "$out/report.md.new" "$out/report.md"
    mv "$out/report.json.new" "$out/report.json"
    local entry name
    for entry in make "${steps[@]}"; do
        name=${entry%%|*}
        [ ! -s "$work/$name.log" ] || { say "==== $name"; tail -n 400 "$work/$name.log"; }
    done >"$out/logs.txt"
    for name in muon cm; do
        [ ! -s "$work/runs/train-$name/log.jsonl" ] || cp "$work/runs/train-$name/log.jsonl" "$out/train_$name.jsonl"
    done
}
