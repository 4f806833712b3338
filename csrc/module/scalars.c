/* scalars.c: arguments that are not arrays. */
#include "call.h"

#include <limits.h>
#include <math.h>

/* Is there an error of a conversion? Others, as KeyboardInterrupt in __float__, end the call. */
static int is_unsuitable(rf_call *c) {
    if (!PyErr_Occurred()) return 0;
    c->failed = 1;
    return PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError) ||
           PyErr_ExceptionMatches(PyExc_OverflowError);
}

double rf_double(rf_call *c, const char *name) {
    PyObject *argument = rf_next(c, name);
    if (!argument) return 0;
    const double value = PyFloat_AsDouble(argument);
    if (is_unsuitable(c))
        RF_FAIL(c, PyExc_TypeError, "%s must be a number, got %R", name, argument);
    else if (!c->failed && !isfinite(value))
        RF_FAIL(c, PyExc_ValueError, "%s must be a finite number, got %R", name, argument);
    return value;
}

double rf_probability(rf_call *c, const char *name) {
    const double value = rf_double(c, name);
    if (!c->failed && !(value >= 0 && value < 1)) {
        PyObject *number = PyFloat_FromDouble(value);
        RF_FAIL(c, PyExc_ValueError, "%s must be a number >= 0 and < 1, got %S", name, number);
        Py_XDECREF(number);
    }
    return value;
}

/* An integer (any object with __index__) of 64 bits, signed or unsigned. */
static uint64_t bits_of(rf_call *c, const char *name, const char *range, int is_signed) {
    PyObject *argument = rf_next(c, name);
    PyObject *number = argument ? PyNumber_Index(argument) : NULL;
    if (!argument) return 0;
    if (!number) {
        if (is_unsuitable(c))
            RF_FAIL(c, PyExc_TypeError, "%s must be an integer%s, got %R", name, range, argument);
        return 0;
    }
    const uint64_t value = is_signed ? (uint64_t)PyLong_AsLongLong(number)
                                     : (uint64_t)PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        RF_FAIL(c, PyExc_ValueError, "%s must be an integer%s, got %R", name, range, number);
    Py_DECREF(number);
    return value;
}

int64_t rf_int64(rf_call *c, const char *name) {
    return (int64_t)bits_of(c, name, " >= -2**63 and < 2**63", 1);
}

uint64_t rf_uint64(rf_call *c, const char *name) {
    return bits_of(c, name, " >= 0 and < 2**64", 0);
}

size_t rf_count(rf_call *c, const char *name) {
    const int64_t value = rf_int64(c, name);
    if (!c->failed && value < 0)
        RF_FAIL(c, PyExc_ValueError, "%s must be an integer >= 0, got %lld", name,
                (long long)value);
    return c->failed ? 0 : (size_t)value;
}

const char *rf_name(rf_call *c, const char *name) {
    PyObject *argument = rf_next(c, name);
    const char *text = argument && PyUnicode_Check(argument) ? PyUnicode_AsUTF8(argument) : NULL;
    if (argument && !text)
        RF_FAIL(c, PyExc_TypeError, "%s must be a string, got %R", name, argument);
    return text ? text : "";
}

/* The index of `text`, the value of an argument, among `count` names. */
static size_t choice(rf_call *c, const char *name, const char *text, const char *const *names,
                     size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(text, names[i]) == 0) return i;
    char known[RF_TEXT] = "";
    for (size_t i = 0; i < count; i++) {
        if (i) strcat(known, i + 1 < count ? ", " : " or ");
        strcat(strcat(strcat(known, "'"), names[i]), "'");
    }
    if (!c->failed) RF_FAIL(c, PyExc_ValueError, "%s must be %s, got '%s'", name, known, text);
    return 0;
}

/* Names, in the order of rf_activation. */
static const char *const activations[] = {
    "relu",      "gelu",    "gelu_new",   "silu",         "tanh", "gelu_10",
    "hardswish", "laplace", "leaky_relu", "linear",       "mish", "quick_gelu",
    "relu2",     "relu6",   "sigmoid",    "sqrtsoftplus",
};

rf_activation rf_activation_of(rf_call *c, const char *name) {
    const size_t count = sizeof activations / sizeof *activations;
    return (rf_activation)choice(c, name, rf_name(c, name), activations, count);
}

void rf_set_precision(rf_call *c, const char *text) {
    static const char *const precisions[] = {"highest", "high", "medium"};
    c->run.precision = (rf_precision)choice(c, "matmul_precision", text, precisions, 3);
}

void rf_precision_of(rf_call *c) {
    rf_set_precision(c, rf_name(c, "matmul_precision"));
}

void rf_workers(rf_call *c) {
    const size_t workers = rf_count(c, "workers");
    if (!c->failed && (workers < 1 || workers > INT_MAX))
        RF_FAIL(c, PyExc_ValueError, "workers must be an integer >= 1, got %zu", workers);
    if (!c->failed && c->next != c->end)
        RF_FAIL(c, PyExc_TypeError, "%s: %zd arguments too many", c->op, c->end - c->next);
    c->run.workers = rf_forked() || c->failed ? 1 : (int)workers;
}

size_t rf_factors(rf_call *c, const char *name, int32_t *factors, size_t *product, size_t *half) {
    PyObject *argument = rf_next(c, name);
    const Py_ssize_t n = argument && PyTuple_Check(argument) ? PyTuple_GET_SIZE(argument) : 0;
    *product = 1;
    *half = 0;
    if (c->failed) return 0;
    if (n < 1 || n > RF_MAX_FACTORS) {
        RF_FAIL(c, PyExc_ValueError, "%s must be a tuple of 1 to %d factors, got %R", name,
                (int)RF_MAX_FACTORS, argument);
        return 0;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        const long factor = PyLong_AsLong(PyTuple_GET_ITEM(argument, i));
        *product = factor < 2 || factor % 2 ? SIZE_MAX : rf_product(*product, (size_t)factor);
        if (PyErr_Occurred() || *product >= INT32_MAX) {
            PyErr_Clear();
            RF_FAIL(c, PyExc_ValueError,
                    "%s must be even, at least 2, with a product below 2**31 - 1, got %R", name,
                    argument);
            return 0;
        }
        factors[i] = (int32_t)factor;
        *half += (size_t)factor / 2;
    }
    return (size_t)n;
}
