/* attention.c: softmax attention in every scope, forward and backward.

   The work is cut into owners: up to OWNERS blocks of queries that attend to the same spans. A task
   is a few consecutive owners on one thread, so that a block which the next owner needs again (the
   previous chunk) is still at hand. A row's softmax runs over all its keys of all rounds: rounds
   follow one another, and within a round each token has one owner, so no two tasks write one row.

   In the backward an owner computes everything that its own tokens receive, as queries from the
   keys that they see, and as keys from the queries that see them. That repeats two of the five
   products for pairs of different owners, and in exchange nothing is merged between tasks. Two
   usual cases need no repetition, to the same bits, since each sum is taken in the same order.
   Where a chunk sees one chunk before it, the thread that has met a chunk's queries as keys is most
   often the one that takes that chunk next. And in scope FULL a thread takes a whole head, where
   heads can be shared out evenly, and has dq of all its queries at hand. */
#include "attention_exact.h"

#define OWNERS 4      // blocks of queries that one gathering of keys serves
#define CACHE_MOST 96 // blocks at hand

typedef struct {
    block *blk;
    real *most, *sum, *num; // forward: running maximum, denominator, numerator
    real *dq, *dk, *dv;     // backward
    lane seen[BLOCK];       // forward: keys that each row has met
    int started;
} owner;

/* What one thread works with. */
typedef struct {
    block_cache cache;
    owner owners[OWNERS];
    real *s, *g;                  // scores and their gradients of one pair
    size_t asked;                 // scope BUCKET: rows at places before it have been wished for
    int careful;                  // forward: only what a row sees may touch it
    real *dq;                     // backward: of the owners' queries, or of a whole head's
    real *dq_next;                // backward: of the next chunk's, as far as it is known
    size_t next_head, next_chunk; // that chunk
    wish_list wishes;
} workbench;

/* ------------------------------------------------------------------------------- scratch ---- */

static size_t blocks_per_chunk(const rf_attention *a) {
    return blocks_of(min_size(a->m, max_size(a->t, 1)), BLOCK);
}

/* The owners' blocks and the window that slides over them: no more, since what is written in turn
   should stay in the nearest cache. */
static size_t cache_blocks(const rf_attention *a, int backward) {
    if (!is_window_scope(a)) return OWNERS + 2;
    const size_t others = (a->before + a->after) * (backward ? 2 : 1);
    return min_size(CACHE_MOST, bytes_mul(bytes_add(others, 1), blocks_per_chunk(a))) + 1;
}

/* Blocks of FULL's queries and keys. */
static size_t full_blocks(const rf_attention *a) {
    return blocks_of(max_size(a->t, a->tk), BLOCK);
}

static span full_span(const rf_attention *a) {
    return (span){0, 0, max_size(a->t, a->tk)};
}

/* Does a backward take whole heads? Five products in place of seven, where every thread gets as
   many: a calling thread that waited for the last head would not see that it is to stop. The
   gradient of a shared key joins dq when that is complete. */
static int takes_whole_heads(const rf_attention *a, int workers) {
    if (a->scope != RF_FULL || (a->shared_qk && !a->causal)) return 0;
    return a->b * a->h % (size_t)workers == 0;
}

static size_t dq_reals(const rf_attention *a, int workers) {
    const size_t blocks = takes_whole_heads(a, workers) ? full_blocks(a) : OWNERS;
    return bytes_mul(blocks, bytes_mul(BLOCK, round_up(a->d, VEC_LANES)));
}

/* Reals of the owners, the pair and, in a backward, dq. */
static size_t workbench_reals(const rf_attention *a, int backward, int workers) {
    const size_t rows = BLOCK * round_up(a->d, VEC_LANES), fixed = 2 * BLOCK * BLOCK;
    const size_t reals = fixed + OWNERS * (2 * BLOCK + (backward ? 3 : 1) * rows);
    return backward ? bytes_add(reals, dq_reals(a, workers)) : reals;
}

static size_t workbench_bytes(const rf_attention *a, int backward, int workers) {
    const size_t dp = round_up(a->d, VEC_LANES), blocks = cache_blocks(a, backward);
    size_t reals = bytes_mul(blocks, block_reals(dp, backward));
    reals = bytes_add(reals, workbench_reals(a, backward, workers));
    size_t bytes = bytes_add(bytes_of(reals, sizeof(real)), bytes_of(blocks, sizeof(block)));
    bytes = bytes_add(bytes, bytes_of(wish_lines(a->d), sizeof(char *)));
    return bytes_add(bytes, exact_bytes(a));
}

