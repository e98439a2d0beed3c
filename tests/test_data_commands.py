"""``launch.sh data``: what is kept below data.root is built, read, shown and removed as somebody types it."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from senet import REPOSITORY
from senet.config.options import DataConfig
from senet.data.__main__ import main
from senet.data.sources.index import Place
from senet.data.stores import removal, uses
from senet.data.stores.catalog import stored_at, stored_below
from senet.data.stores.choice import open_store
from senet.data.stores.uses import note_run, read_notes
from senet.errors import ConfigError, RunError
from senet.rundir.files import write_json
from senet.rundir.lease import Lease
from senet.rundir.locks import this_process
from tests.conftest import Train
from tests.test_locks import held_elsewhere

BOTH = pytest.mark.parametrize("kind", ["pixels", "encoded"])
DAY_S = 24 * 3600


def picture(number: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and with six training and two test images of each of two classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SENET_COMMAND", "./launch.sh")
    for label, name in enumerate(("ant", "bee")):
        for number in range(8):
            path = Path("photos", "train" if number < 6 else "test", name, f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(10 * label + number, "PNG"))
    Path("photos.yaml").write_text("data: {source: imagefolder, folder: photos, image_size: 16}\n")
    return tmp_path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """``say(0, "list", ...)``: the lines that a command prints, which ends with this code."""

    def typed(code: int, *words: str) -> list[str]:
        capsys.readouterr()
        assert main(words) == code
        return capsys.readouterr().out.splitlines()

    return typed


Say = Callable[..., list[str]]


def options(kind: str, **more: Any) -> DataConfig:
    return DataConfig(source="imagefolder", folder="photos", image_size=16, store=kind, **more)  # type: ignore[arg-type]


def build(kind: str, **more: Any) -> Path:
    """A store as a start of a training builds it."""
    return open_store(options(kind, **more)).folder


def a_run(store: Path, name: str = "a", *, trained_on: str | None = "") -> Path:
    """A run directory that has opened a store; its newest checkpoint has the store's fingerprint, or another one, or
    None: it has no checkpoint."""
    run_dir = Path("runs", name)
    write(run_dir / "owner.json", {"released": True, "generation": 1})
    if trained_on is not None:
        fingerprint = trained_on or open_store(options(stored_at(store).kind)).fingerprint
        write(run_dir / "checkpoints/step_000000007.g0001.json", {"data": f"{fingerprint}+held"})
        (run_dir / "checkpoints/step_000000007.g0001.pt").touch()
    note_run(store, run_dir)
    return run_dir


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def names() -> set[str]:
    return {path.name for path in Path("data/stores").iterdir() if path.suffix != ".lock"}


later = pytest.mark.usefixtures("_later")


@pytest.fixture
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built or opened a moment ago is old enough to go."""
    monkeypatch.setattr(removal, "_JUST_S", 0.0)


@BOTH
def test_prepare_builds_without_a_training_and_says_how_one_finds_it(say: Say, kind: str, here: Path) -> None:
    first, second = say(0, "prepare", "photos.yaml", f"data.store={kind}")
    [store] = [each.path for each in stored_below(Path("data"))]
    assert first.startswith(f"{store}: {kind}, 12 training and 4 test images of {here}/photos, 0.0 MB, built 20")
    assert "; 16 images added; " in first
    assert second == f"a training with these options opens it: ./launch.sh train photos.yaml data.store={kind}"
    shutil.rmtree("photos/train") if kind == "encoded" else None
    assert build(kind) == store  # which builds nothing


def test_prepare_adds_what_is_new_and_says_what_is_left_out(say: Say) -> None:
    words = ("prepare", "photos.yaml", "data.store=encoded")
    say(0, *words)
    for number in (50, 51):
        Path(f"photos/train/ant/{number}.png").write_bytes(picture(number, "PNG"))
    Path("photos/train/ant/.hidden").touch()
    line, _ = say(0, *words)
    assert ", 14 training and 4 test images" in line
    assert "; 2 images added, 16 kept; left out: hidden: train/ant/.hidden; " in line
    line, _ = say(0, *words)
    assert "; 0 images added, 18 kept; left out: hidden: train/ant/.hidden; " in line


