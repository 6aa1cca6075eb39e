/*
Samples text from a checkpoint of train_gpt:

    ./generate --run shakespeare --prompt "ROMEO:" --tokens 300

The text goes to stdout, character by character, and nothing else does; what there is to say about it
goes to stderr. The model is the one in train_gpt.c. What is added here:

    decode       one token at a time, with the keys and values of those before it kept in a cache
    context      what happens when it is full
    text         tokens to characters that a terminal can show
    loading      the checkpoint, the tokenizer, the prompt
*/
#define CM_NO_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* the trainer's loop is not needed here */
#include "train_gpt.c"
#pragma GCC diagnostic pop
#include "llmc/sampler.h"
#include "llmc/tokenizer.h"

/* ---------------------------------------------------------------------------------------------- */
/* decode */

/* Keys and values of the tokens so far, (L,T,NKV HS) each, normed and rotated. */
typedef struct {
    floatX *k, *v;
} Cache;

static int cache_create(Cache *cache, const Config *c, char *err) {
    size_t bytes = (size_t)c->layers * c->seq_len * c->kv_heads * c->head_dim * sizeof(floatX);
    cache->k = (floatX *)device_alloc(bytes);
    cache->v = (floatX *)device_alloc(bytes);
    if (cache->k && cache->v) return 0;
    return fail(err, "out of memory: keys and values of the context take %.1f MB", 2 * bytes / 1e6);
}

static void cache_free(Cache *cache) {
    device_free(cache->k);
    device_free(cache->v);
    memset(cache, 0, sizeof *cache);
}

/* Takes the keys and values of layer l at positions t, t + 1, ... from the n rows of qkv. */
static void cache_store(Cache *cache, const Config *c, int l, int t, const floatX *qkv, int n) {
    size_t A = (size_t)c->heads * c->head_dim, KV = (size_t)c->kv_heads * c->head_dim;
    size_t at = ((size_t)l * c->seq_len + t) * KV, row = (A + 2 * KV) * sizeof(floatX);
    size_t bytes = KV * sizeof(floatX);
    device_copy_rows(cache->k + at, bytes, qkv + A, row, bytes, (size_t)n);
    device_copy_rows(cache->v + at, bytes, qkv + A + KV, row, bytes, (size_t)n);
}

/* The logits of the token after row n of a.normf, capped, into the first row of a.logits. */
static void next_logits(Model *m, int n) {
    forward_logits(m, n, 1);
    softcap_forward(m->a.logits, 1, m->c.vocab, round_up(m->c.vocab, 64), m->c.softcap);
}

/* Reads n tokens into an empty context by one forward pass, which is a pass over a shorter sequence:
   the activations have room for seq_len tokens and are laid out anew for these. */
static void prefill(Model *m, Cache *cache, const int *tokens, int n) {
    const Config *c = &m->c;
    size_t QKV = (size_t)(c->heads + 2 * c->kv_heads) * c->head_dim;
    m->T = n;
    forward(m, tokens, 1);
    for (int l = 0; l < c->layers; l++) cache_store(cache, c, l, 0, m->a.qkv + l * n * QKV, n);
    next_logits(m, n - 1);
    m->T = c->seq_len;
}

