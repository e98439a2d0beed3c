"""Small networks for tests, named in configurations as ``tests.networks:...``."""

import time

from torch import Tensor, nn

from senet.model import PreActBlock, SENet


def tiny_senet(num_classes: int) -> SENet:
    """SENet18's shape with an eighth of its channels and one block a stage."""
    return SENet(PreActBlock, [1, 1, 1, 1], num_classes=num_classes, widths=(8, 16, 32, 64), reduction=4)


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
    """A bug in somebody's own code."""
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
            time.sleep(0.1)
        return super().forward(x)


def slow_senet(num_classes: int) -> SENet:
    """``tiny_senet``, ten steps a second at the most on any machine, and next to no load on it."""
    return _Slow(PreActBlock, [1, 1, 1, 1], num_classes=num_classes, widths=(8, 16, 32, 64), reduction=4)


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
    """A start that takes longer than it is given."""
    time.sleep(600)
    return no_norm(num_classes)
