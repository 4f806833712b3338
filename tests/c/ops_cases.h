/* ops_cases.h: the tests of one element type. cases_f32.c and cases_f64.c include it, with `real`,
   `rf_ops`, `ops_of` (the table of a core) and `rounding` defined.

   A case draws its inputs and can run itself on a table of ops. In each precision of matrix
   products it runs on the portable core, then on every core with one thread and with three: cores
   must agree within rounding, and results with different numbers of threads to the last bit. */

typedef struct {
    size_t n, ci, co, f, chunk, room, drop; // room, drop: of a bounded cache
    real *in[9];
    int64_t *ids;
    int32_t *buckets, *key_buckets, factors[2];
    uint8_t *mask;
    rf_activation activation;
    rf_storage storage;
    rf_attention a;
    rf_strides strides; // of q, k, v and what belongs to them
    double dropout, smoothing, tolerance;
    int one_product; // results are sums of products of inputs
} problem;

typedef struct {
    void *data[RESULTS];
    size_t n[RESULTS];
    int is_integer;
} results;

typedef void runner(const rf_ops *ops, rf_run *run, const problem *p, results *to);

static real *random_reals(size_t n) {
    real *x = buffer(n * sizeof(real));
    for (size_t i = 0; i < n; i++) x[i] = (real)normal();
    return x;
}

static void *scratch_of(size_t bytes) {
    if (bytes == SIZE_MAX) fail("the workspace of a small size overflows");
    return buffer(bytes);
}

/* A result: NaN, or a copy of what is added to. */
static real *result(results *to, int i, size_t n, const real *start) {
    real *x = to->data[i] = buffer(n * sizeof(real));
    if (start) memcpy(x, start, n * sizeof(real));
    to->n[i] = n;
    return x;
}

static void compare(const real *x, const real *expected, size_t n, double tolerance) {
    double largest = 1, worst = 0; // inputs are about 1: smaller results cancel
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i])) fail("nan: something was not written, or read before it was");
        largest = fmax(largest, fabs((double)expected[i]));
        worst = fmax(worst, fabs((double)x[i] - (double)expected[i]));
    }
    if (worst <= tolerance * largest) return;
    printf("off by %.3g of %.3g\n", worst, largest);
    fail("differs from the portable core");
}

/* How far cores may be apart. Where a product's operand is itself a result, its last bit may decide
   how it is rounded to bfloat16. */
static double tolerance_of(const problem *p, rf_precision precision) {
    static const double rounded[] = {[RF_HIGHEST] = 0, [RF_HIGH] = 1e-4, [RF_MEDIUM] = 2e-2};
    return p->one_product ? p->tolerance : fmax(p->tolerance, rounded[precision]);
}

static void check_precision(const problem *p, runner *run_case, rf_precision precision) {
    results portable = {0};
    size_t last = 0;
    while (rf_core_at(last + 1)) last++;
    rf_run alone = {.workers = 1, .precision = precision};
    rf_run together = {.workers = 3, .precision = precision};
    run_case(ops_of(rf_core_at(last)), &alone, p, &portable);
    for (size_t i = 0; i <= last; i++) {
        results one = {0}, three = {0};
        run_case(ops_of(rf_core_at(i)), &alone, p, &one);
        run_case(ops_of(rf_core_at(i)), &together, p, &three);
        for (int j = 0; j < RESULTS && one.data[j]; j++) {
            const size_t size = one.is_integer ? sizeof(int32_t) : sizeof(real);
            if (memcmp(one.data[j], three.data[j], one.n[j] * size) != 0)
                fail("depends on the number of threads");
            if (!one.is_integer)
                compare(one.data[j], portable.data[j], one.n[j], tolerance_of(p, precision));
            else if (memcmp(one.data[j], portable.data[j], one.n[j] * size) != 0)
                fail("differs from the portable core");
            checks++;
        }
    }
}

static size_t polls_left;

static int stop_when_none_is_left(rf_run *run) {
    if (polls_left == 0) atomic_store(&run->stop, 1);
    polls_left -= polls_left > 0;
    return 0;
}

/* A run that is stopped, early or late, stays within its arrays, whatever its scratch holds. */
static void check_stopping(const problem *p, runner *run_case) {
    const size_t polls = below(below(2) ? 3 : 100);
    for (size_t i = 0; rf_core_at(i); i++)
        for (int workers = 1; workers <= 3; workers += 2) {
            rf_run run = {.workers = workers, .poll = stop_when_none_is_left};
            results unspecified = {0};
            polls_left = polls;
            random_buffers = 1;
            run_case(ops_of(rf_core_at(i)), &run, p, &unspecified);
            random_buffers = 0;
            checks++;
        }
}

