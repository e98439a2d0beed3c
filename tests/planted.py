"""Networks with a defect each, for the drill to find, and some that only look like it: ``tests.planted:...``."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.data.splits import Batch, Split
from senet.training import learner


class Small(nn.Module):
    """Two convolutions with a norm, a layer of the defect's between them and the last one."""

    def __init__(self, num_classes: int, defect: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)
        )
        self.defect = defect
        self.last = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.defect(self.features(x).mean((2, 3))))


def sound(num_classes: int) -> nn.Module:
    return Small(num_classes, nn.Identity())


def noisy_images(num_classes: int) -> nn.Module:
    """A source of images that draws from the operating system's generator."""
    read = Split.__getitem__

    def noisy(self: Split, indices: Tensor) -> Batch:
        images, labels, indices = read(self, indices)
        return images ^ random.SystemRandom().randrange(256), labels, indices

    Split.__getitem__ = noisy  # type: ignore[method-assign]
    return sound(num_classes)


def images_of_a_generator(num_classes: int) -> nn.Module:
    """A source of images that draws from a generator of its own, always seeded alike."""
    read = Split.__getitem__

    def changed(self: Any, indices: Tensor) -> Batch:
        images, labels, indices = read(self, indices)
        vars(self).setdefault("draws", random.Random(0))
        return images ^ self.draws.randrange(2), labels, indices

    Split.__getitem__ = changed  # type: ignore[method-assign]
    return sound(num_classes)


class _WarmUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def forward(self, x: Tensor) -> Tensor:
        self.updates += self.training
        return x * min(1.0, self.updates / 1000)


def counter_in_an_attribute(num_classes: int) -> nn.Module:
    """A layer that fades in."""
    return Small(num_classes, _WarmUp())


class _Centre(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def unsaved_buffer(num_classes: int) -> nn.Module:
    """A running mean that its author took for a constant."""
    return Small(num_classes, _Centre())


def unsaved_average(num_classes: int) -> nn.Module:
    """A trainer that forgets its averages."""
    state_dict = learner.Learner.state_dict
    learner.Learner.state_dict = lambda self: state_dict(self) | {"ema": {}}  # type: ignore[method-assign]
    return sound(num_classes)


class _OwnDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.draws = random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.tensor([2.0 * self.draws.randrange(2) for _ in range(x.shape[1])])


def dropout_of_a_generator(num_classes: int) -> nn.Module:
    """Dropout by a generator that the layer keeps."""
    return Small(num_classes, _OwnDropout())


class _ByRank(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + int(os.environ.get("RANK", "0")) / 100) if self.training else x


def looks_at_the_rank(num_classes: int) -> nn.Module:
    return Small(num_classes, _ByRank())


class _Threads(nn.Module):
    """Adds up in the order in which threads come, as atomic additions on a GPU do."""

    def forward(self, x: Tensor) -> Tensor:
        total, lock = torch.zeros_like(x), threading.Lock()
        factors = torch.linspace(0.1, 0.9, 8)

        def add(factor: Tensor) -> None:
            nonlocal total
            part = x * factor
            time.sleep(random.SystemRandom().random() / 100)
            with lock:
                total = total + part

        threads = [threading.Thread(target=add, args=(factor,)) for factor in factors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return total


def order_of_threads(num_classes: int) -> nn.Module:
    return Small(num_classes, _Threads())


class _Warming(torch.optim.SGD):
    """SGD that takes small steps at first."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        for group in self.param_groups:
            group["lr"] *= min(1.0, self.steps / 100)
        super().step(closure)


def optimizer_outside_state(num_classes: int) -> nn.Module:
    """An optimizer that counts in an attribute."""
    learner.build_optimizer = lambda model, config, **_: _Warming(  # type: ignore[assignment]
        [{"params": list(model.parameters()), "initial_lr": config.lr}], lr=config.lr
    )
    return sound(num_classes)


class _Clock(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + time.time() % 1 / 100) if self.training else x


def time_of_day(num_classes: int) -> nn.Module:
    return Small(num_classes, _Clock())


def counts_calls_out_of_sight(num_classes: int) -> nn.Module:
    """The count is in a function's closure, where nothing can look."""
    calls = 0

    def scaled(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output * (1 + min(calls, 1000) / 1000)

    network = sound(num_classes)
    network.get_submodule("last").register_forward_hook(scaled)
    return network


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(16), nn.Dropout(0.2)
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.last = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).view(-1, 1, 16)
        return self.last(self.drop(x + self.attention(x, x, x, need_weights=False)[0])).flatten(1)


def attention_and_dropout(num_classes: int) -> nn.Module:
    """Sound: what it draws is seeded in each step."""
    return Small(num_classes, _Attention())


class _GlobalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 * random.randrange(2) if self.training else x


def dropout_of_python(num_classes: int) -> nn.Module:
    """Sound: Python's own generator is seeded in each step too."""
    return Small(num_classes, _GlobalDropout())


class _Kept(nn.Module):
    """Counts, and saves that; computes a table once, and never again."""

    def __init__(self) -> None:
        super().__init__()
        self.passes, self.table = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        if self.table is None:
            self.table = torch.linspace(0.5, 1.5, x.shape[1])
        return F.hardtanh(x * self.table, -1, 1 + self.passes / 100)

    def get_extra_state(self) -> dict[str, int]:
        return {"passes": self.passes}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.passes = state["passes"]


def extra_state_and_a_cache(num_classes: int) -> nn.Module:
    """Sound: what matters is saved, and the rest computed alike."""
    return Small(num_classes, _Kept())
