"""torch's flight recorder: what the ranks remember of a collective that failed is kept, and read."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from senet.config.options import DistributedConfig, TrainConfig
from senet.distributed.groups import process_groups, set_time_limit
from senet.distributed.meeting import meet
from senet.distributed.ranks import PeerFailed, Ranks
from senet.distributed.recorder import Recorder
from senet.rundir import collectives
from senet.why.collectives import unfinished
from tests.harness import idle_watchdog, run_ranks

GROUPS = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1, 2]"}, "1": {"desc": "votes", "ranks": "[0, 1, 2]"}}


def entry(number: int, state: str = "completed", *, group: str = "0", of: str = "nccl:all_reduce", at: int = 0) -> Any:
    """One collective in torch's form."""
    return {
        "process_group": [group, GROUPS[group]["desc"]],
        "collective_seq_id": number,
        "p2p_seq_id": 0,
        "profiling_name": of,
        "time_created_ns": at or number,
        "input_sizes": [[64, 3]],
        "input_dtypes": ["Float"],
        "state": state,
        "retired": state == "completed",
        "is_p2p": False,
    }


def record(*entries: Any, kind: str = "nccl") -> Any:
    return {"entries": list(entries), "pg_config": GROUPS, "kind": kind}


def test_ranks_that_did_not_come_to_a_collective_are_named() -> None:
    ahead = record(entry(7), entry(8, "started"), entry(9, "scheduled"))
    text = unfinished([(0, ahead), (1, record(entry(7))), (2, ahead)])
    assert text == (
        "nccl:all_reduce (Float [64, 3]), number 8 of the group of the gradients: ranks 0, 2 came; rank 1 did not come"
    )


def test_a_rank_without_a_record_is_told_apart() -> None:
    ahead = record(entry(7), entry(8, "started"))
    assert unfinished([(0, ahead), (2, ahead)]).endswith(": ranks 0, 2 came; of rank 1 there is no record")


def test_where_all_ranks_came_the_collective_that_is_open_is_named() -> None:
    both = record(entry(8, "started", at=5), entry(3, "scheduled", group="1", at=9))
    text = unfinished([(rank, both) for rank in range(3)])
    assert "number 8" in text
    assert text.endswith("ranks 0, 1, 2 came; all were there, and it did not come to its end")


def test_of_gloo_the_last_collective_is_named_once_it_has_failed() -> None:
    failed = [entry(n, "scheduled", group="1", of="gloo:all_reduce", at=n) for n in (40, 41)]
    for each in failed:
        each["retired"] = True  # gloo does so with those that failed, too
    assert "gloo:all_reduce (Float [64, 3]), number 41 of the group of the votes" in unfinished(
        [(0, record(*failed, kind="gloo"))]
    )
    failed[0]["retired"] = False
    assert "number 40" in unfinished([(0, record(*failed, kind="gloo"))])


def test_the_records_of_gloo_and_of_nccl_are_compared_apart() -> None:
    of_gloo, of_nccl = record(entry(4, group="1"), kind="gloo"), record(entry(8, "started"))
    text = unfinished([(0, of_gloo), (0, of_nccl), (1, of_gloo), (1, of_nccl), (2, of_gloo), (2, record(entry(7)))])
    assert "number 8" in text
    assert text.endswith("ranks 0, 1 came; rank 2 did not come")
    # of a rank whose record of NCCL could not be written it is not known whether it came
    text = unfinished([(0, of_gloo), (0, of_nccl), (1, of_gloo), (1, of_nccl), (2, of_gloo)])
    assert text.endswith("number 8 of the group of the gradients: ranks 0, 1 came; of rank 2 there is no record")


@pytest.mark.parametrize(
    "damage",
    [
        {"entries": [1]},
        {"entries": [entry(1) | {"collective_seq_id": None}]},
        {"entries": [entry(1) | {"input_sizes": None}]},
        {"entries": [], "pg_config": []},
        {"entries": [], "pg_config": {"0": 3}},
        {"entries": [], "ranks": "two"},
    ],
)
def test_a_damaged_record_does_not_hide_the_others(damage: Any, tmp_path: Path) -> None:
    folder = tmp_path / collectives.FOLDER
    collectives.write(tmp_path, 1, 0, 2, "nccl", record(entry(7), entry(8, "started")))
    (folder / "g0001.rank_0001.nccl.json").write_text(json.dumps(damage))
    (folder / "g0001.rank_0002.nccl.json").write_text("[" * 100_000)
    (folder / "g0001.rank_0003.nccl.json").mkdir()
    assert "nccl:all_reduce (Float [64, 3]), number 8" in unfinished(collectives.read(tmp_path, 1))


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    assert unfinished(collectives.read(tmp_path, 1)) == ""
    assert unfinished([(0, record())]) == ""


