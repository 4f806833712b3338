/* bind_train.c: the loss, the steps of the optimizers, and the peak of the machine. */
#include "bind.h"

PyObject *bind_cross_entropy_head_forward(PyObject *module, PyObject *const *args,
                                          Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "cross_entropy_head");
    const void *h = rf_in(&c, "h", "n... c");
    const void *weight = rf_in(&c, "weight", "v c");
    const void *bias = rf_in_or_none(&c, "bias", "v");
    const int64_t *labels = rf_in_ids(&c, "labels", "n...");
    const int64_t ignore_index = rf_int64(&c, "ignore_index");
    const double label_smoothing = rf_probability(&c, "label_smoothing");
    const size_t chunk_length = rf_count(&c, "chunk_length");
    rf_check_labels(&c, "labels", rf_size(&c, "v"), ignore_index);
    rf_precision_of(&c);
    rf_workers(&c);

    double loss[2] = {0, 0};
    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c"), v = rf_size(&c, "v");
    void *scratch = rf_scratch(
        &c, RF_CALL(&c, cross_entropy_head_workspace, &c.run, n, width, v, chunk_length));
    RF_RUN(&c, cross_entropy_head_forward, h, weight, bias, labels, ignore_index, label_smoothing,
           chunk_length, loss, n, width, v, scratch);
    return rf_return_doubles(&c, loss, 2);
}

PyObject *bind_cross_entropy_head_backward(PyObject *module, PyObject *const *args,
                                           Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "cross_entropy_head_backward");
    const void *h = rf_in(&c, "h", "n... c");
    const void *weight = rf_in(&c, "weight", "v c");
    const void *bias = rf_in_or_none(&c, "bias", "v");
    const int64_t *labels = rf_in_ids(&c, "labels", "n...");
    const int64_t ignore_index = rf_int64(&c, "ignore_index");
    const double label_smoothing = rf_probability(&c, "label_smoothing");
    const size_t chunk_length = rf_count(&c, "chunk_length");
    const double dloss = rf_double(&c, "dloss");
    void *dh = rf_new(&c, "n... c");
    void *dweight = rf_inout(&c, "dweight", "v c");
    void *dbias = rf_inout_or_none(&c, "dbias", "v");
    rf_check_labels(&c, "labels", rf_size(&c, "v"), ignore_index);
    rf_precision_of(&c);
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c"), v = rf_size(&c, "v");
    void *scratch = rf_scratch(
        &c, RF_CALL(&c, cross_entropy_head_workspace, &c.run, n, width, v, chunk_length));
    RF_RUN(&c, cross_entropy_head_backward, h, weight, bias, labels, ignore_index, label_smoothing,
           chunk_length, dloss, dh, dweight, dbias, n, width, v, scratch);
    return rf_return(&c);
}

PyObject *bind_to_bfloat16(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "to_bfloat16");
    const void *x = rf_in(&c, "x", "n...");
    uint16_t *out = rf_out_bfloat16(&c, "out", "n...");
    rf_workers(&c);

    RF_RUN(&c, to_bfloat16, x, out, rf_size(&c, "n"));
    return rf_return(&c);
}

PyObject *bind_from_bfloat16(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "from_bfloat16");
    const uint16_t *x = rf_in_bfloat16(&c, "x", "n...");
    void *out = rf_inout(&c, "out", "n...");
    rf_workers(&c);

    RF_RUN(&c, from_bfloat16, x, out, rf_size(&c, "n"));
    return rf_return(&c);
}

PyObject *bind_add_scaled(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "add_scaled");
    void *y = rf_inout(&c, "y", "n...");
    const void *x = rf_in(&c, "x", "n...");
    const double alpha = rf_double(&c, "alpha");
    rf_workers(&c);

    RF_RUN(&c, add_scaled, y, x, alpha, rf_size(&c, "n"));
    return rf_return(&c);
}

