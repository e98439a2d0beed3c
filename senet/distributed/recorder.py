"""torch's flight recorder: what each rank remembers of its last collectives, kept when one of them has failed.

It is on by default in most versions of torch; here in all. It costs a microsecond or some for each collective.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from senet import compat
from senet.distributed.ranks import Ranks
from senet.rundir import collectives

_SIZE = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")  # the name, and the older one
_FILE = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
_WRITTEN_S = 5.0  # the file system may be what has failed
log = logging.getLogger(__name__)


class Recorder:
    """Of one rank, for one start of a run."""

    def __init__(self, run_dir: Path, generation: int, ranks: Ranks) -> None:
        self._run_dir, self._generation, self._ranks = run_dir, generation, ranks

    @classmethod
    def switch_on(cls, run_dir: Path, generation: int, ranks: Ranks, store: Store) -> Recorder:
        """Call on every rank before the process groups are made. What a user has set stays.

        Args:
            generation: of this start, as rank 0 knows it.
        """
        if ranks.is_main:
            store.set("generation", str(generation))
        generation = int(store.get("generation"))
        file = collectives.torch_prefix(run_dir, generation)
        for names, value in ((_SIZE, "2000"), (_FILE, file), (("TORCH_NCCL_DUMP_ON_TIMEOUT",), "1")):
            if not any(name in os.environ for name in names):
                os.environ[names[0]] = value
        return cls(run_dir, generation, ranks)

    def keep(self) -> None:
        """Write down the last collectives, for a few seconds at most. From any thread."""
        thread = threading.Thread(target=self._write, name="flight recorder", daemon=True)
        thread.start()
        thread.join(_WRITTEN_S)

    def _write(self) -> None:
        own, all_ranks = self._ranks.rank, self._ranks.world_size
        try:
            for kind, record in compat.flight_records(nccl=dist.get_backend() == "nccl"):
                collectives.write(self._run_dir, self._generation, own, all_ranks, kind, record)
        except Exception as error:  # it only explains another failure
            log.warning("the last collectives of this rank are not kept: %s", error)
