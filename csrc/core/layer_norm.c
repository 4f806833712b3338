/* layer_norm.c: normalise rows (Ba et al. 2016). */
#include "core.h"

/* Sums are accumulated in this many partial sums, added as a tree: the same bits for any register
   width, and an error that grows with c / 32. */
#define NORM_LANES 32
#define NORM_BLOCKS 64      // of rows, each with its own partial gradients of the weights
#define NORM_ELEMENTS 16384 // between two polls

static inline real fold_lanes(real *restrict lane) {
    for (size_t half = NORM_LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

static inline real row_sum(const real *restrict x, size_t c) {
    real lane[NORM_LANES] = {0};
    size_t i = 0;
    for (; i + NORM_LANES <= c; i += NORM_LANES)
#pragma omp simd
        for (size_t j = 0; j < NORM_LANES; j++) lane[j] += x[i + j];
    for (size_t j = 0; i + j < c; j++) lane[j] += x[i + j];
    return fold_lanes(lane);
}

static inline real row_squares(const real *restrict x, real mean, size_t c) {
    real lane[NORM_LANES] = {0};
    size_t i = 0;
    for (; i + NORM_LANES <= c; i += NORM_LANES)
#pragma omp simd
        for (size_t j = 0; j < NORM_LANES; j++) {
            const real centred = x[i + j] - mean;
            lane[j] += centred * centred;
        }
    for (size_t j = 0; i + j < c; j++) {
        const real centred = x[i + j] - mean;
        lane[j] += centred * centred;
    }
    return fold_lanes(lane);
}

static size_t norm_rows(size_t c) {
    return max_size(1, NORM_ELEMENTS / max_size(1, c));
}

static void layer_norm_forward(rf_run *run, const real *restrict x, const real *restrict weight,
                               const real *restrict bias, double eps, real *restrict out,
                               real *restrict mean, real *restrict rstd, size_t n, size_t c) {
    const size_t rows = norm_rows(c);
#pragma omp parallel for num_threads(team(run, 4.0 * (double)n * (double)c)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, rows); block++) {
        if (stopped(run)) continue;
        for (size_t i = block * rows; i < min_size(n, (block + 1) * rows); i++) {
            const real *restrict xi = x + i * c;
            real *restrict yi = out + i * c;
            const real m = row_sum(xi, c) / (real)c;
            const real variance = row_squares(xi, m, c) / (real)c;
            const real r = 1 / (real)sqrt((double)variance + eps);
#pragma omp simd
            for (size_t j = 0; j < c; j++) yi[j] = (xi[j] - m) * r * weight[j] + bias[j];
            mean[i] = m;
            rstd[i] = r;
        }
    }
}

static size_t layer_norm_backward_workspace(size_t n, size_t c) {
    const size_t blocks = min_size(n, NORM_BLOCKS);
    return bytes_mul(2, bytes_mul(blocks, bytes_of(c, sizeof(real))));
}

/* One row: dx, and its contribution to the weights' gradients. */
static inline void norm_row_backward(real *restrict dx, real *restrict dw, real *restrict db,
                                     const real *restrict dy, const real *restrict x, real mean,
                                     real rstd, const real *restrict weight, size_t c) {
    real along_1[NORM_LANES] = {0}, along_h[NORM_LANES] = {0};

    // 1. weights: forward was y = h * weight + bias, with h = (x - mean) * rstd
    size_t i = 0;
    for (; i + NORM_LANES <= c; i += NORM_LANES)
#pragma omp simd
        for (size_t j = 0; j < NORM_LANES; j++) {
            const real h = (x[i + j] - mean) * rstd, dh = dy[i + j] * weight[i + j];
            along_1[j] += dh;
            along_h[j] += dh * h;
            dw[i + j] += dy[i + j] * h;
            db[i + j] += dy[i + j];
        }
    for (size_t j = 0; i + j < c; j++) {
        const real h = (x[i + j] - mean) * rstd, dh = dy[i + j] * weight[i + j];
        along_1[j] += dh;
        along_h[j] += dh * h;
        dw[i + j] += dy[i + j] * h;
        db[i + j] += dy[i + j];
    }

    // 2. dx: the components of dh along 1 and along h vanish, since mean and rstd absorb them
    const real mean_1 = fold_lanes(along_1) / (real)c, mean_h = fold_lanes(along_h) / (real)c;
#pragma omp simd
    for (size_t j = 0; j < c; j++) {
        const real h = (x[j] - mean) * rstd, dh = dy[j] * weight[j];
        dx[j] = (dh - mean_1 - h * mean_h) * rstd;
    }
}

static void layer_norm_backward(rf_run *run, const real *restrict x, const real *restrict weight,
                                const real *restrict mean, const real *restrict rstd,
                                const real *restrict dout, real *restrict dx,
                                real *restrict dweight, real *restrict dbias, size_t n, size_t c,
                                void *scratch) {
    const size_t blocks = min_size(n, NORM_BLOCKS), rows = norm_rows(c);
    const size_t line = bytes_of(c, sizeof(real)) / sizeof(real); // no two blocks share a line
    real *restrict dws = scratch, *restrict dbs = dws + blocks * line;

#pragma omp parallel for num_threads(team(run, 8.0 * (double)n * (double)c)) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        const size_t end = n * (block + 1) / blocks;
        real *dw = dws + block * line, *db = dbs + block * line;
        memset(dw, 0, c * sizeof(real));
        memset(db, 0, c * sizeof(real));
        for (size_t i = n * block / blocks; i < end && !stopped(run); i += rows)
            for (size_t r = i; r < min_size(end, i + rows); r++)
                norm_row_backward(dx + r * c, dw, db, dout + r * c, x + r * c, mean[r], rstd[r],
                                  weight, c);
    }

    for (size_t block = 0; block < blocks; block++)
#pragma omp simd
        for (size_t j = 0; j < c; j++) {
            dweight[j] += dws[block * line + j];
            dbias[j] += dbs[block * line + j];
        }
}
