/* attention_tasks.h: how attention is cut into tasks, and the scratch of the thread that runs one.

   The unit of work is a query span: up to QUERY_TILES blocks of queries that attend to the same
   keys, so that a block of keys is gathered once for all of them. A task is a few consecutive query
   spans on one thread, because neighbours share blocks (the previous chunk), which are then still
   cached. Rounds are processed one after another, and within a round each token belongs to one
   query span, so no two tasks write the same row. Where keys are separate, a backward takes spans
   of keys, too, in the same way. */
#ifndef RF_ATTENTION_TASKS_H
#define RF_ATTENTION_TASKS_H

#include "attention_hf_rows.h"

#define QUERY_TILES 4 // blocks of queries that share one gathering of a block of keys
#define CACHE_MAX 96  // gathered blocks per thread

/* A block of queries and what is accumulated for them (backward, also as keys). */
typedef struct {
    block *blk;
    real *max, *sum, *num;    // forward: running maximum, denominator, numerator
    real *dq, *dk, *dv;       // backward
    lane visible_keys[BLOCK]; // forward: how many keys each row has attended to
    int started;
} query_tile;

typedef struct {
    block_cache cache;
    query_tile tiles[QUERY_TILES];
    real *s, *g;                  // scores of one pair of blocks, and their gradients
    operand left;                 // those rounded, as a left operand
    size_t queued_end[2];         // of each side in scope BUCKET: places before it were queued
    int skip_zero_weights;        // forward: 0 * v is not added, since v may be NaN or infinite
    real *dq;                     // backward: of the query span, or of a whole head
    real *dq_next;                // backward: partial sums for the queries of the next chunk
    size_t next_head, next_chunk; // that chunk
    earlier_windows windows;      // if pairs must not repeat
    prefetch_queue queue;
} thread_scratch;

/* ------------------------------------------------------------------------------- scratch ---- */

static size_t blocks_per_chunk(const rf_attention *a, token_side side) {
    return blocks_of(min_size(chunk_length(a, side), max_size(tokens_of(a, side), 1)), BLOCK);
}

/* The blocks of a query span and of the window that slides over them. No more than that: blocks are
   overwritten in turn, and all of them should fit in the L1 and L2 caches. */
static size_t cache_blocks(const rf_attention *a, int backward) {
    const size_t least = QUERY_TILES + 2;
    const int one_chunk = a->separate && !is_sorted_scope(a);
    if (!is_window_scope(a) || one_chunk) return least;
    const size_t others = (a->before + a->after) * (backward && !a->separate ? 2 : 1);
    const size_t length = max_size(blocks_per_chunk(a, QUERIES), blocks_per_chunk(a, key_side(a)));
    const size_t blocks = min_size(CACHE_MAX, bytes_mul(bytes_add(others, 1), length)) + 1;
    if (a->separate) return blocks + QUERY_TILES;
    return a->window ? max_size(blocks, least) : blocks;
}

/* Blocks of queries or keys in scope FULL. */
static size_t full_blocks(const rf_attention *a) {
    return blocks_of(max_size(a->t, a->tk), BLOCK);
}

static span full_span(const rf_attention *a) {
    return (span){0, 0, max_size(a->t, a->tk), QUERIES};
}

/* Should the backward process whole heads? Five products instead of seven, but only if heads divide
   evenly among threads: a caller idling at the barrier could not poll for Ctrl-C. Not with shared
   keys unless causal: their gradient is added to dq when a query span ends, and dq has to be
   complete by then. */
static int takes_whole_heads(const rf_attention *a, int workers) {
    if (a->scope != RF_FULL || (a->shared_qk && !a->causal)) return 0;
    return a->b * a->hk % (size_t)workers == 0;
}

static size_t dq_reals(const rf_attention *a, int workers) {
    const size_t blocks = takes_whole_heads(a, workers) ? full_blocks(a) : QUERY_TILES;
    return bytes_mul(blocks, bytes_mul(BLOCK, round_up(a->d, VEC_LANES)));
}

