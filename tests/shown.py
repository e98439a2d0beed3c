"""What the views of a run show, read with each service's own means: step -> name -> value."""

from __future__ import annotations

import csv
import json
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from tests.harness import rows

Shown = dict[int, dict[str, float]]


def in_metrics(run_dir: Path) -> Shown:
    """metrics.jsonl itself, under the names that the views use."""
    found: Shown = {}
    for kind in ("train", "epoch"):
        for row in rows(run_dir, kind):
            numbers = {key: value for key, value in row.items() if key != "step" and not isinstance(value, str)}
            found.setdefault(row["step"], {}).update({f"{kind}/{key}": value for key, value in numbers.items()})
    return dict(sorted(found.items()))


def in_csv(run_dir: Path) -> Shown:
    with (run_dir / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    return _each_once((int(line.pop("step")), _numbers(line)) for line in lines)


def in_mlflow(database: Path) -> Shown:
    """Of the only run there. The metric ``step`` is its own step, and left out."""
    with closing(sqlite3.connect(database)) as connection:
        [(number,)] = connection.execute("select run_uuid from runs")
        metrics = list(connection.execute("select step, key, value from metrics where run_uuid = ?", (number,)))
    found: Shown = {}
    for step, key, value in metrics:
        assert key not in found.setdefault(step, {}), f"{key} at step {step} is there twice"
        found[step][key] = value
    assert all(values.pop("step") == step for step, values in found.items())
    return dict(sorted(found.items()))


def in_wandb(run_dir: Path) -> Shown:
    """The history in the folders that ``wandb sync`` would upload, all of one id."""
    from wandb.proto.wandb_internal_pb2 import Record

    points: list[tuple[int, dict[str, float]]] = []
    ids = set()
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for data in _log_of_leveldb(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            ids |= {record.run.run_id} if record.HasField("run") else set()
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                step = items.pop("_step", record.history.step.num)
                points.append((step, {key: value for key, value in items.items() if not key.startswith("_")}))
    assert len(ids) <= 1
    return _each_once(points)


def _log_of_leveldb(content: bytes) -> Iterator[bytes]:
    """Its records, behind W&B's header of seven bytes, as the format of LevelDB's log has it: pieces, each with
    checksum, length and kind (1: whole, 2: first, 3: middle, 4: last), in blocks of 32 KiB that end in zeros."""
    assert content[:4] == b":W&B"
    at, record = 7, b""
    while at + 7 <= len(content):
        in_block = 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if in_block < 7 or kind == 0:
            at += in_block
            continue
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def _numbers(line: dict[str, str]) -> dict[str, float]:
    return {key: float(text) for key, text in line.items() if text}


def _each_once(points: Iterable[tuple[int, dict[str, float]]]) -> Shown:
    found: Shown = {}
    for step, values in points:
        assert step not in found, f"step {step} is there twice"
        found[step] = values
    assert list(found) == sorted(found)
    return found
