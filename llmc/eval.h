/*
What is measured while a model trains, beside its loss: bits per byte, and the accuracy on examples
of multiple choice.

Bits per byte are the loss of a text in bits, divided by the bytes of the text. So losses of models
with different tokenizers compare. <|endoftext|> counts its loss and no bytes.

An example has a context and several completions, one of which is right (`label`). The model reads
the context with each completion. A choice is right if that completion has the least loss, summed
over its tokens (acc), or averaged over them (acc_norm, as llm.c has it; the published harness
divides by the bytes of the completion, which for a model of bytes is the same). Of equal losses
the first counts.

A file of examples (the format of llm.c) is mapped. Its header is 256 little-endian int32:

    0 to 3    magic 20240522, version 1, number of examples, bytes of the longest example
    4 to 7    zeros; or EVAL_TOKENIZER_TAG, the tokenizer's kind, low and high half of its
              fingerprint (see data.h, whose shards have the same numbers one place earlier)

Then follow the examples in little-endian uint16: 65535, bytes of the example, its index (modulo
65536), label, number of completions, n, the n tokens of the context, and for each completion n and
its n tokens. An example is checked as a whole each time it is read, because a file may be written
into while a run has it open.

A row is a context with one completion: inputs are all its tokens but the last, and targets are
the tokens that follow them, -1 outside of the completion. Where a row needs more inputs than the
model's sequences have, the context loses its first tokens. All rows have T inputs, as many as the
longest needs: examples are mostly much shorter than sequences of training, and a pass reads as many
more of them at a time.
*/
#ifndef CM_EVAL_H
#define CM_EVAL_H

#include "data.h"
#include "tokenizer.h"

#define EVAL_MAGIC 20240522
#define EVAL_VERSION 1
#define EVAL_HEADER_BYTES 1024
#define EVAL_TOKENIZER_TAG DATA_TOKENIZER_TAG

/* EVAL_MARK begins an example. EVAL_HEAD are its words before the context. */
enum { EVAL_MARK = 65535, EVAL_LEAST = 2, EVAL_MOST = 16, EVAL_HEAD = 6 };

/* Rows have a multiple of so many inputs, unless the model's sequences are shorter: a whole tile of
   attention on a GPU. */
enum { EVAL_TILE = 64 };

/* ---------------------------------------------------------------------------------------------- */
/* bits per byte */

/* The bytes that each token stands for. */
typedef struct {
    int known; /* 0: there are no bits per byte */
    int vocab;
    int *bytes; /* (vocab); NULL: every token is a byte */
} TokenBytes;

static inline void token_bytes_free(TokenBytes *b) {
    free(b->bytes);
    memset(b, 0, sizeof *b);
}

/* Takes the bytes of a vocabulary's tokens; <|endoftext|> has none. Returns -1 without memory. */
static inline int token_bytes_take(TokenBytes *b, const Tokenizer *t, char *err) {
    b->bytes = (int *)malloc((size_t)t->vocab * sizeof(int));
    if (!b->bytes) return fail(err, "out of memory: the bytes of %d tokens", t->vocab);
    b->vocab = t->vocab;
    for (int i = 0; i < t->vocab; i++) b->bytes[i] = (int)(t->offsets[i + 1] - t->offsets[i]);
    if (t->eot >= 0) b->bytes[t->eot] = 0;
    b->known = 1;
    return 0;
}

/* Sets the bytes of the tokens of `id`, which the files of a vocabulary tell unless the tokens are
   bytes. Returns 0, or -1 with a message if there are no such files, or if they are of another
   tokenizer; b->known is then 0. */
static inline int token_bytes_load(TokenBytes *b, TokenizerId id, const char *encoder,
                                   const char *bpe, char *err) {
    Tokenizer t;
    char tokens[TOKENIZER_ID_SIZE], files[TOKENIZER_ID_SIZE];
    memset(b, 0, sizeof *b);
    if (id.kind == TOKENIZER_BYTES) {
        b->known = 1;
        return 0;
    }
    if (tokenizer_load(&t, encoder, bpe, err)) return -1;
    TokenizerId loaded = tokenizer_id(&t);
    int status = 0;
    if (!tokenizer_id_agree(id, loaded))
        status =
            fail(err,
                 "the tokens are those of %s, and %.300s and %.300s are %s; name the files of "
                 "the data's vocabulary with --encoder and --bpe",
                 tokenizer_id_text(id, tokens), encoder, bpe, tokenizer_id_text(loaded, files));
    else status = token_bytes_take(b, &t, err);
    tokenizer_free(&t);
    return status;
}

