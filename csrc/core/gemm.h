/* gemm.h: matrix products of many rows: packed weights, and the gradient of weights. Results do not
   depend on the number of threads. */
#ifndef RF_GEMM_H
#define RF_GEMM_H

#include "bf16.h"
#include "rows.h"

/* ---------------------------------------------------------------- a packed right operand ---- */

/* A right operand (k x n), packed once for many rows: in the panels of gemm_pack, or rounded to
   bfloat16. */
typedef struct {
    size_t k, n;
    real *panels;
    operand rounded; // instead, if it has terms
} packed_matrix;

static size_t packed_bytes(const rf_run *run, size_t k, size_t n) {
    const size_t terms = terms_of(run);
    return terms ? bytes_of(bytes_mul(terms, right_size(k, n)), sizeof(term))
                 : bytes_of(gemm_packed_size(k, n), sizeof(real));
}

static packed_matrix packed_at(const rf_run *run, void *at, size_t k, size_t n) {
    const size_t terms = terms_of(run);
    if (!terms) return (packed_matrix){.k = k, .n = n, .panels = at};
    return (packed_matrix){.k = k, .n = n, .rounded = right_operand(at, terms, k, n)};
}

/* Cut the matrix from the front of the scratch. */
static packed_matrix take_packed(void **scratch, const rf_run *run, size_t k, size_t n) {
    return packed_at(run, take(scratch, packed_bytes(run, k, n), 1), k, n);
}

/* n of its columns, from column j on: a multiple of whole panels. */
static packed_matrix packed_columns(packed_matrix b, size_t j, size_t n) {
    b.n = n;
    if (b.rounded.terms)
        b.rounded = right_from(b.rounded, 0, j);
    else
        b.panels += j * b.k;
    return b;
}

/* Pack B, element (p, j) at b[p * brs + j * bcs], one of the strides being 1, on all threads. */
static void pack_parallel(rf_run *run, packed_matrix to, const real *b, ptrdiff_t brs,
                          ptrdiff_t bcs) {
    const size_t panels = gemm_panels(to.n), terms = to.rounded.terms;
#pragma omp parallel for num_threads(team(run, (double)to.k *(double)to.n)) schedule(static)
    for (size_t panel = 0; panel < panels; panel++) {
        if (stopped(run)) continue;
        const size_t j = panel * GEMM_NR, n = min_size(GEMM_NR, to.n - j);
        const real *from = b + (ptrdiff_t)j * bcs;
        if (!terms)
            gemm_pack(to.panels, b, brs, bcs, to.k, to.n, panel, panel + 1);
        else if (bcs == 1)
            right_rows(right_from(to.rounded, 0, j), from, (size_t)brs, to.k, n);
        else
            right_columns(right_from(to.rounded, 0, j), from, (size_t)bcs, to.k, n);
    }
}

/* ---------------------------------------------------------------------- c = a packed -------- */

/* One panel's columns of all rows. Meanwhile the next panel is prefetched, since the hardware
   prefetcher does not follow from one panel to another, and so are the rows at `cursor`. */
static void gemm_panel(real *c, size_t ldc, const real *a, size_t lda, int by_rows, const real *b,
                       const real *next, size_t m, size_t columns, size_t k, int add,
                       prefetch_cursor *cursor) {
    const size_t panel_lines = k * GEMM_NR * sizeof(real) / RF_ALIGN;
    const size_t each = blocks_of(panel_lines, blocks_of(m, GEMM_MR));
    // aligned: a store across two cache lines cannot be forwarded to the tile's loads
    _Alignas(RF_ALIGN) const char *line[PREFETCH_MAX + 7];
    size_t listed = 0;
    for (size_t i = 0, mr; i < m; i += mr) {
        mr = tile_height(m - i);
        line_list lines = {line, 0, min_size(PREFETCH_MAX, k / PREFETCH_STEPS)};
        if (next) {
            const size_t n = min_size(each, min_size(lines.room, panel_lines - listed));
            list_lines(&lines, (const char *)next + listed * RF_ALIGN, n);
            listed += n;
        }
        list_rows(&lines, cursor);
        tile_of_panel(mr, by_rows, k, by_rows ? a + i * lda : a + i, lda, b, c + i * ldc, ldc,
                      columns, add, &lines);
    }
}

