/* attention_block.h: blocks of up to BLOCK tokens, and the thread's cache of them.

   A block gathers the rows of its tokens, as queries and as keys, into dense, padded scratch, so
   that the products of attention_pair.h are plain register tiles whatever the order and the strides
   of the arrays. Its tokens are in order of position. Where keys are separate, a block has only
   queries or only keys. */
#ifndef RF_ATTENTION_BLOCK_H
#define RF_ATTENTION_BLOCK_H

#include "bf16.h"
#include "order.h"
#include "philox.h"

#define BLOCK 64
#define LANE_GROUPS (BLOCK / VEC_LANES)

#define SCORE_HIDDEN (-(real)1e9) // Hugging Face's constants: a masked key,
#define SCORE_SELF (-(real)1e5)   // and, with shared_qk, the query itself: the self-mask
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
    rf_strides sq, sk, sv, sdout;
    size_t dp;       // d, padded to whole vectors
    size_t terms;    // of operands rounded to bfloat16; 0: products are not rounded
    int whole_heads; // a task is a head
    int repeats;     // pairs may meet repeatedly, and count once
    size_t sharers;  // backward: heads that share keys or values are processed in turn; else 1
    size_t turn;     // below sharers: which of them
    token_side side; // whose tokens are processed: of separate keys in a backward, or QUERIES
} attention_arrays;

