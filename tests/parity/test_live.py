"""Against live transformers: outputs, losses and every gradient of all five models."""

import contextlib
import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
from small_models import small_config
from tolerances import assert_close, assert_each_close

import reformer_c
from reformer_c.layers.activations import WEIGHTED
from reformer_c.models.config import ReformerConfig
from reformer_c.models.config_keys import ACTIVATIONS
from reformer_c.ops import axial_positions, feed_forward_backward, feed_forward_forward

from . import ours
from .cases import COUNT, LENGTHS, MASKS, MODELS, draw_cases
from .conftest import HAVE_LIVE

if not HAVE_LIVE:
    pytest.skip("needs live transformers: pip install '.[parity]'", allow_module_level=True)

from . import live

# of each configuration and length, the cases with every kind of mask
GROUPS = {
    f"{seed}, {length}": draw_cases(seed, length) for seed in range(COUNT) for length in LENGTHS
}
# earlier versions have fewer activations
GROUPS = {
    name: group for name, group in GROUPS.items() if group[0].config["hidden_act"] in live.ACT2FN
}
CASES = [case for group in GROUPS.values() for case in group]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_outputs_and_losses(group, dtype):
    model = live.our_model(group[0], dtype)
    their_model = live.their_model(group[0], model)
    for case in group:
        theirs, rotations = live.evaluate(their_model, case, dtype)
        with naming(case):
            ours.assert_same(ours.evaluate(model, case, rotations), theirs, dtype)


def trains(group):
    # a causal language model predicts nothing in a text of one token
    t = group[0].inputs["input_ids"].shape[1]
    silent = group[0].model == "ReformerModelWithLMHead" and t == 1
    return group[0].trains and bool(group[0].targets) and not silent


TRAINABLE = {name: group for name, group in GROUPS.items() if trains(group)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("group", TRAINABLE.values(), ids=TRAINABLE)
def test_gradients_of_every_weight(group, dtype):
    model = live.our_model(group[0], dtype)
    their_model = live.their_model(group[0], model)
    for case in group:
        theirs, rotations = live.train(their_model, case, dtype)
        with naming(case):
            ours.assert_same(ours.train(model, case, rotations), theirs, dtype)


@contextlib.contextmanager
def naming(case):
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{case.description}: {error}") from error


def test_the_cases_cover_what_they_should():
    assert len(GROUPS) >= 40 * len(LENGTHS)
    assert len(TRAINABLE) >= 40
    assert {case.config["hidden_act"] for case in CASES} == {*ACTIVATIONS} & {*live.ACT2FN}
    for chosen in (CASES, [case for group in TRAINABLE.values() for case in group]):
        texts = " | ".join(case.description for case in chosen)
        wanted = [*MODELS, *LENGTHS, *(f"mask {side}" for side in MASKS)]
        if chosen is not CASES:  # no loss; no length that transformers trains on
            wanted = [word for word in wanted if word not in ("ReformerModel", "ragged")]
        assert all(f" {word} " in f" {texts} " for word in wanted)
        for name in ("chunk_size_feed_forward", "chunk_size_lm_head"):
            assert any(case.config[name] > 1 for case in chosen)
        for name in ("position_ids", "inputs_embeds", "num_hashes", "attention_mask"):
            assert any(name in case.extras or name in case.inputs for case in chosen)
        for name in ("local_num_chunks_before", "lsh_num_chunks_after"):
            assert {0, 1, 2} <= {case.config[name] for case in chosen}
        for name in ("axial_pos_embds", "is_decoder"):
            assert {False, True} == {case.config[name] for case in chosen}


def test_a_class_is_read_from_padding_as_theirs_is():
    case = next(
        case for case in CASES
        if case.model == "ReformerForSequenceClassification"
        and not case.inputs.get("attention_mask", np.ones((1, 1)))[:, 0].all()
    )  # fmt: skip
    model = live.our_model(case, np.float64)
    theirs, rotations = live.evaluate(live.their_model(case, model), case, np.float64)
    with pytest.warns(UserWarning, match=r"^attention_mask: row \d+ begins with padding"):
        mine = ours.evaluate(model, case, rotations)
    ours.assert_same(mine, theirs, np.float64)


# ---- configurations and folders ----


@pytest.mark.skipif(live.VERSION < (5, 0), reason="of version 5")
def test_every_field_has_their_default():
    theirs = live.transformers.ReformerConfig().to_dict()
    ours_ = ReformerConfig().to_dict()
    # metadata of their library, and class names that follow from num_labels
    notes = {
        "transformers_version", "architectures", "dtype", "id2label", "label2id", "_name_or_path",
    }  # fmt: skip
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items()}
    assert {k: v for k, v in plain.items() if k not in notes} == {
        k: v for k, v in ours_.items() if k != "num_labels"
    }
    assert live.transformers.ReformerConfig().num_labels == ReformerConfig().num_labels
    # and those that it does not write
    for field in dataclasses.fields(live.transformers.ReformerConfig):
        if field.name not in ("id2label", "label2id"):  # theirs are made from num_labels
            value = getattr(live.transformers.ReformerConfig(), field.name)
            value = list(value) if isinstance(value, tuple) else value
            assert getattr(ReformerConfig(), field.name) == value, field.name


