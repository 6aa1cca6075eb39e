/*
Text to tokens and back: GPT-2's byte-level BPE from its published files, or plain bytes.

    Tokenizer t;
    TokenList list = {0};
    if (tokenizer_load(&t, "encoder.json", "vocab.bpe", err)) ...     or tokenizer_bytes(&t, err)
    if (tokenizer_encode(&t, text, n, 0, &list, err)) ...             appends to list.ids
    size_t length;
    const char *bytes = tokenizer_decode(&t, id, &length);            without a terminating zero
    free(list.ids);
    tokenizer_free(&t);

Text is cut into words by the pattern
    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
with the Unicode classes of unicode_classes.h. At first every byte of a word is a token. Then the
adjacent pair that comes first in vocab.bpe is merged, until no pair can be merged.

A byte that is not part of valid UTF-8 counts as one character that is neither letter, number nor
space. So decoding always gives back the bytes that were encoded.

A Tokenizer caches words while it encodes: only one thread may use it at a time.
*/
#ifndef CM_TOKENIZER_H
#define CM_TOKENIZER_H

#include <errno.h>

#include "base.h"
#include "json.h"
#include "tokenizer_id.h"
#include "unicode_classes.h"

#define TOKENIZER_EOT_TEXT "<|endoftext|>"

/* A growing list of token ids: starts as zeros, ends with free(list.ids). */
typedef struct {
    int *ids;
    size_t count, capacity;
} TokenList;

/* The pair (left, right) becomes `merged`; pairs of lower rank come first. merged -1: an empty
   slot. */
typedef struct {
    int left, right, rank, merged;
} TokenMerge;

/* A word and its tokens, one cache line. Longer words are not cached. length 0: an empty slot. */
typedef struct {
    unsigned char length, count, bytes[22];
    int ids[10];
} TokenWord;

/* A token of a word that is being merged, in a doubly linked list. */
typedef struct {
    int id; /* -1: merged into its left neighbour */
    size_t previous, next;
} TokenNode;

/* A pair of neighbours that could be merged, in a heap. Pairs of tokens that were merged since then
   are out of date; they are skipped when they are taken. */
typedef struct {
    int rank, left, right, merged;
    size_t at;
} TokenPair;

typedef struct {
    int vocab;   /* number of tokens */
    int eot;     /* id of <|endoftext|>, or -1 where there is none */
    char *bytes; /* token i is bytes[offsets[i]] up to offsets[i + 1] */
    size_t *offsets;
    int byte_id[256];
    TokenMerge *merges; /* open addressing; NULL: every byte is a token */
    size_t merge_mask;
    TokenWord *cache;       /* direct mapped */
    unsigned char *classes; /* of the first 65536 code points */
    TokenNode *nodes;
    TokenPair *heap;
    size_t heap_count, nodes_capacity, heap_capacity;
} Tokenizer;

#define TOKENIZER_CACHE_SIZE 32768

/* ---------------------------------------------------------------------------------------------- */
/* characters */

enum { TOKEN_OTHER, TOKEN_LETTER, TOKEN_NUMBER, TOKEN_SPACE };

/* Sets the class of all code points in a list of ranges. */
static inline void tokenizer_fill_class(unsigned char *classes, const uint32_t (*ranges)[2],
                                        size_t n, int class_id) {
    for (size_t i = 0; i < n; i++)
        for (uint32_t c = ranges[i][0]; c <= ranges[i][1] && c < 65536; c++)
            classes[c] = (unsigned char)class_id;
}

static inline int tokenizer_in_ranges(const uint32_t (*ranges)[2], size_t n, uint32_t c) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > ranges[middle][1]) low = middle + 1;
        else high = middle;
    }
    return low < n && c >= ranges[low][0];
}

#define TOKENIZER_ROWS(table) (sizeof(table) / sizeof((table)[0]))

static inline int tokenizer_class(const Tokenizer *t, uint32_t c) {
    if (c < 65536) return t->classes[c];
    if (tokenizer_in_ranges(unicode_letters, TOKENIZER_ROWS(unicode_letters), c))
        return TOKEN_LETTER;
    if (tokenizer_in_ranges(unicode_numbers, TOKENIZER_ROWS(unicode_numbers), c))
        return TOKEN_NUMBER;
    return TOKEN_OTHER; /* all white space is below 65536 */
}

