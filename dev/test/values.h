/*
The values of each choice as tables of tests. They are made from the lists in llmc/shape.h and
llmc/optim/rule.h: a loop over one of them tests a value that is added there.
*/
#ifndef CM_TEST_VALUES_H
#define CM_TEST_VALUES_H

#include "../../llmc/optim/rule.h"
#include "../../llmc/shape.h"
#include "check.h"

/* The flag's words of a list, in the order of its enum: VALUES(all_acts, ACTS) defines
   all_acts[], and all_acts[ACT_GELU] is "gelu". */
#define VALUE_FLAG(E, FLAG, NAME) FLAG,
#define VALUES(TABLE, LIST)                                                                        \
    __attribute__((unused)) static const char *const TABLE[] = {LIST(VALUE_FLAG)}

VALUES(all_norms, NORMS);
VALUES(all_positions, POSITIONS);
VALUES(all_acts, ACTS);
VALUES(all_recomputes, RECOMPUTES);

/* The flags that choose a rule, and the names of the plan's entries that the rule gets. Factors are
   those of a low-rank MLP: its whole matrices are none then. */
#define FACTORS_ROLE "--low-rank 3 --lora-on fc,proj --lora"
#define FACTORS_ENTRIES "A of W_fc, B of W_fc, A of W_proj, B of W_proj"
typedef struct {
    const char *flag, *entries;
    unsigned on;
} RuleRole;

__attribute__((unused)) static const RuleRole rule_roles[] = {
    {"--qk", "W_Q W_K", ON_QK},       {"--ov", "W_O W_V", ON_OV},
    {"--mlp", "W_fc W_proj", ON_MLP}, {"--embed", "wte wpe", ON_EMBED},
    {"--head", "whead", ON_HEAD},     {FACTORS_ROLE, FACTORS_ENTRIES, ON_FACTOR},
};

/* Calls body(role, rule, circuit) for every rule in every role where it applies, and with
   circuit = 1 for those of --ov that Circuit-Muon may follow. */
__attribute__((unused)) static void each_rule(void (*body)(const RuleRole *role, const Rule *rule,
                                                           int circuit)) {
    for (int i = 0; i < COUNT_OF(rule_roles); i++)
        for (int id = RULE_AUTO + 1; id < RULES_END; id++) {
            const RuleRole *role = &rule_roles[i];
            const Rule *rule = &rule_table[id];
            if (!(rule->where & role->on)) continue;
            body(role, rule, 0);
            if (role->on == ON_OV && rule->traits & TAKES_CIRCUIT) body(role, rule, 1);
        }
}

#endif
