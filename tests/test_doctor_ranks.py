"""The doctor with two real ranks, which take themselves for two hosts, n1 and n2; one fault at a time, on n2."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from senet import REPOSITORY
from senet.distributed import devices
from senet.doctor import __main__ as command
from senet.doctor import cores, folders, machine, network, products, visit
from senet.doctor.board import Board
from senet.doctor.reports import WAITING
from tests.faults.interpose import missing_compiler
from tests.harness import free_port, run_ranks, started

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
NAME = "doctor.json"


def addresses() -> list[str]:
    """Of this machine, but those that lead to itself on every host."""
    entries = [entry for of in psutil.net_if_addrs().values() for entry in of if entry.family == socket.AF_INET]
    return [entry.address for entry in entries if not entry.address.startswith("127.")]


def _wrong_element() -> None:
    original = torch.matmul

    def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = original(left, right)
        if product.dtype == torch.float32:
            product[3, 7] += 1
        return product

    torch.matmul = matmul


def _slow_products() -> None:
    original = torch.matmul

    def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        product = original(left, right)
        time.sleep(2 * (time.perf_counter() - began))
        return product

    torch.matmul = matmul


def _other_torch() -> None:
    torch.__version__ = "2.10.0"


def _no_locks() -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = flock


def _locks_of_its_own() -> None:
    fcntl.flock = lambda _descriptor, _operation: None


def _own_files() -> None:
    """As on a host that lacks the mount: what the others write is not there, and what it writes they do not see."""
    original = folders.look

    def look(theirs: Any, patience_s: float) -> Any:
        return {host: {"seen_s": None} for host in original(theirs, patience_s)}

    visit.folders.look = look
    folders._kind = lambda _: "ext4"


def _no_names() -> None:
    original = socket.getaddrinfo

    def getaddrinfo(name: Any, *rest: Any, **more: Any) -> Any:
        if name == "n1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return original(name, *rest, **more)

    socket.getaddrinfo = getaddrinfo


def _hanging_files() -> None:
    folders._write = lambda _file, _token: time.sleep(600)


def _hanging_all_reduce() -> None:
    dist.all_reduce = lambda _: time.sleep(600)


def _firewall() -> None:
    @contextmanager
    def answering(_address: str, _token: bytes) -> Iterator[int]:
        yield free_port()  # where nobody listens

    network.answering = answering


def _slow_link() -> None:
    original = network._receive

    def receive(connection: socket.socket, buffer: memoryview, size: int) -> None:
        original(connection, buffer, size)
        time.sleep(size / 5e6)

    network._receive = receive
    to_itself = {"to": 1e9, "from": 1e9, "trip_s": 1e-5, "busy": 0.0}  # not by the link
    network.measure_link = lambda _address, _port, _token: to_itself


def _never_comes() -> None:
    raise SystemExit(0)


def _as_host(rank: int) -> None:
    """This rank as the only one of its host, whose name and that of the other have the address of this machine."""
    os.environ |= {"SLURMD_NODENAME": f"n{rank + 1}", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ["MASTER_ADDR"] = "localhost"
    original = socket.getaddrinfo
    own = addresses()[0]

    def getaddrinfo(name: Any, *rest: Any, **more: Any) -> Any:
        return original(own if name in ("n1", "n2") else name, *rest, **more)

    socket.getaddrinfo = getaddrinfo
    visit.own_address = lambda: own
    folders._kind = lambda _: "nfs4"


def _check(argv: Sequence[str], faults: Sequence[Callable[[], None] | None], run_dirs: Sequence[str]) -> int:
    rank = int(os.environ["RANK"])
    _as_host(rank)
    if fault := faults[rank]:
        try:
            fault()
        except SystemExit:
            return -1
    return command.main([*argv, f"run_dir={run_dirs[rank]}"])


Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """``check(fault)``: exit code of rank 0 and its report, with the fault on n2."""
    if not addresses():
        pytest.skip("needs a network interface besides lo")

    def checked(
        fault: Callable[[], None] | None = None,
        *,
        seconds: float = 60,
        run_dirs: Sequence[str] = (),
        leaves_files: bool = False,
    ) -> tuple[int, dict[str, Any]]:
        shared = tmp_path / "shared"
        shared.mkdir(exist_ok=True)
        argv = [f"--out={tmp_path / NAME}", f"--max-seconds={seconds}", f"data.root={shared}", "train.device=cpu"]
        run_dirs = run_dirs or 2 * [str(shared / "runs" / "a")]
        code = run_ranks(2, _check, argv, [None, fault], run_dirs, tmp_path=tmp_path)[0]
        assert leaves_files or list(shared.iterdir()) == []
        return code, json.loads((tmp_path / NAME).read_text())

    return checked


def named(report: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(found["host"], found["kind"], found["check"]) for found in report["findings"]}


def test_two_hosts_without_a_fault(check: Check) -> None:
    code, report = check()
    assert (code, report["findings"], report["complete"]) == (0, [], True)
    assert report["checks"]["exact products"].keys() == {"n1", "n2"}
    rows = ("fp32 product, GFLOP/s", "copy, GB/s", "slowest link, MB/s", "all-reduce, MB/s", "run_dir, written in s")
    for row in rows:
        assert all(value > 0 for value in report["checks"][row].values())
        assert report["checks"][row].keys() == {"n1", "n2"}
    assert report["checks"]["run_dir, locks"] == {"n1": "yes", "n2": "yes"}
    assert all(abs(seconds) < 5 for seconds in report["checks"]["clock ahead of rank 0's, s"].values())


@pytest.mark.parametrize(
    ("fault", "kind", "check_name", "words"),
    [
        (_wrong_element, "wrong", "arithmetic", "rank 1 on cpu"),
        (_slow_products, "slow", "speed", "rank 1: fp32 "),
        (_other_torch, "slow", "versions", " (there is no majority)"),
        (_no_locks, "slow", "locks", "No locks available"),
        (_locks_of_its_own, "slow", "locks", "a second lock on the same file was given"),
        (_no_names, "slow", "names", "under the name n1"),
        (_firewall, "wrong", "links", "no connection with "),
        (_slow_link, "slow", "links", " MB/s with "),
    ],
)
def test_a_fault_is_named_on_its_host(
    check: Check, fault: Callable[[], None], kind: str, check_name: str, words: str
) -> None:
    code, report = check(fault)
    hosts = {"n1", "n2"} if check_name in ("links", "versions") else {"n2"}
    found = [each for each in report["findings"] if each["check"] == check_name]
    assert {(each["host"], each["kind"]) for each in found} == {(host, kind) for host in hosts}
    assert words in found[0]["text"]
    assert code == (kind == "wrong")


def test_a_folder_that_cannot_be_written_is_named_on_its_host(check: Check, tmp_path: Path) -> None:
    code, report = check(run_dirs=[str(tmp_path / "shared" / "a"), "/sys/kernel/a"])  # where nobody may make a folder
    assert (code, named(report)) == (1, {("n2", "wrong", "files")})
    assert "nothing can be written in /sys/kernel (nfs4): " in report["findings"][0]["text"]


def test_a_folder_that_others_do_not_see_is_named(check: Check) -> None:
    code, report = check(_own_files)
    assert code == 1
    [finding] = report["findings"]
    assert (finding["host"], finding["check"]) == ("n2", "files")
    assert "is a folder of this host alone (ext4)" in finding["text"]


def test_a_rank_that_never_comes_is_named_by_the_launchers_hosts(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENET_HOSTS", "n1,n2")
    code, report = check(_never_comes, seconds=12)
    assert (code, named(report), report["complete"]) == (1, {("n2", "late", "start")}, False)
    assert report["findings"][0]["rank"] == 1
    assert report["checks"]["run_dir, written in s"].keys() == {"n1"}  # the others are checked all the same


@pytest.mark.parametrize(("fault", "check_name"), [(_hanging_files, "files"), (_hanging_all_reduce, "all-reduce")])
def test_a_check_that_hangs_is_named_in_time(check: Check, fault: Callable[[], None], check_name: str) -> None:
    code, report = check(fault, seconds=20, leaves_files=True)
    assert (code, named(report)) == (1, {("n2", "late", check_name)})
    assert not report["complete"]


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
def test_a_clock_that_is_five_minutes_behind_is_named(tmp_path: Path) -> None:
    world = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    world |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    library = tmp_path / "clock.so"
    source = REPOSITORY / "tests" / "hosts" / "clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    wrong = {"LD_PRELOAD": str(library), "CLOCK_OFF_S": "-300"}
    words = [sys.executable, "-m", "senet.doctor", f"run_dir={tmp_path / 'a'}", f"data.root={tmp_path}"]
    words += [f"--out={tmp_path / NAME}", "train.device=cpu", "--max-seconds=60"]
    for late in (0, 1):
        world["MASTER_PORT"] = str(free_port())
        hosts = [{"RANK": f"{rank}", "SLURMD_NODENAME": f"n{rank + 1}", **world} for rank in (0, 1)]
        hosts[late] |= wrong
        with (
            started(words, tmp_path / "0", **hosts[0]) as first,
            started(words, tmp_path / "1", **hosts[1]) as second,
        ):
            first.wait(400)
            second.wait(400)
        [finding] = [each for each in json.loads((tmp_path / NAME).read_text())["findings"] if each["check"] == "clock"]
        assert (finding["host"], finding["kind"]) == (f"n{late + 1}", "wrong")
        assert re.match(r"its clock is (29\d|30\d) s behind that of ", finding["text"])


def test_a_rank_that_finds_no_address_of_rank_0_says_so_and_its_host(tmp_path: Path) -> None:
    world = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    world |= {"MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": str(free_port()), "SLURMD_NODENAME": "n2"}
    words = [sys.executable, "-m", "senet.doctor", f"run_dir={tmp_path / 'a'}", "--max-seconds=1"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | world, timeout=400)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("doctor: rank 1 on n2 cannot reach rank 0 at no-such-host.invalid:")


def test_the_launcher_starts_as_many_ranks_as_a_training_has(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "senet.launch", "doctor", f"run_dir={tmp_path / 'a'}", f"data.root={tmp_path}"]
    words += ["train.device=cpu"]
    done = subprocess.run(
        [*words, "--max-seconds=60", "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["complete"]
    assert len(report["checks"]["exact products"]) == 1  # one host
    assert report["checks"]["all-reduce, MB/s"]  # and more than one rank
    assert list(tmp_path.iterdir()) == []
    refused = subprocess.run([*words, "train.epochs=none"], cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert refused.returncode == 2
    assert refused.stderr.startswith("launch.sh: train.epochs=none ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where none is")
def test_a_device_that_no_rank_has_is_a_refusal(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "senet.doctor", f"run_dir={tmp_path / 'a'}", "train.device=cuda"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("doctor: train.device=cuda, but no GPU is visible; ")


def test_a_reader_that_has_ended_does_not_change_the_exit_code(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "senet.doctor", f"run_dir={tmp_path / 'a'}", f"data.root={tmp_path}"]
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run([*words, "train.device=cpu"], cwd=REPOSITORY, stdout=writes, timeout=400)
    finally:
        os.close(writes)
    assert done.returncode == 0


def test_products_of_small_integers_are_exact_and_a_wrong_element_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert set(products.wrong_elements(device, 0.0).values()) == {""}
    for name, largest in products._LARGEST.items():
        left, right, expected = products._with_known_product(largest)
        bound = {"fp64": 2**53, "fp32": 2**24, "tf32": 2**24, "fp16": 2**11, "bf16": 2**8}[name]
        assert largest**2 * left.shape[1] <= bound  # all partial sums are integers that the type holds
        assert max(left.max(), -right.min()) <= largest < 1.001 * min(left.max(), -right.min())
        assert (expected == left.astype(object) @ right.astype(object)).all() or name != "fp64"
    original = torch.matmul

    def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = original(left, right)
        product[3, 7] += 1
        return product

    monkeypatch.setattr(torch, "matmul", matmul)
    found = products.wrong_elements(device, 0.0)
    assert all(text.startswith("element [3, 7] of [512, 512] is ") for text in found.values())


@pytest.mark.parametrize("count", [*range(1, 9), 9, 16, 63, 64])
def test_each_pair_of_hosts_is_measured_once_and_no_host_twice_at_a_time(count: int) -> None:
    hosts = [f"n{number}" for number in range(count)]
    found = network.rounds(hosts)
    for pairs in found:
        members = [host for pair in pairs for host in pair]
        assert len(members) == len(set(members))
    pairs = {frozenset(pair) for each in found for pair in each}
    assert len(pairs) == sum(map(len, found))
    if count <= network.MOST_PAIRED:
        assert len(pairs) == count * (count - 1) / 2
        assert len(found) == (count - 1 + count % 2 if count > 1 else 0)
    else:
        assert pairs == {frozenset((hosts[i], hosts[(i + 1) % count])) for i in range(count)}


def test_folders_are_written_locked_and_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000000100.g0001.pt").write_bytes(bytes(1000))
    (tmp_path / "checkpoints" / "step_000000200.g0001.pt").write_bytes(bytes(3000))
    before = sorted(tmp_path.rglob("*"))
    with folders.written(tmp_path) as report:
        assert report["lock"] == ""
        assert folders.look({"n1": report}, 0)["n1"]["excluded"]
        assert folders.look({"n1": report | {"token": "another"}}, 0)["n1"]["seen_s"] is None
        assert report["checkpoint"] == 3000
        assert report["free"] > 3000
    assert sorted(tmp_path.rglob("*")) == before
    with folders.written(tmp_path / "no" / "such" / "run") as report:
        assert report["folder"] == str(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_stopped_thread_is_told_from_one_that_waits_for_a_core() -> None:
    before = cores.Clocks(0, 0, 0, 0)
    assert cores.Clocks(1, 1, 0, 0).kept_from_running(before) == 0
    assert cores.Clocks(1, 0.4, 0.6, 0).kept_from_running(before) == pytest.approx(0)  # others had the core
    assert cores.Clocks(1, 0.5, 0, 0).kept_from_running(before) == pytest.approx(0.5)  # SIGSTOP, sleep
    assert cores.Clocks(1, 0.5, 0.5, 0.5).kept_from_running(before) == pytest.approx(0.5)  # a quota
    assert cores.Clocks(1, 0.25, 0.5, 0).kept_from_running(before) == pytest.approx(0.5)  # stopped, and waited too
    assert cores.Clocks(1, 0.5, None, 0).kept_from_running(cores.Clocks(0, 0, None, 0)) == 0
    assert cores.Clocks(1, 0.25, 0.5, 0).could_run_s(before) == pytest.approx(0.5)
    assert cores.Clocks(1, 0.25, None, 0).could_run_s(before) == 0.25


@pytest.mark.parametrize(("share", "deadline", "wall"), [(1, 99, 0.2), (0.5, 99, 0.4), (0.1, 99, 1), (0.1, 0, 0.2)])
def test_a_product_is_timed_until_it_could_run_long_enough_for_a_moment_to_be_a_small_share(
    monkeypatch: pytest.MonkeyPatch, share: float, deadline: float, wall: float
) -> None:
    wall_s = cpu_s = waited_s = 0.0
    calls = iter(range(10_000))

    def product() -> None:  # this thread has so much of the core
        nonlocal wall_s, cpu_s, waited_s
        lost_s = 0.02 if next(calls) == 1 else 0  # a page that must be read
        took_s = 0.003 / share
        wall_s, cpu_s, waited_s = wall_s + took_s + lost_s, cpu_s + 0.003, waited_s + took_s - 0.003

    now = classmethod(lambda cls: cls(wall_s, cpu_s, waited_s, 0.0))
    monkeypatch.setattr(products.Clocks, "now", now)
    clocks = SimpleNamespace(monotonic=lambda: wall_s, thread_time=lambda: cpu_s)
    monkeypatch.setattr(products, "time", clocks)
    rate = products._per_second_of_thread(product, deadline)
    assert (0.4 if deadline == 0 else 0.8) < 0.003 * rate < 1
    assert wall - 0.03 < wall_s - 0.003 / share < wall + 0.1


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_left_is_what_the_control_group_leaves(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        1: {
            "memory/job/step/memory.limit_in_bytes": "9223372036854771712",
            "memory/job/step/memory.usage_in_bytes": "0",
            "memory/job/step/memory.stat": "cache 5",
            "memory/job/memory.limit_in_bytes": "1000000000",
            "memory/job/memory.usage_in_bytes": "900000000",
            "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 300000000",
            "pids/job/step/pids.max": "max",
            "pids/job/step/pids.current": "5",
            "pids/job/pids.max": "30",
            "pids/job/pids.current": "20",
        },
        2: {
            "job/memory.max": "1000000000",
            "job/memory.current": "900000000",
            "job/memory.stat": "inactive_file 300000000",
            "job/step/memory.max": "max",
            "job/pids.max": "30",
            "job/pids.current": "20",
        },
    }
    for name, content in files[version].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    own = {1: "8:pids:/job/step\n4:memory:/job/step\n", 2: "0::/job/step\n"}
    (tmp_path / "own").write_text(own[version])
    monkeypatch.setattr(devices, "_CGROUPS", tmp_path)
    monkeypatch.setattr(devices, "_OWN_CGROUPS", tmp_path / "own")
    left = machine.limits(torch.device("cpu"))
    assert left["memory, GB"] == pytest.approx(0.4)  # files that can be dropped count as free
    assert left["processes"] == 10


def test_a_link_is_measured_in_both_directions_and_a_closed_one_is_an_error() -> None:
    token = b"0123456789abcdef"
    for address in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
        with network.answering(address, token) as port:
            found = network.measure_link(address, port, token)
            assert found["to"] > 1e6
            assert found["from"] > 1e6
            assert 0 < found["trip_s"] < 1
            assert 0 <= found["busy"] <= 1
    assert network.measure_link("127.0.0.1", free_port(), token).keys() == {"error"}
    with network.answering("127.0.0.1", token) as port:
        assert network.measure_link("127.0.0.1", port, b"x" * 16).keys() == {"error"}  # a stranger is not answered


@pytest.mark.parametrize(
    ("here_s", "there_s", "left_out_s"), [(0.03, 0, 0.03), (0, 0.03, 0.03), (0.03, 0.02, 0.03), (0, 0, 0)]
)
def test_what_a_side_waits_for_a_core_is_not_the_links_and_is_left_out_once(
    here_s: float, there_s: float, left_out_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, token, whole, main = threading.local(), b"0123456789abcdef", network._receive, threading.current_thread()

    def receive(connection: socket.socket, buffer: memoryview, size: int) -> None:
        whole(connection, buffer, size)
        time.sleep(0.04)  # on both sides at once
        waited.seconds = getattr(waited, "seconds", 0.0) + (here_s if threading.current_thread() is main else there_s)

    monkeypatch.setattr(network, "_receive", receive)
    monkeypatch.setattr(network, "waited_s", lambda: getattr(waited, "seconds", 0.0))
    with network.answering("127.0.0.1", token) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(token)
        for size in (0, 1 << 20, -(1 << 20)):
            took_s, link_s = network._transfer(connection, memoryview(bytearray(1 << 16)), size)
            assert took_s >= 0.04
            assert took_s - link_s == pytest.approx(left_out_s, abs=1e-6)


@pytest.mark.parametrize(("waited_share", "may_be"), [(0.0, 1.0), (0.5, 2.0), (1.0, 10.0)])
def test_of_a_rate_on_busy_hosts_it_is_known_how_high_it_may_be(
    waited_share: float, may_be: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def transfer(_connection: object, _buffer: object, size: int) -> tuple[float, float]:
        took_s = 1e-4 + abs(size) / 2e7
        return took_s, took_s * max(0.1, 1 - waited_share)

    monkeypatch.setattr(network, "_transfer", transfer)
    with network.answering("127.0.0.1", b"x") as port:
        found = network.measure_link("127.0.0.1", port, b"x")
    assert found["to"] == pytest.approx(2e7, rel=0.01)
    assert 1 / (1 - found["busy"]) == pytest.approx(may_be, rel=0.01)
    monkeypatch.setattr(network, "_GIVE_UP_S", -1.0)  # before a message was long enough
    monkeypatch.setattr(network, "_FIRST_BYTES", 1 << 10)
    with network.answering("127.0.0.1", b"x") as port:
        assert network.measure_link("127.0.0.1", port, b"x")["busy"] == 1


@pytest.mark.parametrize("text", [None, "", "0 x 1", "12 34000000 1"])
def test_a_kernel_may_not_tell_what_was_waited_for(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "schedstat").write_text(text)
    monkeypatch.setattr(cores, "_SCHEDULER", tmp_path / "schedstat")
    assert cores.waited_s() == (0.034 if text == "12 34000000 1" else None)


def test_rank_0_goes_on_without_a_rank_that_is_late_and_knows_what_it_did() -> None:
    store = dist.HashStore()
    boards = [Board(store, rank) for rank in range(3)]
    boards[0].tell("files", 1)
    boards[1].begin("files")
    came: list[int] = []
    assert boards[0].gather("files", range(3), time.monotonic() + 0.1, came.append) == {0: 1}
    assert came == [0]
    assert [boards[0].doing(rank) for rank in range(3)] == [WAITING, "files", ""]
    boards[2].tell("files", {"a": None})
    assert boards[0].gather("files", [0, 2], time.monotonic() + 60) == {0: 1, 2: {"a": None}}
    began = time.monotonic()
    boards[0].meet("round/0", 2, 0.2)
    assert time.monotonic() - began > 0.2
    boards[1].meet("round/0", 2, 60)  # the second one waits for nobody