VALUES = [
    None, True, False, -1, 0, 1, 2, 4096, 0.5, 1.5, -0.5, "x", "relu", [], [1], [4, 4], [1.5],
    ["local"], ["global"], [64, 192], {}, {"0": "a"},
]  # fmt: skip


@pytest.mark.skipif(live.VERSION < (5, 0), reason="of version 5")
@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(live.transformers.ReformerConfig)]
)
def test_what_they_refuse_is_refused_with_the_fields_name(name):
    """But for whole numbers where they insist on a point, as in layer_norm_eps=0."""
    for value in VALUES:
        if type(value) is int and isinstance(getattr(ReformerConfig(), name), float):
            continue
        if name == "dtype" and isinstance(value, str):
            continue  # they look it up in torch
        try:
            live.transformers.ReformerConfig(**{name: value})
        except Exception:
            # a layer type that does not occur may have None, as in their own checkpoints
            if value is None and name.startswith("local_"):
                ReformerConfig(**{name: None}, attn_layers=["lsh"])
            with pytest.raises((TypeError, ValueError), match=rf"^{name} must "):
                ReformerConfig(**{name: value})


@pytest.mark.parametrize("changes", [{}, {"num_buckets": [2, 4], "classifier_dropout": 0.1}])
def test_configurations_go_both_ways_and_keep_unknown_fields(tmp_path, changes):
    theirs = live.transformers.ReformerConfig(**changes, num_labels=3, task="prose")
    theirs.save_pretrained(tmp_path / "theirs")
    config = ReformerConfig.from_pretrained(tmp_path / "theirs")
    assert config.num_labels == 3
    assert config.extra["task"] == "prose"
    config.save_pretrained(tmp_path / "ours")
    back = live.transformers.ReformerConfig.from_pretrained(tmp_path / "ours")
    assert back.task == "prose"
    own = (
        "attention_scope",
        "memory_budget",
        "kept_dtype",
        "residual_dtype",
        "apply_lm_head_bias",
        "label_smoothing",
        "shared_embeddings",
    )
    assert not any(hasattr(back, name) for name in own)
    before, after = theirs.to_dict(), back.to_dict()
    assert {name: after[name] for name in before} == before


@pytest.mark.skipif(live.VERSION < (5, 0), reason="version 4 keeps the names")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_labels": 5, "id2label": {0: "a", 1: "b", 2: "c"}},
        {"id2label": {0: "a", 1: "b", 2: "c"}},
        {"attn_layers": ["lsh"], "task_specific_params": {"a": 1}, "sinusoidal_pos_embds": True},
    ],
)
def test_a_configuration_is_made_of_what_theirs_writes(changes):
    theirs = live.transformers.ReformerConfig(**changes)
    written = theirs.to_dict()
    for config in (ReformerConfig(**written), ReformerConfig(**changes)):
        assert config.num_labels == theirs.num_labels
        assert (config.id2label, config.label2id) == (theirs.id2label, theirs.label2id)
    back = live.transformers.ReformerConfig(**ReformerConfig(**written).to_dict())
    assert {name: back.to_dict()[name] for name in written} == written


@pytest.mark.parametrize(
    ("kinds", "count"),
    [(["local"], 2), (["lsh"], 3), (["lsh", "lsh"], 1), (["local", "lsh"], 1), (["local"] * 2, 3)],
)
def test_as_many_layers_as_theirs_builds(tmp_path, kinds, count):
    config = small_config(attn_layers=kinds, num_hidden_layers=count, is_decoder=False)
    theirs = live.transformers.ReformerConfig(**config.to_dict())
    theirs = live.transformers.ReformerModel(theirs).eval()
    built = [type(layer.attention.self_attention).__name__ for layer in theirs.encoder.layers]
    assert [name.removesuffix("SelfAttention").lower() for name in built] == config.layer_types
    theirs.save_pretrained(tmp_path)
    model = reformer_c.ReformerModel.from_pretrained(tmp_path)
    ids = np.arange(12)[None]
    with live.recorded_rotations(0) as rotations, live.torch.no_grad():
        expected = theirs(live.torch.tensor(ids), use_cache=False)[0].numpy()
    actual = model(ids, rotations=rotations)[0]
    assert_close(actual, expected, "forward")


