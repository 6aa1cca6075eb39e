/*
What a warp computes with: matrix products on the tensor cores (mma.sync m16n8k16), the fragments
that they take, their loading from tiles in shared memory (ldmatrix), asynchronous copies to shared
memory (cp.async), and the hand-over of numbers from block to block (acquire and release). This file
and wgmma.cuh have all inline PTX of the backend. Compute capability 8.0 and up.

    C (16,8) += A (16,16) B (16,8)        A and B bf16, C float

A fragment is a lane's part of such a matrix. With g = lane / 4 and t = lane % 4, element e of it is
("Matrix Fragments for mma.m16n8k16" of the PTX manual)

    A   row g + 8 (e / 2 % 2)     column 2 t + e % 2 + 8 (e / 4)     e < 8
    B   row 2 t + e % 2 + 8 (e / 2)     column g                     e < 4
    C   row g + 8 (e / 2)         column 2 t + e % 2                 e < 4

So two C side by side are an A, element by element: the result of one product becomes the left side
of the next without leaving the registers. For float, fragments have this layout with float
elements, and mma sums in fp32: the kernels are the same, slower and exact.

Under the emulator fragments have this layout too, ldmatrix takes the same addresses, and every
instruction is a collective operation of the warp. Blocks run one after another, so a block that
would have to wait ends the test.
*/
#ifndef CM_CUDA_MMA_CUH
#define CM_CUDA_MMA_CUH

#include "runtime.cuh"

template <typename T> struct FragA;
template <typename T> struct FragB;
template <> struct FragA<__nv_bfloat16> { unsigned x[4]; }; /* elements 2 i and 2 i + 1 in x[i] */
template <> struct FragB<__nv_bfloat16> { unsigned x[2]; };
template <> struct FragA<float> { float x[8]; };
template <> struct FragB<float> { float x[4]; };
struct FragC {
    float x[4];
};

__device__ static inline int warp_lane(void) { return (int)threadIdx.x % 32; }
/* Row and column of element e of a C. */
__device__ static inline int frag_row(int e, int lane = warp_lane()) {
    return lane / 4 + 8 * (e / 2);
}
__device__ static inline int frag_col(int e, int lane = warp_lane()) {
    return 2 * (lane % 4) + e % 2;
}

/* ---------------------------------------------------------------------------------------------- */
/* Tiles: rows of D elements of T in shared memory. ldmatrix and 16-byte copies touch 8 rows at a
   time, at equal columns. To put these into different banks, the 16-byte pieces of a row are
   permuted: piece c of row r is at c ^ r % 8 (in shorter rows at c ^ r / 2 % 4, because two of
   them fill the 128 bytes of the banks). */

template <typename T, int D> struct Tile {
    T *p;
    static constexpr int PIECE = 16 / (int)sizeof(T), PIECES = D / PIECE;

    /* Address of (row, col). The other elements of its piece follow. */
    __device__ T *at(unsigned row, unsigned col) const { return p + place(row, col); }
    /* Address of (row + r, col + c), where row is a multiple of 8 and no bit is set in both col
       and c. If the compiler knows row and col, there is little to compute. */
    __device__ T *at(unsigned row, unsigned col, unsigned r, unsigned c) const {
        return p + row * D + (place(r, c) ^ col);
    }
    __device__ static unsigned place(unsigned row, unsigned col) {
        unsigned turn = PIECES >= 8 ? row % 8 : row / (8 / PIECES) % PIECES;
        return row * D + (col / PIECE ^ turn) * PIECE + col % PIECE;
    }
};

__device__ static inline void store_pair(float *p, float x, float y) {
    *(float2 *)(void *)p = make_float2(x, y);
}
__device__ static inline void store_pair(__nv_bfloat16 *p, float x, float y) {
    *(__nv_bfloat162 *)(void *)p = __floats2bfloat162_rn(x, y);
}
__device__ static inline unsigned pack_pair(float x, float y) {
    union {
        __nv_bfloat162 pair;
        unsigned bits;
    } u = {__floats2bfloat162_rn(x, y)};
    return u.bits;
}

/* ---------------------------------------------------------------------------------------------- */
/* instructions */

#ifdef CM_EMU

static inline float fast_exp2(float x) { return exp2f(x); }
static inline int fresh_thread(void) { return (int)threadIdx.x; }

template <int BYTES> static inline void cp_async(void *to, const void *from) {
    emu_cp_async(to, from, BYTES);
}
static inline void cp_async_commit(void) { emu_cp_async_commit(); }
template <int LEFT> static inline void cp_async_wait(void) { emu_cp_async_wait(LEFT); }

static inline void publish_count(int *count, int value) { *count = value; }
static inline int await_count(const int *count, int least) {
    if (*count < least) emu_die("a block waits for a block that has not run");
    return *count;
}
static inline float4 load_l2(const float4 *p) {
    emu_wide_access(p);
    return *p;
}
static inline void store_l2(float4 *p, float4 x) {
    emu_wide_access(p);
    *p = x;
}

/* Lane 8 j + r supplies row r of matrix j. Every lane gets two elements of each of the four
   matrices. */
