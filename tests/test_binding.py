"""Between Python and C: every wrong argument is named, every layout works, nothing leaks."""

import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from op_cases import IDS, RIGHT, ones, small

import reformer_c as rc
from reformer_c import _core, ops

SPEC = ops.attention.AttentionSpec
ATTENTION = small("full_attention")
HEADS = dict(qk=ones(2, 3, 8, 4), v=ones(2, 3, 8, 4))

REALS = [
    (op, name)
    for op, arguments in RIGHT.items()
    for name, value in arguments.items()
    if isinstance(value, np.ndarray) and value.dtype == np.float32
]
# arrays whose rank an op does not prescribe
ANY_SHAPE = {("dropout", "x"), ("sum_of_squares", "x"), ("adamw_step", "g"), ("add_scaled", "x"),
             ("to_bfloat16", "x"), ("to_fixed_point", "x"), ("add_rounded", "x")}  # fmt: skip
# ... and those with any number of leading axes
ANY_ROWS = {(op, "x") for op in ("linear", "layer_norm", "feed_forward",
                                   "quantized_linear", "quantized_feed_forward")}  # fmt: skip
IN_PLACE = {("adamw_step", "w"), ("adamw_step", "m"), ("adamw_step", "s"), ("add_scaled", "y")}
IN_PLACE |= {("adafactor_step", name) for name in ("w", "m", "row", "column")}


def call(op, **changes):
    return getattr(ops, op)(**small(op) | changes)


def test_every_op_is_here_and_its_right_arguments_are_right():
    plain = {name for name in ops.__all__ if f"{name}_forward" in ops.__all__ or name in RIGHT}
    assert plain == set(RIGHT)
    for op in RIGHT:
        call(op)


@pytest.mark.parametrize(("op", "name"), REALS)
@pytest.mark.parametrize("dtype", ["int32", "int64", "bool", "float16", "uint8"])
def test_a_dtype_that_wants_converting_says_so(op, name, dtype):
    wrong = RIGHT[op][name].astype(dtype)
    with pytest.raises(TypeError, match=rf"^{name} must be float32 or float64, got {dtype}"):
        call(op, **{name: wrong})


@pytest.mark.parametrize(("op", "name"), REALS)
@pytest.mark.parametrize("dtype", ["complex64", "S3", "datetime64[s]"])
def test_a_dtype_that_is_no_real_number_is_named(op, name, dtype):
    wrong = np.zeros(RIGHT[op][name].shape, dtype)
    with pytest.raises(TypeError, match=rf"^{name} must be float32"):
        call(op, **{name: wrong})


@pytest.mark.parametrize(("op", "name"), REALS)
def test_mixed_dtypes_are_named(op, name):
    names = [n for o, n in REALS if o == op]
    if len(names) == 1:
        return  # an array alone decides
    with pytest.raises(
        TypeError, match=rf"^({'|'.join(names)}) must be float(32|64), as .* is, got float(64|32)$"
    ):
        call(op, **{name: RIGHT[op][name].astype("float64")})


@pytest.mark.parametrize(("op", "name"), REALS)
def test_what_is_no_array_is_named(op, name):
    for wrong in [{"a": 1}, object(), "text"]:
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must "):
            call(op, **{name: wrong})


@pytest.mark.parametrize(("op", "name"), [x for x in REALS if x not in ANY_SHAPE | IN_PLACE])
def test_a_wrong_rank_is_named(op, name):
    x = RIGHT[op][name]
    too_few, too_many = x[(0,) * x.ndim], x[None, None, None, None]
    for wrong in [too_few] if (op, name) in ANY_ROWS else [too_few, too_many]:
        with pytest.raises((ValueError, TypeError), match=r"^\w+ must have (the )?shape "):
            call(op, **{name: wrong})


WRONG_SIZE = r"^\w+ must have ((the )?shape .* got \(|hk that divides h = \d of \w+, got \d)"


ALONE = ("dropout", "sum_of_squares", "to_bfloat16", "to_fixed_point")


@pytest.mark.parametrize(("op", "name"), [x for x in REALS if x[0] not in ALONE])
def test_a_wrong_size_is_named(op, name):
    """Either this array or one that it disagrees with, and the letter."""
    x = RIGHT[op][name]
    for axis in range(x.ndim):
        if (op, name, axis) in FREE:
            continue
        wider = np.concatenate([x, x.take([0], axis)], axis)
        with pytest.raises(ValueError, match=WRONG_SIZE):
            call(op, **{name: wider})


