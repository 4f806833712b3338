"""Train the `book` model on a novel as one sequence for an hour, and generate text.

The novel is segmented by byte-pair encoding, learned from its whole text, with a vocabulary of 320
as in the authors' model. Each step is on the first nine tenths as one sequence; the last tenth is
held out. Bits per byte are bits per token divided by the mean bytes per token.

    python -m benchmarks.novel NOVEL.txt --save runs/novel --plot novel.svg

The folder then holds the model, its tokenizer and the log. The same command resumes an
interrupted run.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import reformer_c as rc
from reformer_c.checks import requires_extra
from reformer_c.files.atomic import finish_checkpoint
from reformer_c.models.presets import DROPOUTS, PRESETS, preset_config
from reformer_c.text.screen import show
from reformer_c.text.subwords import TOKENIZERS
from reformer_c.tools.bench import describe_machine, print_machine
from reformer_c.training.data import Sequences
from reformer_c.training.log import read_log
from reformer_c.training.progress import show_progress
from reformer_c.training.state import has_checkpoint
from reformer_c.training.texts import split_tokens

PIECES = PRESETS["book"].fields["vocab_size"]
PROMPT = 1000
LOG = "log.jsonl"


def learn_pieces(text, folder):
    """Byte-pair encoding of the text itself, into a tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    # single bytes only if they occur, which leaves room for longer pieces
    trainer = trainers.BpeTrainer(vocab_size=PIECES, show_progress=False)
    pieces.train_from_iterator([text], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    pieces.save(str(folder / TOKENIZERS))


def make_trainer(train, held_out, pieces, bytes_per_token, options):
    # the vocabulary has no end token
    fields = {**dict.fromkeys(DROPOUTS, 0.0), "vocab_size": pieces, "eos_token_id": None}
    config = preset_config("book", len(train) + options.offset, **fields)
    model = rc.ReformerModelWithLMHead(config, rng=options.seed)
    return rc.Trainer(
        model,
        Sequences([train], offset=options.offset, bytes_per_token=bytes_per_token),
        rc.AdamW(model.parameters, lr=options.lr, weight_decay=0.0),
        steps=options.steps,
        schedule=rc.schedules.linear(options.steps, warmup=3, floor=0.1),
        seed=options.seed,
        held_out=held_out,
        evaluate_every=options.eval_every,
        folder=options.save,
        save_every=options.eval_every,
        log=Path(options.save, LOG),
    )


def draw(lines, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    rc.plot.training(lines, figure.subplots())
    figure.savefig(file, dpi=120, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("novel", metavar="FILE", help="a long text, UTF-8")
    add("--save", metavar="DIR", required=True, help="folder for model, tokenizer and log")
    add("--steps", type=int, default=55, help="training steps; 55 take an hour on two cores (55)")
    add("--eval-every", type=int, default=5, help="steps between evaluations and saves (5)")
    add("--lr", type=float, default=1.2e-3)
    add("--offset", type=int, default=0,
        help="start the positions of each step at a random one from 0 to N (0)")  # fmt: skip
    add("--write", type=int, default=300, help="tokens to generate at the end (300)")
    add("--seed", type=int, default=0)
    add("--plot", metavar="FILE", help="plot the loss to this file")
    options = parser.parse_args()

    needed = {"tokenizers": "hf", "safetensors": "hf"}
    if options.plot:
        needed["matplotlib"] = "bench"
    for library, extra in needed.items():
        if find_spec(library) is None:
            parser.error(str(requires_extra("a novel", library, extra)))
    print_machine(describe_machine())
    folder = Path(options.save)
    try:
        text = Path(options.novel).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"FILE: {error}")
    if not text:
        parser.error(f"FILE must contain text, got {options.novel!r}")
    finish_checkpoint(folder)
    if not has_checkpoint(folder):  # left by a run that ended before its first checkpoint
        (folder / LOG).unlink(missing_ok=True)
    if not (folder / TOKENIZERS).is_file():
        learn_pieces(text, folder)
    tokenizer = rc.ReformerTokenizerFast.from_pretrained(folder)
    ids = tokenizer.encode(text)
    if tokenizer.decode(ids) != text:
        parser.error(f"--save: the tokenizer in {options.save!r} is that of another text")
    bytes_per_token = len(text.encode()) / len(ids)
    train, held_out = split_tokens(ids, 0.1)
    print(f"{len(train):,} tokens to train on, {len(held_out):,} held out; ", end="")
    print(f"{bytes_per_token:.2f} bytes each")

    trainer = make_trainer(train, held_out, len(tokenizer), bytes_per_token, options)
    if has_checkpoint(folder):
        trainer.resume(folder)
    for _ in show_progress(trainer):
        pass

    lines = read_log(folder / LOG)
    minutes = sum(len(train) / line["tokens_per_second"] for line in lines) / 60
    print(f"{len(lines)} steps, {minutes:.0f} minutes in total; ", end="")
    print(f"held out: {trainer.evaluate().bits_per_byte:.3f} bits per byte")
    if options.plot:
        draw(lines, options.plot)
    prompt = held_out[None, :PROMPT]
    written = trainer.model.generate(
        prompt, max_new_tokens=options.write, do_sample=True, temperature=0.8, top_k=0,
        rng=options.seed,
    )  # fmt: skip
    show(f"\n{tokenizer.decode(prompt[0, -100:])} >>>", end="")
    show(tokenizer.decode(written[0, prompt.shape[1] :]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes the run")