/* Class and length of the character at s, of which n > 0 bytes are in bounds. */
static inline int tokenizer_char(const Tokenizer *t, const unsigned char *s, size_t n,
                                 size_t *length) {
    uint32_t code = 0;
    *length = 1;
    if (s[0] < 0x80) return t->classes[s[0]];
    size_t k = utf8_decode(s, n, &code);
    if (k == 0) return TOKEN_OTHER;
    *length = k;
    return tokenizer_class(t, code);
}

/* Length of the word with which s begins, n > 0 bytes. */
static inline size_t tokenizer_word(const Tokenizer *t, const unsigned char *s, size_t n) {
    if (s[0] == '\'' && n > 1) {
        char a = (char)s[1], b = n > 2 ? (char)s[2] : 0;
        if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
        if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    }
    size_t k, i = 0;
    int c = tokenizer_char(t, s, n, &k);
    if (s[0] == ' ' && n > 1) { /* a word may begin with one space */
        int after = tokenizer_char(t, s + 1, n - 1, &k);
        if (after != TOKEN_SPACE) {
            c = after;
            i = 1;
        }
    }
    size_t last = 0;
    while (i < n && tokenizer_char(t, s + i, n - i, &k) == c) {
        last = i;
        i += k;
    }
    /* The last of several white-space characters belongs to the next word, since \s+(?!\S) comes
       before \s+ in the pattern. */
    if (c == TOKEN_SPACE && i < n && last > 0) return last;
    return i;
}

/* ---------------------------------------------------------------------------------------------- */
/* merging */

static inline uint64_t tokenizer_hash(const void *bytes, size_t n) {
    uint64_t h = fnv1a(FNV_BASIS, bytes, n);
    return h ^ (h >> 29) ^ (h >> 47);
}

static inline size_t tokenizer_pair_slot(const Tokenizer *t, int left, int right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15ull;
    size_t slot = (size_t)(h >> 32) & t->merge_mask;
    while (t->merges[slot].merged >= 0 &&
           (t->merges[slot].left != left || t->merges[slot].right != right))
        slot = (slot + 1) & t->merge_mask;
    return slot;
}

/* Makes room for `count` elements. The room doubles, so that appending takes constant time on
   average. */
static inline int tokenizer_grow(void **array, size_t *capacity, size_t count, size_t size,
                                 char *err) {
    if (count <= *capacity) return 0;
    size_t want = count > *capacity * 2 ? count : *capacity * 2;
    if (want < 64) want = 64;
    void *p = want > SIZE_MAX / size ? NULL : realloc(*array, want * size);
    if (!p) return fail(err, "out of memory encoding text (%zu tokens)", count);
    *array = p;
    *capacity = want;
    return 0;
}

static inline int tokenizer_append(TokenList *list, const int *ids, size_t n, char *err) {
    void *array = list->ids;
    if (tokenizer_grow(&array, &list->capacity, list->count + n, sizeof(int), err)) return -1;
    list->ids = (int *)array;
    memcpy(list->ids + list->count, ids, n * sizeof(int));
    list->count += n;
    return 0;
}

/* 1 if pair a is merged before b: it has a lower rank, or an equal one and is further left. */
static inline int tokenizer_before(const TokenPair *a, const TokenPair *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Puts the pair (node at, its right neighbour) on the heap if it can be merged. The heap has room:
   a word of n bytes makes at most n - 1 pairs at first and two more per merge. */
static inline void tokenizer_push(Tokenizer *t, size_t at) {
    size_t right = t->nodes[at].next;
    if (right == SIZE_MAX) return;
    const TokenMerge *m = &t->merges[tokenizer_pair_slot(t, t->nodes[at].id, t->nodes[right].id)];
    if (m->merged < 0) return;
    TokenPair pair = {m->rank, m->left, m->right, m->merged, at};
    size_t i = t->heap_count++;
    while (i > 0 && tokenizer_before(&pair, &t->heap[(i - 1) / 2])) {
        t->heap[i] = t->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    t->heap[i] = pair;
}

static inline TokenPair tokenizer_pop(Tokenizer *t) {
    TokenPair top = t->heap[0], last = t->heap[--t->heap_count];
    size_t i = 0, n = t->heap_count;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && tokenizer_before(&t->heap[child + 1], &t->heap[child])) child++;
        if (!tokenizer_before(&t->heap[child], &last)) break;
        t->heap[i] = t->heap[child];
        i = child;
    }
    t->heap[i] = last;
    return top;
}

