"""The two kinds of known errors, and the exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

FAILED_EXIT_CODE = 1
REFUSED_EXIT_CODE = 2
STOPPED_EXIT_CODE = 85  # stopped by a signal, checkpoint published: the same command resumes
INTERRUPTED_EXIT_CODE = 130  # Ctrl-C in a command that has nothing to save, as shells have it


class ConfigError(ValueError):
    """A user's mistake: one line that names the value, the rule and the remedy. Ends in exit code 2."""


class RunError(RuntimeError):
    """A known reason why a run cannot go on: one line, exit code 1."""

    reporter = 0
    """The rank that prints it."""
    guess = False
    """Whether it is deduced from another rank's silence; an error that a rank reports of itself takes precedence."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""
