"""The order of packages, and of the modules inside each: a module imports only from those above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from senet import REPOSITORY

ROOMS = {
    "senet": "errors compat verbs config rundir distributed command models data training inference report predict "
    "evaluate export launch",
    "senet/config": "reading options checks load recipes manual __main__",
    "senet/rundir": "files locks owner lease commit history checkpoint copies saving",
    "senet/distributed": "environment preemption watchdog devices ranks interfaces rollcall meeting agreement groups "
    "timing",
    "senet/models": "senet weights zoo",
    "senet/data": "draws download sources store samplers augment",
    "senet/training": "schedule state seeds optim scores rows boards writer feed learner peers evaluation resume "
    "record trainer prepare run",
    "senet/inference": "network formats scoring fetch",
    "senet/report": "analysis examine figures curves drawings page __main__",
    "slurm": "cluster batch snapshot job gpus sbatch preflight control submit",
}
"""Each folder's modules and packages, in the order of the map in CONTRIBUTING.md."""

WITHOUT_TORCH = {
    "senet/errors",
    "senet/verbs",
    "senet/command",
    "senet/launch",
    "senet/predict",
    "senet/evaluate",
    "senet/export",
}
WITHOUT_TORCH |= {f"senet/config/{name}" for name in ROOMS["senet/config"].split()}
WITHOUT_TORCH |= {f"senet/rundir/{name}" for name in ("files", "locks", "owner", "lease", "commit", "history")}
WITHOUT_TORCH |= {f"senet/distributed/{name}" for name in ("environment", "preemption", "watchdog", "devices")}
WITHOUT_TORCH |= {"senet/inference/fetch", "senet/training/schedule", "senet/report/analysis", "senet/report/__main__"}
WITHOUT_TORCH |= {f"slurm/{name}" for name in ROOMS["slurm"].split()}
"""What a launcher or ``--help`` waits for; importing torch takes seconds."""


def modules(folder: str) -> set[str]:
    """Names of the modules and packages of a folder."""
    inside = [
        path for path in (REPOSITORY / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    return {path.stem for path in inside} - {"__init__"}


def imported(path: Path, *, at_start: bool = False) -> set[str]:
    """Full names of what a file imports, in functions too unless only what counts at its start is asked for."""
    tree = ast.parse(path.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    only_for_types = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    later = [n for n in tree.body if isinstance(n, kinds)] + only_for_types if at_start else []
    left_out = {id(inner) for node in later for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("folder", ROOMS)
def test_a_module_imports_only_from_those_above_it(folder: str) -> None:
    order = ROOMS[folder].split()
    assert modules(folder) == set(order)
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
    for name in WITHOUT_TORCH:
        assert not [
            n for n in imported(REPOSITORY / f"{name}.py", at_start=True) if n.split(".")[0].startswith("torch")
        ]
        for other in imported(REPOSITORY / f"{name}.py", at_start=True):
            inner = "/".join(other.split(".")[:-1] if other.startswith("senet.") else [])
            if (REPOSITORY / f"{inner}.py").exists():
                assert inner in WITHOUT_TORCH, f"{name} imports {inner}"


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
