/* cross_entropy.c: the language model's head: projection and loss fused, so that the n x v logits
   never exist (Reformer, Kitaev et al. 2020, section 3: "for models with large vocabulary we also
   chunk the log-probabilities at the output"). */
#include "gemm.h"

#define LOGITS_PIECE (1024 / sizeof(real)) // columns of v at a time in the forward pass

static inline real row_max(const real *x, size_t n) {
    vec lanes = vset1((real)-INFINITY);
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) lanes = vmax(lanes, vload(x + i));
    real max = (real)-INFINITY;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    for (size_t j = 0; j < VEC_LANES; j++) max = lanes[j] > max ? lanes[j] : max;
    return max;
}

/* x = exp(x - max); returns the sum. row_max ignores NaN, but the sum does not. */
static inline real exp_and_sum(real *x, real max, size_t n) {
    vec sum = {0};
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        const vec e = vec_exp(vload(x + i) - max);
        vstore(x + i, e);
        sum += e;
    }
    real tail = 0;
    for (; i < n; i++) tail += x[i] = exp1(x[i] - max);
    return vsum(sum) + tail;
}

static inline real logits_sum(const real *x, size_t n) {
    vec sum = {0};
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) sum += vload(x + i);
    real tail = 0;
    for (; i < n; i++) tail += x[i];
    return vsum(sum) + tail;
}

/* Online softmax of a row: running maximum, sum of exp(logit - max), the label's logit, and, if
   labels are smoothed, the sum of all logits. */
typedef struct {
    real max, sum, label;
    double total;
} row_state;

static void add_piece(row_state *state, real *logits, size_t width) {
    const real max = row_max(logits, width);
    if (max > state->max) {
        state->sum *= exp1(state->max - max);
        state->max = max;
    }
    state->sum += exp_and_sum(logits, state->max, width);
}

/* Bytes of scratch for a task: its rows of x, and a piece of their logits. */
static size_t cross_entropy_task_bytes(const rf_run *run, size_t rows, size_t c) {
    return bytes_add(left_bytes(run, rows, c),
                     bytes_of(bytes_mul(rows, padded(LOGITS_PIECE)), sizeof(real)));
}

/* One task: the losses of its rows, loss[0] their sum and loss[1] their number. */
static void cross_entropy_rows(const rf_run *run, double *loss, const real *x, packed_matrix packed,
                               const real *bias, const int64_t *labels, size_t rows, size_t c,
                               size_t v, int64_t ignore, double smoothing, void *scratch) {
    const size_t ld = padded(LOGITS_PIECE);
    row_state state[TASK_ROWS];
    // 1. copy the rows to scratch
    void *at = take(&scratch, left_bytes(run, rows, c), 1);
    const left_matrix left = left_at(run, at, x, rows, c);
    real *logits = scratch;
    for (size_t i = 0; i < rows; i++) state[i] = (row_state){.max = (real)-INFINITY};

    // 2. logits, a piece of the vocabulary at a time
    for (size_t j = 0; j < v; j += LOGITS_PIECE) {
        const size_t width = min_size(LOGITS_PIECE, v - j);
        const packed_matrix piece = packed_columns(packed, j, width);
        gemm_left(logits, ld, &left, &piece, NULL);
        if (bias) add_bias(logits, ld, logits, ld, bias + j, rows, width);
        for (size_t i = 0; i < rows; i++) {
            if (labels[i] == ignore) continue;
            real *row = logits + i * ld;
            const size_t label = (size_t)labels[i] - j; // huge if it is before the piece
            if (label < width) state[i].label = row[label];
            if (smoothing > 0) state[i].total += (double)logits_sum(row, width);
            add_piece(&state[i], row, width);
        }
    }

    // 3. losses
    loss[0] = loss[1] = 0;
    for (size_t i = 0; i < rows; i++) {
        if (labels[i] == ignore) continue;
        const double expected =
            (1 - smoothing) * (double)state[i].label + smoothing / (double)v * state[i].total;
        loss[0] += (double)state[i].max + log((double)state[i].sum) - expected;
        loss[1] += 1;
    }
}

/* The scratch of the backward pass. */
typedef struct {
    packed_matrix wt, w;     // c x v, v x c
    real *logits;            // of a chunk, then their gradient
    real *rows;              // per thread: x of a task, then its dx
    void *gradient;          // for weight_gradient; overlaps rows, since tasks have ended by then
    size_t chunk, task, ldl; // rows, rows, columns
} cross_entropy_scratch;

static cross_entropy_scratch cross_entropy_scratch_of(const rf_run *run, void *scratch, size_t n,
                                                      size_t c, size_t v, size_t chunk) {
    cross_entropy_scratch s = {.ldl = padded(v)};
    s.chunk = chunk_rows(n, s.ldl, chunk);
    s.task = task_rows(run, s.chunk, 0);
    s.wt = take_packed(&scratch, run, c, v);
    s.w = take_packed(&scratch, run, v, c);
    s.logits = take(&scratch, s.chunk * s.ldl, sizeof(real));
    s.rows = scratch;
    s.gradient = scratch;
    return s;
}

