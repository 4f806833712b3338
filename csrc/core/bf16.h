/* bf16.h: products of float32 operands rounded to bfloat16, with sums in float32.

   An operand is rounded to one bfloat16 term, or to two whose sum has 16 bits: x = high + low.
   With two, the product is high high + high low + low high (the bf16x3 of JAX and oneMKL).

   The layouts are those that the hardware multiplies pairs in, AMX's tiles and AVX512_BF16's dot
   products:
   - a left operand (m x k) is cut into strips of OPERAND_STRIP rows, and a strip into steps of
     OPERAND_STEP columns; within a step it is in order of rows or, where the dot products broadcast
     single pairs, by_pairs: the pairs of two columns after each other, each of all rows. That is
     the order of a panel, so that a transposed operand needs no transposing;
   - a right operand (k x n) is cut into panels of OPERAND_PANEL columns, in which two rows of k are
     interleaved.
   All are padded with zeros. Other processors multiply in float32: a left operand is stored by rows
   and a right one as gemm_pack does, so that its tile computes the product. The operands are the
   same numbers, only the order of the sums differs. */
#ifndef RF_BF16_H
#define RF_BF16_H

#include "gemm_tile.h"

#if RF_REAL_BYTES == 4 && defined(__AVX512BF16__)
#define HAS_BF16 1
typedef uint16_t term; // one term of an operand's element
#define OPERAND_STRIP 16
#define OPERAND_PANEL 16
#define OPERAND_STEP 32
#else
#define HAS_BF16 0
typedef real term;
#define OPERAND_STRIP 1
#define OPERAND_PANEL GEMM_NR
#define OPERAND_STEP 1
#endif

/* Rows and columns of C that are computed together. */
#define UNIT 32
#define UNIT_COLUMNS (OPERAND_PANEL > UNIT ? OPERAND_PANEL : UNIT)

/* MASKED_ROWS: rows of C in a product of attention, whose mask leaves out some columns or steps of
   each; AMX needs two strips to reuse what it loads. LEFT_ROWS, LEFT_STEP: a part of a left operand
   may begin at multiples of them (rows, steps). */
#if HAS_BF16 && !defined(RF_AMX)
#define MASKED_ROWS OPERAND_STRIP
#define TAKES_PAIRS 1 // left operands may be by_pairs, and may begin at any pair and in mid-strip
#define LEFT_ROWS (OPERAND_STRIP / 2)
#define LEFT_STEP 2
#else
#define MASKED_ROWS UNIT
#define TAKES_PAIRS 0
#define LEFT_ROWS MASKED_ROWS
#define LEFT_STEP OPERAND_STEP
#endif

/* Rows of a strip of C (m x n, at most UNIT columns): half a strip if it has two panels. C needs no
   temporary if m is a multiple. */
static inline size_t strip_rows(size_t m, size_t n) {
    const int half = LEFT_ROWS < OPERAND_STRIP && m <= LEFT_ROWS && n > OPERAND_PANEL;
    return half ? LEFT_ROWS : OPERAND_STRIP;
}

/* Terms of an operand, 0 for operands that are not rounded. */
static inline size_t terms_of(const rf_run *run) {
    if (!IS_FLOAT || run->precision == RF_HIGHEST) return 0;
    return run->precision == RF_HIGH ? 2 : 1;
}

/* A rounded operand. The second term begins `size` elements after the first. */
typedef struct {
    term *at;
    size_t terms, size;
    size_t k;     // of one strip or panel
    int by_pairs; // the order of a left operand
    size_t start; // its first column, within the first step
} operand;

/* Elements of one term of an m x k left operand, and of a k x n right one. */
static inline size_t left_size(size_t m, size_t k) {
    return bytes_mul(round_up(m, OPERAND_STRIP), round_up(k, OPERAND_STEP));
}

static inline size_t right_size(size_t k, size_t n) {
    return bytes_mul(round_up(k, OPERAND_STEP), round_up(n, OPERAND_PANEL));
}

static inline operand left_operand(void *at, size_t terms, size_t m, size_t k) {
    return (operand){at, terms, left_size(m, k), round_up(k, OPERAND_STEP), 0, 0};
}

static inline operand right_operand(void *at, size_t terms, size_t k, size_t n) {
    return (operand){at, terms, right_size(k, n), round_up(k, OPERAND_STEP), 0, 0};
}

