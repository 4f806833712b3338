/* pool.c: the memory of memory.c for Python: for kernels' scratch, and for NumPy's arrays through
   its data memory handler (NEP 49). */
#include "bind.h"

#include <numpy/arrayobject.h>

#include "memory.h"
#include "system.h"

enum { TRACE_DOMAIN = 0x5246 };

/* Scratch of a kernel, reported to tracemalloc. */
void *rf_pool_acquire(size_t bytes) {
    void *memory = rf_memory_acquire(bytes, 0);
    if (memory) PyTraceMalloc_Track(TRACE_DOMAIN, (uintptr_t)memory, bytes);
    return memory;
}

void rf_pool_release(void *memory) {
    if (memory) PyTraceMalloc_Untrack(TRACE_DOMAIN, (uintptr_t)memory);
    rf_memory_release(memory);
}

/* ---- NumPy's arrays ---- */

static void *array_malloc(void *context, size_t bytes) {
    (void)context;
    return rf_memory_acquire(bytes, 0);
}

static void *array_calloc(void *context, size_t count, size_t bytes) {
    (void)context;
    return bytes && count > SIZE_MAX / bytes ? NULL : rf_memory_acquire(count * bytes, 1);
}

static void array_free(void *context, void *memory, size_t bytes) {
    (void)context, (void)bytes;
    rf_memory_release(memory);
}

static void *array_realloc(void *context, void *memory, size_t bytes) {
    void *larger = array_malloc(context, bytes);
    if (!memory || !larger) return larger;
    const size_t had = rf_memory_size(memory);
    memcpy(larger, memory, had < bytes ? had : bytes);
    rf_memory_release(memory);
    return larger;
}

static PyDataMem_Handler handler = {
    .name = "reformer_c",
    .version = 1,
    .allocator = {NULL, array_malloc, array_calloc, array_realloc, array_free},
};

/* From now on, arrays of this context come from the pool. Returns the previous handler. */
PyObject *rf_pool_enter(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    PyObject *capsule = PyCapsule_New(&handler, "mem_handler", NULL);
    PyObject *before = capsule ? PyDataMem_SetHandler(capsule) : NULL;
    Py_XDECREF(capsule);
    if (!before) return NULL;
    rf_memory_enter();
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
    rf_memory_exit();
    Py_RETURN_NONE;
}

/* Bytes that are cached: a part of the process's memory, available to a pass. */
PyObject *rf_pool_cached(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    return PyLong_FromSize_t(rf_memory_cached());
}

/* Return all cached bytes to the system; returns their number. */
PyObject *rf_pool_trim(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    return PyLong_FromSize_t(rf_memory_trim());
}

/* Set the total memory, of which a sixteenth may stay cached. */
PyObject *rf_pool_set_memory(PyObject *module, PyObject *bytes) {
    (void)module;
    const size_t memory = PyLong_AsSize_t(bytes);
    if (memory == (size_t)-1 && PyErr_Occurred()) return NULL;
    rf_memory_set_total(memory);
    Py_RETURN_NONE;
}

int rf_pool_init(void) {
    static atomic_flag watching = ATOMIC_FLAG_INIT;
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    if (atomic_flag_test_and_set(&watching)) return 0;
    if (rf_at_fork(rf_lock, rf_unlock, rf_unlock) == 0) return 0;
    PyErr_NoMemory();
    return -1;
}
