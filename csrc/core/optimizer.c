/* optimizer.c: the steps of AdamW and Adafactor, and the sum of squares for gradient clipping. */
#include "core.h"

#define OPTIMIZER_BLOCK 16384
#define SQUARES_BLOCKS 256 // partial sums of sum_of_squares
#define SQUARES_LANES 16   // partial sums of each of those

/* Sum of squares of one piece, in double: the same bits for any register width. */
static double squares_of(const real *restrict x, size_t n) {
    double lane[SQUARES_LANES] = {0};
    size_t i = 0;
    for (; i + SQUARES_LANES <= n; i += SQUARES_LANES)
#pragma omp simd
        for (size_t j = 0; j < SQUARES_LANES; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (size_t j = 0; i + j < n; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (size_t half = SQUARES_LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

static double sum_of_squares(rf_run *run, const real *x, size_t n) {
    const size_t blocks = min_size(SQUARES_BLOCKS, blocks_of(n, OPTIMIZER_BLOCK));
    double part[SQUARES_BLOCKS] = {0};
#pragma omp parallel for num_threads(team(run, (double)n)) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        const size_t end = n * (block + 1) / blocks;
        double sum = 0;
        for (size_t i = n * block / blocks; i < end && !stopped(run); i += OPTIMIZER_BLOCK)
            sum += squares_of(x + i, min_size(OPTIMIZER_BLOCK, end - i));
        part[block] = sum;
    }
    double sum = 0;
    for (size_t block = 0; block < blocks; block++) sum += part[block];
    return sum;
}

static void adamw_step(rf_run *run, real *restrict w, real *restrict m, real *restrict s,
                       const real *restrict g, double lr, double beta1, double beta2, double eps,
                       double weight_decay, uint64_t step, double grad_scale, size_t n) {
    // scalars are combined in double: in float, 1 - beta2 loses half of its digits
    const real b1 = (real)beta1, a1 = (real)(1 - beta1), b2 = (real)beta2, a2 = (real)(1 - beta2);
    const real size = (real)(lr / (1 - pow(beta1, (double)step)));
    const real correction = (real)(1 / sqrt(1 - pow(beta2, (double)step)));
    const real decay = (real)(lr * weight_decay), floor = (real)eps, scale = (real)grad_scale;

#pragma omp parallel for num_threads(team(run, 8.0 * (double)n)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, OPTIMIZER_BLOCK); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * OPTIMIZER_BLOCK);
#pragma omp simd
        for (size_t i = block * OPTIMIZER_BLOCK; i < end; i++) {
            const real gi = g[i] * scale;
            const real mi = b1 * m[i] + a1 * gi;
            const real si = b2 * s[i] + a2 * gi * gi;
            const real wi = w[i] - decay * w[i];
            m[i] = mi;
            s[i] = si;
            w[i] = wi - size * mi / (real_sqrt(si) * correction + floor);
        }
    }
}

/* ---- Adafactor ---- */

#define STRIP 64   // columns whose squares one task sums
#define PIECE 1024 // elements of an update that are computed at a time, on the stack

/* The update's direction: the gradient over the root of its second moment, which is row x column
   (factored) or s. */
typedef struct {
    const real *g, *s;
    const real *row, *column; // inverse roots of the factors, or NULL
    size_t rows, n;           // of a matrix
    size_t pieces;            // of a row
} direction;

/* Running means of the squares of rows and of columns, and from them the direction's factors. */
static void factored_moment(rf_run *run, real *restrict row, real *restrict column,
                            real *restrict row_factor, real *restrict column_factor, const real *g,
                            size_t b, size_t rows, size_t n, double beta2, double eps) {
    // 1. rows
    const double size = (double)b * (double)rows * (double)n;
#pragma omp parallel for num_threads(team(run, size)) schedule(static)
    for (size_t i = 0; i < b * rows; i++) {
        if (stopped(run)) continue;
        const double mean = squares_of(g + i * n, n) / (double)n + eps;
        row[i] = (real)(beta2 * row[i] + (1 - beta2) * mean);
    }
    // 2. columns, and the inverse roots of their means
    const size_t strips = blocks_of(n, STRIP);
#pragma omp parallel for num_threads(team(run, size)) schedule(static)
    for (size_t task = 0; task < b * strips; task++) {
        if (stopped(run)) continue;
        const size_t matrix = task / strips, begin = task % strips * STRIP;
        const size_t width = min_size(STRIP, n - begin), first = matrix * n + begin;
        double sum[STRIP] = {0};
        for (size_t i = 0; i < rows; i++) {
            const real *x = g + (matrix * rows + i) * n + begin;
#pragma omp simd
            for (size_t j = 0; j < width; j++) sum[j] += (double)x[j] * (double)x[j];
        }
        for (size_t j = 0; j < width; j++) {
            const double mean = sum[j] / (double)rows + eps;
            const real c = (real)(beta2 * column[first + j] + (1 - beta2) * mean);
            column[first + j] = c;
            column_factor[first + j] = (real)(1 / sqrt((double)c));
        }
    }
    // 3. the inverse roots of the rows' means, relative to their mean over the matrix
    for (size_t matrix = 0; matrix < b; matrix++) {
        const real *r = row + matrix * rows;
        double mean = 0;
        for (size_t i = 0; i < rows; i++) mean += r[i];
        mean /= (double)rows;
        for (size_t i = 0; i < rows; i++)
            row_factor[matrix * rows + i] = (real)sqrt(mean / (double)r[i]);
    }
}

static void whole_moment(rf_run *run, real *restrict s, const real *restrict g, size_t n,
                         double beta2, double eps) {
    const real b2 = (real)beta2, a2 = (real)(1 - beta2), floor = (real)eps;
#pragma omp parallel for num_threads(team(run, 4.0 * (double)n)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, OPTIMIZER_BLOCK); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * OPTIMIZER_BLOCK);
#pragma omp simd
        for (size_t i = block * OPTIMIZER_BLOCK; i < end; i++)
            s[i] = b2 * s[i] + a2 * (g[i] * g[i] + floor);
    }
}

/* Compute a piece of the direction. *begin is its first element; returns its length. */
static size_t direction_piece(real *restrict u, size_t *begin, const direction *d, size_t piece) {
    const size_t i = piece / d->pieces, j = piece % d->pieces * PIECE;
    const size_t length = min_size(PIECE, d->n - j);
    *begin = i * d->n + j;
    const real *g = d->g + *begin;
    if (d->row) {
        const real r = d->row[i], *c = d->column + i / d->rows * d->n + j;
#pragma omp simd
        for (size_t k = 0; k < length; k++) u[k] = r * c[k] * g[k];
    } else {
        const real *s = d->s + *begin;
#pragma omp simd
        for (size_t k = 0; k < length; k++) u[k] = g[k] / real_sqrt(s[k]);
    }
    return length;
}

static double direction_squares(rf_run *run, const direction *d, size_t pieces) {
    const size_t blocks = min_size(SQUARES_BLOCKS, pieces);
    double part[SQUARES_BLOCKS] = {0};
#pragma omp parallel for num_threads(team(run, (double)(pieces * PIECE))) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        const size_t end = pieces * (block + 1) / blocks;
        for (size_t piece = pieces * block / blocks; piece < end && !stopped(run); piece++) {
            real u[PIECE];
            size_t begin;
            const size_t length = direction_piece(u, &begin, d, piece);
            part[block] += squares_of(u, length);
        }
    }
    double sum = 0;
    for (size_t block = 0; block < blocks; block++) sum += part[block];
    return sum;
}

