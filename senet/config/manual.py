"""The option manual: ``--help``, from the doc strings of the dataclasses; and the words that Tab completes."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from senet.config.options import groups, options, range_text, those, types
from senet.errors import ConfigError, did_you_mean
from senet.verbs import default_recipe, typed

_FIRST = (
    "run_dir", "seed", "data.source", "data.folder", "data.image_size", "model.name", "model.init_from",
    "train.epochs", "train.global_batch_size", "optim.lr",
)  # fmt: skip
_WIDTH = 100


def asked(argv: Sequence[str]) -> list[str] | None:
    """The words behind ``--help``; None where it is not among the arguments."""
    at = [number for number, argument in enumerate(argv) if argument in ("-h", "--help")]
    return list(argv[at[0] + 1 :]) if at else None


def show_help(argv: Sequence[str]) -> int:
    """Print what the words behind ``--help`` name; the exit code."""
    print(help_text(asked(argv) or ()))
    return 0


def help_text(topics: Sequence[str] = ()) -> str:
    """The option manual: what people set first and the names of the groups; or whole groups, or all of it.

    Raises:
        ConfigError: a topic that is neither a group nor ``all``.
    """
    known = {group: cls for cls, group in groups() if group}
    for topic in topics:
        if topic not in known and topic != "all":
            near = did_you_mean(topic.partition(".")[0], [*known, "all"]) or f"there is {', '.join(known)} and all"
            raise ConfigError(f"--help {topic}: no such group of options; {near}")
    if "all" in topics:
        return "\n\n".join([_usage(), *map(group_help, ("", *known))])
    if topics:
        return "\n\n".join(map(group_help, topics))
    specs = dict(options())
    first = [_short(f"{key} = {_default(specs[key])}", 32, _docs()[key]) for key in _FIRST]
    rest = [_short(group, 12, inspect.getdoc(cls) or "") for group, cls in known.items()]
    heading = "Groups of options; --help GROUP shows one, --help all the whole manual:"
    return "\n".join([_usage(), "", "Options that people set first:", *first, "", heading, *rest])


def group_help(group: str) -> str:
    """All that the manual says of a group; "" is the top level."""
    [cls] = [cls for cls, name in groups() if name == group]
    lines = [f"{group or 'top level'}: {inspect.getdoc(cls)}"]
    for key, spec in options():
        if key.rpartition(".")[0] == group:
            mark = "*" if key in those("free") else ""
            lines.append(f"  {key}{mark} = {_default(spec)}   ({_kind(types()[key])}{range_text(spec)})")
            lines += textwrap.wrap(_docs()[key], _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def completions() -> list[str]:
    """What Tab offers: ``key=value`` for each value of an option that has few, ``key=`` for the others."""
    words = []
    for key, _ in options():
        hint = types()[key]
        values = get_args(hint) if get_origin(hint) is Literal else ("true", "false") if hint is bool else ("",)
        words += [f"{key}={value}" for value in values]
    return words


def _usage() -> str:
    return f"""\
usage: {typed("train")} [FILE.yaml ...] [key=value ...]

Train a network with DistributedDataParallel; the same command again resumes.
Defaults <- YAML files <- key=value, later wins. Without a file: {default_recipe()}.
Values: a text as it stands, a number in decimal digits, true or false, a list in brackets. A ~ that
begins a path is home; ${{oc.env:VARIABLE}} and ${{group.option}} are replaced.
Options marked * may change on resume; the others change the numbers and are refused.
Exit codes of a rank: 0 finished, 2 bad input, 85 stopped and resumable, else failed."""


def _short(name: str, width: int, text: str) -> str:
    """Name and text side by side, the text cut to two lines."""
    head = f"  {name:<{width}} "
    return textwrap.fill(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), max_lines=2, placeholder=" ..."
    )


@functools.cache
def _docs() -> dict[str, str]:
    """The string literal under each field, which Python itself does not keep."""
    docs = {}
    for cls, group in groups():
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in itertools.pairwise(tree.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                assert isinstance(field.target, ast.Name)
                name = field.target.id
                docs[f"{group}.{name}" if group else name] = " ".join(str(below.value.value).split())
    return docs


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_kind(get_args(hint)[0])}"
    return "mapping" if get_origin(hint) is dict else str(hint.__name__)


def _default(spec: dataclasses.Field[Any]) -> str:
    value = {} if spec.default is dataclasses.MISSING else spec.default
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value) or "''"
