"""A table of files, labels and splits: ``data.table``, a CSV file whose first line names the columns."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import re
import stat
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TextIO

from senet.config.options import DataConfig
from senet.data.sources.index import SPLITS, Files, Index, Tally, by_number, some
from senet.data.sources.splits import TEST_NAMES, other_splits, split_names
from senet.errors import ConfigError
from senet.rundir.files import patiently

NAMES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image"),
    "label": ("label", "class", "target"),
    "split": ("split", "subset"),
}
"""What a column may be called, in any case of letters, unless ``data.columns`` names it."""
_MOST_SPLITS = 100
_MOST_OF_A_LINE = 2**20
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
NO_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


@dataclass
class _Rows:
    """The rows of one split."""

    keys: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))


def open_table(config: DataConfig) -> Files:
    """The images that ``data.table`` names. Only reads its first line.

    Raises:
        ConfigError: no such file, no text, or a column is missing.
    """
    path = Path(config.table)
    if config.folder and not Path(config.folder).is_dir():
        raise ConfigError(f"data.folder={config.folder}: no such folder; paths in data.table are relative to it")
    with _opened(path) as file:
        _header(path, file, config.columns)
    read = cache(lambda: _indexes(path, config))

    def identity() -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            index = read()[split]
            for row in range(len(index)):
                fact = f"{split}\0{index.facts(row)}{index.classes[index.labels[row]]}\0"
                digest.update(fact.encode(errors="surrogateescape"))  # file names need not be UTF-8
        return digest.hexdigest()

    return Files(path, identity, lambda split: read()[split], by_number)


def _opened(path: Path) -> TextIO:
    if not path.is_file():
        here = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"data.table={path}: no such file{here}; it has a row for each image: path, label, split")
    try:
        return path.open(newline="", encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"data.table={path} cannot be read: {error}") from None


def _header(path: Path, file: TextIO, named: Mapping[str, str]) -> tuple[Any, int, dict[str, int]]:
    """Read the first line. Returns csv's reader of the rows, how many columns there are, and which ones are needed."""
    try:
        first = file.readline(_MOST_OF_A_LINE)
        if NO_TEXT.search(first.rstrip().replace("\t", "")) or len(first) == _MOST_OF_A_LINE:
            raise ConfigError(f"data.table={path}: its first line is no text; save it as CSV in UTF-8")
        file.seek(0)
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
        header = [name.strip() for name in next(reader, [])]
    except (OSError, csv.Error) as error:
        raise ConfigError(f"data.table={path} cannot be read: {error}") from None
    return reader, len(header), {what: _column(path, header, what, named) for what in NAMES}


def _column(path: Path, header: Sequence[str], what: str, named: Mapping[str, str]) -> int:
    """Which column holds the paths, labels or splits."""
    names = [named[what]] if what in named else NAMES[what]
    found = [index for index, name in enumerate(header) if (name if what in named else name.lower()) in names]
    if len(found) == 1:
        return found[0]
    raise ConfigError(
        f"data.table={path}: {len(found) or 'no'} columns are named {' or '.join(names)}, and one must be, for the "
        f"{what}; name it with data.columns.{what}= (there is {some(header)})"
    )


def _indexes(path: Path, config: DataConfig) -> dict[str, Index]:
    """Both splits, in the order of the rows. ConfigError: rows that cannot be used."""
    rows, faults = _read_rows(path, config.columns)
    names = split_names(rows, config.splits, path)
    left_out, taken = Tally(), set[str]()
    usual = other_splits(rows, names)
    for name in (name for name in rows if name not in names.values()):
        known = name in usual or len(config.splits) == len(SPLITS)
        kind = "a split that is not read" if known else "an unknown split (data.splits names the two to read)"
        first = f"{name}, line {rows[name].lines[0]}"
        (left_out if known else faults).add(f"row of {kind}", first, len(rows[name].keys))
    indexes = {}
    root = config.folder or str(path.parent)
    for split in SPLITS:
        if names[split] not in rows:
            has = f"it has {some(list(rows))}" if rows else f"it has none at all{faults and f' ({faults})'}"
            raise ConfigError(f"data.table={path}: no row of the split {names[split]}; {has}; see data.splits")
        try:
            indexes[split] = _index(root, rows[names[split]], taken, faults)
        except OSError as error:
            raise ConfigError(f"data.table={path}: {error}") from None
    if faults:
        raise ConfigError(
            f"data.table={path}: {faults}; repair or remove these rows (files are looked for in {root}: data.folder)"
        )
    indexes["test"].left_out.merge(left_out)
    return indexes


def _read_rows(path: Path, named: Mapping[str, str]) -> tuple[dict[str, _Rows], Tally]:
    """The rows by their splits, and what is wrong with others."""
    found: dict[str, _Rows] = {}
    faults, labels = Tally(), dict[str, str]()
    with _opened(path) as file:
        reader, columns, at = _header(path, file, named)
        try:
            for row in reader:
                if not row:
                    continue
                line = reader.line_num
                fields = {what: row[index].strip() for what, index in at.items()} if len(row) == columns else {}
                if fault := _fault(fields, columns):
                    faults.add(fault, f"line {line}")
                    continue
                split = fields["split"].lower()
                rows = found.setdefault(split if split in ("train", *TEST_NAMES) else fields["split"], _Rows())
                rows.keys.append(fields["path"])
                rows.labels.append(labels.setdefault(fields["label"], fields["label"]))  # one text for all rows
                rows.lines.append(line)
                if len(found) > _MOST_SPLITS:
                    raise ConfigError(f"data.table={path}: more than {_MOST_SPLITS} splits; see data.columns.split")
        except (OSError, csv.Error) as error:
            raise ConfigError(f"data.table={path}, line {reader.line_num}: {error}") from None
    return found, faults


def _fault(fields: Mapping[str, str], columns: int) -> str:
    if not fields:
        return f"row that has not {columns} columns"
    empty = next((what for what, text in fields.items() if not text), "")
    return f"row without {empty}" if empty else "label that is no text in UTF-8" * bool(NO_TEXT.search(fields["label"]))


def _index(root: str, rows: _Rows, taken: set[str], faults: Tally) -> Index:
    """``taken``: the paths of other rows; those of this split are added."""
    index = Index(root)
    for key, label, line in zip(rows.keys, rows.labels, rows.lines, strict=True):
        path = os.path.join(root, key)  # noqa: PTH118 # a Path takes ten times as long
        facts, same = _facts(path), os.path.normpath(path)
        if facts is None or not stat.S_ISREG(facts.st_mode):
            faults.add("missing file" if facts is None else "no file", f"{key}, line {line}")
        elif same in taken:
            faults.add("file that is named twice", f"{key}, line {line}")
        else:
            taken.add(same)
            index.add(key, label, facts.st_size, facts.st_mtime_ns)
    return index


def _facts(path: str) -> os.stat_result | None:
    try:
        return patiently(partial(os.stat, path))
    except ValueError:  # a NUL in it
        return None
    except OSError as error:
        if error.errno in _NOWHERE:
            return None
        raise
