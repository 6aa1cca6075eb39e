/*
Text to token shards with GPT-2's byte-pair encoding, and back.

    data/tokenize --input "texts/part*.txt" --output data/mine
    zcat big.txt.gz | data/tokenize --input - --output data/big --separator "<|endoftext|>"
    data/tokenize --decode "data/mine_train_*.bin" --output mine.txt --bytes 10M
    data/tokenize --texts texts.jsonl --output tokens.txt

Text is read in pieces, so an input may also be a pipe that brings more than fits into memory.

Every document is <|endoftext|> followed by its tokens. A file is one document unless --separator
divides it. A document may continue in the next shard. Shards are named as FineWeb's. The first,
PREFIX_val_000000.bin, is for validation, the others, PREFIX_train_000001.bin and on, are for
training. To train on them:
    --data "PREFIX_train_*.bin" --val-data PREFIX_val_000000.bin

--decode writes the text of shards to one file, which a model of bytes can train on, or to standard
output (--output -).

--texts reads texts for other programs, such as data/hellaswag.py: one JSON string a line. It writes
the tokenizer as tokenizer_id.h names it, a line, then the tokens of each text, a line each.
*/
#include "llmc/base.h"
#include "llmc/data.h"
#include "llmc/flags.h"
#include "llmc/tokenizer.h"

typedef struct {
    char input[FLAG_STRING_SIZE], output[FLAG_STRING_SIZE], separator[FLAG_STRING_SIZE];
    char encoder[FLAG_STRING_SIZE], bpe[FLAG_STRING_SIZE];
    char decode[FLAG_STRING_SIZE], texts[FLAG_STRING_SIZE];
    int64_t shard_tokens, val_tokens, bytes;
} Options;

#define FIELD(field) offsetof(Options, field)
static const Flag option_table[] = {
#define SECTION "Text"
    FLAG_TEXT("input", input, "",
              "text: a file, a quoted pattern such as \"texts/*.txt\", a pipe, or - for standard "
              "input"),
    FLAG_TEXT("separator", separator, "",
              "a line of exactly this text ends a document; empty: a file is one document"),
#undef SECTION
#define SECTION "Shards"
    FLAG_TEXT("output", output, "",
              "prefix of the shards: PREFIX_val_000000.bin, PREFIX_train_000001.bin, ...; with "
              "--decode and --texts the file to write, or - for standard output"),
    FLAG_LONG("shard-tokens", shard_tokens, "100M", 2, 4294967295.,
              "tokens in a shard; the last may have fewer"),
    FLAG_LONG("val-tokens", val_tokens, "-1", -1, 4294967295.,
              "tokens at the beginning that are for validation; 0: none; -1: one shard, or a tenth "
              "if all the text fits into one"),
#undef SECTION
#define SECTION "Back to text"
    FLAG_TEXT(
        "decode", decode, "",
        "shards whose text to write: a file, or a quoted pattern such as \"data/mine_*.bin\", read "
        "in the order of names, PREFIX_val before PREFIX_train; a document begins after a newline, "
        "or after a line of --separator"),
    FLAG_LONG("bytes", bytes, "0", 0, INFINITY,
              "bytes of text after which --decode stops, even within a document; 0: all"),
#undef SECTION
#define SECTION "Many texts"
    FLAG_TEXT("texts", texts, "",
              "texts, a JSON string a line: a file, or - for standard input; writes a line with "
              "the tokenizer, then the tokens of each text, a line each"),
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
    int shards;      /* number of shards that are written */
    size_t piece;    /* bytes of text that are read at a time */
    int in_document; /* whether the document that is being read has begun */
    int noted;       /* whether the note about <|endoftext|> is written */
    uint64_t bytes, tokens, documents;
} Job;

/* Text is read and encoded 16 MiB at a time. */
#define PIECE ((size_t)16 << 20)

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

/* Adds text to the document that is being read, which begins with its first byte. The text ends
   with the document or where a word ends. */