/* Merges a word of n > 0 bytes in O(n log n); its tokens are nodes 0, nodes[0].next, ... */
static inline int tokenizer_merge(Tokenizer *t, const unsigned char *word, size_t n, char *err) {
    void *nodes = t->nodes, *heap = t->heap;
    int bad = tokenizer_grow(&nodes, &t->nodes_capacity, n, sizeof(TokenNode), err);
    t->nodes = (TokenNode *)nodes;
    bad = bad || tokenizer_grow(&heap, &t->heap_capacity, 3 * n, sizeof(TokenPair), err);
    t->heap = (TokenPair *)heap;
    if (bad) return -1;
    for (size_t i = 0; i < n; i++) {
        t->nodes[i].id = t->byte_id[word[i]];
        t->nodes[i].previous = i - 1; /* SIZE_MAX before the first */
        t->nodes[i].next = i + 1 < n ? i + 1 : SIZE_MAX;
    }
    t->heap_count = 0;
    for (size_t i = 0; i + 1 < n; i++) tokenizer_push(t, i);
    while (t->heap_count > 0) {
        TokenPair p = tokenizer_pop(t);
        TokenNode *node = &t->nodes[p.at];
        if (node->id != p.left || node->next == SIZE_MAX) continue; /* the pair is out of date */
        TokenNode *right = &t->nodes[node->next];
        if (right->id != p.right) continue;
        node->id = p.merged;
        node->next = right->next;
        right->id = -1;
        if (node->next != SIZE_MAX) t->nodes[node->next].previous = p.at;
        if (node->previous != SIZE_MAX) tokenizer_push(t, node->previous);
        tokenizer_push(t, p.at);
    }
    return 0;
}

static inline int tokenizer_encode_word(Tokenizer *t, const unsigned char *word, size_t n,
                                        TokenList *out, char *err) {
    TokenWord *cached = NULL;
    if (n <= sizeof(cached->bytes)) {
        cached = &t->cache[tokenizer_hash(word, n) % TOKENIZER_CACHE_SIZE];
        if (cached->length == n && memcmp(cached->bytes, word, n) == 0)
            return tokenizer_append(out, cached->ids, cached->count, err);
    }
    if (tokenizer_merge(t, word, n, err)) return -1;
    size_t first = out->count;
    for (size_t i = 0; i != SIZE_MAX; i = t->nodes[i].next)
        if (tokenizer_append(out, &t->nodes[i].id, 1, err)) return -1;
    size_t count = out->count - first;
    if (cached && count <= sizeof(cached->ids) / sizeof(int)) {
        cached->length = (unsigned char)n;
        cached->count = (unsigned char)count;
        memcpy(cached->bytes, word, n);
        memcpy(cached->ids, out->ids + first, count * sizeof(int));
    }
    return 0;
}

/* Appends the tokens of text[0..n) to *out. With special = 1, the text <|endoftext|> becomes the
   token of that name; with 0 it is text like any other. After an error *out is as it was. */
static inline int tokenizer_encode(Tokenizer *t, const char *text, size_t n, int special,
                                   TokenList *out, char *err) {
    const unsigned char *s = (const unsigned char *)text, *end = s + n;
    size_t mark = out->count, eot_length = strlen(TOKENIZER_EOT_TEXT);
    int bad = 0;
    while (s < end && !bad) {
        /* [s, stop) has no special token; at stop there is one, or the text ends. */
        const unsigned char *stop = special && t->eot >= 0 ? s : end;
        while (stop < end && ((size_t)(end - stop) < eot_length ||
                              memcmp(stop, TOKENIZER_EOT_TEXT, eot_length) != 0)) {
            const void *mark_at = memchr(stop + 1, '<', (size_t)(end - stop) - 1);
            stop = mark_at ? (const unsigned char *)mark_at : end;
        }
        while (s < stop && !bad) {
            size_t left = (size_t)(stop - s), k = t->merges ? tokenizer_word(t, s, left) : 1;
            bad = t->merges ? tokenizer_encode_word(t, s, k, out, err)
                            : tokenizer_append(out, &t->byte_id[s[0]], 1, err);
            s += k;
        }
        if (s < end && !bad) {
            bad = tokenizer_append(out, &t->eot, 1, err);
            s += eot_length;
        }
    }
    if (bad) out->count = mark;
    return bad ? -1 : 0;
}

