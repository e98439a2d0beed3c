"""Options that had another name or another meaning in an earlier version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from senet.errors import ConfigError

_WRITTEN_BY_A_RUN = {"run_dir", "seed", "log.every_steps", "slurm.cluster"}
"""Among the options of such a file, which holds them all."""
_OF_DATA = {f"data.{name}" for name in ("root", "mean", "std", "holdout", "resident", "decode_threads")}
"""Among them since before data.store, when all images were kept as pixels."""


def of_a_run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options that a run has written, under their names of today: a run goes on, and is compared with others."""
    return {name: new for key, value in options.items() for name, new in [_today(key, value)]}


def with_new_names(origin: str, given: Sequence[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    """The options of one source, a file or the command line.

    Raises:
        ConfigError: a person has written an old name.
    """
    keys = {key for key, _ in given}
    if keys >= _WRITTEN_BY_A_RUN:
        pixels = [("data.store", "pixels")] if keys >= _OF_DATA and "data.store" not in keys else []
        return [*(_today(key, value) for key, value in given), *pixels]
    if "log.tensorboard" in keys:
        _, new = _today("log.tensorboard", dict(given)["log.tensorboard"])
        raise ConfigError(f"{origin}log.tensorboard is now log.to, a list; write log.to=[{','.join(new)}]")
    return given


def _today(key: str, value: Any) -> tuple[str, Any]:
    if key != "log.tensorboard":
        return key, value
    return "log.to", ["tensorboard"] if str(value).lower() in ("true", "yes", "on") else []
