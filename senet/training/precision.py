"""The precision that ``train.amp=auto`` comes to: the faster one, measured at the first start of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup

from senet.compat import cpu_capabilities
from senet.config.load import changed_options
from senet.config.options import Config
from senet.distributed.groups import broadcast_bytes, gather
from senet.distributed.ranks import Ranks
from senet.rundir.checkpoint import Checkpoint
from senet.rundir.files import read_rows
from senet.rundir.lease import Lease
from senet.training.feed import images_at_once
from senet.training.rates import Rates, measure

CLOSE = 1.15
"""Rates whose ratio is smaller do not decide: they vary that much from one start to the next."""
log = logging.getLogger(__name__)


def choose_amp(
    config: Config,
    ranks: Ranks,
    network: nn.Module,
    processor: str,
    begun: Mapping[str, Any] | None,
    group: ProcessGroup,
) -> tuple[str, dict[str, Any]]:
    """The precision, equal on all ranks, and what starts.jsonl tells of the choice. A collective: call on every rank.

    Args:
        begun: on rank 0, the facts of the start whose choice is kept; see ``begun_with``.

    Returns:
        the latter with train.amp=auto only: "amp_rates", images per second of one core in each precision, empty where
        none were measured; "options", those that are not the default.
    """
    wanted = config.train.amp
    if wanted == "fp16" and ranks.device.type == "cpu":
        log.warning("train.amp=fp16 on a CPU is slow; bf16 or off is faster")
    if wanted != "auto":
        return wanted, {}
    kept = {"amp": begun["amp"], "same": begun.get("processor") == processor} if begun else {}
    sent = broadcast_bytes(json.dumps(kept).encode() if ranks.is_main else None, group)
    assert sent is not None
    kept = json.loads(sent.read())
    have = gather(native_amp(ranks.device) == "bf16", group)
    rates: Rates = {}
    if all(have) and ranks.device.type == "cpu" and not kept.get("same"):
        images, size, channels_last = images_at_once(config, ranks), config.data.image_size, config.train.channels_last
        rates = measure(network, images, size, channels_last=channels_last, gather=partial(gather, group=group))
    fastest = faster(rates) if rates else ("bf16" if all(have) else "off")
    _say(kept, fastest, rates, ranks.roster.name(rank for rank, has_bf16 in enumerate(have) if not has_bf16))
    found = {"amp_rates": rates, "options": {key: now for key, _, now in changed_options({}, config)}}
    return kept.get("amp", fastest), found


def begun_with(config: Config, checkpoint: Checkpoint | None, lease: Lease | None) -> Mapping[str, Any] | None:
    """On rank 0 with train.amp=auto: the facts of the earlier start in whose precision this one goes on; None: there is
    none, and one is to be chosen.

    They are those of the checkpoint, if its run had train.amp=auto too. A run that was killed before its first
    checkpoint has them in starts.jsonl; they hold if no option was changed since then that changes the numbers.
    """
    if lease is None or config.train.amp != "auto":
        return None
    if checkpoint is not None and checkpoint.manifest["config"].get("train.amp", "auto") == "auto":
        facts: Mapping[str, Any] = checkpoint.manifest["facts"]
        return facts
    starts = list(read_rows(lease.run_dir / "starts.jsonl"))
    options = starts[-1].get("options") if starts else None
    if not isinstance(options, dict) or starts[-1].get("amp") not in ("off", "bf16"):
        return None
    return None if changed_options(options, config) else starts[-1]


def native_amp(device: torch.device) -> str:
    """bf16 where the hardware computes in it, else off."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    features = cpu_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("bf16") else "off"  # x86, Arm


def faster(rates: Rates) -> str:
    """bf16, unless off is clearly faster."""
    return "off" if rates["off"] > CLOSE * rates["bf16"] else "bf16"


def _say(kept: Mapping[str, Any], fastest: str, rates: Rates, without: str) -> None:
    """One line, on rank 0.

    Args:
        without: names of the ranks that have no bf16.
    """
    if rates:
        reason = f"{rates['bf16']:.3g} images/s per core in bf16, {rates['off']:.3g} in fp32"
    else:
        reason = f"no bf16 on {without}" if without else "the hardware has bf16"
    amp = kept.get("amp", fastest)
    if not kept:
        log.info("train.amp=auto takes %s (%s)", amp, reason)
    elif kept["same"] or amp == fastest or (rates and rates[fastest] <= CLOSE * rates[amp]):
        log.info("train.amp=auto stays %s, as in the first start%s", amp, f" ({reason})" if rates else "")
    else:
        log.warning(
            "train.amp=auto stays %s, as in the first start, but %s; train.amp=%s with resume.allow_changes=true "
            "changes it",
            amp, f"here {fastest} is faster ({reason})" if rates else reason, fastest,
        )  # fmt: skip
