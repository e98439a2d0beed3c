"""Atomic, verified, pruned checkpoints. Knows dicts and paths, not models.

A checkpoint is ``step_<step>.g<generation>.pt`` (torch.save) and beside it ``....json``, its manifest, with the sha256
of the data and of itself. The manifest is put in place first, the data last, each by a rename within the directory: a
``.pt`` file is published when it has its name, and one without its manifest is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from senet.config import ConfigError, RunError
from senet.files import fsync_directory, read_json, write_temporary

log = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d{9})\.g(\d{4})\.pt")
_FAILURES_TOLERATED = 2


class CheckpointError(RunError):
    """No checkpoint can be read, or none can be written."""


class LeaseLost(CheckpointError):
    """Another start owns the run directory: what this one would still do is lost."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified file: ``manifest`` as it was saved, ``content`` its bytes, not yet unpickled."""

    path: Path
    manifest: dict[str, Any]
    content: bytes

    @property
    def step(self) -> int:
        """Updates done when it was saved."""
        return int(self.manifest["step"])


class CheckpointManager:
    """The checkpoints of one run directory, for one writer.

    Args:
        directory: None on ranks that do not write: then ``save`` does nothing.
        keep: how many of the newest to keep; the newest one saved with ``best=True`` is kept besides.
        generation: of this start; part of the names.
        resumed_from: step at which each generation began. What an older generation published beyond the start of a
            younger one is not of this run: a left-over writer's.
        is_held: asked before each publication; a writer that has lost its run directory publishes nothing.
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
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._error: Exception | None = None
        self.write_s = 0.0
        """Seconds that the last publication took, verification included."""
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint of the run; None where none was ever published.

        A damaged one is set aside (``.damaged``) with a warning, and the one before it is used.

        Raises:
            CheckpointError: there are some, and all are damaged.
        """
        damaged = []
        for path in self._published():
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
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

    def save(self, payload: Mapping[str, Any], manifest: Mapping[str, Any], *, wait: bool = False) -> None:
        """Copy ``payload`` to the CPU now, and publish it in the background; one write is in flight at most.

        Args:
            payload: a tree of dicts, lists, numbers, strings and tensors. The copy is complete on return.
            manifest: JSON; ``step`` and ``best`` must be in it.
            wait: return when it is published and verified.

        Raises:
            CheckpointError: with ``wait``, or when a third write in a row has failed, or one because another start
                has taken the run directory over.
        """
        if self.directory is None:
            return
        self._join()
        snapshot = _to_cpu(payload)
        self._thread = threading.Thread(target=self._write, args=(snapshot, dict(manifest)), name="checkpoint")
        self._thread.start()
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait for the write in flight; CheckpointError if it failed."""
        self._join(strict=True)

    def close(self) -> None:
        """Wait for the write in flight, however it ends; for the way out."""
        if self._thread is not None:
            self._thread.join()

    def _join(self, *, strict: bool = False) -> None:
        self.close()
        error, self._error = self._error, None
        if error is None:
            self._failures = 0
            return
        self._failures += 1
        if strict or isinstance(error, LeaseLost) or self._failures > _FAILURES_TOLERATED:
            raise CheckpointError(f"{self.directory}: no checkpoint could be written: {error}") from error
        log.warning("checkpoint not written (%s); training goes on, the next one tries again", error)

    def _write(self, snapshot: dict[str, Any], manifest: dict[str, Any]) -> None:
        began = time.perf_counter()
        try:
            self._remove_leftovers()
            path = self._publish(snapshot, manifest)
            read_checkpoint(path)  # believed only when it has been read back; only then are older ones removed
            self.write_s = time.perf_counter() - began
        except Exception as error:  # handed to the training thread by _join
            self._error = error
            with contextlib.suppress(OSError):  # what is half written takes the room that the next try needs
                self._remove_leftovers()
            return
        try:
            self._prune()
        except OSError as error:
            log.warning("old checkpoints not removed: %s", error)

    def _publish(self, snapshot: dict[str, Any], manifest: dict[str, Any]) -> Path:
        assert self.directory is not None
        path = self.directory / f"step_{manifest['step']:09d}.g{self._generation:04d}.pt"
        buffer = io.BytesIO()
        torch.save(snapshot, buffer)
        content = buffer.getbuffer()
        manifest |= {"file": path.name, "generation": self._generation}
        manifest |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["manifest_sha256"] = _manifest_hash(manifest)
        text = json.dumps(manifest, indent=1).encode()
        temporary = write_temporary(path, content, durable=True)
        temporary_manifest = write_temporary(path.with_suffix(".json"), text, durable=True)
        if not self._is_held():
            raise LeaseLost("another start has taken the run directory over")
        temporary_manifest.replace(path.with_suffix(".json"))
        temporary.replace(path)
        fsync_directory(self.directory)
        return path

    def _published(self) -> list[Path]:
        """Data files of this run, newest first; those of a left-over writer are not of this run."""
        return [] if self.directory is None else published_files(self.directory, self._resumed_from)

    def _prune(self) -> None:
        assert self.directory is not None
        published = self._published()
        best = next((path for path in published if is_best(path)), None)
        keep = {*published[: self._keep], best}
        for path in self.directory.iterdir():
            if _NAME.fullmatch(path.name) and path not in keep:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Of writers that were killed: temporary files, and manifests whose data never followed."""
        assert self.directory is not None
        for path in self.directory.iterdir():
            lonely = path.suffix == ".json" and not path.with_suffix(".pt").exists()
            if path.name.endswith(".tmp") or lonely:
                path.unlink(missing_ok=True)


