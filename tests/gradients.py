"""Is a gradient the derivative of a loss? Central differences along random directions, in float64.

Test a backward against the *reference's* loss: then forward, backward and reference must agree.
"""

import numpy as np
from tolerances import assert_all_close, tolerance


def slope(loss, inputs, directions, step):
    """The derivative of loss(*inputs) along `directions`, to the fourth order of the step."""

    def at(distance):
        return loss(*(x + distance * u for x, u in zip(inputs, directions, strict=True)))

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def assert_is_the_derivative(loss, inputs, gradients, rng, step=1e-4):
    """`gradients` (float64, one for each of `inputs`) are those of the scalar `loss(*inputs)`.

    Each input is moved alone, so that a failure names the one that is wrong. The error is measured
    against the root mean square of the slope over all directions, not against one slope, which
    may be nearly zero by chance.
    """
    inputs = [np.float64(x) for x in inputs]
    assert len(gradients) == len(inputs)
    for moved, gradient in enumerate(gradients):
        assert gradient.shape == inputs[moved].shape, f"gradient of input {moved}: its shape"
        directions = [np.zeros_like(x) for x in inputs]
        directions[moved] = rng.standard_normal(inputs[moved].shape)
        expected = slope(loss, inputs, directions, step)
        actual = float((np.float64(gradient) * directions[moved]).sum())
        typical = float(np.sqrt((np.float64(gradient) ** 2).sum()))
        allowed = tolerance("derivative") * max(typical, abs(expected)) + 1e-12
        assert abs(actual - expected) <= allowed, (
            f"gradient of input {moved}: slope {actual}, by differences {expected}"
        )


def assert_backward_is_the_derivative(
    forward, backward, reference, inputs, rng, kind="backward", step=1e-4, compare=1.0
):
    """`backward` is the derivative of `reference` in float64, and agrees with it in float32.

    forward(*inputs) -> (out, saved), backward(dout, saved) -> one gradient for each input. Where
    `compare` is 0 an output means something else in float32, and its gradient is not compared.
    """

    def gradients(inputs, dout):
        _, saved = forward(*inputs)
        found = backward(dout, saved)
        found = found if isinstance(found, tuple) else (found,)
        assert [g.shape for g in found] == [np.shape(x) for x in inputs]
        assert all(g.dtype == inputs[0].dtype for g in found)
        return found

    dtype = np.asarray(inputs[0]).dtype
    dout = np.asarray(rng.standard_normal(np.shape(forward(*inputs)[0])), dtype)
    exact = gradients([np.float64(x) for x in inputs], np.float64(dout))
    loss = lambda *inputs: float((reference(*inputs) * np.float64(dout)).sum())  # noqa: E731
    assert_is_the_derivative(loss, inputs, exact, rng, step)
    if dtype != np.float64:
        dout = np.asarray(dout * compare, dtype)
        exact = gradients([np.float64(x) for x in inputs], np.float64(dout))
        assert_all_close(gradients(inputs, dout), exact, kind, dtype)
