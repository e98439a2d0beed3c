"""``notify=``: a word when a run has ended, or has stopped and needs a person. Sent by the process that launched it.

An address gets JSON by POST, a command the same on its standard input. Never fails the run, nor holds it up for long.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from senet.config.checks import check_notify, is_address
from senet.distributed.roster import host_name
from senet.errors import ConfigError
from senet.rundir.files import read_json, read_rows

LIMIT_S = 5.0


def target(notify: str) -> str:
    """The address or the command that an option names; empty: nobody is told.

    Raises:
        ConfigError: it is that of a variable that is not set, or holds no address that may be used.
    """
    if not notify.startswith("env:"):
        return notify
    name = notify.removeprefix("env:")
    if not (found := os.environ.get(name, "")):
        raise ConfigError(f"notify={notify}, but the variable {name} is not set here; export {name}=https://...")
    check_notify(found, secret=True)
    return found


def message(run_dir: Path, state: str, cause: str, job: str = "") -> dict[str, Any]:
    """What is sent. ``state``: finished, stopped, failed or refused; ``result``: the row of the last epoch."""
    result = read_json(run_dir / "status.json").get("result", {})
    where = {"host": host_name(), "run_dir": str(run_dir.absolute())} | ({"job": job} if job else {})
    best = f", best {result['best_top1']:.2f} % top-1" if "best_top1" in result else ""
    text = f"run {run_dir.absolute().name} {state}{f': {cause}' if cause else ''}{best}; {where['run_dir']}"
    return {
        "text": text,
        "run": run_dir.absolute().name,
        "state": state,
        "cause": cause,
        "result": result,
        "where": where,
    }


def was_finished(run_dir: Path) -> bool:
    """Whether the last start has found the run finished, and did nothing."""
    rows = list(read_rows(run_dir / "starts.jsonl"))
    last = rows[-1] if rows else {}
    done = read_json(run_dir / "status.json").get("done")
    return last.get("after", {}).get("state") == "finished" and last.get("resumed_from") == done


def tell(notify: str, content: Mapping[str, Any]) -> None:
    """Send it; one line on stderr where that fails. Takes ``LIMIT_S`` at the most."""
    if not notify:
        return
    said = [f"no answer within {LIMIT_S:.0f} s"]

    def send() -> None:
        try:
            to, body = target(notify), json.dumps(content).encode()
            _post(to, body) if is_address(to) else _run(to, body)
            said[0] = ""
        except Exception as error:  # whatever it is: the run has ended as it has
            said[0] = _in_words(error)

    thread = threading.Thread(target=send, name="notify", daemon=True)  # a name that is looked up may take minutes
    thread.start()
    thread.join(LIMIT_S)
    if said[0]:
        print(f"notify: nobody was told: {said[0]}", file=sys.stderr, flush=True)


class _Failed(Exception):
    """In words of this module."""


def _in_words(error: BaseException) -> str:
    """Without the words of other modules, in which the address or the command may stand, and with them a key."""
    if isinstance(error, (_Failed, ConfigError)):
        return str(error)
    cause = getattr(error, "reason", None)  # of a URLError
    if isinstance(cause, OSError):
        return _in_words(cause)
    number = error.errno if isinstance(error, OSError) and type(error).__module__ == "builtins" else None
    return type(error).__name__ + (f": {os.strerror(number)}" if number else "")


def _post(address: str, body: bytes) -> None:
    from http.client import InvalidURL
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class Refuse(HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            """Another address than the one that was named gets nothing."""

    try:
        request = Request(address, body, {"Content-Type": "application/json"}, method="POST")
        build_opener(Refuse).open(request, timeout=LIMIT_S).close()
    except HTTPError as error:
        raise _Failed(f"the address answers {error.code}") from None
    except (InvalidURL, UnicodeError):
        raise _Failed("the address holds a blank or another character that no address may have") from None


def _run(command: str, body: bytes) -> None:
    """By the shell, in the environment of this process; what it prints goes to stderr."""
    process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    try:
        process.communicate(body, timeout=0.9 * LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise _Failed(f"the command was not done within {0.9 * LIMIT_S:.1f} s") from None
    if process.returncode:
        raise _Failed(f"the command ended with exit code {process.returncode}")
