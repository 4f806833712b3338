/* spec.c: the options of an attention, from one argument, an AttentionSpec. */
#include "call.h"

#include <math.h>

/* The Python string of a literal, made once, since a call reads some twenty fields; NULL if there
   is no room to keep it. Literals are told apart by their addresses. */
static PyObject *interned(const char *literal) {
    static struct {
        const char *literal;
        PyObject *text;
    } kept[32];
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        if (kept[i].literal == literal) return kept[i].text;
        if (kept[i].literal) continue;
        PyObject *text = PyUnicode_InternFromString(literal);
        if (text) kept[i].literal = literal, kept[i].text = text;
        PyErr_Clear();
        return text;
    }
    return NULL;
}

/* A field of the spec, or NULL and a failure if it has no such field. Borrowed: the spec is frozen,
   so its fields live as long as the call. */
static PyObject *field(rf_call *c, PyObject *spec, const char *name) {
    PyObject *text = interned(name), *value = NULL;
    if (!c->failed)
        value = text ? PyObject_GetAttr(spec, text) : PyObject_GetAttrString(spec, name);
    if (!value && !c->failed)
        RF_FAIL(c, PyExc_TypeError, "spec must be an AttentionSpec, got %s without %s",
                Py_TYPE(spec)->tp_name, name);
    Py_XDECREF(value);
    return value;
}

/* Returns `absent` for None. */
static size_t count_field(rf_call *c, PyObject *spec, const char *name, size_t min, size_t absent) {
    PyObject *value = field(c, spec, name);
    if (!value || value == Py_None) return absent;
    const Py_ssize_t number = PyNumber_AsSsize_t(value, PyExc_OverflowError);
    if (number == -1 && PyErr_Occurred())
        c->failed = 1;
    else if (number < (Py_ssize_t)min || number > INT32_MAX)
        RF_FAIL(c, PyExc_ValueError, "%s must be at least %zu and below 2**31, got %zd", name, min,
                number);
    return c->failed ? absent : (size_t)number;
}

static double number_field(rf_call *c, PyObject *spec, const char *name) {
    PyObject *value = field(c, spec, name);
    const double number = value ? PyFloat_AsDouble(value) : 0;
    if (number == -1 && PyErr_Occurred())
        c->failed = 1;
    else if (!isfinite(number))
        RF_FAIL(c, PyExc_ValueError, "%s must be finite, got %R", name, value);
    return number;
}

static int flag_field(rf_call *c, PyObject *spec, const char *name) {
    PyObject *value = field(c, spec, name);
    const int flag = value ? PyObject_IsTrue(value) : 0;
    if (flag < 0) c->failed = 1;
    return flag > 0;
}

static int field_is(rf_call *c, PyObject *spec, const char *name, const char *text) {
    PyObject *value = field(c, spec, name);
    return value && PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, text) == 0;
}

static rf_scope scope_field(rf_call *c, PyObject *spec) {
    if (field_is(c, spec, "kind", "full")) return RF_FULL;
    if (field_is(c, spec, "kind", "local")) return RF_LOCAL;
    if (field_is(c, spec, "kind", "lsh")) {
        if (field_is(c, spec, "scope", "chunk")) return RF_CHUNK;
        if (field_is(c, spec, "scope", "bucket")) return RF_BUCKET;
    }
    if (!c->failed)
        RF_FAIL(c, PyExc_ValueError, "spec must be of full, local or LSH attention, got %R", spec);
    return RF_FULL;
}

rf_attention rf_attention_of(rf_call *c, const char **query, const char **keys, const char **mask) {
    rf_attention a = {.m = 1};
    PyObject *spec = rf_next(c, "spec");
    a.scope = spec ? scope_field(c, spec) : RF_FULL;
    const int hashes = a.scope == RF_CHUNK || a.scope == RF_BUCKET;
    *query = hashes ? "qk" : "q";
    if (!spec) return a;
    a.m = count_field(c, spec, "chunk_length", 1, 1);
    a.before = count_field(c, spec, "num_chunks_before", 0, 0);
    a.after = count_field(c, spec, "num_chunks_after", 0, 0);
    a.cap = count_field(c, spec, "bucket_cap", 0, 0);
    a.causal = flag_field(c, spec, "is_causal");
    a.shared_qk = flag_field(c, spec, "shared_qk");
    a.wrap = flag_field(c, spec, "wrap");
    a.across_buckets = !hashes || flag_field(c, spec, "attend_across_buckets");
    a.duplicates = !hashes || flag_field(c, spec, "allow_duplicate_attention");
    PyObject *scale = field(c, spec, "scale");
    a.scale = !scale || scale == Py_None ? NAN : number_field(c, spec, "scale");
    PyObject *softcap = field(c, spec, "softcap");
    a.softcap = !softcap || softcap == Py_None ? 0 : number_field(c, spec, "softcap");
    a.dropout = number_field(c, spec, "dropout");
    if (field_is(c, spec, "matmul_precision", "medium"))
        c->run.precision = RF_MEDIUM;
    else if (field_is(c, spec, "matmul_precision", "high"))
        c->run.precision = RF_HIGH;
    PyObject *key = field(c, spec, "dropout_key");
    if (key && (a.key = PyLong_AsUnsignedLongLong(key)) == UINT64_MAX && PyErr_Occurred())
        c->failed = 1;
    if (!c->failed && ((hashes && !a.shared_qk) || (a.scope == RF_LOCAL && a.shared_qk) ||
                       a.cap % 64 || a.softcap < 0 || !(a.dropout >= 0 && a.dropout < 1)))
        RF_FAIL(c, PyExc_ValueError, "spec has a field out of range: %R", spec);
    if (a.scope != RF_BUCKET) a.cap = 0;
    const int own_length = a.scope == RF_FULL && !a.shared_qk; // keys may have another length
    *keys = own_length ? "b? h? tk d" : "b? h? t d";
    *mask = own_length ? "b? tk" : "b? t";
    return a;
}

static double default_scale(size_t d) {
    return d ? 1 / sqrt((double)d) : 1;
}

void rf_attention_complete(rf_attention *a) {
    if (isnan(a->scale)) a->scale = default_scale(a->d);
    // without wrap, no chunk has more than t / m chunks before or after it
    if (!a->wrap && a->before > a->t / a->m) a->before = a->t / a->m;
    if (!a->wrap && a->after > a->t / a->m) a->after = a->t / a->m;
    if ((a->scope == RF_LOCAL || a->scope == RF_CHUNK) && a->t <= a->m) {
        a->scope = RF_FULL;
        a->across_buckets = a->duplicates = 1;
    }
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
    const char *query, *keys, *mask;
    const rf_attention spec = rf_attention_of(c, &query, &keys, &mask);
    if (!c->failed && spec.scope == RF_FULL)
        RF_FAIL(c, PyExc_ValueError, "spec must be of local or LSH attention");
    return (rf_decoding){.scope = spec.scope,
                         .m = spec.m,
                         .before = spec.before,
                         .cap = spec.cap,
                         .softcap = spec.softcap,
                         .eps = rf_double(c, "eps")};
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
    a->scale = default_scale(a->d);
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
