/* attention_hf_rows.h: rows in Hugging Face's own rounding: those that attend to no key, or in
   several rounds only to themselves.

   Their scores are constants, -1e9 for a hidden key and -1e5 for the query itself (with shared_qk,
   even if it is padding: such a row is its own value), and the rounding of their log-sum-exp is
   visible: in float32, lse = -1e9 + log(n) rounds to -1e9, so each of n masked keys gets
   probability 1 and the row is the SUM of the window's values. An exact softmax would give their
   mean, but parity of models needs the sum. The block kernels mark such rows with lse = -inf (also
   rows whose scores are all below -5e4, which are treated alike), and here they are computed one at
   a time.

   Scope BUCKET, and scope CHUNK without wrap, without duplicates or within buckets only, separate
   keys and a window do not exist in Hugging Face's model. There the softmax is exact, and a row
   that attends only to itself equals its value. With separate keys, a row that sees no key at all
   is 0, and its log-sum-exp is -inf. */
#ifndef RF_ATTENTION_HF_ROWS_H
#define RF_ATTENTION_HF_ROWS_H

#include "attention_pair.h"
#include "attention_seen.h"

/* The keys of one query in one round. */
typedef struct {
    real *score;
    uint32_t *token;
    uint32_t *slot;
    size_t n;
} key_list;

/* The maximum number of keys of a row in one round: in the window's and the orphans', all; in one
   of chunks, those of its span of chunks, which may go around the circle and list a key repeatedly.
 */
static size_t key_list_max(const rf_attention *a) {
    const size_t all = max_size(a->t, a->tk);
    if (!is_window_scope(a)) return all;
    const size_t chunks = bytes_add(bytes_add(a->before, a->after), 1);
    const size_t listed = bytes_mul(chunks, min_size(chunk_length(a, key_side(a)), all));
    return a->window || a->separate ? max_size(all, listed) : listed;
}

/* Passes in which a row may see keys: with separate keys, one more for those of an orphan. */
static size_t row_passes(const rf_attention *a) {
    return passes_of(a) + (size_t)may_have_orphans(a);
}

/* One thread's scratch for one row. */
typedef struct {
    key_list keys;
    real *shift, *weight; // of each pass: the probability of a key is exp(score - shift) * weight
    real *row;            // d
    real lse;             // of all scores
    int others;           // 0 if the row is just its own value
} hf_scratch;

static size_t hf_scratch_bytes(const rf_attention *a) {
    const size_t max = key_list_max(a);
    const size_t lists = bytes_mul(2, bytes_of(max, sizeof(uint32_t)));
    const size_t rows = bytes_of(bytes_add(bytes_mul(2, row_passes(a)), a->d), sizeof(real));
    return bytes_add(bytes_add(bytes_of(max, sizeof(real)), lists), rows);
}

static hf_scratch hf_scratch_place(const rf_attention *a, void *at) {
    const size_t max = key_list_max(a);
    hf_scratch hf;
    hf.keys.score = take(&at, max, sizeof(real));
    hf.keys.token = take(&at, max, sizeof(uint32_t));
    hf.keys.slot = take(&at, max, sizeof(uint32_t));
    hf.keys.n = 0;
    hf.shift = take(&at, 2 * row_passes(a) + a->d, sizeof(real));
    hf.weight = hf.shift + row_passes(a);
    hf.row = hf.weight + row_passes(a);
    return hf;
}

/* Does Hugging Face's model have this kind of attention? */
static int rounds_as_hugging_face(const rf_attention *a) {
    if (a->separate || a->window) return 0;
    return !is_sorted_scope(a) ||
           (a->scope == RF_CHUNK && a->duplicates && a->across_buckets && a->wrap);
}

static const real *key_row(const attention_arrays *x, size_t bh, size_t token) {
    const rf_attention *a = x->a;
    return a->shared_qk ? row_of(x->q, x->sq, a, bh, token) : kv_row_of(x->k, x->sk, a, bh, token);
}

static real key_scale(const attention_arrays *x, size_t bh, size_t token) {
    const rf_attention *a = x->a;
    return (real)a->scale * (a->shared_qk ? key_norm(key_row(x, bh, token), a->d) : (real)1);
}

static real plain_score(const attention_arrays *x, size_t bh, size_t i, size_t j) {
    const real *q = row_of(x->q, x->sq, x->a, bh, i);
    return dot(q, key_row(x, bh, j), x->a->d) * key_scale(x, bh, j);
}

static real soft_capped1(real score, real cap) {
    return cap > 0 ? cap * (real)tanh((double)(score / cap)) : score;
}

