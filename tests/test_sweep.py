"""Sweeps on this machine: which cells there are, and what becomes of them."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from senet import REPOSITORY
from senet.config.load import load_config
from senet.distributed.preemption import StopFlag
from senet.errors import ConfigError
from senet.rundir import files
from senet.rundir.files import read_json, write_json
from senet.rundir.locks import this_process
from senet.rundir.owner import nothing_left_if_refused
from senet.rundir.standing import State
from senet.sweep import record
from senet.sweep.__main__ import _say, main
from senet.sweep.cells import check_ranks, make_cells, name_of
from senet.sweep.grid import combinations, read_values, split
from senet.sweep.local import Local
from senet.sweep.prepare import LOCK, only_one, prepare
from senet.sweep.request import read_request
from senet.verbs import typed
from slurm.preflight import preflight
from tests.harness import checkpoints, differing, payload, rows, started, survivors, tiny, wait_until, without_clock

SLOW = "model.name=tests.networks:slow_senet"


def cells(*argv: str, known: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    request = read_request([*argv, "sweep.name=x"])
    return {cell.name: dict(cell.options) for cell in make_cells(request, request.words, {"varied": known})}


def recorded(folder: Path, *argv: str) -> set[str]:
    """The names of the cells of a command, which records them in the folder."""
    request, before = read_request([*argv, "sweep.name=x"]), record.read(folder)
    found = make_cells(request, request.words, before)
    record.refuse_other(request, before, found)
    record.write(folder, request, before, found)
    return {cell.name for cell in found}


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("optim.lr", "0.05,0.1, 1e-3", ("0.05", "0.1", "1e-3")),
        ("seed", "0..3,7", ("0", "1", "2", "3", "7")),
        ("seed", "3", ("3",)),
        ("schedule.milestones", "[10,20]", ("[10,20]",)),
        ("schedule.milestones", "[10,20],[5]", ("[10,20]", "[5]")),
        ("model.name", "senet18,resnet20", ("senet18", "resnet20")),
        ("data.folder", "'a,b'", ("'a,b'",)),
        ("data.folder", "../1..2", ("../1..2",)),
        ("model.args.width", "32,64", ("32", "64")),
    ],
)
def test_commas_and_dots_name_the_values_of_an_option(key: str, text: str, expected: tuple[str, ...]) -> None:
    assert read_values(key, text) == expected


def test_a_comma_in_brackets_braces_or_quotes_separates_nothing() -> None:
    assert split("""[a,[b,c]],{d: 1, e: 2},"f,'g",'h,]'""") == ["[a,[b,c]]", "{d: 1, e: 2}", '"f,\'g"', "'h,]'"]


def test_the_cells_are_all_combinations_under_readable_names() -> None:
    found = cells(*tiny("optim.lr=0.05,1e-1", "seed=0..1", "train.epochs=3"))
    assert found == {
        "lr=0.05_seed=0": {"optim.lr": 0.05, "seed": 0},
        "lr=0.05_seed=1": {"optim.lr": 0.05, "seed": 1},
        "lr=0.1_seed=0": {"optim.lr": 0.1, "seed": 0},
        "lr=0.1_seed=1": {"optim.lr": 0.1, "seed": 1},
    }


def test_what_is_the_same_for_all_reaches_each_cell() -> None:
    request = read_request(tiny("train.epochs=3", "seed=1,2", "slurm.partition=a,b", "sweep.name=x"))
    for cell in make_cells(request, request.words):
        assert (cell.config.train.epochs, cell.config.slurm.partition) == (3, "a,b")
        assert cell.config.run_dir == f"runs/x/{cell.name}"
        assert load_config(cell.words).seed == cell.options["seed"]


def test_a_list_is_varied_as_a_list_of_lists() -> None:
    options = ("schedule.name=multistep", "train.epochs=30")
    found = cells(*tiny(*options, "schedule.milestones=[10,20],[5]"))
    assert found == {
        "milestones=10+20": {"schedule.milestones": [10, 20]},
        "milestones=5": {"schedule.milestones": [5]},
    }


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"optim.lr": 5e-5, "seed": 0}, "lr=5e-05_seed=0"),
        ({"optim.lr": 1234567.5}, "lr=1234567.5"),
        ({"model.name": "a.b:c", "optim.name": "sgd"}, "model=a.b-c_optim=sgd"),
        ({"optim.momentum": 0.9, "other.momentum": 1}, "optim.momentum=0.9_other.momentum=1"),
        ({"model.small_stem": True, "augment.small_size": 32}, "small_stem=true_small_size=32"),
        ({"model.init_from": "/a b/../c,d"}, "init_from=a-b-..-c-d"),
        ({"model.init_from": ""}, "init_from=none"),
    ],
)
def test_a_name_is_a_folder_that_no_program_cuts(options: dict[str, Any], name: str) -> None:
    assert name_of(options) == name
    assert re.fullmatch(r"[\w.+=-]+", name)


def test_long_names_are_cut_and_stay_different() -> None:
    one, other = (name_of({"model.init_from": f"/{'long' * 100}/{last}"}) for last in "ab")
    assert one != other
    assert len(one) == len(other) == 120


def test_more_values_leave_the_names_of_the_others() -> None:
    before = cells(*tiny("optim.lr=0.1,0.2", "seed=0..1"))
    after = cells(*tiny("optim.lr=0.05,0.1,0.2", "seed=0..4"))
    assert len(after) == 15
    assert before.items() <= after.items()
    one = cells(*tiny("optim.lr=0.4", "seed=0"), known=("optim.lr", "seed"))
    assert list(one) == ["lr=0.4_seed=0"]  # varied before: so it does with a single value
    assert list(cells(*tiny("seed=1", "optim.lr=0.2"), known=("optim.lr", "seed"))) == ["lr=0.2_seed=1"]


def test_a_cell_is_known_by_its_options_whatever_its_name(tmp_path: Path) -> None:
    first = recorded(tmp_path, *tiny("optim.lr=0.1,0.2", "seed=0,1"))
    assert recorded(tmp_path, *tiny("seed=1,0", "optim.lr=0.2,0.1")) == first
    wider = recorded(tmp_path, *tiny("optim.momentum=0.8,0.9", "seed=0,1", "optim.lr=0.1,0.2"))
    assert wider == first | {f"{name}_momentum=0.8" for name in first}  # 0.9 was the value of all
    assert recorded(tmp_path, *tiny("optim.momentum=0.9", "seed=0", "optim.lr=0.2")) == {"lr=0.2_seed=0"}
    assert read_json(tmp_path / "sweep.json")["cells"].keys() == wider


def test_entries_of_a_mapping_vary_like_options(tmp_path: Path) -> None:
    assert recorded(tmp_path, *tiny("seed=0,1")) == {"seed=0", "seed=1"}
    first = recorded(tmp_path, *tiny("seed=0", "model.args.width=32,64"))
    assert first == {"seed=0_width=32", "seed=0_width=64"}
    wider = recorded(tmp_path, *tiny("seed=0,1", "model.args.width=16,32,64"))
    assert wider == first | {"seed=0_width=16", *(f"seed=1_width={width}" for width in (16, 32, 64))}
    assert list(cells(*tiny("optim.lr_scale.fc.*=0.1,1"))) == ["fc=0.1", "fc=1"]


def test_no_cell_takes_the_name_of_one_with_other_options(tmp_path: Path) -> None:
    recorded(tmp_path, *tiny("data.root=../a,b"))
    before = record.read(tmp_path)
    refusal = r"data.root=/a: in sweep.name=x the training root=a has other options; choose another sweep.name"
    with pytest.raises(ConfigError, match=refusal):
        recorded(tmp_path, *tiny("data.root=/a,b"))
    assert record.read(tmp_path) == before


def test_draws_lie_in_their_range_and_each_depends_on_its_number_alone() -> None:
    ranges = ("optim.lr=log:0.001..10", "optim.momentum=0.5..0.9")
    few = cells(*tiny(*ranges, "sweep.random=20"))
    many = cells(*tiny(*ranges, "sweep.random=200", "optim.weight_decay=0,1e-4"))
    assert len(few) == 20
    drawn = {(each["optim.lr"], each["optim.momentum"]) for each in few.values()}
    assert drawn <= {(each["optim.lr"], each["optim.momentum"]) for each in many.values()}
    rates = [each["optim.lr"] for each in many.values()]
    assert min(rates) >= 0.001
    assert max(rates) <= 10
    below = sum(rate < 0.1 for rate in rates)  # the middle of the logarithms
    assert abs(below - 100) < 4 * 50**0.5
    assert few != cells(*tiny(*ranges, "sweep.random=20", "sweep.seed=1"))


def test_that_draws_are_equal_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    request = read_request(tiny("optim.lr=0.1,0.2", "seed=0,1", "sweep.random=5", "sweep.name=x"))
    found, _ = prepare(request, "sweep", said.append, quickstart=False)
    assert len(found) == 4
    assert said == ["sweep.random=5: 6 of 10 cells are drawn twice, and trained once"]


def test_each_draw_is_made_with_each_seed() -> None:
    found = cells(*tiny("optim.lr=log:0.001..10", "seed=0..2", "sweep.random=4"))
    assert len(found) == 12
    assert dict.fromkeys((each["optim.lr"] for each in found.values()), 3) == {
        rate: sum(each["optim.lr"] == rate for each in found.values())
        for rate in (each["optim.lr"] for each in found.values())
    }


def test_a_whole_number_is_drawn_as_one() -> None:
    values = read_values("train.epochs", "log:1..1000")
    draws = [draw["train.epochs"] for draw in combinations({"train.epochs": values}, 100, 0)]
    assert all(re.fullmatch("[0-9]+", draw) and 1 <= int(draw) <= 1000 for draw in draws)
    assert values.draw(random.Random(0)) == values.draw(random.Random(0))  # type: ignore[union-attr]


def test_a_file_says_the_same_as_a_command_line(tmp_path: Path) -> None:
    file = tmp_path / "rates.yaml"
    file.write_text(
        "sweep:\n  parallel: 2\n  vary:\n    optim.lr: [0.05, 1e-1]\n    seed: 0..1\n"
        "    schedule.milestones: [[1, 2], [3]]\n    data.root: ['a,b']\n"
    )
    request = read_request([*tiny(), str(file), "schedule.name=multistep"])
    assert (request.name, request.parallel, request.words) == ("rates", 2, tuple(tiny()))
    found = [cell.options for cell in make_cells(request, request.words)]
    typed = cells(*tiny("optim.lr=0.05,0.1", "seed=0..1", "schedule.milestones=[1,2],[3]", "schedule.name=multistep"))
    assert found == list(typed.values())
    assert make_cells(request, request.words)[0].config.data.root == "a,b"
    later = read_request([*tiny(), str(file), "seed=5", "sweep.parallel=3", "sweep.name=other"])
    assert (later.name, later.parallel, later.axes["seed"]) == ("other", 3, ("5",))


@pytest.mark.parametrize(
    ("argv", "refusal"),
    [
        (["seed=1,2"], "a sweep needs a name: sweep.name=NAME"),
        (["seed=1,2", "sweep.name=a/b"], "sweep.name=a/b is no simple name"),
        (
            ["seed=1,2", "sweep.name=x", "sweep.paralel=2"],
            "sweep.paralel is no option of a sweep; did you mean 'parall",
        ),
        (["seed=1,2", "sweep.name=x", "sweep.parallel=0"], "sweep.parallel=0 is no whole number of 1 or more"),
        (["seed=1", "sweep.name=x"], "nothing varies: write several values"),
        (["seed=1,2", "sweep.name=x", "run_dir=y"], "run_dir=y: a sweep sets it for each cell"),
        (
            ["optim.lr=1,", "sweep.name=x"],
            "optim.lr=1, has an empty value; leave the comma out, or the space behind it",
        ),
        (["model.name=a,,b", "sweep.name=x"], "or the space behind it, or quote the value: '\"a,,b\"'"),
        (["optim.lr=0.05,", "0.1", "sweep.name=x"], "leave out the space behind the comma: optim.lr=0.05,0.1"),
        (["seed=3..1", "sweep.name=x"], "seed=3..1: from..to must rise"),
        (["seed=0..1000000000", "sweep.name=x"], "name at most 1,000 numbers"),
        (["seed=0..99", "train.epochs=1..99", "sweep.name=x"], "these are 9,900 trainings; a sweep has at most 1,000"),
        (["optim.lr=0.1,0.10", "sweep.name=x"], "there is another training of this name, lr=0.1"),
        (["optim.lr=0.1,ten", "sweep.name=x"], "optim.lr=ten is no number"),
        (["optim.lr=0.1,-1", "sweep.name=x"], "optim.lr=-1.0 is out of range"),
        (["optim.lrr=0.1,1", "sweep.name=x"], "unknown option 'optim.lrr'; did you mean 'optim.lr'?"),
        (["optim.lr=0.1..1", "sweep.name=x"], "add sweep.random=20 for 20 draws"),
        (["optim.lr=log:0..1", "sweep.name=x", "sweep.random=2"], "both must be above 0"),
        (["optim.lr=1..0.1", "sweep.name=x", "sweep.random=2"], "the first number must be below the second"),
        (["schedule.milestones=1,2", "sweep.name=x"], "is no list; write it in brackets"),
        (["optim={lr: 1},{lr: 2}", "sweep.name=x"], "optim is a group; vary its options"),
    ],
)
def test_what_is_refused_is_refused_in_a_line_before_anything_starts(
    argv: list[str], refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f".*{re.escape(refusal)}") as caught:
        main(tiny(*argv), StopFlag())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_the_group_sweep_has_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("sweep: {name: x}\nseed: 1\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: the group sweep has a file of its own"):
        read_request([str(tmp_path / "a.yaml"), "seed=1,2"])


def test_ranks_must_be_able_to_share_the_batch_of_each_cell() -> None:
    request = read_request(tiny("train.global_batch_size=64,63", "sweep.name=x"))
    with pytest.raises(ConfigError, match=r"=63: train\.global_batch_size=63 cannot be split"):
        check_ranks(make_cells(request, request.words), 2)


class Sweep:
    """``python -m senet.sweep`` in a folder."""

    def __init__(self, folder: Path, data_root: Path) -> None:
        self.folder, self.path = folder, folder / "runs" / "x"
        self.options = [*tiny(f"data.root={data_root}", "train.epochs=1", "sweep.name=x")]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "senet.sweep", *words]

    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | self.environment()
        command = self.command(*words)
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=300)

    def train(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self(*self.options, *options)

    def starts(self, name: str) -> int:
        return len((self.path / name / "starts.jsonl").read_text().splitlines())

    def words(self, *names: str) -> list[str]:
        return [record.state_of(self.path, name).word for name in names]


@pytest.fixture
def sweep(tmp_path: Path, data_root: Path) -> Sweep:
    return Sweep(tmp_path, data_root)


@pytest.mark.slow
@pytest.mark.ranks
def test_a_broken_cell_stops_no_other_and_the_same_command_again_trains_what_is_left(
    sweep: Sweep, undisturbed: Callable[..., dict[str, Any]]
) -> None:
    network = "model.name=tests.networks:tiny_senet,tests.networks:fails_inside"
    done = sweep.train(network, "seed=0,1", "sweep.parallel=2")
    good = [f"model=tests.networks-tiny_senet_seed={seed}" for seed in (0, 1)]
    bad = [name.replace("tiny_senet", "fails_inside") for name in good]
    assert done.returncode == 1, done.stderr
    assert sweep.words(*good, *bad) == ["finished", "finished", "failed", "failed"]
    for seed, name in enumerate(good):
        expected = undisturbed(0, f"seed={seed}", "train.epochs=1")
        assert differing(without_clock(payload(sweep.path / name)), expected) == []
        assert f"sweep: {name} finished: " in done.stderr
    for name in bad:
        assert f"sweep: {name} failed: model.name=tests.networks:fails_inside failed: AttributeError: " in done.stderr
    assert "4 cells: 2 failed, 2 finished" in done.stdout

    again = sweep.train(network, "seed=0..2", "sweep.parallel=2")
    assert "6 cells, 4 to train" in again.stderr  # two have failed, two are new
    assert again.returncode == 1
    assert [sweep.starts(name) for name in good] == [1, 1]
    assert sweep.words("model=tests.networks-tiny_senet_seed=2") == ["finished"]
    assert len(read_json(sweep.path / "sweep.json")["cells"]) == 6
    assert sweep("status", "x").stdout.splitlines()[-2].startswith("runs/x: 6 cells: 3 failed, 3 finished")


@pytest.mark.slow
@pytest.mark.ranks
def test_a_stopped_sweep_saves_all_cells_and_goes_on_with_the_same_bits(
    sweep: Sweep, undisturbed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (SLOW, "seed=0..2", "sweep.parallel=2", "train.epochs=8")
    log = sweep.folder / "log"
    monkeypatch.chdir(sweep.folder)
    with started(sweep.command(*sweep.options, *options), log, **sweep.environment()) as process:
        wait_until(lambda: all(rows(sweep.path / f"seed={seed}") for seed in (0, 1)), what=log.read_text())
        assert not (sweep.path / "seed=2").exists()  # two at a time
        second = sweep.train(*options)
        assert (second.returncode, second.stdout) == (2, "")
        assert f"process {process.pid} on host" in second.stderr
        asked = sweep("stop", "x")
        assert asked.returncode == 0, asked.stderr
        assert process.wait(400) == 85, log.read_text()
    assert sweep.words("seed=0", "seed=1", "seed=2") == ["stopped", "stopped", "not begun"]
    assert all(checkpoints(sweep.path / f"seed={seed}") for seed in (0, 1))
    assert sweep("stop", "x").returncode == 2

    again = sweep.train(*options)
    assert again.returncode == 0, again.stderr
    for seed in range(3):
        expected = undisturbed(0, f"seed={seed}", "train.epochs=8")
        assert differing(without_clock(payload(sweep.path / f"seed={seed}")), expected) == []
        steps = [row["step"] for row in rows(sweep.path / f"seed={seed}")]
        assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.ranks
def test_the_cells_of_a_sweep_that_is_killed_save_and_end(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep.folder)
    options = (SLOW, "seed=0,1", "sweep.parallel=2", "train.epochs=50", "checkpoint.every_steps=10000")
    with started(sweep.command(*sweep.options, *options), sweep.folder / "log", **sweep.environment()) as process:
        wait_until(lambda: all(rows(sweep.path / f"seed={seed}") for seed in (0, 1)))
        cells = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: sweep.words("seed=0", "seed=1") == ["stopped", "stopped"])
        assert all(checkpoints(sweep.path / f"seed={seed}") for seed in (0, 1))
        wait_until(lambda: not survivors(cells))


def test_the_options_that_all_cells_share_do_not_change(sweep: Sweep) -> None:
    sweep.path.mkdir(parents=True)
    request = read_request([*sweep.options, "seed=0,1"])
    found = make_cells(request, request.words)
    record.write(sweep.path, request, {}, found, threads_per_rank=1)
    there = record.read(sweep.path)
    record.refuse_other(request, there, found)
    for changed, refusal in (
        (["seed=0,1", "optim.lr=3"], "was begun with optim.lr=0.1, and this is optim.lr=3.0"),
        (["optim.lr=1,2"], "seed varied before in sweep.name=x; give its values"),
    ):
        other = read_request([*sweep.options, *changed])
        with pytest.raises(ConfigError, match=refusal):
            record.refuse_other(other, there, make_cells(other, other.words, there))
    wider = read_request([*sweep.options, "seed=0", "optim.lr=1,2", "log.every_steps=7"])
    record.refuse_other(wider, there, make_cells(wider, wider.words, there))


def test_each_cell_has_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    class Process:
        returncode = 0

        def __init__(self, command: list[str], *, env: dict[str, str], **_: Any) -> None:
            seen[command[-1].rpartition("=")[2]] = f"{env['CUDA_VISIBLE_DEVICES']} of {env['NPROC']}"

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr("senet.sweep.local.record.state_of", lambda *_: State("finished"))
    request = read_request(tiny("seed=0..2", "sweep.name=x"))
    Local(tmp_path, 3, 2, ["0", "1", "2", "GPU-a", "4"], StopFlag(), lambda _: None).train(
        make_cells(request, request.words), []
    )
    assert seen == {"0": "0,1 of 2", "1": "2,GPU-a of 2", "2": "4,0 of 2"}


def test_ctrl_c_reaches_the_cells_as_ctrl_c(tmp_path: Path) -> None:
    request = read_request(tiny("seed=0,1", "sweep.name=x"))
    cell, _ = make_cells(request, request.words)
    for asked, got in (("SIGINT", signal.SIGINT), ("SIGTERM", signal.SIGTERM), ("SIGHUP", signal.SIGTERM)):
        stop, said = StopFlag(), list[str]()
        stop.signal_name = asked
        local = Local(tmp_path, 1, 1, [], stop, said.append)
        # in the background of a shell SIGINT is ignored
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(["sleep", "60"], preexec_fn=heard) as process:
            local._live[0] = (cell, process, 0.0)
            local.train([], [])
        assert process.returncode == -got
        assert said == [f"{asked}: 1 cell(s) save and end", f"{cell.name} stopped before it had begun"]


def owner(run_dir: Path, **facts: Any) -> None:
    content = {"token": "a", "generation": 1, "job": "", "job_restarts": 0, "heartbeat": time.time(), **this_process()}
    write_json(run_dir / "owner.json", content | facts)


@pytest.mark.parametrize(("silent_s", "word"), [(10, "training"), (1800, "killed")])
def test_a_cell_on_another_host_trains_while_its_heartbeat_is_young(tmp_path: Path, silent_s: int, word: str) -> None:
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "status.json", {"state": "running", "step": 3, "heartbeat": time.time() - silent_s})
    owner(tmp_path / "a", host="node17", boot="another", heartbeat=time.time() - silent_s)
    state = record.state_of(tmp_path, "a")
    assert state.word == word
    assert re.fullmatch(r"silent for 18\d\d s" if word == "killed" else "", state.reason)


class Ended:
    """In place of the process of a cell, which has left a status."""

    returncode = 0

    def __init__(self, command: list[str], **_: Any) -> None:
        run_dir = Path(command[-1].removeprefix("run_dir="))
        run_dir.mkdir(parents=True)
        result = {"weights": "averaged", "test_top1": 50.0, "ema_top1": 61.25}
        write_json(run_dir / "status.json", {"state": "finished", "step": 9, "result": result})

    def poll(self) -> int:
        return 0


def trained(said: list[str]) -> None:
    request = read_request(tiny("seed=0..2", "sweep.name=x"))
    Local(request.folder, 1, 1, [], StopFlag(), said.append).train(make_cells(request, request.words), [])


def test_a_cell_that_had_nothing_left_to_train_has_the_score_of_its_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", Ended)
    said: list[str] = []
    trained(said)
    finished = [line.rpartition(", ")[0] for line in said if "finished" in line]
    assert finished == [f"seed={seed} finished: 61.25 %" for seed in range(3)]
    folder = Path("runs/x")
    assert record.table(folder, {"seed=0": record.state_of(folder, "seed=0")})[1].split()[4] == "61.25"


def test_a_cell_whose_files_cannot_be_written_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class LosesItsLog(Ended):
        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__(command, **options)
            if command[-1].endswith("seed=1"):
                log = record.log_of(Path("runs/x"), "seed=1")
                log.unlink()
                log.mkdir()

    monkeypatch.setattr(subprocess, "Popen", LosesItsLog)
    record.log_of(Path("runs/x"), "seed=0").mkdir(parents=True)
    said: list[str] = []
    trained(said)
    assert said[0].startswith("seed=0 could not be started: [Errno 21]")
    assert said[2].startswith("seed=1 ended with exit code 0; [Errno 21]")
    assert said[4].startswith("seed=2 finished: 61.25 %, ")


def test_what_is_not_done_here_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/x/seed=0").mkdir(parents=True)
    owner(Path("runs/x/seed=0"))
    monkeypatch.setattr("senet.sweep.__main__.Local.train", lambda _, cells, __: trains.extend(cells))
    trains: list[Any] = []
    assert main(tiny("seed=0,1", "slurm.partition=a,b", "slurm.nodes=1", "sweep.name=x"), StopFlag()) == 1
    assert [cell.name for cell in trains] == ["seed=1"]
    said = capsys.readouterr().err
    assert "sweep: slurm.partition=a,b slurm.nodes=1: not used on this machine; for jobs it is " in said
    assert "sweep: left alone, since another process trains them: seed=0\n" in said


def test_the_table_has_the_reason_without_its_remedy_and_what_to_type_next(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    (folder / "seed=0").mkdir(parents=True)
    recorded(folder, *tiny("seed=0..2"))
    reason = "the loss of step 7 is not finite on 1 of 1 ranks; nothing was saved. Resume with a lower optim.lr"
    write_json(folder / "seed=0" / "status.json", {"state": "failed", "reason": reason})
    states = {name: record.state_of(folder, name) for name in ("seed=0", "seed=1")}
    _, row, _, last = record.table(folder, states)
    assert row.endswith(" the loss of step 7 is not finite on 1 of 1 ranks")
    assert last.endswith(f"2 cells: 1 failed, 1 not begun; 1 more of other commands: {typed('sweep')} status {folder}")
    (folder / "seed=1").mkdir()
    write_json(folder / "seed=1" / "status.json", {"state": "finished"})
    states = {name: record.state_of(folder, name) for name in ("seed=0", "seed=1", "seed=2")}
    assert record.table(folder, states)[-1].endswith(f"1 not begun; compare: {typed('compare')} {folder}")


def test_a_terminal_that_is_gone_ends_no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    _say("seed=0 starts")


def test_a_command_that_was_prepared_before_another_changed_the_sweep_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path, *tiny("seed=0,1"))
    before = record.read(tmp_path)
    recorded(tmp_path, *tiny("seed=2"))
    with (
        pytest.raises(ConfigError, match=r"another command has just changed .*; give this one again"),
        only_one(tmp_path, before),
    ):
        raise AssertionError
    with only_one(tmp_path, record.read(tmp_path)):
        pass


def test_a_folder_that_cannot_be_written_is_refused_also_where_it_has_a_lock_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"/sys/a cannot be written \("), only_one(Path("/sys/a"), {}):
        pytest.fail("begun")
    (tmp_path / LOCK).touch()

    def denied(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "TemporaryFile", denied)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"), only_one(tmp_path, {}):
        pytest.fail("begun")


def test_the_folder_of_a_sweep_is_no_run_directory(tmp_path: Path) -> None:
    recorded(tmp_path, *tiny("seed=0,1"))
    refusal = f"run_dir={tmp_path} is the folder of a sweep, whose cells are below it; choose another run_dir"
    with pytest.raises(ConfigError, match=re.escape(refusal)), nothing_left_if_refused(tmp_path):
        raise AssertionError
    with pytest.raises(ConfigError, match=re.escape(refusal)):
        preflight(load_config(tiny()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], StopFlag()) == 0
    assert "sweep.parallel=N" in capsys.readouterr().out
