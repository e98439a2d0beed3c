"""The order of packages, and of the modules inside each: a module imports only from those above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from senet import REPOSITORY

ENTRIES = "train_ddp senet.config.__main__ senet.predict senet.evaluate senet.export senet.report.__main__ senet.launch"
ENTRIES += " senet.drill.__main__ senet.doctor.__main__ slurm.submit slurm.batch slurm.check slurm.check_rank slurm.job"
ENTRIES += " senet.prune senet.profile senet.sync senet.compare.__main__ senet.sweep.__main__ slurm.why slurm.follow"
ENTRIES += " senet.data.__main__"
"""What is started with ``--help``, before a launch or on a login node; importing torch takes seconds."""


def rooms() -> dict[str, list[str]]:
    """Each folder's modules and packages, in the order of the map in CONTRIBUTING.md."""
    rooms: dict[str, list[str]] = {}
    [block] = re.findall(r"```\n(train_ddp\.py.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.S)
    path: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        [names] = re.findall(r"^([\w.]+(?:, [\w.]+)*)/?(?: |$)", line.strip())
        path = path[:depth]
        if path:
            rooms["/".join(path)] += names.split(", ")
        if line.split()[0].endswith("/"):
            path.append(names)
            rooms["/".join(path)] = []
    return rooms


def modules(folder: str) -> set[str]:
    """Names of the modules and packages of a folder."""
    inside = list((REPOSITORY / folder).iterdir())
    return {p.stem for p in inside if p.suffix == ".py" or (p / "__init__.py").exists()} - {"__init__"}


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, in its functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("folder", rooms())
def test_a_module_imports_only_from_those_above_it(folder: str) -> None:
    order = rooms()[folder]
    assert modules(folder) == set(order)
    assert all(f"{folder}/{name}" in rooms() for name in order if (REPOSITORY / folder / name).is_dir())
    prefix = folder.replace("/", ".") + "."
    for number, name in enumerate(order):
        place = REPOSITORY / folder / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            found = {full.removeprefix(prefix).split(".")[0] for full in imported(file) if full.startswith(prefix)}
            wrong = (found & set(order)) - set(order[: number + place.is_dir()])
            assert not wrong, f"{file.relative_to(REPOSITORY)} imports {wrong}"


def test_slurm_imports_senet_and_never_the_other_way() -> None:
    for file in (REPOSITORY / "senet").rglob("*.py"):
        assert not [name for name in imported(file) if name.split(".")[0] == "slurm"]


def test_what_a_launcher_waits_for_does_not_import_torch() -> None:
    code = f"import sys, {', '.join(ENTRIES.split())}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_only_one_module_knows_omegaconf() -> None:
    files = (REPOSITORY / "senet").rglob("*.py")
    knowing = [path.stem for path in files if any(name.startswith("omegaconf") for name in imported(path))]
    assert knowing == ["load"]


def test_private_names_of_torch_are_used_in_compat_alone() -> None:
    private = re.compile(
        r"\btorch(\.\w+)*\._[a-z]|\bfrom torch[\w.]*\._|^from torch.* import .*\b_\w+|_metadata\b|\bapi\._", re.M
    )
    files = {*(REPOSITORY / "senet").rglob("*.py"), *(REPOSITORY / "slurm").glob("*.py"), REPOSITORY / "train_ddp.py"}
    assert [path.stem for path in files if private.search(path.read_text())] == ["compat"]


def test_files_and_functions_fit_a_screen_or_five() -> None:
    files = [*(REPOSITORY / "senet").rglob("*.py"), *(REPOSITORY / "slurm").glob("*.py"), REPOSITORY / "train_ddp.py"]
    lines = {str(path.relative_to(REPOSITORY)): path.read_text().count("\n") for path in files}
    assert [name for name, count in lines.items() if count > 250] == ["senet/config/options.py"]  # the manual
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{path}: {node.name}"
