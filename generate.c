/*
Samples text from a checkpoint of train_gpt:

    ./generate --run shakespeare --prompt "ROMEO:" --tokens 300

Only the text goes to stdout, character by character; reports about it go to stderr. The model is
that of train_gpt.c, with a cache of keys and values. This file adds:

    context      the tokens that the model sees, and what happens when there are too many
    text         tokens to characters that a terminal can show
    loading      the checkpoint, the tokenizer, the prompt
    merging      adapters and products of low rank become whole matrices (--merge)
*/
#define CM_NO_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* the trainer's loop is not needed here */
#include "train_gpt.c"
#pragma GCC diagnostic pop
#include "llmc/merge.h"
#include "llmc/sampler.h"
#include "llmc/tokenizer.h"

/* ---------------------------------------------------------------------------------------------- */
/* context */

/* Gives the model room for the keys and values of seq_len tokens, so that it can read a text in
   pieces. Returns 0, or -1 with a message. */
static int cache_create(Model *m, char *err) {
    const Shape *s = &m->s;
    size_t bytes = (size_t)s->L * s->T * s->NKV * s->HS * sizeof(floatX);
    m->keys = (floatX *)device_alloc(bytes);
    m->values = (floatX *)device_alloc(bytes);
    if (m->keys && m->values) return 0;
    return fail(err, "out of memory: keys and values of the context take %.1f MiB",
                mebibytes(2 * (double)bytes));
}

/* Reads n tokens at positions `first`, first + 1, ...; either first = 0 or n = 1. The model's cache
   has the keys and values of the tokens before. The first row of a.logits then has the capped
   logits of the next token. */
static void read_tokens(Model *m, const int *tokens, int n, int first) {
    m->position = first;
    device_send(m->a.tokens, tokens, (size_t)n * sizeof(int)); /* the forward pass needs no more */
    model_forward(m, shape_with(m->s, 1, n));
    head_forward(m, n - 1, 1);
    softcap_forward(m->a.logits, 1, m->s.V, m->s.Vp, m->c->softcap);
}

/* The tokens that the model sees, at positions 0..count-1. The model was trained on seq_len
   positions and knows no others. When all are taken, the later half of the tokens moves to the
   front and is read again. The model then still sees half a context, and the cost is one forward
   pass every seq_len / 2 tokens. */
typedef struct {
    Model *m;
    int *tokens, count;
} Context;

static int context_create(Context *x, Model *m, char *err) {
    memset(x, 0, sizeof *x);
    x->m = m;
    x->tokens = (int *)malloc((size_t)m->s.T * sizeof(int));
    if (!x->tokens) return fail(err, "out of memory: a context of %d tokens", m->s.T);
    return cache_create(m, err);
}

static void context_free(Context *x) {
    free(x->tokens);
    memset(x, 0, sizeof *x);
}

/* Starts a new context of 1 <= n <= seq_len tokens. */
static void context_start(Context *x, const int *tokens, int n) {
    memmove(x->tokens, tokens, (size_t)n * sizeof(int));
    x->count = n;
    read_tokens(x->m, x->tokens, n, 0);
}

static void context_append(Context *x, int token) {
    int T = x->m->s.T;
    if (x->count < T) {
        x->tokens[x->count] = token;
        read_tokens(x->m, &token, 1, x->count);
        x->count++;
        return;
    }
    int keep = max_int(1, T / 2); /* the new token included */
    memmove(x->tokens, x->tokens + T - (keep - 1), (size_t)(keep - 1) * sizeof(int));
    x->tokens[keep - 1] = token;
    context_start(x, x->tokens, keep);
}

/* ---------------------------------------------------------------------------------------------- */
/* text */

/* The output. A token may end inside a character, so up to three bytes wait for the rest of the
   character. A file or pipe gets every byte unchanged. On a terminal, invalid UTF-8 and control
   characters become U+FFFD, because an untrained model writes escape sequences too. */
typedef struct {
    FILE *out;
    int terminal, held; /* held: bytes that wait */
    unsigned char bytes[4];
} Text;

