/* pool.c: memory that a pass through a model uses again.

   A pass (through a model, or whatever runs within rc.memory_used_again) makes and frees large
   arrays and scratch hundreds of times. The system gives memory back zeroed, page by page, which
   can cost a tenth of a training step. So between rf_pool_enter and rf_pool_exit large blocks come
   from one region of addresses: what is freed waits, with its pages, and serves whoever fits where
   most pages are, NumPy's arrays by way of its data memory handler (NEP 49). Pages that would make
   a pass take more than it ever used at once go back to the system, and between passes all but some
   that the next one begins with, and the addresses above all blocks. Where the process's addresses
   are limited (ulimit -v), none are reserved: the system's own allocator serves. */
#include "bind.h"

#include <numpy/arrayobject.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define LARGE ((size_t)1 << 18)
#define HUGE_PAGE ((size_t)1 << 21)
#define SLACK ((size_t)1 << 25) // bytes that may wait between blocks, where none fits
enum { ALIGN = 64, TRACED = 0x5246 };

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0 // a wish then
#endif

/* What lies before a block's memory. */
typedef struct block {
    void *raw;          // from malloc; NULL is from the region
    size_t size, bytes; // with this header; of memory
    struct block *below;
    enum { USED, WAITING, EMPTY } state; // empty: free, and its pages are the system's
} block;

_Static_assert(sizeof(block) <= ALIGN, "the header leaves the memory aligned");

static struct {
    pthread_mutex_t lock;
    size_t memory; // bytes that there are, of the machine or its container
    size_t passes; // that are under way

