/*
Tests of what is measured beside the loss: bits per byte, and the accuracy on examples of multiple
choice. Losses of completions and choices are compared with those of one sequence at a time, from
its logits. Run it from the root of the repository.
*/
#include "folder.h"
#include "model_cases.h"

/* ---------------------------------------------------------------------------------------------- */
/* files of examples */

/* A file that is being made: `at` uint16, the header in the first 512 of them. */
typedef struct {
    uint16_t w[1 << 16];
    size_t at, example; /* example: where the present one begins */
    uint32_t count, longest;
} Maker;
static Maker made;

static void put(Maker *f, int word) {
    if (f->at == sizeof f->w / sizeof f->w[0]) die("test_eval: the file is too long");
    f->w[f->at++] = (uint16_t)word;
}

static void put_u32(Maker *f, size_t number, uint32_t value) {
    f->w[2 * number] = (uint16_t)value;
    f->w[2 * number + 1] = (uint16_t)(value >> 16);
}

static void make_begin(Maker *f) {
    memset(f, 0, sizeof *f);
    f->at = EVAL_HEADER_BYTES / 2;
}

static void example_begin(Maker *f, int label, int completions) {
    f->example = f->at;
    put(f, 65535);
    put(f, 0);
    put(f, (int)f->count);
    put(f, label);
    put(f, completions);
}

static void put_tokens(Maker *f, const int *tokens, int n) {
    put(f, n);
    for (int i = 0; i < n; i++) put(f, tokens[i]);
}

static void example_end(Maker *f) {
    uint32_t bytes = (uint32_t)(2 * (f->at - f->example));
    f->w[f->example + 1] = (uint16_t)bytes;
    if (bytes > f->longest) f->longest = bytes;
    f->count++;
}

/* Writes the file, of which `cut` bytes are left out at the end. */
static void make_end(Maker *f, const char *name, size_t cut) {
    put_u32(f, 0, 20240522);
    put_u32(f, 1, 1);
    put_u32(f, 2, f->count);
    put_u32(f, 3, f->longest);
    write_bytes(name, f->w, 2 * f->at - cut);
}

/* Three examples: 2, 4 and 2 completions of up to three tokens, contexts of 1, 5 and 3. */
static void make_three(Maker *f) {
    static const int tokens[] = {11, 12, 13, 14, 15};
    make_begin(f);
    example_begin(f, 1, 2);
    put_tokens(f, tokens, 1);
    put_tokens(f, tokens + 1, 2);
    put_tokens(f, tokens + 2, 1);
    example_end(f);
    example_begin(f, 3, 4);
    put_tokens(f, tokens, 5);
    for (int i = 0; i < 4; i++) put_tokens(f, tokens + i, 1 + i % 3);
    example_end(f);
    example_begin(f, 0, 2);
    put_tokens(f, tokens, 3);
    put_tokens(f, tokens, 2);
    put_tokens(f, tokens, 3);
    example_end(f);
}

