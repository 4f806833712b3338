/* bind_scratch.c: the bytes of scratch that an op would allocate, forward and backward. */
#include "bind.h"

/* As a double, infinite if the sizes overflow. */
static double bytes_of(size_t bytes) {
    return bytes == SIZE_MAX ? HUGE_VAL : (double)bytes;
}

PyObject *rf_layer_scratch(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "layer_scratch");
    rf_in(&c, "like", "n..."); // decides only the type
    const char *op = rf_name(&c, "op");
    const size_t n = rf_count(&c, "n"), in = rf_count(&c, "in"), out = rf_count(&c, "out");
    const size_t chunk = rf_count(&c, "chunk_length");
    rf_precision_of(&c);
    rf_workers(&c);

    double bytes[2] = {0, 0};
    if (c.failed) {
        // the error is set
    } else if (strcmp(op, "linear") == 0) {
        bytes[0] = bytes_of(RF_CALL(&c, linear_workspace, &c.run, n, in, out));
        bytes[1] = bytes_of(RF_CALL(&c, linear_backward_workspace, &c.run, n, in, out));
    } else if (strcmp(op, "feed_forward") == 0 || strcmp(op, "gated_feed_forward") == 0) {
        const int gated = *op == 'g';
        bytes[0] = bytes_of(RF_CALL(&c, feed_forward_workspace, &c.run, n, in, out, gated, chunk));
        bytes[1] = bytes_of(
            RF_CALL(&c, feed_forward_backward_workspace, &c.run, n, in, out, gated, chunk));
    } else if (strcmp(op, "cross_entropy_head") == 0) {
        bytes[0] = bytes[1] =
            bytes_of(RF_CALL(&c, cross_entropy_head_workspace, &c.run, n, in, out, chunk));
    } else {
        RF_FAIL(&c, PyExc_ValueError, "op must be one of a layer, got '%s'", op);
    }
    return rf_return_doubles(&c, bytes, 2);
}

PyObject *rf_attention_scratch(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "attention_scratch");
    rf_in(&c, "like", "n..."); // decides only the type
    const char *query, *keys, *mask;
    rf_attention a = rf_attention_of(&c, &query, &keys, &mask);
    a.b = rf_count(&c, "b"), a.h = rf_count(&c, "h"), a.t = rf_count(&c, "t");
    a.tk = rf_count(&c, "tk"), a.hk = rf_count(&c, "hk");
    a.d = rf_count(&c, "d"), a.r = rf_count(&c, "r"), a.k = rf_count(&c, "bucket_ids");
    rf_attention_complete(&a);
    rf_workers(&c);

    double bytes[2] = {0, 0};
    if (!c.failed) {
        bytes[0] = bytes_of(RF_CALL(&c, attention_workspace, &c.run, &a));
        bytes[1] = bytes_of(RF_CALL(&c, attention_backward_workspace, &c.run, &a));
    }
    return rf_return_doubles(&c, bytes, 2);
}
