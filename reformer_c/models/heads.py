"""The heads of a Reformer: language model, classifier, question answering.

A head is stateless. It reads the final states (b, t, 2 c) of a `Pass` and returns the fields of a
model's output, or a loss; with ``differentiate=True`` the loss also stores the gradients of the
head's weights and of the final states in the pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from .. import ops
from ..checks import as_array, number
from ..layers.parameters import StepWeights, Weights
from ..layers.randomness import Dropout
from ..ops.layers import LinearSaved
from ..ops.machine import layer_scratch
from ..precision import in_own_precision
from ..runtime import underflow_to_zero
from .body import WORDS, Pass, dense_shapes
from .config import ReformerConfig
from .inputs import IGNORE, Inputs, check_ids

__all__ = ["Classifier", "Head", "LanguageModel", "QuestionAnswering"]


# the weight of a language model's output layer
OUTPUT = "lm_head.decoder.weight"


class Head:
    """No head: the output is the final states (b, t, 2 c), and there is no loss.

    A subclass implements `_outputs`, `_loss` and `_loss_bytes`, which run in the precision of the
    pass.
    """

    # keyword arguments of the loss: its targets, and its options
    targets: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def check_config(self, config: ReformerConfig) -> None:
        """Raise ValueError if the configuration does not fit the head."""

    def shapes(self, config: ReformerConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the head's weights."""
        return {}

    def check_inputs(self, inputs: Inputs) -> None:
        """Warn about inputs from which the head cannot compute a meaningful result."""

    def check_targets(
        self, config: ReformerConfig, inputs: Inputs, targets: Mapping[str, Any]
    ) -> Any:
        """Check the targets and convert them to the form that `loss` takes."""

    def count(self, config: ReformerConfig, arguments: Mapping[str, Any]) -> int | tuple[int, ...]:
        """The number of targets that the loss of these arguments averages over; if the loss is made
        of several means, a tuple with the number of each."""
        raise TypeError("a model without a head has no loss")

    @in_own_precision
    @underflow_to_zero()
    def outputs(self, run: Pass) -> dict[str, Any]:
        """The head's fields of a ReformerOutput."""
        return self._outputs(run)

    @in_own_precision
    @underflow_to_zero()
    def loss(self, run: Pass, targets: Any, *, differentiate: bool) -> float:
        """The loss for the targets of `check_targets`."""
        return self._loss(run, targets, differentiate)

    @in_own_precision
    def loss_bytes(self, run: Pass) -> int:
        """Peak bytes of `loss` with gradients, not counting the gradients of the streams."""
        return self._loss_bytes(run)

    def _outputs(self, run: Pass) -> dict[str, Any]:
        return {"last_hidden_state": last_hidden_state(run)}

    def _loss(self, run: Pass, targets: Any, differentiate: bool) -> float:
        raise TypeError("a model without a head has no loss")

    def _loss_bytes(self, run: Pass) -> int:
        return blocks_bytes(run, 0)


def last_hidden_state(run: Pass) -> np.ndarray:
    """The final states (b, t, 2 c)."""
    return run.map_final(2 * run.config.hidden_size, lambda h: h)