PyObject *bind_add_rounded(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "add_rounded");
    const rf_storage storage = rf_next_storage(&c);
    void *y = rf_inout_rounded(&c, "y", "n...", storage);
    const void *x = rf_in(&c, "x", "n...");
    const double alpha = rf_double(&c, "alpha");
    rf_workers(&c);

    double beyond = 0;
    RF_RUN_DOUBLE(&c, beyond, add_rounded, y, storage, x, alpha, rf_size(&c, "n"));
    return rf_return_doubles(&c, &beyond, 1);
}

PyObject *bind_from_fixed_point(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "from_fixed_point");
    const rf_storage storage = rf_next_storage(&c);
    const void *x = rf_in_fixed(&c, "x", "n...", storage);
    void *out = rf_inout(&c, "out", "n...");
    rf_workers(&c);

    RF_RUN(&c, from_fixed_point, x, storage, out, rf_size(&c, "n"));
    return rf_return(&c);
}

PyObject *bind_sum_of_squares(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "sum_of_squares");
    const void *x = rf_in(&c, "x", "n...");
    rf_workers(&c);

    double sum = 0;
    RF_RUN_DOUBLE(&c, sum, sum_of_squares, x, rf_size(&c, "n"));
    return rf_return_doubles(&c, &sum, 1);
}

PyObject *bind_adamw_step(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "adamw_step");
    void *w = rf_inout(&c, "w", "n...");
    void *m = rf_inout(&c, "m", "n...");
    void *s = rf_inout(&c, "s", "n...");
    const void *g = rf_in(&c, "g", "n...");
    const double lr = rf_double(&c, "lr");
    const double beta1 = rf_double(&c, "beta1");
    const double beta2 = rf_double(&c, "beta2");
    const double eps = rf_double(&c, "eps");
    const double weight_decay = rf_double(&c, "weight_decay");
    const uint64_t step = rf_uint64(&c, "step");
    const double grad_scale = rf_double(&c, "grad_scale");
    rf_workers(&c);

    RF_RUN(&c, adamw_step, w, m, s, g, lr, beta1, beta2, eps, weight_decay, step, grad_scale,
           rf_size(&c, "n"));
    return rf_return(&c);
}

PyObject *bind_adafactor_step(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "adafactor_step");
    void *w = rf_inout(&c, "w", "b... rows n");
    const void *g = rf_in(&c, "g", "b... rows n");
    void *row = rf_inout_or_none(&c, "row", "b... rows");
    void *column = rf_inout_or_none(&c, "column", "b... n");
    void *s = rf_inout_or_none(&c, "s", "b... rows n");
    void *m = rf_inout_or_none(&c, "m", "b... rows n");
    if (!c.failed && (!row != !column || !row == !s))
        RF_FAIL(&c, PyExc_TypeError, "row and column, or s, must be given");
    const double lr = rf_double(&c, "lr");
    const double beta1 = rf_double(&c, "beta1");
    const double beta2 = rf_double(&c, "beta2");
    const double eps = rf_double(&c, "eps");
    const double clip_threshold = rf_double(&c, "clip_threshold");
    const double weight_decay = rf_double(&c, "weight_decay");
    rf_workers(&c);

    const size_t b = rf_size(&c, "b"), rows = rf_size(&c, "rows"), n = rf_size(&c, "n");
    void *scratch = rf_scratch(&c, RF_CALL(&c, adafactor_step_workspace, b, rows, n));
    RF_RUN(&c, adafactor_step, w, g, row, column, s, m, lr, beta1, beta2, eps, clip_threshold,
           weight_decay, b, rows, n, scratch);
    return rf_return(&c);
}

PyObject *bind_fma_peak(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "fma_peak");
    rf_in(&c, "like", "n..."); // decides only the type
    const double seconds = rf_double(&c, "seconds");
    rf_workers(&c);

    double gflops = 0;
    RF_RUN_DOUBLE(&c, gflops, fma_peak, seconds);
    return rf_return_doubles(&c, &gflops, 1);
}
