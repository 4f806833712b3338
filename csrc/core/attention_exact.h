/* attention_exact.h: the rows that see no key, or in several rounds none but themselves, one at a
   time, and where Hugging Face has such an attention, exactly as it rounds them.

   There every score is a constant as large as 1e9, and the rounding of its log-sum-exp shows: in
   float32, lse = -1e9 + log(n) is -1e9 again, so each of n masked keys gets probability 1 and the
   row is the SUM of the window's values. Model parity needs that, and an exact softmax does not
   give it. The block kernels mark such rows with lse = -inf; here they are done by the book. Rows
   whose scores are all below -5e4 for want of any better come here too: the book covers them.

   Scope BUCKET, and chunks without duplicates, other buckets or a circle, are not in Hugging Face's
   model. There the softmax is the plain one, and a row that sees itself alone is its value. */
#ifndef RF_ATTENTION_EXACT_H
#define RF_ATTENTION_EXACT_H

#include "attention_block.h"

/* Every key that one query meets in one round. */
typedef struct {
    real *score;
    uint32_t *token;
    uint32_t *slot;
    size_t n;
} met_keys;

/* The most keys that a row can meet in a round. */
static size_t met_keys_most(const rf_attention *a) {
    if (!is_window_scope(a)) return max_size(a->t, a->tk);
    return bytes_mul(bytes_add(bytes_add(a->before, a->after), 1), min_size(a->m, a->t));
}

/* What one thread works with here. */
typedef struct {
    met_keys keys;
    // r, r: a probability is exp(score - level) weight; d
    real *level, *weight, *row;
    int others; // is there more to it than the row's own value?
} exact_bench;

static size_t exact_bytes(const rf_attention *a) {
    const size_t most = met_keys_most(a);
    const size_t lists = bytes_mul(2, bytes_of(most, sizeof(uint32_t)));
    const size_t rows = bytes_of(bytes_add(bytes_mul(2, rounds_of(a)), a->d), sizeof(real));
    return bytes_add(bytes_add(bytes_of(most, sizeof(real)), lists), rows);
}

static exact_bench exact_place(const rf_attention *a, void *at) {
    const size_t most = met_keys_most(a);
    exact_bench e;
    e.keys.score = take(&at, most, sizeof(real));
    e.keys.token = take(&at, most, sizeof(uint32_t));
    e.keys.slot = take(&at, most, sizeof(uint32_t));
    e.keys.n = 0;
    e.level = take(&at, 2 * rounds_of(a) + a->d, sizeof(real));
    e.weight = e.level + rounds_of(a);
    e.row = e.weight + rounds_of(a);
    return e;
}

/* Is this an attention that Hugging Face's model has, too? */
static int rounds_as_hugging_face(const rf_attention *a) {
    return !is_sorted_scope(a) ||
           (a->scope == RF_CHUNK && a->duplicates && a->across_buckets && a->wrap);
}

static const real *key_row(const attention_arrays *x, size_t bh, size_t token) {
    const rf_attention *a = x->a;
    return a->shared_qk ? row_of(x->q, x->sq, a, bh, token) : row_of(x->k, x->sk, a, bh, token);
}

static real key_scale(const attention_arrays *x, size_t bh, size_t token) {
    const rf_attention *a = x->a;
    return (real)a->scale * (a->shared_qk ? key_norm(key_row(x, bh, token), a->d) : (real)1);
}

static int is_masked(const attention_arrays *x, size_t bh, size_t round, size_t i, size_t key_round,
                     size_t j) {
    const rf_attention *a = x->a;
    if (is_hidden(x, bh, j) || (a->causal && j > i)) return 1;
    return !a->across_buckets && bucket_of(x, bh, round, i) != bucket_of(x, bh, key_round, j);
}

static void meet_span(const attention_arrays *x, size_t bh, size_t round, size_t i, span s,
                      size_t slot, met_keys *keys) {
    const rf_attention *a = x->a;
    const real *q = row_of(x->q, x->sq, a, bh, i);
    for (size_t at = s.start; at < s.end; at++) {
        if (at % 1024 == 0 && stopped(x->order.run)) return;
        const size_t j = token_at(x, bh, s.round, at);
        const int masked = is_masked(x, bh, round, i, s.round, j);
        real score = SCORE_HIDDEN;
        if (!masked) score = dot(q, key_row(x, bh, j), a->d) * key_scale(x, bh, j);
        if (a->shared_qk && i == j) score = SCORE_SELF;
        if (!a->duplicates && (!masked || (a->shared_qk && i == j)))
            score -= (real)log((double)meetings(&x->order, x->buckets, bh, i, j));
        keys->score[keys->n] = score;
        keys->token[keys->n] = (uint32_t)j;
        keys->slot[keys->n++] = (uint32_t)slot;
    }
}

