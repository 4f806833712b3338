/* order.h: the order of the tokens in each hash round, and which parts of it attend to which.

   In every round tokens have an order: that of the sequence (FULL, LOCAL), or stably sorted by
   bucket (CHUNK, BUCKET). A place is an index into that order, a span is a range of places.

   Where keys are separate (rf_attention), queries and keys have each an order of their own; else
   one order serves both. */
#ifndef RF_ORDER_H
#define RF_ORDER_H

#include "core.h"

typedef enum { QUERIES, KEYS } token_side; // QUERIES also where one order serves both

/* The tokens of one side in all rounds. */
typedef struct {
    size_t n, m;            // tokens, and those of a chunk
    const int32_t *buckets; // b h r n
    uint32_t *order;        // b h r n: the token at each place; NULL: not sorted
    uint32_t *place;        // b h r n: the place of each token
    uint32_t *starts;       // b h r k+2: the first place of each bucket (scope BUCKET)
    uint32_t *homes;        // b h n r: which part of the round each token is in, see home_of; or
                            // NULL
} token_order;

typedef struct {
    const rf_attention *a;
    rf_run *run;          // polled by the longest loops
    token_order of[2];    // of each side; twice the same unless keys are separate
    uint32_t *orphans;    // b h t: queries that find no key, see attention_seen.h
    uint32_t *orphans_of; // b h: how many of them a head has
} layout;

typedef struct {
    size_t round, start, end;
    token_side side;
} span;

static inline int is_sorted_scope(const rf_attention *a) {
    return a->scope == RF_CHUNK || a->scope == RF_BUCKET;
}

static inline int is_window_scope(const rf_attention *a) {
    return a->scope == RF_LOCAL || a->scope == RF_CHUNK;
}

static inline size_t rounds_of(const rf_attention *a) {
    return is_sorted_scope(a) ? a->r : 1;
}

/* Two more rounds, in the order of the sequence: the window comes before the others, and after them
   the orphans, queries that found no key, attend to all keys. */
static inline size_t window_round(const rf_attention *a) {
    return rounds_of(a);
}

static inline size_t orphan_round(const rf_attention *a) {
    return rounds_of(a) + 1;
}

static inline int is_hash_round(const rf_attention *a, size_t round) {
    return round < rounds_of(a);
}

/* Passes over the queries, but for that of the orphans, and the round of each. */
static inline size_t passes_of(const rf_attention *a) {
    return rounds_of(a) + (a->window > 0);
}

static inline size_t round_of_pass(const rf_attention *a, size_t pass) {
    if (pass >= passes_of(a)) return orphan_round(a);
    return !a->window ? pass : pass == 0 ? window_round(a) : pass - 1;
}

static inline int is_first_round(const rf_attention *a, size_t round) {
    return round == round_of_pass(a, 0);
}

/* The side of keys, and of both if there is one order. */
static inline token_side key_side(const rf_attention *a) {
    return a->separate ? KEYS : QUERIES;
}

/* The position of query 0: separate keys end where the queries end. */
static inline ptrdiff_t first_position(const rf_attention *a) {
    return a->separate ? (ptrdiff_t)a->tk - (ptrdiff_t)a->t : 0;
}

/* Is a key this far after a query in the query's window? */
static inline int in_window(const rf_attention *a, ptrdiff_t distance) {
    const ptrdiff_t reach = (ptrdiff_t)a->window - 1;
    return distance <= reach && -distance <= reach;
}

/* ------------------------------------------------------------------------------- sorting ---- */

/* Chunks of a round, at least one; separate keys have as many as the queries. */
static inline size_t chunks_of(const rf_attention *a) {
    return max_size(1, blocks_of(a->t, a->m));
}

static inline size_t tokens_of(const rf_attention *a, token_side side) {
    return side == KEYS ? a->tk : a->t;
}

static inline size_t chunk_length(const rf_attention *a, token_side side) {
    return side == KEYS ? max_size(1, blocks_of(a->tk, chunks_of(a))) : a->m;
}

/* Counters of one thread that sorts, besides the starts of the buckets. */
static size_t sort_counters(const rf_attention *a) {
    if (a->scope == RF_BUCKET) return 0;
    return bytes_of(bytes_add(a->k + 2, chunks_of(a)), sizeof(uint32_t));
}

static size_t side_workspace(const rf_attention *a, token_side side) {
    const size_t lists = bytes_mul(a->b, bytes_mul(a->h, a->r));
    const size_t tokens = bytes_of(bytes_mul(lists, tokens_of(a, side)), sizeof(uint32_t));
    const size_t starts = bytes_of(bytes_mul(lists, a->k + 2), sizeof(uint32_t));
    return bytes_add(bytes_add(tokens, tokens), a->scope == RF_BUCKET ? starts : 0);
}

