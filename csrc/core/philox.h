/* philox.h: counter-based random bits.

   They are a pure function of (key, counter), so that a mask can be recomputed in any order, on any
   thread, and in the backward pass: no mask is stored, and there is no generator state. The
   generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
   3"). */
#ifndef RF_PHILOX_H
#define RF_PHILOX_H

#include "vec.h"

/* One 32-bit word of a counter in each 64-bit lane. The upper halves hold garbage: the product
   below ignores them. */
typedef uint64_t wide __attribute__((vector_size(VEC_BYTES)));

#define WIDE_LANES (VEC_BYTES / sizeof(uint64_t))

/* 32 x 32 -> 64 bits in every lane. Machines have an instruction for it that compilers do not find:
   they make a full 64-bit product, two to three times as slow. */
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

/* Replace each counter, of four words, by four random words. */
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

#define PHILOX_BLOCK 64 // words generated together: 16 counters, 4 words each

/* Words [64 block, 64 block + 64) of a key's stream. Word 16 i + j of a block is word i of its
   counter j. Even and odd counters are processed separately, and interleaved at the end. */
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

/* An element is kept if its word is at least this. */
static inline uint32_t drop_threshold(double p) {
    const double words = p * 0x1p32 + 0.5;
    return words < 0x1p32 ? (uint32_t)words : UINT32_MAX;
}

/* Kept elements are multiplied by this, so that the mean is unchanged. With p = 1 it is 0. */
static inline real drop_scale(double p) {
    return p < 1 ? (real)(1 / (1 - p)) : 0;
}

/* y[i] = x[i] * scale if word first + i of the key says keep, else 0; y may be x. */
static inline void drop_row(real *y, const real *x, size_t n, uint64_t first, uint32_t threshold,
                            real scale, uint64_t key) {
    if (scale == 0) { // p = 1: a product would make NaN of infinity
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

/* Attention drops pairs of query and key, too many for Philox. So Philox runs once per query, and
   its result is hashed with each key. */
static inline uint64_t row_key(uint64_t key, uint32_t bh, uint32_t round, uint32_t pos_q) {
    wide x[4] = {{pos_q}, {bh}, {round}, {1}}; // 1: differs from all counters of philox_block
    philox(x, key);
    return x[1][0] << 32 | (x[0][0] & UINT32_MAX);
}

/* 32 bits for one key of that query: the finaliser `lowbias32` of Wellons' hash-prospector, with
   half of the row's key added before the first product and half before the second. */
static inline uint32_t pair_bits(uint64_t row, uint32_t pos_k, uint32_t slot) {
    uint32_t x = (uint32_t)row + pos_k + slot * 0x9E3779B9u;
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15 ^ (uint32_t)(row >> 32)) * 0x846CA68Bu;
    return x ^ x >> 16;
}

#endif
