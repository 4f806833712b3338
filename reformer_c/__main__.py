"""The command line: ``reformer-c``, or ``python -m reformer_c``."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from .checks import did_you_mean, requires_extra

USAGE_ERROR, FAILURE = 2, 1

# repeated from presets.py and optim.py, so that help and usage errors need not import NumPy
PRESETS = ("tiny", "book", "enwik8")
OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("cosine", "linear", "rsqrt", "constant")
# default tokens per window, and per generated text
LENGTH = 8192
NEW_TOKENS = 200
# defaults of `generate`
SAMPLING = {
    "temperature": 0.8, "top_k": 0, "top_p": 0.95, "min_p": 0.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0,
}  # fmt: skip
TOKENIZER = "folder with a tokenizer, its tokenizer.json or spiece.model, or the word bytes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 on failure, 2 on wrong usage, 130 after Ctrl-C."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    name = f"reformer-c {options.command}"
    _escape_unencodable()
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
        # the reader of our output has exited: exit quietly, and discard what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except MemoryError as error:
        return _say(name, f"error: not enough memory: {error}", FAILURE)
    except (ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
        return _say(name, f"error: {' '.join(str(error).split())}", FAILURE)


def _escape_unencodable() -> None:
    """Escape characters that standard output cannot encode, instead of failing after the work."""
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure") and (
        stdout.errors == "strict" or stdout.encoding.lower() != "utf-8"
    ):
        stdout.reconfigure(errors="backslashreplace")


def _say(name: str, message: str, code: int) -> int:
    from .text.screen import show

    show(f"{name}: {message}", sys.stderr)
    return code


# ---- commands ----


def _given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _demo(options: argparse.Namespace) -> None:
    from .tools.demo import QUICK_SECONDS, run_demo

    if options.steps is not None and options.seconds is not None:
        raise ValueError("--seconds cannot be combined with --steps")
    if options.quick and (options.seconds or 0) > QUICK_SECONDS:
        raise ValueError(f"--seconds must be at most {QUICK_SECONDS:g} with --quick")
    run_demo(
        steps=options.steps,
        **_given(seconds=options.seconds),
        length=options.length,
        seed=options.seed,
        quick=options.quick,
    )


def _train(options: argparse.Namespace) -> None:
    from .text.vocabulary import save_tokenizer
    from .training.train import Trainer, show_progress

    folder = Path(options.save) if options.save else None
    _check_training_options(options)
    _check_folder(folder, options)
    data, held_out, held_out_bytes, tokenizer = _data(folder, options)
    model = _model_to_train(folder, data, held_out, tokenizer, options)
    if tokenizer is None and options.bytes_per_token is None:
        raise ValueError(
            "--bytes-per-token must be given with .npy files, for losses in bits per byte; or "
            "--tokenizer, if the tokens were made by one: DIR, FILE or bytes"
        )
    trainer = Trainer(
        model,
        data,
        _optimizer(model, options),
        steps=options.steps,
        schedule=_schedule(options),
        accumulate=options.accumulate,
        max_grad_norm=options.clip,
        seed=options.seed,
        held_out=held_out or None,
        held_out_bytes_per_token=held_out_bytes if held_out else None,
        evaluate_every=options.eval_every,
        folder=folder,
        save_every=options.save_every,
        log=options.log,
    )
    if options.resume and folder is not None:
        # --steps may be raised, which changes the schedule from here on
        derived = ["schedule.steps", *(["schedule.warmup"] if options.warmup is None else [])]
        for changed in trainer.resume(folder, allow=derived):
            print(f"resumed: {changed}")
    if tokenizer is not None and folder is not None:
        # before the first step, so that every checkpoint has it
        save_tokenizer(tokenizer, folder)
    count = sum(len(part) for part in data.tokens)
    held = sum(map(len, held_out))
    print(f"{model!r}\n{count:,} tokens to train on, {held:,} held out", flush=True)
    if data.bytes_per_token != 1.0:
        print(f"{tokenizer or 'tokens'}, {data.bytes_per_token:.2f} bytes each", flush=True)
    bits = None
    try:
        for report in show_progress(trainer):
            bits = report.held_out
    except (KeyboardInterrupt, SystemExit):
        if folder is not None:
            print(f"saved: {folder}, step {trainer.step}", flush=True)
        raise
    if held_out:
        bits = trainer.evaluate().bits_per_byte if bits is None else bits
        print(f"held out: {bits:.3f} bits per byte")
    if folder is not None:
        print(f"saved: {folder}")


def _check_training_options(options: argparse.Namespace) -> None:
    """Refuse an option that would have no effect."""
    if options.eval_every and not options.evaluate_on and options.held_out == 0:
        raise ValueError("--eval-every needs held-out text, got --held-out 0")
    if options.floor is not None and options.schedule not in ("cosine", "linear"):
        raise ValueError(f"--floor cannot be combined with --schedule {options.schedule}")
    set_fields = dict(options.set)
    for name, field in (
        ("layers", "attn_layers"), ("width", "hidden_size"), ("hashes", "num_hashes"),
        ("dropout", "hidden_dropout_prob"), ("memory_budget", "memory_budget"),
    ):  # fmt: skip
        if getattr(options, name) is not None and field in set_fields:
            raise ValueError(
                f"--{name.replace('_', '-')} cannot be combined with {field} in --set or --config"
            )


def _data(folder: Path | None, options: argparse.Namespace) -> tuple[Any, list[Any], float, Any]:
    """The training data; the held-out texts of at least two tokens, and their bytes per token; the
    tokenizer, which is None if all files contain token ids and none is given.
    """
    from .text.tokenizer import ByteTokenizer
    from .training.data import Sequences, Windows, encode_text, read_parts, split_parts

    tokenizer = _tokenizer_to_train(folder, options)
    utf8 = not isinstance(tokenizer, ByteTokenizer | None)
    parts = read_parts(options.files, utf8=utf8)
    apart = read_parts(options.evaluate_on, utf8=utf8) if options.evaluate_on else []
    if tokenizer is None and any(isinstance(part, bytes) for part in parts + apart):
        tokenizer = _tokenizer_of_bytes(folder, options)
    if tokenizer is not None and options.bytes_per_token is not None:
        raise ValueError(
            "--bytes-per-token cannot be combined with a tokenizer or text, whose bytes are counted"
        )
    share = options.held_out
    if share is None:
        share = 0.0 if options.evaluate_on else 0.1
    parts, ends = split_parts(parts, share, tokenizer, whole_files=options.whole_files)
    train = [encode_text(part, tokenizer) for part in parts]
    pairs = [(part, encode_text(part, tokenizer)) for part in apart or ends]
    pairs = [(part, tokens) for part, tokens in pairs if len(tokens) > 1]
    held_out = [tokens for _, tokens in pairs]
    if options.evaluate_on and not held_out:
        raise ValueError("--evaluate-on must have a text of at least 2 tokens")
    common = {
        "order": options.order,
        "seed": options.seed,
        "bytes_per_token": _bytes_per_token(parts, train, tokenizer, options),
    }
    data: Windows | Sequences
    if not options.whole_files:
        data = Windows(train, options.length or LENGTH, batch=options.batch, **common)
    elif options.batch > 1:
        raise ValueError("--batch must be 1 with --whole-files; --accumulate N uses N files a step")
    elif short := [len(tokens) for tokens in train if len(tokens) < 2]:
        raise ValueError(
            f"--whole-files: each FILE must have at least 2 tokens to train on, got {short[0]} in "
            f"{len(short)} of them"
        )
    else:
        data = Sequences(train, options.length, **common)
    held_out_bytes = _bytes_per_token([part for part, _ in pairs], held_out, tokenizer, options)
    return data, held_out, held_out_bytes, tokenizer


def _bytes_per_token(
    texts: Sequence[Any], tokens: Sequence[Any], tokenizer: Any, options: argparse.Namespace
) -> float:
    """Mean bytes per token of the texts."""
    from .training.data import count_bytes

    count = sum(map(len, tokens))
    if tokenizer is None or count == 0:
        return options.bytes_per_token or 1.0
    return sum(count_bytes(text, tokenizer) for text in texts) / count


def _tokenizer_to_train(folder: Path | None, options: argparse.Namespace) -> Any:
    """The tokenizer of --tokenizer or of the folder; None if there is neither."""
    from .text.vocabulary import folder_tokenizer

    saved = folder_tokenizer(folder) if folder is not None and folder.is_dir() else None
    return _consistent_tokenizer(options.tokenizer, saved, folder)


def _consistent_tokenizer(name: str | None, saved: Any, folder: Any) -> Any:
    """The tokenizer called `name`, which must equal the folder's; by default the folder's."""
    from .text.vocabulary import named_tokenizer, same_tokenizer

    if name is None:
        return saved
    try:
        named = named_tokenizer(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer: {name!r}: {error}") from error
    if saved is not None and not same_tokenizer(named, saved):
        raise ValueError(f"--tokenizer must be that of {str(folder)!r}, {saved!r}, got {named!r}")
    return named


def _tokenizer_of_bytes(folder: Path | None, options: argparse.Namespace) -> Any:
    """The default for texts: `ByteTokenizer`, unless a resumed model may have another."""
    from .models.config import ReformerConfig
    from .text.tokenizer import ByteTokenizer
    from .text.vocabulary import folder_tokenizer

    if not options.resume or folder is None:
        return ByteTokenizer()
    tokenizer = folder_tokenizer(folder, ReformerConfig.from_json(folder).vocab_size)
    if tokenizer is None:
        raise ValueError(_no_tokenizer(folder))
    return tokenizer


def _no_tokenizer(folder: Any) -> str:
    return f"--tokenizer must be DIR, FILE or bytes: there is no tokenizer in {str(folder)!r}"


def _optimizer(model: Any, options: argparse.Namespace) -> Any:
    from .models.presets import PRESETS
    from .training.optim import Adafactor, AdamW

    preset = PRESETS[options.preset]
    decay = {} if options.weight_decay is None else {"weight_decay": options.weight_decay}
    if (options.optimizer or preset.optimizer) == "adamw":
        rate = preset.lr if options.lr is None else options.lr
        return AdamW(model.parameters, lr=rate, **decay)
    if options.lr is None:
        return Adafactor(model.parameters, **decay)
    # a given rate turns off Adafactor's own step sizes
    manual = {"lr": options.lr, "relative_step": False, "scale_parameter": False}
    return Adafactor(model.parameters, **manual, **decay)


def _schedule(options: argparse.Namespace) -> Any:
    from .training.optim import schedules

    warmup = min(100, options.steps // 10) if options.warmup is None else options.warmup
    if options.schedule in ("constant", "rsqrt"):
        return getattr(schedules, options.schedule)(warmup=warmup)
    make = getattr(schedules, options.schedule)
    return make(options.steps, warmup=warmup, floor=0.1 if options.floor is None else options.floor)


def _check_folder(folder: Path | None, options: argparse.Namespace) -> None:
    from .files.atomic import finish_checkpoint
    from .training.train import has_checkpoint

    if folder is None:
        for name in ("resume", "save_every"):
            if getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')} needs --save DIR")
        return
    if find_spec("safetensors") is None:
        raise requires_extra("--save", "safetensors", "cli")
    finish_checkpoint(folder)
    if options.resume and not has_checkpoint(folder):
        raise ValueError(f"--resume: there is no checkpoint in {str(folder)!r}")
    if not options.resume and has_checkpoint(folder):
        raise ValueError(
            f"--save: there is a checkpoint in {str(folder)!r}: add --resume to continue it, or "
            "choose another folder"
        )
    if not options.resume and (folder / "config.json").exists():
        raise ValueError(
            f"--save: there is a model in {str(folder)!r}, which would be replaced: choose another "
            "folder"
        )


def _model_to_train(
    folder: Path | None, data: Any, held_out: Any, tokenizer: Any, options: argparse.Namespace
) -> Any:
    from .models.config import ReformerConfig
    from .models.model import ReformerModelWithLMHead
    from .models.presets import DROPOUTS, preset_config
    from .text.vocabulary import check_vocabulary
    from .training.train import config_differences

    fields = _token_fields(tokenizer) | _given(
        **dict.fromkeys(DROPOUTS, options.dropout),
        memory_budget=_bytes_of(options.memory_budget),
        num_hashes=options.hashes,
    )
    fields |= dict(options.set)
    config = preset_config(
        options.preset, data.length, layers=options.layers, width=options.width, **fields
    )
    parts = [part for part in (*data.tokens, *held_out) if len(part)]
    smallest, largest = min(int(p.min()) for p in parts), max(int(p.max()) for p in parts)
    if smallest < 0:
        raise ValueError(f"FILE must have token ids >= 0, got {smallest}")
    if largest >= config.vocab_size:
        raise ValueError(
            f"FILE must have token ids below the model's vocabulary of {config.vocab_size}, got "
            f"{largest}: --set vocab_size={max(largest + 1, len(tokenizer or ()))}"
        )
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size)
    if options.hashes is not None and "lsh" not in config.attn_layers:
        raise ValueError(f"--hashes needs an LSH layer, got {', '.join(config.attn_layers)}")
    if not options.resume or folder is None:
        return ReformerModelWithLMHead(config, rng=options.seed)
    saved = ReformerConfig.from_json(folder)
    # the saved memory budget is used: a share of today's free memory would be other bytes, and
    # results would round differently
    if found := config_differences(config, saved):
        raise ValueError(f"--resume: {'; '.join(found)} in {str(folder)!r}")
    return ReformerModelWithLMHead.from_pretrained(folder)


def _token_fields(tokenizer: Any) -> dict[str, Any]:
    """Fields of the configuration that a tokenizer determines; presets are for `ByteTokenizer`."""
    from .text.tokenizer import ByteTokenizer

    if isinstance(tokenizer, ByteTokenizer | None):
        return {}
    ends = {"eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer)} | ends | _given(pad_token_id=tokenizer.pad_token_id)


def _bytes_of(budget: float | None) -> int | None:
    """A memory budget in bytes; up to 1, it is a share of the memory that is free now."""
    from .runtime import available_memory

    if budget is None:
        return None
    return int(budget * (available_memory() or 0)) if budget <= 1 else int(budget)


def _generate(options: argparse.Namespace) -> None:
    from .text.screen import TextStream
    from .text.vocabulary import TokenTexts

    tokenizer, model = _open(options.model, options.tokenizer)
    saved = model.generation_config
    choice = _choice(options, saved)
    text = options.prompt
    if text is None:
        text = _prompt_text(options.prompt_file)
    prompt = tokenizer.encode(_readable(text, tokenizer), add_special_tokens=False)
    longest = model.config.num_positions
    unit = _unit(tokenizer)
    room = longest - len(prompt)
    length = options.length
    if length is None and saved.max_new_tokens is None and saved.max_length is None:
        length = max(1, min(NEW_TOKENS, room))
    if length is not None and length > room:
        raise ValueError(
            f"--length: {len(prompt)} {unit} of prompt and {length} new ones exceed the model's "
            f"{longest} positions"
        )
    if None not in (length, options.min_length) and options.min_length > length:
        raise ValueError(f"--min-length must be at most --length {length}")
    token_texts, characters = TokenTexts(tokenizer), "".join(options.until)
    for character in characters:
        if not token_texts.with_any(character):
            raise ValueError(f"--until: {tokenizer!r} never writes {character!r}")
    end_tokens = sorted({*_end_tokens(tokenizer, model), *token_texts.with_any(characters)})
    start = partial(
        TextStream, tokenizer, prompt=prompt, end_tokens=end_tokens, end_characters=characters
    )
    stream = start() if options.stream else None
    ids = model.generate(
        prompt[None],
        **_given(max_new_tokens=length, min_new_tokens=options.min_length, weights=options.weights),
        **choice,
        **_banned(options.without, saved, tokenizer, token_texts),
        eos_token_id=end_tokens or None,
        rng=options.seed,
        streamer=stream,
    )
    for row in ids:
        shown = stream
        if shown is None:
            shown = start()
            shown.write(row[len(prompt) :])
        shown.end()
        print()


def _choice(options: argparse.Namespace, saved: Any) -> dict[str, Any]:
    """Options of `generate`: the command's, else those of the model's folder, else `SAMPLING`."""
    values: dict[str, Any] = {}
    for name, default in SAMPLING.items():
        found = (getattr(place, name) for place in (options, saved))
        values[name] = next((value for value in found if value is not None), default)
    beams = options.beams or saved.num_beams or 1
    texts = options.texts or saved.num_return_sequences or 1
    if options.beams is None and saved.do_sample is not None and not _sampling_only(options):
        draw = saved.do_sample
    else:
        draw = values["temperature"] > 0 and (beams == 1 or bool(_sampling_only(options)))
    _check_choice(options, beams, texts, draw)
    return values | {
        "temperature": values["temperature"] or 1.0,
        "do_sample": draw,
        "num_beams": beams,
        "num_return_sequences": texts,
    }


def _sampling_only(options: argparse.Namespace) -> list[str]:
    """The given options that have an effect only if tokens are sampled."""
    names = ("temperature", "top_k", "top_p", "min_p")
    return [name for name in names if getattr(options, name) is not None]


def _check_choice(options: argparse.Namespace, beams: int, texts: int, draw: bool) -> None:
    """Refuse an option that would have no effect."""
    unused: dict[str, list[str]] = {}
    if (options.beams or 1) > 1:
        unused["--beams, which does not sample"] = _sampling_only(options)
    elif options.temperature == 0:
        unused["--temperature 0, which takes the likeliest token"] = _sampling_only(options)[1:]
    if beams == 1 and options.length_penalty is not None:
        unused["a single beam: give --beams N"] = ["length_penalty"]
    for what, names in unused.items():
        for name in names:
            raise ValueError(f"--{name.replace('_', '-')} cannot be combined with {what}")
    for character in options.until:
        if character in options.without:
            raise ValueError(f"--until: --without excludes {character!r} from the text")
    if options.stream and beams > 1:
        raise ValueError(
            f"--stream cannot be combined with --beams {beams}: beam search may revise tokens "
            "until its end"
        )
    if options.stream and texts > 1:
        raise ValueError(f"--stream cannot be combined with --texts {texts}: it shows one text")
    if texts > beams and (beams > 1 or not draw):
        raise ValueError(
            f"--texts must be at most {beams} with --beams {beams}, got {texts}; more texts need a "
            "--temperature above 0 and no beams"
        )


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """The end-of-text tokens of the model and its tokenizer."""
    from .models.config import ReformerConfig
    from .text.tokenizer import ByteTokenizer

    ends = model.generation_config.eos_token_id
    found = set(ends if isinstance(ends, list) else [ends])
    if isinstance(tokenizer, ByteTokenizer):
        # the configuration's default is the id of a byte here
        found.discard(ReformerConfig.eos_token_id)
    else:
        found.add(tokenizer.eos_token_id)
    return {i for i in found if i is not None and 0 <= i < model.config.vocab_size}


def _banned(words: Sequence[str], saved: Any, tokenizer: Any, token_texts: Any) -> dict[str, Any]:
    """The arguments of `generate` that exclude words, and ids without a token, from a text."""
    from .text.tokenizer import ByteTokenizer

    ids = [
        tokenizer.encode(_readable(word, tokenizer), add_special_tokens=False).tolist()
        for word in words
    ]
    processors = [token_texts.only_known]
    if words and not isinstance(tokenizer, ByteTokenizer):
        # a word has many segmentations, of which encode returns one
        processors.append(token_texts.without(words))
    ids = [word for word in ids if word] + (saved.bad_words_ids or [])
    return {"bad_words_ids": ids, "logits_processor": processors}


def _readable(text: str, tokenizer: Any) -> Any:
    """The str or bytes that a tokenizer accepts, from an argument that may hold undecoded bytes."""
    from .text.tokenizer import ByteTokenizer

    try:
        data = text.encode("utf-8", "surrogateescape")
        return data if isinstance(tokenizer, ByteTokenizer) else data.decode("utf-8")
    except UnicodeError as error:
        raise ValueError(f"TEXT must be UTF-8 for {tokenizer!r}: {error}") from error


def _unit(tokenizer: Any) -> str:
    from .text.tokenizer import ByteTokenizer

    return "bytes" if isinstance(tokenizer, ByteTokenizer) else "tokens"


def _prompt_text(file: str | None) -> str:
    """The prompt, from a file, or from standard input if no file or "-" is given."""
    if file is not None and file != "-":
        return Path(file).read_bytes().decode("utf-8", "surrogateescape")
    if file is None and sys.stdin.isatty():
        raise ValueError("--prompt, --prompt-file or text on standard input must be given")
    if hasattr(sys.stdin, "buffer"):
        return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return sys.stdin.read()


def _evaluate(options: argparse.Namespace) -> None:
    from .training.data import encode_text, read_texts
    from .training.train import evaluate

    for file in options.files:
        if file.endswith(".npy"):
            raise ValueError(f"FILE must be text, got token ids in {file!r}")
    tokenizer, model = _open(options.model, options.tokenizer)
    unit = _unit(tokenizer)
    # texts are kept apart, so that no window crosses from one into the next
    texts = read_texts(options.files, utf8=unit != "bytes")
    pairs = [(text, encode_text(text, tokenizer)) for text in texts]
    # a text of one token has nothing to predict
    pairs = [(text, ids) for text, ids in pairs if len(ids) > 1] or pairs
    tokens = [ids for _, ids in pairs]
    bytes_per_token = sum(len(text) for text, _ in pairs) / max(1, sum(map(len, tokens)))
    longest = model.config.num_positions
    length = options.length or min(max(map(len, tokens)), longest)
    if length > longest:
        raise ValueError(f"--length must be at most the model's {longest} positions")
    if options.sliding is not None and options.sliding >= length:
        raise ValueError(f"--sliding must be less than the {length} {unit} of a window")
    begin = time.perf_counter()
    result = evaluate(
        model,
        tokens,
        length,
        stride=options.sliding,
        bytes_per_token=bytes_per_token,
        seed=options.seed,
    )
    seconds = time.perf_counter() - begin
    windows = f"windows of {length:,}"
    if options.sliding is not None:
        windows += f", {options.sliding:,} apart"
    if unit != "bytes":
        unit += f" of {bytes_per_token:.2f} bytes"
    print(
        f"{result.bits_per_byte:.4f} bits per byte ({result.tokens:,} {unit} predicted in "
        f"{windows}, {seconds:.1f} s)"
    )


def _info(options: argparse.Namespace) -> None:
    model = _model(options.model)
    config = model.config
    longest = config.num_positions
    for length in options.lengths:
        if length > longest:
            raise ValueError(f"--lengths must be at most the model's {longest} positions")
    groups: dict[str, int] = {}
    for name, array in model.parameters.items():
        group = _group(name)
        groups[group] = groups.get(group, 0) + array.size
    tokenizer = _described_tokenizer(options, config.vocab_size)
    print(repr(model))
    print(f"longest sequence  {longest:,} tokens, vocabulary {config.vocab_size}")
    print(f"tokenizer         {tokenizer}")
    for group, count in groups.items():
        print(f"{group:40} {count:12,} parameters")
    total = sum(groups.values())
    print(f"{'all':40} {total:12,} parameters, {4 * total / 2**20:,.1f} MB")
    if options.lengths:
        print("\nmeasured: a forward pass over a text of that length, then tokens decoded after it")
        print(f"{'length':>10} {'read':>16} {'written':>16} {'cache':>10} {'peak memory':>12}")
    for length in options.lengths:
        _measure(model, length, options.seed)


def _described_tokenizer(options: argparse.Namespace, vocab_size: int) -> str:
    """The folder's tokenizer, or the reason why it cannot be read."""
    try:
        return repr(_tokenizer(options.model, options.tokenizer, vocab_size))
    except (ImportError, OSError, ValueError) as error:
        if options.tokenizer is not None:
            raise
        return " ".join(str(error).split())