class LanguageModel(Head):
    """Logits h w' + bias (b, t, v), and their cross-entropy with labels (b, t).

    h are the final states (b, t, 2 c) and w is (v, 2 c); see `reformer_c.cross_entropy_head`. With
    ``config.shared_embeddings``, w is the table of word vectors (v, c), and h is the sum of the two
    halves of the final states. The logits at a token predict the token `shift` positions later: by
    default 1 in a causal model, otherwise 0.
    """

    targets = ("labels",)

    def __init__(self, *, causal: bool, shift: int | None = None) -> None:
        self.causal, self.shift = causal, int(causal) if shift is None else shift

    def check_config(self, config: ReformerConfig) -> None:
        if config.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings must be False: the output layer reads both streams, "
                f"{2 * config.hidden_size} wide, and the word vectors are {config.hidden_size} wide"
            )
        if config.is_decoder != self.causal:
            kind = "a causal" if self.causal else "a masked (bidirectional)"
            raise ValueError(f"is_decoder must be {self.causal} for {kind} language model")
        for kind in config.windows if self.causal else ():
            if config.attention(kind, "num_chunks_after") != 0:
                raise ValueError(f"{kind}_num_chunks_after must be 0 for a causal language model")

    def shapes(self, config: ReformerConfig) -> dict[str, tuple[int, ...]]:
        v = config.vocab_size
        weight = {} if config.shared_embeddings else {OUTPUT: (v, 2 * config.hidden_size)}
        return {**weight, "lm_head.bias": (v,)}

    def check_targets(
        self, config: ReformerConfig, inputs: Inputs, targets: Mapping[str, Any]
    ) -> np.ndarray:
        labels = check_ids("labels", targets["labels"], config.vocab_size, ignore=IGNORE)
        if labels.shape != (inputs.b, inputs.t):
            raise ValueError(f"labels must have shape {(inputs.b, inputs.t)}, got {labels.shape}")
        at_logits = np.full((inputs.b, inputs.n), IGNORE)
        at_logits[:, : inputs.t - self.shift] = labels[:, self.shift :]
        return at_logits

    def count(self, config: ReformerConfig, arguments: Mapping[str, Any]) -> int:
        """Labels that are not ignored, except the first tokens', which are not predicted."""
        labels = np.atleast_1d(as_array("labels", arguments["labels"]))
        return int(np.count_nonzero(labels[..., self.shift :] != IGNORE))

    def _outputs(self, run: Pass) -> dict[str, Any]:
        h = last_hidden_state(run)
        rows = run.config.chunk_size_lm_head or h.shape[1]
        chunks = [
            ops.linear(self._read(run, h[:, i : i + rows]), *self.decoder(run))
            for i in range(0, h.shape[1], rows)
        ]
        return {"last_hidden_state": h, "logits": np.concatenate(chunks, axis=1)}

    @in_own_precision
    def next_logits(self, run: Pass) -> np.ndarray:
        """Logits (b, v) at the last token of each sequence."""
        h, _ = run.final(run.every(run.inputs.t - 1))
        return ops.linear(self._read(run, h), *self.decoder(run))

    def decoder(self, run: Pass) -> tuple[np.ndarray, np.ndarray | None]:
        weights, name = self._matrix(run)
        return weights[name], self._bias(run)

    def _matrix(self, run: Pass) -> tuple[Weights, str]:
        """Where the matrix of the output layer is, and its name."""
        return (run.body, WORDS) if run.config.shared_embeddings else (run.weights, OUTPUT)

    def _read(self, run: Pass, h: np.ndarray) -> np.ndarray:
        """What the output layer multiplies, of the final states (..., 2 c)."""
        if not run.config.shared_embeddings:
            return np.ascontiguousarray(h)
        c = run.config.hidden_size
        total: np.ndarray = h[..., :c] + h[..., c:]
        return total

    def step_logits(self, run: Pass, weights: StepWeights, h: np.ndarray) -> np.ndarray:
        """Logits (n, v) of the final states (n, 2 c) of decoded tokens."""
        return weights.linear(self._read(run, h), *self._matrix(run), self._bias(run))

    def _bias(self, run: Pass) -> np.ndarray | None:
        return run.weights["lm_head.bias"] if run.config.apply_lm_head_bias else None

    def _loss(self, run: Pass, targets: Any, differentiate: bool) -> float:
        """Cross-entropy, a block of rows at a time: never the logits of all tokens at once."""
        labels, (weights, name) = targets.reshape(-1), self._matrix(run)
        weight, bias = self.decoder(run)
        smoothing = run.config.label_smoothing if run.call.training else 0.0
        total, loss = np.count_nonzero(labels != IGNORE), 0.0
        if total == 0:
            return math.nan
        for rows in run.blocks():
            share = np.count_nonzero(labels[rows] != IGNORE) / total
            if share == 0.0:
                continue
            h, normed = run.final(rows)
            mean, saved = ops.cross_entropy_head_forward(
                self._read(run, h), weight, bias, labels[rows], ignore_index=IGNORE,
                label_smoothing=smoothing, chunk_length=run.config.chunk_size_lm_head,
            )  # fmt: skip
            loss += share * float(mean)
            if differentiate:
                dh, dweight, dbias = ops.cross_entropy_head_backward(share, saved)
                weights.add_gradient(name, dweight)
                run.weights.add_gradient("lm_head.bias", dbias)
                if run.config.shared_embeddings:
                    dh = np.concatenate([dh, dh], axis=-1)
                run.final_backward(rows, dh, normed)
                del dh
            del h, normed, saved  # free them before the next block is allocated
        return float(loss)

    def _loss_bytes(self, run: Pass) -> int:
        rows, shared = run.block_rows, run.config.shared_embeddings
        width = run.config.hidden_size * (1 if shared else 2)
        _, scratch = layer_scratch(
            "cross_entropy_head", rows, width, run.config.vocab_size,
            chunk_length=run.config.chunk_size_lm_head, dtype=run.weights.dtype,
        )  # fmt: skip
        # of shared embeddings, the sum of the halves and its gradient
        halves = 2 * rows * width * run.weights.dtype.itemsize * shared
        return blocks_bytes(run, scratch) + halves


