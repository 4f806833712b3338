/* call.c: checks, unwraps and makes arrays. The only file that accesses their contents. */
#include "call.h"

#include <numpy/arrayobject.h>

enum { MAX_NDIM = 64 }; // of NumPy

int rf_call_init(void) {
    return PyArray_ImportNumPyAPI();
}

void rf_begin(rf_call *c, PyObject *module, PyObject *const *args, Py_ssize_t nargs,
              const char *op) {
    c->run.workers = 1;
    c->run.precision = RF_HIGHEST;
    c->run.poll = NULL;
    atomic_init(&c->run.stop, 0);
    c->op = op;
    c->core = rf_module_core(module);
    c->next = args;
    c->end = args + nargs;
    c->failed = 0;
    c->type = -1;
    c->sizes = c->arrays = 0;
    c->scratch = NULL;
}

int rf_is_double(const rf_call *c) {
    return c->type == NPY_DOUBLE;
}

PyObject *rf_next(rf_call *c, const char *name) {
    if (c->failed) return NULL;
    if (c->next == c->end) {
        RF_FAIL(c, PyExc_TypeError, "%s: argument %s is missing", c->op, name);
        return NULL;
    }
    return *c->next++;
}

static int next_is_none(const rf_call *c) {
    return c->next != c->end && *c->next == Py_None;
}

/* ---- arrays: held until the call returns ---------------------------------------------------- */

/* Where the elements of an array are. */
typedef struct {
    const char *low, *high; // the first byte, and one past the last
} extent;

static extent extent_of(PyArrayObject *array) {
    extent e = {PyArray_BYTES(array), PyArray_BYTES(array)};
    if (PyArray_SIZE(array) == 0) return e;
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        const npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        if (reach < 0) e.low += reach;
        if (reach > 0) e.high += reach;
    }
    e.high += PyArray_ITEMSIZE(array);
    return e;
}

static int overlap(PyArrayObject *a, PyArrayObject *b) {
    const extent x = extent_of(a), y = extent_of(b);
    return x.low < y.high && y.low < x.high;
}

static int overlaps_a_result(const rf_call *c, PyArrayObject *array) {
    for (size_t i = 0; i < c->arrays; i++)
        if (c->array[i].written && overlap((PyArrayObject *)c->array[i].used, array)) return 1;
    return 0;
}

/* Keep an argument until the call returns, or a copy if it shares memory with one that the kernel
   writes. Steals both references. */
static PyArrayObject *hold(rf_call *c, PyArrayObject *given, PyArrayObject *used,
                           const char *name) {
    if (used && overlaps_a_result(c, used)) {
        PyArrayObject *copy = (PyArrayObject *)PyArray_NewCopy(used, NPY_CORDER);
        Py_DECREF(used);
        used = copy;
    }
    if (!used) {
        Py_XDECREF(given);
        c->failed = 1;
        return NULL;
    }
    c->array[c->arrays++] =
        (rf_array){.given = (PyObject *)given, .used = (PyObject *)used, .name = name};
    return used;
}

/* NumPy's own functions skip the masked elements of a masked array; kernels would not. */
static int is_masked(PyObject *argument) {
    if (PyArray_CheckExact(argument)) return 0;
    PyObject *ma = PyImport_ImportModule("numpy.ma");
    PyObject *type = ma ? PyObject_GetAttrString(ma, "MaskedArray") : NULL;
    const int masked = type ? PyObject_IsInstance(argument, type) : -1;
    Py_XDECREF(ma);
    Py_XDECREF(type);
    return masked;
}

