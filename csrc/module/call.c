/* call.c: checks, unwraps and makes arrays. The only file that looks inside one. */
#include "call.h"

#include <limits.h>
#include <math.h>
#include <numpy/arrayobject.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

enum {
    ALIGN = 64,
    MAX_AXES = 8,  // of a shape in letters
    MAX_NDIM = 64, // of NumPy
    TEXT = 512,    // of a message
};

int rf_call_init(void) {
    return PyArray_ImportNumPyAPI();
}

void rf_begin(rf_call *c, PyObject *module, PyObject *const *args, Py_ssize_t nargs,
              const char *op) {
    c->run.workers = 1;
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

/* ---- failures: the first one sticks -------------------------------------------------------- */

#define FAIL(c, error, ...) (PyErr_Format(error, __VA_ARGS__), (c)->failed = 1)

static PyObject *next_argument(rf_call *c, const char *name) {
    if (c->failed) return NULL;
    if (c->next == c->end) {
        FAIL(c, PyExc_TypeError, "%s: argument %s is missing", c->op, name);
        return NULL;
    }
    return *c->next++;
}

static int next_is_none(const rf_call *c) {
    return c->next != c->end && *c->next == Py_None;
}

/* ---- letters: what a shape says, and what the arrays so far have said ----------------------- */

typedef struct {
    const char *name;
    size_t length;
    enum { PLAIN, OPTIONAL, LEADING, NUMBER } kind;
} axis;

/* Cut "b? h? t d" or "n... 2" into its axes. */
static size_t axes_of(const char *shape, axis *axes) {
    size_t n = 0;
    while (*shape) {
        axis *a = &axes[n++];
        a->name = shape;
        a->length = strcspn(shape, " ?.");
        shape += a->length;
        a->kind = *shape == '?'                           ? OPTIONAL
                  : *shape == '.'                         ? LEADING
                  : *a->name >= '0' && *a->name <= '9' ? NUMBER
                                                          : PLAIN;
        shape += strspn(shape, "?. ");
    }
    return n;
}

static rf_size_entry *find(const rf_call *c, const char *name, size_t length) {
    for (size_t i = 0; i < c->sizes; i++) {
        const rf_size_entry *e = &c->size[i];
        if (e->length == length && memcmp(e->name, name, length) == 0) return (rf_size_entry *)e;
    }
    return NULL;
}

static rf_size_entry *bind(rf_call *c, const axis *a, size_t size, const char *owner) {
    rf_size_entry *e = &c->size[c->sizes++];
    *e = (rf_size_entry){.name = a->name, .length = a->length, .size = size, .owner = owner};
    return e;
}

static int is_missing(const rf_call *c, const axis *a) {
    const rf_size_entry *e = a->kind == OPTIONAL ? find(c, a->name, a->length) : NULL;
    return e && e->missing;
}

size_t rf_size(const rf_call *c, const char *letter) {
    const rf_size_entry *e = find(c, letter, strlen(letter));
    return e ? e->size : 0;
}

void rf_let(rf_call *c, const char *letter, size_t size, const char *owner) {
    if (!c->failed) bind(c, &(axis){letter, strlen(letter), PLAIN}, size, owner);
}

size_t rf_product(size_t a, size_t b) {
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

/* Append the shape in words: (b, h, t, d). */
static void write_shape(const rf_call *c, char *text, const axis *axes, size_t n) {
    const char *comma = "";
    size_t written = 0;
    strcat(text, "(");
    for (size_t i = 0; i < n; i++) {
        if (is_missing(c, &axes[i])) continue;
        strcat(text, comma);
        if (axes[i].kind == LEADING)
            strcat(text, "...");
        else
            strncat(text, axes[i].name, axes[i].length);
        comma = ", ";
        written++;
    }
    strcat(text, written == 1 ? ",)" : ")");
}

/* All shapes that the letters allow: without the first optional axis, without the first two... */
static void write_shapes(const rf_call *c, char *text, const axis *axes, size_t n) {
    write_shape(c, text, axes, n);
    size_t free_axes = 0;
    while (free_axes < n && axes[free_axes].kind == OPTIONAL &&
           !find(c, axes[free_axes].name, axes[free_axes].length))
        free_axes++;
    for (size_t i = 1; i <= free_axes; i++) {
        strcat(text, i == free_axes ? " or " : ", ");
        write_shape(c, text, axes + i, n - i);
    }
}

static void wrong_shape(rf_call *c, PyArrayObject *array, const char *name, const axis *axes,
                        size_t n, const rf_size_entry *culprit) {
    char text[TEXT] = "", letter[MAX_AXES] = "";
    write_shapes(c, text, axes, n);
    if (culprit) strncat(letter, culprit->name, Py_MIN(culprit->length, sizeof letter - 1));
    PyObject *shape = PyObject_GetAttrString((PyObject *)array, "shape");
    if (!culprit)
        FAIL(c, PyExc_ValueError, "%s must have shape %s, got %R", name, text, shape);
    else if (culprit->leading)
        FAIL(c, PyExc_ValueError, "%s must have shape %s with the leading axes of %s, got %R", name,
             text, culprit->owner, shape);
    else
        FAIL(c, PyExc_ValueError, "%s must have shape %s with %s = %zu as in %s, got %R", name, text,
             letter, culprit->size, culprit->owner, shape);
    Py_XDECREF(shape);
}

/* Optional axes that nobody has spoken of yet: the rank of this array decides. */
static void bind_missing(rf_call *c, const axis *axes, size_t n, int ndim, const char *name) {
    size_t absent = n > (size_t)ndim ? n - (size_t)ndim : 0;
    for (size_t i = 0; i < n && absent > 0; i++) {
        if (axes[i].kind != OPTIONAL) continue;
        if (!find(c, axes[i].name, axes[i].length)) bind(c, &axes[i], 1, name)->missing = 1;
        absent--;
    }
}

/* The leading axes of `n...`: free the first time, the same ever after. */
static int check_leading(rf_call *c, PyArrayObject *array, const char *name, const axis *axes,
                         size_t n, int leading) {
    const npy_intp *dims = PyArray_DIMS(array);
    const rf_size_entry *e = find(c, axes->name, axes->length);
    if (!e) {
        size_t product = 1;
        for (int i = 0; i < leading; i++)
            if (dims[i] == 0) product = 0;
        for (int i = 0; i < leading && product; i++) product = rf_product(product, (size_t)dims[i]);
        rf_size_entry *new = bind(c, axes, product, name);
        new->leading = (PyObject *)array; // held by the call, like every array of it
        new->leading_axes = leading;
        return 1;
    }
    const npy_intp *known = PyArray_DIMS((PyArrayObject *)e->leading);
    int same = e->leading_axes == leading;
    for (int i = 0; i < leading && same; i++) same = known[i] == dims[i];
    if (!same) wrong_shape(c, array, name, axes, n, e);
    return same;
}

/* Check an array against its letters, and learn the letters that are new. */
static int check_shape(rf_call *c, PyArrayObject *array, const char *name, const char *shape) {
    axis axes[MAX_AXES];
    const size_t n = axes_of(shape, axes);
    const int ndim = PyArray_NDIM(array);
    const int has_leading = n > 0 && axes[0].kind == LEADING;
    const int leading = has_leading ? ndim - (int)(n - 1) : 0;
    bind_missing(c, axes, n, ndim, name);

    int expected = leading;
    for (size_t i = (size_t)has_leading; i < n; i++) expected += !is_missing(c, &axes[i]);
    if (leading < 0 || ndim != expected) {
        // an axis that only this array lacks is not a property of the call
        while (c->sizes && c->size[c->sizes - 1].owner == name && c->size[c->sizes - 1].missing)
            c->sizes--;
        wrong_shape(c, array, name, axes, n, NULL);
        return 0;
    }
    if (has_leading && !check_leading(c, array, name, axes, n, leading)) return 0;

    const npy_intp *dim = PyArray_DIMS(array) + leading;
    for (size_t i = (size_t)has_leading; i < n; i++) {
        if (is_missing(c, &axes[i])) continue;
        const size_t size = (size_t)*dim++;
        const rf_size_entry *e = find(c, axes[i].name, axes[i].length);
        if (axes[i].kind == NUMBER ? size != strtoull(axes[i].name, NULL, 10)
                                   : e && e->size != size) {
            wrong_shape(c, array, name, axes, n, e);
            return 0;
        }
        if (axes[i].kind != NUMBER && !e) bind(c, &axes[i], size, name);
    }
    return 1;
}

/* The shape of a result, from letters that are all known. */
static int dims_of(rf_call *c, const char *shape, npy_intp *dims) {
    axis axes[MAX_AXES];
    const size_t n = axes_of(shape, axes);
    int ndim = 0;
    for (size_t i = 0; i < n; i++) {
        const rf_size_entry *e = find(c, axes[i].name, axes[i].length);
        if (axes[i].kind == NUMBER) {
            dims[ndim++] = (npy_intp)strtoull(axes[i].name, NULL, 10);
        } else if (axes[i].kind == LEADING) {
            const npy_intp *known = PyArray_DIMS((PyArrayObject *)e->leading);
            for (int j = 0; j < e->leading_axes; j++) dims[ndim++] = known[j];
        } else if (axes[i].kind == PLAIN || !e->missing) {
            dims[ndim++] = (npy_intp)e->size;
        }
    }
    return ndim;
}

/* ---- arrays: held until the call returns ---------------------------------------------------- */

/* Takes over both references. */
static PyArrayObject *hold(rf_call *c, PyArrayObject *given, PyArrayObject *used,
                           const char *name) {
    if (!used) {
        Py_XDECREF(given);
        c->failed = 1;
        return NULL;
    }
    c->array[c->arrays++] =
        (rf_array){.given = (PyObject *)given, .used = (PyObject *)used, .name = name};
    return used;
}

/* The next argument as an array of any type: a new reference. */
static PyArrayObject *next_array(rf_call *c, const char *name) {
    PyObject *argument = next_argument(c, name);
    if (!argument) return NULL;
    if (PyArray_Check(argument)) return (PyArrayObject *)Py_NewRef(argument);
    PyObject *array = PyArray_FromAny(argument, NULL, 0, 0, 0, NULL);
    if (!array) {
        c->failed = 1;
    } else if (PyArray_TYPE((PyArrayObject *)array) == NPY_OBJECT) {
        FAIL(c, PyExc_TypeError, "%s must be an array, got %s", name, Py_TYPE(argument)->tp_name);
        Py_CLEAR(array);
    }
    return (PyArrayObject *)array;
}

static const char *real_name(int type) {
    return type == NPY_DOUBLE ? "float64" : "float32";
}

/* The first real array of a call decides the type, the others have to agree. */
static int check_real(rf_call *c, PyArrayObject *array, const char *name) {
    const int type = PyArray_TYPE(array);
    PyObject *dtype = (PyObject *)PyArray_DESCR(array);
    if (type != NPY_FLOAT && type != NPY_DOUBLE) {
        const int convertible = PyTypeNum_ISINTEGER(type) || PyTypeNum_ISBOOL(type) ||
                                type == NPY_HALF || type == NPY_LONGDOUBLE;
        if (convertible)
            FAIL(c, PyExc_TypeError,
                 "%s must be float32 or float64, got %S: pass %s.astype(numpy.float32)", name,
                 dtype, name);
        else
            FAIL(c, PyExc_TypeError, "%s must be float32 or float64, got %S", name, dtype);
    } else if (c->type < 0) {
        c->type = type;
        c->type_from = name;
    } else if (type != c->type) {
        FAIL(c, PyExc_TypeError, "%s must be %s, as %s is, got %S", name, real_name(c->type),
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

/* A C-ordered array of the type, copied where the given one is anything else. */
static PyArrayObject *plain(PyArrayObject *array, int type, int more) {
    if (PyArray_TYPE(array) == type && PyArray_ISCARRAY_RO(array) && !(more & NPY_ARRAY_ENSURECOPY))
        return (PyArrayObject *)Py_NewRef((PyObject *)array);
    return (PyArrayObject *)PyArray_FromArray(array, PyArray_DescrFromType(type),
                                              NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED |
                                                  NPY_ARRAY_ENSUREARRAY | more);
}

static void read_strides(const rf_call *c, PyArrayObject *array, const char *shape,
                         rf_strides *strides) {
    axis axes[MAX_AXES];
    const size_t n = axes_of(shape, axes);
    ptrdiff_t *stride[] = {&strides->b, &strides->h, &strides->t};
    int i = 0;
    for (size_t j = 0; j + 1 < n; j++) {
        *stride[j] = 0;
        if (is_missing(c, &axes[j])) continue;
        if (PyArray_DIM(array, i) > 1)
            *stride[j] = PyArray_STRIDE(array, i) / PyArray_ITEMSIZE(array);
        i++;
    }
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
    if (strides) read_strides(c, used, shape, strides);
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

const void *rf_in_strided_or_none(rf_call *c, const char *name, const char *shape,
                                  rf_strides *strides) {
    *strides = (rf_strides){0};
    return next_is_none(c) ? (c->next++, NULL) : in(c, name, shape, strides);
}

/* ---- integers ------------------------------------------------------------------------------- */

static PyArrayObject *next_integers(rf_call *c, const char *name, const char *shape) {
    PyArrayObject *given = next_array(c, name);
    if (!given) return NULL;
    if (!PyTypeNum_ISINTEGER(PyArray_TYPE(given)))
        FAIL(c, PyExc_TypeError, "%s must be of an integer type, got %S", name,
             PyArray_DESCR(given));
    if (!c->failed && check_shape(c, given, name, shape)) return given;
    Py_DECREF(given);
    return NULL;
}

/* Name the element that is out of range, by its index. */
static void wrong_element(rf_call *c, PyArrayObject *array, const char *name, npy_intp flat,
                          size_t limit) {
    char text[TEXT] = "";
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
        FAIL(c, PyExc_IndexError, "%s%s = %S is out of range, must be at least 0 and below %zu",
             name, text, value, limit);
    c->failed = 1;
    Py_XDECREF(flattened);
    Py_XDECREF(value);
}

static const int64_t *integers(rf_call *c, const char *name, const char *shape, size_t limit,
                               const int64_t *ignore) {
    PyArrayObject *given = next_integers(c, name, shape);
    if (!given) return NULL;
    PyArrayObject *used = hold(c, given, plain(given, NPY_INT64, NPY_ARRAY_FORCECAST), name);
    if (!used) return NULL;

    // what wrapped around was too large, whatever it is now
    const int wraps = PyTypeNum_ISUNSIGNED(PyArray_TYPE(given));
    const int64_t *value = PyArray_DATA(used);
    const npy_intp n = PyArray_SIZE(used);
    for (npy_intp i = 0; i < n; i++) {
        const int fits = value[i] >= 0 && (size_t)value[i] < limit;
        const int ignored = ignore && value[i] == *ignore && !(wraps && value[i] < 0);
        if (fits || ignored) continue;
        wrong_element(c, given, name, i, limit);
        return NULL;
    }
    return value;
}

const int64_t *rf_in_ids(rf_call *c, const char *name, const char *shape, size_t limit) {
    return integers(c, name, shape, limit, NULL);
}

const int64_t *rf_in_labels(rf_call *c, const char *name, const char *shape, size_t limit,
                            int64_t ignore) {
    return integers(c, name, shape, limit, &ignore);
}

/* None, where an attention does not have the array. */
static void expect_none(rf_call *c, const char *name) {
    PyObject *argument = next_argument(c, name);
    if (argument && argument != Py_None)
        FAIL(c, PyExc_TypeError, "%s must be None for this attention, got %s", name,
             Py_TYPE(argument)->tp_name);
}

const void *rf_in_keys(rf_call *c, const rf_attention *a, const char *name, const char *shape,
                       rf_strides *strides) {
    if (!a->shared_qk) return rf_in_strided(c, name, shape, strides);
    *strides = (rf_strides){0};
    expect_none(c, name);
    return NULL;
}

const int32_t *rf_in_buckets(rf_call *c, const rf_attention *a, const char *name,
                             const char *shape) {
    if (a->scope != RF_CHUNK && a->scope != RF_BUCKET) return expect_none(c, name), NULL;
    PyArrayObject *given = next_integers(c, name, shape);
    if (!given) return NULL;

    // other types take a detour through int64, so that nothing wraps before it is checked
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

const uint8_t *rf_in_mask_or_none(rf_call *c, const char *name, const char *shape) {
    if (next_is_none(c)) return c->next++, NULL;
    PyArrayObject *given = next_array(c, name);
    if (!given) return NULL;
    const int type = PyArray_TYPE(given);
    if (!PyTypeNum_ISBOOL(type) && !PyTypeNum_ISINTEGER(type) && !PyTypeNum_ISFLOAT(type))
        FAIL(c, PyExc_TypeError, "%s must be of a bool, integer or float type, got %S", name,
             PyArray_DESCR(given));
    if (c->failed || !check_shape(c, given, name, shape)) {
        Py_DECREF(given);
        return NULL;
    }
    PyArrayObject *used = hold(c, given, plain(given, NPY_BOOL, NPY_ARRAY_FORCECAST), name);
    return used ? PyArray_DATA(used) : NULL;
}

/* ---- results -------------------------------------------------------------------------------- */

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

/* Does some byte belong to two elements (np.broadcast_to and the like)? Axes from the finest on
   must each step over all that the finer ones reach; a yes may be wrong, a no is not. */
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

/* Is an array that the kernel reads in the way of one that it writes? */
static int overlaps_an_input(const rf_call *c, PyArrayObject *array, int may_be_the_input) {
    for (size_t i = 0; i < c->arrays; i++) {
        PyArrayObject *used = (PyArrayObject *)c->array[i].used;
        if (c->array[i].written || !overlap(used, array)) continue;
        const int same = PyArray_DATA(used) == PyArray_DATA(array) && PyArray_ISCARRAY_RO(used) &&
                         PyArray_ISCARRAY_RO(array) && PyArray_NBYTES(used) == PyArray_NBYTES(array);
        if (!(same && may_be_the_input)) return 1;
    }
    return 0;
}

/* The next argument as an array to write to: of exactly the type and shape. A new reference. */
static PyArrayObject *next_target(rf_call *c, const char *name, const char *shape, int type) {
    PyObject *argument = next_argument(c, name);
    if (!argument) return NULL;
    PyArrayObject *array = (PyArrayObject *)argument;
    if (!PyArray_Check(argument)) {
        FAIL(c, PyExc_TypeError, "%s must be a numpy array, got %s", name,
             Py_TYPE(argument)->tp_name);
        return NULL;
    }
    if (type < 0) {
        check_real(c, array, name);
    } else if (!PyArray_EquivTypenums(PyArray_TYPE(array), type)) {
        PyArray_Descr *expected = PyArray_DescrFromType(type);
        FAIL(c, PyExc_TypeError, "%s must be %S, got %S", name, expected,
             PyArray_DESCR(array));
        Py_DECREF(expected);
    }
    if (c->failed || !check_shape(c, array, name, shape)) return NULL;
    if (!PyArray_ISWRITEABLE(array)) {
        FAIL(c, PyExc_ValueError, "%s is read-only", name);
        return NULL;
    }
    for (size_t i = 0; i < c->arrays; i++)
        if (c->array[i].written && overlap((PyArrayObject *)c->array[i].given, array)) {
            FAIL(c, PyExc_ValueError, "%s must not share memory with %s: both are written", name,
                 c->array[i].name);
            return NULL;
        }
    return (PyArrayObject *)Py_NewRef(argument);
}

/* A new array, laid out as `like` is (its last axis contiguous in any case). */
static PyArrayObject *new_array(rf_call *c, const char *shape, int type, PyArrayObject *like) {
    npy_intp dims[MAX_NDIM + MAX_AXES];
    const int ndim = dims_of(c, shape, dims);
    if (like && PyArray_NDIM(like) == ndim &&
        PyArray_CompareLists(PyArray_DIMS(like), dims, ndim)) {
        PyArrayObject *array = (PyArrayObject *)PyArray_NewLikeArray(
            like, NPY_KEEPORDER, PyArray_DescrFromType(type), 0);
        if (!array || rows_are_usable(array)) return array;
        Py_DECREF(array);
    }
    return (PyArrayObject *)PyArray_SimpleNew(ndim, dims, type);
}

static PyArrayObject *argument_named(const rf_call *c, const char *name) {
    for (size_t i = 0; name && i < c->arrays; i++)
        if (strcmp(c->array[i].name, name) == 0) return (PyArrayObject *)c->array[i].given;
    return NULL;
}

/* A result: new, or given by the caller and written to through a temporary where the kernel could
   not write to it directly. */
static void *out(rf_call *c, const char *name, const char *shape, int type, const char *like,
                 rf_strides *strides, int may_be_the_input) {
    if (c->failed) return NULL;
    PyArrayObject *given, *used;
    if (next_is_none(c)) {
        c->next++;
        given = new_array(c, shape, type, argument_named(c, like));
        used = (PyArrayObject *)Py_XNewRef((PyObject *)given);
    } else {
        given = next_target(c, name, shape, type);
        if (!given) return NULL;
        const int usable =
            (strides ? rows_are_usable(given) : PyArray_ISCARRAY(given)) &&
            !overlaps_itself(given) && !overlaps_an_input(c, given, may_be_the_input);
        used = usable ? (PyArrayObject *)Py_NewRef((PyObject *)given)
                      : new_array(c, shape, type, NULL);
    }
    used = hold(c, given, used, name);
    if (!used) return NULL;
    c->array[c->arrays - 1].written = c->array[c->arrays - 1].returned = 1;
    if (strides) read_strides(c, used, shape, strides);
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

static void *new_result(rf_call *c, const char *shape, const char *like, rf_strides *strides) {
    if (c->failed) return NULL;
    PyArrayObject *array = new_array(c, shape, c->type, argument_named(c, like));
    PyArrayObject *used = hold(c, array, (PyArrayObject *)Py_XNewRef((PyObject *)array), "result");
    if (!used) return NULL;
    c->array[c->arrays - 1].written = c->array[c->arrays - 1].returned = 1;
    if (strides) read_strides(c, used, shape, strides);
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

void *rf_inout(rf_call *c, const char *name, const char *shape) {
    PyArrayObject *given = next_target(c, name, shape, -1);
    if (!given) return NULL;
    const int usable =
        PyArray_ISCARRAY(given) && !overlaps_itself(given) && !overlaps_an_input(c, given, 0);
    PyArrayObject *used = usable ? (PyArrayObject *)Py_NewRef((PyObject *)given)
                                 : plain(given, c->type, NPY_ARRAY_ENSURECOPY);
    used = hold(c, given, used, name);
    if (!used) return NULL;
    c->array[c->arrays - 1].written = 1;
    return PyArray_DATA(used);
}

void *rf_inout_or_none(rf_call *c, const char *name, const char *shape) {
    return next_is_none(c) ? (c->next++, NULL) : rf_inout(c, name, shape);
}

/* ---- scalars -------------------------------------------------------------------------------- */

double rf_double(rf_call *c, const char *name) {
    PyObject *argument = next_argument(c, name);
    if (!argument) return 0;
    const double value = PyFloat_AsDouble(argument);
    if (value == -1 && PyErr_Occurred())
        FAIL(c, PyExc_TypeError, "%s must be a number, got %s", name, Py_TYPE(argument)->tp_name);
    else if (!isfinite(value))
        FAIL(c, PyExc_ValueError, "%s must be finite, got %R", name, argument);
    return value;
}

double rf_probability(rf_call *c, const char *name) {
    const double value = rf_double(c, name);
    if (!c->failed && !(value >= 0 && value < 1)) {
        PyObject *number = PyFloat_FromDouble(value);
        FAIL(c, PyExc_ValueError, "%s must be at least 0 and below 1, got %S", name, number);
        Py_XDECREF(number);
    }
    return value;
}

/* Any object with __index__, within 64 bits of either sign. */
static uint64_t bits_of(rf_call *c, const char *name, const char *range, int is_signed) {
    PyObject *argument = next_argument(c, name);
    PyObject *number = argument ? PyNumber_Index(argument) : NULL;
    if (!argument) return 0;
    if (!number) {
        FAIL(c, PyExc_TypeError, "%s must be an int, got %s", name, Py_TYPE(argument)->tp_name);
        return 0;
    }
    const uint64_t value = is_signed ? (uint64_t)PyLong_AsLongLong(number)
                                     : (uint64_t)PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        FAIL(c, PyExc_ValueError, "%s must be in %s, got %R", name, range, number);
    Py_DECREF(number);
    return value;
}

int64_t rf_int64(rf_call *c, const char *name) {
    return (int64_t)bits_of(c, name, "[-2**63, 2**63)", 1);
}

uint64_t rf_uint64(rf_call *c, const char *name) {
    return bits_of(c, name, "[0, 2**64)", 0);
}

size_t rf_count(rf_call *c, const char *name) {
    const int64_t value = rf_int64(c, name);
    if (!c->failed && value < 0)
        FAIL(c, PyExc_ValueError, "%s must be at least 0, got %lld", name, (long long)value);
    return c->failed ? 0 : (size_t)value;
}

const char *rf_name(rf_call *c, const char *name) {
    PyObject *argument = next_argument(c, name);
    const char *text = argument && PyUnicode_Check(argument) ? PyUnicode_AsUTF8(argument) : NULL;
    if (argument && !text)
        FAIL(c, PyExc_TypeError, "%s must be a str, got %s", name, Py_TYPE(argument)->tp_name);
    return text ? text : "";
}

rf_activation rf_activation_of(rf_call *c, const char *name) {
    static const char *const known[] = {"relu", "gelu", "gelu_new", "silu", "tanh"};
    const char *text = rf_name(c, name);
    for (int i = 0; i < 5; i++)
        if (strcmp(text, known[i]) == 0) return (rf_activation)i;
    if (!c->failed)
        FAIL(c, PyExc_ValueError,
             "%s must be 'relu', 'gelu', 'gelu_new', 'silu' or 'tanh', got '%s'", name, text);
    return RF_RELU;
}

void rf_workers(rf_call *c) {
    const size_t workers = rf_count(c, "workers");
    if (!c->failed && (workers < 1 || workers > INT_MAX))
        FAIL(c, PyExc_ValueError, "workers must be at least 1, got %zu", workers);
    if (!c->failed && c->next != c->end)
        FAIL(c, PyExc_TypeError, "%s: %zd arguments too many", c->op, c->end - c->next);
    c->run.workers = rf_forked() || c->failed ? 1 : (int)workers;
}

size_t rf_factors(rf_call *c, const char *name, int32_t *factors, size_t *product, size_t *half) {
    PyObject *argument = next_argument(c, name);
    const Py_ssize_t n = argument && PyTuple_Check(argument) ? PyTuple_GET_SIZE(argument) : 0;
    *product = 1;
    *half = 0;
    if (c->failed) return 0;
    if (n < 1 || n > RF_MAX_FACTORS) {
        FAIL(c, PyExc_ValueError, "%s must be a tuple of 1 to %d factors, got %R", name,
             (int)RF_MAX_FACTORS, argument);
        return 0;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        const long factor = PyLong_AsLong(PyTuple_GET_ITEM(argument, i));
        *product = factor < 2 || factor % 2 ? SIZE_MAX : rf_product(*product, (size_t)factor);
        if (PyErr_Occurred() || *product >= INT32_MAX) {
            PyErr_Clear();
            FAIL(c, PyExc_ValueError,
                 "%s must be even, at least 2, with a product below 2**31 - 1, got %R", name,
                 argument);
            return 0;
        }
        factors[i] = (int32_t)factor;
        *half += (size_t)factor / 2;
    }
    return (size_t)n;
}

rf_attention rf_attention_of(rf_call *c, const char **query, const char **keys,
                             const char **mask) {
    rf_attention a = {0};
    Py_ssize_t m = 1, before = 0, after = 0, k = 0;
    int scope = 0;
    PyObject *key = NULL, *argument = next_argument(c, "attention");
    *query = "q";
    if (argument && !PyTuple_Check(argument))
        FAIL(c, PyExc_TypeError, "attention must be a tuple, got %s", Py_TYPE(argument)->tp_name);
    else if (argument && !PyArg_ParseTuple(argument, "sinnnnpppppddO:attention", query, &scope, &m,
                                           &before, &after, &k, &a.causal, &a.shared_qk, &a.wrap,
                                           &a.across_buckets, &a.duplicates, &a.scale, &a.dropout,
                                           &key))
        c->failed = 1;
    else if (argument && (a.key = PyLong_AsUnsignedLongLong(key)) == UINT64_MAX && PyErr_Occurred())
        c->failed = 1;
    if (!c->failed &&
        (scope < RF_FULL || scope > RF_BUCKET || (scope >= RF_CHUNK && !a.shared_qk) || m < 1 ||
         before < 0 || before > INT32_MAX || after < 0 || after > INT32_MAX || k < 0 ||
         k > INT32_MAX || !isfinite(a.scale) || !(a.dropout >= 0 && a.dropout < 1)))
        FAIL(c, PyExc_ValueError, "attention has an element out of range: %R", argument);
    a.scope = (rf_scope)scope;
    a.m = (size_t)m;
    a.before = (size_t)before;
    a.after = (size_t)after;
    a.k = (size_t)k;
    const int own_length = a.scope == RF_FULL && !a.shared_qk; // keys may be more or fewer
    *keys = own_length ? "b? h? tk d" : "b? h? t d";
    *mask = own_length ? "b? tk" : "b? t";
    return a;
}

void rf_attention_sizes(rf_call *c, rf_attention *a) {
    a->b = rf_size(c, "b");
    a->h = rf_size(c, "h");
    a->t = rf_size(c, "t");
    a->d = rf_size(c, "d");
    a->r = rf_size(c, "r");
    a->tk = a->scope == RF_FULL && !a->shared_qk ? rf_size(c, "tk") : a->t;
    if (!c->failed && (a->t > INT32_MAX || a->tk > INT32_MAX))
        FAIL(c, PyExc_ValueError, "a length must be below 2**31, got %zu", Py_MAX(a->t, a->tk));
}

/* ---- memory and results --------------------------------------------------------------------- */

static void no_memory(rf_call *c, size_t bytes) {
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    char text[TEXT] = "";
    double amount = (double)bytes;
    size_t u = 0, end = 0;
    while (amount >= 1024 && u < 6) amount /= 1024, u++;
    for (size_t i = 0; i < c->sizes && end + 64 < sizeof text; i++)
        end += (size_t)snprintf(text + end, sizeof text - end, "%s%.*s = %zu", i ? ", " : "",
                                (int)c->size[i].length, c->size[i].name, c->size[i].size);
    char needed[TEXT] = "more bytes of scratch than can be counted";
    if (bytes != SIZE_MAX)
        snprintf(needed, sizeof needed, "%.3g %s of scratch", amount, unit[u]);
    FAIL(c, PyExc_MemoryError, "%s with %s on %d threads needs %s", c->op, text, c->run.workers,
         needed);
}

/* From Python's raw allocator, so that tracemalloc sees it. Large pages where the system has them:
   scratch is written at once, and page faults of 4 KiB each would cost as much as the work. */
void *rf_scratch(rf_call *c, size_t bytes) {
    if (c->failed || bytes == 0) return NULL;
    c->scratch = bytes > SIZE_MAX - ALIGN ? NULL : PyMem_RawMalloc(bytes + ALIGN);
    if (!c->scratch) {
        no_memory(c, bytes);
        return NULL;
    }
    const uintptr_t start = ((uintptr_t)c->scratch + ALIGN - 1) / ALIGN * ALIGN;
#ifdef MADV_HUGEPAGE
    const uintptr_t huge = (uintptr_t)1 << 21;
    const uintptr_t first = (start + huge - 1) / huge * huge, last = (start + bytes) / huge * huge;
    if (first < last) madvise((void *)first, last - first, MADV_HUGEPAGE);
#endif
    return (void *)start;
}

/* Copy temporaries to where the caller wants them, and let go of everything; `result` too if
   that fails. */
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
    PyMem_RawFree(c->scratch);
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
    for (Py_ssize_t i = 0; tuple && i < n; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(results[i]));
    return release(c, tuple);
}

PyObject *rf_return_doubles(rf_call *c, const double *values, Py_ssize_t n) {
    if (c->failed) return release(c, NULL);
    if (n == 1) return release(c, PyFloat_FromDouble(values[0]));
    PyObject *tuple = PyTuple_New(n);
    for (Py_ssize_t i = 0; tuple && i < n; i++) {
        PyObject *value = PyFloat_FromDouble(values[i]);
        if (!value) Py_CLEAR(tuple);
        else PyTuple_SET_ITEM(tuple, i, value);
    }
    return release(c, tuple);
}
