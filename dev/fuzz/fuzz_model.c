/* The checkpoint that a text describes (built.h), read by generate. */
#include "programs.h"

#include "built.h"
#include "model.h"

static void fuzz_begin(void) { built_base("base.ckpt"); }

static void fuzz_one(Input in) {
    built_checkpoint(in, "a.ckpt");
    read_checkpoint(in_folder("a.ckpt"), "base.ckpt");
}
