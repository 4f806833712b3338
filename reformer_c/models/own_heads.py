"""Inputs and heads of the user: the forward and the backward pass of a body as two calls.

Between them the user computes a loss of the final states and its gradient.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..checks import as_array, flag, names_keywords
from ..layers.randomness import draw_seed
from ..precision import get_matmul_precision, matmul_precision
from ..runtime import get_num_threads, reuse_memory
from .body import Pass, Plan
from .calls import Reformer
from .inputs import Call

__all__ = ["OwnHeads"]

# a function of the final states (b, t, 2 c), which returns the loss and its gradient (b, t, 2 c)
LossFunction = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Forward(NamedTuple):
    """A forward pass that waits for its backward pass."""

    run: Pass
    checksums: dict[str, int]
    precision: str


class OwnHeads(Reformer):
    """A model without a head, whose loss is the user's."""

    _last_forward: Forward | None = None

    @names_keywords
    @reuse_memory()
    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        training: bool = True,
        memory_budget: float | None = None,
    ) -> np.ndarray:
        """The final states, for a loss whose gradient `backward` then takes.

        The model holds what `backward` needs, about four arrays of the size of (b, t, hidden_size)
        whatever the number of layers, until `backward` or the next `forward`. So threads that
        train at once need a model each. Copies of a model hold nothing.

        Parameters
        ----------
        input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations
            As in a call.
        rng : int, numpy Generator or None
            Draws dropout and rotations: an integer reproduces them, bit for bit.
        training : bool
            False: without dropout.
        memory_budget : int or float, optional
            As in ``ReformerModelWithLMHead.loss_and_gradients``.

        Returns
        -------
        ndarray, (b, t, 2 hidden_size)
            The `last_hidden_state` of a call, with the dropout that was drawn.

        Raises
        ------
        TypeError
            An argument has another type or dtype.
        ValueError
            A shape, a length or a value does not fit the configuration or the other arguments.
        MemoryError
            Both passes would take more memory than is free; raised before the first, with the
            numbers.

        See Also
        --------
        loss_and_gradients : both passes in one call.

        Notes
        -----
        If ``config.num_buckets`` is None, the first pass that hashes chooses it, as described in
        ``ReformerModelWithLMHead.loss_and_gradients``.

        Examples
        --------
        The gradient of the sum of all states, with respect to the weights and to the inputs:

        >>> from reformer_c import ReformerConfig, ReformerModel
        >>> config = ReformerConfig(attn_layers=["local", "lsh"], num_attention_heads=2)
        >>> model = ReformerModel(config, rng=0)
        >>> vectors = np.random.default_rng(0).standard_normal((1, 100, 256), np.float32)
        >>> states = model.forward(inputs_embeds=vectors, rng=0)
        >>> gradients, d_inputs_embeds = model.backward(np.ones_like(states))
        >>> len(gradients) == len(model.parameters), d_inputs_embeds.shape
        (True, (1, 100, 256))
        """
        run = self._begin_forward(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            training,
        )  # fmt: skip
        self._last_forward = None  # free its memory first
        states = self._states(run, memory_budget)
        self._last_forward = Forward(run, _checksums(self.parameters), get_matmul_precision())
        return states

    @reuse_memory()
    def backward(self, d_hidden: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """The gradients of a loss with respect to all parameters and to the inputs of `forward`.

        Activations are recomputed with the parameters as they are now, so these must not have
        changed since `forward`: update them after `backward`. Each `forward` can be followed by one
        `backward`.

        Parameters
        ----------
        d_hidden : ndarray, (b, t, 2 hidden_size)
            The gradient of the loss with respect to the result of `forward`.

        Returns
        -------
        gradients : dict of str to ndarray
            By the names of `parameters`.
        d_inputs_embeds : ndarray, (b, t, hidden_size), or None
            The gradient of `inputs_embeds`; None if `forward` was called with `input_ids`.

        Raises
        ------
        TypeError
            `d_hidden` has another dtype than the model.
        ValueError
            `d_hidden` has another shape than the final states.
        RuntimeError
            There was no `forward`, its `backward` has been called already, or a parameter has
            changed since, which is named.

        Examples
        --------
        See `forward`.
        """
        last = self._last_forward
        if last is None:
            raise RuntimeError("backward must follow forward, once for each: call forward first")
        d_hidden = _check_gradient(last.run, d_hidden)
        for name, checksum in _checksums(self.parameters).items():
            if checksum != last.checksums[name]:
                raise RuntimeError(
                    f"parameters must be those of the forward pass until backward, got another "
                    f"{name}"
                )
        self._last_forward = None
        with matmul_precision(last.precision):
            return self._propagate(last.run, d_hidden)

    @names_keywords
    @reuse_memory()
    def loss_and_gradients(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        loss: LossFunction,
        position_ids: Any = None,
        inputs_embeds: np.ndarray | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        training: bool = True,
        memory_budget: float | None = None,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """A loss of the final states, and its gradient with respect to every parameter.

        Parameters
        ----------
        input_ids, attention_mask
            As in `forward`.
        loss : callable
            A function of the final states (b, t, 2 hidden_size), which returns the loss and its
            gradient with respect to them, of their shape and dtype. It must not change the model's
            parameters.
        position_ids, inputs_embeds, num_hashes, rotations, rng, training, memory_budget
            As in `forward`.

        Returns
        -------
        loss : float
        gradients : dict of str to ndarray
            By the names of `parameters`. `backward` also returns that of `inputs_embeds`.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As in `forward` and `backward`; or `loss` is not such a function.

        Examples
        --------
        >>> from reformer_c import ReformerConfig, ReformerModel
        >>> config = ReformerConfig(attn_layers=["local", "lsh"], num_attention_heads=2)
        >>> model = ReformerModel(config, rng=0)
        >>> def mean_square(h):
        ...     return (h**2).mean(), 2 * h / h.size
        >>> loss, gradients = model.loss_and_gradients([[5, 6, 7]], loss=mean_square, rng=0)
        >>> 0.9 < loss < 1.1, len(gradients) == len(model.parameters)
        (True, True)
        """
        if not callable(loss):
            raise TypeError(f"loss must be a function of the final states, got {loss!r}")
        run = self._begin_forward(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations, rng,
            training,
        )  # fmt: skip
        value, d_hidden = _check_loss(run, loss(self._states(run, memory_budget)))
        gradients, _ = self._propagate(run, d_hidden)
        return value, gradients

    def _begin_forward(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any,
        inputs_embeds: Any,
        num_hashes: Any,
        rotations: Any,
        rng: Any,
        training: Any,
    ) -> Pass:
        """Check all arguments."""
        # the backward pass reads these again, and the user may change them before it
        input_ids, position_ids, rotations = deepcopy((input_ids, position_ids, rotations))
        call = Call(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, rotations,
            draw_seed(rng), flag("training", training),
        )  # fmt: skip
        return self._begin(call, {})[0]

    def _states(self, run: Pass, memory_budget: float | None) -> np.ndarray:
        """Run a pass forward; its final states."""
        kept_layers = self._kept_layers(run, memory_budget)
        self._keep_num_buckets(run)
        run.forward(differentiate=True, kept_layers=kept_layers)
        states: np.ndarray = self.head.outputs(run)["last_hidden_state"]
        return states

    def _propagate(
        self, run: Pass, d_hidden: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Run a pass backward; the gradients of the parameters and of the inputs."""
        run.states_backward(d_hidden)
        d_inputs_embeds = run.backward()
        return self._gradients(run), d_inputs_embeds

    def _plan(self, run: Pass, memory_budget: float | None, free: int | None) -> Plan:
        plan = super()._plan(run, memory_budget, free)
        # the final states, and their gradient
        held = 2 * int(np.prod(_states_shape(run))) * self.dtype.itemsize
        memory = replace(plan.memory, streams=plan.memory.streams + held)
        return plan._replace(memory=memory)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_last_forward"}


def _states_shape(run: Pass) -> tuple[int, int, int]:
    return run.inputs.b, run.inputs.t, 2 * run.config.hidden_size


def _checksums(parameters: Mapping[str, np.ndarray]) -> dict[str, int]:
    """A checksum of each parameter."""
    # crc32 releases the GIL
    with ThreadPoolExecutor(get_num_threads()) as pool:
        return dict(zip(parameters, pool.map(zlib.crc32, parameters.values()), strict=True))


def _check_gradient(run: Pass, given: Any) -> np.ndarray:
    d_hidden, shape, dtype = as_array("d_hidden", given), _states_shape(run), run.weights.dtype
    if d_hidden.dtype != dtype:
        raise TypeError(f"d_hidden must be {dtype}, got {d_hidden.dtype}")
    if d_hidden.shape != shape:
        raise ValueError(f"d_hidden must have shape {shape}, got {d_hidden.shape}")
    return d_hidden


def _check_loss(run: Pass, found: Any) -> tuple[float, np.ndarray]:
    """The result of a loss function."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(f"loss must return (loss, d_hidden), got {type(found).__name__}")
    value = as_array("loss", found[0])
    if value.ndim or value.dtype.kind not in "iuf":
        raise TypeError(
            f"loss must return a number first, got {value.dtype} of shape {value.shape}"
        )
    return float(value), _check_gradient(run, found[1])
