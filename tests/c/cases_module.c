/* cases_module.c: what of the extension needs no Python: the operating system, and reused memory.
 */
#include "check.h"

#include "../../csrc/module/memory.h"
#include "../../csrc/module/system.h"

#if defined(__x86_64__) && !defined(_WIN32)
#include "../../csrc/variants/supports.h"
#endif

enum { PAGE = 1 << 21, LIVE = 24, STEPS = 400, PASSES = 6 };

static void expect(int right, const char *message) {
    if (!right) fail(message);
    checks++;
}

static int is_filled(const unsigned char *memory, size_t bytes, int value) {
    for (size_t i = 0; i < bytes; i++)
        if (memory[i] != value) return 0;
    return 1;
}

static void test_system(void) {
    what = "system";
    const int64_t start = rf_milliseconds();
    char *base = rf_reserve(8 * PAGE, PAGE);
    expect(base && (uintptr_t)base % PAGE == 0, "addresses are not reserved or not aligned");
    expect(rf_commit(base, 3 * PAGE), "no memory");
    rf_advise_large_pages(base, 3 * PAGE, PAGE);
    expect(is_filled((void *)base, 3 * PAGE, 0), "new memory is not zero");
    memset(base, 7, 3 * PAGE);
    rf_decommit(base + PAGE, PAGE);
    expect(is_filled((void *)base, PAGE, 7), "memory below was lost");
    expect(is_filled((void *)(base + 2 * PAGE), PAGE, 7), "memory above was lost");
    expect(rf_recommit(base + 1, 3 * PAGE - 1), "memory is not restored");
    expect(is_filled((void *)base, PAGE, 7), "restoring changed memory");
    expect(is_filled((void *)(base + PAGE), PAGE, 0), "restored memory is not zero");
    const size_t kept = rf_unreserve(base, 4 * PAGE, 8 * PAGE);
    expect(kept == 4 * PAGE || kept == 8 * PAGE, "the kept addresses are others");
    expect(is_filled((void *)base, PAGE, 7), "kept memory was lost");
    expect(rf_unreserve(base, 0, kept) == 0, "addresses were not returned");

    uint64_t total, available, peak;
    if (rf_system_memory(&total, &available, &peak))
        expect(available > 0 && available <= total && peak > 3 * PAGE && peak <= total,
               "the system's memory");
    expect(rf_milliseconds() >= start, "the clock went back");
}

/* Acquire and release at random, each block filled with its own number; some stay for the next. */
static void churn(unsigned char **live, size_t *bytes, unsigned seed) {
    for (int step = 0; step < STEPS; step++) {
        seed = seed * 1664525u + 1013904223u;
        const int i = (int)((seed >> 8) % LIVE), value = i + 1;
        if (live[i]) {
            expect(rf_memory_size(live[i]) == bytes[i], "a block's size");
            expect(is_filled(live[i], bytes[i], value), "a block was overwritten");
            rf_memory_release(live[i]);
            live[i] = NULL;
            continue;
        }
        bytes[i] = (size_t)1 << (12 + (seed >> 16) % 10);
        bytes[i] += (seed >> 4) % bytes[i];
        live[i] = rf_memory_acquire(bytes[i], step % 2);
        expect(live[i] && (uintptr_t)live[i] % 64 == 0, "no memory, or not aligned");
        if (step % 2) expect(is_filled(live[i], bytes[i], 0), "memory is not zero");
        memset(live[i], value, bytes[i]);
    }
}

static void test_memory(void) {
    what = "memory";
    unsigned char *live[LIVE] = {0};
    size_t bytes[LIVE];
    const size_t total = (size_t)1 << 28;
    rf_memory_set_total(total);
    for (unsigned pass = 0; pass < PASSES; pass++) {
        rf_memory_enter();
        churn(live, bytes, pass);
        rf_memory_exit();
        expect(rf_memory_cached() <= total / 16, "too much is cached");
        if (pass % 2) rf_memory_trim();
    }
    for (int i = 0; i < LIVE; i++) {
        if (live[i]) expect(is_filled(live[i], bytes[i], i + 1), "a block was lost");
        rf_memory_release(live[i]);
    }
    rf_memory_trim();
    expect(rf_memory_cached() == 0, "something stays cached");
}

static void test_memory_of_threads(void) {
    what = "memory of threads";
    const size_t before = checks;
#pragma omp parallel num_threads(8)
    {
        unsigned char *memory[LIVE];
        for (int i = 0; i < 8 * LIVE; i++) {
            unsigned char **at = memory + i % LIVE;
            if (i % LIVE == 0) rf_memory_enter();
            *at = rf_memory_acquire((size_t)1 << 19, 1);
            memset(*at, i, 1 << 19);
            if (i % LIVE < LIVE - 1) continue;
            for (int j = 0; j < LIVE; j++) {
                if (!is_filled(memory[j], 1 << 19, (i - LIVE + 1 + j) & 255)) fail("overwritten");
                rf_memory_release(memory[j]);
            }
            rf_memory_exit();
            rf_memory_trim();
        }
    }
    checks = before + 1;
}

static void test_supports(void) {
#if defined(__x86_64__) && !defined(_WIN32)
    what = "supports";
#define SAME(feature)                                                                              \
    expect(supports(feature) == !!__builtin_cpu_supports(feature), "is not the "                   \
                                                                   "compiler's " feature)
    SAME("fma");
    SAME("avx2");
    SAME("avx512f");
    SAME("avx512dq");
    SAME("avx512bw");
    SAME("avx512vl");
    SAME("avx512bf16");
    expect(!supports("mmx"), "one that is not asked for");
#endif
}

void test_all_of_the_module(void) {
    test_system();
    test_memory();
    test_memory_of_threads();
    test_supports();
}
