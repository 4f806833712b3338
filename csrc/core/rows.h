/* rows.h: how a product with many rows is cut, and the bias that comes with it.

   A task is up to 192 rows: enough to pay for bringing the packed operand from memory, and what
   belongs to them stays in the second-level cache. A chunk is what a backward pass keeps in scratch
   at a time: enough rows to make the product for the weights' gradient a good one. Both depend on
   sizes alone. */
#ifndef RF_ROWS_H
#define RF_ROWS_H

#include "core.h"

#define TASK_ROWS 192
#define CHUNK_ROWS 4096
#define CHUNK_BYTES ((size_t)64 << 20)

/* Rows of a task, for some 32 tasks or more; `chunk` is the caller's limit, 0 if there is none.
   Fewer rows than 24 would save no memory worth having. */
static size_t task_rows(size_t n, size_t chunk) {
    const size_t rows = min_size(TASK_ROWS, round_up(blocks_of(n, 32), 12));
    return max_size(24, chunk ? min_size(rows, chunk) : rows);
}

/* Rows of a chunk, `width` reals of scratch each; chunks of equal size, whole tasks. */
static size_t chunk_rows(size_t n, size_t width, size_t chunk) {
    const size_t fitting = CHUNK_BYTES / sizeof(real) / max_size(1, width);
    const size_t limit = chunk ? chunk : min_size(CHUNK_ROWS, fitting);
    const size_t chunks = blocks_of(n, max_size(TASK_ROWS, limit));
    return round_up(max_size(1, blocks_of(n, max_size(1, chunks))), 12);
}

/* Columns between two rows of scratch. One line more than needed: where rows are a power of two
   apart, the rows of a tile would fight for the same ways of the cache. */
static size_t padded(size_t columns) {
    const size_t line = RF_ALIGN / sizeof(real);
    const size_t lines = columns / line + 2;
    return bytes_mul(lines, line);
}

/* Rows of x, further apart. */
static inline void copy_rows(real *restrict to, size_t ldto, const real *restrict x, size_t ldx,
                             size_t rows, size_t columns) {
    for (size_t i = 0; i < rows; i++) memcpy(to + i * ldto, x + i * ldx, columns * sizeof(real));
}

/* y = x + bias, row by row; y may be x. */
static inline void add_bias(real *y, size_t ldy, const real *x, size_t ldx,
                            const real *restrict bias, size_t rows, size_t columns) {
    for (size_t i = 0; i < rows; i++)
#pragma omp simd
        for (size_t j = 0; j < columns; j++) y[i * ldy + j] = x[i * ldx + j] + bias[j];
}

/* sums = sum over rows of x: one task's part of a bias' gradient. */
static inline void sum_rows(real *restrict sums, const real *restrict x, size_t ldx, size_t rows,
                            size_t columns) {
    memset(sums, 0, columns * sizeof(real));
    for (size_t i = 0; i < rows; i++)
#pragma omp simd
        for (size_t j = 0; j < columns; j++) sums[j] += x[i * ldx + j];
}

/* sums += the parts of all tasks, in order. */
static inline void fold_sums(real *restrict sums, const real *restrict parts, size_t ldparts,
                             size_t tasks, size_t columns) {
    for (size_t i = 0; i < tasks; i++)
#pragma omp simd
        for (size_t j = 0; j < columns; j++) sums[j] += parts[i * ldparts + j];
}

#endif
