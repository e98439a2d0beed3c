"""``python -m senet.config [arguments of train_ddp.py]`` checks them and prints the resolved options; with
``--completions``, the words that Tab completes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from senet.config.load import load_config, to_yaml
from senet.config.manual import asked, completions, help_text
from senet.errors import REFUSED_EXIT_CODE, ConfigError


def main(argv: Sequence[str]) -> int:
    """Check a command line as the launcher does: print the resolved options, or one line and exit code 2."""
    try:
        if (topics := asked(argv)) is not None:
            print(help_text(topics))
        elif list(argv) == ["--completions"]:
            print(*completions(), sep="\n")
        else:
            print(to_yaml(load_config(argv)), end="")
    except ConfigError as error:
        print(f"train_ddp: {error}", file=sys.stderr)
        return REFUSED_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