/* Rounded operands: the steps of a product for which UNIT rows of the left one stay in the L1
   cache, and the columns whose panels stay in the L2 cache during that time. */
#define ROUNDED_STRIP 8192 // terms of UNIT rows: 16 KB of bfloat16, or 32 KB of float32
#define ROUNDED_KC(terms) (ROUNDED_STRIP / UNIT / (terms))
#define ROUNDED_NC 512
#define ROUNDED_COLUMNS 128 // of a left operand that are rounded at once
#define ROUNDED_LINES 256   // listed for one unit, at most

/* UNIT rows (or the last ones) of c += left b, for steps [p, p + kc) and columns [j0, j1) of b. */
static void rounded_rows(real *c, size_t ldc, operand left, const packed_matrix *b, size_t rows,
                         size_t p, size_t kc, size_t j0, size_t j1, int add,
                         prefetch_cursor *cursor) {
    _Alignas(RF_ALIGN) const char *line[ROUNDED_LINES + 7];
    for (size_t j = j0; j < j1; j += UNIT_COLUMNS) {
        line_list lines = {line, 0, ROUNDED_LINES};
        list_rows(&lines, cursor);
        rounded_unit(c + j, ldc, left, right_from(b->rounded, p, j), rows,
                     min_size(UNIT_COLUMNS, j1 - j), kc, add, &lines);
    }
}

static prefetch_cursor rounded_cursor(const prefetch_rows *next_rows, const packed_matrix *b,
                                      size_t m, size_t kc) {
    return prefetch_begin(next_rows,
                          blocks_of(b->n, UNIT_COLUMNS) * blocks_of(b->k, kc) * blocks_of(m, UNIT));
}

/* A left operand that is rounded UNIT rows at a time. */
static void gemm_rounded(real *c, size_t ldc, const real *a, size_t lda, int by_rows,
                         const packed_matrix *b, size_t m, int add,
                         const prefetch_rows *next_rows) {
    const size_t terms = b->rounded.terms, kc_max = ROUNDED_KC(terms);
    prefetch_cursor cursor = rounded_cursor(next_rows, b, m, kc_max);
    _Alignas(RF_ALIGN) term strip[ROUNDED_STRIP];
    products_begin(terms);
    for (size_t j0 = 0; j0 < b->n; j0 += ROUNDED_NC)
        for (size_t p = 0; p < b->k; p += kc_max) {
            const size_t kc = min_size(kc_max, b->k - p);
            for (size_t i = 0; i < m; i += UNIT) {
                const size_t rows = min_size(UNIT, m - i);
                operand left = left_operand(strip, terms, rows, kc);
                if (!by_rows) left = columns_of(left);
                for (size_t at = 0; at < rows && by_rows; at += OPERAND_STRIP) {
                    left_rows(left_from(left, at, 0), a + (i + at) * lda + p, lda,
                              min_size(OPERAND_STRIP, rows - at), kc);
                    products_awake(terms);
                }
                for (size_t at = 0; at < kc && !by_rows; at += ROUNDED_COLUMNS) {
                    left_columns(left_from(left, 0, at), a + (p + at) * lda + i, lda, rows,
                                 min_size(ROUNDED_COLUMNS, kc - at));
                    products_awake(terms);
                }
                rounded_rows(c + i * ldc, ldc, left, b, rows, p, kc, j0,
                             min_size(b->n, j0 + ROUNDED_NC), add || p, &cursor);
            }
        }
    products_end(terms);
}

