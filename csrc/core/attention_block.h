/* attention_block.h: up to BLOCK queries against up to BLOCK keys.

   A block gathers the rows of up to BLOCK tokens into dense, padded scratch, so that the products
   below are plain register tiles whatever the order and the strides of the arrays. Scores are
   stored transposed, one row per key and one lane per query: row maxima, sums and masks then run
   down the lanes without horizontal operations, and the scores are the left operand of the next
   product without a copy.

   Tokens of a block are in order of position. The keys that the causal mask leaves to a group of
   lanes are therefore a prefix (together they form a staircase), and register tiles beyond it are
   never computed. */
#ifndef RF_ATTENTION_BLOCK_H
#define RF_ATTENTION_BLOCK_H

#include "activation.h"
#include "bf16.h"
#include "order.h"
#include "philox.h"

#define BLOCK 64
#define LANE_GROUPS (BLOCK / VEC_LANES)

#define SCORE_HIDDEN (-(real)1e9) // Hugging Face's constants: a masked key,
#define SCORE_SELF (-(real)1e5)   // and, with shared_qk, the query itself
#define SCORE_NO_KEY (-(real)5e4) // maxima below this: no key but itself, or extremely low scores
/* Marks the log-sum-exp of a row that attends only to itself. SCORE_SELF would not do: converted to
   natural units and back it is not always the same number. */
#define LSE_SELF_ONLY (-(real)FLT_MAX)

/* The arrays of one call. `dout` is NULL in a forward. */
typedef struct {
    const rf_attention *a;
    layout order;
    const real *q, *k, *v, *dout, *lse, *delta;
    const uint8_t *mask;
    const int32_t *buckets;
    rf_strides sq, sk, sv, sdout;
    size_t dp;       // d, padded to whole vectors
    size_t terms;    // of operands rounded to bfloat16; 0: products are not rounded
    int whole_heads; // a task is a head
    int repeats;     // pairs may meet repeatedly, and count once
} attention_arrays;

typedef struct {
    size_t bh, round, start; // which tokens: places start.. of the round's order
    int has_queries, has_keys;
    int pinned;            // part of the current query span: must not be replaced
    int in_order;          // the tokens are consecutive, and none is hidden
    uint64_t used;         // the cache's clock at its last use
    size_t nq, nk;         // queries and keys
    size_t visible;        // keys [0, visible) are not hidden by the attention mask
    lane earliest, latest; // positions of the queries
    lane qpos[BLOCK], kpos[BLOCK];
    lane qbucket[BLOCK], kbucket[BLOCK]; // over all rounds; only if buckets are compared
    lane *homes;                         // r x BLOCK, if pairs must not repeat: see order.h
    uint64_t drop[BLOCK];                // keys of the queries' dropout bits
    real kscale[BLOCK];                  // raw product times kscale = score
    real kunit[BLOCK];                   // the same for scores in units of log 2
    real khidden[BLOCK];           // the raw product of SCORE_HIDDEN, if pairs must not repeat
    real lse[BLOCK], delta[BLOCK]; // backward; lse in units of log 2
    // rows, dp apart, point into the array, or to a copy in *_space, or are NULL if not needed
    const real *q_rows, *k_rows, *v_rows, *do_rows;
    real *q_space, *k_space, *v_space, *do_space;
    real *q_columns, *do_columns; // transposed: one lane per token
    // rounded operands of the products: keys and values as left ones (tokens x d), queries and dout
    // as right ones (d x tokens), and what a product sums over tokens as right ones (tokens x d)
    operand k_left, v_left, q_columns_right, do_columns_right, q_right, k_right, v_right, do_right;
} block;

static inline int is_self_attention(const rf_attention *a) {
    return a->scope != RF_FULL || a->shared_qk;
}

/* Reals that n terms of rounded operands take. */
static size_t term_reals(size_t n) {
    return bytes_of(n, sizeof(term)) / sizeof(real);
}

/* Reals of a block's rounded operands: those that operands_place places. */
static size_t operand_reals(size_t dp, int backward, size_t terms) {
    const size_t left = left_size(BLOCK, dp), right = right_size(BLOCK, dp);
    const size_t columns = right_size(dp, BLOCK), times = backward ? 2 : 1;
    const size_t rows = bytes_add(bytes_mul(times, left), bytes_mul(backward ? 3 : 1, right));
    return term_reals(bytes_mul(terms, bytes_add(rows, bytes_mul(times, columns))));
}