static void test_open(void) {
    Eval e;
    make_three(&made);
    make_end(&made, "three.bin", 0);
    if (!check(!eval_open(&e, in_folder("three.bin"), 6, 16, err), "%s", err)) return;
    check(e.count == 3 && e.rows == 8 && !e.tagged, "%zu examples, %zu rows", e.count, e.rows);
    check(e.item[1].label == 3 && e.item[1].completions == 4 && e.item[2].row == 6, "the list");
    check(e.cut == 1, "%zu rows of 8 tokens or more are cut, not 1", e.cut);
    check(e.T == 6, "rows of %d", e.T);
    check(fabs(eval_chance(&e) - (0.5 + 0.25 + 0.5) / 3) < 1e-15, "chance %g", eval_chance(&e));

    /* Rows in any order; a context that does not fit loses its first tokens. */
    int x[6 * 8], y[6 * 8];
    static const int in[][6] = {{11, 12, 0, 0, 0, 0},     {11, 0, 0, 0, 0, 0},
                                {11, 12, 13, 14, 15, 0},  {11, 12, 13, 14, 15, 12},
                                {12, 13, 14, 15, 13, 14}, {11, 12, 13, 14, 15, 0},
                                {11, 12, 13, 11, 0, 0},   {11, 12, 13, 11, 12, 0}};
    static const int out[][6] = {{12, 13, -1, -1, -1, -1}, {13, -1, -1, -1, -1, -1},
                                 {-1, -1, -1, -1, 11, -1}, {-1, -1, -1, -1, 12, 13},
                                 {-1, -1, -1, 13, 14, 15}, {-1, -1, -1, -1, 14, -1},
                                 {-1, -1, 11, 12, -1, -1}, {-1, -1, 11, 12, 13, -1}};
    check(!eval_batch(&e, 0, 8, x, y, err), "%s", err);
    check(!memcmp(x, in, sizeof in) && !memcmp(y, out, sizeof out), "the rows of three.bin");
    for (int row = 7; row >= 0; row--) {
        check(!eval_batch(&e, (size_t)row, 1, x, y, err) && !memcmp(x, in[row], sizeof in[0]) &&
                  !memcmp(y, out[row], sizeof out[0]),
              "row %d alone", row);
    }
    uint64_t sum = e.checksum;
    eval_close(&e);
    made.w[made.at - 1] ^= 1;
    make_end(&made, "other.bin", 0);
    check(!eval_open(&e, in_folder("other.bin"), 6, 16, err) && e.checksum != sum,
          "files that differ in one bit have one checksum: %s", err);
    eval_close(&e);
}

/* Opening the file fails and says why. */
static void check_refused(const char *name, const char *word) {
    Eval e;
    err[0] = 0;
    int status = eval_open(&e, in_folder(name), 6, 16, err);
    check(status == -1 && strstr(err, name) && strstr(err, word) && !e.map && !e.item,
          "opening %s should fail with \"%s\", got %d: %s", name, word, status, err);
    if (!status) eval_close(&e);
}

/* Files with one number changed: `word` of the file becomes `value`. Example 1 begins at word 524:
   its head, 5 tokens of context, completions of 1, 2, 3 and 1 tokens. */
static void test_refusals(void) {
    static const struct {
        size_t word;
        int value;
        const char *says;
    } changes[] = {
        {0, 0, "first number"},
        {2, 7, "version 7"},
        {4, 0, "no examples"},
        {4, 2, "follow the last of 2 examples"},
        {4, 4, "ends in example 3 of 4"},
        {5, 0x7000, "promises"},
        {6, 30, "example 1"},
        {512, 65534, "example 0 begins with 65534"},
        {513, 23, "example 0"},
        {513, 10, "example 0"},
        {513, 65534, "example 0"},
        {524, 0, "example 1 begins with 0"},
        {526, 2, "example 1"},
        {527, 4, "example 1 has the label 4 and 4 completions"},
        {528, 1, "example 1 has 1 completions"},
        {528, 17, "example 1 has 17 completions"},
        {528, 5, "completion 4 of example 1 is empty"},
        {528, 3, "numbers behind"}, /* with label 2 */
        {529, 0, "example 1 has no context"},
        {529, 60, "the context of example 1 has 60 tokens"},
        {531, 16, "example 1 has the token 16, which is outside the vocabulary of 16"},
        {535, 0, "completion 0 of example 1 is empty"},
        {535, 50, "completion 0 of example 1 has 50 tokens"},
        {536, 500, "example 1 has the token 500"},
    };
    make_three(&made);
    make_end(&made, "good.bin", 0);
    check(made.w[524] == 65535 && made.w[529] == 5 && made.w[535] == 1, "the places of the test");
    for (int i = 0; i < COUNT_OF(changes); i++) {
        make_three(&made);
        make_end(&made, "bad.bin", 0);
        if (changes[i].word == 528 && changes[i].value == 3) made.w[527] = 2;
        made.w[changes[i].word] = (uint16_t)changes[i].value;
        write_bytes("bad.bin", made.w, 2 * made.at);
        check_refused("bad.bin", changes[i].says);
    }
    /* Every shorter file. */
    for (size_t cut = 1; cut < 2 * made.at; cut += cut < 80 ? 1 : 50) {
        make_three(&made);
        make_end(&made, "cut.bin", cut);
        check_refused("cut.bin", 2 * made.at - cut < EVAL_HEADER_BYTES ? "header" : "");
    }
    make_three(&made);
    put(&made, 0);
    make_end(&made, "longer.bin", 0);
    check_refused("longer.bin", "2 bytes follow the last");
    check_refused("missing.bin", "No such file");
    mkdir(in_folder("dir.bin"), 0777);
    check_refused("dir.bin", "a folder");
    write_bytes("empty.bin", "", 0);
    check_refused("empty.bin", "0 bytes");
    uint16_t shard[600] = {0};
    data_write_shard(in_folder("shard.bin"), shard, 600, err);
    check_refused("shard.bin", "token shard");
    char json[2000];
    memset(json, '{', sizeof json);
    write_bytes("lines.jsonl", json, sizeof json);
    check_refused("lines.jsonl", "hellaswag.py");
}

