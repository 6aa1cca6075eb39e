/*
Tests of cuDNN's attention (llmc/cuda/cudnn.cuh) against the CPU's, and of the choice between
cuDNN's kernels and ours (llmc/cuda/attention_choice.cuh). On a GPU the tests use the installed
cuDNN. On the emulator they use one that executes the graph on the CPU (fake_cudnn.h). On every
machine they test what happens without cuDNN, and how often NVML is asked (llmc/cuda/nvml.cuh).
*/
#include "../../../llmc/cuda/attention_choice.cuh"
#include "../../../llmc/cuda/nvml.cuh"
#include "device.h"
#include "twin.h"
#ifdef CM_EMU
#include "fake_cudnn.h"
#endif

static AttentionShape shape_of(int B, int T, int NH, int NKV, int HS) {
    return {B, T, NH, NKV, HS, 1 / sqrt((double)HS)};
}

/* Against the CPU. Inputs and outputs are rounded to bf16, and so are p and ds before they are
   multiplied: 2^-9 each. */
static void test_shape(AttentionShape s) {
    int B = s.B, T = s.T, NH = s.NH, NKV = s.NKV, HS = s.HS;
    size_t N = (size_t)B * T, row = (size_t)((NH + 2 * NKV) * HS), kv = (size_t)(NKV * HS);
    size_t Q = N * row, A = N * (size_t)(NH * HS), R = N * (size_t)NH;
    double scale = 0.8 / sqrt((double)HS);
    char why[384] = "", name[96];
    snprintf(name, sizeof name, "B %d T %d NH %d NKV %d HS %d%s", B, T, NH, NKV, HS,
             cm_gpu.cudnn_fast ? " fast" : "");
    int status = cudnn_attention_plan(B, T, NH, NKV, HS, why, sizeof why);
    if (!check(status == 0, "%s: %s", name, why)) return;
    size_t scratch_before = cm_gpu.scratch_bytes;
    size_t scratch = cudnn_attention_workspace(B, T, NH, NKV, HS);
    size_t least = (R + (cm_gpu.cudnn_fast ? A : 0)) * sizeof(float);
    check(scratch >= least, "%s: %zu bytes of scratch", name, scratch);
    check(cudnn_attention_workspace(B, T, NH, NKV, HS + 8) == 0, "%s: scratch without a plan",
          name);

    float *qkv = random_array(Q, 2), *dout = random_array(A, 1);
    floatX *qkv_d = on_device<floatX>(qkv, Q), *dout_d = on_device<floatX>(dout, A);
    floatX *out_d = device_array<floatX>(A), *dqkv_d = device_array<floatX>(Q);
    floatX *again = device_array<floatX>(Q);
    floatM *lse_d = device_array<floatM>(R);
    float *out = host_array(A), *lse = host_array(R), *dqkv = host_array(Q);
    cpu_attention_forward(out, lse, qkv, B, T, NH, NKV, HS, scale);
    status = cudnn_attention_forward(out_d, lse_d, qkv_d, B, T, NH, NKV, HS, scale);
    if (!check(status == 0, "%s: forward fails", name)) return;
    double e = relative_l2_ff(on_host(out_d, A), out, A, 1e-6);
    double l = relative_l2_ff(on_host(lse_d, R), lse, R, 1e-6);
    check(e < 6e-3, "%s: out differs by %g", name, e);
    check(l < 1e-4, "%s: lse differs by %g", name, l);

    /* The backward pass reads out in bf16, and so does the CPU. */
    put(out_d, out, A);
    put(lse_d, lse, R);
    cpu_attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
    status =
        cudnn_attention_backward(dqkv_d, dout_d, qkv_d, out_d, lse_d, B, T, NH, NKV, HS, scale);
    if (!check(status == 0, "%s: backward fails", name)) return;
    float *d = on_host(dqkv_d, Q), *parts[2] = {host_array(Q), host_array(Q)};
    size_t first[4] = {0, row - 2 * kv, row - kv, row};
    for (int part = 0; part < 3;
         part++) { /* q, k, v separately, so that errors of one do not hide behind the others */
        size_t n = 0;
        for (size_t i = 0; i < N; i++)
            for (size_t k = first[part]; k < first[part + 1]; k++, n++) {
                parts[0][n] = d[i * row + k];
                parts[1][n] = dqkv[i * row + k];
            }
        e = relative_l2_ff(parts[0], parts[1], n, 1e-6);
        check(e < 1e-2, "%s: gradient of %c differs by %g", name, "qkv"[part], e);
    }
    check(cm_gpu.scratch_bytes <= scratch || cm_gpu.scratch_bytes == scratch_before,
          "%s: %zu bytes of scratch, not %zu", name, cm_gpu.scratch_bytes, scratch);
    cudnn_attention_backward(again, dout_d, qkv_d, out_d, lse_d, B, T, NH, NKV, HS, scale);
    check(cm_gpu.cudnn_fast || !memcmp(on_host(again, Q), d, Q * sizeof *d),
          "%s: two runs give different bits", name);
    check(relative_l2_ff(on_host(qkv_d, Q), qkv, Q, 1e-6) == 0, "%s: qkv was written", name);
    release();
}

