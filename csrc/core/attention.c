/* attention.c: softmax attention in every scope, forward and backward, a pair of blocks at a time.

   Forward: online softmax. The softmax of a row covers its keys of all rounds, so a row's running
   maximum, denominator and numerator are carried from block to block and from round to round.

   Backward: owner-computes. A query span computes everything that its own tokens receive: as
   queries from the keys they attend to, and as keys from the queries that attend to them. That
   repeats two of the five products for pairs of different query spans, and in exchange no two tasks
   write the same row. Two common cases need no repetition; sums are taken in the same order either
   way, so the bits are the same:
   - one chunk of look-back and no look-ahead: the thread that has processed a chunk's queries with
     the keys before them keeps their dq, since it usually processes that chunk next;
   - scope FULL, if heads divide evenly among threads: a thread takes a whole head and holds dq of
     all its queries. */
#include "attention_tasks.h"

/* ------------------------------------------------------------------------------- forward ---- */

typedef struct {
    real *out, *lse, *sum;
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

/* The lines that the exponentials of keys [i0, i1) are to prefetch: products of rounded operands do
   not prefetch while they compute. */
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
        prefetch_flush(&ts->queue, x->terms ? ROUNDED_FLUSH : 8);
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
    products_begin(x->terms);
    for (size_t g0 = 0; g0 < groups; g0 += step) {
        if (step < groups) limit_groups(&extent, g0, min_size(groups, g0 + step));
        forward_groups(x, ts, tile, k, slot, &extent, g0);
    }
    products_end(x->terms);
    tile->started = 1;
}

/* The softmax state of a tile's rows: empty in round 0, then as query_tile_store left it. */
static void query_tile_load(const attention_arrays *x, query_tile *tile, const forward_results *f) {
    const rf_attention *a = x->a;
    const block *q = tile->blk;
    tile->started = q->round > 0;
    for (size_t i = 0; i < BLOCK; i++) {
        tile->max[i] = REAL_LOWEST;
        tile->sum[i] = 0;
        tile->visible_keys[i] = 0;
    }
    if (!tile->started) return;
    for (size_t i = 0; i < q->nq; i++) {
        const size_t token = (size_t)q->qpos[i], row = q->bh * a->t + token;
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
    const int last = q->round + 1 == rounds_of(a);
    if (!tile->started) memset(tile->num, 0, q->nq * x->dp * sizeof(real));

    // 1. log-sum-exp in natural units, and the reciprocals of the sums
    const ivec by_value = (ivec){0} - (lane)(a->shared_qk && rounds_of(a) == 1);
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
        real *out = head + (ptrdiff_t)q->qpos[i] * f->sout.t;
        if (last)
            scale_row(out, tile->num + i * dp, tile->sum[i], d);
        else
            copy_row(out, tile->num + i * dp, d);
    }

    // 3. log-sum-exps, or maxima and sums
    const real *lse_or_max = last ? lse : tile->max;
    for (size_t i = 0; i < q->nq; i++) f->lse[first + (size_t)q->qpos[i]] = lse_or_max[i];
    for (size_t i = 0; i < q->nq && !last; i++) f->sum[first + (size_t)q->qpos[i]] = tile->sum[i];
}

/* Does any block of a query span attend to block j of its bucket? */
static int queries_touch(const rf_attention *a, query_span queries, size_t j) {
    const size_t cap = a->cap / BLOCK;
    for (size_t i = 0; i < queries.count; i++)
        if (segments_touch(queries.first + i, j, cap)) return 1;
    return 0;
}

static void forward_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                         query_span queries, span keys, size_t slot) {
    for (size_t j = 0; j < blocks_of(keys.end - keys.start, BLOCK); j++) {
        if (stopped(x->order.run)) return;
        if (x->a->cap && !queries_touch(x->a, queries, j)) continue;
        const block *k = span_block(x, ts, bh, keys, j, 0);
        for (size_t i = 0; i < queries.count; i++)
            if (segments_touch(queries.first + i, j, x->a->cap / BLOCK))
                forward_pair(x, ts, ts->tiles + i, k, slot);
    }
}

