/* Tests of llmc/tokenizer.h against an independent implementation
   (dev/reference/make_bpe_fixture.py), of its messages about bad files, and of the program
   data/tokenize. */
int tokenize_main(int argc, char **argv);
#define main tokenize_main
#include "data/tokenize.c"
#undef main

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "dev/test/folder.h"

#define FIXTURES "dev/test/fixtures/bpe/"

static char err[ERR_LEN];

/* 1 if decoding the tokens gives the text. */
static int round_trip(const Tokenizer *t, const TokenList *list, const char *text, size_t n) {
    size_t at = 0, k;
    for (size_t i = 0; i < list->count; i++) {
        const char *bytes = tokenizer_decode(t, list->ids[i], &k);
        if (!bytes || k > n - at || memcmp(text + at, bytes, k) != 0) return 0;
        at += k;
    }
    return at == n;
}

/* Encodes every line of expected.txt in three passes: with an empty cache, with a full cache, and
   with the tokens of all lines appended to one list. */
static void test_expected(Tokenizer *t) {
    size_t n;
    char *file = (char *)tokenizer_read(FIXTURES "expected.txt", &n, err);
    if (!check(file != NULL, "%s", err)) return;
    int lines = 0;
    TokenList joined = {0, 0, 0};
    for (int pass = 0; pass < 3; pass++) {
        for (char *line = file, *next; *line; line = next) {
            next = strchr(line, '\n') + 1;
            char text[1024];
            size_t length = 0;
            unsigned byte;
            char *s = line;
            for (; *s != '\t'; s += 2) {
                if (*s == '-') {
                    s++;
                    break;
                }
                sscanf(s, "%2x", &byte);
                text[length++] = (char)byte;
            }
            TokenList list = {0, 0, 0};
            size_t mark = joined.count;
            int status = tokenizer_encode(t, text, length, 0, pass == 2 ? &joined : &list, err);
            const int *ids = pass == 2 ? joined.ids + mark : list.ids;
            size_t count = pass == 2 ? joined.count - mark : list.count;
            size_t equal = 0, expected = 0;
            for (s++; s < next - 1; expected++) {
                long id = strtol(s, &s, 10);
                equal += expected < count && ids[expected] == id;
            }
            check(!status && equal == expected && count == expected,
                  "pass %d: %.*s: %zu tokens, %zu of %zu as expected", pass, (int)(next - 1 - line),
                  line, count, equal, expected);
            if (pass < 2)
                check(round_trip(t, &list, text, length), "decoding gives other bytes: %.*s",
                      (int)(next - 1 - line), line);
            lines += pass == 0;
            free(list.ids);
        }
    }
    check(lines >= 60, "only %d strings in the fixture", lines);
    free(joined.ids);
    free(file);
}

static void test_special(Tokenizer *t) {
    static const char text[] = "a<|endoftext|><|endoftext|> <|endoftext|";
    TokenList list = {0, 0, 0}, plain = {0, 0, 0};
    size_t n = strlen(text), k;
    int bad = tokenizer_encode(t, text, n, 1, &list, err);
    bad = bad || tokenizer_encode(t, text, n, 0, &plain, err);
    int specials = 0, in_plain = 0;
    for (size_t i = 0; i < list.count; i++) specials += list.ids[i] == t->eot;
    for (size_t i = 0; i < plain.count; i++) in_plain += plain.ids[i] == t->eot;
    check(!bad && specials == 2 && list.ids[1] == t->eot && list.ids[2] == t->eot && !in_plain,
          "%d and %d special tokens", specials, in_plain);
    check(round_trip(t, &list, text, n) && round_trip(t, &plain, text, n), "with special tokens");
    check(t->vocab == 757 && t->eot == 756, "vocab %d, eot %d", t->vocab, t->eot);
    check(!tokenizer_decode(t, 757, &k) && k == 0 && !tokenizer_decode(t, -1, &k) &&
              tokenizer_decode(t, 756, &k) && k == 13,
          "ids outside the vocabulary");
    free(list.ids);
    free(plain.ids);
}

/* Words of a megabyte, and 2^20 spaces in front of a word. A quadratic time for merging would
   exceed the limit. */
static void test_long_words(Tokenizer *t) {
    size_t n = (size_t)1 << 20;
    char *text = (char *)malloc(n + 1);
    static const char *units[] = {" ", "a", "the", "\xe4\xb8\xad", "\x80"};
    for (int u = 0; u < 5; u++) {
        size_t m = strlen(units[u]);
        for (size_t i = 0; i < n; i++) text[i] = units[u][i % m];
        text[n] = 'x';
        TokenList list = {0, 0, 0};
        double start = now_seconds();
        int status = tokenizer_encode(t, text, n + 1, 0, &list, err);
        double seconds = now_seconds() - start;
        check(!status && round_trip(t, &list, text, n + 1), "long word of unit %d: %s", u, err);
        check(seconds < 20, "%.1f s for a word of a megabyte", seconds);
        free(list.ids);
    }
    free(text);
}

static void test_bytes(void) {
    Tokenizer t;
    TokenList list = {0, 0, 0};
    char text[256];
    for (int i = 0; i < 256; i++) text[i] = (char)(255 - i);
    check(tokenizer_bytes(&t, err) == 0 && t.vocab == 256 && t.eot == -1, "%s", err);
    int bad = tokenizer_encode(&t, text, 256, 1, &list, err), wrong = 0;
    for (int i = 0; i < 256 && !bad; i++) wrong += list.ids[i] != 255 - i;
    check(!bad && list.count == 256 && !wrong && round_trip(&t, &list, text, 256), "bytes");
    list.count = 0;
    check(!tokenizer_encode(&t, TOKENIZER_EOT_TEXT, 13, 1, &list, err) && list.count == 13,
          "bytes have no special token");
    free(list.ids);
    tokenizer_free(&t);
}

