"""Folders of weights: written atomically, and every tensor that does not fit is named."""

import json
import os
import shutil
import struct
import sys

import numpy as np
import pytest
from small_models import POSITIONS, random_ids, randomise, small_config

from reformer_c.files import checkpoint
from reformer_c.files.checkpoint import (
    load_into,
    read_safetensors,
    save_folder,
    write_atomically,
    write_safetensors,
)
from reformer_c.models.config import ReformerConfig
from reformer_c.models.model import (
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerModel,
    ReformerModelWithLMHead,
)

safetensors = pytest.importorskip("safetensors")


@pytest.fixture
def model():
    return randomise(ReformerModelWithLMHead(small_config(extra={"task": "prose"}), rng=0))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ---- the round trip ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_model_comes_back_bit_for_bit(tmp_path, dtype, positions):
    config = small_config(**POSITIONS[positions])
    model = randomise(ReformerModelWithLMHead(config, rng=0, dtype=dtype))
    model.save_pretrained(tmp_path / "new" / "folder")
    back = ReformerModelWithLMHead.from_pretrained(tmp_path / "new" / "folder", dtype=dtype)
    assert same(back.parameters, model.parameters)
    assert back.dtype == dtype
    ids = random_ids((2, 17))
    assert np.array_equal(back(ids, rng=0).logits, model(ids, rng=0).logits)


def test_opening_a_folder_completes_a_save_that_was_killed(tmp_path, model):
    folder = tmp_path / "model"
    old = ReformerModelWithLMHead(model.config, rng=9)
    old.save_pretrained(folder)
    model.save_pretrained(folder / ".saved")
    os.replace(folder / ".saved" / "config.json", folder / "config.json")
    opened = ReformerModelWithLMHead.from_pretrained(folder)
    assert same(opened.parameters, model.parameters)
    assert not (folder / ".saved").exists()


def test_the_folder_holds_what_transformers_looks_for(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["ReformerModelWithLMHead"]
    assert config["task"] == "prose"
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted([*model.parameters, "lm_head.decoder.bias"])


def test_the_dtype_may_change_on_the_way_in(tmp_path, model):
    model.save_pretrained(tmp_path)
    wide = ReformerModelWithLMHead.from_pretrained(tmp_path, dtype=np.float64)
    assert all(array.dtype == np.float64 for array in wide.parameters.values())
    assert same(wide.parameters, {k: np.float64(v) for k, v in model.parameters.items()})


def test_arrays_that_are_not_contiguous_keep_their_values(tmp_path):
    a = np.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "t": a.transpose(2, 0, 1),
        "step": a[:, ::2, 1:],
        "flipped": a[::-1],
        "columns": np.asfortranarray(a[0]),
        "repeated": np.broadcast_to(np.float32(3), (2, 3)),
        "one": a[0, 0, 0],
    }
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors)
    assert same(read_safetensors(path), tensors)
    # and as the format's specification says, for any version of the library
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, data = json.loads(data[8 : 8 + size]), data[8 + size :]
    for name, array in tensors.items():
        start, end = header[name]["data_offsets"]
        assert header[name]["shape"] == list(array.shape)
        assert data[start:end] == array.tobytes(), name


# ---- what the files hold ----


def rewrite(folder, change):
    tensors = read_safetensors(folder / "model.safetensors")
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path, model):
    model.save_pretrained(tmp_path)

    def damage(tensors):
        for name in ("lm_head.bias", "lm_head.decoder.bias"):
            del tensors[name]
        del tensors["reformer.encoder.layer_norm.weight"]
        tensors["pooler.weight"] = np.zeros(3, np.float32)

    rewrite(tmp_path, damage)
    with pytest.raises(
        ValueError, match=r"missing: .*encoder\.layer_norm\.weight, lm_head\.bias"
    ) as e:
        ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert "unexpected: pooler.weight" in str(e.value)

    def deform(tensors):
        tensors["lm_head.decoder.weight"] = np.zeros((2, 2), np.float32)
        tensors["lm_head.bias"] = np.zeros(13, np.int64)

    rewrite(tmp_path, deform)
    with pytest.raises(
        ValueError, match=r"lm_head\.decoder\.weight: float32\[2, 2\] in the file"
    ) as e:
        ReformerModelWithLMHead.from_pretrained(tmp_path, strict=False)
    assert "lm_head.bias: int64[13]" in str(e.value)
    # the other tensors are named too
    assert "missing: reformer.encoder.layer_norm.weight" in str(e.value)
    assert "unexpected: pooler.weight" in str(e.value)


