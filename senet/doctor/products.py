"""Matrix products: whether they are right, and how fast they are; and how fast memory is copied.

On a CPU the clock is the time that one thread could have run: what it waited for cores that others kept busy is left
out, so that a busy host does not look slow. What remains sees a lower frequency, a shared core, a process that is
stopped now and then, and the quota of a control group.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from senet.compat import cpu_capabilities
from senet.doctor.cores import Clocks

_SIDE = 256
_TILES = {"cpu": 2, "cuda": 16}  # so many times as wide and high: all cores or multiprocessors take part
# Of each precision the largest entry with which all sums of 256 products are exact, in any order of adding.
_LARGEST = {"fp64": 2**22 - 1, "fp32": 127, "tf32": 127, "fp16": 2, "bf16": 1}
_TYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_RATED_SIDE = {"cpu": 512, "cuda": 4096}
_COPY_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}
_WINDOWS, _WINDOW_S = 2, 0.2
_LONGEST_S = 1.0  # of a window on a host whose cores others use


def precisions(device: torch.device) -> list[str]:
    """Those that the device computes natively."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return ["fp64", "fp32", "fp16", *(["tf32", "bf16"] if native else [])]
    known = cpu_capabilities()
    bf16 = known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16")
    return ["fp64", "fp32", *(["bf16"] if bf16 else [])]


def wrong_elements(device: torch.device, seconds: float) -> dict[str, str]:
    """Precision -> the first wrong element of a product of small integers, "" where none is. At least one product of
    each, then again for ``seconds`` in all."""
    found, deadline = {}, time.monotonic() + seconds
    for number, name in enumerate(names := precisions(device)):
        left, right, expected = _with_known_product(_LARGEST[name])
        tiles = _TILES[device.type]
        left_MK, right_KN, expected_MN = (
            torch.from_numpy(np.tile(matrix, times)).to(device, _TYPES[name])
            for matrix, times in ((left, (tiles, 1)), (right, (1, tiles)), (expected, (tiles, tiles)))
        )
        until = deadline - seconds * (len(names) - 1 - number) / len(names)
        found[name] = ""
        while not found[name]:
            _allow_tf32(device, name)
            found[name] = _first_difference(torch.matmul(left_MK, right_KN), expected_MN)
            if time.monotonic() > until:
                break
    _allow_tf32(device, "fp32")
    return found


def _with_known_product(largest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two matrices of integers from -largest to largest, and their product by integer arithmetic."""
    count = np.arange(2 * _SIDE * _SIDE, dtype=np.uint64)
    mixed = (count * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)  # multiplicative hashing (Knuth)
    entries = (mixed % np.uint64(2 * largest + 1)).astype(np.int64) - largest
    left, right = entries.reshape(2, _SIDE, _SIDE)
    return left, right, left @ right


def _first_difference(product_MN: Tensor, expected_MN: Tensor) -> str:
    wrong = (product_MN != expected_MN).nonzero()
    if not len(wrong):
        return ""
    row, column = wrong[0].tolist()
    got, right = product_MN[row, column].item(), expected_MN[row, column].item()
    return f"element [{row}, {column}] of {list(product_MN.shape)} is {got:g} instead of {right:g} ({len(wrong)} wrong)"


def _allow_tf32(device: torch.device, precision: str) -> None:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def rates(device: torch.device, seconds: float) -> dict[str, list[float]]:
    """GFLOP/s of a product in each precision but fp64, and GB/s of a copy, each measured twice some time apart. After
    ``seconds`` no window is made longer for a busy core."""
    found: dict[str, list[float]] = {}
    deadline = time.monotonic() + seconds
    side, size = _RATED_SIDE[device.type], _COPY_BYTES[device.type]
    for _ in range(_WINDOWS):
        for name in precisions(device):
            if name != "fp64":  # consumer GPUs have next to none
                left_MK, right_KN = torch.ones(2, side, side, device=device, dtype=_TYPES[name])
                _allow_tf32(device, name)
                rate = _per_second(device, partial(torch.matmul, left_MK, right_KN), deadline)
                found.setdefault(name, []).append(2e-9 * side**3 * rate)
        source = torch.ones(size, device=device, dtype=torch.uint8)
        target = torch.zeros_like(source)
        rate = _per_second(device, partial(target.copy_, source), deadline)
        found.setdefault("copy", []).append(1e-9 * size * rate)
        del source, target, left_MK, right_KN
    _allow_tf32(device, "fp32")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _per_second(device: torch.device, work: Callable[[], object], deadline: float) -> float:
    return _per_second_of_gpu(work) if device.type == "cuda" else _per_second_of_thread(work, deadline)


def _per_second_of_gpu(work: Callable[[], object]) -> float:
    """By the GPU's own clock."""
    work()
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    count, deadline = 0, time.monotonic() + _WINDOW_S
    began.record()
    while time.monotonic() < deadline:
        work()
        count += 1
        if count % 8 == 0:
            torch.cuda.current_stream().synchronize()  # else thousands would wait in the queue
    ended.record()
    torch.cuda.synchronize()
    return 1e3 * count / float(began.elapsed_time(ended))


def _per_second_of_thread(work: Callable[[], object], deadline: float) -> float:
    """One thread, by the CPU time of the fastest call, less the share of the window in which it was kept from running
    although no other had its core."""
    work()  # torch's preparations
    fastest, began = float("inf"), Clocks.now()
    while True:
        before = time.thread_time()
        work()
        fastest = min(fastest, time.thread_time() - before)
        now = Clocks.now()
        ends = began.wall_s + (_WINDOW_S if now.wall_s >= deadline else _LONGEST_S)
        # in a few milliseconds on a core, one page fault would be a large share
        if now.wall_s >= ends or now.could_run_s(began) >= _WINDOW_S:
            return (1 - now.kept_from_running(began)) / max(fastest, 1e-9)
