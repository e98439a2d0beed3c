"""The figures of a report, each with its alternative text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from senet.report import curves, figures
from senet.report.analysis import Predictions, calibration
from senet.report.classes import Confusions
from senet.report.hours import bar
from senet.rundir.history import Run, names
from senet.rundir.hours import in_words


@dataclass(frozen=True)
class Drawing:
    """A figure, its alternative text (for people who cannot see it), and whether it is too wide for a phone."""

    figure: Figure
    alt: str
    wide: bool = False


def draw(runs: Sequence[Run], predictions: Predictions | None) -> dict[str, Drawing]:
    """Name -> figure: of the first run, and comparisons of the runs; without predictions only curves."""
    drawings = _curves(runs[0])
    if hours := runs[0].hours:
        drawings["hours"] = Drawing(bar(hours), f"Bar: where the time of the run went. {in_words(hours.facts())}.")
    if len(runs) > 1:
        listed = ", ".join(names(runs))
        for name, figure in curves.comparison(runs, names(runs)).items():
            quantity = name.removeprefix("comparison_")
            images = curves.images(runs)
            drawings[name] = Drawing(figure, f"Line chart: {images} {quantity} over the epochs of the runs {listed}.")
    if predictions is not None:
        drawings |= _accuracy(predictions) | _images(predictions)
        if predictions.gates:
            drawings |= _gates(predictions)
    return drawings


def _curves(run: Run) -> dict[str, Drawing]:
    last = run.epochs[-1] if run.epochs else {}
    epochs = f"{last.get('epoch', 0)} epoch(s)"
    resumed = f" Resumed {len(run.interruptions)} time(s)." if run.interruptions else ""
    titles = {"train": "training", "test": run.images, "ema": "averaged weights"}
    ends = {
        key: ", ".join(
            f"{title} {last[f'{name}_{key}']:.4g}" for name, title in titles.items() if f"{name}_{key}" in last
        )
        for key in ("loss", "top1")
    }
    words = {
        "loss": f"Line chart: loss over {epochs}. At the end: {ends['loss'] or 'none yet'}.{resumed}",
        "accuracy": f"Line chart: accuracy (%) over {epochs}. At the end: {ends['top1'] or 'none yet'}.{resumed}",
        "learning_rate": f"Line chart: learning rate over {epochs}.{resumed}",
    }
    return {name: Drawing(figure, words[name]) for name, figure in curves.curves(run).items()}


def _accuracy(predictions: Predictions) -> dict[str, Drawing]:
    classes, found = predictions.classes, Confusions.of(predictions)
    accuracies_K = found.accuracies_K
    low, high = int(np.nanargmin(accuracies_K)), int(np.nanargmax(accuracies_K))
    bins = calibration(predictions.confidences_N, predictions.predicted_N == predictions.labels_N)
    confusion = {"confusion": _confusion(found, classes)} if len(classes) <= figures.MOST_BARS else {}
    return {
        "classes": Drawing(
            figures.class_accuracy(accuracies_K, classes, predictions.accuracy),
            f"Bar chart: accuracy of each class, from {classes[low]} ({accuracies_K[low]:.1f} %) to {classes[high]} "
            f"({accuracies_K[high]:.1f} %).",
        ),
        **confusion,
        "reliability": Drawing(
            figures.reliability(bins),
            f"Reliability diagram: accuracy against confidence in {len(bins.counts)} bins. Expected calibration error "
            f"{bins.error:.4f}.",
        ),
    }


def _confusion(found: Confusions, classes: Sequence[str]) -> Drawing:
    mistake = "none is wrong"
    if len(found.counts_P):
        true, guess = classes[int(found.true_P[0])], classes[int(found.predicted_P[0])]
        mistake = f"The most frequent mistake: {found.counts_P[0]} images of {true} predicted as {guess}"
    return Drawing(
        figures.confusion(found.matrix_KK(), classes), f"Confusion matrix of {len(classes)} classes. {mistake}."
    )


def _images(predictions: Predictions) -> dict[str, Drawing]:
    drawn = {}
    for name, indices, images, words in (
        ("samples", predictions.samples, predictions.sample_images, "test images, evenly spaced over the split"),
        ("mistakes", predictions.mistakes, predictions.mistake_images, "mistakes with the highest confidence"),
    ):
        predicted, true = (
            [predictions.classes[number] for number in numbers[indices]]
            for numbers in (predictions.predicted_N, predictions.labels_N)
        )
        if len(indices):
            right = int((predictions.predicted_N[indices] == predictions.labels_N[indices]).sum())
            figure = figures.pictures(images, predicted, true, predictions.confidences_N[indices])
            alt = f"Grid of {len(indices)} {words}, each with its predicted and its true class; {right} are right."
            drawn[name] = Drawing(figure, alt, wide=len(indices) >= figures.COLUMNS)
    return drawn


def _gates(predictions: Predictions) -> dict[str, Drawing]:
    shares = dict(zip(predictions.gates, predictions.gate_shares.tolist(), strict=True))
    listed = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    return {
        "gates": Drawing(
            figures.gates(predictions.gates, predictions.classes),
            f"For each of {len(shares)} blocks a line of the mean gates of its channels, and a heat map of the "
            f"difference of each class's mean.",
            wide=True,
        ),
        "gate_shares": Drawing(
            figures.gate_shares(shares, predictions.gate_ranges, predictions.blind_blocks),
            f"Bar chart: share of the gates' variance that the class explains, by block: {listed}.",
        ),
    }
