"""The training loop: steps, held-out evaluation, and a run that resumes bit for bit.

All randomness in step n is derived from (seed, n), so a run's state is its parameters, the
optimiser's moments and n.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..checks import NamedAttributes, integer, names_keywords, positive
from ..files.writable import check_writable
from ..runtime import peak_memory
from ..text.tables import html_pairs
from .accumulation import Accumulated, accumulate, arguments_of
from .evaluation import Evaluation, evaluate
from .gradients import check_finite, clip_gradients, not_finite
from .interruption import Interruption
from .log import TrainingLog
from .optim import AdamW, Optimizer
from .schedules import Schedule, describe_schedule
from .state import keep_model, restore_run, save_run
from .texts import texts_of

__all__ = ["StepReport", "Trainer"]


class Data(Protocol):
    """Training data: ``batch(i)`` gives micro-batch i, counted from 0, as token ids (b, t) or as a
    dictionary of the arguments of ``loss_and_gradients``."""

    def batch(self, step: int) -> np.ndarray | Mapping[str, Any]: ...


class Metrics(Protocol):
    """An evaluation of a model: metrics by name."""

    def __call__(self, model: Any, *, seed: int) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class StepReport:
    """Measurements of one training step.

    Attributes
    ----------
    step : int
        Steps taken so far, this one included.
    loss : float
        Mean cross-entropy of the batch in nats per token, before the update, over the labels of all
        micro-batches that are not ignored. NaN if there are none. With label smoothing, if the
        model has it.
    bits_per_byte : float or None
        The same in bits per byte of text; None if the data's ``bytes_per_token`` is None, as for
        tasks other than language models.
    learning_rate, gradient_norm : float
        Step size used, and the gradient's norm before clipping.
    tokens_per_second : float
        Tokens of the batch, padding included, divided by the time of the whole step; in distributed
        training, this process's tokens.
    peak_memory : int or None
        Peak resident size of the process in bytes; None if the system does not report it.
    held_out : float, dict or None
        Bits per byte of the held-out text after this step, if it was evaluated; or the metrics by
        name, if `Trainer` was given a function.
    targets : int or None
        Number of targets in the loss: labels, rows of a classifier, or starts or ends of answers,
        whichever are fewer. 0: the step was skipped.
    """

    step: int
    loss: float
    bits_per_byte: float | None
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    peak_memory: int | None
    held_out: float | Mapping[str, float] | None = None
    targets: int | None = None

    def _repr_html_(self) -> str:
        found = {name: value for name, value in vars(self).items() if value is not None}
        return html_pairs("training step", found)


class Trainer(NamedAttributes):
    """Trains a language model: iterating takes steps and yields a `StepReport` for each.

    Parameters
    ----------
    model : ReformerModelWithLMHead
        Anything with ``parameters``, ``loss_and_gradients(input_ids, labels=, rng=)`` and
        ``save_pretrained(folder)``, as every model of this package. Without ``count_targets``, the
        targets are the labels that are not -100; if labels equal the input ids (a causal language
        model), except the first of each row; if the batch has a `loss` (of a `ReformerModel`), the
        rows.
    data : Windows or Sequences
        Anything with ``batch(step)`` that gives token ids (b, t); ``describe()``, ``length``,
        ``offset`` and ``bytes_per_token`` are used if present. For models other than a causal
        language model, a dictionary of arguments, such as ``{"input_ids": ids, "labels": labels}``,
        or for a `ReformerModel` ``{"input_ids": ids, "loss": function}``.
    optimizer : AdamW or Adafactor, optional
        ``AdamW(model.parameters)`` by default. Parameters that it does not hold are frozen.
    steps : int, optional
        Stop after this many steps, counting those before a resume; None never stops.
    schedule : callable, optional
        Maps the number of steps taken to a factor on the optimiser's ``learning_rate``: see
        ``schedules``.
    accumulate : int
        Micro-batches per step. Loss and gradient are those of one batch with all their rows, every
        target weighted equally.
    max_grad_norm : float
        Gradients are clipped to this global norm; ``inf`` does not clip.
    seed : int
        Seed of dropout and of the LSH rotations, combined with the step.
    held_out : ndarray (n,), a list of them, or a function, optional
        Texts to evaluate every `evaluate_every` steps and after the last step, in windows of
        `data.length`. A function is called as ``held_out(model, seed=seed)`` and returns metrics
        by name.
    held_out_bytes_per_token : float, optional
        Mean bytes per token of `held_out`; ``data.bytes_per_token`` by default.
    evaluate_every : int
        0 never evaluates.
    folder : path, optional
        Where to `save` every `save_every` steps, after the last step and on interruption.
    save_every : int
        0 saves only after the last step and on interruption.
    keep : int
        The models of the last `keep` checkpoints are kept in ``folder/checkpoint-STEP``, without
        the optimiser's state, for ``reformer_c.training.averaging.average_models``.
    log : path, optional
        File that receives one line of JSON per step: the fields of `StepReport`.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid.
    ImportError
        `folder` is given and the safetensors library is not installed.
    OSError
        The folder or the log cannot be written, or the disk has no room for a checkpoint.

    Notes
    -----
    While a loop over a trainer runs in the main thread, Ctrl-C and SIGTERM take effect after the
    current step: the trainer saves, and the loop ends with ``KeyboardInterrupt`` or
    ``SystemExit(143)``. A second Ctrl-C acts at once. If the model has ``agree``, as
    `reformer_c.distributed.DataParallel` has, a signal to one process ends the loops of all
    processes after the same step, once process 0 has saved.

    A step whose labels are all ignored is skipped: parameters and optimiser state are unchanged,
    ``step`` increases, and the report has ``targets=0``, a loss of NaN, and a gradient norm and
    learning rate of 0.

    If the loss of any other step, a gradient or a parameter is NaN or infinite, the loop ends with
    ``FloatingPointError``, which names the step and the parameter. The state saved then, or later,
    is the one before that step; with a parameter that is not finite, none is saved.

    Examples
    --------
    >>> import reformer_c as rc
    >>> from reformer_c.training.data import Windows
    >>> config = rc.ReformerConfig(
    ...     vocab_size=258, hidden_size=16, feed_forward_size=16, num_attention_heads=1,
    ...     attention_head_size=16, attn_layers=["local"], axial_pos_shape=[8, 8],
    ...     axial_pos_embds_dim=[8, 8], max_position_embeddings=64, is_decoder=True, hash_seed=0)
    >>> model = rc.ReformerModelWithLMHead(config, rng=0)
    >>> data = Windows(np.arange(200) % 7 + 97, length=64)
    >>> reports = list(Trainer(model, data, rc.AdamW(model.parameters, lr=1e-2), steps=20))
    >>> reports[-1].step, reports[-1].loss < reports[0].loss
    (20, True)
    """

    model: Any
    data: Data
    optimizer: Optimizer
    steps: int | None
    schedule: Schedule | None
    accumulate: int
    max_grad_norm: float
    seed: int
    held_out: np.ndarray | Sequence[np.ndarray] | Metrics | None
    held_out_bytes_per_token: float | None
    evaluate_every: int
    folder: Path | None
    save_every: int
    keep: int
    step: int
    _saved_step: int
    _log: TrainingLog | None

    @names_keywords
    def __init__(
        self,
        model: Any,
        data: Data,
        optimizer: Optimizer | None = None,
        *,
        steps: int | None = None,
        schedule: Schedule | None = None,
        accumulate: int = 1,
        max_grad_norm: float = 1.0,
        seed: int = 0,
        held_out: np.ndarray | Sequence[np.ndarray] | Metrics | None = None,
        held_out_bytes_per_token: float | None = None,
        evaluate_every: int = 0,
        folder: str | os.PathLike[str] | None = None,
        save_every: int = 0,
        keep: int = 0,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        _check_method("model", model, "loss_and_gradients")
        _check_method("data", data, "batch")
        _check_offset(model, data)
        if optimizer is not None:
            _check_method("optimizer", optimizer, "step")
            _check_parameters(model, optimizer)
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function of the step, got {schedule!r}")
        if evaluate_every and held_out is None:
            raise ValueError("held_out must be given with evaluate_every")
        if held_out_bytes_per_token is not None and held_out is None:
            raise ValueError("held_out must be given with held_out_bytes_per_token")
        texts = [] if held_out is None or callable(held_out) else texts_of("held_out", held_out)
        if texts:
            _check_method("model", model, "loss")
        if texts and max(map(len, texts)) < 2:
            raise ValueError("held_out must have a text of at least 2 tokens")
        if save_every and folder is None:
            raise ValueError("folder must be given with save_every")
        if keep and folder is None:
            raise ValueError("folder must be given with keep")
        self.model = model
        self.data = data
        self.optimizer = AdamW(model.parameters) if optimizer is None else optimizer
        self.steps = None if steps is None else integer("steps", steps, 0)
        self.schedule = schedule
        self.accumulate = integer("accumulate", accumulate, 1)
        self.max_grad_norm = positive("max_grad_norm", max_grad_norm, infinite=True)
        self.seed = integer("seed", seed, 0)
        self.held_out = held_out
        self.held_out_bytes_per_token = (
            None
            if held_out_bytes_per_token is None
            else positive("held_out_bytes_per_token", held_out_bytes_per_token)
        )
        self.evaluate_every = integer("evaluate_every", evaluate_every, 0)
        self.folder = None if folder is None else Path(folder)
        self.save_every = integer("save_every", save_every, 0)
        self.keep = integer("keep", keep, 0)
        self.step = 0
        self._saved_step = -1
        if self.folder is not None:
            arrays = [*model.parameters.values(), *self.optimizer.state_dict().values()]
            arrays += self.keep * [*model.parameters.values()]
            check_writable(self.folder, sum(array.nbytes for array in arrays))
        self._log = None if log is None else TrainingLog(log)

    def _repr_html_(self) -> str:
        total = "" if self.steps is None else f" of {self.steps:,}"
        values = {
            "model": repr(self.model),
            "data": repr(self.data),
            "optimizer": repr(self.optimizer),
            "schedule": self.schedule,
            "step": f"{self.step:,}{total}",
            "accumulate": self.accumulate,
            "max_grad_norm": self.max_grad_norm,
            "seed": self.seed,
            "evaluate_every": self.evaluate_every,
            "folder": self.folder,
        }
        return html_pairs("Trainer", values)

    def __iter__(self) -> Iterator[StepReport]:
        if self.step == self.steps:
            return
        log: AbstractContextManager[Any] = (
            nullcontext() if self._log is None else self._log.begin(after=self.step)
        )
        # several processes may receive one Ctrl-C twice: from the terminal and from their launcher
        echo = 1.0 if hasattr(self.model, "agree") else 0.0
        with log, Interruption(echo) as interruption:
            while self.steps is None or self.step < self.steps:
                report = self._take_step_or_save()
                stop = self._agree(interruption.signal)
                due = self.save_every and self.step % self.save_every == 0
                if due or self.step == self.steps or stop:
                    self._save_once()
                yield report
                stop = stop or self._agree(interruption.signal)
                if stop:
                    self._save_once()
                    self._agree(0)  # wait: a process that exits may kill the one that is saving
                    interruption.leave(stop)

    def _agree(self, number: int) -> int:
        """The largest `number` of all processes (collective: all must call it equally often)."""
        return self.model.agree(number) if hasattr(self.model, "agree") else number

    def evaluate(self) -> Evaluation | Mapping[str, float]:
        """Evaluate the model on the held-out texts, or call the function `held_out`."""
        if self.held_out is None:
            raise ValueError("held_out must be given to evaluate")
        if callable(self.held_out):
            return self.held_out(self.model, seed=self.seed)
        length = getattr(self.data, "length", None)
        if length is None:
            length = np.shape(arguments_of(self.data.batch(0))["input_ids"])[1]
        return evaluate(
            self.model,
            self.held_out,
            length,
            bytes_per_token=self.held_out_bytes_per_token or self._bytes_per_token or 1.0,
            seed=self.seed,
        )

    def measure_held_out(self) -> float | Mapping[str, float]:
        """The result of `evaluate` as a report has it: bits per byte, or metrics by name."""
        found = self.evaluate()
        if isinstance(found, Evaluation):
            return found.bits_per_byte
        # JSON, as in the log, has no numbers of NumPy
        return {name: x.item() if isinstance(x, np.generic) else x for name, x in found.items()}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model, the optimiser's state and the step, for `resume`.

        The folder can be read with ``from_pretrained``. It is replaced atomically: everything is
        first written and flushed next to the last checkpoint, so one of the two stays complete
        even if the process is killed.

        Parameters
        ----------
        folder : path or str
            Created if it does not exist.

        Raises
        ------
        OSError
            The folder cannot be written, or the disk is full; the last checkpoint is kept.
        FloatingPointError
            A parameter is not finite; the last checkpoint is kept.
        """
        if (name := not_finite(self.model.parameters)) is not None:
            raise FloatingPointError(f"save: the parameter {name!r} is not finite")
        save_run(Path(folder), self.model, self.optimizer, self._state(self.step))

    def resume(self, folder: str | os.PathLike[str], *, allow: Collection[str] = ()) -> list[str]:
        """Continue, bit for bit, from what `save` wrote.

        Everything that determines the next steps must be unchanged: data, seed, `accumulate`,
        `schedule`, `max_grad_norm`, class and arguments of the optimiser, configuration and shapes
        of the model. A schedule that is not one of ``schedules`` is compared by its factors at
        steps already taken. `steps`, the arguments of evaluation, saving and logging, and the
        model's `memory_budget` may change. If the model's ``config.num_buckets`` is None, it takes
        the number of the saved model.

        Parameters
        ----------
        folder : path
        allow : collection of str
            Names of entries that may differ, as in the error: "lr", "schedule.steps".

        Returns
        -------
        list of str
            The allowed differences, each as ``"name is ... here and ..."``.

        Raises
        ------
        FileNotFoundError
            There is no checkpoint in the folder.
        ValueError
            The checkpoint is that of another run: lists every difference, with the value here and
            the saved one. Nothing has been changed.
        """
        self.step, allowed = restore_run(
            Path(folder), self.model, self.optimizer, self._state, allow
        )
        self._saved_step = self.step
        return allowed

    @property
    def _bytes_per_token(self) -> float | None:
        return getattr(self.data, "bytes_per_token", 1.0)

    def _state(self, step: int) -> dict[str, Any]:
        """What must agree between a run that has taken `step` steps and its continuation."""
        describe = getattr(self.data, "describe", None)
        return {
            "step": step,
            "seed": self.seed,
            "accumulate": self.accumulate,
            "schedule": describe_schedule(self.schedule, step),
            "optimizer": type(self.optimizer).__name__,
            "settings": {
                **self.optimizer.settings(),
                "max_grad_norm": self.max_grad_norm if math.isfinite(self.max_grad_norm) else None,
            },
            "data": describe() if describe else None,
        }

    def _save_once(self) -> None:
        if self.folder is None or self._saved_step == self.step:
            return
        try:
            self.save(self.folder)
            if self.keep:
                keep_model(self.folder, self.model, self.step, self.keep)
        except OSError as error:
            last = f"that of step {self._saved_step} is" if self._saved_step >= 0 else "none is"
            raise OSError(
                f"step {self.step}: the checkpoint could not be written ({error}); {last} in "
                f"{os.fspath(self.folder)!r}"
            ) from error
        self._saved_step = self.step

    def _take_step_or_save(self) -> StepReport:
        """Take a step and log it; if that fails, save the last finite state."""
        before = self.step
        try:
            report = self._take_step()
            if self._log is not None:
                self._log.write(asdict(report))
            return report
        except (ArithmeticError, OSError):
            self._save_if_good()
            raise
        except Exception:
            if self.step > before:  # in the evaluation, or in the log
                self._save_if_good()
            raise

    def _save_if_good(self) -> None:
        if not_finite(self.model.parameters) is None:
            self._save_once()

    def _take_step(self) -> StepReport:
        begin = time.perf_counter()
        loss, grads, targets, tokens = self._loss_and_gradients()
        try:
            norm, rate = self._update(loss, grads) if targets else (0.0, 0.0)
        except FloatingPointError:  # in every process: all have the same loss and gradients
            self._save_if_good()
            self._agree(0)
            raise
        self.step += 1
        seconds = time.perf_counter() - begin
        held_out = None
        if self.evaluate_every and (
            self.step % self.evaluate_every == 0 or self.step == self.steps
        ):
            held_out = self.measure_held_out()
        ratio = self._bytes_per_token
        return StepReport(
            step=self.step,
            loss=loss,
            bits_per_byte=None if ratio is None else loss / math.log(2) / ratio,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=tokens / seconds,
            peak_memory=peak_memory(),
            held_out=held_out,
            targets=targets,
        )

    def _update(self, loss: float, grads: dict[str, np.ndarray]) -> tuple[float, float]:
        """Update the parameters; returns the gradient's norm and the step size."""
        self._check_loss(loss, grads)
        norm = clip_gradients(grads, self.max_grad_norm)
        factor = 1.0 if self.schedule is None else float(self.schedule(self.step))
        rate = self.optimizer.learning_rate * factor
        self.optimizer.step(grads, lr=rate)
        if (name := not_finite(self.model.parameters)) is not None:
            raise FloatingPointError(
                f"step {self.step + 1}: the parameter {name!r} is not finite after an update with "
                f"the learning rate {rate:g}"
            )
        return norm, rate

    def _loss_and_gradients(self) -> Accumulated:
        first = self.step * self.accumulate
        numbers = range(first, first + self.accumulate)
        return accumulate(
            self.model,
            [self.data.batch(i) for i in numbers],
            [(self.seed, i) for i in numbers],
            self.optimizer.parameters,
        )

    def _check_loss(self, loss: float, grads: Mapping[str, np.ndarray]) -> None:
        if math.isfinite(loss):
            return
        step = self.step + 1
        if (name := not_finite(self.model.parameters)) is not None:
            raise FloatingPointError(
                f"step {step}: the loss is {loss}, and the parameter {name!r} is not finite"
            )
        check_finite(grads, step)
        raise FloatingPointError(f"step {step}: the loss is {loss}")


