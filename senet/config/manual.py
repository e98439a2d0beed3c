"""The option manual: ``--help``, from the doc strings of the dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any, Literal, get_args, get_origin, get_type_hints

from senet.config.options import groups, range_text


def help_text() -> str:
    """The option manual, from the doc strings of the dataclasses above."""
    lines = [
        "usage: train_ddp.py [FILE.yaml ...] [key=value ...]",
        "",
        "Train a network with DistributedDataParallel; type the same command again to resume.",
        "Defaults <- YAML files <- key=value, later wins. Without a file: configs/cifar10.yaml.",
        "Values: a text as it stands, a number in decimal digits, true or false, a list in brackets. A ~ that begins a",
        "path is home; ${oc.env:VARIABLE} and ${group.option} are replaced.",
        "Options marked * may change on resume; the others change the numbers and are refused.",
        "Exit codes of a rank: 0 finished, 2 bad input, 85 stopped and resumable, else failed.",
    ]
    for cls, group in groups():
        lines += ["", *group_help(cls, group)]
    return "\n".join(lines)


def group_help(cls: type, group: str) -> list[str]:
    """The lines of one group in the option manual."""
    lines = [f"{group or 'top level'}: {inspect.getdoc(cls)}"]
    docs = _field_docs(cls)
    hints = get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        if spec.name not in docs:
            continue
        key = f"{group}.{spec.name}" if group else spec.name
        mark = "*" if spec.metadata.get("free") else ""
        kind = type_name(hints[spec.name]) + range_text(spec)
        default = {} if spec.default is dataclasses.MISSING else spec.default
        lines.append(f"  {key}{mark} = {yaml_value(default)}   ({kind})")
        lines += textwrap.wrap(docs[spec.name], 108, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _field_docs(cls: type) -> dict[str, str]:
    """The string literal under each field, which Python itself does not keep."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            assert isinstance(statement.target, ast.Name)
            docs[statement.target.id] = " ".join(str(below.value.value).split())
    return docs


def type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {get_args(hint)[0].__name__}"
    if get_origin(hint) is dict:
        return "mapping"
    return str(hint.__name__)


def yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value) or "''"