static void workbench_place(workbench *w, const rf_attention *a, void *at, int backward,
                            int workers) {
    const size_t dp = round_up(a->d, VEC_LANES), each = block_reals(dp, backward);
    w->cache.count = cache_blocks(a, backward);
    w->cache.clock = 0;
    w->careful = 0;
    w->asked = 0;
    w->next_head = w->next_chunk = SIZE_MAX;
    forget_wishes(&w->wishes);
    real *reals =
        take(&at, w->cache.count * each + workbench_reals(a, backward, workers), sizeof(real));
    w->cache.blocks = take(&at, w->cache.count, sizeof(block));
    w->wishes.lines.line = take(&at, wish_lines(a->d), sizeof(char *));
    for (size_t i = 0; i < w->cache.count; i++, reals += each)
        block_place(w->cache.blocks + i, reals, a->d, dp, backward);
    w->s = reals, reals += BLOCK * BLOCK;
    w->g = reals, reals += BLOCK * BLOCK;
    for (size_t i = 0; i < OWNERS; i++) {
        owner *o = w->owners + i;
        o->most = reals, reals += BLOCK;
        o->sum = reals, reals += BLOCK;
        o->num = o->dk = reals, reals += BLOCK * dp;
        if (backward) o->dv = reals, reals += BLOCK * dp;
    }
    if (!backward) return;
    w->dq_next = reals, reals += OWNERS * BLOCK * dp;
    w->dq = reals;
}

static size_t attention_rows(const rf_attention *a) {
    return bytes_mul(a->b, bytes_mul(a->h, a->t));
}

static size_t attention_workspace(const rf_attention *a, int workers) {
    const size_t sums = rounds_of(a) > 1 ? bytes_of(attention_rows(a), sizeof(real)) : 0;
    const size_t benches = bytes_mul((size_t)workers, workbench_bytes(a, 0, workers));
    return bytes_add(order_workspace(a, workers), bytes_add(sums, benches));
}

static size_t attention_backward_workspace(const rf_attention *a, int workers) {
    const size_t delta = bytes_of(attention_rows(a), sizeof(real));
    const size_t benches = bytes_mul((size_t)workers, workbench_bytes(a, 1, workers));
    return bytes_add(order_workspace(a, workers), bytes_add(delta, benches));
}

/* Operations of the two products, if nothing is masked. */
static double attention_work(const rf_attention *a) {
    const double rows = (double)(a->b * a->h) * (double)a->t * (double)rounds_of(a);
    const size_t window = is_window_scope(a) ? (a->before + a->after + 1) * a->m : a->tk;
    return 4 * rows * (double)a->d * (double)(a->scope == RF_BUCKET ? 64 : window);
}

/* -------------------------------------------------------------------------------- tasks ----- */

/* Owners of one round of one head. Scope BUCKET counts pieces of the order; a block belongs to the
   piece that it begins in. */
static size_t owners_of(const rf_attention *a) {
    if (is_window_scope(a)) return chunks_of(a) * blocks_of(blocks_per_chunk(a), OWNERS);
    return blocks_of(a->scope == RF_FULL ? full_blocks(a) : blocks_of(a->t, BLOCK), OWNERS);
}

static size_t owners_per_task(const attention_arrays *x) {
    const size_t owners = owners_of(x->a);
    if (x->whole_heads) return max_size(1, owners);
    return pieces_per_task(x->a->b * x->a->h * owners, 32);
}

static size_t tasks_of(const attention_arrays *x) {
    return blocks_of(owners_of(x->a), owners_per_task(x));
}

/* One owner's queries: blocks [first, first + count) of the span. */
typedef struct {
    span base;
    size_t chunk; // window scopes
    size_t first, count;
} piece;

static span piece_span(piece p) {
    const size_t start = p.base.start + p.first * BLOCK;
    return (span){p.base.round, start, min_size(p.base.end, start + p.count * BLOCK)};
}

typedef void (*piece_function)(const attention_arrays *x, workbench *w, size_t bh, piece p,
                               void *more);

/* Calls `each` for the pieces of owner `index`: one, or in scope BUCKET one a bucket. */
static void for_pieces(const attention_arrays *x, workbench *w, size_t bh, size_t round,
                       size_t index, piece_function each, void *more) {
    const rf_attention *a = x->a;
    if (is_window_scope(a)) {
        const size_t per_chunk = blocks_of(blocks_per_chunk(a), OWNERS);
        piece p = {.chunk = round * chunks_of(a) + index / per_chunk,
                   .first = index % per_chunk * OWNERS};
        p.base = chunk_span(a, p.chunk);
        const size_t blocks = blocks_of(p.base.end - p.base.start, BLOCK);
        if (p.first >= blocks) return;
        p.count = min_size(OWNERS, blocks - p.first);
        each(x, w, bh, p, more);
        return;
    }
    const size_t from = index * OWNERS * BLOCK;
    if (a->scope == RF_FULL) {
        const size_t count = min_size(OWNERS, full_blocks(a) - index * OWNERS);
        each(x, w, bh, (piece){full_span(a), 0, index * OWNERS, count}, more);
        return;
    }
    const size_t to = min_size(a->t, from + OWNERS * BLOCK);
    int32_t bucket = x->buckets[(bh * a->r + round) * a->t + token_at(x, bh, round, from)];
    for (size_t at = from; at < to; bucket++) { // an empty bucket has no block
        const span s = bucket_span(&x->order, bh, round, bucket);
        const size_t first = blocks_of(at - s.start, BLOCK);
        const size_t end = blocks_of(min_size(to, s.end) - s.start, BLOCK);
        if (first < end) each(x, w, bh, (piece){s, 0, first, end - first}, more);
        at = s.end;
    }
}

