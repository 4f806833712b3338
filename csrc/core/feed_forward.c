/* feed_forward.c: two linear layers with an activation between them (Vaswani et al. 2017,
   section 3.3), and the gated layer, whose hidden rows act(x w1' + b1) are multiplied by those of a
   third linear layer, x w3' + b3 (Shazeer 2020, "GLU Variants Improve Transformer"). Hidden rows
   are f wide, so only a piece of them exists at a time: some rows by some columns (Reformer, Kitaev
   et al. 2020, section 3, "Chunking"). */
#include "activation.h"
#include "gemm.h"
#include "philox.h"
#include "small_batch.h"

#define HIDDEN_PIECE (1024 / sizeof(real)) // columns of a piece: TASK_ROWS of them are 192 KB

/* The options of one call. */
typedef struct {
    rf_run *run;
    size_t n, c, f;
    int gated;
    rf_activation activation;
    uint32_t threshold; // of the dropout
    real scale;
    uint64_t key;
} feed_forward;

static feed_forward feed_forward_of(rf_run *run, size_t n, size_t c, size_t f, int gated,
                                    rf_activation activation, double dropout, uint64_t key) {
    return (feed_forward){
        run, n, c, f, gated, activation, drop_threshold(dropout), drop_scale(dropout), key};
}

/* Drop elements [column, column + width) of a hidden row. */
static inline void drop_hidden(const feed_forward *ff, real *h, size_t row, size_t column,
                               size_t width) {
    if (ff->threshold)
        drop_row(h, h, width, (uint64_t)row * ff->f + column, ff->threshold, ff->scale, ff->key);
}

/* Elements [column, column + width) of a hidden row: h = act(drop(h)), or drop(act(h) g) with the
   row g of a gated layer. */
static inline void hidden_row(const feed_forward *ff, real *restrict h, const real *restrict g,
                              size_t row, size_t column, size_t width) {
    if (!ff->gated) drop_hidden(ff, h, row, column, width);
    activate(ff->activation, h, NULL, width);
    if (!ff->gated) return;
#pragma omp simd
    for (size_t i = 0; i < width; i++) h[i] *= g[i];
    drop_hidden(ff, h, row, column, width);
}

/* The same, with the gradient: dh is that of the result on entry, of the h before on exit. g
   becomes its own gradient. */
static inline void hidden_row_backward(const feed_forward *ff, real *restrict h, real *restrict g,
                                       real *restrict dh, size_t row, size_t column, size_t width) {
    if (!ff->gated) {
        drop_hidden(ff, h, row, column, width);
        activate(ff->activation, h, dh, width);
        drop_hidden(ff, dh, row, column, width);
        return;
    }
    real du[HIDDEN_PIECE]; // of act(h) g
    drop_hidden(ff, dh, row, column, width);
    memcpy(du, dh, width * sizeof(real));
#pragma omp simd
    for (size_t i = 0; i < width; i++) dh[i] *= g[i];
    activate(ff->activation, h, dh, width);
#pragma omp simd
    for (size_t i = 0; i < width; i++) {
        const real a = h[i];
        h[i] = a * g[i];
        g[i] = du[i] * a;
    }
    drop_hidden(ff, h, row, column, width);
}

/* Bytes of n hidden rows, and of those that a gated layer multiplies them by. */
static size_t hidden_rows_bytes(size_t n, size_t f, int gated) {
    return bytes_mul(gated ? 2 : 1, bytes_of(bytes_mul(n, f), sizeof(real)));
}

static void feed_forward_small_batch(rf_run *run, const feed_forward *ff, real *y, const real *x,
                                     const rf_matrix *w1, const real *b1, const rf_matrix *w2,
                                     const real *b2, const rf_matrix *w3, const real *b3,
                                     void *scratch) {
    const size_t n = ff->n, c = ff->c, f = ff->f;
    real *h = take(&scratch, n * f, sizeof(real)), *g = scratch;
    linear_small_batch(run, x, w1, b1, h, n, c, f);
    if (ff->gated) linear_small_batch(run, x, w3, b3, g, n, c, f);
    for (size_t i = 0; i < n; i++) hidden_row(ff, h + i * f, g + i * f, i, 0, f);
    linear_small_batch(run, h, w2, b2, y, n, f, c);
}

