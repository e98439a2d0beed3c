"""The command line of the doctor. No torch."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from senet.command import Parser, path_argument
from senet.errors import ConfigError
from senet.verbs import typed

MOST_SECONDS = 600


def parse(argv: Sequence[str]) -> Namespace:
    """``options`` (the arguments of a training), ``json``, ``out``, ``max_seconds``.

    Raises:
        ConfigError: an unknown flag, a bad value.
    """
    parser = Parser(
        prog=typed("doctor"),
        description="Whether this host, or all hosts of a launch, are fit to train: exact arithmetic, speed, network, "
        "names, clocks, files, limits, versions. Rank 0 compares the hosts and names those that stand out.",
        epilog="Exit code: 0 nothing is wrong (what is slow is warned of), 1 something is wrong or late, 2 bad input.",
    )
    parser.add_argument(
        "options",
        nargs="*",
        default=(),  # else argparse calls them required
        metavar="FILE.yaml or key=value",
        help="as for a training, of which it uses run_dir, data.root, train.device, train.threads_per_rank",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--out", type=path_argument, metavar="FILE", help="write the JSON object there, too")
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=15.0,
        metavar="S",
        help="how long to wait for a rank that does not come, and how long the checks may then take (default 15)",
    )
    arguments = parser.parse_intermixed_args(argv)
    if not 1 <= arguments.max_seconds <= MOST_SECONDS:
        raise ConfigError(f"--max-seconds {arguments.max_seconds:g} must be from 1 to {MOST_SECONDS}")
    if arguments.out and not arguments.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {arguments.out}: no such folder")
    return arguments
