/*
Learning-rate and momentum schedules: multipliers as pure functions of the step.
*/
#ifndef CM_SCHEDULE_H
#define CM_SCHEDULE_H

#include "lists.h"

#include <math.h>

typedef enum {
    SCHEDULE_CONSTANT,
    SCHEDULE_LINEAR,
    SCHEDULE_COSINE,
    SCHEDULE_TRAPEZOID
} ScheduleKind;

/* A factor on learning rates that is linear between given steps. n 0: the factor is 1. */
typedef struct {
    int n;
    double step[LIST_ITEMS], factor[LIST_ITEMS];
} Phases;

/* Of which tensors a rate is: the blocks' matrices, or embeddings, head, gains and biases. */
typedef enum { RATE_BLOCKS, RATE_REST } RateGroup;

typedef struct {
    int kind;            /* ScheduleKind */
    int steps;           /* updates in the whole run */
    int warmup;          /* updates of linear warm-up; update s < warmup gets (s + 1) / warmup */
    double cooldown;     /* trapezoid: fraction of the run spent in the linear cooldown */
    double final;        /* multiplier at the end of the decay */
    int momentum_warmup; /* updates over which momentum rises linearly from momentum_start */
    double momentum_start;
    Phases phases[2]; /* by RateGroup */
} Schedule;

/* Reads the text of --lr-phases or --lr-phases-rest. Returns 0, or -1 with a sentence. */
static inline int phases_parse(Phases *p, const char *flag, const char *text, char *err) {
    NumberList list;
    if (list_parse(&list, flag, text, LIST_ITEMS, 2, 2, "STEP:FACTOR", err)) return -1;
    p->n = list.n;
    for (int i = 0; i < list.n; i++) {
        p->step[i] = list.item[i][0];
        p->factor[i] = list.item[i][1];
        if (p->step[i] < 0 || p->factor[i] < 0 || p->factor[i] > 1e6)
            return fail(err, "--%s: steps are not negative, and factors are from 0 to 1e6", flag);
        if (i && p->step[i] < p->step[i - 1])
            return fail(err, "--%s: the steps must rise, and %g stands behind %g", flag, p->step[i],
                        p->step[i - 1]);
    }
    return 0;
}

/* The factor at update `step`: that of the first item before it, that of the last item after it. Of
   two items at one step the second counts from that step on. */
static inline double phases_at(const Phases *p, int step) {
    if (!p->n) return 1.0;
    if (step < p->step[0]) return p->factor[0];
    for (int i = 1; i < p->n; i++) {
        if (step >= p->step[i]) continue;
        double way = (step - p->step[i - 1]) / (p->step[i] - p->step[i - 1]);
        return p->factor[i - 1] + way * (p->factor[i] - p->factor[i - 1]);
    }
    return p->factor[p->n - 1];
}

/* Multiplier that --schedule gives every learning rate at update `step`, which counts from 0.
   Linear and trapezoid would reach `final` one update after the last: without warm-up the last
   update of a trapezoid gets final + (1 - final) / (cooldown steps). */
static inline double schedule_shape(const Schedule *s, int step) {
    if (step < s->warmup) return (double)(step + 1) / s->warmup;
    double span = s->steps - s->warmup;
    double remains = span > 0 ? (s->steps - step) / span : 1.0;
    if (remains < 0) remains = 0;
    double x = 1.0;
    switch ((ScheduleKind)s->kind) {
    case SCHEDULE_CONSTANT: break;
    case SCHEDULE_LINEAR: x = remains; break;
    case SCHEDULE_COSINE: x = 0.5 * (1.0 - cos(3.14159265358979323846 * remains)); break;
    case SCHEDULE_TRAPEZOID: {
        double left = (double)(s->steps - step) / s->steps;
        x = left >= s->cooldown ? 1.0 : left > 0 ? left / s->cooldown : 0.0;
        break;
    }
    }
    return s->final + (1.0 - s->final) * x;
}

/* Multiplier of the learning rates of a group at update `step`, phases included. */
static inline double schedule_lr_of(const Schedule *s, RateGroup group, int step) {
    return schedule_shape(s, step) * phases_at(&s->phases[group], step);
}
static inline double schedule_lr(const Schedule *s, int step) {
    return schedule_lr_of(s, RATE_BLOCKS, step);
}

/* Momentum coefficient at update `step`; `momentum` is its value after warm-up. */
static inline double schedule_momentum(const Schedule *s, int step, double momentum) {
    if (step >= s->momentum_warmup) return momentum;
    double f = (double)step / s->momentum_warmup;
    return s->momentum_start + f * (momentum - s->momentum_start);
}

#endif