/* 0 and an error for a masked array, or a list that holds one; this one is in `depth` others. */
static int refuse_masked(rf_call *c, PyObject *argument, const char *name, int depth) {
    int masked = PyArray_Check(argument) ? is_masked(argument) : 0;
    // not the list itself, which another thread may change
    const int is_list = PyList_Check(argument) || PyTuple_Check(argument);
    PyObject *elements = is_list ? PySequence_Tuple(argument) : NULL;
    if (is_list && !elements) masked = -1;
    const Py_ssize_t n = elements ? PyTuple_GET_SIZE(elements) : 0;
    if (n > 0 && depth == MAX_NDIM)
        RF_FAIL(c, PyExc_ValueError, "%s must have at most %d axes, got lists of more", name,
                (int)MAX_NDIM);
    for (Py_ssize_t i = 0; i < n && !c->failed; i++)
        refuse_masked(c, PyTuple_GET_ITEM(elements, i), name, depth + 1);
    Py_XDECREF(elements);
    if (masked > 0)
        RF_FAIL(c, PyExc_TypeError,
                "%s must be an array without a mask, got a masked array: pass %s.filled(...), and "
                "mark the real tokens in attention_mask",
                name, name);
    else if (masked < 0)
        c->failed = 1;
    return !c->failed;
}

/* The next argument as an array of any type: a new reference. */
static PyArrayObject *next_array(rf_call *c, const char *name) {
    PyObject *argument = rf_next(c, name);
    if (!argument || !refuse_masked(c, argument, name, 0)) return NULL;
    if (PyArray_Check(argument)) return (PyArrayObject *)Py_NewRef(argument);
    PyObject *array = PyArray_FromAny(argument, NULL, 0, 0, 0, NULL);
    if (!array && PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyErr_Clear(); // NumPy's message does not name the argument
        RF_FAIL(c, PyExc_ValueError, "%s must have rows of one length, got rows of several", name);
    } else if (!array) {
        c->failed = 1;
    } else if (PyArray_TYPE((PyArrayObject *)array) == NPY_OBJECT) {
        RF_FAIL(c, PyExc_TypeError, "%s must be an array, got %s", name,
                Py_TYPE(argument)->tp_name);
        Py_CLEAR(array);
    }
    return (PyArrayObject *)array;
}

static const char *real_name(int type) {
    return type == NPY_DOUBLE ? "float64" : "float32";
}

/* The first real array of a call decides the type; the others must have the same. */
static int check_real(rf_call *c, PyArrayObject *array, const char *name) {
    const int type = PyArray_TYPE(array);
    PyObject *dtype = (PyObject *)PyArray_DESCR(array);
    if (type != NPY_FLOAT && type != NPY_DOUBLE) {
        const int convertible = PyTypeNum_ISINTEGER(type) || PyTypeNum_ISBOOL(type) ||
                                type == NPY_HALF || type == NPY_LONGDOUBLE;
        if (convertible)
            RF_FAIL(c, PyExc_TypeError,
                    "%s must be float32 or float64, got %S: pass %s.astype(numpy.float32)", name,
                    dtype, name);
        else
            RF_FAIL(c, PyExc_TypeError, "%s must be float32 or float64, got %S", name, dtype);
    } else if (c->type < 0) {
        c->type = type;
        c->type_from = name;
    } else if (type != c->type) {
        RF_FAIL(c, PyExc_TypeError, "%s must be %s, as %s is, got %S", name, real_name(c->type),
                c->type_from, dtype);
    }
    return !c->failed;
}

static int rows_are_usable(PyArrayObject *array) {
    const int ndim = PyArray_NDIM(array);
    const npy_intp size = PyArray_ITEMSIZE(array);
    if (!PyArray_ISBEHAVED_RO(array)) return 0;
    for (int i = 0; i < ndim; i++) {
        if (PyArray_DIM(array, i) <= 1) continue;
        const npy_intp stride = PyArray_STRIDE(array, i);
        if (i == ndim - 1 ? stride != size : stride % size != 0) return 0;
    }
    return 1;
}

/* A C-ordered array of the type: the given one if possible, else a copy. */
static PyArrayObject *plain(PyArrayObject *array, int type, int more) {
    if (PyArray_TYPE(array) == type && PyArray_ISCARRAY_RO(array) && !(more & NPY_ARRAY_ENSURECOPY))
        return (PyArrayObject *)Py_NewRef((PyObject *)array);
    return (PyArrayObject *)PyArray_FromArray(array, PyArray_DescrFromType(type),
                                              NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED |
                                                  NPY_ARRAY_ENSUREARRAY | more);
}

