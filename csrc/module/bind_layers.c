/* bind_layers.c: the ops on rows. */
#include "bind.h"

PyObject *bind_linear_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "linear");
    const void *x = rf_in(&c, "x", "n... ci");
    const void *w = rf_in(&c, "weight", "co ci");
    const void *bias = rf_in_or_none(&c, "bias", "co");
    void *y = rf_out(&c, "out", "n... co");
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), ci = rf_size(&c, "ci"), co = rf_size(&c, "co");
    void *scratch = rf_scratch(&c, RF_CALL(&c, linear_workspace, &c.run, n, ci, co));
    RF_RUN(&c, linear_forward, y, x, w, bias, n, ci, co, scratch);
    return rf_return(&c);
}

PyObject *bind_linear_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "linear_backward");
    const void *x = rf_in(&c, "x", "n... ci");
    const void *w = rf_in(&c, "weight", "co ci");
    const void *dy = rf_in(&c, "dout", "n... co");
    void *dw = rf_inout(&c, "dweight", "co ci");
    void *dbias = rf_inout_or_none(&c, "dbias", "co");
    void *dx = rf_out(&c, "out", "n... ci");
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), ci = rf_size(&c, "ci"), co = rf_size(&c, "co");
    void *scratch = rf_scratch(&c, RF_CALL(&c, linear_workspace, &c.run, n, ci, co));
    RF_RUN(&c, linear_backward, dx, dw, dbias, dy, x, w, n, ci, co, scratch);
    return rf_return(&c);
}

PyObject *bind_embedding_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "embedding");
    const void *w = rf_in(&c, "weight", "v c");
    const int64_t *ids = rf_in_ids(&c, "ids", "n...", rf_size(&c, "v"));
    void *y = rf_out(&c, "out", "n... c");
    rf_workers(&c);

    RF_RUN(&c, embedding_forward, y, ids, w, rf_size(&c, "n"), rf_size(&c, "c"));
    return rf_return(&c);
}

PyObject *bind_embedding_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "embedding_backward");
    const void *dy = rf_in(&c, "dout", "n... c");
    void *dw = rf_inout(&c, "dweight", "v c");
    const int64_t *ids = rf_in_ids(&c, "ids", "n...", rf_size(&c, "v"));
    rf_workers(&c);

    RF_RUN(&c, embedding_backward, dw, dy, ids, rf_size(&c, "n"), rf_size(&c, "c"));
    return rf_return(&c);
}

PyObject *bind_axial_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "axial_positions");
    const void *w0 = rf_in(&c, "w0", "n1 d1");
    const void *w1 = rf_in(&c, "w1", "n2 d2");
    const size_t n1 = rf_size(&c, "n1"), n2 = rf_size(&c, "n2");
    const size_t d1 = rf_size(&c, "d1"), d2 = rf_size(&c, "d2");
    const int64_t *positions = rf_in_ids(&c, "position_ids", "n...", rf_product(n1, n2));
    rf_let(&c, "c", d1 + d2, "w0 and w1");
    void *y = rf_out(&c, "out", "n... c");
    rf_workers(&c);

    RF_RUN(&c, axial_forward, y, positions, w0, w1, rf_size(&c, "n"), n2, d1, d2);
    return rf_return(&c);
}

PyObject *bind_axial_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "axial_positions_backward");
    void *dw0 = rf_inout(&c, "dw0", "n1 d1");
    void *dw1 = rf_inout(&c, "dw1", "n2 d2");
    const size_t n1 = rf_size(&c, "n1"), n2 = rf_size(&c, "n2");
    const size_t d1 = rf_size(&c, "d1"), d2 = rf_size(&c, "d2");
    rf_let(&c, "c", d1 + d2, "w0 and w1");
    const void *dy = rf_in(&c, "dout", "n... c");
    const int64_t *positions = rf_in_ids(&c, "position_ids", "n...", rf_product(n1, n2));
    rf_workers(&c);

    RF_RUN(&c, axial_backward, dw0, dw1, dy, positions, rf_size(&c, "n"), n2, d1, d2);
    return rf_return(&c);
}