/* One thread's part of `for_round`. */
static void for_tasks(rf_run *run, const attention_arrays *x, size_t round, void *bench,
                      int backward, piece_function each, void *more) {
    const rf_attention *a = x->a;
    const size_t owners = owners_of(a), step = owners_per_task(x), tasks = tasks_of(x);
    const size_t all = a->b * a->h * tasks;
    const size_t at_once = a->scope == RF_FULL ? 1 : tasks_at_once(run, all, step);
    workbench w;
    workbench_place(&w, a, bench, backward, run->workers);
#pragma omp for schedule(dynamic, at_once) nowait
    for (size_t task = 0; task < all; task++) {
        const size_t bh = task / tasks, first = task % tasks * step;
        for (size_t i = first; i < min_size(owners, first + step) && !stopped(run); i++)
            for_pieces(x, &w, bh, round, i, each, more);
    }
}

/* Runs `each` over all pieces of all heads of one round, on the team. A team of one is none: its
   barriers would still call the system. */
static void for_round(rf_run *run, const attention_arrays *x, size_t round, void *benches,
                      int backward, piece_function each, void *more) {
    const rf_attention *a = x->a;
    const size_t bench = workbench_bytes(a, backward, run->workers);
    const int workers = tile_team(run, attention_work(a), a->b * a->h * tasks_of(x));
    if (workers == 1) {
        for_tasks(run, x, round, benches, backward, each, more);
        return;
    }
#pragma omp parallel num_threads(workers)
    for_tasks(run, x, round, (char *)benches + thread_index() * bench, backward, each, more);
}

/* Wish for the first rows of a span: in hash order they lie anywhere. */
static void wish_span(const attention_arrays *x, workbench *w, size_t bh, span s, const real *array,
                      rf_strides strides) {
    const real *head = head_of(array, strides, x->a, bh);
    const size_t d = x->a->d, from = s.start, end = min_size(s.end, from + BLOCK);
    line_list lines = w->wishes.lines;
    if (!x->order.order) {
        const size_t touching = strides.t == (ptrdiff_t)d ? end - min_size(from, end) : 1;
        for (size_t at = from; at < end; at += touching)
            list_row(&lines, head + (ptrdiff_t)at * strides.t, touching * d);
    } else {
        const uint32_t *order = x->order.order + (bh * x->a->r + s.round) * x->a->t;
        for (size_t at = from; at < end; at++)
            list_row(&lines, head + (ptrdiff_t)order[at] * strides.t, d);
    }
    w->wishes.lines = lines;
}

typedef struct {
    const real *rows;
    rf_strides strides;
} strided;

/* Wish for the rows that a piece will write, and for those that the next ones will read. */
static void wish_for_piece(const attention_arrays *x, workbench *w, size_t bh, piece p,
                           const strided *results, size_t n) {
    const rf_attention *a = x->a;
    if (a->scope == RF_FULL) return;
    const span own = piece_span(p);
    span next;
    if (is_window_scope(a)) {
        const size_t chunk = p.chunk + 1 + (x->dout ? max_size(a->before, a->after) : a->after);
        next = chunk < chunks_of(a) * rounds_of(a) ? chunk_span(a, chunk) : (span){0};
    } else { // what the buckets before this one have not asked for
        const size_t to = own.end, asked = w->asked;
        w->asked = min_size(a->t, to + BLOCK);
        next = (span){own.round, asked < to || asked > to + BLOCK ? to : asked, w->asked};
    }
    forget_wishes(&w->wishes);
    for (size_t i = 0; i < n; i++) wish_span(x, w, bh, own, results[i].rows, results[i].strides);
    wish_span(x, w, bh, next, x->q, x->sq);
    if (!a->shared_qk) wish_span(x, w, bh, next, x->k, x->sk);
    wish_span(x, w, bh, next, x->v, x->sv);
    if (x->dout) wish_span(x, w, bh, next, x->dout, x->sdout);
}

/* Block `index` of a span, with its queries if asked for. */
static block *span_block(const attention_arrays *x, workbench *w, size_t bh, span s, size_t index,
                         int queries) {
    const size_t start = s.start + index * BLOCK;
    const size_t places = x->a->scope == RF_FULL ? BLOCK : min_size(BLOCK, s.end - start);
    return block_get(x, &w->cache, bh, s.round, start, places, queries);
}

/* ------------------------------------------------------------------------------- forward ---- */

typedef struct {
    real *out, *lse, *sum;
    rf_strides sout;
} forward_results;

/* Keys [i0, i1) of one group of lanes: 2^(score - most) in place of each product, or of each score
   where kunit is NULL; returns their sum. */