static void check_case(const problem *p, runner *run_case) {
    check_stopping(p, run_case);
    check_precision(p, run_case, RF_HIGHEST);
    if (sizeof(real) == 4) {
        check_precision(p, run_case, RF_HIGH);
        check_precision(p, run_case, RF_MEDIUM);
    }
    release();
}

/* ---- rows ---- */

static void run_linear(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t n = p->n, ci = p->ci, co = p->co;
    real *const *in = p->in;
    ops->linear_forward(run, in[0], in[1], in[2], result(to, 0, n * co, NULL), n, ci, co,
                        scratch_of(ops->linear_workspace(run, n, ci, co)));
    real *dx = result(to, 1, n * ci, NULL), *dw = result(to, 2, co * ci, in[4]);
    real *dbias = result(to, 3, co, in[5]);
    ops->linear_backward(run, in[0], in[1], in[3], dx, dw, dbias, n, ci, co,
                         scratch_of(ops->linear_backward_workspace(run, n, ci, co)));
}

static void test_linear(size_t n, size_t ci, size_t co) {
    check_case(&(problem){.n = n,
                          .ci = ci,
                          .co = co,
                          .tolerance = rounding,
                          .one_product = 1,
                          .in = {random_reals(n * ci), random_reals(co * ci), random_reals(co),
                                 random_reals(n * co), random_reals(co * ci), random_reals(co)}},
               run_linear);
}

static void run_layer_norm(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t n = p->n, c = p->ci;
    real *const *in = p->in, *mean = buffer(n * sizeof(real)), *rstd = buffer(n * sizeof(real));
    ops->layer_norm_forward(run, in[0], in[1], in[2], 0.1, result(to, 0, n * c, NULL), mean, rstd,
                            n, c);
    real *dx = result(to, 1, n * c, NULL), *dweight = result(to, 2, c, in[4]);
    real *dbias = result(to, 3, c, in[5]);
    ops->layer_norm_backward(run, in[0], in[1], mean, rstd, in[3], dx, dweight, dbias, n, c,
                             scratch_of(ops->layer_norm_backward_workspace(n, c)));
}

static void test_layer_norm(size_t n, size_t c) {
    check_case(&(problem){.n = n,
                          .ci = c,
                          .tolerance = rounding,
                          .in = {random_reals(n * c), random_reals(c), random_reals(c),
                                 random_reals(n * c), random_reals(c), random_reals(c)}},
               run_layer_norm);
}

static void run_tables(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t n = p->n, v = p->ci, c = p->co;
    real *const *in = p->in;
    ops->embedding_forward(run, p->ids, in[0], result(to, 0, n * c, NULL), n, c);
    ops->embedding_backward(run, p->ids, in[1], result(to, 1, v * c, in[0]), n, c);
    rf_axis axes[] = {
        {.size = v / 6 + 1, .width = c}, {.size = 2, .width = 1}, {.size = 3, .width = 2}};
    for (int a = 0; a < 3; a++) {
        axes[a].w = in[3 + a];
        axes[a].dw = result(to, 3 + a, axes[a].size * axes[a].width, in[3 + a]);
    }
    ops->axial_positions_forward(run, p->ids, axes, result(to, 2, n * (c + 3), NULL), n, 3);
    ops->axial_positions_backward(run, p->ids, in[2], axes, n, 3);
}

static void test_tables(size_t n, size_t v, size_t c) {
    problem p = {.n = n, .ci = v, .co = c, .tolerance = rounding};
    p.ids = buffer(n * sizeof *p.ids);
    for (size_t i = 0; i < n; i++) p.ids[i] = (int64_t)below(v);
    const size_t sizes[] = {v * c, n * c, n * (c + 3), (v / 6 + 1) * c, 2 * 1, 3 * 2};
    for (int i = 0; i < 6; i++) p.in[i] = random_reals(sizes[i]);
    check_case(&p, run_tables);
}

static void run_rotary(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t n = p->n, h = p->ci, d = p->co, size = n * h * d;
    ops->rotary_positions_forward(run, p->in[0], p->ids, 100, result(to, 0, size, NULL), n, h, d);
    ops->rotary_positions_backward(run, p->ids, 100, p->in[1], result(to, 1, size, NULL), n, h, d);
}