static size_t quantized_feed_forward_workspace(size_t n, size_t f, int gated) {
    return hidden_rows_bytes(n, f, gated);
}

static void quantized_feed_forward(rf_run *run, const real *x, const rf_matrix *w1, const real *b1,
                                   const rf_matrix *w2, const real *b2, const rf_matrix *w3,
                                   const real *b3, rf_activation activation, real *out, size_t n,
                                   size_t c, size_t f, void *scratch) {
    const feed_forward ff = feed_forward_of(run, n, c, f, w3 != NULL, activation, 0.0, 0);
    feed_forward_small_batch(run, &ff, out, x, w1, b1, w2, b2, w3, b3, scratch);
}

/* An f x c right operand is packed a piece of f at a time: each piece is the right operand of one
   product. */
static size_t pieces_bytes(const rf_run *run, size_t f, size_t c) {
    const size_t whole = bytes_mul(f / HIDDEN_PIECE, packed_bytes(run, HIDDEN_PIECE, c));
    return bytes_add(whole, packed_bytes(run, f % HIDDEN_PIECE, c));
}

/* The piece that begins at row j. */
static packed_matrix piece_at(const rf_run *run, char *pieces, size_t f, size_t c, size_t j) {
    return packed_at(run, pieces + j / HIDDEN_PIECE * packed_bytes(run, HIDDEN_PIECE, c),
                     min_size(HIDDEN_PIECE, f - j), c);
}

/* Element (p, j) of the operand is b[p * brs + j * bcs]. */
static void pack_pieces(rf_run *run, char *pieces, const real *b, ptrdiff_t brs, ptrdiff_t bcs,
                        size_t f, size_t c) {
    for (size_t p = 0; p < f; p += HIDDEN_PIECE)
        pack_parallel(run, piece_at(run, pieces, f, c, p), b + (ptrdiff_t)p * brs, brs, bcs);
}

/* Bytes of scratch for a task: its rows of x and y, and a piece of its hidden rows and of what they
   are multiplied by. */
static size_t feed_forward_task_bytes(const rf_run *run, size_t rows, size_t c, int gated) {
    const size_t pieces = (gated ? 2 : 1) * padded(HIDDEN_PIECE);
    const size_t reals = bytes_mul(rows, bytes_add(padded(c), pieces));
    return bytes_add(left_bytes(run, rows, c), bytes_of(reals, sizeof(real)));
}

/* The weights of a forward pass. */
typedef struct {
    packed_matrix w1, w3; // c x f
    char *w2;             // packed in pieces, f x c
    const real *b1, *b2, *b3;
} feed_forward_weights;

/* A piece of a hidden layer before its activation: h = x w' + b. */
static void hidden_piece(real *h, size_t ldh, const left_matrix *x, packed_matrix w, const real *b,
                         size_t j, size_t width, size_t rows, const prefetch_rows *next_rows) {
    const packed_matrix piece = packed_columns(w, j, width);
    gemm_left(h, ldh, x, &piece, next_rows);
    add_bias(h, ldh, h, ldh, b + j, rows, width);
}

static void feed_forward_rows(const feed_forward *ff, real *y, const real *x,
                              const feed_forward_weights *w, void *scratch, size_t row, size_t rows,
                              const prefetch_rows *next_rows) {
    const size_t c = ff->c, f = ff->f, ld = padded(c), ldh = padded(HIDDEN_PIECE);
    void *at = take(&scratch, left_bytes(ff->run, rows, c), 1);
    const left_matrix left = left_at(ff->run, at, x + row * c, rows, c);
    real *yr = scratch, *h = yr + rows * ld, *g = h + rows * ldh;
    size_t j = 0;
    do { // once even if f is 0: then y is b2
        // 1. a piece of the hidden layer, and of what it is multiplied by
        const size_t width = min_size(HIDDEN_PIECE, f - j);
        hidden_piece(h, ldh, &left, w->w1, w->b1, j, width, rows, j + width < f ? NULL : next_rows);
        if (ff->gated) hidden_piece(g, ldh, &left, w->w3, w->b3, j, width, rows, NULL);
        // 2. its activation
        for (size_t i = 0; i < rows; i++)
            hidden_row(ff, h + i * ldh, g + i * ldh, row + i, j, width);
        // 3. y += h w2'
        const packed_matrix w2 = piece_at(ff->run, w->w2, f, c, j);
        gemm_packed(yr, ld, h, (ptrdiff_t)ldh, 1, &w2, rows, j > 0);
        j += width;
    } while (j < f);
    add_bias(y + row * c, c, yr, ld, w->b2, rows, c);
}

