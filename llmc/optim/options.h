/*
The options of the rules, as one struct. options.def has the flags of Muon and Compositional Muon:
the trainer takes them on its command line (--inv-root cans12), and a program that links libcmuon
sets them by name (inv_root=cans12). Formulas and sources: docs/optimizers.md.
*/
#ifndef CM_OPTIM_OPTIONS_H
#define CM_OPTIM_OPTIONS_H

#include "../flags.h"

typedef enum {
    MSIGN_PE8,
    MSIGN_QUINTIC5,
    MSIGN_QUINTIC5_NV,
    MSIGN_SIMPLE12,
    MSIGN_PE8_LORA
} MsignKind;
typedef enum { SCALE_SPECTRAL, SCALE_RMS, SCALE_NONE } ScaleKind;
typedef enum { ROOT_CANS25, ROOT_CANS12, ROOT_EIGH, ROOT_PE7 } RootKind;
typedef enum { WHITEN_BOTH, WHITEN_PRE, WHITEN_POST, WHITEN_NONE } Whitening;
typedef enum { DAMPING_ABSOLUTE, DAMPING_RELATIVE } DampingForm;
typedef enum { AUTO_AUTO, AUTO_ON, AUTO_OFF } AutoOnOff;
typedef enum { FORM_EMA, FORM_SUM, FORM_RELEASED } MomentumForm;
typedef enum { NESTEROV_ON, NESTEROV_OFF, NESTEROV_RELEASED } NesterovKind;
typedef enum { DIV_ONE, DIV_GROUP } SharedDiv;
typedef enum { METHOD_HALF_SPLIT, METHOD_JOINT } Method;
typedef enum {
    CONNECTION_NONE,
    CONNECTION_FROBENIUS,
    CONNECTION_SCALE_AWARE,
    CONNECTION_SCALE_AWARE_SYLV,
    CONNECTION_FROBENIUS_SCALAR,
    CONNECTION_SCALE_AWARE_SCALAR
} Connection;
typedef enum { DECAY_CONSTANT, DECAY_LR } DecaySchedule;
typedef enum { REPROJECT_OFF, REPROJECT_COPY, REPROJECT_WRITE_BACK } Reproject;

/* The most averages of the gradient that a momentum is mixed from. */
enum { MOMENTUM_AGES = 8 };

/* A momentum mixed from averages of the gradient of different ages (--momentum-ages). An average of
   decay d has the mean age d / (1 - d). n 0: one average, whose decay is `momentum`. */
typedef struct {
    int n;
    double decay[MOMENTUM_AGES];
    double first[MOMENTUM_AGES], last[MOMENTUM_AGES]; /* weights; they move linearly */
    int from, until; /* updates at which the averages begin, and at which the weights are `last` */
} MomentumAges;

/* The fields of the first part are the flags of options.def, which libcmuon has too. The fields of
   the second part are flags of the trainer alone. */
