/* gemm.h: matrix products on one tuned tile.

   A register tile computes GEMM_MR x (GEMM_NV vectors) of C: broadcast elements of A times vectors
   of B. Everything else here only brings operands into the layout that it needs: B as rows of
   contiguous lanes (packed panels of GEMM_NR columns), A either by rows (x in x w') or by columns
   (a transposed operand). Results do not depend on the number of threads. */
#ifndef RF_GEMM_H
#define RF_GEMM_H

#include "prefetch.h"
#include "vec.h"

/* Accumulators fill the register file: 6 x 4 of 32 registers (AVX-512, NEON), 6 x 2 of 16. Low and
   wide tiles waste less at the edge of the staircase that the causal mask makes in attention. */
#define GEMM_MR 6
#if defined(__AVX512F__) || (defined(__ARM_NEON) && defined(__aarch64__))
#define GEMM_NV 4
#else
#define GEMM_NV 2
#endif
#define GEMM_NR (GEMM_NV * VEC_LANES)

/* Steps of the inner dimension: a panel of B of that many stays in the L1 cache. */
#define GEMM_KC (16384 / (GEMM_NR * sizeof(real)))

/* Columns of C: those of a task's rows stay in the L2 cache together with the panels. */
#define GEMM_NC 512

/* Steps of a tile per prefetched line: about the time that memory takes to deliver a line. */
#define PREFETCH_STEPS (GEMM_NV == 4 ? 2 : 6)
#define PREFETCH_MAX 64 // lines listed for one tile of a product

/* One step of the inner dimension. A macro, since the tile below has it twice. */
#define TILE_STEP                                                                                  \
    {                                                                                              \
        _Pragma("GCC unroll 4") for (int j = 0; j < nv; j++) bp[j] = vload(b + j * VEC_LANES);     \
        _Pragma("GCC unroll 24") for (int e = 0; e < mr * nv; e++) {                               \
            const int i = e / nv;                                                                  \
            const real *row = i < 3 ? a0 : a3;                                                     \
            acc[e] += vset1(by_rows ? row[(size_t)(i % 3) * lda] : a[i]) * bp[e % nv];             \
        }                                                                                          \
        b += ldb;                                                                                  \
        a += lda;                                                                                  \
        a0++, a3++;                                                                                \
    }

/* c (mr x nv vectors) = (or, with add, +=) a b over k steps. Element (i, p) of A is
   a[i * lda + p] if by_rows, else a[i + p * lda]. With mr, nv and by_rows constant this unrolls
   into straight-line fused multiply-adds. Rows are addressed from two base pointers, since one per
   row would exceed the integer registers. The first steps each prefetch one of `lines`. */
static ALWAYS_INLINE void tile_body(const int mr, const int nv, const int by_rows, size_t k,
                                    const real *restrict a, size_t lda, const real *restrict b,
                                    size_t ldb, real *restrict c, size_t ldc, int add,
                                    const line_list *lines) {
    // each loop is flat, not nested: gcc unrolls such loops before it allocates registers
    vec acc[GEMM_MR * GEMM_NV], bp[GEMM_NV];
#pragma GCC unroll 24
    for (int e = 0; e < mr * nv; e++) acc[e] = (vec){0};

    const real *a0 = a, *a3 = a + 3 * lda;
    const char *const *line = lines->line, *const *last = line + lines->count;
    for (; k && line < last; k--) {
        __builtin_prefetch(*line++, 0, 2);
        TILE_STEP
    }
    for (; k; k--) TILE_STEP

#pragma GCC unroll 24
    for (int e = 0; e < mr * nv; e++) {
        real *ce = c + (size_t)(e / nv) * ldc + (size_t)(e % nv) * VEC_LANES;
        vstore(ce, add ? vload(ce) + acc[e] : acc[e]);
    }
}

typedef void (*tile_function)(size_t k, const real *a, size_t lda, const real *b, size_t ldb,
                              real *c, size_t ldc, int add, const line_list *lines);

