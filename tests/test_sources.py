"""Sources of images: which files they read, in which order, with which labels; what they leave out, and refuse."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from senet.config.options import DataConfig
from senet.data.samplers import open_data
from senet.data.sources.choice import open_files, open_source
from senet.data.sources.index import Files, Index, by_number
from senet.errors import ConfigError

CLASSES = ("ant", "bee")


def picture(number: int, kind: str = "PNG") -> bytes:
    """One of its own for each number."""
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 255 - number, 7 * number % 256)).save(content, kind)
    return content.getvalue()


def write(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three training and two test images of each of two classes."""
    for label, name in enumerate(CLASSES):
        for number in range(5):
            split = "train" if number < 3 else "test"
            write(tmp_path / "photos" / split / name / f"{number}.png", picture(10 * label + number))
    return tmp_path / "photos"


def options(source: str, place: Path, **more: Any) -> DataConfig:
    option = "table" if source == "table" else "folder"
    root = str(place.parent / "data")
    return DataConfig(source=source, **{option: str(place)}, root=root, image_size=16, **more)  # type: ignore[arg-type]


def files_of(config: DataConfig) -> Files:
    files = open_files(config)
    assert files is not None
    return files


def refusal(config: DataConfig) -> str:
    """What is said before anything is decoded, on one line."""
    with pytest.raises(ConfigError) as caught:
        open_source(config, open_files(config))
    return str(caught.value)


def left_out(config: DataConfig) -> str:
    return open_source(config, open_files(config)).left_out


# ---------------------------------------------------------------- class folders


NESTED = ("9.png", "10.PNG", "a b.JPEG", "zoë.webp", "line\nbreak.jpg", "sub/1.png", "sub-1/2.png", "sub/sub/0.jpeg")


def test_images_in_folders_of_a_class_have_the_order_and_the_labels_of_torchvisions_image_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        for name in ("b", "a", "B", "a-1", "ä"):
            for file in NESTED:
                write(tmp_path / split / name / file, picture(1))
    listdir = os.listdir
    config = options("imagefolder", tmp_path)
    found = []
    for backwards in (False, True):
        with monkeypatch.context() as context:
            context.setattr(os, "listdir", lambda path, way=backwards: sorted(listdir(path), reverse=way))
            files = files_of(config)
            source = open_source(config, files)
            found.append((files.index("train").paths(), list(source.classes), source.labels["train"].tolist()))
    reference = ImageFolder(tmp_path / "train")
    assert found[0] == found[1]
    assert found[0] == ([path for path, _ in reference.samples], reference.classes, reference.targets)


def test_the_store_of_a_folder_has_the_name_that_earlier_versions_gave_it(folder: Path) -> None:
    facts = [
        f"{path.relative_to(folder)}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\0"
        for split in ("train", "test")
        for name in CLASSES
        for path in sorted((folder / split / name).iterdir())
    ]
    open_data(options("imagefolder", folder))
    key = hashlib.sha256("".join(facts).encode()).hexdigest()[:16]
    assert (folder.parent / "data/stores" / f"imagefolder-16-{key}" / "meta.json").exists()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_test_split_may_have_another_usual_name(folder: Path, name: str) -> None:
    expected = open_data(options("imagefolder", folder)).fingerprint
    (folder / "test").rename(folder / name)
    assert open_data(options("imagefolder", folder)).fingerprint == expected


def test_of_several_test_splits_test_is_read_and_the_others_are_mentioned(folder: Path) -> None:
    write(folder / "val/ant/0.png", picture(99))
    config = options("imagefolder", folder)
    assert files_of(config).index("test").keys[0] == "test/ant/3.png"
    assert left_out(config) == "split that is not read: val"
    chosen = options("imagefolder", folder, splits={"test": "val"})
    assert files_of(chosen).index("test").keys == ["val/ant/0.png"]


