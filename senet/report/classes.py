"""How each class is predicted, and which are taken for which. Linear in the images: a matrix of twenty thousand classes
would not fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from senet.report.analysis import Floats, Integers, Predictions


@dataclass(frozen=True)
class Confusions:
    """Of K classes. NaN: a class without images has no accuracy, one that is never predicted no precision."""

    images_K: Integers
    accuracies_K: Floats
    """Percent of the images of a class that are predicted as this class (its recall)."""
    precisions_K: Floats
    """Percent of the predictions of a class that are right."""
    true_P: Integers
    """Of each pair of classes that are confused, the most frequent first, the smaller labels first among equals."""
    predicted_P: Integers
    counts_P: Integers
    """Images."""

    @classmethod
    def of(cls, predictions: Predictions) -> Confusions:
        number = len(predictions.classes)
        labels_N, predicted_N = predictions.labels_N, predictions.predicted_N
        right_N = labels_N == predicted_N
        hits_K, images_K, guesses_K = (
            np.bincount(some, minlength=number) for some in (labels_N[right_N], labels_N, predicted_N)
        )
        pairs_P, counts_P = np.unique(number * labels_N[~right_N] + predicted_N[~right_N], return_counts=True)
        order_P = np.argsort(-counts_P, kind="stable")
        true_P, predicted_P = np.divmod(pairs_P[order_P], number)
        with np.errstate(invalid="ignore"):
            accuracies_K, precisions_K = 100 * hits_K / images_K, 100 * hits_K / guesses_K
        return cls(images_K, accuracies_K, precisions_K, true_P, predicted_P, counts_P[order_P])

    def mistakes(self) -> dict[int, tuple[int, int]]:
        """By true class: the class that its images are most often taken for, and how many are."""
        classes, first = np.unique(self.true_P, return_index=True)
        pairs = zip(self.predicted_P[first].tolist(), self.counts_P[first].tolist(), strict=True)
        return dict(zip(classes.tolist(), pairs, strict=True))

    def matrix_KK(self) -> Integers:
        """Rows are the true class, columns the predicted one."""
        counts_KK = np.zeros((len(self.images_K), len(self.images_K)), np.int64)
        counts_KK[self.true_P, self.predicted_P] = self.counts_P
        np.fill_diagonal(counts_KK, self.images_K - counts_KK.sum(1))
        return counts_KK
