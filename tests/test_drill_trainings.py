"""``launch.sh drill`` on real trainings: planted defects are found and named, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

import train_ddp
from senet import REPOSITORY
from senet.command import leave
from senet.config.load import load_config
from senet.distributed.preemption import StopFlag
from senet.drill.plan import PLAN_VARIABLE, take_options
from senet.drill.starts import carry_out
from senet.drill.trials import Trials, Verdict, drill
from tests.harness import descendants, fork_server, free_port, started, survivors, tiny, wait_until
from tests.soak import soak

LAUNCH = str(REPOSITORY / "launch.sh")
Drill = Callable[..., Verdict]
in_own_environment = pytest.mark.skipif(
    Path(sys.prefix) != REPOSITORY / ".venv", reason="launch.sh has a virtual environment of its own: use make test"
)


def _rank(rank: int, ranks: int, port: int, argv: Sequence[str], plan_file: Path, log: Path) -> None:
    place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", PLAN_VARIABLE: str(plan_file), "OMP_NUM_THREADS": "1"}
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    leave(train_ddp.main(list(argv), StopFlag.install()))


def forked(argv: Sequence[str], plan_file: Path, ranks: int, log: Path) -> int:
    port, context = free_port(), fork_server()
    processes = [context.Process(target=_rank, args=(rank, ranks, port, argv, plan_file, log)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return processes[0].exitcode or 0


@pytest.fixture
def drill_here(data_root: Path, tmp_path: Path) -> Drill:
    def here(network: str, *options: str, ranks: Sequence[int] = (1,)) -> Verdict:
        argv = tiny(f"model.name={network}", f"data.root={data_root}", "train.epochs=3", *options)
        size, words = take_options([*argv, f"drill.ranks={','.join(map(str, ranks))}", "drill.steps=8"])
        trials = Trials(words, load_config(words), size, tmp_path, partial(carry_out, start=forked), print)
        return drill(trials, ranks)

    return here


PLANTED = {
    "noisy_images": ["not deterministic", "the images that the network is given differ first"],
    "images_of_a_generator": ["not saved", "the training images.draws: Random in state"],
    "counter_in_an_attribute": ["not saved", "defect.updates: 2 in the unbroken run, 0 after the resume"],
    "unsaved_buffer": ["not saved", "defect.mean (a buffer with persistent=False): (16,) float32"],
    "unsaved_average": ["not saved", "average of features.0.weight: not as it was"],
    "dropout_of_a_generator": ["not saved", "defect.draws: Random in state"],
    "order_of_threads": ["not deterministic", "the output of defect (_Threads) differs first, from the same input"],
    "optimizer_outside_state": ["not saved", "the optimizer.steps: 2 in the unbroken run, 0 after the resume"],
    "time_of_day": ["not deterministic", "the output of defect (_Clock) differs first"],
    "counts_calls_out_of_sight": ["not saved", "unknown which"],
}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found_and_its_cause_named(defect: str, drill_here: Drill) -> None:
    verdict = drill_here(f"tests.planted:{defect}")
    text = "\n".join(verdict.lines)
    print(text)
    assert not verdict.same
    for expected in PLANTED[defect]:
        assert expected in text


@pytest.mark.ranks
@pytest.mark.slow
def test_a_layer_that_looks_at_the_rank_is_named(drill_here: Drill) -> None:
    verdict = drill_here("tests.planted:looks_at_the_rank", "train.shards=4", ranks=(2, 1))
    text = "\n".join(verdict.lines)
    assert not verdict.same
    assert "(ranks-1)" in text
    assert "it depends on the rank: 2 and 1 rank(s) differ" in text
    assert "the output of defect (_ByRank) differs first, from the same input, in update 1" in text


@pytest.mark.ranks
@pytest.mark.slow
def test_with_shards_all_numbers_of_ranks_give_the_same_bits(drill_here: Drill) -> None:
    verdict = drill_here("tests.planted:attention_and_dropout", "train.shards=4", "train.accumulate=2", ranks=(4, 1, 2))
    assert verdict.same, "\n".join(verdict.lines)
    assert "10 starts on 4, 1, 2 rank(s)" in verdict.lines[2]


SOUND = {
    "tests.planted:attention_and_dropout": [],
    "tests.planted:dropout_of_python": [],
    "tests.planted:extra_state_and_a_cache": [],
    "senet18": [],
    "preact_resnet18": [],
    "resnet18": ["model.small_stem=true"],
    "resnext50_32x4d": ["model.small_stem=true"],
    "googlenet": [],
    "inception_v3": ["data.image_size=75"],
    "resnet20": [],
    "se_resnet20": [],
}
DRILLED_LATER = {"preact_resnet18", "resnext50_32x4d", "googlenet", "inception_v3", "resnet20"}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("network", [pytest.param(name, marks=[soak] * (name in DRILLED_LATER)) for name in SOUND])
def test_there_is_no_false_alarm(network: str, drill_here: Drill) -> None:
    small = ["train.global_batch_size=8", "train.eval_batch_size=16"]
    verdict = drill_here(network, *SOUND[network], *small)
    assert verdict.same, "\n".join(verdict.lines)
    assert verdict.lines[0].startswith("same: ")


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["optim.name=adamw", "optim.lr=0.001", "train.accumulate=2", "train.clip_norm=1.0", "train.amp=off"],
        ["optim.name=muon", "schedule.plateau=true", "schedule.plateau_patience=0", "train.ema_decay=0"],
        ["train.amp=fp16", "data.holdout=100", "augment.small_size=16", "data.image_size=20", "augment.small_epochs=1"],
        ["train.shards=4", "train.clip_norm=1.0", "optim.name=adamw", "optim.lr=0.001"],
        ["train.epochs=1", "train.amp=bf16"],
        ["train.global_batch_size=700", "train.epochs=9"],  # epochs of two updates
    ],
    ids=" ".join,
)
def test_there_is_no_false_alarm_with_other_options(options: list[str], drill_here: Drill) -> None:
    verdict = drill_here("tests.networks:tiny_senet", *options)
    assert verdict.same, "\n".join(verdict.lines)


# the command


def command(data_root: Path, network: str, *options: str) -> list[str]:
    return [LAUNCH, "drill", *tiny(f"data.root={data_root}", f"model.name={network}", "drill.steps=8", *options)]


def ended(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command in a folder of its own, and what it leaves for temporary files in ``tmp``."""
    (folder / "tmp").mkdir()
    env = os.environ | {"TMPDIR": str(folder / "tmp")}
    return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=550)