def _measure(model: Any, length: int, seed: int) -> None:
    """Print a line of measurements at one length: speed of prompt and decoding, and memory."""
    import numpy as np

    from .training.train import peak_memory

    tokens = min(32, model.config.num_positions - length + 1)
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, max(1, length - 1)))
    begin = time.perf_counter()
    stream = model.stream(ids, max_new_tokens=tokens, eos_token_id=None, rng=seed)
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
    from .tools.bench import run_bench

    run_bench(length=options.length, repeats=options.repeats, json_file=options.json)


def _open(folder: str, tokenizer: str | None) -> tuple[Any, Any]:
    """The tokenizer and the language model of a folder."""
    model = _model(folder)
    return _tokenizer(folder, tokenizer, model.config.vocab_size), model


def _model(folder: str) -> Any:
    from .files.atomic import finish_checkpoint
    from .models.model import ReformerModelWithLMHead

    finish_checkpoint(Path(folder))
    return ReformerModelWithLMHead.from_pretrained(folder)


def _tokenizer(folder: str, name: str | None, vocab_size: int) -> Any:
    """The tokenizer of --tokenizer, or of the folder."""
    from .text.vocabulary import check_vocabulary, folder_tokenizer

    # guess from the vocabulary's size only if no tokenizer is named
    saved = folder_tokenizer(folder, vocab_size if name is None else None)
    tokenizer = _consistent_tokenizer(name, saved, folder)
    if tokenizer is None:
        raise ValueError(_no_tokenizer(folder))
    check_vocabulary(tokenizer, vocab_size, paired=saved is not None)
    return tokenizer


