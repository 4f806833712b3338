"""Masked language modelling (Devlin et al. 2019, section 3.1): data, evaluation and prediction."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..checks import NamedAttributes
from ..models.heads import cross_entropy
from ..models.inputs import IGNORE
from ..models.sampling import softmax
from ..text.byte_tokenizer import ByteTokenizer
from ..text.token_texts import TokenTexts
from .accumulation import arguments_of
from .data import Sequences, Windows
from .examples import Progress, batches_of, no_progress
from .records import Record
from .texts import encode_text, read_texts

__all__ = ["Masked", "MaskedLanguageModel", "mask_tokens"]

# of the tokens, those to predict; of these, those that are masked, and those that are replaced
CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1
# in a text for a `ByteTokenizer`, what stands for one masked byte; its id has no byte
BYTE_MASK, BYTE_MASK_ID = "[MASK]", 1
# tokens that are listed for each mask
CANDIDATES = 5
# logits of a batch in evaluation
LOGITS = 2**22


def mask_tokens(
    ids: np.ndarray, mask_token_id: int, replacements: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose 15% of the tokens to predict, at least one; of these, mask 80% and replace 10%.

    Parameters
    ----------
    ids : ndarray (b, t)
    mask_token_id : int
    replacements : ndarray (n,)
        The ids that replace tokens, with equal probability.
    rng : numpy Generator

    Returns
    -------
    ids, labels : ndarray (b, t)
        Labels are the tokens that were chosen, and -100 elsewhere.

    Examples
    --------
    >>> mask_tokens(np.array([[5, 6, 7, 8]]), 1, np.arange(2, 9), np.random.default_rng(5))
    (array([[5, 6, 7, 1]]), array([[-100, -100, -100,    8]]))
    """
    chosen = rng.random(ids.shape) < CHOSEN
    if not chosen.any():
        chosen.flat[rng.integers(ids.size)] = True
    how = rng.random(ids.shape)
    drawn = rng.choice(replacements, ids.shape)
    masked = np.where(chosen & (how < MASKED), mask_token_id, ids)
    replaced = chosen & (how >= MASKED) & (how < MASKED + REPLACED)
    return np.where(replaced, drawn, masked), np.where(chosen, ids, IGNORE)


