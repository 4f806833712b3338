"""ReformerConfig: Hugging Face's fields, named checks, a round trip that loses nothing."""

import copy
import dataclasses
import json
import math
import pickle
import re

import numpy as np
import pytest
from reference import feed_forward as reference

from reformer_c.models.body import body_shapes
from reformer_c.models.config import ReformerConfig
from reformer_c.models.config_keys import ACTIVATIONS

CRIME_AND_PUNISHMENT = {
    "architectures": ["ReformerModelWithLMHead"],
    "attention_head_size": 64,
    "attention_probs_dropout_prob": 0.1,
    "attn_layers": ["local", "lsh", "local", "lsh", "local", "lsh"],
    "axial_norm_std": 1.0,
    "axial_pos_embds": True,
    "axial_pos_embds_dim": [64, 192],
    "axial_pos_shape": [512, 1024],
    "chunk_size_feed_forward": 0,
    "chunk_size_lm_head": 0,
    "eos_token_id": 2,
    "feed_forward_size": 512,
    "hash_seed": None,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.05,
    "hidden_size": 256,
    "intermediate_size": 3072,
    "is_decoder": True,
    "layer_norm_eps": 1e-12,
    "local_attention_probs_dropout_prob": 0.05,
    "local_attn_chunk_length": 64,
    "lsh_attention_probs_dropout_prob": 0.0,
    "lsh_attn_chunk_length": 64,
    "max_position_embeddings": 524288,
    "model_type": "reformer",
    "num_attention_heads": 2,
    "num_buckets": [64, 128],
    "num_chunks_after": 0,
    "num_chunks_before": 1,
    "num_hashes": 1,
    "num_hidden_layers": 6,
    "sinusoidal_pos_embds": False,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 100}},
    "vocab_size": 320,
}


def count(config):
    return sum(math.prod(shape) for shape in body_shapes(config).values())


def test_defaults_are_those_of_hugging_face():
    config = ReformerConfig()
    expected = {
        "attention_head_size": 64, "attn_layers": ["local", "lsh"] * 3, "axial_norm_std": 1.0,
        "axial_pos_embds": True, "axial_pos_shape": [64, 64], "axial_pos_embds_dim": [64, 192],
        "chunk_size_lm_head": 0, "chunk_size_feed_forward": 0, "classifier_dropout": None,
        "eos_token_id": 2, "pad_token_id": 0, "feed_forward_size": 512, "hash_seed": None,
        "hidden_act": "relu", "hidden_dropout_prob": 0.05, "hidden_size": 256,
        "initializer_range": 0.02, "is_decoder": False, "layer_norm_eps": 1e-12,
        "local_num_chunks_before": 1, "local_num_chunks_after": 0,
        "local_attention_probs_dropout_prob": 0.05, "local_attn_chunk_length": 64,
        "lsh_attn_chunk_length": 64, "lsh_attention_probs_dropout_prob": 0.0,
        "lsh_num_chunks_before": 1, "lsh_num_chunks_after": 0, "max_position_embeddings": 4096,
        "num_attention_heads": 12, "num_buckets": None, "num_hashes": 1, "num_labels": 2,
        "problem_type": None, "vocab_size": 320, "tie_word_embeddings": False, "use_cache": True,
        "num_hidden_layers": 6, "bos_token_id": None, "output_attentions": False,
        "output_hidden_states": False, "return_dict": True, "is_encoder_decoder": False,
    }  # fmt: skip
    assert config.to_dict() == expected | {"model_type": "reformer"}


def test_our_own_fields_are_off_by_default_and_written_only_when_on():
    config = ReformerConfig()
    assert config.attention_scope == "chunk"
    assert config.memory_budget is None
    assert config.kept_dtype is None
    assert config.residual_dtype is None
    assert config.apply_lm_head_bias is True
    assert config.label_smoothing == 0.0
    assert config.shared_embeddings is False
    assert config.local_shared_qk is False
    config = ReformerConfig(
        attention_scope="bucket", memory_budget=math.inf, apply_lm_head_bias=False,
        label_smoothing=0.1, shared_embeddings=True, local_shared_qk=True, kept_dtype="bfloat16",
        num_key_value_heads=4, feed_forward_gated=True, residual_dtype="int16",
    )  # fmt: skip
    written = config.to_dict()
    assert written["memory_budget"] == "inf"
    assert written["attention_scope"] == "bucket"
    assert ReformerConfig.from_dict(json.loads(json.dumps(written))) == config