def test_of_several_test_splits_without_test_one_must_be_named(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    write(folder / "valid/ant/0.png", picture(99))
    assert refusal(options("imagefolder", folder)).endswith(
        "has val and valid; name the one to test on: data.splits.test=val"
    )
    assert len(files_of(options("imagefolder", folder, splits={"test": "valid"})).index("test")) == 1
    assert "both 'val'" in refusal(options("imagefolder", folder, splits={"train": "val", "test": "val"}))


def test_a_test_split_without_labels_is_refused_with_the_one_that_has_them(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    write(folder / "test/0001.jpg", picture(1))
    said = refusal(options("imagefolder", folder))
    assert said.startswith(f"{folder}/test has no class folders with images (outside of class folders: test/0001.jpg)")
    assert f"; data.splits.test=val reads {folder}/val; " in said


def test_what_a_folder_holds_besides_is_left_out_and_counted(folder: Path) -> None:
    for name in (".DS_Store", "._0.png", "Thumbs.db"):
        write(folder / "train/ant" / name)
    write(folder / "train/ant/notes.TXT", "no image")
    write(folder / "train/bee/list.csv", "no image")
    write(folder / "train/bee/no suffix", picture(5))
    write(folder / "train/bee/jpeg.dat", picture(6, "JPEG"))
    write(folder / "train/loose.md", "no image")
    (folder / "test/cat").mkdir()
    write(folder / "test/dog/a.txt")
    os.mkfifo(folder / "train/ant/pipe")
    config = options("imagefolder", folder)
    assert open_source(config, files_of(config)).classes == list(CLASSES)
    assert len(files_of(config).index("train")) == 8  # those of another suffix are judged by their content
    assert left_out(config).split("; ") == [
        "hidden: 3, the first train/ant/.DS_Store",
        "no image: 3, the first train/ant/notes.TXT",
        "no regular file: train/ant/pipe",
        "outside of class folders: train/loose.md",
        "class folder without images: 2, the first test/cat",
    ]


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (("train/ant/a.png", "test/b.png", "test/c"), "broken link: train/ant/a.png; "),
        (("test/b.png", "test/c"), "broken link: 2, the first test/b.png; "),  # a class whose disk is not mounted
        (("train/ant/itself.png",), "broken link: train/ant/itself.png; "),
        (("train/0.heic", "train/1.txt"), "outside of class folders: train/0.heic; "),
        (("train/ant/0.heic", "train/bee/1.AVIF"), "image in a format that is not read: 2, the first train/ant/0.heic"),
        (("train/cat/", "train/dog/"), "class folder without images: 2, the first train/cat; "),
        (("train/cat/a.txt",), "class folder without images: train/cat; "),
    ],
)
def test_what_may_be_an_image_or_a_class_is_not_left_out(folder: Path, odd: tuple[str, ...], expected: str) -> None:
    for name in odd:
        if name.endswith("/"):
            (folder / name).mkdir()
        elif name.endswith((".heic", ".AVIF", ".txt")):
            write(folder / name, "content")
        else:
            (folder / name).symlink_to("itself.png")
    said = refusal(options("imagefolder", folder))
    assert said.startswith(f"{folder}: {expected}")
    assert said.endswith("; mend or remove them, or list the others in a table (data.source=table)")


def test_test_images_of_which_none_is_an_image_are_refused(folder: Path) -> None:
    for path in folder.glob("test/*/*.png"):
        path.rename(path.with_suffix(".txt"))
    assert "test has no class folders with images; " in refusal(options("imagefolder", folder))
    assert not (folder.parent / "data").exists()


def test_links_to_folders_are_followed_and_never_in_a_circle(folder: Path) -> None:
    (folder / "train/ant/more").symlink_to("../bee")
    (folder / "train/bee/up").symlink_to("..")
    (folder / "train/cat").symlink_to(folder)
    (folder / "other").mkdir()
    write(folder / "other/0.png", picture(50))
    (folder / "other/back").symlink_to("../train/ant")
    (folder / "train/ant/other").symlink_to("../../other")
    config = options("imagefolder", folder)
    keys = files_of(config).index("train").keys
    assert [key for key in keys if key.startswith("train/ant/")] == [
        *(f"train/ant/{number}.png" for number in range(3)),
        *(f"train/ant/more/{number}.png" for number in range(3)),
        "train/ant/other/0.png",
    ]
    assert len(keys) == 7 + 3
    assert "link to a folder that it lies in: 4, the first train/ant/" in left_out(config)


