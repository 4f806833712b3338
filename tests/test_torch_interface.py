"""attn_implementation="reformer_c_lsh": models of transformers whose attention is hashed."""

import subprocess
import sys
import warnings
from importlib.util import find_spec
from inspect import signature

import pytest
from tolerances import assert_close

for library in ("torch", "transformers"):
    if find_spec(library) is None:
        pytest.skip(f"needs {library}: pip install '.[parity]'", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside other projects are no failures here
    import torch
    import transformers

    import reformer_c.torch as rt
    from reformer_c.torch import interface

NAME = "reformer_c_lsh"
SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
    max_position_embeddings=256,
)  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
# every key is in the window: the exact result
WHOLE = {"minimum_length": 1, "local_window": 1000, "num_buckets": 4, "num_hashes": 2}
T = 50
CAUSAL = {
    "llama": lambda **c: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, **c)),
    "qwen2": lambda **c: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED, **c)),
    "qwen3": lambda **c: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, **c)),
    "gpt2": lambda **c: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=256, **c)
    ),
}
# an exact implementation to compare with, and the model; all have a sliding window of 16
SLIDING = {
    "mistral": ("sdpa", lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(sliding_window=16, **GROUPED))),
    "gemma2": ("eager", lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(sliding_window=16, attn_logit_softcapping=2.0, **GROUPED))),
    "modernbert": ("sdpa", lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(local_attention=16, pad_token_id=0, **SIZES))),
}  # fmt: skip


def made(build, **options):
    torch.manual_seed(0)
    model = build(**options).eval()
    with torch.no_grad():  # larger weights: attention that differs from the mean of all keys
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4.0)
    return model


def bert(**options):
    return made(
        lambda **c: transformers.BertModel(transformers.BertConfig(**SIZES, **c)), **options
    )


def tokens(b=2, t=T, seed=0):
    return torch.randint(3, 64, (b, t), generator=torch.Generator().manual_seed(seed))


def states(model, *arguments, **options):
    with torch.no_grad():
        return model(*arguments, **options)[0]


def hashed_calls(monkeypatch):
    """Counts the calls of the hashed operation."""
    calls, original = [], interface.lsh_attention

    def count(*arguments, **options):
        calls.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr(interface, "lsh_attention", count)
    return calls


def close(found, expected):
    assert_close(found.numpy(), expected.numpy(), "transformers")


# ---- registration and settings ----


def test_importing_registers_it_and_does_not_import_transformers():
    code = (
        "import sys, reformer_c.torch\n"
        "assert 'transformers' not in sys.modules\n"
        "from transformers import BertConfig, BertModel\n"
        "config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)\n"
        "print(BertModel._from_config(config, attn_implementation='reformer_c_lsh')"
        ".config._attn_implementation)\n"
        "from transformers import AttentionInterface\n"
        "print('reformer_c_lsh' in AttentionInterface())\n"
        "assert not any('imports' in type(x).__module__ for x in sys.meta_path)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert run.stdout.split() == [NAME, "True"], run.stderr


def test_settings_are_kept_in_the_configuration_and_in_its_file(tmp_path, monkeypatch):
    model = rt.use_lsh_attention(bert(), num_hashes=3, num_buckets=[2, 4], minimum_length=10)
    kept = {
        "num_hashes": 3, "num_buckets": [2, 4], "local_window": 64, "minimum_length": 10,
        "hash_seed": 0, "cache_index": True, "sinks": 4,
    }  # fmt: skip
    assert model.config.reformer_c_lsh == kept
    model.save_pretrained(tmp_path)
    again = transformers.BertModel.from_pretrained(tmp_path, attn_implementation=NAME).eval()
    assert again.config.reformer_c_lsh == kept
    calls = hashed_calls(monkeypatch)
    assert torch.equal(states(model, tokens()), states(again, tokens()))
    assert len(calls) == 4
    assert (calls[0]["num_hashes"], calls[0]["num_buckets"]) == (3, [2, 4])
    # another call sets all of them anew, and the model can go back
    assert rt.use_lsh_attention(model).config.reformer_c_lsh["num_hashes"] == 4
    model.set_attn_implementation("sdpa")
    close(states(model, tokens()), states(bert(), tokens()))
    assert len(calls) == 4


def test_models_have_settings_of_their_own():
    one, two = bert(), bert()
    rt.use_lsh_attention(one, **WHOLE)
    rt.use_lsh_attention(two, minimum_length=1, num_buckets=32, num_hashes=1, local_window=None)
    exact = states(bert(), tokens())
    close(states(one, tokens()), exact)
    assert (states(two, tokens()) - exact).abs().max() > 0.01


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"num_hashes": 0}, "num_hashes must be an integer >= 1, got 0"),
        ({"num_buckets": 3}, "num_buckets must be"),
        ({"local_window": -1}, "local_window must be an integer >= 0 .*, got -1"),
        ({"local_window": 2**31}, r"local_window must be an integer .* < 2\*\*31, got"),
        ({"minimum_length": 0}, "minimum_length must be an integer >= 1, got 0"),
        ({"hash_seed": 0.5}, "hash_seed must be an integer >= 0, got 0.5"),
        ({"num_hash": 1}, "did you mean num_hashes"),
    ],
)
def test_a_setting_that_is_wrong_is_refused_before_the_model_changes(setting, error):
    model = bert()
    with pytest.raises((TypeError, ValueError), match=error):
        rt.use_lsh_attention(model, **setting)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation(NAME)
    model.config.reformer_c_lsh = setting
    with pytest.raises((TypeError, ValueError), match=error):
        states(model, tokens())