static void test_rotary(size_t n, size_t h, size_t d) {
    problem p = {.n = n, .ci = h, .co = d, .tolerance = rounding};
    p.ids = buffer(n * sizeof *p.ids);
    for (size_t i = 0; i < n; i++) p.ids[i] = (int64_t)below(5000);
    for (int i = 0; i < 2; i++) p.in[i] = random_reals(n * h * d);
    check_case(&p, run_rotary);
}

static void run_feed_forward(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t n = p->n, c = p->ci, f = p->f;
    real *const *in = p->in;
    const int gated = in[6] != NULL;
    ops->feed_forward_forward(
        run, in[0], in[1], in[2], in[3], in[4], in[6], in[7], p->activation, p->chunk, p->dropout,
        7, result(to, 0, n * c, NULL), n, c, f,
        scratch_of(ops->feed_forward_workspace(run, n, c, f, gated, p->chunk)));
    real *dx = result(to, 1, n * c, NULL), *dw1 = result(to, 2, f * c, in[1]);
    real *db1 = result(to, 3, f, in[2]), *dw2 = result(to, 4, c * f, in[3]);
    real *db2 = buffer(c * sizeof(real)), *again = result(to, 5, n * c, NULL);
    real *dw3 = gated ? result(to, 6, f * c, in[6]) : NULL;
    real *db3 = gated ? result(to, 7, f, in[7]) : NULL;
    ops->feed_forward_backward(
        run, in[0], in[1], in[2], in[3], in[4], in[6], in[7], p->activation, p->chunk, p->dropout,
        7, in[5], again, dx, dw1, db1, dw2, db2, dw3, db3, n, c, f,
        scratch_of(ops->feed_forward_backward_workspace(run, n, c, f, gated, p->chunk)));
}

static void test_feed_forward(size_t n, size_t c, size_t f, int gated, int activation, size_t chunk,
                              double dropout) {
    problem p = {.n = n, .ci = c, .f = f, .chunk = chunk, .dropout = dropout};
    p.activation = (rf_activation)activation;
    p.tolerance = 10 * rounding;
    const size_t sizes[] = {n * c, f * c, f, c * f, c, n * c, f * c, f};
    for (int i = 0; i < (gated ? 8 : 6); i++) p.in[i] = random_reals(sizes[i]);
    check_case(&p, run_feed_forward);
}

static void run_cross_entropy(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t n = p->n, c = p->ci, v = p->co;
    const size_t bytes = ops->cross_entropy_head_workspace(run, n, c, v, p->chunk);
    real *const *in = p->in;
    double *loss = buffer(2 * sizeof *loss);
    ops->cross_entropy_head_forward(run, in[0], in[1], in[2], p->ids, -100, p->smoothing, p->chunk,
                                    loss, n, c, v, scratch_of(bytes));
    real *rounded = result(to, 0, 2, NULL);
    rounded[0] = (real)loss[0], rounded[1] = (real)loss[1];
    real *dx = result(to, 1, n * c, NULL), *dw = result(to, 2, v * c, in[1]);
    real *dbias = result(to, 3, v, in[2]);
    ops->cross_entropy_head_backward(run, in[0], in[1], in[2], p->ids, -100, p->smoothing, p->chunk,
                                     0.5, dx, dw, dbias, n, c, v, scratch_of(bytes));
}

static void test_cross_entropy(size_t n, size_t c, size_t v, size_t chunk, double smoothing) {
    problem p = {.n = n, .ci = c, .co = v, .chunk = chunk, .tolerance = 10 * rounding};
    p.smoothing = smoothing;
    p.ids = buffer(n * sizeof *p.ids);
    for (size_t i = 0; i < n; i++) p.ids[i] = below(5) ? (int64_t)below(v) : -100;
    const size_t sizes[] = {n * c, v * c, v};
    for (int i = 0; i < 3; i++) p.in[i] = random_reals(sizes[i]);
    check_case(&p, run_cross_entropy);
}