/* A smaller batch of a planned shape works. A longer sequence does not, and the message has the
   reason. */
static void test_unplanned(AttentionShape s) {
    size_t N = (size_t)s.B * (size_t)(s.T + 8), Q = N * (size_t)((s.NH + 2 * s.NKV) * s.HS);
    floatX *qkv = device_array<floatX>(Q), *out = device_array<floatX>(Q);
    floatM *lse = device_array<floatM>(N * (size_t)s.NH);
    MUST(cudaMemsetAsync(qkv, 0, Q * sizeof *qkv, cm_gpu.stream));
    int less = cudnn_attention_forward(out, lse, qkv, s.B - 1, s.T, s.NH, s.NKV, s.HS, 1);
    int more = cudnn_attention_forward(out, lse, qkv, s.B, s.T + 8, s.NH, s.NKV, s.HS, 1);
    int odd = cudnn_attention_forward(out + 1, lse, qkv, s.B, s.T, s.NH, s.NKV, s.HS, 1);
    check(less == 0, "a smaller batch fails");
    check(more == -1, "T + 8 was planned");
    check(odd == -1, "memory that is not aligned is taken");
    check(strstr(cudnn_failure(), "16 bytes") != NULL, "the reason is \"%s\"", cudnn_failure());
    MUST(cudaStreamSynchronize(cm_gpu.stream));
    release();
}

static int nvml_queries;
static void count_query(char *text, size_t size) {
    snprintf(text, size, "\"gpu_w\": %d", ++nvml_queries);
}

/* NVML is asked once a second, and a text that does not fit is left out. */
static void test_state(void) {
    NvmlCache cache;
    char text[32], small[8] = "?";
    const double times[] = {50, 50.2, 50.999, 51, 51.5, 52.5};
    const int answers[] = {1, 1, 1, 2, 2, 3};
    memset(&cache, 0, sizeof cache);
    for (int i = 0; i < 6; i++) {
        nvml_cached(&cache, times[i], count_query, text, sizeof text);
        check(atoi(text + strlen("\"gpu_w\": ")) == answers[i], "at %g: %s", times[i], text);
    }
    nvml_cached(&cache, 52.6, count_query, small, sizeof small);
    check(!small[0], "half a text: %s", small);
}

/* The choice may fail only if cuDNN is demanded. */
static void test_choice(int available, AttentionShape s) {
    char note[256] = "", err[ERR_LEN] = "";
    cuda_scratch_free();
    const AttentionKind asked[] = {ATTENTION_AUTO, ATTENTION_FLASH, ATTENTION_CUDNN,
                                   ATTENTION_CUDNN_FAST};
    for (AttentionKind attention : asked) {
        AttentionKind kind = attention;
        int status = attention_choose(&kind, &s, note, sizeof note, err),
            fast = attention == ATTENTION_CUDNN_FAST;
        int library = cm_gpu.attention_forward != NULL;
        if (attention == ATTENTION_CUDNN || fast) {
            check(status == (available ? 0 : -1), "forced: %s", err);
            check(library == available && (available || strstr(err, "--attention")), "forced: %s",
                  err);
            check(kind == attention, "--attention %d becomes %d", attention, kind);
            check(!available || strstr(note, "engine "), "no engine: %s", note);
            check(!available || fast == (strstr(note, "may differ") != NULL), "the note is: %s",
                  note);
        } else {
            check(status == 0 && note[0], "no choice: %s", err);
            check(attention != ATTENTION_FLASH || (!library && !strcmp(note, "flash")), "flash: %s",
                  note);
            check(kind == (library ? ATTENTION_CUDNN : ATTENTION_FLASH), "auto stays %d", kind);
        }
        check(library == (cm_gpu.attention_backward != NULL), "half of a choice");
        size_t scratch = cudnn_attention_workspace(s.B, s.T, s.NH, s.NKV, s.HS);
        check((scratch > 0) == library, "%zu bytes of scratch with %s", scratch, note);
        check(cm_gpu.scratch_bytes == 0, "%zu bytes of scratch stay", cm_gpu.scratch_bytes);
    }
    cm_gpu.attention_forward = NULL;
    cm_gpu.attention_backward = NULL;
    cudnn_free_plans();
    cm_gpu.cudnn_fast = 0;
}

