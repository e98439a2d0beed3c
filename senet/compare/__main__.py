"""Compare finished runs: ``python -m senet.compare RUN [RUN ...]``.

A table of the options that differ between the runs against their accuracy: mean, standard deviation and number over the
seeds, and which differences are more than chance. RUN is a run directory, a sweep, or a folder of runs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from senet.command import Parser, end, path_argument
from senet.compare.comparison import Comparison, compare
from senet.compare.table import as_csv, as_json, text
from senet.errors import ConfigError
from senet.extras import library
from senet.rundir.files import check_output, replace_file
from senet.rundir.named import folder_of
from senet.verbs import typed


def main(argv: Sequence[str]) -> int:
    """Print the comparison, and write its page if one is named."""
    parser = Parser(prog=typed("compare"), description=__doc__.split("\n\n")[1])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, a sweep, or a folder of runs")
    parser.add_argument("--score", choices=("last", "best"), default="last", help="which epoch is compared (last)")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="compare with the group of this option (again for more) alone: fewer pairs have narrower intervals",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print a row for each group")
    form.add_argument("--json", action="store_true", help="print all of it as a JSON object")
    parser.add_argument("--page", type=path_argument, metavar="FILE.html", help="write a page with curves, too")
    arguments = parser.parse_args(argv)
    write_page = _page_writer(arguments.page) if arguments.page else None
    found = compare([folder_of(word) for word in arguments.runs], score=arguments.score, against=arguments.against)
    if arguments.csv:
        sys.stdout.write(as_csv(found))
    elif arguments.json:
        sys.stdout.write(as_json(found))
    else:
        print(text(found, shutil.get_terminal_size().columns))
    if write_page:
        write_page(found)
    return 0


def _page_writer(path: Path) -> Callable[[Comparison], None]:
    """Refuses what can be refused before any run is read."""
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f"--page {path}: it is a page for a browser; name a file that ends in .html")
    check_output("--page", path)
    for name in ("matplotlib", "jinja2"):
        library(name, "report")
    from senet.compare.page import render  # matplotlib takes seconds

    return lambda found: replace_file(path, render(found))


if __name__ == "__main__":
    end("compare", main)