/* Store an operand; returns where the next one begins. */
static real *operand_place(operand *x, operand placed) {
    *x = placed;
    return (real *)placed.at + term_reals(placed.terms * placed.size);
}

static void operands_place(block *x, real *at, size_t dp, int backward, size_t terms) {
    at = operand_place(&x->k_left, left_operand(at, terms, BLOCK, dp));
    at = operand_place(&x->q_columns_right, right_operand(at, terms, dp, BLOCK));
    if (!backward) {
        x->v_right = right_operand(at, terms, BLOCK, dp);
        return;
    }
    at = operand_place(&x->v_left, left_operand(at, terms, BLOCK, dp));
    at = operand_place(&x->do_columns_right, right_operand(at, terms, dp, BLOCK));
    at = operand_place(&x->q_right, right_operand(at, terms, BLOCK, dp));
    at = operand_place(&x->k_right, right_operand(at, terms, BLOCK, dp));
    x->do_right = right_operand(at, terms, BLOCK, dp);
}

/* Reals of a block's homes, which are as large as reals. */
static size_t home_reals(const rf_attention *a) {
    return keeps_homes(a) ? bytes_mul(a->r, BLOCK) : 0;
}

/* Reals of a block's arrays. */
static size_t block_reals(const rf_attention *a, int backward, size_t terms) {
    const size_t dp = round_up(a->d, VEC_LANES);
    const size_t rows = bytes_mul(backward ? 6 : 4, bytes_mul(BLOCK, dp));
    return bytes_add(bytes_add(rows, operand_reals(dp, backward, terms)), home_reals(a));
}

/* The padding of rows is cleared here, once: nothing writes to it. */
static void block_place(block *x, real *at, const rf_attention *a, int backward, size_t terms) {
    const size_t d = a->d, dp = round_up(d, VEC_LANES);
    real **parts[] = {&x->q_columns, &x->q_space,    &x->k_space,
                      &x->v_space,   &x->do_columns, &x->do_space};
    const size_t arrays = backward ? 6 : 4;
    if (d < dp) memset(at, 0, arrays * BLOCK * dp * sizeof(real));
    memset(x, 0, sizeof *x);
    x->bh = SIZE_MAX;
    for (size_t i = 0; i < arrays; i++) *parts[i] = at + i * BLOCK * dp;
    at += arrays * BLOCK * dp;
    if (terms) operands_place(x, at, dp, backward, terms);
    if (home_reals(a)) x->homes = (lane *)(at + operand_reals(dp, backward, terms));
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
    return 1 / real_sqrt(mean_square);
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

    // 1. keys: those hidden by the mask go last; the others are a prefix in order of position
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

    // 2. queries: in self-attention the same tokens, so one list serves both
    for (size_t i = 0; i < blk->nq; i++)
        blk->qpos[i] = is_self_attention(a) ? blk->kpos[i] : (lane)(blk->start + i);
    blk->earliest = (lane)token_at(x, bh, blk->round, blk->start);
    blk->latest = (lane)token_at(x, bh, blk->round, blk->start + max_size(blk->nq, 1) - 1);
    // 3. buckets, if they restrict attention
    if (!a->across_buckets)
        for (size_t i = 0; i < blk->nk; i++)
            blk->kbucket[i] = blk->qbucket[i] = bucket_of(x, bh, blk->round, (size_t)blk->kpos[i]);
    // 4. homes, in all rounds
    for (size_t i = 0; i < blk->nk && blk->homes; i++) {
        const uint32_t *homes = x->order.homes + (bh * a->t + (size_t)blk->kpos[i]) * a->r;
        for (size_t r = 0; r < a->r; r++) blk->homes[r * BLOCK + i] = (lane)homes[r];
    }
}

/* Rows of n tokens, dp apart. A full block of consecutive tokens is used in place if its rows are
   contiguous. Otherwise it is copied: rows a power of two apart would collide in cache sets. */