/* Loops over all elements: dropout, residual, optimizer. */
static void run_elements(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t n = p->n;
    real *const *in = p->in;
    ops->dropout(run, in[0], p->dropout, 3, result(to, 0, n, NULL), n);
    real *w = result(to, 1, n, in[0]), *m = result(to, 2, n, in[1]);
    real *s = result(to, 3, n, in[2]);
    for (size_t i = 0; i < n; i++) s[i] *= s[i];
    ops->add_scaled(run, w, in[3], -0.5, n);
    ops->adamw_step(run, w, m, s, in[3], 0.01, 0.9, 0.999, 1e-6, 0.1, 2, 0.5, n);
    result(to, 4, 1, NULL)[0] = (real)ops->sum_of_squares(run, in[0], n);
    int16_t *y16 = buffer(n * sizeof *y16);
    int32_t *y32 = buffer(n * sizeof *y32);
    memset(y16, 0, n * sizeof *y16);
    memset(y32, 0, n * sizeof *y32);
    ops->add_rounded(run, y16, RF_INT16, in[0], 8, n);
    ops->add_rounded(run, y32, RF_INT32, in[1], 8, n);
    ops->from_fixed_point(run, y16, RF_INT16, result(to, 5, n, NULL), n);
    ops->from_fixed_point(run, y32, RF_INT32, result(to, 6, n, NULL), n);
}

static void test_elements(size_t n, double dropout) {
    check_case(
        &(problem){.n = n,
                   .dropout = dropout,
                   .tolerance = rounding,
                   .in = {random_reals(n), random_reals(n), random_reals(n), random_reals(n)}},
        run_elements);
}

/* Adafactor, with rows and columns and then without. */
static void run_adafactor(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t b = p->n, rows = p->ci, n = p->co, size = b * rows * n;
    real *const *in = p->in;
    real *w = result(to, 0, size, in[0]), *m = result(to, 1, size, in[1]);
    real *row = result(to, 2, b * rows, in[2]), *column = result(to, 3, b * n, in[3]);
    real *s = result(to, 4, size, in[4]);
    for (size_t i = 0; i < b * rows; i++) row[i] *= row[i];
    for (size_t i = 0; i < b * n; i++) column[i] *= column[i];
    for (size_t i = 0; i < size; i++) s[i] *= s[i];
    const size_t bytes = ops->adafactor_step_workspace(b, rows, n);
    ops->adafactor_step(run, w, in[5], row, column, NULL, m, 0.01, 0.9, 0.9, 1e-3, 1, 0.1, b, rows,
                        n, scratch_of(bytes));
    ops->adafactor_step(run, w, in[5], NULL, NULL, s, NULL, 0.01, 0, 0.9, 1e-3, 1e3, 0, b, rows, n,
                        scratch_of(bytes));
}

static void test_adafactor(size_t b, size_t rows, size_t n) {
    problem p = {.n = b, .ci = rows, .co = n, .tolerance = 10 * rounding};
    const size_t sizes[] = {b * rows * n, b * rows * n, b * rows,
                            b * n,        b * rows * n, b * rows * n};
    for (int i = 0; i < 6; i++) p.in[i] = random_reals(sizes[i]);
    check_case(&p, run_adafactor);
}

/* ---- attention ---- */

static void run_hash(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const rf_attention *a = &p->a;
    to->is_integer = 1;
    to->n[0] = a->b * a->h * a->r * a->t;
    to->data[0] = buffer(to->n[0] * sizeof(int32_t));
    ops->lsh_hash(run, a, p->in[0], p->strides, p->factors, 2, p->in[1], p->mask, to->data[0],
                  scratch_of(ops->lsh_hash_workspace(run, a, p->factors, 2)));
}

static void run_attention(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const rf_attention *a = &p->a;
    const rf_strides s = p->strides, sk = {a->hk * a->tk * a->d, a->tk * a->d, a->d};
    const size_t nq = a->b * a->h * a->t * a->d, nk = a->b * a->hk * a->tk * a->d;
    real *const *in = p->in, *k = a->shared_qk ? NULL : in[1];
    real *lse = buffer(a->b * a->h * a->t * sizeof(real));
    real *out = result(to, 0, nq, NULL), *log_sums = buffer(a->b * a->h * a->t * sizeof(real));
    ops->attention_forward(run, a, in[0], k, in[2], p->mask, p->buckets, p->key_buckets, out, lse,
                           log_sums, s, sk, sk, s, scratch_of(ops->attention_workspace(run, a)));
    real *dq = result(to, 1, nq, NULL), *dv = result(to, 2, nk, NULL);
    real *dk = k ? result(to, 3, nk, NULL) : NULL;
    ops->attention_backward(run, a, in[0], k, in[2], p->mask, p->buckets, p->key_buckets, out, lse,
                            in[3], dq, dk, dv, s, sk, sk, s, s, s, sk, sk,
                            scratch_of(ops->attention_backward_workspace(run, a)));
}

