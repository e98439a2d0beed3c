"""What votes cost a step among many ranks, and how long a roll call takes when one of them is killed.

    .venv/bin/python benchmarks/votes.py [--ranks 2,16,64] [--steps 200] [--step-ms 50] [--note TEXT]

The ranks are stubs on this machine, forked after torch was imported: a step sleeps, then votes over gloo as a trainer
does. Reported: milliseconds a step beyond the sleep of rank 0, with a vote in each step and every few of them
(senet.distributed.preemption.steps_between_votes), in turn; then the last rank is killed, and all others say who it
was. Far more ranks than cores: they wait for the cores as much as for each other. Appends rows to results.jsonl per
number of ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from datetime import timedelta

from common import record

REPEATS = 3


def stub(rank: int, world_size: int, port: int, steps: int, step_s: float, answer: int) -> None:
    """One rank; rank 0 writes what was measured, the others what they said."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    from senet.distributed.agreement import Agreement
    from senet.distributed.preemption import steps_between_votes
    from senet.distributed.ranks import PeerFailed, Ranks
    from senet.distributed.rollcall import RollCall

    torch.set_num_threads(1)
    limit = timedelta(seconds=300)
    store = dist.TCPStore("127.0.0.1", port, world_size, rank == 0, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
    roll_call = RollCall(PrefixStore("end", store), Ranks(rank, world_size, rank, world_size, torch.device("cpu")))
    group = dist.group.WORLD
    assert group is not None
    measured: dict[int, list[float]] = {}
    for every in [1, steps_between_votes(world_size)] * REPEATS:
        agreement = Agreement(group, every)
        dist.barrier()
        began, slept_s = time.perf_counter(), 0.0
        for _ in range(steps):
            asleep = time.perf_counter()
            time.sleep(step_s)
            slept_s += time.perf_counter() - asleep
            agreement.exchange(stop=False)
        agreement.settle()
        measured.setdefault(every, []).append(1000 * (time.perf_counter() - began - slept_s) / steps)
    dist.barrier()
    if rank == world_size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.perf_counter()
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        try:
            roll_call.explain(error, "")
        except PeerFailed as lost:
            said = str(lost).startswith(f"rank {world_size - 1} did not answer")
            line = json.dumps([measured if rank == 0 else {}, time.perf_counter() - began, said])
            os.write(answer, f"{line}\n".encode())
    os._exit(0)


def measure(world_size: int, steps: int, step_s: float) -> tuple[dict[int, list[float]], list[float], int]:
    """Milliseconds by steps between votes; seconds from the kill to each rank's word; how many named the right one."""
    import socket

    import torch.distributed  # before the fork: 64 imports would take minutes

    assert torch.distributed.is_available()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reader, writer = os.pipe()
    for rank in range(world_size):
        if os.fork() == 0:
            os.close(reader)
            stub(rank, world_size, port, steps, step_s, writer)
    os.close(writer)
    with os.fdopen(reader) as answers:
        found = [json.loads(line) for line in answers]
    for _ in range(world_size):
        os.wait()
    by_every = next(each[0] for each in found if each[0])
    return (
        {int(every): ms for every, ms in by_every.items()},
        [each[1] for each in found],
        sum(each[2] for each in found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,16,64")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step-ms", type=float, default=50)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    for world_size in map(int, options.ranks.split(",")):
        by_every, seconds, named = measure(world_size, options.steps, options.step_ms / 1000)
        note = "; ".join(filter(None, [f"stub ranks, steps of {options.step_ms:g} ms asleep", options.note]))
        for every, ms in by_every.items():
            what = f"{world_size} ranks, a vote every {every} step{'s' * (every > 1)}"
            record("votes.py", what, ms, "ms a step", of="blocks", note=note)
        what = f"{world_size} ranks, one killed, named by {named} of {world_size - 1}"
        record("votes.py", what, [max(seconds)], "s", of="kills", digits=1, note="the slowest of them")


if __name__ == "__main__":
    main()
