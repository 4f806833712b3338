/* spec.c: the options of an attention, from one argument, an AttentionSpec. */
#include "call.h"

#include <math.h>

/* The fields, and their names as Python strings, since a call reads some twenty of them. */
// clang-format off: it cannot parse a list of macro calls
#define FIELDS(FIELD)                                                                              \
    FIELD(kind) FIELD(scope) FIELD(chunk_length) FIELD(num_chunks_before) FIELD(num_chunks_after)  \
    FIELD(bucket_cap) FIELD(local_window) FIELD(is_causal) FIELD(shared_qk) FIELD(wrap) FIELD(attend_across_buckets)   \
    FIELD(allow_duplicate_attention) FIELD(scale) FIELD(softcap) FIELD(dropout) FIELD(dropout_key) \
    FIELD(matmul_precision)
// clang-format on
#define FIELD_INDEX(name) FIELD_##name,
#define FIELD_NAME(name) #name,
typedef enum { FIELDS(FIELD_INDEX) FIELD_COUNT } field_index;
static const char *const field_names[] = {FIELDS(FIELD_NAME)};
static PyObject *field_strings[FIELD_COUNT];

int rf_spec_init(void) {
    for (size_t i = 0; i < FIELD_COUNT; i++)
        if (!field_strings[i] && !(field_strings[i] = PyUnicode_InternFromString(field_names[i])))
            return -1;
    return 0;
}

/* The instance dictionary of the spec, a borrowed reference; or NULL and a failure if it has none.
   The spec is frozen, so its fields live as long as the call. */
static PyObject *fields_of(rf_call *c, PyObject *spec) {
    PyObject *fields = spec ? PyObject_GenericGetDict(spec, NULL) : NULL;
    if (!fields && !c->failed)
        RF_FAIL(c, PyExc_TypeError, "spec must be an AttentionSpec, got %s",
                Py_TYPE(spec)->tp_name);
    Py_XDECREF(fields);
    return fields;
}

/* A field, a borrowed reference; or NULL and a failure if the spec lacks it. */
static PyObject *field(rf_call *c, PyObject *fields, field_index name) {
    PyObject *value = c->failed ? NULL : PyDict_GetItemWithError(fields, field_strings[name]);
    if (!value && !c->failed)
        RF_FAIL(c, PyExc_TypeError, "spec must be an AttentionSpec, got an object without %s",
                field_names[name]);
    return value;
}

/* Returns `absent` for None. */
static size_t count_field(rf_call *c, PyObject *fields, field_index name, size_t min,
                          size_t absent) {
    PyObject *value = field(c, fields, name);
    if (!value || value == Py_None) return absent;
    const Py_ssize_t number = PyNumber_AsSsize_t(value, PyExc_OverflowError);
    if (number == -1 && PyErr_Occurred())
        c->failed = 1;
    else if (number < (Py_ssize_t)min || number > INT32_MAX)
        RF_FAIL(c, PyExc_ValueError, "%s must be an integer >= %zu and < 2**31, got %zd",
                field_names[name], min, number);
    return c->failed ? absent : (size_t)number;
}

static double number_field(rf_call *c, PyObject *fields, field_index name) {
    PyObject *value = field(c, fields, name);
    const double number = value ? PyFloat_AsDouble(value) : 0;
    if (number == -1 && PyErr_Occurred())
        c->failed = 1;
    else if (!isfinite(number))
        RF_FAIL(c, PyExc_ValueError, "%s must be a finite number, got %R", field_names[name],
                value);
    return number;
}

static int flag_field(rf_call *c, PyObject *fields, field_index name) {
    PyObject *value = field(c, fields, name);
    const int flag = value ? PyObject_IsTrue(value) : 0;
    if (flag < 0) c->failed = 1;
    return flag > 0;
}

static int field_is(rf_call *c, PyObject *fields, field_index name, const char *text) {
    PyObject *value = field(c, fields, name);
    return value && PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, text) == 0;
}

