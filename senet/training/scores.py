"""Scores, and the sums on the device that they are made of."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_LOSS_UNIT = 2.0**-24  # nats; the sum over 10**9 images still fits into 63 bits
_AT_ONCE = 16  # batches counted together: on small tensors, calling an operation costs more than its arithmetic
_NOT_FINITE = -(2.0**52)  # more than 10**8 nats below zero: no sum of losses in an epoch is


@dataclass(frozen=True)
class Scores:
    """Means over ``num_images``: loss in nats, accuracies in percent [0, 100]; ``top5`` only beyond 5 classes."""

    num_images: int
    loss: float
    top1: float
    top5: float | None

    @classmethod
    def from_sums(cls, sums: Sequence[int], num_classes: int) -> Scores:
        """From a ``Tally``'s sums."""
        num_images, loss, top1, top5 = sums
        count = max(num_images, 1)
        return cls(
            num_images,
            loss * _LOSS_UNIT / count if loss > _NOT_FINITE / 2 else math.nan,
            100 * top1 / count,
            100 * top5 / count if num_classes > 5 else None,
        )

    def row(self, prefix: str) -> dict[str, float]:
        """The scores by their names in metrics.jsonl."""
        named = {key: value for key, value in asdict(self).items() if value is not None and key != "num_images"}
        return {f"{prefix}_{key}": value for key, value in named.items()}


class Tally:
    """Number of images, loss, top-1 and top-5 hits, summed as int64 on the device.

    Sums of integers (the loss in units of 2**-24 nats) have the same bits in any order: over ranks, log intervals and
    restarts. Nothing here waits for the device. A loss that is NaN or infinite makes the mean NaN. Up to 16 batches of
    logits are kept until they are counted; do not change them in place.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.int64, device=device)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self) -> Tensor:
        """The sums since the last call, int64 [4]."""
        self._count()
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        return sums

    def add(self, loss: Tensor, logits_NK: Tensor, labels_N: Tensor) -> None:
        """Count a batch; ``loss`` is its mean, a float32 scalar."""
        if self._pending and self._pending[0][1].shape != logits_NK.shape:
            self._count()
        self._pending.append((loss, logits_NK, labels_N))
        if len(self._pending) == _AT_ONCE:
            self._count()

    def _count(self) -> None:
        if not self._pending:
            return
        losses, logits, labels = zip(*self._pending, strict=True)
        self._pending.clear()
        batch, num_classes = logits[0].shape
        loss_B, logits_MK, labels_M = torch.stack(losses), torch.cat(logits), torch.cat(labels)
        hits = logits_MK.topk(min(5, num_classes), dim=1).indices == labels_M[:, None]
        units_B = torch.where(loss_B.isfinite(), (loss_B.double() * (batch / _LOSS_UNIT)).round(), _NOT_FINITE).long()
        images = torch.full((), len(hits), device=hits.device)
        self._sums += torch.stack((images, units_B.sum(), hits[:, :1].sum(), hits.sum()))