@pytest.mark.skipif(live.VERSION < (5, 0), reason="of version 5")
def test_every_activation_that_they_accept_by_name_is_accepted():
    assert {*live.ACT2FN} == {*ACTIVATIONS}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS.keys() & live.ACT2FN))
def test_activations_and_their_slopes_are_theirs(name):
    torch = live.torch
    x = np.linspace(-12, 12, 4001)
    variable = torch.tensor(x, requires_grad=True)
    function = live.ACT2FN[name].double()
    y = function(variable)
    y.backward(torch.ones_like(y))
    if name in WEIGHTED:
        values = {key: value.item() for key, value in function.state_dict().items()}
        # their initial values are rounded to bfloat16, and so are ours
        assert values == WEIGHTED[name].weights | WEIGHTED[name].constants
        out = WEIGHTED[name].forward(x, **values)
        slope, slopes = WEIGHTED[name].backward(np.ones_like(x), x, **values)
        theirs = {key: weight.grad.item() for key, weight in function.named_parameters()}
        assert_each_close(slopes, theirs, "backward")
    else:
        one, none = np.ones((1, 1)), np.zeros(1)
        kind = ReformerConfig(hidden_act=name).activation
        out, saved = feed_forward_forward(x[:, None], one, none, one, none, activation=kind)
        slope = feed_forward_backward(np.ones_like(out), saved)[0][:, 0]
        out = out[:, 0]
    assert_close(out, y.detach(), "model_forward")
    # at a corner either side's slope is right
    smooth = np.abs(np.diff(slope, prepend=slope[0])) < 0.1
    theirs = variable.grad.numpy()
    assert_close(slope[smooth], theirs[smooth], "model_forward")


@pytest.mark.parametrize("count", [20, 9])
def test_a_resized_vocabulary_is_theirs_and_opens_there(tmp_path, count):
    model = reformer_c.ReformerForMaskedLM(small_config(is_decoder=False), rng=0)
    model.save_pretrained(tmp_path / "before")
    theirs = live.transformers.ReformerForMaskedLM.from_pretrained(tmp_path / "before")
    theirs.resize_token_embeddings(count, mean_resizing=False)
    model.resize_token_embeddings(count, rng=1)
    model.save_pretrained(tmp_path / "after")
    again = live.transformers.ReformerForMaskedLM.from_pretrained(tmp_path / "after")
    assert again.config.vocab_size == theirs.config.vocab_size == count
    rows = min(13, count)
    for name, array in model.parameters.items():
        for other in (theirs, again):
            if other is theirs and name == "lm_head.bias" and name not in theirs.state_dict():
                continue  # before 5.24 a resized head loses it
            weight = other.state_dict()[name].numpy()
            assert weight.shape == array.shape, name
            if other is again or "embeddings.word" in name or "lm_head" in name:
                kept = slice(None) if other is again else slice(rows)
                np.testing.assert_array_equal(weight[kept], array[kept], err_msg=name)


@pytest.mark.parametrize(
    "name", ["ReformerForSequenceClassification", "ReformerForQuestionAnswering"]
)
def test_their_language_model_opens_under_another_head(tmp_path, name):
    config = live.transformers.ReformerConfig(**small_config().to_dict())
    theirs = live.transformers.ReformerModelWithLMHead(config)
    theirs.save_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match=r"missing: (classifier|qa_outputs)\..*unexpected: lm_head"
    ):
        model = getattr(reformer_c, name).from_pretrained(tmp_path, is_decoder=False, rng=0)
    for key, weight in theirs.reformer.state_dict().items():
        if "mask_value" not in key:
            np.testing.assert_array_equal(model.parameters[f"reformer.{key}"], weight.numpy())
    # and back, a classifier of theirs as a language model
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"unexpected: (classifier|qa_outputs)\."):
        reformer_c.ReformerForMaskedLM.from_pretrained(tmp_path, rng=0)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_have_their_fields_in_their_order(name):
    causal = name == "ReformerModelWithLMHead"
    model = getattr(reformer_c, name)(small_config(is_decoder=causal), rng=0)
    theirs = getattr(live.transformers, name)(
        live.transformers.ReformerConfig(**model.config.to_dict())
    ).eval()
    ids, requested = np.arange(12)[None], {"output_hidden_states": True, "output_attentions": True}
    targets = {
        "ReformerModel": {},
        "ReformerForSequenceClassification": {"labels": np.array([1])},
        "ReformerForQuestionAnswering": {
            "start_positions": np.array([1]), "end_positions": np.array([2])
        },
    }.get(name, {"labels": ids})  # fmt: skip
    for extra in ({}, requested):
        output = model(ids, **targets, **extra)
        with live.torch.no_grad():
            expected = theirs(live.torch.tensor(ids), **live.tensors(targets), **extra)
        names = [field for field in expected if field != "past_buckets_states"]
        assert [*output][: len(names)] == names
        assert {*output} - {*names} <= {"last_hidden_state"}
        for i, field in enumerate(names):
            assert output[i] is output[field]
            assert isinstance(output[i], tuple) == (field in ("hidden_states", "attentions"))
            if not isinstance(output[i], tuple):
                assert np.shape(output[i]) == expected[field].shape
            else:
                assert len(output[i]) == len(expected[field])


