"""How ``reformer-c generate`` chooses tokens: sampling, greedy or beam search."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from .values import option

__all__ = ["generation_options"]

DEFAULTS = {
    "temperature": 0.8, "top_k": 0, "top_p": 0.95, "min_p": 0.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0,
}  # fmt: skip


def generation_options(options: Namespace, saved: Any) -> dict[str, Any]:
    """Options of `generate`: the command's, else those of the model's folder, else `DEFAULTS`."""
    values: dict[str, Any] = {}
    for name, default in DEFAULTS.items():
        found = (getattr(place, name) for place in (options, saved))
        values[name] = next((value for value in found if value is not None), default)
    beams = options.beams or saved.num_beams or 1
    texts = options.texts or saved.num_return_sequences or 1
    if options.beams is None and saved.do_sample is not None and not _sampling_only(options):
        draw = saved.do_sample
    else:
        draw = values["temperature"] > 0 and (beams == 1 or bool(_sampling_only(options)))
    _check(options, beams, texts, draw)
    return values | {
        "temperature": values["temperature"] or 1.0,
        "do_sample": draw,
        "num_beams": beams,
        "num_return_sequences": texts,
    }


def _sampling_only(options: Namespace) -> list[str]:
    """The given options that have an effect only if tokens are sampled."""
    names = ("temperature", "top_k", "top_p", "min_p")
    return [name for name in names if getattr(options, name) is not None]


def _check(options: Namespace, beams: int, texts: int, draw: bool) -> None:
    """Refuse an option that would have no effect."""
    unused: dict[str, list[str]] = {}
    if (options.beams or 1) > 1:
        unused["--beams, which does not sample"] = _sampling_only(options)
    elif options.temperature == 0:
        unused["--temperature 0, which takes the likeliest token"] = _sampling_only(options)[1:]
    if beams == 1 and options.length_penalty is not None:
        unused["a single beam: give --beams N"] = ["length_penalty"]
    for what, names in unused.items():
        for name in names:
            raise ValueError(f"{option(name)} cannot be combined with {what}")
    for character in options.until:
        if character in options.without:
            raise ValueError(f"--until: --without excludes {character!r} from the text")
    if options.stream and beams > 1:
        raise ValueError(
            f"--stream cannot be combined with --beams {beams}: beam search may revise tokens "
            "until its end"
        )
    if options.stream and texts > 1:
        raise ValueError(f"--stream cannot be combined with --texts {texts}: it shows one text")
    if texts > beams and (beams > 1 or not draw):
        raise ValueError(
            f"--texts must be at most {beams} with --beams {beams}, got {texts}; more texts need a "
            "--temperature above 0 and no beams"
        )
