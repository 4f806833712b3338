/* couple.c: the additive coupling of reversible residual layers (Gomez et al. 2017): y1 = x1 +
   f(x2), and in the backward pass x1 = y1 - f(x2). */
#include "core.h"

#define COUPLE_BLOCK 65536

static void add_scaled(rf_run *run, real *restrict y, const real *restrict x, double alpha,
                       size_t n) {
    const real a = (real)alpha;
#pragma omp parallel for num_threads(team(run, (double)n)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, COUPLE_BLOCK); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * COUPLE_BLOCK);
#pragma omp simd
        for (size_t i = block * COUPLE_BLOCK; i < end; i++) y[i] += a * x[i];
    }
}
