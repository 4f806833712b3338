/* run.c: runs a kernel: with scratch, without the GIL, interruptible by Ctrl-C, and with one thread
   after a fork. */
#include "call.h"
#include "system.h"

enum { POLL_MILLISECONDS = 50 };

static void no_memory(rf_call *c, size_t bytes) {
    static const char *const unit[] = {"bytes", "kB", "MB", "GB", "TB", "PB", "EB"};
    char text[RF_TEXT] = "";
    double amount = (double)bytes;
    size_t u = 0, end = 0;
    while (amount >= 1000 && u < 6) amount /= 1000, u++;
    for (size_t i = 0; i < c->sizes && end + 64 < sizeof text; i++)
        end += (size_t)snprintf(text + end, sizeof text - end, "%s%.*s = %zu", i ? ", " : "",
                                (int)c->size[i].length, c->size[i].name, c->size[i].size);
    char needed[RF_TEXT] = "more bytes of scratch than can be counted";
    if (bytes != SIZE_MAX) snprintf(needed, sizeof needed, "%.3g %s of scratch", amount, unit[u]);
    RF_FAIL(c, PyExc_MemoryError, "%s with %s on %d threads needs %s", c->op, text, c->run.workers,
            needed);
}

void *rf_scratch(rf_call *c, size_t bytes) {
    if (c->failed || bytes == 0) return NULL;
    c->scratch = rf_pool_acquire(bytes);
    if (!c->scratch) no_memory(c, bytes);
    return c->scratch;
}

/* libgomp's threads do not survive a fork, and a parallel region would wait for them forever. */
static atomic_int forked;

static void in_child(void) {
    atomic_store(&forked, 1);
}

int rf_forked(void) {
    return atomic_load(&forked);
}

/* Usually called once per process, but a second import after a failed one is legal. */
int rf_run_init(void) {
    static atomic_flag watching = ATOMIC_FLAG_INIT;
    if (atomic_flag_test_and_set(&watching)) return 0;
    if (rf_at_fork(NULL, NULL, in_child) == 0) return 0;
    PyErr_NoMemory();
    return -1;
}

/* Reads the clock first, since taking the GIL is expensive. A signal handler that raises stops the
   kernel; its exception stays set until rf_finish. */
static int poll(rf_run *run) {
    rf_call *c = (rf_call *)run;
    const int64_t time = rf_milliseconds();
    if (time < c->next_poll || atomic_load(&run->stop)) return 0;
    PyEval_RestoreThread(c->thread);
    if (PyErr_CheckSignals() < 0) atomic_store(&run->stop, 1);
    c->thread = PyEval_SaveThread();
    c->next_poll = rf_milliseconds() + POLL_MILLISECONDS;
    return 1;
}

int rf_start(rf_call *c) {
    if (c->failed) return 0;
    c->run.poll = poll;
    c->next_poll = rf_milliseconds() + POLL_MILLISECONDS;
    c->thread = PyEval_SaveThread();
    return 1;
}

void rf_finish(rf_call *c) {
    PyEval_RestoreThread(c->thread);
    if (atomic_load(&c->run.stop)) c->failed = 1;
}