/* The bytes of a token, which may be a part of a UTF-8 character; not zero-terminated. An id
   outside the vocabulary (a padded row of the embedding) gives NULL and length 0. */
static inline const char *tokenizer_decode(const Tokenizer *t, int id, size_t *length) {
    *length = 0;
    if (id < 0 || id >= t->vocab) return NULL;
    *length = t->offsets[id + 1] - t->offsets[id];
    return t->bytes + t->offsets[id];
}

/* ---------------------------------------------------------------------------------------------- */
/* identity */

/* FNV-1a of a number as 8 little-endian bytes, after `hash`. */
static inline uint64_t tokenizer_hash_number(uint64_t hash, uint64_t number) {
    unsigned char b[8];
    for (int i = 0; i < 8; i++) b[i] = (unsigned char)(number >> 8 * i);
    return fnv1a(hash, b, sizeof b);
}

/* A fingerprint of a vocabulary: of the bytes of every token, and of every merge with its rank. So
   it does not depend on how the files are written, and vocabularies with equal fingerprints encode
   every text alike. Never 0. */
static inline uint64_t tokenizer_fingerprint(const Tokenizer *t) {
    uint64_t hash = tokenizer_hash_number(FNV_BASIS, (uint64_t)t->vocab), merges = 0;
    for (int i = 0; i < t->vocab; i++) {
        size_t length;
        const char *bytes = tokenizer_decode(t, i, &length);
        hash = fnv1a(tokenizer_hash_number(hash, length), bytes, length);
    }
    /* A sum, because merges lie in the table in no order. */
    for (size_t slot = 0; t->merges && slot <= t->merge_mask; slot++) {
        const TokenMerge *m = &t->merges[slot];
        if (m->merged < 0) continue;
        uint64_t h = tokenizer_hash_number(FNV_BASIS, (uint64_t)m->rank);
        h = tokenizer_hash_number(tokenizer_hash_number(h, (uint64_t)m->left), (uint64_t)m->right);
        merges += tokenizer_hash_number(h, (uint64_t)m->merged);
    }
    hash = tokenizer_hash_number(hash, merges);
    return hash ? hash : 1;
}

/* The fingerprint of GPT-2's published vocabulary (the files that data/gpt2_bpe.sh fetches). */
#define TOKENIZER_GPT2_FINGERPRINT 0x82fe055cca2fc2cdu

/* What a tokenizer is. */
static inline TokenizerId tokenizer_id(const Tokenizer *t) {
    TokenizerId id = {TOKENIZER_BYTES, 0};
    if (!t->merges) return id;
    id.fingerprint = tokenizer_fingerprint(t);
    id.kind = id.fingerprint == TOKENIZER_GPT2_FINGERPRINT ? TOKENIZER_GPT2 : TOKENIZER_BPE;
    return id;
}

/* ---------------------------------------------------------------------------------------------- */
/* loading */

static inline void tokenizer_free(Tokenizer *t) {
    free(t->bytes);
    free(t->offsets);
    free(t->merges);
    free(t->cache);
    free(t->classes);
    free(t->nodes);
    free(t->heap);
    memset(t, 0, sizeof(*t));
}

/* Reads a file and adds a zero byte; for the caller to free. NULL with a message after an error. */
static inline unsigned char *tokenizer_read(const char *path, size_t *n, char *err) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        fail(err, "cannot open tokenizer file %s: %s; data/gpt2_bpe.sh fetches GPT-2's", path,
             strerror(errno));
        return NULL;
    }
    unsigned char *data = NULL;
    size_t count = 0, capacity = 0, k;
    do {
        if (count + 1 >= capacity) {
            capacity = capacity ? 2 * capacity : 65536;
            unsigned char *p = (unsigned char *)realloc(data, capacity);
            if (!p) {
                free(data);
                fclose(f);
                fail(err, "out of memory reading %s", path);
                return NULL;
            }
            data = p;
        }
        k = fread(data + count, 1, capacity - 1 - count, f);
        count += k;
    } while (k > 0);
    int bad = ferror(f);
    fclose(f);
    if (bad) {
        free(data);
        fail(err, "cannot read tokenizer file %s: %s", path, strerror(errno));
        return NULL;
    }
    data[count] = 0;
    *n = count;
    return data;
}

/* The byte that a character of GPT-2's files stands for, or -1. Printable Latin-1 bytes are written
   as themselves, the 68 others in order as U+0100 and on. */
