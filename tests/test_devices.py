"""Which GPU a rank takes, with a stand-in for the driver: no test machine has one."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from senet.config.options import TrainConfig
from senet.distributed.devices import choose_device, count_gpus, refuse_shared_gpu
from senet.distributed.meeting import meet
from senet.distributed.ranks import Ranks
from senet.errors import ConfigError
from tests.harness import idle_watchdog, on_hosts

PROPERTIES = SimpleNamespace(name="A100", pci_domain_id=0, pci_bus_id=7, pci_device_id=0)


@pytest.fixture(autouse=True)
def _neither_launcher_nor_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def none(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", none)


def install_driver(monkeypatch: pytest.MonkeyPatch, gpus: int, code: int = 0) -> None:
    """A libcuda that starts with this code and has so many GPUs."""

    def get_count(pointer: Any) -> int:
        pointer._obj.value = gpus
        return 0

    driver = SimpleNamespace(cuInit=lambda _flags: code, cuDeviceGetCount=get_count)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)


def test_gpus_are_what_the_driver_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(monkeypatch, gpus=4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c,GPU-d")
    assert count_gpus() == 4
    install_driver(monkeypatch, gpus=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")  # a process can use the first of several instances alone
    assert count_gpus() == 1


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "none"])
def test_gpus_that_are_hidden_are_none(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    install_driver(monkeypatch, gpus=0, code=100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert count_gpus() == 0


@pytest.mark.parametrize("wanted", ["7", "GPU-x", "MIG-x"])
def test_gpus_that_were_named_and_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    install_driver(monkeypatch, gpus=0, code=100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    with pytest.raises(ConfigError, match=f"CUDA_VISIBLE_DEVICES={wanted}, but CUDA finds no such GPU"):
        count_gpus()


def test_a_driver_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(monkeypatch, gpus=0, code=803)
    with pytest.raises(ConfigError, match=r"error 803 of the driver.*train\.device=cpu"):
        choose_device("auto", 0)
    assert choose_device("cpu", 0).type == "cpu"


def test_without_a_driver_or_a_launcher_there_is_one_rank_on_the_cpu() -> None:
    assert Ranks.from_environment(TrainConfig()) == Ranks(0, 1, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("gpus", "local_rank", "expected"),
    [(4, 3, 3), (1, 3, 0), (2, 3, 1)],  # all ranks see all GPUs; each its own; each the two of its socket
)
def test_a_rank_takes_the_gpu_of_its_local_rank_and_makes_it_current(
    monkeypatch: pytest.MonkeyPatch, gpus: int, local_rank: int, expected: int
) -> None:
    current, ones = [], torch.ones
    install_driver(monkeypatch, gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "ones", lambda *size, device: (current.append(device), ones(*size))[1])
    assert choose_device("auto", local_rank) == torch.device("cuda", expected)
    assert current == [torch.device("cuda", expected)] * 2


def test_a_gpu_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_device: torch.device) -> None:
        raise RuntimeError("all CUDA-capable devices are busy or unavailable\nCompile with ...")

    install_driver(monkeypatch, gpus=2)
    monkeypatch.setattr(torch.cuda, "set_device", busy)
    with pytest.raises(ConfigError, match=r"cuda:1 of the 2 visible .*\(all CUDA-capable .* unavailable\); free"):
        choose_device("auto", 1)


def test_cuda_where_there_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.device=cuda, but no GPU"):
        choose_device("cuda", 0)
    with pytest.raises(ConfigError, match=r"^--device=cuda, but no GPU is visible; set --device=cpu or --device=auto$"):
        choose_device("cuda", option="--device")
    with pytest.raises(ConfigError, match=r"train\.sync_bn=true needs CUDA"):
        Ranks.from_environment(TrainConfig(sync_bn=True))


def test_two_ranks_with_one_gpu_are_named_when_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: PROPERTIES)
    store, roster = dist.HashStore(), on_hosts("n1", "n1", "n1", "n1")  # type: ignore[attr-defined]
    refuse_shared_gpu(torch.device("cpu"), 9, roster, store)
    refuse_shared_gpu(torch.device("cuda", 0), 0, roster, store)
    with pytest.raises(ConfigError, match=r"^ranks 0, 2 on n1 have the same GPU \(A100, PCI 0000:07:00\), "):
        refuse_shared_gpu(torch.device("cuda", 0), 2, roster, store)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(**vars(PROPERTIES) | {"pci_bus_id": 8})
    )
    refuse_shared_gpu(torch.device("cuda", 0), 3, roster, store)


def test_that_is_asked_before_anything_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("senet.distributed.meeting.refuse_shared_gpu", lambda _device, rank, *_: asked.append(rank))
    _, prepared = meet(Ranks(0, 1, 0, 1, torch.device("cuda", 0)), idle_watchdog(), {}, lambda: list(asked))
    assert prepared == [0]
