/*
What can be chosen about Muon and Compositional Muon, as one struct and one flag table. The trainer
takes these as flags (--inv-root cans12); a program that links the optimizer alone sets the same
keys by name (inv_root=cans12). Formulas and sources: docs/optimizers.md.
*/
#ifndef CM_OPTIM_OPTIONS_H
#define CM_OPTIM_OPTIONS_H

#include "../flags.h"

enum { MSIGN_PE8, MSIGN_QUINTIC5, MSIGN_QUINTIC5_NV, MSIGN_SIMPLE12 };
enum { SCALE_SPECTRAL, SCALE_RMS, SCALE_NONE };
enum { ROOT_CANS25, ROOT_CANS12, ROOT_EIGH };
enum { WHITEN_BOTH, WHITEN_PRE, WHITEN_POST, WHITEN_NONE };
enum { AUTO_AUTO, AUTO_ON, AUTO_OFF };
enum { FORM_AUTO, FORM_SUM, FORM_EMA };
enum { DIV_ONE, DIV_GROUP };
enum { METHOD_HALF_SPLIT, METHOD_JOINT };
enum {
    CONNECTION_NONE,
    CONNECTION_FROBENIUS,
    CONNECTION_SCALE_AWARE,
    CONNECTION_SCALE_AWARE_SYLV,
    CONNECTION_FROBENIUS_SCALAR,
    CONNECTION_SCALE_AWARE_SCALAR
};
enum { REPROJECT_OFF, REPROJECT_COPY, REPROJECT_WRITE_BACK };
enum { QUACK_MUON, QUACK_MUON_HEAD, QUACK_ADAMW };

typedef struct {
    double momentum;   /* coefficient, before any momentum warm-up */
    int momentum_form; /* FORM_...; auto: EMA for Muon, SUM for CM, as their authors released them */
    int nesterov;      /* AUTO_...; auto: on for Muon, off for CM, likewise */
    int msign;         /* MSIGN_... */
    int msign_compute;  /* Compute, for la_sign_in_bf16 */
    int scale;          /* SCALE_..., Muon only: CM has no shape factor */
    double mp;          /* CM's learning-rate multiplier */
    double damping;     /* lambda, added to the diagonal of every partner Gram */
    int isotropic;      /* C^-1 replaced by the scalar (||W||_F^2 / k + lambda)^-1/2 */
    int hybrid;         /* one sign over all heads of W_O; else per head */
    int whitening;      /* WHITEN_... */
    int inv_root;       /* ROOT_... */
    int shared_div;     /* DIV_..., grouped-query attention: divisor of the step of K and V */
    int per_mat_renorm; /* undo the change of norm of the post-whitening, one scalar a leg */
    int method;         /* METHOD_...: a sign and half of the budget for each leg, or one sign */
    int connection;     /* CONNECTION_..., the representative of a step that is kept */
    int gauge_damping;  /* add damping to the Grams and traces of the connection too */
    int momentum_reproject; /* REPROJECT_...: project a copy of the momentum, or its buffers */
    int circuit;            /* Circuit-Muon on the directions of V and O */
    double circuit_damping;
} OptimOptions;

/* Constants of the controls, the rules that Compositional Muon is compared with. */
typedef struct {
    double normuon_beta2;  /* NorMuon: decay of the second moment of the rows */
    int aurora_iterations; /* Aurora: signs taken */
    double aurora_power;   /* and the exponent of its correction */
    int quack_base;        /* QUACK_...: the rule whose learning rate QuacK sets */
    double quack_tau;
} ControlOptions;