def test_a_class_without_test_images_is_mentioned_and_one_without_training_images_refused(folder: Path) -> None:
    write(folder / "train/cat/0.png", picture(77))
    config = options("imagefolder", folder)
    assert left_out(config) == "class without test images: cat"
    data = open_data(config)
    assert data.classes == ("ant", "bee", "cat")
    assert data.test.labels.bincount(minlength=3).tolist() == [2, 2, 0]
    write(folder / "test/dog/0.png", picture(78))
    assert "no training images and cannot be learned: dog; add training images" in refusal(config)


def test_images_of_one_class_are_refused(folder: Path) -> None:
    table = table_of(folder)
    table.write_text(re.sub(",bee", ",ant", table.read_text()))
    assert refusal(options("table", table)).endswith(
        "all training images are of one class, ant; nothing can be learned"
    )


def test_empty_files_are_all_named_before_anything_is_decoded(folder: Path) -> None:
    write(folder / "train/ant/1.png")
    write(folder / "test/bee/9.jpg")
    said = refusal(options("imagefolder", folder))
    assert said.endswith("2 files are empty: train/ant/1.png, test/bee/9.jpg; replace or remove them")


def test_a_folder_that_may_not_be_written_is_read(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    open_data(options("imagefolder", folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_image_takes_less_than_300_bytes_while_it_is_listed() -> None:
    count = 50_000
    tracemalloc.start()
    try:
        index = Index("photos")
        for row in range(count):
            index.add(f"train/n01440764/n01440764_{row:07}.JPEG", f"n{row % 1000:08}", row, row)
        assert tracemalloc.get_traced_memory()[0] / len(index) < 300
    finally:
        tracemalloc.stop()


def test_numbers_of_classes_are_in_the_order_of_numbers_and_names_in_that_of_names() -> None:
    assert by_number(["10", "9", "0"]) == ["0", "9", "10"]
    for names in (["10", "9", "a"], ["010", "9"], ["10", "-1"], ["1" * 5000, "2"]):
        assert by_number(names) == sorted(names)


# ---------------------------------------------------------------- tables


def table_of(folder: Path, header: str = "path,label,split") -> Path:
    rows = [
        f"{path.relative_to(folder)},{path.parent.name},{path.parts[-3]}"
        for path in sorted(folder.rglob("*.png"), reverse=True)
    ]
    return write(folder / "labels.csv", "\n".join([header, *rows, ""]))


def test_a_table_gives_the_images_of_the_same_folder_in_its_own_order(folder: Path) -> None:
    config = options("table", table_of(folder))
    data = open_data(config)
    expected = open_data(options("imagefolder", folder))
    assert data.classes == expected.classes
    for split in ("train", "test"):
        ours, theirs = getattr(data, split), getattr(expected, split)
        assert (ours.images[::-1] == theirs.images).all()
        assert (ours.labels.flip(0) == theirs.labels).all()
    assert open_data(config).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("FileName;Class;SUBSET;note\n{};cat;Train;a\n{};dog;train;\n{};cat;VAL;\n", {}),
        ("\ufeffimage\ttarget\tsplit\r\n{}\tcat\ttrain\r\n{}\tdog\ttrain\r\n\r\n{}\tcat\tvalidation\r\n", {}),
        (
            '"id", species, fold, label\n"{}", "cat", 0, x\n{}, dog, 0, y\n{}, cat, 1, z\n{}, cat, 2, z\n',
            {
                "columns": {"path": "id", "label": "species", "split": "fold"},
                "splits": {"train": "0", "test": "1"},
            },
        ),
    ],
)
def test_columns_splits_and_separators_may_be_others(
    folder: Path, text: str, more: Mapping[str, Mapping[str, str]]
) -> None:
    names = ("train/ant/0.png", "train/bee/0.png", "test/ant/3.png", "test/ant/4.png")
    table = write(folder / "labels.csv", text.format(*names))
    config = options("table", table, **more)
    source = open_source(config, files_of(config))
    assert (source.classes, [source.labels[split].tolist() for split in ("train", "test")]) == (
        ["cat", "dog"],
        [[0, 1], [0]],
    )
    assert ("row of a split that is not read: 2, line 5" in source.left_out) == bool(more)


def test_paths_are_relative_to_the_table_or_to_the_folder_that_is_named(folder: Path) -> None:
    table = table_of(folder).rename(folder.parent / "elsewhere.csv")
    assert "missing file: 10, the first " in refusal(options("table", table))
    keys = files_of(options("table", table, folder=str(folder))).index("test").paths()
    assert keys == [str(path) for path in sorted((folder / "test").rglob("*.png"), reverse=True)]
    assert "data.folder=/nowhere: no such folder" in refusal(options("table", table, folder="/nowhere"))


def test_what_a_table_says_of_an_image_is_part_of_what_a_store_is_found_by(folder: Path) -> None:
    table = table_of(folder, "path,label,split")
    found = [files_of(options("table", table)).identity()]
    text = table.read_text()
    for old, new in (
        ("train/ant/0.png,ant", "train/ant/0.png,bee"),
        ("test/bee/4.png,bee,test", "test/bee/4.png,bee,train"),  # its order among all rows stays
        ("train/ant/0.png,ant,train\n", ""),
    ):
        table.write_text(text.replace(old, new))
        found.append(files_of(options("table", table)).identity())
    assert len(set(found)) == 4
    table.write_text(text.replace(",train\n", ",train\n\n"))  # other text, the same images
    assert files_of(options("table", table)).identity() == found[0]
    os.utime(folder / "train/ant/0.png", (1, 1))
    assert files_of(options("table", table)).identity() not in found


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("train/ant/9.png,ant,train", "missing file: train/ant/9.png, line 12; "),
        ("train/ant,ant,train", "no file: train/ant, line 12; "),
        ("a\0b.png,ant,train", "missing file: "),
        ("x" * 300 + ".png,ant,train", "missing file: "),
        ("train/ant/0.png/1.png,ant,train", "missing file: "),
        ("test/../train/ant/0.png,ant,test", "file that is named twice: test/../train/ant/0.png, line 12"),
        ("train/ant/0.png,,train", "row without label: line 12; "),
        (",ant,train", "row without path: line 12; "),
        ("train/ant/0.png,ant, ", "row without split: line 12; "),
        ("train/ant/0.png,ant", "row that has not 3 columns: line 12; "),
        ('train/ant/0.png,"a\nb",train', "label that is no text in UTF-8: line 13; "),
        ("train/ant/0.png,ant,hold", "row of an unknown split (data.splits names the two to read): hold, line 12; "),
        ('train/ant/0.png,"ant,train', "line 12: unexpected end of data"),
    ],
)
def test_rows_that_cannot_be_used_are_counted_with_the_first(folder: Path, row: str, expected: str) -> None:
    table = table_of(folder)
    table.write_text(table.read_text() + row + "\n")
    said = refusal(options("table", table))
    assert said.startswith(f"data.table={table}")
    assert expected in said


