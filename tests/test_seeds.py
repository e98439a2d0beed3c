"""How many threads a process takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from senet.distributed import devices
from senet.distributed.devices import cores, set_threads
from senet.training.seeds import set_deterministic


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host of 16 cores, whose control groups are a folder of files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(devices, "_CGROUPS", tmp_path)
    monkeypatch.setattr(devices, "_OWN_CGROUPS", tmp_path / "own")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),  # docker --cpus=2
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000"}, 1),
        ("0::/user/job\n", {"user/cpu.max": "400000 100000", "user/job/cpu.max": "max 100000"}, 4),
        ("0::/user/job\n", {"user/cpu.max": "400000 100000", "user/job/cpu.max": "300000 100000"}, 3),
        ("0::/seen/from/outside\n", {"cpu.max": "500000 100000"}, 5),
        ("4:cpu,cpuacct:/\n2:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("4:cpu,cpuacct:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "50000"}, 5),
    ],
)
def test_affinity_and_quotas_of_control_groups_limit_the_threads(
    host: Path, own: str, files: dict[str, str], expected: int
) -> None:
    (host / "own").write_text(own)
    for name, content in files.items():
        (host / name).parent.mkdir(parents=True, exist_ok=True)
        (host / name).write_text(content + "\n")
    assert set_threads(0, 1) == cores() == expected
    assert set_threads(0, 2) == max(1, expected // 2)
    assert set_threads(7, 2) == 7


def test_a_rank_has_as_many_threads_as_cores_were_asked_for(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / "own").write_text("0::/\n")
    monkeypatch.setenv("SENET_CORES_PER_RANK", "3")
    assert (set_threads(0, 2), set_threads(7, 2)) == (3, 7)
    monkeypatch.setenv("SENET_CORES_PER_RANK", "0")
    assert set_threads(0, 2) == 8


def test_deterministic_mode_leaves_out_what_nvswitch_adds_up_unless_somebody_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NCCL_ALGO", raising=False)
    try:
        set_deterministic(True)
        # by their whole names: excluding NVLS alone leaves NVLSTree, which several nodes use
        assert os.environ["NCCL_ALGO"] == "^NVLS,NVLSTree"
        monkeypatch.setenv("NCCL_ALGO", "Ring")
        set_deterministic(True)
        assert os.environ["NCCL_ALGO"] == "Ring"
    finally:
        torch.use_deterministic_algorithms(False)
