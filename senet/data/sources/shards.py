"""Shards as webdataset writes them: tar archives, in which files of one name and several suffixes are one sample."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from senet.config.options import DataConfig
from senet.data.sources.index import SPLITS, Files, Index, Tally, by_number
from senet.data.sources.pictures import IMAGE_SUFFIXES, OTHER_SUFFIXES
from senet.data.sources.splits import TEST_NAMES, data_folder, split_names
from senet.data.sources.table import NAMES, NO_TEXT
from senet.errors import ConfigError
from senet.rundir.files import patiently

_LAYOUT = "expected shards such as data.folder/train-000000.tar and data.folder/test-000000.tar, or train/000000.tar"
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MOST_BYTES = 1_000_000  # of a label


class _Damaged(Exception):
    """A shard that cannot be used."""


@dataclass
class _Sample:
    """The members of one sample that are needed."""

    key: str
    images: list[tarfile.TarInfo] = field(default_factory=list)
    label: dict[str, bytes] = field(default_factory=dict)


def open_shards(config: DataConfig) -> Files:
    """The images in the tar archives of ``data.folder``. Only lists them.

    Raises:
        ConfigError: no such folder, or no shards of a split.
    """
    root = data_folder(config, _LAYOUT)
    try:
        files = patiently(partial(_listed, root))
    except OSError as error:
        raise ConfigError(f"data.folder={root} cannot be read: {error}") from None
    shards = [file for file in files if file.endswith(".tar")]
    there = [name for name in ("train", *TEST_NAMES) if _of_split(shards, name)]
    names = split_names(there, config.splits, root)
    of = {split: _of_split(shards, names[split]) for split in SPLITS}
    for split in SPLITS:
        if packed := _of_split([file for file in files if file.endswith(_COMPRESSED)], names[split]):
            raise ConfigError(
                f"{root}: {len(packed):,} shards are compressed, the first {packed[0]}; decompress them (gunzip), "
                f"images hardly shrink, or move them away"
            )
        if not of[split]:
            raise ConfigError(f"{root}: no shard (*.tar) has {names[split]} in its name; {_LAYOUT}")
    if both := sorted(set(of["train"]) & set(of["test"])):
        raise ConfigError(f"{root / both[0]}: its name has {names['train']} and {names['test']}; rename it")
    others = sorted(set(shards) - set(of["train"]) - set(of["test"]))
    scanned = cache(lambda split: _scan(root, of[split], config.columns, others if split == "test" else []))

    return Files(root, lambda: _identity(root, of, config.columns), scanned, by_number)


def _raise(error: OSError) -> None:
    raise error


def _listed(root: Path) -> list[str]:
    """All files below a folder, but for hidden ones. A folder to which several links lead is read once."""
    found, seen = [], {os.path.realpath(root)}
    for folder, below, names in os.walk(root, followlinks=True, onerror=_raise):
        here, below[:] = sorted(name for name in below if name[0] != "."), []
        for name in here:
            if (real := os.path.realpath(f"{folder}/{name}")) not in seen:
                seen.add(real)
                below.append(name)
        found += [os.path.relpath(f"{folder}/{name}", root) for name in names if name[0] != "."]
    return sorted(found)


def _identity(root: Path, shards: Mapping[str, list[str]], columns: Mapping[str, str]) -> str:
    """Of the shards, not of the images in them: it costs one look at each."""
    digest = hashlib.sha256(f"{columns.get('label', '')}\0".encode())
    try:
        for split in SPLITS:
            for shard in shards[split]:
                facts = patiently((root / shard).stat)
                fact = f"{split}\0{shard}\0{facts.st_size}\0{facts.st_mtime_ns}\0"
                digest.update(fact.encode(errors="surrogateescape"))
    except OSError as error:
        raise ConfigError(f"data.folder={root} cannot be read: {error}") from None
    return digest.hexdigest()


def _of_split(shards: list[str], name: str) -> list[str]:
    """The shards with this name in theirs, as a word of its own: ``train-0.tar``, ``a_train0.tar``, ``train/0.tar``."""
    word = re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W\d_]{'|[0-9]' * name[-1:].isdigit()})")
    return [shard for shard in shards if word.search(shard.removesuffix(".tar"))]


def _scan(root: Path, shards: list[str], columns: Mapping[str, str], others: list[str]) -> Index:
    """The images of a split, in the order of the shards and of the samples in each.

    Raises:
        ConfigError: a damaged shard, or samples that cannot be used.
    """
    index, faults = Index(str(root)), Tally()
    first_with: dict[tuple[str, int, bytes], str] = {}
    for other in others:
        index.left_out.add("shard of another split", other)
    for number, shard in enumerate(tqdm(shards, desc="reading shards", unit="shard", disable=None)):
        index.shards.append(shard)
        try:
            with (root / shard).open("rb") as file:
                facts = os.fstat(file.fileno())
                copy_of = first_with.setdefault((Path(shard).name, facts.st_size, file.read(tarfile.BLOCKSIZE)), shard)
                if copy_of != shard:  # of one name and size, and they begin alike
                    raise _Damaged(f"a copy of {copy_of}, whose images would count twice")
                file.seek(0)
                for sample in _samples(file, shard, index.left_out, faults):
                    label = _label(sample, columns.get("label"))
                    if not sample.images and "cls" in sample.label:
                        faults.add("label without image", sample.key)
                    elif not sample.images:
                        index.left_out.add("sample without image", sample.key)
                    elif len(sample.images) > 1 or label is None:
                        faults.add("sample without label" if label is None else "sample of two images", sample.key)
                    else:
                        [image] = sample.images
                        index.add(f"{shard}/{image.name}", label, image.size, facts.st_mtime_ns)
                        index.shard_of.append(number)
                        index.offsets.append(image.offset_data)
        except (OSError, _Damaged, tarfile.TarError, ValueError, OverflowError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(f"{root / shard}: {reason}; move it away, or write it anew") from None
    if faults:
        raise ConfigError(
            f"{root}: {faults}; repair the shards: the files of a sample stand together (tar --sort=name), "
            f"its label is NAME.cls, or in NAME.json (data.columns.label)"
        )
    if not index.keys:
        raise ConfigError(f"{root}: no images in {shards[0]} and the other shards of its split ({index.left_out})")
    return index


def _samples(file: BinaryIO, shard: str, left_out: Tally, faults: Tally) -> Iterator[_Sample]:
    """Consecutive members of one name, up to the first dot, are a sample."""
    sample: _Sample | None = None
    for member in _members(file):
        folder, _, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        place = f"{shard}/{member.name}"
        if member.name.startswith("/") or ".." in member.name.split("/"):
            faults.add("path that leads out of the shard", place)
        elif member.isdir():
            continue
        elif not member.isreg() or member.issparse():
            faults.add("link, or no plain file", place)
        elif not stem or not dot or re.match("__[^/]*__(/|$)", member.name):  # the last is webdataset's for facts
            left_out.add("hidden or without suffix", place)
        elif f".{suffix.lower()}" in OTHER_SUFFIXES:
            faults.add("image in a format that is not read", place)
        else:
            key = f"{shard}/{folder}/{stem}" if folder else f"{shard}/{stem}"
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            _take(sample, member, suffix.lower(), file, left_out)
    if sample is not None:
        yield sample


def _take(sample: _Sample, member: tarfile.TarInfo, suffix: str, file: BinaryIO, left_out: Tally) -> None:
    if f".{suffix}" in IMAGE_SUFFIXES:
        sample.images.append(member)
    elif suffix in ("cls", "json"):
        file.seek(member.offset_data)
        sample.label[suffix] = file.read(min(member.size, _MOST_BYTES))
    else:
        left_out.add(f".{suffix}", f"{sample.key}.{suffix}")


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """tarfile takes a damaged header for the end of an archive, without a word: see that the end is one."""
    if file.read(6).startswith(_MAGIC):
        raise _Damaged("it is compressed: decompress it, images hardly shrink")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # it would keep them all
            yield member
        file.seek(tar.offset)
        end = file.read(2**16)
        if len(end) < tarfile.BLOCKSIZE:
            raise _Damaged(f"it ends after {tar.offset:,} bytes, without the mark at the end of an archive")
        if end.strip(b"\0"):
            raise _Damaged(f"damaged after {tar.offset:,} bytes, or followed by another archive")


def _label(sample: _Sample, named: str | None) -> str | None:
    """The text of ``.cls``, or else a value of ``.json``; None where there is none."""
    try:
        if named is None and "cls" in sample.label:
            value = sample.label["cls"].decode().strip()
        else:
            facts = json.loads(sample.label["json"])
            value = next(facts[name] for name in ([named] if named else NAMES["label"]) if name in facts)
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return None
    is_label = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if is_label and str(value) and not NO_TEXT.search(str(value)) else None
