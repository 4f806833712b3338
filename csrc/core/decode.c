/* decode.c: attention for one new token of each text, to a cache of the tokens before it.

   The cache of a layer holds the keys, scaled and, with shared_qk, normalised, and the values. A
   layer that hashes also keeps each bucket as a linked list: its newest token, its size, and for
   each token the previous one of its bucket. Appending a token takes two writes. The cache is a
   ring buffer: a local layer keeps only its window, and the others may forget their oldest tokens,
   after which a text is what it would be if it began with the oldest one that is kept. */
#include "attention_hf_rows.h"
#include "rows.h"
#include "small_batch.h"

#define KEYS_PENDING 128 // keys that are processed together

/* The softmax of one query over keys that arrive one by one. */
typedef struct {
    const rf_decoding *a;
    rf_run *run;
    const real *q;                 // d
    const void *keys, *values;     // s d of this head
    size_t self, others;           // the query's own token; how many keys were not that
    size_t n, token[KEYS_PENDING]; // keys not yet processed
    uint64_t *met;                 // a bit for each token that has been attended to, or NULL
    real max, sum, *out;           // running maximum, denominator, numerator (d)
} online_softmax;

/* Process the pending keys; none if the run was stopped. */
static void flush(online_softmax *sm) {
    const size_t d = sm->a->d;
    if (stopped(sm->run)) sm->n = 0; // a window may be long
    // 1. scores and their maximum
    real score[KEYS_PENDING + VEC_LANES];
    real max = sm->max;
    for (size_t i = 0; i < sm->n; i++) {
        const real s = dot_cached(sm->a->storage, sm->q, sm->keys, sm->token[i], d);
        score[i] = soft_capped1(s, (real)sm->a->softcap);
        if (sm->a->shared_qk && sm->token[i] == sm->self) // the self-mask
            score[i] = SCORE_SELF;
        max = score[i] > max ? score[i] : max;
    }
    // 2. rescale what has been accumulated
    const real rescale = exp1(sm->max - max);
    sm->sum *= rescale;
    for (size_t j = 0; j < d; j++) sm->out[j] *= rescale;
    // 3. exponentials
    for (size_t i = sm->n; i < round_up(sm->n, VEC_LANES); i++) score[i] = max;
    for (size_t i = 0; i < sm->n; i += VEC_LANES)
        vstore(score + i, vec_exp(vload(score + i) - max));
    // 4. sum += p, out += p v
    for (size_t i = 0; i < sm->n; i++) {
        sm->sum += score[i];
        add_cached(sm->a->storage, sm->out, score[i], sm->values, sm->token[i], d);
    }
    sm->max = max;
    sm->n = 0;
}

static inline void attend(online_softmax *sm, size_t token) {
    if (sm->met) {
        const uint64_t bit = (uint64_t)1 << token % 64, before = sm->met[token / 64];
        if (before & bit) return;
        sm->met[token / 64] = before | bit;
    }
    sm->others += token != sm->self;
    sm->token[sm->n++] = token;
    if (sm->n == KEYS_PENDING) flush(sm);
}

/* The arrays of one call: see ops.h. */
typedef struct {
    const rf_decoding *a;
    void *keys, *values;
    int32_t *buckets, *previous;
    const real *rotations, *q, *k, *v; // of the new tokens: q n h d, k and v n hk d
    real *out;                         // n h d
    const int64_t *rows, *positions;
    const int32_t *factors;
    size_t nf, columns;
} decode_arrays;

/* One thread's scratch. */
typedef struct {
    real *hash;    // columns
    uint64_t *met; // a bit for each token of the cache, if a key counts once in all rounds
} decode_scratch;

static size_t met_words(const rf_decoding *a) {
    return a->scope < RF_CHUNK || a->duplicates ? 0 : blocks_of(a->s, 64);
}

static size_t decode_scratch_bytes(const rf_decoding *a, size_t columns) {
    return bytes_add(bytes_of(columns, sizeof(real)), bytes_of(met_words(a), sizeof(uint64_t)));
}

static decode_scratch decode_scratch_place(const rf_decoding *a, size_t columns, void *at) {
    decode_scratch s = {.hash = take(&at, columns, sizeof(real))};
    s.met = met_words(a) ? take(&at, met_words(a), sizeof(uint64_t)) : NULL;
    return s;
}

/* The oldest token that the cache keeps of a text of n tokens. */
static size_t oldest_kept(const rf_decoding *a, size_t n) {
    return a->drop && n > a->s ? blocks_of(n - a->s, a->drop) * a->drop : 0;
}

/* ------------------------------------------------------------------------------- buckets ---- */

