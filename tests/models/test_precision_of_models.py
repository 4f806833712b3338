"""matmul_precision in models: the configuration's field, the setting and the block agree."""

import numpy as np
import pytest
from small_models import random_ids, randomise, small_config
from tolerances import tolerance

import reformer_c as rc
from reformer_c import ReformerEncoderDecoder, ReformerForSequenceClassification
from reformer_c.models.model import ReformerModelWithLMHead

PRECISIONS = ["highest", "high", "medium"]
# several terms of a sum, and rows enough for products that round
FIELDS = {
    "is_decoder": True, "attn_layers": ["local", "lsh"], "num_hashes": 2, "num_buckets": 4,
    "hash_seed": 3,
}  # fmt: skip


def language_model(precision):
    config = small_config(**FIELDS, matmul_precision=precision)
    return randomise(ReformerModelWithLMHead(config, rng=0, dtype=np.float32))


def bits(results):
    return [np.asarray(x).tobytes() for x in results]


def step(model, **options):
    ids = random_ids((2, 24))
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=5, **options)
    return [model(ids).logits, model.loss(ids, labels=ids), loss, *gradients.values()]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("memory_budget", [None, 10**9])
def test_the_field_is_the_block_is_the_setting(precision, memory_budget):
    by_field = bits(step(language_model(precision), memory_budget=memory_budget))
    model = language_model(None)
    with rc.matmul_precision(precision):
        assert bits(step(model, memory_budget=memory_budget)) == by_field
    rc.set_matmul_precision(precision)
    try:
        assert bits(step(model, memory_budget=memory_budget)) == by_field
        # the configuration takes precedence
        highest = bits(step(language_model("highest"), memory_budget=memory_budget))
        assert (highest == by_field) == (precision == "highest")
    finally:
        rc.set_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_gradients_are_near_those_of_float32(precision):
    exact, rounded = step(language_model("highest")), step(language_model(precision))
    worst = tolerance(f"model_{precision}", "float32")
    for a, e in zip(rounded, exact, strict=True):
        assert np.linalg.norm(np.subtract(a, e)) <= worst * np.linalg.norm(e)


@pytest.mark.parametrize("kind", ["classifier", "encoder-decoder"])
def test_other_models(kind):
    def results(precision):
        config = small_config(
            attn_layers=["lsh"],
            num_buckets=4,
            hash_seed=1,
            matmul_precision=precision,
            is_decoder=False,
        )
        ids = random_ids((3, 24))
        if kind == "classifier":
            model = ReformerForSequenceClassification(config, rng=0)
            labels = [0, 1, 0]
        else:
            model = ReformerEncoderDecoder(config, rng=0)
            labels = ids[:, :20]
        loss, gradients = model.loss_and_gradients(ids, labels=labels, rng=2)
        return [loss, *gradients.values()]

    by_field = bits(results("medium"))
    with rc.matmul_precision("medium"):
        assert bits(results(None)) == by_field
    assert bits(results("highest")) != by_field


def test_generation_has_the_precision_of_the_model():
    prompt = random_ids((9, 20))
    options = {"max_new_tokens": 4, "rng": 0, "do_sample": False}
    model = language_model("medium")
    expected = model.generate(prompt, **options)
    steps = np.stack(list(model.stream(prompt, **options)), axis=1)
    np.testing.assert_array_equal(steps, expected[:, 20:])
    model = language_model(None)
    with rc.matmul_precision("medium"):
        np.testing.assert_array_equal(model.generate(prompt, **options), expected)


def test_the_field_is_saved(tmp_path):
    language_model("medium").save_pretrained(tmp_path)
    assert ReformerModelWithLMHead.from_pretrained(tmp_path).config.matmul_precision == "medium"
    other = ReformerModelWithLMHead.from_pretrained(tmp_path, matmul_precision="high")
    assert other.config.matmul_precision == "high"
