"""A report of a finished or running training: ``python -m senet.report RUN_DIR [RUN_DIR ...]``.

Figures and one ``report.html`` in ``RUN_DIR/report``, from the files of the run directory alone. The network classifies
the test images once; the result is kept in ``predictions.npz`` there, so that a report of a copy of the run directory
needs neither images nor network, and is the same, byte for byte.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from senet.command import Parser, end
from senet.errors import ConfigError
from senet.extras import library
from senet.rundir.files import must_be_writable, replace_file
from senet.rundir.history import Run, read_run
from senet.rundir.named import one_run
from senet.verbs import typed

if TYPE_CHECKING:
    from senet.report.drawings import Drawing


def write_report(
    folders: Sequence[Path], *, model_name: str = "", device: str = "auto", overrides: Sequence[str] = ()
) -> Path:
    """Write the report of the first run, compared with the others; returns the path of its page.

    Raises:
        ConfigError: a folder is no run directory, a user's own network was not named, ``overrides`` (as for
            ``open_test_data``) name no images of its classes, or matplotlib or jinja2 is not installed.
    """
    runs = [read_run(folder) for folder in folders]
    for name in ("matplotlib", "jinja2"):
        library(name, "report")
    from senet.report.drawings import draw  # matplotlib and torch take seconds
    from senet.report.examine import predictions_of
    from senet.report.figures import to_svg
    from senet.report.page import render

    folder = runs[0].folder / "report"
    must_be_writable(folder, "report on a copy of the run directory")
    predictions, why = predictions_of(
        runs[0].folder, folder / "predictions.npz", model_name=model_name, device=device, overrides=overrides
    )
    drawings = draw(runs, predictions)
    svgs = {name: to_svg(drawing.figure) for name, drawing in drawings.items()}
    for old in folder.glob("*.svg"):
        old.unlink()
    for name, content in svgs.items():
        replace_file(folder / f"{name}.svg", content)
    replace_file(folder / "report.html", render(runs, drawings, svgs, predictions, why))
    to_tensorboard(runs[0], drawings)
    return folder / "report.html"


def to_tensorboard(run: Run, drawings: dict[str, Drawing]) -> None:
    """Write the figures to an event file, replaced by each report, if the run has TensorBoard files.

    In its own folder: TensorBoard would stop reading the training's event files at a newer one beside them.
    """
    if not (run.folder / "tensorboard").is_dir():
        return
    from torch.utils.tensorboard import SummaryWriter

    from senet.report.figures import styled

    folder = run.folder / "tensorboard" / "report"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(folder) as writer, styled():
        for name, drawing in drawings.items():
            writer.add_figure(f"report/{name}", drawing.figure, run.epochs[-1]["step"] if run.epochs else 0)


def main(argv: Sequence[str]) -> int:
    """Write the report, and print the path of its page."""
    parser = Parser(prog=typed("report"), description=__doc__.split("\n\n")[1])
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="the first is reported, all compared")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=(),  # else argparse calls them required
        metavar="key=value",
        help="where the test images are, if they have moved: data.source, data.root, data.folder, data.table, ...",
    )
    parser.add_model()
    parser.add_device()
    arguments = parser.parse_intermixed_args(argv)
    words = [*arguments.run_dirs, *arguments.overrides]  # of its two lists argparse fills the first alone
    overrides = [word for word in words if _is_override(word)]
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    folders = [one_run(word) for word in words if word not in overrides]
    if not folders:
        raise ConfigError("no RUN_DIR is named; --help shows the usage")
    print(write_report(folders, model_name=arguments.model, device=arguments.device, overrides=overrides))
    return 0


def _is_override(word: str) -> bool:
    """Whether it is ``key=value``. The path of a folder may hold a ``=`` too: runs/lr=0.1."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key and not Path(word).is_dir()


if __name__ == "__main__":
    end("report", main)
