/* attention_forward.c: softmax attention in every scope, a pair of blocks at a time.

   Online softmax. The softmax of a row covers its keys of all rounds, so a row's running maximum,
   denominator and numerator are carried from block to block and from round to round. */
#include "attention_tasks.h"

typedef struct {
    real *out, *lse, *sum;
    real *log_sums; // or NULL
    rf_strides sout;
} forward_results;

static ALWAYS_INLINE vec exponential(real *s, const real *kunit, size_t i, vec max) {
    const vec x = vload(s + i * BLOCK);
    const vec p = vec_exp2((kunit ? rounded(x * kunit[i]) : x) - max);
    vstore(s + i * BLOCK, p);
    return p;
}

/* Keys [i0, i1) of one group of lanes: 2^(score - max) in place of each product, or of each score
   where kunit is NULL; returns their sum. The first keys each prefetch one of `lines`. */
static ALWAYS_INLINE vec exponentials(real *s, const real *kunit, size_t i0, size_t i1, vec max,
                                      const line_list *lines) {
    vec sum = {0};
    size_t i = i0;
    for (const char *const *line = lines->line; i < i1 && i - i0 < lines->count; i++) {
        __builtin_prefetch(*line++, 0, 2);
        sum += exponential(s, kunit, i, max);
    }
    for (; i < i1; i++) sum += exponential(s, kunit, i, max);
    return sum;
}

/* The lines that the exponentials of keys [i0, i1) are to prefetch: rounded products are too short
   to prefetch all. */
static inline const line_list *lines_for(const attention_arrays *x, thread_scratch *ts, size_t i0,
                                         size_t i1) {
    return x->terms && i0 < i1 ? prefetch_take(&ts->queue, i1 - i0) : &no_lines;
}

/* Lazy rescaling. The maximum of one group of lanes has grown from `before` to `max`; returns the
   one that exponentials are to be taken relative to. It is the old one while no exponential exceeds
   2^8; only beyond that are the row's sum and numerator rescaled to the new one. */
static vec rescale_tile(query_tile *tile, size_t group, vec before, vec max, size_t dp) {
    const ivec far = max > before + (real)8;
    if (!any(far)) return before;
    max = vselect(far, max, before);
    vstore(tile->max + group * VEC_LANES, max);
    if (!tile->started) return max;
    const vec factor = vec_exp2(before - max);
    vstore(tile->sum + group * VEC_LANES, vload(tile->sum + group * VEC_LANES) * factor);
    for (size_t i = 0; i < VEC_LANES; i++) {
        real *num = tile->num + (group * VEC_LANES + i) * dp;
        if (factor[i] == 0) // not by a product: the old numerator may be NaN
            memset(num, 0, dp * sizeof(real));
        else if (factor[i] != 1)
            for (size_t j = 0; j < dp; j += VEC_LANES) vstore(num + j, vload(num + j) * factor[i]);
    }
    return max;
}

/* num += p v without the terms whose p is 0. */
static void add_nonzero_products(const attention_arrays *x, const thread_scratch *ts,
                                 query_tile *tile, const block *k, const mask_extent *extent,
                                 size_t g0) {
    const size_t dp = x->dp, end = min_size(tile->blk->nq, extent->groups * VEC_LANES);
    const size_t first = g0 * VEC_LANES;
    if (!tile->started) memset(tile->num + first * dp, 0, (end - first) * dp * sizeof(real));
    for (size_t i = first; i < end; i++)
        for (size_t j = 0; j < extent->group_end[i / VEC_LANES]; j++) {
            const real p = rounded_value(ts->s[j * BLOCK + i], x->terms);
            for (size_t e = 0; e < x->a->d && p != 0; e++)
                tile->num[i * dp + e] += p * rounded_value(k->v_rows[j * dp + e], x->terms);
        }
}

