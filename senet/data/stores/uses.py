"""Which runs use what is kept below data.root: each start leaves a note in the store, one small file per run directory.

No torch. A store that cannot be written has no notes, and is never taken for unused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from senet.rundir.files import read_json, write_json
from senet.rundir.named import is_run
from senet.rundir.standing import state_of

NOTES = "used"
_PREPARED = "prepared.json"
Standing = Literal["used", "other images", "removed", "unknown"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Note:
    """What a run directory has come to since a start of it noted that it uses a store."""

    run_dir: str
    time: float
    """Of the newest start, in seconds since 1970."""
    standing: Literal["there", "removed", "unknown"]
    """unknown: it is not to be seen from here, nor is the folder in which it was."""
    trained_on: str
    """The fingerprint in its newest checkpoint; empty where there is none."""


def note_run(store: Path, run_dir: Path) -> None:
    """Note that a run uses a store. Nothing happens where the store cannot be written."""
    run_dir = run_dir.resolve()
    name = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16]
    with suppress(OSError):  # read-only, or full: it is then never taken for unused
        note = {"run_dir": str(run_dir), "host": socket.gethostname(), "parent": run_dir.parent.stat().st_ino}
        _write(store, f"{name}.json", note)


def note_prepared(store: Path) -> None:
    """Note that somebody has prepared a store for runs that are still to come."""
    with suppress(OSError):
        _write(store, _PREPARED, {})


def _write(store: Path, name: str, note: dict[str, Any]) -> None:
    (store / NOTES).mkdir(exist_ok=True)
    write_json(store / NOTES / name, note | {"time": time.time()}, limit_s=0)


def prepared_at(store: Path) -> float:
    """When it was last prepared without a training, in seconds since 1970; 0: never."""
    return float(read_json(store / NOTES / _PREPARED).get("time", 0.0))


def read_notes(store: Path) -> Iterator[Note]:
    """All notes in a store, the newest first. Those that are damaged are of runs that are unknown."""
    found = []
    for path in (store / NOTES).glob("*.json"):
        if path.name != _PREPARED:
            try:
                note = read_json(path)
            except OSError:  # of another user
                note = {}
            run_dir = str(note.get("run_dir", f"the one noted in {path}"))
            found.append(Note(run_dir, float(note.get("time", 0.0)), *_look(note)))
    yield from sorted(found, key=lambda note: note.time, reverse=True)


def _look(note: Mapping[str, Any]) -> tuple[Literal["there", "removed", "unknown"], str]:
    if not {"run_dir", "parent", "host"} <= note.keys():
        return "unknown", ""
    run_dir = Path(note["run_dir"])
    try:
        if not _is_the_same(run_dir.parent, note):
            return "unknown", ""
        if not is_run(run_dir):
            return "removed", ""
        return "there", _trained_on(run_dir)
    except OSError:  # it may not be read, or its file system does not answer
        return "unknown", ""


def _is_the_same(parent: Path, note: Mapping[str, Any]) -> bool:
    """Whether this is the folder in which the run directory was: another host may have another one of that name."""
    try:
        facts = parent.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    # the top folders of file systems often have equal numbers
    return facts.st_ino == note["parent"] and (note["host"] == socket.gethostname() or not parent.is_mount())


def _trained_on(run_dir: Path) -> str:
    from senet.rundir.checkpoint import published_files  # imports torch

    resumed_from = {int(key): step for key, step in read_json(run_dir / "owner.json").get("resumed_from", {}).items()}
    for path in published_files(run_dir / "checkpoints", resumed_from):
        if manifest := read_json(path.with_suffix(".json")):
            return str(manifest.get("data", "")).partition("+")[0]
    return ""


def unfinished(store: Path, fingerprint: str) -> list[str]:
    """Run directories that cannot go on without the images of this store, which have this fingerprint now.

    A warning is logged of those that cannot be seen from here.
    """
    notes = list(read_notes(store))
    if unknown := [note.run_dir for note in notes if note.standing == "unknown"]:
        log.warning("whether %s still needs the images of %s cannot be seen from here", ", ".join(unknown), store)
    words = {note.run_dir: state_of(Path(note.run_dir)).word for note in notes if note.standing == "there"}
    without_checkpoint = ("training", "starting")  # others of these begin anew, with whatever is there
    return [
        note.run_dir
        for note in notes
        if (note.trained_on == fingerprint and words[note.run_dir] != "finished")
        or (not note.trained_on and words.get(note.run_dir) in without_checkpoint)
    ]


def standings(
    notes: Mapping[str, list[Note]], fingerprints: Mapping[str, str], growing: Collection[str]
) -> dict[str, dict[str, Standing]]:
    """Store -> run directory -> whether that run uses this store, by the notes in all stores of a data.root.

    A run uses the store whose images its newest checkpoint was trained on; of several with the same images, and where
    it has no checkpoint, the one that it opened last. If there is none, it is the one of those ``growing`` that it
    opened last: images may have been added to it since.
    """
    found: dict[str, dict[str, Standing]] = {store: {} for store in notes}
    newest: dict[str, tuple[tuple[bool, float], str]] = {}
    for store, of_store in notes.items():
        for note in of_store:
            found[store][note.run_dir] = "other images" if note.standing == "there" else note.standing
            same = note.trained_on in ("", fingerprints[store])
            rank = (same, note.time)
            if note.standing == "there" and (same or store in growing):
                newest[note.run_dir] = max(newest.get(note.run_dir, (rank, store)), (rank, store))
    for run_dir, (_, store) in newest.items():
        found[store][run_dir] = "used"
    return found