static void meet_keys(const attention_arrays *x, size_t bh, size_t round, size_t i,
                      met_keys *keys) {
    const rf_attention *a = x->a;
    keys->n = 0;
    if (a->scope == RF_FULL) {
        meet_span(x, bh, round, i, (span){0, 0, a->tk}, 0, keys);
    } else if (a->scope == RF_BUCKET) {
        const int32_t bucket = x->buckets[(bh * a->r + round) * a->t + i];
        meet_span(x, bh, round, i, bucket_segments(&x->order, bh, round, bucket, i), 0, keys);
    } else {
        const size_t place =
            a->scope == RF_CHUNK ? x->order.place[(bh * a->r + round) * a->t + i] : i;
        const size_t chunk = round * chunks_of(a) + place / a->m;
        for (size_t slot = 0; slot <= a->before + a->after; slot++) {
            size_t to;
            if (slot % MANY_CHUNKS == MANY_CHUNKS - 1 && stopped(x->order.run)) return;
            if (chunk_at(a, chunk, (ptrdiff_t)slot - (ptrdiff_t)a->before, &to))
                meet_span(x, bh, round, i, chunk_span(a, to), slot, keys);
        }
    }
}

/* exp of what is often -1e9: libm is slow at saying 0. */
static real exact_exp(real x) {
    return x < -800 ? 0 : (real)exp((double)x);
}

