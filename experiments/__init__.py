"""The paper's tables and figures, each with one command: see docs/paper.md and `__main__`.

An experiment is a module: ``SIZE`` and ``QUICK`` are its settings, ``prepare`` reads its data (if
it has any), ``grid`` makes its runs from settings and seeds, ``run`` runs one of them, ``show``
writes their results as Markdown, and ``draw`` plots them. `runner` does the rest.
"""

# in the order of docs/paper.md
NAMES = (
    "table1", "table2", "figure3", "figure3_pictures", "figure4", "figure5_left", "table4",
    "enwik8", "contribute", "listops", "forecasting", "pretrained",
    "pretrained_time",
)  # fmt: skip
