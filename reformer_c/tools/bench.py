"""Speed of the operations as a share of this machine's peak.

The peak of fused multiply-adds is measured in the same run: on a machine that is shared or changes
its clock, absolute times mean little.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .. import _core, ops
from ..files.checkpoint import write_atomically
from ..models.config import ReformerConfig
from ..models.model import ReformerModel, ReformerModelWithLMHead
from ..models.presets import DROPOUTS, preset_config
from ..precision import PRECISIONS, matmul_precision
from ..runtime import get_num_threads, num_threads, reuse_memory, show_config
from ..training.optim import Adafactor

__all__ = ["Measurement", "measure", "run_bench"]

HEADS, DEPTH, CHUNK, VOCABULARY = 8, 64, 64, 320
ROUNDS = 4  # of the rows that compare the ways of counting keys of several rounds
WRITTEN, KEPT = 256, 64  # tokens that are decoded, and those that a bounded cache keeps
# rows of the training step with a field of the configuration that is off by default
STEPS: dict[str, dict[str, Any]] = {
    "  one residual stream": {"reversible": False},
    "  keys and values of one head": {"num_key_value_heads": 1},
    "  local layers share queries": {"local_shared_qk": True},
    "  gated feed-forward": {"feed_forward_gated": True},
    "  shared word vectors": {"shared_embeddings": True},
    "  label smoothing": {"label_smoothing": 0.1},
    "  sinusoidal positions": {"position_embedding_type": "sinusoidal"},
    "  rotary positions": {"position_embedding_type": "rotary"},
    "  no positions": {"position_embedding_type": "none"},
}
WINDOW: dict[str, Any] = {"chunk_length": CHUNK, "is_causal": True}
PEAK_SECONDS, TURN_SECONDS = 0.02, 0.05
EXPLANATION = f"""
float32, {HEADS} heads of {DEPTH}, chunks of {CHUNK}, causal, one round unless another number is
given; best of {{repeats}} turns. Operations are those of the dense windows (full attention: of the
visible half); a backward pass counts as 2.5 forward passes in attention and 2 in linear layers.
Hashing, sorting, softmax and recomputation in the backward pass are included in the time but not
in the count. Forward results are written into an existing array (out=), those of a backward pass
into reused memory. The training step is that of two layers, with Adafactor. Decoding is that of
{WRITTEN} tokens after one; the bounded cache keeps {KEPT}. An indented row is a variant of the one
above it. On the right: speed-up with matmul_precision="high" and "medium" (operands rounded to
bfloat16), on the instruction set named.
"""


@dataclass(frozen=True)
class Case:
    """A call to time, and its number of arithmetic operations."""

    name: str
    tokens: int
    operations: float
    call: Callable[..., Any]  # takes `workers`
    threads: int
    dtype: Any = np.float32  # of the peak
    matmul_precision: str = "highest"


@dataclass(frozen=True)
class Measurement:
    """The fastest of several runs of a case.

    Attributes
    ----------
    name : str
    tokens, threads : int
    milliseconds, tokens_per_second : float
    gigaflops : float
        Operations divided by time, counting the whole dense windows even in causal attention.
    share_of_peak : float
        The same divided by the peak on as many threads.
    matmul_precision : str
        `share_of_peak` refers to the peak of "highest" in every case.
    """

    name: str
    tokens: int
    threads: int
    milliseconds: float
    tokens_per_second: float
    gigaflops: float
    share_of_peak: float
    matmul_precision: str = "highest"


def run_bench(
    *,
    length: int = 16384,
    repeats: int = 7,
    threads: Sequence[int] | None = None,
    json_file: str | os.PathLike[str] | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Time the operations, print a table, and return everything as a dictionary.

    Parameters
    ----------
    length : int
        Tokens of all cases except full attention.
    repeats : int
        Rounds, each of which runs every case in turn; the fastest run counts.
    threads : sequence of int, optional
        Numbers of threads; one and all by default.
    json_file : path, optional
        File to write the result to.
    stream : text file, optional
        Where to print; standard output by default.

    Returns
    -------
    dict
        ``machine``, ``peak`` (GFLOP/s by number of threads) and ``measurements``.

    Raises
    ------
    ValueError
        An argument is invalid.
    """
    for name, number in (("length", length), ("repeats", repeats)):
        if number < 1:
            raise ValueError(f"{name} must be a number >= 1, got {number!r}")
    check_json_file(json_file)
    threads = sorted({1, get_num_threads()}) if threads is None else list(threads)
    machine = describe_machine()
    print_machine(machine, stream)
    print(EXPLANATION.format(repeats=repeats), file=stream)
    peaks, rows = {}, []
    for count in threads:
        peaks[count], measured = measure(list(cases(length, count)), repeats)
        rows += measured
        words = f"{count} thread{'s' * (count > 1)}, {_core.isa()}"
        print(f"{words}: peak {peaks[count]:.1f} GFLOP/s", file=stream)
        print(precision_table(measured), end="\n\n", file=stream, flush=True)
    result = {
        "machine": machine,
        "peak": {str(count): peak for count, peak in peaks.items()},
        "measurements": [asdict(row) for row in rows],
    }
    if json_file is not None:
        write_json(json_file, result)
    return result


