/* embedding.c: rows of a table, and axial position embeddings: a small table for each axis of a
   grid in place of one with a row per position, which at long lengths would be larger than the
   model (Reformer, Kitaev et al. 2020). */
#include "core.h"

#define EMBEDDING_ROWS 256 // between two polls

static void embedding_forward(rf_run *run, const int64_t *ids, const real *weight, real *out,
                              size_t n, size_t c) {
    const int workers = team(run, (double)n * (double)c);
#pragma omp parallel for num_threads(workers) schedule(static)
    for (size_t block = 0; block < blocks_of(n, EMBEDDING_ROWS); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * EMBEDDING_ROWS);
        for (size_t i = block * EMBEDDING_ROWS; i < end; i++)
            memcpy(out + i * c, weight + (size_t)ids[i] * c, c * sizeof(real));
    }
}

/* The gradient of a table is divided among threads by strips of columns. A strip processes all rows
   in order, so the order of every sum is the same for any number of strips. Strips are whole cache
   lines wide. */
static size_t strip_width(size_t c, int workers) {
    const size_t line = RF_ALIGN / sizeof(real);
    return max_size(line, round_up(blocks_of(c, (size_t)workers), line));
}

static size_t strips_of(size_t c, int workers) {
    return blocks_of(c, strip_width(c, workers));
}

/* table[rows[i]] += dy[i] for n rows, in order. */
static void add_rows(real *restrict table, size_t c, const real *restrict dy, size_t ldy,
                     const int64_t *restrict rows, size_t n, size_t columns) {
    for (size_t i = 0; i < n; i++) {
        real *restrict row = table + (size_t)rows[i] * c;
        const real *restrict dyi = dy + i * ldy;
#pragma omp simd
        for (size_t j = 0; j < columns; j++) row[j] += dyi[j];
    }
}

static void embedding_backward(rf_run *run, const int64_t *ids, const real *dout, real *dweight,
                               size_t n, size_t c) {
    const int workers = team(run, (double)n * (double)c);
    const size_t width = strip_width(c, workers);

    // forward was y[i] = w[ids[i]]
#pragma omp parallel for num_threads(workers) schedule(static)
    for (size_t strip = 0; strip < blocks_of(c, width); strip++) {
        const size_t j = strip * width, columns = min_size(width, c - j);
        for (size_t i = 0; i < n && !stopped(run); i += EMBEDDING_ROWS)
            add_rows(dweight + j, c, dout + i * c + j, c, ids + i, min_size(EMBEDDING_ROWS, n - i),
                     columns);
    }
}

static size_t axial_width(const rf_axis *axes, size_t count) {
    size_t c = 0;
    for (size_t a = 0; a < count; a++) c += axes[a].width;
    return c;
}

static void axial_positions_forward(rf_run *run, const int64_t *position_ids, const rf_axis *axes,
                                    real *out, size_t n, size_t count) {
    const size_t c = axial_width(axes, count);
    const int workers = team(run, (double)n * (double)c);
#pragma omp parallel for num_threads(workers) schedule(static)
    for (size_t block = 0; block < blocks_of(n, EMBEDDING_ROWS); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * EMBEDDING_ROWS);
        for (size_t i = block * EMBEDDING_ROWS; i < end; i++) {
            size_t j = (size_t)position_ids[i];
            real *to = out + (i + 1) * c;
            // the last axis is the fastest
            for (const rf_axis *axis = axes + count; axis-- > axes; j /= axis->size) {
                const real *w = axis->w;
                to -= axis->width;
                memcpy(to, w + j % axis->size * axis->width, axis->width * sizeof(real));
            }
        }
    }
}

/* A strip of columns of one axis' table; dy points to the strip's first column. Positions that
   differ by less than `stride` have the same index along the axis. */
static void axial_strip(rf_run *run, real *table, const rf_axis *axis, size_t stride,
                        const real *dy, size_t c, const int64_t *positions, size_t n,
                        size_t columns) {
    int64_t rows[EMBEDDING_ROWS];
    for (size_t i = 0; i < n && !stopped(run); i += EMBEDDING_ROWS) {
        const size_t m = min_size(EMBEDDING_ROWS, n - i);
        for (size_t r = 0; r < m; r++)
            rows[r] = (int64_t)((size_t)positions[i + r] / stride % axis->size);
        add_rows(table, axis->width, dy + i * c, c, rows, m, columns);
    }
}

static void axial_positions_backward(rf_run *run, const int64_t *position_ids, const real *dout,
                                     const rf_axis *axes, size_t n, size_t count) {
    const size_t c = axial_width(axes, count);
    const int workers = team(run, (double)n * (double)c);
    size_t strips = 0;
    for (size_t a = 0; a < count; a++) strips += strips_of(axes[a].width, workers);

    // forward was y[i] = the row of each axis' table, one after the other
#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (size_t strip = 0; strip < strips; strip++) {
        // the strip's axis and the first column of the axis
        size_t a = 0, first = 0, j = strip;
        for (; j >= strips_of(axes[a].width, workers); first += axes[a++].width)
            j -= strips_of(axes[a].width, workers);
        size_t stride = 1;
        for (size_t b = a + 1; b < count; b++) stride = bytes_mul(stride, axes[b].size);

        const rf_axis *axis = &axes[a];
        const size_t width = strip_width(axis->width, workers);
        j *= width;
        axial_strip(run, (real *)axis->dw + j, axis, stride, dout + first + j, c, position_ids, n,
                    min_size(width, axis->width - j));
    }
}
