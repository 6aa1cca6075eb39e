/*
What generate does with a checkpoint: it reads the header and the records, and for a small model it
loads the parameters and computes some tokens.
*/
#ifndef CM_FUZZ_MODEL_H
#define CM_FUZZ_MODEL_H

#include "fuzz.h"

/* Reads every number of every record: those past the file's end would be another mapping's. */
static void read_records(const Ckpt *ckpt) {
    char name[CKPT_MAX_NAME + 1];
    volatile unsigned char sum = 0;
    for (int i = 0; i < ckpt->count; i++) {
        const CkptRecord *r = &ckpt->records[i];
        require(r->name_length > 0 && r->name_length <= CKPT_MAX_NAME, "a name's length");
        snprintf(name, sizeof name, "%.*s", (int)r->name_length, r->name);
        int64_t end = r->bytes + ((const unsigned char *)r->data - ckpt->map);
        require(!r->bytes || (r->data && end <= (int64_t)ckpt->size), "record %d ends at %lld", i,
                (long long)end);
        for (int64_t k = 0; k < r->bytes; k += 512) sum ^= ((const unsigned char *)r->data)[k];
        ckpt_find(ckpt, name, NULL, NULL, NULL, NULL);
    }
    (void)sum;
}

static void read_header(const Ckpt *ckpt) {
    char text[64], err[ERR_LEN];
    uint64_t number;
    Choices choices;
    memset(&choices, 0, sizeof choices);
    choices_parse(&choices, ckpt->header, ckpt->header_length, "choice.");
    choices_free(&choices);
    ckpt_value(ckpt, "data", text, sizeof text);
    if (ckpt_number(ckpt, "step", &number, err)) require(strstr(err, "step"), "%s", err);
}

/* Computes a few tokens, past the end of the context too. */
static void compute_tokens(Model *m) {
    char err[ERR_LEN];
    const int tokens[1] = {0};
    Context x;
    require(context_create(&x, m, err) == 0, "%s", err);
    context_start(&x, tokens, 1);
    for (int i = 0; i < 3; i++) context_append(&x, m->s.V - 1);
    context_free(&x);
}

/* `base` is the file of the weights of adapters. */
static void read_checkpoint(const char *path, const char *base) {
    char err[ERR_LEN] = "";
    Ckpt ckpt;
    Config c;
    if (ckpt_open(&ckpt, path, err)) {
        require(strstr(err, path), "the message names no file: %s", err);
        return;
    }
    read_header(&ckpt);
    read_records(&ckpt);
    int status = load_config(&c, &ckpt, 1, err);
    if (!status && is_small(&c)) {
        Model m;
        memset(&m, 0, sizeof m);
        status = load_model(&m, &c, &ckpt, 1, c.lora_rank ? base : "", err);
        if (!status) compute_tokens(&m);
        model_free(&m);
    }
    if (status) require(err[0], "an error without a message");
    ckpt_close(&ckpt);
}

#endif