def test_the_bias_of_the_head_has_two_names(tmp_path, model):
    names = {"lm_head.bias", "lm_head.decoder.bias"}
    model.parameters["lm_head.bias"][:] = 5
    model.save_pretrained(tmp_path)
    written = read_safetensors(tmp_path / "model.safetensors")
    assert written.keys() == {*model.parameters, *names}
    for name in names:  # either will do
        assert (written[name] == 5).all()
        only = {n: array for n, array in written.items() if n == name or n not in names}
        write_safetensors(tmp_path / "model.safetensors", only)
        back = ReformerModelWithLMHead.from_pretrained(tmp_path)
        assert same(back.parameters, model.parameters)
    # of the two, the decoder's, in either order
    for order in (sorted(names), sorted(names, reverse=True)):
        tensors = iter([(n, np.full(320, n == "lm_head.decoder.bias", np.float32)) for n in order])
        bias = {"lm_head.bias": np.zeros(320, np.float32)}
        assert load_into(bias, tensors, model._own_name) == ([], [], [])
        assert bias["lm_head.bias"].all()


def test_mask_constants_of_old_checkpoints_are_passed_over(tmp_path, model):
    model.save_pretrained(tmp_path)
    at = "reformer.encoder.layers.0.attention.self_attention."
    names = [f"{at}{kind}_value_float{bits}" for kind in ("self_mask", "mask") for bits in (16, 32)]
    rewrite(tmp_path, lambda t: t.update({name: np.float32(-1e9) for name in names}))
    assert same(ReformerModelWithLMHead.from_pretrained(tmp_path).parameters, model.parameters)


def test_constants_of_an_activation_are_saved_and_read_with_its_weights(tmp_path):
    config = small_config(hidden_act="xielu", attn_layers=["local"])
    model = randomise(ReformerModelWithLMHead(config, rng=0))
    at = "reformer.encoder.layers.0.feed_forward.dense.act_fn."
    model.buffers[f"{at}beta"][...] = 0.25
    model.save_pretrained(tmp_path)
    back = ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert same(back.parameters, model.parameters)
    assert same(back.buffers, model.buffers)
    assert sorted(back.buffers) == [f"{at}beta", f"{at}eps"]
    ids = random_ids((2, 17))
    assert np.array_equal(back(ids).logits, model(ids).logits)
    fresh = ReformerModelWithLMHead(config, rng=0)
    assert fresh.buffers[f"{at}beta"] == 0.5
    fresh.parameters.update(model.parameters)
    assert not np.array_equal(fresh(ids).logits, model(ids).logits)

    rewrite(tmp_path, lambda t: [t.pop(f"{at}eps"), t.pop(f"{at}alpha_p")])
    with pytest.raises(ValueError, match=rf"missing: {at}alpha_p, {at}eps"):
        ReformerModelWithLMHead.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="missing"):
        back = ReformerModelWithLMHead.from_pretrained(tmp_path, strict=False)
    assert back.parameters[f"{at}alpha_p"] == np.float32(0.2041015625)
    assert same(back.buffers, model.buffers)


