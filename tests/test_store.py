"""Stores: built by any number of processes, with or without working locks, and no files left behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from senet.config.options import DataConfig
from senet.data.samplers import open_data
from senet.data.sources import choice
from senet.data.sources.index import Index
from senet.data.sources.pictures import decode
from senet.data.stores import pixels as module
from senet.errors import ConfigError
from senet.rundir.locks import this_process
from tests.harness import run_ranks
from tests.test_locks import NO_LOCKS, failing, held_elsewhere


def digits_config(root: Path) -> DataConfig:
    return DataConfig(source="digits", image_size=16, root=str(root))


def names(root: Path) -> set[str]:
    """The files beside the stores' locks."""
    return {path.name for path in (root / "stores").iterdir() if path.suffix != ".lock"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve training images of two classes, four test images, each of another colour."""
    for split, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.new("RGB", (16, 16), (200 * (split == "test"), 120 * label, 10 * number))
                picture.save(tmp_path / "images" / split / name / f"{number}.png")
    return tmp_path / "images"


def folder_config(folder: Path, **options: int) -> DataConfig:
    root = str(folder.parent / "data")
    return DataConfig(source="imagefolder", folder=str(folder), image_size=16, root=root, **options)


def test_of_two_builds_at_once_the_first_to_finish_wins(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # a lock that excludes no process
    fit_image, others = module.fit_image, []

    def and_meanwhile(picture: Image.Image, size: int, center_crop: float) -> np.ndarray:
        if not others:
            others.append("")
            others[0] = open_data(digits_config(tmp_path)).fingerprint
        return fit_image(picture, size, center_crop)

    monkeypatch.setattr(module, "fit_image", and_meanwhile)
    monkeypatch.setattr(module, "cores", lambda: 1)
    slow = open_data(digits_config(tmp_path))
    assert [slow.fingerprint] == others == [open_data(digits_config(data_root)).fingerprint]
    assert names(tmp_path) == {"digits-16"}


def _build_unlocked(root: str, folder: str) -> tuple[int, str]:
    """Open a cold store while the other rank does, both in the middle of decoding at once."""
    fcntl.flock = lambda *_: None  # type: ignore[assignment]
    fit_image, seen = module.fit_image, []

    def slow(picture: Image.Image, size: int, center_crop: float) -> np.ndarray:
        seen.append(size)
        if len(seen) == 100:
            Path(folder, os.environ["RANK"]).touch()
            while len(list(Path(folder).iterdir())) < 2:
                time.sleep(0.01)
        return fit_image(picture, size, center_crop)

    module.fit_image = slow
    data = open_data(digits_config(Path(root)))
    for split in (data.train, data.test):
        split.images.sum()
    return len(data.train), data.fingerprint


@pytest.mark.ranks
def test_two_processes_build_where_locks_exclude_nobody(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "meet").mkdir()
    found = run_ranks(2, _build_unlocked, str(tmp_path / "data"), str(tmp_path / "meet"), tmp_path=tmp_path)
    assert found == [(1437, open_data(digits_config(data_root)).fingerprint)] * 2
    assert names(tmp_path / "data") == {"digits-16"}


@pytest.mark.parametrize("code", NO_LOCKS)
def test_a_store_is_built_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(code))
    assert len(open_data(digits_config(tmp_path)).train) == 1437


def test_a_lock_that_outlives_its_holder_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    (tmp_path / "stores").mkdir()
    descriptor = held_elsewhere(tmp_path / "stores/digits-16.lock")
    assert len(open_data(digits_config(tmp_path)).train) == 1437
    assert "process 77 on host elsewhere holds" in caplog.text
    os.close(descriptor)


def test_what_killed_builds_left_is_removed(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name, builder, age_s in (
        ("ended here", this_process() | {"pid": gone.pid}, 0),
        ("silent elsewhere", this_process() | {"host": "elsewhere"}, 1000),
        ("alive elsewhere", this_process() | {"host": "elsewhere"}, 0),
        ("alive here", this_process(), 0),
        ("of an earlier version", {}, 1000),
    ):
        path = stores / f".{name}.tmp"
        path.mkdir(parents=True)
        (path / "builder.json").write_text(json.dumps(builder))
        os.utime(path, (time.time() - age_s,) * 2)
    open_data(digits_config(tmp_path))
    assert names(tmp_path) == {"digits-16", ".alive elsewhere.tmp", ".alive here.tmp"}


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="No space left on device; free some space"):
        open_data(digits_config(tmp_path))
    assert names(tmp_path) == set()


def test_an_incomplete_store_is_named(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "stores", tmp_path / "stores")
    (tmp_path / "stores/digits-16/meta.json").unlink()
    with pytest.raises(ConfigError, match=r"stores/digits-16 is not complete; delete it"):
        open_data(digits_config(tmp_path))


def test_all_unreadable_files_are_named_and_the_rest_is_decoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_data(folder_config(folder)).fingerprint
    shutil.rmtree(folder.parent / "data")
    good = {path: path.read_bytes() for path in (folder / "train/ant/3.png", folder / "test/bee/0.png")}
    for path in good:
        path.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"2 of 16 files cannot be read as images: train/ant/3.png \(no image\)"):
            open_data(folder_config(folder))
        [kept] = names(folder.parent / "data")  # one, however often it is refused
        assert not kept.startswith(".")
    for path, content in good.items():
        path.write_bytes(content)
    read: list[Path] = []

    def recorded(index: Index, row: int) -> Image.Image:
        read.append(index.place(row).file)
        return decode(index, row)

    monkeypatch.setattr(choice, "decode", recorded)
    assert open_data(folder_config(folder)).fingerprint == expected
    assert sorted(read) == sorted(good)
    assert len(names(folder.parent / "data")) == 1


def test_of_many_unreadable_files_some_are_named_and_all_are_counted(folder: Path) -> None:
    for number in range(50):
        (folder / f"train/bee/x{number}.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"50 of 66 files .*train/bee/x0.png.* and 40 more") as caught:
        open_data(folder_config(folder))
    assert len(str(caught.value)) < 1000


def test_a_small_folder_gives_work_to_all_threads_and_moves_the_bar(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_image, meeting, calls = module.fit_image, threading.Barrier(4, timeout=30), iter(range(1000))

    def meet(picture: Image.Image, size: int, center_crop: float) -> np.ndarray:
        if next(calls) < 4:
            meeting.wait()
        return fit_image(picture, size, center_crop)

    moves: list[int] = []

    class Bar(module.tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> None:
            moves.append(int(n or 0))

    monkeypatch.setattr(module, "fit_image", meet)
    monkeypatch.setattr(module, "tqdm", Bar)
    assert len(open_data(folder_config(folder, decode_threads=4)).train) == 12
    assert sum(moves) == 12 + 4
    assert len(moves) >= 8  # it does not jump from 0 to 100


def test_what_is_left_out_is_said_at_each_start_and_makes_no_other_store(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    expected = open_data(folder_config(folder)).fingerprint
    assert caplog.text == ""
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
        (folder / "train/ant" / name).write_bytes(b"no image")
    for name in ("train/__MACOSX", "train/ant/@eaDir", "test/.ipynb_checkpoints"):
        (folder / name).mkdir()
    (folder / "train/README.txt").write_text("about these images")
    assert open_data(folder_config(folder)).fingerprint == expected
    shutil.rmtree(folder.parent / "data")
    for _ in range(2):
        caplog.clear()
        assert open_data(folder_config(folder)).fingerprint == expected
        assert [record.message for record in caplog.records] == [
            "images were decoded without some of what is there: outside of class folders: train/README.txt; "
            "hidden: 7, the first train/__MACOSX"
        ]
    open_data(folder_config(folder), local_rank=1)
    assert len(caplog.records) == 1


def test_links_to_images_are_images(folder: Path) -> None:
    (folder / "train/ant/9.png").symlink_to(folder / "train/ant/0.png")
    (folder / "train/cat").symlink_to(folder / "train/ant")
    (folder / "test/cat").symlink_to(folder / "test/ant")
    assert len(open_data(folder_config(folder)).train) == 20


def test_names_that_are_no_text(folder: Path) -> None:
    (folder / "train/ant/0.png").rename(folder / os.fsdecode(b"train/ant/caf\xe9.png"))
    assert len(open_data(folder_config(folder)).train) == 12
    (folder / "train/ant").rename(folder / os.fsdecode(b"train/\xe9"))
    with pytest.raises(ConfigError, match="name of a class must be UTF-8"):
        open_data(folder_config(folder))


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.folder=.*/other: no such folder"):
        open_data(folder_config(folder.parent / "other"))


def test_a_relative_folder_that_is_not_here_is_named_with_the_folder_it_was_looked_for_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"data\.folder=photos: no such folder in {tmp_path}; expected "):
        open_data(folder_config(Path("photos")))
    with pytest.raises(
        ConfigError, match=rf"no decoded images in {tmp_path}/data/stores/digits-32; name the data\.root="
    ):
        open_data(DataConfig(source="digits", root="data"), build=False)


def test_a_folder_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)  # root may read everything
    with pytest.raises(ConfigError, match=r"data\.folder=.* cannot be read: .*Permission denied"):
        open_data(folder_config(folder))
