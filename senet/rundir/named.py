"""Which run directories a word means: one, those of a sweep, or those in a folder. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from senet.config.load import named_path
from senet.errors import ConfigError
from senet.rundir.files import read_json

ROOT = Path("runs")
SWEEP = "sweep.json"
_OF_A_RUN = ("owner.json", "status.json", "metrics.jsonl", "slurm/job.json")
_OF_JOBS = "slurm"  # a folder that holds a copy of the code, with whatever lies in that


def is_run(folder: Path) -> bool:
    """Whether it is the directory of a run that has begun, or was submitted."""
    return any((folder / name).exists() for name in _OF_A_RUN) and not is_sweep(folder)


def is_sweep(folder: Path) -> bool:
    return (folder / SWEEP).is_file()


def cell_names(folder: Path) -> list[str]:
    """The names of all cells of a sweep that were ever asked for; none of another folder."""
    return list(read_json(folder / SWEEP).get("cells", ()))


def cells_not_begun(folder: Path) -> list[Path]:
    """The cells of a sweep that have no run directory."""
    return [folder / cell for cell in cell_names(folder) if not is_run(folder / cell)]


def folder_of(word: str) -> Path:
    """The folder that a word means: a path, or the name of a run or of a sweep in ``runs/``.

    Raises:
        ConfigError: there is none, or it is a file.
    """
    remedy = "name a run directory, a sweep, or a folder of runs"
    if not word:
        raise ConfigError(f"an empty word means no run; {remedy}")
    path = named_path(word)
    for each in (path, in_runs(word)):
        if is_run(each) or is_sweep(each):
            return each
    if path.is_dir():
        return path
    if path.exists():
        raise ConfigError(f"{word} is a file; {remedy}")
    more = "" if "/" in word else f", and no run or sweep of this name in {ROOT.absolute()}"
    raise ConfigError(f"{word}: no such folder{more}; {remedy}")


def in_runs(word: str) -> Path:
    """What has this name in ``runs/``; a word that is no name stays the path that it is."""
    return named_path(word) if "/" in word else ROOT / word


def runs_in(folder: Path) -> list[Path]:
    """The folder itself, or all run directories below it, those of a sweep in the order of its cells.

    Raises:
        ConfigError: there is none.
    """
    found = list(below(folder))
    if not found and is_sweep(folder):
        raise ConfigError(f"{folder}: none of the {len(cell_names(folder))} cells of this sweep has begun")
    if not found:
        raise ConfigError(f"{folder} is no run directory, and holds none; name what run_dir was in training")
    return found


def below(folder: Path) -> Iterator[Path]:
    """The same; none of a folder that holds none."""
    if is_run(folder):
        yield folder
        return
    inside = [folder / cell for cell in cell_names(folder)] + (sorted(folder.iterdir()) if folder.is_dir() else [])
    for each in dict.fromkeys(inside):
        if is_run(each) or (each.is_dir() and not each.is_symlink() and each.name != _OF_JOBS):
            yield from below(each)  # other links may lead in a circle


def one_run(word: str) -> Path:
    """The run directory that a word means.

    Raises:
        ConfigError: there is none, or there are several.
    """
    [first, *others] = runs_in(folder_of(word))
    if others:
        raise ConfigError(f"{folder_of(word)} holds {1 + len(others)} runs; name one of them, as {first}")
    return first


def sweep_of(word: str) -> Path:
    """The folder of the sweep that a word means.

    Raises:
        ConfigError: there is none.
    """
    folder = folder_of(word)
    if not is_sweep(folder):
        raise ConfigError(f"{folder} is no sweep: there is no {folder / SWEEP}")
    return folder
