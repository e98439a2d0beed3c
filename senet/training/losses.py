"""Losses of a batch of logits."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Loss(Protocol):
    """A sum over samples, so that parts of a batch can be computed one after another, on any rank."""

    def __call__(self, logits_NK: Tensor, targets_N: Tensor, keys_N: Tensor) -> Tensor:
        """A float32 scalar: the sum of the losses of N samples.

        Args:
            logits_NK: float32.
            targets_N: class indices, int64.
            keys_N: 64 random bits for each sample and epoch, int64, of which a loss that draws makes its draws
                (``senet.data.draws``): the same for any number of ranks, and after a resume.
        """
        ...


def cross_entropy(label_smoothing: float) -> Loss:
    """In nats."""

    def loss(logits_NK: Tensor, targets_N: Tensor, keys_N: Tensor) -> Tensor:  # noqa: ARG001
        return F.cross_entropy(logits_NK, targets_N, label_smoothing=label_smoothing, reduction="sum")

    return loss
