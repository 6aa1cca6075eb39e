/* choices.txt, and the choices in the header of a checkpoint. The input is the file, a line "%%",
   and the header. */
#include "llmc/choices.h"

#include "fuzz.h"

static char path[FILE_PATH_SIZE], err[ERR_LEN];

static void fuzz_begin(void) { file_path(path, "%s", in_folder("choices.txt")); }

/* What choices_write writes, beside what the file has, choices_read reads. */
static void write_and_read(Choices *s) {
    Choices again;
    memset(&again, 0, sizeof again);
    require(choices_write(s, path, err) == 0, "%s", err);
    require(choices_read(&again, path, err) == 0, "%s", err);
    for (int i = 0; i < s->n; i++) {
        const char *value = choices_get(&again, s->c[i].key);
        require(value && !strcmp(value, s->c[i].value), "key \"%s\"", s->c[i].key);
    }
    choices_free(&again);
}

static void fuzz_one(Input in) {
    Choices known, s;
    Input file = input_part(&in);
    memset(&known, 0, sizeof known);
    memset(&s, 0, sizeof s);
    write_bytes("choices.txt", file.p, file.n);
    int status = choices_read(&known, path, err);
    require(status == 0 || (known.n == 0 && strstr(err, path)), "a refused file: %s", err);
    char *header = input_copy(in);
    choices_parse(&s, header, in.n, "choice.");
    free(header);
    s.from = &known;
    for (int i = 0; i < known.n; i++) choices_recall(&s, known.c[i].key);
    write_and_read(&s);
    choices_free(&s);
    choices_free(&known);
}