static void check_refused(const char *encoder, const char *bpe, const char *file,
                          const char *word) {
    Tokenizer t;
    err[0] = 0;
    check(tokenizer_load(&t, encoder, bpe, err) == -1 && strstr(err, file) && strstr(err, word) &&
              !t.bytes && !t.merges,
          "should fail on %s with \"%s\": %s", file, word, err);
}

/* Vocabularies and merges, each malformed in one way. */
static void test_refusals(void) {
    static const char bpe[] = FIXTURES "vocab.bpe", encoder[] = FIXTURES "encoder.json";
    check_refused("none.json", bpe, "none.json", "gpt2_bpe.sh");
    check_refused(encoder, "none.bpe", "none.bpe", "gpt2_bpe.sh");
    check_refused(bpe, bpe, bpe, "'{'");
    check_refused(encoder, encoder, encoder, "line 1");
    static const struct {
        const char *json, *word;
    } cases[] = {
        {"", "'{'"},
        {"{", "string"},
        {"{}", "string"},
        {"{\"a", "truncated"},
        {"{\"a\"", "':'"},
        {"{\"a\":", "number"},
        {"{\"a\": 1", "',' or '}'"},
        {"{\"a\": 0, \"a\": 1}", "twice"},
        {"{\"a\": -1}", "number"},
        {"{\"\": 0}", "empty"},
        {"{\"a\": 5}", "0, 1, 2"},
        {"{\"a\": 0, \"b\": 0}", "0, 1, 2"},
        {"{\"a\": 0}", "single byte"},
        {"{\"\\q\": 0}", "malformed"},
        {"{\"\\u00", "malformed"},
        {"{\"\\u00g0\": 0}", "malformed"},
        {"{\"\\u4e2d\": 0}", "U+4E2D"},
        {"{\"\xff\": 0}", "malformed"},
        {"{\"\\", "malformed"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_bytes("bad.json", cases[i].json, strlen(cases[i].json));
        check_refused(in_folder("bad.json"), bpe, "bad.json", cases[i].word);
    }
    static const struct {
        const char *merges, *word;
    } lines[] = {
        {"", "no merges"},     {"#version: 0.2\n", "no merges"},        {"a\n", "line 1"},
        {"a b c\n", "line 1"}, {"#version: 0.2\nh e\nq q\n", "line 3"}, {"\xff e\n", "line 1"},
        {"h \n", "line 1"},
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        write_bytes("bad.bpe", lines[i].merges, strlen(lines[i].merges));
        check_refused(encoder, in_folder("bad.bpe"), "bad.bpe", lines[i].word);
    }
    size_t n;
    char *json = (char *)tokenizer_read(encoder, &n, err);
    int accepted = 0;
    for (size_t cut = 0; json && cut + 2 < n;
         cut += 61) { /* every cut removes at least the final "}\n" */
        Tokenizer t;
        write_bytes("cut.json", json, cut);
        if (tokenizer_load(&t, in_folder("cut.json"), bpe, err) == 0) {
            accepted++;
            tokenizer_free(&t);
        }
    }
    check(json && !accepted, "%d truncated vocabularies were accepted", accepted);
    free(json);
}

/* Runs data/tokenize in a child process, with its output in the file "out". `reads` is the flag
   that names the input. Returns the exit status. */
static int run_program(const char *reads, const char *input, const char *output, const char *flag,
                       const char *value, size_t file_limit) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char *argv[] = {(char *)"tokenize",
                        (char *)"--encoder",
                        (char *)FIXTURES "encoder.json",
                        (char *)"--bpe",
                        (char *)FIXTURES "vocab.bpe",
                        strdup(reads),
                        strdup(input),
                        (char *)"--output",
                        strdup(output),
                        flag ? strdup(flag) : NULL,
                        value ? strdup(value) : NULL,
                        NULL};
        if (!freopen(in_folder("out"), "w", stdout) || !freopen(in_folder("out"), "a", stdout) ||
            !freopen(in_folder("out"), "a", stderr))
            _exit(9);
        if (strcmp(input, "-") == 0 && !freopen(in_folder("docs.txt"), "r", stdin)) _exit(9);
        struct rlimit limit = {file_limit, file_limit};
        signal(SIGXFSZ, SIG_IGN);
        if (file_limit) setrlimit(RLIMIT_FSIZE, &limit);
        int status = tokenize_main(flag ? 11 : 9, argv);
        fflush(NULL);
        _exit(status);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int run_tokenize(const char *input, const char *output, const char *flag, const char *value,
                        size_t file_limit) {
    return run_program("--input", input, output, flag, value, file_limit);
}

/* 1 if the output of data/tokenize contains the words; prints the output otherwise. */
static int output_has(const char *word) {
    size_t n;
    char *text = (char *)tokenizer_read(in_folder("out"), &n, err);
    int found = text && strstr(text, word);
    if (!found && text) printf("the output of tokenize: %s\n", text);
    free(text);
    return found;
}

/* The tokens of all shards that match, in the order of their names. */
static void read_shards(const char *pattern, TokenList *list, size_t *files) {
    Data d;
    *files = 0;
    if (data_open(&d, in_folder(pattern), DATA_ALL, DATA_SEQUENTIAL, 0, 1, 0, err)) {
        check(0, "%s", err);
        return;
    }
    *files = d.num_files;
    for (size_t k = 0; k < d.num_files; k++)
        for (size_t i = 0; i < d.files[k].count; i++) {
            int id = -1;
            if (data_read(&d, k, i, 1, &id, err) || tokenizer_append(list, &id, 1, err)) puts(err);
        }
    data_close(&d);
}

static void test_program(Tokenizer *t) {
    /* Three documents, one of them with blank lines; one separator has a Windows line end. */
    TokenList expected = {0, 0, 0};
    FILE *f = fopen(in_folder("docs.txt"), "wb");
    static const char *docs[] = {"First the document.\n", "@@\nA second one,\n\nin two parts.\n",
                                 "last"};
    for (int i = 0; i < 3; i++) {
        if (tokenizer_append(&expected, &t->eot, 1, err)) puts(err);
        if (tokenizer_encode(t, docs[i], strlen(docs[i]), 0, &expected, err)) puts(err);
        if (f) fprintf(f, "%s%s", docs[i], i == 0 ? "@@@\n@@@\r\n" : i == 1 ? "@@@\n" : "");
    }
    if (f) fclose(f);
    size_t n = expected.count, files;

    TokenList got = {0, 0, 0};
    int status = run_tokenize(in_folder("docs.txt"), in_folder("a"), "--separator", "@@@", 0);
    read_shards("a_*.bin", &got, &files); /* a_train sorts before a_val */
    check(status == 0 && output_has("3 documents") && files == 2, "status %d", status);
    Data made;
    if (check(!data_open(&made, in_folder("a_*.bin"), DATA_ALL, DATA_SEQUENTIAL, 0, 1, 0, err),
              "%s", err)) {
        check(made.tokenizer.kind == TOKENIZER_BPE &&
                  made.tokenizer.fingerprint == tokenizer_fingerprint(t),
              "the shards do not say which tokenizer made them");
        data_close(&made);
    }
    check(got.count == n && !memcmp(got.ids, expected.ids + n / 10, (n - n / 10) * sizeof(int)) &&
              !memcmp(got.ids + n - n / 10, expected.ids, n / 10 * sizeof(int)),
          "a tenth is for validation, the rest for training");
    check(run_tokenize(in_folder("docs.txt"), in_folder("a"), NULL, NULL, 0) == 1 &&
              output_has("a_val_000000.bin exists"),
          "old shards are not mixed with new ones");

    /* Standard input without a separator is one document. No tokens are for validation. */
    got.count = 0;
    status = run_tokenize("-", in_folder("b"), "--val-tokens", "0", 0);
    read_shards("b_train_000001.bin", &got, &files);
    int ends = 0;
    for (size_t i = 0; i < got.count; i++) ends += got.ids[i] == t->eot;
    check(status == 0 && ends == 1 && got.ids[0] == t->eot &&
              access(in_folder("b_val_000000.bin"), F_OK),
          "standard input: status %d, %d documents", status, ends);

    /* Shards of 10 tokens: the validation shard is first, then come training shards 1, 2, ... */
    TokenList cut = {0, 0, 0};
    status = run_tokenize("-", in_folder("c"), "--shard-tokens", "10", 0);
    read_shards("c_val_000000.bin", &cut, &files);
    check(status == 0 && cut.count == 10, "validation shard of %zu tokens", cut.count);
    read_shards("c_train_*.bin", &cut, &files);
    check(files == (got.count + 9) / 10 - 1 && cut.count == got.count &&
              !memcmp(cut.ids, got.ids, cut.count * sizeof(int)),
          "%zu shards, %zu tokens", files, cut.count);
    check(run_tokenize("-", in_folder("d"), "--val-tokens", "1000", 0) == 1 &&
              output_has("none would be left"),
          "validation takes everything");

    /* A limit on the size of files simulates a full disk. */
    char big[20000];
    for (size_t i = 0; i < sizeof big; i++) big[i] = (char)('!' + i * i % 90);
    write_bytes("big.txt", big, sizeof big);
    check(run_tokenize(in_folder("big.txt"), in_folder("e"), "--val-tokens", "0", 4096) == 1 &&
              output_has("cannot write"),
          "full disk");
    check(access(in_folder("e_train_000001.bin"), F_OK) != 0, "half a shard was left behind");
    check(run_tokenize(in_folder("nothing.txt"), in_folder("f"), NULL, NULL, 0) == 1 &&
              output_has("nothing.txt does not exist"),
          "missing input");
    check(run_tokenize(in_folder("a_val_000000.bin"), in_folder("f"), NULL, NULL, 0) == 1 &&
              output_has("already is a token shard"),
          "a shard as input");
    check(!rename(in_folder("a_val_000000.bin"), in_folder("shard.txt")) &&
              run_tokenize(in_folder("shard.txt"), in_folder("f"), NULL, NULL, 0) == 0 &&
              output_has("warning: ") && output_has("rename it to .bin"),
          "a shard as input that is named text");
    free(got.ids);
    free(cut.ids);
    free(expected.ids);
}

/* Whether a file of the folder has this text. */
static int file_is(const char *name, const char *text, size_t length) {
    size_t n;
    char *got = (char *)tokenizer_read(in_folder(name), &n, err);
    int equal = got && n == length && memcmp(got, text, n) == 0;
    free(got);
    return equal;
}

/* Decoding shards gives the text back: with the separator that divided the documents, byte for
   byte; without one, with a newline before each document after the first. */
static void test_decode(void) {
    /* The last document has bytes that are no UTF-8. */
    static const char text[] = "One.\n@@@\nTwo,\n\nin parts.\n@@@\nthe \xff\xc3 end\n";
    static const char joined[] = "One.\n\nTwo,\n\nin parts.\n\nthe \xff\xc3 end\n";
    size_t n = sizeof text - 1, m = sizeof joined - 1;
    write_bytes("t.txt", text, n);
    int status =
        run_program("--input", in_folder("t.txt"), in_folder("t"), "--separator", "@@@", 0);
    check(status == 0, "encoding: status %d", status);
    /* All tokens in one shard. */
    TokenList list = {0, 0, 0};
    size_t files;
    read_shards("t_val_*.bin", &list, &files);
    read_shards("t_train_*.bin", &list, &files);
    uint16_t shard[200];
    size_t count = min_size(list.count, 200);
    for (size_t i = 0; i < count; i++) shard[i] = (uint16_t)list.ids[i];
    check(list.count == count && !data_write_shard(in_folder("w_1.bin"), shard, count, err), "%s",
          err);

    status =
        run_program("--decode", in_folder("w_*.bin"), in_folder("s.txt"), "--separator", "@@@", 0);
    check(status == 0 && file_is("s.txt", text, n) && output_has("3 documents"),
          "with the separator: status %d", status);
    status = run_program("--decode", in_folder("w_1.bin"), in_folder("j.txt"), NULL, NULL, 0);
    check(status == 0 && file_is("j.txt", joined, m), "without a separator: status %d", status);
    status = run_program("--decode", in_folder("w_1.bin"), in_folder("b.txt"), "--bytes", "9", 0);
    check(status == 0 && file_is("b.txt", joined, 9), "--bytes 9: status %d", status);
    /* Two shards are one text, even where a document continues in the second. */
    check(!data_write_shard(in_folder("x_1.bin"), shard, count - 2, err) &&
              !data_write_shard(in_folder("x_2.bin"), shard + count - 2, 2, err) &&
              run_program("--decode", in_folder("x_*.bin"), in_folder("x.txt"), NULL, NULL, 0) ==
                  0 &&
              file_is("x.txt", joined, m),
          "two shards: %s", err);
    free(list.ids);
}

/* The pattern that matches all shards of a tokenization gives back its text: the validation shard
   has the beginning, though its name is the last, and ends inside a document. Several texts come in
   the order of their names. */
static void test_decode_order(void) {
    static const char text[] = "A first document, which is long enough.\n@@@\nAnother.\n";
    static const char other[] = "Then the other text begins, and this is all that it has.\n";
    char both[sizeof text + sizeof other + 10];
    static const char *const sizes[] = {"100", "9", "3"};
    write_bytes("q.txt", text, sizeof text - 1);
    write_bytes("q2.txt", other, sizeof other - 1);
    for (int i = 0; i < 3; i++) {
        char prefix[32], second[32], pattern[32], name[32];
        snprintf(prefix, sizeof prefix, "q%d", i);
        snprintf(second, sizeof second, "q%d_u", i); /* between q0_train and q0_val */
        snprintf(name, sizeof name, "q%d.back", i);
        snprintf(pattern, sizeof pattern, "q%d_[vt]*.bin", i);
        check(run_program("--input", in_folder("q.txt"), in_folder(prefix), "--shard-tokens",
                          sizes[i], 0) == 0,
              "encoding");
        int status = run_program("--decode", in_folder(pattern), in_folder(name), NULL, NULL, 0);
        check(status == 0 && file_is(name, text, sizeof text - 1), "shards of %s tokens", sizes[i]);
        check(run_program("--input", in_folder("q2.txt"), in_folder(second), "--shard-tokens",
                          sizes[i], 0) == 0,
              "encoding");
        snprintf(pattern, sizeof pattern, "q%d_*.bin", i);
        snprintf(name, sizeof name, "q%d.both", i);
        status = run_program("--decode", in_folder(pattern), in_folder(name), NULL, NULL, 0);
        int n = snprintf(both, sizeof both, "%s\n%s", text, other);
        check(status == 0 && file_is(name, both, (size_t)n), "two texts, shards of %s tokens",
              sizes[i]);
    }
}

/* Mistakes leave no file and say what is wrong. */
static void test_decode_refusals(void) {
    static const uint16_t foreign[2] = {1, 60000};
    write_bytes("plain.txt", "no shard", 8);
    check(!data_write_shard(in_folder("y_1.bin"), foreign, 2, err), "%s", err);
    check(run_program("--decode", in_folder("y_1.bin"), in_folder("y.txt"), NULL, NULL, 0) == 1 &&
              output_has("token 1 is 60000"),
          "a token outside the vocabulary");
    check(access(in_folder("y.txt"), F_OK) != 0, "a refused shard left a text");
    check(run_program("--decode", in_folder("plain.txt"), in_folder("y.txt"), NULL, NULL, 0) == 1 &&
              output_has("is text, not a token shard"),
          "text to decode");
    check(run_program("--decode", in_folder("y_1.bin"), in_folder("plain.txt"), NULL, NULL, 0) ==
                  1 &&
              output_has("plain.txt exists"),
          "an output that exists");
    check(run_program("--decode", in_folder("y_1.bin"), in_folder("y.txt"), "--input", "a.txt",
                      0) == 1 &&
              output_has("--input reads text and --decode reads shards"),
          "both directions");
    check(run_program("--input", in_folder("plain.txt"), in_folder("y"), "--bytes", "5", 0) == 1 &&
              output_has("--bytes belongs to --decode"),
          "--bytes with --input");
    static const char *const ends[] = {"a\nb", "\n", "a\r"};
    for (int i = 0; i < 3; i++)
        check(run_program("--decode", in_folder("y_1.bin"), in_folder("y.txt"), "--separator",
                          ends[i], 0) == 1 &&
                  output_has("--separator: ") &&
                  run_tokenize(in_folder("plain.txt"), in_folder("y"), "--separator", ends[i], 0) ==
                      1 &&
                  output_has("--separator: "),
              "a separator that is no line: %d", i);
    TokenizerId other = {TOKENIZER_BPE, 77};
    check(!data_write_shard_of(other, in_folder("o_1.bin"), foreign, 2, err) &&
              run_program("--decode", in_folder("o_1.bin"), in_folder("o.txt"), NULL, NULL, 0) ==
                  1 &&
              output_has("bpe 000000000000004d") && access(in_folder("o.txt"), F_OK),
          "another vocabulary: %s", err);
    uint16_t many[4096];
    for (size_t i = 0; i < 4096; i++) many[i] = 5;
    check(!data_write_shard(in_folder("z_1.bin"), many, 4096, err) &&
              run_program("--decode", in_folder("z_1.bin"), in_folder("z.txt"), NULL, NULL, 1024) ==
                  1 &&
              output_has("cannot write") && access(in_folder("z.txt"), F_OK),
          "full disk: %s", err);
}

/* Random text of words, lines, separators and bytes that are no UTF-8. */
static char *random_text(uint64_t seed, size_t n) {
    static const char *const parts[] = {"the",  " in",    "  a",      "\n",           "\r\n",
                                        "@@",   "\n@@\n", "\n@@\r\n", "\n@@@\n",      "'s",
                                        "'",    "1",      "\xc3\xa9", "\xe3\x80\x80", "\xc2\xa0",
                                        "\x80", ",",      "\t ",      "\xf0\x9f",     " "};
    char *text = (char *)malloc(n + 16);
    for (size_t at = 0; at < n;) {
        const char *part = parts[rng_bits(seed, 1, at) % 20];
        memcpy(text + at, part, strlen(part));
        at += strlen(part);
    }
    return text;
}

/* The tokens of a text whose documents end at lines "@@", with or without a carriage return: each
   document is encoded whole. */
static void whole_tokens(Tokenizer *t, const char *text, size_t n, TokenList *list) {
    size_t document = 0, line = 0;
    for (size_t at = 0; at <= n; at++) {
        if (at < n && text[at] != '\n') continue;
        size_t length = at - line - (at > line && text[at - 1] == '\r');
        int separator = length == 2 && !memcmp(text + line, "@@", 2);
        if (separator || at == n) {
            size_t end = separator ? line : n;
            if (end > document &&
                (tokenizer_append(list, &t->eot, 1, err) ||
                 tokenizer_encode(t, text + document, end - document, 0, list, err)))
                puts(err);
            document = at + 1;
        }
        line = at + 1;
    }
}

/* Reads a text through a pipe, `piece` bytes at a time, into job->pending. A child process writes
   it in parts of many sizes. Returns the number of documents, or -1. */
static int piped_tokens(Job *job, const char *text, size_t n, size_t piece) {
    int ends[2];
    if (pipe(ends)) return -1;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        for (size_t at = 0, part = 1; at < n; part = part * 5 % 4093) {
            ssize_t wrote = write(ends[1], text + at, min_size(part, n - at));
            if (wrote < 0) _exit(1);
            at += (size_t)wrote;
        }
        _exit(0);
    }
    close(ends[1]);
    job->piece = piece;
    job->pending.count = 0;
    job->documents = 0;
    int status = add_stream(job, "a pipe", ends[0], err);
    waitpid(child, NULL, 0);
    return status ? -1 : (int)job->documents;
}