/* c[i * ldc + j] = (or, with add, +=) sum over p of a(i, p) b(p, j), where a(i, p) is
   a[i * ars + p * acs] and one of the strides of A is 1. Runs on the calling thread: tasks call it
   with some 50 to 200 rows. A wide C is processed GEMM_NC columns at a time, which stay in the
   cache while the inner dimension is accumulated. Prefetches next_rows (or NULL) meanwhile. */
static void gemm_packed_prefetch(real *c, size_t ldc, const real *a, ptrdiff_t ars, ptrdiff_t acs,
                                 const packed_matrix *b, size_t m, int add,
                                 const prefetch_rows *next_rows) {
    const size_t n = b->n, k = b->k;
    const int by_rows = acs == 1;
    const size_t lda = (size_t)(by_rows ? ars : acs);
    if (k == 0 && !add)
        for (size_t i = 0; i < m; i++) memset(c + i * ldc, 0, n * sizeof(real));
    if (b->rounded.terms) {
        gemm_rounded(c, ldc, a, lda, by_rows, b, m, add, next_rows);
        return;
    }
    prefetch_cursor cursor =
        prefetch_begin(next_rows, gemm_panels(n) * blocks_of(k, GEMM_KC) * blocks_of(m, GEMM_MR));
    for (size_t j0 = 0; j0 < n; j0 += GEMM_NC) {
        const size_t j1 = min_size(n, j0 + GEMM_NC);
        for (size_t p = 0; p < k; p += GEMM_KC) {
            const size_t kc = min_size(GEMM_KC, k - p);
            for (size_t j = j0; j < j1; j += GEMM_NR) {
                const real *panel = b->panels + j * k + p * GEMM_NR;
                gemm_panel(c + j, ldc, by_rows ? a + p : a + p * lda, lda, by_rows, panel,
                           j + GEMM_NR < j1 ? panel + k * GEMM_NR : NULL, m,
                           min_size(GEMM_NR, n - j), kc, add || p, &cursor);
            }
        }
    }
}

static void gemm_packed(real *c, size_t ldc, const real *a, ptrdiff_t ars, ptrdiff_t acs,
                        const packed_matrix *b, size_t m, int add) {
    gemm_packed_prefetch(c, ldc, a, ars, acs, b, m, add, NULL);
}

/* -------------------------------------------------- a left operand of several products ------ */

/* A task's rows as the left operand of several products: copied to scratch, or rounded. */
typedef struct {
    size_t m, k;
    const real *rows; // ld apart
    size_t ld;
    operand rounded; // instead, if it has terms
} left_matrix;

static size_t left_bytes(const rf_run *run, size_t m, size_t k) {
    const size_t terms = terms_of(run);
    return terms ? bytes_of(bytes_mul(terms, left_size(m, k)), sizeof(term))
                 : bytes_of(bytes_mul(m, padded(k)), sizeof(real));
}

static left_matrix left_at(const rf_run *run, void *at, const real *x, size_t m, size_t k) {
    left_matrix left = {.m = m, .k = k, .rows = at, .ld = padded(k)};
    if (terms_of(run)) {
        left.rounded = left_operand(at, terms_of(run), m, k);
        left_rows(left.rounded, x, k, m, k);
    } else {
        copy_rows(at, left.ld, x, k, m, k);
    }
    return left;
}

/* c = left b. Prefetches next_rows (or NULL) meanwhile. */
static void gemm_left(real *c, size_t ldc, const left_matrix *left, const packed_matrix *b,
                      const prefetch_rows *next_rows) {
    const size_t terms = left->rounded.terms, kc_max = ROUNDED_KC(max_size(terms, 1));
    if (!terms || !b->k) {
        gemm_packed_prefetch(c, ldc, left->rows, (ptrdiff_t)left->ld, 1, b, left->m, 0, next_rows);
        return;
    }
    prefetch_cursor cursor = rounded_cursor(next_rows, b, left->m, kc_max);
    products_begin(terms);
    for (size_t j0 = 0; j0 < b->n; j0 += ROUNDED_NC)
        for (size_t p = 0; p < b->k; p += kc_max)
            for (size_t i = 0; i < left->m; i += UNIT)
                rounded_rows(c + i * ldc, ldc, left_from(left->rounded, i, p), b,
                             min_size(UNIT, left->m - i), p, min_size(kc_max, b->k - p), j0,
                             min_size(b->n, j0 + ROUNDED_NC), p > 0, &cursor);
    products_end(terms);
}

