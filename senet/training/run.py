"""The wiring: read downwards, it is the flow of the data."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import features
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from senet.config.images import stored_as
from senet.config.options import Config
from senet.data.samplers import open_data
from senet.distributed.agreement import Agreement
from senet.distributed.devices import processor, set_threads
from senet.distributed.environment import read_place
from senet.distributed.groups import broadcast_bytes, gather, leave_together, process_groups, wait_for_all
from senet.distributed.meeting import meet, must_be_equal, options_of
from senet.distributed.preemption import StopFlag
from senet.distributed.ranks import Ranks
from senet.distributed.recorder import Recorder
from senet.distributed.watchdog import Watchdog
from senet.errors import FAILED_EXIT_CODE, STOPPED_EXIT_CODE
from senet.rundir.checkpoint import Checkpoint, unpickle
from senet.rundir.phases import Phases
from senet.training.feed import Feed, two_black_images
from senet.training.learner import Learner
from senet.training.peers import Peers
from senet.training.precision import choose_amp
from senet.training.prepare import OpenImages, Prepared, prepare
from senet.training.progress import Progress
from senet.training.record import Record, provenance, publish_start
from senet.training.resume import identity, warn_of_changes
from senet.training.seeds import set_deterministic
from senet.training.state import Summary, TrainState
from senet.training.trainer import Observer, Trainer

log = logging.getLogger(__name__)


def run(
    config: Config,
    argv: Sequence[str],
    stop: StopFlag,
    *,
    open_images: OpenImages = open_data,
    observe: Callable[[Trainer], Observer] | None = None,
) -> Summary:
    """Train to the end of the schedule or to an agreed stop, and report. Call on every rank.
    ``observe`` is called when all is restored, before the first update; what it returns is called after each.

    Raises:
        ConfigError: a user's mistake. Before the process groups are made, except what only a running network shows.
        RunError: why the run cannot go on.
    """
    _log_to_stderr(visible=True)
    set_deterministic(config.train.deterministic)
    with ExitStack() as stack:
        end = partial(stop.leave, FAILED_EXIT_CODE)
        watchdog = stack.enter_context(Watchdog(read_place(), config.distributed.start_timeout_s, end=end))
        ranks = Ranks.from_environment(config.train)
        _log_to_stderr(visible=ranks.is_main)
        facts = _facts(config, ranks)
        store, (data, network, sampler, lease, checkpoints, checkpoint, begun) = meet(
            ranks,
            watchdog,
            must_be_equal(ranks, options_of(config)),
            lambda: prepare(config, ranks, stack, stop, watchdog, open_images),
            Prepared.facts,
        )
        recorder = Recorder.switch_on(Path(config.run_dir), lease.generation if lease else 0, ranks, store)
        group = stack.enter_context(process_groups(ranks, store, config.distributed, watchdog, recorder))
        watchdog.phase("running the network for the first time")
        _keep_of_rank_0(config, ranks, network, facts, checkpoint, group)
        facts["amp"], found = choose_amp(config, ranks, network, facts["processor"], begun, group)
        learner = Learner.build(config, ranks, network, facts["amp"], len(data.classes))
        feed = Feed.build(config, ranks, data, sampler)
        saved, state, checkpoint = _broadcast(checkpoint, group)
        _hold_stops(stop, group, watchdog)
        phases, about = Phases(), facts | found | provenance(argv)
        start = publish_start(config, about, learner.network, data, lease, state, checkpoint, phases)
        writer, manifest = stack.enter_context(closing(start)), identity(config, data, sampler, facts)
        record = Record(lease, writer, checkpoints, Progress(ranks.is_main), manifest)
        agreement = Agreement(group, every=1 if facts["amp"] == "fp16" else None)  # fp16 waits for the device each step
        trainer = Trainer(config, learner, feed, Peers(ranks, group, agreement, stop, watchdog), record, state, phases)
        trains = _restore(trainer, saved, checkpoint)
        trainer.observers.extend([*record.time_restart(state), *([observe(trainer)] if observe else [])])
        record.end(config, summary := trainer.fit(), trained=trains, signal=stop.signal_name, tested=len(data.test))
        leave_together(group)  # everything is published: the first exit may make the launcher end the others
    return summary


def _facts(config: Config, ranks: Ranks) -> dict[str, Any]:
    """What the bits of a run depend on besides its options; later the precision too. Sets the number of threads."""
    threads = set_threads(config.train.threads_per_rank, ranks.local_world_size)
    facts = {"world_size": ranks.world_size, "threads_per_rank": threads, "device": ranks.device.type}
    facts |= {"processor": processor(ranks.device), "torch": torch.__version__}
    if stored_as(config.data) == "encoded":
        facts["pillow"] = f"{PIL.__version__} with libjpeg-turbo {features.version('libjpeg_turbo')}"
    if ranks.device.type == "cuda" and ranks.world_size > 1 and not config.train.shards:
        facts["nccl_algo"] = os.environ.get("NCCL_ALGO", "")
        log.info("NCCL_ALGO=%s: the order in which gradients are added up", facts["nccl_algo"])
    return facts


def _keep_threads(config: Config, facts: dict[str, Any], checkpoint: Checkpoint | None, group: ProcessGroup) -> None:
    """With shards: take the number of threads of the first start, and say what their equal bits rest on."""
    if not config.train.shards:
        return
    if not config.train.threads_per_rank:
        own, saved = facts["threads_per_rank"], facts
        if checkpoint is not None and checkpoint.manifest["config"].get("train.shards"):
            saved = checkpoint.manifest["facts"]
        kept = facts["threads_per_rank"] = int(gather(saved["threads_per_rank"], group)[0])
        torch.set_num_threads(kept)
        if kept != own:
            log.warning("train.threads_per_rank=%d is kept from the first start, of %d that there are now", kept, own)
    if len(set(gather(zlib.crc32(facts["processor"].encode()), group))) > 1:
        log.warning("the ranks have different processors: the bits depend on which rank has which shard")
    log.info(
        "train.shards=%d: the same bits on any number of ranks that divides it, with %d thread(s) each, %s, torch %s",
        config.train.shards,
        facts["threads_per_rank"],
        facts["processor"],
        facts["torch"],
    )


def _keep_of_rank_0(
    config: Config,
    ranks: Ranks,
    network: nn.Module,
    facts: dict[str, Any],
    checkpoint: Checkpoint | None,
    group: ProcessGroup,
) -> None:
    """What only rank 0 knows of a beginning: the threads of the first start, the weights of model.init_from."""
    _keep_threads(config, facts, checkpoint, group)
    if config.model.init_from:
        _share_weights(ranks, network, group)
        began_with = checkpoint.manifest["facts"].get("began_with_sha256") if checkpoint else _sha256(network)
        facts |= {"began_with_sha256": began_with} if began_with else {}


def _share_weights(ranks: Ranks, network: nn.Module, group: ProcessGroup) -> None:
    """Those that rank 0 has read, on every rank: only its host needs the file."""
    saved = io.BytesIO()
    torch.save(network.state_dict(), saved)
    content = broadcast_bytes(saved.getvalue() if ranks.is_main else None, group)
    assert content is not None
    network.load_state_dict(unpickle(content))


def _sha256(network: nn.Module) -> str:
    """Of all that a run begins with: a name in model.init_from may come to stand for other weights."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _broadcast(
    checkpoint: Checkpoint | None, group: ProcessGroup
) -> tuple[dict[str, Any] | None, TrainState, Checkpoint | None]:
    """The payload of rank 0's checkpoint and its counters, on every rank; and the checkpoint without its bytes, to have
    them once."""
    content = broadcast_bytes(checkpoint.content if checkpoint else None, group)
    saved = unpickle(content) if content else None
    state = TrainState.from_state_dict(saved["state"]) if saved else TrainState()
    return saved, state, replace(checkpoint, content=b"") if checkpoint else None


