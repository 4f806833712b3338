"""GenerationConfig: checked options, their order of precedence, and their files."""

import json

import numpy as np
import pytest
from small_models import random_ids, randomise, small_config

from reformer_c.models.decoder import Decoder
from reformer_c.models.generation_config import DEFAULTS, UNSUPPORTED, GenerationConfig
from reformer_c.models.model import ReformerModelWithLMHead


@pytest.fixture
def model():
    return randomise(ReformerModelWithLMHead(small_config(attn_layers=["local"]), rng=0))


def write(folder, name, **values):
    path = folder / name
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(kept | values))


def only(token):
    """A processor that leaves one token."""
    return lambda ids, z: np.where(np.arange(len(z)) == token, 0.0, -np.inf)


# ---- options ----


def test_a_misspelt_field_is_refused_with_the_nearest_name(model):
    with pytest.raises(AttributeError, match=r"^temprature: .*did you mean temperature?"):
        model.generation_config.temprature = 0.5
    with pytest.raises(TypeError, match=r"^temprature: .*did you mean temperature?"):
        GenerationConfig(temprature=0.5)
    with pytest.raises(TypeError, match=r"^temprature: .*did you mean temperature?"):
        model.generate([[1]], temprature=0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0), ("top_k", -1), ("do_sample", 1), ("num_beams", 0), ("top_p", "much"),
     ("early_stopping", "soon"), ("bad_words_ids", [[]]), ("eos_token_id", 2.5),
     ("max_length", 0), ("extra", [])],
)  # fmt: skip
def test_a_wrong_value_is_named_where_it_is_assigned(model, name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must "):
        setattr(model.generation_config, name, value)
    with pytest.raises((TypeError, ValueError), match=f"^{name} must "):
        GenerationConfig(**{name: value})


def test_every_option_may_be_none(model):
    plain = model.generate([[3, 4]], max_new_tokens=5)
    for name in DEFAULTS:
        given = model.generate([[3, 4]], **{"max_new_tokens": 5, name: None})
        assert np.array_equal(given[:, :7], plain), name
    for name in ("bad_words_ids", "suppress_tokens", "logits_processor", "attention_mask",
                 "prefix_allowed_tokens_fn", "streamer", "generation_config"):  # fmt: skip
        assert np.array_equal(model.generate([[3, 4]], max_new_tokens=5, **{name: None}), plain)


def test_the_call_goes_before_the_argument_before_the_model_before_the_defaults(model):
    given = GenerationConfig(max_new_tokens=3)
    assert model.generate([[1]], eos_token_id=None).shape == (1, 42)  # 100, and 42 positions
    model.generation_config.max_new_tokens = 4
    model.generation_config.eos_token_id = None
    assert model.generate([[1]]).shape == (1, 5)
    assert model.generate([[1]], generation_config=given).shape == (1, 4)
    assert model.generate([[1]], generation_config=given, max_new_tokens=2).shape == (1, 3)
    # None turns off an option of lower precedence
    assert model.generate([[1]], generation_config=given, max_new_tokens=None).shape == (1, 42)


def test_a_length_of_the_call_goes_before_one_of_the_model_however_it_is_counted(model):
    model.generation_config = GenerationConfig(max_new_tokens=4, min_new_tokens=4)
    assert model.generate([[1, 2]], max_length=9, min_length=0).shape == (1, 9)
    assert model.generate([[1, 2]], max_new_tokens=2).shape == (1, 4)
    with pytest.warns(UserWarning, match=r"^max_length: max_new_tokens=2 overrides it"):
        assert model.generate([[1, 2]], max_new_tokens=2, max_length=9).shape == (1, 4)


def test_lengths_count_the_padded_prompt(model):
    ids, mask = [[0, 0, 3], [4, 5, 6]], [[0, 0, 1], [1, 1, 1]]
    options = {"attention_mask": mask, "eos_token_id": 5}
    assert model.generate(ids, max_length=7, min_length=7, **options).shape == (2, 7)
    model.parameters["lm_head.bias"][5] = 100
    found = model.generate(ids, max_length=9, min_length=5, **options)
    assert found[:, 3:].tolist()[0][2:] == [5] and (found[:, 3:5] != 5).all()
    with pytest.raises(ValueError, match=r"^min_length must be at most 5, .*, got 6"):
        model.generate(ids, max_length=5, min_length=6, **options)


def test_a_token_cannot_be_forced_and_suppressed(model):
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        with pytest.raises(ValueError, match=rf"^{name} must not be in suppress_tokens"):
            model.generate([[1]], suppress_tokens=[3, 4], **{name: 3})


def test_top_k_is_50_by_default_and_off_as_0_or_none():
    config = small_config(attn_layers=["local"], vocab_size=60)
    model = ReformerModelWithLMHead(config, rng=0)
    flat = lambda ids, z: -np.arange(60) * 1e-3  # noqa: E731
    options = {"do_sample": True, "logits_processor": flat, "eos_token_id": None, "rng": 0,
               "max_new_tokens": 20, "num_return_sequences": 20}  # fmt: skip
    assert model.generate([[1]], **options)[:, 1:].max() == 49
    for off in (0, None):
        assert model.generate([[1]], top_k=off, **options)[:, 1:].max() == 59


def test_ids_of_one_text_and_a_mask_in_second_place(model):
    row = model.generate([[4, 5, 6]], max_new_tokens=5)
    assert np.array_equal(model.generate([4, 5, 6], max_new_tokens=5), row)
    padded, mask = np.array([9, 4, 5, 6]), [0, 1, 1, 1]
    for found in (model.generate(padded, mask, max_new_tokens=5),
                  model.generate(padded[None], [mask], max_new_tokens=5)):  # fmt: skip
        assert np.array_equal(found[:, 1:], row)
    assert model.generate([], max_new_tokens=2, eos_token_id=None).shape == (1, 2)


def test_no_ids_are_the_token_that_begins_a_text(model):
    with pytest.raises(TypeError, match=r"^input_ids must be given, or a bos_token_id"):
        model.generate()
    model.generation_config.bos_token_id = 7
    assert np.array_equal(model.generate(max_new_tokens=4), model.generate([[7]], max_new_tokens=4))
    first = model.generate(bos_token_id=6, max_new_tokens=4)
    assert np.array_equal(first, model.generate([[6]], max_new_tokens=4))


# ---- special tokens ----


def test_the_configuration_s_end_and_pad_are_used():
    model = ReformerModelWithLMHead(
        small_config(attn_layers=["local"], eos_token_id=[2, 3], pad_token_id=7), rng=0
    )
    end = lambda ids, z: only(3 if ids[0] == 1 or len(ids) > 2 else 9)(ids, z)  # noqa: E731
    found = model.generate([[1], [4]], max_new_tokens=9, logits_processor=end)
    assert found.tolist() == [[1, 3, 7, 7], [4, 9, 9, 3]]
    assert np.array_equal(model.generate([[1], [4]], logits_processor=end), found)
    assert model.generate([[1]], logits_processor=end, eos_token_id=None).shape == (1, 42)
    found = model.generate([[1], [4]], logits_processor=end, pad_token_id=8)
    assert found[0].tolist() == [1, 3, 8, 8]


def test_without_a_pad_the_end_is_repeated():
    model = ReformerModelWithLMHead(small_config(attn_layers=["local"], pad_token_id=None), rng=0)
    end = lambda ids, z: only(2 if ids[0] == 1 or len(ids) > 2 else 9)(ids, z)  # noqa: E731
    assert model.generate([[1], [4]], logits_processor=end).tolist() == [[1, 2, 2, 2], [4, 9, 9, 2]]


@pytest.mark.parametrize("eos", [-1, 13, [99, -1], [], None])
def test_an_end_that_the_vocabulary_has_not_never_comes(eos):
    config = small_config(attn_layers=["local"], eos_token_id=eos, pad_token_id=-1)
    model = ReformerModelWithLMHead(config, rng=0)
    assert model.generate([[1]], max_new_tokens=9).shape == (1, 10)
    none = {"eos_token_id": [], "bad_words_ids": [], "suppress_tokens": [], "pad_token_id": None}
    assert model.generate([[1]], max_new_tokens=9, **none).shape == (1, 10)


# ---- files ----


def test_the_folder_s_options_are_read_applied_and_kept(tmp_path, model):
    model.save_pretrained(tmp_path)
    write(tmp_path, "generation_config.json", max_new_tokens=7, repetition_penalty=3.0,
          eos_token_id=None, maker="us", _from_model_config=True, compile_config=None)  # fmt: skip
    opened = ReformerModelWithLMHead.from_pretrained(tmp_path)
    ids = random_ids((2, 4))
    written = opened.generate(ids)
    assert written.shape == (2, 11)
    assert np.array_equal(written, model.generate(
        ids, max_new_tokens=7, repetition_penalty=3.0, eos_token_id=None))  # fmt: skip
    options = opened.generation_config
    assert (options.max_new_tokens, options.repetition_penalty) == (7, 3.0)
    opened.generation_config.top_p = 0.5
    opened.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert again["maker"] == "us" and again["max_new_tokens"] == 7 and again["top_p"] == 0.5
    assert again["repetition_penalty"] == 3.0


def test_a_special_token_that_is_changed_goes_before_the_folder_s(tmp_path, model):
    model.save_pretrained(tmp_path)
    opened = ReformerModelWithLMHead.from_pretrained(tmp_path, eos_token_id=5)
    assert opened.generation_config.eos_token_id == opened.config.eos_token_id == 5


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_configuration_says_whether_there_is_a_cache(tmp_path, monkeypatch, use_cache):
    opened = []
    monkeypatch.setattr(
        "reformer_c.models.generation.Decoder",
        lambda *args, **options: opened.append(args) or Decoder(*args, **options),
    )
    model = ReformerModelWithLMHead(small_config(use_cache=not use_cache), rng=0)
    model.save_pretrained(tmp_path)
    changed = ReformerModelWithLMHead.from_pretrained(tmp_path, use_cache=use_cache)
    for one, expected in ((model, not use_cache), (changed, use_cache)):
        opened.clear()
        one.generate([[1]], max_new_tokens=2)
        assert bool(opened) == expected


def test_a_folder_of_before_has_its_options_in_config_json(tmp_path, model):
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    write(tmp_path, "config.json", repetition_penalty=3.0, max_length=9, eos_token_id=None)
    opened = ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert opened.generation_config.repetition_penalty == 3.0
    assert opened.generate([[1, 2]]).shape == (1, 9)


@pytest.mark.parametrize("values", [
    {"temperature": -1}, {"top_k": "many"}, {"num_beams": -2}, {"do_sample": "yes"},
])  # fmt: skip
def test_a_wrong_value_in_a_folder_is_named(tmp_path, model, values):
    model.save_pretrained(tmp_path)
    write(tmp_path, "generation_config.json", **values)
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(values))} must "):
        ReformerModelWithLMHead.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not JSON"), ("[1]", ".*must be a JSON object, got list")]
)
def test_a_file_that_is_no_json_object_is_named(tmp_path, model, text, words):
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises((TypeError, ValueError), match=f"generation_config.json'.*{words}"):
        ReformerModelWithLMHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("given", [{"top_k": 2}, GenerationConfig])
