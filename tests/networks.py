"""Small networks for tests, named in configurations as ``tests.networks:...``."""

import os
import time
from typing import Any

import torch
from torch import Tensor, nn

from senet.models.senet import PreActBlock, SENet


def tiny_senet(num_classes: int) -> SENet:
    """SENet18's shape with an eighth of its channels and one block a stage."""
    return SENet(PreActBlock, [1, 1, 1, 1], num_classes=num_classes, widths=(8, 16, 32, 64), reduction=4)


def narrow_senet(num_classes: int) -> SENet:
    """What the run in ``tests/before`` trained."""
    return SENet(PreActBlock, [1, 1], num_classes=num_classes, widths=(8, 8), reduction=4)


def of_width(num_classes: int, width: int = 8, *, gates: bool = True, widths: list[int] | None = None) -> SENet:
    """With arguments: ``model.args.width=4``."""
    widths = widths or [width, 2 * width]
    return SENet(PreActBlock, [1] * len(widths), num_classes=num_classes, widths=widths, reduction=4 if gates else None)


class _NoNorm(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()
        )
        self.linear = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def with_dropout(num_classes: int) -> nn.Module:
    """Draws random numbers in each step."""
    return nn.Sequential(_NoNorm(16), nn.Dropout(0.5), nn.Linear(16, num_classes))


def fails_inside(num_classes: int) -> nn.Module:
    """A bug in a user's code."""
    return nn.Linear(num_classes, 1).nothing  # type: ignore[return-value]


def wide(num_classes: int) -> nn.Module:
    """Enough parameters for several of DDP's gradient buckets."""
    layers = [layer for _ in range(6) for layer in (nn.Linear(768, 768), nn.ReLU())]
    return nn.Sequential(nn.AvgPool2d(1), nn.Flatten(), *layers, nn.Linear(768, num_classes))


def no_norm(num_classes: int) -> nn.Module:
    """No batch statistics: its gradient does not depend on how a batch is shared out."""
    return _NoNorm(num_classes)


class _Slow(SENet):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(0.2)
        return super().forward(x)


def slow_senet(num_classes: int) -> SENet:
    """``tiny_senet``, five steps a second at the most on any machine, and little load on it."""
    return _Slow(PreActBlock, [1, 1, 1, 1], num_classes=num_classes, widths=(8, 16, 32, 64), reduction=4)


class _Buggy(SENet):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
            if int(self.passes) > 40:
                raise ValueError("boom: 41 is too much")
        return super().forward(x)


def fails_at_step_40(num_classes: int) -> SENet:
    """On each rank, after 40 updates, also after a resume."""
    return _Buggy(PreActBlock, [1, 1, 1, 1], num_classes=num_classes, widths=(8, 16, 32, 64), reduction=4)


def with_a_spare_layer(num_classes: int) -> nn.Module:
    """A layer that forward leaves out."""
    network = _NoNorm(num_classes)
    network.spare = nn.Linear(2, 2)
    return network


class _Spared(_NoNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))[:, :10] if self.training else super().forward(x)


def spares_a_layer_in_training(num_classes: int) -> nn.Module:
    """The same in training only."""
    return _Spared(num_classes)


def never_ready(num_classes: int) -> nn.Module:
    """A start that takes longer than its limit."""
    time.sleep(600)
    return no_norm(num_classes)


class _Unusual(_NoNorm):
    """What users' networks may contain, and those of the project do not."""

    _version = 2

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.colours = nn.Parameter(torch.eye(3).view(1, 3, 3, 1, 1).repeat(2, 1, 1, 1, 1))  # five dimensions
        self.constant = nn.Parameter(torch.full((2,), -torch.inf), requires_grad=False)
        self.register_buffer("mask", torch.zeros(16).index_fill(0, torch.tensor([3]), -torch.inf))
        self.register_buffer("order", torch.randperm(16), persistent=False)  # drawn, and not saved
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        self.kept = self.features(nn.functional.conv2d(x, self.colours.mean(0))).mean((2, 3))
        return self.linear(self.kept[:, self.order].masked_fill(self.mask < 0, 0))

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)  # and returns nothing

    def get_extra_state(self) -> dict[str, int]:
        return {"passes": self.passes}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.passes = state["passes"]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if local_metadata.get("version") != 2:
            raise ValueError("weights of another version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class _Counted(_NoNorm):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x)


def counts_its_passes(num_classes: int) -> nn.Module:
    """In a buffer, in evaluation mode too."""
    return _Counted(num_classes)


def unusual(num_classes: int) -> nn.Module:
    return _Unusual(num_classes)


def ignores_num_classes(num_classes: int) -> nn.Module:
    return _NoNorm(100 * num_classes)


class _Pair(_NoNorm):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def returns_a_pair(num_classes: int) -> nn.Module:
    return _Pair(num_classes)


class _PairInTraining(_NoNorm):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, x) if self.training else logits