/* Reals of the query tiles, of one pair's scores and, backward, of dq. */
static size_t thread_scratch_reals(const rf_run *run, const rf_attention *a, int backward) {
    const size_t rows = BLOCK * round_up(a->d, VEC_LANES);
    const size_t fixed = 2 * BLOCK * BLOCK + term_reals(terms_of(run) * left_size(BLOCK, BLOCK));
    const size_t reals = fixed + QUERY_TILES * (2 * BLOCK + (backward ? 3 : 1) * rows);
    return backward ? bytes_add(reals, dq_reals(a, run->workers)) : reals;
}

static size_t thread_scratch_bytes(const rf_run *run, const rf_attention *a, int backward) {
    const size_t blocks = cache_blocks(a, backward);
    size_t reals = bytes_mul(blocks, block_reals(a, backward, terms_of(run)));
    reals = bytes_add(reals, thread_scratch_reals(run, a, backward));
    size_t bytes = bytes_add(bytes_of(reals, sizeof(real)), bytes_of(blocks, sizeof(block)));
    bytes = bytes_add(bytes, bytes_of(queue_capacity(a->d), sizeof(char *)));
    bytes = bytes_add(bytes, bytes_of(earlier_windows_max(a), sizeof(earlier_window)));
    return bytes_add(bytes, hf_scratch_bytes(a));
}

static void thread_scratch_place(const rf_run *run, thread_scratch *ts, const rf_attention *a,
                                 void *at, int backward) {
    const size_t dp = round_up(a->d, VEC_LANES), terms = terms_of(run);
    const size_t each = block_reals(a, backward, terms);
    ts->cache.count = cache_blocks(a, backward);
    ts->cache.clock = 0;
    ts->skip_zero_weights = 0;
    ts->queued_end[QUERIES] = ts->queued_end[KEYS] = 0;
    ts->next_head = ts->next_chunk = SIZE_MAX;
    prefetch_clear(&ts->queue);
    // separate keys are more rows for as many tiles; where tiles are narrow, some lines were left
    ts->queue.steps = a->separate && GEMM_NV == 2 ? PREFETCH_STEPS / 2 : PREFETCH_STEPS;
    real *reals =
        take(&at, ts->cache.count * each + thread_scratch_reals(run, a, backward), sizeof(real));
    ts->cache.blocks = take(&at, ts->cache.count, sizeof(block));
    ts->queue.lines.line = take(&at, queue_capacity(a->d), sizeof(char *));
    ts->windows.window = take(&at, earlier_windows_max(a), sizeof(earlier_window));
    for (size_t i = 0; i < ts->cache.count; i++, reals += each)
        block_place(ts->cache.blocks + i, reals, a, backward, terms);
    ts->s = reals, reals += BLOCK * BLOCK;
    ts->g = reals, reals += BLOCK * BLOCK;
    ts->left = left_operand(reals, terms, BLOCK, BLOCK);
    reals += term_reals(terms * ts->left.size);
    for (size_t i = 0; i < QUERY_TILES; i++) {
        query_tile *tile = ts->tiles + i;
        tile->max = reals, reals += BLOCK;
        tile->sum = reals, reals += BLOCK;
        tile->num = tile->dk = reals, reals += BLOCK * dp;
        if (backward) tile->dv = reals, reals += BLOCK * dp;
    }
    if (!backward) return;
    ts->dq_next = reals, reals += QUERY_TILES * BLOCK * dp;
    ts->dq = reals;
}

static size_t attention_rows(const rf_attention *a) {
    return bytes_mul(a->b, bytes_mul(a->h, a->t));
}

/* Of attention_begin. */
static size_t begin_workspace(const rf_run *run, const rf_attention *a) {
    return bytes_add(order_workspace(a, run->workers),
                     bytes_add(homes_workspace(a), orphans_workspace(a)));
}

static size_t attention_workspace(const rf_run *run, const rf_attention *a) {
    const size_t sums = passes_of(a) > 1 ? bytes_of(attention_rows(a), sizeof(real)) : 0;
    const size_t threads = bytes_mul((size_t)run->workers, thread_scratch_bytes(run, a, 0));
    return bytes_add(begin_workspace(run, a), bytes_add(sums, threads));
}

