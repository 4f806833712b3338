/* feed_forward.c: two linear layers with an activation between them (Vaswani et al. 2017,
   section 3.3). Hidden rows are f wide, so only a piece of them exists at a time: some rows by some
   columns (Reformer, Kitaev et al. 2020, section 3, "Chunking"). */
#include "activation.h"
#include "gemm.h"
#include "philox.h"
#include "rows.h"
#include "small_batch.h"

#define HIDDEN_PIECE (1024 / sizeof(real)) // columns of a piece: TASK_ROWS of them are 192 KB

/* The options of one call. */
typedef struct {
    size_t n, c, f;
    rf_activation activation;
    uint32_t threshold; // of the dropout
    real scale;
    uint64_t key;
} feed_forward;

static feed_forward feed_forward_of(size_t n, size_t c, size_t f, rf_activation activation,
                                    double dropout, uint64_t key) {
    return (feed_forward){n, c, f, activation, drop_threshold(dropout), drop_scale(dropout), key};
}

/* Drop elements [column, column + width) of a hidden row. */
static inline void drop_hidden(const feed_forward *ff, real *h, size_t row, size_t column,
                               size_t width) {
    if (ff->threshold)
        drop_row(h, h, width, (uint64_t)row * ff->f + column, ff->threshold, ff->scale, ff->key);
}

static void feed_forward_small_batch(rf_run *run, const feed_forward *ff, real *y, const real *x,
                                     const real *w1, const real *b1, const real *w2, const real *b2,
                                     real *h) {
    const size_t n = ff->n, c = ff->c, f = ff->f;
    linear_small_batch(run, h, x, w1, b1, n, c, f);
    for (size_t i = 0; i < n; i++) {
        drop_hidden(ff, h + i * f, i, 0, f);
        activate(ff->activation, h + i * f, NULL, f);
    }
    linear_small_batch(run, y, h, w2, b2, n, f, c);
}

/* Pack an f x c operand, element (p, j) at b[p * brs + j * bcs], a piece of f at a time: each piece
   is the right operand of one product. */
static void pack_pieces(rf_run *run, real *packed, const real *b, ptrdiff_t brs, ptrdiff_t bcs,
                        size_t f, size_t c) {
    for (size_t p = 0; p < f; p += HIDDEN_PIECE)
        pack_parallel(run, packed + p * gemm_packed_size(1, c), b + (ptrdiff_t)p * brs, brs, bcs,
                      min_size(HIDDEN_PIECE, f - p), c);
}

/* Reals of scratch for a task: its rows of x and y, and a piece of its hidden rows. */
static size_t feed_forward_task_reals(size_t rows, size_t c) {
    return bytes_mul(rows, bytes_add(bytes_mul(2, padded(c)), padded(HIDDEN_PIECE)));
}

static void feed_forward_rows(const feed_forward *ff, real *y, const real *x, const real *packed1,
                              const real *b1, const real *packed2, const real *b2, real *scratch,
                              size_t row, size_t rows, const prefetch_rows *next_rows) {
    const size_t c = ff->c, f = ff->f, ld = padded(c), ldh = padded(HIDDEN_PIECE);
    real *xr = scratch, *yr = xr + rows * ld, *h = yr + rows * ld;
    copy_rows(xr, ld, x + row * c, c, rows, c);
    size_t j = 0;
    do { // once even if f is 0: then y is b2
        // 1. a piece of the hidden layer: h = x w1' + b1
        const size_t width = min_size(HIDDEN_PIECE, f - j);
        gemm_packed_prefetch(h, ldh, xr, (ptrdiff_t)ld, 1, packed1 + j * c, rows, width, c, 0,
                             j + width < f ? NULL : next_rows);
        add_bias(h, ldh, h, ldh, b1 + j, rows, width);
        // 2. h = act(drop(h))
        for (size_t i = 0; i < rows; i++) {
            drop_hidden(ff, h + i * ldh, row + i, j, width);
            activate(ff->activation, h + i * ldh, NULL, width);
        }
        // 3. y += h w2'
        gemm_packed(yr, ld, h, (ptrdiff_t)ldh, 1, packed2 + j * gemm_packed_size(1, c), rows, c,
                    width, j > 0);
        j += width;
    } while (j < f);
    add_bias(y + row * c, c, yr, ld, b2, rows, c);
}