/* A left operand that left_columns writes, or has written. */
static inline operand columns_of(operand left) {
    left.by_pairs = TAKES_PAIRS;
    return left;
}

/* Parts of a left operand begin at multiples of that many rows, if their product has n columns. */
static inline size_t left_rows_of(size_t n) {
    return n % UNIT ? MASKED_ROWS : LEFT_ROWS;
}

/* The part of a left operand from row i and step p on: multiples of left_rows_of and LEFT_STEP. */
static inline operand left_from(operand left, size_t i, size_t p) {
    const size_t row = i % OPERAND_STRIP, step = p / OPERAND_STEP * OPERAND_STEP;
    left.at += (i - row) * left.k + step * OPERAND_STRIP;
    left.at += row * (left.by_pairs ? 2 : OPERAND_STEP);
    left.start = p - step;
    return left;
}

/* The part of a right operand from step p (a multiple of LEFT_STEP) and column j on: a multiple
   of OPERAND_PANEL or, where the hardware does not round, of VEC_LANES. */
static inline operand right_from(operand right, size_t p, size_t j) {
    right.at += j / OPERAND_PANEL * OPERAND_PANEL * right.k + p * OPERAND_PANEL + j % OPERAND_PANEL;
    return right;
}

/* Which terms are multiplied, the smallest products first; with one term, only the last. */
static const struct {
    size_t left, right;
} term_pairs[] = {{1, 0}, {0, 1}, {0, 0}};

enum { TERM_PAIRS = 3 };

static inline size_t first_pair(size_t terms) {
    return terms > 1 ? 0 : TERM_PAIRS - 1;
}

/* Rounded to bfloat16, to nearest even; NaN stays NaN. */
static inline vec rounded_bf16(vec x) {
    const uvec bits = (uvec)x, odd = (bits >> 16) & 1;
    return vselect(x == x, (vec)((bits + odd + 0x7fff) & ~(uvec){0} << 16), x);
}

/* The sum of a number's terms, or itself if there are none. */
static inline real rounded_value(real x, size_t terms) {
    const real high = rounded_bf16(vset1(x))[0];
    return terms == 0 ? x : terms == 1 ? high : high + rounded_bf16(vset1(x - high))[0];
}

#ifdef RF_AMX

/* Tiles 0 to 3 hold C, 4 and 5 two strips of A, 6 and 7 two panels of B. Between these two calls
   the thread's tiles are configured; stopped() keeps that, but not what the tiles hold. */
static inline void products_begin(size_t terms) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t columns[16]; // bytes
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    if (terms) _tile_loadconfig(&config);
}

static inline void products_end(size_t terms) {
    if (terms) _tile_release();
}

/* To be called within work of more than half a microsecond between products, where no tile holds a
   result: it adds to tile 0. Sapphire Rapids powers its matrix unit down after 0.6 us without a
   product, and likewise stores of tiles; the next of each takes 0.35 us longer (measured:
   benchmarks/NOTES.md). A product and a store of whatever the tiles hold prevent both. */
static inline void products_awake(size_t terms) {
    _Alignas(RF_ALIGN) char tile[16 * 64];
    if (!terms) return;
    _tile_dpbf16ps(0, 4, 6);
    _tile_stored(1, tile, 64);
}

#else // nothing to prepare

static inline void products_begin(size_t terms) {
    (void)terms;
}

static inline void products_end(size_t terms) {
    (void)terms;
}

static inline void products_awake(size_t terms) {
    (void)terms;
}

#endif

#if HAS_BF16

/* The first n reals, or those that there are; the other lanes are 0. */
static inline __m512 load_some(const real *x, size_t n) {
    return _mm512_maskz_loadu_ps(n < 16 ? (__mmask16)((1u << n) - 1) : (__mmask16)0xffff, x);
}