def test_shards_are_read_by_their_index(tmp_path, model):
    model.save_pretrained(tmp_path)
    tensors = read_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for i, part in enumerate((names[:7], names[7:])):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        write_safetensors(tmp_path / shard, {name: tensors[name] for name in part})
        index |= dict.fromkeys(part, shard)
    index_file = tmp_path / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert same(ReformerModelWithLMHead.from_pretrained(tmp_path).parameters, model.parameters)

    index_file.write_text(json.dumps({"weight_map": index | {"absent": shard}}))
    with pytest.raises(ValueError, match=f"{shard} lacks absent"):
        ReformerModelWithLMHead.from_pretrained(tmp_path)
    index_file.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="not a file of the folder"):
        ReformerModelWithLMHead.from_pretrained(tmp_path)
    index_file.write_text("{}")
    with pytest.raises(ValueError, match="weight_map"):
        ReformerModelWithLMHead.from_pretrained(tmp_path)


def test_bfloat16_and_half_precision_are_read(tmp_path):
    header = {
        "bf": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},
        "half": {"dtype": "F16", "shape": [1], "data_offsets": [4, 6]},
    }
    text = json.dumps(header).encode()
    data = struct.pack("<2H", 0x3FC0, 0xC000) + np.float16(0.5).tobytes()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    tensors = read_safetensors(tmp_path / "a.safetensors")
    assert tensors["bf"].tolist() == [[1.5, -2.0]]
    assert tensors["half"].tolist() == [0.5]


HEADS = {
    ReformerModel: [],
    ReformerModelWithLMHead: ["lm_head.decoder.weight", "lm_head.bias"],
    ReformerForMaskedLM: ["lm_head.decoder.weight", "lm_head.bias"],
    ReformerForSequenceClassification: [
        f"classifier.{layer}.{kind}"
        for layer in ("dense", "out_proj")
        for kind in ("weight", "bias")
    ],
    ReformerForQuestionAnswering: ["qa_outputs.weight", "qa_outputs.bias"],
}


@pytest.mark.parametrize("to", HEADS)
@pytest.mark.parametrize("kind", HEADS)
def test_a_model_opens_under_another_head(tmp_path, kind, to):
    source = randomise(kind(small_config(is_decoder=kind is ReformerModelWithLMHead), rng=1))
    source.save_pretrained(tmp_path)
    changes = {"is_decoder": to is ReformerModelWithLMHead}
    if HEADS[kind] == HEADS[to]:
        model = to.from_pretrained(tmp_path, rng=5, **changes)
    else:
        with pytest.warns(UserWarning, match="from_pretrained: ") as warned:
            model = to.from_pretrained(tmp_path, rng=5, **changes)
        text = str(warned.pop().message)
        assert text.startswith(f"{to.__name__}.from_pretrained: ")
        assert not warned.list
        # every tensor that was initialized, and every one that is unused
        assert all(name in text for name in HEADS[kind] + HEADS[to])
        assert ("missing: " in text, "drawn" in text) == (bool(HEADS[to]),) * 2
        assert ("unexpected: " in text, "not used" in text) == (bool(HEADS[kind]),) * 2
        assert "reformer." not in text
    fresh = to(small_config(**changes), rng=5)
    for name, array in model.parameters.items():
        body = name.removeprefix("reformer.")
        if name in source.parameters:
            expected = source.parameters[name]
        elif name in HEADS[to]:
            expected = fresh.parameters[name]
        else:
            expected = source.parameters.get(body, source.parameters.get(f"reformer.{body}"))
        assert np.array_equal(array, expected), name


def test_a_part_of_a_head_or_of_the_body_is_not_enough(tmp_path):
    model = ReformerForSequenceClassification(small_config(is_decoder=False), rng=1)
    for name in ("classifier.dense.bias", "reformer.encoder.layer_norm.bias"):
        model.save_pretrained(tmp_path)
        rewrite(tmp_path, lambda tensors, name=name: tensors.pop(name))
        with pytest.raises(ValueError, match=rf"missing: {name}.*strict=False"):
            ReformerForSequenceClassification.from_pretrained(tmp_path)
    # nor may tensors of the body be missing if the head is initialized
    with pytest.raises(ValueError, match=rf"\(missing: {name}\)"):
        ReformerForQuestionAnswering.from_pretrained(tmp_path)


