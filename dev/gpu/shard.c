/*
Writes a token shard that resembles text, for a machine that has no data: tokens of GPT-2's
vocabulary with frequencies of about 1 / rank, of which every second follows from the token before
it. A model can learn both. usage: shard FILE TOKENS SEED
*/
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 50257 };

static uint64_t state;
static double draw(void) { /* in [0, 1), by splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

int main(int argc, char **argv) {
    int32_t header[256] = {20240520, 1};
    if (argc != 4) {
        fprintf(stderr, "usage: shard FILE TOKENS SEED\n");
        return 2;
    }
    long tokens = atol(argv[2]);
    state = strtoull(argv[3], NULL, 10);
    FILE *f = fopen(argv[1], "wb");
    if (!f) {
        fprintf(stderr, "error: cannot create %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    header[2] = (int32_t)tokens;
    fwrite(header, sizeof header, 1, f);
    for (long i = 0, last = 0; i < tokens; i++) {
        long rank = (long)exp(draw() * log(VOCAB)) - 1;
        if (draw() < 0.5) rank = (last * 31 + 17) % 4096;
        last = rank < VOCAB ? rank : VOCAB - 1;
        uint16_t token = (uint16_t)last;
        fwrite(&token, sizeof token, 1, f);
    }
    if (ferror(f) || fclose(f)) {
        fprintf(stderr, "error: cannot write %s\n", argv[1]);
        return 1;
    }
    return 0;
}
