"""Squeeze-and-excitation networks for small images, and the same gates put into other networks.

Hu, Shen & Sun, "Squeeze-and-Excitation Networks", CVPR 2018; the pre-activation block is He et al., "Identity Mappings
in Deep Residual Networks", ECCV 2016. SENet18 is [2, 2, 2, 2] pre-activation blocks with a 3x3 stem.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.errors import ConfigError


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means (sec. 3.1 and 3.2). [N, C, H, W] -> the same.

    Both layers have biases, as in most implementations; the paper counts without.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def gate(self, x: Tensor) -> Tensor:
        """What ``forward(x)`` multiplies the channels by: [N, C, H, W] -> [N, C, 1, 1] in 0..1."""
        means = x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(means))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class _Block(nn.Module):
    """What both blocks share. Also loads state dicts that have ``fc1``, ``fc2`` directly in the block."""

    def __init__(self, in_channels: int, channels: int, stride: int, reduction: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se: nn.Module = SqueezeExcite(channels, reduction) if reduction else nn.Identity()
        self.register_load_state_dict_pre_hook(_move_gates)  # type: ignore[no-untyped-call]


def _move_gates(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for layer in ("fc1", "fc2"):
        for name in ("weight", "bias"):
            if (old := f"{prefix}{layer}.{name}") in state:
                state[f"{prefix}se.{layer}.{name}"] = state.pop(old)


class PreActBlock(_Block):
    """Norm and ReLU before each convolution, SE before the addition. [N, C_in, H, W] -> [N, C, H/stride, W/stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, reduction: int | None = 16) -> None:
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

    def __init__(self, in_channels: int, channels: int, stride: int = 1, reduction: int | None = 16) -> None:
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


class PaddedBlock(BasicBlock):
    """BasicBlock whose shortcuts have no parameters: every ``stride``-th pixel, and zeros for new channels.

    Option A of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, sec. 4.1; its CIFAR networks
    (sec. 4.2) are made of it.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, reduction: int | None = 16) -> None:
        super().__init__(in_channels, channels, stride, reduction)
        if len(self.shortcut):
            self.shortcut = nn.Sequential(_Pad(channels - in_channels, stride))


class _Pad(nn.Module):
    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class SENet(nn.Module):
    """A 3x3 stem and stages, of which all but the first halve height and width; then the mean and a linear layer.

    Args:
        block: ``PreActBlock``, ``BasicBlock`` or ``PaddedBlock``.
        num_blocks: blocks of each stage.
        widths: channels of each stage.
        reduction: channels per hidden unit of a gate; None: no gates.

    Shape: float [N, 3, H, W] with H, W >= 16 -> logits [N, num_classes].
    """

    def __init__(
        self,
        block: type[PreActBlock] | type[BasicBlock],
        num_blocks: Sequence[int],
        *,
        num_classes: int = 10,
        widths: Sequence[int] = (64, 128, 256, 512),
        reduction: int | None = 16,
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


def SENet18(num_classes: int = 10, reduction: int | None = 16) -> SENet:
    """Pre-activation blocks [2, 2, 2, 2]; 11,260,354 parameters with 10 classes, 11,171,274 without gates."""
    return SENet(PreActBlock, [2, 2, 2, 2], num_classes=num_classes, reduction=reduction)


def insert_se(model: nn.Module, reduction: int = 16, skip_last_stage: bool = False) -> nn.Module:
    """Put gates into the blocks of a network, in place, and return it.

    Into torchvision's BasicBlock and Bottleneck (resnet, resnext, wide_resnet) and this module's own blocks before the
    addition (fig. 3 of the paper); after the Inception blocks of torchvision's googlenet and inception_v3 (fig. 2).
    The other weights do not change. The keys of the module before a gate do (``bn3.weight`` -> ``bn3.0.weight``,
    ``inception3a.branch1...`` -> ``inception3a.0.branch1...``).

    Args:
        reduction: channels per hidden unit of a gate, >= 1.
        skip_last_stage: leave out the stage of the last block, whose gates are the largest: in ResNet-50 with 1000
            classes 3.7 % more parameters instead of 9.9 %.

    Raises:
        ConfigError: no such block in the model, or it has gates already.
    """
    # takes seconds to import, and senet18 does not need it
    from torchvision.models import inception, resnet
    from torchvision.models.googlenet import Inception

    inceptions = (Inception, *(getattr(inception, f"Inception{kind}") for kind in "ABCDE"))
    kinds = (_Block, resnet.BasicBlock, resnet.Bottleneck, *inceptions)
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    if not blocks:
        raise ConfigError(f"{type(model).__name__} has no blocks of a ResNet or Inception network to put gates into")
    if any(isinstance(module, SqueezeExcite) for module in model.modules()):
        raise ConfigError(f"{type(model).__name__} has gates already; insert them once")
    last_stage = _stage(blocks[-1][0])
    for name, block in blocks:
        if skip_last_stage and _stage(name) == last_stage:
            continue
        gate = SqueezeExcite(_out_channels(block), reduction).to(next(block.parameters()))
        if isinstance(block, _Block):
            block.se = gate
        elif isinstance(block, resnet.BasicBlock):
            block.bn2 = nn.Sequential(block.bn2, gate)
        elif isinstance(block, resnet.Bottleneck):
            block.bn3 = nn.Sequential(block.bn3, gate)
        else:
            model.set_submodule(name, nn.Sequential(block, gate))
    return model


def _stage(block_name: str) -> str:
    """layer4.2 -> layer4, inception5b -> inception5, Mixed_7c -> Mixed_7."""
    return re.sub(r"(\.\d+|[a-z])$", "", block_name)


def _out_channels(block: nn.Module) -> int:
    """Found with a copy on the meta device: takes no memory, and changes no statistics."""
    probe = copy.deepcopy(block).to("meta").eval()
    weight = next(probe.parameters())  # of its first convolution
    return int(probe(weight.new_zeros(1, weight.shape[1], 8, 8)).shape[1])
