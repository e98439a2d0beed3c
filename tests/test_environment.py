"""Variables of launchers: valid, left over in a shell, or set by another program."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from senet import REPOSITORY
from senet.distributed.environment import Place, host_answers, own_rank, read_place
from senet.errors import ConfigError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = dict(zip(NAMES, ("3", "4", "1", "2", "node-1", "29500"), strict=True))


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Place(0, 1, 0, 1)),
        (TORCHRUN, Place(3, 4, 1, 2)),
        ({"WORLD_SIZE": "", "RANK": ""}, Place(0, 1, 0, 1)),
        ({"WORLD_SIZE": "1", "MASTER_PORT": "tcp://10.0.0.1:80"}, Place(0, 1, 0, 1)),  # one rank needs no port
    ],
)
def test_a_place_is_what_the_launcher_set(
    variables: dict[str, str], expected: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_place() == expected
    assert own_rank() == expected.rank


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4, but RANK, LOCAL_RANK, LOCAL_WORLD_SIZE not set; torchrun sets all four"),
        ({"RANK": "3"}, "RANK=3 contradict each other; .* unset them"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: 'two' is not a number"),
        ({"WORLD_SIZE": "-1"}, "'-1' is not a number"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "contradict each other"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": ""}, "but LOCAL_WORLD_SIZE not set"),
        (TORCHRUN | {"MASTER_PORT": "tcp://10.0.0.1:80"}, "MASTER_PORT=tcp://10.0.0.1:80 is not a port; .*Kubernetes"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is not a port"),
        (TORCHRUN | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    ],
)
def test_variables_that_cannot_be_are_refused_by_name(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=expected):
        read_place()
    assert own_rank() == 0


@pytest.mark.parametrize("script", [["train_ddp.py"], ["-m", "senet.evaluate", "nowhere"]])
@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "8"}, {"RANK": "x"}])
def test_every_command_says_so_in_one_line_at_once(script: list[str], variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *script],
        env={"PATH": ""} | variables,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert next(iter(variables)) in line


def test_an_interface_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert read_place().rank == 3
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    with pytest.raises(ConfigError, match=r"GLOO_SOCKET_IFNAME=ib0, but host .* has no such interface, only lo"):
        read_place()


def test_a_host_is_there_if_it_takes_or_refuses_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert host_answers("127.0.0.1", port)
    assert host_answers("127.0.0.1", port)
    assert not host_answers("255.255.255.255", port)