def _restore(trainer: Trainer, saved: dict[str, Any] | None, checkpoint: Checkpoint | None) -> bool:
    """Continue from what was saved, and say so, with what is different now. Whether there is anything left to train."""
    learner, record = trainer.learner, trainer.record
    trains = not trainer.state.is_over(trainer.config.train)
    if saved:
        learner.load_state_dict(saved)
        saved.clear()  # it takes as much memory as what is trained
    else:
        record.writer.graph(learner.network, two_black_images(trainer.config, trainer.peers.ranks.device))
    if checkpoint:
        warn_of_changes(trainer.config, checkpoint, record.manifest["facts"])
        record.progress.say(_resumed_line(checkpoint, trains))
    return trains


def _hold_stops(stop: StopFlag, group: ProcessGroup, watchdog: Watchdog) -> None:
    """From here on the ranks agree on a stop, and save. A rank that was signalled earlier has left at once."""
    watchdog.phase("the first update")
    stop.hold()
    try:
        wait_for_all(group)
    except RuntimeError:
        if stop:  # signalled too, just after hold()
            stop.leave(STOPPED_EXIT_CODE, stop.signal_name)
        raise


def _resumed_line(checkpoint: Checkpoint, trains: bool) -> str:
    if trains:
        return f"resumed from {checkpoint.path} at step {checkpoint.step}"
    return "this run has finished, nothing is left to train; another run_dir= begins anew"


def _log_to_stderr(*, visible: bool) -> None:
    """Warnings and facts of rank 0 on stderr, one line each; errors of every rank."""
    logging.basicConfig(
        format="%(levelname)s: %(message)s",
        stream=sys.stderr,
        level=logging.INFO if visible else logging.ERROR,
        force=True,
    )
