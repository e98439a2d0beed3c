"""Weights that are not drawn at random: from a file (``model.init_from``), or from images (``model.whiten``); how they
lie in memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from senet.config import ConfigError

log = logging.getLogger(__name__)


def init_from(model: nn.Module, path: str, num_classes: int) -> None:
    """Load weights; the layers that end in ``num_classes`` outputs stay new where the file has another number.

    Raises:
        ConfigError: no such file, none of weights, or weights of another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"model.init_from={path}: no such file") from None
    except Exception as error:  # on a file that is none the unpickler raises whatever it stumbles over
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(f"model.init_from={path} is no file of weights ({reason})") from None
    state = _find_weights(content)
    if state is None:
        raise ConfigError(f"model.init_from={path} holds no state dict; expected tensors by name, or a checkpoint")
    consume_prefix_in_state_dict_if_present(state, "module.")
    own = model.state_dict()
    heads = {
        key
        for key, value in state.items()
        if key in own
        and value.shape != own[key].shape
        and own[key].shape[:1] == (num_classes,)
        and value.shape[1:] == own[key].shape[1:]
    }
    for key in heads:
        del state[key]
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:  # the latter from modules that know versions of their state
        raise ConfigError(
            f"model.init_from={path} is of another network: {' '.join(str(error).split())[:300]}"
        ) from None
    if wrong := sorted(set(missing) - heads) + sorted(unexpected):
        raise ConfigError(
            f"model.init_from={path} is of another network: {wrong[0]} (and {len(wrong) - 1} more) do not match"
        )
    if heads:
        log.warning(
            "model.init_from=%s: new last layer for %d classes (%s)", path, num_classes, ", ".join(sorted(heads))
        )


def lay_out(model: nn.Module, *, channels_last: bool) -> None:
    """All that has four dimensions in NHWC memory order; else contiguous, as everything is."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:  # Module.to(memory_format=...) tries it on 5 as well, and fails
            tensor.data = tensor.data.to(memory_format=layout)


def _find_weights(content: Any) -> OrderedDict[str, Tensor] | None:
    """The state dict in a checkpoint of ours ("model"), of others ("net", "state_dict"), or the content itself."""
    if not isinstance(content, Mapping):
        return None
    for key in ("model", "net", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = OrderedDict(content)
    if hasattr(content, "_metadata"):
        state._metadata = content._metadata  # type: ignore[attr-defined]  # the version of each module
    return state if state and all(isinstance(value, Tensor) for value in state.values()) else None


@torch.no_grad()
def whiten_first_layer(model: nn.Module, images_NCHW: Tensor) -> None:
    """Make the first convolution whiten patches of these images (float32, normalised), and freeze it.

    Its filters become the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue, and
    their negatives, the largest eigenvalue first (Jordan 2024, arXiv:2404.00498, sec. 3.2): each output has variance 1
    and none is correlated with another's. Filters beyond twice the size of a patch keep their random weights.

    Raises:
        ConfigError: the network has no convolution of these images.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    channels = images_NCHW.shape[1]
    if not convolutions or convolutions[0].in_channels != channels or convolutions[0].groups != 1:
        raise ConfigError(f"model.whiten=true needs a network that begins with a convolution of {channels} channels")
    weight = convolutions[0].weight
    patches = nn.functional.unfold(images_NCHW, weight.shape[2:]).movedim(1, -1).flatten(0, 1)  # [patches, C * h * w]
    eigenvalues, eigenvectors = torch.linalg.eigh(patches.T.cov().double())  # ascending, columns
    filters = (eigenvectors / (eigenvalues + 5e-4).sqrt()).T.flip(0)
    filters = torch.stack([filters, -filters], 1).flatten(0, 1)[: len(weight)]
    weight[: len(filters)] = filters.to(weight).view(-1, *weight.shape[1:])
    weight.requires_grad_(False)