# ---- arguments ----


class _Parser(argparse.ArgumentParser):
    """Prints errors in one line: the command, the argument, what was expected."""

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
        commands, "demo", _demo, "train on text that comes with Python, and generate: two minutes",
        "reformer-c demo --seed 1",
    )  # fmt: skip
    demo.add_argument(
        "--steps", type=_count, metavar="N", help="training steps (default: what the time allows)"
    )
    demo.add_argument("--seconds", type=_positive, metavar="X", help="time for training (110)")
    demo.add_argument(
        "--length", type=_count, metavar="N", default=8192, help="bytes per sequence (8192)"
    )
    demo.add_argument("--quick", action="store_true", help="a tiny model, to check that all works")

    train = _command(
        commands, "train", _train, "train a language model on text files",
        "reformer-c train book.txt --length 8192 --steps 1000 --save model",
    )  # fmt: skip
    _add_training_arguments(train)

    generate = _command(
        commands, "generate", _generate, "continue a text with a trained model",
        'reformer-c generate model --prompt "It was " --length 200 --stream',
    )  # fmt: skip
    _add_model_folder(generate)
    prompt = generate.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", type=_text, metavar="TEXT", help="text to continue")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="file to continue (default and -: standard input)"
    )
    generate.add_argument(
        "--length",
        type=_count,
        metavar="N",
        help=f"tokens to generate ({NEW_TOKENS}, or as many as the model has positions for)",
    )
    generate.add_argument(
        "--temperature", type=_share_or_more, metavar="X",
        help="of sampling; 0 takes the likeliest token (0.8)",
    )  # fmt: skip
    generate.add_argument(
        "--top-p", type=_share, metavar="X",
        help="sample from the fewest tokens with this probability in all (0.95)",
    )  # fmt: skip
    _add_choice_arguments(generate)

    evaluate = _command(
        commands, "evaluate", _evaluate, "bits per byte of a model on text files",
        "reformer-c evaluate model held_out.txt",
    )  # fmt: skip
    _add_model_folder(evaluate)
    evaluate.add_argument("files", nargs="+", metavar="FILE", help="text file, folder, or -")
    evaluate.add_argument(
        "--length", type=_count, metavar="N", help="tokens per window (the model's maximum)"
    )
    evaluate.add_argument(
        "--sliding", type=_count, metavar="N",
        help="windows overlap and start N tokens apart; only the last N tokens of each are scored",
    )  # fmt: skip

    info = _command(
        commands, "info", _info, "size, tokenizer and speed of a saved model",
        "reformer-c info model --lengths 1024 8192",
    )  # fmt: skip
    _add_model_folder(info)
    info.add_argument(
        "--lengths", type=_count, nargs="+", metavar="N", default=[],
        help="measure speed and memory of a forward pass and of decoding at these lengths",
    )  # fmt: skip

    bench = _command(
        commands, "bench", _bench, "time the operations as a share of the machine's peak",
        "reformer-c bench --json bench.json",
    )  # fmt: skip
    bench.add_argument(
        "--length", type=_count, metavar="N", default=16384, help="tokens per sequence (16384)"
    )
    bench.add_argument(
        "--repeats", type=_count, metavar="N", default=7, help="runs, the fastest counts (7)"
    )
    bench.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], about: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".",
        epilog=f"example: {example}",
    )  # fmt: skip
    parser.set_defaults(run=run, parser=parser)
    if name != "bench":  # its figures do not depend on the seed
        parser.add_argument(
            "--seed", type=_whole, metavar="N", default=0, help="of all random numbers (0)"
        )
    parser.add_argument("--threads", type=_count, metavar="N", help="threads to use (default: all)")
    return parser


