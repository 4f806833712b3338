"""The reversible stack: right gradients, flat memory, exact replay, small drift."""

import tracemalloc

import numpy as np
import pytest
from reference import reversible as reference
from small_models import DROPOUT, largest_difference, random_ids, randomise, small_config
from tolerances import GRADIENT_DRIFT, STREAM_DRIFT, assert_close, assert_each_close

from reformer_c import ops
from reformer_c.layers.lsh_attention import LSHAttention
from reformer_c.layers.reversible import reversible_backward, reversible_forward
from reformer_c.layers.sublayer import Sublayer
from reformer_c.models.encoder_decoder import ReformerEncoderDecoder
from reformer_c.models.inputs import Call, check_inputs
from reformer_c.models.model import ReformerForMaskedLM, ReformerModelWithLMHead
from reformer_c.runtime import num_threads


class Tanh:
    """f(x) = x a, through tanh; a user's own function."""

    def __init__(self, a):
        self.a, self.da = a, np.zeros_like(a)

    def value(self, x):
        return np.tanh(x @ self.a)

    def vjp(self, x, dy):
        y = self.value(x)
        return (dy * (1 - y * y)) @ self.a.T

    def forward_add(self, out, x):
        out += self.value(x)

    def backward_add(self, dx, dout, out, x):
        y = self.value(x)
        out -= y
        dx += self.vjp(x, dout)
        self.da += x.T @ (dout * (1 - y * y))


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    return [tuple(Tanh(rng.standard_normal((3, 3))) for _ in range(2)) for _ in range(5)]


def test_users_functions_give_the_values_and_gradients_of_a_stack_that_keeps_everything(layers):
    rng = np.random.default_rng(1)
    x1, x2, dy1, dy2 = rng.standard_normal((4, 7, 3))
    plain = [((f.value, f.vjp), (g.value, g.vjp)) for f, g in layers]
    y1, y2, before = reference.forward(plain, x1, x2)
    dx1, dx2 = reference.backward(plain, before, dy1, dy2)

    s1, s2 = reversible_forward(layers, x1.copy(), x2.copy())
    assert_close([s1, s2], [y1, y2], "forward")
    r1, r2, d1, d2 = reversible_backward(layers, s1, s2, dy1.copy(), dy2.copy())
    assert_close([r1, r2], [x1, x2], "backward")
    assert_close([d1, d2], [dx1, dx2], "backward")


def test_streams_and_gradients_stay_in_their_memory(layers):
    x1, x2, dy1, dy2 = np.ones((4, 7, 3))
    x1, x2, dy1, dy2 = (np.array(x) for x in (x1, x2, dy1, dy2))
    y1, y2 = reversible_forward(layers, x1, x2)
    assert y1 is x1
    assert y2 is x2
    back = reversible_backward(layers, y1, y2, dy1, dy2)
    assert all(a is b for a, b in zip(back, (x1, x2, dy1, dy2), strict=True))


# ---- the model's layers ----


def deep(depth, kinds=("local", "lsh"), **changes):
    config = small_config(attn_layers=[kinds[i % len(kinds)] for i in range(depth)], **changes)
    return randomise(ReformerModelWithLMHead(config, rng=0))


