"""One owner of a run directory (``owner.json``) and what it is doing (``status.json``). No torch."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from senet.errors import ConfigError, RunError, cause_of, noted
from senet.rundir.files import may_pass, patiently, replace_file, write_json
from senet.rundir.locks import StillHeld, lock
from senet.rundir.mirror import mirror_status, mirrored_end
from senet.rundir.owner import (
    HEARTBEAT_S,
    POLL_S,
    WATCH_S,
    Watch,
    describe,
    next_owner,
    read_owner,
    refuse_links,
    remove_leftovers,
)

WARNINGS_VARIABLE = "SENET_WARNINGS"  # what a launcher has to say of its nodes, a line each
_LOCK_S = 30.0
_PUBLISH_S = 60.0  # how long the end of a run waits for a file system that does not answer
log = logging.getLogger(__name__)


class LeaseLost(RunError):
    """Another start has taken the run directory over, so this one must not write there."""

    kind = "taken over"


class Lease:
    """Ownership of a run directory from ``acquire`` to ``close``, with a heartbeat and a status for others to read.

    Each start is a generation, 1 and up. ``resumed_from[generation]`` is the step it began at: what an older
    generation published beyond that step does not belong to the run.

    A thread writes both files: training does not wait for the file system.
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
        if warnings := os.environ.get(WARNINGS_VARIABLE, "").splitlines():
            self._status["warnings"] = warnings
        self.measure: Callable[[], dict[str, Any]] = dict  # facts that each heartbeat asks for anew
        self.look: Callable[[], object] = dict  # what else each heartbeat does, in its thread
        self._started = False
        self._facts = threading.Condition()  # held for an assignment, never while a file is written
        self._files = threading.Lock()  # held while files are written, by the thread and by start()
        self._wanted = self._published = 0  # how many states were to be published, and were
        self._closing = False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @classmethod
    def acquire(cls, run_dir: Path, waiting: Callable[[], None] = lambda: None) -> Lease:
        """Become the owner. If the last owner was on another host, watch first, for ``WATCH_S``, whether it is alive.

        Args:
            waiting: called about once a second while it is watched.

        Raises:
            ConfigError: another run owns it and is alive, or the directory cannot be written.
        """
        watch, told = Watch(run_dir), False
        try:
            while (lease := patiently(lambda: cls._take(run_dir, watch))) is None:
                if not told:
                    text = "run_dir=%s was held by %s; watching for %.0f s whether it is alive"
                    log.info(text, run_dir, describe(watch.owner), WATCH_S)
                    told = True
                waiting()
                time.sleep(POLL_S)
        except StillHeld as error:
            raise ConfigError(f"run_dir={run_dir}: {error}; if it has ended, delete that file and try again") from None
        except OSError as error:
            text = f"run_dir={run_dir} cannot be written ({error.strerror}); choose another run_dir"
            raise ConfigError(text) from None
        lease._thread.start()
        return lease

    @classmethod
    def _take(cls, run_dir: Path, watch: Watch) -> Lease | None:
        run_dir.mkdir(parents=True, exist_ok=True)
        refuse_links(run_dir)
        with lock(run_dir / ".owner.lock", patience_s=_LOCK_S):
            if (alive := watch.look()) is None:
                return None
            if alive:
                text = f"run_dir={run_dir} is owned by a run that is alive ({describe(watch.owner)})"
                raise ConfigError(f"{text}; stop it, or choose another run_dir")
            remove_leftovers(run_dir)
            lease = cls(run_dir, next_owner(run_dir, watch.owner))
            write_json(run_dir / "owner.json", lease._owner, durable=True)
        return lease

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._status.get("state") == "running":  # an end that is published stays
                facts = {"reason": cause_of(error)} | noted(error)
                if isinstance(error, RunError) and error.guess:
                    end = mirrored_end()  # what that rank reported itself
                    told = {key: end[key] for key in ("reason", "kind", "step", "failure", "guess") if key in end}
                    facts = told or facts | {"guess": True}
                self.update(state="failed", **facts)
        finally:
            self.close()

    def is_held(self) -> bool:
        """Whether no other start has taken the directory over."""
        return bool(read_owner(self.run_dir).get("token") == self._owner["token"])

    def start(self, step: int) -> None:
        """Write the step that this generation begins at. Until then status.json is that of the last start.

        Raises:
            LeaseLost: another start has taken the directory over meanwhile.
        """
        self.resumed_from[self.generation] = step
        self._owner["resumed_from"] = {str(key): value for key, value in self.resumed_from.items()}

        def write_owner() -> None:
            with lock(self.run_dir / ".owner.lock", patience_s=_LOCK_S):
                self._replace("owner.json", self._owner)

        with self._files:
            patiently(write_owner)
        self._started = True
        self.update(state="running", step=step)

    def write(self, name: str, content: bytes) -> None:
        """Replace another file of the run directory.

        Raises:
            LeaseLost: another start has taken the directory over meanwhile.
        """
        self._ask()
        replace_file(self.run_dir / name, content, durable=True)

    def update(self, **facts: Any) -> None:
        """Add facts to the status. They are written with the next heartbeat. If ``state`` is among them, they are
        written at once, and the call waits for it, up to a minute.
        """
        with self._facts:
            self._status |= facts
            if "state" not in facts:
                return
            self._wanted += 1
            wanted = self._wanted
            self._facts.notify_all()
            if not self._facts.wait_for(lambda: self._published >= wanted, _PUBLISH_S):
                log.warning("status in %s not written: the file system does not answer", self.run_dir)

    def close(self) -> None:
        """Release the directory; the last status stays."""
        with self._facts:
            self._closing = True
            self._facts.notify_all()
        self._thread.join(_PUBLISH_S)
        if self._thread.is_alive():  # the end of this process releases it too
            log.warning("%s not released: the file system does not answer", self.run_dir)

    def _ask(self, limit_s: float | None = None) -> None:
        if not patiently(self.is_held, limit_s=limit_s):
            raise LeaseLost(f"run_dir={self.run_dir} was taken over by another start")

    def _replace(self, name: str, content: dict[str, Any], *, limit_s: float | None = None) -> None:
        self._ask(limit_s)
        write_json(self.run_dir / name, content, durable=True, limit_s=limit_s)  # after a power cut it is not empty

    def _beat(self) -> None:
        closing = False
        while not closing:
            with self._facts:
                self._facts.wait_for(lambda: self._closing or self._wanted > self._published, HEARTBEAT_S)
                status, wanted, closing = dict(self._status), self._wanted, self._closing
                started = self._started and "state" in status
            try:
                self._publish(status, started=started, release=closing)
                self.look()
            except LeaseLost:
                pass  # training finds out before it publishes anything
            except Exception as error:  # a full disk must not end the training, nor hide why it ended
                log.warning("heartbeat and status in %s not written: %s", self.run_dir, error)
                if isinstance(error, OSError) and may_pass(error) and not closing:
                    continue  # update() goes on waiting
            with self._facts:
                self._published = wanted
                self._facts.notify_all()

    def _publish(self, status: dict[str, Any], *, started: bool, release: bool) -> None:
        """Each file is tried once, since the next heartbeat tries again. Only the last one is tried for longer."""
        now, limit_s = time.time(), _PUBLISH_S / 4 if release else 0.0
        status |= {"heartbeat": now} | self.measure()
        if started:
            mirror_status(status, limit_s=limit_s)
        with self._files:
            self._owner["heartbeat"] = now
            try:
                if started:
                    self._replace("status.json", status, limit_s=limit_s)
            finally:
                released = {"released": True} if release else {}
                self._replace("owner.json", self._owner | released, limit_s=limit_s)