def _add_model_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="DIR", help="folder of a trained model")
    command.add_argument("--tokenizer", metavar="DIR|FILE", help=f"{TOKENIZER} (DIR's)")


def _add_choice_arguments(generate: argparse.ArgumentParser) -> None:
    add = generate.add_argument
    add("--top-k", type=_whole, metavar="N", help="sample from the N likeliest tokens (0: all)")
    add("--min-p", type=_share_or_none, metavar="X",
        help="exclude tokens less than X times as likely as the likeliest (0)")  # fmt: skip
    add("--repetition-penalty", type=_positive, metavar="X",
        help="above 1: tokens of the text become less likely (1)")  # fmt: skip
    add("--without", type=_text, nargs="+", metavar="TEXT", default=[], help="words to exclude")
    add("--until", type=_byte, nargs="+", metavar="CHARACTER", default=[],
        help="characters that end the text")  # fmt: skip
    add("--min-length", type=_whole, metavar="N", help="tokens before the text may end (0)")
    add("--beams", type=_count, metavar="N",
        help="beam search with N beams instead of sampling (1)")  # fmt: skip
    add("--length-penalty", type=_finite, metavar="X",
        help="of beam search: above 0 favours long texts (1)")  # fmt: skip
    add("--weights", choices=("int8", "bfloat16"),
        help="decode with rounded weights: faster, less exact (the model's dtype)")  # fmt: skip
    add("--texts", type=_count, metavar="N", help="texts to generate (1)")
    add("--stream", action="store_true", help="print the text while it is generated")


