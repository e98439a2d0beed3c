"""The checkpoints of a run directory: written in the background, read back, pruned."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from senet.rundir.checkpoint import (
    Checkpoint,
    CheckpointError,
    file_name,
    generation_of,
    is_best,
    manifest_hash,
    published_files,
    read_checkpoint,
    verify,
)
from senet.rundir.copies import to_cpu
from senet.rundir.files import PATIENCE_S, forget_cached, fsync_directory, patiently, write_temporary
from senet.rundir.lease import LeaseLost

Action = Callable[[], None]
_FAILURES_TOLERATED = 2  # in a row
_IN_LINE_S = 10.0  # how long training waits for the write before
log = logging.getLogger(__name__)


class CheckpointManager:
    """The checkpoints of one run directory, for one writer.

    Args:
        directory: None on ranks that do not write: then ``save`` does nothing.
        keep: how many of the newest to keep. The newest one saved with ``best=True`` is kept too.
        generation: of this start; part of the names.
        resumed_from: step at which each generation began. If an older generation published a later step than that, its
            process had not ended when the younger one began, and the checkpoint does not belong to the run.
        is_held: called before each publication; a start that has lost its run directory publishes nothing.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        keep: int,
        generation: int,
        resumed_from: Mapping[int, int],
        is_held: Callable[[], bool] = lambda: True,
    ) -> None:
        self.directory = directory
        self._keep = keep
        self._generation = generation
        self._resumed_from = resumed_from
        self._is_held = is_held
        self._lock = threading.Lock()  # for the next two
        self._line: list[tuple[bool, Action]] = []  # writes to do, each with whether it is the best
        self._thread: threading.Thread | None = None
        self._failures = 0  # in a row
        self._error: Exception | None = None  # of the last write
        self.write_s = 0.0
        """Seconds that the last publication took, with its verification."""
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint of the run; None if none was ever published.

        A damaged one is renamed to ``.damaged``, with a warning, and the one before it is used.

        Raises:
            CheckpointError: all that there are, are damaged.
            LeaseLost: a damaged one was found, but another start has taken the run directory over.
        """
        damaged = []
        for path in self._published():
            try:
                return read_checkpoint(path, patience_s=PATIENCE_S)
            except CheckpointError as error:
                self._ask()
                log.warning("checkpoint set aside: %s", error)
                damaged.append(path.name)
                for part in (path, path.with_suffix(".json")):
                    if part.exists():
                        part.rename(part.with_name(f"{part.name}.damaged"))
        if damaged or (self.directory and any(self.directory.glob("*.pt.damaged"))):
            raise CheckpointError(
                f"{self.directory}: every checkpoint is damaged ({', '.join(damaged) or 'set aside earlier'}); restore "
                f"one from a copy, or begin anew in another run_dir"
            )
        return None

    def save(
        self,
        payload: Mapping[str, Any],
        manifest: Mapping[str, Any],
        *,
        first: Action = lambda: None,
        then: Action = lambda: None,
        wait: bool = False,
    ) -> None:
        """Copy ``payload`` to the CPU now, and publish it in the background.

        One is written at a time. Training waits up to ten seconds for the write before. After that this checkpoint is
        queued, in place of one that is still in the queue; but the best is only replaced by a better one.

        Args:
            payload: a tree of dicts, lists, numbers, strings and tensors. The copy is complete on return.
            manifest: JSON; ``step`` and ``best`` must be in it.
            first: called in the background before the checkpoint is published, to write what it needs.
            then: called in the background when it is published.
            wait: return when it is published and verified.

        Raises:
            CheckpointError: the write failed, with ``wait``; or three writes in a row have failed; or another start has
                taken the run directory over.
        """
        if self.directory is None:
            return
        self._join(None if wait else _IN_LINE_S)
        if self._error is not None:
            if isinstance(self._error, LeaseLost) or self._failures > _FAILURES_TOLERATED:
                self._fail()
            log.warning("checkpoint not written (%s); training goes on, the next one tries again", self._error)
        snapshot, facts = to_cpu(payload), dict(manifest)

        def write() -> None:
            self._write(snapshot, facts, first, then)

        with self._lock:
            kept = [(best, other) for best, other in self._line if best and not facts["best"]]
            if len(kept) < len(self._line):
                log.warning("a checkpoint gives its place to that of step %d: the file system is slow", facts["step"])
            self._line = [*kept, (facts["best"], write)]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
                self._thread.start()
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait until all writes have ended; CheckpointError if the last one failed."""
        self._join(None)
        if self._error is not None:
            self._fail()

    def close(self) -> None:
        """Wait until all writes have ended, failed or not: the process is about to end."""
        self._join(PATIENCE_S)

    def _join(self, timeout_s: float | None) -> None:
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _fail(self) -> None:
        raise CheckpointError(f"{self.directory}: no checkpoint could be written: {self._error}") from self._error

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._line:
                    self._thread = None
                    return
                _, write = self._line.pop(0)
            write()

    def _write(self, snapshot: dict[str, Any], manifest: dict[str, Any], first: Action, then: Action) -> None:
        assert self.directory is not None
        began = time.perf_counter()
        try:
            buffer = io.BytesIO()
            torch.save(snapshot, buffer)
            content = buffer.getbuffer()
            path = self.directory / file_name(manifest["step"], self._generation)
            manifest |= {"file": path.name, "generation": self._generation}
            manifest |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest["manifest_sha256"] = manifest_hash(manifest)
            text = json.dumps(manifest, indent=1).encode()
            first()
            patiently(lambda: self._publish(path, content, text))
            self.write_s = time.perf_counter() - began
        except Exception as error:  # save and finish raise it in the training thread
            self._error = error
            self._failures += 1
            with suppress(OSError, LeaseLost):  # half-written files take the space that the next try needs
                self._remove_leftovers()
            return
        self._error, self._failures = None, 0
        then()
        try:
            self._prune()
        except (OSError, LeaseLost) as error:
            log.warning("old checkpoints not removed: %s", error)

    def _publish(self, path: Path, content: memoryview, manifest: bytes) -> None:
        """From the beginning, whatever an earlier try has done. Ownership is checked first, and after the long part."""
        self._remove_leftovers()
        temporary = write_temporary(path, content, durable=True)
        temporary_manifest = write_temporary(path.with_suffix(".json"), manifest, durable=True)
        self._ask()
        temporary_manifest.replace(path.with_suffix(".json"))
        temporary.replace(path)
        fsync_directory(path.parent)
        forget_cached(path)
        verify(path)  # older ones are removed only after this one has been read back

    def _ask(self) -> None:
        if not self._is_held():
            raise LeaseLost("another start has taken the run directory over")

    def _published(self) -> list[Path]:
        """Data files of this run, newest first; see ``resumed_from``."""
        return [] if self.directory is None else published_files(self.directory, self._resumed_from)

    def _own(self) -> list[Path]:
        """Files that this start may remove: parts of checkpoints, of no younger start, as long as it is the owner."""
        assert self.directory is not None
        self._ask()
        return [path for path in self.directory.iterdir() if 0 <= generation_of(path) <= self._generation]

    def _prune(self) -> None:
        published = self._published()
        best = next((path for path in published if is_best(path)), None)
        keep = {*published[: self._keep], best}
        for path in self._own():
            if path.suffix == ".pt" and path not in keep:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left: temporary files, and manifests without their data."""
        for path in self._own():
            is_alone = path.suffix == ".json" and not path.with_suffix(".pt").exists()
            if path.name.endswith(".tmp") or is_alone:
                path.unlink(missing_ok=True)
