"""The page of a comparison, in the style of a report."""

from __future__ import annotations

from pathlib import Path

from senet.compare.comparison import Comparison
from senet.compare.groups import typed_value
from senet.compare.pictures import MOST_LINES, draw
from senet.compare.table import difference_cells, group_cells
from senet.report.figures import to_svg
from senet.report.markup import Table, fill


def render(found: Comparison) -> bytes:
    """One self-contained file."""
    drawings = draw(found)
    header, *rows = group_cells(found)
    varied = list(found.groups[0].options)
    groups = [
        [str(number), *(typed_value(value) for value in each.options.values()), *row]
        for number, (each, row) in enumerate(zip(found.groups, rows, strict=True), start=1)
    ]
    pairs_header, *pairs = difference_cells(found.shown_pairs)
    return fill(
        Path(__file__).with_name("compare.html"),
        drawings,
        {name: to_svg(drawing.figure) for name, drawing in drawings.items()},
        found=found,
        name=", ".join(map(str, found.folders)),
        groups=Table(["group", *varied, *header], groups),
        pairs=Table(pairs_header, pairs),
        most_lines=MOST_LINES,
    )