/* The groups of queries from g0 on attend to one block of keys. */
static void forward_groups(const attention_arrays *x, thread_scratch *ts, query_tile *tile,
                           const block *k, size_t slot, const mask_extent *extent, size_t g0) {
    const rf_attention *a = x->a;
    const block *q = tile->blk;
    const size_t dp = x->dp;

    // 1. raw products q k'
    raw_scores(ts->s, x, extent, g0, q, k, &ts->queue);

    for (size_t g = g0; g < extent->groups; g++) {
        prefetch_flush(&ts->queue, x->terms || a->separate ? ROUNDED_FLUSH : 8);
        real *s = ts->s + g * VEC_LANES;
        const size_t dense_end = extent->dense_end[g];
        const size_t partial_end = max_size(extent->partial_end[g], dense_end);
        const size_t end = extent->group_end[g];
        const vec before = vload(tile->max + g * VEC_LANES);

        // 2. row maxima, without keys that were met before
        find_earlier_windows(&ts->windows, x, q, k, g, slot);
        hide_repeats(s, &ts->windows, k, 0, dense_end);
        hide_repeats(s, &ts->windows, k, partial_end, end);
        vec max = dense_max(s, k->kunit, 0, dense_end, before);
        max = partial_scores(s, x, &ts->windows, q, k, g, slot, dense_end, partial_end, max);
        max = dense_max(s, k->kunit, partial_end, end, max);

        // 3. lazy rescaling
        max = rescale_tile(tile, g, before, max, dp);

        // 4. exponentials and their sums
        vec sum = vload(tile->sum + g * VEC_LANES);
        sum += exponentials(s, k->kunit, 0, dense_end, max, lines_for(x, ts, 0, dense_end));
        sum += exponentials(s, NULL, dense_end, partial_end, max,
                            lines_for(x, ts, dense_end, partial_end));
        sum += exponentials(s, k->kunit, partial_end, end, max, lines_for(x, ts, partial_end, end));

        // 5. dropout, after the sums: it applies to the normalised probabilities
        for (size_t i = 0; i < end && a->dropout > 0; i++)
            vstore(s + i * BLOCK, vload(s + i * BLOCK) * drop_factors(a, q, k->kpos[i], slot, g));
        vstore(tile->sum + g * VEC_LANES, sum);
        clear_masked(s, extent, g);
        if (x->terms) round_scores(ts->left, extent, ts->s, g, q->nq);
        products_awake(x->terms);
    }

    // 6. num += p v
    if (ts->skip_zero_weights)
        add_nonzero_products(x, ts, tile, k, extent, g0);
    else if (x->terms)
        rounded_queries_product(tile->num, extent, g0, ts->left, k->v_right, q->nq, dp,
                                tile->started, &ts->queue);
    else
        queries_product(tile->num, extent, ts->s, k->v_rows, q->nq, dp, tile->started, &ts->queue);
}

/* One query tile attends to one block of keys. Rounded operands are taken UNIT queries at a time:
   with those, their scores and their numerators fit into the L1 cache. */
static void forward_pair(const attention_arrays *x, thread_scratch *ts, query_tile *tile,
                         const block *k, size_t slot) {
    mask_extent extent;
    find_extent(&extent, x, tile->blk, k);
    if (!extent.max_end) return;
    for (size_t i = 0; i < BLOCK; i++) tile->visible_keys[i] += extent.query_end[i];

    const size_t groups = extent.groups, step = x->terms ? UNIT / VEC_LANES : groups;
    for (size_t g0 = 0; g0 < groups; g0 += step) {
        if (step < groups) limit_groups(&extent, g0, min_size(groups, g0 + step));
        forward_groups(x, ts, tile, k, slot, &extent, g0);
    }
    tile->started = 1;
}

/* Does a row begin anew in this round? Orphans do: nothing has come before. */
static int begins_rows(const rf_attention *a, size_t round) {
    return is_first_round(a, round) || (!is_hash_round(a, round) && round == orphan_round(a));
}

/* Is this round a row's last one? */
static int ends_rows(const rf_attention *a, size_t round) {
    return round + 1 == rounds_of(a) || round == orphan_round(a);
}

/* The softmax state of a tile's rows: empty in their first round, then as query_tile_store left it.
 */
static void query_tile_load(const attention_arrays *x, query_tile *tile, const forward_results *f) {
    const rf_attention *a = x->a;
    const block *q = tile->blk;
    tile->started = !begins_rows(a, q->round);
    for (size_t i = 0; i < BLOCK; i++) {
        tile->max[i] = REAL_LOWEST;
        tile->sum[i] = 0;
        tile->visible_keys[i] = 0;
    }
    if (!tile->started) return;
    for (size_t i = 0; i < q->nq; i++) {
        const size_t token = (size_t)q->qtoken[i], row = q->bh * a->t + token;
        if (i % 16 == 0) products_awake(x->terms);
        tile->max[i] = f->lse[row];
        tile->sum[i] = f->sum[row];
        real *num = tile->num + i * x->dp;
        copy_row(num, row_of(f->out, f->sout, a, q->bh, token), a->d);
        for (size_t j = a->d; j < x->dp; j++) num[j] = 0;
    }
}

