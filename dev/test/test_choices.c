/*
Tests of llmc/choices.h: choices are read back as they were set, damaged files are refused, and runs
at the same time do not lose each other's choices.
*/
#include "../../llmc/choices.h"
#include "folder.h"

static char err[ERR_LEN], path[FILE_PATH_SIZE];

static void put_file(const char *text, size_t size) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(text, 1, size, f) != size || fclose(f)) die("cannot write %s", path);
}

static int is(const Choices *s, const char *key, const char *value) {
    const char *got = choices_get(s, key);
    return value ? got && !strcmp(got, value) : !got;
}

static void test_memory(void) {
    Choices s;
    char key[32], value[32];
    memset(&s, 0, sizeof s);
    check(is(&s, "a", NULL) && is(NULL, "a", NULL), "there is a choice before any was set");
    choices_set(NULL, "a", "1"); /* NULL keeps no choices */
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof key, "key %d of a GPU", i);
        snprintf(value, sizeof value, "%d", i * i);
        choices_set(&s, key, value);
    }
    check(s.n == 100 && is(&s, "key 7 of a GPU", "49") && is(&s, "key 99 of a GPU", "9801"),
          "many choices");
    s.changed = 0;
    choices_set(&s, "key 7 of a GPU", "49");
    check(!s.changed, "setting an equal value is a change");
    choices_set(&s, "key 7 of a GPU", "50");
    check(s.changed && s.n == 100 && is(&s, "key 7 of a GPU", "50"), "another value");
    Choices run;
    memset(&run, 0, sizeof run);
    check(!choices_recall(NULL, "a") && !choices_recall(&run, "key 7 of a GPU"),
          "recalled from nowhere");
    run.from = &s;
    check(!choices_recall(&run, "b") && !run.n, "recalled a choice that nobody made");
    check(!strcmp(choices_recall(&run, "key 7 of a GPU"), "50") && run.n == 1,
          "what another run has measured");
    choices_set(&s, "key 7 of a GPU", "51");
    check(!strcmp(choices_recall(&run, "key 7 of a GPU"), "50"), "a run's own choice changes");
    choices_free(&run);
    choices_free(&s);
    check(!s.n && !s.c, "choices_free leaves something");
}

static void test_parse(void) {
    static const char text[] =
        "step=12\nchoice.a=1\nchoice.b b=x=y\nchoice.=3\nchoice.c\n=4\nchoice.d=\nchoice.e=5";
    Choices s;
    memset(&s, 0, sizeof s);
    choices_parse(&s, text, sizeof text - 1, "choice.");
    check(s.n == 3 && is(&s, "a", "1") && is(&s, "b b", "x=y") && is(&s, "d", ""),
          "lines of a header: %d", s.n);
    choices_free(&s);
    /* Damage by a power cut: kept, the key would be "" and the value cut short. */
    static const char zeros[] = "\0a=1\nb=2\0 3\nc=4\n";
    choices_parse(&s, zeros, sizeof zeros - 1, "");
    check(s.n == 1 && is(&s, "c", "4"), "lines with a zero byte: %d choices", s.n);
    choices_free(&s);
}

static void test_file(void) {
    static const char *const bad[] = {"", "c", "cm.c choices 2\na=1\n", "something else\na=1\n"};
    Choices a, b, c;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    memset(&c, 0, sizeof c);
    check(!choices_read(&a, path, err) && !a.n, "a file that is not there");
    choices_set(&a, "attention of a GPU", "flash");
    check(!choices_write(&a, path, err) && !a.changed, "writing: %s", err);
    choices_set(&b, "products of a GPU", "v1 0a0b;0c:0d");
    check(!choices_write(&b, path, err), "writing beside another run: %s", err);
    check(!choices_read(&c, path, err) && c.n == 2 && !c.changed &&
              is(&c, "attention of a GPU", "flash") && is(&c, "products of a GPU", "v1 0a0b;0c:0d"),
          "what two runs have chosen: %d", c.n);
    choices_set(&a, "attention of a GPU", "cudnn");
    check(!choices_write(&a, path, err) && !choices_read(&c, path, err) && c.n == 2 &&
              is(&c, "attention of a GPU", "cudnn"),
          "a later choice does not replace the earlier");
    for (int i = 0; i < 4; i++) {
        put_file(bad[i], strlen(bad[i]));
        err[0] = 0;
        check(choices_read(&c, path, err) && strstr(err, path) && c.n == 2, "bad file %d: %s", i,
              err);
    }
    check(!choices_write(&a, path, err) && !choices_read(&b, path, err),
          "a bad file is not replaced: %s", err);
    check(is(&b, "attention of a GPU", "cudnn"), "what replaces a bad file");
    static const char half[] =
        CHOICES_FORMAT "x=1\ny=2"; /* the last line has no end and is dropped */
    choices_free(&b);
    put_file(half, sizeof half - 1);
    check(!choices_read(&b, path, err) && b.n == 1 && is(&b, "x", "1"), "a file cut short");
    check(choices_write(&a, "/nowhere/at/all", err) && strstr(err, "/nowhere"),
          "a folder that is not there: %s", err);
    choices_free(&a);
    choices_free(&b);
    choices_free(&c);
}

static const Test tests[] = {TEST(memory), TEST(parse), TEST(file)};

int main(int argc, char **argv) {
    folder_make("cm_test_choices");
    file_path(path, "%s/choices.txt", scratch_folder);
    check_run(tests, COUNT_OF(tests), argc, argv);
    folder_remove();
    return check_done();
}