@pytest.mark.parametrize("name", MODELS)
def test_folders_open_on_both_sides_bit_for_bit(tmp_path, name):
    case = next(case for case in CASES if case.model == name and case.inputs["input_ids"].size > 20)
    model = live.our_model(case, np.float32)
    model.save_pretrained(tmp_path / "ours")
    kind = getattr(live.transformers, name)
    theirs, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert {*info["unexpected_keys"]} <= {"lm_head.decoder.bias"}  # of other versions
    state = theirs.state_dict()
    for key, array in model.parameters.items():
        np.testing.assert_array_equal(state[key].numpy(), array, err_msg=key)
    theirs.save_pretrained(tmp_path / "theirs")
    back = type(model).from_pretrained(tmp_path / "theirs")
    for key, array in model.parameters.items():
        np.testing.assert_array_equal(back.parameters[key], array, err_msg=key)
    assert back.config.layer_types == model.config.layer_types
    numbers, rotations = live.evaluate(theirs, case, np.float32)
    ours.assert_same(ours.evaluate(model, case, rotations), numbers, np.float32)
    # the same weights as torch.save writes them, in both of its formats
    (tmp_path / "theirs" / "model.safetensors").unlink()
    for zipped in (True, False):
        path = tmp_path / "theirs" / "pytorch_model.bin"
        live.torch.save(state, path, _use_new_zipfile_serialization=zipped)
        back = type(model).from_pretrained(tmp_path / "theirs")
        for key, array in model.parameters.items():
            np.testing.assert_array_equal(back.parameters[key], array, err_msg=key)


@pytest.mark.parametrize("name", sorted(WEIGHTED))
@pytest.mark.skipif(live.VERSION < (5, 0), reason="of version 5")
def test_weights_of_activations_open_on_both_sides(tmp_path, name):
    case = next(case for case in CASES if case.config["hidden_act"] == name)
    # values that bfloat16 has: transformers keeps those of xielu in it
    model = getattr(reformer_c, case.model)(ReformerConfig(**case.config), rng=0)
    for key, array in model.parameters.items():
        if "act_fn" in key:
            array *= 2
    model.save_pretrained(tmp_path / "ours")
    kind = getattr(live.transformers, case.model)
    theirs, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs.save_pretrained(tmp_path / "theirs")
    back = type(model).from_pretrained(tmp_path / "theirs")
    expected = {**model.parameters, **model.buffers}
    state = theirs.state_dict()
    assert {key for key in state if "act_fn" in key} == {key for key in expected if "act_fn" in key}
    for key, array in expected.items():
        np.testing.assert_array_equal(state[key].float().numpy(), array, err_msg=key)
        np.testing.assert_array_equal({**back.parameters, **back.buffers}[key], array, err_msg=key)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_their_shards_open(tmp_path, kind):
    case = next(case for case in CASES if case.model == "ReformerForMaskedLM")
    model = live.our_model(case, np.float32)
    theirs = live.their_model(case, model)
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    if kind == "pytorch_model.bin":  # as version 4 wrote them
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        state = theirs.state_dict()
        for shard in {*index["weight_map"].values()}:
            names = [name for name in index["weight_map"] if index["weight_map"][name] == shard]
            (tmp_path / shard).unlink()
            live.torch.save({name: state[name] for name in names}, tmp_path / f"{shard}.bin")
        index["weight_map"] = {name: f"{f}.bin" for name, f in index["weight_map"].items()}
        (tmp_path / "model.safetensors.index.json").unlink()
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert len([*tmp_path.glob("model-*")]) > 2
    back = reformer_c.ReformerForMaskedLM.from_pretrained(tmp_path)
    for key, array in model.parameters.items():
        np.testing.assert_array_equal(back.parameters[key], array, err_msg=key)


