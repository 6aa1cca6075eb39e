/*
Everything that can be chosen about a run: one struct, one flag table, the presets, and the checks
that need more than one flag. The table generates the parser, --help, run.json and the README's list.
A run with no flags at all is the TinyShakespeare run that `make train` starts.
*/
#ifndef CM_CONFIG_H
#define CM_CONFIG_H

#include "base.h"
#include "flags.h"
#include "optim/options.h"
#include "schedule.h"

enum { PRESET_TINY, PRESET_GPT2, PRESET_LLAMA, PRESET_SPEEDRUN };
enum { NORM_LAYERNORM, NORM_RMSNORM };
enum { POS_LEARNED, POS_ROPE, POS_ROPE_HALF, POS_NONE };
enum { ACT_GELU, ACT_RELU2, ACT_SWIGLU };
enum { INIT_GPT2, INIT_SPEEDRUN };
enum { OPT_CM, OPT_MUON, OPT_ADAMW };
enum { RECOMPUTE_NONE, RECOMPUTE_ACT, RECOMPUTE_NORM, RECOMPUTE_BLOCK };
enum { GELU_AUTO, GELU_FUSED, GELU_UNFUSED };
enum { GEMM_MEASURED, GEMM_FIRST };
enum { ATTENTION_AUTO, ATTENTION_FLASH, ATTENTION_CUDNN, ATTENTION_CUDNN_FAST, ATTENTION_HOPPER };
/* In the order of --qk and --ov, of which the second lacks the last, and of --mlp. */
enum {
    RULE_AUTO,
    RULE_CM,
    RULE_MUON,
    RULE_MUON_HEAD,
    RULE_NORMUON,
    RULE_AURORA,
    RULE_MUONH,
    RULE_ADAMW,
    RULE_ADAMW_PARTNER,
    RULE_QUACK
};
enum {
    MLP_RULE_AUTO,
    MLP_RULE_MUON,
    MLP_RULE_NORMUON,
    MLP_RULE_AURORA,
    MLP_RULE_MUONH,
    MLP_RULE_ADAMW
};
#define RULES_OV "auto|cm|muon|muon-head|normuon|aurora|muonh|adamw|adamw-partner"

typedef struct {
    /* run */
    int preset;
    char run[FLAG_STRING_SIZE], runs_dir[FLAG_STRING_SIZE];
    int resume, steps;
    int64_t seed;
    int val_every;
    int64_t val_tokens;
    int checkpoint_every, keep_checkpoints, threads, compute, dry_run, print_every, version;
    int log_groups, recompute;
    int logit_rows;
    int device, attention, tf32, cuda_graph, gelu, gemm; /* of a GPU */
    int help_markdown;
    /* data */
    char data[FLAG_STRING_SIZE], val_data[FLAG_STRING_SIZE];
    int data_order, batch_size;
    int64_t total_batch_tokens;
    /* model */
    int layers, width, heads, kv_heads, head_dim, ff_width, seq_len, vocab;
    int norm;
    double norm_eps;
    int pos;
    double rope_base;
    int qk_norm, act, biases, head_bias, tied, embed_norm;
    double attn_scale, softcap;
    int init;
    double init_std;
    /* optimizer */
    int optimizer, qk, ov, mlp, embed, head;
    double lr, lr_embed, lr_head, lr_scalar;
    double weight_decay, weight_decay_embed, weight_decay_head, weight_decay_scalar;
    double adam_beta1, adam_beta2, adam_eps, grad_clip;
    int cm_match_muon;
    OptimOptions optim;
    ControlOptions control;
    Schedule schedule; /* .steps is filled from `steps` */
} Config;

