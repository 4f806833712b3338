"""A demo that needs nothing but Python: a Reformer is trained on text that comes with Python.

It trains on sequences of 8,192 bytes, compares its LSH attention with full attention, and generates
text. Every number that it prints is computed in the same run.
"""

from __future__ import annotations

import sysconfig
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..checks import names_keywords
from ..models.model import ReformerModelWithLMHead
from ..models.presets import PRESETS, preset_config
from ..text.byte_tokenizer import ByteTokenizer
from ..text.screen import TextStream, show
from ..training.data import Windows
from ..training.evaluation import evaluate
from ..training.optim import AdamW
from ..training.progress import show_progress
from ..training.schedules import Schedule, schedules
from ..training.texts import split_tokens
from ..training.train import StepReport, Trainer
from .bench import describe_machine
from .report import LSHReport, attention_inputs, lsh_report

__all__ = ["DemoResult", "run_demo"]

STEPS = 800
QUICK_SECONDS = 10.0
SECONDS = 110.0
WARMUP = 20
LENGTH = 8192
HELD_OUT = 0.1
WRITTEN_BYTES = 200
PROMPT_BYTES = 256


@dataclass(frozen=True)
class DemoResult:
    """The demo's results: held-out bits per byte, and LSH compared with full attention."""

    steps: int
    seconds: float
    bits_per_byte: float
    bigram_bits_per_byte: float
    report: LSHReport
    written: bytes


@names_keywords
def run_demo(
    *,
    steps: int | None = None,
    seconds: float = SECONDS,
    length: int = LENGTH,
    seed: int = 0,
    quick: bool = False,
    stream: TextIO | None = None,
) -> DemoResult:
    """Train a byte-level Reformer on Python's documentation, examine its attention, generate text.

    Parameters
    ----------
    steps : int, optional
        Training steps of one window each; None takes as many as `seconds` allow, at most 800.
    seconds : float
        Time for training; ignored if `steps` is given.
    length : int
        Bytes per window.
    seed : int
        Seed of all randomness. The same steps, length and seed give the same model.
    quick : bool
        Train a tiny model for at most ten seconds, as a test that everything works.
    stream : text file, optional
        Where to print; standard output by default. Progress goes to standard error.

    Returns
    -------
    DemoResult

    Raises
    ------
    ValueError
        An argument is out of range.
    """
    _check(steps, seconds, length)
    begin = time.perf_counter()
    say = partial(_say, stream)
    text, source = python_text()
    train, held_out = split_tokens(encode(text), HELD_OUT)
    if len(held_out) < length:
        raise ValueError(
            f"length must be at most the {len(held_out)} bytes of the held-out text, got {length}"
        )
    model = ReformerModelWithLMHead(
        preset_config("tiny", length, width=32 if quick else None), rng=seed
    )
    data = Windows(train, length, seed=seed)
    say(f"text      {len(text):,} bytes: {source}; the last tenth is held out")
    say(f"model     {_describe(model)}")
    say(f"machine   {_machine()}")

    if quick and steps is None:
        seconds = min(seconds, QUICK_SECONDS)
    amount = f"{seconds:.0f} seconds, at most {STEPS} steps," if steps is None else f"{steps} steps"
    say(f"\n1. Training: {amount} each on {length:,} consecutive bytes\n")
    last = _train(model, data, steps, seconds, seed)
    # attention within whole buckets is strictly causal; with chunks, where a chunk ends depends on
    # later bytes
    model.config.attention_scope = "bucket"
    bits = evaluate(model, held_out, length, seed=seed).bits_per_byte
    bigrams = bigram_bits_per_byte(train, held_out, length)
    say(f"last step {last.bits_per_byte:.3f} bits per byte (step {last.step})")
    say(f"held out  {bits:.3f} bits per byte; byte bigrams, same text: {bigrams:.3f}")

    layer = model.config.layer_types.index("lsh")
    say("\n2. LSH attention compared with full attention, on the trained model's queries")
    say(f"   and values in layer {layer + 1}, on {length:,} held-out bytes\n")
    lsh = compare_with_full_attention(model, held_out[:length], layer, seed)
    say(lsh)

    prompt = held_out[:PROMPT_BYTES]
    end = ByteTokenizer().decode(prompt)[-40:]
    say(f"\n3. After {PROMPT_BYTES} held-out bytes, which end in {end!r},")
    say(f"   {WRITTEN_BYTES} bytes of its own:\n")
    written = write(model, prompt, seed, stream)
    spent = time.perf_counter() - begin
    say(f"\n\n{spent:.0f} seconds in all")
    return DemoResult(last.step, spent, bits, bigrams, lsh, written)


def _say(stream: TextIO | None, what: Any) -> None:
    show(str(what), stream)


def _check(steps: int | None, seconds: float, length: int) -> None:
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be a number >= 1 or None, got {steps!r}")
    if not seconds > 0:
        raise ValueError(f"seconds must be a number > 0, got {seconds!r}")
    if length < PROMPT_BYTES + WRITTEN_BYTES:
        minimum = PROMPT_BYTES + WRITTEN_BYTES
        raise ValueError(f"length must be at least {minimum} bytes, got {length!r}")


