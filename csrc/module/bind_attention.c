/* bind_attention.c: hashing, and attention in every scope. */
#include "bind.h"

PyObject *bind_lsh_hash(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "lsh_hash");
    rf_attention a = {.scope = RF_CHUNK, .shared_qk = 1};
    rf_strides sx;
    int32_t num_buckets[RF_MAX_FACTORS];
    size_t half;
    const char *name = rf_name(&c, "name of x");
    const void *x = rf_in_strided(&c, name, "b? h? t d", &sx);
    const size_t nf = rf_factors(&c, "num_buckets", num_buckets, &a.k, &half);
    rf_let(&c, "k/2", half, "num_buckets");
    const void *rotations = rf_in(&c, "rotations", "h d r k/2");
    const uint8_t *attention_mask = rf_in_mask_or_none(&c, "attention_mask", "b? t");
    int32_t *out = rf_out_buckets(&c, "out", "b? h? r t");
    rf_workers(&c);

    rf_attention_sizes(&c, &a);
    void *scratch = rf_scratch(&c, RF_CALL(&c, lsh_hash_workspace, &c.run, &a, num_buckets, nf));
    RF_RUN(&c, lsh_hash, &a, x, sx, num_buckets, nf, rotations, attention_mask, out, scratch);
    return rf_return(&c);
}

PyObject *bind_attention_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "attention");
    rf_strides sout, sq, sk, sv;
    const char *query, *keys, *mask_shape;
    rf_attention a = rf_attention_of(&c, &query, &keys, &mask_shape);
    const void *q = rf_in_strided(&c, query, "b? h? t d", &sq);
    const void *k = rf_in_keys(&c, &a, "k", keys, &sk);
    const void *v = rf_in_strided(&c, "v", keys, &sv);
    const uint8_t *attention_mask = rf_in_mask_or_none(&c, "attention_mask", mask_shape);
    a.k = rf_count(&c, "bucket_ids");
    const int32_t *buckets = rf_in_buckets(&c, &a, "buckets", "b? h? r t");
    const int32_t *key_buckets = rf_in_key_buckets(&c, &a, "key_buckets", "b? h? r tk");
    void *out = rf_out_like(&c, "out", "b? h? t d", query, &sout);
    void *log_sums = rf_inout_or_none(&c, "lse", "b? h? t");
    void *lse = rf_new(&c, "b h t");
    rf_workers(&c);

    rf_attention_sizes(&c, &a);
    rf_attention_complete(&a);
    void *scratch = rf_scratch(&c, RF_CALL(&c, attention_workspace, &c.run, &a));
    RF_RUN(&c, attention_forward, &a, q, k, v, attention_mask, buckets, key_buckets, out, lse,
           log_sums, sq, sk, sv, sout, scratch);
    return rf_return(&c);
}

PyObject *bind_attention_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "attention_backward");
    rf_strides sdq, sdk, sdv, sdout, sout, sq, sk, sv;
    const char *query, *keys, *mask_shape;
    rf_attention a = rf_attention_of(&c, &query, &keys, &mask_shape);
    const void *q = rf_in_strided(&c, query, "b? h? t d", &sq);
    const void *k = rf_in_keys(&c, &a, "k", keys, &sk);
    const void *v = rf_in_strided(&c, "v", keys, &sv);
    const uint8_t *attention_mask = rf_in_mask_or_none(&c, "attention_mask", mask_shape);
    a.k = rf_count(&c, "bucket_ids");
    const int32_t *buckets = rf_in_buckets(&c, &a, "buckets", "b? h? r t");
    const int32_t *key_buckets = rf_in_key_buckets(&c, &a, "key_buckets", "b? h? r tk");
    const void *out = rf_in_strided(&c, "out", "b? h? t d", &sout);
    const void *lse = rf_in(&c, "lse", "b h t");
    const void *dout = rf_in_strided(&c, "dout", "b? h? t d", &sdout);
    void *dq = rf_new_like(&c, "b? h? t d", query, &sdq);
    void *dk = k ? rf_new_like(&c, keys, "k", &sdk) : rf_nothing(&sdk);
    void *dv = rf_new_like(&c, keys, "v", &sdv);
    rf_workers(&c);

    rf_attention_sizes(&c, &a);
    rf_attention_complete(&a);
    void *scratch = rf_scratch(&c, RF_CALL(&c, attention_backward_workspace, &c.run, &a));
    RF_RUN(&c, attention_backward, &a, q, k, v, attention_mask, buckets, key_buckets, out, lse,
           dout, dq, dk, dv, sq, sk, sv, sout, sdout, sdq, sdk, sdv, scratch);
    return rf_return(&c);
}

