"""Against live transformers: outputs, losses and every gradient of all five models."""

import io

import numpy as np
import pytest

import reformer_c
from reformer_c.config import ACTIVATIONS, WITH_WEIGHTS, ReformerConfig
from reformer_c.ops import feed_forward_backward, feed_forward_forward

from . import ours
from .cases import COUNT, LENGTHS, MASKS, MODELS, draw_case
from .conftest import HAVE_LIVE

if not HAVE_LIVE:
    pytest.skip("needs live transformers: pip install '.[parity]'", allow_module_level=True)

from . import live

CASES = [draw_case(seed) for seed in range(COUNT)]
# earlier versions have fewer activations
CASES = [case for case in CASES if case.config["hidden_act"] in live.ACT2FN]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.description)
def test_outputs_and_losses(case, dtype):
    model = live.our_model(case, dtype)
    theirs, rotations = live.evaluate(live.their_model(case, model), case, dtype)
    ours.assert_same(ours.evaluate(model, case, rotations), theirs, dtype)


TRAINABLE = [case for case in CASES if case.trains and case.targets]
# a causal language model has nothing to say about a text of one token
TRAINABLE = [
    case
    for case in TRAINABLE
    if case.model != "ReformerModelWithLMHead" or case.inputs["input_ids"].shape[1] > 1
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", TRAINABLE, ids=lambda case: case.description)
def test_gradients_of_every_weight(case, dtype):
    model = live.our_model(case, dtype)
    theirs, rotations = live.train(live.their_model(case, model), case, dtype)
    ours.assert_same(ours.train(model, case, rotations), theirs, dtype)


def test_the_cases_cover_what_they_should():
    assert len(CASES) >= 40
    assert len(TRAINABLE) >= 20
    descriptions = " | ".join(case.description for case in CASES)
    for kind in (*MODELS, *LENGTHS, *(f"mask {side}" for side in MASKS)):
        assert kind in descriptions


# ---- configurations and folders ----


@pytest.mark.skipif(live.APPLIES_BIAS, reason="of version 5")
def test_every_field_has_their_default():
    theirs = live.transformers.ReformerConfig().to_dict()
    ours_ = ReformerConfig().to_dict()
    # what their library notes about itself, and names of classes that follow from num_labels
    notes = {
        "transformers_version", "architectures", "return_dict", "dtype", "is_encoder_decoder",
        "id2label", "label2id", "_name_or_path",
    }  # fmt: skip
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items()}
    assert {k: v for k, v in plain.items() if k not in notes} == {
        k: v for k, v in ours_.items() if k != "num_labels"
    }
    assert live.transformers.ReformerConfig().num_labels == ReformerConfig().num_labels


@pytest.mark.skipif(live.APPLIES_BIAS, reason="of version 5")
def test_every_activation_that_they_accept_by_name_is_accepted():
    assert {*live.ACT2FN} == {*ACTIVATIONS, *WITH_WEIGHTS}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS.keys() & live.ACT2FN))
def test_activations_and_their_slopes_are_theirs(name):
    torch = live.torch
    x = np.linspace(-12, 12, 4001)
    variable = torch.tensor(x, requires_grad=True)
    y = live.ACT2FN[name](variable)
    y.backward(torch.ones_like(y))
    one, none = np.ones((1, 1)), np.zeros(1)
    kind = ReformerConfig(hidden_act=name).activation
    out, saved = feed_forward_forward(x[:, None], one, none, one, none, activation=kind)
    slope = feed_forward_backward(np.ones_like(out), saved)[0]
    np.testing.assert_allclose(out[:, 0], y.detach().numpy(), rtol=1e-9, atol=1e-9)
    # at a corner either side's slope is right
    smooth = np.abs(np.diff(slope[:, 0], prepend=slope[0])) < 0.1
    theirs = variable.grad.numpy()
    np.testing.assert_allclose(slope[smooth, 0], theirs[smooth], rtol=1e-8, atol=2e-9)


@pytest.mark.parametrize("name", MODELS)
def test_folders_open_on_both_sides_bit_for_bit(tmp_path, name):
    case = next(case for case in CASES if case.model == name and case.inputs["input_ids"].size > 20)
    model = live.our_model(case, np.float32)
    model.save_pretrained(tmp_path / "ours")
    kind = getattr(live.transformers, name)
    theirs, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
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


def test_arrays_that_are_not_contiguous_are_saved_as_what_they_are(tmp_path):
    case = next(case for case in CASES if case.model == "ReformerModelWithLMHead")
    model = live.our_model(case, np.float32)
    name = "lm_head.decoder.weight"
    model.parameters[name] = np.asfortranarray(model.parameters[name])
    model.save_pretrained(tmp_path)
    theirs = live.transformers.ReformerModelWithLMHead.from_pretrained(tmp_path)
    np.testing.assert_array_equal(theirs.lm_head.decoder.weight.detach(), model.parameters[name])


# ---- the head's bias: version 4 adds it, version 5 does not ----


@pytest.mark.parametrize("name", MODELS[1:3])
def test_the_heads_bias_is_what_versions_4_and_5_differ_in(name):
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
        np.testing.assert_allclose(logits, without["logits"] + apply * bias, atol=1e-9)


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
        assert tokenizer.encode(text).tolist() == theirs.encode(text), text
    assert tokenizer.eos_token_id == theirs.eos_token_id
