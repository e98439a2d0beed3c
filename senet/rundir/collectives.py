"""What torch's flight recorder remembered of the last collectives of each rank, in files of a run directory. No torch.

As JSON, which is read without running code and without torch. Where NCCL's own watchdog ends a process, torch itself
writes a pickle; of that only plain values are read.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from senet.rundir.files import replace_file

FOLDER = "flight_recorder"
_KEPT = 3  # failures
_LAST = 200  # collectives of each rank: some hundred bytes each
_LARGEST = 10**8  # bytes of a file that is read
_NAME = re.compile(r"(?:g(\d+)\.rank_(\d+)\.(\w+)\.json|flight_recorder\.g(\d+)\.torch_rank_(\d+))")
Record = Mapping[str, Any]
"""``entries`` and ``pg_config``, as torch names them; ``ranks``: how many there are, of gloo untold by torch."""


def torch_prefix(run_dir: Path, generation: int) -> str:
    """To which torch adds the number of the rank. Beside the folder, which only a failure makes."""
    return str(run_dir / f"{FOLDER}.g{generation:04}.torch_rank_")


def write(run_dir: Path, generation: int, rank: int, ranks: int, kind: str, record: Record) -> None:
    """The record of one rank; ``kind``: gloo or nccl. Rank 0 removes those of starts that failed long ago."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)  # not its parents: another host may not see the run directory
    short = {"entries": record["entries"][-_LAST:], "pg_config": record["pg_config"], "ranks": ranks, "kind": kind}
    replace_file(folder / f"g{generation:04}.rank_{rank:04}.{kind}.json", json.dumps(short).encode(), limit_s=0)
    if rank == 0:
        prune(run_dir)


def prune(run_dir: Path) -> None:
    """Leave the records of the last starts that failed."""
    of = {path: int(match[1] or match[4]) for path, match in _files(run_dir)}
    kept = sorted(set(of.values()))[-_KEPT:]
    for path, generation in of.items():
        if generation not in kept:
            path.unlink(missing_ok=True)


def read(run_dir: Path, generation: int) -> Iterator[tuple[int, Record]]:
    """Each record of a start, with its rank; files that hold something else are left out."""
    for path, match in _files(run_dir):
        if int(match[1] or match[4]) == generation and (found := _load(path)):
            yield int(match[2] or match[5]), {"kind": match[3] or "nccl"} | found


def _files(run_dir: Path) -> list[tuple[Path, re.Match[str]]]:
    found = sorted([*(run_dir / FOLDER).glob("g*"), *run_dir.glob(f"{FOLDER}.g*")])
    return [(path, match) for path in found if (match := _NAME.fullmatch(path.name))]


def _load(path: Path) -> dict[str, Any]:
    """Empty where a process was killed while it wrote, or somebody else has written."""
    try:
        if path.stat().st_size > _LARGEST:
            return {}
        with path.open("rb") as file:
            found = json.load(file) if path.suffix == ".json" else _Plain(file).load()
    except (OSError, RecursionError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        return {}
    return found if _is_record(found) else {}


def _is_record(found: Any) -> bool:
    kinds = {"entries": list, "pg_config": dict, "ranks": int}
    return isinstance(found, dict) and all(isinstance(found.get(key, kind()), kind) for key, kind in kinds.items())


class _Plain(pickle.Unpickler):
    """Numbers, texts, lists, tuples and dicts: all else that a pickle makes or runs it looks up by its name."""

    def find_class(self, module: str, name: str) -> Any:
        """Refused."""
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")
