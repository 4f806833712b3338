/* rows.h: how a product with many rows is cut into tasks and chunks, and operations on rows.

   A task is up to 192 rows: enough to pay for loading the packed operand from memory, few enough
   that their data stays in the L2 cache. A chunk is what a backward pass keeps in scratch at a
   time: enough rows for an efficient product for the weights' gradient. Sizes alone decide both. */
#ifndef RF_ROWS_H
#define RF_ROWS_H

#include "bf16.h"

#define TASK_ROWS 192
#define CHUNK_ROWS 4096
#define CHUNK_BYTES ((size_t)64 << 20)

/* Rows of a task, so that there are some 32 tasks or more. `chunk` is the caller's limit, or 0;
   less than 24 rows would hardly save memory. */
static size_t task_rows(const rf_run *run, size_t n, size_t chunk) {
    const size_t whole = terms_of(run) ? UNIT : 12; // rows of whole tiles
    const size_t rows = min_size(TASK_ROWS, round_up(blocks_of(n, 32), whole));
    return max_size(24, chunk ? min_size(rows, chunk) : rows);
}

/* Rows of a chunk, with `width` reals of scratch each: chunks of equal size, in whole tasks. */
static size_t chunk_rows(size_t n, size_t width, size_t chunk) {
    const size_t fitting = CHUNK_BYTES / sizeof(real) / max_size(1, width);
    const size_t limit = chunk ? chunk : min_size(CHUNK_ROWS, fitting);
    const size_t chunks = blocks_of(n, max_size(TASK_ROWS, limit));
    return round_up(max_size(1, blocks_of(n, max_size(1, chunks))), 12);
}

/* The leading dimension of rows in scratch, one cache line more than needed: if rows were a power
   of two apart, the rows of a register tile would collide in the cache's sets. */
static size_t padded(size_t columns) {
    const size_t line = RF_ALIGN / sizeof(real);
    const size_t lines = columns / line + 2;
    return bytes_mul(lines, line);
}

/* Copy rows to another leading dimension. */
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

#endif
