"""Training: steps, held-out evaluation, and checkpoints that continue bit for bit.

Everything random in step n is a function of (seed, n), so the state of a run is its parameters, the
moments of its optimiser and the number n.
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

from . import ops
from .checkpoint import read_safetensors, write_atomically, write_safetensors
from .checks import NamedAttributes, integer, names_keywords, positive
from .config import ReformerConfig
from .data import texts_of
from .folder import check_writable, finish_checkpoint, replace_files
from .inputs import IGNORE
from .log import TrainingLog
from .optim import AdamW, NamedSchedule, Optimizer, Schedule, check_finite, clip_gradients
from .runtime import underflow_to_zero

__all__ = ["Evaluation", "StepReport", "Trainer", "evaluate", "peak_memory"]

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer_state.json"
CONFIG_FILE = "config.json"


class Data(Protocol):
    """What a trainer asks for: the token ids (b, t) of each micro-batch, which count from 0; or
    the arguments of ``loss_and_gradients`` by name."""

    def batch(self, step: int) -> np.ndarray | Mapping[str, Any]: ...


@dataclass(frozen=True)
class StepReport:
    """What one training step was like.

    Attributes
    ----------
    step : int
        Steps taken so far, this one included.
    loss : float
        Mean cross-entropy of the step's batch in nats a token, before the step: over all labels
        that count, whichever micro-batch they are in. NaN where none does.
    bits_per_byte : float
        The same in bits for each byte of text.
    learning_rate, gradient_norm : float
        Step size used, and the norm of the gradient before it was clipped.
    tokens_per_second : float
        Tokens of the batch, padding included, over the time of the whole step; in distributed
        training those of this process.
    peak_memory : int or None
        Most bytes that the process has had resident; None where the system does not tell.
    held_out : float or None
        Bits per byte of the held-out text after this step, if it was evaluated.
    targets : int or None
        How many targets counted: labels, the rows of a classifier, or the starts or ends of
        answers, whichever are fewer. 0: the step was skipped.
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
    """How well a model predicts a text: nats a token, bits a byte, and the tokens predicted."""

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
    """Mean loss of a language model over texts, read in windows.

    Parameters
    ----------
    model : ReformerModelWithLMHead
        Anything with ``loss(input_ids, labels=, rng=)``.
    tokens : ndarray (n,), or a list of them
        Token ids of each text. A window never reaches from one text into the next; its first token
        is given, the others are predicted, and each of these counts the same.
    length : int
        Tokens of a window, >= 2; the last window may be shorter.
    stride : int, optional
        Below `length`: windows begin that many tokens apart, and after the first the last `stride`
        of each are predicted, with at least ``length - stride`` before them. None: windows follow
        each other.
    bytes_per_token : float
        Bytes of text that a token stands for.
    seed : int
        Of the LSH rotations, so that an evaluation can be repeated exactly.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        Names the argument: no text of two tokens, or windows of fewer than two.
    """
    texts = texts_of("tokens", tokens)
    bytes_per_token = positive("bytes_per_token", bytes_per_token)
    length = integer("length", length)
    longest = max(map(len, texts))
    if length < 2 or longest < 2:
        raise ValueError(
            f"tokens, length: expected at least 2, got {longest} tokens in windows of {length}"
        )
    if stride is not None and not 1 <= integer("stride", stride) < length:
        raise ValueError(f"stride: expected a number in [1, {length}), got {stride}")
    total, count = 0.0, 0
    for text in texts:
        for ids, labels, new in _windows(text, length, stride):
            total += model.loss(ids, labels=labels, rng=seed) * new
            count += new
    return Evaluation(total / count, total / count / math.log(2) / bytes_per_token, count)