static void test_attention(rf_attention a) {
    problem p = {.a = a, .tolerance = 100 * rounding};
    const size_t nq = a.b * a.h * a.t * a.d, nk = a.b * a.hk * a.tk * a.d;
    // (b, t, h, d) in memory, seen as (b, h, t, d)
    p.strides = (rf_strides){(ptrdiff_t)(a.t * a.h * a.d), (ptrdiff_t)a.d, (ptrdiff_t)(a.h * a.d)};
    const size_t sizes[] = {nq, nk, nk, nq};
    for (int i = 0; i < 4; i++) p.in[i] = random_reals(sizes[i]);
    if (below(2)) {
        p.mask = buffer(a.b * a.tk);
        for (size_t i = 0; i < a.b * a.tk; i++) p.mask[i] = below(4) != 0;
        // every text begins with a real token: rows that see nothing weigh rounding errors of -1e9
        for (size_t i = 0; i < a.b && a.tk; i++) p.mask[i * a.tk] = p.mask[i * a.tk + a.tk / 2] = 1;
    }
    if (a.scope == RF_CHUNK || a.scope == RF_BUCKET) {
        const size_t n = a.b * a.h * a.r * a.t;
        p.buckets = buffer(n * sizeof *p.buckets);
        for (size_t i = 0; i < n; i++) p.buckets[i] = (int32_t)below(a.k);
        const size_t nk = a.separate ? a.b * a.h * a.r * a.tk : 0;
        p.key_buckets = nk ? buffer(nk * sizeof *p.key_buckets) : NULL;
        for (size_t i = 0; i < nk; i++) p.key_buckets[i] = (int32_t)below(a.k);
    }
    // a query alone with itself scores -1e5, where an ulp of float is 1/128
    if (a.shared_qk || a.scope == RF_LOCAL || a.causal)
        p.tolerance = sizeof(real) == 4 ? 0.05 : 1e-8;
    check_case(&p, run_attention);
}

static void test_hash(size_t b, size_t h, size_t t, size_t d, size_t r, int f0, int f1) {
    problem p = {.a = {.scope = RF_CHUNK, .b = b, .h = h, .t = t, .d = d, .tk = t, .r = r}};
    p.factors[0] = f0, p.factors[1] = f1;
    p.a.k = (size_t)f0 * (size_t)f1;
    p.strides = (rf_strides){(ptrdiff_t)(t * h * d), (ptrdiff_t)d, (ptrdiff_t)(h * d)};
    p.in[0] = random_reals(b * h * t * d);
    p.in[1] = random_reals(h * d * r * (size_t)(f0 + f1) / 2);
    // whole numbers: every order of the sum gives the same, so that the cores agree exactly
    for (size_t i = 0; i < b * h * t * d; i++) p.in[0][i] = (real)((int)below(9) - 4);
    for (size_t i = 0; i < h * d * r * (size_t)(f0 + f1) / 2; i++)
        p.in[1][i] = (real)((int)below(9) - 4);
    p.mask = buffer(b * t);
    for (size_t i = 0; i < b * t; i++) p.mask[i] = below(3) != 0;
    check_case(&p, run_hash);
}

/* Weights in each storage, with every real, bfloat16 number and byte that they may hold. */
static rf_matrix stored(rf_storage storage, const real *w, size_t rows, size_t columns) {
    rf_matrix m = {w, NULL, storage};
    if (storage == RF_REALS) return m;
    const size_t n = rows * columns;
    uint16_t *halves = buffer(n * sizeof *halves);
    int8_t *bytes = buffer(n);
    real *scale = buffer(rows * sizeof *scale);
    for (size_t i = 0; i < n; i++) {
        const float x = (float)w[i];
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        halves[i] = (uint16_t)(bits >> 16);
        bytes[i] = (int8_t)(w[i] * 30);
    }
    for (size_t i = 0; i < rows; i++) scale[i] = (real)(1 + i % 3) / 30;
    m.data = storage == RF_INT8 ? (void *)bytes : (void *)halves;
    m.scale = storage == RF_INT8 ? scale : NULL;
    return m;
}

