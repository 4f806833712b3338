/* optimizer.c: the step of AdamW, and the norm that gradients are clipped by. */
#include "core.h"

#define OPTIMIZER_BLOCK 16384
#define SQUARES_BLOCKS 256 // partial sums of sum_of_squares
#define SQUARES_LANES 16   // and of each of those

/* Sum of squares of one piece, in double: the same bits whatever the width of the registers. */
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

static inline real square_root(real x) {
    return _Generic(x, float: sqrtf, double: sqrt)(x);
}

static void adamw(rf_run *run, real *restrict w, real *restrict m, real *restrict s,
                  const real *restrict g, size_t n, double lr, double beta1, double beta2,
                  double eps, double weight_decay, double grad_scale, uint64_t step) {
    // scalars meet in double: 1 - beta2 has lost half its digits in float
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
            w[i] = wi - size * mi / (square_root(si) * correction + floor);
        }
    }
}
