"""Whether the torch of a Python will do, for a .venv that uses it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from senet import REPOSITORY, site_torch
from senet.errors import ConfigError


def write_package(folder: Path, name: str, version: str, *, code: str = "", requires: Sequence[str] = ()) -> Path:
    """As it lies where it is installed, without dist-info if it has no version."""
    (folder / name).mkdir(parents=True)
    head = f"import types\n__version__ = {version!r}\nversion = types.SimpleNamespace(cuda=None)\n"
    (folder / name / "__init__.py").write_text(head + code)
    if version:
        (info := folder / f"{name}-{version}.dist-info").mkdir()
        fields = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Provides-Extra: export"]
        (info / "METADATA").write_text("\n".join([*fields, *(f"Requires-Dist: {each}" for each in requires), ""]))
        (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        (info / "RECORD").write_text("")
    return folder


def write_wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> None:
    unpacked = write_package(folder / f"{name} unpacked", name, version, requires=requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for each in unpacked.glob("*/*"):
            file.write(each, each.relative_to(unpacked))


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
        fails = f"raise RuntimeError({wrong!r})\n" if wrong and name == "torchvision" else ""
        write_package(tmp_path, name, version, code=fails)
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


BACKEND = """\
import shutil
def build_editable(folder, *_):
    return shutil.copy("wheels/senet_ddp-0.1.0-py3-none-any.whl", folder).rpartition("/")[2]
"""
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "senet-ddp"
version = "0.1.0"
dependencies = ["torch>=2.9.99,<2.15", "torchvision>=0.24.99,<0.30"]
"""


@pytest.fixture
def small_checkout(tmp_path: Path) -> Path:
    """One that needs torch, torchvision and a second version of the package ``other``; its extra export needs a newer
    torch than the site has. Wheels of all are there. What ``train`` does is to say what it has imported."""
    folder = tmp_path / "a checkout"
    shutil.copytree(REPOSITORY / "senet", folder / "senet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "launch.sh", folder)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    what = "torch, torchvision, other"
    (folder / "senet" / "launch.py").write_text(f"import {what}\nprint(*(each.__version__ for each in ({what})))\n")
    needs = ["torch>=2.9.99,<2.15", "torchvision>=0.24.99,<0.30", "other>=2", "newer; extra == 'export'"]
    write_wheel(folder / "wheels", "senet_ddp", "0.1.0", needs)
    write_wheel(folder / "wheels", "newer", "1", ["torch>=2.12"])
    for name, version in (("torch", "2.14.1"), ("torchvision", "0.29.1"), ("other", "2")):
        write_wheel(folder / "wheels", name, version)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("of", ["a module", "an environment"])
def test_pip_keeps_the_torch_of_the_site_and_what_it_adds_stands_before_the_packages_of_the_site(
    of: str, small_checkout: Path, tmp_path: Path
) -> None:
    python, site = Path(os.path.realpath(sys.executable)), tmp_path / "the site"
    environment = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    environment |= {"PIP_NO_CACHE_DIR": "1", "PIP_FIND_LINKS": (small_checkout / "wheels").as_uri()}
    if of == "a module":
        environment["PYTHONPATH"] = f"{tmp_path}:{site}/"
    else:
        subprocess.run([python, "-m", "venv", "--without-pip", site], check=True)
        python, [site] = site / "bin" / "python", site.glob("lib/python*/site-packages")
    for name, version in (("torch", "2.10.0a0+site"), ("torchvision", "0.25.0a0+site"), ("other", "1")):
        write_package(site, name, version)

    def start(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [small_checkout / "launch.sh", *arguments]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=300)

    used = "2.10.0a0+site 0.25.0a0+site 2\n"
    first = start("train", SYSTEM_TORCH="1", PYTHON=str(python))
    assert (first.returncode, first.stdout) == (0, used), first.stderr
    [added] = small_checkout.glob(".venv/lib/python*/site-packages")
    assert not [*added.glob("torch*")]
    assert (added / "site-torch.pth").read_text() == f"{site}\n"
    second = start("train")
    assert (second.returncode, second.stdout, second.stderr) == (0, used, "")
    refused = start("setup", "export")
    assert refused.returncode != 0
    assert "ResolutionImpossible" in refused.stderr
    assert not [*added.glob("torch*")]
    assert start("train").stdout == used