static int check_shape(rf_call *c, PyArrayObject *array, const char *name, const char *shape) {
    return rf_check_shape(c, (PyObject *)array, PyArray_NDIM(array), PyArray_DIMS(array), name,
                          shape);
}

/* The strides of "b? h? t d": 0 for an axis that is missing or has at most one element. */
static rf_strides strides_of(const rf_call *c, PyArrayObject *array) {
    rf_strides strides = {0};
    const int has[3] = {rf_has_axis(c, "b"), rf_has_axis(c, "h"), 1};
    ptrdiff_t *const stride[3] = {&strides.b, &strides.h, &strides.t};
    for (int i = 0, axis = 0; i < 3; i++) {
        if (!has[i]) continue;
        if (PyArray_DIM(array, axis) > 1)
            *stride[i] = PyArray_STRIDE(array, axis) / PyArray_ITEMSIZE(array);
        axis++;
    }
    return strides;
}

static const void *in(rf_call *c, const char *name, const char *shape, rf_strides *strides) {
    PyArrayObject *given = next_array(c, name);
    if (!given) return NULL;
    if (!check_real(c, given, name) || !check_shape(c, given, name, shape)) {
        Py_DECREF(given);
        return NULL;
    }
    PyArrayObject *used = strides && rows_are_usable(given)
                              ? (PyArrayObject *)Py_NewRef((PyObject *)given)
                              : plain(given, c->type, 0);
    used = hold(c, given, used, name);
    if (!used) return NULL;
    if (strides) *strides = strides_of(c, used);
    return PyArray_DATA(used);
}

const void *rf_in(rf_call *c, const char *name, const char *shape) {
    return in(c, name, shape, NULL);
}

const void *rf_in_strided(rf_call *c, const char *name, const char *shape, rf_strides *strides) {
    *strides = (rf_strides){0};
    return in(c, name, shape, strides);
}

const void *rf_in_or_none(rf_call *c, const char *name, const char *shape) {
    return next_is_none(c) ? (c->next++, NULL) : rf_in(c, name, shape);
}

/* The numbers of a QuantizedWeight. */
static const void *quantized_data(rf_call *c, const char *name, const char *shape, int *type) {
    PyArrayObject *given = next_array(c, name);
    if (!given) return NULL;
    *type = PyArray_TYPE(given);
    if (*type != NPY_INT8 && *type != NPY_UINT16)
        RF_FAIL(c, PyExc_TypeError,
                "%s must be quantized to int8 or to bfloat16 (as uint16), got %S", name,
                PyArray_DESCR(given));
    if (c->failed || !check_shape(c, given, name, shape)) {
        Py_DECREF(given);
        return NULL;
    }
    PyArrayObject *used = hold(c, given, plain(given, *type, 0), name);
    return used ? PyArray_DATA(used) : NULL;
}

const uint16_t *rf_in_bfloat16(rf_call *c, const char *name, const char *shape) {
    int type = NPY_UINT16;
    const void *data = quantized_data(c, name, shape, &type);
    if (!c->failed && type != NPY_UINT16)
        RF_FAIL(c, PyExc_TypeError, "%s must be bfloat16 (as uint16), got int8", name);
    return data;
}

const void *rf_in_fixed(rf_call *c, const char *name, const char *shape, rf_storage storage) {
    PyArrayObject *given = next_array(c, name);
    if (!given) return NULL;
    if (storage != RF_INT16 && storage != RF_INT32)
        RF_FAIL(c, PyExc_TypeError, "%s must be in fixed point (int16 or int32), got %S", name,
                PyArray_DESCR(given));
    if (c->failed || !check_shape(c, given, name, shape)) {
        Py_DECREF(given);
        return NULL;
    }
    PyArrayObject *used = hold(c, given, plain(given, PyArray_TYPE(given), 0), name);
    return used ? PyArray_DATA(used) : NULL;
}

