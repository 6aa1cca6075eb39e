/*
Text to token shards with GPT-2's byte-pair encoding, and back.

    data/tokenize --input "texts/part*.txt" --output data/mine
    zcat big.txt.gz | data/tokenize --input - --output data/big --separator "<|endoftext|>"
    data/tokenize --decode "data/mine_train_*.bin" --output mine.txt --bytes 10M

Every document is <|endoftext|> followed by its tokens. A file is one document unless --separator
divides it. A document may continue in the next shard. Shards are named as FineWeb's. The first,
PREFIX_val_000000.bin, is for validation, the others, PREFIX_train_000001.bin and on, are for
training. To train on them:
    --data "PREFIX_train_*.bin" --val-data PREFIX_val_000000.bin

--decode writes the text of shards to one file, which a model of bytes can train on.
*/
#include "llmc/base.h"
#include "llmc/data.h"
#include "llmc/flags.h"
#include "llmc/tokenizer.h"

typedef struct {
    char input[FLAG_STRING_SIZE], output[FLAG_STRING_SIZE], separator[FLAG_STRING_SIZE];
    char encoder[FLAG_STRING_SIZE], bpe[FLAG_STRING_SIZE];
    char decode[FLAG_STRING_SIZE];
    int64_t shard_tokens, val_tokens, bytes;
} Options;

#define FIELD(field) offsetof(Options, field)
static const Flag option_table[] = {
#define SECTION "Text"
    FLAG_TEXT("input", input, "",
              "text: a file, a quoted pattern such as \"texts/*.txt\", or - for standard input"),
    FLAG_TEXT("separator", separator, "",
              "a line of exactly this text ends a document; empty: a file is one document"),
#undef SECTION
#define SECTION "Shards"
    FLAG_TEXT("output", output, "",
              "prefix of the shards: PREFIX_val_000000.bin, PREFIX_train_000001.bin, ...; with "
              "--decode the text file to write"),
    FLAG_LONG("shard-tokens", shard_tokens, "100M", 2, 4294967295.,
              "tokens in a shard; the last may have fewer"),
    FLAG_LONG("val-tokens", val_tokens, "-1", -1, 4294967295.,
              "tokens at the beginning that are for validation; 0: none; -1: one shard, or a tenth "
              "if all the text fits into one"),
#undef SECTION
#define SECTION "Back to text"
    FLAG_TEXT(
        "decode", decode, "",
        "shards whose text to write: a file, or a quoted pattern such as \"data/mine_*.bin\"; "
        "a document begins after a newline, or after a line of --separator"),
    FLAG_LONG("bytes", bytes, "0", 0, INFINITY,
              "bytes of text after which --decode stops, even within a document; 0: all"),
#undef SECTION
#define SECTION "Tokenizer"
    FLAG_TEXT("encoder", encoder, "data/gpt2-bpe/encoder.json",
              "the vocabulary; data/gpt2_bpe.sh fetches it"),
    FLAG_TEXT("bpe", bpe, "data/gpt2-bpe/vocab.bpe", "the merges"),
};
#undef SECTION
#define OPTIONS (int)(sizeof option_table / sizeof option_table[0])

/* `pending` collects tokens. The next shard is written when `pending` holds more tokens than the
   shard takes. So at the end it is known whether all the text fits into one shard. */
typedef struct {
    const Options *o;
    Tokenizer tokenizer;
    TokenizerId id; /* of the tokenizer */
    TokenList pending;
    uint16_t *shard;
    size_t shard_capacity;
    int shards; /* number of shards that are written */
    uint64_t bytes, tokens, documents;
} Job;

/* Writes the first n pending tokens as the next shard. */
static int write_shard(Job *job, size_t n, char *err) {
    char path[FILE_PATH_SIZE];
    const char *kind = job->shards == 0 && job->o->val_tokens != 0 ? "val" : "train";
    int number = job->shards + (job->o->val_tokens == 0);
    file_path(path, "%s_%s_%06d.bin", job->o->output, kind, number);
    if (n > job->shard_capacity) {
        uint16_t *p = (uint16_t *)realloc(job->shard, n * sizeof(uint16_t));
        if (!p) return fail(err, "out of memory writing %s", path);
        job->shard = p;
        job->shard_capacity = n;
    }
    for (size_t i = 0; i < n; i++) job->shard[i] = (uint16_t)job->pending.ids[i];
    if (data_write_shard_of(job->id, path, job->shard, n, err)) return -1;
    job->pending.count -= n;
    memmove(job->pending.ids, job->pending.ids + n, job->pending.count * sizeof(int));
    job->shards++;
    job->tokens += n;
    printf("%s: %zu tokens\n", path, n);
    fflush(stdout);
    return 0;
}

