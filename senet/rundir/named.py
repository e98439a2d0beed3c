"""Which run directories a word means: one, those of a sweep, or those in a folder. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from senet.config.load import named_path
from senet.errors import ConfigError
from senet.rundir.files import read_json
from senet.verbs import typed

ROOT = Path("runs")
SWEEP = "sweep.json"
_OF_A_RUN = ("owner.json", "status.json", "metrics.jsonl", "slurm/job.json")
_DEEP = 20  # levels; more than anybody makes
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
        raise ConfigError(f"{path} is a file; {remedy}")
    more = f", and no run or sweep of this name in {ROOT.absolute()}" if _is_name(word) else ""
    raise ConfigError(f"{path}: no such folder{more}; {remedy}")


def in_runs(word: str) -> Path:
    """What has this name in ``runs/``; a word that is no name stays the path that it is."""
    return ROOT / word if _is_name(word) else named_path(word)


def _is_name(word: str) -> bool:
    return word.rstrip("/") == Path(word).name and word != ".."  # Tab leaves a slash behind a folder


def runs_in(folder: Path) -> list[Path]:
    """The folder itself, or all run directories below it, those of a sweep in the order of its cells.

    Raises:
        ConfigError: there is none.
    """
    found = list(below(folder))
    if not found and is_sweep(folder):
        text = f"{folder}: none of the {len(cell_names(folder))} cells of this sweep has begun"
        raise ConfigError(f"{text}; see: {typed('sweep')} status {folder}")
    if not found:
        raise ConfigError(f"{folder} is no run directory, and holds none; name what run_dir was in training")
    return found


def below(folder: Path, levels: int = _DEEP, *, is_link: bool = False) -> Iterator[Path]:
    """The same, to so many levels below; none of a folder that holds none, or that is not there. What may not be read
    is left out, which is said once."""
    try:
        if is_run(folder):
            yield folder
        elif levels and (not is_link or is_sweep(folder)):  # other links may lead in a circle
            for each, leads_there in _inside(folder).items():
                yield from below(each, levels - 1, is_link=leads_there)
    except FileNotFoundError:  # also while others remove it
        return
    except PermissionError:
        _say_left_out(folder)


def _inside(folder: Path) -> dict[Path, bool]:
    """The folders in a folder, those of cells first, and links: which of both. Files cost no question each."""
    with os.scandir(folder) as entries:
        links = {each.name: each.is_symlink() for each in entries if each.is_symlink() or each.is_dir()}
    names = [name for name in (*cell_names(folder), *sorted(links)) if name in links and name != _OF_JOBS]
    return {folder / name: links[name] for name in names}


@cache
def _say_left_out(folder: Path) -> None:
    print(f"{folder} may not be read by you, and is left out", file=sys.stderr)


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
