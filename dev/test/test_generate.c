/*
Generation: decoding with a cache against the full forward pass for every kind of model, the window
that slides when the context is full, the sampler, and bytes on their way to a terminal.
*/
#define CM_NO_GENERATE_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* not every function is tested here */
#include "generate.c"
#pragma GCC diagnostic pop

#include "folder.h"
#include "values.h"

/* ---------------------------------------------------------------------------------------------- */
/* decode */

/* A model of these flags with every tensor random, gains and biases too. c gets its config. */
static int make_model(Model *m, Config *c, const char *flags) {
    char err[ERR_LEN];
    static Plan none;
    memset(c, 0, sizeof *c);
    flags_defaults(config_flags, CONFIG_FLAGS, c);
    c->vocab = 77; /* not a multiple of 64, so that there is padding */
    c->batch_size = 1;
    if (config_apply(c, NULL, "--layers 3 --width 32 --heads 4 --seq-len 16", err) ||
        config_apply(c, NULL, flags, err) || config_resolve(c, err))
        return check(0, "%s: %s", flags, err);
    Registry r = registry_build(c);
    if (model_create(m, c, &r, &none, 0, err)) return check(0, "%s: %s", flags, err);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &m->p.r.t[id];
        double mean = t->init_mean, std = t->rows > 1 ? 1 / sqrt(t->cols) : 0.2;
        for (size_t i = 0; i < t->size; i++)
            m->p.param[t->slot[SLOT_PARAM].at + i] =
                (floatM)(mean + std * rng_normal(5, (uint64_t)id, i));
    }
    return 1;
}

/* Logits (T,V) of every position by the trainer's forward pass, for which the model has no cache
   yet. */
static void full_logits(Model *m, const int *tokens, floatX *logits) {
    Shape s = m->s;
    device_send(m->a.tokens, tokens, (size_t)s.N * sizeof(int));
    model_forward(m, s);
    for (int t = 0; t < s.T; t++) {
        head_forward(m, t, 1);
        softcap_forward(m->a.logits, 1, s.V, s.Vp, m->c->softcap);
        memcpy(logits + (size_t)t * s.V, m->a.logits, (size_t)s.V * sizeof(floatX));
    }
}

/* How far logits of the cache's path may be from those of the full pass: both sum in float, in
   other orders, which costs some 1e-6 through three blocks. */
#define DECODE_BOUND 1e-5

static double logits_error(const floatX *a, const floatX *b, int V) {
    double d = 0, s = 0;
    for (int v = 0; v < V; v++) {
        d += (double)(a[v] - b[v]) * (double)(a[v] - b[v]);
        s += (double)b[v] * (double)b[v];
    }
    double r = sqrt(d / s);
    return r == r ? r : INFINITY;
}

static void test_decode(const char *flags) {
    enum { T = 16, V = 77 };
    static const int starts[] = {1, 2, 9, 16};
    char err[ERR_LEN];
    static floatX expected[T * V];
    int tokens[T];
    Config c;
    Model m;
    if (!make_model(&m, &c, flags)) return;
    for (int t = 0; t < T; t++) tokens[t] = (int)(rng_bits(1, 2, (uint64_t)t) % V);
    full_logits(&m, tokens, expected);
    double differs = logits_error(expected, expected + V, V);
    check(differs > 0.01, "%s: logits of two positions are equal", flags);
    if (cache_create(&m, err)) {
        check(0, "%s", err);
        return;
    }
    for (int i = 0; i < 4; i++) {
        int n = starts[i];
        read_tokens(&m, tokens, n, 0);
        double worst = logits_error(m.a.logits, expected + (n - 1) * V, V);
        check(worst < DECODE_BOUND, "%s: prefill of %d tokens is off by %g", flags, n, worst);
        for (int t = n; t < T; t++) {
            read_tokens(&m, &tokens[t], 1, t);
            worst = fmax(worst, logits_error(m.a.logits, expected + t * V, V));
        }
        check(worst < DECODE_BOUND, "%s: decoding after %d tokens is off by %g", flags, n, worst);
    }
    model_free(&m);
}

/* Tokens one after the other for three contexts: after each the logits are those of a fresh pass
   over the tokens that ought to be in sight. */
