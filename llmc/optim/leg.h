/*
What a rule sees: the matrices that it updates (legs), and the settings of one step. A rule knows
neither the config nor the registry.
*/
#ifndef CM_LEG_H
#define CM_LEG_H

#include "../linalg.h"
#include "options.h"

/* Where a rule applies, bits. ON_BASE: QuacK may rescale its directions. */
enum {
    ON_QK = 1,
    ON_OV = 2,
    ON_MLP = 4,
    ON_EMBED = 8,
    ON_HEAD = 16,
    ON_VECTOR = 32,
    ON_BASE = 64,
    ON_FACTOR = 128, /* A and B of a product W = W_pre + s A B^T: low-rank matrices, adapters */
    ON_MATRIX = ON_QK | ON_OV | ON_MLP | ON_EMBED | ON_HEAD
};

/* Traits of a rule, bits. */
enum {
    NEEDS_PAIR = 1,    /* W_Q and W_K, or W_O and W_V, are updated together */
    TAKES_CIRCUIT = 2, /* Circuit-Muon may follow it on W_O and W_V */
    WRITES_COPY = 4,   /* its step of a single leg also writes the layers' copy of the weights */
    /* No element depends on another, so the rule may see the vocabulary's padding too. */
    ELEMENT_BY_ELEMENT = 8,
    /* Where its states start anew, its first moment does too (AdamW). */
    MOMENT_WITH_STATE = 16,
    /* Its step is made from matrix signs of its momentum: a factor on the gradient has no part in
       it, so that clipping leaves it alone; and the momentum may be mixed (--momentum-ages). */
    TAKES_SIGN = 32,
    /* It decays a product, not each factor, and needs a learning rate times decay below 1. */
    SPLITS_DECAY = 64,
    /* Its first moment is in coordinates of its own, and means nothing to another rule. */
    MOMENT_OF_ITS_OWN = 128
};

/* How many numbers a state has, for each layer. */
typedef enum {
    PER_ELEMENT, /* one for each element of the matrix */
    PER_ROW,     /* one for each row */
    PER_LONGER,  /* one for each row or, if there are more of them, for each column */
    PER_MATRIX,  /* one */
    PER_HEAD,    /* one for each head of the second leg; (2, L, heads), a state of both legs */
    PER_RANK     /* a factor's r x r: the square of a head's width */
} StateUnit;

/* A state of a rule beside the first moment. It starts at zero. */
typedef struct {
    const char *name; /* in checkpoints; NULL: none */
    StateUnit unit;
} RuleState;

enum { RULE_STATES = 3 };

/* One matrix of a step, in all L layers that are updated together: weight W, gradient G and first
   moment M are views (L, 1) x (rows, cols) as stored. Heads are blocks of rows or, in W_O, of
   columns. */
typedef struct {
    Mat W, G, M;
    /* Further averages of the gradient, as dense as M, if the momentum is mixed. Average number 0
       is M. */
    Mat older[MOMENTUM_AGES - 1];
    unsigned begins; /* bit k: older[k] begins with this update, as a copy of M */
    int heads, by_column;
    floatM *state[RULE_STATES]; /* the rule's states, in the order of its row */
    int age;         /* updates since these states began, this one included: 1 in the first */
    floatM *coupled; /* the state of the coupling */
    floatX *copy;    /* the layers' copy of W, laid out as W; or NULL */
} Leg;

typedef struct Rule Rule;

/* One step of one or two legs. Of two legs, leg 0 has the query heads (W_Q or W_O), and leg 1 the
   shared heads (W_K or W_V). Query head h belongs to shared head h / (heads of leg 0 / heads of leg
   1). The factors of a product W = W_pre + s A B^T are a circuit of W_O and W_V with one head, as
   wide as the rank r: leg 0 is A (m,r), by column, and leg 1 is B^T (r,n), both as stored. */
typedef struct {
    const Rule *rule, *coupling; /* coupling: NULL, or what is done to the rule's directions */
    const OptimOptions *options;
    Leg leg[2];
    int legs;
    double lr, weight_decay;
    double momentum; /* coefficient of Muon and CM in this step */
    int ages;        /* averages that the momentum is mixed from; 0: it is M alone */
    double decay[MOMENTUM_AGES], weight[MOMENTUM_AGES]; /* of each average, in this step */
    double beta1, beta2;                                /* of AdamW */
    double gscale;                                      /* multiplies the gradient */
    int coupling_age; /* updates since the coupling's state began, this one included */
    /* Of the legs A (m,r) and B^T (r,n) of a product W = W_pre + s A B^T: s, and whether a factor
       began at zero. Of all other legs 0 and 0. */
    double product_scale;
    int product_cold;
    Arena *arena;
} Step;

