/*
A model whose linear layers have factors, written as one with whole matrices: W = W_pre + s A B^T.
The result is a checkpoint as that of any run, from which text is generated and new runs begin. It
has no moments. Of a run with averages of the weights it has what generation reads, their blend.
*/
#ifndef CM_MERGE_H
#define CM_MERGE_H

#include "linear.h"
#include "resume.h"

/* Copies the parameters of `from`, a model of config c, to those of `to`, whose tensors are whole.
   A tied head with adapters becomes a head of its own. */
static inline void merge_parameters(const Params *to, const Params *from, const Config *c) {
    for (int id = 0; id < TENSORS; id++) {
        const Tensor *t = &to->r.t[id];
        int source = id == T_WHEAD && c->tied ? T_WTE : id;
        const Tensor *s = &from->r.t[source];
        Mat W = mat_dense(to->param + t->slot[SLOT_PARAM].at, t->layers, t->rows, t->cols);
        if (t->layers && s->layers)
            la_copy(W,
                    mat_dense(from->param + s->slot[SLOT_PARAM].at, s->layers, s->rows, s->cols));
    }
    for (int id = 0; id < LINEARS; id++) {
        const Linear f = linear_of(c, (LinearId)id);
        const LinearTensors *ids = &linear_tensors[id];
        const Tensor *w = &to->r.t[ids->weight];
        if (!f.rank) continue;
        int layers = w->layers, r = f.rank;
        Mat W = mat_dense(to->param + w->slot[SLOT_PARAM].at, layers, w->rows, w->cols);
        Mat A = mat_dense(from->param + from->r.t[ids->up].slot[SLOT_PARAM].at, layers, f.O, r);
        Mat B = mat_dense(from->param + from->r.t[ids->down].slot[SLOT_PARAM].at, layers,
                          linear_rank(&f), f.I);
        for (int p = 0; p < f.parts; p++)
            la_gemm(mat_rows(W, f.first[p], f.rows[p]), c->lora_scale,
                    mat_rows(A, f.first[p], f.rows[p]), mat_rows(B, p * r, r), 1);
    }
}

/* Whether a line "flag.NAME=..." is of no use to a model that is not trained further. Rules of
   factors may be options that whole matrices cannot have. */
static inline int merge_is_training(const char *line, size_t length) {
    if (length < 5 || strncmp(line, "flag.", 5)) return 0;
    const char *name = line + 5, *end = (const char *)memchr(line, '=', length);
    size_t n = end ? (size_t)(end - name) : 0;
    for (int i = 0; i < CONFIG_FLAGS; i++) {
        const Flag *flag = &config_flags[i];
        if (strlen(flag->name) != n || strncmp(flag->name, name, n)) continue;
        return strcmp(flag->section, "Run") != 0 && strcmp(flag->section, "Data") != 0 &&
               strcmp(flag->section, "Model") != 0;
    }
    return 1;
}

/* The header of the merged model, for the caller to free: the lines of the checkpoint but those of
   the factors and of training. NULL without memory. */
static inline char *merge_header(const Ckpt *ckpt, const Config *merged) {
    static const char *const left[] = {"flag.tied=", "flag.freeze=", "init_from_", "pending",
                                       "change.",    "since.",       "choice."};
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return NULL;
    const char *line = ckpt->header, *end = line + ckpt->header_length;
    while (line < end) {
        const char *stop = (const char *)memchr(line, '\n', (size_t)(end - line));
        size_t length = stop ? (size_t)(stop - line) : (size_t)(end - line);
        int keep = length > 0 && !merge_is_training(line, length);
        for (size_t i = 0; i < sizeof left / sizeof left[0]; i++)
            if (length >= strlen(left[i]) && !strncmp(line, left[i], strlen(left[i]))) keep = 0;
        if (keep) fprintf(f, "%.*s\n", (int)length, line);
        line += length + 1;
    }
    fprintf(f, "flag.tied=%s\nmerged=yes\n", merged->tied ? "on" : "off");
    if (!fclose(f)) return text;
    free(text);
    return NULL;
}

/* Writes the model of a checkpoint, which has been loaded to `from`, as the checkpoint `path` with
   whole matrices. Returns 0, or -1 with a message. */
static inline int merge_write(const Params *from, const Config *c, const Ckpt *ckpt,
                              const char *path, char *err) {
    Config merged = *c;
    Params to;
    CkptWriter w;
    merged.lora_rank = merged.low_rank = 0;
    merged.factored = 0;
    merged.freeze[0] = 0;
    merged.ema_from = 0;
    if (c->tied && c->factored >> LINEAR_HEAD & 1) merged.tied = 0;
    memset(&to, 0, sizeof to);
    to.r = registry_build(&merged);
    Plan none = {.n = 0};
    size_t bytes = to.r.size[SLOT_PARAM] * sizeof(floatM);
    Saver saver = {NULL, 0, (floatM *)malloc(largest_record(&to, &none) * sizeof(floatM))};
    to.param = (floatM *)device_alloc(bytes);
    char *header = merge_header(ckpt, &merged);
    int status = saver.host && to.param && header ? 0 : fail(err, "out of memory: merged weights");
    if (!status) {
        device_zero(to.param, bytes);
        merge_parameters(&to, from, c);
        save_slot(&saver, 'p', &to.r, SLOT_PARAM, to.param, err);
        status = ckpt_begin(&w, path, header, err);
    }
    if (!status) {
        saver.w = &w;
        w.advice = "Nothing is kept of it; free some space and merge again";
        status = ckpt_reserve(&w, saver.bytes, err) ||
                 save_slot(&saver, 'p', &to.r, SLOT_PARAM, to.param, err) || device_check(err);
        if (status) ckpt_abort(&w);
        else status = ckpt_commit(&w, err);
    }
    device_free(to.param);
    free(saver.host);
    free(header);
    return status ? -1 : 0;
}

#endif
