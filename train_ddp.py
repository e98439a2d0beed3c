"""Train a network: ``torchrun --nproc_per_node=4 train_ddp.py [FILE.yaml ...] [key=value ...]``."""

from senet.distributed.preemption import StopFlag, die_with_launcher, end_torchrun
from senet.errors import STOPPED_EXIT_CODE

if __name__ == "__main__":
    stop = StopFlag.install()

import contextlib
import gc
import os
import sys
import traceback
from typing import Any

from senet.command import end, leave, trace_crashes, write_error_file
from senet.config.load import load_config
from senet.config.manual import asked, show_help
from senet.config.options import Config
from senet.distributed.environment import host_answers, own_rank, read_place
from senet.distributed.roster import own_name
from senet.drill.plan import PLAN_VARIABLE
from senet.errors import FAILED_EXIT_CODE, REFUSED_EXIT_CODE, ConfigError, RunError, cause_of, noted
from senet.rundir.mirror import mirror_status
from senet.rundir.phases import BEGAN_VARIABLE, stamp


def main(argv: list[str], stop: StopFlag) -> int:
    """Train; the exit code is 0 finished, 2 bad input, 85 stopped and resumable, 1 failed."""
    die_with_launcher()
    os.environ.setdefault(BEGAN_VARIABLE, stamp(process_start=True))  # unless its launcher has said it
    stop.before_leaving(say_why)
    try:
        config = load_config(argv, read_place().world_size)
        gc.disable()  # what imports make is no garbage: looking through it takes a twelfth of their time
        from senet.training.run import run  # takes seconds: torch

        gc.freeze()
        gc.enable()
        summary = run(config, argv, stop, **drill_hooks(config))
    except ConfigError as error:
        return refuse(error, stop)
    except RunError as error:
        stop.hold()
        write_error_file(error)
        # what has spoken ends the others; if nothing does, it cannot
        if own_rank() == error.reporter or not stop.wait(10):
            print(f"train_ddp: failed: {error}", file=sys.stderr, flush=True)
            # a network file system may be cut off too, and nothing ends a process that waits for one
            if not error.cut_off or host_answers(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])):
                mirror_status({"state": "failed", "reason": str(error), "guess": error.guess} | noted(error))
        if error.cut_off:
            end_torchrun(stop)
        return FAILED_EXIT_CODE
    except BaseException as error:
        stop.hold()
        write_error_file(error)
        with contextlib.suppress(OSError):  # the terminal may be gone
            traceback.print_exc()
        # a guess: what it says may only have followed from the end of another rank
        mirror_status({"state": "failed", "reason": cause_of(error), "guess": True} | noted(error))
        return FAILED_EXIT_CODE
    return STOPPED_EXIT_CODE if summary.state == "stopped" else 0


def drill_hooks(config: Config) -> dict[str, Any]:
    """What a drill adds to the training, if this is one."""
    if plan := os.environ.get(PLAN_VARIABLE):
        from senet.drill.probe import hooks

        return hooks(config, plan)
    return {}


def say_why(code: int, reason: str) -> None:
    """A process that is ended before its training has begun, from outside its main thread."""
    if code != STOPPED_EXIT_CODE:
        write_error_file(RunError(reason))
        print(f"train_ddp: failed: {reason}", file=sys.stderr, flush=True)
        mirror_status({"state": "failed", "reason": reason, "kind": "start does not get on", "guess": True})
    elif own_rank() == 0:
        # torchrun and srun send SIGTERM too when another rank has died, and know better
        if not (reason == "SIGTERM" and "TORCHELASTIC_RUN_ID" in os.environ):
            print(f"train_ddp: stopped by {reason} before the first update", file=sys.stderr, flush=True)
        if reason != "SIGTERM":
            mirror_status({"state": "stopped", "reason": reason})


def refuse(error: ConfigError, stop: StopFlag) -> int:
    """Print one line in all: rank 0's. The others wait until it has spoken, which makes the launcher end them."""
    stop.hold()
    write_error_file(error)
    rank = own_rank()
    if rank == 0 or not stop.wait(10):
        text = f"{error}" if rank == 0 else f"{own_name()}: {error}"
        print(f"train_ddp: {text}", file=sys.stderr, flush=True)
        mirror_status({"state": "refused", "reason": text})
    return REFUSED_EXIT_CODE


if __name__ == "__main__":
    trace_crashes()
    if asked(sys.argv[1:]) is not None:
        end("train_ddp", show_help)
    leave(main(sys.argv[1:], stop))
