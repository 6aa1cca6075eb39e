/*
A config from text, for the tests of the model.
*/
#ifndef CM_CONFIG_OF_H
#define CM_CONFIG_OF_H

#include "../../llmc/config.h"

/* Words of text as a command line, its presets and defaults filled in; then `changes`, pairs that
   win over it. The speedrun's 524288 tokens a step are set back to one batch. */
static Config config_of(const char *text, const char *changes) {
    static char copy[4096];
    unsigned char given[CONFIG_FLAGS];
    char *argv[256], *save = NULL, name[] = "test_gpt", err[ERR_LEN];
    int argc = 1;
    Config c;
    argv[0] = name;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *w = strtok_r(copy, " ", &save); w && argc < 255; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    if (config_parse(&c, given, argc, argv, err)) die("%s: %s", text, err);
    if (!given[flags_find(config_flags, CONFIG_FLAGS, "total-batch-tokens")])
        c.total_batch_tokens = 0;
    if (config_apply(&c, NULL, changes, err)) die("%s: %s", changes, err);
    if (!c.vocab) c.vocab = 256; /* as for a text */
    if (config_resolve(&c, err)) die("%s %s: %s", text, changes, err);
    return c;
}

#endif