static const real *block_rows(const attention_arrays *x, const block *blk, const lane *tokens,
                              size_t n, const real *base, rf_strides s, real *space) {
    const size_t d = x->a->d, dp = x->dp;
    const real *head = head_of(base, s, x->a, blk->bh);
    if (blk->in_order && n == BLOCK && d == dp && s.t == (ptrdiff_t)d)
        return head + (ptrdiff_t)tokens[0] * s.t;
    for (size_t i = 0; i < n; i++) copy_row(space + i * dp, head + (ptrdiff_t)tokens[i] * s.t, d);
    return space;
}

/* The same rows transposed, one lane per token. `rows` is NULL where no product reads them as rows;
   they are then transposed straight from the array. */
static void block_columns(const attention_arrays *x, const block *blk, const lane *tokens, size_t n,
                          const real *base, rf_strides s, const real *rows, real *columns) {
    const real *head = head_of(base, s, x->a, blk->bh);
    for (size_t i = 0; i < n; i += VEC_LANES) {
        const real *lines[VEC_LANES]; // lanes beyond the last token repeat it
        for (size_t j = 0; j < VEC_LANES; j++) {
            const size_t at = min_size(i + j, n - 1);
            lines[j] = rows ? rows + at * x->dp : head + (ptrdiff_t)tokens[at] * s.t;
        }
        transpose_rows(columns + i, BLOCK, lines, x->dp);
    }
}

/* Queries as columns, and as rows if a backward multiplies by them or if they need padding; or
   rounded, from rows. */
static void query_columns(const attention_arrays *x, block *blk, const lane *tokens, size_t n) {
    const size_t d = x->a->d, dp = x->dp;
    if (x->dout || d < dp || x->terms)
        blk->q_rows = block_rows(x, blk, tokens, n, x->q, x->sq, blk->q_space);
    if (!x->terms) {
        block_columns(x, blk, tokens, n, x->q, x->sq, blk->q_rows, blk->q_columns);
        return;
    }
    right_columns(blk->q_columns_right, blk->q_rows, dp, d, n);
    if (x->dout) right_rows(blk->q_right, blk->q_rows, dp, n, d);
}

/* The rounded operands of keys and values. */
static void round_keys(const attention_arrays *x, block *blk) {
    const size_t d = x->a->d, dp = x->dp, n = blk->nk;
    left_rows(blk->k_left, blk->k_rows, dp, n, d);
    if (x->dout) {
        left_rows(blk->v_left, blk->v_rows, dp, n, d);
        right_rows(blk->k_right, blk->k_rows, dp, n, d);
    } else {
        right_rows(blk->v_right, blk->v_rows, dp, n, d);
    }
}

/* Divide the factors of shared keys by the keys' root mean squares, taken from the queries'
   columns, one lane per key. */
static void divide_by_norms(const attention_arrays *x, block *blk) {
    real mean[BLOCK];
    for (size_t i = 0; i < blk->nk; i += VEC_LANES) {
        vec sum[2] = {{0}, {0}};
        for (size_t j = 0; j < x->dp; j += 2) {
            const vec even = vload(blk->q_columns + j * BLOCK + i);
            const vec odd = vload(blk->q_columns + (j + 1) * BLOCK + i);
            sum[0] += even * even, sum[1] += odd * odd;
        }
        vstore(mean + i, (sum[0] + sum[1]) / (real)x->a->d + (real)1e-6);
    }
    for (size_t i = 0; i < blk->nk; i++) blk->kscale[i] *= inverse_root(mean[i]);
}

/* The factors of each key's raw products. A shared key is the query divided by its root mean
   square; rounded queries have no columns in float32, so their norms are taken from the rows. */
static void key_scales(const attention_arrays *x, block *blk) {
    const rf_attention *a = x->a;
    for (size_t i = 0; i < BLOCK; i++) blk->kscale[i] = (real)a->scale;
    if (a->shared_qk && !x->terms) divide_by_norms(x, blk);
    for (size_t i = 0; i < blk->nk && a->shared_qk && x->terms; i++)
        blk->kscale[i] *= key_norm(blk->k_rows + i * x->dp, a->d);
    for (size_t i = 0; i < BLOCK; i++) blk->kunit[i] = blk->kscale[i] * LOG2_E;
    const real least = (real)1e-28; // SCORE_HIDDEN / least is finite
    for (size_t i = 0; i < BLOCK && x->repeats; i++) {
        const real unit = blk->kunit[i];
        blk->khidden[i] = SCORE_HIDDEN / (unit < 0 ? (unit > -least ? -least : unit)
                                                   : (unit < least ? least : unit));
    }
}

