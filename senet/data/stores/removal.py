"""What of that which is kept below data.root can go, and its removal.

Nothing of it is needed to train: it is built again from the images. So it can go where these are still there, and where
it is certain that no run uses it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from senet.data.sources.index import some
from senet.data.stores.catalog import Stored, stored_at
from senet.data.stores.journal import seen_builder
from senet.data.stores.uses import prepared_at, read_notes
from senet.errors import RunError
from senet.rundir.locks import StillHeld, lock, own_folder, seen_holder
from senet.rundir.owner import holder

_DAY_S = 24 * 3600.0  # what has not changed for so long is of nobody who still builds
_JUST_S = 600.0  # a start notes that it uses a store just after it has opened it


def why_it_stays(stored: Stored, *, named: bool = False) -> str:
    """Why this must not be removed; empty where it can go.

    Args:
        named: somebody has named it. Then it may go where it is only not known whether it is used.
    """
    if stored.builder:
        return f"{stored.builder} works at it"
    if stored.path.is_symlink():
        return "it is a symbolic link"
    if stored.path.suffix == ".encoded" and not stored.is_store and _is_young(stored.changed):
        return "it has changed within a day; somebody may still build it"
    if stored.kind == "refused" and not named:
        return "the next build takes it up, when files that could not be decoded are repaired; to remove it, name it"
    if not stored.is_store:
        return ""
    if used := stored.runs("used"):
        return f"used by {some(used, 3)}"
    if unknown := stored.runs("unknown"):
        return f"whether {some(unknown, 3)} uses it cannot be seen from here; if not: rm -r {stored.path}"
    return "" if named else _doubt(stored)


def unneeded(stored: Stored) -> list[Path]:
    """The files in a store that can go, while the store stays."""
    if stored.builder or stored.runs("unknown") or any(holder(Path(run))[0] for run in stored.runs("used")):
        return []  # a training that began before images were added still reads what was there then
    return [path for path in stored.unneeded if path.exists() and not _is_young(path.stat().st_mtime)]


def _is_young(time_s: float) -> bool:
    return time.time() - time_s < _DAY_S


def _doubt(stored: Stored) -> str:
    if prepared_at(stored.path) > stored.opened:
        return "it was prepared, and no run has opened it since; to remove it, name it"
    if not stored.opened:
        return "no run has noted that it uses it, as older versions do not; to remove it, name it"
    if stored.source and not Path(stored.source).exists():
        return f"its images are not in {stored.source} any more; to remove it, name it"
    if time.time() - max(stored.changed, stored.opened) < _JUST_S:
        return "it was built or opened within the last ten minutes"
    return ""


def remove(stored: Stored, *, named: bool = False) -> None:
    """Remove what can go, by a look while nobody else builds it.

    Raises:
        RunError: why it stays.
        OSError: it cannot be removed.
    """
    path, stores = stored.path, stored.path.parent
    if path.suffix == ".tmp":
        with own_folder(stores, "prune"):  # which removes it, unless who made it may still be at work
            if path.exists():
                raise RunError("it has changed a moment ago")
        return
    with _alone(path), own_folder(stores, "prune") as own:
        now = stored_at(path)
        if why := why_it_stays(now, named=named):
            raise RunError(why)
        path.rename(moved := own / path.name)
        opened = max((note.time for note in read_notes(moved)), default=0.0) > now.opened
        if opened or (builder := seen_builder(moved)):
            moved.rename(path)
            raise RunError("a run has just opened it" if opened else f"{builder} works at it")
        rmtree(moved)  # the lock's file stays: others may wait for it


def remove_unneeded(stored: Stored) -> None:
    """The same of files in a store that stays."""
    with _alone(stored.path):
        for path in unneeded(stored_at(stored.path)):
            path.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While nobody builds there, as far as locks can tell."""
    try:
        with lock(Path(f"{path}.lock"), patience_s=0):
            yield
    except StillHeld:
        raise RunError(f"{seen_holder(Path(f'{path}.lock')) or 'somebody'} works at it") from None