def left_in(folder: Path) -> list[str]:
    """What a drill has left; torch leaves folders of its own."""
    return [str(path) for path in (folder / "tmp").iterdir() if path.name.startswith("senet")]


@pytest.mark.ranks
@in_own_environment
def test_a_drill_that_finds_nothing_leaves_nothing(data_root: Path, tmp_path: Path) -> None:
    done = ended(tmp_path, command(data_root, "tests.networks:tiny_senet", "drill.ranks=2"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("same: 199 tensors of the last checkpoint")
    assert "10 rows of metrics.jsonl, 2 of them of evaluations, and all weights after each of 8 updates" in lines[1]
    assert "4 starts on 2 rank(s), SIGKILL after updates" in lines[2]
    assert left_in(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


@pytest.mark.ranks
@pytest.mark.slow
@in_own_environment
def test_a_drill_that_finds_a_difference_keeps_what_it_has_seen(data_root: Path, tmp_path: Path) -> None:
    done = ended(tmp_path, command(data_root, "tests.planted:counter_in_an_attribute", "drill.ranks=1"))
    assert done.returncode == 1, done.stderr
    [folder] = left_in(tmp_path)
    assert done.stdout.endswith(f"kept: {folder}, with the run directory and the output of each start\n")
    assert {path.name for path in Path(folder).iterdir()} == {"unbroken", "killed", "again", "once-more"}
    assert "resumed from" in (Path(folder) / "killed" / "start-2.log").read_text()


@pytest.mark.ranks
@pytest.mark.slow
@in_own_environment
@pytest.mark.parametrize(
    ("network", "option", "code", "expected"),
    [
        ("tests.networks:fails_at_step_40", "drill.steps=44", 1, "a start failed: ValueError: "),
        ("tests.networks:fails_inside", "seed=1", 2, "model.name=tests.networks:fails_inside failed: AttributeError: "),
        ("tests.networks:of_16_pixels", "data.image_size=32", 2, "takes no images of shape (N, 3, 32, 32)"),
        ("tests.networks:tiny_senet", "drill.steps=45", 2, "drill.steps=45 is more than the 44 updates of"),
    ],
)
def test_a_training_that_cannot_be_says_why(
    network: str, option: str, code: int, expected: str, data_root: Path, tmp_path: Path
) -> None:
    done = ended(tmp_path, command(data_root, network, option, "drill.ranks=1"))
    assert done.returncode == code
    assert done.stdout == ""
    assert expected in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("drill: ")
    assert len(left_in(tmp_path)) == (code == 1)


@pytest.mark.ranks
@in_own_environment
def test_a_drill_that_is_stopped_ends_its_training_and_leaves_nothing(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    arguments = command(data_root, "tests.networks:slow_senet", "drill.ranks=1", "train.epochs=500", "drill.steps=500")
    with started(arguments, tmp_path / "log", TMPDIR=str(tmp_path / "tmp")) as process:
        wait_until(lambda: list((tmp_path / "tmp").glob("senet-drill-*/unbroken/start-1.jsonl")))
        below = descendants(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(400) == 1
        assert survivors(below) == []
    assert (tmp_path / "log").read_text().endswith("drill: stopped; nothing is kept, the same command begins again\n")
    assert left_in(tmp_path) == []