static void test_slide(int T, const char *flags) {
    enum { STEPS = 50 };
    char text[256], err[ERR_LEN];
    int all[STEPS];
    Config c, fresh_config;
    Model m, fresh;
    Context x;
    snprintf(text, sizeof text, "--seq-len %d %s", T, flags);
    if (!make_model(&m, &c, text) || !make_model(&fresh, &fresh_config, text)) return;
    if (context_create(&x, &m, err)) {
        check(0, "%s", err);
        return;
    }
    for (int i = 0; i < STEPS; i++) all[i] = (int)(rng_bits(3, 4, (uint64_t)i) % 77);
    int first = 0, slides = 0;
    double worst = 0;
    context_start(&x, all, 1);
    for (int i = 1; i < STEPS; i++) {
        context_append(&x, all[i]);
        if (i - first >= T) {
            first = i + 1 - (T / 2 > 1 ? T / 2 : 1);
            slides++;
        }
        int n = i + 1 - first;
        if (!check(x.count == n && !memcmp(x.tokens, all + first, (size_t)n * sizeof(int)),
                   "T %d, token %d: the window has %d tokens, not %d", T, i, x.count, n))
            break;
        read_tokens(&fresh, all + first, n, 0);
        worst = fmax(worst, logits_error(m.a.logits, fresh.a.logits, 77));
    }
    check(worst < DECODE_BOUND, "T %d %s: logits off by %g", T, flags, worst);
    check(slides >= 2, "T %d: only %d slides", T, slides);
    context_free(&x);
    model_free(&m);
    model_free(&fresh);
}

/* ---------------------------------------------------------------------------------------------- */
/* sampler */

static int draw(Sampler s, const floatM *z, int V, int position) {
    static SamplerEntry scratch[1024];
    char err[ERR_LEN];
    int token = -1;
    return sampler_next(&s, z, V, 7, (uint64_t)position, scratch, &token, err) ? -1 : token;
}

static void test_sampler_greedy(void) {
    const floatM z[] = {1, 5, -2, 5, 4.5f}, flat[] = {0, 0, 0};
    Sampler greedy = {0, 0, 1, 1}, k1 = {2, 1, 1, 1}, p0 = {2, 0, 0, 1}, p_tiny = {1, 0, 1e-9, 1};
    Sampler both = {3, 4, 1e-9, 1}, cold = {1e-300, 0, 1, 1};
    int wrong = 0, k = 0, nucleus = 0, combined = 0, low = 0;
    for (int i = 0; i < 100; i++) {
        wrong += draw(greedy, z, 5, i) != 1;
        k += draw(k1, z, 5, i) != 1;
        nucleus += draw(p0, z, 5, i) != 1 || draw(p_tiny, z, 5, i) != 1;
        combined += draw(both, z, 5, i) != 1;
        low += draw(cold, z + 2, 3, i) != 1;
    }
    check(wrong == 0, "greedy is not the first of the largest logits");
    check(k == 0, "top-k 1 is not the first of the largest logits");
    check(nucleus == 0, "a top-p near 0 is not the first of the largest logits");
    check(combined == 0, "top-k and a tiny top-p are not the first of the largest logits");
    check(low == 0, "a temperature near 0 is not greedy");
    check(draw(greedy, flat, 3, 0) == 0, "of equal logits the first is not taken");
}

/* Which tokens 4000 draws bring, as bits. */
static unsigned seen(Sampler s, const floatM *z, int V) {
    unsigned bits = 0;
    for (int i = 0; i < 4000; i++) bits |= 1u << draw(s, z, V, i);
    return bits;
}

static void test_sampler_sets(void) {
    /* probabilities .4 .1 .2 .2 .1 */
    const floatM z[] = {(floatM)log(4), 0, (floatM)log(2), (floatM)log(2), 0};
    const struct {
        int k;
        double p;
        unsigned bits;
    } cases[] = {
        {0, 1, 31},   {2, 1, 5},   {3, 1, 13}, {4, 1, 15},   {5, 1, 31},
        {100, 1, 31}, {0, .3, 1},  {0, .5, 5}, {0, .7, 13},  {0, .85, 15},
        {0, .95, 31}, {2, .6, 1}, /* of two, the first has 2/3 */
        {2, .7, 5},   {3, .49, 1}, {3, .6, 5}, {5, .85, 15}, {100, .7, 13},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Sampler s = {1, cases[i].k, cases[i].p, 3};
        unsigned bits = seen(s, z, 5);
        check(bits == cases[i].bits, "top-k %d, top-p %g: tokens %x, not %x", cases[i].k,
              cases[i].p, bits, cases[i].bits);
    }
    const floatM holes[] = {-INFINITY, 1, -INFINITY, 1, -1e30f};
    Sampler plain = {1, 0, 1, 3}, hot = {INFINITY, 0, 1, 3}, k4 = {1, 4, 1, 3}, p9 = {1, 0, .9, 3};
    check(seen(plain, holes, 5) == 10, "tokens ruled out are drawn");
    check(seen(hot, holes, 5) == 26,
          "an infinite temperature is not even among the tokens allowed");
    check(seen(k4, holes, 5) == 10, "top-k draws what is ruled out");
    check(seen(p9, holes, 5) == 10, "top-p draws what is ruled out");
}

