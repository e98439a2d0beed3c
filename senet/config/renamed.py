"""Options that had another name in an earlier version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from senet.errors import ConfigError

_WRITTEN_BY_A_RUN = {"run_dir", "seed", "log.every_steps", "slurm.cluster"}
"""Among the options of such a file, which holds them all."""


def with_new_names(origin: str, given: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The options of one source. In the config.yaml of a run they are renamed: the same command goes on with it.

    Raises:
        ConfigError: a person has written an old name.
    """
    is_of_a_run = {key for key, _ in given} >= _WRITTEN_BY_A_RUN
    for key, value in given:
        if key != "log.tensorboard":
            yield key, value
        elif is_of_a_run:
            yield "log.to", ["tensorboard"] if str(value).lower() == "true" else []
        else:
            new = "[]" if str(value).lower() in ("false", "no", "off") else "[tensorboard]"
            raise ConfigError(f"{origin}log.tensorboard is now log.to, a list; write log.to={new}")
