/* embedding.c: rows of a table, and axial position embeddings: two small tables in place of one
   with a row per position, which at long lengths would be larger than the model (Reformer, Kitaev
   et al. 2020). */
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

static void axial_positions_forward(rf_run *run, const int64_t *position_ids, const real *w0,
                                    const real *w1, real *out, size_t n, size_t n2, size_t d1,
                                    size_t d2) {
    const size_t c = d1 + d2;
    const int workers = team(run, (double)n * (double)c);
#pragma omp parallel for num_threads(workers) schedule(static)
    for (size_t block = 0; block < blocks_of(n, EMBEDDING_ROWS); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * EMBEDDING_ROWS);
        for (size_t i = block * EMBEDDING_ROWS; i < end; i++) {
            const size_t j = (size_t)position_ids[i];
            memcpy(out + i * c, w0 + j / n2 * d1, d1 * sizeof(real));
            memcpy(out + i * c + d1, w1 + j % n2 * d2, d2 * sizeof(real));
        }
    }
}

/* One strip of one of the two tables; dy points to the strip's first column. */
static void axial_strip(rf_run *run, real *table, size_t d, const real *dy, size_t c,
                        const int64_t *positions, size_t n, size_t n2, int inner, size_t columns) {
    int64_t rows[EMBEDDING_ROWS];
    for (size_t i = 0; i < n && !stopped(run); i += EMBEDDING_ROWS) {
        const size_t m = min_size(EMBEDDING_ROWS, n - i);
        for (size_t r = 0; r < m; r++) {
            const size_t position = (size_t)positions[i + r];
            rows[r] = (int64_t)(inner ? position % n2 : position / n2);
        }
        add_rows(table, d, dy + i * c, c, rows, m, columns);
    }
}

static void axial_positions_backward(rf_run *run, const int64_t *position_ids, const real *dout,
                                     real *dw0, real *dw1, size_t n, size_t n2, size_t d1,
                                     size_t d2) {
    const int workers = team(run, (double)n * (double)(d1 + d2));
    const size_t width1 = strip_width(d1, workers), strips1 = blocks_of(d1, width1);
    const size_t width2 = strip_width(d2, workers), strips2 = blocks_of(d2, width2);

    // forward was y[i] = w0[j / n2] followed by w1[j % n2]
#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (size_t strip = 0; strip < strips1 + strips2; strip++) {
        const int inner = strip >= strips1;
        const size_t j = inner ? (strip - strips1) * width2 : strip * width1;
        if (inner)
            axial_strip(run, dw1 + j, d2, dout + d1 + j, d1 + d2, position_ids, n, n2, 1,
                        min_size(width2, d2 - j));
        else
            axial_strip(run, dw0 + j, d1, dout + j, d1 + d2, position_ids, n, n2, 0,
                        min_size(width1, d1 - j));
    }
}
