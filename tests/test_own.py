"""Functions that a user names as ``package.module:function``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from senet import REPOSITORY
from senet.errors import ConfigError
from senet.own import load_function, own_code

MODULE = """
def build(num_classes, width: int = 8, depth: "float" = 2, name: str = "", gates: bool = True):
    return num_classes * width ** depth

def takes_all(num_classes, **others):
    return num_classes, others

def needs_width(num_classes, width):
    return num_classes, width

def by_place(num_classes, /):
    return num_classes

Thing = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the program."""
    (tmp_path / "mine_of_tests.py").write_text(MODULE)
    (tmp_path / "broken_of_tests.py").write_text("import nowhere_of_tests")
    (tmp_path / "wrong_of_tests.py").write_text("a = 1\nb = a + c\n")
    (tmp_path / "torn_of_tests.py").write_text("a = 1\nb = (\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "mine_of_tests"


def load(name: str, /, **arguments: Any) -> Any:
    return load_function("model.name", name, given=["num_classes"], arguments=arguments, arguments_option="model.args")


def test_a_named_function_is_found_and_can_be_called(mine: str) -> None:
    assert load(f"{mine}:build", width=3, depth=2)(num_classes=10, width=3) == 90
    load(f"{mine}:build", width=None, depth=0.5, name="a", gates=False)
    assert load(f"{mine}:takes_all", anything=[1])(num_classes=2, anything=[1]) == (2, {"anything": [1]})


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (
            "build",
            {"widht": 3},
            r"model\.args\.widht=3: model\.name=\S+:build has no argument widht; did you mean",
        ),
        ("build", {"x": 3}, r"model\.args\.x=3: .* has no argument x; it has width, depth, name, gates"),
        ("build", {"num_classes": 3}, r"model\.args\.num_classes=3: the program itself gives num_classes"),
        ("build", {"width": "abc"}, r"model\.args\.width=abc is no int, which the function asks for$"),
        ("build", {"width": 2.5}, r"model\.args\.width=2\.5 is no int"),
        ("build", {"width": True}, r"model\.args\.width=True is no int"),
        ("build", {"depth": "x"}, r"model\.args\.depth=x is no float"),
        ("build", {"gates": 1}, r"model\.args\.gates=1 is no bool"),
        ("build", {"name": 3}, r"model\.args\.name=3 is no str, .* in quotes"),
        ("needs_width", {}, r"missing a required argument: 'width'; .* set others with model\.args\.NAME=value"),
        ("by_place", {}, r"must take num_classes by name"),
        ("biuld", {}, r"mine_of_tests has no function biuld; did you mean 'build'\?"),
        ("Thing", {}, r"Thing of mine_of_tests is no function, but of type int$"),
        ("", {}, r"model\.name='mine_of_tests:' is no package\.module:function; e\.g\. model\.name=mine:NAME for the"),
    ],
)
def test_a_call_that_cannot_be_made_is_refused(
    mine: str, function: str, arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        load(f"{mine}:{function}", **arguments)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("name", ["nowhere_of_tests:f", "broken_of_tests:f", "a..b:f"])
def test_a_module_that_cannot_be_imported_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^model.name={name}: .*; {name.partition(':')[0]} is looked for beside"):
        load(name)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("wrong_of_tests", r"NameError: name 'c' is not defined, at \S+/wrong_of_tests\.py:2 <module>; mend that line"),
        ("torn_of_tests", r"SyntaxError: '\(' was never closed \(torn_of_tests\.py, line 2\); mend that line"),
    ],
)
def test_a_bug_in_a_module_is_told_in_a_line(module: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^model.name={module}:f: {module} cannot be imported: {expected}"):
        load(f"{module}:f")


def called(act: Callable[[], object]) -> None:
    """As by a module of the program."""
    code = compile("with own_code('the network'):\n    act()", REPOSITORY / "senet" / "x.py", "exec")
    exec(code, {"own_code": own_code, "act": act})


def test_what_comes_of_the_machine_or_of_another_rank_is_no_mistake_of_the_user() -> None:
    of_torch = [type(name, (RuntimeError,), {})() for name in ("OutOfMemoryError", "DistBackendError")]
    words = (
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "NCCL error in: x, ncclRemoteError",
        "[../third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    )
    for error in (OSError(5, "Input/output error"), MemoryError(), *of_torch, *map(RuntimeError, words)):

        def fails(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)):
            called(fails)
    # as that of a collective: without a line of theirs
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        called(threading.Lock().release)
    of_theirs = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
    with pytest.raises(ConfigError, match=rf"^the network failed: RuntimeError: {of_theirs}, at \S+:\d+ fails; "):
        called(lambda: fails(RuntimeError(of_theirs)))
