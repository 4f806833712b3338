/* attention_pair.h: a pair of blocks: where masks apply, scores, and the products with the scores.

   Scores are stored transposed, one row per key and one lane per query: row maxima, sums and masks
   then run down the lanes without horizontal operations, and the scores are the left operand of the
   next product without a copy.

   Tokens of a block are in order of position. The keys that the causal mask leaves to a group of
   lanes are therefore a prefix (together they form a staircase), and register tiles beyond it are
   never computed. */
#ifndef RF_ATTENTION_PAIR_H
#define RF_ATTENTION_PAIR_H

#include "activation.h"
#include "attention_block.h"

/* May a query of this block have met a key before? In the first round only across its ends. */
static inline int may_have_met(const attention_arrays *x, const block *q) {
    return x->repeats && is_hash_round(x->a, q->round) &&
           (q->round > 0 || (x->a->scope == RF_CHUNK && x->a->wrap));
}

/* Does the window decide which pairs count in this round: those in it, or those outside? */
static inline int compares_distances(const rf_attention *a, const block *q) {
    return a->window && q->round <= window_round(a);
}

/* How a window masks a pair of blocks. */
typedef enum { ALL_COUNT, SOME_COUNT, NONE_COUNT } window_mask;

static window_mask window_mask_of(const rf_attention *a, const block *q, const block *k) {
    if (!compares_distances(a, q)) return ALL_COUNT;
    const ptrdiff_t least = (ptrdiff_t)k->kpos[0] - q->latest; // distances of keys from queries
    const ptrdiff_t most = (ptrdiff_t)k->kpos[k->visible - 1] - q->earliest;
    const ptrdiff_t reach = (ptrdiff_t)a->window - 1;
    const int inside = in_window(a, least) && in_window(a, most);
    const int outside = least > reach || most < -reach;
    if (!inside && !outside) return SOME_COUNT;
    return inside == (q->round == window_round(a)) ? ALL_COUNT : NONE_COUNT;
}

/* Where masks apply to a pair of blocks. For each group of VEC_LANES queries, keys [0, dense_end)
   are visible to all; keys [dense_end, partial_end) to some, so that each score is masked by itself
   (partial_scores); keys [partial_end, group_end) to all; keys from group_end on to none. */
typedef struct {
    size_t groups, max_end; // max_end: the largest group_end
    size_t dense_end[LANE_GROUPS], partial_end[LANE_GROUPS], group_end[LANE_GROUPS];
    lane query_end[BLOCK]; // for each query, the end of the keys that it may attend to
} mask_extent;