/* The number of tokens that the next shard should have. */
static size_t next_shard(const Job *job) {
    if (job->shards == 0 && job->o->val_tokens > 0) return (size_t)job->o->val_tokens;
    return (size_t)job->o->shard_tokens;
}

static int write_full_shards(Job *job, char *err) {
    while (job->pending.count > next_shard(job))
        if (write_shard(job, next_shard(job), err)) return -1;
    return 0;
}

static int write_rest(Job *job, char *err) {
    if (write_full_shards(job, err)) return -1;
    size_t n = job->pending.count;
    if (job->shards == 0 && job->o->val_tokens > 0)
        return fail(err,
                    "--val-tokens %lld: the text has only %zu tokens, so none would be left "
                    "for training",
                    (long long)job->o->val_tokens, n);
    if (job->shards == 0 && job->o->val_tokens < 0) {
        if (n < 20) return fail(err, "--input %s: %zu tokens are too few", job->o->input, n);
        if (write_shard(job, n / 10, err)) return -1;
    }
    return job->pending.count ? write_shard(job, job->pending.count, err) : 0;
}

/* Adds a document. It is encoded in pieces, so that a huge document needs no huge list. A piece
   ends before a space that follows a visible character. Such a space always begins a word, so no
   word is cut. */
static int add_document(Job *job, const char *text, size_t n, char *err) {
    if (n == 0) return 0;
    job->documents++;
    job->bytes += n;
    if (tokenizer_encode(&job->tokenizer, TOKENIZER_EOT_TEXT, strlen(TOKENIZER_EOT_TEXT), 1,
                         &job->pending, err))
        return -1;
    while (n > 0) {
        size_t k = min_size(n, (size_t)16 << 20);
        while (k < n && !(text[k] == ' ' && text[k - 1] > ' ' && text[k - 1] < 127)) k++;
        if (tokenizer_encode(&job->tokenizer, text, k, 0, &job->pending, err)) return -1;
        if (write_full_shards(job, err)) return -1;
        text += k;
        n -= k;
    }
    return 0;
}

/* Adds a text, which separator lines divide into documents. */
static int add_text(Job *job, const char *text, size_t n, char *err) {
    const char *separator = job->o->separator, *end = text + n, *document = text;
    size_t m = strlen(separator);
    for (const char *line = text; m > 0 && line < end;) {
        const char *newline = (const char *)memchr(line, '\n', (size_t)(end - line));
        const char *stop = newline ? newline : end, *next = newline ? newline + 1 : end;
        if (stop > line && stop[-1] == '\r') stop--;
        if ((size_t)(stop - line) == m && memcmp(line, separator, m) == 0) {
            if (add_document(job, document, (size_t)(line - document), err)) return -1;
            document = next;
        }
        line = next;
    }
    return add_document(job, document, (size_t)(end - document), err);
}

static int add_standard_input(Job *job, char *err) {
    char *text = NULL;
    size_t n = 0, capacity = 0, k;
    do {
        if (n == capacity) {
            capacity = capacity ? 2 * capacity : (size_t)1 << 20;
            char *p = (char *)realloc(text, capacity);
            if (!p) {
                free(text);
                return fail(err, "out of memory reading standard input (%zu bytes)", n);
            }
            text = p;
        }
        k = fread(text + n, 1, capacity - n, stdin);
        n += k;
    } while (k > 0);
    int status = ferror(stdin) ? fail(err, "cannot read standard input: %s", strerror(errno))
                               : add_text(job, text, n, err);
    free(text);
    return status;
}

static int add_files(Job *job, char *err) {
    Data d;
    if (data_open(&d, job->o->input, DATA_ALL, DATA_SEQUENTIAL, 0, 1, 0, err)) return -1;
    int status = d.is_text ? 0 : fail(err, "--input: %s already is a token shard", d.files[0].path);
    for (size_t i = 0; i < d.num_files && !status; i++)
        status = data_map(&d, i, err) ||
                 add_text(job, (const char *)d.files[i].map->bytes, d.files[i].count, err);
    data_close(&d);
    return status;
}

