"""Predictions and gates of a network on the test images: kept in one file, and the statistics made from them.

Does not import torch: a report is made again without the network.
"""

from __future__ import annotations

import io
import logging
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from senet.rundir.files import replace_file

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

GRID = 64  # images in each of the two grids
TOP = 5  # classes that are kept of each image: the probabilities of a thousand would be 200 MB for 50,000 images
SMALL_SHARE = 0.1
SMALL_RANGE = 0.02
_GATE = "gate "  # prefix of the names in the file
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """For N test images and K classes, all that the figures need: they can be drawn again without the images."""

    sha256: str
    """Of the checkpoint."""
    checkpoint: str
    """Its file name."""
    other_images: bool
    """Whether the images differ from those that the network was tested on in training."""
    classes: tuple[str, ...]
    """Names in label order."""
    top_NT: Integers
    """int32, the most probable classes, five where there are as many, the most probable first."""
    probabilities_NT: Floats
    """float32, of those; of all classes softmax of the logits."""
    labels_N: Integers
    """int64."""
    samples: Integers
    """Indices of up to 64 images, evenly spaced over the split."""
    sample_images: NDArray[np.uint8]
    """[len(samples), H, W, 3]."""
    mistakes: Integers
    """Indices of up to 64 images with a wrong prediction, the most confident first."""
    mistake_images: NDArray[np.uint8]
    """[len(mistakes), H, W, 3]."""
    gates: Mapping[str, Floats]
    """Mean gate [K, C] of each class and channel, by name of the block, in the network's order; {} without gates."""
    gate_shares: Floats
    """``class_share`` of each block."""
    weights: str = ""
    """"averaged" or "raw"; empty in a file of an older version."""
    mistake_files: tuple[str, ...] = ()
    """Paths below the folder of the images, in the order of ``mistakes``; () where images have none."""

    @property
    def predicted_N(self) -> Integers:
        """The most probable class."""
        return np.asarray(self.top_NT[:, 0], np.int64)

    @property
    def confidences_N(self) -> Floats:
        """The probability of the predicted class, float64."""
        return np.asarray(self.probabilities_NT[:, 0], np.float64)

    @property
    def accuracy(self) -> float:
        """Top-1, in percent."""
        return 100 * float((self.predicted_N == self.labels_N).mean())

    @property
    def top5(self) -> float | None:
        """Percent of the images whose class is among the five most probable; None with five classes or fewer."""
        if len(self.classes) <= TOP:
            return None
        return 100 * float((self.top_NT == self.labels_N[:, None]).any(1).mean())

    @property
    def blind_blocks(self) -> list[str]:
        """Blocks whose gates hardly depend on the class: it explains less than a tenth of their variance, or changes
        them by less than 0.02 (a constant per channel would do as well).
        """
        shares = zip(self.gate_ranges.items(), self.gate_shares, strict=True)
        return [name for (name, width), share in shares if share < SMALL_SHARE or width < SMALL_RANGE]

    @property
    def gate_ranges(self) -> dict[str, float]:
        """Range of the class means in each block: the largest minus the smallest, averaged over the channels."""
        return {name: float(np.ptp(means_KC, axis=0).mean()) for name, means_KC in self.gates.items()}

    def save(self, path: Path) -> None:
        """As .npz, numpy arrays only."""
        arrays = {name: np.asarray(value) for name, value in vars(self).items() if name != "gates"}
        arrays |= {f"{_GATE}{name}": means_KC for name, means_KC in self.gates.items()}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        replace_file(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Predictions | None:
        """None where there is no such file, or a damaged one."""
        try:
            with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
                arrays = dict(file)
            gates = {name.removeprefix(_GATE): arrays.pop(name) for name in list(arrays) if name.startswith(_GATE)}
            if "probabilities_NK" in arrays:  # an older version kept those of all classes
                arrays["top_NT"], arrays["probabilities_NT"] = most_probable(arrays.pop("probabilities_NK"))
            plain: dict[str, Any] = {name: str(arrays.pop(name)) for name in ("sha256", "checkpoint")}
            plain["other_images"] = bool(arrays.pop("other_images"))
            plain["weights"] = str(arrays.pop("weights", ""))
            plain["mistake_files"] = tuple(arrays.pop("mistake_files", np.array(())).tolist())
            return cls(**plain, classes=tuple(arrays.pop("classes").tolist()), gates=gates, **arrays)
        except FileNotFoundError:
            return None
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            log.warning("%s is damaged (%s) and is made again", path, error)
            return None


class GateTally:
    """Sums over the images of one block's gates, float64."""

    def __init__(self, num_classes: int) -> None:
        self._counts_K = np.zeros(num_classes)
        self._sums_KC = np.zeros((num_classes, 1))
        self._squares_C: Any = 0.0

    def add(self, gate_NC: Floats, labels_N: Integers) -> None:
        """Count a batch; gates in [0, 1]."""
        if not self._counts_K.any():
            self._sums_KC = np.zeros((len(self._counts_K), gate_NC.shape[1]))
        self._counts_K += np.bincount(labels_N, minlength=len(self._counts_K))
        np.add.at(self._sums_KC, labels_N, gate_NC)  # a product with [N, K] would take minutes for a thousand classes
        self._squares_C = self._squares_C + np.square(gate_NC).sum(0)

    def means_KC(self) -> Floats:
        """Mean gate of each class and channel (Hu et al., TPAMI 2020, arXiv:1709.01507v4, sec. 7.2)."""
        means: Floats = self._sums_KC / np.maximum(self._counts_K, 1)[:, None]
        return means

    def class_share(self) -> float:
        """The share of the gates' variance over images that the class explains, in [0, 1].

        Variance between the class means over total variance, each summed over the channels first, so that channels
        with almost constant gates count little (eta squared of the analysis of variance). If the class has no effect it
        is about (K - 1) / (N - 1); 0 if the gates are constant.
        """
        count = self._counts_K.sum()
        mean_C = self._sums_KC.sum(0) / count
        between = (self._counts_K[:, None] * np.square(self.means_KC() - mean_C)).sum()
        total = (self._squares_C - count * np.square(mean_C)).sum()
        return float(between / total) if total > 1e-12 * count else 0.0


class Calibration(NamedTuple):
    """Per bin of confidence, bin m of M being ((m - 1) / M, m / M]; zeros for an empty bin."""

    counts: Integers
    accuracies: Floats
    confidences: Floats
    error: float
    """Expected calibration error, in [0, 1]."""


def calibration(confidences_N: Floats, is_right_N: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Confidence against accuracy. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, sec. 2: ECE = sum
    over bins of (images in the bin / all images) * |accuracy - mean confidence|.
    """
    bin_N = np.clip(np.ceil(confidences_N * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(bin_N, minlength=bins)
    accuracies, confidences = (
        np.bincount(bin_N, weights=values, minlength=bins) / np.maximum(counts, 1)
        for values in (is_right_N.astype(np.float64), confidences_N)
    )
    error = float((counts * np.abs(accuracies - confidences)).sum() / len(bin_N))
    return Calibration(counts, accuracies, confidences, error)


def most_probable(probabilities_NK: Floats) -> tuple[Integers, Floats]:
    """The five most probable classes, int32 [N, 5], the smaller label first among equals, and their probabilities."""
    left_NK, rows_N = probabilities_NK.copy(), np.arange(len(probabilities_NK))
    top_NT = np.empty((len(left_NK), min(TOP, left_NK.shape[1])), np.int32)
    for place in range(top_NT.shape[1]):  # a hundredth of the time of a stable sort of a thousand classes
        top_NT[:, place] = left_NK.argmax(1)
        left_NK[rows_N, top_NT[:, place]] = -1
    return top_NT, np.take_along_axis(probabilities_NK, top_NT, 1)


def confident_mistakes(predicted_N: Integers, confidences_N: Floats, labels_N: Integers, count: int = GRID) -> Integers:
    """Indices of the wrong predictions, the most confident first; the smaller index among equals."""
    wrong = np.flatnonzero(predicted_N != labels_N)
    return wrong[np.argsort(-confidences_N[wrong], kind="stable")][:count]
