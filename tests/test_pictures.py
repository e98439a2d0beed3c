"""The pictures of the README, and what is kept of the run that they show."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from docs.pictures.make import HERE, check_bits, draw_terminal
from docs.pictures.session import Session, on_screen
from docs.pictures.svg import COLUMNS, to_svg
from docs.pictures.tree import draw_shards

SHOWN = HERE / "terminal.txt"


def test_the_terminal_picture_is_drawn_from_what_was_kept() -> None:
    assert (HERE / "terminal.svg").read_text() == draw_terminal(SHOWN.read_text().splitlines())


def test_the_picture_of_shards_is_the_one_that_is_drawn() -> None:
    assert (HERE / "shards.svg").read_text() == draw_shards()


def test_what_was_kept_is_a_run_that_was_killed_and_resumed_to_the_same_weights() -> None:
    text = SHOWN.read_text()
    assert text.index("\nKilled\n") < text.index("\nresumed from ") < text.index("\nfinished: ")
    check_bits(text.splitlines())


@pytest.mark.parametrize(
    "shown",
    [
        ["1a runs/quickstart", "2b runs/undisturbed"],
        ["1a runs/quickstart", "$ ls"],
        ["runs/quickstart: no such file", "runs/undisturbed: no such file"],
    ],
)
def test_a_recording_of_unlike_weights_is_refused(shown: list[str]) -> None:
    check_bits(["$ ./launch.sh", "1a runs/quickstart", "1a runs/undisturbed"])
    with pytest.raises(SystemExit, match="not the same"):
        check_bits(["$ ./launch.sh", *shown])


@pytest.mark.parametrize("name", ["terminal.svg", "report.png", "shards.svg"])
def test_a_picture_is_small(name: str) -> None:
    assert 2_000 < (HERE / name).stat().st_size < 200_000


def test_the_report_is_wide_enough_to_be_read() -> None:
    with Image.open(HERE / "report.png") as picture:
        assert picture.width >= 1000


def test_a_line_that_is_too_long_goes_on_in_the_next_row() -> None:
    svg = to_svg(["$ ls", "word " * 20, "a column  " * 7, "<&>"], {0: "a note"}, title="a title")
    texts = re.findall(r">(.*)</text>", svg.replace("\N{NO-BREAK SPACE}", " "))
    assert texts[:2] == ["$ ls", "  \N{LEFTWARDS ARROW} a note"]
    assert texts[2:4] == [" ".join(["word"] * 13), "    " + " ".join(["word"] * 7)]
    assert texts[4:6] == ["  ".join(["a column"] * 6), "    a column"]
    assert texts[6:] == ["&lt;&amp;&gt;"]
    assert max(len(text) for text in texts) <= COLUMNS


def test_a_terminal_shows_what_a_carriage_return_has_left() -> None:
    assert on_screen("1 of 10\r2 of 10\r10 of 10\r\nabc\rX\r\n") == ["10 of 10", "Xbc", ""]


@pytest.mark.ranks
def test_a_session_is_typed_into_and_killed(tmp_path: Path) -> None:
    session = Session(tmp_path, 80)
    sleeper = f'{sys.executable} -c "import time; print(6 * 7, flush=True); time.sleep(600)"'
    started = time.monotonic()
    session.type(sleeper, kill_when=lambda text: "42" in text)
    session.type("echo $COLUMNS; pwd")
    assert time.monotonic() - started < 300
    assert session.close() == [f"$ {sleeper}", "42", "", "Killed", "$ echo $COLUMNS; pwd", "80", str(tmp_path)]
