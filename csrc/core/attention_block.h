/* attention_block.h: up to BLOCK queries against up to BLOCK keys.

   A block gathers the rows of a few tokens into dense, padded scratch, so that the products below
   are bare tiles whatever the order and the strides of the arrays. Scores are kept transposed, a
   row a key and a lane a query: then maxima, sums and masks run down the lanes with no horizontal
   step, and the same scores are the left operand of the next product as they stand.

   Tokens of a block stand in order of position. The keys that the causal mask leaves to a group of
   lanes are therefore a prefix (a staircase), and whole tiles beyond it are never computed. */
#ifndef RF_ATTENTION_BLOCK_H
#define RF_ATTENTION_BLOCK_H

#include "gemm.h"
#include "order.h"
#include "philox.h"

#define BLOCK 64
#define LANE_GROUPS (BLOCK / VEC_LANES)

#define SCORE_HIDDEN (-(real)1e9)  // Hugging Face's constants: a masked key,
#define SCORE_SELF (-(real)1e5)    // and, with shared_qk, the query itself
#define SCORE_NOTHING (-(real)5e4) // a maximum below this: no other key, or only dreadful ones
/* Stands for the log-sum-exp of a row that saw itself, and that is all: SCORE_SELF in natural units
   and back is not always SCORE_SELF. */
#define LSE_ITSELF (-(real)FLT_MAX)

/* The arrays of one call. `dout` is NULL in a forward. */
typedef struct {
    const rf_attention *a;
    layout order;
    const real *q, *k, *v, *dout, *lse, *delta;
    const uint8_t *mask;
    const int32_t *buckets;
    rf_strides sq, sk, sv, sdout;
    size_t dp;       // d, padded to whole vectors
    int whole_heads; // a task is a head
} attention_arrays;

typedef struct {
    size_t bh, round, start; // which tokens: places start.. of the round's order
    int has_queries, has_keys;
    int pinned;            // an owner's: not to be replaced now
    int in_order;          // the tokens are neighbours, and none is hidden
    uint64_t used;         // when it was last asked for
    size_t nq, nk;         // queries and keys
    size_t visible;        // keys [0, visible) are not hidden by the attention mask
    lane earliest, latest; // positions of the queries
    lane qpos[BLOCK], kpos[BLOCK];
    lane qbucket[BLOCK], kbucket[BLOCK]; // over all rounds; only if buckets are compared
    uint64_t drop[BLOCK];                // keys of the queries' dropout bits
    real kscale[BLOCK];                  // what makes a raw key row the key, times the scale
    real kunit[BLOCK];                   // the same for scores in units of log 2
    real lse[BLOCK], delta[BLOCK];       // backward; lse in units of log 2
    const real *q_rows, *k_rows, *v_rows, *do_rows; // where rows are, dp apart: NULL, in place, or
    real *q_space, *k_space, *v_space, *do_space;   // copied here
    real *q_columns, *do_columns;
} block;

static inline int is_self_attention(const rf_attention *a) {
    return a->scope != RF_FULL || a->shared_qk;
}

/* Reals of a block's arrays. */
static size_t block_reals(size_t dp, int backward) {
    return bytes_mul(backward ? 6 : 4, bytes_mul(BLOCK, dp));
}

/* Nothing writes to the padding of a row. */
static void block_place(block *x, real *at, size_t d, size_t dp, int backward) {
    real **parts[] = {&x->q_columns, &x->q_space,    &x->k_space,
                      &x->v_space,   &x->do_columns, &x->do_space};
    const size_t arrays = backward ? 6 : 4;
    if (d < dp) memset(at, 0, arrays * BLOCK * dp * sizeof(real));
    memset(x, 0, sizeof *x);
    x->bh = SIZE_MAX;
    for (size_t i = 0; i < arrays; i++) *parts[i] = at + i * BLOCK * dp;
}

static inline const real *head_of(const real *base, rf_strides s, const rf_attention *a,
                                  size_t bh) {
    return base + (ptrdiff_t)(bh / a->h) * s.b + (ptrdiff_t)(bh % a->h) * s.h;
}

