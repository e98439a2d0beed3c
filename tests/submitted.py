"""A run that was submitted to a cluster, as the tests observe it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from senet import REPOSITORY
from senet.rundir.files import patiently, read_json
from tests.cluster import Cluster
from tests.harness import rows, tiny, wait_until

SLOW = "model.name=tests.networks:slow_senet"  # 22 steps an epoch, five a second


class Run:
    """One submitted run directory."""

    def __init__(
        self, cluster: Cluster, run_dir: Path, data_root: Path, *, seen_at: Path | None = None, check: bool = False
    ) -> None:
        """``seen_at``: where this process sees the run directory, if not where the cluster does."""
        self.cluster, self.given, self.run_dir = cluster, run_dir, seen_at or run_dir
        self.checkout = REPOSITORY
        self.here = cluster.here
        # as from within another job: the new job must not inherit any of it
        self.env = cluster.env | {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "7", "SLURM_RESTART_COUNT": "9", "RANK": "3"}
        self.env |= {"SLURM_CPUS_PER_TASK": "9", "SLURM_NNODES": "5", "MASTER_PORT": "1"}
        # the check takes some 10 s in front of each start: only tests of it have it
        self.options = [f"data.root={data_root}", f"run_dir={run_dir}", *([] if check else ["slurm.check=false"])]

    def tool(self, *args: str, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        command = self.here(sys.executable, str(self.checkout / "slurm" / "submit.py"), *args)
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout_s)

    def submit(self, *options: str) -> str:
        self.asked = time.time()
        done = self.tool(*tiny("slurm.time=20m", "slurm.nodes=2", *self.options, *options))
        assert done.returncode == 0, done.stderr
        self.job = str(read_json(self.run_dir / "slurm" / "job.json")["job"])
        assert done.stdout.startswith(f"submitted job {self.job} ")
        return self.job

    def wait_for(self, *states: str, timeout_s: float = 300) -> dict[str, str]:
        try:
            return self.cluster.wait_for(self.job, set(states), timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def wait_for_steps(self, count: int, restarts: int, timeout_s: float = 180, launch: int = 0) -> None:
        """Until this launch of this start has trained some steps."""

        def there() -> bool:
            state, owner = self.read("status.json"), self.read("owner.json")
            if (state.get("job"), state.get("job_restarts"), state.get("state")) != (self.job, restarts, "running"):
                return False
            begun = owner.get("resumed_from", {}).get(str(state["generation"]))  # a moment later than the status
            return owner.get("job_launch") == launch and begun is not None and self.newest_step() >= begun + count

        wait_until(there, timeout_s, lambda: f"{count} steps of start {restarts}: {self.logs()}")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run directory, {} if missing; tried again where a network file system says ESTALE."""
        return patiently(lambda: read_json(self.run_dir / name), limit_s=10)

    def newest_step(self) -> int:
        """The last one in metrics.jsonl, which a start shortens to what it resumes from; 0: none."""
        return max((row["step"] for row in rows(self.run_dir)), default=0)

    def wait_for_stop(self, restarts: int, timeout_s: float = 180) -> None:
        """Until this start has saved and SLURM has counted the requeue."""

        def there() -> bool:
            state = self.read("status.json")
            requeued = self.cluster.job(self.job)["Restarts"] == str(restarts + 1)
            return requeued and (state.get("state"), state.get("job_restarts")) == ("stopped", restarts)

        wait_until(there, timeout_s, lambda: f"start {restarts} to be stopped and requeued: {self.logs()}")

    def reach_time_limit(self) -> None:
        """Within a minute SLURM sends the job, of which it leaves 90 s at the least, the signal of its time limit.

        With a limit that is set at the submission, how far a start gets depends on how fast the machine is.
        """
        hours, minutes, _ = self.cluster.job(self.job)["RunTime"].split(":")  # no day in a test
        # 120 to 180 s from now; with a lead of 120 s; SLURM looks every 30 s for what is due before its next look
        self.set_time_limit(60 * int(hours) + int(minutes) + 3)

    def set_time_limit(self, minutes: int) -> None:
        self.cluster.run("scontrol", "update", f"JobId={self.job}", f"TimeLimit={minutes}")

    def ranks(self) -> list[psutil.Process]:
        """The direct tasks, in rank order."""
        found = {}
        for process in self.cluster.processes():
            try:
                if "submitit.core._submit" in process.cmdline() and process.environ().get("SLURM_JOB_ID") == self.job:
                    found[int(process.environ()["SLURM_PROCID"])] = process
            except psutil.Error:
                continue
        return [found[rank] for rank in sorted(found)]

    def logs(self) -> str:
        files = sorted(self.run_dir.glob("slurm/*_log.???"))
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in files)

    def log(self, rank: int = 0) -> str:
        return (self.run_dir / "slurm" / f"{self.job}_{rank}_log.out").read_text()
