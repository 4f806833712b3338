/* attention_seen.h: which keys one query sees; and the orphans, queries of separate keys that find
   no key in the window or in any round, and attend to all keys instead, in a round of their own. */
#ifndef RF_ATTENTION_SEEN_H
#define RF_ATTENTION_SEEN_H

#include "attention_block.h"

static inline ptrdiff_t position_of(const rf_attention *a, size_t i) {
    return (ptrdiff_t)i + first_position(a);
}

static int is_masked(const attention_arrays *x, size_t bh, size_t round, size_t i, size_t key_round,
                     size_t j) {
    const rf_attention *a = x->a;
    if (is_hidden(x, bh, j) || (a->causal && (ptrdiff_t)j > position_of(a, i))) return 1;
    return !a->across_buckets && is_hash_round(a, round) &&
           bucket_of(x, QUERIES, bh, round, i) != bucket_of(x, key_side(a), bh, key_round, j);
}

/* Spans of keys that a query may see in a round. */
static inline size_t slots_of(const rf_attention *a, size_t round) {
    return is_window_scope(a) && is_hash_round(a, round) ? a->before + a->after + 1 : 1;
}

/* The keys in the windows of queries with positions [from, to]. */
static span window_keys(const rf_attention *a, ptrdiff_t from, ptrdiff_t to) {
    const ptrdiff_t reach = (ptrdiff_t)a->window - 1, n = (ptrdiff_t)a->tk;
    const ptrdiff_t start = from - reach, end = to + (a->causal ? 0 : reach) + 1;
    const ptrdiff_t last = end < 0 ? 0 : end < n ? end : n;
    const ptrdiff_t first = start < 0 ? 0 : start < last ? start : last;
    return (span){window_round(a), (size_t)first, (size_t)last, key_side(a)};
}

/* Set *s to the span of keys with index `slot`, from 0 to slots_of - 1, that query i may see in a
   round; returns 0 if that span does not exist. */
static int seen_span(const attention_arrays *x, size_t bh, size_t round, size_t i, size_t slot,
                     span *s) {
    const rf_attention *a = x->a;
    const token_order *queries = &x->order.of[QUERIES];
    *s = (span){round, 0, a->tk, key_side(a)};
    if (is_hash_round(a, round) && a->scope == RF_BUCKET) {
        *s = bucket_segments(&x->order, bh, round, i);
    } else if (is_hash_round(a, round) && is_window_scope(a)) {
        const size_t place =
            queries->order ? queries->place[list_index(&x->order, QUERIES, bh, round, i)] : i;
        const size_t chunk = round * chunks_of(a) + place / a->m;
        size_t to;
        if (!chunk_at(a, chunk, (ptrdiff_t)slot - (ptrdiff_t)a->before, &to)) return 0;
        *s = chunk_span(a, key_side(a), to);
    } else if (round == window_round(a) && a->window) {
        *s = window_keys(a, position_of(a, i), position_of(a, i));
    }
    return 1;
}

/* ------------------------------------------------------------------------------- orphans ---- */

/* Does the query see any key of a span? */
static int sees_any(const attention_arrays *x, size_t bh, size_t round, size_t i, span s) {
    const rf_attention *a = x->a;
    for (size_t at = s.start; at < s.end; at++) {
        if (at % POLL_EVERY == POLL_EVERY - 1 && stopped(x->order.run)) return 1;
        const size_t j = token_at(x, s.side, bh, s.round, at);
        // tokens of a span are in order of position
        if (a->causal && (ptrdiff_t)j > position_of(a, i)) return 0;
        if (!is_masked(x, bh, round, i, s.round, j)) return 1;
    }
    return 0;
}

/* Count in which rounds a query sees no key of its bucket: because it has none, or under the causal
   mask because the query is before the first. */
static void count_missed(const attention_arrays *x, size_t bh, size_t round, uint32_t *missed) {
    const rf_attention *a = x->a;
    for (size_t bucket = 0; bucket <= a->k; bucket++) {
        if (bucket % POLL_EVERY == POLL_EVERY - 1 && stopped(x->order.run)) return;
        const span keys = bucket_span(&x->order, KEYS, bh, round, (int32_t)bucket);
        const span queries = bucket_span(&x->order, QUERIES, bh, round, (int32_t)bucket);
        size_t key = keys.start;
        while (key < keys.end && is_hidden(x, bh, token_at(x, KEYS, bh, round, key))) key++;
        ptrdiff_t first = PTRDIFF_MAX; // the first position from which a key is seen
        if (key < keys.end)
            first = a->causal ? (ptrdiff_t)token_at(x, KEYS, bh, round, key) : PTRDIFF_MIN;
        for (size_t at = queries.start; at < queries.end; at++) {
            const size_t i = token_at(x, QUERIES, bh, round, at);
            if (first <= position_of(a, i)) break; // later queries are at later positions
            missed[i]++;
        }
    }
}

/* Does the query see any key in its window or in a round? */
static int finds_key(const attention_arrays *x, size_t bh, size_t i) {
    const rf_attention *a = x->a;
    for (size_t pass = 0; pass < passes_of(a); pass++) {
        const size_t round = round_of_pass(a, pass);
        for (size_t slot = 0; slot < slots_of(a, round); slot++) {
            span s;
            if (seen_span(x, bh, round, i, slot, &s) && sees_any(x, bh, round, i, s)) return 1;
        }
    }
    return 0;
}

/* One chunk sees all keys: there are no orphans then. */
static int may_have_orphans(const rf_attention *a) {
    return a->separate && is_sorted_scope(a);
}

static size_t orphans_workspace(const rf_attention *a) {
    if (!may_have_orphans(a)) return 0;
    const size_t heads = bytes_mul(a->b, a->h);
    return bytes_add(bytes_of(bytes_mul(heads, a->t), sizeof(uint32_t)),
                     bytes_of(heads, sizeof(uint32_t)));
}

static void find_orphans(attention_arrays *x, void **scratch) {
    const rf_attention *a = x->a;
    if (!may_have_orphans(a)) return;
    const size_t heads = a->b * a->h;
    uint32_t *orphans = x->order.orphans = take(scratch, heads * a->t, sizeof(uint32_t));
    uint32_t *count = x->order.orphans_of = take(scratch, heads, sizeof(uint32_t));
#pragma omp parallel for num_threads(team(x->order.run, 20.0 * (double)(heads * a->t)))            \
    schedule(dynamic)
    for (size_t bh = 0; bh < heads; bh++) {
        count[bh] = 0;
        if (stopped(x->order.run)) continue; // tokens may not be sorted then
        // counts first, then orphans in their place: no more of them than counts that were read
        uint32_t *of_head = orphans + bh * a->t;
        memset(of_head, 0, a->t * sizeof *of_head);
        for (size_t round = 0; round < a->r && a->scope == RF_BUCKET; round++)
            count_missed(x, bh, round, of_head);
        for (size_t i = 0; i < a->t; i++) {
            if (i % POLL_EVERY == 0 && stopped(x->order.run)) break;
            if (a->scope == RF_BUCKET && of_head[i] < a->r) continue;
            if (!finds_key(x, bh, i)) of_head[count[bh]++] = (uint32_t)i;
        }
    }
}

static int any_orphans(const attention_arrays *x) {
    if (!may_have_orphans(x->a)) return 0;
    for (size_t bh = 0; bh < x->a->b * x->a->h; bh++)
        if (x->order.orphans_of[bh]) return 1;
    return 0;
}

#endif
