"""Model FLOP utilisation: the operations that training an image needs, against what the GPUs can do.

Counted once, by torch's own counter: multiplications and additions of convolutions and matrix products, forward and
backward, as they are carried out for two images. The peak is that of dense matrices in the precision in use, by the
data sheet; where it is not known (CPUs, parts of a GPU), nothing is counted, and nothing said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from senet.distributed.ranks import Ranks

log = logging.getLogger(__name__)
_TERA = 1e12
# By the name as CUDA has it: 1e12 operations per second in fp16 (and bf16, but for V100 and T4), and in TF32 (there:
# fp32), of dense matrices. From NVIDIA's data sheet of each, which since A100 print twice as much beside it, or instead
# of it, for sparse ones.
_PEAKS = {
    "Tesla T4": (65.0, 8.1),
    "Tesla V100-SXM2": (125.0, 15.7),
    "Tesla V100-PCIE": (112.0, 14.0),
    "NVIDIA A10": (125.0, 62.5),
    "NVIDIA A30": (165.0, 82.0),
    "NVIDIA A40": (149.7, 74.8),
    "NVIDIA A100": (312.0, 156.0),
    "NVIDIA L4": (121.0, 60.0),
    "NVIDIA L40S": (362.0, 183.0),
    "NVIDIA H100": (989.0, 494.0),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100 NVL": (835.0, 417.0),
    "NVIDIA GH200": (989.0, 494.0),
    "NVIDIA H200": (989.0, 494.0),
    "NVIDIA H200 NVL": (835.0, 417.0),
    "NVIDIA B200": (2250.0, 1125.0),
}
_WITHOUT_BF16 = ("Tesla T4", "Tesla V100")


def peak_flops(device: torch.device, amp: str) -> float:
    """Of one GPU, per second, in the precision of ``train.amp``; 0 where it is not known."""
    return peak_of(torch.cuda.get_device_name(device), amp) if device.type == "cuda" else 0.0


def peak_of(name: str, amp: str) -> float:
    """The same by the name of the GPU: the longest of the table that it begins with, whole words alone."""
    if " MIG " in name or (amp == "bf16" and name.startswith(_WITHOUT_BF16)):
        return 0.0
    known = [each for each in _PEAKS if name == each or name.startswith((f"{each} ", f"{each}-"))]
    if not known:
        return 0.0
    half, single = _PEAKS[max(known, key=len)]
    return (single if amp == "off" else half) * _TERA


@dataclass(frozen=True)
class Utilisation:
    """How much of the GPUs a network uses."""

    per_image: float
    """Floating point operations, 0 where they are not counted."""
    peak: float
    """Operations per second of all GPUs together."""

    @classmethod
    def measure(cls, run: Callable[[], None], images: int, *, amp: str, ranks: Ranks) -> Utilisation:
        """Count what ``run`` does for so many images, where the peak is known; all ranks are taken to have this GPU."""
        peak = peak_flops(ranks.device, amp)
        if not peak:
            return cls(0.0, 0.0)
        from torch.utils.flop_counter import FlopCounterMode  # nothing else needs it

        try:
            devices = [ranks.device] if ranks.device.type == "cuda" else []
            with torch.random.fork_rng(devices), FlopCounterMode(display=False) as counter:
                run()
        except Exception as error:  # not every network can be looked into
            log.warning("no model FLOP utilisation: %s: %s", type(error).__name__, error)
            return cls(0.0, 0.0)
        return cls(counter.get_total_flops() / images, peak * ranks.world_size)

    def facts(self, images_per_s: float) -> dict[str, float]:
        """``mfu``, between 0 and 1, where it is known."""
        return {"mfu": self.per_image * images_per_s / self.peak} if self.per_image and self.peak else {}