typedef struct {
    size_t bh, round, start; // which tokens: places start.. of the round's order
    token_side side;         // of this side
    int has_queries, has_keys;
    int pinned;            // part of the current query span: must not be replaced
    int in_order;          // the tokens are consecutive, and none is hidden
    uint64_t used;         // the cache's clock at its last use
    size_t nq, nk;         // queries and keys
    size_t visible;        // keys [0, visible) are not hidden by the attention mask
    lane earliest, latest; // positions of the queries
    lane qpos[BLOCK], kpos[BLOCK];
    lane qtoken[BLOCK];                  // which rows queries are; a key's position is its row
    lane qbucket[BLOCK], kbucket[BLOCK]; // over all rounds; only if buckets are compared
    lane *homes;                         // r x BLOCK, if pairs must not repeat: see order.h
    uint64_t drop[BLOCK];                // keys of the queries' dropout bits
    real norm[BLOCK];                    // of shared keys: a query times norm is the key
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

/* Heads of q that share one head of v. */
static inline size_t sharers_of(const rf_attention *a) {
    return a->hk ? a->h / a->hk : 1;
}

/* The head of keys or values, or of their gradients, that serves a head of queries. */
static inline const real *kv_head_of(const real *base, rf_strides s, const rf_attention *a,
                                     size_t bh) {
    return base + (ptrdiff_t)(bh / a->h) * s.b + (ptrdiff_t)(bh % a->h / sharers_of(a)) * s.h;
}

static inline const real *kv_row_of(const real *base, rf_strides s, const rf_attention *a,
                                    size_t bh, size_t token) {
    return kv_head_of(base, s, a, bh) + (ptrdiff_t)token * s.t;
}

static inline int is_hidden(const attention_arrays *x, size_t bh, size_t token) {
    return x->mask && !x->mask[bh / x->a->h * x->a->tk + token];
}

/* Is the order of this side that of the sequence? */
static inline int is_sequence(const attention_arrays *x, token_side side, size_t round) {
    const rf_attention *a = x->a;
    if (is_hash_round(a, round)) return !x->order.of[side].order;
    return side == KEYS || round == window_round(a);
}

static inline size_t token_at(const attention_arrays *x, token_side side, size_t bh, size_t round,
                              size_t place) {
    if (is_sequence(x, side, round)) return place;
    if (round == orphan_round(x->a)) return x->order.orphans[bh * x->a->t + place];
    return x->order.of[side].order[list_index(&x->order, side, bh, round, place)];
}

static inline lane bucket_of(const attention_arrays *x, token_side side, size_t bh, size_t round,
                             size_t token) {
    const int32_t bucket = x->order.of[side].buckets[list_index(&x->order, side, bh, round, token)];
    return (lane)(round * (x->a->k + 1)) + bucket;
}

/* May a query see keys of another round, where a window of chunks reaches across its end? Within
   buckets it may not, not even itself. */
static inline int sees_round(const rf_attention *a, size_t round, size_t key_round) {
    return a->across_buckets || round == key_round || !is_hash_round(a, round);
}

/* The positions of the tokens of a side, less the tokens. */
static inline ptrdiff_t position_shift(const rf_attention *a, token_side side) {
    return side == QUERIES ? first_position(a) : 0;
}

static inline real inverse_root(real mean_square) {
    return 1 / real_sqrt(mean_square);
}

/* rho = 1 / rms(x): a shared key is x rho. */
static inline real key_norm(const real *x, size_t d) {
    return inverse_root(dot(x, x, d) / (real)d + (real)1e-6);
}

/* Homes of n tokens, in all rounds. */
static void block_homes(const attention_arrays *x, block *blk, const lane *tokens, size_t n) {
    const token_order *of = &x->order.of[blk->side];
    const size_t r = x->a->r;
    for (size_t i = 0; i < n; i++) {
        const uint32_t *homes = of->homes + (blk->bh * of->n + (size_t)tokens[i]) * r;
        for (size_t j = 0; j < r; j++) blk->homes[j * BLOCK + i] = (lane)homes[j];
    }
}

static void block_tokens(const attention_arrays *x, block *blk, size_t places) {
    const rf_attention *a = x->a;
    const size_t bh = blk->bh, round = blk->round, start = blk->start;
    const token_side side = blk->side;
    if (a->separate) {
        blk->nq = side == QUERIES ? places : 0;
        blk->nk = side == KEYS ? places : 0;
    } else {
        blk->nq = start < a->t ? min_size(places, a->t - start) : 0;
        blk->nk = start < a->tk ? min_size(places, a->tk - start) : 0;
    }
    for (size_t i = 0; i < BLOCK; i++) blk->qpos[i] = blk->kpos[i] = -1;

    // 1. keys: those hidden by the mask go last; the others are a prefix in order of position
    lane hidden[BLOCK];
    size_t hiding = 0;
    blk->visible = 0;
    for (size_t i = 0; i < blk->nk; i++) {
        const size_t token = token_at(x, side, bh, round, start + i);
        if (is_hidden(x, bh, token))
            hidden[hiding++] = (lane)token;
        else
            blk->kpos[blk->visible++] = (lane)token;
    }
    for (size_t i = 0; i < hiding; i++) blk->kpos[blk->visible + i] = hidden[i];

    blk->in_order = is_sequence(x, side, round) && hiding == 0;

    // 2. queries: in self-attention the same tokens, so one list serves both
    const lane shift = (lane)position_shift(a, side);
    for (size_t i = 0; i < blk->nq; i++) {
        if (a->separate)
            blk->qtoken[i] = (lane)token_at(x, side, bh, round, start + i);
        else
            blk->qtoken[i] = is_self_attention(a) ? blk->kpos[i] : (lane)(start + i);
        blk->qpos[i] = blk->qtoken[i] + shift;
    }
    blk->earliest = (lane)token_at(x, side, bh, round, start) + shift;
    blk->latest = (lane)token_at(x, side, bh, round, start + max_size(blk->nq, 1) - 1) + shift;
    if (!is_hash_round(a, round)) return;
    // 3. buckets, if they restrict attention
    for (size_t i = 0; i < blk->nk && !a->across_buckets; i++)
        blk->kbucket[i] = bucket_of(x, side, bh, round, (size_t)blk->kpos[i]);
    for (size_t i = 0; i < blk->nq && !a->across_buckets; i++)
        blk->qbucket[i] = bucket_of(x, side, bh, round, (size_t)blk->qtoken[i]);
    // 4. homes
    if (blk->homes)
        block_homes(x, blk, blk->nk ? blk->kpos : blk->qtoken, max_size(blk->nk, blk->nq));
}

/* Rows of n tokens of a head, dp apart. A full block of consecutive tokens is used in place if its
   rows are contiguous. Otherwise it is copied: rows a power of two apart would collide in cache
   sets. */
static const real *block_rows(const attention_arrays *x, const block *blk, const lane *tokens,
                              size_t n, const real *head, ptrdiff_t stride, real *space) {
    const size_t d = x->a->d, dp = x->dp;
    if (blk->in_order && n == BLOCK && d == dp && stride == (ptrdiff_t)d)
        return head + (ptrdiff_t)tokens[0] * stride;
    for (size_t i = 0; i < n; i++) {
        if (i % 16 == 0) products_awake(x->terms);
        copy_row(space + i * dp, head + (ptrdiff_t)tokens[i] * stride, d);
    }
    return space;
}

/* The same rows transposed, one lane per token. `rows` is NULL where no product reads them as rows;
   they are then transposed straight from the array. */
static void block_columns(const attention_arrays *x, const lane *tokens, size_t n, const real *head,
                          ptrdiff_t stride, const real *rows, real *columns) {
    for (size_t i = 0; i < n; i += VEC_LANES) {
        const real *lines[VEC_LANES]; // lanes beyond the last token repeat it
        for (size_t j = 0; j < VEC_LANES; j++) {
            const size_t at = min_size(i + j, n - 1);
            lines[j] = rows ? rows + at * x->dp : head + (ptrdiff_t)tokens[at] * stride;
        }
        transpose_rows(columns + i, BLOCK, lines, x->dp);
    }
}

/* Queries as columns, and as rows if a backward multiplies by them or if they need padding; or
   rounded, from rows. */
static void query_columns(const attention_arrays *x, block *blk, const lane *tokens, size_t n) {
    const size_t d = x->a->d, dp = x->dp;
    const real *head = head_of(x->q, x->sq, x->a, blk->bh);
    if (x->dout || d < dp || x->terms)
        blk->q_rows = block_rows(x, blk, tokens, n, head, x->sq.t, blk->q_space);
    if (!x->terms) {
        block_columns(x, tokens, n, head, x->sq.t, blk->q_rows, blk->q_columns);
        return;
    }
    right_columns(blk->q_columns_right, blk->q_rows, dp, d, n);
    products_awake(x->terms);
    if (x->dout) right_rows(blk->q_right, blk->q_rows, dp, n, d);
}

/* The rounded operands of keys and values. Those of shared keys are the queries', where a left
   operand is as a transposed right one. */
static void round_keys(const attention_arrays *x, block *blk) {
    const size_t d = x->a->d, dp = x->dp, n = blk->nk;
    const int shared = x->a->shared_qk;
    if (shared && TAKES_PAIRS)
        blk->k_left = columns_of(blk->q_columns_right);
    else
        left_rows(blk->k_left, blk->k_rows, dp, n, d);
    products_awake(x->terms);
    if (x->dout) {
        left_rows(blk->v_left, blk->v_rows, dp, n, d);
        products_awake(x->terms);
        if (shared)
            blk->k_right = blk->q_right;
        else
            right_rows(blk->k_right, blk->k_rows, dp, n, d);
    } else {
        right_rows(blk->v_right, blk->v_rows, dp, n, d);
    }
}

/* The sums of squares of up to VEC_LANES rows, one lane each; lanes beyond the last row repeat it.
 */
static vec squares_of_rows(const real *rows, size_t ld, size_t n, size_t dp) {
    real sums[VEC_LANES][VEC_LANES], columns[VEC_LANES * VEC_LANES];
    const real *line[VEC_LANES];
    for (size_t i = 0; i < VEC_LANES; i++) {
        const real *row = rows + min_size(i, n - 1) * ld;
        vec sum = {0};
        for (size_t j = 0; j < dp; j += VEC_LANES) sum += vload(row + j) * vload(row + j);
        vstore(sums[i], sum);
        line[i] = sums[i];
    }
    transpose_rows(columns, VEC_LANES, line, VEC_LANES);
    vec sum = {0};
    for (size_t i = 0; i < VEC_LANES; i++) sum += vload(columns + i * VEC_LANES);
    return sum;
}

/* The same of rows that are stored as columns, ld apart. */
static vec squares_of_columns(const real *columns, size_t ld, size_t dp) {
    vec sum[2] = {{0}, {0}};
    for (size_t j = 0; j < dp; j += 2) {
        const vec even = vload(columns + j * ld), odd = vload(columns + (j + 1) * ld);
        sum[0] += even * even, sum[1] += odd * odd;
    }
    return sum[0] + sum[1];
}

/* What shared keys are multiplied by: a key is the query divided by its root mean square. Rounded
   queries have no columns in float32. */
static void key_norms(const attention_arrays *x, block *blk) {
    for (size_t i = 0; i < blk->nk; i += VEC_LANES) {
        const vec squares =
            x->terms ? squares_of_rows(blk->k_rows + i * x->dp, x->dp, blk->nk - i, x->dp)
                     : squares_of_columns(blk->q_columns + i, BLOCK, x->dp);
        vstore(blk->norm + i, squares / (real)x->a->d + (real)1e-6);
    }
    for (size_t i = 0; i < blk->nk; i++) blk->norm[i] = inverse_root(blk->norm[i]);
}

/* The factors of each key's raw products. */
static void key_scales(const attention_arrays *x, block *blk) {
    const rf_attention *a = x->a;
    for (size_t i = 0; i < BLOCK; i++) blk->kscale[i] = (real)a->scale;
    if (a->shared_qk) key_norms(x, blk);
    for (size_t i = 0; i < blk->nk && a->shared_qk; i++) blk->kscale[i] *= blk->norm[i];
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
        const real *k = kv_head_of(x->k, x->sk, a, blk->bh);
        blk->k_rows = block_rows(x, blk, blk->kpos, blk->nk, k, x->sk.t, blk->k_space);
    }
    const real *v = kv_head_of(x->v, x->sv, a, blk->bh);
    blk->v_rows = block_rows(x, blk, blk->kpos, blk->nk, v, x->sv.t, blk->v_space);
    blk->has_keys = 1;
    if (x->terms) round_keys(x, blk);
    key_scales(x, blk);
}

