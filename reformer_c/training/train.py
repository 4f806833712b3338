"""Training: steps, held-out evaluation, and checkpoints from which a run resumes bit for bit.

All randomness in step n is derived from (seed, n), so a run's state is its parameters, the
optimiser's moments and n.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from .. import ops
from ..checks import NamedAttributes, integer, names_keywords, positive
from ..files.atomic import check_writable, finish_checkpoint, replace_files
from ..files.checkpoint import read_safetensors, write_atomically, write_safetensors
from ..models.config import ReformerConfig
from ..models.inputs import IGNORE
from ..runtime import underflow_to_zero
from .data import texts_of
from .log import TrainingLog
from .optim import AdamW, NamedSchedule, Optimizer, Schedule, check_finite, clip_gradients

__all__ = ["Evaluation", "StepReport", "Trainer", "evaluate", "peak_memory"]

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer_state.json"
CONFIG_FILE = "config.json"


class Data(Protocol):
    """Training data: ``batch(i)`` gives micro-batch i, counted from 0, as token ids (b, t) or as a
    dictionary of the arguments of ``loss_and_gradients``."""

    def batch(self, step: int) -> np.ndarray | Mapping[str, Any]: ...


@dataclass(frozen=True)
class StepReport:
    """Measurements of one training step.

    Attributes
    ----------
    step : int
        Steps taken so far, this one included.
    loss : float
        Mean cross-entropy of the batch in nats per token, before the update, over the labels of all
        micro-batches that are not ignored. NaN if there are none.
    bits_per_byte : float
        The same in bits per byte of text.
    learning_rate, gradient_norm : float
        Step size used, and the gradient's norm before clipping.
    tokens_per_second : float
        Tokens of the batch, padding included, divided by the time of the whole step; in distributed
        training, this process's tokens.
    peak_memory : int or None
        Peak resident size of the process in bytes; None if the system does not report it.
    held_out : float or None
        Bits per byte of the held-out text after this step, if it was evaluated.
    targets : int or None
        Number of targets in the loss: labels, rows of a classifier, or starts or ends of answers,
        whichever are fewer. 0: the step was skipped.
    """

    step: int
    loss: float
    bits_per_byte: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    peak_memory: int | None
    held_out: float | None = None
    targets: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A model's loss on texts, in nats per token and in bits per byte, and the tokens predicted."""

    loss: float
    bits_per_byte: float
    tokens: int


@names_keywords
def evaluate(
    model: Any,
    tokens: np.ndarray | Sequence[np.ndarray],
    length: int,
    *,
    stride: int | None = None,
    bytes_per_token: float = 1.0,
    seed: int = 0,
) -> Evaluation:
    """Mean loss of a language model over texts, computed in windows.

    Parameters
    ----------
    model : ReformerModelWithLMHead
        Anything with ``loss(input_ids, labels=, rng=)``.
    tokens : ndarray (n,), or a list of them
        Token ids of each text. A window never crosses texts; all its tokens but the first are
        predicted, with equal weight.
    length : int
        Tokens per window, >= 2; the last window may be shorter.
    stride : int, optional
        Below `length`: windows overlap and start `stride` tokens apart; after the first window,
        only the last `stride` tokens of each are predicted, each with a context of at least
        ``length - stride`` tokens. None: windows do not overlap.
    bytes_per_token : float
        Mean bytes of text per token.
    seed : int
        Seed of the LSH rotations, so that an evaluation can be repeated exactly.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        An argument is invalid, or no text or window has two tokens.
    """
    texts = texts_of("tokens", tokens)
    bytes_per_token = positive("bytes_per_token", bytes_per_token)
    length = integer("length", length)
    longest = max(map(len, texts))
    if length < 2 or longest < 2:
        raise ValueError(
            f"tokens and length must be at least 2, got {longest} tokens in windows of {length}"
        )
    if stride is not None and not 1 <= integer("stride", stride) < length:
        raise ValueError(f"stride must be in [1, {length}), got {stride}")
    total, count = 0.0, 0
    for text in texts:
        for ids, labels, new in _windows(text, length, stride):
            total += model.loss(ids, labels=labels, rng=seed) * new
            count += new
    return Evaluation(total / count, total / count / math.log(2) / bytes_per_token, count)