static size_t order_workspace(const rf_attention *a, int workers) {
    if (!is_sorted_scope(a)) return 0;
    const size_t counters = bytes_mul((size_t)workers, sort_counters(a));
    const size_t bytes = bytes_add(side_workspace(a, QUERIES), counters);
    return a->separate ? bytes_add(bytes, side_workspace(a, KEYS)) : bytes;
}

/* Stable counting sort of one round. In scope BUCKET starts[j] becomes the first place of bucket j.
   In scope CHUNK the tokens of a chunk are then put in order of position, counted by `fill`: the
   order within a chunk does not change the result, and this one gives the causal mask the shape of
   a staircase. */
static void sort_round(const rf_attention *a, const token_order *of, uint32_t *order,
                       uint32_t *place, uint32_t *starts, uint32_t *fill, const int32_t *buckets) {
    memset(starts, 0, (a->k + 2) * sizeof *starts);
    for (size_t i = 0; i < of->n; i++) starts[buckets[i] + 1]++;
    for (size_t j = 1; j < a->k + 2; j++) starts[j] += starts[j - 1];
    if (a->scope == RF_BUCKET) {
        for (size_t i = 0; i < of->n; i++) order[place[i] = starts[buckets[i]]++] = (uint32_t)i;
        for (size_t j = a->k + 1; j > 0; j--) starts[j] = starts[j - 1];
        starts[0] = 0;
        return;
    }
    memset(fill, 0, chunks_of(a) * sizeof *fill);
    const uint32_t m = (uint32_t)min_size(of->m, UINT32_MAX);
    for (size_t i = 0; i < of->n; i++) {
        const uint32_t chunk = starts[buckets[i]]++ / m;
        place[i] = chunk * m + fill[chunk]++;
        order[place[i]] = (uint32_t)i;
    }
}

/* `counters`: sort_counters of each thread, reused. */
static void sort_side(rf_run *run, const rf_attention *a, token_order *of, char *counters,
                      void **scratch) {
    const size_t lists = a->b * a->h * a->r, buckets_end = a->k + 2, n = of->n;
    of->order = take(scratch, lists * n, sizeof(uint32_t));
    of->place = take(scratch, lists * n, sizeof(uint32_t));
    if (a->scope == RF_BUCKET) of->starts = take(scratch, lists * buckets_end, sizeof(uint32_t));
    const size_t each = sort_counters(a);

#pragma omp parallel for num_threads(team(run, 20.0 * (double)(lists * n))) schedule(dynamic)
    for (size_t list = 0; list < lists; list++) {
        if (stopped(run)) continue;
        uint32_t *starts = of->starts ? of->starts + list * buckets_end
                                      : (uint32_t *)(counters + thread_index() * each);
        sort_round(a, of, of->order + list * n, of->place + list * n, starts, starts + buckets_end,
                   of->buckets + list * n);
    }
}

static layout make_order(rf_run *run, const rf_attention *a, const int32_t *buckets,
                         const int32_t *key_buckets, void **scratch) {
    layout l = {.a = a, .run = run};
    for (token_side side = QUERIES; side <= KEYS; side++)
        l.of[side] = (token_order){.n = tokens_of(a, side), .m = chunk_length(a, side)};
    l.of[QUERIES].buckets = buckets, l.of[KEYS].buckets = key_buckets;
    if (is_sorted_scope(a)) {
        char *counters = take(scratch, (size_t)run->workers * sort_counters(a), 1);
        sort_side(run, a, &l.of[QUERIES], counters, scratch);
        if (a->separate) sort_side(run, a, &l.of[KEYS], counters, scratch);
    }
    if (!a->separate) l.of[KEYS] = l.of[QUERIES];
    return l;
}

/* ------------------------------------------------------------------------------- windows ---- */

/* Chunks are numbered through all rounds. */
static inline span chunk_span(const rf_attention *a, token_side side, size_t chunk) {
    const size_t chunks = chunks_of(a), n = tokens_of(a, side), m = chunk_length(a, side);
    const size_t start = min_size(n, chunk % chunks * m);
    return (span){chunk / chunks, start, start + min_size(m, n - start), side};
}

/* The chunk `offset` after this one, into *to; returns 0 if there is none. With wrap the chunks of
   all rounds form one circle, as in Hugging Face's model, where an offset beyond the whole circle
   means the chunk itself. */
