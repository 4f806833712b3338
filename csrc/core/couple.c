/* couple.c: the additive coupling of reversible residual layers (Gomez et al. 2017): y1 = x1 +
   f(x2), and in the backward pass x1 = y1 - f(x2). In fixed point the sums are exact, so that x1 is
   rebuilt bit for bit (MacKay et al. 2018, "Reversible Recurrent Neural Networks"). */
#include "stored.h"

#define COUPLE_BLOCK 65536
#define COUPLE_TASKS 64 // of add_rounded

static void add_scaled(rf_run *run, real *restrict y, const real *restrict x, double alpha,
                       size_t n) {
    const real a = (real)alpha;
#pragma omp parallel for num_threads(team(run, (double)n)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, COUPLE_BLOCK); block++) {
        if (stopped(run)) continue;
        const size_t end = min_size(n, (block + 1) * COUPLE_BLOCK);
#pragma omp simd
        for (size_t i = block * COUPLE_BLOCK; i < end; i++) y[i] += a * x[i];
    }
}

static void add_to_bfloat16(uint16_t *restrict y, const real *restrict x, real a, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = bfloat16_of(real_of_bfloat16(y[i]) + a * x[i]);
}

/* y += round(scale x). A `wide` holds every sum that fits exactly; adding 3 exact, whose last digit
   is 1, rounds to an integer, half to even. Returns the largest size of a sum that is more than
   `largest`, infinity for NaN, or 0: of sizes, which are not negative, the largest has the largest
   bits, and unlike a maximum of floating-point numbers, one of integers is vectorized by all
   compilers. */
#define ADD_TO_FIXED(name, integer, wide, bits, exact, largest)                                    \
    static double name(integer *restrict y, const real *restrict x, wide scale, size_t n) {        \
        bits beyond = 0;                                                                           \
        _Pragma("omp simd reduction(max : beyond)") for (size_t i = 0; i < n; i++) {               \
            const wide all = (wide)x[i] * scale, whole = (all + 3 * (exact)) - 3 * (exact);        \
            const wide sum = (wide)y[i] + (all < (exact) && all > -(exact) ? whole : all);         \
            const wide size = sum < 0 ? -sum : sum, far = size == size ? size : (wide)INFINITY;    \
            const wide excess = far <= (largest) ? 0 : far;                                        \
            bits excess_bits;                                                                      \
            memcpy(&excess_bits, &excess, sizeof excess);                                          \
            beyond = excess_bits > beyond ? excess_bits : beyond;                                  \
            y[i] = (integer)(int32_t)(far <= (largest) ? sum : (wide)y[i]);                        \
        }                                                                                          \
        wide found;                                                                                \
        memcpy(&found, &beyond, sizeof found);                                                     \
        return (double)found;                                                                      \
    }

#define EXACT ((real)(IS_FLOAT ? 0x1p22 : 0x1p51))
ADD_TO_FIXED(add_to_int16, int16_t, real, lane, EXACT, INT16_MAX)
ADD_TO_FIXED(add_to_int32, int32_t, double, int64_t, 0x1p51, INT32_MAX)

static double add_rounded(rf_run *run, void *y, rf_storage storage, const real *x, double alpha,
                          size_t n) {
    const size_t tasks = min_size(COUPLE_TASKS, blocks_of(n, COUPLE_BLOCK));
    const double scale16 = 1 << RF_INT16_FRACTION, scale32 = 1 << RF_INT32_FRACTION;
    double beyond[COUPLE_TASKS] = {0}, largest = 0;
#pragma omp parallel for num_threads(team(run, (double)n)) schedule(static)
    for (size_t task = 0; task < tasks; task++) {
        const size_t end = n * (task + 1) / tasks;
        for (size_t i = n * task / tasks; i < end && !stopped(run); i += COUPLE_BLOCK) {
            const size_t m = min_size(COUPLE_BLOCK, end - i);
            double found = 0;
            if (storage == RF_BFLOAT16)
                add_to_bfloat16((uint16_t *)y + i, x + i, (real)alpha, m);
            else if (storage == RF_INT16)
                found = add_to_int16((int16_t *)y + i, x + i, (real)(alpha * scale16), m) / scale16;
            else
                found = add_to_int32((int32_t *)y + i, x + i, alpha * scale32, m) / scale32;
            beyond[task] = found > beyond[task] ? found : beyond[task];
        }
    }
    for (size_t task = 0; task < tasks; task++)
        largest = beyond[task] > largest ? beyond[task] : largest;
    return largest;
}

static void from_int16(real *restrict out, const int16_t *restrict x, size_t n) {
    const real step = (real)1 / (1 << RF_INT16_FRACTION);
#pragma omp simd
    for (size_t i = 0; i < n; i++) out[i] = (real)x[i] * step;
}

static void from_int32(real *restrict out, const int32_t *restrict x, size_t n) {
    const real step = (real)1 / (1 << RF_INT32_FRACTION);
#pragma omp simd
    for (size_t i = 0; i < n; i++) out[i] = (real)x[i] * step;
}

static void from_fixed_point(rf_run *run, const void *x, rf_storage storage, real *out, size_t n) {
#pragma omp parallel for num_threads(team(run, (double)n)) schedule(static)
    for (size_t block = 0; block < blocks_of(n, COUPLE_BLOCK); block++) {
        if (stopped(run)) continue;
        const size_t i = block * COUPLE_BLOCK, m = min_size(COUPLE_BLOCK, n - i);
        if (storage == RF_INT16)
            from_int16(out + i, (const int16_t *)x + i, m);
        else
            from_int32(out + i, (const int32_t *)x + i, m);
    }
}
