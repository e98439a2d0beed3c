"""How many images per second a network trains on one core of this CPU, in each precision."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.amp import autocast

from senet.models.weights import lay_out

Rates = dict[str, float]
"""Precision, "off" or "bf16" -> images per second of one core."""
_PAIRS = 3  # of passes, one in each precision
_AIM_S, _LIMIT_S = 1.2, 2.0  # CPU time of all pairs; after which no further pass is begun
log = logging.getLogger(__name__)


def measure(
    network: nn.Module,
    images: int,
    image_size: int,
    *,
    channels_last: bool,
    gather: Callable[[float], list[float]],
) -> Rates:
    """Time forward and backward passes of a copy of the network, in turns; the fastest of each precision counts. Empty
    where it cannot be copied or run. A collective: call on every rank, a network may hold collectives of its own.

    It is the CPU time of one thread: wall time, and that of several threads, depends on what else runs.

    Args:
        images: of a pass in training. Fewer are taken where they would take too long, but at least two.
        gather: the numbers of all ranks, in rank order. The clock is rank 0's.
    """
    threads, spent_s, count, rates = torch.get_num_threads(), 0.0, 2, Rates()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):  # the random numbers of the training stay as they are
            time_pass = _passes_of_a_copy(network, image_size, channels_last=channels_last)
            for number in range(2 + 2 * _PAIRS):
                amp = "off" if number % 2 else "bf16"
                seconds = gather(time_pass(count, amp))
                if any(map(math.isnan, seconds)):
                    return {}
                rates[amp] = max(count / seconds[0], rates.get(amp, 0.0))
                spent_s += seconds[0]
                if len(rates) == 2 and spent_s > _LIMIT_S:
                    break
                fitting = min(images, int(_AIM_S / _PAIRS * count / spent_s))
                if number == 1 and fitting > count:  # the first pair has torch's preparations in it
                    count, rates = fitting, {}
    finally:
        torch.set_num_threads(threads)
    return rates


def _passes_of_a_copy(network: nn.Module, image_size: int, *, channels_last: bool) -> Callable[[int, str], float]:
    """Returns the CPU seconds of a pass of so many images in a precision. NaN where it fails, which is logged: what is
    wrong shows when the network trains."""
    trial: list[nn.Module] = []

    def timed(count: int, amp: str) -> float:
        try:
            if not trial:
                trial.append(copy.deepcopy(network))
                trial[0].train()
                lay_out(trial[0], channels_last=channels_last)
            images_NCHW = torch.randn(count, 3, image_size, image_size)
            if channels_last:
                images_NCHW = images_NCHW.to(memory_format=torch.channels_last)
            trial[0].zero_grad()
            began = time.thread_time()  # CPU tensors: the backward pass runs in this thread
            with autocast("cpu", dtype=torch.bfloat16, enabled=amp != "off"):
                logits_NK = trial[0](images_NCHW)
            labels_N = torch.arange(count) % logits_NK.shape[1]
            nn.functional.cross_entropy(logits_NK.float(), labels_N).backward()
            return time.thread_time() - began
        except Exception as error:
            log.info("train.amp=auto could not measure: %s: %s", type(error).__name__, str(error).split("\n")[0])
            return math.nan

    return timed
