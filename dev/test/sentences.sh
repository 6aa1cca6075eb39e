# A text for runs of tests. Scripts source this file.

# sentences [N]: writes N parts of sentences, of some 38 bytes each; 400 without N.
sentences() {
    awk -v parts="${1:-400}" 'BEGIN {
        n = split("the king of a far land|her brother|an old sailor|nobody|every child|the moon", who, "|")
        k = split("saw|forgot|sang to|would not sell|loved|feared|carried home", did, "|")
        m = split("a silver fish|the morning|two letters|what was lost|the quiet sea|bread", what, "|")
        x = 7
        for (i = 0; i < parts; i++) {
            x = (x * 1103 + 12345) % 65536; a = int(x / 16) % n + 1
            x = (x * 1103 + 12345) % 65536; b = int(x / 16) % k + 1
            x = (x * 1103 + 12345) % 65536; c = int(x / 16) % m + 1
            printf "%s %s %s%s", who[a], did[b], what[c], i % 5 == 4 ? ".\n" : ", and "
        }
    }'
}
