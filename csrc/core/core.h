/* core.h: what every file of the core may assume.

   Each variant sets RF_REAL and includes the core's files one after another (table.c), so there is
   one element type in a compilation and every name is static. On its own, a file parses as the
   portable float core, which is what editors see. */
#ifndef RF_CORE_H
#define RF_CORE_H

#include <float.h>
#include <math.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../rf.h"

#ifndef RF_REAL
#define RF_REAL float
#define RF_OPS rf_ops_f32
#endif

typedef RF_REAL real;

/* Bytes of a real for the preprocessor, which has no sizeof. */
#define RF_BYTES_float 4
#define RF_BYTES_double 8
#define RF_PASTE(a, b) a##b
#define RF_BYTES_OF(type) RF_PASTE(RF_BYTES_, type)
#define RF_REAL_BYTES RF_BYTES_OF(RF_REAL)

#define ALWAYS_INLINE inline __attribute__((always_inline))

#define RF_ALIGN 64 // bytes of a cache line, and of the widest vector

static inline int is_stopped(const rf_run *run) {
    return atomic_load_explicit(&run->stop, memory_order_relaxed);
}

/* The same, and the calling thread gives the caller a chance to stop it. */
static inline int stopped(rf_run *run) {
#ifdef _OPENMP
    const int caller = omp_get_thread_num() == 0;
#else
    const int caller = 1;
#endif
    if (caller && run->poll) run->poll(run);
    return is_stopped(run);
}

static inline size_t thread_index(void) {
#ifdef _OPENMP
    return (size_t)omp_get_thread_num();
#else
    return 0;
#endif
}

static inline size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Threads for `work` operations: waking a team costs some microseconds, so small work stays on
   the calling thread. */
static inline int team(const rf_run *run, double work) {
    return work < 2e5 ? 1 : run->workers;
}

/* The same for the operations of tiles, eight of which take as long as another, and for `tasks`
   that are not cut. */
static inline int tile_team(const rf_run *run, double work, size_t tasks) {
    return (int)min_size((size_t)team(run, work / 8), tasks < 1 ? 1 : tasks);
}

static inline size_t max_size(size_t a, size_t b) {
    return a > b ? a : b;
}

static inline size_t blocks_of(size_t n, size_t block) {
    return n / block + (n % block != 0);
}

/* Consecutive pieces of a task, of so many and no more than `most`: enough tasks for many threads,
   few enough that what neighbours share is at hand. Sizes alone decide. */
static inline size_t pieces_per_task(size_t pieces, size_t most) {
    return max_size(1, min_size(most, pieces / 64));
}

/* Tasks that a thread takes at once where each is but a few pieces: eight pieces or more, unless
   threads would then wait for one another. What neighbours share is seldom gathered again. */
static inline size_t tasks_at_once(const rf_run *run, size_t tasks, size_t pieces) {
    return max_size(1, min_size(8 / pieces, tasks / (8 * (size_t)run->workers)));
}

static inline size_t round_up(size_t n, size_t block) {
    return blocks_of(n, block) * block;
}

/* Sizes of scratch, where an overflow is sticky: SIZE_MAX stays SIZE_MAX. */
static inline size_t bytes_mul(size_t a, size_t b) {
    size_t r;
    return a == SIZE_MAX || b == SIZE_MAX || __builtin_mul_overflow(a, b, &r) ? SIZE_MAX : r;
}

static inline size_t bytes_add(size_t a, size_t b) {
    size_t r;
    return a == SIZE_MAX || b == SIZE_MAX || __builtin_add_overflow(a, b, &r) ? SIZE_MAX : r;
}

/* Bytes of n reals, up to the next cache line. */
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
