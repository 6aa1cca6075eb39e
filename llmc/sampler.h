/*
The next token from its logits: temperature, top-k, top-p.

    Sampler s = {0.8, 40, 0.95, seed};
    if (sampler_next(&s, logits, V, stream, position, scratch, &token, err)) ...

The probability of token i is proportional to exp(z_i / temperature). Top-k keeps the k most
probable tokens. Top-p (nucleus sampling, Holtzman et al. 2020) keeps the smallest set of the most
probable of these tokens whose probabilities add up to p. Of equal logits the lower token comes
first, so that the result does not depend on a sorting algorithm. Temperature 0 takes the most
probable token.

There is no generator with a state: a draw is a function of (seed, stream, position) and the logits.
The caller passes V entries of scratch; nothing is allocated here.
*/
#ifndef CM_SAMPLER_H
#define CM_SAMPLER_H

#include "base.h"
#include "rng.h"

typedef struct {
    double temperature; /* 0: greedy */
    int top_k;          /* 0: off */
    double top_p;       /* 1: off */
    uint64_t seed;
} Sampler;

typedef struct {
    double weight; /* exp((z - largest z) / temperature) */
    int token;
} SamplerEntry;

/* 1 if a comes before b: it is more probable, or equally probable and a lower token. */
static inline int sampler_before(const SamplerEntry *a, const SamplerEntry *b) {
    return a->weight != b->weight ? a->weight > b->weight : a->token < b->token;
}

/* Moves entry i of a heap of n entries down until no child of it comes before it. */
static inline void sampler_sift(SamplerEntry *heap, int n, int i) {
    SamplerEntry moving = heap[i];
    for (int child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && sampler_before(&heap[child + 1], &heap[child])) child++;
        if (!sampler_before(&heap[child], &moving)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

/* The token of the largest logit; -1 with a message if a logit is NaN or +infinity, or none is
   finite. */
static inline int sampler_greedy(const floatM *logits, int V, char *err) {
    int best = -1;
    for (int i = 0; i < V; i++) {
        if (logits[i] != logits[i] || (isinf(logits[i]) && logits[i] > 0))
            return fail(err,
                        "the logit of token %d is %g: the parameters are damaged, or of a run "
                        "that diverged",
                        i, (double)logits[i]);
        if (!isinf(logits[i]) && (best < 0 || logits[i] > logits[best])) best = i;
    }
    return best >= 0 ? best : fail(err, "none of the %d tokens has a finite logit", V);
}

/* The token whose interval contains u: [0, 1) is divided among the tokens by their weights. */
static inline int sampler_draw(const SamplerEntry *entries, int n, double u) {
    double total = 0, sum = 0;
    int last = 0;
    for (int i = 0; i < n; i++) total += entries[i].weight;
    for (int i = 0; i < n; i++) {
        sum += entries[i].weight;
        if (sum > u * total) return entries[i].token;
        if (entries[i].weight > 0) last = i;
    }
    return entries[last].token;
}

/* Moves the entries that top-k and top-p keep to the end of the array, the most probable one last.
   Returns how many it keeps. */
static inline int sampler_truncate(const Sampler *s, SamplerEntry *entries, int n) {
    int kept = 0, nucleus = 0;
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += entries[i].weight;
    for (int i = n / 2 - 1; i >= 0; i--) sampler_sift(entries, n, i);
    /* Entries leave the heap in order and fill the array from its end. With top-p alone no more of
       them leave than are kept. */
    while (kept < n && (s->top_k ? kept < s->top_k : kept == 0 || sum < s->top_p * total)) {
        SamplerEntry first = entries[0];
        entries[0] = entries[n - 1 - kept];
        sampler_sift(entries, n - 1 - kept, 0);
        entries[n - 1 - kept] = first;
        kept++;
        sum += first.weight;
    }
    if (!s->top_k || s->top_p >= 1) return kept;
    total = sum;
    sum = 0;
    while (nucleus < kept && (nucleus == 0 || sum < s->top_p * total)) {
        sum += entries[n - 1 - nucleus].weight;
        nucleus++;
    }
    return nucleus;
}

/* Chooses one of the tokens 0..V-1 by their logits (V). `stream` and `position` number the draw:
   the sample and the token's place in the sample. A logit of -infinity rules a token out; NaN and
   +infinity are errors. Returns 0, or -1 with a message. */
static inline int sampler_next(const Sampler *s, const floatM *logits, int V, uint64_t stream,
                               uint64_t position, SamplerEntry *scratch, int *token, char *err) {
    if (!(s->temperature >= 0) || !(s->top_p >= 0 && s->top_p <= 1) || s->top_k < 0)
        return fail(err,
                    "temperature %g, top-k %d, top-p %g: temperature and top-k must not be "
                    "negative, top-p is from 0 to 1",
                    s->temperature, s->top_k, s->top_p);
    int best = sampler_greedy(logits, V, err);
    if (best < 0) return -1;
    *token = best;
    if (s->temperature == 0 || s->top_k == 1) return 0;
    for (int i = 0; i < V; i++) {
        /* The difference comes first, since z / temperature may overflow. */
        double below = (double)logits[i] - (double)logits[best];
        scratch[i].weight = isinf(logits[i]) ? 0 : exp(below / s->temperature);
        scratch[i].token = i;
    }
    int n = V;
    if (s->top_k > 0 || s->top_p < 1) n = sampler_truncate(s, scratch, V);
    *token = sampler_draw(scratch + V - n, n, rng_uniform(s->seed, stream, position));
    return 0;
}

#endif