class Classifier(Head):
    """Logits tanh(h w1' + b1) w2' + b2 (b, num_labels), for the first final state h (b, 2 c).

    w1 is (c, 2 c) and w2 (num_labels, c). The loss is one of `LOSSES`.
    """

    targets = ("labels",)

    def check_config(self, config: ReformerConfig) -> None:
        if config.is_decoder:
            warnings.warn(
                "is_decoder: the first token of a causal model, whose state is classified, attends "
                "only to itself",
                stacklevel=5,  # the line that creates the model
            )

    def check_inputs(self, inputs: Inputs) -> None:
        if inputs.mask is not None and not (real := inputs.mask[:, 0]).all():
            warnings.warn(
                f"attention_mask: row {np.argmin(real)} begins with padding, which is classified "
                "in place of its first token, as in transformers: pad on the right",
                stacklevel=5,
            )

    def shapes(self, config: ReformerConfig) -> dict[str, tuple[int, ...]]:
        c = config.hidden_size
        dense = dense_shapes("classifier.dense", c, 2 * c)
        return dense | dense_shapes("classifier.out_proj", config.num_labels, c)

    def check_targets(
        self, config: ReformerConfig, inputs: Inputs, targets: Mapping[str, Any]
    ) -> tuple[str, np.ndarray]:
        labels, count, b = as_array("labels", targets["labels"]), config.num_labels, inputs.b
        problem = problem_of(config, labels)
        classes, numbers = (
            f"integers of shape ({b},), the classes",
            f"numbers of shape ({b}, {count})",
        )
        expected = classes if problem == SINGLE else numbers
        if config.problem_type is None and count > 1:
            expected = f"{classes}, or floats of shape ({b}, {count}), for any number of classes"
        got = f"labels must be {expected}, got {labels.dtype} of shape {labels.shape}"
        if labels.dtype.kind not in ("iu" if problem == SINGLE else "biuf"):
            raise TypeError(got)
        width = 1 if problem == SINGLE else count
        if labels.shape != (b, width):
            # shape (b,) is accepted for (b, 1), and a scalar for a single row
            if width > 1 or labels.size != b or labels.ndim > 1:
                raise ValueError(got)
            labels = labels.reshape(b, 1)
        if problem == SINGLE:
            labels = check_ids("labels", labels, count, ignore=IGNORE)[:, 0]
        return problem, labels

    def count(self, config: ReformerConfig, arguments: Mapping[str, Any]) -> int:
        """The number of rows; for classes, without ignored ones."""
        labels = as_array("labels", arguments["labels"])
        if problem_of(config, labels) != SINGLE:
            return len(np.atleast_1d(labels))
        return int(np.count_nonzero(labels != IGNORE))

    def _outputs(self, run: Pass) -> dict[str, Any]:
        return {"logits": self._forward(run)[0]}

    def _forward(self, run: Pass) -> tuple[np.ndarray, tuple[Any, ...]]:
        """The logits, and what the backward pass needs."""
        head, drop = run.weights.below("classifier."), self._dropout(run)
        h, normed = run.final(run.every(0))
        u, dense = dense_forward(drop(h, "input"), head.below("dense."))
        u = np.tanh(u)
        logits, projected = dense_forward(drop(u, "output"), head.below("out_proj."))
        return logits, (normed, dense, u, projected)

    def _dropout(self, run: Pass) -> Dropout:
        p = run.config.classifier_dropout
        p = run.config.hidden_dropout_prob if p is None else p
        return Dropout(p if run.call.training else 0.0, partial(run.key, "classifier"))

    def _loss(self, run: Pass, targets: Any, differentiate: bool) -> float:
        problem, labels = targets
        logits, (normed, dense, u, projected) = self._forward(run)
        loss, dlogits = LOSSES[problem](logits, labels)
        if differentiate:
            head, drop = run.weights.below("classifier."), self._dropout(run)
            du = dense_backward(dlogits, projected, head.below("out_proj."))
            du = drop(du, "output") * (1 - u * u)
            dh = dense_backward(du, dense, head.below("dense."))
            run.final_backward(run.every(0), drop(dh, "input"), normed)
        return loss


