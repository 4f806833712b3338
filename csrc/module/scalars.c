/* scalars.c: the arguments that are not arrays. */
#include "call.h"

#include <limits.h>
#include <math.h>

double rf_double(rf_call *c, const char *name) {
    PyObject *argument = rf_next(c, name);
    if (!argument) return 0;
    const double value = PyFloat_AsDouble(argument);
    if (value == -1 && PyErr_Occurred())
        RF_FAIL(c, PyExc_TypeError, "%s must be a number, got %s", name,
                Py_TYPE(argument)->tp_name);
    else if (!isfinite(value))
        RF_FAIL(c, PyExc_ValueError, "%s must be finite, got %R", name, argument);
    return value;
}

double rf_probability(rf_call *c, const char *name) {
    const double value = rf_double(c, name);
    if (!c->failed && !(value >= 0 && value < 1)) {
        PyObject *number = PyFloat_FromDouble(value);
        RF_FAIL(c, PyExc_ValueError, "%s must be at least 0 and below 1, got %S", name, number);
        Py_XDECREF(number);
    }
    return value;
}

/* Any object with __index__, within 64 bits of either sign. */
static uint64_t bits_of(rf_call *c, const char *name, const char *range, int is_signed) {
    PyObject *argument = rf_next(c, name);
    PyObject *number = argument ? PyNumber_Index(argument) : NULL;
    if (!argument) return 0;
    if (!number) {
        RF_FAIL(c, PyExc_TypeError, "%s must be an int, got %s", name, Py_TYPE(argument)->tp_name);
        return 0;
    }
    const uint64_t value = is_signed ? (uint64_t)PyLong_AsLongLong(number)
                                     : (uint64_t)PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        RF_FAIL(c, PyExc_ValueError, "%s must be in %s, got %R", name, range, number);
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
        RF_FAIL(c, PyExc_ValueError, "%s must be at least 0, got %lld", name, (long long)value);
    return c->failed ? 0 : (size_t)value;
}

const char *rf_name(rf_call *c, const char *name) {
    PyObject *argument = rf_next(c, name);
    const char *text = argument && PyUnicode_Check(argument) ? PyUnicode_AsUTF8(argument) : NULL;
    if (argument && !text)
        RF_FAIL(c, PyExc_TypeError, "%s must be a str, got %s", name, Py_TYPE(argument)->tp_name);
    return text ? text : "";
}

/* In the order of rf_activation. */
static const char *const activations[] = {
    "relu",      "gelu",    "gelu_new",   "silu",         "tanh", "gelu_10",
    "hardswish", "laplace", "leaky_relu", "linear",       "mish", "quick_gelu",
    "relu2",     "relu6",   "sigmoid",    "sqrtsoftplus",
};

rf_activation rf_activation_of(rf_call *c, const char *name) {
    const size_t count = sizeof activations / sizeof *activations;
    const char *text = rf_name(c, name);
    for (size_t i = 0; i < count; i++)
        if (strcmp(text, activations[i]) == 0) return (rf_activation)i;
    char known[RF_TEXT] = "";
    for (size_t i = 0; i < count; i++) {
        if (i) strcat(known, i + 1 < count ? ", " : " or ");
        strcat(strcat(strcat(known, "'"), activations[i]), "'");
    }
    if (!c->failed) RF_FAIL(c, PyExc_ValueError, "%s must be %s, got '%s'", name, known, text);
    return RF_RELU;
}