#define F(FIELD) offsetof(Config, FIELD)
static const Flag config_flags[] = {
    {"preset", FLAG_CHOICE, F(preset), "tiny", 0, 0, "tiny|gpt2|llama|speedrun",
     "a set of flags to start from; flags given explicitly win", "Run"},
    {"run", FLAG_STRING, F(run), "tiny", 0, 0, NULL, "name of the run: its folder below --runs-dir",
     NULL},
    {"runs-dir", FLAG_STRING, F(runs_dir), "runs", 0, 0, NULL, "folder of all runs", NULL},
    {"resume", FLAG_SWITCH, F(resume), "off", 0, 0, NULL,
     "go on from the newest checkpoint of --run with the flags it was started with", NULL},
    {"steps", FLAG_INT, F(steps), "1200", 0, INFINITY, NULL, "optimizer steps of the whole run",
     NULL},
    {"seed", FLAG_LONG, F(seed), "1", 0, INFINITY, NULL, "seeds initialisation and data order",
     NULL},
    {"val-every", FLAG_INT, F(val_every), "200", 0, INFINITY, NULL,
     "steps between validations; 0: only at the end", NULL},
    {"val-tokens", FLAG_LONG, F(val_tokens), "0", 0, INFINITY, NULL,
     "validation targets to evaluate; 0: all", NULL},
    {"checkpoint-every", FLAG_INT, F(checkpoint_every), "300", 0, INFINITY, NULL,
     "steps between checkpoints; 0: only at the end", NULL},
    {"keep-checkpoints", FLAG_INT, F(keep_checkpoints), "2", 0, INFINITY, NULL,
     "newest checkpoints to keep; 0: write none", NULL},
    {"print-every", FLAG_INT, F(print_every), "0", 0, INFINITY, NULL,
     "steps between printed lines when the output is not a terminal; 0: about forty a run", NULL},
    {"log-groups", FLAG_SWITCH, F(log_groups), "off", 0, 0, NULL,
     "add the size of each group's update to every line of log.jsonl", NULL},
    {"threads", FLAG_INT, F(threads), "0", 0, 4096, NULL, "CPU threads; 0: all cores", NULL},
    {"compute", FLAG_CHOICE, F(compute), "auto", 0, 0, "fp32|bf16|auto",
     "precision of the model's matrix products (bf16 accumulates in fp32); auto: fp32 on a CPU, "
     "and on a GPU "
     "what the program was built for",
     NULL},
    {"recompute", FLAG_CHOICE, F(recompute), "none", 0, 0, "none|act|norm|block",
     "what the backward pass computes again instead of keeping it for all layers: MLP activations, "
     "norms too, "
     "or all but each block's input; slower, less memory, the same numbers",
     NULL},
    {"logit-rows", FLAG_INT, F(logit_rows), "0", 0, INFINITY, NULL,
     "rows of logits formed at a time, less memory for fewer; 0: what suits the machine", NULL},
#ifdef CM_CUDA
    {"device", FLAG_INT, F(device), "0", 0, 1024, NULL, "GPU to use, as nvidia-smi counts them",
     NULL},
    {"attention", FLAG_CHOICE, F(attention), "auto", 0, 0, "auto|flash|cudnn|cudnn-fast|hopper",
     "our flash attention, or cuDNN's; auto: the faster of the two here; never taken by auto: "
     "cudnn-fast, cuDNN's that "
     "sums dq in any order, so that equal runs may differ in bits, and hopper, ours for H100 and "
     "H200 (bf16, heads of "
     "64 or 128), which no device has run yet",
     NULL},
    {"cuda-graph", FLAG_CHOICE, F(cuda_graph), "auto", 0, 0, "auto|on|off",
     "record the kernels of a micro-batch and replay them: saves launches, which short ones wait "
     "for; auto: where "
     "a micro-batch takes less than 10 ms and replaying gives the same bits",
     NULL},
    {"gelu", FLAG_CHOICE, F(gelu), "auto", 0, 0, "auto|fused|unfused",
     "GELU and its derivative in the matrix product's epilogue, or in kernels of their own; auto: "
     "the faster one",
     NULL},
    {"gemm", FLAG_CHOICE, F(gemm), "measured", 0, 0, "measured|first",
     "algorithm of each matrix product: the fastest that cuBLASLt proposes, or its first proposal",
     NULL},
    {"tf32", FLAG_BOOL, F(tf32), "on", 0, 0, NULL,
     "tensor cores for fp32 matrix products (matrix signs; the model's in the fp32 program), 10 "
     "bits of mantissa",
     NULL},
#endif
    {"dry-run", FLAG_SWITCH, F(dry_run), "off", 0, 0, NULL,
     "print parameters, memory, update plan, FLOPs and expected time, then stop", NULL},
    {"version", FLAG_SWITCH, F(version), "off", 0, 0, NULL, "print the version and stop", NULL},
    {"help-markdown", FLAG_SWITCH, F(help_markdown), "off", 0, 0, NULL,
     "print this list as Markdown and stop", NULL},

    {"data", FLAG_STRING, F(data), "data/tinyshakespeare.txt", 0, 0, NULL,
     "training data: token shards (a file or a quoted glob) or a text file, whose bytes are tokens",
     "Data"},
    {"val-data", FLAG_STRING, F(val_data), "", 0, 0, NULL,
     "validation data; without it the last tenth of a text file", NULL},
    {"data-order", FLAG_CHOICE, F(data_order), "shuffled", 0, 0, "sequential|shuffled",
     "shards from front to back, or shuffled by (seed, epoch)", NULL},
    {"batch-size", FLAG_INT, F(batch_size), "16", 1, INFINITY, NULL,
     "sequences of one forward pass", NULL},
    {"total-batch-tokens", FLAG_LONG, F(total_batch_tokens), "0", 0, INFINITY, NULL,
     "tokens of one optimizer step, by gradient accumulation; 0: batch-size x seq-len", NULL},

    {"layers", FLAG_INT, F(layers), "4", 1, INFINITY, NULL, "transformer blocks (L)", "Model"},
    {"width", FLAG_INT, F(width), "128", 1, INFINITY, NULL, "model width (C)", NULL},
    {"heads", FLAG_INT, F(heads), "4", 1, INFINITY, NULL, "query heads (NH)", NULL},
    {"kv-heads", FLAG_INT, F(kv_heads), "0", 0, INFINITY, NULL,
     "key and value heads; 0: as many as --heads", NULL},
    {"head-dim", FLAG_INT, F(head_dim), "0", 0, 1024, NULL, "head width (HS); 0: width / heads",
     NULL},
    {"ff-width", FLAG_INT, F(ff_width), "0", 0, INFINITY, NULL,
     "MLP width (F); 0: 4 C, or 8/3 C rounded up to a multiple of 64 for swiglu", NULL},
    {"seq-len", FLAG_INT, F(seq_len), "128", 1, INFINITY, NULL, "tokens of a sequence (T)", NULL},
    {"vocab", FLAG_INT, F(vocab), "0", 0, INFINITY, NULL,
     "vocabulary (V), padded to a multiple of 64 inside; 0: 256 for text, 50257 for shards", NULL},
    {"norm", FLAG_CHOICE, F(norm), "rmsnorm", 0, 0, "layernorm|rmsnorm",
     "layernorm with gain and bias, or rmsnorm with gain", NULL},
    {"norm-eps", FLAG_FLOAT, F(norm_eps), "1e-6", 0, 1, NULL, "added to the mean square", NULL},
    {"pos", FLAG_CHOICE, F(pos), "rope", 0, 0, "learned|rope|rope-half|none",
     "position: table, rotary, rotary with half of the planes fixed, or none", NULL},
    {"rope-base", FLAG_FLOAT, F(rope_base), "10000", 1, INFINITY, NULL,
     "longest rotary wavelength / 2pi", NULL},
    {"qk-norm", FLAG_BOOL, F(qk_norm), "on", 0, 0, NULL, "RMS-normalise queries and keys per head",
     NULL},
    {"act", FLAG_CHOICE, F(act), "relu2", 0, 0, "gelu|relu2|swiglu",
     "MLP: tanh GELU, squared ReLU, or gated SiLU", NULL},
    {"biases", FLAG_BOOL, F(biases), "off", 0, 0, NULL, "biases in the blocks' linear layers",
     NULL},
    {"head-bias", FLAG_BOOL, F(head_bias), "off", 0, 0, NULL, "a bias on the logits", NULL},
    {"tied", FLAG_BOOL, F(tied), "off", 0, 0, NULL, "embedding and head share one matrix", NULL},
    {"embed-norm", FLAG_BOOL, F(embed_norm), "on", 0, 0, NULL, "normalise the embedding", NULL},
    {"attn-scale", FLAG_FLOAT, F(attn_scale), "0", 0, INFINITY, NULL,
     "multiplies query-key products; 0: 1/sqrt(head-dim)", NULL},
    {"softcap", FLAG_FLOAT, F(softcap), "15", 0, INFINITY, NULL,
     "logits become c z / sqrt(z^2 + c^2); 0: off", NULL},
    {"init", FLAG_CHOICE, F(init), "speedrun", 0, 0, "gpt2|speedrun",
     "gpt2: normal(init-std), residual projections / sqrt(2L); speedrun: "
     "normal(sqrt(0.33/fan-in)), "
     "embedding normal(1), residual projections and head zero",
     NULL},
    {"init-std", FLAG_FLOAT, F(init_std), "0.02", 0, INFINITY, NULL, "of --init gpt2", NULL},

    {"optimizer", FLAG_CHOICE, F(optimizer), "cm", 0, 0, "cm|muon|adamw",
     "cm: CM on attention, Muon on MLPs, AdamW on the rest; muon: Muon on both; adamw: all AdamW",
     "Optimizer"},
    {"qk", FLAG_CHOICE, F(qk), "auto", 0, 0, RULES_OV "|quack",
     "rule of W_Q and W_K; auto: as --optimizer says", NULL},
    {"ov", FLAG_CHOICE, F(ov), "auto", 0, 0, RULES_OV, "rule of W_O and W_V", NULL},
    {"mlp", FLAG_CHOICE, F(mlp), "auto", 0, 0, "auto|muon|normuon|aurora|muonh|adamw",
     "rule of the MLP matrices", NULL},
    {"embed", FLAG_CHOICE, F(embed), "adamw", 0, 0, "adamw", "rule of the embeddings", NULL},
    {"head", FLAG_CHOICE, F(head), "adamw", 0, 0, "adamw", "rule of the head", NULL},
    {"lr", FLAG_FLOAT, F(lr), "0", 0, INFINITY, NULL,
     "learning rate of the blocks' matrices; 0: 0.02 for cm and muon, 0.002 for adamw", NULL},
    {"lr-embed", FLAG_FLOAT, F(lr_embed), "0.1", 0, INFINITY, NULL, "of the embeddings", NULL},
    {"lr-head", FLAG_FLOAT, F(lr_head), "0.004", 0, INFINITY, NULL, "of an untied head", NULL},
    {"lr-scalar", FLAG_FLOAT, F(lr_scalar), "0.01", 0, INFINITY, NULL, "of gains and biases", NULL},
    {"weight-decay", FLAG_FLOAT, F(weight_decay), "0", 0, INFINITY, NULL,
     "decoupled, of the blocks' matrices", NULL},
    {"weight-decay-embed", FLAG_FLOAT, F(weight_decay_embed), "0", 0, INFINITY, NULL,
     "of the embeddings", NULL},
    {"weight-decay-head", FLAG_FLOAT, F(weight_decay_head), "0", 0, INFINITY, NULL,
     "of an untied head", NULL},
    {"weight-decay-scalar", FLAG_FLOAT, F(weight_decay_scalar), "0", 0, INFINITY, NULL,
     "of gains and biases", NULL},
    {"adam-beta1", FLAG_FLOAT, F(adam_beta1), "0.8", 0, 0.9999999, NULL, "AdamW", NULL},
    {"adam-beta2", FLAG_FLOAT, F(adam_beta2), "0.95", 0, 0.9999999, NULL, "AdamW", NULL},
    {"adam-eps", FLAG_FLOAT, F(adam_eps), "1e-10", 0, 1, NULL,
     "AdamW, relative to gradients of the mean loss", NULL},
    {"grad-clip", FLAG_FLOAT, F(grad_clip), "0", 0, INFINITY, NULL,
     "scale the gradient down to this global norm; 0: off", NULL},
    {"cm-match-muon", FLAG_SWITCH, F(cm_match_muon), "off", 0, 0, NULL,
     "CM at Muon's learning rate: stands for --per-mat-renorm on --mp 2", NULL},
    OPTIM_FLAGS(F(optim)),
    CONTROL_FLAGS(F(control)),

    {"schedule", FLAG_CHOICE, F(schedule.kind), "trapezoid", 0, 0,
     "constant|linear|cosine|trapezoid", "of all learning rates", "Schedule"},
    {"warmup", FLAG_INT, F(schedule.warmup), "0", 0, INFINITY, NULL, "steps of linear warm-up",
     NULL},
    {"cooldown", FLAG_FLOAT, F(schedule.cooldown), "0.7", 0, 1, NULL,
     "trapezoid: fraction of the run in which the rate falls linearly", NULL},
    {"lr-final", FLAG_FLOAT, F(schedule.final), "0", 0, 1, NULL,
     "fraction of the learning rate that the decay runs towards", NULL},
    {"momentum-warmup", FLAG_INT, F(schedule.momentum_warmup), "0", 0, INFINITY, NULL,
     "steps in which the momentum of Muon and CM rises from --momentum-start", NULL},
    {"momentum-start", FLAG_FLOAT, F(schedule.momentum_start), "0.85", 0, 0.9999, NULL,
     "momentum at step 0 of that warm-up", NULL},
};
#undef F
enum { CONFIG_FLAGS = (int)(sizeof config_flags / sizeof config_flags[0]) };