/* Enough for either pass. */
static size_t cross_entropy_head_workspace(const rf_run *run, size_t n, size_t c, size_t v,
                                           size_t chunk) {
    const size_t threads = (size_t)run->workers, task = task_rows(run, n, chunk);
    const size_t losses = bytes_of(bytes_mul(2, blocks_of(n, task)), sizeof(double));
    const size_t own = cross_entropy_task_bytes(run, task, c);
    const size_t forward = bytes_add(losses, bytes_mul(threads, own));

    const size_t w = packed_bytes(run, v, c);
    const size_t ldl = padded(v), rows = chunk_rows(n, ldl, chunk),
                 task_back = task_rows(run, rows, 0);
    const size_t logits = bytes_of(bytes_mul(rows, ldl), sizeof(real));
    const size_t own_back = bytes_of(bytes_mul(task_back, padded(c)), sizeof(real));
    const size_t last =
        max_size(weight_gradient_workspace(run, rows, v, c), bytes_mul(threads, own_back));
    const size_t backward = bytes_add(bytes_add(w, logits), last);
    return bytes_add(packed_bytes(run, c, v), max_size(forward, backward));
}

static void cross_entropy_head_forward(rf_run *run, const real *h, const real *weight,
                                       const real *bias, const int64_t *labels,
                                       int64_t ignore_index, double label_smoothing,
                                       size_t chunk_length, double *loss, size_t n, size_t c,
                                       size_t v, void *scratch) {
    const size_t task = task_rows(run, n, chunk_length), tasks = blocks_of(n, task);
    const size_t own = cross_entropy_task_bytes(run, task, c);
    const packed_matrix packed = take_packed(&scratch, run, c, v);
    double *losses = take(&scratch, 2 * tasks, sizeof(double));
    char *threads = scratch;
    pack_parallel(run, packed, weight, 1, (ptrdiff_t)c);

#pragma omp parallel for num_threads(                                                              \
        tile_team(run, 2.0 * (double)n * (double)c * (double)v, tasks)) schedule(dynamic)
    for (size_t block = 0; block < tasks; block++) {
        if (stopped(run)) continue;
        const size_t row = block * task;
        cross_entropy_rows(run, losses + 2 * block, h + row * c, packed, bias, labels + row,
                           min_size(task, n - row), c, v, ignore_index, label_smoothing,
                           threads + thread_index() * own);
    }

    loss[0] = loss[1] = 0;
    if (stopped(run)) return;
    for (size_t block = 0; block < tasks; block++) {
        loss[0] += losses[2 * block];
        loss[1] += losses[2 * block + 1];
    }
}

/* logits = their gradient, (softmax - (1 - smoothing) onehot - smoothing / v) * scale. */
static void logits_backward(real *restrict logits, int64_t label, int64_t ignore, double smoothing,
                            real scale, size_t v) {
    if (label == ignore) {
        memset(logits, 0, v * sizeof(real));
        return;
    }
    const real factor = scale / exp_and_sum(logits, row_max(logits, v), v);
    const real share = (real)(smoothing / (double)v) * scale;
#pragma omp simd
    for (size_t j = 0; j < v; j++) logits[j] = logits[j] * factor - share;
    logits[label] -= (real)(1 - smoothing) * scale;
}

/* One task: dx, and the gradient of its logits, for w's. `at` is its first row in the chunk. */
static void cross_entropy_rows_backward(const cross_entropy_scratch *s, real *dx, const real *x,
                                        const real *bias, const int64_t *labels, size_t row,
                                        size_t at, size_t rows, size_t c, size_t v, int64_t ignore,
                                        double smoothing, real scale) {
    const size_t ldx = padded(c);
    real *xr = s->rows + thread_index() * s->task * ldx, *logits = s->logits + at * s->ldl;
    copy_rows(xr, ldx, x + row * c, c, rows, c);
    gemm_packed(logits, s->ldl, xr, (ptrdiff_t)ldx, 1, &s->wt, rows, 0);
    if (bias) add_bias(logits, s->ldl, logits, s->ldl, bias, rows, v);
    // forward was loss = sum of log(sum(exp(logits))) - (1 - smoothing) logits[label]
    // - smoothing mean(logits)
    for (size_t i = 0; i < rows; i++)
        logits_backward(logits + i * s->ldl, labels[row + i], ignore, smoothing, scale, v);
    // forward was logits = x w' + bias
    gemm_packed(xr, ldx, logits, (ptrdiff_t)s->ldl, 1, &s->w, rows, 0);
    copy_rows(dx + row * c, c, xr, ldx, rows, c);
}

static void cross_entropy_head_backward(rf_run *run, const real *h, const real *weight,
                                        const real *bias, const int64_t *labels,
                                        int64_t ignore_index, double label_smoothing,
                                        size_t chunk_length, double dloss, real *dh, real *dweight,
                                        real *dbias, size_t n, size_t c, size_t v, void *scratch) {
    const cross_entropy_scratch s = cross_entropy_scratch_of(run, scratch, n, c, v, chunk_length);
    pack_parallel(run, s.wt, weight, 1, (ptrdiff_t)c);
    pack_parallel(run, s.w, weight, (ptrdiff_t)c, 1);

    for (size_t first = 0; first < n; first += s.chunk) {
        const size_t rows = min_size(s.chunk, n - first), tasks = blocks_of(rows, s.task);
#pragma omp parallel for num_threads(                                                              \
        tile_team(run, 4.0 * (double)rows * (double)c * (double)v, tasks)) schedule(dynamic)
        for (size_t block = 0; block < tasks; block++) {
            if (stopped(run)) continue;
            const size_t at = block * s.task;
            cross_entropy_rows_backward(&s, dh, h, bias, labels, first + at, at,
                                        min_size(s.task, rows - at), c, v, ignore_index,
                                        label_smoothing, (real)dloss);
        }
        if (stopped(run)) return;
        // forward was logits = h weight' + bias
        weight_gradient(run, dweight, dbias, s.logits, s.ldl, h + first * c, c, rows, v, c,
                        s.gradient);
    }
}
