"""What people write -> values: YAML that guesses no types, and a text as the type of its option has it.

YAML 1.1 takes ``010`` for 8, ``1:30`` for 90, ``off`` for false. Here each scalar stays the text it was until the type
of its option is known.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import unicodedata
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import yaml

_MOST_VALUES = 10_000  # in a document, aliases written out
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?(((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|\.?inf|\.?nan)", re.IGNORECASE)


class Quoted(str):
    """A scalar that was in quotes or a block: text, whatever it looks like."""


def _scalar(_: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(node.value) if node.style is None else Quoted(node.value)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<"))]}  # noqa: RUF012 # as PyYAML has it
    yaml_constructors = {  # noqa: RUF012
        **{f"tag:yaml.org,2002:{tag}": _scalar for tag in ("str", "int", "float", "bool", "null", "merge")},  # !!int 3
        "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
        "tag:yaml.org,2002:map": yaml.SafeLoader.construct_yaml_map,
        None: yaml.SafeLoader.construct_undefined,
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for number, key in enumerate(keys) if key in keys[:number]), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse(content: bytes | str) -> Any:
    """A YAML document as dicts, lists and texts; "" where it is empty.

    Raises:
        ValueError: it is none, or holds a key twice, an alias of itself, an unknown tag, more than 10,000 values.
    """
    try:
        loader = _Loader(content)
        root = loader.get_single_node()
        if root is None:
            return ""
        _refuse_floods(root)
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        hint = "; use spaces" if "'\\t'" in str(error.problem) else ""
        if "alphabetic or numeric" in str(error.problem) or "undefined alias" in str(error.problem):  # * or & in front
            hint = "; put a text that begins with * or & in quotes"
        raise ValueError(f"{at}{' '.join(str(error.problem).split())}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_floods(root: yaml.Node) -> None:
    """A few lines of aliases of aliases, or one of itself, would take all memory."""
    waiting: list[Any] = [root]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    raise ValueError(f"it holds more than {_MOST_VALUES:,} values, or an alias of itself")


def unquoted(text: str) -> str:
    """A text from the command line: as it stands, less quotes around all of it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            inner = parse(text)
        except ValueError:
            return text
        return inner if isinstance(inner, Quoted) else text
    return text


def plain(value: Any, *, escaped: bool = False) -> Any:
    """Dicts, lists and scalars of no class of ours; ``escaped`` so that reading finds no interpolation in it."""
    if isinstance(value, dict):
        return {str(key): plain(each, escaped=escaped) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, escaped=escaped) for each in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if escaped else str(value)
    return value


class _Dumper(yaml.SafeDumper):
    """With quotes around texts that this module, other than PyYAML, would take for something else: 1e-3, None."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if _as_it_looks(data) == data else "'")


_Dumper.add_representer(str, _Dumper.represent_str)


def as_yaml(content: dict[str, Any]) -> str:
    """YAML that ``parse`` and ``as_type`` read back."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf))


def as_path(text: str) -> str:
    """With the home directory for ``~`` or ``~name`` at its beginning.

    Raises:
        ValueError: no such user, or a variable as a shell has it; the message goes on from "key=value".
    """
    path = os.path.expanduser(text)  # noqa: PTH111 # Path.expanduser raises, and drops a "./" in front
    if path.startswith("~"):
        raise ValueError(f"begins with ~, but there is no such user; a folder of this name is ./{text}")
    if variable := re.search(r"(?:^|/)\$(\w+)(?=/|$)", path):
        raise ValueError(f"holds a variable, which is not replaced; write ${{oc.env:{variable[1]}}}")
    return path


def as_type(value: Any, hint: Any) -> Any:
    """What was written, as the type of an option: a dataclass field's type hint, made of bool, int, float, str, Any,
    Literal, tuple, dict, or a union, of which the value itself says what it is.

    Raises:
        ValueError: it is none; the message goes on from "key=value".
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple:
        return _as_tuple(value, parts)
    if origin is UnionType:
        return _as_it_looks(value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError("is no mapping; write {NAME: value}, or set one entry of it")
        return {str(key): _entry(each, parts[1], f"{key}=") for key, each in value.items()}
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        raise ValueError(
            f"is a {kind}, but this option has one value" + ("; put text in quotes" if hint is str else "")
        )
    text = _text(value)
    if origin is Literal:
        return _as_word(text, parts)
    if hint in (bool, int, float):
        return _as_number(text, hint)
    if isinstance(text, Quoted):
        return str(text)
    if text in ("null", "Null", "NULL") or (hint is Any and not text):
        raise ValueError("is no value; leave the option out for its default, or quote it if the text is meant")
    return _TRUTH.get(text.lower(), text) if hint is Any and text.isalpha() else text


def shown(value: Any) -> str:
    """For a message: on one line, not long."""
    if isinstance(value, list | tuple):
        simple = not any(isinstance(each, dict | list) for each in value)
        text = f"[{','.join(map(_text, value))}]" if simple else "[...]"
    else:
        text = "{...}" if isinstance(value, dict) else _text(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _as_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    count = None if Ellipsis in parts else len(parts)
    if not isinstance(value, list | tuple):
        some = shown(value).strip("()[], ") if isinstance(value, str) else ""
        if count and len(some.split(",")) != count:
            raise ValueError(f"is no list of {count}; write them in brackets: [{', '.join(['...'] * count)}]")
        raise ValueError(f"is no list; write it in brackets: [{some or '...'}]")
    if count is not None and len(value) != count:
        raise ValueError(f"has {len(value)} entries; this list has {count}")
    return tuple(_entry(each, parts[0]) for each in value)


def _entry(value: Any, hint: Any, name: str = "") -> Any:
    try:
        return as_type(value, hint)
    except ValueError as error:
        raise ValueError(f"holds {name}{shown(value)}, which {error}") from None


def _as_it_looks(value: Any) -> Any:
    """A number, true, false, null, also in lists and mappings; what is in quotes, and the rest, is text."""
    if isinstance(value, dict):
        return {str(key): _as_it_looks(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_it_looks(each) for each in value]
    if isinstance(value, Quoted) or not isinstance(value, str):
        return plain(value)
    if value.lower() in _CONSTANTS:
        return _CONSTANTS[value.lower()]
    if _WHOLE.fullmatch(value):
        return int(value)
    number = float(value) if _NUMBER.fullmatch(value) and value[-1].isdecimal() else math.nan
    return number if math.isfinite(number) else value


def _as_number(text: str, kind: type) -> Any:
    odd = next((each for each in text if not each.isascii()), "")
    odd = odd and f" ({odd!r} is {unicodedata.name(odd, 'no character')})"  # a dash may look like a minus
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise ValueError(f"is no truth value{odd}; write true or false")
        return _TRUTH[text.lower()]
    if kind is int:
        if not _WHOLE.fullmatch(text):
            raise ValueError(f"is no whole number{odd}; write it in decimal digits alone, e.g. 10")
        return int(text)
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"is no number{odd}; write it in decimal digits, e.g. 10, 0.1 or 1e-3")
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _as_word(text: str, words: tuple[str, ...]) -> str:
    """YAML's truth values are on and off where an option has these among its words."""
    switch = {"true": "on", "yes": "on", "false": "off", "no": "off"}.get(text.lower(), "")
    for word in words:
        if word in (text, switch):
            return word
    near = difflib.get_close_matches(text.lower(), words, n=1, cutoff=0.75)  # gpu is not cpu
    raise ValueError(f"is none of {', '.join(words)}" + "".join(f"; did you mean {each}?" for each in near))


def _text(value: Any) -> str:
    """Numbers and truth values come from defaults and interpolations."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else str(value)