template <int TRANSPOSED> static inline void ldmatrix(unsigned (&x)[4], const void *row) {
    if ((uintptr_t)row % 16) emu_die("ldmatrix of an unaligned row");
    const unsigned char *all = emu_exchange(row, 16, TRANSPOSED ? "ldmatrix.trans" : "ldmatrix");
    int g = warp_lane() / 4, t = warp_lane() % 4;
    for (int j = 0; j < 4; j++) {
        unsigned short pair[2];
        for (int i = 0; i < 2; i++) {
            int r = TRANSPOSED ? 2 * t + i : g, c = TRANSPOSED ? g : 2 * t + i;
            memcpy(&pair[i], all + (8 * j + r) * EMU_EXCHANGE_BYTES + 2 * c, 2);
        }
        memcpy(&x[j], pair, 4);
    }
}

/* Element e of a fragment that begins `at` bytes into what a lane has supplied. */
template <typename T>
static inline float emu_element(const unsigned char *all, int lane, size_t at, int e) {
    T x;
    memcpy(&x, all + lane * EMU_EXCHANGE_BYTES + at + (size_t)e * sizeof(T), sizeof x);
    return (float)x;
}
template <typename T> static inline void mma(FragC &c, const FragA<T> &a, const FragB<T> &b) {
    struct {
        FragA<T> a;
        FragB<T> b;
    } mine = {a, b};
    const unsigned char *all = emu_exchange(&mine, sizeof mine, "mma");
    /* the first lanes that hold the row and the column */
    int row = warp_lane() / 4 * 4, col = 8 * (warp_lane() % 4);
    for (int k = 0; k < 16; k++) {
        int t = k % 8 / 2, high = k / 8;
        float a0 = emu_element<T>(all, row + t, 0, k % 2 + 4 * high);
        float a1 = emu_element<T>(all, row + t, 0, k % 2 + 4 * high + 2);
        float b0 = emu_element<T>(all, col + t, sizeof mine.a, k % 2 + 2 * high);
        float b1 = emu_element<T>(all, col + 4 + t, sizeof mine.a, k % 2 + 2 * high);
        c.x[0] += a0 * b0;
        c.x[1] += a0 * b1;
        c.x[2] += a1 * b0;
        c.x[3] += a1 * b1;
    }
}

#else

/* 2^x to two units in the last place. Results below 2^-126 are 0. */
__device__ static inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* threadIdx.x, read again. Values derived from it in a loop are then computed in the loop,
   instead of occupying registers around it. */
__device__ static inline int fresh_thread(void) {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

__device__ static inline unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

/* Copies BYTES (4 or 16; both addresses aligned to BYTES) from global to shared memory. The
   thread sees the copy after waiting for the group in which it was committed, other threads
   after the next barrier. */
template <int BYTES> __device__ static inline void cp_async(void *to, const void *from) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
                     "l"(from)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)),
                     "l"(from), "n"(BYTES)
                     : "memory");
}
__device__ static inline void cp_async_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LEFT>
__device__ static inline void cp_async_wait(void) { /* until at most LEFT groups are in flight */
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* How a block hands numbers in global memory to a block that runs beside it. The giver: all
   threads store; __syncthreads(); one thread publishes a count. The taker: one thread awaits the
   count, and gets the count that it saw, which may be larger; __syncthreads(); all threads load.
   Release and acquire at the scope of the GPU are transitive through the barriers of the blocks
   ("Causality order" of the PTX manual), so the other threads need no fence. A kernel that
   awaits a count must make sure that the giver is running or has ended. */
__device__ static inline void publish_count(int *count, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(count), "r"(value) : "memory");
}
__device__ static inline int await_count(const int *count, int least) {
    for (;;) {
        int seen;
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
        if (seen >= least) return seen;
        __nanosleep(40);
    }
}
/* Loads and stores of such numbers. They go to the L2 cache, which all blocks share, because an
   L1 cache may hold old lines. They are volatile, so that no compiler moves them across the
   barriers. */
__device__ static inline float4 load_l2(const float4 *p) {
    float4 x;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(p)
                 : "memory");
    return x;
}
__device__ static inline void store_l2(float4 *p, float4 x) {
    asm volatile("st.global.cg.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(x.x), "f"(x.y),
                 "f"(x.z), "f"(x.w)
                 : "memory");
}

template <int TRANSPOSED>
__device__ static inline void ldmatrix(unsigned (&x)[4], const void *row) {
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(shared_address(row))
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(shared_address(row))
                     : "memory");
}

__device__ static inline void mma(FragC &c, const FragA<__nv_bfloat16> &a,
                                  const FragB<__nv_bfloat16> &b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}

