/*
What the tokens of a run are: which tokenizer made them, so that a model's samples are read by the
same one.

    kind     tokens                                          as text
    bytes    every byte of a text is a token                 "bytes"
    gpt2     GPT-2's published byte-pair encoding            "gpt2" or "gpt2 0123456789abcdef"
    bpe      another vocabulary of this kind                 "bpe 0123456789abcdef"

The number is the vocabulary's fingerprint (tokenizer_fingerprint in tokenizer.h). "gpt2" without
one are tokens that do not say what they are, such as FineWeb's shards.
*/
#ifndef CM_TOKENIZER_ID_H
#define CM_TOKENIZER_ID_H

#include "base.h"

/* The values are numbers of a shard's header. */
typedef enum { TOKENIZER_BYTES = 0, TOKENIZER_GPT2 = 1, TOKENIZER_BPE = 2 } TokenizerKind;

typedef struct {
    TokenizerKind kind;
    uint64_t fingerprint; /* 0: unknown; always 0 for bytes */
} TokenizerId;

/* Room for every text of an id. */
enum { TOKENIZER_ID_SIZE = 32 };

static inline const char *tokenizer_kind_name(TokenizerKind kind) {
    static const char *const names[] = {"bytes", "gpt2", "bpe"};
    return names[kind];
}

/* Writes an id's text, TOKENIZER_ID_SIZE bytes, and returns it. */
static inline const char *tokenizer_id_text(TokenizerId id, char *text) {
    int n = snprintf(text, TOKENIZER_ID_SIZE, "%s", tokenizer_kind_name(id.kind));
    if (id.fingerprint)
        snprintf(text + n, (size_t)(TOKENIZER_ID_SIZE - n), " %016llx",
                 (unsigned long long)id.fingerprint);
    return text;
}

/* Whether an id makes sense: bytes have no fingerprint, and a vocabulary that is not GPT-2's has
   one. */
static inline int tokenizer_id_valid(TokenizerId id) {
    if (id.kind == TOKENIZER_GPT2) return 1;
    return id.kind == TOKENIZER_BYTES ? !id.fingerprint : id.fingerprint != 0;
}

/* Reads what tokenizer_id_text writes. Returns 0, or -1 for any other text. */
static inline int tokenizer_id_parse(const char *text, TokenizerId *id) {
    char again[TOKENIZER_ID_SIZE];
    for (int kind = TOKENIZER_BYTES; kind <= TOKENIZER_BPE; kind++) {
        id->kind = (TokenizerKind)kind;
        const char *name = tokenizer_kind_name(id->kind);
        if (strncmp(text, name, strlen(name))) continue;
        id->fingerprint = strtoull(text + strlen(name), NULL, 16);
        if (tokenizer_id_valid(*id) && !strcmp(tokenizer_id_text(*id, again), text)) return 0;
    }
    return -1;
}

/* Whether tokens of one id can stand beside tokens of the other: equal, or nothing is known that
   tells them apart. */
static inline int tokenizer_id_agree(TokenizerId a, TokenizerId b) {
    return a.kind == b.kind && (a.fingerprint == b.fingerprint || !a.fingerprint || !b.fingerprint);
}

#endif
