"""The code as it was submitted: a copy in the run directory, from which the job runs. Where its options are."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from senet import REPOSITORY
from senet.config.load import to_yaml
from senet.config.options import Config
from senet.errors import ConfigError
from senet.rundir.commit import COMMIT_FILE, commit

MAX_BYTES = 256 * 2**20
_NOT_CODE = (".*", "__pycache__", "*.egg-info")  # for a copy without git
_RESULTS = {"data", "runs"}  # in the checkout itself: senet/data is code


def take_snapshot(folder: Path, *, without: Path) -> Path:
    """Copy the code to ``folder/code-<hash of its content>``, if that is not there yet.

    With git: the tracked files and the untracked ones that are not ignored, as they are on disk. Without: all but
    hidden files, and ``data`` and ``runs`` beside them.

    Args:
        without: the run directory, which may lie in the checkout.

    Returns:
        The copy, absolute.

    Raises:
        ConfigError: more than 256 MiB: something in the checkout is not code.
    """
    files = [path for path in _files() if not path.is_relative_to(without)]
    if (size := sum(path.lstat().st_size for path in files)) > MAX_BYTES:
        largest = max(files, key=lambda path: path.lstat().st_size)
        raise ConfigError(
            f"the code in {REPOSITORY} has {size / 2**20:.0f} MiB, a snapshot takes at most {MAX_BYTES / 2**20:.0f}; "
            f"put what is not code (the largest: {largest}) into .gitignore, or set slurm.snapshot=false"
        )
    digest = hashlib.sha256(commit().encode())
    for path in files:
        digest.update(f"{path.relative_to(REPOSITORY)}\0{path.lstat().st_mode}\0".encode())
        digest.update(str(path.readlink()).encode() if path.is_symlink() else path.read_bytes())
    final = folder / f"code-{digest.hexdigest()[:12]}"
    if not final.exists():
        temporary = final.with_name(f"{final.name}.{os.getpid()}.tmp")
        for path in files:
            copy = temporary / path.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
        (temporary / COMMIT_FILE.name).write_text(f"{commit()}\n")
        temporary.rename(final)
    return final


def config_file(config: Config, run_dir: Path) -> Path:
    """The resolved options, in the run directory."""
    return run_dir / "slurm" / f"config-{hashlib.sha256(to_yaml(config).encode()).hexdigest()[:12]}.yaml"


def _files() -> Iterator[Path]:
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        listed = b""
    # empty too if the checkout lies in another repository that ignores it
    paths = [REPOSITORY / os.fsdecode(name) for name in listed.split(b"\0") if name]
    if not paths:
        ignored = shutil.ignore_patterns(*_NOT_CODE)
        for folder, folders, names in os.walk(REPOSITORY):
            left_out = ignored(folder, [*folders, *names]) | (_RESULTS if Path(folder) == REPOSITORY else set())
            folders[:] = [name for name in folders if name not in left_out]
            paths += [Path(folder) / name for name in names if name not in left_out]
    for path in sorted(paths):
        if path.is_symlink() or path.is_file():  # a tracked file may be deleted; a submodule is a folder
            yield path
