"""The training of a run, which goes on where it stopped."""

import reformer_c as rc
from reformer_c.files.atomic import finish_checkpoint
from reformer_c.training.log import read_log
from reformer_c.training.progress import show_progress
from reformer_c.training.state import has_checkpoint

LOG = "log.jsonl"


def fit(model, data, settings, folder, schedule=None, **more):
    """Train a model, or go on with it; returns the lines of its log.

    By default, the learning rate of AdamW rises for a tenth of the steps, and falls to a tenth of
    its peak. `more` are arguments of `Trainer`.
    """
    steps = settings["steps"]
    folder.mkdir(parents=True, exist_ok=True)
    finish_checkpoint(folder)
    if not has_checkpoint(folder):  # left by a run that ended before its first checkpoint
        (folder / LOG).unlink(missing_ok=True)
    trainer = rc.Trainer(
        model,
        data,
        rc.AdamW(model.parameters, lr=settings["lr"]),
        steps=steps,
        schedule=schedule or rc.schedules.cosine(steps, warmup=steps // 10, floor=0.1),
        seed=settings["seed"],
        evaluate_every=settings["evaluate_every"],
        folder=folder,
        save_every=settings["evaluate_every"],
        log=folder / LOG,
        **more,
    )
    if has_checkpoint(folder):
        trainer.resume(folder)
    for _ in show_progress(trainer):
        pass
    return read_log(folder / LOG)


def curve(lines, of=float):
    """[[step, number]] of a log, where `of` makes a number of a held-out result."""
    return [[x["step"], round(of(x["held_out"]), 5)] for x in lines if "held_out" in x]
