"""matmul_precision: products of operands rounded to bfloat16, on every instruction set."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np
import pytest
from attention_cases import MASKS, mask_of, normal
from reference import attention as reference
from reference.bfloat16 import product, rounded
from reference.cross_entropy import cross_entropy_head
from reference.feed_forward import feed_forward
from tolerances import assert_all_close, assert_close

import reformer_c as rc
from reformer_c import _core, ops
from reformer_c.ops.machine import layer_scratch

PRECISIONS = ["highest", "high", "medium"]
ROUNDED = PRECISIONS[1:]
# around the hardware's tiles of 16 and 32 rows and columns, and 32 steps
EDGES = [8, 15, 16, 17, 31, 32, 33, 65]


@pytest.fixture(autouse=True)
def as_before():
    yield
    rc.set_matmul_precision("highest")


# ---- results ----


def test_the_reference_rounds_as_it_says():
    x = np.array([1.0, 1 + 2**-8, 1 + 2**-7, 1 + 3 * 2**-8, -1e-3, np.inf, np.nan], np.float32)
    expected = [1.0, 1.0, 1 + 2**-7, 1 + 2**-6, -0.00099945068359375, np.inf, np.nan]
    np.testing.assert_array_equal(rounded(x), np.float32(expected))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("edge", [*EDGES, 600])
def test_linear_multiplies_rounded_numbers(isa, rng, precision, axis, edge):
    n, ci, co = np.where(np.arange(3) == axis, edge, [12, 40, 20])
    x, w, dy = (normal(rng, np.float32, *s) for s in [(n, ci), (co, ci), (n, co)])
    y, saved = ops.linear_forward(x, w, matmul_precision=precision)
    assert_close(y, product(x, w.T, precision), "forward")
    expected = product(dy, w, precision), product(dy.T, x, precision), None
    assert_all_close(ops.linear_backward(dy, saved), expected, "backward")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_rows_and_columns(isa, rng, precision):
    x, w, dy = (normal(rng, np.float32, *s) for s in [(2100, 530), (1100, 530), (2100, 1100)])
    y, saved = ops.linear_forward(x, w, matmul_precision=precision)
    assert_close(y, product(x, w.T, precision), "forward")
    expected = product(dy, w, precision), product(dy.T, x, precision), None
    assert_all_close(ops.linear_backward(dy, saved), expected, "backward")


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("n", [0, 8, 40, 200])
@pytest.mark.parametrize("f", [8, 33, 300])
def test_feed_forward_is_near_the_reference(isa, rng, precision, n, f):
    x, w1, b1, w2, b2 = (
        normal(rng, np.float32, *s) for s in [(n, 24), (f, 24), (f,), (24, f), (24,)]
    )
    smooth = {"activation": "gelu"}  # rounding may change the sign of a unit of relu
    y, saved = ops.feed_forward_forward(x, w1, b1, w2, b2, matmul_precision=precision, **smooth)
    assert_close(y, feed_forward(x, w1, b1, w2, b2, **smooth), precision)
    dy = normal(rng, np.float32, n, 24)
    exact = ops.feed_forward_forward(*(np.float64(a) for a in (x, w1, b1, w2, b2)), **smooth)[1]
    expected = ops.feed_forward_backward(np.float64(dy), exact)
    again = np.empty_like(y)
    assert_all_close(ops.feed_forward_backward(dy, saved, value_out=again), expected, precision)
    assert again.tobytes() == y.tobytes()  # what a reversible layer subtracts


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("n", "chunk"), [(5000, 0), (64, 1), (203, 31)])
def test_the_backward_pass_has_the_bits_of_the_forward_pass(isa, rng, precision, n, chunk):
    """However rows are cut into tasks and chunks: a reversible layer subtracts what was added."""
    x, w1, b1, w2, b2 = (
        normal(rng, np.float32, *s) for s in [(n, 24), (300, 24), (300,), (24, 300), (24,)]
    )
    y, saved = ops.feed_forward_forward(
        x, w1, b1, w2, b2, chunk_length=chunk, matmul_precision=precision
    )
    again = np.empty_like(y)
    ops.feed_forward_backward(y, saved, value_out=again)
    assert again.tobytes() == y.tobytes()


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("v", [5, 300])
def test_the_loss_is_near_the_reference(isa, rng, precision, v):
    h, w, bias = (normal(rng, np.float32, *s) for s in [(50, 24), (v, 24), (v,)])
    labels = rng.integers(0, v, 50)
    loss, saved = ops.cross_entropy_head_forward(h, w, bias, labels, matmul_precision=precision)
    expected, *_ = np.atleast_1d(cross_entropy_head(h, w, bias, labels))
    assert_close(np.float32(loss), np.float32(expected), precision)
    exact = ops.cross_entropy_head_forward(*(np.float64(a) for a in (h, w, bias)), labels)[1]
    expected = ops.cross_entropy_head_backward(1.0, exact)
    assert_all_close(ops.cross_entropy_head_backward(1.0, saved), expected, precision)


def attend(kind, rng, t, d, mask, options):
    """(forward, backward, reference) of an attention with its inputs."""
    q, k, v, dout = (normal(rng, np.float32, 2, 2, t, d) for _ in range(4))
    options = options | {"attention_mask": mask}
    if kind == "lsh":
        buckets = rng.integers(0, 4, (2, 2, 2, t)).astype(np.int32)
        return (
            lambda **more: ops.lsh_attention_forward(
                q, v, num_hashes=2, buckets=buckets, **options, **more
            ),
            lambda saved: ops.lsh_attention_backward(dout, saved),
            lambda: reference.lsh(q, buckets, **options), v, dout,
        )  # fmt: skip
    kind, _, shared = kind.partition(", ")
    op, back = (getattr(ops, f"{kind}_attention_{way}") for way in ("forward", "backward"))
    k = None if shared else k
    return (
        lambda **more: op(q, k, v, shared_qk=bool(shared), **options, **more),
        lambda saved: [g for g in back(dout, saved) if g is not None],
        lambda: getattr(reference, kind)(q, k, **options), v, dout,
    )  # fmt: skip


KINDS = [
    ("full", {"is_causal": True}),
    ("full", {"softcap": 0.8}),
    ("local", {"chunk_length": 16, "num_chunks_after": 1}),
    ("local", {"chunk_length": 70, "is_causal": True}),
    ("local, shared", {"chunk_length": 16, "is_causal": True}),
    ("lsh", {"chunk_length": 16, "is_causal": True}),
    ("lsh", {"scope": "bucket", "allow_duplicate_attention": False}),
]


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
@pytest.mark.parametrize(("t", "d"), [(0, 8), (1, 8), (37, 8), (100, 40), (130, 70)])
@pytest.mark.parametrize("mask_kind", ["no mask", "some"])
def test_attention_is_near_the_reference(isa, rng, precision, kind, options, t, d, mask_kind):
    assert mask_kind in MASKS
    mask = mask_of(mask_kind, 2, t, rng)
    forward, backward, expected, v, dout = attend(kind, rng, t, d, mask, options)
    out, saved = forward(matmul_precision=precision)
    assert saved.spec.matmul_precision == precision
    exact = expected()
    gradients = exact.gradients(v, dout)
    # weights of a row that sees only itself change with an ulp of -1e5
    alone = "self_only" if kind in ("lsh", "local, shared") and precision == "high" else precision
    assert_close(out, exact.output(v), alone)
    scale = max(np.abs(g).max(initial=0) for g in gradients)
    for actual, wanted in zip(backward(saved), gradients, strict=True):
        assert_close(actual, wanted, alone, scale=scale)


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_more_terms_are_nearer(isa, rng, kind, options):
    forward, backward, expected, v, dout = attend(kind, rng, 100, 40, None, options)
    exact = expected().gradients(v, dout)
    errors = []
    for precision in PRECISIONS:
        gradients = backward(forward(matmul_precision=precision)[1])
        errors.append([np.abs(a - e).max() for a, e in zip(gradients, exact, strict=True)])
    highest, high, medium = np.array(errors)
    assert (high < medium / 20).all() and (highest < medium / 20).all()


def test_a_value_that_is_not_finite_reaches_those_who_see_it(isa, rng):
    q, k, v = (normal(rng, np.float32, 1, 1, 100, 16) for _ in range(3))
    v[0, 0, 60] = np.nan
    for precision in ROUNDED:
        out = ops.local_attention(
            q, k, v, chunk_length=16, is_causal=True, matmul_precision=precision
        )
        seen = np.isnan(out[0, 0]).all(axis=-1)
        assert np.flatnonzero(seen).tolist() == list(range(60, 80))
        assert np.isfinite(out[0, 0, ~seen]).all()


# ---- what is not rounded ----


def test_float64_and_few_rows_are_never_rounded(isa, rng):
    for dtype, n in [(np.float64, 40), (np.float32, 7)]:
        x, w = normal(rng, dtype, n, 24), normal(rng, dtype, 30, 24)
        expected = ops.linear(x, w)
        for precision in ROUNDED:
            assert ops.linear(x, w, matmul_precision=precision).tobytes() == expected.tobytes()


def test_buckets_do_not_depend_on_it(isa, rng):
    qk, v = (normal(rng, np.float32, 2, 2, 300, 24) for _ in range(2))
    found = [
        ops.lsh_attention_forward(qk, v, num_hashes=3, rng=1, matmul_precision=p)[1].buckets
        for p in PRECISIONS
    ]
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


# ---- choosing a precision ----


def test_the_setting_the_block_and_the_call(rng):
    x, w = normal(rng, np.float32, 20, 24), normal(rng, np.float32, 30, 24)
    by_call = {p: ops.linear(x, w, matmul_precision=p).tobytes() for p in PRECISIONS}
    assert len(set(by_call.values())) == 3
    assert ops.linear(x, w).tobytes() == by_call["highest"]
    rc.set_matmul_precision("high")
    assert ops.linear(x, w).tobytes() == by_call["high"]
    with rc.matmul_precision("medium"):
        assert rc.get_matmul_precision() == "medium"
        assert ops.linear(x, w).tobytes() == by_call["medium"]
        assert ops.linear(x, w, matmul_precision="highest").tobytes() == by_call["highest"]
        with rc.matmul_precision("highest"), rc.matmul_precision(None):
            assert ops.linear(x, w).tobytes() == by_call["highest"]
    assert rc.get_matmul_precision() == "high"


def test_a_block_is_of_its_thread_alone():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # a thread that the block did not start
        with rc.matmul_precision("medium"):
            assert pool.submit(rc.get_matmul_precision).result() == "highest"
            inherited = copy_context().run
            assert pool.submit(inherited, rc.get_matmul_precision).result() == "medium"


@pytest.mark.parametrize("op", ["linear", "feed_forward", "cross_entropy_head", "local_attention"])
def test_a_backward_has_the_precision_of_its_forward(rng, op):
    inputs = {
        "linear": [(20, 24), (30, 24)],
        "feed_forward": [(20, 24), (30, 24), (30,), (24, 30), (24,)],
        "cross_entropy_head": [(20, 24), (30, 24), (30,)],
        "local_attention": [(2, 2, 80, 24)] * 3,
    }[op]
    arrays = [normal(rng, np.float32, *shape) for shape in inputs]
    if op == "cross_entropy_head":
        arrays.append(rng.integers(0, 30, 20))
    forward, backward = (getattr(ops, f"{op}_{way}") for way in ("forward", "backward"))
    out, saved = forward(*arrays, matmul_precision="medium")
    dout = 1.0 if op == "cross_entropy_head" else np.ones_like(out)
    gradients = backward(dout, saved)
    with rc.matmul_precision("highest"):
        again = backward(dout, saved)
    for a, b in zip(gradients, again, strict=True):
        assert (a is None and b is None) or a.tobytes() == b.tobytes()


@pytest.mark.parametrize("wrong", ["low", "HIGH", "", 3, b"high"])
def test_what_is_no_precision_is_named(wrong):
    x, w = np.ones((9, 4), np.float32), np.ones((5, 4), np.float32)
    expected = "precision must be 'highest', 'high' or 'medium', got"
    with pytest.raises(ValueError, match=expected):
        rc.set_matmul_precision(wrong)
    with pytest.raises(ValueError, match=expected), rc.matmul_precision(wrong):
        pass
    for call in (
        lambda: ops.linear(x, w, matmul_precision=wrong),
        lambda: ops.full_attention(x, x, x, matmul_precision=wrong),
        lambda: rc.ReformerConfig(matmul_precision=wrong),
    ):
        with pytest.raises((ValueError, TypeError), match="matmul_precision"):
            call()
    assert rc.get_matmul_precision() == "highest"


def test_scratch_is_that_of_the_precision():
    """What a plan counts: rounded operands are smaller than float32 ones where they are stored as
    bfloat16, and two terms take twice as much."""
    bytes_of = {
        p: layer_scratch("linear", 4096, 2048, 2048, matmul_precision=p, workers=1)[0]
        for p in PRECISIONS
    }
    assert bytes_of["medium"] < bytes_of["high"]
    if _core.isa() in ("amx", "avx512_bf16"):
        assert bytes_of["medium"] < bytes_of["highest"]
