"""One checkpoint: its name, its manifest, its hash. Knows dicts and paths, not models.

A checkpoint is two files: ``step_<step>.g<generation>.pt``, the data (torch.save), and beside it the manifest
(``.json``) with the sha256 of the data and of itself. The manifest is renamed to its name first, the data last. So a
``.pt`` file with its name is complete, and one without a manifest is damaged.
"""

from __future__ import annotations

import argparse
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
from senet.rundir.named import is_sweep

FORMAT = 1  # of manifest and payload; all formats up to this one can be read
_NAME = re.compile(r"step_(\d{9})\.g(\d{4})\.pt")


class CheckpointError(RunError):
    """No checkpoint can be read, or none can be written."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified file. ``content``: its bytes, not yet unpickled."""

    path: Path
    manifest: dict[str, Any]
    content: bytes

    @property
    def step(self) -> int:
        """Updates done when it was saved."""
        return int(self.manifest["step"])


def file_name(step: int, generation: int) -> str:
    """Name of the data file."""
    return f"step_{step:09d}.g{generation:04d}.pt"


def generation_of(path: Path) -> int:
    """Which generation wrote a data file, a manifest, or a temporary file of either; -1: no part of a checkpoint."""
    name = path.name.split(".")
    match = _NAME.fullmatch(".".join([*name[:2], "pt"]))
    return int(match[2]) if match else -1


def published_files(directory: Path, resumed_from: Mapping[int, int] | None = None) -> list[Path]:
    """Data files of checkpoints in a directory, newest first, by their names alone. No directory: none.

    Args:
        resumed_from: see ``CheckpointManager``; files that do not belong to the run are left out.
    """
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            step, generation = int(match[1]), int(match[2])
            if all(step <= start for younger, start in (resumed_from or {}).items() if younger > generation):
                found.append((step, generation, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def find_checkpoint(path: Path) -> Path:
    """A file itself; of a run directory the best checkpoint, or the newest where none is marked best.

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
    if is_sweep(path):
        raise ConfigError(f"{path} is the folder of a sweep; name one of its cells")
    if not files:
        raise ConfigError(f"{path}: no checkpoints in {path / 'checkpoints'}; name a run directory or a step_*.pt file")
    return next((file for file in files if is_best(file)), files[0])


def read_checkpoint(path: Path, *, patience_s: float = 0) -> Checkpoint:
    """Read a checkpoint and verify its hash. Nothing is unpickled.

    Args:
        patience_s: for how long to try again while the file system does not answer.

    Raises:
        CheckpointError: missing, damaged, or with a manifest that is missing, damaged or of another file.
        ConfigError: it has a format that this version does not know.
        RunError: it cannot be read, so whether it is damaged is not known.
    """
    try:
        return patiently(lambda: verify(path), limit_s=patience_s)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def verify(path: Path) -> Checkpoint:
    """As ``read_checkpoint``, but OSError where it cannot be read, and without trying again."""
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
    """The payload, with tensors on the CPU. No code in it is run.

    Raises:
        CheckpointError: it holds anything but tensors and plain values.
    """
    try:
        payload = load_tensors(content if isinstance(content, io.BytesIO) else io.BytesIO(content))
    except ValueError as error:
        raise CheckpointError(f"its content is no checkpoint and was not opened ({error})") from None
    assert isinstance(payload, dict)
    return payload


def load_tensors(file: Path | io.BytesIO) -> Any:
    """Load what torch.save wrote, with tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds anything but tensors and plain values; the message says what.
    """
    try:
        # about old formats; messages have one line. timm stores its options as a Namespace, which holds plain values
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if found := re.search(r"GLOBAL (\S+) was not an allowed global", text):
            text = f"it holds a {found[1]}, which is neither a tensor nor a plain value and could run code"
        # remove torch's advice to open the file unsafely, before and after the reason
        text = text.rpartition("WeightsUnpickler error: ")[2]
        text = re.split(r" (?:Check the documentation|In PyTorch|This is an internal)", text)[0]
        raise ValueError(text[:200].rstrip(". ")) from None


def _read_manifest(path: Path) -> dict[str, Any]:
    """ValueError unless it is complete and names this file. The file may have been moved, but not renamed."""
    manifest = json.loads(path.with_suffix(".json").read_text())
    if not isinstance(manifest, dict) or manifest.pop("manifest_sha256", None) != manifest_hash(manifest):
        raise ValueError("the manifest does not match its own sha256")
    if manifest["file"] != path.name:
        raise ValueError(f"the manifest is of another file, {manifest['file']}")
    return manifest


def is_best(path: Path) -> bool:
    """Whether its manifest says so. A damaged one counts as no; reading the checkpoint reports it."""
    try:
        return bool(_read_manifest(path)["best"])
    except (OSError, ValueError):
        return False


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
