/*
What four warps, a warpgroup, compute with on compute capability 9.0 (sm_90a): wgmma.mma_async,
asynchronous matrix products. The tensor cores read the right side, and perhaps the left side, from
shared memory.

    C (64,N) += A (64,16) B (16,N)        A and B bf16, C float, N = 64 or 128

C is in registers: warp w of the group has its rows [16 w, 16 w + 16), as N / 8 FragC of mma.cuh
side by side. In registers A is a FragA with each warp's 16 rows. So the result of one product
becomes the left side of the next, as with mma.sync. ("Register Fragments and Shared Memory Matrix
Layouts" for wgmma .k16, PTX manual.)

A descriptor of 64 bits locates a matrix in shared memory ("Matrix Descriptor Format"; addresses are
>> 4):

    bits  0-13    where the matrix starts in shared memory
    bits 16-29    leading-dimension byte offset, LBO
    bits 32-45    stride-dimension byte offset, SBO
    bits 49-51    base offset; 0, as the pattern of 8 rows of 128 bytes starts at multiples of 1024
    bits 62-63    swizzle; 1 is the swizzle of 128 bytes

Only that swizzle is used: the 16-byte piece at address x lies at x ^ (x / 128 % 8) * 16, which is
where Tile<bf16,64> puts it if the tile starts at a multiple of 1024. What the offsets mean depends
on the direction of the matrix ("Strides"; m is the row of A or the column of B, k the index of the
sums, in elements of 2 bytes):

    K-major:   (m, k) at start + m / 8 SBO + m % 8 * 128 + 2 k
               SBO = 1024 where rows follow each other. LBO is not used, because 16 k are within a
               row of 128 bytes. The next 16 k start 32 bytes further: the swizzle depends on the
               bits of the address, not on the distance from the start.
    MN-major:  (m, k) at start + m / 64 LBO + 2 (m % 64) + k / 8 SBO + k % 8 * 128
               (transposed: rows of memory are k). SBO = 1024; LBO is the distance of the next 64
               columns. The next 16 k start 2048 bytes further.

A product is issued, committed with others to a group, and done when the group has been waited for.
Until then nothing may touch its accumulators and its fragments of A. The tensor cores access memory
through another proxy: they see what threads have written to shared memory (by stores, or by
cp.async that was waited for) after wgmma_publish by the writers and a barrier. The order of a use:

    stores or cp_async_wait; wgmma_publish; __syncthreads;
    wgmma_hold of all registers that take part; wgmma_fence; wgmma...; wgmma_commit;
    wgmma_wait; wgmma_hold of the result

wgmma_hold makes no instruction. The compiler does not know the asynchronous effect of the other
calls; wgmma_hold keeps it from moving accesses to these registers across them.

Under the emulator descriptors are decoded as above, and addresses count from a base that is not a
multiple of 1024. A product is computed when it is waited for, from the registers of that time and
from shared memory, which must be as all threads last published it. The four warps have to issue
equal products in one order.
*/
#ifndef CM_CUDA_WGMMA_CUH
#define CM_CUDA_WGMMA_CUH

#include "mma.cuh"

enum { WARPGROUP = 128, WGMMA_ALIGN = 1024 }; /* threads; bytes in the swizzle's pattern */

/* Whether this pass of the compiler makes code for a device with these instructions. */
#if defined(CM_EMU) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int wgmma_compiled = 1;
#else
constexpr int wgmma_compiled = 0;
#endif

#ifdef CM_EMU

enum { EMU_SHARED_BASE = 1040 }; /* as if 1 KiB and 16 bytes of static memory came first */
static inline unsigned shared_address(const void *p) {
    return (unsigned)((const unsigned char *)p - emu.shared) + EMU_SHARED_BASE;
}

struct EmuProduct {
    int group, N, trans_a, trans_b, add;
    uint64_t a, b;
    const FragA<__nv_bfloat16> *fragment; /* the left side; NULL: `a` is its descriptor */
    FragC *c;
};
enum { EMU_PRODUCTS = 128, EMU_KEPT = 512, EMU_GROUPS = 8 };
struct EmuWgmma {
    EmuProduct products[EMU_MAX_THREADS][EMU_PRODUCTS]; /* in flight */
    /* The latest products of each warpgroup. Its other warps have to issue equal ones. */
    EmuProduct latest[EMU_GROUPS][EMU_KEPT];
    long issued[EMU_GROUPS], block[EMU_GROUPS]; /* how many, and in which block */
};
inline EmuWgmma emu_wgmma;