typedef struct {
    double momentum;     /* coefficient, before any momentum warm-up */
    int momentum_form;   /* FORM_...; released: EMA for Muon, SUM for CM */
    int nesterov;        /* NESTEROV_...; released: on for Muon, off for CM */
    int msign;           /* MSIGN_... */
    int msign_compute;   /* Compute, for la_sign_in_bf16 */
    int scale;           /* SCALE_..., Muon only: CM has no shape factor */
    double mp;           /* CM's learning-rate multiplier */
    double damping;      /* lambda, added to the diagonal of every partner Gram */
    int damping_form;    /* DAMPING_..., relative: lambda is damping x mean of that diagonal */
    double whiten_power; /* A: legs are whitened by C^-A; 0 whitens nothing, 1 is CM */
    int isotropic;       /* C^-1 replaced by the scalar (||W||_F^2 / k + lambda)^-1/2 */
    int hybrid;          /* one sign over all heads of W_O; else per head */
    int head_group;      /* CM and Group Muon: consecutive heads that share a sign; 0: all */
    int whitening;       /* WHITEN_... */
    int inv_root;        /* ROOT_... */
    int shared_div;      /* DIV_..., grouped-query attention: divisor of the step of K and V */
    int per_mat_renorm;  /* undo the change of norm by the second whitening, one scalar a leg */
    int method;          /* METHOD_...: a sign and half of the budget for each leg, or one sign */
    int connection;      /* CONNECTION_..., the representative of a step that is kept */
    int gauge_damping;   /* add damping to the Grams and traces of the connection too */
    int momentum_reproject; /* REPROJECT_...: project a copy of the momentum, or its buffers */
    int circuit;            /* Circuit-Muon on the directions of V and O */
    double circuit_damping;
    double lora_trust; /* largest step of a factor, as a share of it, while its partner is small */
    double lora_rebalance; /* power of the rebalancing of two factors before a step; 0: none */
    int rite_escape;       /* LoRA-RITE: add the second moment that the partner's change loses */

    MomentumAges ages;
    int decay_schedule; /* DECAY_... */
    double adam_beta1, adam_beta2, adam_eps;
    double adam_beta1_blocks, adam_beta2_blocks; /* of the blocks' matrices */
    double lion_beta1, lion_beta2;
    double normuon_beta2;  /* NorMuon: decay of the second moment of the rows */
    int aurora_iterations; /* Aurora: signs taken */
    double aurora_power;   /* Aurora: exponent of the correction of the rows */
    int quack_base;        /* RuleId of the rule whose learning rate QuacK sets */
    double quack_tau;      /* QuacK: multiplies its learning rates */
} OptimOptions;

/* How many of `heads` heads share a sign under --head-group. */
static inline int heads_together(const OptimOptions *o, int heads) {
    return o->head_group ? o->head_group : heads;
}

/* Refuses options of Compositional Muon that have no meaning together on one circuit: returns -1
   and a sentence. An option without an effect (an inverse root where nothing is whitened) is no
   error. */
static inline int optim_check(const OptimOptions *o, int is_ov, int heads, int kv_heads,
                              char *err) {
    int joint = o->method == METHOD_JOINT;
    int gauged = o->connection != CONNECTION_NONE || o->momentum_reproject != REPROJECT_OFF;
    if (heads < 1 || kv_heads < 1 || heads % kv_heads)
        return fail(err, "%d query heads must be a multiple of %d key and value heads", heads,
                    kv_heads);
    if (joint && kv_heads != heads)
        return fail(
            err,
            "method joint takes one sign over a query head and its own key head, so it needs "
            "as many of both, not %d and %d; use method half_split",
            heads, kv_heads);
    if (joint && o->per_mat_renorm)
        return fail(err,
                    "method joint shares one sign between the legs, so per-mat-renorm, which gives "
                    "each leg the norm of its own sign, has no meaning; turn it off");
    if (joint && heads_together(o, heads) > 1)
        return fail(err,
                    "method joint takes a sign per head and head-group %d one over %d heads; set "
                    "head-group 1",
                    o->head_group, heads_together(o, heads));
    if (heads % heads_together(o, heads) || kv_heads % heads_together(o, kv_heads))
        return fail(err, "head-group %d heads share a sign, so it must divide %d and %d",
                    o->head_group, heads, kv_heads);
    if (o->damping_form == DAMPING_RELATIVE && o->gauge_damping && gauged)
        return fail(err,
                    "damping-form relative is a share of one partner's Gram, and gauge-damping on "
                    "adds one number to the Grams of both; turn gauge-damping off");
    if (joint && is_ov && o->hybrid)
        return fail(err,
                    "method joint takes a sign per head and hybrid one over all heads of W_O; turn "
                    "hybrid off");
    if (o->circuit && !is_ov)
        return fail(err, "circuit rescales W_O and W_V; it has no meaning for W_Q and W_K");
    if (o->circuit && joint)
        return fail(err,
                    "circuit needs a direction for each leg and method joint has one for both; use "
                    "method half_split");
    if (o->circuit && o->connection != CONNECTION_NONE)
        return fail(err, "circuit ends in a gauge of its own (frobenius_scalar) and would undo the "
                         "connection; set connection none");
    return 0;
}

#endif
