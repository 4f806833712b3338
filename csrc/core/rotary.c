/* rotary.c: rotary position embeddings (Su et al. 2021): channels j and j + d / 2 of a head are the
   coordinates of a point, which is rotated by an angle in proportion to the token's position. */
#include "core.h"

#define ROTARY_ROWS 64
#define ROTARY_PAIRS 64

/* m pairs of one head; in place is fine. */
static inline void rotate_pairs(real *out, const real *x, size_t half, const real *restrict cosine,
                                const real *restrict sine, size_t m) {
#pragma omp simd
    for (size_t j = 0; j < m; j++) {
        const real a = x[j], b = x[half + j];
        out[j] = a * cosine[j] - b * sine[j];
        out[half + j] = b * cosine[j] + a * sine[j];
    }
}

/* direction: 1, or -1 for the inverse. */
static void rotary_rows(const real *x, const int64_t *position_ids, double theta, double direction,
                        real *out, size_t n, size_t h, size_t d) {
    const size_t half = d / 2;
    double frequency[ROTARY_PAIRS];
    real cosine[ROTARY_PAIRS], sine[ROTARY_PAIRS];
    for (size_t first = 0; first < half; first += ROTARY_PAIRS) {
        const size_t m = min_size(ROTARY_PAIRS, half - first);
        for (size_t j = 0; j < m; j++)
            frequency[j] = direction * pow(theta, -2.0 * (double)(first + j) / (double)d);
        for (size_t i = 0; i < n; i++) {
            // in double: float has too few digits for large positions
            for (size_t j = 0; j < m; j++) {
                const double angle = (double)position_ids[i] * frequency[j];
                cosine[j] = (real)cos(angle);
                sine[j] = (real)sin(angle);
            }
            for (size_t at = i * h * d + first, end = at + h * d; at < end; at += d)
                rotate_pairs(out + at, x + at, half, cosine, sine, m);
        }
    }
    if (d % 2) // the last channel is in no pair
        for (size_t i = d - 1; i < n * h * d; i += d) out[i] = x[i];
}

static void rotate(rf_run *run, const real *x, const int64_t *position_ids, double theta,
                   double direction, real *out, size_t n, size_t h, size_t d) {
    // sines and cosines cost more than what the heads share of them
    const int workers = team(run, (double)n * (double)d * (8.0 + (double)h));
#pragma omp parallel for num_threads(workers) schedule(static)
    for (size_t block = 0; block < blocks_of(n, ROTARY_ROWS); block++) {
        if (stopped(run)) continue;
        const size_t i = block * ROTARY_ROWS, at = i * h * d;
        rotary_rows(x + at, position_ids + i, theta, direction, out + at,
                    min_size(ROTARY_ROWS, n - i), h, d);
    }
}

static void rotary_positions_forward(rf_run *run, const real *x, const int64_t *position_ids,
                                     double theta, real *out, size_t n, size_t h, size_t d) {
    rotate(run, x, position_ids, theta, 1, out, n, h, d);
}

static void rotary_positions_backward(rf_run *run, const int64_t *position_ids, double theta,
                                      const real *dout, real *out, size_t n, size_t h, size_t d) {
    rotate(run, dout, position_ids, theta, -1, out, n, h, d);
}