static inline float emu_bf16(const unsigned char *p) {
    __nv_bfloat16 x;
    memcpy(&x, p, sizeof x);
    return (float)x;
}

/* Element (m, k) of the matrix of a descriptor. */
static inline float emu_matrix_element(uint64_t descriptor, int transposed, int m, int k) {
    unsigned start = (unsigned)(descriptor & 0x3fff) << 4;
    unsigned leading = (unsigned)(descriptor >> 16 & 0x3fff) << 4;
    unsigned stride = (unsigned)(descriptor >> 32 & 0x3fff) << 4, r = (unsigned)m, c = (unsigned)k,
             at = start;
    if (descriptor >> 62 != 1) emu_die("wgmma: a swizzle other than that of 128 bytes");
    if (descriptor >> 49 & 7) emu_die("wgmma: a base offset");
    if (descriptor & 0x3ff1c000c000c000u) emu_die("wgmma: reserved bits of a descriptor are set");
    if (start & 0x380) emu_die("wgmma: the matrix does not start with the swizzle's pattern");
    if (transposed) at += r / 64 * leading + r % 64 * 2 + c / 8 * stride + c % 8 * 128;
    else at += r / 8 * stride + r % 8 * 128 + c * 2;
    at ^= (at >> 7 & 7) << 4;
    if (at < EMU_SHARED_BASE || at - EMU_SHARED_BASE + 2 > emu.dynamic_bytes)
        emu_die("wgmma reads outside of shared memory");
    at -= EMU_SHARED_BASE;
    unsigned short now, seen;
    memcpy(&now, emu.shared + at, 2);
    memcpy(&seen, emu.seen + at, 2);
    if (now != seen)
        emu_die("wgmma reads shared memory that was written without fence.proxy.async and a "
                "barrier, or too early");
    return emu_bf16(emu.shared + at);
}

/* Computes this thread's part of a product: two rows, and two columns of each fragment. */
static inline void emu_do_product(const EmuProduct *p) {
    int lane = warp_lane(), g = lane / 4, t = lane % 4,
        row = (int)threadIdx.x % WARPGROUP / 32 * 16 + g;
    float left[2][16];
    if (p->fragment) {
        const unsigned char *all = emu_exchange(p->fragment, sizeof *p->fragment, "wgmma");
        for (int k = 0; k < 16; k++)
            for (int half = 0; half < 2; half++) {
                const unsigned char *theirs = all + (4 * g + k % 8 / 2) * EMU_EXCHANGE_BYTES;
                left[half][k] = emu_bf16(theirs + 2 * (k % 2 + 2 * half + k / 8 * 4));
            }
    } else
        for (int k = 0; k < 16; k++)
            for (int half = 0; half < 2; half++)
                left[half][k] = emu_matrix_element(p->a, p->trans_a, row + 8 * half, k);
    for (int n = 0; n < p->N / 8; n++)
        for (int e = 0; e < 2; e++) {
            float sum[2] = {p->add ? p->c[n].x[e] : 0, p->add ? p->c[n].x[e + 2] : 0};
            for (int k = 0; k < 16; k++) {
                float right = emu_matrix_element(p->b, p->trans_b, 8 * n + 2 * t + e, k);
                sum[0] += left[0][k] * right;
                sum[1] += left[1][k] * right;
            }
            p->c[n].x[e] = sum[0];
            p->c[n].x[e + 2] = sum[1];
        }
}

/* Checks that all threads of a warpgroup issue equal products. */
static inline void emu_agree(const EmuProduct *p) {
    EmuThread *t = emu.current;
    int group = t->warp / 4;
    long &issued = emu_wgmma.issued[group];
    if (emu_wgmma.block[group] != emu.blocks) {
        emu_wgmma.block[group] = emu.blocks;
        issued = 0;
    }
    long n = t->issued++;
    EmuProduct *q = &emu_wgmma.latest[group][n % EMU_KEPT];
    if (n == issued) {
        *q = *p;
        issued++;
        return;
    }
    if (n < issued - EMU_KEPT) emu_die("wgmma: the warps of a warpgroup are far apart");
    if (p->N != q->N || p->trans_a != q->trans_a || p->trans_b != q->trans_b || p->add != q->add ||
        p->a != q->a || p->b != q->b || !p->fragment != !q->fragment)
        emu_die("wgmma: the threads of a warpgroup issue different products");
}
static inline void emu_issue(EmuProduct p) {
    EmuThread *t = emu.current;
    if (t->products == EMU_PRODUCTS) emu_die("too many products by wgmma under way");
    if (!t->fenced) emu_die("wgmma without wgmma.fence before");
    p.group = t->product_group;
    emu_agree(&p);
    if (!p.add)
        for (int n = 0; n < p.N / 8; n++) p.c[n] = {{NAN, NAN, NAN, NAN}};
    emu_wgmma.products[t - emu.thread][t->products++] = p;
}

