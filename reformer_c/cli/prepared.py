"""What ``reformer-c train`` prepares for each task, before the first step."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Prepared"]


class Prepared(NamedTuple):
    """A model and its data: `held_out`, texts or a function, and `held_out_bytes_per_token` are
    those of `Trainer`; `summary` describes the data."""

    model: Any
    data: Any
    held_out: Any
    tokenizer: Any
    summary: str
    held_out_bytes_per_token: float | None = None