def test_fields_of_the_configuration_may_be_given(tmp_path):
    config = small_config(is_decoder=False, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    ReformerForSequenceClassification(config, rng=1).save_pretrained(tmp_path)
    open_ = ReformerForSequenceClassification.from_pretrained
    model = open_(tmp_path, num_hashes=5, problem_type="regression", output_attentions=True)
    changed = model.config
    assert (changed.num_hashes, changed.num_labels) == (5, 3)
    assert len(model(random_ids((1, 9))).attentions) == 3
    assert ReformerConfig.from_pretrained(tmp_path, num_labels=5).id2label[4] == "LABEL_4"
    assert open_(tmp_path, config=config, num_hashes=4).config.num_hashes == 4
    assert config.num_hashes == 2
    with pytest.raises(ValueError, match=r"classifier\.out_proj.*ignore_mismatched_sizes=True"):
        open_(tmp_path, num_labels=5)
    with pytest.warns(
        UserWarning,
        match=r"missing: classifier\.out_proj\.\w+, .*\.\w+; missing weights were drawn",
    ):
        model = open_(tmp_path, num_labels=5, ignore_mismatched_sizes=True, rng=5)
    assert model(random_ids((1, 9))).logits.shape == (1, 5)
    # no tensor of the body is ignored
    with pytest.raises(
        ValueError, match=r"embeddings.word_embeddings.weight: .*; resize_token_emb"
    ):
        open_(tmp_path, vocab_size=14, ignore_mismatched_sizes=True)
    for wrong, right in (
        ("num_label", "num_labels"),
        ("stric", "strict"),
        ("hiden_size", "hidden"),
    ):
        with pytest.raises(TypeError, match=f"^{wrong}: .*did you mean {right}"):
            open_(tmp_path, **{wrong: 3})
    with pytest.raises(TypeError, match=r"^revison: .*did you mean revision"):
        ReformerConfig.from_pretrained(tmp_path, revison="main")
    with pytest.raises(ValueError, match=r"^num_hashes must be an integer"):
        open_(tmp_path, num_hashes=0)


def test_the_lines_of_transformers_page_on_a_classifier(tmp_path, model):
    model.save_pretrained(tmp_path)
    ids = random_ids((1, 9))
    with pytest.warns(UserWarning, match=r"missing: classifier\."):
        classifier = ReformerForSequenceClassification.from_pretrained(tmp_path, is_decoder=False)
    logits = classifier.eval()(ids).logits
    predicted_class_id = logits.argmax().item()
    assert classifier.config.id2label[predicted_class_id] == f"LABEL_{predicted_class_id}"
    num_labels = len(classifier.config.id2label)
    with pytest.warns(UserWarning, match=r"missing: classifier\."):
        classifier = ReformerForSequenceClassification.from_pretrained(
            tmp_path, num_labels=num_labels, is_decoder=False
        )
    labels = np.array(1)
    loss = classifier(ids, labels=labels).loss
    assert round(loss.item(), 2) == round(loss, 2) > 0
    with pytest.raises(TypeError, match=r"^config must be a ReformerConfig"):
        ReformerForSequenceClassification.from_pretrained(tmp_path, config={}, num_labels=3)


# ---- names with a prefix ----

PREFIXES = {
    "module.{}": None, "_orig_mod.{}": None, "model.{}": None, "net.{}": None,
    "module._orig_mod.{}": None, "model.module._orig_mod.{}": None,
    "reformer._orig_mod.{}": "reformer.",
}  # fmt: skip


@pytest.mark.parametrize(("pattern", "of"), PREFIXES.items())
@pytest.mark.parametrize("kind", [ReformerModelWithLMHead, ReformerModel])
def test_what_programs_put_before_names_is_taken_off(tmp_path, pattern, of, kind):
    model = randomise(kind(small_config(), rng=0))
    model.save_pretrained(tmp_path)

    def wrap(tensors):
        for name in list(tensors):
            if of is None or name.startswith(of):
                tensors[pattern.format(name.removeprefix(of or ""))] = tensors.pop(name)

    rewrite(tmp_path, wrap)
    assert same(kind.from_pretrained(tmp_path).parameters, model.parameters)
    # under another head too
    other = {"is_decoder": False, "rng": 0}
    with pytest.warns(UserWarning, match=r"missing: qa_outputs\.weight"):
        answering = ReformerForQuestionAnswering.from_pretrained(tmp_path, **other)
    name = "embeddings.word_embeddings.weight"
    word = model.parameters.get(name, model.parameters.get(f"reformer.{name}"))
    assert np.array_equal(answering.parameters[f"reformer.{name}"], word)


def test_tensors_of_two_models_are_refused(tmp_path, model):
    def twice(before):
        return lambda tensors: tensors.update(
            {f"{before}.{name}": array + 1 for name, array in tensors.items()}
        )

    for before in ("module", "ema_model"):
        model.save_pretrained(tmp_path)
        rewrite(tmp_path, twice(before))
        with pytest.raises(ValueError, match=rf"{before}\..* must be tensors of one model"):
            ReformerModelWithLMHead.from_pretrained(tmp_path)


def test_a_checkpoint_of_reformer_pytorch_is_named(tmp_path, model):
    model.save_pretrained(tmp_path)
    block = "reformer.layers.blocks.0.f.net"
    tensors = {
        "token_emb.weight": (13, 16), f"{block}.norm.weight": (16,),
        f"{block}.fn.toqk.weight": (12, 16), f"{block}.fn.tov.weight": (12, 16),
        "out.1.weight": (13, 16),
    }  # fmt: skip
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    for prefix in ("", "module."):
        write_safetensors(
            tmp_path / "model.safetensors", {prefix + name: a for name, a in tensors.items()}
        )
        for strict in (True, False):
            with pytest.raises(ValueError, match=r"those of reformer_pytorch \(.*toqk.weight\)"):
                ReformerModelWithLMHead.from_pretrained(tmp_path, strict=strict)


def test_a_file_in_which_nothing_fits_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {"w": np.zeros(3, np.float32)})
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"missing: .*; unexpected: w\)"):
            ReformerModelWithLMHead.from_pretrained(tmp_path, strict=strict)