rf_matrix rf_in_matrix(rf_call *c, const char *name, const char *shape, const char *rows) {
    PyObject *const *const next = c->next, *const *const end = c->end;
    // a plain tuple is a list of rows
    if (c->failed || next == end || PyTuple_CheckExact(*next) || !PyTuple_Check(*next) ||
        PyTuple_GET_SIZE(*next) != 2)
        return (rf_matrix){rf_in(c, name, shape), NULL, RF_REALS};
    // its items are taken as arguments are
    c->next = PySequence_Fast_ITEMS(*next), c->end = c->next + 2;
    int type = NPY_INT8;
    const void *data = quantized_data(c, name, shape, &type);
    const void *scale = rf_in_or_none(c, name, rows);
    if (!c->failed && (scale != NULL) != (type == NPY_INT8))
        RF_FAIL(c, PyExc_TypeError,
                "%s must have a scale for each row if it is int8, and only then", name);
    c->next = next + 1, c->end = end;
    return (rf_matrix){data, scale, type == NPY_INT8 ? RF_INT8 : RF_BFLOAT16};
}

rf_matrix rf_in_matrix_or_none(rf_call *c, const char *name, const char *shape, const char *rows) {
    return next_is_none(c) ? (c->next++, (rf_matrix){0}) : rf_in_matrix(c, name, shape, rows);
}

/* ---- integers ------------------------------------------------------------------------------- */

static const rf_array *array_named(const rf_call *c, const char *name) {
    for (size_t i = 0; name && i < c->arrays; i++)
        if (strcmp(c->array[i].name, name) == 0) return &c->array[i];
    return NULL;
}

static PyArrayObject *next_integers(rf_call *c, const char *name, const char *shape) {
    PyArrayObject *given = next_array(c, name);
    if (!given) return NULL;
    if (!PyTypeNum_ISINTEGER(PyArray_TYPE(given)))
        RF_FAIL(c, PyExc_TypeError, "%s must be of an integer type, got %S", name,
                PyArray_DESCR(given));
    if (!c->failed && check_shape(c, given, name, shape)) return given;
    Py_DECREF(given);
    return NULL;
}

/* Fail, naming the element that is out of range and its index. */
static void wrong_element(rf_call *c, PyArrayObject *array, const char *name, npy_intp flat,
                          size_t limit) {
    char text[RF_TEXT] = "";
    npy_intp rest = flat;
    npy_intp index[MAX_NDIM];
    const int ndim = PyArray_NDIM(array);
    for (int i = ndim - 1; i >= 0; i--) {
        index[i] = rest % PyArray_DIM(array, i);
        rest /= PyArray_DIM(array, i);
    }
    for (int i = 0; i < ndim; i++) {
        const size_t end = strlen(text);
        snprintf(text + end, sizeof text - end, "%s%lld%s", i ? ", " : "[", (long long)index[i],
                 i == ndim - 1 ? "]" : "");
    }
    PyObject *flattened = PyArray_Ravel(array, NPY_CORDER);
    PyObject *value = flattened ? PySequence_GetItem(flattened, flat) : NULL;
    if (value)
        RF_FAIL(c, PyExc_IndexError, "%s%s = %S is out of range, must be at least 0 and below %zu",
                name, text, value, limit);
    c->failed = 1;
    Py_XDECREF(flattened);
    Py_XDECREF(value);
}

const int64_t *rf_in_ids(rf_call *c, const char *name, const char *shape) {
    PyArrayObject *given = next_integers(c, name, shape);
    if (!given) return NULL;
    PyArrayObject *used = hold(c, given, plain(given, NPY_INT64, NPY_ARRAY_FORCECAST), name);
    return used ? PyArray_DATA(used) : NULL;
}

const int32_t *rf_in_int32_or_none(rf_call *c, const char *name, const char *shape) {
    if (next_is_none(c)) return c->next++, NULL;
    PyArrayObject *given = next_integers(c, name, shape);
    if (!given) return NULL;
    PyArrayObject *used = hold(c, given, plain(given, NPY_INT32, 0), name);
    return used ? PyArray_DATA(used) : NULL;
}

