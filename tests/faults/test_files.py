"""Damaged, missing, hostile files; full and read-only disks: nothing is lost, nothing runs, the file is named."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from senet.config.options import DataConfig
from senet.data.samplers import open_data
from senet.distributed.preemption import StopFlag
from senet.errors import ConfigError
from senet.inference.network import load_trained
from senet.rundir.checkpoint import CheckpointError, manifest_hash, read_checkpoint
from senet.rundir.files import read_json, write_json
from tests.conftest import Once, Train
from tests.faults.conftest import Trial, Unbroken
from tests.faults.interpose import failing, missing_compiler
from tests.faults.runs import EVERY, LAST, last_step, options, recover
from tests.harness import (
    StopAt,
    checkpoints,
    differing,
    payload,
    rows,
    started,
    status,
    tiny,
    train,
    train_command,
    wait_until,
    without_clock,
)
from train_ddp import main

PACED = "model.name=tests.faults.networks:paced"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: run as root")
needs_compiler = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
Told = Callable[..., str]


@pytest.fixture
def told(train_here: Train, data_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Told:
    """Start a run that is refused; returns its one line. ``train_here`` puts this process's torch back afterwards."""

    def start(*overrides: str) -> str:
        capfd.readouterr()
        began = time.monotonic()
        code = main(tiny(f"data.root={data_root}", f"run_dir={tmp_path / 'run'}", *overrides), StopFlag())
        out, err = capfd.readouterr()
        assert code == 2, err
        assert time.monotonic() - began < 50
        assert "step " not in out
        [line] = [line for line in err.splitlines() if line.startswith("train_ddp: ")]
        assert "Traceback" not in err
        return line

    return start


# ---------------------------------------------------------------- checkpoints

