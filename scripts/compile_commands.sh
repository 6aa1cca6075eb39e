#!/bin/sh
# Converts the output of `make -nB` to compile_commands.json, with an entry for each command of a compiler.
# usage: make -nB TARGETS | scripts/compile_commands.sh >compile_commands.json
awk -v folder="$(pwd)" '
    function quoted(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return "\"" s "\"" }
    BEGIN { print "[" }
    /^[^ ]*(gcc|g\+\+|clang|clang\+\+|cc|c\+\+) / && / -o / {
        source = ""
        for (i = 2; i <= NF; i++)
            if ($i ~ /\.(c|cu)$/ && $(i - 1) != "-o") source = $i
        if (source == "") next
        printf "%s{\"directory\": %s, \"command\": %s,\n \"file\": %s}", n++ ? ",\n" : "", quoted(folder), quoted($0), quoted(source)
    }
    END { print "\n]" }'
