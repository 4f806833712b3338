/* select.c: which cores were built (RF_HAVE_*, set by the build), and which this machine can run.

   Cores are chosen by the features that the processor and the operating system support
   (__builtin_cpu_supports checks both), not by model numbers. */
#define _DEFAULT_SOURCE // syscall
#include "../rf.h"

#if defined(_WIN32) && defined(__x86_64__)
#include "supports.h"
#define __builtin_cpu_supports(feature) supports(feature)
#elif defined(RF_HAVE_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

/* The variants below add products of bfloat16; for double they are AVX-512. */
#ifdef RF_HAVE_AVX512_BF16
extern const rf_ops_f32 rf_avx512_bf16_f32;
static int avx512_bf16_runs(void) {
    return avx512_runs() && __builtin_cpu_supports("avx512bf16");
}
#endif

/* The state of the tiles is 8 KB a thread, so Linux gives it only to a process that asks. */
#ifdef RF_HAVE_AMX
extern const rf_ops_f32 rf_amx_f32;
static int amx_runs(void) {
#ifdef __linux__
    enum {
        ARCH_REQ_XCOMP_PERM = 0x1023,
        XFEATURE_XTILEDATA = 18,
        BF16_AND_TILES = 1 << 22 | 1 << 24
    };
    unsigned a, b, c, d; // not all compilers' __builtin_cpu_supports know these
    return avx512_runs() && __builtin_cpu_supports("avx512bf16") &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16_AND_TILES) == BF16_AND_TILES &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
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
#ifdef RF_HAVE_AMX
    {{"amx", &rf_amx_f32, &rf_avx512_f64}, amx_runs},
#endif
#ifdef RF_HAVE_AVX512_BF16
    {{"avx512_bf16", &rf_avx512_bf16_f32, &rf_avx512_f64}, avx512_bf16_runs},
#endif
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
