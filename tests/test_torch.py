"""reformer_c.torch: the operators against ours and against PyTorch's own checks of operators, and
Hugging Face models that run on them."""

import copy
import doctest
import functools
import io
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from tolerances import assert_close

from reformer_c import ops

if find_spec("torch") is None:
    pytest.skip("needs torch: pip install '.[torch]'", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside other projects are no failures here
    import torch

    import reformer_c.torch as rt

HAVE_TRANSFORMERS = find_spec("transformers") is not None

# name, its operator, tensors that it takes, and calls of it
ATTENTION = {
    "full": (rt.full_attention, ops.full_attention_forward, ops.full_attention_backward),
    "local": (rt.local_attention, ops.local_attention_forward, ops.local_attention_backward),
    "lsh": (rt.lsh_attention, ops.lsh_attention_forward, ops.lsh_attention_backward),
    # with keys of their own
    "hash": (
        lambda q, k, v, **options: rt.lsh_attention(q, v, k=k, **options),
        lambda q, k, v, **options: ops.lsh_attention_forward(q, v, k=k, **options),
        ops.lsh_attention_backward,
    ),
}
CALLS = {
    "full": [
        {},
        {"is_causal": True, "scale": 0.3, "softcap": 0.7},
        {"is_causal": True, "dropout": 0.25, "dropout_key": 2**62 + 5},
    ],
    "local": [
        {"chunk_length": 16},
        {"chunk_length": 16, "num_chunks_after": 1, "wrap": True, "softcap": 0.7},
        {"chunk_length": 100, "is_causal": True, "dropout": 0.5, "dropout_key": 3},
    ],
    "lsh": [
        {"chunk_length": 16, "rng": 1},
        {"chunk_length": 16, "num_hashes": 3, "num_buckets": (2, 4), "is_causal": True, "rng": 2},
        {"chunk_length": 100, "rng": 1, "softcap": 0.7},
        {"num_buckets": 4, "scope": "bucket", "bucket_cap": 64, "rng": 0},
        {"chunk_length": 8, "allow_duplicate_attention": False, "num_hashes": 2, "rng": 5},
        {"chunk_length": 8, "dropout": 0.5, "dropout_key": 9, "scale": 2.0, "rng": 5},
        {"num_buckets": 4, "scope": "bucket", "local_window": 3, "is_causal": True, "rng": 0},
    ],
    "hash": [
        {"num_buckets": 4, "scope": "bucket", "rng": 0},
        {"num_buckets": 8, "scope": "bucket", "local_window": 5, "is_causal": True, "rng": 1,
         "num_hashes": 2, "allow_duplicate_attention": False},
        {"num_buckets": (2, 4), "scope": "bucket", "softcap": 0.7, "center": None, "rng": 2},
        {"num_buckets": 4, "scope": "bucket", "dropout": 0.5, "dropout_key": 9, "rng": 3},
    ],
}  # fmt: skip
EVERY_CALL = [(name, call) for name in CALLS for call in CALLS[name]]


def count(name):
    return 2 if name == "lsh" else 3


def draw(n, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(n)]


def leaves(tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def assert_same_bits(tensor, array):
    np.testing.assert_array_equal(tensor.detach().numpy(), array)


# ---- the same as the operations on arrays ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "call"), EVERY_CALL)
def test_attention_and_its_gradients_have_our_bits(name, call, masked, dtype):
    function, forward, backward = ATTENTION[name]
    *inputs, dout = draw(count(name) + 1, 2, 3, 75, 8, dtype=dtype)
    inputs = leaves(inputs)
    arrays = [x.detach().numpy() for x in inputs]
    mask = torch.rand(2, 75, generator=torch.Generator().manual_seed(1)) < 0.8
    masks = ({"attention_mask": mask}, {"attention_mask": mask.numpy()}) if masked else ({}, {})
    out = function(*inputs, **call, **masks[0])
    out.backward(dout)
    expected, saved = forward(*arrays, **call, **masks[1])
    assert_same_bits(out, expected)
    for x, gradient in zip(inputs, backward(dout.numpy(), saved), strict=True):
        assert_same_bits(x.grad, gradient)


@pytest.mark.parametrize(("kind", "options"), [("full", {}), ("local", {"chunk_length": 8})])
def test_shared_queries_have_the_gradients_of_the_operation(kind, options):
    op, forward, backward = ATTENTION[kind]
    q, v = leaves(draw(2, 1, 2, 20, 4))
    options = options | {"shared_qk": True, "is_causal": True}
    out = op(q, None, v, **options)
    out.sum().backward()
    arrays = [x.detach().numpy() for x in (q, v)]
    expected, saved = forward(arrays[0], None, arrays[1], **options)
    assert_same_bits(out, expected)
    dq, _, dv = backward(np.ones_like(expected), saved)
    assert_same_bits(q.grad, dq)
    assert_same_bits(v.grad, dv)


@pytest.mark.parametrize("hk", [2, 1])
def test_keys_may_have_another_length_and_fewer_heads(hk):
    q, k, v = leaves([*draw(1, 1, 2, 20, 4), *draw(2, 1, hk, 30, 4)])
    rt.full_attention(q, k, v).sum().backward()
    assert k.grad.shape == v.grad.shape == (1, hk, 30, 4)


@pytest.mark.parametrize("hk", [2, 1])
@pytest.mark.parametrize("center", ["keys", None, torch.ones(8), torch.ones(1, 8)], ids=str)
def test_hashed_keys_may_have_another_length_and_fewer_heads(hk, center):
    q, k, v, dout = *draw(1, 2, 2, 30, 8), *draw(2, 2, hk, 50, 8), *draw(1, 2, 2, 30, 8)
    mask = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)) < 0.8
    options = {"scope": "bucket", "num_buckets": 4, "local_window": 2, "is_causal": True, "rng": 1}
    inputs = leaves([q, k, v])
    out = rt.lsh_attention(
        inputs[0], inputs[2], k=inputs[1], center=center, attention_mask=mask, **options
    )
    out.backward(dout)
    less = center.numpy() if isinstance(center, torch.Tensor) else center
    expected, saved = ops.lsh_attention_forward(
        q.numpy(), v.numpy(), k=k.numpy(), center=less, attention_mask=mask.numpy(), **options
    )
    assert_same_bits(out, expected)
    for x, gradient in zip(inputs, ops.lsh_attention_backward(dout.numpy(), saved), strict=True):
        assert_same_bits(x.grad, gradient)
    again = rt.lsh_attention(
        q, v, k=k, attention_mask=mask, buckets=torch.from_numpy(saved.buckets),
        key_buckets=torch.from_numpy(saved.key_buckets),
        **{name: x for name, x in options.items() if name != "rng"},
    )  # fmt: skip
    assert_same_bits(again, expected)


