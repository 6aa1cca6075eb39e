/*
The run folder that train_gpt --resume reads. The input is the text of a checkpoint (built.h), a
line "%%", log.jsonl, a line "%%", and run.json. The program runs from its command line to its end,
three steps, unless the model is large. If the first line has the word "init", a new run begins from
the checkpoint's weights instead.
*/
#define FUZZ_TRAINER
#include "programs.h"

#include "built.h"

#define CHECKPOINT "runs/r/checkpoints/step_00000002.ckpt"

/* The data of the seeds' runs: 60 lines of digits. */
static void fuzz_begin(void) {
    char text[60 * 11];
    for (size_t i = 0; i < sizeof text; i++) text[i] = "0123456789\n"[i % 11];
    write_bytes("digits.txt", text, sizeof text);
    built_base("base.ckpt");
}

/* Makes the run's folder from the input. Returns 1 if a new run begins from its weights. */
static int make_folder(Input in) {
    char err[ERR_LEN];
    Input checkpoint = input_part(&in), log = input_part(&in);
    Input first = checkpoint;
    char *line = input_line(&first);
    int begins = line && strstr(line, "init");
    free(line);
    remove_tree(in_folder("runs"));
    require(file_make_folders("runs/r/checkpoints", err) == 0, "%s", err);
    if (checkpoint.n) built_checkpoint(checkpoint, CHECKPOINT);
    if (log.n) write_bytes("runs/r/log.jsonl", log.p, log.n);
    if (in.n) write_bytes("runs/r/run.json", in.p, in.n);
    return begins;
}

/* Frees what a Program holds that has not run to its end. */
static void close_program(Program *p) {
    resume_close(&p->from);
    if (p->has_weights) ckpt_close(&p->weights);
    close_run(&p->run);
    model_free(&p->model);
}

static void parse_words(Program *p, const char *const *words) {
    static char copies[24][32];
    char err[ERR_LEN], *argv[24];
    int argc = 0;
    for (; words[argc]; argc++) {
        snprintf(copies[argc], sizeof copies[argc], "%s", words[argc]);
        argv[argc] = copies[argc];
    }
    argv[argc] = NULL;
    memset(p, 0, sizeof *p);
    p->run.log.fd = -1;
    require(parse(p, argc, argv, err) == 0, "%s", err);
}

/* Whether the run can be opened, and its model is small. */
static int opens(Program *p, char *err) {
    int small = !open_run(p, err) && is_small(&p->run.config);
    close_program(p);
    return small;
}

/* The program with a command line. A run that fails leaves the checkpoint; one that succeeds leaves
   a whole one. */
static void run_words(const char *const *words, const char *checkpoints) {
    static Program p;
    char err[ERR_LEN] = "", path[FILE_PATH_SIZE];
    int had = !access(CHECKPOINT, F_OK);
    parse_words(&p, words);
    if (!opens(&p, err)) return;
    parse_words(&p, words);
    int status = run_program(&p, words[0], err);
    hold_signals(0);
    if (status < 0) {
        require(err[0], "an error without a message");
        require(!had || !access(CHECKPOINT, F_OK), "the checkpoint is gone: %s", err);
    } else if (p.run.config.keep_checkpoints) {
        Ckpt ckpt;
        require(ckpt_open_newest(&ckpt, checkpoints, path, err) == 0, "no checkpoint: %s", err);
        ckpt_close(&ckpt);
    }
    if (status < 0 || p.run.train.files) close_program(&p);
}

static void fuzz_one(Input in) {
    static const char *const resume[] = {"train_gpt", "--run", "r",      "--resume",
                                         "--steps",   "3",     "--data", "digits.txt",
                                         "--threads", "1",     NULL};
    static const char *const begin[] = {"train_gpt",  "--run",     "new", "--init-from",
                                        "r",          "--steps",   "2",   "--batch-size",
                                        "2",          "--seq-len", "4",   "--data",
                                        "digits.txt", "--threads", "1",   NULL};
    int begins = make_folder(in);
    if (begins) run_words(begin, "runs/new/checkpoints");
    else run_words(resume, "runs/r/checkpoints");
}