def _add_training_arguments(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "files", nargs="*", metavar="FILE",
        help="text file, folder, .npy array of token ids, or - for standard input",
    )  # fmt: skip
    train.add_argument(
        "--config", metavar="FILE",
        help='JSON: {"length": 65536, "model": {"num_hashes": 2}, ...}, or a model\'s config.json; '
        "options of the command line override it",
    )  # fmt: skip
    _add_data_arguments(train.add_argument_group("data").add_argument)
    _add_model_arguments(train.add_argument_group("model").add_argument)
    _add_step_arguments(train.add_argument_group("steps").add_argument)
    _add_run_arguments(train.add_argument_group("output").add_argument)


def _add_data_arguments(add: Callable) -> None:
    add(
        "--length",
        type=_count,
        metavar="N",
        help=f"tokens per sequence ({LENGTH}; with --whole-files the longest file)",
    )
    add("--tokenizer", metavar="DIR|FILE", help=f"{TOKENIZER} (DIR's of --save, or else bytes)")
    add("--batch", type=_count, metavar="N", default=1, help="sequences per micro-batch (1)")
    add("--order", choices=("random", "sequential"), default="random", help="of sequences (random)")
    add("--whole-files", action="store_true", help="each file is one sequence")
    add(
        "--held-out",
        type=_share_below_one,
        metavar="X",
        help="share of each file, at its end, to evaluate on (0.1; 0 with --evaluate-on)",
    )
    add(
        "--evaluate-on",
        metavar="FILE",
        action="append",
        help="a separate held-out text; may be repeated",
    )
    add(
        "--eval-every",
        type=_whole,
        metavar="N",
        default=0,
        help="steps between evaluations (only at the end)",
    )
    add(
        "--bytes-per-token",
        type=_positive,
        metavar="X",
        help="of .npy arrays without a tokenizer, for losses in bits per byte",
    )