# axes that occur in no other array
FREE = {
    ("linear", "x", 0), ("linear", "x", 1), ("layer_norm", "x", 0), ("layer_norm", "x", 1),
    ("embedding", "weight", 0), ("embedding", "weight", 1),
    *((("axial_positions", w, axis)) for w in ("w0", "w1") for axis in (0, 1)),
    ("rotary_positions", "x", 2), ("rotary_positions", "x", 3),
    ("feed_forward", "x", 0), ("feed_forward", "x", 1),
    *((f"quantized_{op}", "x", axis) for op in ("linear", "feed_forward") for axis in (0, 1)),
    ("full_attention", "q", 2), ("lsh_hash", "x", 0), ("lsh_hash", "x", 2),
}  # fmt: skip


def test_messages_say_what_was_expected_and_what_came():
    for expected, wrong in {
        "weight must have shape (co, ci) with ci = 4 as in x, got (3, 5)":
            lambda: ops.linear(ones(2, 4), ones(3, 5)),
        "v must have shape (b, hk, t, d) with t = 8 as in qk, got (2, 3, 7, 4)":
            lambda: ops.lsh_attention(ones(2, 3, 8, 4), ones(2, 3, 7, 4), chunk_length=3),
        "q must have shape (b, h, t, d), (h, t, d) or (t, d), got (4,)":
            lambda: ops.full_attention(ones(4), ones(4), ones(4)),
        "v must have shape (tk, d), got (3, 8, 4)":
            lambda: ops.full_attention(ones(8, 4), ones(8, 4), ones(3, 8, 4)),
        "labels must have shape (...) with the leading axes of h, got (6,)":
            lambda: ops.cross_entropy_head(ones(2, 3, 4), ones(5, 4), None, IDS.ravel()),
        "attention_mask must have shape (b, tk) with tk = 8 as in k, got (2, 7)":
            lambda: ops.full_attention(*[ones(2, 3, 8, 4)] * 3, attention_mask=ones(2, 7)),
        "rotations must have shape (h, d, r, k/2) with k/2 = 2 as in num_buckets, got (3, 4, 2, 5)":
            lambda: call("lsh_hash", rotations=ones(3, 4, 2, 5)),
        "out must have shape (..., co) with co = 3 as in weight, got (2, 5, 4)":
            lambda: call("linear", out=ones(2, 5, 4)),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match="must have shape") as error:
            wrong()
        assert str(error.value) == expected
    with pytest.raises(TypeError) as error:
        ops.linear(ones(2, 4), ones(3, 4, dtype="float64"))
    assert str(error.value) == "weight must be float32, as x is, got float64"
    with pytest.raises(TypeError) as error:
        ops.linear(np.arange(4), ones(3, 4))
    assert str(error.value) == (
        "x must be float32 or float64, got int64: pass x.astype(numpy.float32)"
    )


def test_lists_without_end_are_refused():
    x = []
    x += [x, x]
    with pytest.raises(ValueError, match=r"^x must have at most 64 axes, got lists of more"):
        ops.linear(x, ones(3, 4))


# ---- scalars ----


SCALARS = {
    ("full_attention", "scale"): ["x", np.nan, np.inf, 1j],
    ("full_attention", "dropout"): [-0.1, 1.0, np.nan, "x"],
    ("full_attention", "dropout_key"): [-1, 2**64, 0.5, "x"],
    ("local_attention", "chunk_length"): [0, -3, 2.5, "x", None],
    ("local_attention", "num_chunks_before"): [-1, 0.5],
    ("local_attention", "num_chunks_after"): [-1, 0.5],
    ("lsh_attention", "num_hashes"): [0, -1, 1.5],
    ("lsh_attention", "num_buckets"): [3, 0, (2, 5), (), 2.0, (1 << 20, 1 << 20)],
    ("lsh_attention", "scope"): ["whole", None, 3],
    ("lsh_attention", "chunk_length"): [0, 1.5],
    ("lsh_hash", "num_hashes"): [0, 1.5],
    ("lsh_hash", "num_buckets"): [3, "x"],
    ("dropout", "p"): [-0.1, 1.0, np.nan, "x"],
    ("dropout", "key"): [-1, 2**64, 0.5],
    ("layer_norm", "eps"): [-1e-3, np.nan, np.inf, "x"],
    ("feed_forward", "activation"): ["swish", 3],
    ("feed_forward", "chunk_length"): [-1, 1.5, 2**64],
    ("feed_forward", "dropout"): [1.0, -0.5],
    ("feed_forward", "dropout_key"): [-1],
    ("cross_entropy_head", "chunk_length"): [-1, 1.5],
    ("cross_entropy_head", "ignore_index"): [0.5, 2**70],
    ("cross_entropy_head", "label_smoothing"): [-0.1, 1.0, np.nan, "x"],
    ("adamw_step", "lr"): ["x", np.nan],
    ("adamw_step", "beta1"): [1.0, -0.1, "x"],
    ("adamw_step", "beta2"): [1.0, np.nan],
    ("adamw_step", "eps"): [-1e-8, np.inf],
    ("adamw_step", "weight_decay"): [np.nan],
    ("adamw_step", "step"): [0, -1, 1.5],
    ("adamw_step", "grad_scale"): [np.inf],
    ("adafactor_step", "lr"): ["x", np.nan],
    ("adafactor_step", "beta1"): [1.0, -0.1],
    ("adafactor_step", "beta2"): [1.0, "x"],
    ("adafactor_step", "eps"): [0.0, np.inf],
    ("adafactor_step", "clip_threshold"): [0.0, -1.0, np.nan],
    ("adafactor_step", "weight_decay"): [np.nan],
    ("add_scaled", "alpha"): ["x", np.nan],
    ("add_rounded", "alpha"): ["x", np.nan],
}