/* A completion that fills all of a row is taken; a longer one is not. */
static void test_lengths(void) {
    static const int tokens[] = {1, 2, 3, 4, 5, 6, 7};
    Eval e;
    for (int n = 6; n <= 7; n++) {
        make_begin(&made);
        example_begin(&made, 0, 2);
        put_tokens(&made, tokens, 3);
        put_tokens(&made, tokens, n);
        put_tokens(&made, tokens, 1);
        example_end(&made);
        make_end(&made, "long.bin", 0);
        if (n == 7) {
            check_refused("long.bin", "completion 0 of example 0 has 7 tokens, and --seq-len is 6");
            continue;
        }
        int x[6], y[6];
        check(!eval_open(&e, in_folder("long.bin"), 6, 16, err) && !eval_batch(&e, 0, 1, x, y, err),
              "%s", err);
        check(x[0] == 3 && x[5] == 5 && y[0] == 1 && y[5] == 6, "%d %d %d %d", x[0], x[5], y[0],
              y[5]);
        eval_close(&e);
    }
}

/* What the file says about its tokenizer. */
static void test_tag(void) {
    static const struct {
        uint32_t tag, kind, low, high;
        int tagged; /* -1: refused */
    } cases[] = {{0, 0, 0, 0, 0},
                 {1, 9, 9, 9, 0},
                 {EVAL_TOKENIZER_TAG, 0, 0, 0, 1},
                 {EVAL_TOKENIZER_TAG, 2, 5, 6, 1},
                 {EVAL_TOKENIZER_TAG, 0, 1, 0, -1},
                 {EVAL_TOKENIZER_TAG, 3, 1, 0, -1}};
    for (int i = 0; i < COUNT_OF(cases); i++) {
        Eval e;
        make_three(&made);
        put_u32(&made, 4, cases[i].tag);
        put_u32(&made, 5, cases[i].kind);
        put_u32(&made, 6, cases[i].low);
        put_u32(&made, 7, cases[i].high);
        make_end(&made, "tag.bin", 0);
        if (cases[i].tagged < 0) {
            check_refused("tag.bin", "examples of tokenizer");
            continue;
        }
        check(!eval_open(&e, in_folder("tag.bin"), 6, 16, err) && e.tagged == cases[i].tagged,
              "case %d: %s", i, err);
        if (e.tagged)
            check(e.tokenizer.kind == (TokenizerKind)cases[i].kind &&
                      e.tokenizer.fingerprint == ((uint64_t)cases[i].high << 32 | cases[i].low),
                  "case %d: another tokenizer", i);
        eval_close(&e);
    }
}

