/*
The run folder that train_gpt --resume reads. The input is the text of a checkpoint (built.h), a
line "%%", log.jsonl, a line "%%", and run.json. The program runs from its command line to its end,
three steps, unless the model is large.
*/
#define FUZZ_TRAINER
#include "programs.h"

#include "built.h"

static int home, scratch; /* folders: the runs lie below the second */

/* The data of the seeds' runs: 60 lines of digits. */
static void fuzz_begin(void) {
    char text[60 * 11];
    for (size_t i = 0; i < sizeof text; i++) text[i] = "0123456789\n"[i % 11];
    write_bytes("digits.txt", text, sizeof text);
    home = open(".", O_RDONLY | O_DIRECTORY);
    scratch = open(scratch_folder, O_RDONLY | O_DIRECTORY);
    require(home >= 0 && scratch >= 0, "no folder");
}

/* Makes the run's folder from the input. Returns 0 if its model is too large to be made. */
static int make_folder(Input in) {
    char err[ERR_LEN];
    Input checkpoint = input_part(&in), log = input_part(&in);
    remove_tree(in_folder("runs"));
    require(file_make_folders(in_folder("runs/r/checkpoints"), err) == 0, "%s", err);
    if (log.n) write_bytes("runs/r/log.jsonl", log.p, log.n);
    if (in.n) write_bytes("runs/r/run.json", in.p, in.n);
    if (!checkpoint.n) return 1;
    built_checkpoint(checkpoint, "runs/r/checkpoints/step_00000002.ckpt");
    Ckpt ckpt;
    Config c;
    uint64_t vocab;
    if (ckpt_open(&ckpt, in_folder("runs/r/checkpoints/step_00000002.ckpt"), err)) return 1;
    memset(&c, 0, sizeof c);
    flags_defaults(config_flags, CONFIG_FLAGS, &c);
    int small = 1;
    if (!load_flags(&c, NULL, &ckpt, err) && !ckpt_number(&ckpt, "vocab", &vocab, err)) {
        c.vocab = c.vocab ? c.vocab : 256;
        small = config_resolve(&c, err) || is_small(&c);
    }
    ckpt_close(&ckpt);
    return small;
}

/* The program with the command line of a resumed run, in the scratch folder. A run that fails
   leaves the checkpoint; one that succeeds leaves a whole one. */
static void resume_run(void) {
    static Program p;
    char err[ERR_LEN] = "", path[FILE_PATH_SIZE];
    char words[] = "train_gpt\0--run\0r\0--resume\0--steps\0003\0--data\0digits.txt\0--threads\0001";
    char *argv[16];
    int argc = 0;
    for (char *w = words; w < words + sizeof words; w += strlen(w) + 1) argv[argc++] = w;
    argv[argc] = NULL;
    memset(&p, 0, sizeof p);
    p.run.log.fd = -1;
    require(parse(&p, argc, argv, err) == 0, "%s", err);
    int had = !access("runs/r/checkpoints/step_00000002.ckpt", F_OK);
    int status = run_program(&p, argv[0], err);
    hold_signals(0);
    if (status < 0) {
        require(err[0], "an error without a message");
        require(!had || !access("runs/r/checkpoints/step_00000002.ckpt", F_OK),
                "the checkpoint of a run that could not continue is gone: %s", err);
        close_run(&p.run);
        model_free(&p.model);
    } else {
        Ckpt ckpt;
        require(ckpt_open_newest(&ckpt, "runs/r/checkpoints", path, err) <= 0, "no checkpoint");
        ckpt_close(&ckpt);
    }
    ckpt_close(&p.checkpoint);
}

static void fuzz_one(Input in) {
    if (!make_folder(in)) return;
    require(fchdir(scratch) == 0, "fchdir");
    resume_run();
    require(fchdir(home) == 0, "fchdir");
}