/* Rows of a flag table; BASE is the offset of the OptimOptions in the caller's config struct. */
#define OPTIM_FLAG(BASE, FIELD) ((BASE) + offsetof(OptimOptions, FIELD))
#define OPTIM_FLAGS(BASE)                                                                          \
    {"momentum",                                                                                   \
     FLAG_FLOAT,                                                                                   \
     OPTIM_FLAG(BASE, momentum),                                                                   \
     "0.95",                                                                                       \
     0,                                                                                            \
     0.9999,                                                                                       \
     NULL,                                                                                         \
     "momentum of Muon and CM",                                                                    \
     "Muon and Compositional Muon"},                                                               \
        {"momentum-form",                                                                          \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, momentum_form),                                                          \
         "auto",                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         "auto|sum|ema",                                                                           \
         "m = b m + g, or m = b m + (1 - b) g; auto: ema for Muon, sum for CM",                    \
         NULL},                                                                                    \
        {"nesterov",                                                                               \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, nesterov),                                                               \
         "auto",                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         "auto|on|off",                                                                            \
         "Nesterov momentum; auto: on for Muon, off for CM",                                       \
         NULL},                                                                                    \
        {"msign",                                                                                  \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, msign),                                                                  \
         "pe8",                                                                                    \
         0,                                                                                        \
         0,                                                                                        \
         "pe8|quintic5|quintic5_nv|simple12",                                                      \
         "matrix sign: Polar Express 8 steps, classic quintic 5, NVIDIA's quintic 5, simple 12",   \
         NULL},                                                                                    \
        {"msign-compute",                                                                          \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, msign_compute),                                                          \
         "auto",                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         "fp32|bf16|auto",                                                                         \
         "matrix signs of all but heads: in fp32 (with --tf32 on its products in TF32), or in "    \
         "bf16 with "                                                                              \
         "sums in fp32; auto: bf16 on a GPU that trains in bf16 with --tf32 on, else fp32",        \
         NULL},                                                                                    \
        {"scale",                                                                                  \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, scale),                                                                  \
         "spectral",                                                                               \
         0,                                                                                        \
         0,                                                                                        \
         "spectral|rms|none",                                                                      \
         "Muon's shape factor: sqrt(max(1, rows/cols)), 0.2 sqrt(max(rows, cols)), or 1",          \
         NULL},                                                                                    \
        {"mp",                                                                                     \
         FLAG_FLOAT,                                                                               \
         OPTIM_FLAG(BASE, mp),                                                                     \
         "1",                                                                                      \
         0,                                                                                        \
         INFINITY,                                                                                 \
         NULL,                                                                                     \
         "CM's learning-rate multiplier",                                                          \
         NULL},                                                                                    \
        {"damping",                                                                                \
         FLAG_FLOAT,                                                                               \
         OPTIM_FLAG(BASE, damping),                                                                \
         "0.01",                                                                                   \
         0,                                                                                        \
         INFINITY,                                                                                 \
         NULL,                                                                                     \
         "CM: added to the diagonal of each partner Gram",                                         \
         NULL},                                                                                    \
        {"isotropic",                                                                              \
         FLAG_BOOL,                                                                                \
         OPTIM_FLAG(BASE, isotropic),                                                              \
         "off",                                                                                    \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "CM: whiten by a scalar per head instead of the inverse Gram root",                       \
         NULL},                                                                                    \
        {"hybrid",                                                                                 \
         FLAG_BOOL,                                                                                \
         OPTIM_FLAG(BASE, hybrid),                                                                 \
         "on",                                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "CM: one sign over all heads of W_O (off: one per head)",                                 \
         NULL},                                                                                    \
        {"whitening",                                                                              \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, whitening),                                                              \
         "both",                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         "both|pre|post|none",                                                                     \
         "CM: whiten before and after the sign, or only one of them",                              \
         NULL},                                                                                    \
        {"inv-root",                                                                               \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, inv_root),                                                               \
         "cans25",                                                                                 \
         0,                                                                                        \
         0,                                                                                        \
         "cans25|cans12|eigh",                                                                     \
         "CM: inverse root by coupled iteration (25 or 12 steps) or eigendecomposition",           \
         NULL},                                                                                    \
        {"shared-div",                                                                             \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, shared_div),                                                             \
         "1",                                                                                      \
         0,                                                                                        \
         0,                                                                                        \
         "1|group",                                                                                \
         "CM with grouped queries: divide the step of K and V by 1 or by the group size",          \
         NULL},                                                                                    \
        {"per-mat-renorm",                                                                         \
         FLAG_BOOL,                                                                                \
         OPTIM_FLAG(BASE, per_mat_renorm),                                                         \
         "off",                                                                                    \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "CM: rescale each leg to the norm of its sign, so that Muon's learning rate carries "     \
         "over",                                                                                   \
         NULL},                                                                                    \
        {"method",                                                                                 \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, method),                                                                 \
         "half_split",                                                                             \
         0,                                                                                        \
         0,                                                                                        \
         "half_split|joint",                                                                       \
         "CM: half of the budget for each leg, or one sign over both",                             \
         NULL},                                                                                    \
        {"connection",                                                                             \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, connection),                                                             \
         "none",                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         "none|frobenius|scale_aware|scale_aware_sylv|frobenius_scalar|scale_aware_scalar",        \
         "CM: gauge in which a step is taken",                                                     \
         NULL},                                                                                    \
        {"gauge-damping",                                                                          \
         FLAG_BOOL,                                                                                \
         OPTIM_FLAG(BASE, gauge_damping),                                                          \
         "on",                                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "CM: add --damping to the Grams and traces of the connection too",                        \
         NULL},                                                                                    \
        {"momentum-reproject",                                                                     \
         FLAG_CHOICE,                                                                              \
         OPTIM_FLAG(BASE, momentum_reproject),                                                     \
         "0",                                                                                      \
         0,                                                                                        \
         0,                                                                                        \
         "0|copy|write_back",                                                                      \
         "CM: project the momentum by the connection (frobenius if none): no, a copy, the buffer", \
         NULL},                                                                                    \
        {"circuit",                                                                                \
         FLAG_BOOL,                                                                                \
         OPTIM_FLAG(BASE, circuit),                                                                \
         "off",                                                                                    \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "Circuit-Muon: rescale the heads of W_O and W_V by their partners after the rule of "     \
         "--ov",                                                                                   \
         NULL},                                                                                    \
    {                                                                                              \
        "circuit-damping", FLAG_FLOAT, OPTIM_FLAG(BASE, circuit_damping), "0.001", 0, 1e6, NULL,   \
            "Circuit-Muon: added to the mean square norm of a partner's rows", NULL                \
    }

