"""The commands and their options. Parsing them loads no model."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .. import __version__
from ..checks import did_you_mean
from .completion import PrintCompletion
from .config_file import config_arguments
from .values import (
    ASCII,
    COUNT,
    FIELD,
    FINITE,
    NONNEGATIVE,
    POSITIVE,
    POSITIVE_OR_INF,
    SHARE,
    SHARE_BELOW_1,
    SHARE_INSIDE,
    SHARE_OR_0,
    TEXT,
    WHOLE,
    one_of,
)

__all__ = ["FAILURE", "parse"]

USAGE_ERROR, FAILURE = 2, 1

# repeated from presets.py, optim.py, schedules.py and classification.py, which --help need not load
PRESETS = ("tiny", "book", "enwik8", "imagenet64", "cifar10")
OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("cosine", "linear", "rsqrt", "constant")
TASKS = ("lm", "mlm", "classification", "question-answering", "image", "translation")
PROBLEMS = ("single-label", "multi-label", "regression")
# default tokens per window, and per generated text
LENGTH = 8192
NEW_TOKENS = 200
TOKENIZER = "folder with a tokenizer, its tokenizer.json or spiece.model, or the word bytes"


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse the options; those of a --config file come first, so that others override them."""
    parser, commands = _parser()
    _check_words(parser, commands, arguments)
    options = _parse_known(parser, arguments)
    if getattr(options, "config", None):
        try:
            words, files = config_arguments(options.config)
        except (OSError, TypeError, ValueError) as error:
            parser.exit(FAILURE, f"reformer-c {options.command}: error: --config: {error}\n")
        named = options.files
        _check_words(parser, commands, [options.command, *words])
        options = _parse_known(parser, [options.command, *words, *arguments[1:]])
        options.files = named or files
    if options.command == "train":
        _take_pairs(options)
        if not options.files:
            options.parser.error("FILE is missing")
    return options


def _take_pairs(options: Namespace) -> None:
    """Make the files of --pairs those of --task translation."""
    if options.pairs:
        if options.files or options.task not in ("lm", "translation"):
            options.parser.error("--pairs cannot be combined with FILE or another --task")
        options.task, options.files = "translation", options.pairs


def _check_words(
    parser: ArgumentParser, commands: Mapping[str, ArgumentParser], arguments: Sequence[str]
) -> None:
    """Refuse an unknown command or option, and suggest the closest, before the parser misses an
    argument because of it."""
    name, *words = arguments or ["-"]
    if name.startswith("-"):
        return  # an option of the program itself
    if name not in commands:
        expected = f"must be one of {', '.join(commands)}, got {name!r}"
        parser.error(f"COMMAND {expected}{did_you_mean(name, commands)}")
    known = commands[name]._option_string_actions
    for word in words:
        if word == "--":
            return
        given = word.partition("=")[0]
        # as the parser does, take a word with a space for text, and a beginning for the whole
        is_option = re.fullmatch(r"-+[A-Za-z][\w-]*", given) and " " not in word
        if is_option and not any(option.startswith(given) for option in known):
            commands[name].error(f"unrecognized arguments: {word}{did_you_mean(given, known)}")


def _parse_known(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse the options; words that none of them takes are refused in the name of the command."""
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


class _Parser(ArgumentParser):
    """Prints errors in one line: the command, the argument, what was expected."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (see --help)\n")