template <int TRANS_A, int TRANS_B, int NT>
static inline void wgmma(FragC (&c)[NT], uint64_t a, uint64_t b, int add) {
    emu_issue({0, 8 * NT, TRANS_A, TRANS_B, add, a, b, NULL, c});
}
template <int TRANS_B, int NT>
static inline void wgmma(FragC (&c)[NT], const FragA<__nv_bfloat16> &a, uint64_t b, int add) {
    emu_issue({0, 8 * NT, 0, TRANS_B, add, 0, b, &a, c});
}
static inline void wgmma_publish(void) { emu.current->published = 1; }
static inline void wgmma_fence(void) { emu.current->fenced = 1; }
static inline void wgmma_commit(void) { emu.current->product_group++; }
template <int LEFT> static inline void wgmma_wait(void) {
    EmuThread *t = emu.current;
    EmuProduct *all = emu_wgmma.products[t - emu.thread];
    int kept = 0, n = t->products;
    for (int i = 0; i < n; i++) {
        if (all[i].group < t->product_group - LEFT) emu_do_product(&all[i]);
        else all[kept++] = all[i];
    }
    t->products = kept;
    t->fenced = 0; /* after this the threads use the registers, which takes a new fence */
}
template <int NT> static inline void wgmma_hold(FragC (&)[NT]) {}
template <int N> static inline void wgmma_hold(FragA<__nv_bfloat16> (&)[N]) {}
static inline void warpgroup_barrier(int) { emu_yield(EMU_AT_GROUP_BARRIER, "warpgroup_barrier"); }

#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define WGMMA_C(I) "+f"(c[I].x[0]), "+f"(c[I].x[1]), "+f"(c[I].x[2]), "+f"(c[I].x[3])
#define WGMMA_C8(I)                                                                                \
    WGMMA_C(I), WGMMA_C(I + 1), WGMMA_C(I + 2), WGMMA_C(I + 3), WGMMA_C(I + 4), WGMMA_C(I + 5),    \
        WGMMA_C(I + 6), WGMMA_C(I + 7)
#define WGMMA_32                                                                                   \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%"  \
    "25,%26,%27,%28,"                                                                              \
    "%29,%30,%31"
#define WGMMA_64                                                                                   \
    WGMMA_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%"  \
             "52,%53,%54,%55,"                                                                     \
             "%56,%57,%58,%59,%60,%61,%62,%63"

/* c = A B, or with `add` c += A B, from the descriptors of A and B. TRANS: the matrix is
   MN-major. */
template <int TRANS_A, int TRANS_B, int NT>
__device__ static inline void wgmma(FragC (&c)[NT], uint64_t a, uint64_t b, int add) {
    static_assert(NT == 8 || NT == 16, "64 or 128 columns");
    if constexpr (NT == 8)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_32 "}, "
                     "%32, %33, p, 1, 1, %35, %36;\n}"
                     : WGMMA_C8(0)
                     : "l"(a), "l"(b), "r"(add), "n"(TRANS_A), "n"(TRANS_B));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_64 "}, "
                     "%64, %65, p, 1, 1, %67, %68;\n}"
                     : WGMMA_C8(0), WGMMA_C8(8)
                     : "l"(a), "l"(b), "r"(add), "n"(TRANS_A), "n"(TRANS_B));
}

/* c = A B, or with `add` c += A B, with A in registers. */
template <int TRANS_B, int NT>
__device__ static inline void wgmma(FragC (&c)[NT], const FragA<__nv_bfloat16> &a, uint64_t b,
                                    int add) {
    static_assert(NT == 8 || NT == 16, "64 or 128 columns");
    if constexpr (NT == 8)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_32 "}, "
                     "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
                     : WGMMA_C8(0)
                     : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "r"(add),
                       "n"(TRANS_B));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_64 "}, "
                     "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
                     : WGMMA_C8(0), WGMMA_C8(8)
                     : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b), "r"(add),
                       "n"(TRANS_B));
}

