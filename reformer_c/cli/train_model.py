"""The model that ``reformer-c train`` trains: new, or that of the folder if it resumes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..models.config import ReformerConfig
from ..models.model import ReformerModelWithLMHead
from ..models.presets import DROPOUTS, preset_config
from ..runtime import available_memory
from ..text.folders import check_vocabulary
from ..training.state import config_differences
from .train_data import TrainingData
from .values import given

__all__ = ["make_model"]


def make_model(
    folder: Path | None, training_data: TrainingData, options: Namespace
) -> ReformerModelWithLMHead:
    """The model of the preset and the options, after a check that it can read the tokens."""
    data, held_out, _, tokenizer, determined = training_data
    fields = determined | given(
        **dict.fromkeys(DROPOUTS, options.dropout),
        memory_budget=_bytes_of(options.memory_budget),
        num_hashes=options.hashes,
    )
    fields |= dict(options.set)
    positions = data.length + data.offset
    config = preset_config(
        options.preset, positions, layers=options.layers, width=options.width, **fields
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
    # the saved memory budget is used: a share of today's free memory would be other bytes, and
    # results would round differently
    if found := config_differences(config, ReformerConfig.from_json(folder)):
        raise ValueError(f"--resume: {'; '.join(found)} in {str(folder)!r}")
    return ReformerModelWithLMHead.from_pretrained(folder)


def _bytes_of(budget: float | None) -> int | None:
    """A memory budget in bytes; up to 1, it is a share of the memory that is free now."""
    if budget is None:
        return None
    return int(budget * (available_memory() or 0)) if budget <= 1 else int(budget)