/* A text that is read in pieces has the tokens of its whole documents. */
static void test_pieces(Tokenizer *t) {
    static const size_t pieces[] = {1, 2, 3, 7, 30, 64, 1000, 1 << 20};
    Options o;
    Job job;
    memset(&o, 0, sizeof o);
    o.shard_tokens = INT64_MAX;
    strcpy(o.separator, "@@");
    memset(&job, 0, sizeof job);
    job.o = &o;
    job.tokenizer = *t;
    for (uint64_t seed = 0; seed < 12; seed++) {
        size_t n = seed < 3 ? 10 * seed : 20000;
        char *text = random_text(seed, n);
        TokenList whole = {0, 0, 0};
        whole_tokens(&job.tokenizer, text, n, &whole);
        int ends = 0;
        for (size_t i = 0; i < whole.count; i++) ends += whole.ids[i] == t->eot;
        for (int p = 0; p < COUNT_OF(pieces); p++) {
            int documents = piped_tokens(&job, text, n, pieces[p]);
            check(documents == ends && job.pending.count == whole.count &&
                      (!n || !memcmp(job.pending.ids, whole.ids, whole.count * sizeof(int))),
                  "text %d in pieces of %zu: %d documents, not %d: %s", (int)seed, pieces[p],
                  documents, ends, err);
        }
        check(seed < 3 || ends > 100, "only %d documents", ends);
        free(whole.ids);
        free(text);
    }
    *t = job.tokenizer; /* the scratch arrays may have moved */
    free(job.pending.ids);
}

