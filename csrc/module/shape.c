/* shape.c: checks the shapes of arrays, given in letters, and keeps the sizes of the letters. */
#include "call.h"

enum { MAX_AXES = 8 };

typedef struct {
    const char *name;
    size_t length;
    enum { PLAIN, OPTIONAL, LEADING } kind;
} axis;

/* Split "b? h? t d" or "n... c" into its axes. */
static size_t axes_of(const char *shape, axis *axes) {
    size_t n = 0;
    while (*shape) {
        axis *a = &axes[n++];
        a->name = shape;
        a->length = strcspn(shape, " ?.");
        shape += a->length;
        a->kind = *shape == '?' ? OPTIONAL : *shape == '.' ? LEADING : PLAIN;
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
    if (c->failed) return;
    const rf_size_entry *e = find(c, letter, strlen(letter));
    if (!e)
        bind(c, &(axis){letter, strlen(letter), PLAIN}, size, owner);
    else if (e->size != size)
        RF_FAIL(c, PyExc_ValueError, "%s must have %s = %zu as in %s, got %zu", e->owner, letter,
                size, owner, e->size);
}

void rf_check_divides(rf_call *c, const char *part, const char *whole) {
    const rf_size_entry *e = find(c, part, strlen(part)), *f = find(c, whole, strlen(whole));
    if (c->failed || !e || !f) return;
    if (e->missing != f->missing)
        RF_FAIL(c, PyExc_ValueError, "%s must have as many axes as %s", e->owner, f->owner);
    else if (e->size != f->size && (!e->size || !f->size || f->size % e->size))
        RF_FAIL(c, PyExc_ValueError, "%s must have %s that divides %s = %zu of %s, got %zu",
                e->owner, part, whole, f->size, f->owner, e->size);
}

size_t rf_product(size_t a, size_t b) {
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

/* Append the shape as in Python: (b, h, t, d). */
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
    strcat(text, written == 1 && axes->kind != LEADING ? ",)" : ")");
}

/* Append all shapes that the letters allow: without the first optional axis, without the first
 * two... */
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

static void wrong_shape(rf_call *c, PyObject *array, const char *name, const axis *axes, size_t n,
                        const rf_size_entry *culprit) {
    char text[RF_TEXT] = "", letter[MAX_AXES] = "";
    write_shapes(c, text, axes, n);
    if (culprit) strncat(letter, culprit->name, Py_MIN(culprit->length, sizeof letter - 1));
    PyObject *shape = PyObject_GetAttrString(array, "shape");
    if (!culprit)
        RF_FAIL(c, PyExc_ValueError, "%s must have shape %s, got %R", name, text, shape);
    else if (culprit->leading)
        RF_FAIL(c, PyExc_ValueError, "%s must have shape %s with the leading axes of %s, got %R",
                name, text, culprit->owner, shape);
    else
        RF_FAIL(c, PyExc_ValueError, "%s must have shape %s with %s = %zu as in %s, got %R", name,
                text, letter, culprit->size, culprit->owner, shape);
    Py_XDECREF(shape);
}

/* Decide whether optional axes are missing, by the rank of the first array that could have them. */
static void bind_missing(rf_call *c, const axis *axes, size_t n, int ndim, const char *name) {
    size_t absent = n > (size_t)ndim ? n - (size_t)ndim : 0;
    for (size_t i = 0; i < n && absent > 0; i++) {
        if (axes[i].kind != OPTIONAL) continue;
        if (!find(c, axes[i].name, axes[i].length)) bind(c, &axes[i], 1, name)->missing = 1;
        absent--;
    }
}

/* The leading axes of `n...`: the first array defines them, the others must have the same. */
static int check_leading(rf_call *c, PyObject *array, const char *name, const axis *axes, size_t n,
                         const Py_ssize_t *dims, int leading) {
    const rf_size_entry *e = find(c, axes->name, axes->length);
    if (!e) {
        size_t product = 1;
        for (int i = 0; i < leading; i++)
            if (dims[i] == 0) product = 0;
        for (int i = 0; i < leading && product; i++) product = rf_product(product, (size_t)dims[i]);
        rf_size_entry *new = bind(c, axes, product, name);
        new->leading = dims; // stays valid: the call holds the array
        new->leading_axes = leading;
        return 1;
    }
    int same = e->leading_axes == leading;
    for (int i = 0; i < leading && same; i++) same = e->leading[i] == dims[i];
    if (!same) wrong_shape(c, array, name, axes, n, e);
    return same;
}

/* Check an array against its letters, and define the letters that are new. */
int rf_check_shape(rf_call *c, PyObject *array, int ndim, const Py_ssize_t *dims, const char *name,
                   const char *shape) {
    axis axes[MAX_AXES];
    const size_t n = axes_of(shape, axes);
    const int has_leading = n > 0 && axes[0].kind == LEADING;
    const int leading = has_leading ? ndim - (int)(n - 1) : 0;
    bind_missing(c, axes, n, ndim, name);

    // 1. the number of axes
    int expected = leading;
    for (size_t i = (size_t)has_leading; i < n; i++) expected += !is_missing(c, &axes[i]);
    if (leading < 0 || ndim != expected) {
        // what this array decided about optional axes must not appear in the message
        while (c->sizes && c->size[c->sizes - 1].owner == name && c->size[c->sizes - 1].missing)
            c->sizes--;
        wrong_shape(c, array, name, axes, n, NULL);
        return 0;
    }
    if (has_leading && !check_leading(c, array, name, axes, n, dims, leading)) return 0;

    // 2. the size of each
    const Py_ssize_t *dim = dims + leading;
    for (size_t i = (size_t)has_leading; i < n; i++) {
        if (is_missing(c, &axes[i])) continue;
        const size_t size = (size_t)*dim++;
        const rf_size_entry *e = find(c, axes[i].name, axes[i].length);
        if (e && e->size != size) {
            wrong_shape(c, array, name, axes, n, e);
            return 0;
        }
        if (!e) bind(c, &axes[i], size, name);
    }
    return 1;
}

/* The shape of a result, whose letters are all defined. */
int rf_dims_of(const rf_call *c, const char *shape, Py_ssize_t *dims) {
    axis axes[MAX_AXES];
    const size_t n = axes_of(shape, axes);
    int ndim = 0;
    for (size_t i = 0; i < n; i++) {
        const rf_size_entry *e = find(c, axes[i].name, axes[i].length);
        if (axes[i].kind == LEADING) {
            for (int j = 0; j < e->leading_axes; j++) dims[ndim++] = e->leading[j];
        } else if (axes[i].kind == PLAIN || !e->missing) {
            dims[ndim++] = (Py_ssize_t)e->size;
        }
    }
    return ndim;
}

int rf_has_axis(const rf_call *c, const char *letter) {
    const rf_size_entry *e = find(c, letter, strlen(letter));
    return !e || !e->missing;
}