/* Flags a preset sets where the user did not. `tiny` is the flags' own defaults. */
static const char *const config_presets[] = {
    "",
    /* gpt2: Radford et al. 2019, 124M */
    "--layers 12 --width 768 --heads 12 --seq-len 1024 --batch-size 4 --norm layernorm "
    "--norm-eps 1e-5 --pos learned --qk-norm off --act gelu --biases on --tied on --embed-norm off "
    "--softcap 0 --init gpt2 --lr-embed 0.0006 --adam-beta1 0.9 --adam-eps 1e-8 "
    "--lr-scalar 0.0006 --weight-decay 0.1 --grad-clip 1 --schedule cosine --warmup 100 "
    "--lr-final 0.1",
    /* llama: Touvron et al. 2023 with QK-norm, at GPT-2's size */
    "--layers 12 --width 768 --heads 12 --seq-len 1024 --batch-size 4 --norm rmsnorm "
    "--norm-eps 1e-6 --pos rope --rope-base 10000 --qk-norm on --act swiglu --biases off --tied "
    "off "
    "--embed-norm off --softcap 0 --init gpt2 --lr-embed 0.003 --lr-head 0.003 --lr-scalar 0.003 "
    "--adam-beta1 0.9 --adam-eps 1e-8 --schedule cosine --warmup 100 --lr-final 0.1",
    /* speedrun: the modded-nanoGPT optimization benchmark. Its loss is a sum over 524288 tokens, so
       its Adam epsilon of 1e-10 is 1e-10 / 524288 for gradients of the mean. */
    "--layers 12 --width 768 --heads 6 --seq-len 1024 --batch-size 4 --vocab 50304 "
    "--total-batch-tokens 524288 --steps 3250 --norm rmsnorm --norm-eps 1.1920929e-7 "
    "--pos rope-half --rope-base 1024 --qk-norm on --act relu2 --biases on --head-bias on "
    "--tied off --embed-norm on --attn-scale 0.12 --softcap 15 --init speedrun "
    "--data-order sequential --val-tokens 10485760 --val-every 125 --lr 0.025 --lr-embed 0.7 "
    "--lr-head 0.004 --lr-scalar 0.015 --weight-decay 0.05 --weight-decay-embed 0.001 "
    "--weight-decay-head 0.001 --weight-decay-scalar 0.001 --adam-beta1 0.8 --adam-beta2 0.95 "
    "--adam-eps 1.9073486e-16 --momentum 0.95 --msign simple12 --schedule trapezoid --cooldown 0.7",
};

static inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

/* Applies a string of "--flag value" pairs to every flag not marked in `given`; -1 on a bad one. */
static inline int config_apply(Config *c, const unsigned char *given, const char *pairs,
                               char *err) {
    char *text = strdup(pairs), *save = NULL;
    int status = 0;
    for (char *name = strtok_r(text, " ", &save); name && !status;
         name = strtok_r(NULL, " ", &save)) {
        char *value = strtok_r(NULL, " ", &save);
        int i = flags_find(config_flags, CONFIG_FLAGS, name + 2);
        if (i >= 0 && given && given[i]) continue;
        status = flags_set(config_flags, CONFIG_FLAGS, c, NULL, name + 2, value, err);
    }
    free(text);
    return status;
}

/* --cm-match-muon: sets what it stands for, as if given. */
static inline int config_match_muon(Config *c, unsigned char *given, char *err) {
    int renorm = flags_find(config_flags, CONFIG_FLAGS, "per-mat-renorm");
    int mp = flags_find(config_flags, CONFIG_FLAGS, "mp");
    if (!c->cm_match_muon) return 0;
    if (given[renorm] && !c->optim.per_mat_renorm)
        return fail(err, "--cm-match-muon stands for --per-mat-renorm on and contradicts "
                         "--per-mat-renorm off; leave one of them out");
    if (given[mp] && c->optim.mp != 2)
        return fail(err,
                    "--cm-match-muon stands for --mp 2 and contradicts --mp %g; leave one of them "
                    "out",
                    c->optim.mp);
    given[renorm] = given[mp] = 1;
    c->optim.per_mat_renorm = 1;
    c->optim.mp = 2;
    return 0;
}