static ALWAYS_INLINE vec exponentials(real *s, const real *kunit, size_t i0, size_t i1, vec most) {
    vec sum = {0};
    for (size_t i = i0; i < i1; i++) {
        const vec x = vload(s + i * BLOCK);
        const vec p = vec_exp2((kunit ? rounded(x * kunit[i]) : x) - most);
        sum += p;
        vstore(s + i * BLOCK, p);
    }
    return sum;
}

/* The level of a group's exponentials, once their maximum has grown from `before` to `most`. A
   level need not be the maximum: it stays while no exponential passes 2^8, and only then do the
   row's sum and numerator so far fade. */
static vec owner_rises(owner *o, size_t group, vec before, vec most, size_t dp) {
    const ivec far = most > before + (real)8;
    if (!any(far)) return before;
    most = vselect(far, most, before);
    vstore(o->most + group * VEC_LANES, most);
    if (!o->started) return most;
    const vec fade = vec_exp2(before - most);
    vstore(o->sum + group * VEC_LANES, vload(o->sum + group * VEC_LANES) * fade);
    for (size_t i = 0; i < VEC_LANES; i++) {
        real *num = o->num + (group * VEC_LANES + i) * dp;
        if (fade[i] == 0) // not a product: what is forgotten may be NaN
            memset(num, 0, dp * sizeof(real));
        else if (fade[i] != 1)
            for (size_t j = 0; j < dp; j += VEC_LANES) vstore(num + j, vload(num + j) * fade[i]);
    }
    return most;
}

/* One owner's block of queries meets one block of keys. */
static void forward_pair(const attention_arrays *x, workbench *w, owner *o, const block *k,
                         size_t slot) {
    const rf_attention *a = x->a;
    const block *q = o->blk;
    const size_t dp = x->dp;
    reach r;
    find_reach(&r, a, q, k);
    if (!r.most) return;
    raw_scores(w->s, x, &r, q, k, &w->wishes);

    for (size_t i = 0; i < BLOCK; i++) o->seen[i] += r.seen[i];
    for (size_t g = 0; g < r.groups; g++) {
        grant_more(&w->wishes, 8);
        real *s = w->s + g * VEC_LANES;
        const size_t low = r.low[g], mid = max_size(r.mid[g], low), high = r.high[g];
        const vec before = vload(o->most + g * VEC_LANES);
        vec most = plain_most(s, k->kunit, 0, low, before);
        most = compared_scores(s, x, q, k, g, low, mid, most);
        most = plain_most(s, k->kunit, mid, high, most);
        most = owner_rises(o, g, before, most, dp);
        vec sum = vload(o->sum + g * VEC_LANES);
        sum += exponentials(s, k->kunit, 0, low, most);
        sum += exponentials(s, NULL, low, mid, most);
        sum += exponentials(s, k->kunit, mid, high, most);
        for (size_t i = 0; i < high && a->dropout > 0; i++)
            vstore(s + i * BLOCK, vload(s + i * BLOCK) * drop_factors(a, q, k->kpos[i], slot, g));
        vstore(o->sum + g * VEC_LANES, sum);
        clear_beyond(s, &r, g);
    }
    if (!w->careful) {
        queries_product(o->num, &r, w->s, k->v_rows, q->nq, dp, o->started, &w->wishes);
    } else {
        if (!o->started) memset(o->num, 0, q->nq * dp * sizeof(real));
        for (size_t i = 0; i < q->nq; i++)
            for (size_t j = 0; j < r.high[i / VEC_LANES]; j++)
                if (w->s[j * BLOCK + i] != 0)
                    for (size_t e = 0; e < a->d; e++)
                        o->num[i * dp + e] += w->s[j * BLOCK + i] * k->v_rows[j * dp + e];
    }
    o->started = 1;
}

static void owner_begin(const attention_arrays *x, owner *o, const forward_results *f) {
    const rf_attention *a = x->a;
    const block *q = o->blk;
    o->started = q->round > 0;
    for (size_t i = 0; i < BLOCK; i++) {
        o->most[i] = (real)(sizeof(real) == 4 ? -FLT_MAX : -DBL_MAX);
        o->sum[i] = 0;
        o->seen[i] = 0;
    }
    if (!o->started) return;
    for (size_t i = 0; i < q->nq; i++) {
        const size_t token = (size_t)q->qpos[i], row = q->bh * a->t + token;
        o->most[i] = f->lse[row];
        o->sum[i] = f->sum[row];
        real *num = o->num + i * x->dp;
        copy_row(num, row_of(f->out, f->sout, a, q->bh, token), a->d);
        for (size_t j = a->d; j < x->dp; j++) num[j] = 0;
    }
}

static int owner_is_finite(const attention_arrays *x, const owner *o) {
    vec s[4] = {{0}, {0}, {0}, {0}}; // stay 0 unless a numerator is not finite
    if (!o->started) return 1;
    const size_t end = o->blk->nq * x->dp;
    size_t i = 0;
    for (; i + 4 * VEC_LANES <= end; i += 4 * VEC_LANES)
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++) s[j] += vload(o->num + i + j * VEC_LANES) * (real)0;
    for (; i < end; i += VEC_LANES) s[0] += vload(o->num + i) * (real)0;
    return vsum((s[0] + s[1]) + (s[2] + s[3])) == 0;
}

