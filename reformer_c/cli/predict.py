"""``reformer-c predict``: the predictions of a model, one line of JSON for each example."""

from __future__ import annotations

import sys
from argparse import Namespace

from ..text.screen import show, show_json
from ..training.classification import Classification
from ..training.records import read_records
from .folder import open_model
from .tasks import open_task


def run(options: Namespace) -> None:
    model = open_model(options.model)
    task = open_task(model, options)
    records = read_records(options.files)
    if isinstance(task, Classification) and (
        note := task.note(task.is_cut(record, task.encode(record)) for record in records)
    ):
        show(note, sys.stderr)
    for record, found in zip(records, task.predict(model, records, seed=options.seed), strict=True):
        own = {"id": record.values["id"]} if "id" in record.values else {}
        show_json(own | found)
