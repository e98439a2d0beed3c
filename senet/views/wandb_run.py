"""A run of Weights & Biases: by its server, or in a folder that ``wandb sync`` uploads."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit

from senet.errors import STOPPED_EXIT_CODE, ConfigError
from senet.extras import library
from senet.views.identity import Identity
from senet.views.points import Point

_QUIET = {  # a view of metrics.jsonl and no more: neither output, code, packages nor the machine are looked at.
    # Those with x_ may change their names with any version
    "console": "off", "silent": True, "symlink": False, "disable_git": True, "disable_code": True, "save_code": False,
    "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False,
}  # fmt: skip


class WandbRun:
    """By the server, each start goes on after the last step that the server has.

    Without one, each start writes all steps into a folder of its own, and removes those of the starts before. wandb
    writes in a process of its own, which may outlive a start that is killed: what it still does to a folder that is
    removed changes nothing. So there is one folder with all steps for ``wandb sync``, which adds whatever a folder
    holds to the run of its id.
    """

    def __init__(self, run_dir: Path, identity: Identity, *, trains: bool) -> None:
        """``trains``: else only the server will do, and what wandb keeps of it is no part of the run directory."""
        self._run_dir, self._identity, self._trains = run_dir, identity, trains
        self._run: Any = None

    def open(self) -> int:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = wandb = library("wandb", "wandb")
        self._end(exit_code=STOPPED_EXIT_CODE)
        settings, who = wandb.setup().settings, self._identity
        self._folder = self._run_dir if self._trains else Path(mkdtemp(prefix="wandb-"))
        mode = self._mode(settings)
        self._run = wandb.init(
            id=who.id,
            project=settings.project or "senet",  # else wandb takes the name of the folder that one stands in
            name=None if os.environ.get("WANDB_NAME") else who.name,
            group=None if os.environ.get("WANDB_RUN_GROUP") else who.group or None,
            config=who.options,
            dir=self._folder,
            mode=mode,
            resume=None if mode == "offline" else "allow",  # from such a folder wandb sync would count its steps anew
            reinit="create_new",  # leaves a run alone that somebody's own functions have
            settings=wandb.Settings(**{k: each for k, each in _QUIET.items() if k in wandb.Settings.model_fields}),
        )
        if self._run.disabled:
            return -1
        for folder in self._folder.glob("wandb/*run-*"):
            if folder != Path(self._run.dir).parent:
                rmtree(folder, ignore_errors=True)  # a network file system keeps the files that a process has open
        return -1 if self._run.offline else int(self._run.starting_step) - 1

    def send(self, points: Sequence[Point]) -> None:
        for point in points:
            when = self._identity.began + point.train_s
            self._run.log({**point.values, "_timestamp": when}, step=point.step, commit=True)

    def close(self, *, finished: bool) -> None:
        self._end(exit_code=0 if finished else STOPPED_EXIT_CODE)
        self._wandb.teardown()  # its process has ended then, and written all; SLURM ends processes that are left
        if not self._trains:
            rmtree(self._folder, ignore_errors=True)

    def _end(self, exit_code: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            if exit_code:
                run.mark_preempting()  # with the exit code W&B shows it as "preempted", which may be resumed
            run.finish(exit_code)

    def _mode(self, settings: Any) -> str:
        """As WANDB_MODE or ``wandb offline`` says; without a key, for which wandb would ask, offline."""
        if not self._trains:
            return "online"
        if settings.mode == "disabled":
            return "disabled"
        return "online" if settings.mode not in ("offline", "dryrun") and _has_key(settings) else "offline"


def check_key() -> None:
    """ConfigError where wandb has no key for its server. Imports wandb."""
    settings = library("wandb", "wandb").setup().settings
    if not _has_key(settings):
        raise ConfigError(f"W&B has no key for {settings.base_url}; export WANDB_API_KEY=..., or run wandb login")


def _has_key(settings: Any) -> bool:
    """Whether wandb finds a key, where ``wandb login`` leaves one or in a variable."""
    if settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(settings.base_url).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False
