/* order.h: the order of the tokens in each hash round, and which parts of it attend to which.

   In every round tokens have an order: that of the sequence (FULL, LOCAL), or stably sorted by
   bucket (CHUNK, BUCKET). A place is an index into that order, a span is a range of places. */
#ifndef RF_ORDER_H
#define RF_ORDER_H

#include "core.h"

typedef struct {
    const rf_attention *a;
    rf_run *run;      // polled by the longest loops
    uint32_t *order;  // b h r t: the token at each place; NULL: not sorted
    uint32_t *place;  // b h r t: the place of each token
    uint32_t *starts; // b h r k+2: the first place of each bucket (scope BUCKET)
    uint32_t *homes;  // b h t r: which part of the round each token is in, see home_of; or NULL
} layout;

typedef struct {
    size_t round, start, end;
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

/* ------------------------------------------------------------------------------- sorting ---- */

static size_t order_workspace(const rf_attention *a, int workers) {
    if (!is_sorted_scope(a)) return 0;
    const size_t lists = bytes_mul(a->b, bytes_mul(a->h, a->r));
    const size_t tokens = bytes_of(bytes_mul(lists, a->t), sizeof(uint32_t));
    const size_t bytes = bytes_add(tokens, tokens);
    if (a->scope == RF_BUCKET)
        return bytes_add(bytes, bytes_of(bytes_mul(lists, a->k + 2), sizeof(uint32_t)));
    const size_t each = bytes_of(bytes_add(a->k + 2, blocks_of(a->t, a->m)), sizeof(uint32_t));
    return bytes_add(bytes, bytes_mul((size_t)workers, each));
}

/* Stable counting sort of one round. In scope BUCKET starts[j] becomes the first place of bucket j.
   In scope CHUNK the tokens of a chunk are then put in order of position, counted by `fill`: the
   order within a chunk does not change the result, and this one gives the causal mask the shape of
   a staircase. */
static void sort_round(const rf_attention *a, uint32_t *order, uint32_t *place, uint32_t *starts,
                       uint32_t *fill, const int32_t *buckets) {
    memset(starts, 0, (a->k + 2) * sizeof *starts);
    for (size_t i = 0; i < a->t; i++) starts[buckets[i] + 1]++;
    for (size_t j = 1; j < a->k + 2; j++) starts[j] += starts[j - 1];
    if (a->scope == RF_BUCKET) {
        for (size_t i = 0; i < a->t; i++) order[place[i] = starts[buckets[i]]++] = (uint32_t)i;
        for (size_t j = a->k + 1; j > 0; j--) starts[j] = starts[j - 1];
        starts[0] = 0;
        return;
    }
    memset(fill, 0, blocks_of(a->t, a->m) * sizeof *fill);
    const uint32_t m = (uint32_t)min_size(a->m, UINT32_MAX);
    for (size_t i = 0; i < a->t; i++) {
        const uint32_t chunk = starts[buckets[i]]++ / m;
        place[i] = chunk * m + fill[chunk]++;
        order[place[i]] = (uint32_t)i;
    }
}

static layout make_order(rf_run *run, const rf_attention *a, const int32_t *buckets,
                         void **scratch) {
    layout l = {.a = a, .run = run};
    if (!is_sorted_scope(a)) return l;
    const size_t lists = a->b * a->h * a->r, buckets_end = a->k + 2;
    const int bucket_scope = a->scope == RF_BUCKET;
    const size_t chunks = bucket_scope ? 0 : blocks_of(a->t, a->m);
    const size_t each = bytes_of(buckets_end + chunks, sizeof(uint32_t)) / sizeof(uint32_t);
    l.order = take(scratch, lists * a->t, sizeof(uint32_t));
    l.place = take(scratch, lists * a->t, sizeof(uint32_t));
    if (bucket_scope) l.starts = take(scratch, lists * buckets_end, sizeof(uint32_t));
    uint32_t *counts =
        bucket_scope ? NULL : take(scratch, (size_t)run->workers * each, sizeof(uint32_t));

#pragma omp parallel for num_threads(team(run, 20.0 * (double)(lists * a->t))) schedule(dynamic)
    for (size_t list = 0; list < lists; list++) {
        if (stopped(run)) continue;
        uint32_t *starts =
            bucket_scope ? l.starts + list * buckets_end : counts + thread_index() * each;
        sort_round(a, l.order + list * a->t, l.place + list * a->t, starts, starts + buckets_end,
                   buckets + list * a->t);
    }
    return l;
}

/* ------------------------------------------------------------------------------- windows ---- */

static inline size_t chunks_of(const rf_attention *a) {
    return blocks_of(a->t, a->m);
}

/* Chunks are numbered through all rounds. */
static inline span chunk_span(const rf_attention *a, size_t chunk) {
    const size_t chunks = chunks_of(a), start = chunk % chunks * a->m;
    return (span){chunk / chunks, start, start + min_size(a->m, a->t - start)};
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

static inline span bucket_span(const layout *l, size_t bh, size_t round, int32_t bucket) {
    const uint32_t *starts = l->starts + (bh * l->a->r + round) * (l->a->k + 2);
    return (span){round, starts[bucket], starts[bucket + 1]};
}

/* Do two tokens of a bucket, given by their ranks in it, attend to each other? Always, unless
   bucket_cap cuts the bucket into segments: then those of the same and of adjacent segments do.
   Also for ranks and cap in blocks. */
static inline int segments_touch(size_t rank, size_t other, size_t cap) {
    if (!cap) return 1;
    const size_t one = rank / cap, two = other / cap;
    return one <= two + 1 && two <= one + 1;
}

/* The part of a token's bucket that it attends to: all, or its segment and the adjacent ones. */
static inline span bucket_segments(const layout *l, size_t bh, size_t round, int32_t bucket,
                                   size_t token) {
    const size_t cap = l->a->cap;
    span s = bucket_span(l, bh, round, bucket);
    if (!cap) return s;
    const size_t rank = l->place[(bh * l->a->r + round) * l->a->t + token] - s.start;
    const size_t segment = rank / cap;
    s.end = min_size(s.end, s.start + (segment + 2) * cap);
    s.start += (segment ? segment - 1 : 0) * cap;
    return s;
}

#define MANY_CHUNKS 4096 // between two polls, where a chunk takes nanoseconds

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
static int meets(const layout *l, const int32_t *buckets, size_t bh, size_t i, size_t j,
                 size_t round, size_t slot) {
    const rf_attention *a = l->a;
    const size_t list = (bh * a->r + round) * a->t;
    const int same_bucket = buckets[list + i] == buckets[list + j];
    if (a->scope == RF_BUCKET) {
        const size_t start = bucket_span(l, bh, round, buckets[list + i]).start;
        return same_bucket &&
               segments_touch(l->place[list + i] - start, l->place[list + j] - start, a->cap);
    }
    const size_t chunks = chunks_of(a), chunk = round * chunks + l->place[list + i] / a->m;
    size_t at;
    if (!chunk_at(a, chunk, (ptrdiff_t)slot - (ptrdiff_t)a->before, &at)) return 0;
    const size_t other = (bh * a->r + at / chunks) * a->t;
    if (l->place[other + j] / a->m != at % chunks) return 0;
    return a->across_buckets || (other == list && same_bucket);
}

/* Did they meet before? By comparing place after place; 1 also if the run was stopped. */
static int has_met(const layout *l, const int32_t *buckets, size_t bh, size_t i, size_t j,
                   size_t round, size_t slot) {
    const size_t slots = l->a->scope == RF_BUCKET ? 1 : l->a->before + l->a->after + 1;
    for (size_t r = 0; r <= round; r++)
        for (size_t s = 0; s < (r < round ? slots : slot); s++) {
            if (s % MANY_CHUNKS == MANY_CHUNKS - 1 && stopped(l->run)) return 1;
            if (meets(l, buckets, bh, i, j, r, s)) return 1;
        }
    return 0;
}

/* The same for whole blocks (repeats_of): each token has a number per round, its home, and a query
   meets the keys whose homes are near its own. */

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

/* Homes are kept if windows are no longer than a round, and if homes fit into 32 bits. (Nor for one
   round within buckets, where a window that crosses the round's end meets the same buckets.) */
static int keeps_homes(const rf_attention *a) {
    if (!may_repeat(a)) return 0;
    if (a->scope == RF_BUCKET) return 1; // at most t + 2 k
    const size_t chunks = chunks_of(a), gap = max_size(a->before, a->after) + 1;
    if (gap > chunks + 1 || (a->r == 1 && !a->across_buckets)) return 0;
    const size_t homes =
        a->across_buckets ? bytes_mul(a->r, chunks) : bytes_add(chunks, bytes_mul(a->k + 1, gap));
    return homes < INT32_MAX / 2;
}

/* Chunks, numbered through all rounds, or buckets. If both a bucket and a chunk, or a segment of
   the bucket, decide, a gap separates the homes of different buckets. */
static uint32_t home_of(const layout *l, const int32_t *buckets, size_t bh, size_t round,
                        size_t token) {
    const rf_attention *a = l->a;
    const size_t at = (bh * a->r + round) * a->t + token, place = l->place[at];
    const size_t bucket = (size_t)buckets[at];
    if (a->scope == RF_CHUNK && a->across_buckets)
        return (uint32_t)(round * chunks_of(a) + place / a->m);
    if (a->scope == RF_CHUNK)
        return (uint32_t)(place / a->m + bucket * (max_size(a->before, a->after) + 1));
    if (!a->cap) return (uint32_t)bucket;
    const size_t start = bucket_span(l, bh, round, (int32_t)bucket).start;
    return (uint32_t)(start / a->cap + 2 * bucket + (place - start) / a->cap);
}

static size_t homes_workspace(const rf_attention *a) {
    const size_t homes = bytes_mul(bytes_mul(a->b, a->h), bytes_mul(a->t, a->r));
    return keeps_homes(a) ? bytes_of(homes, sizeof(uint32_t)) : 0;
}

static void find_homes(layout *l, const int32_t *buckets, void **scratch) {
    const rf_attention *a = l->a;
    if (!keeps_homes(a)) return;
    const size_t tokens = a->b * a->h * a->t;
    uint32_t *homes = take(scratch, tokens * a->r, sizeof(uint32_t));
#pragma omp parallel for num_threads(team(l->run, 10.0 * (double)(tokens * a->r))) schedule(static)
    for (size_t i = 0; i < tokens; i++)
        for (size_t r = 0; r < a->r && !is_stopped(l->run); r++)
            homes[i * a->r + r] = home_of(l, buckets, i / a->t, r, i % a->t);
    l->homes = homes;
}

#endif
