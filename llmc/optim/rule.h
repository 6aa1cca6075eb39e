/*
The rules: one table, a row for each. The parser, --help, --dry-run, the line that a run starts with, the
plan, the names of states in checkpoints and libcmuon are all fed from a row. A new rule is a file with the
functions of its row, and the row.
*/
#ifndef CM_RULE_H
#define CM_RULE_H

#include "adamw.h"
#include "aurora.h"
#include "circuit.h"
#include "compositional.h"
#include "lion.h"
#include "muon.h"
#include "muon_group.h"
#include "muonh.h"
#include "normuon.h"
#include "partner.h"
#include "quack.h"

/* X(id, flag, title, where,
     traits, learning rate, states,
     refuse, direction, couple, step); struct Rule in leg.h explains them. `auto` stands for another row, and
   `circuit` is chosen by --circuit. */
/* clang-format off */
#define STATE(NAME, UNIT) {{NAME, UNIT}}
#define NO_STATE STATE(NULL, PER_MATRIX)
#define RULES(X)                                                                                   \
    X(RULE_AUTO, "auto", "", ON_MATRIX,                                                            \
      0, 0, NO_STATE,                                                                              \
      NULL, NULL, NULL, NULL)                                                                      \
    X(RULE_CM, "cm", "CM", ON_QK | ON_OV,                                                          \
      NEEDS_PAIR | TAKES_CIRCUIT, 0.02, NO_STATE,                                                  \
      cm_refuse, NULL, NULL, cm_step)                                                              \
    X(RULE_MUON, "muon", "Muon", ON_MATRIX | ON_BASE,                                              \
      TAKES_CIRCUIT, 0.02, NO_STATE,                                                               \
      NULL, muon_direction, NULL, NULL)                                                            \
    X(RULE_MUON_HEAD, "muon-head", "Muon per head", ON_QK | ON_OV | ON_BASE,                       \
      TAKES_CIRCUIT, 0.02, NO_STATE,                                                               \
      NULL, muon_head_direction, NULL, NULL)                                                       \
    X(RULE_MUON_GROUP, "muon-group", "Group Muon", ON_QK | ON_OV,                                  \
      TAKES_CIRCUIT, 0.02, NO_STATE,                                                               \
      muon_group_refuse, muon_group_direction, NULL, NULL)                                         \
    X(RULE_NORMUON, "normuon", "NorMuon", ON_MATRIX,                                               \
      TAKES_CIRCUIT, 0.02, STATE("v", PER_ROW),                                                    \
      NULL, normuon_direction, NULL, NULL)                                                         \
    X(RULE_AURORA, "aurora", "Aurora", ON_MATRIX,                                                  \
      TAKES_CIRCUIT, 0.02, NO_STATE,                                                               \
      aurora_refuse, aurora_direction, NULL, NULL)                                                 \
    X(RULE_MUONH, "muonh", "MuonH", ON_MATRIX,                                                     \
      0, 0.02, STATE("radius", PER_MATRIX),                                                        \
      muonh_refuse, NULL, NULL, muonh_step)                                                        \
    X(RULE_ADAMW, "adamw", "AdamW", ON_MATRIX | ON_VECTOR | ON_BASE,                               \
      WRITES_COPY | ELEMENT_BY_ELEMENT | MOMENT_WITH_STATE, 0.002, STATE("v", PER_ELEMENT),                            \
      NULL, adamw_direction, NULL, adamw_step)                                                     \
    X(RULE_ADAMW_PARTNER, "adamw-partner", "partner-rescaled AdamW", ON_QK | ON_OV,                \
      NEEDS_PAIR | MOMENT_WITH_STATE, 0.002, STATE("v", PER_ELEMENT),                                                  \
      NULL, NULL, NULL, partner_adamw_step)                                                        \
    X(RULE_LION, "lion", "Lion", ON_MATRIX,                                                        \
      ELEMENT_BY_ELEMENT, 0.0003, NO_STATE,                                                        \
      NULL, lion_direction, NULL, NULL)                                                            \
    X(RULE_QUACK, "quack", "QuacK", ON_QK,                                                         \
      NEEDS_PAIR, 0, STATE("initial", PER_HEAD),                                                   \
      NULL, NULL, quack_couple, NULL)                                                              \
    X(RULE_CIRCUIT, "circuit", "Circuit-Muon", 0,                                                  \
      NEEDS_PAIR, 0, NO_STATE,                                                                     \
      NULL, NULL, circuit_couple, NULL)
/* clang-format on */

#define RULE_ENUMERATOR(ID, ...) ID,
typedef enum { RULES(RULE_ENUMERATOR) RULES_END } RuleId;

#define RULE_ROW(ID, ...) {__VA_ARGS__},
static const Rule rule_table[] = {RULES(RULE_ROW)};

/* Value i of a flag that chooses among the rules which apply at `where`: its name, "" where rule i does not
   apply, NULL past the last. */
static inline const char *rule_choice(int i, unsigned where) {
    if (i < 0 || i >= RULES_END) return NULL;
    return rule_table[i].where & where ? rule_table[i].flag : "";
}
static inline const char *rule_choice_qk(int i) { return rule_choice(i, ON_QK); }
static inline const char *rule_choice_ov(int i) { return rule_choice(i, ON_OV); }
static inline const char *rule_choice_mlp(int i) { return rule_choice(i, ON_MLP); }
static inline const char *rule_choice_embed(int i) { return rule_choice(i, ON_EMBED); }
static inline const char *rule_choice_head(int i) { return rule_choice(i, ON_HEAD); }
static inline const char *rule_choice_base(int i) { return rule_choice(i, ON_BASE); }

/* The rule whose directions are applied: a coupling (QuacK) rescales those of its base. */
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

/* Whether a rule has no meaning where it would be used: -1 and a sentence. */
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

#endif
