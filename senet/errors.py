"""The two kinds of known errors, the exit codes, and what goes with an error into the status of a run."""

from __future__ import annotations

import difflib
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

FAILED_EXIT_CODE = 1
REFUSED_EXIT_CODE = 2
STOPPED_EXIT_CODE = 85  # stopped by a signal, checkpoint published: the same command resumes
INTERRUPTED_EXIT_CODE = 130  # Ctrl-C in a command that has nothing to save, as shells have it
Kind = Literal[
    "",
    "loss is not finite",
    "node excluded",
    "node lost",
    "nodes are unfit",
    "port is taken",
    "preempted",
    "rank hangs",
    "rank was killed",
    "ranks differ",
    "requeues are used up",
    "start does not get on",
    "taken over",
]
"""Of an end that this project itself finds: the ``kind`` of a status, and the name that ``why`` gives it."""
_OF_PYTHON = Path(threading.__file__).parent


class ConfigError(ValueError):
    """A user's mistake: one line that names the value, the rule and the remedy. Ends in exit code 2."""


class RunError(RuntimeError):
    """A known reason why a run cannot go on: one line, exit code 1."""

    reporter = 0
    """The rank that prints it."""
    guess = False
    """Whether it is deduced from another rank's silence; an error that a rank reports of itself takes precedence."""
    cut_off = False
    """Whether this host may have lost its connection to the others."""
    kind: Kind = ""
    """Empty where the words tell it: those of torch, of the operating system."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def note(error: BaseException, **facts: Any) -> None:
    """Let facts for the status go with an error: its step, its reason in other words."""
    error.__dict__.setdefault("noted", {}).update(facts)


def noted(error: BaseException) -> dict[str, Any]:
    """What was noted of an error, and its kind if it has one."""
    kind = {"kind": error.kind} if isinstance(error, RunError) and error.kind else {}
    return {**kind, **error.__dict__.get("noted", {})}


def cause_of(error: BaseException) -> str:
    """One line: kind and text; where it was raised too, unless the error is a known one."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    frames = list(traceback.walk_tb(error.__traceback__))
    known = isinstance(error, RunError | ConfigError) or not frames
    return text if known else f"{text}, at {place(frames)}"


def place(frames: Sequence[tuple[FrameType, int]]) -> str:
    """``folder/file.py:line function`` of the innermost of these frames that is of the user's own code: called by this
    package, and not installed. If there is none: that is neither in torch nor, if possible, in Python's own library.
    Each comes with its line, as ``traceback`` walks them, the innermost last."""
    own = [frame for frame in frames if not _is_of_torch(frame[0])]
    own = [frame for frame in own if not _is_of_python(frame[0])] or own
    own = _of_the_user(own) or own
    if not own:
        return "an unknown place"
    frame, line = own[-1]
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{line} {frame.f_code.co_name}"


def has_own_line(error: BaseException) -> bool:
    """Whether it was raised by the user's own code, or by what that has called."""
    frames = traceback.walk_tb(error.__traceback__)
    return bool(_of_the_user([each for each in frames if not _is_of_python(each[0])]))


def _of_the_user(frames: list[tuple[FrameType, int]]) -> list[tuple[FrameType, int]]:
    """Those that this package has called, and that are not installed."""
    called = next((number for number, (frame, _) in enumerate(frames) if _is_of_this_package(frame)), len(frames))
    return [each for each in frames[called:] if not (_is_of_this_package(each[0]) or _is_installed(each[0]))]


def _is_of_this_package(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def _is_installed(frame: FrameType) -> bool:
    """Or made while the program runs, as by torch.fx."""
    name = frame.f_code.co_filename
    return "site-packages" in Path(name).parts or name.startswith("<")


def _is_of_torch(frame: FrameType) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and Path(frame.f_code.co_filename).is_relative_to(Path(str(torch.__file__)).parent)


def _is_of_python(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(_OF_PYTHON) and "site-packages" not in path.parts