def check_json_file(file: str | os.PathLike[str] | None) -> None:
    """Raise before any measurement if the file cannot be written."""
    if file is not None and not os.access(Path(file).resolve().parent, os.W_OK):
        raise OSError(f"json_file: {os.fspath(file)!r} cannot be written")


def write_json(file: str | os.PathLike[str], result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(file, lambda part: part.write_text(text))


def measure(cases: Sequence[Case], repeats: int) -> tuple[float, list[Measurement]]:
    """The highest peak, and the fastest run of each case, measured in turns.

    In a turn, a case runs repeatedly until `TURN_SECONDS` have passed.
    """
    best = [float("inf")] * len(cases)
    peaks = {(case.threads, case.dtype): 0.0 for case in cases}
    for case in cases:
        case.call(workers=case.threads)  # warm up: the first call allocates memory
    for _ in range(repeats):
        for i, case in enumerate(cases):
            kind = case.threads, case.dtype
            peak = ops.fma_peak(PEAK_SECONDS, dtype=case.dtype, workers=case.threads)
            peaks[kind] = max(peaks[kind], peak)
            best[i] = min(best[i], _fastest(case))
    return max(peaks.values()), [
        Measurement(
            name=case.name,
            tokens=case.tokens,
            threads=case.threads,
            milliseconds=1e3 * seconds,
            tokens_per_second=case.tokens / seconds,
            gigaflops=1e-9 * case.operations / seconds,
            share_of_peak=1e-9 * case.operations / seconds / peaks[case.threads, case.dtype],
            matmul_precision=case.matmul_precision,
        )
        for case, seconds in zip(cases, best, strict=True)
    ]


def _fastest(case: Case) -> float:
    """Seconds of the fastest run in a turn."""
    fastest, end = float("inf"), time.perf_counter() + TURN_SECONDS
    while True:
        begin = time.perf_counter()
        case.call(workers=case.threads)
        now = time.perf_counter()
        fastest = min(fastest, now - begin)
        if now >= end:
            return fastest


def cases(t: int, threads: int) -> Iterator[Case]:
    """The cases for `t` tokens (full attention: at most 4,096), each in every precision."""
    qk, v, dout = draw(t)
    one = v[:, :1]
    c, f = 256, 512
    x, *weights = draw_feed_forward(t, c, f)
    hidden, again = np.empty((t, f), np.float32), reuse_memory()
    head = partial(ops.cross_entropy_head_forward, *draw_head(t, c))
    in_rounds = partial(ops.lsh_attention_forward, qk, v, rng=0, num_hashes=ROUNDS, **WINDOW)
    for name, operations, share, forward, backward in (
        ("LSH attention", window_operations(t), 2.5,
         partial(ops.lsh_attention_forward, qk, v, rng=0, out=np.empty_like(v), **WINDOW),
         partial(ops.lsh_attention_backward, dout)),
        (f"LSH, {ROUNDS} rounds", ROUNDS * window_operations(t), 2.5,
         partial(in_rounds, out=np.empty_like(v)), partial(ops.lsh_attention_backward, dout)),
        ("  keys count once", ROUNDS * window_operations(t), 2.5,
         partial(in_rounds, out=np.empty_like(v), allow_duplicate_attention=False),
         partial(ops.lsh_attention_backward, dout)),
        ("  keys of the query's bucket", ROUNDS * window_operations(t), 2.5,
         partial(in_rounds, out=np.empty_like(v), attend_across_buckets=False),
         partial(ops.lsh_attention_backward, dout)),
        ("local attention", window_operations(t), 2.5,
         partial(ops.local_attention_forward, qk, qk, v, out=np.empty_like(v), **WINDOW),
         partial(ops.local_attention_backward, dout)),
        ("  one head of keys, values", window_operations(t), 2.5,
         partial(ops.local_attention_forward, qk, one, one, out=np.empty_like(v), **WINDOW),
         partial(ops.local_attention_backward, dout)),
        ("  shared queries and keys", window_operations(t), 2.5,
         partial(ops.local_attention_forward, qk, None, v, shared_qk=True, out=np.empty_like(v),
                 **WINDOW),
         partial(ops.local_attention_backward, dout)),
        (f"linear {c}-{f}", feed_forward_operations(t, c, f) / 2, 2.0,
         partial(ops.linear_forward, x, *weights[:2], out=hidden),
         partial(ops.linear_backward, np.ones_like(hidden))),
        (f"feed-forward {c}-{f}", feed_forward_operations(t, c, f), 2.0,
         partial(ops.feed_forward_forward, x, *weights, out=np.empty_like(x)),
         partial(ops.feed_forward_backward, np.ones_like(x))),
        ("  gated", 1.5 * feed_forward_operations(t, c, f), 2.0,
         partial(ops.feed_forward_forward, x, *weights, *weights[:2], out=np.empty_like(x)),
         partial(ops.feed_forward_backward, np.ones_like(x))),
        ("cross-entropy head", head_operations(t, c), 2.0, head,
         partial(ops.cross_entropy_head_backward, 1.0)),
        ("  label smoothing", head_operations(t, c), 2.0, partial(head, label_smoothing=0.1),
         partial(ops.cross_entropy_head_backward, 1.0)),
    ):  # fmt: skip
        calls = {p: partial(forward, matmul_precision=p) for p in PRECISIONS}
        undo = {p: again(partial(backward, call()[1])) for p, call in calls.items()}
        yield from in_each_precision(name, t, operations, threads, calls)
        yield from in_each_precision("  backward", t, share * operations, threads, undo)
    heads, places = np.ascontiguousarray(qk[0].swapaxes(0, 1)), np.arange(t)
    rotate = partial(ops.rotary_positions, heads, places, out=np.empty_like(heads))
    for name, operations, call in (
        ("rotary positions", 3.0 * heads.size, rotate),
        ("axial positions, two axes", x.size, axial_lookup(places, c, 2, np.empty_like(x))),
        ("  three axes", x.size, axial_lookup(places, c, 3, np.empty_like(x))),
    ):
        same: dict[str, Callable[..., Any]] = dict.fromkeys(PRECISIONS, call)
        yield from in_each_precision(name, t, float(operations), threads, same)
    for n in (1024, 4096):
        for name, shared in (("full attention", False), ("  shared queries and keys", True)):
            if n <= t:
                q, values = qk[:, :, :n], v[:, :, :n]
                full = partial(
                    ops.full_attention, q, None if shared else q, values, shared_qk=shared,
                    is_causal=True, out=np.empty_like(values),
                )  # fmt: skip
                products = {p: partial(full, matmul_precision=p) for p in PRECISIONS}
                yield from in_each_precision(name, n, full_operations(n), threads, products)
    yield from model_cases(t, threads)


def model_cases(t: int, threads: int) -> Iterator[Case]:
    """Training steps, and decoding."""
    model, ids = draw_model(t, layers=2)
    body = ReformerModel(model.config, rng=0)
    d_states = np.ones((1, t, 2 * model.config.hidden_size), np.float32)
    offset = np.roll(np.arange(t), -1)
    calls: dict[str, Callable[[], object]] = {"training step": training_step(model, ids)}
    for name, fields in STEPS.items():
        calls[name] = training_step(*draw_model(t, layers=2, **fields))
    calls["  positions from an offset"] = training_step(model, ids, position_ids=offset)
    calls["  a loss of one's own"] = training_step(body, ids, loss=lambda states: (0.0, d_states))
    operations = training_operations(model.config, t)
    for name, call in calls.items():
        yield from in_each_precision(name, t, operations, threads, in_precisions(call))
    writer, prompt = draw_model(WRITTEN + 1, layers=2)
    written = partial(
        writer.generate, prompt[:, :1], max_new_tokens=WRITTEN, eos_token_id=None, rng=0
    )
    operations = WRITTEN * product_operations(writer.config)
    for name, bounded in (
        ("decoding", written),
        ("  bounded cache", partial(written, cache_length=KEPT)),
    ):
        yield from in_each_precision(name, WRITTEN, operations, threads, in_precisions(bounded))


def axial_lookup(places: np.ndarray, c: int, axes: int, out: np.ndarray) -> Callable[..., Any]:
    """A call of `axial_positions` at `places` of a grid with about as many places."""
    side = math.ceil(len(places) ** (1 / axes))
    widths = [c // axes + (a < c % axes) for a in range(axes)]
    tables = [
        np.ones([side if a == b else 1 for b in range(axes)] + [width], np.float32)
        for a, width in enumerate(widths)
    ]
    return partial(ops.axial_positions, places, *tables, out=out)


def in_each_precision(
    name: str, t: int, operations: float, threads: int, calls: Mapping[str, Callable[..., Any]]
) -> Iterator[Case]:
    for precision, call in calls.items():
        yield Case(name, t, operations, call, threads, matmul_precision=precision)


def draw(t: int, dtype: Any = np.float32) -> np.ndarray:
    """Three arrays for attention: (3, 1, h, t, d)."""
    return np.random.default_rng(0).standard_normal((3, 1, HEADS, t, DEPTH), dtype)


def draw_feed_forward(t: int, c: int, f: int) -> tuple[np.ndarray, ...]:
    """x (t, c), w1 (f, c), b1, w2 (c, f), b2."""
    rng = np.random.default_rng(1)
    shapes = (t, c), (f, c), (f,), (c, f), (c,)
    return tuple(rng.standard_normal(shape, np.float32) / 16 for shape in shapes)


def draw_head(t: int, c: int) -> tuple[np.ndarray, ...]:
    """Final states (t, 2 c), weight (v, 2 c), bias and labels of a language model of bytes."""
    rng = np.random.default_rng(2)
    h, weight = (rng.standard_normal((n, 2 * c), np.float32) / 16 for n in (t, VOCABULARY))
    return h, weight, np.zeros(VOCABULARY, np.float32), rng.integers(0, VOCABULARY, t)


def draw_model(
    t: int, layers: int | None = None, **fields: Any
) -> tuple[ReformerModelWithLMHead, np.ndarray]:
    """The `book` model without dropout, and ids (1, t)."""
    dropouts: dict[str, Any] = dict.fromkeys(DROPOUTS, 0.0)
    config = preset_config("book", t, layers=layers, **dropouts | fields)
    ids = np.random.default_rng(0).integers(2, 258, (1, t))
    return ReformerModelWithLMHead(config, rng=0), ids


def training_step(
    model: ReformerModelWithLMHead | ReformerModel,
    ids: np.ndarray,
    memory_budget: float | None = None,
    **arguments: Any,
) -> Callable[[], None]:
    """A call that computes the loss and all gradients and updates with Adafactor.

    `arguments` are those of the model's loss; by default the labels are the ids.
    """
    optimizer = Adafactor(model.parameters)
    arguments = arguments if "loss" in arguments else {"labels": ids, **arguments}

    def step() -> None:
        _, gradients = model.loss_and_gradients(
            ids, rng=0, memory_budget=memory_budget, **arguments
        )
        optimizer.step(gradients)

    return step


def in_precisions(call: Callable[[], object]) -> dict[str, Callable[..., None]]:
    """By precision, the call with `workers` threads."""

    def run(precision: str, workers: int) -> None:
        with num_threads(workers), matmul_precision(precision):
            call()

    return {p: partial(run, p) for p in PRECISIONS}


def window_operations(t: int) -> float:
    """Operations of a round of LSH attention, or of local attention."""
    return 4.0 * t * HEADS * (2 * CHUNK) * DEPTH


def full_operations(t: int) -> float:
    """Operations of full causal attention, counting its visible half."""
    return 2.0 * HEADS * DEPTH * t * (t + 1)


def feed_forward_operations(t: int, c: int, f: int) -> float:
    return 4.0 * t * c * f


def head_operations(t: int, c: int) -> float:
    return 2.0 * t * 2 * c * VOCABULARY


def product_operations(config: ReformerConfig) -> float:
    """Operations of a token's products with the weights."""
    c, f, layers = config.hidden_size, config.feed_forward_size, len(config.attn_layers)
    d = config.num_attention_heads * config.attention_head_size
    linears = 6.0 if config.feed_forward_gated else 4.0
    projections = sum(4 - config.shares_qk(kind) for kind in config.attn_layers)
    return 2.0 * projections * c * d + linears * layers * c * f + 4.0 * c * config.vocab_size


def training_operations(config: ReformerConfig, t: int) -> float:
    """Operations of a training step: forward, recomputed forward (reversible layers), backward."""
    d = config.num_attention_heads * config.attention_head_size
    windows = 4.0 * len(config.attn_layers) * 2 * CHUNK * d
    return t * (4 * product_operations(config) + 4.5 * windows)


def table(rows: Sequence[Measurement], product: float | None = None) -> str:
    """The measurements as a table.

    Given `product`, the GFLOP/s of a library's matrix product, each row also has its multiple of
    that, and its time as a multiple of the first row's.
    """
    head = f"  {'':30} {'tokens':>7} {'ms':>9} {'tokens/s':>12} {'GFLOP/s':>9} {'of peak':>8}"
    lines = [head + ("" if product is None else "  product   time")]
    for row in rows:
        line = (
            f"  {row.name:30} {row.tokens:7,} {row.milliseconds:9.3f} "
            f"{row.tokens_per_second:12,.0f} {row.gigaflops:9.1f} {row.share_of_peak:8.1%}"
        )
        if product is not None:
            ratio = row.milliseconds / rows[0].milliseconds
            line += f" {row.gigaflops / product:7.2f}x {ratio:5.2f}x"
        lines.append(line)
    return "\n".join(lines)


def precision_table(rows: Sequence[Measurement]) -> str:
    """The cases in "highest", and the speed-up of the other precisions."""
    highest, *others = (rows[i :: len(PRECISIONS)] for i in range(len(PRECISIONS)))
    lines = table(highest).splitlines()
    lines[0] += "".join(f" {name:>7}" for name in PRECISIONS[1:])
    for i, (first, *rest) in enumerate(zip(highest, *others, strict=True), 1):
        lines[i] += "".join(f" {first.milliseconds / row.milliseconds:6.2f}x" for row in rest)
    return "\n".join(lines)


def describe_machine() -> dict[str, str]:
    """Processor, instruction set, threads and versions, as text."""
    config = show_config(mode="dicts")
    sets, package = config["Instruction sets"], config["Package"]
    return {
        "processor": processor_name(),
        "using": f"{sets['in use']} (built: {', '.join(sets['built'])})",
        "threads": f"{get_num_threads()}",
        "versions": f"reformer_c {package['reformer_c']}, NumPy {package['numpy']}, "
        f"Python {package['python']}, {config['Build']['compiler']}",
    }


def print_machine(machine: dict[str, str], stream: TextIO | None = None) -> None:
    for key, value in machine.items():
        print(f"{key:10} {value}", file=stream)


def processor_name() -> str:
    """The processor's name from /proc/cpuinfo, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