static void check_integers(rf_call *c, const char *name, size_t limit, const int64_t *ignore) {
    if (c->failed) return;
    const rf_array *array = array_named(c, name);
    PyArrayObject *given = (PyArrayObject *)array->given, *used = (PyArrayObject *)array->used;

    // an unsigned value that became negative was too large, even if it now equals *ignore
    const int wraps = PyTypeNum_ISUNSIGNED(PyArray_TYPE(given));
    const int64_t *value = PyArray_DATA(used);
    const npy_intp n = PyArray_SIZE(used);
    for (npy_intp i = 0; i < n; i++) {
        const int fits = value[i] >= 0 && (size_t)value[i] < limit;
        const int ignored = ignore && value[i] == *ignore && !(wraps && value[i] < 0);
        if (!fits && !ignored) return wrong_element(c, given, name, i, limit);
    }
}

void rf_check_ids(rf_call *c, const char *name, size_t limit) {
    check_integers(c, name, limit, NULL);
}

void rf_check_labels(rf_call *c, const char *name, size_t limit, int64_t ignore) {
    check_integers(c, name, limit, &ignore);
}

void *rf_none(rf_call *c, const char *name, const char *where) {
    PyObject *argument = rf_next(c, name);
    if (argument && argument != Py_None)
        RF_FAIL(c, PyExc_TypeError, "%s must be None %s, got %s", name, where,
                Py_TYPE(argument)->tp_name);
    return NULL;
}

const void *rf_in_keys(rf_call *c, const rf_attention *a, const char *name, const char *shape,
                       rf_strides *strides) {
    if (!a->shared_qk) return rf_in_strided(c, name, shape, strides);
    *strides = (rf_strides){0};
    return rf_none(c, name, "for this attention");
}

const int32_t *rf_in_key_buckets(rf_call *c, const rf_attention *a, const char *name,
                                 const char *shape) {
    return a->separate ? rf_in_buckets(c, a, name, shape) : rf_none(c, name, "for this attention");
}

const int32_t *rf_in_buckets(rf_call *c, const rf_attention *a, const char *name,
                             const char *shape) {
    const int hashes = a->scope == RF_BUCKET || (a->scope == RF_CHUNK && rf_size(c, "t") > a->m);
    if (!hashes) return rf_none(c, name, "for this attention");
    PyArrayObject *given = next_integers(c, name, shape);
    if (!given) return NULL;

    // other types are first converted to int64, so that values are checked before they can wrap
    const int narrow = PyArray_TYPE(given) == NPY_INT32;
    PyArrayObject *used = plain(given, narrow ? NPY_INT32 : NPY_INT64, NPY_ARRAY_FORCECAST);
    const npy_intp n = used ? PyArray_SIZE(used) : 0;
    npy_intp wrong = n;
    for (npy_intp i = 0; i < n && wrong == n; i++) {
        const int64_t value = narrow ? ((const int32_t *)PyArray_DATA(used))[i]
                                     : ((const int64_t *)PyArray_DATA(used))[i];
        if (value < 0 || (size_t)value >= a->k) wrong = i;
    }
    if (wrong < n) wrong_element(c, given, name, wrong, a->k);
    if (used && !narrow) {
        PyArrayObject *wide = used;
        used = plain(wide, NPY_INT32, NPY_ARRAY_FORCECAST);
        Py_DECREF(wide);
    }
    used = hold(c, given, used, name);
    return used ? PyArray_DATA(used) : NULL;
}

/* Reject additive masks (0 = keep, -inf = drop): they would be read inverted. */
static int check_mask(rf_call *c, PyArrayObject *mask, const char *name) {
    if (PyArray_SIZE(mask) == 0) return 1;
    PyObject *min = PyArray_Min(mask, NPY_RAVEL_AXIS, NULL);
    PyObject *zero = PyLong_FromLong(0);
    const int is_mask = min && zero ? PyObject_RichCompareBool(min, zero, Py_GE) : -1;
    if (is_mask == 0)
        RF_FAIL(c, PyExc_ValueError,
                "%s must be nonzero for a real token and 0 for another, and not below 0, got %S",
                name, min);
    if (is_mask < 0) c->failed = 1;
    Py_XDECREF(min);
    Py_XDECREF(zero);
    return is_mask == 1;
}