def add_one() -> None:
    Path("photos/train/ant/70.png").write_bytes(picture(70, "PNG"))


def change_one() -> None:
    Path("photos/train/ant/3.png").write_bytes(picture(70, "PNG"))


def remove_one() -> None:
    Path("photos/test/bee/7.png").unlink()


def move_one() -> None:
    Path("photos/train/ant/3.png").rename("photos/train/bee/3b.png")


PREPARE = ("prepare", "photos.yaml", "data.store=encoded")


@pytest.mark.parametrize("change", [add_one, change_one, remove_one, move_one])
def test_prepare_does_not_end_runs_that_have_not_finished_unless_that_is_wanted(
    say: Say, here: Path, change: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_store(options("encoded"))
    for name in ("stopped", "failed", "finished"):
        write(a_run(before.folder, name) / "status.json", {"state": name, "heartbeat": 1.0})
    a_run(before.folder, "other", trained_on="0123")
    a_run(before.folder, "new", trained_on=None)
    meta = (before.folder / "meta.json").read_bytes()
    say(0, *PREPARE)  # nothing is new
    change()
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            main(PREPARE)
        told = str(caught.value)
        assert f": this would end {here}/runs/failed, {here}/runs/stopped, as a run goes on " in told
        assert "--anyway" in told
        assert "\n" not in told
        assert (before.folder / "meta.json").read_bytes() == meta
        assert build("encoded") == before.folder  # a start asks nobody
    files = len(list(before.folder.glob("*.pack")))
    assert files == (1 if change is remove_one else 2)
    read: list[Path] = []
    monkeypatch.setattr(Place, "read", lambda place: read.append(place.file) or place.file.read_bytes())
    say(0, *PREPARE, "--anyway")
    assert not read  # what was refused is packed
    assert len(list(before.folder.glob("*.pack"))) == files
    assert open_store(options("encoded")).fingerprint != before.fingerprint
    remove_one() if change is not remove_one else add_one()
    say(0, *PREPARE)  # nobody is left who could go on


def test_a_run_that_trains_and_has_saved_nothing_yet_needs_its_images_too(say: Say, here: Path) -> None:
    run_dir = a_run(build("encoded"), trained_on=None)
    add_one()
    with Lease.acquire(run_dir), pytest.raises(ConfigError, match=f"this would end {here}/runs/a, as a run goes on"):
        main(PREPARE)
    say(0, *PREPARE)  # it begins anew


def test_prepare_warns_of_runs_that_cannot_be_seen(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build("encoded")
    a_run(store)
    Path("runs").rename("runs-before")
    add_one()
    assert main(PREPARE) == 0
    told = f"whether {here}/runs/a still needs the images of {store} cannot be seen from here"
    assert capsys.readouterr().err == f"WARNING: {told}\n"


def test_prepare_without_a_file_is_of_what_a_training_would_take(say: Say) -> None:
    line, hint = say(0, "prepare")
    assert line.startswith("data/stores/digits-")
    assert hint == "a training with these options opens it: ./launch.sh train"


@BOTH
def test_verify_reads_a_whole_store_and_finds_nothing(say: Say, kind: str) -> None:
    store = build(kind)
    for words in (("photos.yaml", f"data.store={kind}"), (str(store),)):
        [line] = say(0, "verify", *words)
        assert line.startswith(f"{store}: {'4 files' if kind == 'pixels' else '16 images'} read, 0 damaged, 0 cannot")


def test_verify_names_the_images_of_a_damaged_pack_and_its_remedy_mends_it(say: Say) -> None:
    store = build("encoded")
    before = open_store(options("encoded"))
    [pack] = store.glob("*.pack")
    damage(pack)
    first, total, remedy = say(1, "verify", str(store))
    assert first.startswith("damaged: train/bee/")
    assert first.endswith(f"(in {pack}: its digest is not the one in the index)")
    assert ": 16 images read, 1 damaged, 0 cannot be decoded; " in total
    command = f"rm -r {pack}; ./launch.sh data prepare CONFIG"
    assert remedy == f"remove what is damaged, and have it built again: {command}"
    subprocess.run(command.partition(";")[0].split(), check=True)
    say(0, "prepare", "photos.yaml", "data.store=encoded")
    say(0, "verify", str(store))
    assert open_store(options("encoded")).fingerprint == before.fingerprint


def test_verify_names_a_damaged_file_of_decoded_images_and_its_remedy_mends_it(say: Say) -> None:
    store = build("pixels")
    damage(store / "test.images.npy")
    first, _, remedy = say(1, "verify", "photos.yaml")
    assert first == f"damaged: {store}/test.images.npy (its hash is not the one in meta.json)"
    assert f" rm -r {store}; " in remedy
    shutil.rmtree(store)
    say(0, "prepare", "photos.yaml")
    say(0, "verify", "photos.yaml")


def test_verify_names_images_that_are_as_they_were_packed_and_cannot_be_decoded(say: Say) -> None:
    content = bytearray(picture(3, "PNG"))
    content[content.index(b"IDAT") + 20] ^= 1  # packing looks at the beginning and the end alone
    for number in range(25):
        Path(f"photos/test/bee/{number + 100}.png").write_bytes(content)
    store = build("encoded")
    *lines, total, remedy = say(1, "verify", str(store))
    assert [line.split(" (")[0] for line in lines[:2]] == [f"cannot be decoded: test/bee/{100 + n}.png" for n in (0, 1)]
    assert lines[20:] == ["cannot be decoded: 5 more"]
    assert ": 41 images read, 0 damaged, 25 cannot be decoded; " in total
    assert remedy == ("repair or remove these files where the images are, and then: ./launch.sh data prepare CONFIG")


def test_verify_of_a_store_whose_pack_is_gone_is_one_line() -> None:
    store = build("encoded")
    [pack] = store.glob("*.pack")
    pack.unlink()
    with pytest.raises(RunError, match=f"^{pack} cannot be read .*; ./launch.sh data prepare CONFIG packs what is"):
        main(["verify", str(store)])


@BOTH
def test_what_is_noted_and_prepared_is_the_store_and_not_its_copy_on_the_disk_of_a_node(kind: str) -> None:
    assert build(kind, stage="disk") == build(kind)
    assert len(list(Path("disk").glob("*/meta.json"))) == 1


def test_list_of_an_empty_root(say: Say) -> None:
    assert say(0, "list") == ["data/stores: nothing is kept there"]
    assert say(0, "list", "--json") == ["[]"]
    assert say(0, "prune") == ["0.0 MB can go"]
    assert say(0, "prune", "--delete") == []
    assert not Path("data").exists()


def test_list_shows_both_kinds_and_who_uses_them(say: Say, here: Path) -> None:
    Path("data/stores").mkdir(parents=True)
    Path("data/stores/mine").mkdir()  # of somebody's own
    pixels, encoded = build("pixels"), build("encoded")
    a_run(pixels, "a"), a_run(encoded, "b"), a_run(encoded, "c")
    shutil.rmtree("runs/c")
    text = "\n".join(say(0, "list")) + "\n"
    assert re.search(rf"^{pixels}: pixels, .*\n  used by {here}/runs/a\n", text, re.MULTILINE)
    uses = f"  used by {here}/runs/b\n  opened by what was removed: {here}/runs/c\n"
    assert re.search(rf"^{encoded}: encoded, .*\n{uses}", text, re.MULTILINE)
    assert text.count("\n") == 5
    found = {Path(each["path"]): each for each in json.loads("\n".join(say(0, "list", "data.root=data", "--json")))}
    assert found.keys() == {pixels, encoded}
    assert [each["images"] for each in found.values()] == 2 * [{"train": 12, "test": 4}]
    assert found[encoded]["uses"] == {f"{here}/runs/b": "used", f"{here}/runs/c": "removed"}
    assert found[encoded]["bytes"] == sum(path.stat().st_size for path in encoded.iterdir() if path.is_file())


@BOTH
@later
def test_prune_keeps_what_a_run_uses_and_removes_it_once_the_run_is_gone(say: Say, kind: str, here: Path) -> None:
    store = build(kind)
    run_dir = a_run(store)
    assert say(0, "prune", "--delete")[2:] == [f"  stays: used by {here}/runs/a"]
    assert f"  stays: used by {here}/runs/a" in say(1, "prune", "--delete", str(store))  # also by its name
    shutil.rmtree(run_dir)
    assert say(0, "prune")[2:] == ["  can go: 0.0 MB", "0.0 MB can go; add --delete"]
    assert names() == {store.name}
    assert say(0, "prune", "--delete")[2:] == ["  removed: 0.0 MB"]
    assert names() == set()


@later
def test_a_store_goes_once_its_runs_have_trained_on_other_images(say: Say, here: Path) -> None:
    """The folder was touched: the same images make a new store. Another one was added: other images do."""
    first = build("pixels")
    a_run(first), a_run(first, "old")
    os.utime("photos/train/ant/0.png", (1, 1))
    second = build("pixels")
    a_run(second)
    Path("photos/train/ant/70.png").write_bytes(picture(70, "PNG"))
    third = build("pixels")
    a_run(third, "old")
    lines = say(0, "prune", "--delete")
    assert f"  opened before by what trains on other images now: {here}/runs/old, {here}/runs/a" in lines
    assert names() == {second.name, third.name}


@later
def test_a_start_that_was_refused_does_not_make_a_store_the_one_that_its_run_uses(say: Say) -> None:
    first = build("pixels")
    run_dir = a_run(first)
    Path("photos/train/ant/70.png").write_bytes(picture(70, "PNG"))
    second = build("pixels")
    note_run(second, run_dir)  # opened, and then refused: the checkpoint is of other images
    say(0, "prune", "--delete")
    assert names() == {first.name}


@later
def test_a_store_to_which_images_were_added_is_used_by_the_runs_of_before(say: Say, here: Path) -> None:
    store = build("encoded")
    a_run(store)
    Path("photos/train/ant/70.png").write_bytes(picture(70, "PNG"))
    say(0, "prepare", "photos.yaml", "data.store=encoded", "--anyway")
    assert say(0, "prune", "--delete")[-1] == f"  stays: used by {here}/runs/a"
    assert names() == {store.name}


@later
def test_a_run_without_a_checkpoint_uses_what_it_opened(say: Say, here: Path) -> None:
    store = build("pixels")
    a_run(store, trained_on=None)
    assert say(0, "prune", "--delete")[-1] == f"  stays: used by {here}/runs/a"
    assert names() == {store.name}


@later
def test_what_no_run_has_noted_goes_only_by_its_name(say: Say) -> None:
    """Of older versions, which left no notes, and what was prepared for runs to come."""
    store, other = build("pixels"), build("encoded")
    say(0, "prepare", "photos.yaml", "data.store=encoded")
    lines = say(0, "prune", "--delete")
    assert "  stays: no run has noted that it uses it, as older versions do not; to remove it, name it" in lines
    assert "  stays: it was prepared, and no run has opened it since; to remove it, name it" in lines
    assert names() == {store.name, other.name}
    say(0, "prune", "--delete", store.name)
    assert names() == {other.name}
    say(0, "prune", "--delete", f"{Path.cwd()}/{other}")
    assert names() == set()


@later
def test_what_was_prepared_after_its_runs_were_removed_stays(say: Say) -> None:
    store = build("encoded")
    shutil.rmtree(a_run(store))
    say(0, "prepare", "photos.yaml", "data.store=encoded")
    say(0, "prune", "--delete")
    assert names() == {store.name}


@later
@pytest.mark.parametrize("change", ["parent is gone", "another folder", "other host, mount point", "damaged note"])
def test_on_doubt_nothing_goes_even_by_its_name(
    say: Say, here: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build("encoded")
    shutil.rmtree(a_run(store))
    [note] = (store / "used").iterdir()
    if change == "damaged note":
        note.write_text("{")
    elif change == "other host, mount point":
        monkeypatch.setattr(uses.socket, "gethostname", lambda: "another")
        monkeypatch.setattr(Path, "is_mount", lambda _: True)
    else:
        Path("runs").rename("runs-before")
        Path("runs").mkdir() if change == "another folder" else None
    what = f"the one noted in {note}" if change == "damaged note" else f"{here}/runs/a"
    text = f"  stays: whether {what} uses it cannot be seen from here; if not: rm -r {store}"
    assert say(0, "prune", "--delete")[-1] == text
    assert say(1, "prune", "--delete", str(store))[-1] == text
    assert names() == {store.name}


@later
def test_a_run_of_another_host_that_was_removed_is_believed_to_be_where_the_folder_above_it_is_the_same(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(a_run(build("encoded")))
    monkeypatch.setattr(uses.socket, "gethostname", lambda: "another")
    say(0, "prune", "--delete")
    assert names() == set()


@later
def test_the_only_copy_of_the_images_goes_only_by_its_name(say: Say, here: Path) -> None:
    store = build("encoded")
    shutil.rmtree(a_run(store))
    shutil.rmtree("photos")
    text = f"  stays: its images are not in {here}/photos any more; to remove it, name it"
    assert say(0, "prune", "--delete")[-1] == text
    say(0, "prune", "--delete", store.name)
    assert names() == set()


def test_what_was_opened_a_moment_ago_stays(say: Say) -> None:
    store = build("pixels")
    shutil.rmtree(a_run(store))
    assert "within the last ten minutes" in say(0, "prune", "--delete")[-1]
    assert names() == {store.name}


@BOTH
@later
def test_what_somebody_builds_stays(say: Say, kind: str) -> None:
    """The lock is held by a process of another host, which beats."""
    store = build(kind)
    shutil.rmtree(a_run(store))
    descriptor = held_elsewhere(Path(f"{store}.lock"))
    assert say(0, "prune", "--delete")[-1] == "  stays: process 77 on host elsewhere works at it"
    os.utime(f"{store}.lock", (1, 1))  # silent, but the lock itself is held
    assert say(1, "prune", "--delete")[-1] == "  left alone: somebody works at it"
    assert names() == {store.name}
    os.close(descriptor)
    say(0, "prune", "--delete")
    assert names() == set()


@later
@pytest.mark.parametrize("seen", ["before", "meanwhile"])
def test_what_somebody_adds_to_without_locks_stays(say: Say, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its journal says which process of another host packs, and beats."""
    store = build("encoded")
    shutil.rmtree(a_run(store))
    journal = store / "0123.journal"
    lines = [{"builder": {"host": "elsewhere", "boot": "b", "pid": 77, "pid_started": 1}}, {"key": "train/ant/0.png"}]
    rename = Path.rename

    def write_lines() -> None:
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def and_meanwhile(path: Path, target: Path) -> Path:
        if path == store:
            write_lines()
        return rename(path, target)

    if seen == "before":
        write_lines()
        assert say(0, "list")[0].endswith(", process 77 on host elsewhere works at it")
        assert say(1, "prune", "--delete", store.name)[-1] == "  stays: process 77 on host elsewhere works at it"
    else:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", and_meanwhile)
            assert say(1, "prune", "--delete")[-1] == "  left alone: process 77 on host elsewhere works at it"
    assert names() == {store.name}
    os.utime(journal, (1, 1))  # silent
    say(0, "prune", "--delete", store.name)
    assert names() == set()


@later
@BOTH
def test_who_waits_for_the_lock_of_a_removed_store_and_who_comes_after_have_the_same_lock(say: Say, kind: str) -> None:
    store = build(kind)
    shutil.rmtree(a_run(store))
    before = Path(f"{store}.lock").stat().st_ino
    say(0, "prune", "--delete")
    assert names() == set()
    assert Path(f"{store}.lock").stat().st_ino == before


@later
def test_a_store_that_a_run_opens_meanwhile_is_put_back(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build("encoded")
    run_dir = a_run(store)
    shutil.rmtree(run_dir)
    rename = Path.rename

    def and_meanwhile(path: Path, target: Path) -> Path:
        if path == store:
            a_run(store)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", and_meanwhile)
    assert say(1, "prune", "--delete")[-1] == "  left alone: a run has just opened it"
    assert names() == {store.name}
    say(0, "verify", str(store))


def test_what_killed_builds_left_goes_and_what_a_living_one_makes_does_not(say: Say) -> None:
    stores = Path("data/stores")
    stores.mkdir(parents=True)
    for name, process in (("dead", this_process() | {"pid_started": 1}), ("silent", {"host": "elsewhere", "pid": 7})):
        write(stores / f".digits-16.{name}.tmp" / "builder.json", process)
        (stores / f".digits-16.{name}.tmp" / "half").write_bytes(bytes(1_000_000))
    os.utime(stores / ".digits-16.silent.tmp", (1, 1))
    write(stores / ".digits-16.living.tmp" / "builder.json", this_process() | {"pid": os.getppid(), "host": "other"})
    assert say(0, "list") == [
        f"{stores}/.digits-16.dead.tmp: unfinished, 1.0 MB",
        f"{stores}/.digits-16.living.tmp: unfinished, 0.0 MB, process {os.getppid()} on host other works at it",
        f"{stores}/.digits-16.silent.tmp: unfinished, 1.0 MB",
    ]
    assert say(0, "prune", "--delete").count("  removed: 1.0 MB") == 2
    assert names() == {".digits-16.living.tmp"}


def test_an_encoded_store_that_a_killed_build_left_goes_after_a_day(say: Say) -> None:
    store = build("encoded")
    (store / "meta.json").unlink()
    assert "somebody may still build it" in say(0, "prune", "--delete")[-1]
    for path in store.iterdir():
        os.utime(path, (path.stat().st_mtime - 2 * DAY_S,) * 2)
    say(0, "prune", "--delete")
    assert names() == set()


def test_what_was_decoded_beside_files_that_could_not_be_goes_only_by_its_name(say: Say) -> None:
    Path("photos/train/ant/0.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="1 of 16 files cannot be read as images"):
        build("pixels")
    [kept] = names()
    assert kept.endswith(".decoded")
    line, stays = say(0, "prune", "--delete")
    assert line.startswith(f"data/stores/{kept}: refused, 0.0 MB")
    assert stays.startswith("  stays: the next build takes it up")
    say(0, "prune", "--delete", kept)
    assert names() == set()


def test_packs_that_do_not_count_go_after_a_day_unless_a_run_that_is_alive_may_read_them(say: Say) -> None:
    store = build("encoded")
    run_dir = a_run(store)
    [pack] = store.glob("*.pack")
    old, new, mine = store / "0123.pack", store / "4567.pack", store / "notes.txt"
    for path in (old, new, mine):
        path.write_bytes(pack.read_bytes())
    for path in (old, mine):
        os.utime(path, (path.stat().st_mtime - 2 * DAY_S,) * 2)
    with Lease.acquire(run_dir):
        say(0, "prune", "--delete")
        assert old.exists()
    lines = say(0, "prune")
    assert "  can go: 0.0 MB in 1 files that do not count" in lines
    say(0, "prune", "--delete")
    assert {path.name for path in store.glob("*.pack")} == {pack.name, new.name}
    assert mine.exists()
    say(0, "verify", str(store))


def test_a_symbolic_link_to_a_store_is_left_alone(say: Say) -> None:
    store = build("pixels")
    shutil.move(store, "elsewhere")
    store.symlink_to(Path("elsewhere").absolute())
    assert say(1, "prune", "--delete", store.name)[-1] == "  stays: it is a symbolic link"
    assert Path("elsewhere/meta.json").exists()


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """All below ``data`` is of a file system that is mounted so; root may write everywhere else."""
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and Path(path).absolute().is_relative_to(
            Path("data").absolute()
        ):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *more, **named)

    def refuse_folder(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse_folder)


@BOTH
@later
def test_a_read_only_root_is_shown_and_left_alone(say: Say, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(kind)
    shutil.rmtree(a_run(store))
    before = {path: path.stat().st_mtime for path in Path("data").rglob("*")}
    with monkeypatch.context() as patched:
        read_only(patched)
        note_run(store, Path("runs/b"))  # nothing happens
        say(0, "prepare", "photos.yaml", f"data.store={kind}") if kind == "pixels" else None
        say(0, "verify", str(store))
        assert len(say(0, "list")) == 2
        assert say(0, "prune")[-1] == "0.0 MB can go; add --delete"
        assert "left alone: [Errno 30] Read-only file system" in say(1, "prune", "--delete")[-1]
    assert {path: path.stat().st_mtime for path in Path("data").rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "'' is no command; use prepare, verify, list, prune"),
        (["prepair"], "'prepair' is no command; did you mean 'prepare'?"),
        (["list", "--delete"], "unrecognized arguments: --delete; --help shows the usage"),
        (["prepare", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["prepare", "photos.yaml", "data.folder=nowhere"], "data.folder=nowhere"),
        (["prepare", "photos.yaml", "data.sizes=1"], "unknown option 'data.sizes'"),
        (["prepare", "data.source=cifar10"], "data.source=cifar10 needs a recipe"),
        (["verify", "photos.yaml"], "data.source=imagefolder: no decoded images in "),
        (["verify", "photos.yaml", "data.store=encoded"], "data.source=imagefolder: no packed images in "),
        (["verify", "photos"], "photos: there is no store"),
        (["prune", "photos"], "photos: nothing is kept there; ./launch.sh data list shows"),
        (["prune", "nothing"], "data/stores/nothing: nothing is kept there"),
    ],
)
def test_bad_input_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(words)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("data").exists()


def test_the_process_ends_with_the_exit_codes_of_the_others() -> None:
    def ended(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "senet.data", *words]
        env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
        return done.returncode, done.stderr

    assert ended("list") == (0, "")
    assert ended("prepair") == (2, "data: 'prepair' is no command; did you mean 'prepare'?\n")
    store = build("encoded")
    [pack] = store.glob("*.pack")
    pack.unlink()
    code, error = ended("verify", str(store))
    assert (code, error.count("\n")) == (1, 1)


def test_each_command_tells_what_it_does(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    overview = "\n".join(say(0, "--help"))
    for name in ("prepare", "verify", "list", "prune"):
        assert f"\n  {name} " in overview
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: ./launch.sh data {name} ")


def test_a_training_leaves_its_note_in_the_store_that_it_opens(
    say: Say, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(tmp_path / "runs/one", "train.epochs=1", "train.amp=off", f"data.root={tmp_path}/data")
    [stored] = stored_below(tmp_path / "data")
    assert stored.uses == {str(tmp_path / "runs/one"): "used"}
    monkeypatch.setattr(removal, "_JUST_S", 0.0)
    assert "stays: used by" in say(0, "prune", f"data.root={tmp_path}/data", "--delete")[-1]
    shutil.rmtree(tmp_path / "runs/one")
    say(0, "prune", f"data.root={tmp_path}/data", "--delete")
    assert stored_below(tmp_path / "data") == []


@BOTH
def test_a_start_that_is_refused_is_no_use_of_a_store(train_here: Train, tmp_path: Path, kind: str) -> None:
    run_dir, data = tmp_path / "runs/one", ("data.source=imagefolder", "data.folder=photos", f"data.store={kind}")
    given = (*data, f"data.root={tmp_path}/data", "train.amp=off", "train.epochs=1")
    with pytest.raises(ConfigError, match="is more than the 12 training images"):
        train_here(run_dir, *given, "train.global_batch_size=64")
    [store] = stored_below(tmp_path / "data")
    assert list(read_notes(store.path)) == []
    train_here(run_dir, *given, "train.global_batch_size=4")
    assert [note.run_dir for note in read_notes(store.path)] == [str(run_dir)]
