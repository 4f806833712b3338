"""``reformer-c complete``: continue pictures with a trained model, into one PNG file."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

from ..training.pictures import write_pictures
from ..training.progress import progress_bar
from .folder import open_model
from .pictures import image_shape_of, read_pictures_for, sequences


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
    kept = rows * width * channels
    prompts = np.stack(sequences(pictures))[:, :kept].astype(np.int64)
    missing = height * width * channels - kept
    bar = progress_bar(missing, 0, "byte", sys.stderr)
    ids = model.generate(
        prompts,
        max_new_tokens=missing,
        do_sample=options.temperature > 0,
        temperature=options.temperature or 1.0,
        top_k=options.top_k,
        top_p=options.top_p,
        num_return_sequences=options.samples,
        eos_token_id=None,
        rng=options.seed,
        streamer=None if bar is None else lambda _: bar.update(),
    )
    if bar is not None:
        bar.close()
    completed = ids.astype(np.uint8).reshape(len(pictures), options.samples, *shape)
    beginnings = np.stack(pictures)
    beginnings[:, rows:] = 128
    lines = [
        [beginning, *samples, picture]
        for beginning, samples, picture in zip(beginnings, completed, pictures, strict=True)
    ]
    write_pictures(output, lines)
    print(f"saved: {output}: {rows} of {height} rows kept, {options.samples} completions, original")