static inline const real *row_of(const real *base, rf_strides s, const rf_attention *a, size_t bh,
                                 size_t token) {
    return head_of(base, s, a, bh) + (ptrdiff_t)token * s.t;
}

static inline int is_hidden(const attention_arrays *x, size_t bh, size_t token) {
    return x->mask && !x->mask[bh / x->a->h * x->a->tk + token];
}

static inline size_t token_at(const attention_arrays *x, size_t bh, size_t round, size_t place) {
    return x->order.order ? x->order.order[(bh * x->a->r + round) * x->a->t + place] : place;
}

static inline lane bucket_of(const attention_arrays *x, size_t bh, size_t round, size_t token) {
    const rf_attention *a = x->a;
    return (lane)(round * (a->k + 1)) + x->buckets[(bh * a->r + round) * a->t + token];
}

static inline real inverse_root(real mean_square) {
    return 1 / (sizeof(real) == sizeof(float) ? (real)sqrtf((float)mean_square)
                                              : (real)sqrt((double)mean_square));
}

/* rho = 1 / rms(x): a shared key is x rho. */
static inline real key_norm(const real *x, size_t d) {
    return inverse_root(dot(x, x, d) / (real)d + (real)1e-6);
}

static void block_tokens(const attention_arrays *x, block *blk, size_t places) {
    const rf_attention *a = x->a;
    const size_t bh = blk->bh;
    blk->nq = blk->start < a->t ? min_size(places, a->t - blk->start) : 0;
    blk->nk = blk->start < a->tk ? min_size(places, a->tk - blk->start) : 0;
    for (size_t i = 0; i < BLOCK; i++) blk->qpos[i] = blk->kpos[i] = -1;

    // keys hidden by the mask go last, so that the others are a prefix in order of position
    lane hidden[BLOCK];
    size_t hiding = 0;
    blk->visible = 0;
    for (size_t i = 0; i < blk->nk; i++) {
        const size_t token = token_at(x, bh, blk->round, blk->start + i);
        if (is_hidden(x, bh, token))
            hidden[hiding++] = (lane)token;
        else
            blk->kpos[blk->visible++] = (lane)token;
    }
    for (size_t i = 0; i < hiding; i++) blk->kpos[blk->visible + i] = hidden[i];

    blk->in_order = !x->order.order && hiding == 0;

    // queries and keys of self-attention are the same tokens, one list for both
    for (size_t i = 0; i < blk->nq; i++)
        blk->qpos[i] = is_self_attention(a) ? blk->kpos[i] : (lane)(blk->start + i);
    blk->earliest = (lane)token_at(x, bh, blk->round, blk->start);
    blk->latest = (lane)token_at(x, bh, blk->round, blk->start + max_size(blk->nq, 1) - 1);
    if (!a->across_buckets)
        for (size_t i = 0; i < blk->nk; i++)
            blk->kbucket[i] = blk->qbucket[i] = bucket_of(x, bh, blk->round, (size_t)blk->kpos[i]);
}

/* Rows of n tokens, dp apart. A whole block of neighbours is used where it lies, if its rows touch:
   rows a power of two apart would fight for the same ways of the cache. */
static const real *block_rows(const attention_arrays *x, const block *blk, const lane *tokens,
                              size_t n, const real *base, rf_strides s, real *space) {
    const size_t d = x->a->d, dp = x->dp;
    const real *head = head_of(base, s, x->a, blk->bh);
    if (blk->in_order && n == BLOCK && d == dp && s.t == (ptrdiff_t)d)
        return head + (ptrdiff_t)tokens[0] * s.t;
    for (size_t i = 0; i < n; i++) copy_row(space + i * dp, head + (ptrdiff_t)tokens[i] * s.t, d);
    return space;
}

/* The same rows as columns, a token to a lane. Where no product reads them as rows, they go from
   the array into columns: `rows` is NULL then. */
