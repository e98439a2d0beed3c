"""The loss of a batch of logits."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits_NK: Tensor,
    targets_N: Tensor,
    keys_N: Tensor,  # noqa: ARG001
    *,
    label_smoothing: float,
    reduction: Literal["sum", "mean"],
) -> Tensor:
    """A float32 scalar, in nats: the sum over N samples, so that parts of a batch can be computed one after another, on
    any rank; or their mean, which is the same but for the last bit.

    Args:
        logits_NK: float32.
        targets_N: class indices, int64.
        keys_N: 64 random bits for each sample and epoch, int64, of which a loss that draws would make its draws
            (``senet.data.augment``): the same for any number of ranks, and after a resume.
    """
    return F.cross_entropy(logits_NK, targets_N, label_smoothing=label_smoothing, reduction=reduction)
