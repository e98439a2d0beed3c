"""``launch.sh`` as a user runs it; its set-up is the virtual environment the tests run in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import psutil
import pytest

from senet import REPOSITORY
from tests.harness import checkpoints, descendants, named, rows, started, status, survivors, tiny, wait_until

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(
        Path(sys.prefix) != REPOSITORY / ".venv", reason="launch.sh has a virtual environment of its own: use make test"
    ),
]
LAUNCH = str(REPOSITORY / "launch.sh")


def launch(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LAUNCH, *args], capture_output=True, text=True, env=os.environ | env, cwd=cwd, timeout=400)


@contextmanager
def training(
    data_root: Path, tmp_path: Path, *, before: Sequence[str] = (), restarts: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """Two ranks that would train for long, after their first steps; what they say goes into ``tmp_path/log``."""
    options = tiny(f"data.root={data_root}", "run_dir=run", "train.epochs=500", "checkpoint.every_steps=10000")
    command = [*before, "env", "-C", str(tmp_path), LAUNCH, *options]
    with started(command, tmp_path / "log", NPROC="2", TMPDIR=str(tmp_path / "tmp"), RESTARTS=f"{restarts}") as process:
        (tmp_path / "tmp").mkdir()
        wait_until(lambda: rows(tmp_path / "run") and rows(tmp_path / "run")[-1]["step"] > 30)
        yield process


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # torch starts some as it is imported, and they end
            if "-u" in child.cmdline():
                found.append(child)
    return found


def said(tmp_path: Path) -> list[str]:
    """Lines of the log that are no progress, nor where the time went."""
    progress = ("step ", "epoch ", "time: ", "INFO: ", "WARNING: ")
    return [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith(progress)]


def test_finished_and_again(data_root: Path, tmp_path: Path) -> None:
    options = tiny(f"data.root={data_root}", "run_dir=run")
    for expected in ("epoch 2/2", "this run has finished, nothing is left to train"):
        done = launch(*options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert "finished: " in done.stdout
        assert "resumed from" not in done.stdout
        assert "installing" not in done.stderr
    assert status(tmp_path / "run")["state"] == "finished"
    assert not (tmp_path / "run" / "torchrun.log").exists()


@pytest.mark.parametrize(
    ("args", "env", "expected"),
    [
        (["optim.lrr=1"], {}, "did you mean 'optim.lr'"),
        (["train.global_batch_size=64"], {"NPROC": "3"}, "use a multiple of 3"),
        ([], {"NPROC": "two"}, "NPROC=two"),
        ([], {"RESTARTS": "-1"}, "RESTARTS=-1 is not a number of restarts; use 0 or more"),
    ],
)
def test_bad_input_ends_before_torchrun_with_one_line(args: list[str], env: dict[str, str], expected: str) -> None:
    done = launch(*args, **env)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert expected in line


def test_packages_of_another_python_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('of another Python')\n")
    done = launch("train.epochs=1", PYTHONPATH=f"/nowhere:{tmp_path}")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"PYTHONPATH puts {tmp_path}/torch in front of the torch of {sys.prefix}" in line


def test_pythonpath_may_name_the_torch_of_the_site_but_no_second_one(tmp_path: Path) -> None:
    for folder in ("site", "other"):
        (tmp_path / folder / "torch").mkdir(parents=True)
        (tmp_path / folder / "torch" / "__init__.py").touch()
    code = """if 1:
        import os, sys
        from senet.errors import ConfigError
        from senet.launch import refuse_other_packages
        kept = [path for path in sys.path if "site-packages" not in path]  # here are torch and numpy of the tests
        for before, noted in ((["site"], []), ([], ["site"]), (["site"], ["site"]), (["other"], ["site"])):
            os.environ["PYTHONPATH"] = os.pathsep.join(before)
            sys.path = [*before, *kept, *noted]
            try:
                refuse_other_packages()
                print("taken")
            except ConfigError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    *taken, refused = done.stdout.splitlines()
    assert taken == 3 * ["taken"]
    assert refused.startswith(f"PYTHONPATH puts {tmp_path}/other/torch in front of the torch of ")


def test_bad_input_that_only_a_rank_can_see_is_one_line_and_code_2_too(data_root: Path, tmp_path: Path) -> None:
    done = launch(*tiny(f"data.root={data_root}", f"run_dir={tmp_path}/run", "resume.mode=nothing.pt"), RESTARTS="3")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "resume.mode=nothing.pt: no such file" in line


