/*
The settings of a run: one struct, one table of flags, the presets, and the checks that need more
than one flag. Parser, --help, run.json and docs/flags.md are made from the table. Without flags a
run is the TinyShakespeare run that `make train` starts.
*/
#ifndef CM_CONFIG_H
#define CM_CONFIG_H

#include "base.h"
#include "flags.h"
#include "optim/rule.h"
#include "schedule.h"
#include "shape.h"

typedef enum { PRESET_TINY, PRESET_GPT2, PRESET_LLAMA, PRESET_SPEEDRUN } Preset;
typedef enum { INIT_GPT2, INIT_SPEEDRUN, INIT_TORCH } InitKind;
typedef enum { OPT_CM, OPT_MUON, OPT_ADAMW } OptimizerKind;

typedef struct {
    /* run */
    int preset;
    char run[FLAG_STRING_SIZE], runs_dir[FLAG_STRING_SIZE];
    int resume, steps;
    int64_t seed;
    int val_every, val_every_end;
    int64_t val_tokens;
    int eval_every;
    int checkpoint_every, keep_checkpoints, threads, compute, dry_run, print_every, version;
    int log_groups, recompute;
    int logit_rows;
    int device, attention, tf32, cuda_graph, gelu, gemm; /* of a GPU */
    int help_markdown;
    /* data */
    char data[FLAG_STRING_SIZE], val_data[FLAG_STRING_SIZE], eval_data[FLAG_STRING_SIZE];
    char encoder[FLAG_STRING_SIZE], bpe[FLAG_STRING_SIZE];
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
    char init_from[FLAG_STRING_SIZE], freeze[FLAG_STRING_SIZE];
    /* low-rank matrices and adapters */
    int lora_rank, low_rank;
    char lora_on[FLAG_STRING_SIZE];
    double lora_scale, lora_factor_scale;
    int lora_split, lora_init;
    unsigned factored; /* bit i: linear layer i (LinearId) has factors; filled from lora_on */
    /* optimizer */
    int optimizer;
    int qk, ov, mlp, embed, head, lora; /* RuleId; not RULE_AUTO once resolved */
    double lr, lr_qk, lr_ov, lr_mlp, lr_embed, lr_head, lr_lora, lr_scalar, lora_plus;
    double weight_decay, weight_decay_embed, weight_decay_head, weight_decay_scalar;
    double grad_clip;
    int cm_match_muon;
    /* The averages of the momentum; optim.ages is filled from these. */
    char momentum_ages[FLAG_STRING_SIZE];
    int momentum_ages_from, momentum_ages_until;
    OptimOptions optim;
    Schedule schedule; /* .steps is filled from `steps`, and .phases from these texts */
    char lr_phases[FLAG_STRING_SIZE], lr_phases_rest[FLAG_STRING_SIZE];
    /* Tail-EMA readout */
    int ema_from, ema_horizon;
    double ema_blend, ema_blend_embed, ema_blend_head, ema_blend_scalar;
} Config;

/* The value of --val-every that stands for an eighth of --steps. */
enum { VAL_EVERY_EIGHTH = -1 };
/* The value of --eval-every that stands for the steps of --val-every. */
enum { EVAL_WITH_VALIDATION = -1 };

#define FLAGS_OF_GPU "On a GPU (train_gpt_cuda)"
#define FLAGS_OF_FACTORS "Low rank: adapters, and products in place of matrices"

/* The largest vocabulary; token numbers and logits then stay far from the limits of int. */
enum { CONFIG_MAX_VOCAB = 1 << 24 };

