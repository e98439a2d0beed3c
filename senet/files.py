"""Files that are replaced in one step."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


def write_temporary(final: Path, content: bytes | memoryview, *, durable: bool) -> Path:
    """Write beside ``final``; renaming the returned ``*.tmp`` file to it publishes the content."""
    temporary = final.with_name(f"{final.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    return temporary


def replace_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace ``path``: a reader sees the old content or the new. ``durable`` also survives a power cut."""
    write_temporary(path, content, durable=durable).replace(path)
    if durable:
        fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make the renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    """``replace_file`` with JSON."""
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode(), durable=durable)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; {} where the file is missing or is no JSON object."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