def _check_parameters(model: Any, optimizer: Any) -> None:
    """Refuse an optimizer that would step other arrays than the model's: of another model, of one
    that was opened again, or of a copy."""
    theirs = getattr(optimizer, "parameters", {})
    for name, array in model.parameters.items():
        if isinstance(theirs, Mapping) and theirs.get(name, array) is not array:
            raise ValueError(
                "optimizer must have been made with model.parameters, got other arrays (the first "
                f"is {name}): make it anew, and give it the state by load_state_dict"
            )


def _check_offset(model: Any, data: Any) -> None:
    """Refuse an offset without effect, and one of which only some steps would exceed the model's
    positions."""
    offset, length = getattr(data, "offset", 0), getattr(data, "length", 0)
    config = getattr(model, "config", None)
    positions = getattr(config, "num_positions", math.inf)
    if offset and getattr(config, "position_embedding_type", "absolute") == "none":
        raise ValueError(
            f"data must have an offset of 0 with position_embedding_type='none', got {offset}"
        )
    if offset and length + offset > positions:
        raise ValueError(
            f"data must have an offset of at most {max(0, positions - length)}: the model has "
            f"{positions} positions for sequences of {length} tokens, got {offset}"
        )


def _check_method(name: str, value: Any, method: str) -> None:
    if not callable(getattr(value, method, None)):
        kind = type(value).__name__
        raise TypeError(f"{name} must have a method {method}, got {kind}")