#define FIELD(NAME) offsetof(Config, NAME)
static const Flag config_flags[] = {
#define SECTION "Run"
#define ON_RESUME RESUME_FIXED
    FLAG_CHOICE("preset", preset, "tiny", "tiny|gpt2|llama|speedrun",
                "a set of flags to start from; flags given explicitly win"),
#undef ON_RESUME
#define ON_RESUME RESUME_START
    FLAG_TEXT("run", run, "tiny", "name of the run: its folder below --runs-dir"),
    FLAG_TEXT("runs-dir", runs_dir, "runs", "folder of all runs"),
    FLAG_SWITCH("resume", resume,
                "continue from the newest checkpoint of --run with the flags it was started with"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_INT("steps", steps, "1200", 0, INFINITY, "optimizer steps of the whole run"),
#undef ON_RESUME
#define ON_RESUME RESUME_FIXED
    FLAG_LONG("seed", seed, "1", 0, INFINITY, "seeds initialisation and data order"),
#undef ON_RESUME
#define ON_RESUME RESUME_FREE
    FLAG_INT("val-every", val_every, "-1", VAL_EVERY_EIGHTH, INFINITY,
             "steps between validations; 0: only at the end; -1: an eighth of the run"),
    FLAG_INT("val-every-end", val_every_end, "0", 0, INFINITY,
             "steps between validations in the last tenth of the run; 0: as --val-every"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_LONG("val-tokens", val_tokens, "-1", -1, INFINITY,
              "validation targets to evaluate; 0: all; -1: all, but no more than the run reads "
              "between two validations, and at least 131072"),
#undef ON_RESUME
#define ON_RESUME RESUME_FREE
    FLAG_INT("eval-every", eval_every, "-1", EVAL_WITH_VALIDATION, INFINITY,
             "steps between evaluations of --eval-data; 0: only at the end; -1: with every "
             "validation"),
    FLAG_INT("checkpoint-every", checkpoint_every, "300", 0, INFINITY,
             "steps between checkpoints; 0: only at the end"),
    FLAG_INT("keep-checkpoints", keep_checkpoints, "2", 0, INFINITY,
             "newest checkpoints to keep; 0: write none"),
    FLAG_INT(
        "print-every", print_every, "0", 0, INFINITY,
        "steps between printed lines when the output is not a terminal; 0: about 40 lines a run"),
    FLAG_SWITCH("log-groups", log_groups,
                "add to every line of log.jsonl the size of each tensor's update, and the step of "
                "attention's composed maps"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_INT("threads", threads, "0", 0, 4096, "CPU threads; 0: all cores"),
    FLAG_CHOICE("compute", compute, "auto", "fp32|bf16|auto",
                "precision of the model's matrix products (bf16 accumulates in fp32); auto: fp32 "
                "on a CPU, and on a GPU the precision the program was built for"),
#undef ON_RESUME
#define ON_RESUME RESUME_FREE
    FLAG_CHOICE("recompute", recompute, "none", CHOICES(RECOMPUTES),
                "what the backward pass recomputes instead of keeping it for all layers: MLP "
                "activations; norms too; or everything but each block's input. Slower, less "
                "memory, equal numbers"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_INT("logit-rows", logit_rows, "0", 0, INFINITY,
             "rows of logits formed at a time, fewer take less memory; 0: chosen for the machine"),
#undef ON_RESUME
#define ON_RESUME RESUME_START
    FLAG_SWITCH(
        "dry-run", dry_run,
        "print parameters, memory, update plan, sizes of steps, FLOPs and expected time, then "
        "stop"),
    FLAG_SWITCH("version", version, "print the version and stop"),
    FLAG_SWITCH("help-markdown", help_markdown, "print this list as Markdown and stop"),
#undef SECTION
#define SECTION FLAGS_OF_GPU
#undef ON_RESUME
#define ON_RESUME RESUME_FREE
    FLAG_INT("device", device, "0", 0, 1024, "GPU to use, as nvidia-smi counts them"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_CHOICE(
        "attention", attention, "auto", CHOICES(ATTENTIONS),
        "flash: our flash attention; hopper: ours for H100 and H200 (bf16, heads of 64 or 128); "
        "cudnn: cuDNN's; auto: the fastest of these on this GPU. auto never takes cudnn-fast, "
        "which sums dq in any order, so that equal runs may differ in bits"),
#undef ON_RESUME
#define ON_RESUME RESUME_FREE
    FLAG_CHOICE("cuda-graph", cuda_graph, "auto", "auto|on|off",
                "record the kernels of a micro-batch and replay them, which saves the time of "
                "launches; auto: if a micro-batch takes less than 10 ms and replaying gives equal "
                "bits"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_CHOICE(
        "gelu", gelu, "auto", CHOICES(GELU_WAYS),
        "fused: GELU and its derivative in the matrix product's epilogue; unfused: in kernels "
        "of their own; auto: the faster way"),
    FLAG_CHOICE(
        "gemm", gemm, "measured", CHOICES(GEMM_WAYS),
        "algorithm of each matrix product: the fastest of cuBLASLt's proposals as measured, "
        "or the first of them"),
    FLAG_BOOL(
        "tf32", tf32, "on",
        "fp32 matrix products on tensor cores with 10 bits of mantissa: those of matrix signs, "
        "and in the fp32 program those of the model"),
#undef SECTION
#define SECTION "Data"
#undef ON_RESUME
#define ON_RESUME RESUME_FREE
    FLAG_TEXT("data", data, "data/tinyshakespeare.txt",
              "training data: token shards (a file or a quoted glob) or a text file, whose bytes "
              "are tokens"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_TEXT("val-data", val_data, "",
              "validation data; without it the last tenth of a text file"),
    FLAG_TEXT("eval-data", eval_data, "",
              "examples of multiple choice on which the accuracy is evaluated: a file of llm.c's "
              "format, such as data/hellaswag.py makes"),
#undef ON_RESUME
#define ON_RESUME RESUME_FREE
    FLAG_TEXT("encoder", encoder, "data/gpt2-bpe/encoder.json",
              "vocabulary of the shards' tokens, for bits per byte; data/gpt2_bpe.sh fetches it"),
    FLAG_TEXT("bpe", bpe, "data/gpt2-bpe/vocab.bpe", "merges of the same vocabulary"),
#undef ON_RESUME
#define ON_RESUME RESUME_FIXED
    FLAG_CHOICE("data-order", data_order, "shuffled", "sequential|shuffled",
                "rows from front to back, or shuffled by seed and epoch"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_INT("batch-size", batch_size, "16", 1, INFINITY, "sequences of one forward pass"),
    FLAG_LONG(
        "total-batch-tokens", total_batch_tokens, "0", 0, INFINITY,
        "tokens of one optimizer step, by gradient accumulation; 0: --batch-size x --seq-len"),
#undef SECTION
#define SECTION "Model"
#undef ON_RESUME
#define ON_RESUME RESUME_FIXED
    FLAG_INT("layers", layers, "4", 1, INFINITY, "transformer blocks (L)"),
    FLAG_INT("width", width, "128", 1, INFINITY, "model width (C)"),
    FLAG_INT("heads", heads, "4", 1, INFINITY, "query heads (NH)"),
    FLAG_INT("kv-heads", kv_heads, "0", 0, INFINITY, "key and value heads; 0: as many as --heads"),
    FLAG_INT("head-dim", head_dim, "0", 0, 1024, "head width (HS); 0: --width / --heads"),
    FLAG_INT("ff-width", ff_width, "0", 0, INFINITY,
             "MLP width (F); 0: 4 C, or 8/3 C rounded up to a multiple of 64 for swiglu"),
    FLAG_INT("seq-len", seq_len, "128", 1, INFINITY, "tokens of a sequence (T)"),
    FLAG_INT(
        "vocab", vocab, "0", 0, CONFIG_MAX_VOCAB,
        "vocabulary (V), padded to a multiple of 64 inside; 0: 256 for text, 50257 for shards"),
    FLAG_CHOICE("norm", norm, "rmsnorm", CHOICES(NORMS),
                "layernorm with gain and bias, or rmsnorm with gain"),
    FLAG_FLOAT("norm-eps", norm_eps, "1e-6", 0, 1,
               "added to the mean square, or to layernorm's variance, under the root"),
    FLAG_CHOICE(
        "pos", pos, "rope", CHOICES(POSITIONS),
        "positions: a learned table, rotary, rotary with half of the planes fixed, or none"),
    FLAG_FLOAT("rope-base", rope_base, "10000", 1, INFINITY, "longest rotary wavelength / 2pi"),
    FLAG_BOOL("qk-norm", qk_norm, "on", "RMS-normalise queries and keys per head"),
    FLAG_CHOICE("act", act, "relu2", CHOICES(ACTS),
                "activation of the MLP: tanh GELU, squared ReLU, or gated SiLU"),
    FLAG_BOOL("biases", biases, "off", "biases in the blocks' linear layers"),
    FLAG_BOOL("head-bias", head_bias, "off", "a bias on the logits"),
    FLAG_BOOL("tied", tied, "off", "embedding and head share one matrix"),
    FLAG_BOOL("embed-norm", embed_norm, "on", "normalise the embedding"),
    FLAG_FLOAT("attn-scale", attn_scale, "0", 0, 1e6,
               "multiplies query-key products; 0: 1/sqrt(head-dim)"),
    FLAG_FLOAT("softcap", softcap, "15", 0, INFINITY,
               "logits become c z / sqrt(z^2 + c^2); 0: off"),
    FLAG_CHOICE("init", init, "speedrun", "gpt2|speedrun|torch",
                "gpt2: normal(init-std), residual projections / sqrt(2L); speedrun: "
                "normal(sqrt(0.33/fan-in)), embedding normal(1), residual projections and head "
                "zero; torch: "
                "as speedrun, but weights and biases of queries, keys, values and of the MLP's "
                "first matrix "
                "are uniform up to 1/sqrt(fan-in)"),
    FLAG_FLOAT("init-std", init_std, "0.02", 0, 1e6,
               "standard deviation of the initial weights with --init gpt2"),
#undef ON_RESUME
#define ON_RESUME RESUME_START
    FLAG_TEXT(
        "init-from", init_from, "",
        "begin a new run from the weights of this run's newest checkpoint, or of a checkpoint "
        "file; flags of the model that are not given are taken over too"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
    FLAG_TEXT("freeze", freeze, "",
              "tensors that training leaves as they are, separated by commas (wte,wpe; --dry-run "
              "lists the names); they take no memory for gradients and moments"),
#undef ON_RESUME
#define ON_RESUME RESUME_FIXED
#undef SECTION
#define SECTION FLAGS_OF_FACTORS
    FLAG_INT("lora-rank", lora_rank, "0", 0, INFINITY,
             "train adapters s A B^T of this rank beside the weights of --init-from, which are "
             "frozen; 0: off"),
    FLAG_INT("low-rank", low_rank, "0", 0, INFINITY,
             "train products s A B^T of this rank in place of whole matrices; 0: off"),
    FLAG_TEXT("lora-on", lora_on, "qkv,o,fc,proj",
              "linear layers that have factors A and B, separated by commas: qkv, o, fc, proj, "
              "head; all: all of them"),
    FLAG_FLOAT("lora-scale", lora_scale, "1", 1e-6, 1e6, "s, which multiplies the product A B^T"),
    FLAG_BOOL("lora-split", lora_split, "on",
              "factors of their own for W_Q, W_K and W_V, and for the MLP's gate; off: one pair "
              "for all rows of qkv or fc"),
    FLAG_CHOICE("lora-init", lora_init, "auto", CHOICES(FACTOR_INITS),
                "A and B at the start. zero: A is zero and B normal(1/sqrt(fan-in)). balanced: "
                "both normal, of equal norms, their product with the deviation of a whole matrix. "
                "spectral: from the largest singular vectors and values of a random whole matrix. "
                "auto: zero for adapters, spectral for --low-rank, and zero where the whole matrix "
                "would be zero"),
    FLAG_FLOAT("lora-factor-scale", lora_factor_scale, "1", 1e-6, 1e6,
               "multiplies the initial A and divides the initial B, which leaves their product"),
#undef SECTION
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
#define SECTION "Optimizer"
    FLAG_CHOICE("optimizer", optimizer, "cm", "cm|muon|adamw",
                "cm: CM on attention, Muon on MLPs, AdamW on the rest; muon: Muon on both; adamw: "
                "all AdamW"),
    FLAG_CHOICE_OF("qk", qk, "auto", rule_choice_qk,
                   "rule of W_Q and W_K; auto: as --optimizer says"),
    FLAG_CHOICE_OF("ov", ov, "auto", rule_choice_ov,
                   "rule of W_O and W_V; auto: as --optimizer says"),
    FLAG_CHOICE_OF("mlp", mlp, "auto", rule_choice_mlp,
                   "rule of the MLP matrices; auto: as --optimizer says"),
    FLAG_CHOICE_OF("embed", embed, "adamw", rule_choice_embed,
                   "rule of the embeddings, of a tied head too; auto: adamw"),
    FLAG_CHOICE_OF("head", head, "adamw", rule_choice_head, "rule of an untied head; auto: adamw"),
    FLAG_CHOICE_OF("lora", lora, "auto", rule_choice_factor,
                   "rule of the factors of --lora-rank and --low-rank; auto: lora-muon, muon or "
                   "adamw, as --optimizer says"),
    FLAG_FLOAT("lr", lr, "0", 0, INFINITY,
               "learning rate of the blocks' matrices; 0: each rule's own (0.02 for cm and muon, "
               "0.002 for adamw; --dry-run prints it)"),
    FLAG_FLOAT("lr-qk", lr_qk, "0", 0, INFINITY, "learning rate of W_Q and W_K; 0: that of --lr"),
    FLAG_FLOAT("lr-ov", lr_ov, "0", 0, INFINITY, "learning rate of W_O and W_V; 0: that of --lr"),
    FLAG_FLOAT("lr-mlp", lr_mlp, "0", 0, INFINITY,
               "learning rate of the MLP matrices; 0: that of --lr"),
    FLAG_FLOAT("lr-embed", lr_embed, "0.1", 0, INFINITY,
               "learning rate of the embeddings; the default is that of adamw, another rule of "
               "--embed brings its own"),
    FLAG_FLOAT("lr-head", lr_head, "0.004", 0, INFINITY,
               "learning rate of an untied head; the default is that of adamw, another rule of "
               "--head brings its own"),
    FLAG_FLOAT("lr-lora", lr_lora, "0", 0, INFINITY,
               "learning rate of the factors of --lora-rank and --low-rank; 0: that of --lr"),
    FLAG_FLOAT("lora-plus", lora_plus, "1", 1e-6, 1e6,
               "rate of A over that of B, for a rule that updates each alone (LoRA+)"),
    FLAG_FLOAT("lr-scalar", lr_scalar, "0.01", 0, INFINITY, "learning rate of gains and biases"),
    FLAG_FLOAT("weight-decay", weight_decay, "0", 0, 1e3,
               "decoupled weight decay of the blocks' matrices"),
    FLAG_FLOAT("weight-decay-embed", weight_decay_embed, "0", 0, 1e3,
               "decoupled weight decay of the embeddings"),
    FLAG_FLOAT("weight-decay-head", weight_decay_head, "0", 0, 1e3,
               "decoupled weight decay of an untied head"),
    FLAG_FLOAT("weight-decay-scalar", weight_decay_scalar, "0", 0, 1e3,
               "decoupled weight decay of gains and biases"),
    FLAG_FLOAT("adam-beta1", optim.adam_beta1, "0.8", 0, 0.9999999,
               "AdamW: decay of the first moment"),
    FLAG_FLOAT("adam-beta2", optim.adam_beta2, "0.95", 0, 0.9999999,
               "AdamW: decay of the second moment"),
    FLAG_FLOAT("adam-eps", optim.adam_eps, "1e-10", 0, 1,
               "AdamW: added to the root of the second moment, for gradients of the mean loss"),
    FLAG_FLOAT("adam-beta1-blocks", optim.adam_beta1_blocks, "-1", -1, 0.9999999,
               "AdamW on the blocks' matrices: decay of the first moment; -1: --adam-beta1"),
    FLAG_FLOAT("adam-beta2-blocks", optim.adam_beta2_blocks, "-1", -1, 0.9999999,
               "AdamW on the blocks' matrices: decay of the second moment; -1: --adam-beta2"),
    FLAG_FLOAT("grad-clip", grad_clip, "0", 0, INFINITY,
               "largest global norm of the gradient, which is scaled down to it, but for matrices "
               "whose update is a matrix sign; 0: off"),
#undef ON_RESUME
#define ON_RESUME RESUME_START
    FLAG_SWITCH("cm-match-muon", cm_match_muon,
                "CM at Muon's learning rate: short for --per-mat-renorm on --mp 2"),
#undef ON_RESUME
#define ON_RESUME RESUME_NOTED
#undef SECTION
#undef FIELD
#define FIELD(NAME) offsetof(Config, optim.NAME)
#include "optim/options.def"
#define SECTION "Muon and Compositional Muon"
#undef FIELD
#define FIELD(NAME) offsetof(Config, NAME)
    FLAG_TEXT(
        "momentum-ages", momentum_ages, "",
        "momentum mixed from averages of the gradient: bi-maxwell, k-maxwell, or "
        "AGE:WEIGHT,AGE:WEIGHT,... or AGE:FIRST:LAST,... with weights that move from FIRST to "
        "LAST; an average of age A has the decay A/(A+1)"),
    FLAG_INT(
        "momentum-ages-from", momentum_ages_from, "0", 0, INFINITY,
        "updates with the one usual average; those of --momentum-ages then begin, as its copies"),
    FLAG_INT("momentum-ages-until", momentum_ages_until, "0", 0, INFINITY,
             "updates after which the weights of --momentum-ages have moved; 0: --steps"),
#undef FIELD
#define FIELD(NAME) offsetof(Config, optim.NAME)
#undef SECTION
#define SECTION "Rules to compare with"
    FLAG_FLOAT("normuon-beta2", normuon_beta2, "0.95", 0, 0.9999999,
               "NorMuon: decay of the second moment of the rows"),
    FLAG_INT("aurora-iterations", aurora_iterations, "2", 1, 100,
             "Aurora: number of signs, each with better balanced rows"),
    FLAG_FLOAT("aurora-power", aurora_power, "0.5", 0, 10,
               "Aurora: exponent of the correction of the rows' weights"),
    FLAG_FLOAT("lion-beta1", lion_beta1, "0.9", 0, 0.9999999,
               "Lion: weight of the momentum in the direction"),
    FLAG_FLOAT("lion-beta2", lion_beta2, "0.99", 0, 0.9999999, "Lion: decay of the momentum"),
    FLAG_CHOICE_OF("quack-base", quack_base, "muon", rule_choice_base,
                   "QuacK: the rule whose learning rate it sets per head"),
    FLAG_FLOAT("quack-tau", quack_tau, "1", 0, 1e6, "QuacK: multiplies its learning rates"),
#undef FIELD
#define FIELD(NAME) offsetof(Config, NAME)
#undef SECTION
#define SECTION "Schedule"
    FLAG_CHOICE("schedule", schedule.kind, "trapezoid", "constant|linear|cosine|trapezoid",
                "schedule of all learning rates"),
    FLAG_INT("warmup", schedule.warmup, "0", 0, INFINITY,
             "steps of linear warm-up of the learning rates"),
    FLAG_FLOAT("cooldown", schedule.cooldown, "0.7", 0, 1,
               "trapezoid: fraction of the run in which the rate falls linearly"),
    FLAG_FLOAT("lr-final", schedule.final, "0", 0, 1,
               "fraction of the learning rate at the end of the decay"),
    FLAG_INT("momentum-warmup", schedule.momentum_warmup, "0", 0, INFINITY,
             "steps in which the momentum of Muon and CM rises from --momentum-start"),
    FLAG_FLOAT("momentum-start", schedule.momentum_start, "0.85", 0, 0.9999,
               "momentum at step 0 of that warm-up"),
    FLAG_TEXT(
        "lr-phases", lr_phases, "",
        "STEP:FACTOR,STEP:FACTOR,...: multiplies all learning rates by a factor that is linear "
        "between these steps"),
    FLAG_TEXT("lr-phases-rest", lr_phases_rest, "",
              "the same for embeddings, head, gains and biases, if it differs"),
    FLAG_CHOICE(
        "decay-schedule", optim.decay_schedule, "constant", "constant|lr",
        "weight decay, which multiplies the learning rate: constant, or multiplied once more "
        "by what schedule and phases make of the rate"),
#undef SECTION
#define SECTION "Tail-EMA readout"
    FLAG_INT("ema-from", ema_from, "0", 0, INFINITY,
             "updates after which an average E of the weights W begins as their copy, which "
             "validation, evaluation and generation use; 0: never"),
    FLAG_INT("ema-horizon", ema_horizon, "150", 1, INFINITY,
             "updates that the average remembers: each adds (W - E) / horizon"),
    FLAG_FLOAT("ema-blend", ema_blend, "0.65", 0, 1,
               "share b of the average in (1 - b) W + b E, in matrices of the blocks"),
    FLAG_FLOAT("ema-blend-embed", ema_blend_embed, "0", -1, 1,
               "its share in the embeddings; -1: --ema-blend"),
    FLAG_FLOAT("ema-blend-head", ema_blend_head, "-1", -1, 1,
               "its share in an untied head; -1: --ema-blend"),
    FLAG_FLOAT("ema-blend-scalar", ema_blend_scalar, "-1", -1, 1,
               "its share in gains and biases; -1: --ema-blend"),
};
#undef ON_RESUME
#undef SECTION
#undef FIELD
enum { CONFIG_FLAGS = (int)(sizeof config_flags / sizeof config_flags[0]) };

/* The flags that a preset sets unless they were given. `tiny` is the defaults of the table. */
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
    "--norm-eps 1e-6 --pos rope --rope-base 10000 --qk-norm on --act swiglu --biases off "
    "--tied off --embed-norm off --softcap 0 --init gpt2 --lr-embed 0.003 --lr-head 0.003 "
    "--lr-scalar 0.003 "
    "--adam-beta1 0.9 --adam-eps 1e-8 --schedule cosine --warmup 100 --lr-final 0.1",
    /* speedrun: the modded-nanoGPT optimization benchmark. Its loss is a sum over 524288 tokens, so
       that its Adam epsilon of 1e-10 becomes 1e-10 / 524288 for gradients of the mean. */
    "--layers 12 --width 768 --heads 6 --seq-len 1024 --batch-size 4 --vocab 50304 "
    "--total-batch-tokens 524288 --steps 3250 --norm rmsnorm --norm-eps 1.1920929e-7 "
    "--pos rope-half --rope-base 1024 --qk-norm on --act relu2 --biases on --head-bias on "
    "--tied off --embed-norm on --attn-scale 0.12 --softcap 15 --init speedrun "
    "--data-order sequential --val-tokens 10485760 --val-every 125 --val-every-end 25 --lr 0.025 "
    "--lr-embed 0.7 "
    "--lr-head 0.004 --lr-scalar 0.015 --weight-decay 0.05 --weight-decay-embed 0.001 "
    "--weight-decay-head 0.001 --weight-decay-scalar 0.001 --adam-beta1 0.8 --adam-beta2 0.95 "
    "--adam-eps 1.9073486e-16 --momentum 0.95 --msign simple12 --schedule trapezoid --cooldown 0.7",
};

/* Applies a string of "--flag value" pairs to the flags that are not marked in `given` (may be
   NULL). Returns 0, or -1 with a message. */
static inline int config_apply(Config *c, const unsigned char *given, const char *pairs,
                               char *err) {
    char *text = strdup(pairs), *save = NULL;
    int status = text ? 0 : fail(err, "out of memory: flags");
    if (status) return -1;
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

/* --cm-match-muon: sets the two flags that it abbreviates, as if they were given. */
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

/* Whether the residual projections and an untied head begin at zero. */
static inline int init_zeroes_outputs(InitKind init) {
    switch (init) {
    case INIT_GPT2: return 0;
    case INIT_SPEEDRUN:
    case INIT_TORCH: return 1;
    }
    return 0;
}

/* Fills in the rules and learning rates that `auto` and 0 leave open. */
static inline void config_resolve_rules(Config *c) {
    RuleId attention = RULE_CM, mlp = RULE_MUON, factors = RULE_LORA_MUON;
    switch ((OptimizerKind)c->optimizer) {
    case OPT_CM: break;
    case OPT_MUON: attention = factors = RULE_MUON; break;
    case OPT_ADAMW: attention = mlp = factors = RULE_ADAMW; break;
    }
    if (c->qk == RULE_AUTO) c->qk = attention;
    if (c->ov == RULE_AUTO) c->ov = attention;
    if (c->mlp == RULE_AUTO) c->mlp = mlp;
    if (c->embed == RULE_AUTO) c->embed = RULE_ADAMW;
    if (c->head == RULE_AUTO) c->head = RULE_ADAMW;
    if (c->lora == RULE_AUTO) c->lora = factors;
    const int rule[] = {c->qk, c->ov, c->mlp, c->lora};
    double *rate[] = {&c->lr_qk, &c->lr_ov, &c->lr_mlp, &c->lr_lora};
    for (int i = 0; i < 4; i++) {
        if (*rate[i] == 0) *rate[i] = c->lr;
        if (*rate[i] == 0) *rate[i] = rule_lr((RuleId)rule[i], &c->optim);
    }
    if (c->lr == 0) c->lr = rule_table[attention].lr; /* for the log's column lr */
}

/* The matrices that a flag gives a rule to, with the flag of their rate. */
typedef struct {
    size_t rule, rate; /* offsets of the fields in Config */
    const char *flag;  /* of the rate */
} ConfigRole;
enum { CONFIG_ROLES = 6 };
static const ConfigRole config_roles[CONFIG_ROLES] = {
    {offsetof(Config, qk), offsetof(Config, lr_qk), "lr-qk"},
    {offsetof(Config, ov), offsetof(Config, lr_ov), "lr-ov"},
    {offsetof(Config, mlp), offsetof(Config, lr_mlp), "lr-mlp"},
    {offsetof(Config, embed), offsetof(Config, lr_embed), "lr-embed"},
    {offsetof(Config, head), offsetof(Config, lr_head), "lr-head"},
    {offsetof(Config, lora), offsetof(Config, lr_lora), "lr-lora"},
};
static inline int *config_rule(Config *c, int role) {
    return (int *)(void *)((char *)c + config_roles[role].rule);
}
static inline double *config_rate(Config *c, int role) {
    return (double *)(void *)((char *)c + config_roles[role].rate);
}
static inline int config_is_given(const unsigned char *given, const char *flag) {
    return given[flags_find(config_flags, CONFIG_FLAGS, flag)];
}

/* Replaces rates of defaults and presets, which are rates of the rules that these choose. The --lr
   of a preset is one of matrix signs, and those of embeddings and head are AdamW's. A rule of
   another kind has its own rate, unless a flag gives one. */
static inline void config_rates(Config *c, const unsigned char *given) {
    Config chosen = *c;
    config_resolve_rules(&chosen);
    for (int i = 0; i < CONFIG_ROLES; i++) {
        int of_block = config_roles[i].rate != offsetof(Config, lr_embed) &&
                       config_roles[i].rate != offsetof(Config, lr_head);
        RuleId usual = of_block ? RULE_MUON : RULE_ADAMW, rule = (RuleId)*config_rule(&chosen, i);
        int from_preset = of_block ? c->lr > 0 && !config_is_given(given, "lr") : 1;
        if (from_preset && !config_is_given(given, config_roles[i].flag) &&
            rule_lr(rule, &c->optim) != rule_lr(usual, &c->optim))
            *config_rate(c, i) = rule_lr(rule, &c->optim);
    }
}

/* Refuses a text that a line of a checkpoint's header cannot hold. */
static inline int config_check_texts(const Config *c, char *err) {
    if (!c->data[0]) return fail(err, "--data is empty: name a text or token shards");
    for (int i = 0; i < CONFIG_FLAGS; i++)
        if (config_flags[i].kind == KIND_STRING &&
            strchr((const char *)flags_value(&config_flags[i], c), '\n'))
            return fail(err,
                        "--%s: the text has a line break, which a checkpoint cannot store; give "
                        "the file or folder another name, or a link to it",
                        config_flags[i].name);
    return 0;
}

/* Parses a command line: defaults, then the preset, then the flags given, which are marked in
   `given` (CONFIG_FLAGS bytes). Returns 0, 1 if --help was asked for, -1 with a message. */
static inline int config_parse(Config *c, unsigned char *given, int argc, char **argv, char *err) {
    memset(c, 0, sizeof *c);
    memset(given, 0, CONFIG_FLAGS);
    flags_defaults(config_flags, CONFIG_FLAGS, c);
    int status = flags_parse(config_flags, CONFIG_FLAGS, c, given, argc, argv, err);
#ifndef CM_CUDA
    for (int i = 0; i < CONFIG_FLAGS && !status; i++)
        if (given[i] && !strcmp(config_flags[i].section, FLAGS_OF_GPU))
            return fail(
                err,
                "--%s is a setting of a GPU, and this program runs on the CPU; the program for a "
                "GPU is train_gpt_cuda (make cuda)",
                config_flags[i].name);
#endif
    if (!status && (!c->runs_dir[0] || !c->run[0]))
        return fail(err, "--runs-dir and --run need names; the folder at hand is --runs-dir .");
    if (!status) status = config_check_texts(c, err);
    if (!status) status = config_match_muon(c, given, err);
    if (!status) status = config_apply(c, given, config_presets[c->preset], err);
    if (!status) config_rates(c, given);
    return status;
}

/* Rank of the factors; 0 without factors. */
static inline int config_rank(const Config *c) { return c->lora_rank ? c->lora_rank : c->low_rank; }

/* Whether a factor begins at zero. */
static inline int config_begins_cold(const Config *c) {
    const unsigned outputs = 1u << LINEAR_O | 1u << LINEAR_PROJ | 1u << LINEAR_HEAD;
    return c->lora_init == FACTORS_ZERO ||
           (init_zeroes_outputs((InitKind)c->init) && c->factored & outputs);
}

/* The roles that have whole matrices which this config trains, bits ON_... Those of adapters' base
   are frozen, and factors stand in place of others. Factors must be resolved. */
static inline unsigned config_trains(const Config *c) {
    const unsigned qkv = 1u << LINEAR_QKV, ov = qkv | 1u << LINEAR_O, head = 1u << LINEAR_HEAD;
    const unsigned mlp = 1u << LINEAR_FC | 1u << LINEAR_PROJ;
    if (c->lora_rank) return 0;
    return ON_EMBED | (c->factored & qkv ? 0 : ON_QK) | ((c->factored & ov) == ov ? 0 : ON_OV) |
           ((c->factored & mlp) == mlp ? 0 : ON_MLP) |
           (c->tied || c->factored & head ? 0 : ON_HEAD);
}

/* Whether a matrix of this config has the rule CM. */
static inline int config_has_cm(const Config *c) {
    unsigned trains = config_trains(c);
    return (config_rank(c) && c->lora == RULE_CM) || (trains & ON_QK && c->qk == RULE_CM) ||
           (trains & ON_OV && c->ov == RULE_CM);
}

/* Whether a flag of the optimizer has its default value. */
static inline int config_is_default(const Config *c, const char *name) {
    const Flag *flag = &config_flags[flags_find(config_flags, CONFIG_FLAGS, name)];
    char text[FLAG_STRING_SIZE];
    flags_get_text(flag, c, text);
    return !strcmp(text, flag->def);
}

/* Refuses a rule of the factors, or an option of theirs, that has no meaning. */
static inline int config_check_factor_rule(const Config *c, char *err) {
    const Rule *rule = &rule_table[c->lora];
    const RuleUse use = {"--lora",
                         ON_FACTOR,
                         "the factors",
                         {c->width, c->width},
                         {config_rank(c), config_rank(c)},
                         "--weight-decay",
                         c->weight_decay,
                         config_begins_cold(c) ? "the factors A" : NULL,
                         1,
                         1,
                         &c->optim};
    if (!config_rank(c)) return 0;
    if (c->optim.lora_rebalance != 0 && c->lora != RULE_LORA_MUON && c->lora != RULE_SPECTRON &&
        c->lora != RULE_CM)
        return fail(err,
                    "--lora-rebalance is for --lora lora-muon, spectron and cm; %s does not "
                    "rebalance: leave it out, or set it to 0",
                    rule->flag);
    if (c->optim.lora_trust != 0 && !config_is_default(c, "lora-trust") &&
        c->lora != RULE_LORA_MUON && c->lora != RULE_LORA_RITE && c->lora != RULE_LORA_RITE_CORE)
        return fail(err,
                    "--lora-trust is for --lora lora-muon, lora-rite and lora-rite-core; %s has no "
                    "limit while a factor is near zero: leave it out, or set it to 0",
                    rule->flag);
    if (c->optim.rite_escape && c->lora != RULE_LORA_RITE)
        return fail(err, "--rite-escape is for --lora lora-rite: turn it off in a run with %s",
                    rule->flag);
    if (c->lora_plus != 1 && rule->traits & NEEDS_PAIR)
        return fail(err,
                    "--lora-plus is for a rule that updates A and B each alone, and --lora %s "
                    "updates both together: leave it at 1",
                    rule->flag);
    return rule_check((RuleId)c->lora, &use, err);
}

/* The linear layers that a text such as "qkv,o" names, as bits. Returns 0, or -1 with a message. */
static inline int config_read_layers(const char *text, unsigned *bits, char *err) {
    *bits = 0;
    if (!strcmp(text, "all")) {
        *bits = (1u << LINEARS) - 1;
        return 0;
    }
    while (*text) {
        size_t length = strcspn(text, ",");
        int found = -1;
        for (int i = 0; i < LINEARS; i++)
            if (strlen(WORD_OF(LINEAR_LAYERS, i)) == length &&
                !strncmp(WORD_OF(LINEAR_LAYERS, i), text, length))
                found = i;
        if (!length) return fail(err, "--lora-on: a name is missing before or after a comma");
        if (found < 0)
            return fail(err,
                        "--lora-on: \"%.*s\" is none of qkv, o, fc, proj and head, separated by "
                        "commas alone; all stands for all of them, by itself",
                        (int)min_size(length, 60), text);
        *bits |= 1u << found;
        text += length;
        if (*text == ',' && !*++text)
            return fail(err, "--lora-on: a name is missing before or after a comma");
    }
    return *bits ? 0 : fail(err, "--lora-on is empty: name linear layers, such as qkv,o");
}

/* The layers that have factors, and how these begin. Heads, widths and rules must be resolved. */
static inline int config_resolve_factors(Config *c, char *err) {
    int rank = config_rank(c), A = c->heads * c->head_dim, KV = c->kv_heads * c->head_dim;
    int F = c->ff_width, doubled = act_is_gated((ActKind)c->act) && !c->lora_split;
    const int side[LINEARS] = {min_int(c->width, c->lora_split ? min_int(A, KV) : A + 2 * KV),
                               min_int(c->width, A), min_int(c->width, doubled ? 2 * F : F),
                               min_int(c->width, F), min_int(c->width, c->vocab)};
    c->factored = 0;
    if (!rank) return 0;
    if (c->lora_rank && c->low_rank)
        return fail(err, "--lora-rank trains adapters on frozen weights and --low-rank products in "
                         "place of weights: give one of them");
    if (config_read_layers(c->lora_on, &c->factored, err)) return -1;
    for (int i = 0; i < LINEARS; i++)
        if (c->factored >> i & 1 && rank > side[i])
            return fail(err,
                        "%s %d is above the smaller side of %s, which is %d: a product of that "
                        "rank is no smaller than the matrix; take a lower rank, or leave %s out of "
                        "--lora-on",
                        c->lora_rank ? "--lora-rank" : "--low-rank", rank,
                        i == LINEAR_QKV && c->lora_split ? "W_Q, W_K or W_V"
                                                         : NAME_OF(LINEAR_LAYERS, i),
                        side[i], WORD_OF(LINEAR_LAYERS, i));
    if (c->low_rank && c->tied && c->factored >> LINEAR_HEAD & 1)
        return fail(err, "--low-rank: a tied head is the embedding, which is no product; leave "
                         "head out of --lora-on, or set --tied off");
    if (c->lora_rank && c->lora_init != FACTORS_AUTO && c->lora_init != FACTORS_ZERO)
        return fail(err, "--lora-init: adapters begin at zero, so that the model begins as the "
                         "weights of --init-from; balanced and spectral are for --low-rank");
    if (c->factored & (1u << LINEAR_FC | 1u << LINEAR_PROJ)) {
        if (c->gelu == GELU_FUSED)
            return fail(err,
                        "--gelu fused is for an MLP of whole matrices: leave it out, or fc and "
                        "proj out of --lora-on");
        c->gelu = GELU_UNFUSED;
    }
    if (c->lora_init == FACTORS_AUTO) c->lora_init = c->lora_rank ? FACTORS_ZERO : FACTORS_SPECTRAL;
    return 0;
}

/* Refuses rules and options that have no meaning together, or for this model. The rules must be
   resolved. */
static inline int config_check_rules(const Config *c, char *err) {
    const OptimOptions *o = &c->optim;
    int NH = c->heads, NKV = c->kv_heads, A = NH * c->head_dim, KV = NKV * c->head_dim;
    int C = c->width, F = c->ff_width, V = c->vocab;
    int positions = pos_is_table((PosKind)c->pos) ? c->seq_len : V,
        zero = init_zeroes_outputs((InitKind)c->init);
    const char *projections = zero ? "the residual projections" : NULL;
    const char *head = zero ? "the head" : NULL, *decay = "--weight-decay";
    /* clang-format off */
    const struct {
        int rule;
        RuleUse use;
    } roles[] = {
        {c->qk, {"--qk", ON_QK, "W_Q and W_K", {A, KV}, {C, C},
                 decay, c->weight_decay, NULL, NH, NKV, o}},
        {c->ov, {"--ov", ON_OV, "W_V and W_O", {C, KV}, {A, C},
                 decay, c->weight_decay, projections, NH, NKV, o}},
        {c->mlp, {"--mlp", ON_MLP, "the MLP's", {F, C}, {C, F},
                  decay, c->weight_decay, projections, NH, NKV, o}},
        {c->embed, {"--embed", ON_EMBED, "the embeddings", {V, positions}, {C, C},
                    "--weight-decay-embed", c->weight_decay_embed, NULL, NH, NKV, o}},
        {c->head, {"--head", ON_HEAD, "the head", {V, V}, {C, C},
                   "--weight-decay-head", c->weight_decay_head, head, NH, NKV, o}},
    };
    /* clang-format on */
    if (c->cm_match_muon && !config_has_cm(c))
        return fail(err, "--cm-match-muon sets the size of CM's steps, but no matrix that is "
                         "trained has the rule cm (--qk, --ov, --lora)");
    for (int i = 0; i < 5; i++)
        if (roles[i].use.on & config_trains(c) &&
            rule_check((RuleId)roles[i].rule, &roles[i].use, err))
            return -1;
    return config_check_factor_rule(c, err);
}

/* Refuses sizes whose products would not fit the types that hold them. Sizes are ints in the
   layers; with these bounds the products that are ints stay in range. */
static inline int config_check_sizes(const Config *c, char *err) {
    const double side = 1 << 24, most = 1 << 30;
    const int layers = 1 << 16; /* deeper than any model; planned in a second */
    double widest = fmax((double)c->width, fmax((double)c->ff_width, (double)c->vocab));
    widest = fmax(fmax(widest, (double)c->seq_len), (double)c->heads * fmax(c->head_dim, 1));
    if (widest > side)
        return fail(err, "the model is too large: no side of a matrix may exceed %.0f", side);
    if (c->layers > layers)
        return fail(err, "the model is too large: --layers %d, and there may be %d", c->layers,
                    layers);
    if ((double)c->batch_size * c->seq_len > most)
        return fail(
            err,
            "--batch-size %d x --seq-len %d is too large: at most %.0f tokens in one pass; use "
            "--total-batch-tokens for larger steps",
            c->batch_size, c->seq_len, most);
    return 0;
}

/* Heads, their width and what depends on it. */
static inline int config_resolve_heads(Config *c, char *err) {
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
    switch ((PosKind)c->pos) {
    case POS_LEARNED:
    case POS_NONE: break;
    case POS_ROPE:
        if (c->head_dim % 2 == 0) break;
        return fail(err, "--pos rope needs an even head width, not %d", c->head_dim);
    case POS_ROPE_HALF:
        if (c->head_dim % 4 == 0 && c->head_dim >= 8) break;
        return fail(err,
                    "--pos rope-half needs a head width that is a multiple of 4 and at least "
                    "8, not %d",
                    c->head_dim);
    }
    if (c->attn_scale == 0) c->attn_scale = 1.0 / sqrt((double)c->head_dim);
    return 0;
}

/* The MLP's width: 4 C, or with a gate 8/3 C, which makes three matrices as large as two. */
static inline void config_resolve_mlp(Config *c) {
    if (c->ff_width) return;
    c->ff_width = 4 * c->width;
    if (act_is_gated((ActKind)c->act)) c->ff_width = round_up((8 * c->width + 2) / 3, 64);
}

static inline int config_resolve_batch(Config *c, char *err) {
    int64_t micro_batch = (int64_t)c->batch_size * c->seq_len;
    if (!c->total_batch_tokens) c->total_batch_tokens = micro_batch;
    if (c->total_batch_tokens % micro_batch == 0) return 0;
    return fail(err,
                "--total-batch-tokens %lld must be a multiple of --batch-size %d x "
                "--seq-len %d = %lld",
                (long long)c->total_batch_tokens, c->batch_size, c->seq_len,
                (long long)micro_batch);
}

/* Refuses models whose numbers of elements would not fit 64 bits, in all tensors and in all
   activations. The bounds leave a factor of 1000 and more: for the bytes of an element, and for all
   tensors of the size of the largest. Heads and widths must be resolved. */
static inline int config_check_counts(const Config *c, char *err) {
    const double most = (double)((int64_t)1 << 44);
    double L = c->layers, C = c->width, F = c->ff_width, V = c->vocab, T = c->seq_len;
    double A = (double)c->heads * c->head_dim, KV = (double)c->kv_heads * c->head_dim;
    double block = C * (2 * A + 2 * KV + 3 * F), parameters = L * block + C * (2 * V + T);
    double widest = fmax(fmax(C, 2 * F), fmax(A + 2 * KV, V));
    double activations = (L + 1) * c->batch_size * T * widest;
    if (parameters > most)
        return fail(err,
                    "the model is too large: about %.1e parameters; at most %.1e can be counted",
                    parameters, most);
    if (activations <= most) return 0;
    return fail(
        err,
        "--batch-size %d x --seq-len %d is too large for this model: about %.1e activations "
        "of one kind; at most %.1e can be counted",
        c->batch_size, c->seq_len, activations, most);
}

/* An eighth of the run, rounded up, so that a run validates at most eight times after step 0. A
   checkpoint keeps the flag as it was given, so a run that is resumed with another --steps takes
   an eighth of the new number. */
static inline void config_resolve_val_every(Config *c) {
    if (c->val_every == VAL_EVERY_EIGHTH)
        c->val_every = max_int(1, c->steps / 8 + (c->steps % 8 > 0));
}

/* Steps between validations at a step. */
static inline int config_val_every(const Config *c, int step) {
    int late = c->val_every_end > 0 && (double)step >= 0.9 * c->steps;
    return late ? c->val_every_end : c->val_every;
}

/* Validation reads at most as many targets as the run does between two validations. A forward pass
   costs a third of a step, so validation then takes at most a quarter of a run's time. Fewer than
   LEAST_VAL_TOKENS would measure a small model too roughly. */
enum { VAL_TOKENS_BOUNDED = -1, LEAST_VAL_TOKENS = 1 << 17 };
static inline void config_resolve_val_tokens(Config *c) {
    if (c->val_tokens != VAL_TOKENS_BOUNDED) return;
    double steps = c->val_every ? c->val_every : c->steps;
    if (c->val_every_end) steps = fmin(steps, c->val_every_end);
    double bound = fmax(steps * (double)c->total_batch_tokens, LEAST_VAL_TOKENS);
    c->val_tokens = (int64_t)fmin(bound, 1e15);
}

/* The lists of --momentum-ages that have a name, from pull requests 340 and 357 of modded-nanogpt.
   bi-maxwell: decays of 0.85 and 0.98, of mean age 30. k-maxwell: eight ages from 3 to 64 in equal
   ratios, whose weights move from a mean age of 58 to one of 26. Returns 0 for another text. */
static inline int momentum_ages_named(NumberList *list, const char *text) {
    static const NumberList bi = {
        2, {2, 2}, {{0.85 / (1 - 0.85), 0.4385}, {0.98 / (1 - 0.98), 0.5615}}};
    const int n = MOMENTUM_AGES;
    if (!strcmp(text, "bi-maxwell")) {
        *list = bi;
        return 1;
    }
    if (strcmp(text, "k-maxwell")) return 0;
    list->n = n;
    for (int k = 0; k < n; k++) {
        list->numbers[k] = 3;
        list->item[k][0] = 3 * pow(64.0 / 3, (double)k / (n - 1));
        list->item[k][1] = k < n - 1 ? 0.005094 * (k + 1) : 0.857369;
        list->item[k][2] = k < n - 1 ? 0.032262 * (k + 1) : 0.096669;
    }
    return 1;
}

/* Sets optim.ages from the flags of --momentum-ages. */
static inline int config_resolve_ages(Config *c, char *err) {
    MomentumAges *a = &c->optim.ages;
    NumberList list;
    const char *flag = "momentum-ages";
    memset(a, 0, sizeof *a);
    if (!momentum_ages_named(&list, c->momentum_ages) &&
        list_parse(&list, flag, c->momentum_ages, MOMENTUM_AGES, 2, 3,
                   "AGE:WEIGHT or AGE:FIRST:LAST", err))
        return -1;
    a->n = list.n;
    a->from = c->momentum_ages_from;
    a->until = c->momentum_ages_until ? c->momentum_ages_until : c->steps;
    double sum[2] = {0, 0};
    for (int k = 0; k < a->n; k++) {
        double age = list.item[k][0];
        if (age < 0 || age > 1e6) return fail(err, "--%s: ages are from 0 to 1e6", flag);
        a->decay[k] = age / (age + 1);
        a->first[k] = list.item[k][1];
        a->last[k] = list.item[k][list.numbers[k] - 1];
        sum[0] += a->first[k];
        sum[1] += a->last[k];
    }
    for (int i = 0; i < 2 && a->n; i++)
        if (fabs(sum[i] - 1) > 1e-3)
            return fail(err, "--%s: the weights%s add up to %g, which must be 1", flag,
                        sum[0] == sum[1] ? ""
                        : i              ? " at the end"
                                         : " at the beginning",
                        sum[i]);
    for (int k = 0; k < a->n; k++)
        if (fabs(a->first[k]) > 10 || fabs(a->last[k]) > 10)
            return fail(err, "--%s: weights are from -10 to 10", flag);
    if (!a->n) return 0;
    if (c->momentum_ages_until && c->momentum_ages_until < c->momentum_ages_from)
        return fail(err, "--momentum-ages-until %d is before --momentum-ages-from %d",
                    c->momentum_ages_until, c->momentum_ages_from);
    int sums = c->optim.momentum_form == FORM_SUM ||
               (c->optim.momentum_form == FORM_RELEASED && config_has_cm(c));
    if (sums)
        return fail(err,
                    "--%s mixes averages of the gradient, and --momentum-form %s sums it; set "
                    "--momentum-form ema",
                    flag, c->optim.momentum_form == FORM_SUM ? "sum" : "released");
    if (c->optim.momentum_reproject == REPROJECT_WRITE_BACK)
        return fail(err,
                    "--%s has several buffers, and --momentum-reproject write_back projects "
                    "one; set --momentum-reproject copy",
                    flag);
    return 0;
}

/* What the phases of the learning rates and the betas of AdamW leave open. */
static inline int config_resolve_rates(Config *c, char *err) {
    Schedule *s = &c->schedule;
    const char *rest = c->lr_phases_rest[0] ? c->lr_phases_rest : c->lr_phases;
    if (phases_parse(&s->phases[RATE_BLOCKS], "lr-phases", c->lr_phases, err) ||
        phases_parse(&s->phases[RATE_REST], "lr-phases-rest", rest, err))
        return -1;
    const double optional[] = {c->optim.adam_beta1_blocks, c->optim.adam_beta2_blocks,
                               c->ema_blend_embed, c->ema_blend_head, c->ema_blend_scalar};
    static const char *const flags[] = {"adam-beta1-blocks", "adam-beta2-blocks", "ema-blend-embed",
                                        "ema-blend-head", "ema-blend-scalar"};
    for (int i = 0; i < 5; i++)
        if (optional[i] < 0 && optional[i] != -1)
            return fail(err, "--%s %g: give a number from 0 on, or -1", flags[i], optional[i]);
    if (c->optim.adam_beta1_blocks < 0) c->optim.adam_beta1_blocks = c->optim.adam_beta1;
    if (c->optim.adam_beta2_blocks < 0) c->optim.adam_beta2_blocks = c->optim.adam_beta2;
    if (c->ema_blend_embed < 0) c->ema_blend_embed = c->ema_blend;
    if (c->ema_blend_head < 0) c->ema_blend_head = c->ema_blend;
    if (c->ema_blend_scalar < 0) c->ema_blend_scalar = c->ema_blend;
    return 0;
}

/* Refuses a decay that the rule of the factors cannot take at the largest rate of the run. */
static inline int config_check_decay(const Config *c, char *err) {
    const Phases *p = &c->schedule.phases[RATE_BLOCKS];
    double most = 1;
    for (int i = 0; i < p->n; i++) most = fmax(most, p->factor[i]);
    double decay = c->weight_decay * (c->optim.decay_schedule == DECAY_LR ? most : 1);
    if (!config_rank(c)) return 0;
    return rule_check_decay((RuleId)c->lora, "--lr-lora", c->lr_lora * most, "--weight-decay",
                            decay, err);
}

/* Refuses --eval-every where there is nothing to evaluate. */
static inline int config_check_eval(const Config *c, char *err) {
    if (c->eval_data[0] || c->eval_every == EVAL_WITH_VALIDATION) return 0;
    return fail(err,
                "--eval-every %d says when to evaluate, and there is no --eval-data FILE to "
                "evaluate on: give both flags or none",
                c->eval_every);
}

/* Fills in every value that 0, -1 or auto leaves open, and refuses values that do not fit together.
   c->vocab must have been set, by the flag or from the data. Returns 0, or -1 with a message. */
static inline int config_resolve(Config *c, char *err) {
    if (config_check_sizes(c, err) || config_resolve_heads(c, err)) return -1;
    config_resolve_mlp(c);
    if (config_resolve_batch(c, err) || config_check_counts(c, err)) return -1;
    config_resolve_rules(c);
    if (config_resolve_factors(c, err)) return -1;
    if (config_check_rules(c, err) || config_check_eval(c, err)) return -1;
    if (config_resolve_ages(c, err) || config_resolve_rates(c, err) || config_check_decay(c, err))
        return -1;
    config_resolve_val_every(c);
    config_resolve_val_tokens(c);
    c->schedule.steps = c->steps;
    if (c->schedule.kind == SCHEDULE_TRAPEZOID && c->schedule.cooldown == 0)
        c->schedule.kind = SCHEDULE_CONSTANT;
    return 0;
}

/* The sizes of a resolved config. */
static inline Shape shape_of(const Config *c) {
    Shape s;
    s.B = c->batch_size;
    s.T = c->seq_len;
    s.N = s.B * s.T;
    s.C = c->width;
    s.L = c->layers;
    s.NH = c->heads;
    s.NKV = c->kv_heads;
    s.HS = c->head_dim;
    s.A = s.NH * s.HS;
    s.QKV = (s.NH + 2 * s.NKV) * s.HS;
    s.F = c->ff_width;
    s.H = act_is_gated((ActKind)c->act) ? 2 * s.F : s.F;
    s.V = c->vocab;
    s.Vp = round_up(s.V, 64);
    return s;
}

#endif