@pytest.mark.parametrize("shape", [(40, 8), (3, 40, 8), (2, 3, 40, 8), (0, 3, 40, 8), (2, 3, 0, 8)])
@pytest.mark.parametrize("name", ATTENTION)
def test_every_rank_and_no_tokens_at_all(name, shape):
    inputs = leaves(draw(count(name), *shape))
    out = ATTENTION[name][0](*inputs, **({"chunk_length": 16} if name != "full" else {}))
    assert out.shape == shape
    out.sum().backward()
    assert all(x.grad.shape == shape for x in inputs)


@pytest.mark.parametrize("name", ATTENTION)
def test_transposed_views_are_used_as_they_are(name):
    function = ATTENTION[name][0]
    call = {"rng": 0} if name in ("lsh", "hash") else {}
    views = [x.transpose(1, 2) for x in leaves(draw(count(name), 2, 100, 3, 8))]
    out = function(*views, **call)
    assert out.stride() == views[0].stride()
    torch.testing.assert_close(
        out, function(*(x.contiguous() for x in views), **call), rtol=0, atol=0
    )
    # rows that do not touch, and columns that do not either
    for apart in ([x[..., ::2] for x in views], [x[:, :, ::2] for x in views]):
        function(*apart, **call).sum().backward()


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("rows", [3, 40])
def test_feed_forward_has_our_bits(activation, rows):
    x, dout = draw(2, 2, rows, 8)
    inputs = leaves([x, *draw(1, 20, 8), *draw(1, 20), *draw(1, 8, 20), *draw(1, 8)])
    rules = {"activation": activation, "chunk_length": 16, "dropout": 0.2, "dropout_key": 7}
    out = rt.feed_forward(*inputs, **rules)
    out.backward(dout)
    arrays = [tensor.detach().numpy() for tensor in inputs]
    expected, saved = ops.feed_forward_forward(*arrays, **rules)
    assert_same_bits(out, expected)
    for tensor, g in zip(inputs, ops.feed_forward_backward(dout.numpy(), saved), strict=True):
        assert_same_bits(tensor.grad, g)


