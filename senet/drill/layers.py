"""Which layer computed what: the input and the output of every module, in the order in which they came."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from senet.drill.digests import sum_of_bits

Event = tuple[str, str, str, Tensor]  # module, its type, "in" or "out", sum of the bits


class LayerTrace:
    """Hooks on all modules of a network, and the file of one rank.

    A pass is one micro-batch; those of one update are numbered over all ranks, in the order of their images.
    """

    def __init__(self, network: nn.Module, path: Path, rank: int) -> None:
        self._rank, self._path = rank, path
        self._passes: list[list[Event]] = []
        for name, module in network.named_modules():
            into, out_of = partial(self._before, name), partial(self._after, name)
            module.register_forward_pre_hook(into, with_kwargs=True)
            module.register_forward_hook(out_of)

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not name and module.training:
            self._passes.append([])
        self._note(name, module, "in", (args, kwargs))

    def _after(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        self._note(name, module, "out", output)

    def _note(self, name: str, module: nn.Module, side: str, value: Any) -> None:
        if module.training and self._passes:
            found = [sum_of_bits(tensor) for tensor in _tensors(value)]
            if found:
                self._passes[-1].append((name, type(module).__name__, side, sum_of_bits(torch.stack(found))))

    def end_of_update(self, step: int) -> None:
        """Write what the passes of update ``step`` were. Sync point: once per update."""
        with self._path.open("a") as file:
            for number, events in enumerate(self._passes):
                values = torch.stack([value for *_, value in events]).tolist()
                table = [[name, kind, side, value] for (name, kind, side, _), value in zip(events, values, strict=True)]
                row = {"step": step, "pass": self._rank * len(self._passes) + number, "events": table}
                file.write(json.dumps(row) + "\n")
        self._passes = []


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in _tensors(part))
    elif isinstance(value, list | tuple):
        yield from (tensor for part in value for tensor in _tensors(part))
