/* core.h: what every file of the core may assume.

   Each variant sets RF_REAL and includes the core's files one after another (table.c), so there is
   one element type in a compilation and every name is static. The defaults below let editors parse
   a file by itself, as a part of the portable float core. */
#ifndef RF_CORE_H
#define RF_CORE_H

#include <float.h>
#include <math.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef RF_AMX
#include <immintrin.h>
#endif

#include "../rf.h"

#ifndef RF_REAL
#define RF_REAL float
#define RF_OPS rf_ops_f32
#endif

typedef RF_REAL real;

/* sizeof(real) for the preprocessor. */
#define RF_BYTES_float 4
#define RF_BYTES_double 8
#define RF_PASTE(a, b) a##b
#define RF_BYTES_OF(type) RF_PASTE(RF_BYTES_, type)
#define RF_REAL_BYTES RF_BYTES_OF(RF_REAL)

#define IS_FLOAT (RF_REAL_BYTES == 4)
#define REAL_LOWEST ((real)(IS_FLOAT ? -FLT_MAX : -DBL_MAX))
#define REAL_HUGE ((real)(IS_FLOAT ? 3e38 : 1e308))

#define ALWAYS_INLINE inline __attribute__((always_inline))

#define RF_ALIGN 64 // bytes of a cache line, and of the widest vector

/* Is the run to stop? Does not poll. */
static inline int is_stopped(const rf_run *run) {
    return atomic_load_explicit(&run->stop, memory_order_relaxed);
}

/* Poll the caller. Its code may use AMX's tiles itself: their configuration is kept here, their
   contents are not. */
static inline void poll_caller(rf_run *run) {
#ifdef RF_AMX
    _Alignas(RF_ALIGN) char tiles[64];
    _tile_storeconfig(tiles);
    if (run->poll(run)) _tile_loadconfig(tiles);
#else
    run->poll(run);
#endif
}

/* Is the run to stop? The calling thread first polls the caller (for Ctrl-C). */
static inline int stopped(rf_run *run) {
#ifdef _OPENMP
    const int caller = omp_get_thread_num() == 0;
#else
    const int caller = 1;
#endif
    if (caller && run->poll) poll_caller(run);
    return is_stopped(run);
}

static inline size_t thread_index(void) {
#ifdef _OPENMP
    return (size_t)omp_get_thread_num();
#else
    return 0;
#endif
}

static inline real real_sqrt(real x) {
    return _Generic(x, float: sqrtf, double: sqrt)(x);
}

static inline size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Threads for `work` operations: waking threads takes some microseconds, so small work stays on the
   calling thread. */
static inline int team(const rf_run *run, double work) {
    return work < 2e5 ? 1 : run->workers;
}

/* The same for operations of register tiles, which run about eight times as fast as others, and for
   `tasks` that cannot be divided. */
static inline int tile_team(const rf_run *run, double work, size_t tasks) {
    return (int)min_size((size_t)team(run, work / 8), tasks < 1 ? 1 : tasks);
}

static inline size_t max_size(size_t a, size_t b) {
    return a > b ? a : b;
}

static inline size_t blocks_of(size_t n, size_t block) {
    return n / block + (n % block != 0);
}

/* Consecutive work items per task, at most `max`: enough tasks to load many threads, few enough
   that neighbouring items share cached data. Depends on sizes only. */
static inline size_t items_per_task(size_t items, size_t max) {
    return max_size(1, min_size(max, items / 64));
}

/* Tasks that a thread takes at once if each has only a few items: eight items or more, so that data
   shared by neighbours is seldom gathered twice, unless that leaves too few tasks to balance
   the load. */
static inline size_t tasks_at_once(const rf_run *run, size_t tasks, size_t items) {
    return max_size(1, min_size(8 / items, tasks / (8 * (size_t)run->workers)));
}

static inline size_t round_up(size_t n, size_t block) {
    return blocks_of(n, block) * block;
}

/* Sizes of scratch. An overflow is sticky: SIZE_MAX stays SIZE_MAX. */
static inline size_t bytes_mul(size_t a, size_t b) {
    size_t r;
    return a == SIZE_MAX || b == SIZE_MAX || __builtin_mul_overflow(a, b, &r) ? SIZE_MAX : r;
}

static inline size_t bytes_add(size_t a, size_t b) {
    size_t r;
    return a == SIZE_MAX || b == SIZE_MAX || __builtin_add_overflow(a, b, &r) ? SIZE_MAX : r;
}

/* Bytes of n elements of `size` bytes, rounded up to whole cache lines. */
static inline size_t bytes_of(size_t n, size_t size) {
    const size_t bytes = bytes_add(bytes_mul(n, size), RF_ALIGN - 1);
    return bytes == SIZE_MAX ? SIZE_MAX : bytes / RF_ALIGN * RF_ALIGN;
}

/* Cut `n` elements of `size` bytes from the front of the scratch at *at. */
static inline void *take(void **at, size_t n, size_t size) {
    char *here = *at;
    *at = here + bytes_of(n, size);
    return here;
}

#endif