    // the region: addresses that blocks tile from the bottom up
    char *base;
    size_t reserved, open, top; // of them; that may be touched; where blocks end
    size_t used, waiting, most; // bytes in use, free and kept; the most that was in use
    block *last;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void lock(void) {
    pthread_mutex_lock(&pool.lock);
}

static void unlock(void) {
    pthread_mutex_unlock(&pool.lock);
}

static size_t up_to(size_t multiple, size_t bytes) {
    return (bytes + multiple - 1) / multiple * multiple;
}

/* Large pages where the system has them: memory that is used at once would cost more in page
   faults of 4 KiB than in work. */
static void ask_for_large_pages(void *start, size_t bytes) {
#ifdef MADV_HUGEPAGE
    const size_t first = up_to(HUGE_PAGE, (uintptr_t)start);
    const size_t last = ((uintptr_t)start + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (first < last) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

/* ---- the region ---- */

static int limited(int resource) {
    struct rlimit limit;
    return getrlimit(resource, &limit) < 0 || limit.rlim_cur != RLIM_INFINITY;
}

static char *map_addresses(char *at, size_t bytes, int flags) {
    char *got =
        mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    return got == MAP_FAILED ? NULL : got;
}

/* Above the blocks that are left, as far as nobody else has come there. */
static int reserve_above(size_t bytes) {
    char *end = pool.base + pool.reserved;
    char *at = map_addresses(end, bytes, MAP_FIXED_NOREPLACE);
    if (at == end)
        pool.reserved += bytes;
    else if (at)
        munmap(at, bytes);
    return at == end;
}

static int reserve_anywhere(size_t bytes) {
    char *at = map_addresses(NULL, bytes + HUGE_PAGE, 0);
    if (!at) return 0;
    char *end = at + bytes + HUGE_PAGE;
    pool.base = (char *)up_to(HUGE_PAGE, (uintptr_t)at);
    pool.reserved = bytes;
    if (pool.base > at) munmap(at, (size_t)(pool.base - at));
    if (end > pool.base + bytes) munmap(pool.base + bytes, (size_t)(end - pool.base) - bytes);
    return 1;
}

static int reserve_more(void) {
    size_t bytes = up_to(HUGE_PAGE, pool.memory);
    for (; bytes >= 64 * HUGE_PAGE; bytes = up_to(HUGE_PAGE, bytes / 2))
        if (pool.base ? reserve_above(bytes) : reserve_anywhere(bytes)) return 1;
    return 0;
}

/* Give the addresses above all blocks back. */
static void unreserve(void) {
    if (!pool.base) return;
    block *b = pool.last;
    if (b && b->state == EMPTY) {
        pool.top = (size_t)((char *)b - pool.base);
        pool.last = b->below;
    }
    const size_t kept = up_to(HUGE_PAGE, pool.top);
    if (pool.reserved > kept) munmap(pool.base + kept, pool.reserved - kept);
    pool.reserved = kept;
    if (pool.open > kept) pool.open = kept;
    if (!kept) pool.base = NULL;
}

static block *above(const block *b) {
    return b == pool.last ? NULL : (block *)((char *)b + b->size);
}

/* `upper` is the block above, or there is none. */
static void put_on(block *b, block *upper) {
    if (upper)
        upper->below = b;
    else
        pool.last = b;
}

/* Leave what is above `size` to others, if that is worth a block. */
static void split(block *b, size_t size) {
    if (b->size < size + LARGE) return;
    block *upper = above(b), *rest = (block *)((char *)b + size);
    *rest = (block){.size = b->size - size, .below = b, .state = b->state};
    put_on(rest, upper);
    b->size = size;
}

/* One block in place of two. */
static void join(block *lower, block *upper) {
    block *next = above(upper);
    lower->size += upper->size;
    put_on(lower, next);
}

/* One block in place of a free one and its neighbours that are as it is. */
static block *join_neighbours(block *b) {
    block *upper = above(b);
    if (upper && upper->state == b->state) join(b, upper);
    if (!b->below || b->below->state != b->state) return b;
    block *lower = b->below;
    join(lower, b);
    return lower;
}

/* Give the pages of the upper `bytes` of a block that waits back to the system, or of all of it.
   Whole large pages: parts of one would come back in small ones. */
static void give_back(block *b, size_t bytes) {
    const uintptr_t end = (uintptr_t)b + b->size;
    const uintptr_t cut = end / HUGE_PAGE * HUGE_PAGE - up_to(HUGE_PAGE, bytes) - ALIGN;
    if (cut > (uintptr_t)b + LARGE) {
        split(b, cut - (uintptr_t)b);
        b = above(b);
    }
    pool.waiting -= b->size;
    b->state = EMPTY;
    uintptr_t first = (uintptr_t)b / HUGE_PAGE * HUGE_PAGE, last = up_to(HUGE_PAGE, end);
    // pages that lie in neighbours too, if those are as empty, but never the header
    b = join_neighbours(b);
    const uintptr_t from = up_to(HUGE_PAGE, (uintptr_t)b + ALIGN);
    const uintptr_t to = ((uintptr_t)b + b->size) / HUGE_PAGE * HUGE_PAGE;
    first = first < from ? from : first, last = last > to ? to : last;
    if (first < last) madvise((void *)first, last - first, MADV_DONTNEED);
}

/* Give pages back, of the largest blocks first, until no more than `limit` bytes wait. */
static void empty(size_t limit) {
    while (pool.waiting > limit) {
        block *largest = NULL;
        for (block *b = pool.last; b; b = b->below)
            if (b->state == WAITING && (!largest || b->size > largest->size)) largest = b;
        give_back(largest, pool.waiting - limit);
    }
}

/* As many addresses as there is memory, or as the system lets us have; they cost nothing. Not where
   they are counted: there a reservation would leave the program without. */
static void reserve(void) {
    if (limited(RLIMIT_AS) || limited(RLIMIT_DATA)) return;
    if (reserve_more() || pool.used) return;
    empty(0); // no block in use keeps the region where others have hemmed it in
    unreserve();
    reserve_more();
}

/* A sixteenth of the memory may wait for the next pass. */
static void empty_between_passes(void) {
    empty(pool.memory / 16);
    unreserve();
}

/* A new block at the top, empty. */
static block *new_top(size_t size) {
    if (size > pool.reserved - pool.top) return NULL;
    const size_t top = pool.top + size, open = up_to(HUGE_PAGE, top);
    if (open > pool.open) {
        char *at = pool.base + pool.open;
        if (mprotect(at, open - pool.open, PROT_READ | PROT_WRITE) < 0) return NULL;
        ask_for_large_pages(at, open - pool.open);
        pool.open = open;
    }
    block *b = (block *)(pool.base + pool.top);
    *b = (block){.size = size, .below = pool.last, .state = EMPTY};
    pool.last = b;
    pool.top = top;
    return b;
}

/* Bytes without pages among the `size` from free block b on, new ones past the top included;
   SIZE_MAX where a block in use is in the way. */
static size_t cold_bytes(const block *b, size_t size) {
    size_t cold = 0;
    for (; b && size > 0; b = above(b)) {
        if (b->state == USED) return SIZE_MAX;
        const size_t part = b->size < size ? b->size : size;
        if (b->state == EMPTY) cold += part;
        size -= part;
    }
    return size > pool.reserved - pool.top ? SIZE_MAX : cold + size;
}

/* Where `size` bytes fit: the place that has most pages, and of such the smallest block. */
static block *find(size_t size) {
    block *best = NULL;
    size_t least = SIZE_MAX;
    for (block *b = pool.last; b; b = b->below) {
        if (b->state == USED) continue;
        const size_t cold = cold_bytes(b, size);
        if (cold == SIZE_MAX || cold > least) continue;
        if (cold == least && b->size > best->size) continue;
        best = b, least = cold;
    }
    return best ? best : new_top(size);
}

/* Make one block in use of the first `size` bytes from free block b on. */
static int occupy(block *b, size_t size) {
    size_t free = 0;
    for (block *upper = b; upper && free < size; upper = above(upper)) free += upper->size;
    if (free < size && !new_top(size - free)) return 0;
    split(b, size);
    if (b->state == WAITING) pool.waiting -= b->size;
    b->state = USED;
    while (b->size < size) {
        block *upper = above(b);
        split(upper, size - b->size);
        if (upper->state == WAITING) pool.waiting -= upper->size;
        join(b, upper);
    }
    return 1;
}

static block *take_from_region(size_t bytes) {
    const size_t size = up_to(ALIGN, bytes + ALIGN);
    block *b = find(size);
    if (!b || !occupy(b, size)) return NULL;
    b->bytes = bytes;
    pool.used += b->size;
    if (pool.used > pool.most) pool.most = pool.used;
    empty(pool.most - pool.used + SLACK);
    return b;
}

static void give_to_region(block *b) {
    pool.used -= b->size;
    pool.waiting += b->size;
    b->state = WAITING;
    join_neighbours(b);
    if (!pool.passes) empty_between_passes();
}

/* ---- memory from the region, or from the system ---- */

static block *new_block(size_t bytes, int zeroed) {
    if (bytes > SIZE_MAX - 2 * ALIGN) return NULL;
    void *raw = zeroed ? calloc(1, bytes + 2 * ALIGN) : malloc(bytes + 2 * ALIGN);
    if (!raw) return NULL;
    block *b = (block *)up_to(ALIGN, (uintptr_t)raw);
    *b = (block){.raw = raw, .bytes = bytes};
    ask_for_large_pages((char *)b + ALIGN, bytes);
    return b;
}

static void *take(size_t bytes, int zeroed) {
    block *b = NULL;
    if (bytes >= LARGE && bytes < SIZE_MAX / 2) {
        lock();
        if (pool.passes) b = take_from_region(bytes);
        unlock();
        if (b && zeroed) memset((char *)b + ALIGN, 0, bytes);
    }
    if (!b) b = new_block(bytes, zeroed);
    return b ? (char *)b + ALIGN : NULL;
}

static void give(void *memory) {
    if (!memory) return;
    block *b = (block *)((char *)memory - ALIGN);
    if (b->raw) {
        free(b->raw);
        return;
    }
    lock();
    give_to_region(b);
    unlock();
}

/* Scratch of a kernel, which tracemalloc sees. */
void *rf_pool_take(size_t bytes) {
    void *memory = take(bytes, 0);
    if (memory) PyTraceMalloc_Track(TRACED, (uintptr_t)memory, bytes);
    return memory;
}

void rf_pool_give(void *memory) {
    if (memory) PyTraceMalloc_Untrack(TRACED, (uintptr_t)memory);
    give(memory);
}

/* ---- NumPy's arrays ---- */

static void *array_malloc(void *context, size_t bytes) {
    (void)context;
    return take(bytes, 0);
}

static void *array_calloc(void *context, size_t count, size_t bytes) {
    (void)context;
    return bytes && count > SIZE_MAX / bytes ? NULL : take(count * bytes, 1);
}

static void array_free(void *context, void *memory, size_t bytes) {
    (void)context, (void)bytes;
    give(memory);
}

static void *array_realloc(void *context, void *memory, size_t bytes) {
    void *larger = array_malloc(context, bytes);
    if (!memory || !larger) return larger;
    const size_t had = ((block *)((char *)memory - ALIGN))->bytes;
    memcpy(larger, memory, had < bytes ? had : bytes);
    give(memory);
    return larger;
}

static PyDataMem_Handler handler = {
    .name = "reformer_c",
    .version = 1,
    .allocator = {NULL, array_malloc, array_calloc, array_realloc, array_free},
};

/* From now on arrays of this context come from the pool; the handler that they came from. */
PyObject *rf_pool_enter(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    PyObject *capsule = PyCapsule_New(&handler, "mem_handler", NULL);
    PyObject *before = capsule ? PyDataMem_SetHandler(capsule) : NULL;
    Py_XDECREF(capsule);
    if (!before) return NULL;
    lock();
    if (pool.passes++ == 0) {
        reserve();
        pool.most = pool.used + pool.waiting; // what is here now has been paid for
    }
    unlock();
    return before;
}

PyObject *rf_pool_exit(PyObject *module, PyObject *before) {
    (void)module;
    if (!PyCapsule_IsValid(before, "mem_handler")) {
        PyErr_SetString(PyExc_TypeError, "before must be what pool_enter gave");
        return NULL;
    }
    PyObject *mine = PyDataMem_SetHandler(before);
    if (!mine) return NULL;
    Py_DECREF(mine);
    lock();
    if (pool.passes > 0 && --pool.passes == 0) empty_between_passes();
    unlock();
    Py_RETURN_NONE;
}

/* Bytes that are free and kept: the process has them, and a pass may use them. */
PyObject *rf_pool_waiting(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    lock();
    const size_t waiting = pool.waiting;
    unlock();
    return PyLong_FromSize_t(waiting);
}

/* Give all that is free and kept back to the system; how many bytes. */
PyObject *rf_pool_release(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    lock();
    const size_t before = pool.waiting;
    empty(0);
    if (!pool.passes) unreserve();
    const size_t released = before - pool.waiting;
    unlock();
    return PyLong_FromSize_t(released);
}

/* From now on this is the memory that there is. */
PyObject *rf_pool_memory(PyObject *module, PyObject *bytes) {
    (void)module;
    const size_t memory = PyLong_AsSize_t(bytes);
    if (memory == (size_t)-1 && PyErr_Occurred()) return NULL;
    lock();
    pool.memory = memory < SIZE_MAX / 2 ? memory : SIZE_MAX / 2;
    if (!pool.passes) empty_between_passes();
    unlock();
    Py_RETURN_NONE;
}

int rf_pool_init(void) {
    static atomic_flag watching = ATOMIC_FLAG_INIT;
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    if (atomic_flag_test_and_set(&watching)) return 0;
    if (pthread_atfork(lock, unlock, unlock) == 0) return 0;
    PyErr_NoMemory();
    return -1;
}
