"""The precision that ``train.amp=auto`` comes to: the faster one, measured at the first start of a run."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from senet.compat import cpu_capabilities
from senet.config.load import changed_options
from senet.config.options import Config
from senet.distributed.groups import broadcast_bytes, gather
from senet.distributed.ranks import Ranks
from senet.errors import ConfigError
from senet.rundir.checkpoint import Checkpoint
from senet.rundir.files import read_json, read_rows, write_first
from senet.rundir.lease import Lease
from senet.rundir.named import is_sweep
from senet.training.feed import images_at_once
from senet.training.rates import Rates, measure

CLOSE = 1.15
"""Rates whose ratio is smaller do not decide: they vary that much from one start to the next."""
FILE = "amp.json"
"""In the folder of a sweep: what its first cell has taken, and on which processor."""
_CHOICES = ("off", "bf16")
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
    narrow = narrow_convolution(network, config) if ranks.device.type == "cpu" and wanted in ("auto", "bf16") else ""
    if wanted != "auto":
        _refuse_wrong(wanted, narrow)
        return wanted, {}
    kept = _of_rank_0(_facts_of(begun, config, processor) if begun else {}, ranks, group)
    have = gather(native_amp(ranks.device) == "bf16" and not narrow, group)
    rates: Rates = {}
    if all(have) and ranks.device.type == "cpu" and not kept.get("same"):
        images, size, channels_last = images_at_once(config, ranks), config.data.image_size, config.train.channels_last
        rates = measure(network, images, size, channels_last=channels_last, gather=partial(gather, group=group))
    fastest = faster(rates) if rates else ("bf16" if all(have) else "off")
    if not kept:
        first = _first_of_sweep(config, fastest, processor) if ranks.is_main else {}
        kept = _of_rank_0(_facts_of(first, config, processor) if first else {}, ranks, group)
    if narrow and kept.get("cell"):  # of another network, perhaps
        kept = {}
    _refuse_wrong(kept.get("amp", fastest), narrow)
    without = ranks.roster.name(rank for rank, has_bf16 in enumerate(have) if not has_bf16)
    no_bf16 = f"in bf16 the gradients of {narrow} are wrong on a CPU" if narrow else f"no bf16 on {without}"
    _say(kept, fastest, rates, "" if all(have) else no_bf16)
    found = {"amp_rates": rates, "options": {key: now for key, _, now in changed_options({}, config)}}
    return kept.get("amp", fastest), found


def narrow_convolution(network: nn.Module, config: Config) -> str:
    """The name of a convolution of which torch computes wrong gradients in bf16 on a CPU; empty if there is none, or
    the network cannot be copied. Costs a copy, and a forward pass of one image.

    Seen with torch 2.14 (oneDNN) where the stride is larger than the images there are wide, and once for a 5x5 kernel
    on a single pixel: the gradient of what only meets the padding, which is 0, is what lay in that memory.
    """
    sizes, found = {config.data.image_size}, list[str]()
    sizes |= {config.augment.small_size} if config.augment.small_epochs else set()

    def look(name: str, convolution: nn.Conv2d, given: tuple[Tensor, ...]) -> None:
        kernel, stride, width = convolution.kernel_size[1], convolution.stride[1], given[0].shape[-1]
        is_padded = convolution.padding not in ("valid", (0, 0))
        if kernel > 1 and is_padded and (stride > width or (width == 1 and kernel > 3)):
            found.append(name)

    try:
        trial = copy.deepcopy(network).eval()
        for name, module in trial.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(partial(look, name))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for size in sizes:
                trial(torch.zeros(1, 3, size, size))
    except Exception as error:  # what is wrong shows when the network trains
        log.info("train.amp: not tried on a copy: %s: %s", type(error).__name__, str(error).split("\n")[0])
    return found[0] if found else ""


def _refuse_wrong(amp: str, narrow: str) -> None:
    if amp == "bf16" and narrow:
        raise ConfigError(
            f"train.amp=bf16: on a CPU torch computes wrong gradients of {narrow} in bf16, where the stride is larger "
            f"than the images; train.amp=off (resume.allow_changes=true if it has begun), or a larger data.image_size"
        )


def _of_rank_0(facts: Mapping[str, Any], ranks: Ranks, group: ProcessGroup) -> dict[str, Any]:
    sent = broadcast_bytes(json.dumps(facts).encode() if ranks.is_main else None, group)
    assert sent is not None
    facts = json.loads(sent.read())
    return dict(facts)


def _facts_of(begun: Mapping[str, Any], config: Config, processor: str) -> dict[str, Any]:
    """What each rank must know of the start whose choice is kept; "same": it was made for this case."""
    model = config.model.name
    same = begun.get("processor") == processor and begun.get("model", model) == model
    return {"amp": begun["amp"], "same": same, "cell": begun.get("cell", "")}


def _first_of_sweep(config: Config, amp: str, processor: str) -> dict[str, Any]:
    """The choice of another cell of the same sweep that has made one meanwhile; {} if there is none: this one counts.

    Cells that take different precisions differ in more than their options. They may begin at the same moment.
    """
    run_dir = Path(config.run_dir)
    if not is_sweep(run_dir.parent):
        return {}
    own = {"amp": amp, "processor": processor, "model": config.model.name, "cell": run_dir.name}
    try:
        first = write_first(run_dir.parent / FILE, own)
    except OSError as error:
        log.warning("train.amp=auto: the cells of the sweep may take different precisions (%s)", error)
        return {}
    return first if first != own else {}


def begun_with(config: Config, checkpoint: Checkpoint | None, lease: Lease | None) -> Mapping[str, Any] | None:
    """On rank 0 with train.amp=auto: the facts of the earlier start in whose precision this one goes on; None: there is
    none, and one is to be chosen.

    They are those of the checkpoint, if its run had train.amp=auto too. A run that was killed before its first
    checkpoint has them in starts.jsonl; they hold if no option was changed since then that changes the numbers. A cell
    of a sweep that begins has those of the first cell.
    """
    if lease is None or config.train.amp != "auto":
        return None
    if checkpoint is not None and checkpoint.manifest["config"].get("train.amp", "auto") == "auto":
        facts: Mapping[str, Any] = checkpoint.manifest["facts"]
        return facts
    starts = list(read_rows(lease.run_dir / "starts.jsonl"))
    options = starts[-1].get("options") if starts else None
    if isinstance(options, dict) and starts[-1].get("amp") in _CHOICES and not changed_options(options, config):
        return starts[-1]
    of_sweep = read_json(lease.run_dir.parent / FILE) if is_sweep(lease.run_dir.parent) else {}
    return of_sweep if of_sweep.get("amp") in _CHOICES else None


def native_amp(device: torch.device) -> str:
    """bf16 where the hardware computes in it, else off."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    features = cpu_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("bf16") else "off"  # x86, Arm