def test_the_records_of_the_last_failures_are_kept(tmp_path: Path) -> None:
    Path(f"{collectives.torch_prefix(tmp_path, 1)}7").touch()
    for generation in range(1, 6):
        for rank in (1, 0):
            collectives.write(tmp_path, generation, rank, 2, "gloo", record(*map(entry, range(1, 301))))
    folder = tmp_path / collectives.FOLDER
    assert {path.name[:5] for path in folder.iterdir()} == {"g0003", "g0004", "g0005"}
    assert list(tmp_path.iterdir()) == [folder]
    [(rank, first), _] = collectives.read(tmp_path, 4)
    assert rank == 0
    assert [each["collective_seq_id"] for each in first["entries"]] == list(range(101, 301))


class Harmful:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def test_of_a_pickle_only_plain_values_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prefix = Path(collectives.torch_prefix(tmp_path, 2))
    (tmp_path / collectives.FOLDER).mkdir()
    ahead = record(entry(7), entry(8, "started"))
    Path(f"{prefix}0").write_bytes(pickle.dumps(ahead, protocol=2))
    Path(f"{prefix}1").write_bytes(pickle.dumps({"entries": [Harmful()]}))
    Path(f"{prefix}2").write_bytes(pickle.dumps(ahead)[:-9])
    (tmp_path / collectives.FOLDER / "g0002.rank_0003.gloo.json").write_text('{"entries": [')
    assert list(collectives.read(tmp_path, 2)) == [(0, ahead)]
    assert not Path("harmed").exists()


def test_what_torch_itself_pickles_is_read_the_same_way() -> None:
    content = torch._C._distributed_c10d._dump_fr_trace()
    assert collectives._is_record(collectives._Plain(io.BytesIO(content)).load())


def test_what_a_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ranks = dist.HashStore(), Ranks(0, 2, 0, 2, torch.device("cpu"))  # type: ignore[attr-defined]
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "7")  # the older name
    Recorder.switch_on(tmp_path, 3, ranks, store)
    assert "TORCH_FR_BUFFER_SIZE" not in os.environ
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/flight_recorder.g0003.torch_rank_"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert not list(tmp_path.iterdir())  # until there is something to keep


def _stopped(run_dir: str) -> None:
    """Rank 1 stops before the fourth of the votes; the others wait for it in that."""
    ranks, watchdog = Ranks.from_environment(TrainConfig(device="cpu")), idle_watchdog()
    store, _ = meet(ranks, watchdog, {}, lambda: None)
    recorder = Recorder.switch_on(Path(run_dir), 5 if ranks.is_main else 0, ranks, store)
    try:
        with process_groups(ranks, store, DistributedConfig(start_timeout_s=60), watchdog, recorder) as group:
            set_time_limit(group, 5)
            for number in range(6):
                if ranks.rank == 1 and number == 3:
                    os.kill(os.getpid(), signal.SIGSTOP)
                dist.all_reduce(torch.zeros(3, dtype=torch.int32), group=group)
    except PeerFailed as error:
        (Path(run_dir) / f"said{ranks.rank}").write_text(str(error))


@pytest.mark.ranks
@pytest.mark.slow
def test_the_collective_to_which_a_stopped_rank_did_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # rank 1 leaves no result
        run_ranks(3, _stopped, str(tmp_path), tmp_path=tmp_path, timeout_s=180)
    assert "rank 1" in (tmp_path / "said0").read_text()
    files = sorted(path.name for path in (tmp_path / collectives.FOLDER).iterdir())
    assert files == ["g0005.rank_0000.gloo.json", "g0005.rank_0002.gloo.json"]
    text = unfinished(collectives.read(tmp_path, 5))
    assert text == (
        "gloo:all_reduce (Int [3]), number 4 of the group of the votes: ranks 0, 2 came; of rank 1 there is no record"
    )
    assert json.loads((tmp_path / collectives.FOLDER / files[0]).read_text())["ranks"] == 3
