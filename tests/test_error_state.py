"""Everything works under np.seterr(all="raise"): a share that underflows to 0 is 0.

The models' weights are large, so that nearly all probabilities underflow, or small, so that
products do.
"""

import numpy as np
import pytest
from small_models import DROPOUT, random_ids, small_config

import reformer_c as rc
from reformer_c.tools import plot
from reformer_c.tools.report import attention_inputs

SCALES = {"large": 40.0, "small": 1e-25}
every_scale = pytest.mark.parametrize("scale", SCALES)


@pytest.fixture(autouse=True)
def _raise():
    with np.errstate(all="raise"):
        yield


def scaled(model, scale):
    for name, array in model.parameters.items():
        if "norm" not in name and ".act_fn." not in name:
            array *= array.dtype.type(SCALES[scale])
    return model


def make(kind, scale, dtype=np.float32, **changes):
    bidirectional = kind not in (rc.ReformerModel, rc.ReformerModelWithLMHead)
    changes = {"is_decoder": not bidirectional} | changes
    with np.errstate(all="ignore"):
        return scaled(kind(small_config(**changes), rng=0, dtype=dtype), scale)


IDS = random_ids((2, 42))
MASK = np.arange(42) < [[42], [23]]
TARGETS = {
    rc.ReformerModelWithLMHead: {"labels": IDS},
    rc.ReformerForMaskedLM: {"labels": np.where(IDS % 3, IDS, -100)},
    rc.ReformerForSequenceClassification: {"labels": [1, 0]},
    rc.ReformerForQuestionAnswering: {"start_positions": [3, 42], "end_positions": [7, 9]},
}
CHANGES = [
    {},
    DROPOUT | {"hidden_act": "relu"},
    {"attention_scope": "bucket", "hidden_act": "xielu"},
    {"attn_layers": ["local", "lsh"], "hidden_act": "prelu", "axial_pos_embds": False},
    {"lsh_attn_chunk_length": 42, "local_attn_chunk_length": 42, "hidden_act": "gelu_new"},
]


@every_scale
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("kind", TARGETS)
def test_every_model_is_called_and_differentiated(kind, changes, dtype, scale):
    model, targets = make(kind, scale, dtype, **changes), TARGETS[kind]
    model(IDS, MASK, rng=0, output_attentions=True, output_hidden_states=True, **targets)
    model.loss(IDS, MASK, rng=0, **targets)
    for budget in (0, 2**30):
        _, gradients = model.loss_and_gradients(IDS, MASK, rng=0, memory_budget=budget, **targets)
        rc.clip_gradients(gradients, 1e-30)


@every_scale
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_the_classifiers_other_losses(problem, scale):
    model = make(rc.ReformerForSequenceClassification, scale, problem_type=problem)
    model.loss_and_gradients(IDS, labels=np.array([[0.0, 1.0], [1.0, 1e-30]]), rng=0)


@every_scale
def test_the_encoder_decoder(scale):
    encoder, decoder = small_config(is_decoder=False), small_config(attn_layers=["local", "lsh"])
    with np.errstate(all="ignore"):
        model = rc.ReformerEncoderDecoder(encoder, decoder=decoder, rng=0)
        scaled(model.encoder, scale), scaled(model.decoder, scale)
    model(IDS, MASK, labels=IDS, rng=0, output_attentions=True)
    model.loss(IDS, MASK, labels=IDS, rng=0)
    model.loss_and_gradients(IDS, MASK, labels=IDS, rng=0)
    for choice in (dict(do_sample=True, temperature=0.01), dict(num_beams=3)):
        for use_cache in (True, False):
            model.generate(IDS, MASK, max_new_tokens=4, use_cache=use_cache, rng=0, **choice)


