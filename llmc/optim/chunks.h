/*
Long iterations over a batch (matrix signs, inverse roots), a chunk of items at a time. On a CPU a
chunk is one item, which stays in the cache of its thread; a GPU takes all items together.
*/
#ifndef CM_CHUNKS_H
#define CM_CHUNKS_H

#include "../linalg.h"

/* An iteration from `in` to `out`, which may be equal; `how` has its settings. */
typedef void Iteration(Mat out, Mat in, const void *how, Arena *arena);

/* Runs an iteration on all items of two dense batches, la_chunk of them at a time. The arena holds
   a piece of scratch for each worker. While it measures, it counts a piece for each chunk, so that
   the size does not depend on the number of threads. */
static inline void run_in_chunks(Iteration *iteration, Mat out, Mat in, const void *how,
                                 Arena *arena) {
    int n = mat_count(in), chunk = la_chunk(n), chunks = n ? n / chunk : 0;
    int workers = arena->p ? la_workers(chunks, (size_t)in.rows * in.cols) : chunks;
    size_t mark = arena->used;
    Arena measure = {NULL, 0, 0};
    iteration(mat_dense(NULL, chunk, out.rows, out.cols), mat_dense(NULL, chunk, in.rows, in.cols),
              how, &measure);
    floatM *memory = arena_take(arena, (size_t)workers * measure.size);
    arena->used = mark;
    if (!memory) return;
    if (workers > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
        for (int i = 0; i < chunks; i++) {
            Arena own = arena_piece(memory, measure.size, thread_index());
            iteration(mat_part(out, i * chunk, chunk), mat_part(in, i * chunk, chunk), how, &own);
        }
        return;
    }
    /* No region of one thread: regions within it would start their threads anew each time. */
    for (int i = 0; i < chunks; i++) {
        Arena own = arena_piece(memory, measure.size, 0);
        iteration(mat_part(out, i * chunk, chunk), mat_part(in, i * chunk, chunk), how, &own);
    }
}

#endif
