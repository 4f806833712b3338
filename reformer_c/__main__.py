"""The command line: ``reformer-c``, or ``python -m reformer_c``."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

USAGE_ERROR, FAILURE = 2, 1

# of presets.py, which help and errors should not wait for
PRESETS = ("tiny", "book", "enwik8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    name = f"reformer-c {options.command}"
    try:
        if options.threads is not None:
            from .runtime import set_num_threads

            set_num_threads(options.threads)
        options.run(options)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _say(name, "interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # who reads our output has gone: leave quietly, and let nothing be flushed into the void
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except MemoryError as error:
        return _say(name, f"error: not enough memory: {error}", FAILURE)
    except (ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
        return _say(name, f"error: {' '.join(str(error).split())}", FAILURE)


def _say(name: str, message: str, code: int) -> int:
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return code


# ---- commands ----


def _demo(options: argparse.Namespace) -> None:
    from .demo import run_demo

    run_demo(
        steps=options.steps,
        seconds=options.seconds,
        length=options.length,
        seed=options.seed,
        quick=options.quick,
    )


def _train(options: argparse.Namespace) -> None:
    from .data import Windows, read_text, split_tokens
    from .optim import AdamW, schedules
    from .presets import PRESETS
    from .tokenizer import ByteTokenizer
    from .train import Trainer, evaluate, show_progress

    folder = Path(options.save) if options.save else None
    _check_folder(folder, options)
    tokens = ByteTokenizer().encode(read_text(options.files)).astype("uint16")
    train, held_out = split_tokens(tokens, options.held_out)
    data = Windows(train, options.length, batch=options.batch, seed=options.seed)
    model = _model_to_train(folder, options)
    rate = PRESETS[options.preset].lr if options.lr is None else options.lr
    warmup = min(100, options.steps // 10) if options.warmup is None else options.warmup
    trainer = Trainer(
        model,
        data,
        AdamW(model.parameters, lr=rate),
        steps=options.steps,
        schedule=schedules.cosine(options.steps, warmup=warmup, floor=0.1),
        accumulate=options.accumulate,
        max_grad_norm=options.clip,
        seed=options.seed,
        folder=folder,
        save_every=options.save_every,
    )
    if options.resume:
        trainer.resume(folder)
    print(f"{model!r}\n{len(train):,} bytes to train on, {len(held_out):,} held out", flush=True)
    try:
        for _ in show_progress(trainer):
            pass
    except (KeyboardInterrupt, SystemExit):
        if folder is not None:
            print(f"saved: {folder}, step {trainer.step}", flush=True)
        raise
    if len(held_out) > 1:
        bits = evaluate(model, held_out, options.length, seed=options.seed).bits_per_byte
        print(f"held out: {bits:.3f} bits per byte")
    if folder is not None:
        print(f"saved: {folder}")


def _check_folder(folder: Path | None, options: argparse.Namespace) -> None:
    from .train import finish_checkpoint, has_checkpoint

    if folder is None:
        for name in ("resume", "save_every"):
            if getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')}: needs --save DIR")
        return
    finish_checkpoint(folder)
    if options.resume and not has_checkpoint(folder):
        raise ValueError(f"--resume: there is no checkpoint in {str(folder)!r}")
    if not options.resume and has_checkpoint(folder):
        raise ValueError(
            f"--save: there is a checkpoint in {str(folder)!r}: add --resume to go on from it, or "
            "choose another folder"
        )


def _model_to_train(folder: Path | None, options: argparse.Namespace) -> Any:
    from .model import ReformerModelWithLMHead
    from .presets import preset_config

    if options.resume:
        return ReformerModelWithLMHead.from_pretrained(folder)
    config = preset_config(
        options.preset,
        options.length,
        layers=options.layers,
        width=options.width,
        num_hashes=options.hashes,
    )
    return ReformerModelWithLMHead(config, rng=options.seed)


def _generate(options: argparse.Namespace) -> None:
    from .demo import ByteStream

    if options.stream and options.beams > 1:
        raise ValueError("--stream: not with --beams, which change to the end")
    tokenizer, model = _open(options.model)
    text = options.prompt
    if text is None:
        text = _prompt_text(options.prompt_file)
    prompt = tokenizer.encode(text)[None]
    longest = model.config.num_positions
    if prompt.shape[1] + options.length > longest:
        raise ValueError(
            f"--length: {prompt.shape[1]} bytes of prompt and {options.length} new ones are more "
            f"than the {longest} that the model reads"
        )
    stream = ByteStream(sys.stdout) if options.stream else None
    if options.stream:
        print(text, end="", flush=True)
    beams = options.beams > 1
    ids = model.generate(
        prompt,
        max_new_tokens=options.length,
        min_new_tokens=min(options.min_length, options.length),
        do_sample=options.temperature > 0 and not beams,
        temperature=options.temperature or 1.0,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        bad_words_ids=[tokenizer.encode(word).tolist() for word in options.without],
        eos_token_id=[int(tokenizer.encode(word)[0]) for word in options.until] or None,
        num_beams=options.beams,
        length_penalty=options.length_penalty,
        num_return_sequences=options.texts,
        rng=options.seed,
        streamer=stream,
    )
    if stream is None:
        for row in ids:
            print(tokenizer.decode(row))
    else:
        stream.end()
        print()


def _prompt_text(file: str | None) -> str:
    """The prompt from a file or, where there is none or it is "-", from standard input."""
    if file is not None and file != "-":
        return Path(file).read_bytes().decode("utf-8", "surrogateescape")
    if file is None and sys.stdin.isatty():
        raise ValueError("--prompt: expected --prompt, --prompt-file or text on standard input")
    return sys.stdin.read()


def _evaluate(options: argparse.Namespace) -> None:
    from .data import read_text
    from .train import evaluate

    tokenizer, model = _open(options.model)
    tokens = tokenizer.encode(read_text(options.files))
    longest = model.config.num_positions
    length = options.length or min(len(tokens), longest)
    if length > longest:
        raise ValueError(f"--length: expected at most {longest}, which the model reads")
    if options.sliding is not None and options.sliding >= length:
        raise ValueError(f"--sliding: expected fewer bytes than a window's {length}")
    begin = time.perf_counter()
    result = evaluate(model, tokens, length, stride=options.sliding, seed=options.seed)
    seconds = time.perf_counter() - begin
    windows = f"windows of {length:,}"
    if options.sliding is not None:
        windows += f", each {options.sliding:,} further"
    print(
        f"{result.bits_per_byte:.4f} bits per byte ({result.tokens:,} bytes predicted in "
        f"{windows}, {seconds:.1f} s)"
    )


def _info(options: argparse.Namespace) -> None:
    _, model = _open(options.model)
    config = model.config
    longest = config.num_positions
    for length in options.lengths:
        if length > longest:
            raise ValueError(f"--lengths: expected at most {longest}, which the model reads")
    groups: dict[str, int] = {}
    for name, array in model.parameters.items():
        group = _group(name)
        groups[group] = groups.get(group, 0) + array.size
    print(repr(model))
    print(f"longest sequence  {longest:,} tokens, vocabulary {config.vocab_size}")
    for group, count in groups.items():
        print(f"{group:40} {count:12,} parameters")
    total = sum(groups.values())
    print(f"{'all':40} {total:12,} parameters, {4 * total / 2**20:,.1f} MB")
    if options.lengths:
        print(
            "\nmeasured, of a text of some length: speed of reading it and of what is written then"
        )
        print(f"{'length':>10} {'read':>16} {'written':>16} {'cache':>10} {'peak memory':>12}")
    for length in options.lengths:
        _measure(model, length)


def _measure(model: Any, length: int) -> None:
    """One line of what a text of this length costs: a forward pass over it, and what follows."""
    import numpy as np

    from .train import peak_memory

    tokens = min(32, model.config.num_positions - length + 1)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, max(1, length - 1)))
    begin = time.perf_counter()
    stream = model.stream(ids, max_new_tokens=tokens, rng=0)
    next(stream)
    read = time.perf_counter()
    written = sum(1 for _ in stream)
    seconds = time.perf_counter() - read
    speeds = [
        f"{count / time_:,.0f} tokens/s" if count else "-"
        for count, time_ in ((ids.shape[1], read - begin), (written, seconds))
    ]
    peak = peak_memory()
    memory = "-" if peak is None else f"{peak / 2**20:,.0f} MB"
    cache = f"{model.cache_bytes(length) / 2**20:.1f} MB"
    print(f"{length:10,} {speeds[0]:>16} {speeds[1]:>16} {cache:>10} {memory:>12}")


def _group(name: str) -> str:
    """The part of the model that a parameter belongs to: a layer, the embeddings, the head."""
    words = name.split(".")
    if "layers" in words:
        return ".".join(words[: words.index("layers") + 2])
    return ".".join(words[:2])


def _bench(options: argparse.Namespace) -> None:
    from .bench import run_bench

    run_bench(length=options.length, repeats=options.repeats, json_file=options.json)


def _open(folder: str) -> tuple[Any, Any]:
    """The tokenizer and the language model of a folder."""
    from .model import ReformerModelWithLMHead
    from .tokenizer import ByteTokenizer
    from .train import finish_checkpoint

    finish_checkpoint(Path(folder))
    model = ReformerModelWithLMHead.from_pretrained(folder)
    if model.config.vocab_size != 258:
        raise ValueError(
            f"DIR: expected a byte-level model (vocab_size 258), got {model.config.vocab_size}"
        )
    return ByteTokenizer(), model


# ---- arguments ----


class _Parser(argparse.ArgumentParser):
    """Errors in one line: the command, the argument, what was expected."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = _Parser(
        prog="reformer-c",
        description="The Reformer on a CPU. Begin with: reformer-c demo",
        epilog="example: reformer-c train book.txt --length 8192 --steps 500 --save model",
    )
    parser.add_argument("--version", action="version", version=f"reformer_c {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = _command(
        commands, "demo", _demo, "train on text that Python carries, and write: two minutes",
        "reformer-c demo --seed 1",
    )  # fmt: skip
    demo.add_argument(
        "--steps", type=_count, metavar="N", help="training steps (default: what the time allows)"
    )
    demo.add_argument(
        "--seconds", type=_positive, metavar="X", default=110.0, help="time for training (110)"
    )
    demo.add_argument(
        "--length", type=_count, metavar="N", default=8192, help="bytes of a sequence (8192)"
    )
    demo.add_argument("--quick", action="store_true", help="a tiny model, to see that all works")

    train = _command(
        commands, "train", _train, "train a byte-level model on text files",
        "reformer-c train book.txt --length 8192 --steps 1000 --save model",
    )  # fmt: skip
    _add_training_arguments(train)

    generate = _command(
        commands, "generate", _generate, "let a trained model continue a text",
        'reformer-c generate model --prompt "It was " --length 200 --stream',
    )  # fmt: skip
    generate.add_argument("model", metavar="DIR", help="folder of a trained model")
    prompt = generate.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", type=_text, metavar="TEXT", help="text to continue")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="file with it (default and -: standard input)"
    )
    generate.add_argument(
        "--length", type=_count, metavar="N", default=200, help="bytes to write (200)"
    )
    generate.add_argument(
        "--temperature", type=_share_or_more, metavar="X", default=0.8,
        help="above 1 bolder, below 1 safer, 0 the likeliest byte (0.8)",
    )  # fmt: skip
    generate.add_argument(
        "--top-p", type=_share, metavar="X", default=0.95, help="leave out the unlikely rest (0.95)"
    )
    _add_choice_arguments(generate)

    evaluate = _command(
        commands, "evaluate", _evaluate, "bits per byte of a model on text files",
        "reformer-c evaluate model held_out.txt",
    )  # fmt: skip
    evaluate.add_argument("model", metavar="DIR", help="folder of a trained model")
    evaluate.add_argument("files", nargs="+", metavar="FILE", help="text file, folder, or -")
    evaluate.add_argument(
        "--length", type=_count, metavar="N", help="bytes of a window (the model's longest)"
    )
    evaluate.add_argument(
        "--sliding", type=_count, metavar="N",
        help="windows overlap: each begins N bytes after the last, and its last N bytes count",
    )  # fmt: skip

    info = _command(
        commands, "info", _info, "what a saved model is made of, and what it costs",
        "reformer-c info model --lengths 1024 8192",
    )  # fmt: skip
    info.add_argument("model", metavar="DIR", help="folder of a trained model")
    info.add_argument(
        "--lengths", type=_count, nargs="+", metavar="N", default=[],
        help="measure reading and writing at these lengths, in tokens/s and memory",
    )  # fmt: skip

    bench = _command(
        commands, "bench", _bench, "time the ops beside the machine's peak",
        "reformer-c bench --json bench.json",
    )  # fmt: skip
    bench.add_argument(
        "--length", type=_count, metavar="N", default=16384, help="tokens of a sequence (16384)"
    )
    bench.add_argument(
        "--repeats", type=_count, metavar="N", default=7, help="runs, the fastest counts (7)"
    )
    bench.add_argument("--json", metavar="FILE", help="write the figures there, too")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], about: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".",
        epilog=f"example: {example}",
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument(
        "--seed", type=_whole, metavar="N", default=0, help="of everything random (0)"
    )
    parser.add_argument("--threads", type=_count, metavar="N", help="threads to use (default: all)")
    return parser