PyObject *bind_layer_norm_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "layer_norm");
    const void *x = rf_in(&c, "x", "n... c");
    const void *weight = rf_in(&c, "weight", "c");
    const void *bias = rf_in(&c, "bias", "c");
    const double eps = rf_double(&c, "eps");
    void *y = rf_out(&c, "out", "n... c");
    void *mean = rf_new(&c, "n");
    void *rstd = rf_new(&c, "n");
    rf_workers(&c);

    RF_RUN(&c, layer_norm_forward, y, mean, rstd, x, weight, bias, rf_size(&c, "n"),
           rf_size(&c, "c"), eps);
    return rf_return(&c);
}

PyObject *bind_layer_norm_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "layer_norm_backward");
    const void *x = rf_in(&c, "x", "n... c");
    const void *weight = rf_in(&c, "weight", "c");
    const void *mean = rf_in(&c, "mean", "n");
    const void *rstd = rf_in(&c, "rstd", "n");
    const void *dy = rf_in(&c, "dout", "n... c");
    void *dweight = rf_inout(&c, "dweight", "c");
    void *dbias = rf_inout(&c, "dbias", "c");
    void *dx = rf_new(&c, "n... c");
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c");
    void *scratch = rf_scratch(&c, RF_CALL(&c, layer_norm_backward_workspace, n, width));
    RF_RUN(&c, layer_norm_backward, dx, dweight, dbias, dy, x, mean, rstd, weight, n, width,
           scratch);
    return rf_return(&c);
}

PyObject *bind_dropout(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "dropout");
    const void *x = rf_in(&c, "x", "n...");
    const double p = rf_probability(&c, "p");
    const uint64_t key = rf_uint64(&c, "key");
    void *y = rf_out_over(&c, "out", "n...");
    rf_workers(&c);

    RF_RUN(&c, dropout, y, x, rf_size(&c, "n"), p, key);
    return rf_return(&c);
}

PyObject *bind_feed_forward_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "feed_forward");
    const void *x = rf_in(&c, "x", "n... c");
    const void *w1 = rf_in(&c, "w1", "f c");
    const void *b1 = rf_in(&c, "b1", "f");
    const void *w2 = rf_in(&c, "w2", "c f");
    const void *b2 = rf_in(&c, "b2", "c");
    const rf_activation activation = rf_activation_of(&c, "activation");
    const size_t chunk = rf_count(&c, "chunk_length");
    const double dropout = rf_probability(&c, "dropout");
    const uint64_t key = rf_uint64(&c, "dropout_key");
    void *y = rf_out(&c, "out", "n... c");
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c"), f = rf_size(&c, "f");
    void *scratch = rf_scratch(&c, RF_CALL(&c, feed_forward_workspace, &c.run, n, width, f, chunk));
    RF_RUN(&c, feed_forward_forward, y, x, w1, b1, w2, b2, n, width, f, activation, chunk, dropout,
           key, scratch);
    return rf_return(&c);
}

PyObject *bind_feed_forward_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "feed_forward_backward");
    const void *x = rf_in(&c, "x", "n... c");
    const void *w1 = rf_in(&c, "w1", "f c");
    const void *b1 = rf_in(&c, "b1", "f");
    const void *w2 = rf_in(&c, "w2", "c f");
    const void *b2 = rf_in(&c, "b2", "c");
    const void *dy = rf_in(&c, "dout", "n... c");
    const rf_activation activation = rf_activation_of(&c, "activation");
    const size_t chunk = rf_count(&c, "chunk_length");
    const double dropout = rf_probability(&c, "dropout");
    const uint64_t key = rf_uint64(&c, "dropout_key");
    void *dw1 = rf_inout(&c, "dw1", "f c");
    void *db1 = rf_inout(&c, "db1", "f");
    void *dw2 = rf_inout(&c, "dw2", "c f");
    void *db2 = rf_inout(&c, "db2", "c");
    void *y = rf_inout_or_none(&c, "out", "n... c");
    void *dx = rf_new(&c, "n... c");
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c"), f = rf_size(&c, "f");
    void *scratch =
        rf_scratch(&c, RF_CALL(&c, feed_forward_backward_workspace, &c.run, n, width, f, chunk));
    RF_RUN(&c, feed_forward_backward, dx, dw1, db1, dw2, db2, y, dy, x, w1, b1, w2, b2, n, width, f,
           activation, chunk, dropout, key, scratch);
    return rf_return(&c);
}