static size_t attention_backward_workspace(const rf_run *run, const rf_attention *a) {
    const size_t delta = bytes_of(attention_rows(a), sizeof(real));
    const size_t threads = bytes_mul((size_t)run->workers, thread_scratch_bytes(run, a, 1));
    return bytes_add(begin_workspace(run, a), bytes_add(delta, threads));
}

/* Floating-point operations of the two products, if nothing is masked. */
static double attention_work(const rf_attention *a) {
    const double rows = (double)(a->b * a->h) * (double)max_size(a->t, a->separate ? a->tk : 0);
    const size_t window = is_window_scope(a) ? (a->before + a->after + 1) * a->m : a->tk;
    return 4 * rows * (double)rounds_of(a) * (double)a->d *
           (double)(a->scope == RF_BUCKET ? 64 : window);
}

/* What both passes begin with: the arrays that they read, the order of the tokens, and orphans. */
static attention_arrays attention_begin(rf_run *run, const rf_attention *a, const real *q,
                                        const real *k, const real *v, const uint8_t *mask,
                                        const int32_t *buckets, const int32_t *key_buckets,
                                        rf_strides sq, rf_strides sk, rf_strides sv,
                                        void **scratch) {
    attention_arrays x = {.a = a, .q = q, .k = k, .v = v, .mask = mask};
    x.sq = sq, x.sk = sk, x.sv = sv, x.dp = round_up(a->d, VEC_LANES);
    x.terms = terms_of(run), x.repeats = may_repeat(a), x.sharers = 1;
    x.order = make_order(run, a, buckets, key_buckets, scratch);
    find_homes(&x.order, scratch);
    find_orphans(&x, scratch);
    return x;
}

/* -------------------------------------------------------------------------------- tasks ----- */

/* Heads that are processed in one turn. */
static size_t heads_of(const attention_arrays *x) {
    return x->a->b * x->a->h / x->sharers;
}

/* Work items of one round of one head: a query span each, except in scope BUCKET. There an item is
   a fixed length of the sorted order, so that sizes alone decide, and holds the blocks of all
   buckets that begin in it. */
static size_t items_of(const attention_arrays *x, size_t round) {
    const rf_attention *a = x->a;
    if (is_window_scope(a) && is_hash_round(a, round))
        return chunks_of(a) * blocks_of(blocks_per_chunk(a, x->side), QUERY_TILES);
    const size_t blocks =
        a->scope == RF_FULL ? full_blocks(a) : blocks_of(tokens_of(a, x->side), BLOCK);
    return blocks_of(blocks, QUERY_TILES);
}

static size_t items_per_attention_task(const attention_arrays *x, size_t items) {
    if (x->whole_heads) return max_size(1, items);
    return items_per_task(heads_of(x) * items, 32);
}

/* Queries that attend to the same keys: blocks [first, first + count) of a span, which is a chunk,
   a bucket, or in the other rounds everything. In a backward also keys that have the same queries.
 */
typedef struct {
    span base;
    size_t chunk;   // window scopes
    int32_t bucket; // scope BUCKET
    size_t first, count;
} query_span;

/* The cap on the buckets of a round, or 0. */
static inline size_t cap_of(const rf_attention *a, size_t round) {
    return is_hash_round(a, round) ? a->cap : 0;
}

/* Does any block of a query span attend to block j of its bucket? The cap is in blocks. */
static int queries_touch(query_span queries, size_t j, size_t cap) {
    for (size_t i = 0; i < queries.count; i++)
        if (segments_touch(queries.first + i, j, cap)) return 1;
    return 0;
}

static span places_of(query_span queries) {
    const span base = queries.base;
    const size_t start = base.start + queries.first * BLOCK;
    return (span){base.round, start, min_size(base.end, start + queries.count * BLOCK), base.side};
}

typedef void (*query_span_function)(const attention_arrays *x, thread_scratch *ts, size_t bh,
                                    query_span queries, void *more);

