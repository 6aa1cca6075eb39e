/*
The table of rules. The parser, --help, --dry-run, the line that a run starts with, the plan, the
names of states in checkpoints and libcmuon all read a rule's row. A new rule is one row, and one
file with the functions that the row names.
*/
#ifndef CM_RULE_H
#define CM_RULE_H

#include "adamw.h"
#include "aurora.h"
#include "circuit.h"
#include "compositional.h"
#include "lion.h"
#include "lora_muon.h"
#include "lora_rite.h"
#include "muon.h"
#include "muon_group.h"
#include "muonh.h"
#include "normuon.h"
#include "partner.h"
#include "quack.h"
#include "spectron.h"

/* X(id, fields of a Rule, which leg.h explains). `auto` stands for another row; --circuit chooses
   `circuit`. */
/* clang-format off */
#define RULES(X)                                                                                   \
    X(RULE_AUTO, .flag = "auto", .title = "", .where = ON_MATRIX | ON_FACTOR)                      \
    X(RULE_CM, .flag = "cm", .title = "CM", .where = ON_QK | ON_OV | ON_FACTOR,                    \
      .traits = NEEDS_PAIR | TAKES_CIRCUIT | TAKES_SIGN, .lr = 0.02, .refuse = cm_refuse,          \
      .step = cm_step)                                                                             \
    X(RULE_MUON, .flag = "muon", .title = "Muon", .where = ON_MATRIX | ON_BASE | ON_FACTOR,        \
      .traits = TAKES_CIRCUIT | TAKES_SIGN, .lr = 0.02, .direction = muon_direction)               \
    X(RULE_MUON_HEAD, .flag = "muon-head", .title = "Muon per head",                               \
      .where = ON_QK | ON_OV | ON_BASE, .traits = TAKES_CIRCUIT | TAKES_SIGN, .lr = 0.02,          \
      .direction = muon_head_direction)                                                            \
    X(RULE_MUON_GROUP, .flag = "muon-group", .title = "Group Muon", .where = ON_QK | ON_OV,        \
      .traits = TAKES_CIRCUIT | TAKES_SIGN, .lr = 0.02, .refuse = muon_group_refuse,               \
      .direction = muon_group_direction)                                                           \
    X(RULE_NORMUON, .flag = "normuon", .title = "NorMuon", .where = ON_MATRIX,                     \
      .traits = TAKES_CIRCUIT | TAKES_SIGN, .lr = 0.02, .state = {{"v", PER_ROW}},                 \
      .direction = normuon_direction)                                                              \
    X(RULE_NORMUON_LONG, .flag = "normuon-long", .title = "NorMuon along the longer side",         \
      .where = ON_MATRIX, .traits = TAKES_CIRCUIT | TAKES_SIGN, .lr = 0.02,                        \
      .state = {{"v", PER_LONGER}}, .direction = normuon_long_direction)                           \
    X(RULE_AURORA, .flag = "aurora", .title = "Aurora", .where = ON_MATRIX,                        \
      .traits = TAKES_CIRCUIT | TAKES_SIGN, .lr = 0.02, .refuse = aurora_refuse,                   \
      .direction = aurora_direction)                                                               \
    X(RULE_MUONH, .flag = "muonh", .title = "MuonH", .where = ON_MATRIX,                           \
      .traits = TAKES_SIGN, .lr = 0.02, .state = {{"radius", PER_MATRIX}},                         \
      .refuse = muonh_refuse, .step = muonh_step)                                                  \
    X(RULE_ADAMW, .flag = "adamw", .title = "AdamW",                                               \
      .where = ON_MATRIX | ON_VECTOR | ON_BASE | ON_FACTOR,                                        \
      .traits = WRITES_COPY | ELEMENT_BY_ELEMENT | MOMENT_WITH_STATE, .lr = 0.002,                 \
      .state = {{"v", PER_ELEMENT}}, .direction = adamw_direction, .step = adamw_step)             \
    X(RULE_ADAMW_PARTNER, .flag = "adamw-partner", .title = "partner-rescaled AdamW",              \
      .where = ON_QK | ON_OV, .traits = NEEDS_PAIR | MOMENT_WITH_STATE, .lr = 0.002,               \
      .state = {{"v", PER_ELEMENT}}, .step = partner_adamw_step)                                   \
    X(RULE_LION, .flag = "lion", .title = "Lion", .where = ON_MATRIX,                              \
      .traits = ELEMENT_BY_ELEMENT, .lr = 0.0003, .direction = lion_direction)                     \
    X(RULE_LORA_MUON, .flag = "lora-muon", .title = "LoRA-Muon", .where = ON_FACTOR,               \
      .traits = NEEDS_PAIR | TAKES_SIGN | SPLITS_DECAY, .lr = 0.1, .refuse = lora_muon_refuse,     \
      .step = lora_muon_step)                                                                      \
    X(RULE_SPECTRON, .flag = "spectron", .title = "Spectron", .where = ON_FACTOR,                  \
      .traits = NEEDS_PAIR | TAKES_SIGN, .lr = 0.1, .state = {{"u", PER_LONGER}},                  \
      .step = spectron_step)                                                                       \
    X(RULE_LORA_RITE, .flag = "lora-rite", .title = "LoRA-RITE", .where = ON_FACTOR,               \
      .traits = NEEDS_PAIR | MOMENT_WITH_STATE | MOMENT_OF_ITS_OWN, .lr = 0.01,                    \
      .state = {{"second", PER_RANK}, {"turn", PER_RANK}, {"escaped", PER_MATRIX}},                \
      .step = lora_rite_step)                                                                      \
    X(RULE_LORA_RITE_CORE, .flag = "lora-rite-core", .title = "LoRA-RITE without memory",          \
      .where = ON_FACTOR, .traits = NEEDS_PAIR | TAKES_SIGN | SPLITS_DECAY, .lr = 0.1,             \
      .step = lora_rite_core_step)                                                                 \
    X(RULE_QUACK, .flag = "quack", .title = "QuacK", .where = ON_QK, .traits = NEEDS_PAIR,         \
      .state = {{"initial", PER_HEAD}}, .couple = quack_couple)                                    \
    X(RULE_CIRCUIT, .flag = "circuit", .title = "Circuit-Muon", .traits = NEEDS_PAIR,              \
      .couple = circuit_couple)