/* The bytes of n targets. One that is -1, or that the vocabulary does not have, counts none. */
static inline int64_t token_bytes_of(const TokenBytes *b, const int *targets, size_t n) {
    int64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (targets[i] < 0 || (b->bytes && targets[i] >= b->vocab)) continue;
        sum += b->bytes ? b->bytes[targets[i]] : 1;
    }
    return sum;
}

/* ---------------------------------------------------------------------------------------------- */
/* a file of examples */

/* Where an example lies, and what it was when the file was opened. */
typedef struct {
    size_t at, words; /* its first byte in the file; its length in uint16 */
    size_t row;       /* its first row among the rows of all examples */
    int label, completions;
} EvalItem;

/* An example, taken apart. The tokens are in Eval.words. */
typedef struct {
    int label, completions, context; /* context: number of its tokens */
    const uint16_t *contexts;        /* the context's tokens */
    const uint16_t *completion[EVAL_MOST];
    int tokens[EVAL_MOST]; /* of each completion */
} EvalExample;

typedef struct {
    Mapped *map;    /* NULL: no file is open */
    size_t count;   /* examples */
    EvalItem *item; /* (count) */
    size_t rows;    /* completions of all examples */
    size_t cut;     /* rows whose context does not fit */
    int seq_len;    /* inputs of the model's sequences */
    int T, vocab;   /* inputs of a row; a token >= vocab is an error */
    int tagged;     /* whether the file says which tokenizer made it */
    TokenizerId tokenizer;
    uint64_t checksum; /* of the whole file */
    uint32_t longest;  /* bytes of the longest example, as the header has it */
    uint16_t *words;   /* the example that was read last */
    size_t read;       /* its index; SIZE_MAX: none */
    EvalExample example;
    double *loss; /* (rows) summed loss of a completion's tokens, from eval_take */
    int *length;  /* (rows) number of these tokens */
} Eval;

static inline void eval_close(Eval *e) {
    mapped_close(e->map);
    free(e->item);
    free(e->words);
    free(e->loss);
    free(e->length);
    memset(e, 0, sizeof *e);
}

/* What is copied from a mapped file: n words. */
typedef struct {
    const unsigned char *from;
    uint16_t *to;
    size_t n;
} EvalCopy;

static inline void eval_copy_words(void *argument) {
    const EvalCopy *c = (const EvalCopy *)argument;
    for (size_t i = 0; i < c->n; i++)
        c->to[i] = (uint16_t)(c->from[2 * i] | c->from[2 * i + 1] << 8);
}

/* Copies words from byte `at` on, which the file must have. */
static inline int eval_copy(Eval *e, size_t at, size_t words, char *err) {
    EvalCopy c = {e->map->bytes + at, e->words, words};
    e->read = SIZE_MAX;
    return mapped_read(eval_copy_words, &c, err);
}

/* Refuses a token that the model does not know. */
static inline int eval_check_tokens(const Eval *e, size_t i, const uint16_t *tokens, int n,
                                    char *err) {
    for (int k = 0; k < n; k++)
        if (tokens[k] >= e->vocab)
            return fail(err,
                        "%s: example %zu has the token %d, which is outside the vocabulary of %d; "
                        "the file was made for another tokenizer",
                        e->map->path, i, tokens[k], e->vocab);
    return 0;
}

/* Takes the completions of example i apart, which begin at word `at` of `words`. */
static inline int eval_parse_completions(const Eval *e, size_t i, EvalExample *x, size_t at,
                                         size_t words, char *err) {
    const char *path = e->map->path;
    for (int k = 0; k < x->completions; k++) {
        int n = at < words ? e->words[at++] : 0;
        if (!n)
            return fail(err, "%s: completion %d of example %zu is empty; the file is damaged", path,
                        k, i);
        if ((size_t)n > words - at)
            return fail(err,
                        "%s: completion %d of example %zu has %d tokens, more than the example has "
                        "room for; the file is damaged",
                        path, k, i, n);
        if (n > e->seq_len)
            return fail(err,
                        "%s: completion %d of example %zu has %d tokens, and --seq-len is %d: use "
                        "longer sequences, or leave the example out",
                        path, k, i, n, e->seq_len);
        x->completion[k] = e->words + at;
        x->tokens[k] = n;
        if (eval_check_tokens(e, i, x->completion[k], n, err)) return -1;
        at += (size_t)n;
    }
    if (at == words) return 0;
    return fail(err, "%s: example %zu has %zu numbers behind its last completion; it is damaged",
                path, i, words - at);
}