/* ------------------------------------------- dw += dy' x, db += the column sums of dy ------- */

/* The gradient of a weight is a sum over many rows. C is cut into blocks and the rows into slabs,
   so that there are some 32 tasks even if the weight is small; the slabs' sums are added in order.
   All of it depends on sizes alone. A block of C, and k rows of its operands, stay in the L2 cache;
   rounded operands are smaller, and their blocks larger, since each is rounded once per block. */
typedef struct {
    size_t m, n, k;
} block_size;

#ifdef RF_AMX
#define ROUNDED_BLOCK 512 // with an L2 cache of 2 MB
#else
#define ROUNDED_BLOCK 256
#endif

static block_size weight_gradient_size(const rf_run *run) {
    return HAS_BF16 && terms_of(run) ? (block_size){ROUNDED_BLOCK, 512, 512}
                                     : (block_size){192, 256, 256};
}

static size_t weight_gradient_slabs(block_size size, size_t n, size_t co, size_t ci) {
    const size_t blocks = max_size(1, blocks_of(co, size.m) * blocks_of(ci, size.n));
    return max_size(1, min_size(blocks_of(32, blocks), n / 1024));
}

/* Bytes of one thread's packed blocks of dy and x. */
static size_t weight_gradient_packs(const rf_run *run) {
    const block_size size = weight_gradient_size(run);
    const size_t dy = terms_of(run) ? 0 : bytes_of(size.k * size.m, sizeof(real));
    return dy + packed_bytes(run, size.k, size.n);
}

static size_t weight_gradient_workspace(const rf_run *run, size_t n, size_t co, size_t ci) {
    const size_t slabs = weight_gradient_slabs(weight_gradient_size(run), n, co, ci);
    const size_t partial = slabs > 1 ? bytes_mul(slabs, bytes_mul(co, bytes_add(ci, 1))) : 0;
    return bytes_add(bytes_of(partial, sizeof(real)),
                     bytes_mul((size_t)run->workers, weight_gradient_packs(run)));
}