static size_t adafactor_step_workspace(size_t b, size_t rows, size_t n) {
    return bytes_add(bytes_of(bytes_mul(b, rows), sizeof(real)),
                     bytes_of(bytes_mul(b, n), sizeof(real)));
}

static void adafactor_step(rf_run *run, real *restrict w, const real *g, real *restrict row,
                           real *restrict column, real *restrict s, real *restrict m, double lr,
                           double beta1, double beta2, double eps, double clip_threshold,
                           double weight_decay, size_t b, size_t rows, size_t n, void *scratch) {
    const size_t size = b * rows * n;
    if (size == 0) return;
    // 1. second moment
    direction d = {.g = g, .s = s, .rows = rows, .n = n, .pieces = blocks_of(n, PIECE)};
    if (row) {
        real *row_factor = take(&scratch, b * rows, sizeof(real));
        real *column_factor = take(&scratch, b * n, sizeof(real));
        factored_moment(run, row, column, row_factor, column_factor, g, b, rows, n, beta2, eps);
        d.row = row_factor, d.column = column_factor;
    } else {
        whole_moment(run, s, g, size, beta2, eps);
    }

    // 2. clip the update's root mean square
    const size_t pieces = b * rows * d.pieces;
    const double rms = sqrt(direction_squares(run, &d, pieces) / (double)size);
    const real step = (real)(lr / fmax(1, rms / clip_threshold));
    const real b1 = (real)beta1, a1 = (real)((1 - beta1) * step);
    const real decay = (real)(lr * weight_decay);
    // 3. first moment, weight decay and step
#pragma omp parallel for num_threads(team(run, 4.0 * (double)size)) schedule(static)
    for (size_t piece = 0; piece < pieces; piece++) {
        if (stopped(run)) continue;
        real u[PIECE];
        size_t begin;
        const size_t length = direction_piece(u, &begin, &d, piece);
        real *wi = w + begin, *mi = m ? m + begin : NULL;
        if (m) {
#pragma omp simd
            for (size_t k = 0; k < length; k++) u[k] = mi[k] = b1 * mi[k] + a1 * u[k];
        }
        const real times = m ? 1 : step;
#pragma omp simd
        for (size_t k = 0; k < length; k++) wi[k] = wi[k] - decay * wi[k] - times * u[k];
    }
}