def _add_model_arguments(add: Callable) -> None:
    add("--preset", choices=PRESETS, default="tiny", help="size of the model (tiny)")
    add("--layers", type=_count, metavar="N", help="number of layers (the preset's)")
    add("--width", type=_count, metavar="N", help="channels of the model (the preset's)")
    add("--hashes", type=_count, metavar="N", help="rounds of LSH attention (the preset's)")
    add("--dropout", type=_share_below_one, metavar="X", help="share dropped (the preset's)")
    add(
        "--memory-budget",
        type=_share_or_more,
        metavar="X",
        help="memory in which activations are kept: bytes, or up to 1 a share of what is free (0)",
    )
    add(
        "--set",
        type=_field,
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="any field of ReformerConfig; may be repeated",
    )


def _add_step_arguments(add: Callable) -> None:
    add("--steps", type=_count, metavar="N", default=1000, help="training steps in total (1000)")
    add(
        "--accumulate",
        type=_count,
        metavar="N",
        default=1,
        help="micro-batches per step (1)",
    )
    add("--optimizer", choices=OPTIMIZERS, help="(the preset's)")
    add("--lr", type=_positive, metavar="X", help="peak learning rate (the optimizer's)")
    add("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate (cosine)")
    add(
        "--warmup",
        type=_whole,
        metavar="N",
        help="steps of linear warm-up (a tenth, at most 100)",
    )
    add(
        "--floor",
        type=_share_or_none,
        metavar="X",
        help="final share of the peak learning rate, of cosine and linear (0.1)",
    )
    add("--weight-decay", type=_share_or_more, metavar="X", help="(the optimizer's)")
    add(
        "--clip",
        type=_positive_or_inf,
        metavar="X",
        default=1.0,
        help="maximum norm of the gradient (1.0)",
    )


