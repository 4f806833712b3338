/* call.h: one call from Python, from its arguments to its result.

   A binding takes its arguments one after another and names each once, with its shape in letters:

       rf_call c;
       rf_begin(&c, module, args, nargs, "linear_forward");
       const void *x = rf_in(&c, "x", "n... ci");
       const void *w = rf_in(&c, "weight", "co ci");
       void *y = rf_out(&c, "out", "n... co");

   The letters are the check: the first array that has a letter gives its size, and the others must
   agree. `n...` stands for any number of leading axes (n is their product), and an axis with a
   question mark may be missing from all arrays of a call alike, as if it had size 1. The first real
   array decides between float32 and float64.

   Failures stick: the first sets Python's error, the rest of the binding does nothing, and
   rf_return releases everything. Everything that can fail happens before the kernel runs. */
#ifndef RF_CALL_H
#define RF_CALL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../rf.h"

enum {
    RF_MAX_SIZES = 16,
    RF_MAX_ARRAYS = 24,
    RF_MAX_FACTORS = 16,
    RF_TEXT = 512, // of a message
};

/* A letter, and the size that some array gave it. */
typedef struct {
    const char *name;
    size_t length; // of the name, which is part of a longer text
    size_t size;
    const char *owner;         // the argument that gave it
    int missing;               // an optional axis that this call's arrays do not have
    const Py_ssize_t *leading; // of `n...`: the leading axes themselves
    int leading_axes;
} rf_size_entry;

/* An array of the call, as the caller gave it and as the kernel sees it. */
typedef struct {
    PyObject *given, *used; // the same object, unless used is a copy
    const char *name;
    int written, returned;
} rf_array;

typedef struct {
    rf_run run; // first, so that the poll finds its call
    PyThreadState *thread;
    int64_t next_poll; // milliseconds

    const char *op;
    const rf_core *core;
    PyObject *const *next, *const *end; // arguments not yet taken
    int failed;
    int type;              // NumPy's number of the element type, or -1 before the first real array
    const char *type_from; // the argument that decided it
    size_t sizes, arrays;
    rf_size_entry size[RF_MAX_SIZES];
    rf_array array[RF_MAX_ARRAYS];
    void *scratch;
} rf_call;

/* Import NumPy; -1 and an error if that fails. */
int rf_call_init(void);

void rf_begin(rf_call *c, PyObject *module, PyObject *const *args, Py_ssize_t nargs,
              const char *op);

/* Fail, if nothing has before; and the next argument, NULL (failed) if there is none. */
#define RF_FAIL(c, error, ...) (PyErr_Format(error, __VA_ARGS__), (c)->failed = 1)
PyObject *rf_next(rf_call *c, const char *name);

/* Real arrays to read: contiguous ones are used as they are, others copied. With strides, all
   whose last axis is contiguous are used as they are. `_or_none` gives NULL for None. */
const void *rf_in(rf_call *c, const char *name, const char *shape);
const void *rf_in_or_none(rf_call *c, const char *name, const char *shape);
const void *rf_in_strided(rf_call *c, const char *name, const char *shape, rf_strides *strides);

/* Integer arrays: every element is at least 0 and below `limit`; labels may also be `ignore`.
   A mask is of any bool, integer or float type. */
const int64_t *rf_in_ids(rf_call *c, const char *name, const char *shape, size_t limit);
const int64_t *rf_in_labels(rf_call *c, const char *name, const char *shape, size_t limit,
                            int64_t ignore);
const uint8_t *rf_in_mask_or_none(rf_call *c, const char *name, const char *shape);

/* Results that the caller may give: None for a new array, or the array to write to. `_over` may be
   exactly the memory of an input, any other overlap is written as if the input were a copy.
   `_like` lays a new array out as `like`, an argument taken before, is laid out. */
void *rf_out(rf_call *c, const char *name, const char *shape);
void *rf_out_over(rf_call *c, const char *name, const char *shape);
void *rf_out_like(rf_call *c, const char *name, const char *shape, const char *like,
                  rf_strides *strides);
int32_t *rf_out_buckets(rf_call *c, const char *name, const char *shape);

/* Results that are always new: these take no argument. */
void *rf_new(rf_call *c, const char *shape);
void *rf_new_like(rf_call *c, const char *shape, const char *like, rf_strides *strides);
void *rf_nothing(rf_strides *strides); // NULL

/* An array to update in place; `_or_none` gives NULL for None. Not part of rf_return's result. */
void *rf_inout(rf_call *c, const char *name, const char *shape);
void *rf_inout_or_none(rf_call *c, const char *name, const char *shape);
int32_t *rf_inout_int32_or_none(rf_call *c, const char *name, const char *shape);