def faster(rates: Rates) -> str:
    """bf16, unless off is clearly faster."""
    return "off" if rates["off"] > CLOSE * rates["bf16"] else "bf16"


def _say(kept: Mapping[str, Any], fastest: str, rates: Rates, no_bf16: str) -> None:
    """One line, on rank 0.

    Args:
        no_bf16: why it is not to be had; empty if it is.
    """
    if rates:
        reason = f"{rates['bf16']:.3g} images/s per core in bf16, {rates['off']:.3g} in fp32"
    else:
        reason = no_bf16 or "the hardware has bf16"
    if not kept:
        log.info("train.amp=auto takes %s (%s)", fastest, reason)
        return
    amp, cell = kept["amp"], kept["cell"]
    said = f"takes {amp}, as the cell {cell} of this sweep" if cell else f"stays {amp}, as in the first start"
    if kept["same"] or amp == fastest or (rates and rates[fastest] <= CLOSE * rates[amp]):
        log.info("train.amp=auto %s%s", said, f" ({reason})" if rates else "")
    else:
        but = f"here {fastest} is faster ({reason})" if rates else reason
        how = "in a sweep of another name" if cell else "with resume.allow_changes=true"
        log.warning("train.amp=auto %s, but %s; train.amp=%s %s changes it", said, but, fastest, how)
