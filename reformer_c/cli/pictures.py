"""Pictures for the command line: training data, and how a model's pictures are read."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..models.model import ReformerModelWithLMHead
from ..training.data import Windows
from ..training.pictures import bits_per_dim, read_pictures, split_pictures
from .train_data import TrainingData, held_out_share
from .values import option

__all__ = ["describe_bits", "image_shape_of", "read_picture_data", "read_pictures_for", "sequences"]


def read_picture_data(options: Namespace) -> TrainingData:
    """Read the pictures of ``train --task image``."""
    for name in ("length", "tokenizer", "whole_files", "offset", "bytes_per_token"):
        if getattr(options, name):
            raise ValueError(f"{option(name)} cannot be combined with --task image")
    channels = options.channels or 3
    pictures = read_pictures(options.files, channels=channels)
    train, held_out = split_pictures(pictures, held_out_share(options))
    if options.evaluate_on:
        size = pictures[0].shape[:2]
        held_out = read_pictures(options.evaluate_on, channels=channels, size=size)
    shape = list(pictures[0].shape)
    data = Windows(
        sequences(train), math.prod(shape), batch=options.batch or 1, order=options.order,
        seed=options.seed,
    )  # fmt: skip
    fields = {"vocab_size": 256, "eos_token_id": None, "image_shape": shape}
    return TrainingData(data, sequences(held_out), 1.0, None, fields)


def sequences(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The bytes of each picture in raster order."""
    return [picture.reshape(-1) for picture in pictures]


def image_shape_of(model: Any, folder: str) -> list[int]:
    """Height, width and channels of a model's pictures."""
    language_model = isinstance(model, ReformerModelWithLMHead)
    shape: list[int] | None = model.config.image_shape if language_model else None
    if shape is None:
        raise ValueError(f"DIR must have a model of pictures, got a model of text in {folder!r}")
    return shape


def read_pictures_for(image_shape: Sequence[int], files: Sequence[str]) -> list[np.ndarray]:
    """Read pictures that must have a model's shape."""
    height, width, channels = image_shape
    return read_pictures(files, channels=channels, size=(height, width))


def describe_bits(bits_per_byte: float, image_shape: Sequence[int] | None, digits: int = 3) -> str:
    """A loss in words: in bits per byte of text, or per dim of pictures."""
    if image_shape is None:
        return f"{bits_per_byte:.{digits}f} bits per byte"
    return f"{bits_per_dim(bits_per_byte, math.prod(image_shape)):.{digits}f} bits per dim"