/* All queries of a query span attend to all their keys of this round. */
static void forward_spans(const attention_arrays *x, thread_scratch *ts, size_t bh,
                          query_span queries, const forward_results *f) {
    const rf_attention *a = x->a;
    for (size_t i = 0; i < queries.count; i++) query_tile_load(x, ts->tiles + i, f);
    if (is_window_scope(a)) {
        // the queries' own chunk first: its keys are the most similar, and later maxima seldom grow
        for (size_t i = 0; i <= a->before + a->after && !is_stopped(x->order.run); i++) {
            const size_t slot = i == 0 ? a->before : i <= a->before ? i - 1 : i;
            size_t to;
            if (chunk_at(a, queries.chunk, (ptrdiff_t)slot - (ptrdiff_t)a->before, &to))
                forward_span(x, ts, bh, queries, chunk_span(a, to), slot);
        }
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
    queue_rows(x, ts, bh, queries, &(strided){f->out, f->sout}, 1);

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

/* One thread's part of `forward_hf_rows`. */
static void forward_hf_rows_of_thread(rf_run *run, const attention_arrays *x,
                                      const forward_results *f, void *scratch) {
    const rf_attention *a = x->a;
    const size_t rows = a->b * a->h * a->t, step = 1024;
    hf_scratch hf = hf_scratch_place(a, scratch);
#pragma omp for schedule(dynamic) nowait
    for (size_t task = 0; task < blocks_of(rows, step); task++)
        for (size_t i = task * step; i < min_size(rows, (task + 1) * step); i++)
            if (f->lse[i] == -(real)INFINITY && !stopped(run))
                hf_row_forward(x, (real *)row_of(f->out, f->sout, a, i / a->t, i % a->t), i / a->t,
                               i % a->t, &hf);
}

/* The rows that were marked as having attended to no key. */
static void forward_hf_rows(rf_run *run, const attention_arrays *x, const forward_results *f,
                            void *scratch) {
    const rf_attention *a = x->a;
    const size_t bytes = thread_scratch_bytes(run, a, 0);
    const int workers = team(run, (double)(a->b * a->h * a->t));
    if (workers == 1) {
        forward_hf_rows_of_thread(run, x, f, scratch);
        return;
    }
#pragma omp parallel num_threads(workers)
    forward_hf_rows_of_thread(run, x, f, (char *)scratch + thread_index() * bytes);
}

static void attention_forward(rf_run *run, const rf_attention *a, const real *q, const real *k,
                              const real *v, const uint8_t *attention_mask, const int32_t *buckets,
                              real *out, real *lse, rf_strides sq, rf_strides sk, rf_strides sv,
                              rf_strides sout, void *scratch) {
    attention_arrays x = {
        .a = a, .q = q, .k = k, .v = v, .mask = attention_mask, .buckets = buckets};
    x.terms = terms_of(run), x.repeats = may_repeat(a);
    x.sq = sq, x.sk = sk, x.sv = sv, x.dp = round_up(a->d, VEC_LANES);
    x.order = make_order(run, a, buckets, &scratch);
    find_homes(&x.order, buckets, &scratch);
    forward_results f = {out, lse, NULL, sout};
    if (rounds_of(a) > 1) f.sum = take(&scratch, a->b * a->h * a->t, sizeof(real));
    for (size_t round = 0; round < rounds_of(a); round++)
        for_round(run, &x, round, scratch, 0, forward_query_span, &f);
    forward_hf_rows(run, &x, &f, scratch);
}

/* ------------------------------------------------------------------------------ backward ---- */

/* Probabilities and score gradients of keys [i0, i1) of one group of lanes: forward was
   p = 2^(s - lse), then out = sum of p keep v; so ds = p (keep dp - dout out), and s was the raw
   product times kscale, unless it is a partial score. dp is in g on entry; p keep is left in s,
   ds kscale in g. */
static ALWAYS_INLINE void backward_keys(const attention_arrays *x, real *s, real *g, const block *q,
                                        const block *k, size_t group, size_t slot, size_t i0,
                                        size_t i1, const int partial) {
    const vec lse = vload(q->lse + group * VEC_LANES), delta = vload(q->delta + group * VEC_LANES);
    const ivec positions = iload(q->qpos + group * VEC_LANES);
    const int drops = x->a->dropout > 0, shared = x->a->shared_qk;
    const real softcap = (real)x->a->softcap * LOG2_E;
    for (size_t i = i0; i < i1; i++) {
        const vec score = partial ? vload(s + i * BLOCK) : vload(s + i * BLOCK) * k->kunit[i];
        // at most 1, even if rounding a huge log-sum-exp puts it below the score
        const vec p = vec_exp2(-vmax((vec){0}, lse - score)), dp = vload(g + i * BLOCK);
        vec kept = p, ds = dp - delta;
        if (drops) {
            const vec keep = drop_factors(x->a, q, k->kpos[i], slot, group);
            kept = p * keep, ds = dp * keep - delta;
        }
        ds *= p * k->kscale[i];
        if (partial && softcap > 0) ds *= soft_cap_slope(score, softcap);
        // a value that is not finite must reach only rows that attend to it: 0 * NaN is NaN
        if (partial) ds = vselect(p == (vec){0}, (vec){0}, ds);
        // the self score is a constant: no gradient flows through it
        if (partial && shared) ds = vselect(k->kpos[i] - (ivec){0} == positions, (vec){0}, ds);
        vstore(s + i * BLOCK, kept);
        vstore(g + i * BLOCK, ds);
    }
}

/* Queries q against keys k. dq is NULL if the queries' gradient is not accumulated here, dk and dv
   if the keys' is not. */
static void backward_pair(const attention_arrays *x, thread_scratch *ts, const block *q,
                          const block *k, size_t slot, real *dq, real *dk, real *dv) {
    const rf_attention *a = x->a;
    const size_t dp = x->dp;
    mask_extent extent;
    find_extent(&extent, x, q, k);
    if (!extent.max_end) return;

    // 1. raw products q k', and dp = dout v'
    products_begin(x->terms);
    raw_scores(ts->s, x, &extent, 0, q, k, &ts->queue);
    if (x->terms)
        rounded_staircase(ts->g, &extent, 0, k->v_left, q->do_columns_right, a->d, &ts->queue);
    else
        staircase_product(ts->g, &extent, k->v_rows, 1, q->do_columns, a->d, dp, &ts->queue);

    // 2. probabilities and ds
    for (size_t g = 0; g < extent.groups; g++) {
        real *s = ts->s + g * VEC_LANES, *ds = ts->g + g * VEC_LANES;
        const size_t dense_end = extent.dense_end[g];
        const size_t partial_end = max_size(extent.partial_end[g], dense_end);
        find_earlier_windows(&ts->windows, x, q, k, g, slot);
        hide_repeats(s, &ts->windows, k, 0, dense_end);
        hide_repeats(s, &ts->windows, k, partial_end, extent.group_end[g]);
        partial_scores(s, x, &ts->windows, q, k, g, slot, dense_end, partial_end, (vec){0});
        if (x->terms) prefetch_flush(&ts->queue, ROUNDED_FLUSH);
        backward_keys(x, s, ds, q, k, g, slot, 0, dense_end, 0);
        backward_keys(x, s, ds, q, k, g, slot, dense_end, partial_end, 1);
        backward_keys(x, s, ds, q, k, g, slot, partial_end, extent.group_end[g], 0);
        clear_masked(s, &extent, g);
        clear_masked(ds, &extent, g);
        if (x->terms) prefetch_flush(&ts->queue, ROUNDED_FLUSH);
        if (x->terms && dq) round_scores(ts->left, &extent, ts->g, g, q->nq);
    }

    // 3. dq += ds k, dv += p' dout, dk += ds' q
    if (x->terms) {
        if (dq)
            rounded_queries_product(dq, &extent, 0, ts->left, k->k_right, q->nq, dp, 1, &ts->queue);
        if (dk) {
            rounded_keys_product(dv, &extent, ts->s, ts->left, q->do_right, q->nq, dp, &ts->queue);
            rounded_keys_product(dk, &extent, ts->g, ts->left, q->q_right, q->nq, dp, &ts->queue);
        }
    } else {
        if (dq) queries_product(dq, &extent, ts->g, k->k_rows, q->nq, dp, 1, &ts->queue);
        if (dk) {
            keys_product(dv, &extent, ts->s, q->do_rows, q->nq, dp);
            keys_product(dk, &extent, ts->g, q->q_rows, q->nq, dp);
        }
    }
    products_end(x->terms);
}

/* The query span's tokens as queries of another span's keys (as_queries), and as keys of its
   queries (as_keys). others_dq, if not NULL, receives those queries' gradient, block by block. */
static void backward_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                          query_span queries, span others, size_t slot, int as_queries, int as_keys,
                          real *others_dq) {
    for (size_t j = 0; j < blocks_of(others.end - others.start, BLOCK); j++) {
        if (stopped(x->order.run)) return;
        const size_t at = x->a->cap ? (others.start - queries.base.start) / BLOCK + j : 0;
        if (x->a->cap && !queries_touch(x->a, queries, at)) continue;
        const block *other = span_block(x, ts, bh, others, j, 1);
        real *dq = others_dq ? others_dq + j * BLOCK * x->dp : NULL;
        for (size_t i = 0; i < queries.count; i++) {
            query_tile *tile = ts->tiles + i;
            if (x->a->cap && !segments_touch(queries.first + i, at, x->a->cap / BLOCK)) continue;
            if (as_queries) backward_pair(x, ts, tile->blk, other, slot, tile->dq, NULL, NULL);
            if (as_keys) backward_pair(x, ts, other, tile->blk, slot, dq, tile->dk, tile->dv);
        }
    }
}

static inline void write_row(real *restrict to, const real *restrict from, size_t n, int add) {
    if (add)
        add_row(to, from, n);
    else
        copy_row(to, from, n);
}

/* The first round writes rows, later ones add to them: a token is in one query span per round. */
static void flush_keys(const attention_arrays *x, const query_tile *tile,
                       const backward_results *g) {
    const rf_attention *a = x->a;
    const block *blk = tile->blk;
    for (size_t i = 0; i < blk->nk; i++) {
        const size_t token = (size_t)blk->kpos[i], at = i * x->dp;
        real *dv = (real *)row_of(g->dv, g->sdv, a, blk->bh, token);
        write_row(dv, tile->dv + at, a->d, blk->round > 0);
        if (!a->shared_qk)
            copy_row((real *)row_of(g->dk, g->sdk, a, blk->bh, token), tile->dk + at, a->d);
    }
}

/* With shared keys, dk is a part of dq. */
static void flush_queries(const attention_arrays *x, const query_tile *tile,
                          const backward_results *g) {
    const rf_attention *a = x->a;
    const block *blk = tile->blk;
    for (size_t i = 0; i < blk->nq; i++) {
        const size_t token = (size_t)blk->qpos[i], at = i * x->dp;
        real *dq = (real *)row_of(g->dq, g->sdq, a, blk->bh, token);
        write_row(dq, tile->dq + at, a->d, blk->round > 0);
        if (a->shared_qk) add_key_gradient(a, dq, blk->k_rows + at, tile->dk + at);
    }
}

/* The query span against itself and the rest of the span that it is part of. Tokens are in order of
   position, so under the causal mask earlier ones are keys only, and later ones queries only. */
static void backward_own_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                              query_span queries, size_t slot) {
    const span all = queries.base, own = places_of(queries);
    const int both_ways = !x->a->causal;
    backward_span(x, ts, bh, queries, (span){all.round, all.start, own.start}, slot, 1, both_ways,
                  NULL);
    backward_span(x, ts, bh, queries, own, slot, 0, 1, ts->dq);
    backward_span(x, ts, bh, queries, (span){all.round, own.end, all.end}, slot, both_ways, 1,
                  NULL);
}

