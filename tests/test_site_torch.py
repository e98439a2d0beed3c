"""Whether the torch of a Python will do, for a .venv that uses it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from senet import REPOSITORY, site_torch
from senet.errors import ConfigError


def test_the_torch_of_this_python_will_do_and_is_pinned() -> None:
    packages = Path(torch.__file__).parent.parent
    assert site_torch.find() == [
        f"torch=={importlib.metadata.version('torch')}",
        f"# {packages}",
        f"torchvision=={importlib.metadata.version('torchvision')}",
    ]


@pytest.mark.parametrize(
    ("packages", "why"),
    [
        ({}, "python has no torch; load the site's module first, or name the Python that has it: PYTHON="),
        ({"torch": "2.9.1"}, "has torch 2.9.1; it must be 2.10 or newer and older than 2."),
        ({"torch": "3.0"}, "has torch 3.0; it must be 2.10 or newer"),
        ({"torch": "2.15a0"}, "has torch 2.15a0; it must be 2.10 or newer"),
        ({"torch": "git"}, "has torch git; it must be 2.10 or newer"),
        ({"torch": "2.10a0"}, "python has no torchvision; "),
        ({"torch": ""}, "has no torch.dist-info beside it, so pip cannot keep it"),
        ({"torch": "2.10.0a0+container"}, "python has no torchvision; "),
        ({"torch": "2.12.0", "torchvision": "0.24.0"}, "has torchvision 0.24.0; it must be 0.25 or newer"),
        (
            {"torch": "2.12.0", "torchvision": "0.27.0", "wrong": "operator torchvision::nms does not exist"},
            "python does not fit its torch 2.12.0: operator torchvision::nms does not exist\n",
        ),
        ({"torch": "2.12.0", "torchvision": "0.27.0"}, ""),
    ],
)
def test_a_torch_that_will_not_do_is_refused_in_one_line(packages: dict[str, str], why: str, tmp_path: Path) -> None:
    wrong = packages.pop("wrong", "")
    for name, version in packages.items():
        (tmp_path / name).mkdir()
        fails = f"raise RuntimeError({wrong!r})\n" if wrong and name == "torchvision" else ""
        code = f"import types\n__version__ = {version!r}\nversion = types.SimpleNamespace(cuda=None)\n{fails}"
        (tmp_path / name / "__init__.py").write_text(code)
        if version:
            (tmp_path / f"{name}-{version}.dist-info").mkdir()
            (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    python = tmp_path / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    environment = {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [python, "-P", "-s", "-m", "senet.site_torch"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == (2 if why else 0)
    assert why in done.stderr
    assert done.stderr.count("\n") == bool(why)
    assert not why or done.stderr.startswith("launch.sh: SYSTEM_TORCH=1: ")


class OldDriver:
    code = 0

    def cuDriverGetVersion(self, number: object) -> int:
        number._obj.value = 12020  # type: ignore[attr-defined]
        return self.code


def test_a_build_that_does_not_start_on_the_driver_is_refused_but_only_warned_of_where_no_gpu_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda = SimpleNamespace(is_available=lambda: False)
    built = SimpleNamespace(__version__="2.12.0", version=SimpleNamespace(cuda="13.0"), cuda=cuda)
    said = "torch 2.12.0, built for CUDA 13.0, finds no GPU; the driver here is for CUDA 12.2; "
    monkeypatch.setattr(ctypes, "CDLL", lambda _: OldDriver())
    monkeypatch.setattr(site_torch, "count_gpus", lambda: 1)
    with pytest.raises(ConfigError, match=said):
        site_torch.check_driver(built)
    monkeypatch.setattr(site_torch, "count_gpus", lambda: 0)
    site_torch.check_driver(built)
    assert capsys.readouterr().err.startswith(f"launch.sh: warning: {said}")
    cuda.is_available = lambda: True
    site_torch.check_driver(built)
    cuda.is_available, built.version.cuda = lambda: False, None
    site_torch.check_driver(built)
    monkeypatch.setattr(site_torch, "count_gpus", lambda: 1)
    built.version.cuda = "12.8"  # fits, so there is another reason: CUDA_VISIBLE_DEVICES=
    site_torch.check_driver(built)
    built.version.cuda = "13.0"
    monkeypatch.setattr(OldDriver, "code", 34)  # a stub of the library
    site_torch.check_driver(built)

    def missing(_: str) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    site_torch.check_driver(built)
    assert capsys.readouterr().err == ""