def test_the_default_is_the_quickstart(tmp_path: Path) -> None:
    done = launch("data.root=/proc/nowhere.yaml", "train.epochs=1", f"run_dir={tmp_path}")
    assert done.returncode == 2
    assert "stores/digits" not in done.stderr
    assert "data.root=/proc/nowhere" in done.stderr
    assert "cifar" not in done.stderr


def test_the_manual_of_options_is_the_help_of_train() -> None:
    page, every, one = (launch(*arguments) for arguments in (["train", "--help"], ["--help", "all"], ["--help", "log"]))
    assert page.returncode == every.returncode == one.returncode == 0
    assert page.stdout.startswith(f"usage: {LAUNCH} train [FILE.yaml ...]")
    assert "Without a file: configs/quickstart.yaml." in page.stdout
    assert "train.accumulate" not in page.stdout
    assert "train.accumulate = 1" in every.stdout
    assert one.stdout.startswith("log: ")
    usage = launch("predict", "--help")
    assert usage.stdout.startswith(f"usage: {LAUNCH} predict ")


def test_predict_and_evaluate_are_those_of_python_and_two_ranks_evaluate_alike(data_root: Path, tmp_path: Path) -> None:
    trained = launch(*tiny(f"data.root={data_root}", f"run_dir={tmp_path}/run", "train.epochs=1"))
    assert trained.returncode == 0, trained.stderr
    arguments = [str(tmp_path / "run"), "--model", "tests.networks:tiny_senet", "--json", f"data.root={data_root}"]
    module = [sys.executable, "-m", "senet.evaluate", *arguments]
    expected = subprocess.run(module, capture_output=True, text=True, cwd=REPOSITORY, timeout=400)
    (tmp_path / "senet").mkdir()  # the working directory does not matter
    (tmp_path / "senet" / "__init__.py").write_text("raise SystemExit('not the senet that was meant')\n")
    for ranks in ("", "2"):
        done = launch("evaluate", *arguments, cwd=tmp_path, NPROC=ranks)
        assert done.returncode == 0, done.stderr
        found, wanted = json.loads(done.stdout), json.loads(expected.stdout)
        assert found.pop("loss") == pytest.approx(wanted.pop("loss"), rel=1e-5)
        assert found == wanted
    for ranks in ("1", "2"):
        refused = launch("evaluate", str(tmp_path / "none"), cwd=tmp_path, NPROC=ranks)
        assert refused.returncode == 2
        [line] = refused.stderr.splitlines()
        assert line.startswith("evaluate: ")
    done = launch("evaluate", "x", NPROC="two")
    assert (done.returncode, done.stderr) == (2, "launch.sh: NPROC=two is not a number of ranks; use 1 or more\n")
    PIL.Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    predicted = launch("predict", "run", "--model", "tests.networks:tiny_senet", "black.png", cwd=tmp_path)
    assert predicted.stdout.startswith("black.png "), predicted.stderr


def test_tensorboard_serves_the_runs_under_their_paths(data_root: Path, tmp_path: Path) -> None:
    options = tiny(f"data.root={data_root}", "run_dir=runs/one", "train.epochs=1", "log.to=[tensorboard]")
    assert launch(*options, cwd=tmp_path).returncode == 0
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
    command = ["env", "-C", str(tmp_path), LAUNCH, "tensorboard", "runs/one", "runs/two", "--port", "0"]
    with started(command, tmp_path / "log"):
        address = wait_until(lambda: re.search(r" at (http://localhost:\d+)", (tmp_path / "log").read_text()), 120)

        def runs() -> set[str]:
            with urllib.request.urlopen(f"{address[1]}/data/runs", timeout=180) as answer:
                return {name.rpartition("/")[0] for name in json.load(answer)}  # each has a train, a test and so on

        wait_until(lambda: runs() == {"runs/one", "runs/two"}, 120)  # it reads them in the background