/* The memory of a long text is that of two pieces, even where it is one line of one document. */
static void test_memory(Tokenizer *t) {
    enum { N = 3 << 20, SMALL = 1 << 16 };
    Options o;
    Job job;
    memset(&o, 0, sizeof o);
    o.shard_tokens = INT64_MAX;
    strcpy(o.separator, "@@");
    memset(&job, 0, sizeof job);
    job.o = &o;
    job.tokenizer = *t;
    job.piece = SMALL;
    char *text = (char *)malloc(N);
    for (size_t i = 0; i < N; i++) text[i] = "the one line "[i % 13];
    write_bytes("long.txt", text, N);
    Stream s;
    memset(&s, 0, sizeof s);
    s.name = "long.txt";
    s.fd = open(in_folder(s.name), O_RDONLY);
    int status = 0;
    while (!status && !s.ended)
        status =
            stream_read(&job, &s, err) || stream_lines(&job, &s, err) || stream_part(&job, &s, err);
    check(!status && s.capacity <= 2 * SMALL + 64 && job.bytes > N - SMALL,
          "%zu bytes of memory, %llu bytes of text: %s", s.capacity, (unsigned long long)job.bytes,
          err);
    close(s.fd);
    free(s.bytes);
    free(text);
    *t = job.tokenizer;
    free(job.pending.ids);
}