/* Reads the token at position t, when the cache holds those before it: forward, for one row. */
static void decode(Model *m, Cache *cache, int token, int t) {
    const Config *c = &m->c;
    Acts *a = &m->a;
    int C = c->width, NH = c->heads, NKV = c->kv_heads, HS = c->head_dim, A = NH * HS;
    int QKV = (NH + 2 * NKV) * HS, F = c->ff_width, H = c->act == ACT_SWIGLU ? 2 * F : F;
    const floatX *wpe = weight(m, T_WPE, 0);
    device_upload(a->tokens, &token, sizeof token);

    embed_forward(c->embed_norm ? a->embed : a->x, a->tokens, weight(m, T_WTE, 0),
                  wpe ? wpe + (size_t)t * C : NULL, 1, 1, C);
    if (c->embed_norm)
        norm_forward(a->x, a->mean0, a->rstd0, NULL, a->embed, NULL, master(m, T_NORM0_W, 0),
                     master(m, T_NORM0_B, 0), 1, C, c->norm, c->norm_eps);
    for (int l = 0; l < c->layers; l++) {
        size_t layer = (size_t)l * c->seq_len * NKV * HS;
        norm_forward(a->norm1, a->mean1, a->rstd1, a->x, l ? a->mid : a->x, l ? a->branch : NULL,
                     master(m, T_NORM1_W, l), master(m, T_NORM1_B, l), 1, C, c->norm, c->norm_eps);
        linear_forward(a->qkv, a->norm1, weight(m, T_WQKV, l), weight(m, T_BQKV, l), 1, C, QKV);
        qk_forward(a->qkv, a->qk_rstd, m->cosine, m->sine, 1, 1, t, NH, NKV, HS, c->qk_norm,
                   c->norm_eps);
        cache_store(cache, c, l, t, a->qkv, 1);
        attention_decode(a->att, a->qkv, cache->k + layer, cache->v + layer, t, NH, NKV, HS,
                         c->attn_scale);
        linear_forward(a->branch, a->att, weight(m, T_WO, l), weight(m, T_BO, l), 1, A, C);

        norm_forward(a->norm2, a->mean2, a->rstd2, a->mid, a->x, a->branch, master(m, T_NORM2_W, l),
                     master(m, T_NORM2_B, l), 1, C, c->norm, c->norm_eps);
        linear_forward(a->fc, a->norm2, weight(m, T_WFC, l), weight(m, T_BFC, l), 1, C, H);
        act_forward(a->act, a->fc, 1, F, c->act);
        linear_forward(a->branch, a->act, weight(m, T_WPROJ, l), weight(m, T_BPROJ, l), 1, F, C);
    }
    norm_forward(a->normf, a->meanf, a->rstdf, a->x, a->mid, a->branch, master(m, T_NORMF_W, 0),
                 master(m, T_NORMF_B, 0), 1, C, c->norm, c->norm_eps);
    next_logits(m, 0);
}

/* ---------------------------------------------------------------------------------------------- */
/* context */

/* The tokens the model sees, at positions 0..count-1. It was trained on seq_len positions and knows no
   others. So when they are used up, the later half of the tokens moves to the front and is read again:
   half a context of past is left, and the cost is one forward pass every seq_len / 2 tokens. */
typedef struct {
    Model *m;
    Cache cache;
    int *tokens, count;
} Context;

static int context_create(Context *x, Model *m, char *err) {
    memset(x, 0, sizeof *x);
    x->m = m;
    x->tokens = (int *)malloc((size_t)m->c.seq_len * sizeof(int));
    if (!x->tokens) return fail(err, "out of memory: a context of %d tokens", m->c.seq_len);
    return cache_create(&x->cache, &m->c, err);
}

static void context_free(Context *x) {
    cache_free(&x->cache);
    free(x->tokens);
    memset(x, 0, sizeof *x);
}

/* Starts over with 1 <= n <= seq_len tokens. */
static void context_start(Context *x, const int *tokens, int n) {
    memcpy(x->tokens, tokens, (size_t)n * sizeof(int));
    x->count = n;
    prefill(x->m, &x->cache, x->tokens, n);
}

static void context_append(Context *x, int token) {
    int T = x->m->c.seq_len;
    if (x->count < T) {
        x->tokens[x->count++] = token;
        decode(x->m, &x->cache, token, x->count - 1);
        return;
    }
    int keep = max_int(1, T / 2); /* the new token among them */
    memmove(x->tokens, x->tokens + T - (keep - 1), (size_t)(keep - 1) * sizeof(int));
    x->tokens[keep - 1] = token;
    x->count = keep;
    prefill(x->m, &x->cache, x->tokens, keep);
}