/* All tokens of a side, in a round in which they are not sorted. */
static span whole_span(const attention_arrays *x, size_t bh, size_t round, token_side side) {
    const rf_attention *a = x->a;
    size_t n = tokens_of(a, side);
    if (round == orphan_round(a) && side == QUERIES) n = x->order.orphans_of[bh];
    return (span){round, 0, n, side};
}

/* Calls `each` for the query spans of one work item: one, or in scope BUCKET one per bucket. */
static void for_query_spans(const attention_arrays *x, thread_scratch *ts, size_t bh, size_t round,
                            size_t item, query_span_function each, void *more) {
    const rf_attention *a = x->a;
    const token_side side = x->side;
    const int hashed = is_hash_round(a, round);
    // chunks: each is cut into spans of QUERY_TILES blocks
    if (is_window_scope(a) && hashed) {
        const size_t per_chunk = blocks_of(blocks_per_chunk(a, side), QUERY_TILES);
        query_span queries = {.chunk = round * chunks_of(a) + item / per_chunk,
                              .first = item % per_chunk * QUERY_TILES};
        queries.base = chunk_span(a, side, queries.chunk);
        const size_t blocks = blocks_of(queries.base.end - queries.base.start, BLOCK);
        if (queries.first >= blocks) return;
        queries.count = min_size(QUERY_TILES, blocks - queries.first);
        each(x, ts, bh, queries, more);
        return;
    }
    // full attention, and rounds that are not sorted: so is the sequence
    if (a->scope == RF_FULL || !hashed) {
        const span all = a->scope == RF_FULL ? full_span(a) : whole_span(x, bh, round, side);
        const size_t first = item * QUERY_TILES, blocks = blocks_of(all.end, BLOCK);
        if (first >= blocks) return;
        const size_t count = min_size(QUERY_TILES, blocks - first);
        each(x, ts, bh, (query_span){.base = all, .first = first, .count = count}, more);
        return;
    }
    // buckets: those that overlap this part of the order, each with the blocks that begin in it
    const token_order *of = &x->order.of[side];
    const size_t from = item * QUERY_TILES * BLOCK;
    const size_t to = min_size(of->n, from + QUERY_TILES * BLOCK);
    const size_t token = token_at(x, side, bh, round, from);
    int32_t bucket = of->buckets[list_index(&x->order, side, bh, round, token)];
    for (size_t at = from; at < to; bucket++) { // an empty bucket has no block
        const span s = bucket_span(&x->order, side, bh, round, bucket);
        const size_t first = blocks_of(at - s.start, BLOCK);
        const size_t end = blocks_of(min_size(to, s.end) - s.start, BLOCK);
        const query_span queries = {
            .base = s, .bucket = bucket, .first = first, .count = end - first};
        if (first < end) each(x, ts, bh, queries, more);
        at = s.end;
    }
}

/* The tasks of one round of a turn's heads. */
typedef struct {
    rf_run *run;
    const attention_arrays *x;
    size_t round, items, items_per_task, tasks_per_head, tasks;
    query_span_function each;
    void *more;
} round_tasks;

static void run_task(const round_tasks *r, size_t task, thread_scratch *ts) {
    const size_t bh = task / r->tasks_per_head * r->x->sharers + r->x->turn;
    const size_t first = task % r->tasks_per_head * r->items_per_task;
    const size_t end = min_size(r->items, first + r->items_per_task);
    for (size_t i = first; i < end && !stopped(r->run); i++)
        for_query_spans(r->x, ts, bh, r->round, i, r->each, r->more);
}

/* Calls `each` for the query spans of one round of a turn's heads, on all threads. One thread needs
   no parallel region: libgomp's barriers make system calls even then. */
