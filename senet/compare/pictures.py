"""The figures of a comparison, each with its alternative text."""

from __future__ import annotations

from matplotlib.figure import Figure

from senet.compare.comparison import Comparison
from senet.report.curves import bands, look_of
from senet.report.drawings import Drawing
from senet.report.figures import BLACK, label, styled

MOST_LINES = 12
"""Groups in the figures of curves: so many looks there are."""


def draw(found: Comparison) -> dict[str, Drawing]:
    """Curves of the groups that have finished runs, each run's result, and the intervals of the differences."""
    full = {f"{number} {each.name}": each for number, each in enumerate(found.groups, start=1) if each.runs}
    shown = {name: list(each.runs.values()) for name, each in list(full.items())[:MOST_LINES]}
    drawings = {}
    for name, figure in bands(shown).items():
        quantity = name.removeprefix("bands_")
        alt = f"Line chart: mean {found.images} {quantity} over the epochs, with a band, of {'; '.join(shown)}."
        drawings[name] = Drawing(figure, alt)
    ends = "; ".join(
        f"{name} {of['last'].mean:.2f}" for name, of in zip(full, (m for m in found.means if m["last"].n), strict=True)
    )
    drawings["results"] = Drawing(_results(found), f"Dot chart: the last accuracy of each run. Means: {ends}.")
    if any(each.low is not None for each in found.shown_pairs):
        alt = f"Dot chart: differences between the groups with their intervals, as in the table; {_apart(found)}."
        drawings["differences"] = Drawing(_differences(found), alt)
    return drawings


def _apart(found: Comparison) -> str:
    count = sum(each.better is not None for each in found.shown_pairs)
    return f"{count} of {len(found.differences)} differ"


@styled()
def _results(found: Comparison) -> Figure:
    """A row for each group: a dot for each run, and a bar at the mean."""
    figure = Figure((5.3, 1.1 + 0.3 * len(found.groups)), layout="constrained")
    axes = figure.subplots()
    for row, each in enumerate(found.groups):
        values = list(each.scores("last").values())
        look = look_of(row) | {"linestyle": "none"}
        axes.plot(values, [row] * len(values), markersize=5, alpha=0.7, **look)
        if values:
            axes.plot([sum(values) / len(values)], [row], color=BLACK, marker="|", markersize=14)
    names = [label(f"{number} {each.name}", 30) for number, each in enumerate(found.groups, start=1)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"last {found.images} accuracy (%)")
    axes.grid(axis="x")
    return figure


@styled()
def _differences(found: Comparison) -> Figure:
    """A row for each pair: the difference and its interval; black where it leaves 0 out."""
    figure = Figure((5.3, 1.1 + 0.25 * len(found.shown_pairs)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#777777", linewidth=1, linestyle="--")
    for row, each in enumerate(found.shown_pairs):
        if each.low is not None and each.high is not None:
            colour = "#999999" if each.better is None else BLACK
            sides = [[each.mean - each.low], [each.high - each.mean]]
            axes.errorbar([each.mean], [row], xerr=sides, color=colour, marker="o", markersize=5, capsize=3)
    axes.set_yticks(
        range(len(found.shown_pairs)), [f"{each.second + 1} - {each.first + 1}" for each in found.shown_pairs]
    )
    axes.set_ylim(len(found.shown_pairs) - 0.5, -0.5)
    axes.set_xlabel("difference (points)")
    axes.grid(axis="x")
    return figure
