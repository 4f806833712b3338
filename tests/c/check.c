/* check.c: see check.h. */
#include "check.h"

#ifdef __has_feature // clang; gcc defines a macro
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(where, bytes) ((void)(where), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(where, bytes) ((void)(where), (void)(bytes))
#endif

#ifdef _WIN32
#include <malloc.h>
#define aligned_alloc(align, bytes) _aligned_malloc(bytes, align)
#define free(memory) _aligned_free(memory)
#endif

enum { GUARD = 128, MAX_BUFFERS = 1024 };

static struct {
    unsigned char *start;
    size_t bytes;
} buffers[MAX_BUFFERS];
static size_t buffer_count;

const char *what = "";
int random_buffers;
size_t checks;

void fail(const char *message) {
    printf("FAILED: %s: %s\n", what, message);
    exit(1);
}

/* With numbers other than those of draw(), whose cases may not depend on sizes of scratch. */
static void fill_randomly(unsigned char *start, size_t bytes) {
    static uint64_t bits = 1;
    for (size_t i = 0; i < bytes; i += sizeof bits) {
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        const uint64_t mixed = bits ^ bits >> 29;
        memcpy(start + i, &mixed, bytes - i < sizeof mixed ? bytes - i : sizeof mixed);
    }
}

void *buffer(size_t bytes) {
    unsigned char *start = aligned_alloc(64, (GUARD * 2 + bytes + 63) / 64 * 64);
    if (!start || buffer_count == MAX_BUFFERS) fail("out of memory");
    memset(start, 0xA5, GUARD);
    memset(start + GUARD, 0xFF, bytes);
    if (random_buffers) fill_randomly(start + GUARD, bytes);
    memset(start + GUARD + bytes, 0xA5, GUARD);
    buffers[buffer_count].start = start;
    buffers[buffer_count++].bytes = bytes;
    ASAN_POISON_MEMORY_REGION(start, GUARD);
    ASAN_POISON_MEMORY_REGION(start + GUARD + bytes, GUARD);
    return start + GUARD;
}

void release(void) {
    for (size_t i = 0; i < buffer_count; i++) {
        unsigned char *start = buffers[i].start, *end = start + GUARD + buffers[i].bytes;
        ASAN_UNPOISON_MEMORY_REGION(start, GUARD);
        ASAN_UNPOISON_MEMORY_REGION(end, GUARD);
        for (size_t j = 0; j < GUARD; j++)
            if (start[j] != 0xA5 || end[j] != 0xA5) fail("a guard byte was written to");
        free(start);
    }
    buffer_count = 0;
}

/* A linear congruential generator. */
static uint64_t state = 1;

uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

size_t below(size_t n) {
    return draw() % n;
}

double normal(void) {
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += (double)draw() / 2147483648.0;
    return (sum - 2) * 1.7;
}