static void text_write(Text *text, int n, int is_text) {
    if (is_text || !text->terminal) fwrite(text->bytes, 1, (size_t)n, text->out);
    else fputs("\xEF\xBF\xBD", text->out);
    text->held -= n;
    memmove(text->bytes, text->bytes + n, (size_t)text->held);
}

/* Writes the characters that are complete; with `end`, all bytes that wait. */
static void text_flush(Text *text, int end) {
    while (text->held) {
        uint32_t code = 0;
        int n = (int)utf8_decode(text->bytes, (size_t)text->held, &code);
        int control = (code < 32 && code != '\n' && code != '\t') || (code >= 127 && code < 160);
        if (n) text_write(text, n, !control);
        else if (!end && utf8_begins(text->bytes, (size_t)text->held)) return;
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
    char base[FLAG_STRING_SIZE], merge[FLAG_STRING_SIZE];
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
    FLAG_TEXT("base", base, "",
              "the checkpoint file of the weights that the adapters were trained beside, if it is "
              "not where it was then"),
    FLAG_TEXT("merge", merge, "",
              "write the model with its adapters, or products of low rank, merged into whole "
              "matrices, as a run of this name in --runs-dir, and stop"),
    FLAG_TEXT("encoder", encoder, "data/gpt2-bpe/encoder.json",
              "the vocabulary, for models that were not trained on bytes; data/gpt2_bpe.sh fetches "
              "GPT-2's"),
    FLAG_TEXT("bpe", bpe, "data/gpt2-bpe/vocab.bpe", "the vocabulary's merges"),
    FLAG_INT("threads", threads, "0", 0, 4096,
             "CPU threads; 0: all cores, or one thread for a model of fewer than 10M parameters"),
#undef SECTION
#define SECTION "Text"
    FLAG_TEXT("prompt", prompt, "", "text to continue; without it a new line or document begins"),
    FLAG_TEXT("prompt-file", prompt_file, "",
              "file with the text to continue, of at most 16 MiB; -: standard input"),
    FLAG_INT("tokens", tokens, "500", 0, 1e9, "tokens to generate for each sample"),
    FLAG_INT("count", count, "1", 1, 1e6, "number of samples after the prompt"),
    FLAG_SWITCH("stop-at-eot", stop_at_eot,
                "end a sample where the model ends its document (<|endoftext|>)"),
#undef SECTION
#define SECTION "Sampling"
    FLAG_FLOAT(
        "temperature", temperature, "0.8", 0, INFINITY,
        "divides the logits, so below 1 probable tokens gain; 0: always the most probable one"),
    FLAG_INT("top-k", top_k, "0", 0, 1e9, "keep the k most probable tokens; 0: off"),
    FLAG_FLOAT("top-p", top_p, "1", 0, 1,
               "keep the most probable tokens whose probabilities add up to this; 1: off"),
    FLAG_LONG("seed", seed, "1", 0, 9e15,
              "seed of the random numbers: equal seeds give equal text"),
};
#undef SECTION
#undef FIELD
enum { OPTION_FLAGS = (int)(sizeof option_flags / sizeof option_flags[0]) };

/* Opens --checkpoint, or the newest whole checkpoint of --run, and sets `path` to its name. Returns
   0, or -1 with a message. */
static int find_checkpoint(const Options *o, Ckpt *ckpt, char *path, char *err) {
    char dir[FILE_PATH_SIZE], folder[FILE_PATH_SIZE];
    if (o->checkpoint[0]) {
        file_path(path, "%s", o->checkpoint);
        return ckpt_open(ckpt, path, err);
    }
    if (log_check_name("run", o->run, err)) return -1;
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

/* The last validation loss up to `step` in the log beside a checkpoint; NaN if there is none. */
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

/* Models of fewer parameters run on one thread unless --threads says otherwise: their layers take
   less time than a barrier of threads. */
enum { SMALL_MODEL = 10000000 };

/* Reads the flags of a checkpoint's run and resolves them for generation: one sequence at a time,
   no backward pass. */
static int load_config(Config *c, const Ckpt *ckpt, int threads, char *err) {
    uint64_t vocab;
    memset(c, 0, sizeof *c);
    flags_defaults(config_flags, CONFIG_FLAGS, c);
    if (load_flags(c, NULL, ckpt, err) ||
        ckpt_number_in(ckpt, "vocab", 1, CONFIG_MAX_VOCAB, &vocab, err))
        return -1;
    c->vocab = (int)vocab;
    c->batch_size = 1;
    c->total_batch_tokens = 0;
    if (config_resolve(c, err)) return -1;
    c->threads = !threads && registry_build(c).count < SMALL_MODEL ? 1 : threads;
    c->compute = COMPUTE_AUTO;      /* fp32 on a CPU: with one row at a time bf16 saves nothing */
    c->recompute = RECOMPUTE_BLOCK; /* all layers share their activations */
    /* Nothing is measured, so that equal seeds give equal text. */
    c->attention = ATTENTION_FLASH;
    c->gemm = GEMM_FIRST;
    c->gelu = GELU_UNFUSED;
    return 0;
}

/* Loads the weights that the adapters of a checkpoint were trained beside, from the file that its
   header names or from `moved`. */
static int load_base(Model *m, const Ckpt *ckpt, const char *moved, char *err) {
    char path[FILE_PATH_SIZE], want[FINGERPRINT_SIZE], found[FINGERPRINT_SIZE], why[ERR_LEN];
    Ckpt base;
    if (ckpt_value(ckpt, "init_from_file", path, sizeof path) ||
        ckpt_value(ckpt, "init_from_checksum", want, sizeof want))
        return fail(err, "it has adapters and does not say of which weights");
    if (moved[0]) file_path(path, "%s", moved);
    int status = ckpt_open(&base, path, why);
    if (status && moved[0])
        return fail(err, "--base, the checkpoint file beside which it was trained: %.700s", why);
    if (status)
        return fail(err,
                    "it has adapters of the weights in another file, which is not to be had: "
                    "%.500s; put it back, or name a copy with --base",
                    why);
    ckpt_fingerprint(&base, found);
    if (strcmp(want, found))
        status = fail(err,
                      "its adapters are of other weights than those of %.600s, which is another "
                      "file than that of then, or has changed since; name a copy of that with "
                      "--base",
                      path);
    else status = load_parameters(&m->p, &base, TENSORS_OF_BASE, 1, err);
    ckpt_close(&base);
    return status;
}

/* Creates the model of a checkpoint. *c becomes its config and must outlive the model. `base`: see
   load_base. */
static int load_model(Model *m, Config *c, const Ckpt *ckpt, int threads, const char *base,
                      char *err) {
    static Plan no_rules; /* the model is not trained */
    if (load_config(c, ckpt, threads, err) || device_setup(c, NULL, err)) return -1;
    if (base[0] && !c->lora_rank)
        return fail(err, "it has no adapters, and --base names the weights of adapters: leave "
                         "--base out");
    Registry r = registry_build(c);
    if (model_create(m, c, &r, &no_rules, 0, err) ||
        (c->lora_rank && load_base(m, ckpt, base, err)) ||
        load_parameters(&m->p, ckpt, TENSORS_OWN, 0, err) || load_readout(&m->p, c, ckpt, err))
        return -1;
    refresh_weights(m);
    return 0;
}

/* Loads the tokenizer of a model: bytes, or the vocabulary that --encoder and --bpe name, which
   must be the model's own. */
static int load_tokenizer(Tokenizer *t, const Options *o, TokenizerId id, char *err) {
    char reason[ERR_LEN], text[TOKENIZER_ID_SIZE], loaded_text[TOKENIZER_ID_SIZE];
    if (id.kind == TOKENIZER_BYTES) return tokenizer_bytes(t, err);
    tokenizer_id_text(id, text);
    if (tokenizer_load(t, o->encoder, o->bpe, reason))
        return fail(err,
                    "%.700s (the model's tokenizer is %s; --encoder and --bpe name the files of "
                    "its vocabulary)",
                    reason, text);
    TokenizerId loaded = tokenizer_id(t);
    if (!id.fingerprint || tokenizer_id_agree(id, loaded)) return 0;
    tokenizer_free(t);
    return fail(err,
                "the model's tokenizer is %s, but %.300s and %.300s are %s: name the files of the "
                "model's vocabulary with --encoder and --bpe",
                text, o->encoder, o->bpe, tokenizer_id_text(loaded, loaded_text));
}

/* The most bytes of a prompt: more than a context holds, less than a file without an end brings. */
enum { PROMPT_MIB = 16 };

/* Reads --prompt-file, or copies --prompt; *text is for the caller to free. */
static int read_prompt(const Options *o, char **text, size_t *size, char *err) {
    char block[4096];
    size_t n, left = ((size_t)PROMPT_MIB << 20) + 1;
    const char *path = o->prompt_file;
    FILE *to = open_memstream(text, size);
    FILE *from = NULL;
    if (!strcmp(path, "-")) from = stdin;
    else if (path[0]) from = fopen(path, "rb");
    if (!to) return fail(err, "out of memory: the prompt");
    int status = 0;
    if (path[0] && !from)
        status = fail(err, "--prompt-file: cannot open %s: %s", path, strerror(errno));
    if (!path[0]) fputs(o->prompt, to);
    while (from && (n = fread(block, 1, min_size(sizeof block, left), from)) > 0) {
        fwrite(block, 1, n, to);
        left -= n;
    }
    if (from && ferror(from))
        status = fail(err, "--prompt-file: cannot read %s: %s", path, strerror(errno));
    if (!left)
        status = fail(err, "--prompt-file: %s has more than %d MiB: shorten the prompt",
                      from == stdin ? "standard input" : path, PROMPT_MIB);
    if (from && from != stdin) fclose(from);
    if (fclose(to) && !status) status = fail(err, "out of memory: the prompt");
    return status;
}

/* Sets the 1 to seq_len tokens to begin with: those of the prompt or, without a prompt, the token
   that precedes a text. That is a newline among bytes, and <|endoftext|> among GPT-2's tokens.
   Returns 0, or -1 with a message. */
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

/* Everything that main works with. */
typedef struct {
    Options o;
    Config config;
    Model model;
    Tokenizer tokenizer;
    Context context;
    Text text;
    char *prompt;
    size_t prompt_size;
    TokenList start; /* the prompt's tokens */
    int limit;       /* tokens that have a text; the padding of the vocabulary is never chosen */
    floatX *raw;     /* (limit) logits */
    floatM *logits;
    SamplerEntry *scratch;
    int64_t written;
    double reading, writing; /* seconds */
} Program;

/* Reads the command line. Returns 0, 1 if --help was asked for, -1 with a message. */
static int parse(Options *o, int argc, char **argv, char *err) {
    unsigned char given[OPTION_FLAGS] = {0};
    flags_defaults(option_flags, OPTION_FLAGS, o);
    int status = flags_parse(option_flags, OPTION_FLAGS, o, given, argc, argv, err);
    if (status > 0)
        flags_help(stdout, "usage: generate [flags]    Writes text as the model of a run would.",
                   option_flags, OPTION_FLAGS);
    if (status) return status;
    int by_name = given[flags_find(option_flags, OPTION_FLAGS, "run")] ||
                  (given[flags_find(option_flags, OPTION_FLAGS, "runs-dir")] && !o->merge[0]);
    if (o->checkpoint[0] && by_name)
        return fail(err, "--checkpoint names a file and --run another: give one of them");
    if (given[flags_find(option_flags, OPTION_FLAGS, "merge")] &&
        log_check_name("merge", o->merge, err))
        return -1;
    if (o->merge[0] && (o->prompt[0] || o->prompt_file[0]))
        return fail(err, "--merge writes a model and no text: leave out the prompt");
    if (given[flags_find(option_flags, OPTION_FLAGS, "base")] && !o->base[0])
        return fail(err, "--base: the name is empty; name a checkpoint file");
    if (o->prompt[0] && o->prompt_file[0])
        return fail(err, "--prompt and --prompt-file are both given: keep one");
    return 0;
}

/* Writes the model of --run or --checkpoint with whole matrices as the run --merge. */
static int merge(Program *p, char *err) {
    const Options *o = &p->o;
    char path[FILE_PATH_SIZE], to[FILE_PATH_SIZE], why[ERR_LEN];
    uint64_t step;
    RunLog log;
    Ckpt ckpt;
    if (find_checkpoint(o, &ckpt, path, err) || log_paths(&log, o->runs_dir, o->merge, err))
        return -1;
    file_path(to, "%s/run.json", log.dir);
    if (access(to, F_OK) == 0 || log_last_step(log.path) >= 0 ||
        log_has_checkpoints(log.checkpoints))
        return fail(err, "--merge: there is a run %.900s already: give another name", log.dir);
    if (ckpt_number_in(&ckpt, "step", 0, INT32_MAX, &step, why) ||
        load_model(&p->model, &p->config, &ckpt, o->threads, o->base, why))
        return fail(err, "%.500s: %.500s", path, why);
    if (!p->config.factored)
        return fail(err, "--merge: %s has no adapters and no products of low rank to merge", path);
    if (weights_check_finite(&ckpt, path, why)) return fail(err, "--merge: %.900s", why);
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is reported as a failed write */
    if (log_open(&log, o->runs_dir, o->merge, 0, why)) return fail(err, "--merge: %.900s", why);
    ckpt_path(to, log.checkpoints, (int64_t)step);
    int status = merge_write(&p->model.p, &p->config, &ckpt, to, err);
    if (status) { /* leaves nothing behind: the name is free again */
        unlink(log.path);
        rmdir(log.checkpoints);
        rmdir(log.dir);
    }
    log_close(&log);
    ckpt_close(&ckpt);
    if (!status) fprintf(stderr, "merged   %s into %s\n", path, to);
    return status;
}

/* Prints on stderr which checkpoint and model the samples come from. */
static void print_source(const Model *m, const char *path, uint64_t step) {
    double loss = validation_loss(path, (int64_t)step);
    fprintf(stderr, "from     %s, step %llu", path, (unsigned long long)step);
    if (isfinite(loss)) fprintf(stderr, ", validation loss %.4f", loss);
    fprintf(stderr, "\n");
    print_model(stderr, m->c, &m->p.r);
}

/* Loads checkpoint, tokenizer and prompt. */
static int load(Program *p, char *err) {
    const Options *o = &p->o;
    char path[FILE_PATH_SIZE], why[ERR_LEN];
    uint64_t step;
    TokenizerId id;
    Ckpt ckpt;
    if (find_checkpoint(o, &ckpt, path, err)) return -1;
    if (ckpt_number_in(&ckpt, "step", 0, INT32_MAX, &step, why) ||
        load_model(&p->model, &p->config, &ckpt, o->threads, o->base, why) ||
        load_tokenizer_id(&id, &ckpt, &p->config, why))
        return fail(err, "%.500s: %.500s", path, why);
    ckpt_close(&ckpt);
    if (load_tokenizer(&p->tokenizer, o, id, err) ||
        read_prompt(o, &p->prompt, &p->prompt_size, err) ||
        encode_prompt(&p->tokenizer, &p->config, p->prompt, p->prompt_size, &p->start, err) ||
        context_create(&p->context, &p->model, err))
        return -1;
    if (o->stop_at_eot && p->tokenizer.eot < 0)
        return fail(err, "--stop-at-eot: a model of bytes has no end of text to stop at");
    p->limit = min_int(p->config.vocab, p->tokenizer.vocab);
    p->raw = (floatX *)malloc((size_t)p->limit * sizeof(floatX));
    p->logits = (floatM *)malloc((size_t)p->limit * sizeof(floatM));
    p->scratch = (SamplerEntry *)malloc((size_t)p->limit * sizeof(SamplerEntry));
    if (!p->raw || !p->logits || !p->scratch)
        return fail(err, "out of memory: logits of %d tokens", p->limit);
    print_source(&p->model, path, step);
    return 0;
}

/* Writes up to --tokens tokens after the prompt, which the context has read, and counts them. */
static int write_tokens(Program *p, int sample, char *err) {
    const Options *o = &p->o;
    Sampler sampler = {.temperature = o->temperature,
                       .top_k = o->top_k,
                       .top_p = o->top_p,
                       .seed = (uint64_t)o->seed};
    for (int i = 0; i < o->tokens; i++) {
        int token = 0;
        size_t length;
        if (device_download(p->raw, p->model.a.logits, (size_t)p->limit * sizeof(floatX)))
            return device_check(err);
        for (int v = 0; v < p->limit; v++) p->logits[v] = (floatM)p->raw[v];
        if (sampler_next(&sampler, p->logits, p->limit, (uint64_t)sample, (uint64_t)i, p->scratch,
                         &token, err))
            return -1;
        if (o->stop_at_eot && token == p->tokenizer.eot) break;
        const char *bytes = tokenizer_decode(&p->tokenizer, token, &length);
        text_put(&p->text, bytes, length);
        if (fflush(stdout)) return fail(err, "cannot write the text: %s", strerror(errno));
        p->written++;
        if (i + 1 < o->tokens) context_append(&p->context, token);
    }
    return 0;
}

/* Writes one sample after its prompt. */
static int write_sample(Program *p, int sample, char *err) {
    double begin = now_seconds();
    context_start(&p->context, p->start.ids, (int)p->start.count);
    double middle = now_seconds();
    if (p->o.count > 1) printf("--- %d of %d\n", sample + 1, p->o.count);
    if (p->text.terminal) printf("\033[2m");
    text_put(&p->text, p->prompt, p->prompt_size);
    if (p->text.terminal) printf("\033[0m");
    if (fflush(stdout)) return fail(err, "cannot write the text: %s", strerror(errno));
    if (write_tokens(p, sample, err)) return -1;
    text_flush(&p->text, 1);
    if (putchar('\n') == EOF || fflush(stdout))
        return fail(err, "cannot write the text: %s", strerror(errno));
    p->reading += middle - begin;
    p->writing += now_seconds() - middle;
    return 0;
}

static void release(Program *p) {
    context_free(&p->context);
    model_free(&p->model);
    tokenizer_free(&p->tokenizer);
    free(p->start.ids);
    free(p->prompt);
    free(p->raw);
    free(p->logits);
    free(p->scratch);
}

/* The program after its command line. Returns 0, or -1 with a message. */
static int run_program(Program *p, char *err) {
    signal(SIGPIPE, SIG_IGN); /* a reader of the text that goes away is a failed write */
    p->text.out = stdout;
    p->text.terminal = isatty(STDOUT_FILENO);
    if (p->o.merge[0]) return merge(p, err);
    if (load(p, err)) return -1;
    for (int sample = 0; sample < p->o.count; sample++)
        if (write_sample(p, sample, err)) return -1;
    fprintf(stderr, "read     %lld tokens in %.2f s\n", (long long)p->start.count * p->o.count,
            p->reading);
    fprintf(stderr, "wrote    %lld tokens in %.2f s, %.0f tokens/s\n", (long long)p->written,
            p->writing, p->writing > 0 ? (double)p->written / p->writing : 0);
    release(p);
    return 0;
}

int main(int argc, char **argv) {
    output_hold();
    static Program p;
    char err[ERR_LEN];
    int status = parse(&p.o, argc, argv, err);
    if (status > 0) return output_status(stdout);
    if (status == 0) status = run_program(&p, err);
    if (status < 0) die("%s", err);
    return 0;
}

#endif
