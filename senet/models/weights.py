"""Initial weights from a file (``model.init_from``) or from images (``model.whiten``); memory order of weights."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from senet.compat import module_versions, with_module_versions
from senet.errors import ConfigError
from senet.models.pretrained import read_state
from senet.models.senet import SqueezeExcite

log = logging.getLogger(__name__)
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # of torchvision's googlenet and inception_v3


def init_from(model: nn.Module, path: str, num_classes: int, arguments: Mapping[str, Any]) -> None:
    """Load the weights of a file, of the best checkpoint of a run directory, or of torchvision or timm.

    Layers with ``num_classes`` outputs keep their random weights if the file has another number of outputs, and so do
    all gates if it has none. Prefixes that wrappers put before all names (``module.``, ``_orig_mod.``, ``model.``) are
    removed.

    Args:
        arguments: with which a network of timm was built; its weights are adapted to them.

    Raises:
        ConfigError: no such file, no weights in it, or weights of another network.
    """
    state = _match_names(read_state(path, model, arguments), model)
    own = model.state_dict()
    heads = {
        key
        for key, value in state.items()
        if key in own
        and isinstance(value, Tensor)
        and value.shape != own[key].shape
        and own[key].shape[:1] == (num_classes,)
        and value.shape[1:] == own[key].shape[1:]
    }
    for key in heads:
        del state[key]
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:  # ValueError: modules with a version of their state
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"model.init_from={path} is of another network: {reason}") from None
    gates = {f"{name}.{key}" for name, gate in _gates(model) for key in gate.state_dict()}
    gates = gates if gates <= set(missing) else set()
    auxiliary = [key for key in unexpected if key.partition(".")[0] in _AUXILIARY]
    if wrong := [f"{key} is missing there" for key in missing if key not in heads | gates] + [
        f"{key} is unknown here" for key in unexpected if key not in auxiliary
    ]:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ConfigError(f"model.init_from={path} is of another network: {wrong[0]}{more}")
    if heads:
        log.warning(
            "model.init_from=%s: new last layer for %d classes (%s)", path, num_classes, ", ".join(sorted(heads))
        )
    if auxiliary:
        log.warning("model.init_from=%s: its auxiliary heads are left out", path)
    if gates:
        log.warning("model.init_from=%s is of the network without gates: all %d are new", path, len(_gates(model)))


def _match_names(state: OrderedDict[str, Any], model: nn.Module) -> OrderedDict[str, Any]:
    """Remove the prefixes of wrappers, and rename the keys that ``insert_se`` changes."""
    own = model.state_dict().keys()
    # insert_se puts a gate after a module: bn2 -> bn2.0, and the gate is bn2.1
    gated = [name.removesuffix(".1") for name, _ in _gates(model) if name.endswith(".1")]

    def renamed(key: str) -> str:
        name = next((each for each in gated if key == each or key.startswith(f"{each}.")), None)
        return key if name is None or key in own else f"{name}.0{key.removeprefix(name)}"

    if "n_averaged" not in own:  # of torch's AveragedModel
        state.pop("n_averaged", None)
    while state and not any(renamed(key) in own for key in state):
        front = {key.partition(".")[0] for key in state if "." in key}
        if len(front) != 1 or not all("." in key for key in state):
            break
        consume_prefix_in_state_dict_if_present(state, f"{front.pop()}.")
    matched = {renamed(key): value for key, value in state.items()}
    versions = module_versions(state) or {}
    return with_module_versions(matched, versions | {renamed(key): value for key, value in versions.items()})


def _gates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, SqueezeExcite)]


def lay_out(model: nn.Module, *, channels_last: bool) -> None:
    """Put all 4-dimensional tensors into NHWC memory order; with ``channels_last=False`` make them contiguous."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:  # Module.to(memory_format=...) fails on 5 dimensions
            tensor.data = tensor.data.to(memory_format=layout)


@torch.no_grad()
def whiten_first_layer(model: nn.Module, images_NCHW: Tensor) -> None:
    """Make the first convolution whiten patches of these images (float32, normalised), and freeze it.

    Its filters become the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue, and
    their negatives, the largest eigenvalue first (Jordan 2024, arXiv:2404.00498, sec. 3.2): each output has variance 1
    and none is correlated with another's. Filters beyond twice the size of a patch keep their random weights.

    Raises:
        ConfigError: the first convolution does not take these images, or there is none.
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
