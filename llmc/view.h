/*
Batches of matrices as views, and views made from views. A view of NULL is NULL.

A Mat is a batch of n0 x n1 matrices of equal shape: element (r, c) of item (i, j) lies at
p + i s0 + j s1 + r rs + c cs, with rs or cs equal to 1. So a head of W_Q in a fused (L, 3C, C)
tensor, a column block of W_O read as its transpose, and one matrix repeated over a group (s1 = 0)
are all views. Nothing is copied to be transposed.
*/
#ifndef CM_VIEW_H
#define CM_VIEW_H

#include "base.h"

typedef struct {
    floatM *p; /* NULL: a view that only describes a shape */
    int n0, n1;
    size_t s0, s1;
    int rows, cols;
    size_t rs, cs;
} Mat;

/* p + n; NULL stays NULL. */
static inline floatM *mat_offset(floatM *p, size_t n) { return p ? p + n : p; }

/* A batch of n contiguous row-major matrices. */
static inline Mat mat_dense(floatM *p, int n, int rows, int cols) {
    Mat m = {p, n, 1, (size_t)rows * cols, 0, rows, cols, (size_t)cols, 1};
    return m;
}

static inline int mat_count(Mat m) { return m.n0 * m.n1; }
static inline size_t mat_size(Mat m) { return (size_t)m.n0 * m.n1 * m.rows * m.cols; }
static inline floatM *mat_item(Mat m, int i) {
    return m.p + (size_t)(i / m.n1) * m.s0 + (size_t)(i % m.n1) * m.s1;
}

static inline void mat_swap(Mat *a, Mat *b) {
    Mat c = *a;
    *a = *b;
    *b = c;
}

/* Every item transposed. */
static inline Mat mat_t(Mat m) {
    Mat t = m;
    t.rows = m.cols;
    t.cols = m.rows;
    t.rs = m.cs;
    t.cs = m.rs;
    return t;
}

/* Rows [first, first + rows) of every item. */
static inline Mat mat_rows(Mat m, int first, int rows) {
    m.p = mat_offset(m.p, (size_t)first * m.rs);
    m.rows = rows;
    return m;
}

/* Items [first, first + n) of the outer batch. */
static inline Mat mat_outer(Mat m, int first, int n) {
    m.p = mat_offset(m.p, (size_t)first * m.s0);
    m.n0 = n;
    return m;
}

/* (n0, 1) items of heads k rows -> (n0, heads) items of k rows: the heads of a projection. */
static inline Mat mat_heads(Mat m, int heads) {
    m.rows /= heads;
    m.n1 = heads;
    m.s1 = (size_t)m.rows * m.rs;
    return m;
}

/* (n0, n1) items -> item number `index` of every `group` consecutive ones: one query head of each
   group. */
static inline Mat mat_every(Mat m, int index, int group) {
    m.p = mat_offset(m.p, (size_t)index * m.s1);
    m.n1 /= group;
    m.s1 *= (size_t)group;
    return m;
}

/* A dense batch of n items as (n / group, group) items; with `repeat` as (n, group) items, where
   each item occurs `group` times. */
static inline Mat mat_grouped(Mat m, int group, int repeat) {
    Mat view = m;
    int n = m.n0 * m.n1;
    view.n0 = repeat ? n : n / group;
    view.n1 = group;
    view.s1 = repeat ? 0 : (size_t)m.rows * m.cols;
    view.s0 = (size_t)m.rows * m.cols * (repeat ? 1 : (size_t)group);
    return view;
}

/* Items [first, first + n) of the whole batch; n is 1 or all of them. */
static inline Mat mat_part(Mat m, int first, int n) {
    if (n == mat_count(m)) return m;
    if (m.p) m.p = mat_item(m, first);
    m.n0 = m.n1 = 1;
    return m;
}

/* The items of a dense batch as the two-level batch (n0, n1). */
static inline Mat mat_batch(Mat dense, int n0, int n1) {
    Mat m = dense;
    m.n0 = n0;
    m.n1 = n1;
    m.s1 = dense.s0;
    m.s0 = dense.s0 * (size_t)n1;
    return m;
}

/* A dense two-level batch as one level of items. */
static inline Mat mat_flat(Mat m) { return mat_dense(m.p, mat_count(m), m.rows, m.cols); }

/* Columns [first, first + cols) of every item. */
static inline Mat mat_columns(Mat m, int first, int cols) {
    return mat_t(mat_rows(mat_t(m), first, cols));
}

/* n numbers as a row, for operations on matrices. */
static inline Mat mat_vector(floatM *p, int n) { return mat_dense(p, 1, 1, n); }

/* The heads (L, heads) x (k, d) of a projection that is stored as (L, 1) x (rows, cols): blocks of
   k rows or, with by_column, blocks of k columns, each of which is read as its transpose. */
static inline Mat mat_blocks(Mat m, int heads, int by_column) {
    return mat_heads(by_column ? mat_t(m) : m, heads);
}

#endif
