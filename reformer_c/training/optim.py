"""Optimisers: AdamW and Adafactor.

An optimiser holds a model's own dictionary of parameters, ``{name: array}``, and updates the arrays
in place; the arithmetic runs in the C core, multithreaded.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import ops
from ..checks import NamedAttributes, flag, names_keywords, number, positive
from .gradients import check_finite, check_float_array

__all__ = ["Adafactor", "AdamW", "Optimizer"]


class Optimizer(ABC):
    """Base class of optimisers: parameters, state, and checks of both."""

    lr: float | None
    parameters: Mapping[str, np.ndarray]
    steps: int
    # shape and dtype by name
    _kinds: dict[str, tuple[tuple[int, ...], np.dtype]]
    # keys are "first.NAME" etc.
    _state: dict[str, np.ndarray]

    def __init__(self, parameters: Mapping[str, np.ndarray]) -> None:
        if not isinstance(parameters, Mapping) or not parameters:
            raise TypeError("parameters must be a non-empty dictionary of arrays by name")
        for name, array in parameters.items():
            check_float_array(f"parameters[{name!r}]", array)
        self.parameters = parameters
        self.steps = 0
        self._kinds = {name: (array.shape, array.dtype) for name, array in parameters.items()}
        self._state = {}

    @property
    def learning_rate(self) -> float:
        """Step size of the next step, unless `step` is given another."""
        assert self.lr is not None
        return self.lr

    def step(self, grads: Mapping[str, np.ndarray], lr: float | None = None) -> None:
        """Update every parameter in place.

        Parameters
        ----------
        grads : dict of str to ndarray
            One gradient per parameter, of the same shape and dtype.
        lr : float, optional
            Step size of this step only; ``learning_rate`` by default.

        Raises
        ------
        TypeError, ValueError
            A gradient is missing, unknown, or of another shape or dtype.
        FloatingPointError
            A gradient is NaN or infinite: the message names the step and the parameter.

        Notes
        -----
        If an exception is raised, nothing has been changed.
        """
        lr = self.learning_rate if lr is None else number("lr", lr, 0.0)
        self._check_gradients(grads)
        self.steps += 1
        for name, weight in self.parameters.items():
            self._update(name, weight, grads[name], lr)

    @abstractmethod
    def _update(self, name: str, weight: np.ndarray, grad: np.ndarray, lr: float) -> None:
        """Update one parameter in place; `steps` is the number of this step, from 1."""

    def settings(self) -> dict[str, Any]:
        """The arguments other than `parameters`, by name."""
        own = ("parameters", "steps")
        return {k: v for k, v in vars(self).items() if k not in own and not k.startswith("_")}

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state as a flat dictionary of arrays: `steps`, and each parameter's moments.

        The moments, ``"first.NAME"`` etc., are not copies.
        """
        return {"steps": np.array(self.steps, np.int64), **self._state}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy a state returned by `state_dict`.

        Parameters
        ----------
        state : mapping of str to ndarray
            All its entries.

        Raises
        ------
        TypeError, ValueError
            An entry is missing, unknown, or of another shape or dtype; nothing has been changed.
        """
        own = self.state_dict()
        _check_same_names("state", state, own)
        for name, array in own.items():
            _check_like(f"state[{name!r}]", state[name], array.shape, array.dtype)
        if int(state["steps"]) < 0:
            raise ValueError(f"state['steps'] must be >= 0, got {int(state['steps'])}")
        self.steps = int(state["steps"])
        for name, array in self._state.items():
            array[...] = state[name]

    def _check_gradients(self, grads: Mapping[str, np.ndarray]) -> None:
        _check_same_names("grads", grads, self.parameters)
        for name, weight in self.parameters.items():
            check_float_array(f"parameters[{name!r}]", weight)
            _check_like(f"parameters[{name!r}]", weight, *self._kinds[name])
            _check_like(f"grads[{name!r}]", grads[name], *self._kinds[name])
        check_finite(grads, self.steps + 1)


class AdamW(NamedAttributes, Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    Parameters
    ----------
    parameters : dict of str to ndarray
        Arrays to train, float32 or float64: usually ``model.parameters``, or a part of it to freeze
        the rest. The arrays are updated in place.
    lr : float
        Step size; ``step(grads, lr=...)`` overrides it for one step.
    betas : (float, float)
        Decay rates of the running means of the gradient and of its square, each in [0, 1).
    eps : float
        Added to the square root of the second moment, > 0.
    weight_decay : float
        Each step subtracts ``lr * weight_decay`` times the weight, >= 0.

    Raises
    ------
    TypeError, ValueError
        An argument or a parameter is invalid.

    See Also
    --------
    Adafactor : needs almost no memory for its state.

    Examples
    --------
    >>> import numpy as np
    >>> w = {"w": np.ones(3, np.float32)}
    >>> optimizer = AdamW(w, lr=0.1, weight_decay=0.0)
    >>> optimizer.step({"w": np.array([1.0, -1.0, 0.0], np.float32)})
    >>> w["w"]
    array([0.9, 1.1, 1. ], dtype=float32)
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float

    @names_keywords
    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters)
        self.lr = number("lr", lr, 0.0)  # pyright: ignore
        self.betas = _pair("betas", betas, below=1.0)
        self.eps = positive("eps", eps)
        self.weight_decay = number("weight_decay", weight_decay, 0.0)
        for name, array in parameters.items():
            self._state[f"first.{name}"] = np.zeros_like(array, order="C")
            self._state[f"second.{name}"] = np.zeros_like(array, order="C")

    def __repr__(self) -> str:
        return (
            f"AdamW({len(self.parameters)} parameters, lr={self.lr:g}, betas={self.betas}, "
            f"eps={self.eps:g}, weight_decay={self.weight_decay:g}, steps={self.steps})"
        )

    def _update(self, name: str, weight: np.ndarray, grad: np.ndarray, lr: float) -> None:
        ops.adamw_step(
            weight,
            self._state[f"first.{name}"],
            self._state[f"second.{name}"],
            grad,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            step=self.steps,
        )


class Adafactor(NamedAttributes, Optimizer):
    """Adaptive steps with almost no memory for state (Shazeer and Stern 2018).

    For a matrix it keeps running means of the squared gradient over rows and over columns, where
    AdamW keeps two numbers per weight. Arguments, defaults and results are those of the class of
    this name in transformers: by default, the step size is derived from the number of steps and the
    scale of the parameter.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Arrays to train, as in `AdamW`. The second moment is factored over the last two axes; arrays
        of fewer axes keep all of it.
    lr : float, optional
        Step size, if `relative_step` is False.
    eps : (float, float)
        Added to the squared gradient, > 0; and the lower bound of a parameter's root mean square
        in `scale_parameter`, >= 0.
    clip_threshold : float
        Largest root mean square of an update, before the step size is applied, > 0.
    decay_rate : float
        In [-1, 0]: the decay of the second moment in step n is ``1 - n ** decay_rate``.
    beta1 : float, optional
        Decay rate of the running mean of updates, in [0, 1); None keeps no mean.
    weight_decay : float
        Each step subtracts the step size times `weight_decay` times the weight, >= 0.
    scale_parameter : bool
        Multiply the step size by the parameter's root mean square.
    relative_step : bool
        The step size of step n is ``min(1e-2, 1 / sqrt(n))``.
    warmup_init : bool
        The step size of step n is ``min(1e-6 n, 1 / sqrt(n))`` instead.

    Raises
    ------
    TypeError, ValueError
        An argument or a parameter is invalid.

    References
    ----------
    Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost".

    Examples
    --------
    >>> import numpy as np
    >>> w = {"w": np.ones((2, 2), np.float32)}
    >>> optimizer = Adafactor(w)
    >>> optimizer.step({"w": np.array([[1.0, -2.0], [2.0, 4.0]], np.float32)})
    >>> w["w"]
    array([[0.99, 1.01],
           [0.99, 0.99]], dtype=float32)
    >>> sorted(optimizer.state_dict())
    ['column.w', 'row.w', 'steps']
    """

    eps: tuple[float, float]
    clip_threshold: float
    decay_rate: float
    beta1: float | None
    weight_decay: float
    scale_parameter: bool
    relative_step: bool
    warmup_init: bool

    @names_keywords
    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        super().__init__(parameters)
        self.scale_parameter = flag("scale_parameter", scale_parameter)
        self.relative_step = flag("relative_step", relative_step)
        self.warmup_init = flag("warmup_init", warmup_init)
        if (lr is None) != self.relative_step:
            raise ValueError(
                f"lr must be None with relative_step=True and a number without, got {lr!r}"
            )
        if self.warmup_init and not self.relative_step:
            raise ValueError("warmup_init must be False without relative_step")
        self.lr = None if lr is None else number("lr", lr, 0.0)
        self.eps = _pair("eps", eps)
        positive("eps", self.eps[0])
        self.clip_threshold = positive("clip_threshold", clip_threshold)
        self.decay_rate = number("decay_rate", decay_rate, -1.0)
        if self.decay_rate > 0.0:
            raise ValueError(f"decay_rate must be in [-1, 0], got {decay_rate!r}")
        self.beta1 = None if beta1 is None else number("beta1", beta1, 0.0, below=1.0)
        self.weight_decay = number("weight_decay", weight_decay, 0.0)
        for name, array in parameters.items():
            shapes = {"second": array.shape}
            if array.ndim >= 2:
                *batch, rows, columns = array.shape
                shapes = {"row": (*batch, rows), "column": (*batch, columns)}
            if self.beta1 is not None:
                shapes["first"] = array.shape
            for moment, shape in shapes.items():
                self._state[f"{moment}.{name}"] = np.zeros(shape, array.dtype)

    def __repr__(self) -> str:
        lr = "relative" if self.lr is None else f"{self.lr:g}"
        return (
            f"Adafactor({len(self.parameters)} parameters, lr={lr}, eps={self.eps}, "
            f"clip_threshold={self.clip_threshold:g}, decay_rate={self.decay_rate:g}, "
            f"beta1={self.beta1}, weight_decay={self.weight_decay:g}, "
            f"scale_parameter={self.scale_parameter}, warmup_init={self.warmup_init}, "
            f"steps={self.steps})"
        )

    @property
    def learning_rate(self) -> float:
        """Step size of the next step, before scaling by the parameter's root mean square."""
        if self.lr is not None:
            return self.lr
        step = self.steps + 1
        return min(1e-6 * step if self.warmup_init else 1e-2, 1.0 / math.sqrt(step))

    def _update(self, name: str, weight: np.ndarray, grad: np.ndarray, lr: float) -> None:
        if self.scale_parameter and weight.size:
            lr *= max(self.eps[1], math.sqrt(ops.sum_of_squares(weight) / weight.size))
        state = self._state.get
        ops.adafactor_step(
            weight,
            grad,
            row=state(f"row.{name}"),
            column=state(f"column.{name}"),
            s=state(f"second.{name}"),
            m=state(f"first.{name}"),
            lr=lr,
            beta1=self.beta1 or 0.0,
            beta2=1.0 - self.steps**self.decay_rate,
            eps=self.eps[0],
            clip_threshold=self.clip_threshold,
            weight_decay=self.weight_decay,
        )


def _check_like(name: str, array: object, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a {dtype} array, got {type(array).__name__}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if array.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {array.dtype}")


def _check_same_names(name: str, got: object, expected: Mapping[str, Any]) -> None:
    if not isinstance(got, Mapping):
        raise TypeError(f"{name} must be a dictionary of arrays by name")
    for missing in [key for key in expected if key not in got]:
        raise ValueError(f"{name}: {missing!r} is missing")
    for unknown in [key for key in got if key not in expected]:
        raise ValueError(f"{name}: {unknown!r} belongs to no parameter of this optimizer")


def _pair(name: str, value: Any, below: float = math.inf) -> tuple[float, float]:
    if np.shape(value) != (2,):
        raise ValueError(f"{name} must be two numbers, got {value!r}")
    first, second = (number(name, part, 0.0, below=below) for part in value)
    return first, second