static size_t feed_forward_workspace(size_t n, size_t c, size_t f, size_t chunk, int workers) {
    if (n < SMALL_BATCH) return bytes_of(bytes_mul(n, f), sizeof(real));
    const size_t packed1 = bytes_of(gemm_packed_size(c, f), sizeof(real));
    const size_t packed2 = bytes_of(gemm_packed_size(f, c), sizeof(real));
    const size_t task = bytes_of(feed_forward_task_reals(task_rows(n, chunk), c), sizeof(real));
    return bytes_add(bytes_add(packed1, packed2), bytes_mul((size_t)workers, task));
}

static void feed_forward_forward(rf_run *run, real *y, const real *x, const real *w1,
                                 const real *b1, const real *w2, const real *b2, size_t n, size_t c,
                                 size_t f, rf_activation activation, size_t chunk, double dropout,
                                 uint64_t key, void *scratch) {
    const feed_forward ff = feed_forward_of(n, c, f, activation, dropout, key);
    if (n < SMALL_BATCH) {
        feed_forward_small_batch(run, &ff, y, x, w1, b1, w2, b2, scratch);
        return;
    }
    const size_t task = task_rows(n, chunk), own = feed_forward_task_reals(task, c);
    real *packed1 = take(&scratch, gemm_packed_size(c, f), sizeof(real));
    real *packed2 = take(&scratch, gemm_packed_size(f, c), sizeof(real));
    real *tasks = scratch; // one per thread
    pack_parallel(run, packed1, w1, 1, (ptrdiff_t)c, c, f);
    pack_pieces(run, packed2, w2, 1, (ptrdiff_t)f, f, c);

    const int workers = tile_team(run, 4.0 * (double)n * (double)c * (double)f, blocks_of(n, task));
#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (size_t block = 0; block < blocks_of(n, task); block++) {
        if (stopped(run)) continue;
        const size_t row = block * task, next = row + (size_t)workers * task;
        const prefetch_rows of_y = next_task_rows(y, c, n, next, task, NULL);
        const prefetch_rows of_x = next_task_rows(x, c, n, next, task, &of_y);
        feed_forward_rows(&ff, y, x, packed1, b1, packed2, b2, tasks + thread_index() * own, row,
                          min_size(task, n - row), &of_x);
    }
}

/* The scratch of the backward pass. */
typedef struct {
    real *w1, *w1t, *w2;     // packed: f x c in pieces, c x f, c x f
    real *w2t;               // packed: f x c in pieces, for y
    real *hidden, *dhidden;  // a chunk's rows of act(drop(h)) and of dh
    real *parts;             // f + c per task: its contribution to db1 and db2
    real *rows;              // per thread: a task's rows of x, dy and dx (or y)
    void *gradient;          // for weight_gradient; overlaps rows, since tasks have ended by then
    size_t chunk, task, ldh; // rows, rows, columns
} feed_forward_scratch;