/* Whether two files of the folder are equal and not empty. */
static int same_file(const char *a, const char *b) {
    size_t n = 0, m = 0;
    char *x = (char *)tokenizer_read(in_folder(a), &n, err);
    char *y = (char *)tokenizer_read(in_folder(b), &m, err);
    int same = x && y && n == m && n > 0 && !memcmp(x, y, n);
    free(x);
    free(y);
    return same;
}

/* Inputs that are no file: a pipe by name, a device, a folder. */
static void test_inputs(void) {
    char *text = random_text(99, 5000);
    write_bytes("docs.txt", text, 5000); /* run_program makes it standard input for "-" */
    check(!run_tokenize(in_folder("docs.txt"), in_folder("i"), "--separator", "@@", 0), "a file");
    check(!run_tokenize("-", in_folder("j"), "--separator", "@@", 0) &&
              same_file("i_train_000001.bin", "j_train_000001.bin") &&
              same_file("i_val_000000.bin", "j_val_000000.bin"),
          "standard input gives other shards");
    check(!mkfifo(in_folder("fifo"), 0600), "mkfifo");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int fd = open(in_folder("fifo"), O_WRONLY);
        _exit(fd < 0 || write(fd, text, 5000) != 5000);
    }
    check(!run_tokenize(in_folder("fifo"), in_folder("k"), "--separator", "@@", 0) &&
              same_file("i_train_000001.bin", "k_train_000001.bin"),
          "a pipe gives other shards");
    waitpid(child, NULL, 0);
    mkdir(in_folder("texts"), 0755);
    check(run_tokenize(in_folder("texts"), in_folder("l"), NULL, NULL, 0) == 1 &&
              output_has("texts is a folder") && output_has("texts/*.txt"),
          "a folder");
    check(run_tokenize(in_folder("texts/"), in_folder("l"), NULL, NULL, 0) == 1 &&
              output_has("/texts/*.txt"),
          "a folder with a slash behind it");
    check(run_tokenize("/dev/null", in_folder("l"), NULL, NULL, 0) == 1 &&
              output_has("there is no text"),
          "a device without text");
    write_bytes("m_1.txt", "", 0);
    write_bytes("m_2.txt", text, 1000);
    write_bytes("m_3.txt", text + 1000, 1000);
    check(!run_tokenize(in_folder("m_?.txt"), in_folder("m"), NULL, NULL, 0) &&
              output_has("2 documents") && output_has("note: 1 of 3 files are empty") &&
              output_has("m_1.txt"),
          "an empty file among others");
    write_bytes("n.bin", text, 1000);
    check(run_tokenize(in_folder("n.bin"), in_folder("n"), NULL, NULL, 0) == 1 &&
              output_has("n.bin: "),
          "a shard that is none");
    free(text);
}