@pytest.mark.parametrize("names", [["SIGTERM"], ["SIGINT", "SIGINT", "SIGINT"], ["SIGUSR2", "SIGTERM"]])
def test_signals_stop_it_once_with_one_line_and_code_85(names: list[str], data_root: Path, tmp_path: Path) -> None:
    with training(data_root, tmp_path, restarts=3) as process:
        tree = descendants(process)
        for name in names:
            process.send_signal(getattr(signal, name))
        assert process.wait(180) == 85
        assert survivors(tree) == []
    found = status(tmp_path / "run")
    assert found["state"] == "stopped"
    assert found["reason"] in names  # of two that are pending at once, either may come first
    [line] = said(tmp_path)
    assert line.startswith("stopped at step")
    assert int(checkpoints(tmp_path / "run")[-1].name[5:14]) == found["step"]
    assert "death signal" in (tmp_path / "run" / "torchrun.log").read_text()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_signal_before_the_ranks_have_begun_is_code_85(data_root: Path, tmp_path: Path) -> None:
    options = tiny(f"data.root={data_root}", f"run_dir={tmp_path}/run")
    with started([LAUNCH, *options], tmp_path / "log", NPROC="2") as process:
        wait_until(lambda: any("senet.launch" in part for part in psutil.Process(process.pid).cmdline()))
        wait_until(lambda: _handles(process.pid, signal.SIGTERM))
        # between install() and hold() a signal ends it without a line; torch is imported after both
        wait_until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 85
    assert said(tmp_path) == ["launch.sh: stopped by SIGTERM before the ranks had begun"]


def _handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [caught] = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_ctrl_c_between_two_starts_is_heard(data_root: Path, tmp_path: Path) -> None:
    code = """if 1:
        import os, signal, sys
        from senet import launch
        from senet.distributed.preemption import StopFlag
        def failed(*_, launch, **__):
            os.kill(os.getpid(), signal.SIGINT)
            return "" if launch == 0 else "this comes after it"
        launch.launch_again, stop = failed, StopFlag.install()
        stop.hold()
        sys.exit(launch.main(["train", *sys.argv[1:]], stop))
    """
    options = tiny(f"data.root={data_root}", f"run_dir={tmp_path}/run", "model.name=tests.faults.networks:bug")
    command = [sys.executable, "-c", code, *options]
    with started(command, tmp_path / "log", NPROC="2", RESTARTS="3") as process:
        assert process.wait(400) == 85
    *_, again, last = said(tmp_path)
    assert again.startswith(
        f"launch.sh: starts again from step_000000010.g0001.pt: {named(1)} failed: ValueError: a bug "
    )
    assert last == "launch.sh: stopped by SIGINT before the ranks had begun"


def test_nohup_keeps_it_running(data_root: Path, tmp_path: Path) -> None:
    with training(data_root, tmp_path, before=["nohup"]) as process:
        step = rows(tmp_path / "run")[-1]["step"]
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: rows(tmp_path / "run")[-1]["step"] > step + 20)
        assert process.poll() is None


def test_a_rank_that_dies_is_code_1_and_one_line_that_names_it(data_root: Path, tmp_path: Path) -> None:
    with training(data_root, tmp_path) as process:
        ranks_of(process)[0].kill()
        assert process.wait(180) == 1
    [line] = said(tmp_path)
    assert line.startswith("train_ddp: failed: rank ")
    assert "SIGKILL" in (tmp_path / "run" / "torchrun.log").read_text()


def test_ranks_that_all_die_are_told_of_by_the_launcher(data_root: Path, tmp_path: Path) -> None:
    with training(data_root, tmp_path) as process:
        ranks = ranks_of(process)
        for rank in ranks:
            rank.suspend()  # so that both end together
        for rank in ranks:
            rank.kill()
        assert process.wait(180) == 1
    [line] = said(tmp_path)
    who = line.removeprefix("launch.sh: failed: ").removesuffix(
        " ended by SIGKILL, without a word; torchrun's words are in run/torchrun.log"
    )
    assert who in (named(0), named(1))
    assert "SIGKILL" in (tmp_path / "run" / "torchrun.log").read_text()


def test_images_that_cannot_be_read_any_more_are_a_reason(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path / "data")
    with training(tmp_path / "data", tmp_path) as process:
        for images in (tmp_path / "data").glob("stores/*/train.images.npy"):
            os.truncate(images, 0)  # as if its file system had gone: the pages are mapped
        assert process.wait(180) == 1
    text = (tmp_path / "log").read_text()
    assert "Fatal Python error: Bus error" in text
    assert " ended by SIGBUS (a page of a mapped file could not be read or written" in text


def test_the_second_start_of_a_run_is_refused_with_one_line(data_root: Path, tmp_path: Path) -> None:
    with training(data_root, tmp_path) as process:
        done = launch(*tiny(f"data.root={data_root}", "run_dir=run"), cwd=tmp_path)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert "run_dir=run is owned by a run that is alive" in line
        assert process.poll() is None