/* After the last round a row is num / sum; before that its three parts wait in out, lse and sum.
   A row that saw itself and nothing else is its value, if there is one round: the book has nothing
   to add. */
static void owner_end(const attention_arrays *x, const owner *o, const forward_results *f) {
    const rf_attention *a = x->a;
    const block *q = o->blk;
    const int last = q->round + 1 == rounds_of(a);
    if (!o->started) memset(o->num, 0, q->nq * x->dp * sizeof(real));
    const ivec by_value = (ivec){0} - (lane)(a->shared_qk && rounds_of(a) == 1);
    real lse[BLOCK];
    for (size_t i = 0; i < BLOCK && last; i += VEC_LANES) {
        const vec most = vload(o->most + i), sum = vload(o->sum + i);
        const ivec nothing = most < vset1(SCORE_NOTHING);
        const ivec itself = (iload(o->seen + i) == 1) & (most == vset1(SCORE_SELF)) & by_value;
        const vec none = vselect(itself, vset1(LSE_ITSELF), vset1(-(real)INFINITY));
        vstore(lse + i, vselect(nothing, none, most * LN_2 + vec_log(sum)));
        vstore(o->sum + i, (real)1 / sum);
    }
    real *head = (real *)head_of(f->out, f->sout, a, q->bh);
    const size_t d = a->d, dp = x->dp, first = q->bh * a->t;
    for (size_t i = 0; i < q->nq; i++) {
        real *out = head + (ptrdiff_t)q->qpos[i] * f->sout.t;
        if (last)
            scale_row(out, o->num + i * dp, o->sum[i], d);
        else
            copy_row(out, o->num + i * dp, d);
    }
    const real *book = last ? lse : o->most;
    for (size_t i = 0; i < q->nq; i++) f->lse[first + (size_t)q->qpos[i]] = book[i];
    for (size_t i = 0; i < q->nq && !last; i++) f->sum[first + (size_t)q->qpos[i]] = o->sum[i];
}

/* Does any block of a piece meet block j of its bucket? */
static int piece_meets(const rf_attention *a, piece p, size_t j) {
    const size_t cap = a->cap / BLOCK;
    for (size_t i = 0; i < p.count; i++)
        if (are_near(p.first + i, j, cap)) return 1;
    return 0;
}

static void forward_span(const attention_arrays *x, workbench *w, size_t bh, piece p, span keys,
                         size_t slot) {
    for (size_t j = 0; j < blocks_of(keys.end - keys.start, BLOCK); j++) {
        if (stopped(x->order.run)) return;
        if (x->a->cap && !piece_meets(x->a, p, j)) continue;
        const block *k = span_block(x, w, bh, keys, j, 0);
        for (size_t i = 0; i < p.count; i++)
            if (are_near(p.first + i, j, x->a->cap / BLOCK))
                forward_pair(x, w, w->owners + i, k, slot);
    }
}

/* All queries of a piece meet all keys that they may see. */
static void forward_spans(const attention_arrays *x, workbench *w, size_t bh, piece p,
                          const forward_results *f) {
    const rf_attention *a = x->a;
    for (size_t i = 0; i < p.count; i++) owner_begin(x, w->owners + i, f);
    if (is_window_scope(a)) {
        // the queries' own chunk first: what is most like them sets the levels
        for (size_t i = 0; i <= a->before + a->after && !is_stopped(x->order.run); i++) {
            const size_t slot = i == 0 ? a->before : i <= a->before ? i - 1 : i;
            size_t to;
            if (chunk_at(a, p.chunk, (ptrdiff_t)slot - (ptrdiff_t)a->before, &to))
                forward_span(x, w, bh, p, chunk_span(a, to), slot);
        }
        return;
    }
    span keys = p.base;
    if (a->scope == RF_FULL) keys.end = a->tk;
    // tokens of a span stand in order of position, so later blocks are later tokens
    if (a->causal) keys.end = min_size(keys.end, keys.start + (p.first + p.count) * BLOCK);
    forward_span(x, w, bh, p, keys, 0);
}

static void forward_piece(const attention_arrays *x, workbench *w, size_t bh, piece p,
                          void *results) {
    const forward_results *f = results;
    for (size_t i = 0; i < p.count; i++) {
        w->owners[i].blk = span_block(x, w, bh, p.base, p.first + i, 1);
        w->owners[i].blk->pinned = 1;
    }
    wish_for_piece(x, w, bh, p, &(strided){f->out, f->sout}, 1);
    forward_spans(x, w, bh, p, f);
    // 0 times NaN is NaN: a value that is not finite has touched rows that do not see it
    int finite = 1;
    for (size_t i = 0; i < p.count; i++) finite &= owner_is_finite(x, w->owners + i);
    if (!finite) {
        w->careful = 1;
        forward_spans(x, w, bh, p, f);
        w->careful = 0;
    }
    for (size_t i = 0; i < p.count; i++) {
        owner_end(x, w->owners + i, f);
        w->owners[i].blk->pinned = 0;
    }
    grant_more(&w->wishes, w->wishes.lines.count); // what so little work has left over
}