/* clang-format on */

#define RULE_ENUMERATOR(ID, ...) ID,
typedef enum { RULES(RULE_ENUMERATOR) RULES_END } RuleId;

#define RULE_ROW(ID, ...) {__VA_ARGS__},
static const Rule rule_table[] = {RULES(RULE_ROW)};

/* The name of value i of a flag that chooses among the rules at `where`: "" if rule i does not
   apply there, NULL past the last. */
static inline const char *rule_choice(int i, unsigned where) {
    if (i < 0 || i >= RULES_END) return NULL;
    return rule_table[i].where & where ? rule_table[i].flag : "";
}
static inline const char *rule_choice_qk(int i) { return rule_choice(i, ON_QK); }
static inline const char *rule_choice_ov(int i) { return rule_choice(i, ON_OV); }
static inline const char *rule_choice_mlp(int i) { return rule_choice(i, ON_MLP); }
static inline const char *rule_choice_embed(int i) { return rule_choice(i, ON_EMBED); }
static inline const char *rule_choice_head(int i) { return rule_choice(i, ON_HEAD); }
static inline const char *rule_choice_factor(int i) { return rule_choice(i, ON_FACTOR); }
static inline const char *rule_choice_base(int i) { return rule_choice(i, ON_BASE); }

/* The rule whose directions are applied: a coupling (QuacK) rescales the directions of its base. */
static inline RuleId rule_base(RuleId rule, const OptimOptions *o) {
    return rule_table[rule].couple ? (RuleId)o->quack_base : rule;
}

/* The learning rate of a rule where no flag gives one. */
static inline double rule_lr(RuleId rule, const OptimOptions *o) {
    return rule_table[rule_base(rule, o)].lr;
}

/* The rules that Circuit-Muon may follow: "cm, muon or aurora". */
static inline void rule_circuit_names(char *text, size_t size) {
    int last = 0;
    size_t used = 0;
    for (int i = 0; i < RULES_END; i++)
        if (rule_table[i].traits & TAKES_CIRCUIT) last = i;
    for (int i = 0; i <= last && used < size; i++) {
        if (!(rule_table[i].traits & TAKES_CIRCUIT)) continue;
        const char *separator = !used ? "" : i == last ? " or " : ", ";
        used += (size_t)snprintf(text + used, size - used, "%s%s", separator, rule_table[i].flag);
    }
}

/* Refuses a use of a rule that has no meaning: returns -1 and a sentence. */
static inline int rule_check(RuleId rule, const RuleUse *use, char *err) {
    char names[256];
    if (!(rule_table[rule].where & use->on))
        return fail(err, "%s %s: the rule does not apply to %s", use->flag, rule_table[rule].flag,
                    use->matrices);
    if (use->on == ON_OV && use->options->circuit && !(rule_table[rule].traits & TAKES_CIRCUIT)) {
        rule_circuit_names(names, sizeof names);
        return fail(err, "--circuit on rescales directions of %s; set %s to one of them", names,
                    use->flag);
    }
    return rule_table[rule].refuse ? rule_table[rule].refuse(use, err) : 0;
}

/* Refuses a learning rate, the largest of a run, and a weight decay that a rule cannot take
   together: returns -1 and a sentence. */
static inline int rule_check_decay(RuleId rule, const char *lr_flag, double lr,
                                   const char *decay_flag, double decay, char *err) {
    if (!(rule_table[rule].traits & SPLITS_DECAY) || lr * decay < 1) return 0;
    return fail(err,
                "%s %g times %s %g must be below 1, since %s makes a product decay by 1 minus that",
                lr_flag, lr, decay_flag, decay, rule_table[rule].title);
}

#endif
