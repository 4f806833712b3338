/* stored.h: dot products with weights that are stored in fewer bits than a real. A decoded token
   reads every weight once, so its time is that of reading memory, and half or a quarter of the
   bytes are read in about half or a quarter of the time. Arithmetic is that of reals. */
#ifndef RF_STORED_H
#define RF_STORED_H

#include "vec.h"

/* The next VEC_LANES weights, as reals. */
static ALWAYS_INLINE vec load_int8(const int8_t *p) {
#if RF_REAL_BYTES == 4 && defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
#elif RF_REAL_BYTES == 4 && defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
#elif RF_REAL_BYTES == 4 && defined(__ARM_NEON) && defined(__aarch64__)
    int32_t four;
    memcpy(&four, p, sizeof four);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
#else
    vec x = {0};
    for (int i = 0; i < VEC_LANES; i++) x[i] = (real)p[i];
    return x;
#endif
}

static ALWAYS_INLINE real real_of_bfloat16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (real)value;
}

static ALWAYS_INLINE vec load_bfloat16(const uint16_t *p) {
#if RF_REAL_BYTES == 4 && defined(__AVX512F__)
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
#elif RF_REAL_BYTES == 4 && defined(__AVX2__)
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
#elif RF_REAL_BYTES == 4 && defined(__ARM_NEON) && defined(__aarch64__)
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
#else
    vec x = {0};
    for (int i = 0; i < VEC_LANES; i++) x[i] = real_of_bfloat16(p[i]);
    return x;
#endif
}

/* Rows follow one another in memory. The processor's own prefetch stops at the end of each page of
   4 KB, which at one byte a weight comes soon: lines are requested two pages before their use, into
   the second cache, whose queue of misses is longer. */
static ALWAYS_INLINE void prefetch_weights(const void *p, size_t bytes) {
    const size_t ahead = 8192;
    for (size_t at = 0; at < bytes; at += RF_ALIGN)
        __builtin_prefetch((const char *)p + ahead + at, 0, 2);
}

/* As dot() in vec.h: four vectors of sums, and a fixed order. */
static inline real dot_int8(const real *x, const int8_t *y, size_t n) {
    vec s[4] = {{0}, {0}, {0}, {0}};
    size_t i = 0;
    for (; i + 4 * VEC_LANES <= n; i += 4 * VEC_LANES) {
        prefetch_weights(y + i, 4 * VEC_LANES * sizeof *y);
        for (size_t j = 0; j < 4; j++)
            s[j] += vload(x + i + j * VEC_LANES) * load_int8(y + i + j * VEC_LANES);
    }
    real tail = 0;
    for (; i < n; i++) tail += x[i] * (real)y[i];
    return vsum((s[0] + s[1]) + (s[2] + s[3])) + tail;
}

static inline real dot_bfloat16(const real *x, const uint16_t *y, size_t n) {
    vec s[4] = {{0}, {0}, {0}, {0}};
    size_t i = 0;
    for (; i + 4 * VEC_LANES <= n; i += 4 * VEC_LANES) {
        prefetch_weights(y + i, 4 * VEC_LANES * sizeof *y);
        for (size_t j = 0; j < 4; j++)
            s[j] += vload(x + i + j * VEC_LANES) * load_bfloat16(y + i + j * VEC_LANES);
    }
    real tail = 0;
    for (; i < n; i++) tail += x[i] * real_of_bfloat16(y[i]);
    return vsum((s[0] + s[1]) + (s[2] + s[3])) + tail;
}

/* x . row j of w, whose rows have n columns. */
static ALWAYS_INLINE real dot_row(const real *x, const rf_matrix *w, size_t j, size_t n) {
    switch (w->storage) {
    case RF_INT8:
        return ((const real *)w->scale)[j] * dot_int8(x, (const int8_t *)w->data + j * n, n);
    case RF_BFLOAT16: return dot_bfloat16(x, (const uint16_t *)w->data + j * n, n);
    default: return dot(x, (const real *)w->data + j * n, n);
    }
}

#endif