def test_several_faults_of_a_table_are_one_line(folder: Path) -> None:
    table = table_of(folder)
    table.write_text(table.read_text() + "a.png,ant,train\nb.png,ant,train\ntrain/ant/0.png,,train\n")
    assert refusal(options("table", table)) == (
        f"data.table={table}: row without label: line 14; missing file: 2, the first a.png, line 12; "
        f"repair or remove these rows (files are looked for in {table.parent}: data.folder)"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name,label,split\n", "no columns are named path or file or"),
        (b"path,label,class,split\n", "2 columns are named label or class or target, and one must be, for the label"),
        (b"path,label,split\n", "no row of the split train; it has none at all"),
        (b"path,label,split\na,,\n", "it has none at all (row without label: line 2)"),
        (b"path,label,split\na,b,test\n", "no row of the split train; it has test; see data.splits"),
        ("path,label,split\na,b,train\n".encode("utf-16"), "its first line is no text; save it as CSV in UTF-8"),
        (picture(0), "its first line is no text"),
        (b"a" * 2_000_000, "its first line is no text"),
        (b"", "no columns are named"),
        (b"path,label,split\n" + b"".join(b"a,b,%d\n" % each for each in range(200)), "more than 100 splits"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in refusal(options("table", write(tmp_path / "labels.csv", content)))


def test_a_table_that_is_not_here_is_named_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(DataConfig(source="table", table="a.csv")).startswith(
        f"data.table=a.csv: no such file in {tmp_path}; "
    )


# ---------------------------------------------------------------- shards


def write_shard(path: Path, members: Mapping[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The images of ``folder`` as webdataset's writer lays them down, labels as numbers."""
    place = tmp_path / "shards"
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        for label in range(2):
            members: dict[str, bytes] = {}
            for number in numbers:
                members[f"{label}/{number:06}.cls"] = str(label).encode()
                members[f"{label}/{number:06}.png"] = picture(10 * label + number)
            write_shard(place / f"{split}-{label:06}.tar", members)
    return place


def test_shards_give_the_images_of_the_folder_that_they_were_made_of(shards: Path, folder: Path) -> None:
    data, expected = open_data(options("webdataset", shards)), open_data(options("imagefolder", folder))
    assert (data.classes, expected.classes) == (("0", "1"), CLASSES)
    for split in ("train", "test"):
        ours, theirs = getattr(data, split), getattr(expected, split)
        assert (np.asarray(ours.images) == theirs.images).all()
        assert (ours.labels == theirs.labels).all()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_place_in_a_shard_holds_the_bytes_that_tarfile_reads_there(tmp_path: Path, form: int) -> None:
    long = "a" * 90 + "/" + "b" * 60
    members = {f"{long}{number}.{suffix}": content for number in range(3) for suffix, content in (
        ("cls", b"3\n"), ("json", b"{}"), ("jpg", picture(number, "JPEG")),
    )}  # fmt: skip
    for name in ("train", "test"):
        write_shard(tmp_path / name / "0.tar", members, format=form)
    index = files_of(options("webdataset", tmp_path)).index("train")
    assert index.keys == [f"train/0.tar/{name}" for name in members if name.endswith("jpg")]
    assert [index.place(row).read() for row in range(3)] == [picture(number, "JPEG") for number in range(3)]
    assert index.place(0).file == tmp_path / "train/0.tar"


def test_members_are_samples_as_webdataset_has_them(tmp_path: Path) -> None:
    labelled = {"a.jpg": picture(0), "a.cls": b"cat"}
    members = {
        **labelled,
        "./b.v2/1.JPEG": picture(1),  # of a folder with a dot; the suffix in capitals
        "./b.v2/1.Cls": b" cat\n",
        "c.left.jpg": picture(2),  # everything from the first dot on is the suffix
        "c.json": b'{"class": "dog"}',
        "c.png": picture(3),
        "__facts__/a.json": b"{}",
        "._d.jpg": picture(4),
        "readme": b"",
        "e.txt": b"no image",
        "f.json": b'{"label": 7, "class_name": "x"}',
        "f.webp": picture(5, "WEBP"),
    }
    write_shard(tmp_path / "set-train.tar", members)
    write_shard(tmp_path / "set-val.tar", labelled)
    config = options("webdataset", tmp_path)
    source = open_source(config, files := files_of(config))
    index = files.index("train")
    names = [source.classes[label] for label in source.labels["train"]]
    assert dict(zip(index.keys, names, strict=True)) == {
        "set-train.tar/a.jpg": "cat",
        "set-train.tar/./b.v2/1.JPEG": "cat",
        "set-train.tar/c.png": "dog",
        "set-train.tar/f.webp": "7",
    }
    assert source.left_out.split("; ") == [
        ".left.jpg: set-train.tar/c.left.jpg",
        "hidden or without suffix: 3, the first set-train.tar/__facts__/a.json",
        ".txt: set-train.tar/e.txt",
        "sample without image: set-train.tar/e",
        "class without test images: 2, the first 7",
    ]


def test_a_label_may_be_any_key_of_the_json(tmp_path: Path) -> None:
    members = {"a.jpg": picture(0), "a.cls": b"0", "a.json": json.dumps({"label": 0, "name": "cat"}).encode()}
    members |= {"b.jpg": picture(1), "b.cls": b"1", "b.json": json.dumps({"label": 1, "name": "ant"}).encode()}
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}.tar", members)
    named = options("webdataset", tmp_path, columns={"label": "name"})
    assert open_source(named, files_of(named)).classes == ["ant", "cat"]
    plain = options("webdataset", tmp_path)
    assert open_source(plain, files_of(plain)).classes == ["0", "1"]
    assert files_of(plain).identity() != files_of(named).identity()


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (
            {"../b.jpg": b"", "../b.cls": b"0"},
            "path that leads out of the shard: 2, the first train-000001.tar/../b.jpg",
        ),
        ({"/b.jpg": b""}, "path that leads out of the shard: train-000001.tar//b.jpg"),
        ({"b.jpg": b"x", "b.png": b"x", "b.cls": b"0"}, "sample of two images: train-000001.tar/b;"),
        ({"b.jpg": b"x"}, "sample without label: train-000001.tar/b;"),
        ({"b.HEIC": b"x", "b.cls": b"0"}, "image in a format that is not read: train-000001.tar/b.HEIC; label without"),
        ({"b.left.jpg": b"x", "b.cls": b"0"}, "label without image: train-000001.tar/b;"),
        ({"b.jpg": b"x", "b.cls": b" "}, "sample without label"),
        ({"b.jpg": b"x", "b.cls": b"\xff"}, "sample without label"),
        ({"b.jpg": b"x", "b.json": b'{"label": [1]}'}, "sample without label"),
        ({"b.jpg": b"x", "b.json": b'{"label": true}'}, "sample without label"),
        ({"b.jpg": b"x", "b.json": b"[" * 100_000}, "sample without label"),
        ({"b.jpg": b"x", "b.json": b"3"}, "sample without label"),
        ({"b.jpg": b"x", "c.jpg": b"x", "b.cls": b"0"}, "sample without label: 2, the first train-000001.tar/b;"),
    ],
)
def test_samples_that_cannot_be_used_are_counted_with_the_first(
    shards: Path, members: Mapping[str, bytes], expected: str
) -> None:
    write_shard(shards / "train-000001.tar", members)
    config = options("webdataset", shards)
    assert expected in refusal(config)
    assert not list(shards.parent.glob("b.*"))


def test_a_shard_that_is_cut_off_anywhere_is_refused_by_name(shards: Path) -> None:
    victim = shards / "train-000001.tar"
    whole = victim.read_bytes()
    config = options("webdataset", shards)
    expected = files_of(config).index("train").keys
    end = whole.rindex(b"IEND") // 512 * 512 + 512  # of the last member; after it there are zeros alone
    for length in [*range(0, end, 256), end, end + 511]:
        victim.write_bytes(whole[:length])
        assert refusal(config).startswith(f"{victim}: ")
    victim.write_bytes(whole[: end + 512])
    assert files_of(config).index("train").keys == expected


def test_a_copy_of_a_shard_is_not_read_too_and_shards_of_one_name_may_differ(shards: Path) -> None:
    config = options("webdataset", shards)
    members = {"9.png": picture(3), "9.cls": b"1"}  # of one size and name with the others
    write_shard(shards / "part/train-000001.tar", members)
    assert len(files_of(config).index("train")) == 7
    write(shards / "old/train-000001.tar").write_bytes((shards / "train-000001.tar").read_bytes())
    assert "train-000001.tar: a copy of old/train-000001.tar, whose images would count twice; move it" in refusal(
        config
    )


def test_a_folder_of_shards_that_cannot_be_listed_is_refused(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shards / "part").mkdir()
    listed = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("part"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "cannot be read: [Errno 13] Permission denied" in refusal(options("webdataset", shards))


def test_a_damaged_header_in_a_shard_is_no_end(shards: Path) -> None:
    victim = shards / "train-000001.tar"
    whole = victim.read_bytes()
    for name in (b"1/000000.cls", b"1/000001.png", b"1/000002.cls"):
        content = bytearray(whole)
        content[whole.index(name) + 50] ^= 1
        victim.write_bytes(content)
        assert refusal(options("webdataset", shards)).startswith(f"{victim}: ")
    victim.write_bytes(whole + whole)
    assert "or followed by another archive" in refusal(options("webdataset", shards))
    with tarfile.open(victim, "w:gz"):
        pass
    assert f"{victim}: it is compressed" in refusal(options("webdataset", shards))


def test_a_damaged_image_in_a_shard_is_named_when_it_is_decoded(shards: Path) -> None:
    image = picture(1)
    write_shard(shards / "train-000001.tar", {"a/7.png": image[:40], "a/7.cls": b"1", "8.png": image, "8.cls": b"1"})
    with pytest.raises(ConfigError, match=r"1 of 9 files cannot be read as images: train-000001\.tar/a/7\.png \(") as e:
        open_data(options("webdataset", shards))
    assert "the decoded images are kept" in str(e.value)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_in_a_shard_is_no_image_that_may_be_lost(shards: Path, kind: bytes) -> None:
    with tarfile.open(shards / "train-000001.tar", "a") as tar:
        link = tarfile.TarInfo("1/7.png")
        link.type, link.linkname = kind, "1/000000.png"
        tar.addfile(link)
    assert "link, or no plain file: train-000001.tar/1/7.png; " in refusal(options("webdataset", shards))


def test_a_shard_without_images_is_named_with_what_is_in_it(shards: Path) -> None:
    for shard in shards.glob("test-*.tar"):
        write_shard(shard, {"b.txt": b"x"})
    assert "no images in test-000000.tar and the other shards of its split (.txt: 2, the first" in refusal(
        options("webdataset", shards)
    )


def test_the_members_of_a_shard_are_not_kept(tmp_path: Path) -> None:
    members = {f"{number // 2}.{('cls', 'jpg')[number % 2]}": b"0" for number in range(6000)}
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}.tar", members)
    files = files_of(options("webdataset", tmp_path))
    tracemalloc.start()
    try:
        assert len(files.index("train")) == 3000
        assert tracemalloc.get_traced_memory()[1] < 6000 * 300
    finally:
        tracemalloc.stop()


def test_shards_are_found_by_the_name_of_their_split(tmp_path: Path) -> None:
    members = {"a.jpg": picture(0), "a.cls": b"0", "b.jpg": picture(1), "b.cls": b"1"}
    names = ("a-train-0.tar", "a-train-1.tar", "train/00.tar", "restrained.tar", "b_validation3.tar", "._a-train-0.tar")
    for name in (*names, "train/part 1/sub/01.tar"):
        write_shard(tmp_path / name, members)
    (tmp_path / "train/round").symlink_to(tmp_path)
    files = files_of(config := options("webdataset", tmp_path))
    assert files.index("train").shards == ["a-train-0.tar", "a-train-1.tar", "train/00.tar", "train/part 1/sub/01.tar"]
    assert files.index("test").shards == ["b_validation3.tar"]
    assert left_out(config) == "shard of another split: restrained.tar"
    chosen = files_of(options("webdataset", tmp_path, splits={"test": "restrained"}))
    assert chosen.index("test").shards == ["restrained.tar"]
    write_shard(tmp_path / "train/validation.tar", members)
    assert "train/validation.tar: its name has train and validation; rename it" in refusal(config)


def test_missing_and_compressed_shards_are_named(tmp_path: Path) -> None:
    config = options("webdataset", tmp_path)
    write_shard(tmp_path / "train-0.tar", {})
    assert "no shard (*.tar) has test in its name; expected shards such as" in refusal(config)
    write(tmp_path / "train-1.tar.gz")
    assert "1 shards are compressed, the first train-1.tar.gz; decompress them" in refusal(config)
    assert "/nowhere: no such folder" in refusal(options("webdataset", Path("/nowhere")))


def test_a_start_looks_at_shards_and_not_into_them(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = options("webdataset", shards)
    expected = open_data(config).fingerprint
    monkeypatch.setattr(tarfile, "open", None)
    assert open_data(config).fingerprint == expected
