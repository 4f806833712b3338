/* vec.h: a vector of reals of the machine's native width, and inner loops written with it.

   GNU vector types cover most of what is needed on every machine. Intrinsics are used only where C
   has no operator (maximum, mask tests) or compilers shuffle badly. Loops over rows elsewhere are
   plain C, vectorised by the compiler. */
#ifndef RF_VEC_H
#define RF_VEC_H

#include "core.h"

#if defined(__AVX512F__)
#define VEC_BYTES 64
#elif defined(__AVX__)
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef real vec_unaligned
    __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));
#if RF_REAL_BYTES == 4
typedef int32_t lane; // an integer as wide as a real
typedef uint32_t ulane;
#else
typedef int64_t lane;
typedef uint64_t ulane;
#endif
typedef lane ivec __attribute__((vector_size(VEC_BYTES))); // comparisons: all ones where true
typedef ulane uvec __attribute__((vector_size(VEC_BYTES)));
typedef lane ivec_unaligned
    __attribute__((vector_size(VEC_BYTES), aligned(sizeof(lane)), may_alias));

#define VEC_LANES (VEC_BYTES / RF_REAL_BYTES)

static inline vec vload(const real *p) {
    return *(const vec_unaligned *)p;
}

static inline void vstore(real *p, vec x) {
    *(vec_unaligned *)p = x;
}

static inline ivec iload(const lane *p) {
    return *(const ivec_unaligned *)p;
}

/* x - 0 is x for every x, even -0, so this is one broadcast; 0 + x would need an addition. */
static inline vec vset1(real x) {
    return x - (vec){0};
}

static inline vec vmax(vec a, vec b) {
#if defined(__AVX512F__)
    return _Generic((real)0, float: _mm512_max_ps, double: _mm512_max_pd)(a, b);
#elif defined(__AVX__)
    return _Generic((real)0, float: _mm256_max_ps, double: _mm256_max_pd)(a, b);
#elif defined(__SSE2__)
    return _Generic((real)0, float: _mm_max_ps, double: _mm_max_pd)(a, b);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return _Generic((real)0, float: vmaxq_f32, double: vmaxq_f64)(a, b);
#else
    const ivec greater = a > b;
    return (vec)(((ivec)a & greater) | ((ivec)b & ~greater));
#endif
}

static inline uvec uvmin(uvec a, uvec b) {
#if defined(__AVX512F__)
    return (uvec) _Generic((lane)0, int32_t: _mm512_min_epu32, int64_t: _mm512_min_epu64)(
        (__m512i)a, (__m512i)b);
#else
    const uvec less = (uvec)(a < b); // one instruction for 32 bits on AVX2 and NEON
    return (a & less) | (b & ~less);
#endif
}

/* A product, rounded before use: keeps the compiler from fusing it with the following sum. Needed
   where the other term of the sum was computed from the same rounded product. */
static ALWAYS_INLINE vec rounded(vec product) {
#if defined(__x86_64__) || defined(__i386__)
    __asm__("" : "+v"(product));
#elif defined(__aarch64__)
    __asm__("" : "+w"(product));
#else
    volatile vec kept = product;
    product = kept;
#endif
    return product;
}

/* a where the mask is set, else b. */
static inline ivec iselect(ivec mask, ivec a, ivec b) {
    return (mask & a) | (~mask & b);
}

static inline vec vselect(ivec mask, vec a, vec b) {
    return (vec)iselect(mask, (ivec)a, (ivec)b);
}

/* Is any lane of a comparison true? */
static inline int any(ivec mask) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    return _Generic((lane)0, int32_t: _mm512_movepi32_mask, int64_t: _mm512_movepi64_mask)(
               (__m512i)mask) != 0;
#elif defined(__AVX__)
    return _Generic((real)0, float: _mm256_movemask_ps, double: _mm256_movemask_pd)((vec)mask) != 0;
#else
    lane found = 0;
    for (int i = 0; i < VEC_LANES; i++) found |= mask[i];
    return found != 0;
#endif
}

/* Rows are short: calling memcpy would take longer than the copy. */
static inline void copy_row(real *restrict to, const real *restrict from, size_t n) {
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) vstore(to + i, vload(from + i));
    for (; i < n; i++) to[i] = from[i];
}

static inline void add_row(real *restrict to, const real *restrict from, size_t n) {
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) vstore(to + i, vload(to + i) + vload(from + i));
    for (; i < n; i++) to[i] += from[i];
}

static inline void scale_row(real *restrict to, const real *restrict from, real by, size_t n) {
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) vstore(to + i, vload(from + i) * by);
    for (; i < n; i++) to[i] = from[i] * by;
}

