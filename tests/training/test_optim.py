"""AdamW, Adafactor, clipping and schedules, against formulas written out in float64."""

import itertools
import math

import numpy as np
import pytest
from reference.adafactor import adafactor_step
from reference.adamw import adamw_step
from tolerances import assert_close, tolerance

import reformer_c as rc
from reformer_c import ops
from reformer_c.training.gradients import clip_gradients
from reformer_c.training.optim import Adafactor, AdamW
from reformer_c.training.schedules import schedules

SHAPES = {"scalar": (), "bias": (5,), "weight": (7, 33), "empty": (0, 3), "large": (70, 1001)}


BOTH = [AdamW, Adafactor, lambda parameters: Adafactor(parameters, beta1=0.9)]
both = pytest.mark.parametrize("make", BOTH, ids=["AdamW", "Adafactor", "Adafactor, beta1"])


def draw(seed, dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: np.array(scale * rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_takes_the_steps_of_the_paper(dtype, decay):
    parameters = draw(0, dtype)
    start = {name: array.copy() for name, array in parameters.items()}
    grads = [draw(seed, dtype) for seed in range(1, 6)]
    optimizer = AdamW(parameters, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay)
    for step in grads:
        optimizer.step(step)
    rules = {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": decay}
    for name, array in parameters.items():
        w, m, s = start[name], 0.0, 0.0
        for step, g in enumerate(grads, start=1):
            w, m, s = adamw_step(w, m, s, g[name], step=step, **rules)
        assert_close(array, w, "rounding")


@pytest.mark.parametrize("beta1", [None, 0.9])
def test_adafactor_takes_the_steps_of_the_paper(dtype, beta1):
    parameters = {name: a for name, a in draw(0, dtype).items() if a.size}
    expected = {name: (a.copy(), None, None, None, None) for name, a in parameters.items()}
    for name, a in parameters.items():
        factored = (np.zeros(a.shape[:-1]), np.zeros(a.shape[-1:]), None)
        second = factored if a.ndim > 1 else (None, None, np.zeros(a.shape))
        expected[name] = (a.copy(), *second, None if beta1 is None else np.zeros(a.shape))
    optimizer = Adafactor(parameters, beta1=beta1, weight_decay=0.1, decay_rate=-0.7)
    for step in range(1, 6):
        grads = draw(step, dtype)
        optimizer.step({name: grads[name] for name in parameters})
        for name in parameters:
            w, row, column, s, m = expected[name]
            scale = max(1e-3, np.sqrt((w.astype(float) ** 2).mean()))
            expected[name] = adafactor_step(
                w, grads[name], row=row, column=column, s=s, m=m, lr=scale * min(1e-2, step**-0.5),
                beta1=beta1 or 0.0, beta2=1 - step**-0.7, eps=1e-30, clip_threshold=1.0,
                weight_decay=0.1,
            )  # fmt: skip
    for name, array in parameters.items():
        assert_close(array, expected[name][0], "rounding")


def test_adafactors_relative_step_warms_up_and_decays():
    fixed, warming = (Adafactor({"w": np.ones(2)}, warmup_init=warm) for warm in (False, True))
    manual = Adafactor({"w": np.ones(2)}, lr=0.3, relative_step=False)
    for steps, plain, warm in [(0, 1e-2, 1e-6), (99, 1e-2, 1e-4), (999_999, 1e-3, 1e-3)]:
        fixed.steps = warming.steps = manual.steps = steps
        assert fixed.learning_rate == pytest.approx(plain)
        assert warming.learning_rate == pytest.approx(warm)
        assert manual.learning_rate == 0.3


def test_adafactor_keeps_rows_and_columns_where_adamw_keeps_two_copies():
    parameters = {"w": np.zeros((300, 200), np.float32), "axial": np.zeros((5, 1, 6), np.float32)}
    sizes = {name: a.size for name, a in Adafactor(parameters).state_dict().items()}
    assert sizes == {"steps": 1, "row.w": 300, "column.w": 200, "row.axial": 5, "column.axial": 30}


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: AdamW(parameters, lr=1.0, weight_decay=0.0),
        lambda parameters: Adafactor(parameters, scale_parameter=False),
    ],
)
def test_one_step_may_have_a_learning_rate_of_its_own(make):
    parameters = {"w": np.ones(3)}
    make(parameters).step({"w": np.full(3, 2.0)}, lr=0.25)
    np.testing.assert_allclose(parameters["w"], 0.75)


@both
@pytest.mark.parametrize("workers", [2, 3])
def test_steps_are_the_same_bits_with_any_number_of_threads(make, workers):
    def run(count):
        parameters = draw(0)
        with rc.num_threads(count):
            optimizer = make(parameters)
            for seed in range(3):
                grads = draw(seed)
                clip_gradients(grads, 0.5)
                optimizer.step(grads)
        return parameters

    one, many = run(1), run(workers)
    for name in SHAPES:
        assert one[name].tobytes() == many[name].tobytes()


@both
def test_a_loaded_state_continues_bit_for_bit(make):
    straight, broken = draw(0), draw(0)
    optimizer = make(straight)
    for seed in range(4):
        optimizer.step(draw(seed))
    first = make(broken)
    for seed in range(2):
        first.step(draw(seed))
    second = make(broken)
    second.load_state_dict({name: a.copy() for name, a in first.state_dict().items()})
    for seed in range(2, 4):
        second.step(draw(seed))
    for name in SHAPES:
        assert straight[name].tobytes() == broken[name].tobytes()


@both
def test_parameters_that_are_not_held_are_not_touched(make):
    parameters = draw(0)
    held = {name: parameters[name] for name in ("weight", "bias")}
    before = parameters["large"].copy()
    optimizer = make(held)
    optimizer.step({name: draw(1)[name] for name in held})
    assert np.array_equal(parameters["large"], before)


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_names_step_and_parameter_and_changes_nothing(make, bad):
    parameters = draw(0)
    optimizer = make(parameters)
    optimizer.step(draw(1))
    before = {name: array.copy() for name, array in parameters.items()}
    state = {name: array.copy() for name, array in optimizer.state_dict().items()}
    grads = draw(2)
    grads["weight"][3, 4] = bad
    with pytest.raises(FloatingPointError, match=r"step 2: the gradient of 'weight'.*\(1 of 231 "):
        optimizer.step(grads)
    assert all(np.array_equal(parameters[name], before[name]) for name in before)
    after = optimizer.state_dict()
    assert all(np.array_equal(after[name], state[name]) for name in state)


def test_large_gradients_are_no_error_though_their_squares_overflow():
    parameters = {"w": np.zeros(2)}
    AdamW(parameters, lr=0.1).step({"w": np.array([1e200, 1.0])})
    assert np.isfinite(parameters["w"]).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda g: g.pop("bias"), ValueError, "grads: 'bias' is missing"),
        (lambda g: g.update(other=np.zeros(3)), ValueError, "grads: 'other' belongs to no"),
        (lambda g: g.update(bias=np.zeros(6, np.float32)), ValueError, r"\['bias'\].*\(5,\)"),
        (lambda g: g.update(bias=np.zeros(5)), TypeError, r"\['bias'\] must be float32"),
        (lambda g: g.update(bias=[0.0] * 5), TypeError, r"\['bias'\].*list"),
    ],
)
def test_bad_gradients_are_named(change, error, words):
    optimizer = AdamW(draw(0))
    grads = draw(1)
    change(grads)
    with pytest.raises(error, match=words):
        optimizer.step(grads)
    with pytest.raises(TypeError, match="grads"):
        optimizer.step(None)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"parameters": {}}, TypeError, "parameters"),
        ({"parameters": {"w": np.zeros(2, int)}}, TypeError, r"parameters\['w'\]"),
        ({"parameters": {"w": np.zeros((4, 4)).T[::2]}}, ValueError, r"parameters\['w'\]"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"lr": "0.1"}, TypeError, "lr"),
        ({"lr": True}, TypeError, "lr"),
        ({"weight_deacy": 0.1}, TypeError, "did you mean weight_decay?"),
        ({"learning_rate": 0.1}, TypeError, "it has parameters, lr, betas, eps, weight_decay"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas"),
        ({"betas": 0.9}, ValueError, "betas"),
        ({"eps": 0.0}, ValueError, "eps"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        AdamW(**({"parameters": {"w": np.zeros(2)}} | arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"parameters": {"w": np.zeros(2, int)}}, r"parameters\['w'\]"),
        ({"lr": 0.1}, "lr must be None"),
        ({"relative_step": False}, "lr must .* a number"),
        ({"lr": -0.1, "relative_step": False}, "lr"),
        ({"lr": 0.1, "relative_step": False, "warmup_init": True}, "warmup_init"),
        ({"eps": 1e-30}, "eps must be two numbers"),
        ({"eps": (0.0, 1e-3)}, "eps"),
        ({"eps": (1e-30, -1.0)}, "eps"),
        ({"clip_threshold": 0.0}, "clip_threshold"),
        ({"decay_rate": 0.8}, "decay_rate"),
        ({"decay_rate": -1.5}, "decay_rate"),
        ({"beta1": 1.0}, "beta1"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_bad_arguments_of_adafactor_are_named(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Adafactor(**({"parameters": {"w": np.zeros(2)}} | arguments))


@both
def test_an_optimizer_tells_what_it_does(make):
    optimizer = make(draw(0))
    optimizer.step(draw(1))
    assert repr(optimizer).startswith(f"{type(optimizer).__name__}(5 parameters, lr=")
    assert repr(optimizer).endswith("steps=1)")


def test_a_state_that_does_not_fit_is_named_and_changes_nothing():
    optimizer = AdamW(draw(0))
    optimizer.step(draw(1))
    good = {name: array.copy() for name, array in optimizer.state_dict().items()}
    for name, wrong in [
        ("first.bias", np.zeros(4, np.float32)),
        ("second.weight", np.zeros((7, 33))),
        ("steps", np.zeros(2, np.int64)),
    ]:
        with pytest.raises((TypeError, ValueError), match=name.replace(".", r"\.")):
            optimizer.load_state_dict(good | {name: wrong})
    with pytest.raises(ValueError, match=r"first\.bias.* is missing"):
        optimizer.load_state_dict({k: v for k, v in good.items() if k != "first.bias"})
    after = optimizer.state_dict()
    assert all(np.array_equal(after[name], good[name]) for name in good)


# ---- clipping ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_scales_all_gradients_to_the_norm(dtype):
    grads = draw(0, dtype, scale=3.0)
    before = {name: array.copy() for name, array in grads.items()}
    norm = math.sqrt(sum((array.astype(float) ** 2).sum() for array in before.values()))
    assert clip_gradients(grads, 2.0) == pytest.approx(norm)
    for name in SHAPES:
        np.testing.assert_allclose(
            grads[name], before[name] * (2.0 / norm), rtol=tolerance("forward", dtype)
        )


def test_small_gradients_are_left_as_they_are():
    grads = draw(0, scale=1e-6)
    before = {name: array.copy() for name, array in grads.items()}
    clip_gradients(grads, 1.0)
    clip_gradients(grads, math.inf)
    assert all(np.array_equal(grads[name], before[name]) for name in before)


# gradients (3 x, 4 x) of norm 5 x
@pytest.mark.parametrize("max_norm", [1e-30, 1.0, 1e20])
@pytest.mark.parametrize(
    ("dtype", "x"),
    [(np.float64, x) for x in (1e154, 1e200, 3e307, 1e-170, 1e-200)]
    + [(np.float32, x) for x in (1e19, 1e30, 8e37, 1e-30)],
)
def test_gradients_of_any_size_are_clipped(dtype, x, max_norm):
    parts = {"a": np.array([3 * x, 0.0], dtype), "b": np.array([[4 * x]], dtype)}
    grads = {name: array.copy() for name, array in parts.items()}
    exact = [float(part) for array in parts.values() for part in array.ravel()]
    with np.errstate(all="raise"):
        norm = clip_gradients(grads, max_norm)
    assert norm == pytest.approx(math.hypot(*exact), rel=tolerance("rounding", "float64"), abs=0)
    for name, array in parts.items():
        expected = array.astype(float) / max(norm, max_norm) * max_norm
        expected = array if norm <= max_norm else expected
        np.testing.assert_allclose(grads[name], expected, rtol=tolerance("rounding", dtype))


def test_a_norm_beyond_float64_is_clipped_and_said_to_be_infinite():
    grads = {"a": np.full(16, 1e308), "b": np.full(4, 3e38, np.float32)}
    assert clip_gradients(grads, 2.0) == math.inf
    assert_close(grads["a"], np.full(16, 0.5), "rounding")
    assert not grads["b"].any()
    # squares whose sum alone overflows
    grads = {name: np.array([1.2e154]) for name in "abc"}
    assert clip_gradients(grads, 1.0) == pytest.approx(1.2e154 * math.sqrt(3))
    assert [grads[name][0] for name in "abc"] == pytest.approx([3**-0.5] * 3)


def test_parts_that_underflow_are_no_error():
    grads = {"a": np.array([1e-44, 3.0, 4.0], np.float32)}
    with np.errstate(all="raise"):
        clip_gradients(grads, 1e-3)
    assert_close(grads["a"], [0.0, 6e-4, 8e-4], "rounding")


def test_a_mask_of_gradients_is_not_dropped():
    masked = {"a": np.ma.masked_less(np.array([3.0, 4.0]), 3.5)}
    for call in (
        lambda: clip_gradients(masked, 1.0),
        lambda: AdamW(masked),
        lambda: AdamW({"a": np.zeros(2)}).step(masked),
    ):
        with pytest.raises(TypeError, match=r"'a'\] must be a float.*, got MaskedArray"):
            call()


def test_clipping_keeps_its_bits():
    grads = draw(0, np.float32, scale=3.0)
    norm = math.sqrt(math.fsum(ops.sum_of_squares(array) for array in grads.values()))
    expected = {name: array * (0.3 / norm) for name, array in grads.items()}
    assert clip_gradients(grads, 0.3) == norm
    assert all(np.array_equal(grads[name], expected[name]) for name in grads)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("other", [5.0, 1e200])
def test_a_gradient_that_is_not_finite_next_to_a_large_one_is_left(bad, other):
    for values in ([bad, other], [other, bad]):
        grads = {str(i): np.array([value]) for i, value in enumerate(values)}
        assert not math.isfinite(clip_gradients(grads, 1.0))
        np.testing.assert_array_equal([grads["0"][0], grads["1"][0]], values)


def test_gradients_that_are_not_finite_are_left_for_the_optimizer_to_name():
    grads = {"a": np.array([np.nan]), "b": np.array([5.0])}
    assert math.isnan(clip_gradients(grads, 1.0))
    assert grads["b"][0] == 5.0


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan])
def test_a_bad_norm_is_named(norm):
    with pytest.raises(ValueError, match="max_norm"):
        clip_gradients({"a": np.zeros(1)}, norm)


# ---- schedules ----


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.constant(warmup=10),
        schedules.linear(100, warmup=10),
        schedules.cosine(100, warmup=10),
        schedules.rsqrt(warmup=10),
    ],
)
def test_schedules_warm_up_and_never_exceed_one(schedule):
    factors = [schedule(step) for step in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert max(factors) == pytest.approx(1.0)
    assert min(factors) > 0
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_decays_end_at_the_floor_and_stay_there(name):
    schedule = getattr(schedules, name)(50, warmup=5, floor=0.25)
    assert schedule(50) == pytest.approx(0.25)
    assert schedule(5000) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: schedules.constant(warmup=-1), ValueError, "warmup"),
        (lambda: schedules.linear(-5), ValueError, "steps"),
        (lambda: schedules.cosine(5, floor=1.5), ValueError, "floor"),
        (lambda: schedules.rsqrt(warmup=0.5), TypeError, "warmup"),
    ],
)
def test_bad_schedules_are_named(make, error, word):
    with pytest.raises(error, match=word):
        make()


@pytest.mark.parametrize("name", ["scale_parameter", "relative_step", "warmup_init"])
def test_a_switch_of_adafactor_is_true_or_false(name):
    with pytest.raises(TypeError, match=f"^{name} must be True or False, got 'no'"):
        Adafactor({"w": np.zeros(3, np.float32)}, **{name: "no"})
