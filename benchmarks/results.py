"""RESULTS.md and results.svg, made from results.jsonl: run this after a benchmark has added rows.

    .venv/bin/python benchmarks/results.py

A line of results.jsonl is one measurement. Rows are only ever added: what missed its target and what was measured again
stays. The plot needs matplotlib (./launch.sh setup report).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import operator
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, groupby
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent
RATIO = "x"  # the unit of a ratio of speeds, which the plot shows
HEAD = """# Results

Made from [results.jsonl](results.jsonl) by `python benchmarks/results.py`; do not edit. Rows are only added: results
that miss their target, and older ones, stay. The targets are this project's own. Numbers are a median, in brackets the
lowest and the highest. A pair is one run of each variant, one after the other. Numbers in brackets after a name point
to the notes below. Machine: the GPU where one computed, then cores x CPU, with family/model where known. "JPEG images"
are CIFAR-10's, JPEG re-encoded (quality about 75, colour subsampled), which costs accuracy. What the numbers mean:
[docs/performance.md](../docs/performance.md).

The file also has the versions of torch and Python of each row, and the commit where it is known; the first rows were
written without it. Two commits in it are not in the history: `b94398b4f` was written by hand, and probably is
`b94398b2a`; `add5e6635` was rebased to `83fa58f`. A note names `make kill-soak`, which is now part of `make faults`.

![Ratios of speeds](results.svg)
"""
WITHOUT_FILE = {
    "by hand": "Measured by hand, with no script.",
    "launch.sh": "Trainings with one of the recipes.",
    "make faults": "Faults injected from outside while a small network trains.",
    "make hosts-soak": "Events on two emulated hosts with SLURM and GlusterFS.",
    "make slurm-soak": "The long forms of the tests on a SLURM cluster.",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement."""

    date: str
    benchmark: str  # a file of this folder, or a key of WITHOUT_FILE
    command: str
    what: str
    value: float  # the median, where n is more than one
    low: float | None = None
    high: float | None = None
    unit: str
    n: int
    of: str  # what n counts
    target: str | None = None  # of the project: "<= 3", ">= 0.98"
    gpu: str | None = None  # what computed, where it was not the CPU
    cpu: str
    amx: bool
    cores: int
    torch: str
    python: str
    commit: str | None = None
    note: str | None = None
    images_per_s: Sequence[int] | None = None  # the two medians that a ratio is of
    parts: dict[str, float] | None = None  # further numbers of the same unit

    @property
    def machine(self) -> str:
        return f"{f'{self.gpu}, ' if self.gpu else ''}{self.cores} x {self.cpu}{', AMX' * self.amx}"

    @property
    def measured(self) -> str:
        """``0.99 (0.91 to 1.02)``, with the unit unless it is a ratio's."""
        numbers = [self.value, *(number for number in (self.low, self.high) if number is not None)]
        digits = max(len(str(number).partition(".")[2].rstrip("0")) for number in numbers)
        middle, *ends = (f"{number:,.{digits}f}" for number in numbers)
        unit = "" if self.unit == RATIO else self.unit
        return " ".join(filter(None, [middle, f"({' to '.join(ends)})" if ends else "", unit]))

    @property
    def met(self) -> bool:
        """Whether the measurement meets its target."""
        assert self.target is not None
        sign, limit = self.target.split()
        return bool({"<=": operator.le, ">=": operator.ge}[sign](self.value, float(limit)))