def _windows(
    text: np.ndarray, length: int, stride: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """The windows (1, n) of a text, their labels, and the number of labels not ignored."""
    end = 0
    for start in range(0, len(text) - 1, stride or length):
        ids = np.asarray(text[start : start + length], np.int64)[None]
        # with a stride, ignore tokens that an earlier window has predicted
        done = end - start if stride is not None and start > 0 else 1
        labels, end = ids.copy(), start + ids.shape[1]
        labels[:, :done] = IGNORE
        if ids.shape[1] > done:
            yield ids, labels, ids.shape[1] - done


def peak_memory() -> int | None:
    """Peak resident size of this process in bytes; None if the system does not report it.

    Examples
    --------
    >>> peak_memory() is None or peak_memory() > 1_000_000
    True
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Trainer(NamedAttributes):
    """Trains a language model: iterating takes steps and yields a `StepReport` for each.

    Parameters
    ----------
    model : ReformerModelWithLMHead
        Anything with ``parameters``, ``loss_and_gradients(input_ids, labels=, rng=)`` and
        ``save_pretrained(folder)``, as every model of this package. Without ``count_targets``, the
        targets are the labels that are not -100; if labels equal the input ids (a causal language
        model), except the first of each row.
    data : Windows or Sequences
        Anything with ``batch(step)`` that gives token ids (b, t); ``describe()``, ``length`` and
        ``bytes_per_token`` are used if present. For models other than a causal language model, a
        dictionary of arguments, such as ``{"input_ids": ids, "labels": labels}``.
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
    held_out : ndarray (n,) or a list of them, optional
        Texts to evaluate every `evaluate_every` steps and after the last step, in windows of
        `data.length`.
    held_out_bytes_per_token : float, optional
        Mean bytes per token of `held_out`; ``data.bytes_per_token`` by default.
    evaluate_every : int
        0 never evaluates.
    folder : path, optional
        Where to `save` every `save_every` steps, after the last step and on interruption.
    save_every : int
        0 saves only after the last step and on interruption.
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
    is the one before that step.

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
    held_out: np.ndarray | Sequence[np.ndarray] | None
    held_out_bytes_per_token: float | None
    evaluate_every: int
    folder: Path | None
    save_every: int
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
        held_out: np.ndarray | Sequence[np.ndarray] | None = None,
        held_out_bytes_per_token: float | None = None,
        evaluate_every: int = 0,
        folder: str | os.PathLike | None = None,
        save_every: int = 0,
        log: str | os.PathLike | None = None,
    ) -> None:
        _check_method("model", model, "loss_and_gradients")
        _check_method("data", data, "batch")
        if optimizer is not None:
            _check_method("optimizer", optimizer, "step")
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function of the step, got {schedule!r}")
        if evaluate_every and held_out is None:
            raise ValueError("held_out must be given with evaluate_every")
        if held_out is not None and max(map(len, texts_of("held_out", held_out))) < 2:
            raise ValueError("held_out must have a text of at least 2 tokens")
        if save_every and folder is None:
            raise ValueError("folder must be given with save_every")
        self.model = model
        self.data = data
        self.optimizer = AdamW(model.parameters) if optimizer is None else optimizer
        self.steps = None if steps is None else integer("steps", steps, 0)
        self.schedule = schedule
        self.accumulate = integer("accumulate", accumulate, 1)
        self.max_grad_norm = positive("max_grad_norm", max_grad_norm, infinite=True)
        self.seed = integer("seed", seed, 0)
        self.held_out = held_out
        self.held_out_bytes_per_token = None
        if held_out_bytes_per_token is not None:
            if held_out is None:
                raise ValueError("held_out must be given with held_out_bytes_per_token")
            value = positive("held_out_bytes_per_token", held_out_bytes_per_token)
            self.held_out_bytes_per_token = value
        self.evaluate_every = integer("evaluate_every", evaluate_every, 0)
        self.folder = None if folder is None else Path(folder)
        self.save_every = integer("save_every", save_every, 0)
        self.step = 0
        self._saved_step = -1
        if self.folder is not None:
            arrays = [*model.parameters.values(), *self.optimizer.state_dict().values()]
            check_writable(self.folder, sum(array.nbytes for array in arrays))
        self._log = None if log is None else TrainingLog(log)

    def __iter__(self) -> Iterator[StepReport]:
        if self.step == self.steps:
            return
        log: AbstractContextManager = (
            nullcontext() if self._log is None else self._log.begin(after=self.step)
        )
        # several processes may receive one Ctrl-C twice: from the terminal and from their launcher
        echo = 1.0 if hasattr(self.model, "agree") else 0.0
        with log, _Interruption(echo) as interruption:
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

    def evaluate(self) -> Evaluation:
        """Evaluate the model on the held-out texts."""
        if self.held_out is None:
            raise ValueError("held_out must be given to evaluate")
        length = getattr(self.data, "length", None)
        if length is None:
            length = np.shape(_arguments(self.data.batch(0))["input_ids"])[1]
        return evaluate(
            self.model,
            self.held_out,
            length,
            bytes_per_token=self.held_out_bytes_per_token or self._bytes_per_token,
            seed=self.seed,
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Write the model, the optimiser's state and the step, for `resume`.

        The folder can be read with ``from_pretrained``. It is replaced atomically: everything is
        first written and flushed next to the last checkpoint, so one of the two stays complete
        even if the process is killed.

        Raises
        ------
        OSError
            The folder cannot be written, or the disk is full; the last checkpoint is kept.
        """
        text = json.dumps(self._state(self.step), indent=2) + "\n"

        def write(stage: Path) -> None:
            self.model.save_pretrained(stage)
            write_safetensors(stage / OPTIMIZER_FILE, self.optimizer.state_dict())
            write_atomically(stage / STATE_FILE, lambda part: part.write_text(text))

        replace_files(Path(folder), write)

    def resume(self, folder: str | os.PathLike, *, allow: Collection[str] = ()) -> list[str]:
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
        folder = Path(folder)
        finish_checkpoint(folder)
        if not has_checkpoint(folder):
            raise FileNotFoundError(f"folder: there is no {STATE_FILE} in {os.fspath(folder)!r}")
        state = json.loads((folder / STATE_FILE).read_text())
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError(f"resume: {STATE_FILE} in {os.fspath(folder)!r} has no step")
        own = self._state(state["step"])
        if own["optimizer"] != state.get("optimizer"):  # its arguments differ as a consequence
            state.pop("settings", None)
        found = _differences(json.loads(json.dumps(own)), state)  # tuples are lists in JSON
        sides = self._saved_configs(folder)
        for name, (side, config) in sides.items():
            found += config_differences(side.config, config, f"{name}." if name else "")
        allow = [allow] if isinstance(allow, str) else allow
        allowed = [words for words in found if words.split(" is ")[0] in allow]
        if refused := [words for words in found if words not in allowed]:
            raise ValueError(f"resume: {'; '.join(refused)} in {os.fspath(folder)!r}")
        weights = read_safetensors(folder / MODEL_FILE)
        moments = read_safetensors(folder / OPTIMIZER_FILE)
        _check_weights(weights, self.model.parameters)
        self.optimizer.load_state_dict(moments)
        for name, array in self.model.parameters.items():
            array[...] = weights[name]
        for side, config in sides.values():
            if side.config.num_buckets is None:
                side.config = replace(side.config, num_buckets=config.num_buckets)
        self.step = self._saved_step = int(state["step"])
        return allowed

    def _saved_configs(self, folder: Path) -> dict[str, tuple[Any, ReformerConfig]]:
        """By name: each model that has its own configuration, and the saved configuration."""
        sides = getattr(self.model, "sides", {})  # models of other packages have none
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) if sides else {}
        saved = {name: ReformerConfig.from_dict(values.get(name, values)) for name in sides}
        return {name: (side, saved[name]) for name, side in sides.items()}

    @property
    def _bytes_per_token(self) -> float:
        return getattr(self.data, "bytes_per_token", 1.0)

    def _state(self, step: int) -> dict[str, Any]:
        """What must agree between a run that has taken `step` steps and its continuation."""
        describe = getattr(self.data, "describe", None)
        return {
            "step": step,
            "seed": self.seed,
            "accumulate": self.accumulate,
            "schedule": _describe_schedule(self.schedule, step),
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
        except OSError as error:
            last = f"that of step {self._saved_step} is" if self._saved_step >= 0 else "none is"
            raise OSError(
                f"step {self.step}: the checkpoint could not be written ({error}); {last} in "
                f"{os.fspath(self.folder)!r}"
            ) from error
        self._saved_step = self.step

    def _take_step_or_save(self) -> StepReport:
        """Take a step and log it; if that fails, save the last finite state."""
        try:
            report = self._take_step()
            if self._log is not None:
                self._log.write(asdict(report))
            return report
        except (FloatingPointError, OSError):
            self._save_if_good()
            raise

    def _save_if_good(self) -> None:
        if self._bad_parameter() is None:
            self._save_once()

    def _bad_parameter(self) -> str | None:
        """The first parameter that contains a NaN or an infinity."""
        for name, array in self.model.parameters.items():
            # the sum is one fast pass in C; it may overflow, so then check the elements
            if not math.isfinite(ops.sum_of_squares(array)) and not np.isfinite(array).all():
                return name
        return None

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
        due = self.evaluate_every and self.step % self.evaluate_every == 0
        if due or (self.evaluate_every and self.step == self.steps):
            held_out = self.evaluate().bits_per_byte
        else:
            held_out = None
        return StepReport(
            step=self.step,
            loss=loss,
            bits_per_byte=loss / math.log(2) / self._bytes_per_token,
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
        if (name := self._bad_parameter()) is not None:
            raise FloatingPointError(
                f"step {self.step + 1}: the parameter {name!r} is not finite after an update with "
                f"the learning rate {rate:g}"
            )
        return norm, rate

    def _loss_and_gradients(self) -> tuple[float, dict[str, np.ndarray], int, int]:
        """Loss, gradients, number of targets and number of tokens of the next step."""
        first = self.step * self.accumulate
        batches = [_arguments(self.data.batch(first + i)) for i in range(self.accumulate)]
        tokens = sum(map(_count_tokens, batches))
        counts = [_count_targets(self.model, batch) for batch in batches]
        totals = np.sum(counts, axis=0)
        if not np.all(totals):  # the loss would be 0 / 0
            return math.nan, {}, 0, tokens
        shared = {}
        if np.ndim(totals):
            # the loss is a sum of several means, so no single weight per micro-batch is right:
            # divide each mean by the average count per micro-batch instead
            counts = [int(any(count)) for count in counts]
            shared["counts"] = totals / sum(counts)
        reference = next(filter(None, counts))
        losses: list[float] = []
        total: dict[str, np.ndarray] = {}
        for index, (batch, count) in enumerate(zip(batches, counts, strict=True), first):
            if count == 0:
                continue
            key = np.random.SeedSequence((self.seed, index)).generate_state(1, np.uint64)[0]
            loss, grads = self.model.loss_and_gradients(**batch, rng=int(key), **shared)
            # relative to the first count, so that gradients of equal counts are added unscaled
            weight = count / reference
            losses.append(float(loss) * weight)
            grads = {name: grads[name] for name in self.optimizer.parameters}
            if not total:
                total = grads
            else:
                for name, grad in grads.items():
                    ops.add_scaled(total[name], grad, weight)
        weights = sum(counts) / reference
        if len(losses) > 1:
            with underflow_to_zero():
                for grad in total.values():
                    np.multiply(grad, 1.0 / weights, out=grad)
        return math.fsum(losses) / weights, total, int(np.min(totals)), tokens

    def _check_loss(self, loss: float, grads: Mapping[str, np.ndarray]) -> None:
        if math.isfinite(loss):
            return
        step = self.step + 1
        if (name := self._bad_parameter()) is not None:
            raise FloatingPointError(
                f"step {step}: the loss is {loss}, and the parameter {name!r} is not finite"
            )
        check_finite(grads, step)
        raise FloatingPointError(f"step {step}: the loss is {loss}")


def _check_method(name: str, value: Any, method: str) -> None:
    if not callable(getattr(value, method, None)):
        kind = type(value).__name__
        raise TypeError(f"{name} must have a method {method}, got {kind}")


def _arguments(batch: Any) -> Mapping[str, Any]:
    """The arguments of `loss_and_gradients` for a batch of the data."""
    return batch if isinstance(batch, Mapping) else {"input_ids": batch, "labels": batch}


def _count_tokens(batch: Mapping[str, Any]) -> int:
    if batch.get("inputs_embeds") is not None:
        return int(np.prod(np.shape(batch["inputs_embeds"])[:2]))
    return np.size(batch.get("input_ids", ()))


def _count_targets(model: Any, batch: Mapping[str, Any]) -> Any:
    """The number of targets that the loss of a batch averages over; a tuple for several means."""
    if hasattr(model, "count_targets"):
        return model.count_targets(**batch)
    # if labels are the input (causal language model), the first of each row is not predicted
    labels = np.asarray(batch["labels"])
    counts = labels != IGNORE
    ids = np.asarray(batch.get("input_ids"))
    if ids.shape == labels.shape and (ids == labels)[counts].all():
        counts = counts[..., 1:]
    return int(np.count_nonzero(counts))


class _Interruption:
    """Records the first Ctrl-C or SIGTERM; a second one acts at once, unless it comes within `echo`
    seconds of the first."""

    def __init__(self, echo: float) -> None:
        self.echo, self.began = echo, 0.0

    def __enter__(self) -> _Interruption:
        self.signal = 0
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # an ignored signal (nohup, a background job) stays ignored
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, _frame: object) -> None:
        if not self.signal:
            self.signal, self.began = number, time.monotonic()
            if not self.echo:
                self.__exit__()
        elif time.monotonic() - self.began > self.echo:
            self.__exit__()
            signal.raise_signal(number)

    @staticmethod
    def leave(number: int) -> None:
        if number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


def has_checkpoint(folder: Path) -> bool:
    """Whether `Trainer.resume` would find a checkpoint in the folder."""
    return (folder / STATE_FILE).is_file()


def _describe_schedule(schedule: Schedule | None, step: int) -> Any:
    """A named schedule's name and arguments; for other functions, factors of steps taken."""
    if schedule is None:
        return None
    if isinstance(schedule, NamedSchedule):
        return {"kind": schedule.kind, **schedule.arguments}
    steps = {0, step // 2, step - 1} if step else ()
    return {f"factor of step {i}": float(schedule(i)) for i in sorted(steps)}


def _differences(own: Mapping[str, Any], saved: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Differences from a saved state, in words; entries that an older state lacks are skipped."""
    found = []
    for name, theirs in saved.items():
        mine = own.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            inner = "" if name == "settings" else f"{prefix}{name}."
            found += _differences(mine, theirs, inner)
        elif mine != theirs:
            found.append(f"{prefix}{name} is {mine} here and {theirs}")
    return found


def config_differences(own: ReformerConfig, saved: ReformerConfig, prefix: str = "") -> list[str]:
    """Differences between two configurations, in words; `memory_budget` is not compared.

    Examples
    --------
    >>> config_differences(ReformerConfig(num_hashes=4), ReformerConfig(num_hashes=2))
    ['num_hashes is 4 here and 2']
    """
    mine, theirs = vars(own), vars(saved)
    # not compared: a number of buckets that the first step determines; who wrote the file; unknown
    # keys
    same = {"memory_budget", "architectures", "extra"}
    same |= {"num_buckets"} if own.num_buckets is None else set()
    return [
        f"{prefix}{name} is {value} here and {theirs[name]}"
        for name, value in mine.items()
        if name not in same and value != theirs[name]
    ]


def _check_weights(weights: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]) -> None:
    for name, array in own.items():
        if name not in weights:
            raise ValueError(f"resume: the parameter {name!r} is not in the checkpoint")
        if weights[name].shape != array.shape or weights[name].dtype != array.dtype:
            raise ValueError(
                f"resume: the parameter {name!r} is {array.dtype} {array.shape} here and "
                f"{weights[name].dtype} {weights[name].shape} in the checkpoint"
            )


# ---- progress ----


def show_progress(trainer: Trainer, stream: TextIO | None = None) -> Iterator[StepReport]:
    """Yield a trainer's reports, and show progress: a tqdm bar, or a line every five seconds.

    The bar needs tqdm (the extra ``cli``) and a terminal.

    Examples
    --------
    >>> report = StepReport(7, 2.0, 2.885, 1e-3, 0.5, 50_000.0, 300_000_000, held_out=3.0)
    >>> describe(report)
    '2.885 bits/byte, 50,000 tokens/s, peak 300 MB, held out 3.000'
    """
    stream = sys.stderr if stream is None else stream
    bar = _progress_bar(trainer, stream)
    report: StepReport | None = None
    shown = time.monotonic()

    def show_line(report: StepReport) -> None:
        total = "" if trainer.steps is None else f"/{trainer.steps}"
        print(f"step {report.step}{total}: {describe(report)}", file=stream, flush=True)

    try:
        for report in trainer:
            if bar is not None:
                bar.total = trainer.steps
                bar.set_postfix_str(describe(report), refresh=False)
                bar.update()
            elif time.monotonic() - shown >= 5.0:
                show_line(report)
                shown = time.monotonic()
            yield report
    finally:
        if bar is not None:
            bar.close()
        elif report is not None:
            show_line(report)


def describe(report: StepReport) -> str:
    """Summarise a step in one line."""
    skipped = report.targets == 0
    words = ["skipped: no label counts" if skipped else f"{report.bits_per_byte:.3f} bits/byte"]
    words.append(f"{report.tokens_per_second:,.0f} tokens/s")
    if report.peak_memory is not None:
        words.append(f"peak {report.peak_memory / 1e6:,.0f} MB")
    if report.held_out is not None:
        words.append(f"held out {report.held_out:.3f}")
    return ", ".join(words)


def _progress_bar(trainer: Trainer, stream: TextIO) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    if not stream.isatty():
        return None
    # recorders and containers may report a terminal of 0 rows, for which tqdm draws nothing
    size = {} if _has_size(stream) else {"ncols": 100, "nrows": 20}
    return tqdm(total=trainer.steps, initial=trainer.step, unit="step", file=stream, **size)


def _has_size(stream: TextIO) -> bool:
    try:
        return all(os.get_terminal_size(stream.fileno()))
    except (AttributeError, OSError, ValueError):
        return False