static void block_columns(const attention_arrays *x, const block *blk, const lane *tokens, size_t n,
                          const real *base, rf_strides s, const real *rows, real *columns) {
    const real *head = head_of(base, s, x->a, blk->bh);
    for (size_t i = 0; i < n; i += VEC_LANES) {
        const real *lines[VEC_LANES]; // lanes beyond the last token: that one again
        for (size_t j = 0; j < VEC_LANES; j++) {
            const size_t at = min_size(i + j, n - 1);
            lines[j] = rows ? rows + at * x->dp : head + (ptrdiff_t)tokens[at] * s.t;
        }
        transpose_rows(columns + i, BLOCK, lines, x->dp);
    }
}

/* Queries as columns, and as rows where a backward multiplies by them or where they are padded. */
static void query_columns(const attention_arrays *x, block *blk, const lane *tokens, size_t n) {
    if (x->dout || x->a->d < x->dp)
        blk->q_rows = block_rows(x, blk, tokens, n, x->q, x->sq, blk->q_space);
    block_columns(x, blk, tokens, n, x->q, x->sq, blk->q_rows, blk->q_columns);
}

/* What makes a raw key row the key, times the scale. A shared key is normalised: the columns of the
   queries are at hand for that, a key to a lane. */
static void key_scales(const attention_arrays *x, block *blk) {
    const rf_attention *a = x->a;
    for (size_t i = 0; i < BLOCK; i++) blk->kscale[i] = (real)a->scale;
    if (a->shared_qk) {
        const size_t rows = round_up(blk->nk, VEC_LANES);
        real mean[BLOCK];
        for (size_t i = 0; i < rows; i += VEC_LANES) {
            vec sum[2] = {{0}, {0}};
            for (size_t j = 0; j < x->dp; j += 2) {
                const vec even = vload(blk->q_columns + j * BLOCK + i);
                const vec odd = vload(blk->q_columns + (j + 1) * BLOCK + i);
                sum[0] += even * even, sum[1] += odd * odd;
            }
            vstore(mean + i, (sum[0] + sum[1]) / (real)a->d + (real)1e-6);
        }
        for (size_t i = 0; i < rows; i++) blk->kscale[i] *= inverse_root(mean[i]);
    }
    for (size_t i = 0; i < BLOCK; i++) blk->kunit[i] = blk->kscale[i] * LOG2_E;
}

/* Shared queries come with their keys. */
static void block_keys(const attention_arrays *x, block *blk) {
    const rf_attention *a = x->a;
    if (a->shared_qk) {
        query_columns(x, blk, blk->kpos, blk->nk);
        blk->k_rows = blk->q_rows;
    } else {
        blk->k_rows = block_rows(x, blk, blk->kpos, blk->nk, x->k, x->sk, blk->k_space);
    }
    blk->v_rows = block_rows(x, blk, blk->kpos, blk->nk, x->v, x->sv, blk->v_space);
    blk->has_keys = 1;
    key_scales(x, blk);
}

static void block_queries(const attention_arrays *x, block *blk) {
    const rf_attention *a = x->a;
    if (!a->shared_qk) query_columns(x, blk, blk->qpos, blk->nq);
    if (a->dropout > 0)
        for (size_t i = 0; i < blk->nq; i++)
            blk->drop[i] =
                row_key(a->key, (uint32_t)blk->bh, (uint32_t)blk->round, (uint32_t)blk->qpos[i]);

    if (x->dout) {
        for (size_t i = 0; i < BLOCK; i++) blk->lse[i] = (real)(sizeof(real) == 4 ? 3e38 : 1e308);
        for (size_t i = 0; i < blk->nq; i++) {
            const size_t token = (size_t)blk->qpos[i];
            const real lse = x->lse[blk->bh * a->t + token];
            // rows that saw nothing are done elsewhere: a huge lse makes every probability 0 here
            if (lse != -(real)INFINITY) blk->lse[i] = lse == LSE_ITSELF ? SCORE_SELF : lse * LOG2_E;
            blk->delta[i] = x->delta[blk->bh * a->t + token];
        }
        blk->do_rows = block_rows(x, blk, blk->qpos, blk->nq, x->dout, x->sdout, blk->do_space);
        block_columns(x, blk, blk->qpos, blk->nq, x->dout, x->sdout, blk->do_rows, blk->do_columns);
    }
    blk->has_queries = 1;
}

