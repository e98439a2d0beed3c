"""metrics.csv: a line for each step, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from senet.rundir.files import replace_file
from senet.views.points import Point


class CsvFile:
    """Written anew by each start, and where a column is new; in between, lines are added."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "metrics.csv"
        self._points: list[Point] = []
        self._columns: list[str] = []

    def open(self) -> int:
        self._points, self._columns = [], []
        return -1

    def send(self, points: Sequence[Point]) -> None:
        self._points += points
        new = list(dict.fromkeys(name for point in points for name in point.values if name not in self._columns))
        if new:
            self._columns += new
            head = ",".join(["step", *self._columns]) + "\n"
            replace_file(self._path, (head + self._lines(self._points)).encode())
        elif points:
            with self._path.open("a") as file:
                file.write(self._lines(points))

    def close(self, *, finished: bool) -> None:
        """Nothing is open."""

    def _lines(self, points: Sequence[Point]) -> str:
        text = io.StringIO()
        rows = csv.DictWriter(text, ["step", *self._columns], lineterminator="\n")
        rows.writerows({"step": point.step, **point.values} for point in points)
        return text.getvalue()
