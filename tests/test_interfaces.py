"""Ranks on several hosts: the interface that gloo uses. Two hosts are two network namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from senet import REPOSITORY
from senet.config.options import DistributedConfig
from senet.distributed import interfaces as network
from senet.distributed import meeting
from senet.distributed.environment import read_place
from senet.distributed.groups import leave_together, process_groups, sum_over_ranks
from senet.distributed.interfaces import choose_interface
from senet.distributed.ranks import Ranks
from tests.harness import free_port, idle_watchdog

CPU = torch.device("cpu")
FIRST = Ranks(0, 4, 0, 2, CPU)  # the first of four ranks on two hosts
ALONE = Ranks(0, 2, 0, 2, CPU)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """On a host with two networks, whose name has the address 127.0.1.1."""
    for name, value in {"MASTER_ADDR": "n1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(network, "_interfaces", lambda: {"10.0.0.1": "eth0", "10.1.0.1": "ib0"})
    monkeypatch.setattr(network, "_route", lambda _host, _port: ("127.0.1.1", "127.0.0.1"))
    return dist.HashStore()  # type: ignore[attr-defined,no-any-return]


def test_the_interface_is_that_which_reaches_the_master(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_route", lambda _host, _port: ("10.1.0.9", "10.1.0.1"))
    choose_interface(Ranks(3, 4, 1, 2, CPU), store, 5)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    assert store.get("master/3") == b"10.1.0.9"


def test_on_the_master_it_is_that_by_which_the_others_know_it(store: dist.Store) -> None:
    store.set("master/1", "")
    store.set("master/3", "10.0.0.1")
    choose_interface(FIRST, store, 5)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"


@pytest.mark.parametrize("ranks", [ALONE, FIRST])
def test_one_host_or_a_choice_that_was_made_is_left_alone(
    ranks: Ranks, store: dist.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = "eno7" if ranks is FIRST else ""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", chosen)
    choose_interface(ranks, store, 5)
    assert os.environ["GLOO_SOCKET_IFNAME"] == chosen


def test_where_all_reach_the_master_on_their_own_host_nothing_is_chosen(store: dist.Store) -> None:
    for rank in (1, 2, 3):
        store.set(f"master/{rank}", "")
    choose_interface(FIRST, store, 5)
    assert os.environ["GLOO_SOCKET_IFNAME"] == ""


def test_interfaces_are_those_of_this_host() -> None:
    expected = {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family.name in ("AF_INET", "AF_INET6") and name != "lo"
    }
    assert network._interfaces() == expected


def meet() -> None:
    """What a rank on one of the two hosts runs."""
    ranks = Ranks(*read_place(), CPU)
    store, _ = meeting.meet(ranks, idle_watchdog(), {}, lambda: None)
    with process_groups(ranks, store, DistributedConfig(start_timeout_s=60), idle_watchdog()) as group:
        total = sum_over_ranks(torch.tensor([ranks.rank + 1]))
        leave_together(group)
    print(os.environ.get("GLOO_SOCKET_IFNAME"), total, flush=True)
    os._exit(0)


HOST = 'hostname "$1" && mount --make-rprivate / && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[list[list[str]]]:
    """Commands in front of one, to run it on either host. Each has Debian's line for its own name."""
    names = [f"net{letter}{os.getpid()}" for letter in "ab"]
    run = subprocess.check_call
    try:
        for name in names:
            run(["ip", "netns", "add", name])
        ends = ["name", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1]]
        run(["ip", "link", "add", *ends])
        commands = []
        for index, name in enumerate(names):
            run(["ip", "-n", name, "address", "add", f"10.77.0.{index + 1}/24", "dev", "eth0"])
            for interface in ("lo", "eth0"):
                run(["ip", "-n", name, "link", "set", interface, "up"])
            hosts = tmp_path / f"hosts-{index}"
            other = 1 - index
            hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 host-{index}\n10.77.0.{other + 1} host-{other}\n")
            enter = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "--mount", "sh", "-c", HOST, "sh"]
            commands.append([*enter, f"host-{index}", str(hosts)])
        yield commands
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.mark.ranks
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and Debian's iproute2"
)
@pytest.mark.parametrize("master", ["10.77.0.1", "host-0"])
def test_two_hosts_whose_names_are_127_0_1_1_meet(two_hosts: list[list[str]], master: str) -> None:
    one_rank_each = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment = os.environ | one_rank_each | {"MASTER_ADDR": master, "MASTER_PORT": str(free_port())}
    environment.pop("GLOO_SOCKET_IFNAME", None)
    processes = [
        subprocess.Popen(
            [*host, sys.executable, "-c", "from tests.test_interfaces import meet; meet()"],
            env=environment | {"RANK": str(rank)},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(two_hosts)
    ]
    try:
        said = [process.communicate(timeout=400) for process in processes]
        assert [out for out, _ in said] == ["eth0 [3]\n"] * 2, said
    finally:
        for process in processes:
            process.kill()
