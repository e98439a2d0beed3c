"""Figures of the training curves: loss, accuracy and learning rate of a run, and several runs or groups compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from senet.report.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, label, styled
from senet.rundir.history import Run, judged

_SIZE = (5.3, 3.8)  # inches
_MARKS = {  # event -> colour, line style, marker
    "interrupted": (ORANGE, "--", "s"),
    "preempted": (PURPLE, "--", "v"),
    "killed": (BLACK, "-.", "X"),
    "failed": (RED, ":", "d"),
    "unknown": ("#777777", "--", "o"),
    "changed": (GREEN, "-", "P"),
}
_RUNS = [
    (BLUE, "o", "-"),
    (RED, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "D", ":"),
    (ORANGE, "v", "-"),
    (BLACK, "P", "--"),
]


def curves(run: Run) -> dict[str, Figure]:
    """Loss, accuracy and learning rate over the epochs, with interruptions and changed options marked."""
    return {
        "loss": _curve(run, "loss", "loss (nats per image)"),
        "accuracy": _curve(run, "top1", "top-1 accuracy (%)"),
        "learning_rate": _learning_rate(run),
    }


def comparison(runs: Sequence[Run], titles: Sequence[str]) -> dict[str, Figure]:
    """Loss and accuracy of several runs, in one figure each, of the weights that each run reports as its result."""
    return {
        "comparison_loss": _compare(runs, titles, "loss", f"{images(runs)} loss (nats per image)"),
        "comparison_accuracy": _compare(runs, titles, "top1", f"{images(runs)} accuracy (%)"),
    }


def bands(groups: Mapping[str, Sequence[Run]]) -> dict[str, Figure]:
    """Loss and accuracy of groups of runs that differ in their seed alone, in one figure each: the mean over the runs,
    and a band of one sample standard deviation on both sides.
    """
    runs = [run for members in groups.values() for run in members]
    return {
        "bands_accuracy": _bands(groups, "top1", f"{images(runs)} accuracy (%)"),
        "bands_loss": _bands(groups, "loss", f"{images(runs)} loss (nats per image)"),
    }


def images(runs: Sequence[Run]) -> str:
    """What the runs were judged on: "test", "held-out", or "test or held-out"."""
    return " or ".join(sorted({run.images for run in runs}, reverse=True))


@styled()
def _curve(run: Run, quantity: str, title: str) -> Figure:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    _draw(axes, run, run.intervals, f"train_{quantity}", color=SKY, linewidth=1, label="training, per log interval")
    for kind, colour, marker, text in (
        ("train", BLUE, "o", "training, epoch"),
        ("test", RED, "s", run.images),
        ("ema", GREEN, "^", f"{run.images}, averaged weights"),
    ):
        _draw(axes, run, run.epochs, f"{kind}_{quantity}", color=colour, marker=marker, linewidth=1.5, label=text)
    axes.set_ylabel(title)
    if quantity == "loss":
        _clip(axes)
    return _finish(figure, axes, run)


@styled()
def _learning_rate(run: Run) -> Figure:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    by_step = {row["step"]: row for row in [*run.intervals, *run.epochs]}
    rows = [by_step[step] for step in sorted(by_step)]
    _draw(axes, run, rows, "lr", color=BLUE, linewidth=1.5, label="learning rate")
    axes.set(ylabel="learning rate", ylim=(0, None))
    return _finish(figure, axes, run)


@styled()
def _compare(runs: Sequence[Run], titles: Sequence[str], quantity: str, title: str) -> Figure:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    for index, (run, name) in enumerate(zip(runs, titles, strict=True)):
        rows = [row | {quantity: row[f"{judged(row)}_{quantity}"]} for row in run.epochs]
        _draw(axes, run, rows, quantity, label=label(name, 24), **look_of(index))
    axes.set(xlabel="epoch", ylabel=title)
    if quantity == "loss":
        _clip(axes)
    _trim(figure, axes)
    return figure


@styled()
def _bands(groups: Mapping[str, Sequence[Run]], quantity: str, title: str) -> Figure:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    for index, (name, runs) in enumerate(groups.items()):
        of_runs = [{row["epoch"]: row[f"{judged(row)}_{quantity}"] for row in run.epochs} for run in runs]
        epochs = sorted(set.intersection(*map(set, of_runs)))  # of the runs that went on longer only what all have
        values_RE = np.array([[scores[epoch] for epoch in epochs] for scores in of_runs], float)
        mean_E, look = values_RE.mean(0), look_of(index)
        axes.plot(epochs, mean_E, markersize=5, label=label(name, 40), **look)
        if len(runs) > 1:
            std_E = values_RE.std(0, ddof=1)
            axes.fill_between(epochs, mean_E - std_E, mean_E + std_E, color=look["color"], alpha=0.18, linewidth=0)
    axes.set(xlabel="epoch", ylabel=title)
    if quantity == "loss":
        _clip(axes)
    _trim(figure, axes, columns=1)
    return figure


def look_of(index: int) -> dict[str, Any]:
    """Of the line of a run or a group: twelve that differ."""
    colour, marker, line = _RUNS[index % len(_RUNS)]
    look = {"color": colour, "marker": marker, "linestyle": line, "linewidth": 1.5}
    return look | ({"markerfacecolor": "white"} if index // len(_RUNS) % 2 else {})  # from the seventh on: hollow


def _draw(axes: Axes, run: Run, rows: Sequence[dict[str, Any]], key: str, **look: Any) -> None:
    """A line over the epochs; nothing if no row has ``key``. One or two points get markers, or they would not show."""
    rows = [row for row in rows if key in row]
    if rows:
        x = [row["step"] / (run.steps_per_epoch or 1) for row in rows]
        marker = {"marker": "o"} if len(rows) <= 2 else {}
        axes.plot(x, [row[key] for row in rows], markersize=5, **marker | look)


def _clip(axes: Axes) -> None:
    """Cut off the largest values of a line (at most a quarter) if they exceed ten times the next one, and mark them."""
    tops, lows = [], []
    for line in axes.get_lines():
        values = np.asarray(line.get_ydata(), float)
        values = np.sort(values[np.isfinite(values)])[::-1]
        most = min(max(1, len(values) // 4), len(values) - 1)
        beyond = [n for n in range(1, most + 1) if values[n - 1] > 10 * values[n] > 0]
        tops += values[max(beyond, default=0) :][:1].tolist()
        lows += values[-1:].tolist()
    points = [point for line in axes.get_lines() for point in np.asarray(line.get_xydata()).tolist()]
    outside = [(x, y) for x, y in points if tops and max(tops) < y < np.inf]
    if outside:
        margin = 0.05 * (max(tops) - min(lows)) or 0.5
        axes.set_ylim(min(lows) - margin, max(tops) + margin)
        text = f"beyond the axis, up to {max(y for _, y in outside):,.0f}"
        _mark(axes, [x for x, _ in outside], text, color=BLACK, linestyle="none", marker="^")


def _mark(axes: Axes, at: Sequence[float], text: str, edge: int = 1, **look: Any) -> None:
    """Markers on the upper edge or (0) on the lower one, with an entry in the legend."""
    y, place = [edge] * len(at), axes.get_xaxis_transform()
    axes.plot(at, y, transform=place, clip_on=False, markersize=6, label=text, **look)


def _finish(figure: Figure, axes: Axes, run: Run) -> Figure:
    """Mark interruptions and changed options, with one entry in the legend for each kind, and name the axis."""
    if not axes.get_lines():
        axes.text(0.5, 0.5, "nothing logged yet", transform=axes.transAxes, ha="center")
        axes.set_yticks([])
    steps: dict[str, list[int]] = {}
    for interruption in run.interruptions:
        steps.setdefault(interruption.cause, []).append(interruption.step)
    if run.changes:
        steps["changed"] = list(run.changes)
    for cause, resumed_at in steps.items():
        colour, line, marker = _MARKS[cause]
        at = [step / (run.steps_per_epoch or 1) for step in resumed_at]
        for x in sorted(set(at)):
            axes.axvline(x, color=colour, linestyle=line, linewidth=1, zorder=1.4 if cause == "changed" else 1.5)
        text = "options changed" if cause == "changed" else f"resumed after: {cause}"
        times = f" ({len(at)} times)" if len(at) > 1 else ""
        _mark(axes, at, text + times, int(cause != "changed"), color=colour, linestyle=line, marker=marker)
    axes.set(xlabel="epoch" if run.epochs else "update", xlim=(0, None))
    _trim(figure, axes)
    return figure


def _trim(figure: Figure, axes: Axes, columns: int = 2) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()
    if entries := axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=columns)
        figure.set_figheight(_SIZE[1] + 0.2 * max(0, -(-len(entries) // columns) - 2))  # inches for each row but two
