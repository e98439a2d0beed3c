"""A rank is killed or stopped at a random moment: the job goes on by itself."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.harness import status, wait_until
from tests.hosts.test_hosts import LONG, Undisturbed, ends_with
from tests.submitted import SLOW, Run


@pytest.mark.times(quick=1, soak=20)
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_a_random_rank_that_is_killed_or_stopped_costs_seconds(
    what: signal.Signals, run: Run, undisturbed: Undisturbed, took: Callable[[str, float], None]
) -> None:
    run.submit(*LONG, SLOW, "distributed.step_timeout_s=10", "distributed.eval_timeout_s=10")
    run.wait_for_steps(random.randrange(5, 50), 0)
    rank = random.randrange(2)
    run.ranks()[rank].send_signal(what)
    began, done = time.monotonic(), run.newest_step()

    def goes_on() -> bool:
        return run.read("status.json").get("generation") == 2 and run.newest_step() > done

    wait_until(goes_on, 120, lambda: f"{what!r} to rank {rank} at step {done}: {run.logs()}")
    took(f"{what.name}: from it to the next new step", time.monotonic() - began)
    ends_with(run, undisturbed(2, *LONG), restarts=0)
    restart = status(run.run_dir)["restart"]
    assert (restart["rank"], restart["host"]) == (rank, f"n{rank + 1}")