/* --------------------------------------------------------------------------- prefetching ---- */

/* Rows that will be wanted and lie anywhere, asked for by the tiles in between: each in turn is
   granted some lines of those that are left. */
typedef struct {
    line_list lines, granted;
    size_t next;
} wish_list;

#define WISHES (7 * BLOCK) // rows: q, k, v, dout, dq, dk and dv of a block

static size_t wish_lines(size_t d) {
    return bytes_add(bytes_mul(WISHES, lines_most(d)), 7);
}

/* The lines that a tile of so many steps is to ask for. */
static inline const line_list *grant_wishes(wish_list *w, size_t steps) {
    const size_t n = min_size(steps / AHEAD_STEPS, w->lines.count - w->next);
    w->granted = (line_list){w->lines.line + w->next, n, n};
    w->next += n;
    return &w->granted;
}

/* Asks for a few more, where there is no tile for a while. */
static ALWAYS_INLINE void grant_more(wish_list *w, size_t n) {
    const size_t end = min_size(w->lines.count, w->next + n);
    for (; w->next < end; w->next++) __builtin_prefetch(w->lines.line[w->next], 0, 2);
}

static inline void forget_wishes(wish_list *w) {
    w->lines.count = w->next = 0;
}

/* ---------------------------------------------------- the blocks that a thread has at hand ---- */

typedef struct {
    block *blocks;
    size_t count;
    uint64_t clock;
} block_cache;

/* The block at `start`, with its keys and, if asked for, its queries: found, or gathered in place
   of the one not asked for longest. */
static block *block_get(const attention_arrays *x, block_cache *cache, size_t bh, size_t round,
                        size_t start, size_t places, int queries) {
    block *found = NULL, *oldest = NULL;
    for (size_t i = 0; i < cache->count && !found; i++) {
        block *blk = cache->blocks + i;
        if (blk->bh == bh && blk->round == round && blk->start == start) found = blk;
        if (!blk->pinned && (!oldest || blk->used < oldest->used)) oldest = blk;
    }
    if (!found) {
        found = oldest;
        found->bh = bh, found->round = round, found->start = start;
        found->has_keys = found->has_queries = 0;
        block_tokens(x, found, places);
    }
    found->used = ++cache->clock;
    if (!found->has_keys) block_keys(x, found);
    if (queries && !found->has_queries) block_queries(x, found);
    return found;
}

/* -------------------------------------------------------------- scores of a pair of blocks ---- */

/* For each group of VEC_LANES queries: keys [0, low) are plain, [low, mid) are compared by
   position, [mid, high) are plain, and from `high` on every key is masked. */
typedef struct {
    size_t groups, most; // most: the largest `high`
    size_t low[LANE_GROUPS], mid[LANE_GROUPS], high[LANE_GROUPS];
    lane seen[BLOCK]; // how many keys each query reaches: none beyond has a score
} reach;

