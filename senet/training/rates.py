"""How fast this CPU computes the largest layers of a network, in each precision."""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senet.compat import TorchDispatchMode

Rates = dict[str, float]
"""Precision, "off" or "bf16" -> GFLOP/s of one core."""
DTYPES = {"off": torch.float32, "bf16": torch.bfloat16}
PASSES = 3
"""Operations of forward and backward pass over those of the forward pass."""
_TRIES = 6  # the first one is left out
_AIM_S, _LIMIT_S = 0.4, 1.5  # CPU time of all tries; wall time after which half of them are enough
_SMALL_SHARE = 0.1  # of the operations: a kind of layer with less is not measured


@dataclass(frozen=True)
class Layer:
    """A convolution or a matrix product that a network computes."""

    kind: str
    apply: Callable[[Tensor, Tensor], Tensor]
    """Of input and weight."""
    input: tuple[float, ...]
    """Its shape, the first size for one image."""
    weight: tuple[int, ...]
    flop: float
    """Of one image and a forward pass."""


def largest_layers(network: nn.Module, images_NCHW: Tensor) -> list[tuple[Layer, float]]:
    """The convolution and the matrix product on whose shapes the network spends most operations, each with the share of
    all convolutions or products. They are seen where torch computes them, whichever module or function asks for them.

    Runs a copy of the network: its buffers, and random numbers, stay as they are. Empty if that fails.
    """
    seen = _Seen(len(images_NCHW))
    try:
        trial = copy.deepcopy(network)
        trial.eval()
        with torch.random.fork_rng(devices=[]), seen:
            trial(images_NCHW)
    except Exception:  # not every network can be copied, or run without autocast; what is wrong shows when it trains
        return []
    total = sum(layer.flop for layer in seen.layers)
    found = []
    for kind in ("convolution", "product"):
        own = [layer for layer in seen.layers if layer.kind == kind]
        share = sum(layer.flop for layer in own) / total if own else 0.0
        if share > _SMALL_SHARE:
            flop: dict[Any, float] = defaultdict(float)
            for layer in own:
                flop[layer.input, layer.weight] += layer.flop
            found.append((max(own, key=lambda layer: flop[layer.input, layer.weight]), share))
    return found


class _Seen(TorchDispatchMode):
    """The layers that are computed while it is entered."""

    def __init__(self, images: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self._images = images

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            images, weight, _bias, *how = args
            transposed = how[3]
            flop = 2 * (images if transposed else result).numel() * weight[0].numel()
            self._add("convolution", lambda x, w: torch.convolution(x, w, None, *how), images, weight.shape, flop)
        elif function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            rows, columns = args[-2:]
            flop = 2 * rows.numel() * columns.shape[1]
            self._add("product", nn.functional.linear, rows, columns.shape[::-1], flop)
        return result

    def _add(self, kind: str, apply: Callable[[Tensor, Tensor], Tensor], given: Tensor, weight: Any, flop: int) -> None:
        first, *rest = given.shape
        shape = (first / self._images, *rest)
        self.layers.append(Layer(kind, apply, shape, tuple(weight), flop / self._images))


def measure(layers: list[tuple[Layer, float]], images: int, *, channels_last: bool) -> Rates:
    """GFLOP/s of one core in forward and backward passes through these layers, weighted by their shares.

    It is the CPU time of one thread that counts: wall time, and that of several threads, depends on what else runs.

    Args:
        images: those of a pass in training. Fewer are taken where they would take too long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        few = min(images, 2)
        image_s = sum(min(times) for times in _times(layers, few, 2, channels_last).values()) / few
        many = max(few, min(images, int(_AIM_S / _TRIES / image_s)))
        times = _times(layers, many, _TRIES, channels_last)
    finally:
        torch.set_num_threads(threads)
    rates = {}
    for amp in DTYPES:
        flop_s = sum(
            share * statistics.median(times[amp, number][1:]) / (PASSES * layer.flop * many)
            for number, (layer, share) in enumerate(layers)
        )
        rates[amp] = 1e-9 / flop_s
    return rates


def _times(
    layers: list[tuple[Layer, float]], images: int, tries: int, channels_last: bool
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each try, by precision and number of the layer; alternated, for clocks that change. The first one also
    has torch's preparations in it."""
    passes = {
        (amp, number): training_pass(layer, images, amp, channels_last=channels_last)
        for number, (layer, _) in enumerate(layers)
        for amp in DTYPES
    }
    times: dict[tuple[str, int], list[float]] = {key: [] for key in passes}
    began = time.perf_counter()
    for count in range(tries):
        if count > _TRIES // 2 and time.perf_counter() - began > _LIMIT_S:
            break
        for key in list(passes)[:: 1 if count % 2 else -1]:
            times[key].append(passes[key]())
    return times


def training_pass(layer: Layer, images: int, amp: str, *, channels_last: bool) -> Callable[[], float]:
    """A forward and backward pass on tensors of its own, as autocast has it: activations in the precision, weights in
    fp32. Returns its CPU seconds."""
    generator = torch.Generator().manual_seed(0)  # the random numbers of the training stay as they are

    def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = torch.randn(shape, generator=generator).to(dtype)
        if channels_last and tensor.ndim == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        return tensor.requires_grad_()

    first, *rest = layer.input
    given = fresh((max(1, round(first * images)), *map(int, rest)), DTYPES[amp])
    weight = fresh(layer.weight, torch.float32)

    def timed() -> float:
        began = time.thread_time()
        result = layer.apply(given, weight.to(DTYPES[amp]))
        torch.autograd.grad(result, (given, weight), torch.ones_like(result))
        return time.thread_time() - began

    return timed
