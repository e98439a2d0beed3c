"""What the commands share: their command line, one line for an error, exit codes, records of a crash."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from senet.config.load import named_path
from senet.distributed.environment import own_rank
from senet.errors import FAILED_EXIT_CODE, INTERRUPTED_EXIT_CODE, REFUSED_EXIT_CODE, ConfigError, RunError
from senet.rundir.named import in_runs, is_run, is_sweep

BUS_ERROR = "a page of a mapped file could not be read or written: its file system does not answer, or is full"
CRASH_VARIABLE = "SENET_CRASH_FILE"  # names a file; set by a launcher that cannot see which signal ended a rank


def path_argument(text: str) -> Path:
    """For ``add_argument(type=...)``: a path, with ``~`` expanded as in the options."""
    try:
        return named_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def network_argument(text: str) -> Path:
    """Likewise, or the name of a run in ``runs/``."""
    path, inside = path_argument(text), in_runs(text)
    return inside if not path.exists() and (is_run(inside) or is_sweep(inside)) else path


class Parser(argparse.ArgumentParser):
    """A wrong command line is a ConfigError: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help shows the usage")

    def add_network(self, what: str) -> None:
        """The arguments that name the network."""
        self.add_argument("network", type=network_argument, help=what)
        self.add_model()

    def add_model(self) -> None:
        """The argument that allows a user's own network."""
        self.add_argument(
            "--model",
            default="",
            metavar="PACKAGE.MODULE:FUNCTION",
            help="for your own network: model.name of the training, since a file must not choose which code is run",
        )

    def add_device(self) -> None:
        """Where the network runs."""
        self.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if one is visible"
        )


def printable(text: str) -> str:
    """Replace line breaks and control characters by ``?``: file names and server responses are not trusted."""
    return "".join(each if each.isprintable() else "?" for each in text)


def end(name: str, main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command and leave the process with its exit code; 2 for a user's mistake, 1 for any other failure.

    Under torchrun only rank 0 prints its line: the others wait, and torchrun ends them when rank 0 has exited.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        code = main(sys.argv[1:])
        if sys.stdout is not None:  # None: closed by the parent process
            sys.stdout.flush()  # raises on a full disk; at exit it would not
    except BrokenPipeError:  # the reader of a pipe has ended, like head
        code = FAILED_EXIT_CODE
    except (ConfigError, RunError, OSError) as error:
        code = REFUSED_EXIT_CODE if isinstance(error, ConfigError) else FAILED_EXIT_CODE
        write_error_file(error)
        if own_rank() != 0:
            time.sleep(10)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(printable(f"{name}: {' '.join(str(error).split())}"), file=sys.stderr)
    except KeyboardInterrupt:
        code = INTERRUPTED_EXIT_CODE
    except Exception as error:
        write_error_file(error)
        traceback.print_exc()
        code = FAILED_EXIT_CODE
    leave(code)


def write_error_file(error: BaseException) -> None:
    """Write why this rank ends into torchrun's error file; its summary shows the earliest of all ranks."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        known = isinstance(error, ConfigError | RunError)
        text = str(error) if known else "".join(traceback.format_exception(error))
        message = {
            "message": f"{type(error).__name__}: {error}",
            "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))},
        }
        with contextlib.suppress(OSError):  # torchrun and its folder are gone, or the disk is full
            Path(path).write_text(json.dumps({"message": message}))


def trace_crashes() -> None:
    """On SIGBUS, SIGSEGV and the like, write a traceback to stderr, or to the launcher's file."""
    if sys.stderr is not None:
        faulthandler.enable(sys.stderr)
    if path := os.environ.get(CRASH_VARIABLE):
        with contextlib.suppress(OSError):  # stderr remains
            faulthandler.enable(Path(path).open("a"))  # noqa: SIM115 # to the end of the process


def leave(code: int) -> NoReturn:
    """End the process without destructors: those of the process groups can hang when another rank is gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.flush()
    os._exit(code)