static int add_text(Job *job, const char *text, size_t n, char *err) {
    if (n == 0) return 0;
    if (!job->in_document) {
        job->in_document = 1;
        job->documents++;
        if (tokenizer_append(&job->pending, &job->tokenizer.eot, 1, err)) return -1;
    }
    job->bytes += n;
    if (tokenizer_encode(&job->tokenizer, text, n, 0, &job->pending, err)) return -1;
    return write_full_shards(job, err);
}

/* ---------------------------------------------------------------------------------------------- */
/* Reading */

/* A text that is read in pieces: a file, a pipe, standard input. Bytes [start, line) are of the
   document that is being read; [line, count) is the beginning of a line that may be a separator. */
typedef struct {
    const char *name;
    int fd, ended;
    char *bytes;
    size_t start, line, count, capacity;
    int inside; /* the line at `line` has lost its beginning, which was too long for a separator */
} Stream;

/* Reads as many bytes as a piece has, or as many as wait already, so that a long word is not looked
   at too often. Sets `ended` at the end of the file. */
static int stream_read(Job *job, Stream *s, char *err) {
    size_t keep = s->count - s->start, more = keep > job->piece ? keep : job->piece;
    if (s->start) memmove(s->bytes, s->bytes + s->start, keep);
    s->line -= s->start;
    s->count = keep;
    s->start = 0;
    if (s->capacity < keep + more) {
        char *p = (char *)realloc(s->bytes, keep + more);
        if (!p) return fail(err, "out of memory reading %s (a word of %zu bytes)", s->name, keep);
        s->bytes = p;
        s->capacity = keep + more;
    }
    while (s->count < keep + more && !s->ended) {
        ssize_t n = read(s->fd, s->bytes + s->count, keep + more - s->count);
        if (n < 0 && errno != EINTR)
            return fail(err, "cannot read %s: %s", s->name, strerror(errno));
        if (n > 0) s->count += (size_t)n;
        s->ended = n == 0;
    }
    return 0;
}

/* Says once that the text has <|endoftext|> and no separator was given. `from` is where new bytes
   begin. */
static void note_marker(Job *job, const Stream *s, size_t from) {
    const size_t n = strlen(TOKENIZER_EOT_TEXT);
    if (job->noted || job->o->separator[0]) return;
    const char *at = s->bytes + (from >= n ? from - n + 1 : 0), *end = s->bytes + s->count;
    while (at < end && (at = (const char *)memchr(at, '<', (size_t)(end - at))) != NULL) {
        if ((size_t)(end - at) >= n && !memcmp(at, TOKENIZER_EOT_TEXT, n)) {
            job->noted = 1;
            fprintf(stderr,
                    "note: %s has the text %s, which is kept as text, in several tokens; if lines "
                    "of it divide documents, begin anew with --separator \"%s\"\n",
                    s->name, TOKENIZER_EOT_TEXT, TOKENIZER_EOT_TEXT);
            return;
        }
        at++;
    }
}

/* Whether the line [line, stop) is the separator; it may end in a carriage return. */
static int is_separator(const Job *job, const char *line, const char *stop) {
    size_t m = strlen(job->o->separator);
    if (stop > line && stop[-1] == '\r') stop--;
    return m > 0 && (size_t)(stop - line) == m && !memcmp(line, job->o->separator, m);
}

/* Ends the document before the line [line, stop) if that is the separator, and moves past the line;
   `next` is where the next line begins. */
static int stream_line(Job *job, Stream *s, size_t stop, size_t next, char *err) {
    int ends = !s->inside && is_separator(job, s->bytes + s->line, s->bytes + stop);
    if (ends) {
        if (add_text(job, s->bytes + s->start, s->line - s->start, err)) return -1;
        job->in_document = 0;
        s->start = next;
    }
    s->line = next;
    s->inside = 0;
    return 0;
}

/* Looks at the lines that have been read. */
static int stream_lines(Job *job, Stream *s, char *err) {
    size_t m = strlen(job->o->separator);
    const char *newline;
    while (m && s->line < s->count &&
           (newline = (const char *)memchr(s->bytes + s->line, '\n', s->count - s->line))) {
        size_t stop = (size_t)(newline - s->bytes);
        if (stream_line(job, s, stop, stop + 1, err)) return -1;
    }
    if (s->ended) return stream_line(job, s, s->count, s->count, err);
    if (m && s->count - s->line <= m + 1) return 0; /* a carriage return may follow the separator */
    s->line = s->count;
    s->inside = 1;
    return 0;
}

