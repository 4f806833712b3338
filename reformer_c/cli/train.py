"""``reformer-c train``: train a language model on text files or pictures, or a model for another
task."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checks import requires_extra
from ..files.atomic import finish_checkpoint
from ..models.model import ReformerModelWithLMHead
from ..models.presets import PRESETS
from ..text.folders import save_tokenizer
from ..text.screen import show
from ..training.metrics import describe_metrics
from ..training.optim import Adafactor, AdamW, Optimizer
from ..training.progress import show_progress
from ..training.schedules import Schedule, schedules
from ..training.state import has_checkpoint, read_state
from ..training.train import Trainer
from . import tasks
from .pictures import describe_bits, read_picture_data
from .prepared import Prepared
from .train_data import read_data
from .train_model import PRESET, make_model
from .values import given, option


def run(options: Namespace) -> None:
    folder = Path(options.save) if options.save else None
    _check_options(options)
    _check_folder(folder, options)
    prepare = tasks.prepare if options.task in tasks.TASKS else _prepare
    run = prepare(folder, options)
    trainer = Trainer(
        run.model,
        run.data,
        _optimizer(run.model, options),
        steps=options.steps,
        schedule=_schedule(options),
        accumulate=options.accumulate,
        max_grad_norm=options.clip,
        seed=options.seed,
        held_out=run.held_out,
        held_out_bytes_per_token=run.held_out_bytes_per_token,
        evaluate_every=options.eval_every,
        folder=folder,
        save_every=options.save_every,
        keep=options.keep,
        log=options.log,
    )
    if options.resume and folder is not None:
        # --steps may be raised, which changes the schedule from here on
        derived = ["schedule.steps", *(["schedule.warmup"] if options.warmup is None else [])]
        for changed in trainer.resume(folder, allow=derived):
            show(f"resumed: {changed} in {str(folder)!r}")
    if run.tokenizer is not None and folder is not None:
        # before the first step, so that every checkpoint has it
        save_tokenizer(run.tokenizer, folder)
    show(f"{run.model!r}\n{run.summary}")
    found = None
    try:
        for report in show_progress(trainer):
            found = report.held_out
    except (KeyboardInterrupt, SystemExit):
        if folder is not None:
            show(f"saved: {folder}, step {trainer.step}")
        raise
    if run.held_out is not None:
        found = trainer.measure_held_out() if found is None else found
        if isinstance(found, Mapping):
            show(f"held out: {describe_metrics(found)}")
        else:
            show(f"held out: {describe_bits(found, run.model.config.image_shape)}")
    if folder is not None:
        show(f"saved: {folder}")


def _prepare(folder: Path | None, options: Namespace) -> Prepared:
    """The run of a language model of texts or pictures."""
    found = read_picture_data(options) if options.task == "image" else read_data(folder, options)
    data, held_out, held_out_bytes, tokenizer, _ = found
    causal = {"is_decoder": True, "local_num_chunks_after": 0}  # whatever --from was trained for
    model = make_model(folder, found, options, ReformerModelWithLMHead, **causal)
    if tokenizer is None and options.bytes_per_token is None and options.task != "image":
        raise ValueError(
            "--bytes-per-token must be given with .npy files, for losses in bits per byte; or "
            "--tokenizer, if the tokens were made by one: DIR, FILE or bytes"
        )
    summary = found.summary
    if data.bytes_per_token != 1.0:
        summary += f"\n{tokenizer or 'tokens'}, {data.bytes_per_token:.2f} bytes each"
    ratio = held_out_bytes if held_out else None
    return Prepared(model, data, held_out or None, tokenizer, summary, ratio)


def _check_options(options: Namespace) -> None:
    """Refuse an option that would have no effect."""
    if options.channels is not None and options.task != "image":
        raise ValueError("--channels needs --task image")
    if options.batch_tokens is not None and options.task != "translation":
        raise ValueError("--batch-tokens needs --pairs")
    for name in ("problem", "text_column", "label_column"):
        if getattr(options, name) is not None and options.task != "classification":
            raise ValueError(f"{option(name)} cannot be combined with --task {options.task}")
    for name in ("preset", "layers", "width") if options.start is not None else ():
        if getattr(options, name) is not None:
            raise ValueError(f"{option(name)} cannot be combined with --from")
    if options.start is not None and options.task == "translation":
        raise ValueError("--from cannot be combined with pairs")
    if options.eval_every and not options.evaluate_on and options.held_out == 0:
        raise ValueError("--eval-every needs held-out text, got --held-out 0")
    if options.floor is not None and options.schedule not in ("cosine", "linear"):
        raise ValueError(f"--floor cannot be combined with --schedule {options.schedule}")
    set_fields = dict(options.set)
    for name, field in (
        ("layers", "attn_layers"), ("width", "hidden_size"), ("hashes", "num_hashes"),
        ("dropout", "hidden_dropout_prob"), ("memory_budget", "memory_budget"),
    ):  # fmt: skip
        if getattr(options, name) is not None and field in set_fields:
            raise ValueError(f"{option(name)} cannot be combined with {field} in --set or --config")


def _check_folder(folder: Path | None, options: Namespace) -> None:
    if folder is None:
        for name in ("resume", "save_every", "keep"):
            if getattr(options, name):
                raise ValueError(f"{option(name)} needs --save DIR")
        return
    if find_spec("safetensors") is None:
        raise requires_extra("--save", "safetensors", "cli")
    finish_checkpoint(folder)
    found = has_checkpoint(folder)
    if options.resume and not found:
        raise ValueError(f"--resume: there is no checkpoint in {str(folder)!r}")
    if options.resume:
        state = read_state(folder)
        least = max(state["step"], state.get("schedule", {}).get("steps", 0))
        if options.steps < least:
            raise ValueError(
                f"--steps must be at least the {least} of the run that resumes, got {options.steps}"
            )
    if not options.resume and found:
        raise ValueError(
            f"--save: there is a checkpoint in {str(folder)!r}: add --resume to continue it, or "
            "choose another folder"
        )
    if not options.resume and (folder / "config.json").exists():
        raise ValueError(
            f"--save: there is a model in {str(folder)!r}, which would be replaced: choose another "
            "folder"
        )


def _optimizer(model: Any, options: Namespace) -> Optimizer:
    preset = PRESETS[options.preset or PRESET]
    settings = given(lr=options.lr, weight_decay=options.weight_decay)
    if (options.optimizer or preset.optimizer) == "adamw":
        return AdamW(model.parameters, **given(lr=preset.lr) | settings)
    if options.lr is not None:
        # a given rate turns off Adafactor's own step sizes
        settings |= {"relative_step": False, "scale_parameter": False}
    return Adafactor(model.parameters, **settings)


def _schedule(options: Namespace) -> Schedule:
    make = getattr(schedules, options.schedule)
    warmup = min(100, options.steps // 10) if options.warmup is None else options.warmup
    if options.schedule in ("constant", "rsqrt"):
        schedule: Schedule = make(warmup=warmup)
    else:
        floor = 0.1 if options.floor is None else options.floor
        schedule = make(options.steps, warmup=warmup, floor=floor)
    return schedule
