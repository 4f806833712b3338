"""Translation on the command line: what ``train --pairs`` trains, and what its model writes."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models.encoder_decoder import ReformerEncoderDecoder
from ..models.presets import PRESETS
from ..text.folders import check_vocabulary
from ..training.bleu import bleu, check_bleu
from ..training.evaluation import evaluate_pairs
from ..training.examples import Progress, no_progress
from ..training.pairs import (
    Pairs,
    TextPair,
    bytes_per_target,
    encode_pairs,
    encode_source,
    end_token_of,
    read_pairs,
)
from ..training.progress import show_count
from ..training.state import config_differences
from .folder import check_length, open_tokenizer
from .prepared import Prepared
from .train_data import default_tokenizer, hold_out, read_tokenizer, token_fields
from .train_model import PRESET, fix_num_buckets, make_config

__all__ = ["BATCH", "beam_options", "evaluate_translation", "prepare_translation", "translate"]

# pairs per micro-batch
BATCH = 16
# of Vaswani et al. 2017, section 6.1, as of the authors' models of WMT
DEFAULTS = {"num_beams": 4, "length_penalty": 0.6}


# ---- training ----


def prepare_translation(folder: Path | None, options: Namespace) -> Prepared:
    """The run of an encoder-decoder on pairs."""
    train, held_out = _split_pairs(options)
    tokenizer = read_tokenizer(folder, options) or default_tokenizer(folder, options)
    data = _pairs(train, tokenizer, options, order=options.order, length=options.length)
    longest = options.length or data.length
    held = None
    if held_out:
        held = _pairs(held_out, tokenizer, options, length=longest)
    model = _model(folder, longest, tokenizer, options)
    summary = f"{len(data):,} pairs to train on, {0 if held is None else len(held):,} held out"
    if left_out := data.left_out + (0 if held is None else held.left_out):
        summary += f"\n{left_out:,} pairs of more than {longest:,} tokens are left out"

    def measure(model: Any, *, seed: int) -> dict[str, float]:
        assert held is not None
        return {"bits per byte": evaluate_pairs(model, held, seed=seed).bits_per_byte}

    return Prepared(model, data, None if held is None else measure, tokenizer, summary)


def _split_pairs(options: Namespace) -> tuple[list[TextPair], list[TextPair]]:
    """The pairs to train on, and those held out."""
    pairs = read_pairs(options.files)
    apart = read_pairs(options.evaluate_on) if options.evaluate_on else []
    return hold_out(pairs, apart, options)


def _pairs(
    pairs: Sequence[TextPair], tokenizer: Any, options: Namespace, *, length: int | None,
    order: str = "sequential",
) -> Pairs:  # fmt: skip
    sources, targets = encode_pairs(pairs, tokenizer)
    return Pairs(
        sources, targets, batch=getattr(options, "batch", None),
        batch_tokens=getattr(options, "batch_tokens", None), length=length, order=order,
        seed=options.seed, pad_token_id=tokenizer.pad_token_id or 0,
        bytes_per_token=bytes_per_target(pairs, sources, targets, length),
    )  # fmt: skip


def _model(
    folder: Path | None, length: int, tokenizer: Any, options: Namespace
) -> ReformerEncoderDecoder:
    """A new model of the options, or that of the folder if the run resumes."""
    layers = options.layers or len(PRESETS[options.preset or PRESET].layers)
    fields = token_fields(tokenizer) | {
        "eos_token_id": end_token_of(tokenizer),
        # as the authors' models of WMT: sentences are shorter than a chunk of LSH attention
        "attn_layers": ["full"] * layers,
    }
    decoder = fix_num_buckets(make_config(length, options, fields), length)
    check_vocabulary(tokenizer, decoder.vocab_size)
    # the encoder's layers see both sides of a token
    encoder = replace(decoder, is_decoder=False, local_num_chunks_after=1)
    if not options.resume or folder is None:
        return ReformerEncoderDecoder(encoder, decoder=decoder, rng=options.seed)
    model = ReformerEncoderDecoder.from_pretrained(folder)
    for name, config in (("encoder", encoder), ("decoder", decoder)):
        if found := config_differences(config, model.sides[name].config, f"{name}."):
            raise ValueError(f"--resume: {'; '.join(found)} in {str(folder)!r}")
    return model


# ---- a trained model ----


def beam_options(
    model: ReformerEncoderDecoder, beams: int | None = None, length_penalty: float | None = None
) -> dict[str, Any]:
    """Options of beam search: those given, else those of the model's folder, else `DEFAULTS`."""
    saved, chosen = model.generation_config, dict(DEFAULTS)
    for name, given in (("num_beams", beams), ("length_penalty", length_penalty)):
        found = getattr(saved, name) if given is None else given
        chosen[name] = chosen[name] if found is None else found
    if chosen["num_beams"] == 1:
        if length_penalty is not None:
            raise ValueError("--length-penalty needs several beams: give --beams N")
        del chosen["length_penalty"]
    return chosen


