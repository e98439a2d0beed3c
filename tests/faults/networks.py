"""Networks that cause the fault: a bug in a user's code, or a broken device, on one rank."""

import os
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from senet.data.samplers import Batch
from senet.models.senet import PreActBlock, SENet
from senet.training.feed import Feed

FAULTY_RANK = int(os.environ.get("FAULTY_RANK", "1"))
DATA_WAIT_S = float(os.environ.get("DATA_WAIT_S", "0.2"))
AT = 12  # forward pass in training, 1 is the first


class _Senet(SENet):
    """``tests.networks:tiny_senet``, with the number of its forward passes in training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(PreActBlock, [1, 1, 1, 1], num_classes=num_classes, widths=(8, 16, 32, 64), reduction=4)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        here = self.training and int(os.environ.get("RANK", "0")) == FAULTY_RANK
        return self.fault(super().forward(x), here)

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        raise AssertionError


class Paced(_Senet):
    """At most thirty forward passes a second, so that a test can act at a chosen step."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        time.sleep(0.03)
        return logits


class LongTest(_Senet):
    """An evaluation that takes a while."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        time.sleep(0 if self.training else 0.4)
        return logits


class Slow(_Senet):
    """A slow device."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        time.sleep(1.5 if here else 0)
        return logits


class BackwardRaises(_Senet):
    """A bug in the backward pass of a user's code."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        if here and self.passes == AT:
            logits.register_hook(self.raises)
        return logits

    @staticmethod
    def raises(_gradient: Tensor) -> None:
        raise ValueError("a bug in a backward pass")


class Bug(_Senet):
    """A bug in a user's code, always at the same update."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        if here and self.get_buffer("layer1.0.bn1.num_batches_tracked") == AT:
            raise ValueError("a bug of a user")
        return logits


class GpuWithoutMemory(_Senet):
    """What torch raises where a GPU has no memory left."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        if here and self.passes == AT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity")
        return logits


class MemoryEater(_Senet):
    """More and more memory."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        if here and self.passes >= AT:
            self.eaten = [*getattr(self, "eaten", []), torch.ones(2**26)]  # 256 MB
        return logits


class Stuck(_Senet):
    """Code that never returns, but keeps no lock."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        if here and self.passes == AT:
            time.sleep(10_000)
        return logits


class NotANumber(_Senet):
    """One NaN."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        return logits * torch.nan if here and self.passes == AT else logits


class Overflow(_Senet):
    """A gradient beyond fp16, the loss is fine."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        if here and self.passes == AT:
            logits.register_hook(lambda gradient: gradient * 1e30)
        return logits


class Drift(_Senet):
    """One weight changes by itself."""

    def fault(self, logits: Tensor, here: bool) -> Tensor:
        if here and self.passes == AT:  # data: what a bit flip changes, autograd does not see
            self.get_parameter("layer2.0.conv1.weight").data[3, 1, 0, 0] += 1e-3
        return logits


def paced(num_classes: int) -> SENet:
    return Paced(num_classes)


def long_test(num_classes: int) -> SENet:
    return LongTest(num_classes)


def slow(num_classes: int) -> SENet:
    return Slow(num_classes)


def bug(num_classes: int) -> SENet:
    return Bug(num_classes)


def gpu_without_memory(num_classes: int) -> SENet:
    return GpuWithoutMemory(num_classes)


def memory_eater(num_classes: int) -> SENet:
    return MemoryEater(num_classes)


def stuck(num_classes: int) -> SENet:
    return Stuck(num_classes)


def not_a_number(num_classes: int) -> SENet:
    return NotANumber(num_classes)


def backward_raises(num_classes: int) -> SENet:
    return BackwardRaises(num_classes)


def overflow(num_classes: int) -> SENet:
    return Overflow(num_classes)


def drift(num_classes: int) -> SENet:
    return Drift(num_classes)


def slow_data(num_classes: int) -> SENet:
    """``tests.networks:tiny_senet``, and each batch of training images comes after ``DATA_WAIT_S``."""
    Feed.train = _slow_train  # type: ignore[method-assign]
    return Paced(num_classes)


_train = Feed.train


def _slow_train(feed: Feed, epoch: int, first_batch: int) -> Iterator[Batch]:
    for batch in _train(feed, epoch, first_batch):
        time.sleep(DATA_WAIT_S)
        yield batch