/* Parses a command line: defaults, then the preset, then the flags given. `given` (CONFIG_FLAGS
   bytes) marks the latter. Returns 1 if --help was asked for, -1 with a message, else 0. */
static inline int config_parse(Config *c, unsigned char *given, int argc, char **argv, char *err) {
    memset(c, 0, sizeof *c);
    memset(given, 0, CONFIG_FLAGS);
    flags_defaults(config_flags, CONFIG_FLAGS, c);
    int status = flags_parse(config_flags, CONFIG_FLAGS, c, given, argc, argv, err);
    if (!status) status = config_match_muon(c, given, err);
    return status ? status : config_apply(c, given, config_presets[c->preset], err);
}

/* Refuses rules and options that mean nothing together, or for this model. The rules are resolved. */
static inline int config_check_rules(const Config *c, char *err) {
    char why[ERR_LEN] = "";
    int A = c->heads * c->head_dim, K = c->kv_heads * c->head_dim;
    OptimOptions qk = c->optim;
    qk.circuit = 0; /* a flag of OV alone */
    if (c->qk == RULE_CM && optim_check(&qk, 0, c->heads, c->kv_heads, why))
        return fail(err, "--qk cm: %s", why);
    if (c->ov == RULE_CM && optim_check(&c->optim, 1, c->heads, c->kv_heads, why))
        return fail(err, "--ov cm: %s", why);
    if (c->cm_match_muon && c->qk != RULE_CM && c->ov != RULE_CM)
        return fail(err,
                    "--cm-match-muon sets the size of CM's steps, but neither --qk nor --ov is cm");
    if (c->optim.circuit &&
        (c->ov == RULE_MUONH || c->ov == RULE_ADAMW || c->ov == RULE_ADAMW_PARTNER))
        return fail(
            err, "--circuit on rescales directions of cm, muon, muon-head, normuon or aurora; set "
                 "--ov to one of them");
    if (c->qk == RULE_AURORA && A == c->width && K == c->width)
        return fail(err,
                    "--qk aurora is muon on square matrices, and W_Q and W_K are %d x %d; use --qk "
                    "muon",
                    A, c->width);
    if (c->ov == RULE_AURORA && A == c->width && K == c->width)
        return fail(err,
                    "--ov aurora is muon on square matrices, and W_V and W_O are %d x %d; use --ov "
                    "muon",
                    A, c->width);
    if (c->mlp == MLP_RULE_AURORA && c->ff_width == c->width)
        return fail(err,
                    "--mlp aurora is muon on square matrices, and the MLP's are %d x %d; use --mlp "
                    "muon",
                    c->width, c->width);
    const char *sphere = c->qk == RULE_MUONH        ? "--qk"
                         : c->ov == RULE_MUONH      ? "--ov"
                         : c->mlp == MLP_RULE_MUONH ? "--mlp"
                                                    : NULL;
    if (sphere && c->weight_decay > 0)
        return fail(
            err,
            "%s muonh keeps the norm of its weights, so --weight-decay %g has no meaning for "
            "it; set --weight-decay 0",
            sphere, c->weight_decay);
    if ((c->ov == RULE_MUONH || c->mlp == MLP_RULE_MUONH) && c->init == INIT_SPEEDRUN)
        return fail(
            err,
            "%s muonh keeps the norm that its weights start with, and --init speedrun starts "
            "the residual projections at zero; use --init gpt2",
            c->ov == RULE_MUONH ? "--ov" : "--mlp");
    return 0;
}

