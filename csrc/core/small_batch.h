/* small_batch.h: products with a few rows, such as one decoded token: each weight is read once,
   without packing. */
#ifndef RF_SMALL_BATCH_H
#define RF_SMALL_BATCH_H

#include "stored.h"

#define SMALL_BATCH 8 // with at least this many rows, packing the weights pays

/* y = x w' + bias, or without bias if NULL. */
static void linear_small_batch(rf_run *run, const real *x, const rf_matrix *weight,
                               const real *bias, real *out, size_t n, size_t ci, size_t co) {
    const size_t block = 64;
#pragma omp parallel for num_threads(team(run, 2.0 * (double)n * (double)(ci * co)))               \
    schedule(static)
    for (size_t b = 0; b < blocks_of(co, block); b++) {
        if (stopped(run)) continue;
        for (size_t j = b * block; j < min_size(co, (b + 1) * block); j++)
            for (size_t i = 0; i < n; i++)
                out[i * co + j] = dot_row(x + i * ci, weight, j, ci) + (bias ? bias[j] : 0);
    }
}

static inline rf_matrix matrix_of(const real *w) {
    return (rf_matrix){w, NULL, RF_REALS};
}

#endif
