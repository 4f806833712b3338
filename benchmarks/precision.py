"""The cost of `matmul_precision` in quality: errors of operations, and of models trained with it.

Operations first: errors of output and gradients in each precision, ||x - x64|| / ||x64||.
Then a small model of bytes, one local and one LSH layer, is trained in each precision from the same
seeds on the same windows, and each model is evaluated on held-out text in all precisions.

    python -m benchmarks.precision FILE --save runs/precision     # nine minutes on one core
    python -m benchmarks.precision --quick                        # seconds

Without FILE, the text is one that is part of Python. Results are saved as they are computed:
the same command resumes an interrupted run.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import reformer_c as rc
from reformer_c.precision import PRECISIONS
from reformer_c.tools.bench import (
    WINDOW,
    describe_machine,
    draw,
    draw_feed_forward,
    print_machine,
    write_json,
)
from reformer_c.tools.demo import bigram_bits_per_byte
from reformer_c.training.evaluation import evaluate
from reformer_c.training.log import read_log
from reformer_c.training.progress import show_progress
from reformer_c.training.state import has_checkpoint

from .small_model import make_model, make_trainer, text_of

MAX_LOSS = 0.01  # target: bits per byte of "medium" above "highest"
HELD_OUT = 16  # windows
LOG = "log.jsonl"
HEAD = "".join(f"{precision:>10}" for precision in PRECISIONS)


@dataclass(frozen=True)
class Operation:
    """A forward and a backward function, and their arguments."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    arrays: dict[str, np.ndarray]  # in the order of the gradients
    dout: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)

    def compute(self, dtype, precision):
        """Output and gradients by name."""
        arrays = {name: array.astype(dtype) for name, array in self.arrays.items()}
        out, saved = self.forward(**arrays, **self.options, matmul_precision=precision)
        gradients = self.backward(self.dout.astype(dtype), saved)
        names = [f"d{name}" for name in arrays]
        return {"output": out} | dict(zip(names, gradients, strict=True))


def operations(t):
    """The operations by name, each on `t` rows or tokens."""
    rng = np.random.default_rng(0)
    x, w1, b1, w2, b2 = draw_feed_forward(t, 256, 512)
    h, dx = rng.standard_normal((2, *x.shape), np.float32)
    qk, v, dout = draw(t)
    k = rng.standard_normal(v.shape, np.float32)
    # fixed, because hashing in float64 could give others
    buckets = rc.lsh_attention_forward(qk, v, rng=0, **WINDOW)[1].buckets
    feed_forward = {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2}
    return {
        "linear": Operation(
            rc.linear_forward, rc.linear_backward, {"x": x, "weight": w1, "bias": b1},
            rng.standard_normal((t, 512), np.float32),
        ),
        **{
            f"feed_forward, {activation}": Operation(
                rc.feed_forward_forward, rc.feed_forward_backward, feed_forward, dx,
                {"activation": activation},
            )
            for activation in ("relu", "gelu")
        },
        "cross_entropy_head": Operation(
            rc.cross_entropy_head_forward, rc.cross_entropy_head_backward,
            {"h": h, "weight": w1, "bias": b1}, np.ones(()),
            {"labels": rng.integers(0, len(w1), t)},
        ),
        "full_attention": Operation(
            rc.full_attention_forward, rc.full_attention_backward,
            {"q": qk, "k": k, "v": v}, dout, {"is_causal": True},
        ),
        "local_attention": Operation(
            rc.local_attention_forward, rc.local_attention_backward,
            {"q": qk, "k": k, "v": v}, dout, WINDOW,
        ),
        "lsh_attention": Operation(
            rc.lsh_attention_forward, rc.lsh_attention_backward,
            {"qk": qk, "v": v}, dout, {"buckets": buckets, **WINDOW},
        ),
    }  # fmt: skip


def measure_errors(operation):
    """Errors of the output and of each gradient, in each precision."""
    exact = operation.compute(np.float64, None)
    errors = {name: {} for name in exact}
    for precision in PRECISIONS:
        for name, x in operation.compute(np.float32, precision).items():
            distance = np.linalg.norm(x - exact[name]) / np.linalg.norm(exact[name])
            errors[name][precision] = float(distance)
    return errors