#define TILE(mr, nv)                                                                               \
    static void tile_columns_##mr##_##nv(size_t k, const real *a, size_t lda, const real *b,       \
                                         size_t ldb, real *c, size_t ldc, int add,                 \
                                         const line_list *lines) {                                 \
        tile_body(mr, nv, 0, k, a, lda, b, ldb, c, ldc, add, lines);                               \
    }                                                                                              \
    static void tile_rows_##mr##_##nv(size_t k, const real *a, size_t lda, const real *b,          \
                                      size_t ldb, real *c, size_t ldc, int add,                    \
                                      const line_list *lines) {                                    \
        tile_body(mr, nv, 1, k, a, lda, b, ldb, c, ldc, add, lines);                               \
    }
#if GEMM_NV == 4
#define TILES(mr) TILE(mr, 1) TILE(mr, 2) TILE(mr, 3) TILE(mr, 4)
#define TILE_LINE(kind, mr)                                                                        \
    {tile_##kind##_##mr##_1, tile_##kind##_##mr##_2, tile_##kind##_##mr##_3, tile_##kind##_##mr##_4}
#else
#define TILES(mr) TILE(mr, 1) TILE(mr, 2)
#define TILE_LINE(kind, mr) {tile_##kind##_##mr##_1, tile_##kind##_##mr##_2}
#endif
#define TILE_ENTRY(mr) {TILE_LINE(columns, mr), TILE_LINE(rows, mr)}
// clang-format off: it cannot parse these macro calls
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)

/* Tiles by height, layout of A ([0] columns, [1] rows) and width in vectors. */
static const tile_function tiles[GEMM_MR][2][GEMM_NV] = {TILE_ENTRY(1), TILE_ENTRY(2), TILE_ENTRY(3),
                                                         TILE_ENTRY(4), TILE_ENTRY(5), TILE_ENTRY(6)};
// clang-format on

/* The tile for `mr` rows and `columns` columns, or the widest if there are more. */
static inline tile_function tile_for(size_t mr, int by_rows, size_t columns) {
    return tiles[mr - 1][by_rows][min_size(GEMM_NV, blocks_of(columns, VEC_LANES)) - 1];
}

/* Height of the next tile when `m` rows are left: equal heights rather than a thin last tile. */
static inline size_t tile_height(size_t m) {
    const size_t pieces = blocks_of(m, GEMM_MR);
    return pieces * GEMM_MR - m < pieces ? GEMM_MR : blocks_of(m, pieces);
}

/* ---------------------------------------------------------------- a packed right operand ---- */

static inline size_t gemm_panels(size_t n) {
    return blocks_of(n, GEMM_NR);
}

/* Reals of a packed k x n operand. */
static inline size_t gemm_packed_size(size_t k, size_t n) {
    return bytes_mul(k, bytes_mul(gemm_panels(n), GEMM_NR));
}

/* Pack panels [panel0, panel1) of B, element (p, j) at b[p * brs + j * bcs]: each panel is k rows
   of GEMM_NR columns, the missing columns of the last one 0. */
static void gemm_pack(real *packed, const real *b, ptrdiff_t brs, ptrdiff_t bcs, size_t k, size_t n,
                      size_t panel0, size_t panel1) {
    for (size_t panel = panel0; panel < panel1; panel++) {
        real *to = packed + panel * GEMM_NR * k;
        const real *from = b + (ptrdiff_t)(panel * GEMM_NR) * bcs;
        const size_t columns = min_size(GEMM_NR, n - panel * GEMM_NR);
        if (columns < GEMM_NR) memset(to, 0, k * GEMM_NR * sizeof(real));
        if (bcs == 1)
            for (size_t p = 0; p < k; p++)
                for (size_t j = 0; j < columns; j++)
                    to[p * GEMM_NR + j] = from[(ptrdiff_t)p * brs + (ptrdiff_t)j];
        else // sixteen steps at a time, so that a cache line is used completely once loaded
            for (size_t p0 = 0; p0 < k; p0 += 16)
                for (size_t j = 0; j < columns; j++)
                    for (size_t p = p0; p < min_size(p0 + 16, k); p++)
                        to[p * GEMM_NR + j] = from[(ptrdiff_t)p * brs + (ptrdiff_t)j * bcs];
    }
}

