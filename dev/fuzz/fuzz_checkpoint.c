/*
The bytes of a checkpoint: as they are, then with the length and the checksum that they ought to
have, which lets changes of the contents past these checks.
*/
#include "programs.h"

#include "built.h"
#include "model.h"

static void fuzz_begin(void) {}

static void fuzz_one(Input in) {
    size_t n = (in.n + 7) / 8 * 8;
    write_bytes("a.ckpt", in.p, in.n);
    read_checkpoint(in_folder("a.ckpt"), "a.ckpt");
    if (n < 16) return;
    char *image = (char *)calloc(n, 1);
    if (!image) abort();
    memcpy(image, in.p, in.n);
    built_finish(image, n);
    write_bytes("a.ckpt", image, n);
    free(image);
    read_checkpoint(in_folder("a.ckpt"), "a.ckpt");
}
