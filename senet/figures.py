"""Figures of what a network says and does: arrays in, matplotlib figures out. Draws on no screen, keeps no state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from senet.analysis import Calibration, Floats, Integers

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called $x$
    "image.composite_image": False,
    "svg.hashsalt": "senet",  # the same bytes each time
}
# Okabe & Ito, "Color Universal Design", 2008: told apart by the colour-blind
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
_RIGHT, _WRONG = "#1b7837", "#b2182b"
_MOST_BARS = 50
styled = matplotlib.rc_context(STYLE)  # as a decorator


@styled
def to_svg(figure: Figure) -> bytes:
    """The same figure gives the same bytes."""
    with io.BytesIO() as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a class name in a script without a font
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()


def label(name: str, length: int = 16) -> str:
    """A name that fits and that every renderer can draw."""
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


@styled
def class_accuracy(accuracies_K: Floats, classes: Sequence[str], overall: float) -> Figure:
    """Bars, the lowest at the top, in percent; of more than 50 classes the 50 lowest."""
    order = np.argsort(accuracies_K, kind="stable")[:_MOST_BARS]
    figure = Figure((5.4, 1.1 + 0.24 * len(order)))
    axes = figure.subplots()
    bars = axes.barh(range(len(order)), accuracies_K[order], color=SKY, height=0.72)
    axes.set_yticks(range(len(order)), [label(classes[index]) for index in order])
    axes.bar_label(bars, [f"{accuracies_K[index]:.1f}" for index in order], padding=3, fontsize=8)
    axes.axvline(overall, color=BLACK, linewidth=1, linestyle="--", label=f"all classes: {overall:.2f} %")
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xlabel="accuracy (%)", xticks=range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), borderpad=0.2)
    return figure


@styled
def confusion(counts_KK: Integers, classes: Sequence[str]) -> Figure:
    """Rows: true class, columns: predicted, as a share of the row in percent; numbers and names while they fit."""
    count = len(classes)
    shares = 100 * counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    side = min(9.0, max(4.6, 1.6 + 0.36 * count))
    figure = Figure((side + 0.4, side))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="none")
    if count <= 20:
        for row, column in np.ndindex(count, count):
            if counts_KK[row, column]:
                share = shares[row, column]
                text = f"{share:.0f}" if share >= 0.5 else "<1"
                colour = "white" if share > 55 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    if count <= 50:
        names = [label(name, 12) for name in classes]
        axes.set_xticks(range(count), names, rotation=45 if count <= 20 else 90, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), names)
    axes.tick_params(length=0, labelsize=8 if count <= 20 else 6)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class")
    bar.outline.set_visible(False)
    return figure


@styled
def reliability(bins: Calibration) -> Figure:
    """Accuracy of each bin of confidence, against the diagonal of a calibrated network; below, how full they are."""
    count = len(bins.counts)
    width = 1 / count
    centres = (np.arange(count) + 0.5) * width
    full = bins.counts > 0
    figure = Figure((5.0, 4.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(centres[full], bins.accuracies[full], width * 0.92, color=SKY, label="accuracy")
    gaps = bins.confidences[full] - bins.accuracies[full]
    upper.bar(
        centres[full],
        gaps,
        width * 0.92,
        bottom=bins.accuracies[full],
        facecolor="none",
        edgecolor=RED,
        hatch="////",
        linewidth=0.8,
        label="gap to the mean confidence",
    )
    upper.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1, label="calibrated")
    upper.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    upper.set_title(f"expected calibration error {bins.error:.4f} ({count} bins)")
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(centres, 100 * bins.counts / bins.counts.sum(), width * 0.92, color=BLUE)
    lower.set(xlabel="confidence", ylabel="images (%)")
    for axes in (upper, lower):
        axes.grid(axis="y")
    return figure


@styled
def pictures(
    images_NHWC: Integers, predicted: Sequence[str], true: Sequence[str], confidences_N: Floats, columns: int = 8
) -> Figure:
    """A grid; over each image the predicted class, and under that the true one in brackets: green with a tick where
    they agree, red with a cross where not.
    """
    rows = max(1, -(-len(predicted) // columns))
    figure = Figure((1.28 * columns, 1.52 * rows))
    axes = figure.add_axes((0.005, 0.002, 0.99, 0.996))
    axes.set(xlim=(0, columns), ylim=(1.25 * rows, 0))
    axes.axis("off")
    for index, (image, guess, truth) in enumerate(zip(images_NHWC, predicted, true, strict=True)):
        left, top = index % columns, 1.25 * (index // columns) + 0.32
        axes.imshow(image, extent=(left + 0.06, left + 0.94, top + 0.88, top), interpolation="none", aspect="auto")
        mark, colour = ("✓", _RIGHT) if guess == truth else ("✗", _WRONG)
        title = f"{mark} {label(guess, 13)}\n({label(truth, 13)}) {100 * confidences_N[index]:.0f} %"
        axes.text(left + 0.06, top - 0.03, title, fontsize=7, color=colour, va="bottom", linespacing=1.15)
    axes.set(xlim=(0, columns), ylim=(1.25 * rows, 0))
    return figure


@styled
def gates(means: Mapping[str, Floats], classes: Sequence[str]) -> Figure:
    """Mean gate of each class (row) and channel (column, in order of its mean), a panel for each block."""
    rows = -(-len(means) // 2)
    height = min(4.0, 0.62 + 0.125 * max(4, len(classes)))
    figure = Figure((10.4, height * rows + 0.5))
    panels: list[Axes] = list(figure.subplots(rows, 2, squeeze=False).flat)
    image = None
    for axes, (name, means_KC) in zip(panels, means.items(), strict=False):
        ordered = means_KC[:, np.argsort(means_KC.mean(0), kind="stable")]
        image = axes.imshow(ordered, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="none")
        axes.set_title(f"{name} ({means_KC.shape[1]} channels)", loc="left", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks(range(len(classes)) if len(classes) <= 20 else [], map(label, classes[:20]), fontsize=6.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for axes in panels[len(means) :]:
        axes.set_visible(False)
    assert image is not None
    figure.colorbar(image, ax=panels, shrink=0.5, aspect=30, label="mean gate")
    return figure


@styled
def gate_shares(shares: Mapping[str, float], threshold: float) -> Figure:
    """Bars, the first block at the top; those under the threshold hatched."""
    figure = Figure((5.4, 1.2 + 0.26 * len(shares)))
    axes = figure.subplots()
    below = [share < threshold for share in shares.values()]
    bars = axes.barh(range(len(shares)), list(shares.values()), height=0.72)
    for bar, is_below in zip(bars, below, strict=True):
        bar.set(facecolor="white" if is_below else SKY, edgecolor=BLUE, hatch="////" if is_below else "")
    axes.set_yticks(range(len(shares)), [label(name, 24) for name in shares])
    axes.bar_label(bars, [f"{share:.3f}" for share in shares.values()], padding=3, fontsize=8)
    axes.axvline(threshold, color=BLACK, linewidth=1, linestyle="--", label=f"threshold {threshold}")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the gates' variance that the class accounts for")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), borderpad=0.2)
    return figure
