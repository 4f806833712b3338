"""Tables: of text for a terminal, and of HTML for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["html_pairs", "html_table", "text_table"]

# longer values are cut: a table is a summary
LONGEST = 100


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 0) -> str:
    """Lines of columns, each as wide as its longest cell.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : iterable of sequences of str
        Cells of each row.
    left : int
        The first columns, which are aligned on the left; the others are on the right.

    Examples
    --------
    >>> print(text_table(["layer", "parameters"], [["0", "1,024"], ["1", "96"]], left=1))
    layer  parameters
    0           1,024
    1              96
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def html_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 0
) -> str:
    """The same table as HTML with a title; all texts are escaped.

    Examples
    --------
    >>> html_table("a < b", ["x"], [["1"]])
    '<table><caption>a &lt; b</caption><thead><tr><th>x</th></tr></thead><tbody><tr><td>1</td></tr>\
</tbody></table>'
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    body = "".join(f"<tr>{_html_cells(row, left)}</tr>" for row in rows)
    caption = f"<caption>{escape(title)}</caption>"
    return f"<table>{caption}{head}<tbody>{body}</tbody></table>"


def html_pairs(title: str, values: Mapping[str, Any]) -> str:
    """Names and values as a table of HTML; long values are cut.

    Examples
    --------
    >>> html_pairs("run", {"steps": 5}).count("<tr>")
    1
    """
    rows = [(name, _short(str(value))) for name, value in values.items()]
    return html_table(title, [], rows, left=2)


def _html_cells(row: Sequence[str], left: int) -> str:
    style = ' style="text-align:left"'
    return "".join(
        f"<td{style if i < left else ''}>{escape(cell)}</td>" for i, cell in enumerate(row)
    )


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