static inline int tokenizer_byte_of(uint32_t code) {
    int others = 0;
    for (int b = 0; b < 256; b++) {
        int itself = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
        uint32_t written = itself ? (uint32_t)b : 256u + (uint32_t)others++;
        if (written == code) return b;
    }
    return -1;
}

/* A token's bytes and its id, while loading. */
typedef struct {
    const char *bytes;
    size_t length;
    int id; /* -1: empty */
} TokenName;

typedef struct {
    const char *path;
    JsonReader text;
    short byte_of[512];
    char *pool; /* bytes of the tokens in the order of the file */
    size_t pool_count;
    TokenName *names; /* open addressing */
    size_t name_mask;
} TokenLoader;

static inline TokenName *tokenizer_find_name(const TokenLoader *l, const char *s, size_t n) {
    size_t slot = (size_t)tokenizer_hash(s, n) & l->name_mask;
    while (l->names[slot].id >= 0 &&
           (l->names[slot].length != n || memcmp(l->names[slot].bytes, s, n) != 0))
        slot = (slot + 1) & l->name_mask;
    return &l->names[slot];
}

/* Reads a JSON string of characters that stand for bytes, and appends these bytes to the pool. */
static inline int tokenizer_json_string(TokenLoader *l, char *err) {
    if (!json_expect(&l->text, '"'))
        return fail(err, "%s: byte %zu: expected a string; the file is not GPT-2's encoder.json",
                    l->path, l->text.at);
    while (l->text.at < l->text.size && l->text.data[l->text.at] != '"') {
        int64_t code = json_char(&l->text);
        if (code < 0) return fail(err, "%s: byte %zu: malformed string", l->path, l->text.at);
        if (code >= 512 || l->byte_of[code] < 0)
            return fail(err,
                        "%s: byte %zu: U+%04X does not stand for a byte; the file is not a "
                        "byte-level BPE vocabulary",
                        l->path, l->text.at, (unsigned)code);
        l->pool[l->pool_count++] = (char)l->byte_of[code];
    }
    if (l->text.at >= l->text.size)
        return fail(err, "%s: ends inside a string; it is truncated", l->path);
    l->text.at++;
    return 0;
}

/* An upper bound of the number of entries: each has a colon outside of its string. */
static inline size_t tokenizer_count_entries(const TokenLoader *l) {
    size_t n = 0;
    for (size_t i = 0; i < l->text.size; i++) n += l->text.data[i] == ':';
    return n;
}

/* Reads {"string": id, ...} into names and counts the entries in t->vocab. */
static inline int tokenizer_parse_json(Tokenizer *t, TokenLoader *l, char *err) {
    if (!json_expect(&l->text, '{'))
        return fail(err, "%s: does not start with '{'; it is not GPT-2's encoder.json", l->path);
    do {
        const char *string = l->pool + l->pool_count;
        if (tokenizer_json_string(l, err)) return -1;
        size_t n = l->pool_count - (size_t)(string - l->pool);
        if (!json_expect(&l->text, ':'))
            return fail(err, "%s: byte %zu: expected ':'", l->path, l->text.at);
        json_skip_space(&l->text);
        char *end;
        const char *digits = (const char *)l->text.data + l->text.at;
        long id = *digits >= '0' && *digits <= '9' ? strtol(digits, &end, 10) : -1;
        if (id < 0 || id >= 1 << 30)
            return fail(err, "%s: byte %zu: expected a token number", l->path, l->text.at);
        l->text.at = (size_t)((unsigned char *)end - l->text.data);
        TokenName *name = tokenizer_find_name(l, string, n);
        if (n == 0 || name->id >= 0)
            return fail(err, "%s: byte %zu: token %ld is %s", l->path, l->text.at, id,
                        n ? "there twice" : "empty");
        name->bytes = string;
        name->length = n;
        name->id = (int)id;
        t->vocab++;
    } while (json_expect(&l->text, ','));
    if (!json_expect(&l->text, '}'))
        return fail(err, "%s: byte %zu: expected ',' or '}'; the file is damaged or truncated",
                    l->path, l->text.at);
    return 0;
}

