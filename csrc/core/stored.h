/* stored.h: weights, keys and values that are stored in fewer bits than a real. A decoded token
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

/* Rounded to nearest even; a NaN stays one. */
static ALWAYS_INLINE uint16_t bfloat16_of(real x) {
    const float value = (float)x;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return (uint16_t)(value == value ? rounded : bits >> 16 | 0x40);
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

/* Of weights in fewer bits: VEC_LANES from element i on, and one element. The storage is a constant
   where these are inlined. */
static ALWAYS_INLINE vec load_stored(rf_storage storage, const void *y, size_t i) {
    return storage == RF_INT8 ? load_int8((const int8_t *)y + i)
                              : load_bfloat16((const uint16_t *)y + i);
}

static ALWAYS_INLINE real stored_value(rf_storage storage, const void *y, size_t i) {
    return storage == RF_INT8 ? (real)((const int8_t *)y)[i]
                              : real_of_bfloat16(((const uint16_t *)y)[i]);
}

/* Of an element; reals are stored, too. */
static ALWAYS_INLINE size_t stored_bytes(rf_storage storage) {
    switch (storage) {
    case RF_INT8: return sizeof(int8_t);
    case RF_BFLOAT16: return sizeof(uint16_t);
    default: return sizeof(real);
    }
}

/* As dot() in vec.h: four vectors of sums, and a fixed order. With `ahead` what follows y in memory
   is requested early. */
static ALWAYS_INLINE real dot_stored(const real *x, const void *y, size_t n,
                                     const rf_storage storage, const int ahead) {
    const size_t bytes = stored_bytes(storage);
    vec s[4] = {{0}, {0}, {0}, {0}};
    size_t i = 0;
    for (; i + 4 * VEC_LANES <= n; i += 4 * VEC_LANES) {
        if (ahead) prefetch_weights((const char *)y + i * bytes, 4 * VEC_LANES * bytes);
        for (size_t j = i; j < i + 4 * VEC_LANES; j += VEC_LANES)
            s[(j - i) / VEC_LANES] += vload(x + j) * load_stored(storage, y, j);
    }
    real tail = 0;
    for (; i < n; i++) tail += x[i] * stored_value(storage, y, i);
    return vsum((s[0] + s[1]) + (s[2] + s[3])) + tail;
}

/* x . row j of w, whose rows have n columns. */
static inline real dot_row(const real *x, const rf_matrix *w, size_t j, size_t n) {
    switch (w->storage) {
    case RF_INT8:
        return ((const real *)w->scale)[j] *
               dot_stored(x, (const int8_t *)w->data + j * n, n, RF_INT8, 1);
    case RF_BFLOAT16: return dot_stored(x, (const uint16_t *)w->data + j * n, n, RF_BFLOAT16, 1);
    default: return dot(x, (const real *)w->data + j * n, n);
    }
}

/* The vectors of a cache, of d elements each: x . number i; out += p times number i; and number i
   becomes x times a factor. */
static inline real dot_cached(rf_storage storage, const real *x, const void *y, size_t i,
                              size_t d) {
    return storage == RF_REALS ? dot(x, (const real *)y + i * d, d)
                               : dot_stored(x, (const uint16_t *)y + i * d, d, RF_BFLOAT16, 0);
}

static inline void add_cached(rf_storage storage, real *restrict out, real p, const void *y,
                              size_t i, size_t d) {
    size_t j = 0;
    if (storage == RF_REALS) {
        const real *restrict v = (const real *)y + i * d;
#pragma omp simd
        for (size_t e = 0; e < d; e++) out[e] += p * v[e];
        return;
    }
    const uint16_t *v = (const uint16_t *)y + i * d;
    for (; j + VEC_LANES <= d; j += VEC_LANES)
        vstore(out + j, vload(out + j) + p * load_bfloat16(v + j));
    for (; j < d; j++) out[j] += p * real_of_bfloat16(v[j]);
}

static inline void cache_vector(rf_storage storage, void *y, size_t i, const real *x, real scale,
                                size_t d) {
    for (size_t j = 0; j < d; j++)
        if (storage == RF_REALS)
            ((real *)y)[i * d + j] = x[j] * scale;
        else
            ((uint16_t *)y)[i * d + j] = bfloat16_of(x[j] * scale);
}

#endif