static size_t feed_forward_backward_workspace(size_t n, size_t c, size_t f, size_t chunk,
                                              int workers) {
    const size_t ldh = padded(f), rows = chunk_rows(n, bytes_mul(2, ldh), chunk);
    const size_t tasks = blocks_of(rows, task_rows(rows, 0));
    const size_t packed = bytes_of(gemm_packed_size(c, f), sizeof(real));
    const size_t packed1 = bytes_of(gemm_packed_size(f, c), sizeof(real));
    const size_t hidden = bytes_of(bytes_mul(rows, ldh), sizeof(real));
    const size_t parts = bytes_of(bytes_mul(tasks, bytes_add(f, c)), sizeof(real));
    const size_t gradient = max_size(weight_gradient_workspace(rows, f, c, workers),
                                     weight_gradient_workspace(rows, c, f, workers));
    const size_t own = bytes_mul(3, bytes_mul(task_rows(rows, 0), padded(c)));
    const size_t last = max_size(gradient, bytes_mul((size_t)workers, bytes_of(own, sizeof(real))));
    return bytes_add(bytes_add(bytes_mul(2, packed1), bytes_mul(2, packed)),
                     bytes_add(bytes_add(bytes_mul(2, hidden), parts), last));
}

static feed_forward_scratch feed_forward_scratch_of(void *scratch, size_t n, size_t c, size_t f,
                                                    size_t chunk) {
    feed_forward_scratch s;
    s.ldh = padded(f);
    s.chunk = chunk_rows(n, 2 * s.ldh, chunk);
    s.task = task_rows(s.chunk, 0);
    s.w1 = take(&scratch, gemm_packed_size(f, c), sizeof(real));
    s.w1t = take(&scratch, gemm_packed_size(c, f), sizeof(real));
    s.w2 = take(&scratch, gemm_packed_size(c, f), sizeof(real));
    s.w2t = take(&scratch, gemm_packed_size(f, c), sizeof(real));
    s.hidden = take(&scratch, s.chunk * s.ldh, sizeof(real));
    s.dhidden = take(&scratch, s.chunk * s.ldh, sizeof(real));
    s.parts = take(&scratch, blocks_of(s.chunk, s.task) * (f + c), sizeof(real));
    s.rows = scratch;
    s.gradient = scratch;
    return s;
}

/* Recompute a task's y from its rows of the hidden layer: the same bits as the forward pass. */
static void recompute_rows(const feed_forward *ff, const feed_forward_scratch *s, real *y, real *yr,
                           const real *b2, size_t row, size_t at, size_t rows) {
    const size_t c = ff->c, f = ff->f, ld = padded(c);
    size_t j = 0;
    do {
        const size_t width = min_size(HIDDEN_PIECE, f - j);
        gemm_packed(yr, ld, s->hidden + at * s->ldh + j, (ptrdiff_t)s->ldh, 1,
                    s->w2t + j * gemm_packed_size(1, c), rows, c, width, j > 0);
        j += width;
    } while (j < f);
    add_bias(y + row * c, c, yr, ld, b2, rows, c);
}

/* One task: dx, its rows of the hidden layer and of that layer's gradient (for the gradients of the
   weights), and y unless it is NULL. `at` is the task's first row within the chunk. */
static void feed_forward_rows_backward(const feed_forward *ff, const feed_forward_scratch *s,
                                       real *dx, real *y, const real *dy, const real *x,
                                       const real *b1, const real *b2, size_t row, size_t at,
                                       size_t rows, const prefetch_rows *next_rows) {
    const size_t c = ff->c, f = ff->f, ld = padded(c);
    real *part = s->parts + at / s->task * (f + c);
    real *xr = s->rows + thread_index() * 3 * s->task * ld;
    real *dyr = xr + s->task * ld, *dxr = dyr + s->task * ld;
    copy_rows(xr, ld, x + row * c, c, rows, c);
    copy_rows(dyr, ld, dy + row * c, c, rows, c);
    size_t j = 0;
    do {
        const size_t width = min_size(HIDDEN_PIECE, f - j);
        real *h = s->hidden + at * s->ldh + j, *dh = s->dhidden + at * s->ldh + j;
        // 1. da: forward was y = a w2' + b2
        gemm_packed_prefetch(dh, s->ldh, dyr, (ptrdiff_t)ld, 1, s->w2 + j * c, rows, width, c, 0,
                             j + width < f ? NULL : next_rows);
        // 2. recompute h = x w1' + b1
        gemm_packed(h, s->ldh, xr, (ptrdiff_t)ld, 1, s->w1t + j * c, rows, width, c, 0);
        add_bias(h, s->ldh, h, s->ldh, b1 + j, rows, width);
        // 3. dh: forward was a = act(drop(h))
        for (size_t i = 0; i < rows; i++) {
            drop_hidden(ff, h + i * s->ldh, row + i, j, width);
            activate(ff->activation, h + i * s->ldh, dh + i * s->ldh, width);
            drop_hidden(ff, dh + i * s->ldh, row + i, j, width);
        }
        // 4. db1 and dx: forward was h = x w1' + b1
        sum_rows(part + j, dh, s->ldh, rows, width);
        gemm_packed(dxr, ld, dh, (ptrdiff_t)s->ldh, 1, s->w1 + j * gemm_packed_size(1, c), rows, c,
                    width, j > 0);
        j += width;
    } while (j < f);
    // 5. dx, db2 and y
    copy_rows(dx + row * c, c, dxr, ld, rows, c);
    sum_rows(part + f, dyr, ld, rows, c);
    if (y) recompute_rows(ff, s, y, dxr, b2, row, at, rows);
}

