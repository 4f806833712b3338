/* attention_backward.c: the gradients of attention_forward.c, a pair of blocks at a time.

   Owner-computes. A query span computes everything that its own tokens receive: as queries from the
   keys they attend to, and as keys from the queries that attend to them. That repeats two of the
   five products for pairs of different query spans, and in exchange no two tasks write the same
   row. Two common cases need no repetition; sums are taken in the same order either way, so the
   bits are the same:
   - one chunk of look-back and no look-ahead: the thread that has processed a chunk's queries with
     the keys before them keeps their dq, since it usually processes that chunk next;
   - scope FULL, if heads divide evenly among threads: a thread takes a whole head and holds dq of
     all its queries.
   Heads of queries that share keys or values are processed in turn, and add to the same rows.
   Separate keys are sorted by themselves, so query spans and key spans are processed in turn, too;
   but a bucket that is no longer than a task is processed as a whole, without repetition. */
#include "attention_tasks.h"

#define WHOLE_BUCKET 16 // blocks of queries of the longest bucket that one task processes

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
}

/* The query span's tokens as queries of another span's keys (as_queries), and as keys of its
   queries (as_keys). others_dq, if not NULL, receives those queries' gradient, block by block. */
static void backward_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                          query_span queries, span others, size_t slot, int as_queries, int as_keys,
                          real *others_dq) {
    const size_t cap = cap_of(x->a, others.round) / BLOCK;
    for (size_t j = 0; j < blocks_of(others.end - others.start, BLOCK); j++) {
        if (stopped(x->order.run)) return;
        const size_t at = cap ? (others.start - queries.base.start) / BLOCK + j : 0;
        if (cap && !queries_touch(queries, at, cap)) continue;
        const block *other = span_block(x, ts, bh, others, j, 1);
        real *dq = others_dq ? others_dq + j * BLOCK * x->dp : NULL;
        for (size_t i = 0; i < queries.count; i++) {
            query_tile *tile = ts->tiles + i;
            if (cap && !segments_touch(queries.first + i, at, cap)) continue;
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

/* The first round writes rows, later ones add to them: a token is in one query span per round. So
   do the heads that share keys, turn by turn, and the query spans of a whole bucket (`begun`). */
static void flush_keys(const attention_arrays *x, const query_tile *tile, const backward_results *g,
                       int begun) {
    const rf_attention *a = x->a;
    const block *blk = tile->blk;
    const int add = begun || !is_first_round(a, blk->round) || x->turn > 0;
    real *dv = (real *)kv_head_of(g->dv, g->sdv, a, blk->bh);
    real *dk = a->shared_qk ? NULL : (real *)kv_head_of(g->dk, g->sdk, a, blk->bh);
    for (size_t i = 0; i < blk->nk; i++) {
        const ptrdiff_t token = blk->kpos[i];
        const size_t at = i * x->dp;
        write_row(dv + token * g->sdv.t, tile->dv + at, a->d, add);
        if (dk) write_row(dk + token * g->sdk.t, tile->dk + at, a->d, add);
    }
}

/* With shared keys, dk is a part of dq. */
static void flush_queries(const attention_arrays *x, const query_tile *tile,
                          const backward_results *g) {
    const rf_attention *a = x->a;
    const block *blk = tile->blk;
    for (size_t i = 0; i < blk->nq; i++) {
        const size_t token = (size_t)blk->qtoken[i], at = i * x->dp;
        real *dq = (real *)row_of(g->dq, g->sdq, a, blk->bh, token);
        write_row(dq, tile->dq + at, a->d, !is_first_round(a, blk->round));
        if (a->shared_qk) add_key_gradient(a, dq, blk->k_rows + at, tile->dk + at, blk->norm[i]);
    }
}

/* The query span against itself and the rest of the span that it is part of. Tokens are in order of
   position, so under the causal mask earlier ones are keys only, and later ones queries only. */
static void backward_own_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                              query_span queries, size_t slot) {
    const span all = queries.base, own = places_of(queries);
    const int both_ways = !x->a->causal;
    backward_span(x, ts, bh, queries, (span){all.round, all.start, own.start, QUERIES}, slot, 1,
                  both_ways, NULL);
    backward_span(x, ts, bh, queries, own, slot, 0, 1, ts->dq);
    backward_span(x, ts, bh, queries, (span){all.round, own.end, all.end, QUERIES}, slot, both_ways,
                  1, NULL);
}

/* A chunk and its window. If `known`, the task before has already computed what the chunk's queries
   receive from the keys of the previous chunk. */
static void backward_window(const attention_arrays *x, thread_scratch *ts, size_t bh,
                            query_span queries, int known) {
    const rf_attention *a = x->a;
    const int one_before =
        a->before == 1 && a->after == 0 && blocks_per_chunk(a, QUERIES) <= QUERY_TILES;
    for (size_t slot = 0; slot <= a->before + a->after && !is_stopped(x->order.run); slot++) {
        const ptrdiff_t offset = (ptrdiff_t)slot - (ptrdiff_t)a->before;
        size_t other;
        // 1. as queries of the chunk at this offset; of the own chunk, as keys too
        if (chunk_at(a, queries.chunk, offset, &other)) {
            if (other == queries.chunk)
                backward_own_span(x, ts, bh, queries, slot);
            else if (!known)
                backward_span(x, ts, bh, queries, chunk_span(a, QUERIES, other), slot, 1, 0, NULL);
        }
        // 2. as keys of the chunk that has this one at this offset
        if (!chunk_seen_from(a, queries.chunk, offset, &other)) continue;
        if (one_before) {
            memset(ts->dq_next, 0, blocks_per_chunk(a, QUERIES) * BLOCK * x->dp * sizeof(real));
            ts->next_head = bh, ts->next_chunk = other;
        }
        backward_span(x, ts, bh, queries, chunk_span(a, QUERIES, other), slot, 0, 1,
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

/* A span of separate keys, or of their queries, in scope CHUNK. */
static void backward_separate_chunk(const attention_arrays *x, thread_scratch *ts, size_t bh,
                                    query_span own) {
    const rf_attention *a = x->a;
    for (size_t slot = 0; slot <= a->before + a->after && !is_stopped(x->order.run); slot++) {
        const ptrdiff_t offset = (ptrdiff_t)slot - (ptrdiff_t)a->before;
        size_t other;
        const int there = chunk_at(a, own.chunk, offset, &other);
        if (x->side == QUERIES && there)
            backward_span(x, ts, bh, own, chunk_span(a, KEYS, other), slot, 1, 0, NULL);
        if (x->side == KEYS &&
            ((there && other == own.chunk) || chunk_seen_from(a, own.chunk, offset, &other)))
            backward_span(x, ts, bh, own, chunk_span(a, QUERIES, other), slot, 0, 1, NULL);
    }
}

/* The blocks of queries of a bucket of separate keys that one task processes as a whole, or 0 if
   this is no such bucket, or it is too long. */
static size_t whole_bucket(const attention_arrays *x, size_t bh, query_span of) {
    const rf_attention *a = x->a;
    if (!a->separate || a->scope != RF_BUCKET || !is_hash_round(a, of.base.round)) return 0;
    const span s = bucket_span(&x->order, QUERIES, bh, of.base.round, of.bucket);
    const size_t blocks = blocks_of(s.end - s.start, BLOCK);
    const size_t all = bytes_mul(heads_of(x), blocks_of(a->t, BLOCK));
    const size_t most = max_size(QUERY_TILES, min_size(WHOLE_BUCKET, all / 16));
    return blocks <= most ? blocks : 0;
}

/* A query span of a bucket that is processed as a whole: its keys' gradients, too, are added to
   what the spans before have written. */
static void backward_whole_bucket(const attention_arrays *x, thread_scratch *ts, size_t bh,
                                  query_span queries, const backward_results *g) {
    const span all = bucket_span(&x->order, KEYS, bh, queries.base.round, queries.bucket);
    const int last =
        queries.base.start + (queries.first + queries.count) * BLOCK >= queries.base.end;
    const size_t end = last ? all.end : keys_of(x, bh, queries).end;
    size_t begun = all.start;
    if (queries.first) {
        query_span before = queries;
        before.first -= QUERY_TILES, before.count = QUERY_TILES;
        begun = keys_of(x, bh, before).end;
    }
    const size_t bytes = BLOCK * x->dp * sizeof(real);
    query_tile keys = {.dk = ts->tiles[0].dk, .dv = ts->tiles[0].dv};
    for (size_t j = 0; j < blocks_of(end - all.start, BLOCK); j++) {
        if (stopped(x->order.run)) return;
        keys.blk = span_block(x, ts, bh, all, j, 0);
        memset(keys.dk, 0, bytes);
        memset(keys.dv, 0, bytes);
        for (size_t i = 0; i < queries.count; i++)
            backward_pair(x, ts, ts->tiles[i].blk, keys.blk, 0, ts->tiles[i].dq, keys.dk, keys.dv);
        flush_keys(x, &keys, g, all.start + j * BLOCK < begun);
    }
}

static void backward_one_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                              query_span queries, const backward_results *g, int whole) {
    const rf_attention *a = x->a;
    const size_t block_size = BLOCK * x->dp;
    const int hashed = is_hash_round(a, queries.base.round);

    // 1. dq: continue what the task before has begun, or start from 0
    const int known =
        is_window_scope(a) && hashed && ts->next_head == bh && ts->next_chunk == queries.chunk;
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
    const head_rows written[] = {
        {head_of(g->dq, g->sdq, a, bh), g->sdq.t},
        {kv_head_of(g->dv, g->sdv, a, bh), g->sdv.t},
        {a->shared_qk ? NULL : kv_head_of(g->dk, g->sdk, a, bh), g->sdk.t},
    };
    const size_t of_queries = x->side == QUERIES, of_keys = a->shared_qk ? 1 : 2;
    queue_rows(x, ts, bh, queries, written + !of_queries,
               of_queries + (a->separate && of_queries ? 0 : of_keys));

    // 3. accumulate
    if (whole) {
        backward_whole_bucket(x, ts, bh, queries, g);
    } else if (a->separate && hashed && is_window_scope(a)) {
        backward_separate_chunk(x, ts, bh, queries);
    } else if (a->separate || !hashed) {
        if (x->side == QUERIES)
            backward_span(x, ts, bh, queries, keys_of(x, bh, queries), 0, 1, 0, NULL);
        if (x->side == KEYS || !a->separate)
            backward_span(x, ts, bh, queries, queries_of(x, bh, queries), 0, 0, 1, NULL);
    } else if (is_window_scope(a)) {
        backward_window(x, ts, bh, queries, known);
    } else if (x->whole_heads) {
        backward_whole_head(x, ts, bh, queries);
    } else {
        backward_own_span(x, ts, bh, queries, 0);
    }

    // 4. write
    const int unfinished = x->whole_heads && !a->causal; // later keys add to every dq
    for (size_t i = 0; i < queries.count; i++) {
        flush_keys(x, ts->tiles + i, g, 0);
        if (!unfinished) flush_queries(x, ts->tiles + i, g);
        ts->tiles[i].blk->pinned = 0;
    }
    if (unfinished && queries.first + queries.count == full_blocks(a))
        for (size_t i = 0; i < a->t; i++)
            copy_row((real *)row_of(g->dq, g->sdq, a, bh, i), ts->dq + i * x->dp, a->d);
}

/* A span of separate keys without queries, in a round that would only add 0 to its gradients: the
   orphans' has queries of few keys. */
static int adds_nothing(const attention_arrays *x, size_t bh, query_span keys) {
    const rf_attention *a = x->a;
    const size_t round = keys.base.round;
    if (x->side == QUERIES || is_first_round(a, round)) return 0;
    if (is_window_scope(a) && is_hash_round(a, round)) return 0;
    const span queries = queries_of(x, bh, keys);
    return queries.start == queries.end;
}

static void backward_query_span(const attention_arrays *x, thread_scratch *ts, size_t bh,
                                query_span queries, void *results) {
    if (adds_nothing(x, bh, queries)) return;
    const size_t whole = whole_bucket(x, bh, queries);
    if (!whole) backward_one_span(x, ts, bh, queries, results, 0);
    if (!whole || x->side == KEYS || queries.first > 0) return; // the bucket's first span does all
    for (; queries.first < whole; queries.first += QUERY_TILES) {
        queries.count = min_size(QUERY_TILES, whole - queries.first);
        backward_one_span(x, ts, bh, queries, results, 1);
    }
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

/* The rows that attended to no key add to gradients anywhere in their windows: a task is a head of
   values. */
static void backward_hf_rows(rf_run *run, const attention_arrays *x, const backward_results *g,
                             void *scratch) {
    const rf_attention *a = x->a;
    const size_t bytes = thread_scratch_bytes(run, a, 1);
#pragma omp parallel num_threads(team(run, (double)(a->b * a->h * a->t)))
    {
        hf_scratch hf = hf_scratch_place(a, (char *)scratch + thread_index() * bytes);
#pragma omp for schedule(dynamic)
        for (size_t task = 0; task < a->b * a->hk; task++) {
            const size_t first = task * sharers_of(a) * a->t, end = first + sharers_of(a) * a->t;
            for (size_t i = first; i < end; i++)
                if (x->lse[i] == -(real)INFINITY && !stopped(run))
                    hf_row_backward(x, g, i / a->t, i % a->t, &hf);
        }
    }
}

static void attention_backward(rf_run *run, const rf_attention *a, const real *q, const real *k,
                               const real *v, const uint8_t *attention_mask, const int32_t *buckets,
                               const int32_t *key_buckets, const real *out, const real *lse,
                               const real *dout, real *dq, real *dk, real *dv, rf_strides sq,
                               rf_strides sk, rf_strides sv, rf_strides sout, rf_strides sdout,
                               rf_strides sdq, rf_strides sdk, rf_strides sdv, void *scratch) {
    attention_arrays x = attention_begin(run, a, q, k, v, attention_mask, buckets, key_buckets, sq,
                                         sk, sv, &scratch);
    real *delta = take(&scratch, a->b * a->h * a->t, sizeof(real));
    row_products(run, delta, dout, out, a, sdout, sout);
    x.dout = dout, x.sdout = sdout, x.lse = lse, x.delta = delta;
    x.whole_heads = takes_whole_heads(a, run->workers);
    x.sharers = sharers_of(a);
    backward_results g = {dq, dk, dv, sdq, sdk, sdv};
    const size_t passes = passes_of(a) + (size_t)any_orphans(&x);
    for (x.turn = 0; x.turn < x.sharers; x.turn++)
        for (size_t pass = 0; pass < passes; pass++)
            for (x.side = QUERIES; x.side <= key_side(a); x.side++)
                for_round(run, &x, round_of_pass(a, pass), scratch, 1, backward_query_span, &g);
    x.side = QUERIES;
    backward_hf_rows(run, &x, &g, scratch);
}
