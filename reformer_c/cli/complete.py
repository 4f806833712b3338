"""``reformer-c complete``: continue pictures with a trained model, into one PNG file."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from ..text.screen import show
from ..training.pictures import write_pictures
from ..training.progress import progress_bar
from .folder import open_model
from .pictures import image_shape_of, read_pictures_for


def run(options: Namespace) -> None:
    output = Path(options.output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output must be a .png file, got {options.output!r}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output: there is no folder {str(output.parent)!r}")
    if options.temperature == 0 and options.samples > 1:
        raise ValueError(f"--samples must be at most 1 with --temperature 0, got {options.samples}")
    model = open_model(options.model)
    shape = image_shape_of(model, options.model)
    pictures = read_pictures_for(shape, options.files)
    height, width, channels = shape
    if height < 2:
        raise ValueError(f"DIR must have a model of pictures of at least 2 rows, got {height}")
    rows = min(height - 1, max(1, round(options.keep * height)))
    missing = (height - rows) * width * channels
    bar = progress_bar(missing * len(pictures), 0, "byte", sys.stderr)
    streamer = None if bar is None else lambda _: bar.update()
    # one at a time: the caches of all samples of many pictures might exceed the memory
    lines = [_complete(model, picture, rows, options, streamer) for picture in pictures]
    if bar is not None:
        bar.close()
    write_pictures(output, lines)
    show(f"saved: {output}: {rows} of {height} rows kept, {options.samples} completions, original")


def _complete(
    model: Any, picture: np.ndarray, rows: int, options: Namespace, streamer: Any
) -> list[np.ndarray]:
    """The first rows of a picture, completions of them, and the picture."""
    prompt = picture[:rows].reshape(1, -1).astype(np.int64)
    ids = model.generate(
        prompt,
        max_new_tokens=picture.size - prompt.size,
        do_sample=options.temperature > 0,
        temperature=options.temperature or 1.0,
        top_k=options.top_k,
        top_p=options.top_p,
        num_return_sequences=options.samples,
        eos_token_id=None,
        rng=options.seed,
        streamer=streamer,
    )
    kept = np.full_like(picture, 128)
    kept[:rows] = picture[:rows]
    return [kept, *ids.astype(np.uint8).reshape(-1, *picture.shape), picture]