static rf_scope scope_field(rf_call *c, PyObject *fields) {
    if (field_is(c, fields, FIELD_kind, "full")) return RF_FULL;
    if (field_is(c, fields, FIELD_kind, "local")) return RF_LOCAL;
    if (field_is(c, fields, FIELD_kind, "lsh")) {
        if (field_is(c, fields, FIELD_scope, "chunk")) return RF_CHUNK;
        if (field_is(c, fields, FIELD_scope, "bucket")) return RF_BUCKET;
    }
    if (!c->failed)
        RF_FAIL(c, PyExc_ValueError, "spec must be of full, local or LSH attention, got %R",
                fields);
    return RF_FULL;
}

rf_attention rf_attention_of(rf_call *c, const char **query, const char **keys, const char **mask) {
    rf_attention a = {.m = 1};
    PyObject *spec = rf_next(c, "spec"), *fields = fields_of(c, spec);
    a.scope = fields ? scope_field(c, fields) : RF_FULL;
    const int hashes = a.scope == RF_CHUNK || a.scope == RF_BUCKET;
    *query = "q", *keys = *mask = "";
    if (!fields) return a;
    a.m = count_field(c, fields, FIELD_chunk_length, 1, 1);
    a.before = count_field(c, fields, FIELD_num_chunks_before, 0, 0);
    a.after = count_field(c, fields, FIELD_num_chunks_after, 0, 0);
    a.cap = count_field(c, fields, FIELD_bucket_cap, 0, 0);
    a.window = !hashes ? 0 : count_field(c, fields, FIELD_local_window, 0, SIZE_MAX) + 1;
    a.causal = flag_field(c, fields, FIELD_is_causal);
    a.shared_qk = flag_field(c, fields, FIELD_shared_qk);
    a.separate = hashes && !a.shared_qk;
    *query = hashes && a.shared_qk ? "qk" : "q";
    a.wrap = flag_field(c, fields, FIELD_wrap);
    a.across_buckets = !hashes || flag_field(c, fields, FIELD_attend_across_buckets);
    a.duplicates = !hashes || flag_field(c, fields, FIELD_allow_duplicate_attention);
    PyObject *scale = field(c, fields, FIELD_scale);
    a.scale = !scale || scale == Py_None ? NAN : number_field(c, fields, FIELD_scale);
    PyObject *softcap = field(c, fields, FIELD_softcap);
    a.softcap = !softcap || softcap == Py_None ? 0 : number_field(c, fields, FIELD_softcap);
    a.dropout = number_field(c, fields, FIELD_dropout);
    PyObject *precision = field(c, fields, FIELD_matmul_precision);
    const char *text = precision && PyUnicode_Check(precision) ? PyUnicode_AsUTF8(precision) : NULL;
    rf_set_precision(c, text ? text : "");
    PyObject *key = field(c, fields, FIELD_dropout_key);
    if (key && (a.key = PyLong_AsUnsignedLongLong(key)) == UINT64_MAX && PyErr_Occurred())
        c->failed = 1;
    if (!c->failed && (a.cap % 64 || (a.cap && a.separate) || a.softcap < 0 ||
                       !(a.dropout >= 0 && a.dropout < 1)))
        RF_FAIL(c, PyExc_ValueError, "spec has a field out of range: %R", spec);
    if (a.scope != RF_BUCKET) a.cap = 0;
    const int own_length = a.separate || (a.scope == RF_FULL && !a.shared_qk);
    *keys = own_length ? "b? hk? tk d" : "b? hk? t d";
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
    // a window that reaches all keys needs no more
    a->window = Py_MIN(a->window, Py_MAX(a->t, a->tk) + 1);
    if ((a->scope == RF_LOCAL || a->scope == RF_CHUNK) && a->t <= a->m) {
        a->scope = a->separate ? RF_LOCAL : RF_FULL; // one chunk of all keys
        a->across_buckets = a->duplicates = 1;
        a->before = a->after = a->window = 0;
        a->wrap = 0;
    }
}

