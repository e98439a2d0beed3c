"""A word means the same run directories to each command."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from senet import predict, prune
from senet.command import network_argument
from senet.compare import __main__ as compare
from senet.errors import ConfigError
from senet.report import __main__ as report
from senet.rundir.checkpoint import find_checkpoint
from senet.rundir.files import write_json as write
from senet.rundir.named import cells_not_begun, folder_of, is_run, one_run, runs_in, sweep_of
from senet.sweep import __main__ as sweep
from senet.sweep.__main__ import StopFlag
from slurm import control, runs, why


def write_json(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a run, a copy of one, a job and a sweep of three cells are in ``runs/``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no SLURM
    for name in ("one/owner.json", "copy/metrics.jsonl", "sent/slurm/job.json", "rates/10/owner.json"):
        write_json(Path("runs") / name, {"job": "7", "cluster": "slurm", "submitted": 0.0})
    write_json(Path("runs/rates/9/slurm/job.json"), {"job": "8_1", "cluster": "slurm", "submitted": 0.0})
    write_json(Path("runs/rates/sweep.json"), {"cells": {"9": {}, "10": {}, "11": {}}})
    write_json(Path("runs/rates/slurm/code-1/tests/run/owner.json"), {})
    Path("runs/one/checkpoints").mkdir()
    Path("file").touch()
    return tmp_path


def meant(word: str) -> list[str]:
    return [str(path) for path in runs_in(folder_of(word))]


def test_a_word_is_a_path_or_a_name_in_runs(here: Path) -> None:
    cells = ["runs/rates/9", "runs/rates/10"]
    for word in ("rates", "rates/", "runs/rates", "runs/rates/"):
        assert meant(word) == cells  # in the order of the sweep
    assert meant(f"{here}/runs/rates")[0] == f"{here}/runs/rates/9"
    assert meant("one") == meant("runs/one") == ["runs/one"]
    assert folder_of("..") == Path("..")
    for word in ("runs", "."):
        assert meant(word) == ["runs/copy", "runs/one", *cells, "runs/sent"]
    assert [str(cell) for cell in cells_not_begun(folder_of("rates"))] == ["runs/rates/11"]
    assert sweep_of("rates") == Path("runs/rates")


def test_a_folder_here_that_is_no_run_does_not_hide_the_sweep_of_its_name(here: Path) -> None:
    (here / "rates").mkdir()
    assert folder_of("rates") == Path("runs/rates")
    assert folder_of("./rates") == Path("rates")
    write_json(here / "rates" / "owner.json", {})
    assert folder_of("rates") == Path("rates")


def test_a_folder_of_a_sweep_is_no_run_though_one_has_trained_into_it() -> None:
    write_json(Path("runs/rates/owner.json"), {})
    assert not is_run(Path("runs/rates"))
    assert len(meant("rates")) == 2


def test_links_to_runs_are_followed_and_no_others(here: Path) -> None:
    (here / "some").mkdir()
    (here / "some" / "run").symlink_to(here / "runs" / "one")
    (here / "some" / "circle").symlink_to(here)
    (here / "some" / "sweep").symlink_to(here / "runs" / "rates")
    assert meant("some") == ["some/run", "some/sweep/9", "some/sweep/10"]


def test_what_may_not_be_read_is_left_out_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/lost+found").mkdir()
    exists = Path.exists

    def refuses(path: Path) -> bool:  # as for others than root
        if "lost+found" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuses)
    for _ in range(2):
        assert len(meant("runs")) == 5
    assert list(runs.all_jobs()) == [Path("runs/rates/9"), Path("runs/sent")]
    assert capsys.readouterr().err == "runs/lost+found may not be read by you, and is left out\n"


def test_no_file_beside_the_runs_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (Path("runs") / f"{number}.png").touch()
    asked: list[Path] = []
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: asked.append(path) or exists(path))
    meant("runs")
    assert not [path for path in asked if ".png" in str(path)]


COMMANDS: dict[str, Callable[[str], object]] = {
    "slurm status": lambda word: control.status([word]),
    "slurm stop": lambda word: control.stop([word]),
    "slurm clear": lambda word: control.clear([word]),
    "why": lambda word: why.main([word]),
    "compare": lambda word: compare.main([word]),
    "prune": lambda word: prune.main([word]),
    "report": lambda word: report.main([word]),
    "sweep status": lambda word: sweep.main(["status", word], StopFlag()),
    "sweep stop": lambda word: sweep.main(["stop", word], StopFlag()),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_refuses_what_is_no_run_in_the_same_words(here: Path, command: str) -> None:
    for word, refusal in (
        ("nowhere", f"nowhere: no such folder, and no run or sweep of this name in {here}/runs; name a run directory"),
        ("no/where", "no/where: no such folder; name a run directory"),
        ("file", "file is a file; name a run directory, a sweep, or a folder of runs"),
        ("runs/rates/sweep.json", "runs/rates/sweep.json is a file"),
        ("", "an empty word means no run"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(refusal)}"):
            COMMANDS[command](word)


def test_a_folder_that_holds_no_run_is_refused(here: Path) -> None:
    (here / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty is no run directory, and holds none"):
        runs_in(folder_of("empty"))
    write_json(here / "runs" / "new" / "sweep.json", {"cells": {"a": {}, "b": {}}})
    with pytest.raises(ConfigError, match="runs/new: none of the 2 cells of this sweep has begun"):
        runs_in(folder_of("new"))
    with pytest.raises(ConfigError, match=r"runs/one is no sweep: there is no runs/one/sweep.json"):
        sweep_of("one")


def test_where_one_run_is_meant_a_sweep_is_refused() -> None:
    assert one_run("one") == Path("runs/one")
    with pytest.raises(ConfigError, match="runs/rates holds 2 runs; name one of them, as runs/rates/9"):
        one_run("rates")


def test_a_network_is_a_file_a_folder_or_the_name_of_a_run(here: Path) -> None:
    assert network_argument("one") == Path("runs/one")
    assert network_argument("file") == Path("file")
    (here / "one").mkdir()  # a folder for the hub
    assert network_argument("one") == Path("one")
    with pytest.raises(ConfigError, match="runs/rates is the folder of a sweep; name one of its cells"):
        find_checkpoint(network_argument("rates"))
    with pytest.raises(ConfigError, match="runs/rates is the folder of a sweep"):
        predict.main(["rates", "image.png"])


def test_the_id_of_a_job_means_its_run_directory_if_no_folder_has_this_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slurm.cluster.job_fields", lambda _: {})
    assert runs.runs_of("8_1") == runs.runs_of("8") == [(Path("runs/rates/9"), "8_1")]
    assert list(runs.jobs_of("8")) == [Path("runs/rates/9")]
    (Path("runs/rates/9/slurm") / "5_1_0_log.out").touch()
    with pytest.raises(ConfigError, match="job 5_1 is not the newest of its run directory; name that"):
        runs.jobs_of("5_1")
    write_json(Path("runs/8/owner.json"), {})
    assert runs.runs_of("8") == [(Path("runs/8"), "")]


def test_what_was_submitted_is_found_by_each_kind_of_word() -> None:
    assert list(runs.jobs_of("rates")) == [Path("runs/rates/9")]
    assert list(runs.jobs_of("sent")) == [Path("runs/sent")]
    assert list(runs.jobs_of("runs")) == list(runs.all_jobs()) == [Path("runs/rates/9"), Path("runs/sent")]
    with pytest.raises(ConfigError, match="runs is neither a run directory nor a sweep; name one"):
        runs.jobs_of("runs", several=False)
    with pytest.raises(ConfigError, match="runs/copy: nothing was submitted from there"):
        runs.jobs_of("copy")
