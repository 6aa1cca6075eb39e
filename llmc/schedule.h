/*
Learning-rate and momentum schedules: multipliers as pure functions of the step.
*/
#ifndef CM_SCHEDULE_H
#define CM_SCHEDULE_H

#include <math.h>

typedef enum {
    SCHEDULE_CONSTANT,
    SCHEDULE_LINEAR,
    SCHEDULE_COSINE,
    SCHEDULE_TRAPEZOID
} ScheduleKind;

typedef struct {
    int kind;            /* ScheduleKind */
    int steps;           /* updates in the whole run */
    int warmup;          /* updates of linear warm-up; update s < warmup gets (s + 1) / warmup */
    double cooldown;     /* trapezoid: fraction of the run spent in the linear cooldown */
    double final;        /* multiplier at the end of the decay */
    int momentum_warmup; /* updates over which momentum rises linearly from momentum_start */
    double momentum_start;
} Schedule;

/* Multiplier of every learning rate at update `step`, which counts from 0. Linear and trapezoid
   would reach `final` one update after the last: without warm-up the last update of a trapezoid
   gets final + (1 - final) / (cooldown steps). */
static inline double schedule_lr(const Schedule *s, int step) {
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

/* Momentum coefficient at update `step`; `momentum` is its value after warm-up. */
static inline double schedule_momentum(const Schedule *s, int step, double momentum) {
    if (step >= s->momentum_warmup) return momentum;
    double f = (double)step / s->momentum_warmup;
    return s->momentum_start + f * (momentum - s->momentum_start);
}

#endif