def test_killed_in_mid_training_it_leaves_no_process(data_root: Path, tmp_path: Path) -> None:
    with training(data_root, tmp_path) as process:
        tree = descendants(process)
        assert len(ranks_of(process)) == 2
        process.kill()
        wait_until(lambda: survivors(tree) == [], 60)


def test_killed_as_its_ranks_begin_it_leaves_no_process(data_root: Path, tmp_path: Path) -> None:
    options = tiny(f"data.root={data_root}", f"run_dir={tmp_path}/run", "train.epochs=100000")
    with started([LAUNCH, *options], tmp_path / "log", NPROC="2") as process:
        tree = wait_until(lambda: ranks_of(process))
        process.kill()
        wait_until(lambda: survivors(tree) == [], 60)  # before any timeout of its own


@pytest.mark.skipif(os.geteuid() != 0, reason="a host of another name needs root")
def test_a_host_whose_name_nobody_knows_trains_whatever_torchrun_finds_in_the_environment(
    data_root: Path, tmp_path: Path
) -> None:
    options = tiny(f"data.root={data_root}", f"run_dir={tmp_path}/run", "train.epochs=1")
    script = 'hostname no-such-host.invalid && exec "$@"'
    done = subprocess.run(
        ["unshare", "--uts", "sh", "-c", script, "sh", LAUNCH, *options],
        env=os.environ | {"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "x:1", "WORLD_SIZE": "8", "MASTER_PORT": "tcp://x:1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "finished: " in done.stdout


def test_where_one_stands_and_how_one_calls_it_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "senet").mkdir()
    for name in ("__init__.py", "config.py"):
        (tmp_path / "senet" / name).write_text("raise SystemExit('not the senet that was meant')\n")
    (tmp_path / "link").symlink_to(LAUNCH)
    (tmp_path / "a b").symlink_to(REPOSITORY)
    for call in (f"'{LAUNCH}'", "./link", "'a b/launch.sh'", "sh ./link", f"bash '{LAUNCH}'"):
        done = subprocess.run(
            f"exec {call} optim.lrr=1 <&-",  # without a standard input, as some daemons start what they start
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            # nothing that a person, a cron job or another Python sets
            env={
                "PATH": os.environ["PATH"],
                "CDPATH": "/tmp:/usr",
                "PYTHONPATH": ".",
                "PYTHONHOME": "/nowhere",
                "PYTHONSAFEPATH": "1",
            },
        )
        assert done.returncode == 2, call
        [line] = done.stderr.splitlines()
        assert "did you mean 'optim.lr'" in line, call


def test_closed_streams_are_no_reason_to_fail(data_root: Path, tmp_path: Path) -> None:
    options = " ".join(tiny(f"data.root={data_root}", "run_dir=run", "train.epochs=1"))
    done = subprocess.run(f"exec {LAUNCH} {options} <&- >&- 2>&-", shell=True, cwd=tmp_path, timeout=400)
    assert done.returncode == 0
    assert status(tmp_path / "run")["state"] == "finished"


def test_slurm_is_the_command_of_that_name(tmp_path: Path) -> None:
    done = launch("slurm", "--dry-run", *tiny(f"run_dir={tmp_path}/run", "slurm.nodes=2"))
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=2" in done.stdout
    assert launch("slurm", "status", str(tmp_path)).returncode == 2
    without = launch("slurm", "--dry-run", cwd=tmp_path)
    assert "#SBATCH --job-name=quickstart" in without.stdout, without.stderr
    beside = launch("slurm", "--dry-run", "configs/fast.yaml", cwd=tmp_path)
    assert "#SBATCH --job-name=fast" in beside.stdout
    assert f"slurm: configs/fast.yaml is not in this folder; taken from {REPOSITORY}/configs/fast.yaml" in beside.stderr


def test_what_the_commands_tell_one_to_type_begins_as_one_began(tmp_path: Path) -> None:
    (tmp_path / "a link").symlink_to(LAUNCH)
    for call, typed in (("'./a link'", "'./a link'"), (f"sh {LAUNCH}", LAUNCH)):
        done = subprocess.run(f"{call} slurm status", shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.endswith(f"name a run directory: {typed} slurm status RUN_DIR\n")
        usage = subprocess.run(f"{call} slurm --help", shell=True, cwd=tmp_path, capture_output=True, text=True).stdout
        assert usage.startswith(f"usage: {typed} slurm [--dry-run] [FILE.yaml ...] [key=value ...]\n")
        assert f"{typed} train --help" in usage
        assert "slurm.partition* = ''" in usage
