/* system_posix.c: the operating system, if it is Linux, macOS or another of POSIX's kind. */
#ifndef _WIN32
#define _GNU_SOURCE // what POSIX lacks: anonymous mappings, advice, a coarse clock
#include "system.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0 // the address is then only a hint
#endif

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

void rf_lock(void) {
    pthread_mutex_lock(&mutex);
}

void rf_unlock(void) {
    pthread_mutex_unlock(&mutex);
}

int rf_at_fork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void)) {
    return pthread_atfork(before, in_parent, in_child) == 0 ? 0 : -1;
}

int64_t rf_milliseconds(void) {
    struct timespec t;
#ifdef CLOCK_MONOTONIC_COARSE
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
#else
    clock_gettime(CLOCK_MONOTONIC, &t);
#endif
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int is_limited(int resource) {
    struct rlimit limit;
    return getrlimit(resource, &limit) < 0 || limit.rlim_cur != RLIM_INFINITY;
}

int rf_addresses_are_limited(void) {
    return is_limited(RLIMIT_AS) || is_limited(RLIMIT_DATA);
}

static char *map(char *at, size_t bytes, int flags) {
    char *got =
        mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    return got == MAP_FAILED ? NULL : got;
}

char *rf_reserve(size_t bytes, size_t align) {
    char *at = map(NULL, bytes + align, 0);
    if (!at) return NULL;
    char *base = (char *)(((uintptr_t)at + align - 1) / align * align);
    char *end = at + bytes + align;
    if (base > at) munmap(at, (size_t)(base - at));
    if (end > base + bytes) munmap(base + bytes, (size_t)(end - base) - bytes);
    return base;
}

int rf_reserve_above(char *end, size_t bytes) {
    char *at = map(end, bytes, MAP_FIXED_NOREPLACE);
    if (at && at != end) munmap(at, bytes);
    return at == end;
}

size_t rf_unreserve(char *base, size_t kept, size_t reserved) {
    if (reserved > kept) munmap(base + kept, reserved - kept);
    return kept;
}

int rf_commit(char *at, size_t bytes) {
    return mprotect(at, bytes, PROT_READ | PROT_WRITE) == 0;
}

void rf_decommit(char *at, size_t bytes) {
    madvise(at, bytes, MADV_DONTNEED);
}

int rf_recommit(char *at, size_t bytes) {
    (void)at, (void)bytes; // by the first access
    return 1;
}

void rf_advise_large_pages(void *at, size_t bytes, size_t page) {
#ifdef MADV_HUGEPAGE
    const uintptr_t first = ((uintptr_t)at + page - 1) / page * page;
    const uintptr_t last = ((uintptr_t)at + bytes) / page * page;
    if (first < last) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)at, (void)bytes, (void)page;
#endif
}

int rf_system_memory(uint64_t *total, uint64_t *available, uint64_t *peak) {
    (void)total, (void)available, (void)peak;
    return 0;
}
#endif