@pytest.mark.parametrize(("op", "name"), SCALARS)
def test_a_scalar_out_of_range_is_named(op, name):
    for wrong in SCALARS[op, name]:
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must "):
            call(op, **{name: wrong})


@pytest.mark.parametrize("op", RIGHT)
def test_workers_are_checked(op):
    for wrong in [0, -1000, 1.5, "x", True]:
        with pytest.raises((TypeError, ValueError), match=r"^workers must "):
            call(op, workers=wrong)
    for workers in [1, 2, -1, np.int64(3), 10**9]:
        call(op, workers=workers)


def test_numpy_scalars_are_scalars():
    call(
        "local_attention", chunk_length=np.int32(3), scale=np.float32(0.5), is_causal=np.bool_(True)
    )
    call("dropout", p=np.float64(0.5), key=np.uint64(2**64 - 1))
    call("lsh_hash", num_buckets=np.int64(4), num_hashes=np.int8(2))


def test_huge_windows_are_windows():
    for op in ["local_attention", "lsh_attention"]:
        call(op, chunk_length=10**30)
        everything = call(op, num_chunks_before=8, chunk_length=1, wrap=False)
        huge = call(op, num_chunks_before=10**30, chunk_length=1, wrap=False)
        np.testing.assert_array_equal(huge, everything)
    with pytest.raises(MemoryError, match=r"needs .*GB of scratch"):
        call("local_attention", num_chunks_before=2**31, chunk_length=1, wrap=True)


def test_arguments_that_contradict_each_other_are_named():
    with pytest.raises(ValueError, match=r"^k must be None"):
        ops.full_attention(**ATTENTION, shared_qk=True)
    with pytest.raises(ValueError, match=r"^k must be None"):
        ops.local_attention(**ATTENTION, shared_qk=True)
    for op in (ops.full_attention, ops.local_attention):
        with pytest.raises(TypeError, match=r"^k must be an array"):
            op(ones(3, 4), None, ones(3, 4))
    buckets = np.zeros((2, 3, 2, 8), int)
    with pytest.raises(ValueError, match="rotations, buckets and rng"):
        call("lsh_attention", buckets=buckets)
    with pytest.raises(ValueError, match=r"^buckets must .* num_hashes = 1"):
        ops.lsh_attention(**HEADS, chunk_length=3, buckets=buckets)
    with pytest.raises(ValueError, match=r"^rotations must .* num_hashes = 3"):
        call("lsh_hash", num_hashes=3)
    with pytest.raises(ValueError, match="rng"):
        call("lsh_hash", rng=0)
    with pytest.raises(TypeError, match=r"^row and column must"):
        call("adafactor_step", row=None)
    for second in (dict(s=ones(3, 4)), dict(row=None, column=None)):
        with pytest.raises(TypeError, match=r"^s must be given where"):
            call("adafactor_step", **second)
    with pytest.raises(ValueError, match=r"^w must have two axes"):
        call("adafactor_step", w=ones(4), g=ones(4))


def test_a_switch_of_hashing_does_not_matter_to_one_chunk():
    plain = ops.lsh_attention(**HEADS)
    switched = ops.lsh_attention(
        **HEADS, attend_across_buckets=False, allow_duplicate_attention=False, wrap=False
    )
    np.testing.assert_array_equal(switched, plain)


# ---- integers ----


