/* linear.c: y = x w' + bias. */
#include "gemm.h"
#include "small_batch.h"

/* Per thread: a copy of a task's rows of the left operand; or those rounded, and a piece of the
   product. */
static size_t linear_thread_bytes(const rf_run *run, size_t m, size_t k) {
    const size_t piece = bytes_of(TASK_ROWS * padded(min_size(ROUNDED_NC, m)), sizeof(real));
    return bytes_add(left_bytes(run, TASK_ROWS, k), terms_of(run) ? piece : 0);
}

/* Packed weights of k x m, and each thread's scratch. */
static size_t linear_product_workspace(const rf_run *run, size_t m, size_t k) {
    return bytes_add(packed_bytes(run, k, m),
                     bytes_mul((size_t)run->workers, linear_thread_bytes(run, m, k)));
}

static size_t linear_workspace(const rf_run *run, size_t n, size_t ci, size_t co) {
    return n < SMALL_BATCH ? 0 : linear_product_workspace(run, co, ci);
}

static size_t linear_backward_workspace(const rf_run *run, size_t n, size_t ci, size_t co) {
    return max_size(linear_product_workspace(run, ci, co),
                    weight_gradient_workspace(run, n, co, ci));
}

/* y = x + bias, which may be NULL. */
static void store_rows(real *y, size_t ldy, const real *x, size_t ldx, const real *bias,
                       size_t rows, size_t columns) {
    if (bias)
        add_bias(y, ldy, x, ldx, bias, rows, columns);
    else
        copy_rows(y, ldy, x, ldx, rows, columns);
}

/* A task of a rounded product. Its columns are computed in scratch, a piece at a time, and then
   stored row by row: tiles would store a few columns of many rows, each of which would wait for
   memory. */
static void linear_rounded(const rf_run *run, real *c, const real *a, packed_matrix b,
                           const real *bias, size_t rows, void *scratch) {
    const size_t ld = padded(min_size(ROUNDED_NC, b.n));
    const left_matrix left =
        left_at(run, take(&scratch, left_bytes(run, rows, b.k), 1), a, rows, b.k);
    for (size_t j = 0; j < b.n; j += ROUNDED_NC) {
        const packed_matrix piece = packed_columns(b, j, min_size(ROUNDED_NC, b.n - j));
        gemm_left(scratch, ld, &left, &piece, NULL);
        store_rows(c + j, b.n, scratch, ld, bias ? bias + j : NULL, rows, piece.n);
    }
}

/* c (n x m) = a (n x k) b, element (p, j) of b at b[p * brs + j * bcs], plus a bias or NULL. If
   rows are a multiple of 2 KB apart, they are copied to scratch: a tile's would collide in the
   cache's sets. */
static void linear_product(rf_run *run, real *c, const real *a, const real *b, ptrdiff_t brs,
                           ptrdiff_t bcs, const real *bias, size_t n, size_t m, size_t k,
                           void *scratch) {
    const size_t ld = padded(k), task = task_rows(run, n, 0), each = linear_thread_bytes(run, m, k);
    const packed_matrix packed = take_packed(&scratch, run, k, m);
    const int copies = k * sizeof(real) % 2048 == 0;
    pack_parallel(run, packed, b, brs, bcs);
    const int workers = tile_team(run, 2.0 * (double)n * (double)m * (double)k, blocks_of(n, task));
#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (size_t block = 0; block < blocks_of(n, task); block++) {
        if (stopped(run)) continue;
        const size_t row = block * task, rows = min_size(task, n - row);
        const real *left = a + row * k;
        real *mine = (real *)((char *)scratch + thread_index() * each);
        if (packed.rounded.terms && k) {
            linear_rounded(run, c + row * m, left, packed, bias, rows, mine);
            continue;
        }
        if (copies) copy_rows(mine, ld, left, k, rows, k);
        const size_t next = row + (size_t)workers * task;
        const prefetch_rows of_c = next_task_rows(c, m, n, next, task, NULL);
        const prefetch_rows of_a = next_task_rows(a, k, n, next, task, &of_c);
        gemm_packed_prefetch(c + row * m, m, copies ? mine : left, (ptrdiff_t)(copies ? ld : k), 1,
                             &packed, rows, 0, &of_a);
        if (bias) add_bias(c + row * m, m, c + row * m, m, bias, rows, m);
    }
}

static void linear_forward(rf_run *run, const real *x, const real *weight, const real *bias,
                           real *out, size_t n, size_t ci, size_t co, void *scratch) {
    if (n < SMALL_BATCH) {
        const rf_matrix matrix = matrix_of(weight);
        linear_small_batch(run, x, &matrix, bias, out, n, ci, co);
        return;
    }
    linear_product(run, out, x, weight, 1, (ptrdiff_t)ci, bias, n, co, ci, scratch);
}

static void linear_backward(rf_run *run, const real *x, const real *weight, const real *dout,
                            real *dx, real *dweight, real *dbias, size_t n, size_t ci, size_t co,
                            void *scratch) {
    // forward was y = x weight' + bias
    linear_product(run, dx, dout, weight, (ptrdiff_t)ci, 1, NULL, n, ci, co, scratch);
    weight_gradient(run, dweight, dbias, dout, co, x, ci, n, co, ci, scratch);
}