/* <|endoftext|> in a text without --separator is told once. */
static void test_marker(void) {
    char text[3000];
    const char *marker = "\n<|endoftext|>\n";
    memset(text, 'x', sizeof text);
    memcpy(text + 500, marker, strlen(marker));
    memcpy(text + 900, marker, strlen(marker));
    write_bytes("e.txt", text, sizeof text);
    check(!run_tokenize(in_folder("e.txt"), in_folder("e1"), NULL, NULL, 0) &&
              output_has("note: ") && output_has("--separator \"<|endoftext|>\"") &&
              output_has("1 documents"),
          "no note");
    size_t n;
    char *out = (char *)tokenizer_read(in_folder("out"), &n, err);
    const char *first = out ? strstr(out, "note: ") : NULL;
    check(first && !strstr(first + 1, "note: "), "more than one note");
    free(out);
    check(
        !run_tokenize(in_folder("e.txt"), in_folder("e2"), "--separator", TOKENIZER_EOT_TEXT, 0) &&
            !file_has("out", "note: ") && output_has("3 documents"),
        "a note in spite of --separator");
    /* At every place relative to the ends of pieces. */
    Job job;
    Options o;
    memset(&job, 0, sizeof job);
    memset(&o, 0, sizeof o);
    job.o = &o;
    int missed = 0;
    Stream s = {"text", -1, 0, text, 0, 0, sizeof text, sizeof text, 0};
    int saved = dup(2), null = open("/dev/null", O_WRONLY);
    fflush(stderr);
    dup2(null, 2);
    for (s.count = 514; s.count < 530; s.count++)
        for (size_t before = 490; before < 514; before++) {
            Stream early = s;
            early.count = before;
            job.noted = 0;
            note_marker(&job, &early, 0);
            missed += job.noted;
            note_marker(&job, &s, before);
            missed += !job.noted;
        }
    dup2(saved, 2);
    close(saved);
    close(null);
    check(!missed, "%d times not seen, or seen too early", missed);
}

