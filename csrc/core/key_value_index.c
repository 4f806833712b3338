/* key_value_index.c: attention of the newest tokens of a text to some of those before them: an
   index of hash buckets finds them. Buckets are linked lists, as in decode.c, whose softmax over
   keys that arrive one by one this uses. */

/* One text's keys of one head, and what an index knows of them. */
typedef struct {
    const int32_t *newest, *previous; // r k, r s
    const uint8_t *real;              // s, or NULL
    size_t r, k, s;
} indexed_head;

static inline int is_real(const indexed_head *x, size_t token) {
    return !x->real || x->real[token];
}

/* Attend to what the query of token p finds: ids has its bucket of each round, t apart. */
static void attend_indexed(online_softmax *sm, const indexed_head *x, const int64_t *ids, size_t t,
                           size_t p, size_t window, size_t sinks) {
    // 1. the first tokens and the last ones
    for (size_t i = 0; i <= p && sinks > 0; i++)
        if (is_real(x, i)) {
            attend(sm, i);
            sinks--;
        }
    for (size_t i = p - min_size(p, window); i <= p; i++)
        if (is_real(x, i)) attend(sm, i);
    // 2. the buckets, whose tokens are real, from the newest on
    for (size_t r = 0; r < x->r; r++) {
        const int32_t *previous = x->previous + r * x->s;
        int32_t token = x->newest[r * x->k + (size_t)ids[r * t]];
        for (; token >= 0; token = previous[token])
            if ((size_t)token <= p) attend(sm, (size_t)token);
    }
}

static size_t index_attention_workspace(const rf_run *run, size_t s) {
    return bytes_mul((size_t)run->workers, bytes_of(blocks_of(s, 64), sizeof(uint64_t)));
}

static void index_attention(rf_run *run, const real *q, const real *keys, const real *values,
                            const uint8_t *attention_mask, const int32_t *newest,
                            const int32_t *previous, const int64_t *ids, size_t length,
                            size_t window, size_t sinks, double softcap, real *out, real *lse,
                            int32_t *found, size_t b, size_t h, size_t hk, size_t t, size_t d,
                            size_t s, size_t r, size_t k, void *scratch) {
    const rf_decoding a = {.d = d, .softcap = softcap, .storage = RF_REALS};
    const size_t each = bytes_of(blocks_of(s, 64), sizeof(uint64_t));
    const double work = 4.0 * (double)(b * h * t * d) * (double)(window + sinks + 32 * r);
#pragma omp parallel for num_threads(team(run, work)) schedule(static)
    for (size_t task = 0; task < b * h * t; task++) {
        if (stopped(run)) continue;
        const size_t bh = task / t, text = bh / h, p = length - t + task % t;
        const size_t kv = text * hk + bh % h / (h / hk);
        const indexed_head head = {newest + kv * r * k,
                                   previous + kv * r * s,
                                   attention_mask ? attention_mask + text * s : NULL,
                                   r,
                                   k,
                                   s};
        online_softmax sm = {.a = &a, .run = run, .q = q + task * d, .max = REAL_LOWEST};
        sm.keys = keys + kv * s * d, sm.values = values + kv * s * d;
        sm.self = SIZE_MAX; // a query counts its own token, too
        sm.met = (uint64_t *)((char *)scratch + thread_index() * each);
        sm.out = out + task * d;
        memset(sm.met, 0, blocks_of(p + 1, 64) * sizeof(uint64_t));
        memset(sm.out, 0, d * sizeof(real));
        attend_indexed(&sm, &head, ids + bh * r * t + task % t, t, p, window, sinks);
        flush(&sm);
        found[task] = (int32_t)sm.others;
        lse[task] = sm.others ? sm.max + (real)log((double)sm.sum) : -(real)INFINITY;
        const real share = sm.others ? 1 / sm.sum : 0;
        for (size_t j = 0; j < d; j++) sm.out[j] *= share;
    }
}