static void forward_exact_rows(rf_run *run, const attention_arrays *x, const forward_results *f,
                               void *bench) {
    const rf_attention *a = x->a;
    const size_t rows = a->b * a->h * a->t, step = 1024;
    exact_bench e = exact_place(a, bench);
#pragma omp for schedule(dynamic) nowait
    for (size_t task = 0; task < blocks_of(rows, step); task++)
        for (size_t i = task * step; i < min_size(rows, (task + 1) * step); i++)
            if (f->lse[i] == -(real)INFINITY && !stopped(run))
                exact_forward(x, (real *)row_of(f->out, f->sout, a, i / a->t, i % a->t), i / a->t,
                              i % a->t, &e);
}

/* Rows that were marked as having seen nothing. */
static void forward_exact(rf_run *run, const attention_arrays *x, const forward_results *f,
                          void *benches) {
    const rf_attention *a = x->a;
    const size_t bench = workbench_bytes(a, 0, run->workers);
    const int workers = team(run, (double)(a->b * a->h * a->t));
    if (workers == 1) {
        forward_exact_rows(run, x, f, benches);
        return;
    }
#pragma omp parallel num_threads(workers)
    forward_exact_rows(run, x, f, (char *)benches + thread_index() * bench);
}

static void attention_forward(rf_run *run, real *out, real *lse, const real *q, const real *k,
                              const real *v, const uint8_t *mask, const int32_t *buckets,
                              const rf_attention *a, rf_strides sout, rf_strides sq, rf_strides sk,
                              rf_strides sv, void *scratch) {
    attention_arrays x = {.a = a, .q = q, .k = k, .v = v, .mask = mask, .buckets = buckets};
    x.sq = sq, x.sk = sk, x.sv = sv, x.dp = round_up(a->d, VEC_LANES);
    x.order = make_order(run, a, buckets, &scratch);
    forward_results f = {out, lse, NULL, sout};
    if (rounds_of(a) > 1) f.sum = take(&scratch, a->b * a->h * a->t, sizeof(real));
    for (size_t round = 0; round < rounds_of(a); round++)
        for_round(run, &x, round, scratch, 0, forward_piece, &f);
    forward_exact(run, &x, &f, scratch);
}

/* ------------------------------------------------------------------------------ backward ---- */

/* Probabilities and score gradients of keys [i0, i1) of one group of lanes: forward was
   p = 2^(s - lse), then out = sum of p keep v; so ds = p (keep dp - dout out), and s was the raw
   product times kscale, unless it has been compared. dp is in g on entry; p keep is left in s,
   ds kscale in g. */
static ALWAYS_INLINE void backward_keys(const attention_arrays *x, real *s, real *g, const block *q,
                                        const block *k, size_t group, size_t slot, size_t i0,
                                        size_t i1, const int compared) {
    const vec lse = vload(q->lse + group * VEC_LANES), delta = vload(q->delta + group * VEC_LANES);
    const ivec positions = iload(q->qpos + group * VEC_LANES);
    const int drops = x->a->dropout > 0, shared = x->a->shared_qk;
    for (size_t i = i0; i < i1; i++) {
        const vec score = compared ? vload(s + i * BLOCK) : vload(s + i * BLOCK) * k->kunit[i];
        // no more than 1: a huge log-sum-exp is rounded by more than that
        const vec p = vec_exp2(-vmax((vec){0}, lse - score)), dp = vload(g + i * BLOCK);
        vec kept = p, ds = dp - delta;
        if (drops) {
            const vec keep = drop_factors(x->a, q, k->kpos[i], slot, group);
            kept = p * keep, ds = dp * keep - delta;
        }
        ds *= p * k->kscale[i];
        // a value that is not finite flows to those who see it alone: 0 times NaN is NaN
        if (compared) ds = vselect(p == (vec){0}, (vec){0}, ds);
        // the self score is a constant: nothing flows through it
        if (compared && shared) ds = vselect(k->kpos[i] - (ivec){0} == positions, (vec){0}, ds);
        vstore(s + i * BLOCK, kept);
        vstore(g + i * BLOCK, ds);
    }
}

/* Queries q meet keys k. dq is NULL where the queries are not the owner's, dk where the keys are
   not. */
