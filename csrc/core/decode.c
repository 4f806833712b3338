/* decode.c: attention for one more token of each text, beside a cache of the tokens before it.

   The cache of a layer holds the keys, scaled and, where they are shared queries, normalised; the
   values; and, where the layer hashes, the buckets: of each its newest token and its size, and for
   each token the one that joined its bucket before it. So a token finds its bucket by walking from
   member to member, and joins it by two writes. A local layer keeps a ring of its window alone. */
#include "attention_exact.h"
#include "rows.h"

#define MET 128 // keys that are weighed at a time

/* The softmax of one query, on its way over the keys that it meets. */
typedef struct {
    const rf_decoding *a;
    rf_run *run;
    const real *q, *keys, *values; // d; s d of this head
    size_t self, others;           // the query's own token; how many keys were another
    size_t n, token[MET];
    real most, sum, *out; // out: d
} encounter;

static void weigh(encounter *e) {
    const size_t d = e->a->d;
    if (stopped(e->run)) e->n = 0; // a window may be long
    real score[MET + VEC_LANES];
    real most = e->most;
    for (size_t i = 0; i < e->n; i++) {
        score[i] = dot(e->q, e->keys + e->token[i] * d, d);
        if (e->a->scope != RF_LOCAL && e->token[i] == e->self) score[i] = SCORE_SELF;
        most = score[i] > most ? score[i] : most;
    }
    const real fade = exp1(e->most - most);
    e->sum *= fade;
    for (size_t j = 0; j < d; j++) e->out[j] *= fade;
    for (size_t i = e->n; i < round_up(e->n, VEC_LANES); i++) score[i] = most;
    for (size_t i = 0; i < e->n; i += VEC_LANES)
        vstore(score + i, vec_exp(vload(score + i) - most));
    for (size_t i = 0; i < e->n; i++) {
        const real p = score[i], *restrict v = e->values + e->token[i] * d;
        real *restrict out = e->out;
        e->sum += p;
#pragma omp simd
        for (size_t j = 0; j < d; j++) out[j] += p * v[j];
    }
    e->most = most;
    e->n = 0;
}

static inline void meet(encounter *e, size_t token) {
    e->others += token != e->self;
    e->token[e->n++] = token;
    if (e->n == MET) weigh(e);
}

/* The arrays of one call: see ops.h. */
typedef struct {
    const rf_decoding *a;
    real *keys, *values;
    int32_t *buckets, *previous;
    const real *rotations, *q, *k, *v; // q, k, v: n h d, of the new tokens
    real *out;                         // n h d
    const int64_t *rows, *positions;
    const int32_t *factors;
    size_t nf, columns;
} decode_arrays;

/* ------------------------------------------------------------------------------- buckets ---- */

/* One hash round of one head of one text. */
typedef struct {
    int32_t *buckets;  // k 2: the newest token, and how many there are
    int32_t *previous; // s: the token that joined the same bucket before
} hash_round;

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

static void join(const hash_round *round, int32_t bucket, size_t token) {
    int32_t *b = round->buckets + 2 * bucket;
    round->previous[token] = b[0];
    b[0] = (int32_t)token;
    b[1]++;
}

/* Meet `n` tokens of a bucket, from this one back. */
static void meet_back(encounter *e, const hash_round *round, int32_t token, size_t n) {
    for (; n > 0; n--, token = round->previous[token]) meet(e, (size_t)token);
}

/* The whole bucket, or where it is capped the query's own segment and the one before. */
static void meet_bucket(encounter *e, const hash_round *round, int32_t bucket) {
    const size_t count = (size_t)round->buckets[2 * bucket + 1], cap = e->a->cap;
    const size_t segment = cap ? (count - 1) / cap : 0;
    meet_back(e, round, round->buckets[2 * bucket],
              segment > 1 ? count - (segment - 1) * cap : count);
}

/* The query's chunk of the sorted tokens and those before, as Hugging Face's cache has them: the
   sorted tokens lie on a circle, and a window longer than it goes round again. */
static void meet_window(encounter *e, const hash_round *round, int32_t bucket) {
    const rf_decoding *a = e->a;
    const int32_t *buckets = round->buckets, k = (int32_t)a->k;
    size_t rank = 0;
    for (int32_t j = 0; j <= bucket; j++) rank += (size_t)buckets[2 * j + 1];
    size_t before = (rank - 1) % a->m + a->before * a->m;
    size_t after = (a->before + 1) * a->m - 1 - before;

    // the newest token is the last of its bucket
    meet(e, e->self);
    size_t n = min_size(before, (size_t)buckets[2 * bucket + 1] - 1);
    meet_back(e, round, round->previous[e->self], n);
    before -= n;
    for (int32_t j = bucket; before > 0; before -= n) {
        j = j > 0 ? j - 1 : k - 1;
        n = min_size(before, (size_t)buckets[2 * j + 1]);
        meet_back(e, round, buckets[2 * j], n);
    }
    for (int32_t j = bucket; after > 0; after -= n) {
        j = j + 1 < k ? j + 1 : 0;
        const size_t count = (size_t)buckets[2 * j + 1];
        n = min_size(after, count);
        int32_t token = buckets[2 * j];
        for (size_t i = n; i < count; i++) token = round->previous[token];
        meet_back(e, round, token, n);
    }
}

/* --------------------------------------------------------------------------------- heads ---- */

static void meet_range(encounter *e, size_t from, size_t to, size_t ring) {
    for (size_t i = from; i < to; i++) meet(e, i % ring);
}