/* ---------------------------------------------------------------------------------------------- */
/* text */

/* Bytes on their way out. A token may end inside a character, so up to three bytes wait for the rest
   of theirs. A file or pipe gets every byte as it is; for a terminal, what is no text (invalid UTF-8,
   control characters) becomes U+FFFD, because an untrained model writes escape sequences too. */
typedef struct {
    FILE *out;
    int terminal, held;
    unsigned char bytes[4];
} Text;

static void text_write(Text *text, int n, int is_text) {
    if (is_text || !text->terminal) fwrite(text->bytes, 1, (size_t)n, text->out);
    else fputs("\xEF\xBF\xBD", text->out);
    text->held -= n;
    memmove(text->bytes, text->bytes + n, (size_t)text->held);
}

/* 1 if the n bytes at s, no valid character yet, may be the beginning of one. */
static int utf8_begins(const unsigned char *s, int n) {
    int length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n >= length) return 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    return 1;
}

/* Writes the characters that are complete; with `end`, all there is. */
static void text_flush(Text *text, int end) {
    while (text->held) {
        uint32_t code = 0;
        int n = (int)tokenizer_utf8(text->bytes, (size_t)text->held, &code);
        int control = (code < 32 && code != '\n' && code != '\t') || (code >= 127 && code < 160);
        if (n) text_write(text, n, !control);
        else if (!end && utf8_begins(text->bytes, text->held)) return;
        else text_write(text, 1, 0);
    }
}

static void text_put(Text *text, const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        text->bytes[text->held++] = (unsigned char)bytes[i];
        text_flush(text, 0);
    }
}

/* ---------------------------------------------------------------------------------------------- */
/* loading */

typedef struct {
    char run[FLAG_STRING_SIZE], runs_dir[FLAG_STRING_SIZE], checkpoint[FLAG_STRING_SIZE];
    char prompt[FLAG_STRING_SIZE], prompt_file[FLAG_STRING_SIZE];
    int tokens, count, top_k, threads, stop_at_eot;
    int64_t seed;
    double temperature, top_p;
    char encoder[FLAG_STRING_SIZE], bpe[FLAG_STRING_SIZE];
} Options;

#define FIELD(FIELD) offsetof(Options, FIELD)
static const Flag option_flags[] = {
#define SECTION "Model"
    FLAG_TEXT("run", run, "tiny", "sample from the newest checkpoint of this run"),
    FLAG_TEXT("runs-dir", runs_dir, "runs", "folder of all runs"),
    FLAG_TEXT("checkpoint", checkpoint, "", "sample from this file instead of --run"),
    FLAG_TEXT(
        "encoder", encoder, "data/gpt2-bpe/encoder.json",
        "GPT-2's vocabulary, for models of more than 256 tokens; data/gpt2_bpe.sh fetches it"),
    FLAG_TEXT("bpe", bpe, "data/gpt2-bpe/vocab.bpe", "GPT-2's merges"),
    FLAG_INT("threads", threads, "0", 0, 4096,
             "CPU threads; 0: all cores, but one for a model of less than 10M parameters"),
#undef SECTION
#define SECTION "Text"
    FLAG_TEXT("prompt", prompt, "",
              "text to continue; without one, a new line or document is begun"),
    FLAG_TEXT("prompt-file", prompt_file, "",
              "file with the text to continue, for long ones; -: standard input"),
    FLAG_INT("tokens", tokens, "500", 0, 1e9, "tokens to generate for each sample"),
    FLAG_INT("count", count, "1", 1, 1e6, "samples of the same prompt"),
    FLAG_SWITCH("stop-at-eot", stop_at_eot,
                "end a sample where the model ends its document (<|endoftext|>)"),
#undef SECTION
#define SECTION "Sampling"
    FLAG_FLOAT("temperature", temperature, "0.8", 0, INFINITY,
               "divides the logits: below 1 likelier tokens gain; 0: always the most probable one"),
    FLAG_INT("top-k", top_k, "0", 0, 1e9, "keep the k most probable tokens; 0: off"),
    FLAG_FLOAT("top-p", top_p, "1", 0, 1,
               "keep the most probable tokens up to this probability; 1: off"),
    FLAG_LONG("seed", seed, "1", 0, 9e15, "of the random numbers: equal seeds give equal text"),
};
#undef SECTION
#undef FIELD
enum { OPTION_FLAGS = (int)(sizeof option_flags / sizeof option_flags[0]) };

