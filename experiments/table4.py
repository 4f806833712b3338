"""Table 4: translation from English to German, with reversible and with ordinary residual layers.

Models of the same size are trained on the same batches: with reversible layers and with ordinary
residuals; the setting `models` adds reversible layers with label smoothing, "smoothed". Layers have
full attention, as in the paper: sentences are short. One table of word vectors serves both sides
and the output layer. As in Vaswani et al. (2017), the learning rate falls with the root of the
step, and what translates is the mean of the last checkpoints, one at each evaluation: so a training
of fewer steps is the beginning of one of more.

Translations are those of beam search, and BLEU is sacrebleu's. Intervals are those of the same
resampled sentences for all models (Koehn 2004): of a BLEU, and of the differences from the first.

FILE: the sources and the targets to train on, and those to test on, four aligned files; or
catalogues of gettext (.mo), of which a tenth is tested. Without it, the sentences are numbers in
words.
"""

import gettext
import itertools
import zlib
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import reformer_c as rc
from reformer_c.cli.translation import translate
from reformer_c.models.presets import DROPOUTS
from reformer_c.training.averaging import average_models
from reformer_c.training.bleu import bleu, check_bleu
from reformer_c.training.evaluation import evaluate_pairs
from reformer_c.training.pairs import (
    Pairs,
    TextPair,
    bytes_per_target,
    encode_pairs,
    end_token_of,
    read_pairs,
)
from reformer_c.training.state import kept_models

from .language import of
from .runner import Refused, each_of
from .training import curve, fit

SEEDS = [0]
SIZE = {
    "models": ["reversible", "ordinary", "smoothed"], "layers": 3, "width": 128, "heads": 4,
    "dropout": 0.1, "vocabulary": 6000, "batch_tokens": 1024, "steps": 1400, "warmup": 400,
    "lr": 2e-3, "averaged": 3, "evaluate_every": 100, "validated": 500, "beams": 4,
    "length_penalty": 0.6, "longest": 100, "tested": 1000, "resamples": 1000,
}  # fmt: skip
QUICK = {
    "layers": 1, "width": 16, "heads": 2,
    "vocabulary": None, "batch_tokens": 120, "steps": 4, "warmup": 1, "averaged": 2,
    "evaluate_every": 2, "validated": 8, "longest": 30, "tested": 4, "resamples": 10,
}  # fmt: skip
# whether layers are reversible, and label smoothing
MODELS = {
    "reversible": (True, 0.0),
    "ordinary": (False, 0.0),
    "smoothed": (True, 0.1),
}
LABELS = {
    "reversible": "reversible layers",
    "ordinary": "ordinary residuals",
    "smoothed": "reversible layers, label smoothing 0.1",
}
END, PAD, UNKNOWN = "</s>", "<pad>", "<unk>"


@dataclass(frozen=True)
class Sentences:
    """Pairs to train on, to validate and to test, and their tokenizer."""

    train: list
    validated: list
    test: list
    tokenizer: Any
    about: dict


def prepare(files, size):
    try:
        check_bleu()
    except ImportError as error:
        raise ValueError(str(error)) from error
    train, test = read(files)
    if len(train) <= size["validated"]:
        raise ValueError(f"must have more than {size['validated']} pairs, got {len(train)}")
    train, validated = train[: -size["validated"]], train[-size["validated"] :]
    tokenizer = make_tokenizer(train, size["vocabulary"])
    tokens = [ids for side in encode_pairs(train, tokenizer) for ids in side]
    about = {
        "pairs": ", ".join(Path(file).name for file in files) or "numbers in words",
        "train": len(train),
        "test": len(test[: size["tested"]]),
        # of the ids, so that another version of the tokenizer is noticed
        "crc32": zlib.crc32(np.concatenate(tokens)),
    }
    return Sentences(train, validated, test[: size["tested"]], tokenizer, about)


def read(files):
    """The pairs to train on, and those to test on."""
    if files and all(Path(file).suffix == ".mo" for file in files):
        pairs = list(dict.fromkeys(pair for file in files for pair in messages(file)))
        return [pair for i, pair in enumerate(pairs) if i % 10], pairs[::10]
    if files and len(files) != 4:
        raise ValueError(f"table4 reads four aligned files, or .mo, got {len(files)} files")
    return (read_pairs(files[:2]), read_pairs(files[2:])) if files else numbers()


def messages(file):
    """The messages of one line of a catalogue, and their translations."""
    with open(file, "rb") as stream:
        catalogue = gettext.GNUTranslations(stream)._catalog
    for source, target in catalogue.items():
        if isinstance(source, str) and source and "\n" not in source + target:
            yield TextPair(source, target)


def numbers():
    """Pairs of digits in words, each sentence in one of the parts."""
    english = "one two three four five six".split()
    german = "eins zwei drei vier fünf sechs".split()
    words = [*itertools.product(range(6), repeat=3)]
    pairs = [TextPair(*(" ".join(x[i] for i in w) for x in (english, german))) for w in words]
    return [pair for i, pair in enumerate(pairs) if i % 10], pairs[::10]


def make_tokenizer(pairs, vocabulary):
    """Byte pair encoding of both sides, of `vocabulary` tokens; of bytes, if that is None."""
    if vocabulary is None:
        return rc.ByteTokenizer()
    try:
        from tokenizers import ByteLevelBPETokenizer
    except ImportError as error:
        raise ValueError("a vocabulary needs tokenizers (the extra hf)") from error
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        (text for pair in pairs for text in pair), vocabulary, special_tokens=[PAD, UNKNOWN, END],
        show_progress=False,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        trained.save(str(file))
        return rc.ReformerTokenizerFast(file, pad_token=PAD, unk_token=UNKNOWN, eos_token=END)