/* Whether a word ends before byte k > start: there is white space, and none before it. Words have
   no white space but a space at their beginning, or nothing else. So the text before k has the same
   tokens whether more follows or not. */
static int word_ends(const Tokenizer *t, const Stream *s, size_t k) {
    const unsigned char *bytes = (const unsigned char *)s->bytes;
    size_t n, i = k - 1;
    if (!memchr(" \n\r\t", bytes[k], 4)) return 0;
    while (i > s->start && k - i < 4 && (bytes[i] & 0xC0) == 0x80) i--;
    int class_id = tokenizer_char(t, bytes + i, k - i, &n);
    return n < k - i || class_id != TOKEN_SPACE; /* n < k - i: the last byte is no UTF-8 */
}

/* Adds what has been read of a long document, up to the last place where a word ends. */
static int stream_part(Job *job, Stream *s, char *err) {
    size_t k = s->line;
    if (s->line - s->start < job->piece) return 0;
    while (--k > s->start && !word_ends(&job->tokenizer, s, k)) continue;
    if (k <= s->start) return 0;
    if (add_text(job, s->bytes + s->start, k - s->start, err)) return -1;
    s->start = k;
    return 0;
}

/* Refuses what is no text at the beginning of an input; a name that ends in .txt makes a warning of
   that. */
static int check_text(const Stream *s, char *err) {
    const unsigned char *p = (const unsigned char *)s->bytes;
    if (s->count < 4) return 0;
    int shard = data_u32(p) == DATA_MAGIC, named_text = data_ends_with(s->name, ".txt");
    if (shard && named_text) data_warn_shard(s->name);
    if (named_text) return 0;
    if (shard) return fail(err, "--input: %s already is a token shard", s->name);
    return data_ends_with(s->name, ".bin") ? data_fail_magic(s->name, p, err) : 0;
}

/* Adds all documents of an open file, and takes over its descriptor. An end of the file is the end
   of a document. */
static int add_stream(Job *job, const char *name, int fd, char *err) {
    Stream s;
    memset(&s, 0, sizeof s);
    s.name = name;
    s.fd = fd;
    int status = 0;
    for (int first = 1; !status && !s.ended; first = 0) {
        size_t from = s.count - s.start;
        status = stream_read(job, &s, err);
        if (!status && first) status = check_text(&s, err);
        if (!status) note_marker(job, &s, from);
        if (!status) status = stream_lines(job, &s, err);
        if (!status && !s.ended) status = stream_part(job, &s, err);
    }
    if (!status) status = add_text(job, s.bytes + s.start, s.count - s.start, err);
    job->in_document = 0;
    free(s.bytes);
    if (fd != STDIN_FILENO) close(fd);
    return status;
}

/* Opens an input: a file, or what can be read once, from front to back. Returns its descriptor, or
   -1 with a message. */
static int open_input(const char *path, char *err) {
    struct stat st;
    int bad = stat(path, &st);
    if (!bad && S_ISDIR(st.st_mode))
        return fail(err, "--input: %s is a folder; name its files, for example \"%s%s*.txt\"", path,
                    path, path[strlen(path) - 1] == '/' ? "" : "/");
    if (!bad && S_ISBLK(st.st_mode)) return fail(err, "--input: %s is a disk, not a file", path);
    int fd = bad ? -1 : file_open(path, O_RDONLY);
    return fd >= 0 ? fd : fail(err, "--input: cannot open %s: %s", path, strerror(errno));
}

/* Adds the documents of all inputs. */
static int add_inputs(Job *job, char *err) {
    Data names;
    if (!strcmp(job->o->input, "-")) return add_stream(job, "standard input", STDIN_FILENO, err);
    memset(&names, 0, sizeof names);
    int status = data_list(&names, job->o->input, err);
    size_t empty = 0, first_empty = 0;
    for (size_t i = 0; i < names.num_files && !status; i++) {
        uint64_t before = job->bytes;
        int fd = open_input(names.files[i].path, err);
        status = fd < 0 ? -1 : add_stream(job, names.files[i].path, fd, err);
        if (!status && job->bytes == before && !empty++) first_empty = i;
    }
    if (!status && empty) data_note_empty(empty, names.num_files, names.files[first_empty].path);
    data_close(&names);
    return status;
}

