/*
The embedding on CUDA: forward, and backward over the positions in the order of tokens_sort.
*/
#ifndef CM_CUDA_EMBED_CUH
#define CM_CUDA_EMBED_CUH

#include "rows.cuh"

enum { EMBED_WARPS = 4, EMBED_CHUNK = 32, EMBED_AHEAD = 8 };

template <int W>
__global__ static void embed_forward_kernel(floatX *__restrict__ x, const int *__restrict__ tokens,
                                            const floatX *__restrict__ wte,
                                            const floatX *__restrict__ wpe, int T, int C,
                                            unsigned parts) {
    size_t n = blockIdx.x / parts;
    int c = (int)((blockIdx.x % parts) * blockDim.x + threadIdx.x) * W;
    if (c >= C) return;
    float sum[W], position[W];
    Raw<W> p = fetch<W>(wpe, n % (size_t)T * C + c, wpe != NULL);
    load(sum, wte + (size_t)tokens[n] * C + c);
    unpack(position, p);
    UNROLLED_FOR (int i = 0; i < W; i++) sum[i] += position[i];
    store(x + n * C + c, sum);
}

template <int W>
static inline void embed_forward_by(floatX *x, const int *tokens, const floatX *wte,
                                    const floatX *wpe, int N, int T, int C) {
    unsigned parts, threads;
    row_parts(&parts, &threads, C, W);
    LAUNCH(embed_forward_kernel<W>, (unsigned)N * parts, threads, 0, x, tokens, wte, wpe, T, C,
           parts);
}

static inline void embed_forward(floatX *x, const int *tokens, const floatX *wte, const floatX *wpe,
                                 int B, int T, int C) {
    if (all_wide(C, x, wte, wpe)) embed_forward_by<XW>(x, tokens, wte, wpe, B * T, T, C);
    else embed_forward_by<1>(x, tokens, wte, wpe, B * T, T, C);
}

/* sorted (N) = the positions 0..N-1 by token, positions of equal tokens in ascending order.
   Returns 0; or -1 and a recorded failure if a token is outside of the vocabulary or if there is
   no memory. */
static inline int tokens_sort(int *sorted, const int *tokens, int N, int vocab) {
    if (vocab >= cm_gpu.token_starts_room) {
        free(cm_gpu.token_starts);
        cm_gpu.token_starts_room = 0;
        cm_gpu.token_starts = (int *)malloc(((size_t)vocab + 1) * sizeof(int));
        if (!cm_gpu.token_starts) return device_fail("out of memory: counts of %d tokens", vocab);
        cm_gpu.token_starts_room = vocab + 1;
    }
    int *start = cm_gpu.token_starts;
    memset(start, 0, ((size_t)vocab + 1) * sizeof *start);
    for (int n = 0; n < N; n++) {
        if (tokens[n] < 0 || tokens[n] >= vocab)
            return device_fail("token %d at position %d of a batch: the vocabulary has %d",
                               tokens[n], n, vocab);
        start[tokens[n] + 1]++;
    }
    for (int v = 1; v < vocab; v++) start[v] += start[v - 1];
    for (int n = 0; n < N; n++) sorted[start[tokens[n]]++] = n;
    return 0;
}

/* The gradient of wte is a sum over runs of equal tokens. Some runs have one row, others
   thousands. A warp takes EMBED_CHUNK rows in sorted order, wherever the runs begin, and 32 W
   columns. It adds a run that lies within its chunk to dwte. Of a run that crosses into another
   chunk it stores its part in partials (chunks,2,C): in the chunk's first row if the run began
   in an earlier chunk, in the second if it begins here. */
template <int W>
__global__ static void __launch_bounds__(32 * EMBED_WARPS)
    embed_chunks_kernel(floatM *dwte, float *partials, const floatX *__restrict__ dx,
                        const int *__restrict__ tokens, int N, int C) {
    const int *sorted = tokens + N;
    int chunk = (int)(blockIdx.x * EMBED_WARPS + threadIdx.y), first = chunk * EMBED_CHUNK;
    int lane = (int)threadIdx.x, c = ((int)blockIdx.y * 32 + lane) * W;
    if (first >= N) return;
    int count = N - first < EMBED_CHUNK ? N - first : EMBED_CHUNK;
    int position = sorted[first + (lane < count ? lane : count - 1)], token = tokens[position];
    int token_before = first ? tokens[sorted[first - 1]] : -1;
    int token_after = first + count < N ? tokens[sorted[first + count]] : -1;
    /* whether the current run began in this chunk */
    int begun = __shfl_sync(FULL_WARP, token, 0) != token_before;
    float sum[W] = {0};
    for (int at = 0; at < count; at += EMBED_AHEAD) {
        Raw<W> loaded[EMBED_AHEAD];
        UNROLLED_FOR (int k = 0; k < EMBED_AHEAD; k++) {
            size_t n = (size_t)__shfl_sync(FULL_WARP, position, at + k);
            loaded[k] = fetch<W>(dx, n * C + c, c < C && at + k < count);
        }
        UNROLLED_FOR (int k = 0; k < EMBED_AHEAD; k++) {
            int i = at + k, last = i + 1 == count;
            int t = __shfl_sync(FULL_WARP, token, i),
                next = __shfl_sync(FULL_WARP, token, (i + 1) % 32);
            float row[W];
            if (last) next = token_after;
            unpack(row, loaded[k]);
            UNROLLED_FOR (int j = 0; j < W; j++) sum[j] += row[j]; /* rows past the end are zero */
            if (i >= count || (t == next && !last)) continue;
            if (c < C) {
                if (begun && t != next) add_floats(dwte + (size_t)t * C + c, sum);
                else store_floats(partials + (2 * (size_t)chunk + begun) * C + c, sum);
            }
            begun = 1;
            UNROLLED_FOR (int j = 0; j < W; j++) sum[j] = 0;
        }
    }
}