def of_one_channel(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))


def of_16_pixels(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))


def lazy(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def lazy_norm(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LazyBatchNorm2d(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


class _Thresholded(_NoNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.max()) > 0 else x + torch.ones(3, 1, 1))


def looks_at_its_values(num_classes: int) -> nn.Module:
    """Cannot be tried without memory."""
    return _Thresholded(num_classes)


def returns_a_pair_in_training(num_classes: int) -> nn.Module:
    return _PairInTraining(num_classes)


def no_norm_the_other_way_round(num_classes: int) -> nn.Module:
    """The same names and shapes in another order."""
    network = _NoNorm(num_classes)
    network.features = network._modules.pop("features")
    return network


def no_norm_partly_frozen(num_classes: int) -> nn.Module:
    network = _NoNorm(num_classes)
    network.features.requires_grad_(False)
    return network


class _Attention(nn.Module):
    """16 patches of 4x4 pixels of images of 16x16."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.norm, self.linear = nn.LayerNorm(32), nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.linear(self.norm(self.layer(tokens)).mean(1))


def attention(num_classes: int) -> nn.Module:
    """Layer norms, attention, dropout; no batch statistics."""
    return _Attention(num_classes)


def norm_and_dropout(num_classes: int) -> nn.Module:
    """Batch statistics, and random numbers in each step."""
    pooled = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5))
    convolution = (nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*convolution, *pooled, nn.Linear(32, num_classes))


class _Centred(_NoNorm):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x).mean((2, 3))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * features.detach().float().mean(0)
        return self.linear(features - self.mean)


def replaces_its_buffer(num_classes: int) -> nn.Module:
    """A running mean that is used in training, each time a new tensor."""
    return _Centred(num_classes)


class _FrozenNorm(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> "_FrozenNorm":  # noqa: ARG002
        return super().train(False)


def with_frozen_norm(num_classes: int) -> nn.Module:
    """A batch norm that neither uses nor changes statistics of a batch, and whose parameters are not trained."""
    network = norm_and_dropout(num_classes)
    assert isinstance(network, nn.Sequential)
    network[1] = _FrozenNorm(8).requires_grad_(False)
    return network


class _Mixed(_NoNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)).bfloat16())


def partly_bfloat16_partly_frozen(num_classes: int) -> nn.Module:
    network = _Mixed(num_classes)
    network.linear.bfloat16()
    network.features[0].requires_grad_(False)
    return network


class _Restless(_Counted):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5)) * (1 + 0.01 * self.passes)


def restless(num_classes: int) -> nn.Module:
    """Draws random numbers and changes a buffer, which it uses, in evaluation mode too."""
    return _Restless(num_classes)


class _OfItsRank(_NoNorm):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        generator = torch.Generator().manual_seed(int(os.environ.get("RANK", "0")))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
        self.register_buffer("scale", torch.rand(16, generator=generator), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)) * self.scale)


def begins_different_on_each_rank(num_classes: int) -> nn.Module:
    """Weights, and a buffer that is not saved."""
    return _OfItsRank(num_classes)


class _Loud(_NoNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 1000 * super().forward(x)


def loud(num_classes: int) -> nn.Module:
    """Its gradients overflow fp16 at the scale with which a ``GradScaler`` begins."""
    return _Loud(num_classes)


class _Depthwise(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers = [
            layer
            for _ in range(4)
            for layer in (
                nn.Conv2d(64, 64, 3, padding=1, groups=64),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Conv2d(64, 64, 1),
            )
        ]
        self.features = nn.Sequential(nn.Conv2d(3, 64, 1), *layers)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def depthwise(num_classes: int) -> nn.Module:
    """Most of its time goes into layers with few operations."""
    return _Depthwise(num_classes)


class _Busy(nn.Module):
    """Takes ``factor`` times as long in one precision as in the other."""

    def __init__(self, slow: str, factor: float) -> None:
        super().__init__()
        self.linear, self.slow, self.factor = nn.Linear(3, 10), slow, factor

    def forward(self, x: Tensor) -> Tensor:
        amp = "bf16" if torch.is_autocast_enabled("cpu") else "off"
        end = time.thread_time() + 0.003 * len(x) * (self.factor if amp == self.slow else 1)
        while time.thread_time() < end:
            pass
        return self.linear(x.mean((2, 3)))


def busy(slow: str, factor: float) -> nn.Module:
    return _Busy(slow, factor)