/* A use of a rule, which the rule may refuse. */
typedef struct {
    const char *flag;       /* "--qk" */
    unsigned on;            /* ON_QK or another one bit */
    const char *matrices;   /* "W_Q and W_K" */
    int rows[2], cols[2];   /* shapes of two of the matrices */
    const char *decay_flag; /* "--weight-decay" */
    double weight_decay;
    const char *zero; /* the matrices that start at zero, or NULL */
    int heads, kv_heads;
    const OptimOptions *options;
} RuleUse;

/* A row of the table in rule.h. */
struct Rule {
    const char *flag, *title; /* "normuon", and "NorMuon" in reports */
    unsigned where, traits;   /* ON_..., NEEDS_PAIR... */
    double lr;                /* learning rate where no flag gives one */
    RuleState state[RULE_STATES];
    /* Returns -1 and a sentence in err if this use of the rule has no meaning, else 0. NULL: the
       rule never refuses. */
    int (*refuse)(const RuleUse *use, char *err);
    /* The direction of one leg, in memory of the arena: dense, as (L, 1) x (rows, cols), or the
       leg's heads as they are stored. The caller multiplies it by *scale. NULL: the rule has no
       direction of its own. */
    Mat (*direction)(const Step *s, const Leg *l, double *scale);
    /* A coupling: rescales the finished directions of both legs, in place. */
    void (*couple)(const Step *s, const Mat U[2]);
    /* The whole step. NULL: directed_step, along the directions. */
    void (*step)(const Step *s);
};

/* The heads of a view as they are stored: (L, heads) x (k, C), or (L, heads) x (C, k) in W_O. */
static inline Mat leg_stored_heads(const Leg *l, Mat m) {
    Mat blocks = mat_blocks(m, l->heads, l->by_column);
    return l->by_column ? mat_t(blocks) : blocks;
}

/* The heads (L, heads) x (k, C) of a view or of a direction. A direction is a whole matrix, or
   heads as they are stored. */
static inline Mat leg_heads(const Leg *l, Mat m) {
    if (m.n1 == 1) return mat_blocks(m, l->heads, l->by_column);
    return l->by_column ? mat_t(m) : m;
}

/* The leg with the views that `heads_of` makes, leg_heads or leg_stored_heads, in place of whole
   matrices. */
static inline Leg leg_viewed(const Leg *l, Mat (*heads_of)(const Leg *l, Mat m)) {
    Leg heads = *l;
    heads.W = heads_of(l, l->W);
    heads.G = heads_of(l, l->G);
    heads.M = heads_of(l, l->M);
    for (int k = 0; k < MOMENTUM_AGES - 1; k++) heads.older[k] = heads_of(l, l->older[k]);
    return heads;
}

/* W <- (1 - lr wd) W - rate U. U is a whole matrix, or heads as they are stored. */
static inline void leg_apply(const Step *s, const Leg *l, double rate, Mat U) {
    Mat W = U.n1 == 1 ? l->W : leg_stored_heads(l, l->W);
    la_axpby(W, -rate, U, 1 - s->lr * s->weight_decay);
}

/* The step of a rule that has a direction: computes it for each leg, lets the coupling rescale
   both, if there is one, and applies them. */
static inline void directed_step(const Step *s) {
    size_t mark = s->arena->used;
    Mat U[2];
    for (int i = 0; i < s->legs; i++) {
        double scale = 1;
        U[i] = s->rule->direction(s, &s->leg[i], &scale);
        if (!s->coupling) leg_apply(s, &s->leg[i], s->lr * scale, U[i]);
        else if (scale != 1) la_axpby(U[i], scale, U[i], 0);
    }
    if (s->coupling) {
        s->coupling->couple(s, U);
        for (int i = 0; i < s->legs; i++) leg_apply(s, &s->leg[i], s->lr, U[i]);
    }
    s->arena->used = mark;
}

static inline void step_run(const Step *s) {
    if (s->coupling || !s->rule->step) directed_step(s);
    else s->rule->step(s);
}

/* Elements of scratch that a step takes: the step itself runs on an arena without memory. */
static inline size_t step_scratch(const Step *s) {
    Arena none = {NULL, 0, 0};
    Step dry = *s;
    dry.arena = &none;
    for (int i = 0; i < s->legs; i++) {
        Leg *l = &dry.leg[i];
        l->W.p = l->G.p = l->M.p = l->coupled = NULL;
        for (int k = 0; k < MOMENTUM_AGES - 1; k++) l->older[k].p = NULL;
        for (int k = 0; k < RULE_STATES; k++) l->state[k] = NULL;
        l->copy = NULL;
    }
    step_run(&dry);
    return none.size;
}

#endif