/* The bucket lists of one hash round of one head of one text. */
typedef struct {
    int32_t *buckets;  // k 2: the newest token of each bucket, and its size
    int32_t *previous; // s: the previous token of the same bucket
} hash_round;

/* The hash of lsh_hash.c, for one vector: change both. */
static int32_t decode_hash(const rf_decoding *a, const real *q, const real *rotation,
                           const int32_t *factors, size_t nf, size_t columns, real *restrict u) {
    memset(u, 0, columns * sizeof(real));
    for (size_t e = 0; e < a->d; e++) {
        const real x = q[e], *restrict row = rotation + e * a->r * columns;
#pragma omp simd
        for (size_t j = 0; j < columns; j++) u[j] += x * row[j];
    }
    int32_t id = 0, stride = 1;
    for (size_t f = 0; f < nf; f++) { // the first maximum wins, and u wins a tie against -u
        const size_t half = (size_t)factors[f] / 2;
        size_t high = 0, low = 0;
        for (size_t j = 1; j < half; j++) {
            if (u[j] > u[high]) high = j;
            if (u[j] < u[low]) low = j;
        }
        id += stride * (int32_t)(-u[low] > u[high] ? half + low : high);
        stride *= factors[f];
        u += half;
    }
    return id;
}

static void join_bucket(const hash_round *round, int32_t bucket, size_t token) {
    int32_t *b = round->buckets + 2 * bucket;
    round->previous[token] = b[0];
    b[0] = (int32_t)token;
    b[1]++;
}

/* Take the tokens before `oldest` out of the lists of a text of t tokens. A list is in the order of
   the text, so only its size changes. */
static void forget(const rf_decoding *a, const hash_round *round, size_t oldest, size_t t) {
    for (size_t j = 0; j < a->k; j++) {
        int32_t *b = round->buckets + 2 * j, token = b[0], kept = 0;
        for (; kept < b[1]; kept++, token = round->previous[token]) {
            const size_t age = (t - 1 - (size_t)token) % a->s; // 0 is the newest token
            if (t - 1 - age < oldest) break;
        }
        b[1] = kept;
    }
}

/* Attend to n tokens of a bucket, from `token` backwards. */
static void attend_chain(online_softmax *sm, const hash_round *round, int32_t token, size_t n) {
    for (; n > 0; n--, token = round->previous[token]) attend(sm, (size_t)token);
}

/* Attend to the whole bucket, or with bucket_cap to the query's own segment and the one before. */
static void attend_bucket(online_softmax *sm, const hash_round *round, int32_t bucket) {
    const size_t count = (size_t)round->buckets[2 * bucket + 1], cap = sm->a->cap;
    const size_t segment = cap ? (count - 1) / cap : 0;
    attend_chain(sm, round, round->buckets[2 * bucket],
                 segment > 1 ? count - (segment - 1) * cap : count);
}

/* The n oldest tokens of a bucket. */
static void attend_oldest(online_softmax *sm, const hash_round *round, int32_t bucket, size_t n) {
    int32_t token = round->buckets[2 * bucket];
    for (size_t i = n; i < (size_t)round->buckets[2 * bucket + 1]; i++)
        token = round->previous[token];
    attend_chain(sm, round, token, n);
}

/* Attend to the query's chunk of the sorted tokens and to those before it. As in Hugging Face's
   cache, the sorted tokens form a circle, and a window longer than the circle visits tokens
   repeatedly; within buckets, those of the own bucket count, once. */
static void attend_window(online_softmax *sm, const hash_round *round, int32_t bucket) {
    const rf_decoding *a = sm->a;
    const int32_t *buckets = round->buckets, k = (int32_t)a->k;
    // 1. the token's rank in sorted order, and how many tokens of its window are on either side
    size_t rank = 0;
    for (int32_t j = 0; j <= bucket; j++) rank += (size_t)buckets[2 * j + 1];
    size_t before = (rank - 1) % a->m + a->before * a->m;
    size_t after = (a->before + 1) * a->m - 1 - before;

    // 2. itself (the newest token is the last of its bucket) and the tokens before it
    attend(sm, sm->self);
    const size_t own = (size_t)buckets[2 * bucket + 1];
    size_t n = min_size(before, own - 1);
    attend_chain(sm, round, round->previous[sm->self], n);
    if (!a->across_buckets) {
        // around the circle, after all tokens of other buckets, the first of its bucket follow
        size_t others = 0;
        for (int32_t j = 0; j < k; j++) others += j == bucket ? 0 : (size_t)buckets[2 * j + 1];
        if (after > others) attend_oldest(sm, round, bucket, min_size(after - others, own - 1 - n));
        return;
    }
    before -= n;
    for (int32_t j = bucket; before > 0; before -= n) {
        j = j > 0 ? j - 1 : k - 1;
        n = min_size(before, (size_t)buckets[2 * j + 1]);
        attend_chain(sm, round, buckets[2 * j], n);
    }
    // 3. the tokens after it: the first ones of the next buckets
    for (int32_t j = bucket; after > 0; after -= n) {
        j = j + 1 < k ? j + 1 : 0;
        n = min_size(after, (size_t)buckets[2 * j + 1]);
        attend_oldest(sm, round, j, n);
    }
}

