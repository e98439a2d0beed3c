"""Numbers and short texts that stand for what a training holds: two of them are equal where its bits are."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from senet.training.learner import Learner

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
"""The highest bit of an int64 times any odd number is itself: two of them would cancel."""
_AT_ONCE = 2**18  # elements; their products take 2 MB, where on a CPU more or fewer are slower
_MOST_ITEMS, _DEEPEST = 300, 4
_OF_EVERY_MODULE = vars(nn.Module()).keys()
_OF_EVERY_OPTIMIZER = {
    name
    for kind in (torch.optim.SGD, torch.optim.AdamW)
    for name in vars(kind([nn.Parameter(torch.zeros(1))], lr=0.1, fused=True))
}
"""Some of them change at the first update, without an effect on the numbers."""


def sum_of_bits(tensor: Tensor) -> Tensor:
    """Of the tensor as integers, each times an odd number of its own: two changes do not cancel, nor does an exchange.
    On its device, where it costs one pass over its memory, and a copy where it is not contiguous."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    integers = tensor.reshape(-1).view(_INTEGERS[tensor.element_size()])
    factors = _odd_numbers(tensor.device)
    found = [(part * factors[: len(part)]).sum() for part in integers.split(_AT_ONCE)]
    return found[0] if len(found) == 1 else sum_of_bits(torch.stack(found))


@cache
def _odd_numbers(device: torch.device) -> Tensor:
    """The same in every process, and without a pattern, in which several changes might cancel."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(2**62, (_AT_ONCE,), generator=generator) * 2 + 1).to(device)


def sums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """``sum_of_bits`` of each. Sync point: the host waits for the device."""
    if not tensors:
        return {}
    devices = {tensor.device for tensor in tensors.values()}
    found = {name: sum_of_bits(tensor) for name, tensor in tensors.items()}
    if len(devices) > 1:  # of AdamW the counts of steps are on the CPU
        found = {name: value.cpu() for name, value in found.items()}
    return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))


def trained(learner: Learner) -> dict[str, Tensor]:
    """All tensors that an update changes and a checkpoint must hold, by a name that says what they are."""
    network, optimizer = learner.network, learner.optimizer
    saved = network.state_dict().keys()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, Tensor] = {f"parameter {name}": parameter for name, parameter in network.named_parameters()}
    found |= {f"buffer {name}": buffer for name, buffer in network.named_buffers() if name in saved}
    for parameter, state in optimizer.state.items():
        owner = names.get(id(parameter), "a parameter of no layer")
        found |= {f"{key} of {owner} in the optimizer": v for key, v in state.items() if isinstance(v, Tensor)}
    if learner.average is not None:
        average = learner.average.module.state_dict(keep_vars=True)
        found |= {f"average of {name}": value for name, value in average.items() if isinstance(value, Tensor)}
    return found


def unsaved(learner: Learner, data: object) -> dict[str, str]:
    """What else can be looked at, and no checkpoint holds: buffers with persistent=False, attributes."""
    network, found = learner.network, dict[str, str]()
    saved = network.state_dict().keys()
    for name, buffer in network.named_buffers():
        if name not in saved:
            found[f"{name} (a buffer with persistent=False)"] = described(buffer)
    for name, module in network.named_modules():
        found |= _attributes(name or "the network", module, _OF_EVERY_MODULE)
    found |= _attributes("the optimizer", learner.optimizer, _OF_EVERY_OPTIMIZER)
    for number, group in enumerate(learner.optimizer.param_groups):
        options = {key: value for key, value in group.items() if key not in ("params", "lr")}  # lr is set in each step
        found |= {f"the optimizer.param_groups[{number}].{key}": described(value) for key, value in options.items()}
    if learner.average is not None:
        for name, module in learner.average.named_modules():
            found |= _attributes(f"the average{name and f'.{name}'}", module, _OF_EVERY_MODULE)
    return found | _attributes(
        "the training images", data, {"images", "labels", "rows", "_images", "_labels", "pictures"}
    )


def _attributes(owner: str, thing: object, known: Iterable[str]) -> dict[str, str]:
    return {f"{owner}.{key}": described(value) for key, value in vars(thing).items() if key not in known}


def described(value: Any, depth: int = 0) -> str:
    """Equal for equal content; of large things a hash. What cannot be looked into is described by its type alone."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value) if len(value) < 40 else f"{type(value).__name__} {_hash([repr(value)])}"
    if isinstance(value, Tensor | np.ndarray):
        return _of_array(value)
    if state := _of_generator(value):
        return f"{type(value).__name__} in state {state}"
    parts = _parts(value) if depth < _DEEPEST else None
    if parts is None:
        return f"a {type(value).__name__}"
    texts = [f"{key}={described(part, depth + 1)}" for key, part in parts]
    whole = f"{type(value).__name__}({', '.join(texts)})"
    return whole if len(whole) < 60 else f"{type(value).__name__} of {len(texts)} parts, {_hash(texts)}"


def _of_array(value: Tensor | np.ndarray) -> str:
    array = value if isinstance(value, np.ndarray) else _on_cpu(value)
    if array.size == 1:
        return str(array.item())
    if array.dtype.hasobject:
        content = _hash([repr(array.tolist())])
    else:  # no copy, if it is contiguous: there may be much of it
        content = _hash_of(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.nbytes else b"")
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}, {content}"


def _on_cpu(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:  # NumPy does not know all of these
        tensor = tensor.float()
    return np.asarray(tensor)


def _of_generator(value: Any) -> str:
    """Of a generator of random numbers, a hash of where it stands; else empty."""
    if isinstance(value, random.Random):
        return _hash([repr(value.getstate())])
    if isinstance(value, np.random.RandomState):
        return _hash([repr(value.get_state())])
    if isinstance(value, np.random.Generator):
        return _hash([repr(value.bit_generator.state)])
    return _hash([value.get_state().numpy().tobytes().hex()]) if isinstance(value, torch.Generator) else ""


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """What a container or an object consists of; None where that cannot be seen, or is too much.

    Of other types than these, to iterate may change something: a DataLoader draws a random number.
    """
    if isinstance(value, nn.Module):
        return [(name, each) for name, each in value.state_dict().items() if isinstance(each, Tensor)]
    if isinstance(value, Mapping | list | tuple | deque | set | frozenset):
        if len(value) > _MOST_ITEMS:
            return None
        if isinstance(value, Mapping):
            return [(str(key), each) for key, each in value.items()]
        return [("", each) for each in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    own = not type(value).__module__.startswith(("torch", "builtins"))
    return (list(vars(value).items()) or None) if own and hasattr(value, "__dict__") else None


def _hash(texts: Iterable[str]) -> str:
    return _hash_of("\0".join(texts).encode())


def _hash_of(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:8]
