"""A comparison as text for a terminal, as CSV, as JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from senet.command import printable
from senet.compare.comparison import Comparison
from senet.compare.groups import typed_value
from senet.compare.intervals import RATE, Difference, Mean

NONE = "-"
_GAP = "  "


def text(found: Comparison, width: int) -> str:
    """Both tables, in lines of at most ``width`` characters where that is possible."""
    names = [f"{number}{_GAP}{each.name}" for number, each in enumerate(found.groups, start=1)]
    lines = [found.title, f"Accuracy in % of the {found.images} images: mean ± sample standard deviation over seeds"]
    lines = [line for each in lines for line in textwrap.wrap(each, width)]
    lines += ["", *_columns(names, group_cells(found), width)]
    if found.shown_pairs:
        cells = difference_cells(found.shown_pairs)
        lines += ["", *_columns([row[0] for row in cells], [row[1:] for row in cells], width)]
    for said in filter(None, (found.method, found.notes)):
        lines += ["", *(line for each in said for line in textwrap.wrap(each, width, subsequent_indent=_GAP))]
    return "\n".join(printable(line.rstrip()) for line in lines)


def group_cells(found: Comparison) -> list[list[str]]:
    """The heading, and the numbers of each group."""
    rows = [["n", *found.columns.values()]]
    for means in found.means:
        rows.append([str(means["last"].n), *(_shown(means[name]) for name in found.columns)])
    return rows


def difference_cells(differences: Sequence[Difference]) -> list[list[str]]:
    """The heading, and the numbers of each pair."""
    rows = [["pair", "difference", "interval", "method, n", ""]]
    for each in differences:
        pair = f"{each.second + 1} - {each.first + 1}"
        larger = f" of {each.n[0] + each.left_out}" if each.left_out else ""
        interval = NONE if each.low is None else f"{each.low:+.2f} to {each.high:+.2f}"
        method = f"{each.method}, {' and '.join(map(str, each.n))}{larger}"
        rows.append([pair, f"{each.mean:+.2f}", interval, method, verdict(each)])
    return rows


def verdict(difference: Difference) -> str:
    """What may be said of a pair. Only an interval that leaves 0 out names a better group."""
    if difference.why:
        return difference.why
    return "no difference shown" if difference.better is None else f"{difference.better + 1} is better"


def _shown(of: Mean) -> str:
    if of.mean is None:
        return NONE
    return f"{of.mean:.2f}" if of.std is None else f"{of.mean:.2f} ± {of.std:.2f}"


def _columns(names: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> list[str]:
    """The heading is the first of ``cells``. Names that leave no room for the cells stand on lines of their own."""
    names = ["", *names] if len(names) < len(cells) else names
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    rows = [_GAP.join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)) for row in cells]
    longest = max(map(len, names))
    if longest + len(_GAP) + max(len(row.rstrip()) for row in rows) <= width:
        return [f"{name.ljust(longest)}{_GAP}{row}" for name, row in zip(names, rows, strict=True)]
    lines = []
    for name, row in zip(names, rows, strict=True):
        lines += textwrap.wrap(name, width, subsequent_indent=_GAP * 2)
        lines.append(f"{_GAP * 2}{row}")
    return lines


def as_csv(found: Comparison) -> str:
    """A row for each group: its options, n, seeds, mean and standard deviation of each score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    scores = list(found.means[0])
    writer.writerow(
        [*found.groups[0].options, "n", "seeds", *(f"{name}_{of}" for name in scores for of in ("mean", "std"))]
    )
    for each, means in zip(found.groups, found.means, strict=True):
        numbers = [value for name in scores for value in (means[name].mean, means[name].std)]
        options = [typed_value(value) for value in each.options.values()]
        writer.writerow([*options, len(each.runs), " ".join(map(str, each.runs)), *numbers])  # None: an empty cell
    return file.getvalue()


def as_json(found: Comparison) -> str:
    """All of it. Groups are numbered from 1, as in the table."""
    groups: list[dict[str, Any]] = []
    for number, (each, means) in enumerate(zip(found.groups, found.means, strict=True), start=1):
        runs = [{"seed": seed, "run_dir": str(run.folder)} for seed, run in each.runs.items()]
        scores = {name: of._asdict() for name, of in means.items()}
        groups.append({"group": number, "options": each.options, "runs": runs, "scores": scores})
    content = {
        **found.counts,
        "images": found.images,
        "compared": found.score,
        "rate": RATE,
        "groups": groups,
        "differences": [
            asdict(each)
            | {"first": each.first + 1, "second": each.second + 1}
            | {"better": None if each.better is None else each.better + 1}
            for each in found.differences
        ],
        "method": found.method,
        "notes": found.notes,
    }
    return json.dumps(content, indent=1, default=str) + "\n"