def peak_of_a_step(depth, t=512, **changes):
    """Peak bytes of loss_and_gradients beyond the gradients that it returns."""
    model = deep(
        depth, ("local",), axial_pos_shape=[t // 16, 16], max_position_embeddings=t,
        hidden_size=64, axial_pos_embds_dim=[16, 48], **changes,
    )  # fmt: skip
    ids = random_ids((1, t))
    model.loss_and_gradients(ids, labels=ids, rng=0)
    tracemalloc.start()
    try:
        _, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - sum(gradient.nbytes for gradient in gradients.values())


def test_memory_does_not_grow_with_depth():
    stream = 512 * 64 * 4
    shallow, deep = peak_of_a_step(2), peak_of_a_step(14)
    assert deep - shallow < stream / 4
    # with a budget, activations are kept: many streams per layer
    assert peak_of_a_step(14, memory_budget=np.inf) - deep > 12 * 4 * stream


def test_a_memory_budget_is_kept():
    step = peak_of_a_step(8)
    for budget in (200_000, 2_000_000, 4_000_000):
        more = peak_of_a_step(8, memory_budget=budget) - step
        assert more <= budget + 50_000
    assert more > 0.6 * budget


def in_parts(monkeypatch, rows):
    """Layers process `rows` rows at a time, and LSH attention one head of one sequence."""
    monkeypatch.setattr(Sublayer, "rows_at_a_time", staticmethod(lambda c: rows))
    monkeypatch.setattr(LSHAttention, "max_bytes", 1)


def wide(**changes):
    """Sequences of up to 330 tokens in chunks of 2: local attention is cut at 128."""
    fields = {"axial_pos_shape": [33, 10], "max_position_embeddings": 330,
              "local_attn_chunk_length": 2, "num_buckets": 8}  # fmt: skip
    return randomise(ReformerModelWithLMHead(small_config(**fields | changes), rng=0, dtype=float))


@pytest.mark.parametrize("t", [129, 256, 330])
@pytest.mark.parametrize("changes", [{}, {"local_num_chunks_before": 0}])
def test_parts_of_the_streams_give_the_gradients_of_the_whole(monkeypatch, t, changes):
    model, ids = wide(**changes), random_ids((2, t))
    mask = np.ones((2, t), bool)
    mask[0, : t // 2] = mask[1, -3:] = False
    for more in ({}, {"attention_mask": mask}):
        loss, whole = model.loss_and_gradients(ids, labels=ids, rng=0, **more)
        with monkeypatch.context() as patch:
            in_parts(patch, 7)
            again, parts = model.loss_and_gradients(ids, labels=ids, rng=0, **more)
        assert_close(again, loss, "replay")
        assert_each_close(parts, whole, "model_backward")


def test_stretches_of_a_circle_see_both_neighbours(monkeypatch):
    config = small_config(
        is_decoder=False, axial_pos_shape=[33, 10], max_position_embeddings=330,
        local_attn_chunk_length=2, local_num_chunks_after=1, attn_layers=["local"],
    )  # fmt: skip
    model = randomise(ReformerForMaskedLM(config, rng=0, dtype=float))
    ids = random_ids((1, 325))
    loss, whole = model.loss_and_gradients(ids, labels=ids, rng=0)
    in_parts(monkeypatch, 7)
    again, parts = model.loss_and_gradients(ids, labels=ids, rng=0)
    assert_close(again, loss, "replay")
    assert_each_close(parts, whole, "model_backward")


@pytest.mark.parametrize("t", [129, 256, 330])
@pytest.mark.parametrize("kind", [ReformerModelWithLMHead, ReformerForMaskedLM])
def test_parts_record_what_the_whole_does(monkeypatch, kind, t):
    causal = kind is ReformerModelWithLMHead
    config = small_config(
        is_decoder=causal, axial_pos_shape=[33, 10], max_position_embeddings=330,
        local_attn_chunk_length=2, local_num_chunks_after=int(not causal), num_buckets=None,
    )  # fmt: skip
    model, ids = randomise(kind(config, rng=0, dtype=float)), random_ids((2, t))
    mask = np.arange(t) < [[t], [t - 25]]
    arguments = {"output_attentions": True, "output_buckets": True, "rng": 0}
    for more in ({}, {"attention_mask": mask}):
        whole = model(ids, **more, **arguments)
        with monkeypatch.context() as patch:
            in_parts(patch, 7)
            parts = model(ids, **more, **arguments)
        for one, other in zip(parts.attentions, whole.attentions, strict=True):
            assert_close(one, other, "replay")
        found = [x for x in whole.buckets if x is not None]
        assert found
        for one, other in zip((x for x in parts.buckets if x is not None), found, strict=True):
            assert np.array_equal(one, other)


def test_recording_changes_no_bit_of_the_result(monkeypatch):
    in_parts(monkeypatch, 7)
    model, ids = wide(), random_ids((2, 328))  # whole chunks, so that neither call pads
    plain = model(ids, rng=0)
    assert np.array_equal(model(ids, rng=0, output_attentions=True).logits, plain.logits)


@pytest.mark.parametrize("scope", ["chunk", "bucket"])
def test_prompts_in_parts_are_continued_as_whole_ones(monkeypatch, scope):
    model, ids = wide(attention_scope=scope), random_ids((3, 300))
    mask = np.arange(300) >= [[0], [3], [298]]
    whole = model.generate(ids, mask, max_new_tokens=20, rng=0)
    in_parts(monkeypatch, 7)
    assert np.array_equal(model.generate(ids, mask, max_new_tokens=20, rng=0), whole)
    assert len(np.unique(whole[:, 300:])) > 4


def test_cross_attention_in_parts_records_what_the_whole_does(monkeypatch):
    config = small_config(attn_layers=["local", "lsh"])
    model = randomise(ReformerEncoderDecoder(config, rng=0, dtype=float))
    ids, labels = random_ids((3, 23)), random_ids((3, 9))
    whole = model(ids, labels=labels, rng=0, output_attentions=True)
    in_parts(monkeypatch, 7)
    parts = model(ids, labels=labels, rng=0, output_attentions=True)
    for one, other in zip(parts.cross_attentions, whole.cross_attentions, strict=True):
        assert_close(one, other, "replay")


def test_parts_with_dropout_repeat_it_and_may_be_kept(monkeypatch):
    in_parts(monkeypatch, 7)
    model, ids = wide(**DROPOUT), random_ids((2, 300))
    loss, rebuilt = model.loss_and_gradients(ids, labels=ids, rng=5)
    again, kept = model.loss_and_gradients(ids, labels=ids, rng=5, memory_budget=np.inf)
    assert again == loss
    assert_each_close(rebuilt, kept, "model_backward")


def test_parts_give_the_same_bits_on_any_number_of_threads(monkeypatch):
    in_parts(monkeypatch, 64)
    model, ids = wide(**DROPOUT), random_ids((2, 300))
    results = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            results.append(model.loss_and_gradients(ids, labels=ids, rng=5))
    for loss, gradients in results[1:]:
        assert loss == results[0][0]
        assert all(np.array_equal(g, results[0][1][name]) for name, g in gradients.items())


def test_buckets_of_parts_are_those_of_the_whole(monkeypatch):
    model, ids = wide(), random_ids((3, 300))
    whole = model(ids, rng=0, output_buckets=True).buckets
    in_parts(monkeypatch, 7)
    parts = model(ids, rng=0, output_buckets=True).buckets
    assert whole[0].shape == (3, 2, 2, 300)
    np.testing.assert_array_equal(parts[0], whole[0])


def test_vectors_in_any_memory_layout_give_the_same_loss():
    model = deep(2)
    x = np.random.default_rng(0).standard_normal((2, 30, 16), np.float32)
    ids = random_ids((2, 30))
    plain, reordered = (
        model.loss_and_gradients(inputs_embeds=np.array(x, order=order), labels=ids, rng=0)[0]
        for order in "CF"
    )
    assert plain == reordered


@pytest.mark.parametrize("budget", [10_000, 60_000, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kept_and_rebuilt_activations_give_the_same_gradients(budget, dtype):
    config = small_config(**DROPOUT)
    model = randomise(ReformerModelWithLMHead(config, rng=0, dtype=dtype))
    ids = random_ids((2, 23))
    loss, rebuilt = model.loss_and_gradients(ids, labels=ids, rng=5)
    config.memory_budget = budget
    loss_kept, kept = model.loss_and_gradients(ids, labels=ids, rng=5)
    assert loss_kept == loss
    assert_each_close(rebuilt, kept, "replay")


def test_the_backward_pass_uses_the_buckets_of_the_forward_pass(monkeypatch):
    calls = []
    original = ops.lsh_attention_forward

    def recording(qk, v, **rules):
        out, saved = original(qk, v, **rules)
        calls.append((rules.get("buckets"), saved.buckets))
        return out, saved

    monkeypatch.setattr(ops, "lsh_attention_forward", recording)
    model = deep(2, ("lsh",))
    ids = random_ids((1, 30))
    model.loss_and_gradients(ids, labels=ids, rng=0)
    (given1, made1), (given2, made2), (back2, _), (back1, _) = calls
    assert given1 is None
    assert given2 is None
    assert back2 is made2
    assert back1 is made1


def test_a_seed_repeats_dropout_and_rotations_bit_for_bit():
    model = deep(4, **DROPOUT)
    ids = random_ids((2, 30))
    loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=7)
    again, same = model.loss_and_gradients(ids, labels=ids, rng=7)
    other, _ = model.loss_and_gradients(ids, labels=ids, rng=8)
    assert again == loss
    assert all(np.array_equal(same[name], gradients[name]) for name in gradients)
    assert other != loss


@pytest.mark.parametrize("scale", STREAM_DRIFT)
def test_rebuilt_streams_drift_less_than_the_bound_at_depth_48_with_dropout(scale):
    model = deep(48, initializer_range=scale, num_buckets=None, **DROPOUT)
    call = Call(random_ids((2, 42)), training=True)
    inputs = check_inputs(model.config, model.dtype, None, call)
    run = model._pass(inputs, call)
    x = run.embeddings.forward(inputs.input_ids, None, inputs.positions)
    y1, y2 = reversible_forward(run.layers, x.copy(), x.copy())
    largest = max(np.abs(y1).max(), np.abs(y2).max())
    dy1, dy2 = np.random.default_rng(0).standard_normal((2, *x.shape), np.float32)
    x1, x2, _, _ = reversible_backward(run.layers, y1, y2, dy1, dy2)
    drift = max(np.abs(x1 - x).max(), np.abs(x2 - x).max()) / largest
    assert 0 < drift < STREAM_DRIFT[scale]


@pytest.mark.parametrize("scale", GRADIENT_DRIFT)
def test_drift_moves_gradients_less_than_the_bound_at_depth_48_with_dropout(scale):
    model = deep(48, initializer_range=scale, **DROPOUT)
    ids = random_ids((2, 42))
    _, rebuilt = model.loss_and_gradients(ids, labels=ids, rng=1)
    model.config.memory_budget = np.inf
    _, kept = model.loss_and_gradients(ids, labels=ids, rng=1)
    assert 0 < largest_difference(rebuilt, kept) < GRADIENT_DRIFT[scale]
