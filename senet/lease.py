"""One owner of a run directory (``owner.json``) and what it is doing (``status.json``). No torch."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from senet.config import ConfigError, RunError
from senet.files import read_json, write_json
from senet.locks import StillHeld, boot, lock, started_at, this_process

HEARTBEAT_S = 5.0
STALE_S = 60.0  # a holder on another host is dead after this long without a heartbeat
_PATIENCE_S = 30.0
MIRROR_VARIABLE = "SENET_STATUS_FILE"  # a launcher reads the outcome of its own launch there
log = logging.getLogger(__name__)


class Lease:
    """Ownership of a run directory from ``acquire`` to ``close``, with a heartbeat and a status for others to read.

    Each start is a generation, 1 and up. ``resumed_from[generation]`` is the step it began at: what an older
    generation published beyond that step does not belong to the run.
    """

    def __init__(self, run_dir: Path, owner: dict[str, Any]) -> None:
        self.run_dir = run_dir
        self.generation: int = owner["generation"]
        self.resumed_from: dict[int, int] = {int(key): value for key, value in owner["resumed_from"].items()}
        self._owner = owner
        self._status: dict[str, Any] = {
            "reason": "",
            **{key: owner[key] for key in ("generation", "host", "pid", "job", "job_restarts")},
        }
        self._started = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @classmethod
    def acquire(cls, run_dir: Path) -> Lease:
        """Become the owner.

        Raises:
            ConfigError: another run owns it and is alive, or the directory cannot be written.
        """
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            _refuse_links(run_dir)
            with lock(run_dir / ".owner.lock", patience_s=_PATIENCE_S):
                previous = read_json(run_dir / "owner.json")
                if who := _living(previous):
                    raise ConfigError(
                        f"run_dir={run_dir} is owned by a run that is alive ({who}); stop it, or choose another run_dir"
                    )
                lease = cls(run_dir, _owner(previous))
                write_json(run_dir / "owner.json", lease._owner, durable=True)
        except StillHeld as error:
            raise ConfigError(f"run_dir={run_dir}: {error}; if it has ended, delete that file and try again") from None
        except OSError as error:
            raise ConfigError(
                f"run_dir={run_dir} cannot be written ({error.strerror}); choose another run_dir"
            ) from None
        lease._thread.start()
        return lease

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._status.get("state") == "running":  # what was published stays so
                self.update(state="failed", reason=" ".join(f"{type(error).__name__}: {error}".split())[:500])
        finally:
            self.close()

    def is_held(self) -> bool:
        """Whether nobody else has taken the directory over."""
        return bool(read_json(self.run_dir / "owner.json").get("token") == self._owner["token"])

    def start(self, step: int) -> None:
        """Put down the step that this generation begins at. Until then the last run's status stays as it is.

        Raises:
            RunError: another start has taken the directory over meanwhile.
        """
        self.resumed_from[self.generation] = step
        with self._lock, lock(self.run_dir / ".owner.lock", patience_s=_PATIENCE_S):
            if not self.is_held():
                raise RunError(f"run_dir={self.run_dir} was taken over by another start while this one was preparing")
            self._owner["resumed_from"] = {str(key): value for key, value in self.resumed_from.items()}
            write_json(self.run_dir / "owner.json", self._owner, durable=True)
        self._started = True
        self.update(state="running", step=step)

    def update(self, **facts: Any) -> None:
        """Add facts to the status; published at once when ``state`` is among them, else with the next heartbeat."""
        with self._lock:
            self._status |= facts
            if "state" in facts:
                self._publish()

    def close(self) -> None:
        """Release the directory; the last status stays."""
        self._closing.set()
        self._thread.join(HEARTBEAT_S)
        with self._lock:
            self._publish()
            try:
                if self.is_held():
                    write_json(self.run_dir / "owner.json", self._owner | {"released": True}, durable=True)
            except OSError as error:  # this process is about to end, which frees the directory as well
                log.warning("%s not released: %s", self.run_dir, error)

    def _beat(self) -> None:
        while not self._closing.wait(HEARTBEAT_S):
            with self._lock:
                try:
                    if self.is_held():
                        self._owner["heartbeat"] = time.time()
                        write_json(self.run_dir / "owner.json", self._owner)
                        self._publish()
                except OSError as error:  # a full disk must not end the training; the next beat tries again
                    log.warning("heartbeat in %s not written: %s", self.run_dir, error)

    def _publish(self) -> None:
        if not self._started:
            return
        self._status["heartbeat"] = time.time()
        try:
            mirror_status(self._status)
            if self.is_held():
                write_json(self.run_dir / "status.json", self._status)
        except OSError as error:  # a full disk must not end the training, nor hide why it ended
            log.warning("status in %s not written: %s", self.run_dir, error)


def mirror_status(status: dict[str, Any]) -> None:
    """Copy a status to the file that the launcher named, if it named one."""
    if path := os.environ.get(MIRROR_VARIABLE):
        write_json(Path(path), status)


def holder(run_dir: Path) -> str:
    """Who owns a run directory and why he counts as alive; empty where it is free."""
    return _living(read_json(run_dir / "owner.json"))


def _refuse_links(run_dir: Path) -> None:
    """What is written goes into the run directory (which may itself be linked to), never to where a link leads."""
    for path in (*run_dir.iterdir(), *run_dir.glob("checkpoints/*"), *run_dir.glob("tensorboard/*")):
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link; remove it (only the run directory as a whole may be one)")


def _owner(previous: dict[str, Any]) -> dict[str, Any]:
    return {
        "token": secrets.token_hex(8),
        "generation": previous.get("generation", 0) + 1,
        **this_process(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "job_restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "heartbeat": time.time(),
        "resumed_from": previous.get("resumed_from", {}),
    }


def _living(owner: dict[str, Any]) -> str:
    if not (why := _alive(owner)):
        return ""
    job = f"job {owner['job']}, " if owner["job"] else ""
    return f"{job}process {owner['pid']} on host {owner['host']}, {why}"


def _alive(owner: dict[str, Any]) -> str:
    if not owner or owner.get("released"):
        return ""
    job = os.environ.get("SLURM_JOB_ID", "")
    if job and owner["job"] == job and owner["job_restarts"] < int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return ""  # an earlier start of this very job
    if owner["host"] == socket.gethostname() and owner["boot"] == boot():
        return "it is running" if started_at(owner["pid"]) == owner["pid_started"] else ""
    age_s = time.time() - owner["heartbeat"]
    return f"last heartbeat {age_s:.0f} s ago" if age_s < STALE_S else ""