@pytest.mark.parametrize(
    ("op", "name", "count"),
    [
        ("embedding", "ids", 3),
        ("axial_positions", "position_ids", 4),
        ("cross_entropy_head", "labels", 5),
    ],
)
def test_ids_out_of_range_are_named_with_their_place(op, name, count):
    for wrong in [-1, count, 2**40, -(2**62)]:
        ids = IDS.copy()
        ids[1, 2] = wrong
        with pytest.raises(IndexError) as error:
            call(op, **{name: ids})
        assert str(error.value) == (
            f"{name}[1, 2] = {wrong} is out of range, must be at least 0 and below {count}"
        )
    ids = IDS.astype(np.uint64)
    ids[0, 0] = 2**64 - 100  # would be the label to ignore, had it wrapped around
    with pytest.raises(IndexError, match=rf"^{name}\[0, 0\] = 18446744073709551516"):
        call(op, **{name: ids})


@pytest.mark.parametrize(("op", "name"), [("embedding", "ids"), ("axial_positions", "position_ids"),
                                          ("cross_entropy_head", "labels")])  # fmt: skip
def test_ids_are_integers_of_any_kind_and_layout(op, name):
    expected = call(op)
    for kind in ["int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64", ">i4", ">i8"]:
        np.testing.assert_array_equal(call(op, **{name: IDS.astype(kind)}), expected)
    wide = np.zeros((4, 6), int)
    wide[::2, ::2] = IDS
    for same in [np.asfortranarray(IDS), wide[::2, ::2], IDS.tolist()]:
        np.testing.assert_array_equal(call(op, **{name: same}), expected)
    for kind in ["float32", "bool", "object", "U1"]:
        with pytest.raises(TypeError, match=rf"^{name} must be"):
            call(op, **{name: IDS.astype(kind)})


def test_bucket_ids_are_checked():
    given = dict(HEADS, chunk_length=3)
    buckets = np.zeros((2, 3, 1, 8), int)
    for kind in ["int8", "uint16", "int32", "int64", ">i4"]:
        ops.lsh_attention(**given, buckets=buckets.astype(kind), num_buckets=4)
    for wrong in [-1, 4, 2**40]:
        buckets[1, 2, 0, 7] = wrong
        with pytest.raises(IndexError, match=rf"^buckets\[1, 2, 0, 7\] = {wrong} is out of range"):
            ops.lsh_attention(**given, buckets=buckets, num_buckets=4)
    with pytest.raises(IndexError, match=r"^buckets must be below 2\*\*31"):
        ops.lsh_attention(**given, buckets=buckets)
    with pytest.raises(TypeError, match=r"^buckets must be of an integer type, got float64"):
        ops.lsh_attention(**given, buckets=np.zeros((2, 3, 1, 8)))
    with pytest.raises(ValueError, match=r"^buckets must have shape \(b, h, r, t\) with t = 8"):
        ops.lsh_attention(**given, buckets=np.zeros((2, 3, 1, 9), int))
    # with a mask there is one more id, for what is masked
    buckets[1, 2, 0, 7] = 4
    ops.lsh_attention(**given, buckets=buckets, num_buckets=4, attention_mask=np.ones((2, 8)))


@pytest.mark.parametrize("op", ["full_attention", "local_attention", "lsh_attention", "lsh_hash"])
def test_masks_are_checked(op):
    for wrong in [np.ones((2, 8), complex), np.full((2, 8), "x"), [[None] * 8] * 2]:
        with pytest.raises(TypeError, match=r"^attention_mask must be"):
            call(op, attention_mask=wrong)
    for wrong in [ones(2, 9), ones(3, 8), ones(8), ones(2, 8, 1)]:
        with pytest.raises(ValueError, match=r"^attention_mask must have shape"):
            call(op, attention_mask=wrong)
    for added in (-1.0, -np.inf, np.nan):  # added to scores, as other libraries' masks are
        wrong = np.zeros((2, 8), np.float32)
        wrong[1, 3] = added
        with pytest.raises(ValueError, match=r"^attention_mask must be nonzero for a real token"):
            call(op, attention_mask=wrong)


# ---- out= ----


WITHOUT_OUT = {"cross_entropy_head", "adamw_step", "adafactor_step", "sum_of_squares", "add_scaled"}
# their dtypes are free: tests/ops/test_bfloat16.py, test_fixed_point.py
WITHOUT_OUT |= {"from_bfloat16", "from_fixed_point", "to_fixed_point", "add_rounded"}
WITH_OUT = [op for op in RIGHT if op not in WITHOUT_OUT]