def _windows(
    text: np.ndarray, length: int, stride: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """The windows (1, n) of a text, their labels, and how many of these count."""
    end = 0
    for start in range(0, len(text) - 1, stride or length):
        ids = np.asarray(text[start : start + length], np.int64)[None]
        # with a stride, what an earlier window has predicted does not count again
        done = end - start if stride is not None and start > 0 else 1
        labels, end = ids.copy(), start + ids.shape[1]
        labels[:, :done] = IGNORE
        if ids.shape[1] > done:
            yield ids, labels, ids.shape[1] - done


def peak_memory() -> int | None:
    """Most bytes that this process has had resident so far; None where the system does not tell.

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
    """Trains a language model: an iterator that takes a step and reports on it.

    Parameters
    ----------
    model : ReformerModelWithLMHead
        Anything with ``parameters``, ``loss_and_gradients(input_ids, labels=, rng=)`` and
        ``save_pretrained(folder)``: every model here. Of one without ``count_targets``, labels that
        are not -100 are counted; where they are the tokens themselves, a causal language model's,
        without the first of each row.
    data : Windows or Sequences
        Anything with ``batch(step)`` that gives token ids (b, t); ``describe()``, ``length`` and
        ``bytes_per_token`` are used where they exist. For other models than a causal language
        model, a dictionary: ``{"input_ids": ids, "labels": labels}``, say, and masks.
    optimizer : AdamW or Adafactor, optional
        ``AdamW(model.parameters)`` by default. Parameters that it does not hold stay as they are.
    steps : int, optional
        Stop after this many steps, those before a resume included; None goes on for ever.
    schedule : callable, optional
        From the number of steps taken to a factor on the optimiser's ``learning_rate``: see
        ``schedules``.
    accumulate : int
        Micro-batches that make one step: its loss and gradient are those of one batch of all their
        rows, in which every target counts once.
    max_grad_norm : float
        Gradients are clipped to this global norm; ``inf`` does not clip.
    seed : int
        Of dropout and of the LSH rotations, keyed by step.
    held_out : ndarray (n,) or a list of them, optional
        Texts to evaluate on every `evaluate_every` steps (and after the last), each on its own, in
        windows of `data.length`.
    held_out_bytes_per_token : float, optional
        Bytes of text that one of their tokens stands for; by default ``data.bytes_per_token``.
    evaluate_every : int
        0 never evaluates.
    folder : path, optional
        Where `save` writes every `save_every` steps, after the last step and on interruption.
    save_every : int
        0 saves after the last step and on interruption alone.
    log : path, optional
        Gets a line of JSON for each step: the fields of `StepReport`.

    Raises
    ------
    TypeError, ValueError
        Name the argument and say what was expected.
    ImportError
        There is a folder, and the safetensors library is not installed.
    OSError
        The folder or the log cannot be written, or the disk has no room for a checkpoint.

    Notes
    -----
    While a loop over a trainer runs in the main thread, Ctrl-C and SIGTERM let the step finish and
    save, and then end the loop with ``KeyboardInterrupt`` or ``SystemExit(143)``. A second Ctrl-C
    does not wait. Where the model has ``agree``, as `reformer_c.distributed.DataParallel` has, a
    signal to one process ends the loops of all after the same step, and none ends before that of
    process 0 has saved.

    A step in which no target counts is skipped: parameters and the optimiser's state stay as they
    are, ``step`` goes on, and the report says ``targets=0``, with a loss of NaN, a gradient norm
    and a learning rate of 0.

    Any other loss, and a gradient or a parameter, that is NaN or infinite ends the loop with
    ``FloatingPointError``, which names the step and the parameter; what is saved then, and later,
    is the state before that step.

    Examples
    --------
    >>> import reformer_c as rc
    >>> from reformer_c.data import Windows
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
            raise TypeError(f"schedule: expected a function of the step, got {schedule!r}")
        if evaluate_every and held_out is None:
            raise ValueError("held_out: evaluate_every needs tokens to evaluate on")
        if held_out is not None and max(map(len, texts_of("held_out", held_out))) < 2:
            raise ValueError("held_out: expected a text of at least 2 tokens")
        if save_every and folder is None:
            raise ValueError("folder: save_every needs a folder to save to")
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
                raise ValueError("held_out: held_out_bytes_per_token needs tokens to evaluate on")
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
        # who starts processes sends them a signal, and so may the terminal
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
                    self._agree(0)  # a process that leaves may end the one that still saves
                    interruption.leave(stop)

    def _agree(self, number: int) -> int:
        """The largest number of all processes, each of which comes here as often."""
        return self.model.agree(number) if hasattr(self.model, "agree") else number

    def evaluate(self) -> Evaluation:
        """How well the model predicts the held-out tokens now."""
        if self.held_out is None:
            raise ValueError("held_out: the trainer was given no tokens to evaluate on")
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
        """Write the model, the optimiser's state and the step; `resume` goes on from there.

        The folder opens with ``from_pretrained``. It changes as a whole or not at all: everything
        is first written and flushed next to the last checkpoint, and whatever kills the process
        leaves one of the two complete.

        Raises
        ------
        OSError
            The folder cannot be written, or the disk is full: the last checkpoint is still there.
        """
        text = json.dumps(self._state(self.step), indent=2) + "\n"

        def write(stage: Path) -> None:
            self.model.save_pretrained(stage)
            write_safetensors(stage / OPTIMIZER_FILE, self.optimizer.state_dict())
            write_atomically(stage / STATE_FILE, lambda part: part.write_text(text))

        replace_files(Path(folder), write)

    def resume(self, folder: str | os.PathLike, *, allow: Collection[str] = ()) -> list[str]:
        """Go on, bit for bit, from what `save` wrote.

        What the next steps depend on has to be as it was: the data and the seed, `accumulate`,
        `schedule`, `max_grad_norm`, the kind and the arguments of the optimiser, the configuration
        and the shapes of the model. Of a schedule that is not one of ``schedules``, the factors of
        steps taken are compared. `steps`, what is evaluated, saved and logged, and the model's
        `memory_budget` may be others. A model whose ``config.num_buckets`` is None gets the number
        that the saved one has found.

        Parameters
        ----------
        folder : path
        allow : collection of str
            Names of what may differ all the same, as the error has them: "lr", "schedule.steps".

        Returns
        -------
        list of str
            What differs and is allowed, each as ``"name is ... here and ..."``.

        Raises
        ------
        FileNotFoundError
            There is no checkpoint in the folder.
        ValueError
            The checkpoint belongs to another run: names all that differs, with the value that it
            has here and the one that was saved. Nothing has changed then.
        """
        folder = Path(folder)
        finish_checkpoint(folder)
        if not has_checkpoint(folder):
            raise FileNotFoundError(f"folder: there is no {STATE_FILE} in {os.fspath(folder)!r}")
        state = json.loads((folder / STATE_FILE).read_text())
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError(f"resume: {STATE_FILE} in {os.fspath(folder)!r} has no step")
        own = self._state(state["step"])
        if own["optimizer"] != state.get("optimizer"):  # then so are its arguments
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
        """The models with a configuration of their own by name, and the saved configurations."""
        sides = getattr(self.model, "sides", {})  # another's model has none
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) if sides else {}
        saved = {name: ReformerConfig.from_dict(values.get(name, values)) for name in sides}
        return {name: (side, saved[name]) for name, side in sides.items()}

    @property
    def _bytes_per_token(self) -> float:
        return getattr(self.data, "bytes_per_token", 1.0)

    def _state(self, step: int) -> dict[str, Any]:
        """What tells a run that has taken `step` steps from another one."""
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
        """A step, and its line in the log; what fails leaves the last good state in the folder."""
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
        """The first parameter that has a NaN or an infinity in it."""
        for name, array in self.model.parameters.items():
            # one pass in C; a sum that overflowed says nothing yet, so then look at the elements
            if not math.isfinite(ops.sum_of_squares(array)) and not np.isfinite(array).all():
                return name
        return None

    def _take_step(self) -> StepReport:
        begin = time.perf_counter()
        loss, grads, targets, tokens = self._loss_and_gradients()
        try:
            norm, rate = self._update(loss, grads) if targets else (0.0, 0.0)
        except FloatingPointError:  # every process comes here, with the same loss and gradients
            self._save_if_good()
            self._agree(0)
            raise
        self.step += 1
        seconds = time.perf_counter() - begin
        asked = self.evaluate_every and self.step % self.evaluate_every == 0
        if asked or (self.evaluate_every and self.step == self.steps):
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
        """Move the parameters; the gradient's norm and the step size."""
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
        """Loss and gradients of the next step, the targets that they are means over, and tokens."""
        first = self.step * self.accumulate
        batches = [_arguments(self.data.batch(first + i)) for i in range(self.accumulate)]
        tokens = sum(map(_count_tokens, batches))
        counts = [_count_targets(self.model, batch) for batch in batches]
        totals = np.sum(counts, axis=0)
        if not np.all(totals):  # a mean over nothing
            return math.nan, {}, 0, tokens
        shared = {}
        if np.ndim(totals):
            # no weight of a micro-batch suits several means: each is divided by the count that
            # micro-batches have on average instead
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
            # relative to the first one's, so that equal ones are added unchanged
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
        raise TypeError(f"{name}: expected an object with a method {method}, got {kind}")


