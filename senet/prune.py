"""What lies in run directories, and which of it can go: ``python -m senet.prune RUN [RUN ...] [--delete]``.

Kept are the best checkpoint, which predict, evaluate, export and report take, and the newest, with which the run goes
on or says that it has finished; of the others only what nobody needs any more: older checkpoints, damaged ones, what
killed processes left half written. Nothing is removed without --delete, nor from a run that is alive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from senet.command import Parser, end
from senet.errors import FAILED_EXIT_CODE, ConfigError, RunError
from senet.rundir.files import read_json
from senet.rundir.history import judged
from senet.rundir.lease import Lease
from senet.rundir.named import folder_of, runs_in
from senet.rundir.owner import holder
from senet.rundir.standing import state_of
from senet.verbs import typed


@dataclass(frozen=True)
class Content:
    """The checkpoints of a run directory."""

    newest: Path | None
    best: Path | None
    unneeded: list[Path]
    """Files: data, manifests, damaged ones, leftovers."""

    @property
    def kept(self) -> list[Path]:
        """Data files, each once."""
        return list(dict.fromkeys(path for path in (self.best, self.newest) if path))


def main(argv: Sequence[str]) -> int:
    """Print what lies in each run directory; with --delete remove what can go."""
    parser = Parser(prog=typed("prune"), description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, a sweep, or a folder of runs")
    parser.add_argument("--delete", action="store_true", help="remove what can go")
    parser.add_argument("--unfinished", action="store_true", help="with --delete, also of runs that have not finished")
    arguments = parser.parse_args(argv)
    left = False
    for run in [run for word in arguments.runs for run in runs_in(folder_of(word))]:
        print("\n".join(describe(run)))
        if arguments.delete:
            try:
                print(f"  {delete(run, unfinished=arguments.unfinished)}")
            except (ConfigError, RunError) as error:
                left = True
                print(f"  left alone: {error}")
    return FAILED_EXIT_CODE if left else 0


def look(run: Path) -> Content:
    """Sort the files of ``checkpoints``; those with other names are nobody's business."""
    from senet.rundir.checkpoint import generation_of, is_best, published_files  # imports torch

    folder = run / "checkpoints"
    resumed_from = {int(key): step for key, step in read_json(run / "owner.json").get("resumed_from", {}).items()}
    published = published_files(folder, resumed_from)
    content = Content(published[0] if published else None, next(filter(is_best, published), None), [])
    needed = {part for path in content.kept for part in (path, path.with_suffix(".json"))}
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    content.unneeded.extend(path for path in files if generation_of(path) >= 0 and path not in needed)
    return content


def describe(run: Path) -> list[str]:
    """Lines: the run, its checkpoints, its other folders, and how much can go."""
    content, status = look(run), read_json(run / "status.json")
    held, _ = holder(run)
    state = f"held by {held}" if held else state_of(run).word
    lines = [f"{run}: {state}, step {status.get('step', 0)}, {_megabytes([run])}"]
    for path in content.kept:
        marks = [mark for mark, each in (("best", content.best), ("newest", content.newest)) if each == path]
        lines.append(f"  {path.name}  {_megabytes([path])}  {' and '.join(marks)}{_score(path)}")
    folders = [path for path in sorted(run.iterdir()) if path.is_dir() and path.name != "checkpoints"]
    lines += [f"  {path.name}/  {_megabytes([path])}" for path in folders]
    older = sum(path.suffix == ".pt" for path in content.unneeded)
    broken = sum(path.suffix in (".damaged", ".tmp") for path in content.unneeded)
    lines.append(
        f"  can go: {_megabytes(content.unneeded)} ({older} older checkpoints, {broken} damaged or unfinished files)"
    )
    return lines


def delete(run: Path, *, unfinished: bool) -> str:
    """Remove what can go, as the owner of the run directory; what was done.

    Raises:
        ConfigError: the run has not finished, or it is alive; or its files cannot be removed here.
        RunError: what is to be kept is damaged.
    """
    from senet.rundir.checkpoint import read_checkpoint  # imports torch

    state = state_of(run).word
    if state != "finished" and not unfinished:
        raise ConfigError(f"it has not finished ({state}); add --unfinished")
    if not look(run).unneeded:
        return "nothing to remove"
    if not all(os.access(folder, os.W_OK) for folder in (run, run / "checkpoints")):
        raise ConfigError("you cannot write this folder, or it is mounted read-only; run it where you can")
    with Lease.acquire(run):  # from here on no training can begin
        content = look(run)
        if not content.kept:
            raise RunError("none of its checkpoints belongs to the run as owner.json tells it")
        for path in content.kept:
            read_checkpoint(path)
        size = _megabytes(content.unneeded)
        for path in sorted(content.unneeded, key=lambda path: path.suffix == ".json"):  # no data without a manifest
            path.unlink(missing_ok=True)
    return f"removed: {size}, {len(content.unneeded)} files"


def _score(path: Path) -> str:
    """The accuracy after the last epoch before it, as its manifest has it."""
    try:
        manifest = json.loads(path.with_suffix(".json").read_text())
        top1 = manifest["test"][f"{judged(manifest['test'])}_top1"]
    except (OSError, ValueError, KeyError):
        return ""
    return f", {top1:.2f} %"


def _megabytes(paths: Sequence[Path]) -> str:
    files = [each for path in paths for each in (path.rglob("*") if path.is_dir() else [path])]
    return f"{sum(each.lstat().st_size for each in files if each.is_file()) / 1e6:,.1f} MB"


if __name__ == "__main__":
    end("prune", main)
