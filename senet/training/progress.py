"""What the terminal shows while a loop runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Progress:
    """What rank 0 shows: progress bars on a terminal, plain lines elsewhere. Other ranks show nothing."""

    def __init__(self, visible: bool) -> None:
        self._visible = visible
        self._bars = visible and sys.stdout.isatty()
        self._bar: tqdm[Any] | None = None

    def over(self, batches: Iterable[T], *, title: str, total: int, done: int = 0) -> Iterator[T]:
        """Iterate, and show it as a bar."""
        if not self._bars:
            yield from batches
            return
        with tqdm(total=total, initial=done, desc=title, unit="batch", file=sys.stdout, leave=False) as self._bar:
            for batch in batches:
                yield batch
                self._bar.update()
        self._bar = None

    def facts(self, line: str) -> None:
        """Numbers of the last log interval: after the bar, or as a line."""
        if self._bar is not None:
            self._bar.set_postfix_str(line, refresh=False)
        else:
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line."""
        if self._visible:
            with suppress(OSError):  # the terminal was closed, or the log cannot be written: the run goes on
                tqdm.write(line) if self._bars else print(line, flush=True)