static void list_span(const attention_arrays *x, size_t bh, size_t round, size_t i, span s,
                      size_t slot, key_list *keys) {
    const rf_attention *a = x->a;
    const int hashed = is_hash_round(a, round);
    if (!sees_round(a, round, s.round)) return;
    for (size_t at = s.start; at < s.end; at++) {
        if (at % POLL_EVERY == 0 && stopped(x->order.run)) return;
        const size_t j = token_at(x, s.side, bh, s.round, at);
        const int masked = is_masked(x, bh, round, i, s.round, j);
        const int counts = !masked || (a->shared_qk && i == j);
        if (masked && a->separate) continue;
        if (hashed && a->window && in_window(a, (ptrdiff_t)j - position_of(a, i))) continue;
        if (hashed && !a->duplicates && counts && has_met(&x->order, bh, i, j, round, slot))
            continue;
        real score = SCORE_HIDDEN;
        if (!masked) score = soft_capped1(plain_score(x, bh, i, j), (real)a->softcap);
        if (a->shared_qk && i == j) score = SCORE_SELF; // the self-mask
        keys->score[keys->n] = score;
        keys->token[keys->n] = (uint32_t)j;
        keys->slot[keys->n++] = (uint32_t)slot;
    }
}

static void list_keys(const attention_arrays *x, size_t bh, size_t round, size_t i,
                      key_list *keys) {
    const rf_attention *a = x->a;
    keys->n = 0;
    if (may_have_orphans(a) && round == orphan_round(a) && finds_key(x, bh, i)) return;
    for (size_t slot = 0; slot < slots_of(a, round); slot++) {
        span s;
        if (slot % POLL_EVERY == POLL_EVERY - 1 && stopped(x->order.run)) return;
        if (seen_span(x, bh, round, i, slot, &s)) list_span(x, bh, round, i, s, slot, keys);
    }
}

/* exp, with a shortcut for arguments such as -1e9, where libm is slow to return 0. */
static real libm_exp(real x) {
    return x < -800 ? 0 : (real)exp((double)x);
}