@pytest.mark.parametrize("op", WITH_OUT)
def test_a_wrong_out_is_named(op):
    right = call(op)
    other = "int64" if right.dtype == np.int32 else "float64"
    for error, wrong in [
        (TypeError, right.tolist()), (TypeError, right.astype(other)),
        (TypeError, right.astype("float16")), (ValueError, right[..., :-1].copy()),
        (ValueError, right[None].copy()), (ValueError, right[0].copy()),
    ]:  # fmt: skip
        with pytest.raises(error, match=r"^out must "):
            call(op, out=wrong)
    right.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out is read-only"):
        call(op, out=right)


@pytest.mark.parametrize("op", WITH_OUT)
def test_any_layout_of_out_is_written_to(op):
    expected = call(op)
    wide = np.full([2 * n for n in expected.shape], 77, expected.dtype)
    for out in [
        np.empty_like(expected), np.asfortranarray(np.empty_like(expected)),
        wide[tuple([np.s_[::2]] * wide.ndim)], wide[tuple([np.s_[::-2]] * wide.ndim)],
        np.empty(expected.shape, expected.dtype.newbyteorder()),
        np.frombuffer(bytearray(expected.nbytes + 1), "u1")[1:].view(expected.dtype)
        .reshape(expected.shape),
    ]:  # fmt: skip
        assert call(op, out=out) is out
        np.testing.assert_array_equal(out, expected)
    # and no elements around it
    wide[tuple([np.s_[::-2]] * wide.ndim)] = 77
    wide[tuple([np.s_[::2]] * wide.ndim)] = 77
    assert (wide == 77).all()


def test_out_may_overlap_an_input(rng, isa):
    square = {
        "linear": dict(weight=rng.standard_normal((4, 4)), bias=None),
        "layer_norm": dict(weight=rng.standard_normal(4), bias=rng.standard_normal(4)),
        "dropout": dict(p=0.5, key=3),
        "feed_forward": dict(w1=rng.standard_normal((6, 4)), b1=rng.standard_normal(6),
                             w2=rng.standard_normal((4, 6)), b2=rng.standard_normal(4)),
    }  # fmt: skip
    for op, rest in square.items():
        memory = rng.standard_normal((11, 4))
        for x, out in [(np.s_[:], np.s_[:]), (np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:]),
                       (np.s_[::-1], np.s_[:]), (np.s_[::2], np.s_[:6])]:  # fmt: skip
            there = memory.copy()
            expected = getattr(ops, op)(x=memory[x], **rest)
            getattr(ops, op)(x=there[x], **rest, out=there[out])
            np.testing.assert_array_equal(there[out], expected)

    memory = rng.standard_normal((2, 3, 9, 4))
    for name, arguments in [("full_attention", dict(k=ones(2, 3, 8, 4, dtype="float64"))),
                            ("lsh_attention", dict(chunk_length=3, rng=0))]:  # fmt: skip
        for out in [np.s_[:, :, 1:], np.s_[:, :, :8]]:
            there = memory.copy()
            q, v = (memory[:, :, :8], memory[:, :, 1:])
            arrays = dict(q=q, v=v) if "k" in arguments else dict(qk=q, v=v)
            expected = getattr(ops, name)(**arrays, **arguments)
            arrays = {key: there[:, :, :8] if key != "v" else there[:, :, 1:] for key in arrays}
            getattr(ops, name)(**arrays, **arguments, out=there[out])
            np.testing.assert_array_equal(there[out], expected)


def test_an_out_that_overlaps_itself_is_no_crash():
    out = np.lib.stride_tricks.as_strided(np.zeros(8, "float32"), (2, 5, 3), (0, 4, 4))
    assert call("linear", out=out) is out


# ---- layouts of inputs ----


def layouts(x):
    """The same elements in another layout."""
    wide = np.full([3 * n + 1 for n in x.shape], np.nan, x.dtype)
    forward = wide[tuple(np.s_[1::3] for _ in x.shape)]
    forward[...] = x
    backward = np.ascontiguousarray(x[tuple(np.s_[::-1] for _ in x.shape)])
    unaligned = np.frombuffer(b"\0" + x.tobytes(), "u1")[1:].view(x.dtype).reshape(x.shape)
    packed = np.zeros(x.shape, [("flag", "u1"), ("value", x.dtype)])["value"]
    packed[...] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    yield from [forward, backward[tuple(np.s_[::-1] for _ in x.shape)], np.asfortranarray(x)]
    yield from [unaligned, packed, read_only, x.astype(x.dtype.newbyteorder()), x.tolist()]
    yield np.array([x, x])[1].view(np.matrix) if x.ndim == 2 else x.view(np.recarray)