def _arguments(batch: Any) -> Mapping[str, Any]:
    """Those of `loss_and_gradients`, of what a trainer's data gave."""
    return batch if isinstance(batch, Mapping) else {"input_ids": batch, "labels": batch}


def _count_tokens(batch: Mapping[str, Any]) -> int:
    if batch.get("inputs_embeds") is not None:
        return int(np.prod(np.shape(batch["inputs_embeds"])[:2]))
    return np.size(batch.get("input_ids", ()))


def _count_targets(model: Any, batch: Mapping[str, Any]) -> Any:
    """The number of targets that the loss of a batch averages over; of several means, a tuple."""
    if hasattr(model, "count_targets"):
        return model.count_targets(**batch)
    # of another's model: a causal one's labels are its input, and the first of a row is given
    labels = np.asarray(batch["labels"])
    counts = labels != IGNORE
    ids = np.asarray(batch.get("input_ids"))
    if ids.shape == labels.shape and (ids == labels)[counts].all():
        counts = counts[..., 1:]
    return int(np.count_nonzero(counts))


class _Interruption:
    """Remembers the first Ctrl-C or SIGTERM instead of acting on it; a second one acts at once,
    unless it comes within `echo` seconds."""

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
    """Whether `Trainer.resume` finds a run in the folder."""
    return (folder / STATE_FILE).is_file()