void rf_workers(rf_call *c) {
    const size_t workers = rf_count(c, "workers");
    if (!c->failed && (workers < 1 || workers > INT_MAX))
        RF_FAIL(c, PyExc_ValueError, "workers must be at least 1, got %zu", workers);
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

rf_attention rf_attention_of(rf_call *c, const char **query, const char **keys, const char **mask) {
    rf_attention a = {0};
    Py_ssize_t m = 1, before = 0, after = 0, k = 0, cap = 0;
    int scope = 0;
    PyObject *key = NULL, *argument = rf_next(c, "attention");
    *query = "q";
    if (argument && !PyTuple_Check(argument))
        RF_FAIL(c, PyExc_TypeError, "attention must be a tuple, got %s",
                Py_TYPE(argument)->tp_name);
    else if (argument &&
             !PyArg_ParseTuple(argument, "sinnnnpppppddOn:attention", query, &scope, &m, &before,
                               &after, &k, &a.causal, &a.shared_qk, &a.wrap, &a.across_buckets,
                               &a.duplicates, &a.scale, &a.dropout, &key, &cap))
        c->failed = 1;
    else if (argument && (a.key = PyLong_AsUnsignedLongLong(key)) == UINT64_MAX && PyErr_Occurred())
        c->failed = 1;
    if (!c->failed &&
        (scope < RF_FULL || scope > RF_BUCKET || (scope >= RF_CHUNK && !a.shared_qk) ||
         (scope == RF_LOCAL && a.shared_qk) || m < 1 || before < 0 || before > INT32_MAX ||
         after < 0 || after > INT32_MAX || k < 0 || k > INT32_MAX || cap < 0 || cap % 64 ||
         (cap && scope != RF_BUCKET) || !isfinite(a.scale) || !(a.dropout >= 0 && a.dropout < 1)))
        RF_FAIL(c, PyExc_ValueError, "attention has an element out of range: %R", argument);
    a.scope = (rf_scope)scope;
    a.m = (size_t)m;
    a.before = (size_t)before;
    a.after = (size_t)after;
    a.k = (size_t)k;
    a.cap = (size_t)cap;
    if (a.scope == RF_FULL || a.scope == RF_LOCAL)
        a.across_buckets = a.duplicates = 1;                   // no buckets
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
        RF_FAIL(c, PyExc_ValueError, "a length must be below 2**31, got %zu", Py_MAX(a->t, a->tk));
    if (!c->failed && rf_product(a->r, a->k + 1) > INT32_MAX)
        RF_FAIL(c, PyExc_ValueError, "num_hashes times the number of buckets must be below 2**31");
}

rf_decoding rf_decoding_of(rf_call *c) {
    rf_decoding a = {0};
    Py_ssize_t m = 1, before = 0, cap = 0;
    int scope = 0;
    PyObject *argument = rf_next(c, "decoding");
    if (argument && !PyTuple_Check(argument))
        RF_FAIL(c, PyExc_TypeError, "decoding must be a tuple, got %s", Py_TYPE(argument)->tp_name);
    else if (argument && !PyArg_ParseTuple(argument, "innndd:decoding", &scope, &m, &before, &cap,
                                           &a.scale, &a.eps))
        c->failed = 1;
    if (!c->failed && (scope < RF_LOCAL || scope > RF_BUCKET || m < 1 || before < 0 ||
                       before > INT32_MAX || cap < 0 || !isfinite(a.scale) || !isfinite(a.eps)))
        RF_FAIL(c, PyExc_ValueError, "decoding has an element out of range: %R", argument);
    a.scope = (rf_scope)scope;
    a.m = (size_t)m;
    a.before = (size_t)before;
    a.cap = (size_t)cap;
    return a;
}

void rf_decoding_sizes(rf_call *c, rf_decoding *a, int has_keys, int has_buckets) {
    a->n = rf_size(c, "n");
    a->c = rf_size(c, "c");
    a->h = rf_size(c, "h");
    a->d = rf_size(c, "d");
    a->b = rf_size(c, "b");
    a->s = rf_size(c, "s");
    a->r = rf_size(c, "r");
    a->k = rf_size(c, "k");
    const int local = a->scope == RF_LOCAL;
    if (!c->failed && (has_keys != local || (!local && !has_buckets)))
        RF_FAIL(c, PyExc_TypeError,
                "wk belongs to local layers; rotations, buckets and previous to "
                "those that hash");
    if (!c->failed && rf_size(c, "hd") != rf_product(a->h, a->d))
        RF_FAIL(c, PyExc_ValueError, "wq must have as many rows as keys have h d, %zu, got %zu",
                rf_product(a->h, a->d), rf_size(c, "hd"));
    if (!c->failed && a->s > INT32_MAX)
        RF_FAIL(c, PyExc_ValueError, "a length must be below 2**31, got %zu", a->s);
    if (!c->failed && local && a->s < rf_product(a->before + 1, a->m))
        RF_FAIL(c, PyExc_ValueError, "keys must have room for %zu tokens, got %zu",
                rf_product(a->before + 1, a->m), a->s);
}