def test_doctests():
    if not HAVE_TRANSFORMERS:
        pytest.skip("needs transformers: pip install '.[parity]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = (rt.attention, rt.imports, rt.interface, rt.layers, rt.models, rt.registration)
        for module in (rt, *modules):
            assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


# ---- PyTorch's own checks ----


def operator_calls():
    """Arguments of each registered operator, as the functions pass them."""
    q, k, v = leaves(draw(3, 1, 2, 40, 4))
    mask = torch.ones(1, 40)
    mask[0, 3:9] = 0
    dropped = {"dropout": 0.0, "dropout_key": 0}
    full = {"is_causal": True, "scale": None, "softcap": None, "shared_qk": False} | dropped
    yield "full_attention", (q, k, v, mask), full
    yield "full_attention", (q, None, v, None), full | {"shared_qk": True}
    windows = {"chunk_length": 8, "num_chunks_before": 1, "num_chunks_after": 0}
    windows |= {"is_causal": False, "scale": 0.5, "softcap": 2.0, "wrap": True} | dropped
    yield "local_attention", (q, k, v, mask), windows | {"shared_qk": False}
    yield "local_attention", (q, None, v, mask), windows | {"shared_qk": True}
    one = leaves(draw(2, 1, 1, 40, 4))
    yield "local_attention", (q, *one, mask), windows | {"shared_qk": False}
    lsh = windows | {
        "num_hashes": 2, "num_buckets": [4], "scope": "chunk", "bucket_cap": None,
        "local_window": None,
        "attend_across_buckets": True, "allow_duplicate_attention": True,
    }  # fmt: skip
    rotations = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(4, (1, 2, 2, 40), generator=torch.Generator().manual_seed(1))
    hashed, known = (None, None, rotations, None, None), (None, None, None, ids, None)
    yield "lsh_attention", (q, v, None, mask, *hashed[1:]), lsh
    yield "lsh_attention", (q, v, None, *known), lsh | {"num_buckets": None}
    yield "lsh_attention", (q, one[1], None, *known), lsh | {"num_buckets": None}
    yield "lsh_attention", (q, v, None, *hashed), lsh | {"chunk_length": 64}
    transposed = [x.transpose(1, 2) for x in leaves(draw(2, 1, 40, 2, 4))]
    yield "lsh_attention", (*transposed, None, *hashed), lsh | {"scope": "bucket"}
    separate = lsh | {"scope": "bucket", "is_causal": True, "local_window": 2}
    long = leaves(draw(2, 1, 1, 60, 4))
    yield "lsh_attention", (q, *long, torch.ones(1, 60), *hashed[1:]), separate
    center = torch.ones(1, 4)
    yield "lsh_attention", (q, v, k, None, center, *hashed[2:]), separate | {"center_keys": False}
    of_keys = torch.randint(4, (1, 2, 2, 60), generator=torch.Generator().manual_seed(2))
    yield "lsh_attention", (q, *long, *known[:4], of_keys), separate | {"num_buckets": None}
    weights = leaves([*draw(1, 9, 4), *draw(1, 9), *draw(1, 4, 9), *draw(1, 4)])
    rules = {"activation": "gelu", "chunk_length": 0} | dropped
    yield "feed_forward", (q, *weights, None, None), rules
    yield "feed_forward", (q, *weights, *leaves([*draw(1, 9, 4), *draw(1, 9)])), rules


@pytest.mark.parametrize("call", [*operator_calls()], ids=lambda call: call[0])
def test_operators_are_what_they_say(call):
    name, arguments, rules = call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(getattr(torch.ops.reformer_c, name), arguments, rules)


@pytest.mark.parametrize(("name", "call"), EVERY_CALL)
def test_gradients_are_those_of_differences(name, call):
    inputs = leaves(draw(count(name), 1, 2, 10, 3, dtype=torch.float64))
    call = {**call, "chunk_length": 4} if name != "full" else call
    if name in ("lsh", "hash"):  # buckets that do not move
        call = {k: x for k, x in call.items() if k not in ("rng", "num_buckets", "center")}
        rounds = call.get("num_hashes", 1)
        generator = torch.Generator().manual_seed(0)
        sides = ("buckets", "key_buckets") if name == "hash" else ("buckets",)
        for side in sides:
            call[side] = torch.randint(3, (1, 2, rounds, 10), generator=generator)
    function = ATTENTION[name][0]
    assert torch.autograd.gradcheck(lambda *x: function(*x, **call), inputs)


def test_gradients_of_the_feed_forward_are_those_of_differences():
    shapes = [(5, 3), (4, 3), (4,), (3, 4), (3,)]
    inputs = leaves([draw(1, *shape, dtype=torch.float64)[0] for shape in shapes])
    assert torch.autograd.gradcheck(lambda *x: rt.feed_forward(*x, activation="gelu"), inputs)


@pytest.mark.parametrize("name", [*ATTENTION, "feed_forward"])
def test_compiled_code_gives_the_same(name):
    if name == "feed_forward":
        inputs = leaves([*draw(1, 30, 4), *draw(1, 9, 4), *draw(1, 9), *draw(1, 4, 9), *draw(1, 4)])
        function = rt.feed_forward
    else:
        inputs, attention = leaves(draw(count(name), 1, 2, 100, 8)), ATTENTION[name][0]

        def function(*x):
            if name in ("lsh", "hash"):
                return attention(*x, rotations=rotations, num_buckets=4)
            return attention(*x)

        rotations = torch.randn(2, 8, 1, 2, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(
            lambda *x: 2 * function(*x), backend="aot_eager", fullgraph=True, dynamic=False
        )
        out = compiled(*inputs)
        gradients = torch.autograd.grad(out.sum(), inputs)
    expected = 2 * function(*inputs)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    expected = torch.autograd.grad(expected.sum(), inputs)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ATTENTION)
def test_compiled_attention_takes_other_shapes(name):
    attention = ATTENTION[name][0]

    def function(*x):
        return attention(*x)

    compiled = torch.compile(function, backend="aot_eager", dynamic=True)
    for shape in [(1, 2, 70, 8), (2, 4, 90, 16)]:
        inputs = draw(count(name), *shape)
        torch.manual_seed(0)  # of the rotations
        expected = function(*inputs)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(*inputs), expected, rtol=0, atol=0)