/* Takes example i apart, which is in e->words with this many words. */
static inline int eval_parse(const Eval *e, size_t i, EvalExample *x, size_t words, char *err) {
    const char *path = e->map->path;
    const uint16_t *w = e->words;
    memset(x, 0, sizeof *x);
    if (w[0] != EVAL_MARK || w[1] != 2 * words || w[2] != (i & 0xffff))
        return fail(err,
                    "%s: example %zu begins with %d, %d, %d, not with %d, its bytes and its index; "
                    "the file is damaged",
                    path, i, w[0], w[1], w[2], EVAL_MARK);
    x->label = w[3];
    x->completions = w[4];
    x->context = w[5];
    x->contexts = w + EVAL_HEAD;
    if (x->completions < EVAL_LEAST || x->completions > EVAL_MOST)
        return fail(err, "%s: example %zu has %d completions; it may have %d to %d", path, i,
                    x->completions, EVAL_LEAST, EVAL_MOST);
    if (x->label >= x->completions)
        return fail(err, "%s: example %zu has the label %d and %d completions, numbered from 0",
                    path, i, x->label, x->completions);
    if (!x->context)
        return fail(err,
                    "%s: example %zu has no context, so that nothing predicts its completions; "
                    "begin it with a token such as a line end",
                    path, i);
    if ((size_t)x->context > words - EVAL_HEAD)
        return fail(err,
                    "%s: the context of example %zu has %d tokens, more than the example has room "
                    "for; the file is damaged",
                    path, i, x->context);
    if (eval_check_tokens(e, i, x->contexts, x->context, err)) return -1;
    return eval_parse_completions(e, i, x, EVAL_HEAD + (size_t)x->context, words, err);
}

/* Reads example i, whose place is known, unless it was read last. Returns 0, or -1 with a message,
   also if the example is not what it was when the file was opened. */
static inline int eval_read(Eval *e, size_t i, char *err) {
    const EvalItem *item = &e->item[i];
    if (e->read == i) return 0;
    if (eval_copy(e, item->at, item->words, err) || mapped_whole(e->map, err) ||
        eval_parse(e, i, &e->example, item->words, err))
        return -1;
    if (e->example.label != item->label || e->example.completions != item->completions)
        return fail(err, "%s: the file was written into while the run was reading it",
                    e->map->path);
    e->read = i;
    return 0;
}

/* Reads what says how long example i is, which begins at byte `at`. Returns 0, or -1 with a message
   if the file ends before it does. */
static inline int eval_measure(Eval *e, size_t i, size_t at, size_t *words, char *err) {
    size_t left = e->map->size - at, bytes = 0;
    const char *path = e->map->path;
    if (left >= 2 * EVAL_HEAD) {
        if (eval_copy(e, at, 2, err)) return -1;
        bytes = e->words[1];
        if (e->words[0] != EVAL_MARK || bytes % 2 || bytes < 2 * EVAL_HEAD || bytes > e->longest)
            return fail(err,
                        "%s: example %zu begins with %d and %zu bytes, not with %d and an even "
                        "number up to %u, the header's longest; the file is damaged",
                        path, i, e->words[0], bytes, EVAL_MARK, (unsigned)e->longest);
    }
    *words = bytes / 2;
    if (left >= 2 * EVAL_HEAD && bytes <= left) return 0;
    return fail(err,
                "%s: the file ends in example %zu of %zu: it is truncated; fetch or write it again",
                path, i, e->count);
}

/* Makes the list of examples, and checks each. Sets e->T. */
static inline int eval_list(Eval *e, char *err) {
    size_t at = EVAL_HEADER_BYTES;
    int most = 0;
    for (size_t i = 0; i < e->count; i++) {
        EvalItem *item = &e->item[i];
        const EvalExample *x = &e->example;
        item->at = at;
        item->row = e->rows;
        if (eval_measure(e, i, at, &item->words, err) || eval_copy(e, at, item->words, err) ||
            eval_parse(e, i, &e->example, item->words, err))
            return -1;
        item->label = x->label;
        item->completions = x->completions;
        e->rows += (size_t)x->completions;
        for (int k = 0; k < x->completions; k++) {
            int inputs = x->context + x->tokens[k] - 1;
            e->cut += inputs > e->seq_len;
            most = max_int(most, inputs);
        }
        at += 2 * item->words;
    }
    e->T = min_int(e->seq_len, round_up(most, EVAL_TILE));
    if (at == e->map->size) return 0;
    return fail(err,
                "%s: %zu bytes follow the last of %zu examples: the file is damaged, or two files "
                "in one",
                e->map->path, e->map->size - at, e->count);
}