def published_files(directory: Path, resumed_from: Mapping[int, int] | None = None) -> list[Path]:
    """Data files of checkpoints in a directory, unread, newest first; none where there is no directory.

    Args:
        resumed_from: see ``CheckpointManager``; what it shows to be of a left-over writer is left out.
    """
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            step, generation = int(match[1]), int(match[2])
            if all(step <= start for younger, start in (resumed_from or {}).items() if younger > generation):
                found.append((step, generation, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def find_checkpoint(path: Path) -> Path:
    """A file, or the best checkpoint of a run directory: the newest where none is marked best.

    Raises:
        ConfigError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder; name a run directory or a step_*.pt file")
    resumed_from = read_json(path / "owner.json").get("resumed_from", {})
    files = published_files(path / "checkpoints", {int(generation): step for generation, step in resumed_from.items()})
    if not files:
        raise ConfigError(f"{path}: no checkpoints in {path / 'checkpoints'}; name a run directory or a step_*.pt file")
    return next((file for file in files if is_best(file)), files[0])


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its hash; nothing is unpickled.

    Raises:
        CheckpointError: missing, damaged, or with a manifest that is missing, damaged or of another file.
    """
    try:
        if path.is_file() and not path.with_suffix(".json").exists():
            raise CheckpointError(
                f"{path} lacks its manifest, {path.with_suffix('.json').name}; copy it too, or begin a new training "
                f"from its weights alone: model.init_from={path}"
            )
        manifest = _read_manifest(path)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from None
    except OSError as error:  # says nothing about the file: a later try may succeed, so it is not set aside
        raise RunError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path.with_suffix('.json')}: {error}") from None
    if len(content) != manifest["bytes"] or hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise CheckpointError(f"{path}: {len(content)} bytes do not match the sha256 in its manifest")
    return Checkpoint(path, manifest, content)


def unpickle(content: bytes) -> dict[str, Any]:
    """The payload of verified bytes; tensors on the CPU, no code is run.

    Raises:
        CheckpointError: something else than tensors and plain values is in it.
    """
    try:
        payload = load_tensors(io.BytesIO(content))
    except ValueError as error:
        raise CheckpointError(f"its content is no checkpoint and was not opened ({error})") from None
    assert isinstance(payload, dict)
    return payload


def load_tensors(file: Path | io.BytesIO) -> Any:
    """What torch.save has written there, tensors on the CPU.

    Raises:
        FileNotFoundError, ValueError: something else than tensors and plain values; the message says what.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of old formats, on a second line
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever the unpickler stumbles over
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if found := re.search(r"GLOBAL (\S+) was not an allowed global", text):
            text = f"it holds a {found[1]}, which is neither a tensor nor a plain value and could run code"
        # in front and behind stands torch's advice to open it unsafely
        text = text.rpartition("WeightsUnpickler error: ")[2]
        text = re.split(r" (?:Check the documentation|In PyTorch|This is an internal)", text)[0]
        raise ValueError(text[:200].rstrip(". ")) from None


def _read_manifest(path: Path) -> dict[str, Any]:
    """ValueError unless it is whole and names this file (which may have been moved, but not renamed)."""
    manifest = json.loads(path.with_suffix(".json").read_text())
    if not isinstance(manifest, dict) or manifest.pop("manifest_sha256", None) != _manifest_hash(manifest):
        raise ValueError("the manifest does not match its own sha256")
    if manifest["file"] != path.name:
        raise ValueError(f"the manifest is of another file, {manifest['file']}")
    return manifest


def is_best(path: Path) -> bool:
    """As its manifest says; a damaged one is found out when somebody wants to resume from it."""
    try:
        return bool(_read_manifest(path)["best"])
    except (OSError, ValueError):
        return False


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _to_cpu(tree: Any) -> Any:
    """A copy that shares no memory with the original; complete when it returns."""
    copy = _copy_tree(tree)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()  # sync point: once per checkpoint
    return copy


def _copy_tree(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        # from a GPU the copies go to pinned memory and run beside each other
        return tree.detach().to("cpu", copy=True, non_blocking=tree.is_cuda)
    if isinstance(tree, Mapping):
        copied = {key: _copy_tree(value) for key, value in tree.items()}
        if not hasattr(tree, "_metadata"):
            return copied
        state_dict = OrderedDict(copied)
        state_dict._metadata = tree._metadata  # type: ignore[attr-defined]  # the version of each module
        return state_dict
    if isinstance(tree, list | tuple):
        return [_copy_tree(value) for value in tree]
    return tree