static void find_extent(mask_extent *extent, const attention_arrays *x, const block *q,
                        const block *k) {
    const rf_attention *a = x->a;
    const size_t visible = k->visible;
    extent->groups = blocks_of(q->nq, VEC_LANES);
    extent->max_end = 0;
    if (!visible || !q->nq || (a->causal && k->kpos[0] > q->latest)) return;
    if (!sees_round(a, q->round, k->round)) return;
    const window_mask window = window_mask_of(a, q, k);
    if (window == NONE_COUNT) return;
    const int all_partial = (!a->across_buckets && is_hash_round(a, q->round)) || a->softcap > 0 ||
                            (may_have_met(x, q) && (!q->homes || a->scale == 0)) ||
                            window == SOME_COUNT;

    // 1. no mask within the pair: everything is dense
    for (size_t g = 0; g < extent->groups; g++)
        extent->dense_end[g] = extent->partial_end[g] = extent->group_end[g] = visible;
    for (size_t i = 0; i < BLOCK; i++) extent->query_end[i] = (lane)visible;
    const int all_dense = (!a->causal && !a->shared_qk) || k->kpos[visible - 1] < q->earliest;
    if (all_dense && !all_partial) {
        extent->max_end = visible;
        return;
    }

    // 2. for each query, the end of the keys at its own or earlier positions; a block against
    // itself, with no key hidden, needs no comparisons; if the queries are in order, a group needs
    // only those of the keys up to its last query, beyond the keys that end the group before
    const int diagonal = q == k && visible == k->nk && visible == q->nq;
    for (size_t i = 0; i < extent->groups * VEC_LANES && diagonal; i++)
        extent->query_end[i] = i < visible ? (lane)i + 1 : 0;
    const int sorted = a->separate || q->visible == q->nq;
    for (size_t g = 0, met = 0; g < extent->groups && !diagonal; g++) {
        const lane last = sorted ? q->qpos[min_size(q->nq, (g + 1) * VEC_LANES) - 1] : q->latest;
        size_t i = sorted ? met : 0;
        ivec count = (ivec){0} + (lane)i;
        const ivec positions = iload(q->qpos + g * VEC_LANES);
        for (; i < visible && k->kpos[i] <= last; i++)
            count -= (k->kpos[i] - (ivec){0}) <= positions;
        met = i;
        memcpy(extent->query_end + g * VEC_LANES, &count, sizeof count);
    }

    // 3. the ends of each group
    for (size_t g = 0; g < extent->groups; g++) {
        const size_t end = min_size(q->nq, (g + 1) * VEC_LANES);
        lane min = (lane)visible, max = 0;
        for (size_t i = g * VEC_LANES; i < end; i++) {
            min = extent->query_end[i] < min ? extent->query_end[i] : min;
            max = extent->query_end[i] > max ? extent->query_end[i] : max;
        }
        // the self-mask: a query's own key, if it is in this block, is the last before query_end
        const size_t before_self = a->shared_qk && min > 0 ? (size_t)min - 1 : (size_t)min;
        extent->group_end[g] = a->causal ? (size_t)max : visible;
        extent->dense_end[g] = all_partial ? 0 : before_self;
        extent->partial_end[g] = all_partial ? extent->group_end[g] : (size_t)max;
        extent->max_end = max_size(extent->max_end, extent->group_end[g]);
        for (size_t i = g * VEC_LANES; i < end && !a->causal; i++)
            extent->query_end[i] = (lane)visible;
    }
}

/* Leave only groups [g0, g1) and the keys that they see. */
static inline void limit_groups(mask_extent *extent, size_t g0, size_t g1) {
    extent->groups = g1;
    extent->max_end = 0;
    for (size_t g = g0; g < g1; g++)
        extent->max_end = max_size(extent->max_end, extent->group_end[g]);
}

/* The first group of lanes to which key i or a later one is visible. */
static inline size_t first_group(const mask_extent *extent, size_t i) {
    size_t g = 0;
    while (g + 1 < extent->groups && extent->group_end[g] <= i) g++;
    return g;
}

/* c[key][query] = keys times `columns` (queries), for the register tiles that the staircase needs.
   Keys are given as rows, dp apart, or as columns. */
static void staircase_product(real *c, const mask_extent *extent, const real *keys, int by_rows,
                              const real *columns, size_t d, size_t dp, prefetch_queue *queue) {
    const size_t ld = by_rows ? dp : BLOCK;
    for (size_t i = 0, mr; i < extent->max_end; i += mr) {
        mr = tile_height(extent->max_end - i);
        for (size_t g = first_group(extent, i); g < extent->groups; g += GEMM_NV) {
            const int narrow = g + 1 == extent->groups; // ends before a prefetch could complete
            tile_for(mr, by_rows, (extent->groups - g) * VEC_LANES)(
                d, by_rows ? keys + i * dp : keys + i, ld, columns + g * VEC_LANES, BLOCK,
                c + i * BLOCK + g * VEC_LANES, BLOCK, 0, prefetch_next(queue, narrow ? 0 : d));
        }
    }
}

/* The same of rounded operands, for MASKED_ROWS keys at a time and the groups from g0 on. Whole
   strips are computed if possible: c has room for them, and nothing reads the rows from max_end
   on. */
static void rounded_staircase(real *c, const mask_extent *extent, size_t g0, operand keys,
                              operand columns, size_t d, prefetch_queue *queue) {
    const size_t end = extent->groups * VEC_LANES;
    for (size_t i = 0; i < extent->max_end; i += MASKED_ROWS) {
        const size_t first = max_size(g0, first_group(extent, i)) * VEC_LANES;
        const size_t from = first / OPERAND_PANEL * OPERAND_PANEL;
        const size_t rows = min_size(MASKED_ROWS, extent->max_end - i);
        const size_t whole = round_up(rows, strip_rows(rows, end - from));
        rounded_product(c + i * BLOCK + from, BLOCK, left_from(keys, i, 0),
                        right_from(columns, 0, from), whole, end - from, d, 0,
                        prefetch_take(queue, product_lines(MASKED_ROWS)));
    }
}

