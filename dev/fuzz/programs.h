/*
The programs under test in one translation unit: generate.c, which includes train_gpt.c, and
data/tokenize.c. Names that two of them define are renamed. With FUZZ_TRAINER the unit has
train_gpt.c with all of its main program, and nothing else.
*/
#ifndef CM_FUZZ_PROGRAMS_H
#define CM_FUZZ_PROGRAMS_H

#ifdef FUZZ_TRAINER
#define main train_main
int train_main(int argc, char **argv);
#include "train_gpt.c"
#undef main
#else
#define CM_NO_GENERATE_MAIN
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* not every function is called here */
#include "generate.c"

#define Options TokenizeOptions
#define load_tokenizer tokenize_load_tokenizer
#define main tokenize_main
int tokenize_main(int argc, char **argv);
#include "data/tokenize.c"
#undef main
#undef load_tokenizer
#undef Options
#undef FIELD
#pragma GCC diagnostic pop
#endif

/* Whether a resolved config is of a model so small that a target may create and train it. */
__attribute__((unused)) static int is_small(const Config *c) {
    return c->layers <= 4 && c->width <= 64 && c->heads * c->head_dim <= 64 && c->ff_width <= 256 &&
           c->vocab <= 256 && c->seq_len <= 64 && c->batch_size <= 4 &&
           c->total_batch_tokens <= 512;
}

#endif