const uint8_t *rf_in_mask_or_none(rf_call *c, const char *name, const char *shape) {
    if (next_is_none(c)) return c->next++, NULL;
    PyArrayObject *given = next_array(c, name);
    if (!given) return NULL;
    const int type = PyArray_TYPE(given);
    if (!PyTypeNum_ISBOOL(type) && !PyTypeNum_ISINTEGER(type) && !PyTypeNum_ISFLOAT(type))
        RF_FAIL(c, PyExc_TypeError, "%s must be of a bool, integer or float type, got %S", name,
                PyArray_DESCR(given));
    if (c->failed || !check_shape(c, given, name, shape) || !check_mask(c, given, name)) {
        Py_DECREF(given);
        return NULL;
    }
    PyArrayObject *used = hold(c, given, plain(given, NPY_BOOL, NPY_ARRAY_FORCECAST), name);
    return used ? PyArray_DATA(used) : NULL;
}

/* ---- results -------------------------------------------------------------------------------- */

/* Do two elements share memory (as after np.broadcast_to)? Each axis, in order of strides, must
   step over the extent of all finer ones. Conservative: may report an overlap that is not there,
   but never misses one. */
static int overlaps_itself(PyArrayObject *array) {
    npy_intp reach = PyArray_ITEMSIZE(array);
    int done[MAX_NDIM] = {0};
    const int ndim = PyArray_NDIM(array);
    if (PyArray_ISCARRAY_RO(array) || PyArray_SIZE(array) == 0) return 0;
    for (int step = 0; step < ndim; step++) {
        int finest = -1;
        npy_intp stride = 0;
        for (int i = 0; i < ndim; i++) {
            const npy_intp si = Py_ABS(PyArray_STRIDE(array, i));
            if (!done[i] && (finest < 0 || si < stride)) finest = i, stride = si;
        }
        done[finest] = 1;
        if (PyArray_DIM(array, finest) == 1) continue;
        if (stride < reach) return 1;
        reach += (PyArray_DIM(array, finest) - 1) * stride;
    }
    return 0;
}

/* Does an array that the kernel writes overlap with one that it reads? */
static int overlaps_an_input(const rf_call *c, PyArrayObject *array, int may_be_the_input) {
    for (size_t i = 0; i < c->arrays; i++) {
        PyArrayObject *used = (PyArrayObject *)c->array[i].used;
        if (c->array[i].written || !overlap(used, array)) continue;
        const int same = PyArray_DATA(used) == PyArray_DATA(array) && PyArray_ISCARRAY_RO(used) &&
                         PyArray_ISCARRAY_RO(array) &&
                         PyArray_NBYTES(used) == PyArray_NBYTES(array);
        if (!(same && may_be_the_input)) return 1;
    }
    return 0;
}

/* The next argument as an array to write to, of exactly the type and shape. A new reference. */
static PyArrayObject *next_target(rf_call *c, const char *name, const char *shape, int type) {
    PyObject *argument = rf_next(c, name);
    if (!argument) return NULL;
    PyArrayObject *array = (PyArrayObject *)argument;
    if (!refuse_masked(c, argument, name, 0)) return NULL;
    if (!PyArray_Check(argument)) {
        RF_FAIL(c, PyExc_TypeError, "%s must be a numpy array, got %s", name,
                Py_TYPE(argument)->tp_name);
        return NULL;
    }
    if (type < 0) {
        check_real(c, array, name);
    } else if (!PyArray_EquivTypenums(PyArray_TYPE(array), type)) {
        PyArray_Descr *expected = PyArray_DescrFromType(type);
        RF_FAIL(c, PyExc_TypeError, "%s must be %S, got %S", name, expected, PyArray_DESCR(array));
        Py_DECREF(expected);
    }
    if (c->failed || !check_shape(c, array, name, shape)) return NULL;
    if (!PyArray_ISWRITEABLE(array)) {
        RF_FAIL(c, PyExc_ValueError, "%s is read-only", name);
        return NULL;
    }
    for (size_t i = 0; i < c->arrays; i++)
        if (c->array[i].written && overlap((PyArrayObject *)c->array[i].given, array)) {
            RF_FAIL(c, PyExc_ValueError, "%s must not share memory with %s: both are written", name,
                    c->array[i].name);
            return NULL;
        }
    return (PyArrayObject *)Py_NewRef(argument);
}

