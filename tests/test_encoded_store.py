"""Stores of files as they are: what is in them, how they are built by any number of processes, what they refuse."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import photos_index
import pytest
from PIL import Image, ImageFile

from senet.config.options import DataConfig
from senet.data.sources.choice import open_files
from senet.data.sources.index import SPLITS, Place
from senet.data.sources.intact import refuse_damaged
from senet.data.sources.pictures import read_image
from senet.data.stores import encoded, journal, packing, staging
from senet.data.stores.choice import open_store, prepare
from senet.data.stores.encoded import EncodedStore, encoded_folder
from senet.data.stores.verify import verify_store
from senet.errors import ConfigError
from senet.rundir.locks import this_process
from tests.harness import run_ranks, wait_until
from tests.test_locks import failing

KINDS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}


def picture(number: int, kind: str = "JPEG") -> bytes:
    """One of its own for each number, of a size of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 7, 30 + number % 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten training and five test images of each of two classes, in five formats."""
    for label, name in enumerate(("ant", "bee")):
        for number, (suffix, kind) in enumerate(3 * list(KINDS.items())):
            split = "train" if number < 10 else "test"
            write(tmp_path / "photos" / split / name / f"{number:02}{suffix}", picture(100 * label + number, kind))
    return tmp_path / "photos"


def options(folder: Path, **more: Any) -> DataConfig:
    return DataConfig(
        **{"source": "imagefolder", "folder": str(folder), "root": str(folder.parent / "data"), "store": "encoded"}
        | more
    )


def opened(config: DataConfig, **how: Any) -> EncodedStore:
    store = open_store(config, **how)
    assert isinstance(store, EncodedStore)
    return store


def refusal(config: DataConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        open_store(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(store: EncodedStore) -> list[tuple[str, int, bytes]]:
    return [
        (split.name(row), int(split.labels[row]), split.read(row))
        for split in (store.train, store.test)
        for row in range(len(split))
    ]


def in_source(config: DataConfig) -> list[tuple[str, int, bytes]]:
    """The same, from the files."""
    files = open_files(config)
    assert files is not None
    found = [files.index(split) for split in SPLITS]
    names = files.in_order(found[0].classes)
    return [
        (index.keys[row], names.index(index.classes[index.labels[row]]), index.place(row).read())
        for index in found
        for row in range(len(index))
    ]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from the source."""
    found: list[str] = []
    original = Place.read

    def recorded(place: Place) -> bytes:
        found.append("/".join(place.file.parts[-3:]))
        return original(place)

    monkeypatch.setattr(Place, "read", recorded)
    return found


def packs(config: DataConfig) -> list[Path]:
    return sorted(encoded_folder(config).glob("*.pack"))


# ---------------------------------------------------------------- what is in a store


def shards_of(folder: Path) -> Path:
    """The same images in tar archives, several in each."""
    for split in SPLITS:
        for number, path in enumerate(sorted((folder / split).rglob("*.*"))):
            with tarfile.open(folder.parent / "shards" / f"{split}-{number // 7}.tar", "a") as tar:
                tar.add(path, f"{number}{path.suffix}")
                label = tarfile.TarInfo(f"{number}.cls")
                label.size = 3
                tar.addfile(label, io.BytesIO(path.parent.name.encode()))
    return folder.parent / "shards"


