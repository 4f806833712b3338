/* bind_layers.c: the ops on rows. */
#include "bind.h"

PyObject *bind_linear_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "linear");
    const void *x = rf_in(&c, "x", "n... ci");
    const void *weight = rf_in(&c, "weight", "co ci");
    const void *bias = rf_in_or_none(&c, "bias", "co");
    void *out = rf_out(&c, "out", "n... co");
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), ci = rf_size(&c, "ci"), co = rf_size(&c, "co");
    void *scratch = rf_scratch(&c, RF_CALL(&c, linear_workspace, &c.run, n, ci, co));
    RF_RUN(&c, linear_forward, x, weight, bias, out, n, ci, co, scratch);
    return rf_return(&c);
}

PyObject *bind_linear_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "linear_backward");
    const void *x = rf_in(&c, "x", "n... ci");
    const void *weight = rf_in(&c, "weight", "co ci");
    const void *dout = rf_in(&c, "dout", "n... co");
    void *dx = rf_out(&c, "out", "n... ci");
    void *dweight = rf_inout(&c, "dweight", "co ci");
    void *dbias = rf_inout_or_none(&c, "dbias", "co");
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), ci = rf_size(&c, "ci"), co = rf_size(&c, "co");
    void *scratch = rf_scratch(&c, RF_CALL(&c, linear_backward_workspace, &c.run, n, ci, co));
    RF_RUN(&c, linear_backward, x, weight, dout, dx, dweight, dbias, n, ci, co, scratch);
    return rf_return(&c);
}

PyObject *bind_embedding_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "embedding");
    const int64_t *ids = rf_in_ids(&c, "ids", "n...");
    const void *weight = rf_in(&c, "weight", "v c");
    void *out = rf_out(&c, "out", "n... c");
    rf_check_ids(&c, "ids", rf_size(&c, "v"));
    rf_workers(&c);

    RF_RUN(&c, embedding_forward, ids, weight, out, rf_size(&c, "n"), rf_size(&c, "c"));
    return rf_return(&c);
}

PyObject *bind_embedding_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "embedding_backward");
    const int64_t *ids = rf_in_ids(&c, "ids", "n...");
    const void *dout = rf_in(&c, "dout", "n... c");
    void *dweight = rf_inout(&c, "dweight", "v c");
    rf_check_ids(&c, "ids", rf_size(&c, "v"));
    rf_workers(&c);

    RF_RUN(&c, embedding_backward, ids, dout, dweight, rf_size(&c, "n"), rf_size(&c, "c"));
    return rf_return(&c);
}

PyObject *bind_axial_positions_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_axis axes[RF_MAX_AXES];
    rf_begin(&c, module, args, nargs, "axial_positions");
    const int64_t *position_ids = rf_in_ids(&c, "position_ids", "n...");
    const size_t count = rf_in_axes(&c, axes, 2);
    void *out = rf_out(&c, "out", "n... c");
    rf_workers(&c);

    RF_RUN(&c, axial_positions_forward, position_ids, axes, out, rf_size(&c, "n"), count);
    return rf_return(&c);
}

PyObject *bind_axial_positions_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_axis axes[RF_MAX_AXES];
    rf_begin(&c, module, args, nargs, "axial_positions_backward");
    const int64_t *position_ids = rf_in_ids(&c, "position_ids", "n...");
    const void *dout = rf_in(&c, "dout", "n... c");
    const size_t count = rf_inout_axes(&c, axes, 1);
    rf_workers(&c);

    RF_RUN(&c, axial_positions_backward, position_ids, dout, axes, rf_size(&c, "n"), count);
    return rf_return(&c);
}

PyObject *bind_rotary_positions_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "rotary_positions");
    const void *x = rf_in(&c, "x", "n... h d");
    const int64_t *position_ids = rf_in_ids(&c, "position_ids", "n...");
    rf_check_ids(&c, "position_ids", RF_MAX_POSITIONS);
    const double theta = rf_double(&c, "theta");
    void *out = rf_out_over(&c, "out", "n... h d");
    rf_workers(&c);

    RF_RUN(&c, rotary_positions_forward, x, position_ids, theta, out, rf_size(&c, "n"),
           rf_size(&c, "h"), rf_size(&c, "d"));
    return rf_return(&c);
}

PyObject *bind_rotary_positions_backward(PyObject *module, PyObject *const *args,
                                         Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "rotary_positions_backward");
    const int64_t *position_ids = rf_in_ids(&c, "position_ids", "n...");
    rf_check_ids(&c, "position_ids", RF_MAX_POSITIONS);
    const double theta = rf_double(&c, "theta");
    const void *dout = rf_in(&c, "dout", "n... h d");
    void *out = rf_out_over(&c, "out", "n... h d");
    rf_workers(&c);

    RF_RUN(&c, rotary_positions_backward, position_ids, theta, dout, out, rf_size(&c, "n"),
           rf_size(&c, "h"), rf_size(&c, "d"));
    return rf_return(&c);
}

