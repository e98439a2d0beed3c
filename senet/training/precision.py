"""The precision that ``train.amp=auto`` comes to: the faster one, measured by rank 0 at the first start of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup

from senet.compat import cpu_capabilities
from senet.config.load import changed_options
from senet.config.options import Config
from senet.distributed.groups import broadcast_bytes
from senet.distributed.ranks import Ranks
from senet.rundir.checkpoint import Checkpoint
from senet.rundir.files import read_rows
from senet.rundir.history import read_options
from senet.rundir.lease import Lease
from senet.training.feed import images_at_once, two_black_images
from senet.training.rates import Rates, largest_layers, measure

CLOSE = 1.15
"""Rates whose ratio is smaller do not decide: they vary that much from one start to the next."""
_CPU = torch.device("cpu")
log = logging.getLogger(__name__)


def choose_amp(
    config: Config,
    ranks: Ranks,
    network: nn.Module,
    facts: dict[str, Any],
    begun: Mapping[str, Any] | None,
    group: ProcessGroup,
) -> dict[str, Any]:
    """Add the precision, "amp", to the facts of this start, the same on all ranks. A collective: call on every rank.

    Args:
        begun: on rank 0, the facts of the start whose choice is kept; see ``begun_with``.

    Returns:
        for starts.jsonl, with train.amp=auto: "amp_rates", GFLOP/s of one core in each precision; empty where none was
        measured.
    """
    wanted = config.train.amp
    if wanted == "fp16" and ranks.device.type == "cpu":
        log.warning("train.amp=fp16 on a CPU is slow; bf16 or off is faster")
    if wanted != "auto":
        facts["amp"] = wanted
        return {}
    # every rank looks: a network may hold collectives
    layers = largest_layers(network, two_black_images(config, _CPU)) if ranks.device.type == "cpu" else []
    found: dict[str, Any] = {}
    if ranks.is_main:
        same = begun is not None and begun.get("processor") == facts["processor"]
        rates: Rates = {}
        if layers and not same and native_amp(ranks.device) == "bf16":
            rates = measure(layers, images_at_once(config, ranks), channels_last=config.train.channels_last)
        fastest = faster(rates) if rates else native_amp(ranks.device)
        found = {"amp": begun["amp"] if begun else fastest, "amp_rates": rates}
        _say(found["amp"], fastest, rates, begins=begun is None, same=same)
    sent = broadcast_bytes(json.dumps(found).encode() if ranks.is_main else None, group)
    assert sent is not None
    found = json.loads(sent.read())
    facts["amp"] = found.pop("amp")
    return found


def begun_with(config: Config, checkpoint: Checkpoint | None, lease: Lease | None) -> Mapping[str, Any] | None:
    """On rank 0 with train.amp=auto: the facts of the earlier start in whose precision this one goes on; None: there is
    none, and one is to be chosen.

    They are those of the checkpoint, if its run had train.amp=auto too. A run that was killed before its first
    checkpoint has them in starts.jsonl; they hold if no option was changed since then that changes the numbers.
    """
    if lease is None:
        return None
    if checkpoint is not None and checkpoint.manifest["config"].get("train.amp", "auto") == "auto":
        facts: Mapping[str, Any] = checkpoint.manifest["facts"]
        return facts
    starts = list(read_rows(lease.run_dir / "starts.jsonl"))
    if not starts or "amp_rates" not in starts[-1]:
        return None
    return None if changed_options(read_options(lease.run_dir / "config.yaml"), config) else starts[-1]


def native_amp(device: torch.device) -> str:
    """bf16 where the hardware computes in it, else off."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    features = cpu_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("bf16") else "off"  # x86, Arm


def faster(rates: Rates) -> str:
    """bf16, unless off is clearly faster."""
    return "off" if rates["off"] > CLOSE * rates["bf16"] else "bf16"


def _say(amp: str, fastest: str, rates: Rates, *, begins: bool, same: bool) -> None:
    """One line, on rank 0."""
    measured = f" ({rates['bf16']:.3g} GFLOP/s per core in bf16, {rates['off']:.3g} in fp32)" if rates else ""
    if begins:
        log.info("train.amp=auto takes %s%s", amp, measured)
    elif same or amp == fastest or (rates and rates[fastest] <= CLOSE * rates[amp]):
        log.info("train.amp=auto stays %s, as in the first start%s", amp, measured)
    else:
        log.warning(
            "train.amp=auto stays %s, as in the first start, but here %s is faster%s; train.amp=%s with "
            "resume.allow_changes=true changes it",
            amp, fastest, measured, fastest,
        )  # fmt: skip
