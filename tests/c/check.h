/* check.h: buffers that notice what they should not be used for, and the comparison of two.

   A buffer has exactly the size asked for, and guard bytes on both sides. Under the address
   sanitizer the guards cannot even be read. Results start as NaN, so that what was not written
   shows. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __has_feature // clang says it so, gcc by a macro
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

enum { GUARD = 128, MOST_BUFFERS = 256, RESULTS = 6 };

static struct {
    unsigned char *start;
    size_t bytes;
} buffers[MOST_BUFFERS];
static size_t buffer_count;

static const char *what = ""; // the case that runs, for messages
static size_t checks;

static void fail(const char *message) {
    printf("FAILED: %s: %s\n", what, message);
    exit(1);
}

/* `bytes` bytes of NaN, 64-byte aligned, between guards. */
static void *buffer(size_t bytes) {
    unsigned char *start = aligned_alloc(64, (GUARD * 2 + bytes + 63) / 64 * 64);
    if (!start || buffer_count == MOST_BUFFERS) fail("out of memory");
    memset(start, 0xA5, GUARD);
    memset(start + GUARD, 0xFF, bytes);
    memset(start + GUARD + bytes, 0xA5, GUARD);
    buffers[buffer_count].start = start;
    buffers[buffer_count++].bytes = bytes;
    ASAN_POISON_MEMORY_REGION(start, GUARD);
    ASAN_POISON_MEMORY_REGION(start + GUARD + bytes, GUARD);
    return start + GUARD;
}

/* Check all guards, and free all buffers. */
static void release(void) {
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

/* A small generator of its own, so that the inputs are the same everywhere. */
static uint64_t state = 1;

static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static size_t below(size_t n) {
    return draw() % n;
}

/* Roughly normal. */
static double normal(void) {
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += (double)draw() / 2147483648.0;
    return (sum - 2) * 1.7;
}

#endif