/* --------------------------------------------------------------------------------- heads ---- */

static void attend_range(online_softmax *sm, size_t from, size_t to, size_t ring) {
    for (size_t i = from; i < to; i++) attend(sm, i % ring);
}

/* All rounds of a head that hashes, for token t; returns how many rounds the softmax was taken
   over. */
static size_t attend_hashed(online_softmax *sm, const decode_arrays *x, size_t bh, size_t t,
                            real *u) {
    const rf_decoding *a = sm->a;
    const size_t oldest = oldest_kept(a, t + 1), columns = x->columns;
    const int all = a->scope == RF_CHUNK && t - oldest < a->m; // one chunk is full attention
    for (size_t r = 0; r < a->r; r++) {
        const size_t list = bh * a->r + r;
        const hash_round round = {x->buckets + list * a->k * 2, x->previous + list * a->s};
        const real *rotation = x->rotations + (bh % a->h * a->d * a->r + r) * columns;
        const int32_t bucket = decode_hash(a, sm->q, rotation, x->factors, x->nf, columns, u);
        if (oldest > oldest_kept(a, t)) forget(a, &round, oldest, t);
        join_bucket(&round, bucket, sm->self);
        if (a->scope == RF_BUCKET)
            attend_bucket(sm, &round, bucket);
        else if (!all)
            attend_window(sm, &round, bucket);
    }
    if (all) attend_range(sm, oldest, t + 1, a->s);
    return all ? 1 : a->r;
}

/* Heads of keys in the cache. */
static size_t key_heads(const rf_decoding *a) {
    return a->shared_qk ? a->h : a->hk;
}

/* Append the keys and values of one new token to the cache. */
static void append(const decode_arrays *x, size_t i) {
    const rf_decoding *a = x->a;
    const size_t d = a->d, kh = key_heads(a), row = (size_t)x->rows[i];
    const size_t slot = (size_t)x->positions[i] % a->s;
    for (size_t head = 0; head < kh; head++) {
        const real *k = (a->shared_qk ? x->q : x->k) + (i * kh + head) * d;
        const real scale = (real)a->scale * (a->shared_qk ? key_norm(k, d) : (real)1);
        cache_vector(a->storage, x->keys, (row * kh + head) * a->s + slot, k, scale, d);
    }
    for (size_t head = 0; head < a->hk; head++)
        cache_vector(a->storage, x->values, (row * a->hk + head) * a->s + slot,
                     x->v + (i * a->hk + head) * d, 1, d);
}

/* Attend with the query of one new token, whose key is in the cache. */
static void decode_head(rf_run *run, const decode_arrays *x, size_t i, size_t head,
                        decode_scratch scratch) {
    const rf_decoding *a = x->a;
    const size_t d = a->d, at = (i * a->h + head) * d, kh = key_heads(a);
    const size_t row = (size_t)x->rows[i], t = (size_t)x->positions[i];
    const size_t bh = row * a->h + head, value_head = head / (a->h / a->hk);
    const int local = a->scope == RF_LOCAL, hashes = a->scope >= RF_CHUNK;
    const size_t bytes = stored_bytes(a->storage);
    const void *keys = (char *)x->keys + (row * kh + head / (a->h / kh)) * a->s * d * bytes;
    const void *values = (char *)x->values + (row * a->hk + value_head) * a->s * d * bytes;
    online_softmax sm = {.a = a, .run = run, .q = x->q + at, .keys = keys, .values = values};
    // 1. attend
    sm.self = t % a->s;
    sm.met = scratch.met;
    if (sm.met) memset(sm.met, 0, blocks_of(min_size(t + 1, a->s), 64) * sizeof(uint64_t));
    sm.max = REAL_LOWEST;
    sm.out = x->out + at;
    memset(sm.out, 0, d * sizeof(real));
    size_t rounds = 1;
    if (local)
        attend_range(&sm, (t / a->m - min_size(t / a->m, a->before)) * a->m, t + 1, a->s);
    else if (!hashes)
        attend_range(&sm, oldest_kept(a, t + 1), t + 1, a->s);
    else
        rounds = attend_hashed(&sm, x, bh, t, scratch.hash);
    flush(&sm);
    // 2. normalise. A token that attended only to itself gets what a forward pass over all tokens
    // gives it: its value, not rounded as in the cache, or, in Hugging Face's model, that with
    // -1e5 + log n rounded
    const int hugging_face = a->scope == RF_CHUNK && a->duplicates && a->across_buckets;
    if (hashes && !hugging_face && !sm.others) {
        copy_row(sm.out, x->v + (i * a->hk + value_head) * d, d);
        return;
    }
    real share = 1 / sm.sum;
    if (hashes && !sm.others) {
        const real lse = rounds > 1 ? SCORE_SELF + (real)log((double)rounds) : SCORE_SELF;
        share = libm_exp(SCORE_SELF - lse) * (real)rounds / sm.sum;
    }
    for (size_t j = 0; j < d; j++) sm.out[j] *= share;
}

