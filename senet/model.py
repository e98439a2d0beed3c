"""Squeeze-and-excitation networks for small images.

Hu, Shen & Sun, "Squeeze-and-Excitation Networks", CVPR 2018; the pre-activation block is He et al., "Identity Mappings
in Deep Residual Networks", ECCV 2016. SENet18 is [2, 2, 2, 2] pre-activation blocks with a 3x3 stem.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from senet.config import ConfigError

log = logging.getLogger(__name__)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means (sec. 3.1 and 3.2). [N, C, H, W] -> the same."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel, in [0, 1]. [N, C, H, W] -> [N, C, 1, 1]."""
        squeezed = x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(squeezed))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class _Block(nn.Module):
    """What both blocks share; reads the state dicts that have ``fc1``, ``fc2`` directly in the block."""

    def __init__(self, in_channels: int, channels: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcite(channels, reduction)
        self.register_load_state_dict_pre_hook(_move_gates)  # type: ignore[no-untyped-call]


def _move_gates(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for layer in ("fc1", "fc2"):
        for name in ("weight", "bias"):
            if (old := f"{prefix}{layer}.{name}") in state:
                state[f"{prefix}se.{layer}.{name}"] = state.pop(old)


class PreActBlock(_Block):
    """Norm and ReLU before each convolution, SE before the addition. [N, C_in, H, W] -> [N, C, H/stride, W/stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, reduction: int = 16) -> None:
        super().__init__(in_channels, channels, stride, reduction)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        gated: Tensor = self.se(out)
        return gated + shortcut


class BasicBlock(_Block):
    """Norm and ReLU after each convolution, SE before the addition. [N, C_in, H, W] -> [N, C, H/stride, W/stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, reduction: int = 16) -> None:
        super().__init__(in_channels, channels, stride, reduction)
        self.bn1 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        return F.relu(out + self.shortcut(x))


class SENet(nn.Module):
    """A 3x3 stem and four stages, of which the last three halve height and width; then the mean and a linear layer.

    Args:
        block: ``PreActBlock`` or ``BasicBlock``.
        num_blocks: blocks of each stage.
        widths: channels of each stage.

    Shape: float [N, 3, H, W] with H, W >= 16 -> logits [N, num_classes].
    """

    def __init__(
        self,
        block: type[PreActBlock] | type[BasicBlock],
        num_blocks: Sequence[int],
        *,
        num_classes: int = 10,
        widths: Sequence[int] = (64, 128, 256, 512),
        reduction: int = 16,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        in_channels = widths[0]
        for stage, (count, width) in enumerate(zip(num_blocks, widths, strict=True), start=1):
            blocks: list[nn.Module] = []
            for index in range(count):
                blocks.append(block(in_channels, width, 2 if index == 0 and stage > 1 else 1, reduction))
                in_channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(in_channels, num_classes)
        self._stages = len(widths)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self._stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def SENet18(num_classes: int = 10, reduction: int = 16) -> SENet:
    """Pre-activation blocks [2, 2, 2, 2]; 11,260,354 parameters with 10 classes."""
    return SENet(PreActBlock, [2, 2, 2, 2], num_classes=num_classes, reduction=reduction)


def build_model(name: str, *, num_classes: int, init_from: str = "") -> nn.Module:
    """``senet18`` or ``package.module:function``, with weights from a file where one is named.

    Raises:
        ConfigError: the function cannot be imported or called, or the weights are of another network.
    """
    if name == "senet18":
        model: nn.Module = SENet18(num_classes)
    else:
        module_name, _, function = name.partition(":")
        try:
            build = getattr(importlib.import_module(module_name), function)
            inspect.signature(build).bind(num_classes=num_classes)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"model.name={name}: {error}; it must be a function of num_classes") from None
        model = build(num_classes=num_classes)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model.name={name} returned a {type(model).__name__}; it must be a torch.nn.Module")
    if init_from:
        _init_from(model, init_from, num_classes)
    return model


def _init_from(model: nn.Module, path: str, num_classes: int) -> None:
    """Load weights; the layers that end in ``num_classes`` outputs stay new where the file has another number."""
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
    except RuntimeError as error:
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


def _find_weights(content: Any) -> dict[str, Tensor] | None:
    """The state dict in a checkpoint of ours ("model"), of others ("net", "state_dict"), or the content itself."""
    if not isinstance(content, Mapping):
        return None
    for key in ("model", "net", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = dict(content)
    return state if state and all(isinstance(value, Tensor) for value in state.values()) else None
