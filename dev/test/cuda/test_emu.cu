/*
Tests of the emulator (dev/emu): kernels run as CUDA defines, and the emulator finds mistakes in
kernels. A mistake ends the program, so each is made in a child process.
*/
#include "../check.h"
#include "device.h"

#include <sys/wait.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------- */

__global__ void coordinates(int *out) {
    int threads = (int)(blockDim.x * blockDim.y);
    int b = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    out[b * threads + (int)(threadIdx.y * blockDim.x + threadIdx.x)] +=
        1 + b * threads + (int)(threadIdx.y * blockDim.x + threadIdx.x);
}

static void test_coordinates(void) {
    int out[2 * 3 * 2 * 64] = {0}, wrong = 0, n = 2 * 3 * 2 * 64;
    for (int round = 0; round < 4; round++) LAUNCH(coordinates, dim3(2, 3, 2), dim3(16, 4), 0, out);
    for (int i = 0; i < n; i++) wrong += out[i] != 4 * (i + 1);
    check(!wrong, "%d of %d threads have not run once a launch", wrong, n);
}

/* The sum of a block by a tree in shared memory, as in textbooks. */
__global__ void tree(float *out, const float *x) {
    SHARED(float, s);
    int t = (int)threadIdx.x, n = (int)blockDim.x;
    s[t] = x[(int)blockIdx.x * n + t];
    for (int k = n / 2; k > 0; k /= 2) {
        __syncthreads();
        if (t < k) s[t] += s[t + k];
    }
    if (t == 0) out[blockIdx.x] = s[0];
}

__global__ void reductions(float *out, const float *x) {
    BLOCK_SHARED(room, [32], float);
    BLOCK_SHARED(wide, [32], double);
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float sum = block_sum(x[i], room);
    __syncthreads();
    float max = block_max(x[i], room);
    double squares = block_sum((double)x[i] * (double)x[i], wide);
    int many = __syncthreads_count(x[i] > 0), any = __syncthreads_or(x[i] > 100);
    if (threadIdx.x == 5) {
        float *o = out + 5 * (int)blockIdx.x;
        o[0] = sum;
        o[1] = max;
        o[2] = (float)squares;
        o[3] = (float)many;
        o[4] = (float)any;
    }
}

static void test_reductions(void) {
    enum { N = 256, BLOCKS = 3 };
    float x[N * BLOCKS], trees[BLOCKS], out[5 * BLOCKS];
    for (int i = 0; i < N * BLOCKS; i++) x[i] = (float)((i * 37) % 101) - 40;
    x[2 * N + 7] = 500;
    LAUNCH(tree, BLOCKS, N, N * sizeof(float), trees, x);
    LAUNCH(reductions, BLOCKS, N, 0, out, x);
    for (int b = 0; b < BLOCKS; b++) {
        double sum = 0, max = -1e9, squares = 0;
        int many = 0;
        for (int i = b * N; i < (b + 1) * N; i++) {
            sum += x[i];
            squares += x[i] * x[i];
            many += x[i] > 0;
            max = fmax(max, x[i]);
        }
        const float *o = out + 5 * b;
        check(trees[b] == (float)sum && o[0] == (float)sum, "block %d: sums %g %g, not %g", b,
              trees[b], o[0], sum);
        check(o[1] == (float)max, "block %d: maximum %g, not %g", b, o[1], max);
        check(o[2] == (float)squares, "block %d: squares %g, not %g", b, o[2], squares);
        check(o[3] == (float)many && o[4] == (b == 2), "block %d: votes %g %g", b, o[3], o[4]);
    }
}

__global__ void lanes(int *out) {
    int t = (int)threadIdx.x, *o = out + 8 * t;
    o[0] = __shfl_sync(FULL_WARP, t, 3);
    o[1] = __shfl_xor_sync(FULL_WARP, t, 5);
    o[2] = __shfl_down_sync(FULL_WARP, t, 4);
    o[3] = __shfl_up_sync(FULL_WARP, t, 4);
    o[4] = (int)__ballot_sync(FULL_WARP, t % 3 == 0);
    o[5] = __shfl_sync(FULL_WARP, t, 1, 8);
    o[6] = __any_sync(FULL_WARP, t == 40);
    o[7] = __all_sync(FULL_WARP, t < 40);
}