/* What is copied from the front of a mapped file. */
typedef struct {
    const Mapped *map;
    unsigned char head[8 * 4];
    uint64_t checksum;
} EvalHead;

static inline void eval_copy_head(void *argument) {
    EvalHead *h = (EvalHead *)argument;
    memcpy(h->head, h->map->bytes, sizeof h->head);
    h->checksum = fnv1a(FNV_BASIS, h->map->bytes, h->map->size);
}

/* Says what a file is that does not begin with EVAL_MAGIC. Returns -1. */
static inline int eval_fail_magic(const char *path, const unsigned char *p, char *err) {
    uint32_t magic = data_u32(p);
    if (magic == DATA_MAGIC)
        return fail(err, "--eval-data: %s is a token shard, not a file of examples", path);
    if (p[0] == '{')
        return fail(err,
                    "--eval-data: %s looks like JSON lines: data/hellaswag.py makes a file of "
                    "examples of them",
                    path);
    return fail(err,
                "--eval-data: %s is no file of examples: its first number is %u, not %d; "
                "data/hellaswag.py makes one",
                path, (unsigned)magic, EVAL_MAGIC);
}

/* Reads the header. */
static inline int eval_read_header(Eval *e, char *err) {
    EvalHead h;
    const char *path = e->map->path;
    h.map = e->map;
    if (mapped_read(eval_copy_head, &h, err)) return -1;
    e->checksum = h.checksum;
    if (data_u32(h.head) != EVAL_MAGIC) return eval_fail_magic(path, h.head, err);
    if (data_u32(h.head + 4) != EVAL_VERSION)
        return fail(err, "%s: a file of examples of version %u; only version %d is supported", path,
                    (unsigned)data_u32(h.head + 4), EVAL_VERSION);
    e->count = data_u32(h.head + 8);
    e->longest = data_u32(h.head + 12);
    if (!e->count) return fail(err, "%s: the file has no examples", path);
    size_t least = 2 * (EVAL_HEAD + 1 + 2 * EVAL_LEAST); /* bytes of an example */
    if (e->count > (e->map->size - EVAL_HEADER_BYTES) / least)
        return fail(err,
                    "%s: the header promises %zu examples, and the file has only %zu bytes: it is "
                    "truncated; fetch or write it again",
                    path, e->count, e->map->size);
    e->tagged = data_u32(h.head + 16) == EVAL_TOKENIZER_TAG;
    if (!e->tagged) return 0;
    uint32_t kind = data_u32(h.head + 20);
    e->tokenizer.kind = (TokenizerKind)kind;
    e->tokenizer.fingerprint = data_u32(h.head + 24) | (uint64_t)data_u32(h.head + 28) << 32;
    if (kind <= TOKENIZER_BPE && tokenizer_id_valid(e->tokenizer)) return 0;
    return fail(err,
                "%s: examples of tokenizer %u, which this program does not know: use a newer cm.c",
                path, (unsigned)kind);
}

/* Maps the file. */
static inline int eval_map(Eval *e, const char *path, char *err) {
    struct stat st;
    int fd = mapped_open_file(path, &st);
    if (fd == -1)
        return fail(err, "--eval-data: cannot open %s: %s; data/hellaswag.py makes such a file",
                    path, strerror(errno));
    if (fd < 0)
        return fail(err, "--eval-data: %s is a folder, a pipe or a device, not a file", path);
    if (st.st_size < EVAL_HEADER_BYTES || (uint64_t)st.st_size > (uint64_t)SIZE_MAX / 2) {
        close(fd);
        return fail(err,
                    "--eval-data: %s has %lld bytes, and the header of a file of examples alone "
                    "has %d; fetch or write it again",
                    path, (long long)st.st_size, EVAL_HEADER_BYTES);
    }
    e->map = mapped_make(fd, path, (size_t)st.st_size, err);
    return e->map ? 0 : -1;
}

