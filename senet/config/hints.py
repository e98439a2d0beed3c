"""What may have been meant by a word that is no option, no value and no file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from senet import REPOSITORY
from senet.config.options import options
from senet.errors import did_you_mean


def near_option(key: str) -> str:
    """A hint; the same name in another group comes before a similar one."""
    known = [name for name, _ in options()]
    key = key.lstrip("-+").replace("-", "_").lower()
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    near = near or [name for name in known if name.endswith(f"_{last}")]
    near = near or [name for name in known if "." in key and name.startswith(f"{key}_")]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else did_you_mean(key, known)


def what_was_meant(argument: str, overrides: Sequence[str]) -> str:
    """What may have been meant by a word that is neither a file nor an option with a value."""
    shipped = {path.stem: path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    if argument in shipped:
        return f"did you mean '{shipped[argument]}'?"
    if argument in dict(options()):
        return f"write {argument}=VALUE, without spaces"
    if Path(argument).is_dir():
        return f"to train on a folder of images: data.source=imagefolder data.folder={shlex.quote(argument)}"
    if argument.lower().endswith((".csv", ".tsv")):
        return f"to train on a table of images: data.source=table data.table={shlex.quote(argument)}"
    if overrides and overrides[-1].endswith(","):
        return f"leave out the space behind the comma: {overrides[-1]}{argument}"
    near = near_option(argument)
    if (
        overrides and "." not in argument and f".{argument}'" not in near
    ):  # after a space that the shell took for an end
        before = overrides[-1]
        if before.endswith("="):
            return f"leave out the space: {before}{argument}"
        return f"quote a value with spaces: {shlex.quote(f'{before} {argument}')}"
    return near