static int chunk_at(const rf_attention *a, size_t chunk, ptrdiff_t offset, size_t *to) {
    const ptrdiff_t chunks = (ptrdiff_t)chunks_of(a), all = chunks * (ptrdiff_t)rounds_of(a);
    if (a->wrap) {
        if (offset > all || offset < -all) offset = 0;
        *to = (size_t)(((ptrdiff_t)chunk + offset + all) % all);
        return 1;
    }
    const ptrdiff_t within = (ptrdiff_t)chunk % chunks + offset;
    *to = chunk + (size_t)offset;
    return within >= 0 && within < chunks;
}

/* The inverse: the chunk, other than this one, whose window has this one at `offset`. */
static int chunk_seen_from(const rf_attention *a, size_t chunk, ptrdiff_t offset, size_t *from) {
    const ptrdiff_t all = (ptrdiff_t)(chunks_of(a) * rounds_of(a));
    if (a->wrap && (offset > all || offset < -all)) return 0;
    return chunk_at(a, chunk, -offset, from) && *from != chunk;
}

static inline span bucket_span(const layout *l, token_side side, size_t bh, size_t round,
                               int32_t bucket) {
    const uint32_t *starts = l->of[side].starts + (bh * l->a->r + round) * (l->a->k + 2);
    return (span){round, starts[bucket], starts[bucket + 1], side};
}

/* Where a token is among the places and the buckets of its side. */
static inline size_t list_index(const layout *l, token_side side, size_t bh, size_t round,
                                size_t token) {
    return (bh * l->a->r + round) * l->of[side].n + token;
}

/* Do two tokens of a bucket, given by their ranks in it, attend to each other? Always, unless
   bucket_cap cuts the bucket into segments: then those of the same and of adjacent segments do.
   Also for ranks and cap in blocks. */
static inline int segments_touch(size_t rank, size_t other, size_t cap) {
    if (!cap) return 1;
    const size_t one = rank / cap, two = other / cap;
    return one <= two + 1 && two <= one + 1;
}

/* The keys of a query's bucket that it attends to: all, or its segment and the adjacent ones. */
static inline span bucket_segments(const layout *l, size_t bh, size_t round, size_t token) {
    const size_t cap = l->a->cap, at = list_index(l, QUERIES, bh, round, token);
    span s = bucket_span(l, key_side(l->a), bh, round, l->of[QUERIES].buckets[at]);
    if (!cap) return s;
    const size_t rank = l->of[QUERIES].place[at] - s.start;
    const size_t segment = rank / cap;
    s.end = min_size(s.end, s.start + (segment + 2) * cap);
    s.start += (segment ? segment - 1 : 0) * cap;
    return s;
}

#define POLL_EVERY 4096 // items between two polls, where one takes nanoseconds

/* -------------------------------------------------------------- pairs that meet repeatedly ---- */

/* A query may meet a key in several rounds, and with wrap twice in one. With
   allow_duplicate_attention=False the pair counts where it meets first: rounds in order, and in
   each the chunks of the window in order. Each key then counts once, as in the paper, where the
   attended keys are the union over rounds. */

static int may_repeat(const rf_attention *a) {
    if (!is_sorted_scope(a) || a->duplicates) return 0;
    const int meets_itself = a->wrap && a->before + a->after >= chunks_of(a);
    return a->r > 1 || (a->scope == RF_CHUNK && meets_itself);
}

/* Does query i meet key j in this round, at this place of its window? */
static int meets(const layout *l, size_t bh, size_t i, size_t j, size_t round, size_t slot) {
    const rf_attention *a = l->a;
    const token_order *queries = &l->of[QUERIES], *keys = &l->of[KEYS];
    const size_t at_i = list_index(l, QUERIES, bh, round, i);
    const size_t at_j = list_index(l, KEYS, bh, round, j);
    const int same_bucket = queries->buckets[at_i] == keys->buckets[at_j];
    if (a->scope == RF_BUCKET) {
        if (!same_bucket || !a->cap) return same_bucket;
        const size_t start = bucket_span(l, QUERIES, bh, round, queries->buckets[at_i]).start;
        return segments_touch(queries->place[at_i] - start, keys->place[at_j] - start, a->cap);
    }
    const size_t chunks = chunks_of(a), chunk = round * chunks + queries->place[at_i] / queries->m;
    size_t to;
    if (!chunk_at(a, chunk, (ptrdiff_t)slot - (ptrdiff_t)a->before, &to)) return 0;
    const size_t there = list_index(l, KEYS, bh, to / chunks, j);
    if (keys->place[there] / keys->m != to % chunks) return 0;
    return a->across_buckets || (there == at_j && same_bucket);
}