def _add_choice_arguments(generate: argparse.ArgumentParser) -> None:
    add = generate.add_argument
    add("--top-k", type=_whole, metavar="N", default=0, help="draw from the N likeliest (0: all)")
    add("--min-p", type=_share_or_none, metavar="X", default=0.0,
        help="leave out what is less than X times as likely as the likeliest (0)")  # fmt: skip
    add("--repetition-penalty", type=_positive, metavar="X", default=1.0,
        help="above 1: what is in the text becomes less likely (1)")  # fmt: skip
    add("--without", type=_text, nargs="+", metavar="TEXT", default=[], help="not to be written")
    add("--until", type=_byte, nargs="+", metavar="CHARACTER", default=[], help="ends the text")
    add("--min-length", type=_whole, metavar="N", default=0, help="bytes before it may end (0)")
    add("--beams", type=_count, metavar="N", default=1,
        help="beam search with N beams, in place of drawing (1)")  # fmt: skip
    add("--length-penalty", type=_finite, metavar="X", default=1.0,
        help="of beams: above 0 favours long texts (1)")  # fmt: skip
    add("--texts", type=_count, metavar="N", default=1, help="texts to write (1)")
    add("--stream", action="store_true", help="show the bytes as they come")


def _add_training_arguments(train: argparse.ArgumentParser) -> None:
    add = train.add_argument
    add("files", nargs="+", metavar="FILE", help="text file, folder, or - for standard input")
    add("--length", type=_count, metavar="N", default=8192, help="bytes of a sequence (8192)")
    add("--steps", type=_count, metavar="N", default=1000, help="training steps in all (1000)")
    add("--batch", type=_count, metavar="N", default=1, help="sequences of a pass (1)")
    add(
        "--accumulate",
        type=_count,
        metavar="N",
        default=1,
        help="passes whose gradients make a step (1)",
    )
    add("--lr", type=_positive, metavar="X", help="highest learning rate (the preset's)")
    add(
        "--warmup",
        type=_whole,
        metavar="N",
        help="steps until it is reached (a tenth, at most 100)",
    )
    add(
        "--clip",
        type=_positive,
        metavar="X",
        default=1.0,
        help="largest norm of the gradient (1.0)",
    )
    add(
        "--held-out",
        type=_share_below_one,
        metavar="X",
        default=0.1,
        help="share not trained on (0.1)",
    )
    add("--preset", choices=PRESETS, default="tiny", help="size of the model (tiny)")
    add("--layers", type=_count, metavar="N", help="number of layers (the preset's)")
    add("--width", type=_count, metavar="N", help="channels of the model (the preset's)")
    add("--hashes", type=_count, metavar="N", help="rounds of LSH attention (the preset's)")
    add("--save", metavar="DIR", help="folder for the model and all that --resume needs")
    add("--save-every", type=_whole, metavar="N", default=0, help="steps between saves (the end)")
    add("--resume", action="store_true", help="go on from DIR, bit for bit")


def _checked(read: Callable[[str], Any], fits: Callable[[Any], bool], expected: str) -> Callable:
    def convert(text: str) -> Any:
        try:
            value = read(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return convert


_text = _checked(str, lambda text: text != "", "at least one character")
_whole = _checked(int, lambda n: n >= 0, "a whole number >= 0")
_count = _checked(int, lambda n: n >= 1, "a whole number >= 1")
_positive = _checked(float, lambda x: x > 0, "a number > 0")
_share_or_more = _checked(float, lambda x: 0 <= x < math.inf, "a number >= 0")
_finite = _checked(float, math.isfinite, "a finite number")
_share = _checked(float, lambda x: 0 < x <= 1, "a number in (0, 1]")
_share_or_none = _checked(float, lambda x: 0 <= x <= 1, "a number in [0, 1]")
_byte = _checked(str, lambda text: len(text.encode()) == 1, "one ASCII character")
_share_below_one = _checked(float, lambda x: 0 <= x < 1, "a number in [0, 1)")


if __name__ == "__main__":
    sys.exit(main())