static int query_tile_is_finite(const attention_arrays *x, const query_tile *tile) {
    vec s[4] = {{0}, {0}, {0}, {0}}; // stay 0 unless a numerator is not finite
    if (!tile->started) return 1;
    const size_t end = tile->blk->nq * x->dp;
    size_t i = 0;
    for (; i + 4 * VEC_LANES <= end; i += 4 * VEC_LANES)
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++) s[j] += vload(tile->num + i + j * VEC_LANES) * (real)0;
    for (; i < end; i += VEC_LANES) s[0] += vload(tile->num + i) * (real)0;
    return vsum((s[0] + s[1]) + (s[2] + s[3])) == 0;
}

/* After the last round a row is num / sum; until then num, max and sum are kept in out, lse and
   sum. Rows that attended to no key are marked for hf_row_forward by lse = -inf. With one round, a
   row that attended only to itself equals its value: it is final here, marked LSE_SELF_ONLY. */
static void query_tile_store(const attention_arrays *x, const query_tile *tile,
                             const forward_results *f) {
    const rf_attention *a = x->a;
    const block *q = tile->blk;
    const int last = ends_rows(a, q->round);
    if (!tile->started) memset(tile->num, 0, q->nq * x->dp * sizeof(real));

    // 1. log-sum-exp in natural units, and the reciprocals of the sums
    const ivec by_value = (ivec){0} - (lane)(a->shared_qk && passes_of(a) == 1);
    real lse[BLOCK];
    for (size_t i = 0; i < BLOCK && last; i += VEC_LANES) {
        const vec max = vload(tile->max + i), sum = vload(tile->sum + i);
        const ivec no_key = max < vset1(SCORE_NO_KEY);
        const ivec self_only =
            (iload(tile->visible_keys + i) == 1) & (max == vset1(SCORE_SELF)) & by_value;
        const vec mark = vselect(self_only, vset1(LSE_SELF_ONLY), vset1(-(real)INFINITY));
        vstore(lse + i, vselect(no_key, mark, max * LN_2 + vec_log(sum)));
        vstore(tile->sum + i, (real)1 / sum);
    }

    // 2. rows
    real *head = (real *)head_of(f->out, f->sout, a, q->bh);
    const size_t d = a->d, dp = x->dp, first = q->bh * a->t;
    for (size_t i = 0; i < q->nq; i++) {
        real *out = head + (ptrdiff_t)q->qtoken[i] * f->sout.t;
        if (i % 16 == 0) products_awake(x->terms);
        if (last)
            scale_row(out, tile->num + i * dp, tile->sum[i], d);
        else
            copy_row(out, tile->num + i * dp, d);
    }

    // 3. log-sum-exps, or maxima and sums
    const real *lse_or_max = last ? lse : tile->max;
    for (size_t i = 0; i < q->nq; i++) f->lse[first + (size_t)q->qtoken[i]] = lse_or_max[i];
    for (size_t i = 0; i < q->nq && !last; i++) f->sum[first + (size_t)q->qtoken[i]] = tile->sum[i];
}

static void forward_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                         query_span queries, span keys, size_t slot) {
    const size_t cap = cap_of(x->a, keys.round) / BLOCK;
    for (size_t j = 0; j < blocks_of(keys.end - keys.start, BLOCK); j++) {
        if (stopped(x->order.run)) return;
        if (cap && !queries_touch(queries, j, cap)) continue;
        const block *k = span_block(x, ts, bh, keys, j, 0);
        for (size_t i = 0; i < queries.count; i++)
            if (segments_touch(queries.first + i, j, cap))
                forward_pair(x, ts, ts->tiles + i, k, slot);
    }
}

/* All queries of a query span attend to all their keys of this round. */
static void forward_spans(const attention_arrays *x, thread_scratch *ts, size_t bh,
                          query_span queries, const forward_results *f) {
    const rf_attention *a = x->a;
    for (size_t i = 0; i < queries.count; i++) query_tile_load(x, ts->tiles + i, f);
    const int hashed = is_hash_round(a, queries.base.round);
    if (is_window_scope(a) && hashed) {
        // the queries' own chunk first: its keys are the most similar, and later maxima seldom grow
        for (size_t i = 0; i <= a->before + a->after && !is_stopped(x->order.run); i++) {
            const size_t slot = i == 0 ? a->before : i <= a->before ? i - 1 : i;
            size_t to;
            if (chunk_at(a, queries.chunk, (ptrdiff_t)slot - (ptrdiff_t)a->before, &to))
                forward_span(x, ts, bh, queries, chunk_span(a, key_side(a), to), slot);
        }
        return;
    }
    if (a->separate || !hashed) {
        forward_span(x, ts, bh, queries, keys_of(x, bh, queries), 0);
        return;
    }
    span keys = queries.base;
    if (a->scope == RF_FULL) keys.end = a->tk;
    // a span's tokens are in order of position, so later blocks are later tokens
    if (a->causal)
        keys.end = min_size(keys.end, keys.start + (queries.first + queries.count) * BLOCK);
    forward_span(x, ts, bh, queries, keys, 0);
}