def test_arrays_that_are_not_contiguous_are_saved_as_what_they_are(tmp_path):
    case = next(case for case in CASES if case.model == "ReformerModelWithLMHead")
    model = live.our_model(case, np.float32)
    name = "lm_head.decoder.weight"
    model.parameters[name] = np.asfortranarray(model.parameters[name])
    model.save_pretrained(tmp_path)
    theirs = live.transformers.ReformerModelWithLMHead.from_pretrained(tmp_path)
    np.testing.assert_array_equal(theirs.lm_head.decoder.weight.detach(), model.parameters[name])


# ---- the head's bias: versions add it, but for 5.0 to 5.23 ----


@pytest.mark.parametrize("name", MODELS[1:3])
def test_the_heads_bias_is_what_versions_differ_in(name):
    case = next(case for case in CASES if case.model == name and case.inputs["input_ids"].size > 5)
    model = live.our_model(case, np.float64)
    theirs = live.their_model(case, model)
    without, rotations = live.evaluate(theirs, case, np.float64)
    bias = theirs.lm_head.bias.detach().numpy()
    assert np.abs(bias).max() > 0.01
    if live.APPLIES_BIAS:
        without["logits"] = without["logits"] - bias
    for apply in (False, True):
        model.config.apply_lm_head_bias = apply
        logits = ours.evaluate(model, case, rotations)["logits"]
        assert_close(logits, without["logits"] + apply * bias, "model_forward")


# ---- text ----


@pytest.mark.parametrize("kind", ["ReformerTokenizer", "ReformerTokenizerFast"])
def test_tokenizers_cut_text_as_theirs(tmp_path, kind):
    library = pytest.importorskip("sentencepiece", reason="needs sentencepiece: the extra [hf]")
    pytest.importorskip("google.protobuf", reason="theirs needs protobuf: the extra [parity]")
    lines = ["To be, or not to be: that is the question.", "A few months later, in June."] * 9
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=60, model_type="bpe",
        character_coverage=1.0, bos_id=-1, unk_id=0, eos_id=1, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    theirs = live.transformers.ReformerTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "fast")  # with a tokenizer.json
    folder = tmp_path if kind == "ReformerTokenizer" else tmp_path / "fast"
    tokenizer = getattr(reformer_c, kind).from_pretrained(folder)
    for text in (*lines[:2], "not seen before: bee", "question</s>June", "two  spaces inside"):
        ids = theirs.encode(text)
        assert tokenizer.encode(text).tolist() == ids, text
        # after a special token theirs adds a space that was not there
        assert tokenizer.decode(ids) == theirs.decode(ids).replace("</s> ", "</s>")
    ids = theirs.encode("that \N{SNOWMAN} in")
    assert tokenizer.decode(ids) == theirs.decode(ids) == "that <unk> in"
    assert tokenizer.eos_token_id == theirs.eos_token_id


@pytest.mark.parametrize("shape", [[4, 8], [4, 2, 4], [2, 2, 2, 4]])
def test_axial_positions_of_more_than_two_axes_are_those_of_a_whole_grid(shape):
    """In training, with the length of the grid, the code of transformers is right for any number
    of axes."""
    import torch
    from transformers.models.reformer.modeling_reformer import AxialPositionEmbeddings

    widths = [3, 5, 7, 2][: len(shape)]
    config = small_config(
        axial_pos_shape=shape, axial_pos_embds_dim=widths, hidden_size=sum(widths)
    )
    theirs = AxialPositionEmbeddings(live.transformers.ReformerConfig(**config.to_dict())).train()
    tables = [torch.nn.init.normal_(w).detach().numpy() for w in theirs.weights]
    expected = theirs(torch.arange(32)[None])[0].detach().numpy()
    np.testing.assert_array_equal(axial_positions(np.arange(32), *tables), expected)


@pytest.mark.parametrize("axial", [True, False])
def test_parameters_are_counted_as_theirs(axial):
    config = ReformerConfig(
        attn_layers=["local", "lsh"], num_attention_heads=2, axial_pos_embds=axial
    )
    model = reformer_c.ReformerModel(config, rng=0)
    theirs = live.transformers.ReformerModel(live.transformers.ReformerConfig(**config.to_dict()))
    for arguments in itertools.product([False, True], repeat=2):
        assert model.num_parameters(*arguments) == theirs.num_parameters(*arguments)