void rf_attention_sizes(rf_call *c, rf_attention *a) {
    a->b = rf_size(c, "b");
    a->h = rf_size(c, "h");
    a->t = rf_size(c, "t");
    a->d = rf_size(c, "d");
    a->r = rf_size(c, "r");
    a->hk = rf_size(c, "hk");
    rf_check_divides(c, "hk", "h");
    const int own_length = a->separate || (a->scope == RF_FULL && !a->shared_qk);
    a->tk = own_length ? rf_size(c, "tk") : a->t;
    if (!c->failed && (a->t > INT32_MAX || a->tk > INT32_MAX))
        RF_FAIL(c, PyExc_ValueError, "a length must be below 2**31, got %zu", Py_MAX(a->t, a->tk));
    if (!c->failed && rf_product(a->r, a->k + 1) > INT32_MAX)
        RF_FAIL(c, PyExc_ValueError, "num_hashes times the number of buckets must be below 2**31");
}

rf_decoding rf_decoding_of(rf_call *c) {
    const char *query, *keys, *mask;
    const rf_attention spec = rf_attention_of(c, &query, &keys, &mask);
    rf_decoding a = {.scope = spec.scope,
                     .m = spec.m,
                     .before = spec.before,
                     .cap = spec.cap,
                     .shared_qk = spec.shared_qk,
                     .across_buckets = spec.across_buckets,
                     .duplicates = spec.duplicates,
                     .softcap = spec.softcap};
    a.eps = rf_double(c, "eps");
    a.theta = rf_double(c, "theta");
    a.drop = rf_count(c, "drop");
    return a;
}

void rf_decoding_sizes(rf_call *c, rf_decoding *a, int has_keys, int has_buckets) {
    a->n = rf_size(c, "n");
    a->c = rf_size(c, "c");
    a->d = rf_size(c, "d");
    a->hk = rf_size(c, "hk");
    if (!a->shared_qk) rf_let(c, "h", a->d ? rf_size(c, "hd") / a->d : a->hk, "wq");
    a->h = rf_size(c, "h");
    a->b = rf_size(c, "b");
    a->s = rf_size(c, "s");
    a->r = rf_size(c, "r");
    a->k = rf_size(c, "k");
    a->scale = default_scale(a->d);
    const int local = a->scope == RF_LOCAL, hashes = a->scope >= RF_CHUNK;
    if (!c->failed && (has_keys == a->shared_qk || has_buckets != hashes))
        RF_FAIL(c, PyExc_TypeError,
                "wk belongs to layers without shared_qk; rotations, buckets and previous to "
                "those that hash");
    if (!c->failed && rf_size(c, "hd") != rf_product(a->h, a->d))
        RF_FAIL(c, PyExc_ValueError, "wq must have as many rows as heads have h d, %zu, got %zu",
                rf_product(a->h, a->d), rf_size(c, "hd"));
    if (!c->failed && rf_size(c, "kd") != rf_product(a->hk, a->d))
        RF_FAIL(c, PyExc_ValueError, "wv must have as many rows as values have hk d, %zu, got %zu",
                rf_product(a->hk, a->d), rf_size(c, "kd"));
    rf_check_divides(c, "hk", "h");
    if (!c->failed && a->s > INT32_MAX)
        RF_FAIL(c, PyExc_ValueError, "a length must be below 2**31, got %zu", a->s);
    if (!c->failed && a->drop > (local ? 0 : a->s))
        RF_FAIL(c, PyExc_ValueError, "drop must be at most %zu, got %zu", local ? 0 : a->s,
                a->drop);
    if (!c->failed && local && a->s < rf_product(a->before + 1, a->m))
        RF_FAIL(c, PyExc_ValueError, "keys must have room for %zu tokens, got %zu",
                rf_product(a->before + 1, a->m), a->s);
}

void rf_check_length(rf_call *c, size_t t, size_t length, size_t s) {
    if (!c->failed && (t > length || length > s || s > INT32_MAX))
        RF_FAIL(c, PyExc_ValueError,
                "length must be at least t = %zu, and at most s = %zu, which is below 2**31, got "
                "%zu",
                t, s, length);
}