static void for_round(rf_run *run, const attention_arrays *x, size_t round, void *scratch,
                      int backward, query_span_function each, void *more) {
    const rf_attention *a = x->a;
    const size_t bytes = thread_scratch_bytes(run, a, backward), items = items_of(x, round);
    const size_t step = items_per_attention_task(x, items), per_head = blocks_of(items, step);
    const size_t tasks = heads_of(x) * per_head;
    const round_tasks r = {run, x, round, items, step, per_head, tasks, each, more};
    const int workers = tile_team(run, attention_work(a) / (double)x->sharers, tasks);
    thread_scratch ts;
    if (workers == 1) {
        thread_scratch_place(run, &ts, a, scratch, backward);
        products_begin(x->terms);
        for (size_t task = 0; task < tasks; task++) run_task(&r, task, &ts);
        products_end(x->terms);
        return;
    }
    const size_t at_once = a->scope == RF_FULL ? 1 : tasks_at_once(run, tasks, step);
#pragma omp parallel num_threads(workers) private(ts)
    {
        thread_scratch_place(run, &ts, a, (char *)scratch + thread_index() * bytes, backward);
        products_begin(x->terms);
#pragma omp for schedule(dynamic, at_once) nowait
        for (size_t task = 0; task < tasks; task++) run_task(&r, task, &ts);
        products_end(x->terms);
    }
}

/* -------------------------------------------------------------- the other side of a span ---- */

