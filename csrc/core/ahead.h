/* ahead.h: memory that will be wanted soon, asked for while something is computed.

   A core has room for some sixteen lines on their way from beyond its own caches. When forty are
   asked for at once the rest wait, and whatever is computed next waits behind them. So a few are
   listed before each tile, and the tile asks for one at each of its first steps. */
#ifndef RF_AHEAD_H
#define RF_AHEAD_H

#include <stdint.h>

#include "core.h"

/* Lines to ask for. There is room for `room` of them and seven more. */
typedef struct {
    const char **line;
    size_t count, room;
} line_list;

/* No line, but a place where one would lie: even 0 may not be added to NULL. */
static const line_list nothing_ahead = {(const char *[1]){NULL}, 0, 0};

/* Addresses, eight at a time. */
typedef uintptr_t eight_lines __attribute__((vector_size(8 * sizeof(uintptr_t))));

/* `n` lines from the first one on; eight are written at a time, the last of them in vain. */
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

/* The lines on which a row lies: it may begin anywhere in the first. */
typedef struct {
    const char *first;
    size_t n;
} row_lines;

/* No row of n reals lies on more. */
static inline size_t lines_most(size_t n) {
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

/* Rows that the next product will want, and then those of `also`; NULL is none. */
typedef struct rows_ahead {
    const real *row;
    ptrdiff_t ld;
    size_t columns, rows;
    const struct rows_ahead *also;
} rows_ahead;

/* Those of a task that is likely the thread's next: `rows` after `row`, of n x columns, as one. */
static inline rows_ahead next_rows(const real *x, size_t columns, size_t n, size_t row, size_t rows,
                                   const rows_ahead *also) {
    row = min_size(n, row);
    return (rows_ahead){x + row * columns, 0, min_size(rows, n - row) * columns, 1, also};
}

/* Where the listing of rows stands, and how many of their lines each tile is to ask for. */
typedef struct {
    const rows_ahead *of;
    size_t row, line, each;
} rows_cursor;

static inline rows_cursor rows_begin(const rows_ahead *of, size_t tiles) {
    size_t lines = 0;
    for (const rows_ahead *r = of; r; r = r->also)
        lines += r->rows * (r->columns * sizeof(real) / RF_ALIGN + 1);
    return (rows_cursor){of, 0, 0, blocks_of(lines, max_size(1, tiles))};
}

/* One tile's share. */
static inline void list_rows(line_list *to, rows_cursor *at) {
    size_t left = min_size(at->each, to->room - to->count);
    while (left && at->of) {
        if (at->row == at->of->rows) {
            at->of = at->of->also;
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
