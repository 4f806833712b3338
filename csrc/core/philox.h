/* philox.h: random bits that depend on where, not on when.

   A counter-based generator is a pure function of (key, counter), so that a mask can be made again
   in any order, on any thread, and in the backward pass: nothing is stored and no state exists. The
   generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
   3"). */
#ifndef RF_PHILOX_H
#define RF_PHILOX_H

#include "vec.h"

/* One word of a counter in each lane. Only the lower half of a lane counts: the product below
   takes no more, so what shifts leave in the upper half is never cleaned away. */
typedef uint64_t wide __attribute__((vector_size(VEC_BYTES)));

#define WIDE_LANES (VEC_BYTES / sizeof(uint64_t))

/* 32 x 32 -> 64 bits in every lane. Every machine has the instruction, and no compiler finds it:
   the plain product costs two to three times as much. */
static inline wide wide_product(wide x, uint32_t y) {
#if defined(__AVX512F__)
    return (wide)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(y));
#elif defined(__AVX2__)
    return (wide)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(y));
#elif defined(__SSE2__) && VEC_BYTES == 16
    return (wide)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(y));
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (wide)vmull_u32(vmovn_u64((uint64x2_t)x), vdup_n_u32(y));
#else
    return (x & UINT32_MAX) * y;
#endif
}

/* From each counter of four words to four random words, in place. */
static inline void philox(wide x[4], uint64_t key) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        const wide p0 = wide_product(x[0], 0xD2511F53u), p2 = wide_product(x[2], 0xCD9E8D57u);
        x[0] = (p2 >> 32) ^ x[1] ^ k0;
        x[1] = p2;
        x[2] = (p0 >> 32) ^ x[3] ^ k1;
        x[3] = p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

#define PHILOX_BLOCK 64 // words made together: 16 counters, 4 words each

/* Words [64 block, 64 block + 64) of a key's endless row. Word 16 i + j of a block is word i of its
   counter j. Even and odd counters run apart, and their halves of a lane are joined at the end. */
static inline void philox_block(uint32_t *restrict bits, uint64_t block, uint64_t key) {
    static const uint64_t lanes[8] = {0, 2, 4, 6, 8, 10, 12, 14};
    const uint64_t first = block * 16;
    for (size_t j = 0; j < 16; j += 2 * WIDE_LANES) {
        wide lane;
        memcpy(&lane, lanes, sizeof lane);
        wide even[4] = {lane + (first + j), (wide){0} + (first >> 32)};
        wide odd[4] = {even[0] + 1, even[1]};
        philox(even, key);
        philox(odd, key);
        for (size_t i = 0; i < 4; i++) {
            const wide pairs = (even[i] & UINT32_MAX) | odd[i] << 32;
            memcpy(bits + 16 * i + j, &pairs, sizeof pairs);
        }
    }
}

/* An element is kept when its word is at least this. */
static inline uint32_t drop_threshold(double p) {
    const double words = p * 0x1p32 + 0.5;
    return words < 0x1p32 ? (uint32_t)words : UINT32_MAX;
}

/* What is kept grows by this, so that means stay. With p = 1 it is 0: see drop_row. */
static inline real drop_scale(double p) {
    return p < 1 ? (real)(1 / (1 - p)) : 0;
}

/* y[i] = x[i] * scale where word first + i of the key says keep, else 0; y may be x. */
static inline void drop_row(real *y, const real *x, size_t n, uint64_t first, uint32_t threshold,
                            real scale, uint64_t key) {
    if (scale == 0) { // p = 1: not by the product, 0 * inf is NaN
        memset(y, 0, n * sizeof(real));
        return;
    }
    uint32_t bits[PHILOX_BLOCK];
    for (size_t i = 0; i < n;) {
        const size_t at = (first + i) % PHILOX_BLOCK;
        const size_t m = min_size(PHILOX_BLOCK - at, n - i);
        philox_block(bits, (first + i) / PHILOX_BLOCK, key);
#pragma omp simd
        for (size_t j = 0; j < m; j++) {
            const real kept = x[i + j] * scale;
            y[i + j] = bits[at + j] < threshold ? 0 : kept;
        }
        i += m;
    }
}

/* Attention drops pairs, too many of them for Philox each: one call a query, and a cheap mix of its
   result with each key. */
static inline uint64_t row_key(uint64_t key, uint32_t bh, uint32_t round, uint32_t pos_q) {
    wide x[4] = {{pos_q}, {bh}, {round}, {1}}; // 1: no counter of philox_block
    philox(x, key);
    return x[1][0] << 32 | (x[0][0] & UINT32_MAX);
}

/* 32 bits for a key of that query: the finaliser `lowbias32` of Wellons' hash-prospector, with
   half of the row's key before the first product and half before the second. */
static inline uint32_t pair_bits(uint64_t row, uint32_t pos_k, uint32_t slot) {
    uint32_t x = (uint32_t)row + pos_k + slot * 0x9E3779B9u;
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15 ^ (uint32_t)(row >> 32)) * 0x846CA68Bu;
    return x ^ x >> 16;
}

#endif
