"""The promises that every op makes alike: pairs, out=, workers, layouts, untouched inputs."""

import numpy as np
import pytest
from attention_cases import buckets_of, normal

from reformer_c import ops

ATTENTION_MASK = np.array([[1] * 150 + [0] * 10, [0] * 3 + [1] * 157])
BUCKETS = buckets_of("random", (2, 2, 2, 160), 6, ATTENTION_MASK, np.random.default_rng(0))
LSH = {"num_hashes": 2, "num_buckets": 6, "buckets": BUCKETS, "attention_mask": ATTENTION_MASK}
DROP = {"dropout": 0.2, "dropout_key": 3}


def rows(rng, dtype):
    return normal(rng, dtype, 2, 150, 48)


def heads(count):
    return lambda rng, dtype: [normal(rng, dtype, 2, 2, 160, 24) for _ in range(count)]


def feed_forward(rng, dtype):
    return [rows(rng, dtype), *(normal(rng, dtype, *s) for s in [(70, 48), (70,), (48, 70), (48,)])]


def cross_entropy(rng, dtype):
    return [rows(rng, dtype), normal(rng, dtype, 90, 48), normal(rng, dtype, 90),
            rng.integers(0, 90, (2, 150))]  # fmt: skip


# name: (op, its arguments, its options), large enough for several threads to share
CALLS = {
    "linear": (
        "linear",
        lambda rng, t: [rows(rng, t), normal(rng, t, 70, 48), normal(rng, t, 70)],
        {},
    ),
    "linear, medium": (
        "linear",
        lambda rng, t: [rows(rng, t), normal(rng, t, 70, 48), normal(rng, t, 70)],
        {"matmul_precision": "medium"},
    ),
    "layer_norm": (
        "layer_norm",
        lambda rng, t: [normal(rng, t, 2, 3000, 48), normal(rng, t, 48), normal(rng, t, 48)],
        {},
    ),
    "embedding": (
        "embedding",
        lambda rng, t: [rng.integers(0, 50, (2, 5000)), normal(rng, t, 50, 33)],
        {},
    ),
    "axial_positions": (
        "axial_positions",
        lambda rng, t: [
            rng.integers(0, 60, (2, 5000)),
            normal(rng, t, 6, 20),
            normal(rng, t, 10, 13),
        ],
        {},
    ),
    "dropout": ("dropout", lambda rng, t: [normal(rng, t, 300, 1000)], {"p": 0.2, "key": 3}),
    "feed_forward": ("feed_forward", feed_forward, {}),
    "feed_forward, chunks, dropout": (
        "feed_forward",
        feed_forward,
        dict(activation="gelu", chunk_length=37, **DROP),
    ),
    "feed_forward, medium": ("feed_forward", feed_forward, {"matmul_precision": "medium"}),
    "cross_entropy_head, high": (
        "cross_entropy_head",
        cross_entropy,
        {"matmul_precision": "high"},
    ),
    "cross_entropy_head": ("cross_entropy_head", cross_entropy, {}),
    "cross_entropy_head, chunks": ("cross_entropy_head", cross_entropy, {"chunk_length": 37}),
    "full": ("full_attention", heads(3), {}),
    "full, causal": (
        "full_attention",
        heads(3),
        dict(is_causal=True, attention_mask=ATTENTION_MASK, **DROP),
    ),
    "local": ("local_attention", heads(3), {"chunk_length": 32, "is_causal": True}),
    "local, all around": (
        "local_attention",
        heads(3),
        dict(chunk_length=16, num_chunks_after=2, wrap=True, attention_mask=ATTENTION_MASK, **DROP),
    ),
    "local, medium": (
        "local_attention",
        heads(3),
        dict(chunk_length=32, matmul_precision="medium", attention_mask=ATTENTION_MASK, **DROP),
    ),
    "lsh, high": (
        "lsh_attention",
        heads(2),
        dict(chunk_length=32, matmul_precision="high", is_causal=True, **LSH),
    ),
    "lsh": ("lsh_attention", heads(2), dict(chunk_length=32, **LSH)),
    "lsh, hashed": ("lsh_attention", heads(2), {"chunk_length": 32, "num_hashes": 2, "rng": 4}),
    "lsh, every switch": (
        "lsh_attention",
        heads(2),
        dict(
            chunk_length=16,
            is_causal=True,
            attend_across_buckets=False,
            allow_duplicate_attention=False,
            wrap=False,
            num_chunks_after=1,
            **LSH,
            **DROP,
        ),
    ),
    "lsh, duplicates": (
        "lsh_attention",
        heads(2),
        dict(chunk_length=16, num_chunks_before=3, allow_duplicate_attention=False, **LSH),
    ),
    "buckets": ("lsh_attention", heads(2), dict(scope="bucket", **LSH)),
    "buckets, causal": (
        "lsh_attention",
        heads(2),
        dict(scope="bucket", is_causal=True, allow_duplicate_attention=False, **LSH, **DROP),
    ),
}

