"""Figures of how a run went, and of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from senet.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, label, styled
from senet.history import Run, judged

_SIZE = (5.3, 3.8)  # inches
_INTERRUPTIONS = {  # cause: colour, line, marker at its upper end
    "preempted": (PURPLE, "--", "v"),
    "killed": (BLACK, "-.", "X"),
    "failed": (RED, ":", "d"),
    "unknown": ("#777777", "--", "o"),
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
    """Loss, accuracy and learning rate over the epochs, with the interruptions marked."""
    return {
        "loss": _curve(run, "loss", "loss (nats per image)"),
        "accuracy": _curve(run, "top1", "top-1 accuracy (%)"),
        "learning_rate": _learning_rate(run),
    }


def comparison(runs: Sequence[Run], titles: Sequence[str]) -> dict[str, Figure]:
    """Loss and accuracy of several runs in one figure each; of the weights that counted as the result."""
    return {
        "comparison_loss": _compare(runs, titles, "loss", f"{images(runs)} loss (nats per image)"),
        "comparison_accuracy": _compare(runs, titles, "top1", f"{images(runs)} accuracy (%)"),
    }


def images(runs: Sequence[Run]) -> str:
    """What the runs were judged on: "test", "held-out", or "test or held-out"."""
    return " or ".join(sorted({run.images for run in runs}, reverse=True))


@styled()
def _curve(run: Run, quantity: str, title: str) -> Figure:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot(
        *_line(run, run.intervals, f"train_{quantity}"), color=SKY, linewidth=1, label="training, per log interval"
    )
    for kind, colour, marker, text in (
        ("train", BLUE, "o", "training, epoch"),
        ("test", RED, "s", run.images),
        ("ema", GREEN, "^", f"{run.images}, averaged weights"),
    ):
        x, y = _line(run, run.epochs, f"{kind}_{quantity}")
        if y:
            axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.5, label=text)
    axes.set_ylabel(title)
    return _finish(figure, axes, run)


@styled()
def _learning_rate(run: Run) -> Figure:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot(*_line(run, run.intervals or run.epochs, "lr"), color=BLUE, linewidth=1.5, label="learning rate")
    axes.set(ylabel="learning rate", ylim=(0, None))
    return _finish(figure, axes, run)


@styled()
def _compare(runs: Sequence[Run], titles: Sequence[str], quantity: str, title: str) -> Figure:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    for index, (run, name) in enumerate(zip(runs, titles, strict=True)):
        colour, marker, line = _RUNS[index % len(_RUNS)]
        x, y = _line(run, [row | {quantity: row[f"{judged(row)}_{quantity}"]} for row in run.epochs], quantity)
        axes.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=5, linewidth=1.5, label=label(name, 24))
    axes.set(xlabel="epoch", ylabel=title)
    _trim(figure, axes)
    return figure


def _line(run: Run, rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    rows = [row for row in rows if key in row]
    return [row["step"] / (run.steps_per_epoch or 1) for row in rows], [row[key] for row in rows]


def _finish(figure: Figure, axes: Axes, run: Run) -> Figure:
    """Mark where the run was interrupted, one entry in the legend for each cause, and name the axis."""
    steps: dict[str, list[int]] = {}
    for interruption in run.interruptions:
        steps.setdefault(interruption.cause, []).append(interruption.step)
    upper_end = axes.get_xaxis_transform()
    for cause, resumed_at in steps.items():
        colour, line, marker = _INTERRUPTIONS[cause]
        at = [step / (run.steps_per_epoch or 1) for step in resumed_at]
        for x in sorted(set(at)):
            axes.axvline(x, color=colour, linestyle=line, linewidth=1, zorder=1.5)
        text = f"resumed after: {cause}" + (f" ({len(at)} times)" if len(at) > 1 else "")
        marks: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 6}
        axes.plot(at, [1] * len(at), transform=upper_end, clip_on=False, label=text, **marks)
    axes.set(xlabel="epoch" if run.epochs else "update", xlim=(0, None))
    _trim(figure, axes)
    return figure


def _trim(figure: Figure, axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2)