def grid(size, seeds):
    common = {name: value for name, value in size.items() if name != "models"}
    if unknown := set(size["models"]) - set(MODELS):
        raise Refused(f"--set: models must be of {', '.join(MODELS)}, got {', '.join(unknown)}")
    return each_of(size["models"])(common, seeds)


def make_model(settings, tokenizer):
    reversible, smoothing = MODELS[settings["model"]]
    width, heads = settings["width"], settings["heads"]
    decoder = rc.ReformerConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end_token_of(tokenizer), is_decoder=True, hidden_size=width,
        feed_forward_size=4 * width, num_attention_heads=heads, attention_head_size=width // heads,
        attn_layers=["full"] * settings["layers"], reversible=reversible, shared_embeddings=True,
        label_smoothing=smoothing, position_embedding_type="sinusoidal", axial_norm_std=0.1,
        axial_pos_embds=False, max_position_embeddings=2048, initializer_range=0.05,
        **dict.fromkeys(DROPOUTS, settings["dropout"]),
    )  # fmt: skip
    encoder = replace(decoder, is_decoder=False)
    return rc.ReformerEncoderDecoder(encoder, decoder=decoder, rng=settings["seed"])


def run(settings, data, folder):
    model, tokenizer = make_model(settings, data.tokenizer), data.tokenizer

    def batches(pairs, **more):
        sources, targets = encode_pairs(pairs, tokenizer)
        return Pairs(
            sources, targets, batch_tokens=settings["batch_tokens"],
            pad_token_id=tokenizer.pad_token_id,
            bytes_per_token=bytes_per_target(pairs, sources, targets, more.get("length")), **more,
        )  # fmt: skip

    validated = batches(data.validated, order="sequential")

    def held_out(model, seed):
        return {"bits per byte": evaluate_pairs(model, validated, seed=seed).bits_per_byte}

    train = batches(data.train, length=settings["longest"], seed=settings["seed"])
    lines = fit(
        model, train, settings, folder, rc.schedules.rsqrt(warmup=settings["warmup"]),
        held_out=held_out, keep=2 * settings["averaged"],
    )  # fmt: skip
    # an interruption leaves a checkpoint, too
    evaluations = [x["step"] for x in lines if "held_out" in x]
    last = [x for x in kept_models(folder) if int(x.name.split("-")[1]) in evaluations]
    last = last[-settings["averaged"] :]
    model = average_models(rc.ReformerEncoderDecoder.from_pretrained(place) for place in last)
    sources, targets = zip(*data.test, strict=True)
    written = [
        *translate(
            model, tokenizer, sources, length=settings["longest"], num_beams=settings["beams"],
            length_penalty=settings["length_penalty"],
        )
    ]  # fmt: skip
    (folder / "translations.txt").write_text("".join(f"{text}\n" for text in written), "utf-8")
    score, signature = bleu(written, targets)
    return {
        "held_out": curve(lines, itemgetter("bits per byte")),
        "averaged": {
            "checkpoints": len(last),
            "bits per byte": round(held_out(model, 0)["bits per byte"], 5),
        },
        "passes": round(settings["steps"] / train.num_batches, 2),
        "bleu": round(score, 2),
        "resampled": resampled(written, targets, settings["resamples"]),
        "signature": signature,
    }


def resampled(written, targets, count):
    """BLEU of sentences drawn with replacement, the same for each model."""
    from sacrebleu.metrics import BLEU

    # the counts of a sentence, of which BLEU takes the sum, do not depend on the order
    counter = BLEU(effective_order=True)
    found = [
        counter.sentence_score(text, [right]) for text, right in zip(written, targets, strict=True)
    ]
    counts = np.array([[*x.counts, *x.totals, x.sys_len, x.ref_len] for x in found])
    rng, scores = np.random.default_rng(0), []
    for _ in range(count):
        total = counts[rng.integers(0, len(counts), len(counts))].sum(0).tolist()
        score = BLEU.compute_bleu(total[:4], total[4:8], *total[8:], smooth_method="exp").score
        scores.append(round(score, 2))
    return scores


# ---- results ----


def interval(scores):
    """The 95 % interval of resampled numbers, in words."""
    low, high = np.percentile(scores, [2.5, 97.5])
    return f"{low:.1f} to {high:.1f}"


def show(runs):
    lines = [
        "| model | BLEU | 95 % | above the first, 95 % | held-out bits per byte |",
        "|---|---|---|---|---|",
    ]
    for seed in dict.fromkeys(run["settings"]["seed"] for run in runs):
        some = of(runs, seed=seed)
        base = some[0]
        for run in some:
            result, more = run["result"], ""
            if run is not base:
                mean = result["bleu"] - base["result"]["bleu"]
                both = np.subtract(result["resampled"], base["result"]["resampled"])
                more = f"{mean:+.1f}, {interval(both)}"
            label = LABELS[run["settings"]["model"]] + (f", seed {seed}" if seed else "")
            lines.append(
                f"| {label} | {result['bleu']:.1f} | {interval(result['resampled'])} | {more} "
                f"| {result['averaged']['bits per byte']:.3f} |"
            )
    return "\n".join([*lines, "", f"BLEU: {runs[0]['result']['signature']}"])


def draw(runs, figure):
    ax = figure.subplots()
    for run in runs:
        ax.plot(*zip(*run["result"]["held_out"], strict=True), label=run["name"])
    ax.set(xlabel="step", ylabel="held-out bits per byte")
    ax.legend()