every_call = pytest.mark.parametrize("name", CALLS)
attention_call = pytest.mark.parametrize(
    "name", [name for name, (op, _, _) in CALLS.items() if op.endswith("attention")]
)


def arguments(name, rng, dtype):
    op, draw, options = CALLS[name]
    return op, draw(rng, dtype), options


def forward(op, inputs, options, **more):
    return getattr(ops, f"{op}_forward")(*inputs, **options, **more)


def backward(op, dout, saved, **more):
    gradients = getattr(ops, f"{op}_backward")(dout, saved, **more)
    return gradients if isinstance(gradients, tuple) else (gradients,)


def output_gradient(op, rng, out):
    return 0.7 if op == "cross_entropy_head" else normal(rng, out.dtype, *out.shape)


def assert_same_bits(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


@every_call
def test_the_plain_op_is_the_forward_without_what_it_saves(isa, dtype, rng, name):
    op, inputs, options = arguments(name, rng, dtype)
    plain = getattr(ops, op)(*inputs, **options)
    assert_same_bits([plain], [forward(op, inputs, options)[0]])


@every_call
def test_any_number_of_workers_gives_the_same_bits(isa, dtype, rng, name):
    # lucidrains' and reformer_fastai's gradients depend on how attention is cut up
    op, inputs, options = arguments(name, rng, dtype)
    out, saved = forward(op, inputs, options, workers=1)
    dout = output_gradient(op, rng, out)
    gradients = backward(op, dout, saved, workers=1)
    for workers in [2, 3, 5]:
        again, saved = forward(op, inputs, options, workers=workers)
        assert_same_bits([again], [out])
        assert_same_bits(backward(op, dout, saved, workers=workers), gradients)


@every_call
@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e30])
def test_what_underflows_or_overflows_within_is_no_error(isa, dtype, rng, name, scale):
    op, inputs, options = arguments(name, rng, dtype)
    inputs = [x if x.dtype.kind == "i" else x * x.dtype.type(scale) for x in inputs]
    with np.errstate(all="raise"):
        out, saved = forward(op, inputs, options)
        backward(op, 0.7 if op == "cross_entropy_head" else np.ones_like(out), saved)


@every_call
def test_a_call_can_be_replayed_bit_for_bit(isa, dtype, rng, name):
    # reversible layers elsewhere replay other rotations or other dropout than they drew
    op, inputs, options = arguments(name, rng, dtype)
    out, saved = forward(op, inputs, options)
    dout = output_gradient(op, rng, out)
    gradients = backward(op, dout, saved)
    np.random.random(10)  # noqa: NPY002
    copies = [x.copy() for x in inputs]
    again, saved_again = forward(op, copies, options)
    assert_same_bits([again], [out])
    assert_same_bits(backward(op, dout, saved_again), gradients)
    # and a gradient may be asked for twice
    assert_same_bits(backward(op, dout, saved), gradients)


@every_call
def test_inputs_are_left_alone_and_may_be_read_only(isa, dtype, rng, name):
    op, inputs, options = arguments(name, rng, dtype)
    arrays = [*inputs, *(x for x in options.values() if isinstance(x, np.ndarray))]
    before = [x.copy() for x in arrays]
    for x in inputs:
        x.flags.writeable = False
    out, saved = forward(op, inputs, options)
    dout = output_gradient(op, rng, out)
    if isinstance(dout, np.ndarray):
        dout.flags.writeable = False
        arrays.append(dout), before.append(dout.copy())
    backward(op, dout, saved)
    assert_same_bits(arrays, before)


@every_call
def test_gradients_have_the_type_and_shape_of_their_inputs(isa, dtype, rng, name):
    op, inputs, options = arguments(name, rng, dtype)
    out, saved = forward(op, inputs, options)
    gradients = backward(op, output_gradient(op, rng, out), saved)
    differentiable = [x for x in inputs if x.dtype == np.dtype(dtype)]
    assert [g.shape for g in gradients] == [x.shape for x in differentiable]
    assert {g.dtype for g in gradients} == {np.dtype(dtype)}
    for g in gradients:
        assert not any(np.shares_memory(g, x) for x in inputs)