/* A chunk and its window. If `known`, the task before has already computed what the chunk's queries
   receive from the keys of the previous chunk. */
static void backward_window(const attention_arrays *x, thread_scratch *ts, size_t bh,
                            query_span queries, int known) {
    const rf_attention *a = x->a;
    const int one_before = a->before == 1 && a->after == 0 && blocks_per_chunk(a) <= QUERY_TILES;
    for (size_t slot = 0; slot <= a->before + a->after && !is_stopped(x->order.run); slot++) {
        const ptrdiff_t offset = (ptrdiff_t)slot - (ptrdiff_t)a->before;
        size_t other;
        // 1. as queries of the chunk at this offset; of the own chunk, as keys too
        if (chunk_at(a, queries.chunk, offset, &other)) {
            if (other == queries.chunk)
                backward_own_span(x, ts, bh, queries, slot);
            else if (!known)
                backward_span(x, ts, bh, queries, chunk_span(a, other), slot, 1, 0, NULL);
        }
        // 2. as keys of the chunk that has this one at this offset
        if (!chunk_seen_from(a, queries.chunk, offset, &other)) continue;
        if (one_before) {
            memset(ts->dq_next, 0, blocks_per_chunk(a) * BLOCK * x->dp * sizeof(real));
            ts->next_head = bh, ts->next_chunk = other;
        }
        backward_span(x, ts, bh, queries, chunk_span(a, other), slot, 0, 1,
                      one_before ? ts->dq_next : NULL);
    }
}