static void test_lanes(void) {
    int out[64 * 8], wrong[8] = {0};
    LAUNCH(lanes, 1, 64, 0, out);
    for (int t = 0; t < 64; t++) {
        const int *o = out + 8 * t, w = t & ~31, l = t & 31;
        unsigned votes = 0;
        for (int i = 0; i < 32; i++) votes |= (unsigned)((w + i) % 3 == 0) << i;
        const int right[8] = {
            w + 3,   t ^ 5, l + 4 < 32 ? t + 4 : t, l >= 4 ? t - 4 : t, (int)votes, (t & ~7) + 1,
            w == 32, w == 0};
        for (int k = 0; k < 8; k++) wrong[k] += o[k] != right[k];
    }
    for (int k = 0; k < 8; k++)
        check(!wrong[k], "warp operation %d: %d lanes are wrong", k, wrong[k]);
}

__global__ void copies(int *out, const int4 *x) {
    SHARED(int4, s);
    int t = (int)threadIdx.x, first;
    emu_cp_async(&s[t], &x[t], 16);
    emu_cp_async_commit();
    emu_cp_async(&s[32 + t], &x[32 + t], 16);
    emu_cp_async_commit();
    emu_cp_async_wait(1);
    first = s[t].x;
    out[2 * t] = first == x[t].x && s[32 + t].x == -1; /* the second copy has not arrived */
    emu_cp_async_wait(0);
    __syncthreads();
    out[2 * t + 1] = s[32 + (t + 1) % 32].w == x[32 + (t + 1) % 32].w;
}

static void test_copies(void) {
    int out[64], ok = 1;
    int4 *x = (int4 *)aligned_alloc(16, 64 * sizeof *x);
    for (int i = 0; i < 64; i++) x[i] = make_int4(i, i + 1, i + 2, i + 3);
    LAUNCH(copies, 1, 32, 64 * sizeof(int4), out, x);
    for (int i = 0; i < 64; i++) ok &= out[i];
    check(ok, "cp.async is done too early or too late");
    free(x);
}

static void test_bf16(void) {
    static const float right[][2] = {{1, 1},
                                     {1.00390625f, 1},
                                     {1.01171875f, 1.015625f},
                                     {-2.5f, -2.5f},
                                     {3.3895314e38f, 3.3895314e38f},
                                     {1e-40f, 9.1835496e-41f},
                                     {0, 0}};
    for (size_t i = 0; i < sizeof right / sizeof right[0]; i++)
        check((float)__nv_bfloat16(right[i][0]) == right[i][1], "%g as bf16 is %g, not %g",
              right[i][0], (float)__nv_bfloat16(right[i][0]), right[i][1]);
    check(isnan((float)__nv_bfloat16(NAN)) && isinf((float)__nv_bfloat16(3.4e38f)),
          "bf16 of NaN, infinity");
}

/* A captured stream does nothing until it is replayed, and then with the arguments of the
   capture. */
__global__ void add_number(int *out, int n) {
    if (threadIdx.x == 0) *out += n;
}
static void test_graph(void) {
    int out = 100, n = 5;
    cudaGraph_t graph;
    cudaGraphExec_t work;
    MUST(cudaStreamBeginCapture(cm_gpu.stream, cudaStreamCaptureModeThreadLocal));
    LAUNCH(add_number, 1, 32, 0, &out, n);
    MUST(cudaMemsetAsync(&out, 0, sizeof out, cm_gpu.stream));
    LAUNCH(add_number, 1, 32, 0, &out, 2 * n);
    n = 1000;
    MUST(cudaStreamEndCapture(cm_gpu.stream, &graph));
    check(out == 100, "work is done while it is captured: %d", out);
    MUST(cudaGraphInstantiate(&work, graph, 0));
    MUST(cudaGraphDestroy(graph));
    for (int i = 0; i < 3; i++) {
        out = 7;
        MUST(cudaGraphLaunch(work, cm_gpu.stream));
        check(out == 10, "replay %d leaves %d, not 10", i, out);
    }
    MUST(cudaGraphExecDestroy(work));
    LAUNCH(add_number, 1, 32, 0, &out, 1);
    check(out == 11, "after a capture launches are not done");
}

/* ---------------------------------------------------------------------------------------------- */
/* Mistakes */

__global__ void static_and_dynamic(float *out) {
    BLOCK_SHARED(room, [4096], float);
    SHARED(float, s);
    room[threadIdx.x] = s[threadIdx.x];
    out[threadIdx.x] = room[threadIdx.x];
}

