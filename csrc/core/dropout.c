/* dropout.c: dropout (Srivastava et al. 2014) whose random bits are a function of a key and of the
   element's index. The same key gives the same mask, so the backward pass is the same function. */
#include "philox.h"

#define DROPOUT_BLOCK 16384 // a multiple of PHILOX_BLOCK: no block of words is generated twice

static void dropout(rf_run *run, const real *x, double p, uint64_t key, real *out, size_t n) {
    const uint32_t threshold = drop_threshold(p);
    const real scale = drop_scale(p);
#pragma omp parallel for num_threads(team(run, 4.0 * (double)n)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, DROPOUT_BLOCK); block++) {
        if (stopped(run)) continue;
        const size_t i = block * DROPOUT_BLOCK, m = min_size(DROPOUT_BLOCK, n - i);
        if (p > 0)
            drop_row(out + i, x + i, m, i, threshold, scale, key);
        else if (out != x)
            memcpy(out + i, x + i, m * sizeof(real));
    }
}
