/* select.c: which cores were built (RF_HAVE_*, set by the build), and which this machine can run.

   Cores are chosen by the features that the processor and the operating system support
   (__builtin_cpu_supports checks both), not by model numbers. */
#include "../rf.h"

#define DECLARE(isa)                                                                               \
    extern const rf_ops_f32 rf_##isa##_f32;                                                        \
    extern const rf_ops_f64 rf_##isa##_f64;

#ifdef RF_HAVE_AVX512
DECLARE(avx512)
static int avx512_runs(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef RF_HAVE_AVX2
DECLARE(avx2)
static int avx2_runs(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

#ifdef RF_HAVE_NEON
DECLARE(neon)
#endif

DECLARE(base)
static int always(void) {
    return 1;
}

static const struct {
    rf_core core;
    int (*runs)(void);
} built[] = {
#ifdef RF_HAVE_AVX512
    {{"avx512", &rf_avx512_f32, &rf_avx512_f64}, avx512_runs},
#endif
#ifdef RF_HAVE_AVX2
    {{"avx2", &rf_avx2_f32, &rf_avx2_f64}, avx2_runs},
#endif
#ifdef RF_HAVE_NEON
    {{"neon", &rf_neon_f32, &rf_neon_f64}, always},
#endif
    {{"base", &rf_base_f32, &rf_base_f64}, always},
};

enum { BUILT = sizeof built / sizeof *built };

const rf_core *rf_core_at(size_t i) {
    for (size_t j = 0; j < BUILT; j++)
        if (built[j].runs() && i-- == 0) return &built[j].core;
    return NULL;
}

const char *rf_core_built(size_t i) {
    return i < BUILT ? built[i].core.name : NULL;
}
