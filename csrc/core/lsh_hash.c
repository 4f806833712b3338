/* lsh_hash.c: Angular LSH (Reformer, section 2, "LSH attention") and the order that it gives. */
#include "gemm.h"

#define HASH_ROWS 64  // tokens of a task, one to a lane
#define HASH_AHEAD 16 // rows that are asked for before they are read: the next task's first ones, too

static size_t hash_columns(const int32_t *factors, size_t nf) {
    size_t columns = 0;
    for (size_t i = 0; i < nf; i++) columns += (size_t)factors[i] / 2;
    return columns;
}

/* Reals of one thread: rows of tokens, the same transposed, their products with one round. */
static size_t hash_thread(size_t d, size_t columns) {
    const size_t dp = round_up(d, VEC_LANES);
    return bytes_mul(HASH_ROWS, bytes_add(bytes_mul(2, dp), columns));
}

static size_t lsh_hash_workspace(const rf_attention *a, const int32_t *factors, size_t nf,
                                 int workers) {
    const size_t each = bytes_of(hash_thread(a->d, hash_columns(factors, nf)), sizeof(real));
    return bytes_mul((size_t)workers, each);
}

/* ids += stride * argmax of [u, -u] for each lane; u is `half` rows of HASH_ROWS lanes. The first
   maximum wins: the index moves only when strictly beaten, and u wins a tie against -u. */
static void hash_argmax(int32_t *restrict ids, const real *restrict u, size_t half,
                        int32_t stride) {
    for (size_t i = 0; i < HASH_ROWS; i += VEC_LANES, ids += VEC_LANES, u += VEC_LANES) {
        vec high = vload(u), low = -high; // the largest of u, and of -u
        ivec highest = {0}, lowest = {0}, at = {0};
        for (size_t j = 1; j < half; j++) {
            const vec x = vload(u + j * HASH_ROWS);
            at += 1;
            highest = iselect(x > high, at, highest);
            lowest = iselect(-x > low, at, lowest);
            high = vmax(high, x);
            low = vmax(low, -x);
        }
        const ivec id = iselect(low > high, lowest + (lane)half, highest);
        for (size_t l = 0; l < VEC_LANES; l++) ids[l] += stride * (int32_t)id[l];
    }
}

static void lsh_hash(rf_run *run, int32_t *buckets, const real *x, const real *rotations,
                     const uint8_t *mask, const rf_attention *a, rf_strides sx,
                     const int32_t *factors, size_t nf, void *scratch) {
    const size_t d = a->d, dp = round_up(d, VEC_LANES), columns = hash_columns(factors, nf);
    const size_t blocks = blocks_of(a->t, HASH_ROWS);
    const size_t each = bytes_of(hash_thread(d, columns), sizeof(real));
    const double work = 2.0 * (double)(a->b * a->h * a->t) * (double)(d * a->r * columns);
    int32_t hidden = 1; // the extra id of masked positions: past every bucket
    for (size_t i = 0; i < nf; i++) hidden *= factors[i];

#pragma omp parallel for num_threads(team(run, work)) schedule(dynamic)
    for (size_t task = 0; task < a->b * a->h * blocks; task++) {
        if (stopped(run)) continue;
        real *rows = (real *)((char *)scratch + thread_index() * each);
        real *lanes = rows + HASH_ROWS * dp, *u = lanes + HASH_ROWS * dp;
        const size_t bh = task / blocks, b = bh / a->h, h = bh % a->h;
        const size_t t0 = task % blocks * HASH_ROWS, n = min_size(HASH_ROWS, a->t - t0);

        // one token to a lane, so that the search for the maximum runs across tokens
        const real *from = x + (ptrdiff_t)b * sx.b + (ptrdiff_t)h * sx.h + (ptrdiff_t)t0 * sx.t;
        if (n < HASH_ROWS || d < dp) memset(rows, 0, HASH_ROWS * dp * sizeof(real));
        for (size_t i = 0; i < n; i++) {
            if (t0 + i + HASH_AHEAD < a->t) prefetch_row(from + (ptrdiff_t)(i + HASH_AHEAD) * sx.t, d);
            copy_row(rows + i * dp, from + (ptrdiff_t)i * sx.t, d);
        }
        transpose(lanes, HASH_ROWS, rows, dp, HASH_ROWS, dp);

        for (size_t r = 0; r < a->r; r++) {
            const real *rotation = rotations + (h * d * a->r + r) * columns;
            gemm_small(u, HASH_ROWS, rotation, a->r * columns, 0, lanes, HASH_ROWS, columns,
                       HASH_ROWS, d, 0);
            int32_t ids[HASH_ROWS] = {0}, stride = 1;
            const real *piece = u;
            for (size_t i = 0; i < nf; i++) {
                hash_argmax(ids, piece, (size_t)factors[i] / 2, stride);
                piece += (size_t)factors[i] / 2 * HASH_ROWS;
                stride *= factors[i];
            }
            int32_t *to = buckets + (bh * a->r + r) * a->t + t0;
            for (size_t i = 0; i < n; i++)
                to[i] = mask && !mask[b * a->t + t0 + i] ? hidden : ids[i];
        }
    }
}