@every_call
def test_out_is_written_and_given_back(isa, dtype, rng, name):
    op, inputs, options = arguments(name, rng, dtype)
    expected = getattr(ops, op)(*inputs, **options)
    if op == "cross_entropy_head":
        return  # a number, not an array
    out = np.full_like(expected, np.nan)
    assert getattr(ops, op)(*inputs, **options, out=out) is out
    assert_same_bits([out], [expected])
    out[:] = np.nan
    assert forward(op, inputs, options, out=out)[0] is out
    assert_same_bits([out], [expected])


@every_call
def test_any_strides_give_the_same_numbers(isa, dtype, rng, name):
    op, inputs, options = arguments(name, rng, dtype)
    out, saved = forward(op, inputs, options)
    dout = output_gradient(op, rng, out)
    gradients = backward(op, dout, saved)

    def spread(x):
        """The same elements, every second of a larger array, backwards."""
        wide = np.zeros([2 * n for n in x.shape], x.dtype)[tuple([np.s_[::-2]] * x.ndim)]
        wide[...] = x
        return wide

    strided, saved = forward(op, [spread(x) for x in inputs], options)
    assert_same_bits([strided], [out])
    dout = spread(dout) if isinstance(dout, np.ndarray) else dout
    assert_same_bits(backward(op, dout, saved), gradients)


@attention_call
def test_heads_and_time_may_be_swapped_and_the_results_come_back_so(isa, dtype, rng, name):
    """(b, t, h, d) arrays seen as (b, h, t, d): what a projection gives, without a copy."""
    op, inputs, options = arguments(name, rng, dtype)
    out, saved = forward(op, inputs, options)
    dout = output_gradient(op, rng, out)
    gradients = backward(op, dout, saved)

    def swapped(x):
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)

    inputs = [swapped(x) for x in inputs]
    views, saved = forward(op, inputs, options)
    assert_same_bits([views], [out])
    assert views.strides == inputs[0].strides
    found = backward(op, swapped(dout), saved)
    assert_same_bits(found, gradients)
    for g, x in zip(found, inputs, strict=True):
        assert g.strides == x.strides
    target = swapped(np.full_like(out, np.nan))
    assert getattr(ops, op)(*inputs, **options, out=target) is target
    assert_same_bits([target], [out])


@attention_call
def test_heads_in_reverse_or_shared_are_only_strides(isa, dtype, rng, name):
    op, inputs, options = arguments(name, rng, dtype)
    backwards = [np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1] for x in inputs]
    assert_same_bits(
        [getattr(ops, op)(*backwards, **options)], [getattr(ops, op)(*inputs, **options)]
    )
    one = [np.broadcast_to(x[:, :1], x.shape) for x in inputs]
    copied = [np.ascontiguousarray(x) for x in one]
    assert_same_bits([getattr(ops, op)(*one, **options)], [getattr(ops, op)(*copied, **options)])


@attention_call
def test_ranks_2_and_3_are_one_text_and_one_head(isa, dtype, rng, name):
    op, inputs, options = arguments(name, rng, dtype)
    for rank, first in [(3, np.s_[0]), (2, np.s_[0, 0])]:
        part = dict(options)
        as_4 = dict(options)
        if "buckets" in options:
            part["buckets"] = options["buckets"][first]
            as_4["buckets"] = options["buckets"][:1, : (1 if rank == 2 else None)]
        if "attention_mask" in options:
            part["attention_mask"] = options["attention_mask"][0]
            as_4["attention_mask"] = options["attention_mask"][:1]
        small = [x[first] for x in inputs]
        four = [x.reshape(1, -1, *x.shape[-2:]) for x in small]
        out, saved = forward(op, small, part)
        expected, saved_4 = forward(op, four, as_4)
        assert out.ndim == rank
        assert out.shape == small[0].shape
        assert_same_bits([out], [expected])
        dout = normal(rng, dtype, *out.shape)
        found = backward(op, dout, saved)
        assert [g.shape for g in found] == [x.shape for x in small]
        assert_same_bits(found, backward(op, dout.reshape(expected.shape), saved_4))


@attention_call
@pytest.mark.parametrize("empty", [(0, 2, 9, 4), (2, 0, 9, 4), (2, 2, 0, 4), (0, 0, 0, 1)])
def test_nothing_in_is_nothing_out(isa, dtype, name, empty):
    op, inputs, options = arguments(name, np.random.default_rng(0), dtype)
    options = {key: x for key, x in options.items() if not isinstance(x, np.ndarray)}
    options.setdefault("rng", 0) if op == "lsh_attention" else None
    nothing = [np.zeros(empty, dtype) for _ in inputs]
    out, saved = forward(op, nothing, options)
    assert out.shape == empty
    assert out.dtype == np.dtype(dtype)
    assert [g.shape for g in backward(op, out, saved)] == [empty] * len(nothing)