/* A file that somebody writes into, or cuts, while it is open. */
static void test_changed_file(void) {
    Eval e;
    int x[48], y[48];
    static const struct {
        int word, value; /* word 0: the file is cut */
        const char *says;
    } changes[] = {{530, 999, "token 999"},
                   {527, 2, "written into"},
                   {525, 9, "example 1 begins"},
                   {0, 0, "became shorter"}};
    for (int i = 0; i < COUNT_OF(changes); i++) {
        make_three(&made);
        make_end(&made, "open.bin", 0);
        check(!eval_open(&e, in_folder("open.bin"), 6, 16, err), "%s", err);
        uint16_t value = (uint16_t)changes[i].value;
        int fd = open(in_folder("open.bin"), O_WRONLY);
        if (changes[i].word ? pwrite(fd, &value, 2, 2 * changes[i].word) != 2
                            : ftruncate(fd, 1060) != 0)
            perror("open.bin");
        close(fd);
        check(!eval_batch(&e, 0, 2, x, y, err) || !changes[i].word, "example 0: %s", err);
        check(eval_batch(&e, 2, 1, x, y, err) == -1 && strstr(err, changes[i].says) &&
                  strstr(err, "open.bin"),
              "case %d: \"%s\", not \"%s\"", i, err, changes[i].says);
        eval_close(&e);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* choices */

/* Choices by summed and by mean losses; equal losses, and losses that are no numbers. */
static void test_choice(void) {
    Eval e;
    make_three(&made);
    make_end(&made, "three.bin", 0);
    check(!eval_open(&e, in_folder("three.bin"), 6, 16, err), "%s", err);
    static const double loss[8] = {4, 3, 7, 6, 8, 9, NAN, 2};
    static const int length[8] = {2, 1, 1, 2, 4, 3, 1, 1};
    memcpy(e.loss, loss, sizeof loss);
    memcpy(e.length, length, sizeof length);
    check(eval_choice(&e, 0, 0) == 1 && eval_choice(&e, 0, 1) == 0, "example 0");
    check(eval_choice(&e, 1, 0) == 1 && eval_choice(&e, 1, 1) == 2, "example 1");
    check(eval_choice(&e, 2, 0) == 1, "a loss that is no number");
    check(fabs(eval_accuracy(&e, 0) - 1.0 / 3) < 1e-15 && eval_accuracy(&e, 1) == 0,
          "accuracies %g, %g", eval_accuracy(&e, 0), eval_accuracy(&e, 1));
    for (int i = 0; i < 8; i++) e.loss[i] = length[i];
    check(eval_choice(&e, 1, 1) == 0, "of equal losses the first counts");
    for (int i = 0; i < 8; i++) e.loss[i] = NAN;
    check(eval_choice(&e, 1, 0) == -1 && eval_accuracy(&e, 0) == 0, "no loss is a number");
    eval_close(&e);
}

enum { EXAMPLES = 9, SEQ = 12, VOCAB = 90 };

/* Random examples with 2 to 16 completions. Some contexts do not fit SEQ. */
static void make_random(Maker *f, const char *name) {
    static const int completions[EXAMPLES] = {4, 2, 16, 4, 3, 5, 4, 4, 7};
    int tokens[32];
    make_begin(f);
    for (int i = 0; i < EXAMPLES; i++) {
        example_begin(f, (int)draw_index((size_t)completions[i]), completions[i]);
        int n = 1 + (int)draw_index(SEQ + 4);
        for (int t = 0; t < n; t++) tokens[t] = (int)draw_index(VOCAB);
        put_tokens(f, tokens, n);
        for (int k = 0; k < completions[i]; k++) {
            n = 1 + (int)draw_index(k == 3 ? SEQ : 5);
            for (int t = 0; t < n; t++) tokens[t] = (int)draw_index(VOCAB);
            put_tokens(f, tokens, n);
        }
        example_end(f);
    }
    make_end(f, name, 0);
}

/* Cross entropy of `target` after logits z (V) that are not capped yet. */
static double cross_entropy(const floatM *z, int V, int target, double softcap) {
    double most = -INFINITY, sum = 0, capped[VOCAB];
    for (int v = 0; v < V; v++) {
        double a = (double)z[v];
        capped[v] = softcap > 0 ? softcap * a / sqrt(a * a + softcap * softcap) : a;
        most = fmax(most, capped[v]);
    }
    for (int v = 0; v < V; v++) sum += exp(capped[v] - most);
    return most + log(sum) - capped[target];
}

/* The loss of the last `n` of `count` tokens, by one forward pass over them alone, of which no more
   than T + 1 are kept. */
static double loss_alone(Model *m, const int *tokens, int count, int n) {
    int V = m->s.V, Vp = m->s.Vp, T = m->s.T, x[64] = {0};
    if (count > T + 1) {
        tokens += count - (T + 1);
        count = T + 1;
    }
    Shape s = shape_with(m->s, 1, count - 1);
    for (int t = 0; t < count - 1; t++) x[t] = tokens[t];
    tokens_upload(m->a.tokens, x, s.N, Vp);
    model_forward(m, s);
    head_forward(m, 0, s.N);
    floatM *z = fetch_x(m->a.logits, (size_t)s.N * Vp);
    double loss = 0;
    for (int t = count - 1 - n; t < count - 1; t++)
        loss += cross_entropy(z + (size_t)t * Vp, V, tokens[t + 1], m->c->softcap);
    release();
    return loss;
}

/* The losses of all completions of the file that make_random has made, one at a time. */
static void losses_alone(Model *m, const Maker *f, double *loss, int *length, int *label) {
    size_t at = EVAL_HEADER_BYTES / 2, row = 0;
    for (int i = 0; i < EXAMPLES; i++) {
        int tokens[64], completions = f->w[at + 4], context = f->w[at + 5];
        label[i] = f->w[at + 3];
        at += 6;
        for (int t = 0; t < context; t++) tokens[t] = f->w[at++];
        for (int k = 0; k < completions; k++, row++) {
            length[row] = f->w[at++];
            for (int t = 0; t < length[row]; t++) tokens[context + t] = f->w[at++];
            loss[row] = loss_alone(m, tokens, context + length[row], length[row]);
        }
    }
}

/* A model whose batch has B sequences, with the parameters of the test's name, and an evaluation of
   random.bin with it. */
typedef struct {
    Config c;
    Model m;
    Eval e;
    int x[512], y[512];
    floatM losses[512];
} Evaluation;

static void evaluation_open(Evaluation *v, const char *flags, int seq_len, int B) {
    char text[512];
    snprintf(text, sizeof text,
             "%s --layers 2 --width 24 --heads 2 --seq-len %d --batch-size %d --vocab %d", flags,
             seq_len, B, VOCAB);
    v->c = config_of(text, "");
    create(&v->m, &v->c);
    draw_for("parameters");
    randomise(&v->m);
    release();
    if (eval_open(&v->e, in_folder("random.bin"), seq_len, VOCAB, err)) die("%s", err);
}

static void evaluation_close(Evaluation *v) {
    eval_close(&v->e);
    model_free(&v->m);
}

static Work evaluation_run(Evaluation *v) {
    return evaluate(&v->m, &v->e, v->x, v->y, v->losses, NULL, err);
}

/* Losses and choices do not depend on the batch, and are those of one sequence at a time. Batches
   of 1, 3 and 8 rows divide the rows of an example differently; --logit-rows forms their logits in
   pieces. */
static void check_scores(const char *flags) {
    static Evaluation v;
    double loss[64], first[64];
    int length[64], label[EXAMPLES];
    make_random(&made, "random.bin");
    static const int batches[] = {1, 3, 8};
    for (int b = 0; b < COUNT_OF(batches); b++) {
        evaluation_open(&v, flags, SEQ, batches[b]);
        size_t rows = v.e.rows;
        if (!b) losses_alone(&v.m, &made, loss, length, label);
        check(rows == 49 && v.e.cut > 5 && v.e.cut < 45, "%zu rows, %zu cut", rows, v.e.cut);
        check(evaluation_run(&v) == WORK_DONE, "%s", err);
        check(take_loss(&v.m) == 0, "%s: the evaluation leaves losses for the next step", flags);
        double worst = 0;
        for (size_t r = 0; r < rows; r++) {
            worst = fmax(worst, relative_error(v.e.loss[r], loss[r], 1));
            check(v.e.length[r] == length[r], "row %zu has %d tokens, not %d", r, v.e.length[r],
                  length[r]);
        }
        check(worst < 2e-6, "%s, batch of %d: losses are off by %.1e", flags, batches[b], worst);
        double right[2] = {0, 0};
        for (int i = 0; i < EXAMPLES; i++) {
            int at = (int)v.e.item[i].row, best[2] = {0, 0};
            for (int k = 1; k < v.e.item[i].completions; k++) {
                if (loss[at + k] < loss[at + best[0]]) best[0] = k;
                if (loss[at + k] / length[at + k] < loss[at + best[1]] / length[at + best[1]])
                    best[1] = k;
            }
            for (int mean = 0; mean < 2; mean++) {
                check(eval_choice(&v.e, (size_t)i, mean) == best[mean],
                      "%s, batch of %d: choice %d of example %d", flags, batches[b], mean, i);
                right[mean] += best[mean] == label[i];
            }
        }
        for (int mean = 0; mean < 2; mean++)
            check(fabs(eval_accuracy(&v.e, mean) - right[mean] / EXAMPLES) < 1e-15, "accuracy %d",
                  mean);
        /* Once more: equal bits. */
        memcpy(first, v.e.loss, rows * sizeof *first);
        check(evaluation_run(&v) == WORK_DONE && !memcmp(first, v.e.loss, rows * sizeof *first),
              "%s, batch of %d: a second evaluation differs", flags, batches[b]);
        evaluation_close(&v);
    }
}

static void test_scores(void) {
    check_scores("--preset tiny");
    check_scores("--preset gpt2 --logit-rows 5");
    check_scores("--preset llama");
}

/* In a model of long sequences rows are shorter, and a pass has more of them than the batch has
   sequences: here 2 x 150 tokens are four rows of 64. */
static void test_short_rows(void) {
    static const char *const flags[] = {"--preset tiny", "--preset gpt2"};
    for (int f = 0; f < COUNT_OF(flags); f++) {
        static Evaluation v;
        double loss[64], worst = 0;
        int length[64], label[EXAMPLES];
        make_random(&made, "random.bin");
        evaluation_open(&v, flags[f], 150, 2);
        check(v.e.T == 64 && v.e.cut == 0, "rows of %d, %zu are cut", v.e.T, v.e.cut);
        losses_alone(&v.m, &made, loss, length, label);
        memset(v.x, -1, sizeof v.x);
        check(evaluation_run(&v) == WORK_DONE, "%s", err);
        for (size_t r = 0; r < v.e.rows; r++) {
            worst = fmax(worst, relative_error(v.e.loss[r], loss[r], 1));
            check(v.e.length[r] == length[r], "row %zu", r);
        }
        check(worst < 2e-6, "%s: losses are off by %.1e", flags[f], worst);
        check(v.x[255] == 0 && v.x[256] == -1, "the first pass did not have four rows");
        evaluation_close(&v);
    }
}

/* A signal ends an evaluation between two batches. */
static void test_signal(void) {
    static Evaluation v;
    sigset_t set;
    int number;
    make_random(&made, "random.bin");
    evaluation_open(&v, "--preset tiny", SEQ, 3);
    hold_signals(1);
    kill(getpid(), SIGTERM);
    check(evaluation_run(&v) == WORK_STOPPED && take_loss(&v.m) == 0, "a signal");
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigwait(&set, &number);
    hold_signals(0);
    check(evaluation_run(&v) == WORK_DONE, "after the signal: %s", err);
    evaluation_close(&v);
}

/* ---------------------------------------------------------------------------------------------- */
/* bits per byte */

#define BPE "dev/test/fixtures/bpe/"

static void test_token_bytes(void) {
    Tokenizer t;
    TokenBytes b;
    if (tokenizer_load(&t, BPE "encoder.json", BPE "vocab.bpe", err)) die("%s", err);
    TokenizerId own = tokenizer_id(&t), other = {TOKENIZER_BPE, 5}, gpt2 = {TOKENIZER_GPT2, 0};
    TokenizerId bytes = {TOKENIZER_BYTES, 0};
    check(!token_bytes_load(&b, own, BPE "encoder.json", BPE "vocab.bpe", err) && b.known, "%s",
          err);
    int64_t sum = 0;
    for (int i = 0; i < t.vocab; i++) {
        size_t n;
        tokenizer_decode(&t, i, &n);
        if (i == t.eot) n = 0;
        sum += (int64_t)n;
        check(token_bytes_of(&b, &i, 1) == (int64_t)n, "token %d has %d bytes, not %zu", i,
              (int)token_bytes_of(&b, &i, 1), n);
    }
    check(t.eot >= 0 && sum > t.vocab, "%d, %lld bytes", t.eot, (long long)sum);
    const int targets[4] = {-1, t.vocab, 3, 70000};
    check(token_bytes_of(&b, targets, 4) == 1, "a target that is no token counts bytes");
    token_bytes_free(&b);

    check(!token_bytes_load(&b, bytes, "nowhere", "nowhere", err) && b.known, "%s", err);
    const int text[3] = {'a', -1, 255};
    check(token_bytes_of(&b, text, 3) == 2, "a text");
    token_bytes_free(&b);
    check(token_bytes_load(&b, other, BPE "encoder.json", BPE "vocab.bpe", err) == -1 && !b.known &&
              strstr(err, "bpe 0000000000000005") && strstr(err, "--encoder"),
          "another vocabulary: %s", err);
    check(token_bytes_load(&b, gpt2, BPE "encoder.json", BPE "vocab.bpe", err) == -1 && !b.known,
          "GPT-2's tokens by another vocabulary: %s", err);
    check(token_bytes_load(&b, own, "nowhere.json", BPE "vocab.bpe", err) == -1 && !b.known &&
              strstr(err, "nowhere.json") && strstr(err, "gpt2_bpe.sh"),
          "no vocabulary: %s", err);
    tokenizer_free(&t);
}

/* Bits per byte of a validation over tokens: the loss of all targets over the bytes of their text,
   which <|endoftext|> has none of. */
static void test_bits_per_byte(void) {
    enum { TOKENS = 61, T = 8, B = 2 };
    Tokenizer t;
    TokenBytes texts, none;
    uint16_t tokens[TOKENS];
    Model m;
    Data val;
    Validation found;
    int x[T * B], y[T * B];
    if (tokenizer_load(&t, BPE "encoder.json", BPE "vocab.bpe", err)) die("%s", err);
    size_t bytes = 0;
    for (int i = 0; i < TOKENS; i++) {
        size_t n;
        tokens[i] = (uint16_t)(i % 20 == 7 ? t.eot : (int)draw_index((size_t)t.vocab));
        tokenizer_decode(&t, tokens[i], &n);
        if (i && tokens[i] != t.eot) bytes += n;
    }
    Config c =
        config_of("--layers 1 --width 16 --heads 2 --seq-len 8 --batch-size 2 --vocab 800", "");
    create(&m, &c);
    randomise(&m);
    if (data_write_shard_of(tokenizer_id(&t), in_folder("val.bin"), tokens, TOKENS, err) ||
        data_open(&val, in_folder("val.bin"), DATA_ALL, DATA_SEQUENTIAL, 0, T, 0, err) ||
        token_bytes_load(&texts, val.tokenizer, BPE "encoder.json", BPE "vocab.bpe", err))
        die("%s", err);
    check(validate(&m, &val, &texts, 0, x, y, NULL, &found, err) == WORK_DONE, "%s", err);
    double bits = found.loss * (TOKENS - 1) / log(2) / (double)bytes;
    check(found.loss > 1 && relative_error(found.bits_per_byte, bits, 1e-9) < 1e-12,
          "%.9g bits per byte, not %.9g", found.bits_per_byte, bits);
    memset(&none, 0, sizeof none);
    check(validate(&m, &val, &none, 0, x, y, NULL, &found, err) == WORK_DONE &&
              isnan(found.bits_per_byte) && relative_error(found.loss, bits, 1e-9) > 1e-3,
          "no vocabulary: %g bits per byte", found.bits_per_byte);
    token_bytes_free(&texts);
    data_close(&val);
    model_free(&m);
    tokenizer_free(&t);
    release();
}

static const Test tests[] = {TEST(open),        TEST(refusals),     TEST(lengths),
                             TEST(tag),         TEST(changed_file), TEST(choice),
                             TEST(scores),      TEST(short_rows),   TEST(signal),
                             TEST(token_bytes), TEST(bits_per_byte)};

int main(int argc, char **argv) {
    static Config machine;
    machine.threads = 1;
    if (device_setup(&machine, NULL, err)) die("%s", err);
    folder_make("cm_test_eval");
    check_run(tests, COUNT_OF(tests), argc, argv);
    folder_remove();
    return check_done();
}
