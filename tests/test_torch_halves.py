"""reformer_c.torch in half precision and under autocast, compared with float32."""

import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from tolerances import tolerance

if find_spec("torch") is None:
    pytest.skip("needs torch: pip install '.[torch]'", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside other projects are no failures here
    import torch

    import reformer_c.torch as rt

HALVES = [torch.bfloat16, torch.float16]
ONE = {"dropout": 0.25, "dropout_key": 3}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(name):
    """Arguments of a function, in float32."""
    if name == "feed_forward":
        gate = [draw(24, 8, seed=1), draw(24, seed=1)]
        return [draw(2, 30, 8), draw(24, 8), draw(24), draw(8, 24), draw(8), *gate]
    heads = [draw(2, 3, 75, 8, seed=i) for i in range(3)]
    return heads[:2] if name == "lsh_attention" else heads


CALLS = [
    ("full_attention", {}),
    ("full_attention", {"is_causal": True, "softcap": 0.7, **ONE}),
    ("local_attention", {"chunk_length": 16, "num_chunks_after": 1, "wrap": True}),
    ("local_attention", {"chunk_length": 16, "is_causal": True, **ONE}),
    ("lsh_attention", {"chunk_length": 16, "num_hashes": 3, "num_buckets": (2, 4), "rng": 2}),
    ("lsh_attention", {"num_buckets": 4, "scope": "bucket", "is_causal": True, "rng": 0, **ONE}),
    ("feed_forward", {"activation": "gelu"}),
    ("feed_forward", {"activation": "relu", "chunk_length": 7, **ONE}),
]
every_call = pytest.mark.parametrize(("name", "options"), CALLS, ids=str)
every_half = pytest.mark.parametrize("half", HALVES, ids=str)


def results(name, options, inputs, dout):
    """The result and the gradients of the inputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = getattr(rt, name)(*inputs, **options)
    out.backward(dout.to(out.dtype))
    return out.detach(), *(x.grad for x in inputs)


def assert_rounded(found, expected, half):
    """Results of half precision, compared with those of float32 for the same rounded inputs."""
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == half
        assert x.stride() == y.stride()
        x, y = x.float(), y.float()
        limit = tolerance(str(half).removeprefix("torch.")) * float(y.abs().max())
        assert float((x - y).abs().max()) <= limit


@every_half
@every_call
def test_half_precision_is_float32_rounded_at_the_end(name, options, half):
    inputs = [x.to(half) for x in tensors(name)]
    dout = draw(*inputs[0].shape, seed=9).to(half)
    found = results(name, options, inputs, dout)
    expected = results(name, options, [x.float() for x in inputs], dout.float())
    # the result is that of float32 and one rounding
    torch.testing.assert_close(found[0], expected[0].to(half), rtol=0, atol=0)
    assert_rounded(found, expected, half)


@every_half
def test_keys_of_their_own_in_half_precision(half):
    options = {"num_buckets": 4, "scope": "bucket", "local_window": 3, "rng": 2}
    inputs, dout = [x.to(half) for x in tensors("full_attention")], draw(2, 3, 75, 8, seed=9)
    found = []
    for cast in (torch.Tensor.clone, torch.Tensor.float):
        q, k, v = (cast(x).requires_grad_() for x in inputs)
        out = rt.lsh_attention(q, v, k=k, **options)
        out.backward(dout.to(half).to(out.dtype))
        found.append([out.detach(), q.grad, k.grad, v.grad])
    torch.testing.assert_close(found[0][0], found[1][0].to(half), rtol=0, atol=0)
    assert_rounded(*found, half)


@every_half
@every_call
def test_under_autocast_the_result_has_its_dtype_and_gradients_that_of_the_inputs(
    name, options, half
):
    inputs = [x.requires_grad_() for x in tensors(name)]
    dout = draw(*inputs[0].shape, seed=9)
    with torch.autocast("cpu", half):
        out = getattr(rt, name)(*inputs, **options)
        mixed = getattr(rt, name)(inputs[0].to(half), *inputs[1:], **options)
    assert out.dtype == half
    torch.testing.assert_close(mixed, out, rtol=0, atol=0)
    gradients = torch.autograd.grad(out, inputs, dout.to(half))
    assert all(x.dtype == torch.float32 for x in gradients)
    expected = results(name, options, [x.to(half) for x in inputs], dout)
    for x, y in zip([out, *gradients], expected, strict=True):
        torch.testing.assert_close(x, y.to(x.dtype), rtol=0, atol=0)
    with torch.autocast("cpu", half):  # as PyTorch's own operators
        wide = getattr(rt, name)(*(x.double() for x in inputs), **options)
    assert wide.dtype == torch.float64


@every_half
@every_call
def test_threads_and_layouts_do_not_change_the_bits(name, options, half):
    inputs = [x.to(half) for x in tensors(name)]
    dout, found = draw(*inputs[0].shape, seed=9).to(half), []
    before = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(results(name, options, inputs, dout))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found, rtol=0, atol=0)
    if name == "feed_forward":
        return
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    out = getattr(rt, name)(*views, **options)
    assert out.stride() == views[0].stride()
    torch.testing.assert_close(out, found[0][0], rtol=0, atol=0)


@every_half
def test_operators_are_what_they_say(half):
    q, k, v = (draw(1, 2, 40, 4, seed=i).to(half).requires_grad_() for i in range(3))
    common = {"is_causal": True, "scale": None, "softcap": None, "dropout": 0.0, "dropout_key": 0}
    windows = common | {"chunk_length": 8, "num_chunks_before": 1, "num_chunks_after": 0,
                        "wrap": True}  # fmt: skip
    lsh = windows | {
        "num_hashes": 2, "num_buckets": [4], "scope": "chunk", "bucket_cap": None,
        "local_window": None,
        "attend_across_buckets": True, "allow_duplicate_attention": True,
    }  # fmt: skip
    views = [
        x.transpose(1, 2).contiguous().transpose(1, 2).detach().requires_grad_() for x in (q, v)
    ]
    hashed = (None, None, draw(2, 4, 2, 2), None, None)
    weights = [draw(*shape).to(half).requires_grad_() for shape in ((9, 4), (9,), (4, 9), (4,))]
    gate = [x.detach().clone().requires_grad_() for x in weights[:2]]
    of_hidden = {"activation": "gelu", "chunk_length": 0, "dropout": 0.0, "dropout_key": 0}
    calls = [
        ("full_attention", (q, k, v, None), common | {"shared_qk": False}),
        ("local_attention", (q, None, v, None), windows | {"shared_qk": True}),
        ("lsh_attention", (q, v, None, *hashed), lsh),
        ("lsh_attention", (*views, None, *hashed), lsh | {"scope": "bucket"}),
        ("lsh_attention", (q, v, k, *hashed), lsh | {"scope": "bucket", "local_window": 3}),
        ("feed_forward", (q, *weights, None, None), of_hidden),
        ("feed_forward", (q, *weights, *gate), of_hidden),
    ]
    for name, arguments, options in calls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.library.opcheck(getattr(torch.ops.reformer_c, name), arguments, options)


@pytest.mark.parametrize("cast", [False, True])
def test_compiled_code_gives_the_same(cast):
    rotations = draw(3, 8, 1, 2)
    inputs = [x if cast else x.bfloat16() for x in tensors("lsh_attention")]

    def function(*x):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            return 2 * rt.lsh_attention(*x, rotations=rotations, num_buckets=4)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)
        out = compiled(*inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, function(*inputs), rtol=0, atol=0)


@every_half
def test_rotations_may_have_either_precision_and_masks_any(half):
    qk, v = (x.to(half) for x in tensors("lsh_attention"))
    rotations, mask = draw(3, 8, 2, 2).to(half), (torch.arange(75) < 60).expand(2, 75)
    call = {"num_buckets": 4, "num_hashes": 2}
    found = [
        rt.lsh_attention(qk, v, rotations=r, attention_mask=m, **call)
        for r in (rotations, rotations.float())
        for m in (mask, mask.to(half), mask.float())
    ]
    for out in found[1:]:
        torch.testing.assert_close(out, found[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: rt.full_attention(y, x, x), r"v must be torch.bfloat16, as q is, got"),
        (lambda x, y: rt.full_attention(x, y, x), r"k must be torch.float32, as q is, got"),
        (lambda x, y: rt.local_attention(y, y, y.half()), r"v must be torch.bfloat16, as q is"),
        (lambda x, y: rt.lsh_attention(x, x, rotations=y), r"rotations must be torch.float32, as"),
        (lambda x, y: rt.lsh_attention(y, x.double()), r"v must be torch.bfloat16, as qk is"),
        (lambda x, y: rt.feed_forward(y, x, x, x, x), r"w1 must be torch.bfloat16, as x is, got"),
    ],
)
def test_what_does_not_fit_together_is_named(call, words):
    x = draw(1, 2, 20, 8)
    with pytest.raises(TypeError, match=rf"^{words}"):
        call(x, x.bfloat16())


# ---- models of transformers ----


@pytest.fixture
def two_models():
    if find_spec("transformers") is None:
        pytest.skip("needs transformers")
    from test_torch import two_models

    return two_models(dtype=torch.float32)


def relative(x, y):
    return float((x.float() - y.float()).norm() / y.float().norm())


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("cast", [False, True])
def test_a_patched_model_in_half_precision_is_near_the_whole_one(two_models, half, cast):
    theirs, ours = two_models
    ids = torch.randint(2, 30, (2, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(ids).logits
        if not cast:
            theirs, ours = theirs.to(half), ours.to(half)
        with torch.autocast("cpu", half, enabled=cast):
            found, original = ours(ids).logits, theirs(ids).logits
    assert found.dtype == original.dtype == half
    # as near as transformers' own code
    limit = max(tolerance("model_medium", np.float32), 2 * relative(original, expected))
    assert relative(found, expected) < limit


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_a_patched_model_trains_under_autocast(two_models, half):
    _, ours = two_models
    ids = torch.randint(2, 30, (2, 64), generator=torch.Generator().manual_seed(2))
    losses = []
    optimizer = torch.optim.AdamW(ours.train().parameters(), lr=1e-2)
    for _ in range(8):
        with torch.autocast("cpu", half):
            loss = ours(ids, labels=ids).loss
        loss.backward()
        assert all(p.grad.dtype == torch.float32 for p in ours.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