@pytest.mark.parametrize(("op", "name"), [x for x in REALS if x not in IN_PLACE])
def test_any_layout_of_an_input_is_read(op, name, rng):
    inputs = {
        key: rng.standard_normal(x.shape) if isinstance(x, np.ndarray) and x.dtype == np.float32
        else x for key, x in RIGHT[op].items()
    }  # fmt: skip
    written = [key for o, key in REALS if o == op and (o, key) in IN_PLACE]

    def run(given):
        arguments = {key: x.copy() if key in written else x for key, x in inputs.items()}
        result = getattr(ops, op)(**{**arguments, name: given})
        return [arguments[key] for key in written] or [result]

    expected = run(inputs[name])
    for same in layouts(inputs[name]):
        for a, e in zip(run(same), expected):
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("op", ["adamw_step", "add_scaled"])
def test_arrays_are_updated_in_place_in_any_layout(op, rng):
    inputs = {key: rng.standard_normal((3, 5)) ** 2 if isinstance(x, np.ndarray) else x
              for key, x in RIGHT[op].items()}  # fmt: skip
    names = [name for o, name in IN_PLACE if o == op]
    expected = {key: x.copy() if isinstance(x, np.ndarray) else x for key, x in inputs.items()}
    getattr(ops, op)(**expected)
    for kind in range(4):
        changed = dict(inputs)
        for name in names:
            wide = np.zeros((6, 10))
            changed[name] = [
                np.asfortranarray(inputs[name].copy()), wide[::2, ::2], wide[::-2, ::-2],
                np.zeros((3, 5), ">f8"),
            ][kind]  # fmt: skip
            changed[name][...] = inputs[name]
        getattr(ops, op)(**changed)
        for name in names:
            np.testing.assert_array_equal(changed[name], expected[name])
    for name in names:
        changed = {key: x.copy() if isinstance(x, np.ndarray) else x for key, x in inputs.items()}
        changed[name].flags.writeable = False
        with pytest.raises(ValueError, match=rf"^{name} is read-only"):
            getattr(ops, op)(**changed)
        with pytest.raises(TypeError, match=rf"^{name} must be a numpy array, got list"):
            getattr(ops, op)(**{**changed, name: [1.0]})


def test_two_arrays_that_are_both_written_must_not_share_memory():
    w = ones(4)
    with pytest.raises(ValueError, match=r"^m must not share memory with w"):
        call("adamw_step", w=w, m=w)
    # an array added to itself is read before it is written
    y = np.arange(5.0)
    ops.add_scaled(y, y[::-1], 1.0)
    np.testing.assert_array_equal(y, [4.0] * 5)
    ops.add_scaled(y, y, -0.5)
    np.testing.assert_array_equal(y, [2.0] * 5)


@pytest.mark.parametrize("to", [np.s_[1:], np.s_[:-1]])
def test_what_shares_memory_with_an_array_that_is_changed_is_read_first(isa, to):
    memory = np.arange(101.0)
    source = np.s_[:-1] if to == np.s_[1:] else np.s_[1:]
    expected = memory[to] + 0.5 * memory[source]
    ops.add_scaled(memory[to], memory[source], 0.5)
    np.testing.assert_array_equal(memory[to], expected)

    step = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "step": 1}
    results = []
    for shared in (True, False):
        memory = np.linspace(-1, 1, 101)
        g = memory[source] if shared else memory[source].copy()
        ops.adamw_step(memory[to], np.zeros(100), np.zeros(100), g, **step)
        results.append(memory)
    np.testing.assert_array_equal(*results)


# ---- sizes ----


def test_sizes_of_zero_are_sizes():
    for n in [0, 1]:
        assert ops.linear(ones(n, 3), ones(2, 3)).shape == (n, 2)
        assert ops.linear(ones(3, n), ones(2, n)).shape == (3, 2)
        assert ops.linear(ones(3, 2), ones(n, 2)).shape == (3, n)
        assert ops.embedding(np.zeros((2, n), int), ones(3, 4)).shape == (2, n, 4)
        assert ops.layer_norm(ones(n, 3), ones(3), ones(3)).shape == (n, 3)
    np.testing.assert_array_equal(ops.linear(ones(3, 0), ones(2, 0), ones(2)), ones(3, 2))
    assert ops.sum_of_squares(ones(0)) == 0
    assert ops.embedding(np.zeros(0, int), ones(0, 4)).shape == (0, 4)
    with pytest.raises(IndexError, match="ids"):
        ops.embedding(np.zeros(1, int), ones(0, 4))
    assert ops.linear(ones(3), ones(2, 3)).shape == (2,)
    assert ops.embedding(np.int64(1), ones(3, 4)).shape == (4,)