/* A new array with the memory layout of an argument, or of C if it is NULL; its last axis is always
   contiguous. */
static PyArrayObject *new_array(rf_call *c, const char *shape, int type, const char *argument) {
    npy_intp dims[MAX_NDIM + 8];
    const int ndim = rf_dims_of(c, shape, dims);
    const rf_array *taken = array_named(c, argument);
    PyArrayObject *like = taken ? (PyArrayObject *)taken->given : NULL;
    if (like && PyArray_NDIM(like) == ndim &&
        PyArray_CompareLists(PyArray_DIMS(like), dims, ndim)) {
        PyArrayObject *array = (PyArrayObject *)PyArray_NewLikeArray(
            like, NPY_KEEPORDER, PyArray_DescrFromType(type), 0);
        if (!array || rows_are_usable(array)) return array;
        Py_DECREF(array);
    }
    return (PyArrayObject *)PyArray_SimpleNew(ndim, dims, type);
}

/* A result: a new array, or one given by the caller, which is written through a temporary if the
   kernel cannot write to it directly. */
static void *out(rf_call *c, const char *name, const char *shape, int type, const char *like,
                 rf_strides *strides, int may_be_the_input) {
    if (c->failed) return NULL;
    PyArrayObject *given, *used;
    if (next_is_none(c)) {
        c->next++;
        given = new_array(c, shape, type, like);
        used = (PyArrayObject *)Py_XNewRef((PyObject *)given);
    } else {
        given = next_target(c, name, shape, type);
        if (!given) return NULL;
        const int usable = (strides ? rows_are_usable(given) : PyArray_ISCARRAY(given)) &&
                           !overlaps_itself(given) &&
                           !overlaps_an_input(c, given, may_be_the_input);
        used = usable ? (PyArrayObject *)Py_NewRef((PyObject *)given)
                      : new_array(c, shape, type, NULL);
    }
    used = hold(c, given, used, name);
    if (!used) return NULL;
    c->array[c->arrays - 1].written = c->array[c->arrays - 1].returned = 1;
    if (strides) *strides = strides_of(c, used);
    return PyArray_DATA(used);
}

void *rf_out(rf_call *c, const char *name, const char *shape) {
    return out(c, name, shape, c->type, NULL, NULL, 0);
}

void *rf_out_over(rf_call *c, const char *name, const char *shape) {
    return out(c, name, shape, c->type, NULL, NULL, 1);
}

void *rf_out_like(rf_call *c, const char *name, const char *shape, const char *like,
                  rf_strides *strides) {
    *strides = (rf_strides){0};
    return out(c, name, shape, c->type, like, strides, 0);
}

int32_t *rf_out_buckets(rf_call *c, const char *name, const char *shape) {
    return out(c, name, shape, NPY_INT32, NULL, NULL, 0);
}

uint16_t *rf_out_bfloat16(rf_call *c, const char *name, const char *shape) {
    return out(c, name, shape, NPY_UINT16, NULL, NULL, 0);
}

static void *new_result(rf_call *c, const char *shape, const char *like, rf_strides *strides) {
    if (c->failed) return NULL;
    PyArrayObject *array = new_array(c, shape, c->type, like);
    PyArrayObject *used = hold(c, array, (PyArrayObject *)Py_XNewRef((PyObject *)array), "result");
    if (!used) return NULL;
    c->array[c->arrays - 1].written = c->array[c->arrays - 1].returned = 1;
    if (strides) *strides = strides_of(c, used);
    return PyArray_DATA(used);
}

void *rf_new(rf_call *c, const char *shape) {
    return new_result(c, shape, NULL, NULL);
}

void *rf_new_like(rf_call *c, const char *shape, const char *like, rf_strides *strides) {
    *strides = (rf_strides){0};
    return new_result(c, shape, like, strides);
}

void *rf_nothing(rf_strides *strides) {
    *strides = (rf_strides){0};
    return NULL;
}