/* Keys and values. With shared keys this gathers the queries, too. */
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
    if (x->terms) round_keys(x, blk);
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
        for (size_t i = 0; i < BLOCK; i++) blk->lse[i] = REAL_HUGE;
        for (size_t i = 0; i < blk->nq; i++) {
            const size_t token = (size_t)blk->qpos[i];
            const real lse = x->lse[blk->bh * a->t + token];
            // hf_row_backward computes rows without a key: a huge lse makes their probabilities 0
            if (lse != -(real)INFINITY)
                blk->lse[i] = lse == LSE_SELF_ONLY ? SCORE_SELF : lse * LOG2_E;
            blk->delta[i] = x->delta[blk->bh * a->t + token];
        }
        blk->do_rows = block_rows(x, blk, blk->qpos, blk->nq, x->dout, x->sdout, blk->do_space);
        if (x->terms) {
            right_columns(blk->do_columns_right, blk->do_rows, x->dp, a->d, blk->nq);
            right_rows(blk->do_right, blk->do_rows, x->dp, blk->nq, a->d);
        } else {
            block_columns(x, blk, blk->qpos, blk->nq, x->dout, x->sdout, blk->do_rows,
                          blk->do_columns);
        }
    }
    blk->has_queries = 1;
}

/* --------------------------------------------------------------------------- prefetching ---- */

/* The cache lines of scattered rows that will be needed soon. Each register tile issues a few. */
typedef struct {
    line_list lines, issued;
    size_t next;
} prefetch_queue;

#define QUEUE_ROWS (7 * BLOCK) // q, k, v, dout, dq, dk and dv of a block

static size_t queue_capacity(size_t d) {
    return bytes_add(bytes_mul(QUEUE_ROWS, row_lines_max(d)), 7);
}

/* Up to n lines, which the caller is to prefetch. */
static inline const line_list *prefetch_take(prefetch_queue *queue, size_t n) {
    n = min_size(n, queue->lines.count - queue->next);
    queue->issued = (line_list){queue->lines.line + queue->next, n, n};
    queue->next += n;
    return &queue->issued;
}

/* The lines that a tile of `steps` steps is to prefetch. */
static inline const line_list *prefetch_next(prefetch_queue *queue, size_t steps) {
    return prefetch_take(queue, steps / PREFETCH_STEPS);
}

/* Prefetch up to n lines now, where no tile follows soon. */
static ALWAYS_INLINE void prefetch_flush(prefetch_queue *queue, size_t n) {
    const size_t end = min_size(queue->lines.count, queue->next + n);
    for (; queue->next < end; queue->next++)
        __builtin_prefetch(queue->lines.line[queue->next], 0, 2);
}

/* Lines to prefetch between two pieces of work where products are of rounded operands, which do not
   prefetch while they compute. */
#define ROUNDED_FLUSH 16
#define PRODUCT_LINES 32 // and during a product, at most

static inline void prefetch_clear(prefetch_queue *queue) {
    queue->lines.count = queue->next = 0;
}

/* ------------------------------------------------------------ a thread's gathered blocks ---- */

typedef struct {
    block *blocks;
    size_t count;
    uint64_t clock;
} block_cache;

/* The block at `start`, with its keys and, if `queries` is set, its queries: from the cache, or
   gathered in place of the least recently used one. */
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

/* May a query of this block have met a key before? In the first round only across its ends. */
static inline int may_have_met(const attention_arrays *x, const block *q) {
    return x->repeats && (q->round > 0 || (x->a->scope == RF_CHUNK && x->a->wrap));
}

/* Where masks apply to a pair of blocks. For each group of VEC_LANES queries, keys [0, dense_end)
   are visible to all; keys [dense_end, partial_end) to some, so that each score is masked by itself
   (partial_scores); keys [partial_end, group_end) to all; keys from group_end on to none. */
