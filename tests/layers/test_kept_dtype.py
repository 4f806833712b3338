"""Activations that are kept as bfloat16 numbers between the forward and the backward pass."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import DROPOUT, POSITIONS, random_ids, randomise, small_config
from tolerances import tolerance

import reformer_c as rc
from reformer_c import num_threads
from reformer_c.layers.residual import Residual
from reformer_c.layers.sublayer import Kept, Sublayer
from reformer_c.models.inputs import Call

KINDS = [
    {},
    {"attn_layers": ["full", "full_shared", "local"], "softcap": 1.0},
    {"attention_scope": "bucket", "hidden_act": "prelu"},
    {"attn_layers": ["hash", "lsh"], "num_key_value_heads": 1, "hash_local_window": 2},
    {"attn_layers": ["local", "full"], "position_embedding_type": "rotary"},
    {"reversible": False, "local_shared_qk": True},
    {"matmul_precision": "medium", "hidden_act": "gelu"},
]


def model_of(dtype=np.float64, kind=rc.ReformerModelWithLMHead, **changes):
    return randomise(kind(small_config(**DROPOUT | changes), rng=0, dtype=dtype))


def step(model, kept_dtype, budget=10**9, **arguments):
    model.config = replace(model.config, kept_dtype=kept_dtype)
    ids = random_ids((2, 26))
    return model.loss_and_gradients(ids, labels=ids, rng=3, memory_budget=budget, **arguments)


def error(gradients, expected):
    """The norm of the difference of all gradients, as a share of their norm."""
    far = sum(float(((gradients[name] - x) ** 2).sum()) for name, x in expected.items())
    return np.sqrt(far / sum(float((x * x).sum()) for x in expected.values()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_loss_is_the_same_and_gradients_differ_by_the_rounding(isa, dtype, changes):
    model = model_of(dtype, **changes)
    loss, exact = step(model, None)
    again, rounded = step(model, "bfloat16")
    assert loss == again
    assert 0 < error(rounded, exact) < tolerance("kept_bfloat16")
    assert all(rounded[name].dtype == dtype for name in rounded)
    # nothing kept, nothing rounded
    for name, x in step(model, "bfloat16", budget=0)[1].items():
        np.testing.assert_array_equal(x, step(model, None, budget=0)[1][name])


@settings(max_examples=40)
@given(
    kinds=st.lists(
        st.sampled_from(["local", "lsh", "full", "full_shared"]), min_size=1, max_size=4
    ),
    positions=st.sampled_from([*POSITIONS.values()]),
    scope=st.sampled_from(["chunk", "bucket"]),
    activation=st.sampled_from(["relu", "gelu", "xielu"]),
    reversible=st.booleans(),
    shared=st.booleans(),
    budget=st.integers(0, 150_000),
    training=st.booleans(),
    masked=st.booleans(),
)
def test_other_options_meet_rounded_activations(
    kinds, positions, scope, activation, reversible, shared, budget, training, masked
):
    if positions.get("position_embedding_type") == "rotary":
        kinds = ["full", *kinds]
    model = model_of(
        attn_layers=kinds, attention_scope=scope, hidden_act=activation, reversible=reversible,
        shared_embeddings=shared, **positions,
    )  # fmt: skip
    mask = np.arange(26) < [[26], [17]] if masked else None
    arguments = {"attention_mask": mask, "training": training}
    loss, exact = step(model, None, budget, **arguments)
    again, rounded = step(model, "bfloat16", budget, **arguments)
    assert loss == again
    assert error(rounded, exact) < tolerance("kept_bfloat16")
    # the budget is for what would else be recomputed; ordinary residuals keep their streams besides
    needed = model.memory(26, 2, memory_budget=0).kept
    assert model.memory(26, 2, memory_budget=budget).kept <= needed + budget


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_threads_do_not_change_the_bits(changes):
    model, found = model_of(np.float32, **changes), []
    for n in (1, 3):
        with num_threads(n):
            found.append(step(model, "bfloat16")[1])
    for name, x in found[0].items():
        np.testing.assert_array_equal(found[1][name], x)


def owned_bytes(saved):
    """Bytes of the arrays that layers keep, apart from streams, weights, masks and buckets."""
    bases = {}

    def visit(x):
        if isinstance(x, (list, tuple)):
            fields = getattr(x, "_fields", range(len(x)))
            skipped = ("attention_mask", "buckets", "weight", "x", "spec")
            for name, part in zip(fields, x, strict=True):
                if name not in skipped:
                    visit(part)
        elif dataclasses.is_dataclass(x):
            for field in dataclasses.fields(x):
                visit(getattr(x, field.name))
        elif isinstance(x, np.ndarray):
            while isinstance(x.base, np.ndarray):
                x = x.base
            bases[id(x)] = x.nbytes

    visit(saved)
    return sum(bases.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kept_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("kept_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"reversible": False}, {"attn_layers": ["full"] * 3}])
def test_as_many_bytes_are_kept_as_planned(dtype, kept_dtype, kept_layers, changes):
    model = model_of(dtype, kept_dtype=kept_dtype, **changes)
    run = model._pass_of_length("length", 26, 2, Call(training=True))
    kept = sorted({run.plan(budget, 0).memory.kept for budget in range(0, 200_000, 500)})
    budget = kept[kept_layers] if changes.get("reversible", True) else np.inf
    if budget == np.inf:  # streams are kept in any case
        budget = kept[kept_layers] - kept[0]
    plan = run.plan(budget, 0)
    assert plan.kept_layers == kept_layers
    ids = random_ids((2, 26))
    run, _ = model._begin(Call(ids, training=True), {"labels": ids})
    run.forward(differentiate=True, kept_layers=kept_layers)
    branches = [branch for layer in run._branches for branch in layer]
    keeping = [branch for branch in branches if isinstance(branch, (Kept, Residual))]
    found = [[branch._before, getattr(branch, "_saved", [])] for branch in keeping]
    assert owned_bytes(found) == plan.memory.kept


def test_about_twice_as_many_layers_fit():
    kinds = ["local", "lsh"] * 8
    whole, halves = (
        model_of(np.float32, attn_layers=kinds, kept_dtype=kept_dtype)
        for kept_dtype in (None, "bfloat16")
    )
    everything = whole.memory(42, 2, memory_budget=np.inf).kept
    assert 0.5 * everything < halves.memory(42, 2, memory_budget=np.inf).kept < 0.55 * everything
    runs = [
        model._pass_of_length("length", 42, 2, Call(training=True)) for model in (whole, halves)
    ]
    for budget in (everything // 4, everything // 3):
        few, more = (run.plan(budget, 0).kept_layers for run in runs)
        assert 1.6 * few <= more <= 2 * few


@pytest.mark.parametrize("kept_layers", [1, 2])
def test_layers_that_keep_nothing_are_rebuilt_from_exact_streams(monkeypatch, kept_layers):
    seen = []
    rebuild = Sublayer.backward_add

    def watched(self, dx, dout, out, x):
        seen.append((out.copy(), x.copy()))
        rebuild(self, dx, dout, out, x)

    monkeypatch.setattr(Sublayer, "backward_add", watched)
    monkeypatch.setattr(type(model_of()), "_kept_layers", lambda self, run, budget: kept_layers)
    model = model_of()
    for kept_dtype in (None, "bfloat16"):
        step(model, kept_dtype)
    half = len(seen) // 2
    assert half == 2 * (3 - kept_layers)
    for one, other in zip(seen[:half], seen[half:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_both_sides_of_an_encoder_decoder_keep_rounded_activations():
    config = small_config(is_decoder=False, **DROPOUT)
    ids, found = random_ids((2, 21)), []
    for kept_dtype in (None, "bfloat16"):
        both = replace(config, kept_dtype=kept_dtype)
        model = randomise(rc.ReformerEncoderDecoder(both, rng=0, dtype=np.float64))
        found.append(model.loss_and_gradients(ids, labels=ids, rng=3, memory_budget=10**9))
        found.append(model.memory(21, 21, 2, memory_budget=10**9).kept)
    (loss, exact), kept, (again, rounded), fewer = found
    assert loss == again and fewer < 0.3 * kept
    assert 0 < error(rounded, exact) < tolerance("kept_bfloat16")


def test_a_loss_of_the_users_has_rounded_activations_too():
    model, found = model_of(kind=rc.ReformerModel), []
    ids = random_ids((2, 26))
    for kept_dtype in (None, "bfloat16"):
        model.config = replace(model.config, kept_dtype=kept_dtype)
        states = model.forward(ids, rng=3, memory_budget=10**9)
        found.append((states, model.backward(np.cos(states))[0]))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert 0 < error(found[1][1], found[0][1]) < tolerance("kept_bfloat16")
