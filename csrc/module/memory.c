/* memory.c: memory that a pass through a model reuses; knows nothing of Python.

   A pass (through a model, or any code within rc.reuse_memory) allocates and frees large
   arrays and scratch hundreds of times. The system returns memory zeroed, page by page, which can
   take a tenth of a training step. So between rf_memory_enter and rf_memory_exit large blocks come
   from one reserved region of addresses. Freed blocks stay committed and are reused, best fit by
   already-touched pages.

   Pages go back to the system when a pass would otherwise hold more than its high-water mark, and
   between passes, except a part that the next one starts with; so do the addresses above all
   blocks. If the process's addresses are limited (ulimit -v), none are reserved and the system's
   allocator is used. */
#include "memory.h"

#include <stdlib.h>
#include <string.h>

#include "system.h"

#define LARGE ((size_t)1 << 18)
#define HUGE_PAGE ((size_t)1 << 21)
#define SLACK ((size_t)1 << 25) // bytes that may be cached in gaps too small for any block
enum { ALIGN = 64 };

/* The header before a block's memory. */
typedef struct block {
    void *raw;          // from malloc; NULL if from the region
    size_t size, bytes; // of the block with this header; requested
    struct block *below;
    enum { USED, CACHED, UNCOMMITTED } state; // free: CACHED with its pages, UNCOMMITTED without
} block;

_Static_assert(sizeof(block) <= ALIGN, "the header must leave the memory aligned");

/* Read and changed with rf_lock held. */
static struct {
    size_t total_memory; // of the machine or its container
    size_t passes;       // now running

    // the region: a range of addresses, filled with adjacent blocks from the bottom
    char *base;
    size_t reserved, accessible, top; // its length; bytes mapped read-write; the end of the blocks
    size_t used, cached, high_water;  // bytes of USED and of CACHED blocks; the maximum of `used`
    block *last;
} pool;

static size_t round_up_to(size_t multiple, size_t bytes) {
    return (bytes + multiple - 1) / multiple * multiple;
}

/* ---- the region ---- */

static int reserve_anywhere(size_t bytes) {
    pool.base = rf_reserve(bytes, HUGE_PAGE);
    if (pool.base) pool.reserved = bytes;
    return pool.base != NULL;
}

/* Extend the region upwards, if those addresses are free. */
static int reserve_above(size_t bytes) {
    if (!rf_reserve_above(pool.base + pool.reserved, bytes)) return 0;
    pool.reserved += bytes;
    return 1;
}

static int reserve_more(void) {
    size_t bytes = round_up_to(HUGE_PAGE, pool.total_memory);
    for (; bytes >= 64 * HUGE_PAGE; bytes = round_up_to(HUGE_PAGE, bytes / 2)) {
        if (pool.reserved - pool.top >= bytes) return 1; // where addresses could not be returned
        if (pool.base ? reserve_above(bytes) : reserve_anywhere(bytes)) return 1;
    }
    return 0;
}

/* Return the addresses above all blocks to the system. */
static void unreserve(void) {
    if (!pool.base) return;
    block *b = pool.last;
    if (b && b->state == UNCOMMITTED) {
        pool.top = (size_t)((char *)b - pool.base);
        pool.last = b->below;
    }
    const size_t kept = round_up_to(HUGE_PAGE, pool.top);
    pool.reserved = rf_unreserve(pool.base, kept, pool.reserved);
    if (pool.accessible > kept) pool.accessible = kept;
    if (!kept) pool.base = NULL;
}

static block *above(const block *b) {
    return b == pool.last ? NULL : (block *)((char *)b + b->size);
}

/* Make b the block below `upper`, or the last block if `upper` is NULL. */
static void link_below(block *b, block *upper) {
    if (upper)
        upper->below = b;
    else
        pool.last = b;
}

/* Split off what is above `size`, if it is large enough for a block. */
static void split(block *b, size_t size) {
    if (b->size < size + LARGE) return;
    block *upper = above(b), *rest = (block *)((char *)b + size);
    *rest = (block){.size = b->size - size, .below = b, .state = b->state};
    link_below(rest, upper);
    b->size = size;
}

/* Merge two adjacent blocks. */
static void merge(block *lower, block *upper) {
    block *next = above(upper);
    lower->size += upper->size;
    link_below(lower, next);
}