class QuestionAnswering(Head):
    """Logits (b, t) of the start of an answer, and of its end: the columns of h w' + b.

    h are the final states (b, t, 2 c) and w is (2, 2 c). The loss is the mean of two
    cross-entropies over the tokens.
    """

    targets = ("start_positions", "end_positions")
    options = ("counts",)

    def check_config(self, config: ReformerConfig) -> None:
        if config.num_labels != 2:
            raise ValueError(f"num_labels must be 2, a start and an end, got {config.num_labels}")

    def shapes(self, config: ReformerConfig) -> dict[str, tuple[int, ...]]:
        return dense_shapes("qa_outputs", 2, 2 * config.hidden_size)

    def check_inputs(self, inputs: Inputs) -> None:
        if inputs.mask is not None and not (real := inputs.mask.any(axis=1)).all():
            warnings.warn(
                f"attention_mask: row {np.argmin(real)} has no token in which an answer could be",
                stacklevel=5,
            )

    def check_targets(
        self, config: ReformerConfig, inputs: Inputs, targets: Mapping[str, Any]
    ) -> tuple[list[np.ndarray], tuple[float, ...]]:
        """The positions, and the counts that the sums over them are divided by."""
        places = self._places(targets, inputs.b, inputs.t)
        if "counts" not in targets:
            return places, count_each(places)
        counts = as_array("counts", targets["counts"])
        if counts.shape != (2,):
            raise ValueError(
                f"counts must be two numbers, of starts and of ends, got shape {counts.shape}"
            )
        return places, tuple(number("counts", n, 0.0) for n in counts.tolist())

    def _places(self, targets: Mapping[str, Any], b: int, t: int) -> list[np.ndarray]:
        """Checked starts and ends (b,); those beyond the text are IGNORE."""
        found = []
        for name in self.targets:
            places = as_array(name, targets[name])
            if places.dtype.kind not in "iu":
                raise TypeError(f"{name} must be integers, got {places.dtype}")
            if places.shape not in ((b,), (b, 1)):
                raise ValueError(f"{name} must have shape {(b,)}, got {places.shape}")
            places = places.reshape(-1).astype(np.int64).clip(0, t)
            found.append(np.where(places == t, IGNORE, places))
        return found

    def count(self, config: ReformerConfig, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        """The numbers of starts and of ends that are in the text."""
        name = "inputs_embeds" if arguments.get("input_ids") is None else "input_ids"
        shape = as_array(name, arguments.get(name)).shape
        if len(shape) < 2:
            raise ValueError(f"{name} must be rows of tokens, got shape {shape}")
        return count_each(self._places(arguments, *shape[:2]))

    def _outputs(self, run: Pass) -> dict[str, Any]:
        start, end = self._logits(run)
        return {"start_logits": start, "end_logits": end}

    def _logits(self, run: Pass) -> list[np.ndarray]:
        head = run.weights.below("qa_outputs.")
        logits = run.map_final(2, lambda h: dense_forward(h, head)[0])
        return [np.ascontiguousarray(logits[..., i]) for i in range(2)]

    def _loss(self, run: Pass, targets: Any, differentiate: bool) -> float:
        (start, dstart), (end, dend) = map(cross_entropy, self._logits(run), *targets)
        if differentiate:
            inputs, head = run.inputs, run.weights.below("qa_outputs.")
            dlogits = np.zeros((inputs.b, inputs.n, 2), dstart.dtype)
            dlogits[:, : inputs.t] = np.stack([dstart, dend], axis=-1) / 2
            dlogits = dlogits.reshape(-1, 2)
            for rows in run.blocks():
                h, normed = run.final(rows)
                _, saved = dense_forward(h, head)
                dh = dense_backward(dlogits[rows], saved, head)
                run.final_backward(rows, dh, normed)
                del h, normed, saved, dh
        return (start + end) / 2

    def _loss_bytes(self, run: Pass) -> int:
        _, scratch = layer_scratch(
            "linear", run.block_rows, 2 * run.config.hidden_size, 2, dtype=run.weights.dtype
        )
        return blocks_bytes(run, scratch)


def dense_forward(x: np.ndarray, weights: Weights) -> tuple[np.ndarray, LinearSaved]:
    """x w' + b, for x (n, ci) and the weights "weight" (co, ci) and "bias" (co,)."""
    return ops.linear_forward(x, weights["weight"], weights["bias"])


def dense_backward(dy: np.ndarray, saved: LinearSaved, weights: Weights) -> np.ndarray:
    """dx (n, ci); the gradients of the weights are accumulated."""
    dx, *gradients = ops.linear_backward(dy, saved)
    weights.add_gradients(("weight", "bias"), gradients)
    return dx


def blocks_bytes(run: Pass, scratch: int) -> int:
    """Peak bytes of a loss that processes the final states in blocks."""
    block = run.block_rows * 2 * run.config.hidden_size * run.weights.dtype.itemsize
    # both streams, their norm and its gradient; then scratch, or gradients of dropout and the norm
    return 3 * block + max(scratch, block * (2 if run.config.hidden_dropout_prob else 1))


# ---- losses of small logits, with their gradients ----


def problem_of(config: ReformerConfig, labels: np.ndarray) -> str:
    """The configuration's problem type, or the one that fits the labels."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return SINGLE if labels.dtype.kind in "iu" else "multi_label_classification"


def count_each(labels: Iterable[np.ndarray]) -> tuple[int, ...]:
    return tuple(int(np.count_nonzero(each != IGNORE)) for each in labels)


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, count: float | None = None
) -> tuple[float, np.ndarray]:
    """Sum over the labels (b,) that are not ignored, divided by their number or by `count`; nan if
    that is 0. Logits (b, k)."""
    z = logits - logits.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    counts = labels != IGNORE
    total = logits.dtype.type(np.count_nonzero(counts) if count is None else count)
    if total == 0:
        return math.nan, np.zeros_like(logits)
    rows, labels = np.flatnonzero(counts), labels[counts]
    dlogits = np.exp(log_p)
    dlogits[rows, labels] -= 1.0
    dlogits[~counts] = 0.0
    return float(-log_p[rows, labels].sum() / total), dlogits / total


def binary_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of log(1 + exp(z)) - z y; logits and labels (b, k)."""
    labels = labels.astype(logits.dtype)
    loss = np.logaddexp(0, logits) - logits * labels
    p = np.exp(-np.logaddexp(0, -logits))
    return float(loss.mean()), (p - labels) / logits.dtype.type(logits.size)


def mean_squared_error(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of (z - y)^2; logits and labels (b, k)."""
    difference = logits - labels.astype(logits.dtype)
    return float((difference**2).mean()), 2 * difference / logits.dtype.type(logits.size)


SINGLE = "single_label_classification"
LOSSES = {
    SINGLE: cross_entropy,
    "multi_label_classification": binary_cross_entropy,
    "regression": mean_squared_error,
}