typedef struct {
    size_t groups, max_end; // max_end: the largest group_end
    size_t dense_end[LANE_GROUPS], partial_end[LANE_GROUPS], group_end[LANE_GROUPS];
    lane query_end[BLOCK]; // for each query, the end of the keys that it may attend to
} mask_extent;

static void find_extent(mask_extent *extent, const attention_arrays *x, const block *q,
                        const block *k) {
    const rf_attention *a = x->a;
    const size_t visible = k->visible;
    const int all_partial = !a->across_buckets || a->softcap > 0 ||
                            (may_have_met(x, q) && (!q->homes || a->scale == 0));
    extent->groups = blocks_of(q->nq, VEC_LANES);
    extent->max_end = 0;
    if (!visible || !q->nq || (a->causal && k->kpos[0] > q->latest)) return;

    // 1. no mask within the pair: everything is dense
    for (size_t g = 0; g < extent->groups; g++)
        extent->dense_end[g] = extent->partial_end[g] = extent->group_end[g] = visible;
    for (size_t i = 0; i < BLOCK; i++) extent->query_end[i] = (lane)visible;
    const int all_dense = (!a->causal && !a->shared_qk) || k->kpos[visible - 1] < q->earliest;
    if (all_dense && !all_partial) {
        extent->max_end = visible;
        return;
    }

    // 2. for each query, the end of the keys at its own or earlier positions; a block against
    // itself, with no key hidden, needs no comparisons
    const int diagonal = q == k && visible == k->nk && visible == q->nq;
    for (size_t i = 0; i < extent->groups * VEC_LANES && diagonal; i++)
        extent->query_end[i] = i < visible ? (lane)i + 1 : 0;
    for (size_t g = 0; g < extent->groups && !diagonal; g++) {
        ivec count = {0};
        const ivec positions = iload(q->qpos + g * VEC_LANES);
        for (size_t i = 0; i < visible; i++) count -= (k->kpos[i] - (ivec){0}) <= positions;
        memcpy(extent->query_end + g * VEC_LANES, &count, sizeof count);
    }

    // 3. the ends of each group
    for (size_t g = 0; g < extent->groups; g++) {
        const size_t end = min_size(q->nq, (g + 1) * VEC_LANES);
        lane min = (lane)visible, max = 0;
        for (size_t i = g * VEC_LANES; i < end; i++) {
            min = extent->query_end[i] < min ? extent->query_end[i] : min;
            max = extent->query_end[i] > max ? extent->query_end[i] : max;
        }
        // the self-mask: a query's own key, if it is in this block, is the last before query_end
        const size_t before_self = a->shared_qk && min > 0 ? (size_t)min - 1 : (size_t)min;
        extent->group_end[g] = a->causal ? (size_t)max : visible;
        extent->dense_end[g] = all_partial ? 0 : before_self;
        extent->partial_end[g] = all_partial ? extent->group_end[g] : (size_t)max;
        extent->max_end = max_size(extent->max_end, extent->group_end[g]);
        for (size_t i = g * VEC_LANES; i < end && !a->causal; i++)
            extent->query_end[i] = (lane)visible;
    }
}

/* Leave only groups [g0, g1) and the keys that they see. */
static inline void limit_groups(mask_extent *extent, size_t g0, size_t g1) {
    extent->groups = g1;
    extent->max_end = 0;
    for (size_t g = g0; g < g1; g++)
        extent->max_end = max_size(extent->max_end, extent->group_end[g]);
}

/* The first group of lanes to which key i or a later one is visible. */
static inline size_t first_group(const mask_extent *extent, size_t i) {
    size_t g = 0;
    while (g + 1 < extent->groups && extent->group_end[g] <= i) g++;
    return g;
}

/* c[key][query] = keys times `columns` (queries), for the register tiles that the staircase needs.
   Keys are given as rows, dp apart, or as columns. */
static void staircase_product(real *c, const mask_extent *extent, const real *keys, int by_rows,
                              const real *columns, size_t d, size_t dp, prefetch_queue *queue) {
    const size_t ld = by_rows ? dp : BLOCK;
    for (size_t i = 0, mr; i < extent->max_end; i += mr) {
        mr = tile_height(extent->max_end - i);
        for (size_t g = first_group(extent, i); g < extent->groups; g += GEMM_NV) {
            const int narrow = g + 1 == extent->groups; // ends before a prefetch could complete
            tile_for(mr, by_rows, (extent->groups - g) * VEC_LANES)(
                d, by_rows ? keys + i * dp : keys + i, ld, columns + g * VEC_LANES, BLOCK,
                c + i * BLOCK + g * VEC_LANES, BLOCK, 0, prefetch_next(queue, narrow ? 0 : d));
        }
    }
}

