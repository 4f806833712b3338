/* prefetch.h: software prefetch, spread over computation.

   A core can have about 16 cache misses beyond its own caches in flight. If forty prefetches are
   issued at once, the rest wait, and so do the loads of whatever is computed next. So a few cache
   lines are listed before each register tile, and the tile prefetches one at each of its first
   steps. */
#ifndef RF_PREFETCH_H
#define RF_PREFETCH_H

#include <stdint.h>

#include "core.h"

/* Cache lines to prefetch. The array has space for `room` of them and seven more. */
typedef struct {
    const char **line;
    size_t count, room;
} line_list;

/* An empty list. Its pointer is valid: even 0 may not be added to NULL. */
static const line_list no_lines = {(const char *[1]){NULL}, 0, 0};

/* Addresses, eight at a time. */
typedef uintptr_t eight_lines __attribute__((vector_size(8 * sizeof(uintptr_t))));

/* Append n consecutive lines. Eight are written at a time, the excess is overwritten later. */
static ALWAYS_INLINE void list_lines(line_list *to, const char *first, size_t n) {
    const eight_lines steps = {
        0,           RF_ALIGN, 2 * RF_ALIGN, 3 * RF_ALIGN, 4 * RF_ALIGN, 5 * RF_ALIGN, 6 * RF_ALIGN,
        7 * RF_ALIGN};
    for (size_t i = 0; i < n; i += 8) {
        const eight_lines lines = steps + (uintptr_t)(first + i * RF_ALIGN);
        memcpy(to->line + to->count + i, &lines, sizeof lines);
    }
    to->count += n;
}

/* The lines that hold a row, which may begin anywhere within the first. */
typedef struct {
    const char *first;
    size_t n;
} row_lines;

/* The maximum number of lines that hold a row of n reals. */
static inline size_t row_lines_max(size_t n) {
    return n * sizeof(real) / RF_ALIGN + 2;
}

static inline row_lines lines_of(const real *row, size_t n) {
    const uintptr_t first = (uintptr_t)row / RF_ALIGN, end = (uintptr_t)(row + n) + RF_ALIGN - 1;
    return (row_lines){(const char *)(first * RF_ALIGN), end / RF_ALIGN - first};
}

static ALWAYS_INLINE void list_row(line_list *to, const real *row, size_t n) {
    const row_lines lines = lines_of(row, n);
    list_lines(to, lines.first, lines.n);
}

/* Rows to prefetch during a product, and then those of `next`, or NULL. */
typedef struct prefetch_rows {
    const real *row;
    ptrdiff_t ld;
    size_t columns, rows;
    const struct prefetch_rows *next;
} prefetch_rows;

/* The rows of the task that this thread will probably run next: `rows` of them from `row` on, of an
   n x columns matrix. They are contiguous, so they are treated as one long row. */
static inline prefetch_rows next_task_rows(const real *x, size_t columns, size_t n, size_t row,
                                           size_t rows, const prefetch_rows *next) {
    row = min_size(n, row);
    return (prefetch_rows){x + row * columns, 0, min_size(rows, n - row) * columns, 1, next};
}

/* A position within the rows to prefetch, and how many of their lines each tile takes. */
typedef struct {
    const prefetch_rows *of;
    size_t row, line, each;
} prefetch_cursor;

static inline prefetch_cursor prefetch_begin(const prefetch_rows *of, size_t tiles) {
    size_t lines = 0;
    for (const prefetch_rows *r = of; r; r = r->next)
        lines += r->rows * (r->columns * sizeof(real) / RF_ALIGN + 1);
    return (prefetch_cursor){of, 0, 0, blocks_of(lines, max_size(1, tiles))};
}

/* Append one tile's share. */
static inline void list_rows(line_list *to, prefetch_cursor *at) {
    size_t left = min_size(at->each, to->room - to->count);
    while (left && at->of) {
        if (at->row == at->of->rows) {
            at->of = at->of->next;
            at->row = 0;
            continue;
        }
        const row_lines row =
            lines_of(at->of->row + (ptrdiff_t)at->row * at->of->ld, at->of->columns);
        const size_t n = min_size(left, row.n - at->line);
        list_lines(to, row.first + at->line * RF_ALIGN, n);
        left -= n;
        at->line += n;
        if (at->line == row.n) at->row++, at->line = 0;
    }
}

#endif
