"""`reformer_c.torch.patch` against live reformer_pytorch: the numbers of its own layers, with the
random numbers that it draws."""

import copy
import io
import warnings
from importlib.util import find_spec

import pytest
from tolerances import tolerance

if find_spec("torch") is None or find_spec("reformer_pytorch") is None:
    pytest.skip("needs reformer_pytorch: pip install '.[parity]'", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside other projects are no failures here
    import torch
    from reformer_pytorch import Autopadder, LSHSelfAttention, Reformer, ReformerLM
    from reformer_pytorch.reformer_pytorch import LSHAttention

    import reformer_c.torch as rt

LAYER = {"dim": 32, "heads": 4, "bucket_size": 8, "n_hashes": 4}
MODEL = {
    "num_tokens": 50, "dim": 32, "depth": 3, "max_seq_len": 64, "heads": 4, "dim_head": 8,
    "bucket_size": 8,
}  # fmt: skip


def assert_all_same(found, expected, dtype):
    """Element by element: gradients differ in size."""
    allowed = tolerance("reformer_pytorch", str(dtype).removeprefix("torch."))
    torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)


def two(kind, dtype=torch.float64, **options):
    """One of theirs, and the same patched."""
    torch.manual_seed(0)
    theirs = kind(**options).to(dtype)
    ours = copy.deepcopy(theirs)
    assert rt.patch(ours) is ours
    return theirs, ours