/* Pack all panels, on all threads. */
static void pack_parallel(rf_run *run, real *packed, const real *b, ptrdiff_t brs, ptrdiff_t bcs,
                          size_t k, size_t n) {
    const size_t panels = gemm_panels(n);
    const double work = (double)k * (double)n;
#pragma omp parallel for num_threads(team(run, work)) schedule(static)
    for (size_t panel = 0; panel < panels; panel++)
        if (!stopped(run)) gemm_pack(packed, b, brs, bcs, k, n, panel, panel + 1);
}

/* One tile at the right edge: only `columns` of its columns exist in C. */
static void tile_edge(tile_function tile, size_t mr, size_t k, const real *a, size_t lda,
                      const real *b, real *c, size_t ldc, size_t columns, int add,
                      const line_list *lines) {
    real whole[GEMM_MR * GEMM_NR];
    tile(k, a, lda, b, GEMM_NR, whole, GEMM_NR, 0, lines);
    for (size_t i = 0; i < mr; i++)
        for (size_t j = 0; j < columns; j++)
            c[i * ldc + j] = add ? c[i * ldc + j] + whole[i * GEMM_NR + j] : whole[i * GEMM_NR + j];
}

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
        const real *ai = by_rows ? a + i * lda : a + i;
        const tile_function tile = tile_for(mr, by_rows, columns);
        if (columns == GEMM_NR)
            tile(k, ai, lda, b, GEMM_NR, c + i * ldc, ldc, add, &lines);
        else
            tile_edge(tile, mr, k, ai, lda, b, c + i * ldc, ldc, columns, add, &lines);
    }
}

/* c[i * ldc + j] = (or, with add, +=) sum over p of a(i, p) packed(p, j), where a(i, p) is
   a[i * ars + p * acs] and one of the strides of A is 1. Runs on the calling thread: tasks call it
   with some 50 to 200 rows. A wide C is processed GEMM_NC columns at a time, which stay in the
   cache while the inner dimension is accumulated. Prefetches next_rows (or NULL) meanwhile. */
static void gemm_packed_prefetch(real *c, size_t ldc, const real *a, ptrdiff_t ars, ptrdiff_t acs,
                                 const real *packed, size_t m, size_t n, size_t k, int add,
                                 const prefetch_rows *next_rows) {
    prefetch_cursor cursor =
        prefetch_begin(next_rows, gemm_panels(n) * blocks_of(k, GEMM_KC) * blocks_of(m, GEMM_MR));
    const int by_rows = acs == 1;
    const size_t lda = (size_t)(by_rows ? ars : acs);
    if (k == 0 && !add)
        for (size_t i = 0; i < m; i++) memset(c + i * ldc, 0, n * sizeof(real));
    for (size_t j0 = 0; j0 < n; j0 += GEMM_NC) {
        const size_t j1 = min_size(n, j0 + GEMM_NC);
        for (size_t p = 0; p < k; p += GEMM_KC) {
            const size_t kc = min_size(GEMM_KC, k - p);
            for (size_t j = j0; j < j1; j += GEMM_NR) {
                const real *b = packed + j * k + p * GEMM_NR;
                gemm_panel(c + j, ldc, by_rows ? a + p : a + p * lda, lda, by_rows, b,
                           j + GEMM_NR < j1 ? b + k * GEMM_NR : NULL, m, min_size(GEMM_NR, n - j),
                           kc, add || p, &cursor);
            }
        }
    }
}

static void gemm_packed(real *c, size_t ldc, const real *a, ptrdiff_t ars, ptrdiff_t acs,
                        const real *packed, size_t m, size_t n, size_t k, int add) {
    gemm_packed_prefetch(c, ldc, a, ars, acs, packed, m, n, k, add, NULL);
}

/* ----------------------------------------------------------------------- dw += dy' x -------- */

/* The gradient of a weight is a sum over many rows. C is cut into blocks and the rows into slabs,
   so that there are some 32 tasks even if the weight is small; the slabs' sums are added in order.
   All of it depends on sizes alone. */
#define WG_MC 192
#define WG_NC 256
#define WG_KC 256

