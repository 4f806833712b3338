/* ops.h: the table of operations, and the reference page of the core.

   Included twice by rf.h, with `real` as float and as double. The letters after each pointer are
   its shape: b batch, h heads, t length, d head depth, c channels, f feed-forward width,
   v vocabulary, n rows, r hash rounds, k buckets, m chunk length.

   Names and order of arguments are those of reformer_c.ops and of the extension: what the forward
   pass reads, its options, what it saved, dout, results; then sizes and scratch, which only C has.
   dX is the gradient of X and has its shape. Gradients of activations are overwritten; gradients of
   weights are accumulated.
   Arrays are contiguous unless strides are passed. `scratch` is 64-byte aligned and has the size in
   bytes that <op>_workspace returned for the same sizes; SIZE_MAX means that the sizes overflow.
   Pointers marked "or NULL" are optional. Every size may be 0. Results do not depend on
   run->workers. */
typedef struct {
    /* out = x weight' + bias. */
    size_t (*linear_workspace)(const rf_run *run, size_t n, size_t ci, size_t co);
    size_t (*linear_backward_workspace)(const rf_run *run, size_t n, size_t ci, size_t co);
    void (*linear_forward)(rf_run *run,
                           const real *x,      // n ci
                           const real *weight, // co ci
                           const real *bias,   // co, or NULL
                           real *out,          // n co
                           size_t n, size_t ci, size_t co, void *scratch);
    void (*linear_backward)(rf_run *run,
                            const real *x,      // n ci
                            const real *weight, // co ci
                            const real *dout,   // n co
                            real *dx,           // n ci
                            real *dweight,      // co ci, added to
                            real *dbias,        // co, added to, or NULL
                            size_t n, size_t ci, size_t co, void *scratch);

    /* Rows of a table: out[i] = weight[ids[i]]. Ids must be in range. */
    void (*embedding_forward)(rf_run *run,
                              const int64_t *ids, // n
                              const real *weight, // v c
                              real *out,          // n c
                              size_t n, size_t c);
    void (*embedding_backward)(rf_run *run,
                               const int64_t *ids, // n
                               const real *dout,   // n c
                               real *dweight,      // v c, added to
                               size_t n, size_t c);

    /* Axial positions: j = position_ids[i] is a point of a grid in row-major order. out[i] is the
       concatenation of one row of each axis' table: that of j's index along the axis. */
    void (*axial_positions_forward)(rf_run *run,
                                    const int64_t *position_ids, // n
                                    const rf_axis *axes,         // count
                                    real *out,                   // n c, c the sum of the widths
                                    size_t n, size_t count);
    void (*axial_positions_backward)(rf_run *run,
                                     const int64_t *position_ids, // n
                                     const real *dout,            // n c
                                     const rf_axis *axes,         // count
                                     size_t n, size_t count);

    /* Rotary positions: channels j and j + d / 2 of each head are rotated as a point, by the angle
       position_ids[i] theta^(-2 j / d). The backward pass rotates back. out may be the input. */
    void (*rotary_positions_forward)(rf_run *run,
                                     const real *x,               // n h d
                                     const int64_t *position_ids, // n
                                     double theta,
                                     real *out, // n h d
                                     size_t n, size_t h, size_t d);
    void (*rotary_positions_backward)(rf_run *run,
                                      const int64_t *position_ids, // n
                                      double theta,
                                      const real *dout, // n h d
                                      real *out,        // n h d
                                      size_t n, size_t h, size_t d);

    /* Normalise each row: out = (x - mean) * rstd * weight + bias. */
    void (*layer_norm_forward)(rf_run *run,
                               const real *x,      // n c
                               const real *weight, // c
                               const real *bias,   // c
                               double eps,
                               real *out,  // n c
                               real *mean, // n, saved for backward
                               real *rstd, // n, saved for backward
                               size_t n, size_t c);
    size_t (*layer_norm_backward_workspace)(size_t n, size_t c);
    void (*layer_norm_backward)(rf_run *run,
                                const real *x,      // n c
                                const real *weight, // c
                                const real *mean,   // n
                                const real *rstd,   // n
                                const real *dout,   // n c
                                real *dx,           // n c
                                real *dweight,      // c, added to
                                real *dbias,        // c, added to
                                size_t n, size_t c, void *scratch);

    /* out = x / (1 - p) where the random bits of (key, index) say keep, else 0. It is its own
       backward. out may be x. */
    void (*dropout)(rf_run *run,
                    const real *x, // n
                    double p, uint64_t key,
                    real *out, // n
                    size_t n);

    /* out = hidden w2' + b2, in chunks of rows, with hidden = act(drop(x w1' + b1)), or in a gated
       layer drop(act(x w1' + b1) * (x w3' + b3)); the dropout mask is n x f. */
    size_t (*feed_forward_workspace)(const rf_run *run, size_t n, size_t c, size_t f, int gated,
                                     size_t chunk_length);
    void (*feed_forward_forward)(rf_run *run,
                                 const real *x,  // n c
                                 const real *w1, // f c
                                 const real *b1, // f
                                 const real *w2, // c f
                                 const real *b2, // c
                                 const real *w3, // f c, or NULL unless gated
                                 const real *b3, // f, or NULL with w3
                                 rf_activation activation, size_t chunk_length, double dropout,
                                 uint64_t dropout_key,
                                 real *out, // n c
                                 size_t n, size_t c, size_t f, void *scratch);
    size_t (*feed_forward_backward_workspace)(const rf_run *run, size_t n, size_t c, size_t f,
                                              int gated, size_t chunk_length);
    void (*feed_forward_backward)(rf_run *run,
                                  const real *x,  // n c
                                  const real *w1, // f c
                                  const real *b1, // f
                                  const real *w2, // c f
                                  const real *b2, // c
                                  const real *w3, // f c, or NULL unless gated
                                  const real *b3, // f, or NULL with w3
                                  rf_activation activation, size_t chunk_length, double dropout,
                                  uint64_t dropout_key,
                                  const real *dout, // n c
                                  real *value_out,  // n c, the forward's result recomputed; or NULL
                                  real *dx,         // n c
                                  real *dw1,        // f c, added to
                                  real *db1,        // f, added to
                                  real *dw2,        // c f, added to
                                  real *db2,        // c, added to
                                  real *dw3,        // f c, added to, or NULL with w3
                                  real *db3,        // f, added to, or NULL with w3
                                  size_t n, size_t c, size_t f, void *scratch);

    /* Cross-entropy of softmax(h weight' + bias): loss[0] = sum over the rows whose label is not
       ignored, loss[1] = their number. The target is 1 - label_smoothing for the label, plus
       label_smoothing / v for every class. Processes `chunk_length` rows at a time, never all n v
       logits. */
    size_t (*cross_entropy_head_workspace)(const rf_run *run, size_t n, size_t c, size_t v,
                                           size_t chunk_length);
    void (*cross_entropy_head_forward)(rf_run *run,
                                       const real *h,         // n c
                                       const real *weight,    // v c
                                       const real *bias,      // v, or NULL
                                       const int64_t *labels, // n
                                       int64_t ignore_index, double label_smoothing,
                                       size_t chunk_length,
                                       double *loss, // 2
                                       size_t n, size_t c, size_t v, void *scratch);
    /* `dloss` is the gradient of the sum: 1 / loss[1] for the mean. */
    void (*cross_entropy_head_backward)(rf_run *run,
                                        const real *h,         // n c
                                        const real *weight,    // v c
                                        const real *bias,      // v, or NULL
                                        const int64_t *labels, // n
                                        int64_t ignore_index, double label_smoothing,
                                        size_t chunk_length, double dloss,
                                        real *dh,      // n c
                                        real *dweight, // v c, added to
                                        real *dbias,   // v, added to, or NULL
                                        size_t n, size_t c, size_t v, void *scratch);

    /* Bucket ids of angular LSH: argmax of [u, -u], u = x rotations, separately for each of the nf
       factors and combined into a mixed-radix number, the first factor varying fastest. Masked
       positions get an extra id, the product of the factors. */
    size_t (*lsh_hash_workspace)(const rf_run *run, const rf_attention *a,
                                 const int32_t *num_buckets, size_t nf);
    void (*lsh_hash)(rf_run *run, const rf_attention *a,
                     const real *x, // b h t d, strided
                     rf_strides sx, const int32_t *num_buckets, size_t nf,
                     const real *rotations,         // h d r sum(num_buckets)/2
                     const uint8_t *attention_mask, // b t, or NULL
                     int32_t *out,                  // b h r t
                     void *scratch);

    /* Softmax attention in every scope: see rf_attention. */
    size_t (*attention_workspace)(const rf_run *run, const rf_attention *a);
    void (*attention_forward)(rf_run *run, const rf_attention *a,
                              const real *q, // b h t d, strided
                              const real *k, // b hk tk d, strided; NULL with shared_qk
                              const real *v, // b hk tk d, strided
                              const uint8_t *attention_mask, // b tk, or NULL; 0 hides a key
                              const int32_t *buckets,        // b h r t (scopes CHUNK and BUCKET)
                              const int32_t *key_buckets,    // b h r tk (of separate keys)
                              real *out,                     // b h t d, strided
                              real *lse,                     // b h t, saved for backward: marked
                              real *log_sums, // b h t, the same without marks, or NULL
                              rf_strides sq, rf_strides sk, rf_strides sv, rf_strides sout,
                              void *scratch);
    size_t (*attention_backward_workspace)(const rf_run *run, const rf_attention *a);
    void (*attention_backward)(rf_run *run, const rf_attention *a,
                               const real *q, // b h t d, strided
                               const real *k, // b hk tk d, strided; NULL with shared_qk
                               const real *v, // b hk tk d, strided
                               const uint8_t *attention_mask, // b tk, or NULL
                               const int32_t *buckets,        // b h r t
                               const int32_t *key_buckets,    // b h r tk
                               const real *out,               // b h t d, strided
                               const real *lse,               // b h t
                               const real *dout,              // b h t d, strided
                               real *dq,                      // b h t d, strided
                               real *dk, // b hk tk d, strided; NULL with shared_qk
                               real *dv, // b hk tk d, strided
                               rf_strides sq, rf_strides sk, rf_strides sv, rf_strides sout,
                               rf_strides sdout, rf_strides sdq, rf_strides sdk, rf_strides sdv,
                               void *scratch);

    /* y += attention(layer_norm(x) wq' ...) wo' for one new token of each of n texts, whose key and
       value are appended to the cache; keys are stored scaled, and normalised if they are shared
       queries. Token t is in slot t % s, and previous[slot] is the slot of the token before it in
       its bucket. The cache of a text of more than s tokens has forgotten the oldest ones, the
       least multiple of `drop` that leaves at most s. `columns` is the sum of num_buckets / 2. */
    size_t (*decode_attention_workspace)(const rf_run *run, const rf_decoding *a, size_t columns);
    void (*decode_attention)(
        rf_run *run, const rf_decoding *a,
        const real *x,       // n c
        const real *weight,  // c
        const real *bias,    // c
        const rf_matrix *wq, // hd c
        const rf_matrix *wk, // (hk d) c; NULL with shared_qk
        const rf_matrix *wv, // (hk d) c
        const rf_matrix *wo, // c hd
        const int32_t *num_buckets, size_t nf,
        const real *rotations,    // h d r k/2, or NULL unless it hashes
        void *keys,               // b hk s d, with shared_qk b h s d; reals or bfloat16
        void *values,             // b hk s d, as keys; both are appended to
        int32_t *buckets,         // b h r k 2: newest token, count; or NULL unless it hashes
        int32_t *previous,        // b h r s, or NULL unless it hashes
        const int64_t *rows,      // n, texts of the cache, distinct
        const int64_t *positions, // n, of the new tokens
        real *y,                  // n c, added to
        size_t columns, void *scratch);

    /* Attention of the newest t of `length` tokens to those before, and to themselves: the first
       `sinks` real ones, those at most `window` before, and those of the query's bucket in each
       round, each once. lse is -inf and out 0 where there are none. */
    size_t (*index_attention_workspace)(const rf_run *run, size_t s);
    void (*index_attention)(rf_run *run,
                            const real *q,                 // b h t d, scaled
                            const real *keys,              // b hk s d
                            const real *values,            // b hk s d
                            const uint8_t *attention_mask, // b s, or NULL
                            const int32_t *newest,         // b hk r k: of each bucket, or -1
                            const int32_t *previous,       // b hk r s: of the same bucket, or -1
                            const int64_t *ids,            // b h r t, buckets of the queries
                            size_t length, size_t window, size_t sinks, double softcap,
                            real *out,      // b h t d
                            real *lse,      // b h t
                            int32_t *found, // b h t: how many keys
                            size_t b, size_t h, size_t hk, size_t t, size_t d, size_t s, size_t r,
                            size_t k, void *scratch);

    /* The linear and the feed-forward layer of decoding: few rows, weights in any storage. */
    void (*quantized_linear)(rf_run *run,
                             const real *x,           // n ci
                             const rf_matrix *weight, // co ci
                             const real *bias,        // co, or NULL
                             real *out,               // n co
                             size_t n, size_t ci, size_t co);
    size_t (*quantized_feed_forward_workspace)(size_t n, size_t f, int gated);
    void (*quantized_feed_forward)(rf_run *run,
                                   const real *x,       // n c
                                   const rf_matrix *w1, // f c
                                   const real *b1,      // f
                                   const rf_matrix *w2, // c f
                                   const real *b2,      // c
                                   const rf_matrix *w3, // f c, or NULL
                                   const real *b3,      // f, or NULL with w3
                                   rf_activation activation,
                                   real *out, // n c
                                   size_t n, size_t c, size_t f, void *scratch);

    /* Numbers as bfloat16, rounded to nearest even, and back. */
    void (*to_bfloat16)(rf_run *run,
                        const real *x, // n
                        uint16_t *out, // n
                        size_t n);
    void (*from_bfloat16)(rf_run *run,
                          const uint16_t *x, // n
                          real *out,         // n
                          size_t n);

    /* y += alpha * x: adds a sublayer to the residual stream, or with alpha = -1 removes it. */
    void (*add_scaled)(rf_run *run,
                       real *y,       // n
                       const real *x, // n
                       double alpha, size_t n);

    /* The same for a y in fewer bits: bfloat16 numbers, which are rounded to nearest even, or fixed
       point, where alpha x is rounded to whole steps, half to even, and the sum is exact. Returns
       the largest size of a sum that does not fit, or 0 if all do; elements that do not fit are
       left as they are. */
    double (*add_rounded)(rf_run *run,
                          void *y, // n, uint16_t, int16_t or int32_t
                          rf_storage storage,
                          const real *x, // n
                          double alpha, size_t n);
    void (*from_fixed_point)(rf_run *run,
                             const void *x, // n, int16_t or int32_t
                             rf_storage storage,
                             real *out, // n
                             size_t n);

    /* Sum of squares of a gradient, in blocks whose number depends only on n. */
    double (*sum_of_squares)(rf_run *run, const real *x, size_t n);

    /* A step of AdamW (Loshchilov and Hutter 2019, algorithm 2), in place; `step` counts from 1. */
    void (*adamw_step)(rf_run *run,
                       real *w,       // n
                       real *m,       // n, first moment
                       real *s,       // n, second moment
                       const real *g, // n
                       double lr, double beta1, double beta2, double eps, double weight_decay,
                       uint64_t step, double grad_scale, size_t n);

    /* One step of Adafactor (Shazeer and Stern 2018, algorithms 4 and 5) on b matrices, in place:
       the second moment is factored into means of rows and of columns, or stored in full in s. */
    size_t (*adafactor_step_workspace)(size_t b, size_t rows, size_t n);
    void (*adafactor_step)(rf_run *run,
                           real *w,       // b rows n
                           const real *g, // b rows n
                           real *row,     // b rows, or NULL
                           real *column,  // b n, or NULL with row
                           real *s,       // b rows n, or NULL where there is row
                           real *m,       // b rows n, running mean of the updates, or NULL
                           double lr, double beta1, double beta2, double eps, double clip_threshold,
                           double weight_decay, size_t b, size_t rows, size_t n, void *scratch);

    /* GFLOP/s of independent fused multiply-adds in registers, on `workers` threads: the peak that
       benchmarks compare with. Runs for about `seconds`. */
    double (*fma_peak)(rf_run *run, double seconds);
} rf_ops;