/* The end of a shard's path behind its prefix: "_val_000000.bin" or "_train_000001.bin". NULL if
   the path has no such end. */
static const char *shard_kind(const char *path) {
    static const char *const kinds[] = {"_val_", "_train_"};
    const size_t digits = 6, length = strlen(path);
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(kinds[i]), all = n + digits + strlen(".bin");
        const char *kind = path + length - all;
        if (length >= all && !strncmp(kind, kinds[i], n) &&
            strspn(kind + n, "0123456789") == digits && !strcmp(kind + n + digits, ".bin"))
            return kind;
    }
    return NULL;
}

/* Whether a name is that of a shard of this prefix. */
static int is_shard_name(const char *name, const char *prefix) {
    const char *kind = shard_kind(name);
    return kind && (size_t)(kind - name) == strlen(prefix) &&
           !strncmp(name, prefix, strlen(prefix));
}

/* Refuses to mix shards with those of an earlier run, because a pattern of names would match
   both. */
static int check_output(const Options *o, char *err) {
    char folder[FILE_PATH_SIZE];
    if (!o->output[0]) return fail(err, "--output PREFIX is missing: where to write (see --help)");
    if (!strcmp(o->output, "-"))
        return fail(err, "--output -: shards are several files, which standard output cannot take; "
                         "give a prefix of their names");
    const char *slash = strrchr(o->output, '/'), *prefix = slash ? slash + 1 : o->output;
    file_folder(folder, o->output);
    DIR *list = opendir(folder);
    if (!list) return fail(err, "--output: cannot open the folder %s: %s", folder, strerror(errno));
    int status = 0;
    for (struct dirent *entry; !status && (entry = readdir(list)) != NULL;)
        if (is_shard_name(entry->d_name, prefix))
            status =
                fail(err, "%s/%s exists; remove the shards of that run or give another --output",
                     folder, entry->d_name);
    closedir(list);
    return status;
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
    if (add_inputs(job, err)) return -1;
    if (!job->documents) return fail(err, "--input %s: there is no text", o->input);
    return write_rest(job, err);
}

/* ---------------------------------------------------------------------------------------------- */
/* Back to text */

/* The file that --decode writes. */
typedef struct {
    FILE *file;
    uint64_t bytes, limit;
    char last; /* the byte written last */
    int error; /* the errno of a write that failed; else 0 */
} TextFile;

/* Writes bytes up to the limit. */
static void write_text(TextFile *text, const char *bytes, size_t n) {
    n = min_size(n, (size_t)(text->limit - text->bytes));
    if (n == 0) return;
    if (fwrite(bytes, 1, n, text->file) < n && !text->error) text->error = errno;
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
    enum { MANY = 4096 };
    int ids[MANY];
    const DataFile *f = &d->files[file];
    for (size_t at = 0; at < f->count && text->bytes < text->limit && !text->error; at += MANY) {
        size_t n = min_size(MANY, f->count - at);
        if (data_read(d, file, at, n, ids, err)) return -1;
        for (size_t i = 0; i < n && text->bytes < text->limit; i++)
            if (decode_token(job, ids[i], text))
                return fail(err, "%s: token %zu is %d, but %s has only %d tokens", f->path, at + i,
                            ids[i], job->o->encoder, job->tokenizer.vocab);
    }
    return 0;
}

/* What the order of decoding compares: the path, but PREFIX_val_000000.bin comes right before
   PREFIX_train_000001.bin, since data/tokenize wrote the beginning of the text there. */
static void shard_key(char *key, const char *path) {
    const char *kind = shard_kind(path);
    if (kind && !strncmp(kind, "_val_", 5))
        file_path(key, "%.*s_train_ %s", (int)(kind - path), path, kind + 5);
    else file_path(key, "%s", path);
}