/* Raw products of queries and keys, of all groups or, if rounded, of those from g0 on. Shared keys
   that were not gathered as rows are read from the columns of the block's queries. */
static void raw_scores(real *s, const attention_arrays *x, const mask_extent *extent, size_t g0,
                       const block *q, const block *k, prefetch_queue *queue) {
    const int by_rows = k->k_rows != NULL;
    if (x->terms)
        rounded_staircase(s, extent, g0, k->k_left, q->q_columns_right, x->a->d, queue);
    else
        staircase_product(s, extent, by_rows ? k->k_rows : k->q_columns, by_rows, q->q_columns,
                          x->a->d, x->dp, queue);
}

/* Scores are in units of log 2. Dense ones are not stored: each use multiplies the raw product by
   kunit. Returns the maximum of those of keys [i0, i1) and of `max`. */
static inline vec dense_max(const real *s, const real *kunit, size_t i0, size_t i1, vec max) {
    vec m[4] = {max, max, max, max}; // four chains: the latency of a maximum is that of four loads
    size_t i = i0;
    for (; i + 4 <= i1; i += 4)
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++) m[j] = vmax(vload(s + (i + j) * BLOCK) * kunit[i + j], m[j]);
    for (; i < i1; i++) m[0] = vmax(vload(s + i * BLOCK) * kunit[i], m[0]);
    return vmax(vmax(m[0], m[1]), vmax(m[2], m[3]));
}

/* The score with softcap, cap tanh(score / cap), in any unit; and its derivative by the score,
   computed from the capped score. */
static inline vec soft_capped(vec score, real cap) {
    return cap * tanh_curve(score / cap).value;
}

static inline vec soft_cap_slope(vec capped, real cap) {
    const vec t = capped / cap;
    return 1 - t * t;
}

/* A round in which queries of a group may have met keys of a block before: they have, where
   above - keys[i] is at least 0 and at most the length of the window. */
typedef struct {
    ivec above;       // the largest home of a key, for each query
    const lane *keys; // homes
} earlier_window;

typedef struct {
    earlier_window *window;
    size_t count;
    uvec length;
} earlier_windows;

/* The most that one pair of blocks can have: a round's own, and at its ends the neighbours'. */
static size_t earlier_windows_max(const rf_attention *a) {
    return keeps_homes(a) ? bytes_mul(3, a->r) : 0;
}

/* The windows that come before the pair's own round and slot. */
static void find_earlier_windows(earlier_windows *windows, const attention_arrays *x,
                                 const block *q, const block *k, size_t group, size_t slot) {
    const rf_attention *a = x->a;
    const ptrdiff_t chunks = a->scope == RF_CHUNK ? (ptrdiff_t)chunks_of(a) : 0;
    const ptrdiff_t below = (ptrdiff_t)home_below(a), above = (ptrdiff_t)home_above(a);
    const ptrdiff_t rounds = (ptrdiff_t)a->r;
    windows->count = 0;
    windows->length = (ulane)(below + above) - (uvec){0};
    if (!may_have_met(x, q) || !q->homes) return;

    // 1. does this pair cross into the round before or after?
    ptrdiff_t own = 0;
    if (a->scope == RF_CHUNK) {
        const ptrdiff_t to = (ptrdiff_t)(q->start / a->m) + (ptrdiff_t)slot - below;
        own = to < 0 ? -1 : to >= chunks;
    }
    // 2. each earlier round, and at its ends the rounds before and after
    for (ptrdiff_t r = 0; r <= (ptrdiff_t)q->round; r++) {
        const ivec homes = iload(q->homes + (size_t)r * BLOCK + group * VEC_LANES);
        for (ptrdiff_t cross = crosses_rounds(a) ? -1 : 0; cross <= crosses_rounds(a); cross++) {
            if (r == (ptrdiff_t)q->round && cross >= own) break;
            const lane first = (lane)(r * chunks + below), last = (lane)((r + 1) * chunks - above);
            if (cross < 0 && !any(homes < first)) continue;
            if (cross > 0 && !any(homes >= last)) continue;
            const ptrdiff_t round = (r + cross + rounds) % rounds;
            const lane shift = (lane)((round - r - cross) * chunks + above); // around the circle
            windows->window[windows->count++] =
                (earlier_window){homes + shift, k->homes + (size_t)round * BLOCK};
        }
    }
}