/* Names with characters that mean something to a shell, to patterns or to printf. */
static void test_names(void) {
    static const char *const names[] = {"out[1]*", "a b",      "it's",  "say \"x\"",   "100%s%n",
                                        "line\n",  "\xff\xfe", "-dash", "back\\slash", "?"};
    char input[64], output[64], text[400];
    memset(text, 'y', sizeof text);
    for (int i = 0; i < COUNT_OF(names); i++) {
        char shard[128];
        snprintf(input, sizeof input, "%s.in", names[i]);
        snprintf(output, sizeof output, "%s", names[i]);
        write_bytes(input, text, sizeof text);
        int status = run_tokenize(in_folder(input), in_folder(output), NULL, NULL, 0);
        snprintf(shard, sizeof shard, "%s_train_000001.bin", names[i]);
        check(status == 0 && !access(in_folder(shard), F_OK), "%s: status %d", names[i], status);
        check(run_tokenize(in_folder(input), in_folder(output), NULL, NULL, 0) == 1 &&
                  output_has("exists; remove the shards"),
              "%s: shards of an earlier run are not seen", names[i]);
        Data d;
        if (check(!data_open(&d, in_folder(shard), DATA_ALL, DATA_SHUFFLED, 0, 4, 1, err), "%s",
                  err))
            data_close(&d);
        snprintf(shard, sizeof shard, "%s_val_000000.bin", names[i]);
        snprintf(output, sizeof output, "%s.out", names[i]);
        check(run_program("--decode", in_folder(shard), in_folder(output), NULL, NULL, 0) == 0,
              "%s: decoding", names[i]);
    }
    /* The names of others are not those of this prefix. */
    write_bytes("out1_val_000000.bin", text, 1);
    write_bytes("p_val_00000.bin", text, 1);
    write_bytes("p_train_0000001.bin", text, 1);
    write_bytes("p_vall_000000.bin", text, 1);
    check(run_tokenize(in_folder("it's.in"), in_folder("p"), NULL, NULL, 0) == 0, "other names");
    check(run_tokenize(in_folder("it's.in"), in_folder("nowhere/p"), NULL, NULL, 0) == 1 &&
              output_has("cannot open the folder"),
          "no folder for the output");
}

/* The fingerprint is that of an independent computation, and belongs to the vocabulary, not to the
   way in which its files are written. */
static void test_identity(void) {
    static const char bpe[] = FIXTURES "vocab.bpe", encoder[] = FIXTURES "encoder.json";
    char text[TOKENIZER_ID_SIZE];
    Tokenizer t;
    if (!check(!tokenizer_load(&t, encoder, bpe, err), "%s", err)) return;
    TokenizerId id = tokenizer_id(&t);
    check(id.kind == TOKENIZER_BPE && id.fingerprint == 0x3b585bbe6f611d7du, "%s",
          tokenizer_id_text(id, text));

    /* The same vocabulary, its entries backwards, with other spaces and escapes. */
    FILE *f = fopen(in_folder("again.json"), "w");
    for (int i = t.vocab - 1; f && i >= 0; i--) {
        size_t n;
        const char *bytes = tokenizer_decode(&t, i, &n);
        fprintf(f, "%s \"", i == t.vocab - 1 ? "{" : ",\n");
        for (size_t k = 0; k < n; k++)
            for (uint32_t code = 0; code < 512; code++)
                if (tokenizer_byte_of(code) == (unsigned char)bytes[k])
                    fprintf(f, "\\u%04X", (unsigned)code);
        fprintf(f, "\" : %d", i);
    }
    if (f) {
        fprintf(f, "\n}");
        fclose(f);
    }
    Tokenizer again, fewer;
    if (check(!tokenizer_load(&again, in_folder("again.json"), bpe, err), "%s", err)) {
        check(tokenizer_fingerprint(&again) == id.fingerprint, "another way of writing counts");
        again.merges[tokenizer_pair_slot(&again, t.byte_id['t'], t.byte_id['h'])].rank++;
        check(tokenizer_fingerprint(&again) != id.fingerprint, "the ranks of merges do not count");
        again.merges[tokenizer_pair_slot(&again, t.byte_id['t'], t.byte_id['h'])].rank--;
        again.bytes[again.offsets[300]]++;
        check(tokenizer_fingerprint(&again) != id.fingerprint, "the bytes do not count");
        tokenizer_free(&again);
    }
    write_bytes("fewer.bpe", "#version: 0.2\nt h\n", 18);
    if (check(!tokenizer_load(&fewer, encoder, in_folder("fewer.bpe"), err), "%s", err)) {
        check(tokenizer_fingerprint(&fewer) != id.fingerprint, "the merges do not count");
        tokenizer_free(&fewer);
    }
    tokenizer_free(&t);
    check(!tokenizer_bytes(&t, err) && tokenizer_id(&t).kind == TOKENIZER_BYTES, "%s", err);
    tokenizer_free(&t);
    if (access("data/gpt2-bpe/vocab.bpe", F_OK)) return; /* data/gpt2_bpe.sh has not fetched it */
    if (!check(!tokenizer_load(&t, "data/gpt2-bpe/encoder.json", "data/gpt2-bpe/vocab.bpe", err),
               "%s", err))
        return;
    check(tokenizer_id(&t).kind == TOKENIZER_GPT2, "GPT-2's vocabulary is taken as %s",
          tokenizer_id_text(tokenizer_id(&t), text));
    tokenizer_free(&t);
}