def train(precision, seed, texts, options, folder):
    """Train a model; returns its speed, and held-out bits per byte evaluated in each precision."""
    tokens, held_out = texts
    folder.mkdir(parents=True, exist_ok=True)
    if not has_checkpoint(folder):  # left by a run that ended before its first checkpoint
        (folder / LOG).unlink(missing_ok=True)
    model = make_model(seed, options, layers=2, matmul_precision=precision)
    trainer = make_trainer(
        model, tokens, seed, options, lr=3e-3, folder=folder, save_every=50, log=folder / LOG
    )
    if has_checkpoint(folder):
        trainer.resume(folder)
    for _ in show_progress(trainer):
        pass
    bits = {}
    for column in PRECISIONS:
        trainer.model.config.matmul_precision = column
        bits[column] = evaluate(trainer.model, held_out, options.length, seed=seed).bits_per_byte
    speeds = [line["tokens_per_second"] for line in read_log(folder / LOG)]
    return {"tokens_per_second": float(np.median(speeds)), "bits_per_byte": bits}


def differences(trained, precision, seeds):
    """Bits per byte above "highest" for each seed, each model evaluated as it was trained."""
    mine, best = (
        [trained[name][str(seed)]["bits_per_byte"][name] for seed in seeds]
        for name in (precision, "highest")
    )
    return np.subtract(mine, best)


def print_errors(name, errors):
    for result, columns in errors.items():
        label = name if result == "output" else ""
        print(f"{label:20}{result:8}", end="")
        print("".join(f"{columns[precision]:10.1e}" for precision in PRECISIONS), flush=True)


def print_row(precision, seed, row):
    bits = "".join(f"{row['bits_per_byte'][column]:10.4f}" for column in PRECISIONS)
    print(f"{precision:9}{seed:6}{row['tokens_per_second']:12,.0f}{bits}", flush=True)


def print_differences(trained, seeds):
    print('\nbits per byte above "highest": mean, and for each seed')
    for precision in PRECISIONS[1:]:
        more = differences(trained, precision, seeds)
        print(f"{precision:9}{np.mean(more):+9.4f} " + "".join(f"{x:+9.4f}" for x in more), end="")
        if precision == "medium":
            reached = "yes" if np.mean(more) <= MAX_LOSS else "NO"
            print(f"   mean at most {MAX_LOSS:+}: {reached}", end="")
        print()


def compare_operations(options, results, save):
    print(f"\n||x - x64|| / ||x64||, {options.rows:,} rows\n{'':28}{HEAD}")
    for name, operation in operations(options.rows).items():
        if name not in results:
            results[name] = measure_errors(operation)
            save()
        print_errors(name, results[name])


def compare_models(texts, options, results, save, folder):
    print(
        f"\nheld-out bits per byte after {options.steps} steps of {options.length:,} bytes; ",
        end="",
    )
    print(f"byte bigrams: {bigram_bits_per_byte(*texts, options.length):.3f}")
    print(f"trained    seed    tokens/s{HEAD}")
    for seed in options.seeds:
        for precision in PRECISIONS:
            done = results.setdefault(precision, {})
            if str(seed) not in done:
                place = folder / f"{precision}-{seed}"
                done[str(seed)] = train(precision, seed, texts, options, place)
                save()
            print_row(precision, seed, done[str(seed)])
    print_differences(results, options.seeds)


def run(texts, options, folder):
    """Compute everything that is not in the folder's results."""
    file = folder / "results.json"
    of = {name: getattr(options, name) for name in ("steps", "length", "width", "text")}
    results = {"of": of, "errors": {}, "trained": {}}
    if file.is_file():
        results = json.loads(file.read_text())
    if results["of"] != of:
        sys.exit(f"--save: {str(folder)!r} has the results of {results['of']}, not of {of}")
    folder.mkdir(parents=True, exist_ok=True)
    save = partial(write_json, file, results)
    compare_operations(options, results["errors"], save)
    compare_models(texts, options, results["trained"], save, folder)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", help="a text; its last tenth is held out")
    add("--steps", type=int, default=300, help="of 8,192 bytes each (300)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a model for each (0 1 2)")
    add("--quick", action="store_true", help="sizes that take seconds, to test that it works")
    add(
        "--save",
        metavar="DIR",
        help="folder for checkpoints and results.json, from which a run resumes",
    )
    options = parser.parse_args()
    options.rows, options.length, options.width = 4096, 8192, 128
    if options.quick:
        options.rows, options.length, options.width = 256, 256, 32
        options.steps, options.seeds = min(options.steps, 5), options.seeds[:1]
    text, options.source, texts = text_of(parser, options, HELD_OUT)
    options.text = zlib.crc32(text)
    return options, texts


def main():
    options, texts = parse()
    print_machine(describe_machine())
    print(f"text       {options.source}")
    if options.save:
        run(texts, options, Path(options.save))
        return
    with TemporaryDirectory() as folder:
        run(texts, options, Path(folder))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes the run")
