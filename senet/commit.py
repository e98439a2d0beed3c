"""Which commit this code is. No torch."""

from __future__ import annotations

import subprocess

from senet.config import REPOSITORY

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
