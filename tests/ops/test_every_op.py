"""What all operations have in common: pairs, out=, workers, layouts, unchanged inputs."""

import numpy as np
import pytest
from attention_cases import normal
from op_cases import CALLS, SIZES, large

from reformer_c import ops

every_call = pytest.mark.parametrize("name", CALLS)
attention_call = pytest.mark.parametrize(
    "name", [name for name, (op, _) in CALLS.items() if op.endswith("attention")]
)


def arguments(name, rng, dtype):
    op, options = CALLS[name]
    return op, large(op, rng, dtype, **SIZES.get(name, {})), options


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


def test_every_op_with_a_backward_is_called():
    with_backward = {name for name in ops.__all__ if f"{name}_backward" in ops.__all__}
    assert {op for op, _ in CALLS.values()} == with_backward


@every_call
def test_the_plain_op_is_the_forward_without_what_it_saves(isa, dtype, rng, name):
    op, inputs, options = arguments(name, rng, dtype)
    plain = getattr(ops, op)(*inputs, **options)
    assert_same_bits([plain], [forward(op, inputs, options)[0]])


@pytest.mark.parametrize("op", sorted({op for op, _ in CALLS.values()}))
@pytest.mark.parametrize("suffix", ["", "_forward"])
def test_an_unknown_argument_is_refused_by_the_name_of_the_function(rng, op, suffix):
    inputs = large(op, rng, np.float32)
    with pytest.raises(TypeError, match=rf"{op}{suffix}\b.*\bwidht\b|widht: {op}{suffix} has no"):
        getattr(ops, op + suffix)(*inputs, widht=1)


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
    # in other libraries reversible layers replay other rotations or dropout than they drew
    op, inputs, options = arguments(name, rng, dtype)
    out, saved = forward(op, inputs, options)
    dout = output_gradient(op, rng, out)
    gradients = backward(op, dout, saved)
    np.random.random(10)  # noqa: NPY002
    copies = [x.copy() for x in inputs]
    again, saved_again = forward(op, copies, options)
    assert_same_bits([again], [out])
    assert_same_bits(backward(op, dout, saved_again), gradients)
    # the backward pass may run twice
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