static void block_queries(const attention_arrays *x, block *blk) {
    const rf_attention *a = x->a;
    if (!a->shared_qk) query_columns(x, blk, blk->qtoken, blk->nq);
    if (a->dropout > 0)
        for (size_t i = 0; i < blk->nq; i++)
            blk->drop[i] =
                row_key(a->key, (uint32_t)blk->bh, (uint32_t)blk->round, (uint32_t)blk->qtoken[i]);

    if (x->dout) {
        for (size_t i = 0; i < BLOCK; i++) blk->lse[i] = REAL_HUGE;
        for (size_t i = 0; i < blk->nq; i++) {
            const size_t token = (size_t)blk->qtoken[i];
            const real lse = x->lse[blk->bh * a->t + token];
            // hf_row_backward computes rows without a key: a huge lse makes their probabilities 0
            if (lse != -(real)INFINITY)
                blk->lse[i] = lse == LSE_SELF_ONLY ? SCORE_SELF : lse * LOG2_E;
            blk->delta[i] = x->delta[blk->bh * a->t + token];
        }
        const real *dout = head_of(x->dout, x->sdout, a, blk->bh);
        blk->do_rows = block_rows(x, blk, blk->qtoken, blk->nq, dout, x->sdout.t, blk->do_space);
        if (x->terms) {
            right_columns(blk->do_columns_right, blk->do_rows, x->dp, a->d, blk->nq);
            products_awake(x->terms);
            right_rows(blk->do_right, blk->do_rows, x->dp, blk->nq, a->d);
        } else {
            block_columns(x, blk->qtoken, blk->nq, dout, x->sdout.t, blk->do_rows, blk->do_columns);
        }
    }
    blk->has_queries = 1;
}