/* Which queries of a group have met key i of the windows' block before. */
static ALWAYS_INLINE ivec met_by_home(const earlier_windows *windows, size_t i) {
    uvec nearest = ~(uvec){0};
    for (size_t w = 0; w < windows->count; w++)
        nearest = uvmin(nearest, (uvec)(windows->window[w].above - windows->window[w].keys[i]));
    return (ivec)(nearest <= windows->length);
}

/* The same where blocks have no homes, one query after another. */
static ivec met_by_place(const attention_arrays *x, const block *q, const block *k, size_t group,
                         size_t i, size_t slot) {
    ivec met = {0};
    for (size_t j = 0; j < VEC_LANES && group * VEC_LANES + j < q->nq; j++)
        met[j] = -has_met(&x->order, q->bh, (size_t)q->qtoken[group * VEC_LANES + j],
                          (size_t)k->kpos[i], q->round, slot);
    return met;
}

/* Hides dense keys [i0, i1), which are not masked otherwise, from the queries that have met them.
 */
static void hide_repeats(real *s, const earlier_windows *windows, const block *k, size_t i0,
                         size_t i1) {
    for (size_t i = i0; i < i1 && windows->count; i++)
        vstore(s + i * BLOCK,
               vselect(met_by_home(windows, i), vset1(k->khidden[i]), vload(s + i * BLOCK)));
}

/* Replaces the raw products of keys [i0, i1) by masked scores; returns the maximum, as above. */
static inline vec partial_scores(real *s, const attention_arrays *x, const earlier_windows *windows,
                                 const block *q, const block *k, size_t group, size_t slot,
                                 size_t i0, size_t i1, vec max) {
    const rf_attention *a = x->a;
    const int by_place = may_have_met(x, q) && !q->homes, hashed = is_hash_round(a, q->round);
    const int by_distance = compares_distances(a, q);
    const lane reach = (lane)a->window - 1;
    const ivec far_ones = (ivec){0} - (lane)hashed; // all ones if those outside the window count
    const ivec positions = iload(q->qpos + group * VEC_LANES);
    const ivec buckets = iload(q->qbucket + group * VEC_LANES);
    for (size_t i = i0; i < i1; i++) {
        const ivec at = k->kpos[i] - (ivec){0};
        vec score = vload(s + i * BLOCK) * k->kunit[i];
        if (a->softcap > 0) score = soft_capped(score, (real)a->softcap * LOG2_E);
        if (a->causal) score = vselect(at <= positions, score, vset1(SCORE_HIDDEN));
        if (!a->across_buckets && hashed)
            score = vselect(k->kbucket[i] - (ivec){0} == buckets, score, vset1(SCORE_HIDDEN));
        if (a->shared_qk) // the self-mask
            score = vselect(at == positions, vset1(SCORE_SELF), score);
        if (by_distance) {
            const ivec near = (ivec)((uvec)(at - positions + reach) <= 2 * (ulane)reach);
            score = vselect(near ^ far_ones, score, vset1(SCORE_HIDDEN));
        }
        if (windows->count) score = vselect(met_by_home(windows, i), vset1(SCORE_HIDDEN), score);
        if (by_place)
            score = vselect(met_by_place(x, q, k, group, i, slot), vset1(SCORE_HIDDEN), score);
        vstore(s + i * BLOCK, score);
        max = vmax(score, max);
    }
    return max;
}

/* Zero the rows from group_end on: no query of the group sees these keys, but products read them in
   register tiles shared with other groups. */
static inline void clear_masked(real *s, const mask_extent *extent, size_t g) {
    for (size_t i = extent->group_end[g]; i < extent->max_end; i++) vstore(s + i * BLOCK, (vec){0});
}