def read(path: Path = FOLDER / "results.jsonl") -> list[Row]:
    """All measurements, the oldest first. A field that is missing or unknown is a TypeError."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def append(row: Row, path: Path = FOLDER / "results.jsonl") -> None:
    """Add a measurement."""
    with path.open("a") as file:
        file.write(json.dumps({name: value for name, value in asdict(row).items() if value not in (None, "")}) + "\n")


def middle_and_ends(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """The fields ``value``, ``low`` and ``high`` of a row."""
    if len(values) == 1:
        return {"value": round(values[0], digits)}
    names = {"value": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(number, digits) for name, number in names.items()}


def latest(rows: Sequence[Row]) -> list[Row]:
    """Of rows that say the same of the same kind of machine, the last one."""
    return list({(row.benchmark, row.what, row.machine): row for row in rows}.values())


def page(rows: Sequence[Row]) -> str:
    """RESULTS.md."""
    judged = sorted(latest([row for row in rows if row.target]), key=lambda row: (row.benchmark, row.what))
    text = [HEAD, "\n## Targets\n\nThe latest measurement on each kind of machine.\n\n"]
    text.append(_table(["benchmark", "what", "measured", "target", "", "machine"]))
    for row in judged:
        met = "met" if row.met else "**missed**"
        text.append(_table_row(row.benchmark, row.what, row.measured, row.target, met, row.machine))
    by_benchmark = sorted(rows, key=lambda row: row.benchmark)  # stable: the oldest first
    for benchmark, group in groupby(by_benchmark, key=lambda row: row.benchmark):
        text.append(f"\n## {benchmark}\n\n{_about(benchmark)}\n")
        by_command: dict[str, list[Row]] = {}
        for row in group:
            by_command.setdefault(row.command, []).append(row)
        for command, same in by_command.items():
            shown = command.replace("benchmarks/", ".venv/bin/python benchmarks/", 1)
            text.append(f"\n```\n{shown}\n```\n\n")
            text.append(_measurements(same))
    return "".join(text)


def _table(names: Sequence[str]) -> str:
    return _table_row(*names) + "|---" * len(names) + "|\n"


def _table_row(*cells: str | None) -> str:
    return f"| {' | '.join(cell or '' for cell in cells)} |\n"


def _measurements(rows: Sequence[Row]) -> str:
    """A table, and below it a list of the notes, to which the numbers in brackets point."""
    text, notes = [_table(["what", "median (low to high)", "target", "n", "machine", "date"])], []
    for row in rows:
        what = [
            f"{row.what}: {' against '.join(map(str, row.images_per_s))} images/s" if row.images_per_s else row.what
        ]
        parts = ", ".join(f"{name} {value:,}" for name, value in (row.parts or {}).items() if value)
        if note := "; ".join(filter(None, [parts, row.note])):
            notes += [note] if note not in notes else []
            what.append(f"({notes.index(note) + 1})")
        n = f"{row.n} {row.of.removesuffix('s') if row.n == 1 else row.of}"
        text.append(_table_row(" ".join(what), row.measured, row.target, n, row.machine, row.date))
    listed = [f"{number}. {note}\n" for number, note in enumerate(notes, start=1)]
    return "".join([*text, "\n" * bool(notes), *listed])


def _about(benchmark: str) -> str:
    """The first sentence of a benchmark's docstring."""
    if benchmark in WITHOUT_FILE:
        return WITHOUT_FILE[benchmark]
    return (ast.get_docstring(ast.parse((FOLDER / benchmark).read_text())) or "").splitlines()[0]


def plotted(rows: Sequence[Row]) -> list[Row]:
    """The latest ratio of each kind on each kind of machine."""
    return latest([row for row in rows if row.unit == RATIO])


def fingerprint(rows: Sequence[Row]) -> str:
    """The last line of results.svg: what it shows, whichever matplotlib drew it."""
    shown = [(row.what, row.value, row.low, row.high, row.target, row.machine) for row in plotted(rows)]
    return f"<!-- sha256 of the numbers: {hashlib.sha256(json.dumps(shown).encode()).hexdigest()} -->"


def plot(rows: Sequence[Row]) -> Figure:
    """A line for each comparison of speeds: median and range on each kind of machine, and the target. Those near 1 and
    the others have a scale each.
    """
    from matplotlib.figure import Figure

    from senet.report.figures import BLACK, BLUE, GREEN, ORANGE, styled

    found = plotted(rows)
    machines = sorted({row.machine for row in found})
    looks = dict(zip(machines, cycle([(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (BLACK, "D")]), strict=False))
    far = {row.what for row in found if row.value > 1.5}
    groups = [[row for row in found if (row.what in far) is is_far] for is_far in (False, True)]
    heights = [len({row.what for row in group}) for group in groups]
    with styled():
        figure = Figure((4.6, 1.4 + 0.42 * sum(heights)), layout="constrained")
        for axes, group in zip(figure.subplots(2, 1, height_ratios=heights), groups, strict=True):
            _ratios(axes, group, looks)
        figure.axes[0].axvline(1, color=BLACK, linewidth=0.8)
        figure.axes[1].set_xlabel("images/s over those of the other")
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2)
    return figure


def _ratios(axes: Axes, rows: Sequence[Row], looks: dict[str, tuple[str, str]]) -> None:
    """A line for each ``what``; the kinds of machine side by side on it."""
    from senet.report.figures import RED

    lines = list(dict.fromkeys(row.what for row in rows))
    for row in rows:
        colour, marker = looks[row.machine]
        place = lines.index(row.what) + 0.26 * (list(looks).index(row.machine) - (len(looks) - 1) / 2)
        ends = [[row.value - (row.low or row.value)], [(row.high or row.value) - row.value]]
        axes.errorbar(row.value, place, xerr=ends, fmt=marker, color=colour, markersize=5, label=row.machine)
        if row.target:
            limit = float(row.target.split()[1])
            axes.plot(limit, lines.index(row.what), "|", color=RED, markersize=20, label="target")
    axes.set_yticks(range(len(lines)), [fill(line, 24) for line in lines], fontsize=8.5)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def main() -> None:
    """Make both files."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    from senet.report.figures import to_svg

    rows = read()
    (FOLDER / "RESULTS.md").write_text(page(rows))
    (FOLDER / "results.svg").write_bytes(to_svg(plot(rows)) + f"{fingerprint(rows)}\n".encode())
    print(f"{len(rows)} measurements: RESULTS.md, results.svg")


if __name__ == "__main__":
    main()