/* Query spans of a head come in order. Each is processed as keys: of all queries, or under the
   causal mask of its own and later ones. */
static void backward_whole_head(const attention_arrays *x, thread_scratch *ts, size_t bh,
                                query_span keys) {
    const size_t first = x->a->causal ? keys.first : 0;
    span queries = keys.base;
    queries.start += first * BLOCK;
    backward_span(x, ts, bh, keys, queries, 0, 0, 1, ts->dq + first * BLOCK * x->dp);
}

static void backward_query_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                                query_span queries, void *results) {
    const rf_attention *a = x->a;
    const backward_results *g = results;
    const size_t block_size = BLOCK * x->dp;

    // 1. dq: continue what the task before has begun, or start from 0
    const int known = is_window_scope(a) && ts->next_head == bh && ts->next_chunk == queries.chunk;
    if (known) {
        real *dq = ts->dq;
        ts->dq = ts->dq_next, ts->dq_next = dq;
    } else if (!x->whole_heads) {
        memset(ts->dq, 0, queries.count * block_size * sizeof(real));
    } else if (queries.first == 0) {
        memset(ts->dq, 0, full_blocks(a) * block_size * sizeof(real));
    }

    // 2. gather the blocks
    for (size_t i = 0; i < queries.count; i++) {
        query_tile *tile = ts->tiles + i;
        tile->blk = span_block(x, ts, bh, queries.base, queries.first + i, 1);
        tile->blk->pinned = 1;
        tile->dq = ts->dq + (x->whole_heads ? queries.first + i : i) * block_size;
        memset(tile->dk, 0, block_size * sizeof(real));
        memset(tile->dv, 0, block_size * sizeof(real));
    }
    // with shared keys dk is a part of dq
    const strided written[] = {{g->dq, g->sdq}, {g->dv, g->sdv}, {g->dk, g->sdk}};
    queue_rows(x, ts, bh, queries, written, a->shared_qk ? 2 : 3);

    // 3. accumulate
    if (is_window_scope(a)) {
        backward_window(x, ts, bh, queries, known);
    } else if (x->whole_heads) {
        backward_whole_head(x, ts, bh, queries);
    } else {
        backward_own_span(x, ts, bh, queries, 0);
    }

    // 4. write
    const int unfinished = x->whole_heads && !a->causal; // later keys add to every dq
    for (size_t i = 0; i < queries.count; i++) {
        flush_keys(x, ts->tiles + i, g);
        if (!unfinished) flush_queries(x, ts->tiles + i, g);
        ts->tiles[i].blk->pinned = 0;
    }
    if (unfinished && queries.first + queries.count == full_blocks(a))
        for (size_t i = 0; i < a->t; i++)
            copy_row((real *)row_of(g->dq, g->sdq, a, bh, i), ts->dq + i * x->dp, a->d);
}