static void backward_pair(const attention_arrays *x, workbench *w, const block *q, const block *k,
                          size_t slot, real *dq, real *dk, real *dv) {
    const rf_attention *a = x->a;
    const size_t dp = x->dp;
    reach r;
    find_reach(&r, a, q, k);
    if (!r.most) return;
    raw_scores(w->s, x, &r, q, k, &w->wishes);
    staircase_product(w->g, &r, k->v_rows, 1, q->do_columns, a->d, dp, &w->wishes);
    for (size_t g = 0; g < r.groups; g++) {
        real *s = w->s + g * VEC_LANES, *ds = w->g + g * VEC_LANES;
        const size_t low = r.low[g], mid = max_size(r.mid[g], low);
        compared_scores(s, x, q, k, g, low, mid, (vec){0});
        backward_keys(x, s, ds, q, k, g, slot, 0, low, 0);
        backward_keys(x, s, ds, q, k, g, slot, low, mid, 1);
        backward_keys(x, s, ds, q, k, g, slot, mid, r.high[g], 0);
        clear_beyond(s, &r, g);
        clear_beyond(ds, &r, g);
    }
    if (dq) queries_product(dq, &r, w->g, k->k_rows, q->nq, dp, 1, &w->wishes);
    if (dk) {
        keys_product(dv, &r, w->s, q->do_rows, q->nq, dp);
        keys_product(dk, &r, w->g, q->q_rows, q->nq, dp);
    }
}

/* The owners as queries of a span's keys (as_queries), and as keys of its queries (as_keys), which
   are given what they receive if it is wanted: others_dq, block by block, or NULL. */
static void backward_span(const attention_arrays *x, workbench *w, size_t bh, piece p, span others,
                          size_t slot, int as_queries, int as_keys, real *others_dq) {
    for (size_t j = 0; j < blocks_of(others.end - others.start, BLOCK); j++) {
        if (stopped(x->order.run)) return;
        const size_t at = x->a->cap ? (others.start - p.base.start) / BLOCK + j : 0;
        if (x->a->cap && !piece_meets(x->a, p, at)) continue;
        const block *other = span_block(x, w, bh, others, j, 1);
        real *dq = others_dq ? others_dq + j * BLOCK * x->dp : NULL;
        for (size_t i = 0; i < p.count; i++) {
            owner *o = w->owners + i;
            if (x->a->cap && !are_near(p.first + i, at, x->a->cap / BLOCK)) continue;
            if (as_queries) backward_pair(x, w, o->blk, other, slot, o->dq, NULL, NULL);
            if (as_keys) backward_pair(x, w, other, o->blk, slot, dq, o->dk, o->dv);
        }
    }
}

static inline void write_row(real *restrict to, const real *restrict from, size_t n, int add) {
    if (add)
        add_row(to, from, n);
    else
        copy_row(to, from, n);
}

/* In the first round rows are written, later added to: every token has one owner a round. */
static void flush_keys(const attention_arrays *x, const owner *o, const backward_results *g) {
    const rf_attention *a = x->a;
    const block *blk = o->blk;
    for (size_t i = 0; i < blk->nk; i++) {
        const size_t token = (size_t)blk->kpos[i], at = i * x->dp;
        real *dv = (real *)row_of(g->dv, g->sdv, a, blk->bh, token);
        write_row(dv, o->dv + at, a->d, blk->round > 0);
        if (!a->shared_qk)
            copy_row((real *)row_of(g->dk, g->sdk, a, blk->bh, token), o->dk + at, a->d);
    }
}

/* A shared key is a query, too. */
static void flush_queries(const attention_arrays *x, const owner *o, const backward_results *g) {
    const rf_attention *a = x->a;
    const block *blk = o->blk;
    for (size_t i = 0; i < blk->nq; i++) {
        const size_t token = (size_t)blk->qpos[i], at = i * x->dp;
        real *dq = (real *)row_of(g->dq, g->sdq, a, blk->bh, token);
        write_row(dq, o->dq + at, a->d, blk->round > 0);
        if (a->shared_qk) add_key_gradient(a, dq, blk->k_rows + at, o->dk + at);
    }
}

/* The owners meet each other and the rest of their span. Its tokens stand in order of position, so
   if the attention is causal earlier ones are keys alone, and later ones queries. */
static void backward_own_span(const attention_arrays *x, workbench *w, size_t bh, piece p,
                              size_t slot) {
    const span all = p.base, own = piece_span(p);
    const int around = !x->a->causal;
    backward_span(x, w, bh, p, (span){all.round, all.start, own.start}, slot, 1, around, NULL);
    backward_span(x, w, bh, p, own, slot, 0, 1, w->dq);
    backward_span(x, w, bh, p, (span){all.round, own.end, all.end}, slot, around, 1, NULL);
}

/* A chunk and its window. What its queries receive from the chunk before may be known already. */
static void backward_window(const attention_arrays *x, workbench *w, size_t bh, piece p,
                            int known) {
    const rf_attention *a = x->a;
    const int one_before = a->before == 1 && a->after == 0 && blocks_per_chunk(a) <= OWNERS;
    for (size_t slot = 0; slot <= a->before + a->after && !is_stopped(x->order.run); slot++) {
        const ptrdiff_t offset = (ptrdiff_t)slot - (ptrdiff_t)a->before;
        size_t other;
        if (chunk_at(a, p.chunk, offset, &other)) {
            if (other == p.chunk)
                backward_own_span(x, w, bh, p, slot);
            else if (!known)
                backward_span(x, w, bh, p, chunk_span(a, other), slot, 1, 0, NULL);
        }
        if (!chunk_seen_from(a, p.chunk, offset, &other)) continue;
        if (one_before) {
            memset(w->dq_next, 0, blocks_per_chunk(a) * BLOCK * x->dp * sizeof(real));
            w->next_head = bh, w->next_chunk = other;
        }
        backward_span(x, w, bh, p, chunk_span(a, other), slot, 0, 1,
                      one_before ? w->dq_next : NULL);
    }
}