/* The same of rounded operands, for UNIT keys at a time and the groups from g0 on. */
static void rounded_staircase(real *c, const mask_extent *extent, size_t g0, operand keys,
                              operand columns, size_t d, prefetch_queue *queue) {
    const size_t end = extent->groups * VEC_LANES;
    for (size_t i = 0; i < extent->max_end; i += UNIT) {
        const size_t first = max_size(g0, first_group(extent, i)) * VEC_LANES;
        const size_t from = first / OPERAND_PANEL * OPERAND_PANEL;
        rounded_product(c + i * BLOCK + from, BLOCK, left_from(keys, i, 0),
                        right_from(columns, 0, from), min_size(UNIT, extent->max_end - i),
                        end - from, d, 0, prefetch_take(queue, PRODUCT_LINES));
    }
}

/* Raw products of queries and keys, of all groups or, if rounded, of those from g0 on. Shared keys
   that were not gathered as rows are read from the columns of the block's queries. */
static void raw_scores(real *s, const attention_arrays *x, const mask_extent *extent, size_t g0,
                       const block *q, const block *k, prefetch_queue *queue) {
    const int by_rows = k->k_rows != NULL;
    if (x->terms)
        rounded_staircase(s, extent, g0, k->k_left, q->q_columns_right, x->a->d, queue);
    else
        staircase_product(s, extent, by_rows ? k->k_rows : k->q_columns, by_rows, q->q_columns,
                          x->a->d, x->dp, queue);
}

/* Scores are in units of log 2. Dense ones are not stored: each use multiplies the raw product by
   kunit. Returns the maximum of those of keys [i0, i1) and of `max`. */
static inline vec dense_max(const real *s, const real *kunit, size_t i0, size_t i1, vec max) {
    vec m[4] = {max, max, max, max}; // four chains: the latency of a maximum is that of four loads
    size_t i = i0;
    for (; i + 4 <= i1; i += 4)
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++) m[j] = vmax(vload(s + (i + j) * BLOCK) * kunit[i + j], m[j]);
    for (; i < i1; i++) m[0] = vmax(vload(s + i * BLOCK) * kunit[i], m[0]);
    return vmax(vmax(m[0], m[1]), vmax(m[2], m[3]));
}

/* The score with softcap, cap tanh(score / cap), in any unit; and its derivative by the score,
   computed from the capped score. */
static inline vec soft_capped(vec score, real cap) {
    return cap * tanh_curve(score / cap).value;
}

static inline vec soft_cap_slope(vec capped, real cap) {
    const vec t = capped / cap;
    return 1 - t * t;
}

/* A round in which queries of a group may have met keys of a block before: they have, where
   above - keys[i] is at least 0 and at most the length of the window. */
typedef struct {
    ivec above;       // the largest home of a key, for each query
    const lane *keys; // homes
} earlier_window;

typedef struct {
    earlier_window *window;
    size_t count;
    uvec length;
} earlier_windows;

/* The most that one pair of blocks can have: a round's own, and at its ends the neighbours'. */
static size_t earlier_windows_max(const rf_attention *a) {
    return keeps_homes(a) ? bytes_mul(3, a->r) : 0;
}