__device__ static inline void mma(FragC &c, const FragA<float> &a, const FragB<float> &b) {
    /* the first lanes that hold the row and the column */
    int row = warp_lane() / 4 * 4, col = 8 * (warp_lane() % 4);
    UNROLLED_FOR (int k = 0; k < 16; k++) {
        int t = k % 8 / 2, high = k / 8;
        float a0 = __shfl_sync(FULL_WARP, a.x[k % 2 + 4 * high], row + t);
        float a1 = __shfl_sync(FULL_WARP, a.x[k % 2 + 4 * high + 2], row + t);
        float b0 = __shfl_sync(FULL_WARP, b.x[k % 2 + 2 * high], col + t);
        float b1 = __shfl_sync(FULL_WARP, b.x[k % 2 + 2 * high], col + 4 + t);
        c.x[0] += a0 * b0;
        c.x[1] += a0 * b1;
        c.x[2] += a1 * b0;
        c.x[3] += a1 * b1;
    }
}

#endif

/* ---------------------------------------------------------------------------------------------- */
/* Fragments from tiles; `lane` is the calling lane */

/* A = the (16,16) of the tile from (row, col) on. All rows and columns are multiples of 16. */
template <int D>
__device__ static inline void load_a(FragA<__nv_bfloat16> &a, Tile<__nv_bfloat16, D> tile, int row,
                                     int col, int lane = warp_lane()) {
    ldmatrix<0>(a.x, tile.at(row, col, lane % 16, lane / 16 * 8));
}

/* A = the transpose of the (16,16) of the tile from (row, col) on. */
template <int D>
__device__ static inline void load_a_transposed(FragA<__nv_bfloat16> &a,
                                                Tile<__nv_bfloat16, D> tile, int row, int col,
                                                int lane = warp_lane()) {
    ldmatrix<1>(a.x, tile.at(row, col, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
}

/* Two B side by side, (16,16), from a tile that holds their transpose: the columns of B are rows
   of the tile from `row` on, and the terms of the sums are its columns from `col` on. */
template <int D>
__device__ static inline void load_b(FragB<__nv_bfloat16> (&b)[2], Tile<__nv_bfloat16, D> tile,
                                     int row, int col, int lane = warp_lane()) {
    unsigned x[4];
    ldmatrix<0>(x, tile.at(row, col, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
    b[0].x[0] = x[0];
    b[0].x[1] = x[1];
    b[1].x[0] = x[2];
    b[1].x[1] = x[3];
}

/* Two B side by side, (16,16), that the tile holds untransposed from (row, col) on. */
template <int D>
__device__ static inline void load_b_plain(FragB<__nv_bfloat16> (&b)[2],
                                           Tile<__nv_bfloat16, D> tile, int row, int col,
                                           int lane = warp_lane()) {
    unsigned x[4];
    ldmatrix<1>(x, tile.at(row, col, lane % 16, lane / 16 * 8));
    b[0].x[0] = x[0];
    b[0].x[1] = x[1];
    b[1].x[0] = x[2];
    b[1].x[1] = x[3];
}

template <int D>
__device__ static inline void load_a(FragA<float> &a, Tile<float, D> tile, int row, int col,
                                     int lane = warp_lane()) {
    int g = lane / 4, t = lane % 4;
    UNROLLED_FOR (int e = 0; e < 8; e++)
        a.x[e] = *tile.at(row, col, g + e / 2 % 2 * 8, 2 * t + e % 2 + e / 4 * 8);
}
template <int D>
__device__ static inline void load_a_transposed(FragA<float> &a, Tile<float, D> tile, int row,
                                                int col, int lane = warp_lane()) {
    int g = lane / 4, t = lane % 4;
    UNROLLED_FOR (int e = 0; e < 8; e++)
        a.x[e] = *tile.at(row, col, 2 * t + e % 2 + e / 4 * 8, g + e / 2 % 2 * 8);
}
template <int D>
__device__ static inline void load_b(FragB<float> (&b)[2], Tile<float, D> tile, int row, int col,
                                     int lane = warp_lane()) {
    int g = lane / 4, t = lane % 4;
    UNROLLED_FOR (int e = 0; e < 8; e++)
        b[e / 4].x[e % 4] = *tile.at(row, col, e / 4 * 8 + g, 2 * t + e % 2 + e % 4 / 2 * 8);
}
template <int D>
__device__ static inline void load_b_plain(FragB<float> (&b)[2], Tile<float, D> tile, int row,
                                           int col, int lane = warp_lane()) {
    int g = lane / 4, t = lane % 4;
    UNROLLED_FOR (int e = 0; e < 8; e++)
        b[e / 4].x[e % 4] = *tile.at(row, col, 2 * t + e % 2 + e % 4 / 2 * 8, e / 4 * 8 + g);
}

/* A = two results side by side, (16,16), rounded to A's type: the left side of the next product. */
__device__ static inline void make_a(FragA<__nv_bfloat16> &a, const FragC &left,
                                     const FragC &right) {
    a.x[0] = pack_pair(left.x[0], left.x[1]);
    a.x[1] = pack_pair(left.x[2], left.x[3]);
    a.x[2] = pack_pair(right.x[0], right.x[1]);
    a.x[3] = pack_pair(right.x[2], right.x[3]);
}
__device__ static inline void make_a(FragA<float> &a, const FragC &left, const FragC &right) {
    UNROLLED_FOR (int e = 0; e < 4; e++) {
        a.x[e] = left.x[e];
        a.x[4 + e] = right.x[e];
    }
}

#endif