static int compare_shards(const void *a, const void *b) {
    char x[FILE_PATH_SIZE], y[FILE_PATH_SIZE];
    shard_key(x, (*(const DataFile *const *)a)->path);
    shard_key(y, (*(const DataFile *const *)b)->path);
    return strcmp(x, y);
}

/* Writes the text of all shards, in the order in which data/tokenize writes them. */
static int decode_shards(Job *job, Data *d, TextFile *text, char *err) {
    const DataFile **order = (const DataFile **)malloc(d->num_files * sizeof *order);
    if (!order) return fail(err, "out of memory: the order of %zu shards", d->num_files);
    for (size_t k = 0; k < d->num_files; k++) order[k] = &d->files[k];
    qsort(order, d->num_files, sizeof *order, compare_shards);
    if (job->o->bytes > 0) text->limit = (uint64_t)job->o->bytes;
    int status = 0;
    for (size_t k = 0; k < d->num_files && !status && !text->error; k++)
        status = decode_shard(job, d, (size_t)(order[k] - d->files), text, err);
    free(order);
    if (fflush(text->file) && !text->error) text->error = errno;
    job->bytes = text->bytes;
    return status;
}

/* Writes the text of shards to standard output. */
static int decode_to_output(Job *job, Data *d, char *err) {
    TextFile text = {stdout, 0, UINT64_MAX, '\n', 0};
    if (decode_shards(job, d, &text, err)) return -1;
    return text.error ? fail(err, "cannot write the text: %s", strerror(text.error)) : 0;
}

/* Writes the text of shards to a temporary file, which replaces `path` once it is complete. */
static int decode_to_file(Job *job, Data *d, const char *path, char *err) {
    char temporary[FILE_PATH_SIZE], folder[FILE_PATH_SIZE];
    file_temporary(temporary, path);
    TextFile text = {fopen(temporary, "wb"), 0, UINT64_MAX, '\n', 0};
    if (!text.file) return fail(err, "cannot create %s: %s", temporary, strerror(errno));
    int status = decode_shards(job, d, &text, err);
    if (!text.error && file_sync(fileno(text.file))) text.error = errno;
    if (fclose(text.file) && !text.error) text.error = errno;
    if (!status && !text.error && rename(temporary, path)) text.error = errno;
    if (!status && text.error)
        status = fail(err, "cannot write %s: %s", path, strerror(text.error));
    if (status) {
        unlink(temporary);
        return -1;
    }
    file_folder(folder, path);
    if (file_sync_folder(folder))
        return fail(err, "cannot sync the folder %s: %s", folder, strerror(errno));
    return 0;
}

/* "-": --decode and --texts write to standard output, where then nothing else is written. */
static int is_output_text(const Options *o) {
    return (o->decode[0] || o->texts[0]) && !strcmp(o->output, "-");
}

/* Refuses a file that exists, and none. */
static int check_output_file(const Options *o, char *err) {
    if (!o->output[0])
        return fail(err, "--output FILE is missing: where to write the text (see --help)");
    if (!is_output_text(o) && access(o->output, F_OK) == 0)
        return fail(err, "%.700s exists; remove it or give another --output", o->output);
    return 0;
}

static int decode(Job *job, char *err) {
    const Options *o = job->o;
    if (o->input[0]) return fail(err, "--input reads text and --decode reads shards; give one");
    if (check_output_file(o, err) || load_tokenizer(job, err)) return -1;
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
    if (!status)
        status = is_output_text(o) ? decode_to_output(job, &d, err)
                                   : decode_to_file(job, &d, o->output, err);
    data_close(&d);
    return status;
}

/* ---------------------------------------------------------------------------------------------- */
/* Many texts */

/* Writes the tokens of a text, a JSON string of n bytes at `line`, with a zero byte behind them.
   Returns -1 if the line is no such string. */