def test_another_kind_of_options_says_how_to_make_ours(model, given):
    with pytest.raises(TypeError, match=r"^generation_config must be a reformer_c.*from_dict"):
        model.generate([[1]], generation_config=given)
    with pytest.raises(TypeError, match=r"^generation_config must be a reformer_c.*from_dict"):
        model.generation_config = given


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_what_is_not_built_is_said_and_kept(tmp_path, model, file):
    model.save_pretrained(tmp_path)
    if file == "config.json":
        (tmp_path / "generation_config.json").unlink()
    write(tmp_path, file, penalty_alpha=0.6, num_beam_groups=1, guidance_scale=None)
    with pytest.warns(UserWarning, match=f"^{file}: penalty_alpha=0.6 is not supported"):
        opened = ReformerModelWithLMHead.from_pretrained(tmp_path)
    opened.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / file).read_text())["penalty_alpha"] == 0.6
    with pytest.raises(TypeError, match=r"^penalty_alpha: generate has no such argument"):
        model.generate([[1]], penalty_alpha=0.6)


def test_a_temperature_of_0_that_is_not_used_is_kept():
    file = {"do_sample": False, "temperature": 0.0}  # as in some models of transformers
    config = GenerationConfig.from_dict(file)
    assert config.temperature is None
    assert config.to_dict() == file
    with pytest.raises(ValueError, match=r"^temperature must be a number > 0"):
        GenerationConfig.from_dict({"do_sample": True, "temperature": 0.0})


def test_a_key_that_is_nearly_an_option_is_said():
    with pytest.warns(UserWarning, match="unknown option temprature; did you mean temperature?"):
        GenerationConfig.from_dict({"temprature": 0.5})


def test_no_option_is_in_both_lists():
    names = set(GenerationConfig.__dataclass_fields__)
    assert not names & UNSUPPORTED.keys() and DEFAULTS.keys() <= names