static void *inout(rf_call *c, const char *name, const char *shape, int type) {
    PyArrayObject *given = next_target(c, name, shape, type);
    if (!given) return NULL;
    const int usable =
        PyArray_ISCARRAY(given) && !overlaps_itself(given) && !overlaps_an_input(c, given, 0);
    PyArrayObject *used = usable ? (PyArrayObject *)Py_NewRef((PyObject *)given)
                                 : plain(given, type < 0 ? c->type : type, NPY_ARRAY_ENSURECOPY);
    used = hold(c, given, used, name);
    if (!used) return NULL;
    c->array[c->arrays - 1].written = 1;
    return PyArray_DATA(used);
}

void *rf_inout(rf_call *c, const char *name, const char *shape) {
    return inout(c, name, shape, -1);
}

void *rf_inout_or_none(rf_call *c, const char *name, const char *shape) {
    return next_is_none(c) ? (c->next++, NULL) : rf_inout(c, name, shape);
}

rf_storage rf_next_storage(const rf_call *c) {
    if (c->failed || c->next == c->end || !PyArray_Check(*c->next)) return RF_REALS;
    switch (PyArray_TYPE((PyArrayObject *)*c->next)) {
    case NPY_UINT16: return RF_BFLOAT16;
    case NPY_INT16: return RF_INT16;
    case NPY_INT32: return RF_INT32;
    default: return RF_REALS;
    }
}

void *rf_inout_stored(rf_call *c, const char *name, const char *shape, rf_storage storage) {
    return inout(c, name, shape, storage == RF_BFLOAT16 ? NPY_UINT16 : -1);
}

void *rf_inout_rounded(rf_call *c, const char *name, const char *shape, rf_storage storage) {
    static const int type[] = {
        [RF_BFLOAT16] = NPY_UINT16, [RF_INT16] = NPY_INT16, [RF_INT32] = NPY_INT32};
    if (storage != RF_REALS) return inout(c, name, shape, type[storage]);
    PyArrayObject *given = next_array(c, name);
    if (given)
        RF_FAIL(c, PyExc_TypeError,
                "%s must be bfloat16 (as uint16) or in fixed point (int16 or int32), got %S", name,
                PyArray_DESCR(given));
    Py_XDECREF(given);
    return NULL;
}

int32_t *rf_inout_int32_or_none(rf_call *c, const char *name, const char *shape) {
    return next_is_none(c) ? (c->next++, NULL) : inout(c, name, shape, NPY_INT32);
}

/* ---- the end of a call --------------------------------------------------------------------- */

/* Copy temporaries to the caller's arrays and release everything; `result` too if a copy fails. */
static PyObject *release(rf_call *c, PyObject *result) {
    if (!result) c->failed = 1;
    for (size_t i = 0; i < c->arrays; i++) {
        const rf_array *a = &c->array[i];
        if (a->written && a->used != a->given && !c->failed &&
            PyArray_CopyInto((PyArrayObject *)a->given, (PyArrayObject *)a->used) < 0)
            c->failed = 1;
        Py_DECREF(a->used);
        Py_DECREF(a->given);
    }
    rf_pool_release(c->scratch);
    if (c->failed) Py_CLEAR(result);
    return result;
}

PyObject *rf_return(rf_call *c) {
    if (c->failed) return release(c, NULL);
    PyObject *results[RF_MAX_ARRAYS];
    Py_ssize_t n = 0;
    for (size_t i = 0; i < c->arrays; i++)
        if (c->array[i].returned) results[n++] = c->array[i].given;
    if (n == 0) return release(c, Py_NewRef(Py_None));
    if (n == 1) return release(c, Py_NewRef(results[0]));
    PyObject *tuple = PyTuple_New(n);
    for (Py_ssize_t i = 0; tuple && i < n; i++) PyTuple_SET_ITEM(tuple, i, Py_NewRef(results[i]));
    return release(c, tuple);
}

PyObject *rf_return_doubles(rf_call *c, const double *values, Py_ssize_t n) {
    if (c->failed) return release(c, NULL);
    if (n == 1) return release(c, PyFloat_FromDouble(values[0]));
    PyObject *tuple = PyTuple_New(n);
    for (Py_ssize_t i = 0; tuple && i < n; i++) {
        PyObject *value = PyFloat_FromDouble(values[i]);
        if (!value)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, value);
    }
    return release(c, tuple);
}