/* Opens --checkpoint, or the newest whole one of --run; path gets its name. */
static int find_checkpoint(const Options *o, Ckpt *ckpt, char *path, char *err) {
    char dir[FILE_PATH_SIZE], folder[FILE_PATH_SIZE];
    if (o->checkpoint[0]) {
        file_path(path, "%s", o->checkpoint);
        return ckpt_open(ckpt, path, err);
    }
    if (log_check_name(o->run, err)) return -1;
    file_path(dir, "%s/%s", o->runs_dir, o->run);
    file_path(folder, "%s/checkpoints", dir);
    if (access(dir, F_OK))
        return fail(err,
                    "there is no run %s: check --run and --runs-dir, or train it with ./train_gpt "
                    "--run %s",
                    dir, o->run);
    int status = ckpt_open_newest(ckpt, folder, path, err);
    if (status <= 0) return status;
    return fail(err,
                "the run %s has no checkpoint yet: one is written every --checkpoint-every steps "
                "and at the end",
                dir);
}

/* The newest validation loss in the log beside the checkpoint, up to its step; NaN if unknown. */
static double validation_loss(const char *path, int64_t step) {
    char folder[FILE_PATH_SIZE], log[FILE_PATH_SIZE], err[ERR_LEN];
    double loss = NAN;
    LogCurve curve;
    file_folder(folder, path);
    file_path(log, "%s/../log.jsonl", folder);
    if (log_read(log, &curve, err)) return loss;
    for (int i = 0; i < curve.n && curve.step[i] <= step; i++)
        if (isfinite(curve.val[i])) loss = curve.val[i];
    log_curve_free(&curve);
    return loss;
}

/* The model of a checkpoint, for sequences of its length, one at a time. */
static int load_model(Model *m, const Ckpt *ckpt, int threads, char *err) {
    Config c;
    uint64_t vocab;
    memset(&c, 0, sizeof c);
    flags_defaults(config_flags, CONFIG_FLAGS, &c);
    if (load_flags(&c, NULL, ckpt, err) || ckpt_number(ckpt, "vocab", &vocab, err)) return -1;
    c.vocab = (int)vocab;
    c.batch_size = 1;
    c.total_batch_tokens = 0;
    if (config_resolve(&c, err)) return -1;
    /* A small model's layers end sooner than threads meet. And a CPU computes in fp32: with one row at a
       time bf16 saves nothing, and not every machine has it. */
    c.threads = !threads && registry_build(&c).count < 10000000 ? 1 : threads;
    c.compute = COMPUTE_AUTO;
    c.recompute = RECOMPUTE_NONE;  /* prefill looks for keys and values in all layers */
    c.attention = ATTENTION_FLASH; /* nothing is measured: equal seeds, equal text */
    c.gemm = GEMM_FIRST;
    c.gelu = GELU_UNFUSED;
    if (device_setup(&c, NULL, err) || model_create(m, &c, 0, err)) return -1;
    return load_tensors(m, ckpt, 0, err);
}

/* Text files are trained on as bytes, which makes a vocabulary of 256; a larger one is GPT-2's. */
static int load_tokenizer(Tokenizer *t, const Options *o, int vocab, char *err) {
    char reason[ERR_LEN];
    if (vocab <= 256) return tokenizer_bytes(t, err);
    if (!tokenizer_load(t, o->encoder, o->bpe, reason)) return 0;
    return fail(err,
                "%.800s (the model has %d tokens and is read by GPT-2's tokenizer, or by the one "
                "that --encoder and --bpe name)",
                reason, vocab);
}