/* The first place of a span, whose tokens are in order, with a token at this position or later. */
static size_t place_from(const attention_arrays *x, size_t bh, span s, ptrdiff_t position) {
    const ptrdiff_t shift = position_shift(x->a, s.side);
    size_t low = s.start, high = s.end;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if ((ptrdiff_t)token_at(x, s.side, bh, s.round, middle) + shift < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whole blocks of a span, so that a block is the same for all that attend to it: those with places
   [from, to). */
static span whole_blocks(span s, size_t from, size_t to) {
    if (to <= from) return (span){s.round, s.start, s.start, s.side};
    const size_t start = s.start + (from - s.start) / BLOCK * BLOCK;
    return (span){s.round, start, min_size(s.end, s.start + round_up(to - s.start, BLOCK)), s.side};
}

static ptrdiff_t position_at(const attention_arrays *x, size_t bh, span s, size_t place) {
    return (ptrdiff_t)token_at(x, s.side, bh, s.round, place) + position_shift(x->a, s.side);
}

/* The next two: where the round is the window's or the orphans', or keys are separate and in
   buckets. */

/* The keys that a span of queries attends to. */
static span keys_of(const attention_arrays *x, size_t bh, query_span queries) {
    const rf_attention *a = x->a;
    const size_t round = queries.base.round;
    const span own = places_of(queries);
    const ptrdiff_t last = position_at(x, bh, own, own.end - 1);
    if (round == window_round(a)) {
        const span keys = window_keys(a, position_at(x, bh, own, own.start), last);
        return whole_blocks(whole_span(x, bh, round, key_side(a)), keys.start, keys.end);
    }
    const span all = is_hash_round(a, round)
                         ? bucket_span(&x->order, KEYS, bh, round, queries.bucket)
                         : whole_span(x, bh, round, KEYS);
    return whole_blocks(all, all.start, a->causal ? place_from(x, bh, all, last + 1) : all.end);
}

/* The queries that attend to a span of keys. */
static span queries_of(const attention_arrays *x, size_t bh, query_span keys) {
    const rf_attention *a = x->a;
    const size_t round = keys.base.round;
    const span own = places_of(keys);
    const span all = is_hash_round(a, round)
                         ? bucket_span(&x->order, QUERIES, bh, round, keys.bucket)
                         : whole_span(x, bh, round, QUERIES);
    const ptrdiff_t reach = round == window_round(a) ? (ptrdiff_t)a->window - 1 : PTRDIFF_MAX / 2;
    const ptrdiff_t first = position_at(x, bh, own, own.start) - (a->causal ? 0 : reach);
    const ptrdiff_t last = position_at(x, bh, own, own.end - 1) + reach;
    return whole_blocks(all, place_from(x, bh, all, first), place_from(x, bh, all, last + 1));
}

/* ----------------------------------------------------------------------------- prefetching -- */

/* Queue the rows of a span's first block: in hash order the hardware cannot predict them. */
static void queue_span(const attention_arrays *x, thread_scratch *ts, size_t bh, span s,
                       const real *head, ptrdiff_t stride) {
    const size_t d = x->a->d, from = s.start, end = min_size(s.end, from + BLOCK);
    const token_order *of = &x->order.of[s.side];
    line_list lines = ts->queue.lines;
    if (!of->order) {
        const size_t contiguous = stride == (ptrdiff_t)d ? end - min_size(from, end) : 1;
        for (size_t at = from; at < end; at += contiguous)
            list_row(&lines, head + (ptrdiff_t)at * stride, contiguous * d);
    } else {
        const uint32_t *order = of->order + list_index(&x->order, s.side, bh, s.round, 0);
        for (size_t at = from; at < end; at++)
            list_row(&lines, head + (ptrdiff_t)order[at] * stride, d);
    }
    ts->queue.lines = lines;
}

/* A head, and how far apart its rows are. */
typedef struct {
    const real *rows;
    ptrdiff_t stride;
} head_rows;

/* The chunk, by its number through all rounds, or nothing. */
static span chunk_or_none(const rf_attention *a, token_side side, size_t chunk) {
    const int exists = chunk < chunks_of(a) * rounds_of(a);
    return exists ? chunk_span(a, side, chunk) : (span){.side = side};
}

/* A block from a place of the sorted order on, less what earlier buckets have queued of it. */
static span unqueued(const attention_arrays *x, thread_scratch *ts, span s) {
    const size_t to = s.end, queued = ts->queued_end[s.side];
    const size_t end = ts->queued_end[s.side] = min_size(x->order.of[s.side].n, to + BLOCK);
    return (span){s.round, queued < to || queued > to + BLOCK ? to : queued, end, s.side};
}

/* Queue the rows that a query span will write (a store waits for a cache miss, too), and those that
   the next one will read. */
static void queue_rows(const attention_arrays *x, thread_scratch *ts, size_t bh, query_span queries,
                       const head_rows *results, size_t n) {
    const rf_attention *a = x->a;
    prefetch_clear(&ts->queue);
    if (a->scope == RF_FULL || !is_hash_round(a, queries.base.round)) return;
    // 1. which places come next: on this side and, of separate keys, on the other
    const span own = places_of(queries);
    const token_side other_side = x->side == QUERIES ? KEYS : QUERIES;
    span next, other;
    if (is_window_scope(a)) {
        const size_t later = queries.chunk + 1, after = x->side == QUERIES ? a->after : a->before;
        const size_t window = x->dout && !a->separate ? max_size(a->before, a->after) : a->after;
        next = chunk_or_none(a, x->side, a->separate ? later : later + window);
        other = a->separate ? chunk_or_none(a, other_side, later + after) : next;
    } else {
        next = unqueued(x, ts, own);
        other = next;
        if (a->separate && own.end < queries.base.end)
            other = (span){.side = other_side}; // the same again
        else if (a->separate)
            other =
                unqueued(x, ts, bucket_span(&x->order, other_side, bh, own.round, queries.bucket));
    }
    // 2. rows to write; a later round of a forward begins by reading them
    const span written = !x->dout && !is_first_round(a, own.round) ? next : own;
    for (size_t i = 0; i < n; i++)
        queue_span(x, ts, bh, written, results[i].rows, results[i].stride);
    // 3. rows to read
    const span q = x->side == QUERIES ? next : other, k = x->side == QUERIES ? other : next;
    queue_span(x, ts, bh, q, head_of(x->q, x->sq, a, bh), x->sq.t);
    if (!a->shared_qk) queue_span(x, ts, bh, k, kv_head_of(x->k, x->sk, a, bh), x->sk.t);
    queue_span(x, ts, bh, k, kv_head_of(x->v, x->sv, a, bh), x->sv.t);
    if (x->dout) queue_span(x, ts, bh, q, head_of(x->dout, x->sdout, a, bh), x->sdout.t);
}

/* Block `index` of a span, with its queries if `queries` is set. */
static block *span_block(const attention_arrays *x, thread_scratch *ts, size_t bh, span s,
                         size_t index, int queries) {
    const size_t start = s.start + index * BLOCK;
    const size_t places = x->a->scope == RF_FULL ? BLOCK : min_size(BLOCK, s.end - start);
    return block_get(x, &ts->cache, bh, s, start, places, queries);
}

#endif