/* Copies the names, in the order of their ids, to bytes and offsets. */
static inline int tokenizer_index(Tokenizer *t, const TokenLoader *l, char *err) {
    size_t n = (size_t)t->vocab;
    TokenName **order = (TokenName **)calloc(n, sizeof(*order));
    t->offsets = (size_t *)malloc((n + 1) * sizeof(size_t));
    t->bytes = (char *)malloc(l->pool_count);
    int bad = !order || !t->offsets || !t->bytes;
    if (bad) fail(err, "out of memory loading %s", l->path);
    for (size_t i = 0; i <= l->name_mask && !bad; i++) {
        TokenName *name = &l->names[i];
        if (name->id < 0) continue;
        bad = name->id >= t->vocab || order[name->id];
        if (bad)
            fail(err, "%s: token number %d, but there are %d tokens; numbers must be 0, 1, 2, ...",
                 l->path, name->id, t->vocab);
        else order[name->id] = name;
    }
    size_t at = 0;
    for (size_t i = 0; i < n && !bad; i++) {
        t->offsets[i] = at;
        memcpy(t->bytes + at, order[i]->bytes, order[i]->length);
        order[i]->bytes = t->bytes + at; /* which outlives the pool */
        at += order[i]->length;
    }
    if (!bad) t->offsets[n] = at;
    free(order);
    for (int b = 0; b < 256 && !bad; b++) {
        char c = (char)b;
        t->byte_id[b] = tokenizer_find_name(l, &c, 1)->id;
        bad = t->byte_id[b] < 0;
        if (bad)
            fail(err,
                 "%s: has no token for the single byte 0x%02x; it is not a byte-level BPE "
                 "vocabulary",
                 l->path, (unsigned)b);
    }
    if (!bad) t->eot = tokenizer_find_name(l, TOKENIZER_EOT_TEXT, strlen(TOKENIZER_EOT_TEXT))->id;
    return bad ? -1 : 0;
}

static inline int tokenizer_load_vocabulary(Tokenizer *t, TokenLoader *l, const char *path,
                                            char *err) {
    l->path = path;
    l->text.data = tokenizer_read(path, &l->text.size, err);
    if (!l->text.data) return -1;
    size_t slots = 1024, entries = tokenizer_count_entries(l);
    while (slots < 2 * entries) slots *= 2;
    l->names = (TokenName *)malloc(slots * sizeof(TokenName));
    l->pool = (char *)malloc(l->text.size + 1);
    if (!l->names || !l->pool) return fail(err, "out of memory loading %s", path);
    for (size_t i = 0; i < slots; i++) l->names[i].id = -1;
    l->name_mask = slots - 1;
    for (int i = 0; i < 512; i++) l->byte_of[i] = (short)tokenizer_byte_of((uint32_t)i);
    if (tokenizer_parse_json(t, l, err)) return -1;
    return tokenizer_index(t, l, err);
}

/* Reads a line of vocab.bpe, "LEFT RIGHT": the bytes of both go to pair, one after the other. */
static inline int tokenizer_parse_merge(const TokenLoader *l, const unsigned char *s, size_t n,
                                        char *pair, size_t lengths[2]) {
    size_t side = 0, at = 0;
    lengths[0] = lengths[1] = 0;
    for (size_t i = 0; i < n;) {
        uint32_t code = 0;
        size_t k = utf8_decode(s + i, n - i, &code);
        if (k == 0) return -1;
        i += k;
        if (code == ' ') {
            if (++side > 1) return -1;
            continue;
        }
        if (code >= 512 || l->byte_of[code] < 0) return -1;
        pair[at++] = (char)l->byte_of[code];
        lengths[side]++;
    }
    return lengths[0] && lengths[1] ? 0 : -1;
}

/* Enters the merge of line number `line`, n bytes at s, with the next rank. `pair` has room for the
   line. */
static inline int tokenizer_add_merge(Tokenizer *t, const TokenLoader *l, const unsigned char *s,
                                      size_t n, size_t line, char *pair, int *rank, char *err) {
    size_t lengths[2];
    if (tokenizer_parse_merge(l, s, n, pair, lengths))
        return fail(err, "%s: line %zu is not \"LEFT RIGHT\"; it is not GPT-2's vocab.bpe", l->path,
                    line);
    int left = tokenizer_find_name(l, pair, lengths[0])->id;
    int right = tokenizer_find_name(l, pair + lengths[0], lengths[1])->id;
    int merged = tokenizer_find_name(l, pair, lengths[0] + lengths[1])->id;
    if (left < 0 || right < 0 || merged < 0)
        return fail(err,
                    "%s: line %zu merges or makes a string that is not in the vocabulary; "
                    "the two files do not belong together",
                    l->path, line);
    TokenMerge *m = &t->merges[tokenizer_pair_slot(t, left, right)];
    if (m->merged >= 0) return 0; /* a pair's first rank counts */
    m->left = left;
    m->right = right;
    m->rank = (*rank)++;
    m->merged = merged;
    return 0;
}

