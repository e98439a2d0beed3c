"""How ranks find each other in a store that earlier starts have used, and what they compare."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from senet.config.options import Config, TrainConfig
from senet.distributed import findings, hangs
from senet.distributed.meeting import _judge, _of_this_start, _raise, _verdict, meet, must_be_equal, options_of
from senet.distributed.ranks import PeerFailed, Ranks
from senet.distributed.roster import Process, Roster
from senet.errors import ConfigError, noted
from tests.harness import free_port, idle_watchdog, named, on_hosts, run_ranks, started, tiny, train_command, wait_until

HOSTS = on_hosts("n1", "n1", "n2")


def rank(number: int, world_size: int) -> Ranks:
    return Ranks(number, world_size, number, world_size, torch.device("cpu"))


def start(store: dist.Store, world_size: int) -> list[str]:
    """What each rank reads under a key that rank 0 sets after its prefix."""

    def one(number: int) -> str:
        ranks = rank(number, world_size)
        own = _of_this_start(store, ranks, idle_watchdog())
        _raise(_verdict(own, "here", ranks, ["", "", {}]))
        if number == 0:
            assert not own.check(["mine"])
            own.set("mine", str(id(ranks)))
        _raise(_verdict(own, "set", ranks, ["", "", {}]))
        return own.get("mine").decode()

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(one, range(world_size)))


def test_every_start_has_a_part_of_the_store_to_itself() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    found = [start(store, 4) for _ in range(5)]
    assert all(len(set(words)) == 1 for words in found)


def test_words_of_a_rank_that_was_killed_while_it_asked_mislead_nobody() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    for number in (1, 2):
        store.set(f"asks/{number}", "a token of an earlier start")
    assert len(set(start(store, 3))) == 1


def test_options_versions_and_data_must_be_equal() -> None:
    ours = {"seed": 0, "train.amp": "bf16"}
    assert _judge([["", "", ours], ["", "", dict(ours)]], HOSTS) == ("", "")
    kind, said = _judge([["", "", ours], ["", "", ours], ["", "", {"seed": 7, "train.amp": "off"}]], HOSTS)
    assert kind == "refused"
    assert said == (
        "rank 2 on n2 has seed=7, train.amp=off; rank 0 on n1 has seed=0, train.amp=bf16: start all ranks with the "
        "same options, code, versions and data"
    )
    assert _judge([["", "", {}], ["", "", {"new": 1}]], HOSTS)[0] == "refused"


def test_a_failure_comes_before_a_difference() -> None:
    words = [["", "", {"seed": 0}], ["refused", "no data", {}], ["failed", "broken", {}]]
    assert _judge(words, HOSTS) == ("refused", "rank 1 on n1: no data")
    assert _judge([["failed", "broken", {}], words[1]], HOSTS) == ("failed", "rank 0 on n1 could not start: broken")


def test_what_is_compared() -> None:
    options = options_of(Config(run_dir="here"))
    facts = must_be_equal(rank(0, 2), options)
    assert not {"run_dir", "data.root", "data.folder", "data.table"} & facts.keys()
    assert not [key for key in facts if key.startswith("slurm.")]
    assert {"seed", "log.every_steps", "distributed.step_timeout_s", "resume.mode"} <= facts.keys()  # free ones too
    assert {"number of ranks", "kind of device", "torch", "code of the project"} <= facts.keys()


def test_ranks_that_have_met_know_where_each_one_runs() -> None:
    store, processes = dist.HashStore(), [Process(f"n{number}", "", number, 0) for number in range(3)]  # type: ignore[attr-defined]

    def one(number: int) -> Roster:
        ranks = replace(rank(number, 3), roster=Roster({number: processes[number]}))
        _of_this_start(store, ranks, idle_watchdog())
        return ranks.roster

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(3))) == [dict(enumerate(processes))] * 3


def _prepare_unequal(what: str) -> str:
    ranks = rank(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")))
    facts: dict[str, Any] = {what: ranks.rank}
    before, after = (facts, {}) if what == "seed" else ({}, facts)
    prepared = []
    try:
        meet(ranks, idle_watchdog(), before, lambda: prepared.append(1), lambda _: after)
    except ConfigError as error:
        return f"{len(prepared)} {error}"
    return ""


@pytest.mark.ranks
@pytest.mark.parametrize("what", ["seed", "fingerprint"])
def test_unequal_ranks_are_refused_before_any_group(what: str, tmp_path: Path) -> None:
    said = run_ranks(2, _prepare_unequal, what, tmp_path=tmp_path)
    prepared = 0 if what == "seed" else 1  # what is known before costs no decoding
    assert [words.partition(":")[0] for words in said] == [
        f"{prepared} {named(1)} has {what}=1; {named(0)} has {what}=0"
    ] * 2


@pytest.mark.ranks
def test_two_commands_that_differ_are_refused_with_both_values(data_root: Path, tmp_path: Path) -> None:
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = tiny(f"data.root={data_root}", f"run_dir={tmp_path / 'run'}")
    other = [*options, "seed=7", "train.amp=bf16", "log.every_steps=3"]
    with (
        started(train_command(0, options), tmp_path / "log0", RANK="0", LOCAL_RANK="0", **place) as first,
        started(train_command(0, other), tmp_path / "log1", RANK="1", LOCAL_RANK="1", **place) as second,
    ):
        assert (first.wait(400), second.wait(400)) == (2, 2)
    [line] = (tmp_path / "log0").read_text().splitlines()
    assert f"{named(1)} has seed=7, train.amp=bf16, log.every_steps=3; {named(0)} has seed=0, " in line
    assert " train.amp=off, log.every_steps=2: start all ranks" in line
    assert not (tmp_path / "run" / "status.json").exists()


def _lost_store(folder: str, when: str) -> str:
    """Rank 0, which hosts the store, is killed while the others prepare, or wait for its verdict; or they have failed
    themselves before."""
    ranks = Ranks.from_environment(TrainConfig(device="cpu"))
    findings._DYING_S = 60.0

    def prepare() -> None:
        if ranks.rank == 0:
            wait_until(lambda: all((Path(folder) / f"here-{rank}").exists() for rank in (1, 2)))
            time.sleep(1 if when == "waiting" else 0)
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(folder) / f"here-{ranks.rank}").touch()
        if when != "waiting":
            wait_until(lambda: hangs.state(ranks.roster[0]) == "")
        if when == "failed":
            raise OSError("of this rank")

    try:
        meet(ranks, idle_watchdog(), {}, prepare)
    except OSError as error:
        (Path(folder) / f"said-{ranks.rank}").write_text(str(error))
    except PeerFailed as error:
        told = error.guess, error.kind, noted(error)["failure"]
        (Path(folder) / f"said-{ranks.rank}").write_text(json.dumps([error.reporter, str(error), *told]))
    return ""


@pytest.mark.ranks
@pytest.mark.parametrize("when", ["preparing", "waiting", "failed"])
def test_a_rank_that_hosts_the_store_and_is_killed_before_there_are_groups_is_named(when: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # rank 0 leaves no result
        run_ranks(3, _lost_store, str(tmp_path), when, tmp_path=tmp_path)
    for rank in (1, 2):
        if when == "failed":
            assert (tmp_path / f"said-{rank}").read_text() == "of this rank"
            continue
        reporter, said, guess, kind, failure = json.loads((tmp_path / f"said-{rank}").read_text())
        assert said.startswith(f"{named(0)} did not answer any more: its process has ended ("), said
        assert (reporter, guess, kind, failure["rank"]) == (rank, True, "rank was killed", 0)