static void find_reach(reach *r, const rf_attention *a, const block *q, const block *k) {
    const size_t visible = k->visible;
    const int compares = !a->across_buckets || !a->duplicates;
    r->groups = blocks_of(q->nq, VEC_LANES);
    r->most = 0;
    if (!visible || !q->nq || (a->causal && k->kpos[0] > q->latest)) return;
    for (size_t g = 0; g < r->groups; g++) r->low[g] = r->mid[g] = r->high[g] = visible;
    for (size_t i = 0; i < BLOCK; i++) r->seen[i] = (lane)visible;
    const int all_plain = (!a->causal && !a->shared_qk) || k->kpos[visible - 1] < q->earliest;
    if (all_plain && !compares) {
        r->most = visible;
        return;
    }

    // a block that meets itself, nothing hidden: each query sees the keys up to its own
    const int itself = q == k && visible == k->nk && visible == q->nq;
    for (size_t i = 0; i < r->groups * VEC_LANES && itself; i++)
        r->seen[i] = i < visible ? (lane)i + 1 : 0;
    for (size_t g = 0; g < r->groups && !itself; g++) {
        ivec seen = {0};
        const ivec positions = iload(q->qpos + g * VEC_LANES);
        for (size_t i = 0; i < visible; i++) seen -= (k->kpos[i] - (ivec){0}) <= positions;
        memcpy(r->seen + g * VEC_LANES, &seen, sizeof seen);
    }
    for (size_t g = 0; g < r->groups; g++) {
        const size_t end = min_size(q->nq, (g + 1) * VEC_LANES);
        lane least = (lane)visible, most = 0;
        for (size_t i = g * VEC_LANES; i < end; i++) {
            least = r->seen[i] < least ? r->seen[i] : least;
            most = r->seen[i] > most ? r->seen[i] : most;
        }
        // a query itself, if it is here, is the last key that it sees
        const size_t before = a->shared_qk && least > 0 ? (size_t)least - 1 : (size_t)least;
        r->high[g] = a->causal ? (size_t)most : visible;
        r->low[g] = compares ? 0 : before;
        r->mid[g] = compares ? r->high[g] : (size_t)most;
        r->most = max_size(r->most, r->high[g]);
        for (size_t i = g * VEC_LANES; i < end && !a->causal; i++) r->seen[i] = (lane)visible;
    }
}

/* The first group of lanes that sees key i or a later one of its tile. */
static inline size_t first_group(const reach *r, size_t i) {
    size_t g = 0;
    while (g + 1 < r->groups && r->high[g] <= i) g++;
    return g;
}

/* c[key][query] = keys times `columns` (queries), for the tiles that the staircase needs. Keys
   stand by rows, dp apart, or by columns. */
static void staircase_product(real *c, const reach *r, const real *keys, int by_rows,
                              const real *columns, size_t d, size_t dp, wish_list *wishes) {
    const size_t ld = by_rows ? dp : BLOCK;
    for (size_t i = 0, mr; i < r->most; i += mr) {
        mr = tile_height(r->most - i);
        for (size_t g = first_group(r, i); g < r->groups; g += GEMM_NV) {
            const int narrow = g + 1 == r->groups; // done before a line has come
            tile_for(mr, by_rows, (r->groups - g) * VEC_LANES)(
                d, by_rows ? keys + i * dp : keys + i, ld, columns + g * VEC_LANES, BLOCK,
                c + i * BLOCK + g * VEC_LANES, BLOCK, 0, grant_wishes(wishes, narrow ? 0 : d));
        }
    }
}

/* Raw products of queries and keys: where keys are shared and not there as rows, their columns are
   those of the queries. */
static void raw_scores(real *s, const attention_arrays *x, const reach *r, const block *q,
                       const block *k, wish_list *wishes) {
    const int by_rows = k->k_rows != NULL;
    staircase_product(s, r, by_rows ? k->k_rows : k->q_columns, by_rows, q->q_columns, x->a->d,
                      x->dp, wishes);
}

/* Scores are in units of log 2. A plain one is its product times kunit, wherever it is needed; the
   compared ones, keys [low, mid), are written in place of their products. */
static inline vec plain_most(const real *s, const real *kunit, size_t i0, size_t i1, vec most) {
    vec m[4] = {most, most, most, most}; // a maximum takes as long as four loads
    size_t i = i0;
    for (; i + 4 <= i1; i += 4)
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++) m[j] = vmax(vload(s + (i + j) * BLOCK) * kunit[i + j], m[j]);
    for (; i < i1; i++) m[0] = vmax(vload(s + i * BLOCK) * kunit[i], m[0]);
    return vmax(vmax(m[0], m[1]), vmax(m[2], m[3]));
}