__global__ void part_at_barrier(void) {
    if (threadIdx.x < 40) __syncthreads();
}
__global__ void two_barriers(void) {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads_or(1);
}
__global__ void part_of_warp(int *out) {
    if (threadIdx.x < 20) out[threadIdx.x] = __shfl_sync(FULL_WARP, 1, 0);
}
__global__ void two_operations(int *out) {
    out[threadIdx.x] =
        threadIdx.x % 2 ? __shfl_sync(FULL_WARP, 1, 0) : __shfl_xor_sync(FULL_WARP, 1, 1);
}
__global__ void copy_left(const int4 *x) {
    SHARED(int4, s);
    emu_cp_async(s, x, 16);
}
__global__ void nothing(void) {}
__global__ void past_shared(float *out) {
    SHARED(float, s);
    s[threadIdx.x + 1] = 1;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
__global__ void past_static(float *out) {
    BLOCK_SHARED(s, [64], float);
    volatile int one = 1;
    s[(int)threadIdx.x + one] = 1;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
__global__ void past_global(float *out, int n) {
    if ((int)threadIdx.x <= n) out[threadIdx.x] = 1;
}

static float *device_memory(size_t n) {
    void *p;
    MUST(cudaMalloc(&p, n * sizeof(float)));
    return (float *)p;
}

/* The wait status of a child process that makes the mistake. */
static int mistake(int which) {
    fflush(stdout);
    pid_t child = fork();
    if (child) {
        int status;
        waitpid(child, &status, 0);
        return status;
    }
    if (!freopen("/dev/null", "w", stderr)) _exit(0);
    float *out = device_memory(64);
    int *ints = (int *)device_memory(64);
    switch (which) {
    case 0: LAUNCH(part_at_barrier, 1, 64, 0); break;
    case 1: LAUNCH(two_barriers, 1, 64, 0); break;
    case 2: LAUNCH(part_of_warp, 1, 32, 0, ints); break;
    case 3: LAUNCH(two_operations, 1, 32, 0, ints); break;
    case 4: LAUNCH(copy_left, 1, 32, 512, (const int4 *)(void *)out); break;
    case 5: LAUNCH(nothing, 0, 64, 0); break;
    case 6: LAUNCH(nothing, 1, 1025, 0); break;
    case 7: LAUNCH(nothing, 1, 32, 1 << 20); break;
    case 8: LAUNCH(nothing, dim3(1, 65536), 32, 0); break;
    case 9: LAUNCH(past_shared, 1, 64, 64 * sizeof(float), out); break;
    case 10: LAUNCH(past_static, 1, 64, 0, out); break;
    case 11: LAUNCH(past_global, 1, 128, 0, out, 64); break;
    case 12: LAUNCH(static_and_dynamic, 1, 64, EMU_SHARED_LIMIT - 16380, out); break;
    case 13:
        MUST(cudaStreamBeginCapture(cm_gpu.stream, cudaStreamCaptureModeThreadLocal));
        device_memory(1);
        break;
    case -2: LAUNCH(static_and_dynamic, 1, 64, EMU_SHARED_LIMIT - 16384, out); break;
    default: LAUNCH(nothing, 1, 64, 0); break;
    }
    _exit(0);
}

static void test_mistakes(void) {
    static const char *const names[] = {"some threads at a barrier",
                                        "threads at two barriers",
                                        "a part of a warp",
                                        "two warp operations",
                                        "a copy left under way",
                                        "an empty grid",
                                        "a block too large",
                                        "too much shared memory",
                                        "a grid too large",
                                        "past dynamic shared memory",
                                        "past static shared memory",
                                        "past device memory",
                                        "static and dynamic shared memory too large together",
                                        "an allocation during a capture"};
#ifdef EMU_ASAN
    const int sanitized = 1;
#else
    const int sanitized = 0; /* only AddressSanitizer finds accesses out of bounds */
#endif
    for (int i = 0; i < 14; i++)
        if (sanitized || i < 9 || i > 11) check(mistake(i), "%s is not found", names[i]);
    check(!mistake(-1), "a kernel without a mistake fails");
    check(!mistake(-2), "as much shared memory as there is, is refused");
}

static const Test tests[] = {TEST(coordinates), TEST(reductions), TEST(lanes),   TEST(copies),
                             TEST(bf16),        TEST(graph),      TEST(mistakes)};

int main(int argc, char **argv) { return check_main(tests, COUNT_OF(tests), argc, argv); }