/* delta = dout . out, for each row. */
static void row_products(rf_run *run, real *delta, const real *dout, const real *out,
                         const rf_attention *a, rf_strides sdout, rf_strides sout) {
    const size_t rows = a->b * a->h * a->t, step = 1024;
#pragma omp parallel for num_threads(team(run, 2.0 * (double)(rows * a->d))) schedule(static)
    for (size_t task = 0; task < blocks_of(rows, step); task++) {
        if (stopped(run)) continue;
        for (size_t i = task * step; i < min_size(rows, (task + 1) * step); i++)
            delta[i] = dot(row_of(dout, sdout, a, i / a->t, i % a->t),
                           row_of(out, sout, a, i / a->t, i % a->t), a->d);
    }
}

/* The rows that attended to no key add to gradients anywhere in their windows: a task is a head. */
static void backward_hf_rows(rf_run *run, const attention_arrays *x, const backward_results *g,
                             void *scratch) {
    const rf_attention *a = x->a;
    const size_t bytes = thread_scratch_bytes(run, a, 1);
#pragma omp parallel num_threads(team(run, (double)(a->b * a->h * a->t)))
    {
        hf_scratch hf = hf_scratch_place(a, (char *)scratch + thread_index() * bytes);
#pragma omp for schedule(dynamic)
        for (size_t bh = 0; bh < a->b * a->h; bh++)
            for (size_t i = 0; i < a->t; i++)
                if (x->lse[bh * a->t + i] == -(real)INFINITY && !stopped(run))
                    hf_row_backward(x, g, bh, i, &hf);
    }
}