static inline int eval_open_file(Eval *e, const char *path, char *err) {
    if (eval_map(e, path, err) || eval_read_header(e, err)) return -1;
    e->item = (EvalItem *)calloc(e->count, sizeof *e->item);
    e->words = (uint16_t *)malloc(65536);
    if (!e->item || !e->words)
        return fail(err, "out of memory: the list of %zu examples", e->count);
    if (eval_list(e, err)) return -1;
    e->loss = (double *)calloc(e->rows, sizeof *e->loss);
    e->length = (int *)calloc(e->rows, sizeof *e->length);
    if (!e->loss || !e->length)
        return fail(err, "out of memory: the losses of %zu completions", e->rows);
    return 0;
}

/* Opens a file of examples for a model with sequences of `seq_len` tokens, and checks it. Returns
   0, or -1 with a message that names the file and the example. */
static inline int eval_open(Eval *e, const char *path, int seq_len, int vocab, char *err) {
    memset(e, 0, sizeof *e);
    e->seq_len = seq_len;
    e->vocab = vocab;
    e->read = SIZE_MAX;
    if (!eval_open_file(e, path, err)) return 0;
    eval_close(e);
    return -1;
}

/* The accuracy of a guess. */
static inline double eval_chance(const Eval *e) {
    double sum = 0;
    for (size_t i = 0; i < e->count; i++) sum += 1.0 / e->item[i].completions;
    return sum / (double)e->count;
}

/* ---------------------------------------------------------------------------------------------- */
/* rows */

/* Writes T inputs and T targets of completion k. */
static inline void eval_row(const EvalExample *x, int k, int T, int *in, int *target) {
    int tokens = x->context + x->tokens[k], skip = max_int(0, tokens - (T + 1));
    for (int t = 0; t < T; t++) {
        in[t] = 0;
        target[t] = -1;
    }
    for (int i = skip; i < tokens; i++) {
        int in_context = i < x->context;
        int token = in_context ? x->contexts[i] : x->completion[k][i - x->context];
        if (i + 1 < tokens) in[i - skip] = token;
        if (!in_context) target[i - skip - 1] = token; /* skip < context, so i > skip */
    }
}

/* The example that has a row. */
static inline size_t eval_example_of(const Eval *e, size_t row) {
    size_t low = 0, high = e->count;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (e->item[middle].row <= row) low = middle;
        else high = middle;
    }
    return low;
}

/* Writes rows [first, first + rows), inputs x (rows,T) and targets y (rows,T). Returns 0, or -1
   with a message if the file is no longer what it was. */
static inline int eval_batch(Eval *e, size_t first, int rows, int *x, int *y, char *err) {
    for (int r = 0; r < rows; r++) {
        size_t row = first + (size_t)r, i = eval_example_of(e, row), at = (size_t)r * (size_t)e->T;
        if (eval_read(e, i, err)) return -1;
        eval_row(&e->example, (int)(row - e->item[i].row), e->T, x + at, y + at);
    }
    return 0;
}

/* Takes the losses (rows,T) of the rows that eval_batch has written. */
static inline void eval_take(Eval *e, size_t first, int rows, const floatM *losses, const int *y) {
    for (int r = 0; r < rows; r++) {
        double sum = 0;
        int n = 0;
        for (size_t t = (size_t)r * (size_t)e->T, end = t + (size_t)e->T; t < end; t++) {
            if (y[t] < 0) continue;
            sum += (double)losses[t];
            n++;
        }
        e->loss[first + (size_t)r] = sum;
        e->length[first + (size_t)r] = n;
    }
}

/* The completion of example i with the least loss, or with `mean` the least loss a token; -1 if no
   loss is a number. */
static inline int eval_choice(const Eval *e, size_t i, int mean) {
    double least = INFINITY;
    int choice = -1;
    for (int k = 0; k < e->item[i].completions; k++) {
        size_t row = e->item[i].row + (size_t)k;
        double loss = mean ? e->loss[row] / e->length[row] : e->loss[row];
        if (!(loss < least)) continue;
        least = loss;
        choice = k;
    }
    return choice;
}

/* The share of examples whose choice is right. */
static inline double eval_accuracy(const Eval *e, int mean) {
    size_t right = 0;
    for (size_t i = 0; i < e->count; i++) right += eval_choice(e, i, mean) == e->item[i].label;
    return (double)right / (double)e->count;
}

#endif