/* The texts of ids, and texts that are none. */
static void test_id_text(void) {
    static const char *const good[] = {"bytes", "gpt2", "gpt2 82fe055cca2fc2cd",
                                       "bpe 0000000000000001"};
    static const char *const bad[] = {"",
                                      "byte",
                                      "bytes ",
                                      "bytes 0000000000000001",
                                      "bpe",
                                      "bpe 1",
                                      "gpt2 1",
                                      "gpt2 82FE055CCA2FC2CD",
                                      "gpt2 ",
                                      "gpt21",
                                      "sentence",
                                      "gpt2 0000000000000000",
                                      "gpt2 82fe055cca2fc2cd0"};
    char text[TOKENIZER_ID_SIZE];
    TokenizerId id;
    for (int i = 0; i < COUNT_OF(good); i++)
        check(!tokenizer_id_parse(good[i], &id) && !strcmp(tokenizer_id_text(id, text), good[i]),
              "\"%s\" becomes \"%s\"", good[i], text);
    for (int i = 0; i < COUNT_OF(bad); i++)
        check(tokenizer_id_parse(bad[i], &id) == -1, "\"%s\" is taken", bad[i]);
}

static Tokenizer tokenizer; /* from the files of the fixtures */

/* --texts: the tokens of each line, and lines that are no texts. */
static void test_texts(void) {
    static const char good[] = "\"the heart\"\n\"\"\n \"a\\nb\" \n\"\\ud83d\\ude00\"";
    static const char *const bad[] = {"\"a\"\nthe\n", "\"a\"\n\"b\" 3\n", "\"a\"\n{\"b\": 1}\n",
                                      "\"a\"\n\"b\n", "\"a\"\n\"\\u0000\"\n"};
    char input[FILE_PATH_SIZE], output[FILE_PATH_SIZE];
    char expected[512], id[TOKENIZER_ID_SIZE], *have = NULL;
    size_t size = 0, used = 0;
    static const char *const texts[] = {"the heart", "", "a\nb", "\xf0\x9f\x98\x80"};
    file_path(input, "%s", in_folder("texts.jsonl"));
    file_path(output, "%s", in_folder("tokens.txt"));
    write_bytes("texts.jsonl", good, strlen(good));
    used += (size_t)snprintf(expected, sizeof expected, "%s\n",
                             tokenizer_id_text(tokenizer_id(&tokenizer), id));
    for (int i = 0; i < COUNT_OF(texts); i++) {
        TokenList list = {0, 0, 0};
        check(!tokenizer_encode(&tokenizer, texts[i], strlen(texts[i]), 0, &list, err), "%s", err);
        for (size_t k = 0; k < list.count; k++)
            used += (size_t)snprintf(expected + used, sizeof expected - used, "%s%d", k ? " " : "",
                                     list.ids[k]);
        used += (size_t)snprintf(expected + used, sizeof expected - used, "\n");
        free(list.ids);
    }
    check(run_program("--texts", input, output, NULL, NULL, 0) == 0, "--texts");
    check(!file_read(output, 4096, &have, &size, err) && !strcmp(have, expected),
          "--texts wrote\n%s\nnot\n%s", have ? have : err, expected);
    free(have);
    check(run_program("--texts", input, output, NULL, NULL, 0) != 0 &&
              output_has("tokens.txt exists"),
          "an output that exists");
    unlink(output);
    for (int i = 0; i < COUNT_OF(bad); i++) {
        write_bytes("texts.jsonl", bad[i], strlen(bad[i]));
        check(run_program("--texts", input, output, NULL, NULL, 0) != 0 &&
                  output_has("line 2 is not one JSON string") && access(output, F_OK) != 0,
              "case %d", i);
    }
    check(run_program("--texts", in_folder("nothing"), output, NULL, NULL, 0) != 0 &&
              output_has("cannot open"),
          "no file");
}

static void test_fixture_expected(void) { test_expected(&tokenizer); }
static void test_fixture_special(void) { test_special(&tokenizer); }
static void test_fixture_long_words(void) { test_long_words(&tokenizer); }
static void test_fixture_program(void) { test_program(&tokenizer); }
static void test_fixture_pieces(void) { test_pieces(&tokenizer); }
static void test_fixture_memory(void) { test_memory(&tokenizer); }

static const Test tests[] = {TEST(fixture_expected),
                             TEST(fixture_special),
                             TEST(fixture_long_words),
                             TEST(fixture_program),
                             TEST(fixture_pieces),
                             TEST(decode),
                             TEST(decode_refusals),
                             TEST(decode_order),
                             TEST(bytes),
                             TEST(refusals),
                             TEST(identity),
                             TEST(id_text),
                             TEST(texts),
                             TEST(fixture_memory),
                             TEST(inputs),
                             TEST(marker),
                             TEST(names)};

int main(int argc, char **argv) {
    folder_make("cm_test_tokenizer");
    if (tokenizer_load(&tokenizer, FIXTURES "encoder.json", FIXTURES "vocab.bpe", err))
        die("%s", err);
    check_run(tests, COUNT_OF(tests), argc, argv);
    tokenizer_free(&tokenizer);
    folder_remove();
    return check_done();
}