/* Reads vocab.bpe into merges: a version line, then a merge a line, in rising rank. */
static inline int tokenizer_load_merges(Tokenizer *t, TokenLoader *l, const char *path, char *err) {
    free(l->text.data);
    free(l->pool);
    l->pool = NULL;
    l->path = path;
    l->text.data = tokenizer_read(path, &l->text.size, err);
    char *pair = l->text.data ? (char *)malloc(l->text.size + 1) : NULL;
    l->pool = pair;
    if (!l->text.data) return -1;
    if (!pair) return fail(err, "out of memory loading %s", path);
    size_t slots = 1024, lines = 0;
    for (size_t i = 0; i < l->text.size; i++) lines += l->text.data[i] == '\n';
    while (slots < 2 * (lines + 1)) slots *= 2;
    t->merges = (TokenMerge *)malloc(slots * sizeof(TokenMerge));
    if (!t->merges) return fail(err, "out of memory loading %s", path);
    for (size_t i = 0; i < slots; i++) t->merges[i].merged = -1;
    t->merge_mask = slots - 1;
    int rank = 0;
    size_t line = 0;
    for (size_t at = 0, end; at < l->text.size; at = end + 1) {
        end = at;
        while (end < l->text.size && l->text.data[end] != '\n') end++;
        size_t n = end - at;
        if (n > 0 && l->text.data[end - 1] == '\r') n--;
        if (++line == 1 && n > 8 && memcmp(l->text.data + at, "#version", 8) == 0) continue;
        if (n == 0) continue;
        if (tokenizer_add_merge(t, l, l->text.data + at, n, line, pair, &rank, err)) return -1;
    }
    if (rank == 0) return fail(err, "%s: holds no merges; it is not GPT-2's vocab.bpe", path);
    return 0;
}

/* Reads GPT-2's encoder.json and vocab.bpe, or other files of this format. Returns 0, or -1 with a
   message. */
static inline int tokenizer_load(Tokenizer *t, const char *encoder_json, const char *vocab_bpe,
                                 char *err) {
    TokenLoader l;
    memset(&l, 0, sizeof(l));
    memset(t, 0, sizeof(*t));
    t->eot = -1;
    t->classes = (unsigned char *)calloc(65536, 1);
    t->cache = (TokenWord *)calloc(TOKENIZER_CACHE_SIZE, sizeof(TokenWord));
    int bad = !t->classes || !t->cache;
    if (bad) fail(err, "out of memory loading %s", encoder_json);
    bad = bad || tokenizer_load_vocabulary(t, &l, encoder_json, err);
    bad = bad || tokenizer_load_merges(t, &l, vocab_bpe, err);
    free(l.text.data);
    free(l.pool);
    free(l.names);
    if (bad) {
        tokenizer_free(t);
        return -1;
    }
#define TOKENIZER_FILL(table, id) tokenizer_fill_class(t->classes, table, TOKENIZER_ROWS(table), id)
    TOKENIZER_FILL(unicode_letters, TOKEN_LETTER);
    TOKENIZER_FILL(unicode_numbers, TOKEN_NUMBER);
    TOKENIZER_FILL(unicode_spaces, TOKEN_SPACE);
#undef TOKENIZER_FILL
    return 0;
}

/* The tokenizer of text files: every byte is a token, and there is no <|endoftext|>. Returns 0, or
   -1 with a message. */
static inline int tokenizer_bytes(Tokenizer *t, char *err) {
    memset(t, 0, sizeof(*t));
    t->vocab = 256;
    t->eot = -1;
    t->bytes = (char *)malloc(256);
    t->offsets = (size_t *)malloc(257 * sizeof(size_t));
    if (!t->bytes || !t->offsets) {
        tokenizer_free(t);
        return fail(err, "out of memory making the byte tokenizer");
    }
    for (int i = 0; i < 256; i++) {
        t->bytes[i] = (char)i;
        t->offsets[i] = (size_t)i;
        t->byte_id[i] = i;
    }
    t->offsets[256] = 256;
    return 0;
}

#endif