static real greatest(const real *x, size_t n) {
    real most = n ? x[0] : 0;
    for (size_t i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* The sum of exp(score - most). */
static real exact_sum(const real *score, size_t n, real most) {
    real sum = 0;
    for (size_t i = 0; i < n; i++) sum += exact_exp(score[i] - most);
    return sum;
}

/* lse = max + log(sum exp(score - max)), rounded to real as Hugging Face rounds it. */
static real exact_lse(const real *score, size_t n) {
    const real most = greatest(score, n);
    return most + (real)log((double)exact_sum(score, n, most));
}

/* What dropout makes of one probability. */
static real exact_drop(const rf_attention *a, size_t bh, size_t round, size_t i,
                       const met_keys *keys, size_t at) {
    if (!(a->dropout > 0)) return 1;
    const uint64_t row = row_key(a->key, (uint32_t)bh, (uint32_t)round, (uint32_t)i);
    const uint32_t bits = pair_bits(row, keys->token[at], keys->slot[at]);
    return bits >= drop_threshold(a->dropout) ? drop_scale(a->dropout) : 0;
}

/* Each round's log-sum-exp is its level, and its weight in that of all rounds is rounded, too. */
static void hugging_face_rounds(const attention_arrays *x, size_t bh, size_t i, exact_bench *e) {
    const size_t rounds = rounds_of(x->a);
    for (size_t r = 0; r < rounds; r++) {
        meet_keys(x, bh, r, i, &e->keys);
        e->level[r] = exact_lse(e->keys.score, e->keys.n);
    }
    const real lse = rounds > 1 ? exact_lse(e->level, rounds) : e->level[0];
    for (size_t r = 0; r < rounds; r++)
        e->weight[r] = rounds > 1 ? exact_exp(e->level[r] - lse) : 1;
}

/* Does any key other than the query itself have a probability? */
static int met_others(const met_keys *keys, size_t i, real most) {
    for (size_t at = 0; at < keys->n; at++)
        if (keys->token[at] != i && exact_exp(keys->score[at] - most) != 0) return 1;
    return 0;
}

/* Each round's maximum is its level, so that none rounds a weight. */
static void plain_rounds(const attention_arrays *x, size_t bh, size_t i, exact_bench *e) {
    const size_t rounds = rounds_of(x->a);
    for (size_t r = 0; r < rounds; r++) {
        meet_keys(x, bh, r, i, &e->keys);
        e->level[r] = greatest(e->keys.score, e->keys.n);
        e->weight[r] = exact_sum(e->keys.score, e->keys.n, e->level[r]);
        e->others = e->others || met_others(&e->keys, i, e->level[r]);
    }
    const real most = greatest(e->level, rounds);
    real sum = 0;
    for (size_t r = 0; r < rounds; r++) sum += e->weight[r] * exact_exp(e->level[r] - most);
    for (size_t r = 0; r < rounds; r++) e->weight[r] = exact_exp(e->level[r] - most) / sum;
}

/* The rounds of one row, or 0: it is its value to the bit, since it met itself alone, and dropout
   would drop each meeting for itself. */
static int exact_rounds(const attention_arrays *x, size_t bh, size_t i, exact_bench *e) {
    e->others = rounds_as_hugging_face(x->a) || x->a->dropout > 0;
    if (rounds_as_hugging_face(x->a))
        hugging_face_rounds(x, bh, i, e);
    else
        plain_rounds(x, bh, i, e);
    return e->others;
}

static void exact_forward(const attention_arrays *x, real *out, size_t bh, size_t i,
                          exact_bench *e) {
    const rf_attention *a = x->a;
    const size_t rounds = rounds_of(a);
    met_keys *keys = &e->keys;
    if (!exact_rounds(x, bh, i, e)) {
        copy_row(out, row_of(x->v, x->sv, a, bh, i), a->d);
        return;
    }
    memset(out, 0, a->d * sizeof(real));
    for (size_t r = 0; r < rounds; r++) {
        if (rounds > 1) meet_keys(x, bh, r, i, keys);
        for (size_t at = 0; at < keys->n; at++) {
            if (at % MANY_CHUNKS == MANY_CHUNKS - 1 && stopped(x->order.run)) return;
            const real p = e->weight[r] * exact_exp(keys->score[at] - e->level[r]) *
                           exact_drop(a, bh, r, i, keys, at);
            const real *v = row_of(x->v, x->sv, a, bh, keys->token[at]);
            if (p != 0)
                for (size_t j = 0; j < a->d; j++) out[j] += p * v[j];
        }
    }
}

/* dx += from the gradient g of the raw key row: straight, and through the norm of a shared key. */
static void add_key_gradient(const rf_attention *a, real *dx, const real *x, const real *g) {
    real along = 0;
    if (a->shared_qk) {
        const real rho = key_norm(x, a->d);
        along = rho * rho * dot(x, g, a->d) / (real)a->d;
    }
    for (size_t j = 0; j < a->d; j++) dx[j] += g[j] - along * x[j];
}

typedef struct {
    real *dq, *dk, *dv;
    rf_strides sdq, sdk, sdv;
} backward_results;

/* Adds this row's part to the gradients of all that it met. */
static void exact_backward(const attention_arrays *x, const backward_results *to, size_t bh,
                           size_t i, exact_bench *e) {
    const rf_attention *a = x->a;
    const size_t rounds = rounds_of(a), d = a->d;
    met_keys *keys = &e->keys;
    real *g = e->row;
    const real *dout = row_of(x->dout, x->sdout, a, bh, i), *q = row_of(x->q, x->sq, a, bh, i);
    if (!exact_rounds(x, bh, i, e)) {
        add_row((real *)row_of(to->dv, to->sdv, a, bh, i), dout, d);
        return;
    }
    real *dqi = (real *)row_of(to->dq, to->sdq, a, bh, i);
    for (size_t r = 0; r < rounds; r++) {
        if (rounds > 1) meet_keys(x, bh, r, i, keys);
        for (size_t at = 0; at < keys->n; at++) {
            if (at % MANY_CHUNKS == MANY_CHUNKS - 1 && stopped(x->order.run)) return;
            const size_t token = keys->token[at];
            const real p = e->weight[r] * exact_exp(keys->score[at] - e->level[r]);
            if (p == 0) continue;

            // forward was out += p keep v
            const real keep = exact_drop(a, bh, r, i, keys, at);
            const real *v = row_of(x->v, x->sv, a, bh, token);
            real *dvj = (real *)row_of(to->dv, to->sdv, a, bh, token);
            for (size_t j = 0; j < d; j++) dvj[j] += p * keep * dout[j];

            // forward was score = q k scale, unless a constant was written over it
            if ((a->shared_qk && token == i) || keys->score[at] <= SCORE_HIDDEN / 2) continue;
            const real ds =
                p * (keep * dot(dout, v, d) - x->delta[bh * a->t + i]) * key_scale(x, bh, token);
            const real *k = key_row(x, bh, token);
            for (size_t j = 0; j < d; j++) {
                dqi[j] += ds * k[j];
                g[j] = ds * q[j];
            }
            const real *dkj = a->shared_qk ? row_of(to->dq, to->sdq, a, bh, token)
                                           : row_of(to->dk, to->sdk, a, bh, token);
            add_key_gradient(a, (real *)dkj, k, g);
        }
    }
}

#endif