def test_threads_are_pytorchs(monkeypatch):
    used = []
    forward = ops.local_attention_forward
    monkeypatch.setattr(
        ops, "local_attention_forward",
        lambda *x, workers, **rules: used.append(workers) or forward(*x, workers=workers, **rules),
    )  # fmt: skip
    before = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            rt.local_attention(*draw(3, 1, 1, 10, 4))
    finally:
        torch.set_num_threads(before)
    assert used == [1, 2]


# ---- random numbers ----


def test_pytorchs_seed_repeats_hashes_and_dropout():
    qk, v = draw(2, 1, 2, 200, 8)

    def run(seed=None, **call):
        if seed is not None:
            torch.manual_seed(seed)
        return rt.lsh_attention(qk, v, chunk_length=16, **call)

    assert (run(0) == run(0)).all()
    assert (run(0) != run()).any()
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert (run(rng=generators[0]) == run(rng=generators[1])).all()
    assert (run(0, rng=1, dropout=0.5) == run(0, rng=1, dropout=0.5)).all()
    assert (run(0, rng=1, dropout=0.5) != run(rng=1, dropout=0.5)).any()
    state = torch.get_rng_state()
    run(rng=1)  # draws nothing
    assert (state == torch.get_rng_state()).all()


def test_gradients_of_gradients_are_refused():
    q, k, v = leaves(draw(3, 1, 1, 10, 4))
    out = rt.local_attention(q, k, v, chunk_length=4)
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula was registered"):
        dq.sum().backward()


def each_function():
    """Functions of one tensor (1, 2, 20, 4)."""
    x, weights = draw(1, 1, 2, 20, 4)[0], [*draw(1, 9, 4), *draw(1, 9), *draw(1, 4, 9), *draw(1, 4)]
    yield lambda q: rt.full_attention(q, x, x)
    yield lambda k: rt.local_attention(x, k, x, chunk_length=4)
    yield lambda v: rt.lsh_attention(x, v, chunk_length=4, rng=0)
    yield lambda y: rt.feed_forward(y, *weights)
    yield lambda y: rt.feed_forward(x, weights[0], weights[1], weights[2] * y.mean(), weights[3])