@pytest.mark.parametrize("source", ["imagefolder", "table", "webdataset"])
def test_a_store_has_the_bytes_of_the_files_in_the_order_of_the_source(folder: Path, source: str) -> None:
    config = options(folder, source=source)
    if source == "webdataset":
        (folder.parent / "shards").mkdir()
        config = options(shards_of(folder), source=source)
    elif source == "table":
        rows = [f"{path},{path.parent.name},{path.parts[-3]}" for path in sorted(folder.rglob("*.*"), reverse=True)]
        (folder / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
        config = options(folder, source=source, table=str(folder / "labels.csv"))
    store = opened(config)
    assert contents(store) == in_source(config)
    assert store.classes == ("ant", "bee")
    assert store.train.labels.dtype == np.int64
    assert (len(store.train), len(store.test)) == (20, 10)
    images = sum(len(content) for *_, content in contents(store))
    assert sum(path.stat().st_size for path in packs(config)) == images


def test_nothing_is_decoded_to_be_packed_but_what_has_no_mark_at_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    load = ImageFile.ImageFile.load

    def recorded(image: ImageFile.ImageFile) -> Any:
        decoded.append(image.format or "")
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", recorded)
    opened(options(folder))
    assert set(decoded) == {"BMP"}


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: run as root")


def test_an_open_store_needs_its_source_no_more(folder: Path) -> None:
    config = options(folder)
    expected = contents(opened(config))
    shutil.rmtree(folder)
    assert contents(opened(config)) == expected


def test_each_image_that_is_read_is_compared_with_its_digest(folder: Path) -> None:
    config = options(folder)
    before = contents(opened(config))
    [pack] = encoded_folder(config).glob("*.pack")
    content = bytearray(pack.read_bytes())
    content[len(before[0][2]) + 5] ^= 1  # a bit of the second one
    pack.write_bytes(content)
    train = opened(config).train
    assert train.read(0) == before[0][2]
    with pytest.raises(OSError, match=f"^in {pack}: its digest is not the one in the index$"):
        train.read(1)


def test_a_read_is_tried_again_while_the_file_system_does_not_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = opened(options(folder)).train
    expected, plain, failures = train.read(3), os.pread, [errno.ESTALE, errno.ESTALE]  # also of a file opened anew

    def pread(*place: int) -> bytes:
        if failures:
            raise OSError(failures.pop(), "away")
        return plain(*place)

    monkeypatch.setattr(os, "pread", pread)
    assert train.read(3) == expected
    assert not failures
    assert "away" in caplog.text
    failures.append(errno.EACCES)
    with pytest.raises(PermissionError):
        train.read(3)


@ROOT
def test_a_store_may_be_read_only(folder: Path) -> None:
    config = options(folder)
    expected = contents(opened(config))
    subprocess.run(["mount", "--bind", config.root, config.root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", config.root], check=True)
        assert contents(opened(config)) == expected
        assert "Read-only file system" in refusal(options(folder, root=f"{config.root}/stores"))
    finally:
        subprocess.run(["umount", "--lazy", config.root], check=True)


TOUCHED = """
import json, sys
from senet.data.stores.choice import open_store
from senet.config.options import DataConfig
touched = []
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir"):
        touched.append(str(arguments[0]))
sys.addaudithook(hook)
store = open_store(DataConfig(source="imagefolder", folder=sys.argv[1], root=sys.argv[2], store="encoded"))
store.train.read(len(store.train) - 1)
print(json.dumps(touched))
"""


def test_a_start_touches_the_files_of_the_store_alone(tmp_path: Path) -> None:
    store, given = photos_index.lay(tmp_path, 20_000)
    folder, root = (word.partition("=")[2] for word in given[1:3])
    (Path(folder) / "train").mkdir()
    done = subprocess.run([sys.executable, "-c", TOUCHED, folder, root], capture_output=True, text=True, check=True)
    touched = json.loads(done.stdout)
    assert {path for path in touched if path.startswith(str(tmp_path))} == {str(path) for path in store.iterdir()}
    found = open_store(DataConfig(source="imagefolder", folder=folder, root=root, store="encoded"))
    assert isinstance(found, EncodedStore)
    assert (len(found.train), len(found.test)) == (19_800, 200)
    assert found.test.name(199) == "train/n00000009/n00000009_19999.JPEG"


def test_a_start_says_when_the_store_was_built(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write(folder / "train/ant/.hidden", b"")
    opened(options(folder))
    caplog.clear()
    opened(options(folder))
    built = json.loads((encoded_folder(options(folder)) / "meta.json").read_text())["built"]
    assert [record.message for record in caplog.records] == [
        f"30 images, packed {built}, without some of what was there: hidden: train/ant/.hidden"
    ]
    caplog.clear()
    opened(options(folder), verify=False)
    assert not caplog.records


def test_a_store_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no packed images in .*/imagefolder-\w{16}\.encoded; name the data\.root="):
        open_store(options(folder), build=False)


# ---------------------------------------------------------------- adding


def test_adding_reads_what_is_new_alone_and_a_store_built_at_once_has_the_same_fingerprint(
    folder: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = options(folder)
    before = opened(config)
    was = contents(before)
    read.clear()
    write(folder / "train/ant/03b.jpg", picture(1000))
    write(folder / "train/cat/1.jpg", picture(1001))
    write(folder / "train/bee/02.webp", picture(1002))
    (folder / "test/bee/10.jpg").unlink()
    os.utime(folder / "train/bee/00.jpg")
    assert opened(config).fingerprint == before.fingerprint  # a start looks at no folder
    assert read == []
    _, packed = prepare(config)
    assert packed == (2, 1, 1, 28)
    assert str(packed) == "2 images added, 1 changed, 1 removed, 28 kept"
    assert str(packed) in caplog.text
    assert sorted(read) == ["train/ant/03b.jpg", "train/bee/00.jpg", "train/bee/02.webp", "train/cat/1.jpg"]
    store = opened(config)
    assert contents(store) == in_source(config)
    [first, _] = sorted(path.stat().st_size for path in packs(config))
    assert first == sum(len(picture(number)) for number in (1000, 1001, 1002))  # not what was touched
    assert contents(before) == was  # of a training that is running
    anew = opened(options(folder, root=str(folder.parent / "other")))
    assert anew.fingerprint == store.fingerprint != before.fingerprint


def test_what_has_not_changed_leaves_the_store_as_it_is(folder: Path, read: list[str]) -> None:
    config = options(folder)
    opened(config)
    was = {path.name: path.read_bytes() for path in encoded_folder(config).iterdir()}
    assert prepare(config)[1] == (0, 0, 0, 30)
    assert {path.name: path.read_bytes() for path in encoded_folder(config).iterdir()} == was
    assert len(read) == 30


def test_a_label_that_has_changed_is_another_content(folder: Path, read: list[str]) -> None:
    table = folder / "labels.csv"
    rows = [f"{path},{path.parent.name},{path.parts[-3]}" for path in sorted(folder.rglob("*.*"))]
    table.write_text("\n".join(["path,label,split", *rows]))
    config = options(folder, source="table", table=str(table))
    before = opened(config)
    table.write_text(table.read_text().replace("ant,train", "bee,train", 1))
    prepare(config)
    after = opened(config)
    assert after.train.labels.sum() == before.train.labels.sum() + 1
    assert after.fingerprint != before.fingerprint
    assert len(read) == 30


def open_packs() -> int:
    names = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            names.append(path.readlink())
    return sum(name.suffix == ".pack" for name in names)


def test_of_a_store_of_many_packs_few_are_open_and_any_number_of_threads_reads_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "_MOST_OPEN", 2)
    config = options(folder)
    opened(config)
    for number in range(6):
        write(folder / f"train/ant/{number:02}b.jpg", picture(1000 + number))
        prepare(config)
    assert len(packs(config)) == 7
    store = opened(config)
    assert open_packs() == 2
    rows = np.random.default_rng(0).integers(0, len(store.train), 2000).tolist()
    expected = [content for *_, content in in_source(config)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(store.train.read, rows)) == [expected[row] for row in rows]
    assert open_packs() == 2
    del store
    assert open_packs() == 0


# ---------------------------------------------------------------- kills, several builders


KILLED = """
import os, signal, sys
from senet.data.sources.index import Place
from senet.data.stores import journal
from senet.data.stores.choice import open_store
from senet.config.options import DataConfig
original, count = Place.read, iter(range(1000))
def read(place):
    if next(count) == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(place)
Place.read = read
journal._CHUNK = 5000
open_store(DataConfig(source="imagefolder", folder=sys.argv[1], root=sys.argv[2], store="encoded", decode_threads=1))
"""


def test_a_killed_builder_is_gone_on_from_and_what_it_wrote_is_not_read_again(folder: Path, read: list[str]) -> None:
    config = options(folder)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), config.root], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    store = encoded_folder(config)
    assert not (store / "meta.json").exists()
    [killed] = store.glob("*.journal")
    sure = [json.loads(line)["key"] for line in killed.read_text().splitlines()[1:]]
    assert 5 < len(sure) < 17
    with killed.open("a") as file:
        file.write('{"key": "train/bee/0')  # cut off
    expected = [name for name, *_ in in_source(config)]
    read.clear()
    assert contents(opened(config)) == in_source(config)
    assert sorted(read[: 30 - len(sure)]) == sorted(set(expected) - set(sure))
    written = sum(path.stat().st_size for path in packs(config))
    assert written == sum(len(content) for *_, content in in_source(config))
    assert not list(store.glob("*.journal"))
    anew = opened(options(folder, root=str(folder.parent / "other")))
    assert anew.fingerprint == opened(config).fingerprint


def test_lines_of_a_journal_whose_bytes_are_gone_are_not_believed(folder: Path) -> None:
    config = options(folder)
    subprocess.run([sys.executable, "-c", KILLED, str(folder), config.root], capture_output=True, check=False)
    [pack] = packs(config)
    os.truncate(pack, pack.stat().st_size // 2)
    assert contents(opened(config)) == in_source(config)


@pytest.mark.parametrize("kind", ["locks", "signs of life alone", "neither"])
@pytest.mark.ranks
def test_two_processes_build_at_once(folder: Path, kind: str) -> None:
    (folder.parent / "meet").mkdir()
    config = options(folder)
    found = run_ranks(2, _build, config, kind, str(folder.parent / "meet"), tmp_path=folder.parent)
    assert found == [opened(config).fingerprint] * 2
    assert contents(opened(config)) == in_source(config)
    assert prepare(config)[1] == (0, 0, 0, 30)
    assert not list(encoded_folder(config).glob("*.journal"))
    assert len(packs(config)) == (2 if kind == "neither" else 1)


def _build(config: DataConfig, kind: str, meet: str) -> str:
    """``neither``: both processes are in the middle of packing at once; ``signs of life alone``: one is."""
    original, count = Place.read, iter(range(1000))

    def journals() -> list[Path]:
        return list(encoded_folder(config).glob("*.journal"))

    def together() -> None:
        Path(meet, os.environ["RANK"]).touch()
        wait_until(lambda: len(list(Path(meet).iterdir())) == 2)

    def meeting(place: Place) -> bytes:
        if next(count) == 10:
            if kind == "neither":
                together()
            else:  # the other has begun, and waits
                wait_until(lambda: len(journals()) == 2)
        return original(place)

    if kind != "locks":
        fcntl.flock = failing(errno.ENOLCK)
    if kind == "neither":
        packing._PATIENCE_S = 0.0
        Place.read = meeting  # type: ignore[method-assign]
    elif kind == "locks":
        together()
    elif os.environ["RANK"] == "0":
        Place.read = meeting  # type: ignore[method-assign]
    else:  # two at the very same moment may both build
        wait_until(journals)
    store = open_store(config)
    assert isinstance(store, EncodedStore)
    assert verify_store(encoded_folder(config))[1:] == ([], [], [])
    return store.fingerprint


@pytest.mark.parametrize("lives", [True, False])
def test_a_builder_that_gives_no_sign_of_life_is_not_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lives: bool
) -> None:
    config = options(folder)
    store = encoded_folder(config)
    store.mkdir(parents=True)
    other = store / "0.journal"
    other.write_text(json.dumps({"builder": this_process() | {"host": "elsewhere", "pid": 77}}) + "\n")
    monkeypatch.setattr(packing, "_PATIENCE_S", 5.0 if lives else 1.0)
    monkeypatch.setattr(journal, "_POLL_S", 0.01)
    caplog.set_level("INFO")

    def work_elsewhere() -> None:
        for _ in range(75):  # half as long again as it would be waited for
            time.sleep(0.1)
            os.utime(other)
        shutil.copytree(encoded_folder(elsewhere), store, dirs_exist_ok=True)
        other.unlink()

    elsewhere = options(folder, root=str(folder.parent / "elsewhere"))
    expected = opened(elsewhere).fingerprint
    thread = Thread(target=work_elsewhere)
    if lives:
        thread.start()
    assert opened(config).fingerprint == expected
    assert "waiting for process 77 on host elsewhere, which packs images" in caplog.text
    if lives:
        thread.join()
    assert ([path.name for path in packs(config)] == [path.name for path in packs(elsewhere)]) == lives


# ---------------------------------------------------------------- what is refused


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def with_thumbnail(content: bytes) -> bytes:
    """A JPEG that has another before its pixels, as cameras write it."""
    return content[:2] + b"\xff\xe1" + (len(picture(1)) + 2).to_bytes(2, "big") + picture(1) + content[2:]


def accepts(look: Callable[[bytes], object], content: bytes) -> bool:
    try:
        look(content)
    except Exception:
        return False
    return True


def test_all_that_are_no_images_are_named_and_the_others_are_packed_once(folder: Path, read: list[str]) -> None:
    wide = io.BytesIO()
    Image.new("1", (20000, 10000)).save(wide, "PNG")
    bad = {
        "00.jpg": cut(picture(0)),
        "01.png": cut(picture(0, "PNG")),
        "02.webp": picture(0, "WEBP")[:-1],
        "03.gif": cut(picture(0, "GIF")),
        "04.bmp": cut(picture(0, "BMP")),
        "05.jpg": cut(with_thumbnail(picture(0))),
        "06.png": b"no image",
        "07.webp": wide.getvalue(),
    }
    good = {name: (folder / "train/bee" / name).read_bytes() for name in bad}
    for name, content in bad.items():
        write(folder / "train/bee" / name, content)
    config = options(folder)
    told = refusal(config)
    assert "8 of 30 files cannot be read as images: train/bee/00.jpg (" in told
    assert all(f"train/bee/{name} (" in told for name in bad)
    assert "train/bee/06.png (no image)" in told
    assert "200000000 pixels" in told
    as_pixels = refusal(options(folder, store="pixels"))
    assert as_pixels.partition("; repair")[0] == told.partition("; repair")[0]
    for name, content in good.items():
        write(folder / "train/bee" / name, content)
    read.clear()
    assert prepare(config)[1] == (30, 0, 0, 0)
    assert sorted(read) == [f"train/bee/{name}" for name in bad]
    assert contents(opened(config)) == in_source(config)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF"])
def test_what_is_cut_off_is_refused_where_decoding_refuses_it(kind: str) -> None:
    content = picture(3, kind)
    forms = [content[:length] for length in (*range(0, len(content), 101), *range(len(content) - 12, len(content)))]
    forms += [content, content + b"\0" * 20, content + b"trailer"]
    if kind == "JPEG":
        forms += [with_thumbnail(form) for form in forms]
    whole = [accepts(lambda content: read_image(io.BytesIO(content)), form) for form in forms]
    assert [accepts(refuse_damaged, form) for form in forms] == whole
    assert {True, False} == set(whole)


def test_pixels_of_an_unknown_range_are_refused(folder: Path) -> None:
    Image.fromarray(np.full((8, 8), 70000, dtype=np.int32)).save(folder / "test/ant/deep.tif")
    assert "test/ant/deep.tif (its pixels are numbers from 70000 to 70000" in refusal(options(folder))


def test_what_pixels_refuse_before_they_decode_is_refused_here_too(folder: Path) -> None:
    (folder / "train/ant/empty.jpg").touch()
    assert "1 files are empty: train/ant/empty.jpg" in refusal(options(folder))
    table = folder / "labels.csv"
    table.write_text("path,label,split\nnone.jpg,ant,train\ntrain/bee/00.jpg,bee,train\ntest/bee/10.jpg,bee,test\n")
    assert "missing file: none.jpg, line 2" in refusal(options(folder, source="table", table=str(table)))
    table.write_text("path,label,split\ntrain/bee/00.jpg,bee,train\ntest/bee/10.jpg,bee,test\n")
    assert "all training images are of one class, bee" in refusal(options(folder, source="table", table=str(table)))
    assert packs(options(folder)) == []


def rehashed(store: Path, name: str) -> None:
    meta = json.loads((store / "meta.json").read_text())
    meta["sha256"][name] = hashlib.sha256((store / name).read_bytes()).hexdigest()
    (store / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("broken", ["bit", "hash", "label", "pickle", "meta", "newer"])
def test_a_damaged_index_is_refused_in_one_line(folder: Path, broken: str) -> None:
    config = options(folder)
    opened(config)
    store = encoded_folder(config)
    [index] = store.glob("*.rows.npy")
    rows = np.load(index)
    if broken == "bit":
        content = bytearray(index.read_bytes())
        content[-1] ^= 1
        index.write_bytes(content)
        assert f"{index} is damaged (its hash is not the one in meta.json); delete {store}" in refusal(config)
    elif broken == "hash":
        index.unlink()
        assert f"{index} is damaged ([Errno 2] No such file" in refusal(config)
    elif broken == "label":
        rows["label"][3] = 2
        np.save(index, rows)
        rehashed(store, index.name)
        assert f"{store}: labels from 0 to 2 for " in refusal(config)
    elif broken == "pickle":
        np.save(index, np.array([{}], dtype=object), allow_pickle=True)
        rehashed(store, index.name)
        assert f"{index} is damaged" in refusal(config)
    elif broken == "meta":
        (store / "meta.json").write_text('{"format": 1, "cla')
        assert f"{store}/meta.json is damaged; delete {store}" in refusal(config)
    else:
        meta = json.loads((store / "meta.json").read_text())
        (store / "meta.json").write_text(json.dumps(meta | {"format": 2}))
        assert f"{store} has format 2, this version reads 1 to 1; use the version that wrote it" in refusal(config)
        with pytest.raises(ConfigError, match="has format 2"):
            prepare(config)


@pytest.mark.parametrize("missing", [True, False])
def test_a_short_pack_is_refused_and_packed_again_where_that_is_asked_for(
    folder: Path, missing: bool, read: list[str]
) -> None:
    config = options(folder)
    opened(config)
    write(folder / "train/ant/new.jpg", picture(1000))
    prepare(config)
    pack = max(packs(config), key=lambda path: path.stat().st_size)
    if missing:
        pack.unlink()
        assert f"{pack} cannot be read (No such file or directory); ./launch.sh data prepare" in refusal(config)
    else:
        os.truncate(pack, pack.stat().st_size - 1)
        assert re.search(r"\.pack is damaged \([\d,]+ of [\d,]+ bytes are there\); ./launch.sh", refusal(config))
    read.clear()
    assert prepare(config)[1] == (0, 0, 0, 31)
    assert len(read) == 30
    assert contents(opened(config)) == in_source(config)


@ROOT
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_packed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    images = sum(path.stat().st_size for path in folder.rglob("*.*"))
    config = options(folder, root=str(folder.parent / "disk"))
    Path(config.root).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={images // 2}", "tmpfs", config.root], check=True)
    try:
        assert f"data.root={config.root}: the images take 0.0 GB, 0.0 GB are free" in refusal(config)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))  # a quota is not seen
        monkeypatch.setattr(journal, "_CHUNK", 5000)
        told = refusal(config)
        assert f"data.root={config.root}: [Errno 28] No space left on device; free some space" in told
        assert len(read) > 10
        subprocess.run(["mount", "-o", "remount,size=10m", config.root], check=True)
        before = len(read)
        assert contents(opened(config)) == in_source(config)
        assert len(read) - before < 30 + 30 - 5
    finally:
        subprocess.run(["umount", "--lazy", config.root], check=True)


@pytest.mark.parametrize("name", ["rows", "keys"])
def test_an_index_that_cannot_be_written_leaves_no_file(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def full(file: Any, values: np.ndarray) -> None:
        if file.name.endswith(f"{name}.npy"):
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(file, values)

    config = options(folder)
    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        assert "No space left on device; free some space" in refusal(config)
    assert not list(encoded_folder(config).glob("*.npy"))
    assert contents(opened(config)) == in_source(config)


# ---------------------------------------------------------------- copies on the disks of nodes


def staged(config: DataConfig) -> Path:
    return Path(config.stage) / encoded_folder(config).name


def test_a_store_is_copied_to_the_disk_of_a_node_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = options(folder, stage=str(folder.parent / "scratch"))
    expected = in_source(config)
    assert contents(opened(config)) == expected
    for pack in packs(config):
        pack.write_bytes(bytes(pack.stat().st_size))  # the copy is what is read
    monkeypatch.setattr(staging, "_replace", None)
    assert contents(opened(config)) == expected
    assert [path.name for path in Path(config.stage).iterdir() if path.suffix != ".lock"] == [staged(config).name]


@pytest.mark.parametrize("kind", ["encoded", "pixels"])
def test_a_copy_of_other_images_is_replaced_and_what_it_has_is_not_copied_again(folder: Path, kind: str) -> None:
    config = options(folder, stage=str(folder.parent / "scratch"), store=kind)
    open_store(config)
    if kind == "pixels":
        [copy] = [path for path in Path(config.stage).iterdir() if path.is_dir()]
        (copy / "meta.json").write_text("{}")
        (copy / "train.labels.npy").unlink()
    before = {path.stat().st_ino for path in Path(config.stage).rglob("*.pack")}
    write(folder / "train/ant/new.jpg", picture(1000))
    prepare(config)
    found = open_store(config)
    assert found.fingerprint == open_store(options(folder, store=kind)).fingerprint
    if isinstance(found, EncodedStore):
        assert contents(found) == in_source(config)
        assert len(list(staged(config).glob("*.npy"))) == 2
        assert before < {path.stat().st_ino for path in staged(config).glob("*.pack")}


@pytest.mark.parametrize("broken", ["pack", "npy"])
def test_a_short_copy_is_replaced(folder: Path, broken: str) -> None:
    config = options(folder, stage=str(folder.parent / "scratch"))
    open_store(config)
    for path in staged(config).glob(f"*.{broken}"):
        os.truncate(path, path.stat().st_size - 1)
    assert contents(opened(config)) == in_source(config)


def test_a_copy_is_verified_against_what_was_packed(folder: Path) -> None:
    config = options(folder)
    opened(config)
    [pack] = packs(config)
    content = bytearray(pack.read_bytes())
    content[100] ^= 1
    pack.write_bytes(content)
    assert verify_store(encoded_folder(config)).to_remove == [pack]
    told = refusal(options(folder, stage=str(folder.parent / "scratch")))
    named = r"train/ant/00\.jpg \(in .*encoded/.*\.pack: its digest.*\)"
    assert re.search(rf"data\.stage=.*scratch: the copy of .* is damaged: {named}; ", told)
    assert [path.suffix for path in (folder.parent / "scratch").iterdir()] == [".lock"]


def test_pixels_are_copied_too(folder: Path) -> None:
    config = options(folder, stage=str(folder.parent / "scratch"), store="pixels", image_size=16)
    store = open_store(config)
    assert not isinstance(store, EncodedStore)
    assert str(store.train[0].filename).startswith(config.stage)  # type: ignore[attr-defined]
    [copy] = [path for path in Path(config.stage).iterdir() if path.is_dir()]
    images = bytearray((copy / "train.images.npy").read_bytes())
    images[-1] ^= 1
    (copy / "train.images.npy").write_bytes(images)
    assert f"{copy}/train.images.npy is damaged" in refusal(config)
    assert verify_store(copy, copied=["train.images.npy"]).to_remove == [copy]
    assert verify_store(copy, copied=["train.labels.npy"]).damaged == []


def test_a_disk_without_room_for_a_copy_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = options(folder, stage=str(folder.parent / "scratch"))
    opened(options(folder))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert re.search(r"data\.stage=.*scratch: .* takes 0\.0 GB, 0\.0 GB are free; free some space", refusal(config))
    (folder.parent / "file").touch()
    told = refusal(options(folder, stage=str(folder.parent / "file/scratch")))
    assert re.search(r"data\.stage=.*file/scratch: .*Not a directory.*; choose another folder", told)