static real max_of(const real *x, size_t n) {
    real max = n ? x[0] : 0;
    for (size_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* Sum of exp(score - max). */
static real exp_sum(const real *score, size_t n, real max) {
    real sum = 0;
    for (size_t i = 0; i < n; i++) sum += libm_exp(score[i] - max);
    return sum;
}

/* lse = max + log(sum exp(score - max)), rounded to real as Hugging Face rounds it. */
static real hf_lse(const real *score, size_t n) {
    const real max = max_of(score, n);
    return max + (real)log((double)exp_sum(score, n, max));
}

/* Dropout's factor for one probability: 0, or 1 / (1 - p). */
static real drop_factor(const rf_attention *a, size_t bh, size_t round, size_t i,
                        const key_list *keys, size_t at) {
    if (!(a->dropout > 0)) return 1;
    const uint64_t row = row_key(a->key, (uint32_t)bh, (uint32_t)round, (uint32_t)i);
    const uint32_t bits = pair_bits(row, keys->token[at], keys->slot[at]);
    return bits >= drop_threshold(a->dropout) ? drop_scale(a->dropout) : 0;
}

/* Hugging Face's softmax: the log-sum-exp of each round and the weight of each round,
   exp(lse of the round - lse of all rounds), are both rounded to real. */
static void hugging_face_rounds(const attention_arrays *x, size_t bh, size_t i, hf_scratch *hf) {
    const size_t rounds = rounds_of(x->a);
    for (size_t r = 0; r < rounds; r++) {
        list_keys(x, bh, r, i, &hf->keys);
        hf->shift[r] = hf_lse(hf->keys.score, hf->keys.n);
    }
    hf->lse = rounds > 1 ? hf_lse(hf->shift, rounds) : hf->shift[0];
    for (size_t r = 0; r < rounds; r++)
        hf->weight[r] = rounds > 1 ? libm_exp(hf->shift[r] - hf->lse) : 1;
}

/* Does a key other than the query itself have a probability above 0? */
static int sees_others(const key_list *keys, size_t i, real max) {
    for (size_t at = 0; at < keys->n; at++)
        if (keys->token[at] != i && libm_exp(keys->score[at] - max) != 0) return 1;
    return 0;
}

/* The exact softmax over all rounds, relative to each round's maximum, so that no huge log-sum-exp
   is rounded. */
static void plain_rounds(const attention_arrays *x, size_t bh, size_t i, hf_scratch *hf) {
    const size_t passes = row_passes(x->a);
    for (size_t r = 0; r < passes; r++) {
        list_keys(x, bh, round_of_pass(x->a, r), i, &hf->keys);
        hf->shift[r] = hf->keys.n ? max_of(hf->keys.score, hf->keys.n) : REAL_LOWEST;
        hf->weight[r] = exp_sum(hf->keys.score, hf->keys.n, hf->shift[r]);
        hf->others = hf->others || sees_others(&hf->keys, i, hf->shift[r]);
    }
    const real max = max_of(hf->shift, passes);
    real sum = 0;
    for (size_t r = 0; r < passes; r++) sum += hf->weight[r] * libm_exp(hf->shift[r] - max);
    for (size_t r = 0; r < passes; r++) hf->weight[r] = libm_exp(hf->shift[r] - max) / sum;
    hf->lse = sum > 0 ? max + (real)log((double)sum) : -(real)INFINITY;
}

/* Fill shift and weight. Returns 0 if the row is exactly its own value: it attends only to itself,
   and no dropout could drop one of its occurrences. */
static int row_rounds(const attention_arrays *x, size_t bh, size_t i, hf_scratch *hf) {
    hf->others = rounds_as_hugging_face(x->a) || x->a->dropout > 0 || x->a->separate;
    if (rounds_as_hugging_face(x->a))
        hugging_face_rounds(x, bh, i, hf);
    else
        plain_rounds(x, bh, i, hf);
    return hf->others;
}

static void hf_row_forward(const attention_arrays *x, real *out, size_t bh, size_t i,
                           hf_scratch *hf) {
    const rf_attention *a = x->a;
    const size_t passes = row_passes(a);
    key_list *keys = &hf->keys;
    // 1. shift and weight of each round
    if (!row_rounds(x, bh, i, hf)) {
        copy_row(out, kv_row_of(x->v, x->sv, a, bh, i), a->d);
        return;
    }
    // 2. out = sum of p keep v
    memset(out, 0, a->d * sizeof(real));
    for (size_t r = 0; r < passes; r++) {
        const size_t round = round_of_pass(a, r);
        if (passes > 1) list_keys(x, bh, round, i, keys);
        for (size_t at = 0; at < keys->n; at++) {
            if (at % POLL_EVERY == POLL_EVERY - 1 && stopped(x->order.run)) return;
            const real p = hf->weight[r] * libm_exp(keys->score[at] - hf->shift[r]) *
                           drop_factor(a, bh, round, i, keys, at);
            const real *v = kv_row_of(x->v, x->sv, a, bh, keys->token[at]);
            if (p != 0)
                for (size_t j = 0; j < a->d; j++) out[j] += p * v[j];
        }
    }
}

/* dx += what follows from the gradient g of the raw key row: g itself, less what the norm of a
   shared key takes out of it. */
static void add_key_gradient(const rf_attention *a, real *dx, const real *x, const real *g,
                             real norm) {
    const real along = a->shared_qk ? norm * norm * dot(x, g, a->d) / (real)a->d : 0;
    for (size_t j = 0; j < a->d; j++) dx[j] += g[j] - along * x[j];
}

typedef struct {
    real *dq, *dk, *dv;
    rf_strides sdq, sdk, sdv;
} backward_results;

/* Add this row's contributions to the gradients of all its keys, and its own dq. */
static void hf_row_backward(const attention_arrays *x, const backward_results *to, size_t bh,
                            size_t i, hf_scratch *hf) {
    const rf_attention *a = x->a;
    const size_t passes = row_passes(a), d = a->d;
    key_list *keys = &hf->keys;
    real *g = hf->row;
    const real *dout = row_of(x->dout, x->sdout, a, bh, i), *q = row_of(x->q, x->sq, a, bh, i);
    if (!row_rounds(x, bh, i, hf)) {
        add_row((real *)kv_row_of(to->dv, to->sdv, a, bh, i), dout, d);
        return;
    }
    real *dqi = (real *)row_of(to->dq, to->sdq, a, bh, i);
    for (size_t r = 0; r < passes; r++) {
        const size_t round = round_of_pass(a, r);
        if (passes > 1) list_keys(x, bh, round, i, keys);
        for (size_t at = 0; at < keys->n; at++) {
            if (at % POLL_EVERY == POLL_EVERY - 1 && stopped(x->order.run)) return;
            const size_t token = keys->token[at];
            const real p = hf->weight[r] * libm_exp(keys->score[at] - hf->shift[r]);
            if (p == 0) continue;

            // 1. dv: forward was out += p keep v
            const real keep = drop_factor(a, bh, round, i, keys, at);
            const real *v = kv_row_of(x->v, x->sv, a, bh, token);
            real *dvj = (real *)kv_row_of(to->dv, to->sdv, a, bh, token);
            for (size_t j = 0; j < d; j++) dvj[j] += p * keep * dout[j];

            // 2. dq and dk: forward was score = q k scale, unless replaced by a constant
            if ((a->shared_qk && token == i) || keys->score[at] <= SCORE_HIDDEN / 2) continue;
            real ds =
                p * (keep * dot(dout, v, d) - x->delta[bh * a->t + i]) * key_scale(x, bh, token);
            if (a->softcap > 0) {
                const double t = tanh((double)plain_score(x, bh, i, token) / a->softcap);
                ds *= (real)(1 - t * t);
            }
            const real *k = key_row(x, bh, token);
            for (size_t j = 0; j < d; j++) {
                dqi[j] += ds * k[j];
                g[j] = ds * q[j];
            }
            const real *dkj = a->shared_qk ? row_of(to->dq, to->sdq, a, bh, token)
                                           : kv_row_of(to->dk, to->sdk, a, bh, token);
            add_key_gradient(a, (real *)dkj, k, g, a->shared_qk ? key_norm(k, d) : 1);
        }
    }
}

#endif
