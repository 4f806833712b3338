"""The paper's Table 2: can LSH attention replace full attention?

In a text 0w0w, where w is random symbols, the second half can be predicted by attending to the
first. One layer is trained to do so with full shared-QK attention and with LSH attention of 1, 2
and 4 rounds, and each is evaluated with full attention and with 1, 2, 4 and 8 rounds. Local
attention is the control: it sees at most two chunks and must fail.

    python -m benchmarks.duplication --save runs/duplication      # length 1,024, within an hour
    python -m benchmarks.duplication --quick                      # length 128, in minutes
    python -m benchmarks.duplication --lengths 512 1024 2048 4096 8192 16384 32768 65536 \\
        --train LSH-4 local --warmup 100 --target 0.98 --save runs/long

Lengths are trained one after the other: a model for longer texts is initialised from the one for
shorter texts, its positions by stretching. `--lengths 1024` starts with 1,024. Everything is saved:
the same command resumes an interrupted run.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

import reformer_c as rc
from reformer_c.files.checkpoint import write_atomically
from reformer_c.tools.bench import describe_machine, print_machine
from reformer_c.training.log import read_log
from reformer_c.training.state import has_checkpoint

SYMBOLS = 127
ROUNDS = (8, 4, 2, 1)
TRAINED = ("full", "LSH-4", "LSH-2", "LSH-1", "local")
EVALUATED = ("full", *(f"LSH-{rounds}" for rounds in ROUNDS))
EMBEDDINGS = "reformer.embeddings."
POSITIONS = EMBEDDINGS + "position_embeddings.embedding.weight"
# Kitaev et al. 2020, table 2, in per cent
PAPER = {
    "full": (100, 94.8, 92.5, 76.9, 52.5),
    "LSH-4": (0.8, 100, 99.9, 99.4, 91.9),
    "LSH-2": (0.8, 100, 99.9, 98.1, 86.8),
    "LSH-1": (0.8, 99.9, 99.6, 94.8, 77.9),
}


class Duplication:
    """Batches of 0w0w, a function of (seed, step)."""

    def __init__(self, length, batch, seed=0):
        self.length, self.batch_size, self.seed = length, batch, seed

    def batch(self, step):
        rng = np.random.default_rng((self.seed, self.length, step))
        half = rng.integers(1, SYMBOLS + 1, (self.batch_size, self.length // 2))
        half[:, 0] = 0
        return np.tile(half, 2)

    def describe(self):
        return {"length": self.length, "batch": self.batch_size, "seed": self.seed}


class SecondHalf:
    """A language model whose loss covers only the predictable part, the second w."""

    def __init__(self, model):
        self.model, self.parameters = model, model.parameters
        self.save_pretrained = model.save_pretrained

    def loss_and_gradients(self, input_ids, *, labels, rng):
        labels = labels.copy()
        labels[:, : labels.shape[1] // 2 + 1] = -100
        return self.model.loss_and_gradients(input_ids, labels=labels, rng=rng)


def make_model(attention, length, chunk, seed):
    """One layer, width and feed-forward 256, 4 heads, learned positions.

    Word and position embeddings are initialised with the same standard deviation, 0.5.
    """
    config = rc.ReformerConfig(
        vocab_size=SYMBOLS + 1, hidden_size=256, feed_forward_size=256, num_attention_heads=4,
        attention_head_size=64, attn_layers=["local" if attention == "local" else "lsh"],
        local_attn_chunk_length=chunk, is_decoder=True, axial_pos_embds=False,
        max_position_embeddings=length, hidden_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0, lsh_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = rc.ReformerModelWithLMHead(config, rng=seed)
    for name, array in model.parameters.items():
        if name.startswith(EMBEDDINGS):
            array *= 0.5 / config.initializer_range
    return model


def grow(short, long):
    """Initialise a model for longer texts from one trained on shorter texts.

    In 0w0w the symbol after position i of the second half is at i + 1 - length / 2. The positions
    of each half are stretched, so that nearby positions keep similar embeddings.
    """
    for name, array in long.items():
        if name != POSITIONS:
            array[...] = short[name]
    few, many = len(short[POSITIONS]), len(long[POSITIONS])
    first = np.arange(many // 2)
    places = np.concatenate([first * few // many, (first + 1) * few // many + few // 2 - 1])
    long[POSITIONS] = short[POSITIONS][places]


def attend(model, name, length):
    """Set a model's attention to `name`. A chunk of the whole text is full attention."""
    if name == "full":
        model.config.lsh_attn_chunk_length = length
    elif name != "local":
        model.config.lsh_attn_chunk_length = model.config.local_attn_chunk_length
        model.config.num_hashes = int(name.removeprefix("LSH-"))


