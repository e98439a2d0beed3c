"""Users without root, whose homes lie on the network file system; the checkout belongs to root."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from senet import REPOSITORY
from senet.errors import REFUSED_EXIT_CODE
from tests.harness import differing, payload, tiny, wait_until, without_clock
from tests.hosts.cluster import HostCluster
from tests.hosts.machines import HOMES
from tests.hosts.test_hosts import Undisturbed
from tests.soak import soak
from tests.submitted import SLOW, Run
from tests.test_slurm_cluster import LONG, preempt, requeue, signal_all_descendants, survive


def of_user(user: str, name: str, cluster: HostCluster) -> Run:
    """A run of that name in the user's home, which all tests share; submitted by the user."""
    run_dir = HOMES / user / name
    run = Run(cluster, run_dir, HOMES / user / "data", seen_at=cluster.machines["n0"].outside(run_dir))
    run.here = partial(cluster.here, user=user)
    return run


@soak
def test_a_job_of_a_user_is_preempted_requeued_and_signalled(
    cluster: HostCluster, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    run = of_user("ada", tmp_path.name, cluster)
    survive(run, [preempt, requeue, signal_all_descendants], undisturbed(2, *LONG))
    assert run.run_dir.stat().st_uid != 0


def test_a_user_trains_with_launch_sh_of_a_checkout_that_is_read_only(
    cluster: HostCluster, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    name = f"ada/{tmp_path.name}"
    words = [str(REPOSITORY / "launch.sh"), *tiny(f"run_dir={tmp_path.name}", "data.root=data")]
    assert cluster.on("n1", "test", "-w", str(REPOSITORY), user="ada").returncode != 0
    done = cluster.on("n1", *words, user="ada", timeout_s=400)
    assert done.returncode == 0, done.stderr
    found = payload(cluster.machines["n0"].outside(HOMES / name))
    assert differing(without_clock(found), undisturbed(2)) == []
    another = cluster.on("n2", *words, f"run_dir={HOMES}/{name}", user="ben")
    assert another.returncode == REFUSED_EXIT_CODE
    assert f"/{name} cannot be read (Permission denied); choose another run_dir" in another.stderr
    submitted = of_user("ben", "any", cluster).tool(*tiny("slurm.time=20m", f"run_dir={HOMES}/{name}"))
    assert (submitted.returncode, submitted.stdout) == (REFUSED_EXIT_CODE, "")
    assert "Traceback" not in another.stderr + submitted.stderr


def test_accounts_and_limits_are_told_before_and_while_a_job_waits(cluster: HostCluster, tmp_path: Path) -> None:
    runs = [of_user("ben", f"{tmp_path.name}-{number}", cluster) for number in range(2)]
    refused = runs[0].tool(*tiny(*runs[0].options, "slurm.account=physics", "slurm.time=20m"))
    assert refused.returncode == REFUSED_EXIT_CODE
    assert "slurm.account=physics is not among the accounts that you may use: lab" in refused.stderr
    for run in runs:
        run.submit("train.epochs=3000", SLOW, "slurm.nodes=1", "slurm.account=lab", "slurm.qos=single")
    wait_until(lambda: "QOSMaxJobsPerUserLimit" in runs[1].tool("status", str(runs[1].given)).stdout)
    for run in runs:
        assert run.tool("stop", str(run.given)).returncode == 0
        run.wait_for("CANCELLED")
