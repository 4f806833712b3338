/* gemm_tile.h: one register tile of a matrix product, and the packing of its right operand.

   A tile is GEMM_MR x (GEMM_NV vectors) of C: broadcast elements of A times vectors of B. B is read
   as rows of contiguous lanes (packed panels of GEMM_NR columns), A either by rows (x in x w') or
   by columns (a transposed operand). */
#ifndef RF_GEMM_TILE_H
#define RF_GEMM_TILE_H

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

/* One tile of a packed panel, of which `columns` columns exist in C. */
static inline void tile_of_panel(size_t mr, int by_rows, size_t k, const real *a, size_t lda,
                                 const real *b, real *c, size_t ldc, size_t columns, int add,
                                 const line_list *lines) {
    const tile_function tile = tile_for(mr, by_rows, columns);
    if (columns == GEMM_NR)
        tile(k, a, lda, b, GEMM_NR, c, ldc, add, lines);
    else
        tile_edge(tile, mr, k, a, lda, b, c, ldc, columns, add, lines);
}

#endif
