/* rf.h: the interface of the core.

   The core is compiled once per (instruction set, element type). Each compilation defines one const
   table of function pointers; this header declares the table's type and how to find the ones that
   this machine can run. No Python here, and no global state. */
#ifndef RF_H
#define RF_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* How float32 operands of matrix products are rounded: not at all, to two bfloat16 terms each, or
   to one. Sums are float32. Float64 is never rounded. */
typedef enum { RF_HIGHEST, RF_HIGH, RF_MEDIUM } rf_precision;

/* How an op runs: the number of threads, the precision, and whether it is to stop.

   Ops call `poll` from the calling thread, between blocks of work; it may set `stop`, and returns
   whether it ran the caller's code, which may have called other ops. Once `stop` is set the
   remaining blocks are skipped and the outputs are unspecified. */
typedef struct rf_run rf_run;
struct rf_run {
    int workers;
    rf_precision precision; // of matrix products
    atomic_int stop;
    int (*poll)(rf_run *); // or NULL
};

/* How numbers are stored: as reals, as bfloat16 numbers, as 8-bit integers that are multiplied by
   the scale of their row, or in fixed point, as integers that count steps of 2^-8 or of 2^-20. */
typedef enum { RF_REALS, RF_BFLOAT16, RF_INT8, RF_INT16, RF_INT32 } rf_storage;
enum { RF_INT16_FRACTION = 8, RF_INT32_FRACTION = 20 };

/* A weight matrix: reals, bfloat16 numbers, or 8-bit integers. */
typedef struct {
    const void *data;  // float or double, uint16_t, int8_t
    const void *scale; // reals, one for each row; NULL unless RF_INT8
    rf_storage storage;
} rf_matrix;

/* Strides of a (b, h, t, d) array, in elements; the last axis is contiguous. */
typedef struct {
    ptrdiff_t b, h, t;
} rf_strides;

/* Activations of the feed-forward layer; csrc/core/activation.h has their formulas. */
typedef enum {
    RF_RELU,
    RF_GELU,
    RF_GELU_NEW,
    RF_SILU,
    RF_TANH,
    RF_GELU_10,
    RF_HARDSWISH,
    RF_LAPLACE,
    RF_LEAKY_RELU,
    RF_LINEAR,
    RF_MISH,
    RF_QUICK_GELU,
    RF_RELU2,
    RF_RELU6,
    RF_SIGMOID,
    RF_SQRTSOFTPLUS
} rf_activation;

/* What a query may attend to.
   FULL: every key.                     LOCAL: chunks of the sequence.
   CHUNK: chunks of the hash order.     BUCKET: the whole bucket, of any size. */
typedef enum { RF_FULL, RF_LOCAL, RF_CHUNK, RF_BUCKET } rf_scope;

typedef struct {
    rf_scope scope;
    size_t b, h, t, d;  // batch, heads, queries, depth of a head
    size_t hk;          // heads of v and, unless shared, of k: each serves h / hk of q in turn
    size_t tk;          // keys; equals t unless scope is FULL or keys are separate
    size_t r, k;        // hash rounds; bucket ids are below k (scopes CHUNK and BUCKET)
    size_t m;           // chunk length (scopes LOCAL and CHUNK)
    size_t before;      // chunks of look-back
    size_t after;       // chunks of look-ahead
    int causal;         // a query sees keys at its own and earlier positions
    int shared_qk;      // keys are normalised queries, with the self-mask
    int separate;       // keys are hashed and sorted apart from the queries, whose last one is at
                        // the position of the last key; a query that finds no key sees all
    size_t window;      // 0, or one more than w: keys within w positions of a query count, too,
                        // once (scopes CHUNK and BUCKET)
    int wrap;           // the first chunk looks back at the last one
    int across_buckets; // attend to other buckets in the same chunk; 1 unless scope is CHUNK
    int duplicates;     // a key met in several rounds counts in each, else where it is met first;
                        // 1 where nothing is hashed
    size_t cap;         // buckets are cut into segments of this many tokens, and queries attend to
                        // their own and adjacent ones; a multiple of 64, or 0 (scope BUCKET)
    double scale;       // of the scores
    double softcap;     // a score s becomes softcap tanh(s / softcap), before masks; 0: off
    double dropout;     // of the attention probabilities
    uint64_t key;       // of the dropout's random bits
} rf_attention;

/* Attention for one new token of each text, to the cache of a layer. */
typedef struct {
    rf_scope scope;    // FULL: all earlier tokens; LOCAL: a ring buffer of the last chunks
    size_t n, c, h, d; // new tokens, one per text; channels, heads, depth of a head
    size_t hk;         // as in rf_attention
    size_t b, s;       // texts of the cache; its capacity in tokens (LOCAL: a ring buffer)
    size_t r, k;       // hash rounds, buckets
    size_t drop;       // how many of its oldest tokens a full cache forgets; 0: it never is full
    size_t m, before;  // chunk length, chunks of look-back (scopes LOCAL and CHUNK)
    size_t cap;        // tokens of a segment (scope BUCKET), or 0
    int shared_qk, across_buckets, duplicates; // as in rf_attention
    double scale;                              // of the scores
    double softcap;                            // as in rf_attention
    double eps;                                // of the layer norm
    double theta;                              // of rotary positions; 0: none
    rf_storage storage;                        // of cached keys and values, not RF_INT8
} rf_decoding;

/* An axis of axial positions: its size, and its table (size, width), which the forward pass reads
   (w) and the backward pass adds to (dw). */
enum { RF_MAX_AXES = 8 };

typedef struct {
    const void *w;
    void *dw;
    size_t size, width;
} rf_axis;

#define real float
#define rf_ops rf_ops_f32
#include "ops.h"
#undef rf_ops
#undef real

#define real double
#define rf_ops rf_ops_f64
#include "ops.h"
#undef rf_ops
#undef real

/* One instruction set. */
typedef struct {
    const char *name; // "base", "avx2", "avx512", "avx512_bf16", "amx", "neon"
    const rf_ops_f32 *f32;
    const rf_ops_f64 *f64;
} rf_core;

/* The cores that were built and that this machine can run, best first; NULL past the last. */
const rf_core *rf_core_at(size_t i);

/* The names of all cores that were built, runnable here or not; NULL past the last. */
const char *rf_core_built(size_t i);

#endif