/* Merge a free block with neighbours in the same state; returns the merged block. */
static block *merge_neighbours(block *b) {
    block *upper = above(b);
    if (upper && upper->state == b->state) merge(b, upper);
    if (!b->below || b->below->state != b->state) return b;
    block *lower = b->below;
    merge(lower, b);
    return lower;
}

/* Return the pages of the upper `bytes` of a cached block, or of all of it, to the system. Whole
   large pages: a partly returned one would be replaced by small pages. */
static void decommit(block *b, size_t bytes) {
    // 1. split the block at a large page
    const uintptr_t end = (uintptr_t)b + b->size;
    const uintptr_t cut = end / HUGE_PAGE * HUGE_PAGE - round_up_to(HUGE_PAGE, bytes) - ALIGN;
    if (cut > (uintptr_t)b + LARGE) {
        split(b, cut - (uintptr_t)b);
        b = above(b);
    }
    pool.cached -= b->size;
    b->state = UNCOMMITTED;
    uintptr_t first = (uintptr_t)b / HUGE_PAGE * HUGE_PAGE, last = round_up_to(HUGE_PAGE, end);

    // 2. its pages, including those shared with uncommitted neighbours, but never a header's
    b = merge_neighbours(b);
    const uintptr_t from = round_up_to(HUGE_PAGE, (uintptr_t)b + ALIGN);
    const uintptr_t to = ((uintptr_t)b + b->size) / HUGE_PAGE * HUGE_PAGE;
    first = first < from ? from : first, last = last > to ? to : last;
    if (first < last) rf_decommit((char *)first, last - first);
}

/* Return pages to the system, largest blocks first, until at most `limit` bytes are cached. */
static void trim(size_t limit) {
    while (pool.cached > limit) {
        block *largest = NULL;
        for (block *b = pool.last; b; b = b->below)
            if (b->state == CACHED && (!largest || b->size > largest->size)) largest = b;
        decommit(largest, pool.cached - limit);
    }
}

/* Reserve as many addresses as there is memory, or as many as possible; they cost nothing. Not if
   they are limited: a reservation would then leave none to the rest of the program. */
static void reserve(void) {
    if (rf_addresses_are_limited()) return;
    if (reserve_more() || pool.used) return;
    trim(0); // no block is in use, so the region can move to where there is more room
    unreserve();
    reserve_more();
}

/* A sixteenth of the memory may stay cached for the next pass. */
static void trim_between_passes(void) {
    trim(pool.total_memory / 16);
    unreserve();
}

/* A new uncommitted block at the top. */
static block *extend_top(size_t size) {
    if (size > pool.reserved - pool.top) return NULL;
    const size_t top = pool.top + size, accessible = round_up_to(HUGE_PAGE, top);
    if (accessible > pool.accessible) {
        char *at = pool.base + pool.accessible;
        if (!rf_commit(at, accessible - pool.accessible)) return NULL;
        rf_advise_large_pages(at, accessible - pool.accessible, HUGE_PAGE);
        pool.accessible = accessible;
    }
    block *b = (block *)(pool.base + pool.top);
    *b = (block){.size = size, .below = pool.last, .state = UNCOMMITTED};
    pool.last = b;
    pool.top = top;
    return b;
}

/* How many of the `size` bytes from free block b on have no pages, including new ones past the top;
   SIZE_MAX if a used block is in the way. */
static size_t uncommitted_bytes(const block *b, size_t size) {
    size_t uncommitted = 0;
    for (; b && size > 0; b = above(b)) {
        if (b->state == USED) return SIZE_MAX;
        const size_t part = b->size < size ? b->size : size;
        if (b->state == UNCOMMITTED) uncommitted += part;
        size -= part;
    }
    return size > pool.reserved - pool.top ? SIZE_MAX : uncommitted + size;
}

/* Where `size` bytes fit: where the fewest bytes are uncommitted, and then the smallest block. */
static block *find_best_fit(size_t size) {
    block *best = NULL;
    size_t min_uncommitted = SIZE_MAX;
    for (block *b = pool.last; b; b = b->below) {
        if (b->state == USED) continue;
        const size_t uncommitted = uncommitted_bytes(b, size);
        if (uncommitted == SIZE_MAX || uncommitted > min_uncommitted) continue;
        if (uncommitted == min_uncommitted && b->size > best->size) continue;
        best = b, min_uncommitted = uncommitted;
    }
    return best ? best : extend_top(size);
}