/* Scalars. Floating-point ones are finite. */
double rf_double(rf_call *c, const char *name);
double rf_probability(rf_call *c, const char *name); // at least 0, below 1
int64_t rf_int64(rf_call *c, const char *name);
uint64_t rf_uint64(rf_call *c, const char *name);
size_t rf_count(rf_call *c, const char *name);     // an integer of at least 0
const char *rf_name(rf_call *c, const char *name); // a string that lives as long as the call
rf_activation rf_activation_of(rf_call *c, const char *name);
size_t rf_factors(rf_call *c, const char *name, int32_t *factors, size_t *product, size_t *half);
void rf_workers(rf_call *c); // the last argument: threads the call may use, c->run.workers

/* spec.c: what a query may attend to, and how: one argument, an AttentionSpec. Says how the query
   array is called, and which shapes the keys and the mask have. Its sizes, and what follows from
   them, are known once all arrays are: rf_attention_sizes. */
rf_attention rf_attention_of(rf_call *c, const char **query, const char **keys, const char **mask);
void rf_attention_sizes(rf_call *c, rf_attention *a);
void rf_attention_complete(rf_attention *a);

/* One token's attention to a cache: an AttentionSpec and the layer norm's eps; and its sizes once all
   arrays are known, if those that it has to have are there. */
rf_decoding rf_decoding_of(rf_call *c);
void rf_decoding_sizes(rf_call *c, rf_decoding *a, int has_keys, int has_buckets);

/* Arrays that an attention has or has not: keys (not with shared_qk) and buckets (only where it
   hashes). NULL, and None is the only argument accepted, where it has not. */
const void *rf_in_keys(rf_call *c, const rf_attention *a, const char *name, const char *shape,
                       rf_strides *strides);
const int32_t *rf_in_buckets(rf_call *c, const rf_attention *a, const char *name,
                             const char *shape);

/* Give a letter a size that no array has. */
void rf_let(rf_call *c, const char *letter, size_t size, const char *owner);

/* shape.c: check an array against its letters and learn those that are new, 0 if it fails; the
   shape that letters give, its number of axes; and whether the arrays of this call have an axis. */
int rf_check_shape(rf_call *c, PyObject *array, int ndim, const Py_ssize_t *dims, const char *name,
                   const char *shape);
int rf_dims_of(const rf_call *c, const char *shape, Py_ssize_t *dims);
int rf_has_axis(const rf_call *c, const char *letter);

/* The size of a letter, 0 if nothing has given it (then the call has failed, or its array is
   None); and a product of two, SIZE_MAX if it overflows. */
size_t rf_size(const rf_call *c, const char *letter);
size_t rf_product(size_t a, size_t b);

/* Call `op` of the table of this call's type. */
#define RF_CALL(c, op, ...)                                                                        \
    (rf_is_double(c) ? (c)->core->f64->op(__VA_ARGS__) : (c)->core->f32->op(__VA_ARGS__))

/* Run a kernel without the GIL, unless something has failed before. */
#define RF_RUN(c, op, ...)                                                                         \
    do {                                                                                           \
        if (rf_start(c)) {                                                                         \
            RF_CALL(c, op, &(c)->run, __VA_ARGS__);                                                \
            rf_finish(c);                                                                          \
        }                                                                                          \
    } while (0)

/* ... and one that gives a number. */
#define RF_RUN_DOUBLE(c, result, op, ...)                                                          \
    do {                                                                                           \
        if (rf_start(c)) {                                                                         \
            result = RF_CALL(c, op, &(c)->run, __VA_ARGS__);                                       \
            rf_finish(c);                                                                          \
        }                                                                                          \
    } while (0)

int rf_is_double(const rf_call *c);

/* The results, or NULL with the error set: nothing is held after these. */
PyObject *rf_return(rf_call *c); // one array, or a tuple, or None where there is none
PyObject *rf_return_doubles(rf_call *c, const double *values, Py_ssize_t n);

/* pool.c: memory, 64-byte aligned; NULL where there is none. */
void *rf_pool_take(size_t bytes);
void rf_pool_give(void *memory);

/* run.c: scratch for the kernel (64-byte aligned), the GIL, Ctrl-C and fork. */
void *rf_scratch(rf_call *c, size_t bytes);
int rf_start(rf_call *c);   // let go of the GIL; 0 if the call has failed
void rf_finish(rf_call *c); // take it back; fails if somebody has asked the kernel to stop
int rf_run_init(void);      // watch for forks
int rf_forked(void);        // is this a child of a fork?

/* module.c: the core in use. */
const rf_core *rf_module_core(PyObject *module);

#endif