def translate(
    model: ReformerEncoderDecoder,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch: int = BATCH,
    length: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    **beams: Any,
) -> Iterator[str]:
    """The translation of each text, in order, on one line.

    Parameters
    ----------
    batch : int
        Texts that are translated together.
    length : int, optional
        Maximum tokens of a translation; 50 more than twice those of the longest text by default.
    seed : int
        Of the LSH rotations.
    progress : callable, optional
        Called as ``progress(done, total)``, at the beginning and after each batch.
    **beams
        The result of `beam_options`.
    """
    sources = [encode_source(text, tokenizer) for text in texts]
    longest, room = (side.config.num_positions for side in model.sides.values())
    for number, ids in enumerate(sources, 1):
        if len(ids) > longest:
            raise ValueError(
                f"line {number} must have at most {longest} tokens (positions), got {len(ids)}"
            )
    end = end_token_of(tokenizer)
    # of all texts, so that a translation does not depend on its batch
    new = length or 2 * max(map(len, sources), default=0) + 50
    progress(0, len(sources))
    for start in range(0, len(sources), batch):
        rows = tokenizer.pad(sources[start : start + batch], padding_side="right")
        written = model.generate(
            **rows, **beams, do_sample=False, eos_token_id=end, rng=seed,
            # the start token has a position too
            max_new_tokens=min(new, max(1, room - 1)),
        )  # fmt: skip
        for row in written[:, 1:]:
            ids = row[: row.tolist().index(end)] if end in row else row
            # a vocabulary may be larger than its tokenizer
            yield tokenizer.decode(ids[ids < len(tokenizer)]).replace("\n", " ")
        progress(min(start + batch, len(sources)), len(sources))


def evaluate_translation(
    model: ReformerEncoderDecoder, options: Namespace
) -> tuple[dict[str, Any], str]:
    """The BLEU of a model's translations of pairs, and its loss: values, and a text."""
    if options.sliding is not None:
        raise ValueError("--sliding needs a language model")
    check_bleu()
    tokenizer = open_tokenizer(options.model, options.tokenizer, model.decoder.config.vocab_size)
    pairs = read_pairs(options.files)
    longest = min(side.config.num_positions for side in model.sides.values())
    check_length(options, longest)
    data = _pairs(pairs, tokenizer, options, length=options.length or longest)
    begin = time.perf_counter()
    sources, targets = zip(*pairs, strict=True)
    with show_count("translations") as progress:
        written = translate(
            model, tokenizer, sources, seed=options.seed, progress=progress, **beam_options(model)
        )
        score, signature = bleu([*written], targets)
    with show_count("pairs") as progress:
        loss = evaluate_pairs(model, data, seed=options.seed, progress=progress)
    seconds = time.perf_counter() - begin
    text = (
        f"{'bleu':20} {score:.2f}\n{'bits per byte':20} {loss.bits_per_byte:.4f}\n"
        f"{len(pairs):,} pairs, {seconds:.1f} s, {signature}"
    )
    if data.left_out:
        text += f"\nbits per byte: without {data.left_out:,} pairs that are too long"
    values = {"bleu": score, "bleu_signature": signature, "loss": loss.loss}
    values |= {"bits_per_byte": loss.bits_per_byte, "pairs": len(pairs), "seconds": seconds}
    return values, text