def _add_run_arguments(add: Callable) -> None:
    add("--save", metavar="DIR", help="folder for the model and the state that --resume needs")
    add(
        "--save-every",
        type=_whole,
        metavar="N",
        default=0,
        help="steps between checkpoints (only at the end)",
    )
    add(
        "--resume",
        action="store_true",
        help="continue the run in DIR bit for bit: same options, except that --steps may be more",
    )
    add("--log", metavar="FILE", help="file that gets a line of JSON per step")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options; those of a --config file come first, so that others override them."""
    parser = _parser()
    options = _parse_known(parser, arguments)
    if getattr(options, "config", None):
        try:
            words, files = _config_arguments(options.config)
        except (OSError, TypeError, ValueError) as error:
            parser.exit(FAILURE, f"reformer-c {options.command}: error: --config: {error}\n")
        given = options.files
        options = _parse_known(parser, [options.command, *words, *arguments[1:]])
        options.files = given or files
    if not getattr(options, "files", True):
        parser.exit(
            USAGE_ERROR, f"reformer-c {options.command}: error: FILE is missing (see --help)\n"
        )
    return options


def _parse_known(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options; the error for an unknown one suggests the closest."""
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = options.parser
        # suggest only for options, not for positional arguments
        name = next((word for word in unknown if word.startswith("--")), "").partition("=")[0]
        nearest = did_you_mean(name, command._option_string_actions) if name else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}{nearest}")
    return options


