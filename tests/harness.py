"""Start real ranks, and compare their checkpoints."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil
import torch

from senet import REPOSITORY
from senet.config.load import load_config
from senet.config.options import Config
from senet.distributed.environment import read_place
from senet.distributed.preemption import StopFlag
from senet.distributed.roster import Process, Roster
from senet.distributed.watchdog import Watchdog
from senet.rundir.checkpoint import read_checkpoint, unpickle
from senet.rundir.files import patiently
from slurm import ports

CLOCKS = {"train_s", "epoch_s", "logged_s", "images_per_s", "spent", "memory_gb", "gpu_memory_gb"}


_given: set[int] = set()


def free_port() -> int:
    """One that no test of this process was given before, nor any of the other workers of ``pytest -n``, of which there
    are at most 8: some are used minutes later. Jobs and launchers choose theirs without this."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    while (port := ports.free_port()) % 8 != worker or port in _given:
        pass
    _given.add(port)
    return port


class StopAt(StopFlag):
    """Is set after ``count`` checks, like a signal that arrives during that step."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __bool__(self) -> bool:
        self.count -= 1
        return self.count <= 0


def tiny(*overrides: str) -> list[str]:
    """Arguments of the small run."""
    return [str(REPOSITORY / "configs/tiny.yaml"), *overrides]


def tiny_config(*overrides: str, world_size: int = 1) -> Config:
    """The small run's configuration."""
    return load_config(tiny(*overrides), world_size)


def on_hosts(*hosts: str) -> Roster:
    """Ranks 0, 1, ... on these hosts; their processes have ended."""
    return Roster({rank: Process(host, boot=host, pid=1, started=-1) for rank, host in enumerate(hosts)})


def named(rank: int) -> str:
    """A rank on this host, as messages name it."""
    return f"rank {rank} on {socket.gethostname()}"


def idle_watchdog(limit_s: float = 60) -> Watchdog:
    """A watchdog that never ends the process: the tests have their own limits."""
    return Watchdog(read_place(), limit_s, end=print)


def fork_server() -> ForkServerContext:
    """Starts processes that need not import torch, which takes each four seconds of CPU time. Their environment is that
    of the first start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["senet.training.run", "senet.drill.probe", "torchvision"])
    return context


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, tmp_path: Path, timeout_s: float = 240
) -> list[Any]:
    """``function(*args)`` in that many forked processes with torchrun's environment; their results in rank order.

    A rank that hangs is killed after the time limit, and named.
    """
    port = free_port()
    folder = tmp_path / f"ranks-{port}"
    folder.mkdir(parents=True)
    context = fork_server()
    world = os.environ | {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        context.Process(
            target=_rank_main, args=(world | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}, folder, function, args)
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not hung, f"ranks {hung} did not end within {timeout_s} s\n{''.join(errors)}"
    assert not errors, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def train_on_ranks(worlds: Sequence[int], root: Path, folder: Path, *options: str) -> None:
    """The small run on each of these numbers of ranks, in ``folder/<number>``, with ``root`` as data.root."""
    for ranks in worlds:
        here = [*options, f"run_dir={folder / str(ranks)}", f"data.root={root}"]
        run_ranks(ranks, _train_here, here, free_port(), tmp_path=folder / f"of {ranks}")


def _train_here(options: list[str], port: int) -> None:
    from senet.training.run import run

    os.environ["MASTER_PORT"] = str(port)
    run(tiny_config(*options, world_size=int(os.environ["WORLD_SIZE"])), tiny(*options), StopAt(10**6))


def _rank_main(environment: dict[str, str], folder: Path, function: Callable[..., Any], args: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ |= environment
    rank = environment["RANK"]
    torch.set_num_threads(1)
    try:
        torch.save(function(*args), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
    sys.stdout.flush()
    os._exit(0)


def train_command(ranks: int, args: Sequence[str], *, restarts: int = 0) -> list[str]:
    script = str(REPOSITORY / "train_ddp.py")
    if ranks == 0:  # no torchrun at all
        return [sys.executable, script, *args]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    torchrun.append(f"--max-restarts={restarts}")
    return [*torchrun, "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2", script, *args]


def train(ranks: int, *args: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run to the end under torchrun (``ranks=0``: without it)."""
    return subprocess.run(train_command(ranks, args), capture_output=True, text=True, timeout=timeout_s, env=_env())


@contextmanager
def started(command: Sequence[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in its own session; at the end all its processes are killed."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_env() | env,
            # a shell that started the tests in the background has SIGINT ignored, which no script can undo
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield process
        finally:
            kill_all(process)


def _env() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the whole tree at once, as a node that loses power."""
    for victim in [*descendants(process), process]:
        try:
            victim.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    process.wait()


def wait_until(condition: Callable[[], Any], timeout_s: float = 120, what: str | Callable[[], str] = "") -> Any:
    """Poll until the condition returns something true. ``what``: for the failure; a function is called only then.

    A condition that takes long, such as a question to SLURM, is asked less often, down to twice a second: others need
    the processors.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        asked = time.monotonic()
        if result := condition():
            return result
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s} s: {what() if callable(what) else what or condition}")
        time.sleep(min(max(0.02, 5 * (time.monotonic() - asked)), 0.5))


def survivors(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it may end between two questions
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def told(processes: Sequence[psutil.Process]) -> str:
    """For a failure: each of them, how it stands, and where in the kernel its threads are."""
    lines = []
    for process in processes:
        with suppress(psutil.Error, OSError):
            lines.append(f"{process.pid} {process.name()} {process.status()}, child of {process.ppid()}")
            for task in sorted(Path(f"/proc/{process.pid}/task").iterdir()):
                calls = [line.split()[1] for line in (task / "stack").read_text().splitlines()]
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                lines.append(f"  {task.name} {state} {(task / 'comm').read_text().strip()}: {' '.join(calls[:8])}")
    return "\n".join(lines)


def text_of(path: Path) -> str:
    """A file that another process may be replacing: a network file system may say ESTALE of it."""
    return patiently(path.read_text, limit_s=10)


def rows(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    text = patiently(lambda: path.read_text() if path.exists() else "", limit_s=10)
    found = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return [row for row in found if row["kind"] == kind]


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob("step_*.pt"))


def payload(run_dir: Path, index: int = -1) -> dict[str, Any]:
    return unpickle(read_checkpoint(checkpoints(run_dir)[index]).content)


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a checkpoint, and update its sha256, as an attacker can."""
    manifest = json.loads(path.with_suffix(".json").read_text())
    del manifest["manifest_sha256"]
    edit(manifest)
    manifest["manifest_sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(manifest))


def status(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads(text_of(run_dir / "status.json")))


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Names of tensors (and other leaves) that are not the same bits in two trees."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and _content(one) == _content(other)
        return [] if same else [path]
    if isinstance(one, dict):
        assert one.keys() == other.keys(), f"{path}: {one.keys() ^ other.keys()}"
        return [name for key in one for name in differing(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list):
        assert len(one) == len(other), path
        return [n for i, (a, b) in enumerate(zip(one, other, strict=True)) for n in differing(a, b, f"{path}[{i}]")]
    return [] if one == other else [path]


def _content(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def without_clock(state: dict[str, Any]) -> dict[str, Any]:
    """A payload less the seconds it took."""
    counters = {key: value for key, value in state["state"].items() if key not in CLOCKS}
    counters["last_result"] = {key: value for key, value in counters["last_result"].items() if key not in CLOCKS}
    return {**state, "state": counters}
