"""Functions of a user, named in an option as ``package.module:function``. No torch."""

from __future__ import annotations

import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from senet.errors import ConfigError, RunError, did_you_mean, has_own_line, place

_NOT_THEIRS = (ConfigError, RunError, OSError, MemoryError)  # the last two may pass, and the run be launched again
# likewise; RuntimeErrors of torch, which is not imported here
_OF_THE_MACHINE = re.compile(
    r"(OutOfMemory|Accelerator|Dist\w+)Error|CUDA|CUBLAS|CUDNN|cuDNN|CUSOLVER|NCCL|gloo|pair closure|allocate memory"
)
_KINDS: dict[str, type | tuple[type, ...]] = {"bool": bool, "int": int, "float": (int, float), "str": str}
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load_function(
    option: str,
    name: str,
    *,
    given: Sequence[str],
    arguments: Mapping[str, Any] | None = None,
    arguments_option: str = "",
) -> Callable[..., Any]:
    """Import the function that ``option=name`` stands for, and see whether it can be called as it will be.

    Args:
        given: arguments that the program passes, by name.
        arguments: those that the user sets besides, and ``arguments_option`` the option with which.

    Raises:
        ConfigError: it cannot be imported, or not be called with these arguments.
    """
    module_name, _, function_name = name.partition(":")
    if not (module_name and function_name):  # checked before importing, which runs code
        example = f"e.g. {option}=mine:NAME for the function NAME in mine.py beside launch.sh"
        raise ConfigError(f"{option}={name!r} is no package.module:function; {example}")
    with own_code(f"{option}={name}: {module_name}", "cannot be imported"):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ConfigError(
                f"{option}={name}: {error}; {module_name} is looked for beside launch.sh, on PYTHONPATH and among the "
                f"installed packages"
            ) from None
    function: Any = getattr(module, function_name, None)
    if function is not None and not callable(function):
        kind = type(function).__name__
        raise ConfigError(f"{option}={name}: {function_name} of {module_name} is no function, but of type {kind}")
    if function is None:
        near = did_you_mean(function_name, [key for key, value in vars(module).items() if callable(value)])
        raise ConfigError(f"{option}={name}: {module_name} has no function {function_name}; {near or 'name another'}")
    _check_call(f"{option}={name}", function, given, arguments or {}, arguments_option)
    found: Callable[..., Any] = function
    return found


@contextmanager
def own_code(what: str, how: str = "failed") -> Iterator[None]:
    """What a user's own code raises in here, before any training, is a user's mistake: one line with the innermost line
    of theirs. What comes of the machine or of another rank is raised as it is.

    Args:
        what: the option that names the code; the line goes on with ``how``.
    """
    try:
        yield
    except _NOT_THEIRS:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if isinstance(error, RuntimeError) and (_OF_THE_MACHINE.search(text) or not has_own_line(error)):
            raise
        frames = list(traceback.walk_tb(error.__traceback__))
        where = "" if isinstance(error, SyntaxError) else f", at {place(frames)}"  # that names its line itself
        raise ConfigError(f"{what} {how}: {text}{where}; mend that line, or what it is given") from error


def _check_call(
    what: str, function: Callable[..., Any], given: Sequence[str], arguments: Mapping[str, Any], option: str
) -> None:
    """ConfigError unless ``function(**given, **arguments)`` fits its signature; names what does not."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: {error}; it must be a Python function") from None
    parameters = signature.parameters.values()
    known = [each.name for each in parameters if each.kind in _BY_NAME]
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    for key, value in arguments.items():
        if key in given:
            raise ConfigError(f"{option}.{key}={value}: the program itself gives {key}; leave this option out")
        if key not in known and not takes_all:
            others = [each for each in known if each not in given]
            hint = did_you_mean(key, others) or f"it has {', '.join(others) or 'none but ' + ', '.join(given)}"
            raise ConfigError(f"{option}.{key}={value}: {what} has no argument {key}; {hint}")
        if key in known:
            _check_kind(f"{option}.{key}={value}", value, signature.parameters[key].annotation)
    try:
        signature.bind(**dict.fromkeys([*given, *arguments]))
    except TypeError as error:
        remedy = f", set others with {option}.NAME=value" if option else ""
        raise ConfigError(f"{what}: {error}; it must take {', '.join(given)} by name{remedy}") from None


def _check_kind(given: str, value: Any, hint: Any) -> None:
    """ConfigError where the function says bool, int, float or str of an argument, and the value is none."""
    kind = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
    if value is None or kind not in _KINDS:
        return
    if not isinstance(value, _KINDS[kind]) or isinstance(value, bool) != (kind == "bool"):
        quote = "; put a text that looks like something else in quotes" if kind == "str" else ""
        raise ConfigError(f"{given} is no {kind}, which the function asks for{quote}")