static int write_tokens(Job *job, char *line, size_t n, FILE *to, char *err) {
    TokenList *list = &job->pending;
    JsonReader r = {(unsigned char *)line, n, 0};
    char *text = (char *)malloc(n + 1);
    list->count = 0;
    int status = text ? json_read_string(&r, text, n + 1) : fail(err, "out of memory: a text");
    json_skip_space(&r);
    if (text && (status || r.at < n))
        status = fail(err, "--texts %s: line %llu is not one JSON string", job->o->texts,
                      (unsigned long long)job->documents + 1);
    if (!status) status = tokenizer_encode(&job->tokenizer, text, strlen(text), 0, list, err);
    for (size_t i = 0; i < list->count && !status; i++)
        fprintf(to, "%s%d", i ? " " : "", list->ids[i]);
    if (!status) {
        fputc('\n', to);
        job->documents++;
        job->tokens += list->count;
        job->bytes += strlen(text);
    }
    free(text);
    return status;
}

/* Writes the tokens of all texts that `from` has. */
static int write_all_tokens(Job *job, FILE *from, FILE *to, char *err) {
    char *line = NULL, id[TOKENIZER_ID_SIZE];
    size_t size = 0;
    int status = 0;
    fprintf(to, "%s\n", tokenizer_id_text(job->id, id));
    for (ssize_t n; !status && (n = getline(&line, &size, from)) > 0;)
        status = write_tokens(job, line, (size_t)n, to, err);
    if (!status && !feof(from))
        status = fail(err, "--texts: cannot read %s: %s", job->o->texts, strerror(errno));
    free(line);
    return status;
}

/* --texts: the tokens are written when the last text is read, so that there is no part of them. */
static int tokenize_texts(Job *job, char *err) {
    const Options *o = job->o;
    char *tokens = NULL;
    size_t size = 0;
    if (o->input[0] || o->decode[0])
        return fail(err, "--texts is given with --input or --decode; give one of them");
    if (check_output_file(o, err) || load_tokenizer(job, err)) return -1;
    FILE *from = strcmp(o->texts, "-") ? fopen(o->texts, "rbe") : stdin;
    if (!from) return fail(err, "--texts: cannot open %s: %s", o->texts, strerror(errno));
    FILE *to = open_memstream(&tokens, &size);
    int status = to ? write_all_tokens(job, from, to, err) : fail(err, "out of memory: tokens");
    if (to && fclose(to) && !status) status = fail(err, "out of memory: tokens");
    if (from != stdin) fclose(from);
    if (!status && !is_output_text(o)) status = file_replace(o->output, tokens, size, err);
    else if (!status && (fwrite(tokens, 1, size, stdout) < size || fflush(stdout)))
        status = fail(err, "cannot write the tokens: %s", strerror(errno));
    free(tokens);
    return status;
}

/* ---------------------------------------------------------------------------------------------- */

/* Refuses a separator that no line can be: a line ends before "\n" and before "\r\n". */
static int check_separator(const char *separator, char *err) {
    size_t n = strlen(separator);
    if (!strchr(separator, '\n') && (!n || separator[n - 1] != '\r')) return 0;
    return fail(err,
                "--separator: the text has a line end, so no line can be equal to it; give the "
                "text of one line without its end");
}

/* Does what the flags ask for. */
static int run_job(Job *job, char *err) {
    signal(SIGPIPE, SIG_IGN); /* a reader of the output that goes away is a failed write */
    if (check_separator(job->o->separator, err)) return -1;
    if (job->o->texts[0]) return tokenize_texts(job, err);
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
                   "data/tokenize --decode SHARDS --output FILE|- [--bytes N]\n"
                   "data/tokenize --texts FILE|- --output FILE|-",
                   option_table, OPTIONS);
        return output_status(stdout);
    }
    Job job;
    memset(&job, 0, sizeof job);
    job.o = &options;
    job.piece = PIECE;
    double start = now_seconds();
    status = run_job(&job, err);
    free(job.pending.ids);
    free(job.shard);
    tokenizer_free(&job.tokenizer);
    if (status) die("%s", err);
    double seconds = now_seconds() - start;
    fprintf(is_output_text(&options) ? stderr : stdout,
            "%llu documents, %llu bytes, %llu tokens in %.1f s (%.1f MB/s)\n",
            (unsigned long long)job.documents, (unsigned long long)job.bytes,
            (unsigned long long)job.tokens, seconds, (double)job.bytes / 1e6 / fmax(seconds, 1e-9));
    return 0;
}