def _config_arguments(file: str) -> tuple[list[str], list[str]]:
    """The options of a --config file as command-line arguments, and its `files`."""
    values = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{file!r} must be a JSON object, got {type(values).__name__}")
    if "model_type" in values:
        from .models.config import ReformerConfig

        model = dict(vars(ReformerConfig.from_dict(values)))
        del model["extra"]
        values = {"model": model}
    model, files = values.pop("model", {}), values.pop("files", [])
    if not isinstance(model, dict):
        raise ValueError(f"'model' must be an object of fields, got {model!r}")
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ValueError(f"'files' must be a name or a list of names, got {files!r}")
    words = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(option)
            elif one is not None and one is not False:
                words.append(f"{option}={one}")
    words += [f"--set={name}={json.dumps(value)}" for name, value in model.items()]
    return words, files


def _checked(read: Callable[[str], Any], fits: Callable[[Any], bool], expected: str) -> Callable:
    def convert(text: str) -> Any:
        try:
            value = read(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
        return value

    return convert


def _field_of(text: str) -> tuple[str, Any] | None:
    name, equals, value = text.partition("=")
    if not name or not equals:
        return None
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word needs no quotes


_text = _checked(str, lambda text: text != "", "at least one character")
_whole = _checked(int, lambda n: n >= 0, "a whole number >= 0")
_count = _checked(int, lambda n: n >= 1, "a whole number >= 1")
_positive = _checked(float, lambda x: 0 < x < math.inf, "a number > 0")
_positive_or_inf = _checked(float, lambda x: x > 0, "a number > 0")
_share_or_more = _checked(float, lambda x: 0 <= x < math.inf, "a number >= 0")
_finite = _checked(float, math.isfinite, "a finite number")
_share = _checked(float, lambda x: 0 < x <= 1, "a number in (0, 1]")
_share_or_none = _checked(float, lambda x: 0 <= x <= 1, "a number in [0, 1]")
_field = _checked(_field_of, lambda pair: True, "FIELD=VALUE")
_byte = _checked(str, lambda text: len(text.encode()) == 1, "one ASCII character")
_share_below_one = _checked(float, lambda x: 0 <= x < 1, "a number in [0, 1)")


if __name__ == "__main__":
    sys.exit(main())