# PyTorch itself warns when it first makes a dual tensor
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("function", [*each_function()])
def test_derivatives_in_forward_mode_are_refused(function):
    x = draw(1, 1, 2, 20, 4)[0]
    refused = functools.partial(pytest.raises, NotImplementedError, match="in forward mode")
    with refused():
        torch.func.jvp(function, (x,), (x,))
    with refused():
        torch.func.jacfwd(function)(x)
    with torch.autograd.forward_ad.dual_level(), refused():
        function(torch.autograd.forward_ad.make_dual(x, x))
    rules = {"is_causal": False, "scale": None, "softcap": None, "shared_qk": False, "dropout": 0.0}
    with torch.autograd.forward_ad.dual_level(), refused():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        torch.ops.reformer_c.full_attention(dual, x, x, None, dropout_key=0, **rules)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("function", [*each_function()])
@pytest.mark.parametrize(
    "transform",
    [lambda f, x: torch.func.grad(lambda x: f(x).sum())(x), torch.func.vjp,
     lambda f, x: torch.func.jacrev(f)(x)],
    ids=["grad", "vjp", "jacrev"],
)  # fmt: skip
def test_other_transforms_of_functions_raise(function, transform):
    with pytest.raises(RuntimeError, match="functorch transforms"):
        transform(function, draw(1, 1, 2, 20, 4)[0])