static size_t feed_forward_workspace(const rf_run *run, size_t n, size_t c, size_t f, int gated,
                                     size_t chunk) {
    if (n < SMALL_BATCH) return hidden_rows_bytes(n, f, gated);
    const size_t right = bytes_mul(gated ? 2 : 1, packed_bytes(run, c, f));
    const size_t packed = bytes_add(right, pieces_bytes(run, f, c));
    const size_t task = feed_forward_task_bytes(run, task_rows(run, n, chunk), c, gated);
    return bytes_add(packed, bytes_mul((size_t)run->workers, task));
}

static void feed_forward_forward(rf_run *run, const real *x, const real *w1, const real *b1,
                                 const real *w2, const real *b2, const real *w3, const real *b3,
                                 rf_activation activation, size_t chunk_length, double dropout,
                                 uint64_t dropout_key, real *out, size_t n, size_t c, size_t f,
                                 void *scratch) {
    const int gated = w3 != NULL;
    const feed_forward ff = feed_forward_of(run, n, c, f, gated, activation, dropout, dropout_key);
    if (n < SMALL_BATCH) {
        const rf_matrix first = matrix_of(w1), second = matrix_of(w2), third = matrix_of(w3);
        feed_forward_small_batch(run, &ff, out, x, &first, b1, &second, b2, &third, b3, scratch);
        return;
    }
    const size_t task = task_rows(run, n, chunk_length),
                 own = feed_forward_task_bytes(run, task, c, gated);
    feed_forward_weights weights = {.b1 = b1, .b2 = b2, .b3 = b3};
    weights.w1 = take_packed(&scratch, run, c, f);
    weights.w2 = take(&scratch, pieces_bytes(run, f, c), 1);
    if (gated) weights.w3 = take_packed(&scratch, run, c, f);
    char *tasks = scratch; // one per thread
    pack_parallel(run, weights.w1, w1, 1, (ptrdiff_t)c);
    pack_pieces(run, weights.w2, w2, 1, (ptrdiff_t)f, f, c);
    if (gated) pack_parallel(run, weights.w3, w3, 1, (ptrdiff_t)c);

    const double work = (gated ? 6.0 : 4.0) * (double)n * (double)c * (double)f;
    const int workers = tile_team(run, work, blocks_of(n, task));
#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (size_t block = 0; block < blocks_of(n, task); block++) {
        if (stopped(run)) continue;
        const size_t row = block * task, next = row + (size_t)workers * task;
        const prefetch_rows of_y = next_task_rows(out, c, n, next, task, NULL);
        const prefetch_rows of_x = next_task_rows(x, c, n, next, task, &of_y);
        feed_forward_rows(&ff, out, x, &weights, tasks + thread_index() * own, row,
                          min_size(task, n - row), &of_x);
    }
}

/* The scratch of the backward pass. */
typedef struct {
    packed_matrix w1t, w2, w3t; // c x f
    char *w1, *w2t, *w3;        // packed in pieces, f x c; w2t for y
    real *hidden, *dhidden;     // a chunk's rows of the activated hidden layer and of dh
    real *dgate;                // of g and then dg, in a gated layer
    char *rows;                 // per thread: a task's rows of x, dy and dx (or y)
    void *gradient;          // for weight_gradient; overlaps rows, since tasks have ended by then
    size_t chunk, task, ldh; // rows, rows, columns
} feed_forward_scratch;

/* Bytes of a task's rows of x, dy and dx. */
static size_t feed_forward_rows_bytes(const rf_run *run, size_t task, size_t c) {
    return bytes_add(bytes_mul(2, left_bytes(run, task, c)),
                     bytes_of(bytes_mul(task, padded(c)), sizeof(real)));
}