def safetensors_of(path, name, kind, shape, data):
    header = {name: {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_numbers_that_numpy_does_not_have_are_named_with_their_tensor(tmp_path, model, kind):
    model.config.to_json(tmp_path)
    path = tmp_path / "model.safetensors"
    safetensors_of(path, "lm_head.bias", kind, [13], bytes(13))
    with pytest.raises(
        ValueError, match=rf"lm_head\.bias as {kind}, must be F64, F32, F16 or BF16"
    ):
        ReformerModelWithLMHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [np.int8, np.bool_, np.int64, np.uint16, np.complex64])
def test_weights_that_are_no_real_numbers_are_named_with_their_dtype(tmp_path, model, kind):
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.bias": np.zeros(13, kind)}))
    rewrite(tmp_path, lambda tensors: tensors.pop("lm_head.decoder.bias"))
    expected = rf"dtype: lm_head\.bias: {np.dtype(kind)}\[13\] in the file, float32\[13\].*\)$"
    for more in ({}, {"ignore_mismatched_sizes": True}, {"strict": False}):
        with pytest.raises(ValueError, match=expected):
            ReformerModelWithLMHead.from_pretrained(tmp_path, **more)


def test_a_configuration_may_take_the_place_of_the_folders(tmp_path):
    ReformerForMaskedLM(small_config(is_decoder=False), rng=0).save_pretrained(tmp_path)
    config = ReformerConfig.from_json(tmp_path)
    config.num_hashes = 5
    assert ReformerForMaskedLM.from_pretrained(tmp_path, config=config).config.num_hashes == 5


@pytest.mark.parametrize("content", [b"", b"xx", struct.pack("<Q", 10**15) + b"{}"])
def test_damaged_files_are_refused(tmp_path, model, content):
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors' is not a safetensors file"):
        ReformerModelWithLMHead.from_pretrained(tmp_path)


def test_what_is_not_there_is_said(tmp_path, model):
    with pytest.raises(FileNotFoundError):
        ReformerModelWithLMHead.from_pretrained(tmp_path / "nowhere")
    model.config.to_json(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model\.bin"
    ):
        ReformerModelWithLMHead.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_safetensors(tmp_path / "a.safetensors")


def test_without_the_library_the_extra_is_named(tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install \"reformer_c\[cli\]\", or from a"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# ---- the hub ----


class FakeHub:
    """huggingface_hub's snapshot_download of one model, from a local folder."""

    def __init__(self, files):
        self.files, self.calls = files, []

    def snapshot_download(self, name, *, revision, allow_patterns):
        self.calls.append((revision, allow_patterns))
        if name != "someone/reformer":
            raise OSError("404: no such repository")
        target = self.files.parent / "snapshot"
        target.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in self.files.glob(pattern):
                shutil.copy(file, target)
        return str(target)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "remote")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def test_a_name_on_the_hub_is_downloaded_and_opened(hub, model):
    model.save_pretrained(hub.files)
    back = ReformerModelWithLMHead.from_pretrained("someone/reformer", revision="main")
    assert same(back.parameters, model.parameters)
    # the older file is not requested if there is a newer one
    ((revision, patterns),) = hub.calls
    assert revision == "main"
    assert not any("bin" in pattern for pattern in patterns)
    assert ReformerConfig.from_pretrained("someone/reformer") == back.config


def test_the_older_file_is_downloaded_where_there_is_no_other(hub, model):
    model.save_pretrained(hub.files)
    (hub.files / "model.safetensors").rename(hub.files / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' is not a PyTorch file"):
        ReformerModelWithLMHead.from_pretrained("someone/reformer")
    assert len(hub.calls) == 2


@pytest.mark.parametrize("name", ["someone/else", "../remote", "/nowhere", "a/b/c"])
def test_names_that_lead_nowhere_are_said(hub, name):
    with pytest.raises(FileNotFoundError, match="folder: there is no folder"):
        ReformerModelWithLMHead.from_pretrained(name)
    assert len(hub.calls) == int(name == "someone/else")


def test_without_the_hubs_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=r"no folder 'a/b'.*pip install \"reformer_c\[hf\]\", or"):
        ReformerModelWithLMHead.from_pretrained("a/b")


# ---- atomic writes ----


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part):
        part.write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path, model, monkeypatch):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(path, tensors):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("reformer_c.files.checkpoint.write_safetensors", fail)
    model.parameters["lm_head.bias"][:] = 1
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            model.save_pretrained(target)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert os.listdir(tmp_path) == ["model"]


