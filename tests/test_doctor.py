"""The doctor's verdict on reports made by hand, of 2, 8 and 64 hosts: the right host is named, and no other."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from senet.doctor.arguments import parse
from senet.doctor.judge import judge, values
from senet.doctor.reports import WAITING, Finding, Reports
from senet.doctor.table import text
from senet.errors import ConfigError

SIZES = (2, 8, 64)
Break = Callable[[Reports, int], None]


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All of 8 hosts, a ring of more."""
    if count > 8:
        return [(first, (first + 1) % count) for first in range(count)]
    return list(itertools.combinations(range(count), 2))


def healthy(count: int, per_host: int = 1, seed: int = 0) -> Reports:
    """Hosts n0, n1, ... that differ as hosts do."""
    draw = random.Random(seed)
    world = count * per_host
    names = [f"n{number}" for number in range(count)]
    parts: dict[int, dict[str, Any]] = {}
    for rank in range(world):
        host = rank // per_host
        speed = draw.uniform(0.8, 1.2)
        parts[rank] = {
            "here": {
                "host": names[host],
                "device": "cpu",
                "processor": "EPYC",
                "versions": {"Python": "3.12.3", "torch": "2.14.1", "code": "abc"},
                "limits": {
                    "memory, GB": 20.0 * per_host,
                    "/dev/shm, GB": 8.0,
                    "open files": 65536.0,
                    "processes": None,
                },
            },
            "clock": {"ahead_s": draw.uniform(-0.1, 0.1), "error_s": 0.05},
            "compute": {
                "wrong": {"fp64": "", "fp32": "", "bf16": ""},
                "rates": {"fp32": [50 * speed, 20 * speed], "copy": [3 * speed, 9 * speed]},
            },
            "interface": {"name": "eth0"},
            "all-reduce": {"ready_s": 0.1, "trip_s": 1e-3, "rate": 3e8, "wrong": 0},
        }
        if rank % per_host == 0:
            others, link = [names[b] for a, b in pairs_of(count) if a == host], {"trip_s": 1e-4, "busy": 0.0}
            folder = {"path": "runs/a", "folder": "/shared", "kind": "nfs4", "free": 1e12, "checkpoint": 1e9}
            folder |= {"free_files": None, "file": "/shared/probe", "token": "t", "seconds": 0.02, "lock": ""}
            seen = {names[b]: {"seen_s": 0.01, "excluded": True} for b in {0, (host + 1) % count} - {host}}
            parts[rank] |= {
                "names": {"addresses": {name: ["10.0.0.1"] for name in names}},
                "files": {"run_dir": folder | {"behind_s": 0.0}, "data.root": dict(folder)},
                "files seen": {"run_dir": seen, "data.root": {}},
                "interface": {"name": "eth0", "address": f"10.0.0.{host}", "port": 5, "stated": 1.25e9},
                "links": {
                    "loop": link | {"to": 2e9, "from": 2e9},
                    "pairs": {
                        name: link | {way: 9e8 * draw.uniform(0.6, 1.2) for way in ("to", "from")} for name in others
                    },
                },
            }
    return Reports(world, per_host, 15.0, parts, master="n0", complete=True)


def named(reports: Reports) -> set[tuple[str, str, str]]:
    return {(finding.host, finding.kind, finding.check) for finding in judge(reports)}


@pytest.mark.parametrize("per_host", [1, 4])
@pytest.mark.parametrize("count", [1, *SIZES])
def test_hosts_without_a_fault_are_not_accused(count: int, per_host: int) -> None:
    for seed in range(5):
        assert judge(healthy(count, per_host, seed)) == []


def never_came(reports: Reports, rank: int) -> None:
    reports.parts[rank] = {}
    reports.launched_on = [f"n{number}" for number in range(reports.world_size)]


def wrong_element(reports: Reports, rank: int) -> None:
    reports.parts[rank]["compute"]["wrong"]["bf16"] = "element [3, 7] of [512, 512] is 12 instead of 11 (1 wrong)"


def half_as_fast(reports: Reports, rank: int) -> None:
    for windows in reports.parts[rank]["compute"]["rates"].values():
        windows[:] = [rate / 2.6 for rate in windows]  # the others differ by a factor of 1.5