/* All rounds of a head that hashes; returns how many softmaxes their lse was made of. */
static size_t meet_hashed(encounter *e, const decode_arrays *x, size_t bh, real *u) {
    const rf_decoding *a = e->a;
    const size_t t = e->self, columns = x->columns;
    const int all = a->scope == RF_CHUNK && t < a->m; // one chunk is full attention
    for (size_t r = 0; r < a->r; r++) {
        const size_t list = bh * a->r + r;
        const hash_round round = {x->buckets + list * a->k * 2, x->previous + list * a->s};
        const real *rotation = x->rotations + (bh % a->h * a->d * a->r + r) * columns;
        const int32_t bucket = decode_hash(a, e->q, rotation, x->factors, x->nf, columns, u);
        join(&round, bucket, t);
        if (a->scope == RF_BUCKET)
            meet_bucket(e, &round, bucket);
        else if (!all)
            meet_window(e, &round, bucket);
    }
    if (all) meet_range(e, 0, t + 1, a->s);
    return all ? 1 : a->r;
}

/* The key and value of a new token join the cache, and its query meets what it may see. */
static void decode_head(rf_run *run, const decode_arrays *x, size_t i, size_t head, real *u) {
    const rf_decoding *a = x->a;
    const size_t d = a->d, at = (i * a->h + head) * d;
    const size_t bh = (size_t)x->rows[i] * a->h + head, t = (size_t)x->positions[i];
    const int local = a->scope == RF_LOCAL;
    real *keys = x->keys + bh * a->s * d, *values = x->values + bh * a->s * d;
    const real *q = x->q + at, *k = local ? x->k + at : q;
    const real scale = (real)a->scale * (local ? (real)1 : key_norm(q, d));
    const size_t slot = t % a->s; // of the ring; where it is none, s is more than t
    for (size_t j = 0; j < d; j++) keys[slot * d + j] = k[j] * scale;
    copy_row(values + slot * d, x->v + at, d);

    encounter e = {.a = a, .run = run, .q = q, .keys = keys, .values = values, .self = local ? slot : t};
    e.most = (real)(sizeof(real) == 4 ? -FLT_MAX : -DBL_MAX);
    e.out = x->out + at;
    memset(e.out, 0, d * sizeof(real));
    size_t rounds = 1;
    if (local)
        meet_range(&e, (t / a->m - min_size(t / a->m, a->before)) * a->m, t + 1, a->s);
    else
        rounds = meet_hashed(&e, x, bh, u);
    weigh(&e);
    // a token that met itself alone is what a forward pass over all tokens makes of it: its value,
    // or where Hugging Face's model has the scope, that with -1e5 + log n rounded
    if (a->scope == RF_BUCKET && !e.others) {
        copy_row(e.out, x->v + at, d);
        return;
    }
    real share = 1 / e.sum;
    if (!local && !e.others) {
        const real lse = rounds > 1 ? SCORE_SELF + (real)log((double)rounds) : SCORE_SELF;
        share = exact_exp(SCORE_SELF - lse) * (real)rounds / e.sum;
    }
    for (size_t j = 0; j < d; j++) e.out[j] *= share;
}

/* ------------------------------------------------------------------------------- the op ----- */

static size_t decode_attention_workspace(const rf_decoding *a, size_t columns, int workers) {
    const size_t width = bytes_of(bytes_mul(a->n, bytes_mul(a->h, a->d)), sizeof(real));
    const size_t rows = bytes_add(bytes_of(bytes_mul(a->n, a->c), sizeof(real)),
                                  bytes_mul(2, bytes_of(a->n, sizeof(real))));
    const size_t each = bytes_mul((size_t)workers, bytes_of(columns, sizeof(real)));
    return bytes_add(bytes_add(bytes_mul(4, width), rows), each);
}

static void decode_attention(rf_run *run, real *y, real *keys, real *values, int32_t *buckets,
                             int32_t *previous, const real *x, const real *weight, const real *bias,
                             const real *wq, const real *wk, const real *wv, const real *wo,
                             const real *rotations, const int64_t *rows, const int64_t *positions,
                             const rf_decoding *a, const int32_t *factors, size_t nf,
                             size_t columns, void *scratch) {
    const size_t n = a->n, c = a->c, width = a->h * a->d;
    real *norm = take(&scratch, n * c, sizeof(real));
    real *mean = take(&scratch, n, sizeof(real)), *rstd = take(&scratch, n, sizeof(real));
    real *q = take(&scratch, n * width, sizeof(real)), *k = take(&scratch, n * width, sizeof(real));
    real *v = take(&scratch, n * width, sizeof(real)),
         *out = take(&scratch, n * width, sizeof(real));
    const size_t each = bytes_of(columns, sizeof(real)) / sizeof(real);
    real *hashes = scratch;
    const decode_arrays arrays = {a, keys, values, buckets,   previous, rotations, q,      k,
                                  v, out,  rows,   positions, factors,  nf,        columns};

    layer_norm_forward(run, norm, mean, rstd, x, weight, bias, n, c, a->eps);
    linear_few(run, q, norm, wq, NULL, n, c, width);
    if (wk) linear_few(run, k, norm, wk, NULL, n, c, width);
    linear_few(run, v, norm, wv, NULL, n, c, width);
    const size_t keys_met =
        a->scope == RF_BUCKET ? 64 * a->r : (a->before + 1) * a->m * max_size(1, a->r);
#pragma omp parallel for num_threads(team(run, 4.0 * (double)(n * width * keys_met)))              \
    schedule(static)
    for (size_t task = 0; task < n * a->h; task++)
        if (!stopped(run))
            decode_head(run, &arrays, task / a->h, task % a->h, hashes + thread_index() * each);
    linear_few(run, norm, out, wo, NULL, n, width, c);
    for (size_t i = 0; i < n * c; i++) y[i] += norm[i];
}