static inline vec compared_scores(real *s, const attention_arrays *x, const block *q,
                                  const block *k, size_t group, size_t i0, size_t i1, vec most) {
    const rf_attention *a = x->a;
    const ivec positions = iload(q->qpos + group * VEC_LANES);
    const ivec buckets = iload(q->qbucket + group * VEC_LANES);
    for (size_t i = i0; i < i1; i++) {
        const ivec at = k->kpos[i] - (ivec){0};
        vec score = vload(s + i * BLOCK) * k->kunit[i];
        if (a->causal) score = vselect(at <= positions, score, vset1(SCORE_HIDDEN));
        if (!a->across_buckets)
            score = vselect(k->kbucket[i] - (ivec){0} == buckets, score, vset1(SCORE_HIDDEN));
        if (a->shared_qk) score = vselect(at == positions, vset1(SCORE_SELF), score);
        if (!a->duplicates)
            for (size_t j = 0; j < VEC_LANES; j++)
                if (score[j] > SCORE_HIDDEN / 2 && group * VEC_LANES + j < q->nq)
                    score[j] -=
                        LOG2_E * (real)log((double)meetings(&x->order, x->buckets, q->bh,
                                                            (size_t)positions[j], (size_t)at[0]));
        vstore(s + i * BLOCK, score);
        most = vmax(score, most);
    }
    return most;
}

/* Rows [high, most) of a group: masked, and read by tiles that other groups share. */
static inline void clear_beyond(real *s, const reach *r, size_t g) {
    for (size_t i = r->high[g]; i < r->most; i++) vstore(s + i * BLOCK, (vec){0});
}

/* What dropout multiplies the probabilities of one key by: 0, or 1 / (1 - p). */
static inline vec drop_factors(const rf_attention *a, const block *q, lane key_position,
                               size_t slot, size_t g) {
    const uint32_t threshold = drop_threshold(a->dropout);
    const real keep = drop_scale(a->dropout);
    vec f = {0};
    for (size_t j = 0; j < VEC_LANES; j++)
        if (pair_bits(q->drop[g * VEC_LANES + j], (uint32_t)key_position, (uint32_t)slot) >=
            threshold)
            f[j] = keep;
    return f;
}

/* How many keys any of the queries [i, i + mr) reaches: the depth of their products. */
static inline size_t tile_depth(const reach *r, size_t i, size_t mr) {
    lane depth = 0;
    for (size_t j = i; j < i + mr; j++) depth = r->seen[j] > depth ? r->seen[j] : depth;
    return (size_t)depth;
}

/* out (queries x dp) (+)= s' rows: s as the left operand by columns, each tile as deep as its
   queries see. */
static void queries_product(real *out, const reach *r, const real *s, const real *rows, size_t nq,
                            size_t dp, int add, wish_list *wishes) {
    for (size_t i = 0, mr; i < nq; i += mr) {
        mr = tile_height(nq - i);
        const size_t depth = tile_depth(r, i, mr);
        for (size_t j = 0; j < dp; j += GEMM_NR)
            tile_for(mr, 0, dp - j)(depth, s + i, BLOCK, rows + j, dp, out + i * dp + j, dp, add,
                                    grant_wishes(wishes, depth));
    }
}

/* out (keys x dp) += s rows, where rows are queries: from the first query that sees the tile. */
static void keys_product(real *out, const reach *r, const real *s, const real *rows, size_t nq,
                         size_t dp) {
    for (size_t i = 0, mr; i < r->most; i += mr) {
        mr = tile_height(r->most - i);
        size_t from = first_group(r, i) * VEC_LANES;
        while (from < nq && r->seen[from] <= (lane)i) from++;
        for (size_t j = 0; j < dp; j += GEMM_NR)
            tile_for(mr, 1, dp - j)(nq - from, s + i * BLOCK + from, BLOCK, rows + from * dp + j,
                                    dp, out + i * dp + j, dp, 1, &nothing_ahead);
    }
}

#endif