def slow_in_one_window(reports: Reports, rank: int) -> None:
    reports.parts[rank]["compute"]["rates"]["fp32"][0] /= 3
    reports.parts[rank]["compute"]["rates"]["fp32"][1] *= 2.5


def other_torch(reports: Reports, rank: int) -> None:
    reports.parts[rank]["here"]["versions"]["torch"] = "2.10.0"


def other_driver(reports: Reports, rank: int) -> None:
    reports.parts[rank]["here"]["versions"]["CUDA driver"] = "550.90"


def other_patch_of_python(reports: Reports, rank: int) -> None:
    reports.parts[rank]["here"]["versions"]["Python"] = "3.12.4"


def no_gpu(reports: Reports, rank: int) -> None:
    reports.parts[rank] = {
        "here": {"host": f"n{rank}", "error": "ConfigError: train.device=cuda, but no GPU", "of_device": True}
    }


def hangs_in_files(reports: Reports, rank: int) -> None:
    del reports.parts[rank]["files"], reports.parts[rank]["files seen"]
    reports.doing[rank] = "files"


def clock_five_minutes_behind(reports: Reports, rank: int) -> None:
    reports.parts[rank]["clock"]["ahead_s"] -= 300
    reports.parts[rank]["files"]["run_dir"]["behind_s"] += 300  # stamped by the server


def clock_five_seconds_ahead(reports: Reports, rank: int) -> None:
    reports.parts[rank]["clock"]["ahead_s"] += 5
    reports.parts[rank]["files"]["run_dir"]["behind_s"] -= 5


def read_only(reports: Reports, rank: int) -> None:
    folder = {"path": "runs/a", "folder": "/shared", "kind": "nfs4", "free": 1e12, "checkpoint": 0, "free_files": None}
    folder["exists"] = True
    reports.parts[rank]["files"]["run_dir"] = folder | {"error": "Read-only file system", "full": False}
    for other in reports.parts.values():
        other["files seen"]["run_dir"].pop(f"n{rank}", None)  # nobody looks for a file that was never made


def too_little_room(reports: Reports, rank: int) -> None:
    reports.parts[rank]["files"]["run_dir"]["free"] = 5e8


def room_for_two_checkpoints(reports: Reports, rank: int) -> None:
    reports.parts[rank]["files"]["run_dir"]["free"] = 2.5e9


def own_local_folder(reports: Reports, rank: int) -> None:
    reports.parts[rank]["files"]["run_dir"]["kind"] = "ext4"
    for number, other in reports.parts.items():
        for name, how in other["files seen"]["run_dir"].items():
            if number == rank or name == f"n{rank}":
                how["seen_s"] = None


def no_locks(reports: Reports, rank: int) -> None:
    reports.parts[rank]["files"]["run_dir"]["lock"] = "No locks available"
    for other in reports.parts.values():
        if how := other["files seen"]["run_dir"].get(f"n{rank}"):
            how["excluded"] = False


def knows_no_names(reports: Reports, rank: int) -> None:
    for name in reports.parts[rank]["names"]["addresses"]:
        if name != f"n{rank}":
            reports.parts[rank]["names"]["addresses"][name] = ["127.0.1.1"] if name == "n1" else []


def little_memory(reports: Reports, rank: int) -> None:
    reports.parts[rank]["here"]["limits"]["memory, GB"] = 0.3


def hangs_in_all_reduce(reports: Reports, rank: int) -> None:
    for each in reports.parts.values():
        each["all-reduce"] = {"error": "RuntimeError: Timed out waiting 8000ms"}
    del reports.parts[rank]["all-reduce"]
    reports.doing[rank] = "all-reduce"


def wrong_sums(reports: Reports, rank: int) -> None:
    reports.parts[rank]["all-reduce"]["wrong"] = 2