/* Turn the `size` bytes from free block b on into one used block. */
static int claim(block *b, size_t size) {
    size_t free = 0;
    for (block *upper = b; upper && free < size; upper = above(upper)) free += upper->size;
    if (free < size && !extend_top(size - free)) return 0;
    // with the header of the block above, if this one is split
    const size_t rest = pool.top - (size_t)((char *)b - pool.base);
    if (!rf_recommit((char *)b, rest < size + ALIGN ? rest : size + ALIGN)) return 0;
    split(b, size);
    if (b->state == CACHED) pool.cached -= b->size;
    b->state = USED;
    while (b->size < size) {
        block *upper = above(b);
        split(upper, size - b->size);
        if (upper->state == CACHED) pool.cached -= upper->size;
        merge(b, upper);
    }
    return 1;
}

static block *region_acquire(size_t bytes) {
    const size_t size = round_up_to(ALIGN, bytes + ALIGN);
    block *b = find_best_fit(size);
    if (!b || !claim(b, size)) return NULL;
    b->bytes = bytes;
    pool.used += b->size;
    if (pool.used > pool.high_water) pool.high_water = pool.used;
    trim(pool.high_water - pool.used + SLACK);
    return b;
}

static void region_release(block *b) {
    pool.used -= b->size;
    pool.cached += b->size;
    b->state = CACHED;
    merge_neighbours(b);
    if (!pool.passes) trim_between_passes();
}

/* ---- memory from the region, or from the system ---- */

static block *system_block(size_t bytes, int zeroed) {
    if (bytes > SIZE_MAX - 2 * ALIGN) return NULL;
    void *raw = zeroed ? calloc(1, bytes + 2 * ALIGN) : malloc(bytes + 2 * ALIGN);
    if (!raw) return NULL;
    block *b = (block *)round_up_to(ALIGN, (uintptr_t)raw);
    *b = (block){.raw = raw, .bytes = bytes};
    rf_advise_large_pages((char *)b + ALIGN, bytes, HUGE_PAGE);
    return b;
}

void *rf_memory_acquire(size_t bytes, int zeroed) {
    block *b = NULL;
    if (bytes >= LARGE && bytes < SIZE_MAX / 2) {
        rf_lock();
        if (pool.passes) b = region_acquire(bytes);
        rf_unlock();
        if (b && zeroed) memset((char *)b + ALIGN, 0, bytes);
    }
    if (!b) b = system_block(bytes, zeroed);
    return b ? (char *)b + ALIGN : NULL;
}

void rf_memory_release(void *memory) {
    if (!memory) return;
    block *b = (block *)((char *)memory - ALIGN);
    if (b->raw) {
        free(b->raw);
        return;
    }
    rf_lock();
    region_release(b);
    rf_unlock();
}

size_t rf_memory_size(const void *memory) {
    return ((const block *)((const char *)memory - ALIGN))->bytes;
}

/* ---- passes ---- */

void rf_memory_enter(void) {
    rf_lock();
    if (pool.passes++ == 0) {
        reserve();
        pool.high_water = pool.used + pool.cached; // cached pages may all be reused
    }
    rf_unlock();
}

void rf_memory_exit(void) {
    rf_lock();
    if (pool.passes > 0 && --pool.passes == 0) trim_between_passes();
    rf_unlock();
}

size_t rf_memory_cached(void) {
    rf_lock();
    const size_t cached = pool.cached;
    rf_unlock();
    return cached;
}

size_t rf_memory_trim(void) {
    rf_lock();
    const size_t before = pool.cached;
    trim(0);
    if (!pool.passes) unreserve();
    const size_t released = before - pool.cached;
    rf_unlock();
    return released;
}

void rf_memory_set_total(size_t bytes) {
    rf_lock();
    pool.total_memory = bytes < SIZE_MAX / 2 ? bytes : SIZE_MAX / 2;
    if (!pool.passes) trim_between_passes();
    rf_unlock();
}
