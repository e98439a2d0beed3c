"""The numbers and tables of a page's sections on the test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from senet.report.analysis import SMALL_RANGE, SMALL_SHARE, Predictions, calibration
from senet.report.classes import Confusions
from senet.report.figures import MOST_BARS, WORST
from senet.report.markup import Table

NONE = "\N{EN DASH}"


def seen(predictions: Predictions) -> dict[str, Any]:
    """By the names that page.html has for them."""
    gates = [
        [name, str(means_KC.shape[1]), f"{means_KC.mean():.3f}", f"{share:.3f}", f"{predictions.gate_ranges[name]:.3f}"]
        for (name, means_KC), share in zip(predictions.gates.items(), predictions.gate_shares, strict=True)
    ]
    right_N = predictions.predicted_N == predictions.labels_N
    return _classes(predictions) | {
        "checkpoint": f"{predictions.checkpoint}, sha256 {predictions.sha256[:12]}",
        "other_images": predictions.other_images,
        "accuracy": f"{predictions.accuracy:.2f} %",
        "top5": "" if predictions.top5 is None else f"{predictions.top5:.2f} %",
        "confidence": f"{100 * predictions.confidences_N.mean():.2f} %",
        "error": f"{calibration(predictions.confidences_N, right_N).error:.4f}",
        "files": _mistake_files(predictions),
        "weights": predictions.weights,
        "gates": Table(("block", "channels", "mean gate", "share of the class", "range of class means"), gates),
        "gate_classes": MOST_BARS,
        "blind": predictions.blind_blocks,
        "small_share": SMALL_SHARE,
        "small_range": SMALL_RANGE,
        "chance": f"{(len(predictions.classes) - 1) / max(1, len(predictions.labels_N) - 1):.4f}",
        "mistakes": f"{np.count_nonzero(~right_N):,}",
    }


def _classes(predictions: Predictions) -> dict[str, Table | None]:
    """A row for each class; of more than ``MOST_BARS`` classes also the worst of them and the most confused pairs."""
    found, classes = Confusions.of(predictions), predictions.classes
    mistakes, rows = found.mistakes(), []
    for index, name in enumerate(classes):
        guess, count = mistakes.get(index, (0, 0))
        mistake = f"{classes[guess]} ({count})" if count else NONE
        scores = (_percent(found.accuracies_K[index]), _percent(found.precisions_K[index]))
        rows.append([name, f"{found.images_K[index]:,}", *scores, mistake])
    header = ("class", "images", "accuracy %", "precision %", "most frequent mistake")
    if len(rows) <= MOST_BARS:
        return {"classes": Table(header, rows), "worst": None, "pairs": None}
    worst = [rows[index] for index in np.argsort(found.accuracies_K, kind="stable")[:WORST]]
    pairs = [
        [classes[true], f"{count:,}", _percent(100 * count / found.images_K[true]), classes[guess]]
        for true, guess, count in zip(
            *(part[:WORST].tolist() for part in (found.true_P, found.predicted_P, found.counts_P)), strict=True
        )
    ]
    return {
        "classes": Table(header, rows),
        "worst": Table(header, worst),
        "pairs": Table(("class", "images", "% of the class", "predicted as"), pairs),
    }


def _percent(value: float) -> str:
    return NONE if np.isnan(value) else f"{value:.2f}"


def _mistake_files(predictions: Predictions) -> Table:
    """The file of each picture in the figure of mistakes, row by row."""
    rows: list[Sequence[str]] = []
    for number, (index, file) in enumerate(zip(predictions.mistakes, predictions.mistake_files, strict=False), start=1):
        guess, sure = predictions.classes[predictions.predicted_N[index]], predictions.confidences_N[index]
        rows.append([str(number), file, guess, f"{100 * sure:.1f}"])
    return Table(("picture", "file", "predicted", "confidence %"), rows)
