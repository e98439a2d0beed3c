"""Makes the pictures of the README: ``make pictures``, or ``make pictures RUN=runs/mine`` for another run's report.

``terminal.svg``: the quickstart is trained, killed with SIGKILL, started again by the same command, and compared with a
run that nothing disturbed. What the terminal showed is kept in ``terminal.txt``. ``report.png``: the top of a run's
report page, by default of that run. ``shards.svg`` is drawn. A few minutes, with Debian's chromium; nothing else should
run meanwhile, since the pictures show images per second.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from docs.pictures.session import Session
from docs.pictures.svg import to_svg
from docs.pictures.tree import draw_shards
from senet import REPOSITORY

HERE = Path(__file__).resolve().parent
TITLE = (
    "A terminal: a training is killed, the same command resumes it, and its weights have the sha256 of an unbroken run"
)
COLUMNS = 84  # the line of an epoch fits
SAVED = "step_000000060.g0001.json"  # in the middle of the third epoch of 22 steps
SIZE = (1120, 850)  # of the picture of a report, in pixels: down to the two figures of the training


def record(folder: Path) -> list[str]:
    """What a terminal in ``folder`` shows of a training that is killed and resumed, and of one that is not."""
    for name in ("launch.sh", "docs", ".venv"):
        (folder / name).symlink_to(REPOSITORY / name)
    prepared = Session(folder, COLUMNS)  # the images are decoded, as they would be after any earlier start
    prepared.type("./launch.sh run_dir=runs/first", kill_when=lambda _: (folder / "runs/first/model.txt").exists())
    prepared.close()
    shutil.rmtree(folder / "runs/first")

    saved = folder / "runs/quickstart/checkpoints" / SAVED
    session = Session(folder, COLUMNS)
    session.type(
        "./launch.sh",
        kill_when=lambda text: saved.exists() and bool(re.search(r"epoch 3/4: .* (1[89]|2[01])/22", text)),
    )
    session.type("./launch.sh")
    session.type("./launch.sh run_dir=runs/undisturbed 2>&1 | tail -n 1")
    session.type(".venv/bin/python docs/pictures/weights_sha256.py runs/*")
    lines = session.close()
    check_bits(lines)
    return lines


def check_bits(lines: Sequence[str]) -> None:
    """End with an error unless the last lines show the same weights of both runs."""
    bits = {run: digest for digest, _, run in (line.partition(" ") for line in lines[-2:])}
    if set(bits) != {"runs/quickstart", "runs/undisturbed"} or len(set(bits.values())) != 1:
        sys.exit("\n".join(["the weights of the two runs are not the same:", *lines[-2:]]))


def draw_terminal(lines: Sequence[str]) -> str:
    """The SVG of what ``record`` has seen, with three remarks."""
    killed = lines.index("Killed")
    again = lines.index("$ ./launch.sh", killed)
    notes = {killed: "kill -9, the launcher and both ranks", again: "the same command", len(lines) - 1: "the same bits"}
    return to_svg(lines, notes, title=TITLE)


def photograph(page: Path) -> bytes:
    """The top of a page as PNG of few colours."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        command = ["chromium", *options, size, f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        content = io.BytesIO()
        Image.open(shot).convert("RGB").quantize(256).save(content, "png", optimize=True)
    return content.getvalue()


def main(run_dir: Path | None) -> None:
    """Make all; ``run_dir``: whose report is shown."""
    (HERE / "shards.svg").write_text(draw_shards())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = record(folder)
        (HERE / "terminal.svg").write_text(draw_terminal(lines))
        (HERE / "terminal.txt").write_text("".join(f"{line}\n" for line in lines))
        reported = (run_dir or folder / "runs/quickstart").resolve()
        subprocess.run([sys.executable, "-m", "senet.report", reported], check=True, cwd=REPOSITORY)
        (HERE / "report.png").write_bytes(photograph(reported / "report/report.html"))
    print(f"{HERE}: shards.svg, terminal.svg, terminal.txt, report.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