static void run_quantized(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const size_t n = p->n, c = p->ci, f = p->f;
    real *const *in = p->in;
    const rf_matrix w1 = stored(p->storage, in[1], f, c), w2 = stored(p->storage, in[3], c, f);
    const rf_matrix w3 = stored(p->storage, in[5], f, c);
    ops->quantized_linear(run, in[0], &w1, in[2], result(to, 0, n * f, NULL), n, c, f);
    ops->quantized_linear(run, in[0], &w1, NULL, result(to, 1, n * f, NULL), n, c, f);
    for (int gated = 0; gated < 2; gated++)
        ops->quantized_feed_forward(run, in[0], &w1, in[2], &w2, in[4], gated ? &w3 : NULL, in[2],
                                    p->activation, result(to, 2 + gated, n * c, NULL), n, c, f,
                                    scratch_of(ops->quantized_feed_forward_workspace(n, f, gated)));
}

static void test_quantized(size_t n, size_t c, size_t f, rf_activation activation) {
    for (int storage = RF_REALS; storage <= RF_INT8; storage++) {
        problem p = {.n = n,
                     .ci = c,
                     .f = f,
                     .activation = activation,
                     .storage = (rf_storage)storage,
                     .tolerance = 10 * rounding};
        const size_t sizes[] = {n * c, f * c, f, c * f, c, f * c};
        for (int i = 0; i < 6; i++) p.in[i] = random_reals(sizes[i]);
        check_case(&p, run_quantized);
    }
}

/* t tokens of b texts, one after another. */
static void run_decode(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const rf_attention *of = &p->a;
    const size_t n = of->b, c = p->ci, h = of->h, d = of->d, columns = 1 + of->k / 4;
    const int local = of->scope == RF_LOCAL, hashes = of->scope >= RF_CHUNK;
    const size_t s = local ? (of->before + 1) * of->m : p->drop ? p->room : of->t;
    const rf_decoding a = {.scope = of->scope,
                           .n = n,
                           .c = c,
                           .h = h,
                           .hk = of->hk,
                           .d = d,
                           .b = n,
                           .s = s,
                           .drop = local ? 0 : p->drop,
                           .r = of->r,
                           .k = of->k,
                           .m = of->m,
                           .before = of->before,
                           .cap = of->cap,
                           .shared_qk = of->shared_qk,
                           .across_buckets = of->across_buckets,
                           .duplicates = of->duplicates,
                           .scale = 0.3,
                           .softcap = of->softcap,
                           .eps = 1e-6,
                           .theta = local && h > 1 ? 100 : 0,
                           .storage = p->storage == RF_BFLOAT16 ? RF_BFLOAT16 : RF_REALS};
    const size_t lists = n * h * of->r;
    real *y = result(to, 0, n * c, p->in[0]);
    real *keys = buffer(n * h * s * d * sizeof *keys),
         *values = buffer(n * h * s * d * sizeof *keys);
    int32_t *buckets = buffer(lists * of->k * 2 * sizeof *buckets);
    int32_t *previous = buffer(lists * s * sizeof *previous);
    for (size_t i = 0; i < lists * of->k; i++) buckets[2 * i] = -1, buckets[2 * i + 1] = 0;
    int64_t *rows = buffer(n * sizeof *rows), *positions = buffer(n * sizeof *positions);
    real *const *in = p->in;
    const rf_matrix wq = stored(p->storage, in[4], h * d, c),
                    wk = stored(p->storage, in[5], of->hk * d, c);
    const rf_matrix wv = stored(p->storage, in[6], of->hk * d, c),
                    wo = stored(p->storage, in[7], c, h * d);
    void *scratch = scratch_of(ops->decode_attention_workspace(run, &a, columns));
    for (size_t t = 0; t < of->t; t++) {
        for (size_t i = 0; i < n; i++) rows[i] = (int64_t)(n - 1 - i), positions[i] = (int64_t)t;
        ops->decode_attention(run, &a, in[1] + t * n * c, in[2], in[3], &wq,
                              a.shared_qk ? NULL : &wk, &wv, &wo, p->factors, 2,
                              hashes ? in[8] : NULL, keys, values, hashes ? buckets : NULL,
                              hashes ? previous : NULL, rows, positions, y, columns, scratch);
    }
}