/* A barrier for the threads of warpgroup `group` of the block. Barrier 0 is __syncthreads. */
__device__ static inline void warpgroup_barrier(int group) {
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"((int)WARPGROUP) : "memory");
}
/* Makes what this thread has written to shared memory visible to products issued after the next
   barrier. */
__device__ static inline void wgmma_publish(void) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/* Makes what this thread has written to registers visible to products issued later. */
__device__ static inline void wgmma_fence(void) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ static inline void wgmma_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT>
__device__ static inline void wgmma_wait(void) { /* until at most LEFT groups are in flight */
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
template <int NT> __device__ static inline void wgmma_hold(FragC (&c)[NT]) {
    UNROLLED_FOR (int n = 0; n < NT; n++) asm volatile("" : WGMMA_C(n)::"memory");
}
template <int N> __device__ static inline void wgmma_hold(FragA<__nv_bfloat16> (&a)[N]) {
    UNROLLED_FOR (int n = 0; n < N; n++)
        asm volatile(""
                     : "+r"(a[n].x[0]), "+r"(a[n].x[1]), "+r"(a[n].x[2]),
                       "+r"(a[n].x[3])::"memory");
}

#else

/* Code for other devices, on which no host starts these kernels: a kernel that gets here stops. */
__device__ static inline void wgmma_missing(void) {
#ifdef __CUDA_ARCH__
    __trap();
#endif
}
template <int TRANS_A, int TRANS_B, int NT>
__device__ static inline void wgmma(FragC (&)[NT], uint64_t, uint64_t, int) {
    wgmma_missing();
}
template <int TRANS_B, int NT>
__device__ static inline void wgmma(FragC (&)[NT], const FragA<__nv_bfloat16> &, uint64_t, int) {
    wgmma_missing();
}
__device__ static inline void warpgroup_barrier(int) {}
__device__ static inline void wgmma_publish(void) { wgmma_missing(); }
__device__ static inline void wgmma_fence(void) {}
__device__ static inline void wgmma_commit(void) {}
template <int LEFT> __device__ static inline void wgmma_wait(void) {}
template <int NT> __device__ static inline void wgmma_hold(FragC (&)[NT]) {}
template <int N> __device__ static inline void wgmma_hold(FragA<__nv_bfloat16> (&)[N]) {}

#endif

/* ---------------------------------------------------------------------------------------------- */

/* A matrix of ROWS rows of D bf16 in shared memory, which begins at a multiple of 1024 bytes:
   panels of 64 columns, one after the other, each a Tile<bf16,64>. */
template <int ROWS, int D> struct Panels {
    __nv_bfloat16 *p;
    static constexpr int PANEL = ROWS * 64; /* elements of a panel */
    static_assert(D % 64 == 0 && ROWS % 8 == 0, "whole panels of whole patterns");

    __device__ __nv_bfloat16 *at(unsigned row, unsigned col) const {
        return p + col / 64 * PANEL + Tile<__nv_bfloat16, 64>::place(row, col % 64);
    }
    /* Descriptor of the rows from `row` on (a multiple of 8) and of columns [col, col + 16) (col
       a multiple of 16), as a side of a product whose sums run along the columns: K-major. */
    __device__ uint64_t along(int row, int col) const {
        return describe(col / 64 * PANEL + row * 64 + col % 64, 16);
    }
    /* Descriptor of rows [row, row + 16) and of the columns from `col` on (a multiple of 64), as
       a side of a product whose sums run along the rows: MN-major. */
    __device__ uint64_t down(int row, int col) const {
        return describe(col / 64 * PANEL + row * 64, PANEL * (int)sizeof *p);
    }

  private:
    /* No carry leaves the field, because shared addresses are below 2^18. */
    __device__ uint64_t describe(int at, unsigned leading) const {
        unsigned low =
            (shared_address(p) >> 4 | leading >> 4 << 16) + (unsigned)at * (unsigned)sizeof *p / 16;
        return (uint64_t)(1u << 30 | WGMMA_ALIGN >> 4) << 32 | low;
    }
};

/* The first multiple of 1024 bytes in shared memory at or after p. */
template <typename T> __device__ static inline T *wgmma_aligned(T *p) {
    return p + (0u - shared_address(p)) % WGMMA_ALIGN / sizeof(T);
}

#endif