#ifdef CM_EMU

/* Runs attention_choose with the fake. Returns the error or the note. */
static const char *chosen(AttentionShape s, AttentionKind attention, int *status) {
    static char note[256], err[ERR_LEN];
    note[0] = err[0] = 0;
    *status = attention_choose(&attention, &s, note, sizeof note, err);
    return *status ? err : note;
}

/* auto tries cuDNN for long sequences, and never takes kernels whose bits differ from run to
   run. */
static void test_auto(void) {
    AttentionShape s = shape_of(1, 512, 1, 1, 8);
    int status;
    fake_install(91900);
    const char *text = chosen(s, ATTENTION_AUTO, &status);
    check(!status && (strstr(text, "faster") || strstr(text, "slower")), "no trial: %s", text);
    fake_install(91900);
    fake.racing = 1;
    text = chosen(s, ATTENTION_AUTO, &status);
    check(!status && strstr(text, "flash (") && strstr(text, "other bits"), "auto takes a race: %s",
          text);
    check(!cm_gpu.cudnn_fast && !cm_gpu.attention_forward, "auto is fast");
}

/* Engines with different notes and plans. Notes decide the order in which engines are tried. An
   engine is refused only if its bits differ from run to run or its numbers are wrong. */
static void test_engines(AttentionShape s) {
    int status;
    fake_install(91900);
    fake.engines = {{7, 1, 0}, {9, 0, 1}, {11, 0, 0}};
    const char *text = chosen(s, ATTENTION_CUDNN, &status);
    check(!status && strstr(text, "engine 11 forward, 11 backward)"),
          "the last is deterministic: %s", text);
    text = chosen(s, ATTENTION_CUDNN_FAST, &status);
    check(!status && strstr(text, "engine 11 forward, 7 backward (nondeterministic)"),
          "the best is fast: %s", text);
    fake.engines = {{9, 0, 1}, {7, 1, 0}};
    text = chosen(s, ATTENTION_CUDNN, &status);
    check(!status && strstr(text, "7 forward (nondeterministic), 7 backward (nondeterministic)"),
          "%s", text);
    fake.racing = 1;
    text = chosen(s, ATTENTION_CUDNN, &status);
    check(status && strstr(text, "other bits") && strstr(text, "--attention flash"), "a race: %s",
          text);
    text = chosen(s, ATTENTION_CUDNN_FAST, &status);
    check(!status && strstr(text, "equal runs may differ"), "a race that is allowed: %s", text);
    fake.racing = 0;
    fake.wrong = 1;
    for (AttentionKind attention : {ATTENTION_CUDNN, ATTENTION_CUDNN_FAST}) {
        text = chosen(s, attention, &status);
        check(status && strstr(text, "differs from ours"), "another dk: %s", text);
    }
    fake.wrong = 0;
    fake.refuse = 1;
    text = chosen(s, ATTENTION_CUDNN, &status);
    check(status && strstr(text, "the device is tired"), "a refusal: %s", text);
    fake.refuse = 0, fake.engines = {{9, 0, 1}};
    text = chosen(s, ATTENTION_CUDNN, &status);
    check(status && strstr(text, "does not compile"), "no plan: %s", text);
    fake.engines = {};
    text = chosen(s, ATTENTION_CUDNN, &status);
    check(status && strstr(text, "no kernel"), "no engine: %s", text);
    cudnn_free_plans();
    check(fake.live == 0, "%d descriptors stay", fake.live);
    fake_install(91001);
    text = chosen(s, ATTENTION_CUDNN, &status);
    check(status && strstr(text, "known mistakes"), "9.10.1: %s", text);
}

/* A pass that fails after the choice records a failure, and the message says what to do. After a
   failure no kernel starts and no call is made. */
static void test_failure(AttentionShape s) {
    int status;
    fake_install(91900);
    chosen(s, ATTENTION_CUDNN, &status);
    check(!status && cm_gpu.attention_forward, "no cuDNN");
    if (status) return;
    size_t N = (size_t)s.B * (size_t)s.T, Q = N * (size_t)((s.NH + 2 * s.NKV) * s.HS);
    floatX *qkv = device_array<floatX>(Q), *out = device_array<floatX>(Q);
    floatM *lse = device_array<floatM>(N * (size_t)s.NH);
    fake.refuse = 1;
    check(!device_failure(), "a failure before: %s", device_failure());
    attention_forward(out, lse, qkv, s.B, s.T, s.NH, s.NKV, s.HS, 1);
    const char *said = device_failure();
    check(said && strstr(said, "the device is tired") && strstr(said, "--attention flash"),
          "it says: %s", said ? said : "nothing");
    long launches = emu.launches;
    device_noise(out, Q, 1, 1);
    check(emu.launches == launches, "a kernel starts after the failure");
    check(CUDA_CHECK(cudaStreamSynchronize(cm_gpu.stream)) == -1, "a call succeeds after it");
    device_fail("another");
    check(!strcmp(said, device_failure()) && !strstr(said, "another"), "a second failure is kept");
    cm_gpu.failure[0] = 0;
    cm_gpu.attention_forward = NULL;
    cm_gpu.attention_backward = NULL;
    cudnn_free_plans();
    release();
}