/* All bytes of --prompt-file, or of --prompt; the caller frees *text. */
static int read_prompt(const Options *o, char **text, size_t *size, char *err) {
    char block[4096];
    size_t n;
    const char *path = o->prompt_file;
    FILE *to = open_memstream(text, size);
    FILE *from = strcmp(path, "-") ? path[0] ? fopen(path, "rb") : NULL : stdin;
    if (!to) return fail(err, "out of memory: the prompt");
    int status = 0;
    if (path[0] && !from)
        status = fail(err, "--prompt-file: cannot open %s: %s", path, strerror(errno));
    if (!path[0]) fputs(o->prompt, to);
    while (from && (n = fread(block, 1, sizeof block, from)) > 0) fwrite(block, 1, n, to);
    if (from && ferror(from))
        status = fail(err, "--prompt-file: cannot read %s: %s", path, strerror(errno));
    if (from && from != stdin) fclose(from);
    if (fclose(to) && !status) status = fail(err, "out of memory: the prompt");
    return status;
}

/* The tokens to begin with, from 1 to seq_len of them: those of the prompt, or what stands before
   a text: a line end among bytes, the end of another document among GPT-2's tokens. */
static int encode_prompt(Tokenizer *t, const Config *c, const char *text, size_t size,
                         TokenList *list, char *err) {
    int start = t->eot >= 0 ? t->eot : '\n';
    if (size ? tokenizer_encode(t, text, size, 1, list, err)
             : tokenizer_append(list, &start, 1, err))
        return -1;
    if (list->count > (size_t)c->seq_len)
        return fail(err,
                    "the prompt has %zu tokens and the model's context is %d (--seq-len when it "
                    "was trained): shorten the prompt",
                    list->count, c->seq_len);
    for (size_t i = 0; i < list->count; i++)
        if (list->ids[i] >= c->vocab)
            return fail(err,
                        "the prompt has token %d at position %zu, and the model knows only %d: "
                        "%s",
                        list->ids[i], i, c->vocab,
                        t->merges ? "are --encoder and --bpe those it was trained with?"
                                  : "use other characters");
    return 0;
}

/* ---------------------------------------------------------------------------------------------- */
/* main */

#ifndef CM_NO_GENERATE_MAIN

/* Writes one sample of up to o->tokens tokens; `limit` is the number of tokens that have a text.
   Returns how many it wrote, or -1. */
static int write_sample(Context *x, const Tokenizer *t, const Options *o, int sample, int limit,
                        floatX *raw, floatM *logits, SamplerEntry *scratch, Text *text, char *err) {
    Sampler sampler = {o->temperature, o->top_k, o->top_p, (uint64_t)o->seed};
    for (int i = 0; i < o->tokens; i++) {
        int token = 0;
        size_t length;
        if (device_download(raw, x->m->a.logits, (size_t)limit * sizeof(floatX)))
            return device_check(err);
        for (int v = 0; v < limit; v++) logits[v] = (floatM)raw[v];
        if (sampler_next(&sampler, logits, limit, (uint64_t)sample, (uint64_t)i, scratch, &token,
                         err))
            return -1;
        if (o->stop_at_eot && token == t->eot) return i;
        const char *bytes = tokenizer_decode(t, token, &length);
        text_put(text, bytes, length);
        if (fflush(text->out)) return fail(err, "cannot write the text: %s", strerror(errno));
        if (i + 1 < o->tokens) context_append(x, token);
    }
    return o->tokens;
}