/* Refuses to mix shards with those of an earlier run, because a pattern of names would match
   both. */
static int check_output(const Options *o, char *err) {
    if (!o->output[0]) return fail(err, "--output PREFIX is missing: where to write (see --help)");
    static const char *const kinds[] = {"val", "train"};
    for (int i = 0; i < 2; i++) {
        char pattern[FILE_PATH_SIZE], first[FILE_PATH_SIZE] = "";
        glob_t g;
        memset(&g, 0, sizeof g);
        file_path(pattern, "%s_%s_[0-9][0-9][0-9][0-9][0-9][0-9].bin", o->output, kinds[i]);
        if (glob(pattern, 0, NULL, &g) == 0) file_path(first, "%s", g.gl_pathv[0]);
        globfree(&g);
        if (first[0])
            return fail(err,
                        "%.700s exists; remove the shards of that run or give another "
                        "--output",
                        first);
    }
    return 0;
}

static int load_tokenizer(Job *job, char *err) {
    const Options *o = job->o;
    if (tokenizer_load(&job->tokenizer, o->encoder, o->bpe, err)) return -1;
    if (job->tokenizer.vocab > 65536 || job->tokenizer.eot < 0)
        return fail(err, "%s: shards need at most 65536 tokens, one of them %s", o->encoder,
                    TOKENIZER_EOT_TEXT);
    job->id = tokenizer_id(&job->tokenizer);
    return 0;
}

static int tokenize(Job *job, char *err) {
    const Options *o = job->o;
    if (check_output(o, err) || load_tokenizer(job, err)) return -1;
    int standard = strcmp(o->input, "-") == 0;
    if (standard ? add_standard_input(job, err) : add_files(job, err)) return -1;
    return write_rest(job, err);
}

/* ---------------------------------------------------------------------------------------------- */
/* Back to text */

/* The file that --decode writes. */
typedef struct {
    FILE *file;
    uint64_t bytes, limit;
    char last; /* the byte written last */
} TextFile;

/* Writes bytes up to the limit. An error of the file shows when the file is closed. */
static void write_text(TextFile *text, const char *bytes, size_t n) {
    n = min_size(n, (size_t)(text->limit - text->bytes));
    if (n == 0) return;
    fwrite(bytes, 1, n, text->file);
    text->bytes += n;
    text->last = bytes[n - 1];
}

/* Writes what divides a document from the next: a newline, or a whole line of --separator. */
static void write_separator(TextFile *text, const char *separator) {
    if (!separator[0] || text->last != '\n') write_text(text, "\n", 1);
    if (!separator[0]) return;
    write_text(text, separator, strlen(separator));
    write_text(text, "\n", 1);
}

/* Writes the text of a token, or what begins a document. Returns -1 if there is no such token. */
static int decode_token(Job *job, int id, TextFile *text) {
    const Tokenizer *t = &job->tokenizer;
    size_t n;
    const char *bytes = tokenizer_decode(t, id, &n);
    if (!bytes) return -1;
    if (id == t->eot && job->tokens > 0) write_separator(text, job->o->separator);
    if (id == t->eot || job->tokens == 0) job->documents++;
    if (id != t->eot) write_text(text, bytes, n);
    job->tokens++;
    return 0;
}

/* Writes the text of one shard. */
static int decode_shard(Job *job, Data *d, size_t file, TextFile *text, char *err) {
    enum { PIECE = 4096 };
    int ids[PIECE];
    const DataFile *f = &d->files[file];
    for (size_t at = 0; at < f->count && text->bytes < text->limit; at += PIECE) {
        size_t n = min_size(PIECE, f->count - at);
        if (data_read(d, file, at, n, ids, err)) return -1;
        for (size_t i = 0; i < n && text->bytes < text->limit; i++)
            if (decode_token(job, ids[i], text))
                return fail(err, "%s: token %zu is %d, but %s has only %d tokens", f->path, at + i,
                            ids[i], job->o->encoder, job->tokenizer.vocab);
    }
    return 0;
}

