"""What launch.sh adds to a command line: a recipe that lies beside it, and the quickstart's where none is named."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from senet import REPOSITORY
from senet.config.load import load_config, named_path, sort_arguments
from senet.errors import ConfigError
from senet.verbs import DEFAULT_RECIPE, QUICKSTART, typed


def with_recipe(verb: str, argv: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The arguments of ``train`` or ``slurm`` with the files they stand for.

    A relative path that leads nowhere from here is taken from the checkout, and ``say`` is told. Without a file it is
    the quickstart.

    Raises:
        ConfigError: a bad command line, or the quickstart with other images than the digits.
    """
    files, _ = sort_arguments(argv)
    if not files:
        argv = [str(REPOSITORY / QUICKSTART), *argv]
        if (source := load_config(argv).data.source) != "digits":
            own = "" if any(each.startswith("run_dir=") for each in argv) else " run_dir=runs/NAME"
            raise ConfigError(
                f"data.source={source} needs a recipe: {DEFAULT_RECIPE}, or for less than a few thousand images "
                f"{QUICKSTART}; type: {typed(verb)} {DEFAULT_RECIPE} {shlex.join(argv[1:])}{own}"
            )
        return argv
    beside = {}
    for name in files:
        if not named_path(name).exists() and (REPOSITORY / name).is_file():
            beside[name] = str(REPOSITORY / name)
            say(f"{name} is not in this folder; taken from {beside[name]}")
    return [beside.get(each.strip(), each) for each in argv]
