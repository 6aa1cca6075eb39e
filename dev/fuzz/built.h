/*
Checkpoints from text, which a fuzzer changes more easily than the file: sizes and checksum follow.

    2                           the version
    step=1                      lines of the header
    vocab=64
    flag.width=8
                                an empty line
    p.wte 0 1 64 8              records: name, dtype, dimensions
    *                           every record of the model and its rules that the header describes

Data of a record is numbers between -1/2 and 1/2.
*/
#ifndef CM_FUZZ_BUILT_H
#define CM_FUZZ_BUILT_H

#include "fuzz.h"

/* Ends the part of a file that was written last. */
static void built_pad(FILE *f) {
    while (ftell(f) % 8) fputc(0, f);
}
static void built_number(FILE *f, uint64_t value) { fwrite(&value, 8, 1, f); }

/* A record of at most a mebibyte; a larger one gets no data, and the file is then no checkpoint. */
static void built_record(FILE *f, const char *name, int dtype, int ndim, const int64_t *dims) {
    int64_t bytes = ckpt_tensor_bytes(dtype, ndim, dims);
    built_number(f, strlen(name));
    fputs(name, f);
    built_pad(f);
    built_number(f, (uint64_t)dtype);
    built_number(f, (uint64_t)ndim);
    for (int i = 0; i < ndim; i++) built_number(f, (uint64_t)dims[i]);
    if (bytes > 1 << 20) bytes = 0;
    for (int64_t i = 0; i < bytes / 4; i++) {
        float value = (float)((i * 37 + 11) % 64 - 32) / 64;
        fwrite(&value, 4, 1, f);
    }
    for (int64_t i = bytes / 4 * 4; i < bytes; i++) fputc((int)i & 255, f);
    built_pad(f);
}

static void built_record_3(FILE *f, char prefix, const char *name, int64_t a, int64_t b,
                           int64_t c) {
    char full[96];
    const int64_t dims[3] = {a, b, c};
    snprintf(full, sizeof full, "%c.%s", prefix, name);
    if (a) built_record(f, full, CKPT_F32, 3, dims);
}

/* Every record of the model that a header describes. Writes none if there is no such model, or if
   the model is large. */
static void built_model(FILE *f, const Input *header, int version) {
    Config c;
    Ckpt ckpt;
    char err[ERR_LEN], vocab[16];
    memset(&c, 0, sizeof c);
    memset(&ckpt, 0, sizeof ckpt);
    ckpt.header = (const char *)header->p;
    ckpt.header_length = header->n;
    flags_defaults(config_flags, CONFIG_FLAGS, &c);
    if (load_flags(&c, NULL, &ckpt, err) || ckpt_value(&ckpt, "vocab", vocab, sizeof vocab)) return;
    c.vocab = atoi(vocab);
    if (c.vocab < 1 || config_resolve(&c, err) || !is_small(&c)) return;
    Registry r = registry_build(&c);
    if (registry_freeze(&r, c.freeze, err)) return;
    Plan plan = plan_build(&c, &r);
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &r.t[id];
        if (t->layers && !t->of_base) built_record_3(f, 'p', t->name, t->layers, t->rows, t->cols);
        built_record_3(f, 'm', t->layers ? t->name : "", t->slot[SLOT_MOMENT].layers, t->rows,
                       t->cols);
    }
    const int64_t dims[1] = {(int64_t)plan.state_size};
    if (version == 1) built_record(f, "v", CKPT_F32, 1, dims);
    for (int i = 0; i < plan.states && version > 1; i++) {
        const int64_t *d = plan.state[i].dims;
        built_record_3(f, 's', plan.state[i].name, d[0], d[1], d[2]);
    }
}

/* A line of records. */
static void built_line(FILE *f, const char *line, const Input *header, int version) {
    int64_t dims[CKPT_MAX_DIMS];
    char name[128];
    int dtype, ndim = 0, used = 0;
    if (!strcmp(line, "*")) {
        built_model(f, header, version);
        return;
    }
    if (sscanf(line, "%127s %d%n", name, &dtype, &used) != 2) return;
    for (line += used; ndim < CKPT_MAX_DIMS; line += used, ndim++) {
        long long dim;
        if (sscanf(line, "%19lld%n", &dim, &used) != 1) break;
        dims[ndim] = dim;
    }
    built_record(f, name, dtype, ndim, dims);
}

/* Writes the size of the file and the checksum into the last 16 of n bytes. */
static void built_finish(char *image, size_t n) {
    uint64_t size = n;
    memcpy(image + n - 16, &size, 8);
    uint64_t sum = checkpoint_hash(image, n - 8);
    memcpy(image + n - 8, &sum, 8);
}

/* Takes the lines of a header: up to the next empty line, which is taken too. */
static Input built_header(Input *in) {
    Input header = *in;
    size_t end = in->n;
    for (size_t i = 0; i < in->n && end == in->n; i++)
        if (in->p[i] == '\n' && (i == 0 || in->p[i - 1] == '\n')) end = i;
    header.n = end;
    in->p += min_size(end + 1, in->n);
    in->n -= min_size(end + 1, in->n);
    return header;
}

/* Writes the checkpoint that a text describes to a file of the scratch folder. */
__attribute__((unused)) static void built_checkpoint(Input in, const char *name) {
    char *image = NULL, *line = input_line(&in);
    size_t size = 0;
    int version = line ? atoi(line) : 0;
    free(line);
    Input header = built_header(&in);
    FILE *f = open_memstream(&image, &size);
    if (!f) abort();
    fprintf(f, CKPT_MAGIC "%d\n", version);
    built_pad(f);
    built_number(f, header.n);
    if (header.n) fwrite(header.p, 1, header.n, f);
    built_pad(f);
    while ((line = input_line(&in)) != NULL) {
        built_line(f, line, &header, version);
        free(line);
    }
    for (int i = 0; i < 3; i++) built_number(f, 0);
    fclose(f);
    built_finish(image, size);
    write_bytes(name, image, size);
    free(image);
}

/* The weights that the adapters of a seed were trained beside, in the file `name`. Its checksum is
   the one that the seeds have (seeds.sh). */
#define BUILT_BASE_SUM "23c172897b4e1913"
__attribute__((unused)) static void built_base(const char *name) {
    static const char text[] = "2\nstep=2\nvocab=64\ntokenizer=bytes\nflag.layers=1\n"
                               "flag.width=8\nflag.heads=2\nflag.seq-len=4\n\n"
                               "p.wte 0 1 64 8\np.norm0_w 0 1 1 8\np.norm1_w 0 1 1 8\n"
                               "p.wqkv 0 1 24 8\np.wo 0 1 8 8\np.norm2_w 0 1 1 8\n"
                               "p.wfc 0 1 32 8\np.wproj 0 1 8 32\np.normf_w 0 1 1 8\n"
                               "p.whead 0 1 64 8\n";
    char err[ERR_LEN], sum[FINGERPRINT_SIZE];
    const Input in = {(const unsigned char *)text, sizeof text - 1};
    Ckpt ckpt;
    built_checkpoint(in, name);
    require(ckpt_open(&ckpt, in_folder(name), err) == 0, "the base: %s", err);
    ckpt_fingerprint(&ckpt, sum);
    ckpt_close(&ckpt);
    require(!strcmp(sum, BUILT_BASE_SUM), "the base has the checksum %s", sum);
}

#endif