static void test_decode(rf_attention a, size_t c) {
    problem p = {.a = a, .ci = c, .tolerance = sizeof(real) == 4 ? 0.05 : 1e-8};
    const size_t width = a.h * a.d;
    p.factors[0] = 2, p.factors[1] = (int32_t)a.k / 2;
    p.room = 1 + below(40), p.drop = below(2) ? 1 + below((uint32_t)p.room) : 0;
    const size_t sizes[] = {a.b * c,   a.t * a.b * c, c,
                            c,         width * c,     width * c,
                            width * c, c * width,     width * a.r * (1 + a.k / 4)};
    for (int storage = RF_REALS; storage <= RF_INT8; storage++) {
        p.storage = (rf_storage)storage;
        for (int i = 0; i < 9; i++) p.in[i] = random_reals(sizes[i]);
        check_case(&p, run_decode);
    }
}

/* The newest p->n of p->a.t tokens, by an index whose lists hold the real ones. */
static void run_index(const rf_ops *ops, rf_run *run, const problem *p, results *to) {
    const rf_attention *a = &p->a;
    const size_t lists = a->b * a->hk * a->r, s = p->room, queries = a->b * a->h * p->n;
    int32_t *newest = buffer(lists * a->k * sizeof *newest);
    int32_t *previous = buffer(lists * s * sizeof *previous);
    for (size_t i = 0; i < lists; i++) {
        for (size_t j = 0; j < a->k; j++) newest[i * a->k + j] = -1;
        for (size_t t = 0; t < a->t; t++) {
            int32_t *of = newest + i * a->k + (t * t + i) % a->k;
            if (!p->mask[i / (a->hk * a->r) * s + t]) continue;
            previous[i * s + t] = *of;
            *of = (int32_t)t;
        }
    }
    int32_t *found = buffer(queries * sizeof *found);
    ops->index_attention(run, p->in[0], p->in[1], p->in[2], p->chunk ? p->mask : NULL, newest,
                         previous, p->ids, a->t, p->ci, p->co, a->softcap,
                         result(to, 0, queries * a->d, NULL), result(to, 1, queries, NULL), found,
                         a->b, a->h, a->hk, p->n, a->d, s, a->r, a->k,
                         scratch_of(ops->index_attention_workspace(run, s)));
}

static void test_index(rf_attention a) {
    problem p = {.a = a, .tolerance = 20 * rounding};
    p.n = below(a.t + 1), p.room = a.t + below(9), p.chunk = below(2);
    p.ci = below(20), p.co = below(4); // window and sinks
    p.mask = buffer(a.b * p.room);
    for (size_t i = 0; i < a.b * p.room; i++)
        p.mask[i] = below(3) != 0 || i % p.room + p.n >= a.t; // queries see themselves
    p.ids = buffer(a.b * a.h * a.r * p.n * sizeof *p.ids);
    for (size_t i = 0; i < a.b * a.h * a.r * p.n; i++) p.ids[i] = (int64_t)below(a.k);
    p.in[0] = random_reals(a.b * a.h * p.n * a.d);
    p.in[1] = random_reals(a.b * a.hk * p.room * a.d);
    p.in[2] = random_reals(a.b * a.hk * p.room * a.d);
    check_case(&p, run_index);
}