def _parser() -> tuple[ArgumentParser, Mapping[str, ArgumentParser]]:
    """The parser, and those of the commands."""
    parser = _Parser(
        prog="reformer-c",
        description="The Reformer on a CPU. Begin with: reformer-c demo",
        epilog="example: reformer-c train book.txt --length 8192 --steps 500 --save model",
    )
    parser.add_argument("--version", action="version", version=f"reformer_c {__version__}")
    parser.add_argument(
        "--print-completion",
        metavar="SHELL",
        action=PrintCompletion,
        help="print a script that completes commands and options in bash, zsh or tcsh",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, add_arguments, about, example in (
        ("demo", _demo, "train on text that comes with Python, and generate: two minutes",
         "--seed 1"),
        ("train", _train, "train a language model on text files, or a model for another --task",
         "book.txt --length 8192 --steps 1000 --save model"),
        ("generate", _generate, "continue a text with a trained model",
         'model --prompt "It was " --length 200 --stream'),
        ("complete", _complete, "complete pictures with a model trained on pictures",
         "model picture.png --keep 0.5 --output completions.png"),
        ("evaluate", _evaluate, "measure a model on files: bits per byte, accuracy, F1, BLEU",
         "model held_out.txt"),
        ("predict", _predict, "predict labels, answers or masked tokens, as lines of JSON",
         "model reviews.csv"),
        ("translate", _translate, "translate texts, line by line, with a model trained on --pairs",
         'model --text "Guten Morgen"'),
        ("average", _average, "average the weights of several checkpoints of a run",
         "model --output averaged"),
        ("info", _info, "size, tokenizer and speed of a saved model",
         "model --lengths 1024 8192"),
        ("bench", _bench, "time the operations as a share of the machine's peak",
         "--json bench.json"),
    ):  # fmt: skip
        command = commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"example: reformer-c {name} {example}",
        )  # fmt: skip
        command.set_defaults(parser=command)
        if name not in ("average", "bench"):  # nothing in them is random
            command.add_argument("--seed", **WHOLE, default=0, help="of all random numbers (0)")
        command.add_argument("--threads", **COUNT, help="threads to use (default: all)")
        add_arguments(command)
    return parser, commands.choices


def _demo(command: ArgumentParser) -> None:
    add = command.add_argument
    add("--steps", **COUNT, help="training steps (default: what the time allows)")
    add("--seconds", **POSITIVE, help="time for training (110)")
    add("--length", **COUNT, default=8192, help="bytes per sequence (8192)")
    add("--quick", action="store_true", help="a tiny model, to check that all works")


def _train(command: ArgumentParser) -> None:
    add = command.add_argument
    add(
        "files",
        nargs="*",
        metavar="FILE",
        help="text file, folder, .npy array of token ids, or - for standard input; with --task "
        "image, picture, folder of pictures, or .npy array of them; with --task classification "
        "or question-answering .csv, .tsv, .jsonl or .json; with --task translation as --pairs",
    )
    add("--config", metavar="FILE",
        help='JSON: {"length": 65536, "model": {"num_hashes": 2}, ...}, or a model\'s config.json; '
        "options of the command line override it")  # fmt: skip
    _train_data(command.add_argument_group("data").add_argument)
    _train_examples(command.add_argument_group("examples").add_argument)
    _train_model(command.add_argument_group("model").add_argument)
    _train_steps(command.add_argument_group("steps").add_argument)
    _train_output(command.add_argument_group("output").add_argument)


def _train_data(add: Callable[..., Any]) -> None:
    add(
        "--task", **one_of(TASKS), default="lm", help="what the model is for (lm, a language model)"
    )
    add("--pairs", metavar="FILE", nargs="+", action="extend", default=[],
        help="--task translation FILE: texts and their translations in .tsv, .jsonl, or two files "
        "that are aligned line by line")  # fmt: skip
    add("--channels", type=int, choices=(1, 3),
        help="of pictures: 1 reads them as grey, 3 as colours (3)")  # fmt: skip
    add("--length", **COUNT,
        help=f"tokens per sequence ({LENGTH}, or the positions of --from or --config; with "
        f"--whole-files the longest file; of examples the longest, at most {LENGTH})")  # fmt: skip
    add("--tokenizer", metavar="DIR|FILE", help=f"{TOKENIZER} (DIR's of --save, or else bytes)")
    add("--batch", **COUNT, help="sequences per micro-batch (1; 16 of examples)")
    add("--batch-tokens", **COUNT,
        help="with --pairs: tokens of either side of a micro-batch, padding included")  # fmt: skip
    add(
        "--order",
        **one_of(("random", "sequential")),
        default="random",
        help="of sequences (random)",
    )
    add("--whole-files", action="store_true", help="each file is one sequence")
    add("--offset", **WHOLE, default=0,
        help="start the positions of each sequence at a random one from 0 to N (0)")  # fmt: skip
    add("--held-out", **SHARE_BELOW_1,
        help="share of each file, at its end, or of the examples, to evaluate on (0.1; "
        "0 with --evaluate-on)",
    )  # fmt: skip
    add("--evaluate-on", metavar="FILE", action="append",
        help="a separate held-out FILE of the same kind; may be repeated")  # fmt: skip
    add("--eval-every", **WHOLE, default=0, help="steps between evaluations (only at the end)")
    add("--bytes-per-token", **POSITIVE,
        help="of .npy arrays without a tokenizer, for losses in bits per byte")  # fmt: skip