def test_memory_that_there_is_not_is_an_error_that_says_how_much():
    huge = np.broadcast_to(np.float32(1), (1, 1, 2**30, 64))
    with pytest.raises(MemoryError, match=r"GiB"):
        ops.full_attention(huge, ones(1, 1, 3, 64), ones(1, 1, 3, 64))
    with pytest.raises((MemoryError, ValueError)):
        ops.linear(np.broadcast_to(np.float32(1), (2**40, 4)), ones(3, 4))
    long = np.broadcast_to(np.float32(1), (1, 1, 2**31, 0))
    with pytest.raises(ValueError, match=r"length must be below 2\*\*31"):
        ops.full_attention(long, long, long)
    x, few = ones(1, 1, 20, 1), np.zeros((1, 1, 1, 20), int)
    many = (2**16, 2**14)
    # the counters of that many buckets: 4.3 GB, or a MemoryError
    with pytest.raises(MemoryError, match=r"attention with .*t = 20.* needs .*[GM]B of scratch"):
        limit_memory(lambda: ops.lsh_attention(x, x, chunk_length=4, num_buckets=many, buckets=few))


def limit_memory(function):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, before[1]))
        return function()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# ---- the extension itself ----


def test_the_number_of_arguments_is_checked():
    for name in dir(_core):
        function = getattr(_core, name)
        if name.startswith("__") or name == "pool_enter" or not callable(function):
            continue
        for count in [0, 1, 2, 40]:
            try:
                function(*[None] * count)
            except TypeError:
                continue
            assert count == 0, f"{name} took {count} times None"


def test_nonsense_never_crashes(rng):
    """Any argument in any place of the extension: an exception, or a result."""
    things = [
        None, 0, -1, 1, 2.5, np.nan, "q", "relu", (), (2, 4), ones(0), ones(1), ones(3, 4),
        ones(1, 1, 4, 4), ones(4, 4, dtype="float64"), np.zeros((1, 1, 4), int), np.arange(3),
        np.zeros((1, 1, 1, 4), "int32"), object(), SPEC("full"),
        SPEC("lsh", chunk_length=3, shared_qk=True), SPEC("local", chunk_length=2),
        SPEC("lsh", scope="bucket", chunk_length=3, shared_qk=True),
    ]  # fmt: skip
    functions = [getattr(_core, name) for name in dir(_core)
                 if not name.startswith("__")
                 and name not in ("select_isa", "fma_peak", "pool_enter", "pool_set_memory")
                 and callable(getattr(_core, name))]  # fmt: skip
    for function in functions:
        for _ in range(400):
            count = rng.integers(0, 15)
            arguments = [things[i] for i in rng.integers(0, len(things), count)]
            try:
                function(*arguments)
            except (TypeError, ValueError, IndexError, OverflowError, MemoryError):
                pass


def test_an_attention_is_checked_field_by_field():
    """By the extension too, which trusts no spec, whatever class it is of."""
    right = vars(SPEC("full"))
    x = ones(1, 1, 4, 4)

    def forward(k, ids, buckets, **wrong):
        spec = SimpleNamespace(**right | wrong)
        return _core.attention_forward(spec, x, k, x, None, ids, buckets, None, None, None, 1)

    forward(x, 0, None)
    for wrong in [dict(kind="f"), dict(kind=4), dict(chunk_length=0), dict(num_chunks_before=-1),
                  dict(num_chunks_after=2**40), dict(scale=np.nan), dict(dropout=1.0),
                  dict(dropout_key=-1), dict(kind="lsh", local_window=-1),
                  dict(kind="lsh", scope="bucket", bucket_cap=64),
                  dict(kind="lsh", scope=3), dict(dropout_key="x"), dict(bucket_cap=65),
                  dict(softcap=-1.0),
                  ]:  # fmt: skip
        with pytest.raises((ValueError, TypeError, OverflowError)):
            forward(x, 0, None, **wrong)
    with pytest.raises(ValueError, match="bucket_ids must be an integer >= 0"):
        forward(x, -1, None)
    with pytest.raises(TypeError, match="buckets must be None"):
        forward(x, 0, np.zeros(3, int))
    chunks = dict(kind="lsh", chunk_length=2, shared_qk=True)
    with pytest.raises(TypeError, match="buckets must be"):
        forward(None, 3, None, **chunks)
    with pytest.raises(TypeError, match=r"^spec must be an AttentionSpec, got .* without wrap"):
        _core.attention_forward(SimpleNamespace(kind="full", chunk_length=1, num_chunks_before=0,
            num_chunks_after=0, bucket_cap=None, local_window=None, is_causal=False,
            shared_qk=False, softcap=None),
            x, x, x, None, 0, None, None, None, None, 1)  # fmt: skip