def test_settings_that_are_no_dict_are_refused():
    _, call = attended(settings=5)
    with pytest.raises(TypeError, match=r"^config.reformer_c_lsh must be a dict, got int"):
        call()


@pytest.mark.parametrize("given", [torch.nn.Linear(2, 2), "bert"])
def test_what_is_not_a_model_of_transformers_is_refused(given):
    with pytest.raises(TypeError, match="model must be a PreTrainedModel of transformers, got"):
        rt.use_lsh_attention(given)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_does_not_use_the_interface_is_refused():
    config = transformers.ReformerConfig(attn_layers=["local"])
    with pytest.raises(TypeError, match="AttentionInterface, got ReformerModel"):
        rt.use_lsh_attention(transformers.ReformerModel(config))


# ---- the same as exact attention where every key is found ----


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_bert_with_every_key_in_its_window_is_exact(side, monkeypatch):
    calls = hashed_calls(monkeypatch)
    model, mask = bert(), torch.ones(2, T, dtype=torch.int64)
    if side != "none":
        mask[1, 30:] = 0
        mask = mask.flip(1) if side == "left" else mask
    expected = states(model, tokens(), attention_mask=mask)
    found = states(rt.use_lsh_attention(model, **WHOLE), tokens(), attention_mask=mask)
    close(found[mask != 0], expected[mask != 0])
    assert len(calls) == 2
    assert not calls[0]["is_causal"]
    assert tuple(calls[0]["attention_mask"].shape) == (2, T)
    close(states(model, tokens()), states(bert(), tokens()))
    assert calls[2]["attention_mask"] is None


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_model_with_every_key_in_its_window_is_exact(kind, side, monkeypatch):
    calls = hashed_calls(monkeypatch)
    model, mask = made(CAUSAL[kind]), torch.ones(2, T, dtype=torch.int64)
    if side != "none":
        mask[1, 30:] = 0
        mask = mask.flip(1) if side == "left" else mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    call = dict(attention_mask=mask, position_ids=positions, use_cache=False)
    expected = states(model, tokens(), **call)
    found = states(rt.use_lsh_attention(model, **WHOLE), tokens(), **call)
    close(found[mask != 0], expected[mask != 0])
    assert len(calls) == 2 and calls[0]["is_causal"]


@pytest.mark.parametrize("kind", CAUSAL)
def test_gradients_are_those_of_exact_attention(kind):
    gradients = []
    for settings in (None, WHOLE):
        model = made(CAUSAL[kind])
        if settings:
            rt.use_lsh_attention(model, **settings)
        model(tokens(), labels=tokens()).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[1].items():
        # the gradient of a key's bias is 0, as the difference of larger ones
        scale = float(gradients[0][name.replace("k_proj.bias", "v_proj.bias")].abs().max())
        close_gradients = gradient.numpy(), gradients[0][name].numpy()
        assert_close(*close_gradients, "transformers", scale=scale)