def _train_examples(add: Callable[..., Any]) -> None:
    add("--problem", **one_of(PROBLEMS), help="kind of label (single-label)")
    _columns(add)


def _columns(add: Callable[..., Any]) -> None:
    add("--text-column", metavar="NAME", help="column of the text (text)")
    add("--label-column", metavar="NAME", help="column of the label (label)")


def _train_model(add: Callable[..., Any]) -> None:
    add("--from", dest="start", metavar="DIR",
        help="start from the weights and the tokenizer of this model; a head for another task is "
        "new")  # fmt: skip
    add("--preset", **one_of(PRESETS), help="size of the model (tiny)")
    add("--layers", **COUNT, help="number of layers (the preset's)")
    add("--width", **COUNT, help="channels of the model (the preset's)")
    add("--hashes", **COUNT, help="rounds of LSH attention (the preset's)")
    add("--dropout", **SHARE_BELOW_1, help="share dropped (the preset's)")
    add("--memory-budget", **NONNEGATIVE,
        help="memory in which activations are kept: bytes, or up to 1 a share of what is free (0)",
    )  # fmt: skip
    add("--set", **FIELD, action="append", default=[],
        help="any field of ReformerConfig; may be repeated")  # fmt: skip


def _train_steps(add: Callable[..., Any]) -> None:
    add("--steps", **COUNT, default=1000, help="training steps in total (1000)")
    add("--accumulate", **COUNT, default=1, help="micro-batches per step (1)")
    add("--optimizer", **one_of(OPTIMIZERS), help="(the preset's)")
    add("--lr", **POSITIVE, help="peak learning rate (the optimizer's)")
    add("--schedule", **one_of(SCHEDULES), default="cosine", help="of the learning rate (cosine)")
    add("--warmup", **WHOLE, help="steps of linear warm-up (a tenth, at most 100)")
    add("--floor", **SHARE_OR_0,
        help="final share of the peak learning rate, of cosine and linear (0.1)")  # fmt: skip
    add("--weight-decay", **NONNEGATIVE, help="(the optimizer's)")
    add("--clip", **POSITIVE_OR_INF, default=1.0, help="maximum norm of the gradient (1.0)")


def _train_output(add: Callable[..., Any]) -> None:
    add("--save", metavar="DIR", help="folder for the model and the state that --resume needs")
    add("--save-every", **WHOLE, default=0, help="steps between checkpoints (only at the end)")
    add("--keep", **WHOLE, default=0,
        help="keep the models of the last N checkpoints in DIR/checkpoint-STEP, to average (0)",
    )  # fmt: skip
    add("--resume", action="store_true",
        help="continue the run in DIR bit for bit: same options, except that --steps may be more",
    )  # fmt: skip
    add("--log", metavar="FILE", help="file that gets a line of JSON per step")


def _generate(command: ArgumentParser) -> None:
    add = command.add_argument
    _model_folder(command)
    prompt = command.add_mutually_exclusive_group().add_argument
    prompt("--prompt", **TEXT, help="text to continue")
    prompt("--prompt-file", metavar="FILE", help="file to continue (default and -: standard input)")
    add("--length", **COUNT,
        help=f"tokens to generate ({NEW_TOKENS}, or as many as the model has positions for)",
    )  # fmt: skip
    add("--temperature", **NONNEGATIVE, help="of sampling; 0 takes the likeliest token (0.8)")
    add("--top-p", **SHARE,
        help="sample from the fewest tokens with this probability in all (0.95)")  # fmt: skip
    add("--top-k", **WHOLE, help="sample from the N likeliest tokens (0: all)")
    add("--min-p", **SHARE_OR_0,
        help="exclude tokens less than X times as likely as the likeliest (0)")  # fmt: skip
    add("--repetition-penalty", **POSITIVE,
        help="above 1: tokens of the text become less likely (1)")  # fmt: skip
    add("--without", **TEXT, nargs="+", action="extend", default=[], help="words to exclude")
    add("--until", **ASCII, nargs="+", action="extend", default=[],
        help="characters that end the text")  # fmt: skip
    add("--min-length", **WHOLE, help="tokens before the text may end (0)")
    add("--beams", **COUNT, help="beam search with N beams instead of sampling (1)")
    add("--length-penalty", **FINITE, help="of beam search: above 0 favours long texts (1)")
    add("--weights", **one_of(("int8", "bfloat16")),
        help="decode with rounded weights: faster, less exact (the model's dtype)")  # fmt: skip
    add("--cache", **one_of(("bfloat16",)),
        help="keep keys and values rounded: half of the memory (the model's dtype)")  # fmt: skip
    add("--cache-length", **COUNT,
        help="tokens that are remembered, so that a text of any length takes bounded memory (all)",
    )  # fmt: skip
    add("--cache-drop", **COUNT, help="tokens forgotten at once (an eighth of --cache-length)")
    add("--texts", **COUNT, help="texts to generate (1)")
    add("--stream", action="store_true", help="print the text while it is generated")


