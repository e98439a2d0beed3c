"""Figures of predictions, calibration and gates: arrays in, matplotlib figures out. Needs no screen, keeps no state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unicodedata import east_asian_width

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text

from senet.report.analysis import Calibration, Floats, Integers

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # part of matplotlib, so the same everywhere
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
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
# Okabe & Ito, "Color Universal Design", 2008: colours that colour-blind people can tell apart
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
_RIGHT, _WRONG = "#1b7837", "#b2182b"
MOST_BARS = 50
WORST = 20  # classes that are shown where there are more
COLUMNS = 8  # of a grid of images
_MOST_CHANNELS = 512


@contextmanager
def styled() -> Iterator[None]:
    """The style in which figures are made and rendered; also a decorator."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # ignores any matplotlibrc: the same bytes everywhere
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # measured as a box; see to_svg
        yield


@styled()
def to_svg(figure: Figure) -> bytes:
    """The same figure gives the same bytes. If the font lacks a character, texts are drawn with the viewer's fonts."""
    shown = {letter for text in figure.findobj(Text) for letter in text.get_text()}
    with io.BytesIO() as file, matplotlib.rc_context():
        if any(ord(letter) not in _letters() for letter in shown if letter != "\n"):
            matplotlib.rcParams["svg.fonttype"] = "none"
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()


