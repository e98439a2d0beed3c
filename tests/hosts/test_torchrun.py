"""torchrun on two hosts, one rank on each, without SLURM."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from senet import REPOSITORY
from tests.harness import descendants, differing, payload, rows, started, status, tiny, told, wait_until, without_clock
from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import LONG, Undisturbed
from tests.submitted import SLOW, Run

STEP_TIMEOUT_S = 15
# after it 9 s for the roll call, 5 to record collectives, 3 for the other host, 10 for torchrun;
# the machine may be busy
LIMIT_S = STEP_TIMEOUT_S + 105
WAITS = f"distributed.step_timeout_s={STEP_TIMEOUT_S}"
Agents = list[subprocess.Popen[bytes]]
Took = Callable[[str, float], None]


@contextmanager
def torchrun(
    cluster: HostCluster, run: Run, folder: Path, *options: str, given: tuple[str, ...] = ("--nnodes=2",)
) -> Iterator[Agents]:
    """An agent on each host; what it and its rank say goes into ``folder``."""
    command = [sys.executable, "-m", "torch.distributed.run", *given, "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=n1:29400"]
    command += ["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2", str(REPOSITORY / "train_ddp.py")]
    command += tiny(*run.options, *options)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                started(cluster.machines[host].command(*command, cwd=cluster.folder), folder / host, **cluster.env)
            )
            for host in ("n1", "n2")
        ]


def trains(run: Run, step: int) -> bool:
    """Whether it has got so far, and has a checkpoint."""
    found = rows(run.run_dir)
    return bool(found) and found[-1]["step"] >= step and any((run.run_dir / "checkpoints").glob("*.json"))


def ends_with_the_bits(run: Run, agents: Agents, expected: dict[str, object], folder: Path) -> None:
    said = [(folder / host).read_text()[-3000:] for host in ("n1", "n2")]
    assert [agent.wait(300) for agent in agents] == [0] * len(agents), said
    assert status(run.run_dir)["state"] == "finished"
    assert differing(without_clock(payload(run.run_dir)), expected) == []
    steps = [row["step"] for row in rows(run.run_dir)]
    assert steps == sorted(set(steps))


def test_torchrun_on_two_hosts_has_the_bits_of_torchrun_on_one(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with torchrun(cluster, run, tmp_path) as agents:
        ends_with_the_bits(run, agents, undisturbed(2), tmp_path)


def test_a_signal_to_one_agent_saves_and_ends_both(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with torchrun(cluster, run, tmp_path, *LONG, SLOW) as agents:
        wait_until(lambda: trains(run, 25))
        [agent] = [each for each in descendants(agents[1]) if "torch.distributed.run" in each.cmdline()]
        agent.send_signal(signal.SIGTERM)
        assert all(each.wait(180) != 0 for each in agents)
    found = status(run.run_dir)
    assert (found["state"], found["reason"]) == ("stopped", "another rank was asked to stop")
    with torchrun(cluster, run, tmp_path, *LONG, SLOW) as agents:
        ends_with_the_bits(run, agents, undisturbed(2, *LONG), tmp_path)


def test_when_the_link_is_cut_for_good_no_process_is_left_on_either_host(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed, tmp_path: Path, took: Took
) -> None:
    """The agent of n2 waits for the store, which the one of n1 hosts, and hears no signal meanwhile."""

    def ranks_and_agent_of_n1() -> list[psutil.Process]:
        agents = cluster.machines["n2"].processes("pt_elastic")
        return [process for process in cluster.strays() if process not in agents]

    with torchrun(cluster, run, tmp_path, *LONG, SLOW, WAITS):
        wait_until(lambda: trains(run, 25))
        cluster.machines["n2"].cut()
        try:
            cut = time.monotonic()
            wait_until(lambda: not ranks_and_agent_of_n1(), LIMIT_S, lambda: told(ranks_and_agent_of_n1()))
            took("from the cut to the end of all but the agent that is cut off", time.monotonic() - cut)
            # which waits for its rank: a thread of that may be in a call to GlusterFS, which gives up after 42 to 84 s
            wait_until(lambda: not cluster.strays(), 120, lambda: told(cluster.strays()))
            took("from the cut to the end of all processes", time.monotonic() - cut)
        finally:
            cluster.machines["n2"].mend()
    for host, lost in (("n1", "rank 1 on n2"), ("n2", "rank 0 on n1")):
        assert (
            f"train_ddp: failed: {lost} did not answer any more: killed, stopped or cut off ("
            in (tmp_path / host).read_text()
        )
    found = status(run.run_dir)
    assert found["state"] == "failed"
    assert (found["failure"]["rank"], found["failure"]["host"]) == (1, "n2")
    with torchrun(cluster, run, tmp_path, *LONG, SLOW) as agents:
        ends_with_the_bits(run, agents, undisturbed(2, *LONG), tmp_path)


def test_max_restarts_goes_on_without_a_host_that_has_lost_its_power(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed, tmp_path: Path, took: Took
) -> None:
    elastic = ("--nnodes=1:2", "--max-restarts=3", "--rdzv-conf=last_call_timeout=15")
    shards = (*LONG, "train.shards=2", "train.threads_per_rank=1")
    with torchrun(cluster, run, tmp_path, *shards, SLOW, WAITS, given=elastic) as (agent, _):
        wait_until(lambda: trains(run, 25))
        cluster.power_off("n2")
        lost = time.monotonic()
        try:
            reached = rows(run.run_dir)[-1]["step"]
            wait_until(lambda: status(run.run_dir)["generation"] == 2 and trains(run, reached + 1))
            took("from the loss to the next new step", time.monotonic() - lost)
            ends_with_the_bits(run, [agent], undisturbed(2, *shards), tmp_path)
        finally:
            cluster.power_on("n2")