def _complete(command: ArgumentParser) -> None:
    add = command.add_argument
    add("model", metavar="DIR", help="folder of a model trained with --task image")
    add("files", nargs="+", metavar="IMAGE", help="picture, folder, or .npy array of pictures")
    add("--keep", **SHARE_INSIDE, default=0.5,
        help="share of the rows that is kept, at the top; at least one row (0.5)")  # fmt: skip
    add("--samples", **COUNT, default=4, help="completions of each picture (4)")
    add("--temperature", **NONNEGATIVE, default=1.0,
        help="of sampling; 0 takes the likeliest bytes (1)")  # fmt: skip
    add("--top-p", **SHARE, default=1.0,
        help="sample from the fewest bytes with this probability in all (1)")  # fmt: skip
    add("--top-k", **WHOLE, default=0, help="sample from the N likeliest bytes (0: all)")
    add("--output", metavar="FILE", default="completions.png",
        help="PNG: a line for each picture: what is kept, the completions, and the picture "
        "(completions.png)")  # fmt: skip


def _evaluate(command: ArgumentParser) -> None:
    add = command.add_argument
    _model_folder(command)
    add("files", nargs="+", metavar="FILE",
        help="text file, folder, or -; for a model of another task, as for train")  # fmt: skip
    add("--length", **COUNT, help="tokens per window, or per text (the model's maximum)")
    add("--sliding", **COUNT,
        help="windows overlap and start N tokens apart; only the last N tokens of each are scored",
    )  # fmt: skip
    _columns(add)
    add("--json", action="store_true", help="print the results as a line of JSON")


def _translate(command: ArgumentParser) -> None:
    add = command.add_argument
    _model_folder(command)
    source = command.add_mutually_exclusive_group().add_argument
    source("--text", **TEXT, help="text to translate")
    source("--text-file", metavar="FILE",
        help="file with a text in each line (default and -: standard input)")  # fmt: skip
    add("--beams", **COUNT, help="beams of the search; 1 takes the likeliest token (4)")
    add("--length-penalty", **FINITE, help="above 0 favours long translations (0.6)")
    add("--length", **COUNT, help="maximum tokens (50 more than twice those of the longest text)")
    add("--batch", **COUNT, help="texts that are translated together (16)")


def _predict(command: ArgumentParser) -> None:
    add = command.add_argument
    _model_folder(command)
    add("files", nargs="+", metavar="FILE",
        help=".csv, .tsv, .jsonl, .json, or .txt with a text per line, without empty ones; - is "
        "JSON lines from standard input")  # fmt: skip
    add("--length", **COUNT, help="tokens per text (the model's maximum)")
    add("--text-column", metavar="NAME", help="column of the text (text)")


def _average(command: ArgumentParser) -> None:
    add = command.add_argument
    add("models", nargs="+", metavar="DIR",
        help="folder of a model, or of a run with --keep, whose kept models are taken")  # fmt: skip
    add("--output", metavar="DIR", required=True, help="folder for the mean")


def _info(command: ArgumentParser) -> None:
    _model_folder(command)
    command.add_argument(
        "--lengths", **COUNT, nargs="+", action="extend", default=[],
        help="measure speed and memory of a forward pass and of decoding at these lengths",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print all as a line of JSON")


def _bench(command: ArgumentParser) -> None:
    add = command.add_argument
    add("--length", **COUNT, default=16384, help="tokens per sequence (16384)")
    add("--repeats", **COUNT, default=7, help="runs, the fastest counts (7)")
    add("--json", metavar="FILE", help="also write the figures to this file")


def _model_folder(command: ArgumentParser) -> None:
    command.add_argument("model", metavar="DIR", help="folder of a trained model")
    command.add_argument("--tokenizer", metavar="DIR|FILE", help=f"{TOKENIZER} (DIR's)")