static size_t weight_gradient_slabs(size_t n, size_t co, size_t ci) {
    const size_t blocks = max_size(1, blocks_of(co, WG_MC) * blocks_of(ci, WG_NC));
    return max_size(1, min_size(blocks_of(32, blocks), n / 1024));
}

/* Reals of one thread's packed blocks of dy and x. */
static size_t weight_gradient_packs(void) {
    return WG_KC * WG_MC + gemm_packed_size(WG_KC, WG_NC);
}

static size_t weight_gradient_workspace(size_t n, size_t co, size_t ci, int workers) {
    const size_t slabs = weight_gradient_slabs(n, co, ci);
    const size_t partial = slabs > 1 ? bytes_mul(slabs, bytes_mul(co, ci)) : 0;
    return bytes_add(bytes_of(partial, sizeof(real)),
                     bytes_mul((size_t)workers, bytes_of(weight_gradient_packs(), sizeof(real))));
}

/* One block of one slab: c (mc x nc) += dy[rows, columns of the block]' x[rows, ...]. */
static void weight_gradient_block(real *c, size_t ldc, const real *dy, size_t ldy, const real *x,
                                  size_t ldx, size_t rows, size_t mc, size_t nc, real *packs) {
    real *a = packs, *b = packs + WG_KC * WG_MC;
    for (size_t p = 0; p < rows; p += WG_KC) {
        const size_t kc = min_size(WG_KC, rows - p);
        for (size_t i = 0; i < kc; i++)
            memcpy(a + i * WG_MC, dy + (p + i) * ldy, mc * sizeof(real));
        gemm_pack(b, x + p * ldx, (ptrdiff_t)ldx, 1, kc, nc, 0, gemm_panels(nc));
        const size_t next = min_size(WG_KC, rows - p - kc);
        const prefetch_rows of_x = {x + (p + kc) * ldx, (ptrdiff_t)ldx, nc, next, NULL};
        const prefetch_rows of_dy = {dy + (p + kc) * ldy, (ptrdiff_t)ldy, mc, next, &of_x};
        gemm_packed_prefetch(c, ldc, a, 1, WG_MC, b, mc, nc, kc, 1, &of_dy);
    }
}

/* dw (co x ci) += dy' x over n rows. */
static void weight_gradient(rf_run *run, real *dw, const real *dy, size_t ldy, const real *x,
                            size_t ldx, size_t n, size_t co, size_t ci, void *scratch) {
    const size_t slabs = weight_gradient_slabs(n, co, ci), size = co * ci;
    const size_t across = blocks_of(ci, WG_NC), blocks = blocks_of(co, WG_MC) * across;
    real *partial = take(&scratch, slabs > 1 ? slabs * size : 0, sizeof(real));
    const size_t packs = bytes_of(weight_gradient_packs(), sizeof(real)) / sizeof(real);
    const int workers = tile_team(run, 2.0 * (double)n * (double)size, slabs * blocks);

#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (size_t task = 0; task < slabs * blocks; task++) {
        if (stopped(run)) continue;
        const size_t slab = task / blocks, i = task % blocks / across * WG_MC;
        const size_t j = task % across * WG_NC, row = n * slab / slabs;
        const size_t rows = n * (slab + 1) / slabs - row;
        const size_t mc = min_size(WG_MC, co - i), nc = min_size(WG_NC, ci - j);
        real *c = (slabs > 1 ? partial + slab * size : dw) + i * ci + j;
        if (slabs > 1)
            for (size_t r = 0; r < mc; r++) memset(c + r * ci, 0, nc * sizeof(real));
        weight_gradient_block(c, ci, dy + row * ldy + i, ldy, x + row * ldx + j, ldx, rows, mc, nc,
                              (real *)scratch + thread_index() * packs);
    }

    if (slabs > 1) {
#pragma omp parallel for num_threads(team(run, (double)(slabs * size))) schedule(static)
        for (size_t i = 0; i < co; i++)
            for (size_t s = 0; s < slabs; s++) {
                const real *from = partial + s * size + i * ci;
                for (size_t j = 0; j < ci; j++) dw[i * ci + j] += from[j];
            }
    }
}

#endif