/* Pieces come in order, each as keys: of all queries, or of those that are not earlier. */
static void backward_whole_head(const attention_arrays *x, workbench *w, size_t bh, piece p) {
    const size_t first = x->a->causal ? p.first : 0;
    span queries = p.base;
    queries.start += first * BLOCK;
    backward_span(x, w, bh, p, queries, 0, 0, 1, w->dq + first * BLOCK * x->dp);
}

static void backward_piece(const attention_arrays *x, workbench *w, size_t bh, piece p,
                           void *results) {
    const rf_attention *a = x->a;
    const backward_results *g = results;
    const size_t block_size = BLOCK * x->dp;
    const int known = is_window_scope(a) && w->next_head == bh && w->next_chunk == p.chunk;
    if (known) {
        real *dq = w->dq;
        w->dq = w->dq_next, w->dq_next = dq;
    } else if (!x->whole_heads) {
        memset(w->dq, 0, p.count * block_size * sizeof(real));
    } else if (p.first == 0) {
        memset(w->dq, 0, full_blocks(a) * block_size * sizeof(real));
    }
    for (size_t i = 0; i < p.count; i++) {
        owner *o = w->owners + i;
        o->blk = span_block(x, w, bh, p.base, p.first + i, 1);
        o->blk->pinned = 1;
        o->dq = w->dq + (x->whole_heads ? p.first + i : i) * block_size;
        memset(o->dk, 0, block_size * sizeof(real));
        memset(o->dv, 0, block_size * sizeof(real));
    }
    // where keys are shared dk is a part of dq
    const strided written[] = {{g->dq, g->sdq}, {g->dv, g->sdv}, {g->dk, g->sdk}};
    wish_for_piece(x, w, bh, p, written, a->shared_qk ? 2 : 3);
    if (is_window_scope(a)) {
        backward_window(x, w, bh, p, known);
    } else if (x->whole_heads) {
        backward_whole_head(x, w, bh, p);
    } else {
        backward_own_span(x, w, bh, p, 0);
    }
    const int unfinished = x->whole_heads && !a->causal; // later keys add to all dq
    for (size_t i = 0; i < p.count; i++) {
        flush_keys(x, w->owners + i, g);
        if (!unfinished) flush_queries(x, w->owners + i, g);
        w->owners[i].blk->pinned = 0;
    }
    if (unfinished && p.first + p.count == full_blocks(a))
        for (size_t i = 0; i < a->t; i++)
            copy_row((real *)row_of(g->dq, g->sdq, a, bh, i), w->dq + i * x->dp, a->d);
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

/* The rows that saw nothing add to gradients anywhere in their windows: one head at a time. */
static void backward_exact(rf_run *run, const attention_arrays *x, const backward_results *g,
                           void *benches) {
    const rf_attention *a = x->a;
    const size_t bench = workbench_bytes(a, 1, run->workers);
#pragma omp parallel num_threads(team(run, (double)(a->b * a->h * a->t)))
    {
        exact_bench e = exact_place(a, (char *)benches + thread_index() * bench);
#pragma omp for schedule(dynamic)
        for (size_t bh = 0; bh < a->b * a->h; bh++)
            for (size_t i = 0; i < a->t; i++)
                if (x->lse[bh * a->t + i] == -(real)INFINITY && !stopped(run))
                    exact_backward(x, g, bh, i, &e);
    }
}

static void attention_backward(rf_run *run, real *dq, real *dk, real *dv, const real *dout,
                               const real *out, const real *lse, const real *q, const real *k,
                               const real *v, const uint8_t *mask, const int32_t *buckets,
                               const rf_attention *a, rf_strides sdq, rf_strides sdk,
                               rf_strides sdv, rf_strides sdout, rf_strides sout, rf_strides sq,
                               rf_strides sk, rf_strides sv, void *scratch) {
    attention_arrays x = {.a = a, .q = q, .k = k, .v = v, .mask = mask, .buckets = buckets};
    x.sq = sq, x.sk = sk, x.sv = sv, x.dp = round_up(a->d, VEC_LANES);
    x.order = make_order(run, a, buckets, &scratch);
    real *delta = take(&scratch, a->b * a->h * a->t, sizeof(real));
    row_products(run, delta, dout, out, a, sdout, sout);
    x.dout = dout, x.sdout = sdout, x.lse = lse, x.delta = delta;
    x.whole_heads = takes_whole_heads(a, run->workers);
    backward_results g = {dq, dk, dv, sdq, sdk, sdv};
    for (size_t round = 0; round < rounds_of(a); round++)
        for_round(run, &x, round, scratch, 1, backward_piece, &g);
    backward_exact(run, &x, &g, scratch);
}