@dataclass(frozen=True)
class MaskedLanguageModel:
    """A task: texts in which some tokens are masked.

    Parameters
    ----------
    tokenizer : Tokenizer
        A `ByteTokenizer`, whose id 1 is the mask, or one with a ``mask_token``.
    length : int
        Tokens of a window in evaluation, and at most of a text in prediction.
    text_column : str
        Column of the texts to predict.

    Raises
    ------
    ValueError
        The tokenizer has no mask token.
    """

    tokenizer: Any
    length: int
    text_column: str = "text"
    # what `read` returns, in the plural
    unit: ClassVar[str] = "texts"

    def __post_init__(self) -> None:
        if self.mask_token_id is None:
            raise ValueError(f"tokenizer must have a mask_token, got {self.tokenizer!r}")

    @property
    def mask_token(self) -> str:
        return BYTE_MASK if self._bytes else self.tokenizer.mask_token

    @property
    def mask_token_id(self) -> int:
        return BYTE_MASK_ID if self._bytes else self.tokenizer.mask_token_id

    @property
    def _bytes(self) -> bool:
        return isinstance(self.tokenizer, ByteTokenizer)

    @cached_property
    def replacements(self) -> np.ndarray:
        """The ids (n,) of tokens that are not special."""
        special = {*getattr(self.tokenizer, "all_special_ids", ()), self.mask_token_id}
        special.add(self.tokenizer.pad_token_id)
        return np.array([i for i in TokenTexts(self.tokenizer).known if i not in special])

    def read(self, files: Sequence[str]) -> list[np.ndarray]:
        """The token ids (n,) of each text file."""
        texts = read_texts(files, utf8=not self._bytes)
        return [encode_text(text, self.tokenizer) for text in texts]

    def evaluate(
        self,
        model: Any,
        texts: Sequence[np.ndarray],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> dict[str, float]:
        """The accuracy, loss and perplexity of masked tokens, in windows that do not overlap.

        The same seed masks the same tokens of a window, at least one, whatever the model and the
        other texts.
        """
        windows = [
            np.asarray(text[start : start + self.length], np.int64)
            for text in texts
            for start in range(0, len(text), self.length)
        ]
        loss, right, count = 0.0, 0, 0
        tokens = max(1, LOGITS // model.config.vocab_size)
        for _, batch in batches_of(windows, tokens, progress=progress):
            rows = [self._masked(ids[None], seed) for ids in batch]
            masked, labels = (np.concatenate(side) for side in zip(*rows, strict=True))
            places = labels != IGNORE
            logits = model(masked, rng=seed).logits[places]
            new = len(logits)
            loss += cross_entropy(logits, labels[places])[0] * new
            right += int(np.count_nonzero(logits.argmax(axis=-1) == labels[places]))
            count += new
        loss /= count
        # exp of a huge loss overflows
        return {"accuracy": right / count, "loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def _masked(self, ids: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, zlib.crc32(ids.tobytes())))
        return mask_tokens(ids, self.mask_token_id, self.replacements, rng)

    def encode(self, record: Record) -> np.ndarray:
        """The token ids (t,) of a record's text, which has at least one mask."""
        text = record.text(self.text_column)
        if self._bytes:
            parts = [self.tokenizer.encode(part) for part in text.split(BYTE_MASK)]
            ids = np.concatenate([np.append(part, BYTE_MASK_ID) for part in parts])[:-1]
        else:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        where = f"{record.where}: {self.text_column}"
        if self.mask_token_id not in ids:
            raise ValueError(f"{where} must contain {self.mask_token}, got {text!r}")
        if len(ids) > self.length:
            raise ValueError(f"{where} must have at most {self.length} tokens, got {len(ids)}")
        return ids

    def predict(
        self, model: Any, records: Sequence[Record], *, seed: int = 0
    ) -> list[dict[str, Any]]:
        """For each record: "prediction", its text with the likeliest token in place of each mask;
        and "masks", the likeliest tokens of each, with their probabilities."""
        found = []
        texts = TokenTexts(self.tokenizer).texts
        for ids in [self.encode(record) for record in records]:
            places = np.flatnonzero(ids == self.mask_token_id)
            logits = model(ids[None], rng=seed).logits[0, places].astype(np.float64)
            logits = logits[:, self.replacements]
            p = softmax(logits)
            best = np.argsort(-p, axis=1, kind="stable")[:, :CANDIDATES]
            filled = ids.copy()
            filled[places] = self.replacements[best[:, 0]]
            masks = [
                [{"token": texts[self.replacements[i]], "score": round(float(row[i]), 6)}
                 for i in order]
                for order, row in zip(best, p, strict=True)
            ]  # fmt: skip
            found.append({"prediction": self.tokenizer.decode(filled), "masks": masks})
        return found


class Masked(NamedAttributes):
    """Batches of a text with masked tokens, as a function of (seed, step) alone.

    Parameters
    ----------
    data : Windows or Sequences
    task : MaskedLanguageModel

    Examples
    --------
    >>> task = MaskedLanguageModel(ByteTokenizer(), length=8)
    >>> data = Masked(Windows(np.arange(20) + 97, length=8, seed=3), task)
    >>> batch = data.batch(0)
    >>> list(batch), batch["labels"].shape
    (['input_ids', 'labels'], (1, 8))
    """

    data: Windows | Sequences
    task: MaskedLanguageModel
    length: int
    offset: int
    tokens: list[np.ndarray]
    # losses per byte are those of models that predict every token
    bytes_per_token = None

    def __init__(self, data: Windows | Sequences, task: MaskedLanguageModel) -> None:
        self.data, self.task = data, task
        self.length, self.offset, self.tokens = data.length, data.offset, data.tokens

    def __repr__(self) -> str:
        return f"Masked({self.data!r})"

    def describe(self) -> dict[str, Any]:
        """What identifies the stream of batches, which must be the same when a run is resumed."""
        return {"masks": self.task.mask_token_id, **self.data.describe()}

    def batch(self, step: int) -> Mapping[str, Any]:
        """The arguments of ``loss_and_gradients`` for one step; steps count from 0."""
        arguments = dict(arguments_of(self.data.batch(step)))
        # five words of entropy: the streams that choose rows and positions have fewer
        rng = np.random.default_rng((self.data.seed, step, 0, 0, 1))
        masked, labels = mask_tokens(
            arguments["input_ids"], self.task.mask_token_id, self.task.replacements, rng
        )
        return arguments | {"input_ids": masked, "labels": labels}