static void attention_backward(rf_run *run, const rf_attention *a, const real *q, const real *k,
                               const real *v, const uint8_t *attention_mask, const int32_t *buckets,
                               const real *out, const real *lse, const real *dout, real *dq,
                               real *dk, real *dv, rf_strides sq, rf_strides sk, rf_strides sv,
                               rf_strides sout, rf_strides sdout, rf_strides sdq, rf_strides sdk,
                               rf_strides sdv, void *scratch) {
    attention_arrays x = {
        .a = a, .q = q, .k = k, .v = v, .mask = attention_mask, .buckets = buckets};
    x.terms = terms_of(run), x.repeats = may_repeat(a);
    x.sq = sq, x.sk = sk, x.sv = sv, x.dp = round_up(a->d, VEC_LANES);
    x.order = make_order(run, a, buckets, &scratch);
    find_homes(&x.order, buckets, &scratch);
    real *delta = take(&scratch, a->b * a->h * a->t, sizeof(real));
    row_products(run, delta, dout, out, a, sdout, sout);
    x.dout = dout, x.sdout = sdout, x.lse = lse, x.delta = delta;
    x.whole_heads = takes_whole_heads(a, run->workers);
    backward_results g = {dq, dk, dv, sdq, sdk, sdv};
    for (size_t round = 0; round < rounds_of(a); round++)
        for_round(run, &x, round, scratch, 1, backward_query_span, &g);
    backward_hf_rows(run, &x, &g, scratch);
}
