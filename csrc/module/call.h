/* call.h: one call from Python, from its arguments to its result.

   A binding takes its arguments in order and names each once, with its shape in letters:

       rf_call c;
       rf_begin(&c, module, args, nargs, "linear_forward");
       const void *x = rf_in(&c, "x", "n... ci");
       const void *w = rf_in(&c, "weight", "co ci");
       void *y = rf_out(&c, "out", "n... co");

   The letters are the check: the first array with a letter defines its size, and the others must
   agree. `n...` stands for any number of leading axes (n is their product). An axis with a question
   mark may be missing, but then from all arrays of the call, as if it had size 1. The first real
   array decides between float32 and float64.

   Failures are sticky: the first one sets Python's error, the rest of the binding does nothing, and
   rf_return releases everything. Everything that can fail happens before the kernel runs. */
#ifndef RF_CALL_H
#define RF_CALL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../rf.h"

enum {
    RF_MAX_SIZES = 2 + 2 * RF_MAX_AXES, // axial positions have the most
    RF_MAX_ARRAYS = 24,
    RF_MAX_FACTORS = 16,
    RF_TEXT = 512, // of a message
};

/* Floating-point numbers hold all integers up to this one. */
#define RF_MAX_POSITIONS ((size_t)1 << 53)

/* A letter, and the size that the first array with it has. */
typedef struct {
    const char *name;
    size_t length; // of the name, which is a part of a longer string
    size_t size;
    const char *owner;         // the argument that defined it
    int missing;               // an optional axis that this call's arrays do not have
    const Py_ssize_t *leading; // for `n...`: the leading axes themselves
    int leading_axes;
} rf_size_entry;

/* An array of the call, as the caller gave it and as the kernel sees it. */
typedef struct {
    PyObject *given, *used; // the same object, unless used is a copy
    const char *name;
    int written, returned;
} rf_array;