static const AttentionShape emulated_shapes[] = {
    shape_of(2, 128, 2, 2, 32), shape_of(1, 40, 6, 2, 64), shape_of(2, 64, 4, 1, 128)};

static void test_absent(void) {
    char why[384] = "";
    int absent = cudnn_start(why, sizeof why);
    check(absent && strstr(why, "emulator"), "there is a cuDNN: %s", why);
    test_choice(0, emulated_shapes[1]);
}

/* Tests with a cuDNN of this version: 9.19 sets dq_sum to 0 itself, 9.5 does not. */
static void check_version(int version) {
    char why[384] = "";
    fake_install(version);
    for (cm_gpu.cudnn_fast = 0; cm_gpu.cudnn_fast < 2; cm_gpu.cudnn_fast++)
        for (int i = 0; i < COUNT_OF(emulated_shapes); i++)
            if (version == 91900 || emulated_shapes[i].T % 128 == 0) test_shape(emulated_shapes[i]);
    cm_gpu.cudnn_fast = 0;
    test_unplanned(emulated_shapes[0]);
    check(cudnn_attention_plan(1, 128, 2, 2, 60, why, sizeof why), "a head width of 60 is planned");
    check(cudnn_attention_plan(1, 128, 3, 2, 64, why, sizeof why), "3 heads share 2");
    cudnn_free_plans();
    check(fake.live == 0, "%d descriptors stay", fake.live);
}

static void test_versions(void) {
    check_version(91900);
    check_version(90501);
}

static void test_choices(void) {
    fake_install(91900);
    test_choice(1, emulated_shapes[1]);
    test_auto();
    test_engines(shape_of(2, 32, 2, 1, 16));
    test_failure(shape_of(2, 32, 2, 1, 16));
}

static const Test tests[] = {TEST(state), TEST(absent), TEST(versions), TEST(choices)};

int main(int argc, char **argv) {
    check_run(tests, COUNT_OF(tests), argc, argv);
    cuda_scratch_free();
    return check_done();
}

#else

/* The test names the libraries that it found. cuDNN without a device fails with that reason. */
static void test_where(int available, const char *why) {
    char text[2400] = "?";
    cudnn_where(text, sizeof text);
    if (text[0]) {
        printf("%s\n", text);
        check(strstr(text, "cuDNN 9."), "cuDNN is at \"%s\"", text);
    }
    check(available || why[0], "no reason is given");
    check(!available || text[0], "a library that works has no path");
    check(!text[0] || available || strstr(why, "cuDNN"), "the reason is \"%s\"", why);
}

static void test_library(void) {
    char why[384] = "";
    /* Few shapes, because a plan takes seconds. */
    const AttentionShape shapes[] = {shape_of(2, 128, 2, 2, 64), shape_of(2, 384, 4, 1, 128),
                                     shape_of(1, 1024, 6, 2, 64)};
    int available = cudnn_start(why, sizeof why) == 0, devices = 0;
    test_where(available, why);
    if (!available) printf("no cuDNN: %s\n", why);
    if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) {
        check(!available, "cuDNN starts without a device");
        return;
    }
    test_choice(available, shape_of(8, 256, 4, 4, 64));
    if (!available) return;
    for (cm_gpu.cudnn_fast = 0; cm_gpu.cudnn_fast < 2; cm_gpu.cudnn_fast++)
        for (int i = 0; i < COUNT_OF(shapes); i++) test_shape(shapes[i]);
    cm_gpu.cudnn_fast = 0;
    cudnn_free_plans();
    test_shape(shapes[0]);
    test_unplanned(shapes[0]);
    check(cudnn_attention_plan(1, 128, 2, 2, 60, why, sizeof why), "a head width of 60 is planned");
    check(cudnn_attention_plan(1, 128, 3, 2, 64, why, sizeof why), "3 heads share 2");
}

static const Test tests[] = {TEST(state), TEST(library)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }

#endif