static void forward_query_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                               query_span queries, void *results) {
    const forward_results *f = results;
    // 1. gather the queries
    for (size_t i = 0; i < queries.count; i++) {
        ts->tiles[i].blk = span_block(x, ts, bh, queries.base, queries.first + i, 1);
        ts->tiles[i].blk->pinned = 1;
    }
    const head_rows written = {head_of(f->out, f->sout, x->a, bh), f->sout.t};
    queue_rows(x, ts, bh, queries, &written, 1);

    // 2. attend; once more if a value is not finite: 0 * NaN is NaN, so a product with masked
    // weights has spread it to rows that do not attend to it
    forward_spans(x, ts, bh, queries, f);
    int finite = 1;
    for (size_t i = 0; i < queries.count; i++) finite &= query_tile_is_finite(x, ts->tiles + i);
    if (!finite) {
        ts->skip_zero_weights = 1;
        forward_spans(x, ts, bh, queries, f);
        ts->skip_zero_weights = 0;
    }

    // 3. store
    for (size_t i = 0; i < queries.count; i++) {
        query_tile_store(x, ts->tiles + i, f);
        ts->tiles[i].blk->pinned = 0;
    }
    prefetch_flush(&ts->queue, ts->queue.lines.count); // what too few register tiles have left
}

/* The rows from `start` that were marked as having attended to no key. */
static void forward_hf_rows_of(rf_run *run, const attention_arrays *x, const forward_results *f,
                               size_t start, size_t end, void *scratch) {
    const rf_attention *a = x->a;
    hf_scratch hf = hf_scratch_place(a, scratch);
    for (size_t i = start; i < end; i++) {
        if (f->log_sums) f->log_sums[i] = f->lse[i] == LSE_SELF_ONLY ? SCORE_SELF : f->lse[i];
        if (f->lse[i] != -(real)INFINITY || stopped(run)) continue;
        hf_row_forward(x, (real *)row_of(f->out, f->sout, a, i / a->t, i % a->t), i / a->t,
                       i % a->t, &hf);
        if (f->log_sums) f->log_sums[i] = hf.lse;
    }
}

static void forward_hf_rows(rf_run *run, const attention_arrays *x, const forward_results *f,
                            void *scratch) {
    const rf_attention *a = x->a;
    const size_t bytes = thread_scratch_bytes(run, a, 0), rows = a->b * a->h * a->t, step = 1024;
    const int workers = team(run, (double)rows);
    if (workers == 1) {
        forward_hf_rows_of(run, x, f, 0, rows, scratch);
        return;
    }
#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (size_t task = 0; task < blocks_of(rows, step); task++)
        forward_hf_rows_of(run, x, f, task * step, min_size(rows, (task + 1) * step),
                           (char *)scratch + thread_index() * bytes);
}

static void attention_forward(rf_run *run, const rf_attention *a, const real *q, const real *k,
                              const real *v, const uint8_t *attention_mask, const int32_t *buckets,
                              const int32_t *key_buckets, real *out, real *lse, real *log_sums,
                              rf_strides sq, rf_strides sk, rf_strides sv, rf_strides sout,
                              void *scratch) {
    attention_arrays x = attention_begin(run, a, q, k, v, attention_mask, buckets, key_buckets, sq,
                                         sk, sv, &scratch);
    forward_results f = {out, lse, NULL, log_sums, sout};
    if (passes_of(a) > 1) f.sum = take(&scratch, a->b * a->h * a->t, sizeof(real));
    for (size_t pass = 0; pass < passes_of(a) + (size_t)any_orphans(&x); pass++)
        for_round(run, &x, round_of_pass(a, pass), scratch, 0, forward_query_span, &f);
    forward_hf_rows(run, &x, &f, scratch);
}