/* Did they meet before? By comparing place after place; 1 also if the run was stopped. */
static int has_met(const layout *l, size_t bh, size_t i, size_t j, size_t round, size_t slot) {
    const size_t slots = l->a->scope == RF_BUCKET ? 1 : l->a->before + l->a->after + 1;
    for (size_t r = 0; r <= round; r++)
        for (size_t s = 0; s < (r < round ? slots : slot); s++) {
            if (s % POLL_EVERY == POLL_EVERY - 1 && stopped(l->run)) return 1;
            if (meets(l, bh, i, j, r, s)) return 1;
        }
    return 0;
}

/* The same for whole blocks (find_earlier_windows in attention_pair.h): each token has a number per
   round, its home, and a query meets the keys whose homes are near its own. */

/* How far below and above a query's home those of its keys are. */
static inline size_t home_below(const rf_attention *a) {
    return a->scope == RF_BUCKET ? a->cap > 0 : a->before;
}

static inline size_t home_above(const rf_attention *a) {
    return a->scope == RF_BUCKET ? a->cap > 0 : a->after;
}

/* Do windows continue in the rounds before and after? There own buckets do not exist. */
static inline int crosses_rounds(const rf_attention *a) {
    return a->scope == RF_CHUNK && a->wrap && a->across_buckets;
}

/* What separates the homes of two buckets where chunks and buckets decide. One order has the
   buckets in turn; with two, a bucket of keys may begin anywhere among those of queries. */
static inline size_t home_gap(const rf_attention *a) {
    const size_t gap = max_size(a->before, a->after) + 1;
    return a->separate ? bytes_add(gap, chunks_of(a)) : gap;
}

/* Homes are kept if windows are no longer than a round, and if homes fit into 32 bits. (Nor for one
   round within buckets, where a window that crosses the round's end meets the same buckets.) */
static int keeps_homes(const rf_attention *a) {
    if (!may_repeat(a)) return 0;
    if (a->scope == RF_BUCKET) return 1; // at most t + 2 k
    const size_t chunks = chunks_of(a), gap = max_size(a->before, a->after) + 1;
    if (gap > chunks + 1 || (a->r == 1 && !a->across_buckets)) return 0;
    const size_t homes = a->across_buckets ? bytes_mul(a->r, chunks)
                                           : bytes_add(chunks, bytes_mul(a->k + 1, home_gap(a)));
    return homes < INT32_MAX / 2;
}

/* Chunks, numbered through all rounds, or buckets. If both a bucket and a chunk, or a segment of
   the bucket, decide, a gap separates the homes of different buckets. */
static uint32_t home_of(const layout *l, token_side side, size_t bh, size_t round, size_t token) {
    const rf_attention *a = l->a;
    const token_order *of = &l->of[side];
    const size_t at = list_index(l, side, bh, round, token), place = of->place[at];
    const size_t bucket = (size_t)of->buckets[at];
    if (a->scope == RF_CHUNK && a->across_buckets)
        return (uint32_t)(round * chunks_of(a) + place / of->m);
    if (a->scope == RF_CHUNK) return (uint32_t)(place / of->m + bucket * home_gap(a));
    if (!a->cap) return (uint32_t)bucket;
    const size_t start = bucket_span(l, side, bh, round, (int32_t)bucket).start;
    return (uint32_t)(start / a->cap + 2 * bucket + (place - start) / a->cap);
}

static size_t homes_workspace(const rf_attention *a) {
    const size_t tokens = bytes_add(a->t, a->separate ? a->tk : 0);
    const size_t homes = bytes_mul(bytes_mul(a->b, a->h), bytes_mul(tokens, a->r));
    return keeps_homes(a) ? bytes_add(bytes_of(homes, sizeof(uint32_t)), RF_ALIGN) : 0;
}

static void find_homes_of(layout *l, token_side side, void **scratch) {
    const rf_attention *a = l->a;
    const size_t n = l->of[side].n, tokens = a->b * a->h * n;
    uint32_t *homes = take(scratch, tokens * a->r, sizeof(uint32_t));
#pragma omp parallel for num_threads(team(l->run, 10.0 * (double)(tokens * a->r))) schedule(static)
    for (size_t i = 0; i < tokens; i++)
        for (size_t r = 0; r < a->r && !is_stopped(l->run); r++)
            homes[i * a->r + r] = home_of(l, side, i / n, r, i % n);
    l->of[side].homes = homes;
}

static void find_homes(layout *l, void **scratch) {
    if (!keeps_homes(l->a)) return;
    find_homes_of(l, QUERIES, scratch);
    if (l->a->separate)
        find_homes_of(l, KEYS, scratch);
    else
        l->of[KEYS].homes = l->of[QUERIES].homes;
}

#endif
