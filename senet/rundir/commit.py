"""Which version of the code this is. No torch."""

from __future__ import annotations

import hashlib
import subprocess

from senet import REPOSITORY

COMMIT_FILE = REPOSITORY / ".commit"  # written into a copy of the code that a job runs from


def commit() -> str:
    """The git commit of the checkout, with ``+`` if files were changed; a snapshot has that of the checkout that it was
    taken from. "unknown" without git."""
    if COMMIT_FILE.exists():
        return COMMIT_FILE.read_text().strip()
    try:
        command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def code_hash() -> str:
    """A hash of the trainer's files. Two changed checkouts may have the same commit, and git may be missing."""
    digest = hashlib.sha256()
    for path in (REPOSITORY / "train_ddp.py", *sorted((REPOSITORY / "senet").rglob("*.py"))):
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
