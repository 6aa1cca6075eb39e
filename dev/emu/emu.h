/*
Runs our CUDA kernels on a CPU, so that tests need no GPU. A build with -DCM_CUDA -DCM_EMU and
-Idev/emu finds cuda_runtime.h and cuda_bf16.h in this folder, and they include this file. Compile
with g++ or clang++.

A grid runs block by block. The threads of a block are fibers: a fiber runs until it reaches a
barrier (of the block, of a warpgroup, a shuffle, a vote), then the next fiber runs. A GPU may
choose this order too. It exposes missing barriers, because a fiber runs before the others have
written what it should wait for. Launches run blocks, and the threads within them, alternately
forwards and backwards. A captured stream records copies of its work and replays them.

These mistakes end the test:
    a barrier that not all threads of the block reach; a warp operation without the whole warp, or
    with different operations; a launch or a size of shared memory beyond the limits of a GPU;
    cp.async and wgmma that nobody waits for; an unaligned 16-byte access by load and store; under
    AddressSanitizer an access outside of device memory (malloc's) or of shared memory, to the byte.
Device memory and dynamic shared memory start as NaN. cp.async and wgmma take effect only when they
are waited for. Not checked are races that this order does not show, the alignment of other accesses
beyond that of their types, and time.
*/
#ifndef CM_EMU_H
#define CM_EMU_H

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <functional>
#include <type_traits>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