def test_the_published_configuration_opens_and_comes_back_whole():
    config = ReformerConfig.from_dict(CRIME_AND_PUNISHMENT)
    assert config.to_dict().items() >= CRIME_AND_PUNISHMENT.items()
    assert ReformerConfig.from_dict(config.to_dict()) == config


def test_published_models_have_the_published_number_of_parameters():
    config = ReformerConfig.from_dict(CRIME_AND_PUNISHMENT)
    assert count(config) == 2_584_064
    config.axial_pos_embds = False
    assert count(config) == 136_572_416
    enwik8 = ReformerConfig(
        vocab_size=258, hidden_size=1024, num_attention_heads=8, attention_head_size=128,
        feed_forward_size=4096, attn_layers=["local", "local", "lsh", "local"] * 3,
        axial_pos_shape=[128, 512], axial_pos_embds_dim=[256, 768], max_position_embeddings=65536,
    )  # fmt: skip
    assert count(enwik8) + 258 * 2048 + 258 == 149_182_722


@pytest.mark.parametrize("as_folder", [True, False])
def test_json_round_trip_keeps_unknown_fields(tmp_path, as_folder):
    config = ReformerConfig(num_buckets=(4, 8), extra={"task_specific_params": {"a": [1, 2]}})
    path = tmp_path if as_folder else tmp_path / "other.json"
    config.to_json(path)
    back = ReformerConfig.from_json(path)
    assert back == config
    assert back.num_buckets == [4, 8]
    assert back.extra == {"task_specific_params": {"a": [1, 2]}}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json" if as_folder else "other.json"]


def test_numpy_numbers_and_tuples_become_plain_ones(tmp_path):
    config = ReformerConfig(
        num_hashes=np.int64(2), hidden_dropout_prob=np.float32(0.5), axial_pos_shape=(32, 16)
    )
    config.to_json(tmp_path / "c.json")
    assert ReformerConfig.from_json(tmp_path / "c.json") == config
    assert type(config.num_hashes) is int
    assert type(config.hidden_dropout_prob) is float


def test_keys_of_2020_fill_fields_that_are_absent():
    old = {"seed": 3, "num_chunks_before": 2, "num_chunks_after": 1}
    old |= {"attention_probs_dropout_prob": 0.25, "lsh_num_chunks_after": 0}
    config = ReformerConfig.from_dict(old)
    assert config.hash_seed == 3
    assert (config.local_num_chunks_before, config.lsh_num_chunks_before) == (2, 2)
    assert (config.local_num_chunks_after, config.lsh_num_chunks_after) == (1, 0)
    assert config.local_attention_probs_dropout_prob == 0.25
    assert config.to_dict().items() >= old.items()


@pytest.mark.parametrize(("used", "unused"), [("local", "lsh"), ("lsh", "local")])
def test_fields_of_a_layer_type_that_does_not_occur_may_be_null(used, unused):
    nulls = {name: None for name in ReformerConfig().to_dict() if name.startswith(f"{unused}_")}
    config = ReformerConfig.from_dict({"attn_layers": [used, used], **nulls})
    assert config.to_dict().items() >= nulls.items()
    with pytest.raises(TypeError, match=f"{unused}_"):
        ReformerConfig.from_dict({"attn_layers": [used, unused], **nulls})


