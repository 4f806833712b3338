/* peak.c: the peak arithmetic speed, which benchmarks relate other speeds to. */
#include <time.h>

#include "vec.h"

/* Independent chains cover latency times ports, at most 4 x 4; of 16 registers, as many as fit. */
#if defined(__AVX512F__) || (defined(__ARM_NEON) && defined(__aarch64__))
#define PEAK_CHAINS 16
#else
#define PEAK_CHAINS 14
#endif
#define PEAK_STEPS 4096

/* PEAK_STEPS steps of every chain. They converge to 1 from any start. */
static real peak_burst(real start) {
    const vec half = vset1((real)0.5);
    vec a[PEAK_CHAINS];
    for (int i = 0; i < PEAK_CHAINS; i++) a[i] = vset1(start * (real)(i + 1));
    for (int step = 0; step < PEAK_STEPS; step++)
        for (int i = 0; i < PEAK_CHAINS; i++) a[i] = a[i] * half + half;
    for (int i = 1; i < PEAK_CHAINS; i++) a[0] += a[i];
    return vsum(a[0]);
}

static double seconds_now(void) {
#ifdef TIME_UTC
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#else // an old C library of Windows, whose clock is not the processor's but the wall's
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}

static double fma_peak(rf_run *run, double seconds) {
    const double start = seconds_now();
    size_t bursts = 0;
#pragma omp parallel num_threads(run->workers) reduction(+ : bursts)
    {
        // each burst depends on the one before, and the result on the last: none can be removed
        real value = 1;
        while (seconds_now() - start < seconds && !stopped(run)) {
            value = peak_burst(value);
            bursts++;
        }
        if (isnan(value)) bursts = 0;
    }
    const double flops = 2.0 * (double)bursts * PEAK_STEPS * PEAK_CHAINS * VEC_LANES;
    return 1e-9 * flops / (seconds_now() - start);
}