FAULTS: list[tuple[Break, str, str]] = [
    (never_came, "late", "start"),
    (no_gpu, "wrong", "device"),
    (wrong_element, "wrong", "arithmetic"),
    (half_as_fast, "slow", "speed"),
    (other_torch, "wrong", "versions"),
    (other_driver, "slow", "versions"),
    (other_patch_of_python, "slow", "versions"),
    (hangs_in_files, "late", "files"),
    (clock_five_minutes_behind, "wrong", "clock"),
    (clock_five_seconds_ahead, "slow", "clock"),
    (read_only, "wrong", "files"),
    (too_little_room, "wrong", "files"),
    (room_for_two_checkpoints, "slow", "files"),
    (own_local_folder, "wrong", "files"),
    (no_locks, "slow", "locks"),
    (knows_no_names, "slow", "names"),
    (little_memory, "slow", "limits"),
    (hangs_in_all_reduce, "late", "all-reduce"),
    (wrong_sums, "wrong", "all-reduce"),
]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize(("fault", "kind", "check"), FAULTS, ids=[fault.__name__ for fault, _, _ in FAULTS])
def test_a_fault_is_named_on_its_host(fault: Break, kind: str, check: str, count: int) -> None:
    for rank in {0, 1, count - 1}:
        if rank == 0 and fault is never_came:
            continue  # rank 0 judges
        reports = healthy(count, seed=rank)
        fault(reports, rank)
        if check == "versions" and count == 2:  # either may be the one to be mended
            assert named(reports) == {("n0", "slow", check), ("n1", "slow", check)}
        else:
            assert named(reports) == {(f"n{rank}", kind, check)}


def test_a_rate_counts_that_is_low_twice() -> None:
    reports = healthy(8)
    slow_in_one_window(reports, 3)
    assert judge(reports) == []


def test_ranks_are_compared_with_others_on_the_same_kind_of_device() -> None:
    reports = healthy(8)
    for rank in (0, 1):
        reports.parts[rank]["here"]["processor"] = "older"
        half_as_fast(reports, rank)
    assert judge(reports) == []


def test_one_slow_rank_of_a_host_is_named_with_its_number() -> None:
    reports = healthy(2, per_host=4)
    half_as_fast(reports, 6)
    [finding] = judge(reports)
    assert (finding.host, finding.rank) == ("n1", 6)
    assert finding.text.startswith("rank 6: fp32 ")


def slow_links(reports: Reports, host: int, factor: float) -> None:
    for rank, parts in reports.parts.items():
        for name, link in parts["links"]["pairs"].items():
            if rank == host or name == f"n{host}":
                link["from"] *= factor  # in one direction alone


@pytest.mark.parametrize("count", [3, 4, 5, 8, 9, 64])
def test_a_link_of_a_tenth_is_named_on_the_host_that_it_belongs_to(count: int) -> None:
    for host in {0, 1, count - 1}:
        reports = healthy(count)
        slow_links(reports, host, 0.1)
        assert named(reports) == {(f"n{host}", "slow", "links")}


def test_of_two_hosts_both_are_named_by_what_is_possible() -> None:
    reports = healthy(2)
    slow_links(reports, 1, 0.1)
    assert named(reports) == {("n0", "slow", "links"), ("n1", "slow", "links")}
    assert all("1.25e+03 are possible" in finding.text for finding in judge(reports))
    for rank in (0, 1):
        reports.parts[rank]["interface"]["stated"] = None  # then 1 Gbit/s is possible, and this is more than a fifth
    assert judge(reports) == []


@pytest.mark.parametrize(("busy", "slow"), [(0.0, True), (0.5, True), (0.95, False), (1.0, False)])
def test_a_link_is_not_slow_that_may_be_fast_but_for_busy_cores(busy: float, slow: bool) -> None:
    for count in (2, 8):
        reports = healthy(count)
        slow_links(reports, 1, 0.1)
        for parts in reports.parts.values():
            for link in parts["links"]["pairs"].values():
                link["busy"] = busy
        assert (("n1", "slow", "links") in named(reports)) == slow


def test_one_slow_pair_among_good_ones_names_both_of_its_hosts() -> None:
    reports = healthy(8)
    reports.parts[2]["links"]["pairs"]["n5"]["to"] /= 10
    assert named(reports) == {("n2", "slow", "links"), ("n5", "slow", "links")}


@pytest.mark.parametrize(("error", "kind"), [("No route to host", "wrong"), ("timed out", "late")])
@pytest.mark.parametrize("count", [3, 8, 64])
def test_a_host_that_no_other_reaches_is_named(count: int, error: str, kind: str) -> None:
    reports = healthy(count)
    for rank, parts in reports.parts.items():
        for name in parts["links"]["pairs"]:
            if rank == 1 or name == "n1":
                parts["links"]["pairs"][name] = {"error": error}
    assert named(reports) == {("n1", kind, "links")}