def python_text() -> tuple[bytes, str]:
    """A text that is part of Python, and its description."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return _library_sources(), "sources of Python's standard library"
    # topics repeat each other's paragraphs: keep each once, so that held-out text is really new
    paragraphs: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].strip().split("\n\n"):
            paragraphs.setdefault(" ".join(paragraph.split()), paragraph)
    text = "\n\n".join(paragraphs.values())
    return text.encode(), "Python's language reference (pydoc_data.topics), each paragraph once"


def _library_sources(limit: int = 500_000) -> bytes:
    """The first modules of the standard library, in alphabetical order."""
    texts, size = [], 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if size < limit:
            texts.append(file.read_bytes())
            size += len(texts[-1])
    if size < limit:
        raise FileNotFoundError("this Python has neither pydoc_data nor the library's sources")
    return b"\n".join(texts)[:limit]


def encode(text: bytes) -> np.ndarray:
    """Encode a text with `ByteTokenizer`."""
    return ByteTokenizer().encode(text).astype(np.uint16)


def _train(model: Any, data: Windows, steps: int | None, seconds: float, seed: int) -> StepReport:
    """Train for `steps` steps, or about `seconds` seconds; returns the last report."""
    begin = time.perf_counter()
    trainer = Trainer(
        model,
        data,
        AdamW(model.parameters, lr=PRESETS["tiny"].lr),
        steps=STEPS if steps is None else steps,
        # the estimated number of steps changes with the machine's measured speed
        schedule=lambda step: _schedule(trainer.steps or STEPS)(step),
        seed=seed,
    )
    for report in show_progress(trainer, seconds=seconds if steps is None else None):
        if steps is None:
            share = (time.perf_counter() - begin) / seconds
            trainer.steps = min(STEPS, max(report.step, int(report.step / share)))
    return report


def _schedule(steps: int) -> Schedule:
    schedule: Schedule = schedules.cosine(steps, warmup=min(WARMUP, steps // 5))
    return schedule


def bigram_bits_per_byte(train: np.ndarray, held_out: np.ndarray, length: int) -> float:
    """Bits per byte of a bigram model: byte-pair counts plus 0.1.

    It predicts the same bytes as `evaluate`: all but the first of each window.

    Examples
    --------
    >>> text = np.tile(np.arange(4), 1000)
    >>> bigram_bits_per_byte(text, text[:100], length=50) < 0.1
    True
    """
    size = 1 + int(max(train.max(), held_out.max(), 257))
    counts = np.full((size, size), 0.1)
    np.add.at(counts, (train[:-1], train[1:]), 1.0)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    predicted = np.arange(1, len(held_out)) % length != 0
    return float(bits[held_out[:-1], held_out[1:]][predicted].mean())


def compare_with_full_attention(model: Any, tokens: np.ndarray, layer: int, seed: int) -> LSHReport:
    """Compare LSH with full attention, on a model's queries and values in one layer."""
    qk, v = attention_inputs(model, tokens[None].astype(np.int64), layer, rng=seed)
    return lsh_report(
        qk,
        v,
        num_hashes=(1, 2, 4, 8),
        num_buckets=model.config.num_buckets,
        chunk_length=model.config.lsh_attn_chunk_length,
        is_causal=True,
        allow_duplicate_attention=False,
        rng=seed,
    )


def write(model: Any, prompt: np.ndarray, seed: int, stream: TextIO | None) -> bytes:
    """Let a model continue a prompt, and print the text as it is generated; returns its bytes."""
    written = ByteStream(stream)
    model.generate(
        prompt[None].astype(np.int64),
        max_new_tokens=WRITTEN_BYTES,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=0.9,
        eos_token_id=None,
        rng=seed,
        streamer=written,
    )
    written.end()
    return written.bytes


class ByteStream(TextStream):
    """A `TextStream` of bytes, which also stores them.

    Examples
    --------
    >>> import io
    >>> screen = io.StringIO()
    >>> stream = ByteStream(screen)
    >>> for token in ByteTokenizer().encode("na\u00efve"):
    ...     stream(np.array([token]))
    >>> stream.end()
    >>> screen.getvalue() == "na\u00efve"
    True
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.bytes = b""
        super().__init__(ByteTokenizer(), stream)

    def __call__(self, tokens: np.ndarray) -> None:
        self.bytes += ByteTokenizer().decode_bytes(tokens[:1])
        super().__call__(tokens)


def _describe(model: Any) -> str:
    config = model.config
    count = sum(array.size for array in model.parameters.values())
    layers = ", ".join(
        f"{kind} of {getattr(config, f'{kind}_attn_chunk_length')}" for kind in config.layer_types
    )
    return (
        f"{len(config.layer_types)} reversible layers (chunks: {layers}), width "
        f"{config.hidden_size}, {config.num_attention_heads} heads, {count:,} parameters"
    )


def _machine() -> str:
    machine = describe_machine()
    return f"{machine['processor']}, {machine['using']}, {machine['threads']} threads"