def test_saving_again_keeps_the_folders_other_files(tmp_path, model):
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path)
    model.parameters["lm_head.bias"][:] = 7
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "config.json", "generation_config.json", "model.safetensors", "notes.txt",
    ]  # fmt: skip
    assert ReformerModelWithLMHead.from_pretrained(tmp_path).parameters["lm_head.bias"][0] == 7


@pytest.mark.parametrize("folder", [None, 3, b"model"])
def test_what_is_no_path_is_said(model, folder):
    with pytest.raises(TypeError, match=r"^folder must be a path"):
        model.save_pretrained(folder)
    with pytest.raises(TypeError, match=r"^folder must be a path"):
        ReformerModelWithLMHead.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="there is no folder ''"):
        ReformerModelWithLMHead.from_pretrained("")


def test_a_file_is_no_folder(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="folder"):
        model.save_pretrained(tmp_path / "file")


def test_everything_is_flushed_before_it_takes_its_place(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace", "rename"):
        original = getattr(os, name)

        def recorded(*args, name=name, original=original):
            events.append(name)
            return original(*args)

        monkeypatch.setattr(checkpoint.os, name, recorded)
    save_folder(
        tmp_path / "new", {"a": lambda p: p.write_text("1"), "b": lambda p: p.write_text("2")}
    )
    assert events == ["fsync"] * 3 + ["rename", "fsync"]
