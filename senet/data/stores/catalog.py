"""What lies below ``<data.root>/stores``, and which runs use it. No torch, but to read checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.sources.index import SPLITS, some
from senet.data.stores.journal import seen_builder
from senet.data.stores.packing import unused
from senet.data.stores.pixels import fingerprint_of
from senet.data.stores.uses import NOTES, Standing, read_notes, standings
from senet.errors import ConfigError
from senet.rundir.files import read_json
from senet.rundir.locks import seen_holder
from senet.verbs import typed

_UNFINISHED = {".decoded": "refused", ".encoded": "unfinished"}
_OF_PACKS = (".pack", ".journal", ".left", ".npy", ".tmp")
_STANDINGS: dict[Standing, str] = {
    "used": "used by",
    "other images": "opened before by what trains on other images now:",
    "removed": "opened by what was removed:",
    "unknown": "opened by what cannot be seen from here:",
}


@dataclass(frozen=True)
class Stored:
    """What has one name below ``stores``."""

    path: Path
    kind: str
    """pixels, encoded; unfinished: of builds that go on, or were killed; refused: what was decoded beside files that
    could not be."""
    size: int
    """Bytes."""
    changed: float
    """When that was written, in seconds since 1970; the notes of runs do not count."""
    builder: str = ""
    """Who builds it, or adds to it."""
    meta: dict[str, Any] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    """Number in each split."""
    uses: dict[str, Standing] = field(default_factory=dict)
    """Of each run directory from which it was opened."""
    opened: float = 0.0
    """When that was done last."""
    unneeded: tuple[Path, ...] = ()
    """Files in a store that do not count: of builds that go on, or were killed; of before images were added."""

    @property
    def is_store(self) -> bool:
        return self.kind in ("pixels", "encoded")

    @property
    def source(self) -> str:
        """The folder or the table of its images. Empty: they can be downloaded; or an older version has built it."""
        return str(self.meta.get("source", ""))

    @property
    def built(self) -> str:
        """When, to the minute, by this host's time zone."""
        return datetime.fromtimestamp((self.path / "meta.json").stat().st_mtime).isoformat(" ", "minutes")

    def runs(self, *standing: Standing) -> list[str]:
        """Those run directories that have come to this."""
        return [run_dir for run_dir, each in self.uses.items() if each in standing]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        facts = {"path": str(self.path), "kind": self.kind, "bytes": self.size, "changed": self.changed}
        facts |= {"builder": self.builder, "unneeded": [str(path) for path in self.unneeded]}
        of_store = {
            "source": self.source,
            "built": self.built,
            "images": self.images,
            "uses": self.uses,
            "opened": self.opened,
        }
        return facts | (of_store if self.is_store else {})


def stored_below(root: Path) -> list[Stored]:
    """All that is kept below ``<root>/stores``, by name. Folders of other people's making are left out."""
    stores = root / "stores"
    found = [_look(path) for path in sorted(stores.iterdir()) if path.is_dir()] if stores.is_dir() else []
    kept = {str(each.path): each for each in found if each is not None}
    notes = {name: list(read_notes(each.path)) for name, each in kept.items() if each.is_store}
    fingerprints = {name: _fingerprint(kept[name]) for name in notes}
    uses = standings(notes, fingerprints, [name for name in notes if kept[name].kind == "encoded"])
    for name, of_store in notes.items():
        opened = max((note.time for note in of_store), default=0.0)
        kept[name] = replace(kept[name], uses=uses[name], opened=opened)
    return list(kept.values())


def stored_at(path: Path) -> Stored:
    """One of them.

    Raises:
        ConfigError: there is none of this name.
    """
    for each in stored_below(path.parents[1]) if path.parent.name == "stores" else ():
        if each.path == path:
            return each
    raise ConfigError(f"{path}: nothing is kept there; {typed('data')} list shows what is kept below a data.root")


def _look(path: Path) -> Stored | None:
    """Without its uses."""
    meta = read_json(path / "meta.json")
    if meta:
        kind = "encoded" if "packs" in meta else "pixels"
    elif path.name.startswith(".") and path.suffix == ".tmp":
        kind = "unfinished"
    elif path.suffix in _UNFINISHED:
        kind = _UNFINISHED[path.suffix]
    else:
        return None
    builder = seen_holder(path) or seen_holder(Path(f"{path}.lock")) or seen_builder(path)
    facts = list(_files(path))
    changed = max((time_s for _, time_s in facts), default=path.stat().st_mtime)
    images = {split: _count(path, split, meta) for split in SPLITS} if meta else {}
    size = sum(size for size, _ in facts)
    return Stored(path, kind, size, changed, builder, meta, images, unneeded=tuple(_unneeded(path, meta)))


def _unneeded(path: Path, meta: dict[str, Any]) -> list[Path]:
    with suppress(ConfigError):  # damaged
        return [each for each in unused(path) if each.suffix in _OF_PACKS] if "packs" in meta else []
    return []


def _files(path: Path) -> Iterator[tuple[int, float]]:
    """Size and time of the files in a folder, without the notes of runs."""
    for each in path.rglob("*"):
        if NOTES not in each.parts[len(path.parts) :]:
            with suppress(FileNotFoundError):  # removed meanwhile
                facts = each.lstat()
                if each.is_file():
                    yield facts.st_size, facts.st_mtime


def _count(path: Path, split: str, meta: dict[str, Any]) -> int:
    if "counts" in meta:
        return int(meta["counts"][split])
    try:
        return len(np.load(path / f"{split}.labels.npy", mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError):  # damaged: verify says so
        return 0


def _fingerprint(stored: Stored) -> str:
    with suppress(KeyError, AttributeError):  # damaged
        return str(stored.meta.get("fingerprint") or fingerprint_of(stored.meta))
    return ""


def described(stored: Stored) -> list[str]:
    """Lines for people: where, what, how much, since when; then which runs have opened it."""
    facts = [stored.kind, in_bytes(stored.size)]
    if stored.is_store:
        images = [f"{many:,} {name}" for name, many in zip(("training", "test"), stored.images.values(), strict=True)]
        source = f" of {stored.source}" if stored.source else ""
        facts = [stored.kind, f"{' and '.join(images)} images{source}", in_bytes(stored.size), f"built {stored.built}"]
    builder = [f"{stored.builder} works at it"] if stored.builder else []
    lines = [f"{stored.path}: {', '.join([*facts, *builder])}"]
    for standing, text in _STANDINGS.items():
        if runs := stored.runs(standing):
            lines.append(f"  {text} {some(runs, 3)}")
    if stored.unneeded:
        lines.append(f"  do not count, any more or yet: {some([path.name for path in stored.unneeded], 3)}")
    return lines


def in_bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
