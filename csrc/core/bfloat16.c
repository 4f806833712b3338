/* bfloat16.c: arrays as bfloat16 numbers, the upper halves of float32's, and back. */
#include "stored.h"

#define BFLOAT16_BLOCK 65536

static void to_bfloat16(rf_run *run, const real *restrict x, uint16_t *restrict out, size_t n) {
#pragma omp parallel for num_threads(team(run, (double)n)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, BFLOAT16_BLOCK); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * BFLOAT16_BLOCK);
        for (size_t i = block * BFLOAT16_BLOCK; i < end; i++) out[i] = bfloat16_of(x[i]);
    }
}

static void from_bfloat16(rf_run *run, const uint16_t *restrict x, real *restrict out, size_t n) {
#pragma omp parallel for num_threads(team(run, (double)n)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, BFLOAT16_BLOCK); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * BFLOAT16_BLOCK);
        for (size_t i = block * BFLOAT16_BLOCK; i < end; i++) out[i] = real_of_bfloat16(x[i]);
    }
}