def test_number_of_labels_follows_from_their_names():
    names = {"0": "a", "1": "b", "2": "c"}
    assert ReformerConfig.from_dict({"id2label": names}).num_labels == 3
    config = ReformerConfig(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert config.num_labels == 3
    written = json.loads(json.dumps(config.to_dict()))
    assert written["id2label"] == names
    assert ReformerConfig.from_dict(written) == config


@pytest.mark.parametrize("count", [1, 2, 5])
def test_another_number_of_labels_renames_them_as_transformers_does(count):
    names, expected = {0: "a", 1: "b", 2: "c"}, {i: f"LABEL_{i}" for i in range(count)}
    given = {"num_labels": count, "id2label": names, "label2id": {"a": 0, "b": 1, "c": 2}}
    assigned = ReformerConfig(id2label=names)
    assigned.num_labels = count
    for config in (
        ReformerConfig(**given),
        ReformerConfig.from_dict(given),
        assigned,
        ReformerConfig(id2label=names).changed({"num_labels": count}),
    ):
        config.check()
        assert config.num_labels == count
        assert config.id2label == expected
        assert config.label2id == {label: i for i, label in expected.items()}
    # a different number of names sets another number of labels
    config.id2label = names
    assert config.num_labels == 3
    assert config.changed({"id2label": expected}).num_labels == count


def test_classes_have_names_as_in_transformers():
    config = ReformerConfig()
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    assert not {"id2label", "label2id"} & config.to_dict().keys()
    three = ReformerConfig(num_labels=3)
    assert three.to_dict()["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    for each in (config, three, ReformerConfig(num_labels=1)):
        assert ReformerConfig.from_dict(json.loads(json.dumps(each.to_dict()))) == each


@pytest.mark.parametrize("count", ["5", 5.0, True, None, 0])
def test_a_number_of_labels_of_another_kind_is_refused_by_its_name(count):
    names = {0: "a", 1: "b", 2: "c"}
    config = ReformerConfig(id2label=names)
    if count is None:  # as many as there are names
        assert config.changed({"num_labels": None}) == config
        return
    for make in (
        lambda: config.changed({"num_labels": count}),
        lambda: ReformerConfig(num_labels=count, id2label=names),
        lambda: ReformerConfig(num_labels=count),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^num_labels must be an integer"):
            make()


def test_the_numbers_of_classes_follow_their_names():
    three, two = {0: "a", 1: "b", 2: "c"}, {0: "x", 1: "y"}
    config = ReformerConfig(id2label=three, label2id={"a": 0, "b": 1, "c": 2})
    for change in ({"id2label": two}, {"id2label": two, "num_labels": 2}):
        changed = config.changed(change)
        assert (changed.num_labels, changed.label2id) == (2, {"x": 0, "y": 1})
    with pytest.raises(ValueError, match=r"^id2label must have num_labels=4 names"):
        config.changed({"num_labels": 4, "id2label": two})
    config.num_labels = np.int64(4)
    config.check()
    assert config.id2label == {i: f"LABEL_{i}" for i in range(4)}


def test_ids_of_special_tokens_of_other_models_are_kept():
    ids = {"cls_token_id": 3, "mask_token_id": 4, "unk_token_id": 5, "sep_token_id": 6}
    assert ReformerConfig(**ids).extra == ids == ReformerConfig.from_dict(ids).extra


def test_layers_of_one_type_need_only_one_name():
    # transformers accepts any length of a list whose elements are all equal
    for kinds, n in ((["local"], 2), (["lsh"], 3), (["local", "local"], 4), (["lsh"] * 3, 2)):
        config = ReformerConfig(attn_layers=kinds, num_hidden_layers=n)
        assert config.layer_types == kinds[:1] * n
        assert ReformerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"^num_hidden_layers must be at most 2, .* attn_layers"):
        ReformerConfig(attn_layers=["local", "lsh"], num_hidden_layers=3)


# what transformers 4.57 writes in addition to the fields: read, kept, without effect
OF_VERSION_4 = {
    "_attn_implementation_autoset": False, "_name_or_path": "x/y", "add_cross_attention": False,
    "bad_words_ids": None, "begin_suppress_tokens": None, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None, "finetuning_task": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
    "num_beams": 1, "num_return_sequences": 1, "output_scores": False, "prefix": None,
    "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict_in_generate": False, "sep_token_id": None, "suppress_tokens": None,
    "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tokenizer_class": None, "top_k": 50, "top_p": 1.0,
    "torch_dtype": "float32", "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        OF_VERSION_4,
        CRIME_AND_PUNISHMENT,
        {"sinusoidal_pos_embds": True, "task": "prose"},
        {"memory_budget": "inf", "model_type": "reformer", "dtype": "float16"},
    ],
    ids=["version 4", "2020", "sinusoidal", "ours"],
)
def test_a_configuration_is_made_of_anything_that_is_written(more):
    values = ReformerConfig().to_dict() | more
    config = ReformerConfig.from_dict(values)
    assert config == ReformerConfig(**values)
    assert config.to_dict().items() >= {k: v for k, v in values.items() if v is not None}.items()
    names = {field.name for field in dataclasses.fields(ReformerConfig)}
    assert config.extra == {k: v for k, v in more.items() if k not in names | {"model_type"}}
    assert ReformerConfig(extra={"a": 1}, b=2).extra == {"a": 1, "b": 2}
    # with it, the same as without it
    same = dataclasses.replace(ReformerConfig(sinusoidal_pos_embds=True), extra={})
    assert same == ReformerConfig()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("hiden_size", "hidden_size"),
        ("num_hash", "num_hashes"),
        ("vocabsize", "vocab_size"),
        ("lsh_chunk_length", "lsh_attn_chunk_length"),
        ("hash_sed", "hash_seed"),
        ("attention_scop", "attention_scope"),
        ("vocab", "vocab_size"),
        ("HIDDEN_SIZE", "hidden_size"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_nearest(wrong, right):
    for act in (
        lambda: ReformerConfig(**{wrong: 3}),
        lambda: ReformerConfig().changed({wrong: 3}),
        lambda: setattr(ReformerConfig(), wrong, 3),
    ):
        with pytest.raises((TypeError, AttributeError), match=f"^{wrong}: .*did you mean {right}"):
            act()
    # a file keeps fields that others added to it
    with pytest.warns(UserWarning, match=f"^{wrong}: kept, .*did you mean {right}"):
        config = ReformerConfig.from_dict({wrong: 3})
    assert config == ReformerConfig(extra={wrong: 3})
    assert getattr(config, right) == getattr(ReformerConfig(), right)
    # and so does who says that it is not ours
    assert ReformerConfig(extra={wrong: 3}) == config


def test_return_dict_is_read_by_its_other_name():
    assert ReformerConfig(return_dict=False).use_return_dict is False
    assert ReformerConfig().use_return_dict is True
    with pytest.raises(TypeError, match=r"^use_return_dict: .*did you mean return_dict\?"):
        ReformerConfig(use_return_dict=False)


def test_what_is_no_field_is_no_attribute():
    config = ReformerConfig(task="prose")
    with pytest.raises(AttributeError, match=r"^task: a ReformerConfig has no such attribute$"):
        config.task = "verse"
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        twin.num_hashes = 4
        assert config.num_hashes == 1


def test_fewer_layers_than_attn_layers_are_the_first_ones():
    config = ReformerConfig(attn_layers=["local", "lsh", "lsh"], num_hidden_layers=2)
    assert config.layer_types == ["local", "lsh"]


def test_positions_are_bounded_by_the_table_and_by_the_configuration():
    assert ReformerConfig(axial_pos_shape=[8, 8]).num_positions == 64
    assert ReformerConfig(max_position_embeddings=100).num_positions == 100
    assert ReformerConfig(axial_pos_embds=False).num_positions == 4096


def test_a_grid_of_positions_has_any_number_of_axes():
    grid = {"axial_pos_shape": (8, 4, 3), "axial_pos_embds_dim": (128, 100, 28)}
    config = ReformerConfig(**grid)
    assert config.num_positions == 96
    name = "embeddings.position_embeddings.weights."
    shapes = {k: v for k, v in body_shapes(config).items() if k.startswith(name)}
    assert shapes == {
        f"{name}0": (8, 1, 1, 128), f"{name}1": (1, 4, 1, 100), f"{name}2": (1, 1, 3, 28)
    }  # fmt: skip
    line = ReformerConfig(axial_pos_shape=[50], axial_pos_embds_dim=[256])
    assert body_shapes(line)[f"{name}0"] == (50, 256)
    message = r"^axial_pos_embds_dim must have as many axes as axial_pos_shape=\[8, 4, 3\], got \["
    with pytest.raises(ValueError, match=message):
        ReformerConfig(**grid | {"axial_pos_embds_dim": [128, 128]})


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_answer_to_the_names_of_transformers(name):
    expected = {"gelu_python": "gelu", "gelu_fast": "gelu_new", "swish": "silu"}
    config = ReformerConfig(hidden_act=name)
    assert config.activation == expected.get(name, ACTIVATIONS[name])
    assert config.activation in {**reference.ACTIVATIONS, **reference.WEIGHTED}


WRONG = {
    "attn_layers": ["local", ["global"], []],
    "num_hidden_layers": [7, 0, "6"],
    "attention_head_size": [0, 1.5, True],
    "hidden_size": [-1, "256"],
    "axial_pos_shape": [[64], [64, 0], 4096, [], [2] * 9],
    "axial_pos_embds_dim": [[64, 64], [256], [], [16] * 9],
    "axial_pos_embds": [1],
    "num_buckets": [3, [2, 5], [], 0, "auto"],
    "num_hashes": [0, None],
    "hash_seed": ["1", 0.5],
    "hidden_dropout_prob": [1.0, -0.1, "0.1", math.nan],
    "lsh_attention_probs_dropout_prob": [1.0, None],
    "local_attn_chunk_length": [0],
    "lsh_num_chunks_before": [-1],
    "hidden_act": ["softmax", None],
    "layer_norm_eps": [-1e-3],
    "is_decoder": ["yes"],
    "attention_scope": ["global"],
    "softcap": [0, -1.0, "1", float("inf")],
    "label_smoothing": [1.0, -0.1, "0.1", None],
    "shared_embeddings": [1, None],
    "local_shared_qk": [1, None],
    "feed_forward_gated": [1, None],
    "num_key_value_heads": [0, 5, 24, 1.5, "2", True],
    "memory_budget": [-1, "2 GB"],
    "kept_dtype": ["float16", 16],
    "residual_dtype": ["float16", "int8", 16],
    "image_shape": [[8, 8], [8, 0, 3], 192, [64, 64, 3], [8, 8, 3]],
    "problem_type": ["ranking", 1],
    "vocab_size": [0],
    "pad_token_id": ["0", 1.5],
    "eos_token_id": [[1, None], "2"],
    "bos_token_id": [True],
    "architectures": ["ReformerModel", [1]],
    "transformers_version": [5],
    "dtype": [32],
    "return_dict": ["no"],
    "is_encoder_decoder": [None],
    "output_attentions": ["no"],
    "output_hidden_states": [1],
    "id2label": [["a", "b"]],
    "label2id": [3],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_wrong_values_are_named(name, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}[: ]"):
        ReformerConfig(**{name: value})


def test_one_label_is_no_choice():
    with pytest.raises(ValueError, match=r"^problem_type must not be .*num_labels=1"):
        ReformerConfig(problem_type="single_label_classification", num_labels=1)


def test_ids_of_special_tokens_may_lie_outside_the_vocabulary():
    assert ReformerConfig(pad_token_id=-1, eos_token_id=[-1, 400]).padding_id == 0
    assert ReformerConfig(pad_token_id=320).padding_id == 0
    assert ReformerConfig(pad_token_id=None).padding_id == 0
    assert ReformerConfig(pad_token_id=319).padding_id == 319


def test_other_models_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model_type must be 'reformer', got 'bert'"):
        ReformerConfig.from_dict({"model_type": "bert"})
    with pytest.raises(ValueError, match="model_type must be 'reformer', got 'bert'"):
        ReformerConfig(model_type="bert")
    with pytest.raises(FileNotFoundError):
        ReformerConfig.from_json(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        ReformerConfig.from_json(tmp_path)


def test_help_explains_every_field():
    _, _, listed = ReformerConfig.__doc__.partition("Parameters\n")
    listed, _, _ = listed.partition("Raises\n")
    heads = re.findall(r"^    (\w[\w, ]*)(?: : |$)", listed, re.MULTILINE)
    names = [name.strip() for head in heads for name in head.split(",")]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(ReformerConfig))


def test_numpys_booleans_are_booleans():
    config = ReformerConfig(is_decoder=np.True_, output_attentions=np.False_)
    assert config.is_decoder is True and config.output_attentions is False
    with pytest.raises(TypeError, match=r"^is_decoder must be True or False, got 1$"):
        ReformerConfig(is_decoder=1)
