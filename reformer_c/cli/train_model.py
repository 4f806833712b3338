"""The model that ``reformer-c train`` trains: new, of --from, or of the folder if it resumes."""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, TypeVar

from ..models.calls import ReformerWithLoss
from ..models.config import ReformerConfig
from ..models.presets import DROPOUTS, preset_config
from ..ops.hashing import choose_num_buckets
from ..runtime import available_memory
from ..text.folders import check_vocabulary
from ..text.screen import show
from ..training.state import config_differences
from .train_data import TrainingData
from .values import given

__all__ = ["PRESET", "create_or_open", "fix_num_buckets", "make_config", "make_model"]

# the default of --preset
PRESET = "tiny"
# of a model that is trained further, what stays whatever the data or the task would determine: the
# size of its vocabulary, and what its local layers see
KEPT = ("vocab_size", "local_num_chunks_after")

Model = TypeVar("Model", bound=ReformerWithLoss)


def make_model(
    folder: Path | None,
    training_data: TrainingData,
    options: Namespace,
    kind: type[Model],
    **task_fields: Any,
) -> Model:
    """The language model of the options, after a check that it can read the tokens."""
    data, held_out, _, tokenizer, fields = training_data
    config = make_config(data.length + data.offset, options, fields | task_fields)
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
    return create_or_open(kind, folder, config, options)


def make_config(length: int, options: Namespace, determined: dict[str, Any]) -> ReformerConfig:
    """The configuration of the preset or of --from, with what data and options determine."""
    if options.start is not None:
        kept = KEPT[:1] if determined.get("is_decoder") else KEPT  # causal: no later chunks
        determined = {name: x for name, x in determined.items() if name not in kept}
    fields = determined | given(
        **dict.fromkeys(DROPOUTS, options.dropout),
        memory_budget=_bytes_of(options.memory_budget),
        num_hashes=options.hashes,
    )
    fields |= dict(options.set)
    if options.start is not None:
        config = ReformerConfig.from_pretrained(options.start).changed(fields)
    else:
        config = preset_config(
            options.preset or PRESET, length, layers=options.layers, width=options.width, **fields
        )
    length -= options.offset  # an offset for which there are too few positions is refused later
    if length > config.num_positions:
        owner = "the model" if options.start is None else repr(options.start)
        most = f"the {config.num_positions} positions of {owner}"
        raise ValueError(f"--length must be at most {most}, got {length}")
    crosses = options.task == "translation" and config.cross_attention == "lsh"
    if options.hashes is not None and not (config.hashes or crosses):
        raise ValueError(f"--hashes needs an LSH layer, got {', '.join(config.attn_layers)}")
    return config


def fix_num_buckets(config: ReformerConfig, length: int) -> ReformerConfig:
    """The configuration with the number of buckets of sequences of `length` tokens, which the first
    batch would choose, although it may have only short ones."""
    chunk = config.lsh_attn_chunk_length
    if config.num_buckets is not None or not config.hashes:
        return config
    if chunk is None or length <= chunk:
        return config
    return config.changed({"num_buckets": choose_num_buckets(length, chunk, length)})


def create_or_open(
    kind: type[Model], folder: Path | None, config: ReformerConfig, options: Namespace
) -> Model:
    """A new model, that of --from, or that of the folder if the run resumes."""
    if not options.resume or folder is None:
        if options.start is None:
            return kind(config, rng=options.seed)
        with warnings.catch_warnings(record=True) as caught:  # about the head of another task
            warnings.simplefilter("always")
            model = kind.from_pretrained(
                options.start, config=config, rng=options.seed, ignore_mismatched_sizes=True
            )
        for warning in caught:
            show(f"--from: {warning.message}")
        return model
    saved = ReformerConfig.from_json(folder)
    if found := config_differences(config, saved):
        raise ValueError(f"--resume: {'; '.join(found)} in {str(folder)!r}")
    # the saved memory budget is used: a share of today's free memory would be other bytes, and
    # results would round differently
    own, kept = config.memory_budget, saved.memory_budget
    share = options.memory_budget is not None and options.memory_budget <= 1
    if own not in (None, kept) and not (share and kept is not None):
        raise ValueError(f"--resume: memory_budget is {own} here and {kept} in {str(folder)!r}")
    return kind.from_pretrained(folder)


def _bytes_of(budget: float | None) -> int | None:
    """A memory budget in bytes; up to 1, it is a share of the memory that is free now."""
    if budget is None:
        return None
    return int(budget * (available_memory() or 0)) if budget <= 1 else int(budget)
