"""The index of a layer's cache is that of the cache of each step, whatever happened to it."""

import gc

import numpy as np
import pytest
from reference import key_value_index as reference
from tolerances import assert_close

import reformer_c as rc

torch = pytest.importorskip("torch", reason="the operators need PyTorch")

from reformer_c.torch import prompt_index  # noqa: E402

OPTIONS = {"num_hashes": 2, "num_buckets": 6, "local_window": 0, "sinks": 1, "rng": 3}


def cache(rng, tk, b=2, hk=2, d=4):
    return [torch.from_numpy(x) for x in rng.standard_normal((2, b, hk, tk, d))]


def check(module, q, k, v, mask=None):
    """A step's result is that of an index of this cache, and of nothing else."""
    out = prompt_index.attend_by_index(module, q, k, v, mask, **OPTIONS)
    index = prompt_index.index_of(module)
    assert index.length == k.shape[2]
    np.testing.assert_array_equal(index.keys, k)
    np.testing.assert_array_equal(index.values, v)
    hashing = {"num_hashes": 2, "num_buckets": 6}
    rotations = rc.lsh_rotations(k.shape[1], 4, **hashing, rng=3, dtype=np.float64)
    ids_k = rc.lsh_hash(k.numpy() - index._center, **hashing, rotations=rotations)
    group = q.shape[1] // k.shape[1]
    ids_q = rc.lsh_hash(q.numpy(), **hashing, rotations=np.repeat(rotations, group, axis=0))
    real = None if mask is None else mask.numpy() != 0
    seen = reference.found(ids_q, ids_k, window=0, sinks=1, real=real)
    expected, _ = reference.attend(q.numpy(), k.numpy(), v.numpy(), seen, 0.5)
    assert_close(out.numpy(), expected, "attention")


def test_hashing_uses_as_many_threads_as_pytorch(monkeypatch, rng):
    used, original = [], prompt_index.KeyValueIndex._append

    def append(self, k, v, real, workers):
        used.append(workers)
        original(self, k, v, real, workers)

    monkeypatch.setattr(prompt_index.KeyValueIndex, "_append", append)
    module, (k, v) = torch.nn.Module(), cache(rng, 20)
    for n in (19, 20):
        prompt_index.attend_by_index(
            module, k[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], None, **OPTIONS
        )
    assert used == [torch.get_num_threads()] * 2


@pytest.fixture
def made(monkeypatch):
    """The lengths at which an index was made."""
    lengths = []
    original = prompt_index.KeyValueIndex

    def counted(k, v, **options):
        lengths.append(k.shape[2])
        return original(k, v, **options)

    monkeypatch.setattr(prompt_index, "KeyValueIndex", counted)
    return lengths


def test_an_index_follows_its_cache(rng, made):
    module = torch.nn.Module()
    k, v = cache(rng, 200)

    def query(t=1):
        return torch.from_numpy(rng.standard_normal((2, 4, t, 4)))

    # a prompt, and steps; several tokens at once
    for end, t in [(50, 1), (51, 1), (52, 1), (60, 3), (60, 1)]:
        check(module, query(t), k[:, :, :end], v[:, :, :end])
    assert made == [50]
    # an assistant's tokens are taken back, and others come instead
    k[:, :, 55:], v[:, :, 55:] = cache(rng, 145)
    check(module, query(), k[:, :, :58], v[:, :, :58])
    check(module, query(), k[:, :, :53], v[:, :, :53])
    # beams change places after the prompt
    k[1, :, :50], v[1, :, :50] = k[0, :, :50], v[0, :, :50]
    check(module, query(), k[:, :, :60], v[:, :, :60])
    order = [1, 0]
    k, v = k[order], v[order]
    check(module, query(), k[:, :, :61], v[:, :, :61])
    again = made[:]
    # the same cache, changed in place: a key, a value
    for array in (k, v):
        array[0, 1, 57, 2] += 1e-9
        check(module, query(), k[:, :, :61], v[:, :, :61])
    assert made == again
    # a text that has doubled, a new prompt, a smaller batch
    check(module, query(), k, v)
    assert made == [*again, 200]
    k, v = cache(rng, 205)
    check(module, query(), k, v)
    check(module, query()[:1], k[:1], v[:1])
    assert made == [*again, 200, 205, 205]


def test_masks_belong_to_the_cache(rng, made):
    module = torch.nn.Module()
    k, v = cache(rng, 40)
    q = torch.from_numpy(rng.standard_normal((2, 2, 1, 4)))
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :7] = False
    for end in (30, 31, 32):
        check(module, q, k[:, :, :end], v[:, :, :end], mask[:, :end])
    assert made == [30]
    check(module, q, k, v)
    assert made == [30, 40]
    mask[0, :7], mask[1, 33] = True, False
    check(module, q, k, v, mask)
    assert made == [30, 40]