/* Fills in every value that 0 or auto leaves open, and refuses what does not fit together.
   c->vocab must have been set from the data by then. */
static inline int config_resolve(Config *c, char *err) {
    /* Sizes are ints in the layers; these bounds keep every product of two in range where it is one. */
    const double side = 1 << 24, most = 1 << 30;
    double widest = fmax((double)c->width, fmax((double)c->ff_width, (double)c->vocab));
    widest = fmax(fmax(widest, (double)c->seq_len), (double)c->heads * fmax(c->head_dim, 1));
    if (widest > side || c->layers > side)
        return fail(err, "the model is too large: no side of a matrix and no count may exceed %.0f",
                    side);
    if ((double)c->batch_size * c->seq_len > most)
        return fail(
            err,
            "--batch-size %d x --seq-len %d is too large: at most %.0f tokens in one pass; use "
            "--total-batch-tokens for larger steps",
            c->batch_size, c->seq_len, most);
    if (!c->kv_heads) c->kv_heads = c->heads;
    if (c->heads % c->kv_heads)
        return fail(err, "--heads %d must be a multiple of --kv-heads %d", c->heads, c->kv_heads);
    if (!c->head_dim) {
        if (c->width % c->heads)
            return fail(err,
                        "--width %d is not a multiple of --heads %d; choose another or set "
                        "--head-dim",
                        c->width, c->heads);
        c->head_dim = c->width / c->heads;
    }
    if (c->pos == POS_ROPE && c->head_dim % 2)
        return fail(err, "--pos rope needs an even head width, not %d", c->head_dim);
    if (c->pos == POS_ROPE_HALF && (c->head_dim % 4 || c->head_dim < 8))
        return fail(err,
                    "--pos rope-half needs a head width that is a multiple of 4 and at least "
                    "8, not %d",
                    c->head_dim);
    if (!c->ff_width)
        c->ff_width = c->act == ACT_SWIGLU ? round_up((8 * c->width + 2) / 3, 64) : 4 * c->width;
    if (c->attn_scale == 0) c->attn_scale = 1.0 / sqrt((double)c->head_dim);
    int64_t micro = (int64_t)c->batch_size * c->seq_len;
    if (!c->total_batch_tokens) c->total_batch_tokens = micro;
    if (c->total_batch_tokens % micro)
        return fail(err,
                    "--total-batch-tokens %lld must be a multiple of --batch-size %d x "
                    "--seq-len %d = %lld",
                    (long long)c->total_batch_tokens, c->batch_size, c->seq_len, (long long)micro);
    int attention = c->optimizer == OPT_CM     ? RULE_CM
                    : c->optimizer == OPT_MUON ? RULE_MUON
                                               : RULE_ADAMW;
    if (c->qk == RULE_AUTO) c->qk = attention;
    if (c->ov == RULE_AUTO) c->ov = attention;
    if (c->mlp == MLP_RULE_AUTO)
        c->mlp = c->optimizer == OPT_ADAMW ? MLP_RULE_ADAMW : MLP_RULE_MUON;
    if (c->lr == 0) c->lr = c->optimizer == OPT_ADAMW ? 0.002 : 0.02;
    if (config_check_rules(c, err)) return -1;
    c->schedule.steps = c->steps;
    if (c->schedule.kind == SCHEDULE_TRAPEZOID && c->schedule.cooldown == 0)
        c->schedule.kind = SCHEDULE_CONSTANT;
    return 0;
}

#endif