#define CONTROL_FLAG(BASE, FIELD) ((BASE) + offsetof(ControlOptions, FIELD))
#define CONTROL_FLAGS(BASE)                                                                        \
    {"normuon-beta2",                                                                              \
     FLAG_FLOAT,                                                                                   \
     CONTROL_FLAG(BASE, normuon_beta2),                                                            \
     "0.95",                                                                                       \
     0,                                                                                            \
     0.9999999,                                                                                    \
     NULL,                                                                                         \
     "NorMuon: decay of the second moment of the rows",                                            \
     NULL},                                                                                        \
        {"aurora-iterations",                                                                      \
         FLAG_INT,                                                                                 \
         CONTROL_FLAG(BASE, aurora_iterations),                                                    \
         "2",                                                                                      \
         1,                                                                                        \
         100,                                                                                      \
         NULL,                                                                                     \
         "Aurora: signs taken, each with better balanced rows",                                    \
         NULL},                                                                                    \
        {"aurora-power",                                                                           \
         FLAG_FLOAT,                                                                               \
         CONTROL_FLAG(BASE, aurora_power),                                                         \
         "0.5",                                                                                    \
         0,                                                                                        \
         10,                                                                                       \
         NULL,                                                                                     \
         "Aurora: exponent of the correction of the rows",                                         \
         NULL},                                                                                    \
        {"quack-base",                                                                             \
         FLAG_CHOICE,                                                                              \
         CONTROL_FLAG(BASE, quack_base),                                                           \
         "muon",                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         "muon|muon-head|adamw",                                                                   \
         "QuacK: the rule whose learning rate it sets per head",                                   \
         NULL},                                                                                    \
    {                                                                                              \
        "quack-tau", FLAG_FLOAT, CONTROL_FLAG(BASE, quack_tau), "1", 0, 1e6, NULL,                 \
            "QuacK: multiplies its learning rates", NULL                                           \
    }

/* Refuses options of Compositional Muon on one circuit that mean nothing together: -1 and a sentence.
   Options without an effect (an inverse root that nothing is whitened by) are no error. */
static inline int optim_check(const OptimOptions *o, int is_ov, int heads, int kv_heads,
                              char *err) {
    int joint = o->method == METHOD_JOINT;
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