static size_t feed_forward_backward_workspace(const rf_run *run, size_t n, size_t c, size_t f,
                                              int gated, size_t chunk) {
    const size_t linears = gated ? 3 : 2; // and arrays of hidden rows
    const size_t ldh = padded(f), rows = chunk_rows(n, bytes_mul(linears, ldh), chunk);
    const size_t packed = bytes_add(packed_bytes(run, c, f), pieces_bytes(run, f, c));
    const size_t hidden = bytes_of(bytes_mul(rows, ldh), sizeof(real));
    const size_t gradient = max_size(weight_gradient_workspace(run, rows, f, c),
                                     weight_gradient_workspace(run, rows, c, f));
    const size_t threads =
        bytes_mul((size_t)run->workers, feed_forward_rows_bytes(run, task_rows(run, rows, 0), c));
    const size_t own =
        bytes_add(bytes_mul(linears, bytes_add(packed, hidden)), max_size(gradient, threads));
    return n < SMALL_BATCH ? max_size(own, hidden_rows_bytes(n, f, gated)) : own;
}

static feed_forward_scratch feed_forward_scratch_of(const rf_run *run, void *scratch, size_t n,
                                                    size_t c, size_t f, int gated, size_t chunk) {
    feed_forward_scratch s = {.ldh = padded(f)};
    s.chunk = chunk_rows(n, (gated ? 3 : 2) * s.ldh, chunk);
    s.task = task_rows(run, s.chunk, 0);
    s.w1 = take(&scratch, pieces_bytes(run, f, c), 1);
    s.w1t = take_packed(&scratch, run, c, f);
    s.w2 = take_packed(&scratch, run, c, f);
    s.w2t = take(&scratch, pieces_bytes(run, f, c), 1);
    s.hidden = take(&scratch, s.chunk * s.ldh, sizeof(real));
    s.dhidden = take(&scratch, s.chunk * s.ldh, sizeof(real));
    if (gated) {
        s.w3 = take(&scratch, pieces_bytes(run, f, c), 1);
        s.w3t = take_packed(&scratch, run, c, f);
        s.dgate = take(&scratch, s.chunk * s.ldh, sizeof(real));
    }
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
        const packed_matrix w2 = piece_at(ff->run, s->w2t, f, c, j);
        gemm_packed(yr, ld, s->hidden + at * s->ldh + j, (ptrdiff_t)s->ldh, 1, &w2, rows, j > 0);
        j += width;
    } while (j < f);
    add_bias(y + row * c, c, yr, ld, b2, rows, c);
}

/* One task: dx, its rows of the hidden layer and of that layer's gradient (for the gradients of the
   weights), and y unless it is NULL. `at` is the task's first row within the chunk. */
static void feed_forward_rows_backward(const feed_forward *ff, const feed_forward_scratch *s,
                                       real *dx, real *y, const real *dy, const real *x,
                                       const real *b1, const real *b2, const real *b3, size_t row,
                                       size_t at, size_t rows, const prefetch_rows *next_rows) {
    const size_t c = ff->c, f = ff->f, ld = padded(c), ldh = s->ldh;
    const size_t each = left_bytes(ff->run, s->task, c);
    char *own = s->rows + thread_index() * feed_forward_rows_bytes(ff->run, s->task, c);
    const left_matrix xr = left_at(ff->run, own, x + row * c, rows, c);
    const left_matrix dyr = left_at(ff->run, own + each, dy + row * c, rows, c);
    real *dxr = (real *)(own + 2 * each);
    size_t j = 0;
    do {
        const size_t width = min_size(HIDDEN_PIECE, f - j);
        real *h = s->hidden + at * ldh + j, *dh = s->dhidden + at * ldh + j;
        real *g = ff->gated ? s->dgate + at * ldh + j : NULL;
        // 1. the gradient of the activated layer: forward was y = hidden w2' + b2
        const packed_matrix w2 = packed_columns(s->w2, j, width);
        gemm_left(dh, ldh, &dyr, &w2, j + width < f ? NULL : next_rows);
        // 2. recompute the hidden layer, and what it is multiplied by
        hidden_piece(h, ldh, &xr, s->w1t, b1, j, width, rows, NULL);
        if (g) hidden_piece(g, ldh, &xr, s->w3t, b3, j, width, rows, NULL);
        // 3. its activation, dh and dg
        for (size_t i = 0; i < rows; i++)
            hidden_row_backward(ff, h + i * ldh, g ? g + i * ldh : NULL, dh + i * ldh, row + i, j,
                                width);
        // 4. dx: forward was h = x w1' + b1, g = x w3' + b3
        const packed_matrix w1 = piece_at(ff->run, s->w1, f, c, j);
        gemm_packed(dxr, ld, dh, (ptrdiff_t)ldh, 1, &w1, rows, j > 0);
        if (g) {
            const packed_matrix w3 = piece_at(ff->run, s->w3, f, c, j);
            gemm_packed(dxr, ld, g, (ptrdiff_t)ldh, 1, &w3, rows, 1);
        }
        j += width;
    } while (j < f);
    // 5. dx and y
    copy_rows(dx + row * c, c, dxr, ld, rows, c);
    if (y) recompute_rows(ff, s, y, dxr, b2, row, at, rows);
}