CHOICES = [
    {},
    {"do_sample": True, "temperature": 0.01},
    {"do_sample": True, "temperature": 0.01, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
    {"do_sample": True, "temperature": 100.0, "top_p": 1e-300, "num_return_sequences": 2},
    {"repetition_penalty": 1e-3, "bad_words_ids": [[3], [4, 5]], "min_new_tokens": 3,
     "eos_token_id": [1, 2]},
    {"repetition_penalty": 1e30, "do_sample": True},
    {"num_beams": 3, "num_return_sequences": 2, "bad_words_ids": [[3]], "eos_token_id": 1},
    {"num_beams": 3, "length_penalty": -5.0, "repetition_penalty": 3.0, "early_stopping": "never",
     "eos_token_id": 1},
    {"num_beams": 3, "do_sample": True, "temperature": 0.01, "no_repeat_ngram_size": 2},
    {"do_sample": True, "temperature": 0.01, "typical_p": 0.3},
    {"do_sample": True, "temperature": 1e-310},
    {"prefix_allowed_tokens_fn": lambda row, ids: [3, 4], "do_sample": True},
]  # fmt: skip


@every_scale
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("choice", CHOICES)
def test_texts_go_on(choice, use_cache, scale):
    model = make(rc.ReformerModelWithLMHead, scale)
    prompts, mask = IDS[:, :20], MASK[:, :20] & (np.arange(20) < [[20], [7]])
    model.generate(prompts, attention_mask=mask, max_new_tokens=6, use_cache=use_cache, rng=0,
                   **choice)  # fmt: skip


@pytest.mark.parametrize("choice", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_what_a_user_wrote_runs_under_the_users_own_error_state(choice):
    seen = []

    def processor(ids, logits):
        seen.append(np.geterr())
        with pytest.raises(FloatingPointError):
            np.exp(np.full(3, -1e4))
        return logits

    def criterion(ids, logits):
        seen.append(np.geterr())
        return False

    model = make(rc.ReformerModelWithLMHead, "large")
    model.generate(IDS[:, :9], max_new_tokens=3, logits_processor=processor,
                   stopping_criteria=criterion, rng=0, **choice)  # fmt: skip
    if not choice:
        for _ in model.stream(IDS[:, :9], max_new_tokens=3, rng=0):
            seen.append(np.geterr())
    assert seen
    assert all(set(state.values()) == {"raise"} for state in seen)


@every_scale
def test_training(scale, tmp_path):
    from reformer_c.training.data import Windows

    model = make(rc.ReformerModelWithLMHead, scale, **DROPOUT)
    for kind in (rc.AdamW, rc.Adafactor):
        optimizer = kind(model.parameters, weight_decay=1e-3)
        trainer = rc.Trainer(
            model, Windows(IDS.ravel() % 13, length=42, seed=0), optimizer, accumulate=2,
            schedule=rc.schedules.cosine(10, warmup=3), steps=3, max_grad_norm=1e-30,
            held_out=IDS[0],
        )  # fmt: skip
        for _ in trainer:
            pass
        trainer.evaluate()


@every_scale
@pytest.mark.parametrize("scope", ["chunk", "bucket"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_looking_inside(scope, is_causal, scale):
    with np.errstate(all="ignore"):
        qk = np.random.default_rng(0).standard_normal((1, 2, 150, 8)).astype("f4") * SCALES[scale]
        qk = qk.astype(np.float32)
    rules = dict(num_buckets=4, chunk_length=16, scope=scope, is_causal=is_causal)
    for v in (qk, qk * 0, None):
        str(rc.lsh_report(qk, v, num_hashes=(1, 2), **rules))
        str(rc.lsh_report(qk, v, k=qk * 0 if v is None else v, num_hashes=(1, 2), **rules))
    for k in (qk, qk * 0, None):
        str(rc.tune_lsh(qk, k, recall=1e-9, is_causal=is_causal))
    matplotlib = pytest.importorskip("matplotlib.figure")
    ids = rc.lsh_hash(qk, num_hashes=2, num_buckets=4, rng=0)[0, 0]
    for buckets in (None, ids):
        plot.attention_pattern(
            qk[0, 0], buckets, matplotlib.Figure().subplots(), is_causal=is_causal
        )
    model = make(rc.ReformerModelWithLMHead, scale)
    attention_inputs(model, IDS, 1, rng=0)


@every_scale
def test_weights_are_cast_and_drawn(scale, tmp_path):
    pytest.importorskip("safetensors")
    model = make(rc.ReformerModelWithLMHead, "small", np.float64)
    with np.errstate(under="ignore"):
        for array in model.parameters.values():
            array *= 1e-30  # below every float32
    model.save_pretrained(tmp_path)
    narrow = rc.ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert not narrow.parameters["lm_head.decoder.weight"].any()
    rc.ReformerModelWithLMHead(small_config(initializer_range=1e-45), rng=0)