@pytest.mark.parametrize("settings", [WHOLE, {"minimum_length": 1000}], ids=["hashed", "exact"])
@pytest.mark.parametrize("padding", [0, 7])
def test_generate_after_a_prompt(settings, padding):
    model = made(CAUSAL["llama"])
    ids, mask = tokens(), torch.ones(2, T, dtype=torch.int64)
    mask[0, :padding] = 0
    options = dict(attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    expected = model.generate(ids, **options)
    rt.use_lsh_attention(model, **settings)
    assert torch.equal(model.generate(ids, **options), expected)
    options |= {"num_beams": 2, "cache_implementation": "static"}
    found = model.generate(ids, **options, disable_compile=True)
    model.set_attn_implementation("sdpa")
    assert torch.equal(found, model.generate(ids, **options, disable_compile=True))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("minimum", [1, 30, 1000])
def test_a_prompt_may_be_read_in_parts(minimum, padded):
    """Queries are the last positions of the keys that the cache holds."""
    model, ids = made(CAUSAL["llama"]), tokens()
    mask = torch.ones(2, T, dtype=torch.int64)
    mask[0, : 5 * padded] = 0
    expected = states(model, ids, attention_mask=mask)
    rt.use_lsh_attention(model, **WHOLE | {"minimum_length": minimum})
    with torch.no_grad():
        first = model(ids[:, :33], attention_mask=mask[:, :33], use_cache=True)
        # of two versions of transformers
        name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        rest = model(ids[:, 33:], attention_mask=mask, **{name: first[name]})
    found = torch.cat([first.logits, rest.logits], 1)
    close(found[mask != 0], expected[mask != 0])


def test_an_encoder_decoder(monkeypatch):
    calls = hashed_calls(monkeypatch)
    config = transformers.BartConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    model = made(lambda: transformers.BartModel(config))
    mask = torch.ones(2, T, dtype=torch.int64)
    mask[1, 40:] = 0
    call = dict(attention_mask=mask, decoder_input_ids=tokens(t=30, seed=1), use_cache=False)
    expected = states(model, tokens(), **call)
    close(states(rt.use_lsh_attention(model, **WHOLE), tokens(), **call), expected)
    # encoder, decoder, and the decoder to the encoder
    assert [options["is_causal"] for options in calls] == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model = made(CAUSAL["llama"]).to(dtype)
    expected = states(model, tokens())
    found = states(rt.use_lsh_attention(model, **WHOLE), tokens())
    assert found.dtype == dtype
    kind = "transformers" if dtype == torch.float64 else "transformers_half"
    assert_close(found.double().numpy(), expected.double().numpy(), kind)


# ---- what hashing does ----


@pytest.mark.parametrize("build", [bert, lambda: made(CAUSAL["llama"])], ids=["bert", "llama"])
def test_more_rounds_are_closer_to_exact_attention(build):
    model = build()
    exact = states(model, tokens(t=200))
    errors = []
    for rounds in (1, 4, 16):
        rt.use_lsh_attention(
            model, num_hashes=rounds, num_buckets=8, local_window=4, minimum_length=1
        )
        errors.append(float((states(model, tokens(t=200)) - exact).norm() / exact.norm()))
    assert errors[0] > errors[1] > errors[2] > 0.0


def test_the_seed_draws_the_rotations_and_each_layer_has_its_own(monkeypatch):
    calls = hashed_calls(monkeypatch)
    model = rt.use_lsh_attention(made(CAUSAL["llama"]), minimum_length=1, local_window=2)
    one, two = states(model, tokens()), states(model, tokens())
    assert torch.equal(one, two)
    rt.use_lsh_attention(model, minimum_length=1, local_window=2, hash_seed=7)
    assert not torch.equal(states(model, tokens()), one)
    assert [options["rng"] for options in calls] == [0, 1, 0, 1, 7, 8]
    rt.use_lsh_attention(model, minimum_length=1, local_window=2, hash_seed=None)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(states(model, tokens()))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_short_calls_are_exact(monkeypatch):
    calls = hashed_calls(monkeypatch)
    model = bert()
    expected = states(model, tokens())
    rt.use_lsh_attention(model, minimum_length=T + 1)
    close(states(model, tokens()), expected)
    assert not calls
    rt.use_lsh_attention(model, minimum_length=T)
    states(model, tokens())
    assert len(calls) == 2


@pytest.mark.parametrize("minimum", [1, 1000])
def test_dropout_is_that_of_the_probabilities(minimum):
    config = transformers.BertConfig(
        **SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5
    )
    model = made(lambda: transformers.BertModel(config)).train()
    rt.use_lsh_attention(model, **WHOLE | {"minimum_length": minimum})
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(states(model, tokens()))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], states(model.eval(), tokens()))


# ---- other masks ----


@pytest.mark.parametrize("kind", SLIDING)
@pytest.mark.parametrize("padded", [False, True])
def test_sliding_windows_are_exact(kind, padded, monkeypatch):
    monkeypatch.setattr(interface, "ROWS", 16)
    calls = hashed_calls(monkeypatch)
    exact, build = SLIDING[kind]
    model, mask = made(build), torch.ones(2, T, dtype=torch.int64)
    mask[1, 30:] = 1 - padded
    model.set_attn_implementation(exact)
    expected = states(model, tokens(), attention_mask=mask)
    rt.use_lsh_attention(model, **WHOLE)
    close(states(model, tokens(), attention_mask=mask)[mask != 0], expected[mask != 0])
    full = [x == "full_attention" for x in getattr(model.config, "layer_types", None) or []]
    assert len(calls) == sum(full)