static void test_all(void) {
    static const size_t edges[] = {0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129};
    enum { EDGES = sizeof edges / sizeof *edges };
    for (int i = 0; i < EDGES; i++)
        for (int j = 0; j < 3; j++) {
            const size_t size[3] = {[0] = j == 0 ? edges[i] : 5,
                                    [1] = j == 1 ? edges[i] : 6,
                                    [2] = j == 2 ? edges[i] : 7};
            what = "linear";
            test_linear(size[0], size[1], size[2]);
            what = "layer norm";
            if (size[1]) test_layer_norm(size[0], size[1]);
            what = "embedding and axial positions";
            if (size[1]) test_tables(size[0], size[1], size[2]);
            what = "rotary positions";
            test_rotary(size[0], size[1], size[2]);
            what = "feed-forward";
            // each draw in a statement of its own: all compilers then test the same cases
            const size_t chunk = below(9);
            const double dropout = below(2) * 0.3;
            const int gated = (int)below(2);
            test_feed_forward(size[0], size[1], size[2], gated, i % (RF_SQRTSOFTPLUS + 1), chunk,
                              dropout);
            what = "quantized layers";
            test_quantized(size[0], size[1], size[2], i % (RF_SQRTSOFTPLUS + 1));
            what = "cross-entropy";
            if (size[2]) test_cross_entropy(size[0], size[1], size[2], below(9), 0.1);
            what = "LSH hash";
            const size_t b = 1 + below(2), h = 1 + below(2), rounds = 1 + below(3);
            test_hash(b, h, size[0], size[1], rounds, 2 + 2 * (int)below(9),
                      2 + 2 * (int)(size[2] / 2));
        }
    what = "many rows";
    test_linear(1000, 48, 40);
    test_layer_norm(3000, 40);
    test_tables(4000, 50, 33);
    test_rotary(1000, 3, 70);
    for (int gated = 0; gated < 2; gated++)
        test_feed_forward(300, 40, 130, gated, RF_GELU, 37, 0.2);
    test_cross_entropy(300, 40, 130, 37, 0);
    test_cross_entropy(300, 40, 130, 37, 0.1);
    what = "elements";
    for (int i = 0; i < EDGES; i++) test_elements(edges[i], below(2) * 0.4);
    test_elements(100001, 0.3);
    what = "Adafactor";
    for (int i = 0; i < 3 * EDGES; i++)
        test_adafactor(i % 3, i % 3 ? edges[i / 3] : 5, i % 3 == 1 ? 3 : edges[i / 3]);
    test_adafactor(3, 50, 2100);

    what = "decoding";
    for (int i = 0; i < 80; i++) {
        rf_attention a = {.scope = (rf_scope)(i % 4)};
        a.shared_qk = a.scope >= RF_CHUNK || below(2);
        a.b = below(4), a.hk = 1 + below(2), a.h = a.hk * (1 + below(2));
        a.t = edges[below(EDGES)], a.d = 1 + edges[below(12)];
        a.r = 1 + below(3), a.k = 4 * (1 + below(4)), a.m = 1 + below(20), a.before = below(3);
        a.cap = a.scope == RF_BUCKET && below(2) ? 1 + below(20) : 0;
        a.across_buckets = (int)below(2), a.duplicates = (int)below(2);
        test_decode(a, 1 + below(20));
    }
    what = "an index of keys";
    for (int i = 0; i < 80; i++) {
        rf_attention a = {.b = below(4), .hk = 1 + below(2)};
        a.h = a.hk * (1 + below(3)), a.t = edges[below(EDGES)], a.d = 1 + edges[below(12)];
        a.r = 1 + below(3), a.k = 1 + below(9), a.softcap = below(3) ? 0 : 0.7;
        test_index(a);
    }

    for (int i = 0; i < 400; i++) {
        rf_attention a = {.scope = (rf_scope)(i % 4)};
        a.b = below(3), a.hk = below(3), a.h = a.hk * (1 + below(3));
        a.t = edges[below(EDGES)];
        a.d = 1 + edges[below(12)];
        a.shared_qk = (a.scope >= RF_CHUNK && below(3)) || below(2);
        a.separate = a.scope >= RF_CHUNK && !a.shared_qk;
        a.tk = a.separate || (a.scope == RF_FULL && !a.shared_qk) ? edges[below(EDGES)] : a.t;
        a.window = a.scope >= RF_CHUNK && below(2) ? 1 + below(100) : 0;
        a.r = 1 + below(3), a.k = 1 + below(9), a.m = 1 + below(i % 3 ? 12 : 70);
        a.before = below(4), a.after = below(3);
        a.causal = below(2) && (a.tk == a.t || a.separate);
        a.wrap = (int)below(2), a.across_buckets = (int)below(2), a.duplicates = (int)below(2);
        if (a.scope == RF_FULL || a.scope == RF_LOCAL) a.across_buckets = a.duplicates = 1;
        a.cap = a.scope == RF_BUCKET && !a.separate && below(2) ? 64 : 0;
        a.scale = 0.3, a.softcap = below(4) ? 0 : 0.7, a.dropout = below(3) ? 0 : 0.3,
        a.key = draw();
        static char text[200];
        snprintf(
            text, sizeof text,
            "attention %d: scope %d, b %zu h %zu t %zu tk %zu d %zu r %zu k %zu m %zu -%zu +%zu "
            "causal %d shared %d wrap %d across %d duplicates %d softcap %g dropout %g window %zu",
            i, (int)a.scope, a.b, a.h, a.t, a.tk, a.d, a.r, a.k, a.m, a.before, a.after, a.causal,
            a.shared_qk, a.wrap, a.across_buckets, a.duplicates, a.softcap, a.dropout, a.window);
        what = text;
        test_attention(a);
    }
}