def _describe_schedule(schedule: Schedule | None, step: int) -> Any:
    """Its name and arguments; of any other function, factors of steps that have been taken."""
    if schedule is None:
        return None
    if isinstance(schedule, NamedSchedule):
        return {"kind": schedule.kind, **schedule.arguments}
    steps = {0, step // 2, step - 1} if step else ()
    return {f"factor of step {i}": float(schedule(i)) for i in sorted(steps)}


def _differences(own: Mapping[str, Any], saved: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs from a saved state, in words; older states know less, and none of that."""
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
    """What makes a model other than the saved one, in words, but for the memory it may take.

    Examples
    --------
    >>> config_differences(ReformerConfig(num_hashes=4), ReformerConfig(num_hashes=2))
    ['num_hashes is 4 here and 2']
    """
    mine, theirs = vars(own), vars(saved)
    # the number of buckets is found in the first step; who wrote the file does not matter
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


# ---- how a run is watched ----


def show_progress(trainer: Trainer, stream: TextIO | None = None) -> Iterator[StepReport]:
    """Pass a trainer's reports on, and show them: a tqdm bar, or a line every five seconds.

    The bar needs tqdm (the extra ``cli``) and a terminal to be drawn on.

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
    """One line about a step."""
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
    # recorders and containers may say that their terminal has no rows, and tqdm would believe them
    size = {} if _has_size(stream) else {"ncols": 100, "nrows": 20}
    return tqdm(total=trainer.steps, initial=trainer.step, unit="step", file=stream, **size)


def _has_size(stream: TextIO) -> bool:
    try:
        return all(os.get_terminal_size(stream.fileno()))
    except (AttributeError, OSError, ValueError):
        return False