@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_generate_with_a_sliding_window(kind):
    exact, build = SLIDING[kind]
    model = made(build)
    model.set_attn_implementation(exact)
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    expected = model.generate(tokens(), **options)
    rt.use_lsh_attention(model, **WHOLE)
    assert torch.equal(model.generate(tokens(), **options), expected)


def test_packed_sequences_do_not_see_each_other(monkeypatch):
    calls = hashed_calls(monkeypatch)
    model, ids = made(CAUSAL["llama"]), tokens(1)
    positions = torch.cat([torch.arange(20), torch.arange(T - 20)])[None]
    call = dict(position_ids=positions, use_cache=False)
    expected = states(model, ids, **call)
    rt.use_lsh_attention(model, **WHOLE)
    found = states(model, ids, **call)
    close(found, expected)
    close(found[:, 20:], states(model, ids[:, 20:], use_cache=False))
    assert len(calls) == 2  # of the second sequence alone


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_four_dimensions_are_honoured(kind):
    model, ids = made(CAUSAL["llama"]), tokens()
    mask = torch.rand(2, 1, T, T, generator=torch.Generator().manual_seed(1)) < 0.5
    mask |= torch.eye(T, dtype=torch.bool)
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = states(model, ids, attention_mask=mask)
    close(states(rt.use_lsh_attention(model, **WHOLE), ids, attention_mask=mask), expected)


def attended(b=1, h=2, hk=2, tq=9, tk=9, d=4, depth=4, **options):
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.config, module.is_causal = transformers.BertConfig(), options.pop("causal", True)
    module.config.reformer_c_lsh = options.pop("settings", WHOLE)
    tensors = torch.randn(b, h, tq, d), torch.randn(b, hk, tk, d), torch.randn(b, hk, tk, depth)
    mask = options.pop("attention_mask", None)
    return tensors, lambda: interface.attention_function(module, *tensors, mask, **options)[0]


def test_later_tokens_of_a_causal_prompt_change_nothing_before_them():
    model = rt.use_lsh_attention(
        made(CAUSAL["llama"]), minimum_length=1, num_buckets=8, local_window=1
    )
    ids = tokens()
    other = torch.cat([ids[:, :30], tokens(seed=1)[:, 30:]], 1)
    whole, changed, start = (states(model, x) for x in (ids, other, ids[:, :30]))
    assert not torch.equal(whole, changed)
    close(changed[:, :30], whole[:, :30])
    close(start, whole[:, :30])


@pytest.mark.parametrize("minimum", [1, 100])
@pytest.mark.parametrize(("d", "depth"), [(6, 4), (4, 6)])
def test_values_of_another_depth(d, depth, minimum):
    tensors, call = attended(d=d, depth=depth, settings=WHOLE | {"minimum_length": minimum})
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True)
    close(call(), expected.transpose(1, 2))


def test_a_position_bias_is_added():
    bias = torch.randn(1, 2, 9, 9)
    tensors, call = attended(position_bias=bias, scaling=1.0)
    hidden = torch.ones(9, 9).tril() == 0
    bias = bias.masked_fill(hidden, -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, bias, scale=1.0)
    close(call(), expected.transpose(1, 2))


def test_no_queries():
    _, call = attended(tq=0, causal=False)
    assert call().shape == (1, 0, 2, 4)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"s_aux": torch.zeros(2)}, "s_aux must be None .* got a Tensor"),
        ({"head_mask": torch.zeros(2)}, "head_mask must be None"),
        ({"output_attentions": True}, "output_attentions must be False"),
        ({"sliding_window": 4}, "attention_mask must be one of pairs with a sliding window of 4"),
        (
            {"cu_seq_lens_q": torch.tensor([0, 4, 9])},
            r"attention_mask must be one of pairs for packed sequences \(cu_seq_lens_q\), got None",
        ),
        ({"tq": 9, "tk": 5}, "query must have at most 5 tokens, as key has, got 9"),
        (
            {"attention_mask": torch.ones(1, 9, 9)},
            r"attention_mask must have 2 or 4 .* got shape \(1, 9, 9\)",
        ),
        (
            {"attention_mask": torch.ones(1, 1, 9, 9, dtype=torch.int64)},
            "attention_mask must be bool or floating",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(options, error):
    _, call = attended(**options)
    with pytest.raises(ValueError, match=error):
        call()


def test_a_compiled_model():
    model = rt.use_lsh_attention(bert(), **WHOLE)
    expected = states(model, tokens())
    close(states(torch.compile(model, backend="aot_eager"), tokens()), expected)