@pytest.mark.parametrize("op", RIGHT)
def test_references_do_not_leak(op):
    """Neither from calls that succeed nor from calls that fail at any argument."""
    right = {key: x.copy() if isinstance(x, np.ndarray) else x for key, x in RIGHT[op].items()}
    if op in WITH_OUT:
        right["out"] = np.asfortranarray(call(op))
    forward = getattr(ops, f"{op}_forward", None)
    backward = getattr(ops, f"{op}_backward", None)

    def run():
        result = getattr(ops, op)(**right)
        if forward:
            out, saved = forward(**right)
            backward(np.ones_like(out) if isinstance(out, np.ndarray) else 1.0, saved)
        for key in right:
            for wrong in [np.zeros((1, 1, 1, 1, 1)), "wrong", np.full((2, 3), 99)]:
                try:
                    getattr(ops, op)(**{**right, key: wrong})
                except (TypeError, ValueError, IndexError):
                    pass
        del result

    def counts():
        gc.collect()
        arrays = [x for x in right.values() if isinstance(x, np.ndarray)]
        return [sys.getrefcount(x) for x in arrays], sys.getrefcount(None)

    def grown():
        blocks = sys.getallocatedblocks()
        for _ in range(50):
            run()
        gc.collect()
        return sys.getallocatedblocks() - blocks

    run()
    before, nones = counts()
    # the interpreter keeps things too, but not each time
    assert any(grown() < 50 for _ in range(5))
    after, more_nones = counts()
    assert after == before
    assert abs(more_nones - nones) < 50


def test_the_instruction_set_is_chosen_by_name():
    before = _core.isa()
    assert before in _core.isas() and set(_core.isas()) <= set(_core.isas_built())
    assert _core.isas()[-1] == "base"
    for name in _core.isas():
        _core.select_isa(name)
        assert _core.isa() == name
        assert rc.show_config(mode="dicts")["Instruction sets"]["in use"] == name
    _core.select_isa(before)
    with pytest.raises(ValueError, match=r"must be one of .*base.* got 'mmx'"):
        _core.select_isa("mmx")
    with pytest.raises(TypeError):
        _core.select_isa(3)


def test_the_extension_exports_its_init_function_alone():
    import shutil
    import subprocess

    if not shutil.which("nm"):
        pytest.skip("needs nm")
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", _core.__file__], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert [line.split()[-1] for line in symbols if " T " in line] == ["PyInit__core"]


@pytest.mark.parametrize("op", [name for name in ops.__all__ if name.endswith("_backward")])
def test_a_backward_takes_what_its_forward_saved_alone(op):
    backward = getattr(ops, op)
    out, saved = getattr(ops, op.replace("_backward", "_forward"))(**RIGHT[op[:-9]])
    for wrong in (None, out, tuple(saved), (saved,)):
        with pytest.raises(TypeError, match=r"^saved must be the \w+Saved of the forward pass"):
            backward(out, wrong)


def test_a_backward_of_attention_is_that_of_its_kind():
    q = ones(1, 2, 8, 4)
    _, shared = ops.lsh_attention_forward(q, q, chunk_length=4, rng=0)
    _, plain = ops.local_attention_forward(q, q, q, chunk_length=4)
    for backward in (ops.full_attention_backward, ops.local_attention_backward):
        with pytest.raises(
            ValueError, match=r"^saved must be of full or local attention, got that"
        ):
            backward(q, shared)
    with pytest.raises(ValueError, match=r"^saved must be of LSH attention, got that of full or"):
        ops.lsh_attention_backward(q, plain)


@pytest.mark.parametrize(
    ("convert", "operation"),
    [
        ("__float__", lambda x: _core.dropout(np.zeros(3), x, 0, None, 1)),
        ("__index__", lambda x: _core.dropout(np.zeros(3), 0.1, x, None, 1)),
    ],
)
def test_an_interruption_during_a_conversion_is_kept(convert, operation):
    def interrupted(self):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        operation(type("Number", (), {convert: interrupted})())