/* The windows that come before the pair's own round and slot. */
static void find_earlier_windows(earlier_windows *windows, const attention_arrays *x,
                                 const block *q, const block *k, size_t group, size_t slot) {
    const rf_attention *a = x->a;
    const ptrdiff_t chunks = a->scope == RF_CHUNK ? (ptrdiff_t)chunks_of(a) : 0;
    const ptrdiff_t below = (ptrdiff_t)home_below(a), above = (ptrdiff_t)home_above(a);
    const ptrdiff_t rounds = (ptrdiff_t)a->r;
    windows->count = 0;
    windows->length = (ulane)(below + above) - (uvec){0};
    if (!may_have_met(x, q) || !q->homes) return;

    // 1. does this pair cross into the round before or after?
    ptrdiff_t own = 0;
    if (a->scope == RF_CHUNK) {
        const ptrdiff_t to = (ptrdiff_t)(q->start / a->m) + (ptrdiff_t)slot - below;
        own = to < 0 ? -1 : to >= chunks;
    }
    // 2. each earlier round, and at its ends the rounds before and after
    for (ptrdiff_t r = 0; r <= (ptrdiff_t)q->round; r++) {
        const ivec homes = iload(q->homes + (size_t)r * BLOCK + group * VEC_LANES);
        for (ptrdiff_t cross = crosses_rounds(a) ? -1 : 0; cross <= crosses_rounds(a); cross++) {
            if (r == (ptrdiff_t)q->round && cross >= own) break;
            const lane first = (lane)(r * chunks + below), last = (lane)((r + 1) * chunks - above);
            if (cross < 0 && !any(homes < first)) continue;
            if (cross > 0 && !any(homes >= last)) continue;
            const ptrdiff_t round = (r + cross + rounds) % rounds;
            const lane shift = (lane)((round - r - cross) * chunks + above); // around the circle
            windows->window[windows->count++] =
                (earlier_window){homes + shift, k->homes + (size_t)round * BLOCK};
        }
    }
}

/* Which queries of a group have met key i of the windows' block before. */
static ALWAYS_INLINE ivec have_met(const earlier_windows *windows, size_t i) {
    uvec nearest = ~(uvec){0};
    for (size_t w = 0; w < windows->count; w++)
        nearest = uvmin(nearest, (uvec)(windows->window[w].above - windows->window[w].keys[i]));
    return (ivec)(nearest <= windows->length);
}

/* The same where blocks have no homes, one query after another. */
static ivec have_met_by_place(const attention_arrays *x, const block *q, const block *k,
                              size_t group, size_t i, size_t slot) {
    ivec met = {0};
    for (size_t j = 0; j < VEC_LANES && group * VEC_LANES + j < q->nq; j++)
        met[j] = -has_met(&x->order, x->buckets, q->bh, (size_t)q->qpos[group * VEC_LANES + j],
                          (size_t)k->kpos[i], q->round, slot);
    return met;
}

/* Hides dense keys [i0, i1), which are not masked otherwise, from the queries that have met them.
 */
static void hide_repeats(real *s, const earlier_windows *windows, const block *k, size_t i0,
                         size_t i1) {
    for (size_t i = i0; i < i1 && windows->count; i++)
        vstore(s + i * BLOCK,
               vselect(have_met(windows, i), vset1(k->khidden[i]), vload(s + i * BLOCK)));
}

/* Replaces the raw products of keys [i0, i1) by masked scores; returns the maximum, as above. */
static inline vec partial_scores(real *s, const attention_arrays *x, const earlier_windows *windows,
                                 const block *q, const block *k, size_t group, size_t slot,
                                 size_t i0, size_t i1, vec max) {
    const rf_attention *a = x->a;
    const int by_place = may_have_met(x, q) && !q->homes;
    const ivec positions = iload(q->qpos + group * VEC_LANES);
    const ivec buckets = iload(q->qbucket + group * VEC_LANES);
    for (size_t i = i0; i < i1; i++) {
        const ivec at = k->kpos[i] - (ivec){0};
        vec score = vload(s + i * BLOCK) * k->kunit[i];
        if (a->softcap > 0) score = soft_capped(score, (real)a->softcap * LOG2_E);
        if (a->causal) score = vselect(at <= positions, score, vset1(SCORE_HIDDEN));
        if (!a->across_buckets)
            score = vselect(k->kbucket[i] - (ivec){0} == buckets, score, vset1(SCORE_HIDDEN));
        if (a->shared_qk) score = vselect(at == positions, vset1(SCORE_SELF), score);
        if (windows->count) score = vselect(have_met(windows, i), vset1(SCORE_HIDDEN), score);
        if (by_place)
            score = vselect(have_met_by_place(x, q, k, group, i, slot), vset1(SCORE_HIDDEN), score);
        vstore(s + i * BLOCK, score);
        max = vmax(score, max);
    }
    return max;
}

