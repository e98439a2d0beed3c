"""What the commands on a finished network share: how they refuse, and how they end."""

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

BUS_ERROR = "a page of a mapped file was not to be had: its file system does not answer, or is full"
CRASH_VARIABLE = "SENET_CRASH_FILE"  # a launcher that cannot see by which signal a rank has ended names a file


def path_argument(text: str) -> Path:
    """The type of an argument: a path in which ``~`` is what it is in the options."""
    try:
        return named_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class Parser(argparse.ArgumentParser):
    """A wrong command line is a ConfigError: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help shows the usage")

    def add_network(self, what: str) -> None:
        """The arguments that say which network."""
        self.add_argument("network", type=path_argument, help=what)
        self.add_model()

    def add_model(self) -> None:
        """Whose network it is."""
        self.add_argument(
            "--model",
            default="",
            metavar="PACKAGE.MODULE:FUNCTION",
            help="somebody's own network, as model.name in training: a file does not choose which code is run",
        )

    def add_device(self) -> None:
        """Where the network runs."""
        self.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where one is visible"
        )


def printable(text: str) -> str:
    """One line, as long as before, and nothing that a terminal would obey: names and answers may be anybody's."""
    return "".join(each if each.isprintable() else "?" for each in text)


def end(name: str, main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command and leave the process with its exit code; 2 for a user's mistake, 1 for what else fails.

    Under torchrun one line is printed in all, rank 0's: the others wait until it has spoken, which makes torchrun end
    them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        code = main(sys.argv[1:])
        if sys.stdout is not None:  # closed by whoever started this
            sys.stdout.flush()  # here a full disk is still an error
    except BrokenPipeError:  # whoever read the output has seen enough
        code = FAILED_EXIT_CODE
    except (ConfigError, RunError, OSError) as error:
        code = REFUSED_EXIT_CODE if isinstance(error, ConfigError) else FAILED_EXIT_CODE
        record(error)
        if own_rank() != 0:
            time.sleep(10)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(printable(f"{name}: {' '.join(str(error).split())}"), file=sys.stderr)
    except KeyboardInterrupt:
        code = INTERRUPTED_EXIT_CODE
    except Exception as error:
        record(error)
        traceback.print_exc()
        code = FAILED_EXIT_CODE
    leave(code)


def record(error: BaseException) -> None:
    """Tell torchrun why this rank ends, in the file that it names: its summary shows the first one of all ranks."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        known = isinstance(error, ConfigError | RunError)
        text = str(error) if known else "".join(traceback.format_exception(error))
        message = {
            "message": f"{type(error).__name__}: {error}",
            "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))},
        }
        with contextlib.suppress(OSError):  # whoever named it is gone, or its disk is full
            Path(path).write_text(json.dumps({"message": message}))


def trace_crashes() -> None:
    """Where SIGBUS, SIGSEGV or their kind end it, say in which line: on stderr, or in the launcher's file."""
    if sys.stderr is not None:
        faulthandler.enable(sys.stderr)
    if path := os.environ.get(CRASH_VARIABLE):
        with contextlib.suppress(OSError):  # then on stderr
            faulthandler.enable(Path(path).open("a"))  # noqa: SIM115 # to the end of the process


def leave(code: int) -> NoReturn:
    """End the process. No tearing down: with a peer gone, the destructors of the process groups can hang."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.flush()
    os._exit(code)
