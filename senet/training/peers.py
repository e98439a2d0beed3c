"""How the ranks of a training act together."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed import ProcessGroup

from senet.distributed import groups
from senet.distributed.agreement import Agreement
from senet.distributed.preemption import StopFlag
from senet.distributed.ranks import Ranks
from senet.distributed.watchdog import Watchdog


@dataclass(frozen=True)
class Peers:
    """This rank, and what connects it with the others."""

    ranks: Ranks
    group: ProcessGroup
    """On the CPU."""
    agreement: Agreement
    stop: StopFlag
    watchdog: Watchdog

    def vote(self) -> None:
        """Once a step, when its work has been issued; see ``Agreement.exchange``."""
        self.agreement.exchange(stop=bool(self.stop))

    def set_time_limit(self, timeout_s: float) -> None:
        """How long a rank waits for the others from now on. The watchdog, which times the start, ends."""
        groups.set_time_limit(self.group, timeout_s)
        self.watchdog.close()