DAMAGES = ("cut to 0 %", "cut to 1 %", "cut to 50 %", "cut to 99 %", "no manifest", "another's manifest", "all")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.fault("newest checkpoint truncated, or its manifest wrong", quick=1, full=1)
def test_a_damaged_checkpoint_costs_its_steps_only(
    damage: str, trial: Trial, train_here: Train, told: Told, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(tmp_path / "whole")
    train_here(tmp_path / "run", stop=StopAt(17))
    *_, before, newest = checkpoints(tmp_path / "run")
    manifest = newest.with_suffix(".json")
    content = newest.read_bytes()
    if damage.startswith("cut"):
        newest.write_bytes(content[: len(content) * int(damage.split()[2]) // 100])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "another's manifest":
        shutil.copy(before.with_suffix(".json"), manifest)
    else:
        for path in checkpoints(tmp_path / "run"):
            path.write_bytes(path.read_bytes()[:-1])
        for _ in range(2):
            assert "every checkpoint is damaged" in told()
        return
    capfd.readouterr()
    train_here(tmp_path / "run")
    [warning] = [line for line in capfd.readouterr().err.splitlines() if "set aside" in line]
    assert newest.stem in warning
    trial.lost(int(newest.name[5:14]) - int(before.name[5:14]))
    assert differing(without_clock(payload(tmp_path / "whole")), without_clock(payload(tmp_path / "run"))) == []


@pytest.fixture(scope="session")
def published(data_root: Path, once: Once) -> Path:
    """A checkpoint of a real run."""

    def run(run_dir: Path) -> None:
        done = train(0, *tiny("train.epochs=1", f"data.root={data_root}", f"run_dir={run_dir}"))
        assert done.returncode == 0, done.stderr

    return checkpoints(once("published", run))[-1]


@pytest.mark.fault("one bit flipped, anywhere", quick=20, full=300)
def test_a_flipped_bit_is_found(trial: Trial, published: Path, tmp_path: Path) -> None:
    for path in (published, published.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    read_checkpoint(tmp_path / published.name)
    suffix = ".json" if trial.number % 5 == 4 else ".pt"  # it is a thousand times smaller
    victim = tmp_path / f"{published.stem}{suffix}"
    content = bytearray(victim.read_bytes())
    content[trial.random.randrange(len(content))] ^= 1 << trial.random.randrange(8)
    victim.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / published.name)


# ---------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for about five checkpoints of the small run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill the disk up to some bytes."""
    room = os.statvfs(disk)
    path = disk / "filler"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)
    return path


@needs_root
@pytest.mark.fault("disk full before and during a save", quick=1, full=5)
def test_a_full_disk_costs_no_checkpoint(trial: Trial, data_root: Path, tmp_path: Path, small_disk: Path) -> None:
    run_dir = small_disk / "run"
    command = train_command(0, options(data_root, run_dir, PACED, "checkpoint.keep=1", "log.to=[tensorboard]"))
    leave = 0 if trial.number % 2 else 500_000  # before a save, or in the middle of it
    mirror = tmp_path / "status"
    with started(command, tmp_path / "log", SENET_STATUS_FILE=str(mirror)) as process:
        wait_until(lambda: last_step(run_dir) > EVERY)
        wait_until(lambda: [path for path in checkpoints(run_dir) if path.with_suffix(".json").exists()])
        filler = fill(small_disk, leave)
        before = checkpoints(run_dir)[-1]
        digest = hashlib.sha256(before.read_bytes()).digest()
        if trial.number % 4 in (0, 1):  # the disk stays full
            assert process.wait(180) == 1
            text = (tmp_path / "log").read_text()
            assert text.count("training goes on, the next one tries again") == 2, text
            assert "failed: " in text
            assert "No space left on device" in text.split("failed: ")[1]
            assert read_json(mirror)["state"] == "failed"
            assert before in checkpoints(run_dir)
            assert hashlib.sha256(before.read_bytes()).digest() == digest
            filler.unlink()
            recover(trial, command, run_dir, tmp_path / "log2")
        else:
            wait_until(lambda: "tries again" in (tmp_path / "log").read_text())
            filler.unlink()
            assert process.wait(180) == 0
    assert status(run_dir)["state"] == "finished"
    reference = options(data_root, tmp_path / "whole", "checkpoint.keep=1")
    assert train(0, *reference).returncode == 0
    assert differing(without_clock(payload(tmp_path / "whole")), without_clock(payload(run_dir))) == []


@needs_root
@pytest.mark.fault("run directory read-only from the start, or later", quick=1, full=1)
def test_a_read_only_run_directory_is_refused(trial: Trial, data_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], check=True)
    try:
        began = time.monotonic()
        done = train(0, *options(data_root, folder))
        trial.recovered(time.monotonic() - began)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"run_dir={folder} cannot be written (Read-only file system)" in line


@needs_compiler
@pytest.mark.parametrize("at", [60, 200])  # while it starts; while it trains
@pytest.mark.fault("run directory read-only from the start, or later", quick=1, full=1)
def test_a_run_directory_that_becomes_read_only_ends_the_run_with_its_reason(
    at: int, trial: Trial, data_root: Path, tmp_path: Path
) -> None:
    run_dir, mirror = tmp_path / "run", tmp_path / "status"
    command = train_command(0, options(data_root, run_dir, "log.to=[tensorboard]"))
    fault = failing("change", run_dir, at=at, errno=errno.EROFS)
    with started(command, tmp_path / "log", SENET_STATUS_FILE=str(mirror), **fault) as process:
        assert process.wait(180) == 1, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert "Read-only file system" in text.split("failed: ")[1]
    assert 'train_ddp.py", line' not in text
    assert read_json(mirror)["state"] == "failed"
    recover(trial, command, run_dir, tmp_path / "log2")


AWAY = [
    (errno.ENOTCONN, "change"),
    (errno.ESTALE, "open"),
    (errno.EIO, "fsync"),
    (errno.ETIMEDOUT, "rename"),
    (errno.EREMOTEIO, "write"),
]


@needs_compiler
@pytest.mark.fault("file system away for a while, its pages lost", quick=3, full=50)
def test_a_file_system_that_is_away_for_a_while_costs_its_time(
    trial: Trial, data_root: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    number, call = AWAY[trial.number % len(AWAY)]
    run_dir = tmp_path / "run"
    command = train_command(0, options(data_root, run_dir, "log.to=[tensorboard]"))
    fault = failing(call, run_dir, at=trial.random.randint(1, 60), times=trial.random.randint(1, 12), errno=number)
    with started(command, tmp_path / "log", **fault) as process:
        assert process.wait(400) == 0, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert os.strerror(number) in text
    assert [row["step"] for row in rows(run_dir)] == list(range(1, LAST + 1))
    assert [row["step"] for row in rows(run_dir, "epoch")] == [22, LAST]
    for path in checkpoints(run_dir):
        read_checkpoint(path)
    assert differing(unbroken(1), without_clock(payload(run_dir))) == []
    assert status(run_dir)["state"] == "finished"
    assert not list(run_dir.rglob("*.tmp"))


# ---------------------------------------------------------------- data


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten classes of real size for the small run's batch, as files."""
    generator = np.random.default_rng(0)
    root = tmp_path / "pictures"
    for split, count in (("train", 7), ("test", 2)):
        for label in range(10):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{label}" / f"{number}.png")
    return root


BROKEN = (
    "missing",
    "truncated",
    "bit-flipped",
    "text instead",
    "PostScript instead",
    "class gone",
    "label out of range",
)


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.fault("data missing, damaged, of another type, or with bad labels", quick=1, full=1)
def test_broken_data_is_one_line_that_names_the_file(
    broken: str, trial: Trial, told: Told, train_here: Train, pictures: Path, tmp_path: Path
) -> None:
    source = ("data.source=imagefolder", f"data.folder={pictures}", f"data.root={tmp_path / 'data'}")
    train_here(tmp_path / "run", *source, "train.epochs=1", "checkpoint.every_steps=1")
    [store] = [path for path in (tmp_path / "data/stores").iterdir() if path.is_dir()]
    victim = pictures / "train/class3/4.png"
    if broken == "missing":
        shutil.rmtree(pictures / "test")
        assert f"{pictures}/test: no such folder" in told(*source)
    elif broken == "truncated":
        victim.write_bytes(victim.read_bytes()[:200])
        assert "cannot be read as images: train/class3/4.png" in told(*source)
    elif broken == "bit-flipped":
        content = bytearray((store / "train.images.npy").read_bytes())
        content[-100] ^= 8
        (store / "train.images.npy").write_bytes(content)
        assert f"{store}/train.images.npy is damaged" in told(*source)
    elif broken == "text instead":
        victim.write_text("no picture")
        assert "cannot be read as images: train/class3/4.png" in told(*source)
    elif broken == "PostScript instead":
        picture = BytesIO()
        Image.new("RGB", (16, 16)).save(picture, "EPS")
        victim.write_bytes(picture.getvalue())
        assert "cannot be read as images: train/class3/4.png" in told(*source)
    elif broken == "class gone":
        for split in ("train", "test"):
            shutil.rmtree(pictures / split / "class3")
        assert "without class3, with new none" in told(*source, "train.global_batch_size=63")
    else:
        labels = np.load(store / "train.labels.npy")
        labels[5] = 10
        np.save(store / "train.labels.npy", labels)
        meta = read_json(store / "meta.json")
        meta["sha256"]["train.labels.npy"] = hashlib.sha256((store / "train.labels.npy").read_bytes()).hexdigest()
        write_json(store / "meta.json", meta)
        assert f"{store}/train.labels.npy: 70 int64 labels from 0 to 10" in told(*source)


# ---------------------------------------------------------------- hostile files


class Trap:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (os.environ["TRAP"], "w"))


@pytest.fixture
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    pickle.loads(pickle.dumps(Trap())).close()  # it works
    (tmp_path / "sprung").unlink()
    return tmp_path / "sprung"


HOSTILE = ("checkpoint", "weights", "data batch", "store", "tar", "link", "YAML")


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.fault("hostile pickle, tar, link or YAML", quick=1, full=1)
def test_what_is_hostile_runs_nothing_and_is_named(
    hostile: str,
    trial: Trial,
    told: Told,
    train_here: Train,
    sprung: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir, data = tmp_path / "run", tmp_path / "data"
    trap = tmp_path / "trap.pt"
    trap.write_bytes(pickle.dumps({"model": Trap()}))
    if hostile == "checkpoint":
        train_here(run_dir, "train.epochs=1")
        [*_, path] = checkpoints(run_dir)
        path.write_bytes(trap.read_bytes())
        manifest = read_json(path.with_suffix(".json"))  # by an attacker who also updates the hash
        manifest |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        del manifest["manifest_sha256"]
        write_json(path.with_suffix(".json"), manifest | {"manifest_sha256": manifest_hash(manifest)})
        assert str(path) in told()
        with pytest.raises(ConfigError, match=path.name):
            load_trained(run_dir, model_name="tests.networks:tiny_senet")
    elif hostile == "weights":
        assert f"model.init_from={trap} is no file of weights" in told(f"model.init_from={trap}")
    elif hostile == "data batch":
        folder = data / "downloads/cifar-10-batches-py"
        folder.mkdir(parents=True)
        for name, _ in torchvision.datasets.CIFAR10.train_list + torchvision.datasets.CIFAR10.test_list:
            (folder / name).write_bytes(pickle.dumps(Trap()))
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/none.tar.gz")
        monkeypatch.setattr("senet.data.download.time.sleep", lambda _: None)
        assert "data.source=cifar10 cannot be downloaded" in told("data.source=cifar10", f"data.root={data}")
    elif hostile == "store":
        open_data(DataConfig(source="digits", image_size=16, root=str(data)))
        store = data / "stores/digits-16"
        np.save(store / "train.labels.npy", np.array([Trap()], dtype=object), allow_pickle=True)
        meta = read_json(store / "meta.json")
        meta["sha256"]["train.labels.npy"] = hashlib.sha256((store / "train.labels.npy").read_bytes()).hexdigest()
        write_json(store / "meta.json", meta)
        assert f"{store}/train.labels.npy is damaged" in told(f"data.root={data}")
    elif hostile == "tar":
        (data / "downloads").mkdir(parents=True)
        with tarfile.open(data / "downloads/cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(trap, arcname="../../sprung")
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/none.tar.gz")
        monkeypatch.setattr("senet.data.download.time.sleep", lambda _: None)
        assert "cifar-10-python.tar.gz" in told("data.source=cifar10", f"data.root={data}")
    elif hostile == "link":
        for name in ("config.yaml", "metrics.jsonl", "status.json", ".owner.lock", "checkpoints", "tensorboard"):
            shutil.rmtree(run_dir, ignore_errors=True)
            (run_dir / name).parent.mkdir(parents=True)
            (run_dir / name).symlink_to(sprung)
            assert f"{run_dir / name} is a symbolic link" in told()
    else:
        file = tmp_path / "hostile.yaml"
        file.write_text(f"train: !!python/object/apply:builtins.open ['{sprung}', 'w']\n")
        assert f"{file}: not a readable YAML file" in told(str(file))
    assert not sprung.exists()


@pytest.mark.fault("a cold start of 8, a download that fails twice", quick=1, full=3)
def test_eight_processes_download_once(trial: Trial, small_cifar: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        found = pool.map(_opened, [str(tmp_path / "data")] * 8)
    assert found == [(20, found[0][1])] * 8
    codes = (tmp_path / "served.log").read_text().split()
    assert codes.count("503") == 2
    assert codes.count("200") <= 2  # torchvision asks once for where it is led to, once for the file


def _opened(root: str) -> tuple[int, str]:
    data = open_data(DataConfig(root=root))
    return len(data.train), data.fingerprint