/* Pearson's statistic of n draws against the probabilities p. */
static double chi_square(Sampler s, const floatM *z, const double *p, int V, int n) {
    int counts[16] = {0};
    double x = 0;
    for (int i = 0; i < n; i++) counts[draw(s, z, V, i)]++;
    for (int v = 0; v < V; v++) {
        if (p[v] <= 0) x += counts[v] ? INFINITY : 0;
        else x += (counts[v] - n * p[v]) * (counts[v] - n * p[v]) / (n * p[v]);
    }
    return x;
}

static void test_sampler_distribution(void) {
    enum { V = 8, DRAWS = 20000 };
    const double temperatures[] = {0.5, 1, 2}, bound = 24.32; /* 7 degrees of freedom, 1 in 1000 */
    floatM z[V];
    double p[V], k3[V], sum;
    for (int v = 0; v < V; v++) z[v] = (floatM)(v % 5 - 0.3 * v + 100);
    for (int i = 0; i < 3; i++) {
        sum = 0;
        for (int v = 0; v < V; v++) sum += p[v] = exp((double)z[v] / temperatures[i]);
        for (int v = 0; v < V; v++) p[v] /= sum;
        Sampler s = {temperatures[i], 0, 1, 11}, all = {temperatures[i], V, 1, 12};
        double x = chi_square(s, z, p, V, DRAWS), y = chi_square(all, z, p, V, DRAWS);
        check(x < bound, "temperature %g: chi-square %g", temperatures[i], x);
        check(y < bound, "temperature %g, all by top-k: chi-square %g", temperatures[i], y);
    }
    /* top-k 3 of these are tokens 4, 3, 2 and keep their proportions */
    sum = 0;
    for (int v = 0; v < V; v++) sum += k3[v] = v >= 2 && v <= 4 ? exp((double)z[v] - 100) : 0;
    for (int v = 0; v < V; v++) k3[v] /= sum;
    Sampler s3 = {1, 3, 1, 13};
    double x = chi_square(s3, z, k3, V, DRAWS);
    check(x < 13.82, "top-k 3: chi-square %g", x); /* 2 degrees of freedom */
}

static void test_sampler_draws(void) {
    enum { V = 1000 };
    static floatM z[V];
    static SamplerEntry entries[V];
    Sampler s = {1, 0, 1, 1}, other = {1, 0, 1, 2};
    int same = 0, equal = 0;
    for (int v = 0; v < V; v++) z[v] = (floatM)rng_normal(9, 9, (uint64_t)v);
    for (int i = 0; i < 200; i++) {
        equal += draw(s, z, V, i) == draw(s, z, V, i);
        same += draw(s, z, V, i) == draw(other, z, V, i);
    }
    check(equal == 200, "the same draw gives another token");
    check(same < 20, "two seeds agree on %d of 200 tokens", same);
    /* the heap brings the entries in order, equal weights by their number */
    for (int v = 0; v < V; v++) {
        entries[v].weight = (double)(rng_bits(1, 1, (uint64_t)v) % 50);
        entries[v].token = v;
    }
    Sampler sorted = {1, V, 1, 1};
    int n = sampler_truncate(&sorted, entries, V), wrong = 0;
    for (int i = 0; i + 1 < V; i++) wrong += !sampler_before(&entries[i + 1], &entries[i]);
    check(n == V && wrong == 0, "%d of %d entries are out of order", wrong, n);
}