PyObject *bind_layer_norm_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "layer_norm");
    const void *x = rf_in(&c, "x", "n... c");
    const void *weight = rf_in(&c, "weight", "c");
    const void *bias = rf_in(&c, "bias", "c");
    const double eps = rf_double(&c, "eps");
    void *out = rf_out(&c, "out", "n... c");
    void *mean = rf_new(&c, "n");
    void *rstd = rf_new(&c, "n");
    rf_workers(&c);

    RF_RUN(&c, layer_norm_forward, x, weight, bias, eps, out, mean, rstd, rf_size(&c, "n"),
           rf_size(&c, "c"));
    return rf_return(&c);
}

PyObject *bind_layer_norm_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "layer_norm_backward");
    const void *x = rf_in(&c, "x", "n... c");
    const void *weight = rf_in(&c, "weight", "c");
    const void *mean = rf_in(&c, "mean", "n");
    const void *rstd = rf_in(&c, "rstd", "n");
    const void *dout = rf_in(&c, "dout", "n... c");
    void *dx = rf_new(&c, "n... c");
    void *dweight = rf_inout(&c, "dweight", "c");
    void *dbias = rf_inout(&c, "dbias", "c");
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c");
    void *scratch = rf_scratch(&c, RF_CALL(&c, layer_norm_backward_workspace, n, width));
    RF_RUN(&c, layer_norm_backward, x, weight, mean, rstd, dout, dx, dweight, dbias, n, width,
           scratch);
    return rf_return(&c);
}

PyObject *bind_dropout(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "dropout");
    const void *x = rf_in(&c, "x", "n...");
    const double p = rf_probability(&c, "p");
    const uint64_t key = rf_uint64(&c, "key");
    void *out = rf_out_over(&c, "out", "n...");
    rf_workers(&c);

    RF_RUN(&c, dropout, x, p, key, out, rf_size(&c, "n"));
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
    const void *w3 = rf_in_or_none(&c, "w3", "f c");
    const void *b3 = w3 ? rf_in(&c, "b3", "f") : rf_none(&c, "b3", "without w3");
    const rf_activation activation = rf_activation_of(&c, "activation");
    const size_t chunk_length = rf_count(&c, "chunk_length");
    const double dropout = rf_probability(&c, "dropout");
    const uint64_t dropout_key = rf_uint64(&c, "dropout_key");
    void *out = rf_out(&c, "out", "n... c");
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c"), f = rf_size(&c, "f");
    void *scratch = rf_scratch(
        &c, RF_CALL(&c, feed_forward_workspace, &c.run, n, width, f, w3 != NULL, chunk_length));
    RF_RUN(&c, feed_forward_forward, x, w1, b1, w2, b2, w3, b3, activation, chunk_length, dropout,
           dropout_key, out, n, width, f, scratch);
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
    const void *w3 = rf_in_or_none(&c, "w3", "f c");
    const void *b3 = w3 ? rf_in(&c, "b3", "f") : rf_none(&c, "b3", "without w3");
    const rf_activation activation = rf_activation_of(&c, "activation");
    const size_t chunk_length = rf_count(&c, "chunk_length");
    const double dropout = rf_probability(&c, "dropout");
    const uint64_t dropout_key = rf_uint64(&c, "dropout_key");
    const void *dout = rf_in(&c, "dout", "n... c");
    void *value_out = rf_inout_or_none(&c, "value_out", "n... c");
    void *dx = rf_new(&c, "n... c");
    void *dw1 = rf_inout(&c, "dw1", "f c");
    void *db1 = rf_inout(&c, "db1", "f");
    void *dw2 = rf_inout(&c, "dw2", "c f");
    void *db2 = rf_inout(&c, "db2", "c");
    void *dw3 = w3 ? rf_inout(&c, "dw3", "f c") : rf_none(&c, "dw3", "without w3");
    void *db3 = w3 ? rf_inout(&c, "db3", "f") : rf_none(&c, "db3", "without w3");
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c"), f = rf_size(&c, "f");
    void *scratch = rf_scratch(&c, RF_CALL(&c, feed_forward_backward_workspace, &c.run, n, width, f,
                                           w3 != NULL, chunk_length));
    RF_RUN(&c, feed_forward_backward, x, w1, b1, w2, b2, w3, b3, activation, chunk_length, dropout,
           dropout_key, dout, value_out, dx, dw1, db1, dw2, db2, dw3, db3, n, width, f, scratch);
    return rf_return(&c);
}