typedef struct {
    rf_run run; // first, so that poll can cast it to its call
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

/* Set Python's error and fail; not to be used after an earlier failure. And the next argument, or
   NULL and a failure if there are no more. */
#define RF_FAIL(c, error, ...) (PyErr_Format(error, __VA_ARGS__), (c)->failed = 1)
PyObject *rf_next(rf_call *c, const char *name);

/* Real arrays to read. Contiguous ones are used directly, others copied; with strides, all whose
   last axis is contiguous are used directly. `_or_none` returns NULL for None. */
const void *rf_in(rf_call *c, const char *name, const char *shape);
const void *rf_in_or_none(rf_call *c, const char *name, const char *shape);
const void *rf_in_strided(rf_call *c, const char *name, const char *shape, rf_strides *strides);

/* An argument that must be None there, "without w3"; returns NULL. */
void *rf_none(rf_call *c, const char *name, const char *where);

/* A weight matrix: an array of reals, or a QuantizedWeight, a tuple (data, scale): int8 and a scale
   for each of its `rows`, or bfloat16 numbers as uint16 and None. */
rf_matrix rf_in_matrix(rf_call *c, const char *name, const char *shape, const char *rows);
rf_matrix rf_in_matrix_or_none(rf_call *c, const char *name, const char *shape, const char *rows);

/* bfloat16 numbers, as uint16; numbers in fixed point, in the storage that rf_next_storage found.
 */
const uint16_t *rf_in_bfloat16(rf_call *c, const char *name, const char *shape);
const void *rf_in_fixed(rf_call *c, const char *name, const char *shape, rf_storage storage);

/* An integer array; and, once its limit is known, the check that every element is at least 0 and
   below it. Labels may also be `ignore`. A mask is of any bool, integer or float type. */
const int64_t *rf_in_ids(rf_call *c, const char *name, const char *shape);
void rf_check_ids(rf_call *c, const char *name, size_t limit);
void rf_check_labels(rf_call *c, const char *name, size_t limit, int64_t ignore);
const int32_t *rf_in_int32_or_none(rf_call *c, const char *name, const char *shape);
const uint8_t *rf_in_mask_or_none(rf_call *c, const char *name, const char *shape);

/* Results: the argument is the array to write to, or None for a new array. With `_over` it may be
   exactly the memory of an input; any other overlap gives the result that a copy of the input
   would.
   `_like`: a new array has the memory layout of `like`, an argument taken before. */
void *rf_out(rf_call *c, const char *name, const char *shape);
void *rf_out_over(rf_call *c, const char *name, const char *shape);
void *rf_out_like(rf_call *c, const char *name, const char *shape, const char *like,
                  rf_strides *strides);
int32_t *rf_out_buckets(rf_call *c, const char *name, const char *shape);
uint16_t *rf_out_bfloat16(rf_call *c, const char *name, const char *shape);

/* Results that are always new arrays. These take no argument. */
void *rf_new(rf_call *c, const char *shape);
void *rf_new_like(rf_call *c, const char *shape, const char *like, rf_strides *strides);
void *rf_nothing(rf_strides *strides); // NULL

/* An array to update in place; `_or_none` returns NULL for None. Not part of rf_return's result.
   `_stored`: of reals or, as uint16, of bfloat16 numbers; `_rounded`: of bfloat16 numbers or in
   fixed point. rf_next_storage says which is next, RF_REALS for any other array. */
void *rf_inout(rf_call *c, const char *name, const char *shape);
void *rf_inout_or_none(rf_call *c, const char *name, const char *shape);
void *rf_inout_stored(rf_call *c, const char *name, const char *shape, rf_storage storage);
void *rf_inout_rounded(rf_call *c, const char *name, const char *shape, rf_storage storage);
rf_storage rf_next_storage(const rf_call *c);
int32_t *rf_inout_int32_or_none(rf_call *c, const char *name, const char *shape);

/* axes.c: the tables w0, w1, ... of axial positions: all arguments but the last `after`. Returns
   their number; defines c, the sum of the widths, and checks position_ids. */
size_t rf_in_axes(rf_call *c, rf_axis *axes, size_t after);
size_t rf_inout_axes(rf_call *c, rf_axis *axes, size_t after);

/* Scalars. Floating-point ones are finite. */
double rf_double(rf_call *c, const char *name);
double rf_probability(rf_call *c, const char *name); // at least 0, below 1
int64_t rf_int64(rf_call *c, const char *name);
uint64_t rf_uint64(rf_call *c, const char *name);
size_t rf_count(rf_call *c, const char *name);     // an integer of at least 0
const char *rf_name(rf_call *c, const char *name); // a string, valid during the call
rf_activation rf_activation_of(rf_call *c, const char *name);
size_t rf_factors(rf_call *c, const char *name, int32_t *factors, size_t *product, size_t *half);
void rf_precision_of(rf_call *c);                    // of matrix products, c->run.precision
void rf_set_precision(rf_call *c, const char *text); // the same, from a text
void rf_workers(rf_call *c); // the last argument: threads the call may use, c->run.workers

/* spec.c: the options of an attention: one argument, an AttentionSpec. Also returns the name of the
   query array and the shapes of the keys and of the mask. Once all arrays are taken,
   rf_attention_sizes fills in the sizes, and rf_attention_complete what follows from them. */
int rf_spec_init(void); // -1 and an error if it fails
rf_attention rf_attention_of(rf_call *c, const char **query, const char **keys, const char **mask);
void rf_attention_sizes(rf_call *c, rf_attention *a);
void rf_attention_complete(rf_attention *a);

/* The attention of one new token to a cache: an AttentionSpec and the layer norm's eps. Once all
   arrays are taken, the second fills in the sizes, and fails if a required array is missing. */
rf_decoding rf_decoding_of(rf_call *c);
void rf_decoding_sizes(rf_call *c, rf_decoding *a, int has_keys, int has_buckets);

/* Fails unless t new tokens are among `length`, for which there is room in s places. */
void rf_check_length(rf_call *c, size_t t, size_t length, size_t s);

/* Arrays that only some attentions have: keys (not with shared_qk) and buckets (only if it hashes).
   Otherwise the argument must be None, and these return NULL. */
const void *rf_in_keys(rf_call *c, const rf_attention *a, const char *name, const char *shape,
                       rf_strides *strides);
const int32_t *rf_in_buckets(rf_call *c, const rf_attention *a, const char *name,
                             const char *shape);
const int32_t *rf_in_key_buckets(rf_call *c, const rf_attention *a, const char *name,
                                 const char *shape); // of separate keys

/* Define the size of a letter that follows from others, or check it. */
void rf_let(rf_call *c, const char *letter, size_t size, const char *owner);

/* shape.c: check an array against its letters and define those that are new, 0 if it fails; write
   the shape of some letters into dims, and return its length; whether the arrays of this call have
   an axis. */
int rf_check_shape(rf_call *c, PyObject *array, int ndim, const Py_ssize_t *dims, const char *name,
                   const char *shape);
int rf_dims_of(const rf_call *c, const char *shape, Py_ssize_t *dims);
int rf_has_axis(const rf_call *c, const char *letter);

/* The size of a letter, 0 if it is not defined (then the call has failed, or its array is None). */
size_t rf_size(const rf_call *c, const char *letter);
/* Fails unless the size of one letter divides that of another, and both axes are there or missing.
 */
void rf_check_divides(rf_call *c, const char *part, const char *whole);

/* The product of two sizes, SIZE_MAX if it overflows. */
size_t rf_product(size_t a, size_t b);

/* Call `op` of the table of this call's type. */
#define RF_CALL(c, op, ...)                                                                        \
    (rf_is_double(c) ? (c)->core->f64->op(__VA_ARGS__) : (c)->core->f32->op(__VA_ARGS__))

/* Run a kernel without the GIL, unless the call has failed. */
#define RF_RUN(c, op, ...)                                                                         \
    do {                                                                                           \
        if (rf_start(c)) {                                                                         \
            RF_CALL(c, op, &(c)->run, __VA_ARGS__);                                                \
            rf_finish(c);                                                                          \
        }                                                                                          \
    } while (0)

/* The same for a kernel that returns a number. */
#define RF_RUN_DOUBLE(c, result, op, ...)                                                          \
    do {                                                                                           \
        if (rf_start(c)) {                                                                         \
            result = RF_CALL(c, op, &(c)->run, __VA_ARGS__);                                       \
            rf_finish(c);                                                                          \
        }                                                                                          \
    } while (0)

int rf_is_double(const rf_call *c);

/* The results, or NULL with the error set. These end the call and release everything it holds. */
PyObject *rf_return(rf_call *c); // an array, a tuple of arrays, or None
PyObject *rf_return_doubles(rf_call *c, const double *values, Py_ssize_t n);

/* pool.c: memory, 64-byte aligned; NULL if there is not enough. */
void *rf_pool_acquire(size_t bytes);
void rf_pool_release(void *memory);

/* run.c: scratch for the kernel (64-byte aligned), the GIL, Ctrl-C and fork. */
void *rf_scratch(rf_call *c, size_t bytes);
int rf_start(rf_call *c);   // release the GIL; 0 if the call has failed
void rf_finish(rf_call *c); // acquire it again; the call has failed if the kernel was stopped
int rf_run_init(void);      // register the fork handler
int rf_forked(void);        // was this process forked?

/* module.c: the core in use. */
const rf_core *rf_module_core(PyObject *module);

#endif
