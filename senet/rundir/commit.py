"""Which code this is. No torch."""

from __future__ import annotations

import hashlib
import subprocess

from senet import REPOSITORY

COMMIT_FILE = REPOSITORY / ".commit"  # written into a copy of the code that a job runs from


def commit() -> str:
    """Of the checkout, with ``+`` where it was changed; of what a snapshot was taken from; else "unknown"."""
    if COMMIT_FILE.exists():
        return COMMIT_FILE.read_text().strip()
    try:
        command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def code_hash() -> str:
    """Of the files of the trainer itself: two changed checkouts have one commit, and git may not be there."""
    digest = hashlib.sha256()
    for path in (REPOSITORY / "train_ddp.py", *sorted((REPOSITORY / "senet").rglob("*.py"))):
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
