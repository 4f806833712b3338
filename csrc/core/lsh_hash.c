/* lsh_hash.c: angular LSH (Reformer, section 2, "LSH attention"): the bucket of each token.
   decode.c hashes a single token. */
#include "gemm_tile.h"

#define HASH_ROWS 64 // tokens of a block, one per lane

static size_t hash_columns(const int32_t *factors, size_t nf) {
    size_t columns = 0;
    for (size_t i = 0; i < nf; i++) columns += (size_t)factors[i] / 2;
    return columns;
}

/* Reals of one thread: a block's rows, the same transposed, and their products with the rotations
   of one round. */
static size_t hash_scratch_reals(size_t d, size_t columns) {
    const size_t dp = round_up(d, VEC_LANES);
    return bytes_mul(HASH_ROWS, bytes_add(bytes_mul(2, dp), columns));
}

static size_t lsh_hash_workspace(const rf_run *run, const rf_attention *a, const int32_t *factors,
                                 size_t nf) {
    const size_t each = bytes_of(hash_scratch_reals(a->d, hash_columns(factors, nf)), sizeof(real));
    return bytes_mul((size_t)run->workers, each);
}

/* ids += stride * argmax of [u, -u] for each lane; u is `half` rows of HASH_ROWS lanes. Ties go to
   the first maximum, and to u rather than -u. */
static void hash_argmax(int32_t *restrict ids, const real *restrict u, size_t half,
                        int32_t stride) {
    for (size_t i = 0; i < HASH_ROWS; i += VEC_LANES, ids += VEC_LANES, u += VEC_LANES) {
        vec high = vload(u), low = -high; // the maximum of u, and of -u
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

/* u (columns x HASH_ROWS) = rotation' lanes, for one round. */
static void hash_products(real *u, const real *rotation, size_t ld, const real *lanes,
                          size_t columns, size_t d, prefetch_cursor *cursor) {
    _Alignas(RF_ALIGN) const char *line[PREFETCH_MAX + 7];
    for (size_t i = 0, mr; i < columns; i += mr) {
        mr = tile_height(columns - i);
        for (size_t j = 0; j < HASH_ROWS; j += GEMM_NR) {
            line_list lines = {line, 0, min_size(PREFETCH_MAX, d / PREFETCH_STEPS)};
            list_rows(&lines, cursor);
            tile_for(mr, 0, HASH_ROWS - j)(d, rotation + i, ld, lanes + j, HASH_ROWS,
                                           u + i * HASH_ROWS + j, HASH_ROWS, 0, &lines);
        }
    }
}

static void lsh_hash(rf_run *run, const rf_attention *a, const real *x, rf_strides sx,
                     const int32_t *num_buckets, size_t nf, const real *rotations,
                     const uint8_t *attention_mask, int32_t *out, void *scratch) {
    const size_t d = a->d, dp = round_up(d, VEC_LANES), columns = hash_columns(num_buckets, nf);
    const size_t blocks = blocks_of(a->t, HASH_ROWS);
    const size_t step = items_per_task(a->b * a->h * blocks, 16);
    const size_t tasks = blocks_of(blocks, step);
    const size_t each = bytes_of(hash_scratch_reals(d, columns), sizeof(real));
    const double work = 2.0 * (double)(a->b * a->h * a->t) * (double)(d * a->r * columns);
    int32_t hidden = 1; // the id of masked positions, after all out
    for (size_t i = 0; i < nf; i++) hidden *= num_buckets[i];
    const size_t all = a->b * a->h * tasks;

#pragma omp parallel for num_threads(tile_team(run, work, all))                                    \
    schedule(dynamic, tasks_at_once(run, all, step))
    for (size_t task = 0; task < all; task++) {
        real *rows = (real *)((char *)scratch + thread_index() * each);
        real *lanes = rows + HASH_ROWS * dp, *u = lanes + HASH_ROWS * dp;
        const size_t bh = task / tasks, b = bh / a->h, h = bh % a->h;
        const real *head = x + (ptrdiff_t)b * sx.b + (ptrdiff_t)h * sx.h;
        const size_t first = task % tasks * step;
        for (size_t block = first; block < min_size(blocks, first + step) && !stopped(run);
             block++) {
            // 1. transpose: one lane per token, so that each lane finds its own maximum
            const size_t t0 = block * HASH_ROWS, n = min_size(HASH_ROWS, a->t - t0);
            const real *from = head + (ptrdiff_t)t0 * sx.t;
            if (d < dp) memset(rows, 0, HASH_ROWS * dp * sizeof(real));
            for (size_t i = 0; i < n && d < dp; i++)
                copy_row(rows + i * dp, from + (ptrdiff_t)i * sx.t, d);
            for (size_t i = 0; i < HASH_ROWS; i += VEC_LANES) {
                const real *lines[VEC_LANES]; // lanes beyond the last token repeat it
                for (size_t j = 0; j < VEC_LANES; j++) {
                    const size_t row = min_size(i + j, n - 1);
                    lines[j] = d < dp ? rows + row * dp : from + (ptrdiff_t)row * sx.t;
                }
                transpose_rows(lanes + i, HASH_ROWS, lines, dp);
            }

            // 2. the next block's rows, to prefetch
            const size_t next = min_size(HASH_ROWS, a->t - t0 - n);
            const prefetch_rows next_rows = {from + (ptrdiff_t)n * sx.t, sx.t, d, next, NULL};
            prefetch_cursor cursor = prefetch_begin(&next_rows, a->r * blocks_of(columns, GEMM_MR) *
                                                                    (HASH_ROWS / GEMM_NR));
            for (size_t r = 0; r < a->r; r++) {
                // 3. products with the rotations of this round
                hash_products(u, rotations + (h * d * a->r + r) * columns, a->r * columns, lanes,
                              columns, d, &cursor);
                // 4. a mixed-radix number of the num_buckets' hashes
                int32_t ids[HASH_ROWS] = {0}, stride = 1;
                const real *piece = u;
                for (size_t i = 0; i < nf; i++) {
                    hash_argmax(ids, piece, (size_t)num_buckets[i] / 2, stride);
                    piece += (size_t)num_buckets[i] / 2 * HASH_ROWS;
                    stride *= num_buckets[i];
                }
                // 5. store, with masked positions in a bucket of their own
                int32_t *to = out + (bh * a->r + r) * a->t + t0;
                for (size_t i = 0; i < n; i++)
                    to[i] = attention_mask && !attention_mask[b * a->t + t0 + i] ? hidden : ids[i];
            }
        }
    }
}