/* Writes the text of shards to a temporary file, which replaces `path` once it is complete. */
static int decode_to_file(Job *job, Data *d, const char *path, char *err) {
    char temporary[FILE_PATH_SIZE], folder[FILE_PATH_SIZE];
    file_temporary(temporary, path);
    TextFile text = {fopen(temporary, "wb"), 0, UINT64_MAX, '\n'};
    if (!text.file) return fail(err, "cannot create %s: %s", temporary, strerror(errno));
    if (job->o->bytes > 0) text.limit = (uint64_t)job->o->bytes;
    int status = 0;
    for (size_t k = 0; k < d->num_files && !status && !ferror(text.file); k++)
        status = decode_shard(job, d, k, &text, err);
    job->bytes = text.bytes;
    int broken = ferror(text.file) || fflush(text.file) || file_sync(fileno(text.file));
    int saved = errno;
    if (fclose(text.file) && !broken) {
        broken = 1;
        saved = errno;
    }
    if (!status && (broken || rename(temporary, path)))
        status = fail(err, "cannot write %s: %s", path, strerror(broken ? saved : errno));
    if (status) {
        unlink(temporary);
        return -1;
    }
    file_folder(folder, path);
    if (file_sync_folder(folder))
        return fail(err, "cannot sync the folder %s: %s", folder, strerror(errno));
    return 0;
}

static int decode(Job *job, char *err) {
    const Options *o = job->o;
    if (o->input[0]) return fail(err, "--input reads text and --decode reads shards; give one");
    if (!o->output[0])
        return fail(err, "--output FILE is missing: where to write the text (see --help)");
    if (access(o->output, F_OK) == 0)
        return fail(err, "%.700s exists; remove it or give another --output", o->output);
    if (load_tokenizer(job, err)) return -1;
    Data d;
    if (data_open(&d, o->decode, DATA_ALL, DATA_SEQUENTIAL, 0, 1, 0, err)) return -1;
    char shards[TOKENIZER_ID_SIZE], loaded[TOKENIZER_ID_SIZE];
    int status = 0;
    if (d.is_text) status = fail(err, "--decode: %s is text, not a token shard", d.files[0].path);
    else if (d.tokenizer.fingerprint && !tokenizer_id_agree(d.tokenizer, job->id))
        status = fail(err,
                      "--decode: the tokenizer of %.300s is %s, but %.300s is that of %s: name the "
                      "vocabulary of the shards with --encoder and --bpe",
                      d.files[0].path, tokenizer_id_text(d.tokenizer, shards), o->encoder,
                      tokenizer_id_text(job->id, loaded));
    if (!status) status = decode_to_file(job, &d, o->output, err);
    data_close(&d);
    return status;
}

/* Does what the flags ask for. */
static int run_job(Job *job, char *err) {
    if (job->o->decode[0]) return decode(job, err);
    if (!job->o->input[0])
        return fail(err, "--input FILE is missing: what to read (see --help); --decode SHARDS "
                         "writes the text of shards");
    if (job->o->bytes) return fail(err, "--bytes belongs to --decode");
    return tokenize(job, err);
}

int main(int argc, char **argv) {
    output_hold();
    char err[ERR_LEN];
    Options options;
    flags_defaults(option_table, OPTIONS, &options);
    int status = flags_parse(option_table, OPTIONS, &options, NULL, argc, argv, err);
    if (status < 0) die("%s", err);
    if (status > 0) {
        flags_help(stdout,
                   "data/tokenize --input FILE --output PREFIX [--flag value ...]\n"
                   "data/tokenize --decode SHARDS --output FILE [--bytes N]",
                   option_table, OPTIONS);
        return output_status(stdout);
    }
    Job job;
    memset(&job, 0, sizeof job);
    job.o = &options;
    double start = now_seconds();
    status = run_job(&job, err);
    free(job.pending.ids);
    free(job.shard);
    tokenizer_free(&job.tokenizer);
    if (status) die("%s", err);
    double seconds = now_seconds() - start;
    printf("%llu documents, %llu bytes, %llu tokens in %.1f s (%.1f MB/s)\n",
           (unsigned long long)job.documents, (unsigned long long)job.bytes,
           (unsigned long long)job.tokens, seconds, (double)job.bytes / 1e6 / fmax(seconds, 1e-9));
    return 0;
}
