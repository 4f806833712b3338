/* bind.h: all functions of the module. Their arguments, in order, are in reformer_c/_core.pyi. */
#ifndef RF_BIND_H
#define RF_BIND_H

#include "call.h"

#define RF_BINDINGS(BINDING)                                                                       \
    BINDING(linear_forward)                                                                        \
    BINDING(linear_backward)                                                                       \
    BINDING(embedding_forward)                                                                     \
    BINDING(embedding_backward)                                                                    \
    BINDING(axial_positions_forward)                                                               \
    BINDING(axial_positions_backward)                                                              \
    BINDING(rotary_positions_forward)                                                              \
    BINDING(rotary_positions_backward)                                                             \
    BINDING(layer_norm_forward)                                                                    \
    BINDING(layer_norm_backward)                                                                   \
    BINDING(dropout)                                                                               \
    BINDING(feed_forward_forward)                                                                  \
    BINDING(feed_forward_backward)                                                                 \
    BINDING(cross_entropy_head_forward)                                                            \
    BINDING(cross_entropy_head_backward)                                                           \
    BINDING(lsh_hash)                                                                              \
    BINDING(attention_forward)                                                                     \
    BINDING(attention_backward)                                                                    \
    BINDING(decode_attention)                                                                      \
    BINDING(index_attention)                                                                       \
    BINDING(quantized_linear)                                                                      \
    BINDING(quantized_feed_forward)                                                                \
    BINDING(to_bfloat16)                                                                           \
    BINDING(from_bfloat16)                                                                         \
    BINDING(add_scaled)                                                                            \
    BINDING(add_rounded)                                                                           \
    BINDING(from_fixed_point)                                                                      \
    BINDING(sum_of_squares)                                                                        \
    BINDING(adamw_step)                                                                            \
    BINDING(adafactor_step)                                                                        \
    BINDING(fma_peak)

#define DECLARE(op) PyObject *bind_##op(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
RF_BINDINGS(DECLARE)
#undef DECLARE

/* bind_scratch.c: bytes of scratch, forward and backward. */
PyObject *rf_layer_scratch(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *rf_attention_scratch(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* threads.c: OpenMP's settings. */
PyObject *rf_openmp_threads(PyObject *module, PyObject *none);
PyObject *rf_openmp_processors(PyObject *module, PyObject *none);
long rf_openmp_thread_limit(void);

/* pool.c: memory that a pass reuses. */
int rf_pool_init(void);
PyObject *rf_pool_enter(PyObject *module, PyObject *none);
PyObject *rf_pool_exit(PyObject *module, PyObject *before);
PyObject *rf_pool_cached(PyObject *module, PyObject *none);
PyObject *rf_pool_trim(PyObject *module, PyObject *none);
PyObject *rf_pool_set_memory(PyObject *module, PyObject *bytes);

#endif