/* Zero the rows from group_end on: no query of the group sees these keys, but products read them in
   register tiles shared with other groups. */
static inline void clear_masked(real *s, const mask_extent *extent, size_t g) {
    for (size_t i = extent->group_end[g]; i < extent->max_end; i++) vstore(s + i * BLOCK, (vec){0});
}

/* Dropout's factors for the probabilities of one key: 0, or 1 / (1 - p). */
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

/* The largest query_end of queries [i, i + mr): the inner dimension of their product. */
static inline size_t tile_depth(const mask_extent *extent, size_t i, size_t mr) {
    lane depth = 0;
    for (size_t j = i; j < i + mr; j++)
        depth = extent->query_end[j] > depth ? extent->query_end[j] : depth;
    return (size_t)depth;
}

/* out (queries x dp) = (or, with add, +=) s' rows, where rows are keys or values. Each register
   tile stops at the last key that its queries see. */
static void queries_product(real *out, const mask_extent *extent, const real *s, const real *rows,
                            size_t nq, size_t dp, int add, prefetch_queue *queue) {
    for (size_t i = 0, mr; i < nq; i += mr) {
        mr = tile_height(nq - i);
        const size_t depth = tile_depth(extent, i, mr);
        for (size_t j = 0; j < dp; j += GEMM_NR)
            tile_for(mr, 0, dp - j)(depth, s + i, BLOCK, rows + j, dp, out + i * dp + j, dp, add,
                                    prefetch_next(queue, depth));
    }
}

/* Round the scores of one group of lanes, all of whose keys are in cache now. */
static inline void round_scores(operand left, const mask_extent *extent, const real *s, size_t g,
                                size_t nq) {
    const size_t i = g * VEC_LANES;
    left_columns(left_from(left, i, 0), s + i, BLOCK, min_size(VEC_LANES, nq - i), extent->max_end);
}

/* The same of rounded operands, `left` being s, for the groups from g0 on. */
static void rounded_queries_product(real *out, const mask_extent *extent, size_t g0, operand left,
                                    operand rows, size_t nq, size_t dp, int add,
                                    prefetch_queue *queue) {
    const size_t end = min_size(nq, extent->groups * VEC_LANES);
    for (size_t i = g0 * VEC_LANES; i < end; i += UNIT) {
        const size_t m = min_size(UNIT, end - i);
        rounded_product(out + i * dp, dp, left_from(left, i, 0), rows, m, dp,
                        tile_depth(extent, i, m), add, prefetch_take(queue, PRODUCT_LINES));
    }
}

/* The first query that sees key i. */
static inline size_t first_query(const mask_extent *extent, size_t nq, size_t i) {
    size_t from = first_group(extent, i) * VEC_LANES;
    while (from < nq && extent->query_end[from] <= (lane)i) from++;
    return from;
}

/* out (keys x dp) += s rows, where rows belong to queries. Each register tile begins with the first
   query that sees one of its keys. */
static void keys_product(real *out, const mask_extent *extent, const real *s, const real *rows,
                         size_t nq, size_t dp) {
    for (size_t i = 0, mr; i < extent->max_end; i += mr) {
        mr = tile_height(extent->max_end - i);
        const size_t from = first_query(extent, nq, i);
        for (size_t j = 0; j < dp; j += GEMM_NR)
            tile_for(mr, 1, dp - j)(nq - from, s + i * BLOCK + from, BLOCK, rows + from * dp + j,
                                    dp, out + i * dp + j, dp, 1, &no_lines);
    }
}

/* The same of rounded operands; `left` is scratch for s. */
static void rounded_keys_product(real *out, const mask_extent *extent, const real *s, operand left,
                                 operand rows, size_t nq, size_t dp, prefetch_queue *queue) {
    left_rows(left, s, BLOCK, extent->max_end, nq);
    for (size_t i = 0; i < extent->max_end; i += UNIT) {
        const size_t from = first_query(extent, nq, i) / OPERAND_STEP * OPERAND_STEP;
        rounded_product(out + i * dp, dp, left_from(left, i, from), right_from(rows, from, 0),
                        min_size(UNIT, extent->max_end - i), dp, nq - from, 1,
                        prefetch_take(queue, PRODUCT_LINES));
    }
}

#endif