def draw(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def results(layer, x, **call):
    """The output, and the gradients of x and of every weight."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    layer.zero_grad()
    out = layer(x, **call)
    out.backward(draw(*out.shape, dtype=out.dtype, seed=2))
    return out, x.grad, [p.grad for p in layer.parameters()]


def assert_same(theirs, ours, x, **call):
    found, expected = results(ours, x, **call), results(theirs, x, **call)
    assert_all_same(found, expected, x.dtype)


OPTIONS = [
    {},
    {"causal": True},
    {"causal": True, "n_hashes": 1},
    {"attend_across_buckets": False},
    {"attend_across_buckets": False, "allow_duplicate_attention": False, "causal": True},
    {"n_hashes": 1, "allow_duplicate_attention": False},
    {"random_rotations_per_head": True, "one_value_head": True},
    {"attn_chunks": 3},
    {"num_mem_kv": 16},
    {"use_full_attn": True},
    {"full_attn_thres": 64, "causal": True},
    {"n_local_attn_heads": 2},
    {"n_local_attn_heads": 1, "causal": True, "dim_head": 12},
    {"drop_for_hash_rate": 0.3},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_layer_gives_the_same_numbers(options, dtype):
    theirs, ours = two(LSHSelfAttention, dtype, **LAYER | options)
    x, d = draw(2, 64, 32, dtype=dtype), options.get("dim_head", 8)
    mask = torch.arange(64) < torch.tensor([[64], [55]])
    for call in ({}, {"input_mask": mask}, {"pos_emb": draw(1, 64, d, dtype=dtype, seed=3)}):
        assert_same(theirs, ours, x, **call)


def test_a_context_is_seen():
    theirs, ours = two(LSHSelfAttention, **LAYER)
    x, keys = draw(2, 48, 32), draw(2, 16, 32, seed=3)
    mask = torch.arange(16) < torch.tensor([[16], [5]])
    assert_same(theirs, ours, x, keys=keys)
    assert_same(theirs, ours, x, keys=keys, context_mask=mask)
    # options without a counterpart in this core run the original code
    theirs, ours = two(LSHSelfAttention, **LAYER | {"causal": True})
    assert_same(theirs, ours, x, keys=keys)
    seen = torch.rand(2, 48, 48, generator=torch.Generator().manual_seed(0)) < 0.7
    assert_same(theirs, ours, x, input_attn_mask=seen)
    calls = []
    theirs.callback = ours.callback = lambda attention, buckets: calls.append(buckets)
    assert_same(theirs, ours, x)
    assert len(calls) == 2


@pytest.mark.parametrize("options", [{}, {"attn_chunks": 2}], ids=str)
def test_buckets_may_be_given(monkeypatch, options):
    theirs, ours = two(LSHSelfAttention, **LAYER | options)
    ids = torch.randint(8, (8, 4, 64), generator=torch.Generator().manual_seed(0))
    ids = (ids + 8 * torch.arange(4)[:, None]).flatten(1)

    def given(n_buckets, vectors, **others):
        assert n_buckets == 8
        return ids[: len(vectors)]

    for layer in (theirs, ours):
        layer.lsh_attn.hash_vectors = given
    assert_same(theirs, ours, draw(2, 64, 32))
    for layer in (theirs, ours):
        del layer.lsh_attn.hash_vectors
    monkeypatch.setattr(LSHAttention, "hash_vectors", lambda self, n, x, **others: given(n, x))
    assert_same(theirs, ours, draw(2, 64, 32, seed=4))


def trained(model, ids):
    """The output, and the gradient of every weight: blocks set them, and return none."""
    torch.manual_seed(7)
    out = model.train()(ids)
    torch.nn.functional.cross_entropy(out.transpose(1, 2), ids).backward()
    return out, [p.grad for p in model.parameters()]


MODELS = [
    {},
    {"causal": True, "n_local_attn_heads": 1},
    {"axial_position_emb": True, "weight_tie": True},
    {"use_full_attn": True},
    {"random_rotations_per_head": True, "reverse_thres": 100},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", MODELS, ids=str)
def test_a_model_trains_with_the_same_gradients(options, dtype):
    ids = torch.randint(50, (2, 64), generator=torch.Generator().manual_seed(3))
    theirs, ours = two(ReformerLM, dtype, **MODEL | options)
    assert_all_same(trained(ours, ids), trained(theirs, ids), dtype)


@pytest.mark.parametrize(
    "options", [{}, {"attn_chunks": 8}, {"lsh_dropout": 0.2, "ff_dropout": 0.1}]
)
def test_reversible_blocks_repeat_what_was_drawn(options):
    """A model of reversible blocks has the gradients of one whose activations are all kept. (With
    attn_chunks their own has not.)"""
    ids = torch.randint(50, (2, 64), generator=torch.Generator().manual_seed(3))
    kept, ours = two(ReformerLM, causal=True, n_local_attn_heads=1, **MODEL | options)
    rt.patch(kept).reformer.layers.reverse_thres = 100
    assert_all_same(trained(ours, ids), trained(kept, ids), torch.float64)
    # they keep what the last forward pass drew
    losses = [ours(part).square().mean() for part in (ids, ids[:, :32])]
    with pytest.raises(RuntimeError, match="another forward pass came before"):
        losses[0].backward()


@pytest.mark.parametrize("causal", [False, True])
def test_any_length_without_padding(causal):
    theirs, ours = two(ReformerLM, causal=causal, **MODEL)
    ids = torch.randint(50, (2, 64), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for t in (1, 5, 8, 23, 61):
            assert ours(ids[:, :t]).shape == (2, t, 50)
        with pytest.raises(AssertionError, match="divisible"):
            theirs(ids[:, :61])
        torch.manual_seed(0)
        padded = Autopadder(theirs)(ids[:, :61])
        torch.manual_seed(0)
        assert_all_same(Autopadder(ours)(ids[:, :61]), padded, torch.float64)
    # with one bucket of full attention nothing depends on padding
    theirs, ours = two(ReformerLM, causal=causal, **MODEL | {"full_attn_thres": 64})
    with torch.no_grad():
        expected, found = (model(ids[:, :61]) for model in (theirs, ours))
    assert_all_same(found, expected, torch.float64)


def test_half_precision_and_autocast_run_their_code():
    theirs, ours = two(LSHSelfAttention, torch.bfloat16, **LAYER)
    x = draw(1, 32, 32).bfloat16()
    torch.manual_seed(0)
    expected = theirs(x)
    torch.manual_seed(0)
    assert (ours(x) == expected).all()
    theirs, ours = two(LSHSelfAttention, torch.float32, **LAYER)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        expected = theirs(x.float())
        torch.manual_seed(0)
        assert (ours(x.float()) == expected).all()


def test_unpatched_copied_and_saved_models():
    theirs, ours = two(ReformerLM, **MODEL)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    ids = torch.randint(50, (2, 61), generator=torch.Generator().manual_seed(3))
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    with torch.no_grad():
        expected, *others = (
            (torch.manual_seed(0), model(ids))[1]
            for model in (ours, copy.deepcopy(ours), torch.load(file, weights_only=False))
        )
        assert all((other == expected).all() for other in others)
        twin = copy.deepcopy(ours)
        next(twin.parameters()).data.zero_()
        assert (twin(ids) != expected).any()
    assert rt.unpatch(ours) is ours
    assert not any("forward" in vars(layer) for layer in ours.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"causal": True, "num_mem_kv": 2}, "num_mem_kv must be 0 in a causal layer, got 2"),
        ({"rehash_each_round": False}, "rehash_each_round must be True, got False"),
        ({"allow_duplicate_attention": False}, "allow_duplicate_attention must be True, or"),
    ],
)
def test_options_without_a_counterpart_are_refused(options, words):
    layer = LSHSelfAttention(**LAYER | options)
    good = LSHSelfAttention(**LAYER)
    with pytest.raises(TypeError, match=f"^model has an LSHSelfAttention .*: {words}"):
        rt.patch(torch.nn.ModuleList([good, layer]))
    assert "forward" not in vars(good)  # nothing has been changed
    # options that change afterwards are seen at the call
    rt.patch(good)
    good.lsh_attn._allow_duplicate_attention = False
    theirs = copy.deepcopy(good)
    assert_same(rt.unpatch(theirs), good, draw(1, 32, 32).float())


def test_parts_of_other_classes_are_refused():
    class Own(LSHAttention):
        def forward(self, qk, v, **rest):
            return super().forward(qk, 2 * v, **rest)

    layer = LSHSelfAttention(**LAYER)
    layer.lsh_attn = Own(**{"bucket_size": 8, "n_hashes": 4})
    with pytest.raises(TypeError, match="lsh_attn must be a LSHAttention, got Own"):
        rt.patch(layer)
    layer = LSHSelfAttention(**LAYER | {"n_local_attn_heads": 1})
    layer.local_attn.exact_windowsize = True
    with pytest.raises(TypeError, match=r"local_attn\.exact_windowsize must be False, got True"):
        rt.patch(layer)
    # a model that has no such layer, whatever its name
    named = type("ReformerLM", (torch.nn.Linear,), {})
    with pytest.raises(TypeError, match="model must be a Reformer"):
        rt.patch(named(2, 2))


def test_a_reformer_without_a_head():
    theirs, ours = two(Reformer, dim=32, depth=2, heads=4, bucket_size=8, n_hashes=2)
    assert_same(theirs.train(), ours.train(), draw(1, 32, 32))