static void feed_forward_backward(rf_run *run, const real *x, const real *w1, const real *b1,
                                  const real *w2, const real *b2, const real *w3, const real *b3,
                                  rf_activation activation, size_t chunk_length, double dropout,
                                  uint64_t dropout_key, const real *dout, real *value_out, real *dx,
                                  real *dw1, real *db1, real *dw2, real *db2, real *dw3, real *db3,
                                  size_t n, size_t c, size_t f, void *scratch) {
    const int gated = w3 != NULL;
    const feed_forward ff = feed_forward_of(run, n, c, f, gated, activation, dropout, dropout_key);
    if (value_out && n < SMALL_BATCH) { // in the bits of the forward pass
        feed_forward_forward(run, x, w1, b1, w2, b2, w3, b3, activation, chunk_length, dropout,
                             dropout_key, value_out, n, c, f, scratch);
        value_out = NULL;
    }
    const feed_forward_scratch s =
        feed_forward_scratch_of(run, scratch, n, c, f, gated, chunk_length);
    // 1. pack the weights
    pack_parallel(run, s.w1t, w1, 1, (ptrdiff_t)c);
    pack_parallel(run, s.w2, w2, (ptrdiff_t)f, 1);
    pack_pieces(run, s.w1, w1, (ptrdiff_t)c, 1, f, c);
    if (value_out) pack_pieces(run, s.w2t, w2, 1, (ptrdiff_t)f, f, c);
    if (gated) {
        pack_parallel(run, s.w3t, w3, 1, (ptrdiff_t)c);
        pack_pieces(run, s.w3, w3, (ptrdiff_t)c, 1, f, c);
    }

    for (size_t first = 0; first < n; first += s.chunk) {
        const size_t rows = min_size(s.chunk, n - first), tasks = blocks_of(rows, s.task);
        // 2. dx, and a chunk's rows of the hidden layer and of its gradient
        const double work = (gated ? 10.0 : 6.0) * (double)rows * (double)c * (double)f;
        const int workers = tile_team(run, work, tasks);
#pragma omp parallel for num_threads(workers) schedule(dynamic)
        for (size_t block = 0; block < tasks; block++) {
            if (stopped(run)) continue;
            const size_t at = block * s.task, next = first + at + (size_t)workers * s.task;
            const prefetch_rows of_y = next_task_rows(value_out ? value_out : dx, c,
                                                      value_out ? n : 0, next, s.task, NULL);
            const prefetch_rows of_dx = next_task_rows(dx, c, n, next, s.task, &of_y);
            const prefetch_rows of_x = next_task_rows(x, c, n, next, s.task, &of_dx);
            const prefetch_rows of_dy = next_task_rows(dout, c, n, next, s.task, &of_x);
            feed_forward_rows_backward(&ff, &s, dx, value_out, dout, x, b1, b2, b3, first + at, at,
                                       min_size(s.task, rows - at), &of_dy);
        }
        if (stopped(run)) return;
        // 3. weights and biases: forward was y = hidden w2' + b2, hidden of x w1' + b1 (x w3' + b3)
        weight_gradient(run, dw2, db2, dout + first * c, c, s.hidden, s.ldh, rows, c, f,
                        s.gradient);
        weight_gradient(run, dw1, db1, s.dhidden, s.ldh, x + first * c, c, rows, f, c, s.gradient);
        if (gated)
            weight_gradient(run, dw3, db3, s.dgate, s.ldh, x + first * c, c, rows, f, c,
                            s.gradient);
    }
}