PyObject *bind_decode_attention(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "decode_attention");
    rf_decoding a = rf_decoding_of(&c);
    int32_t num_buckets[RF_MAX_FACTORS];
    size_t half;
    const void *x = rf_in(&c, "x", "n c");
    const void *weight = rf_in(&c, "weight", "c");
    const void *bias = rf_in(&c, "bias", "c");
    const rf_matrix wq = rf_in_matrix(&c, "wq", "hd c", "hd");
    const rf_matrix wk = rf_in_matrix_or_none(&c, "wk", "kd c", "kd");
    const rf_matrix wv = rf_in_matrix(&c, "wv", "kd c", "kd");
    const rf_matrix wo = rf_in_matrix(&c, "wo", "c hd", "c");
    const size_t nf = rf_factors(&c, "num_buckets", num_buckets, &a.k, &half);
    rf_let(&c, "k", a.k, "num_buckets");
    rf_let(&c, "k/2", half, "num_buckets");
    rf_let(&c, "2", 2, "a newest token and a count");
    const void *rotations = rf_in_or_none(&c, "rotations", "h d r k/2");
    a.storage = rf_next_storage(&c);
    void *keys = rf_inout_stored(&c, "keys", a.shared_qk ? "b h s d" : "b hk s d", a.storage);
    void *values = rf_inout_stored(&c, "values", "b hk s d", a.storage);
    int32_t *buckets = rf_inout_int32_or_none(&c, "buckets", "b h r k 2");
    int32_t *previous = rf_inout_int32_or_none(&c, "previous", "b h r s");
    const int64_t *rows = rf_in_ids(&c, "rows", "n");
    const int64_t *positions = rf_in_ids(&c, "positions", "n");
    void *y = rf_inout(&c, "y", "n c");
    rf_check_ids(&c, "rows", rf_size(&c, "b"));
    const int endless = a.scope == RF_LOCAL || a.drop;
    rf_check_ids(&c, "positions", endless ? RF_MAX_POSITIONS : rf_size(&c, "s"));
    rf_workers(&c);

    rf_decoding_sizes(&c, &a, wk.data != NULL, rotations && buckets && previous);
    void *scratch = rf_scratch(&c, RF_CALL(&c, decode_attention_workspace, &c.run, &a, half));
    RF_RUN(&c, decode_attention, &a, x, weight, bias, &wq, wk.data ? &wk : NULL, &wv, &wo,
           num_buckets, nf, rotations, keys, values, buckets, previous, rows, positions, y, half,
           scratch);
    return rf_return(&c);
}

PyObject *bind_quantized_linear(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "quantized_linear");
    const void *x = rf_in(&c, "x", "n... ci");
    const rf_matrix weight = rf_in_matrix(&c, "weight", "co ci", "co");
    const void *bias = rf_in_or_none(&c, "bias", "co");
    void *out = rf_out(&c, "out", "n... co");
    rf_workers(&c);

    RF_RUN(&c, quantized_linear, x, &weight, bias, out, rf_size(&c, "n"), rf_size(&c, "ci"),
           rf_size(&c, "co"));
    return rf_return(&c);
}

PyObject *bind_quantized_feed_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "quantized_feed_forward");
    const void *x = rf_in(&c, "x", "n... c");
    const rf_matrix w1 = rf_in_matrix(&c, "w1", "f c", "f");
    const void *b1 = rf_in(&c, "b1", "f");
    const rf_matrix w2 = rf_in_matrix(&c, "w2", "c f", "c");
    const void *b2 = rf_in(&c, "b2", "c");
    const rf_matrix w3 = rf_in_matrix_or_none(&c, "w3", "f c", "f");
    const void *b3 = w3.data ? rf_in(&c, "b3", "f") : rf_none(&c, "b3", "without w3");
    const rf_activation activation = rf_activation_of(&c, "activation");
    void *out = rf_out(&c, "out", "n... c");
    rf_workers(&c);

    const size_t n = rf_size(&c, "n"), width = rf_size(&c, "c"), f = rf_size(&c, "f");
    void *scratch =
        rf_scratch(&c, RF_CALL(&c, quantized_feed_forward_workspace, n, f, w3.data != NULL));
    RF_RUN(&c, quantized_feed_forward, x, &w1, b1, &w2, b2, w3.data ? &w3 : NULL, b3, activation,
           out, n, width, f, scratch);
    return rf_return(&c);
}

PyObject *bind_index_attention(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    rf_call c;
    rf_begin(&c, module, args, nargs, "index_attention");
    const void *q = rf_in(&c, "q", "b h t d");
    const void *keys = rf_in(&c, "keys", "b hk s d");
    const void *values = rf_in(&c, "values", "b hk s d");
    const uint8_t *attention_mask = rf_in_mask_or_none(&c, "attention_mask", "b s");
    const int32_t *newest = rf_in_int32_or_none(&c, "newest", "b hk r k");
    const int32_t *previous = rf_in_int32_or_none(&c, "previous", "b hk r s");
    const int64_t *ids = rf_in_ids(&c, "ids", "b h r t");
    rf_check_ids(&c, "ids", rf_size(&c, "k"));
    const size_t length = rf_count(&c, "length"), window = rf_count(&c, "window");
    const size_t sinks = rf_count(&c, "sinks");
    const double softcap = rf_double(&c, "softcap");
    void *out = rf_out(&c, "out", "b h t d");
    void *lse = rf_new(&c, "b h t");
    int32_t *found = rf_out_buckets(&c, "found", "b h t");
    rf_workers(&c);

    const size_t b = rf_size(&c, "b"), h = rf_size(&c, "h"), hk = rf_size(&c, "hk");
    const size_t t = rf_size(&c, "t"), d = rf_size(&c, "d"), s = rf_size(&c, "s");
    const size_t r = rf_size(&c, "r"), k = rf_size(&c, "k");
    rf_check_divides(&c, "hk", "h");
    rf_check_length(&c, t, length, newest && previous ? s : 0);
    void *scratch = rf_scratch(&c, RF_CALL(&c, index_attention_workspace, &c.run, s));
    RF_RUN(&c, index_attention, q, keys, values, attention_mask, newest, previous, ids, length,
           window, sinks, softcap, out, lse, found, b, h, hk, t, d, s, r, k, scratch);
    return rf_return(&c);
}