def accuracy(model, name, length, *, texts, seed):
    """Share of the second w that is predicted correctly with the attention `name`."""
    attend(model, name, length)
    right = count = 0
    data = Duplication(length, 1, seed=seed)
    for i in range(max(1, min(texts, texts * 1024 // length))):  # beyond 1,024, as many tokens
        ids = data.batch(i)
        guess = model(ids, rng=(seed, i)).logits[:, length // 2 : -1].argmax(-1)
        right += np.count_nonzero(guess == ids[:, length // 2 + 1 :])
        count += guess.size
    return right / count


def train(model, name, length, options, steps, folder):
    """Train at one length until the target is reached: (steps, seconds, accuracy)."""
    attend(model, name, length)
    batch = options.batch or max(1, min(16, 8192 // length))
    trainer = rc.Trainer(
        SecondHalf(model),
        Duplication(length, batch, seed=options.seed),
        rc.AdamW(model.parameters, lr=options.lr, weight_decay=0.0),
        steps=steps,
        schedule=rc.schedules.constant(warmup=options.warmup),
        max_grad_norm=math.inf,
        seed=options.seed,
        folder=folder,
        save_every=200 if folder else 0,
        log=folder and folder / "log.jsonl",
    )
    spent = share = 0.0
    if folder and has_checkpoint(folder):
        trainer.resume(folder)
        lines = read_log(folder / "log.jsonl")[: trainer.step]
        spent = sum(batch * length / line["tokens_per_second"] for line in lines)
    for report in trainer:
        spent += batch * length / report.tokens_per_second
        late = options.seconds is not None and spent > options.seconds
        if report.step % 25 and report.step != steps and not late:
            continue
        # one round sometimes misses the key; eight rounds find it
        judge = name if name in ("full", "local") else "LSH-8"
        share = accuracy(model, judge, length, texts=8, seed=options.seed + 1)
        attend(model, name, length)
        print(
            f"\r  {name}, length {length:,}, step {report.step}: loss {report.loss:.3f}, "
            f"{100 * share:.1f} %, {spent:.0f} s ",
            end="", flush=True,
        )  # fmt: skip
        if share >= options.target or late:
            break
    print()
    if folder:
        trainer.save(folder)
    return trainer.step, spent, share


def run(name, options, results, save):
    """Train one row at all lengths and evaluate it, skipping what `results` contains."""
    done = results.setdefault(name, {})
    last = None
    for length in options.lengths:
        folder = options.save and Path(options.save, f"{name}-{length}")
        if str(length) in done:
            if folder:
                last = rc.ReformerModelWithLMHead.from_pretrained(folder).parameters
            continue
        model = make_model(name, length, options.chunk, options.seed)
        if last is not None:
            grow(last, model.parameters)
        last = model.parameters
        limit = options.steps
        others = [row[str(length)]["steps"] for row in results.values() if str(length) in row]
        if name == "local" and others:
            limit = min(limit, max(others))  # the control trains as long as the slowest row
        steps, seconds, share = train(model, name, length, options, limit, folder)
        columns = ("local",) if name == "local" else EVALUATED
        grid = {
            column: accuracy(model, column, length, texts=options.texts, seed=options.seed + 2)
            for column in columns
        }
        done[str(length)] = {
            "steps": steps, "seconds": seconds, "accuracy": share, "evaluated": grid,
        }  # fmt: skip
        save(results)
        if share < options.target:
            break  # longer texts are harder


def print_grid(results, length):
    print(f"\nlength {length:,}, accuracy in per cent (in brackets: the paper's, at 1,024)")
    print("trained  steps seconds  " + "".join(f"{name:>15}" for name in EVALUATED))
    for name, lengths in results.items():
        row = lengths.get(str(length))
        if row is None:
            continue
        line = f"{name:7} {row['steps']:6} {row['seconds']:7.0f}  "
        if name == "local":
            line += f"{100 * row['evaluated']['local']:15.1f} with itself: the control"
        for i, column in enumerate(EVALUATED if name != "local" else ()):
            paper = f" ({PAPER[name][i]:5.1f})"
            line += f"{100 * row['evaluated'][column]:7.1f}{paper}"
        print(line)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--lengths",
        type=int,
        nargs="+",
        default=[256, 512, 1024],
        help="trained one after the other (256 512 1024)",
    )
    add("--train", nargs="+", choices=TRAINED, default=list(TRAINED), help="rows (all)")
    add("--chunk", type=int, default=64, help="tokens per chunk (64)")
    add("--quick", action="store_true", help="length 128 in chunks of 16")
    add("--steps", type=int, default=5000, help="maximum steps of a row (5000)")
    add("--seconds", type=float, help="maximum seconds of a row")
    add("--target", type=float, default=0.999, help="accuracy at which training ends (0.999)")
    add("--batch", type=int, help="texts per step (16, fewer beyond length 512)")
    add("--texts", type=int, default=32, help="texts per evaluation (32)")
    add("--warmup", type=int, default=200, help="warm-up steps at each length (200)")
    add("--lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add(
        "--save",
        metavar="DIR",
        help="folder for checkpoints and results.json, from which a run resumes",
    )
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.chunk = [128], 16
    if any(length < 4 or length % 2 for length in options.lengths):
        parser.error("--lengths must be even numbers >= 4")
    return options


def main():
    options = parse()
    print_machine(describe_machine())
    file = options.save and Path(options.save, "results.json")
    results = json.loads(file.read_text()) if file and file.is_file() else {}

    def save(results):
        if file:
            write_atomically(file, lambda part: part.write_text(json.dumps(results, indent=2)))

    for name in options.train:
        run(name, options, results, save)
    for length in options.lengths:
        print_grid(results, length)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes the run")
