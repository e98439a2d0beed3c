"""Download torchvision's data sets; several processes may do so at once."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from senet.rundir.locks import own_folder

_TRIES = 3
_SILENCE_S = 60.0  # without data from the server: the attempt has failed


def download(dataset: Any, folder: Path, splits: Sequence[str]) -> dict[str, Any]:
    """Read the splits, unpacked in a private folder: another process may do the same, or be killed while it does.

    The archives are kept in ``folder`` for the next time; those that are there already are not downloaded.

    Raises:
        OSError, RuntimeError: of the last of three attempts.
    """
    from torchvision.datasets.utils import check_integrity

    limit_s = socket.getdefaulttimeout()
    with own_folder(folder, dataset.__name__) as own:
        for name, md5 in _archives(dataset):
            if check_integrity(folder / name, md5):
                (own / name).parent.mkdir(parents=True, exist_ok=True)
                (own / name).symlink_to((folder / name).absolute())
        try:
            socket.setdefaulttimeout(_SILENCE_S)  # torchvision would wait for ever
            for attempt in range(_TRIES):
                try:
                    found = {split: dataset(own, train=split == "train", download=True) for split in splits}
                    break
                except (OSError, RuntimeError):
                    if attempt + 1 == _TRIES:
                        raise
                    time.sleep(1 + attempt)
        finally:
            socket.setdefaulttimeout(limit_s)
        for name, _ in _archives(dataset):
            if not (own / name).is_symlink():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (own / name).replace(folder / name)
    return found


def _archives(dataset: Any) -> list[tuple[str, str]]:
    """Paths of what torchvision downloads, and their MD5."""
    if hasattr(dataset, "resources"):
        return [(f"{dataset.__name__}/raw/{name}", md5) for name, md5 in dataset.resources]
    return [(dataset.filename, dataset.tgz_md5)]


def damaged(dataset: Any, folder: Path) -> list[str]:
    """Files whose MD5 is not the published one, each with both."""
    unpacked = [*getattr(dataset, "train_list", ()), *getattr(dataset, "test_list", ())]
    files = _archives(dataset) + [(f"{dataset.base_folder}/{name}", md5) for name, md5 in unpacked]
    found = []
    for name, md5 in files:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                own = hashlib.file_digest(file, "md5").hexdigest()
            if own != md5:
                found.append(f"{name} with MD5 {own}, not {md5}")
    return found
