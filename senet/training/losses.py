"""The loss of a batch of logits, also of images that are mixed with their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from senet.config.options import Config, TrainConfig
from senet.data.changes.mixing import neighbours
from senet.distributed.ranks import Ranks
from senet.errors import ConfigError
from senet.own import load_function, own_code
from senet.training.feed import build_preprocess, images_at_once


class Loss(Protocol):
    """The loss of a batch."""

    def __call__(self, logits_NK: Tensor, targets_N: Tensor, keys_N: Tensor, shares_N: Tensor | None = None) -> Tensor:
        """A scalar.

        Args:
            logits_NK: float32.
            targets_N: class indices, int64.
            keys_N: 64 random bits of each image and epoch, int64.
            shares_N: what of each image is its own (``Preprocess.shares``), float32: the weight of its target, beside
                that of its neighbour.
        """


def build_loss(config: TrainConfig, weights_K: Tensor | None, reduction: Literal["sum", "mean"]) -> Loss:
    """The sum over N images, so that parts of a batch can be computed one after another, on any rank; or their mean,
    which is the same but for the last bit.

    Args:
        weights_K: what the loss of an image is multiplied by, for each class; see ``senet.data.balance``.
    """
    of_each = load_loss(config.loss) if config.loss else partial(_cross_entropies, config.label_smoothing)
    is_plain = not config.loss and weights_K is None

    def losses(logits_NK: Tensor, targets_N: Tensor, keys_N: Tensor) -> Tensor:
        losses_N = of_each(logits=logits_NK, targets=targets_N, keys=keys_N)
        if not isinstance(losses_N, Tensor) or losses_N.shape != targets_N.shape:
            found = tuple(losses_N.shape) if isinstance(losses_N, Tensor) else type(losses_N).__name__
            raise ConfigError(
                f"train.loss={config.loss} returned {found} for {len(targets_N)} images; have it return the loss of "
                f"each, a tensor of shape ({len(targets_N)},), e.g. with reduction='none'"
            )
        return losses_N if weights_K is None else losses_N * weights_K[targets_N]

    def loss(logits_NK: Tensor, targets_N: Tensor, keys_N: Tensor, shares_N: Tensor | None = None) -> Tensor:
        if is_plain and shares_N is None:
            return cross_entropy(
                logits_NK, targets_N, keys_N, label_smoothing=config.label_smoothing, reduction=reduction
            )
        losses_N = losses(logits_NK, targets_N, keys_N)
        if shares_N is not None:
            losses_N = shares_N * losses_N + (1 - shares_N) * losses(logits_NK, neighbours(targets_N), keys_N)
        return losses_N.float().sum() if reduction == "sum" else losses_N.float().mean()

    return loss


def load_loss(name: str) -> Callable[..., Tensor]:
    """What ``train.loss`` names; ConfigError where it cannot be called as a loss is."""
    return load_function("train.loss", name, given=["logits", "targets", "keys"])


def try_own(config: Config, ranks: Ranks, num_classes: int) -> None:
    """Call the user's own loss and changes of images once, with as many black images as this rank has in training.

    Raises:
        ConfigError: they fail, or return something else.
    """
    train, size = config.train, config.data.image_size
    share = train.global_batch_size // (train.shards or ranks.world_size)
    preprocess, indices_N = build_preprocess(config, ranks.device), torch.arange(share, device=ranks.device)
    if config.augment.extra:
        images_NHWC = torch.zeros(share, size, size, 3, dtype=torch.uint8, device=ranks.device)
        with own_code(f"augment.extra={config.augment.extra}"):
            preprocess.train(images_NHWC, indices_N, 0)
    if train.loss:
        targets_N = indices_N[: images_at_once(config, ranks)] % num_classes
        logits_NK = torch.zeros(len(targets_N), num_classes, device=ranks.device, requires_grad=True)
        with own_code(f"train.loss={train.loss}"):
            build_loss(train, None, "mean")(logits_NK, targets_N, preprocess.keys(targets_N, 0))


def cross_entropy(
    logits_NK: Tensor,
    targets_N: Tensor,
    keys_N: Tensor,  # noqa: ARG001
    *,
    label_smoothing: float,
    reduction: Literal["sum", "mean"],
) -> Tensor:
    """In nats."""
    return F.cross_entropy(logits_NK, targets_N, label_smoothing=label_smoothing, reduction=reduction)


def _cross_entropies(label_smoothing: float, *, logits: Tensor, targets: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
