"""Failing system calls from outside the trainer: a small library that is preloaded into it (interpose.c)."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path


def missing_compiler() -> str:
    """One line with the remedy, '' where there is a C compiler."""
    return "" if shutil.which("cc") else "no C compiler here for interpose.c: apt-get install gcc libc6-dev"


@cache
def _library() -> str:
    folder = Path(tempfile.mkdtemp(prefix="interpose-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "interpose.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source], check=True)
    return str(library)


def failing(call: str, under: Path, *, at: int = 1, times: int = 0, errno: int = 0) -> dict[str, str]:
    """Environment in which calls below a folder fail from the ``at``-th on, ``times`` of them or all; ``errno=0``:
    SIGKILL in that call."""
    faults = {"FAULT_CALL": call, "FAULT_UNDER": str(under), "FAULT_AT": str(at), "FAULT_ERRNO": str(errno)}
    faults["FAULT_TIMES"] = str(times)
    return faults | {"LD_PRELOAD": _library()}


def slow(call: str, under: Path, wait_s: float) -> dict[str, str]:
    """Environment in which such calls below a folder are done only after a wait."""
    return failing(call, under) | {"FAULT_SLEEP_MS": f"{1000 * wait_s:.0f}"}