static void test_sampler_errors(void) {
    const floatM nan_z[] = {1, NAN, 2}, inf_z[] = {1, 2, INFINITY}, none[] = {-INFINITY, -INFINITY};
    const floatM fine[] = {1, 2, 3};
    const struct {
        const floatM *z;
        int V;
        Sampler s;
        const char *names;
    } cases[] = {
        {nan_z, 3, {1, 0, 1, 1}, "token 1"},      {nan_z, 3, {0, 0, 1, 1}, "token 1"},
        {inf_z, 3, {1, 0, 1, 1}, "token 2"},      {none, 2, {1, 0, 1, 1}, "none of the 2"},
        {fine, 0, {1, 0, 1, 1}, "none"},          {fine, 3, {-1, 0, 1, 1}, "temperature"},
        {fine, 3, {NAN, 0, 1, 1}, "temperature"}, {fine, 3, {1, -1, 1, 1}, "top-k"},
        {fine, 3, {1, 0, 1.5, 1}, "top-p"},       {fine, 3, {1, 0, NAN, 1}, "top-p"},
    };
    SamplerEntry scratch[3];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char err[ERR_LEN] = "";
        int token = -7;
        int status = sampler_next(&cases[i].s, cases[i].z, cases[i].V, 0, 0, scratch, &token, err);
        check(status == -1 && strstr(err, cases[i].names),
              "case %d: status %d, \"%s\" lacks \"%s\"", (int)i, status, err, cases[i].names);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* text */

/* What comes out of the bytes given one by one; `held` is what the last of them left waiting. */
static void put_all(const char *bytes, size_t n, int terminal, char *out, size_t size, int *held) {
    char *buffer = NULL;
    size_t length = 0;
    FILE *f = open_memstream(&buffer, &length);
    Text text = {f, terminal, 0, {0}};
    for (size_t i = 0; i < n; i++) text_put(&text, bytes + i, 1);
    *held = text.held;
    text_flush(&text, 1);
    fclose(f);
    snprintf(out, size, "%s", buffer);
    free(buffer);
}

static void test_text(void) {
    const struct {
        const char *in, *shown;
        int held;
    } cases[] = {
        {"plain\n\ttext", "plain\n\ttext", 0},
        {"a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z", "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z", 0},
        {"a\xE2\x82", "a\xEF\xBF\xBD\xEF\xBF\xBD", 2},
        {"a\xF0\x9F\x98", "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD", 3},
        {"\xE2(\xA1", "\xEF\xBF\xBD(\xEF\xBF\xBD", 0},
        {"\xC3\xC3\xA9", "\xEF\xBF\xBD\xC3\xA9", 0},
        {"\xFF\xFE!", "\xEF\xBF\xBD\xEF\xBF\xBD!", 0},
        {"\033[2J\r\x7F", "\xEF\xBF\xBD[2J\xEF\xBF\xBD\xEF\xBF\xBD", 0},
        {"\xC2\x9B", "\xEF\xBF\xBD", 0}, /* a control character of two bytes */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[128];
        int held;
        size_t n = strlen(cases[i].in);
        put_all(cases[i].in, n, 1, out, sizeof out, &held);
        check(!strcmp(out, cases[i].shown), "terminal, case %d: \"%s\"", (int)i, out);
        check(held == cases[i].held, "case %d: %d bytes wait, not %d", (int)i, held, cases[i].held);
        put_all(cases[i].in, n, 0, out, sizeof out, &held);
        check(!strcmp(out, cases[i].in), "file, case %d: \"%s\"", (int)i, out);
    }
}

static void test_prompt(void) {
    char err[ERR_LEN] = "";
    Tokenizer t;
    Config c;
    TokenList list = {NULL, 0, 0};
    memset(&c, 0, sizeof c);
    c.seq_len = 8;
    c.vocab = 100;
    if (tokenizer_bytes(&t, err)) {
        check(0, "%s", err);
        return;
    }
    check(!encode_prompt(&t, &c, "", 0, &list, err) && list.count == 1 && list.ids[0] == '\n',
          "an empty prompt is not a line end");
    list.count = 0;
    check(!encode_prompt(&t, &c, "ABCDEFGH", 8, &list, err) && list.count == 8, "8 tokens: %s",
          err);
    list.count = 0;
    check(encode_prompt(&t, &c, "ABCDEFGHI", 9, &list, err) && strstr(err, "9 tokens") &&
              strstr(err, "is 8"),
          "too long: \"%s\"", err);
    list.count = 0;
    check(encode_prompt(&t, &c, "ABz", 3, &list, err) && strstr(err, "token 122 at position 2"),
          "outside the vocabulary: \"%s\"", err);
    free(list.ids);
    tokenizer_free(&t);
}

/* Opens a checkpoint that has nothing but these header lines. */
static int open_header(Ckpt *c, const char *header) {
    char err[ERR_LEN], path[FILE_PATH_SIZE];
    CkptWriter w;
    file_path(path, "%s", in_folder("header.ckpt"));
    if (ckpt_begin(&w, path, header, err) || ckpt_commit(&w, err) || ckpt_open(c, path, err))
        return check(0, "%s", err);
    return 1;
}

/* A checkpoint with a right checksum and a vocabulary that makes no sense. */
static void test_header(void) {
    static const struct {
        const char *header;
        int good;
    } cases[] = {
        {"vocab=-1\n", 0}, {"vocab=0\n", 0}, {"vocab=16777217\n", 0}, {"vocab=4294967552\n", 0},
        {"vocab=x\n", 0},  {"step=1\n", 0},  {"vocab=256\n", 1},      {"vocab=77\n", 1},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char err[ERR_LEN] = "";
        Config c;
        Ckpt ckpt;
        if (!open_header(&ckpt, cases[i].header)) continue;
        int status = load_config(&c, &ckpt, 1, err);
        check((status == 0) == cases[i].good && (!status || strstr(err, "vocab")), "%s: %d, %s",
              cases[i].header, status, err);
        ckpt_close(&ckpt);
    }
}

/* A header whose sizes are each allowed, and whose products would not fit 64 bits: with 2^16
   layers of 2^24 x 2^24 the count of elements would wrap to 0, and a file without data would fit
   it. Layers are few enough to be planned at once. */
static void test_header_sizes(void) {
    static const struct {
        const char *header, *message;
    } cases[] = {
        {"flag.layers=65536\nflag.width=16777216\nflag.heads=16384\n", "too large"},
        {"flag.layers=65536\nflag.width=20480\nflag.heads=160\n", "too large"},
        {"flag.layers=65537\nflag.width=8\n", "--layers 65537"},
        {"flag.layers=64\nflag.width=16777216\nflag.heads=16384\n", "too large"},
        {"flag.layers=65536\nflag.width=8\nflag.seq-len=16777216\n", "--seq-len"},
        {"flag.ff-width=16777216\nflag.width=16777216\nflag.heads=16384\n", "too large"},
        {"flag.layers=1000\nflag.width=20480\nflag.heads=160\n", NULL}, /* 5e12 parameters */
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char err[ERR_LEN] = "", header[256];
        Config c;
        Ckpt ckpt;
        snprintf(header, sizeof header, "vocab=256\n%s", cases[i].header);
        if (!open_header(&ckpt, header)) continue;
        int status = load_config(&c, &ckpt, 1, err);
        if (cases[i].message) {
            check(status == -1 && strstr(err, cases[i].message), "%s: %s", header, err);
        } else if (check(status == 0, "%s: %s", header, err)) {
            const Registry r = registry_build(&c);
            double rows = 3.0 * c.width + c.width + 8.0 * c.width;
            double expected = c.layers * (rows * c.width + 2.0 * c.width);
            check(fabs((double)r.count - expected) < 1e-5 * expected, "%zu parameters, not %g",
                  r.count, expected);
        }
        ckpt_close(&ckpt);
    }
}

/* The tokenizer that a checkpoint names, and the one that is taken where it names none. */
static void test_tokenizer(void) {
    static const struct {
        const char *header, *data;
        int vocab;
        const char *id;
    } cases[] = {
        {"tokenizer=bytes\n", "a.bin", 50304, "bytes"},
        {"tokenizer=gpt2\n", "a.txt", 100, "gpt2"},
        {"tokenizer=bpe 00000000000000ff\n", "a.txt", 100, "bpe 00000000000000ff"},
        {"step=1\n", "a.txt", 50304, "bytes"},
        {"step=1\n", "a.bin", 256, "bytes"},
        {"step=1\n", "a.bin", 257, "gpt2"},
        {"tokenizer=words\n", "a.txt", 256, NULL},
        {"tokenizer=\n", "a.txt", 256, NULL},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char err[ERR_LEN] = "", text[TOKENIZER_ID_SIZE];
        Config c;
        Ckpt ckpt;
        TokenizerId id = {TOKENIZER_BYTES, 0};
        memset(&c, 0, sizeof c);
        snprintf(c.data, sizeof c.data, "%s", cases[i].data);
        c.vocab = cases[i].vocab;
        if (!open_header(&ckpt, cases[i].header)) continue;
        int status = load_tokenizer_id(&id, &ckpt, &c, err);
        check((status == 0) == (cases[i].id != NULL), "case %d: %s", i, err);
        check(status || !strcmp(tokenizer_id_text(id, text), cases[i].id), "case %d: \"%s\"", i,
              text);
        ckpt_close(&ckpt);
    }
}

/* The vocabulary that is loaded must be the model's. */
static void test_vocabulary(void) {
    static Options o;
    char err[ERR_LEN] = "";
    Tokenizer t;
    TokenizerId bytes = {TOKENIZER_BYTES, 0}, own = {TOKENIZER_BPE, 0}, other = {TOKENIZER_BPE, 5};
    TokenizerId gpt2 = {TOKENIZER_GPT2, 0},
                published = {TOKENIZER_GPT2, TOKENIZER_GPT2_FINGERPRINT};
    snprintf(o.encoder, sizeof o.encoder, "dev/test/fixtures/bpe/encoder.json");
    snprintf(o.bpe, sizeof o.bpe, "dev/test/fixtures/bpe/vocab.bpe");
    check(!load_tokenizer(&t, &o, bytes, err) && t.vocab == 256, "bytes: %s", err);
    tokenizer_free(&t);
    check(!load_tokenizer(&t, &o, gpt2, err) && t.vocab == 757, "nothing is known: %s", err);
    own.fingerprint = tokenizer_fingerprint(&t);
    tokenizer_free(&t);
    check(!load_tokenizer(&t, &o, own, err) && t.vocab == 757, "the model's own: %s", err);
    tokenizer_free(&t);
    check(load_tokenizer(&t, &o, other, err) == -1 && strstr(err, "bpe 0000000000000005") &&
              strstr(err, o.encoder) && strstr(err, "--encoder"),
          "another one: %s", err);
    check(load_tokenizer(&t, &o, published, err) == -1 && strstr(err, "gpt2 "), "GPT-2's: %s", err);
    snprintf(o.bpe, sizeof o.bpe, "nowhere.bpe");
    check(load_tokenizer(&t, &o, own, err) == -1 && strstr(err, "nowhere.bpe"), "no file: %s", err);
}

static void set_up(int threads) {
    char err[ERR_LEN];
    static Config machine;
    machine.threads = threads;
    if (device_setup(&machine, NULL, err)) die("%s", err);
}

static void test_decoding(void) {
    set_up(2);
    test_decode("");
    set_up(1); /* the models below are too small to gain from threads */
    test_decode("--preset tiny --norm layernorm --pos learned --qk-norm off --act gelu --biases on "
                "--tied on --embed-norm off --softcap 0");
    test_decode("--act swiglu --tied on --softcap 0 --embed-norm off --kv-heads 2");
    test_decode("--pos rope-half --head-bias on --biases on --kv-heads 1 --attn-scale 0.12");
    test_decode("--pos none --qk-norm off --norm layernorm --embed-norm on --head-bias on");
    test_decode("--pos learned --embed-norm on --head-dim 12 --ff-width 20 --layers 1");
    test_decode("--pos rope --qk-norm off --rope-base 100 --kv-heads 2 --head-dim 16 --biases on");
    test_decode("--lora-rank 3 --lora-on all --tied on --biases on --act swiglu --kv-heads 2");
    test_decode("--low-rank 3 --lora-on all --lora-split off --biases on --pos learned");
}

/* Every combination of norm, positions and activation, with biases in every second. */
static void test_decoding_values(void) {
    char flags[128];
    int i = 0;
    for (int norm = 0; norm < COUNT_OF(all_norms); norm++)
        for (int pos = 0; pos < COUNT_OF(all_positions); pos++)
            for (int act = 0; act < COUNT_OF(all_acts); act++, i++) {
                snprintf(flags, sizeof flags, "--norm %s --pos %s --act %s --biases %s",
                         all_norms[norm], all_positions[pos], all_acts[act], i % 2 ? "on" : "off");
                test_decode(flags);
            }
}

static void test_sliding(void) {
    test_slide(8, "");
    test_slide(7, "--pos learned --norm layernorm");
    test_slide(2, "--pos rope-half");
    test_slide(1, "--pos none");
}

static const Test tests[] = {
    TEST(decoding),       TEST(decoding_values), TEST(sliding),
    TEST(sampler_greedy), TEST(sampler_sets),    TEST(sampler_distribution),
    TEST(sampler_draws),  TEST(sampler_errors),  TEST(text),
    TEST(prompt),         TEST(header),          TEST(header_sizes),
    TEST(tokenizer),      TEST(vocabulary)};

int main(int argc, char **argv) {
    folder_make("cm_test_generate");
    set_up(1);
    check_run(tests, COUNT_OF(tests), argc, argv);
    folder_remove();
    return check_done();
}