def test_other_options_are_another_index(rng, made):
    module = torch.nn.Module()
    k, v = cache(rng, 40)
    q = torch.from_numpy(rng.standard_normal((2, 2, 1, 4)))
    check(module, q, k, v)
    prompt_index.attend_by_index(module, q, k, v, None, **OPTIONS | {"local_window": 5})
    assert made == [40, 40]
    check(module, q, k, v)
    assert made == [40, 40, 40]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_have_the_dtype_of_the_queries(dtype, rng):
    k, v = (x.to(dtype) for x in cache(rng, 20))
    q = torch.from_numpy(rng.standard_normal((2, 2, 1, 4))).to(dtype)
    module = torch.nn.Module()
    out = prompt_index.attend_by_index(module, q, k, v, None, **OPTIONS | {"local_window": 20})
    assert out.dtype == dtype
    expected = rc.full_attention(*(x.float().numpy() for x in (q, k, v)))
    kind = "attention" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
    assert_close(out.float().numpy(), expected, kind)


def test_an_index_goes_with_its_layer(rng):
    gc.collect()
    before = len(prompt_index._kept)
    module = torch.nn.Module()
    k, v = cache(rng, 20)
    prompt_index.attend_by_index(module, k[:, :, -1:], k, v, None, **OPTIONS)
    assert module in prompt_index._kept
    prompt_index.forget(module)
    assert prompt_index.index_of(module) is None
    prompt_index.attend_by_index(module, k[:, :, -1:], k, v, None, **OPTIONS)
    assert len(prompt_index._kept) == before + 1
    del module
    gc.collect()
    assert len(prompt_index._kept) == before


# ---- models of transformers ----

SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=64, max_position_embeddings=256, pad_token_id=0,
    bos_token_id=1, eos_token_id=None,
)  # fmt: skip
# the whole text is in the window: every step is exact
WHOLE = {"minimum_length": 30, "local_window": 1000, "num_buckets": 4, "num_hashes": 2}


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    with torch.no_grad():  # larger weights: attention that differs from the mean of all keys
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4.0)
    return model


def prompt(b=2, t=40, seed=0):
    return torch.randint(3, 64, (b, t), generator=torch.Generator().manual_seed(seed))


def indexes(model):
    return [prompt_index.index_of(layer.self_attn) for layer in model.model.layers]


def generated(model, ids, **options):
    options = {"do_sample": False, "max_new_tokens": 12, "output_logits": True} | options
    found = model.generate(ids, return_dict_in_generate=True, **options)
    return found.sequences, found.logits


@pytest.mark.parametrize(
    "options",
    [
        {}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 4}, {"cache_implementation": "static"},
        {"attention_mask": [5, 0]},
    ],
    ids=["greedy", "beams", "several", "assisted", "static", "padding"],
)  # fmt: skip
def test_steps_by_an_index_are_those_of_the_cache(model, options):
    from reformer_c import torch as rt

    ids = prompt(1 if "prompt_lookup_num_tokens" in options else 2)
    if "attention_mask" in options:
        mask = torch.ones_like(ids)
        for row, padding in enumerate(options["attention_mask"]):
            mask[row, :padding] = 0
        options = {"attention_mask": mask}
    model.set_attn_implementation("sdpa")
    expected, logits = generated(model, ids, **options)
    rt.use_lsh_attention(model, **WHOLE)
    found, mine = generated(model, ids, **options)
    assert torch.equal(found, expected)
    for a, b in zip(mine, logits):
        assert_close(a.numpy(), b.numpy(), "parity_output")
    if "cache_implementation" in options:  # its masks are of pairs: exact
        assert indexes(model) == [None, None]
        return
    assert all(index.length >= ids.shape[1] + 11 for index in indexes(model))


def test_a_new_prompt_and_short_prompts_leave_no_index(model):
    from reformer_c import torch as rt

    rt.use_lsh_attention(model, **WHOLE)
    generated(model, prompt(seed=1))
    first = indexes(model)
    again, _ = generated(model, prompt(seed=2))
    assert all(a is not b for a, b in zip(first, indexes(model)))
    generated(model, prompt(t=5), max_new_tokens=3)
    assert indexes(model) == [None, None]
    model.set_attn_implementation("sdpa")
    assert torch.equal(again, generated(model, prompt(seed=2))[0])


def test_an_index_can_be_left_out(model):
    from reformer_c import torch as rt

    rt.use_lsh_attention(model, **WHOLE | {"local_window": 2, "cache_index": False})
    found, _ = generated(model, prompt(t=20), max_new_tokens=20)  # too short to be hashed
    assert indexes(model) == [None, None]
    model.set_attn_implementation("sdpa")
    assert torch.equal(found, generated(model, prompt(t=20), max_new_tokens=20)[0])


def test_recall_is_reported_by_the_index_of_a_layer(model):
    from reformer_c import torch as rt

    rt.use_lsh_attention(model, minimum_length=30, local_window=4, num_buckets=8, num_hashes=2)
    generated(model, prompt(t=100))
    (index, _) = indexes(model)
    q = np.random.default_rng(0).standard_normal((2, 4, 1, 8), np.float32)
    report = index.compare(q)
    assert 0 < report.recall.mean() < 1
    assert report.keys.max() < index.length


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_steps_that_are_differentiated_are_exact(model):
    from reformer_c import torch as rt

    rt.use_lsh_attention(model, **WHOLE)
    with torch.no_grad():
        cache = model(prompt(), use_cache=True).past_key_values
    model(prompt(t=1), past_key_values=cache).logits.sum().backward()
    assert indexes(model) == [None, None]
    model.zero_grad()
