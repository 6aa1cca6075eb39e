/*
Tests of cuDNN's attention (llmc/cuda/cudnn.cuh) against the CPU's, where there is a cuDNN and a GPU; of
what happens where there is none, everywhere.
*/
#include "../../../llmc/cuda/cudnn.cuh"
#include "device.h"
#include "twin.h"

typedef struct {
    int B, T, NH, NKV, HS;
} Shape;

static Config config_of(Shape s, int attention) {
    Config c;
    memset(&c, 0, sizeof c);
    c.batch_size = s.B, c.seq_len = s.T, c.heads = s.NH, c.kv_heads = s.NKV, c.head_dim = s.HS;
    c.attn_scale = 1 / sqrt((double)s.HS);
    c.attention = attention;
    return c;
}

/* Inputs and outputs are rounded to bf16, and p and ds before they are multiplied: 2^-9 each. */
static void test_shape(Shape s) {
    int B = s.B, T = s.T, NH = s.NH, NKV = s.NKV, HS = s.HS;
    size_t N = (size_t)B * T, row = (size_t)((NH + 2 * NKV) * HS), kv = (size_t)(NKV * HS);
    size_t Q = N * row, A = N * (size_t)(NH * HS), R = N * (size_t)NH;
    double scale = 0.8 / sqrt((double)HS);
    char why[384] = "", name[96];
    snprintf(name, sizeof name, "B %d T %d NH %d NKV %d HS %d", B, T, NH, NKV, HS);
    int status = cudnn_attention_plan(B, T, NH, NKV, HS, scale, why, sizeof why);
    if (!check(status == 0, "%s: %s", name, why)) return;
    size_t scratch = cudnn_attention_workspace(B, T, NH, NKV, HS, scale);
    check(scratch >= R * sizeof(float), "%s: %zu bytes of scratch", name, scratch);
    check(cudnn_attention_workspace(B, T, NH, NKV, HS + 8, scale) == 0, "%s: scratch without a plan", name);

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

    /* The backward pass reads out in bf16: give the CPU the same. */
    put(out_d, out, A);
    put(lse_d, lse, R);
    cpu_attention_backward(dqkv, dout, qkv, out, lse, B, T, NH, NKV, HS, scale);
    status = cudnn_attention_backward(dqkv_d, dout_d, qkv_d, out_d, lse_d, B, T, NH, NKV, HS, scale);
    if (!check(status == 0, "%s: backward fails", name)) return;
    float *d = on_host(dqkv_d, Q), *parts[2] = {host_array(Q), host_array(Q)};
    size_t first[4] = {0, row - 2 * kv, row - kv, row};
    for (int part = 0; part < 3; part++) { /* q, k, v: errors of one must not hide behind the others */
        size_t n = 0;
        for (size_t i = 0; i < N; i++)
            for (size_t k = first[part]; k < first[part + 1]; k++, n++)
                parts[0][n] = d[i * row + k], parts[1][n] = dqkv[i * row + k];
        e = relative_l2_ff(parts[0], parts[1], n, 1e-6);
        check(e < 1e-2, "%s: gradient of %c differs by %g", name, "qkv"[part], e);
    }
    cudnn_attention_backward(again, dout_d, qkv_d, out_d, lse_d, B, T, NH, NKV, HS, scale);
    check(!memcmp(on_host(again, Q), d, Q * sizeof *d), "%s: two runs give different bits", name);
    check(relative_l2_ff(on_host(qkv_d, Q), qkv, Q, 1e-6) == 0, "%s: qkv was written", name);
    release();
}

/* A smaller batch of a shape that is planned works; one position more does not, and says so. */
static void test_unplanned(Shape s) {
    size_t N = (size_t)s.B * (size_t)(s.T + 8), Q = N * (size_t)((s.NH + 2 * s.NKV) * s.HS);
    floatX *qkv = device_array<floatX>(Q), *out = device_array<floatX>(Q);
    floatM *lse = device_array<floatM>(N * (size_t)s.NH);
    CUDA_CHECK(cudaMemsetAsync(qkv, 0, Q * sizeof *qkv, cuda_stream));
    int less = cudnn_attention_forward(out, lse, qkv, s.B - 1, s.T, s.NH, s.NKV, s.HS, 1);
    int more = cudnn_attention_forward(out, lse, qkv, s.B, s.T + 8, s.NH, s.NKV, s.HS, 1);
    int odd = cudnn_attention_forward(out + 1, lse, qkv, s.B, s.T, s.NH, s.NKV, s.HS, 1);
    check(less == 0, "a smaller batch fails");
    check(more == -1, "T + 8 was planned");
    check(odd == -1, "memory that is not aligned is taken");
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream));
    release();
}

/* The choice, which must never fail but where cuDNN is demanded. */
static void test_choice(int available) {
    Shape s = {8, 256, 4, 4, 64};
    char note[128] = "", err[ERR_LEN] = "";
    size_t used[2], all;
    CUDA_CHECK(cudaMemGetInfo(&used[0], &all));
    for (int attention = ATTENTION_AUTO; attention <= ATTENTION_CUDNN; attention++) {
        Config c = config_of(s, attention);
        int status = attention_choose(&c, note, sizeof note, err);
        int library = attention_library_forward != NULL;
        if (attention == ATTENTION_CUDNN) {
            check(status == (available ? 0 : -1), "forced: %s", err);
            check(library == available && (available || strstr(err, "--attention")), "forced: %s", err);
        } else {
            check(status == 0 && note[0], "no choice: %s", err);
            check(attention != ATTENTION_FLASH || (!library && !strcmp(note, "flash")), "flash: %s", note);
            check(c.attention == (library ? ATTENTION_CUDNN : ATTENTION_FLASH), "auto stays %d", c.attention);
        }
        check(library == (attention_library_backward != NULL), "half of a choice");
        size_t scratch = cudnn_attention_workspace(s.B, s.T, s.NH, s.NKV, s.HS, 1);
        check((scratch > 0) == library, "%zu bytes of scratch with %s", scratch, note);
    }
    CUDA_CHECK(cudaMemGetInfo(&used[1], &all));
    check(used[0] <= used[1] + ((size_t)512 << 20), "memory is left allocated"); /* kernels take some */
    attention_library_forward = NULL, attention_library_backward = NULL;
    cudnn_free_plans();
}

int main(void) {
    char why[384] = "";
    const Shape shapes[] = {{2, 128, 2, 2, 64}, {1, 256, 6, 2, 64}, {2, 384, 4, 1, 128}, {3, 128, 3, 3, 32},
                            {1, 1024, 2, 2, 64}};
    int available = cudnn_start(why, sizeof why) == 0;
    test_choice(available);
    if (available) {
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) test_shape(shapes[i]);
        test_unplanned(shapes[0]);
        check(cudnn_attention_plan(1, 128, 2, 2, 60, 1, why, sizeof why), "a head width of 60 is planned");
        check(cudnn_attention_plan(1, 128, 3, 2, 64, 1, why, sizeof why), "3 heads share 2");
    } else {
        printf("no cuDNN: %s\n", why);
        check(why[0] != 0, "no reason is given");
    }
    return check_done();
}
