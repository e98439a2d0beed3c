"""One checkpoint: its name, its manifest, its hash. Knows dicts and paths, not models.

A checkpoint is ``step_<step>.g<generation>.pt`` (torch.save) and beside it ``....json``, its manifest, with the sha256
of the data and of itself. The manifest is put in place first, the data last, each by a rename within the directory: a
``.pt`` file is published when it has its name, and one without its manifest is damaged.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from senet.errors import ConfigError, RunError
from senet.rundir.files import patiently, read_json

FORMAT = 1  # of manifest and payload; all formats up to this one can be read
_NAME = re.compile(r"step_(\d{9})\.g(\d{4})\.pt")


class CheckpointError(RunError):
    """No checkpoint can be read, or none can be written."""


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


def file_name(step: int, generation: int) -> str:
    """Of the data."""
    return f"step_{step:09d}.g{generation:04d}.pt"


def generation_of(path: Path) -> int:
    """Whose file that is: data, manifest, or a temporary file of either; -1: no part of a checkpoint."""
    name = path.name.split(".")
    match = _NAME.fullmatch(".".join([*name[:2], "pt"]))
    return int(match[2]) if match else -1


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
    path = path.parent if path.resolve().name == "checkpoints" else path
    resumed_from = read_json(path / "owner.json").get("resumed_from", {})
    files = published_files(path / "checkpoints", {int(generation): step for generation, step in resumed_from.items()})
    if not files:
        raise ConfigError(f"{path}: no checkpoints in {path / 'checkpoints'}; name a run directory or a step_*.pt file")
    return next((file for file in files if is_best(file)), files[0])


def read_checkpoint(path: Path, *, patience_s: float = 0) -> Checkpoint:
    """Read a checkpoint and verify its hash; nothing is unpickled.

    Args:
        patience_s: how long to wait for a file system that does not answer.

    Raises:
        CheckpointError: missing, damaged, or with a manifest that is missing, damaged or of another file.
        ConfigError: it has a format that this version does not know.
        RunError: it cannot be read, which says nothing about the file.
    """
    try:
        return patiently(lambda: verify(path), limit_s=patience_s)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def verify(path: Path) -> Checkpoint:
    """``read_checkpoint``, with OSError where it cannot be read."""
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
    except ValueError as error:
        raise CheckpointError(f"{path.with_suffix('.json')}: {error}") from None
    if (found := manifest.get("format", 1)) not in range(1, FORMAT + 1):
        raise ConfigError(f"{path} has format {found}, this version reads 1 to {FORMAT}; use the version that wrote it")
    if len(content) != manifest["bytes"] or hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise CheckpointError(f"{path}: {len(content)} bytes do not match the sha256 in its manifest")
    return Checkpoint(path, manifest, content)


def unpickle(content: bytes | io.BytesIO) -> dict[str, Any]:
    """The payload of verified bytes; tensors on the CPU, no code is run.

    Raises:
        CheckpointError: something else than tensors and plain values is in it.
    """
    try:
        payload = load_tensors(content if isinstance(content, io.BytesIO) else io.BytesIO(content))
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
    if not isinstance(manifest, dict) or manifest.pop("manifest_sha256", None) != manifest_hash(manifest):
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


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