static inline __m512 widened(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

/* Both rounded: those of x, then those of y. With `low`, what the first rounding left. */
static ALWAYS_INLINE __m512i round_two(__m512 x, __m512 y, int low) {
    __m512i high = (__m512i)_mm512_cvtne2ps_pbh(y, x);
    if (!low) return high;
    x = _mm512_sub_ps(x, widened(_mm512_castsi512_si256(high)));
    y = _mm512_sub_ps(y, widened(_mm512_extracti64x4_epi64(high, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(y, x);
}

/* The same, interleaved. */
static ALWAYS_INLINE __m512i round_pairs(__m512 x, __m512 y, int low) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, round_two(x, y, low));
}

/* A step of one row. */
static ALWAYS_INLINE void round_step(term *to, const real *x, size_t n, int low) {
    const __m512 second = n > 16 ? load_some(x + 16, n - 16) : _mm512_setzero_ps();
    _mm512_storeu_si512(to, round_two(load_some(x, n), second, low));
}

/* Rows p and p + 1 of the n columns of a panel; row p + 1 may not exist. */
static ALWAYS_INLINE void round_rows_pair(term *to, const real *x, size_t ld, size_t rows, size_t n,
                                          int low) {
    const __m512 second = rows > 1 ? load_some(x + ld, n) : _mm512_setzero_ps();
    _mm512_storeu_si512(to, round_pairs(load_some(x, n), second, low));
}

/* Transpose 16 rows of pairs, `to` being 16 pairs wide. */
static inline void transpose_pairs(term *to, const term *rows, size_t ld, size_t pairs) {
    const real *line[16];
    for (size_t i = 0; i < 16; i++) line[i] = (const real *)(rows + i * ld);
    transpose_rows((real *)to, 16, line, pairs);
}

/* Element (i, p) of the operand is x[i * ld + p]. */
static void left_rows(operand left, const real *x, size_t ld, size_t m, size_t k) {
    for (size_t low = 0; low < left.terms; low++)
        for (size_t i = 0; i < round_up(m, OPERAND_STRIP); i++)
            for (size_t p = 0; p < k; p += OPERAND_STEP) {
                term *to = left.at + low * left.size + i / OPERAND_STRIP * OPERAND_STRIP * left.k +
                           p * OPERAND_STRIP + i % OPERAND_STRIP * OPERAND_STEP;
                if (i < m)
                    round_step(to, x + i * ld + p, k - p, (int)low);
                else
                    memset(to, 0, OPERAND_STEP * sizeof *to);
            }
}

/* Element (p, j) of the operand is x[p * ld + j]. Rows are read in order, some panels at a time:
   more would collide in the sets of the L1 cache. */
static void right_rows(operand right, const real *x, size_t ld, size_t k, size_t n) {
    enum { TOGETHER = 4 * OPERAND_PANEL };
    for (size_t low = 0; low < right.terms; low++)
        for (size_t j0 = 0; j0 < n; j0 += TOGETHER)
            for (size_t p = 0; p < round_up(k, OPERAND_STEP); p += 2)
                for (size_t j = j0; j < min_size(n, j0 + TOGETHER); j += OPERAND_PANEL) {
                    term *to = right.at + low * right.size + j * right.k + p * OPERAND_PANEL;
                    if (p < k)
                        round_rows_pair(to, x + p * ld + j, ld, k - p, n - j, (int)low);
                    else
                        memset(to, 0, 2 * OPERAND_PANEL * sizeof *to);
                }
}

/* Element (i, p) of the operand, one of columns_of, is x[p * ld + i]. Its strips are panels. */
#if TAKES_PAIRS
static void left_columns(operand left, const real *x, size_t ld, size_t m, size_t k) {
    right_rows(left, x, ld, k, m);
}
#else
static void left_columns(operand left, const real *x, size_t ld, size_t m, size_t k) {
    _Alignas(RF_ALIGN) term rows[OPERAND_STEP / 2][2 * OPERAND_STRIP];
    for (size_t low = 0; low < left.terms; low++)
        for (size_t i = 0; i < m; i += OPERAND_STRIP)
            for (size_t p = 0; p < k; p += OPERAND_STEP) {
                for (size_t q = 0; q < OPERAND_STEP; q += 2)
                    if (p + q < k)
                        round_rows_pair(rows[q / 2], x + (p + q) * ld + i, ld, k - p - q, m - i,
                                        (int)low);
                    else
                        memset(rows[q / 2], 0, sizeof rows[0]);
                transpose_pairs(left.at + low * left.size + i * left.k + p * OPERAND_STRIP, rows[0],
                                2 * OPERAND_STRIP, OPERAND_STEP / 2);
            }
}
#endif

/* Element (p, j) of the operand is x[j * ld + p]. */
static void right_columns(operand right, const real *x, size_t ld, size_t k, size_t n) {
    enum { PIECE = 256 }; // steps at a time
    _Alignas(RF_ALIGN) term rows[OPERAND_PANEL][PIECE + OPERAND_STEP];
    for (size_t low = 0; low < right.terms; low++)
        for (size_t j = 0; j < n; j += OPERAND_PANEL)
            for (size_t p = 0; p < k; p += PIECE) {
                const size_t steps = min_size(PIECE, round_up(k - p, OPERAND_STEP));
                for (size_t i = 0; i < OPERAND_PANEL; i++)
                    for (size_t q = 0; q < steps; q += OPERAND_STEP)
                        if (j + i < n)
                            round_step(rows[i] + q, x + (j + i) * ld + p + q, k - p - q, (int)low);
                        else
                            memset(rows[i] + q, 0, OPERAND_STEP * sizeof(term));
                transpose_pairs(right.at + low * right.size + j * right.k + p * OPERAND_PANEL,
                                rows[0], PIECE + OPERAND_STEP, steps / 2);
            }
}

#ifdef RF_AMX

/* c (16 or 32 rows, one or two panels) = or += a b. Each step prefetches its share of `lines`. */
static ALWAYS_INLINE void unit_product(real *c, size_t ldc, operand a, operand b, size_t k, int add,
                                       const line_list *lines, const int rows, const int panels) {
    const int two_strips = rows > OPERAND_STRIP, two_panels = panels > 1;
    const size_t row = ldc * sizeof(real);
    const char *const *line = lines->line, *const *last = line + lines->count;
    const size_t each = blocks_of(lines->count, max_size(1, blocks_of(k, OPERAND_STEP)));
    if (add) {
        _tile_loadd(0, c, row);
        if (two_panels) _tile_loadd(1, c + 16, row);
        if (two_strips) _tile_loadd(2, c + 16 * ldc, row);
        if (two_strips && two_panels) _tile_loadd(3, c + 16 * ldc + 16, row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t pair = first_pair(a.terms); pair < TERM_PAIRS; pair++) {
        const term *a0 = a.at + term_pairs[pair].left * a.size, *a1 = a0 + OPERAND_STRIP * a.k;
        const term *b0 = b.at + term_pairs[pair].right * b.size, *b1 = b0 + OPERAND_PANEL * b.k;
        for (size_t p = 0; p < k * 16; p += OPERAND_STEP * 16) {
            _tile_loadd(6, b0 + p, 64);
            _tile_loadd(4, a0 + p, 64);
            _tile_dpbf16ps(0, 4, 6);
            if (two_panels) {
                _tile_loadd(7, b1 + p, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (two_strips) {
                _tile_loadd(5, a1 + p, 64);
                _tile_dpbf16ps(2, 5, 6);
            }
            if (two_strips && two_panels) _tile_dpbf16ps(3, 5, 7);
            for (size_t i = 0; i < each && line < last; i++) __builtin_prefetch(*line++, 0, 2);
        }
    }
    _tile_stored(0, c, row);
    if (two_panels) _tile_stored(1, c + 16, row);
    if (two_strips) _tile_stored(2, c + 16 * ldc, row);
    if (two_strips && two_panels) _tile_stored(3, c + 16 * ldc + 16, row);
}

#else

/* Some rows of c, and one or two panels: 16 accumulators. Each pair of steps prefetches one of
   `lines`; returns the first that is left. */
static ALWAYS_INLINE const char *const *some_rows(real *c, size_t ldc, operand a, operand b,
                                                  size_t k, int add, const char *const *line,
                                                  const char *const *last, const int panels,
                                                  const int by_pairs) {
    const size_t row_step = by_pairs ? 2 : OPERAND_STEP, pair_step = by_pairs ? OPERAND_STEP : 2;
    __m512 acc[16];
#pragma GCC unroll 16
    for (int e = 0; e < 16; e++)
        acc[e] = add ? _mm512_loadu_ps(c + (size_t)(e / panels) * ldc + e % panels * 16)
                     : _mm512_setzero_ps();
    for (size_t pair = first_pair(a.terms); pair < TERM_PAIRS; pair++) {
        const term *left = a.at + term_pairs[pair].left * a.size;
        const term *right = b.at + term_pairs[pair].right * b.size;
        const size_t columns = a.start + k;
        size_t first = a.start / 2;
        for (size_t p = 0; p < columns; p += OPERAND_STEP, left += OPERAND_STEP * OPERAND_STRIP) {
            const term *row = left + first * pair_step;
            const term *end = left + blocks_of(min_size(OPERAND_STEP, columns - p), 2) * pair_step;
            for (first = 0; row < end; row += pair_step, right += 2 * OPERAND_PANEL) {
                if (line < last) __builtin_prefetch(*line++, 0, 2);
                __m512i bp[2];
#pragma GCC unroll 2
                for (int j = 0; j < panels; j++)
                    bp[j] = _mm512_loadu_si512(right + (size_t)j * OPERAND_PANEL * b.k);
#pragma GCC unroll 16
                for (int e = 0; e < 16; e++) {
                    int32_t both;
                    memcpy(&both, row + (size_t)(e / panels) * row_step, sizeof both);
                    acc[e] = _mm512_dpbf16_ps(acc[e], (__m512bh)_mm512_set1_epi32(both),
                                              (__m512bh)bp[e % panels]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int e = 0; e < 16; e++)
        _mm512_storeu_ps(c + (size_t)(e / panels) * ldc + e % panels * 16, acc[e]);
    return line;
}

static ALWAYS_INLINE void unit_product(real *c, size_t ldc, operand a, operand b, size_t k, int add,
                                       const line_list *lines, const int rows, const int panels) {
    const char *const *line = lines->line, *const *last = line + lines->count;
    for (size_t i = 0; i < (size_t)rows; i += 16 / panels) {
        const operand from = left_from(a, i, a.start);
        if (a.by_pairs)
            line = some_rows(c + i * ldc, ldc, from, b, k, add, line, last, panels, 1);
        else
            line = some_rows(c + i * ldc, ldc, from, b, k, add, line, last, panels, 0);
    }
    while (line < last) __builtin_prefetch(*line++, 0, 2);
}

#endif

static void unit_of_strips(real *c, size_t ldc, operand a, operand b, size_t m, size_t n, size_t k,
                           int add, const line_list *lines) {
    if (strip_rows(m, n) < OPERAND_STRIP)
        unit_product(c, ldc, a, b, k, add, lines, OPERAND_STRIP / 2, 2);
    else if (m > OPERAND_STRIP && n > OPERAND_PANEL)
        unit_product(c, ldc, a, b, k, add, lines, 2 * OPERAND_STRIP, 2);
    else if (m > OPERAND_STRIP)
        unit_product(c, ldc, a, b, k, add, lines, 2 * OPERAND_STRIP, 1);
    else if (n > OPERAND_PANEL)
        unit_product(c, ldc, a, b, k, add, lines, OPERAND_STRIP, 2);
    else
        unit_product(c, ldc, a, b, k, add, lines, OPERAND_STRIP, 1);
}

/* The rows and columns that exist of a unit at the edge of c. With add, its sums begin with c, as
   those of other units do: a row has the same bits wherever tasks and chunks are cut. */
static void unit_edge(real *c, size_t ldc, operand a, operand b, size_t m, size_t n, size_t k,
                      int add, const line_list *lines) {
    _Alignas(RF_ALIGN) real whole[UNIT * UNIT];
    for (size_t i = 0; i < m && add; i++) memcpy(whole + i * UNIT, c + i * ldc, n * sizeof(real));
    unit_of_strips(whole, UNIT, a, b, m, n, k, add, lines);
    for (size_t i = 0; i < m; i++) memcpy(c + i * ldc, whole + i * UNIT, n * sizeof(real));
}

/* c (m x n, at most UNIT each) = (or, with add, +=) a b over k steps. Prefetches `lines`. */
static void rounded_unit(real *c, size_t ldc, operand a, operand b, size_t m, size_t n, size_t k,
                         int add, const line_list *lines) {
    if (m % strip_rows(m, n) == 0 && n % OPERAND_PANEL == 0)
        unit_of_strips(c, ldc, a, b, m, n, k, add, lines);
    else
        unit_edge(c, ldc, a, b, m, n, k, add, lines);
}

#else // no hardware for bfloat16

/* Split n float32 elements, stored as the operand's first term, into its terms. */
static void split_terms(operand x, size_t at, size_t n) {
    real *high = x.at + at, *low = x.at + x.size + at;
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        const vec all = vload(high + i), first = rounded_bf16(all);
        vstore(high + i, first);
        if (x.terms > 1) vstore(low + i, rounded_bf16(all - first));
    }
    for (; i < n; i++) {
        const real all = high[i], first = rounded_bf16(vset1(all))[0];
        high[i] = first;
        if (x.terms > 1) low[i] = rounded_bf16(vset1(all - first))[0];
    }
}

/* to[i * ldt + j] = x[j * ld + i] for i < m and j < n. */
static void transpose(real *to, size_t ldt, const real *x, size_t ld, size_t m, size_t n) {
    size_t j = 0;
    const size_t whole = m / VEC_LANES * VEC_LANES;
    for (; j + VEC_LANES <= n; j += VEC_LANES) {
        const real *line[VEC_LANES];
        for (size_t i = 0; i < VEC_LANES; i++) line[i] = x + (j + i) * ld;
        transpose_rows(to + j, ldt, line, whole);
        for (size_t i = whole; i < m; i++)
            for (size_t e = 0; e < VEC_LANES; e++) to[i * ldt + j + e] = line[e][i];
    }
    for (; j < n; j++)
        for (size_t i = 0; i < m; i++) to[i * ldt + j] = x[j * ld + i];
}

/* Element (i, p) of the operand is x[i * ld + p]. */
static void left_rows(operand left, const real *x, size_t ld, size_t m, size_t k) {
    for (size_t i = 0; i < m; i++) {
        memcpy(left.at + i * left.k, x + i * ld, k * sizeof(real));
        split_terms(left, i * left.k, k);
    }
}

/* Element (i, p) of the operand is x[p * ld + i]. */
static void left_columns(operand left, const real *x, size_t ld, size_t m, size_t k) {
    transpose(left.at, left.k, x, ld, m, k);
    for (size_t i = 0; i < m; i++) split_terms(left, i * left.k, k);
}

/* Element (p, j) of the operand is x[p * ld + j]. */
static void right_rows(operand right, const real *x, size_t ld, size_t k, size_t n) {
    for (size_t j = 0; j < n; j += OPERAND_PANEL) {
        gemm_pack(right.at + j * right.k, x + j, (ptrdiff_t)ld, 1, k, n - j, 0, 1);
        split_terms(right, j * right.k, k * OPERAND_PANEL);
    }
}

/* Element (p, j) of the operand is x[j * ld + p]. */
static void right_columns(operand right, const real *x, size_t ld, size_t k, size_t n) {
    for (size_t j = 0; j < n; j += OPERAND_PANEL) {
        const size_t columns = min_size(OPERAND_PANEL, n - j);
        real *to = right.at + j * right.k;
        if (columns < OPERAND_PANEL) memset(to, 0, k * OPERAND_PANEL * sizeof(real));
        transpose(to, OPERAND_PANEL, x + j * ld, ld, k, columns);
        split_terms(right, j * right.k, k * OPERAND_PANEL);
    }
}

/* c (m x n, at most UNIT each) = (or, with add, +=) a b over k steps. Prefetches `lines`. */
static void rounded_unit(real *c, size_t ldc, operand a, operand b, size_t m, size_t n, size_t k,
                         int add, const line_list *lines) {
    for (size_t i = 0; i < lines->count; i++) __builtin_prefetch(lines->line[i], 0, 2);
    for (size_t pair = first_pair(a.terms); pair < TERM_PAIRS; pair++, add = 1) {
        const real *left = a.at + term_pairs[pair].left * a.size;
        const real *right = b.at + term_pairs[pair].right * b.size;
        for (size_t j = 0; j < n; j += OPERAND_PANEL)
            for (size_t i = 0, mr; i < m; i += mr) {
                mr = tile_height(m - i);
                tile_of_panel(mr, 1, k, left + i * a.k, a.k, right + j * b.k, c + i * ldc + j, ldc,
                              min_size(OPERAND_PANEL, n - j), add, &no_lines);
            }
    }
}

#endif

/* c (m x n) = (or, with add, +=) a b over k steps. Each unit prefetches its share of `lines`. */
static void rounded_product(real *c, size_t ldc, operand a, operand b, size_t m, size_t n, size_t k,
                            int add, const line_list *lines) {
    const size_t each = blocks_of(lines->count, blocks_of(m, UNIT) * blocks_of(n, UNIT_COLUMNS));
    line_list mine = {lines->line, 0, 0};
    for (size_t j = 0; j < n; j += UNIT_COLUMNS)
        for (size_t i = 0; i < m; i += UNIT) {
            mine.line += mine.count;
            mine.count = min_size(each, (size_t)(lines->line + lines->count - mine.line));
            rounded_unit(c + i * ldc + j, ldc, left_from(a, i, a.start), right_from(b, 0, j),
                         min_size(UNIT, m - i), min_size(UNIT_COLUMNS, n - j), k, add, &mine);
        }
}

#endif