static void feed_forward_backward(rf_run *run, real *dx, real *dw1, real *db1, real *dw2, real *db2,
                                  real *y, const real *dy, const real *x, const real *w1,
                                  const real *b1, const real *w2, const real *b2, size_t n,
                                  size_t c, size_t f, rf_activation activation, size_t chunk,
                                  double dropout, uint64_t key, void *scratch) {
    const feed_forward ff = feed_forward_of(n, c, f, activation, dropout, key);
    const feed_forward_scratch s = feed_forward_scratch_of(scratch, n, c, f, chunk);
    // 1. pack the weights
    pack_parallel(run, s.w1t, w1, 1, (ptrdiff_t)c, c, f);
    pack_parallel(run, s.w2, w2, (ptrdiff_t)f, 1, c, f);
    pack_pieces(run, s.w1, w1, (ptrdiff_t)c, 1, f, c);
    if (y) pack_pieces(run, s.w2t, w2, 1, (ptrdiff_t)f, f, c);

    for (size_t first = 0; first < n; first += s.chunk) {
        const size_t rows = min_size(s.chunk, n - first), tasks = blocks_of(rows, s.task);
        // 2. dx, and a chunk's rows of the hidden layer and of its gradient
        const int workers = tile_team(run, 6.0 * (double)rows * (double)c * (double)f, tasks);
#pragma omp parallel for num_threads(workers) schedule(dynamic)
        for (size_t block = 0; block < tasks; block++) {
            if (stopped(run)) continue;
            const size_t at = block * s.task, next = first + at + (size_t)workers * s.task;
            const prefetch_rows of_y = next_task_rows(y ? y : dx, c, y ? n : 0, next, s.task, NULL);
            const prefetch_rows of_dx = next_task_rows(dx, c, n, next, s.task, &of_y);
            const prefetch_rows of_x = next_task_rows(x, c, n, next, s.task, &of_dx);
            const prefetch_rows of_dy = next_task_rows(dy, c, n, next, s.task, &of_x);
            feed_forward_rows_backward(&ff, &s, dx, y, dy, x, b1, b2, first + at, at,
                                       min_size(s.task, rows - at), &of_dy);
        }
        if (stopped(run)) return;
        // 3. weights: forward was y = a w2' + b2, with a = act(drop(h)) and h = x w1' + b1
        weight_gradient(run, dw2, dy + first * c, c, s.hidden, s.ldh, rows, c, f, s.gradient);
        weight_gradient(run, dw1, s.dhidden, s.ldh, x + first * c, c, rows, f, c, s.gradient);
        fold_sums(db1, s.parts, f + c, tasks, f);
        fold_sums(db2, s.parts + f, f + c, tasks, c);
    }
}