/* --------------------------------------------------------------------------- prefetching ---- */

/* The cache lines of scattered rows that will be needed soon. Each register tile issues a few. */
typedef struct {
    line_list lines, issued;
    size_t next;
    size_t steps; // of a tile per line
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
    return prefetch_take(queue, steps / queue->steps);
}

/* Prefetch up to n lines now, where no tile follows soon. */
static ALWAYS_INLINE void prefetch_flush(prefetch_queue *queue, size_t n) {
    const size_t end = min_size(queue->lines.count, queue->next + n);
    for (; queue->next < end; queue->next++)
        __builtin_prefetch(queue->lines.line[queue->next], 0, 2);
}

/* Lines to prefetch between two products of rounded operands: these are short, and prefetch at most
   product_lines() themselves. */
#define ROUNDED_FLUSH 16

/* The most cache lines that one product of `rows` rows of rounded operands prefetches. */
static inline size_t product_lines(size_t rows) {
    return 32 * rows / MASKED_ROWS;
}

static inline void prefetch_clear(prefetch_queue *queue) {
    queue->lines.count = queue->next = 0;
}

/* ------------------------------------------------------------ a thread's gathered blocks ---- */

typedef struct {
    block *blocks;
    size_t count;
    uint64_t clock;
} block_cache;

/* The block at place `start` of a span's order, with its keys and, if `queries` is set, its queries
   (of separate keys, with what it has): from the cache, or gathered in place of the least recently
   used one. */
static block *block_get(const attention_arrays *x, block_cache *cache, size_t bh, span s,
                        size_t start, size_t places, int queries) {
    block *found = NULL, *oldest = NULL;
    for (size_t i = 0; i < cache->count && !found; i++) {
        block *blk = cache->blocks + i;
        if (blk->bh == bh && blk->round == s.round && blk->start == start && blk->side == s.side)
            found = blk;
        if (!blk->pinned && (!oldest || blk->used < oldest->used)) oldest = blk;
    }
    if (!found) {
        found = oldest;
        found->bh = bh, found->round = s.round, found->start = start, found->side = s.side;
        found->has_keys = found->has_queries = 0;
        block_tokens(x, found, places);
    }
    found->used = ++cache->clock;
    const int keys = !x->a->separate || s.side == KEYS;
    if (x->a->separate) queries = s.side == QUERIES;
    if (keys && !found->has_keys) block_keys(x, found);
    if (queries && !found->has_queries) block_queries(x, found);
    return found;
}

#endif