/* Sum of the lanes, as a tree of halves. */
static inline real vsum(vec x) {
    real lane[VEC_LANES];
    memcpy(lane, &x, sizeof x);
    for (size_t half = VEC_LANES / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

/* exp(x) for x up to 88 (float) or 709 (double). Subnormal results become 0, NaN stays NaN.

   x = n ln2 + r with |r| <= ln2/2: adding `magic` rounds x/ln2 to the integer n and leaves n plus
   the exponent bias in the lowest bits, which a shift turns into 2^n. exp(r) is 1 + r + r^2 p(r),
   p interpolated at Chebyshev nodes: relative error 1e-8 (float), 2e-17 (double) before rounding.
   The lower clamp is the n for which the shift gives exactly 0. */
static inline vec vec_exp(vec x) {
    const real low = IS_FLOAT ? (real)-88.0 : (real)-709.0;
    const real magic = IS_FLOAT ? (real)(12582912.0 + 127) : (real)(6755399441055744.0 + 1023);
    const real ln2_high = IS_FLOAT ? (real)0.693359375 : (real)6.93147180369123816490e-01;
    const real ln2_low = IS_FLOAT ? (real)-2.12194440e-4 : (real)1.90821492927058770002e-10;

    x = vmax(vset1(low), x);
    const vec t = x * (real)1.44269504088896340736 + magic;
    const vec n = t - magic;
    const vec r = (x - n * ln2_high) - n * ln2_low;
    const vec scale = (vec)((ivec)t << (IS_FLOAT ? 23 : 52));
    vec p;
    if (IS_FLOAT) {
        p = r * (real)0.0013926181810489342665 + (real)0.0083631776299944456231;
        p = r * p + (real)0.041666554627878083213;
        p = r * p + (real)0.16666576998242925218;
        p = r * p + (real)0.5;
    } else {
        p = r * (real)2.510038319586702134e-8 + (real)2.7620085455018415696e-7;
        p = r * p + (real)2.7557268464831626452e-6;
        p = r * p + (real)2.4801521302241083138e-5;
        p = r * p + (real)1.9841269863050505549e-4;
        p = r * p + (real)1.3888888917209671046e-3;
        p = r * p + (real)8.3333333333300624555e-3;
        p = r * p + (real)0.041666666666624135973;
        p = r * p + (real)0.16666666666666667453;
        p = r * p + (real)0.5;
    }
    return (r * r * p + r + (real)1) * scale;
}

/* 2^x for x up to 127 (float) or 1023 (double). Subnormal results become 0, NaN stays NaN.

   As vec_exp, without a reduction by ln2: x = n + r with |r| <= 1/2, exactly. 2^r is 1 + r p(r), p
   interpolated at Chebyshev nodes: relative error 5e-9 (float), 9e-18 (double) before rounding.
   This is why attention keeps scores in units of log 2. */
static inline vec vec_exp2(vec x) {
    const real low = IS_FLOAT ? (real)-127.0 : (real)-1023.0;
    const real magic = IS_FLOAT ? (real)(12582912.0 + 127) : (real)(6755399441055744.0 + 1023);

    x = vmax(vset1(low), x);
    const vec t = x + magic;
    const vec r = x - (t - magic);
    const vec scale = (vec)((ivec)t << (IS_FLOAT ? 23 : 52));
    vec p;
    if (IS_FLOAT) {
        p = r * (real)0.00015453162945120690177 + (real)0.0013390863364671234381;
        p = r * p + (real)0.0096180825572778514913;
        p = r * p + (real)0.055503571142190778186;
        p = r * p + (real)0.24022650760568126945;
        p = r * p + (real)0.69314718802622878106;
    } else {
        p = r * (real)4.4549605981865183938e-10 + (real)7.0725859492692236999e-9;
        p = r * p + (real)1.0178062445845773521e-7;
        p = r * p + (real)1.3215442587921689653e-6;
        p = r * p + (real)1.5252733829836118394e-5;
        p = r * p + (real)1.5403530441736050155e-4;
        p = r * p + (real)1.333355814641693531e-3;
        p = r * p + (real)9.6181291076068885273e-3;
        p = r * p + (real)0.055504108664821594339;
        p = r * p + (real)0.2402265069591009822;
        p = r * p + (real)0.69314718055994530942;
    }
    return (r * p + (real)1) * scale;
}

#define LOG2_E ((real)1.44269504088896340736)
#define LN_2 ((real)0.69314718055994530942)

/* exp(x) of one real, with the same bits as vec_exp. */
static inline real exp1(real x) {
    return vec_exp(vset1(x))[0];
}

/* log(x) for normal x > 0; NaN stays NaN.

   x = 2^n m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh s with s = (m - 1) / (m + 1), a series
   in s^2 <= 0.0295. Float needs 5 terms, double 11. */
static inline vec vec_log(vec x) {
    const lane half = IS_FLOAT ? 0x3F3504F3 : (lane)0x3FE6A09E667F3BCD; // sqrt(1/2)
    const int bits = IS_FLOAT ? 23 : 52;
    const ivec n = ((ivec)x - half) >> bits; // an arithmetic shift: floor
    const vec m = (vec)((ivec)x - (n << bits));
    const vec s = (m - (real)1) / (m + (real)1), z = s * s;
    vec series = {0};
    for (int k = IS_FLOAT ? 9 : 21; k > 0; k -= 2) series = series * z + (real)2 / (real)k;
    return __builtin_convertvector(n, vec) * (real)0.69314718055994530942 + s * series + (x - x);
}

/* Lanes of a short vector of 128 bits: wider vectors can be loaded as several of those. */
#define SHORT_LANES (16 / RF_REAL_BYTES)

/* A short vector each, from element `at` on, of rows i, i + SHORT_LANES, ... */
static ALWAYS_INLINE vec vload_short(const real *const *rows, size_t i, size_t at) {
#define SHORT(q) _mm_loadu_ps((const float *)(rows[i + (q) * SHORT_LANES] + at))
#if defined(__AVX512F__)
    __m512 x = _mm512_castps128_ps512(SHORT(0));
    x = _mm512_insertf32x4(x, SHORT(1), 1);
    x = _mm512_insertf32x4(x, SHORT(2), 2);
    return (vec)_mm512_insertf32x4(x, SHORT(3), 3);
#elif defined(__AVX__)
    return (vec)_mm256_insertf128_ps(_mm256_castps128_ps256(SHORT(0)), SHORT(1), 1);
#else
    return vload(rows[i] + at);
#endif
#undef SHORT
}

/* Steps of a transpose within short vectors: elements whose lane differs from their row in bit s
   are exchanged with the row s away. */
#if VEC_LANES == 16
#define LANES_LOW1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define LANES_HIGH1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define LANES_LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define LANES_HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#elif VEC_LANES == 8
#define LANES_LOW1 0, 8, 2, 10, 4, 12, 6, 14
#define LANES_HIGH1 1, 9, 3, 11, 5, 13, 7, 15
#define LANES_LOW2 0, 1, 8, 9, 4, 5, 12, 13
#define LANES_HIGH2 2, 3, 10, 11, 6, 7, 14, 15
#elif VEC_LANES == 4
#define LANES_LOW1 0, 4, 2, 6
#define LANES_HIGH1 1, 5, 3, 7
#define LANES_LOW2 0, 1, 4, 5
#define LANES_HIGH2 2, 3, 6, 7
#else
#define LANES_LOW1 0, 2
#define LANES_HIGH1 1, 3
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

#define TRANSPOSE_STEP(s)                                                                          \
    for (size_t i = 0; i < VEC_LANES; i++)                                                         \
        if (!(i & s)) {                                                                            \
            const vec low = SHUFFLE(x[i], x[i + s], LANES_LOW##s);                                 \
            x[i + s] = SHUFFLE(x[i], x[i + s], LANES_HIGH##s);                                     \
            x[i] = low;                                                                            \
        }

/* to (n x VEC_LANES) = VEC_LANES rows of n, transposed; n is a multiple of VEC_LANES. Short vectors
   are put in place by loads, which are cheaper than shuffles. */
static void transpose_rows(real *restrict to, size_t ldt, const real *const *rows, size_t n) {
    for (size_t at = 0; at < n; at += VEC_LANES) {
        vec x[VEC_LANES];
#pragma GCC unroll 16
        for (size_t i = 0; i < VEC_LANES; i++)
            x[i] = vload_short(rows, i % SHORT_LANES, at + i / SHORT_LANES * SHORT_LANES);
        TRANSPOSE_STEP(1)
#if SHORT_LANES > 2
        TRANSPOSE_STEP(2)
#endif
        for (size_t i = 0; i < VEC_LANES; i++) vstore(to + (at + i) * ldt, x[i]);
    }
}

/* Dot product, accumulated in four vectors and summed in a fixed order. */
static inline real dot(const real *x, const real *y, size_t n) {
    vec s[4] = {{0}, {0}, {0}, {0}};
    size_t i = 0;
    for (; i + 4 * VEC_LANES <= n; i += 4 * VEC_LANES)
        for (size_t j = 0; j < 4; j++)
            s[j] += vload(x + i + j * VEC_LANES) * vload(y + i + j * VEC_LANES);
    real tail = 0;
    for (; i < n; i++) tail += x[i] * y[i];
    return vsum((s[0] + s[1]) + (s[2] + s[3])) + tail;
}

#endif
