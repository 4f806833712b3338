"""Models whose weights are bfloat16 or float16 numbers, in memory and in files."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from small_models import POSITIONS, decoded, random_ids, randomise, small_config
from tolerances import assert_close

import reformer_c as rc
from reformer_c import num_threads
from reformer_c.files.checkpoint import read_safetensors, write_safetensors
from reformer_c.layers.parameters import StepWeights, Weights
from reformer_c.ops import QuantizedWeight

if find_spec("safetensors") is None or find_spec("ml_dtypes") is None:
    pytest.skip("needs safetensors and ml_dtypes", allow_module_level=True)

KINDS = [
    {},
    {"attn_layers": ["full", "full_shared", "local"], "softcap": 1.0, "hidden_act": "gelu"},
    {"attention_scope": "bucket", "hidden_act": "xielu", "chunk_size_feed_forward": 3},
    {"reversible": False, "local_shared_qk": True, "shared_embeddings": True},
    {"attn_layers": ["hash", "local"], "hash_local_window": 2, "hash_seed": 1},
    {"feed_forward_gated": True, "num_key_value_heads": 1, "attn_layers": ["full", "lsh"]},
    {"matmul_precision": "medium", "hidden_act": "prelu"},
    *POSITIONS.values(),
]


@pytest.fixture(params=["bfloat16", "float16"])
def half(request):
    return request.param


def small(kind=rc.ReformerModelWithLMHead, **changes):
    if changes.get("position_embedding_type") == "rotary":
        changes["attn_layers"] = ["full", "lsh"]
    return randomise(kind(small_config(**changes), rng=0))


def reopened(model, folder, half, **changes):
    """The model in half precision, and one of float32 with the same rounded weights."""
    model.save_pretrained(folder / "whole")
    halves = type(model).from_pretrained(folder / "whole", dtype=half)
    halves.save_pretrained(folder / "halves")
    return halves, type(model).from_pretrained(folder / "halves")


def bytes_of(model):
    return sum(array.nbytes for array in model.parameters.values())


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_results_are_those_of_the_rounded_weights_in_float32(tmp_path, half, changes):
    model = small(**changes)
    halves, rounded = reopened(model, tmp_path, half)
    assert 2 * bytes_of(halves) == bytes_of(model)
    ids, mask = random_ids((2, 30)), np.ones((2, 30), int)
    mask[1, 20:] = 0
    for arguments in ({}, {"labels": ids, "output_attentions": True}):
        found, expected = (m(ids, mask, rng=3, **arguments) for m in (halves, rounded))
        assert found.logits.dtype == np.float32
        np.testing.assert_array_equal(found.logits, expected.logits)
        assert found.loss == expected.loss
    assert halves.loss(ids, labels=ids, rng=3) == rounded.loss(ids, labels=ids, rng=3)
    assert (found.logits != model(ids, mask, rng=3).logits).any()


@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_decoding_is_that_of_the_rounded_weights(tmp_path, half, changes, weights):
    halves, rounded = reopened(small(**changes), tmp_path, half)
    ids = random_ids((2, 25))
    options = {"rng": 5, "weights": weights, "cache_dtype": "bfloat16" if weights else None}
    found, expected = (decoded(model, ids, 7, **options) for model in (halves, rounded))
    assert_close(found, expected, "replay", np.float32)
    for n in (1, 3):
        with num_threads(n):
            np.testing.assert_array_equal(decoded(halves, ids, 7, **options), found)
    beams = dict(options, num_beams=3, max_new_tokens=5)
    assert halves.generate(ids, **beams).shape[0] == 2


@pytest.mark.parametrize(
    "kind", [rc.ReformerForMaskedLM, rc.ReformerModel, rc.ReformerForSequenceClassification,
             rc.ReformerForQuestionAnswering],
)  # fmt: skip
def test_every_head(tmp_path, half, kind):
    halves, rounded = reopened(small(kind, is_decoder=False), tmp_path, half)
    ids = random_ids((2, 20))
    for found, expected in zip(halves(ids, rng=1).to_tuple(), rounded(ids, rng=1).to_tuple()):
        np.testing.assert_array_equal(found, expected)


def test_both_sides_of_an_encoder_decoder(tmp_path, half):
    model = randomise(rc.ReformerEncoderDecoder(small_config(is_decoder=False), rng=0))
    halves, rounded = reopened(model, tmp_path, half)
    assert 2 * bytes_of(halves) == bytes_of(model)
    ids, labels = random_ids((2, 20)), random_ids((2, 9))
    found, expected = (m(ids, labels=labels, rng=1) for m in (halves, rounded))
    np.testing.assert_array_equal(found.logits, expected.logits)
    texts = [m.generate(ids, max_new_tokens=6, rng=1) for m in (halves, rounded)]
    assert texts[0].shape == texts[1].shape
    with pytest.raises(TypeError, match=f"^dtype must be float32 or float64 to train, got {half}"):
        halves.loss_and_gradients(ids, labels=labels)
    with pytest.raises(TypeError, match=f"^dtype must be float32 or float64 to train, got {half}"):
        halves.memory(20, 9)


def test_files_keep_the_type_and_the_numbers(tmp_path, half):
    halves, rounded = reopened(small(hidden_act="xielu"), tmp_path, half)
    again = rc.ReformerModelWithLMHead.from_pretrained(tmp_path / "halves", dtype=half)
    for name, array in halves.parameters.items():
        assert array.dtype.name == again.parameters[name].dtype.name == half
        np.testing.assert_array_equal(again.parameters[name], array)
        np.testing.assert_array_equal(rounded.parameters[name], array.astype(np.float32))
    config = json.loads((tmp_path / "halves" / "config.json").read_text())
    assert config["dtype"] == half
    # transformers would round what is saved again if the file still said so
    for dtype in ("float32", "float64"):
        wide = rc.ReformerModelWithLMHead.from_pretrained(tmp_path / "halves", dtype=dtype)
        wide.save_pretrained(tmp_path / "wide")
        assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == dtype
    sizes = [(tmp_path / x / "model.safetensors").stat().st_size for x in ("whole", "halves")]
    weights = bytes_of(rounded)
    assert sizes[0] - sizes[1] > 0.45 * weights
    # a larger vocabulary, of the same type
    halves.resize_token_embeddings(20, rng=1)
    assert {array.dtype.name for array in halves.parameters.values()} == {half}
    assert halves(random_ids((1, 9)), rng=0).logits.shape == (1, 9, 20)


def test_a_model_may_be_made_in_half_precision(half):
    config = small_config()
    model, whole = (rc.ReformerModelWithLMHead(config, rng=0, dtype=d) for d in (half, "float32"))
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(array, whole.parameters[name].astype(array.dtype))
    assert half in repr(model)
    assert model.cache_bytes(30) == whole.cache_bytes(30)


def test_vectors_are_float32(half):
    model = rc.ReformerModel(small_config(is_decoder=False), rng=0, dtype=half)
    vectors = np.random.default_rng(0).standard_normal((1, 21, 16)).astype(np.float32)
    assert model(inputs_embeds=vectors).last_hidden_state.dtype == np.float32
    with pytest.raises(TypeError, match=r"^inputs_embeds must be float32, got float16"):
        model(inputs_embeds=vectors.astype(np.float16))


def test_training_is_refused_before_any_work(monkeypatch, half):
    model = rc.ReformerModelWithLMHead(small_config(), rng=0, dtype=half)
    body = rc.ReformerModel(small_config(), rng=0, dtype=half)
    forward = "reformer_c.models.body.Pass.forward"
    monkeypatch.setattr(forward, lambda *_, **__: pytest.fail("it ran"))
    ids = random_ids((1, 20))
    for call in (
        lambda: model.loss_and_gradients(ids, labels=ids), lambda: model.memory(20),
        lambda: body.forward(ids), lambda: body.loss_and_gradients(ids, loss=lambda h: (0, h)),
    ):  # fmt: skip
        with pytest.raises(
            TypeError, match=f"^dtype must be float32 or float64 to train, got {half}"
        ):
            call()
    with pytest.raises(TypeError, match=r"^parameters\['.*'\] must be a float32 or float64 array"):
        rc.AdamW(model.parameters)


@pytest.mark.parametrize("dtype", ["int8", np.complex64, "bfloat17", object, ">f2"])
def test_another_dtype_is_refused(tmp_path, dtype):
    small().save_pretrained(tmp_path)
    words = "^dtype must be float32 or float64, bfloat16 or float16, got"
    with pytest.raises(TypeError, match=words):
        rc.ReformerModelWithLMHead.from_pretrained(tmp_path, dtype=dtype)


def test_numbers_that_are_too_large_for_float16_are_refused(tmp_path):
    model = small()
    name = "lm_head.decoder.weight"
    model.parameters[name][2, 3] = 1e5
    model.save_pretrained(tmp_path)
    assert rc.ReformerModelWithLMHead.from_pretrained(tmp_path, dtype="bfloat16")
    with pytest.raises(ValueError, match=rf"^{name} must be within the range of float16, got .*1e"):
        rc.ReformerModelWithLMHead.from_pretrained(tmp_path, dtype="float16")


def test_without_ml_dtypes_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    small().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match=r"^dtype='bfloat16' needs the ml_dtypes library"):
        rc.ReformerModelWithLMHead.from_pretrained(tmp_path, dtype="bfloat16")
    assert rc.ReformerModelWithLMHead.from_pretrained(tmp_path, dtype="float16")


def test_steps_read_bfloat16_weights_where_they_are():
    model = rc.ReformerModelWithLMHead(small_config(), rng=0, dtype="bfloat16")
    name = "lm_head.decoder.weight"
    matrix = StepWeights().matrix(Weights(model.parameters, {}), name)
    assert isinstance(matrix, QuantizedWeight)
    assert np.shares_memory(matrix.data, model.parameters[name])


def test_tensors_of_bfloat16_are_read_one_at_a_time(tmp_path):
    import ml_dtypes

    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), ml_dtypes.bfloat16),
        "number": np.array(1.5, ml_dtypes.bfloat16),
        "wide": rng.standard_normal(7).astype(np.float32),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    found = read_safetensors(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert found[name].dtype == np.float32 and found[name].shape == tensor.shape
        np.testing.assert_array_equal(found[name], tensor.astype(np.float32))