/* Dropout's factors for the probabilities of one key: 0, or 1 / (1 - p). */
static inline vec drop_factors(const rf_attention *a, const block *q, lane key_position,
                               size_t slot, size_t g) {
    const uint32_t threshold = drop_threshold(a->dropout);
    const real keep = drop_scale(a->dropout);
    vec f = {0};
    for (size_t j = 0; j < VEC_LANES; j++)
        if (pair_bits(q->drop[g * VEC_LANES + j], (uint32_t)key_position, (uint32_t)slot) >=
            threshold)
            f[j] = keep;
    return f;
}

/* The largest query_end of queries [i, i + mr): the inner dimension of their product. */
static inline size_t tile_depth(const mask_extent *extent, size_t i, size_t mr) {
    lane depth = 0;
    for (size_t j = i; j < i + mr; j++)
        depth = extent->query_end[j] > depth ? extent->query_end[j] : depth;
    return (size_t)depth;
}

/* out (queries x dp) = (or, with add, +=) s' rows, where rows are keys or values. Each register
   tile stops at the last key that its queries see. */
static void queries_product(real *out, const mask_extent *extent, const real *s, const real *rows,
                            size_t nq, size_t dp, int add, prefetch_queue *queue) {
    for (size_t i = 0, mr; i < nq; i += mr) {
        mr = tile_height(nq - i);
        const size_t depth = tile_depth(extent, i, mr);
        for (size_t j = 0; j < dp; j += GEMM_NR)
            tile_for(mr, 0, dp - j)(depth, s + i, BLOCK, rows + j, dp, out + i * dp + j, dp, add,
                                    prefetch_next(queue, depth));
    }
}

/* Round the scores of one group of lanes, all of whose keys are in cache now. */
static inline void round_scores(operand left, const mask_extent *extent, const real *s, size_t g,
                                size_t nq) {
    const size_t i = g * VEC_LANES;
    left_columns(left_from(columns_of(left), i, 0), s + i, BLOCK, min_size(VEC_LANES, nq - i),
                 extent->max_end);
}

/* The same of rounded operands, `left` being s, for the groups from g0 on. */
static void rounded_queries_product(real *out, const mask_extent *extent, size_t g0, operand left,
                                    operand rows, size_t nq, size_t dp, int add,
                                    prefetch_queue *queue) {
    const size_t end = min_size(nq, extent->groups * VEC_LANES), step = left_rows_of(dp);
    for (size_t i = g0 * VEC_LANES; i < end; i += step) {
        const size_t m = min_size(step, end - i);
        rounded_product(out + i * dp, dp, left_from(columns_of(left), i, 0), rows, m, dp,
                        tile_depth(extent, i, m), add, prefetch_take(queue, product_lines(step)));
    }
}

/* The first query that sees key i. */
static inline size_t first_query(const mask_extent *extent, size_t nq, size_t i) {
    size_t from = first_group(extent, i) * VEC_LANES;
    while (from < nq && extent->query_end[from] <= (lane)i) from++;
    return from;
}

/* out (keys x dp) += s rows, where rows belong to queries. Each register tile begins with the first
   query that sees one of its keys. */
static void keys_product(real *out, const mask_extent *extent, const real *s, const real *rows,
                         size_t nq, size_t dp) {
    for (size_t i = 0, mr; i < extent->max_end; i += mr) {
        mr = tile_height(extent->max_end - i);
        const size_t from = first_query(extent, nq, i);
        for (size_t j = 0; j < dp; j += GEMM_NR)
            tile_for(mr, 1, dp - j)(nq - from, s + i * BLOCK + from, BLOCK, rows + from * dp + j,
                                    dp, out + i * dp + j, dp, 1, &no_lines);
    }
}

/* The same of rounded operands; `left` is scratch for s. */
static void rounded_keys_product(real *out, const mask_extent *extent, const real *s, operand left,
                                 operand rows, size_t nq, size_t dp, prefetch_queue *queue) {
    left_rows(left, s, BLOCK, extent->max_end, nq);
    const size_t step = left_rows_of(dp);
    for (size_t i = 0; i < extent->max_end; i += step) {
        const size_t from = first_query(extent, nq, i) / LEFT_STEP * LEFT_STEP;
        rounded_product(out + i * dp, dp, left_from(left, i, from), right_from(rows, from, 0),
                        min_size(step, extent->max_end - i), dp, nq - from, 1,
                        prefetch_take(queue, product_lines(step)));
    }
}

#endif