/* Adds the runs that cross chunks: the warp of the chunk in which a run begins gathers its
   parts. */
template <int W>
__global__ static void __launch_bounds__(32 * EMBED_WARPS)
    embed_runs_kernel(floatM *dwte, const float *__restrict__ partials,
                      const int *__restrict__ tokens, int N, int C) {
    const int *sorted = tokens + N;
    int chunk = (int)(blockIdx.x * EMBED_WARPS + threadIdx.y), first = chunk * EMBED_CHUNK;
    int lane = (int)threadIdx.x, c = ((int)blockIdx.y * 32 + lane) * W;
    if (N - first <= EMBED_CHUNK) return; /* this is the last chunk */
    int t = tokens[sorted[first + EMBED_CHUNK - 1]];
    if (tokens[sorted[first + EMBED_CHUNK]] != t) return;
    if (first && tokens[sorted[first - 1]] == t) return; /* the run began in an earlier chunk */
    float sum[W] = {0};
    if (c < C) load_floats(sum, partials + (2 * (size_t)chunk + 1) * C + c);
    for (int k = chunk + 1, more = 32; more == 32; k += 32) {
        size_t begin = ((size_t)k + (size_t)lane) * EMBED_CHUNK;
        unsigned ends = ~__ballot_sync(FULL_WARP, begin < (size_t)N && tokens[sorted[begin]] == t);
        more = ends ? __ffs((int)ends) - 1 : 32;
        for (int i = 0; i < more && c < C; i += 4) {
            float loaded[4][W] = {};
            UNROLLED_FOR (int j = 0; j < 4; j++)
                if (i + j < more)
                    load_floats(loaded[j], partials + 2 * (size_t)(k + i + j) * C + c);
            UNROLLED_FOR (int j = 0; j < 4; j++)
                UNROLLED_FOR (int e = 0; e < W; e++) sum[e] += loaded[j][e];
        }
    }
    if (c < C) add_floats(dwte + (size_t)t * C + c, sum);
}

template <int W>
__global__ static void __launch_bounds__(32 * EMBED_WARPS)
    embed_positions_kernel(floatM *dwpe, const floatX *__restrict__ dx, int B, int T, int C) {
    int t = (int)(blockIdx.x * EMBED_WARPS + threadIdx.y),
        c = (int)(blockIdx.y * 32 + threadIdx.x) * W;
    if (t >= T || c >= C) return;
    float sum[W] = {0};
    for (int first = 0; first < B; first += EMBED_AHEAD) {
        Raw<W> loaded[EMBED_AHEAD];
        UNROLLED_FOR (int k = 0; k < EMBED_AHEAD; k++)
            loaded[k] = fetch<W>(dx, ((size_t)(first + k) * T + t) * C + c, first + k < B);
        UNROLLED_FOR (int k = 0; k < EMBED_AHEAD; k++) {
            float d[W];
            unpack(d, loaded[k]);
            UNROLLED_FOR (int i = 0; i < W; i++) sum[i] += d[i];
        }
    }
    add_floats(dwpe + (size_t)t * C + c, sum);
}

static inline size_t embed_scratch(int N, int C) {
    return 2 * (size_t)ceil_div((size_t)N, EMBED_CHUNK) * (size_t)C * sizeof(float);
}

template <int W>
static inline void embed_backward_by(floatM *dwte, floatM *dwpe, const floatX *dx,
                                     const int *tokens, int B, int T, int C) {
    int N = B * T;
    unsigned chunks = ceil_div((size_t)N, EMBED_CHUNK), columns = ceil_div((size_t)C, 32 * W);
    float *partials = (float *)cuda_scratch(embed_scratch(N, C));
    dim3 grid(ceil_div(chunks, EMBED_WARPS), columns), block(32, EMBED_WARPS);
    if (dwte) {
        LAUNCH(embed_chunks_kernel<W>, grid, block, 0, dwte, partials, dx, tokens, N, C);
        LAUNCH(embed_runs_kernel<W>, grid, block, 0, dwte, partials, tokens, N, C);
    }
    grid.x = ceil_div((size_t)T, EMBED_WARPS);
    if (dwpe) LAUNCH(embed_positions_kernel<W>, grid, block, 0, dwpe, dx, B, T, C);
}

/* dwte, dwpe += dx (B,T,C), each unless it is NULL. `tokens` holds N tokens and then their
   positions in the order of tokens_sort. */
static inline void embed_backward(floatM *dwte, floatM *dwpe, const floatX *dx, const int *tokens,
                                  int B, int T, int C) {
    if (all_wide(C, dwte, dwpe) && all_wide(C, dx))
        embed_backward_by<XW>(dwte, dwpe, dx, tokens, B, T, C);
    else embed_backward_by<1>(dwte, dwpe, dx, tokens, B, T, C);
}

#endif