/* ---------------------------------------------------------------------------------------------- */
/* The language */

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static /* one block runs at a time */
#define __align__(N) alignas(N)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
/* Vector types: kernels access memory of other types through them, which nvcc allows. */
#define EMU_VECTOR(BYTES) __attribute__((aligned(BYTES), may_alias))
struct EMU_VECTOR(8) float2 {
    float x, y;
};
struct EMU_VECTOR(16) float4 {
    float x, y, z, w;
};
struct EMU_VECTOR(16) int4 {
    int x, y, z, w;
};
struct EMU_VECTOR(8) uint2 {
    unsigned x, y;
};
struct EMU_VECTOR(16) uint4 {
    unsigned x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

/* bf16 is the upper half of a float. Conversion rounds to nearest, ties to even, and keeps NaN. */
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) {
        uint32_t u;
        memcpy(&u, &f, 4);
        bits = f != f ? 0x7fff : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
    __nv_bfloat16(double d) : __nv_bfloat16((float)d) {}
    operator float() const {
        uint32_t u = (uint32_t)bits << 16;
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
static inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
static inline float __bfloat162float(__nv_bfloat16 b) { return (float)b; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}

#define __expf expf /* the C library has a hidden function of this name */
static inline float __fdividef(float x, float y) { return x / y; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __int_as_float(int i) {
    float f;
    memcpy(&f, &i, 4);
    return f;
}
static inline int __float_as_int(float f) {
    int i;
    memcpy(&i, &f, 4);
    return i;
}
static inline int __ffs(int x) { return __builtin_ffs(x); }

/* For integers only: sums of floats would depend on the order. */
static inline int atomicAdd(int *p, int v) {
    int old = *p;
    *p += v;
    return old;
}

/* ---------------------------------------------------------------------------------------------- */
/* Fibers */

enum { EMU_READY, EMU_AT_BLOCK_BARRIER, EMU_AT_GROUP_BARRIER, EMU_AT_WARP_BARRIER, EMU_DONE };
enum { EMU_MAX_THREADS = 1024, EMU_EXCHANGE_BYTES = 64, EMU_COPIES = 256 };
#ifdef EMU_ASAN
enum { EMU_STACK = 256 << 10 };
#else
enum { EMU_STACK = 64 << 10 };
#endif

struct EmuThread {
    dim3 index;
    void *sp; /* where the thread was suspended */
    int state, lane, warp;
    int operations;    /* warp operations so far, which select the half of the exchange */
    const char *where; /* name of the barrier where it waits */
    int vote;          /* its vote in __syncthreads_or and __syncthreads_count */
    void *fake_stack;  /* used by AddressSanitizer */
    struct {
        void *to;
        const void *from;
        int bytes, group;
    } copy[EMU_COPIES]; /* copies by cp.async that are in flight */
    int copies, group;
    /* wgmma (llmc/cuda/wgmma.cuh): products in flight; groups committed; whether wgmma.fence
       came after the last wait; whether fence.proxy.async came after the block's last barrier. */
    int products, product_group, fenced, published;
    long issued; /* products issued in this block */
};

struct EmuWarp {
    alignas(16) unsigned char exchange[2][32][EMU_EXCHANGE_BYTES];
};

struct EmuState {
    dim3 grid, block, index;
    EmuThread *current;
    EmuThread thread[EMU_MAX_THREADS];
    EmuWarp warp[EMU_MAX_THREADS / 32];
    char *stacks;
    void *scheduler_sp, *scheduler_fake;
    const void *scheduler_bottom;
    size_t scheduler_size;
    void (*body)(const void *);
    const void *arguments;
    unsigned char *shared;
    unsigned char
        *seen; /* `shared` as the tensor cores see it: after all threads last published it */
    const char *kernel;
    int votes_or, votes_count;
    long launches, blocks;              /* numbers of those that have started */
    size_t dynamic_bytes, static_bytes; /* of shared memory, in the current launch */
    std::vector<std::function<void()>>
        *recording;   /* work of a captured stream; NULL: there is none */
    pthread_t driver; /* a thread as a driver starts it, see cudaGetDeviceCount */
};
inline EmuState emu;

#define threadIdx (emu.current->index)
#define blockIdx (emu.index)
#define blockDim (emu.block)
#define gridDim (emu.grid)

[[noreturn]] static void emu_die(const char *what) {
    const EmuThread *t = emu.current;
    fprintf(stderr, "emulator: %s: %s", emu.kernel ? emu.kernel : "?", what);
    if (t)
        fprintf(stderr, " (block %u,%u,%u thread %u,%u,%u)", emu.index.x, emu.index.y, emu.index.z,
                t->index.x, t->index.y, t->index.z);
    fprintf(stderr, "\n");
    abort();
}

/* emu_switch(save, to) pushes the registers that a callee must keep, stores the stack pointer in
   *save, and continues where `to` was stored. emu_prepare lays out a stack that starts in
   emu_entry. */
extern "C" void emu_switch(void **save, void *to);
extern "C" void emu_entry(void);
#if defined(__x86_64__)
__asm__(".text\n.weak emu_switch\n.type emu_switch,@function\nemu_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size emu_switch,.-emu_switch\n");
static inline void *emu_prepare(char *stack, size_t size) {
    void **sp = (void **)(void *)(stack + size) - 2;
    *sp = (void *)emu_entry; /* as if called: the stack is 8 below a multiple of 16 */
    sp -= 6;
    memset(sp, 0, 6 * sizeof *sp);
    return sp;
}
#elif defined(__aarch64__)
__asm__(".text\n.weak emu_switch\n.type emu_switch,%function\nemu_switch:\n"
        "sub sp,sp,#160\nstp x19,x20,[sp]\nstp x21,x22,[sp,#16]\nstp x23,x24,[sp,#32]\n"
        "stp x25,x26,[sp,#48]\nstp x27,x28,[sp,#64]\nstp x29,x30,[sp,#80]\nstp d8,d9,[sp,#96]\n"
        "stp d10,d11,[sp,#112]\nstp d12,d13,[sp,#128]\nstp d14,d15,[sp,#144]\n"
        "mov x9,sp\nstr x9,[x0]\nmov sp,x1\n"
        "ldp x19,x20,[sp]\nldp x21,x22,[sp,#16]\nldp x23,x24,[sp,#32]\nldp x25,x26,[sp,#48]\n"
        "ldp x27,x28,[sp,#64]\nldp x29,x30,[sp,#80]\nldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\n"
        "ldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\nadd sp,sp,#160\nret\n");
static inline void *emu_prepare(char *stack, size_t size) {
    void **sp = (void **)(void *)(stack + size) - 20;
    memset(sp, 0, 20 * sizeof *sp);
    sp[11] = (void *)emu_entry; /* x30 */
    return sp;
}
#else
#error "the emulator knows how to switch stacks on x86-64 and aarch64 only"
#endif

static inline char *emu_stack(const EmuThread *t) {
    return emu.stacks + (size_t)(t - emu.thread) * EMU_STACK;
}

/* Switches from a thread to the scheduler. */
static inline void emu_yield(int state, const char *where) {
    EmuThread *t = emu.current;
    t->state = state;
    t->where = where;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(state == EMU_DONE ? NULL : &t->fake_stack, emu.scheduler_bottom,
                                   emu.scheduler_size);
#endif
    emu_switch(&t->sp, emu.scheduler_sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(t->fake_stack, NULL, NULL);
#endif
}

extern "C" __attribute__((used)) inline void emu_entry(void) {
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(NULL, &emu.scheduler_bottom, &emu.scheduler_size);
#endif
    emu.body(emu.arguments);
    if (emu.current->copies)
        emu_die("a thread ends with copies by cp.async that nobody waited for");
    if (emu.current->products)
        emu_die("a thread ends with products by wgmma that nobody waited for");
    emu_yield(EMU_DONE, "its end");
    abort();
}

/* Switches from the scheduler to a thread, until it yields. */
static inline void emu_resume(EmuThread *t) {
    emu.current = t;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&emu.scheduler_fake, emu_stack(t), EMU_STACK);
#endif
    emu_switch(&emu.scheduler_sp, t->sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(emu.scheduler_fake, NULL, NULL);
#endif
}

static inline int emu_same(const char *a, const char *b) { return a == b || !strcmp(a, b); }

/* Runs the threads of a warp until all are at a barrier of the block or have ended. */
static inline void emu_run_warp(EmuThread *first, int n, int backwards) {
    for (;;) {
        int waiting = 0;
        for (int i = 0; i < n; i++) {
            EmuThread *t = first + (backwards ? n - 1 - i : i);
            if (t->state == EMU_READY) emu_resume(t);
            waiting += t->state == EMU_AT_WARP_BARRIER;
        }
        if (!waiting) return;
        emu.current = first;
        if (n != 32) emu_die("a warp operation in a warp of fewer than 32 threads");
        for (int i = 0; i < n; i++)
            if (first[i].state != EMU_AT_WARP_BARRIER || !emu_same(first[i].where, first->where)) {
                emu.current = first + i;
                fprintf(stderr, "emulator: lane 0 is at %s, lane %d at %s\n", first->where, i,
                        first[i].where);
                emu_die("the threads of a warp are not at the same operation");
            }
        for (int i = 0; i < n; i++) first[i].state = EMU_READY;
    }
}

/* Releases warpgroups whose 128 threads are all at a barrier of the warpgroup (bar.sync id,
   128). Returns how many. */
static inline int emu_release_groups(int threads) {
    int released = 0;
    for (int first = 0; first < threads; first += 128) {
        int waiting = 0, n = threads - first < 128 ? threads - first : 128;
        for (int i = 0; i < n; i++) waiting += emu.thread[first + i].state == EMU_AT_GROUP_BARRIER;
        if (!waiting) continue;
        emu.current = emu.thread + first;
        if (waiting != 128) emu_die("the threads of a warpgroup are not at the same barrier");
        for (int i = 0; i < n; i++) emu.thread[first + i].state = EMU_READY;
        released++;
    }
    return released;
}

static inline void emu_run_block(int threads, int backwards) {
    int warps = (threads + 31) / 32;
    for (;;) {
        int done = 0, any = 0, count = 0, published = 0;
        for (int k = 0; k < warps; k++) {
            int w = backwards ? warps - 1 - k : k, n = threads - 32 * w;
            emu_run_warp(emu.thread + 32 * w, n < 32 ? n : 32, backwards);
        }
        if (emu_release_groups(threads)) continue;
        for (int i = 0; i < threads; i++) {
            EmuThread *t = &emu.thread[i];
            done += t->state == EMU_DONE;
            any |= t->vote;
            count += t->vote != 0;
            published += t->published;
            t->published = 0;
        }
        if (published == threads) memcpy(emu.seen, emu.shared, emu.dynamic_bytes);
        if (done == threads) return;
        for (int i = 0; i < threads; i++) {
            EmuThread *t = &emu.thread[i];
            emu.current = t;
            if (done) emu_die("some threads have ended where the others wait for the whole block");
            if (!emu_same(t->where, emu.thread[0].where))
                emu_die("the threads of a block are not at the same barrier");
            t->state = EMU_READY;
        }
        emu.votes_or = any;
        emu.votes_count = count;
    }
}

static inline void emu_wide_access(const void *p) {
    if ((uintptr_t)p % 16) emu_die("a 16-byte access of memory that is not aligned to 16 bytes");
}

/* Shared memory of a block on compute capability 9.0. 8.0 has 163 KiB, 8.6 and 8.9 have 99. */
#ifndef EMU_SHARED_LIMIT
#define EMU_SHARED_LIMIT (227 << 10)
#endif

/* Counts a kernel's static shared memory against the limit of a block. `counted` is the
   variable's own: the launch that has counted it. */
static inline void emu_static_shared(long *counted, size_t bytes) {
    if (*counted == emu.launches + 1) return;
    *counted = emu.launches + 1;
    emu.static_bytes += bytes;
    if (emu.dynamic_bytes + emu.static_bytes > EMU_SHARED_LIMIT)
        emu_die("too much shared memory, static and dynamic together");
}

static inline void emu_grid(const char *kernel, dim3 grid, dim3 block, size_t shared,
                            void (*body)(const void *), const void *arguments) {
    size_t threads = (size_t)block.x * block.y * block.z;
    emu.kernel = kernel;
    emu.current = NULL;
    if (!threads || threads > EMU_MAX_THREADS) emu_die("a block must have 1 to 1024 threads");
    if (!grid.x || !grid.y || !grid.z) emu_die("an empty grid");
    if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) emu_die("the grid is too large");
    if (shared > EMU_SHARED_LIMIT) emu_die("too much shared memory");
    emu.dynamic_bytes = shared;
    emu.static_bytes = 0;
    if (!emu.stacks) {
        emu.stacks = (char *)mmap(NULL, (size_t)EMU_STACK * EMU_MAX_THREADS, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (emu.stacks == MAP_FAILED) emu_die("out of memory: stacks");
    }
    emu.grid = grid;
    emu.block = block;
    emu.body = body;
    emu.arguments = arguments;
    emu.shared = NULL;
    size_t blocks = (size_t)grid.x * grid.y * grid.z;
    for (size_t n = 0; n < blocks; n++) {
        size_t b = emu.launches % 2 ? blocks - 1 - n : n;
        emu.index = dim3((unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y),
                         (unsigned)(b / grid.x / grid.y));
        void *memory;
        emu.blocks++;
        if (posix_memalign(&memory, 128, shared ? shared : 1))
            emu_die("out of memory: shared memory");
        emu.shared = (unsigned char *)memory;
        memset(emu.shared, 0xff, shared);
        emu.seen = (unsigned char *)malloc(shared ? shared : 1);
        if (!emu.seen) emu_die("out of memory: shared memory");
        memset(emu.seen, 0, shared);
        for (size_t i = 0; i < threads; i++) {
            EmuThread *t = &emu.thread[i];
            t->index = dim3((unsigned)(i % block.x), (unsigned)(i / block.x % block.y),
                            (unsigned)(i / block.x / block.y));
            t->lane = (int)(i % 32);
            t->warp = (int)(i / 32);
            t->state = EMU_READY;
            t->operations = t->copies = t->group = t->vote = 0;
            t->products = t->product_group = t->fenced = t->published = 0;
            t->issued = 0;
            t->sp = emu_prepare(emu_stack(t), EMU_STACK);
        }
        emu_run_block((int)threads, (int)((n + emu.launches / 2) % 2));
        free(emu.shared);
        free(emu.seen);
    }
    emu.current = NULL;
    emu.launches++;
}

/* Does work of the stream now, or records it if the stream is being captured. */
template <typename F> static inline void emu_do(const F &f) {
    if (emu.recording) emu.recording->push_back(f);
    else f();
}

/* Copies the arguments, as a launch does. */
template <typename... P>
static inline void emu_launch(const char *name, dim3 grid, dim3 block, size_t shared,
                              void (*kernel)(P...), std::type_identity_t<P>... a) {
    auto call = [=] { kernel(a...); };
    emu_do([=] {
        emu_grid(
            name, grid, block, shared, [](const void *c) { (*(const decltype(call) *)c)(); },
            &call);
    });
}

/* Ends the test for a call that a GPU refuses while a stream is being captured. */
static inline void emu_not_captured(const char *call) {
    if (!emu.recording) return;
    fprintf(stderr, "emulator: %s while the stream is being captured\n", call);
    abort();
}

/* ---------------------------------------------------------------------------------------------- */
/* Barriers, shuffles, votes */

static inline void __syncthreads(void) { emu_yield(EMU_AT_BLOCK_BARRIER, "__syncthreads"); }

static inline int __syncthreads_or(int vote) {
    emu.current->vote = vote != 0;
    emu_yield(EMU_AT_BLOCK_BARRIER, "__syncthreads_or");
    emu.current->vote = 0;
    return emu.votes_or;
}

static inline int __syncthreads_count(int vote) {
    emu.current->vote = vote != 0;
    emu_yield(EMU_AT_BLOCK_BARRIER, "__syncthreads_count");
    emu.current->vote = 0;
    return emu.votes_count;
}

/* Every lane contributes `bytes` bytes and gets those of all 32 lanes, EMU_EXCHANGE_BYTES apart.
   They stay valid during the lane's next warp operation. */
static inline const unsigned char *emu_exchange(const void *mine, size_t bytes, const char *where) {
    EmuThread *t = emu.current;
    unsigned char(*slots)[EMU_EXCHANGE_BYTES] = emu.warp[t->warp].exchange[t->operations++ % 2];
    if (bytes > EMU_EXCHANGE_BYTES) emu_die("an exchange of too many bytes");
    memcpy(slots[t->lane], mine, bytes);
    emu_yield(EMU_AT_WARP_BARRIER, where);
    return slots[0];
}

static inline void emu_whole_warp(unsigned mask) {
    if (mask != 0xffffffffu) emu_die("only whole warps are emulated");
}

static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emu_whole_warp(mask);
    emu_exchange("", 1, "__syncwarp");
}

template <typename T> static inline T emu_shuffle(T v, int from, const char *where) {
    T out;
    const unsigned char *all = emu_exchange(&v, sizeof v, where);
    memcpy(&out, all + (size_t)(from & 31) * EMU_EXCHANGE_BYTES, sizeof out);
    return out;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    emu_whole_warp(mask);
    int lane = emu.current->lane;
    return emu_shuffle(v, (lane & ~(width - 1)) + (from & (width - 1)), "__shfl_sync");
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
    emu_whole_warp(mask);
    int lane = emu.current->lane, from = lane ^ with;
    return emu_shuffle(v, from / width > lane / width ? lane : from, "__shfl_xor_sync");
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    emu_whole_warp(mask);
    int lane = emu.current->lane, from = lane + (int)by;
    return emu_shuffle(v, lane % width + (int)by >= width ? lane : from, "__shfl_down_sync");
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    emu_whole_warp(mask);
    int lane = emu.current->lane, from = lane - (int)by;
    return emu_shuffle(v, lane % width < (int)by ? lane : from, "__shfl_up_sync");
}
static inline unsigned __ballot_sync(unsigned mask, int vote) {
    emu_whole_warp(mask);
    unsigned bits = 0;
    int v = vote != 0;
    const unsigned char *all = emu_exchange(&v, sizeof v, "__ballot_sync");
    for (int i = 0; i < 32; i++) bits |= (unsigned)all[i * EMU_EXCHANGE_BYTES] << i;
    return bits;
}
static inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
static inline int __all_sync(unsigned mask, int vote) {
    return __ballot_sync(mask, vote) == 0xffffffffu;
}

/* ---------------------------------------------------------------------------------------------- */
/* Asynchronous copies to shared memory take effect when they are waited for */

static inline void emu_cp_async(void *to, const void *from, int bytes) {
    EmuThread *t = emu.current;
    if (((uintptr_t)to | (uintptr_t)from) % (uintptr_t)bytes)
        emu_die("cp.async of unaligned memory");
    if (t->copies == EMU_COPIES) emu_die("too many copies by cp.async under way");
    t->copy[t->copies++] = {to, from, bytes, t->group};
}
static inline void emu_cp_async_commit(void) { emu.current->group++; }
/* Completes all but the latest `left` groups. */
static inline void emu_cp_async_wait(int left) {
    EmuThread *t = emu.current;
    int kept = 0;
    for (int i = 0; i < t->copies; i++) {
        if (t->copy[i].group < t->group - left)
            memcpy(t->copy[i].to, t->copy[i].from, (size_t)t->copy[i].bytes);
        else t->copy[kept++] = t->copy[i];
    }
    t->copies = kept;
}

/* ---------------------------------------------------------------------------------------------- */
/* The run-time library: the device is this process, and every call is done when it returns */

typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
typedef void *cudaStream_t;
typedef void *cudaEvent_t;
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
};
static inline const char *cudaGetErrorString(cudaError_t e) {
    return e ? "out of memory" : "no error";
}
static inline cudaError_t cudaGetLastError(void) { return cudaSuccess; }
static inline cudaError_t cudaMalloc(void **p, size_t bytes) {
    emu_not_captured("cudaMalloc");
    *p = malloc(bytes ? bytes : 1);
    if (!*p) return cudaErrorMemoryAllocation;
    memset(*p, 0xff, bytes);
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *p) {
    emu_not_captured("cudaFree");
    free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaMalloc(p, bytes); }
static inline cudaError_t cudaFreeHost(void *p) { return cudaFree(p); }
static inline cudaError_t cudaMemsetAsync(void *p, int byte, size_t n, cudaStream_t) {
    emu_do([=] { memset(p, byte, n); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind,
                                          cudaStream_t) {
    emu_do([=] { memcpy(to, from, n); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from,
                                            size_t from_pitch, size_t bytes, size_t rows,
                                            cudaMemcpyKind, cudaStream_t) {
    emu_do([=] {
        for (size_t r = 0; r < rows; r++)
            memcpy((char *)to + r * to_pitch, (const char *)from + r * from_pitch, bytes);
    });
    return cudaSuccess;
}
enum { cudaEventDisableTiming = 2 };
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = NULL;
    return cudaSuccess;
}
/* An event with timing holds the host's milliseconds. */
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = calloc(1, sizeof(double));
    return *e ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return cudaSuccess;
}
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = (float)(*(double *)to - *(double *)from);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamCreate(cudaStream_t *s) {
    *s = NULL;
    return cudaSuccess;
}

/* One device with 1 GiB, or with CM_EMU_MEMORY bytes, by which tests make the device too small. */
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem, sharedMemPerBlockOptin;
};
static inline size_t emu_memory(void) {
    const char *text = getenv("CM_EMU_MEMORY");
    return text ? (size_t)strtoull(text, NULL, 10) : (size_t)1 << 30;
}
/* A driver starts threads at the first call. They inherit the signals that are blocked at that
   time, so a program that blocks signals later can be ended by a signal that such a thread gets. */
static inline void *emu_driver_thread(void *) {
    for (;;) pause();
    return NULL;
}
static inline cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    if (!emu.driver && !pthread_create(&emu.driver, NULL, emu_driver_thread, NULL))
        pthread_detach(emu.driver);
    return cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
enum { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor };
static inline cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
    return cudaSuccess;
}
static inline cudaError_t cudaRuntimeGetVersion(int *v) {
    *v = 13000;
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *room, size_t *all) {
    *room = *all = emu_memory();
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    *p = {"emulator", 9, 0, 1, emu_memory(), EMU_SHARED_LIMIT};
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    emu_not_captured("cudaStreamSynchronize");
    return cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
    emu_not_captured("cudaEventSynchronize");
    return cudaSuccess;
}
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    if (e) *(double *)e = 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
    return cudaSuccess;
}

/* ---------------------------------------------------------------------------------------------- */
/* Graphs: the work between the begin and the end of a capture is not done but recorded, with copies
   of its arguments. A launch of the graph does the work. The order of blocks alternates from launch
   to launch, so it differs from replay to replay. */

typedef std::vector<std::function<void()>> *cudaGraph_t;
typedef std::vector<std::function<void()>> *cudaGraphExec_t;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
static inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    emu_not_captured("cudaStreamBeginCapture");
    emu.recording = new std::vector<std::function<void()>>;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    *graph = emu.recording;
    emu.recording = NULL;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *work, cudaGraph_t graph,
                                               unsigned long long) {
    *work = new std::vector<std::function<void()>>(*graph);
    return cudaSuccess;
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t work) {
    delete work;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t work, cudaStream_t) {
    emu_not_captured("cudaGraphLaunch");
    for (const std::function<void()> &piece : *work) piece();
    return cudaSuccess;
}

#endif