/* sums += the column sums of some rows. */
static void add_column_sums(real *sums, const real *x, size_t ldx, size_t rows, size_t columns) {
    enum { TOGETHER = 4 };
    size_t j = 0;
    for (; j + TOGETHER * VEC_LANES <= columns; j += TOGETHER * VEC_LANES) {
        vec sum[TOGETHER] = {{0}};
        for (size_t i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (size_t e = 0; e < TOGETHER; e++) sum[e] += vload(x + i * ldx + j + e * VEC_LANES);
        for (size_t e = 0; e < TOGETHER; e++) {
            real *to = sums + j + e * VEC_LANES;
            vstore(to, vload(to) + sum[e]);
        }
    }
    for (; j + VEC_LANES <= columns; j += VEC_LANES) {
        vec sum = {0};
        for (size_t i = 0; i < rows; i++) sum += vload(x + i * ldx + j);
        vstore(sums + j, vload(sums + j) + sum);
    }
    real rest[VEC_LANES] = {0};
    for (size_t i = 0; i < rows; i++)
        for (size_t e = 0; e < columns - j; e++) rest[e] += x[i * ldx + j + e];
    for (size_t e = 0; e < columns - j; e++) sums[j + e] += rest[e];
}

/* One block of one slab: c (mc x nc) += dy[rows, columns of the block]' x[rows, ...]. Unless sums
   is NULL, sums += the column sums of that dy. */
static void weight_gradient_block(const rf_run *run, real *c, size_t ldc, real *sums,
                                  const real *dy, size_t ldy, const real *x, size_t ldx,
                                  size_t rows, size_t mc, size_t nc, void *packs) {
    const block_size size = weight_gradient_size(run);
    real *a = take(&packs, terms_of(run) ? 0 : size.k * size.m, sizeof(real));
    for (size_t p = 0; p < rows; p += size.k) {
        const size_t kc = min_size(size.k, rows - p);
        const packed_matrix b = packed_at(run, packs, kc, nc);
        const size_t next = min_size(size.k, rows - p - kc);
        const prefetch_rows of_x = {x + (p + kc) * ldx, (ptrdiff_t)ldx, nc, next, NULL};
        const prefetch_rows of_dy = {dy + (p + kc) * ldy, (ptrdiff_t)ldy, mc, next, &of_x};
        if (sums) add_column_sums(sums, dy + p * ldy, ldy, kc, mc);
        if (b.rounded.terms) {
            right_rows(b.rounded, x + p * ldx, ldx, kc, nc);
            gemm_packed_prefetch(c, ldc, dy + p * ldy, 1, (ptrdiff_t)ldy, &b, mc, 1, &of_dy);
            continue;
        }
        for (size_t i = 0; i < kc; i++)
            memcpy(a + i * size.m, dy + (p + i) * ldy, mc * sizeof(real));
        gemm_pack(b.panels, x + p * ldx, (ptrdiff_t)ldx, 1, kc, nc, 0, gemm_panels(nc));
        gemm_packed_prefetch(c, ldc, a, 1, (ptrdiff_t)size.m, &b, mc, 1, &of_dy);
    }
}

/* dw (co x ci) += dy' x over n rows, and db (co) += the column sums of dy, unless it is NULL. */
static void weight_gradient(rf_run *run, real *dw, real *db, const real *dy, size_t ldy,
                            const real *x, size_t ldx, size_t n, size_t co, size_t ci,
                            void *scratch) {
    const block_size of = weight_gradient_size(run);
    const size_t slabs = weight_gradient_slabs(of, n, co, ci), size = co * ci;
    const size_t across = max_size(1, blocks_of(ci, of.n)); // db needs one
    const size_t blocks = blocks_of(co, of.m) * across;
    real *partial = take(&scratch, slabs > 1 ? slabs * (size + co) : 0, sizeof(real));
    real *sums = partial + slabs * size;
    const size_t packs = weight_gradient_packs(run);
    const int workers = tile_team(run, 2.0 * (double)n * (double)size, slabs * blocks);

#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (size_t task = 0; task < slabs * blocks; task++) {
        if (stopped(run)) continue;
        const size_t slab = task / blocks, i = task % blocks / across * of.m;
        const size_t j = task % across * of.n, row = n * slab / slabs;
        const size_t rows = n * (slab + 1) / slabs - row;
        const size_t mc = min_size(of.m, co - i), nc = min_size(of.n, ci - j);
        real *c = (slabs > 1 ? partial + slab * size : dw) + i * ci + j;
        real *sum = !db || j ? NULL : (slabs > 1 ? sums + slab * co : db) + i;
        if (slabs > 1)
            for (size_t r = 0; r < mc; r++) memset(c + r * ci, 0, nc * sizeof(real));
        if (slabs > 1 && sum) memset(sum, 0, mc * sizeof(real));
        weight_gradient_block(run, c, ci, sum, dy + row * ldy + i, ldy, x + row * ldx + j, ldx,
                              rows, mc, nc, (char *)scratch + thread_index() * packs);
    }

    if (slabs > 1 && !is_stopped(run)) {
#pragma omp parallel for num_threads(team(run, (double)(slabs * size))) schedule(static)
        for (size_t i = 0; i < co; i++)
            for (size_t s = 0; s < slabs; s++) {
                const real *from = partial + s * size + i * ci;
                for (size_t j = 0; j < ci; j++) dw[i * ci + j] += from[j];
                if (db) db[i] += sums[s * co + i];
            }
    }
}

#endif
