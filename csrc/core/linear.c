/* linear.c: y = x w' + bias. */
#include "gemm.h"

#define LINEAR_ROWS 96 // rows of a task: its piece of x stays in the second-level cache
#define LINEAR_FEW 8   // fewer rows than this do not repay the packing of w

static size_t linear_workspace(size_t n, size_t ci, size_t co, int workers) {
    const size_t packed = bytes_of(gemm_packed_size(ci, co), sizeof(real));
    const size_t packed_back = bytes_of(gemm_packed_size(co, ci), sizeof(real));
    const size_t gradient = weight_gradient_workspace(n, co, ci, workers);
    return max_size(max_size(packed, packed_back), gradient);
}

/* A few rows, one token's say: every weight is read once, as it lies. */
static void linear_few(rf_run *run, real *y, const real *x, const real *w, const real *bias,
                       size_t n, size_t ci, size_t co) {
    const size_t block = 64;
#pragma omp parallel for num_threads(team(run, 2.0 * (double)n * (double)(ci * co)))               \
    schedule(static)
    for (size_t b = 0; b < blocks_of(co, block); b++) {
        if (stopped(run)) continue;
        for (size_t j = b * block; j < min_size(co, (b + 1) * block); j++)
            for (size_t i = 0; i < n; i++)
                y[i * co + j] = dot(x + i * ci, w + j * ci, ci) + (bias ? bias[j] : 0);
    }
}

static void linear_forward(rf_run *run, real *y, const real *x, const real *w, const real *bias,
                           size_t n, size_t ci, size_t co, void *scratch) {
    if (n < LINEAR_FEW) {
        linear_few(run, y, x, w, bias, n, ci, co);
        return;
    }
    real *packed = scratch;
    pack_parallel(run, packed, w, 1, (ptrdiff_t)ci, ci, co);
#pragma omp parallel for num_threads(team(run, 2.0 * (double)n * (double)(ci * co)))               \
    schedule(dynamic)
    for (size_t block = 0; block < blocks_of(n, LINEAR_ROWS); block++) {
        if (stopped(run)) continue;
        const size_t row = block * LINEAR_ROWS, rows = min_size(LINEAR_ROWS, n - row);
        real *yr = y + row * co;
        gemm_packed(yr, co, x + row * ci, (ptrdiff_t)ci, 1, packed, rows, co, ci, 0);
        if (bias)
            for (size_t i = 0; i < rows; i++)
                for (size_t j = 0; j < co; j++) yr[i * co + j] += bias[j];
    }
}

/* dbias += column sums of dy: fixed blocks of rows, each summed on its own columns' task. */
static void add_column_sums(rf_run *run, real *sums, const real *dy, size_t n, size_t c) {
    const size_t width = 64;
#pragma omp parallel for num_threads(team(run, (double)n * (double)c)) schedule(static)
    for (size_t block = 0; block < blocks_of(c, width); block++) {
        if (stopped(run)) continue;
        const size_t j0 = block * width, columns = min_size(width, c - j0);
        for (size_t row = 0; row < n; row += 1024) {
            real part[64] = {0};
            for (size_t i = row; i < min_size(n, row + 1024); i++)
                for (size_t j = 0; j < columns; j++) part[j] += dy[i * c + j0 + j];
            for (size_t j = 0; j < columns; j++) sums[j0 + j] += part[j];
        }
    }
}

static void linear_backward(rf_run *run, real *dx, real *dw, real *dbias, const real *dy,
                            const real *x, const real *w, size_t n, size_t ci, size_t co,
                            void *scratch) {
    // forward was y = x w' + bias
    if (dx) {
        real *packed = scratch;
        pack_parallel(run, packed, w, (ptrdiff_t)ci, 1, co, ci);
#pragma omp parallel for num_threads(team(run, 2.0 * (double)n * (double)(ci * co)))               \
    schedule(dynamic)
        for (size_t block = 0; block < blocks_of(n, LINEAR_ROWS); block++) {
            if (stopped(run)) continue;
            const size_t row = block * LINEAR_ROWS, rows = min_size(LINEAR_ROWS, n - row);
            gemm_packed(dx + row * ci, ci, dy + row * co, (ptrdiff_t)co, 1, packed, rows, ci, co,
                        0);
        }
    }
    weight_gradient(run, dw, dy, co, x, ci, n, co, ci, scratch);
    if (dbias) add_column_sums(run, dbias, dy, n, co);
}
