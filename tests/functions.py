"""Losses and changes of images for tests, named in configurations as ``tests.functions:...``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from senet.data.augment import draw_below


def cross_entropies(logits: Tensor, targets: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    return F.cross_entropy(logits, targets, reduction="none")


def random_loss(logits: Tensor, targets: Tensor, keys: Tensor) -> Tensor:
    """Depends on each image's random bits."""
    return F.cross_entropy(logits, targets, reduction="none") * (0.5 + draw_below(1024, keys, 5) / 1024)


def margin(logits: Tensor, targets: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    """Is below 0 for what is right."""
    return -logits.log_softmax(1).gather(1, targets[:, None])[:, 0] - 100


def mean_loss(logits: Tensor, targets: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    return F.cross_entropy(logits, targets)


def without_keys(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def divides(logits: Tensor, targets: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    return logits[:, 0] * (1 / (len(targets) // (len(targets) + 1)))


def of_no_image(images: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    return images + None


def contrast(images: Tensor, keys: Tensor) -> Tensor:
    return images * (0.8 + draw_below(401, keys, 5)[:, None, None, None] / 1000)


def of_other_shape(images: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    return images[:, :1]


def as_double(images: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    return images.double()


def same(images: Tensor, keys: Tensor) -> Tensor:  # noqa: ARG001
    return torch.clone(images, memory_format=torch.contiguous_format)