/* ------------------------------------------------------------------------------- the op ----- */

static size_t decode_attention_workspace(const rf_run *run, const rf_decoding *a, size_t columns) {
    const size_t width = bytes_of(bytes_mul(a->n, bytes_mul(a->h, a->d)), sizeof(real));
    const size_t kv_width = bytes_of(bytes_mul(a->n, bytes_mul(a->hk, a->d)), sizeof(real));
    const size_t rows = bytes_add(bytes_of(bytes_mul(a->n, a->c), sizeof(real)),
                                  bytes_mul(2, bytes_of(a->n, sizeof(real))));
    const size_t each = bytes_mul((size_t)run->workers, decode_scratch_bytes(a, columns));
    const size_t heads = bytes_mul(2, bytes_add(width, kv_width));
    return bytes_add(bytes_add(heads, rows), each);
}

static void decode_attention(rf_run *run, const rf_decoding *a, const real *x, const real *weight,
                             const real *bias, const rf_matrix *wq, const rf_matrix *wk,
                             const rf_matrix *wv, const rf_matrix *wo, const int32_t *num_buckets,
                             size_t nf, const real *rotations, void *keys, void *values,
                             int32_t *buckets, int32_t *previous, const int64_t *rows,
                             const int64_t *positions, real *y, size_t columns, void *scratch) {
    // 1. scratch
    const size_t n = a->n, c = a->c, width = a->h * a->d, kv_width = a->hk * a->d;
    real *norm = take(&scratch, n * c, sizeof(real));
    real *mean = take(&scratch, n, sizeof(real)), *rstd = take(&scratch, n, sizeof(real));
    real *q = take(&scratch, n * width, sizeof(real)),
         *out = take(&scratch, n * width, sizeof(real));
    real *k = take(&scratch, n * kv_width, sizeof(real));
    real *v = take(&scratch, n * kv_width, sizeof(real));
    const size_t each = decode_scratch_bytes(a, columns);
    const decode_arrays arrays = {a, keys, values, buckets,   previous,    rotations, q,      k,
                                  v, out,  rows,   positions, num_buckets, nf,        columns};

    // 2. layer norm and projections
    layer_norm_forward(run, x, weight, bias, a->eps, norm, mean, rstd, n, c);
    linear_small_batch(run, norm, wq, NULL, q, n, c, width);
    if (wk) linear_small_batch(run, norm, wk, NULL, k, n, c, kv_width);
    linear_small_batch(run, norm, wv, NULL, v, n, c, kv_width);
    if (a->theta > 0) {
        rotate(run, q, positions, a->theta, 1, q, n, a->h, a->d);
        if (wk) rotate(run, k, positions, a->theta, 1, k, n, a->hk, a->d);
    }
    // 3. the cache, for all heads before any attends; attention
#pragma omp parallel for num_threads(team(run, 4.0 * (double)(n * width))) schedule(static)
    for (size_t i = 0; i < n; i++) append(&arrays, i);
    const size_t window = a->scope == RF_FULL ? a->s : (a->before + 1) * a->m;
    const size_t keys_per_token = a->scope == RF_BUCKET ? 64 * a->r : window * max_size(1, a->r);
#pragma omp parallel for num_threads(team(run, 4.0 * (double)(n * width * keys_per_token)))        \
    schedule(static)
    for (size_t task = 0; task < n * a->h; task++)
        if (!stopped(run))
            decode_head(run, &arrays, task / a->h, task % a->h,
                        decode_scratch_place(a, columns, (char *)scratch + thread_index() * each));
    // 4. output projection and residual
    linear_small_batch(run, out, wo, NULL, norm, n, width, c);
    for (size_t i = 0; i < n * c; i++) y[i] += norm[i];
}