int main(int argc, char **argv) {
    static Options o;
    static Model m;
    unsigned char given[OPTION_FLAGS] = {0};
    char err[ERR_LEN], path[FILE_PATH_SIZE], *prompt = NULL;
    size_t prompt_size = 0;
    Ckpt ckpt;
    Tokenizer t;
    TokenList start = {NULL, 0, 0};
    Context x;
    Text text = {stdout, isatty(STDOUT_FILENO), 0, {0}};
    uint64_t step;
    flags_defaults(option_flags, OPTION_FLAGS, &o);
    int status = flags_parse(option_flags, OPTION_FLAGS, &o, given, argc, argv, err);
    if (status < 0) die("%s", err);
    if (status > 0) {
        flags_help(stdout, "usage: generate [flags]    Writes text as the model of a run would.",
                   option_flags, OPTION_FLAGS);
        return 0;
    }
    if (o.checkpoint[0] && (given[flags_find(option_flags, OPTION_FLAGS, "run")] ||
                            given[flags_find(option_flags, OPTION_FLAGS, "runs-dir")]))
        die("--checkpoint names a file and --run another: give one of them");
    if (o.prompt[0] && o.prompt_file[0]) die("--prompt and --prompt-file are both given: keep one");

    if (find_checkpoint(&o, &ckpt, path, err) || ckpt_number(&ckpt, "step", &step, err))
        die("%s", err);
    if (load_model(&m, &ckpt, o.threads, err)) die("%s: %s", path, err);
    ckpt_close(&ckpt);
    if (load_tokenizer(&t, &o, m.c.vocab, err) || read_prompt(&o, &prompt, &prompt_size, err) ||
        encode_prompt(&t, &m.c, prompt, prompt_size, &start, err) || context_create(&x, &m, err))
        die("%s", err);
    if (o.stop_at_eot && t.eot < 0)
        die("--stop-at-eot: a model of bytes has no end of text to stop at");

    /* Tokens without a text, of a vocabulary rounded up, are never chosen. */
    int limit = min_int(m.c.vocab, t.vocab);
    floatX *raw = (floatX *)malloc((size_t)limit * sizeof(floatX));
    floatM *logits = (floatM *)malloc((size_t)limit * sizeof(floatM));
    SamplerEntry *scratch = (SamplerEntry *)malloc((size_t)limit * sizeof(SamplerEntry));
    if (!raw || !logits || !scratch) die("out of memory: logits of %d tokens", limit);

    double loss = validation_loss(path, (int64_t)step);
    fprintf(stderr, "from     %s, step %llu", path, (unsigned long long)step);
    if (isfinite(loss)) fprintf(stderr, ", validation loss %.4f", loss);
    fprintf(stderr, "\n");
    print_model(stderr, &m.c, &m.r);

    double reading = 0, writing = 0;
    int64_t written = 0;
    for (int sample = 0; sample < o.count; sample++) {
        double begin = now_seconds();
        context_start(&x, start.ids, (int)start.count);
        double middle = now_seconds();
        if (o.count > 1) printf("--- %d of %d\n", sample + 1, o.count);
        if (text.terminal) printf("\033[2m");
        text_put(&text, prompt, prompt_size);
        if (text.terminal) printf("\033[0m");
        fflush(stdout);
        int n = write_sample(&x, &t, &o, sample, limit, raw, logits, scratch, &text, err);
        if (n < 0) die("%s", err);
        text_flush(&text, 1);
        if (putchar('\n') == EOF || fflush(stdout))
            die("cannot write the text: %s", strerror(errno));
        reading += middle - begin;
        writing += now_seconds() - middle;
        written += n;
    }
    fprintf(stderr, "read     %lld tokens in %.2f s\n", (long long)start.count * o.count, reading);
    fprintf(stderr, "wrote    %lld tokens in %.2f s, %.0f tokens/s\n", (long long)written, writing,
            writing > 0 ? (double)written / writing : 0);
    context_free(&x);
    model_free(&m);
    tokenizer_free(&t);
    free(start.ids);
    free(prompt);
    free(raw);
    free(logits);
    free(scratch);
    return 0;
}

#endif
