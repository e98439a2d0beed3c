"""The order of modules: each imports only from those above it."""

from __future__ import annotations

import ast

from senet.config import REPOSITORY

FLOORS = [
    {"reading"},
    {"config", "preemption", "files"},
    {"environment", "locks"},
    {"schedule", "owner", "commit", "watchdog", "command", "fetch", "history", "analysis"},
    {"lease"},
    {"devices", "download"},
    {"repro", "ranks", "state", "metrics", "journal", "timing", "model", "optim", "sources", "augment", "checkpoint"},
    {"store", "rollcall", "meeting", "agreement", "network", "weights"},
    {"data", "distributed", "saving", "zoo"},
    {"resume", "trained"},
    {"trainer", "exported", "evaluation"},
    {"run", "predict", "evaluate", "export"},
    {"examine", "figures"},  # below training, which does not wait for matplotlib
    {"curves"},
    {"drawings"},
    {"page"},
    {"report"},
]
SLURM = ["cluster", "batch", "snapshot", "job", "gpus", "sbatch", "preflight", "control", "submit"]
ONE_FLOOR = {("augment", "repro")}  # neighbours that may know each other


def imports(importer: str, package: str) -> set[str]:
    """Modules of a package that a file, named as ``package/module``, imports."""
    tree = ast.parse((REPOSITORY / f"{importer}.py").read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    modules = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found = {module.split(".")[1] for module in modules if module.startswith(f"{package}.")}
    return found & modules_of(package)


def modules_of(package: str) -> set[str]:
    return {path.stem for path in (REPOSITORY / package).glob("*.py")} - {"__init__"}


def test_every_module_imports_only_from_floors_above() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert modules_of("senet") == floor.keys()
    for name in floor:
        for other in imports(f"senet/{name}", "senet"):
            assert floor[other] < floor[name] or (name, other) in ONE_FLOOR, f"{name} imports {other}"


def test_only_config_knows_omegaconf_and_the_first_floors_do_not_know_torch() -> None:
    for path in (REPOSITORY / "senet").glob("*.py"):
        text = path.read_text()
        assert path.stem == "config" or "omegaconf" not in text.lower().replace("knows omegaconf", "")
        assert path.stem not in set().union(*FLOORS[:5]) or "import torch" not in text


def test_slurm_imports_senet_and_never_the_other_way() -> None:
    assert modules_of("slurm") == set(SLURM)
    for name in SLURM:
        for other in imports(f"slurm/{name}", "slurm"):
            assert SLURM.index(other) < SLURM.index(name), f"{name} imports {other}"
        assert "import torch" not in (REPOSITORY / "slurm" / f"{name}.py").read_text()
    assert not [name for name in modules_of("senet") if imports(f"senet/{name}", "slurm")]
