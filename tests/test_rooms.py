"""The order of modules: each imports only from those above it."""

from __future__ import annotations

import ast

from senet.config import REPOSITORY

FLOORS = [
    {"config", "preemption", "files"},
    {"schedule", "lease", "commit"},
    {"repro", "distributed", "state", "metrics", "model", "optim", "sources", "augment"},
    {"data", "checkpoint"},
    {"resume"},
    {"trainer"},
    {"run"},
]
ONE_FLOOR = {("augment", "repro")}  # neighbours that may know each other


def imports(name: str) -> set[str]:
    tree = ast.parse((REPOSITORY / "senet" / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("senet.")}


def test_every_module_imports_only_from_floors_above() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    files = {path.stem for path in (REPOSITORY / "senet").glob("*.py")} - {"__init__"}
    assert files == floor.keys()
    for name in files:
        for other in imports(name):
            assert floor[other] < floor[name] or (name, other) in ONE_FLOOR, f"{name} imports {other}"


def test_only_config_knows_omegaconf_and_the_first_floors_do_not_know_torch() -> None:
    for path in (REPOSITORY / "senet").glob("*.py"):
        text = path.read_text()
        assert path.stem == "config" or "omegaconf" not in text.lower().replace("knows omegaconf", "")
        assert path.stem not in FLOORS[0] | FLOORS[1] or "import torch" not in text