@cache
def _letters() -> frozenset[int]:
    """Code points that DejaVu Sans has."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def label(name: str, length: int = 16) -> str:
    """Shorten a name to ``length`` by cutting out its middle; Chinese and Japanese characters count as two."""
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    if sum(map(_width, name)) <= length:
        return name
    head, tail = name[: len(name) // 2], name[len(name) // 2 :]
    while sum(map(_width, head + tail)) >= length:
        head, tail = (head[:-1], tail) if len(head) > len(tail) else (head, tail[1:])
    return f"{head}…{tail}"


def _width(letter: str) -> int:
    return 2 if east_asian_width(letter) in "WF" else 1


def _at_an_axis(name: str, length: int = 16) -> str:
    """A label that ends at an axis. Viewers draw wide characters 1 em wide, but matplotlib measures a box of 0.6 em:
    spaces of 0.32 em before them compensate.
    """
    name = label(name, length)
    wide = sum(_width(letter) == 2 and ord(letter) not in _letters() for letter in name)
    return "\N{NO-BREAK SPACE}" * -(-wide * 40 // 32) + name


@styled()
def class_accuracy(accuracies_K: Floats, classes: Sequence[str], overall: float) -> Figure:
    """Accuracy of each class as bars, the lowest at the top, NaN last; of more than 50 classes the 20 lowest."""
    order = np.argsort(accuracies_K, kind="stable")[: WORST if len(classes) > MOST_BARS else None]
    figure = Figure((5.4, 1.1 + 0.24 * len(order)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(order)), accuracies_K[order], color=SKY, height=0.72)
    axes.set_yticks(range(len(order)), [_at_an_axis(classes[index]) for index in order])
    _at_the_right(axes, [f"{share:.1f}" if np.isfinite(share) else "no images" for share in accuracies_K[order]])
    axes.axvline(overall, color=BLACK, linewidth=1, linestyle="--", label=f"all classes: {overall:.2f} %")
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="accuracy (%)", xticks=range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    figure.legend(loc="outside upper center", fontsize=9)
    return figure


@styled()
def confusion(counts_KK: Integers, classes: Sequence[str]) -> Figure:
    """Rows: true class, columns: predicted, in percent of the row, of up to 50 classes; numbers if they fit."""
    count = len(classes)
    shares = 100 * counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    side = min(9.0, max(4.6, 1.6 + 0.36 * count))
    figure = Figure((side + 0.4, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="none")
    if count <= 20:
        for row, column in np.ndindex(count, count):
            if counts_KK[row, column]:
                share = shares[row, column]
                text = f"{share:.0f}" if share >= 0.5 else "<1"
                colour = "white" if share > 55 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    names = [_at_an_axis(name, 12) for name in classes]
    axes.set_xticks(range(count), names, rotation=45 if count <= 20 else 90, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0, labelsize=8 if count <= 20 else 6)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class")
    bar.outline.set_visible(False)
    return figure


@styled()
def reliability(bins: Calibration) -> Figure:
    """Accuracy in each bin of confidence, with the diagonal of a calibrated network; below, the images per bin."""
    count = len(bins.counts)
    width = 1 / count
    centres = (np.arange(count) + 0.5) * width
    full = bins.counts > 0
    figure = Figure((5.0, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(centres[full], bins.accuracies[full], width * 0.92, color=SKY, label="accuracy")
    gaps = bins.confidences[full] - bins.accuracies[full]
    look = {"facecolor": "none", "edgecolor": RED, "hatch": "////", "linewidth": 0.8}
    title = "gap to the mean confidence"
    upper.bar(centres[full], gaps, width * 0.92, bottom=bins.accuracies[full], label=title, **look)
    upper.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1, label="calibrated")
    upper.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    upper.set_title(f"expected calibration error {bins.error:.4f} ({count} bins)")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    lower.bar(centres, 100 * bins.counts / bins.counts.sum(), width * 0.92, color=BLUE)
    lower.set(xlabel="confidence", ylabel="images (%)")
    for axes in (upper, lower):
        axes.grid(axis="y")
    return figure


@styled()
def pictures(images_NHWC: Integers, predicted: Sequence[str], true: Sequence[str], confidences_N: Floats) -> Figure:
    """A grid; above each image the predicted class, and below that the true one in brackets: green with a tick if they
    agree, red with a cross if not.
    """
    columns = min(COLUMNS, len(predicted))
    rows = -(-len(predicted) // columns)
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


@styled()
def gates(means: Mapping[str, Floats], classes: Sequence[str]) -> Figure:
    """A row for each block, its channels in the order of their mean gate. Left: that mean, and the range of the class
    means; right: each class mean minus that mean, positive in red, negative in blue. Of more than 50 classes there, and
    of more than 512 channels, some, evenly spaced: a page has no more room, and each pixel is in the file.
    """
    height = min(3.6, max(1.4, 0.4 + 0.125 * len(classes)))
    figure = Figure((10.4, height * len(means) + 0.7), layout="constrained")
    rows = figure.subplots(len(means), 2, squeeze=False, width_ratios=(1, 1.25))
    largest = max(float(np.abs(means_KC - means_KC.mean(0)).max()) for means_KC in means.values()) or 1.0
    for (left, right), (name, means_KC) in zip(rows, means.items(), strict=True):
        count = means_KC.shape[1]
        means_KC = means_KC[:, _spread(np.argsort(means_KC.mean(0), kind="stable"), _MOST_CHANNELS)]
        some_KC, mean_C, channels = _spread(means_KC, MOST_BARS), means_KC.mean(0), np.arange(means_KC.shape[1])
        left.fill_between(channels, means_KC.min(0), means_KC.max(0), color=SKY, alpha=0.6, linewidth=0)
        left.plot(channels, mean_C, color=BLUE, linewidth=1)
        left.set(ylim=(0, 1), xlim=(0, max(1, len(channels) - 1)), yticks=(0, 0.5, 1))
        left.grid(axis="y")
        left.set_title(f"{name}: mean gate of {count} channels", loc="left", fontsize=9)
        image = right.imshow(
            some_KC - mean_C, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="none"
        )
        right.set_title("class mean minus overall mean", loc="left", fontsize=9)
        right.set_xticks([])
        if len(classes) <= 20:
            right.set_yticks(range(len(classes)), [_at_an_axis(name) for name in classes], fontsize=6.5)
        else:
            right.set_yticks([])
        right.tick_params(length=0)
        right.spines[:].set_visible(False)
    title = "class mean minus overall mean"
    figure.colorbar(image, ax=rows[:, 1].tolist(), location="bottom", shrink=0.6, aspect=40, label=title)
    return figure


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """All of them, or ``most``, evenly spaced."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).astype(np.int64)]


@styled()
def gate_shares(shares: Mapping[str, float], ranges: Mapping[str, float], hatched: Sequence[str]) -> Figure:
    """Bars of the shares, the first block at the top, each with the range of its class means as a number."""
    figure = Figure((5.4, 1.0 + 0.26 * len(shares)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), list(shares.values()), height=0.72)
    for bar, name in zip(bars, shares, strict=True):
        bar.set(facecolor="white" if name in hatched else SKY, edgecolor=BLUE, hatch="////" if name in hatched else "")
    axes.set_yticks(range(len(shares)), [label(name, 24) for name in shares])
    _at_the_right(axes, [f"{shares[name]:.2f}   range {ranges[name]:.3f}" for name in shares])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the gates' variance that the class explains")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


def _at_the_right(axes: Axes, texts: Sequence[str]) -> None:
    """A text for each horizontal bar, in a column to the right of all bars."""
    for row, text in enumerate(texts):
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