@pytest.mark.parametrize("count", [8, 64])
def test_a_name_that_no_other_host_finds_is_a_fault_of_its_host(count: int) -> None:
    reports = healthy(count)
    for rank, parts in reports.parts.items():
        if rank != 5:
            parts["names"]["addresses"]["n5"] = []
    assert named(reports) == {("n5", "slow", "names")}


@pytest.mark.parametrize("count", [2, 4])
def test_clocks_without_a_majority_or_a_third_opinion_exclude_nobody(count: int) -> None:
    reports = healthy(count)
    for rank in range(count // 2):
        clock_five_minutes_behind(reports, rank)
    for parts in reports.parts.values():
        del parts["files"]["run_dir"]["behind_s"]
    assert named(reports) == {(f"n{rank}", "slow", "clock") for rank in range(count)}
    assert all("no majority tells which is wrong" in finding.text for finding in judge(reports))


def test_a_loopback_address_is_told_where_it_leads_nowhere() -> None:
    reports = healthy(2)
    reports.parts[1]["interface"] |= {"name": "", "address": "127.0.1.1"}
    assert judge(reports) == []  # two hosts of one machine
    reports.parts[0]["links"]["pairs"]["n1"] = {"error": "Connection refused"}
    assert named(reports) == {("n1", "slow", "names"), ("n0", "wrong", "links"), ("n1", "wrong", "links")}


def test_versions_without_a_majority_exclude_nobody() -> None:
    reports = healthy(4)
    for rank in (2, 3):
        other_torch(reports, rank)
    assert named(reports) == {(f"n{rank}", "slow", "versions") for rank in range(4)}


def test_a_host_is_what_its_rank_says_it_is_in_whichever_order_the_ranks_were_dealt() -> None:
    reports = healthy(2, per_host=2)
    reports.launched_on = ["n0", "n1"]
    parts = reports.parts
    reports.parts = {0: parts[0], 1: parts[2], 2: parts[1], 3: parts[3]}  # dealt in turns
    wrong_element(reports, 1)
    assert named(reports) == {("n1", "wrong", "arithmetic")}
    assert reports.leaders() == [0, 1]
    reports.parts[3] = {}
    assert ("", "late", "start") in named(reports)  # the launcher's order is not that of those that came


def test_a_clock_is_not_judged_more_closely_than_it_was_read() -> None:
    reports = healthy(8)
    reports.parts[3]["clock"] = {"ahead_s": 12.0, "error_s": 11.5}
    assert judge(reports) == []


def test_folders_of_all_hosts_that_are_not_shared_are_no_hosts_fault() -> None:
    reports = healthy(2)
    for rank in (0, 1):
        own_local_folder(reports, rank)
    assert named(reports) == {("", "slow", "files")}


@pytest.mark.parametrize("count", [1, 2, 8])
def test_what_all_hosts_have_alike_in_a_folder_is_no_hosts_fault(count: int) -> None:
    for fault, kind in ((read_only, "wrong"), (too_little_room, "wrong"), (room_for_two_checkpoints, "slow")):
        reports = healthy(count)
        for rank in range(count):
            fault(reports, rank)
        assert named(reports) == {("", kind, "files")}


def test_a_file_system_that_does_not_say_how_much_is_free_is_not_full() -> None:
    reports = healthy(2)
    for parts in reports.parts.values():
        parts["files"]["run_dir"]["free"] = None
    assert judge(reports) == []
    assert values(reports)["run_dir, GB free"]["n0"] == "unknown"


def test_a_network_file_system_that_is_late_is_only_warned_of() -> None:
    reports = healthy(2)
    own_local_folder(reports, 1)
    reports.parts[1]["files"]["run_dir"]["kind"] = "nfs4"
    assert named(reports) == {("", "slow", "files")}
    reports = healthy(2)
    reports.parts[1]["files seen"]["run_dir"]["n0"]["seen_s"] = 95.0
    assert named(reports) == {("n1", "wrong", "files")}


def test_a_data_root_may_be_each_hosts_own() -> None:
    reports = healthy(2)
    for rank, other in ((0, "n1"), (1, "n0")):
        reports.parts[rank]["files"]["data.root"]["kind"] = "ext4"
        reports.parts[rank]["files seen"]["data.root"] = {other: {"seen_s": None}}
    assert judge(reports) == []


def test_a_data_root_may_be_read_only_on_all_hosts_but_not_missing_where_it_cannot_be_made() -> None:
    reports = healthy(2)
    for parts in reports.parts.values():
        parts["files"]["data.root"] |= {"error": "Read-only file system", "full": False, "exists": True}
    assert judge(reports) == []
    del reports.parts[0]["files"]["data.root"]["error"]
    assert named(reports) == {("n1", "slow", "files")}
    reports.parts[1]["files"]["data.root"]["exists"] = False
    assert named(reports) == {("n1", "wrong", "files")}


def test_locks_that_exclude_no_other_host_are_warned_of() -> None:
    reports = healthy(2)
    for rank, other in ((0, "n1"), (1, "n0")):
        reports.parts[rank]["files seen"]["run_dir"][other]["excluded"] = False
    assert named(reports) == {("n0", "slow", "locks"), ("n1", "slow", "locks")}


def test_a_rank_that_waits_is_not_accused_of_the_hang_of_another() -> None:
    reports = healthy(8)
    hangs_in_files(reports, 2)
    reports.doing |= dict.fromkeys((), WAITING)
    for rank in range(8):
        reports.parts[rank].pop("files seen", None)
        reports.parts[rank].pop("all-reduce")
    assert named(reports) == {("n2", "late", "files")}


def test_a_missing_rank_without_a_known_host_still_is_a_finding() -> None:
    reports = healthy(2)
    reports.parts[1] = {}
    assert named(reports) == {("", "late", "start")}
    reports = healthy(2, per_host=2)
    reports.parts[3] = {}
    assert named(reports) == {("n1", "late", "start")}  # the host of its neighbour


def test_an_all_reduce_that_fails_on_all_ranks_names_no_host() -> None:
    reports = healthy(8)
    for parts in reports.parts.values():
        parts["all-reduce"] = {"error": "RuntimeError: Connection reset"}
    [finding] = judge(reports)
    assert (finding.host, finding.kind, finding.check) == ("", "late", "all-reduce")


@pytest.mark.parametrize("count", [1, *SIZES])
def test_the_table_has_few_rows_and_columns_on_any_number_of_hosts(count: int) -> None:
    reports = healthy(count)
    if count > 1:
        wrong_element(reports, 1)
    page = text(reports, values(reports), judge(reports))
    lines = page.splitlines()
    assert len(lines) < 45
    assert max(map(len, lines)) < 250
    if count > 1:
        assert "WRONG  n1: arithmetic: rank 1 on cpu (EPYC), bf16: element [3, 7] " in page
        assert lines[-1] == "1 host(s) are not fit to train"
        assert any(line.startswith("exact products ") and "not in bf16" in line and " !" in line for line in lines)
    else:
        assert lines[-1] == "nothing is wrong"


def test_what_many_hosts_have_alike_is_one_line() -> None:
    reports = healthy(64)
    for rank in range(60):
        little_memory(reports, rank)
    lines = text(reports, values(reports), judge(reports)).splitlines()
    [line] = [line for line in lines if line.startswith("slow  ")]
    assert line.startswith("slow  n0, n1, n2, n3, and 56 more: limits: memory: 0.3 GB left")


def test_a_file_name_cannot_write_on_the_terminal() -> None:
    reports = healthy(1)
    reports.parts[0]["files"]["run_dir"]["kind"] = "\x1b[31m"
    assert "\x1b" not in text(reports, values(reports), [Finding("n\n0", None, "slow", "files", "a")])


def test_values_are_plain_and_there_for_each_host() -> None:
    reports = healthy(3, per_host=2)
    half_as_fast(reports, 3)
    checks = json.loads(json.dumps(values(reports)))
    assert checks["torch"] == {"n0": "2.14.1", "n1": "2.14.1", "n2": "2.14.1"}
    rates = {rank: max(parts["compute"]["rates"]["fp32"]) for rank, parts in reports.parts.items()}
    assert checks["fp32 product, GFLOP/s"]["n1"] == min(rates[2], rates[3])  # the slower one of its ranks
    assert checks["processes left"]["n0"] is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-seconds", "0"], "--max-seconds 0 must be from 1 to 600"),
        (["--out", "/nowhere/a.json"], "--out /nowhere/a.json: no such folder"),
        (["--quick"], "unrecognized arguments: --quick; --help shows the usage"),
    ],
)
def test_a_wrong_command_line_is_refused_in_a_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert str(caught.value) == message