@pytest.mark.parametrize("function", [*each_function()])
def test_vmap_gives_what_a_loop_gives(function):
    xs = draw(1, 3, 1, 2, 20, 4)[0]
    expected = torch.stack([function(x) for x in xs])
    torch.testing.assert_close(torch.func.vmap(function)(xs), expected, rtol=0, atol=0)


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: rt.full_attention(x.int(), x, x), TypeError, "q must be float32 or float64, bf"),
        (lambda x: rt.full_attention(x, x, x.double()), TypeError, "v"),
        (lambda x: rt.full_attention(x, x.to("meta"), x), ValueError, "k must be on the CPU"),
        (lambda x: rt.full_attention(x.numpy(), x, x), TypeError, "q must be a torch.Tensor"),
        (lambda x: rt.full_attention(x, None, x), TypeError, "k must be an array"),
        (lambda x: rt.local_attention(x, x, x, chunk_length=0), ValueError, "chunk_length"),
        (lambda x: rt.local_attention(x, x[:, :, 1:], x), ValueError, "k must have shape"),
        (lambda x: rt.local_attention(x, x, x, attention_mask=x), ValueError, "attention_mask"),
        (lambda x: rt.lsh_attention(x[0, 0, 0], x), ValueError, "qk must have shape"),
        (lambda x: rt.lsh_attention(x, x, num_hashes=0), ValueError, "num_hashes"),
        (lambda x: rt.lsh_attention(x, x, num_buckets=3), ValueError, "num_buckets"),
        (lambda x: rt.lsh_attention(x, x, scope="all"), ValueError, "scope"),
        (lambda x: rt.lsh_attention(x, x, rng=1, rotations=x), ValueError, "pass one of them"),
        (lambda x: rt.lsh_attention(x, x, rng="a"), TypeError, "rng"),
        (lambda x: rt.lsh_attention(x, x, dropout=1.0), ValueError, "dropout"),
        (lambda x: rt.lsh_attention(x, x, dropout=0.1, dropout_key=-1), ValueError, "dropout_key"),
        (lambda x: rt.full_attention(x, x, x, dropout_key=2**63), ValueError, "< 2..63, got 9"),
        (lambda x: rt.local_attention(x, None, x), TypeError, "k must be an array"),
        (lambda x: rt.local_attention(x, x, x, chunk_length=2.5), TypeError, "chunk_length must"),
        (lambda x: rt.lsh_attention(x.int(), x), TypeError, "qk must be float32 or float64"),
        (lambda x: rt.lsh_attention(None, x), TypeError, "qk must be a torch.Tensor, got None"),
        (lambda x: rt.lsh_attention(x, x, num_hashes=1.5), TypeError, "num_hashes must be an int"),
        (lambda x: rt.lsh_attention(x, x, rotations=x.half()), TypeError, "rotations must be"),
        (lambda x: rt.feed_forward(x, x, None, x, x), TypeError, "b1 must be a torch.Tensor"),
        (lambda x: rt.patch(None), TypeError, "model must be a Reformer"),
        (lambda x: rt.feed_forward(x, x, x, x, x), ValueError, "w1"),
        (lambda x: rt.patch(torch.nn.Linear(2, 2)), TypeError, "model must be a Reformer"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call(draw(1, 1, 2, 100, 8)[0])


# ---- models of transformers ----

needs_transformers = pytest.mark.skipif(
    not HAVE_TRANSFORMERS, reason="needs transformers: pip install '.[parity]'"
)

SMALL = {
    "vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "attention_head_size": 8,
    "feed_forward_size": 24, "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (8, 8),
    "max_position_embeddings": 64, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
    "num_buckets": 4, "num_hashes": 2, "attn_layers": ["local", "lsh"], "is_decoder": True,
    "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0,
    "lsh_attention_probs_dropout_prob": 0.0, "hash_seed": 1, "hidden_act": "gelu",
}  # fmt: skip


def two_models(name="ReformerModelWithLMHead", dtype=torch.float64, **changes):
    """One of transformers, and the same patched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        config = transformers.ReformerConfig(**SMALL | changes)
        theirs = getattr(transformers, name)(config).to(dtype)
    ours = copy.deepcopy(theirs)
    assert rt.patch(ours) is ours
    return theirs.eval(), ours.eval()


def assert_near(found, expected, kind):
    assert found.dtype == expected.dtype
    assert_close(found, expected, kind)


def draw_ids(b=2, t=64):
    return torch.randint(2, 30, (b, t), generator=torch.Generator().manual_seed(2))


CHANGES = [
    {},
    {"is_decoder": False, "lsh_num_chunks_after": 1, "local_num_chunks_after": 1},
    {"num_buckets": [2, 4], "attn_layers": ["lsh", "lsh"], "hidden_act": "relu"},
    {"num_buckets": None, "chunk_size_feed_forward": 1, "num_hashes": 1},
    {"hidden_act": "prelu"},
]


@needs_transformers
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_patched_model_gives_the_same_numbers(changes, masked):
    models = two_models(**({"is_decoder": True} | changes), name="ReformerModel")
    for t in (64, 37, 5):
        mask = torch.ones(2, t, dtype=torch.long)
        if masked:
            mask[0, t // 2 :] = 0
        with torch.no_grad():
            theirs, ours = (model(draw_ids(t=t), attention_mask=mask) for model in models)
        real = mask.bool()
        assert_near(ours.last_hidden_state[real], theirs.last_hidden_state[real], "model_forward")


@needs_transformers
@pytest.mark.parametrize("name", ["attend_across_buckets", "allow_duplicate_attention"])
def test_options_that_transformers_does_not_have(name):
    theirs, _ = two_models(is_decoder=True, num_hashes=2)
    model = rt.patch(theirs, **{name: False})
    layer = model.reformer.encoder.layers[1].attention.self_attention
    x = torch.randn(2, 48, 16, dtype=torch.float64)
    with torch.no_grad():
        result = layer(x)
    qk, v = (rt.models._heads(f(x), 2).detach() for f in (layer.query_key, layer.value))
    steps = torch.arange(2)[:, None] * 4
    expected = rt.lsh_attention(
        qk, v, buckets=result.buckets.view(2, 2, 2, 48) - steps, num_hashes=2, num_buckets=4,
        chunk_length=layer.chunk_length, is_causal=True, **{name: False},
    )  # fmt: skip
    assert_near(result.hidden_states, rt.models._merged(expected), "forward")
    default = rt.lsh_attention(
        qk, v, buckets=result.buckets.view(2, 2, 2, 48) - steps, num_hashes=2, num_buckets=4,
        chunk_length=layer.chunk_length, is_causal=True,
    )  # fmt: skip
    assert not torch.equal(expected, default)
    with pytest.raises(TypeError, match=f"^{name}=False is not known to transformers' own code"):
        model(draw_ids(), output_attentions=True)
    loss = model.train()(draw_ids(), labels=draw_ids()).loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    local, _ = two_models(is_decoder=True, attn_layers=["local"])
    with pytest.raises(TypeError, match=f"^{name} must be True for a model without an LSH layer"):
        rt.patch(local, **{name: False})
    with pytest.raises(TypeError, match=f"^{name} must be True or False"):
        rt.patch(model, **{name: 3})


@needs_transformers
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_patched_model_trains_with_the_same_gradients(changes):
    changes = {"is_decoder": True} | changes
    name = "ReformerModelWithLMHead" if changes["is_decoder"] else "ReformerForMaskedLM"
    gradients = []
    for model in two_models(name, **changes):
        model.train()(draw_ids(), labels=draw_ids()).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_near(gradients[1][name], gradient, "model_backward")


@needs_transformers
def test_dropout_of_the_backward_pass_is_that_of_the_forward_pass():
    probabilities = ("hidden", "local_attention_probs", "lsh_attention_probs")
    _, model = two_models(**{f"{name}_dropout_prob": 0.3 for name in probabilities})
    model.train()
    layer = model.reformer.encoder.layers[1]
    x, y = draw(2, 1, 64, 16, dtype=torch.float64)
    forward = layer(prev_attn_output=x, hidden_states=y)
    grads = draw(2, 1, 64, 16, dtype=torch.float64)
    back = layer.backward_pass(
        next_attn_output=forward.attn_output.detach(),
        hidden_states=forward.hidden_states.detach(),
        grad_attn_output=grads[0], grad_hidden_states=grads[1], buckets=forward.buckets,
    )  # fmt: skip
    # a reversible layer that drops the same again finds its input
    assert_near(back.attn_output, x, "replay")
    assert_near(back.hidden_states, y, "replay")


@needs_transformers
def test_what_a_patched_model_leaves_to_transformers():
    theirs, ours = two_models()
    ids = draw_ids(1, 16)
    with torch.no_grad():
        arguments = {"output_attentions": True, "output_hidden_states": True}
        expected, found = (model(ids, **arguments) for model in (theirs, ours))
        for a, b in zip(found.attentions, expected.attentions, strict=True):
            torch.testing.assert_close(a, b)
        # a cache, a token at a time
        expected, found = (
            model.generate(ids, max_new_tokens=20, do_sample=False) for model in (theirs, ours)
        )
        assert (expected == found).all()
        half = ours.bfloat16()(ids).logits
    assert half.dtype == torch.bfloat16


@needs_transformers
def test_linear_layers_of_other_classes_are_called():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    seen = []

    def doubled(layer, x):
        return 2 * torch.nn.functional.linear(x, layer.weight, layer.bias)

    def hook(layer, inputs, output):
        seen.append(layer)
        return 3 * output

    for change in ("replaced", "hooked", "hooked above", "its own forward", "no bias"):
        theirs, ours = two_models()
        for model in (theirs, ours):
            parts = model.reformer.encoder.layers[0].feed_forward
            if change == "replaced":
                parts.dense.dense.__class__ = Doubled
            elif change == "hooked":
                parts.output.dense.register_forward_hook(hook)
            elif change == "hooked above":
                parts.dense.register_forward_hook(lambda layer, inputs, output: 3 * output)
            elif change == "no bias":
                parts.output.dense.bias = None
            else:
                parts.output.dense.forward = functools.partial(doubled, parts.output.dense)
        with torch.no_grad():
            expected, found = (model(draw_ids()).logits for model in (theirs, ours))
        assert_near(found, expected, "model_forward")
    assert len(seen) == 2


@needs_transformers
def test_each_model_of_several_has_its_own_activation():
    pairs = [two_models("ReformerModel", hidden_act=act) for act in ("relu", "gelu")]
    both = torch.nn.ModuleList(rt.unpatch(ours) for _, ours in pairs)
    assert rt.patch(both) is both
    with torch.no_grad():
        for (theirs, _), ours in zip(pairs, both, strict=True):
            expected, found = (m(draw_ids()).last_hidden_state for m in (theirs, ours))
            assert_near(found, expected, "model_forward")
        # a layer alone has no configuration that would name one
        layer = copy.deepcopy(rt.unpatch(both[0]).encoder.layers[0].feed_forward)
        expected = layer(torch.ones(1, 3, 16, dtype=torch.float64))
        found = rt.patch(layer)(torch.ones(1, 3, 16, dtype=torch.float64))
        assert (expected == found).all()


def attention_class(name="LSHSelfAttention"):
    from transformers.models.reformer import modeling_reformer

    return getattr(modeling_reformer, name)


def with_class_of(model, change):
    """The model, with another class of its LSH layers."""
    for layer in model.modules():
        if type(layer) is attention_class():
            layer.__class__ = change
    return model


@needs_transformers
def test_layers_are_known_by_their_class_and_not_by_its_name():
    namesake = type("LSHSelfAttention", (torch.nn.Linear,), {})
    named = type("ReformerModel", (torch.nn.Module,), {})()
    named.attention = namesake(2, 2)
    with pytest.raises(TypeError, match=r"^model must be a Reformer of transformers or of ref"):
        rt.patch(named)
    assert "forward" not in vars(named.attention)
    renamed = type("Renamed", (attention_class(),), {"more": 1})
    theirs, ours = two_models()
    ours = rt.patch(with_class_of(rt.unpatch(ours), renamed))
    assert sum("forward" in vars(layer) for layer in ours.modules() if type(layer) is renamed) == 1
    with torch.no_grad():
        expected, found = (model(draw_ids()).logits for model in (theirs, ours))
    assert_near(found, expected, "model_forward")


@needs_transformers
@pytest.mark.parametrize("method", ["forward", "_hash_vectors", "_len_norm"])
@pytest.mark.parametrize("where", ["class", "layer"])
def test_a_layer_with_other_methods_stays_as_it_is(method, where):
    def own(self, *args, **rest):
        out = getattr(attention_class(), method)(self, *args, **rest)
        if isinstance(out, torch.Tensor):
            return out // 2 if method == "_hash_vectors" else 2 * out
        return type(out)(2 * out.hidden_states, out.attention_probs, out.buckets)

    theirs, ours = two_models()
    ours = rt.unpatch(ours)
    for model in (theirs, ours):
        if where == "class":
            with_class_of(model, type("Own", (attention_class(),), {method: own}))
        else:
            layer = model.reformer.encoder.layers[1].attention.self_attention
            setattr(layer, method, functools.partial(own, layer))
    layer = ours.reformer.encoder.layers[1].attention.self_attention
    before = vars(layer).get("forward")
    rt.patch(ours)
    assert vars(layer).get("forward") is before
    with torch.no_grad():
        expected, found = (model(draw_ids()).logits for model in (theirs, ours))
        assert_near(found, expected, "model_forward")
        # it differs from what the library computes
        assert (two_models()[0](draw_ids()).logits - found).abs().max() > 1e-6
    rt.unpatch(ours)
    assert vars(layer).get("forward") is before
    # by itself, it has nothing to patch
    with pytest.raises(TypeError, match="whose methods are unchanged"):
        rt.patch(layer)


@needs_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["wrapped", "quantised", "compiled", "patched when compiled"])
def test_models_in_other_clothes(kind):
    theirs, ours = two_models(dtype=torch.float32)
    if kind == "wrapped":
        ours = rt.patch(torch.nn.DataParallel(rt.unpatch(ours)))
    elif kind == "quantised":
        linear = {torch.nn.Linear}
        theirs, ours = (torch.ao.quantization.quantize_dynamic(x, linear) for x in (theirs, ours))
    elif kind == "compiled":
        ours = torch.compile(ours, backend="eager")
    else:
        ours = rt.patch(torch.compile(rt.unpatch(ours), backend="eager"))
    with torch.no_grad():
        expected, found = (model(draw_ids()).logits for model in (theirs, ours))
    assert_near(found, expected, "model_forward")


@needs_transformers
def test_unpatched_copied_and_saved_models():
    theirs, ours = two_models(dtype=torch.float32)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    with torch.no_grad():
        patched = ours(draw_ids()).logits
        # a copy runs on its own weights
        twin = copy.deepcopy(ours)
        twin.reformer.encoder.layers[0].attention.self_attention.query.weight.zero_()
        assert (twin(draw_ids()).logits != patched).any()
        assert (ours(draw_ids()).logits == patched).all()
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert (loaded(draw_ids()).logits == patched).all()
        assert rt.unpatch(ours) is ours
        assert (ours(draw_ids()).logits == theirs(draw_ids()).logits).all()
        assert rt.unpatch(theirs) is theirs


@needs_transformers
def test_a_patched_model_learns():
    _, model = two_models(dtype=torch.float32, hidden_dropout_prob=0.05)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(draw_ids(), labels=draw_ids()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
