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

typedef struct {
    double momentum;     /* coefficient, before any momentum warm-up */
    int momentum_form;   /* FORM_...; auto: EMA for Muon, SUM for CM, as their authors released them */
    int nesterov;        /* AUTO_...; auto: on for Muon, off for CM, likewise */
    int msign;           /* MSIGN_... */
    int scale;           /* SCALE_..., Muon only: CM has no shape factor */
    double mp;           /* CM's learning-rate multiplier */
    double damping;      /* lambda, added to the diagonal of every partner Gram */
    int isotropic;       /* C^-1 replaced by the scalar (||W||_F^2 / k + lambda)^-1/2 */
    int hybrid;          /* one sign over all heads of W_O; else per head */
    int whitening;       /* WHITEN_... */
    int inv_root;        /* ROOT_... */
    int shared_div;      /* DIV_..., grouped-query attention: divisor of the step of K and V */
    int per_mat_renorm;  /* undo the change of norm of the post-whitening, one scalar a leg */
} OptimOptions;

/* Rows of a flag table; BASE is the offset of the OptimOptions in the caller's config struct. */
#define OPTIM_FLAG(BASE, FIELD) ((BASE) + offsetof(OptimOptions, FIELD))
#define OPTIM_FLAGS(BASE)                                                                          \
    {"momentum", FLAG_FLOAT, OPTIM_FLAG(BASE, momentum), "0.95", 0, 0.9999, NULL,                  \
     "momentum of Muon and CM", "Muon and Compositional Muon"},                                    \
    {"momentum-form", FLAG_CHOICE, OPTIM_FLAG(BASE, momentum_form), "auto", 0, 0, "auto|sum|ema",  \
     "m = b m + g, or m = b m + (1 - b) g; auto: ema for Muon, sum for CM", NULL},                 \
    {"nesterov", FLAG_CHOICE, OPTIM_FLAG(BASE, nesterov), "auto", 0, 0, "auto|on|off",             \
     "Nesterov momentum; auto: on for Muon, off for CM", NULL},                                    \
    {"msign", FLAG_CHOICE, OPTIM_FLAG(BASE, msign), "pe8", 0, 0,                                   \
     "pe8|quintic5|quintic5_nv|simple12",                                                          \
     "matrix sign: Polar Express 8 steps, classic quintic 5, NVIDIA's quintic 5, simple 12",       \
     NULL},                                                                                        \
    {"scale", FLAG_CHOICE, OPTIM_FLAG(BASE, scale), "spectral", 0, 0, "spectral|rms|none",         \
     "Muon's shape factor: sqrt(max(1, rows/cols)), 0.2 sqrt(max(rows, cols)), or 1", NULL},       \
    {"mp", FLAG_FLOAT, OPTIM_FLAG(BASE, mp), "1", 0, INFINITY, NULL,                                    \
     "CM's learning-rate multiplier", NULL},                                                       \
    {"damping", FLAG_FLOAT, OPTIM_FLAG(BASE, damping), "0.01", 0, INFINITY, NULL,                       \
     "CM: added to the diagonal of each partner Gram", NULL},                                      \
    {"isotropic", FLAG_BOOL, OPTIM_FLAG(BASE, isotropic), "off", 0, 0, NULL,                       \
     "CM: whiten by a scalar per head instead of the inverse Gram root", NULL},                    \
    {"hybrid", FLAG_BOOL, OPTIM_FLAG(BASE, hybrid), "on", 0, 0, NULL,                              \
     "CM: one sign over all heads of W_O (off: one per head)", NULL},                              \
    {"whitening", FLAG_CHOICE, OPTIM_FLAG(BASE, whitening), "both", 0, 0, "both|pre|post|none",    \
     "CM: whiten before and after the sign, or only one of them", NULL},                           \
    {"inv-root", FLAG_CHOICE, OPTIM_FLAG(BASE, inv_root), "cans25", 0, 0, "cans25|cans12|eigh",    \
     "CM: inverse root by coupled iteration (25 or 12 steps) or eigendecomposition", NULL},        \
    {"shared-div", FLAG_CHOICE, OPTIM_FLAG(BASE, shared_div), "1", 0, 0, "1|group",                \
     "CM with grouped queries: divide the step of K and V by 1 or by the group size", NULL},       \
    {"per-mat-renorm", FLAG_BOOL, OPTIM_FLAG(BASE, per_mat_renorm), "off", 0, 0, NULL,             \
     "CM: rescale each leg to the norm of its sign, so that Muon's learning rate carries over",    \
     NULL}

#endif
